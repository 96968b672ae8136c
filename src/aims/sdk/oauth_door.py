"""The call profile ``oauth-bound``: an access token (RFC 9068) that is good only with its DPoP key (RFC 9449).

    1. one Authorization field of scheme DPoP or Bearer          authorization_count, token_scheme
    2. the token: kind, issuer, signature, times, parties        authorization.token_…
    3. it is for this resource; a forwarded one is named         token_audience, token_passthrough
    4. the proof, under DPoP                                     dpop_…
    5. the scheme, and the key that the token is bound to        token_unbound, token_scheme, token_binding
    6. liveness of every name in the token                       stopped, state_unknown
    7. the proof is younger than the window, and is spent        window_starting, dpop_replay, window_unavailable
    8. liveness again, for 7 was awaited                         stopped, state_unknown

Whether the scope reaches, and what exactly was allowed beside it, are the tool's questions: ``Caller.require_scope``
and ``Caller.require_details``.
"""

from __future__ import annotations

from typing import Final, Literal

from aims.authentication import dpop
from aims.authentication.errors import AuthenticationError
from aims.authentication.replay import ReplayWindow, check_started
from aims.authentication.request import HttpRequest
from aims.authorization.access_token import AccessToken, AccessTokenVerifier, Presentation
from aims.authorization.errors import AuthorizationError
from aims.clock import Clock
from aims.sdk.caller import Caller, read_only
from aims.sdk.issuer_keys import IssuerKeys
from aims.sdk.live import Enforcement
from aims.sdk.node_state import Resource

LEEWAY: Final = 5
_SCHEMES: Final[dict[str, Literal["DPoP", "Bearer"]]] = {"dpop": "DPoP", "bearer": "Bearer"}


class OauthDoor:
    """The enforcement point of one resource under ``oauth-bound``."""

    __slots__ = ("_audiences", "_clock", "_keys", "_resource", "_stops", "_verifier", "_window")

    def __init__(
        self, resource: Resource, enforcement: Enforcement, window: ReplayWindow, clock: Clock, keys: IssuerKeys
    ) -> None:
        self._resource = resource
        self._audiences = resource.audiences | {resource.url}
        self._stops = enforcement.stops
        self._window = window
        self._clock = clock
        self._keys = keys
        self._verifier = AccessTokenVerifier(enforcement.settings.issuer, keys.keys)

    async def caller(self, request: HttpRequest) -> Caller:
        """Return who presents a token, and whose right it is.

        Raises:
            AuthenticationError, AuthorizationError: the first step that failed.
            SdkError: the issuer's keys cannot be had.
        """
        # 1. one Authorization field of scheme DPoP or Bearer
        name, _, text = request.one("authorization", "authorization_count").partition(" ")
        scheme = _SCHEMES.get(name.lower())
        if scheme is None:
            raise AuthorizationError("token_scheme", name[:32])
        # 2 to 5
        token, proof = await self._token(text.lstrip(" "), scheme, request)
        # 6. liveness of every name in the token
        self._stops.require(token.names, token.epoch)
        # 7. the proof is younger than the window, and is spent
        check_started(self._window, proof.issued_at, self._clock.now(), leeway=LEEWAY)
        if await self._window.claim([proof.claim.key]) != [True]:
            raise AuthenticationError("dpop_replay")
        # 8. liveness again
        self._stops.require(token.names, token.epoch)
        return Caller(
            agent=token.client_id,
            subject=token.subject,
            actors=token.actors,
            scopes=token.scopes,
            profile=self._resource.profile,
            resource=self._resource.id,
            audience=token.audience,
            instance=token.fence.instance,
            grant_id=token.grant_id,
            thumbprint=proof.jkt,
            expires=token.expires,
            epoch=token.epoch,
            names=token.names,
            authorization_details=read_only(token.details) if token.details else (),
        )

    async def _token(
        self, text: str, scheme: Literal["DPoP", "Bearer"], request: HttpRequest
    ) -> tuple[AccessToken, dpop.DpopProof]:
        # 2. the token, once more if its issuer has changed keys meanwhile
        self._verifier.keys = await self._keys.current()
        try:
            found = self._verifier.read(text, now=self._clock.now())
        except AuthorizationError as error:
            if error.reason != "token_signature" or not await self._keys.newer():
                raise
            self._verifier.keys = self._keys.keys
            found = self._verifier.read(text, now=self._clock.now())
        # 3 to 5: where the token is not for us its proof need not hold; it tells whose mistake that is
        now, proof = self._clock.now(), None
        if scheme == "DPoP":
            try:
                proof = dpop.verify_proof(request, now=now, access_token=text)
            except AuthenticationError:
                if found.audience in self._audiences:
                    raise
        presented = Presentation(scheme=scheme, jkt=None if proof is None else proof.jkt)
        token = self._verifier.accept(text, presented, audience=self._audiences, now=now)
        if proof is None:
            # Bound to a certificate, which this service does not ask its clients for.
            raise AuthorizationError("token_binding", "no DPoP proof")
        return token, proof

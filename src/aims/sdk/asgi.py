"""The one ASGI middleware: it lets a request in only with a caller that proved it.

    app = Middleware(app, me)          # me is an aims.Identity
    ...
    caller = scope["aims.caller"]      # or aims.sdk.caller.current()

Which resources this service has, their call profiles and the names that callers may use for them come from the policy,
never from the request: ``Host`` and ``X-Forwarded-*`` are not looked at. A path outside of every resource is 404.
The body is not read. Header fields that tell of an identity do not reach the application, whoever sent them: proofs and
tokens have done their work, and anything else would be a claim that nobody verified.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final, Protocol

from aims.authentication.errors import AuthenticationError
from aims.authentication.liveness import Liveness
from aims.authentication.replay import MemoryWindow
from aims.authentication.request import HttpRequest
from aims.clock import Clock
from aims.errors import AimsError
from aims.identifiers import SpiffeId
from aims.sdk.call_doors import Doors, Place
from aims.sdk.caller import CURRENT, SCOPE_KEY, Caller
from aims.sdk.errors import SdkError
from aims.sdk.issuer_keys import IssuerKeys
from aims.sdk.live import Enforcement, Live
from aims.sdk.node_state import Resource, Settings
from aims.sdk.open_calls import App, CutError, OpenCall, OpenCalls, Receive, Scope, Send
from aims.sdk.refusals import describe, insufficient, refuse

# Fields that proxies and libraries use to say who is calling; also every name that begins as those below.
_IDENTITY_FIELDS: Final = frozenset(
    {
        b"authorization",
        b"proxy-authorization",
        b"workload-identity-token",
        b"workload-proof-token",
        b"txn-token",
        b"dpop",
        b"client-cert",
        b"client-cert-chain",
        b"remote-user",
        b"x-remote-user",
        b"x-user",
        b"x-user-id",
        b"x-real-user",
    }
)
_IDENTITY_PREFIXES: Final = (
    b"aims-",
    b"x-aims-",
    b"x-spiffe-",
    b"x-forwarded-client-cert",
    b"x-forwarded-user",
    b"x-forwarded-email",
    b"x-forwarded-preferred-username",
    b"x-forwarded-access-token",
    b"x-forwarded-groups",
    b"x-auth-request-",
    b"x-client-cert",
    b"x-ssl-client-",
    b"ssl-client-",
    b"x-goog-authenticated-",
    b"x-goog-iap-",
    b"x-amzn-oidc-",
    b"x-ms-client-principal",
)

MAX_FIELD_NAME: Final = 256
GRACE_SECONDS: Final = 3.0  # more than one heartbeat

_log = logging.getLogger("aims.sdk")


class Service(Protocol):
    """What the middleware needs of an `aims.Identity`."""

    @property
    def live(self) -> Live: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def spiffe_id(self) -> SpiffeId: ...
    @property
    def settings(self) -> Settings: ...
    def issuer_keys(self) -> IssuerKeys:
        """Return the keys that access tokens verify with."""
        ...


class Middleware:
    """Guards ``app``. The identity must be in use (`async with`) while requests come in.

    ``resources`` are those of the policy whose peer this identity is, unless they are given. ``open_paths`` are exact
    paths that anybody may ask for, without a caller. ``lone`` keeps the replay window in this process: only for a
    service that runs as one process on one host, for nobody else sees what was shown here.
    """

    def __init__(
        self,
        app: App,
        identity: Service,
        *,
        resources: Iterable[Resource] | None = None,
        open_paths: Collection[str] = (),
        lone: bool = False,
    ) -> None:
        self._app = app
        self._identity = identity
        self._live = identity.live
        self._resources = None if resources is None else tuple(resources)
        self._open_paths = frozenset(open_paths)
        self._window = MemoryWindow(identity.clock) if lone else self._live.window
        self._doors: Doors | None = None
        self._made_for: Enforcement | None = None
        self._warned_for: Enforcement | None = None
        self._warned: set[str] = set()
        self._known = identity.clock.monotonic()
        self._calls = OpenCalls(self._may_go_on)
        self._live.on_change(self._calls.sweep)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan" or (kind == "http" and scope["path"] in self._open_paths):
            if kind == "http":
                scope = {**scope, "headers": _without_identity(scope["headers"])}
            await self._app(scope, receive, send)
            return
        if kind != "http":
            await _refuse_socket(receive, send)
            return
        place = None
        try:
            doors = self._now()
            described = doors.described_at(scope["path"]) if scope["method"] == "GET" else None
            if described is not None:
                await describe(send, described, self._identity.settings.issuer)
                return
            place = doors.of(scope.get("raw_path") or b"", scope["path"])
            if place is None:
                raise AuthenticationError("target_outside")
            caller = await place.door.caller(_request(place, scope))
        except AimsError as error:
            self._log_refusal(error)
            await refuse(send, error, place)
            return
        scope = {**scope, "headers": _without_identity(scope["headers"]), SCOPE_KEY: caller}
        await self._serve(scope, receive, send, place)

    def _log_refusal(self, error: AimsError) -> None:
        # A fault of this side refuses everybody, and the answer does not say which: it must not pass unseen.
        if isinstance(error, SdkError) and insufficient(error) is None:
            enforcement = self._live.enforcement
            if enforcement is not self._warned_for:
                self._warned_for, self._warned = enforcement, set()
            if error.reason not in self._warned:
                self._warned.add(error.reason)
                _log.warning("no request can be let in: %s; fix: %s", error.brief, error.hint)
                return
        _log.info("request refused: %s", error)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, place: Place) -> None:
        refusal = None
        call = OpenCall(scope[SCOPE_KEY], receive, send)
        self._calls.add(call)
        token = CURRENT.set(call.caller)
        try:
            await self._app(scope, call.receive, call.send)
        except BaseException as error:
            refusal = None if call.started else insufficient(error)
            if refusal is None and not CutError.explains(error):
                with contextlib.suppress(CutError):
                    await call.let_go()
                raise
        finally:
            CURRENT.reset(token)
            self._calls.discard(call)
        if call.is_cut and not call.started:
            await refuse(send, self._end_of(call.caller), None)
        elif refusal is not None:
            self._log_refusal(refusal)
            await refuse(send, refusal, place)
        elif not call.is_cut:
            await call.let_go()

    def _now(self) -> Doors:
        enforcement = self._live.enforcement
        if enforcement is None:
            raise AuthenticationError("state_unknown", "nothing was heard from the node yet")
        if self._doors is None or enforcement is not self._made_for:
            resources = self._resources
            if resources is None:
                resources = enforcement.settings.of_peer(self._identity.spiffe_id)
            self._doors = Doors(resources, enforcement, self._window, self._identity.clock, self._identity.issuer_keys)
            self._made_for = enforcement
        return self._doors

    def _may_go_on(self, caller: Caller) -> bool:
        clock, found = self._identity.clock, self._liveness(caller)
        if found is Liveness.OK:
            self._known = clock.monotonic()
        # A new full state makes everything unknown until the next heartbeat; that is no reason to cut streams.
        unknown = found is Liveness.STATE_UNKNOWN and clock.monotonic() - self._known > GRACE_SECONDS
        return found is not Liveness.STOPPED and not unknown and clock.now() < caller.expires

    def _liveness(self, caller: Caller) -> Liveness:
        enforcement = self._live.enforcement
        if enforcement is None:
            return Liveness.STATE_UNKNOWN
        return enforcement.stops.check(caller.names, caller.epoch)

    def _end_of(self, caller: Caller) -> AuthenticationError:
        enforcement = self._live.enforcement
        try:
            if enforcement is None:
                return AuthenticationError("state_unknown")
            enforcement.stops.require(caller.names, caller.epoch)
        except AuthenticationError as error:
            return error
        return AuthenticationError("wit_expired")


def _request(place: Place, scope: Scope) -> HttpRequest:
    query = scope.get("query_string", b"")
    target = place.origin + scope["raw_path"].decode("latin-1")
    if query:
        target += f"?{query.decode('latin-1')}"
    if "#" in target:
        # A request has no fragment (RFC 9112 3.2): the proof would end where the path of the application goes on.
        raise AuthenticationError("request_malformed", "fragment")
    return HttpRequest.of(scope["method"], target, scope["headers"])


def _without_identity(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    # A name that is longer than any that means something is dropped, for it must not be remembered either.
    return [field for field in headers if len(field[0]) <= MAX_FIELD_NAME and not _tells(field[0])]


# The same few names come with every request. CGI and WSGI cannot tell an underscore from a hyphen.
@lru_cache(maxsize=1024)
def _tells(name: bytes) -> bool:
    name = name.replace(b"_", b"-")
    return name in _IDENTITY_FIELDS or name.startswith(_IDENTITY_PREFIXES)


async def _refuse_socket(receive: Receive, send: Send) -> None:
    # A proof covers an HTTP request; what comes over a WebSocket afterwards would be covered by none.
    await receive()
    await send({"type": "websocket.close", "code": 1008})

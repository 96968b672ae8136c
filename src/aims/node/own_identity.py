"""The node's own identity: joined once, renewed at half-life under one TLS context that rotates in place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from cryptography import x509

from aims.clock import Clock
from aims.credentials.bundle import Bundle, BundleSet
from aims.credentials.errors import CredentialError
from aims.credentials.mtls import expected_roots, peer_check
from aims.errors import AimsError
from aims.identifiers import SpiffeId
from aims.keys import Purpose
from aims.node.errors import NodeError
from aims.node.pauses import Backoff, half_life, until
from aims.node.server_client import ServerClient, join
from aims.node.state import Identity, StateFolder, request_of, welcomed
from aims.provisioning.join_token import JoinToken
from aims.tls import Check, RotatingContext

_AGAIN: Final = Backoff(first=1.0, most=60.0)

_log = logging.getLogger("aims.node")


async def obtain(folder: StateFolder, token: Callable[[], JoinToken] | None, clock: Clock) -> Identity:
    """Return the stored identity, or join; ``token`` is read only where it could be used.

    The stored identity counts while it is valid, and, where there is a token, leads to the server that the token
    names. A token of another node is refused, so that no folder changes its owner.

    Raises: NodeError ``not_joined``, ``identity_expired``, ``identity_unusable``, ``join_other_node`` and as `join`;
        ProvisioningError ``join_token_malformed``.
    """
    stored: Identity | None = None
    problem = NodeError("not_joined")
    try:
        stored = await folder.load()
    except NodeError as error:
        if error.reason not in {"identity_expired", "identity_unusable"}:
            raise
        problem = error
    if token is None:
        if stored is None:
            raise problem
        return stored
    given = token()
    if stored is not None:
        if (stored.trust_domain, stored.node) != (given.trust_domain, given.node):
            raise NodeError("join_other_node", f"stored: {stored.spiffe_id}")
        if stored.came_by(given):
            return stored
    key = await folder.keys.create(Purpose.NODE)
    welcome = await join(given, request_of(key))
    identity = welcomed(
        welcome,
        spiffe_id=SpiffeId.node(given.trust_domain, given.node),
        key=key,
        public_url=given.url,
        ca=given.ca,
        now=clock.now(),
    )
    await folder.save(identity)
    return identity


class OwnIdentity:
    """The identity in use, and the context that shows it."""

    def __init__(self, identity: Identity, folder: StateFolder, clock: Clock) -> None:
        self.identity = identity
        self._folder = folder
        self._clock = clock
        self._bundle = identity.bundle
        self._began = clock.now()
        self.context = RotatingContext.client(identity.tls(), self._roots(), self._check())

    def believe(self, bundle: Bundle) -> None:
        """Judge the server by ``bundle`` from now on. Raises: CredentialError ``bundle_sequence``, TlsError."""
        BundleSet([self._bundle]).accept(bundle)
        self._bundle = bundle
        self._rotate()

    async def keep(self, client: ServerClient) -> None:
        """Renew at half-life, for ever; while the server cannot be reached, again and again until it can."""
        while True:
            failures = 0
            await until(half_life(self._began, self.identity.svid.not_after), self._clock)
            while True:
                try:
                    await self._renew(client)
                    break
                except AimsError as error:
                    _log.warning("the node's own identity could not be renewed", extra={"code": error.code})
                    await asyncio.sleep(_AGAIN.delay(failures))
                    failures += 1

    async def _renew(self, client: ServerClient) -> None:
        before = self.identity
        key = await self._folder.keys.create(Purpose.NODE)
        try:
            after = welcomed(
                await client.renew(request_of(key)),
                spiffe_id=before.spiffe_id,
                key=key,
                public_url=before.public_url,
                ca=before.ca,
                now=self._clock.now(),
            )
        except BaseException:
            await self._folder.keys.destroy(Purpose.NODE, key.kid)
            raise
        # a failure from here on leaves the key: what is stored may name it
        await self._folder.save(after)
        self.identity, self._began = after, self._clock.now()
        with suppress(CredentialError):  # an older one than the stream has brought
            BundleSet([self._bundle]).accept(after.bundle)
            self._bundle = after.bundle
        self._rotate()

    def _rotate(self) -> None:
        self.context.update(self.identity.tls(), self._roots(), self._check())

    def _roots(self) -> tuple[x509.Certificate, ...]:
        return expected_roots(BundleSet([self._bundle]), self.identity.server)

    def _check(self) -> Check:
        return peer_check(
            lambda: BundleSet([self._bundle]),
            self._clock,
            expected=self.identity.server,
            own=self.identity.trust_domain,
        )

"""The steps in the life of the authority's keys. Each returns a ``Plan``; see ``keeper`` for who commits it.

A new key is in its key store before the Write that names it is committed, and a key that is over is destroyed after the
Write that forgets it, so a crash leaves at most a key that no row names. Whoever loses a race destroys the key that it
made; `destroy_left_over` finds what nobody came back for.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from aims.audit.record import recorder
from aims.clock import Clock, IdSource
from aims.identifiers import TrustDomain
from aims.jose.jwk import public_jwk
from aims.keys import KeyStore, Purpose, SigningKey
from aims.provisioning.authority import store
from aims.provisioning.authority.model import (
    LIFE,
    SIGNED_LIFE,
    SKEW,
    AuthorityKey,
    AuthorityState,
    Slot,
    Step,
)
from aims.provisioning.errors import ProvisioningError
from aims.storage.intent import Plan
from aims.storage.write import Effect, Outcome, Record, Verdict, Write
from aims.x509 import build_ca, serial_from
from aims.x509.issue import build_tls_ca

PURPOSES: Final = tuple(LIFE)
LEFT_OVER_SECONDS: Final = 24 * 3600
SCHEDULE: Final[Mapping[str, str]] = {"admin": "schedule"}
"""The ``cause`` of a step that nobody asked for but time."""


class AuthorityService:
    """Makes, moves and forgets keys of one trust domain; private keys live in ``keys``, whose address is ``uri``."""

    def __init__(self, keys: KeyStore, uri: str, trust_domain: TrustDomain, clock: Clock, ids: IdSource) -> None:
        self._keys = keys
        self._uri = uri
        self._trust_domain = trust_domain
        self._clock = clock
        self._ids = ids

    async def first_keys(self, state: AuthorityState) -> tuple[Plan[bool], tuple[AuthorityKey, ...]]:
        """Make the first key of every purpose without one. The answer is False for whoever comes second: ``destroy``
        the keys.

        Raises: ProvisioningError ``authority_slot`` if there are keys already; KeyStoreError.
        """
        missing = state.missing(PURPOSES)
        if not missing:
            raise ProvisioningError("authority_slot", "there are keys already")
        made = tuple([await self._new(purpose, Slot.CURRENT) for purpose in missing])
        return self._plan(state, map(store.inserted, made), Step.PREPARE, "authority", SCHEDULE, made), made

    async def prepare(
        self, state: AuthorityState, purpose: Purpose, cause: Mapping[str, str]
    ) -> tuple[Plan[bool], tuple[AuthorityKey, ...]]:
        """Make the next key and publish it; it does not sign yet. Of a plan that loses, ``destroy`` the key.

        Raises: ProvisioningError ``authority_slot`` if there is a next key; KeyStoreError.
        """
        if state.next(purpose) is not None:
            raise ProvisioningError("authority_slot", f"{purpose} has a next key")
        key = await self._new(purpose, Slot.NEXT)
        return self._plan(state, [store.inserted(key)], Step.PREPARE, purpose, cause, [key]), (key,)

    def activate(self, state: AuthorityState, purpose: Purpose, cause: Mapping[str, str]) -> Plan[bool]:
        """Let the next key sign; the current one stays published until what it signed has ended.

        Raises: ProvisioningError ``authority_slot`` without a next key, or before it was published long enough.
        """
        now = int(self._clock.now())
        current, following = state.current(purpose), state.next(purpose)
        if following is None or not state.may_activate(purpose, now):
            raise ProvisioningError("authority_slot", f"{purpose} has no next key that was published long enough")
        old = replace(current, slot=None, retire_until=now + SIGNED_LIFE[purpose] + SKEW)
        new = replace(following, slot=Slot.CURRENT, activated=now)
        return self._plan(state, [store.moved(old), store.moved(new)], Step.ACTIVATE, purpose, cause)

    def prune(self, state: AuthorityState, purpose: Purpose, cause: Mapping[str, str]) -> Plan[bool]:
        """Forget the retired keys of a purpose whose time is over; ``destroy`` them after the commit."""
        gone = self.over(state, purpose)
        return self._plan(state, [store.removed(key.kid) for key in gone], Step.PRUNE, purpose, cause)

    def over(self, state: AuthorityState, purpose: Purpose) -> tuple[AuthorityKey, ...]:
        """Return the retired keys whose time is over."""
        now = self._clock.now()
        return tuple(key for key in state.published(purpose) if key.slot is None and key.retire_until <= now)

    async def destroy(self, keys: Iterable[AuthorityKey]) -> None:
        """Destroy private keys that no row names any more."""
        for key in keys:
            await self._keys.destroy(key.purpose, key.kid)

    async def destroy_left_over(self, state: AuthorityState) -> tuple[str, ...]:
        """Destroy keys that a crash left, and return their names: in this store, of these purposes, that no row names.

        Only for who alone uses the key store, and knows that ``state`` is not that of an older database. What is not
        a day old stays: a process that is about to end may still commit it.
        """
        if state.sequence == 0:
            return ()
        named = {key.kid for key in state.keys}
        before = self._clock.now() - LEFT_OVER_SECONDS
        destroyed: list[str] = []
        for purpose in PURPOSES:
            for kid in await self._keys.made_before(purpose, before):
                if kid not in named:
                    await self._keys.destroy(purpose, kid)
                    destroyed.append(kid)
        return tuple(destroyed)

    async def load(self, key: AuthorityKey) -> SigningKey:
        """Return the private key behind a row. Raises: KeyStoreError ``missing`` and others."""
        return await self._keys.load(key.purpose, key.kid)

    async def _new(self, purpose: Purpose, slot: Slot) -> AuthorityKey:
        key = await self._keys.create(purpose)
        now = int(self._clock.now())
        life = LIFE[purpose]
        certificate = b""
        if purpose in {Purpose.X509_CA, Purpose.TLS_PUBLIC}:
            serial = new_serial(self._ids)
            made = (
                build_ca(key, uri=self._trust_domain.uri, serial=serial, now=now, lifetime=life)
                if purpose is Purpose.X509_CA
                else build_tls_ca(key, serial=serial, now=now, lifetime=life)
            )
            certificate = made.public_bytes(Encoding.DER)
        return AuthorityKey(
            kid=key.kid,
            purpose=purpose,
            slot=slot,
            uri=self._uri,
            jwk=json.dumps(public_jwk(key.public_key(), kid=key.kid, alg=key.algorithm.value)),
            certificate=certificate,
            created=now,
            not_after=now + life,
            activated=now if slot is Slot.CURRENT else 0,
        )

    def _plan(  # noqa: PLR0917  one line per step, read side by side
        self,
        state: AuthorityState,
        effects: Iterable[Effect],
        step: Step,
        what: str,
        cause: Mapping[str, str],
        made: Iterable[AuthorityKey] = (),
    ) -> Plan[bool]:
        write = Write(
            record=self._record(state, step, what, cause, tuple(made)),
            effects=(store.raised(state), *effects),
            changes=(store.changed(state),),
        )
        return Plan(write, _won)

    def _record(
        self, state: AuthorityState, step: Step, what: str, cause: Mapping[str, str], made: tuple[AuthorityKey, ...]
    ) -> Record:
        return recorder(
            refuse="key.rotated",
            type="key.rotated",
            outcome="success",
            time=self._clock.now(),
            id=self._ids.new(),
            resource=f"{self._trust_domain.uri}#{what}",
            action=f"authority.{step}",
            request_id=self._ids.new(),
            cause=cause,
            details={
                "bundle": state.sequence + 1,
                "keys": " ".join(f"{key.purpose}:{key.kid}" for key in made) or None,
            },
        )


def new_serial(ids: IdSource) -> int:
    """Return a fresh serial number for a certificate."""
    return serial_from(base64.urlsafe_b64decode(ids.token(20) + "="))


def _won(outcome: Outcome) -> bool:
    if outcome.verdict not in {Verdict.COMMITTED, Verdict.CONFLICT}:
        raise ProvisioningError("store_refused", outcome.verdict)
    return outcome.verdict is Verdict.COMMITTED

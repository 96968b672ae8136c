"""Keys of the authority in their slots, and which step is due when. Pure values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from aims.keys import Purpose
from aims.provisioning.errors import ProvisioningError

DAY: Final = 24 * 3600
LIFE: Final = MappingProxyType(
    {
        Purpose.X509_CA: 7 * DAY,
        Purpose.JWT_SVID: 7 * DAY,
        Purpose.WIT_SVID: 7 * DAY,
        Purpose.ACCESS_TOKEN: 7 * DAY,
        Purpose.TXN_TOKEN: 7 * DAY,
        Purpose.SET: 7 * DAY,
        Purpose.TLS_PUBLIC: 5 * 365 * DAY,  # people import it into browsers by hand
    }
)
"""How long a key lives in seconds, from the step that prepares it."""
SIGNED_LIFE: Final = MappingProxyType(
    {
        Purpose.X509_CA: DAY,
        Purpose.JWT_SVID: 600,
        Purpose.WIT_SVID: DAY,
        Purpose.ACCESS_TOKEN: 3600,
        Purpose.TXN_TOKEN: 300,
        Purpose.SET: DAY,
        Purpose.TLS_PUBLIC: 90 * DAY,
    }
)
"""The longest life of what a key signs: so long it stays published after it stopped."""
PREPARE_AT: Final = 1 / 2  # of the life; SPIRE's ratios
ACTIVATE_AT: Final = 5 / 6
PUBLISHED_FIRST: Final = 600  # seconds between publishing a key and signing with it: twice a bundle's refresh hint
SKEW: Final = 300


class Slot(StrEnum):
    """``current`` signs, ``next`` is published and waits; a key without a slot is retired and only published."""

    CURRENT = "current"
    NEXT = "next"


class Step(StrEnum):
    """What can happen to the keys of a purpose."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    PRUNE = "prune"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityKey:
    """One key as the database knows it. Times are Unix seconds.

    ``certificate`` is the DER of a CA (x509-ca, tls-public), empty for the others. ``uri`` names the key store that
    made it. ``not_after`` ends its life; ``retire_until`` is when a retired key is forgotten, 0 before.
    """

    kid: str
    purpose: Purpose
    slot: Slot | None
    uri: str
    jwk: str
    certificate: bytes
    created: int
    not_after: int
    activated: int = 0
    retire_until: int = 0


@dataclass(frozen=True, slots=True)
class AuthorityState:
    """All keys, and the number of the bundle that they make; 0 before the first."""

    sequence: int
    keys: tuple[AuthorityKey, ...]

    def current(self, purpose: Purpose) -> AuthorityKey:
        """Return the key that signs. Raises: ProvisioningError ``authority_empty``."""
        key = self._in(purpose, Slot.CURRENT)
        if key is None:
            raise ProvisioningError("authority_empty", purpose)
        return key

    def missing(self, purposes: Iterable[Purpose]) -> tuple[Purpose, ...]:
        """Return those that have no key that signs: all before the first start, new ones after an upgrade."""
        return tuple(purpose for purpose in purposes if self._in(purpose, Slot.CURRENT) is None)

    def next(self, purpose: Purpose) -> AuthorityKey | None:
        """Return the key that waits, if there is one."""
        return self._in(purpose, Slot.NEXT)

    def published(self, purpose: Purpose) -> tuple[AuthorityKey, ...]:
        """Return the keys that verifiers must know: current, next, and those that retire."""
        return tuple(key for key in self.keys if key.purpose is purpose)

    def _in(self, purpose: Purpose, slot: Slot) -> AuthorityKey | None:
        return next((key for key in self.keys if key.purpose is purpose and key.slot is slot), None)

    def due(self, purpose: Purpose, now: float) -> Step | None:
        """Return the step that a purpose needs at ``now``.

        1. A retired key whose time is over is pruned. 2. At half of the current key's life the next one is prepared.
        3. With a sixth of it left the next one is activated, if it has been published long enough, or if the current
        key has expired, because then nothing is left that waiting could protect.
        """
        current, following = self.current(purpose), self.next(purpose)
        if any(key.slot is None and key.retire_until <= now for key in self.published(purpose)):
            return Step.PRUNE
        life = current.not_after - current.created
        if following is None:
            return Step.PREPARE if now >= current.created + life * PREPARE_AT else None
        if now < current.created + life * ACTIVATE_AT:
            return None
        return Step.ACTIVATE if self.may_activate(purpose, now) else None

    def may_activate(self, purpose: Purpose, now: float) -> bool:
        """Tell whether the next key may begin to sign: published for ten minutes, or the current one has expired."""
        current, following = self.current(purpose), self.next(purpose)
        if following is None:
            return False
        return now >= following.created + PUBLISHED_FIRST or now >= current.not_after

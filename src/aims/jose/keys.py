"""The keys that may verify: each with its identifier and the algorithms that it is bound to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from aims.jose.algorithms import PublicKey, fitting
from aims.jose.errors import JoseError

MAX_KID_OCTETS = 256


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key that is trusted for one purpose.

    ``algorithm`` narrows the key to one algorithm; ``None`` leaves it the ones that fit its type and curve. ``kid`` is
    an opaque case-sensitive string of 1 to 256 octets, or ``None`` where the key is named by other means.

    Raises:
        JoseError: ``jwk`` for a key of a type, curve or size that AIMS does not accept, ``alg`` if ``algorithm`` does
            not fit it, ``kid``.
    """

    kid: str | None
    algorithm: str | None
    key: PublicKey
    algorithms: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kid is not None and not is_kid(self.kid):
            raise JoseError("kid", "1 to 256 octets")
        fits = fitting(self.key)
        if not fits:
            raise JoseError("jwk", "key type, curve or size")
        if self.algorithm is not None and self.algorithm not in fits:
            raise JoseError("alg", f"{self.algorithm} does not fit the key")
        object.__setattr__(self, "algorithms", fits if self.algorithm is None else frozenset({self.algorithm}))


def is_kid(value: object) -> bool:
    """Tell whether ``value`` is a key identifier: a string of 1 to 256 octets of UTF-8."""
    return isinstance(value, str) and 0 < len(value) <= MAX_KID_OCTETS and len(value.encode()) <= MAX_KID_OCTETS


class KeySet:
    """The keys of one purpose and one trust domain or issuer; never a pool of several.

    An empty set is a value like any other (all keys were withdrawn) and verifies nothing.

    Raises:
        JoseError: ``kid``, two keys share an identifier.
    """

    __slots__ = ("_by_algorithm", "_by_kid", "_keys")

    def __init__(self, keys: Iterable[VerificationKey] = ()) -> None:
        self._keys = tuple(keys)
        self._by_kid: dict[str, VerificationKey] = {}
        self._by_algorithm: dict[str, tuple[VerificationKey, ...]] = {}
        for key in self._keys:
            if key.kid is None:
                continue
            if key.kid in self._by_kid:
                raise JoseError("kid", "two keys share an identifier")
            self._by_kid[key.kid] = key
        for algorithm in {name for key in self._keys for name in key.algorithms}:
            self._by_algorithm[algorithm] = tuple(key for key in self._keys if algorithm in key.algorithms)

    def get(self, kid: str) -> VerificationKey | None:
        """Return the key with exactly this identifier."""
        return self._by_kid.get(kid)

    def for_algorithm(self, algorithm: str) -> tuple[VerificationKey, ...]:
        """Return every key that ``algorithm`` may use."""
        return self._by_algorithm.get(algorithm, ())

    def __iter__(self) -> Iterator[VerificationKey]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"KeySet({[key.kid for key in self._keys]!r})"

"""JWK Sets (RFC 7517 5), as issuers and SPIFFE bundles publish them: bounded, and one bad entry spoils only itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from aims.jose.errors import JoseError
from aims.jose.jwk import parse_verification_key
from aims.jose.keys import KeySet, VerificationKey
from aims.jose.strict_json import read_object

MAX_OCTETS = 256 * 1024
MAX_ENTRIES = 256
_MAX_INTEGER = 2**64 - 1  # spiffe_sequence is read with 64 bits


@dataclass(frozen=True, slots=True)
class JwkSet:
    """A set as it was published: the entries, and the members beside ``keys`` (such as ``spiffe_sequence``)."""

    entries: tuple[Mapping[str, Any], ...]
    members: Mapping[str, Any]

    def keys(self, *uses: str | None, require_kid: bool = True) -> KeySet:
        """Return the verification keys whose ``use`` is among ``uses`` (``None`` stands for an entry without ``use``).

        Unknown, malformed, private and weak entries are left out, and so are those without ``kid`` if one is required
        (SPIFFE bundle 4.2: such an entry is ignored). The result may be empty: then it verifies nothing.

        Raises:
            JoseError: ``kid``, two of the keys share an identifier, so that neither can be chosen.
        """
        chosen: list[VerificationKey] = []
        for entry in self.entries:
            if entry.get("use") not in uses or (require_kid and "kid" not in entry):
                continue
            try:
                chosen.append(parse_verification_key(entry))
            except JoseError:
                continue
        return KeySet(chosen)


def parse_jwks(octets: bytes | str, *, max_octets: int = MAX_OCTETS, max_entries: int = MAX_ENTRIES) -> JwkSet:
    """Read a JWK Set; entries that are no objects are dropped.

    Raises:
        JoseError: ``too_large``, ``duplicate_member``, or ``malformed`` (also for a set without ``keys``).
    """
    raw = octets.encode("utf-8", "surrogatepass") if isinstance(octets, str) else octets
    if len(raw) > max_octets:
        raise JoseError("too_large")
    members = read_object(raw, max_integer=_MAX_INTEGER)
    keys = members.pop("keys", None)
    if not isinstance(keys, list):
        raise JoseError("malformed", "no list of keys")
    if len(keys) > max_entries:
        raise JoseError("too_large", "too many keys")
    return JwkSet(tuple(entry for entry in keys if isinstance(entry, dict)), members)


def build_jwks(entries: Iterable[Mapping[str, Any]], **members: int | str) -> bytes:
    """Return the octets of a JWK Set with ``members`` before its keys."""
    return msgspec.json.encode({**members, "keys": list(entries)})

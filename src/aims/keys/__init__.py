"""Private keys: one purpose each, behind a store that is chosen by URI.

    store = open_store("file:/var/lib/aims/keys")        # or "memory:"
    ring = await KeyRing.open(store, [Purpose.JWT_SVID])  # creates the first key
    key = ring.current(Purpose.JWT_SVID)
    signature = await key.sign(b"signing input")          # raw JOSE form
    await ring.prepare(Purpose.JWT_SVID)                  # published, does not sign yet
    await ring.activate(Purpose.JWT_SVID, retire_until=now + 300)

A key of one purpose never serves another: certificates and tokens never share a key, a file that was written for one
purpose is refused as another, and the ring refuses a name that it knows under a second purpose.
"""

from aims.keys.errors import KeyStoreError
from aims.keys.purpose import Algorithm, Purpose
from aims.keys.ring import KeyRing
from aims.keys.signing import ImmediateKey, LocalKey, PublicKey, SigningKey, generate, immediate, local_key, thumbprint
from aims.keys.store import KeyStore, open_store

__all__ = [
    "Algorithm",
    "ImmediateKey",
    "KeyRing",
    "KeyStore",
    "KeyStoreError",
    "LocalKey",
    "PublicKey",
    "Purpose",
    "SigningKey",
    "generate",
    "immediate",
    "local_key",
    "open_store",
    "thumbprint",
]

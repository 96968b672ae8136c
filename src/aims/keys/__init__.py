"""Private keys: one purpose each, behind a store that is chosen by URI.

    store = open_store("file:/var/lib/aims/keys")             # or "memory:"
    key = await current_key(store, Purpose.AUDIT_CHECKPOINT)  # made when it is first asked for
    signature = await key.sign(b"signing input")              # raw JOSE form

A key of one purpose never serves another: certificates and tokens never share a key, a file that was written for one
purpose is refused as another.
"""

from aims.keys.current import current_key
from aims.keys.errors import KeyStoreError
from aims.keys.purpose import Algorithm, Purpose
from aims.keys.signing import ImmediateKey, LocalKey, SigningKey, generate, immediate, local_key, thumbprint
from aims.keys.store import KeyStore, open_store

__all__ = [
    "Algorithm",
    "ImmediateKey",
    "KeyStore",
    "KeyStoreError",
    "LocalKey",
    "Purpose",
    "SigningKey",
    "current_key",
    "generate",
    "immediate",
    "local_key",
    "open_store",
    "thumbprint",
]

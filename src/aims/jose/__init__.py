"""Ground: the one strict JOSE door. No other room touches a token's octets.

A kind of token is a ``Profile``; ``parse`` reads a token of it without belief, the caller finds the keys of the issuer
or trust domain that it names, and ``verify`` believes it or says why not::

    parsed = parse(text, PROFILE)                     # JoseError, jose.<reason>
    keys = bundles[trust_domain_of(parsed.unverified)]
    token = verify(parsed, keys, now=clock.now(), audience="https://localhost:8440")

``open_token`` joins both where the keys are known beforehand. ``sign`` makes a token with a key that may live in a key
store; ``signing_input`` and ``assemble`` are its two halves. Keys come in through ``jwk`` and ``jwks``.

Sources: RFC 7515, 7517, 7518, 7519, 7638, 8037, 8725, 9864.
"""

from aims.jose.claims import ClaimKind
from aims.jose.door import Parsed, Token, open_token, parse, verify
from aims.jose.errors import JoseError
from aims.jose.keys import KeySet, VerificationKey
from aims.jose.profile import Profile
from aims.jose.signing import ImmediateSigner, Signer, assemble, sign, sign_now, signing_input

__all__ = [
    "ClaimKind",
    "ImmediateSigner",
    "JoseError",
    "KeySet",
    "Parsed",
    "Profile",
    "Signer",
    "Token",
    "VerificationKey",
    "assemble",
    "open_token",
    "parse",
    "sign",
    "sign_now",
    "signing_input",
    "verify",
]

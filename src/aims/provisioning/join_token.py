"""The join token: what a new node is handed, once, in a file or on standard input.

It names the trust domain, the node, where the server is, which certificate authority to believe there, and a secret.
The node needs only this module of the room.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

import msgspec

from aims.identifiers import IdentifierError, TrustDomain
from aims.jose import JoseError, base64url
from aims.jose.strict_json import read_object
from aims.provisioning.errors import ProvisioningError

PREFIX: Final = "aims-join-1."
MAX_TOKEN: Final = 4096
MAX_URL: Final = 1024
SECRET_OCTETS: Final = 32

_NODE = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_URL = re.compile(r"https://[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?|https://\[[0-9a-fA-F:.]{2,45}\](?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    """A token by its parts. ``ca`` is the SHA-256 of a CA certificate's DER; the secret shows in no repr.

    Raises: ProvisioningError ``join_token_malformed``.
    """

    trust_domain: TrustDomain
    node: str
    url: str
    ca: bytes
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if _NODE.fullmatch(self.node) is None:
            raise ProvisioningError("join_token_malformed", "node")
        if len(self.url) > MAX_URL or not is_server_url(self.url):
            raise ProvisioningError("join_token_malformed", "url")
        if len(self.ca) != 32 or len(self.secret) != SECRET_OCTETS:
            raise ProvisioningError("join_token_malformed", "length of ca or secret")

    def encode(self) -> str:
        """Return the text of the token."""
        document = {
            "td": self.trust_domain.name,
            "node": self.node,
            "url": self.url,
            "ca": _text(self.ca),
            "secret": _text(self.secret),
        }
        return PREFIX + _text(msgspec.json.encode(document))

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Read the text of a token: exactly its five members, each once.

        Raises: ProvisioningError ``join_token_malformed``; the message never holds any part of the token.
        """
        if len(text) > MAX_TOKEN or not text.isascii() or not text.startswith(PREFIX):
            raise ProvisioningError("join_token_malformed", "prefix or length")
        try:
            document = read_object(base64url.decode(text.removeprefix(PREFIX).encode("ascii")))
            if set(document) != {"td", "node", "url", "ca", "secret"} or not all(
                isinstance(value, str) and value.isascii() for value in document.values()
            ):
                raise ProvisioningError("join_token_malformed", "members")
            return cls(
                trust_domain=TrustDomain(document["td"]),
                node=document["node"],
                url=document["url"],
                ca=base64url.decode(document["ca"].encode("ascii")),
                secret=base64url.decode(document["secret"].encode("ascii")),
            )
        except (JoseError, IdentifierError):
            raise ProvisioningError("join_token_malformed", "not canonical") from None


def secret_hash(node: str, secret: bytes) -> bytes:
    """Return what the server stores: the node's name is part of it, so the secret opens no other name."""
    return hashlib.sha256(b"aims-join-1\0" + node.encode("utf-8", "surrogatepass") + b"\0" + secret).digest()


def _text(octets: bytes) -> str:
    return base64url.encode(octets).decode("ascii")


def is_server_url(text: str) -> bool:
    """Tell whether ``text`` is ``https://HOST[:PORT]`` and nothing more."""
    return _URL.fullmatch(text) is not None

"""Asking a person: an agent's authorization request (OAuth 2.1 4.1, PKCE S256), and what to believe of the answer."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from aims.sdk.errors import CallRefusedError, SdkError

MAX_ANSWER: Final = 8192
VERIFIER_OCTETS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonAsked:
    """A request that waits for its person. Send them to ``url``; keep the rest in this process."""

    url: str
    issuer: str
    resource: str
    redirect_uri: str
    state: str = field(repr=False)
    verifier: str = field(repr=False)

    def code_of(self, answer: str) -> str:
        """Return the code in the URL to which the person's browser was sent back.

        1. The place is ours. 2. No parameter twice. 3. ``state`` is ours (whoever answers was asked). 4. ``iss`` is the
        issuer that was asked (RFC 9207). 5. It is no error.

        Raises: SdkError ``answer_invalid``; `CallRefusedError` with the issuer's error.
        """
        if len(answer) > MAX_ANSWER or answer.partition("?")[0] != self.redirect_uri:
            raise SdkError("answer_invalid", "another place")
        pairs = parse_qsl(urlsplit(answer).query, keep_blank_values=True, max_num_fields=16)
        found = dict(pairs)
        if len(found) != len(pairs):
            raise SdkError("answer_invalid", "a parameter twice")
        if found.get("state") != self.state:
            raise SdkError("answer_invalid", "state")
        if found.get("iss") != self.issuer:
            raise SdkError("answer_invalid", "iss")
        if "error" in found:
            raise CallRefusedError(403, found["error"][:128], found.get("error_description", "")[:1024], "")
        if not found.get("code"):
            raise SdkError("answer_invalid", "no code")
        return found["code"]

    def redemption(self, code: str) -> Mapping[str, str]:
        """The form that redeems a code."""
        return {
            "grant_type": "authorization_code",
            "code": code,
            "code_verifier": self.verifier,
            "redirect_uri": self.redirect_uri,
            "resource": self.resource,
        }


def ask_person(
    endpoint: str,
    *,
    issuer: str,
    client_id: str,
    resource: str,
    scope: str,
    redirect_uri: str,
    state: str,
    verifier: str,
) -> PersonAsked:
    """Build the request. ``verifier`` is 32 random octets as base64url, ``state`` random too."""
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest()).rstrip(b"=").decode("ascii")
    query = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": redirect_uri,
        "scope": scope,
        "resource": resource,
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    return PersonAsked(
        url=f"{endpoint}?{urlencode(query)}",
        issuer=issuer,
        resource=resource,
        redirect_uri=redirect_uri,
        state=state,
        verifier=verifier,
    )

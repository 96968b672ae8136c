"""The hostile tokens of ``vectors/jose/hostile.json``, built for any profile.

A test module of a token kind hands in its profile, one good header and set of claims, and the key; it gets each shape
as a token with the answer that the door owes::

    for case in hostile_tokens(PROFILE, HEADER, CLAIMS, LocalKey(ES256), now=NOW, audience=AUDIENCE):
        case.check()
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aims.jose import JoseError, KeySet, Profile, Token, VerificationKey, open_token
from aims.jose.algorithms import PrivateKey, sign_raw
from aims.jose.jwk import public_jwk

SHAPES: tuple[dict[str, str], ...] = tuple(
    json.loads((Path(__file__).parents[1] / "vectors/jose/hostile.json").read_text("utf-8"))["shapes"]
)
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class LocalKey:
    """A signing key in this process."""

    def __init__(self, private: PrivateKey, algorithm: str, kid: str = "key-1") -> None:
        self.private, self.algorithm, self.kid = private, algorithm, kid

    @classmethod
    def new(cls, algorithm: str = "ES256", kid: str = "key-1") -> LocalKey:
        """Make a fresh key for ``algorithm``."""
        makers: dict[str, Callable[[], PrivateKey]] = {
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
            "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
            "Ed25519": ed25519.Ed25519PrivateKey.generate,
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }
        make = makers.get(algorithm, lambda: rsa.generate_private_key(65537, 2048))
        return cls(make(), algorithm, kid)

    @property
    def verification(self) -> VerificationKey:
        """The public half, bound to its algorithm."""
        return VerificationKey(self.kid, self.algorithm, self.private.public_key())

    def sign_now(self, data: bytes) -> bytes:
        return sign_raw(self.algorithm, self.private, data)

    async def sign(self, data: bytes) -> bytes:
        return self.sign_now(data)


def b64(octets: bytes) -> str:
    """Unpadded base64url, written without the code under test."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def compact(header: bytes, payload: bytes, sign: Callable[[bytes], bytes]) -> str:
    """A compact JWS over exactly these octets."""
    signed = f"{b64(header)}.{b64(payload)}"
    return f"{signed}.{b64(sign(signed.encode('ascii')))}"


def dump(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


@dataclass(frozen=True)
class Case:
    """One token: the shape it stands for, and ``accept`` or the reason."""

    shape: str
    token: str
    expected: str
    profile: Profile
    keys: KeySet
    now: float
    audience: str | None

    def open(self) -> Token:
        return open_token(self.token, self.profile, self.keys, now=self.now, audience=self.audience)

    def check(self) -> None:
        """Assert that the door gives the expected answer, for text and for octets."""
        for token in (self.token, self.token.encode("utf-8", "surrogatepass")):
            try:
                open_token(token, self.profile, self.keys, now=self.now, audience=self.audience)
            except JoseError as error:
                answer = error.reason
            else:
                answer = "accept"
            assert answer == self.expected, (self.profile.name, self.shape, answer, self.expected, self.token[:120])


def hostile_tokens(
    profile: Profile,
    header: Mapping[str, Any],
    claims: Mapping[str, Any],
    key: LocalKey,
    *,
    now: float,
    audience: str | None = None,
) -> Iterator[Case]:
    """Yield every shape that means something for ``profile``.

    ``header`` and ``claims`` are those of a good token, without ``alg`` and, where ``key`` has one, ``kid``. ``key``
    must be a P-256 key for ES256: the shapes of broken signatures are about ECDSA.
    """
    builder = _Builder(profile, header, claims, key, now=now, audience=audience)
    for shape in SHAPES:
        for token, expected, keys in getattr(builder, "make_" + shape["id"].replace("-", "_"))():
            answer = shape["expect"] if expected is None else expected
            if len(token) > profile.max_octets:
                answer = "too_large"
            chosen = builder.keys if keys is None else keys
            yield Case(shape["id"], token, answer, profile, chosen, now, audience)


Made = Iterator[tuple[str, str | None, KeySet | None]]


class _Builder:
    """One method per shape; each yields (token, answer where the profile changes it, keys where others are needed)."""

    def __init__(
        self,
        profile: Profile,
        header: Mapping[str, Any],
        claims: Mapping[str, Any],
        key: LocalKey,
        *,
        now: float,
        audience: str | None,
    ) -> None:
        self.profile, self.key, self.now, self.audience = profile, key, now, audience
        kid = {} if profile.kid == "ignored" else {"kid": key.kid}
        self.header = {"alg": key.algorithm, **kid, **header}
        self.claims = dict(claims)
        self.keys = KeySet([key.verification])
        self.good = self.token()
        self.head, self.body, self.tail = self.good.split(".")

    def token(self, header: object = None, claims: object = None) -> str:
        return self.raw(
            dump(self.header if header is None else header), dump(self.claims if claims is None else claims)
        )

    def raw(self, header: bytes, payload: bytes) -> str:
        return compact(header, payload, self.key.sign_now)

    def with_header(self, **members: object) -> str:
        return self.token(header={**self.header, **members})

    def with_claims(self, **members: object) -> str:
        return self.token(claims={**self.claims, **members})

    def payload_plus(self, text: bytes) -> str:
        """The good claims with raw text before the closing brace."""
        return self.raw(dump(self.header), dump(self.claims)[:-1] + text + b"}")

    def make_good(self) -> Made:
        yield self.good, None, None

    def make_padding(self) -> Made:
        for index in range(3):
            parts = self.good.split(".")
            parts[index] += "=" * (-len(parts[index]) % 4 or 4)
            yield ".".join(parts), None, None

    def make_noncanonical_last_char(self) -> Made:
        # a 64-octet signature ends with a character of which only the first two bits count
        assert len(self.tail) % 4 == 2
        last = _ALPHABET.index(self.tail[-1])
        for spare in range(1, 16):
            yield f"{self.head}.{self.body}.{self.tail[:-1]}{_ALPHABET[last | spare]}", None, None

    def make_standard_alphabet(self) -> Made:
        for index in range(500):
            token = self.with_claims(jti=f"{index}>>>???") if "jti" in self.claims else self.token()
            if "-" in token.split(".")[2] or "_" in token.split(".")[2]:
                yield token.replace("-", "+").replace("_", "/"), None, None
                return
        raise AssertionError("no signature with - or _")

    def make_whitespace(self) -> Made:
        for space in (" ", "\t", "\n", "\r\n", "\0", "\u00a0"):
            yield self.good + space, None, None
            yield space + self.good, None, None
            yield f"{self.head}{space}.{self.body}.{self.tail}", None, None
            yield f"{self.head}.{self.body[:8]}{space}{self.body[8:]}.{self.tail}", None, None
            yield f"{self.head}.{self.body}.{self.tail[:8]}{space}{self.tail[8:]}", None, None

    def make_two_parts(self) -> Made:
        yield f"{self.head}.{self.body}", None, None
        yield self.head, None, None
        yield "", None, None

    def make_four_parts(self) -> Made:
        yield f"{self.good}.{self.tail}", None, None
        yield f"{self.good}.", None, None
        yield f".{self.good}", None, None

    def make_empty_part(self) -> Made:
        yield f".{self.body}.{self.tail}", None, None
        yield f"{self.head}..{self.tail}", None, None
        yield f"{self.head}.{self.body}.", None, None
        yield "..", None, None

    def make_json_serialization(self) -> Made:
        parts = {"protected": self.head, "signature": self.tail}
        yield json.dumps({"payload": self.body, **parts}), None, None
        yield json.dumps({"payload": self.body, "signatures": [parts]}), None, None

    def make_jwe(self) -> Made:
        yield f"{self.head}.{self.body}.{self.tail}.{self.body}.{self.tail}", None, None

    def make_oversize_token(self) -> Made:
        limit = self.profile.max_octets
        yield self.good.ljust(limit + 1, "A"), None, None
        yield self.good.ljust(200_000, "A"), None, None
        yield self.with_claims(filler="x" * 200_000), None, None

    def make_deep_nesting(self) -> Made:
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            deep = opening * 2000 + b"1" + closing * 2000
            yield self.payload_plus(b',"deep":' + deep), None, None
            yield self.payload_plus(b',"deep":' + opening * 40 + b'"]}"' + closing * 40), None, None
            yield self.payload_plus(b',"deep":' + opening * 1000), None, None

    def make_dup_header_alg(self) -> Made:
        yield self.raw(dump(self.header)[:-1] + b',"alg":"none"}', dump(self.claims)), None, None
        yield (
            self.raw(dump(self.header)[:-1] + f',"alg":"{self.key.algorithm}"}}'.encode(), dump(self.claims)),
            None,
            None,
        )

    def make_dup_header_escaped(self) -> Made:
        yield self.raw(dump(self.header)[:-1] + b',"\\u0061lg":"none"}', dump(self.claims)), None, None

    def make_dup_claim(self) -> Made:
        yield self.payload_plus(b',"aud":"first","aud":"second"'), None, None
        yield self.payload_plus(b',"x":1,"\\u0078":1'), None, None

    def make_dup_nested_claim(self) -> Made:
        claims = {name: value for name, value in self.claims.items() if name != "cnf"}
        raw = dump(claims)[:-1] + b',"cnf":{"jwk":{},"jwk":{}}}'
        yield self.raw(dump(self.header), raw), None, None
        yield self.payload_plus(b',"list":[{"deep":[{"a":1, "a":1}]}]'), None, None

    def make_bom_header(self) -> Made:
        yield self.raw(b"\xef\xbb\xbf" + dump(self.header), dump(self.claims)), None, None
        yield self.raw(dump(self.header), b"\xef\xbb\xbf" + dump(self.claims)), None, None
        yield self.raw(json.dumps(self.header).encode("utf-16"), dump(self.claims)), None, None

    def make_invalid_utf8(self) -> Made:
        for octets in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"):
            yield self.payload_plus(b',"x":"' + octets + b'"'), None, None

    def make_lone_surrogate(self) -> Made:
        for text in (b"\\ud800", b"\\ud800x", b"\\ud800\\u0041", b"\\udc00", b"\\udc00\\ud800"):
            yield self.payload_plus(b',"x":"' + text + b' and so on"'), None, None
            yield self.payload_plus(b',"x":"' + text + b'"'), None, None

    def make_header_not_object(self) -> Made:
        for text in (b"[]", b'"text"', b"1", b"null", b"true", b"", b"{", b"{}{}", b"{} x"):
            yield self.raw(text, dump(self.claims)), None, None

    def make_payload_not_object(self) -> Made:
        for text in (b"[]", b'"text"', b"1", b"null", b"true", b"{", b"{}{}", b"{} x", dump([self.claims])):
            yield self.raw(dump(self.header), text), None, None

    def make_nan_infinity(self) -> Made:
        claims = {name: value for name, value in self.claims.items() if name != "exp"}
        for text in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"+1", b"0x10", b"01"):
            yield self.raw(dump(self.header), dump(claims)[:-1] + b',"exp":' + text + b"}"), None, None

    def make_alg_none(self) -> Made:
        for name in ("none", "None", "NONE", "nOnE", ""):
            yield self.with_header(alg=name), None, None
            head = b64(dump({**self.header, "alg": name}))
            yield f"{head}.{self.body}.", "malformed", None  # without signature a part is empty
        for value in (None, 1, ["ES256"], {"ES256": 1}, True):
            yield self.with_header(alg=value), None, None
        yield self.token(header={name: value for name, value in self.header.items() if name != "alg"}), None, None

    def make_alg_hs256_public(self) -> Made:
        public = self.key.private.public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for secret in (pem, der, dump(public_jwk(public))):
            header = dump({**self.header, "alg": "HS256"})
            signed = f"{b64(header)}.{self.body}"
            yield f"{signed}.{b64(hmac.digest(secret, signed.encode(), hashlib.sha256))}", None, None

    def make_alg_not_allowed(self) -> Made:
        for name in ("RS256", "ES384", "ES512", "PS256", "Ed25519", "EdDSA", "ES256K", "HS512", "es256", "ES256 "):
            yield self.with_header(alg=name), None, None

    def make_alg_key_mismatch(self) -> Made:
        others = [LocalKey.new(name, self.key.kid) for name in ("ES384", "Ed25519", "RS256")]
        for other in others:
            yield self.good, None, KeySet([VerificationKey(other.kid, None, other.private.public_key())])

    def make_embedded_jwk(self) -> Made:
        if "jwk" in self.profile.headers:
            return
        attacker = LocalKey.new("ES256", self.key.kid)
        header = {**self.header, "jwk": public_jwk(attacker.private.public_key())}
        yield compact(dump(header), dump(self.claims), attacker.sign_now), None, None

    def make_jku_x5u_x5c(self) -> Made:
        for name, value in (("jku", "https://evil.example/keys"), ("x5u", "https://evil.example/c"), ("x5c", ["MIIB"])):
            if name not in self.profile.headers:
                yield self.with_header(**{name: value}), None, None

    def make_crit_unknown(self) -> Made:
        yield self.with_header(crit=["urn:example:x"], **{"urn:example:x": 1}), None, None
        yield self.with_header(crit=["alg"]), None, None
        yield self.with_header(crit="alg"), None, None
        yield self.with_header(crit=None), None, None

    def make_crit_empty(self) -> Made:
        yield self.with_header(crit=[]), None, None

    def make_crit_missing_member(self) -> Made:
        yield self.with_header(crit=["nowhere"]), None, None

    def make_b64_false(self) -> Made:
        yield self.with_header(crit=["b64"], b64=False), None, None
        yield self.with_header(b64=False), "header_forbidden", None

    def make_unknown_header(self) -> Made:
        answer = "accept" if self.profile.ignore_unknown_headers else None
        yield self.with_header(surprise=1), answer, None
        yield self.with_header(x5t="abc"), answer, None

    def make_typ_wrong(self) -> Made:
        for value in ("at+jws", "", "JWS+JWT", None, 1, [self.header.get("typ", "JWT")]):
            yield self.with_header(typ=value), None, None
        absent = {name: value for name, value in self.header.items() if name != "typ"}
        yield self.token(header=absent), None if self.profile.typ_required else "accept", None
        good = self.profile.typ[0]
        loose = "accept" if self.profile.media_type else None
        yield self.with_header(typ=f"application/{good}"), loose, None
        yield self.with_header(typ=good.swapcase()), loose, None
        yield self.with_header(typ=f"text/{good}"), None, None
        yield self.with_header(typ=f"{good}\n"), None, None

    def make_kid_missing(self) -> Made:
        absent = {name: value for name, value in self.header.items() if name != "kid"}
        yield self.token(header=absent), None if self.profile.kid == "required" else "accept", None
        if self.profile.kid != "required":
            rival = LocalKey.new("ES256", "rival")
            both = KeySet([rival.verification, self.key.verification])
            yield self.token(header=absent), "accept" if self.profile.try_each else "kid", both

    def make_kid_not_string(self) -> Made:
        wrong: tuple[object, ...] = (1, ["key-1"], None, {}, True, "", "k" * 257, "\u00e9" * 129)
        for value in wrong:
            yield self.with_header(kid=value), None, None

    def make_kid_unknown(self) -> Made:
        answer = "accept" if self.profile.kid == "ignored" else None
        for value in ("unknown", self.key.kid.swapcase(), self.key.kid + " ", self.key.kid + "\0"):
            yield self.with_header(kid=value), answer, None
        yield self.good, None, KeySet()

    def make_signature_flip(self) -> Made:
        raw = base64.urlsafe_b64decode(self.tail + "==")
        for index in range(0, len(raw) * 8, 37):
            flipped = bytearray(raw)
            flipped[index // 8] ^= 1 << index % 8
            yield f"{self.head}.{self.body}.{b64(bytes(flipped))}", None, None
        other = self.with_claims(flipped=True).split(".")[1]
        yield f"{self.head}.{other}.{self.tail}", None, None
        head = b64(json.dumps(self.header).encode("utf-8"))
        yield f"{head}.{self.body}.{self.tail}", None, None

    def make_signature_der(self) -> Made:
        raw = base64.urlsafe_b64decode(self.tail + "==")
        r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
        for signature in (
            encode_dss_signature(r, s),
            raw[:-1],
            raw + b"\0",
            b"\0" + raw,
            b"\0",
            raw + raw,
            b"\0" * 16 + raw[:32] + b"\0" * 16 + raw[32:],
        ):
            yield f"{self.head}.{self.body}.{b64(signature)}", None, None

    def make_signature_zero(self) -> Made:
        n = P256_ORDER
        for r, s in ((0, 0), (n, n), (0, 1), (1, 0), (n, 1), (1, n), (2**256 - 1, 2**256 - 1), (1, 1)):
            yield f"{self.head}.{self.body}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}", None, None

    def make_signature_malleated(self) -> Made:
        raw = base64.urlsafe_b64decode(self.tail + "==")
        twin = raw[:32] + (P256_ORDER - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
        yield f"{self.head}.{self.body}.{b64(twin)}", None, None

    def make_exp_string(self) -> Made:
        wrong: tuple[object, ...] = ("1", str(self.claims.get("exp", 1)), True, False, [1], {}, None, -1, 1e300)
        for value in wrong:
            yield self.with_claims(exp=value), None, None

    def make_exp_missing(self) -> Made:
        if "exp" in self.profile.required:
            yield self.token(claims={name: value for name, value in self.claims.items() if name != "exp"}), None, None

    def make_exp_past(self) -> Made:
        if "exp" in self.profile.forbidden:
            return
        leeway = self.profile.leeway
        yield self.with_claims(exp=int(self.now) - leeway - 1), None, None
        yield self.with_claims(exp=self.now - leeway), None, None
        yield self.with_claims(exp=0), None, None

    def make_exp_far(self) -> Made:
        longest = self.profile.max_lifetime
        if longest is None:
            return
        yield self.with_claims(exp=int(self.now) + longest + self.profile.leeway + 2), None, None
        yield self.with_claims(exp=2**53 - 1), None, None
        if self.profile.judge_iat and "iat" not in self.profile.forbidden:
            yield self.with_claims(iat=int(self.now) - longest, exp=int(self.now) + 2), None, None

    def make_nbf_future(self) -> Made:
        if "nbf" not in self.profile.forbidden:
            yield self.with_claims(nbf=int(self.now) + self.profile.leeway + 2), None, None

    def make_iat_future(self) -> Made:
        if "iat" not in self.profile.forbidden:
            answer = None if self.profile.judge_iat else "accept"
            yield self.with_claims(iat=int(self.now) + self.profile.leeway + 2), answer, None

    def make_aud_array_with_other(self) -> Made:
        if self.profile.audience == "none" or self.audience is None:
            return
        answer = "accept" if self.profile.audience == "any" else None
        yield self.with_claims(aud=[self.audience, "https://other.example"]), answer, None
        yield self.with_claims(aud=["https://other.example", self.audience]), answer, None
        yield self.with_claims(aud=[self.audience]), None if self.profile.audience == "string" else "accept", None
        yield self.with_claims(aud=["https://other.example"]), None, None
        yield self.with_claims(aud=[]), "claim_type", None
        yield self.with_claims(aud=[self.audience, 1]), "claim_type", None

    def make_aud_wrong_prefix_case(self) -> Made:
        if self.profile.audience == "none" or self.audience is None:
            return
        name = self.audience
        for value in (name + "/", name[:-1], name + "x", name.swapcase(), " " + name, name + "\n", name + "\0", "*"):
            yield self.with_claims(aud=value), None, None
            yield self.with_claims(aud=[value]), None, None

    def make_sub_trailing_newline(self) -> Made:
        if self.profile.subject is None:
            return
        subject = str(self.claims["sub"])
        for value in (subject + "\n", subject + "/", subject + " ", subject.swapcase(), subject + "/..", "x"):
            yield self.with_claims(sub=value), None, None
        for wrong in (1, None, [subject], {"sub": subject}, ""):
            yield self.with_claims(sub=wrong), "claim_type", None

    def make_number_huge(self) -> Made:
        for digits in (b"9" * 400, b"-" + b"9" * 400, b"9" * 5000, b"9007199254740992", b"-9007199254740992"):
            yield self.payload_plus(b',"n":' + digits), None, None
            yield self.payload_plus(b',"n":[{"m":9223372036854775808}]'), None, None
        yield (
            self.payload_plus(b',"n":9007199254740991,"m":-9007199254740991,"s":"' + b"9" * 400 + b'"'),
            ("accept" if self.profile.unknown_claims else "claim_type"),
            None,
        )

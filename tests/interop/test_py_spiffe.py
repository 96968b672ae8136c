"""The PyPI client `spiffe` works against the node's socket, and beside our own code in one process."""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aims.identifiers import SpiffeId, TrustDomain
from aims.jose.errors import JoseError
from aims.node.api_server import ApiServer
from aims.node.identities import IdentityState, JwtIdentity, Latest, ValidatedJwtSvid, X509Identity
from aims.node.peer import Peer, peer_of
from aims.node.workload_api import WorkloadApi
from aims.node.workload_errors import WorkloadApiError

PATIENCE = 30.0
ACME, OTHER = TrustDomain("acme.example"), TrustDomain("other.example")
AGENT = SpiffeId.agent(ACME, "researcher")
AUDIENCE = "spiffe://acme.example/services/tool"


@pytest.fixture(autouse=True)
def _needs_py_spiffe() -> None:
    if importlib.util.find_spec("spiffe") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("the PyPI package spiffe is not installed")


class Authority:
    """Certificates and tokens for the test, made with other libraries than those under test."""

    def __init__(self, trust_domain: TrustDomain) -> None:
        self.trust_domain = trust_domain
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain.name)])
        self.certificate = (
            self._builder(name, name, self.key.public_key(), trust_domain.uri)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def bundle(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def jwks(self) -> bytes:
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        return json.dumps({"keys": [{**public, "kid": "k1"}]}).encode()

    def issue(self, spiffe_id: SpiffeId) -> X509Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        leaf = (
            self._builder(x509.Name([]), self.certificate.subject, key.public_key(), str(spiffe_id), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(usage, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return X509Identity(
            spiffe_id=spiffe_id,
            chain=leaf.public_bytes(Encoding.DER),
            key=key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        )

    def token(self, spiffe_id: SpiffeId, audiences: tuple[str, ...]) -> str:
        expires = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5)
        claims = {"sub": str(spiffe_id), "aud": list(audiences), "exp": expires}
        return jwt.encode(claims, self.key, algorithm="ES256", headers={"kid": "k1", "typ": "JWT"})

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, uri: str, *, critical: bool = False
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=critical)
        )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


class Identities:
    """One agent's identities from a test authority."""

    def __init__(self) -> None:
        self.authority, self.other = Authority(ACME), Authority(OTHER)
        self.latest: Latest[IdentityState] = Latest()
        self.pids: set[int] = set()

    def rotate(self) -> int:
        """Issue anew; return the serial number."""
        identity = self.authority.issue(AGENT)
        self.latest.set(
            IdentityState(
                trust_domain=ACME,
                x509=(identity,),
                x509_bundles={ACME: self.authority.bundle, OTHER: self.other.bundle},
                jwt_bundles={ACME: self.authority.jwks()},
            )
        )
        return x509.load_der_x509_certificate(identity.chain).serial_number

    def subscribe(self, caller: Peer) -> AsyncGenerator[IdentityState, None]:
        self.pids.add(caller.pid)
        return self.latest.watch()

    async def jwt_svids(
        self, _: Peer, audiences: tuple[str, ...], spiffe_id: SpiffeId | None
    ) -> tuple[JwtIdentity, ...]:
        if spiffe_id not in {None, AGENT}:
            raise WorkloadApiError("not_entitled")
        return (JwtIdentity(spiffe_id=AGENT, token=self.authority.token(AGENT, audiences)),)

    async def validate_jwt_svid(self, _: Peer, audience: str, token: str) -> ValidatedJwtSvid:
        try:
            claims = jwt.decode(token, self.authority.key.public_key(), algorithms=["ES256"], audience=audience)
        except jwt.InvalidTokenError as error:
            raise JoseError("signature") from error
        return ValidatedJwtSvid(spiffe_id=SpiffeId.parse_workload(claims["sub"]), claims=claims)


async def test_the_unchanged_client_fetches_validates_and_sees_a_rotation(tmp_path: Path) -> None:
    identities = Identities()
    serial = identities.rotate()
    server = ApiServer(WorkloadApi(identities), peer_of)
    await server.start(tmp_path / "workload.sock")
    program = str(Path(__file__).with_name("py_spiffe_client.py"))
    client = await asyncio.create_subprocess_exec(
        sys.executable,
        program,
        f"unix://{tmp_path}/workload.sock",
        AUDIENCE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    assert client.stderr is not None

    async def said() -> dict[str, Any]:
        assert client.stdout is not None
        line = await asyncio.wait_for(client.stdout.readline(), PATIENCE)
        found: dict[str, Any] = json.loads(line) if line else {"ended": await errors}
        return found

    errors = asyncio.ensure_future(client.stderr.read())
    try:
        assert await said() == {
            "ids": [str(AGENT)],
            "serial": serial,
            "chain": 1,
            "domains": ["acme.example", "other.example"],
        }
        assert await said() == {
            "keys": ["k1"],
            "subject": str(AGENT),
            "asked": str(AGENT),
            "validated": str(AGENT),
        }
        assert "node.svid_refused" in (await said())["refused"]
        assert "node.not_entitled" in (await said())["refused"]
        assert await said() == {"source": serial, "jwt": 1}
        second = identities.rotate()
        assert second != serial
        client.stdin.write(b"rotated\n")
        assert await said() == {"rotated": second}
        assert await asyncio.wait_for(client.wait(), PATIENCE) == 0
        assert identities.pids == {client.pid}
    finally:
        if client.returncode is None:
            client.kill()
        await asyncio.wait_for(client.communicate(), PATIENCE)
        await errors
        await asyncio.wait_for(server.stop(), PATIENCE)


@pytest.mark.parametrize("order", [("aims.sdk.workload_client", "spiffe"), ("spiffe", "aims.sdk.workload_client")])
def test_both_clients_can_be_imported_in_one_process(order: tuple[str, str]) -> None:
    # Two definitions of one message name in protobuf's pool would end the second import with TypeError.
    program = textwrap.dedent(
        f"""
        import {order[0]}, {order[1]}
        from aims.proto import workload_pb2 as ours
        from spiffe._proto import workload_pb2 as theirs
        message = ours.X509SVIDResponse(svids=[ours.X509SVID(spiffe_id="a", x509_svid=b"b")], crl=[b"c"])
        print(theirs.X509SVIDResponse.FromString(message.SerializeToString()).svids[0].spiffe_id)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "a\n"), done.stderr

"""A TLS server on loopback that answers with the octets it is told, under a certificate of a CA of its own."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


class Authority:
    """A CA and one server certificate for ``name``."""

    def __init__(self, name: str = "localhost") -> None:
        now = datetime.now(UTC)
        ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        base = x509.CertificateBuilder().not_valid_before(now - timedelta(minutes=1)).issuer_name(_name("test CA"))
        base = base.not_valid_after(now + timedelta(hours=1))
        ca = (
            base.subject_name(_name("test CA"))
            .public_key(ca_key.public_key())
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(ca_key, hashes.SHA256())
        )
        leaf = (
            base.subject_name(_name(name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        self.pem = ca.public_bytes(Encoding.PEM).decode("ascii")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            chain = Path(folder, "chain.pem")
            chain.write_bytes(
                leaf.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            )
            self.context.load_cert_chain(chain)


@dataclass
class Peer:
    """Where it listens, and every request that it got, head and body."""

    port: int
    ca: str
    requests: list[bytes] = field(default_factory=list)

    def url(self, path: str = "/events") -> str:
        return f"https://localhost:{self.port}{path}"

    @property
    def private(self) -> frozenset[tuple[str, int]]:
        return frozenset({("localhost", self.port)})


def octets(answer: bytes) -> Script:
    """Answer with these octets and close."""

    async def script(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return script


@asynccontextmanager
async def listening(script: Script, authority: Authority) -> AsyncIterator[Peer]:
    """Serve ``script`` to every connection until the block ends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
            )
            request = head + (await reader.readexactly(length) if length else b"")
            peer.requests.append(request)
            await script(request, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the client went away, which is what most tests want it to do
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=authority.context)
    peer = Peer(server.sockets[0].getsockname()[1], authority.pem)
    try:
        yield peer
    finally:
        server.close()

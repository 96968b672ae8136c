"""First contact: what a node refuses, what the server refuses, and what somebody in between gets to see."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tests.faults.nodes import World, free_port

from aims.demo.processes import output_of
from aims.jose import base64url
from aims.provisioning.join_token import JoinToken

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(prefix="aims-j-") as name:
        world = World(Path(name))
        try:
            await world.begin()
            yield world
        finally:
            await world.close()


@pytest_asyncio.fixture(loop_scope="module")
async def world(server: World) -> AsyncIterator[World]:
    """A server that all tests share, and a name that no node has yet."""
    server.next_name()
    yield server
    await server.close_node()


async def test_a_token_joins_once_and_a_restart_needs_none(world: World) -> None:
    token = await world.token()
    await world.start_node(token)
    stored = sorted(path.name for path in (world.folder / f"{world.name}-state" / "keys").iterdir())
    assert [name.partition(".")[0] for name in stored if name.endswith(".pem")] == ["node"]
    await world.close_node()
    await world.start_node()
    await world.close_node()
    # with its identity at hand a node does not spend a token; without it the token is spent already
    await world.start_node(token)
    await world.close_node()
    (world.folder / f"{world.name}-state" / "node.json").unlink()
    status, text = await output_of(world.node_argv(token=world.token_file(token)))
    assert status == 1
    assert "node.server_refused" in text
    assert "provisioning.join_refused" in text
    assert "fix:" in text


async def test_a_token_in_a_race_admits_one_node(world: World) -> None:
    file = world.token_file(await world.token())
    rivals = [world.node_argv(token=file, state=f"{world.name}-{number}", run=f"r{number}") for number in range(4)]
    processes = [
        await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
        for argv in rivals
    ]
    try:
        firsts = [await asyncio.wait_for(_first_line(process), 30.0) for process in processes]
        assert sorted(line == b"ready\n" for line in firsts) == [False, False, False, True]
        assert sum(b"provisioning.join_refused" in line for line in firsts) == 3
    finally:
        for process in processes:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.communicate(), 15.0)


async def test_a_token_opens_no_other_name_and_no_other_folder(world: World) -> None:
    token = JoinToken.parse(await world.token())
    other = dataclasses.replace(token, node="somebody-else")
    status, text = await output_of(world.node_argv(token=world.token_file(other.encode())))
    assert (status, "provisioning.join_refused" in text) == (1, True)
    # refused by name, so the token itself is still good
    await world.start_node(token.encode())
    await world.close_node()
    status, text = await output_of(world.node_argv(token=world.token_file(await world.token("somebody-new"))))
    assert (status, "node.join_other_node" in text) == (1, True)


async def test_another_authority_than_the_tokens_ends_the_join_before_the_secret(world: World) -> None:
    token = JoinToken.parse(await world.token())
    tampered = dataclasses.replace(token, ca=bytes(32))
    status, text = await output_of(world.node_argv(token=world.token_file(tampered.encode())))
    assert (status, "node.join_ca" in text) == (1, True)
    await world.start_node(token.encode())  # nothing was spent


@pytest.mark.parametrize("shows", ["own", "genuine"])
async def test_a_man_in_the_middle_sees_no_secret(world: World, shows: str) -> None:
    token = JoinToken.parse(await world.token())
    async with _Middle(world.ports[0], own=shows == "own") as middle:
        url = f"https://localhost:{middle.port}"
        led_astray = dataclasses.replace(token, url=url)
        status, text = await output_of(world.node_argv(token=world.token_file(led_astray.encode())))
    assert status == 1
    assert ("node.join_ca" if shows == "own" else "node.server_untrusted") in text
    heard = bytes(middle.heard)
    assert heard.startswith(b"GET /node/v1/ca ")
    assert b"/join" not in heard
    assert base64url.encode(token.secret) not in heard
    await world.start_node(token.encode())


async def test_a_token_that_others_could_read_is_not_used(world: World) -> None:
    text_of_token = await world.token()
    status, text = await output_of(world.node_argv(token=world.token_file(text_of_token, 0o644)))
    assert (status, "node.join_token_file" in text) == (1, True)
    world.token_file(text_of_token).unlink()
    status, text = await output_of(world.node_argv(token=text_of_token))
    assert (status, "node.join_token_file" in text) == (1, True)
    assert text_of_token not in text
    # standard input is the other way
    node = await asyncio.create_subprocess_exec(
        *world.node_argv(token="-"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert node.stdin is not None
    node.stdin.write(text_of_token.encode() + b"\n")
    node.stdin.close()
    assert await asyncio.wait_for(_first_line(node), 30.0) == b"ready\n"
    node.terminate()
    assert await asyncio.wait_for(node.wait(), 15.0) == 0


async def test_a_server_that_is_away_is_named(world: World) -> None:
    token = JoinToken.parse(await world.token())
    away = dataclasses.replace(token, url=f"https://localhost:{free_port()}")
    status, text = await output_of(world.node_argv(token=world.token_file(away.encode())))
    assert (status, "node.server_unreachable" in text) == (1, True)
    assert "fix: Start it: aims up" in text
    status, text = await output_of(world.node_argv())
    assert (status, "node.not_joined" in text) == (1, True)


async def test_two_nodes_do_not_share_a_folder(world: World) -> None:
    await world.start_node(await world.token())
    status, text = await output_of(world.node_argv())
    assert (status, "node.node_running" in text) == (1, True)
    status, text = await output_of(world.node_argv(state=f"{world.name}-other"))
    assert (status, "node.node_running" in text) == (1, True)
    world.run_dir.chmod(0o777)
    await world.close_node()
    status, text = await output_of(world.node_argv())
    assert (status, "node.node_folder" in text) == (1, True)


async def _first_line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    return await process.stdout.readline()


class _Middle:
    """Somebody at the token's address: hears every octet, and passes the first call on to the real server."""

    def __init__(self, real_port: int, *, own: bool) -> None:
        self.heard = bytearray()
        self._real_port = real_port
        self._own = own
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        now = dt.datetime.now(dt.UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.write(self._certificate.public_bytes(Encoding.PEM))
            file.flush()
            self._context.load_cert_chain(file.name)

    async def __aenter__(self) -> _Middle:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.heard += line
                if line == b"\r\n":
                    pem = self._certificate.public_bytes(Encoding.PEM) if self._own else await self._genuine()
                    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(pem)}\r\n\r\n".encode()
                    writer.write(head + pem)
                    await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def _genuine(self) -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._real_port, ssl=context, family=socket.AF_INET, server_hostname="localhost"
        )
        host = f"Host: localhost:{self._real_port}"
        writer.write(
            f"GET /node/v1/ca HTTP/1.1\r\n{host}\r\naims-node-version: 1\r\nconnection: close\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        return answer.partition(b"\r\n\r\n")[2]

"""What the tests of ``launch.sock`` share: approvals in memory, and a client that says what it likes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aims.attestation import LaunchProfile
from aims.identifiers import SpiffeId, TrustDomain
from aims.node.approvals import Approved
from aims.node.launch_protocol import MAX_PACKET, Ended, Refused, Start, Started, encode, parse_reply

PATIENCE = 20.0


class Table:
    """Approvals in memory."""

    def __init__(self) -> None:
        self.rows: dict[str, Approved] = {}

    def approve(self, name: str, profile: LaunchProfile | None = None) -> None:
        spiffe_id = SpiffeId.agent(TrustDomain("local.test"), name)
        self.rows[name] = Approved(profile=profile or "unmeasured", launch_uids=frozenset(), spiffe_id=spiffe_id)

    def approved(self, name: str) -> Approved | None:
        return self.rows.get(name)


class Client:
    """A client that says what it likes."""

    def __init__(self, folder: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_PACKET)
        self.socket.connect(os.fspath(folder / "launch.sock"))
        self.socket.setblocking(False)

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        socket.send_fds(self.socket, [packet], list(descriptors))

    async def receive(self) -> Started | Refused | Ended | None:
        async with asyncio.timeout(PATIENCE):
            packet = await asyncio.get_running_loop().sock_recv(self.socket, MAX_PACKET)
        return parse_reply(packet) if packet else None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def start(*argv: str, name: str = "alpha", terminal: int = -1) -> bytes:
    return encode(
        Start(
            version=1,
            name=name,
            argv=tuple(map(os.fsencode, argv)),
            environment=((b"PATH", b"/usr/bin:/bin"),),
            umask=0o22,
            terminal=terminal,
        )
    )


@contextmanager
def streams_of() -> Iterator[list[int]]:
    """The four descriptors of a request."""
    null = os.open("/dev/null", os.O_RDWR)
    folder = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        yield [null, null, null, folder]
    finally:
        os.close(null)
        os.close(folder)

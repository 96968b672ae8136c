"""Keep-alive connections that send prepared octets, and which process holds the other end of each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from ssl import SSLContext
from typing import Any
from urllib.parse import quote_plus

PATIENCE = 20.0
AT_ONCE = 16
LOST = (OSError, asyncio.IncompleteReadError)
"""How a connection ends whose other end was killed."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A whole answer."""

    status: int
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def code(self) -> str:
        """Our own code in a refusal, of whichever protocol; empty in a success."""
        if self.status < 400:
            return ""
        return str(self.json.get("aims_error") or self.json["error"])


class Wire:
    """One connection; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, context: SSLContext) -> Wire:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost"))

    @classmethod
    async def unix(cls, path: Path) -> Wire:
        return cls(*await asyncio.open_unix_connection(path))

    @property
    def ports(self) -> tuple[int, int]:
        """The port at the other end, and the one at this end."""
        there, here = (self._writer.get_extra_info(name)[1] for name in ("peername", "sockname"))
        return there, here

    async def ask(self, octets: bytes) -> Heard:
        """Send a request and wait for its whole answer. Raises: one of ``LOST``."""
        self._writer.write(octets)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return Heard(int(head[9:12]), await self._reader.readexactly(length))

    async def close(self) -> None:
        self._writer.transport.abort()
        with suppress(*LOST):
            await self._writer.wait_closed()


async def open_wires(count: int, port: int, context: SSLContext) -> list[Wire]:
    """Open many connections, a few at a time."""
    wires: list[Wire] = []
    while len(wires) < count:
        more = min(AT_ONCE, count - len(wires))
        wires += await asyncio.gather(*(Wire.open(port, context) for _ in range(more)))
    return wires


async def close_wires(wires: Iterable[Wire]) -> None:
    await asyncio.gather(*(wire.close() for wire in wires))


def form(path: str, host: str, parameters: Mapping[str, str], *headers: str) -> bytes:
    """A POST of a form."""
    body = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in parameters.items())
    return post(path, host, body.encode(), "content-type: application/x-www-form-urlencoded", *headers)


def post(path: str, host: str, body: bytes, *headers: str) -> bytes:
    """A POST as it goes over the wire."""
    lines = (f"POST {path} HTTP/1.1", f"host: {host}", f"content-length: {len(body)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


async def shared_wires(least: int, port: int, context: SSLContext, pids: Sequence[int]) -> list[Wire]:
    """Open at least so many connections, and more until each process holds a quarter of that; they come in turns."""
    wires: list[Wire] = []
    async with asyncio.timeout(PATIENCE):
        while True:
            wires += await open_wires(AT_ONCE if wires else least, port, context)
            shares: dict[int, list[Wire]] = {pid: [] for pid in pids}
            for wire, pid in zip(wires, holders(wires, pids), strict=True):
                shares[pid].append(wire)
            if all(len(share) >= least // 4 for share in shares.values()):
                return [wire for turn in zip_longest(*shares.values()) for wire in turn if wire is not None]


def holders(wires: Iterable[Wire], pids: Iterable[int]) -> list[int]:
    """Say which of these processes holds the other end of each connection, as the kernel tells it."""
    inodes = _inodes()
    held = {name: pid for pid in pids for name in _sockets(pid)}
    return [held[f"socket:[{inodes[wire.ports]}]"] for wire in wires]


def _sockets(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found.append(entry.readlink().name)
    return found


def _inodes() -> dict[tuple[int, int], str]:
    """The socket of each loopback connection, by its own port and the one at the other end."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:])
    return {(_port(row[1]), _port(row[2])): row[9] for row in rows}


def _port(address: str) -> int:
    return int(address.partition(":")[2], 16)

"""The node's side of the gate: start it, hold it, let it go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aims.node.errors import NodeError
from aims.node.peer import Peer

GATE = Path(__file__).with_name("gate.py")
PATIENCE = 30.0
"""Seconds that a gate may take until it is ready, and again until the program runs."""

_NOT_EXECUTABLE = frozenset({8, 13})  # ENOEXEC, EACCES


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The uid, gid and groups that the program takes on, where the node has the right to give them."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def of(cls, peer: Peer) -> Self:
        """Take the uid and gid of a peer, and the groups of its account where it has one."""
        try:
            groups = tuple(os.getgrouplist(pwd.getpwuid(peer.uid).pw_name, peer.gid))
        except KeyError:
            groups = (peer.gid,)
        return cls(uid=peer.uid, gid=peer.gid, groups=groups)


class Gate:
    """One gate, from its start until it has become the program."""

    __slots__ = ("_control", "_orders", "process")

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, orders: bytes) -> None:
        self.process = process
        self._control = control
        self._orders = orders

    @classmethod
    def start(
        cls,
        *,
        executable: int,
        argv: Sequence[str],
        environment: Mapping[str, str],
        stdio: Sequence[int],
        folder: int,
        terminal: int,
        umask: int,
        identity: Identity | None,
    ) -> Self:
        """Start the gate with its orders; it waits for ``go``.

        Only from the main thread: the signal for the death of the parent follows the thread that forked.

        Raises: NodeError ``start_failed``.
        """
        if threading.current_thread() is not threading.main_thread():
            raise NodeError("start_failed", "not in the main thread")
        orders = json.dumps(
            {
                "executable": executable,
                "argv": [_latin(argument) for argument in argv],
                "environment": [[_latin(name), _latin(value)] for name, value in environment.items()],
                "folder": folder,
                "terminal": terminal,
                "umask": umask,
                "node": os.getpid(),
                "uid": identity and identity.uid,
                "gid": identity and identity.gid,
                "groups": identity and identity.groups,
            }
        ).encode("ascii")
        mine, its = socket.socketpair()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", os.fspath(GATE), str(its.fileno())],
                stdin=stdio[0],
                stdout=stdio[1],
                stderr=stdio[2],
                env={},
                pass_fds=(its.fileno(), executable, folder),
                start_new_session=True,
            )
        except OSError as error:
            mine.close()
            raise NodeError("start_failed", f"gate: {error.strerror}") from error
        finally:
            its.close()
        mine.setblocking(False)
        return cls(process, mine, len(orders).to_bytes(4, "big") + orders)

    async def ready(self) -> None:
        """Hand over the orders and wait until all is prepared.

        Raises: NodeError ``start_failed``.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                with contextlib.suppress(OSError):
                    await asyncio.get_running_loop().sock_sendall(self._control, self._orders)
                answer = await self._answer()
        except TimeoutError as error:
            raise NodeError("start_failed", "the gate is not ready") from error
        if answer != b"R":
            raise _failure(answer)

    async def go(self) -> None:
        """Give the word and wait until the program has been executed.

        Raises: NodeError ``start_failed``, ``program_not_executable``.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                with contextlib.suppress(OSError):
                    await asyncio.get_running_loop().sock_sendall(self._control, b"G")
                answer = await self._answer()
        except TimeoutError as error:
            raise NodeError("start_failed", "the gate does not execute") from error
        if answer:
            raise _failure(answer)

    async def _answer(self) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._control, 256)
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Close the control socket; a gate that still waits ends itself."""
        self._control.close()


def _failure(answer: bytes) -> NodeError:
    if answer[:1] != b"E":
        return NodeError("start_failed", "the gate ended")
    number, _, step = answer[1:].decode("ascii", "replace").partition(" ")
    code = int(number) if number.isdecimal() else 0
    if step == "exec" and code in _NOT_EXECUTABLE:
        return NodeError("program_not_executable", os.strerror(code))
    return NodeError("start_failed", f"{step}: {os.strerror(code)}")


def _latin(text: str) -> str:
    return os.fsencode(text).decode("latin-1")

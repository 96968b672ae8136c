"""Requests in progress: a stop reaches a caller whose request was let in before it.

Without a stop nothing here costs anything. With one, every call whose caller it hits is cut: the application is told
that its client has gone, and nothing more of its answer leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from aims.sdk.caller import Caller

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

SWEEP_SECONDS: Final = 1.0
MOST_HELD: Final = 64  # messages of an answer of 500 that waits for the application's end
_GONE: Final[Message] = {"type": "http.disconnect"}


class CutError(OSError):
    """What an application gets that goes on answering a caller who was stopped, as if its client had gone."""

    @staticmethod
    def explains(error: BaseException) -> bool:
        """Tell whether ``error`` is nothing but this, alone or in groups."""
        if isinstance(error, BaseExceptionGroup):
            return error.split(CutError)[1] is None
        return isinstance(error, CutError)


class OpenCall:
    """One request that was let in. ``receive`` and ``send`` are what the application gets."""

    __slots__ = ("_complete", "_held", "_receive", "_send", "_waiting", "caller", "is_cut", "started")

    def __init__(self, caller: Caller, receive: Receive, send: Send) -> None:
        self.caller = caller
        self.is_cut = False
        self.started = False  # an answer has begun to leave
        self._receive = receive
        self._send = send
        self._complete = False  # the request has been read
        self._held: list[Message] = []
        self._waiting: asyncio.Event | None = None

    def cut(self) -> None:
        """Let nothing more in or out."""
        self.is_cut = True
        if self._waiting is not None:
            self._waiting.set()

    async def receive(self) -> Message:
        if not self._complete and not self.is_cut:
            message = await self._receive()
            self._complete = not message.get("more_body", False)
            return self._unless_cut(message)
        # From here on the application waits for its client to go.
        if self._waiting is None:
            self._waiting = asyncio.Event()
        received, gone = asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._waiting.wait())
        try:
            if not self.is_cut:
                await asyncio.wait({received, gone}, return_when=asyncio.FIRST_COMPLETED)
            return self._unless_cut(received.result() if received.done() else _GONE)
        finally:
            for task in (received, gone):
                if not task.done():
                    task.cancel()

    def _unless_cut(self, message: Message) -> Message:
        return _GONE if self.is_cut else message

    async def send(self, message: Message) -> None:
        if self.is_cut:
            raise CutError
        # Frameworks answer 500 before they let an exception out, and it may say that the caller was refused.
        failing = message["type"] == "http.response.start" and message["status"] == 500
        if not self.started and (failing or self._held) and len(self._held) < MOST_HELD:
            self._held.append(message)
            return
        await self.let_go()
        self.started = True
        await self._send(message)

    async def let_go(self) -> None:
        """Send what was held back."""
        held, self._held = self._held, []
        for message in held:
            self.started = True
            await self._send(message)


class OpenCalls:
    """The requests in progress of one middleware. ``judge`` says whether a caller may go on."""

    __slots__ = ("_calls", "_judge", "_timer")

    def __init__(self, judge: Callable[[Caller], bool]) -> None:
        self._calls: set[OpenCall] = set()
        self._judge = judge
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: OpenCall) -> None:
        """Watch over ``call`` until it is discarded."""
        self._calls.add(call)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._turn)

    def discard(self, call: OpenCall) -> None:
        self._calls.discard(call)

    def sweep(self) -> None:
        """Cut every call whose caller may not go on."""
        for call in tuple(self._calls):
            if not call.is_cut and not self._judge(call.caller):
                call.cut()

    def _turn(self) -> None:
        # Ends of credentials and of knowledge come without a message.
        self._timer = None
        self.sweep()
        if self._calls:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._turn)

"""The replay window of the host, asked over agent.sock: workers of one service share what was shown before.

Claims are gathered while the message before them is out, without a timer: a lone claim waits for nobody, and under
load one message carries many. When the node cannot be asked, nothing passes.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aims.authentication.errors import AuthenticationError
from aims.proto import node_pb2 as pb
from aims.proto.node_service import MAX_IDS
from aims.sdk.errors import SdkError
from aims.sdk.node_client import ClaimStream, NodeClient, fresh

ANSWER_SECONDS: Final = 2.0
MAX_WAITING: Final = 8 * MAX_IDS
_AGAIN_SECONDS: Final = 0.2


class NodeWindow:
    """A `ReplayWindow` behind the node. ``keep`` runs beside its users, until it is cancelled."""

    def __init__(self, client: NodeClient, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._client = client
        self._seconds = answer_seconds
        self._since: float | None = None
        self._open = False
        self._waiting: list[tuple[bytes, asyncio.Future[bool]]] = []
        self._asked = asyncio.Event()

    @property
    def complete_since(self) -> float:
        """As `ReplayWindow`. Raises: AuthenticationError ``window_unavailable`` before the node was reached."""
        if self._since is None:
            raise AuthenticationError("window_unavailable", "the node was not reached yet")
        return self._since

    @property
    def ready(self) -> bool:
        """Whether the node answers."""
        return self._open

    async def claim(self, ids: list[bytes]) -> list[bool]:
        if not self._open or len(self._waiting) + len(ids) > MAX_WAITING:
            raise AuthenticationError("window_unavailable", "the node is away or behind")
        loop = asyncio.get_running_loop()
        asked = [(id_, loop.create_future()) for id_ in ids]
        self._waiting += asked
        self._asked.set()
        # A caller that goes away withdraws nothing: its ids are spent.
        return [await asyncio.shield(answer) for _, answer in asked]

    async def keep(self) -> None:
        """Hold the stream open, and open it again when it breaks."""
        while True:
            try:
                async with self._client.claims() as stream:
                    await self._serve(stream)
            except (SdkError, AuthenticationError):
                self._close()
            except BaseException:
                self._close()
                raise
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _serve(self, stream: ClaimStream) -> None:
        # One answer is always awaited, so that the end of the stream is noticed without a claim.
        await stream.send([])
        awaited = asyncio.ensure_future(stream.answer())
        batch: list[tuple[bytes, asyncio.Future[bool]]] = []
        try:
            await self._wait(awaited)
            self._since, self._open = stream.complete_since, True
            while True:
                awaited = asyncio.ensure_future(stream.answer())
                await self._claims_or(awaited)
                batch, self._waiting = self._waiting[:MAX_IDS], self._waiting[MAX_IDS:]
                await stream.send([id_ for id_, _ in batch])
                found = fresh(await self._wait(awaited), len(batch))
                self._since = stream.complete_since
                _tell(batch, found)
                batch = []
        finally:
            _tell(batch, None)
            awaited.cancel()
            await asyncio.wait({awaited})

    async def _claims_or(self, awaited: asyncio.Future[pb.ClaimResponse]) -> None:
        while not self._waiting:
            self._asked.clear()
            asked = asyncio.ensure_future(self._asked.wait())
            try:
                waited: set[asyncio.Future[Any]] = {asked, awaited}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                asked.cancel()
            if awaited.done():
                awaited.result()
                raise SdkError("response_invalid", "an answer that nobody asked for")

    async def _wait(self, awaited: asyncio.Future[pb.ClaimResponse]) -> pb.ClaimResponse:
        done, _ = await asyncio.wait({awaited}, timeout=self._seconds)
        if not done:
            raise SdkError("deadline", "a claim")
        return awaited.result()

    def _close(self) -> None:
        self._open = False
        waiting, self._waiting = self._waiting, []
        _tell(waiting, None)


def _tell(asked: list[tuple[bytes, asyncio.Future[bool]]], found: list[bool] | None) -> None:
    for index, (_, answer) in enumerate(asked):
        if answer.done():
            continue
        if found is not None:
            answer.set_result(found[index])
        else:
            answer.set_exception(AuthenticationError("window_unavailable", "the node did not answer"))
            answer.exception()  # asked here, so that one whose caller has gone is no warning

"""The node's one streaming request: what changed on the server, for as long as the node lives.

A stream that ends, goes silent or skips something is begun again, with a pause that grows while it keeps failing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from aims.credentials.bundle import Bundle
from aims.errors import AimsError
from aims.node import messages
from aims.node.errors import NodeError
from aims.node.pauses import Backoff
from aims.node.server_client import ServerClient, ServerRefusedError
from aims.node.server_state import ServerState

AGAIN: Final = Backoff(first=0.2, most=5.0)
REFUSED: Final = Backoff(first=5.0, most=60.0)

_GONE: Final = frozenset({"provisioning.node_banned", "provisioning.node_unknown", "provisioning.peer_not_a_node"})

_log = logging.getLogger("aims.node")


class Watch:
    """Keeps ``state`` as the server says.

    ``believe`` is told each bundle that differs from the last, ``hear`` each line that ``state`` took.
    ``problem`` is why the stream does not run, None while it does.
    """

    def __init__(
        self,
        client: ServerClient,
        state: ServerState,
        believe: Callable[[Bundle], None],
        hear: Callable[[messages.Message], None],
    ) -> None:
        self._client = client
        self._state = state
        self._believe = believe
        self._hear = hear
        self._bundle: Bundle | None = None
        self._failures = 0
        self.first = asyncio.Event()
        self.problem: AimsError | None = None
        self.failed = asyncio.Event()

    async def keep(self) -> None:
        """Watch for ever."""
        while True:
            try:
                if await self._once():
                    continue
                error: AimsError = NodeError("server_unreachable", "the stream ended")
            except AimsError as caught:
                error = caught
            self.problem = error
            self.failed.set()
            gone = isinstance(error, ServerRefusedError) and error.server_code in _GONE
            if gone:
                self._state.refused()
            self._failures += 1
            # once is a restart of the server; more is worth a line
            if self._failures > 1 or gone:
                _log.warning("the server is not heard", extra={"code": error.code, "detail": str(error)})
            await asyncio.sleep((REFUSED if gone else AGAIN).delay(self._failures - 1))

    async def _once(self) -> bool:
        """Follow one stream to its end; return whether to begin the next one at once."""
        complete = False
        async with aclosing(self._client.watch(self._state.max_stale)) as lines:
            try:
                async for line in lines:
                    message = messages.read(line, self._state.trust_domain)
                    self._state.apply(message, first=not complete)
                    self._hear(message)
                    complete, self._failures, self.problem = True, 0, None
                    self.first.set()
                    if self._new_bundle():
                        break
                else:
                    return False
            except NodeError as error:
                if error.reason == "server_answer":
                    self._state.lost()
                raise
        # every open connection was judged by the old bundle
        await self._client.reconnect()
        return True

    def _new_bundle(self) -> bool:
        """Pass a changed bundle on; tell whether it replaced another one."""
        bundle, before = self._state.bundle, self._bundle
        if bundle is None or bundle == before:
            return False
        self._bundle = bundle
        self._believe(bundle)
        return before is not None

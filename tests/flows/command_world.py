"""Commands of an administrator, as typed, against the administrative routes of a world instead of a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self

import msgspec
import pytest

from aims.cli.main import app
from aims.errors import AimsError
from aims.policy.question import Decision
from aims.server import admin_client
from aims.server.admin import AdminCall, AdminRoute, Operator

Answering = Callable[[str, str, Any, str], Coroutine[Any, Any, Any]]


def answering(world: Any, routes: tuple[AdminRoute, ...]) -> Answering:
    """Return what answers calls on ``routes`` that policy permits, as the administrator's door does."""
    by_place = {(route.method, route.path): route for route in routes}

    async def answer(method: str, path: str, body: Any, reason: str) -> Any:
        route = by_place[method, path]
        operator = Operator(1000, "alice", frozenset({"operator"}), reason)
        decision = Decision(True, "", ("operator_administers",), "p" * 64, "")
        call = AdminCall(operator, decision, world.ids.new(), world.clock.now())
        plan = await route.plan(call, msgspec.convert(body or {}, route.body))
        value = plan.answer(await world.database.commit(plan.write))
        if route.then is not None:
            await route.then(call, msgspec.convert(body or {}, route.body))
        return msgspec.to_builtins(value)

    return answer


async def typed(answer: Answering, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Run one command whose calls ``answer`` takes; what it prints goes where it always goes."""
    loop = asyncio.get_running_loop()

    class Client:
        def __init__(self, _: object, reason: str = "") -> None:
            self._reason = reason

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def call(self, method: str, path: str, body: object | None = None) -> Any:
            try:
                return asyncio.run_coroutine_threadsafe(answer(method, path, body, self._reason), loop).result(30)
            except AimsError as error:
                raise admin_client.RefusedError(error.code, error.sentence, error.hint, 400) from error

    monkeypatch.setattr(admin_client, "AdminClient", Client)

    def work() -> None:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")

    await asyncio.to_thread(work)

"""Commands in, answers out: one JSON object a line, so that a story or a test can drive a sample process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aims.errors import AimsError
from aims.sdk.errors import CallRefusedError

MAX_LINE: Final = 1024 * 1024

Do = Callable[..., Awaitable[object]]


async def obey(commands: Mapping[str, Do]) -> None:
    """Read ``{"do": NAME, ...}`` from standard input and print what ``commands[NAME](...)`` gave, until it ends."""
    while line := await asyncio.to_thread(sys.stdin.buffer.readline, MAX_LINE):
        say(await _answer(commands, json.loads(line)))


async def _answer(commands: Mapping[str, Do], given: dict[str, Any]) -> dict[str, Any]:
    name = given.pop("do", "")
    command = commands.get(name)
    if command is None:
        return {"do": name, "error": "no such command", "commands": sorted(commands)}
    try:
        return {"do": name, "answer": await command(**given)}
    except CallRefusedError as error:
        told = {"do": name, "refused": error.service_code, "status": error.status, "hint": error.hint}
        return told if error.stop is None else {**told, "stop": dict(error.stop)}
    except AimsError as error:
        return {"do": name, "refused": error.code, "hint": error.hint}


def say(value: Mapping[str, Any]) -> None:
    """Print one line."""
    print(json.dumps(value), flush=True)  # noqa: T201  the program's output

"""The first chapter: a trust domain starts."""

from __future__ import annotations

from typing import Final

from aims.demo.stage import Stage
from aims.demo.story import Chapter, Seen

chapter: Final[Chapter[Stage]] = Chapter("Ground: a trust domain on this host")


@chapter.step("aims up", "spiffe://local.test is ready")
async def start(stage: Stage) -> Seen:
    lines = await stage.start_server()
    return Seen(f"{stage.addresses['trust domain']} is {lines[-1]}", tuple(lines[1:-1]))


@chapter.step("The shipped policy is in force and the log can be written", "sqlite, writable, policy of 64 hex digits")
async def status(stage: Stage) -> Seen:
    found = await stage.administer("GET", "/admin/v1/status")
    writable = "writable" if found["writable"] else "not writable"
    return Seen(f"{found['database']}, {writable}, policy of {len(found['policy'])} hex digits", (found["policy"],))

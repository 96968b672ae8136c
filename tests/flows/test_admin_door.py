"""The administrator's door: who gets in, what is refused, and that both leave a record."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import sqlalchemy as sa

from aims.clock import IdSource, SystemClock
from aims.policy.bundle import Bundle
from aims.server.admin import AdminDoor
from aims.server.administration import routes
from aims.server.ancestry import NODE_PID_FILE, launched_by_node
from aims.server.core import Core
from aims.server.policy_activation import activate
from aims.server.protocol import PEER, UnixPeer
from aims.server.settings import Settings, make_private
from aims.storage.database import Database
from aims.storage.schema import outbox

QUESTION = {
    "principal": {"type": "Operator", "id": "uid:1", "attributes": {"roles": ["operator"]}},
    "action": "administer",
    "resource": {"type": "Resource", "id": "status", "attributes": {"kind": "admin-route", "writes": False}},
    "context": {"launched": False},
}
ME = UnixPeer(os.getpid(), os.geteuid(), os.getegid())


@pytest_asyncio.fixture
async def core(database: Database, tmp_path: Path, clock: SystemClock, ids: IdSource) -> AsyncIterator[Core]:
    plan = activate(
        Bundle.shipped(),
        before=None,
        now=clock.now(),
        record_id=ids.new(),
        operator={"role": "operator"},
        cause={"admin": "test"},
    )
    plan.answer(await database.commit(plan.write))
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path)
    make_private(settings.server_dir / "keys")
    core = Core(settings, clock=clock, ids=ids, database=database)
    core.follow()
    database.feed.start(asyncio.get_running_loop())
    async with asyncio.timeout(10):
        await core.loaded.wait()
    yield core


async def call(
    core: Core,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    peer: object = ME,
    headers: tuple[tuple[bytes, bytes], ...] = ((b"host", b"aims"),),
) -> tuple[int, dict[str, Any]]:
    """Send one request straight into the door and return status and JSON."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": list(headers),
        "extensions": {PEER: {"is": peer}},
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    await AdminDoor(core, routes(core))(scope, receive, send)
    return sent[0]["status"], msgspec.json.decode(sent[1]["body"])


def records(database: Database) -> list[dict[str, Any]]:
    """Every record that was committed, in the writer's order."""
    with database.reading() as connection:
        return [msgspec.json.decode(row.body) for row in connection.execute(sa.select(outbox).order_by(outbox.c.n))]


async def test_an_operator_asks_and_both_question_and_answer_are_recorded(core: Core) -> None:
    status, answer = await call(core, "POST", "/admin/v1/policy/check", msgspec.json.encode(QUESTION))
    assert (status, answer["effect"], answer["rules"]) == (200, "permit", ["operator_administers"])
    last = records(core.database)[-1]
    assert (last["id"], last["type"], last["outcome"]) == (answer["record"], "admin.action", "success")
    assert last["operator"]["uid"] == os.geteuid()
    assert last["decision"]["policy_digest"] == core.policy.engine.version


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (((b"host", b"localhost"),), "server.host"),
        ((), "server.host"),
        (((b"host", b"aims"), (b"host", b"aims")), "server.body"),
        (((b"host", b"aims"), (b"origin", b"https://attacker.example")), "server.browser"),
        (((b"host", b"aims"), (b"sec-fetch-mode", b"no-cors")), "server.browser"),
        (((b"host", b"aims"), (b"cookie", b"a=b")), "server.browser"),
        (((b"host", b"aims"), (b"aims-reason", b"x" * 300)), "server.body"),
    ],
)
async def test_what_a_web_page_could_send_is_refused(
    core: Core, headers: tuple[tuple[bytes, bytes], ...], code: str
) -> None:
    status, answer = await call(core, "GET", "/admin/v1/status", headers=headers)
    assert status in {400, 403, 421}
    assert answer["error"] == code
    assert records(core.database)[-1]["decision"]["reason"] == code


@pytest.mark.parametrize(
    "reason",
    [
        b"-----BEGIN PRIVATE KEY-----",
        b"eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhZ2VudCJ9.c2lnbmF0dXJlLW9mLWFuLWFnZW50",
        b"a\tb",
        b"x" * 257,
    ],
)
async def test_a_reason_that_no_record_may_hold_is_refused_and_recorded(core: Core, reason: bytes) -> None:
    headers = ((b"host", b"aims"), (b"aims-reason", reason))
    status, answer = await call(core, "GET", "/admin/v1/status", headers=headers)
    assert (status, answer["error"]) == (400, "server.body")
    last = records(core.database)[-1]
    assert (last["type"], last["decision"]["reason"]) == ("admin.refuse", "server.body")
    assert last["operator"]["uid"] == os.geteuid()
    assert "reason" not in last["operator"]


@pytest.mark.parametrize("peer", [UnixPeer(os.getpid(), 4711, 4711), None, "root"])
async def test_a_stranger_administers_nothing(core: Core, peer: object) -> None:
    status, answer = await call(core, "GET", "/admin/v1/status", peer=peer)
    assert (status, answer["error"]) == (403, "server.peer")
    last = records(core.database)[-1]
    assert (last["type"], last["outcome"], last["agent"]) == ("admin.refuse", "refused", None)


async def test_a_launched_process_and_what_is_below_it_administers_nothing(core: Core, tmp_path: Path) -> None:
    with (tmp_path / NODE_PID_FILE).open("w") as file:
        file.write(str(os.getpid()))
        file.flush()
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
        try:
            below = UnixPeer(child.pid, os.geteuid(), os.getegid())
            # A file that nobody holds is what a dead node left behind; the same call is permitted then.
            assert (await call(core, "GET", "/admin/v1/status", peer=below))[0] == 200
            held = os.open(tmp_path / NODE_PID_FILE, os.O_RDONLY)
            fcntl.flock(held, fcntl.LOCK_EX)
            status, answer = await call(core, "GET", "/admin/v1/status", peer=below)
            os.close(held)
        finally:
            child.kill()
            await child.communicate()
    assert (status, answer["error"]) == (403, "server.admin_from_agent")
    assert "admin_from_agent" in records(core.database)[-1]["decision"]["rules"]


async def test_a_peer_whose_parents_cannot_be_read_counts_as_launched(tmp_path: Path) -> None:
    path = tmp_path / NODE_PID_FILE
    path.write_text("1000000")
    held = os.open(path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert launched_by_node(2**22 + 1, tmp_path)
        assert not launched_by_node(os.getpid(), tmp_path)
        path.write_text("no number")
        assert launched_by_node(os.getpid(), tmp_path)
    finally:
        os.close(held)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "server.body"),
        (b"[]", "server.body"),
        (b'{"unknown":1}', "server.body"),
        (msgspec.json.encode(QUESTION)[:-1] + b',"action":"issue"}', "server.body"),  # a member twice
        (b"\xff\xfe", "server.body"),
        (b"[" * 100_000, "server.body"),
        (b"x" * 300_000, "server.too_large"),
        (msgspec.json.encode(QUESTION | {"action": "everything"}), "server.body"),
        (msgspec.json.encode(QUESTION | {"context": {"launched": "perhaps"}}), None),
    ],
)
async def test_bad_bodies_are_refused_with_a_code_and_recorded(core: Core, body: bytes, code: str | None) -> None:
    status, answer = await call(core, "POST", "/admin/v1/policy/check", body)
    if code is None:
        # A fact of the wrong type is a question that the policy cannot evaluate: an answer, and the answer is deny.
        assert (status, answer["effect"], answer["code"]) == (200, "deny", "policy.evaluation")
        return
    assert status in {400, 413}
    assert answer["error"] == code
    assert records(core.database)[-1]["decision"]["reason"] == code


async def test_nothing_is_answered_that_cannot_be_recorded(core: Core) -> None:
    core.database.committer.close()
    status, answer = await call(core, "POST", "/admin/v1/policy/check", msgspec.json.encode(QUESTION))
    assert status >= 400
    assert answer["error"] == "storage.closed"
    status, answer = await call(core, "GET", "/nowhere")
    assert answer["error"] == "storage.closed"


async def test_an_unknown_route_is_refused_and_recorded(core: Core) -> None:
    status, answer = await call(core, "DELETE", "/admin/v1/status")
    assert (status, answer["error"]) == (404, "server.route")
    assert records(core.database)[-1]["type"] == "admin.refuse"

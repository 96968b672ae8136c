"""An administrator ends a grant, on both back ends."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.flows.command_world import Answering, answering, typed
from tests.flows.token_world import NOTES
from tests.flows.transaction_world import TransactionWorld, open_transaction_world

from aims.authorization.errors import AuthorizationError
from aims.authorization.model import dead, stored
from aims.clock import IdSource, SystemClock
from aims.server.admin import AdminDoor
from aims.server.admin_client import RefusedError
from aims.server.admin_grants import GrantCalls
from aims.server.protocol import PEER, UnixPeer
from aims.storage.database import Database
from aims.storage.write import Name

READ = {"resource": NOTES, "scope": "notes:read"}


@pytest_asyncio.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> TransactionWorld:
    return await open_transaction_world(database, clock, ids)


@pytest.fixture
def answer(world: TransactionWorld) -> Answering:
    of: Any = world
    return answering(world, GrantCalls(of).routes())


async def _works(world: TransactionWorld, text: str) -> bool:
    world.follow()
    token = await world.read(text)
    return dead(stored(token.names), token.epoch, world.stops) is None


async def test_an_administrator_ends_a_grant_and_all_below_it(
    world: TransactionWorld, answer: Answering, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha, beta, gamma = [await world.agent(name) for name in ("alpha", "beta", "gamma")]
    own = await world.own(alpha)
    first = await world.delegate(alpha, beta, subject=own)
    second = await world.delegate(beta, gamma, subject=first)
    used = (await world.exchange(gamma, second, **READ)).token
    grant, seq = (await world.read(first)).grant_id, world.seq
    await typed(answer, monkeypatch, "grant", "revoke", grant, "--reason", "she called")
    assert capsys.readouterr().out == f"grant {grant} is ended for good: every token that carries it is dead\n"
    for text in (first, second, used):
        assert not await _works(world, text)
    assert await _works(world, own)
    assert world.seq == seq + 1
    record = world.record()
    assert (record["type"], record["resource"], record["change"]) == ("grant.revoke", grant, world.seq)
    assert record["cause"] == {"reason": "she called", "admin": "alice"}
    assert (record["operator"]["user"], record["decision"]["rules"]) == ("alice", ["operator_administers"])
    assert world.stops[Name("grant", grant)].blocked, "a line of the feed, which every enforcement point follows"
    refused = await world.exchange(beta, first, **READ)
    assert refused.refusal == (400, "invalid_request", "authorization.subject_stopped")


async def test_an_administrator_ends_what_an_agent_holds_and_handed_on(
    world: TransactionWorld, answer: Answering
) -> None:
    alpha, beta = [await world.agent(name) for name in ("alpha", "beta")]
    own = await world.own(alpha)
    first = await world.delegate(alpha, beta, subject=own)
    used = (await world.exchange(beta, first, **READ)).token
    of_beta = await world.own(beta)
    said = await answer("POST", "/admin/v1/grants/revoke", {"grant": "agent:alpha"}, "")
    assert (said["grant"], said["applied"]) == ("agent:alpha", "done")
    for text in (own, first, used):
        assert not await _works(world, text)
    assert await _works(world, of_beta)
    fresh = await world.own(alpha)
    assert await _works(world, fresh)
    # what ended so far may end again
    assert (await answer("POST", "/admin/v1/grants/revoke", {"grant": "agent:alpha"}, ""))["applied"] == "done"
    assert not await _works(world, fresh)


async def test_a_grant_that_ended_stays_ended_however_often_it_is_said(
    world: TransactionWorld, answer: Answering
) -> None:
    alpha, beta = [await world.agent(name) for name in ("alpha", "beta")]
    text = await world.delegate(alpha, beta)
    grant = (await world.read(text)).grant_id
    assert (await answer("POST", "/admin/v1/grants/revoke", {"grant": grant}, ""))["applied"] == "done"
    assert not await _works(world, text)
    seq = world.seq
    assert (await answer("POST", "/admin/v1/grants/revoke", {"grant": grant}, "again"))["applied"] == "already"
    assert not await _works(world, text)
    assert world.seq == seq
    record = world.record()
    assert (record["type"], record["action"]) == ("admin.action", "grant.revoke")
    assert (record["details"]["applied"], record["cause"]["reason"]) == ("already", "again")


async def test_an_unknown_grant_is_refused_and_changes_nothing(
    world: TransactionWorld, answer: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.follow()
    seq = world.seq
    for grant in ("0" * 26, "agent:nobody", "agent:", "g"):
        with pytest.raises(AuthorizationError) as refused:
            await answer("POST", "/admin/v1/grants/revoke", {"grant": grant}, "")
        assert refused.value.reason == "grant_unknown"
    with pytest.raises(RefusedError) as told:
        await typed(answer, monkeypatch, "grant", "revoke", "nothing")
    assert told.value.reason == "grant_unknown"
    world.follow()
    assert world.seq == seq


async def test_only_an_operator_ends_a_grant(world: TransactionWorld, tmp_path: Any) -> None:
    of: Any = world
    of.server_uid = os.geteuid()
    of.settings = type("Settings", (), {"run_dir": tmp_path})
    alpha, beta = [await world.agent(name) for name in ("alpha", "beta")]
    text = await world.delegate(alpha, beta)
    grant = (await world.read(text)).grant_id
    for uid, status, kind in ((4_000_000, 403, "admin.refuse"), (os.geteuid(), 200, "grant.revoke")):
        sent: list[Any] = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/admin/v1/grants/revoke",
            "headers": [(b"host", b"aims")],
            "extensions": {PEER: {"is": UnixPeer(os.getpid(), uid, os.getegid())}},
        }

        async def receive() -> Any:
            return {"type": "http.request", "body": msgspec.json.encode({"grant": grant}), "more_body": False}

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        assert await _works(world, text)
        await AdminDoor(of, GrantCalls(of).routes())(scope, receive, send)
        assert sent[0]["status"] == status, sent
        assert world.record()["type"] == kind
    assert not await _works(world, text)

"""What an administrator is told about a token or an identifier, on both back ends."""

from __future__ import annotations

import base64
import os
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.flows.command_world import Answering, answering, typed
from tests.flows.provisioning_world import proof_jwk
from tests.flows.transaction_world import TransactionWorld, open_transaction_world

from aims.authorization.keys import TokenKeys
from aims.cli.errors import CliError
from aims.cli.explain import explain
from aims.clock import IdSource, SystemClock
from aims.keys import KeyStoreError
from aims.server.admin import AdminDoor
from aims.server.admin_explain import ExplainCalls
from aims.server.protocol import PEER, UnixPeer
from aims.storage.database import Database
from aims.storage.write import Name


@pytest_asyncio.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> TransactionWorld:
    return await open_transaction_world(database, clock, ids)


@pytest.fixture
def answer(world: TransactionWorld) -> Answering:
    of: Any = world
    return answering(world, ExplainCalls(of).routes())


async def _asked(answer: Answering, what: str) -> dict[str, Any]:
    said: dict[str, Any] = await answer("POST", "/admin/v1/explain", {"what": what}, "")
    return said


async def test_each_kind_of_live_token_is_verified_and_whose_it_is_said(
    world: TransactionWorld, answer: Answering, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = await world.agent("researcher")
    application = world.world.application(agent.registered, instance=agent.instance)
    issued = await world.world.issue(application, proof_key=proof_jwk(agent.key.private))
    own = await world.own(agent)
    tokens = {
        "access token": own,
        "Txn-Token": (await world.ask(world.edge, own)).token,
        "JWT-SVID": await world.jwt_svid(agent),
        "WIT": issued.wit,
    }
    for kind, text in tokens.items():
        said = await _asked(answer, text)
        assert (said["kind"], said["verified"], said["expired"], said["stopped"]) == (kind, True, False, False), said
        assert said["subject"] == agent.id
        assert {"agent", "instance", "node"} <= {name["kind"] for name in said["names"]}
        assert text not in str(world.world.records())
        record = world.record()
        assert (record["type"], record["details"]) == ("admin.action", {"asked": kind, "verified": True})
    await typed(answer, monkeypatch, "explain", own)
    shown = capsys.readouterr().out
    assert f"access token of {agent.id}: issued here, its signature verifies" in shown
    assert "it is live: no stop ends it" in shown


@pytest.mark.parametrize("kind", ["agent", "grant", "instance", "node"])
async def test_every_stop_that_ends_a_token_is_named(
    world: TransactionWorld,
    answer: Answering,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: Any,
) -> None:
    agent, other = await world.agent("researcher"), await world.agent("other")
    text = await world.delegate(agent, other)
    token = await world.read(text)
    (hit,) = {Name(kind, name.id) for name in token.names if name.kind == kind and name.id != other.id}
    await world.stop(hit)
    said = await _asked(answer, text)
    assert (said["verified"], said["stopped"]) == (True, True)
    stop = {"seq": world.seq, "blocked": True}
    assert [(each["id"], each["stop"]) for each in said["names"] if each["ends"]] == [(hit.id, stop)]
    identified = await _asked(answer, hit.id)
    assert (identified["kind"], identified["known"]) == (kind, True)
    assert identified["names"][0]["stop"] == stop
    await typed(answer, monkeypatch, "explain", text)
    shown = capsys.readouterr().out
    assert "it is stopped: every call with it is refused" in shown
    assert f"{kind} {hit.id}: stopped by change {world.seq}, blocked" in shown


async def test_a_stop_that_was_lifted_still_ends_what_was_issued_before(
    world: TransactionWorld, answer: Answering
) -> None:
    agent = await world.agent("researcher")
    text = await world.own(agent)
    await world.stop(Name("agent", agent.id), blocked=False)
    assert (await _asked(answer, text))["stopped"]
    renewed = await world.run(agent.registered)
    assert not (await _asked(answer, await world.own(renewed)))["stopped"]


async def test_an_expired_token_is_told_from_one_that_does_not_verify(
    world: TransactionWorld, answer: Answering, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = await world.agent("researcher")
    text = await world.own(agent)
    now = world.clock.now()
    monkeypatch.setattr(SystemClock, "now", lambda _: now + 3600)
    said = await _asked(answer, text)
    assert (said["verified"], said["expired"], said["subject"]) == (True, True, agent.id)
    await typed(answer, monkeypatch, "explain", text)
    assert "it has expired: ask for a new one" in capsys.readouterr().out
    tampered = await _asked(answer, _tampered(text))
    assert (tampered["verified"], tampered["code"]) == (False, "authorization.token_signature")


async def test_foreign_tampered_and_garbage_are_not_verified_and_say_why(
    world: TransactionWorld, answer: Answering, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = await world.own(await world.agent("researcher"))
    head, body, tail = text.split(".")
    elsewhere = msgspec.json.decode(_decoded(body)) | {"iss": "https://elsewhere.example"}
    cases = {
        _tampered(text): "authorization.token_signature",
        ".".join((head, _encoded(msgspec.json.encode(elsewhere)), tail)): "authorization.token_issuer",
        "x" * 40 + "." + "y" * 40 + "." + "z" * 40: "jose.malformed",
    }
    for what, code in cases.items():
        said = await _asked(answer, what)
        assert (said["verified"], said["code"]) == (False, code), said
        assert "names" not in said
        await typed(answer, monkeypatch, "explain", what)
        assert f"not verified\n  why   {code}" in capsys.readouterr().out
    with pytest.raises(msgspec.ValidationError):
        await _asked(answer, "x" * 20_000)


async def test_trouble_with_our_own_keys_is_no_word_on_the_token(
    world: TransactionWorld, answer: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = await world.own(await world.agent("researcher"))

    async def away(_: TokenKeys) -> None:
        raise KeyStoreError("uri")

    monkeypatch.setattr(TokenKeys, "current", away)
    with pytest.raises(KeyStoreError):
        await _asked(answer, text)


async def test_an_agent_is_found_by_the_name_that_every_other_command_takes(
    world: TransactionWorld, answer: Answering, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = await world.agent("reader")
    by_name, by_id = [await _asked(answer, what) for what in ("reader", agent.id)]
    assert by_name == by_id
    assert (by_name["known"], by_name["kind"]) == (True, "agent")
    await typed(answer, monkeypatch, "explain", "reader")
    assert "agent" in capsys.readouterr().out


async def test_identifiers_that_nobody_knows_are_said_to_be_unknown(
    world: TransactionWorld, answer: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await world.person()
    assert (await _asked(answer, ada.sub))["known"]
    assert ada.sub not in str(world.world.records())
    for what in (f"person:{'a' * 26}", "0" * 26, f"nowhere:{'a' * 26}", "agent:nobody"):
        assert not (await _asked(answer, what))["known"]
        with pytest.raises(CliError, match=r"cli\.unknown"):
            await typed(answer, monkeypatch, "explain", what)


async def test_only_an_operator_is_told(world: TransactionWorld, tmp_path: Any) -> None:
    of: Any = world
    of.server_uid = os.geteuid()
    of.settings = type("Settings", (), {"run_dir": tmp_path})
    text = await world.own(await world.agent("researcher"))
    for uid, status in ((4_000_000, 403), (os.geteuid(), 200)):
        sent: list[Any] = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/admin/v1/explain",
            "headers": [(b"host", b"aims")],
            "extensions": {PEER: {"is": UnixPeer(os.getpid(), uid, os.getegid())}},
        }

        async def receive() -> Any:
            return {"type": "http.request", "body": msgspec.json.encode({"what": text}), "more_body": False}

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        await AdminDoor(of, ExplainCalls(of).routes())(scope, receive, send)
        assert sent[0]["status"] == status, sent


async def test_without_a_server_nothing_is_called_verified(
    world: TransactionWorld, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = await world.own(await world.agent("researcher"))
    explain(text, run_dir=tmp_path)
    assert "not verified: no server answers" in capsys.readouterr().out


def _tampered(text: str) -> str:
    head, body, tail = text.split(".")
    claims = msgspec.json.decode(_decoded(body)) | {"scope": "notes:purge"}
    return ".".join((head, _encoded(msgspec.json.encode(claims)), tail))


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()

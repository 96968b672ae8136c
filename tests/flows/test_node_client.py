"""What the node takes from its server: bounded, strict, and never older than what it knows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.flows.provisioning_world import PROFILE, World, open_world

from aims.clock import IdSource, SystemClock
from aims.errors import AimsError
from aims.identifiers import SpiffeId, TrustDomain
from aims.keys import Purpose
from aims.node import messages, server_client
from aims.node.errors import NodeError
from aims.node.server_client import MAX_ANSWER, Evidence, ServerClient, ServerRefusedError
from aims.node.server_state import ServerState
from aims.node.state import StateFolder, request_of, welcomed
from aims.provisioning.bundles import domain_bundle
from aims.storage.database import Database

DOMAIN = TrustDomain("local.test")
EVIDENCE = Evidence(kind="unix", collected_at=1, selectors=["unix:uid:1"], posture="node-uid")


def _client(handle: Callable[[httpx2.Request], httpx2.Response]) -> ServerClient:
    client = ServerClient("https://localhost:1", server_client._unverified())
    client._http = httpx2.AsyncClient(transport=httpx2.MockTransport(handle), headers=client._http.headers)
    return client


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 64 * 1024):
        yield body[at : at + 64 * 1024]


async def _token(client: ServerClient) -> server_client.IssuedToken:
    return await client.jwt_svid(entry="e", instance="n:i", audiences=["a"], jkt="j", evidence=EVIDENCE)


GOOD = {"spiffe_id": "spiffe://local.test/a", "svid": "x", "expires_at": 5}


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, b"{", "server_answer"),
        (200, b"[]", "server_answer"),
        (200, json.dumps(GOOD | {"more": 1}).encode(), "server_answer"),
        (200, json.dumps(GOOD | {"expires_at": "5"}).encode(), "server_answer"),
        (200, b'{"spiffe_id":"a","spiffe_id":"b","svid":"x","expires_at":5}', "server_answer"),
        (200, json.dumps(GOOD).encode() + b" " * MAX_ANSWER, "server_answer"),
        (302, b"", "server_answer"),
        (403, b"<html>", "server_answer"),
        (403, b'{"error":"rm -rf /","message":"","hint":""}', "server_answer"),
        (503, b'{"error":"storage.unavailable","message":"","hint":""}', "server_busy"),
        (409, b'{"error":"provisioning.changed","message":"","hint":""}', "server_busy"),
        (403, b'{"error":"provisioning.stopped","message":"","hint":""}', "server_refused"),
        (426, b'{"error":"provisioning.version","message":"","hint":""}', "server_refused"),
    ],
)
async def test_an_answer_that_is_not_the_protocols_is_refused(status: int, body: bytes, reason: str) -> None:
    headers = {"location": "https://localhost:2/"}
    client = _client(lambda _: httpx2.Response(status, content=_pieces(body), headers=headers))
    with pytest.raises(NodeError) as refusal:
        await _token(client)
    assert refusal.value.reason == reason
    await client.close()


async def test_a_refusal_carries_the_servers_code_and_nothing_that_moves_a_terminal() -> None:
    body = {"error": "provisioning.stopped", "message": "No\x1b[2J" + "!" * 500, "hint": "Ask\nsomebody."}
    client = _client(lambda _: httpx2.Response(403, content=_pieces(json.dumps(body).encode())))
    with pytest.raises(ServerRefusedError) as refusal:
        await _token(client)
    assert refusal.value.server_code == "provisioning.stopped"
    assert "provisioning.stopped: No?[2J!" in refusal.value.sentence
    assert refusal.value.sentence.isprintable()
    assert refusal.value.hint == "Ask?somebody."
    assert len(refusal.value.sentence) < 400
    await client.close()


async def test_every_call_names_its_version_and_bears_no_silence() -> None:
    seen: list[httpx2.Request] = []

    def handle(asked: httpx2.Request) -> httpx2.Response:
        seen.append(asked)
        raise httpx2.ReadTimeout("silence")

    client = _client(handle)
    with pytest.raises(NodeError) as refusal:
        await _token(client)
    assert refusal.value.code == "node.server_unreachable"
    with pytest.raises(NodeError) as refusal:
        await anext(client.watch(3.0))
    assert refusal.value.code == "node.server_unreachable"
    assert [asked.headers["aims-node-version"] for asked in seen] == ["1", "1"]
    assert seen[1].extensions["timeout"]["read"] == 3.0
    await client.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=8).map(lambda line: line.replace(b"\n", b"-")), max_size=8), st.data())
async def test_lines_do_not_depend_on_how_they_were_cut(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(line + b"\n" for line in lines) + b"rest"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    async def chunks() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    assert [line async for line in server_client._lines(chunks())] == lines


async def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_client, "MAX_LINE", 100)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 30

    with pytest.raises(NodeError) as refusal:
        await anext(server_client._lines(chunks()))
    assert refusal.value.code == "node.server_answer"


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> World:
    world = await open_world(database, clock, ids)
    await world.owner()
    await world.node("laptop")
    await world.agent()
    return world


def _document(world: World, **more: Any) -> dict[str, Any]:
    registry = world.registry
    document = {
        "type": "state",
        "seq": registry.seq,
        "entries": [registry.entry_message(entry) for entry in registry.entries_for("laptop")],
        "bundle": msgspec.json.decode(domain_bundle(world.keeper.authority).build()),
        "stops": [],
        "settings": {"trust_domain": "local.test", "max_stale": 10, "heartbeat": 2},
    }
    return document | more


def _apply(state: ServerState, document: dict[str, Any], *, first: bool = False) -> None:
    state.apply(messages.read(msgspec.json.encode(document), DOMAIN), first=first)


async def test_a_line_that_is_malformed_is_refused_whole(world: World) -> None:
    good = _document(world)
    messages.read(msgspec.json.encode(good), DOMAIN)
    (entry,) = good["entries"]
    stop = {"kind": "agent", "id": "spiffe://local.test/agents/a", "seq": 1, "blocked": True}
    profile = entry["profile"]
    for bad in (
        good | {"type": "more"},
        good | {"type": ["state"]},
        good | {"more": 1},
        good | {"seq": -1},
        good | {"seq": 2**53},
        good | {"seq": "1"},
        good | {"entries": [entry | {"spiffe_id": "spiffe://other.test/agents/a"}]},
        good | {"entries": [entry | {"spiffe_id": "spiffe://local.test"}]},
        good | {"entries": [entry | {"selectors": []}]},
        good | {"entries": [entry | {"state": "retired"}]},
        good | {"entries": [entry | {"profile": profile | {"executable": "b"}}]},
        good | {"entries": [entry | {"profile": profile | {"more": 1}}]},
        good | {"bundle": {"keys": []}},
        good | {"stops": [stop | {"kind": "fleet"}]},
        good | {"stops": [stop | {"blocked": 1}]},
        good | {"settings": good["settings"] | {"trust_domain": "other.test"}},
        good | {"settings": good["settings"] | {"max_stale": 10**6}},
        good | {"settings": good["settings"] | {"heartbeat": 0}},
    ):
        with pytest.raises(NodeError) as refusal:
            messages.read(msgspec.json.encode(bad), DOMAIN)
        assert refusal.value.code == "node.server_answer"


async def test_numbers_never_go_back_and_every_stream_begins_with_the_state(world: World) -> None:
    state = ServerState(DOMAIN, world.clock)
    seq = world.registry.seq
    changes: list[int] = []
    state.on_change(lambda: changes.append(state.seq))
    for line in (
        {"type": "heartbeat", "seq": seq},
        {"type": "entries", "seq": seq, "set": [], "removed": []},
    ):
        with pytest.raises(NodeError):
            _apply(state, line)
        assert not state.known
    _apply(state, _document(world), first=True)
    _apply(state, {"type": "heartbeat", "seq": seq + 3})
    assert (state.known, changes) == (True, [seq])
    for behind in (
        {"type": "heartbeat", "seq": seq + 2},
        {"type": "stop", "kind": "agent", "id": "spiffe://local.test/agents/a", "seq": seq, "blocked": False},
        {"type": "entries", "seq": seq + 2, "set": [], "removed": []},
        _document(world),  # a server that is behind, or a restored backup
    ):
        with pytest.raises(NodeError) as refusal:
            _apply(state, behind)
        assert (refusal.value.code, state.known) == ("node.server_answer", False)
        _apply(state, _document(world, seq=seq + 3), first=True)
    with pytest.raises(NodeError):
        _apply(state, {"type": "heartbeat", "seq": seq + 3}, first=True)
    rolled_back = _document(world)["bundle"]
    rolled_back["spiffe_sequence"] -= 1
    with pytest.raises(NodeError) as refusal:
        _apply(state, {"type": "bundle", "seq": seq + 3, "bundle": rolled_back})
    assert (refusal.value.code, state.known) == ("node.server_answer", False)


async def test_launches_are_approved_only_by_what_the_server_confirmed_lately(world: World) -> None:
    state = ServerState(DOMAIN, world.clock)
    with pytest.raises(NodeError) as refusal:
        state.approved("researcher")
    assert refusal.value.code == "node.state_unknown"
    document = _document(world)
    (entry,) = document["entries"]
    _apply(state, document)
    approved = state.approved("researcher")
    assert approved is not None
    assert approved.profile == PROFILE
    assert approved.launch_uids == frozenset({1000})
    assert state.approved("nobody") is None
    world.clock.offset += 11
    with pytest.raises(NodeError) as refusal:
        state.approved("researcher")
    assert refusal.value.code == "node.state_unknown"
    # another profile than the selectors demand, none, a suspended agent: nothing may be started
    for bad in (
        entry | {"selectors": ["launch:profile:" + "0" * 64]},
        entry | {"profile": None},
    ):
        _apply(state, document | {"entries": [bad]})
        assert state.approved("researcher") is None
    _apply(state, document | {"entries": [entry | {"state": "suspended"}]})
    with pytest.raises(NodeError) as refusal:
        state.approved("researcher")
    assert (refusal.value.code, refusal.value.hint) == ("node.stopped", "Its owner can: aims agent resume researcher")
    _apply(state, document | {"entries": [entry | {"profile": None, "selectors": ["launch:unmeasured"]}]})
    approved = state.approved("researcher")
    assert approved is not None
    assert approved.profile == "unmeasured"
    stop = {"kind": "agent", "id": entry["spiffe_id"], "seq": 1, "blocked": True}
    _apply(state, document | {"stops": [stop]})
    with pytest.raises(NodeError) as refusal:
        state.approved("researcher")
    assert refusal.value.code == "node.stopped"
    assert "is suspended" in refusal.value.sentence
    # a retired one has no entries left, and is not one that was never registered
    _apply(state, document | {"stops": [stop], "entries": []})
    with pytest.raises(NodeError) as refusal:
        state.approved("researcher")
    assert refusal.value.code == "node.stopped"
    assert "is retired" in refusal.value.sentence
    assert state.approved("nobody") is None
    _apply(state, document)
    state.refused()
    assert state.approved("researcher") is None


async def test_the_stored_identity_counts_only_whole_private_and_in_time(
    world: World, clock: SystemClock, tmp_path: Path
) -> None:
    folder = StateFolder(tmp_path / "node", clock)
    assert await folder.load() is None
    key = await folder.keys.create(Purpose.NODE)
    token = await world.token("desk")
    spiffe_id = SpiffeId.node(DOMAIN, "desk")
    body = {"secret": _text(token.secret), "node": "desk", "csr": _text(request_of(key))}
    status, octets = await world.routes()["join"].handle(msgspec.json.encode(body), None)
    assert status == 200
    welcome = msgspec.json.decode(octets, type=server_client.Welcome)

    def taken(**more: Any) -> Any:
        fields: dict[str, Any] = {
            "spiffe_id": spiffe_id,
            "key": key,
            "public_url": token.url,
            "ca": token.ca,
            "now": clock.now(),
        }
        changed = {name: more.pop(name) for name in ("mtls_url", "trust_domain", "bundle") if name in more}
        return welcomed(msgspec.structs.replace(welcome, **changed), **(fields | more))

    # the answer must be about this node, this key and this trust domain
    other_key = await folder.keys.create(Purpose.NODE)
    strangers: tuple[dict[str, Any], ...] = (
        {"spiffe_id": SpiffeId.node(DOMAIN, "laptop")},
        {"spiffe_id": SpiffeId.node(TrustDomain("other.test"), "desk")},
        {"key": other_key},
        {"trust_domain": "other.test"},
        {"mtls_url": "http://localhost:1"},
        {"mtls_url": "https://localhost:1/path"},
        {"bundle": {"keys": []}},
    )
    for bad in strangers:
        with pytest.raises(NodeError) as refusal:
            taken(**bad)
        assert refusal.value.code == "node.server_answer", bad

    identity = taken()
    await folder.save(identity)
    assert await folder.keys.kids(Purpose.NODE) == (key.kid,)
    loaded = await folder.load()
    assert loaded is not None
    assert (loaded.node, loaded.svid.serial, loaded.bundle) == ("desk", identity.svid.serial, identity.bundle)
    assert loaded.came_by(token)
    assert not loaded.came_by(dataclasses.replace(token, url="https://localhost:2"))
    assert "PRIVATE" not in repr(loaded)

    document = tmp_path / "node" / "node.json"
    assert document.stat().st_mode & 0o777 == 0o600
    clock.offset += 3700
    assert (await _refused(folder)).code == "node.identity_expired"
    clock.offset -= 3700
    whole = document.read_bytes()
    for damaged in (
        whole[:-1],
        whole.replace(b"desk", b"dusk"),
        b"{}",
        whole.replace(b'"version":1', b'"version":"1"'),
    ):
        document.write_bytes(damaged)
        assert (await _refused(folder)).code == "node.identity_unusable"
    document.write_bytes(whole)
    document.chmod(0o644)
    assert (await _refused(folder)).code == "node.node_folder"
    document.chmod(0o600)
    # what a killed node left behind is no identity, and goes
    (tmp_path / "node" / ".new-0").write_bytes(b"half")
    await folder.save(identity)
    assert sorted(path.name for path in (tmp_path / "node").iterdir()) == ["keys", "node.json", "node.lock"]
    await folder.keys.destroy(Purpose.NODE, key.kid)
    assert (await _refused(folder)).code == "node.identity_unusable"
    folder.close()


async def _refused(folder: StateFolder) -> AimsError:
    with pytest.raises(AimsError) as refusal:
        await folder.load()
    return refusal.value


def _text(octets: bytes) -> str:
    from aims.jose import base64url

    return base64url.encode(octets).decode()

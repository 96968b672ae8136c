"""The signal exchange as a worker serves it: pushed events, keys, metadata, and the administrator's calls."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from tests.faults.test_provisioning_audit import _close_the_audit as close_the_audit
from tests.flows.command_world import answering, typed
from tests.flows.monitoring_world import IDP, transmitters
from tests.properties.hostile import LocalKey, compact, dump

from aims.clock import IdSource, SystemClock
from aims.jose.jwk import public_jwk
from aims.jose.jwks import build_jwks, parse_jwks
from aims.monitoring.events import ACCOUNT_DISABLED, ACCOUNT_ENABLED, SESSION_REVOKED
from aims.monitoring.set import MAX_OCTETS, PROFILE
from aims.policy.bundle import Bundle
from aims.provisioning.registry.model import State
from aims.server.admin import AdminDoor
from aims.server.admin_monitoring import MonitoringCalls
from aims.server.admin_registry import RegistryCalls
from aims.server.core import Core
from aims.server.http import Listener
from aims.server.monitoring_routes import EVENTS, JWKS, METADATA, monitoring_of, monitoring_routes
from aims.server.policy_activation import activate
from aims.server.protocol import PEER, UnixPeer
from aims.server.settings import Settings, make_private
from aims.storage.database import Database
from aims.storage.write import Name, Write

ME = UnixPeer(os.getpid(), os.geteuid(), os.getegid())
AGENT = "spiffe://local.test/agents/researcher"
KEY = LocalKey.new("ES256", "idp-1")
JSON = b"application/json"


class Server:
    """One worker's public listener and administrator's door, without sockets."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._public = Listener(frozenset({"localhost:8440"}), monitoring_routes(core))
        self._door = AdminDoor(core, (*RegistryCalls(core).routes(), *MonitoringCalls(core).routes()))

    async def _send(self, app: Any, scope: dict[str, Any], body: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]

    async def public(
        self, method: str, path: str, body: bytes = b"", media_type: bytes = b"application/secevent+jwt"
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        headers = [(b"host", b"localhost:8440"), (b"content-type", media_type)]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": ("127.0.0.1", 5)}
        return await self._send(self._public, scope, body)

    async def admin(self, path: str, body: object = None, method: str = "POST", peer: UnixPeer = ME) -> tuple[int, Any]:
        scope = {
            "type": "http",
            "method": method,
            "path": f"/admin/v1/{path}",
            "headers": [(b"host", b"aims")],
            "extensions": {PEER: {"is": peer}},
        }
        octets = b"" if body is None else msgspec.json.encode(body)
        status, _, answer = await self._send(self._door, scope, octets)
        await self.settled()
        return status, msgspec.json.decode(answer)

    async def settled(self) -> None:
        """Wait until memory has seen every change."""
        head = self.core.database.reader.head()
        async with asyncio.timeout(10):
            while self.core.database.feed.head < head:  # noqa: ASYNC110  the feed runs on a thread of its own
                await asyncio.sleep(0.01)

    def token(self, event: str, payload: object = None, **more: Any) -> bytes:
        claims: dict[str, Any] = {
            "iss": IDP,
            "jti": self.core.ids.new(),
            "iat": int(self.core.clock.now()),
            "aud": f"{self.core.public_url}/signals",
            "sub_id": {"format": "uri", "uri": AGENT},
            "events": {event: payload or {}},
        }
        header = {"alg": "ES256", "kid": KEY.kid, "typ": "secevent+jwt"}
        return compact(dump(header), dump(claims | more), KEY.sign_now).encode("ascii")

    @property
    def state(self) -> State:
        return self.core.registry.workload("researcher").state


@pytest_asyncio.fixture
async def server(database: Database, tmp_path: Path, clock: SystemClock, ids: IdSource) -> AsyncIterator[Server]:
    files = dict(Bundle.shipped().files)
    transmitters(files)
    plan = activate(
        Bundle.from_files(files),
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
        await core.keeper.open()
    server = Server(core)
    assert (await server.admin("owners", {"name": "team-a"}))[0] == 200
    assert (await server.admin("agents", {"name": "researcher", "owner": "team-a"}))[0] == 200
    jwks = build_jwks([public_jwk(KEY.private.public_key(), kid=KEY.kid, alg="ES256")]).decode("ascii")
    status, answer = await server.admin("transmitters", {"issuer": IDP, "jwks": jwks})
    assert (status, answer) == (200, {"issuer": IDP, "kids": ["idp-1"]})
    yield server


async def test_a_pushed_event_is_accepted_with_an_empty_202(server: Server) -> None:
    token = server.token(ACCOUNT_DISABLED)
    for _ in range(2):
        status, _, body = await server.public("POST", EVENTS, token)
        assert (status, body) == (202, b"")
        await server.settled()
        assert server.state is State.SUSPENDED
    fenced = Write(record=lambda _: b"{}", names=(Name("agent", AGENT),), seen=server.core.seq)
    assert (await server.core.database.commit(fenced)).verdict == "stopped"


async def test_a_refused_event_says_why_in_the_form_of_the_rfc(server: Server) -> None:
    for body, err in (
        (b"garbage", "invalid_request"),
        (server.token(ACCOUNT_DISABLED, aud="https://other.example"), "invalid_audience"),
        (server.token(ACCOUNT_DISABLED, iss="https://evil.example"), "invalid_issuer"),
        (server.token(ACCOUNT_DISABLED, sub_id={"format": "uri", "uri": "spiffe://x.test/agents/a"}), "access_denied"),
    ):
        status, headers, answer = await server.public("POST", EVENTS, body)
        assert (status, headers[b"content-type"], headers[b"content-language"]) == (400, JSON, b"en")
        said = msgspec.json.decode(answer)
        assert said.keys() == {"err", "description"}
        assert said["err"] == err
    assert (await server.public("POST", EVENTS, server.token(ACCOUNT_DISABLED), JSON))[0] == 415
    assert (await server.public("POST", EVENTS, b"x" * (MAX_OCTETS + 2)))[0] == 413
    assert (await server.public("GET", EVENTS))[0] == 405
    assert server.state is State.ACTIVE


async def test_a_transmitter_over_its_rate_is_told_to_wait(server: Server) -> None:
    answers = [await server.public("POST", EVENTS, server.token(SESSION_REVOKED)) for _ in range(130)]
    over = [headers for status, headers, _ in answers if status == 429]
    assert over
    assert {status for status, _, _ in answers} == {202, 429}
    assert all(headers[b"retry-after"] == b"1" for headers in over)


async def test_trouble_of_ours_is_not_called_a_fault_of_the_event(server: Server, database_url: str) -> None:
    close_the_audit(database_url)
    token = server.token(ACCOUNT_DISABLED)
    status, headers, body = await server.public("POST", EVENTS, token)
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert b"invalid" not in body
    assert server.state is State.ACTIVE


async def test_the_transmitters_metadata_lists_what_is_served_and_nothing_else(server: Server) -> None:
    status, _, body = await server.public("GET", METADATA)
    document = msgspec.json.decode(body)
    assert status == 200
    assert document == {
        "spec_version": "1_0",
        "issuer": "https://localhost:8440/signals",
        "jwks_uri": "https://localhost:8440/signals/jwks",
        "delivery_methods_supported": ["urn:ietf:rfc:8935"],
        "default_subjects": "ALL",
    }
    status, _, body = await server.public("GET", JWKS)
    keys = parse_jwks(body).keys("sig")
    assert status == 200
    assert len(keys) == 1
    assert all(key.algorithms & PROFILE.algorithms for key in keys)
    assert b'"d"' not in body


async def test_an_administrator_rules_the_life_of_an_agent(server: Server) -> None:
    for word, state in (("suspend", State.SUSPENDED), ("resume", State.ACTIVE), ("revoke", State.ACTIVE)):
        status, answer = await server.admin(f"agents/{word}", {"name": "researcher"})
        assert (status, answer["remedy"], answer["applied"], answer["id"]) == (200, word, "done", AGENT)
        assert server.state is state
        assert answer["seq"] == server.core.seq
    status, answer = await server.admin("agents/resume", {"name": AGENT})
    assert (status, answer["applied"]) == (200, "already")
    status, answer = await server.admin("agents/suspend", {"name": "nobody"})
    assert (status, answer["error"]) == (400, "provisioning.identity_unknown")
    status, answer = await server.admin("agents/quarantine", {"instance": "local:" + "a" * 26, "name": "researcher"})
    assert (status, answer["kind"], answer["applied"]) == (200, "instance", "done")
    status, answer = await server.admin("agents/quarantine", {"instance": "local:" + "b" * 26})
    assert (status, answer["error"]) == (400, "monitoring.instance_unknown")
    assert (await server.admin("agents/retire", {"name": "researcher"}))[1]["applied"] == "done"
    assert server.state is State.RETIRED
    status, answer = await server.admin("agents/resume", {"name": "researcher"})
    assert (status, answer["error"]) == (400, "provisioning.identity_retired")


async def test_an_administrator_maps_and_stops_people(server: Server) -> None:
    subject = {"format": "iss_sub", "iss": IDP, "sub": "00u-alice"}
    status, answer = await server.admin("people/map", {"issuer": IDP, "subject": subject})
    alice = answer["person"]
    assert (status, alice[:7]) == (200, "person:")
    status, answer = await server.admin("people/map", {"issuer": IDP, "subject": subject, "person": alice})
    assert (status, answer["person"]) == (200, alice)
    status, answer = await server.admin(
        "people/map", {"issuer": IDP, "subject": subject, "person": "person:" + "0" * 26}
    )
    assert (status, answer["error"]) == (400, "monitoring.person_unknown")
    for word in ("stop", "revoke", "resume"):
        status, answer = await server.admin(f"people/{word}", {"person": alice})
        assert (status, answer["applied"]) == (200, "already" if word == "revoke" else "done")
    pushed = server.token(ACCOUNT_DISABLED, sub_id=subject)
    assert (await server.public("POST", EVENTS, pushed))[0] == 202
    await server.settled()
    assert server.core.stops[Name("person", alice)].blocked


async def test_transmitters_and_the_receiver_are_an_administrators_and_followed_at_once(server: Server) -> None:
    _, listed = await server.admin("transmitters", method="GET")
    assert [(row["issuer"], row["strongest"]) for row in listed] == [(IDP, "suspend")]
    body = {"url": "https://localhost:9999/events", "audience": "https://rp.example", "private": True}
    status, answer = await server.admin("receiver", body)
    assert (status, answer["events"]) == (200, [SESSION_REVOKED])
    receiver = monitoring_of(server.core).peers.receiver
    assert receiver is not None
    assert receiver.private
    assert (await server.admin("receiver", method="GET"))[1]["url"] == body["url"]
    assert (await server.admin("receiver", body | {"url": "http://x/"}))[1]["error"] == "monitoring.receiver_malformed"
    assert (await server.admin("transmitters/remove", {"issuer": IDP}))[0] == 200
    status, _, answer = await server.public("POST", EVENTS, server.token(ACCOUNT_DISABLED))
    assert (status, msgspec.json.decode(answer)["err"]) == (400, "invalid_issuer")


async def test_nobody_but_an_operator_stops_anybody(server: Server) -> None:
    stranger = UnixPeer(os.getpid(), 4_000_000, 4_000_000)
    paths = [route.path.removeprefix("/admin/v1/") for route in MonitoringCalls(server.core).routes() if route.writes]
    assert len(paths) > 10
    for path in paths:
        assert (await server.admin(path, {}, peer=stranger))[0] == 403
    assert server.state is State.ACTIVE


async def test_what_only_the_door_resumed_stays_so_for_an_old_event(server: Server) -> None:
    then = server.core.clock.now() - 5
    assert (await server.public("POST", EVENTS, server.token(ACCOUNT_DISABLED, {"event_timestamp": then})))[0] == 202
    await server.settled()
    assert (await server.admin("agents/resume", {"name": "researcher"}))[1]["applied"] == "done"
    late = server.token(ACCOUNT_DISABLED, {"event_timestamp": then + 1})
    assert (await server.public("POST", EVENTS, late))[0] == 202
    await server.settled()
    assert server.state is State.ACTIVE
    assert (await server.public("POST", EVENTS, server.token(ACCOUNT_ENABLED)))[0] == 202


async def test_a_command_shows_who_gets_our_events(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = answering(server.core, MonitoringCalls(server.core).routes())
    await typed(answer, monkeypatch, "signals", "receiver")
    assert "nobody gets our events" in capsys.readouterr().out
    receiver = {"url": "https://hears.example/events", "audience": "https://hears.example", "private": True}
    assert (await server.admin("receiver", receiver))[0] == 200
    await typed(answer, monkeypatch, "signals", "receiver")
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "https://hears.example/events  audience https://hears.example"
    assert shown[1:] == [f"  {SESSION_REVOKED}", "  its address may be private or loopback"]

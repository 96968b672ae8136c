"""The node protocol's handlers: strict bodies, names from certificates alone, refusals that say no more than needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.flows.provisioning_world import DOMAIN, PROFILE, World, cause, open_world, proof_jwk, request

from aims.clock import IdSource, SystemClock
from aims.credentials import x509_svid
from aims.credentials.bundle import Bundle, BundleSet
from aims.credentials.model import Fence
from aims.credentials.x509_svid import X509Svid
from aims.identifiers import SpiffeId, TrustDomain
from aims.jose import base64url
from aims.provisioning.routes import JOINS_PER_SECOND, MAX_BODY, node_of, version_refusal
from aims.storage.database import Database
from aims.storage.write import Name
from aims.x509 import parse_csr, parse_pem


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> World:
    world = await open_world(database, clock, ids)
    await world.owner()
    await world.node("laptop")
    return world


def _b64(octets: bytes) -> str:
    return base64url.encode(octets).decode()


def _certificate(world: World, spiffe_id: SpiffeId) -> X509Svid:
    return world.keeper.authority.sign_x509(
        spiffe_id,
        public_key=parse_csr(request()),
        serial=7,
        now=int(world.clock.now()),
        lifetime=60,
        fence=Fence("laptop:" + "a" * 26, 0),
    )


def _node(world: World, name: str = "laptop") -> X509Svid:
    return _certificate(world, SpiffeId.node(DOMAIN, name))


async def _call(world: World, name: str, body: object, peer: X509Svid | None) -> tuple[int, Any]:
    octets = body if isinstance(body, bytes) else msgspec.json.encode(body)
    status, answer = await world.routes()[name].handle(octets, peer)
    world.follow()
    return status, msgspec.json.decode(answer)


async def _issue_body(world: World, **more: Any) -> dict[str, Any]:
    if "entry" not in more:
        registered = await world.agent()
        assert registered.entry is not None
        more["entry"] = registered.entry.id
    return {
        "instance": world.instance(),
        "csr": _b64(request()),
        "proof_key": proof_jwk(),
        "evidence": {
            "kind": "launch",
            "collected_at": int(world.clock.now()),
            "selectors": [str(PROFILE.selector())],
            "posture": "shared-uid",
            "measurement": {"argv": ["/usr/bin/python3"]},
        },
    } | more


async def test_a_node_joins_renews_and_issues_over_the_wire(world: World) -> None:
    token = await world.token("desk")
    status, ca = await world.routes()["ca"].handle(b"", None)
    assert status == 200
    assert parse_pem(ca) == (world.keeper.authority.tls_ca,)
    body = {"secret": _b64(token.secret), "node": "desk", "csr": _b64(request())}
    status, joined = await _call(world, "join", body, None)
    assert status == 200
    assert set(joined) == {"spiffe_id", "svid", "bundle", "mtls_url", "trust_domain", "expires_at"}
    bundle = Bundle.parse(TrustDomain(joined["trust_domain"]), msgspec.json.encode(joined["bundle"]))
    chain = [base64url.decode(each.encode()) for each in joined["svid"]]
    peer = x509_svid.validate(chain, BundleSet([bundle]), now=world.clock.now(), own=DOMAIN)
    assert str(peer.spiffe_id) == joined["spiffe_id"] == "spiffe://local.test/nodes/desk"
    status, renewed = await _call(world, "renew", {"csr": _b64(request())}, peer)
    assert status == 200
    assert set(renewed) == set(joined) - {"trust_domain"}
    registered = await world.agent(nodes=frozenset({"desk"}))
    assert registered.entry is not None
    wanted = await _issue_body(world, entry=registered.entry.id, instance=world.instance("desk"))
    status, issued = await _call(world, "issue", wanted, peer)
    assert status == 200
    assert set(issued) == {"spiffe_id", "svid", "wit", "epoch", "expires_at"}
    asked = {name: wanted[name] for name in ("entry", "instance", "evidence")} | {"audiences": ["https://tool.example"]}
    status, token_answer = await _call(world, "jwt-svid", asked, peer)
    assert status == 200
    assert set(token_answer) == {"spiffe_id", "svid", "expires_at"}
    report = {
        "entry": registered.entry.id,
        "instance": wanted["instance"],
        "event": "start",
        "detail": {"pid": 4711, "posture": "shared-uid", "program": "/opt/a.py"},
    }
    assert await _call(world, "launched", report, peer) == (200, {})
    record = world.last_record()
    assert record["type"] == "launch.start"
    assert record["agent"] == {"id": str(registered.workload.spiffe_id), "instance": wanted["instance"]}
    assert record["details"]["pid"] == 4711
    assert record["posture"]["level"] == "shared-uid"
    assert await _call(world, "launched", report | {"event": "end", "detail": {"reason": "exit 0"}}, peer) == (200, {})
    assert world.last_record()["cause"] == {"reason": "exit 0"}


async def test_the_name_comes_from_the_certificate_alone(world: World) -> None:
    wanted = await _issue_body(world)
    own = _node(world)
    peers: tuple[X509Svid | None, ...] = (
        None,
        _certificate(world, SpiffeId.agent(DOMAIN, "laptop")),
        _certificate(world, SpiffeId.build(DOMAIN, "nodes", "laptop", "sub")),
        _certificate(world, SpiffeId.service(DOMAIN, "aims")),
        replace(own, spiffe_id=SpiffeId.parse("spiffe://other.test/nodes/laptop")),
        replace(own, fence=None),
    )
    for peer in peers:
        for name in ("issue", "jwt-svid", "renew", "launched"):
            status, answer = await _call(world, name, wanted, peer)
            assert (status, answer["error"]) == (401, "provisioning.peer_not_a_node")
            record = world.last_record()
            assert record["type"] == "node.refuse"
            assert (record["agent"] is None) == (peer is None)
    status, answer = await _call(world, "issue", wanted, _node(world, "desk"))
    assert status == 403
    assert world.last_record()["agent"] == {"id": "spiffe://local.test/nodes/desk"}
    assert node_of(_node(world), DOMAIN) == "laptop"


async def test_a_body_that_is_not_the_protocols_is_refused_and_recorded(world: World) -> None:
    good = await _issue_body(world)
    text = msgspec.json.encode(good)
    bodies: tuple[bytes, ...] = (
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        text[:-1] + b',"node":"desk"}',
        text[:-1] + b',"instance":"laptop:x"}',
        msgspec.json.encode({name: value for name, value in good.items() if name != "csr"}),
        msgspec.json.encode(good | {"instance": 5}),
        msgspec.json.encode(good | {"csr": "AA=="}),
        msgspec.json.encode(good | {"csr": "A"}),
        msgspec.json.encode(good | {"proof_key": "x"}),
        msgspec.json.encode(good | {"evidence": good["evidence"] | {"collected_at": "1"}}),
        msgspec.json.encode(good | {"evidence": good["evidence"] | {"collected_at": 1.5}}),
        msgspec.json.encode(good | {"evidence": good["evidence"] | {"trust": "full"}}),
        b'{"entry":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"entry":"' + b"a" * MAX_BODY + b'"}',
        text.replace(b'"shared-uid"', b'"\\ud800"'),
    )
    for body in bodies:
        status, answer = await _call(world, "issue", body, _node(world))
        assert (status, answer["error"]) == (400, "provisioning.request_malformed"), body[:80]
        assert set(answer) == {"error", "message", "hint"}
        record = world.last_record()
        assert record["type"] == "node.refuse"
        assert record["decision"]["reason"] == "provisioning.request_malformed"
    assert (await _call(world, "issue", good, _node(world)))[0] == 200


async def test_a_process_that_hears_of_no_changes_issues_nothing_and_records_it(world: World) -> None:
    issue = await _issue_body(world)
    token = {name: issue[name] for name in ("entry", "instance", "evidence")} | {"audiences": ["a"]}
    asked = {"issue": issue, "jwt-svid": token, "renew": {"csr": _b64(request())}}
    world.current = False
    for name, body in asked.items():
        status, answer = await _call(world, name, body, _node(world))
        assert (status, answer["error"]) == (503, "provisioning.behind")
        last = world.records()[-1]
        assert (last["type"], last["decision"]["reason"]) == ("node.refuse", "provisioning.behind")
    world.current = True
    for name, body in asked.items():
        assert (await _call(world, name, body, _node(world)))[0] == 200


async def test_a_refusal_shows_code_and_hint_and_never_the_detail(world: World) -> None:
    wanted = await _issue_body(world)
    evidence = wanted["evidence"] | {"selectors": ["unix:uid:1"]}
    status, answer = await _call(world, "issue", wanted | {"evidence": evidence}, _node(world))
    assert (status, answer["error"]) == (403, "provisioning.evidence_mismatch")
    assert str(PROFILE.selector()) not in str(answer)
    for change, status in (
        ({"csr": "AAAA"}, 400),
        ({"evidence": wanted["evidence"] | {"kind": "tpm"}}, 400),
        ({"evidence": wanted["evidence"] | {"posture": "x"}}, 403),
        ({"instance": "desk:" + "a" * 26}, 400),
        ({"entry": "x"}, 403),
    ):
        assert (await _call(world, "issue", wanted | change, _node(world)))[0] == status


async def test_a_report_of_a_launch_is_of_the_nodes_own_and_bounded(world: World) -> None:
    registered = await world.agent(nodes=frozenset({"desk"}))
    assert registered.entry is not None
    own = await world.agent("own")
    assert own.entry is not None
    good: dict[str, Any] = {"entry": own.entry.id, "instance": world.instance(), "event": "start", "detail": {}}
    for change, code in (
        ({"entry": registered.entry.id}, "node_not_bound"),
        ({"instance": world.instance("desk")}, "instance_malformed"),
        ({"event": "pause"}, "request_malformed"),
        ({"detail": {f"k{n}": 1 for n in range(13)}}, "request_malformed"),
        ({"detail": {"text": "x" * 600}}, "request_malformed"),
        ({"detail": {"x": {"deep": 1}}}, "request_malformed"),
    ):
        status, answer = await _call(world, "launched", good | change, _node(world))
        assert answer["error"] == f"provisioning.{code}"
        assert status >= 400
    assert (await _call(world, "launched", good, _node(world)))[0] == 200
    refused = good | {"event": "refuse", "detail": {"reason": "node.launch_mismatch", "uid": 1000, "more": 3}}
    assert (await _call(world, "launched", refused, _node(world)))[0] == 200
    record = world.last_record()
    assert (record["type"], record["outcome"], record["agent"]) == ("launch.refuse", "refused", None)
    assert (record["node"], record["resource"]) == ("laptop", "spiffe://local.test/agents/own")
    assert record["decision"]["effect"] == "deny"
    assert record["cause"]["reason"] == "node.launch_mismatch"
    assert record["details"]["more"] == 3


async def test_a_banned_node_reports_no_launches(world: World) -> None:
    registered = await world.agent()
    assert registered.entry is not None
    report: dict[str, Any] = {"entry": registered.entry.id, "instance": world.instance(), "detail": {}}
    await world.commit(world.admin.ban_node(node_id="laptop", cause=cause()))
    for event in ("start", "end", "refuse"):
        status, answer = await _call(world, "launched", report | {"event": event}, _node(world))
        assert (status, answer["error"]) == (403, "provisioning.node_banned")
        record = world.last_record()
        assert (record["type"], record["outcome"]) == ("node.refuse", "refused")
        assert record["agent"] == {"id": "spiffe://local.test/nodes/laptop"}


@pytest.mark.parametrize("event", ["start", "end", "refuse"])
@pytest.mark.parametrize("which", ["agent", "node", "instance"])
async def test_a_stop_that_races_with_a_report_of_a_start_wins(world: World, which: str, event: str) -> None:
    registered = await world.agent()
    assert registered.entry is not None
    instance = world.instance()
    names = {
        "agent": Name("agent", str(registered.workload.spiffe_id)),
        "node": Name("node", "laptop"),
        "instance": Name("instance", instance),
    }
    await world.stop(names[which])  # committed, and not read by this process
    report = msgspec.json.encode({"entry": registered.entry.id, "instance": instance, "event": event, "detail": {}})
    status, answer = await world.routes()["launched"].handle(report, _node(world))
    record = world.last_record()
    if event == "start" or which == "node":
        assert (status, msgspec.json.decode(answer)["error"]) == (403, "provisioning.stopped")
        assert (record["type"], record["outcome"]) == ("node.refuse", "refused")
        assert record["decision"]["reason"] == "storage.stopped"
        assert record["cause"]["event"] == f"{which}:{names[which].id}"
    else:  # what a stop leads to is told in spite of it
        assert (status, answer) == (200, b"{}")
        assert record["type"] == f"launch.{event}"


async def test_strangers_cannot_fill_the_log(world: World, clock: SystemClock) -> None:
    clock.offset += 1 - clock.monotonic() % 1
    routes = world.routes()
    before = len(world.records())
    body = msgspec.json.encode({"secret": _b64(bytes(32)), "node": "laptop", "csr": _b64(request())})
    tries = JOINS_PER_SECOND + 7
    answers = [(await routes["join"].handle(body, None))[0] for _ in range(tries)]
    records = world.records()[before:]
    # the second may have turned over meanwhile, which lets ten more in
    assert answers.count(401) == len([record for record in records if record["type"] == "node.refuse"])
    assert answers.count(401) + answers.count(503) == tries
    assert answers.count(503) <= 7
    refused = answers.count(503)
    clock.offset += 1
    assert (await routes["join"].handle(body, None))[0] == 401
    floods = [record["flood"] for record in world.records()[before:] if record["type"] == "request.refuse"]
    assert sum(flood["count"] for flood in floods) == refused
    assert refused > 0


def test_another_version_is_refused_with_a_sentence() -> None:
    assert version_refusal("1") is None
    for header in (None, "", "2", "1.0", "01"):
        answer = version_refusal(header)
        assert answer is not None
        assert answer[0] == 426
        assert msgspec.json.decode(answer[1])["error"] == "provisioning.version"

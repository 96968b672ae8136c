"""The pipeline on both back ends: what is issued, to whom, for how long, and everything that must stop it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tests.flows.provisioning_world import DOMAIN, ISSUER, PROFILE, World, cause, open_world, policy, proof_jwk, request

from aims.attestation import Selector
from aims.clock import IdSource, SystemClock
from aims.credentials import jwt_svid, wit, x509_svid
from aims.credentials.bundle import BundleSet
from aims.errors import AimsError
from aims.jose.jwk import private_jwk, public_jwk, thumbprint
from aims.keys import Purpose
from aims.provisioning.bundles import domain_bundle
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.registry.model import Kind, State
from aims.provisioning.registry.service import Demand, Registered, state_change
from aims.storage.database import Database
from aims.storage.write import Name, Write

TOOL = "https://tool.example"


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> World:
    world = await open_world(database, clock, ids)
    await world.owner()
    await world.node("laptop")
    await world.node("desk")
    return world


async def _refused(world: World, wanted: Any) -> tuple[str, dict[str, Any]]:
    with pytest.raises(AimsError) as refusal:
        await wanted
    return refusal.value.code, world.last_record()


async def test_one_call_gives_certificate_and_token_of_one_instance_in_one_record(world: World) -> None:
    agent = await world.agent()
    tls_key, proof_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    application = world.application(agent)
    before = len(world.records())
    epoch = world.registry.seq
    issued = await world.issue(application, csr=request(tls_key), proof_key=proof_jwk(proof_key))
    now = world.clock.now()
    bundle = domain_bundle(world.keeper.authority)
    svid = x509_svid.validate(issued.svid.der, BundleSet([bundle]), now=now, own=DOMAIN)
    token = wit.validate(issued.wit, {DOMAIN.uri: bundle.wit_keys}, now=now, own=DOMAIN, profile=wit.WIT_SVID)
    assert str(svid.spiffe_id) == str(token.subject) == "spiffe://local.test/agents/researcher"
    # the keys that were asked for, and nothing else of the request
    assert svid.leaf.public_key() == tls_key.public_key()
    assert token.confirmation.key == proof_key.public_key()
    names = svid.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [str(svid.spiffe_id)]
    assert list(svid.leaf.subject) == []
    assert token.issuer == DOMAIN.uri
    for fence in (svid.fence, token.fence):
        assert fence is not None
        assert (fence.instance, fence.epoch) == (application.instance, epoch)
    assert issued.epoch == epoch
    assert issued.expires_at == svid.not_after == token.expires
    assert now + 3590 < issued.expires_at <= now + 3600
    records = world.records()[before:]
    assert len(records) == 1
    record = records[0]
    assert record["type"] == "credential.issue"
    assert record["agent"]["id"] == str(svid.spiffe_id)
    assert record["agent"]["instance"] == application.instance
    assert record["posture"]["level"] == "node-uid"
    assert record["posture"]["evidence_digest"] == application.evidence.digest
    assert record["decision"]["rules"] == ["registered_with_owner"]
    assert record["decision"]["policy_digest"] == world.policy.engine.version
    assert record["token"]["cnf"] == thumbprint(proof_key.public_key())


async def test_a_jwt_svid_has_the_audiences_that_were_asked_for(world: World) -> None:
    agent = await world.agent()
    jkt = thumbprint(ec.generate_private_key(ec.SECP256R1()).public_key())
    keys = {DOMAIN: domain_bundle(world.keeper.authority).jwt_keys}
    for audiences, bound in ((("spiffe://local.test/services/tool",), None), ((TOOL, TOOL + "/"), jkt)):
        issued = await world.jwt(world.application(agent, ("jwt-svid",)), *audiences, jkt=bound)
        svid = jwt_svid.validate(issued.svid, keys, audience=audiences[0], now=world.clock.now(), own=DOMAIN)
        assert svid.audience == audiences
        assert svid.jkt == bound
        assert svid.issuer == ISSUER
        assert svid.token_id is not None
        assert svid.expires == issued.expires_at
        assert issued.expires_at - world.clock.now() <= 300
        record = world.last_record()
        assert record["token"]["aud"] == list(audiences)
        assert issued.svid not in repr(record)


@pytest.mark.parametrize(
    "audiences",
    [
        (),
        (TOOL, TOOL),
        tuple(f"{TOOL}/{n}" for n in range(9)),
        ("",),
        ("a" * 2049,),
        ("a\n",),
        ("ä",),
        ("b" * 1500, "c" * 1500, "d" * 1500),
    ],
)
async def test_audiences_are_bounded(world: World, audiences: tuple[str, ...]) -> None:
    agent = await world.agent()
    code, record = await _refused(world, world.jwt(world.application(agent, ("jwt-svid",)), *audiences))
    assert code == "provisioning.audiences"
    assert record["type"] == "credential.refuse"


async def test_a_malformed_thumbprint_binds_nothing(world: World) -> None:
    agent = await world.agent()
    for jkt in ("", "a" * 42, "a" * 44, "!" * 43):
        code, _ = await _refused(world, world.jwt(world.application(agent, ("jwt-svid",)), TOOL, jkt=jkt))
        assert code == "provisioning.proof_key"


async def test_a_node_gets_nothing_of_another_node_whatever_it_reports(world: World) -> None:
    agent = await world.agent(nodes=frozenset({"desk"}))
    shown = (str(PROFILE.selector()), "unix:uid:1000", "unix:gid:1000")
    for instance in (world.instance("laptop"), world.instance("desk")):
        for credentials in (("x509-svid", "wit"), ("jwt-svid",)):
            application = world.application(
                agent,
                credentials,
                evidence=world.evidence(*shown),
                instance=instance,
            )
            wanted = world.jwt(application, TOOL) if "jwt-svid" in credentials else world.issue(application)
            code, record = await _refused(world, wanted)
            assert code == "provisioning.node_not_bound"
            assert record["type"] == "credential.refuse"
            # who asked is the node; what it claimed is no fact
            assert record["agent"] == {"id": "spiffe://local.test/nodes/laptop"}
            assert record["claimed"]["instance"] == instance
    # on its own node the same evidence is good
    own = world.application(agent, evidence=world.evidence(*shown), node_id="desk", instance=world.instance("desk"))
    assert str((await world.issue(own)).spiffe_id).endswith("/agents/researcher")


async def test_node_selectors_bind_an_entry_and_all_of_them_count(world: World) -> None:
    agent = await world.agent(nodes=frozenset())
    await world.node("desk", frozenset({Selector.parse("node:room:5")}))
    demand = Demand(
        selectors=frozenset({PROFILE.selector()}),
        node_selectors=frozenset({Selector.parse("node:room:5"), Selector.parse("node:os:linux")}),
    )
    entry = await world.commit(world.admin.create_entry(name="researcher", demand=demand, cause=cause()))
    registered = Registered(agent.workload, entry)
    wanted = world.application(registered, node_id="desk", instance=world.instance("desk"))
    assert (await _refused(world, world.issue(wanted)))[0] == "provisioning.node_not_bound"
    await world.node("desk", frozenset({Selector.parse("node:room:5"), Selector.parse("node:os:linux")}))
    wanted = world.application(registered, node_id="desk", instance=world.instance("desk"))
    assert (await world.issue(wanted)).expires_at


async def test_a_banned_node_gets_nothing_and_nothing_decided_before_survives(world: World) -> None:
    agent = await world.agent()
    late = await world.issuance.issue(world.application(agent), csr=request(), proof_key=proof_jwk(), request_id="r")
    token = await world.issuance.jwt_svid(
        world.application(agent, ("jwt-svid",)), audiences=(TOOL,), jkt=None, request_id="r"
    )
    await world.commit(world.admin.ban_node(node_id="laptop", cause=cause()))
    for plan in (late, token):
        outcome = await world.database.commit(plan.write)
        with pytest.raises(ProvisioningError) as stopped:
            plan.answer(outcome)
        assert stopped.value.reason == "stopped"
        assert world.last_record()["decision"]["reason"] == "storage.stopped"
    code, _ = await _refused(world, world.issue(world.application(agent)))
    assert code == "provisioning.node_banned"


@pytest.mark.parametrize("which", ["agent", "node", "instance"])
async def test_what_is_stopped_between_decision_and_commit_is_not_issued(world: World, which: str) -> None:
    agent = await world.agent()
    application = world.application(agent)
    names = {
        "agent": Name("agent", str(agent.workload.spiffe_id)),
        "node": Name("node", "laptop"),
        "instance": Name("instance", application.instance),
    }
    plan = await world.issuance.issue(application, csr=request(), proof_key=proof_jwk(), request_id="r")
    await world.stop(names[which])
    outcome = await world.database.commit(plan.write)
    with pytest.raises(ProvisioningError) as stopped:
        plan.answer(outcome)
    assert stopped.value.reason == "stopped"
    record = world.last_record()
    assert record["type"] == "credential.refuse"
    assert record["cause"]["event"] == f"{which}:{names[which].id}"
    assert "jti" not in record["token"]
    # memory that knows the stop does not help while the name is blocked, and old decisions stay dead afterwards
    world.follow()
    again = await world.issuance.issue(application, csr=request(), proof_key=proof_jwk(), request_id="r")
    assert (await world.database.commit(again.write)).verdict == "stopped"
    await world.stop(names[which], blocked=False)
    assert (await world.database.commit(again.write)).verdict == "stopped"
    world.follow()
    assert (await world.issue(application)).epoch > plan.write.seen


@pytest.mark.parametrize("state", [State.SUSPENDED, State.RETIRED])
async def test_a_suspended_or_retired_agent_gets_nothing(world: World, state: State) -> None:
    agent = await world.agent()
    effects, changes = state_change(world.registry, agent.workload, state)
    late = await world.issuance.issue(world.application(agent), csr=request(), proof_key=proof_jwk(), request_id="r")
    await world.database.commit(Write(record=lambda _: b"{}", effects=effects, changes=changes))
    assert (await world.database.commit(late.write)).verdict == "stopped"
    world.follow()
    # the name itself is blocked: a worker whose memory knew only the number would not get through either
    fenced = Write(
        record=lambda _: b'{"id":"x"}',
        names=(Name("agent", str(agent.workload.spiffe_id)),),
        seen=world.registry.seq + 100,
    )
    assert (await world.database.commit(fenced)).verdict == "stopped"
    code, _ = await _refused(world, world.issue(world.application(agent)))
    gone = "provisioning.entry_unknown"  # a retired agent's entries are gone with it
    assert code == ("provisioning.identity_suspended" if state is State.SUSPENDED else gone)
    if state is State.SUSPENDED:
        effects, changes = state_change(world.registry, world.registry.workload("researcher"), State.ACTIVE)
        await world.database.commit(Write(record=lambda _: b"{}", effects=effects, changes=changes))
        world.follow()
        assert (await world.database.commit(fenced)).verdict == "committed"
        assert (await world.issue(world.application(agent))).epoch == world.registry.seq


@pytest.mark.parametrize(
    "instance",
    [
        "",
        "laptop",
        "laptop:",
        "desk:" + "a" * 26,
        "laptop:" + "a" * 25,
        "laptop:" + "A" * 26,
        "laptop:x:" + "a" * 24,
        "lap",
        "../laptop:" + "a" * 26,
    ],
)
async def test_an_instance_that_is_not_of_the_node_is_refused(world: World, instance: str) -> None:
    agent = await world.agent()
    code, _ = await _refused(world, world.issue(world.application(agent, instance=instance)))
    assert code == "provisioning.instance_malformed"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"age": 61}, "provisioning.evidence_stale"),
        ({"age": -6}, "provisioning.evidence_stale"),
        ({"age": 10**15}, "provisioning.evidence_stale"),
        ({"kind": "unix"}, "provisioning.evidence_mismatch"),
        ({"selectors": ("unix:uid:1000",)}, "provisioning.evidence_mismatch"),
        ({"selectors": ("launch:profile:" + "a" * 64,)}, "provisioning.evidence_mismatch"),
        ({"selectors": ("launch:unmeasured",)}, "provisioning.evidence_mismatch"),
        ({"selectors": (f"{PROFILE.selector()} ",)}, "provisioning.evidence_mismatch"),
        ({"posture": "unmeasured"}, "provisioning.posture_unknown"),
        ({"posture": "unknown"}, "provisioning.posture_unknown"),
        ({"posture": ""}, "provisioning.posture_unknown"),
        ({"posture": "Node-uid"}, "provisioning.posture_unknown"),
    ],
)
async def test_evidence_that_does_not_show_enough_is_refused(world: World, change: dict[str, Any], code: str) -> None:
    agent = await world.agent()
    fields: dict[str, Any] = {"selectors": (str(PROFILE.selector()), "unix:uid:1000")} | change
    fields["collected_at"] = int(world.clock.now()) - fields.pop("age", 0)
    evidence = world.evidence(**fields)
    got, record = await _refused(world, world.issue(world.application(agent, evidence=evidence)))
    assert got == code
    assert record["decision"] == {"effect": "deny", "reason": code}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "tpm"},
        {"kind": ""},
        {"selectors": ("launch:unmeasured", "launch:unmeasured")},
        {"selectors": ("launch",)},
        {"selectors": tuple(f"unix:gid:{n}" for n in range(65))},
        {"measurement": {"x": "y" * 70_000}},
    ],
)
async def test_evidence_that_nothing_understands_is_refused(world: World, change: dict[str, Any]) -> None:
    with pytest.raises(ProvisioningError) as refused:
        world.evidence(**({"selectors": ("launch:unmeasured",)} | change))
    assert refused.value.reason == "evidence_malformed"


async def test_the_uid_of_an_entry_is_demanded_too(world: World) -> None:
    await world.agent("backend", kind=Kind.SERVICE, launch_uids=(), nodes=frozenset())
    demand = Demand(selectors=frozenset({Selector.parse("unix:uid:2000")}), nodes=frozenset({"laptop"}))
    entry = await world.commit(world.admin.create_entry(name="backend", demand=demand, cause=cause()))
    registered = Registered(world.registry.workload("backend"), entry)
    wrong = world.evidence("unix:uid:1000", kind="unix")
    code, _ = await _refused(world, world.issue(world.application(registered, evidence=wrong)))
    assert code == "provisioning.evidence_mismatch"
    right = world.evidence("unix:uid:2000", "unix:gid:1", kind="unix")
    issued = await world.issue(world.application(registered, evidence=right))
    assert str(issued.spiffe_id) == "spiffe://local.test/services/backend"


def _tables(text: str, *, without: str = "") -> Callable[[dict[str, bytes]], None]:
    def edit(files: dict[str, bytes]) -> None:
        tables = files["tables.toml"].decode()
        if without:
            head, _, tail = tables.partition(without)
            assert tail, without
            tables = head.rpartition("[[")[0] + tail.partition("\n\n")[2]
        files["tables.toml"] = (tables + text).encode()

    return edit


LOWER = """
[[lifetimes]]
name = "{0}-shared"
credential = "{0}"
posture = "shared-uid"
seconds = 20
"""


async def test_a_life_is_the_lowest_of_entry_policy_posture_and_authority(world: World, clock: SystemClock) -> None:
    long = await world.agent("long", x509_ttl=24 * 3600, jwt_ttl=600)
    short = await world.agent("short", x509_ttl=30, jwt_ttl=20)

    async def lives(registered: Registered, **more: Any) -> list[int]:
        issued = await world.issue(world.application(registered, **more))
        token = await world.jwt(world.application(registered, ("jwt-svid",), **more), TOOL)
        now = int(world.clock.now())
        # the clock may have ticked since, so the life is rounded up to tens
        return [-(-(end - now) // 10) * 10 for end in (issued.expires_at, token.expires_at)]

    assert await lives(long) == [3600, 300]
    assert await lives(short) == [30, 20]
    world.policy = policy(_tables("".join(LOWER.format(name) for name in ("wit", "jwt-svid"))))
    shared = world.evidence(posture="shared-uid")
    # WIT and certificate have one end, so the lower one counts for both
    assert await lives(long, evidence=shared) == [20, 20]
    world.policy = policy()
    clock.offset += world.keeper.authority.ends(Purpose.X509_CA) - clock.now() - 100
    fresh = world.evidence()
    x509_life, jwt_life = await lives(long, evidence=fresh)
    assert x509_life <= 100
    assert jwt_life <= 100
    clock.offset += 101
    for wanted in (
        world.issue(world.application(long, evidence=world.evidence())),
        world.jwt(world.application(long, ("jwt-svid",), evidence=world.evidence()), TOOL),
    ):
        code, _ = await _refused(world, wanted)
        assert code == "provisioning.lifetime"


async def test_a_program_that_nobody_measured_gets_a_quarter_of_an_hour(world: World) -> None:
    agent = await world.agent(profile=None)
    for posture in ("shared-uid", "node-uid"):
        evidence = world.evidence("launch:unmeasured", posture=posture)
        issued = await world.issue(world.application(agent, evidence=evidence))
        assert 890 < issued.expires_at - world.clock.now() <= 900


@pytest.mark.parametrize(("x509_ttl", "jwt_ttl"), [(86_401, 0), (0, 601), (9, 0), (0, 9), (-1, 0)])
async def test_no_entry_asks_for_more_than_the_limits(world: World, x509_ttl: int, jwt_ttl: int) -> None:
    with pytest.raises(ProvisioningError) as refused:
        await world.agent(x509_ttl=x509_ttl, jwt_ttl=jwt_ttl)
    assert refused.value.reason == "entry_lifetime"


async def test_what_the_policy_does_not_allow_is_not_issued(world: World) -> None:
    agent = await world.agent()

    def forbid(files: dict[str, bytes]) -> None:
        files["local.cedar"] = (
            b'@id("no_wits")\nforbid (principal, action == AIMS::Action::"issue", resource)\n'
            b'when { resource == AIMS::Resource::"wit" };\n'
        )

    def forget(files: dict[str, bytes]) -> None:
        del files["issuance.cedar"]

    world.policy = policy(forbid)
    assert (await _refused(world, world.issue(world.application(agent))))[0] == "provisioning.policy_refused"
    assert (await world.jwt(world.application(agent, ("jwt-svid",)), TOOL)).expires_at
    world.policy = policy(forget)
    token = world.jwt(world.application(agent, ("jwt-svid",)), TOOL)
    assert (await _refused(world, token))[0] == "provisioning.policy_refused"
    world.policy = policy(_tables("", without='name = "wit"'))
    code, record = await _refused(world, world.issue(world.application(agent)))
    assert code == "policy.lifetime"
    assert record["type"] == "credential.refuse"


async def test_a_request_without_proof_or_with_a_bad_proof_key_is_refused(world: World) -> None:
    agent = await world.agent()
    key = ec.generate_private_key(ec.SECP256R1())
    for csr in (b"", b"garbage", request(key)[:-1]):
        code, _ = await _refused(world, world.issue(world.application(agent), csr=csr))
        assert code == "provisioning.csr_malformed"
    good = proof_jwk()
    bad: tuple[dict[str, Any], ...] = (
        {},
        {**good, "x": good["y"]},
        {**good, "alg": "HS256"},
        {**good, "alg": "none"},
        private_jwk(ec.generate_private_key(ec.SECP256R1())),
        public_jwk(rsa.generate_private_key(65537, 2048).public_key()),
        public_jwk(ec.generate_private_key(ec.SECP521R1()).public_key()),
        proof_jwk(key),
    )
    for jwk in bad:
        code, _ = await _refused(world, world.issue(world.application(agent), csr=request(key), proof_key=jwk))
        assert code == "provisioning.proof_key"


async def test_an_entry_that_is_not_there_is_refused(world: World) -> None:
    agent = await world.agent()
    for entry_id in ("", "a" * 26, "../admin", agent.workload.name):
        code, record = await _refused(world, world.issue(world.application(agent, entry_id=entry_id)))
        assert code == "provisioning.entry_unknown"
        assert record["claimed"]["instance"]

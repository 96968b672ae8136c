"""Security events of other parties, on both back ends: what they may do, what they may not, and what is left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.flows.monitoring_world import (
    HR,
    IDP,
    PARTNER,
    Signals,
    issue_fenced,
    open_signals,
    operator,
    remedied,
    transmitters,
)
from tests.flows.provisioning_world import URL, World, open_world, policy
from tests.properties.hostile import LocalKey

from aims.clock import IdSource, SystemClock
from aims.jose.jwk import private_jwk, public_jwk
from aims.jose.jwks import build_jwks
from aims.monitoring.errors import MonitoringError
from aims.monitoring.events import (
    ACCOUNT_DISABLED,
    ACCOUNT_ENABLED,
    CREDENTIAL_CHANGE,
    CREDENTIAL_COMPROMISE,
    SESSION_REVOKED,
    STREAM_UPDATED,
    VERIFICATION,
)
from aims.monitoring.model import Receiver, Remedy
from aims.monitoring.receiver import STRANGERS_PER_SECOND
from aims.provisioning.registry.model import State
from aims.provisioning.registry.service import Registered
from aims.storage.database import Database
from aims.storage.intent import Plan
from aims.storage.write import Name, Outcome, Verdict

AGENT = "spiffe://local.test/agents/researcher"
ALICE = {"format": "iss_sub", "iss": IDP, "sub": "00u-alice"}


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> World:
    world = await open_world(database, clock, ids)
    await world.owner()
    await world.node("laptop")
    return world


@pytest.fixture
async def agent(world: World) -> Registered:
    return await world.agent()


@pytest.fixture
async def signals(world: World, agent: Registered) -> Signals:
    return await open_signals(world)


def _state(signals: Signals, name: str = "researcher") -> State:
    return signals.world.registry.workload(name).state


async def test_a_signed_event_stops_an_agent(signals: Signals, agent: Registered) -> None:
    world = signals.world
    issued = await world.issue(world.application(agent))
    late = await world.issuance.issue(world.application(agent), **_request(world))
    assert await signals.tell(AGENT, ACCOUNT_DISABLED, txn="cause-1") == ""
    # what was decided before is refused by the fence, what is asked now by the registry
    assert (await world.database.commit(late.write)).verdict == "stopped"
    assert _state(signals) is State.SUSPENDED
    assert await issue_fenced(world, Name("agent", AGENT), seen=issued.epoch) == "stopped"
    (record,) = (entry for entry in world.records() if entry["type"] == "identity.suspend")
    assert record["cause"]["set_iss"] == IDP
    assert record["cause"]["event"] == ACCOUNT_DISABLED
    assert record["decision"]["rules"] == ["transmitters.idp", "transmitter_stops"]
    assert record["decision"]["policy_digest"] == world.policy.engine.version
    assert record["txn"] == "cause-1"
    assert signals.stored() == [(IDP, ACCOUNT_DISABLED, "done")]


def _request(world: World) -> dict[str, Any]:
    from tests.flows.provisioning_world import proof_jwk, request

    return {"csr": request(), "proof_key": proof_jwk(), "request_id": world.ids.new()}


@pytest.mark.parametrize(
    ("event", "payload", "state", "verdict"),
    [
        (SESSION_REVOKED, {"reason_admin": {"en": "x"}}, State.ACTIVE, "stopped"),
        (CREDENTIAL_COMPROMISE, {"credential_type": "x509"}, State.SUSPENDED, "stopped"),
        (ACCOUNT_DISABLED, {"reason": "hijacking"}, State.SUSPENDED, "stopped"),
        (ACCOUNT_ENABLED, {}, State.ACTIVE, "committed"),
    ],
)
async def test_the_remedy_of_an_event_stands_in_the_policy(
    signals: Signals, event: str, payload: dict[str, Any], state: State, verdict: str
) -> None:
    seen = signals.world.registry.seq
    assert await signals.tell(AGENT, event, payload) == ""
    assert _state(signals) is state
    assert await issue_fenced(signals.world, Name("agent", AGENT), seen=seen) == verdict


async def test_an_agent_may_be_named_as_interoperable_receivers_name_it(signals: Signals) -> None:
    named = {"format": "iss_sub", "iss": URL, "sub": AGENT}
    now = signals.world.clock.now() - 50
    assert await signals.tell(named, ACCOUNT_DISABLED, {"event_timestamp": now}) == ""
    assert _state(signals) is State.SUSPENDED
    for member in ("agent", "application", "workload"):
        whole = {"format": "complex", member: {"format": "uri", "uri": AGENT}}
        assert await signals.tell(whole, ACCOUNT_ENABLED, {"event_timestamp": now + 1}) == ""
        assert _state(signals) is State.ACTIVE
        assert await signals.tell(whole, ACCOUNT_DISABLED, {"event_timestamp": now + 2}) == ""
        now += 3


async def test_an_event_that_comes_again_is_acknowledged_and_does_nothing(signals: Signals) -> None:
    token = signals.token(AGENT, SESSION_REVOKED)
    assert await signals.push(token) == ""
    seq, records = signals.world.registry.seq, len(signals.world.records())
    for _ in range(100):  # more than the share of a minute: what was accepted costs nothing
        assert await signals.push(token) == ""
    assert (signals.world.registry.seq, len(signals.world.records())) == (seq, records)
    assert len(signals.stored()) == 1


async def test_sixteen_equal_events_at_once_have_one_effect(signals: Signals) -> None:
    token = signals.token(AGENT, ACCOUNT_DISABLED)
    before = signals.world.registry.seq
    assert set(await asyncio.gather(*(signals.push(token) for _ in range(16)))) == {""}
    assert signals.world.registry.seq == before + 1
    assert len(signals.stored()) == 1
    types = [entry["type"] for entry in signals.world.records()]
    assert types.count("identity.suspend") == 1


async def test_different_events_at_once_all_count(signals: Signals) -> None:
    tokens = [signals.token(AGENT, SESSION_REVOKED, {"event_timestamp": 1_700_000_000 + n}) for n in range(4)]
    results = await asyncio.gather(*(signals.push(token) for token in tokens))
    # whoever was too late five times says so and is sent again; nothing is lost or half done
    again = [token for token, result in zip(tokens, results, strict=True) if result == "changed"]
    for token in again:
        assert await signals.push(token) == ""
    assert len(signals.stored()) == 4
    assert {applied for _, _, applied in signals.stored()} <= {"done", "stale"}


async def test_a_replayed_older_event_does_not_undo_a_newer_one(signals: Signals) -> None:
    world = signals.world
    now = world.clock.now()
    assert await signals.tell(AGENT, ACCOUNT_DISABLED, {"event_timestamp": now - 50}) == ""
    assert await signals.tell(AGENT, ACCOUNT_ENABLED, {"event_timestamp": now - 60}) == ""
    assert _state(signals) is State.SUSPENDED
    await remedied(world, Name("agent", AGENT), Remedy.RESUME)
    for event in (ACCOUNT_DISABLED, SESSION_REVOKED):
        assert await signals.tell(AGENT, event, {"event_timestamp": now - 40}) == ""
    assert _state(signals) is State.ACTIVE
    assert sorted(applied for _, _, applied in signals.stored()) == ["done", "stale", "stale", "stale"]
    await remedied(world, Name("agent", AGENT), Remedy.SUSPEND)
    await asyncio.sleep(1.1)  # within one second the stop wins, whoever made it
    assert await signals.tell(AGENT, ACCOUNT_ENABLED) == ""
    assert _state(signals) is State.SUSPENDED
    assert "held" in {applied for _, _, applied in signals.stored()}


@pytest.mark.parametrize(
    ("issuer", "subject", "event", "payload"),
    [
        pytest.param(HR, AGENT, SESSION_REVOKED, {}, id="no-row"),
        pytest.param(PARTNER, AGENT, SESSION_REVOKED, {}, id="subject"),
        pytest.param(PARTNER, "spiffe://other.test/agents/shared", SESSION_REVOKED, {}, id="domain"),
        pytest.param(PARTNER, "spiffe://local.test/agents/shared/sub/x", SESSION_REVOKED, {}, id="below"),
        pytest.param(PARTNER, "spiffe://local.test/agents/shared", ACCOUNT_DISABLED, {}, id="strength"),
        pytest.param(PARTNER, "spiffe://local.test/agents/shared", ACCOUNT_ENABLED, {}, id="event"),
        pytest.param(PARTNER, {"format": "opaque", "id": "alice"}, SESSION_REVOKED, {}, id="people"),
        pytest.param(IDP, "spiffe://local.test/services/aims", ACCOUNT_DISABLED, {}, id="service"),
        pytest.param(IDP, "spiffe://local.test/nodes/laptop", ACCOUNT_DISABLED, {}, id="node"),
        pytest.param(
            IDP,
            AGENT,
            CREDENTIAL_CHANGE,
            {"credential_type": "x509", "change_type": "revoke"},
            id="event-unlisted",
        ),
    ],
)
async def test_what_is_beyond_a_transmitters_authority_changes_nothing(
    signals: Signals, issuer: str, subject: object, event: str, payload: object
) -> None:
    await signals.world.agent("shared")
    seq, before = signals.world.registry.seq, len(signals.world.records())
    with pytest.raises(MonitoringError) as refusal:
        await signals.receiver.receive(
            signals.token(subject, event, payload, issuer=issuer), "application/secevent+jwt", ""
        )
    assert (refusal.value.reason, refusal.value.standard) == ("set_authority", "access_denied")
    signals.world.follow()
    assert signals.world.registry.seq == seq
    assert signals.stored() == []
    (record,) = signals.world.records()[before:]
    assert (record["type"], record["outcome"]) == ("signal.rejected", "refused")
    assert (record["cause"]["set_iss"], record["cause"]["code"]) == (issuer, "monitoring.set_authority")


async def test_a_rule_can_refuse_what_the_table_allows(signals: Signals) -> None:
    def forbid(files: dict[str, bytes]) -> None:
        transmitters(files)
        files["tables.toml"] = files["tables.toml"].replace(b'strongest = "suspend"', b'strongest = "retire"')
        files["tables.toml"] = files["tables.toml"].replace(b'effect = "suspend"', b'effect = "retire"')

    signals.world.policy = policy(forbid)
    assert await signals.tell(AGENT, ACCOUNT_DISABLED) == "set_authority"
    assert _state(signals) is State.ACTIVE


async def test_an_event_about_several_members_is_refused_and_not_widened(signals: Signals) -> None:
    agent = {"format": "uri", "uri": AGENT}
    for subject in (
        {"format": "complex", "user": ALICE, "agent": agent},
        {"format": "complex", "session": {"format": "opaque", "id": "g"}},
        {"format": "complex", "application": {"format": "opaque", "id": AGENT}},
        {"format": "complex", "tenant": agent},
        {"format": "uri", "uri": "spiffe://local.test"},
        {"format": "uri", "uri": "https://client.example/metadata"},
    ):
        seq = signals.world.registry.seq
        assert await signals.tell(subject, ACCOUNT_DISABLED) == "set_subject"
        assert signals.world.registry.seq == seq
        assert signals.world.last_record()["type"] == "signal.rejected"


async def test_a_person_is_stopped_by_the_name_that_was_mapped(signals: Signals) -> None:
    world = signals.world
    agent = Name("agent", AGENT)
    plan = signals.configuration.map_person(None, IDP, ALICE, operator(world))
    alice = Name("person", await world.commit(plan))
    seen = world.registry.seq
    for stranger in (
        {**ALICE, "sub": "00u-bob"},
        {**ALICE, "iss": URL, "sub": alice.id},
        {"format": "opaque", "id": "x"},
    ):
        assert await signals.tell(stranger, ACCOUNT_DISABLED) == ""
    assert world.registry.seq == seen  # nobody of ours, and the other side does not learn which
    earlier = {"event_timestamp": world.clock.now() - 5}
    assert await signals.tell({"format": "complex", "user": ALICE}, ACCOUNT_DISABLED, earlier) == ""
    assert await issue_fenced(world, agent, alice, seen=world.registry.seq) == "stopped"
    assert await issue_fenced(world, agent, seen=seen) == "committed"
    assert _state(signals) is State.ACTIVE
    assert await signals.tell(ALICE, ACCOUNT_ENABLED) == ""
    assert await issue_fenced(world, agent, alice, seen=world.registry.seq) == "committed"
    assert await issue_fenced(world, agent, alice, seen=seen) == "stopped"
    text = repr(world.records())
    assert alice.id not in text
    assert "00u-alice" not in text


async def test_the_same_name_of_another_transmitter_is_somebody_else(signals: Signals) -> None:
    plan = signals.configuration.map_person(None, PARTNER, ALICE, operator(signals.world))
    await signals.world.commit(plan)
    seq = signals.world.registry.seq
    assert await signals.tell(ALICE, ACCOUNT_DISABLED) == ""
    assert signals.world.registry.seq == seq


async def test_what_has_no_effect_is_stored_all_the_same(signals: Signals) -> None:
    stream = {"format": "opaque", "id": "stream-1"}
    seq = signals.world.registry.seq
    assert await signals.tell(stream, VERIFICATION, issuer=HR) == ""
    assert await signals.tell(stream, STREAM_UPDATED, {"status": "paused"}) == ""
    assert await signals.tell("spiffe://local.test/agents/nobody", ACCOUNT_DISABLED) == ""
    await signals.world.agent("shared")
    change = {"credential_type": "x509", "change_type": "revoke"}
    assert await signals.tell("spiffe://local.test/agents/shared", CREDENTIAL_CHANGE, change, issuer=PARTNER) == ""
    assert signals.world.registry.seq == seq + 2  # the agent and its entry
    assert sorted(applied for _, _, applied in signals.stored()) == ["noted", "noted", "noted", "unknown"]
    types = [entry["type"] for entry in signals.world.records()]
    assert types.count("signal.received") == 4


async def test_our_own_event_coming_back_is_an_echo(signals: Signals) -> None:
    world = signals.world
    await signals.configured(Receiver(url="https://rp.example/", audience="x", events=frozenset({SESSION_REVOKED})))
    view_plan = await _planned(signals, Name("agent", AGENT), Remedy.REVOKE)
    await world.commit(view_plan)
    (row,) = signals.waiting()
    seq = world.registry.seq
    # another implementation tells us what we told it, under the cause that it got and a time of its own
    assert await signals.tell(AGENT, SESSION_REVOKED, txn=row["txn"], iat=int(world.clock.now()) + 30) == ""
    assert world.registry.seq == seq
    assert signals.stored() == [(IDP, SESSION_REVOKED, "echo")]


async def test_an_answer_to_our_event_that_says_more_is_no_echo(signals: Signals) -> None:
    world = signals.world
    await signals.configured(Receiver(url="https://rp.example/", audience="x", events=frozenset({SESSION_REVOKED})))
    await world.commit(await _planned(signals, Name("agent", AGENT), Remedy.REVOKE))
    (row,) = signals.waiting()
    assert await signals.tell(AGENT, ACCOUNT_DISABLED, txn=row["txn"]) == ""
    assert _state(signals) is State.SUSPENDED


async def test_what_lifts_nothing_makes_no_stop_of_others_stale(signals: Signals) -> None:
    world = signals.world
    await world.agent("shared")
    shared = "spiffe://local.test/agents/shared"
    ahead = {"event_timestamp": world.clock.now() + 50}
    assert await signals.tell(shared, ACCOUNT_ENABLED, ahead) == ""
    before = world.registry.seq
    assert await signals.tell(shared, SESSION_REVOKED, issuer=PARTNER) == ""
    assert world.registry.seq > before
    assert [applied for issuer, _, applied in signals.stored() if issuer == PARTNER] == ["done"]


async def test_what_happens_ahead_of_our_clock_happens_now(signals: Signals) -> None:
    now = signals.world.clock.now()
    assert await signals.tell(AGENT, SESSION_REVOKED, {"event_timestamp": now + 50}) == ""
    assert await signals.tell(AGENT, SESSION_REVOKED, {"event_timestamp": now + 1}) == ""
    assert [applied for _, _, applied in signals.stored()] == ["done", "done"]


async def _planned(signals: Signals, subject: Name, remedy: Remedy) -> Any:
    from aims.monitoring.remediation import look

    world = signals.world
    view = await world.database.read(lambda connection: look(connection, world.registry, subject))
    return signals.remediation.plan(view, remedy, operator(world))


async def test_what_one_party_told_us_is_passed_on_but_not_back(signals: Signals) -> None:
    receiver = Receiver(url="https://rp.example/", audience="x", events=frozenset({SESSION_REVOKED}), issuer=IDP)
    await signals.configured(receiver)
    assert await signals.tell(AGENT, SESSION_REVOKED, txn="t1") == ""
    assert signals.waiting() == []
    await signals.world.agent("shared")
    shared = "spiffe://local.test/agents/shared"
    assert await signals.tell(shared, SESSION_REVOKED, issuer=PARTNER, txn="t2") == ""
    (row,) = signals.waiting()
    assert (row["txn"], row["own"], row["claims"]["txn"]) == ("t2", False, "t2")
    # the same event by another way is an echo, a second one of the same cause is not: the cause was not ours
    same = {"event_timestamp": row["claims"]["events"][SESSION_REVOKED]["event_timestamp"]}
    assert await signals.tell(shared, SESSION_REVOKED, same, issuer=IDP, txn="t2") == ""
    assert (
        await signals.tell(shared, SESSION_REVOKED, issuer=IDP, txn="t2", iat=int(signals.world.clock.now()) + 9) == ""
    )
    assert [applied for issuer, _, applied in signals.stored() if issuer == IDP] == ["done", "echo", "done"]


async def test_a_flood_of_one_transmitter_leaves_the_others_their_share(signals: Signals, clock: SystemClock) -> None:
    await signals.world.agent("shared")
    shared = "spiffe://local.test/agents/shared"
    flood = [signals.token(shared, SESSION_REVOKED, issuer=PARTNER) for _ in range(1000)]
    before = len(signals.world.records())
    results = await asyncio.gather(
        *(signals.receiver.receive(one, "application/secevent+jwt", "") for one in flood[:500]), return_exceptions=True
    )
    assert await signals.tell(AGENT, ACCOUNT_DISABLED) == ""
    assert _state(signals) is State.SUSPENDED
    results += await asyncio.gather(
        *(signals.receiver.receive(one, "application/secevent+jwt", "") for one in flood[500:]), return_exceptions=True
    )
    over = [one for one in results if isinstance(one, MonitoringError) and one.reason == "set_rate"]
    assert len(over) >= 1000 - 2 * 60  # the minute may turn once on the way
    # the refusals are counted, not written one by one
    clock.offset += 2
    await signals.receiver.tend()
    records = signals.world.records()[before:]
    counted = [entry for entry in records if "flood" in entry]
    assert sum(entry["flood"]["count"] for entry in counted) + sum(
        entry.get("cause", {}) is not None and (entry.get("cause") or {}).get("code") == "monitoring.set_rate"
        for entry in records
    ) == len(over)
    assert len(counted) < 60
    clock.offset += 60
    assert await signals.tell(shared, SESSION_REVOKED, issuer=PARTNER) == ""


async def test_strangers_are_recorded_up_to_a_rate_and_counted_above_it(signals: Signals, clock: SystemClock) -> None:
    good = signals.token(AGENT, ACCOUNT_DISABLED)
    forged = good[:-8] + (b"A" * 8 if good[-8:] != b"A" * 8 else b"B" * 8)
    attacker = LocalKey.new("ES256", signals.keys[IDP].kid)
    stolen, signals.keys[IDP] = signals.keys[IDP], attacker
    named = signals.token(AGENT, ACCOUNT_DISABLED)
    signals.keys[IDP] = stolen
    before, seq = len(signals.world.records()), signals.world.registry.seq
    told: set[str] = set()
    for octets in (b"", b"garbage", b"a.b.c", forged, named, good.replace(b".", b"..")):
        told |= {await signals.push(octets) for _ in range(20)}
    assert told <= {"set_malformed", "set_signature", "set_kid"}
    assert signals.world.registry.seq == seq
    clock.offset += 2
    await signals.receiver.tend()
    records = signals.world.records()[before:]
    alone = [entry for entry in records if "flood" not in entry]
    counted = [entry["flood"]["count"] for entry in records if "flood" in entry]
    assert len(alone) + sum(counted) == 120
    assert len(alone) < 120 - 2 * STRANGERS_PER_SECOND
    for entry in records:
        assert (entry["type"], entry["agent"]) == ("request.refuse", None)
    # the honest one is heard in the same moment
    assert await signals.push(good) == ""


@pytest.mark.parametrize(
    "media_type", ["", "application/jwt", "application/json", "text/plain", "application/secevent"]
)
async def test_another_media_type_is_refused(signals: Signals, media_type: str) -> None:
    token = signals.token(AGENT, ACCOUNT_DISABLED)
    assert await signals.push(token, media_type) == "set_media_type"
    assert await signals.push(token, "Application/SecEvent+JWT; charset=utf-8") == ""


async def test_keys_are_what_an_administrator_gave_and_nothing_else(signals: Signals) -> None:
    world = signals.world
    key = LocalKey.new("ES256", "new-1")
    public = public_jwk(key.private.public_key(), kid="new-1", alg="ES256", use="sig")
    signals.keys[IDP] = key
    assert await signals.tell(AGENT, ACCOUNT_DISABLED) == "set_kid"
    await world.commit(
        signals.configuration.add_transmitter(IDP, build_jwks([public]).decode("ascii"), operator(world))
    )
    signals.peers.load()
    assert await signals.tell(AGENT, ACCOUNT_DISABLED) == ""
    assert world.records()[-2]["type"] == "trust.changed"
    await world.commit(signals.configuration.remove_transmitter(IDP, operator(world)))
    signals.peers.load()
    assert await signals.tell(AGENT, ACCOUNT_DISABLED) == "set_issuer"
    gone = signals.configuration.remove_transmitter(IDP, operator(world))
    with pytest.raises(MonitoringError) as unknown:
        await world.commit(gone)
    assert unknown.value.reason == "transmitter_unknown"


async def test_what_met_another_change_says_so_and_not_that_a_transmitter_is_missing(
    world: World, signals: Signals
) -> None:
    keys = build_jwks(
        [public_jwk(LocalKey.new("ES256", "k").private.public_key(), kid="k", alg="ES256", use="sig")]
    ).decode("ascii")
    receiver = Receiver(url="https://siem.test/events", audience="siem", events=frozenset({SESSION_REVOKED}))
    plans: list[Plan[Any]] = [
        signals.configuration.map_person(None, IDP, ALICE, operator(world)),
        signals.configuration.set_receiver(receiver, operator(world)),
        signals.configuration.add_transmitter(IDP, keys, operator(world)),
    ]
    for plan in plans:
        with pytest.raises(MonitoringError) as met:
            plan.answer(Outcome(Verdict.CONFLICT))
        assert met.value.reason == "changed"


def _entry(**more: Any) -> dict[str, Any]:
    key = LocalKey.new("ES256")
    return {**public_jwk(key.private.public_key(), kid="k", alg="ES256", use="sig"), **more}


@pytest.mark.parametrize(
    "jwks",
    [
        "",
        "{}",
        "[]",
        '{"keys":[]}',
        '{"keys":[1]}',
        build_jwks([_entry(), _entry()]).decode(),
        build_jwks([_entry(kid="")]).decode(),
        build_jwks([{name: value for name, value in _entry().items() if name != "kid"}]).decode(),
        build_jwks([_entry(use="enc")]).decode(),
        build_jwks([_entry(), {"kty": "oct", "k": "AAAA", "kid": "o"}]).decode(),
        build_jwks([private_jwk(LocalKey.new("ES256").private, kid="p")]).decode(),
        build_jwks([_entry(kid=f"k{n}") for n in range(17)]).decode(),
    ],
)
def test_keys_that_cannot_be_used_are_refused_whole(jwks: str, clock: SystemClock, ids: IdSource) -> None:
    from aims.monitoring.configuration import Configuration
    from aims.monitoring.model import Cause

    cause = Cause.by_operator(operator={"role": "operator"}, decision={"effect": "permit"}, request_id="r", now=1.0)
    with pytest.raises(MonitoringError) as refusal:
        Configuration(clock, ids).add_transmitter(IDP, jwks, cause)
    assert refusal.value.reason == "jwks_malformed"
    for issuer in (
        "http://idp.example",
        "https://idp.example?x",
        "https://idp.example#f",
        "https://idp.example:443",
        "",
    ):
        with pytest.raises(MonitoringError) as malformed:
            Configuration(clock, ids).add_transmitter(issuer, build_jwks([_entry()]).decode(), cause)
        assert malformed.value.reason == "issuer_malformed"

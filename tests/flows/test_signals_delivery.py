"""Our events on their way out: told in the Write that stops, signed when sent, tried again, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.flows.monitoring_world import ISSUER, Signals, new_person, open_signals, operator
from tests.flows.provisioning_world import URL, open_world
from tests.flows.tls_peer import Authority, Peer, listening

from aims.clock import IdSource, SystemClock
from aims.fetch import Fetcher
from aims.jose.jwks import parse_jwks
from aims.keys import Purpose
from aims.monitoring.delivery import Courier
from aims.monitoring.errors import MonitoringError
from aims.monitoring.events import CREDENTIAL_CHANGE, SESSION_REVOKED
from aims.monitoring.keys import SetKeys
from aims.monitoring.model import Receiver, Remedied, Remedy
from aims.monitoring.remediation import look
from aims.monitoring.set import SecurityEvent, parse_set, verify_set
from aims.monitoring.subjects import ComplexSubject, IssSubSubject, OpaqueSubject, UriSubject
from aims.storage.database import Database
from aims.storage.write import Name

AGENT = Name("agent", "spiffe://local.test/agents/researcher")
AUDIENCE = "https://rp.example"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Post:
    """A receiver that answers what it is told, and the courier that pushes to it."""

    def __init__(self, signals: Signals, peer: Peer, answers: list[bytes], courier: Courier, keys: SetKeys) -> None:
        self.signals = signals
        self.peer = peer
        self.answers = answers
        self.courier = courier
        self.keys = keys

    def receiver(self, **more: Any) -> Receiver:
        fields: dict[str, Any] = {
            "url": self.peer.url(),
            "audience": AUDIENCE,
            "events": frozenset({SESSION_REVOKED}),
            "private": True,
            "ca": self.peer.ca,
        }
        return Receiver(**(fields | more))

    async def remedy(self, subject: Name, remedy: Remedy, agent: str = "") -> Remedied:
        world = self.signals.world
        view = await world.database.read(lambda connection: look(connection, world.registry, subject, agent))
        return await world.commit(self.signals.remediation.plan(view, remedy, operator(world)))

    async def got(self) -> list[SecurityEvent]:
        """Every SET that arrived, verified with the published keys."""
        jwks = (await self.keys.current()).jwks
        keys = parse_jwks(jwks).keys("sig")
        now = self.signals.world.clock.now()
        tokens = [request.partition(b"\r\n\r\n")[2] for request in self.peer.requests]
        return [verify_set(parse_set(token), keys, audience=AUDIENCE, now=now) for token in tokens]

    def states(self) -> list[str]:
        return [row["state"] for row in self.signals.waiting()]


@pytest_asyncio.fixture
async def post(
    database: Database, clock: SystemClock, ids: IdSource, authority: Authority, tmp_path: Path
) -> AsyncIterator[Post]:
    world = await open_world(database, clock, ids)
    await world.owner()
    await world.node("laptop")
    await world.agent()
    signals = await open_signals(world)
    answers: list[bytes] = []

    async def answer(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answers.pop(0) if answers else _answer("202 Accepted"))

    async with AsyncExitStack() as stack:
        peer = await stack.enter_async_context(listening(answer, authority))
        keys = SetKeys(lambda: world.keeper.authority, world.keeper._service._keys)
        courier = Courier(
            database=database,
            peers=signals.peers,
            keys=keys,
            fetcher=Fetcher(),
            clock=clock,
            ids=ids,
            folder=tmp_path,
        )
        stack.callback(courier.close)
        yield Post(signals, peer, answers, courier, keys)


def _answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def test_a_stop_is_told_with_one_txn_and_verifies_with_the_published_keys(post: Post) -> None:
    await post.signals.configured(post.receiver(events=frozenset({SESSION_REVOKED, CREDENTIAL_CHANGE})))
    stopped = await post.remedy(AGENT, Remedy.SUSPEND)
    assert post.peer.requests == []  # nothing leaves before the commit, nor with it
    while await post.courier.turn():
        continue
    events = await post.got()
    assert [event.event for event in events] == [SESSION_REVOKED, CREDENTIAL_CHANGE]
    assert {event.txn for event in events} == {stopped.txn}
    assert len({event.jti for event in events}) == 2
    assert {event.issuer for event in events} == {ISSUER}
    assert all(event.subject == UriSubject(AGENT.id) for event in events)
    head = post.peer.requests[0].partition(b"\r\n\r\n")[0].lower()
    assert b"content-type: application/secevent+jwt" in head
    assert b"accept: application/json" in head
    assert post.states() == ["sent", "sent"]
    types = [record["type"] for record in post.signals.world.records()]
    assert types.count("signal.sent") == 2
    assert await post.courier.turn() == 0
    # lifting a stop is nobody else's business
    await post.remedy(AGENT, Remedy.RESUME)
    assert len(post.signals.waiting()) == 2


async def test_without_a_receiver_nothing_is_kept_for_anybody(post: Post) -> None:
    await post.remedy(AGENT, Remedy.SUSPEND)
    assert post.signals.waiting() == []
    assert await post.courier.turn() == 0


async def test_a_stop_that_is_refused_is_not_told(post: Post) -> None:
    world = post.signals.world
    await post.signals.configured(post.receiver())
    view = await world.database.read(lambda connection: look(connection, world.registry, AGENT))
    plans = [post.signals.remediation.plan(view, Remedy.SUSPEND, operator(world)) for _ in range(2)]
    await world.commit(plans[0])
    with pytest.raises(MonitoringError):
        await world.commit(plans[1])
    assert len(post.signals.waiting()) == 1


async def test_trouble_is_waited_for_and_events_of_one_subject_keep_their_order(post: Post, clock: SystemClock) -> None:
    await post.signals.configured(post.receiver())
    await post.signals.world.agent("other")
    for _ in range(2):
        await post.remedy(AGENT, Remedy.REVOKE)
    await post.remedy(Name("agent", "spiffe://local.test/agents/other"), Remedy.REVOKE)
    post.answers[:] = [_answer("503 Busy", b"", "Retry-After: 1")]
    assert await post.courier.turn() == 2  # the first of each subject
    assert post.states() == ["waiting", "waiting", "sent"]
    assert await post.courier.turn() == 0
    clock.offset += 2
    while await post.courier.turn():
        continue
    assert post.states() == ["sent", "sent", "sent"]
    jtis = [event.jti for event in await post.got() if event.subject == UriSubject(AGENT.id)]
    assert jtis == sorted(jtis)
    assert len(jtis) == 3
    assert len(set(jtis)) == 2  # the failed try and its repetition are one event


async def test_a_dead_letter_goes_out_when_the_receiver_is_set_anew(post: Post, clock: SystemClock) -> None:
    await post.signals.configured(post.receiver())
    await post.remedy(AGENT, Remedy.SUSPEND)
    post.answers[:] = [_answer("410 Gone")]
    await post.courier.turn()
    assert post.states() == ["dead"]
    assert await post.courier.turn() == 0
    record = post.signals.world.last_record()
    assert (record["type"], record["outcome"]) == ("signal.sent", "failed")
    assert record["details"]["reason"] == "http_410"
    clock.offset += 3 * 86_400
    await post.signals.configured(post.receiver(audience=AUDIENCE))
    assert await post.courier.turn() == 1
    assert post.states() == ["sent"]
    # issued anew for receivers that take nothing old; the event still says when it happened
    first, _ = post.peer.requests
    del post.peer.requests[0]
    (event,) = await post.got()
    assert event.at < (clock.now() - 2 * 86_400) * 1000
    assert parse_set(first.partition(b"\r\n\r\n")[2]).parsed.unverified["jti"] == event.jti


async def test_a_receiver_that_is_away_costs_one_try_a_turn(post: Post) -> None:
    await post.signals.configured(post.receiver(private=False))
    for name in ("x", "y", "z"):
        await post.signals.world.agent(name)
        await post.remedy(Name("agent", f"spiffe://local.test/agents/{name}"), Remedy.SUSPEND)
    assert await post.courier.turn() == 1
    assert [row["reason"] for row in post.signals.waiting() if row["reason"]] == ["fetch.address"]
    assert post.peer.requests == []


async def test_people_and_instances_are_named_only_as_the_receiver_understands(post: Post) -> None:
    instance = Name("instance", post.signals.world.instance())
    person = await new_person(post.signals.world)
    for understood in (False, True):
        await post.signals.configured(post.receiver(complex=understood))
        await post.remedy(person, Remedy.SUSPEND)
        await post.remedy(instance, Remedy.QUARANTINE, AGENT.id)
        await post.remedy(person, Remedy.RESUME)
        await post.remedy(instance, Remedy.RELEASE, AGENT.id)
        while await post.courier.turn():
            continue
    subjects = [event.subject for event in await post.got()]
    plain = IssSubSubject(URL, person.id)
    assert subjects[0] == plain
    named = [plain, ComplexSubject({"instance": OpaqueSubject(instance.id)})]
    assert sorted(map(repr, subjects[1:])) == sorted(map(repr, named))
    assert person.id not in repr(post.signals.world.records())


async def test_one_process_of_a_host_delivers(post: Post, tmp_path: Path) -> None:
    await post.signals.configured(post.receiver())
    assert await post.courier.turn() == 0  # and holds the lock from now on
    second = Courier(
        database=post.signals.world.database,
        peers=post.signals.peers,
        keys=post.keys,
        fetcher=Fetcher(),
        clock=post.signals.world.clock,
        ids=post.signals.world.ids,
        folder=tmp_path,
    )
    await post.remedy(AGENT, Remedy.SUSPEND)
    assert await second.turn() == 0
    post.courier.close()
    assert await second.turn() == 1
    second.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://rp.example/"},
        {"url": "https://rp.example/#x"},
        {"audience": ""},
        {"audience": "a\n"},
        {"events": frozenset()},
        {"events": frozenset({"https://evil.example/event"})},
        {"ca": "not PEM"},
        {"ca": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
    ],
)
async def test_a_receiver_that_cannot_be_is_refused(post: Post, wrong: dict[str, Any]) -> None:
    with pytest.raises(MonitoringError) as refusal:
        post.signals.configuration.set_receiver(post.receiver(**wrong), operator(post.signals.world))
    assert refusal.value.reason == "receiver_malformed"


async def test_a_key_of_another_purpose_signs_no_event(post: Post) -> None:
    held = await post.keys.current()
    assert held.signer.purpose is Purpose.SET
    published = {key.kid for key in held.published}
    state = post.signals.world.keeper.authority.state
    others = {key.kid for purpose in Purpose if purpose is not Purpose.SET for key in state.published(purpose)}
    assert published
    assert others
    assert not published & others

"""How a grant ends with everything below it, on both back ends, while others are still handing on."""

from __future__ import annotations

import asyncio

import pytest
from tests.flows.token_world import MTLS, NOTES, REVOCATION, Agent, TokenWorld, open_token_world

from aims.authorization import store
from aims.authorization.access_token import AccessToken
from aims.authorization.errors import AuthorizationError
from aims.authorization.model import dead, stored
from aims.authorization.revocation import Cause
from aims.clock import IdSource, SystemClock
from aims.storage.database import Database
from aims.storage.write import Name

READ = {"resource": NOTES, "scope": "notes:read"}
OPERATOR = Cause(
    reason="an operator said so",
    operator={"role": "operator", "uid": 0, "user": "root"},
    decision={"effect": "permit", "rules": ["operator_stops"]},
)


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> TokenWorld:
    return await open_token_world(database, clock, ids)


@pytest.fixture
async def alpha(world: TokenWorld) -> Agent:
    return await world.agent("alpha")


@pytest.fixture
async def beta(world: TokenWorld) -> Agent:
    return await world.agent("beta")


def _works(world: TokenWorld, token: AccessToken) -> bool:
    """What every verifier asks once it has read the feed to its head."""
    world.follow()
    return dead(stored(token.names), token.epoch, world.stops) is None


async def test_a_grant_ends_with_everything_below_it_in_one_write(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    gamma = await world.agent("gamma")
    own = await world.own(alpha)
    first = await world.delegate(alpha, beta, subject=own)
    second = await world.delegate(beta, gamma, subject=first)
    used = [(await world.exchange(agent, text, **READ)).token for agent, text in ((beta, first), (gamma, second))]
    apart = await world.delegate(alpha, beta, subject=own)
    tree = [await world.read(text) for text in (first, second, *used)]
    others = [await world.read(text) for text in (own, apart)]
    assert all(_works(world, token) for token in (*tree, *others))
    seq, records = world.seq, len(world.world.records())
    ended = await world.revocation.revoke(tree[0].grant_id, OPERATOR)
    assert ended.grants == (tree[0].grant_id,)
    assert not any(_works(world, token) for token in tree)
    assert all(_works(world, token) for token in others)
    assert world.seq == seq + 1 == ended.seq
    assert len(world.world.records()) == records + 1
    record = world.record()
    assert record["type"] == "grant.revoke"
    assert record["operator"]["role"] == "operator"
    assert record["change"] == ended.seq
    for agent, text in ((beta, first), (gamma, second)):
        refused = await world.exchange(agent, text, **READ)
        assert refused.refusal == (400, "invalid_request", "authorization.subject_stopped")
    assert (await world.exchange(beta, apart, **READ)).status == 200
    with world.database.reading() as connection:
        rows = store.tree(connection, tree[0].grant_id)
        assert [bool(row.revoked) for row in rows] == [True, True]


async def test_any_delegation_of_a_tree_names_the_whole(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    gamma = await world.agent("gamma")
    second = await world.delegate(beta, gamma, subject=await world.delegate(alpha, beta))
    token = await world.read(second)
    with world.database.reading() as connection:
        inner = store.tree(connection, token.grant_id)[1]
    assert inner.id != token.grant_id
    await world.revocation.revoke(inner.id, OPERATOR)
    assert not _works(world, token)


async def test_a_standing_grant_ends_so_far_and_what_was_handed_on_for_good(
    world: TokenWorld, alpha: Agent, beta: Agent
) -> None:
    own = await world.own(alpha)
    first = await world.delegate(alpha, beta, subject=own)
    used = (await world.exchange(beta, first, **READ)).token
    of_beta = await world.read(await world.own(beta))
    await world.revocation.revoke("agent:alpha", OPERATOR)
    for text in (own, first, used):
        assert not _works(world, await world.read(text))
    assert _works(world, of_beta)
    # it may ask for new ones, with the same SVID
    fresh = await world.own(alpha)
    assert _works(world, await world.read(fresh))
    assert _works(world, await world.read(await world.delegate(alpha, beta, subject=fresh)))


async def test_what_is_no_grant_is_not_revoked(world: TokenWorld, alpha: Agent) -> None:
    for grant_id in ("0" * 26, "agent:nobody", "agent:", ""):
        with pytest.raises(AuthorizationError) as refused:
            await world.revocation.revoke(grant_id, OPERATOR)
        assert refused.value.reason == "grant_unknown"
    assert (await world.revocation.revoke("agent:alpha", OPERATOR)).grants == ("agent:alpha",)


# --- RFC 7009


async def test_a_client_revokes_its_own_token(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    token = await world.own(alpha)
    answer = await world.revoke(alpha, token)
    assert (answer.status, answer.json) == (200, {})
    assert answer.headers["cache-control"] == "no-store"
    assert not _works(world, await world.read(token))
    record = world.record()
    assert record["type"] == "token.revoke"
    assert record["agent"]["id"] == alpha.id
    assert record["cause"]["reason"]
    handed_on = await world.delegate(alpha, beta)
    assert (await world.revoke(alpha, handed_on)).status == 200
    assert not _works(world, await world.read(handed_on))
    taken = (await world.exchange(beta, await world.delegate(alpha, beta), **READ)).token
    assert (await world.revoke(beta, taken)).status == 200
    assert not _works(world, await world.read(taken))


async def test_unknown_tokens_are_answered_as_revoked_ones(world: TokenWorld, alpha: Agent) -> None:
    token = await world.own(alpha)
    assert (await world.revoke(alpha, token)).status == 200
    world.follow()
    fresh = await world.read(await world.own(alpha))
    # revoking the dead one again ends nothing that came after it
    for text in (token, "unknown", "a.b.c"):
        assert (await world.revoke(alpha, text)).status == 200
    assert _works(world, fresh)


async def test_nobody_revokes_for_others(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    gamma = await world.agent("gamma")
    own = await world.own(alpha)
    first = await world.delegate(alpha, beta, subject=own)
    below = (await world.exchange(gamma, await world.delegate(beta, gamma, subject=first), **READ)).token
    other = (400, "unauthorized_client", "authorization.revoke_other")
    assert (await world.revoke(beta, own)).refusal == other
    assert world.record()["type"] == "token.refuse"
    assert world.record()["agent"]["id"] == beta.id
    # whoever holds a part further down does not end it for those above
    assert (await world.revoke(gamma, below)).refusal == other
    for text in (own, first, below):
        assert _works(world, await world.read(text))
    missing = await world.post(world.revoking, {"client_id": alpha.id}, peer=alpha.svid)
    assert missing.refusal == (400, "invalid_request", "authorization.parameter_missing")
    stranger = await world.post(world.revoking, {"token": own, "client_id": alpha.id}, peer=beta.svid)
    assert stranger.refusal == (401, "invalid_client", "authorization.client_id")
    assert world.record()["agent"] is None
    assert _works(world, await world.read(own))


async def test_a_proof_revokes_once(world: TokenWorld) -> None:
    from aims.authorization.client_authentication import ASSERTION_TYPE

    portable = await world.agent("portable")
    asserted = {
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": await world.jwt_svid(portable),
    }
    headers = [(b"dpop", world.proof(portable.key, MTLS + REVOCATION).encode())]
    first = await world.own(portable)
    answer = await world.post(world.revoking, asserted | {"token": first}, headers=headers)
    assert answer.status == 200
    world.follow()
    fresh = await world.own(portable)
    again = await world.post(world.revoking, asserted | {"token": fresh}, headers=headers)
    assert again.refusal == (400, "invalid_dpop_proof", "authentication.dpop_replay")
    assert _works(world, await world.read(fresh))


@pytest.mark.parametrize("useless", ["unknown", "dead", "other"])
async def test_a_proof_is_spent_also_where_nothing_ended(world: TokenWorld, alpha: Agent, useless: str) -> None:
    from aims.authorization.client_authentication import ASSERTION_TYPE

    portable = await world.agent("portable")
    asserted = {
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": await world.jwt_svid(portable),
    }
    headers = [(b"dpop", world.proof(portable.key, MTLS + REVOCATION).encode())]
    text = "unknown"
    if useless == "other":
        text = await world.own(alpha)
    elif useless == "dead":
        text = await world.own(portable)
        assert (await world.revoke(portable, text)).status == 200
        world.follow()
    first = await world.post(world.revoking, asserted | {"token": text}, headers=headers)
    assert first.status == (400 if useless == "other" else 200)
    fresh = await world.own(portable)
    for token in (fresh, text if useless == "dead" else "unknown"):
        again = await world.post(world.revoking, asserted | {"token": token}, headers=headers)
        assert again.refusal == (400, "invalid_dpop_proof", "authentication.dpop_replay")
    assert _works(world, await world.read(fresh))


async def test_what_is_unknown_and_unproven_leaves_no_record(world: TokenWorld, alpha: Agent) -> None:
    records = len(world.world.records())
    assert (await world.revoke(alpha, "unknown")).status == 200
    assert len(world.world.records()) == records


# --- T24


class _Givers:
    """Agents that hand on and take up, again and again, until told; ``given`` is every token that came of it."""

    def __init__(self, world: TokenWorld) -> None:
        self.world = world
        self.given: list[str] = []
        self.tried = 0
        self.told = False

    async def give(self, agent: Agent, subject: str, receivers: list[Agent]) -> None:
        while not self.told:
            for receiver in receivers:
                answer = await self.world.exchange(agent, subject, audience=receiver.id, scope="notes:read")
                if answer.status == 200:
                    self.given.append(answer.token)
                    used = await self.world.exchange(receiver, answer.token, **READ)
                    if used.status == 200:
                        self.given.append(used.token)
                self.tried += 1

    async def until(self, tries: int) -> None:
        async with asyncio.timeout(30):
            while self.tried < tries:  # noqa: ASYNC110  a count of many tasks
                await asyncio.sleep(0)


@pytest.mark.parametrize("standing", [True, False])
async def test_nothing_survives_that_is_handed_on_while_its_grant_ends(
    world: TokenWorld, alpha: Agent, beta: Agent, standing: bool
) -> None:
    receivers = [await world.agent(f"receiver-{number}") for number in range(4)]
    for _ in range(10):
        own = await world.own(alpha)
        root = own if standing else await world.delegate(alpha, beta, subject=own)
        giver, givers = alpha if standing else beta, _Givers(world)
        tasks = [asyncio.create_task(givers.give(giver, root, receivers[number % 4 :: 4])) for number in range(8)]
        await givers.until(8)
        grant_id = "agent:alpha" if standing else (await world.read(root)).grant_id
        # this process reads the feed only after the answer: nothing but the fence is in the way
        await world.revocation.revoke(grant_id, OPERATOR)
        await givers.until(givers.tried + 16)
        givers.told = True
        await asyncio.gather(*tasks)
        tokens = [await world.read(text) for text in givers.given]
        assert len(tokens) >= 8
        assert [token for token in tokens if _works(world, token)] == []


async def test_a_stop_of_the_giver_ends_what_it_gave(world: TokenWorld, alpha: Agent, beta: Agent) -> None:
    used = (await world.exchange(beta, await world.delegate(alpha, beta), **READ)).token
    token = await world.read(used)
    assert Name("agent", alpha.id) in stored(token.names)
    await world.stop(Name("agent", alpha.id))
    assert not _works(world, token)

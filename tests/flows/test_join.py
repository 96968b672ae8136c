"""Joining: a token opens one node id, once, in time; every other try leaves a record and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from tests.flows.provisioning_world import World, cause, open_world, request

from aims.attestation import Selector
from aims.clock import IdSource, SystemClock
from aims.credentials import x509_svid
from aims.credentials.bundle import BundleSet
from aims.errors import AimsError
from aims.provisioning.bundles import domain_bundle
from aims.provisioning.errors import ProvisioningError
from aims.provisioning.join import Joined
from aims.provisioning.registry.model import NodeState
from aims.provisioning.registry.store import read_nodes
from aims.storage.database import Database
from aims.storage.schema import once
from aims.storage.write import Verdict


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> World:
    return await open_world(database, clock, ids)


async def _join(world: World, secret: bytes, node: str, csr: bytes | None = None) -> Joined:
    plan = world.joins.join(
        secret=secret, node_id=node, csr=request() if csr is None else csr, request_id=world.ids.new()
    )
    return await world.commit(plan)


async def _refused(world: World, secret: bytes, node: str, csr: bytes | None = None) -> tuple[str, dict[str, Any]]:
    with pytest.raises(AimsError) as refusal:
        await _join(world, secret, node, csr)
    return refusal.value.code, world.last_record()


async def test_a_token_gives_its_node_a_certificate_for_its_own_key_and_name(world: World) -> None:
    token = await world.token()
    key = ec.generate_private_key(ec.SECP256R1())
    joined = await _join(world, token.secret, "laptop", request(key))
    svid = x509_svid.validate(
        joined.svid.der,
        BundleSet([domain_bundle(world.keeper.authority)]),
        now=world.clock.now(),
        own=world.registry.trust_domain,
    )
    assert str(svid.spiffe_id) == "spiffe://local.test/nodes/laptop"
    assert svid.leaf.public_key() == key.public_key()
    # nothing of the request's subject or names is taken
    assert list(svid.leaf.subject) == []
    names = svid.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://local.test/nodes/laptop"]
    assert svid.fence is not None
    assert svid.fence.node == "laptop"
    assert svid.not_after - world.clock.now() <= 3600
    assert joined.expires_at == svid.not_after
    record = world.last_record()
    assert record["type"] == "node.join"
    assert record["node"] == "laptop"
    assert "claimed" not in record
    with world.database.reading() as connection:
        (node,) = read_nodes(connection)
    assert node.state is NodeState.ACTIVE
    assert node.last_seen >= node.created


async def test_a_wrong_node_or_secret_is_refused_and_spends_nothing(world: World) -> None:
    token = await world.token("laptop")
    await world.token("desk")
    for secret, node in ((token.secret, "desk"), (bytes(32), "laptop"), (token.secret, "stranger"), (b"", "laptop")):
        code, record = await _refused(world, secret, node)
        assert code == "provisioning.join_refused"
        assert record["type"] == "node.refuse"
        # T22: nobody was authenticated, so what was said stands apart
        assert record["agent"] is None
        assert record["claimed"] == {"node": node}
        assert record.get("node") is None
        assert record["resource"] is None
        assert record["decision"]["reason"] == "storage.consumed"
    assert str((await _join(world, token.secret, "laptop")).spiffe_id).endswith("/nodes/laptop")


async def test_a_token_that_says_nothing_of_selectors_leaves_those_that_the_node_has(world: World) -> None:
    rack = frozenset({Selector.parse("node:rack-7")})
    assert (await world.node("fresh", None)).selectors == frozenset()
    await world.node("laptop", rack)
    seen = world.registry.seq
    again = await world.token("laptop", selectors=None)
    assert (world.registry.node("laptop").selectors, world.registry.seq) == (rack, seen)
    await _join(world, again.secret, "laptop")
    assert world.registry.node("laptop").selectors == rack
    await world.token("laptop")
    assert world.registry.node("laptop").selectors == frozenset()
    await world.commit(world.admin.ban_node(node_id="laptop", cause=cause()))
    with pytest.raises(ProvisioningError) as refused:
        await world.token("laptop", selectors=None)
    assert refused.value.reason == "node_banned"


async def test_a_token_works_once(world: World) -> None:
    token = await world.token()
    await _join(world, token.secret, "laptop")
    code, record = await _refused(world, token.secret, "laptop")
    assert code == "provisioning.join_refused"
    assert record["outcome"] == "refused"


async def test_an_expired_token_is_refused(world: World, clock: SystemClock) -> None:
    token = await world.token(lifetime=2)
    clock.offset += 3
    code, _ = await _refused(world, token.secret, "laptop")
    assert code == "provisioning.join_refused"


async def test_no_token_lives_beyond_policy_and_limit(world: World) -> None:
    await world.token(lifetime=3600)
    with world.database.reading() as connection:
        (expires,) = connection.execute(sa.select(once.c.expires)).scalars()
    assert expires <= world.clock.now() + 600
    for lifetime in (3601, -1):
        with pytest.raises(ProvisioningError) as refused:
            await world.token(lifetime=lifetime)
        assert refused.value.reason == "join_token_lifetime"


async def test_of_sixteen_uses_of_one_token_one_joins(world: World) -> None:
    for _ in range(5):
        token = await world.token()
        plans = [
            world.joins.join(secret=token.secret, node_id="laptop", csr=request(), request_id=world.ids.new())
            for _ in range(16)
        ]
        outcomes = await asyncio.gather(*(world.database.commit(plan.write) for plan in plans))
        verdicts = sorted(outcome.verdict for outcome in outcomes)
        assert verdicts == ["committed"] + ["consumed"] * 15
        joined = 0
        for plan, outcome in zip(plans, outcomes, strict=True):
            if outcome.verdict == "committed":
                joined += bool(plan.answer(outcome))
            else:
                with pytest.raises(ProvisioningError):
                    plan.answer(outcome)
        assert joined == 1


async def test_two_processes_race_for_one_token(
    world: World, database_url: str, clock: SystemClock, ids: IdSource, tmp_path: Any
) -> None:
    (tmp_path / "other").mkdir()
    other = Database.open(database_url, clock=clock, ids=ids, folder=tmp_path / "other")
    try:
        for _ in range(5):
            token = await world.token()
            plans = [
                world.joins.join(secret=token.secret, node_id="laptop", csr=request(), request_id=world.ids.new())
                for _ in range(8)
            ]
            outcomes = await asyncio.gather(
                *((world.database, other)[turn % 2].commit(plan.write) for turn, plan in enumerate(plans))
            )
            assert [outcome.verdict for outcome in outcomes].count(Verdict.COMMITTED) == 1
    finally:
        other.close()


@pytest.mark.parametrize("node", ["../admin", "%2e%2e", "", "a" * 300, "A", "laptop\n", "eyJhbGciOi.eyJzdWIiOi.c2ln"])
async def test_a_node_name_that_is_none_is_refused_and_recorded_apart(world: World, node: str) -> None:
    token = await world.token()
    code, record = await _refused(world, token.secret, node)
    assert code == "provisioning.name_malformed"
    assert record["agent"] is None
    assert set(record["claimed"]) == {"node"}
    assert record["decision"]["reason"] == code
    await _join(world, token.secret, "laptop")


async def test_a_request_without_proof_of_its_key_is_refused_and_spends_nothing(world: World) -> None:
    token = await world.token()
    good = request()
    for csr in (b"", b"\x30\x00", good[:-1], good[:-1] + bytes([good[-1] ^ 1]), good + b"\x00", b"\x30" * 20_000):
        code, _ = await _refused(world, token.secret, "laptop", csr)
        assert code == "provisioning.csr_malformed"
    await _join(world, token.secret, "laptop", good)


async def test_a_banned_node_neither_joins_nor_renews_nor_gets_a_token(world: World) -> None:
    await world.node()
    token = await world.token()
    renew = world.joins.renew(node_id="laptop", csr=request(), request_id="r")  # decided before the ban
    ban = world.admin.ban_node(node_id="laptop", cause=cause("stolen"))
    await world.database.commit(ban.write)
    with pytest.raises(ProvisioningError) as late:
        await world.commit(renew)
    assert late.value.reason == "stopped"
    code, _ = await _refused(world, token.secret, "laptop")
    assert code == "provisioning.join_refused"
    with pytest.raises(ProvisioningError) as renewed:
        await world.commit(world.joins.renew(node_id="laptop", csr=request(), request_id="r"))
    assert renewed.value.reason == "node_banned"
    with pytest.raises(ProvisioningError) as again:
        await world.token()
    assert again.value.reason == "node_banned"
    with pytest.raises(ProvisioningError) as twice:
        world.admin.ban_node(node_id="laptop", cause=cause())
    assert twice.value.reason == "node_banned"
    bans = [record for record in world.records() if record["type"] == "node.ban"]
    assert [record["cause"]["reason"] for record in bans] == ["stolen"]


async def test_a_node_renews_under_a_new_key(world: World) -> None:
    await world.node()
    first = await world.commit(world.joins.renew(node_id="laptop", csr=request(), request_id="r"))
    second = await world.commit(world.joins.renew(node_id="laptop", csr=request(), request_id="r"))
    assert first.spiffe_id == second.spiffe_id
    assert first.svid.leaf.public_key() != second.svid.leaf.public_key()
    assert first.svid.serial != second.svid.serial
    record = world.last_record()
    assert record["type"] == "credential.renew"
    assert record["agent"]["id"] == "spiffe://local.test/nodes/laptop"


async def test_no_node_takes_the_servers_own_name(world: World) -> None:
    with pytest.raises(ProvisioningError) as refused:
        await world.token("aims")
    assert refused.value.reason == "name_reserved"


async def test_the_store_holds_no_secret(world: World) -> None:
    token = await world.token()
    with world.database.reading() as connection:
        (row,) = connection.execute(sa.select(once)).all()
    assert token.secret not in bytes(row.id_hash)
    assert token.secret.hex() not in repr(token)
    assert "secret" not in repr(token)
    text = token.encode()
    for record in world.records():
        assert text not in repr(record)

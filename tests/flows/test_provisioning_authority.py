"""The authority on both back ends: one set of first keys; each published before it signs, believed while it must."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.flows.provisioning_world import DOMAIN, World, open_world, request

from aims.clock import IdSource, SystemClock
from aims.credentials import x509_svid
from aims.credentials.bundle import BundleSet
from aims.credentials.errors import CredentialError
from aims.credentials.model import Fence
from aims.errors import AimsError
from aims.identifiers import SpiffeId
from aims.keys import Purpose, open_store
from aims.provisioning.authority import store
from aims.provisioning.authority.issuer_keys import published_keys
from aims.provisioning.authority.keeper import Keeper
from aims.provisioning.authority.local import localhost, own_svid
from aims.provisioning.authority.model import LIFE, PUBLISHED_FIRST, SIGNED_LIFE, SKEW, AuthorityState, Step
from aims.provisioning.authority.service import PURPOSES, SCHEDULE, AuthorityService
from aims.provisioning.bundles import domain_bundle, jwt_svid_jwks
from aims.provisioning.errors import ProvisioningError
from aims.storage.database import Database
from aims.x509 import parse_csr

CA = Purpose.X509_CA


@pytest.fixture
async def world(database: Database, clock: SystemClock, ids: IdSource) -> World:
    return await open_world(database, clock, ids)


def _keeper(database: Database, uri: str, clock: SystemClock, ids: IdSource) -> Keeper:
    return Keeper(database, AuthorityService(open_store(uri), uri, DOMAIN, clock, ids), DOMAIN)


def _kids(world: World, purpose: Purpose) -> list[str]:
    return [key.kid for key in world.keeper.authority.state.published(purpose)]


def _svid(world: World) -> x509_svid.X509Svid:
    return world.keeper.authority.sign_x509(
        SpiffeId.agent(DOMAIN, "a"),
        public_key=parse_csr(request()),
        serial=12345,
        now=int(world.clock.now()),
        lifetime=60,
        fence=Fence("laptop:" + "a" * 26, 1),
    )


def test_a_purpose_without_a_key_signs_and_publishes_nothing() -> None:
    empty = AuthorityState(0, ())
    assert len(published_keys(empty, Purpose.SET)) == 0
    with pytest.raises(ProvisioningError) as caught:
        empty.current(Purpose.SET)
    assert caught.value.code == "provisioning.authority_empty"


async def test_processes_that_race_for_the_first_keys_end_with_one_set(
    database_url: str, clock: SystemClock, ids: IdSource, tmp_path: Path
) -> None:
    uri = f"file:{tmp_path / 'keys'}"
    databases = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        databases.append(Database.open(database_url, clock=clock, ids=ids, folder=tmp_path / name))
    try:
        keepers = [_keeper(databases[turn % 2], uri, clock, ids) for turn in range(6)]
        opened = await asyncio.gather(*(keeper.open() for keeper in keepers))
        assert len({authority.state for authority in opened}) == 1
        state = opened[0].state
        assert state.sequence == 1
        assert sorted(key.purpose for key in state.keys) == sorted(PURPOSES)
        # the losers' keys are gone
        keys = open_store(uri)
        for purpose in PURPOSES:
            assert await keys.kids(purpose) == (state.current(purpose).kid,)
    finally:
        for database in databases:
            database.close()


async def test_the_next_key_is_published_before_it_signs_and_the_old_one_after(
    world: World, clock: SystemClock
) -> None:
    old_root = world.keeper.authority.roots[0]
    old = _svid(world)
    clock.offset += LIFE[CA] / 2 + 1
    assert await world.keeper.turn(clock.now()) == tuple(
        (purpose, Step.PREPARE) for purpose in PURPOSES if purpose is not Purpose.TLS_PUBLIC
    )
    state = world.keeper.authority.state
    current, following = state.current(CA), state.next(CA)
    assert following is not None
    assert len(world.keeper.authority.roots) == 2
    bundles = BundleSet([domain_bundle(world.keeper.authority)])
    assert x509_svid.validate(old.der, bundles, now=clock.now() - LIFE[CA] / 2, own=DOMAIN) == old
    # prepared, not in use
    between = _svid(world)
    assert between.leaf.issuer == old_root.subject
    with pytest.raises(ProvisioningError) as early:
        await world.keeper.step(CA, Step.ACTIVATE, SCHEDULE)
    assert early.value.reason == "authority_slot"
    clock.offset += LIFE[CA] / 3
    assert (CA, Step.ACTIVATE) in await world.keeper.turn(clock.now())
    state = world.keeper.authority.state
    assert state.current(CA).kid == following.kid
    assert _kids(world, CA) == [current.kid, following.kid]
    new = _svid(world)
    assert new.leaf.issuer != old_root.subject
    bundles = BundleSet([domain_bundle(world.keeper.authority)])
    assert x509_svid.validate(new.der, bundles, now=clock.now(), own=DOMAIN) == new
    # once everything that it signed has ended, the old key is gone everywhere
    clock.offset += SIGNED_LIFE[CA] + SKEW - 60
    assert (CA, Step.PRUNE) not in await world.keeper.turn(clock.now())
    clock.offset += 120
    assert (CA, Step.PRUNE) in await world.keeper.turn(clock.now())
    assert _kids(world, CA) == [following.kid]
    with pytest.raises(CredentialError):
        x509_svid.validate(
            old.der, BundleSet([domain_bundle(world.keeper.authority)]), now=old.not_before + 20, own=DOMAIN
        )


async def test_every_step_raises_the_number_of_the_bundle_and_leaves_a_record(world: World, clock: SystemClock) -> None:
    numbers = [domain_bundle(world.keeper.authority).sequence]
    contents = {domain_bundle(world.keeper.authority).build()}
    for _ in range(24):
        clock.offset += 12 * 3600
        steps = await world.keeper.turn(clock.now())
        number = domain_bundle(world.keeper.authority).sequence
        assert number is not None
        assert number - (numbers[-1] or 0) == len(steps)
        numbers.append(number)
        contents.add(domain_bundle(world.keeper.authority).build())
    assert (numbers[-1] or 0) > 10
    assert len(contents) == len(set(numbers))
    rotated = [record for record in world.records() if record["type"] == "key.rotated"]
    assert len(rotated) == numbers[-1]
    assert all(record["cause"] == {"admin": "schedule"} for record in rotated)
    # a process that starts now reads the same number
    with world.database.reading() as connection:
        assert store.read(connection) == world.keeper.authority.state


async def test_of_processes_that_take_one_step_one_wins(
    database: Database, clock: SystemClock, ids: IdSource, tmp_path: Path
) -> None:
    uri = f"file:{tmp_path / 'keys'}"
    keepers = [_keeper(database, uri, clock, ids) for _ in range(4)]
    for keeper in keepers:
        await keeper.open()
    clock.offset += LIFE[CA] / 2 + 1
    won = await asyncio.gather(*(keeper.step(CA, Step.PREPARE, SCHEDULE) for keeper in keepers))
    assert sorted(won) == [False, False, False, True]
    assert len({keeper.authority.state for keeper in keepers}) == 1
    assert len(await open_store(uri).kids(CA)) == 2


async def test_an_authority_that_slept_beyond_its_end_recovers_and_signs_nothing_before(
    world: World, clock: SystemClock
) -> None:
    clock.offset += LIFE[CA] + 60
    with pytest.raises(AimsError) as refused:
        _svid(world)
    assert refused.value.code == "x509.authority"
    with pytest.raises(ProvisioningError):
        await world.keeper.authority.sign_jwt(Purpose.JWT_SVID, {"exp": int(clock.now()) + 60})
    assert (CA, Step.PREPARE) in await world.keeper.turn(clock.now())
    assert (CA, Step.ACTIVATE) in await world.keeper.turn(clock.now())
    assert _svid(world).leaf.issuer == world.keeper.authority.roots[-1].subject


async def test_no_token_is_signed_without_or_beyond_an_end(world: World) -> None:
    claims: tuple[dict[str, Any], ...] = (
        {},
        {"exp": None},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": world.keeper.authority.ends(Purpose.WIT_SVID) + 1},
    )
    for each in claims:
        with pytest.raises(ProvisioningError) as refused:
            await world.keeper.authority.sign_jwt(Purpose.WIT_SVID, each)
        assert refused.value.reason == "lifetime"


async def test_the_bundle_holds_each_key_under_its_own_use_and_no_tls_authority(world: World) -> None:
    authority = world.keeper.authority
    document = msgspec.json.decode(domain_bundle(authority).build())
    uses = [key["use"] for key in document["keys"]]
    assert uses == ["x509-svid", "jwt-svid", "wit-svid"]
    assert "kid" not in document["keys"][0]
    kids = [key["kid"] for key in document["keys"][1:]]
    assert kids == _kids(world, Purpose.JWT_SVID) + _kids(world, Purpose.WIT_SVID)
    assert document["spiffe_sequence"] == 1
    assert document["spiffe_refresh_hint"] * 2 == PUBLISHED_FIRST
    tls = authority.tls_ca.public_key()
    assert all(root.public_key() != tls for root in authority.roots)
    oidc = msgspec.json.decode(jwt_svid_jwks(authority))
    assert [key["kid"] for key in oidc["keys"]] == _kids(world, Purpose.JWT_SVID)


async def test_the_server_shows_certificates_of_its_own_that_are_recorded(world: World, clock: SystemClock) -> None:
    authority = world.keeper.authority
    shown = await world.commit(own_svid(authority, epoch=world.registry.seq, clock=clock, ids=world.ids))
    svid = x509_svid.read([_der(shown.identity.chain[0])])
    assert str(svid.spiffe_id) == "spiffe://local.test/services/aims"
    assert svid.fence is not None
    assert svid.not_after - clock.now() <= 3600
    assert clock.now() + 1700 < shown.renew_at < clock.now() + 1900
    local = await world.commit(localhost(authority, clock=clock, ids=world.ids))
    leaf = local.identity.chain[0]
    assert leaf.issuer == authority.tls_ca.subject
    key = authority.tls_ca.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    leaf.verify_directly_issued_by(authority.tls_ca)
    issued = [record for record in world.records() if record["type"] == "credential.issue"]
    assert [record["token"]["kind"] for record in issued] == ["x509-svid", "tls-public"]


async def test_private_keys_stay_out_of_the_database(world: World) -> None:
    with world.database.reading() as connection:
        state = store.read(connection)
    for key in state.keys:
        assert '"d"' not in key.jwk
        assert b"PRIVATE" not in key.certificate


def _der(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    octets: bytes = certificate.public_bytes(Encoding.DER)
    return octets

"""What a process holds: given at once and whole, renewed, kept while the server is away, and taken back in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from grpclib.const import Status
from tests.flows.node_world import PATIENCE, Program, Side, svids, watching
from tests.flows.provisioning_world import DOMAIN, PROFILE, cause, open_world, request

from aims.attestation import Selector
from aims.clock import IdSource, SystemClock
from aims.credentials import jwt_svid
from aims.errors import AimsError
from aims.node.cache import Caller, IdentityCache, recognise
from aims.node.errors import NodeError
from aims.node.grpc_call import status_of
from aims.node.launch import Launcher
from aims.node.server_client import ServerRefusedError
from aims.provisioning.registry.model import State
from aims.provisioning.registry.service import Demand, state_change
from aims.storage.database import Database
from aims.storage.write import Name, Write

TOOL = ("spiffe://local.test/services/tool",)
AWAY = NodeError("server_unreachable")


@pytest_asyncio.fixture
async def side(database: Database, clock: SystemClock, ids: IdSource) -> AsyncIterator[Side]:
    world = await open_world(database, clock, ids)
    await world.owner()
    token = await world.token("laptop")
    joined = await world.commit(
        world.joins.join(secret=token.secret, node_id="laptop", csr=request(), request_id=ids.new())
    )
    await world.agent()
    side = Side(world, joined.svid)
    yield side
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _ends(wanted: Any) -> AimsError:
    with pytest.raises(AimsError) as refusal:
        await wanted
    return refusal.value


async def _commit_state(side: Side, state: State) -> None:
    workload = side.world.registry.workload("researcher")
    effects, changes = state_change(side.world.registry, workload, state)
    await side.world.database.commit(Write(record=lambda _: b"{}", effects=effects, changes=changes))


async def test_the_first_state_is_whole_and_comes_at_once(side: Side) -> None:
    demand = Demand(selectors=frozenset({PROFILE.selector()}), nodes=frozenset({"laptop"}), hint="second")
    await side.world.commit(side.world.admin.create_entry(name="researcher", demand=demand, cause=cause()))
    side.tell()
    async with watching(side.tenant()) as stream:
        state = await stream.next()
    assert [identity.hint for identity in state.x509] == ["", "second"]
    assert [identity.spiffe_id for identity in state.wit] == [identity.spiffe_id for identity in state.x509]
    assert list(state.x509_bundles) == list(state.jwt_bundles) == list(state.wit_bundles) == [DOMAIN]
    # two credentials, four keys
    assert len({identity.key for identity in state.x509} | {identity.key for identity in state.wit}) == 4


async def test_a_process_is_the_agent_that_it_was_launched_as_and_no_other_of_the_same_program(side: Side) -> None:
    await side.world.agent("writer")
    side.tell()
    async with watching(side.tenant("writer")) as stream:
        assert [str(svid.spiffe_id) for svid in svids(await stream.next())] == ["spiffe://local.test/agents/writer"]
    unapproved = side.tenant("writer", Selector("launch", "unmeasured"), Selector("unix", "uid:1000"))
    async with watching(unapproved) as stream:
        assert (await _ends(stream.next())).code == "node.not_entitled"


async def test_tokens_are_kept_to_half_life_bound_to_the_proof_key_and_made_anew_after_it(side: Side) -> None:
    side.tell()
    tenant = side.tenant()
    (first,) = await tenant.tokens(TOOL, None)
    (again,) = await tenant.tokens(TOOL, first.spiffe_id)
    assert first == again
    assert side.client.calls == ["issue", "jwt-svid"]
    found = jwt_svid.validate(
        first.token, side.state.bundles.jwt_keys, audience=TOOL[0], now=side.world.clock.now(), own=DOMAIN
    )
    async with watching(tenant) as stream:
        (svid,) = svids(await stream.next())
    assert (found.fence, found.jkt is None) == (svid.fence, False)
    side.world.clock.offset += 200  # of 300 s
    side.client.problem = AWAY
    assert (await tenant.tokens(TOOL, None)) == (first,)  # still good, and nobody to ask
    side.client.problem = None
    assert (await tenant.tokens(TOOL, None)) != (first,)
    refused = await _ends(tenant.tokens(TOOL, svid.spiffe_id.agent(DOMAIN, "writer")))
    assert refused.code == "node.not_entitled"


async def test_a_server_that_is_away_leaves_what_was_issued_until_it_expires_and_not_longer(side: Side) -> None:
    side.tell()
    tenant = side.tenant()
    async with watching(tenant) as stream:
        (before,) = svids(await stream.next())
        side.client.problem = AWAY
        side.world.clock.offset += 3000  # of 3600 s
        async with watching(tenant) as another:
            assert svids(await another.next())[0].serial == before.serial
        side.world.clock.offset += 700
        tenant.settle()
        ended = await _ends(stream.next())
    assert (ended.code, status_of(ended)) == ("node.not_ready", Status.UNAVAILABLE)
    async with watching(tenant) as stream:
        assert status_of(await _ends(stream.next())) is Status.UNAVAILABLE


async def test_a_refusal_at_renewal_ends_the_stream_and_the_credential(side: Side) -> None:
    side.tell()
    tenant = side.tenant()
    program = cast("Program", tenant.process)
    for problem in (NodeError("launch_mismatch"), NodeError("exe_changed")):
        program.problem = None
        side.tell()
        async with watching(tenant) as stream:
            await stream.next()
            program.problem = problem
            side.world.clock.offset += 2000  # past half-life: whoever comes now has it renewed
            with contextlib.suppress(AimsError):
                async with watching(tenant) as another:
                    await another.next()
            ended = await _ends(stream.next())
        assert (ended.code, status_of(ended)) == (problem.code, Status.PERMISSION_DENIED)
        assert (await _ends(tenant.tokens(TOOL, None))).code == problem.code


async def test_a_process_that_became_another_program_gets_nothing_of_what_is_kept(side: Side) -> None:
    side.tell()
    tenant = side.tenant()
    await tenant.tokens(TOOL, None)
    cast("Program", tenant.process).changed = NodeError("exe_changed")
    assert (await _ends(tenant.tokens(TOOL, None))).code == "node.exe_changed"
    async with watching(tenant) as stream:
        assert (await _ends(stream.next())).code == "node.exe_changed"
    assert side.client.calls == ["issue", "jwt-svid"]


async def test_a_stop_ends_streams_at_once_and_resuming_gives_new_credentials_alone(side: Side) -> None:
    side.tell()
    tenant = side.tenant()
    async with watching(tenant) as stream:
        (before,) = svids(await stream.next())
        await _commit_state(side, State.SUSPENDED)
        side.tell()
        ended = await _ends(stream.next())
        assert (ended.code, status_of(ended)) == ("node.stopped", Status.PERMISSION_DENIED)
    assert (await _ends(tenant.tokens(TOOL, None))).code == "node.not_entitled"
    await _commit_state(side, State.ACTIVE)
    side.tell()
    async with watching(tenant) as stream:
        (after,) = svids(await stream.next())
    assert before.fence is not None
    assert after.fence is not None
    assert after.serial != before.serial
    assert after.fence.epoch >= side.state.stops[0].seq > before.fence.epoch
    assert after.fence.instance == before.fence.instance


@pytest.mark.parametrize("kind", ["agent", "node", "instance"])
async def test_a_stop_line_by_any_name_ends_the_stream(side: Side, kind: str) -> None:
    side.tell()
    tenant = side.tenant()
    names = {"agent": "spiffe://local.test/agents/researcher", "node": "laptop", "instance": tenant.process.instance}
    async with watching(tenant) as stream:
        await stream.next()
        seq = side.state.seq + 1
        side.tell({"type": "stop", "kind": "person", "id": "person:x", "seq": seq, "blocked": True})
        side.tell({"type": "stop", "kind": kind, "id": names[kind], "seq": seq, "blocked": True})
        assert (await _ends(stream.next())).code == "node.stopped"


async def test_a_stop_that_was_lifted_before_it_was_heard_replaces_the_credential(side: Side) -> None:
    side.tell()
    tenant = side.tenant()
    async with watching(tenant) as stream:
        (before,) = svids(await stream.next())
        await side.world.stop(Name("agent", "spiffe://local.test/agents/researcher"), blocked=False)
        side.tell()
        assert status_of(await _ends(stream.next())) is Status.UNAVAILABLE
    async with watching(tenant) as stream:
        assert svids(await stream.next())[0].serial != before.serial


async def test_a_suspended_entry_gives_nothing_and_a_refusal_is_not_asked_for_again(side: Side) -> None:
    side.tell()
    tenant = side.tenant()
    async with watching(tenant) as stream:
        await stream.next()
        document = side.document()
        (entry,) = document["entries"]
        suspended = {"type": "entries", "seq": document["seq"], "set": [entry | {"state": "suspended"}], "removed": []}
        side.tell(suspended)
        assert (await _ends(stream.next())).code == "node.stopped"
    side.client.problem = ServerRefusedError(403, "provisioning.policy_refused", "No.", "")
    side.tell()
    async with watching(tenant) as stream:
        refused = await _ends(stream.next())
    assert (refused.code, status_of(refused)) == ("node.server_refused", Status.PERMISSION_DENIED)
    assert "provisioning.policy_refused" in refused.sentence
    asked = len(side.client.calls)
    for _ in range(20):
        await asyncio.sleep(0)
        async with watching(tenant) as stream:
            assert (await _ends(stream.next())).code == "node.server_refused"
    assert len(side.client.calls) == asked
    # what the server says next may have changed its mind
    side.client.problem = None
    side.tell()
    async with watching(tenant) as stream:
        await stream.next()


async def test_what_was_decided_before_a_stop_is_not_handed_out_after_it(side: Side) -> None:
    side.tell()
    side.client.late.clear()
    tenant = side.tenant()
    async with watching(tenant) as stream:
        first = asyncio.ensure_future(stream.next())
        await asyncio.wait_for(side.client.answered.wait(), PATIENCE)
        # committed by the server and on its way; meanwhile the agent was stopped and resumed
        await side.world.stop(Name("agent", "spiffe://local.test/agents/researcher"), blocked=False)
        side.tell()
        side.client.late.set()
        try:
            state = await first
        except AimsError as error:
            assert error.code in {"node.stopped", "node.not_ready"}  # noqa: PT017  either may come first
        else:
            fence = svids(state)[0].fence
            assert fence is not None
            assert fence.epoch >= side.state.stops[0].seq


async def test_an_answer_for_another_key_is_not_believed(side: Side) -> None:
    side.tell()

    def another_key(body: dict[str, Any]) -> None:
        from aims.jose import base64url

        body["csr"] = base64url.encode(request(ec.generate_private_key(ec.SECP256R1()))).decode()

    side.client.tamper = another_key
    async with watching(side.tenant()) as stream:
        assert status_of(await _ends(stream.next())) is Status.UNAVAILABLE
    assert side.client.calls[0] == "issue"


async def test_a_removed_entry_takes_its_identity_from_the_stream_and_the_end_of_the_process_takes_all(
    side: Side,
) -> None:
    demand = Demand(selectors=frozenset({PROFILE.selector()}), nodes=frozenset({"laptop"}), hint="second")
    second = await side.world.commit(side.world.admin.create_entry(name="researcher", demand=demand, cause=cause()))
    side.tell()
    tenant = side.tenant()
    async with watching(tenant) as stream:
        assert len((await stream.next()).x509) == 2
        side.tell({"type": "entries", "seq": side.state.seq, "set": [], "removed": [second.id]})
        assert [identity.hint for identity in (await stream.next()).x509] == [""]
        tenant.end(NodeError("launch_ended"))
        assert (await _ends(stream.next())).code == "node.launch_ended"
    assert status_of(NodeError("launch_ended")) is Status.PERMISSION_DENIED
    async with watching(tenant) as stream:
        assert (await _ends(stream.next())).code == "node.launch_ended"


class _Launcher:
    """Knows no launch; ``below`` says whether everybody hangs below one."""

    def __init__(self) -> None:
        self.below = False

    def launched(self, _: object) -> None:
        return None

    def nested(self, _: object) -> bool:
        return self.below


async def test_a_node_that_hears_nothing_of_its_server_vouches_for_no_token(side: Side) -> None:
    world = side.world
    cache = IdentityCache(
        side.state, side.issuer, lambda: cast("Launcher", _Launcher()), node="laptop", clock=world.clock, ids=world.ids
    )
    with contextlib.ExitStack() as stack:
        caller = _connected(stack)
        await world.agent("daemon", nodes=frozenset())
        mine = frozenset({Selector("unix", f"uid:{os.geteuid()}"), Selector("unix", f"gid:{os.getegid()}")})
        demand = Demand(selectors=mine, nodes=frozenset({"laptop"}))
        await world.commit(world.admin.create_entry(name="daemon", demand=demand, cause=cause()))
        side.tell()
        (token,) = await cache.jwt_svids(caller, TOOL, None)
        assert (await cache.validate_jwt_svid(caller, TOOL[0], token.token)).spiffe_id == token.spiffe_id
        # a stop may have been missed since the server was last heard
        world.clock.offset += side.state.max_stale + 1
        assert not side.state.fresh
        refused = await _ends(cache.validate_jwt_svid(caller, TOOL[0], token.token))
        assert (refused.code, status_of(refused)) == ("node.not_ready", Status.UNAVAILABLE)
        side.tell({"type": "heartbeat", "seq": side.state.seq})
        assert (await cache.validate_jwt_svid(caller, TOOL[0], token.token)).spiffe_id == token.spiffe_id
        cache.close()


async def test_a_process_that_was_not_launched_is_known_by_its_uid_and_keeps_its_instance(side: Side) -> None:
    launcher = _Launcher()
    cache = IdentityCache(
        side.state,
        side.issuer,
        lambda: cast("Launcher", launcher),
        node="laptop",
        clock=side.world.clock,
        ids=side.world.ids,
    )
    with contextlib.ExitStack() as stack:
        callers = [_connected(stack) for _ in range(2)]
        assert (await _ends(_first(cache, callers[0]))).code == "node.not_ready"
        side.tell()
        assert (await _ends(_first(cache, callers[0]))).code == "node.not_entitled"
        await side.world.agent("daemon", nodes=frozenset())
        mine = frozenset({Selector("unix", f"uid:{os.geteuid()}"), Selector("unix", f"gid:{os.getegid()}")})
        demand = Demand(selectors=mine, nodes=frozenset({"laptop"}))
        await side.world.commit(side.world.admin.create_entry(name="daemon", demand=demand, cause=cause()))
        side.tell()
        first, second = [svids(await _first(cache, caller))[0] for caller in callers]
        assert str(first.spiffe_id) == "spiffe://local.test/agents/daemon"
        assert first.serial == second.serial
        assert first.fence is not None
        assert first.fence.instance.startswith("laptop:")
        (token,) = await cache.jwt_svids(callers[1], TOOL, None)
        valid = await cache.validate_jwt_svid(callers[0], TOOL[0], token.token)
        assert (valid.spiffe_id, valid.claims["aud"]) == (first.spiffe_id, list(TOOL))
        for audiences in (("a",) * 9, ("\u00e9",), ("a" * 5000,)):
            assert (await _ends(cache.jwt_svids(callers[0], audiences, None))).code == "node.audience_invalid"
        # a stop reaches a token that is shown to us
        side.tell(
            {"type": "stop", "kind": "agent", "id": str(first.spiffe_id), "seq": side.state.seq + 1, "blocked": False}
        )
        assert (await _ends(cache.validate_jwt_svid(callers[0], TOOL[0], token.token))).code == "node.stopped"
        # below a launch nobody inherits, and after a gap nothing is known
        launcher.below = True
        assert (await _ends(_first(cache, callers[0]))).code == "node.not_entitled"
        launcher.below = False
        side.state.lost()
        assert (await _ends(_first(cache, callers[0]))).code == "node.not_ready"
        cache.close()


def _connected(stack: contextlib.ExitStack) -> Caller:
    one, other = socket.socketpair(socket.AF_UNIX)
    stack.enter_context(one)
    stack.enter_context(other)
    caller = recognise(one)
    stack.callback(caller.close)
    return caller


async def _first(cache: IdentityCache, caller: Caller) -> Any:
    states = cache.subscribe(caller)
    try:
        return await asyncio.wait_for(anext(states), PATIENCE)
    finally:
        await states.aclose()

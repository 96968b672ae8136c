"""The SDK's client of the Workload API: where it connects, what it believes, and how it comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flows.workload_api_fake import (
    ACME,
    AGENT,
    OTHER,
    PATIENCE,
    SECOND,
    SECRET_KEY,
    FakeCaller,
    serve,
    state,
    until,
    wit,
    x509,
)

from aims.identifiers import SpiffeId
from aims.node.grpc_call import CallLimits
from aims.node.grpc_guard import GuardedServer, GuardLimits
from aims.node.identities import JwtIdentity, ValidatedJwtSvid
from aims.node.listener import open_listener
from aims.node.workload_errors import WorkloadApiError
from aims.proto import workload_pb2 as pb
from aims.proto import workload_service as service
from aims.sdk.endpoint import workload_endpoint
from aims.sdk.errors import SdkError
from aims.sdk.workload_client import Backoff, WorkloadClient
from aims.sdk.workload_state import Interrupted, JwtMaterial, Withdrawn, WitState, X509State


@pytest.mark.parametrize(
    ("address", "environment", "found"),
    [
        ("unix:///run/aims/w.sock", {}, "/run/aims/w.sock"),
        ("unix:/run/aims/w.sock", {"SPIFFE_ENDPOINT_SOCKET": "unix:///other"}, "/run/aims/w.sock"),
        (None, {"SPIFFE_ENDPOINT_SOCKET": "unix:///run/w.sock"}, "/run/w.sock"),
        (None, {}, "endpoint_missing"),
        (None, {"SPIFFE_ENDPOINT_SOCKET": ""}, "endpoint_missing"),
        ("", {"SPIFFE_ENDPOINT_SOCKET": "unix:///run/w.sock"}, "endpoint_missing"),
        ("tcp://127.0.0.1:8000", {}, "endpoint_tcp"),
        ("/run/w.sock", {}, "endpoint_malformed"),
        ("unix://host/run/w.sock", {}, "endpoint_malformed"),
        ("unix:run/w.sock", {}, "endpoint_malformed"),
        ("unix://", {}, "endpoint_malformed"),
        ("unix:///", {}, "endpoint_malformed"),
        ("unix:////run/w.sock", {}, "endpoint_malformed"),
        ("unix:///run/w.sock?x=1", {}, "endpoint_malformed"),
        ("unix:///run/w.sock#x", {}, "endpoint_malformed"),
        ("unix:///run/%77.sock", {}, "endpoint_malformed"),
        ("unix:///run/w.sock\n", {}, "endpoint_malformed"),
        ("unix:///run/\0w.sock", {}, "endpoint_malformed"),
        ("UNIX:///run/w.sock", {}, "endpoint_malformed"),
        ("unix:///" + "a" * 107, {}, "endpoint_malformed"),
        ("http://localhost", {}, "endpoint_malformed"),
    ],
)
def test_the_endpoint_is_a_unix_socket_and_nothing_else(
    address: str | None, environment: dict[str, str], found: str
) -> None:
    if found.startswith("/"):
        assert workload_endpoint(address, environment) == Path(found)
    else:
        with pytest.raises(SdkError) as refused:
            workload_endpoint(address, environment)
        assert refused.value.code == f"sdk.{found}"


async def test_every_method_gives_frozen_values_without_secrets_in_sight(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, WorkloadClient(served.address) as client:
        served.identities.latest.set(state((x509(AGENT, hint="h"), x509(SECOND)), (wit(),), federated={OTHER: b"oca"}))
        served.identities.jwt = (JwtIdentity(spiffe_id=AGENT, token="a.b.c"),)
        served.identities.valid = ValidatedJwtSvid(spiffe_id=AGENT, claims={"sub": "s", "aud": ["x"], "exp": 5})
        svids = await client.fetch_x509()
        assert [(s.spiffe_id, s.chain, s.key, s.bundle, s.hint) for s in svids.svids] == [
            (AGENT, b"chain-1", SECRET_KEY, b"ca", "h"),
            (SECOND, b"chain-1", SECRET_KEY, b"ca", ""),
        ]
        assert dict(svids.federated) == {OTHER: b"oca"}
        assert dict(await client.fetch_x509_bundles()) == {ACME: b"ca", OTHER: b"oca"}
        assert dict(await client.fetch_jwt_bundles()) == {ACME: b'{"keys":["jwt"]}'}
        assert dict(await client.fetch_wit_bundles()) == {ACME: '{"keys":["wit"]}'}
        wits = await client.fetch_wit(AGENT)
        assert [(w.spiffe_id, w.token, w.key) for w in wits.wits] == [(AGENT, "wit.text", '{"d":"secret-jwk"}')]
        tokens = await client.fetch_jwt(["x"], AGENT)
        assert tokens == (JwtMaterial(spiffe_id=AGENT, token="a.b.c"),)
        assert await client.validate_jwt("x", "a.b.c") == (AGENT, {"sub": "s", "aud": ["x"], "exp": 5.0})
        assert served.recognitions == 1  # one connection for all of it
        shown = repr((svids, wits, tokens))
        for secret in ("secret-key", "secret-jwk", "a.b.c", "wit.text"):
            assert secret not in shown


@pytest.mark.parametrize(
    ("watch", "is_state"),
    [
        ("watch_x509", lambda event: isinstance(event, X509State)),
        ("watch_wit", lambda event: isinstance(event, WitState)),
        ("watch_x509_bundles", lambda event: ACME in event),
        ("watch_jwt_bundles", lambda event: ACME in event),
        ("watch_wit_bundles", lambda event: ACME in event),
    ],
)
async def test_a_watch_tells_withdrawal_and_return(tmp_path: Path, watch: str, is_state: Any) -> None:
    backoff = Backoff(first=0.001, most=0.002)
    async with serve(tmp_path) as served, WorkloadClient(served.address, backoff=backoff) as client:
        served.identities.latest.set(state())
        events = getattr(client, watch)()
        assert is_state(await asyncio.wait_for(anext(events), PATIENCE))
        served.identities.latest.fail(WorkloadApiError("not_entitled"))
        gone = await asyncio.wait_for(anext(events), PATIENCE)
        assert isinstance(gone, Withdrawn)
        assert gone.error.code == "sdk.denied"
        waiting = asyncio.ensure_future(anext(events))
        await until(lambda: served.recognitions == 1 and not waiting.done())
        served.identities.latest.set(state())
        assert is_state(await asyncio.wait_for(waiting, PATIENCE))
        await events.aclose()
        await until(lambda: not served.identities.subscribers)


async def test_a_watch_outlives_the_node_and_backs_off_with_jitter(tmp_path: Path) -> None:
    pauses: list[float] = []
    enough = asyncio.Event()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 8:
            enough.set()
            await back.wait()
        await asyncio.sleep(0)  # a pause lets others run

    back = asyncio.Event()
    backoff = Backoff(first=0.1, most=2.0, settled=0.0)
    async with contextlib.AsyncExitStack() as stack:
        served = await stack.enter_async_context(serve(tmp_path))
        served.identities.latest.set(state())
        client = await stack.enter_async_context(
            WorkloadClient(served.address, backoff=backoff, chance=lambda: 0.5, pause=pause)
        )
        events = client.watch_x509()
        assert isinstance(await asyncio.wait_for(anext(events), PATIENCE), X509State)
        stopping = asyncio.ensure_future(served.stop())
        lost = await asyncio.wait_for(anext(events), PATIENCE)
        assert isinstance(lost, Interrupted)
        assert lost.error.code == "sdk.unavailable"
        await stopping
        again = asyncio.ensure_future(anext(events))  # told once, however often it fails
        await asyncio.wait_for(enough.wait(), PATIENCE)
        assert not again.done()
        # The stream had lived: the first attempt came at once, then 0.2 s doubling up to 2 s, three quarters of each.
        assert pauses == pytest.approx([0.15, 0.3, 0.6, 1.2, 1.5, 1.5, 1.5, 1.5])
        second = await stack.enter_async_context(serve(tmp_path))
        second.identities.latest.set(state((x509(serial=2),)))
        back.set()
        found = await asyncio.wait_for(again, PATIENCE)
        assert isinstance(found, X509State)
        assert found.svids[0].chain == b"chain-2"
        # Having been heard again, it begins with short pauses again.
        pauses.clear()
        await asyncio.wait_for(second.stop(), PATIENCE)
        assert isinstance(await asyncio.wait_for(anext(events), PATIENCE), Interrupted)
        trying = asyncio.ensure_future(anext(events))
        await until(lambda: len(pauses) >= 2)
        trying.cancel()
        await asyncio.wait([trying])
        assert pauses[:2] == pytest.approx([0.15, 0.3])
        await events.aclose()


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_bounded_and_never_nothing(attempt: int, chance: float) -> None:
    backoff = Backoff()
    assert 0.05 <= backoff.delay(attempt, chance) <= backoff.most


async def test_a_watch_gives_up_where_asking_again_does_not_help(tmp_path: Path) -> None:
    async with serve(tmp_path, wit_on=False) as served, WorkloadClient(served.address) as client:
        with pytest.raises(SdkError) as unsupported:
            await asyncio.wait_for(anext(client.watch_wit()), PATIENCE)
        assert unsupported.value.code == "sdk.unsupported"
        with pytest.raises(SdkError) as refused:
            await client.fetch_jwt([])
        assert refused.value.code == "sdk.refused"
        assert "node.audience_missing" in refused.value.detail


async def test_a_node_that_is_away_or_silent_is_told_apart_from_a_refusal(tmp_path: Path) -> None:
    async with WorkloadClient(f"unix://{tmp_path}/nobody.sock") as client:
        with pytest.raises(SdkError) as away:
            await client.fetch_x509()
        assert away.value.code == "sdk.unavailable"
    async with serve(tmp_path) as served, WorkloadClient(served.address) as client:
        served.identities.hang = asyncio.Event()
        with pytest.raises(SdkError) as late:
            await client.fetch_jwt(["a"], seconds=0.05)
        assert late.value.code == "sdk.deadline"
        served.identities.latest.fail(WorkloadApiError("not_entitled"))
        with pytest.raises(SdkError) as denied:
            await client.fetch_x509()
        assert denied.value.code == "sdk.denied"


_WHOLE = pb.X509SVID(spiffe_id=str(AGENT), x509_svid=b"c", x509_svid_key=b"k", bundle=b"b", hint="h")


def _without(field: str) -> pb.X509SVIDResponse:
    svid = pb.X509SVID()
    svid.CopyFrom(_WHOLE)
    svid.ClearField(field)
    return pb.X509SVIDResponse(svids=[svid])


@contextlib.asynccontextmanager
async def misbehaving(folder: Path, *messages: Any) -> AsyncIterator[WorkloadClient]:
    """A server that answers FetchX509SVID with ``messages``, whatever they are, and then stays silent."""

    async def answer(caller: FakeCaller, _: object) -> AsyncGenerator[Any, None]:
        for message in messages:
            yield message
        await asyncio.Event().wait()
        assert not caller.closed

    listener = open_listener(folder / "bad.sock")
    limits = GuardLimits(call=CallLimits(response_octets=64 * 1024 * 1024))
    server: GuardedServer[FakeCaller] = GuardedServer({service.FETCH_X509_SVID: answer}, lambda _: FakeCaller(), limits)
    await server.start(listener.socket)
    async with WorkloadClient(f"unix://{listener.path}") as client:
        yield client
    await asyncio.wait_for(server.stop(), PATIENCE)


@pytest.mark.parametrize(
    "message",
    [
        pb.X509SVIDResponse(),
        *(_without(field) for field in ("spiffe_id", "x509_svid", "x509_svid_key", "bundle")),
        pb.X509SVIDResponse(svids=[_WHOLE], federated_bundles={"spiffe://other.example": b""}),
        pb.X509SVIDResponse(svids=[_WHOLE], federated_bundles={"other.example": b"x"}),
        pb.X509SVIDResponse(svids=[_WHOLE, pb.X509SVID()]),
    ],
)
async def test_an_answer_that_lacks_a_mandatory_field_is_dropped(tmp_path: Path, message: pb.X509SVIDResponse) -> None:
    async with misbehaving(tmp_path, message, pb.X509SVIDResponse(svids=[_WHOLE, _WHOLE])) as client:
        events = client.watch_x509()
        dropped = await asyncio.wait_for(anext(events), PATIENCE)
        assert isinstance(dropped, Interrupted)
        assert dropped.error.code == "sdk.response_invalid"
        good = await asyncio.wait_for(anext(events), PATIENCE)
        assert isinstance(good, X509State)
        assert [svid.hint for svid in good.svids] == ["h", ""]  # of equal hints the first
        await events.aclose()
        with pytest.raises(SdkError) as refused:
            await client.fetch_x509()
        assert refused.value.code == "sdk.response_invalid"


async def test_an_answer_larger_than_four_mebibytes_is_not_read(tmp_path: Path) -> None:
    big = pb.X509SVIDResponse(svids=[_WHOLE], crl=[bytes(4 * 1024 * 1024)])
    async with misbehaving(tmp_path, big) as client:
        with pytest.raises(SdkError) as refused:
            await client.fetch_x509()
        assert refused.value.code == "sdk.response_too_large"


async def test_an_identity_for_one_of_several_can_be_asked_for(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, WorkloadClient(served.address) as client:
        served.identities.latest.set(state(wits=(wit(AGENT), wit(SECOND))))
        chosen = await client.fetch_wit(SECOND)
        assert [each.spiffe_id for each in chosen.wits] == [SECOND]
        with pytest.raises(SdkError) as denied:
            await client.fetch_wit(SpiffeId.agent(ACME, "nobody"))
        assert denied.value.code == "sdk.denied"

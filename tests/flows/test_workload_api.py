"""The Workload API keeps the rules of SPIFFE_Workload_API.md, seen by a client over a real socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from tests.flows.workload_api_fake import (
    ACME,
    AGENT,
    OTHER,
    PATIENCE,
    SECOND,
    SECRET_KEY,
    FakeCaller,
    FakeIdentities,
    RawClient,
    serve,
    state,
    until,
    wit,
    x509,
)

from aims.identifiers import SpiffeId
from aims.jose.errors import JoseError
from aims.keys.errors import KeyStoreError
from aims.node.api_server import ApiServer
from aims.node.errors import NodeError
from aims.node.grpc_call import CallLimits
from aims.node.grpc_guard import GuardedServer, GuardLimits
from aims.node.identities import IdentityState, JwtIdentity, Latest, ValidatedJwtSvid, X509Identity
from aims.node.listener import open_listener
from aims.node.peer import peer_of
from aims.node.workload_api import WorkloadApi
from aims.node.workload_errors import WorkloadApiError
from aims.proto import workload_pb2 as pb
from aims.proto import workload_service as service

OK, INVALID, DEADLINE, DENIED, EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 0, 3, 4, 7, 8, 12, 13, 14
STREAMS = [method for method in service.METHODS.values() if method.streams]


async def test_the_first_message_comes_at_once_and_is_the_whole_state(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.latest.set(state((x509(SECOND), x509(AGENT, hint="b")), federated={OTHER: b"other-ca"}))
        number = client.call(service.FETCH_X509_SVID)
        await until(lambda: client.answers[number].messages(service.FETCH_X509_SVID))
        (message,) = client.answers[number].messages(service.FETCH_X509_SVID)
        assert message == pb.X509SVIDResponse(
            svids=[
                pb.X509SVID(spiffe_id=str(SECOND), x509_svid=b"chain-1", x509_svid_key=SECRET_KEY, bundle=b"ca"),
                pb.X509SVID(
                    spiffe_id=str(AGENT), x509_svid=b"chain-1", x509_svid_key=SECRET_KEY, bundle=b"ca", hint="b"
                ),
            ],
            federated_bundles={"spiffe://other.example": b"other-ca"},
        )


async def test_later_messages_are_whole_states_without_repeats(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        latest = served.identities.latest
        latest.set(state(federated={OTHER: b"other-ca"}))
        number = client.call(service.FETCH_X509_SVID)

        def got() -> list[Message]:
            return client.answers[number].messages(service.FETCH_X509_SVID)

        await until(lambda: len(got()) == 1)
        latest.set(state(federated={OTHER: b"other-ca"}))  # the same
        latest.set(state(federated={OTHER: b"other-ca"}, wit_bundle='{"keys":[2]}'))  # nothing for this method
        wits = client.call(service.FETCH_WIT_BUNDLES)
        await until(lambda: client.answers[wits].messages(service.FETCH_WIT_BUNDLES))
        latest.set(state((x509(serial=2),)))
        await until(lambda: len(got()) >= 2)
        first, second = got()
        assert first.federated_bundles  # type: ignore[attr-defined]  # the message's type is known by its method
        assert second == pb.X509SVIDResponse(
            svids=[pb.X509SVID(spiffe_id=str(AGENT), x509_svid=b"chain-2", x509_svid_key=SECRET_KEY, bundle=b"ca")]
        )


async def test_each_profile_gets_only_its_own_bundles(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.latest.set(state(federated={OTHER: b"other-ca"}))
        expected = {
            service.FETCH_X509_BUNDLES: pb.X509BundlesResponse(
                bundles={"spiffe://acme.example": b"ca", "spiffe://other.example": b"other-ca"}
            ),
            service.FETCH_JWT_BUNDLES: pb.JWTBundlesResponse(bundles={"spiffe://acme.example": b'{"keys":["jwt"]}'}),
            service.FETCH_WIT_BUNDLES: pb.WITBundlesResponse(bundles={"spiffe://acme.example": '{"keys":["wit"]}'}),
            service.FETCH_WIT_SVID: pb.WITSVIDResponse(
                svids=[pb.WITSVID(spiffe_id=str(AGENT), wit_svid="wit.text", wit_svid_key='{"d":"secret-jwk"}')]
            ),
        }
        for method, message in expected.items():
            number = client.call(method)
            await until(lambda: client.answers[number].messages(method))  # noqa: B023 -- awaited in this round
            assert client.answers[number].messages(method) == [message]


@pytest.mark.parametrize("method", service.METHODS.values(), ids=lambda method: method.name)
async def test_who_has_no_identity_is_denied(tmp_path: Path, method: service.Method) -> None:
    requests = {
        service.FETCH_JWT_SVID: pb.JWTSVIDRequest(audience=["a"]),
        service.VALIDATE_JWT_SVID: pb.ValidateJWTSVIDRequest(audience="a", svid="x"),
    }
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        for empty in (False, True):
            if empty:
                served.identities.latest.set(state((), ()))
            else:
                served.identities.latest.fail(WorkloadApiError("not_entitled"))
            answer = await client.answer(client.call(method, requests.get(method)))
            assert (answer.status, answer.code) == (DENIED, "node.not_entitled")
            assert answer.data == b""


@pytest.mark.parametrize("method", STREAMS, ids=lambda method: method.name)
async def test_losing_the_last_identity_ends_the_stream_as_denied(tmp_path: Path, method: service.Method) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.latest.set(state())
        number = client.call(method)
        await until(lambda: client.answers[number].messages(method))
        served.identities.latest.fail(WorkloadApiError("not_entitled"))
        answer = await client.answer(number)
        assert (answer.status, answer.code) == (DENIED, "node.not_entitled")
        await until(lambda: not served.identities.subscribers)


async def test_a_node_that_cannot_answer_yet_is_unavailable(tmp_path: Path) -> None:
    limits = GuardLimits(call=CallLimits(answer_seconds=0.05))
    async with serve(tmp_path, limits) as served, RawClient.connect(served.path) as client:
        silent = await client.answer(client.call(service.FETCH_X509_SVID))  # no state was ever set
        assert (silent.status, silent.code) == (UNAVAILABLE, "node.not_ready")
        served.identities.latest.fail(WorkloadApiError("not_ready"))
        answer = await client.answer(client.call(service.FETCH_X509_SVID))
        assert (answer.status, answer.code) == (UNAVAILABLE, "node.not_ready")
        served.identities.latest.fail(KeyStoreError("unavailable", "private detail"))
        away = await client.answer(client.call(service.FETCH_JWT_BUNDLES))
        assert (away.status, away.code) == (UNAVAILABLE, "keys.unavailable")
        assert "private" not in str(away)


async def test_stopping_ends_every_stream_as_unavailable_and_removes_the_socket(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.latest.set(state())
        numbers = {method: client.call(method) for method in STREAMS}
        await until(lambda: all(client.answers[number].messages(method) for method, number in numbers.items()))
        await asyncio.wait_for(served.stop(), PATIENCE)
        for number in numbers.values():
            answer = await client.answer(number)
            assert (answer.status, answer.code) == (UNAVAILABLE, "node.api_stopping")
        await until(lambda: client.closed)
        assert client.goaway
        assert not served.path.exists()
        assert not served.identities.subscribers


async def test_a_source_that_ends_never_ends_a_stream_with_ok(tmp_path: Path) -> None:
    class Ending(FakeIdentities):
        async def subscribe(self, caller: FakeCaller) -> AsyncGenerator[IdentityState, None]:
            assert not caller.closed
            yield state()

    server = ApiServer(WorkloadApi(Ending()), lambda _: FakeCaller())
    await server.start(tmp_path / "s.sock")
    async with RawClient.connect(tmp_path / "s.sock") as client:
        answer = await client.answer(client.call(service.FETCH_X509_SVID))
        assert len(answer.messages(service.FETCH_X509_SVID)) == 1
        assert (answer.status, answer.code) == (UNAVAILABLE, "node.not_ready")
    await asyncio.wait_for(server.stop(), PATIENCE)


async def test_jwt_svids_are_made_for_the_audiences_asked_for(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.jwt = (JwtIdentity(spiffe_id=AGENT, token="a.b.c", hint="h"),)
        answer = await client.answer(
            client.call(service.FETCH_JWT_SVID, pb.JWTSVIDRequest(audience=["x", "y"], spiffe_id=str(AGENT)))
        )
        assert answer.status == OK
        assert answer.messages(service.FETCH_JWT_SVID) == [
            pb.JWTSVIDResponse(svids=[pb.JWTSVID(spiffe_id=str(AGENT), svid="a.b.c", hint="h")])
        ]
        assert served.identities.asked == [(("x", "y"), AGENT)]


@pytest.mark.parametrize(
    ("method", "message", "code"),
    [
        (service.FETCH_JWT_SVID, pb.JWTSVIDRequest(), "node.audience_missing"),
        (service.FETCH_JWT_SVID, pb.JWTSVIDRequest(audience=["a", ""]), "node.audience_missing"),
        (service.FETCH_JWT_SVID, pb.JWTSVIDRequest(audience=["a", "a"]), "node.audience_invalid"),
        (service.FETCH_JWT_SVID, pb.JWTSVIDRequest(audience=["a" * 2049]), "node.audience_invalid"),
        (service.FETCH_JWT_SVID, pb.JWTSVIDRequest(audience=[str(n) for n in range(9)]), "node.audience_invalid"),
        (
            service.FETCH_JWT_SVID,
            pb.JWTSVIDRequest(audience=["a"], spiffe_id="spiffe://acme.example"),
            "node.spiffe_id_invalid",
        ),
        (
            service.FETCH_JWT_SVID,
            pb.JWTSVIDRequest(audience=["a"], spiffe_id="spiffe://acme.example/a\n"),
            "node.spiffe_id_invalid",
        ),
        (service.FETCH_WIT_SVID, pb.WITSVIDRequest(spiffe_id="agent"), "node.spiffe_id_invalid"),
        (service.VALIDATE_JWT_SVID, pb.ValidateJWTSVIDRequest(svid="a.b.c"), "node.audience_missing"),
        (service.VALIDATE_JWT_SVID, pb.ValidateJWTSVIDRequest(audience="a"), "node.svid_missing"),
    ],
)
async def test_an_empty_or_bad_request_field_is_an_invalid_argument(
    tmp_path: Path, method: service.Method, message: Any, code: str
) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.latest.set(state())
        answer = await client.answer(client.call(method, message))
        assert (answer.status, answer.code) == (INVALID, code)
        assert not served.identities.asked


async def test_an_identity_that_is_not_the_callers_is_denied(tmp_path: Path) -> None:
    foreign = SpiffeId.agent(ACME, "somebody-else")
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.latest.set(state((x509(AGENT),), (wit(AGENT), wit(SECOND))))
        served.identities.jwt = (JwtIdentity(spiffe_id=AGENT, token="a.b.c"),)  # a cache that answers the wrong one
        for method, message in (
            (service.FETCH_JWT_SVID, pb.JWTSVIDRequest(audience=["a"], spiffe_id=str(foreign))),
            (service.FETCH_WIT_SVID, pb.WITSVIDRequest(spiffe_id=str(foreign))),
        ):
            answer = await client.answer(client.call(method, message))
            assert (answer.status, answer.code) == (DENIED, "node.not_entitled")
            assert answer.data == b""
        number = client.call(service.FETCH_WIT_SVID, pb.WITSVIDRequest(spiffe_id=str(SECOND)))
        await until(lambda: client.answers[number].data)
        (chosen,) = client.answers[number].messages(service.FETCH_WIT_SVID)
        assert [svid.spiffe_id for svid in chosen.svids] == [str(SECOND)]  # type: ignore[attr-defined]


async def test_validation_gives_the_claims_or_an_invalid_argument_with_the_reason(tmp_path: Path) -> None:
    request = pb.ValidateJWTSVIDRequest(audience="a", svid="a.b.c")
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        claims = {"sub": str(AGENT), "exp": 1700000000, "aud": ["a"], "big": 2**53 + 1, "n": {"l": [1, None, True]}}
        deep: object = "x"
        for _ in range(20):
            deep = [deep]
        served.identities.valid = ValidatedJwtSvid(spiffe_id=AGENT, claims={**claims, "deep": deep})
        answer = await client.answer(client.call(service.VALIDATE_JWT_SVID, request))
        (message,) = answer.messages(service.VALIDATE_JWT_SVID)
        assert isinstance(message, pb.ValidateJWTSVIDResponse)
        assert message.spiffe_id == str(AGENT)
        assert sorted(message.claims) == ["aud", "exp", "n", "sub"]
        assert message.claims["exp"] == 1700000000
        assert MessageToDict(message.claims)["aud"] == ["a"]
        assert answer.status == OK
        for trouble, status, code in (
            (JoseError("signature", "private"), INVALID, "node.svid_refused"),
            (KeyStoreError("unavailable", "private"), UNAVAILABLE, "keys.unavailable"),
            (WorkloadApiError("not_entitled", "private"), DENIED, "node.not_entitled"),
        ):
            served.identities.trouble = trouble
            refused = await client.answer(client.call(service.VALIDATE_JWT_SVID, request))
            assert (refused.status, refused.code) == (status, code)
            assert trouble.code in str(refused.headers)
            assert "private" not in str(refused)


async def test_an_answer_larger_than_clients_accept_is_refused_whole(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        many = tuple(
            X509Identity(spiffe_id=SpiffeId.agent(ACME, f"a{n}"), chain=bytes(1_000_000), key=b"k") for n in range(5)
        )
        served.identities.latest.set(state(many))
        answer = await client.answer(client.call(service.FETCH_X509_SVID))
        assert (answer.status, answer.code) == (EXHAUSTED, "node.response_too_large")
        assert answer.data == b""


async def test_hints_are_unique_and_short_in_one_answer(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        hints = ["one", "one", "", "é" * 513, "two"]
        served.identities.latest.set(
            state(tuple(x509(SpiffeId.agent(ACME, f"a{i}"), hint=h) for i, h in enumerate(hints)))
        )
        number = client.call(service.FETCH_X509_SVID)
        await until(lambda: client.answers[number].data)
        (message,) = client.answers[number].messages(service.FETCH_X509_SVID)
        assert [svid.hint for svid in message.svids] == ["one", "", "", "", "two"]  # type: ignore[attr-defined]


async def test_a_slow_reader_holds_up_nobody_and_gets_the_newest_state(tmp_path: Path) -> None:
    method = service.FETCH_X509_SVID
    async with (
        serve(tmp_path) as served,
        RawClient.connect(served.path, window=0) as slow,
        RawClient.connect(served.path) as quick,
    ):
        served.identities.latest.set(state((x509(serial=0),)))
        stuck, fine = slow.call(method), quick.call(method)
        await until(lambda: served.identities.subscribers == 2)
        for serial in range(20):
            served.identities.latest.set(state((x509(serial=serial),)))
            expected = serial + 1
            await until(lambda: len(quick.answers[fine].messages(method)) == expected)  # noqa: B023 -- awaited at once
        assert slow.answers[stuck].data == b""
        slow.h2.increment_flow_control_window(60_000, stuck)
        slow.flush()
        await until(lambda: len(slow.answers[stuck].messages(method)) == 2)
        chains = [m.svids[0].x509_svid for m in slow.answers[stuck].messages(method)]  # type: ignore[attr-defined]
        assert chains == [b"chain-0", b"chain-19"]


async def test_the_caller_is_recognised_by_its_socket_once_per_connection(tmp_path: Path) -> None:
    found: list[int] = []

    def recognise(sock: socket.socket) -> FakeCaller:
        with peer_of(sock) as peer:
            found.append(peer.pid)
        pid, *_ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        assert pid == peer.pid
        return callers.setdefault(len(found), FakeCaller())

    callers: dict[int, FakeCaller] = {}
    identities = FakeIdentities()
    identities.latest.set(state())
    server = ApiServer(WorkloadApi(identities), recognise)
    await server.start(tmp_path / "s.sock")
    async with RawClient.connect(tmp_path / "s.sock") as client:
        for _ in range(3):
            number = client.call(service.FETCH_X509_SVID)
            await until(lambda: client.answers[number].data)  # noqa: B023 -- awaited in this round
        assert found == [os.getpid()]
        assert callers[1].closed == 0
    await until(lambda: callers[1].closed == 1)
    assert len(server._server._seats) == 0
    assert not identities.subscribers
    await asyncio.wait_for(server.stop(), PATIENCE)


async def test_an_unrecognised_caller_is_denied_before_its_request_is_read(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.latest.set(state())
        served.refuse = NodeError("peer_unknown", "pid 4711")
        answer = await client.answer(client.open(service.FETCH_X509_SVID.path))  # never sends its message
        assert (answer.status, answer.code) == (DENIED, "node.peer_unknown")
        assert "4711" not in str(answer)
        served.refuse = OSError(9, "gone")
        answer = await client.answer(client.call(service.FETCH_X509_SVID))
        assert (answer.status, answer.code) == (UNAVAILABLE, "node.not_ready")
        served.refuse = None
        number = client.call(service.FETCH_X509_SVID)
        await until(lambda: client.answers[number].data)
        assert served.recognitions == 3


async def test_a_call_ends_at_its_deadline(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.hang = asyncio.Event()
        served.identities.latest.set(state())
        ask = pb.JWTSVIDRequest(audience=["a"])
        unary = client.call(service.FETCH_JWT_SVID, ask, extra=(("grpc-timeout", "50m"),))
        stream = client.call(service.FETCH_X509_SVID, extra=(("grpc-timeout", "50000u"),))
        for number in (unary, stream):
            answer = await client.answer(number)
            assert (answer.status, answer.code) == (DEADLINE, "node.deadline")
        assert client.answers[stream].data
        assert not served.identities.subscribers


async def test_a_defect_is_internal_and_its_log_quotes_no_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.trouble = ValueError("the key is hunter2")
        with caplog.at_level(logging.DEBUG, "aims"):
            answer = await client.answer(client.call(service.FETCH_JWT_SVID, pb.JWTSVIDRequest(audience=["a"])))
        assert answer.status == INTERNAL
        assert "ValueError" in caplog.text
        assert "hunter2" not in caplog.text + str(answer)


async def test_a_method_without_an_answer_is_internal(tmp_path: Path) -> None:
    async def nothing(caller: FakeCaller, request: object) -> AsyncGenerator[pb.JWTSVIDResponse, None]:
        none: list[pb.JWTSVIDResponse] = []
        for each in none:
            yield each

    listener = open_listener(tmp_path / "s.sock")
    server: GuardedServer[FakeCaller] = GuardedServer({service.FETCH_JWT_SVID: nothing}, lambda _: FakeCaller())
    await server.start(listener.socket)
    async with RawClient.connect(listener.path) as client:
        answer = await client.answer(client.call(service.FETCH_JWT_SVID))
        assert (answer.status, answer.code) == (INTERNAL, "node.state_invalid")
        absent = await client.answer(client.call(service.VALIDATE_JWT_SVID))
        assert (absent.status, absent.code) == (UNIMPLEMENTED, "node.unknown_method")
    await asyncio.wait_for(server.stop(), PATIENCE)


async def test_an_equal_value_wakes_no_watcher_and_a_failure_ends_all() -> None:
    latest: Latest[int] = Latest()
    latest.set(1)
    watchers = [latest.watch() for _ in range(2)]
    assert [await anext(each) for each in watchers] == [1, 1]
    waiting = [asyncio.ensure_future(anext(each)) for each in watchers]
    latest.set(1)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    latest.set(2)
    latest.set(3)
    assert await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE) == [3, 3]
    latest.fail(WorkloadApiError("not_entitled"))
    for each in (*watchers, latest.watch()):
        with pytest.raises(WorkloadApiError):
            await asyncio.wait_for(anext(each), PATIENCE)


def test_values_show_no_secret_and_exist_only_if_whole() -> None:
    shown = repr((state(), JwtIdentity(spiffe_id=AGENT, token="secret-token")))
    for secret in ("secret-key", "secret-jwk", "secret-token", "wit.text", "chain-1"):
        assert secret not in shown
    for make in (
        lambda: X509Identity(spiffe_id=AGENT, chain=b"", key=b"k"),
        lambda: X509Identity(spiffe_id=SpiffeId.parse("spiffe://acme.example"), chain=b"c", key=b"k"),
        lambda: JwtIdentity(spiffe_id=AGENT, token=""),
        lambda: IdentityState(trust_domain=ACME, x509=(x509(),)),
        lambda: IdentityState(trust_domain=ACME, wit=(wit(),), wit_bundles={OTHER: "{}"}),
        lambda: IdentityState(trust_domain=OTHER, x509=(x509(),), x509_bundles={OTHER: b"ca"}),
        lambda: IdentityState(trust_domain=ACME, x509_bundles={ACME: b""}),
    ):
        with pytest.raises(WorkloadApiError) as refused:
            make()
        assert refused.value.code == "node.state_invalid"

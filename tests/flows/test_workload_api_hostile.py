"""Hostile and broken clients of the Workload API, with an honest one beside them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import h2.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.flows.workload_api_fake import PATIENCE, Answer, RawClient, Served, serve, state, until, x509

from aims.node.connection_limits import ConnectionLimits, Seat, Seats
from aims.node.grpc_call import CallLimits
from aims.node.grpc_guard import GuardLimits
from aims.node.http2_frames import MAX_FRAME_OCTETS, FrameLengths
from aims.node.workload_errors import WorkloadApiError
from aims.proto import workload_pb2 as pb
from aims.proto import workload_service as service
from aims.proto.framing import frame
from aims.sdk.workload_client import WorkloadClient

INVALID, DEADLINE, EXHAUSTED, UNIMPLEMENTED = 3, 4, 8, 12
X509 = service.FETCH_X509_SVID
SETTINGS, GOAWAY = 4, 7  # RFC 9113 6.5, 6.8


@contextlib.asynccontextmanager
async def honest(served: Served) -> AsyncIterator[None]:
    """An SDK client that holds a stream during the attack, and sees a rotation after it."""
    served.identities.latest.set(state((x509(serial=1),)))
    async with WorkloadClient(served.address) as client:
        watch = client.watch_x509()
        first = await asyncio.wait_for(anext(watch), PATIENCE)
        yield
        served.identities.latest.set(state((x509(serial=2),)))
        second = await asyncio.wait_for(anext(watch), PATIENCE)
        assert [event.svids[0].chain for event in (first, second)] == [b"chain-1", b"chain-2"]  # type: ignore[union-attr]  # anything else fails here
        await watch.aclose()


def _kinds(said: bytes) -> list[int]:
    """The types of the frames in what a server sent."""
    kinds = []
    while said:
        kinds.append(said[3])
        said = said[9 + int.from_bytes(said[:3], "big") :]
    return kinds


def _chains(client: RawClient, number: int) -> list[bytes]:
    """The certificates in what a call has answered so far."""
    return [svid.x509_svid for message in client.answers[number].messages(X509) for svid in message.svids]  # type: ignore[attr-defined]


@pytest.mark.parametrize("security", [(), ("false",), ("True",), ("true ",), ("",), ("true", "true"), ("true", "x")])
async def test_the_security_header_comes_before_everything(tmp_path: Path, security: tuple[str, ...]) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.latest.set(state())
        for number in (
            client.call(X509, security=security),
            client.open("/SpiffeWorkloadAPI/Nothing", security=security, end=True),
            client.open("/", security=security, verb="GET", content_type="text/html", end=True),
            client.open(X509.path, security=security),  # its message never comes
        ):
            answer = await client.answer(number)
            assert (answer.status, answer.code) == (INVALID, "node.security_header")
        assert served.recognitions == 0


async def test_what_is_no_request_of_this_api_is_refused(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.latest.set(state())
        for number, status, code in (
            (client.call(X509, verb="PUT"), INVALID, "node.call_malformed"),
            (client.call(X509, content_type="application/json"), INVALID, "node.call_malformed"),
            (client.call(X509, content_type="application/grpc+json"), INVALID, "node.call_malformed"),
            (client.call(X509, extra=(("grpc-timeout", "soon"),)), INVALID, "node.call_malformed"),
            (client.call(X509, extra=(("grpc-timeout", "1S"), ("grpc-timeout", "2S"))), INVALID, "node.call_malformed"),
            (client.open("/spiffe.SpiffeWorkloadAPI/FetchX509SVID", end=True), UNIMPLEMENTED, "node.unknown_method"),
            (client.open(X509.path, end=True), INVALID, "node.call_malformed"),
        ):
            answer = await client.answer(number)
            assert (answer.status, answer.code) == (status, code)
        for body in (b"\x00\x00\x00\x00\x09half", b"\x00\x00", frame(b"\xff\xff\xff")):
            number = client.open(X509.path)
            client.send(number, body, end=True)
            answer = await client.answer(number)
            assert (answer.status, answer.code) == (INVALID, "node.call_malformed")


async def test_metadata_that_nobody_asked_for_is_ignored(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.latest.set(state())
        strange = (
            ("x-bin", "!not base64!"),
            ("grpc-encoding", "gzip"),
            ("x-latin", "\xe9"),
            ("user-agent", "a" * 4000),
        )
        number = client.call(X509, extra=strange)
        await until(lambda: client.answers[number].messages(X509))
        assert _chains(client, number) == [b"chain-1"]
        assert not client.answers[number].ended


async def test_a_large_message_is_refused_by_its_length(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, honest(served), RawClient.connect(served.path) as client:
        number = client.open(service.FETCH_JWT_SVID.path)
        client.send(number, b"\x00" + (200 * 1024 * 1024).to_bytes(4, "big") + b"x" * 1000)
        answer = await client.answer(number)
        assert (answer.status, answer.code) == (EXHAUSTED, "node.call_too_large")
        # One octet above the limit is refused, the limit itself is not (what is in it then is).
        for size, code in ((64 * 1024 + 1, "node.call_too_large"), (64 * 1024, "node.call_malformed")):
            number = client.open(service.FETCH_JWT_SVID.path)
            client.send(number, b"\x00" + size.to_bytes(4, "big"))
            body = b"\xff" * size
            while body and not client.answers[number].ended:
                room = min(client.h2.local_flow_control_window(number), 16_384)
                if room:
                    client.send(number, body[:room])
                    body = body[room:]
                await asyncio.sleep(0)
            answer = await client.answer(number)
            assert answer.code == code


async def test_a_sender_that_goes_on_is_held_by_flow_control(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, honest(served), RawClient.connect(served.path) as client:
        served.identities.hang = asyncio.Event()
        number = client.open(service.FETCH_JWT_SVID.path)
        client.send(number, frame(pb.JWTSVIDRequest(audience=["a"]).SerializeToString()))
        await until(lambda: served.identities.asked)
        sent = 0
        while room := min(client.h2.local_flow_control_window(number), 16_384):
            client.send(number, bytes(room))
            sent += room
        # Another call is answered, which shows that the server has seen all this; it gave no new room.
        assert (await client.answer(client.open("/nothing", end=True))).code == "node.unknown_method"
        assert sent <= 65_535
        assert client.h2.local_flow_control_window(number) == 0
        served.identities.hang.set()  # the call ends, and what was not read is thrown away
        await client.answer(number)
        await until(lambda: client.h2.outbound_flow_control_window > 0)


async def test_compressed_messages_are_refused(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.latest.set(state())
        for flag in (b"\x01", b"\x02", b"\xff"):
            number = client.open(X509.path, extra=(("grpc-encoding", "gzip"),))
            client.send(number, flag + b"\x00\x00\x00\x00", end=True)
            answer = await client.answer(number)
            assert (answer.status, answer.code) == (UNIMPLEMENTED, "node.call_compressed")
            assert answer.headers["grpc-accept-encoding"] == "identity"


async def test_a_request_that_never_comes_is_not_waited_for(tmp_path: Path) -> None:
    limits = GuardLimits(call=CallLimits(request_seconds=0.05))
    async with serve(tmp_path, limits) as served, honest(served), RawClient.connect(served.path) as client:
        silent, dripping = client.open(X509.path), client.open(X509.path)
        client.send(dripping, b"\x00\x00")
        for number in (silent, dripping):
            answer = await client.answer(number)
            assert (answer.status, answer.code) == (DEADLINE, "node.call_slow")


async def test_empty_frames_and_unknown_frame_types_cost_nothing(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
        served.identities.latest.set(state())
        number = client.open(X509.path)
        client.writer.write(b"\x00\x00\x03\xf0\x00\x00\x00\x00\x00abc")  # type 0xf0: to be ignored (RFC 9113 4.1)
        for _ in range(1000):
            client.send(number, b"")
        client.send(number, frame(b""), end=True)
        await until(lambda: client.answers[number].messages(X509))
        assert _chains(client, number) == [b"chain-1"]
        assert (client.answers[number].ended, client.goaway) == (False, False)


async def test_thousands_of_streams_on_one_connection_end_it_and_nothing_else(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, honest(served), RawClient.connect(served.path) as client:
        client.h2.remote_settings.max_concurrent_streams = 1_000_000
        with contextlib.suppress(ConnectionError):
            for _ in range(3000):
                client.open(X509.path)
        await until(lambda: client.closed)
        await until(lambda: served.identities.subscribers == 1)
        assert served.recognitions <= 2  # once a connection, however many streams


async def test_calls_beyond_the_limit_are_refused_and_cancelled_ones_count_until_they_end(tmp_path: Path) -> None:
    limits = GuardLimits(calls_per_connection=3)
    ask = pb.JWTSVIDRequest(audience=["a"])
    async with serve(tmp_path, limits) as served, RawClient.connect(served.path) as client:
        served.identities.hang = asyncio.Event()
        served.identities.cleanup = asyncio.Event()
        for opened in range(10):
            number = client.call(service.FETCH_JWT_SVID, ask)
            answer = client.answers[number]
            await until(lambda: len(served.identities.asked) > opened or answer.ended)  # noqa: B023 -- awaited here
            if answer.ended:
                assert answer.reset == h2.errors.ErrorCodes.REFUSED_STREAM
            else:
                client.h2.reset_stream(number, h2.errors.ErrorCodes.CANCEL)  # HTTP/2 rapid reset
                client.flush()
        assert len(served.identities.asked) == 3
        served.identities.hang = None
        served.identities.cleanup.set()
        served.identities.trouble = WorkloadApiError("not_entitled")
        await until(lambda: not served.identities.cleaning)
        answer = await client.answer(client.call(service.FETCH_JWT_SVID, ask))
        assert answer.code == "node.not_entitled"


async def test_half_open_connections_displace_each_other_and_not_a_stream(tmp_path: Path) -> None:
    limits = GuardLimits(connections=ConnectionLimits(total=40, per_uid=30, per_process=20))
    flood = textwrap.dedent(
        """
        import socket, sys
        held = []
        for _ in range(300):
            one = socket.socket(socket.AF_UNIX)
            one.connect(sys.argv[1])
            one.send(b"PRI * HTTP/2")
            held.append(one)
        print("flooded", flush=True)
        sys.stdin.read()
        """
    )
    async with serve(tmp_path, limits) as served, honest(served):
        attacker = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", flood, str(served.path), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert attacker.stdout is not None
            line = await asyncio.wait_for(attacker.stdout.readline(), PATIENCE)
            assert line == b"flooded\n"
            # A new honest client of the same user gets in, too.
            async with WorkloadClient(served.address) as late:
                assert (await late.fetch_x509()).svids
        finally:
            attacker.kill()
            await asyncio.wait_for(attacker.communicate(), PATIENCE)


async def test_silent_and_idle_connections_are_closed(tmp_path: Path) -> None:
    limits = GuardLimits(handshake_seconds=0.05, idle_seconds=0.1)
    async with serve(tmp_path, limits) as served:
        served.identities.latest.set(state())
        reader, writer = await asyncio.open_unix_connection(str(served.path))
        assert await asyncio.wait_for(reader.read(), PATIENCE)  # settings, then goodbye and the end
        writer.close()
        await writer.wait_closed()
        async with RawClient.connect(served.path) as busy, RawClient.connect(served.path) as idle:
            number = busy.call(X509)
            await until(lambda: busy.answers[number].data)
            await idle.answer(idle.call(service.FETCH_JWT_SVID))
            await until(lambda: idle.closed)
            assert idle.goaway
            assert not busy.closed  # as old, but with a call in progress
            busy.h2.reset_stream(number)
            busy.flush()
            await until(lambda: busy.closed)


async def test_a_client_that_does_not_read_is_not_read_from(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, honest(served):
        with socket.socket(socket.AF_UNIX) as flooder:
            flooder.connect(str(served.path))
            flooder.setblocking(False)
            ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8)
            flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + ping * 100_000
            sent, idle = 0, 0
            while sent < len(flood) and idle < 100:
                try:
                    sent, idle = sent + flooder.send(flood[sent : sent + 65536]), 0
                except BlockingIOError:
                    idle += 1
                    await asyncio.sleep(0.002)
            # 1.7 MB of pings would make as much of answers; the server stopped listening long before.
            assert sent < len(flood)


async def test_an_answer_that_is_not_taken_ends_the_stream_in_time(tmp_path: Path) -> None:
    limits = GuardLimits(call=CallLimits(send_seconds=0.05))
    async with serve(tmp_path, limits) as served, RawClient.connect(served.path, window=0) as client:
        served.identities.latest.set(state())
        number = client.call(X509)
        answer = await client.answer(number)
        assert answer.reset == h2.errors.ErrorCodes.CANCEL
        await until(lambda: not served.identities.subscribers)


async def test_garbage_ends_its_connection_alone(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, honest(served):
        for garbage in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3,
            b"\x16\x03\x01" + bytes(100),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 9,  # the head of a frame of 16 MiB
        ):
            reader, writer = await asyncio.open_unix_connection(str(served.path))
            writer.write(garbage)
            said = await asyncio.wait_for(reader.read(), 2.0)  # well before the time for the handshake is over
            assert _kinds(said) == [SETTINGS, GOAWAY]
            writer.close()
            await writer.wait_closed()
        async with RawClient.connect(served.path) as client:  # headers of 30 kB
            number = client.open(X509.path, extra=tuple((f"x-{n}", "v" * 1000) for n in range(30)))
            await until(lambda: client.closed)
            assert (client.goaway, client.answers[number]) == (True, Answer())
        assert served.recognitions == 1, "the honest client's: nobody else got as far as being asked who it is"


async def test_stopping_does_not_wait_for_clients_that_do_not_read(tmp_path: Path) -> None:
    async with serve(tmp_path) as served, RawClient.connect(served.path, window=0) as client:
        served.identities.latest.set(state())
        number = client.call(X509)
        await until(lambda: served.identities.subscribers)
        await asyncio.wait_for(served.stop(), 5.0)
        answer = await client.answer(number)
        assert answer.status in {14, None}


def test_seats_evict_the_oldest_idle_connection_of_the_greediest_process() -> None:
    evicted: list[str] = []
    busy: set[str] = set()

    def seat(name: str, uid: int, pid: int) -> Seat:
        return Seat(uid=uid, pid=pid, idle=lambda: name not in busy, evict=lambda: evicted.append(name))

    seats = Seats(ConnectionLimits(total=6, per_uid=4, per_process=3))
    held = {
        name: seat(name, uid, pid) for name, uid, pid in (("a1", 1, 10), ("a2", 1, 10), ("b1", 1, 11), ("b2", 1, 11))
    }
    assert all(seats.take(each) for each in held.values())
    # 1. per user: process 10 and 11 have two each; the one met first loses its oldest
    assert seats.take(seat("c1", 1, 12))
    assert evicted == ["a1"]
    # 2. per process: 11 gets a third seat at the user's limit, and a fourth only for one of its own
    assert seats.take(seat("b3", 1, 11))
    assert evicted == ["a1", "b1"]
    # 3. another user is not touched by that, up to the total
    assert seats.take(seat("x1", 2, 20))
    assert seats.take(seat("x2", 2, 20))
    assert evicted == ["a1", "b1"]
    assert len(seats) == 6
    # 4. nobody idle: the newcomer is refused and nobody is evicted
    busy.update({"a2", "b2", "b3", "c1", "x1", "x2"})
    assert not seats.take(seat("y1", 3, 30))
    assert evicted == ["a1", "b1"]
    assert len(seats) == 6
    # 5. a seat that is left is free again; leaving twice is harmless
    seats.leave(held["a2"])
    seats.leave(held["a2"])
    assert seats.take(seat("y2", 3, 30))
    # 6. one eviction may satisfy several limits
    evicted.clear()
    single = Seats(ConnectionLimits(total=1, per_uid=1, per_process=1))
    assert single.take(seat("z1", 1, 10))
    assert single.take(seat("z2", 1, 10))
    assert evicted == ["z1"]


@given(st.lists(st.integers(0, MAX_FRAME_OCTETS), max_size=6), st.data())
def test_frame_lengths_are_followed_however_the_octets_are_cut(lengths: list[int], data: st.DataObject) -> None:
    head = bytes(24)
    good = head + b"".join(n.to_bytes(3, "big") + bytes(6) + b"\xff" * n for n in lengths)
    bad = good + (MAX_FRAME_OCTETS + 1).to_bytes(3, "big") + bytes(6)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(bad)), max_size=20)))
    pieces = [bad[a:b] for a, b in itertools.pairwise([0, *cuts, len(bad)])]
    frames = FrameLengths()
    seen = 0
    for piece in pieces:
        seen += len(piece)
        assert frames.allow(piece) is (seen < len(bad))
        if seen == len(bad):
            break
    assert FrameLengths().allow(good)


def test_the_requests_have_the_specifications_limits() -> None:
    assert CallLimits().request_octets == 64 * 1024
    assert CallLimits().response_octets == 4 * 1024 * 1024
    biggest = pb.JWTSVIDRequest(audience=[str(n).zfill(2048) for n in range(16)], spiffe_id="s" * 2048)
    assert biggest.ByteSize() < CallLimits().request_octets

"""A Workload API on a real socket whose identities a test controls, and a client that speaks raw HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import h2.settings
from google.protobuf.message import Message

from aims.errors import AimsError
from aims.identifiers import SpiffeId, TrustDomain
from aims.node.api_server import ApiServer
from aims.node.grpc_guard import Answers, GuardLimits
from aims.node.identities import (
    IdentityState,
    JwtIdentity,
    Latest,
    ValidatedJwtSvid,
    WitIdentity,
    X509Identity,
)
from aims.node.workload_api import WorkloadApi
from aims.node.workload_errors import WorkloadApiError
from aims.proto.framing import frame
from aims.proto.workload_service import FETCH_WIT_BUNDLES, FETCH_WIT_SVID, Method

PATIENCE = 10.0
ACME = TrustDomain("acme.example")
OTHER = TrustDomain("other.example")
AGENT = SpiffeId.agent(ACME, "researcher")
SECOND = SpiffeId.agent(ACME, "writer")
SECRET_KEY = b"-secret-key-octets-"


def x509(spiffe_id: SpiffeId = AGENT, *, serial: int = 1, hint: str = "") -> X509Identity:
    return X509Identity(spiffe_id=spiffe_id, chain=b"chain-%d" % serial, key=SECRET_KEY, hint=hint)


def wit(spiffe_id: SpiffeId = AGENT, *, hint: str = "") -> WitIdentity:
    return WitIdentity(spiffe_id=spiffe_id, token="wit.text", key='{"d":"secret-jwk"}', hint=hint)


def state(
    x509s: tuple[X509Identity, ...] | None = None,
    wits: tuple[WitIdentity, ...] | None = None,
    *,
    federated: Mapping[TrustDomain, bytes] | None = None,
    wit_bundle: str = '{"keys":["wit"]}',
) -> IdentityState:
    return IdentityState(
        trust_domain=ACME,
        x509=(x509(),) if x509s is None else x509s,
        wit=(wit(),) if wits is None else wits,
        x509_bundles={ACME: b"ca", **(federated or {})},
        jwt_bundles={ACME: b'{"keys":["jwt"]}'},
        wit_bundles={ACME: wit_bundle},
    )


@dataclass
class FakeCaller:
    """What recognition made of one connection."""

    closed: int = 0

    def close(self) -> None:
        self.closed += 1


def _open() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class FakeIdentities:
    """Gives every caller the same state; a test sets it, fails it, or makes single calls go wrong."""

    latest: Latest[IdentityState] = field(default_factory=Latest)
    subscribers: int = 0
    jwt: tuple[JwtIdentity, ...] = ()
    asked: list[tuple[tuple[str, ...], SpiffeId | None]] = field(default_factory=list)
    valid: ValidatedJwtSvid | None = None
    trouble: Exception | None = None
    hang: asyncio.Event | None = None
    cleanup: asyncio.Event = field(default_factory=_open)  # what a cancelled call waits for
    cleaning: int = 0

    async def subscribe(self, caller: FakeCaller) -> AsyncGenerator[IdentityState, None]:
        assert not caller.closed
        self.subscribers += 1
        try:
            async with contextlib.aclosing(self.latest.watch()) as states:
                async for each in states:
                    yield each
        finally:
            assert not caller.closed
            self.subscribers -= 1

    async def jwt_svids(
        self, _: FakeCaller, audiences: tuple[str, ...], spiffe_id: SpiffeId | None
    ) -> tuple[JwtIdentity, ...]:
        self.asked.append((audiences, spiffe_id))
        if self.hang is not None:
            try:
                await self.hang.wait()
            except asyncio.CancelledError:
                self.cleaning += 1
                await self.cleanup.wait()
                self.cleaning -= 1
                raise
        if self.trouble is not None:
            raise self.trouble
        return self.jwt

    async def validate_jwt_svid(self, _: FakeCaller, __: str, ___: str) -> ValidatedJwtSvid:
        if self.trouble is not None:
            raise self.trouble
        if self.valid is None:
            raise WorkloadApiError("not_entitled")
        return self.valid


@dataclass
class Served:
    """A running server and what it saw."""

    path: Path
    identities: FakeIdentities
    stop: Callable[[], Awaitable[None]] = field(init=False)
    callers: list[FakeCaller] = field(default_factory=list)
    refuse: AimsError | OSError | None = None
    recognitions: int = 0

    @property
    def address(self) -> str:
        return f"unix://{self.path}"

    def recognise(self, sock: socket.socket) -> FakeCaller:
        self.recognitions += 1
        assert sock.family is socket.AF_UNIX
        if self.refuse is not None:
            raise self.refuse
        self.callers.append(FakeCaller())
        return self.callers[-1]


class _WithoutWit(WorkloadApi[FakeCaller]):
    """Another node, which has no WIT profile: its methods are UNIMPLEMENTED (R-WA-12)."""

    def answers(self) -> Mapping[Method, Answers[FakeCaller]]:
        wit = {FETCH_WIT_SVID, FETCH_WIT_BUNDLES}
        return {method: answer for method, answer in super().answers().items() if method not in wit}


@contextlib.asynccontextmanager
async def serve(
    folder: Path, limits: GuardLimits | None = None, *, wit_on: bool = True, mode: int = 0o600
) -> AsyncIterator[Served]:
    identities = FakeIdentities()
    served = Served(folder / "workload.sock", identities)
    api: WorkloadApi[FakeCaller] = (WorkloadApi if wit_on else _WithoutWit)(identities)
    server = ApiServer(api, served.recognise, limits)
    served.stop = server.stop
    await server.start(served.path, mode)
    try:
        yield served
    finally:
        await asyncio.wait_for(server.stop(), PATIENCE)
        await until(lambda: all(caller.closed == 1 for caller in served.callers))


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition()`` holds, letting the loop run; bounded."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 -- any condition, of whichever side
            await asyncio.sleep(0.005)


@dataclass
class Answer:
    """What came back on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int | None:
        found = self.trailers.get("grpc-status", self.headers.get("grpc-status"))
        return None if found is None else int(found)

    @property
    def code(self) -> str:
        """The reason code at the head of the message."""
        message = unquote(self.trailers.get("grpc-message", self.headers.get("grpc-message", "")))
        return message.partition(":")[0]

    def messages(self, method: Method) -> list[Message]:
        found, rest = [], self.data
        while len(rest) >= 5 and len(rest) >= 5 + int.from_bytes(rest[1:5], "big"):
            length = int.from_bytes(rest[1:5], "big")
            found.append(method.response.FromString(rest[5 : 5 + length]))
            rest = rest[5 + length :]
        return found


class RawClient:
    """An HTTP/2 client that does what it is told, right or wrong."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, window: int | None) -> None:
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(
            header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        if window is not None:
            self.h2.local_settings = h2.settings.Settings(
                client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
            )
        self.answers: dict[int, Answer] = {}
        self.closed = False
        self.goaway = False
        self.h2.initiate_connection()
        self.flush()

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, path: Path, *, window: int | None = None) -> AsyncIterator[RawClient]:
        reader, writer = await asyncio.open_unix_connection(str(path))
        client = cls(reader, writer, window=window)
        listening = asyncio.create_task(client._listen())
        try:
            yield client
        finally:
            listening.cancel()
            writer.transport.abort()
            await asyncio.wait([listening])

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def open(
        self,
        path: str,
        *,
        security: tuple[str, ...] = ("true",),
        extra: tuple[tuple[str, str], ...] = (),
        content_type: str = "application/grpc",
        verb: str = "POST",
        end: bool = False,
    ) -> int:
        """Send request headers; ``security`` are the values of the security header."""
        number = self.h2.get_next_available_stream_id()
        headers = [(":method", verb), (":scheme", "http"), (":path", path), (":authority", "localhost")]
        headers += [("te", "trailers"), ("content-type", content_type)]
        headers += [("workload.spiffe.io", value) for value in security]
        self.h2.send_headers(number, [*headers, *extra], end_stream=end)
        self.answers[number] = Answer()
        self.flush()
        return number

    def call(self, method: Method, request: Message | None = None, **how: object) -> int:
        """Send a whole request."""
        number = self.open(method.path, **how)  # type: ignore[arg-type]  # passed on as they came
        self.send(number, frame((request or method.request()).SerializeToString()), end=True)
        return number

    def send(self, number: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(number, data, end_stream=end)
        self.flush()

    async def answer(self, number: int) -> Answer:
        """Wait until the stream has ended."""
        await until(lambda: self.answers[number].ended or self.closed)
        return self.answers[number]

    async def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self.reader.read(65536):
                for event in self.h2.receive_data(data):
                    self._note(event)
                self.flush()
        self.closed = True

    def _note(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                self.answers[event.stream_id or 0].headers = dict(event.headers or [])  # type: ignore[arg-type]
            case h2.events.TrailersReceived():
                self.answers[event.stream_id or 0].trailers = dict(event.headers or [])  # type: ignore[arg-type]
            case h2.events.DataReceived():
                self.answers[event.stream_id or 0].data += event.data or b""
            case h2.events.StreamEnded():
                self.answers[event.stream_id or 0].ended = True
            case h2.events.StreamReset():
                answer = self.answers.setdefault(event.stream_id or 0, Answer())
                answer.ended, answer.reset = True, int(event.error_code or 0)
            case h2.events.ConnectionTerminated():
                self.goaway = True
            case _:
                pass

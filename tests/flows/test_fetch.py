"""One suite of attacks on whoever uses the outbound door: each user of the door runs all of it (T13)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence

import pytest
from tests.flows.tls_peer import Authority, Script, listening, octets

from aims.fetch import Fetcher, FetchError, Limits, Request, Response, parse_url
from aims.monitoring.delivery import push
from aims.monitoring.model import Receiver

User = Callable[[Fetcher, str, str, frozenset[tuple[str, int]]], Awaitable[Response]]
LIMITS = Limits(seconds=2.0, body=1000, head=4096)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


async def _get(fetcher: Fetcher, url: str, ca: str, private: frozenset[tuple[str, int]]) -> Response:
    accept = frozenset({"application/json"})
    return await fetcher.fetch(Request(url=url, ca=ca, private=private, accept=accept, limits=LIMITS))


async def _post(fetcher: Fetcher, url: str, ca: str, private: frozenset[tuple[str, int]]) -> Response:
    accept = frozenset({"application/json"})
    headers = (("content-type", "application/secevent+jwt"),)
    request = Request(
        url=url, method="POST", headers=headers, body=b"token", ca=ca, private=private, accept=accept, limits=LIMITS
    )
    return await fetcher.fetch(request)


async def _push(fetcher: Fetcher, url: str, ca: str, private: frozenset[tuple[str, int]]) -> Response:
    """The courier of security events; its endpoint is what an administrator set."""
    receiver = Receiver(url=url, audience="x", events=frozenset({"x"}), ca=ca, private=private == _of(url))
    return await push(fetcher, receiver, "token", limits=LIMITS)


def _of(url: str) -> frozenset[tuple[str, int]]:
    endpoint = parse_url(url)
    return frozenset({(endpoint.host, endpoint.port)})


USERS: dict[str, User] = {"get": _get, "post": _post, "push": _push}


@pytest.fixture(params=USERS)
def user(request: pytest.FixtureRequest) -> User:
    return USERS[request.param]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


async def _code(wanted: Awaitable[Response]) -> str:
    async with asyncio.timeout(10):
        with pytest.raises(FetchError) as refusal:
            await wanted
    return refusal.value.reason


def _to(*addresses: str) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return addresses

    return resolve


async def test_an_allowed_peer_is_reached_by_its_name(user: User, authority: Authority) -> None:
    async with listening(octets(OK), authority) as peer:
        answer = await user(Fetcher(), peer.url("/a?b=c"), peer.ca, peer.private)
        assert (answer.status, answer.body, answer.media_type) == (200, b"{}", "application/json")
        assert f"host: localhost:{peer.port}".encode() in peer.requests[0].lower()
        assert b" /a?b=c HTTP/1.1" in peer.requests[0]


async def test_a_private_address_is_refused_before_a_connection(user: User, authority: Authority) -> None:
    async with listening(octets(OK), authority) as peer:
        for private in (frozenset(), frozenset({("localhost", 1)}), frozenset({("127.0.0.1", peer.port)})):
            assert await _code(user(Fetcher(), peer.url(), peer.ca, private)) == "address"
        assert await _code(user(Fetcher(), f"https://127.0.0.1:{peer.port}/", peer.ca, peer.private)) == "address"
        for literal in ("[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"):
            assert await _code(user(Fetcher(), f"https://{literal}:{peer.port}/", peer.ca, peer.private)) == "address"
        # one bad address among good ones spoils the name, permission or not
        for addresses in (("8.8.8.8", "10.0.0.1"), ("127.0.0.1", "169.254.169.254")):
            mixed = Fetcher(resolve=_to(*addresses))
            private = peer.private if addresses[0].startswith("127") else frozenset()
            assert await _code(user(mixed, peer.url(), peer.ca, private)) == "address"
        assert peer.requests == []


async def test_the_connection_goes_where_the_judged_address_says(user: User, authority: Authority) -> None:
    """Rebinding: a resolver that says something else the second time is not asked a second time."""
    answers = [["93.184.216.34"], ["127.0.0.1"]]
    dialled: list[tuple[str, str]] = []

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return answers.pop(0)

    async with listening(octets(OK), authority) as peer:

        async def dial(
            address: str, port: int, context: ssl.SSLContext, name: str
        ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            dialled.append((address, name))
            return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)

        await user(Fetcher(resolve=resolve, dial=dial), peer.url(), peer.ca, frozenset())
        assert dialled == [("93.184.216.34", "localhost")]
        assert await _code(user(Fetcher(resolve=resolve, dial=dial), peer.url(), peer.ca, frozenset())) == "address"
        assert len(dialled) == 1


async def test_a_certificate_for_another_name_or_of_another_authority_is_refused(
    user: User, authority: Authority
) -> None:
    async with listening(octets(OK), Authority("other.example")) as peer:
        assert await _code(user(Fetcher(), peer.url(), peer.ca, peer.private)) == "tls"
    async with listening(octets(OK), authority) as peer:
        assert await _code(user(Fetcher(), peer.url(), Authority().pem, peer.private)) == "tls"
        assert await _code(user(Fetcher(), peer.url(), "", peer.private)) == "tls"
        assert await _code(user(Fetcher(), peer.url(), "not PEM", peer.private)) == "tls"
        assert peer.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
async def test_a_redirect_is_not_followed(user: User, authority: Authority, status: int) -> None:
    answer = f"HTTP/1.1 {status} Elsewhere\r\nLocation: https://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    async with listening(octets(answer.encode()), authority) as peer:
        assert await _code(user(Fetcher(), peer.url(), peer.ca, peer.private)) == "redirect"
        assert len(peer.requests) == 1


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(_HEAD + b"Content-Length: 1001\r\n\r\n", "too_large", id="promised"),
        pytest.param(_HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", "too_large", id="absurd"),
        pytest.param(_HEAD + b"\r\n" + b"x" * 100_000, "too_large", id="endless"),
        pytest.param(
            _HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n",
            "too_large",
            id="chunked",
        ),
        pytest.param(_HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n", "malformed", id="header-bomb"),
        pytest.param(_HEAD + b"".join(b"X%d: y\r\n" % n for n in range(100)) + b"\r\n", "too_large", id="many-headers"),
        pytest.param(_HEAD + b"Content-Length: 10\r\n\r\n{}", "malformed", id="less-than-promised"),
        pytest.param(_HEAD + b"Content-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n\r\n", "malformed", id="more"),
        pytest.param(_HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", "malformed", id="two-lengths"),
        pytest.param(_HEAD + b"Content-Length: -1\r\n\r\n{}", "malformed", id="negative"),
        pytest.param(
            _HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            "malformed",
            id="both",
        ),
        pytest.param(
            _HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n", "malformed", id="trailer"
        ),
        pytest.param(_HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "malformed", id="compressed"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 6 + OK, "malformed", id="interim"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + OK, "malformed", id="upgrade"),
        pytest.param(b"not http at all\r\n\r\n", "malformed", id="no-http"),
        pytest.param(b"HTTP/2 200\r\n\r\n", "malformed", id="version"),
        pytest.param(b"", "malformed", id="nothing"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}", "content_type", id="type"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "content_type", id="no-type"),
        pytest.param(_HEAD + b"Content-Type: text/html\r\nContent-Length: 2\r\n\r\n{}", "malformed", id="two-types"),
    ],
)
async def test_an_answer_beyond_its_bounds_is_refused(
    user: User, authority: Authority, answer: bytes, reason: str
) -> None:
    async with listening(octets(answer), authority) as peer:
        assert await _code(user(Fetcher(), peer.url(), peer.ca, peer.private)) == reason
        assert len(peer.requests) == 1


def _drip(piece: bytes) -> Script:
    async def script(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(_HEAD + b"Content-Length: 900\r\n\r\n")
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.2)

    return script


async def _silent(_request: bytes, writer: asyncio.StreamWriter) -> None:
    await writer.wait_closed()


@pytest.mark.parametrize("script", [_drip(b"x"), _silent], ids=["drip", "silence"])
async def test_the_whole_exchange_has_one_span_of_time(user: User, authority: Authority, script: Script) -> None:
    loop = asyncio.get_running_loop()
    async with listening(script, authority) as peer:
        began = loop.time()
        assert await _code(user(Fetcher(), peer.url(), peer.ca, peer.private)) == "slow"
        assert loop.time() - began < LIMITS.seconds + 1.5


async def test_a_resolver_that_hangs_or_fails_ends_too(user: User) -> None:
    async def hang(_host: str, _port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return ()

    async def fail(_host: str, _port: int) -> Sequence[str]:
        raise OSError("no such name")

    nobody: frozenset[tuple[str, int]] = frozenset()
    for resolve, reason in ((hang, "slow"), (fail, "unresolved"), (_to(), "unresolved")):
        assert await _code(user(Fetcher(resolve=resolve), "https://rp.example/", "", nobody)) == reason


async def test_a_peer_that_does_not_answer_is_unreachable(user: User, authority: Authority) -> None:
    async with listening(octets(OK), authority) as peer:
        pass
    assert await _code(user(Fetcher(), peer.url(), peer.ca, peer.private)) == "unreachable"


async def test_a_status_that_is_no_success_is_told_and_foreign_bodies_are_dropped(
    user: User, authority: Authority
) -> None:
    for status, kind, body in ((400, "application/json", b"{}"), (503, "text/html", b"")):
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: 2\r\n\r\n".encode()
        async with listening(octets(head + b"{}"), authority) as peer:
            answer = await user(Fetcher(), peer.url(), peer.ca, peer.private)
            assert (answer.status, answer.body) == (status, body)


@pytest.mark.parametrize(
    "headers",
    [
        (("Host", "evil"),),
        (("x", "a\r\nb: c"),),
        (("x\r\ny", "z"),),
        (("Content-Length", "0"),),
        (("x", "ä"),),
        (("", "y"),),
    ],
)
async def test_headers_that_would_change_the_request_are_refused(headers: tuple[tuple[str, str], ...]) -> None:
    assert await _code(Fetcher(resolve=_to("8.8.8.8")).fetch(Request(url="https://rp.example/", headers=headers))) == (
        "request"
    )


def test_a_request_shows_neither_body_nor_authorities() -> None:
    request = Request(url="https://rp.example/", method="POST", body=b"eyJtoken", ca="PEM")
    assert "eyJ" not in repr(request)
    assert "PEM" not in repr(request)

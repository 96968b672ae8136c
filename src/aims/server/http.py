"""HTTP words for every listener: one route table of raw ASGI callables, bounded bodies, and errors in one form.

A hot endpoint is an ASGI callable in the table and nothing stands between it and the connection. The others are made
by ``answering``, which reads a bounded body and turns an ``AimsError`` into its status and JSON.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from aims.authorization.flood import NOTE, note
from aims.errors import AimsError
from aims.server.errors import ServerError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
KeepRefusal = Callable[[Scope, AimsError, str | None], Awaitable[None]]

MOST_BODY_OCTETS: Final = 256 * 1024

# What is not listed is 400: the caller sent something that we do not take. Layers that the specifications give their
# own codes (OAuth, WPT) answer for themselves and never come here.
STATUS: Final[Mapping[str, int]] = {
    "server.host": 421,
    "server.browser": 403,
    "server.peer": 403,
    "server.admin_from_agent": 403,
    "server.route": 404,
    "server.too_large": 413,
    "server.internal": 500,
    "server.busy": 503,
    "server.starting": 503,
    "monitoring.unfinished": 503,
    "storage.conflict": 409,
    "storage.consumed": 409,
    "storage.replayed": 409,
    "storage.stopped": 403,
}
# What else these layers raise says nothing about the request: it cannot be served at present.
_UNAVAILABLE: Final = frozenset({"storage", "keys", "audit"})

_log = logging.getLogger("aims.server")


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished response. ``body`` is JSON unless ``content_type`` says otherwise."""

    status: int = 200
    body: bytes = b"{}"
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


def json_answer(value: object, status: int = 200) -> Answer:
    """Encode a value as the JSON body of an answer."""
    return Answer(status, msgspec.json.encode(value))


def error_answer(error: AimsError) -> Answer:
    """Say what was refused, in the words of the table of reasons; the private detail stays here."""
    status = STATUS.get(error.code, 503 if error.layer in _UNAVAILABLE else 400)
    headers = ((b"retry-after", b"1"),) if status == 503 else ()
    body = {"error": error.code, "message": error.sentence, "hint": error.hint}
    return Answer(status, msgspec.json.encode(body), headers=headers)


async def read_body(receive: Receive, limit: int = MOST_BODY_OCTETS) -> bytes:
    """Collect a request's body of at most ``limit`` octets.

    Raises:
        ServerError: ``too_large``, or ``body`` when the client goes away.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ServerError("body", "the client went away")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise ServerError("too_large", f"more than {limit} octets")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def respond(send: Send, answer: Answer) -> None:
    """Send a whole response; nothing of AIMS may be cached unless it says so itself."""
    headers = [(b"content-type", answer.content_type), (b"content-length", str(len(answer.body)).encode("ascii"))]
    headers.extend(answer.headers)
    if not any(name == b"cache-control" for name, _ in answer.headers):
        headers.append((b"cache-control", b"no-store"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def answering(handle: Callable[[Scope, bytes], Awaitable[Answer]], limit: int = MOST_BODY_OCTETS) -> App:
    """Make an ASGI callable of a function from scope and body to an answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            try:
                body = await read_body(receive, limit)
            except ServerError as error:
                await note(scope, error)
                raise
            answer = await handle(scope, body)
        except AimsError as error:
            answer = error_answer(error)
            _log.info("refused", extra={"code": error.code, "detail": error.detail, "path": scope["path"]})
        await respond(send, answer)

    return app


def header(scope: Scope, name: bytes) -> str | None:
    """Return the one value of a header, or None.

    Raises:
        ServerError: ``body`` when it stands there more than once.
    """
    values = [value for key, value in scope["headers"] if key == name]
    if len(values) > 1:
        raise ServerError("body", f"header {name.decode('ascii')} more than once")
    return values[0].decode("latin-1") if values else None


class Listener:
    """One listener's application: its hosts and its routes, and nothing else is there.

    ``keep`` records what is refused before a route decides; it is given the path if that is one of the listener's own.
    """

    __slots__ = ("_hosts", "_keep", "_paths", "_routes")

    def __init__(
        self, hosts: frozenset[str], routes: Mapping[tuple[str, str], App], keep: KeepRefusal | None = None
    ) -> None:
        self._keep = keep
        self._hosts = frozenset(host.encode("ascii") for host in hosts)
        self._routes = dict(routes)
        self._paths = frozenset(path for _, path in routes)

    async def _note(self, scope: Scope, error: AimsError) -> None:
        if self._keep is not None:
            await self._keep(scope, error, scope["path"] if scope["path"] in self._paths else None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} here")
        if self._keep is not None:
            scope["extensions"][NOTE] = self._note
        # A page that a browser loaded from elsewhere reaches loopback ports by DNS rebinding; its Host betrays it.
        hosts = [value.lower() for key, value in scope["headers"] if key == b"host"]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            refused = ServerError("host", ascii(hosts)[:200])
            await note(scope, refused)
            await respond(send, error_answer(refused))
            return
        app = self._routes.get((scope["method"], scope["path"]))
        if app is None:
            allowed = sorted(method for method, path in self._routes if path == scope["path"])
            refusal = error_answer(ServerError("route")).body
            if allowed:  # RFC 9110 15.5.6
                answer = Answer(405, refusal, headers=((b"allow", ", ".join(allowed).encode("ascii")),))
            else:
                answer = Answer(404, refusal)
            await respond(send, answer)
            return
        try:
            await app(scope, receive, send)
        except Exception:  # noqa: BLE001  # the last line of defence: logged whole, answered without detail
            _log.exception("failed", extra={"path": scope["path"]})
            await respond(send, error_answer(ServerError("internal")))

"""Delivery of our events by push (RFC 8935): out of the outbox, in order for each subject, with bounded patience.

    answer                                  what happens
    202                                     sent
    400                                     never the same SET again; once more after ``invalid_key``
    401                                     three tries
    403, 404, 410 and other 4xx             dead letter until an administrator sets the receiver anew
    429, 5xx, no answer                     again after 1 s, doubled up to 5 min, or what Retry-After says, for 6 h

An event is signed when it is sent, so it always verifies with a published key. A crash between the answer and its note
sends an event twice; receivers know it by its ``jti``.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from aims.audit.record import inert, recorder
from aims.clock import Clock, IdSource
from aims.fetch import Fetcher, FetchError, Limits, Request, Response, parse_url
from aims.monitoring import store
from aims.monitoring.keys import SetKeys
from aims.monitoring.model import Due, Receiver
from aims.monitoring.peers import Peers
from aims.monitoring.set import MEDIA_TYPE, sign_set
from aims.storage.database import Database
from aims.storage.write import Write

AT_ONCE: Final = 32
PATIENCE: Final = 6 * 3600  # seconds
LONGEST_PAUSE: Final = 300
UNAUTHORIZED_TRIES: Final = 3
LIMITS: Final = Limits(seconds=10.0, body=16 * 1024)

_log = logging.getLogger("aims.monitoring")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from an attempt: ``sent``, ``waiting`` (try again in ``pause`` seconds) or ``dead``."""

    state: str
    pause: int = 0
    reason: str = ""


async def push(fetcher: Fetcher, receiver: Receiver, token: str, *, limits: Limits = LIMITS) -> Response:
    """Send one SET. Raises: FetchError."""
    endpoint = parse_url(receiver.url)
    return await fetcher.fetch(
        Request(
            url=receiver.url,
            method="POST",
            headers=(("content-type", MEDIA_TYPE), ("accept", "application/json")),
            body=token.encode("ascii"),
            accept=frozenset({"application/json"}),
            ca=receiver.ca,
            private=frozenset({(endpoint.host, endpoint.port)}) if receiver.private else frozenset(),
            limits=limits,
        )
    )


def judge(answer: Response | FetchError, due: Due, now: float) -> Verdict:
    """Say what follows from an answer, or from there being none. Pure."""
    pause = min(2**due.tries, LONGEST_PAUSE) if due.tries < 16 else LONGEST_PAUSE
    if isinstance(answer, FetchError):
        return _again(due, now, pause, answer.code)
    status, reason = answer.status, f"http_{answer.status}"
    if status == 202:
        return Verdict("sent")
    if status == 400:
        error = _error_code(answer.body)
        again = error == "invalid_key" and due.reason != error
        return Verdict("waiting" if again else "dead", pause, error or reason)
    if status == 429:
        wait = answer.headers.get("retry-after", "")
        named = int(wait) if wait.isascii() and wait.isdecimal() and len(wait) < 6 else 0
        return _again(due, now, max(pause, min(named, 3600)), reason)
    if 400 <= status < 500:
        again = status == 401 and due.tries + 1 < UNAUTHORIZED_TRIES
        return Verdict("waiting" if again else "dead", pause, reason)
    return _again(due, now, pause, reason)


class Courier:
    """Delivers what waits. Of the processes of one host that share ``folder`` one does."""

    def __init__(
        self,
        *,
        database: Database,
        peers: Peers,
        keys: SetKeys,
        fetcher: Fetcher,
        clock: Clock,
        ids: IdSource,
        folder: Path,
    ) -> None:
        self._database = database
        self._peers = peers
        self._keys = keys
        self._fetcher = fetcher
        self._clock = clock
        self._ids = ids
        self._path = folder / "signals.lock"
        self._lock = -1

    async def turn(self) -> int:
        """Deliver what is due, and return how many were tried.

        Raises: StorageError, KeyStoreError, ProvisioningError. What was not noted is tried again.
        """
        receiver = self._peers.receiver
        if receiver is None or not self._leads():
            return 0
        now = int(self._clock.now())
        due = await self._database.read(lambda connection: store.read_due(connection, now, AT_ONCE))
        for count, event in enumerate(due, 1):
            if not await self._deliver(receiver, event):
                return count  # nobody is there: the others need not wait for the same silence now
        return len(due)

    def close(self) -> None:
        """Let another process deliver."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _leads(self) -> bool:
        if self._lock >= 0:
            return True
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            _log.exception("the lock of the courier cannot be opened")
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._lock = descriptor
        return True

    async def _deliver(self, receiver: Receiver, due: Due) -> bool:
        claims: dict[str, Any] = msgspec.json.decode(due.claims)
        # The receiver may have got another name since, and takes no event that was issued long ago; when it happened
        # stands in the event itself.
        claims["aud"] = receiver.audience
        if self._clock.now() - claims["iat"] > PATIENCE:
            claims["iat"] = int(self._clock.now())
        token = await sign_set(claims, (await self._keys.current()).signer)
        answer: Response | FetchError
        try:
            answer = await push(self._fetcher, receiver, token)
        except FetchError as error:
            answer = error
        now = self._clock.now()
        verdict = judge(answer, due, now)
        if verdict.state == "dead":
            _log.error("a security event could not be delivered", extra={"jti": due.jti, "reason": verdict.reason})
        noted = store.tried(
            due.jti,
            due.tries,
            state=verdict.state,
            next_at=math.ceil(now + verdict.pause),
            reason=inert(verdict.reason) if verdict.reason else "",
        )
        record = recorder(
            refuse="signal.sent",
            type="signal.sent",
            outcome="success" if verdict.state == "sent" else "failed",
            time=now,
            id=self._ids.new(),
            request_id=due.jti,
            txn=inert(due.txn),
            resource=inert(receiver.url),
            action="signals.push",
            cause={"set_iss": claims["iss"], "set_jti": due.jti, "event": next(iter(claims["events"]))},
            details={"state": verdict.state, "tries": due.tries + 1, "reason": inert(verdict.reason or "accepted")},
        )
        await self._database.commit(Write(record=record, effects=(noted,)))
        return isinstance(answer, Response)


def _again(due: Due, now: float, pause: int, reason: str) -> Verdict:
    if now + pause > due.created + PATIENCE:
        return Verdict("dead", 0, reason)
    return Verdict("waiting", pause, reason)


def _error_code(body: bytes) -> str:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    found = value.get("err") if isinstance(value, dict) else None
    return found[:64] if isinstance(found, str) and found.isprintable() else ""

"""What is refused before a route decides leaves its record; what strangers send by the thousand is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec
from tests.properties.x509_material import serial

from aims.authorization.flood import PER_SECOND
from aims.clock import IdSource, SystemClock
from aims.credentials.model import Fence
from aims.credentials.x509_svid import X509Svid
from aims.identifiers import SpiffeId
from aims.policy.bundle import Bundle
from aims.provisioning.errors import ProvisioningError
from aims.server import listeners as listeners_module
from aims.server import node_stream
from aims.server.core import Core
from aims.server.listeners import Listeners
from aims.server.policy_activation import activate
from aims.server.settings import Settings, make_private
from aims.storage.database import Database
from aims.storage.errors import StorageError
from aims.storage.schema import outbox

PUBLIC, MTLS = b"localhost:8440", b"localhost:8441"
FORM = (b"content-type", b"application/x-www-form-urlencoded")
VERSION = (b"aims-node-version", b"1")


@pytest_asyncio.fixture
async def served(
    database: Database, tmp_path: Path, clock: SystemClock, ids: IdSource, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Listeners]:
    """Both listeners as they are composed, with the peer of a request in its scope."""

    def named(scope: Any) -> X509Svid | None:
        found: X509Svid | None = scope.get("peer")
        return found

    for module in (listeners_module, node_stream):
        monkeypatch.setattr(module, "peer_svid", named)
    plan = activate(
        Bundle.shipped(),
        before=None,
        now=clock.now(),
        record_id=ids.new(),
        operator={"role": "operator"},
        cause={"admin": "test"},
    )
    plan.answer(await database.commit(plan.write))
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path)
    make_private(settings.server_dir / "keys")
    core = Core(settings, clock=clock, ids=ids, database=database)
    core.follow()
    database.feed.start(asyncio.get_running_loop())
    async with asyncio.timeout(20):
        await core.loaded.wait()
        await core.keeper.open()
        listeners = Listeners(core)
        await listeners.open()
    yield listeners


def _records(served: Listeners) -> list[dict[str, Any]]:
    with served._core.database.reading() as connection:
        rows = connection.execute(sa.select(outbox).order_by(outbox.c.n))
        found = [msgspec.json.decode(row.body) for row in rows]
    return [record for record in found if record["type"] == "request.refuse"]


async def _ask(
    app: Any,
    line: str,
    host: bytes,
    *headers: tuple[bytes, bytes],
    body: bytes = b"",
    peer: X509Svid | None = None,
) -> tuple[int, dict[str, Any]]:
    method, path = line.split(" ")
    sent: list[Any] = []
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(b"host", host), *headers],
        "extensions": {},
        "peer": peer,
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    body = sent[1]["body"]
    if dict(sent[0]["headers"])[b"content-type"].startswith(
        b"text/html"
    ):  # the pages of people say the code at the end
        return sent[0]["status"], {"error": body.decode().rpartition("</code>")[0].rpartition(">")[2]}
    return sent[0]["status"], msgspec.json.decode(body)


def _peer(served: Listeners, path: str) -> X509Svid:
    core = served._core
    return core.authority.sign_x509(
        SpiffeId.parse(f"spiffe://{core.trust_domain.name}/{path}"),
        public_key=ec.generate_private_key(ec.SECP256R1()).public_key(),
        serial=serial(),
        now=int(core.clock.now()),
        lifetime=60,
        fence=Fence("laptop:" + "a" * 26, 0),
    )


async def test_a_refusal_before_any_route_leaves_its_record(served: Listeners) -> None:
    large = b"x" * 300_000
    node, agent = _peer(served, "nodes/laptop"), _peer(served, "agents/a")
    cases: list[tuple[Any, ...]] = [
        (served.public, "GET /spiffe/bundle", (b"attacker.example",), {}, 421, "server.host"),
        (served.public, "GET /secret/in/a/path", (b"attacker.example",), {}, 421, "server.host"),
        (served.public, "POST /node/v1/join", (PUBLIC, VERSION), {"body": large}, 413, "server.too_large"),
        (served.public, "POST /node/v1/join", (PUBLIC, (VERSION[0], b"2")), {}, 426, "provisioning.version"),
        (served.public, "POST /node/v1/join", (PUBLIC, VERSION, VERSION), {}, 426, "provisioning.version"),
        (served.public, "POST /oauth/token", (PUBLIC,), {"body": large}, 400, "authorization.request_too_large"),
        (served.public, "POST /oauth/consent", (PUBLIC,), {"body": large}, 413, "server.too_large"),
        (served.mtls, "POST /oauth/token", (b"x",), {"peer": agent}, 421, "server.host"),
        (served.mtls, "GET /node/v1/watch", (MTLS,), {"peer": node}, 426, "provisioning.version"),
        (served.mtls, "GET /node/v1/watch", (MTLS, VERSION), {"peer": agent}, 401, "provisioning.peer_not_a_node"),
        (served.mtls, "GET /node/v1/watch", (MTLS, VERSION), {"peer": node}, 403, "provisioning.node_unknown"),
    ]
    for number, (app, line, (host, *headers), more, expected, code) in enumerate(cases, 1):
        status, answer = await _ask(app, line, host, *headers, **more)
        records = _records(served)
        assert (status, len(records)) == (expected, number), line
        record = records[-1]
        assert record["decision"] == {"effect": "deny", "reason": code}
        assert code in {answer.get("error"), answer.get("aims_error")}
        known = "secret" not in line
        assert record["action"] == (line if known else "request")
        assert record["claimed"]["host"] == host.decode()
        who = more.get("peer")
        assert record["agent"] == (None if who is None else {"id": str(who.spiffe_id)})
        assert record["details"]["listener"] == ("public" if app is served.public else "mtls")
        assert b"secret/in" not in msgspec.json.encode(record)
    # a token in the wrong place stands there as a digest
    token = b"eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0." + b"A" * 86
    status, _ = await _ask(served.public, "GET /spiffe/bundle", token)
    assert status == 421
    assert _records(served)[-1]["claimed"]["host"].startswith("sha256:")
    status, _ = await _ask(served.public, "GET /spiffe/bundle", b"x" * 5000)
    assert status == 421
    # what is answered leaves none
    count = len(_records(served))
    status, _ = await _ask(served.public, "GET /spiffe/bundle", PUBLIC)
    assert (status, len(_records(served))) == (200, count)


async def test_a_flood_of_them_is_counted(served: Listeners, clock: SystemClock) -> None:
    clock.offset += 1 - clock.monotonic() % 1
    tries = 5 * PER_SECOND
    for _ in range(tries):
        assert (await _ask(served.public, "GET /spiffe/bundle", b"attacker.example"))[0] == 421
    own = len(_records(served))
    # the second may have turned over meanwhile, which lets ten more have their own
    assert own <= 3 * PER_SECOND + 2
    clock.offset += 1
    await served._turn()
    floods = [record["flood"] for record in _records(served) if "flood" in record]
    assert {flood["listener"] for flood in floods} == {"public"}
    single = [record for record in _records(served) if "flood" not in record]
    assert len(single) + sum(flood["count"] for flood in floods) == tries


async def test_a_store_that_cannot_record_lets_nobody_in(served: Listeners, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: object) -> Any:
        raise StorageError("full")

    monkeypatch.setattr(served._core.database, "commit", broken)
    assert (await _ask(served.public, "GET /spiffe/bundle", b"attacker.example"))[0] == 421


async def test_a_worker_that_hears_of_no_changes_decides_nothing(
    served: Listeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = (
        *((app, "POST", path) for app in (served.public, served.mtls) for path in ("/oauth/token", "/oauth/revoke")),
        *((app, "POST", "/txn/token") for app in (served.public, served.mtls)),
        *((served.public, "POST", path) for path in ("/login", "/oauth/consent", "/grants/withdraw", "/logout")),
        *((served.public, "GET", path) for path in ("/login", "/oauth/authorize", "/grants")),
        (served.public, "POST", "/signals/events"),
    )
    for known in (True, False):
        monkeypatch.setattr(served._core.database.feed, "fresh", lambda _=1.0, known=known: known)
        for app, method, path in paths:
            host = MTLS if app is served.mtls else PUBLIC
            status, answer = await _ask(app, f"{method} {path}", host, FORM)
            assert (status == 503) is not known, (path, status, answer)
            if not known and path == "/signals/events":  # the form of RFC 8935 has no place for our code
                assert answer["description"] == ProvisioningError("behind").sentence
            elif not known:
                assert answer.get("aims_error", answer["error"]) == "provisioning.behind", path

"""A server as real processes, a node and agents that this process plays itself, and a person who allows."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from tests.faults.nodes import free_port
from tests.faults.test_server import Server
from tests.faults.wire import form, post
from tests.flows.provisioning_world import DOMAIN, PROFILE, proof_jwk, request
from tests.flows.token_world import NOTES, TABLES, ProofKey
from tests.postgres import until

from aims.authentication import dpop
from aims.authorization.routes import TOKEN
from aims.clock import SystemClock, SystemIds
from aims.credentials.bundle import BundleSet
from aims.credentials.mtls import spiffe_client_context
from aims.credentials.x509_svid import X509Svid, validate
from aims.demo.browser import Browser
from aims.demo.processes import Process, aims, output_of
from aims.identifiers import SpiffeId
from aims.jose.door import decode
from aims.node.messages import bundle_of
from aims.node.server_client import Evidence, ServerClient, join
from aims.policy.bundle import Bundle
from aims.provisioning.join_token import JoinToken
from aims.sdk.authorization_code import ask_person
from aims.tls import TlsIdentity

CLOCK = SystemClock()
IDS = SystemIds(CLOCK)
SERVER = SpiffeId.service(DOMAIN, "aims")
REDIRECT = "http://127.0.0.1/callback"
LAST_WORDS = 8000  # characters
READ = {"resource": NOTES, "scope": "notes:read"}


class TokenServer(Server):
    """An ``aims up`` without a node, under ports that stay, with the resources of the token tests in its policy."""

    def __init__(self, folder: Path, database: str = "", workers: int = 2) -> None:
        super().__init__(folder, database, workers)
        self.public_port, self.mtls_port = free_port(), free_port()
        self.policy = folder / "policy"
        self.policy.mkdir(mode=0o700)
        for name, octets in Bundle.shipped().files.items():
            (self.policy / name).write_bytes(octets)
        with (self.policy / "tables.toml").open("a") as tables:
            tables.write(TABLES)

    def argv(self, **other: str) -> tuple[str, ...]:
        ports = {"port": str(self.public_port), "mtls_port": str(self.mtls_port), "policy": str(self.policy)}
        return (*super().argv(**(ports | other)), "--no-node")

    @property
    def issuer(self) -> str:
        return f"https://localhost:{self.public_port}"

    @property
    def token_url(self) -> str:
        """The token endpoint on the mTLS listener."""
        return f"https://localhost:{self.mtls_port}{TOKEN}"

    def pids(self) -> list[int]:
        """The worker processes."""
        assert self.process is not None
        return self.process.children("aims.server.worker")

    async def ask(self, path: str, body: object) -> dict[str, Any]:
        """Call the administrator's socket."""

        def call() -> dict[str, Any]:
            with self.admin() as client:
                answer: dict[str, Any] = client.call("POST", path, body)
                return answer

        return await asyncio.to_thread(call)

    async def gone(self, process: Process, pids: list[int]) -> None:
        """Wait until nothing is left of a server that was killed."""
        await process.kill()
        await asyncio.to_thread(until, lambda: not any(map(_runs, pids)))

    async def close(self) -> None:
        """End the server, and leave the end of its log for whoever reads why a test failed."""
        if self.process is not None:
            await self.process.end()
            await self.process.kill()
        sys.stdout.write(self.log.read_text("utf-8", "replace")[-LAST_WORDS:])

    async def records(self) -> list[dict[str, Any]]:
        """Everything that is published."""
        options = ("--count", "10000000", "--state-dir", str(self.state), "--output", "json")
        status, text = await output_of(aims("audit", "tail", *options))
        assert status == 0, text
        return [json.loads(line) for line in text.splitlines()]

    async def join_token(self, node: str) -> JoinToken:
        return JoinToken.parse((await self.ask("/admin/v1/nodes/token", {"node": node}))["token"])

    def joining(self, token: JoinToken) -> bytes:
        """The request that uses a join token up."""
        members = {"secret": _text(token.secret), "node": token.node, "csr": _text(request())}
        host = f"localhost:{self.public_port}"
        return post("/node/v1/join", host, json.dumps(members).encode(), "aims-node-version: 1")

    def public_context(self) -> ssl.SSLContext:
        """What a stranger connects to the public listener with."""
        return ssl.create_default_context(cafile=str(self.state / "server" / "tls-ca.pem"))


@dataclass(slots=True)
class Agent:
    """Credentials as a node gives them to a process, used by this one."""

    server: TokenServer
    svid: X509Svid
    key: ProofKey
    context: ssl.SSLContext

    @property
    def id(self) -> str:
        return str(self.svid.spiffe_id)

    def asking(self) -> bytes:
        """A request for a token of the agent's own right, with a proof that was never shown."""
        claims = dpop.build_claims("POST", self.server.token_url, token_id=IDS.token(), now=CLOCK.now())
        proof = dpop.issue_now(claims, self.key, self.key.private.public_key())
        return self.sending({"grant_type": "client_credentials", **READ}, f"dpop: {proof}")

    def sending(self, parameters: dict[str, str], *headers: str) -> bytes:
        """A form for the token endpoint, from this client."""
        host = f"localhost:{self.server.mtls_port}"
        return form(TOKEN, host, {"client_id": self.id, **parameters}, *headers)


class Node:
    """A node that is played here: it joined by a token, and issues by the node protocol, but launches nothing."""

    def __init__(self, server: TokenServer, name: str, svid: X509Svid, key: ec.EllipticCurvePrivateKey) -> None:
        self._server = server
        self._name = name
        self._svid = svid
        self._key = key
        self.bundles = BundleSet()
        self.client: ServerClient

    @classmethod
    async def join(cls, server: TokenServer, name: str) -> Node:
        key = ec.generate_private_key(ec.SECP256R1())
        welcome = await join(await server.join_token(name), request(key))
        bundles = BundleSet([bundle_of(welcome.bundle, DOMAIN)])
        svid = validate(welcome.chain(), bundles, now=CLOCK.now(), expected=SpiffeId.node(DOMAIN, name), own=DOMAIN)
        self = cls(server, name, svid, key)
        self.bundles = bundles
        self.client = ServerClient(welcome.mtls_url, self._context(svid, key))
        return self

    async def register(self, agent: str) -> str:
        """Register an agent on this node; return its entry."""
        profile = PROFILE.canonical().decode()
        where = {"launch_uids": [os.getuid()], "nodes": [self._name], "profile": profile}
        return str((await self._server.ask("/admin/v1/agents", {"name": agent, "owner": "team", **where}))["entry"])

    async def issue(self, entry: str) -> Agent:
        """Have credentials issued for one more instance. Raises: NodeError."""
        key, proof = ec.generate_private_key(ec.SECP256R1()), ProofKey()
        evidence = Evidence(
            kind="launch",
            collected_at=int(time.time()),
            selectors=[str(PROFILE.selector()), f"unix:uid:{os.getuid()}"],
            posture="node-uid",
        )
        answer = await self.client.issue(
            entry=entry,
            instance=f"{self._name}:{IDS.new()}",
            csr=request(key),
            proof_key=proof_jwk(proof.private),
            evidence=evidence,
        )
        svid = validate(answer.chain(), self.bundles, now=CLOCK.now(), own=DOMAIN)
        return Agent(self._server, svid, proof, self._context(svid, key))

    def _context(self, svid: X509Svid, key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
        return spiffe_client_context(TlsIdentity(svid.chain, key), self.bundles, CLOCK, expected=SERVER)

    async def close(self) -> None:
        await self.client.close()


class Person:
    """Somebody with a browser, logged in, who approves whatever the agent asks."""

    def __init__(self, server: TokenServer) -> None:
        self._server = server
        self._browser = Browser(server.state / "server" / "tls-ca.pem")

    @classmethod
    async def login(cls, server: TokenServer, agent: str) -> Person:
        self = cls(server)
        await server.ask("/admin/v1/clients/redirects", {"agent": agent, "redirect_uris": [REDIRECT]})
        await server.ask("/admin/v1/people", {"name": "Ada"})
        link = (await server.ask("/admin/v1/people/link", {"name": "Ada"}))["url"]
        page = await self._browser.go(link)
        back = await self._browser.submit(link, "/login", page.fields())
        assert back.status == 303, back.words
        return self

    async def approve(self, agent: Agent) -> bytes:
        """Approve once; return the request that redeems the code, with the agent's certificate and no proof."""
        asked = ask_person(
            f"{self._server.issuer}/oauth/authorize",
            issuer=self._server.issuer,
            client_id=agent.id,
            redirect_uri=REDIRECT,
            state=IDS.token(),
            verifier=IDS.token(32),
            **READ,
        )
        page = await self._browser.go(asked.url)
        assert page.status == 200, page.words
        decided = page.fields() | {"decision": "approve"}
        back = await self._browser.submit(asked.url, "/oauth/consent", decided)
        return agent.sending(dict(asked.redemption(asked.code_of(back.location))))


def token_id(text: str) -> str:
    """The ``jti`` of an access token, unverified."""
    return str(decode(text, 16 * 1024)[1]["jti"])


def _text(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0] != "Z"
    return False

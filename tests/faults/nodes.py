"""A server and a node as real processes, and a program that tells what the Workload API gives it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aims.cli.run_client import measure_for_registration
from aims.demo.processes import Process, aims
from aims.server.admin_client import AdminClient

PATIENCE = 30.0
PYTHON = os.path.realpath(sys.executable)

# With the bare interpreter only this file is a code root, so measuring takes no time.
AGENT = f"""
import sys
sys.path[:0] = {[entry for entry in sys.path if entry]!r}
import asyncio, json
from cryptography import x509
from aims.credentials.x509_svid import read
from aims.errors import AimsError
from aims.sdk.workload_client import WorkloadClient
from aims.sdk.workload_state import Interrupted, Withdrawn

def say(**facts):
    sys.stdout.write(json.dumps(facts) + "\\n")
    sys.stdout.flush()

def facts(state):
    leafs = [x509.load_der_x509_certificate(svid.chain) for svid in state.svids]
    return {{
        "event": "x509",
        "ids": [str(svid.spiffe_id) for svid in state.svids],
        "hints": [svid.hint for svid in state.svids],
        "serials": [str(leaf.serial_number) for leaf in leafs],
        "expires": [leaf.not_valid_after_utc.timestamp() for leaf in leafs],
        "instances": [read(svid.chain).fence.instance for svid in state.svids],
    }}

async def commands(client):
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            if line.strip() == "jwt":
                jwt = await client.fetch_jwt(["spiffe://local.test/services/tool"])
                who, claims = await client.validate_jwt("spiffe://local.test/services/tool", jwt[0].token)
                say(event="jwt", token=jwt[0].token, who=str(who), claims=claims)
            elif line.strip() == "wit":
                wit = (await client.fetch_wit()).wits[0]
                bundles = {{td.name: list(json.loads(jwks)["keys"]) for td, jwks in
                           (await client.fetch_wit_bundles()).items()}}
                jwt_bundles = sorted(td.name for td in await client.fetch_jwt_bundles())
                x509_bundles = sorted(td.name for td in await client.fetch_x509_bundles())
                say(event="wit", who=str(wit.spiffe_id), key=json.loads(wit.key)["kty"], keys=bundles,
                    jwt_bundles=jwt_bundles, x509_bundles=x509_bundles)
        except AimsError as error:
            say(event="error", code=error.code, detail=error.detail)

async def main():
    async with WorkloadClient() as client:
        asyncio.get_running_loop().create_task(commands(client))
        async for event in client.watch_x509():
            if isinstance(event, (Withdrawn, Interrupted)):
                say(event=type(event).__name__.lower(), detail=event.error.detail)
            else:
                say(**facts(event))

asyncio.run(main())
"""


def free_port() -> int:
    """Return a port that is free now, so that a server can come back under the same one."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Talking:
    """A process with standard input and output, which says JSON lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, *argv: str, log: Path, environment: Mapping[str, str] | None = None) -> Talking:
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                env=None if environment is None else dict(environment),
                limit=1024 * 1024,
            )
        return cls(process)

    async def said(self) -> dict[str, Any]:
        """Return the next line."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), PATIENCE)
        assert line, f"ended with {await self.process.wait()}"
        found: dict[str, Any] = json.loads(line)
        return found

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first line for which ``condition`` holds."""
        async with asyncio.timeout(PATIENCE):
            while not condition(found := await self.said()):
                pass
        return found

    async def ask(self, command: str) -> dict[str, Any]:
        """Send a command and return its answer, passing over the states of the stream."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        return await self.until(lambda found: found["event"] in {command, "error"})

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await asyncio.wait_for(self.process.communicate(), PATIENCE)


class World:
    """An ``aims up``, one node beside it, and the programs that were started."""

    def __init__(self, folder: Path, database: str = "") -> None:
        self.folder = folder
        self.log = folder / "log"
        self.database = database
        self.ports = free_port(), free_port()
        self.server: Process | None = None
        self.node: Process | None = None
        self._programs: list[Talking] = []
        self._nodes = 0
        self.name = "n0"
        self.program = folder / "agent.py"
        self.program.write_text(AGENT)

    async def start_server(self) -> Process:
        options = {
            "state-dir": str(self.folder / "server"),
            "run-dir": str(self.folder / "s"),
            "port": str(self.ports[0]),
            "mtls-port": str(self.ports[1]),
        }
        if self.database:
            options["database"] = self.database
        argv = aims("up", "--no-node", *(part for name, value in options.items() for part in (f"--{name}", value)))
        self.server = await Process.start("aims up", argv, log=self.log)
        await self.server.until("ready")
        return self.server

    async def call(self, path: str, body: object) -> Any:
        """Call the administrator's socket."""

        def ask() -> Any:
            with AdminClient(self.folder / "s" / "admin.sock") as client:
                return client.call("POST", path, body)

        return await asyncio.to_thread(ask)

    async def token(self, node: str = "") -> str:
        return str((await self.call("/admin/v1/nodes/token", {"node": node or self.name}))["token"])

    @property
    def run_dir(self) -> Path:
        """Where the node's sockets are."""
        return self.folder / self.name

    def node_argv(self, *, token: Path | str | None = None, state: str = "", run: str = "") -> tuple[str, ...]:
        state_dir, run_dir = self.folder / (state or f"{self.name}-state"), self.folder / (run or self.name)
        folders = ("--state-dir", str(state_dir), "--run-dir", str(run_dir))
        return sys.executable, "-m", "aims.node", *folders, *(("--join-token", str(token)) if token else ())

    def token_file(self, text: str, mode: int = 0o600) -> Path:
        path = self.folder / "token"
        path.write_text(text + "\n")
        path.chmod(mode)
        return path

    async def start_node(self, token: str | None = None) -> Process:
        """Start the node; with ``token`` it may join."""
        argv = self.node_argv(token=None if token is None else self.token_file(token))
        self.node = await Process.start("node", argv, log=self.log)
        await self.node.until("ready")
        return self.node

    async def begin(self) -> None:
        """Start the server, with an owner."""
        await self.start_server()
        await self.call("/admin/v1/owners", {"name": "team"})

    def next_name(self) -> None:
        """Choose the name of a node that nobody knows."""
        self._nodes += 1
        self.name = f"n{self._nodes}"

    async def new_node(self) -> Process:
        """Join a node that nobody knew before."""
        self.next_name()
        return await self.start_node(await self.token())

    async def register(self, name: str, *, program: Path | None = None, x509_ttl: int = 0, jwt_ttl: int = 0) -> Any:
        """Register a program, by default the telling one, as an agent."""
        command = [PYTHON, str(program or self.program)]
        profile = measure_for_registration(command, self.folder).canonical().decode()
        body = {
            "name": name,
            "owner": "team",
            "launch_uids": [os.getuid()],
            "nodes": [self.name],
            "profile": profile,
            "x509_ttl": x509_ttl,
            "jwt_ttl": jwt_ttl,
        }
        return await self.call("/admin/v1/agents", body)

    async def run(self, name: str, *command: str) -> Talking:
        """``aims run --as NAME``, by default the telling program."""
        argv = command or (PYTHON, str(self.program))
        started = await Talking.start(
            *aims("run", "--as", name, "--run-dir", str(self.run_dir), "--quiet", "--", *argv), log=self.log
        )
        self._programs.append(started)
        return started

    async def unlaunched(self) -> Talking:
        """The same program, started by nobody who vouches for it."""
        environment = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{self.run_dir}/workload.sock"}
        started = await Talking.start(PYTHON, str(self.program), log=self.log, environment=environment)
        self._programs.append(started)
        return started

    async def close_node(self) -> None:
        """End the node and every program."""
        while self._programs:
            await self._programs.pop().close()
        if self.node is not None:
            await self.node.end()
            await self.node.kill()
            self.node = None

    async def close(self) -> None:
        await self.close_node()
        if self.server is not None:
            await self.server.end()
            await self.server.kill()

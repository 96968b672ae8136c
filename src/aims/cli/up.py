"""``aims up``: a trust domain on this host."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from aims.cli.errors import CliError
from aims.cli.output import say
from aims.clock import SystemClock, SystemIds
from aims.server.settings import MTLS_PORT, PUBLIC_PORT, Settings, default_run_dir, default_state_dir


def up(
    *,
    trust_domain: str = "local.test",
    state_dir: Annotated[Path | None, Parameter(help="what must survive [default: $XDG_STATE_HOME/aims]")] = None,
    run_dir: Annotated[Path | None, Parameter(help="the sockets [default: $XDG_RUNTIME_DIR/aims]")] = None,
    database: Annotated[str, Parameter(help="a postgresql:// URL [default: SQLite in the state folder]")] = "",
    policy: Annotated[Path | None, Parameter(help="a policy folder [default: the shipped one]")] = None,
    port: Annotated[int, Parameter(help="public listener, 0 takes a free one")] = PUBLIC_PORT,
    mtls_port: Annotated[int, Parameter(help="mTLS listener, 0 takes a free one")] = MTLS_PORT,
    workers: int = 1,
    node: Annotated[bool, Parameter(help="start this host's node too")] = True,
) -> None:
    """Start a trust domain on loopback, with this host's node, and keep it running until Ctrl-C."""
    if sys.platform != "linux":
        raise CliError("platform")
    from aims.log import start_logging
    from aims.server.start import serve
    from aims.server.supervisor import Running

    start_logging()
    state = (state_dir or default_state_dir(os.environ)).absolute()
    settings = Settings(
        trust_domain=trust_domain,
        state_dir=state,
        run_dir=(run_dir or default_run_dir(os.environ, state)).absolute(),
        database=database,
        policy_dir=policy.absolute() if policy else None,
        public_port=port,
        mtls_port=mtls_port,
        workers=workers,
    )
    clock = SystemClock()

    async def ready(running: Running) -> None:
        found = running.settings
        say(f"trust domain  spiffe://{found.trust_domain}")
        say(f"public        https://localhost:{found.public_port}")
        say(f"mTLS          https://localhost:{found.mtls_port}")
        say(f"its CA        {found.public_ca}")
        say(f"admin socket  {found.admin_socket}")
        say(f"audit log     {found.log_dir}")
        if node:
            say(f"workload API  unix://{found.run_dir / 'workload.sock'}")
        say("ready")

    asyncio.run(serve(settings, clock=clock, ids=SystemIds(clock), ready=ready, with_node=node))

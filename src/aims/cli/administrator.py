"""What every command that asks the administrator's socket has: its two options, and the one call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

RunDir = Annotated[
    Path | None, Parameter(name="--run-dir", help="folder of the sockets [default: $XDG_RUNTIME_DIR/aims]")
]
Why = Annotated[str, Parameter(name="--reason", help="why, for the record")]


def call(run_dir: Path | None, reason: str, method: str, path: str, body: object | None = None) -> Any:
    """Call the administrator's socket once, on ``/admin/v1/`` and ``path``, and return what it answers."""
    from aims.server.admin_client import AdminClient, socket_path

    with AdminClient(socket_path(run_dir), reason) as client:
        return client.call(method, f"/admin/v1/{path}", body)

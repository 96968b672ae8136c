"""What the base install brings is enough for agents and services; what the server needs stays in its extra."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVER = ("sqlalchemy", "psycopg", "alembic", "uvicorn", "starlette", "uvloop", "httptools", "cedarpy", "jinja2", "mcp")
CLIENT = ("httpx2",)

PROGRAM = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ImportError(name)

sys.meta_path.insert(0, Missing())
import {module}
"""


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        *((module, SERVER + CLIENT) for module in ("aims", "aims.sdk.identity", "aims.sdk.asgi", "aims.cli.main")),
        *(
            (module, SERVER + CLIENT)
            for module in ("aims.cli.run", "aims.cli.svid", "aims.cli.explain", "aims.audit.verify")
        ),
        *((module, SERVER) for module in ("aims.node.daemon", "aims.sdk.httpx2", "aims.cli.doctor")),
    ],
)
def test_a_module_imports_without_what_its_extra_would_bring(module: str, missing: tuple[str, ...]) -> None:
    program = PROGRAM.format(missing=missing, module=module)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_aims_loads_nothing_heavy() -> None:
    program = "import sys, aims; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    heavy = {name.partition(".")[0] for name in loaded.stdout.split()} & {"cryptography", "msgspec", "grpclib", *SERVER}
    assert not heavy

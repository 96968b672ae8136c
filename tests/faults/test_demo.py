"""The story as users see it, and that no rule or row of its policy is without a step that needs it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from tests.mutations import mutations

import aims
from aims.demo.policy import write_policy
from aims.demo.stage import PORTS
from aims.policy.bundle import Bundle

RUNNER = Path(__file__).with_name("demo_policy.py")
AT_ONCE = 2
SECONDS = 240.0
FIRST_PORT = 61001
# Where a mutant is looked for first, by how its name begins; the whole story is told where that shows nothing.
FIRST = {
    "rights": ("rule token_", "rule exchange_", "lifetimes.access-", "resources.refunds-oauth", "ceilings."),
    "person": (
        *("rule transaction_", "lifetimes.login-", "lifetimes.approval-", "lifetimes.authorization-"),
        *("remedies.account-", "resources.ledger", "transmitters.identity-", "purposes."),
    ),
    "stops": ("rule transmitter_", "remedies.", "transmitters.", "resources."),
}
# Postures that no process of one user can have: what they allow is decided, and shown, by the policy's own tests.
ELSEWHERE = frozenset({"postures.node-uid"})


async def run(*argv: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a program to its end; its folder for temporary files is a short one of its own."""
    with tempfile.TemporaryDirectory(prefix="a-", dir="/tmp") as folder:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "TMPDIR": folder, **(environment or {})},
        )
        octets, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    return process.returncode or 0, octets.decode("utf-8", "replace")


async def test_the_whole_story_is_as_expected() -> None:
    status, text = await run(sys.executable, "-m", "aims", "demo")
    last = text.rstrip().splitlines()[-1]
    found = re.fullmatch(r"(\d+) of (\d+) as expected", last)
    assert found, text[-3000:]
    assert found[1] == found[2], text
    assert int(found[2]) >= 28
    assert status == 0


async def test_a_policy_that_allows_the_scope_above_the_ceiling_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "aims"
    shutil.copytree(Path(aims.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    tables = copy / "demo" / "tables.toml"
    before = tables.read_text("utf-8")
    after = before.replace('scopes = ["refund", "read"]\n', 'scopes = ["refund", "read", "close"]\n')
    assert before.count('scopes = ["refund", "read"]\n') == 1
    tables.write_text(after, "utf-8")
    status, text = await run(sys.executable, "-m", "aims", "demo", environment={"PYTHONPATH": str(tmp_path)})
    last = text.rstrip().splitlines()[-1]
    found = re.fullmatch(r"(\d+) of (\d+) as expected", last)
    assert found, text[-3000:]
    assert int(found[1]) == int(found[2]) - 1, text
    assert "was not as expected: It asks for a scope above the ceiling of agents" in text
    assert status == 1


@pytest.mark.timeout(2400)
async def test_removing_any_rule_or_row_of_the_policy_makes_a_named_step_fail(tmp_path: Path) -> None:
    ports = {name: FIRST_PORT + at for at, name in enumerate(PORTS)}
    write_policy(tmp_path / "policy", ports)
    bundle = Bundle.from_folder(tmp_path / "policy")
    free = asyncio.Semaphore(AT_ONCE)

    async def told(bundle: Bundle, folder: Path, excerpt: str | None) -> str:
        """Return the step that was not as expected, or nothing."""
        _write(bundle, folder, ports)
        async with free:
            status, text = await run(sys.executable, str(RUNNER), str(folder), *([excerpt] if excerpt else []))
        assert status in {0, 1}, text
        assert bool(text.strip()) == bool(status), text
        return text

    async def surprise(name: str, mutant: Bundle) -> tuple[str, str]:
        folder = tmp_path / re.sub(r"\W+", "-", name)
        first = next((excerpt for excerpt, words in FIRST.items() if name.startswith(words)), None)
        return name, (await told(mutant, folder, first) if first else "") or await told(mutant, folder, None)

    # what is missing in an excerpt must not be taken for what is missing in the policy
    alone = await asyncio.gather(*(told(bundle, tmp_path / "whole", excerpt) for excerpt in FIRST))
    assert alone == [""] * len(FIRST)
    wanted = [(name, mutant) for name, mutant in mutations(bundle) if name not in ELSEWHERE]
    assert len(wanted) > 20
    results = await asyncio.gather(*(surprise(name, mutant) for name, mutant in wanted))
    for name, text in results:
        sys.stdout.write(f"{name}: {text}\n")  # pytest -rP
    unnoticed = [name for name, text in results if not text.strip()]
    assert not unnoticed, unnoticed


def _write(bundle: Bundle, folder: Path, ports: dict[str, int]) -> None:
    """Write the files of a bundle for the runner, which puts the ports of its own story in."""
    folder.mkdir(exist_ok=True)
    for file, octets in bundle.files.items():
        text = octets.decode("utf-8")
        for name, port in ports.items():
            text = text.replace(f":{port}/", f":{{{name}}}/")
        (folder / file).write_text(text, "utf-8")

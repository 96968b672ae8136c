"""A proof is spent once, whoever asks, and no window forgets by being full, restarted or set back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.proof_material import NOW, FixedClock

from aims.authentication.errors import CONSEQUENCES, AuthenticationError
from aims.authentication.replay import MAX_LIFE, MemoryWindow, ProofClaim, ReplayWindow, check_started
from aims.node.window import FileWindow

Make = Callable[[FixedClock], ReplayWindow]


def _id(name: str, expires: int = NOW + 150, *, space: str = "wpt", holder: str = "spiffe://a/b") -> bytes:
    return ProofClaim(space, holder, name, expires).key


@pytest.fixture(params=["memory", "file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Both windows, with room for 128 ids."""
    if request.param == "memory":
        return lambda clock: MemoryWindow(clock, capacity=128)
    return lambda clock: FileWindow(tmp_path / "window", clock, capacity=128, boot=b"boot-1")


async def test_an_id_is_new_once_also_within_one_call(make: Make) -> None:
    window = make(FixedClock())
    assert await window.claim([_id("a"), _id("b"), _id("a")]) == [True, True, False]
    assert await window.claim([_id("b"), _id("c")]) == [False, True]
    assert await window.claim([]) == []


async def test_sixteen_at_once_give_one_success(make: Make) -> None:
    window = make(FixedClock())
    for round_ in range(5):
        answers = await asyncio.gather(*(window.claim([_id(f"race-{round_}")]) for _ in range(16)))
        assert sorted(answer[0] for answer in answers) == [False] * 15 + [True]


async def test_a_bad_id_is_refused_and_harms_no_other(make: Make) -> None:
    window = make(FixedClock())
    bad = [b"", b"x" * 15, b"x" * 17, _id("late", NOW), _id("past", NOW - 1), _id("far", NOW + 691), b"\0" * 16]
    assert await window.claim([_id("a"), *bad, _id("b")]) == [True, *[False] * len(bad), True]
    assert await window.claim([_id("longest", NOW + 690)]) == [True]


async def test_a_full_window_refuses_and_has_room_again_when_proofs_have_expired(make: Make) -> None:
    clock = FixedClock()
    window = make(clock)
    assert await window.claim([_id(str(number)) for number in range(128)]) == [True] * 128
    with pytest.raises(AuthenticationError, match="window_unavailable"):
        await window.claim([_id("one more")])
    assert await window.claim([_id("5")]) == [False]
    clock.at = NOW + 149
    with pytest.raises(AuthenticationError, match="window_unavailable"):
        await window.claim([_id("still", NOW + 200)])
    clock.at = NOW + 150
    assert await window.claim([_id("room", NOW + 200), _id("5")]) == [True, False]


async def test_time_that_goes_back_brings_nothing_back(make: Make) -> None:
    clock = FixedClock()
    window = make(clock)
    assert await window.claim([_id("a", NOW + 10)]) == [True]
    clock.at = NOW + 20
    assert await window.claim([_id("b", NOW + 90)]) == [True]
    clock.at = NOW + 5  # the proof could be shown again now, and its id may be gone
    assert await window.claim([_id("a", NOW + 10), _id("b", NOW + 90)]) == [False, False]
    clock.at = NOW - 41
    with pytest.raises(AuthenticationError, match="window_unavailable"):
        await window.claim([_id("c")])


def test_a_young_window_takes_only_proofs_made_after_its_start(make: Make) -> None:
    window = make(FixedClock(NOW + 0.25))
    assert window.complete_since == pytest.approx(NOW + 0.25, abs=0.01)

    def answer(issued_at: float | None, now: float) -> str:
        try:
            check_started(window, issued_at, now, leeway=5)
        except AuthenticationError as error:
            return error.reason
        return "accept"

    # A predecessor could have taken a proof whose sender's clock was five seconds ahead.
    assert [answer(NOW + late, NOW + 10) for late in (-1, 0, 5, 6)] == ["window_starting"] * 3 + ["accept"]
    assert answer(None, NOW + 10) == "window_starting"
    assert answer(None, NOW + MAX_LIFE) == "window_starting"
    assert answer(None, NOW + MAX_LIFE + 1) == "accept"
    assert answer(NOW - 100, NOW + MAX_LIFE + 1) == "accept"
    assert CONSEQUENCES["window_starting"].retry_after > 0


@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from(["wpt", "dpop"]),
            st.sampled_from(["a", "ab", "spiffe://a/b"]),
            st.text(max_size=3),
            st.integers(0, 2**32 - 1),
        ),
        min_size=2,
        max_size=8,
        unique=True,
    )
)
def test_ids_are_equal_only_for_equal_claims_and_sort_by_expiry(parts: list[tuple[str, str, str, int]]) -> None:
    claims = [ProofClaim(*part) for part in parts]
    assert len({claim.key for claim in claims}) == len(claims)
    assert {len(claim.key) for claim in claims} == {16}
    assert [ProofClaim(*part).key for part in parts] == [claim.key for claim in claims]
    ordered = sorted(claims, key=lambda claim: claim.key)
    assert all(one.expires <= other.expires for one, other in pairwise(ordered))


def test_a_claim_outlives_the_proof_for_every_verifier() -> None:
    assert ProofClaim.until("wpt", "h", "i", NOW + 0.5).expires == NOW + 31
    assert ProofClaim.until("wpt", "h", "i", 2.0**52).expires == 2**32 - 1
    with pytest.raises(ValueError, match="room"):
        MemoryWindow(FixedClock(), capacity=0)


def _file(path: Path, clock: FixedClock, boot: bytes = b"boot-1") -> FileWindow:
    return FileWindow(path, clock, capacity=1024, boot=boot)


async def test_the_file_keeps_claims_over_restarts_and_a_reboot_or_damage_starts_anew(tmp_path: Path) -> None:
    path, clock = tmp_path / "window", FixedClock()
    window = _file(path, clock)
    since = window.complete_since
    assert await window.claim([_id("a")]) == [True]
    window.close()
    clock.at = NOW + 50
    window = _file(path, clock)
    assert window.complete_since == since
    assert await window.claim([_id("a"), _id("b")]) == [False, True]
    window.close()
    window = _file(path, clock, boot=b"boot-2")
    assert window.complete_since >= NOW + 50
    window.close()
    whole = path.read_bytes()
    no_sets = whole[:48] + bytes(8) + whole[56:4096]
    for damage in (b"", b"garbage", whole[:-1], b"x" + whole[1:], no_sets):
        path.write_bytes(damage)
        clock.at += 1
        window = _file(path, clock, boot=b"boot-2")
        assert window.complete_since >= clock.at
        assert await window.claim([_id("a")]) == [True]
        window.close()


async def test_a_clock_set_back_over_a_restart_refuses(tmp_path: Path) -> None:
    clock = FixedClock()
    window = _file(tmp_path / "window", clock)
    clock.at = NOW + 100
    assert await window.claim([_id("a")]) == [True]
    window.close()
    clock.at = NOW
    window = _file(tmp_path / "window", clock)
    with pytest.raises(AuthenticationError, match="window_unavailable"):
        await window.claim([_id("b")])
    window.close()


def test_the_file_is_private_and_has_one_user_and_its_room_from_the_start(tmp_path: Path) -> None:
    path, clock = tmp_path / "window", FixedClock()
    with pytest.raises(AuthenticationError, match="window_unavailable"):
        FileWindow(path, clock, capacity=2**50)
    window = _file(path, clock)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(AuthenticationError, match="window_unavailable"):
        _file(path, clock)
    window.close()
    path.chmod(0o644)
    with pytest.raises(AuthenticationError, match="window_unavailable"):
        _file(path, clock)
    link, folder, pipe = tmp_path / "link", tmp_path / "folder", tmp_path / "pipe"
    link.symlink_to(path)
    folder.mkdir()
    os.mkfifo(pipe, 0o600)
    for wrong in (link, folder, pipe, tmp_path / "absent" / "window"):
        with pytest.raises(AuthenticationError, match="window_unavailable"):
            _file(wrong, clock)


_CHILD = """
import asyncio, os, sys
from pathlib import Path
from tests.properties.proof_material import FixedClock
from aims.node.window import FileWindow
window = FileWindow(Path(sys.argv[1]), FixedClock(float(sys.argv[2])), boot=b"boot-1")
for line in sys.stdin:
    print(int(asyncio.run(window.claim([bytes.fromhex(line.strip())]))[0]), flush=True)
"""


def test_killing_the_owner_of_the_file_loses_no_claim(tmp_path: Path) -> None:
    path = tmp_path / "window"
    ids = [_id(str(number)) for number in range(40)]
    answered = 0
    for round_ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(path), str(NOW)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            for id_ in ids[round_ * 20 : round_ * 20 + 20]:
                child.stdin.write(id_.hex() + "\n")
                child.stdin.flush()
                assert child.stdout.readline() == "1\n"
                answered += 1
            child.send_signal(signal.SIGKILL)
            assert child.wait(10) == -signal.SIGKILL
    window = FileWindow(path, FixedClock(), boot=b"boot-1")
    assert asyncio.run(window.claim(ids)) == [False] * answered
    window.close()


async def test_a_write_that_was_cut_short_takes_no_room_and_hides_no_id(tmp_path: Path) -> None:
    path, clock = tmp_path / "window", FixedClock()
    window = FileWindow(path, clock, capacity=128, boot=b"boot-1")
    window.close()
    raw = bytearray(path.read_bytes())
    raw[4096:] = hashlib.sha256(b"noise").digest()[:16].replace(b"\0", b"\1") * 128
    raw[4096::16] = b"\xff" * 128  # times that no id can have
    path.write_bytes(raw)
    window = FileWindow(path, clock, capacity=128, boot=b"boot-1")
    assert await window.claim([_id(str(number)) for number in range(128)]) == [True] * 128
    assert await window.claim([_id(str(number)) for number in range(128)]) == [False] * 128
    window.close()

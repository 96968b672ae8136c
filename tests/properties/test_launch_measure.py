"""Measuring: what changes a digest, what changes only the fingerprint, and what is refused."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aims.clock import SystemClock
from aims.node import measure
from aims.node import moves as moves_module
from aims.node.errors import NodeError
from aims.node.measure import Measured, Measurer, homes_of, refuse_wide
from aims.node.moves import Moves
from aims.node.program import resolve

PYTHON = os.path.realpath(sys.executable)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "package").mkdir(parents=True)
    (root / "agent.py").write_text("print()\n")
    (root / "package/module.py").write_text("VALUE = 1\n")
    (root / "link").symlink_to("agent.py")
    return root


@pytest.fixture
def measurer(clock: SystemClock) -> Iterator[Measurer]:
    with Moves() as moves:
        yield Measurer(clock, moves)


def _measure(measurer: Measurer, tree: Path) -> Measured:
    with resolve([PYTHON, str(tree / "agent.py")], cwd="/") as program:
        return measurer.measure(program, roots=[str(tree)])


def _digest(measured: Measured, tree: Path) -> str:
    return next(root.digest for root in measured.measurement.roots if root.path == str(tree))


def _swap_link(tree: Path) -> None:
    (tree / "link").unlink()
    (tree / "link").symlink_to("package/module.py")


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda tree: (tree / "package/module.py").write_text("VALUE = 2\n"),
    "mode": lambda tree: (tree / "agent.py").chmod(0o755),
    "mode of a folder": lambda tree: (tree / "package").chmod(0o700),
    "file added": lambda tree: (tree / "package/json.py").write_text(""),
    "folder added": lambda tree: (tree / "json").mkdir(),
    "sourceless bytecode added": lambda tree: (tree / "json.pyc").write_bytes(b""),
    "file removed": lambda tree: (tree / "package/module.py").unlink(),
    "file renamed": lambda tree: (tree / "package/module.py").rename(tree / "package/other.py"),
    "link elsewhere": _swap_link,
    "pipe added": lambda tree: os.mkfifo(tree / "pipe"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_of_the_tree_is_another_digest(
    measurer: Measurer, tree: Path, change: Callable[[Path], object]
) -> None:
    before = _measure(measurer, tree)
    assert measurer.again(before) is not None
    change(tree)
    with resolve([PYTHON, "-c", "pass"], cwd=str(tree)) as program:
        after = measurer.measure(program)
    assert _digest(after, tree) != _digest(before, tree)
    assert measurer.again(before) is None


def test_the_same_tree_has_one_digest_whatever_the_order_and_the_cache(
    measurer: Measurer, clock: SystemClock, tree: Path
) -> None:
    first = _digest(_measure(measurer, tree), tree)
    clock.offset = 60.0
    assert _digest(_measure(measurer, tree), tree) == first
    assert _digest(_measure(measurer, tree), tree) == first
    assert _digest(_measure(Measurer(clock), tree), tree) == first


def test_a_digest_is_remembered_only_when_the_file_has_settled(
    measurer: Measurer, clock: SystemClock, tree: Path
) -> None:
    _measure(measurer, tree)
    remembered = set(measurer._cache)
    young = (tree / "agent.py").stat()
    assert (young.st_dev, young.st_ino, young.st_ctime_ns, young.st_size) not in remembered
    clock.offset = 60.0
    _measure(measurer, tree)
    assert (young.st_dev, young.st_ino, young.st_ctime_ns, young.st_size) in measurer._cache


def test_swap_and_swap_back_is_another_fingerprint_and_the_same_digest(measurer: Measurer, tree: Path) -> None:
    before = _measure(measurer, tree)
    module = tree / "package/module.py"
    stamp, text = module.stat(), module.read_bytes()
    module.write_bytes(b"VALUE = 9\n")
    module.write_bytes(text)
    os.utime(module, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert measurer.again(before) is None
    assert _digest(_measure(measurer, tree), tree) == _digest(before, tree)


def test_a_virtual_environment_that_comes_to_be_is_found(measurer: Measurer, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "home/bin").mkdir(parents=True)
    python = tmp_path / "home/bin/python"
    python.symlink_to(PYTHON)
    for place in (python.parent, python.parent.parent):
        with resolve([str(python), str(tree / "agent.py")], cwd="/") as program:
            measured = measurer.measure(program)
        assert measurer.again(measured) is not None
        (place / "pyvenv.cfg").symlink_to("nowhere yet")
        assert measurer.again(measured) is None
        (place / "pyvenv.cfg").unlink()


def test_bytecode_folders_are_code_only_for_other_interpreters(measurer: Measurer, tree: Path) -> None:
    before = _measure(measurer, tree)
    (tree / "__pycache__").mkdir()
    (tree / "__pycache__/agent.pyc").write_bytes(b"x")
    again = measurer.again(before)
    assert again is not None
    with resolve(["sh", str(tree / "agent.py")], cwd="/", path="/usr/bin:/bin") as program:
        shell = measurer.measure(program, roots=[str(tree)])
    assert _digest(shell, tree) != _digest(before, tree)
    # excused once, not twice
    (tree / "json.py").touch()
    (tree / "json.py").unlink()
    assert measurer.again(again) is None


def test_a_link_is_recorded_and_not_followed(measurer: Measurer, tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("1")
    (tree / "out").symlink_to(outside)
    before = _digest(_measure(measurer, tree), tree)
    (outside / "file").write_text("2")
    assert _digest(_measure(measurer, tree), tree) == before


def test_too_many_files_and_octets_are_refused(measurer: Measurer, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MAX_FILES", 4)
    with pytest.raises(NodeError, match="code_too_large"):
        _measure(measurer, tree)
    monkeypatch.undo()
    with (tree / "sparse").open("wb") as file:
        file.truncate(measure.MAX_OCTETS + 1)
    with pytest.raises(NodeError, match="code_too_large"):
        _measure(measurer, tree)


def test_wide_roots_are_refused(measurer: Measurer, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    homes = ["/root", "/srv/people/ann"]
    for root in ("/", "/home", "/home/somebody", "/root", "/srv", "/srv/people", "/srv/people/ann"):
        with pytest.raises(NodeError, match="root_refused"):
            refuse_wide(root, homes)
    for root in ("/home/somebody/project", "/srv/people/annabel", *(f"{home}/project" for home in homes)):
        refuse_wide(root, homes)
    assert "/root" in homes_of(os.getuid())
    assert "/" not in homes_of(65534, "/")
    with resolve([PYTHON, str(tree / "agent.py")], cwd="/") as program, pytest.raises(NodeError, match="root_refused"):
        measurer.measure(program, roots=[str(tree)], homes=homes_of(os.getuid(), str(tree / "package")))


def test_a_missing_or_hidden_root_is_refused(measurer: Measurer, tree: Path) -> None:
    with resolve([PYTHON, str(tree / "agent.py")], cwd="/") as program:
        with pytest.raises(NodeError, match="code_unreadable"):
            measurer.measure(program, roots=[str(tree / "none")])
        (tree / "agent.py").unlink()
        with pytest.raises(NodeError, match="code_unreadable"):
            measurer.measure(program)


@pytest.mark.parametrize("root", ["outer/tree/agent.py", "outer/tree"], ids=["file", "folder"])
def test_a_folder_above_that_was_exchanged_and_put_back_is_found(
    measurer: Measurer, tree: Path, tmp_path: Path, root: str
) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    shutil.copytree(tree, outer / "tree", symlinks=True)
    script = outer / "tree/agent.py"
    with resolve([PYTHON, str(script)], cwd="/") as program:
        measured = measurer.measure(program, roots=[str(tmp_path / root)])
    # what others do beside it is no change of it
    (tmp_path / "beside").mkdir()
    (outer / "beside").write_text("")
    looked = measurer.again(measured)
    assert looked is not None
    outer.rename(tmp_path / "aside")
    outer.mkdir()
    shutil.copytree(tree, outer / "tree", symlinks=True)
    (outer / "tree/agent.py").write_text("evil\n")
    shutil.rmtree(outer)
    (tmp_path / "aside").rename(outer)
    assert measurer.again(looked) is None
    # whoever is measured after it is not concerned
    with resolve([PYTHON, str(script)], cwd="/") as program:
        later = measurer.measure(program, roots=[str(tmp_path / root)])
    assert later.measurement == measured.measurement
    assert measurer.again(later) is not None


def test_what_cannot_be_watched_is_not_vouched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    with Moves() as moves:
        # a folder that is no folder, or leads elsewhere
        (tmp_path / "link").symlink_to(folder)
        for path in ("gone/agent.py", "link/agent.py"):
            with pytest.raises(NodeError) as refused:
                moves.watch([str(tmp_path / path)])
            assert refused.value.reason == "code_changing"
        assert not moves._watches
        # two launches share what the kernel watches; each ends for itself
        first, second = moves.watch([str(folder / "x")]), moves.watch([str(folder / "y")])
        first.release()
        first.release()
        (tmp_path / "a").rename(tmp_path / "c")
        assert (first.moved, second.moved) == (False, True)
        second.release()
        assert not moves._watches
        # a folder that goes away, and a queue that the kernel gave up
        third = moves.watch([str(tmp_path / "c/b/x")])
        shutil.rmtree(tmp_path / "c")
        assert third.moved
        fourth = moves.watch([str(tmp_path / "x")])
        moves._take(-1, 0x4000)
        assert fourth.moved
        fifth = moves.watch([str(tmp_path / "x")])
        assert not fifth.moved
    assert fifth.moved, "nobody watches any more"
    with Moves() as moves:
        for number, root_alone, reason in ((28, True, "code_unwatched"), (13, False, "code_unwatched"), (13, True, "")):
            monkeypatch.setattr(moves_module, "_LIBC", _Refusing(number))
            monkeypatch.setattr(moves_module, "_only_root_moves", lambda _, alone=root_alone: alone)
            if not reason:
                assert not moves.watch([str(tmp_path / "x")]).numbers
                continue
            with pytest.raises(NodeError) as refused:
                moves.watch([str(tmp_path / "x")])
            assert refused.value.reason == reason
    monkeypatch.undo()
    assert [moves_module._only_root_moves(path) for path in ("/usr", "/tmp/x")] == [True, False]


class _Refusing:
    """A kernel that gives no watches."""

    def __init__(self, number: int) -> None:
        self._number = number

    def inotify_init1(self, _: int) -> int:
        return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def inotify_add_watch(self, *_: object) -> int:
        ctypes.set_errno(self._number)
        return -1

    def inotify_rm_watch(self, *_: object) -> int:
        return 0


def test_a_file_that_is_mapped_for_writing_is_not_measured(measurer: Measurer, tree: Path) -> None:
    code = tree / "package/module.py"
    content = code.read_bytes()
    with code.open("r+b") as opened:
        view = mmap.mmap(opened.fileno(), 0)
    with view:
        view[:] = content  # the page is dirty from here on, and writing to it leaves no trace
        with pytest.raises(NodeError) as refused:
            _measure(measurer, tree)
        assert refused.value.code == "node.code_changing"
    _measure(measurer, tree).release()


def test_what_a_later_mapping_writes_is_seen_at_the_next_look(measurer: Measurer, tree: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:  # where change times say nothing
        measurer = Measurer(SystemClock(10), measurer._moves)  # for which everything has settled
        for place in (tree, Path(shutil.copytree(tree, Path(memory) / "tree", symlinks=True))):
            code = place / "package/module.py"
            with resolve([PYTHON, str(tree / "agent.py")], cwd="/") as program:
                measured = measurer.measure(program, roots=[str(place)])
            assert measurer.again(measured) is not None
            with code.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as view:
                assert view[:]
                view[:] = view[:].replace(b"1", b"2")
                with contextlib.suppress(NodeError):  # open for writing: refused as well
                    assert measurer.again(measured) is None, place
            assert measurer.again(measured) is None, place
            measured.release()


def test_the_lease_that_is_asked_for_keeps_nobody_waiting(tree: Path) -> None:
    with (tree / "agent.py").open("rb") as code:
        assert measure._leave_traces(code.fileno(), os.fstat(code.fileno()), "agent.py")
        # beside a lease this open would be refused at once, and without O_NONBLOCK wait for most of a minute
        os.close(os.open(tree / "agent.py", os.O_WRONLY | os.O_NONBLOCK))


@pytest.mark.parametrize(
    ("owner", "mode", "node", "remembered"),
    [
        (0, 0o644, 1000, True),
        (0, 0o664, 1000, False),
        (0, 0o646, 1000, False),
        (0, 0o644, 0, False),
        (7, 0o644, 1000, False),
    ],
)
def test_without_a_lease_only_what_root_alone_writes_is_remembered(
    owner: int, mode: int, node: int, remembered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> int:
        raise OSError(errno.EINVAL, "no leases here")

    monkeypatch.setattr(fcntl, "fcntl", none)
    monkeypatch.setattr(os, "geteuid", lambda: node)
    found = os.stat_result((0o100000 | mode, 1, 1, 1, owner, 0, 0, 0, 0, 0))
    assert measure._leave_traces(0, found, "agent.py") is remembered

"""T2 with real processes: who is recognised, who is not, and what of the caller's environment runs."""

from __future__ import annotations

import compileall
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults.launching import ASK, CLIENT, PYTHON, Node, wait_for

from aims.cli.run_client import measure_for_registration


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    folder = tmp_path / "node"
    folder.mkdir()
    node = Node(folder)
    yield node
    node.close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def _script(project: Path, body: str) -> Path:
    path = project / "agent.py"
    path.write_text(ASK + body)
    return path


def _approve(node: Node, project: Path, *argv: str, more: bool = False, name: str = "alpha") -> None:
    profile = measure_for_registration(argv, project, [project], more_arguments=more)
    node.approve({name: profile.canonical().decode()})


TELL = "print(json.dumps(ask(connect())))"


def test_a_launched_program_is_recognised_with_its_profile(node: Node, project: Path) -> None:
    script = str(_script(project, TELL))
    _approve(node, project, PYTHON, script)
    code, out, err = node.run("alpha", PYTHON, script)
    assert code == 0, err
    answer = json.loads(out)
    profile = measure_for_registration([PYTHON, script], project, [project])
    assert answer["launched"] == "alpha"
    assert str(profile.selector()) in answer["selectors"]
    assert f"unix:uid:{os.getuid()}" in answer["selectors"]
    assert answer["posture"] == "shared-uid"
    node_name, _, characters = answer["instance"].partition(":")
    assert (node_name, len(characters)) == ("laptop", 26)


def test_the_same_script_of_the_same_uid_is_nobody_when_not_launched(node: Node, project: Path) -> None:
    script = str(_script(project, TELL))
    _approve(node, project, PYTHON, script)
    environment = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{node.folder}/workload.sock"}
    done = subprocess.run([PYTHON, script], env=environment, capture_output=True, check=True, timeout=20)
    assert json.loads(done.stdout)["launched"] is None
    assert node.ask()["launched"] is None


def test_other_arguments_than_approved_are_refused(node: Node, project: Path) -> None:
    script = str(_script(project, TELL))
    _approve(node, project, PYTHON, script, "--safe")
    for argv in ([script], [script, "--other"], [script, "--safe", "x"], ["-B", script, "--safe"], ["-Ic", TELL]):
        code, out, err = node.run("alpha", PYTHON, *argv)
        assert (code, out) == (125, b""), argv
        assert b"node.launch_mismatch" in err
        assert b"arguments" in err
        assert err.count(b"\n") == 1
    assert node.run("alpha", PYTHON, script, "--safe")[0] == 0
    _approve(node, project, PYTHON, script, more=True)
    assert node.run("alpha", PYTHON, script, "--more")[0] == 0
    assert node.run("alpha", PYTHON, "-B", script)[0] == 125


def test_a_name_that_nobody_approved_is_refused(node: Node, project: Path) -> None:
    code, out, err = node.run("beta", "/bin/true")
    assert (code, out) == (125, b"")
    assert b"node.not_registered" in err


def _canaries(place: Path, marker: Path) -> dict[str, str]:
    """Put code wherever an environment can point to; each would touch a file named after the process."""
    evil, home = place / "evil", place / "home"
    site = home / ".local/lib" / "python{}.{}".format(*sys.version_info[:2]) / "site-packages"
    for folder in (evil, site):
        folder.mkdir(parents=True)
    sing = f"import os\nopen({str(marker)!r} + f'.python.{{os.getpid()}}', 'a').close()\n"
    for path in (evil / "sitecustomize.py", site / "usercustomize.py", evil / "startup.py"):
        path.write_text(sing)
    library, compiler = evil / "evil.so", shutil.which("cc")
    assert compiler is not None, "the canary for LD_PRELOAD needs a C compiler"
    source = (
        "#include <fcntl.h>\n#include <stdio.h>\n#include <unistd.h>\n"
        "__attribute__((constructor)) static void sing(void) { char name[4096];"
        f'snprintf(name, sizeof name, "{marker}.library.%d", getpid()); creat(name, 0600); }}\n'
    )
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=source.encode(), check=True, timeout=60)
    return {
        **os.environ,
        "BASH_ENV": str(evil / "startup.py"),
        "HOME": str(home),
        "LD_PRELOAD": str(library),
        "PYTHONPATH": str(evil),
        "PYTHONSTARTUP": str(evil / "startup.py"),
    }


@pytest.mark.parametrize("options", [(), ("-E",), ("-I",)], ids=["plain", "-E", "-I"])
def test_nothing_that_the_environment_names_is_loaded(
    node: Node, project: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    environment = _canaries(tmp_path, tmp_path / "sung")
    script = str(_script(project, "print(os.getpid(), *sorted(os.environ))"))

    def songs(pid: bytes) -> list[str]:
        return sorted(path.name.split(".")[1] for path in tmp_path.glob(f"sung.*.{pid.decode()}"))

    # where nobody cleans, the canaries sing
    loud = subprocess.run([PYTHON, script], env=environment, check=True, capture_output=True, timeout=20)
    assert songs(loud.stdout.split()[0]) == ["library", "python"]
    _approve(node, project, PYTHON, *options, script)
    code, out, err = node.run("alpha", PYTHON, *options, script, env=environment)
    assert code == 0, err
    pid, *names = out.split()
    assert songs(pid) == []
    assert not {b"BASH_ENV", b"LD_PRELOAD", b"PYTHONPATH", b"PYTHONSTARTUP"} & set(names)
    assert b"BASH_ENV" in err
    # a long list is cut
    assert re.search(rb"PYTHONSTARTUP|and \d+ more", err) is not None


@pytest.mark.parametrize("options", [(), ("-E",), ("-I",)], ids=["plain", "-E", "-I"])
def test_bytecode_of_the_tree_is_not_loaded(node: Node, project: Path, options: tuple[str, ...]) -> None:
    helper = project / "helper.py"
    helper.write_text("VALUE = 'evil'\n")
    stamp = helper.stat()
    compileall.compile_dir(project, quiet=1)
    # same size, same time: Python believes the bytecode
    helper.write_text("VALUE = 'good'\n")
    os.utime(helper, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    script = str(
        _script(project, f"import sys\nsys.path.insert(0, {str(project)!r})\nimport helper\nprint(helper.VALUE)")
    )
    loud = subprocess.run([PYTHON, *options, script], capture_output=True, check=True, timeout=20)
    assert loud.stdout == b"evil\n"
    _approve(node, project, PYTHON, *options, script)
    code, out, err = node.run("alpha", PYTHON, *options, script)
    assert (code, out) == (0, b"good\n"), err
    wait_for(lambda: not any((node.folder / "bytecode").glob("*")))


def test_a_swapped_executable_does_not_run(node: Node, project: Path, tmp_path: Path) -> None:
    tool = project / "tool"
    shutil.copy("/bin/echo", tool)
    _approve(node, project, str(tool), "hello")
    assert node.run("alpha", str(tool), "hello")[1] == b"hello\n"
    shutil.copy("/bin/true", tmp_path / "other")
    (tmp_path / "other").replace(tool)
    code, out, err = node.run("alpha", str(tool), "hello")
    assert (code, out) == (125, b"")
    assert b"executable" in err


CHANGING = """
import sys
first = connect()
print("up", flush=True)
for line in sys.stdin:
    print(json.dumps(ask(first)), flush=True)
"""


def _answer(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"now\n")
    process.stdin.flush()
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


@pytest.mark.parametrize("back", [False, True], ids=["swapped", "swapped-back"])
@pytest.mark.parametrize("first", [False, True], ids=["before-the-first", "at-renewal"])
def test_changed_code_is_found_before_the_first_credential_and_at_renewal(
    node: Node, project: Path, back: bool, first: bool
) -> None:
    script = str(_script(project, CHANGING))
    helper = project / "helper.py"
    helper.write_text("good\n")
    _approve(node, project, PYTHON, script)
    with node.client("alpha", PYTHON, script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        if first:
            assert _answer(process)["launched"] == "alpha"
        stamp = helper.stat()
        helper.write_text("evil\n")
        if back:
            helper.write_text("good\n")
            os.utime(helper, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        answer = _answer(process)
        assert (answer["launched"], answer["error"]) == (None, "node.launch_mismatch")
        process.communicate(timeout=20)


def test_a_folder_that_was_added_and_removed_again_is_found(node: Node, project: Path) -> None:
    script = str(_script(project, CHANGING))
    _approve(node, project, PYTHON, script)
    with node.client("alpha", PYTHON, script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert _answer(process)["launched"] == "alpha"
        # bytecode of somebody else's import is no change
        (project / "__pycache__").mkdir()
        assert _answer(process)["launched"] == "alpha"
        (project / "json.py").write_text("evil")
        (project / "json.py").unlink()
        assert _answer(process)["error"] == "node.launch_mismatch"
        process.communicate(timeout=20)


def test_a_folder_above_the_script_that_was_exchanged_is_found(node: Node, tmp_path: Path) -> None:
    project = tmp_path / "above/project"
    project.mkdir(parents=True)
    script = str(_script(project, CHANGING))
    node.approve({"alpha": measure_for_registration([PYTHON, script], project).canonical().decode()})
    with node.client("alpha", PYTHON, script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        # what goes on beside it is nobody's business
        (tmp_path / "above/log").write_text("")
        assert _answer(process)["launched"] == "alpha"
        (tmp_path / "above").rename(tmp_path / "aside")
        (tmp_path / "aside").rename(tmp_path / "above")
        assert _answer(process)["error"] == "node.launch_mismatch"
        process.communicate(timeout=20)
    # the next launch is measured anew
    with node.client("alpha", PYTHON, script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert _answer(process)["launched"] == "alpha"
        process.communicate(timeout=20)


CHILD = """
import subprocess, sys
print(json.dumps(ask(connect())), flush=True)
own = "import sys; exec(sys.argv[1]); print(json.dumps(ask(connect())))"
print(subprocess.run([sys.executable, "-c", own, SOURCE], capture_output=True, text=True).stdout, end="", flush=True)
"""


def test_a_descendant_with_its_own_connection_is_not_the_agent(node: Node, project: Path) -> None:
    script = str(_script(project, f"SOURCE = {ASK!r}\n" + CHILD))
    _approve(node, project, PYTHON, script)
    code, out, err = node.run("alpha", PYTHON, script)
    assert code == 0, err
    itself, child = (json.loads(line) for line in out.splitlines())
    assert itself["launched"] == "alpha"
    assert (child["launched"], child["nested"]) == (None, True)


MASQUERADE = """
peer = connect()
if os.fork() == 0:
    print(json.dumps(ask(peer)))
    os._exit(0)
os.execv(TRUSTED, [TRUSTED, SLOW])
"""


def test_fork_and_exec_masquerade_of_a_process_that_was_not_launched_gains_nothing(node: Node, project: Path) -> None:
    slow = project / "slow.py"
    slow.write_text("import select; select.select([], [], [], 1)")
    _approve(node, project, PYTHON, str(slow))
    environment = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{node.folder}/workload.sock"}
    program = (
        f"TRUSTED, SLOW = {PYTHON!r}, {str(slow)!r}\n"
        + ASK
        + MASQUERADE.replace("_exit(0)", "_exit(print(end='', flush=True) or 0)")
    )
    done = subprocess.run([PYTHON, "-c", program], env=environment, capture_output=True, check=True, timeout=20)
    assert json.loads(done.stdout)["launched"] is None


LEND = """
peer = connect()
if os.fork() == 0:
    print(json.dumps(ask(peer)), flush=True)
    os._exit(0)
os.wait()
"""


def test_a_launched_process_can_lend_its_connection_as_it_can_lend_its_key(node: Node, project: Path) -> None:
    script = str(_script(project, LEND))
    _approve(node, project, PYTHON, script)
    code, out, err = node.run("alpha", PYTHON, script)
    assert code == 0, err
    assert json.loads(out)["launched"] == "alpha"


EXEC = """
import sys
peer = connect()
os.set_inheritable(peer.fileno(), True)
rest = "\\npeer = socket.socket(fileno=%d); peer.settimeout(20); print(json.dumps(ask(peer)))" % peer.fileno()
os.execve(COPY, [COPY, "-c", SOURCE + rest], {**os.environ, "PYTHONHOME": sys.base_prefix})
"""


def test_a_launched_process_that_executes_something_else_is_refused(node: Node, project: Path) -> None:
    copy = shutil.copy(PYTHON, project / "python")
    script = str(_script(project, f"COPY, SOURCE = {str(copy)!r}, {ASK!r}\n" + EXEC))
    _approve(node, project, PYTHON, script)
    code, out, err = node.run("alpha", PYTHON, script)
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["launched"], answer["error"]) == (None, "node.exe_changed")


def test_a_launched_process_cannot_launch(node: Node, project: Path) -> None:
    profile = measure_for_registration(["/bin/true"], project)
    node.approve({"alpha": "unmeasured", "beta": profile.canonical().decode()})
    assert node.run("beta", "/bin/true")[0] == 0
    direct = f"import sys\nsys.argv[1:] = [{str(node.launch_socket)!r}, 'beta', '/bin/true']\n" + CLIENT
    child = (
        "import subprocess, sys\n"
        f"argv = [sys.executable, '-c', {CLIENT!r}, {str(node.launch_socket)!r}, 'beta', '/bin/true']\n"
        "sys.exit(subprocess.run(argv).returncode)"
    )
    for program in (direct, child):
        code, _, err = node.run("alpha", sys.executable, "-c", program)
        assert code == 125
        assert b"node.launch_nested" in err


def test_an_unmeasured_launch_says_so(node: Node, project: Path) -> None:
    node.approve({"alpha": "unmeasured"})
    script = str(_script(project, TELL))
    answer = json.loads(node.run("alpha", PYTHON, script)[1])
    assert answer["launched"] == "alpha"
    assert "launch:unmeasured" in answer["selectors"]
    assert not [text for text in answer["selectors"] if text.startswith("launch:profile")]


def test_a_module_beside_a_script_is_loaded_only_if_it_was_approved(node: Node, project: Path) -> None:
    script = str(_script(project, "import marker\n" + TELL))
    alone = measure_for_registration([PYTHON, script], project)
    (project / "marker.py").write_text("print('foreign')\n")
    node.approve({"alpha": alone.canonical().decode()})
    code, out, err = node.run("alpha", PYTHON, script)
    assert (code, out) == (1, b"")
    assert b"ModuleNotFoundError" in err
    _approve(node, project, PYTHON, script)
    code, out, err = node.run("alpha", PYTHON, script)
    assert (code, out.splitlines()[0]) == (0, b"foreign"), err


def test_a_link_to_the_script_names_nothing_after_it_was_measured(node: Node, project: Path) -> None:
    script = _script(project, "import sys\nprint(sys.argv[0])\n" + TELL)
    link = project / "link"
    link.symlink_to(script)
    profile = measure_for_registration([PYTHON, str(link)], project)
    assert profile.head == (PYTHON, str(script))
    node.approve({"alpha": profile.canonical().decode()})
    code, out, err = node.run("alpha", PYTHON, str(link))
    assert (code, out.splitlines()[0]) == (0, os.fsencode(script)), err
    link.unlink()
    other = project / "other.py"
    other.write_text("print('other')\n")
    link.symlink_to(other)
    code, out, err = node.run("alpha", PYTHON, str(link))
    assert (code, out) == (125, b"")
    assert b"node.launch_mismatch" in err


def test_a_virtual_environment_is_measured_and_found(node: Node, project: Path) -> None:
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", project / "venv"], check=True, timeout=60)
    tool = project / "venv/bin/tool"
    tool.write_text(f"#!{project}/venv/bin/python\nimport os, sys\n" + ASK + "print(sys.prefix, sys.argv[0])\n" + TELL)
    tool.chmod(0o755)
    profile = measure_for_registration([str(tool)], project)
    assert str(project / "venv") in [root.path for root in profile.roots]
    node.approve({"alpha": profile.canonical().decode()})
    code, out, err = node.run("alpha", "venv/bin/tool", cwd=project)
    assert code == 0, err
    where, answer = out.splitlines()
    assert where.decode() == f"{project}/venv {tool}"
    assert json.loads(answer)["launched"] == "alpha"
    (project / "venv/pyvenv.cfg").write_text("home = /tmp\n")
    code, _, err = node.run("alpha", str(tool))
    assert code == 125
    assert b"root:" in err


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start programs of another user")
def test_a_program_of_another_user_is_kept_apart_from_the_node() -> None:
    nobody = 65534
    with tempfile.TemporaryDirectory() as place:
        node = Node(Path(place))
        try:
            tool = shutil.copy("/usr/bin/id", place)
            profile = measure_for_registration([tool], Path(place)).canonical().decode()
            environment = {**os.environ, "HOME": "/nonexistent", "AS_UID": str(nobody)}
            node.approve({"alpha": profile})
            code, _, err = node.run("alpha", tool, env=environment, cwd=place)
            assert code == 125
            assert b"node.uid_forbidden" in err
            node.approve({"alpha": profile}, uids=[nobody])
            code, out, err = node.run("alpha", tool, env=environment, cwd=place)
            assert code == 0, err
            assert out.startswith(b"uid=65534(nobody) gid=65534(nogroup) groups=65534(nogroup)")
        finally:
            node.close()


def test_a_hardened_node_dumps_no_core(node: Node) -> None:
    limits = Path(f"/proc/{node.process.pid}/limits").read_text("utf-8")
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size")).split()
    assert core[-3:-1] == ["0", "0"]


@pytest.mark.skipif(os.getuid() != 0, reason="root looks through the eyes of another uid")
def test_a_hardened_process_cannot_be_read_by_its_own_uid() -> None:
    program = (
        "import ctypes, os, subprocess\n"
        "from aims.node.hardening import harden\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"  # the change of uid has hidden it already
        "look = ['/usr/bin/head', '-c1', f'/proc/{os.getpid()}/environ']\n"
        "print(subprocess.run(look, capture_output=True).returncode, end=' ')\n"
        "harden()\n"
        "print(subprocess.run(look, capture_output=True).returncode, end='')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=20)
    assert done.stdout == b"0 1"

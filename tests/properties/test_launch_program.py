"""From a command to an ELF, its arguments and its code; and what of the environment is kept."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aims.clock import SystemClock
from aims.node import environment
from aims.node.errors import NodeError
from aims.node.measure import Measurer
from aims.node.program import Program, resolve

PYTHON = os.path.realpath(sys.executable)


def _resolve(cwd: Path, *argv: str, path: str = "/usr/bin:/bin") -> Program:
    with resolve(argv, cwd=str(cwd), path=path) as program:
        return program


def _file(path: Path, text: str, mode: int = 0o755) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_an_elf_is_itself(tmp_path: Path) -> None:
    program = _resolve(tmp_path, "true", "x")
    assert (program.argv[1:], program.roots, program.python) == (("x",), (), False)
    assert program.argv[0].endswith("/bin/true")


def test_a_relative_name_is_taken_from_the_folder_of_the_request(tmp_path: Path) -> None:
    shutil.copy("/bin/true", tmp_path / "tool")
    (tmp_path / "link").symlink_to("tool")
    (tmp_path / "sub").mkdir()
    assert _resolve(tmp_path / "sub", "../tool").argv == (str(tmp_path / "tool"),)
    # the name is kept: Python finds its virtual environment by it
    assert _resolve(tmp_path, "./link").argv == (str(tmp_path / "link"),)


def test_an_empty_or_relative_search_folder_is_not_searched(tmp_path: Path) -> None:
    shutil.copy("/bin/true", tmp_path / "tool-of-the-folder")
    for path in ("", ":", ".", "sub:", "::"):
        with pytest.raises(NodeError, match="program_not_found"):
            _resolve(tmp_path, "tool-of-the-folder", path=path)


@pytest.mark.parametrize("line", [f"#!{PYTHON}", f"#! {PYTHON} ", "#!/usr/bin/env python3"])
def test_a_script_runs_by_its_interpreter(tmp_path: Path, line: str) -> None:
    script = _file(tmp_path / "agent", f"{line}\nprint()\n")
    program = _resolve(tmp_path, "./agent", "x", path=str(Path(PYTHON).parent))
    assert program.argv[1:] == (str(script), "x")
    assert os.path.realpath(program.argv[0]) == PYTHON
    assert program.roots == (str(script),)
    assert program.python


def test_one_argument_of_the_first_line_is_kept_whole(tmp_path: Path) -> None:
    script = _file(tmp_path / "agent", f"#!{PYTHON} -I\n")
    program = _resolve(tmp_path, "./agent")
    assert program.argv == (PYTHON, "-I", str(script))
    assert program.isolated
    assert program.arguments("/b") == (PYTHON, "-s", "-X", "pycache_prefix=/b", "-I", str(script))


@pytest.mark.parametrize(
    "line",
    [
        "#!",
        "#!python3",
        "#!/usr/bin/env",
        "#!/usr/bin/env -S python3 -x",
        "#!/usr/bin/env -i",
        "#!/usr/bin/env A=1",
        "#!/usr/bin/env python3 -I",
        "#!/usr/bin/env ./python3",
        "#!" + "/x" * 200,
        "#!/bin/sh",  # without a newline: the line does not end
        "just text\n",
    ],
)
def test_other_first_lines_are_refused(tmp_path: Path, line: str) -> None:
    _file(tmp_path / "agent", line if line.endswith("sh") else line + "\n")
    with pytest.raises(NodeError) as caught:
        _resolve(tmp_path, "./agent")
    assert caught.value.reason == "program_unsupported"


def test_a_script_of_a_script_is_refused(tmp_path: Path) -> None:
    inner = _file(tmp_path / "inner", "#!/bin/sh\n")
    _file(tmp_path / "outer", f"#!{inner}\n")
    with pytest.raises(NodeError, match="program_unsupported"):
        _resolve(tmp_path, "./outer")


def test_what_is_no_executable_file_is_refused_without_waiting(tmp_path: Path) -> None:
    _file(tmp_path / "text", "#!/bin/sh\n", 0o644)
    os.mkfifo(tmp_path / "pipe", 0o755)
    for name in ("./text", "./pipe", "./", "/dev/null"):
        with pytest.raises(NodeError, match="program_not_executable"):
            _resolve(tmp_path, name)
    for name in ("./none", "./text/none", "none", ".", "a\0b", ""):
        with pytest.raises(NodeError, match="program_not_found"):
            _resolve(tmp_path, name)


@pytest.mark.parametrize(
    ("options", "roots"),
    [
        (["agent.py"], ["agent.py"]),
        (["-B", "-u", "agent.py"], ["agent.py"]),
        (["-X", "dev", "-W", "error", "agent.py"], ["agent.py"]),
        (["-Xdev", "-Werror", "agent.py"], ["agent.py"]),
        (["--check-hash-based-pycs", "always", "agent.py"], ["agent.py"]),
        # the current folder comes first on the import path
        (["-m", "agent"], ["."]),
        (["-Em", "agent"], ["."]),
        (["-magent"], ["."]),
        (["-c", "import agent"], ["."]),
        # and here it does not
        (["-P", "-m", "agent"], []),
        (["-Ic", "pass"], []),
    ],
)
def test_the_code_of_a_python_program_is_found(tmp_path: Path, options: list[str], roots: list[str]) -> None:
    _file(tmp_path / "agent.py", "")
    program = _resolve(tmp_path, PYTHON, *options)
    assert program.roots == tuple(os.path.realpath(tmp_path / root) for root in roots)
    assert program.open_ended
    expected = [str(tmp_path / "agent.py") if option == "agent.py" else option for option in options]
    assert program.argv == (PYTHON, *expected)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-"],
        ["-u"],
        ["-c"],
        ["-m"],
        ["-X"],
        ["-i", "agent.py"],
        ["-Bi", "agent.py"],
        ["--", "agent.py"],
        ["--help"],
        ["-X", "pycache_prefix=/tmp", "agent.py"],
        ["-Xpycache_prefix=/tmp", "agent.py"],
        ["-X", "presite=evil", "agent.py"],
        ["/dev/stdin"],
        ["/proc/self/fd/0"],
        ["/dev/fd/0"],
    ],
)
def test_a_python_without_a_measurable_program_is_refused(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(NodeError) as caught:
        _resolve(tmp_path, PYTHON, *options)
    assert caught.value.reason == "program_missing"


def test_other_interpreters_are_open_ended_only_behind_a_file(tmp_path: Path) -> None:
    script = _file(tmp_path / "run.sh", "")
    known = _resolve(tmp_path, "sh", "run.sh", "x")
    assert (known.argv[1:], known.roots, known.open_ended) == ((str(script), "x"), (str(script),), True)
    for argv, read, roots in (
        (["sh", "-c", "true"], ("-c", "true"), (str(tmp_path),)),
        (["sh", "-x", "run.sh"], ("-x", str(script)), (str(script),)),
        (["sh", "none.sh"], ("none.sh",), (str(tmp_path),)),
    ):
        hidden = _resolve(tmp_path, *argv)
        assert (hidden.argv[1:], hidden.roots, hidden.open_ended) == (read, roots, False)
    with pytest.raises(NodeError, match="program_missing"):
        _resolve(tmp_path, "sh")


def test_a_linked_script_is_executed_by_its_real_path(tmp_path: Path) -> None:
    script = _file(tmp_path / "agent.py", f"#!{PYTHON}\n")
    (tmp_path / "link").symlink_to("agent.py")
    for argv in ([PYTHON, "link"], ["./link"], ["sh", "link"]):
        program = _resolve(tmp_path, *argv)
        assert (program.argv[1:], program.roots) == ((str(script),), (str(script),))


def test_modules_beside_a_script_are_read_only_where_they_are_measured(tmp_path: Path) -> None:
    script = _file(tmp_path / "agent.py", "")
    (tmp_path / "link").symlink_to("agent.py")
    alone = [str(script)]
    for name in ("agent.py", "link"):
        program = _resolve(tmp_path, PYTHON, name)
        assert program.beside == str(tmp_path)
        assert program.arguments("/b", alone) == (PYTHON, "-P", str(script))
        assert program.arguments("/b", [str(tmp_path)[:-1]]) == (PYTHON, "-P", str(script)), "a prefix is no folder"
        for covered in ([str(tmp_path)], [str(tmp_path.parent), *alone], None):
            assert program.arguments("/b", covered) == (PYTHON, str(script))
    without_environment = _resolve(tmp_path, PYTHON, "-E", "agent.py").arguments("/b", alone)
    assert without_environment == (PYTHON, "-P", "-s", "-X", "pycache_prefix=/b", "-E", str(script))
    # these never read what stands beside the program, or their folder is a root
    for options in (["-P", "agent.py"], ["-I", "agent.py"], ["-m", "agent"], ["-c", "pass"], ["."]):
        assert _resolve(tmp_path, PYTHON, *options).beside == ""


TABLE = [
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "LD_AUDIT",
    "PYTHONPATH",
    "PYTHONHOME",
    "PYTHONSTARTUP",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
    "OPENSSL_CONF",
    "OPENSSL_MODULES",
    "OPENSSL_ENGINES",
    "SSL_CERT_FILE",
    "DOTNET_STARTUP_HOOKS",
    "CORECLR_PROFILER_PATH",
    "GUILE_LOAD_PATH",
    "TCLLIBPATH",
    "ERL_FLAGS",
    "KRB5_CONFIG",
    "QT_PLUGIN_PATH",
    "COVERAGE_PROCESS_START",
    "SSL_CERT_DIR",
    "BASH_ENV",
    "ENV",
    "NODE_OPTIONS",
    "NODE_PATH",
    "PERL5LIB",
    "PERL5OPT",
    "RUBYOPT",
    "RUBYLIB",
    "JAVA_TOOL_OPTIONS",
    "_JAVA_OPTIONS",
    "AIMS_X",
    "BASH_FUNC_ls%%",
    "SPIFFE_ENDPOINT_SOCKET",
    "SSLKEYLOGFILE",
    "__PYVENV_LAUNCHER__",
]


@given(st.dictionaries(st.sampled_from(["HOME", "PATH", "LANG", "ld_preload", "MY_PYTHONPATH", *TABLE]), st.text()))
def test_what_the_table_names_is_dropped_and_said(given: dict[str, str]) -> None:
    kept, dropped = environment.clean(given)
    assert {**kept} == {name: value for name, value in given.items() if name not in TABLE}
    assert dropped == tuple(sorted(set(given) & set(TABLE)))
    found = environment.launched(given, workload_socket="/s", bytecode="/b")
    assert found["SPIFFE_ENDPOINT_SOCKET"] == "unix:///s"
    assert found["PYTHONPYCACHEPREFIX"] == "/b"
    assert found["PYTHONNOUSERSITE"] == found["PYTHONDONTWRITEBYTECODE"] == "1"
    assert set(found) - set(kept) == {
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONNOUSERSITE",
        "PYTHONPYCACHEPREFIX",
        "SPIFFE_ENDPOINT_SOCKET",
    }


@pytest.mark.parametrize(
    "command",
    [["deno", "run", "agent"], ["bun", "run", "agent"], ["java", "-jar", "agent"], ["Rscript", "--vanilla", "agent"]],
    ids=lambda command: command[0],
)
def test_code_behind_options_is_the_file_that_they_name_and_no_other_of_that_name(
    command: list[str], tmp_path: Path
) -> None:
    shutil.copy("/bin/true", tmp_path / command[0])
    for folder in ("owner", "thief"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "agent").write_text(folder)
    argv = [str(tmp_path / command[0]), *command[1:]]
    owner, thief = (_resolve(tmp_path / folder, *argv) for folder in ("owner", "thief"))
    assert owner.roots == (str(tmp_path / "owner/agent"),)
    assert owner.argv[-1] == owner.roots[0] != thief.argv[-1]
    assert not owner.open_ended


@pytest.mark.parametrize("name", ["timeout", "nice", "env", "uv", "npx", "busybox", "ld-linux-x86-64.so.2"])
def test_what_starts_another_program_is_measured_only_with_a_root_of_its_own(name: str, tmp_path: Path) -> None:
    shutil.copy("/bin/true", tmp_path / name)
    (tmp_path / "code").mkdir()
    agent = _file(tmp_path / "code/agent.py", "")
    with resolve([str(tmp_path / name), "60", "python3", "code/agent.py"], cwd=str(tmp_path)) as program:
        assert program.starter
        assert not program.open_ended
        with pytest.raises(NodeError) as refused:
            Measurer(SystemClock()).measure(program)
        assert refused.value.code == "node.program_starter"
        measured = Measurer(SystemClock()).measure(program, roots=[str(tmp_path / "code")])
    assert {root.path for root in measured.measurement.roots} == {str(tmp_path / "code"), str(agent)}


def test_a_shell_that_is_a_link_to_busybox_is_a_shell(tmp_path: Path) -> None:
    shutil.copy("/bin/true", tmp_path / "busybox")
    (tmp_path / "sh").symlink_to("busybox")
    script = _file(tmp_path / "run.sh", "")
    program = _resolve(tmp_path, str(tmp_path / "sh"), "run.sh")
    assert (program.starter, program.roots) == (False, (str(script),))

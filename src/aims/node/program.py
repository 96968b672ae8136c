"""From a command to the one file that the kernel will execute.

The node reads the first line of a script itself. Executing a script by descriptor would give its interpreter a path
below ``/proc`` in place of the script's own, and ``/usr/bin/env`` would put another executable into the process than
the one that was measured. One level is read, as the kernel does it; what is found must be an ELF.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aims.node.errors import NodeError

MAX_FIRST_LINE = 256
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"

_ENV = frozenset({"/usr/bin/env", "/bin/env"})
_PYTHON = re.compile(r"(?:python|pypy)[0-9.]*[a-z]*")
_INTERPRETER = re.compile(
    r"(?:ba|da|z|k|a|c|tc|fi)?sh|(?:node|nodejs|bun|deno|perl|ruby|php|lua|java|guile|tclsh)[0-9.]*"
    r"|(?:R|Rscript|julia|dotnet|mono|erl|escript|elixir|ghc|runghc|ocaml|sbcl|racket|wasmtime|wasmer|awk|gawk|mawk)"
)
# These start another program, found by ways of their own, with code of its own.
_STARTER = re.compile(
    r"env|timeout|nice|ionice|nohup|setsid|stdbuf|chrt|taskset|time|xargs|sudo|doas|su|runuser|setpriv|unshare|nsenter"
    r"|chroot|busybox|toybox|strace|ltrace|gdb|lldb|ld(?:-linux[-_a-z0-9]*|-musl[-_a-z0-9]*)?\.so(?:\.[0-9]+)?"
    r"|uv|uvx|npx|npm|pnpm|yarn|poetry|pipenv|pipx|pdm|hatch|rye|conda|mamba|micromamba|go|cargo|make|just|qemu-.*"
)
_PYTHON_FLAGS = frozenset("bBdEIOPqRsSuvx")
# what these name is read as code, or decides where code is read, without being measured
_PYTHON_X_REFUSED = ("pycache_prefix", "presite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A resolved command; owns ``descriptor``, the opened ELF.

    ``argv``: absolute program first, a script's real path behind its interpreter: a symbolic link would be followed
    once by who measures and once by who runs. ``argv[0]`` alone is not followed, because Python finds its virtual
    environment by that path. ``roots``: real paths of the files and folders that are code by default. ``python``:
    Python runs it; ``isolated``: with ``-I`` or ``-E``, so that it does not read ``PYTHON*``. ``beside``: the folder
    that Python would put first on its import path, "" where there is none or it is a root already. ``absent``: files
    that were not there and would give it a virtual environment. ``open_ended``: further arguments are the program's
    own, never code. ``starter``: it starts another program, whose code is not found by reading the arguments.
    """

    descriptor: int
    argv: tuple[str, ...]
    roots: tuple[str, ...]
    python: bool
    isolated: bool
    open_ended: bool
    beside: str = ""
    absent: tuple[str, ...] = ()
    starter: bool = False

    def arguments(self, bytecode: str, measured: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return the arguments to execute; ``measured`` are the code roots, None where nothing is measured.

        An isolated Python is told by option what others learn by environment. Where the folder beside the script is
        in no root, ``-P`` (Python 3.11; older ones refuse to start) keeps its modules from being loaded unmeasured.
        """
        told = ("-s", "-X", f"pycache_prefix={bytecode}") if self.isolated else ()
        if self.beside and measured is not None and not any(_holds(root, self.beside) for root in measured):
            told = ("-P", *told)
        return (self.argv[0], *told, *self.argv[1:])

    def close(self) -> None:
        """Close the ELF."""
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def resolve(argv: Sequence[str], *, cwd: str, path: str = DEFAULT_PATH) -> Program:
    """Find and open what ``argv`` runs in the folder ``cwd`` (absolute) with the search path ``path``.

    Raises: NodeError ``program_not_found``, ``program_not_executable``, ``program_unsupported``, ``program_missing``.
    """
    if not argv or not argv[0]:
        raise NodeError("program_not_found", "no command")
    # 1. the file that is named
    named = _find(argv[0], cwd, path)
    descriptor, start = _open(named)
    arguments = [named, *argv[1:]]
    try:
        # 2. a script: its interpreter, one level
        if start.startswith(b"#!"):
            interpreter = _interpreter(start, path)
            os.close(descriptor)
            descriptor = -1
            arguments = [*interpreter, named, *argv[1:]]
            descriptor, start = _open(interpreter[0])
        # 3. an ELF, or nothing
        _must_be_elf(start, arguments[0])
        # 4. the code behind the interpreter
        if _is(_PYTHON, arguments[0]):
            return _python(descriptor, arguments, cwd)
        # where sh is a link to busybox it is the shell all the same
        shell = _INTERPRETER.fullmatch(os.path.basename(arguments[0])) is not None  # noqa: PTH119 - text in, text out
        starter = not shell and _is(_STARTER, arguments[0])
        if starter or shell or _is(_INTERPRETER, arguments[0]):
            return _other(descriptor, arguments, cwd, starter=starter)
        return Program(
            descriptor=descriptor, argv=tuple(arguments), roots=(), python=False, isolated=False, open_ended=True
        )
    except BaseException:
        if descriptor >= 0:
            os.close(descriptor)
        raise


def absolute(name: str, cwd: str) -> str:
    """Return ``name`` absolute; its folder is a real path, its last part is kept as it was written."""
    folder, last = os.path.split(os.path.join(cwd, name))  # noqa: PTH118 - text in, text out: pathlib drops parts
    if last in {"", ".", ".."}:
        return os.path.realpath(os.path.join(folder, last))  # noqa: PTH118 - as above
    return os.path.join(os.path.realpath(folder), last)  # noqa: PTH118 - as above


def _find(name: str, cwd: str, path: str) -> str:
    if "\0" in name:
        raise NodeError("program_not_found", "a zero octet in the name")
    if "/" in name:
        return absolute(name, cwd)
    for folder in path.split(":"):
        # an empty or relative folder would be the caller's current one
        if folder.startswith("/"):
            candidate = f"{folder.rstrip('/')}/{name}"
            if os.path.isfile(candidate) and os.access(candidate, os.X_OK):  # noqa: PTH113 - text in, text out
                return absolute(candidate, "/")
    raise NodeError("program_not_found", name)


def _open(path: str) -> tuple[int, bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NodeError("program_not_found", path) from error
    except OSError as error:
        raise NodeError("program_not_executable", f"{path}: {error.strerror}") from error
    try:
        _must_be_executable(os.fstat(descriptor).st_mode, path)
        return descriptor, os.pread(descriptor, MAX_FIRST_LINE, 0)
    except BaseException:
        os.close(descriptor)
        raise


def _must_be_executable(mode: int, path: str) -> None:
    if not stat.S_ISREG(mode) or not mode & 0o111:
        raise NodeError("program_not_executable", path)


def _must_be_elf(start: bytes, path: str) -> None:
    if not start.startswith(b"\x7fELF"):
        raise NodeError("program_unsupported", path)


def _interpreter(start: bytes, path: str) -> list[str]:
    line, newline, _ = start[2:].partition(b"\n")
    if not newline:
        raise NodeError("program_unsupported", "the first line is longer than 256 octets")
    words = os.fsdecode(line).strip(" \t").split(maxsplit=1)
    if not words or not words[0].startswith("/"):
        raise NodeError("program_unsupported", "the first line names no absolute interpreter")
    if words[0] not in _ENV:
        return [absolute(words[0], "/"), *words[1:]]
    # env with options or assignments changes the environment after it was cleaned
    if len(words) != 2 or words[1].startswith("-") or re.search(r"[\s=/]", words[1]):
        raise NodeError("program_unsupported", "env with more than a name")
    return [_find(words[1], "/", path)]


def _is(pattern: re.Pattern[str], path: str) -> bool:
    names = (os.path.basename(path), os.path.basename(os.path.realpath(path)))  # noqa: PTH119 - text in, text out
    return any(pattern.fullmatch(name) for name in names)


def _python(descriptor: int, arguments: list[str], cwd: str) -> Program:
    kind, position, flags = _python_program(arguments)
    roots: list[str] = []
    beside = ""
    if kind == "script":
        arguments[position] = _code(absolute(arguments[position], cwd))
        roots.append(arguments[position])
        if not flags & {"P", "I"} and not os.path.isdir(arguments[position]):  # noqa: PTH112 - text in, text out
            beside = os.path.dirname(arguments[position])  # noqa: PTH120 - as above
    elif not flags & {"P", "I"}:
        # -m and -c put the current folder first on the import path, so it is code
        roots.append(os.path.realpath(cwd))
    environment = _virtual_environment(arguments[0])
    if environment is not None:
        roots.append(environment)
    return Program(
        descriptor=descriptor,
        argv=tuple(arguments),
        roots=tuple(roots),
        python=True,
        isolated=bool(flags & {"E", "I"}),
        open_ended=True,
        beside=beside,
        absent=() if environment is not None else tuple(f"{at}/pyvenv.cfg" for at in _environment_places(arguments[0])),
    )


def _python_program(arguments: list[str]) -> tuple[str, int, set[str]]:
    """Return ``script``, ``c`` or ``m``, the position of the script (else 0) and the flags before it."""
    flags: set[str] = set()
    position = 1
    while position < len(arguments):
        argument = arguments[position]
        if not argument.startswith("-"):
            return "script", position, flags
        following = arguments[position + 1] if position + 1 < len(arguments) else None
        if argument == "--check-hash-based-pycs":
            position += 2
            continue
        kind, used = _python_option(argument, following, flags)
        if kind:
            return kind, 0, flags
        position += used
    raise NodeError("program_missing", "no script")


def _python_option(argument: str, following: str | None, flags: set[str]) -> tuple[str, int]:
    """Read one cluster of short options; return ``c`` or ``m`` if the program is in it, and how many were used."""
    if argument == "-" or argument.startswith("--"):
        raise NodeError("program_missing", argument)
    for index, letter in enumerate(argument[1:], 2):
        value = argument[index:] or following
        if letter in "cmWX" and not value:
            raise NodeError("program_missing", argument)
        if letter in "cm":
            return letter, 0
        if letter == "X" and (value or "").startswith(_PYTHON_X_REFUSED):
            raise NodeError("program_missing", f"-X {value}")
        if letter in "WX":
            return "", 1 if argument[index:] else 2
        if letter not in _PYTHON_FLAGS:
            raise NodeError("program_missing", argument)
        flags.add(letter)
    return "", 1


def _environment_places(python: str) -> tuple[str, str]:
    folder = os.path.dirname(python)  # noqa: PTH120 - text in, text out
    return folder, os.path.dirname(folder)  # noqa: PTH120 - as above


def _virtual_environment(python: str) -> str | None:
    for place in _environment_places(python):
        if os.path.isfile(f"{place}/pyvenv.cfg"):  # noqa: PTH113 - as above
            return os.path.realpath(place)
    return None


def _other(descriptor: int, arguments: list[str], cwd: str, *, starter: bool) -> Program:
    """Read the arguments of an interpreter whose options are not known here.

    A first argument that is a file is the program. Otherwise code may hide in any argument: all are fixed, those that
    name files or folders are code, and where none does it is the current folder, in which such programs look.
    """
    if len(arguments) < 2:
        raise NodeError("program_missing", arguments[0])
    script = absolute(arguments[1], cwd)
    known = not starter and not arguments[1].startswith("-") and os.path.isfile(script)  # noqa: PTH113 - text in
    roots: list[str] = []
    for position in (1,) if known else range(1, len(arguments)):
        place = absolute(arguments[position], cwd) if arguments[position] else ""
        if place and not arguments[position].startswith("-") and os.path.exists(place):  # noqa: PTH110 - text in
            arguments[position] = _code(place)
            roots.append(arguments[position])
    return Program(
        descriptor=descriptor,
        argv=tuple(arguments),
        roots=tuple(dict.fromkeys(roots)) or (os.path.realpath(cwd),),
        python=False,
        isolated=False,
        open_ended=known,
        starter=starter,
    )


def _holds(root: str, folder: str) -> bool:
    return folder == root or folder.startswith(root.rstrip("/") + "/")


def _code(path: str) -> str:
    real = os.path.realpath(path)
    # /dev/stdin and its kin are another file in every process
    if real.startswith(("/proc/", "/dev/")):
        raise NodeError("program_missing", path)
    return real

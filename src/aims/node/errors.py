"""What the node refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from aims.errors import AimsError, Reason, reasons

_AGAIN = "Start it again with `aims run`."


class NodeError(AimsError):
    """The node refused to start, to recognise or to vouch for a process."""

    layer: ClassVar[str] = "node"
    reasons: ClassVar[Mapping[str, Reason]] = reasons(
        # who may ask
        kernel_too_old=(
            "This kernel cannot name the process behind a socket.",
            "The node needs Linux 6.5; `aims doctor` says what works below it.",
        ),
        peer_unknown=(
            "The process behind the socket is outside of this pid namespace.",
            "Run the agent and the node in one pid namespace.",
        ),
        peer_gone=("The process behind the socket has ended.", "Keep the process that connects alive."),
        uid_forbidden=(
            "This user may not start this agent.",
            "Ask as the user who registered it, or add the user to those who may launch it.",
        ),
        launch_nested=(
            "A process that the node started may not start others or administer.",
            "Ask from a shell that was not started by `aims run`.",
        ),
        not_registered=(
            "No approved agent has this name.",
            "Register it: aims agent register NAME --owner TEAM -- CMD",
        ),
        # the request
        request_malformed=("The launch request cannot be read.", "Use the `aims run` of the node's own version."),
        request_too_large=(
            "Arguments and environment are larger than 256 KiB.",
            "Shorten them, or start with a smaller environment: env -i aims run …",
        ),
        request_slow=("The launch request did not arrive in time.", "Send it within 5 seconds of connecting."),
        descriptors=(
            "The launch request came with the wrong descriptors.",
            "Pass standard input, output and error (file, pipe, socket or terminal) and the current folder.",
        ),
        launches_full=("The node runs as many processes as it may.", "End one, then start again."),
        stopping=("The node is stopping.", "Start it again: aims up"),
        node_gone=(
            "The node is not there, or ended while the agent ran.",
            "Run it again; if it stays, start the node (aims up), or ask aims doctor.",
        ),
        socket_path=(
            "The path of a socket is longer than 100 bytes.",
            "Choose a shorter folder: set XDG_RUNTIME_DIR to one.",
        ),
        # the program
        program_not_found=("The program was not found.", "Check its name, PATH and the current folder."),
        program_not_executable=("The program may not be executed.", "Make it executable, or name its interpreter."),
        program_unsupported=(
            "The program is neither an ELF nor a script whose interpreter is one.",
            "Name the interpreter itself, for example the python of the virtual environment.",
        ),
        program_missing=(
            "The interpreter would read its program from somewhere that cannot be measured.",
            "Name a script file, -m MODULE or -c CODE; options that change where code comes from are refused.",
        ),
        program_starter=(
            "This program starts another one, whose code cannot be found by reading the command.",
            "Name the program itself, without what starts it; or name its code with --root; or approve --unmeasured.",
        ),
        root_refused=(
            "This folder is too wide to be a code root.",
            "Choose the project's own folder, never a home folder or /; for -m and -c add -P, or change the folder.",
        ),
        code_too_large=(
            "The code roots hold more than 50,000 files or 2 GiB.",
            "Choose narrower roots, or a virtual environment of the agent's own.",
        ),
        code_unreadable=("A file of the program cannot be measured.", "Check that it exists and can be read."),
        code_unwatched=(
            "The system has no watches left for the folders above the code.",
            "Raise the limits fs.inotify.max_user_watches and max_user_instances.",
        ),
        code_changing=("A file changed while it was measured.", "Start again when nothing writes to the code."),
        launch_mismatch=(
            "The program is not the one that was approved.",
            "If the change is meant: aims agent approve NAME -- CMD",
        ),
        start_failed=("The program could not be started.", "See the node's log."),
        # what was started
        launch_ended=("The launched process has ended.", _AGAIN),
        exe_changed=(
            "The launched process runs another executable than the one that was measured.",
            "Behind a wrapper, name the program that the wrapper executes; otherwise start it again.",
        ),
        exe_unreadable=(
            "The executable of the launched process cannot be looked at.",
            "A process that makes itself undumpable cannot be vouched for by a node without privileges.",
        ),
        # the server
        server_unreachable=(
            "The server cannot be reached, or does not answer in time.",
            "Start it: aims up; the node goes on by itself once it answers.",
            "UNAVAILABLE",
        ),
        server_untrusted=(
            "Who answers at the server's address cannot prove to be the server that this node believes.",
            "Somebody may stand between node and server; if the server is new, make a new join token.",
            "UNAVAILABLE",
        ),
        server_busy=("The server cannot answer now.", "The node asks again by itself.", "UNAVAILABLE"),
        server_answer=(
            "The server's answer is not what the node protocol says.",
            "Install the same version of AIMS on node and server.",
            "UNAVAILABLE",
        ),
        server_refused=("The server refused.", "`aims explain CODE` says more."),
        state_unknown=(
            "The node has not heard from its server lately, so it cannot tell what is allowed now.",
            "Check that the server runs and can be reached, then try again.",
            "UNAVAILABLE",
        ),
        stopped=("The agent, this node or this instance was stopped.", "Its owner can tell why."),
        instances_full=("More processes hold identities here than the node keeps apart.", "End some of them."),
        # the node's own identity
        node_running=("Another node works in this folder.", "Stop it first, or choose other folders."),
        node_folder=(
            "A folder of the node is not private, or cannot be used.",
            "Give the node a folder of its own user: chmod 0700.",
        ),
        not_joined=(
            "This node has no identity yet.",
            "Make a join token with `aims node token NODE` and pass it by --join-token.",
        ),
        identity_expired=(
            "The node's identity has expired.",
            "Make a new join token with `aims node token NODE` and pass it by --join-token.",
        ),
        identity_unusable=(
            "What is stored of the node's identity is damaged.",
            "Make a new join token with `aims node token NODE` and pass it by --join-token.",
        ),
        join_token_file=(
            "The join token cannot be read, or others could have read it.",
            "Put the token alone into a file of mode 0600, or pass it on standard input: --join-token -",
        ),
        join_other_node=(
            "The join token is for another node than the one whose identity is stored here.",
            "Choose another --state-dir, or make a token for this node.",
        ),
        join_ca=(
            "The server shows another certificate authority than the join token names.",
            "Somebody may stand between node and server; if not, make a new join token.",
        ),
    )


def suspended(name: str) -> NodeError:
    """Return ``stopped`` for an agent that its owner can resume."""
    return _stopped(f"The agent {name} is suspended.", f"Its owner can: aims agent resume {name}")


def ended(name: str) -> NodeError:
    """Return ``stopped`` for an agent of which only its stop is known here."""
    return _stopped(
        f"The agent {name} is retired, or suspended and not bound to this node.",
        "`aims agent list` says which; who is retired never comes back: register another name.",
    )


def _stopped(sentence: str, hint: str) -> NodeError:
    error = NodeError("stopped")
    error.sentence, error.hint = sentence, hint
    return error

"""What can go wrong between a request and the layer that answers it, and while a server starts."""

from __future__ import annotations

from aims.errors import AimsError, reasons


class ServerError(AimsError):
    """A listener, the administrator's door or the supervisor refused."""

    layer = "server"
    reasons = reasons(
        bad_setting=(
            "A setting is missing or has a value that cannot be.",
            "Correct the option that the message names.",
        ),
        folder=(
            "The data folder cannot be used.",
            "Give a folder that this user owns and may write to, with mode 0700, on a disk that is not full.",
        ),
        socket_path_too_long=(
            "A unix socket's path is longer than Linux allows.",
            "Choose a shorter folder with --run-dir (the path of a socket must stay within 100 bytes).",
        ),
        port_in_use=(
            "Another program listens on that port.",
            "Stop it, or choose another port with --port or --mtls-port.",
        ),
        already_running=(
            "Another supervisor works on this data folder.",
            "Stop it first; two supervisors on one folder would sign two histories.",
        ),
        not_running=(
            "No server answers on the administrator's socket.",
            "Start one with `aims up`, or name its folder with --run-dir.",
        ),
        worker=(
            "A worker process ended before it was ready.",
            "Its last lines are above; mend the cause and start again.",
        ),
        host=("The request names a host that this listener does not serve.", "Use the address that `aims up` printed."),
        browser=(
            "The administrator's door does not answer web pages.",
            "Use the `aims` command; no page may reach this socket.",
        ),
        peer=(
            "Only users that the policy names as operators may administer.",
            "Run the command as the server's own user, or name this user in the policy's operators.",
        ),
        admin_from_agent=(
            "A launched agent, or a process below one, may not administer.",
            "Run the command in a shell that was not started by `aims run`.",
        ),
        route=("There is nothing at this path.", "Check the path and method against the command's help."),
        body=("The request's body is not what this call takes.", "Send one JSON object with the members of the call."),
        too_large=("The request is larger than this call allows.", "Send less, or split it."),
        loading=(
            "A worker could not load its state in time.",
            "Look whether the database answers and the disk has room, then start again; `aims doctor` says more.",
        ),
        starting=("The server has not loaded its state yet.", "Try again in a second."),
        answer=("What answered on the socket is no server of this version.", "Use the version of the running server."),
        internal=("The server failed to answer.", "Look into its log for the request's id."),
        busy=("The server has more work than it can queue.", "Try again after the time in Retry-After."),
    )

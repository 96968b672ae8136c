"""Everything that the store can answer instead of an outcome."""

from __future__ import annotations

from typing import ClassVar

from aims.errors import AimsError, reasons


class StorageError(AimsError):
    """The store could not do what was asked. Nothing of the request was written, unless the reason is ``unknown``."""

    layer: ClassVar[str] = "storage"
    reasons = reasons(
        busy=("The store has too much to do at the moment.", "Try again in a second."),
        closed=("The store is closed.", "The server is stopping; try another one."),
        conflict=("Something with that name or in that state exists already.", "Read the current state and try again."),
        consumed=("The one-time value is unknown, expired or was used before.", "Ask for a new one."),
        damaged=("The database file is damaged.", "Stop the server and restore the last backup."),
        full=("The disk of the database is full.", "Free space; the store goes on by itself."),
        internal=("The store could not execute this request.", "The log of the server has the cause."),
        io=("The disk of the database does not work.", "Check the disk and the log of the system."),
        locked=(
            "Another supervisor runs on this database.",
            "Stop the process that holds it (its number is in the detail), or give this one a folder of its own.",
        ),
        not_a_database=("The file is not a database.", "Check the path."),
        not_migrated=("The database has not the tables of this version.", "Run: aims server migrate"),
        read_only=("The database cannot be written.", "Check the permissions of the file, its folder and its disk."),
        replaced=(
            "The database file was taken away or replaced under the running server.",
            "Put back the file that belongs to it, or stop the server before restoring another one.",
        ),
        replayed=("The proof was used before.", "Make a new proof for each request."),
        settings=("The database refused a setting that durability needs.", "See the detail in the log of the server."),
        stopped=("The agent, person, grant, node or instance was stopped.", "Ask its owner."),
        unknown=("The connection broke while the request was being committed.", "Look before trying again."),
        unreachable=("The database cannot be reached.", "Check its address, credentials and that it runs."),
        url=("The address of the database is not understood.", "Use sqlite:///path or postgresql://user@host/name."),
    )

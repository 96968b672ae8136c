"""The store as the other rooms get it: one object with the committer, read access and the change feed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from aims.clock import Clock, IdSource
from aims.storage.committer import Committer
from aims.storage.engine import Location
from aims.storage.errors import StorageError
from aims.storage.feed import Feed
from aims.storage.postgresql import PostgresqlSession
from aims.storage.reading import Reader, Stops
from aims.storage.session import Session
from aims.storage.sqlite import SqliteSession
from aims.storage.wakeup import Wakeup
from aims.storage.write import Outcome, Write

T = TypeVar("T")


class Database:
    """An open, migrated database. ``feed`` is started by whoever has subscribed; tools leave it alone."""

    def __init__(self, location: Location, committer: Committer, reader: Reader, feed: Feed, wakeup: Wakeup) -> None:
        self.location = location
        self.committer = committer
        self.reader = reader
        self.feed = feed
        self._wakeup = wakeup

    @classmethod
    def open(cls, url: str, *, clock: Clock, ids: IdSource, folder: Path) -> Database:
        """Open the database at ``url``; ``folder`` is the data folder of this host (for the wake-ups of its processes).

        Raises ``StorageError``: ``url``, ``unreachable``, ``read_only``, ``full``, ``not_a_database``,
        ``not_migrated``, ``settings``.
        """
        location = Location.parse(url)
        try:
            wakeup = Wakeup(folder, ids.new())
        except OSError as error:
            raise StorageError("read_only", f"{folder}: {error.strerror}") from error
        reader = Reader(location)
        try:
            reader.head()
            committer = Committer(lambda: _session(location), clock=clock, ids=ids, on_changes=lambda _: wakeup.ring())
            committer.start()
        except BaseException:
            reader.close()
            wakeup.close()
            raise
        return cls(location, committer, reader, Feed(location, wakeup, clock), wakeup)

    @property
    def writer(self) -> str:
        """The name under which this process numbers its records."""
        return self.committer.writer

    @property
    def healthy(self) -> bool:
        """Whether writing works; a server that is not healthy is not ready."""
        return self.committer.healthy

    async def commit(self, write: Write) -> Outcome:
        """See ``Committer.commit``."""
        return await self.committer.commit(write)

    def commit_now(self, write: Write) -> Outcome:
        """See ``Committer.commit_now``."""
        return self.committer.commit_now(write)

    def reading(self) -> AbstractContextManager[Connection]:
        """See ``Reader.reading``."""
        return self.reader.reading()

    async def read(self, question: Callable[[Connection], T]) -> T:
        """See ``Reader.read``."""
        return await self.reader.read(question)

    def stops(self) -> Stops:
        """See ``Reader.stops``."""
        return self.reader.stops()

    async def prune(self) -> int:
        """Delete some old changes, claims and one-time things; return how many, so that the caller can go on."""
        return await asyncio.wrap_future(self.committer.prune())

    def close(self) -> None:
        """Commit what waits, then let go of everything."""
        self.committer.close()
        self.feed.close()
        self.reader.close()
        self._wakeup.close()


def _session(location: Location) -> Session:
    return SqliteSession(location) if location.backend == "sqlite" else PostgresqlSession(location)

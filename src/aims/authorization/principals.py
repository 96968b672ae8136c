"""Whose right it is, in the form in which a record says it."""

from __future__ import annotations

from aims.audit.people import agent_principal, pseudonym
from aims.storage.database import Database


class Principals:
    """The record's ``principal`` by subject. A person's commitment never changes, so it is read once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._people: dict[str, dict[str, str]] = {}

    async def of(self, subject: str) -> dict[str, str]:
        """Return the principal of an agent or a person. Raises: AuditError ``person_unknown``; StorageError."""
        if not subject.startswith("person:"):
            return agent_principal(subject)
        found = self._people.get(subject)
        if found is None:
            found = (await self._database.read(lambda connection: pseudonym(connection, subject))).principal
            self._people[subject] = found
        return dict(found)

"""Ground: the engine, guarded writes and the change feed, on SQLite and PostgreSQL alike.

A request decides first and then hands over one ``Write`` (guards, effects, changes, audit record); the committer puts
many of them into one transaction and tells each its own outcome. Nothing else in AIMS writes to the database::

    database = Database.open("sqlite:///aims.db", clock=clock, ids=ids, folder=folder)
    outcome = await database.commit(Write(record=lambda outcome: body(outcome), names=(Name("agent", agent),), seen=n))
    if outcome.verdict is not Verdict.COMMITTED: ...      # refused, and the refusal is recorded
"""

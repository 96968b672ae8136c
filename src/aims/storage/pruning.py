"""What is deleted because it is old, a bounded number of rows at a time."""

from __future__ import annotations

from aims.storage.schema import KEPT_CHANGES, KEPT_EXPIRED

_CHANGES = "DELETE FROM change WHERE seq IN (SELECT seq FROM change WHERE at < {0} ORDER BY seq LIMIT {0})"
_CLAIMS = "DELETE FROM claim WHERE k IN (SELECT k FROM claim WHERE k < {0} ORDER BY k LIMIT {0})"
_ONCE = (
    "DELETE FROM once WHERE (kind, id_hash) IN"
    " (SELECT kind, id_hash FROM once WHERE expires < {0} ORDER BY expires LIMIT {0})"
)


def deletions(now: int, mark: str) -> tuple[tuple[str, int | bytes], ...]:
    """Return statements, each with its bound; their second parameter is the most rows that go. ``mark`` stands for one
    parameter in the driver's way of writing."""
    expired = max(0, now - KEPT_EXPIRED)
    return (
        (_CHANGES.format(mark), now - KEPT_CHANGES),
        # Keys of claims begin with the expiry.
        (_CLAIMS.format(mark), expired.to_bytes(5, "big")),
        (_ONCE.format(mark), expired),
    )

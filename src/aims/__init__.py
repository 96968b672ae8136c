"""AIMS: attested identity, short-lived credentials, standard authorization and a stop for AI agents.

async with aims.Identity() as me, me.client() as http:
    answer = await http.post("https://localhost:8450/mcp", json={"question": 42})
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's own, which takes longer to import than everything here
if TYPE_CHECKING:
    from typing import Any

    from aims.sdk.identity import Identity as Identity

__all__ = ["Identity", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded when it is first used, so that `import aims` costs nothing.
    if name == "Identity":
        from aims.sdk.identity import Identity

        return Identity
    raise AttributeError(f"module 'aims' has no attribute {name!r}")

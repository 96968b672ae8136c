"""Where the Workload API is (SPIFFE_Workload_Endpoint.md: discovery)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from aims.sdk.errors import SdkError

VARIABLE = "SPIFFE_ENDPOINT_SOCKET"

# An absolute path and nothing else: no authority, query, fragment, and nothing that would need decoding.
_UNIX = re.compile(r"unix:(?://)?(/[^/?#%\x00-\x20\x7f][^?#%\x00-\x1f\x7f]*)")
_MAX_PATH_OCTETS = 107  # sun_path without its NUL


def workload_endpoint(address: str | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the socket's path from ``address``, or else from ``SPIFFE_ENDPOINT_SOCKET``.

    Raises ``SdkError``: ``endpoint_missing``, ``endpoint_malformed``, ``endpoint_tcp``.
    """
    text = environment.get(VARIABLE) if address is None else address
    if not text:
        raise SdkError("endpoint_missing")
    if text.startswith("tcp:"):
        raise SdkError("endpoint_tcp")
    matched = _UNIX.fullmatch(text)
    if matched is None or len(os.fsencode(matched[1])) > _MAX_PATH_OCTETS:
        raise SdkError("endpoint_malformed", text[:200])
    return Path(matched[1])

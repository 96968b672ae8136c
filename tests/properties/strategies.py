"""Hypothesis strategies that several test modules share."""

from __future__ import annotations

from hypothesis import strategies as st

_TRUST_DOMAIN_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.-_"
_SEGMENT_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + _TRUST_DOMAIN_CHARACTERS


def trust_domain_names() -> st.SearchStrategy[str]:
    """Names of trust domains."""
    return st.text(_TRUST_DOMAIN_CHARACTERS, min_size=1, max_size=40)


def segments() -> st.SearchStrategy[str]:
    """Single path segments of a SPIFFE ID."""
    return st.text(_SEGMENT_CHARACTERS, min_size=1, max_size=20).filter(lambda text: text not in {".", ".."})


def spiffe_id_texts() -> st.SearchStrategy[str]:
    """SPIFFE IDs of workloads, as text."""
    return st.builds(
        lambda name, path: f"spiffe://{name}/" + "/".join(path),
        trust_domain_names(),
        st.lists(segments(), min_size=1, max_size=6),
    )

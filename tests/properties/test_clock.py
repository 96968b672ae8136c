"""Identifiers: time-ordered, of one alphabet, never twice."""

from __future__ import annotations

import base64
import re

from hypothesis import given
from hypothesis import strategies as st

from aims.clock import SystemClock, SystemIds


class _At:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def now(self) -> float:
        return self._seconds

    def monotonic(self) -> float:
        return self._seconds


@given(st.floats(0, 2**40), st.binary(min_size=10, max_size=10))
def test_an_identifier_is_the_time_and_the_random_octets_in_base32hex(seconds: float, random: bytes) -> None:
    found = SystemIds(_At(seconds), lambda _: random).new()
    raw = (int(seconds * 1000) & 0xFFFFFFFFFFFF).to_bytes(6, "big") + random
    assert found == base64.b32hexencode(raw).decode().rstrip("=").lower()
    assert re.fullmatch(r"[0-9a-v]{26}", found)


@given(st.floats(0, 2**37), st.floats(0.001, 2**37), st.binary(min_size=10, max_size=10))
def test_a_later_identifier_sorts_behind(seconds: float, later: float, random: bytes) -> None:
    first = SystemIds(_At(seconds), lambda _: b"\xff" * 10).new()
    second = SystemIds(_At(seconds + later + 0.001), lambda _: random).new()
    assert first < second or int(seconds * 1000) == int((seconds + later + 0.001) * 1000)


def test_a_thousand_identifiers_are_different() -> None:
    ids = SystemIds(SystemClock())
    assert len({ids.new() for _ in range(1000)}) == 1000
    assert len(ids.token(32)) == 43

"""The packets of launch.sock: they survive the way, and no octets break the reader."""

from __future__ import annotations

import contextlib
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aims.node.errors import NodeError
from aims.node.launch_protocol import (
    FORWARDED,
    Ended,
    Refused,
    Signal,
    Start,
    Started,
    encode,
    parse_reply,
    parse_request,
    refusal,
)

OCTETS = st.binary(max_size=20).map(lambda octets: octets.replace(b"\0", b"0"))
NAMES = OCTETS.map(lambda octets: b"N" + octets.replace(b"=", b"-"))
STARTS = st.builds(
    Start,
    version=st.just(1),
    name=st.text("abc-", min_size=1, max_size=20),
    argv=st.lists(OCTETS, min_size=1, max_size=4).map(tuple),
    environment=st.dictionaries(NAMES, OCTETS, max_size=4).map(lambda given: tuple(given.items())),
    umask=st.integers(0, 0o777),
    terminal=st.integers(-1, 2),
)


@given(STARTS)
def test_a_request_survives_whatever_octets_its_arguments_have(start: Start) -> None:
    assert parse_request(encode(start)) == start


@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(STARTS, st.integers(0), st.integers(1, 255)).map(
            lambda drawn: _flip(encode(drawn[0]), drawn[1], drawn[2])
        ),
    )
)
def test_no_octets_break_the_readers(packet: bytes) -> None:
    for parse in (parse_request, parse_reply):
        # anything but a refusal would end the test
        with contextlib.suppress(NodeError):
            assert encode(parse(packet))


def _flip(packet: bytes, place: int, mask: int) -> bytes:
    place %= len(packet)
    return packet[:place] + bytes([packet[place] ^ mask]) + packet[place + 1 :]


def test_only_the_listed_signals_are_forwarded() -> None:
    for number in range(-1, 130):
        if number in FORWARDED:
            assert parse_request(encode(Signal(number=number))) == Signal(number=number)
        else:
            with pytest.raises(NodeError, match="request_malformed"):
                parse_request(encode(Signal(number=number)))
    assert signal.SIGKILL not in FORWARDED


def test_a_refusal_keeps_private_detail_and_names_what_differs() -> None:
    assert refusal(NodeError("code_unreadable", "/agent/a.py: denied")).differs == ("/agent/a.py: denied",)
    hidden = refusal(NodeError("not_registered", "secret"))
    assert hidden.differs == ()
    assert b"secret" not in encode(hidden)
    shown = refusal(NodeError("launch_mismatch", "\n".join(["arguments", "root:/\udc80", *["x"] * 30])))
    assert shown.differs[:2] == ("arguments", "root:/\\udc80")
    assert len(shown.differs) == 16
    for message in (hidden, shown, Started(pid=1, instance="n:x", posture="p", dropped=()), Ended(status=1, signal=0)):
        assert parse_reply(encode(message)) == message
    assert {refusal(NodeError(reason)).exit_code for reason in NodeError.reasons} == {125, 126, 127}
    assert isinstance(shown, Refused)

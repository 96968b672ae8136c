"""What follows from each answer to a pushed SET."""

from __future__ import annotations

import pytest

from aims.fetch import FetchError, Response
from aims.monitoring.delivery import LONGEST_PAUSE, PATIENCE, Verdict, judge
from aims.monitoring.model import Due

NOW = 1_800_000_000


def _due(tries: int = 0, age: int = 0, reason: str = "") -> Due:
    return Due("jti", "txn", "{}", tries, NOW - age, reason)


def _answer(status: int, body: bytes = b"", **headers: str) -> Response:
    return Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def test_only_202_is_success() -> None:
    assert judge(_answer(202), _due(), NOW) == Verdict("sent")
    for status in (200, 201, 204, 206):
        assert judge(_answer(status), _due(), NOW).state == "waiting"


@pytest.mark.parametrize("status", [403, 404, 405, 410, 413, 415, 422])
def test_a_refusal_that_will_not_change_is_a_dead_letter(status: int) -> None:
    assert judge(_answer(status), _due(), NOW) == Verdict("dead", 1, f"http_{status}")


def test_a_set_at_fault_is_not_sent_again_but_once_after_invalid_key() -> None:
    body = b'{"err":"access_denied","description":"no"}'
    assert judge(_answer(400, body), _due(), NOW) == Verdict("dead", 1, "access_denied")
    key = b'{"err":"invalid_key"}'
    assert judge(_answer(400, key), _due(), NOW) == Verdict("waiting", 1, "invalid_key")
    assert judge(_answer(400, key), _due(1, reason="invalid_key"), NOW).state == "dead"
    for garbage in (b"", b"[]", b"{", b'{"err":7}', b'{"err":"a\\u0000"}', b"\xff", b"[" * 5000):
        assert judge(_answer(400, garbage), _due(), NOW) == Verdict("dead", 1, "http_400")


def test_missing_authorization_is_tried_three_times() -> None:
    assert [judge(_answer(401), _due(tries), NOW).state for tries in range(4)] == ["waiting", "waiting", "dead", "dead"]


@pytest.mark.parametrize(
    "answer", [_answer(500), _answer(503), _answer(429), FetchError("unreachable"), FetchError("slow")]
)
def test_trouble_that_may_pass_is_waited_for_longer_and_longer(answer: Response | FetchError) -> None:
    pauses = [judge(answer, _due(tries), NOW).pause for tries in (0, 1, 2, 8, 9, 15, 16, 10_000)]
    assert pauses == [1, 2, 4, 256, *([LONGEST_PAUSE] * 4)]
    assert judge(answer, _due(9, PATIENCE - LONGEST_PAUSE), NOW).state == "waiting"
    assert judge(answer, _due(9, PATIENCE - LONGEST_PAUSE + 1), NOW).state == "dead"


def test_a_receiver_says_how_long_to_wait_within_bounds() -> None:
    for text, pause in (("120", 120), ("99999", 3600), ("0", 1), ("-5", 1), ("soon", 1), ("1234567", 1), ("", 1)):
        assert judge(_answer(429, retry_after=text), _due(), NOW).pause == pause

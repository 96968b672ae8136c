"""The form of an OAuth request: what a client may send, and that nothing else is read as something."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aims.authorization.errors import AuthorizationError
from aims.authorization.form import MAX_PARAMETERS, read

FORM = "application/x-www-form-urlencoded"
names = st.from_regex(r"[a-z][a-z_]{0,20}", fullmatch=True).filter(lambda name: name not in {"resource", "audience"})
values = st.text(max_size=60).filter(lambda text: text.isprintable() and text.isprintable())


def _reason(body: bytes, content_type: str | None = FORM) -> str:
    try:
        read(body, content_type)
    except AuthorizationError as error:
        return error.reason
    return ""


@given(st.dictionaries(names, values, max_size=10), st.lists(values.filter(bool), max_size=4))
def test_what_a_client_encodes_is_read_as_it_was(parameters: dict[str, str], resources: list[str]) -> None:
    body = urlencode([*parameters.items(), *(("resource", value) for value in resources)]).encode()
    form = read(body, FORM)
    assert form.values == {name: value for name, value in parameters.items() if value}
    assert form.all("resource") == tuple(resources)
    assert form.all("audience") == ()


@given(st.binary(max_size=300))
def test_any_octets_are_a_form_or_refused(body: bytes) -> None:
    assert _reason(body) in {"", "request_malformed", "parameter_twice"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", ""),
        (b"a=1", ""),
        (b"a=1&b=", ""),
        (b"a=1&a=1", "parameter_twice"),
        (b"a=&a=1", "parameter_twice"),
        (b"a=1&a=", "parameter_twice"),
        (b"a=&a=", "parameter_twice"),
        (b"a=1&%61=2", "request_malformed"),
        (b"resource=a&resource=b", ""),
        (b"a", "request_malformed"),
        (b"=1", "request_malformed"),
        (b"&", "request_malformed"),
        (b"a=1&&b=2", "request_malformed"),
        (b"a=1;b=2", ""),
        (b"a=%", "request_malformed"),
        (b"a=%4", "request_malformed"),
        (b"a=%4g", "request_malformed"),
        (b"a=%c3%a4", ""),
        (b"a=%c3", "request_malformed"),
        (b"a=\xc3\xa4", "request_malformed"),
        (b"a=%0a", "request_malformed"),
        (b"a=%00", "request_malformed"),
        (b"a=1\n", "request_malformed"),
        (b"&".join(b"a%d=1" % n for n in range(MAX_PARAMETERS)), ""),
        (b"&".join(b"a%d=1" % n for n in range(MAX_PARAMETERS + 1)), "request_malformed"),
        (b"a=" + b"x" * 32_766, ""),
        (b"a=" + b"x" * 32_767, "request_too_large"),
    ],
)
def test_a_form_is_plain(body: bytes, reason: str) -> None:
    assert _reason(body) == reason


@pytest.mark.parametrize(
    ("content_type", "accepted"),
    [
        (FORM, True),
        (FORM.upper(), True),
        (FORM + "; charset=utf-8", True),
        (FORM + ";charset=UTF-8", True),
        (FORM + "; charset=latin-1", False),
        (FORM + "; boundary=x", False),
        ("application/json", False),
        ("multipart/form-data; boundary=x", False),
        ("", False),
        (None, False),
    ],
)
def test_only_one_media_type_is_a_form(content_type: str | None, accepted: bool) -> None:
    assert _reason(b"a=1", content_type) == ("" if accepted else "request_malformed")


def test_a_missing_parameter_is_named_and_values_are_not_shown() -> None:
    form = read(b"client_assertion=secret&resource=x", FORM)
    with pytest.raises(AuthorizationError) as refused:
        form.require("scope")
    assert (refused.value.reason, refused.value.detail) == ("parameter_missing", "scope")
    assert "secret" not in repr(form)

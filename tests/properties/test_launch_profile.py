"""Launch profiles: one canonical form, and nothing passes that was not approved."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aims.attestation import AttestationError, CodeRoot, LaunchProfile, Measurement, compare

DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
PATHS = TEXTS.map("/x{}".format)
ROOTS = st.builds(CodeRoot, PATHS, DIGESTS)


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    roots = draw(st.lists(ROOTS, max_size=4, unique_by=lambda root: root.path))
    argv = (draw(PATHS), *draw(st.lists(TEXTS, max_size=4)))
    return Measurement(executable=draw(DIGESTS), argv=argv, roots=tuple(roots))


@given(measurements(), st.booleans())
def test_a_profile_survives_its_canonical_form(measurement: Measurement, more: bool) -> None:
    profile = LaunchProfile.of(measurement, more_arguments=more)
    octets = profile.canonical()
    assert LaunchProfile.parse(octets) == profile
    assert str(profile.selector()) == f"launch:profile:{hashlib.sha256(octets).hexdigest()}"
    assert compare(profile, measurement) == ()


@given(measurements(), TEXTS, DIGESTS)
def test_every_difference_is_named(measurement: Measurement, argument: str, digest: str) -> None:
    profile = LaunchProfile.of(measurement)
    longer = dataclasses.replace(measurement, argv=(*measurement.argv, argument))
    assert compare(profile, longer) == ("arguments",)
    open_ended = LaunchProfile.of(measurement, more_arguments=True)
    assert compare(open_ended, longer) == ()
    assert compare(LaunchProfile.of(longer, more_arguments=True), measurement) == ("arguments",)
    swapped = dataclasses.replace(measurement, argv=("/y" + argument, *measurement.argv[1:]))
    assert compare(open_ended, swapped) == ("arguments",)
    if digest != measurement.executable:
        assert compare(profile, dataclasses.replace(measurement, executable=digest)) == ("executable",)
    added = dataclasses.replace(measurement, roots=(*measurement.roots, CodeRoot("/added", digest)))
    assert compare(profile, added) == ("roots",)
    assert compare(LaunchProfile.of(added), measurement) == ("roots",)
    for place, root in enumerate(measurement.roots):
        roots = list(measurement.roots)
        roots[place] = CodeRoot(root.path, hashlib.sha256(root.digest.encode()).hexdigest())
        assert compare(profile, dataclasses.replace(measurement, roots=tuple(roots))) == (f"root:{root.path}",)
    other_rule = dataclasses.replace(measurement, environment="clean-0")
    assert compare(profile, other_rule) == ("environment",)


def test_a_root_measured_twice_hides_nothing() -> None:
    root = CodeRoot("/x", "ab" * 32)
    measurement = Measurement(executable="cd" * 32, argv=("/p",), roots=(root,))
    doubled = dataclasses.replace(measurement, roots=(CodeRoot("/x", "ef" * 32), root))
    assert compare(LaunchProfile.of(measurement), doubled) == ("roots",)


GOOD: dict[str, Any] = {
    "version": 1,
    "executable": "ab" * 32,
    "head": ["/usr/bin/python3", "/srv/agent.py"],
    "roots": [["/srv/agent.py", "cd" * 32], ["/srv/venv", "ef" * 32]],
    "environment": "clean-1",
    "more_arguments": False,
}


def _text(document: dict[str, Any], **options: Any) -> bytes:
    form = {"ensure_ascii": False, "sort_keys": True, "separators": (",", ":"), **options}
    return json.dumps(document, **form).encode()


HOSTILE = {
    "no JSON": b"{",
    "no UTF-8": b"\xff",
    "no object": b"[]",
    "deep": b"[" * 100_000,
    "spaces": _text(GOOD, separators=(", ", ": ")),
    "order": _text(dict(reversed(GOOD.items())), sort_keys=False),
    "escapes": _text({**GOOD, "head": ["/é"]}, ensure_ascii=True),
    "member twice": _text(GOOD).replace(b'{"env', b'{"more_arguments":true,"env'),
    "member too many": _text({**GOOD, "x": 1}),
    "member too few": _text({name: value for name, value in GOOD.items() if name != "environment"}),
    "other version": _text({**GOOD, "version": 2}),
    "version true": _text({**GOOD, "version": True}),
    "digest in capitals": _text({**GOOD, "executable": "AB" * 32}),
    "digest short": _text({**GOOD, "executable": "ab" * 31}),
    "empty head": _text({**GOOD, "head": []}),
    "relative program": _text({**GOOD, "head": ["python3"]}),
    "zero octet": _text({**GOOD, "head": ["/a", "\0"]}),
    "number in head": _text({**GOOD, "head": ["/a", 1]}),
    "head too many": _text({**GOOD, "head": ["/a"] * 257}),
    "head too long": _text({**GOOD, "head": ["/a", "x" * 65_536]}),
    "roots unsorted": _text({**GOOD, "roots": GOOD["roots"][::-1]}),
    "root twice": _text({**GOOD, "roots": GOOD["roots"][:1] * 2}),
    "roots too many": _text({**GOOD, "roots": [[f"/{n:03}", "ab" * 32] for n in range(33)]}),
    "root relative": _text({**GOOD, "roots": [["srv", "ab" * 32]]}),
    "root /": _text({**GOOD, "roots": [["/", "ab" * 32]]}),
    "root no pair": _text({**GOOD, "roots": [["/srv"]]}),
    "other rule": _text({**GOOD, "environment": "none"}),
    "flag no boolean": _text({**GOOD, "more_arguments": 0}),
    "too large": _text(GOOD) + b" " * 600_000,
    "lone surrogate": _text(GOOD).replace(b"/srv/agent.py", b"/srv/\\udc80"),
}


def test_the_base_of_the_hostile_profiles_is_good() -> None:
    assert LaunchProfile.parse(_text(GOOD)).head == ("/usr/bin/python3", "/srv/agent.py")


@pytest.mark.parametrize("octets", HOSTILE.values(), ids=HOSTILE.keys())
def test_other_octets_are_no_profile(octets: bytes) -> None:
    with pytest.raises(AttestationError) as caught:
        LaunchProfile.parse(octets)
    assert caught.value.code == "attestation.profile_malformed"

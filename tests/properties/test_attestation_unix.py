"""Unix evidence and the level of separation that uids give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aims.attestation import AttestationError, Separation, UnixEvidence, separation

UIDS = st.integers(0, 0xFFFF_FFFE)


@given(UIDS, UIDS)
def test_evidence_gives_uid_gid_path_and_digest(uid: int, gid: int) -> None:
    evidence = UnixEvidence(pid=7, uid=uid, gid=gid, path="/usr/bin/agent", sha256="ab" * 32)
    found = {str(selector) for selector in evidence.selectors()}
    assert found == {f"unix:uid:{uid}", f"unix:gid:{gid}", "unix:path:/usr/bin/agent", f"unix:sha256:{'ab' * 32}"}


def test_a_path_that_no_selector_holds_is_left_out() -> None:
    for path in ("/a\nb", "/a\udc80", "/" + "x" * 1024, "/usr/bin/agent (deleted)"):
        found = UnixEvidence(pid=7, uid=1, gid=1, path=path).selectors()
        assert {str(selector) for selector in found} == {"unix:uid:1", "unix:gid:1"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"pid": 0},
        {"pid": -1},
        {"uid": -1},
        {"uid": 0xFFFF_FFFF},
        {"gid": -1},
        {"path": "bin/agent"},
        {"path": ""},
        {"sha256": "AB" * 32},
        {"sha256": "ab" * 32 + "\n"},
    ],
)
def test_evidence_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(AttestationError) as caught:
        UnixEvidence(**{"pid": 7, "uid": 1, "gid": 1, **wrong})  # type: ignore[arg-type]  # wrong on purpose
    assert caught.value.code == "attestation.evidence_malformed"


@given(UIDS, UIDS, st.booleans())
def test_one_uid_or_root_separates_nothing(node: int, agent: int, alone: bool) -> None:
    assert separation(node_uid=node, agent_uid=node, alone=alone) is Separation.SHARED_UID
    assert separation(node_uid=node, agent_uid=0, alone=alone) is Separation.SHARED_UID
    if agent not in {0, node}:
        expected = Separation.AGENT_UID if alone else Separation.NODE_UID
        assert separation(node_uid=node, agent_uid=agent, alone=alone) is expected

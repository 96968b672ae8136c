"""The socket of the Workload API, the messages' framing and the generated code."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor
from tests.flows.workload_api_fake import PATIENCE, RawClient, serve, until

from aims.node.errors import NodeError
from aims.node.listener import EVERYBODY, GROUP, OWNER_ONLY, open_listener
from aims.node.workload_errors import WorkloadApiError
from aims.proto import workload_pb2 as pb
from aims.proto.workload_service import METHODS

REPOSITORY = Path(__file__).parents[2]


def refused(path: Path) -> str:
    with pytest.raises(WorkloadApiError) as caught:
        open_listener(path)
    return caught.value.code


@pytest.mark.parametrize("mode", [OWNER_ONLY, GROUP, EVERYBODY])
def test_the_socket_has_the_mode_asked_for_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        listener = open_listener(tmp_path / "s.sock", mode)
    finally:
        os.umask(before)
    with listener.socket:
        assert stat.S_IMODE(listener.path.stat().st_mode) == mode
        listener.unlink()
    assert not listener.path.exists()
    with pytest.raises(ValueError, match="777"):
        open_listener(tmp_path / "s.sock", 0o777)


def test_a_path_of_more_than_100_octets_is_refused_with_the_fix(tmp_path: Path) -> None:
    longest = tmp_path / ("s" * (99 - len(os.fsencode(tmp_path))))
    with open_listener(longest).socket:
        assert len(os.fsencode(longest)) == 100
    with pytest.raises(WorkloadApiError) as caught:
        open_listener(Path(f"{longest}x"))
    assert caught.value.code == "node.socket_path_too_long"
    assert "XDG_RUNTIME_DIR" in caught.value.hint
    assert refused(Path("s.sock")) == "node.socket_path_relative"


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    first = open_listener(path)
    assert refused(path) == "node.socket_in_use"
    first.socket.close()  # a node that died: the file stays
    second = open_listener(path)
    first.unlink()  # its late clean-up takes away nothing that is not its own
    assert path.exists()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    second.socket.close()
    second.unlink()
    second.unlink()
    assert not path.exists()


def test_a_full_backlog_is_no_dead_socket(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        assert refused(path) == "node.socket_in_use"


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to(tmp_path / "elsewhere.sock")
    assert refused(file) == "node.socket_path_taken"
    assert refused(link) == "node.socket_path_taken"
    assert file.read_text() == "mine"
    assert link.is_symlink()


def test_a_folder_in_which_others_may_write_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "missing" / "s.sock") == "node.socket_folder_missing"
    folder = tmp_path / "open"
    folder.mkdir()
    for mode in (0o777, 0o775):
        folder.chmod(mode)
        assert refused(folder / "s.sock") == "node.socket_folder_unsafe"
    folder.chmod(0o1777)
    with open_listener(folder / "s.sock").socket:
        assert (folder / "s.sock").is_socket()


async def test_a_node_starts_again_on_the_socket_that_it_left(tmp_path: Path) -> None:
    for _ in range(2):
        async with serve(tmp_path) as served, RawClient.connect(served.path) as client:
            await client.answer(client.open("/", end=True))
            with pytest.raises(WorkloadApiError) as caught:
                async with serve(tmp_path):
                    pass
            assert caught.value.code == "node.socket_in_use"
    reader, writer = None, None
    with pytest.raises(FileNotFoundError):
        reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(str(served.path)), PATIENCE)
    assert (reader, writer) == (None, None)
    await until(lambda: not list(tmp_path.iterdir()))


def test_the_reasons_of_the_socket_repeat_none_of_the_nodes() -> None:
    assert not set(WorkloadApiError.reasons) & set(NodeError.reasons)


# SPIFFE_Workload_API.md, field by field: number, kind.
_S, _B = "string", "bytes"
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "X509SVIDRequest": {},
    "X509SVIDResponse": {
        "svids": (1, "repeated X509SVID"),
        "crl": (2, "repeated bytes"),
        "federated_bundles": (3, "map string bytes"),
    },
    "X509SVID": {
        "spiffe_id": (1, _S),
        "x509_svid": (2, _B),
        "x509_svid_key": (3, _B),
        "bundle": (4, _B),
        "hint": (5, _S),
    },
    "X509BundlesRequest": {},
    "X509BundlesResponse": {"crl": (1, "repeated bytes"), "bundles": (2, "map string bytes")},
    "JWTSVIDRequest": {"audience": (1, "repeated string"), "spiffe_id": (2, _S)},
    "JWTSVIDResponse": {"svids": (1, "repeated JWTSVID")},
    "JWTSVID": {"spiffe_id": (1, _S), "svid": (2, _S), "hint": (3, _S)},
    "JWTBundlesRequest": {},
    "JWTBundlesResponse": {"bundles": (1, "map string bytes")},
    "ValidateJWTSVIDRequest": {"audience": (1, _S), "svid": (2, _S)},
    "ValidateJWTSVIDResponse": {"spiffe_id": (1, _S), "claims": (2, "Struct")},
    "WITSVIDRequest": {"spiffe_id": (1, _S)},
    "WITSVIDResponse": {"svids": (1, "repeated WITSVID")},
    "WITSVID": {"spiffe_id": (1, _S), "wit_svid": (2, _S), "wit_svid_key": (3, _S), "hint": (4, _S)},
    "WITBundlesRequest": {},
    "WITBundlesResponse": {"bundles": (1, "map string string")},
}
_KINDS = {FieldDescriptor.TYPE_STRING: _S, FieldDescriptor.TYPE_BYTES: _B}


def _kind(field: FieldDescriptor) -> str:
    if field.message_type is None:
        name = _KINDS[field.type]
    elif field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        return f"map {_kind(entry['key'])} {_kind(entry['value'])}"
    else:
        name = field.message_type.name
    return f"repeated {name}" if field.is_repeated else name


def test_messages_and_methods_are_those_of_the_specification() -> None:
    found = {
        name: {field.name: (field.number, _kind(field)) for field in message.fields}
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
    }
    assert found == _MESSAGES
    assert {
        path: (method.request.DESCRIPTOR.name, method.response.DESCRIPTOR.name, method.streams)
        for path, method in METHODS.items()
    } == {
        "/SpiffeWorkloadAPI/FetchX509SVID": ("X509SVIDRequest", "X509SVIDResponse", True),
        "/SpiffeWorkloadAPI/FetchX509Bundles": ("X509BundlesRequest", "X509BundlesResponse", True),
        "/SpiffeWorkloadAPI/FetchJWTSVID": ("JWTSVIDRequest", "JWTSVIDResponse", False),
        "/SpiffeWorkloadAPI/FetchJWTBundles": ("JWTBundlesRequest", "JWTBundlesResponse", True),
        "/SpiffeWorkloadAPI/ValidateJWTSVID": ("ValidateJWTSVIDRequest", "ValidateJWTSVIDResponse", False),
        "/SpiffeWorkloadAPI/FetchWITSVID": ("WITSVIDRequest", "WITSVIDResponse", True),
        "/SpiffeWorkloadAPI/FetchWITBundles": ("WITBundlesRequest", "WITBundlesResponse", True),
    }


def test_generated_code_suits_the_oldest_runtime_and_its_source(tmp_path: Path) -> None:
    folder = REPOSITORY / "src/aims/proto"
    generated = (folder / "workload_pb2.py").read_text()
    assert "# Protobuf Python Version: 6.31.1\n" in generated
    assert '"protobuf>=6.31,<8"' in (REPOSITORY / "pyproject.toml").read_text()
    if importlib.util.find_spec("grpc_tools") is None:
        return  # the compiler is not part of the development set; the table above holds the content
    shell = shutil.which("sh")
    assert shell is not None
    subprocess.run(
        [shell, str(REPOSITORY / "scripts/proto.sh"), str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHON": sys.executable},
        timeout=60,
    )
    for name in ("workload_pb2.py", "workload_pb2.pyi"):
        assert (tmp_path / "aims/proto" / name).read_text() == (folder / name).read_text()

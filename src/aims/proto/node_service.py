"""The three methods of ``aims.node.v1.Node``, which the node serves on agent.sock beside the Workload API's socket."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from aims.proto import node_pb2 as pb
from aims.proto.workload_service import Method

SERVICE: Final = "aims.node.v1.Node"
ID_OCTETS: Final = 16
MAX_IDS: Final = 1024  # in one message

SETTINGS = Method("Settings", pb.SettingsRequest, pb.SettingsResponse, streams=False, service=SERVICE)
WATCH = Method("Watch", pb.WatchRequest, pb.WatchResponse, streams=True, service=SERVICE)
CLAIM = Method("Claim", pb.ClaimRequest, pb.ClaimResponse, streams=True, asks=True, service=SERVICE)

METHODS: Mapping[str, Method] = MappingProxyType({method.path: method for method in (SETTINGS, WATCH, CLAIM)})

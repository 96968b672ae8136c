#!/bin/sh
# Make src/aims/proto/*_pb2.py and .pyi anew.
# A protobuf runtime refuses code that is newer than itself and runs code one major version older, so the generator is
# the oldest one that the floor in pyproject.toml allows: protoc 31.1 (grpcio-tools 1.74.0), made for protobuf 6.31.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
found="$("$python" -m grpc_tools.protoc --version)"
[ "$found" = "libprotoc 31.1" ] || { echo "needs libprotoc 31.1 (grpcio-tools 1.74.0), found: $found" >&2; exit 1; }
"$python" -m grpc_tools.protoc -Isrc --python_out="${1:-src}" --pyi_out="${1:-src}" \
  aims/proto/workload.proto aims/proto/node.proto

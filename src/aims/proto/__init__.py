"""Ground: protocol buffers and the framing of gRPC messages.

``workload.proto`` is the only source; ``workload_pb2.py`` and its ``.pyi`` are generated from it (``scripts/proto.sh``)
and checked in, so that nobody needs a compiler. ``workload_service`` says which method takes and gives which message,
``framing`` reads a message from a stream without letting the other side choose how much memory that takes.

Messages may hold private keys, and protobuf prints every field: a message is never logged, printed or kept.
"""

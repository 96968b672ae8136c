"""Ground: protocol buffers and the framing of gRPC messages.

``workload.proto`` and ``node.proto`` are the only sources; ``*_pb2.py`` and their ``.pyi`` are generated from them
(``scripts/proto.sh``) and checked in, so that nobody needs a compiler. ``workload_service`` and ``node_service`` say
which method takes and gives which message, ``framing`` reads a message from a stream without letting the other side
choose how much memory that takes.

Messages may hold private keys, and protobuf prints every field: a message is never logged, printed or kept.
"""

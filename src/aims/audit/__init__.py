"""Pillar: the audit record, the log that shows tampering, its checkpoints, and the program that verifies it.

Whoever decides something builds a record and hands it over with its ``Write``; both are committed in one transaction:

    record = recorder(
        refuse="token.refuse", type="token.issue", outcome="success", time=clock.now(), id=ids.new(),
        agent={"id": "spiffe://local.test/agents/mail"}, resource="https://localhost:9000/mcp", action="mail.read",
        decision={"effect": "permit", "policy_id": "token"}, posture={"level": "node-uid"}, request_id=request_id,
    )
    write = Write(record=record, ...)

One ``Sequencer`` in the supervisor gives every committed record its place, writes the tiles of a Merkle tree (RFC 6962
in the file layout of C2SP tlog-tiles) and signs a checkpoint. ``verify.py`` is a program of its own that imports
nothing from here: copy it, the log folder and the verification key, and run it anywhere.
"""

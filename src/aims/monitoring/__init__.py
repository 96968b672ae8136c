"""L7: who is stopped, why, and who is told.

A cause (an administrator, another party's security event) becomes an effect through one function,
``remediation.Remediation.plan``: one Write with the state, the stop, the SETs that go out and the record. Nothing here
decides beside it. Events come in by ``receiver`` and go out by ``transmitter`` and ``delivery``; ``set``, ``subjects``
and ``events`` are their wire form (RFC 8417, RFC 9493, CAEP and RISC 1.0) and do no I/O.
"""

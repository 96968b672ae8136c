"""Transaction tokens: what one request is about, carried unchanged through every service that works on it.

An access token says who may do what kind of thing; it ends at the edge. The service behind the edge trades it for a
Txn-Token: one purpose, the facts that must not change on the way (``tctx``: the amount, the account), whose right it is
and who asked. Inner services never see the access token, and a Txn-Token alone authenticates nobody: it counts only
beside a proof that covers it (``tth``), from a caller that the operation admits.

    transaction_token   the token: its kind, how it is built, how it is read (draft-ietf-oauth-transaction-tokens-11)
    derivation          what a replacement carries on from its parent, and never widens
    request             what a workload asks the service: the form and its two JSON objects
    service             the order of checks, the signature, one Write with its record
    verification        what an inner service asks before it acts: purpose, facts, caller, once
    keys, routes        keys of purpose txn-token, and the endpoint of their public halves
    field               the header field at the edges of the trust domain

Everything but ``service``, ``keys`` and ``routes`` is pure, and an inner service needs no more than the last two.
"""

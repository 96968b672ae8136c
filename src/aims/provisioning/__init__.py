"""L4: who exists, who signs, and how a credential comes into being.

    registry/    owners, agents, services, nodes and entries: what may be issued to whom, and where
    authority/   the keys of the trust domain, current and next, and what they sign
    bundles      the domain's SPIFFE bundle, and the key set of its JWT-SVIDs
    join         how a node gets its first identity: a token, once
    issuance     one pipeline from evidence to credential, its stages in a list
    routes       the node protocol, body in and body out

A service function decides and returns a ``Plan``: one guarded write with its audit record, and the answer that the
outcome makes. It commits nothing itself::

    plan = service.register_agent(registry, clock, ids, request, cause)
    agent = plan.answer(await database.commit(plan.write))

An entry names the nodes on which it may be issued. A node receives only its own entries and can ask for nothing else,
whatever it reports.
"""

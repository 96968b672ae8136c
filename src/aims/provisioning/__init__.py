"""L4: who exists, who signs, and how a credential comes into being.

    registry/    owners, agents, services, nodes and entries: what may be issued to whom, and where
    authority/   the keys of the trust domain, current and next, and what they sign
    bundles      the domain's SPIFFE bundle, and the key set of its JWT-SVIDs
    join         how a node gets its first identity: a token, once
    stages       from evidence to a decision about a credential, in one list
    issuance     the stages, the signature, and the Write
    routes       the node protocol, body in and body out

A service function decides and returns a ``Plan``: one guarded write with its audit record, and the answer that the
outcome makes. It commits nothing itself::

    service = RegistryService(registry, lambda: policy.tables, clock, ids)
    plan = service.register(Registration(kind=Kind.AGENT, name="scout", owner="team-a", ...), cause)
    registered = plan.answer(await database.commit(plan.write))

An entry names the nodes on which it may be issued. A node receives only its own entries and can ask for nothing else,
whatever it reports.
"""

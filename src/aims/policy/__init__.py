"""Pillar, AIMS layer 8: what is allowed, how much of it, and why.

Cedar says *whether*: permits and forbids over the question "may this principal do this to that, given these facts?".
Typed tables say *how much*: lifetimes, ceilings, purposes, call profiles; the lowest row wins. Both live in one
bundle, and the hash of its files is the version that every decision names:

    bundle = Bundle.shipped()
    engine = Engine(bundle)
    decision = engine.decide(
        Question(
            principal=Entity("Operator", "os:alice", {"roles": ("operator",)}),
            action="administer",
            resource=Entity("Resource", "agent.register", {"kind": "admin-route", "writes": True}),
            context={"launched": False},
        )
    )
    decision.require()  # raises PolicyError with the rule that refused
    lifetime = Tables(bundle.rows, "local.test").lifetime("access-token", "shared-uid")

Whatever cannot be evaluated is refused; whatever no row names does not exist. Nothing here does I/O except
``Bundle.from_folder`` and ``Bundle.shipped``, which read files once.
"""

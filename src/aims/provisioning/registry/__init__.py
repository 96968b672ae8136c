"""The registry: owners, agents, services, nodes, and the entries that bind them.

    model      the values
    rules      what an entry must demand, and which two may not stand side by side
    store      tables, rows and statements
    memory     the whole registry in memory, kept fresh by the change feed
    service    decisions: register, approve, ban ... each returns a Plan

Rows of workloads and nodes are never deleted: a retired one is the tombstone that keeps its name from being given
again.
"""

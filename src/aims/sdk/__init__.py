"""What agents and services import: their identity, and how to prove it and check that of others.

An agent::

    async with aims.Identity() as me, me.client() as http:
        answer = await http.post("https://localhost:8450/mcp", json={"question": 42})

A service::

    async with aims.Identity() as me:
        await serve(Middleware(app, me), me, port=8450)      # scope["aims.caller"], or caller.current()

``identity`` is the one object that both begin with (``blocking`` for code without an event loop); ``asgi`` is the
middleware, ``serving`` the TLS listener, ``mcp`` both sides of MCP, ``tokens`` the client of the authorization server.
``proofs`` makes proofs without any HTTP library; ``httpx2`` is its adapter. Below, ``live`` keeps everything fresh from
the node's two sockets: ``workload_client`` speaks the SPIFFE Workload API, also of other implementations,
``node_client`` the node's own agent.sock.
"""

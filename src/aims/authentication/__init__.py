"""L5: who is calling, proved anew by each request.

A credential alone authenticates nobody. A request is believed when the credential is valid, a proof by its key covers
*this* request, no stop has hit its names, and the proof was never shown before, in that order::

    door = CallVerifier(rules, WitVerifier(anchors, own=domain), stops, window, clock)
    request = HttpRequest.of("POST", "https://tool.example/mcp", headers)
    caller = await door.authenticate(request)        # AuthenticationError, authentication.<reason>

Each proof has a module: ``wpt`` (Workload Proof Token), ``dpop`` (RFC 9449), and ``peer`` for mutual TLS, where the
handshake is the proof. ``liveness`` knows what was stopped, ``replay`` what was shown before. All of it is pure: time,
identifiers and keys come in, and the one thing that is awaited is the replay window.
"""

"""L2: what a workload shows: X509-SVID, JWT-SVID, Workload Identity Token, and the bundles that they are judged by.

Each module is one document: it builds what an authority signs, and validates what a peer shows. Validation takes the
bundle of the trust domain that the credential itself names, never a pool of several, and a time::

    svid = jwt_svid.validate(text, bundles, audience="https://tool.example", now=clock.now(), own=trust_domain)
    token = wit.validate(text, anchors, now=clock.now(), own=trust_domain)  # then a proof of its key must follow

A WIT is never a bearer token: what ``wit.validate`` returns authenticates nobody until a proof by its ``confirmation``
key was verified too. Credentials of our own trust domain carry ``instance`` and ``epoch``; without them they are
refused, because no stop could reach them.
"""

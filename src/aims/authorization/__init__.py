"""L6: the OAuth authorization server for machines: who gets which right, from whom, for how long, and how it ends.

An agent authenticates with its SVID and gets an access token for one registered resource; it may hand on less than it
holds to another agent, which exchanges what it was given under its own name. Every right is

    the parent's grant  ∧  the agent's ceiling  ∧  what was asked

and nothing asked, nothing given, nothing listed is nothing. Every token names whose stop ends it.

    form, scope, authorization_details   what a request says, strictly
    client_authentication                who asks: X509-SVID, or a JWT-SVID that is bound to a key
    grants/                              what each grant type makes of it
    access_token                         the token itself (RFC 9068): build it, read it, hold it against its presenter
    delegation                           chains of actors (RFC 8693 4.1)
    service                              the order of checks, the signature, one Write with its record
    revocation, store                    grants as rows, and how one ends with everything below it
    keys, metadata                       keys of purpose access-token, RFC 8414 and 9728 documents
    routes                               the endpoints
    model, principals, records, flood    what deciding needs, who is meant, what is recorded, how often for strangers
    people/, transactions/               consent of people; tokens for one request inside of the trust domain

``access_token``, ``delegation``, ``scope``, ``authorization_details`` and ``errors`` do no I/O and know no server: a
resource server needs nothing else.

Sources: RFC 6749, 7009, 8414, 8693, 8705, 8707, 9068, 9396, 9449, 9700, 9728; draft-ietf-oauth-spiffe-client-auth-02;
draft-ietf-oauth-rfc7523bis.
"""

"""People: how somebody logs in, gives an agent a right, and takes it back.

There are no passwords. An administrator makes a person and a login link; the browser that opens the link owns it, and a
button on the page uses it up. An agent sends the person's browser to the authorization endpoint (OAuth 2.1 code with
PKCE); the page says in words which agent, whose, wants what of which tool and until when. What the person approves is a
grant: one row, the root of everything that is delegated below it, ended by one click on the page of grants.

    pkce, redirect, request    what an authorization request says, strictly; pure
    store                      people, links, sessions, requests, codes
    login                      links and sessions
    consent                    from a request to a grant and its code, or to a refusal; what was granted, withdrawn
    code_grant                 what the token endpoint makes of a code
    pages                      the HTML, without any script

Everything that happens once (link, decision, code) is consumed by the store in the Write that acts on it. In records a
person is a commitment, never an identifier; the fence on the person's name is in every Write.
"""

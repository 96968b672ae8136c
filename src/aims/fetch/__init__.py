"""Ground: the one door for outbound HTTP. No other room opens a connection to an address that somebody else named.

An address that comes from outside (an endpoint, a ``jwks_uri``, a metadata document) can point at ourselves, at the
cloud's metadata service, or change between looking and connecting. So: https only, the name is resolved once, every
address is judged, the connection goes to the judged address and to nothing else (name and certificate stay those of the
URL), redirects are not followed, and size, time and type of the answer are bounded::

    answer = await Fetcher().fetch(Request(url="https://rp.example/events", method="POST", body=token))

``httpcore2``'s parser ``h11`` makes the requests here and nowhere else.
"""

from aims.fetch.errors import FetchError
from aims.fetch.fetcher import Fetcher, Limits, Request, Response
from aims.fetch.url import Endpoint, parse_url

__all__ = ["Endpoint", "FetchError", "Fetcher", "Limits", "Request", "Response", "parse_url"]

"""The certificate door: bounded parsing, path validation against one trust domain, and issuing.

    chain = parse_chain(der)                       # leaf first, at most ten certificates of 16 KiB
    verify_chain(chain[0], chain[1:], roots, now)   # roots of ONE trust domain, never a pool

    authority = build_ca(key, uri="spiffe://acme.example", serial=serial, now=now, lifetime=86400 * 30)
    issuer = LeafIssuer(authority, key)
    uri = "spiffe://acme.example/agents/a"
    svid = issuer.issue(public_key=parse_csr(csr), uri=uri, serial=other, now=now, lifetime=3600)

Nothing here reads a clock or a random source, and nothing knows what a SPIFFE ID is: `aims.credentials` does.
"""

from aims.x509.chain import verify_chain
from aims.x509.csr import parse_csr
from aims.x509.epoch import Epoch
from aims.x509.errors import X509Error
from aims.x509.issue import LeafIssuer, build_ca, serial_from
from aims.x509.parse import parse_certificate, parse_chain, parse_pem

__all__ = [
    "Epoch",
    "LeafIssuer",
    "X509Error",
    "build_ca",
    "parse_certificate",
    "parse_chain",
    "parse_csr",
    "parse_pem",
    "serial_from",
    "verify_chain",
]

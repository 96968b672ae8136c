"""TLS contexts, both ends in memory: who is let through, and what leaves before that is known."""

from __future__ import annotations

import os
import pickle
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from tests.properties.tls_material import (
    AGENT,
    BUNDLES,
    CLOCK,
    FOREIGN,
    IMPOSTOR,
    OTHER_TD,
    OWN_BUNDLES,
    TD,
    TOOL,
    A,
    B,
    Workload,
    joined,
)
from tests.properties.x509_material import HOUR, LEAF, NOW, Domain, ca_extensions, forge, name, serial, uris

from aims.credentials.bundle import Bundle, BundleSet
from aims.credentials.errors import CredentialError
from aims.credentials.mtls import (
    expected_roots,
    peer_check,
    peer_svid,
    renew,
    spiffe_client_context,
    spiffe_server_context,
)
from aims.credentials.x509_svid import X509Svid
from aims.errors import AimsError
from aims.identifiers import SpiffeId
from aims.keys import Purpose, generate
from aims.tls import (
    PeerRefused,
    RotatingContext,
    TlsError,
    TlsIdentity,
    client_context,
    mtls_server_context,
    peer,
    public_server_context,
)
from aims.tls.presented import presented
from aims.x509 import X509Error
from aims.x509.issue import build_localhost, build_tls_ca

TOOL_END, AGENT_END, FOREIGN_END = Workload(TOOL), Workload(AGENT), Workload(FOREIGN, B)
IMPOSTOR_END = Workload(IMPOSTOR)


def _server(end: Workload = TOOL_END, bundles: BundleSet = BUNDLES) -> RotatingContext:
    return spiffe_server_context(end.identity, bundles, CLOCK, own=TD)


def _client(end: Workload | None = AGENT_END, expected: Any = TOOL, bundles: BundleSet = BUNDLES) -> ssl.SSLContext:
    identity = None if end is None else end.identity
    return spiffe_client_context(identity, bundles, CLOCK, expected=expected, own=TD)


def _lying(uri: str, domain: Domain) -> TlsIdentity:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = forge(
        subject=x509.Name([]),
        issuer=domain.root.subject,
        key=key,
        signer=domain.key.certificate_key(),
        extensions=(*LEAF, (uris(uri), True)),
    )
    return TlsIdentity((leaf,), key)


def _anybody(identity: TlsIdentity) -> ssl.SSLContext:
    return mtls_server_context(identity, (A.root, B.root), lambda chain: chain)


def _code(errors: list[ssl.SSLError]) -> str:
    assert errors
    return errors[0].refusal.code if isinstance(errors[0], PeerRefused) else f"openssl {errors[0].reason}"


def _transfer(sender: ssl.SSLObject, receiver: ssl.SSLObject, data: bytes) -> None:
    assert sender.write(data) == len(data)
    assert receiver.read(100) == data


def _refused(reason: str, kind: type[AimsError] = TlsError) -> pytest.RaisesExc[AimsError]:
    return pytest.raises(kind, check=lambda error: error.reason == reason)


@pytest.mark.parametrize("host", [None, "localhost", "tool.example"])
def test_both_ends_know_each_other(host: str | None) -> None:
    client, server, errors = joined(_client(), _server(), name=host)
    assert not errors
    assert peer_svid(client).leaf == TOOL_END.svid.leaf
    assert peer_svid(server).leaf == AGENT_END.svid.leaf
    assert client.version() == server.version() == "TLSv1.3"
    assert client.selected_alpn_protocol() is None
    _transfer(client, server, b"request")
    _transfer(server, client, b"response")
    # a check that ran is not run again by later handshake calls
    found = peer_svid(client)
    client.do_handshake()
    assert peer_svid(client) is found


@pytest.mark.parametrize(
    ("identity", "code"),
    [
        (IMPOSTOR_END.identity, "credentials.x509_unexpected_peer"),
        (AGENT_END.identity, "credentials.x509_unexpected_peer"),
        (Workload(TOOL, fence=None).identity, "credentials.unfenced"),
        (Workload(SpiffeId.service(OTHER_TD, "tool"), B).identity, "openssl CERTIFICATE_VERIFY_FAILED"),
        (_lying(str(TOOL), B), "openssl CERTIFICATE_VERIFY_FAILED"),
        (_lying(str(TOOL), Domain("a.test")), "openssl CERTIFICATE_VERIFY_FAILED"),
        (_lying("https://tool", A), "credentials.x509_spiffe_id"),
        (TlsIdentity((A.root,), A.key.certificate_key()), "openssl CERTIFICATE_VERIFY_FAILED"),
    ],
)
def test_no_octet_reaches_an_impostor(identity: TlsIdentity, code: str) -> None:
    client, server, errors = joined(_client(), _anybody(identity), name="localhost")
    assert _code(errors) == code
    with pytest.raises(ssl.SSLError):
        client.write(b"secret")
    with pytest.raises(ssl.SSLError):
        server.read(100)
    with _refused("no_peer"):
        peer_svid(client)


def test_a_listed_set_is_accepted_and_an_empty_one_is_not_built() -> None:
    _, _, errors = joined(_client(expected={TOOL, IMPOSTOR}), _anybody(IMPOSTOR_END.identity))
    assert not errors
    both = _client(expected=frozenset({TOOL, SpiffeId.service(OTHER_TD, "tool")}))
    # two domains' authorities pass OpenSSL's sieve; the check still asks one of them
    _, _, errors = joined(both, _anybody(_lying(str(TOOL), B)))
    assert _code(errors) == "credentials.x509_untrusted"
    with _refused("x509_unexpected_peer", CredentialError):
        _client(expected=frozenset())
    with _refused("x509_no_trust_anchor", CredentialError):
        _client(expected=SpiffeId.parse("spiffe://c.test/x"))
    with _refused("x509_no_trust_anchor", CredentialError):
        expected_roots(BundleSet([Bundle(trust_domain=TD)]), TOOL)


def test_data_before_the_handshake_is_refused() -> None:
    bios = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = _client().wrap_bio(*bios, server_hostname="x")
    for use in (lambda: client.write(b"x"), lambda: client.read(1)):
        with pytest.raises(PeerRefused) as caught:
            use()
        assert caught.value.refusal.code == "tls.unverified"
    assert not bios[1].pending
    assert presented(client) == ()
    left, right = socket.socketpair()
    with left, right:
        wrapped = _client().wrap_socket(left, do_handshake_on_connect=False, server_hostname="x")
        for act in (
            lambda: wrapped.write(b"x"),
            lambda: wrapped.send(b"x"),
            lambda: wrapped.sendall(b"x"),
            lambda: wrapped.read(1),
            lambda: wrapped.recv(1),
            lambda: wrapped.recv_into(bytearray(1)),
        ):
            with pytest.raises(PeerRefused):
                act()
        wrapped.close()


@pytest.mark.parametrize(
    ("identity", "code"),
    [
        (FOREIGN_END.identity, ""),
        (_lying(str(AGENT), B), "credentials.x509_untrusted"),
        (_lying("spiffe://b.test/x", A), "credentials.x509_untrusted"),
        (_lying("spiffe://c.test/x", A), "credentials.x509_no_trust_anchor"),
        (_lying(str(AGENT), A), "credentials.unfenced"),
        (_lying(str(AGENT), Domain("a.test")), "openssl CERTIFICATE_VERIFY_FAILED"),
        (None, "openssl PEER_DID_NOT_RETURN_A_CERTIFICATE"),
    ],
)
def test_a_listener_judges_each_client_by_its_own_domain(identity: TlsIdentity | None, code: str) -> None:
    client = client_context(identity, (A.root,), peer_check(lambda: BUNDLES, CLOCK, expected=TOOL))
    _, server, errors = joined(client, _server())
    if code:
        assert _code(errors) == code
        with pytest.raises(ssl.SSLError):
            server.read(1)
        with _refused("no_peer"):
            peer_svid(server)
    else:
        assert not errors
        assert peer_svid(server) == FOREIGN_END.svid


def test_without_authorities_nobody_is_let_in() -> None:
    empty = BundleSet()
    _, _, errors = joined(_client(), _server(bundles=empty))
    assert _code(errors) == "openssl CERTIFICATE_VERIFY_FAILED"
    nobody = client_context(AGENT_END.identity, (), peer_check(lambda: empty, CLOCK))
    _, _, errors = joined(nobody, _server())
    assert _code(errors) == "openssl CERTIFICATE_VERIFY_FAILED"


def test_an_authority_signed_by_another_is_an_anchor_too() -> None:
    key, top = ec.generate_private_key(ec.SECP256R1()), Domain("top.test")
    middle = forge(
        subject=name("m"),
        issuer=top.root.subject,
        key=key,
        signer=top.key.certificate_key(),
        extensions=ca_extensions(),
    )
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    leaf = forge(
        subject=x509.Name([]),
        issuer=name("m"),
        key=leaf_key,
        signer=key,
        extensions=(*LEAF, (uris("spiffe://c.test/x"), True)),
    )
    who = SpiffeId.parse("spiffe://c.test/x")
    bundles = BundleSet([Bundle(trust_domain=who.trust_domain, x509_authorities=(middle,))])
    client, _, errors = joined(_client(expected=who, bundles=bundles), _anybody(TlsIdentity((leaf,), leaf_key)))
    assert not errors
    assert peer_svid(client).spiffe_id == who


def test_only_tls_1_3_is_spoken() -> None:
    for context in (_client(), _server()._inner, public_server_context(TOOL_END.identity)):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.options & ssl.OP_NO_TICKET
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    AGENT_END.identity.load_into(old)
    _, _, errors = joined(old, _server())
    assert errors


def _talk(client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Any:
    """One exchange over blocking sockets; the client's session, or what it raised."""
    left, right = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(right, server_side=True) as end:
                end.sendall(b"hello")
                end.recv(1)
        except OSError:
            right.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(left, server_hostname="localhost", session=session) as end:
            assert end.recv(5) == b"hello"
            end.sendall(b"x")
            return end.session
    except ssl.SSLError as error:
        left.close()
        return error
    finally:
        thread.join(10)
        assert not thread.is_alive()


def test_blocking_sockets_are_checked_as_well() -> None:
    assert not isinstance(_talk(_client(), _server()), Exception)
    found = _talk(_client(), _anybody(IMPOSTOR_END.identity))
    assert isinstance(found, PeerRefused)
    assert found.refusal.code == "credentials.x509_unexpected_peer"
    assert isinstance(found, ssl.SSLError)
    assert "spiffe" not in str(found)


def test_no_session_is_resumed() -> None:
    ours = _talk(_client(), _server()._inner)
    assert not ours.has_ticket
    foreign = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    TOOL_END.identity.load_into(foreign)
    client = _client()
    session = _talk(client, foreign)
    assert session.has_ticket
    refused = _talk(client, foreign, session)
    assert isinstance(refused, PeerRefused)
    assert refused.refusal.code == "tls.resumed"


def test_what_was_presented_comes_leaf_first_on_both_sides() -> None:
    long = TlsIdentity((*TOOL_END.svid.chain, A.root), TOOL_END.key)
    client, server, errors = joined(_client(), spiffe_server_context(long, BUNDLES, CLOCK))
    assert not errors
    # OpenSSL completes a chain of one certificate from the trusted roots by itself
    assert b"".join(presented(client)) == TOOL_END.svid.der + A.root.public_bytes(Encoding.DER)
    assert b"".join(presented(server)) == AGENT_END.svid.der + A.root.public_bytes(Encoding.DER)
    client, server, errors = joined(client_context(FOREIGN_END.identity, (A.root,), lambda chain: chain), _server())
    assert not errors
    assert b"".join(presented(server)) == FOREIGN_END.svid.der


def test_a_check_that_returns_nothing_accepts_nobody() -> None:
    client = client_context(AGENT_END.identity, (A.root,), lambda _: None)
    _, _, errors = joined(client, _server())
    assert _code(errors) == "tls.no_peer"
    with _refused("no_peer"):
        peer(object(), X509Svid)
    blind = client_context(AGENT_END.identity, (A.root,), lambda chain: chain)
    end, _, errors = joined(blind, _server())
    assert not errors
    with _refused("no_peer"):
        peer(end, X509Svid)


def test_keys_reach_tls_without_touching_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = ssl.SSLContext.load_cert_chain

    def spy(self: ssl.SSLContext, path: str) -> None:
        opened.append(os.readlink(path))  # noqa: PTH115  a path of the proc file system
        real(self, path)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spy)
    before = set(Path("/proc/self/fd").iterdir())
    TOOL_END.identity.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert opened == ["/memfd:aims-tls (deleted)"]
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_anchors_that_cannot_be_loaded_build_no_context() -> None:
    class Junk:
        def public_bytes(self, _: object) -> bytes:
            return b"\x30\x03\x02\x01\x01"

    junk: Any = Junk()
    with _refused("roots"):
        client_context(AGENT_END.identity, (junk,), lambda chain: chain)
    server = _server()
    with _refused("roots"):
        server.update(TOOL_END.identity, (junk,), lambda chain: chain)
    _, _, errors = joined(_client(), server)
    assert not errors


def test_identities_that_cannot_be_shown_are_refused() -> None:
    with _refused("identity"):
        TlsIdentity(TOOL_END.svid.chain, AGENT_END.key)
    with _refused("identity"):
        TlsIdentity((), AGENT_END.key)
    assert "rivate" not in repr(TOOL_END.identity)
    with pytest.raises(TypeError):
        pickle.dumps(TOOL_END.identity)

    class Device:
        def public_key(self) -> ec.EllipticCurvePublicKey:
            return TOOL_END.key.public_key()

        def private_bytes(self, *_: object) -> bytes:
            raise NotImplementedError

    device: Any = Device()
    with _refused("not_exportable"):
        TlsIdentity(TOOL_END.svid.chain, device).load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


@pytest.mark.parametrize("host", [None, "localhost"])
def test_new_handshakes_see_the_new_svid_and_the_new_bundles(host: str | None) -> None:
    server, new = _server(), Workload(TOOL)
    foreign = client_context(FOREIGN_END.identity, (A.root,), peer_check(lambda: BUNDLES, CLOCK, expected=TOOL))
    old_client, old_server, errors = joined(foreign, server, name=host)
    assert not errors
    changes: list[bool] = []
    server.on_change(lambda: changes.append(server.still_accepts(old_server)))
    renew(server, new.identity, BUNDLES, CLOCK, own=TD)
    client, _, errors = joined(_client(), server, name=host)
    assert not errors
    assert peer_svid(client).leaf == new.svid.leaf != TOOL_END.svid.leaf
    renew(server, new.identity, OWN_BUNDLES, CLOCK, own=TD)
    assert changes == [True, False]
    _transfer(old_client, old_server, b"the owner closes it")
    _, _, errors = joined(foreign, server, name=host)
    assert _code(errors) == "openssl CERTIFICATE_VERIFY_FAILED"
    _, _, errors = joined(_client(), server, name=host)
    assert not errors


def test_a_handshake_that_ends_after_a_removal_is_refused() -> None:
    server = _server()
    foreign = client_context(FOREIGN_END.identity, (A.root,), peer_check(lambda: BUNDLES, CLOCK, expected=TOOL))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    left = foreign.wrap_bio(to_client, to_server, server_hostname="x")
    right = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (left, right):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    left.do_handshake()
    renew(server, TOOL_END.identity, OWN_BUNDLES, CLOCK, own=TD)
    with pytest.raises(PeerRefused) as caught:
        right.do_handshake()
    assert caught.value.refusal.code == "credentials.x509_no_trust_anchor"


def test_a_failed_update_changes_nothing() -> None:
    server = _server()
    called: list[int] = []
    server.on_change(lambda: called.append(1))
    with _refused("identity"):
        server.update(None, (), lambda chain: chain)

    def boom(_: object) -> object:
        raise X509Error("malformed")

    bad: Any = TlsIdentity(TOOL_END.svid.chain, TOOL_END.key)
    object.__setattr__(bad, "key", AGENT_END.key)
    with _refused("identity"):
        server.update(bad, (), boom)
    assert not called
    _, _, errors = joined(_client(), server)
    assert not errors


def test_clients_rotate_too_and_keep_their_protocols() -> None:
    checks = peer_check(lambda: BUNDLES, CLOCK, expected=TOOL)
    client = RotatingContext.client(AGENT_END.identity, (A.root,), checks)
    client.set_alpn_protocols(["http/1.1"])
    server = _server()
    server.set_alpn_protocols(["http/1.1"])
    new = Workload(AGENT)
    client.update(new.identity, (A.root,), checks)
    end, other, errors = joined(client, server, name="localhost")
    assert not errors
    assert peer_svid(other).leaf == new.svid.leaf
    assert end.selected_alpn_protocol() == "http/1.1"
    assert client.still_accepts(end)
    client.update(new.identity, (A.root,), peer_check(lambda: BUNDLES, CLOCK, expected=IMPOSTOR))
    assert not client.still_accepts(end)
    left, right = socket.socketpair()
    with left, right:
        plain = client.wrap_socket(left, do_handshake_on_connect=False, server_hostname="x")
        assert not client.still_accepts(plain)
        plain.close()


def test_the_public_listener_asks_for_no_certificate() -> None:
    authority = generate(Purpose.TLS_PUBLIC)
    root = build_tls_ca(authority, serial=serial(), now=NOW, lifetime=24 * HOUR)
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = build_localhost(root, authority, public_key=key.public_key(), serial=serial(), now=NOW, lifetime=HOUR)
    server = public_server_context(TlsIdentity((leaf,), key))
    browser = ssl.create_default_context(cadata=root.public_bytes(Encoding.PEM).decode())
    client, end, errors = joined(browser, server, name="localhost")
    assert not errors
    _transfer(client, end, b"GET")
    with _refused("no_peer"):
        peer_svid(end)
    assert not isinstance(_talk(browser, server), Exception)
    _, _, errors = joined(browser, server, name="bank.example")
    assert errors

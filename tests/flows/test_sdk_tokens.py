"""Asking the authorization server: what is sent, what is believed, and what a refusal becomes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import msgspec
import pytest
from tests.flows.sdk_world import AGENT, OTHER, Seat, resource, world

from aims.authentication import dpop
from aims.authentication.request import HttpRequest
from aims.sdk.blocking import BlockingIdentity
from aims.sdk.errors import CallRefusedError, SdkError
from aims.sdk.identity import Identity
from aims.sdk.proofs import AnswerFacts, RequestFacts

URL = "https://localhost:8450/mcp-oauth"
ISSUER = "https://localhost:8440"
MTLS = "https://localhost:8441"
METADATA: dict[str, Any] = {
    "issuer": ISSUER,
    "jwks_uri": f"{ISSUER}/oauth/jwks",
    "token_endpoint": f"{ISSUER}/oauth/token",
    "mtls_endpoint_aliases": {"token_endpoint": f"{MTLS}/oauth/token"},
}
GRANTED: dict[str, Any] = {"access_token": "a.b.c", "token_type": "DPoP", "expires_in": 300, "scope": "refund"}


async def _parts(document: Any) -> AsyncIterator[bytes]:
    yield msgspec.json.encode(document)


class Server:
    """Both listeners of an authorization server, without sockets."""

    def __init__(self) -> None:
        self.metadata: Any = METADATA
        self.answer: Any = GRANTED
        self.status = 200
        self.asked: list[httpx2.Request] = []

    def public(self, request: httpx2.Request) -> httpx2.Response:
        document = {"keys": []} if request.url.path.endswith("jwks") else self.metadata
        return httpx2.Response(200, content=_parts(document))

    def mtls(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        return httpx2.Response(self.status, content=_parts(self.answer))


@contextlib.asynccontextmanager
async def place() -> AsyncIterator[tuple[Identity, Server, Seat]]:
    async with world({URL: resource(URL, profile="oauth-bound")}) as node:
        seat = await node.seat(AGENT)
        async with seat.identity() as me:
            server = Server()
            await _mocked(me, server)
            yield me, server, seat


async def test_a_token_is_asked_for_over_mutual_tls_with_a_proof_by_its_key() -> None:
    async with place() as (me, server, seat):
        token = await me.token(resource=URL, scope="refund")
        (asked,) = server.asked
        assert (str(asked.url), asked.method) == (f"{MTLS}/oauth/token", "POST")
        assert parse_qs(asked.content.decode()) == {
            "grant_type": ["client_credentials"],
            "resource": [URL],
            "scope": ["refund"],
            "client_id": [str(AGENT)],
        }
        now = me.clock.now()
        sent = HttpRequest.of("POST", str(asked.url), [("dpop", asked.headers["dpop"])])
        proof = dpop.verify_proof(sent, now=now, jkt=seat.workload.proof_kid)
        assert (token.audience, token.scopes, token.key.kid) == (URL, frozenset({"refund"}), proof.jkt)
        assert now + 290 < token.expires <= now + 300
        assert "a.b.c" not in repr(token)


async def test_a_right_is_handed_on_narrowed_and_taken_up_in_the_words_of_token_exchange() -> None:
    async with place() as (me, server, _):
        own = await me.token(resource=URL, scope="refund audit")
        handed = await me.delegate(own, to=OTHER, scope="refund")
        await me.exchange(handed.text, resource=URL, scope="refund", details='[{"type":"refund"}]')
        forms = [parse_qs(asked.content.decode()) for asked in server.asked[1:]]
        assert [form["subject_token"] for form in forms] == [["a.b.c"], ["a.b.c"]]
        assert (forms[0]["audience"], forms[0]["scope"]) == ([str(OTHER)], ["refund"])
        assert "resource" not in forms[0]
        assert (forms[1]["resource"], forms[1]["authorization_details"]) == ([URL], ['[{"type":"refund"}]'])
        assert handed.audience == str(OTHER)


async def test_a_refusal_keeps_the_servers_code_and_hint() -> None:
    async with place() as (me, server, _):
        server.status = 400
        server.answer = {
            "error": "invalid_scope",
            "error_description": "Wide.",
            "aims_error": "authorization.scope_ceiling",
        }
        with pytest.raises(CallRefusedError) as refused:
            await me.token(resource=URL, scope="everything")
        assert (refused.value.status, refused.value.service_code) == (400, "authorization.scope_ceiling")
        server.status, server.answer = 200, GRANTED
        assert (await me.token(resource=URL, scope="refund")).text == "a.b.c"


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://elsewhere.example"},
        {"issuer": f"{ISSUER}/"},
        {"jwks_uri": "https://elsewhere.example/jwks"},
        {"mtls_endpoint_aliases": {"token_endpoint": "https://elsewhere.example/token"}},
        {"mtls_endpoint_aliases": {}},
    ],
)
async def test_metadata_of_another_issuer_is_not_believed(change: dict[str, Any]) -> None:
    async with place() as (me, server, _):
        server.metadata = {**METADATA, **change}
        with pytest.raises(SdkError, match=r"sdk\.issuer_invalid"):
            await me.token(resource=URL, scope="refund")
        assert server.asked == []
        server.metadata = METADATA
        await me.token(resource=URL, scope="refund")
        assert len(await me.issuer_keys().current()) == 0


@pytest.mark.parametrize(
    "change", [{"token_type": "Bearer"}, {"expires_in": 0}, {"expires_in": 10**6}, {"access_token": ""}, {"scope": 7}]
)
async def test_an_answer_that_is_no_bound_token_is_refused(change: dict[str, Any]) -> None:
    async with place() as (me, server, _):
        server.answer = {**GRANTED, **change}
        with pytest.raises(SdkError, match=r"sdk\.issuer_invalid"):
            await me.token(resource=URL, scope="refund")
        server.answer = GRANTED
        await me.token(resource=URL, scope="refund")


async def test_a_server_that_is_away_is_told_from_one_that_refuses() -> None:
    async with world({URL: resource(URL)}) as node:
        seat = await node.seat(AGENT)
        node.issuer_url = "https://localhost:9"
        node.full()
        async with seat.identity() as me:
            with pytest.raises(SdkError, match=r"sdk\.issuer_unreachable"):
                await me.token(resource=URL, scope="refund")


async def test_a_nonce_is_used_once_it_is_asked_for_and_only_one_more_time() -> None:
    async with place() as (me, _, _):
        token = await me.token(resource=URL, scope="refund")
        prove = me.prover(None, None, token)
        challenge = {"www-authenticate": 'DPoP error="use_dpop_nonce"', "dpop-nonce": "n-1"}
        proof = prove(RequestFacts("POST", URL))
        first = next(proof)
        second = proof.send(AnswerFacts(401, challenge))
        assert first["authorization"] == second["authorization"] == "DPoP a.b.c"
        sent = HttpRequest.of("POST", URL, [("dpop", second["dpop"])])
        dpop.verify_proof(sent, now=me.clock.now(), access_token="a.b.c", nonces={"n-1"})
        with pytest.raises(StopIteration):
            proof.send(AnswerFacts(401, {**challenge, "dpop-nonce": "n-2"}))
        later = next(prove(RequestFacts("POST", URL)))
        sent = HttpRequest.of("POST", URL, [("dpop", later["dpop"])])
        dpop.verify_proof(sent, now=me.clock.now(), access_token="a.b.c", nonces={"n-2"})
        for answer in (AnswerFacts(200, challenge), AnswerFacts(401, {"dpop-nonce": "n-3"})):
            other = prove(RequestFacts("GET", URL))
            next(other)
            with pytest.raises(StopIteration):
                other.send(answer)


async def test_code_without_an_event_loop_asks_people_and_carries_transactions() -> None:
    async with place() as (me, server, seat):
        server.metadata = METADATA | {"authorization_endpoint": f"{ISSUER}/oauth/authorize"}

        def work() -> None:
            with BlockingIdentity(seat.address, clock=me.clock) as blocking:
                client = blocking._wait(_mocked(blocking._identity, server))
                asked = blocking.ask_person(resource=URL, scope="refund", redirect_uri="http://127.0.0.1/cb")
                query = parse_qs(urlsplit(asked.url).query)
                assert (query["client_id"], query["redirect_uri"]) == ([str(AGENT)], ["http://127.0.0.1/cb"])
                with pytest.raises(SdkError, match=r"sdk\.answer_invalid"):
                    blocking.redeem(asked, "http://127.0.0.1/cb?code=c&state=other")
                back = httpx2.QueryParams({"code": "c", "state": query["state"][0], "iss": ISSUER})
                assert blocking.redeem(asked, f"http://127.0.0.1/cb?{back}").text == "a.b.c"
                server.answer = {
                    "access_token": "t.x.n",
                    "token_type": "N_A",
                    "issued_token_type": "urn:ietf:params:oauth:token-type:txn_token",
                }
                txn = blocking.transaction("a.b.c", purpose="refund", details={"amount": 7})
                assert txn == "t.x.n"
                sent: list[httpx2.Request] = []

                def keep(request: httpx2.Request) -> httpx2.Response:
                    sent.append(request)
                    return httpx2.Response(200)

                with blocking.client(txn_token=txn, transport=httpx2.MockTransport(keep)) as http:
                    assert http.post(URL).status_code == 200
                assert sent[0].headers["txn-token"] == "t.x.n"
                blocking._wait(client.close())

        await asyncio.wait_for(asyncio.to_thread(work), 30)
        forms = [parse_qs(asked.content.decode()) for asked in server.asked]
        assert [form["grant_type"][0].rpartition(":")[2] for form in forms] == ["authorization_code", "token-exchange"]
        assert (forms[0]["code"], forms[1]["scope"]) == (["c"], ["refund"])
        assert forms[1]["request_details"] == ['{"amount":7}']


async def _mocked(me: Identity, server: Server) -> Any:
    """Put ``server`` in the place of the one that ``me`` asks."""
    client = me._server()
    await client.close()
    client._public = httpx2.AsyncClient(transport=httpx2.MockTransport(server.public))
    client._mtls = httpx2.AsyncClient(transport=httpx2.MockTransport(server.mtls))
    return client

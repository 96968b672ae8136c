"""`Identity` against a node on real sockets: what it takes, keeps, rotates, gives up, and what it says without one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from tests.flows.sdk_world import AGENT, TOOL, knows, resource, world
from tests.flows.workload_api_fake import until

import aims
from aims.identifiers import SpiffeId
from aims.sdk.endpoint import workload_endpoint
from aims.sdk.errors import SdkError
from aims.sdk.identity import Identity
from aims.sdk.serving import PortInUseError, listening, serve
from aims.sdk.tokens import Token

URL = "https://localhost:8450/mcp"


async def test_an_identity_is_there_with_everything_once_it_is_entered() -> None:
    async with world({URL: resource(URL)}) as node:
        seat = await node.seat(AGENT)
        async with seat.identity() as me:
            assert me.spiffe_id == AGENT
            assert me.settings.resources[0].peer == TOOL
            assert await me.jwt_svid("urn:x") == "jwt-for-urn:x"
            assert repr(me) == f"Identity({AGENT})"
            await knows(me)


async def test_no_node_is_said_at_once_and_a_silent_one_in_time(tmp_path: Path) -> None:
    with pytest.raises(SdkError) as refused:
        async with Identity(f"unix://{tmp_path}/none.sock"):
            pass
    assert refused.value.code == "sdk.no_node"
    async with world() as node:
        seat = await node.seat(AGENT)
        node.feed._ready.clear()
        node.feed._settings = None
        with pytest.raises(SdkError) as refused:
            async with seat.identity(seconds=0.3):
                pass
        assert refused.value.code == "sdk.no_node"


async def test_a_process_without_identity_is_told_so_at_once() -> None:
    async with world() as node:
        seat = await node.seat(AGENT)
        seat.withdraw()
        with pytest.raises(SdkError) as refused:
            async with seat.identity():
                pass
        assert refused.value.code == "sdk.not_entitled"


async def test_what_is_withdrawn_is_refused_by_the_next_call_and_comes_back() -> None:
    async with world({URL: resource(URL)}) as node:
        seat = await node.seat(AGENT)
        async with seat.identity() as me:
            auth = me.auth()
            assert next(auth.auth_flow(httpx2.Request("POST", URL))).headers["authorization"].startswith("WPT ")
            seat.withdraw()
            await until(lambda: me.live.proof is None)
            with pytest.raises(SdkError) as refused:
                next(auth.auth_flow(httpx2.Request("POST", URL)))
            assert refused.value.code == "sdk.stopped"
            with pytest.raises(SdkError) as refused:
                me.ssl_context(url=URL)
            assert refused.value.code == "sdk.stopped"
            seat.renew()
            await until(lambda: me.live.proof is not None and me.live.tls is not None)
            next(auth.auth_flow(httpx2.Request("POST", URL)))


async def test_an_identity_that_is_not_in_use_says_so(tmp_path: Path) -> None:
    me = Identity(f"unix://{tmp_path}/none.sock")
    with pytest.raises(SdkError) as refused:
        _ = me.spiffe_id
    assert refused.value.code == "sdk.not_started"


async def test_credentials_rotate_behind_the_same_objects() -> None:
    async with world({URL: resource(URL)}) as node:
        seat = await node.seat(AGENT)
        async with seat.identity() as me:
            auth, context, server = me.auth(), me.ssl_context(url=URL), me.server_context()
            before = next(auth.auth_flow(httpx2.Request("POST", URL))).headers["workload-identity-token"]
            first = me.live.tls
            seat.renew()
            await until(lambda: me.live.tls is not first)
            await until(lambda: me.live.proof is not None and me.live.proof.wit != before)
            assert me.ssl_context(url=URL) is context
            assert next(auth.auth_flow(httpx2.Request("POST", URL))).headers["workload-identity-token"] != before
            assert server is not context


async def test_the_peer_comes_from_the_map_or_is_named_and_is_never_guessed() -> None:
    other = "https://localhost:8451/mcp"
    async with world({URL: resource(URL), other: resource(other, peer=AGENT, id="other")}) as node:
        seat = await node.seat(AGENT)
        async with seat.identity() as me:
            assert me.ssl_context(url=f"{URL}/deeper?x=1") is me.ssl_context(str(TOOL))
            assert me.ssl_context(url=other) is not me.ssl_context(url=URL)
            for given in ({"url": "https://localhost:9999/mcp"}, {}, {"peer": "https://nobody"}, {"peer": ()}):
                with pytest.raises(SdkError) as refused:
                    me.ssl_context(**given)
                assert refused.value.code == "sdk.peer_unknown", given
            with pytest.raises(SdkError) as refused:
                me.ssl_context("spiffe://elsewhere.test/services/tool")
            assert refused.value.code == "sdk.peer_unknown"
            token = Token(text="t", audience=URL, scopes=frozenset(), expires=1.0, key=me.live.require_proof())
            with pytest.raises(SdkError) as refused:
                me.auth(profile="bearer")
            assert refused.value.code == "sdk.profile_unknown"
            with pytest.raises(SdkError) as refused:
                me.auth(token=token, txn_token="t")
            assert refused.value.code == "sdk.tokens_both"


async def test_a_txn_token_goes_to_resources_of_its_own_trust_domain_alone() -> None:
    foreign = "https://localhost:8451/mcp"
    elsewhere = SpiffeId.parse_workload("spiffe://elsewhere.test/services/tool")
    async with world({URL: resource(URL), foreign: resource(foreign, peer=elsewhere, id="other")}) as node:
        seat = await node.seat(AGENT)
        async with seat.identity() as me:
            auth = me.auth(txn_token="a.b.c")
            assert next(auth.auth_flow(httpx2.Request("POST", URL))).headers["txn-token"] == "a.b.c"
            for url in (foreign, "https://localhost:9999/mcp", "https://localhost:8450/other"):
                request = httpx2.Request("POST", url)
                with pytest.raises(SdkError) as refused:
                    next(auth.auth_flow(request))
                assert refused.value.code == "sdk.transaction_edge", url
                assert "txn-token" not in request.headers
                assert "txn-token" not in next(me.auth().auth_flow(httpx2.Request("POST", url))).headers


async def test_a_node_without_its_own_door_still_gives_an_identity() -> None:
    async with world() as node:
        seat = await node.seat(AGENT, agent_sock=False)
        async with seat.identity() as me:
            assert next(me.auth().auth_flow(httpx2.Request("GET", URL))).headers["authorization"]
            with pytest.raises(SdkError) as refused:
                me.ssl_context(url=URL)
            assert refused.value.code == "sdk.no_node"
            assert me.ssl_context(TOOL) is me.ssl_context(TOOL)


async def test_while_a_credential_is_missing_the_next_one_is_awaited() -> None:
    async with world({URL: resource(URL)}) as node:
        seat = await node.seat(AGENT)
        async with seat.identity() as me:
            me.live.proof = None  # one stream has spoken after a resumption, the other not yet
            with pytest.raises(SdkError) as refused:
                next(me.auth().auth_flow(httpx2.Request("POST", URL)))
            assert refused.value.code == "sdk.awaited"
        with pytest.raises(SdkError) as refused:
            me.live.require_proof()
        assert refused.value.code == "sdk.not_started"


async def test_a_service_says_where_it_is_and_when_no_resource_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with listening(0) as free:
        port = free.getsockname()[1]
    there = f"https://localhost:{port}/mcp"
    for resources, said in (({there: resource(there)}, there), ({URL: resource(URL)}, "aims resource list")):
        async with world(resources) as node:
            seat = await node.seat(TOOL)
            async with seat.identity() as me:
                serving = asyncio.create_task(serve(_unused, me, port=port))
                shown = ""
                async with asyncio.timeout(5):
                    while not shown:
                        shown = capsys.readouterr().err
                        await asyncio.sleep(0.01)
                serving.cancel()
                await asyncio.wait([serving])
        assert shown.startswith(f"{TOOL} serves ")
        assert said in shown


async def _unused(_: object, __: object, ___: object) -> None:
    raise AssertionError("nobody calls")


async def test_no_key_and_no_token_shows_in_any_repr() -> None:
    async with world({URL: resource(URL)}) as node:
        seat = await node.seat(AGENT)
        async with seat.identity() as me:
            shown = repr((me, me.live, me.live.tls, me.live.proof, me.auth(), me.settings, me.client()))
            for secret in (seat.workload.wit, seat.workload.state.wit[0].key, "PRIVATE"):
                assert secret not in shown
            assert str(AGENT) in shown


def test_importing_aims_costs_nothing_and_the_identity_is_found_when_used() -> None:
    code = (
        "import sys; import aims; print(len([m for m in sys.modules if m.split('.')[0] in {'cryptography','grpclib'}]))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0\n"
    assert aims.Identity is Identity
    with pytest.raises(AttributeError):
        _ = aims.Nothing


async def test_an_identity_ends_its_streams_with_it() -> None:
    async with world() as node:
        seat = await node.seat(AGENT)
        async with seat.identity() as me:
            pass
        pending = [task for task in asyncio.all_tasks() if "Live" in repr(task)]
        assert pending == []
        for use in (lambda: me.spiffe_id, me.ssl_context, me.server_context):
            with pytest.raises(SdkError):
                use()
        with pytest.raises(SdkError, match=r"sdk\.not_started"):
            _ = me.spiffe_id


async def test_a_stream_that_breaks_by_our_own_fault_takes_the_identity_with_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world({URL: resource(URL)}) as node:
        seat = await node.seat(AGENT)
        async with seat.identity() as me:
            await knows(me)

            def broken(_: object) -> None:
                raise ZeroDivisionError

            monkeypatch.setattr(me.live, "_hear", broken)
            node.beat()
            await until(lambda: me.live.enforcement is None)
            with pytest.raises(SdkError, match=r"sdk\.stopped"):
                _ = me.spiffe_id
            assert "the identity is given up" in caplog.text


async def test_an_error_says_what_to_do_and_names_what_is_known() -> None:
    with pytest.raises(SdkError) as refused:
        workload_endpoint(None, {})
    assert str(refused.value).startswith("sdk.endpoint_missing: This process was not started by AIMS")
    assert "\n fix: Start it: aims run --as NAME -- python agent.py" in str(refused.value)
    async with world({URL: resource(URL)}) as node:
        seat = await node.seat(AGENT)
        async with seat.identity() as me, me.client() as http:
            with pytest.raises(SdkError) as refused:
                await http.get("https://localhost:9999/other")
            assert refused.value.detail == f"https://localhost:9999/other; known: {URL}"
            assert "fix: Add it: aims resource add" in str(refused.value)
            assert refused.value.__cause__ is None
            assert refused.value.__suppress_context__


async def test_a_service_that_does_not_run_is_named() -> None:
    with socket.socket() as taken:  # bound and not listening: nothing answers there
        taken.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{taken.getsockname()[1]}/mcp"
        async with world({url: resource(url)}) as node:
            seat = await node.seat(AGENT)
            async with seat.identity() as me, me.client() as http:
                with pytest.raises(SdkError) as refused:
                    await http.get(url)
    assert refused.value.code == "sdk.peer_unreachable"
    assert url.removesuffix("/mcp") in refused.value.detail
    assert refused.value.__suppress_context__


def test_a_port_in_use_is_named() -> None:
    with listening(0) as opened:
        port = opened.getsockname()[1]
        with pytest.raises(PortInUseError) as refused:
            listening(port)
    assert refused.value.code == "sdk.port_in_use"
    assert f"127.0.0.1:{port}" in str(refused.value)
    assert isinstance(refused.value, OSError)


async def test_entering_without_an_event_loop_says_how_it_is_done() -> None:
    me = Identity("unix:///nowhere/w.sock")
    with pytest.raises(SdkError, match=r"(?s)async with.*BlockingIdentity"), me:
        pass


async def test_ctrl_c_ends_a_service_quietly() -> None:
    class Shown:
        def server_context(self) -> ssl.SSLContext:
            return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError

    ports: list[int] = []

    def ready(port: int) -> None:
        ports.append(port)
        os.kill(os.getpid(), signal.SIGINT)

    async with asyncio.timeout(20):
        await serve(app, Shown(), port=0, ready=ready)
    await asyncio.sleep(0)  # a cancellation of this task would be here
    assert len(ports) == 1

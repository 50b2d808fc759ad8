"""The one place where the engine takes connections over from hypercorn."""

from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Event
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState

from certificates import Authority
from http1_peer import Recorder
from moorage import load_configuration
from moorage_app.http1 import Connections, Http1
from moorage_app.tls import ServerTls, server_tls
from moorage_app.worker import _Connection

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls(authority: Authority) -> ServerTls:
    pair = authority.issue("server", "registry.test")
    files = {"http.tls.certificate": str(pair.certificate), "http.tls.key": str(pair.key)}
    made = server_tls(load_configuration(None, {}, overrides=files).configuration)
    assert made is not None
    return made


async def serve(
    recorder: Recorder, stream: trio.SocketStream, tls: ServerTls | None = None, *, h2c: bool = False
) -> None:
    kind = type("Connection", (_Connection,), {"connections": Connections(recorder), "tls": tls, "h2c": h2c})
    # hypercorn's annotation names streams of TLS only.
    ours = cast("trio.SSLStream[trio.SocketStream]", stream)
    application = cast("ASGIFramework", recorder)  # asked over HTTP only
    connection = kind(ASGIWrapper(application), Config(), WorkerContext(None), ConnectionState({}), ours)
    await connection.run()


async def test_a_fault_on_one_connection_ends_that_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(self: Http1) -> bytes | None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(Http1, "serve", fail)
    client, server = (trio.SocketStream(each) for each in trio.socket.socketpair())
    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(serve, Recorder(), server)
        assert await client.receive_some() == b""
    assert "a connection failed" in caplog.text


async def test_a_fault_of_hypercorn_on_one_connection_ends_that_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(self: H2Protocol, event: Event) -> None:
        raise ZeroDivisionError("a fault of hypercorn's")

    monkeypatch.setattr(H2Protocol, "handle", fail)
    client, server = (trio.SocketStream(each) for each in trio.socket.socketpair())
    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve, h2c=True), Recorder(), server)
        await client.send_all(PREFACE)
        while await client.receive_some():
            pass
    assert "a connection failed" in caplog.text


async def test_a_client_that_speaks_no_tls_is_let_go(tls: ServerTls) -> None:
    recorder = Recorder()
    client, server = (trio.SocketStream(each) for each in trio.socket.socketpair())
    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(serve, recorder, server, tls)
        await client.send_all(GET)
        try:
            while await client.receive_some():
                pass
        except trio.BrokenResourceError:
            pass  # cut, with what it sent unread
    assert recorder.begun == 0


@pytest.mark.parametrize("secure", [False, True])
async def test_a_connection_is_served_to_its_end(secure: bool, authority: Authority, tls: ServerTls) -> None:
    recorder = Recorder()
    client, server = (trio.SocketStream(each) for each in trio.socket.socketpair())
    ours: trio.SocketStream | trio.SSLStream[trio.SocketStream] = client
    if secure:
        ours = trio.SSLStream(client, authority.trusted(), server_hostname="registry.test", https_compatible=True)
    async with ours, trio.open_nursery() as nursery:
        nursery.start_soon(serve, recorder, server, tls if secure else None)
        await ours.send_all(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        data = b""
        while more := await ours.receive_some():
            data += bytes(more)
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert recorder.targets == [b"/"]


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"


async def test_http_2_with_prior_knowledge_is_answered_by_hypercorn() -> None:
    client, server = (trio.SocketStream(each) for each in trio.socket.socketpair())
    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve, h2c=True), Recorder(), server)
        await client.send_all(PREFACE)
        # A frame of settings, then the acknowledgement of the client's.
        frame = bytes(await client.receive_some())
        assert frame[3:4] == b"\x04"
        nursery.cancel_scope.cancel()
    # hypercorn leaves a connection open that is cut off.
    await trio.aclose_forcefully(server)


@pytest.mark.parametrize("secure", [False, True])
async def test_http_2_that_was_not_agreed_upon_is_refused(secure: bool, authority: Authority, tls: ServerTls) -> None:
    recorder = Recorder()
    client, server = (trio.SocketStream(each) for each in trio.socket.socketpair())
    ours: trio.SocketStream | trio.SSLStream[trio.SocketStream] = client
    if secure:
        ours = trio.SSLStream(client, authority.trusted(), server_hostname="registry.test", https_compatible=True)
    async with ours, trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve, h2c=secure), recorder, server, tls if secure else None)
        await ours.send_all(PREFACE)
        assert bytes(await ours.receive_some()).startswith(b"HTTP/1.1 400 ")
    assert recorder.begun == 0

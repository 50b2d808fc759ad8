"""HTTP/2 and clients that do not take what they asked for; the clock is virtual."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import cast

import h2.config
import h2.connection
import h2.events
import pytest
import trio
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes, Settings
from hypercorn import protocol as hypercorn_protocol
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState, HTTPScope
from trio.testing import MockClock

from asgi_client import client_of
from http1_peer import Application, Certificates, Receive, Send, body, start
from moorage_app.http1 import Connections
from moorage_app.http2 import Http2
from moorage_app.tls_stream import TlsStream
from moorage_app.worker import _Connection

MIB = 1 << 20
SIZE = 8 * MIB
ENDLESS = (1 << 31) - 1
SLOW_LINK = 2 << 10


@pytest.fixture(params=["h2c", "tls"])
def certificates(request: pytest.FixtureRequest) -> Certificates | None:
    if request.param == "h2c":
        return None
    certificates = Certificates()
    certificates.server.set_alpn_protocols(["h2"])
    certificates.client.set_alpn_protocols(["h2"])
    return certificates


class Peer:
    """The client's side of a connection."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], window: int) -> None:
        self.stream = stream
        self.ended = trio.Event()
        self.events: list[h2.events.Event] = []
        self.got = 0
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration())
        self.h2.local_settings = Settings(client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(ENDLESS - 65535)

    async def ask(self, path: str) -> int:
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(
            stream,
            [(":method", "GET"), (":scheme", "http"), (":authority", "registry.test"), (":path", path)],
            end_stream=True,
        )
        await self.send()
        return stream

    async def send(self) -> None:
        await self.stream.send_all(self.h2.data_to_send())

    async def listen(self, *, until: type[h2.events.Event] | None = None) -> None:
        """Take everything that comes, without a word about it, until the server closes or such an event comes."""
        with suppress(trio.BrokenResourceError):
            while not (until and self.of(until)) and (data := await self.stream.receive_some()):
                events = self.h2.receive_data(bytes(data))
                self.events += events
                self.got += sum(len(event.data) for event in events if isinstance(event, h2.events.DataReceived))

    def of(self, kind: type[h2.events.Event]) -> list[h2.events.Event]:
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def speaking(
    monkeypatch: pytest.MonkeyPatch,
    certificates: Certificates | None,
    *,
    window: int,
    by: Application | None = None,
) -> AsyncGenerator[tuple[Peer, str]]:
    """Open a connection, to a registry that has a blob if not `by`; give its client's side, and the path of the blob."""
    monkeypatch.setattr(hypercorn_protocol, "H2Protocol", Http2)
    client = client_of()
    digest = await client.push_blob("a", bytes(SIZE))
    served = by or client.application
    kind = type("Connection", (_Connection,), {"connections": Connections(served), "tls": None, "h2c": True})
    ours, theirs = (trio.SocketStream(each) for each in trio.socket.socketpair())
    application = cast("ASGIFramework", served)  # asked over HTTP only
    async with trio.open_nursery() as nursery:
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = ours
        if certificates is not None:
            stream = trio.SSLStream(ours, certificates.client, server_hostname="registry.test", https_compatible=True)
        peer = Peer(stream, window)

        async def serve() -> None:
            beneath = cast("trio.SSLStream[trio.SocketStream]", theirs)  # as in the worker
            connection = kind(ASGIWrapper(application), Config(), WorkerContext(None), ConnectionState({}), beneath)
            if certificates is None:
                await connection.run()
            else:
                secured = TlsStream(theirs, certificates.server)
                await secured.do_handshake()
                await connection.serve(secured)
            peer.ended.set()

        nursery.start_soon(serve)
        yield peer, f"/v2/a/blobs/{digest}"
        await trio.aclose_forcefully(stream)
        await peer.ended.wait()


async def test_who_takes_nothing_from_the_socket_is_closed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, certificates: Certificates | None
) -> None:
    async with speaking(monkeypatch, certificates, window=ENDLESS) as (peer, path):
        for _ in range(5):
            await peer.ask(path)
        await peer.ended.wait()


async def test_an_answer_that_is_not_taken_is_reset_and_the_connection_ends(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, certificates: Certificates | None
) -> None:
    async with speaking(monkeypatch, certificates, window=1000) as (peer, path):
        for _ in range(5):
            await peer.ask(path)
        await peer.listen()
        await peer.ended.wait()
        assert len(peer.of(h2.events.StreamReset)) == 5
        assert peer.got == 5 * 1000


async def test_what_is_not_taken_is_not_kept(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, certificates: Certificates | None
) -> None:
    said = 0

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        nonlocal said
        await start(send)
        with trio.move_on_after(2000):
            while True:
                said += 1
                await body(send, bytes(64 << 10), more=True)

    async with (
        speaking(monkeypatch, certificates, window=100_000, by=application) as (peer, _),
        trio.open_nursery() as here,
    ):
        await peer.ask("/")
        here.start_soon(peer.listen)
        await trio.sleep(1000)
        assert peer.got == 100_000
        assert said == 2
        here.cancel_scope.cancel()


async def test_an_answer_that_is_taken_by_drops_is_reset_and_others_are_not(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, certificates: Certificates | None
) -> None:
    async with speaking(monkeypatch, certificates, window=1000) as (peer, path), trio.open_nursery() as nursery:
        slow, good = await peer.ask(path), await peer.ask(path)

        async def open_windows() -> None:
            while True:
                await trio.sleep(1)
                for stream, count in ((slow, 100), (good, SLOW_LINK)):
                    with suppress(StreamClosedError):
                        peer.h2.increment_flow_control_window(count, stream)
                await peer.send()

        nursery.start_soon(open_windows)
        await peer.listen(until=h2.events.StreamEnded)
        nursery.cancel_scope.cancel()
    (reset,) = peer.of(h2.events.StreamReset)
    (ended,) = peer.of(h2.events.StreamEnded)
    assert isinstance(reset, h2.events.StreamReset)
    assert isinstance(ended, h2.events.StreamEnded)
    assert (reset.stream_id, ended.stream_id) == (slow, good)
    assert peer.got > SIZE

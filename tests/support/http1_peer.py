"""A connection to the HTTP/1.1 engine over real sockets, in the tests' own process; its client is in the hands of a test."""

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import trio
import trustme
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent, HTTPScope

from moorage import ClientLeft
from moorage_app.http1 import Connections, Http1
from moorage_app.tls_stream import TlsStream
from moorage_app.transports import ClearText

Headers = list[tuple[bytes, bytes]]
Receive = Callable[[], Awaitable[ASGIReceiveEvent]]
Send = Callable[[ASGISendEvent], Awaitable[None]]
ClientStream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

CHOSEN_NAME = "registry.test"


@dataclass(frozen=True)
class Asked:
    """A request as it was understood."""

    method: str
    target: bytes
    headers: Headers
    body: bytes = b""
    version: str = "1.1"


@dataclass
class Recorder:
    """An application that reads whole requests, remembers those that came to their end, and says what it got."""

    asked: list[Asked] = field(default_factory=list[Asked])
    begun: int = 0

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        self.begun += 1
        body = await whole_body(receive)
        if body is None:
            return
        self.asked.append(asked_by(scope, body))
        await reply(send, b"%s %s %d" % (scope["method"].encode(), target_of(scope), len(body)))

    @property
    def targets(self) -> list[bytes]:
        """What was asked for, in its order."""
        return [asked.target for asked in self.asked]


def target_of(scope: HTTPScope) -> bytes:
    """Return a request's target."""
    return scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")


def asked_by(scope: HTTPScope, body: bytes) -> Asked:
    """Return what a scope and a body are together."""
    return Asked(scope["method"], target_of(scope), list(scope["headers"]), body, scope["http_version"])


async def whole_body(receive: Receive) -> bytes | None:
    """Return a request's body; None when its client left before the end."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        pieces.append(message["body"])
        if not message["more_body"]:
            return b"".join(pieces)


async def start(send: Send, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Begin an answer."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers), "trailers": False})


async def body(send: Send, data: bytes = b"", *, more: bool = False) -> None:
    """Go on with an answer."""
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def file(send: Send, what: object, *, more: bool = False, **where: int) -> None:
    """Go on with an answer, by a file."""
    message = {"type": "http.response.zerocopysend", "file": what, "more_body": more, **where}
    await send(cast("ASGISendEvent", message))  # hypercorn does not know the extension


async def reply(send: Send, data: bytes) -> None:
    """Answer with 200."""
    await start(send, 200, [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(data))])
    await body(send, data)


@dataclass(frozen=True)
class Answer:
    """An answer as it came over the wire."""

    status: int
    headers: Headers
    body: bytes

    def all(self, name: bytes) -> list[bytes]:
        """Return every value of a header."""
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def closes(self) -> bool:
        """Whether it says that the connection ends."""
        return self.all(b"connection") == [b"close"]


class Peer:
    """The client's side of a connection."""

    def __init__(self, stream: ClientStream, connections: Connections) -> None:
        """Speak over `stream`."""
        self.stream = stream
        self.connections = connections
        self.ended = trio.Event()
        """The server is done with the connection."""
        self.handed_over: bytes | None = None
        """What the engine left to another protocol."""
        self._buffer = b""

    async def send(self, *pieces: bytes) -> None:
        """Send pieces, each of which the server has time to read by itself."""
        for piece in pieces:
            await self.stream.send_all(piece)
            for _ in range(3 if len(pieces) > 1 else 0):
                await trio.lowlevel.checkpoint()

    async def end(self) -> None:
        """Send nothing more."""
        assert isinstance(self.stream, trio.SocketStream)
        await self.stream.send_eof()

    async def leave(self) -> None:
        """Go away."""
        await trio.aclose_forcefully(self.stream)

    async def _more(self) -> bool:
        try:
            data = bytes(await self.stream.receive_some())
        except trio.BrokenResourceError:
            data = b""
        self._buffer += data
        return bool(data)

    async def read(self, count: int) -> bytes:
        """Return so many bytes, or what came until the server closed."""
        while len(self._buffer) < count and await self._more():
            pass
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    async def line(self) -> bytes:
        """Return the next line without its end."""
        while b"\n" not in self._buffer:
            assert await self._more(), f"no end of a line in {self._buffer!r}"
        line, _, self._buffer = self._buffer.partition(b"\n")
        assert line.endswith(b"\r")
        return line[:-1]

    async def rest(self) -> bytes:
        """Return what comes until the server closes."""
        while await self._more():
            pass
        data, self._buffer = self._buffer, b""
        return data

    async def answer(self, method: str = "GET") -> Answer:
        """Return the next answer, to a request by `method`."""
        version, status, _ = (await self.line()).split(b" ", 2)
        assert version == b"HTTP/1.1"
        headers: Headers = []
        while line := await self.line():
            name, colon, value = line.partition(b": ")
            assert colon
            headers.append((name, value))
        answer = Answer(int(status), headers, b"")
        if method == "HEAD" or answer.status in {100, 204, 304}:
            return answer
        lengths, codings = answer.all(b"content-length"), answer.all(b"transfer-encoding")
        assert len(lengths) + len(codings) <= 1
        if lengths:
            return Answer(answer.status, headers, await self.read(int(lengths[0])))
        if codings:
            return Answer(answer.status, headers, await self._chunks())
        return Answer(answer.status, headers, await self.rest())

    async def _chunks(self) -> bytes:
        data = b""
        while size := int(await self.line(), 16):
            chunk = await self.read(size)
            assert len(chunk) == size, "a chunk breaks off"
            data += chunk
            assert await self.line() == b""
        assert await self.line() == b""
        return data

    async def only_answer(self, method: str = "GET") -> Answer:
        """Return the last answer of a connection, after which it is closed."""
        answer = await self.answer(method)
        assert await self.rest() == b"", "something follows the last answer"
        return answer


class Certificates:
    """TLS between the two sides."""

    def __init__(self) -> None:
        """Make an authority and a certificate."""
        authority = trustme.CA()
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(CHOSEN_NAME).configure_cert(self.server)  # pyright: ignore[reportUnknownMemberType] - pyOpenSSL is not installed
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)  # pyright: ignore[reportUnknownMemberType] - the same


Application = Callable[[HTTPScope, Receive, Send], Awaitable[None]]


@asynccontextmanager
async def speaking(
    application: Application, *, tls: Certificates | None = None, connections: Connections | None = None
) -> AsyncGenerator[Peer]:
    """Open a connection that `application` serves; what is left of it is cut when the block ends."""
    connections = connections or Connections(application)
    ours, theirs = (trio.SocketStream(each) for each in trio.socket.socketpair())
    async with trio.open_nursery() as nursery:
        stream: ClientStream = ours
        if tls is not None:
            stream = trio.SSLStream(ours, tls.client, server_hostname=CHOSEN_NAME, https_compatible=True)
        peer = Peer(stream, connections)

        async def serve() -> None:
            beneath: trio.SocketStream | TlsStream = theirs
            if tls is not None:
                beneath = TlsStream(theirs, tls.server)
            transport = ClearText(beneath) if isinstance(beneath, trio.SocketStream) else beneath
            try:
                if isinstance(beneath, TlsStream):
                    await beneath.do_handshake()
                client = ("192.0.2.1", 4000)
                engine = Http1(connections, transport, scheme="http", client=client, server=None, http2=True)
                peer.handed_over = await engine.serve()
                await beneath.aclose()
            finally:
                await trio.aclose_forcefully(beneath)
                peer.ended.set()

        nursery.start_soon(serve)
        nursery.start_soon(connections.watch)
        try:
            yield peer
        finally:
            # In this order: an await that is cancelled would take the place of what the test raised.
            await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()


async def until_left(receive: Receive) -> None:
    """Return when the client is said to have left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_until_left(send: Send, piece: bytes) -> int:
    """Send `piece` until nobody takes it; return how often that went well."""
    sent = 0
    try:
        while True:
            await body(send, piece, more=True)
            sent += 1
    except ClientLeft:
        return sent

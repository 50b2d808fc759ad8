"""HTTP/1.1 on a connection: one task reads requests, calls the ASGI application, and writes what it answers.

Answers for RFC 9112. Heads are parsed by llhttp (httptools), framing is decided in `http1_exchange.py`. Rules that both keep:

- **Strict.** What two servers could read in two ways is refused with 400 and the connection is closed: lengths that
  conflict or repeat, transfer codings other than `chunked`, bare CR or LF, folded headers, space around names. The next
  request of a connection is looked for only where the last one certainly ended.
- **Bounded.** A head, the extensions of chunks and the trailers have a size, a head has a time, bodies and answers have a
  pace (`Pace`). A client that is given up is given up with its connection, and with nothing else.
- **No task beside the connection's own**, but one for all that looks, once a second, whether anybody still waits. The
  application is called where the request was read, and receives and sends by direct calls. What is not asked for is
  not read: a slow application slows its client down, and nobody's memory fills.
- A client that has left is told by `http.disconnect`, and by `ClientLeft` to who sends. It has left when its side of the
  connection is closed and somebody asks; an answer that is ready all the same is sent, for it may still listen.
"""

import logging
import re
import select
from contextlib import suppress
from email.utils import formatdate
from typing import Final, cast
from urllib.parse import unquote_to_bytes

import httptools
import trio
from hypercorn.typing import HTTPScope

from moorage import ClientLeft

from .http1_exchange import HEAD_BYTES, REASONS, ASGIApplication, Exchange, framing
from .http1_refusal import Refused, refusal_body
from .transports import TooSlow, Transport

_log = logging.getLogger("moorage.http1")

HEADERS_LIMIT: Final = 256
"""The most headers that a request may have."""
HEAD_SECONDS: Final = 30.0
"""How long a head may take from its first byte to its last."""
IDLE_SECONDS: Final = 75.0
"""How long a connection may wait for its next request."""
LINGER_SECONDS: Final = 2.0
"""How long a connection that is given up is still listened to, so that its client can read why."""

_READ: Final = 64 << 10
_LINGER_BYTES: Final = 1 << 20
_LOOK_SECONDS: Final = 1.0

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD_END: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.[01]\r\n")
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")


class Connections:
    """All connections of one process: what they serve, and whether they shall end."""

    def __init__(self, application: ASGIApplication) -> None:
        """Serve `application`."""
        self.application = application
        self.draining = False
        # Those that wait for a request, and those that answer one, with the look at which they began to.
        self._idle: dict[Http1, int] = {}
        self._busy: dict[Http1, int] = {}
        self._looks = 0
        self._date_second = 0.0
        self._date = b""

    def drain(self) -> None:
        """End connections that wait for a request, and the others with the answers that are under way."""
        self.draining = True
        for connection in self._idle:
            connection.give_up()

    async def watch(self) -> None:
        """End connections that have waited too long for a request, or whose client does not wait for its answer.

        All are looked at, once a second, by one task, which never returns: a deadline, or a task, for each request
        would cost more than its parsing.
        """
        while True:
            await trio.sleep(_LOOK_SECONDS)
            self._looks += 1
            for connection, since in self._idle.items():
                if (self._looks - since) * _LOOK_SECONDS > IDLE_SECONDS:
                    connection.give_up()
            late = {
                connection.descriptor: connection
                for connection, since in self._busy.items()
                if self._looks - since > 1 and connection.is_waited_for
            }
            if late:
                poll = select.poll()
                for descriptor in late:
                    poll.register(descriptor, select.POLLRDHUP)
                for descriptor, _ in poll.poll(0):
                    late[descriptor].client_left()

    @property
    def idle(self) -> "dict[Http1, int]":
        """Connections that wait for a request; each puts itself in."""
        return self._idle

    @property
    def busy(self) -> "dict[Http1, int]":
        """Connections that answer a request; each puts itself in."""
        return self._busy

    @property
    def looks(self) -> int:
        """How often was looked at the connections."""
        return self._looks

    def date(self) -> bytes:
        """Return the header `date`, made once a second."""
        now = trio.current_time()
        if now >= self._date_second + 1 or not self._date:
            self._date_second = now
            self._date = b"date: %s\r\n" % formatdate(usegmt=True).encode()
        return self._date


class Http1:
    """One connection; `serve` is its life."""

    def __init__(
        self,
        connections: Connections,
        transport: Transport,
        *,
        scheme: str,
        client: tuple[str, int] | None,
        server: tuple[str, int | None] | None,
        http2: bool,
        tls_peer: bytes | None = None,
    ) -> None:
        """Serve what comes over `transport`.

        With `http2` a client may begin with that; `tls_peer` is its certificate, if it was verified.
        """
        self._connections = connections
        self._transport = transport
        self._scheme = scheme
        self._client = client
        self._server = server
        self._http2 = http2
        self._extensions = _EXTENSIONS_WITH_FILES if transport.can_send_files else _EXTENSIONS
        if tls_peer is not None:
            self._extensions = {**self._extensions, TLS_PEER: {"certificate": tls_peer}}
        self._buffer = b""
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._scope = trio.CancelScope()
        self._exchange: Exchange | None = None
        self.left = False
        """Whether the client did not wait for its answer."""

    # ---- what llhttp tells of a head

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; llhttp takes off the space before a value only."""
        self._headers.append((name.lower(), value.rstrip()))

    # ---- requests

    async def serve(self) -> bytes | None:
        """Answer requests until either side is done with the connection.

        Returns:
            None, or, when the client begins with HTTP/2 and may, all that was received.
        """
        with self._scope:
            return await self._serve()
        return None

    def give_up(self) -> None:
        """End the connection, which waits for a request."""
        self._scope.cancel()

    @property
    def descriptor(self) -> int:
        """The descriptor of the connection's socket."""
        return self._transport.descriptor

    @property
    def is_waited_for(self) -> bool:
        """Whether the client has sent a whole request and nothing has been answered."""
        return self._exchange is not None and self._exchange.is_waited_for

    def client_left(self) -> None:
        """End what is done for a client that has left."""
        self.left = True
        self._scope.cancel()

    async def _serve(self) -> bytes | None:
        first = True
        while True:
            try:
                head = await self._read_head()
                if head is None:
                    return None
                if first and self._http2 and head == _PREFACE[:18]:
                    return head + self._buffer
                first = False
                exchange = self._begin(head)
            except Refused as refused:
                await self.refuse(refused)
                return None
            except ClientLeft:
                return None
            connections = self._connections
            connections.busy[self] = connections.looks
            self._exchange = exchange
            try:
                if not await exchange.run(connections.application):
                    return None
            finally:
                self._exchange = None
                del connections.busy[self]

    async def _read_head(self) -> bytes | None:
        """Return the next head, with the empty line at its end; None when there is none any more.

        Raises:
            Refused: it is too large, too slow, or has lines that end wrongly.
        """
        buffer = self._buffer
        at = buffer.find(_HEAD_END)
        if at < 0:
            if not buffer or buffer == b"\r\n":
                more = b"" if self._connections.draining else await self._wait_for_request()
                if not more:
                    return None
                buffer += more
                at = buffer.find(_HEAD_END)
            if at < 0:
                buffer, at = await self._rest_of_head(buffer)
        if at > HEAD_BYTES:
            raise Refused(431, "the head is too large")
        self._buffer = buffer[at + 4 :]
        # An empty line before a request is passed over (RFC 9112, 2.2).
        return buffer[: at + 4] if buffer[:2] != b"\r\n" else buffer[2 : at + 4]

    async def _wait_for_request(self) -> bytes:
        connections = self._connections
        connections.idle[self] = connections.looks
        try:
            received = await self._transport.receive(_READ)
        finally:
            del connections.idle[self]
        # Given up in the moment in which something came: what is begun would be cut off.
        return b"" if self._scope.cancel_called else received

    async def _rest_of_head(self, buffer: bytes) -> tuple[bytes, int]:
        looked = 0
        with trio.move_on_after(HEAD_SECONDS):
            while True:
                if _BARE_LF.search(buffer, looked):
                    raise Refused(400, "a line ends wrongly")
                if len(buffer) > HEAD_BYTES:
                    raise Refused(431, "the head is too large")
                more = await self._transport.receive(_READ)
                if not more:
                    raise ClientLeft("the client left in the middle of a head")
                looked = max(len(buffer) - 3, 0)
                buffer += more
                at = buffer.find(_HEAD_END, looked)
                if at >= 0:
                    return buffer, at
        raise Refused(408, "the head takes too long")

    def _begin(self, head: bytes) -> "Exchange":
        """Return the exchange that begins with `head`.

        Raises:
            Refused: it is no request, or one that is not served.
        """
        line = _REQUEST_LINE.match(head)
        if line is None:
            raise Refused(400, "no request line of HTTP/1.0 or HTTP/1.1")
        self._url, self._headers = b"", []
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            # Nothing is upgraded to, and what follows is read as HTTP/1.1 again (RFC 9110, 7.8).
            self._parser = httptools.HttpRequestParser(self)
        except httptools.HttpParserInvalidMethodError:
            self._parse_with_another_method(head[line.end(1) :])
        except httptools.HttpParserError as error:
            raise Refused(400, str(error)) from None
        method, target, headers = line[1], self._url, self._headers
        if len(headers) > HEADERS_LIMIT:
            raise Refused(431, "too many headers")
        minor = head[line.end() - 3 : line.end() - 2]
        length, chunked, keep, continues, plain = framing(headers, is_1_1=minor == b"1")
        if not plain:
            # The parser waits for a body that is read without it, or for no more requests.
            self._parser = httptools.HttpRequestParser(self)
        path, _, query = target.partition(b"?")
        raw = path.decode("ascii") if b"%" not in path else unquote_to_bytes(path).decode("utf-8", "replace")
        scope: dict[str, object] = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1" if minor == b"1" else "1.0",
            "method": method.decode("ascii"),
            "scheme": self._scheme,
            "path": raw,
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": self._client,
            "server": self._server,
            "state": {},
            "extensions": self._extensions,
        }
        return Exchange(
            self,
            cast("HTTPScope", scope),  # has all of its keys
            length=length,
            chunked=chunked,
            keep=keep,
            continues=continues,
        )

    def _parse_with_another_method(self, rest: bytes) -> None:
        """Parse a head whose method llhttp does not know; the application says what it thinks of it."""
        self._url, self._headers = b"", []
        try:
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(b"GET" + rest)
        except httptools.HttpParserUpgrade:
            self._parser = httptools.HttpRequestParser(self)
        except httptools.HttpParserError as error:
            raise Refused(400, str(error)) from None

    async def refuse(self, refused: Refused) -> None:
        """Say what is wrong with what was sent, and give up the connection."""
        _log.debug("refused: %s", refused)
        reason = REASONS[refused.status]
        body = refusal_body(str(refused))
        head = b"HTTP/1.1 %d %s\r\n%scontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        with suppress(ClientLeft):
            await self._transport.send(head % (refused.status, reason, self._connections.date(), len(body)) + body)
            await self.linger()

    async def linger(self) -> None:
        """Read what the client still sends: closed at once, the connection would be reset and the answer lost."""
        left = _LINGER_BYTES
        with trio.move_on_after(LINGER_SECONDS), suppress(ClientLeft):
            await self._transport.end()
            while left > 0 and (data := await self._transport.receive(_READ)):
                left -= len(data)

    # ---- for the exchange under way

    @property
    def transport(self) -> Transport:
        """What the connection is made of."""
        return self._transport

    @property
    def draining(self) -> bool:
        """Whether the process ends."""
        return self._connections.draining

    def date(self) -> bytes:
        """Return the header `date`."""
        return self._connections.date()

    async def body(self, limit: int) -> bytes:
        """Return what was received already of a body, or comes next, up to `limit` bytes.

        Raises:
            Refused: the client is too slow.
            ClientLeft: the client left before the end of its request, or sends nothing any more.
        """
        if self._buffer:
            data, self._buffer = self._buffer[:limit], self._buffer[limit:]
            return data
        return await self._more_of_body(limit)

    def put_back(self, data: bytes) -> None:
        """Have `data` read again, before what comes next."""
        if data:
            self._buffer = data + self._buffer

    async def _more_of_body(self, limit: int) -> bytes:
        assert self._exchange is not None  # noqa: S101 - it asks
        pace = self._exchange.pace
        try:
            data = await self._transport.receive(limit, pace)
        except TooSlow as slow:
            if slow.silent:
                raise
            raise Refused(408, "the body takes too long") from None
        if not data:
            raise ClientLeft("the client left in the middle of its request")
        pace.moved(len(data))
        return data

    @property
    def received(self) -> int:
        """How many bytes wait to be read."""
        return len(self._buffer)

    async def receive_more(self) -> bool:
        """Wait for more bytes and keep them; return whether there are any."""
        more = await self._transport.receive(_READ)
        self._buffer += more
        return bool(more)


_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
WATCHED: Final = "moorage.watched"
"""The extension of ASGI's scope that says: who answers is cancelled when the client leaves, and need not look."""
TLS_PEER: Final = "moorage.tls_peer"
"""The extension of ASGI's scope that has, as `certificate`, that of the client (DER); only one that was verified."""
_EXTENSIONS: Final[dict[str, dict[object, object]]] = {WATCHED: {}}
_EXTENSIONS_WITH_FILES: Final[dict[str, dict[object, object]]] = {WATCHED: {}, "http.response.zerocopysend": {}}

"""HTTP/1.1 on a connection: one task reads requests, calls the ASGI application, and writes what it answers.

Answers for RFC 9112. Heads are parsed by llhttp (httptools); framing is decided here. Rules this file keeps:

- **Strict.** What two servers could read in two ways is refused with 400 and the connection is closed: lengths that
  conflict or repeat, transfer codings other than `chunked`, bare CR or LF, folded headers, space around names. The next
  request of a connection is looked for only where the last one certainly ended.
- **Bounded.** A head, the extensions of chunks and the trailers have a size, a head and each step of a body and of an
  answer have a time. A client that is given up is given up with its connection, and with nothing else.
- **No task beside the connection's own**, but one for all that looks, once a second, whether anybody still waits. The
  application is called where the request was read, and receives and sends by direct calls. What is not asked for is
  not read: a slow application slows its client down, and nobody's memory fills.
- A client that has left is told by `http.disconnect`, and by `ClientLeft` to who sends. It has left when its side of the
  connection is closed and somebody asks; an answer that is ready all the same is sent, for it may still listen.
"""

import logging
import os
import re
import select
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import IO, Final, cast
from urllib.parse import unquote_to_bytes

import httptools
import trio
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent, HTTPScope

from moorage import ClientLeft, encode_json

from .transports import FAIR, JOINED, STALLED_SECONDS, Transport

_log = logging.getLogger("moorage.http1")

HEAD_BYTES: Final = 64 << 10
"""The largest head of a request."""
HEADERS_LIMIT: Final = 256
"""The most headers that a request may have."""
TRAILER_BYTES: Final = 16 << 10
"""The largest trailers, and the longest line between two chunks."""
EXTENSION_BYTES: Final = 64 << 10
"""How much of all the extensions of a body's chunks is taken."""
HEAD_SECONDS: Final = 30.0
"""How long a head may take from its first byte to its last."""
IDLE_SECONDS: Final = 75.0
"""How long a connection may wait for its next request."""
LINGER_SECONDS: Final = 2.0
"""How long a connection that is given up is still listened to, so that its client can read why."""

_READ: Final = 64 << 10
_READ_BODY: Final = 256 << 10
_LINGER_BYTES: Final = 1 << 20
_LOOK_SECONDS: Final = 1.0

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD_END: Final = b"\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.[01]\r\n")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;([\t\x20-\x7e\x80-\xff]*))?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_BODILESS: Final = frozenset({204, 304})
_OF_THE_SERVER: Final = frozenset({b"transfer-encoding", b"connection"})
_FRAMING_OF_ANSWERS: Final = frozenset({b"content-length", *_OF_THE_SERVER})

_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}

ASGIApplication = Callable[
    [HTTPScope, Callable[[], Awaitable[ASGIReceiveEvent]], Callable[[ASGISendEvent], Awaitable[None]]], Awaitable[None]
]


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


class _Refused(Exception):
    """A request that is not answered by the application; `status` says what it gets."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


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
        self._exchange: _Exchange | None = None
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
            except _Refused as refused:
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
            _Refused: it is too large, too slow, or has lines that end wrongly.
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
            raise _Refused(431, "the head is too large")
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
                    raise _Refused(400, "a line ends wrongly")
                if len(buffer) > HEAD_BYTES:
                    raise _Refused(431, "the head is too large")
                more = await self._transport.receive(_READ)
                if not more:
                    raise ClientLeft("the client left in the middle of a head")
                looked = max(len(buffer) - 3, 0)
                buffer += more
                at = buffer.find(_HEAD_END, looked)
                if at >= 0:
                    return buffer, at
        raise _Refused(408, "the head takes too long")

    def _begin(self, head: bytes) -> "_Exchange":
        """Return the exchange that begins with `head`.

        Raises:
            _Refused: it is no request, or one that is not served.
        """
        line = _REQUEST_LINE.match(head)
        if line is None:
            raise _Refused(400, "no request line of HTTP/1.0 or HTTP/1.1")
        self._url, self._headers = b"", []
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            # Nothing is upgraded to, and what follows is read as HTTP/1.1 again (RFC 9110, 7.8).
            self._parser = httptools.HttpRequestParser(self)
        except httptools.HttpParserInvalidMethodError:
            self._parse_with_another_method(head[line.end(1) :])
        except httptools.HttpParserError as error:
            raise _Refused(400, str(error)) from None
        method, target, headers = line[1], self._url, self._headers
        if len(headers) > HEADERS_LIMIT:
            raise _Refused(431, "too many headers")
        minor = head[line.end() - 3 : line.end() - 2]
        length, chunked, keep, continues, plain = _framing(headers, is_1_1=minor == b"1")
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
        return _Exchange(
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
            raise _Refused(400, str(error)) from None

    async def refuse(self, refused: _Refused) -> None:
        """Say what is wrong with what was sent, and give up the connection."""
        _log.debug("refused: %s", refused)
        reason = _REASONS[refused.status]
        body = encode_json({"errors": [{"code": "UNSUPPORTED", "message": f"not served: {refused}"}]})
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
    def connections(self) -> Connections:
        """The connections of this process."""
        return self._connections

    async def body(self, limit: int) -> bytes:
        """Return what was received already of a body, or comes next, up to `limit` bytes.

        Raises:
            ClientLeft: the client left before the end of its request, or sends nothing any more.
        """
        if self._buffer:
            data, self._buffer = self._buffer[:limit], self._buffer[limit:]
            return data
        return await self._more_of_body(min(limit, _READ_BODY))

    async def line(self, limit: int) -> bytes:
        """Return the next line of a body, of up to `limit` bytes, without its end; whoever is cancelled here can ask again.

        Raises:
            _Refused: it is longer, or ends wrongly.
            ClientLeft: as `body`.
        """
        while (at := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > limit + 1:
                raise _Refused(400, "a line is too long")
            self._buffer += await self._more_of_body(_READ)
        line = self._buffer[:at]
        if line[-1:] != b"\r" or b"\r" in line[:-1] or at - 1 > limit:
            raise _Refused(400, "a line ends wrongly, or too late")
        self._buffer = self._buffer[at + 1 :]
        return line[:-1]

    async def _more_of_body(self, limit: int) -> bytes:
        with trio.move_on_after(STALLED_SECONDS):
            if data := await self._transport.receive(limit):
                return data
        raise ClientLeft("the client left in the middle of its request")

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


_FRAMING_HEADERS: Final = frozenset({
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"proxy-connection",
    b"expect",
})


def _framing(headers: list[tuple[bytes, bytes]], *, is_1_1: bool) -> tuple[int, bool, bool, bool, bool]:
    """Return the length of a request's body, whether it is chunked, whether the connection is kept, and `Expect`.

    And whether there was no word about any of these.

    Raises:
        _Refused: it cannot be told for certain where the request ends, or whom it is for.
    """
    length: int | None = None
    chunked = continues = close = False
    plain = True
    keep = is_1_1
    hosts = 0
    for name, value in headers:
        if name not in _FRAMING_HEADERS:
            continue
        if name == b"host":
            hosts += 1
            continue
        if name == b"connection" and value.lower() == b"keep-alive":
            keep = True
            continue
        plain = False
        match name:
            case b"content-length":
                if length is not None or chunked or _LENGTH.fullmatch(value) is None:
                    raise _Refused(400, "the length is not clear")
                length = int(value)
            case b"transfer-encoding":
                if length is not None or chunked or not is_1_1:
                    raise _Refused(400, "the length is not clear")
                if value.lower() != b"chunked":
                    raise _Refused(400, "an unknown transfer coding")
                chunked = True
            case b"connection":
                options = [option.strip(b" \t") for option in value.lower().split(b",")]
                close = close or b"close" in options
                keep = keep or b"keep-alive" in options
            case b"expect":
                continues = is_1_1 and value.lower() == b"100-continue"
            case _:
                # `Proxy-Connection`, which llhttp obeys.
                pass
    if hosts > 1 or (is_1_1 and not hosts):
        raise _Refused(400, "not one Host")
    return length or 0, chunked, keep and not close, continues, plain


class _Exchange:
    """A request and its answer."""

    def __init__(
        self, connection: Http1, scope: HTTPScope, *, length: int, chunked: bool, keep: bool, continues: bool
    ) -> None:
        self._connection = connection
        self._scope = scope
        self._left = length
        self._chunks = _Chunks(connection) if chunked else None
        self._keep = keep
        self._is_1_1 = scope["http_version"] == "1.1"
        self._continues = continues
        self._received = self._empty = not chunked and not length
        self._gone = False
        # The answer: its start is sent with the first of its body.
        self._start: Mapping[str, object] = {}
        self._began = self._ended = False
        self._chunked_answer = False
        self._to_send: int | None = None

    async def run(self, application: ASGIApplication) -> bool:
        """Have the request answered; return whether another one may follow on the connection."""
        try:
            await application(self._scope, self.receive, self.send)
            if self._ended and self._received and not self._gone:
                return self._keep
            return await self._settle()
        except ClientLeft:
            return False
        except Exception:  # noqa: BLE001 - the edge of a request: what an application raises ends its connection alone
            _log.exception("the application failed")
            await self._fail()
            return False
        finally:
            # What the application left behind reads and writes nothing: the next request is under way, or the socket's
            # descriptor is another connection's.
            self._gone = self._ended = True

    async def _settle(self) -> bool:
        """Return whether another request may follow this one, for which the application has done what it would."""
        if self._gone:
            return False
        if not self._ended:
            _log.error("the application gave no answer, or none to the end")
            await self._fail()
            return False
        if not self._received:
            await self._connection.linger()
        return self._keep and self._received

    async def _fail(self) -> None:
        """Answer with 500; an answer that has begun already can only break off."""
        if not self._began:
            await self._connection.refuse(_Refused(500, "the application failed"))

    @property
    def is_waited_for(self) -> bool:
        """Whether the whole request was received and nothing has been answered."""
        return self._received and not self._began

    # ---- receiving

    async def receive(self) -> ASGIReceiveEvent:
        """Return what comes next of the request: bytes of its body, then, when the client leaves, that."""
        if self._empty and not self._ended:
            self._empty = False
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._continues and self._began:
            # Who was told the answer before it sent anything may send it or not: nothing is waited for.
            return {"type": "http.disconnect"}
        if not self._received and not self._gone:
            try:
                return await self._next()
            except ClientLeft:
                self._gone = True
            except _Refused as refused:
                # Where the request ends cannot be told any more; nothing that the application says comes after this.
                began, self._began, self._ended, self._gone = self._began, True, True, True
                if not began:
                    await self._connection.refuse(refused)
        elif not self._gone and not self._ended:
            await self._wait_gone()
        return {"type": "http.disconnect"}

    async def _next(self) -> ASGIReceiveEvent:
        if self._continues:
            self._continues = False
            if not self._connection.received:
                await self._connection.transport.send(_CONTINUE)
        if self._chunks is not None:
            data = await self._chunks.next()
            self._received = self._chunks.ended
        else:
            data = await self._connection.body(self._left)
            self._left -= len(data)
            self._received = self._left == 0
        return {"type": "http.request", "body": data, "more_body": not self._received}

    async def _wait_gone(self) -> None:
        """Return when the client has left; what it sends meanwhile is its next request, of which so much is kept."""
        try:
            while self._connection.received < HEAD_BYTES:
                if not await self._connection.receive_more():
                    break
            else:
                await trio.sleep_forever()
        except ClientLeft:
            pass
        self._gone = True

    # ---- sending

    async def send(self, message: ASGISendEvent) -> None:
        """Send what the application says.

        Raises:
            ClientLeft: nobody takes it any more.
        """
        # hypercorn's types do not know the message of the extension; what is in each is ASGI's.
        said = cast("Mapping[str, object]", message)
        kind = said["type"]
        if kind == "http.response.start":
            self._start = said
        elif self._ended:
            return
        elif kind == "http.response.body":
            await self._send_body(cast("bytes", said.get("body", b"")), more=bool(said.get("more_body")))
        elif kind == "http.response.zerocopysend":
            await self._send_file(said)

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        head = b"" if self._began else self._head(len(body) if not more else None)
        if not self._bodiless:
            if self._chunked_answer:
                body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
            elif self._to_send is not None:
                body = body[: self._counted(len(body), more=more)]
        else:
            body = b""
        self._ended = not more
        if head and body and len(body) <= JOINED:
            await self._connection.transport.send(head + body)
        elif head or body:
            await self._connection.transport.send(head, body)

    def _counted(self, count: int, *, more: bool) -> int:
        """Return how much of `count` bytes was announced; never more, for that would be read as the next answer."""
        assert self._to_send is not None  # noqa: S101 - asked before
        if count > self._to_send:
            _log.error("an answer is longer than announced")
            count, self._keep = self._to_send, False
        self._to_send -= count
        if self._to_send and not more:
            # Only a closed connection says so.
            _log.error("an answer is shorter than announced")
            self._keep = False
        return count

    async def _send_file(self, message: Mapping[str, object]) -> None:
        file = message["file"]
        descriptor = file if isinstance(file, int) else cast("IO[bytes]", file).fileno()
        offset, count = cast("int | None", message.get("offset")), cast("int | None", message.get("count"))
        if offset is None:
            offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        if count is None:
            count = max(os.fstat(descriptor).st_size - offset, 0)
        more = bool(message.get("more_body"))
        head = b"" if self._began else self._head(count if not more else None)
        after = b""
        if self._bodiless:
            count = 0
        elif self._chunked_answer:
            head += b"%x\r\n" % count if count else b""
            after = (b"\r\n" if count else b"") + (b"" if more else b"0\r\n\r\n")
        elif self._to_send is not None:
            count = self._counted(count, more=more)
        await self._connection.transport.send_file(head, descriptor, offset, count)
        if after:
            await self._connection.transport.send(after)
        self._ended = not more

    @property
    def _bodiless(self) -> bool:
        return self._scope["method"] == "HEAD" or self._start["status"] in _BODILESS

    def _head(self, whole: int | None) -> bytes:
        """Return the head of the answer, whose body has `whole` bytes if that is known."""
        start = self._start
        if not start:
            raise RuntimeError("an answer begins with its start")
        status = cast("int", start["status"])
        headers = cast("list[tuple[bytes, bytes]]", start.get("headers", []))
        for name, value in headers:
            if name in _FRAMING_OF_ANSWERS:
                if name == b"content-length":
                    self._to_send = int(value)
                    continue
                # How an answer is framed, and when the connection ends, is the server's to say.
                headers = [header for header in headers if header[0] not in _OF_THE_SERVER]
                if name == b"connection" and b"close" in value.lower():
                    self._keep = False
        block = b"".join([b"%s: %s\r\n" % header for header in headers])
        if block.count(b"\n") != len(headers) or block.count(b"\r") != len(headers):
            raise ValueError("a header of the answer has a line break")
        parts = [
            b"HTTP/1.1 %d %s\r\n" % (status, _REASONS.get(status, b"")),
            self._connection.connections.date(),
            block,
        ]
        if self._to_send is None and not self._bodiless:
            if whole is not None:
                parts.append(b"content-length: %d\r\n" % whole)
                self._to_send = whole
            elif self._is_1_1:
                self._chunked_answer = True
                parts.append(b"transfer-encoding: chunked\r\n")
            else:
                self._keep = False
        if self._connection.connections.draining or (not self._received and (self._continues or whole is not None)):
            # Of a body that was not asked for, nobody knows whether it comes.
            self._keep = False
        if not self._keep:
            parts.append(b"connection: close\r\n")
        elif not self._is_1_1:
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")
        self._began = True
        return b"".join(parts)


class _Chunks:
    """A body that comes in chunks (RFC 9112, 7.1), read from a connection."""

    def __init__(self, connection: Http1) -> None:
        self._connection = connection
        self._left = 0
        self._ends_chunk = self._in_trailers = False
        self._extensions = 0
        self._trailers = 0
        self._turns = 0
        self.ended = False

    async def next(self) -> bytes:
        """Return the next bytes of the body, none at its end; whoever is cancelled here can ask again.

        Raises:
            _Refused: it is not chunked as it should be.
            ClientLeft: the client left.
        """
        self._turns += 1
        if self._turns % FAIR == 0:
            # Thousands of chunks may have been received at once.
            await trio.lowlevel.checkpoint()
        if not self._left:
            await self._next_chunk()
            if not self._left:
                await self._pass_trailers()
                self.ended = True
                return b""
        data = await self._connection.body(self._left)
        self._left -= len(data)
        self._ends_chunk = not self._left
        return data

    async def _next_chunk(self) -> None:
        if self._ends_chunk:
            await self._connection.line(0)
            self._ends_chunk = False
        if self._in_trailers:
            return
        match = _CHUNK_LINE.fullmatch(await self._connection.line(TRAILER_BYTES))
        if match is None:
            raise _Refused(400, "no chunk size")
        self._extensions += len(match[2] or b"")
        if self._extensions > EXTENSION_BYTES:
            raise _Refused(400, "the extensions of chunks are too large")
        self._left = int(match[1], 16)
        self._in_trailers = not self._left

    async def _pass_trailers(self) -> None:
        while line := await self._connection.line(TRAILER_BYTES):
            if _TRAILER.fullmatch(line) is None:
                raise _Refused(400, "no trailer")
            self._trailers += len(line) + 2
            if self._trailers > TRAILER_BYTES:
                raise _Refused(431, "the trailers are too large")

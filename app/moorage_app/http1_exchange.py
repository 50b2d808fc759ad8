"""A request of HTTP/1.1 and its answer, on a connection that somebody else reads heads from.

Answers for the framing of RFC 9112: where the body of a request ends, by its length or in chunks, and how an answer is
framed. What the application is called with, `receive` and `send`, is here. The rules are those of `http1.py`.
"""

import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import IO, Final, Protocol, cast

import trio
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent, HTTPScope

from moorage import ClientLeft

from .transports import FAIR, JOINED, Transport

_log = logging.getLogger("moorage.http1")

HEAD_BYTES: Final = 64 << 10
"""The largest head of a request."""
TRAILER_BYTES: Final = 16 << 10
"""The largest trailers, and the longest line between two chunks."""
EXTENSION_BYTES: Final = 64 << 10
"""How much of all the extensions of a body's chunks is taken."""

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;([\t\x20-\x7e\x80-\xff]*))?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_BODILESS: Final = frozenset({204, 304})
_OF_THE_SERVER: Final = frozenset({b"transfer-encoding", b"connection"})
_FRAMING_OF_ANSWERS: Final = frozenset({b"content-length", *_OF_THE_SERVER})

REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
"""What a status is called."""

ASGIApplication = Callable[
    [HTTPScope, Callable[[], Awaitable[ASGIReceiveEvent]], Callable[[ASGISendEvent], Awaitable[None]]], Awaitable[None]
]


class Refused(Exception):
    """A request that is not answered by the application; `status` says what it gets."""

    def __init__(self, status: int, reason: str) -> None:
        """Refuse with `status`, for `reason`."""
        super().__init__(reason)
        self.status = status


class Connection(Protocol):
    """What an exchange has of its connection."""

    @property
    def transport(self) -> Transport:
        """What the connection is made of."""
        ...

    @property
    def received(self) -> int:
        """How many bytes wait to be read."""
        ...

    @property
    def draining(self) -> bool:
        """Whether the connection shall end with this exchange."""
        ...

    def date(self) -> bytes:
        """Return the header `date`."""
        ...

    async def receive_more(self) -> bool:
        """Wait for more bytes and keep them; return whether there are any. Raises ClientLeft."""
        ...

    async def body(self, limit: int) -> bytes:
        """Return what comes next of a body, up to `limit` bytes. Raises ClientLeft."""
        ...

    async def line(self, limit: int) -> bytes:
        """Return the next line, of up to `limit` bytes, without its end. Raises Refused, ClientLeft."""
        ...

    async def refuse(self, refused: "Refused") -> None:
        """Say what is wrong with what was sent, and give up the connection."""
        ...

    async def linger(self) -> None:
        """Read what the client still sends."""
        ...


_FRAMING_HEADERS: Final = frozenset({
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"proxy-connection",
    b"expect",
})


def framing(headers: list[tuple[bytes, bytes]], *, is_1_1: bool) -> tuple[int, bool, bool, bool, bool]:
    """Return the length of a request's body, whether it is chunked, whether the connection is kept, and `Expect`.

    And whether there was no word about any of these.

    Raises:
        Refused: it cannot be told for certain where the request ends, or whom it is for.
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
                    raise Refused(400, "the length is not clear")
                length = int(value)
            case b"transfer-encoding":
                if length is not None or chunked or not is_1_1:
                    raise Refused(400, "the length is not clear")
                if value.lower() != b"chunked":
                    raise Refused(400, "an unknown transfer coding")
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
        raise Refused(400, "not one Host")
    return length or 0, chunked, keep and not close, continues, plain


class Exchange:
    """A request and its answer."""

    def __init__(
        self, connection: Connection, scope: HTTPScope, *, length: int, chunked: bool, keep: bool, continues: bool
    ) -> None:
        """Answer the request of `scope`, whose body is framed as `framing` says."""
        self._connection = connection
        self._scope = scope
        self._left = length
        self._chunks = Chunks(connection) if chunked else None
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
            await self._connection.refuse(Refused(500, "the application failed"))

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
            except Refused as refused:
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
            b"HTTP/1.1 %d %s\r\n" % (status, REASONS.get(status, b"")),
            self._connection.date(),
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
        if self._connection.draining or (not self._received and (self._continues or whole is not None)):
            # Of a body that was not asked for, nobody knows whether it comes.
            self._keep = False
        if not self._keep:
            parts.append(b"connection: close\r\n")
        elif not self._is_1_1:
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")
        self._began = True
        return b"".join(parts)


class Chunks:
    """A body that comes in chunks (RFC 9112, 7.1), read from a connection."""

    def __init__(self, connection: Connection) -> None:
        """Read from `connection`."""
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
            Refused: it is not chunked as it should be.
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
            raise Refused(400, "no chunk size")
        self._extensions += len(match[2] or b"")
        if self._extensions > EXTENSION_BYTES:
            raise Refused(400, "the extensions of chunks are too large")
        self._left = int(match[1], 16)
        self._in_trailers = not self._left

    async def _pass_trailers(self) -> None:
        while line := await self._connection.line(TRAILER_BYTES):
            if _TRAILER.fullmatch(line) is None:
                raise Refused(400, "no trailer")
            self._trailers += len(line) + 2
            if self._trailers > TRAILER_BYTES:
                raise Refused(431, "the trailers are too large")

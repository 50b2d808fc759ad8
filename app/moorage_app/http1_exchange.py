"""A request of HTTP/1.1 and its answer, on a connection that somebody else reads heads from.

Answers for the framing of RFC 9112: where the body of a request ends, by its length or in chunks, and how an answer is
framed. What the application is called with, `receive` and `send`, is here. The rules are those of `http1.py`.
"""

import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from http import HTTPStatus
from typing import IO, Final, Protocol, cast

import trio
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent, HTTPScope

from moorage import ClientLeft

from .http1_chunks import Chunks
from .http1_refusal import Refused
from .transports import JOINED, Pace, Transport

_log = logging.getLogger("moorage.http1")

HEAD_BYTES: Final = 64 << 10
"""The largest head of a request."""

QUICKLY: Final = "moorage.quickly"
"""The extension of ASGI's scope that takes a body in a thread: `take` is `Exchange.take_quickly`."""

_READ_BODY: Final = 256 << 10
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_BODILESS: Final = frozenset({204, 304})
_OF_THE_SERVER: Final = frozenset({b"transfer-encoding", b"connection"})
_FRAMING_OF_ANSWERS: Final = frozenset({b"content-length", *_OF_THE_SERVER})

REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
"""What a status is called."""

ASGIApplication = Callable[
    [HTTPScope, Callable[[], Awaitable[ASGIReceiveEvent]], Callable[[ASGISendEvent], Awaitable[None]]], Awaitable[None]
]


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
        """Return what comes next of a body, up to `limit` bytes. Raises Refused and ClientLeft."""
        ...

    def put_back(self, data: bytes) -> None:
        """Have `data` read again, before what comes next."""
        ...

    async def refuse(self, refused: Refused) -> None:
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
        self._chunks = Chunks() if chunked else None
        if length or chunked:
            scope["extensions"] = {**scope["extensions"], QUICKLY: {"take": self.take_quickly}}
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

    @cached_property
    def pace(self) -> Pace:
        """How long the body is waited for; made when some of it did not come with the head."""
        return Pace()

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
                await self._refuse(refused)
        elif not self._gone and not self._ended:
            await self._wait_gone()
        return {"type": "http.disconnect"}

    async def _refuse(self, refused: Refused) -> None:
        """Say what is wrong with the body: where it ends cannot be told, so nothing of the application comes after this."""
        began, self._began, self._ended, self._gone = self._began, True, True, True
        if not began:
            await self._connection.refuse(refused)

    async def _next(self) -> ASGIReceiveEvent:
        if self._continues:
            self._continues = False
            if not self._connection.received:
                await self._connection.transport.send(_CONTINUE)
        if self._chunks is not None:
            data = await self._next_of_chunks(self._chunks)
        else:
            data = await self._connection.body(min(self._left, _READ_BODY))
            self._left -= len(data)
            self._received = self._left == 0
        return {"type": "http.request", "body": data, "more_body": not self._received}

    async def _next_of_chunks(self, chunks: Chunks) -> bytes:
        """Return the next bytes of a body that comes in chunks, none at its end.

        Raises:
            Refused: it is not chunked as it should be, or the client is too slow.
            ClientLeft: the client left.
        """
        data = b""
        while not data and not chunks.ended:
            if self._connection.received:
                # Thousands of chunks may have been received at once.
                await trio.lowlevel.checkpoint()
            data = chunks.decode(await self._connection.body(_READ_BODY))
            self._connection.put_back(chunks.rest)
        self._received = chunks.ended
        return data

    async def take_quickly(self, take: Callable[[bytes], None]) -> tuple[int, bool]:
        """Have `take` called, in a thread, with what comes of the body, as long as it comes quickly.

        A turn of the event loop for each piece, and another thread for what is done with it, cost more than the bytes.

        Returns:
            how many bytes were taken, none if this cannot be or they do not come at once; and whether more follow.
        """
        connection = self._connection
        if self._received or self._gone or self._continues or connection.received:
            return 0, not self._received
        received = taken = 0
        chunks = self._chunks

        def step(data: bytes) -> bool:
            nonlocal received, taken
            received += len(data)
            content = data if chunks is None else chunks.decode(data)
            taken += len(content)
            if content:
                take(content)
            # Chunks of a few bytes are not worth a thread.
            return chunks is None or not (chunks.ended or chunks.rest)

        try:
            await connection.transport.receive_quickly(self._left if chunks is None else None, step)
        except Refused as refused:
            await self._refuse(refused)
            return taken, True
        finally:
            # Also when `take` fails: what is read on begins behind what was received.
            self.pace.moved(received)
            if chunks is None:
                self._left -= received
                self._received = self._left == 0
            elif received:
                connection.put_back(chunks.rest)
                self._received = chunks.ended
        return taken, not self._received

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

"""One HTTP/1.1 connection of the generator: bytes out of a request, an answer out of bytes, on a socket that never blocks.

Its owner watches the socket for what `interest` says and calls `advance` when something happened there. Bodies are received
into one buffer that all connections share, and never put together unless somebody wants them.
"""

import errno
import hashlib
import os
import select
import socket
import ssl
from collections.abc import Iterator

import httptools

from .messages import Answer, Failed, Request
from .targets import Origin

IN = select.EPOLLIN
OUT = select.EPOLLOUT

_LONGEST_HEAD = 64 << 10
_MOST_KEPT = 64 << 20
_MOST_OF_AN_ERROR = 4096
_MOST_DIGITS = 18
_SEND_AT_ONCE = 1 << 20
_WITHOUT_BODY = frozenset({204, 304})
_FINAL = 200

_CONNECTING, _HANDSHAKE, _IDLE, _HEAD, _BODY, _CHUNKED, _CLOSED = range(7)


class _Chunked:
    """A body in chunked coding, as its parser reports it."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self.complete = False
        self.parser = httptools.HttpResponseParser(self)

    def on_body(self, body: bytes) -> None:
        self._connection.take(memoryview(body))

    def on_message_complete(self) -> None:
        self.complete = True


class Connection:
    """Sends one request at a time; `request` is the one under way."""

    __slots__ = (
        "_answer_head",
        "_buffer",
        "_chunked",
        "_hashed",
        "_kept",
        "_more",
        "_partial",
        "_phase",
        "_received",
        "_remaining",
        "_socket",
        "_status",
        "_stays",
        "_tls",
        "_to_send",
        "_view",
        "descriptor",
        "interest",
        "origin",
        "owner",
        "request",
        "touched",
        "watched",
    )

    def __init__(
        self,
        origin: Origin,
        address: tuple[socket.AddressFamily, tuple[str, int]],
        tls: ssl.SSLContext | None,
        buffer: bytearray,
        owner: int,
    ) -> None:
        self.origin = origin
        self.owner = owner
        self.interest = self.watched = OUT
        self.touched = 0
        self.request: Request | None = None
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._to_send: memoryview | None = None
        self._more: Iterator[memoryview] = iter(())
        self._partial = b""
        self._status = self._received = 0
        self._remaining: int | None = 0
        self._answer_head = b""
        self._kept: list[bytes] | None = None
        self._stays = True
        self._chunked: _Chunked | None = None
        self._hashed = hashlib.sha256()
        plain = socket.socket(address[0], socket.SOCK_STREAM)
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = plain.connect_ex(address[1])
        if code not in {0, errno.EINPROGRESS}:
            plain.close()
            raise Failed("connect", f"{origin.authority}: {os.strerror(code)}")
        self._socket: socket.socket = plain
        self._phase = _CONNECTING
        self._tls = tls if origin.scheme == "https" else None
        self.descriptor = plain.fileno()

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return self._phase != _CLOSED

    @property
    def is_ready(self) -> bool:
        """Whether a request would be sent at once."""
        return self._phase == _IDLE

    def close(self) -> None:
        """Close it; what was under way is lost."""
        self._phase = _CLOSED
        self._socket.close()

    def start(self, request: Request) -> None:
        """Send a request, as soon as the connection is there."""
        self.request = request
        sent = 0
        if self._phase == _IDLE:
            self._phase = _HEAD
            if not request.parts:
                # The usual way: all of it at once, and nothing to remember.
                try:
                    sent = self._socket.send(request.wire)
                except OSError:
                    # Tried again below, where it is found out why.
                    sent = 0
                if sent == len(request.wire):
                    self._to_send = None
                    return
        self._to_send = memoryview(request.wire)[sent:]
        self._more = iter(request.parts)
        if self._phase == _HEAD:
            self._send()

    def advance(self, mask: int) -> Answer | None:
        """Go on after something happened at the socket; return the answer when it is whole.

        Raises:
            Failed: the connection broke, or what came is no answer.
        """
        if self._phase <= _HANDSHAKE:
            self._connect()
            return None
        if mask & OUT and self._to_send is not None:
            self._send()
        if mask & ~OUT:
            while True:
                answer = self._receive()
                # What TLS has unpacked already is not seen at the socket.
                if answer is not None or not isinstance(self._socket, ssl.SSLSocket) or not self._socket.pending():
                    return answer
        return None

    def _connect(self) -> None:
        if self._phase == _CONNECTING:
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise Failed("connect", f"{self.origin.authority}: {os.strerror(code)}")
            self._phase = _HANDSHAKE
            if self._tls is not None:
                # The descriptor stays the same.
                self._socket = self._tls.wrap_socket(
                    self._socket, server_hostname=self.origin.host, do_handshake_on_connect=False
                )
        if isinstance(self._socket, ssl.SSLSocket):
            try:
                self._socket.do_handshake()
            except ssl.SSLWantReadError:
                self.interest = IN
                return
            except ssl.SSLWantWriteError:
                self.interest = OUT
                return
            except ssl.SSLCertVerificationError as error:
                raise Failed("tls", f"{self.origin.authority}: {error.verify_message}") from error
            except OSError as error:
                raise Failed("tls", f"{self.origin.authority}: {error.strerror or error}") from error
        self._phase = _IDLE
        self.interest = IN
        if self.request is not None:
            self._phase = _HEAD
            self._send()

    def _send(self) -> None:
        sent_in_all = 0
        while self._to_send is not None:
            piece = self._to_send[:_SEND_AT_ONCE]
            try:
                sent = self._socket.send(piece)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                self.interest = IN | OUT
                return
            except OSError:
                # It may have answered before it stopped to listen; reading tells.
                self._to_send, self._stays = None, False
                break
            sent_in_all += sent
            rest = self._to_send[sent:]
            self._to_send = rest if len(rest) else next(self._more, None)
            if self._to_send is not None and (sent < len(piece) or sent_in_all >= _SEND_AT_ONCE):
                self.interest = IN | OUT
                return
        self.interest = IN

    def _receive(self) -> Answer | None:
        try:
            count = self._socket.recv_into(self._buffer)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError as error:
            raise Failed("closed", f"{self._what()}: {error.strerror or error}") from error
        if self._phase == _IDLE:
            raise Failed("closed", f"{self.origin.authority}: closed while nothing was asked")
        if not count:
            return self._ended()
        if self._phase == _BODY:
            return self._body(0, count)
        if self._phase == _CHUNKED:
            return self._feed(bytes(self._view[:count]))
        return self._head(count)

    def _head(self, count: int) -> Answer | None:
        if self._partial:
            # Rare, so it may cost: what came before is put in front of what came now.
            joined = self._partial + bytes(self._view[:count])
            self._partial = b""
            if len(joined) > len(self._buffer):
                raise Failed("garbage", f"{self._what()}: no answer of HTTP")
            self._view[: len(joined)] = joined
            count = len(joined)
        end = self._buffer.find(b"\r\n\r\n", 0, count)
        if end < 0 or end > _LONGEST_HEAD:
            began = bytes(self._view[: min(count, 9)])
            if count > _LONGEST_HEAD or not (b"HTTP/1.1 ".startswith(began) or b"HTTP/1.0 ".startswith(began)):
                raise Failed("garbage", f"{self._what()}: no answer of HTTP: {began!r}")
            self._partial = bytes(self._view[:count])
            return None
        head = bytes(self._view[:end])
        status = head[9:12]
        if head[:7] != b"HTTP/1." or head[8:9] != b" " or not status.isdigit():
            raise Failed("garbage", f"{self._what()}: no answer of HTTP: {head[:40]!r}")
        self._status = int(status)
        if self._status < _FINAL:
            # Another one follows.
            self._partial = bytes(self._view[end + 4 : count])
            return self._head(0) if self._partial else None
        return self._framed(head, end + 4, count)

    def _framed(self, head: bytes, start: int, count: int) -> Answer | None:
        """Find out how long the body is, and take what has come of it."""
        request = self.request
        if request is None:
            raise Failed("garbage", f"{self.origin.authority}: an answer to nothing")
        lowered = head.lower()
        self._answer_head = head
        self._received = 0
        good = self._status in request.expected
        self._kept = [] if request.keep or not good else None
        if request.digest is not None:
            self._hashed = hashlib.sha256()
        self._stays = self._stays and head[7:8] == b"1" and b"\r\nconnection: close" not in lowered
        if request.method == "HEAD" or self._status in _WITHOUT_BODY:
            self._remaining = 0
        elif b"\r\ntransfer-encoding:" in lowered:
            self._phase, self._chunked = _CHUNKED, _Chunked(self)
            return self._feed(head + b"\r\n\r\n" + self._view[start:count])
        else:
            at = lowered.find(b"\r\ncontent-length:")
            if at < 0:
                self._remaining, self._stays = None, False
            else:
                stop = lowered.find(b"\r\n", at + 17)
                value = lowered[at + 17 : stop if stop > 0 else None].strip()
                if not value.isdigit() or len(value) > _MOST_DIGITS:
                    raise Failed("garbage", f"{self._what()}: Content-Length is {value[:40]!r}")
                self._remaining = int(value)
        self._phase = _BODY
        return self._body(start, count)

    def _body(self, start: int, end: int) -> Answer | None:
        size = end - start
        if self._remaining is not None and size > self._remaining:
            raise Failed("garbage", f"{self._what()}: {size - self._remaining} bytes more than were promised")
        if self._kept is not None or (self.request is not None and self.request.digest is not None):
            self.take(self._view[start:end])
        else:
            self._received += size
        if self._remaining is None:
            return None
        self._remaining -= size
        return None if self._remaining else self._whole()

    def take(self, part: memoryview) -> None:
        """Take a part of the body, where it is looked at."""
        request = self.request
        self._received += len(part)
        if request is not None and request.digest is not None:
            self._hashed.update(part)
        if self._kept is not None:
            good = self._status in request.expected if request is not None else False
            if self._received <= (_MOST_KEPT if good else _MOST_OF_AN_ERROR):
                self._kept.append(bytes(part))

    def _feed(self, data: bytes) -> Answer | None:
        chunked = self._chunked
        if chunked is None:
            raise Failed("garbage", f"{self._what()}: a chunk of nothing")
        try:
            chunked.parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise Failed("garbage", f"{self._what()}: {error}") from error
        if not chunked.complete:
            return None
        self._chunked = None
        return self._whole()

    def _ended(self) -> Answer | None:
        """Nothing more comes."""
        if self._phase == _BODY and self._remaining is None:
            return self._whole()
        if self._phase == _BODY and self._remaining is not None:
            raise Failed("closed", f"{self._what()}: closed {self._remaining} bytes before the end")
        before = "in the midst of" if self._phase == _CHUNKED or self._partial else "without"
        raise Failed("closed", f"{self._what()}: closed {before} an answer")

    def _whole(self) -> Answer:
        request = self.request
        body = b"".join(self._kept) if self._kept else b""
        answer = Answer(self._status, self._answer_head, self._received, body)
        wanted = request.digest if request is not None and self._status == _FINAL else None
        if request is not None and request.size not in {None, self._received}:
            # That is what is told of it.
            wanted = None
        if wanted is not None and f"sha256:{self._hashed.hexdigest()}" != wanted:
            raise Failed("digest", f"{self._what()}: the body has another digest")
        # An answer that came before all was sent leaves a connection that nobody can use.
        stays = self._stays and self._to_send is None
        self._phase = _IDLE
        self.request = None
        if not stays:
            self.close()
        return answer

    def _what(self) -> str:
        return f"{self.request.method} {self.request.path}" if self.request is not None else self.origin.authority

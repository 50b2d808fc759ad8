"""A client that speaks HTTP/2 by `h2`, and may send frames that no client should."""

import select
import socket
import ssl
import time
from collections.abc import Sequence
from functools import partial

import h2.config
import h2.connection
import h2.errors
import h2.events
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame

from servers import Server

_PATIENCE = 60.0
_PIECE = 64 << 10


class Http2Peer:
    """One connection, as long as the server keeps it."""

    def __init__(self, server: Server) -> None:
        """Connect to `server`, by TLS where it speaks that."""
        self.socket: socket.socket | ssl.SSLSocket = socket.create_connection(("127.0.0.1", server.port), _PATIENCE)
        if server.tls is not None:
            server.tls.set_alpn_protocols(["h2"])  # which httpx changes
            self.socket = server.tls.wrap_socket(self.socket, server_hostname="localhost")
            assert self.socket.selected_alpn_protocol() == "h2"
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
        self.h2.initiate_connection()
        # Huffman's code takes the square of the length to make.
        self.h2.encoder.encode = partial(self.h2.encoder.encode, huffman=False)  # type: ignore[method-assign]
        self.events: list[h2.events.Event] = []
        self.ended = False
        self._host = server.host

    def request(self, *more: tuple[str, str], method: str = "GET", path: str = "/v2/", end: bool = True) -> int:
        """Have a request ready to be sent; return the number of its stream."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [*self.heads(method, path), *more], end_stream=end)
        return stream

    def heads(self, method: str = "GET", path: str = "/v2/") -> list[tuple[str, str]]:
        """Return what each request says."""
        return [(":method", method), (":scheme", "http"), (":authority", self._host), (":path", path)]

    def block(self, stream: int, pieces: Sequence[bytes], *, end: bool) -> bytes:
        """Return the frames of a block of headers in `pieces`, the last of which says that it ends if `end` does."""
        first = HeadersFrame(stream, data=pieces[0], flags=["END_STREAM"])
        frames: list[Frame] = [first, *(ContinuationFrame(stream, data=piece) for piece in pieces[1:])]
        if end:
            frames[-1].flags.add("END_HEADERS")
        return b"".join(frame.serialize() for frame in frames)

    def talk(self, data: bytes = b"", *, until: type[h2.events.Event] | None = None, count: int = 1) -> None:
        """Send what is ready, then `data`, taking what comes meanwhile; end with `count` events `until`, or the connection."""
        left = memoryview(self.h2.data_to_send() + data)
        wanted = count + sum(isinstance(event, until) for event in self.events) if until else 0
        deadline = time.monotonic() + _PATIENCE
        self.socket.setblocking(False)
        while not self.ended and (left or (until and sum(isinstance(e, until) for e in self.events) < wanted)):
            assert time.monotonic() < deadline, "nothing happens any more"
            if not self._pending():
                select.select([self.socket], [self.socket] if left else [], [], 1)
            try:
                if left:
                    left = left[self.socket.send(left[:_PIECE]) :]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            except OSError:
                left = left[:0]  # it takes no more; what it said may still be read
            self._take()
            if not left:
                left = memoryview(self.h2.data_to_send())

    def _pending(self) -> int:
        return self.socket.pending() if isinstance(self.socket, ssl.SSLSocket) else 0

    def _take(self) -> None:
        try:
            received = self.socket.recv(_PIECE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            received = b""
        if not received:
            self.ended = True
            return
        self.events += self.h2.receive_data(received)

    def why_ended(self) -> h2.errors.ErrorCodes | int | None:
        """Return by which error the server ended the connection, None if it said nothing."""
        for event in self.events:
            if isinstance(event, h2.events.ConnectionTerminated):
                return event.error_code
        return None

    def close(self) -> None:
        """Leave."""
        self.socket.close()

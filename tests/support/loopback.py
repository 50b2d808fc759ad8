"""HTTP/1.1 servers in threads of the tests' own process, on loopback, that leave no socket behind."""

import socket
import struct
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_PIECE = 1 << 16
_LONGEST_LINE = 1 << 16

_Socket = socket.socket | tuple[bytes, socket.socket]


class LoopbackServer(ThreadingHTTPServer):
    """A server with a thread for each connection; all of them have ended when it is closed."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, handler: type["LoopbackHandler"]) -> None:
        """Listen on a free port; answer with `handler`."""
        super().__init__(("127.0.0.1", 0), handler)
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._broken: set[socket.socket] = set()

    def process_request(self, request: _Socket, client_address: object) -> None:
        """Answer a connection in a thread of its own."""
        assert isinstance(request, socket.socket)
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def break_when_done(self, request: socket.socket) -> None:
        """Let a connection end with a reset instead of an orderly close."""
        request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with self._lock:
            self._broken.add(request)

    def shutdown_request(self, request: _Socket) -> None:
        """End a connection."""
        assert isinstance(request, socket.socket)
        with self._lock:
            self._open.discard(request)
            broken = request in self._broken
            self._broken.discard(request)
        if broken:
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: _Socket, client_address: object) -> None:
        """Say nothing of clients that went away; anything else is a fault of the server, and printed."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Take no more connections, break those that are open, and wait for their threads."""
        self.closing.set()
        self.shutdown()
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it went away by itself
        self.server_close()


class LoopbackHandler(BaseHTTPRequestHandler):
    """Keep-alive, bodies of a known length or in chunks, replies without delay."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = 120

    def reply(self) -> None:
        """Answer one request, of whichever method."""
        raise NotImplementedError

    def parse_request(self) -> bool:
        """Read the head of a request; all methods have the same answer."""
        parsed = super().parse_request()
        if parsed:
            setattr(self, f"do_{self.command}", self.reply)
        return parsed

    def handle_expect_100(self) -> bool:
        """Tell the client to go on at once: it waits for that, and what is written is buffered."""
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name that http.server gave it
        """Write nothing: what was asked is recorded, not logged."""

    @property
    def loopback(self) -> LoopbackServer:
        """The server."""
        assert isinstance(self.server, LoopbackServer)
        return self.server

    def pieces(self) -> Iterator[bytes]:
        """Yield the request's body.

        Raises:
            ConnectionError: The client went away in the middle of it.
        """
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self._line().split(b";")[0], 16):
                yield from self._read(size)
                self._line()
            while self._line().strip():
                continue
        else:
            yield from self._read(int(self.headers.get("Content-Length") or 0))

    def _line(self) -> bytes:
        line = self.rfile.readline(_LONGEST_LINE)
        if not line:
            raise ConnectionResetError("the client went away")
        return line

    def _read(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self.rfile.read(min(size, _PIECE))
            if not piece:
                raise ConnectionResetError("the client went away")
            size -= len(piece)
            yield piece

    def break_connection(self) -> None:
        """End the connection with a reset instead of an orderly close."""
        self.close_connection = True
        self.loopback.break_when_done(self.connection)


@contextmanager
def serving(server: LoopbackServer) -> Generator[None]:
    """Answer requests in threads until the block ends."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name=f"loopback:{server.port}")
    thread.start()
    try:
        yield
    finally:
        server.close()
        thread.join()

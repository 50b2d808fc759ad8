"""HTTP proxies in front of a service: they count what is asked, spoil it, or deal it out over several servers.

What passes is left as it was, the Host header too, so that signatures hold. A request goes to the service over a
connection of its own; the client's connection is kept alive.
"""

import http.client
import itertools
import re
import threading
import urllib.parse
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from loopback import LoopbackHandler, LoopbackServer, serving

_SECONDS = 60.0
_PIECE = 1 << 16
# They are about one connection, not about what is asked.
_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "expect"})


@dataclass(frozen=True)
class Request:
    """What was asked: `path` without, and `query` of what follows the question mark; both as they were sent."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False, compare=False)

    @property
    def target(self) -> str:
        """Path and query."""
        return f"{self.path}?{self.query}" if self.query else self.path


Matcher = Callable[[Request], bool]


def matching(method: str | None = None, target: str = "") -> Matcher:
    """Match requests of `method` (None: any) in whose path and query the pattern `target` is found."""
    return lambda request: method in {None, request.method} and re.search(target, request.target) is not None


@dataclass(frozen=True)
class ResetBefore:
    """Break the connection; the service never hears of the request."""


@dataclass(frozen=True)
class ResetAfter:
    """Break the connection when the service has done what was asked: the reply is lost."""


@dataclass(frozen=True)
class Answer:
    """Answer in place of the service, which never hears of the request."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Stall:
    """Let the service do what was asked, then send nothing for a while; with `after`, once so much of the body is sent."""

    seconds: float
    after: int | None = None


@dataclass(frozen=True)
class CutBody:
    """End the connection after so many bytes of the reply's body, whatever its length says."""

    size: int


Action = ResetBefore | ResetAfter | Answer | Stall | CutBody


def slow_down(status: int = 503, retry_after: int = 1) -> Answer:
    """The answer of a service that has too much to do."""
    body = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code><Message>Slow down.</Message></Error>"
    return Answer(status, body, {"Content-Type": "application/xml", "Retry-After": str(retry_after)})


def expired_token(status: int = 400) -> Answer:
    """The answer of S3 to credentials that have run out; some servers say it with a 403."""
    body = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>ExpiredToken</Code><Message>Expired.</Message></Error>"
    return Answer(status, body, {"Content-Type": "application/xml"})


@dataclass
class _Fault:
    matcher: Matcher
    action: Action
    left: int


class Proxy:
    """A proxy that runs; `requests` are those it was asked, in the order in which their heads were read."""

    def __init__(self, url: str, port: int, upstreams: Sequence[tuple[str, int]]) -> None:
        """Stand at `url` in front of `upstreams`, hosts and ports, which take turns."""
        self.url = url
        self.port = port
        self._upstreams = upstreams
        self._turns = itertools.count()
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._faults: list[_Fault] = []

    @property
    def requests(self) -> tuple[Request, ...]:
        """What was asked since the start or `reset`."""
        with self._lock:
            return tuple(self._requests)

    def reset(self) -> None:
        """Forget what was asked, and what is yet to be spoilt."""
        with self._lock:
            self._requests.clear()
            self._faults.clear()

    def note(self, request: Request) -> Action | None:
        """Keep a request; return what is to be done to it. Of several faults that match the oldest is taken."""
        with self._lock:
            self._requests.append(request)
            for fault in self._faults:
                if fault.left and fault.matcher(request):
                    fault.left -= 1
                    return fault.action
        return None

    def connect(self) -> http.client.HTTPConnection:
        """Connect to the service whose turn it is, or to the next one that listens.

        Raises:
            ConnectionRefusedError: None of them listens.
        """
        turn = next(self._turns)
        for number in range(len(self._upstreams)):
            host, port = self._upstreams[(turn + number) % len(self._upstreams)]
            connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
            try:
                connection.connect()
            except ConnectionRefusedError:
                continue
            return connection
        raise ConnectionRefusedError("no service listens")


class FaultProxy(Proxy):
    """A proxy that can be told to spoil requests."""

    def fault(self, matcher: Matcher, action: Action, times: int = 1) -> None:
        """Do `action` to the next `times` requests that match."""
        with self._lock:
            self._faults.append(_Fault(matcher, action, times))

    @property
    def faults_left(self) -> int:
        """How many requests are yet to be spoilt."""
        with self._lock:
            return sum(fault.left for fault in self._faults)


class _Handler(LoopbackHandler):
    def reply(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        action = server.proxy.note(Request(self.command, path, query, headers))
        if isinstance(action, ResetBefore):
            self.break_connection()
            return
        if isinstance(action, Answer):
            self._answer(action)
            return
        try:
            connection = server.proxy.connect()
        except ConnectionRefusedError:
            self._answer(Answer(502))
            return
        with closing(connection):
            self._forward(connection)
            try:
                # The response closes the connection itself when its body has no length.
                with connection.getresponse() as response:
                    self._relay(response, action)
            except http.client.HTTPException as error:
                raise ConnectionResetError("the service broke off") from error

    def _answer(self, answer: Answer) -> None:
        for _ in self.pieces():
            continue
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _forward(self, connection: http.client.HTTPConnection) -> None:
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP:
                connection.putheader(name, value)
        connection.putheader("Connection", "close")
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        refused = False
        for piece in _framed(self.pieces()) if chunked else self.pieces():
            # Whoever answers before the body's end may hear no more of it; the client sends it all the same.
            try:
                if not refused:
                    connection.send(piece)
            except (BrokenPipeError, ConnectionResetError):
                refused = True

    def _relay(self, response: http.client.HTTPResponse, action: Action | None) -> None:
        if isinstance(action, ResetAfter):
            response.read()
            self.break_connection()
            return
        if isinstance(action, Stall) and action.after is None:
            self.loopback.closing.wait(action.seconds)
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        bare = self.command == "HEAD" or response.status in {204, 304}
        chunked = not bare and response.getheader("Content-Length") is None
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if bare:
            return
        body = self._spoilt(iter(lambda: response.read1(_PIECE), b""), action)
        for piece in _framed(body) if chunked else body:
            self.wfile.write(piece)
            self.wfile.flush()
            if self.close_connection and isinstance(action, CutBody):
                return

    def _spoilt(self, body: Iterable[bytes], action: Action | None) -> Generator[bytes]:
        """Yield the body up to where it is cut or stalls, then what the fault leaves of it."""
        at = action.size if isinstance(action, CutBody) else action.after if isinstance(action, Stall) else None
        sent = 0
        for piece in body:
            if at is not None and sent + len(piece) >= at:
                if isinstance(action, CutBody):
                    self.close_connection = True
                    yield piece[: at - sent]
                    return
                assert isinstance(action, Stall)
                yield piece[: at - sent]
                self.loopback.closing.wait(action.seconds)
                piece, sent, at = piece[at - sent :], at, None
            sent += len(piece)
            yield piece


def _framed(pieces: Iterable[bytes]) -> Generator[bytes]:
    for piece in pieces:
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


class _Server(LoopbackServer):
    proxy: Proxy

    def __init__(self) -> None:
        super().__init__(_Handler)


def _address(url: str) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(url)
    assert parts.scheme == "http", url
    assert parts.hostname is not None, url
    return parts.hostname, parts.port or 80


@contextmanager
def counting_proxy(upstream_url: str) -> Generator[Proxy]:
    """Run a proxy in front of a service; only the host and port of `upstream_url` count."""
    server = _Server()
    server.proxy = proxy = Proxy(server.url, server.port, [_address(upstream_url)])
    with serving(server):
        yield proxy


@contextmanager
def fault_proxy(upstream_url: str) -> Generator[FaultProxy]:
    """Run a proxy in front of a service that spoils what it is told to."""
    server = _Server()
    server.proxy = proxy = FaultProxy(server.url, server.port, [_address(upstream_url)])
    with serving(server):
        yield proxy


@contextmanager
def round_robin_proxy(*upstream_urls: str) -> Generator[FaultProxy]:
    """Run a proxy that gives each request to the next of several services that listens."""
    server = _Server()
    server.proxy = proxy = FaultProxy(server.url, server.port, [_address(url) for url in upstream_urls])
    with serving(server):
        yield proxy

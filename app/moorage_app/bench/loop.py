"""Many clients in one thread: each does one operation after another, and what became of them is counted."""

import heapq
import select
import socket
import ssl
import time
from collections.abc import Callable, Generator
from typing import NamedTuple, Self

from .connection import Connection
from .messages import Answer, Failed, Request
from .pace import Pace
from .statistics import NS, Tally
from .targets import Origin, WrongTarget

Script = Generator[Request, Answer, int]
"""An operation of several requests; it returns how many bytes it has moved."""


class Operation(NamedTuple):
    """What a client does next: one request, or a script; and under which name it is counted."""

    series: str
    what: Request | Script


_BUFFER_BYTES = 1 << 20
_LOOK_NS = NS // 5
_REST_NS = NS // 50
"""How long a client waits after its connection failed: a registry that is gone is not asked as fast as can be."""
_LAST_NS = 2 * NS
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_OF_THE_CONNECTION = frozenset({"connect", "tls", "closed", "timeout", "garbage"})


class _Client:
    """One client: what it is doing, and its connections."""

    __slots__ = ("began", "connections", "number", "redirects", "request", "script", "series")

    def __init__(self, number: int) -> None:
        self.number = number
        self.connections: dict[Origin, Connection] = {}
        self.request: Request | None = None
        self.script: Script | None = None
        self.series = ""
        self.began = 0
        self.redirects = 0


class Loop:
    """Runs clients. `tallies` is what was counted, by series."""

    def __init__(
        self,
        origin: Origin,
        *,
        clients: int,
        pace: Pace,
        operation: Callable[[], Operation],
        timeout: float,
        tls: ssl.SSLContext | None = None,
        follow: Callable[[Origin], bool] | None = None,
    ) -> None:
        self._origin = origin
        self._tls = tls
        self._pace = pace
        self._operation = operation
        self._timeout = round(timeout * NS)
        self._follow = follow
        self._clients = [_Client(number) for number in range(clients)]
        self._idle: list[_Client] = []
        self._resting: list[tuple[int, int]] = []
        self._busy = 0
        self._by_descriptor: dict[int, Connection] = {}
        self._buffer = bytearray(_BUFFER_BYTES)
        self._addresses: dict[Origin, list[tuple[socket.AddressFamily, tuple[str, int]]]] = {}
        self._epoll = select.epoll()
        self._give_up_at: float = float("inf")
        self._stopping = False
        self._over = False
        self.tallies: dict[str, Tally] = {}
        self.requests = 0
        self.unfinished = 0
        self.elapsed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in list(self._by_descriptor.values()):
            connection.close()
        for client in self._clients:
            if client.script is not None:
                client.script.close()
        self._epoll.close()

    def stop(self) -> None:
        """Let nothing begin any more: answers under way are waited for, a little, so that it is known what was pushed."""
        self._stopping = True

    def connect(self) -> None:
        """Connect every client, so that this is no part of what is measured; what fails is tried again later."""
        deadline = time.perf_counter_ns() + self._timeout
        for number in range(len(self._clients)):
            try:
                self._connection(number, self._origin)
            except Failed:
                return
        waiting = set(self._by_descriptor)
        while waiting and not self._stopping and (left := deadline - time.perf_counter_ns()) > 0:
            for descriptor, mask in self._epoll.poll(min(left / NS, 0.2)):
                connection = self._by_descriptor[descriptor]
                try:
                    connection.advance(mask)
                except Failed:
                    self._drop(connection)
                    return
                if connection.is_ready:
                    waiting.discard(descriptor)
                self._watch(connection)

    def run(self) -> None:
        """Run until the pace lets nothing begin any more and all that began has ended."""
        now = start = time.perf_counter_ns()
        look = now + _LOOK_NS
        self._pace.begin(now)
        self._idle = list(self._clients)
        self._begin_idle(now)
        poll, by_descriptor, clock = self._epoll.poll, self._by_descriptor, time.perf_counter_ns
        while not self._over:
            if self._idle or self._resting:
                self._sleep(now)
                events = poll(0.0)
            else:
                events = poll(_LOOK_NS / NS)
            for descriptor, mask in events:
                connection = by_descriptor.get(descriptor)
                if connection is None:
                    continue
                connection.touched = now
                try:
                    answer = connection.advance(mask)
                    if answer is not None:
                        self._answered(connection, answer, clock())
                except Failed as failed:
                    self._broke(connection, failed, clock())
                    continue
                if connection.interest != connection.watched:
                    self._watch(connection)
            now = clock()
            if self._idle or self._resting:
                self._begin_idle(now)
            if now > look:
                look = now + _LOOK_NS
                self._look(now)
            if not self._busy and (self._stopping or (not self._resting and self._pace.wait(now) is None)):
                break
        self.elapsed = max(1, time.perf_counter_ns() - start)
        self.unfinished += self._busy

    def _sleep(self, now: int) -> None:
        """Wait for something to do. Not by epoll, which counts in milliseconds, but by select, for it alone."""
        waits = [_LOOK_NS]
        if self._idle and (wait := self._pace.wait(now)) is not None:
            waits.append(wait)
        if self._resting:
            waits.append(max(0, self._resting[0][0] - now))
        select.select([self._epoll], (), (), min(waits) / NS)

    def _take(self, now: int) -> int | None:
        return None if self._stopping else self._pace.take(now)

    def _begin_idle(self, now: int) -> None:
        while self._resting and self._resting[0][0] <= now:
            self._idle.append(self._clients[heapq.heappop(self._resting)[1]])
        while self._idle and (due := self._take(now)) is not None:
            self._begin(self._idle.pop(), due)

    def _begin(self, client: _Client, due: int) -> None:
        """Let a client begin the next operation."""
        self._start(client, due, self._operation())

    def _start(self, client: _Client, due: int, operation: Operation) -> None:
        self._busy += 1
        client.began = due
        client.series, what = operation
        try:
            if isinstance(what, Request):
                client.script, first = None, what
            else:
                client.script = what
                first = next(what)
            self._ask(client, first)
        except StopIteration as done:
            self._ended(client, int(done.value or 0), time.perf_counter_ns())
        except Failed as failed:
            self._failed(client, failed, time.perf_counter_ns())

    def _ask(self, client: _Client, request: Request) -> None:
        client.request = request
        client.redirects = 0
        self._send(client, request)

    def _send(self, client: _Client, request: Request) -> None:
        connection = client.connections.get(request.origin)
        if connection is None or not connection.is_open:
            connection = self._connection(client.number, request.origin)
        connection.touched = time.perf_counter_ns()
        connection.start(request)
        if connection.interest != connection.watched:
            self._watch(connection)

    def _connection(self, number: int, origin: Origin) -> Connection:
        """Open a connection for a client."""
        if origin not in self._addresses:
            try:
                self._addresses[origin] = origin.addresses()
            except WrongTarget as error:
                raise Failed("connect", str(error)) from error
        addresses = self._addresses[origin]
        connection = Connection(origin, addresses[0], self._tls, self._buffer, number)
        connection.touched = time.perf_counter_ns()
        self._by_descriptor[connection.descriptor] = connection
        self._epoll.register(connection.descriptor, connection.interest)
        self._clients[number].connections[origin] = connection
        return connection

    def _watch(self, connection: Connection) -> None:
        if connection.is_open:
            self._epoll.modify(connection.descriptor, connection.interest)
            connection.watched = connection.interest

    def _drop(self, connection: Connection) -> None:
        connection.close()
        # Its descriptor, and its client, may have got another one meanwhile.
        if self._by_descriptor.get(connection.descriptor) is connection:
            del self._by_descriptor[connection.descriptor]
        connections = self._clients[connection.owner].connections
        if connections.get(connection.origin) is connection:
            del connections[connection.origin]

    def _answered(self, connection: Connection, answer: Answer, now: int) -> None:
        """Judge an answer, and let its client go on."""
        client = self._clients[connection.owner]
        if not connection.is_open:
            self._drop(connection)
        self.requests += 1
        request = client.request
        if request is None:
            return
        try:
            if answer.status not in request.expected:
                if answer.status in _REDIRECTS and self._follow is not None and request.method in {"GET", "HEAD"}:
                    self._redirect(client, request, answer, self._follow)
                    return
                raise Failed(str(answer.status), _said(request, answer))
            if request.size is not None and answer.size != request.size and answer.status not in _REDIRECTS:
                raise Failed("length", f"{request.method} {request.path}: {answer.size} bytes, not {request.size}")
            if client.script is None:
                self._ended_one(client, connection, answer.size + request.body_size, now)
            else:
                following = client.script.send(answer)
                if self._stopping:
                    client.script.close()
                    self._free(client)
                    self.unfinished += 1
                else:
                    self._ask(client, following)
        except StopIteration as done:
            self._ended(client, int(done.value or 0), now)
        except Failed as failed:
            self._failed(client, failed, now)

    def _redirect(
        self, client: _Client, request: Request, answer: Answer, may_follow: Callable[[Origin], bool]
    ) -> None:
        client.redirects += 1
        further = request.redirected(answer.header("Location"))
        if client.redirects > _MOST_REDIRECTS:
            raise Failed("redirect", f"{request.method} {request.path}: sent on and on")
        if not may_follow(further.origin):
            raise Failed(
                "redirect", f"sent to {further.origin.authority}, which is not loopback: --yes lets it load that"
            )
        client.request = further
        self._send(client, further)

    def _ended(self, client: _Client, size: int, now: int) -> None:
        """Count an operation that ended well, and begin the next."""
        tally = self.tallies.get(client.series)
        if tally is None:
            tally = self.tallies[client.series] = Tally()
        tally.count(max(0, now - client.began), size)
        self._next(client, now)

    def _ended_one(self, client: _Client, connection: Connection, size: int, now: int) -> None:
        """Do what `_ended` does, after a single request: the same one again, in few steps, since there are so many."""
        tally = self.tallies.get(client.series)
        if tally is None or not connection.is_ready:
            self._ended(client, size, now)
            return
        tally.count(max(0, now - client.began), size)
        due = self._take(now)
        if due is None:
            self._free(client)
            self._idle.append(client)
            return
        following = self._operation()
        what = following.what
        if not isinstance(what, Request) or what.origin != connection.origin:
            self._free(client)
            self._start(client, due, following)
            return
        client.series, client.began, client.request = following.series, due, what
        client.redirects = 0
        connection.start(what)

    def _failed(self, client: _Client, failed: Failed, now: int) -> None:
        """Count an operation that did not end well, and begin the next; not at once if it was the connection's fault."""
        if client.script is not None:
            client.script.close()
        self.tallies.setdefault(client.series, Tally()).count_error(failed.kind, failed.message)
        if failed.kind in _OF_THE_CONNECTION:
            for connection in list(client.connections.values()):
                self._drop(connection)
            self._free(client)
            heapq.heappush(self._resting, (now + _REST_NS, client.number))
        else:
            self._next(client, now)

    def _free(self, client: _Client) -> None:
        self._busy -= 1
        client.script = client.request = None

    def _next(self, client: _Client, now: int) -> None:
        self._free(client)
        due = self._take(now)
        if due is None:
            self._idle.append(client)
        else:
            self._begin(client, due)

    def _broke(self, connection: Connection, failed: Failed, now: int) -> None:
        """A connection failed: with it what its client was doing, if it was doing anything there."""
        client = self._clients[connection.owner]
        self._drop(connection)
        if client.request is not None and connection.request is not None:
            self._failed(client, failed, now)

    def _look(self, now: int) -> None:
        """Give up what nothing came for, and everything when the time is over."""
        for connection in list(self._by_descriptor.values()):
            request = connection.request
            if request is not None and now - connection.touched > self._timeout:
                message = f"{request.method} {request.path}: nothing for {self._timeout / NS:g} s"
                self._broke(connection, Failed("timeout", message), now)
        if self._give_up_at == float("inf"):
            if self._stopping:
                self._give_up_at = now + _LAST_NS
            elif self._pace.wait(now) is None:
                self._give_up_at = now + self._timeout
        elif self._stopping:
            self._give_up_at = min(self._give_up_at, now + _LAST_NS)
        self._over = now > self._give_up_at


def _said(request: Request, answer: Answer) -> str:
    """Return what an answer with the wrong status says, on one line."""
    text = " ".join(answer.body[:400].decode("utf-8", "replace").split())
    printable = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f"{request.method} {request.path}: {answer.status} {printable}".rstrip()

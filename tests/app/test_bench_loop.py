"""The load generator against servers that do everything wrong: each failure is counted by its kind, and nothing hangs."""

import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from hashlib import sha256

import pytest

from moorage_app.bench.loop import Loop, Operation
from moorage_app.bench.messages import Content, Endpoint, Request
from moorage_app.bench.pace import Closed, Open
from moorage_app.bench.statistics import NS, Schedule, Tally, top
from moorage_app.bench.targets import WrongTarget, parse_target
from servers import free_port

BODY = b"0123456789" * 50
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + BODY
Reply = Callable[[socket.socket, int], bool]
"""Answers the request of a number on a connection; returns whether the connection goes on."""


def sends(*data: bytes, goes_on: bool = True) -> Reply:
    def reply(connection: socket.socket, _: int) -> bool:
        for each in data:
            connection.sendall(each)
        return goes_on

    return reply


@contextmanager
def server(reply: Reply) -> Generator[str]:
    """Run a server that reads heads of requests, and answers each as it is told."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_ones: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            received = b""
            number = 0
            try:
                while True:
                    while b"\r\n\r\n" not in received:
                        data = connection.recv(65536)
                        if not data:
                            return
                        received += data
                    received = received.partition(b"\r\n\r\n")[2]
                    number += 1
                    if not reply(connection, number):
                        return
            except OSError:
                return  # the client had enough

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            open_ones.append(connection)
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for connection in open_ones:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already
        for thread in threads:
            thread.join()


def request_to(url: str, *, size: int | None = None, digest: str | None = None) -> Request:
    return Endpoint(parse_target(url), "a").request("GET", "blobs/x", digest=digest, size=size)


def load(request: Request, *, count: int = 5, clients: int = 1, timeout: float = 30, follow: bool = False) -> Loop:
    """Have a request sent so many times, and return the loop with what it has counted."""
    with Loop(
        request.origin,
        clients=clients,
        pace=Closed(count),
        operation=lambda: Operation("", request),
        timeout=timeout,
        follow=(lambda _: True) if follow else None,
    ) as loop:
        loop.connect()
        loop.run()
    return loop


def tally(loop: Loop) -> Tally:
    return loop.tallies[""]


@pytest.mark.parametrize(
    "reply",
    [
        sends(GOOD),
        sends(*(bytes([byte]) for byte in GOOD)),
        sends(b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD),
        sends(b"HTTP/1.1 100 Continue\r\n\r\n", GOOD),
        sends(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            b"12c\r\n" + BODY[:300] + b"\r\n",
            b"c8\r\n" + BODY[300:] + b"\r\n0\r\n\r\n",
        ),
        sends(b"HTTP/1.1 200 OK\r\n\r\n", BODY, goes_on=False),
        sends(b"HTTP/1.0 200 OK\r\n\r\n" + BODY, goes_on=False),
        sends(b"HTTP/1.1 200 OK\r\nConnection: close\r\nCONTENT-LENGTH:500\r\n\r\n" + BODY, goes_on=False),
    ],
)
def test_an_answer_is_understood_however_it_is_framed(reply: Reply) -> None:
    with server(reply) as url:
        digest = f"sha256:{sha256(BODY).hexdigest()}"
        loop = load(request_to(url, size=500, digest=digest), clients=2)
    assert (tally(loop).operations, tally(loop).bytes, tally(loop).errors) == (5, 2500, {})
    assert loop.requests == 5


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (sends(b"HTTP/1.1 500 Oops\r\nContent-Length: 6\r\n\r\nbroken"), "500", "500 broken"),
        (sends(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"), "404", "GET /v2/a/blobs/x: 404"),
        (sends(b"HTTP/1.1 307 Go\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"), "307", "307"),
        (sends(b"SSH-2.0-OpenSSH_9.2\r\n"), "garbage", "no answer of HTTP"),
        (sends(b"\x00" * 70000), "garbage", "no answer of HTTP"),
        (sends(b"HTTP/1.1 abc\r\n\r\n"), "garbage", "no answer of HTTP"),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"), "garbage", "Content-Length"),
        (sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"), "garbage", ""),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + BODY), "garbage", "more than were promised"),
        (sends(goes_on=False), "closed", "closed without an answer"),
        (sends(b"HTTP/1.1 200 OK\r\n", goes_on=False), "closed", "closed in the midst of an answer"),
        (sends(GOOD[:-100], goes_on=False), "closed", "100 bytes before the end"),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nshort"), "length", "5 bytes, not 500"),
        (sends(GOOD.replace(b"0123", b"3210")), "digest", "another digest"),
    ],
)
def test_what_goes_wrong_is_counted_by_its_kind_with_the_first_message(reply: Reply, kind: str, said: str) -> None:
    with server(reply) as url:
        digest = f"sha256:{sha256(BODY).hexdigest()}"
        loop = load(request_to(url, size=500, digest=digest))
    assert tally(loop).errors == {kind: 5}
    assert said in tally(loop).first_errors[kind]
    assert (tally(loop).operations, tally(loop).bytes, loop.unfinished) == (0, 0, 0)


def test_a_server_that_says_nothing_is_given_up() -> None:
    with server(sends()) as url:
        loop = load(request_to(url), count=2, timeout=0.2)
    assert tally(loop).errors == {"timeout": 2}


def test_a_server_that_stops_in_the_middle_is_given_up() -> None:
    with server(sends(GOOD[:-1])) as url:
        loop = load(request_to(url), count=2, timeout=0.2)
    assert tally(loop).errors == {"timeout": 2}


def test_a_server_that_is_not_there_is_counted() -> None:
    loop = load(request_to(f"http://127.0.0.1:{free_port()}"), count=3)
    assert tally(loop).errors == {"connect": 3}
    assert "Connection refused" in tally(loop).first_errors["connect"]


def test_errors_are_not_among_the_latencies() -> None:
    def reply(connection: socket.socket, number: int) -> bool:
        bad = number % 2 == 0
        connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n" if bad else GOOD)
        return True

    with server(reply) as url:
        loop = load(request_to(url), count=10)
    assert (tally(loop).operations, tally(loop).errors) == (5, {"503": 5})
    assert sum(tally(loop).buckets.values()) == 5


def test_redirects_are_followed_to_another_server_and_counted_as_one_operation() -> None:
    with server(sends(GOOD)) as there:
        away = f"HTTP/1.1 307 Go\r\nLocation: {there}/deep?a=b\r\nContent-Length: 0\r\n\r\n".encode()
        with server(sends(away)) as url:
            loop = load(request_to(url, size=500), follow=True, clients=2, count=6)
    assert (tally(loop).operations, tally(loop).bytes, loop.requests) == (6, 3000, 12)


def test_a_redirect_that_leads_to_itself_ends() -> None:
    with server(sends(b"HTTP/1.1 302 Go\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")) as url:
        loop = load(request_to(url), follow=True, count=2)
    assert tally(loop).errors == {"redirect": 2}


def test_credentials_stay_with_the_registry() -> None:
    at = Endpoint(parse_target("http://127.0.0.1:5000"), "a", "Bearer secret")
    request = at.request("GET", "blobs/x", headers=(("Accept", "text/plain"),))
    assert b"Authorization: Bearer secret" in request.wire
    away = request.redirected("http://localhost:9000/bucket?signature=1")
    assert b"secret" not in away.wire
    assert away.wire.startswith(b"GET /bucket?signature=1 HTTP/1.1\r\nHost: localhost:9000\r\n")
    assert b"Authorization" in request.redirected("/elsewhere").wire
    assert b"secret" not in at.request("PUT", "http://localhost:9000/upload").wire


def test_a_large_body_is_sent_whole() -> None:
    blob = Content().blob(20_000_000)
    received: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        request = Endpoint(parse_target(url), "a").request("PUT", "blobs/x", body=blob, expected=(201,))

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as reading:
                while reading.readline() != b"\r\n":
                    continue
                received.append(f"sha256:{sha256(reading.read(blob.size)).hexdigest()}")
                connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        loop = load(request, count=1)
        thread.join()
    assert received == [blob.digest]
    assert (tally(loop).operations, tally(loop).bytes) == (1, blob.size)


def test_an_answer_that_comes_before_all_was_sent_is_heard() -> None:
    blob = Content().blob(20_000_000)
    with server(sends(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n", goes_on=False)) as url:
        request = Endpoint(parse_target(url), "a").request("PUT", "blobs/x", body=blob, expected=(201,))
        loop = load(request, count=3)
    # Bytes that nobody read make the server's system reset the connection, and with it the answer may be lost.
    assert set(tally(loop).errors) <= {"413", "closed"}
    assert tally(loop).failed == 3


def test_an_open_loop_counts_all_that_was_due() -> None:
    with server(sends(GOOD)) as url:
        request = request_to(url)
        pace = Open(Schedule(200), 1000, 0.25)
        with Loop(request.origin, clients=4, pace=pace, operation=lambda: Operation("", request), timeout=30) as loop:
            loop.run()
    assert tally(loop).operations + pace.unstarted == 50
    assert tally(loop).errors == {}


class DueLongAgo(Closed):
    """Lets operations begin a thousand seconds after they were due."""

    def take(self, now: int) -> int | None:
        return None if super().take(now) is None else now - 1000 * NS


def test_latencies_count_from_when_an_operation_was_due() -> None:
    with server(sends(GOOD)) as url:
        request = request_to(url)
        with Loop(
            request.origin, clients=1, pace=DueLongAgo(3), operation=lambda: Operation("", request), timeout=30
        ) as loop:
            loop.run()
    assert tally(loop).operations == 3
    assert all(top(number) >= 1000 * NS for number in tally(loop).buckets)


@pytest.mark.parametrize(
    "text",
    ["", "://", "ftp://127.0.0.1", "http://", "http://[::1", "http://a:99999", "http://a b/", "http://a?b", "a=b=c d"],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(WrongTarget):
        parse_target(text)


def test_targets_have_names_and_prefixes() -> None:
    plain = parse_target("127.0.0.1:5000")
    assert (plain.name, plain.url, plain.prefix) == ("127.0.0.1:5000", "http://127.0.0.1:5000", "")
    named = parse_target("theirs=https://registry.example.org/inner/v2/")
    assert (named.name, named.url, named.prefix) == ("theirs", "https://registry.example.org/inner", "/inner")
    assert parse_target("http://[::1]:5000").origin.authority == "[::1]:5000"
    with pytest.raises(WrongTarget, match="passwords do not belong") as raised:
        parse_target("http://me:hunter2@127.0.0.1")
    assert "hunter2" not in str(raised.value)

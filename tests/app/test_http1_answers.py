"""What the engine sends of what an application says: bodies, chunks, files; and what becomes of those who break off."""

import os
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from hypercorn.typing import HTTPScope
from trio.testing import MockClock

from http1_peer import (
    Application,
    Asked,
    Certificates,
    Receive,
    Recorder,
    Send,
    body,
    file,
    reply,
    send_until_left,
    speaking,
    start,
    until_left,
    whole_body,
)
from moorage import ClientLeft
from moorage_app import transports

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = GET.replace(b"GET", b"HEAD")
OLD = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
LENGTH = b"content-length"


def answering(*steps: Callable[[Send], Awaitable[None]]) -> Application:
    """Return an application that says the same to everybody."""

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        for step in steps:
            await step(send)

    return application


def says(data: bytes, *, more: bool = False) -> Callable[[Send], Awaitable[None]]:
    return lambda send: body(send, data, more=more)


def begins(status: int = 200, *headers: tuple[bytes, bytes]) -> Callable[[Send], Awaitable[None]]:
    return lambda send: start(send, status, headers)


def sends(what: object, *, more: bool = False, **where: int) -> Callable[[Send], Awaitable[None]]:
    return lambda send: file(send, what, more=more, **where)


# ---- bodies


async def test_a_body_that_is_said_at_once_has_a_length() -> None:
    async with speaking(answering(begins(201, (b"x-a", b"b")), says(b"hello"))) as peer:
        for _ in range(2):
            await peer.send(GET)
            answer = await peer.answer()
            assert (answer.status, answer.body, answer.all(b"x-a")) == (201, b"hello", [b"b"])
            assert (answer.all(LENGTH), len(answer.all(b"date"))) == ([b"5"], 1)


async def test_a_body_of_unknown_length_comes_in_chunks() -> None:
    application = answering(begins(), says(b"hel", more=True), says(b"", more=True), says(b"lo", more=True), says(b""))
    async with speaking(application) as peer:
        await peer.send(GET + GET)
        for _ in range(2):
            answer = await peer.answer()
            assert (answer.body, answer.all(b"transfer-encoding")) == (b"hello", [b"chunked"])


async def test_a_body_of_unknown_length_ends_with_the_connection_in_http_1_0() -> None:
    async with speaking(answering(begins(), says(b"hel", more=True), says(b"lo"))) as peer:
        await peer.send(OLD)
        answer = await peer.answer()
        assert (answer.body, answer.closes, answer.all(b"transfer-encoding")) == (b"hello", True, [])


@pytest.mark.parametrize("length", [(), ((LENGTH, b"5"),)])
async def test_head_has_the_head_and_no_body(length: tuple[tuple[bytes, bytes], ...]) -> None:
    for steps in ((says(b"hello"),), (says(b"hel", more=True), says(b"lo")), (says(b""),)):
        async with speaking(answering(begins(200, *length), *steps)) as peer:
            await peer.send(HEAD + HEAD)
            for _ in range(2):
                answer = await peer.answer("HEAD")
                assert (answer.status, answer.all(LENGTH)) == (200, [value for _, value in length])
                assert answer.all(b"transfer-encoding") == []


@pytest.mark.parametrize("status", [204, 304])
async def test_statuses_without_a_body_have_none(status: int) -> None:
    async with speaking(answering(begins(status), says(b"nobody reads this"))) as peer:
        await peer.send(GET + GET)
        for _ in range(2):
            answer = await peer.answer()
            assert (answer.status, answer.all(LENGTH), answer.all(b"transfer-encoding")) == (status, [], [])


@pytest.mark.parametrize("steps", [(says(b"hello world"),), (says(b"hel", more=True), says(b"lo"), says(b"!"))])
async def test_an_answer_that_is_longer_than_announced_is_cut_there(
    steps: tuple[Callable[[Send], Awaitable[None]], ...], autojump_clock: MockClock
) -> None:
    async with speaking(answering(begins(200, (LENGTH, b"4")), *steps)) as peer:
        await peer.send(GET + GET)
        assert (await peer.only_answer()).body == b"hell"


@pytest.mark.parametrize("steps", [(says(b"hell"),), (says(b"he", more=True), says(b"ll"))])
async def test_after_an_answer_that_is_shorter_than_announced_the_connection_ends(
    steps: tuple[Callable[[Send], Awaitable[None]], ...],
) -> None:
    async with speaking(answering(begins(200, (LENGTH, b"5")), *steps)) as peer:
        await peer.send(GET + GET)
        assert (await peer.only_answer()).body == b"hell"


@pytest.mark.parametrize("header", [(b"x", b"a\r\nSet-Cookie: b"), (b"x", b"a\nb"), (b"x", b"a\rb"), (b"x\r\ny", b"a")])
async def test_a_header_with_a_line_break_is_a_fault_of_the_application(
    header: tuple[bytes, bytes], autojump_clock: MockClock
) -> None:
    async with speaking(answering(begins(200, header), says(b"x"))) as peer:
        await peer.send(GET + GET)
        answer = await peer.only_answer()
        assert (answer.status, answer.closes) == (500, True)
        assert b"Cookie" not in answer.body


async def test_framing_is_the_servers_and_the_end_of_a_connection_the_applications_too() -> None:
    application = answering(begins(200, (b"transfer-encoding", b"gzip"), (b"connection", b"close")), says(b"x"))
    async with speaking(application) as peer:
        await peer.send(GET + GET)
        answer = await peer.only_answer()
        assert (answer.body, answer.closes, answer.all(b"transfer-encoding")) == (b"x", True, [])


async def test_a_large_body_arrives_whole_over_tls_and_without() -> None:
    data = os.urandom(3 << 20)
    for tls in (None, Certificates()):
        async with speaking(answering(begins(), says(data)), tls=tls) as peer:
            await peer.send(GET)
            assert (await peer.answer()).body == data


# ---- applications that fail


async def fail(send: Send) -> None:
    raise ZeroDivisionError("not told to anybody")


async def nothing(send: Send) -> None:
    return


@pytest.mark.parametrize("steps", [(fail,), (begins(), fail), (nothing,), (begins(),), (says(b"x"),)])
async def test_an_application_that_gives_no_answer_is_answered_for(
    steps: tuple[Callable[[Send], Awaitable[None]], ...], autojump_clock: MockClock
) -> None:
    async with speaking(answering(*steps)) as peer:
        await peer.send(GET + GET)
        answer = await peer.only_answer()
        assert (answer.status, answer.closes) == (500, True)
        assert b"told" not in answer.body


@pytest.mark.parametrize("last", [fail, nothing])
async def test_an_answer_that_breaks_off_is_seen_to(last: Callable[[Send], Awaitable[None]]) -> None:
    async with speaking(answering(begins(), says(b"hello", more=True), last)) as peer:
        await peer.send(GET + GET)
        assert (await peer.rest()).endswith(b"\r\n\r\n5\r\nhello\r\n")


async def test_what_an_application_leaves_behind_says_nothing_any_more() -> None:
    kept: list[Send] = []

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        for old in kept:
            await start(old, 500)
            await body(old, b"late")
        kept.append(send)
        await reply(send, b"in time")

    async with speaking(application) as peer:
        await peer.send(GET * 3)
        assert [(await peer.answer()).body for _ in range(3)] == [b"in time"] * 3


# ---- clients that leave


async def test_an_application_that_waits_hears_that_its_client_left() -> None:
    heard = trio.Event()

    async def waiting(scope: HTTPScope, receive: Receive, send: Send) -> None:
        assert await whole_body(receive) == b""
        await until_left(receive)
        assert (await receive())["type"] == "http.disconnect"
        heard.set()

    async with speaking(waiting) as peer:
        await peer.send(GET)
        await peer.leave()
        await heard.wait()
        await peer.ended.wait()


@pytest.mark.parametrize("sent", [b"Content-Length: 10\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\nff\r\nhello"])
async def test_an_application_that_reads_hears_that_its_client_left(sent: bytes) -> None:
    heard = trio.Event()

    async def reading(scope: HTTPScope, receive: Receive, send: Send) -> None:
        assert (await receive()).get("body") == b"hello"
        assert (await receive())["type"] == "http.disconnect"
        heard.set()

    async with speaking(reading) as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + sent)
        await peer.leave()
        await heard.wait()
        await peer.ended.wait()


@pytest.mark.parametrize("tls", [False, True])
async def test_an_application_that_sends_is_told_that_its_client_left(tls: bool) -> None:
    sent: list[int] = []

    async def sending(scope: HTTPScope, receive: Receive, send: Send) -> None:
        await start(send)
        sent.append(await send_until_left(send, b"x" * 100_000))

    async with speaking(sending, tls=Certificates() if tls else None) as peer:
        await peer.send(GET)
        assert await peer.read(300_000)
        await peer.leave()
        await peer.ended.wait()
    assert sent[0] >= 2


async def test_work_for_a_client_that_left_is_given_up_though_nobody_looks(autojump_clock: MockClock) -> None:
    ended: list[str] = []

    async def working(scope: HTTPScope, receive: Receive, send: Send) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(scope["path"])

    async with speaking(working) as peer:
        await peer.send(GET)
        await peer.leave()
        await peer.ended.wait()
    assert ended == ["/"]


async def test_a_client_that_sends_nothing_more_gets_its_answers() -> None:
    application = Recorder()
    async with speaking(application) as peer:
        await peer.send(GET + GET)
        await peer.end()
        assert [(await peer.answer()).status for _ in range(2)] == [200, 200]
        assert await peer.rest() == b""


async def test_the_next_request_may_come_while_one_is_under_way() -> None:
    asked: list[Asked] = []

    async def watching(scope: HTTPScope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_left, receive)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        asked.append(Asked(scope["method"], scope["raw_path"], []))
        await reply(send, b"")

    async with speaking(watching) as peer:
        await peer.send(GET, b"GET /sec", b"ond HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [(await peer.answer()).status for _ in range(2)] == [200, 200]
    assert [each.target for each in asked] == [b"/", b"/second"]


# ---- files


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 20_000)
    return path


def nowhere(*_: int) -> None:
    """Have nothing."""


@pytest.fixture(params=["cached", "not cached"])
def cached(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the page cache have files, or not."""
    if request.param != "cached":
        monkeypatch.setattr(transports, "_from_page_cache", nowhere)
        monkeypatch.setattr(transports, "_is_in_page_cache", nowhere)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("pauses", [True, False])
async def test_a_large_file_is_sent_whole_to_a_client_that_takes_it_quickly_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: bool, pauses: bool
) -> None:
    stretches: list[int] = []
    send_quickly = transports._send_quickly

    def noted(*given: int) -> int:
        stretches.append(send_quickly(*given))
        return stretches[-1]

    monkeypatch.setattr(transports, "_send_quickly", noted)
    monkeypatch.setattr(transports, "_IN_THREAD", 3 << 20)
    monkeypatch.setattr(transports, "_QUICK_SECONDS", 60.0 if quick else -1.0)
    data = random.Random(7).randbytes(1 << 20) * 30
    path = tmp_path / "large"
    path.write_bytes(data)
    length = len(data) - 11
    with path.open("rb") as opened:
        application = answering(begins(200, (LENGTH, b"%d" % length)), sends(opened, offset=11, count=length))
        async with speaking(application) as peer:
            await peer.send(GET)
            received = bytearray()
            while not received.endswith(data[-100:]) or len(received) < length:
                some = await peer.stream.receive_some(1 << 20)
                assert some
                received += some
                if pauses:
                    await trio.sleep(0.005)
    assert received.partition(b"\r\n\r\n")[2] == data[11:]
    assert bool(stretches) is quick


def test_a_thread_leaves_a_client_that_takes_nothing_and_its_socket_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(random.Random(7).randbytes(1 << 20) * 16)
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(10)
    with near, far, path.open("rb") as opened:
        sent = transports._send_quickly(near.fileno(), opened.fileno(), 0, 16 << 20)
        assert 0 < sent < 16 << 20
        assert transports._send_quickly(near.fileno(), opened.fileno(), sent, 1 << 20) == 0
        assert not os.get_blocking(near.fileno())
        received = bytearray()
        while len(received) < sent:
            received += far.recv(1 << 20)
        assert transports._send_quickly(near.fileno(), opened.fileno(), sent, 7) == 7
        far.close()
        with pytest.raises(OSError):  # noqa: PT011 - whichever of those that say that nobody is there
            transports._send_quickly(near.fileno(), opened.fileno(), sent, 7)
        assert not os.get_blocking(near.fileno())


RANGES = [(0, 0), (0, 1), (5, 1000), (255, 65536), (1, 65537), (3, 5_000_000), (5_119_999, 1)]


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("number", [True, False])
async def test_ranges_of_files_are_sent(stored: Path, number: bool) -> None:
    data = stored.read_bytes()
    for offset, count in RANGES:
        with stored.open("rb") as opened:
            if count > 1:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            what = opened.fileno() if number else opened
            for length in ((), ((LENGTH, b"%d" % count),)):
                async with speaking(answering(begins(200, *length), sends(what, offset=offset, count=count))) as peer:
                    await peer.send(GET + GET)
                    for _ in range(2):
                        answer = await peer.answer()
                        assert (answer.body, answer.all(LENGTH)) == (data[offset : offset + count], [b"%d" % count])


async def test_a_file_without_a_range_is_sent_from_where_it_stands(stored: Path) -> None:
    with stored.open("rb") as opened:
        opened.seek(1000)
        async with speaking(answering(begins(), sends(opened))) as peer:
            await peer.send(GET)
            assert (await peer.answer()).body == stored.read_bytes()[1000:]


async def test_files_and_bytes_go_together_with_a_length_and_in_chunks(stored: Path) -> None:
    data = stored.read_bytes()
    with stored.open("rb") as opened:
        parts = (says(b"<", more=True), sends(opened, offset=1, count=100_000, more=True), says(b">"))
        for headers in ((), ((LENGTH, b"100002"),)):
            async with speaking(answering(begins(200, *headers), *parts)) as peer:
                await peer.send(GET + GET)
                for _ in range(2):
                    assert (await peer.answer()).body == b"<" + data[1:100_001] + b">"
        nothing, some = sends(opened, offset=0, count=0, more=True), sends(opened, offset=2, count=70_000)
        async with speaking(answering(begins(), nothing, some)) as peer:
            await peer.send(GET + GET)
            assert [(await peer.answer()).body for _ in range(2)] == [data[2:70_002]] * 2


async def test_of_a_file_that_nobody_wants_the_head_is_sent(stored: Path) -> None:
    with stored.open("rb") as opened:
        async with speaking(answering(begins(200, (LENGTH, b"10")), sends(opened, offset=0, count=10))) as peer:
            await peer.send(HEAD + GET)
            answer = await peer.answer("HEAD")
            assert answer.all(LENGTH) == [b"10"]
            assert (await peer.answer()).body == stored.read_bytes()[:10]


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_file_that_is_shorter_than_announced_breaks_off(tmp_path: Path, size: int) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x" * size)
    with path.open("rb") as opened:
        application = answering(begins(200, (LENGTH, b"200000")), sends(opened, offset=0, count=200_000))
        async with speaking(application) as peer:
            await peer.send(GET + GET)
            assert (await peer.only_answer()).body == b"x" * size


@pytest.mark.parametrize("announced", [b"4", b"6"])
async def test_a_file_that_is_not_what_was_announced_ends_the_connection(
    stored: Path, announced: bytes, autojump_clock: MockClock
) -> None:
    with stored.open("rb") as opened:
        application = answering(begins(200, (LENGTH, announced)), sends(opened, offset=0, count=5))
        async with speaking(application) as peer:
            await peer.send(GET + GET)
            assert (await peer.only_answer()).body == stored.read_bytes()[: min(int(announced), 5)]


async def test_a_client_that_leaves_in_the_middle_of_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as made:
        made.truncate(200 << 20)
    told: list[str] = []

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        with path.open("rb") as opened:
            await start(send)
            try:
                await file(send, opened, offset=0, count=200 << 20)
            except ClientLeft:
                told.append("left")
                raise

    async with speaking(application) as peer:
        await peer.send(GET)
        assert len(await peer.read(1 << 20)) == 1 << 20
        await peer.leave()
        await peer.ended.wait()
    assert told == ["left"]


async def test_files_are_offered_where_nothing_lies_between(stored: Path) -> None:
    offered: list[bool] = []

    async def look(scope: HTTPScope, receive: Receive, send: Send) -> None:
        offered.append("http.response.zerocopysend" in scope["extensions"])
        await reply(send, b"")

    for tls in (None, Certificates()):
        async with speaking(look, tls=tls) as peer:
            await peer.send(GET)
            assert (await peer.answer()).status == 200
    assert offered == [True, False]


@pytest.mark.parametrize("cause", [OSError(95, "not supported"), BlockingIOError(11, "not there"), None])
def test_what_the_page_cache_has_is_asked_of_the_system(
    stored: Path, monkeypatch: pytest.MonkeyPatch, cause: OSError | None
) -> None:
    def preadv(*_: object) -> int:
        assert cause is not None
        raise cause

    with stored.open("rb") as opened:
        opened.read()
        if cause is not None:
            monkeypatch.setattr(os, "preadv", preadv)
        assert transports._is_in_page_cache(opened.fileno(), 0, 1000) is (cause is None)
        assert (transports._from_page_cache(opened.fileno(), 0, 10) is None) is (cause is not None)

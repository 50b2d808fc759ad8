"""Bodies that are taken in a thread while they come quickly: none of their bytes twice, none lost, none of what follows."""

import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import cast

import pytest
import trio
from hypercorn.typing import HTTPScope
from trio.testing import wait_all_tasks_blocked

from http1_peer import (
    Asked,
    Certificates,
    Receive,
    Recorder,
    Send,
    asked_by,
    body as answer_body,
    reply,
    speaking,
    start,
    whole_body,
)
from moorage_app import transports
from moorage_app.http1_exchange import QUICKLY

MIB = 1 << 20


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


NEXT = b"POST /next HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nafter"
CONTENT = os.urandom(3 * MIB + 17)

Take = Callable[[Callable[[bytes], None]], Awaitable[tuple[int, bool]]]


def head(*lines: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in (b"POST /first HTTP/1.1", b"Host: a", *lines)) + b"\r\n"


def by_length(content: bytes) -> bytes:
    return head(b"Content-Length: %d" % len(content)) + content


def in_chunks(content: bytes, size: int = 32 << 10) -> bytes:
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head(b"Transfer-Encoding: chunked") + framed + b"0\r\n\r\n"


def taking(scope: HTTPScope) -> Take | None:
    extensions = cast("dict[str, dict[str, Take]]", scope["extensions"])
    return extensions[QUICKLY]["take"] if QUICKLY in extensions else None


class Taker(Recorder):
    """Takes bodies in a thread as far as that goes, and reads the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0
        self.threads: set[str] = set()
        self.left = False

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        take = taking(scope)
        pieces: list[bytes] = []

        def keep(piece: bytes) -> None:
            self.threads.add(threading.current_thread().name)
            pieces.append(piece)

        more = True
        while more:
            count = 0
            if take is not None:
                count, more = await take(keep)
            self.taken += count
            if more and not count:
                message = await receive()
                if message["type"] != "http.request":
                    self.left = True
                    return
                pieces.append(message["body"])
                more = message["more_body"]
        self.asked.append(asked_by(scope, b"".join(pieces)))
        await reply(send, b"%d" % len(self.asked[-1].body))


def bodies(asked: list[Asked]) -> list[bytes]:
    return [each.body for each in asked]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("frame", [by_length, in_chunks])
async def test_a_large_body_is_taken_whole_and_alone(
    certificates: Certificates, frame: Callable[[bytes], bytes], tls: bool
) -> None:
    taker = Taker()
    async with speaking(taker, tls=certificates if tls else None) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.stream.send_all, frame(CONTENT) + NEXT)
        assert (await peer.answer()).body == b"%d" % len(CONTENT)
        assert (await peer.answer()).body == b"5"
    assert bodies(taker.asked) == [CONTENT, b"after"]
    assert taker.taken > MIB
    assert threading.current_thread().name not in taker.threads


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_chunks_of_any_size_are_taken(size: int) -> None:
    taker = Taker()
    content = CONTENT[: 3000 * size]
    async with speaking(taker) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.stream.send_all, in_chunks(content, size) + NEXT)
        assert (await peer.answer()).status == 200
        assert (await peer.answer()).status == 200
    assert bodies(taker.asked) == [content, b"after"]


async def test_a_slow_client_is_waited_for_by_the_event_loop() -> None:
    taker = Taker()
    async with speaking(taker) as peer:
        await peer.send(head(b"Content-Length: 30"))
        for at in range(0, 30, 10):
            await trio.sleep(0.02)
            await peer.send(CONTENT[at : at + 10])
        assert (await peer.answer()).status == 200
    assert bodies(taker.asked) == [CONTENT[:30]]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("frame", [by_length, in_chunks])
async def test_a_client_that_leaves_is_told_by_what_reads_on(
    certificates: Certificates, frame: Callable[[bytes], bytes], tls: bool
) -> None:
    taker = Taker()
    async with speaking(taker, tls=certificates if tls else None) as peer:
        sent = frame(CONTENT)[:-MIB]
        with trio.fail_after(30):
            await peer.stream.send_all(sent)
            await peer.leave()
            await peer.ended.wait()
    assert taker.left
    assert taker.asked == []


async def test_what_is_not_chunked_as_it_should_be_is_refused_from_the_thread_too() -> None:
    taker = Taker()
    good = in_chunks(CONTENT)
    async with speaking(taker) as peer, trio.open_nursery() as nursery:
        # A chunk that is longer than it says, in the midst of what comes quickly.
        nursery.start_soon(peer.stream.send_all, good[: 2 * MIB] + b"x" * (40 << 10))
        answer = await peer.answer()
        assert (answer.status, answer.closes) == (400, True)
        await peer.leave()
    assert taker.left
    assert taker.asked == []


@pytest.mark.parametrize("reads_on", [True, False])
@pytest.mark.parametrize("frame", [by_length, in_chunks])
async def test_what_is_raised_in_the_thread_is_raised_where_it_was_called(
    frame: Callable[[bytes], bytes], reads_on: bool
) -> None:
    found: list[bytes] = []

    def refuse(piece: bytes) -> None:
        found.append(piece)
        raise ValueError(len(piece))

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        take = taking(scope)
        if take is None or scope["path"] == "/next":
            await whole_body(receive)
            await reply(send, b"next")
            return
        with pytest.raises(ValueError, match=r"\d+"):
            while not (await take(refuse))[0]:
                message = await receive()
                assert message["type"] == "http.request"
                found.append(message["body"])
        if reads_on:
            found.append(await whole_body(receive) or b"")
        await start(send, 413, [(b"content-length", b"0")])
        await answer_body(send)

    content = CONTENT[: 2 * MIB]
    async with speaking(application) as peer, trio.open_nursery() as nursery:

        async def send() -> None:
            with suppress(trio.BrokenResourceError):
                await peer.stream.send_all(frame(content) + NEXT)

        nursery.start_soon(send)
        answer = await peer.answer()
        # A body that was not read to its end ends the connection; one that was does not.
        assert (answer.status, answer.closes) == (413, not reads_on)
        if reads_on:
            assert (await peer.answer()).body == b"next"
            assert b"".join(found) == content


@pytest.mark.parametrize("frame", [by_length, in_chunks])
async def test_who_is_cancelled_meanwhile_goes_on_where_the_thread_stopped(frame: Callable[[bytes], bytes]) -> None:
    found = b""

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        nonlocal found
        take = taking(scope)
        assert take is not None
        pieces: list[bytes] = []
        more = True
        while more:
            with trio.CancelScope() as scope_of_step:

                def keep(piece: bytes, here: trio.CancelScope = scope_of_step) -> None:
                    pieces.append(piece)
                    trio.from_thread.run_sync(here.cancel)

                _, more = await take(keep)
            if more:
                with trio.CancelScope() as cancelled:
                    cancelled.cancel()
                    await take(pieces.append)
                message = await receive()
                assert message["type"] == "http.request"
                pieces.append(message["body"])
                more = message["more_body"]
        found = b"".join(pieces)
        await reply(send, b"whole")

    async with speaking(application) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.stream.send_all, frame(CONTENT))
        assert (await peer.answer()).body == b"whole"
    assert found == CONTENT


async def test_who_waits_to_be_told_to_send_is_told_first() -> None:
    taker = Taker()
    async with speaking(taker) as peer:
        await peer.send(head(b"Content-Length: 5", b"Expect: 100-continue"))
        assert (await peer.answer()).status == 100
        await peer.send(b"hello")
        assert (await peer.answer()).status == 200
    assert bodies(taker.asked) == [b"hello"]


async def test_a_body_waits_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = trio.CapacityLimiter(1)
    monkeypatch.setattr(transports, "_receivers", threads)
    taker = Taker()
    async with speaking(taker) as peer, trio.open_nursery() as nursery:
        async with threads:
            nursery.start_soon(peer.stream.send_all, by_length(CONTENT))
            await wait_all_tasks_blocked(0.05)
            assert threads.statistics().tasks_waiting == 1
            assert taker.taken == 0
        assert (await peer.answer()).status == 200
    assert taker.taken > MIB
    assert bodies(taker.asked) == [CONTENT]


async def test_when_too_many_wait_for_a_thread_the_event_loop_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transports, "_WAITING", 0)
    taker = Taker()
    async with speaking(taker) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.stream.send_all, by_length(CONTENT))
        assert (await peer.answer()).status == 200
    assert taker.taken == 0
    assert bodies(taker.asked) == [CONTENT]


async def test_a_client_that_breaks_tls_in_the_midst_of_a_body_is_gone(certificates: Certificates) -> None:
    taker = Taker()
    async with speaking(taker, tls=certificates) as peer:
        assert isinstance(peer.stream, trio.SSLStream)
        await peer.send(by_length(CONTENT)[: 2 * MIB])
        await peer.stream.transport_stream.send_all(b"no record of TLS" * 1000)
        with trio.fail_after(30):
            await peer.ended.wait()
    assert taker.left
    assert taker.asked == []


async def test_what_has_no_body_is_not_offered() -> None:
    offered: list[bool] = []

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        offered.append(taking(scope) is not None)
        await receive()
        await reply(send, b"")

    async with speaking(application) as peer:
        for request in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", NEXT):
            await peer.send(request)
            assert (await peer.answer()).status == 200
    assert offered == [False, True]

"""What a client may take of time, of memory and of the others' turns; and how connections end with their server."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from hypercorn.typing import HTTPScope
from trio.testing import MockClock

from http1_peer import (
    Certificates,
    Receive,
    Recorder,
    Send,
    body,
    reply,
    send_until_left,
    speaking,
    start,
    whole_body,
)
from moorage import ClientLeft
from moorage_app import http1, transports
from moorage_app.http1 import Connections

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"


# ---- time: the clock jumps when nobody has anything to do


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\n", b"\r"])
async def test_a_head_that_stops_is_given_up(autojump_clock: MockClock, sent: bytes) -> None:
    application = Recorder()
    async with speaking(application) as peer:
        await peer.send(sent)
        answer = await peer.only_answer()
    assert (answer.status, answer.closes) == (408, True)
    assert application.begun == 0


async def test_a_head_that_comes_by_drops_is_given_up(autojump_clock: MockClock) -> None:
    application = Recorder()
    async with speaking(application) as peer:

        async def drip() -> None:
            try:
                await peer.send(POST)
                while True:
                    await peer.send(b"X: a\r\n")
                    await trio.sleep(5)
            except trio.BrokenResourceError:
                return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            assert (await peer.only_answer()).status == 408
            await peer.ended.wait()
            nursery.cancel_scope.cancel()
    assert application.begun == 0


@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_on_which_nothing_is_asked_ends(autojump_clock: MockClock, tls: bool) -> None:
    for before in (0, 1):
        async with speaking(Recorder(), tls=Certificates() if tls else None) as peer:
            for _ in range(before):
                await peer.send(GET)
                assert (await peer.answer()).status == 200
            if tls and not before:
                await peer.send(b"")
            assert await peer.rest() == b""
            await peer.ended.wait()


async def test_a_connection_is_kept_between_requests_that_are_far_apart(autojump_clock: MockClock) -> None:
    application = Recorder()
    async with speaking(application) as peer:
        for _ in range(5):
            await peer.send(GET)
            assert (await peer.answer()).status == 200
            await trio.sleep(http1.IDLE_SECONDS - 3)
    assert len(application.asked) == 5


@pytest.mark.parametrize("rest", [b"Content-Length: 9\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
@pytest.mark.parametrize("more", [b"", b"5", b"5\r\nhel"])
async def test_a_body_that_stops_is_given_up(autojump_clock: MockClock, rest: bytes, more: bytes) -> None:
    bodies: list[bytes | None] = []

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        bodies.append(await whole_body(receive))

    async with speaking(application) as peer:
        await peer.send(POST + rest + more)
        assert await peer.rest() == b""
        await peer.ended.wait()
    assert bodies == [None]


@pytest.mark.parametrize("tls", [False, True])
async def test_a_client_that_takes_nothing_of_its_answer_is_given_up(autojump_clock: MockClock, tls: bool) -> None:
    ended: list[str] = []

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        await start(send)
        await send_until_left(send, b"x" * 100_000)
        ended.append("left")

    async with speaking(application, tls=Certificates() if tls else None) as peer:
        await peer.send(GET)
        if tls:
            await peer.read(1)
        await peer.ended.wait()
    assert ended == ["left"]


async def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(autojump_clock: MockClock) -> None:
    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        await reply(send, b"x" * (4 << 20))

    async with speaking(application) as peer:
        await peer.send(GET)
        got = 0
        while data := await peer.read(1 << 20 if got else 1000):
            got += len(data)
            await trio.sleep(transports.STALLED_SECONDS - 2)
            if got > 4 << 20:
                break
    assert got > 4 << 20


async def test_a_client_that_never_ends_is_not_listened_to_for_ever(autojump_clock: MockClock) -> None:
    async with speaking(Recorder()) as peer:
        await peer.send(b"nonsense\r\n\r\n")

        async def go_on() -> None:
            try:
                while True:
                    await peer.send(b"x" * 1000)
                    await trio.sleep(0.5)
            except trio.BrokenResourceError:
                return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            assert (await peer.only_answer()).status == 400
            await peer.ended.wait()


# ---- memory


@pytest.mark.parametrize("rest", [b"\r\n" + GET * 1000, b"Content-Length: 99999999999\r\n\r\n"])
async def test_what_nobody_asks_for_is_not_read(autojump_clock: MockClock, rest: bytes) -> None:
    taken: list[int] = []

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        # Looks whether the client is there: beyond a body, that reads what comes next.
        with trio.move_on_after(5):
            await receive()
            if scope["method"] == "POST" and rest.startswith(b"\r\n"):
                await receive()
        await trio.sleep_forever()

    async with speaking(application) as peer:
        sent = 0
        with trio.move_on_after(20):
            await peer.send(POST + rest)
            while True:
                await peer.send(GET)
                sent += len(GET)
        taken.append(sent)
    # What the system's own buffers hold, and no more than twice what is read at once.
    assert taken[0] < 2 << 20


# ---- turns


@pytest.mark.parametrize("tls", [False, True])
async def test_ten_thousand_requests_at_once_let_others_be_served_in_between(tls: bool) -> None:
    order: list[str] = []

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        order.append(scope["path"])
        await start(send, 204)
        await body(send)

    many = 10_000
    connections = Connections(application)
    async with (
        speaking(application, connections=connections, tls=Certificates() if tls else None) as greedy,
        speaking(application, connections=connections) as modest,
    ):

        async def take() -> None:
            for _ in range(many):
                assert (await greedy.answer()).status == 204

        async with trio.open_nursery() as nursery:
            nursery.start_soon(greedy.send, b"GET /greedy HTTP/1.1\r\nHost: a\r\n\r\n" * many)
            nursery.start_soon(take)
            for _ in range(20):
                await modest.send(b"GET /modest HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await modest.answer()).status == 204
    assert order.count("/greedy") == many
    assert order[: many // 2].count("/modest") == 20


async def test_a_body_of_tiny_chunks_lets_others_be_served_in_between() -> None:
    order: list[str] = []

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            order.append(scope["path"])
        order.append(scope["path"])
        await reply(send, b"")

    many = 20_000
    connections = Connections(application)
    async with speaking(application, connections=connections) as greedy, speaking(application) as modest:
        async with trio.open_nursery() as nursery:
            head = b"POST /greedy HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            nursery.start_soon(greedy.send, head + b"1\r\nx\r\n" * many + b"0\r\n\r\n")
            for _ in range(20):
                await modest.send(b"GET /modest HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await modest.answer()).status == 200
        assert (await greedy.answer()).status == 200
    assert order[: many // 2].count("/modest") == 20


async def test_an_endless_answer_lets_others_be_served_in_between() -> None:
    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/endless":
            await start(send)
            await send_until_left(send, b"x" * 1000)
        else:
            await reply(send, b"")

    async with speaking(application) as greedy, speaking(application) as modest:

        async def take() -> None:
            while await greedy.read(10_000):
                pass

        async with trio.open_nursery() as nursery:
            await greedy.send(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
            nursery.start_soon(take)
            for _ in range(20):
                await modest.send(GET)
                assert (await modest.answer()).status == 200
            nursery.cancel_scope.cancel()


# ---- the end


@pytest.mark.parametrize("before", [b"", GET, b"\r\n"])
async def test_connections_that_wait_end_with_a_drain(autojump_clock: MockClock, before: bytes) -> None:
    application = Recorder()
    async with speaking(application) as peer:
        if before == GET:
            await peer.send(GET)
            assert (await peer.answer()).status == 200
        await trio.testing.wait_all_tasks_blocked()
        peer.connections.drain()
        assert await peer.rest() == b""
        await peer.ended.wait()


Step = Callable[[Send], Awaitable[None]]


@pytest.mark.parametrize("begun", [False, True])
async def test_answers_that_are_under_way_end_with_a_drain(begun: bool) -> None:
    ready, go_on = trio.Event(), trio.Event()

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        if begun:
            await start(send)
            await body(send, b"be", more=True)
        ready.set()
        await go_on.wait()
        if not begun:
            await start(send)
            await body(send, b"be", more=True)
        await body(send, b"gun")

    async with speaking(application) as peer:
        await peer.send(GET)
        await ready.wait()
        peer.connections.drain()
        go_on.set()
        answer = await peer.answer()
        assert (answer.status, answer.body, answer.closes) == (200, b"begun", not begun)
        # An answer that did not say so is followed by nothing all the same.
        assert await peer.rest() == b""


async def test_a_connection_that_comes_with_a_drain_is_answered_once(autojump_clock: MockClock) -> None:
    application = Recorder()
    connections = Connections(application)
    async with speaking(application, connections=connections) as peer:
        await peer.send(b"GET / HTTP/1.1\r\n")
        await trio.testing.wait_all_tasks_blocked()
        connections.drain()
        await peer.send(b"Host: a\r\n\r\n" + GET)
        answer = await peer.only_answer()
        assert (answer.status, answer.closes) == (200, True)
    assert len(application.asked) == 1


async def test_a_client_is_told_by_an_error_that_it_left_while_it_was_sent_to(autojump_clock: MockClock) -> None:
    raised: list[BaseException] = []

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        await start(send)
        try:
            while True:
                await body(send, b"x" * 1000, more=True)
        except ClientLeft as error:
            raised.append(error)
            raise

    async with speaking(application) as peer:
        await peer.send(GET)
        await peer.read(1)
        await peer.leave()
        await peer.ended.wait()
    assert len(raised) == 1

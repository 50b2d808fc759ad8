"""How long slow clients are waited for, in all steps of a body or an answer together; the clock is virtual."""

import fcntl
import os
import select
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
from hypercorn.typing import ASGIReceiveEvent, HTTPScope
from trio.testing import MockClock

from asgi_client import client_of
from http1_peer import Certificates, Peer, Receive, Recorder, Send, body, file, reply, speaking, start
from moorage import ClientLeft
from moorage_app import transports
from moorage_app.http1_exchange import QUICKLY
from moorage_app.transports import LEAST_RATE, STALLED_SECONDS, Pace, TooSlow

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
MIB = 1 << 20
SLOW_LINK = 2 << 10
"""Bytes a second of the slowest link that there is; the least rate is half of it."""


Take = Callable[[Callable[[bytes], None]], Awaitable[tuple[int, bool]]]


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


# ---- the rule


async def test_all_waits_together_take_as_long_as_one_may(autojump_clock: MockClock) -> None:
    pace = Pace()
    for _ in range(5):
        await pace.within(partial(trio.sleep, STALLED_SECONDS / 6))
    began = trio.current_time()
    with pytest.raises(TooSlow) as raised:
        await pace.within(trio.sleep_forever)
    assert trio.current_time() - began == pytest.approx(STALLED_SECONDS / 6)
    assert not raised.value.silent


async def test_who_does_nothing_from_the_beginning_is_silent(autojump_clock: MockClock) -> None:
    with pytest.raises(TooSlow) as raised:
        await Pace().within(trio.sleep_forever)
    assert raised.value.silent


async def test_bytes_give_time_back_but_never_more_than_there_was(autojump_clock: MockClock) -> None:
    pace = Pace()
    await pace.within(partial(trio.sleep, STALLED_SECONDS - 1))
    pace.moved(10 * LEAST_RATE)
    await pace.within(partial(trio.sleep, 10))
    pace.moved(1 << 40)
    began = trio.current_time()
    with pytest.raises(TooSlow):
        await pace.within(trio.sleep_forever)
    assert trio.current_time() - began == pytest.approx(STALLED_SECONDS)


async def test_only_waiting_takes_time(autojump_clock: MockClock) -> None:
    pace = Pace()
    for _ in range(100):
        await trio.sleep(STALLED_SECONDS)
        await pace.within(trio.lowlevel.checkpoint)
    assert await pace.within(partial(_later, STALLED_SECONDS - 1)) == "there"


async def _later(seconds: float) -> str:
    await trio.sleep(seconds)
    return "there"


async def test_what_is_sent_at_once_is_waited_for_by_its_size(autojump_clock: MockClock) -> None:
    pace = Pace()
    await pace.within(partial(trio.sleep, 1000), 1000 * LEAST_RATE)
    with pytest.raises(TooSlow):
        await pace.within(partial(trio.sleep, STALLED_SECONDS + 11), 10 * LEAST_RATE)


async def test_who_is_cancelled_while_waiting_has_waited(autojump_clock: MockClock) -> None:
    pace = Pace()
    with trio.move_on_after(STALLED_SECONDS - 1):
        await pace.within(trio.sleep_forever)
    began = trio.current_time()
    with pytest.raises(TooSlow):
        await pace.within(trio.sleep_forever)
    assert trio.current_time() - began == pytest.approx(1)


# ---- bodies


def by_length(content: bytes) -> tuple[bytes, bytes]:
    return POST + b"Content-Length: %d\r\n\r\n" % len(content), content


def in_chunks(content: bytes) -> tuple[bytes, bytes]:
    pieces = [content[at : at + 1000] for at in range(0, len(content), 1000)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return POST + b"Transfer-Encoding: chunked\r\n\r\n", framed + b"0\r\n\r\n"


Frame = Callable[[bytes], tuple[bytes, bytes]]


async def drip(peer: Peer, content: bytes, step: int, seconds: float) -> None:
    """Send `step` bytes of `content` every `seconds`, as long as that goes."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for at in range(0, len(content), step):
            await peer.stream.send_all(content[at : at + step])
            await trio.sleep(seconds)


@pytest.mark.parametrize("fast", [0, 3 * MIB])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("frame", [by_length, in_chunks])
async def test_a_body_that_comes_by_drops_is_refused(
    autojump_clock: MockClock, certificates: Certificates, frame: Frame, tls: bool, fast: int
) -> None:
    head, content = frame(bytes(4 * MIB))
    application = Recorder()
    async with speaking(application, tls=certificates if tls else None) as peer, trio.open_nursery() as nursery:
        await peer.stream.send_all(head + content[:fast])
        began = trio.current_time()
        nursery.start_soon(drip, peer, content[fast:], 1, 5)
        answer = await peer.answer()
        assert (answer.status, answer.closes) == (408, True)
        assert b'"code":"UNSUPPORTED"' in answer.body
        assert trio.current_time() - began <= STALLED_SECONDS + 5
        await peer.ended.wait()
        nursery.cancel_scope.cancel()
    assert (application.begun, application.asked) == (1, [])


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("frame", [by_length, in_chunks])
@pytest.mark.parametrize(("step", "seconds"), [(SLOW_LINK, 1), (50 * SLOW_LINK, 50), (200, 0.1)])
async def test_a_body_that_comes_over_a_slow_link_is_taken(
    autojump_clock: MockClock, certificates: Certificates, frame: Frame, tls: bool, step: int, seconds: float
) -> None:
    head, content = frame(os.urandom(MIB))
    application = Recorder()
    async with speaking(application, tls=certificates if tls else None) as peer, trio.open_nursery() as nursery:
        await peer.stream.send_all(head)
        nursery.start_soon(drip, peer, content, step, seconds)
        assert (await peer.answer()).status == 200
        nursery.cancel_scope.cancel()
    assert [len(asked.body) for asked in application.asked] == [MIB]


async def test_each_body_of_a_connection_has_its_own_time(autojump_clock: MockClock) -> None:
    application = Recorder()
    async with speaking(application) as peer:
        for _ in range(3):
            await peer.stream.send_all(POST + b"Content-Length: 2\r\n\r\n")
            await trio.sleep(STALLED_SECONDS - 2)
            await peer.stream.send_all(b"ab")
            assert (await peer.answer()).status == 200
    assert len(application.asked) == 3


async def test_what_the_registry_needs_between_pieces_is_not_the_clients_time(autojump_clock: MockClock) -> None:
    pieces: list[bytes] = []

    async def slow(scope: HTTPScope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            await trio.sleep(STALLED_SECONDS)
            message = await receive()
            assert message["type"] == "http.request"
            pieces.append(message["body"])
            more = message["more_body"]
        await reply(send, b"")

    async with speaking(slow) as peer, trio.open_nursery() as nursery:
        await peer.stream.send_all(POST + b"Content-Length: 20\r\n\r\n")
        nursery.start_soon(drip, peer, bytes(20), 1, STALLED_SECONDS / 2)
        assert (await peer.answer()).status == 200
    assert b"".join(pieces) == bytes(20)


async def test_what_a_thread_took_gives_time_back(autojump_clock: MockClock) -> None:
    quickly, taken = trio.Event(), trio.Event()
    ends: list[ASGIReceiveEvent] = []

    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        take = cast("dict[str, dict[str, Take]]", scope["extensions"])[QUICKLY]["take"]
        pieces: list[bytes] = []
        await receive()
        quickly.set()
        while sum(map(len, pieces)) < MIB:
            await take(pieces.append)
        taken.set()
        ends.append(await receive())
        await reply(send, b"")

    async with speaking(application) as peer:
        await peer.stream.send_all(POST + b"Content-Length: %d\r\n\r\n" % (MIB + 2))
        await trio.sleep(STALLED_SECONDS - 2)
        await peer.stream.send_all(b"x")
        await quickly.wait()
        await peer.stream.send_all(bytes(MIB))
        # The clock jumps also while a thread is at work.
        await taken.wait()
        await trio.sleep(STALLED_SECONDS - 2)
        await peer.stream.send_all(b"y")
        assert (await peer.answer()).status == 200
    assert ends == [{"type": "http.request", "body": b"y", "more_body": False}]


@pytest.mark.parametrize(("at_a_time", "whole"), [(1, False), (100, False), (1460, True)])
async def test_a_thread_is_not_kept_by_who_sends_a_byte_now_and_then(
    autojump_clock: MockClock, at_a_time: int, whole: bool
) -> None:
    one, other = os.pipe()
    os.write(other, b"x")
    poll = select.poll()
    poll.register(one, select.POLLIN)
    reads = 0

    def read(count: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads % 2:
            raise BlockingIOError
        return bytes(min(at_a_time, count))

    try:
        got = transports._gather(read, poll, 256 << 10)
    finally:
        os.close(one)
        os.close(other)
    assert (len(got) == 256 << 10) is whole
    assert reads < 1000


# ---- answers


async def sip(peer: Peer, rate: float, seconds: float) -> int:
    """Take `rate` bytes a second of an answer, every `seconds`, until there are no more; return how many there were."""
    got, credit = 0, 0.0
    with suppress(trio.BrokenResourceError):
        while True:
            credit += rate * seconds
            while credit >= 1:
                data = await peer.stream.receive_some(int(credit))
                if not data:
                    return got
                got, credit = got + len(data), credit - len(data)
            await trio.sleep(seconds)
    return got


Sending = Callable[[Send, Path, int], Awaitable[None]]


async def by_pieces(send: Send, path: Path, size: int) -> None:
    for at in range(0, size, 100_000):
        await body(send, bytes(min(100_000, size - at)), more=True)
    await body(send)


async def at_once(send: Send, path: Path, size: int) -> None:
    await body(send, bytes(size))


async def by_file(send: Send, path: Path, size: int) -> None:
    path.write_bytes(bytes(size))
    with path.open("rb") as opened:
        await file(send, opened, offset=0, count=size)


@pytest.fixture(params=["pieces", "at once", "file", "pieces by tls", "at once by tls"])
def sending(request: pytest.FixtureRequest) -> tuple[Sending, bool]:
    ways: dict[str, Sending] = {"pieces": by_pieces, "at once": at_once, "file": by_file}
    name, _, tls = request.param.partition(" by ")
    return ways[name], bool(tls)


def answering(
    way: Sending, path: Path, size: int, left: list[ClientLeft]
) -> Callable[[HTTPScope, Receive, Send], Awaitable[None]]:
    async def application(scope: HTTPScope, receive: Receive, send: Send) -> None:
        await start(send, 200, [(b"content-length", b"%d" % size)])
        try:
            await way(send, path, size)
        except ClientLeft as error:
            left.append(error)
            raise

    return application


@pytest.mark.parametrize("fast", [0, 3 * MIB])
async def test_a_client_that_takes_its_answer_by_drops_is_given_up(
    autojump_clock: MockClock, certificates: Certificates, tmp_path: Path, sending: tuple[Sending, bool], fast: int
) -> None:
    way, tls = sending
    left: list[ClientLeft] = []
    application = answering(way, tmp_path / "file", 8 * MIB, left)
    async with speaking(application, tls=certificates if tls else None) as peer, trio.open_nursery() as nursery:
        await peer.send(GET)
        got = 0
        while got < fast:
            got += len(await peer.stream.receive_some(MIB))
        nursery.start_soon(sip, peer, 100, 1)
        await peer.ended.wait()
        nursery.cancel_scope.cancel()
    assert [type(error) for error in left] == [TooSlow]


@pytest.mark.parametrize("seconds", [0.5, 20])
async def test_an_answer_over_a_slow_link_arrives_whole(
    autojump_clock: MockClock, certificates: Certificates, tmp_path: Path, sending: tuple[Sending, bool], seconds: float
) -> None:
    way, tls = sending
    left: list[ClientLeft] = []
    application = answering(way, tmp_path / "file", MIB, left)
    async with speaking(application, tls=certificates if tls else None) as peer, trio.open_nursery() as nursery:

        async def take() -> None:
            assert await sip(peer, SLOW_LINK, seconds) > MIB

        await peer.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        nursery.start_soon(take)
    assert left == []


async def test_what_the_registry_needs_between_pieces_of_an_answer_is_not_the_clients_time(
    autojump_clock: MockClock,
) -> None:
    async def slow(scope: HTTPScope, receive: Receive, send: Send) -> None:
        await start(send)
        for _ in range(20):
            await trio.sleep(STALLED_SECONDS)
            await body(send, bytes(100_000), more=True)
        await body(send)

    async with speaking(slow) as peer:
        await peer.send(GET)
        assert len((await peer.answer()).body) == 2_000_000


@pytest.mark.parametrize("rate", [0, SLOW_LINK * 4])
async def test_a_system_that_does_not_say_what_was_taken_is_asked_for_room_alone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rate: int
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    left: list[ClientLeft] = []
    async with speaking(answering(by_pieces, tmp_path, 2 * MIB, left)) as peer, trio.open_nursery() as nursery:
        await peer.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        if rate:
            nursery.start_soon(sip, peer, rate, 1)
        await peer.ended.wait()
        nursery.cancel_scope.cancel()
    assert [type(error) for error in left] == ([] if rate else [TooSlow])


# ---- the registry


@pytest.mark.parametrize("drops", [True, False])
async def test_an_upload_of_a_client_that_is_too_slow_keeps_what_it_has(
    autojump_clock: MockClock, drops: bool, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of()
    location = await client.open_session("a")
    head = b"PATCH %s HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" % location.encode()
    async with speaking(client.application) as peer, trio.open_nursery() as nursery:
        await peer.stream.send_all(head)
        nursery.start_soon(drip, peer, bytes(1000 if drops else 5), 1, 5 if drops else 0)
        if drops:
            answer = await peer.answer()
            assert (answer.status, answer.closes) == (408, True)
        else:
            # Who is silent is gone, and is told nothing.
            assert await peer.rest() == b""
        await peer.ended.wait()
        nursery.cancel_scope.cancel()
    answer_of_session = await client.ask("GET", location)
    kept = int(str(answer_of_session.header("Range")).removeprefix("0-")) + 1
    assert kept >= STALLED_SECONDS // 5 if drops else kept == 5
    rest = [("Content-Range", f"{kept}-999")]
    assert (await client.ask("PATCH", location, rest, bytes(1000 - kept))).status == 202
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_on_any_server_a_body_that_comes_by_drops_ends(autojump_clock: MockClock) -> None:
    client = client_of()
    location = await client.open_session("a")
    async with client.conversation("PATCH", location, [("Content-Length", "1000")]) as conversation:

        async def drops() -> None:
            while True:
                await conversation.send(b"x")
                await trio.sleep(5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drops)
            await conversation.finished.wait()
            nursery.cancel_scope.cancel()
    assert conversation.taken <= STALLED_SECONDS // 5 + 1
    answer = await client.ask("GET", location)
    assert answer.header("Range") == f"0-{conversation.taken - 1}"


async def test_on_any_server_a_body_over_a_slow_link_is_taken(autojump_clock: MockClock) -> None:
    client = client_of()
    location = await client.open_session("a")
    pieces = 100
    async with client.conversation("PATCH", location, [("Content-Length", str(pieces * 1000))]) as conversation:
        for number in range(pieces):
            await trio.sleep(1000 / SLOW_LINK)
            await conversation.send(bytes(1000), more=number < pieces - 1)
        assert (await conversation.answer()).status == 202


@pytest.mark.parametrize(("rate", "whole"), [(SLOW_LINK, True), (LEAST_RATE / 2, False)])
async def test_on_any_server_an_answer_is_taken_at_the_least_rate(
    autojump_clock: MockClock, rate: float, whole: bool
) -> None:
    client = client_of()
    digest = await client.push_blob("a", bytes(MIB))
    got = 0
    async with client.conversation("GET", f"/v2/a/blobs/{digest}") as conversation:
        assert (await conversation.message())["type"] == "http.response.start"
        with suppress(trio.EndOfChannel):
            while got < MIB:
                await trio.sleep((64 << 10) / rate)
                got += len(bytes((await conversation.message())["body"]))  # type: ignore[call-overload]
    assert (got == MIB) is whole

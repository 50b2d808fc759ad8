"""The way between trio and an asyncio loop in another thread."""

import asyncio
import contextvars
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from moorage_drivers import _bridge
from moorage_drivers._bridge import Body, Bridge, open_bridge

_word: contextvars.ContextVar[str] = contextvars.ContextVar("_word", default="")


@pytest.fixture
def bridge() -> Bridge:
    return open_bridge()


async def _tasks(bridge: Bridge) -> int:
    """Return how many tasks of the loop there are beside the one that counts."""

    async def count() -> int:
        await asyncio.sleep(0)
        return len(asyncio.all_tasks()) - 1

    return await bridge.run(count)


async def test_results_errors_and_context_cross_the_bridge(bridge: Bridge) -> None:
    async def answer(value: int) -> tuple[int, str]:
        await asyncio.sleep(0)
        return value, _word.get()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("gone")

    _word.set("trace")
    assert await bridge.run(answer, 7) == (7, "trace")
    with pytest.raises(LookupError, match="gone"):
        await bridge.run(fail)


async def test_wrong_arguments_are_an_error_and_no_wait(bridge: Bridge) -> None:
    async def answer() -> None:
        await asyncio.sleep(0)

    with trio.fail_after(5), pytest.raises(TypeError):
        await bridge.run(answer, 1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # the point of it


async def test_a_cancelled_call_has_ended_when_its_scope_is_left(bridge: Bridge) -> None:
    steps: list[str] = []
    began = trio.Event()
    token = trio.lowlevel.current_trio_token()

    async def slow() -> None:
        try:
            token.run_sync_soon(began.set)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            steps.append("cleaned")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bridge.run, slow)
        await began.wait()
        nursery.cancel_scope.cancel()
    assert steps == ["cleaned"]
    assert await _tasks(bridge) == 0


async def test_a_call_beyond_its_limit_is_cancelled(bridge: Bridge) -> None:
    async def slow() -> None:
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        await bridge.run_within(0.05, slow)
    assert await _tasks(bridge) == 0


async def test_a_call_that_its_library_cancels_is_a_failed_connection(bridge: Bridge) -> None:
    async def cancelled() -> None:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    with pytest.raises(ConnectionError):
        await bridge.run(cancelled)


async def test_what_swallows_its_cancellation_does_not_hold_its_caller(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_bridge, "_GRACE_SECONDS", 0.05)
    ends: list[asyncio.Event] = []

    async def stubborn() -> None:
        ends.append(asyncio.Event())
        while not ends[0].is_set():
            try:
                await ends[0].wait()
            except asyncio.CancelledError:
                continue

    with pytest.raises(TimeoutError):
        await bridge.run_within(0.05, stubborn)
    assert bridge.stuck == 1
    assert "stubborn" in caplog.text
    bridge.loop.call_soon_threadsafe(ends[0].set)
    while bridge.stuck:
        await trio.lowlevel.checkpoint()
    assert await _tasks(bridge) == 0


async def test_calls_cancelled_at_random_leave_nothing(bridge: Bridge) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    finished = 0

    async def work() -> int:
        await asyncio.sleep(0.001)
        return 1

    async def one(seconds: float) -> None:
        nonlocal finished
        with trio.move_on_after(seconds):
            finished += await bridge.run(work)

    async with trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(one, chance.choice([0.0, 0.0005, 0.001, 0.002, 5.0]))
    assert finished > 0
    assert await _tasks(bridge) == 0


class _Source:
    """A body on the asyncio side: pieces of `size` bytes, `count` of them; says whether it is open."""

    def __init__(self, count: int, size: int = 1024, fail_at: int | None = None) -> None:
        self.count = count
        self.size = size
        self.fail_at = fail_at
        self.given = 0
        self.open = False

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Body[str]]:
        self.open = True
        try:
            yield Body("head", self.read)
        finally:
            await asyncio.sleep(0)
            self.open = False

    async def read(self, limit: int) -> bytes:
        await asyncio.sleep(0)
        if self.given == self.fail_at:
            raise OSError("broken")
        if self.given == self.count:
            return b""
        self.given += 1
        assert self.size <= limit, "no read takes less than there is"
        return b"x" * self.size


@pytest.mark.parametrize("count", [0, 1, 4096])
async def test_a_stream_gives_its_head_and_all_of_its_bytes(bridge: Bridge, count: int) -> None:
    source = _Source(count)
    async with bridge.stream(source.opened) as (head, chunks):
        assert head == "head"
        size = sum([len(chunk) async for chunk in chunks])
    assert size == count * 1024
    assert not source.open


async def test_a_stream_reads_ahead_only_a_little(bridge: Bridge) -> None:
    source = _Source(1000, size=256 << 10)
    async with bridge.stream(source.opened) as (_, chunks):
        async for _ in chunks:
            break
        for _ in range(20):
            assert await _tasks(bridge) == 1
        assert source.given <= 6
    assert not source.open
    assert await _tasks(bridge) == 0


async def test_a_stream_that_breaks_raises_where_it_is_read(bridge: Bridge) -> None:
    source = _Source(10, size=256 << 10, fail_at=3)
    size = 0
    async with bridge.stream(source.opened) as (_, chunks):
        with pytest.raises(OSError, match="broken"):
            async for chunk in chunks:
                size += len(chunk)
    assert size == 3 * (256 << 10)
    assert not source.open


async def test_a_stream_that_cannot_be_opened_raises_on_entering(bridge: Bridge) -> None:
    class Missing(_Source):
        @asynccontextmanager
        async def opened(self) -> AsyncGenerator[Body[str]]:
            if self.count == 0:
                raise LookupError("no such body")
            yield Body("head", self.read)

    with pytest.raises(LookupError):
        async with bridge.stream(Missing(0).opened):
            pytest.fail("it opened")


async def test_a_stream_without_a_byte_ends(bridge: Bridge) -> None:
    class Silent(_Source):
        async def read(self, limit: int) -> bytes:
            del limit
            await asyncio.sleep(60)
            return b""

    source = Silent(1)
    async with bridge.stream(source.opened, stall_seconds=0.05) as (_, chunks):
        with pytest.raises(TimeoutError):
            async for _ in chunks:
                pytest.fail("there are no bytes")
    assert not source.open


async def test_a_stream_left_by_cancellation_is_closed(bridge: Bridge) -> None:
    source = _Source(1 << 20)
    with trio.move_on_after(0.05):
        async with bridge.stream(source.opened) as (_, chunks):
            async for _ in chunks:
                await trio.sleep(0.001)
    assert not source.open
    assert await _tasks(bridge) == 0

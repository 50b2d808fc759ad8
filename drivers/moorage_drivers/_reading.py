"""Reading an object of a service by ranges: some ahead of the reader, resumed at the byte where a connection broke.

The first range is streamed as it comes. Where more follow, a few are fetched meanwhile, if the driver's budget of bytes
allows it now; nobody waits for that budget, so nobody can be kept waiting by a slow reader. All ranges are of one version
of the object.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager

import msgspec
import trio

from moorage import DriverError, RangeUnsatisfiable, Reader, Stat, StoreBusy, StoreUnavailable, open_helpers

from ._parts import ByteBudget

RANGE = 8 << 20
READ_MEMORY = 128 << 20
"""Bytes that all readers of a driver may have fetched ahead."""

_WAIT_SECONDS = 60.0
_AHEAD = 2
_TRIES = 4
_PAUSE_SECONDS = 0.2
_SLICE = 1 << 20

OpenRange = Callable[[int, int | None, str | None], AbstractAsyncContextManager[tuple[Stat, AsyncIterator[bytes]]]]
"""Opens the bytes from a first up to, not including, a last (None: the end), clipped; if given, of that version only."""


class ReadBudgets:
    """What all readers of a driver share: memory for what is fetched ahead, and connections that bodies may keep.

    A body keeps its connection for as long as its reader likes, so a quarter of them is left for everything else.
    """

    def __init__(self, *, connections: int) -> None:
        """Allow bodies on three quarters of `connections`."""
        self.memory: ByteBudget = ByteBudget(READ_MEMORY)
        self._bodies = trio.Semaphore(max(1, connections - max(1, connections // 4)))

    @asynccontextmanager
    async def body(self, key: str, *, driver: str) -> AsyncGenerator[None]:
        """Keep a connection while inside; wait for one, but not for ever.

        Raises:
            StoreBusy: none was given back for a minute.
        """
        with trio.move_on_after(_WAIT_SECONDS) as scope:
            await self._bodies.acquire()
        if scope.cancelled_caught:
            raise StoreBusy("too many bodies are being read", driver=driver, operation="open", key=key)
        try:
            yield
        finally:
            self._bodies.release()


async def read_whole(reader: Reader, limit: int, *, driver: str) -> bytes:
    """Return all of a small object.

    Raises:
        StoreUnavailable: it has more than `limit` bytes.
    """
    if reader.stat.size > limit:
        raise StoreUnavailable(
            f"{reader.stat.size} bytes where at most {limit} are expected",
            driver=driver,
            operation="open",
            key=reader.stat.key,
        )
    return b"".join([chunk async for chunk in reader])


class _Fetched:
    """A range that is fetched ahead."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.data = b""
        self.failure: Exception | None = None


class _Ranges(msgspec.Struct, frozen=True):
    """What is read: which object, how far, and how a range of it is opened."""

    open: OpenRange
    stat: Stat
    stop: int
    driver: str

    async def resumed(self, start: int, stop: int, chunks: AsyncIterator[bytes] | None) -> AsyncGenerator[bytes]:
        """Give the bytes from `start` to `stop`, beginning with those of `chunks`, whatever breaks in between."""
        position, tries = start, 0
        while position < stop:
            began = position
            try:
                if chunks is not None:
                    async for chunk in chunks:
                        position += len(chunk)
                        yield chunk
                else:
                    async with self.open(position, stop, self.stat.version) as (_, more):
                        async for chunk in more:
                            position += len(chunk)
                            yield chunk
                if position < stop:
                    raise StoreUnavailable(
                        f"the body ended {stop - position} bytes early",
                        driver=self.driver,
                        operation="open",
                        key=self.stat.key,
                    )
            except DriverError as error:
                tries = tries + 1 if position == began else 1
                if not error.retryable or tries >= _TRIES:
                    raise
                await trio.sleep(_PAUSE_SECONDS * tries)
            chunks = None


@asynccontextmanager
async def open_by_ranges(
    open_range: OpenRange,
    stat_object: Callable[[], Awaitable[Stat]],
    start: int,
    stop: int | None,
    *,
    budget: ByteBudget,
    driver: str,
) -> AsyncGenerator[Reader]:
    """Open the bytes of an object from `start` to `stop` by one request, and by more only if it is larger than 8 MiB.

    Args:
        open_range: opens a range; raises RangeUnsatisfiable where it begins at the end of the object or behind it.
        stat_object: says what is known of the object; asked where a range is empty, which is none to a service.
        start: where to begin.
        stop: where to stop; None for the end.
        budget: what is fetched ahead is held on its account.
        driver: for errors.

    Raises (on entering, or while reading):
        DriverError: what `open_range` and `stat_object` raise.
    """
    wanted = start + RANGE if stop is None else min(stop, start + RANGE)
    async with AsyncExitStack() as stack:
        try:
            if wanted <= start:
                raise RangeUnsatisfiable("it is empty", driver=driver, operation="open")
            stat, chunks = await stack.enter_async_context(open_range(start, wanted, None))
        except RangeUnsatisfiable:
            stat = await stat_object()
            if start > stat.size:
                raise RangeUnsatisfiable("it ends before", driver=driver, operation="open", key=stat.key) from None
            yield Reader(stat, _nothing())
            return
        end = stat.size if stop is None else min(stop, stat.size)
        ranges = _Ranges(open_range, stat, end, driver)
        if end <= wanted:
            async with aclosing(ranges.resumed(start, end, chunks)) as pieces:
                yield Reader(stat, pieces)
            return
        async with (
            open_helpers() as nursery,
            aclosing(_ahead(ranges, start, wanted, chunks, budget, nursery)) as pieces,
        ):
            yield Reader(stat, pieces)


async def _ahead(
    ranges: _Ranges,
    start: int,
    first_stop: int,
    chunks: AsyncIterator[bytes],
    budget: ByteBudget,
    nursery: trio.Nursery,
) -> AsyncGenerator[bytes]:
    """Give all bytes in order; fetch what follows while what comes first is read."""
    starts = list(range(first_stop, ranges.stop, RANGE))
    fetched: dict[int, _Fetched] = {}
    held = 0

    async def fetch(at: int, into: _Fetched) -> None:
        gathered = bytearray()
        try:
            async with aclosing(ranges.resumed(at, min(at + RANGE, ranges.stop), None)) as pieces:
                async for piece in pieces:
                    gathered += piece
        except Exception as error:  # noqa: BLE001 - raised to the reader when it gets there
            into.failure = error
        into.data = bytes(gathered)
        into.done.set()

    def begin(first: int) -> None:
        nonlocal held
        for at in starts[first : first + _AHEAD]:
            if at not in fetched and budget.take_nowait(RANGE):
                held += RANGE
                fetched[at] = _Fetched()
                nursery.start_soon(fetch, at, fetched[at])

    try:
        begin(0)
        async with aclosing(ranges.resumed(start, first_stop, chunks)) as pieces:
            async for piece in pieces:
                yield piece
        for number, at in enumerate(starts):
            into = fetched.pop(at, None)
            begin(number + 1)
            if into is None:
                async with aclosing(ranges.resumed(at, min(at + RANGE, ranges.stop), None)) as pieces:
                    async for piece in pieces:
                        yield piece
                continue
            await into.done.wait()
            if into.failure is not None:
                raise into.failure
            for cut in range(0, len(into.data), _SLICE):
                yield into.data[cut : cut + _SLICE]
            into.data = b""
            held -= RANGE
            budget.give(RANGE)
    finally:
        budget.give(held)


async def _nothing() -> AsyncGenerator[bytes]:
    await trio.lowlevel.checkpoint()
    none: tuple[bytes, ...] = ()
    for chunk in none:
        yield chunk

"""Parts of uploads on their way to a service: several at once, bounded in bytes over all uploads of a driver.

An upload's parts are sent by tasks that its context manager owns. A failure of one is kept and raised to whoever writes
next, so that nothing is raised in a group.
"""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from moorage import StoreUnavailable, open_helpers

from ._retry import RetryOptions, retried

_FIRST = 1 << 20
_AGAIN = RetryOptions()
_SEND_SECONDS = 60.0


class ByteBudget:
    """So many bytes may be held at once; who asks for more waits, in the order of asking."""

    def __init__(self, limit: int) -> None:
        """Allow `limit` bytes; who needs more than that alone gets them when nobody else has any."""
        self._limit = limit
        self._used = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    @property
    def used(self) -> int:
        """How many bytes are held."""
        return self._used

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncGenerator[None]:
        """Hold `size` bytes while inside."""
        await self.take(size)
        try:
            yield
        finally:
            self.give(size)

    async def take(self, size: int) -> None:
        """Wait for `size` bytes, which are then to be given back."""
        await trio.lowlevel.checkpoint()
        if not self._waiting and self._fits(size):
            self._used += size
            return
        turn = (size, trio.Event())
        self._waiting.append(turn)
        try:
            await turn[1].wait()
        except trio.Cancelled:
            if turn[1].is_set():
                self.give(size)
            else:
                self._waiting.remove(turn)
                self._admit()
            raise

    def take_nowait(self, size: int) -> bool:
        """Take `size` bytes if nobody has to wait for that; return whether they were taken."""
        if self._waiting or not self._fits(size):
            return False
        self._used += size
        return True

    def give(self, size: int) -> None:
        """Give back `size` bytes."""
        self._used -= size
        self._admit()

    def _fits(self, size: int) -> bool:
        return self._used == 0 or self._used + size <= self._limit

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, event = self._waiting.popleft()
            self._used += size
            event.set()


class Budgets:
    """What all uploads of a driver share: memory, and requests under way.

    An upload fills its first MiB on one account and what exceeds that on another: many small ones, or slow ones, do not
    keep the big ones that are under way from ending, which frees memory again.
    """

    def __init__(self, *, memory: int = 256 << 20, at_once: int = 64) -> None:
        """Allow `memory` bytes and `at_once` parts under way, over all uploads."""
        self.first: ByteBudget = ByteBudget(memory // 4)
        self.further: ByteBudget = ByteBudget(memory - memory // 4)
        self.requests: trio.CapacityLimiter = trio.CapacityLimiter(at_once)


class PartWriter:
    """Cuts what is written into parts and sends them, several at once.

    Attributes:
        buffered: the bytes that are in no part yet.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        budgets: Budgets,
        send: Callable[[int, bytes], Awaitable[None]],
        *,
        part_size: Callable[[int], int],
        next_part: int,
        buffered: bytes,
        at_once: int,
    ) -> None:
        """See `open_part_writer`."""
        self.buffered: bytearray = bytearray(buffered)
        self._nursery = nursery
        self._budgets = budgets
        self._send = send
        self._part_size = part_size
        self._next = next_part
        self._limit = trio.CapacityLimiter(at_once)
        self._failure: Exception | None = None
        self._sending = 0
        self._idle = trio.Event()
        self._first = 0
        self._further = 0

    @property
    def sending(self) -> bool:
        """Whether parts are under way."""
        return self._sending > 0

    async def write(self, data: bytes) -> None:
        """Append `data`; wait where there is no room for it.

        All of `data` is taken in, or, where this raises, none.

        Raises:
            Exception: what an earlier part failed with.
        """
        self._check()
        await self._make_room(len(self.buffered) + len(data))
        self.buffered += data
        while len(self.buffered) >= (size := self._part_size(self._next)):
            self._begin(size)
        if self._further and len(self.buffered) <= _FIRST:
            # What is left has its room on the first account.
            self._budgets.further.give(self._further)
            self._further = 0

    async def flush(self, *, minimum: int) -> None:
        """Send what is buffered as a part, if it has `minimum` bytes; wait until all parts have been sent.

        Raises:
            Exception: what a part failed with.
        """
        self._check()
        if self.buffered and len(self.buffered) >= minimum:
            self._begin(len(self.buffered))
        await self.drain()

    async def drain(self) -> None:
        """Wait until all parts that were begun have been sent.

        Raises:
            Exception: what a part failed with.
        """
        await trio.lowlevel.checkpoint()
        while self._sending:
            self._idle = trio.Event()
            await self._idle.wait()
        self._check()

    def release(self) -> None:
        """Give back the room of what is buffered; for when nothing more is written."""
        self._budgets.first.give(self._first)
        self._budgets.further.give(self._further)
        self._first = self._further = 0

    async def _make_room(self, size: int) -> None:
        if not self._first:
            await self._budgets.first.take(_FIRST)
            self._first = _FIRST
        if size > _FIRST and not self._further:
            # A whole part's room, once: who has some and waits for more keeps it from others who do the same, and none
            # of them would ever end. What a piece brings beyond the part has its room on the first account, as long as
            # pieces are no larger than that.
            wanted = max(self._part_size(self._next), size - _FIRST)
            await self._budgets.further.take(wanted)
            self._further = wanted
        else:
            await trio.lowlevel.checkpoint()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _begin(self, size: int) -> None:
        """Send the first `size` buffered bytes as the next part; its room goes with it."""
        data = bytes(self.buffered[:size])
        del self.buffered[:size]
        first, further = (self._first, self._further) if not self.buffered else (0, min(self._further, size))
        self._first -= first
        self._further -= further
        self._sending += 1
        self._nursery.start_soon(self._send_part, self._next, data, first, further)
        self._next += 1

    async def _send_part(self, number: int, data: bytes, first: int, further: int) -> None:
        try:
            # Shielded: what arrived from a client that left is kept, and an aborted upload gets no part after that.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _SEND_SECONDS) as scope:
                async with self._limit, self._budgets.requests:
                    if self._failure is None:
                        # A part that is sent twice under its number is the same part.
                        await retried(_AGAIN, partial(self._send, number, data))
            if scope.cancelled_caught:
                self._failure = StoreUnavailable(
                    f"a part was not sent within {_SEND_SECONDS:g} s", driver="parts", operation="upload"
                )
        except Exception as error:  # noqa: BLE001 - raised to whoever writes next
            self._failure = error
        finally:
            self._budgets.first.give(first)
            self._budgets.further.give(further)
            self._sending -= 1
            if not self._sending:
                self._idle.set()


@asynccontextmanager
async def open_part_writer(
    budgets: Budgets,
    send: Callable[[int, bytes], Awaitable[None]],
    *,
    part_size: Callable[[int], int],
    next_part: int = 1,
    buffered: bytes = b"",
    at_once: int = 4,
) -> AsyncGenerator[PartWriter]:
    """Open a writer whose parts go to `send` with their numbers; leaving it ends what is under way.

    Args:
        budgets: what it shares with all others of its driver.
        send: sends one part; the parts of an upload may overtake each other.
        part_size: says how many bytes the part of a number has.
        next_part: the number of the next part.
        buffered: bytes that are in no part yet.
        at_once: how many parts may be under way.
    """
    async with open_helpers() as nursery:
        writer = PartWriter(
            nursery, budgets, send, part_size=part_size, next_part=next_part, buffered=buffered, at_once=at_once
        )
        try:
            yield writer
        finally:
            writer.release()

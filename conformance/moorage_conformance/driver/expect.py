"""Saying what must be so, in sentences that an author can act on."""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TypeVar

import trio

from moorage import ConditionFailed, Driver, DriverError, KeyUnknown

T = TypeVar("T")

_SHOWN = 200


class Unmet(Exception):
    """The driver does not do what the contract says; the text says what it did."""


def true(condition: object, sentence: str) -> None:
    """Go on if `condition` holds.

    Raises:
        Unmet: it does not.
    """
    if not condition:
        raise Unmet(sentence)


def equal(found: T, wanted: T, what: str) -> None:
    """Go on if `found`, which is `what`, is `wanted`.

    Raises:
        Unmet: it is not.
    """
    if found != wanted:
        raise Unmet(f"{what} is {_short(found)}, not {_short(wanted)}")


def _short(value: object) -> str:
    if isinstance(value, bytes) and len(value) > _SHOWN:
        return f"{value[:40]!r}… ({len(value)} bytes)"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@contextmanager
def refuses(*errors: type[DriverError], what: str) -> Generator[None]:
    """Go on if `what` is done inside raises one of `errors`, with its driver and operation named.

    Raises:
        Unmet: it raises nothing, or something else.
    """
    names = " or ".join(error.__name__ for error in errors)
    try:
        yield
    except errors as error:
        true(error.driver and error.operation, f"{type(error).__name__} by {what} names no driver or no operation")
    except (trio.Cancelled, Unmet):
        raise
    except Exception as error:
        raise Unmet(f"{what} raises {type(error).__name__} ({error}), not {names}") from error
    else:
        raise Unmet(f"{what} raises nothing, not {names}")


async def content(driver: Driver, key: str, start: int = 0, stop: int | None = None) -> bytes:
    """Return the bytes of `key`, or a range of them."""
    async with driver.open(key, start, stop) as reader:
        return b"".join([chunk async for chunk in reader])


async def exists(driver: Driver, key: str) -> bool:
    """Return whether there is such a key."""
    try:
        await driver.stat(key)
    except KeyUnknown:
        return False
    return True


async def keys(driver: Driver, prefix: str = "") -> list[str]:
    """Return all keys below `prefix`, page by page."""
    found: list[str] = []
    while True:
        listing = await driver.list(prefix, after=found[-1] if found else "")
        found += [entry.key for entry in listing.entries]
        if not listing.more:
            return found
        true(listing.entries, "a page without entries says that more follow")


async def wins(attempts: Iterable[Callable[[], Awaitable[object]]]) -> int:
    """Make all attempts at once; return how many were not refused for their condition."""
    won = 0

    async def run(attempt: Callable[[], Awaitable[object]]) -> None:
        nonlocal won
        try:
            await attempt()
        except ConditionFailed:
            return
        won += 1

    async with trio.open_nursery() as nursery:
        for attempt in attempts:
            nursery.start_soon(run, attempt)
    return won


class Pieces:
    """The source of a streamed write: gives pieces, and at the end does something, or raises it."""

    def __init__(self, *pieces: bytes, then: Callable[[], Awaitable[None]] | Exception | None = None) -> None:
        """Give `pieces`, then do or raise `then`."""
        self._pieces = list(pieces)[::-1]
        self._then = then

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give what is left."""
        return self

    async def __anext__(self) -> bytes:
        """Give the next piece."""
        await trio.lowlevel.checkpoint()
        if self._pieces:
            return self._pieces.pop()
        then, self._then = self._then, None
        if isinstance(then, Exception):
            raise then
        if then is not None:
            await then()
        raise StopAsyncIteration

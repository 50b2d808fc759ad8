"""Doing one thing for many items at once, bounded, with plain exceptions."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

import trio

T = TypeVar("T")
R = TypeVar("R")


async def map_bounded(function: Callable[[T], Awaitable[R]], items: Sequence[T], *, limit: int) -> list[R]:
    """Return `function` of each of `items`, in their order, with at most `limit` under way at once.

    The first exception ends the others and is raised as it is, not inside a group.
    """
    if len(items) <= 1 or limit == 1:
        return [await function(item) for item in items]
    results: list[R | None] = [None] * len(items)
    todo = iter(enumerate(items))
    failures: list[Exception] = []

    async def work() -> None:
        for at, item in todo:
            try:
                results[at] = await function(item)
            except Exception as error:  # noqa: BLE001 - raised below, by whoever asked
                failures.append(error)
                nursery.cancel_scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(min(limit, len(items))):
            nursery.start_soon(work)
    if failures:
        raise failures[0]
    # Without a failure each place was filled.
    return cast("list[R]", results)

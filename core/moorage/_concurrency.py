"""Doing several things at once with plain exceptions: one thing for many items, or something beside a block."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar, cast

import trio

T = TypeVar("T")
R = TypeVar("R")


@asynccontextmanager
async def open_helpers() -> AsyncGenerator[trio.Nursery]:
    """Open a nursery for tasks that help the block, and that are cancelled and waited for when it ends.

    What the block raises is raised as it is, not inside a group. The tasks must tell their failures by other ways: what
    they raise ends the block and comes in a group, as from any nursery.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:  # noqa: BLE001 - raised below, outside the group that a nursery makes of it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


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

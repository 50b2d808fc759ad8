"""Cancelling something at each of its awaits in turn, and seeing what it leaves behind.

What was cancelled may end in two ways: the cancellation comes out of it, or it had already done what it was asked.
"""

import os
import threading
from collections.abc import Awaitable, Callable

import msgspec
import trio

__all__ = ["Living", "cancelled_at"]


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope when a task, or one that it started, is about to be resumed for the nth time."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, steps: int) -> None:
        self._task = task
        self._scope = scope
        self._left = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._is_of(task):
            self._left -= 1
            if self._left < 0:
                self._scope.cancel()

    def _is_of(self, task: trio.lowlevel.Task) -> bool:
        at: trio.lowlevel.Task | None = task
        while at is not None:
            if at is self._task:
                return True
            at = at.parent_nursery.parent_task if at.parent_nursery is not None else None
        return False


async def cancelled_at(step: int, attempt: Callable[[], Awaitable[object]]) -> bool:
    """Make an attempt that is cancelled at its `step`th await; return whether the cancellation came out of it."""
    with trio.CancelScope() as scope:
        instrument = _CancelAt(trio.lowlevel.current_task(), scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            await attempt()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught


class Living(msgspec.Struct, frozen=True):
    """What lives in this process: tasks, threads, and open descriptors (0 where the system does not tell)."""

    tasks: int
    threads: int
    descriptors: int

    @classmethod
    def now(cls) -> "Living":
        """Count."""
        try:
            descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted only
        except OSError:
            descriptors = 0
        return cls(trio.lowlevel.current_statistics().tasks_living, threading.active_count(), descriptors)

"""Seeing that a hook which runs in the event loop does not block it, and getting the loop back when it does.

A coroutine that computes, sleeps or waits for a file without awaiting stops every other request of the process. Each step
of a watched coroutine is timed. A timer of the operating system looks after it meanwhile: at `BLOCKING_SECONDS` the log
names the plugin, at `BLOCKED_SECONDS` the step is interrupted by an exception. The timer's signal reaches the main thread
alone, and between two instructions of Python; where the loop runs in another thread, or the step is inside a foreign
library that does not come back, the log tells afterwards.
"""

import logging
import signal
import threading
import time
from collections.abc import Coroutine, Generator
from types import FrameType
from typing import Generic, TypeVar, cast

_log = logging.getLogger("moorage.plugins")

T = TypeVar("T")

BLOCKING_SECONDS = 0.05
"""How long a step may take before the log names its plugin."""
BLOCKED_SECONDS = 2.0
"""How long a step may take before it is interrupted."""


class LoopBlockedError(Exception):
    """Raised inside a hook that has kept the event loop from everybody else for `BLOCKED_SECONDS`."""


class _Watch:
    """The step that runs now, of the one thread that signals reach."""

    def __init__(self) -> None:
        self._plugin: str | None = None
        self._reported = False
        self._installed = False

    def usable(self) -> bool:
        """Return whether a timer can look after this thread; take its signal the first time."""
        if threading.current_thread() is not threading.main_thread():
            return False
        if not self._installed:
            # Somebody else's timer is left alone.
            if signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
                return False
            signal.signal(signal.SIGALRM, self._overdue)
            self._installed = True
        return signal.getsignal(signal.SIGALRM) == self._overdue

    def _overdue(self, number: int, frame: FrameType | None) -> None:
        del number
        plugin = self._plugin
        if plugin is None:
            # The step ended while the signal was on its way.
            return
        if not self._reported:
            self._reported = True
            signal.setitimer(signal.ITIMER_REAL, BLOCKED_SECONDS - BLOCKING_SECONDS)
            _report(plugin, "is blocking the event loop, now for more than", BLOCKING_SECONDS)
            return
        # Once more later, should the step catch this one and go on.
        signal.setitimer(signal.ITIMER_REAL, BLOCKED_SECONDS)
        # Raised between the end of the step and the end of the watch, it would tear the coroutine from its task.
        if frame is not None and frame.f_globals is not globals():
            raise LoopBlockedError(f"the event loop was blocked for {BLOCKED_SECONDS:g} s")

    def begin(self, plugin: str) -> None:
        """Look after a step of `plugin` that begins now."""
        self._reported = False
        self._plugin = plugin
        signal.setitimer(signal.ITIMER_REAL, BLOCKING_SECONDS)

    def end(self) -> None:
        """Look no longer: the step has ended."""
        self._plugin = None
        signal.setitimer(signal.ITIMER_REAL, 0)


_watch = _Watch()


def _report(plugin: str, what: str, seconds: float) -> None:
    _log.warning("plugin %s %s %.3g s; nobody else is served meanwhile", plugin, what, seconds)


class watched(Generic[T]):  # noqa: N801 - is awaited like a function
    """Await a coroutine of `plugin`, each step of it watched.

    Raises:
        LoopBlockedError: it blocked the loop too long; whatever the coroutine makes of that is raised instead.
    """

    def __init__(self, plugin: str, coroutine: Coroutine[object, object, T]) -> None:
        self._plugin = plugin
        self._coroutine = coroutine

    def __await__(self) -> Generator[object, object, T]:
        """Drive the coroutine, as `await` would."""
        timer = _watch.usable()
        value: object = None
        error: BaseException | None = None
        while True:
            began = time.monotonic()
            if timer:
                _watch.begin(self._plugin)
            try:
                try:
                    yielded = self._coroutine.send(value) if error is None else self._coroutine.throw(error)
                finally:
                    if timer:
                        _watch.end()
                    took = time.monotonic() - began
                    if took > BLOCKING_SECONDS:
                        _report(self._plugin, "blocked the event loop for", took)
            except StopIteration as end:
                return cast("T", end.value)  # a coroutine's StopIteration carries what it returns
            value, error = None, None
            try:
                value = yield yielded
            # Cancelled among them: it is thrown into the coroutine, as it would be without this class between.
            except BaseException as thrown:  # noqa: BLE001
                error = thrown

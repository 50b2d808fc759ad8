"""Seeing that a hook which runs in the event loop does not block it, and getting the loop back when it does.

A hook that computes, sleeps or waits for a file without awaiting stops every other request of the process. Each of its
steps is timed. A timer of the operating system looks after it meanwhile: at `BLOCKING_SECONDS` the log names the plugin,
at `BLOCKED_SECONDS` the step is interrupted by an exception, and again after that for as long as it catches it. The
timer's signal reaches the main thread alone, and between two instructions of Python; where the loop runs in another
thread, or the step is inside a foreign library that does not come back, the log tells afterwards.
"""

import logging
import math
import signal
import threading
import time
from collections.abc import Coroutine, Generator
from types import FrameType, TracebackType
from typing import Generic, TypeVar, cast

_log = logging.getLogger("moorage.plugins")

T = TypeVar("T")

BLOCKING_SECONDS = 0.05
"""How long a step may take before the log names its plugin."""
BLOCKED_SECONDS = 2.0
"""How long a step may take before it is interrupted."""
REPORT_SECONDS = 60.0
"""For how long a plugin that was named is only counted."""


class LoopBlockedError(BaseException):
    """Raised inside a hook that has kept the event loop from everybody else for `BLOCKED_SECONDS`.

    Not an `Exception`, so that a loop which goes on whatever happens does not go on with it.
    """


class _Reports:
    """Says which plugins block the event loop: each now and then, however often it does."""

    def __init__(self) -> None:
        self._named: dict[str, float] = {}
        self._since: dict[str, int] = {}

    def step(self, plugin: str) -> None:
        """Log that a step of `plugin` blocks the event loop, now; or only count it."""
        now = time.monotonic()
        if now - self._named.get(plugin, -math.inf) < REPORT_SECONDS:
            self._since[plugin] = self._since.get(plugin, 0) + 1
            return
        self._named[plugin] = now
        again = self._since.pop(plugin, 0)
        _log.warning(
            "plugin %s blocks the event loop for more than %g ms%s; nobody else is served meanwhile",
            plugin,
            BLOCKING_SECONDS * 1000,
            f", and did so {again} times since this was said last" if again else "",
        )


class _Watch:
    """The step that runs now, of the one thread that signals reach."""

    def __init__(self) -> None:
        self._plugin: str | None = None
        self._reported = False
        self._installed = False
        self._reports = _Reports()

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
            self.report(plugin)
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

    def end(self) -> bool:
        """Look no longer, the step has ended; return whether it was reported."""
        self._plugin = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        return self._reported

    def report(self, plugin: str) -> None:
        """Log that a step of `plugin` blocks the event loop."""
        try:
            self._reports.step(plugin)
        except RuntimeError:
            # The step was in the middle of writing to where the log goes. It is said the next time.
            self._reports = _Reports()


_watch = _Watch()


class Step:
    """Watches what one plugin does inside, which must not await.

    Raises:
        LoopBlockedError: it blocked the loop too long.
    """

    __slots__ = ("_began", "_plugin", "_timer")

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._timer = _watch.usable()

    def __enter__(self) -> None:
        """Begin to watch."""
        self._began = time.monotonic()
        if self._timer:
            _watch.begin(self._plugin)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the watch, and tell what no timer has told."""
        reported = self._timer and _watch.end()
        if not reported and time.monotonic() - self._began > BLOCKING_SECONDS:
            _watch.report(self._plugin)


class watched(Generic[T]):  # noqa: N801 - is awaited like a function
    """Await a coroutine of `plugin`, each step of it watched.

    Raises:
        LoopBlockedError: it blocked the loop too long; whatever the coroutine makes of that is raised instead.
    """

    def __init__(self, plugin: str, coroutine: Coroutine[object, object, T]) -> None:
        self._coroutine = coroutine
        self._step = Step(plugin)

    def __await__(self) -> Generator[object, object, T]:
        """Drive the coroutine, as `await` would."""
        value: object = None
        error: BaseException | None = None
        while True:
            try:
                with self._step:
                    yielded = self._coroutine.send(value) if error is None else self._coroutine.throw(error)
            except StopIteration as end:
                return cast("T", end.value)  # a coroutine's StopIteration carries what it returns
            value, error = None, None
            try:
                value = yield yielded
            # Cancelled among them: it is thrown into the coroutine, as it would be without this class between.
            except BaseException as thrown:  # noqa: BLE001
                error = thrown

"""Calling one implementation of a hook: bounded in time, watched, traced, and never harmful to the caller.

An async implementation runs in the event loop, each of its steps watched; a sync one in a thread of its plugin, which is
left behind when its time is over. A plugin that leaves too many threads behind, or keeps blocking the loop, is asked no
more: it is told to be broken instead.

Whatever else a plugin raises stays here too, `KeyboardInterrupt` and the like included: what ends a process would end the
pushes and pulls of others. Only cancellation passes, and an interrupt where somebody may have sent it.
"""

import inspect
import logging
import os
import reprlib
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from types import TracebackType
from typing import Self, cast

import pluggy
import trio

from ._errors import InternalError, RegistryError
from ._watch import LoopBlockedError, Step, watched

_log = logging.getLogger("moorage.plugins")
_trace_log = logging.getLogger("moorage.plugins.trace")

HOOK_SECONDS = 10.0
"""How long one implementation of a decision hook may take."""
TRACE_VARIABLE = "MOORAGE_TRACE_PLUGINS"
"""Set to anything but 0, it has each call of a hook logged."""

_HOOK_THREADS = 4
"""How many threads one plugin may have at work, those that were left behind included."""
_BLOCKS = 3
"""How often a plugin may have its block of the event loop broken before it is asked no more."""


class _Asked:
    """What one plugin has at work, and has to answer for.

    `left_behind` is how many of its threads still run although nobody waits for them; each ends when it ends. `blocks`
    is how often it had to be interrupted in the event loop.
    """

    def __init__(self) -> None:
        self.left_behind = 0
        self.blocks = 0
        self._limiter = trio.CapacityLimiter(_HOOK_THREADS)

    async def in_thread(self, decide: Callable[[], object]) -> object:
        """Return what `decide` does in a thread; when cancelled, leave it behind."""
        running = left = False

        def run() -> object:
            nonlocal running
            running = True
            try:
                return decide()
            finally:
                running = False
                if left:
                    self.left_behind -= 1

        try:
            return await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._limiter)
        except trio.Cancelled:
            if running:
                left = True
                self.left_behind += 1
            raise


class Traced:
    """One call of a plugin; where calls are traced, it is logged how it ended and how long it took."""

    __slots__ = ("_began", "_plugin", "_said", "_what")

    def __init__(self, what: str, plugin: str) -> None:
        """Trace `what`, a hook or what is opened, of `plugin`."""
        self._what = what
        self._plugin = plugin
        self._said = "returned"
        self._began = 0.0

    def returned(self, answer: object) -> None:
        """Take note of what the call returned."""
        if isinstance(answer, Mapping):
            # Of what is registered the names tell all that a reader wants.
            answer = list(cast("Mapping[object, object]", answer))
        self._said = f"returned {_trace_repr.repr(answer)}"

    def __enter__(self) -> Self:
        """Begin."""
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Log how it ended."""
        took = (time.monotonic() - self._began) * 1000
        match error:
            case None:
                outcome = self._said
            case RegistryError():
                outcome = f"refused: {error.message}"
            case trio.TooSlowError():
                outcome = "timed out"
            case trio.Cancelled():
                outcome = "was cancelled"
            case LoopBlockedError():
                outcome = f"was interrupted: {error}"
            case _:
                outcome = f"failed: {type(error).__name__}: {error}"
        _trace_log.info("%s of %s %s after %.3f ms", self._what, self._plugin, " ".join(outcome.split()), took)


class _Untraced(Traced):
    """A call that nobody wants to see."""

    __slots__ = ()

    def returned(self, answer: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


_UNTRACED = _Untraced("", "")
_trace_repr = reprlib.Repr()
_trace_repr.maxstring = _trace_repr.maxother = 200
_trace_repr.maxlist = _trace_repr.maxtuple = 20


class HookCalls:
    """Calls implementations of hooks, and remembers how each plugin behaved."""

    def __init__(self, *, trace: bool | None = None) -> None:
        """Log each call if `trace`, or, by default, if the environment asks for it."""
        self._asked: dict[str, _Asked] = {}
        self.trace: bool = os.environ.get(TRACE_VARIABLE, "0") not in {"", "0"} if trace is None else trace
        if self.trace:
            # Who asks for it sees it, whatever the level of everything else.
            _trace_log.setLevel(logging.INFO)

    async def ask(self, implementation: pluggy.HookImpl, hook: str, offered: Mapping[str, object]) -> object:
        """Return what an implementation of a decision hook says.

        Raises:
            RegistryError: what it raises; `InternalError` if it fails, takes too long, or blocks the event loop.
        """
        arguments = [offered[name] for name in implementation.argnames]
        plugin = implementation.plugin_name
        # Its own, so that one that hangs keeps no other from deciding.
        asked = self._of(plugin)
        if asked.left_behind >= _HOOK_THREADS:
            raise InternalError(f"the plugin {plugin} has not ended what it was asked before")
        if asked.blocks >= _BLOCKS:
            raise InternalError(f"the plugin {plugin} keeps blocking the registry and is asked no more until a restart")
        try:
            with self.traced(hook, plugin) as call, trio.fail_after(HOOK_SECONDS):
                answer = await _answer(asked, plugin, implementation.function, arguments)
                call.returned(answer)
                return answer
        except RegistryError:
            raise
        except trio.TooSlowError:
            _log.error("plugin %s took more than %s s to decide", plugin, HOOK_SECONDS)
            raise InternalError(f"the plugin {plugin} did not decide in time") from None
        # Decisions fail closed, whatever happened, and no plugin ends the process.
        except BaseException as error:
            if passing := _passing(error):
                raise passing from None
            if _blocked(error):
                self._interrupted(asked, plugin)
                raise InternalError(f"the plugin {plugin} blocked the registry") from error
            _log.exception("plugin %s failed to decide", plugin)
            raise InternalError(f"the plugin {plugin} failed") from error

    def tell(self, implementation: pluggy.HookImpl, hook: str, offered: Mapping[str, object]) -> None:
        """Call an observer; what it raises is logged, since an observer never harms what it observes."""
        plugin = implementation.plugin_name
        asked = self._of(plugin)
        if asked.blocks >= _BLOCKS:
            return
        try:
            with self.traced(hook, plugin) as call, Step(plugin):
                call.returned(implementation.function(*[offered[name] for name in implementation.argnames]))
        except BaseException as error:
            if _passing(error):
                raise
            if _blocked(error):
                self._interrupted(asked, plugin)
            else:
                _log.exception("plugin %s failed in %s", plugin, hook)

    def traced(self, what: str, plugin: str) -> Traced:
        """Return a context that logs how long what is done inside took and how it ended, if calls are traced."""
        return Traced(what, plugin) if self.trace else _UNTRACED

    def _of(self, plugin: str) -> _Asked:
        asked = self._asked.get(plugin)
        if asked is None:
            asked = self._asked[plugin] = _Asked()
        return asked

    def _interrupted(self, asked: _Asked, plugin: str) -> None:
        asked.blocks += 1
        then = "; it is asked no more until a restart" if asked.blocks >= _BLOCKS else ""
        _log.error("plugin %s was interrupted, for it had blocked the event loop too long%s", plugin, then)


def _passing(error: BaseException) -> BaseException | None:
    """Return what of `error` is not the plugin's: it was thrown into what is under way there."""
    if isinstance(error, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", error).subgroup(_passes)
    return error if _passes(error) else None


def _passes(error: BaseException) -> bool:
    if isinstance(error, KeyboardInterrupt):
        # Where the signal is ignored, as in the workers of `moorage serve`, nobody sent one.
        return signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    return isinstance(error, (trio.Cancelled, GeneratorExit))


def _blocked(error: BaseException) -> bool:
    """Return whether `error` is, or a nursery inside the hook wrapped, the interruption of a step."""
    if isinstance(error, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", error).subgroup(LoopBlockedError) is not None
    return isinstance(error, LoopBlockedError)


async def _answer(asked: _Asked, plugin: str, function: Callable[..., object], arguments: list[object]) -> object:
    if not inspect.iscoroutinefunction(function):
        said = await asked.in_thread(partial(function, *arguments))
        # Decorated, an async function may look like a sync one.
        if not inspect.iscoroutine(said):
            return said
    else:
        said = function(*arguments)
    return await watched(plugin, cast("Coroutine[object, object, object]", said))  # as both branches saw to

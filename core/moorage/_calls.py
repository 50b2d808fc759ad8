"""Calling one implementation of a hook: bounded in time, watched, traced, and never harmful to the caller.

An async implementation runs in the event loop, each of its steps watched; a sync one in a thread of its plugin, which is
left behind when its time is over. A plugin that leaves too many threads behind, or keeps blocking the loop, is asked no
more: it is told to be broken instead.
"""

import inspect
import logging
import os
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import cast

import pluggy
import trio

from ._errors import InternalError, RegistryError
from ._watch import LoopBlockedError, watched

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


class HookCalls:
    """Calls implementations of hooks, and remembers how each plugin behaved."""

    def __init__(self, *, trace: bool | None = None) -> None:
        """Log each call if `trace`, or, by default, if the environment asks for it."""
        self._asked: dict[str, _Asked] = {}
        self.trace: bool = os.environ.get(TRACE_VARIABLE, "0") not in {"", "0"} if trace is None else trace

    async def ask(self, implementation: pluggy.HookImpl, hook: str, offered: Mapping[str, object]) -> object:
        """Return what an implementation of a decision hook says.

        Raises:
            RegistryError: what it raises; `InternalError` if it fails, takes too long, or blocks the event loop.
        """
        arguments = [offered[name] for name in implementation.argnames]
        plugin = implementation.plugin_name
        # Its own, so that one that hangs keeps no other from deciding.
        asked = self._asked.get(plugin)
        if asked is None:
            asked = self._asked[plugin] = _Asked()
        if asked.left_behind >= _HOOK_THREADS:
            raise InternalError(f"the plugin {plugin} has not ended what it was asked before")
        if asked.blocks >= _BLOCKS:
            raise InternalError(f"the plugin {plugin} keeps blocking the registry and is asked no more until a restart")
        try:
            with self.traced(hook, plugin), trio.fail_after(HOOK_SECONDS):
                return await _answer(asked, plugin, implementation.function, arguments)
        except RegistryError:
            raise
        except trio.TooSlowError:
            _log.error("plugin %s took more than %s s to decide", plugin, HOOK_SECONDS)
            raise InternalError(f"the plugin {plugin} did not decide in time") from None
        except LoopBlockedError as error:
            asked.blocks += 1
            _log.error("plugin %s was interrupted: %s", plugin, error)
            raise InternalError(f"the plugin {plugin} blocked the registry") from error
        # Decisions fail closed, whatever happened, and no plugin ends the process.
        except (Exception, SystemExit) as error:
            _log.exception("plugin %s failed to decide", plugin)
            raise InternalError(f"the plugin {plugin} failed") from error

    def tell(self, implementation: pluggy.HookImpl, hook: str, offered: Mapping[str, object]) -> None:
        """Call an observer; what it raises is logged, since an observer never harms what it observes."""
        try:
            with self.traced(hook, implementation.plugin_name):
                implementation.function(*[offered[name] for name in implementation.argnames])
        except (Exception, SystemExit):  # noqa: BLE001 - whatever the code of others raises
            _log.exception("plugin %s failed in %s", implementation.plugin_name, hook)

    @contextmanager
    def traced(self, hook: str, plugin: str) -> Generator[None]:
        """Log how long what is done inside took and how it ended, if calls are traced."""
        if not self.trace:
            yield
            return
        began = time.monotonic()
        outcome = "returned"
        try:
            yield
        except BaseException as error:
            outcome = f"raised {type(error).__name__}"
            raise
        finally:
            took = (time.monotonic() - began) * 1000
            _trace_log.info("%s of %s %s after %.3f ms", hook, plugin, outcome, took)


async def _answer(asked: _Asked, plugin: str, function: Callable[..., object], arguments: list[object]) -> object:
    if not inspect.iscoroutinefunction(function):
        said = await asked.in_thread(partial(function, *arguments))
        # Decorated, an async function may look like a sync one.
        if not inspect.iscoroutine(said):
            return said
    else:
        said = function(*arguments)
    return await watched(plugin, cast("Coroutine[object, object, object]", said))  # as both branches saw to

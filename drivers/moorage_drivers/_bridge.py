"""From trio to an asyncio loop in a thread of its own, and back: how asyncio-only libraries are called.

Rules this file keeps:

- A call that is cancelled waits until the asyncio side has ended, at most `_GRACE_SECONDS`: no buffer, connection or
  upload is still in use after its scope was left. What does not end by then is logged with its stack and counted in
  `Bridge.stuck`, and the caller goes on.
- A call that takes longer than its limit is cancelled, and fails with TimeoutError.
- Context variables of the caller are those of the asyncio task.
- What the loop says to trio never raises there: an exception in `run_sync_soon` would end the program.
- A stream is one asyncio task from open to close, which sends ahead only as much as was asked for.
"""

import asyncio
import contextvars
import io
import logging
import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from typing import Generic, ParamSpec, TypeVar

import msgspec
import trio

_log = logging.getLogger("moorage.bridge")

T = TypeVar("T")
HeadT = TypeVar("HeadT")
P = ParamSpec("P")

_GRACE_SECONDS = 10.0
_CALL_SECONDS = 120.0
_STALL_SECONDS = 60.0
_CHUNK = 256 << 10
_AHEAD = 4


class Body(msgspec.Struct, Generic[HeadT], frozen=True):
    """What a stream is opened as, on the asyncio side: what is known of it beforehand, and how to read up to n bytes.

    `read` answers with no bytes at the end only.
    """

    head: HeadT
    read: Callable[[int], Awaitable[bytes]]


class Bridge:
    """The way to one asyncio loop, from any number of trio tasks.

    Attributes:
        stuck: how many asyncio tasks did not end after they were cancelled, and have not ended since.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        """Reach `loop`, which runs in `thread` until the process ends."""
        self._loop = loop
        self._thread = thread
        self.stuck: int = 0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, for whatever must be made for it."""
        return self._loop

    @property
    def is_alive(self) -> bool:
        """Whether the loop can answer."""
        return self._thread.is_alive()

    async def run(self, function: Callable[P, Coroutine[object, object, T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `function` returns, run as a task of the loop; at most for two minutes.

        Raises:
            TimeoutError: it took longer.
            ConnectionError: the loop is gone, or its task was cancelled by somebody else.
            Exception: whatever `function` raises.
        """
        return await self.run_within(_CALL_SECONDS, function, *args, **kwargs)

    async def run_within(
        self,
        seconds: float,
        function: Callable[P, Coroutine[object, object, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what `function` returns, as `run` does; at most for `seconds`."""
        call: _Call[T] = _Call(self, lambda: function(*args, **kwargs))
        with trio.move_on_after(seconds):
            return await call.result()
        raise TimeoutError(f"no answer within {seconds:g} s")

    @asynccontextmanager
    async def stream(
        self,
        open_body: Callable[[], AbstractAsyncContextManager[Body[HeadT]]],
        *,
        stall_seconds: float = _STALL_SECONDS,
    ) -> AsyncGenerator[tuple[HeadT, AsyncIterator[bytes]]]:
        """Open a body on the asyncio side; give its head and its chunks, of 256 KiB but for the last.

        At most 1 MiB is read ahead.

        Raises (on entering, or while iterating):
            TimeoutError: no byte came for `stall_seconds`.
            Exception: whatever opening or reading raises.
        """
        send, receive = trio.open_memory_channel[HeadT | bytes](math.inf)
        credit = asyncio.Semaphore(_AHEAD)
        token = trio.lowlevel.current_trio_token()

        def deliver(item: HeadT | bytes) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                send.send_nowait(item)

        def say(item: HeadT | bytes) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(deliver, item)

        async def pump() -> None:
            async with open_body() as body:
                say(body.head)
                while True:
                    await credit.acquire()
                    chunk = await _read_full(body.read)
                    if not chunk:
                        return
                    say(chunk)

        call: _Call[None] = _Call(self, pump, ended=send.close)

        async def chunks() -> AsyncGenerator[bytes]:
            while True:
                try:
                    with trio.fail_after(stall_seconds):
                        chunk = await receive.receive()
                except trio.EndOfChannel:
                    call.check()
                    return
                except trio.TooSlowError:
                    raise TimeoutError(f"no byte came for {stall_seconds:g} s") from None
                # After the head only chunks are sent.
                assert isinstance(chunk, bytes)  # noqa: S101
                yield chunk
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(credit.release)

        call.start()
        try:
            try:
                with trio.fail_after(stall_seconds):
                    head = await receive.receive()
            except trio.EndOfChannel:
                call.check()
                raise ConnectionError("the stream ended before it began") from None
            except trio.TooSlowError:
                raise TimeoutError(f"no answer within {stall_seconds:g} s") from None
            async with aclosing(chunks()) as iterator:
                # The first thing that is sent is the head.
                yield head, iterator  # type: ignore[misc]
        finally:
            await call.stop()
            receive.close()


async def _read_full(read: Callable[[int], Awaitable[bytes]]) -> bytes:
    """Return the next `_CHUNK` bytes, or fewer at the end: one hop between threads for many small reads."""
    first = await read(_CHUNK)
    if not first or len(first) >= _CHUNK:
        return first
    gathered = io.BytesIO()
    size = gathered.write(first)
    while size < _CHUNK and (more := await read(_CHUNK - size)):
        size += gathered.write(more)
    return gathered.getvalue()


class _Call(Generic[T]):
    """One asyncio task, seen from the trio task that it works for."""

    def __init__(
        self,
        bridge: Bridge,
        function: Callable[[], Coroutine[object, object, T]],
        *,
        ended: Callable[[], None] | None = None,
    ) -> None:
        self._bridge = bridge
        self._function = function
        self._ended = ended
        self._token = trio.lowlevel.current_trio_token()
        self._done = trio.Event()
        self._value: T | None = None
        self._error: BaseException | None = None
        # Of the loop's thread: the task, and whether it was to end before it began.
        self._task: asyncio.Task[T] | None = None
        self._unwanted = False
        self._abandoned = False

    def start(self) -> None:
        """Begin.

        Raises:
            ConnectionError: there is no loop any more.
        """
        if not self._bridge.is_alive:
            raise ConnectionError("the thread for storage I/O has ended")
        try:
            self._bridge.loop.call_soon_threadsafe(self._begin, context=contextvars.copy_context())
        except RuntimeError:
            raise ConnectionError("the loop for storage I/O is closed") from None

    async def result(self) -> T:
        """Run to the end and return the result; cancelled, wait for the end all the same."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self.start()
        try:
            await self._done.wait()
        except trio.Cancelled:
            await self.stop()
            if not self._done.is_set() or self._error is not None:
                raise
            # It was done before it could be cancelled; what it opened must not be lost.
        self.check()
        # Without an error there is a value, which may be None.
        return self._value  # type: ignore[return-value]

    async def stop(self) -> None:
        """Cancel what still runs, and wait until it has ended, but not for ever."""
        if self._done.is_set():
            return
        with suppress(RuntimeError):
            self._bridge.loop.call_soon_threadsafe(self._cancel)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _GRACE_SECONDS):
            await self._done.wait()
        if not self._done.is_set():
            self._bridge.stuck += 1
            self._abandoned = True
            stack = io.StringIO()
            if self._task is not None:
                self._task.print_stack(file=stack)
            _log.error("a storage call does not end after it was cancelled:\n%s", stack.getvalue())

    def check(self) -> None:
        """Raise what the task raised."""
        if isinstance(self._error, asyncio.CancelledError):
            raise ConnectionError("the storage library cancelled its own call") from None
        if self._error is not None:
            raise self._error

    # ---- in the loop's thread

    def _begin(self) -> None:
        if self._unwanted:
            self._tell(None, asyncio.CancelledError())
            return
        try:
            self._task = self._bridge.loop.create_task(self._function())
        except BaseException as error:  # noqa: BLE001 - wrong arguments are the caller's to see, not to wait for
            self._tell(None, error)
        else:
            self._task.add_done_callback(self._finished)

    def _cancel(self) -> None:
        self._unwanted = True
        if self._task is not None:
            self._task.cancel()

    def _finished(self, task: "asyncio.Task[T]") -> None:
        if task.cancelled():
            self._tell(None, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._tell(None, error)
        else:
            self._tell(task.result(), None)

    def _tell(self, value: T | None, error: BaseException | None) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._finish, value, error)

    # ---- in trio's thread again

    def _finish(self, value: T | None, error: BaseException | None) -> None:
        self._value, self._error = value, error
        if self._abandoned:
            self._bridge.stuck -= 1
        if self._ended is not None:
            self._ended()
        self._done.set()


def open_bridge() -> Bridge:
    """Return the way to fsspec's own loop: its libraries keep sessions and finalizers on that one."""
    from fsspec import asyn

    loop: asyncio.AbstractEventLoop = asyn.get_loop()
    thread: threading.Thread | None = asyn.iothread[0]
    if thread is None:
        raise ConnectionError("fsspec has no thread for storage I/O")
    return Bridge(loop, thread)

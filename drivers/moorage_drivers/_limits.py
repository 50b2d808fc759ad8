"""Layers that keep a store from holding up what asks it: `timeout` and `limit`."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from typing import TypeVar

import msgspec
import trio

from moorage import (
    Condition,
    ConfigurationError,
    Driver,
    DriverLayer,
    DriverVerb,
    Listing,
    Reader,
    Stat,
    StorageMiddlewareFactory,
    StoreBusy,
    StoreUnavailable,
    Unchanged,
    Upload,
    UploadLayer,
)

from ._values import Seconds, Whole

T = TypeVar("T")


class _Surrounded(DriverLayer):
    """A store around whose every call something goes."""

    def around(self, verb: DriverVerb, key: str, *, long: bool = False) -> AbstractAsyncContextManager[None]:
        """Return what goes around one call."""
        raise NotImplementedError

    async def _call(self, verb: DriverVerb, key: str, call: Callable[[], Awaitable[T]], *, long: bool = False) -> T:
        async with self.around(verb, key, long=long):
            return await call()

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`."""
        return await self._call("stat", key, lambda: self.inside.stat(key))

    async def read(self, key: str, *, limit: int) -> bytes:
        """Return the whole of a small object."""
        return await self._call("open", key, lambda: self.inside.read(key, limit=limit))

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> str | None:
        """Put an object at `key`; how fast a stream comes is not the store's fault."""
        return await self._call(
            "write",
            key,
            lambda: self.inside.write(key, chunks, condition=condition, durable=durable),
            long=not isinstance(chunks, bytes),
        )

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`."""
        key = keys[0] if keys else ""
        await self._call(
            "delete", key, lambda: self.inside.delete(*keys, condition=condition, durable=durable), long=len(keys) > 1
        )

    async def delete_below(self, prefix: str, *, durable: bool = True) -> None:
        """Remove every key below `prefix`."""
        await self._call("delete", prefix, lambda: self.inside.delete_below(prefix, durable=durable), long=True)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        """Return a page of what lies below `prefix`."""
        return await self._call(
            "list", prefix, lambda: self.inside.list(prefix, after=after, delimiter=delimiter, limit=limit)
        )

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        """Put what is at `source` at `destination` too."""
        await self._call(
            "copy", destination, lambda: self.inside.copy(source, destination, condition=condition), long=True
        )

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        """Return a URL from which a client may GET `key`, or None."""
        return await self._call("url", key, lambda: self.inside.url(key, client_address=client_address))

    async def expire_uploads(self, *, older_than: float, dry_run: bool) -> int:
        """Free what uploads have left in the store itself."""
        return await self._call(
            "upload", "", lambda: self.inside.expire_uploads(older_than=older_than, dry_run=dry_run), long=True
        )

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        """Begin an upload."""
        opening = self.inside.open_upload(key, destination)
        async with _Entered(opening, self.around("upload", key)) as upload:
            yield _SurroundedUpload(upload, self, key)

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        """Go on with an upload."""
        opening = self.inside.resume_upload(token, offset)
        async with _Entered(opening, self.around("upload", "")) as upload:
            yield _SurroundedUpload(upload, self, "")


class _Entered(AbstractAsyncContextManager[T]):
    """Enters `opening` inside of `around`, which ends then."""

    def __init__(self, opening: AbstractAsyncContextManager[T], around: AbstractAsyncContextManager[None]) -> None:
        self._opening = opening
        self._around = around

    async def __aenter__(self) -> T:
        async with self._around:
            return await self._opening.__aenter__()

    async def __aexit__(self, *raised: object) -> bool | None:
        return await self._opening.__aexit__(*raised)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - as they came


class _SurroundedUpload(UploadLayer):
    """An upload around whose every call something goes."""

    def __init__(self, inside: Upload, layer: _Surrounded, key: str) -> None:
        super().__init__(inside)
        self._layer = layer
        self._key = key

    async def write(self, data: bytes) -> None:
        async with self._layer.around("upload", self._key):
            await super().write(data)

    async def suspend(self) -> bytes:
        async with self._layer.around("upload", self._key, long=True):
            return await super().suspend()

    async def drop_beyond(self, offset: int) -> None:
        async with self._layer.around("upload", self._key):
            await super().drop_beyond(offset)

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        async with self._layer.around("upload", destination, long=True):
            await super().commit(destination, condition=condition)

    async def abort(self) -> None:
        async with self._layer.around("upload", self._key, long=True):
            await super().abort()


# ---- timeout


class TimeoutOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the layer `timeout`.

    Attributes:
        call: how long one call may take; of a body, how long its next bytes.
        long: how long a copy, a commit, or the removal of many may take.
    """

    call: Seconds = Seconds(60)
    long: Seconds = Seconds(900)


class TimeoutLayer(_Surrounded):
    """A store whose calls end in time; a write of a stream, whose pace is its source's, is bounded by nothing."""

    def __init__(self, inside: Driver, options: TimeoutOptions) -> None:
        """Bound the calls of `inside`."""
        super().__init__(inside)
        self._options = options

    @asynccontextmanager
    async def around(self, verb: DriverVerb, key: str, *, long: bool = False) -> AsyncGenerator[None]:
        """End the call in time."""
        seconds = float(self._options.long if long else self._options.call)
        if verb == "write" and long:
            yield
            return
        with self._bounded(seconds, verb, key):
            yield

    @contextmanager
    def _bounded(self, seconds: float, verb: DriverVerb, key: str) -> Generator[None]:
        try:
            with trio.fail_after(seconds):
                yield
        except trio.TooSlowError:
            changes = verb in {"write", "delete", "copy", "upload"}
            raise StoreUnavailable(
                f"no answer within {seconds:g} s", driver=self.name, operation=verb, key=key, ambiguous=changes
            ) from None

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        """Open the bytes from `start` up to `stop`."""
        opening = self.inside.open(key, start, stop)
        async with _Entered(opening, self.around("open", key)) as reader:
            if reader.file is not None:
                # Read by whoever has it, not through this layer.
                yield reader
                return
            async with aclosing(self._chunks(key, aiter(reader))) as chunks:
                yield Reader(reader.stat, chunks)

    async def _chunks(self, key: str, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        while True:
            with self._bounded(float(self._options.call), "open", key):
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
            yield chunk


@asynccontextmanager
async def _open_timeout(options: TimeoutOptions, driver: Driver) -> AsyncGenerator[Driver]:
    await trio.lowlevel.checkpoint()
    yield TimeoutLayer(driver, options)


TIMEOUT: StorageMiddlewareFactory[TimeoutOptions] = StorageMiddlewareFactory(TimeoutOptions, _open_timeout)


# ---- limit


class LimitOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the layer `limit`.

    Attributes:
        calls: how many calls may be under way at once, a body being read one of them.
        waiting: how many more may wait for their turn; others are told to come again at once.
        patience: how long one waits before it is told so.
    """

    calls: Whole = Whole(100)
    waiting: Whole = Whole(1000)
    patience: Seconds = Seconds(30)


class LimitLayer(_Surrounded):
    """A store that is asked by so many at once, and no more."""

    def __init__(self, inside: Driver, options: LimitOptions) -> None:
        """Limit the calls of `inside`."""
        super().__init__(inside)
        self._options = options
        self._turns = trio.Semaphore(int(options.calls))
        self._waiting = 0

    @asynccontextmanager
    async def around(self, verb: DriverVerb, key: str, *, long: bool = False) -> AsyncGenerator[None]:
        """Wait for a turn, and have it while inside."""
        del long
        if self._turns.value == 0 and self._waiting >= self._options.waiting:
            await trio.lowlevel.checkpoint()
            raise self._busy(verb, key)
        self._waiting += 1
        try:
            with trio.fail_after(float(self._options.patience)):
                await self._turns.acquire()
        except trio.TooSlowError:
            raise self._busy(verb, key) from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        """Open the bytes from `start` up to `stop`; it is under way until it is left."""
        async with self.around("open", key), self.inside.open(key, start, stop) as reader:
            yield reader

    def _busy(self, verb: DriverVerb, key: str) -> StoreBusy:
        return StoreBusy(
            f"{self._options.calls} calls are under way", driver=self.name, operation=verb, key=key, retry_after=1.0
        )


@asynccontextmanager
async def _open_limit(options: LimitOptions, driver: Driver) -> AsyncGenerator[Driver]:
    if not options.calls:
        raise ConfigurationError("calls: at least 1")
    await trio.lowlevel.checkpoint()
    yield LimitLayer(driver, options)


LIMIT: StorageMiddlewareFactory[LimitOptions] = StorageMiddlewareFactory(LimitOptions, _open_limit)

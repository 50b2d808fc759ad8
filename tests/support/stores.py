"""Stores for tests: one that overrides nothing, one that can be watched and broken, and how each is opened."""

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec
import trio

from moorage import (
    Absent,
    Capabilities,
    Condition,
    ConditionFailed,
    Driver,
    DriverFactory,
    Entry,
    KeyInvalid,
    KeyUnknown,
    Listing,
    MemoryDriver,
    NoOptions,
    RangeUnsatisfiable,
    Reader,
    Stat,
    StoreUnavailable,
    Unchanged,
    Upload,
    check_key,
)
from moorage_drivers.filesystem import FilesystemDriver
from service_driver import Service, ServiceDriver

Kind = Literal["memory", "filesystem", "minimal", "service"]


class Store(msgspec.Struct, frozen=True):
    """A store that several drivers can be opened on, as several processes would."""

    kind: Kind
    open: Callable[[], AbstractAsyncContextManager[Driver]]


def new_store(kind: Kind, folder: Path) -> Store:
    """Return an empty store; files lie below `folder`."""
    if kind == "filesystem":
        return Store(kind, lambda: FilesystemDriver.open_root(str(folder)))
    if kind == "service":
        service = Service()

        @asynccontextmanager
        async def open_replica() -> AsyncGenerator[Driver]:
            yield ServiceDriver(service)

        return Store(kind, open_replica)
    driver = MemoryDriver() if kind == "memory" else MinimalDriver()

    @asynccontextmanager
    async def open_driver() -> AsyncGenerator[Driver]:
        yield driver

    return Store(kind, open_driver)


class MinimalDriver(Driver):
    """The five methods that a driver must have, as plainly as they can be written."""

    name = "minimal"
    capabilities = Capabilities()

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.versions: dict[str, int] = {}
        self.count = 0

    async def stat(self, key: str) -> Stat:
        await trio.lowlevel.checkpoint()
        check_key(key, driver=self.name)
        if key not in self.objects:
            raise KeyUnknown("no such key", driver=self.name, operation="stat", key=key)
        return Stat(key, len(self.objects[key]), float(self.versions[key]), str(self.versions[key]))

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        stat = await self.stat(key)
        if start > stat.size:
            raise RangeUnsatisfiable("beyond the end", driver=self.name, operation="open", key=key)
        yield Reader(stat, Pieces(self.objects[key][start:stop], size=1 << 20))

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        check_key(key, driver=self.name)
        await trio.lowlevel.checkpoint()
        data = chunks if isinstance(chunks, bytes) else b"".join([chunk async for chunk in chunks])
        if isinstance(condition, Absent) and key in self.objects:
            raise ConditionFailed("it exists", driver=self.name, operation="write", key=key)
        if isinstance(condition, Unchanged) and str(self.versions.get(key)) != condition.version:
            raise ConditionFailed("another version", driver=self.name, operation="write", key=key)
        if any(key.startswith(other + "/") or other.startswith(key + "/") for other in self.objects):
            raise KeyInvalid("one key is a directory of another", driver=self.name, operation="write", key=key)
        self.count += 1
        self.objects[key] = data
        self.versions[key] = self.count

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        await trio.lowlevel.checkpoint()
        for key in keys:
            if condition is not None and condition.version != str(self.versions.get(key)):
                raise ConditionFailed("not of that version", driver=self.name, operation="delete", key=key)
            self.objects.pop(check_key(key, driver=self.name), None)
            self.versions.pop(key, None)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        await trio.lowlevel.checkpoint()
        found = listed(self.objects, prefix, delimiter)
        page = [key for key in found if key > after]
        return Listing(tuple(map(Entry, page[:limit])), more=len(page) > limit)


@asynccontextmanager
async def _open_minimal(options: NoOptions) -> AsyncGenerator[Driver]:
    del options
    yield MinimalDriver()


MINIMAL = DriverFactory(NoOptions, _open_minimal, shared=False)


def listed(keys: Iterable[str], prefix: str, delimiter: str) -> list[str]:
    """Return what a list of `prefix` gives, worked out the slow and plain way."""
    found: set[str] = set()
    for key in keys:
        if key.startswith(prefix):
            head, cut, _ = key[len(prefix) :].partition("/") if delimiter else (key[len(prefix) :], "", "")
            found.add(prefix + head + cut)
    return sorted(found)


class Pieces:
    """An async iterator over bytes, which needs no closing."""

    def __init__(self, data: bytes, *, size: int) -> None:
        self._data = data
        self._size = size

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._data:
            raise StopAsyncIteration
        piece, self._data = self._data[: self._size], self._data[self._size :]
        return piece


Before = Callable[[str, str], None]


class WatchedDriver(Driver):
    """A driver around a driver that tells `before(verb, key)` of each step that changes the store, and may be stopped.

    What `before` raises keeps the step from being done. What the inner driver derives from its five methods is derived
    here too, so that each of its steps is seen.
    """

    def __init__(self, inner: Driver, before: Before) -> None:
        self.inner = inner
        self.name = inner.name
        self.capabilities = inner.capabilities
        self.before = before

    async def stat(self, key: str) -> Stat:
        return await self.inner.stat(key)

    def open(self, key: str, start: int = 0, stop: int | None = None) -> AbstractAsyncContextManager[Reader]:
        return self.inner.open(key, start, stop)

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        self.before("write", key)
        await self.inner.write(key, chunks, condition=condition, durable=durable)

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        for key in keys:
            self.before("delete", key)
            await self.inner.delete(key, condition=condition, durable=durable)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        return await self.inner.list(prefix, after=after, delimiter=delimiter, limit=limit)

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        if type(self.inner).copy is Driver.copy:
            await super().copy(source, destination, condition=condition)
            return
        self.before("copy", destination)
        await self.inner.copy(source, destination, condition=condition)

    async def delete_below(self, prefix: str, *, durable: bool = True) -> None:
        if type(self.inner).delete_below is Driver.delete_below:
            await super().delete_below(prefix, durable=durable)
            return
        self.before("delete_below", prefix)
        await self.inner.delete_below(prefix, durable=durable)

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        if type(self.inner).open_upload is Driver.open_upload:
            async with super().open_upload(key, destination) as upload:
                yield upload
            return
        self.before("open_upload", key)
        async with self.inner.open_upload(key, destination) as upload:
            yield _WatchedUpload(upload, key, self.before)

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        if type(self.inner).resume_upload is Driver.resume_upload:
            async with super().resume_upload(token, offset) as upload:
                yield upload
            return
        async with self.inner.resume_upload(token, offset) as upload:
            yield _WatchedUpload(upload, token.decode(), self.before)


class _WatchedUpload(Upload):
    def __init__(self, inner: Upload, key: str, before: Before) -> None:
        self._inner = inner
        self._key = key
        self._before = before
        self.offset = inner.offset

    async def write(self, data: bytes) -> None:
        self._before("append", self._key)
        try:
            await self._inner.write(data)
        finally:
            self.offset = self._inner.offset

    async def suspend(self) -> bytes:
        return await self._inner.suspend()

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        self._before("commit", destination)
        await self._inner.commit(destination, condition=condition)

    async def abort(self) -> None:
        self._before("abort", self._key)
        await self._inner.abort()


class PowerCut:
    """A `before` that lets so many steps be done, and none after that."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.happened = False

    def __call__(self, verb: str, key: str) -> None:
        if self.left == 0:
            self.happened = True
            raise StoreUnavailable("the power is gone", driver="broken", operation="write", key=key)
        self.left -= 1


class Log:
    """A `before` that writes down what was done."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []

    def __call__(self, verb: str, key: str) -> None:
        self.steps.append((verb, key))

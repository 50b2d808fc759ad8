"""Drivers that each break the contract in one way, to prove that the kit sees it.

Each is a `DriverFactory` under its own name, so that another process can open it as `broken_drivers:NAME`.
"""

import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import msgspec
import trio

from moorage import (
    Capabilities,
    Condition,
    ConditionFailed,
    Driver,
    DriverFactory,
    KeyUnknown,
    Listing,
    MemoryDriver,
    NoOptions,
    RangeUnsatisfiable,
    Reader,
    Stat,
    StoreBusy,
    StoreUnavailable,
    Unchanged,
    Upload,
    UploadLayer,
)
from moorage_drivers.filesystem import FilesystemDriver


class Folder(msgspec.Struct, frozen=True):
    root: str


def in_memory(kind: type[MemoryDriver]) -> DriverFactory[NoOptions]:
    @asynccontextmanager
    async def open_it(options: NoOptions) -> AsyncGenerator[Driver]:
        del options
        yield kind()

    return DriverFactory(NoOptions, open_it, shared=False)


def on_files(kind: type[FilesystemDriver]) -> DriverFactory[Folder]:
    @asynccontextmanager
    async def open_it(options: Folder) -> AsyncGenerator[Driver]:
        async with kind.open_root(options.root) as driver:
            yield driver

    return DriverFactory(Folder, open_it)


async def joined(chunks: bytes | AsyncIterable[bytes]) -> bytes:
    return chunks if isinstance(chunks, bytes) else b"".join([chunk async for chunk in chunks])


class _Changed(MemoryDriver):
    """Changes what is written."""

    def change(self, key: str, data: bytes) -> bytes:
        del key
        return data

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        await super().write(key, self.change(key, await joined(chunks)), condition=condition, durable=durable)


class _AcceptsAnyKey(_Changed):
    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        key = key if key.replace("/", "").isalnum() and "//" not in key else f"odd-{key.encode().hex()[:60]}"
        await super().write(key, chunks, condition=condition, durable=durable)


class _FoldsCase(_Changed):
    async def stat(self, key: str) -> Stat:
        return await super().stat(key.lower())

    def open(self, key: str, start: int = 0, stop: int | None = None):  # type: ignore[no-untyped-def] # pyright: ignore - as above
        return super().open(key.lower(), start, stop)

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        await super().write(key.lower(), chunks, condition=condition, durable=durable)


class _RefusesLongKeys(_Changed):
    def change(self, key: str, data: bytes) -> bytes:
        if len(key) > 200:
            raise StoreUnavailable("too long", driver=self.name, operation="write", key=key)
        return data


class _Nests(MemoryDriver):
    def _refuse_nesting(self, key: str) -> None:
        del key


class _LosesTheEnd(_Changed):
    def change(self, key: str, data: bytes) -> bytes:
        return data[:-1] if len(data) > 65_536 else data


class _Appends(_Changed):
    def change(self, key: str, data: bytes) -> bytes:
        return self._objects[key][0] + data if key in self._objects else data


class _OnePiece(MemoryDriver):
    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        async with super().open(key, start, stop) as reader:
            data = b"".join([chunk async for chunk in reader])
            yield Reader(reader.stat, _pieces(data))


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        await trio.lowlevel.checkpoint()
        yield piece


class _VersionIsSize(MemoryDriver):
    def _get(self, key: str, operation: object) -> tuple[bytes, Stat]:
        data, stat = super()._get(key, "stat")
        del operation
        return data, Stat(key, stat.size, stat.modified, str(stat.size))

    def _check(self, condition: Condition | None, key: str, operation: object) -> None:
        if isinstance(condition, Unchanged):
            held = self._objects.get(key)
            if held is None or condition.version != str(held[1].size):
                raise ConditionFailed("another version", driver=self.name, operation="write", key=key)
            return
        super()._check(condition, key, "write")
        del operation


class _VisibleEarly(MemoryDriver):
    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        written = b""
        async for chunk in _pieces(chunks) if isinstance(chunks, bytes) else chunks:
            written += chunk
            await super().write(key, written)
        await super().write(key, written, condition=condition, durable=durable)


class _ReadsLive(MemoryDriver):
    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        async with super().open(key, start, stop) as reader:
            end = reader.stat.size if stop is None else min(stop, reader.stat.size)

            async def chunks() -> AsyncIterator[bytes]:
                for at in range(start, end, 1 << 20):
                    await trio.lowlevel.checkpoint()
                    if at == start:
                        yield self._objects.get(key, (b"z" * end, None))[0][at : min(at + 1, end)]
                    yield self._objects.get(key, (b"z" * end, None))[0][at + (at == start) : min(at + (1 << 20), end)]

            first = self._objects[key][0][start : min(start + 1, end)]

            async def mixed() -> AsyncIterator[bytes]:
                yield first
                skipped = False
                async for chunk in chunks():
                    if not skipped:
                        skipped = True
                        continue
                    yield chunk

            yield Reader(reader.stat, mixed())


class _MixesWriters(MemoryDriver):
    at_work = 0

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        self.at_work += 1
        try:
            await trio.lowlevel.checkpoint()
            data = await joined(chunks)
            if self.at_work > 1 and data:
                data = b"?" + data[1:]
            await super().write(key, data, condition=condition, durable=durable)
        finally:
            self.at_work -= 1


class _UnknownIsEmpty(MemoryDriver):
    async def stat(self, key: str) -> Stat:
        try:
            return await super().stat(key)
        except KeyUnknown:
            return Stat(key, 0, 0.0, "")


class _ReadsWithoutBound(MemoryDriver):
    async def read(self, key: str, *, limit: int) -> bytes:
        return await super().read(key, limit=limit + (1 << 30))


class _CopiesAreLinks(MemoryDriver):
    def __init__(self) -> None:
        super().__init__()
        self.links: dict[str, str] = {}

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        await super().copy(source, destination, condition=condition)
        if source != destination:
            self.links[destination] = source

    def _get(self, key: str, operation: object) -> tuple[bytes, Stat]:
        data, stat = super()._get(self.links.get(key, key), "stat")
        del operation
        return data, Stat(key, stat.size, stat.modified, stat.version)


class _GivesRelativeUrls(MemoryDriver):
    async def url(self, key: str, *, client_address: str = "") -> str | None:
        await super().url(key, client_address=client_address)
        return f"/{key}"


class _RangesAreOff(MemoryDriver):
    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        async with super().open(key, start, stop if stop is None else stop + 1) as reader:
            yield reader


class _BeyondIsEmpty(MemoryDriver):
    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        try:
            async with super().open(key, start, stop) as reader:
                yield reader
        except RangeUnsatisfiable:
            yield Reader(await self.stat(key), _pieces())


class _LeaksReaders(MemoryDriver):
    left = 100

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        if not self.left:
            raise StoreBusy("no more readers", driver=self.name, operation="open", key=key)
        self.left -= 1
        async with super().open(key, start, stop) as reader:

            async def chunks() -> AsyncIterator[bytes]:
                async for chunk in reader:
                    yield chunk
                self.left += 1

            yield Reader(reader.stat, chunks())


class _OneAtATime(MemoryDriver):
    readers = 0

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        if self.readers:
            raise StoreBusy("somebody reads", driver=self.name, operation="open", key=key)
        async with super().open(key, start, stop) as reader:
            self.readers += 1
            try:
                yield reader
            finally:
                self.readers -= 1


class _Listed(MemoryDriver):
    """Changes what is listed."""

    def change(self, listing: Listing, prefix: str, limit: int) -> Listing:
        del prefix, limit
        return listing

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        listing = await super().list(prefix, after=after, delimiter=delimiter, limit=limit)
        return self.change(listing, prefix, limit)


class _ListsBackwards(_Listed):
    def change(self, listing: Listing, prefix: str, limit: int) -> Listing:
        return Listing(listing.entries[::-1], listing.more)


class _ListsAThousand(_Listed):
    def change(self, listing: Listing, prefix: str, limit: int) -> Listing:
        return Listing(listing.entries[:1000], more=False) if len(listing.entries) >= 1000 else listing


class _ListsTheFolderItself(_Listed):
    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        listing = await super().list(prefix, after=after, delimiter=delimiter, limit=limit)
        if prefix.rstrip("/") in self._objects and not after:
            return await super().list(prefix.rstrip("/")[:-1], delimiter=delimiter, limit=limit)
        return listing


class _NeverMore(_Listed):
    def change(self, listing: Listing, prefix: str, limit: int) -> Listing:
        return Listing(listing.entries, more=False)


class _ListsLate(_Listed):
    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, Listing] = {}

    def change(self, listing: Listing, prefix: str, limit: int) -> Listing:
        before, self.before[prefix] = self.before.get(prefix, listing), listing
        return before


class _DeletesNeighbours(MemoryDriver):
    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        more = [other for key in keys for other in self._keys if other.startswith(f"{key}/")]
        await super().delete(*keys, *more, condition=condition, durable=durable)


class _DeletesBesideThePrefix(MemoryDriver):
    async def delete_below(self, prefix: str, *, durable: bool = True) -> None:
        await self.delete(*[key for key in self._keys if key.startswith(prefix.rstrip("/"))], durable=durable)


class _IgnoresConditions(MemoryDriver):
    def _check(self, condition: Condition | None, key: str, operation: object) -> None:
        del condition, key, operation


class _Uploaded(Upload):
    """An upload whose bytes are in its driver's memory."""

    def __init__(self, driver: "_BadUploads", key: str, destination: str | None) -> None:
        self.driver = driver
        self.key = key
        self.destination = destination
        self.offset = len(driver.uploads[key])

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.driver.uploads[self.key] += data
        self.offset += len(data)

    async def suspend(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.key.encode()

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        target = self.destination or destination
        await self.driver.write(target, self.driver.uploads[self.key][:-1], condition=condition)

    async def abort(self) -> None:
        await trio.lowlevel.checkpoint()


class _BadUploads(MemoryDriver):
    """Loses the last byte, commits where it was announced, drops nothing, forgets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.uploads: dict[str, bytes] = {}

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        self.uploads[key] = b""
        await self.write(f"elsewhere/{key}", b"")
        yield _Uploaded(self, key, destination)

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        await trio.lowlevel.checkpoint()
        del offset
        yield _Uploaded(self, token.decode(errors="replace"), None)


class _NeverBusy(MemoryDriver):
    capabilities: Capabilities = Capabilities(exclusive_uploads=True)


class _NeverHolds(MemoryDriver):
    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        async with super().hold(name):
            yield False


class _WritesBeforeItLooks(MemoryDriver):
    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        with trio.CancelScope(shield=True):
            await super().write(key, chunks, condition=condition, durable=durable)
        await trio.lowlevel.checkpoint()


class _TellsTheLastVersion(MemoryDriver):
    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> str | None:
        version = await super().write(key, chunks, condition=condition, durable=durable)
        return f"before {version}"


class _NoCheckpoint(MemoryDriver):
    async def stat(self, key: str) -> Stat:
        return self._get(key, "stat")[1]


class _LeaksTasks(MemoryDriver):
    async def stat(self, key: str) -> Stat:
        trio.lowlevel.spawn_system_task(trio.sleep_forever)
        return await super().stat(key)


class _Noisy(MemoryDriver):
    async def stat(self, key: str) -> Stat:
        print("look at", key, file=sys.stderr)
        return await super().stat(key)


# ---- on files


class _WritesInPlace(FilesystemDriver):
    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        if not isinstance(chunks, bytes):
            written = b""
            async for chunk in chunks:
                written += chunk
                await super().write(key, written)
            return
        await super().write(key, chunks, condition=condition, durable=durable)


class _Remembers(FilesystemDriver):
    known: ClassVar[dict[tuple[int, str], Stat]] = {}

    async def stat(self, key: str) -> Stat:
        found = self.known.get((id(self), key))
        if found is None:
            found = self.known[id(self), key] = await super().stat(key)
        return found

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        for key in keys:
            self.known.pop((id(self), key), None)
        await super().delete(*keys, condition=condition, durable=durable)

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        await super().write(key, chunks, condition=condition, durable=durable)
        await self.stat(key)


class _IgnoresAbsent(FilesystemDriver):
    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        del condition
        await super().write(key, chunks, durable=durable)


class _TokensOfOneProcess(FilesystemDriver):
    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        async with super().open_upload(key, destination) as upload:
            await upload.write(b"")
            yield _Forgetful(upload, id(self))

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        owner, _, inner = token.partition(b" ")
        if owner != b"%d" % id(self):
            inner = b"nothing"
        async with super().resume_upload(inner, offset) as upload:
            yield _Forgetful(upload, id(self))


class _Forgetful(Upload):
    def __init__(self, inner: Upload, owner: int) -> None:
        self.inner = inner
        self.owner = owner
        self.offset = inner.offset

    async def write(self, data: bytes) -> None:
        await self.inner.write(data)
        self.offset = self.inner.offset

    async def suspend(self) -> bytes:
        return b"%d %s" % (self.owner, await self.inner.suspend())

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        await self.inner.commit(destination, condition=condition)

    async def abort(self) -> None:
        await self.inner.abort()


class _HoldsForEverybody(FilesystemDriver):
    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        async with super().hold(name):
            yield True


class _PutsSeveralAtOnce(MemoryDriver):
    """Puts several objects in any order."""

    async def write_all(self, objects: Sequence[tuple[str, bytes]], *, durable: bool = True) -> None:
        for key, data in reversed(objects):
            await self.write(key, data, durable=durable)


class _Alone(UploadLayer):
    async def commit_between(
        self,
        driver: Driver,
        destination: str,
        *,
        before: Callable[[bytes], Sequence[tuple[str, bytes]]] | None = None,
        after: Sequence[tuple[str, bytes]] = (),
        drop: str = "",
    ) -> None:
        await self.commit(destination)


class _Silent(UploadLayer):
    async def suspend_with(self, driver: Driver, beside: Callable[[bytes], Sequence[tuple[str, bytes]]]) -> None:
        beside(await self.suspend())


class _UploadsOtherwise(FilesystemDriver):
    """Has uploads of another kind."""

    kind: ClassVar[type[UploadLayer]]

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        async with super().open_upload(key, destination) as upload:
            yield self.kind(upload)


class _CommitsAlone(_UploadsOtherwise):
    """Leaves out what belongs around a commit."""

    kind = _Alone


class _SuspendsAlone(_UploadsOtherwise):
    """Leaves out what belongs beside an upload."""

    kind = _Silent


class _ForgetsWhatWaits(FilesystemDriver):
    """Writes from a thread where the file stands, whatever of the upload is not in it yet."""

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        async with super().open_upload(key, destination) as upload:
            yield _Impatient(upload, self.path_of(key))


class _Impatient(UploadLayer):
    def __init__(self, inside: Upload, path: str) -> None:
        super().__init__(inside)
        self._path = path

    @property
    def can_write_from_thread(self) -> bool:
        return True

    def write_from_thread(self, data: bytes) -> None:
        with open(self._path, "ab") as file:
            file.write(data)
        self.inside.offset += len(data)
        self.offset = self.inside.offset


class _FindsAll(MemoryDriver):
    async def are_there(self, keys: Sequence[str]) -> Sequence[bool]:
        await trio.lowlevel.checkpoint()
        return [True for _ in keys]


class _ClaimsNothing(MemoryDriver):
    """Can do more than it says."""

    capabilities: Capabilities = Capabilities(create_only=False, cas=False)


ACCEPTS_ANY_KEY = in_memory(_AcceptsAnyKey)
APPENDS = in_memory(_Appends)
BAD_UPLOADS = in_memory(_BadUploads)
BEYOND_IS_EMPTY = in_memory(_BeyondIsEmpty)
CLAIMS_NOTHING = in_memory(_ClaimsNothing)
COPIES_ARE_LINKS = in_memory(_CopiesAreLinks)
DELETES_BESIDE_THE_PREFIX = in_memory(_DeletesBesideThePrefix)
DELETES_NEIGHBOURS = in_memory(_DeletesNeighbours)
COMMITS_ALONE = on_files(_CommitsAlone)
SUSPENDS_ALONE = on_files(_SuspendsAlone)
FINDS_ALL = in_memory(_FindsAll)
FORGETS_WHAT_WAITS = on_files(_ForgetsWhatWaits)
FOLDS_CASE = in_memory(_FoldsCase)
GIVES_RELATIVE_URLS = in_memory(_GivesRelativeUrls)
HOLDS_FOR_EVERYBODY = on_files(_HoldsForEverybody)
IGNORES_ABSENT = on_files(_IgnoresAbsent)
IGNORES_CONDITIONS = in_memory(_IgnoresConditions)
LEAKS_READERS = in_memory(_LeaksReaders)
LEAKS_TASKS = in_memory(_LeaksTasks)
LISTS_A_THOUSAND = in_memory(_ListsAThousand)
LISTS_BACKWARDS = in_memory(_ListsBackwards)
LISTS_LATE = in_memory(_ListsLate)
LISTS_THE_FOLDER_ITSELF = in_memory(_ListsTheFolderItself)
LOSES_THE_END = in_memory(_LosesTheEnd)
MIXES_WRITERS = in_memory(_MixesWriters)
NESTS = in_memory(_Nests)
NEVER_BUSY = in_memory(_NeverBusy)
NEVER_HOLDS = in_memory(_NeverHolds)
NEVER_MORE = in_memory(_NeverMore)
NOISY = in_memory(_Noisy)
NO_CHECKPOINT = in_memory(_NoCheckpoint)
ONE_AT_A_TIME = in_memory(_OneAtATime)
ONE_PIECE = in_memory(_OnePiece)
PUTS_SEVERAL_AT_ONCE = in_memory(_PutsSeveralAtOnce)
RANGES_ARE_OFF = in_memory(_RangesAreOff)
READS_LIVE = in_memory(_ReadsLive)
READS_WITHOUT_BOUND = in_memory(_ReadsWithoutBound)
REFUSES_LONG_KEYS = in_memory(_RefusesLongKeys)
REMEMBERS = on_files(_Remembers)
TELLS_THE_LAST_VERSION = in_memory(_TellsTheLastVersion)
TOKENS_OF_ONE_PROCESS = on_files(_TokensOfOneProcess)
UNKNOWN_IS_EMPTY = in_memory(_UnknownIsEmpty)
VERSION_IS_SIZE = in_memory(_VersionIsSize)
VISIBLE_EARLY = in_memory(_VisibleEarly)
WRITES_BEFORE_IT_LOOKS = in_memory(_WritesBeforeItLooks)
WRITES_IN_PLACE = on_files(_WritesInPlace)

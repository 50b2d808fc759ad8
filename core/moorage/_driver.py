"""The storage contract: flat keys, each absent or complete.

A driver has five methods of its own; all others have defaults made of these. What the words mean:

- A **key** is `component/component/…`: letters, digits and `._:@+=-`, no `.` or `..`, a component at most 255 bytes, a
  key at most 900: services take 1,024, and a root folder comes before. No key is a directory of another; stores that have files refuse it. Order is that of the key's bytes.
- **Absent or complete**: nobody ever reads a part of what a `write` or a `commit` puts there, whatever is cancelled,
  killed or full. A write replaces, unless it has a condition; of several writers with the same condition one wins.
- **Durable**: when a `write` or `commit` returns, a loss of power does not undo it; with `durable=False` only a death
  of the process does not.
- A list shows every write that was finished before it began.
- Every method is a checkpoint. A cancelled one leaves no task, thread or descriptor behind.
- A driver does not retry, does not cache, and raises `DriverError`s only.
"""

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import NamedTuple

import msgspec
import trio

from ._concurrency import map_bounded
from ._errors import KeyInvalid, KeyUnknown, StoreUnavailable, UploadGone

KEY_LIMIT = 900
COMPONENT_LIMIT = 255

_KEY = re.compile(r"[A-Za-z0-9._:@+=-]+(?:/[A-Za-z0-9._:@+=-]+)*", re.ASCII)
_DOTS = frozenset({".", ".."})
_PART_SIZE = 8 << 20
_LOOKS_AT_ONCE = 32


class Stat(msgspec.Struct, frozen=True):
    """What is known of a key: its size in bytes, when it was last written (Unix time), and its version.

    `version` is opaque; it is another one whenever the content is, and `Unchanged` takes it.
    """

    key: str
    size: int
    modified: float
    version: str


class Absent(msgspec.Struct, frozen=True):
    """The condition that the key does not exist."""


class Unchanged(msgspec.Struct, frozen=True):
    """The condition that the object is still of this version."""

    version: str


Condition = Absent | Unchanged


class Entry(msgspec.Struct, frozen=True):
    """One line of a listing: a key, or, ending in the delimiter, a prefix with keys below it.

    `size` and `modified` are None where the driver would have to ask for them. A prefix may be listed although the
    last key below it is gone: look before you promise.
    """

    key: str
    size: int | None = None
    modified: float | None = None


class Listing(msgspec.Struct, frozen=True):
    """A page of a list, in byte order of `Entry.key`; `more` says whether anything may follow."""

    entries: tuple[Entry, ...]
    more: bool


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a store can do, as far as a decision of the core depends on it.

    Attributes:
        create_only: `write` and `commit` honour `Absent` with exactly one winner.
        cas: `write` and `delete` honour `Unchanged` with exactly one winner.
        announced_destination: an upload that is told its destination when it is opened commits cheaper.
        exclusive_uploads: an open upload is held by one holder at a time, over all processes.
        chunk_minimum: clients are asked to send chunks of at least so many bytes; 0 if any will do.
        remote: each call is a request to a service: the registry saves calls, even if that takes memory.
    """

    create_only: bool = True
    cas: bool = True
    announced_destination: bool = False
    exclusive_uploads: bool = False
    chunk_minimum: int = 0
    remote: bool = False


class FileRange(NamedTuple):
    """Where the bytes of a reader lie in an open file, for whoever can send them from there."""

    descriptor: int
    offset: int
    length: int


class Reader:
    """An open object, or a range of it: read it once by `async for`, or take `file` and read it yourself.

    Attributes:
        stat: of the whole object.
        file: where the same bytes lie in a file that is open as long as the reader is; None if nowhere.
    """

    __slots__ = ("_chunks", "file", "stat")

    def __init__(self, stat: Stat, chunks: AsyncIterator[bytes], *, file: FileRange | None = None) -> None:
        """Make a reader of `chunks`, which end exactly where the range does."""
        self.stat: Stat = stat
        self.file: FileRange | None = file
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the bytes in pieces of at most a few MiB."""
        return self._chunks


class Upload(ABC):
    """An object in the making, invisible until `commit`; used by one task.

    Leaving its context manager without `commit` or `abort` keeps what the last `suspend` answered for.
    """

    offset: int
    """How many bytes it has."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Append `data`."""

    @abstractmethod
    async def suspend(self) -> bytes:
        """Return a token by which any process can go on from `offset`. All bytes so far survive this process."""

    async def suspend_with(self, driver: "Driver", beside: Callable[[bytes], Sequence[tuple[str, bytes]]]) -> None:
        """Suspend, and put on `driver` the small objects that `beside` returns for the token; they survive the process.

        A driver that waits for each of these overrides this as it does `commit_between`.
        """
        await driver.write_all(beside(await self.suspend()), durable=False)

    @property
    def can_write_from_thread(self) -> bool:
        """Whether `write_from_thread` can be called."""
        return False

    def write_from_thread(self, data: bytes) -> None:
        """Append `data` as `write` does, but at once, by who is in a thread already and has the upload to itself.

        For drivers that would go to a thread with each `write`; only where `can_write_from_thread` says so.
        """
        raise NotImplementedError

    async def drop_beyond(self, offset: int) -> None:
        """Free what was written beyond `offset`, at once where the store can; nothing more is written after that.

        Without it the next holder, or the end of the upload, does.
        """
        del offset
        await trio.lowlevel.checkpoint()

    @abstractmethod
    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        """Make the object visible at `destination`, durably, and end the upload.

        Raises:
            ConditionFailed: `condition` does not hold; nothing became visible.
            UploadGone: the bytes are not there any more, or, of an upload that was opened for another destination,
                cannot be had there.
        """

    async def commit_between(
        self,
        driver: "Driver",
        destination: str,
        *,
        before: Callable[[bytes], Sequence[tuple[str, bytes]]] | None = None,
        after: Sequence[tuple[str, bytes]] = (),
        drop: str = "",
    ) -> None:
        """Commit, and do on `driver` what belongs before and after it, in this order and durable as it is said.

        `before` is given the token that `suspend` would return, and returns small objects that survive the process;
        those of `after` are durable; what lies below `drop` is removed. A driver that waits for each of these, as for a
        thread or a connection, overrides this to do all by one step. It must not where `driver` is another one, whose
        layers want to see what is written.

        Raises:
            UploadGone: as `commit`; nothing of `after` was written, and nothing removed.
        """
        if before is not None:
            await self.suspend_with(driver, before)
        await self.commit(destination)
        await driver.write_all(after)
        if drop:
            await driver.delete_below(drop, durable=False)

    @abstractmethod
    async def abort(self) -> None:
        """End the upload and free what it holds."""


def check_key(key: str, *, driver: str) -> str:
    """Return `key` if it keeps the contract's grammar.

    Raises:
        KeyInvalid: it does not.
    """
    if len(key) > KEY_LIMIT or _KEY.fullmatch(key) is None:
        raise KeyInvalid("not a key", driver=driver, operation="stat", key=key[:KEY_LIMIT])
    if "." in key or len(key) > COMPONENT_LIMIT:
        for component in key.split("/"):
            if component in _DOTS or len(component) > COMPONENT_LIMIT:
                raise KeyInvalid("not a key", driver=driver, operation="stat", key=key)
    return key


class Driver(ABC):
    """A store. Subclass it, write the five abstract methods, and override a default where the store can do better."""

    name: str
    capabilities: Capabilities

    _held: set[str] | None = None

    @abstractmethod
    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`.

        Raises:
            KeyUnknown: there is no such key.
        """

    @abstractmethod
    def open(self, key: str, start: int = 0, stop: int | None = None) -> AbstractAsyncContextManager[Reader]:
        """Open the bytes from `start` up to, not including, `stop`, clipped to the object's end.

        Raises (on entering):
            KeyUnknown: there is no such key.
            RangeUnsatisfiable: `start` lies beyond the end.
        """

    @abstractmethod
    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> str | None:
        """Put an object at `key`, replacing what is there unless `condition` says otherwise.

        Returns:
            The version that it has now, where the store says so without being asked for it.

        Raises:
            ConditionFailed: `condition` does not hold; the store is as it was.
            StoreFull, StoreReadOnly: as they say; the store is as it was.
        """

    @abstractmethod
    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`; one that is not there is no error.

        Raises:
            ConditionFailed: the object is not of the version that `condition` names, or not there; it was not removed.
        """

    @abstractmethod
    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        """Return up to `limit` entries below `prefix` that come after `after`, both given whole.

        `prefix` is empty or ends in a slash. With `delimiter` "/", keys that go on after a further slash are folded
        into one entry that ends there; without, all keys are listed. A prefix without keys lists nothing.
        """

    async def read(self, key: str, *, limit: int) -> bytes:
        """Return the whole of a small object.

        Raises:
            KeyUnknown: there is no such key.
            StoreUnavailable: it has more than `limit` bytes.
        """
        async with self.open(key) as reader:
            if reader.stat.size > limit:
                raise StoreUnavailable(
                    f"{reader.stat.size} bytes where at most {limit} are expected",
                    driver=self.name,
                    operation="open",
                    key=key,
                )
            return b"".join([chunk async for chunk in reader])

    async def are_there(self, keys: Sequence[str]) -> Sequence[bool]:
        """Return of each of `keys` whether it is there."""

        async def is_there(key: str) -> bool:
            try:
                await self.stat(key)
            except KeyUnknown:
                return False
            return True

        return await map_bounded(is_there, keys, limit=_LOOKS_AT_ONCE)

    async def write_all(self, objects: Sequence[tuple[str, bytes]], *, durable: bool = True) -> None:
        """Put small objects, each a key and its bytes, one after the other: none before all that stand before it.

        Raises:
            DriverError: one could not be put, and none that stands after it was; those before it may be there.
        """
        for key, data in objects:
            await self.write(key, data, durable=durable)

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        """Put what is at `source` at `destination` too."""
        async with self.open(source) as reader:
            await self.write(destination, reader, condition=condition)

    async def delete_below(self, prefix: str, *, durable: bool = True) -> None:
        """Remove every key below `prefix`, which ends in a slash."""
        while True:
            listing = await self.list(prefix)
            await self.delete(*(entry.key for entry in listing.entries), durable=durable)
            if not listing.more:
                return

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        """Return a URL from which a client at `client_address` may GET `key` for a while, or None if there is none."""
        del key, client_address
        await trio.lowlevel.checkpoint()
        return None

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        """Begin an upload that keeps its state at and below `key`.

        `destination` is where it will probably be committed, if that is known.
        """
        del destination
        await trio.lowlevel.checkpoint()
        yield _PartsUpload(self, _Parts(key=key, names=(), sizes=()))

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        """Go on with an upload at `offset`, which the last `suspend` answered for; what lies beyond is dropped.

        Raises (on entering):
            UploadGone: there is no such upload, or it does not reach to `offset`.
            UploadBusy: somebody else holds it (only with `exclusive_uploads`).
        """
        try:
            parts = _parts.decode(token)
        except msgspec.MsgspecError:
            raise UploadGone("not a token of this driver", driver=self.name, operation="upload") from None
        try:
            for name in parts.names:
                await self.stat(name)
        except KeyUnknown:
            raise UploadGone("a part is gone", driver=self.name, operation="upload", key=parts.key) from None
        if sum(parts.sizes) != offset:
            raise UploadGone(
                f"it has {sum(parts.sizes)} bytes, not {offset}", driver=self.name, operation="upload", key=parts.key
            )
        yield _PartsUpload(self, parts)

    async def expire_uploads(self, *, older_than: float, dry_run: bool) -> int:
        """Free what uploads have left in the store itself, where no key shows it, untouched since Unix time `older_than`.

        A process that dies between two requests to a service leaves such things. With `dry_run` they are only counted.

        Returns:
            how many there were.
        """
        del older_than, dry_run
        await trio.lowlevel.checkpoint()
        return 0

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        """Try to be the only holder of `name` over all processes; give whether that worked.

        It never waits, and what is held is free again at the latest when the process has ended; in a store behind a
        network, within a minute after that. For work on a clock
        that one process should do, and for steps that others must not come between (fixed tags). The default knows the
        holders of this object alone: right for a store of one process.
        """
        await trio.lowlevel.checkpoint()
        if self._held is None:
            self._held = set()
        if name in self._held:
            yield False
            return
        self._held.add(name)
        try:
            yield True
        finally:
            self._held.discard(name)


class _Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Where an upload made of part objects stands: its token."""

    key: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]


_parts = msgspec.json.Decoder(_Parts)


class _PartsUpload(Upload):
    """An upload whose parts are objects beside `key`, joined at commit: what any store can do."""

    def __init__(self, driver: Driver, parts: _Parts) -> None:
        self.offset = sum(parts.sizes)
        self._driver = driver
        self._parts = parts
        self._pending: list[bytes] = []
        self._pending_size = 0

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._pending.append(data)
        self._pending_size += len(data)
        self.offset += len(data)
        if self._pending_size >= _PART_SIZE:
            await self._flush()

    async def suspend(self) -> bytes:
        await self._flush()
        return msgspec.json.encode(self._parts)

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        pending = tuple(self._pending)
        async with aclosing(self._joined(pending)) as joined:
            await self._driver.write(destination, joined, condition=condition)
        await self._driver.delete(*self._parts.names)

    async def abort(self) -> None:
        await self._driver.delete(*self._parts.names)

    async def _flush(self) -> None:
        if not self._pending:
            return
        # A name of its own: two writers at the same offset must not overwrite each other's bytes.
        name = f"{self._parts.key}.{len(self._parts.names)}-{secrets.token_hex(6)}"
        await self._driver.write(name, b"".join(self._pending), durable=False)
        self._parts = _Parts(
            key=self._parts.key,
            names=(*self._parts.names, name),
            sizes=(*self._parts.sizes, self._pending_size),
        )
        self._pending.clear()
        self._pending_size = 0

    async def _joined(self, pending: tuple[bytes, ...]) -> AsyncGenerator[bytes]:
        for name in self._parts.names:
            async with self._driver.open(name) as reader:
                async for chunk in reader:
                    yield chunk
        for chunk in pending:
            yield chunk

"""Files below one folder, for a single machine or several processes on it.

A key is a path below the root. Moorage's own folder `moorage` lies there too: temporary files, which must never stand
where distribution would take them for content, and lock files.

- **Atomic**: bytes go to a temporary file, which is then renamed into place. Every write and delete of a key takes one
  of 256 file locks for that step, so a conditional one and any other cannot come between each other, whichever process
  they are in. Only `delete_below` takes none: what lies below such a prefix is not written under conditions.
- **Durable**: the file is synced before it gets its name, then the directory that holds the name, then each directory
  above that is not known to be on disk itself. What belongs together, a blob with its link for instance, goes through
  these steps together: all content is synced, then all get their names, in their order, then directories are synced.
  A file system that keeps a journal writes it twice then, and not twice for each.
- **Loop or thread**: opening, stat, and reading what the page cache holds take microseconds and are done in the event
  loop; whatever may wait for a disk is done in a thread, in few whole steps.
"""

import errno
import fcntl
import os
import stat as stat_modes
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import trio

from moorage import (
    Capabilities,
    Condition,
    Driver,
    DriverVerb,
    Entry,
    FileRange,
    KeyInvalid,
    Listing,
    RangeUnsatisfiable,
    Reader,
    Stat,
    StoreUnavailable,
    Unchanged,
    Upload,
    UploadGone,
)

from ._file_errors import NAME, fail, refuse, told
from ._file_upload import FileUpload
from ._files import keys_below, names_in, write_all
from ._placement import OWN, Placement, checked, stat_of

T = TypeVar("T")

_CHUNK = 512 << 10
_LOOKS_IN_A_TURN = 128
_NAMES_REMEMBERED = 200_000
_SETTLED_NS = 2_000_000_000


class _Names(NamedTuple):
    """What was in a directory when it had this inode and time."""

    state: tuple[int, int]
    names: tuple[str, ...]


class FilesystemDriver(Driver):
    """A store of files; make it with `open_root`."""

    name = NAME
    capabilities = Capabilities(exclusive_uploads=True)

    def __init__(self, root: str, *, threads: int) -> None:
        """Keep objects below `root`, with at most `threads` threads waiting for the disk at once."""
        self.root = root
        self.placement = Placement(root)
        self._limiter = trio.CapacityLimiter(threads)
        # Whether reads can say "not in the page cache" instead of waiting; some file systems cannot (tmpfs).
        self._can_try = hasattr(os, "RWF_NOWAIT")
        # Names in directories, bounded by their number; the least recently used goes first.
        self._names: OrderedDict[str, _Names] = OrderedDict()
        self._names_count = 0
        self._reading: dict[str, trio.Lock] = {}

    @classmethod
    @asynccontextmanager
    async def open_root(cls, root: str, *, threads: int = 100) -> AsyncGenerator["FilesystemDriver"]:
        """Open the store below `root`, which is made if it is not there.

        A root that cannot be written to can still be read.

        Raises:
            StoreReadOnly, StoreUnavailable: there is no such folder and it cannot be made.
        """
        driver = cls(os.path.realpath(root), threads=threads)  # noqa: ASYNC240 - once, at the start
        try:
            await trio.to_thread.run_sync(driver.placement.prepare)
        except OSError as error:
            refuse(root, error)
        yield driver

    @classmethod
    def look_at_root(cls, root: str, *, threads: int = 100) -> "FilesystemDriver":
        """Return the store below `root` to read from; nothing is made, not even the driver's own folders.

        Raises:
            StoreReadOnly, StoreUnavailable: there is no such folder, or it cannot be looked into.
        """
        driver = cls(os.path.realpath(root), threads=threads)
        try:
            os.scandir(driver.root).close()
        except OSError as error:
            refuse(root, error)
        return driver

    # ---- names and errors

    def path_of(self, key: str) -> str:
        """Return where the object of `key` lies.

        Raises:
            KeyInvalid: it is no key, or one of the driver's own files.
        """
        return f"{self.root}/{checked(key)}"

    async def in_thread(self, operation: DriverVerb, key: str, step: Callable[[], T]) -> T:
        """Return what `step` does in one of the driver's threads; what the system says is raised as a `DriverError`."""
        return await trio.to_thread.run_sync(told, operation, key, step, limiter=self._limiter)

    # ---- reading

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`."""
        path = self.path_of(key)
        await trio.lowlevel.checkpoint()
        try:
            return stat_of(key, os.stat(path))
        except OSError as error:
            fail(error, "stat", key)

    async def are_there(self, keys: Sequence[str]) -> Sequence[bool]:
        """Return of each of `keys` whether it is there."""
        known = [checked(key) for key in keys]
        await trio.lowlevel.checkpoint()
        # The way to the folder that all lie in is gone once.
        folder = os.path.commonprefix(known).rpartition("/")[0]  # noqa: RUF071 - cut at a slash
        beginning = len(folder) + 1 if folder else 0
        try:
            directory = os.open(f"{self.root}/{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return [False] * len(known)
        except OSError as error:
            fail(error, "stat", folder)
        found: list[bool] = []
        try:
            for at, key in enumerate(known, 1):
                if at % _LOOKS_IN_A_TURN == 0:
                    await trio.lowlevel.checkpoint()
                try:
                    found.append(stat_modes.S_ISREG(os.stat(key[beginning:], dir_fd=directory).st_mode))
                except (FileNotFoundError, NotADirectoryError):
                    found.append(False)
                except OSError as error:
                    fail(error, "stat", key)
        finally:
            os.close(directory)
        return found

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        """Open the bytes from `start` to `stop`; the reader has a file."""
        path = self.path_of(key)
        await trio.lowlevel.checkpoint()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            fail(error, "open", key)
        try:
            try:
                found = stat_of(key, os.fstat(descriptor))
            except OSError as error:
                fail(error, "open", key)
            if start > found.size:
                raise RangeUnsatisfiable(
                    f"{start} lies beyond {found.size} bytes", driver=NAME, operation="open", key=key
                )
            end = found.size if stop is None else min(stop, found.size)
            async with aclosing(self._chunks(descriptor, key, start, end)) as chunks:
                yield Reader(found, chunks, file=FileRange(descriptor, start, max(end - start, 0)))
        finally:
            os.close(descriptor)

    async def _chunks(self, descriptor: int, key: str, start: int, end: int) -> AsyncGenerator[bytes]:
        while start < end:
            chunk = await self._pread(descriptor, key, min(_CHUNK, end - start), start)
            if not chunk:
                raise StoreUnavailable("the file ends early", driver=NAME, operation="open", key=key)
            yield chunk
            start += len(chunk)

    async def _pread(self, descriptor: int, key: str, count: int, offset: int) -> bytes:
        """Return up to `count` bytes; in the loop if the page cache has them, else in a thread."""
        if self._can_try:
            await trio.lowlevel.checkpoint()
            buffer = bytearray(count)
            try:
                got = os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                    fail(error, "open", key)
                self._can_try = False
            else:
                if got:
                    return bytes(memoryview(buffer)[:got])
        return await self.in_thread("open", key, lambda: os.pread(descriptor, count, offset))

    async def read(self, key: str, *, limit: int) -> bytes:
        """Return the whole of a small object, without a thread if the page cache has it."""
        if self._can_try:
            path = self.path_of(key)
            await trio.lowlevel.checkpoint()
            # What most requests begin with, so without what `open` has for others.
            try:
                data = _read_at_once(path, limit)
            except BlockingIOError:
                data = None
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                    fail(error, "open", key)
                data = None
            if data is not None:
                return data
        async with self.open(key) as reader:
            size = reader.stat.size
            if size > limit:
                raise StoreUnavailable(
                    f"{size} bytes where at most {limit} are expected", driver=NAME, operation="open", key=key
                )
            assert reader.file is not None  # noqa: S101 - `open` above always has one
            data = await self._pread(reader.file.descriptor, key, size, 0) if size else b""
            if len(data) == size:
                return data
            async with aclosing(self._chunks(reader.file.descriptor, key, len(data), size)) as rest:
                return data + b"".join([chunk async for chunk in rest])

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        """Return up to `limit` entries below `prefix` that come after `after`."""
        folder = self.path_of(prefix.rstrip("/")) if prefix else self.root
        if delimiter:
            names = await self._names_in(folder, prefix)
            first = bisect_right(names, after.removeprefix(prefix)) if after.startswith(prefix) else 0
            if after > prefix and not after.startswith(prefix):
                first = len(names)
            page = names[first : first + limit]
            return Listing(tuple(Entry(prefix + name) for name in page), more=first + limit < len(names))

        def scan() -> Listing:
            entries: list[Entry] = []
            for key in keys_below(folder, prefix, after, skip=OWN if not prefix else ""):
                if len(entries) == limit:
                    return Listing(tuple(entries), more=True)
                entries.append(Entry(key))
            return Listing(tuple(entries), more=False)

        return await self.in_thread("list", prefix, scan)

    async def _names_in(self, folder: str, prefix: str) -> Sequence[str]:
        """Return what is right in `folder` in the order of keys, directories with a slash; remembered until it changes.

        A directory has another time when a name in it came or went. Its clock ticks in milliseconds, so what was read
        while the time was new is not believed: the same tick may have brought more.
        """
        await trio.lowlevel.checkpoint()
        if (names := self._remembered(folder, prefix)) is not None:
            return names
        # Of many who ask at once, one reads the directory, and the others look again.
        lock = self._reading.setdefault(folder, trio.Lock())
        try:
            async with lock:
                if (names := self._remembered(folder, prefix)) is not None:
                    return names
                return await self._read_names(folder, prefix)
        finally:
            if not lock.locked():
                self._reading.pop(folder, None)

    def _state(self, folder: str, prefix: str) -> tuple[int, int] | None:
        """Return what changes with the names in `folder`, None if there is no such directory."""
        try:
            found = os.stat(folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            fail(error, "list", prefix)
        return found.st_ino, found.st_mtime_ns

    def _remembered(self, folder: str, prefix: str) -> Sequence[str] | None:
        """Return the names in `folder`, if they are known."""
        state = self._state(folder, prefix)
        if state is None:
            return ()
        remembered = self._names.get(folder)
        if remembered is None or remembered.state != state:
            return None
        self._names.move_to_end(folder)
        return remembered.names

    async def _read_names(self, folder: str, prefix: str) -> Sequence[str]:
        state = self._state(folder, prefix)
        names = await self.in_thread("list", prefix, lambda: names_in(folder, skip=OWN if not prefix else ""))
        old = self._names.pop(folder, None)
        self._names_count -= len(old.names) if old is not None else 0
        if state and time.time_ns() - state[1] > _SETTLED_NS and len(names) <= _NAMES_REMEMBERED:
            self._names[folder] = _Names(state, tuple(names))
            self._names_count += len(names)
            while self._names_count > _NAMES_REMEMBERED:
                _, gone = self._names.popitem(last=False)
                self._names_count -= len(gone.names)
        return names

    # ---- writing

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        """Put an object at `key`."""
        key = checked(key)
        if isinstance(chunks, bytes):
            await self.in_thread("write", key, partial(self.placement.put, key, chunks, condition, durable=durable))
            return
        file = await self.in_thread("write", key, partial(self.placement.open_temporary, key, condition))
        try:
            async for chunk in chunks:
                await self.in_thread("write", key, partial(write_all, file.descriptor, chunk))
            await self.in_thread("write", key, partial(self.placement.place, [file], durable=durable))
        finally:
            self.placement.discard([file])

    async def write_all(self, objects: Sequence[tuple[str, bytes]], *, durable: bool = True) -> None:
        """Put small objects one after the other, by one step in a thread."""
        step = partial(self.placement.put_all, objects, durable=durable)
        await self.in_thread("write", objects[0][0] if objects else "", step)

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`, and directories that are empty then."""
        known = [checked(key) for key in keys]
        step = partial(self.placement.remove, known, condition, durable=durable)
        await self.in_thread("delete", keys[0] if keys else "", step)

    async def delete_below(self, prefix: str, *, durable: bool = True) -> None:
        """Remove every key below `prefix`."""
        folder = self.path_of(prefix.rstrip("/"))
        await self.in_thread("delete", prefix, partial(self.placement.remove_below, folder, durable=durable))

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        """Give the object a second name: what is written is never changed in place, so both may be one file."""
        step = partial(self.placement.link, checked(source), checked(destination), condition)
        await self.stat(source)
        await self.in_thread("copy", source, step)

    # ---- uploads

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        """Begin an upload in the file `key`."""
        del destination
        upload = FileUpload(self, key)
        await trio.lowlevel.checkpoint()
        try:
            yield upload
        finally:
            upload.close()

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        """Go on with an upload; its file is locked while it is open."""
        key = token.decode("ascii", errors="replace")
        try:
            upload = FileUpload(self, key)
        except KeyInvalid:
            raise UploadGone("not a token of this driver", driver=NAME, operation="upload") from None
        await trio.lowlevel.checkpoint()
        try:
            upload.reopen(offset)
            yield upload
        finally:
            upload.close()

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        """Try to be the only holder of `name`, by a lock on a file that ends with the process."""
        path = f"{self.placement.locks}/hold-{name}"
        flags = os.O_RDWR | os.O_CLOEXEC

        def create() -> int:
            self.placement.make_own()
            return os.open(path, flags | os.O_CREAT, 0o666)

        await trio.lowlevel.checkpoint()
        try:
            # A file that is there is opened, and tried to be locked, in microseconds.
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            descriptor = await self.in_thread("hold", name, create)
        except OSError as error:
            fail(error, "hold", name)
        try:
            held = True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held = False
            except OSError as error:
                fail(error, "hold", name)
            yield held
        finally:
            os.close(descriptor)


def _read_at_once(path: str, limit: int) -> bytes | None:
    """Return a small file, None if it is not small, is no file, or does not come whole.

    Raises:
        BlockingIOError: the page cache does not have it.
        OSError: it cannot be read, or the file system cannot say whether it would wait.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat_modes.S_ISREG(found.st_mode) or found.st_size > min(limit, _CHUNK):
            return None
        buffer = bytearray(found.st_size)
        got = os.preadv(descriptor, [buffer], 0, os.RWF_NOWAIT) if buffer else 0
        return bytes(buffer) if got == found.st_size else None
    finally:
        os.close(descriptor)

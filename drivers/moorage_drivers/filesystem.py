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
import logging
import os
import secrets
import stat as stat_modes
import time
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from functools import lru_cache, partial
from typing import NamedTuple, NoReturn, TypeVar

import trio

from moorage import (
    Absent,
    Capabilities,
    Condition,
    ConditionFailed,
    Driver,
    DriverError,
    DriverVerb,
    Entry,
    FileRange,
    KeyInvalid,
    KeyUnknown,
    Listing,
    RangeUnsatisfiable,
    Reader,
    Stat,
    StoreBusy,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    Unchanged,
    Upload,
    UploadBusy,
    UploadGone,
    check_key,
)

from ._files import begin_to_sync, keys_below, names_in, remove_if_empty, remove_tree, sync_directory, write_all

T = TypeVar("T")

_log = logging.getLogger("moorage.filesystem")

_CHUNK = 512 << 10
_LOCKS = 256
_OWN = "moorage"
_STALE_SECONDS = 24 * 3600
_TRIES = 100
_KNOWN_DIRECTORIES = 20_000
_SMALL = 64 << 10
_KNOWN_KEYS = 8192
_LOOKS_IN_A_TURN = 128
_PLACED_TOGETHER = 32
_NAMES_REMEMBERED = 200_000
_SETTLED_NS = 2_000_000_000

_KINDS: dict[int, type[DriverError]] = {
    errno.ENOENT: KeyUnknown,
    errno.ENOSPC: StoreFull,
    errno.EDQUOT: StoreFull,
    errno.EFBIG: StoreFull,
    errno.EROFS: StoreReadOnly,
    errno.EACCES: StoreReadOnly,
    errno.EPERM: StoreReadOnly,
    errno.EMFILE: StoreBusy,
    errno.ENFILE: StoreBusy,
    errno.ENOMEM: StoreBusy,
    errno.ENAMETOOLONG: KeyInvalid,
    errno.ENOTDIR: KeyInvalid,
    errno.EISDIR: KeyInvalid,
}


class _Names(NamedTuple):
    """What was in a directory when it had this inode and time."""

    state: tuple[int, int]
    names: tuple[str, ...]


class _Ready(NamedTuple):
    """A file that has its content, and shall have the name of `key`."""

    descriptor: int
    temporary: str
    key: str
    path: str
    condition: Condition | None = None


class FilesystemDriver(Driver):
    """A store of files; make it with `open_root`."""

    name = "filesystem"
    capabilities = Capabilities(exclusive_uploads=True)

    def __init__(self, root: str, *, threads: int) -> None:
        """Keep objects below `root`, with at most `threads` threads waiting for the disk at once."""
        self.root = root
        self._temporary = f"{root}/{_OWN}/tmp"  # noqa: S108 - the store's own, not the system's
        self._locks = f"{root}/{_OWN}/locks"
        self._limiter = trio.CapacityLimiter(threads)
        # Whether reads can say "not in the page cache" instead of waiting; some file systems cannot (tmpfs).
        self._can_try = hasattr(os, "RWF_NOWAIT")
        # Names in directories, bounded by their number; the least recently used goes first.
        self._names: OrderedDict[str, _Names] = OrderedDict()
        self._names_count = 0
        self._reading: dict[str, trio.Lock] = {}
        # Directories that are on disk, with the inode they had then: one that was made anew has another.
        self._on_disk: dict[str, int] = {}

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
            await trio.to_thread.run_sync(driver._prepare)
        except OSError as error:
            driver._refuse(root, error)
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
            driver._refuse(root, error)
        return driver

    def _refuse(self, root: str, error: OSError) -> NoReturn:
        kind = StoreReadOnly if _KINDS.get(error.errno or 0) is StoreReadOnly else StoreUnavailable
        raise kind(f"{root}: {error.strerror or error}", driver=self.name, operation="open") from error

    def _prepare(self) -> None:
        os.makedirs(self.root, exist_ok=True)
        try:
            self._make_own()
            # Made while there is room: on a full disk it must still be possible to delete.
            for stripe in range(_LOCKS):
                os.close(os.open(f"{self._locks}/{stripe:02x}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
            now = time.time()
            with os.scandir(self._temporary) as left:
                for entry in left:
                    if now - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
                        os.unlink(entry.path)
            with self._temporary_file() as (descriptor, _):
                write_all(descriptor, b"probe")
        except OSError as error:
            _log.warning("%s cannot be written to: %s; only pulls will work", self.root, error.strerror or error)

    def _make_own(self) -> None:
        os.makedirs(self._temporary, exist_ok=True)
        os.makedirs(self._locks, exist_ok=True)

    # ---- names and errors

    def path_of(self, key: str) -> str:
        """Return where the object of `key` lies.

        Raises:
            KeyInvalid: it is no key, or one of the driver's own files.
        """
        return f"{self.root}/{_checked(key)}"

    def _fail(self, error: OSError, operation: DriverVerb, key: str) -> NoReturn:
        kind = _KINDS.get(error.errno or 0, StoreUnavailable)
        if kind is KeyInvalid and operation in {"stat", "open", "list"}:
            # Asked for something below a file, or for a directory: there is no such key.
            kind = KeyUnknown
        raise kind(error.strerror or str(error), driver=self.name, operation=operation, key=key) from error

    async def in_thread(self, operation: DriverVerb, key: str, step: Callable[[], T]) -> T:
        """Return what `step` does in one of the driver's threads; what the system says is raised as a `DriverError`."""
        return await trio.to_thread.run_sync(lambda: self.here(operation, key, step), limiter=self._limiter)

    def here(self, operation: DriverVerb, key: str, step: Callable[[], T]) -> T:
        """Return what `step` does; what the system says is raised as a `DriverError`. Runs in a thread."""
        try:
            return step()
        except OSError as error:
            self._fail(error, operation, key)

    # ---- reading

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`."""
        path = self.path_of(key)
        await trio.lowlevel.checkpoint()
        try:
            return _stat(key, os.stat(path))
        except OSError as error:
            self._fail(error, "stat", key)

    async def are_there(self, keys: Sequence[str]) -> Sequence[bool]:
        """Return of each of `keys` whether it is there."""
        checked = [_checked(key) for key in keys]
        await trio.lowlevel.checkpoint()
        # The way to the folder that all lie in is gone once.
        folder = os.path.commonprefix(checked).rpartition("/")[0]  # noqa: RUF071 - cut at a slash
        beginning = len(folder) + 1 if folder else 0
        try:
            directory = os.open(f"{self.root}/{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return [False] * len(checked)
        except OSError as error:
            self._fail(error, "stat", folder)
        found: list[bool] = []
        try:
            for at, key in enumerate(checked, 1):
                if at % _LOOKS_IN_A_TURN == 0:
                    await trio.lowlevel.checkpoint()
                try:
                    found.append(stat_modes.S_ISREG(os.stat(key[beginning:], dir_fd=directory).st_mode))
                except (FileNotFoundError, NotADirectoryError):
                    found.append(False)
                except OSError as error:
                    self._fail(error, "stat", key)
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
            self._fail(error, "open", key)
        try:
            try:
                found = _stat(key, os.fstat(descriptor))
            except OSError as error:
                self._fail(error, "open", key)
            if start > found.size:
                raise RangeUnsatisfiable(
                    f"{start} lies beyond {found.size} bytes", driver=self.name, operation="open", key=key
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
                raise StoreUnavailable("the file ends early", driver=self.name, operation="open", key=key)
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
                    self._fail(error, "open", key)
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
                    self._fail(error, "open", key)
                data = None
            if data is not None:
                return data
        async with self.open(key) as reader:
            size = reader.stat.size
            if size > limit:
                raise StoreUnavailable(
                    f"{size} bytes where at most {limit} are expected", driver=self.name, operation="open", key=key
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
            for key in keys_below(folder, prefix, after, skip=_OWN if not prefix else ""):
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
            self._fail(error, "list", prefix)
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
        names = await self.in_thread("list", prefix, lambda: names_in(folder, skip=_OWN if not prefix else ""))
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
        path = self.path_of(key)
        if isinstance(chunks, bytes):
            await self.in_thread("write", key, partial(self._write, key, chunks, condition, durable=durable))
            return
        await self._write_stream(key, path, chunks, condition, durable=durable)

    def _write(self, key: str, data: bytes, condition: Condition | None, *, durable: bool) -> None:
        with self.written(key, data, condition) as file:
            self.place([file], durable=durable)

    async def write_all(self, objects: Sequence[tuple[str, bytes]], *, durable: bool = True) -> None:
        """Put small objects one after the other, by one step in a thread."""
        await self.in_thread("write", objects[0][0] if objects else "", lambda: self.put_all(objects, durable=durable))

    def put_all(self, objects: Sequence[tuple[str, bytes]], *, durable: bool) -> None:
        """Put small objects one after the other. Runs in a thread.

        Raises:
            DriverError: one cannot be put, or is not allowed; none after it was, those before it may be there.
        """
        for first in range(0, len(objects), _PLACED_TOGETHER):
            with ExitStack() as kept:
                some = objects[first : first + _PLACED_TOGETHER]
                self.place([kept.enter_context(self.written(*each)) for each in some], durable=durable)

    @contextmanager
    def written(self, key: str, data: bytes, condition: Condition | None = None) -> Generator[_Ready]:
        """Write `data` to a file that can be given the name of `key`. Runs in a thread."""
        path = self.path_of(key)
        with self._temporary_file() as (descriptor, temporary):
            self.here("write", key, lambda: write_all(descriptor, data))
            yield _Ready(descriptor, temporary, key, path, condition)

    async def _write_stream(
        self, key: str, path: str, chunks: AsyncIterable[bytes], condition: Condition | None, *, durable: bool
    ) -> None:
        manager = self._temporary_file()
        descriptor, temporary = await self.in_thread("write", key, manager.__enter__)
        try:
            async for chunk in chunks:
                await self.in_thread("write", key, partial(write_all, descriptor, chunk))
            await self.in_thread(
                "write", key, lambda: self.place([_Ready(descriptor, temporary, key, path, condition)], durable=durable)
            )
        finally:
            manager.__exit__(None, None, None)

    @contextmanager
    def _temporary_file(self) -> Generator[tuple[int, str]]:
        """Open a fresh file that is removed at the end, unless it was given another name by then."""
        temporary = f"{self._temporary}/{os.getpid()}-{secrets.token_hex(8)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except FileNotFoundError:
            self._make_own()
            descriptor = os.open(temporary, flags, 0o666)
        try:
            yield descriptor, temporary
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def place(self, files: Sequence[_Ready], *, durable: bool, drop: str = "") -> None:
        """Give each of `files` its name, one after the other, then remove what lies below `drop`. Runs in a thread."""
        for file in files:
            # The system's own clock for files ticks in milliseconds, and inodes are used again: without a time of its
            # own, a file that was replaced twice in one tick could have the version of the first.
            now = time.time_ns()
            os.utime(file.descriptor, ns=(now, now))
            if durable and len(files) > 1:
                # So that the sync of the first finds the others on their way, and the file system does all in one.
                begin_to_sync(file.descriptor)
        if durable:
            for file in files:
                self.here("write", file.key, partial(os.fdatasync, file.descriptor))
        for file in files:
            self.here("write", file.key, partial(self._name, file))
        if drop:
            self.remove_below(drop, durable=False)
        if durable:
            for directory in dict.fromkeys(os.path.dirname(file.path) for file in files):
                self._sync_directories(directory)

    def _name(self, file: _Ready) -> None:
        key, path = file.key, file.path
        for _ in range(_TRIES):
            try:
                with self._locked(key):
                    if file.condition is not None:
                        self._check(file.condition, key, path, "write")
                    os.rename(file.temporary, path)
            except FileNotFoundError:
                if not os.path.lexists(file.temporary):
                    raise StoreUnavailable(
                        "the file was taken away", driver=self.name, operation="write", key=key
                    ) from None
                # No directory yet, or somebody has just removed it as empty.
                self._make_directory(os.path.dirname(path))
            except IsADirectoryError:
                if not remove_if_empty(path):
                    raise
            else:
                return
        raise StoreUnavailable("its directory keeps vanishing", driver=self.name, operation="write", key=key)

    def _make_directory(self, directory: str) -> None:
        """Make `directory` and what is missing above it, unless somebody removes that meanwhile: look again."""
        # It may get the inode of one that was there before and was known to be on disk; this one is not.
        self._on_disk.pop(directory, None)
        try:
            os.mkdir(directory)
        except FileExistsError:
            return
        except FileNotFoundError:
            self._make_directory(os.path.dirname(directory))
            with suppress(FileExistsError, FileNotFoundError):
                os.mkdir(directory)

    def _check(self, condition: Condition, key: str, path: str, operation: DriverVerb) -> None:
        try:
            found = _stat(key, os.stat(path))
        except (FileNotFoundError, NotADirectoryError):
            found = None
        match condition:
            case Absent() if found is not None:
                raise ConditionFailed("the key exists", driver=self.name, operation=operation, key=key)
            case Unchanged(version) if found is None or found.version != version:
                raise ConditionFailed("not of that version", driver=self.name, operation=operation, key=key)
            case _:
                return

    @contextmanager
    def _locked(self, key: str) -> Generator[None]:
        """Hold the lock that all writers of `key` take, in all processes. Runs in a thread; held for microseconds."""
        name = f"{self._locks}/{zlib.crc32(key.encode()) % _LOCKS:02x}"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, 0o666)
        except FileNotFoundError:
            self._make_own()
            descriptor = os.open(name, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _sync_directories(self, directory: str) -> None:
        """Sync `directory`, and those above it that are not known to be on disk."""
        sync_directory(directory)
        while directory != self.root:
            try:
                inode = os.stat(directory).st_ino
            except FileNotFoundError:
                # Removed meanwhile as empty, so what was put there has been deleted since.
                return
            if self._on_disk.get(directory) == inode:
                return
            parent = os.path.dirname(directory)
            sync_directory(parent)
            if len(self._on_disk) >= _KNOWN_DIRECTORIES:
                self._on_disk.clear()
            self._on_disk[directory] = inode
            directory = parent

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`, and directories that are empty then."""
        paths = [(key, self.path_of(key)) for key in keys]

        def remove() -> None:
            for key, path in paths:
                try:
                    with self._locked(key):
                        if condition is not None:
                            self._check(condition, key, path, "delete")
                        os.unlink(path)
                except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    continue
                left = self._prune(os.path.dirname(path))
                if durable:
                    sync_directory(left)

        await self.in_thread("delete", keys[0] if keys else "", remove)

    async def delete_below(self, prefix: str, *, durable: bool = True) -> None:
        """Remove every key below `prefix`."""
        await self.in_thread("delete", prefix, lambda: self.remove_below(prefix, durable=durable))

    def remove_below(self, prefix: str, *, durable: bool) -> None:
        """Remove every key below `prefix`. Runs in a thread."""
        folder = self.path_of(prefix.rstrip("/"))
        remove_tree(folder)
        left = self._prune(os.path.dirname(folder))
        if durable:
            sync_directory(left)

    def _prune(self, directory: str) -> str:
        """Remove `directory` and those above it while they are empty; return the first that is not."""
        while directory != self.root and remove_if_empty(directory):
            self._on_disk.pop(directory, None)
            directory = os.path.dirname(directory)
        return directory

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        """Give the object a second name: what is written is never changed in place, so both may be one file."""
        source_path, path = self.path_of(source), self.path_of(destination)
        await self.stat(source)

        def link() -> None:
            temporary = f"{self._temporary}/{os.getpid()}-{secrets.token_hex(8)}"
            try:
                os.link(source_path, temporary)
            except FileNotFoundError:
                self._make_own()
                os.link(source_path, temporary)
            try:
                descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self.place([_Ready(descriptor, temporary, destination, path, condition)], durable=True)
                finally:
                    os.close(descriptor)
            finally:
                # A rename between two names of one file does nothing and leaves both.
                with suppress(FileNotFoundError):
                    os.unlink(temporary)

        await self.in_thread("copy", source, link)

    # ---- uploads

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        """Begin an upload in the file `key`."""
        del destination
        path = self.path_of(key)

        def create() -> int:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            for _ in range(_TRIES):
                try:
                    return os.open(path, flags, 0o666)
                except FileNotFoundError:
                    self._make_directory(os.path.dirname(path))
            raise StoreUnavailable("its directory keeps vanishing", driver=self.name, operation="upload", key=key)

        descriptor = await self.in_thread("upload", key, create)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield _FileUpload(self, key, path, descriptor, 0)
        finally:
            os.close(descriptor)

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        """Go on with an upload; its file is locked while it is open."""
        key = token.decode("ascii", errors="replace")
        try:
            path = self.path_of(key)
        except KeyInvalid:
            raise UploadGone("not a token of this driver", driver=self.name, operation="upload") from None
        await trio.lowlevel.checkpoint()
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise UploadGone("no such upload", driver=self.name, operation="upload", key=key) from None
        except OSError as error:
            self._fail(error, "upload", key)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UploadBusy("another holder has it", driver=self.name, operation="upload", key=key) from None
            held = os.fstat(descriptor)
            # Whoever held it before may have committed or removed it; then this descriptor is of no upload.
            if not held.st_nlink or not _is_at(held, path) or held.st_size < offset:
                raise UploadGone("it ended, or is shorter", driver=self.name, operation="upload", key=key)
            yield _FileUpload(self, key, path, descriptor, offset)
        finally:
            os.close(descriptor)

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        """Try to be the only holder of `name`, by a lock on a file that ends with the process."""
        path = f"{self._locks}/hold-{name}"
        flags = os.O_RDWR | os.O_CLOEXEC

        def create() -> int:
            self._make_own()
            return os.open(path, flags | os.O_CREAT, 0o666)

        await trio.lowlevel.checkpoint()
        try:
            # A file that is there is opened, and tried to be locked, in microseconds.
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            descriptor = await self.in_thread("hold", name, create)
        except OSError as error:
            self._fail(error, "hold", name)
        try:
            held = True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held = False
            except OSError as error:
                self._fail(error, "hold", name)
            yield held
        finally:
            os.close(descriptor)


class _FileUpload(Upload):
    """An upload in a file that grows; the file's name is the token."""

    def __init__(self, driver: FilesystemDriver, key: str, path: str, descriptor: int, offset: int) -> None:
        self.offset = offset
        self._driver = driver
        self._key = key
        self._path = path
        self._descriptor = descriptor
        self._cut = False
        # What is small waits for what comes next, which may be the commit: then one step in a thread does both.
        self._waiting = b""

    async def write(self, data: bytes) -> None:
        if not self._waiting and len(data) <= _SMALL:
            await trio.lowlevel.checkpoint()
            self._waiting = data
        else:
            await self._driver.in_thread("upload", self._key, lambda: self._append(self._waiting, data))
            self._waiting = b""
        self.offset += len(data)

    @property
    def can_write_from_thread(self) -> bool:
        return True

    def write_from_thread(self, data: bytes) -> None:
        self._driver.here("upload", self._key, lambda: self._append(self._waiting, data))
        self._waiting = b""
        self.offset += len(data)

    def _append(self, *pieces: bytes) -> None:
        """Write `pieces`, of which the first waits and is counted already. Runs in a thread."""
        self._drop_beyond()
        offset = self.offset - len(self._waiting)
        for piece in pieces:
            write_all(self._descriptor, piece, offset)
            if len(piece) > _SMALL:
                begin_to_sync(self._descriptor, offset, len(piece))
            offset += len(piece)

    def _drop_beyond(self) -> None:
        """Drop what an earlier request wrote beyond the bytes that were acknowledged."""
        if not self._cut:
            os.ftruncate(self._descriptor, self.offset - len(self._waiting))
            self._cut = True

    async def drop_beyond(self, offset: int) -> None:
        self._waiting = b""
        await self._driver.in_thread("upload", self._key, lambda: os.ftruncate(self._descriptor, offset))

    async def suspend(self) -> bytes:
        if self._waiting:
            await self._driver.in_thread("upload", self._key, lambda: self._append(self._waiting))
            self._waiting = b""
        else:
            await trio.lowlevel.checkpoint()
        return self._key.encode()

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        path = self._driver.path_of(destination)

        def place() -> None:
            self._append(self._waiting)
            self._waiting = b""
            file = _Ready(self._descriptor, self._path, destination, path, condition)
            self._driver.place([file], durable=True)

        await self._driver.in_thread("upload", destination, place)

    async def commit_between(
        self,
        driver: Driver,
        destination: str,
        *,
        before: Callable[[bytes], Sequence[tuple[str, bytes]]] | None = None,
        after: Sequence[tuple[str, bytes]] = (),
        drop: str = "",
    ) -> None:
        if driver is not self._driver:
            await super().commit_between(driver, destination, before=before, after=after, drop=drop)
            return
        path = self._driver.path_of(destination)
        first: Sequence[tuple[str, bytes]] = () if before is None else before(self._key.encode())

        def step() -> None:
            self._append(self._waiting)
            self._waiting = b""
            self._driver.put_all(first, durable=False)
            with ExitStack() as kept:
                files = [_Ready(self._descriptor, self._path, destination, path)]
                files += [kept.enter_context(self._driver.written(*each)) for each in after]
                self._driver.place(files, durable=True, drop=drop)

        await self._driver.in_thread("upload", destination, step)

    async def abort(self) -> None:
        def remove() -> None:
            with suppress(FileNotFoundError):
                os.unlink(self._path)

        await self._driver.in_thread("upload", self._key, remove)


@lru_cache(_KNOWN_KEYS)
def _checked(key: str) -> str:
    """Return `key`, which is no name of the driver's own.

    Raises:
        KeyInvalid: it is no key, or one of the driver's own files.
    """
    check_key(key, driver=FilesystemDriver.name)
    if key.startswith(f"{_OWN}/") or key == _OWN:
        name = FilesystemDriver.name
        raise KeyInvalid("the driver keeps its own files there", driver=name, operation="stat", key=key)
    return key


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


def _stat(key: str, found: os.stat_result) -> Stat:
    if not stat_modes.S_ISREG(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "not a file")
    version = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
    return Stat(key, found.st_size, found.st_mtime, version)


def _is_at(held: os.stat_result, path: str) -> bool:
    try:
        return os.path.samestat(held, os.stat(path))
    except OSError:
        return False

"""A store on any filesystem that fsspec can open, by its URL.

fsspec's filesystems promise little, so this driver asks little of them: reading, writing a whole file, listing a folder,
removing a file, and renaming where that is one step. Each call runs in a thread, and only so many do at once; those of
asynchronous filesystems wait there for fsspec's own loop.

- **Absent or complete**: where a rename is one step, a file is written beside the store and renamed; elsewhere it is
  written in place, which most services that have objects show when it is closed.
- **Conditions** hold among the tasks of this process only; what that means is said once, when the store is opened.
"""

import itertools
import logging
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from io import BytesIO
from typing import IO, TYPE_CHECKING, Protocol, TypeVar, cast

import fsspec
import trio

from moorage import (
    Absent,
    Capabilities,
    Condition,
    ConditionFailed,
    ConfigurationError,
    Driver,
    DriverError,
    DriverVerb,
    Entry,
    KeyUnknown,
    Listing,
    RangeUnsatisfiable,
    Reader,
    Stat,
    StoreReadOnly,
    StoreUnavailable,
    Unchanged,
    check_key,
    hold_by_lease,
)

if TYPE_CHECKING:
    from . import FsspecOptions

_log = logging.getLogger("moorage.fsspec")

NAME = "fsspec"
_CHUNK = 1 << 20
_LOCKS = 256
_TEMPORARY = "moorage/tmp/"

_RENAMES = frozenset({"file", "local", "sftp", "ssh"})
"""Protocols whose `mv` replaces in one step."""
_ONE_AT_A_TIME = frozenset({"sftp", "ssh"})
"""Protocols whose library loses the answers of threads that ask at the same time, which then wait for ever."""
_OWN_MEMORY = frozenset({"memory"})
_PARTS_AHEAD = 8

T = TypeVar("T")


class _Filesystem(Protocol):
    """What is used of a filesystem."""

    protocol: str | tuple[str, ...]

    def info(self, path: str) -> Mapping[str, object]: ...
    def ls(self, path: str, detail: bool) -> Sequence[Mapping[str, object]]: ...
    def open(self, path: str, mode: str) -> IO[bytes]: ...
    def cat_file(self, path: str) -> bytes: ...
    def makedirs(self, path: str, exist_ok: bool) -> None: ...
    def mv(self, path1: str, path2: str) -> None: ...
    def rm_file(self, path: str) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def invalidate_cache(self) -> None: ...


class FsspecDriver(Driver):
    """A store below a URL; make it with `open_url`."""

    name = NAME
    capabilities = Capabilities(create_only=False, cas=False, remote=True)

    def __init__(self, filesystem: _Filesystem, root: str, threads: int) -> None:
        """Keep files below `root` of `filesystem`."""
        self._filesystem = filesystem
        self._root = root.rstrip("/") + "/"
        protocols = filesystem.protocol
        named = {protocols} if isinstance(protocols, str) else set(protocols)
        self._renames = bool(_RENAMES & named)
        self._in_memory = bool(_OWN_MEMORY & named)
        self._threads = trio.CapacityLimiter(1 if _ONE_AT_A_TIME & named else threads)
        self._locks = [trio.Lock() for _ in range(_LOCKS)]
        self._changes = itertools.count(1)
        self._changed: dict[str, int] = {}
        self._folders: set[str] = set()

    @classmethod
    @asynccontextmanager
    async def open_url(cls, options: "FsspecOptions") -> AsyncGenerator["FsspecDriver"]:
        """Open what is at the URL; say once what cannot be relied upon there.

        Raises:
            ConfigurationError: there is no such protocol, its library is not installed, or an option is wrong.
            DriverError: it does not answer.
        """
        if options.maxthreads < 1:
            raise ConfigurationError("maxthreads: at least 1")
        filesystem, root = await trio.to_thread.run_sync(_open, options)
        driver = cls(filesystem, root, options.maxthreads)
        await driver._call("list", "", _attempt_list, filesystem, root)
        protocol = options.url.partition("://")[0]
        promises = [
            "of several clients that push one tag with a condition, or a fixed tag, at the same time more than one may win"
        ]
        if not driver._renames:
            promises.append("what is cut off while it is written may be seen in half")
        if driver._in_memory:
            promises.append("each worker has a store of its own, gone when it ends")
        _log.warning("%s cannot do everything in one step: %s", protocol, "; ".join(promises))
        yield driver

    # ---- calls

    async def _call(self, verb: DriverVerb, key: str, function: Callable[..., T], *args: object) -> T:
        """Return what `function` returns, run in a thread."""
        with self._meaning(verb, key):
            return await trio.to_thread.run_sync(partial(function, *args), limiter=self._threads)

    @contextmanager
    def _meaning(self, verb: DriverVerb, key: str) -> Generator[None]:
        """Turn whatever a filesystem raises into a DriverError."""
        try:
            yield
        except DriverError:
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise KeyUnknown("there is no such key", driver=NAME, operation=verb, key=key) from None
        except PermissionError as error:
            kind = StoreReadOnly if verb in {"write", "delete"} else StoreUnavailable
            raise kind(str(error), driver=NAME, operation=verb, key=key) from error
        except Exception as error:
            # Filesystems have errors of their own libraries.
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise StoreUnavailable(said, driver=NAME, operation=verb, key=key, ambiguous=True) from error

    def _at(self, key: str) -> str:
        return self._root + check_key(key, driver=NAME)

    def _stat(self, key: str) -> Stat:
        path = self._at(key)
        self._filesystem.invalidate_cache()
        found = self._filesystem.info(path)
        if found.get("type") == "directory":
            raise FileNotFoundError(path)
        return self._told(key, found)

    def _told(self, key: str, found: Mapping[str, object]) -> Stat:
        size, modified = _size(found), _modified(found)
        # Times are often whole seconds: what this process has changed it counts.
        return Stat(key, size, modified, f"{size}-{modified:.6f}-{self._changed.get(key, 0)}")

    # ---- the contract

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`."""
        return await self._call("stat", key, self._stat, key)

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        """Open the bytes from `start` up to `stop`."""

        def begin() -> tuple[Stat, IO[bytes]]:
            path = self._at(key)
            # Who opens a file in fsspec's memory gets the one that all others have open, with their position in it.
            file = BytesIO(self._filesystem.cat_file(path)) if self._in_memory else self._filesystem.open(path, "rb")
            try:
                stat = self._stat(key)
                if start <= stat.size:
                    file.seek(start)
            except BaseException:
                file.close()
                raise
            return stat, file

        stat, file = await self._call("open", key, begin)
        try:
            if start > stat.size:
                raise RangeUnsatisfiable("it ends before", driver=NAME, operation="open", key=key)
            left = (stat.size if stop is None else max(min(stop, stat.size), start)) - start
            async with aclosing(self._chunks(key, file, left)) as chunks:
                yield Reader(stat, chunks)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(file.close, limiter=self._threads)

    async def _chunks(self, key: str, file: IO[bytes], left: int) -> AsyncGenerator[bytes]:
        while left:
            chunk = await self._call("open", key, file.read, min(left, _CHUNK))
            if not chunk:
                raise StoreUnavailable(f"it ends {left} bytes early", driver=NAME, operation="open", key=key)
            left -= len(chunk)
            yield chunk

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> str | None:
        """Put a file at `key`."""
        del durable
        path = self._at(key)
        if isinstance(chunks, bytes):
            return await self._write(key, partial(self._put, key, path, chunks), condition)
        if not self._renames:
            # What is written in place must be whole before it is begun.
            return await self._write(
                key, partial(self._put, key, path, b"".join([chunk async for chunk in chunks])), condition
            )
        temporary = f"{self._root}{_TEMPORARY}{secrets.token_hex(12)}"
        try:
            await self._fill(key, temporary, chunks)
            return await self._write(key, partial(self._rename, key, temporary, path), condition)
        except BaseException:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._remove_quietly, temporary, limiter=self._threads)
            raise

    async def _write(self, key: str, write: Callable[[], str], condition: Condition | None) -> str:
        """Let `write` do it, if `condition` holds; no other task of this process comes between."""
        version = ""
        async with self._locks[hash(key) % _LOCKS]:
            await self._check(key, condition)
            with trio.CancelScope(shield=True):
                version = await self._call("write", key, write)
        return version

    async def _fill(self, key: str, path: str, chunks: AsyncIterable[bytes]) -> None:
        file = await self._call("write", key, self._create, path)
        try:
            async for chunk in chunks:
                await self._call("write", key, file.write, chunk)
        finally:
            with trio.CancelScope(shield=True):
                await self._call("write", key, file.close)

    def _create(self, path: str) -> IO[bytes]:
        folder = path.rpartition("/")[0]
        if folder not in self._folders:
            self._filesystem.makedirs(folder, exist_ok=True)
            self._folders.add(folder)
        try:
            return self._filesystem.open(path, "wb")
        except FileNotFoundError:
            # Removed by somebody else since.
            self._filesystem.makedirs(folder, exist_ok=True)
            return self._filesystem.open(path, "wb")

    def _put(self, key: str, path: str, data: bytes) -> str:
        target = f"{self._root}{_TEMPORARY}{secrets.token_hex(12)}" if self._renames else path
        try:
            with self._create(target) as file:
                file.write(data)
        except BaseException:
            if self._renames:
                self._remove_quietly(target)
            raise
        return self._rename(key, target, path) if self._renames else self._done(key)

    def _rename(self, key: str, temporary: str, path: str) -> str:
        folder = path.rpartition("/")[0]
        if folder not in self._folders:
            self._filesystem.makedirs(folder, exist_ok=True)
            self._folders.add(folder)
        try:
            self._filesystem.mv(temporary, path)
        except FileNotFoundError:
            self._filesystem.makedirs(folder, exist_ok=True)
            self._filesystem.mv(temporary, path)
        return self._done(key)

    def _done(self, key: str) -> str:
        self._changed[key] = next(self._changes)
        return self._stat(key).version

    def _remove_quietly(self, path: str) -> None:
        try:
            self._filesystem.rm_file(path)
        except Exception as error:  # noqa: BLE001 - it may never have been there
            _log.debug("%s stays: %s", path, error)

    async def _check(self, key: str, condition: Condition | None) -> None:
        if condition is None:
            await trio.lowlevel.checkpoint()
            return
        try:
            there = (await self.stat(key)).version
        except KeyUnknown:
            there = None
        wanted = None if isinstance(condition, Absent) else condition.version
        if there != wanted:
            raise ConditionFailed("it is not as it was seen", driver=NAME, operation="write", key=key)

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`."""
        del durable
        await trio.lowlevel.checkpoint()
        for key in keys:
            path = self._at(key)
            async with self._locks[hash(key) % _LOCKS]:
                await self._check(key, condition)
                try:
                    await self._call("delete", key, self._remove, path)
                except KeyUnknown:
                    continue
                finally:
                    self._changed.pop(key, None)
                if self._renames or self._in_memory:
                    await self._call("delete", key, self._prune, path)

    def _remove(self, path: str) -> None:
        try:
            self._filesystem.rm_file(path)
        except OSError:
            # Protocols differ in what they say of a folder, which is no key.
            if self._filesystem.info(path).get("type") == "directory":
                raise FileNotFoundError(path) from None
            raise

    def _prune(self, path: str) -> None:
        """Remove the folders above `path` that are empty now: a file may get the name of one."""
        folder = path.rpartition("/")[0]
        while len(folder) > len(self._root):
            try:
                self._filesystem.rmdir(folder)
            except Exception:  # noqa: BLE001 - it is not empty, or somebody else was first
                return
            self._folders.discard(folder)
            folder = folder.rpartition("/")[0]

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        """Try to be the only holder of `name`; two processes that ask in the same instant may both be."""
        async with hold_by_lease(self, name) as held:
            yield held

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        """Return a page of what lies below `prefix`."""
        await trio.lowlevel.checkpoint()
        found: list[Entry] = []
        async with aclosing(self._walk(prefix, after, folded=bool(delimiter))) as entries:
            async for entry in entries:
                if len(found) == limit:
                    return Listing(tuple(found), more=True)
                found.append(entry)
        return Listing(tuple(found), more=False)

    async def _walk(self, prefix: str, after: str, *, folded: bool) -> AsyncGenerator[Entry]:
        """Give what lies below the folder `prefix`, in byte order of the keys."""
        try:
            names = await self._call("list", prefix, self._names, prefix)
        except KeyUnknown:
            return
        for name, info in names:
            key = prefix + name
            if not name.endswith("/"):
                if key > after:
                    yield Entry(key, _size(info), _modified(info))
            elif folded:
                if key > after:
                    yield Entry(key)
            elif key > after or after.startswith(key):
                async with aclosing(self._walk(key, after, folded=False)) as below:
                    async for entry in below:
                        yield entry

    def _names(self, prefix: str) -> Sequence[tuple[str, Mapping[str, object]]]:
        """Return what a folder holds, folders with a slash at their end, in the order of the keys below."""
        self._filesystem.invalidate_cache()
        found: list[tuple[str, Mapping[str, object]]] = []
        where = (self._root + prefix).rstrip("/")
        for info in self._filesystem.ls(where, detail=True):
            if str(info["name"]).strip("/") == where.strip("/"):
                # It is no folder but a file.
                continue
            name = str(info["name"]).rstrip("/").rpartition("/")[2]
            folder = info.get("type") == "directory"
            if prefix == "moorage/" and folder and name == "tmp":
                continue
            found.append((f"{name}/" if folder else name, info))
        return sorted(found, key=lambda pair: pair[0])


def _size(info: Mapping[str, object]) -> int:
    size = info.get("size")
    return size if isinstance(size, int) else 0


def _modified(info: Mapping[str, object]) -> float:
    """Return when a file was written, which each filesystem says under another name, or 0."""
    for name in ("mtime", "modified", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0


def _attempt_list(filesystem: _Filesystem, root: str) -> None:
    """Prove that the filesystem answers; an empty store need not be there yet."""
    try:
        filesystem.ls(root, detail=True)
    except FileNotFoundError:
        filesystem.makedirs(root, exist_ok=True)


def _open(options: "FsspecOptions") -> tuple[_Filesystem, str]:
    """Open the filesystem of a URL; blocking.

    Raises:
        ConfigurationError: that cannot be done.
    """
    if "://" not in options.url and "::" not in options.url:
        raise ConfigurationError("url: is no URL; a protocol is needed, such as sftp://")
    opened = cast("Callable[..., tuple[_Filesystem, str]]", getattr(fsspec.core, "url_to_fs"))  # noqa: B009 - untyped
    try:
        filesystem, root = opened(options.url, skip_instance_cache=True, **options.options)
    except ImportError as error:
        raise ConfigurationError(f"url: {str(error).partition(chr(10))[0]}") from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"url, options: {str(error).partition(chr(10))[0]}") from error
    except OSError as error:
        raise StoreUnavailable(str(error), driver=NAME, operation="list") from error
    _send_at_once(filesystem)
    _list_in_few_requests(filesystem)
    return filesystem, root


def _send_at_once(filesystem: _Filesystem) -> None:
    """Let nothing wait in the socket of an SSH connection; where there is none, do nothing.

    A request of SFTP is some small pieces to send. The system keeps the second until the first was acknowledged, which the
    other side puts off for 40 ms: 64 MiB in requests of 32 KiB would take over a minute.
    """
    transport = getattr(getattr(filesystem, "client", None), "get_transport", lambda: None)()
    connection = getattr(transport, "sock", None)
    if isinstance(connection, socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _list_in_few_requests(filesystem: _Filesystem) -> None:
    """Let a list of a folder over SFTP ask for a few parts of it ahead; where it is not SFTP, do nothing.

    Each answer has about a hundred names, the last says that there are no more, and most folders of a store have one name.
    Its library asks 50 times before it looks at an answer, which is most of the time that a list takes.
    """
    client = getattr(filesystem, "ftp", None)
    listed = getattr(client, "listdir_iter", None)
    if listed is not None:
        setattr(client, "listdir_iter", partial(listed, read_aheads=_PARTS_AHEAD))  # noqa: B010 - untyped

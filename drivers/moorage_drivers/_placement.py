"""How files get their names below a root, and lose them: whole, durable, and one writer of a key at a time.

All of this is synchronous and runs in threads. See `filesystem` for what is promised.
"""

import errno
import fcntl
import itertools
import logging
import os
import secrets
import stat as stat_modes
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TypeVar

from moorage import (
    Absent,
    Condition,
    ConditionFailed,
    DriverVerb,
    KeyInvalid,
    Stat,
    StoreUnavailable,
    Unchanged,
    check_key,
)

from ._file_errors import NAME, told
from ._files import begin_to_sync, remove_if_empty, remove_tree, sync_directory, write_all

T = TypeVar("T")

_log = logging.getLogger("moorage.filesystem")

OWN = "moorage"
"""The folder below the root that is the driver's own."""

_LOCKS = 256
_STALE_SECONDS = 24 * 3600
_TRIES = 100
_KNOWN_DIRECTORIES = 20_000
_KNOWN_KEYS = 8192
_PLACED_TOGETHER = 32
_FRESH = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(slots=True)
class Ready:
    """A file that has its content, and shall have the name of `key`.

    Attributes:
        placed: whether it has it; if not, the file is still at `temporary`.
    """

    descriptor: int
    temporary: str
    key: str
    path: str
    condition: Condition | None = None
    placed: bool = False


class Placement:
    """Gives names to files below a root, and takes them away."""

    def __init__(self, root: str) -> None:
        """Place files below `root`; nothing is done to it yet."""
        self.root = root
        self.locks = f"{root}/{OWN}/locks"
        self._temporary = f"{root}/{OWN}/tmp"  # noqa: S108 - the store's own, not the system's
        # No other process has such names, and none that was before.
        self._mark = secrets.token_hex(8)
        self._numbers = itertools.count()
        # Directories that are on disk, with the inode they had then: one that was made anew has another.
        self._on_disk: dict[str, int] = {}

    def prepare(self) -> None:
        """Make the root and what the driver has there of its own. Raises OSError: there is no root and none can be made."""
        os.makedirs(self.root, exist_ok=True)
        try:
            self.make_own()
            # Made while there is room: on a full disk it must still be possible to delete.
            for stripe in range(_LOCKS):
                os.close(os.open(f"{self.locks}/{stripe:02x}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
            now = time.time()
            with os.scandir(self._temporary) as left:
                for entry in left:
                    if now - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
                        os.unlink(entry.path)
            probe = self.open_temporary("probe")
            try:
                write_all(probe.descriptor, b"probe")
            finally:
                self.discard([probe])
        except OSError as error:
            _log.warning("%s cannot be written to: %s; only pulls will work", self.root, error.strerror or error)

    def make_own(self) -> None:
        """Make the driver's own folders."""
        os.makedirs(self._temporary, exist_ok=True)
        os.makedirs(self.locks, exist_ok=True)

    def _in_own(self, step: Callable[[], T]) -> T:
        """Return what `step` does in the driver's own folders, which are made again if somebody has removed them."""
        try:
            return step()
        except FileNotFoundError:
            self.make_own()
            return step()

    # ---- files without a name

    def _temporary_name(self) -> str:
        """Return a path for a file that has no key yet; nothing lies there."""
        return f"{self._temporary}/{self._mark}-{next(self._numbers):x}"

    def ready(self, descriptor: int, temporary: str, key: str, condition: Condition | None = None) -> Ready:
        """Return the file that is open as `descriptor` and lies at `temporary`, to be placed at `key`."""
        return Ready(descriptor, temporary, key, f"{self.root}/{key}", condition)

    def open_temporary(self, key: str, condition: Condition | None = None) -> Ready:
        """Open a fresh file for `key`; it must be discarded in the end."""
        temporary = self._temporary_name()
        descriptor = self._in_own(partial(os.open, temporary, _FRESH, 0o666))
        return self.ready(descriptor, temporary, key, condition)

    def write_temporary(self, key: str, data: bytes, condition: Condition | None = None) -> Ready:
        """Write `data` to a fresh file for `key`; it must be discarded in the end."""
        file = told("write", key, partial(self.open_temporary, checked(key), condition))
        try:
            told("write", key, partial(write_all, file.descriptor, data))
        except BaseException:
            self.discard([file])
            raise
        return file

    @staticmethod
    def discard(files: Sequence[Ready]) -> None:
        """Close `files`, and remove those that have not got their names."""
        for file in files:
            os.close(file.descriptor)
        for file in files:
            if not file.placed:
                with suppress(FileNotFoundError):
                    os.unlink(file.temporary)

    # ---- names

    def put_all(self, objects: Sequence[tuple[str, bytes]], *, durable: bool) -> None:
        """Put small objects one after the other.

        Raises:
            DriverError: one cannot be put, or is not allowed; none after it was, those before it may be there.
        """
        for first in range(0, len(objects), _PLACED_TOGETHER):
            files: list[Ready] = []
            try:
                files.extend(self.write_temporary(*each) for each in objects[first : first + _PLACED_TOGETHER])
                self.place(files, durable=durable)
            finally:
                self.discard(files)

    def put(self, key: str, data: bytes, condition: Condition | None, *, durable: bool) -> None:
        """Put one small object."""
        file = self.write_temporary(key, data, condition)
        try:
            self.place([file], durable=durable)
        finally:
            self.discard([file])

    def place(self, files: Sequence[Ready], *, durable: bool, drop: str = "") -> None:
        """Give each of `files` its name, one after the other, then remove what lies below the folder `drop`."""
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
                told("write", file.key, partial(os.fdatasync, file.descriptor))
        for file in files:
            told("write", file.key, partial(self._name, file))
        if drop:
            # What is above stays, also when it is empty: something is put there again soon.
            remove_tree(drop)
        if durable:
            for directory in dict.fromkeys(os.path.dirname(file.path) for file in files):
                self._sync_directories(directory)

    def _name(self, file: Ready) -> None:
        directory = os.path.dirname(file.path)
        if directory not in self._on_disk:
            # Most of what is put has a directory of its own, which is not there yet.
            self._make_directory(directory)
        for _ in range(_TRIES):
            try:
                self._rename(file)
            except FileNotFoundError:
                if not os.path.lexists(file.temporary):
                    raise StoreUnavailable(
                        "the file was taken away", driver=NAME, operation="write", key=file.key
                    ) from None
                # No directory after all, or somebody has just removed it as empty.
                self._make_directory(directory)
            except IsADirectoryError:
                if not remove_if_empty(file.path):
                    raise
            else:
                return
        raise _vanishing("write", file.key)

    def _rename(self, file: Ready) -> None:
        lock = self._lock(file.key)
        try:
            if file.condition is not None:
                _check(file.condition, file.key, file.path, "write")
            os.rename(file.temporary, file.path)
            file.placed = True
        finally:
            os.close(lock)

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

    def create(self, key: str) -> int:
        """Return a descriptor of a fresh, empty file at `key`, which nobody else makes at the same time.

        Raises:
            StoreUnavailable: others remove its directory as often as it is made.
        """
        path = f"{self.root}/{key}"
        for _ in range(_TRIES):
            self._make_directory(os.path.dirname(path))
            with suppress(FileNotFoundError):
                return os.open(path, _FRESH, 0o666)
        raise _vanishing("upload", key)

    def _lock(self, key: str) -> int:
        """Return a descriptor that has, until it is closed, the lock that all writers of `key` take, in all processes.

        To be held for microseconds.
        """
        name = f"{self.locks}/{zlib.crc32(key.encode()) % _LOCKS:02x}"
        descriptor = self._in_own(partial(os.open, name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

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

    def link(self, source: str, destination: str, condition: Condition | None) -> None:
        """Give the file of the key `source` the name of `destination` too."""
        temporary = self._temporary_name()
        self._in_own(partial(os.link, f"{self.root}/{source}", temporary))
        try:
            descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.place([self.ready(descriptor, temporary, destination, condition)], durable=True)
            finally:
                os.close(descriptor)
        finally:
            # A rename between two names of one file does nothing and leaves both.
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    # ---- removing

    def remove(self, keys: Sequence[str], condition: Unchanged | None, *, durable: bool) -> None:
        """Remove each of `keys`, and directories that are empty then."""
        for key in keys:
            path = f"{self.root}/{key}"
            try:
                lock = self._lock(key)
                try:
                    if condition is not None:
                        _check(condition, key, path, "delete")
                    os.unlink(path)
                finally:
                    os.close(lock)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue
            left = self._prune(os.path.dirname(path))
            if durable:
                sync_directory(left)

    def remove_below(self, folder: str, *, durable: bool) -> None:
        """Remove all that lies below the path `folder`, and directories that are empty then."""
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


def _vanishing(operation: DriverVerb, key: str) -> StoreUnavailable:
    return StoreUnavailable("its directory keeps vanishing", driver=NAME, operation=operation, key=key)


def _check(condition: Condition, key: str, path: str, operation: DriverVerb) -> None:
    try:
        found = stat_of(key, os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        found = None
    match condition:
        case Absent() if found is not None:
            raise ConditionFailed("the key exists", driver=NAME, operation=operation, key=key)
        case Unchanged(version) if found is None or found.version != version:
            raise ConditionFailed("not of that version", driver=NAME, operation=operation, key=key)
        case _:
            return


@lru_cache(_KNOWN_KEYS)
def checked(key: str) -> str:
    """Return `key`, which is no name of the driver's own.

    Raises:
        KeyInvalid: it is no key, or one of the driver's own files.
    """
    check_key(key, driver=NAME)
    if key.startswith(f"{OWN}/") or key == OWN:
        raise KeyInvalid("the driver keeps its own files there", driver=NAME, operation="stat", key=key)
    return key


def stat_of(key: str, found: os.stat_result) -> Stat:
    """Return what is known of `key`, of whose file the system said `found`. Raises OSError: it is no file."""
    if not stat_modes.S_ISREG(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "not a file")
    version = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
    return Stat(key, found.st_size, found.st_mtime, version)

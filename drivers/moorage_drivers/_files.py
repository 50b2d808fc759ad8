"""Steps on files and directories, as a system has them: synchronous, plain paths, errors of the system's own.

What others do to the same tree meanwhile, another process of ours for instance, is expected and no error.
"""

import ctypes
import os
import re
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Final, cast

_COMPONENT = re.compile(r"[A-Za-z0-9._:@+=-]{1,255}", re.ASCII)
_TRIES = 100

_SYNC_FILE_RANGE_WRITE: Final = 2
# Linux's; Python has no name for it, and other systems nothing like it.
_sync_file_range: Final = cast("Callable[..., int] | None", getattr(ctypes.CDLL(None), "sync_file_range", None))


def write_all(descriptor: int, data: bytes, offset: int | None = None) -> None:
    """Write all of `data`, at `offset` or where the file stands."""
    view = memoryview(data)
    while view:
        count = os.write(descriptor, view) if offset is None else os.pwrite(descriptor, view, offset)
        view = view[count:]
        if offset is not None:
            offset += count


def begin_to_sync(descriptor: int, offset: int = 0, count: int = 0) -> None:
    """Have a system begin to put bytes of a file on disk, where it can: a sync waits for the less when it comes.

    They are `count` bytes from `offset`, or, with 0, all from there.

    Nothing is promised of these bytes, and nothing said if they cannot be written: the sync does.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(count), _SYNC_FILE_RANGE_WRITE)


def sync_directory(directory: str) -> None:
    """Put the names in `directory` on disk, if it is still there."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        # Removed meanwhile as empty, so what was put there has been deleted since.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_if_empty(directory: str) -> bool:
    """Remove `directory` if that can be; return whether it is gone."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        # Not empty, a mount point, a symbolic link, or above it nothing may be changed: it stays.
        return False
    return True


def remove_tree(folder: str) -> None:
    """Remove `folder` and all below it; what others add or remove meanwhile is no error."""
    for _ in range(_TRIES):
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        remove_tree(entry.path)
                    else:
                        with suppress(FileNotFoundError):
                            os.unlink(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            return
        if remove_if_empty(folder):
            return


def names_in(folder: str, *, skip: str) -> list[str]:
    """Return what is right in `folder`, but for `skip`, in byte order, each directory with a slash.

    That is how directories sort among keys. What others put there under a name that no key may have is left out.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(
                entry.name + "/" if entry.is_dir() else entry.name
                for entry in found
                if entry.name != skip and _COMPONENT.fullmatch(entry.name)
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def keys_below(folder: str, prefix: str, after: str, *, skip: str) -> Generator[str]:
    """Give the keys below `folder`, whose own key is `prefix`, in byte order after `after`."""
    for name in names_in(folder, skip=skip):
        key = prefix + name
        if not name.endswith("/"):
            if key > after:
                yield key
        elif key > after or after.startswith(key):
            yield from keys_below(f"{folder}/{name[:-1]}", key, after, skip="")

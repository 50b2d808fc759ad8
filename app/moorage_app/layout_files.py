"""The files of an image layout that somebody hands over: regular ones only, in a folder or in a tar."""

import os
import stat
import tarfile
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Protocol


class LayoutFiles(Protocol):
    """Where the files of a layout lie; used in one thread at a time."""

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Open a regular file.

        Raises:
            OSError: there is none, or it cannot be read.
        """
        ...


class Folder:
    """A layout that is a folder."""

    def __init__(self, root: Path) -> None:
        """Read below `root`."""
        self._root = root

    @contextmanager
    def open(self, name: str) -> Generator[IO[bytes]]:
        """Open a regular file of the folder, also by a link."""
        with open_regular(self._root / name) as file:
            yield file


class Archive:
    """A layout that is a tar."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        """Read from `archive`, whose list of members is read at once.

        Raises:
            tarfile.TarError: it is damaged.
        """
        self._archive = archive
        # Links and sparse files are no way in which layouts are written, and both can be made to go on for ever.
        self._members = {
            member.name.removeprefix("./"): member
            for member in archive
            if member.isreg() and not member.issparse()  # of several with one name the last counts
        }

    @contextmanager
    def open(self, name: str) -> Generator[IO[bytes]]:
        """Open a regular file of the archive."""
        member = self._members.get(name)
        file = None if member is None else self._archive.extractfile(member)
        if file is None:
            raise FileNotFoundError(2, "No such file in the archive", name)
        with file:
            yield file


@contextmanager
def open_regular(path: Path) -> Generator[IO[bytes]]:
    """Open a regular file to read; nothing else, since a pipe or a device may keep its reader for ever.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(22, "Not a regular file", str(path))
    with os.fdopen(descriptor, "rb") as file:
        yield file


def is_tar(path: Path) -> bool:
    """Return whether the file at `path` begins as a tar does.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        head = file.read(512)
    return head[257:262] == b"ustar"

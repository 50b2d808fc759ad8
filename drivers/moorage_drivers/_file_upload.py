"""An upload in a file that grows, which whoever works on it has locked."""

import fcntl
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from moorage import Condition, Driver, Upload, UploadBusy, UploadGone

from ._file_errors import NAME, fail, told
from ._files import begin_to_sync, write_all
from ._placement import Ready, checked

if TYPE_CHECKING:
    from .filesystem import FilesystemDriver

_SMALL = 64 << 10


class FileUpload(Upload):
    """An upload in a file; the file's name is the token. It must be closed in the end."""

    def __init__(self, driver: "FilesystemDriver", key: str) -> None:
        """Begin an upload in the file of `key`, which is made when it has something to keep.

        Raises:
            KeyInvalid: it can be no key.
        """
        self.offset = 0
        self._driver = driver
        self._placement = driver.placement
        self._key = key
        self._path = driver.path_of(key)
        self._descriptor: int | None = None
        self._cut = False
        # What is small waits for what comes next, which may be the commit: then one step in a thread does both.
        self._waiting = b""

    def reopen(self, offset: int) -> None:
        """Go on at `offset` with what the file has.

        Raises:
            UploadGone: there is no such file, or it has fewer bytes.
            UploadBusy: somebody has it.
        """
        try:
            self._descriptor = descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise UploadGone("no such upload", driver=NAME, operation="upload", key=self._key) from None
        except OSError as error:
            fail(error, "upload", self._key)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UploadBusy("another holder has it", driver=NAME, operation="upload", key=self._key) from None
        held = os.fstat(descriptor)
        # Whoever held it before may have committed or removed it; then this descriptor is of no upload.
        if not held.st_nlink or not _is_at(held, self._path) or held.st_size < offset:
            raise UploadGone("it ended, or is shorter", driver=NAME, operation="upload", key=self._key)
        self.offset = offset

    def close(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)

    async def write(self, data: bytes) -> None:
        if not self._waiting and len(data) <= _SMALL:
            await trio.lowlevel.checkpoint()
            self._waiting = data
        else:
            await self._driver.in_thread("upload", self._key, lambda: self._append(data))
        self.offset += len(data)

    @property
    def can_write_from_thread(self) -> bool:
        return True

    def write_from_thread(self, data: bytes) -> None:
        told("upload", self._key, partial(self._append, data))
        self.offset += len(data)

    def _append(self, data: bytes = b"") -> None:
        """Write what waits, which is counted already, and `data` after it. Runs in a thread."""
        descriptor = self._opened()
        offset = self.offset - len(self._waiting)
        if not self._cut:
            # What an earlier request wrote beyond the bytes that were acknowledged.
            os.ftruncate(descriptor, offset)
            self._cut = True
        for piece in (self._waiting, data):
            write_all(descriptor, piece, offset)
            if len(piece) > _SMALL:
                begin_to_sync(descriptor, offset, len(piece))
            offset += len(piece)
        self._waiting = b""

    def _opened(self) -> int:
        """Return the file's descriptor; of a new upload the file is made. Runs in a thread."""
        if self._descriptor is None:
            self._descriptor = self._placement.create(self._key)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._cut = True
        return self._descriptor

    async def drop_beyond(self, offset: int) -> None:
        self._waiting = b""
        await self._driver.in_thread("upload", self._key, lambda: os.ftruncate(self._opened(), offset))

    async def suspend(self) -> bytes:
        if self._waiting or self._descriptor is None:
            await self._driver.in_thread("upload", self._key, self._append)
        else:
            await trio.lowlevel.checkpoint()
        return self._key.encode()

    async def suspend_with(self, driver: Driver, beside: Callable[[bytes], Sequence[tuple[str, bytes]]]) -> None:
        if driver is not self._driver:
            await super().suspend_with(driver, beside)
            return

        def step() -> None:
            self._append()
            self._placement.put_all(objects, durable=False)

        objects = beside(self._key.encode())
        await self._driver.in_thread("upload", self._key, step)

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        key = checked(destination)

        def step() -> None:
            self._append()
            self._placement.place([self._ready(key, condition)], durable=True)

        await self._driver.in_thread("upload", destination, step)

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
        key = checked(destination)
        folder = self._driver.path_of(drop.rstrip("/")) if drop else ""
        first: Sequence[tuple[str, bytes]] = () if before is None else before(self._key.encode())

        def step() -> None:
            self._append()
            self._placement.put_all(first, durable=False)
            links: list[Ready] = []
            try:
                links.extend(self._placement.write_temporary(*each) for each in after)
                self._placement.place([self._ready(key), *links], durable=True, drop=folder)
            finally:
                self._placement.discard(links)

        await self._driver.in_thread("upload", destination, step)

    def _ready(self, key: str, condition: Condition | None = None) -> Ready:
        return self._placement.ready(self._opened(), self._path, key, condition)

    async def abort(self) -> None:
        def remove() -> None:
            with suppress(FileNotFoundError):
                os.unlink(self._path)

        await self._driver.in_thread("upload", self._key, remove)


def _is_at(held: os.stat_result, path: str) -> bool:
    try:
        return os.path.samestat(held, os.stat(path))
    except OSError:
        return False

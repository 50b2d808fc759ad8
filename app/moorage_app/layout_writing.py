"""Writing an OCI image layout, as a folder that grows or as a tar that is made anew.

Answers for the OCI image spec, "Image Layout". Rules this file keeps:

- Files of a folder are written beside and renamed when they are whole, `index.json` last; a tar is renamed as a whole.
- What is in a folder is kept: other entries of `index.json`, whatever they say, and blobs of the right size.
- One copy at a time writes to a layout.
"""

import fcntl
import io
import os
import shutil
import stat
import tarfile
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

import trio

from moorage import MANIFEST_LIMIT, Blob, DigestInvalid, Manifest, Tag, open_hasher

from .image_copy import Count, Image, Item, Name
from .image_layout import LayoutInvalid, blob_path, check_marker
from .layout_files import Folder, is_tar
from .layout_index import LayoutIndex

_MARKER = b'{"imageLayoutVersion":"1.0.0"}'
_PARTIAL = ".moorage-partial"
_BLOCK = 512


class LayoutFolder:
    """A layout that is a folder, as a place for images."""

    scoped = False

    def __init__(self, root: Path, index: LayoutIndex) -> None:
        """Write below `root`, whose `index.json` is `index`."""
        self._root = root
        self.index = index

    async def has(self, item: Item) -> bool:
        """Return whether there is a file for `item`; files appear whole, so its size tells."""

        def look() -> bool:
            try:
                found = (self._root / blob_path(item.digest)).stat()
            except OSError:
                return False
            return stat.S_ISREG(found.st_mode) and found.st_size == item.size

        return await trio.to_thread.run_sync(look)

    async def lacks(self, image: Image) -> Sequence[Tag | None]:
        """Return which names of `image` are not in `index.json`, or mean something else."""
        return self.index.lacks(image)

    async def write_blob(self, item: Item, blob: Blob, count: Count) -> None:
        """Write a blob.

        Raises:
            DigestInvalid: it has another digest.
        """
        with self._partial(item.digest) as file:
            await _write_verified(item, blob, count, file)
            await trio.to_thread.run_sync(self._place, file, blob_path(item.digest))

    async def write_manifest(self, item: Item, manifest: Manifest) -> None:
        """Write a manifest."""
        await trio.to_thread.run_sync(self._write, blob_path(item.digest), manifest.data)

    async def name(self, names: Sequence[Name]) -> None:
        """Write `index.json`."""
        if names or not (self._root / "index.json").exists():
            await trio.to_thread.run_sync(self._write, "index.json", self.index.encode(names))

    def begin(self) -> None:
        """Make the folder, and take away what a copy that was cut off left there."""
        shutil.rmtree(self._root / _PARTIAL, ignore_errors=True)
        (self._root / _PARTIAL).mkdir()
        if not (self._root / "oci-layout").exists():
            self._write("oci-layout", _MARKER)

    def end(self) -> None:
        """Take away what is of no use any more."""
        shutil.rmtree(self._root / _PARTIAL, ignore_errors=True)

    def _write(self, name: str, data: bytes) -> None:
        with self._partial(Path(name).name) as file:
            file.write(data)
            self._place(file, name)

    def _place(self, file: IO[bytes], name: str) -> None:
        file.flush()
        os.fsync(file.fileno())
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(file.name).replace(target)

    @contextmanager
    def _partial(self, name: str) -> Generator[IO[bytes]]:
        path = self._root / _PARTIAL / name.replace(":", "-")
        with path.open("wb") as file:
            try:
                yield file
            finally:
                path.unlink(missing_ok=True)


class LayoutTar:
    """A layout that is a tar, as a place for images: written in one order, with nothing of the machine in it."""

    scoped = False

    def __init__(self, file: IO[bytes], index: LayoutIndex) -> None:
        """Write to `file`, which is empty and can be sought in."""
        self._file = file
        self._folders: set[str] = set()
        self.index = index
        self.is_whole = False

    async def has(self, item: Item) -> bool:
        """Return whether `item` is there: never, since a tar is made anew."""
        del item
        await trio.lowlevel.checkpoint()
        return False

    async def lacks(self, image: Image) -> Sequence[Tag | None]:
        """Return the names of `image`."""
        return self.index.lacks(image)

    async def write_blob(self, item: Item, blob: Blob, count: Count) -> None:
        """Write a blob.

        Raises:
            DigestInvalid: it has another digest; nothing of it stays.
        """
        before = self._file.tell()
        self._head(blob_path(item.digest), item.size)
        try:
            await _write_verified(item, blob, count, self._file)
        except BaseException:
            self._file.seek(before)
            self._file.truncate()
            raise
        self._pad(item.size)

    async def write_manifest(self, item: Item, manifest: Manifest) -> None:
        """Write a manifest."""
        self._add(blob_path(item.digest), manifest.data)
        await trio.lowlevel.checkpoint()

    async def name(self, names: Sequence[Name]) -> None:
        """Write `index.json` and the end, unless there is nothing to name."""
        await trio.lowlevel.checkpoint()
        if names:
            self._add("index.json", self.index.encode(names))
            self._file.write(bytes(2 * _BLOCK))
            self._file.write(bytes(-self._file.tell() % tarfile.RECORDSIZE))
            self.is_whole = True

    def begin(self) -> None:
        """Write what each layout has."""
        self._add("oci-layout", _MARKER)

    def _add(self, name: str, data: bytes) -> None:
        self._head(name, len(data))
        self._file.write(data)
        self._pad(len(data))

    def _head(self, name: str, size: int) -> None:
        for parent in reversed(Path(name).parents[:-1]):
            if str(parent) not in self._folders:
                self._folders.add(str(parent))
                folder = tarfile.TarInfo(str(parent))
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                self._file.write(folder.tobuf(tarfile.PAX_FORMAT))
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o644
        self._file.write(member.tobuf(tarfile.PAX_FORMAT))

    def _pad(self, size: int) -> None:
        self._file.write(bytes(-size % _BLOCK))


async def _write_verified(item: Item, blob: Blob, count: Count, file: IO[bytes]) -> None:
    """Write the content of `blob` to `file`.

    Raises:
        DigestInvalid: it is not what `item` says.
    """
    hasher = open_hasher(item.digest.algorithm)
    size = 0

    def take(chunk: bytes) -> None:
        hasher.update(chunk)
        file.write(chunk)

    async with blob.open(0, None) as reader, aclosing(count(aiter(reader))) as chunks:
        async for chunk in chunks:
            size += len(chunk)
            await trio.to_thread.run_sync(take, chunk)
    if hasher.digest() != item.digest or size != item.size:
        raise DigestInvalid(f"its {size} bytes do not have the digest that names them")


# ---- opening


@asynccontextmanager
async def open_layout_to_write(path: Path, *, dry_run: bool) -> AsyncGenerator[LayoutFolder | LayoutTar]:
    """Open the layout at `path` to write to it; a path that ends in `.tar` is a tar. `dry_run`: only to compare.

    Raises:
        LayoutInvalid: there is something else, or somebody writes to it.
        OSError: it cannot be made.
    """
    if path.suffix == ".tar":
        async with _open_tar(path, dry_run=dry_run) as tar:
            yield tar
    else:
        async with _open_folder(path, dry_run=dry_run) as folder:
            yield folder


@asynccontextmanager
async def _open_folder(root: Path, *, dry_run: bool) -> AsyncGenerator[LayoutFolder]:
    index = await trio.to_thread.run_sync(_read_folder, root)
    if dry_run:
        yield LayoutFolder(root, index)
        return
    await trio.Path(root).mkdir(parents=True, exist_ok=True)
    lock = os.open(root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        _hold(lock, root)
        # Somebody may have written until now.
        folder = LayoutFolder(root, await trio.to_thread.run_sync(_read_folder, root))
        folder.begin()
        yield folder
        folder.end()
    finally:
        os.close(lock)


def _read_folder(root: Path) -> LayoutIndex:
    """Return what the `index.json` of a folder says; of one that is empty or not there, nothing."""
    try:
        names = {entry.name for entry in root.iterdir()} - {_PARTIAL}
    except FileNotFoundError:
        names = set[str]()
    except NotADirectoryError:
        raise LayoutInvalid(f"{root}: not a folder; a layout is a folder, or a tar whose name ends in .tar") from None
    if not names:
        return LayoutIndex(None)
    if "oci-layout" not in names:
        raise LayoutInvalid(f"{root}: there is something in it, and no layout; name a new folder, or an empty one")
    files = Folder(root)
    with files.open("oci-layout") as file:
        check_marker(file.read(MANIFEST_LIMIT))
    if "index.json" not in names:
        return LayoutIndex(None)
    with files.open("index.json") as file:
        return LayoutIndex(file.read(MANIFEST_LIMIT + 1))


@asynccontextmanager
async def _open_tar(path: Path, *, dry_run: bool) -> AsyncGenerator[LayoutTar]:
    _check_tar(path)
    if dry_run:
        yield LayoutTar(io.BytesIO(), LayoutIndex(None))
        return
    await trio.Path(path.parent).mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(partial, flags, 0o666), "w+b") as file:
        _hold(file.fileno(), path)
        if not partial.exists() or not os.path.samestat(partial.stat(), os.fstat(file.fileno())):
            raise _busy(path)
        file.truncate(0)
        tar = LayoutTar(file, LayoutIndex(None))
        try:
            tar.begin()
            yield tar
            if tar.is_whole:
                file.flush()
                await trio.to_thread.run_sync(os.fsync, file.fileno())
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _check_tar(path: Path) -> None:
    """Refuse to write over what is no tar."""
    if path.exists() and not (path.is_file() and is_tar(path)):
        raise LayoutInvalid(f"{path}: there is something of that name, and it is no tar")


def _hold(descriptor: int, path: Path) -> None:
    """Be the only one who writes there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _busy(path) from None
    except OSError:
        # There are shared folders that cannot be locked; then nobody is kept away.
        return


def _busy(path: Path) -> LayoutInvalid:
    return LayoutInvalid(f"{path}: another copy is writing to it")

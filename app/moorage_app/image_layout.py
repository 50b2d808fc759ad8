"""An OCI image layout, as a folder or a tar of one, that answers pulls: what `moorage validate` judges before a push.

Answers for the OCI image spec, "Image Layout". A layout is what somebody hands over, so nothing in it is believed: names
of files are made of checked digests only, what is no regular file is not opened, and content is hashed before it counts
as being there.
"""

import hashlib
import os
import tarfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import msgspec
import trio

from moorage import (
    BLOB_MEDIA_TYPE,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    MANIFEST_LIMIT,
    OCI_INDEX,
    OCI_MANIFEST,
    Blob,
    BlobUnknown,
    Descriptor,
    Digest,
    DigestInvalid,
    ListReferrers,
    ListTags,
    Manifest,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    Operation,
    PullBlob,
    PullManifest,
    R,
    Reader,
    ReferrerList,
    RepositoryName,
    Stat,
    Tag,
    TagInvalid,
    TagList,
    Unsupported,
    parse_pushed,
    parse_stored,
)

from .layout_files import Archive, Folder, LayoutFiles, open_regular

T = TypeVar("T")

REFERENCE_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"
"""The annotation in which containerd, docker and buildkit write a whole reference, beside a tag in the other one."""

_MANIFEST_TYPES = INDEX_TYPES | {OCI_MANIFEST, DOCKER_MANIFEST}
_HASHED = frozenset({"sha256", "sha384", "sha512"})
_CHUNK = 1 << 20
_MARKER_LIMIT = 4096


class LayoutInvalid(Exception):
    """This is no layout, or one that is damaged; its text is one sentence."""


class _Marker(msgspec.Struct, frozen=True):
    """The file `oci-layout`."""

    version: str = msgspec.field(name="imageLayoutVersion")


class Named(NamedTuple):
    """A manifest of a layout.

    Attributes:
        descriptor: what names it.
        tag: the tag that `index.json` gives it.
        is_top: whether `index.json` names it.
        repository: where it belongs, as far as `index.json` says that.
        subject: the digest of its subject.
    """

    descriptor: Descriptor
    tag: Tag | None
    is_top: bool
    repository: RepositoryName | None = None
    subject: Digest | None = None


class ImageLayout:
    """A handler that answers pulls and lists from a layout; its content is in every repository alike."""

    def __init__(self, files: LayoutFiles, *, hashed: bool = True) -> None:
        """Read from `files`; `open_layout` is how one is made."""
        self._files = files
        self._hashed = hashed
        # Of a tar one thing is read at a time; and of a folder that is no harm.
        self._limiter = trio.CapacityLimiter(1)
        self._sizes: dict[Digest, int] = {}
        self._tags: dict[Tag, Digest] = {}
        self._manifests: set[Digest] = set()
        self._referrers: dict[Digest, dict[Digest, Descriptor]] = {}
        self.named: list[Named] = []
        """Every manifest that is here: those of `index.json` in its order, each followed by what it lists."""
        self._methods: dict[type, Callable[..., Awaitable[object]]] = {
            PullManifest: self.pull_manifest,
            PullBlob: self.pull_blob,
            ListTags: self.list_tags,
            ListReferrers: self.list_referrers,
        }

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`.

        Raises:
            RegistryError: what is asked for is not here, or damaged.
            Unsupported: a layout does not do that.
        """
        method = self._methods.get(type(operation))
        if method is None:
            raise Unsupported(f"an image layout does not {type(operation).__name__}")
        # The table above pairs each class of operation with a method of its reply type.
        return cast("R", await method(operation))

    async def _in_thread(self, step: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(step, limiter=self._limiter)

    # ---- opening

    async def read_index(self) -> None:
        """Find all manifests.

        Raises:
            LayoutInvalid: this is no layout, or a manifest in it is damaged.
        """
        try:
            check_marker(await self._read("oci-layout", _MARKER_LIMIT))
            index = parse_index(await self._read("index.json", MANIFEST_LIMIT))
        except FileNotFoundError as error:
            raise LayoutInvalid(f"not an image layout: there is no {Path(str(error.filename)).name} in it") from None
        except OSError as error:
            raise LayoutInvalid(f"{error.filename}: {error.strerror}") from None
        for descriptor in index.manifests:
            repository, tag = entry_name(descriptor.annotations or {})
            if tag is not None:
                self._tags[tag] = descriptor.digest
            await self._enter(descriptor, repository, tag)
        if not self.named:
            raise LayoutInvalid("index.json names no manifest")

    async def _enter(self, top: Descriptor, repository: RepositoryName | None, tag: Tag | None) -> None:
        """Note the manifest `top` of `index.json` and all that it lists and is here, down to the last."""
        todo = [(top, True)]
        while todo:
            descriptor, is_top = todo.pop()
            digest = descriptor.digest
            if digest in self._manifests and not is_top:
                continue
            if not is_top and descriptor.media_type not in _MANIFEST_TYPES:
                # Such as the layers in an index of buildkit's cache.
                continue
            try:
                manifest = await self._manifest(digest)
            except FileNotFoundError:
                if is_top:
                    raise LayoutInvalid(f"index.json names {digest}, which is not there") from None
                continue
            except (OSError, DigestInvalid, ManifestInvalid) as error:
                reason = error.strerror if isinstance(error, OSError) else error.message
                raise LayoutInvalid(f"{blob_path(digest)}: {reason}") from None
            self._manifests.add(digest)
            subject = None if manifest.subject is None else manifest.subject.digest
            if is_top:
                self.named.append(Named(descriptor, tag, is_top, repository, subject))
            else:
                self.named.append(Named(descriptor, None, is_top, None, subject))
            if subject is not None:
                self._referrers.setdefault(subject, {})[digest] = manifest.referrer_descriptor()
            todo += [(child, False) for child in reversed(manifest.manifests)]

    async def _manifest(self, digest: Digest) -> Manifest:
        """Return a manifest.

        Raises:
            OSError, DigestInvalid, ManifestInvalid: there is none, or what is there is not it.
        """
        data = await self._read(blob_path(digest), MANIFEST_LIMIT)
        if Digest.of(data, digest.algorithm) != digest:
            raise _damaged(digest)
        return parse_stored(data, digest)

    async def _read(self, name: str, limit: int) -> bytes:
        def read() -> bytes:
            with self._files.open(name) as file:
                data = file.read(limit + 1)
            if len(data) > limit:
                raise OSError(27, f"More than {limit} bytes", name)
            return data

        return await self._in_thread(read)

    # ---- answering

    async def pull_manifest(self, operation: PullManifest) -> Manifest:
        """Return the manifest of a tag or digest.

        Raises:
            ManifestUnknown: there is none.
        """
        reference = operation.reference
        digest = reference if isinstance(reference, Digest) else self._tags.get(reference)
        if digest is None or digest not in self._manifests:
            raise ManifestUnknown("manifest unknown", detail={"reference": str(reference)})
        try:
            return await self._manifest(digest)
        except OSError:
            raise ManifestUnknown("manifest unknown", detail={"reference": str(reference)}) from None

    async def pull_blob(self, operation: PullBlob) -> Blob:
        """Return a blob, not yet open, whose content has the digest that was asked for, if the layout was so opened.

        Raises:
            BlobUnknown: it is not here.
            DigestInvalid: what is here in its place is something else.
        """
        digest = operation.digest
        name = blob_path(digest)
        if digest not in self._sizes:
            try:
                self._sizes[digest] = await self._in_thread(
                    partial(self._verified if self._hashed else self._size, digest)
                )
            except OSError:
                raise BlobUnknown("blob unknown", detail={"digest": str(digest)}) from None
        size = self._sizes[digest]

        @asynccontextmanager
        async def open_blob(start: int, stop: int | None) -> AsyncGenerator[Reader]:
            end = size if stop is None else min(stop, size)

            def read(offset: int) -> bytes:
                with self._files.open(name) as file:
                    file.seek(offset)
                    return file.read(min(_CHUNK, end - offset))

            async def chunks() -> AsyncGenerator[bytes]:
                offset = start
                while offset < end:
                    chunk = await self._in_thread(partial(read, offset))
                    if not chunk:
                        raise BlobUnknown("the blob ends early", detail={"digest": str(digest)})
                    offset += len(chunk)
                    yield chunk

            yield Reader(Stat(name, size, 0.0, str(digest)), chunks())

        async def url(client_address: str) -> str | None:
            del client_address
            return None

        descriptor = Descriptor(media_type=BLOB_MEDIA_TYPE, digest=digest, size=size)
        return Blob(descriptor=descriptor, open=open_blob, url=url)

    def _verified(self, digest: Digest) -> int:
        """Return the size of a blob, whose content was hashed if this can be done. Runs in a thread.

        Raises:
            OSError: it is not here.
            DigestInvalid: it has another digest.
        """
        known = digest.algorithm in _HASHED
        hasher = hashlib.new(digest.algorithm, usedforsecurity=False) if known else None
        size = 0
        with self._files.open(blob_path(digest)) as file:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                if hasher is not None:
                    hasher.update(chunk)
        if hasher is not None and hasher.hexdigest() != digest.encoded:
            raise _damaged(digest)
        return size

    def _size(self, digest: Digest) -> int:
        """Return the size of a blob. Runs in a thread.

        Raises:
            OSError: it is not here.
        """
        with self._files.open(blob_path(digest)) as file:
            return file.seek(0, os.SEEK_END)

    async def list_tags(self, operation: ListTags) -> TagList:
        """Return the tags that `index.json` gives."""
        tags = sorted(tag for tag in self._tags if tag > operation.after)
        page = tuple(tags[: operation.limit])
        return TagList(repository=operation.repository, tags=page, more=len(tags) > len(page) > 0)

    async def list_referrers(self, operation: ListReferrers) -> ReferrerList:
        """Return the manifests here whose subject is the one that was asked for."""
        found = [
            descriptor
            for digest, descriptor in sorted(self._referrers.get(operation.subject, {}).items())
            if digest > operation.after and operation.artifact_type in {None, descriptor.artifact_type}
        ]
        page = tuple(found[: operation.limit])
        last = page[-1].digest if page else None
        return ReferrerList(referrers=page, more=len(found) > len(page) > 0, last=last)


@asynccontextmanager
async def open_layout(path: Path, *, hashed: bool = True) -> AsyncGenerator[ImageLayout]:
    """Open the layout at `path`, a folder or a tar.

    Blobs are hashed before they count as being there; not if `hashed` is false, for whoever hashes what they pull.

    Raises:
        LayoutInvalid: it is none, or a manifest in it is damaged.
        OSError: it cannot be read.
    """
    if await trio.to_thread.run_sync(path.is_dir):
        layout = ImageLayout(Folder(path), hashed=hashed)
        await layout.read_index()
        yield layout
        return
    with open_regular(path) as file:
        try:
            archive = await trio.to_thread.run_sync(partial(tarfile.open, fileobj=file, mode="r:"))
            layout = ImageLayout(await trio.to_thread.run_sync(Archive, archive), hashed=hashed)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise LayoutInvalid(f"not a tar: {error}") from None
        await layout.read_index()
        yield layout


def check_marker(data: bytes) -> None:
    """Look whether `data`, the file `oci-layout`, is that of a layout that is understood.

    Raises:
        LayoutInvalid: it is not.
    """
    try:
        marker = msgspec.json.decode(data, type=_Marker)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LayoutInvalid(f"not an image layout: oci-layout: {error}") from None
    if not marker.version.startswith("1."):
        raise LayoutInvalid(f"oci-layout: of version {marker.version[:20]!a}, where 1.0.0 is understood")


def parse_index(data: bytes) -> Manifest:
    """Return what `data`, the file `index.json`, says.

    Raises:
        LayoutInvalid: it is none.
    """
    try:
        return parse_pushed(OCI_INDEX, data, Digest.of(data))
    except ManifestInvalid as error:
        raise LayoutInvalid(f"index.json: {error.message}") from None


def blob_path(digest: Digest) -> str:
    """Return where content lies in a layout."""
    # A digest has no slash, and neither of its parts is made of dots.
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def entry_name(annotations: Mapping[str, str]) -> tuple[RepositoryName | None, Tag | None]:
    """Return what `index.json` calls a manifest: its repository and tag, as far as it says that.

    Most tools write a tag; some a whole reference such as `docker.io/library/alpine:3.19`, or that in an annotation of
    its own. The host in it is where an image came from, and no part of the repository's name.
    """
    whole = _split(annotations.get(IMAGE_NAME, ""))
    repository, tag = _split(annotations.get(REFERENCE_NAME, ""))
    return (whole[0] or repository), (tag or whole[1])


def _split(text: str) -> tuple[RepositoryName | None, Tag | None]:
    text, _, _ = text.partition("@")
    path, colon, last = text.rpartition(":")
    if "/" in last:
        # The colon is that of a port.
        path, colon, last = text, ":", ""
    elif not colon:
        # A tag alone.
        path, last = "", text
    host, slash, rest = path.partition("/")
    if slash and (host == "localhost" or not set(".:").isdisjoint(host)):
        path = rest
    repository = tag = None
    with suppress(NameInvalid):
        repository = RepositoryName(path)
    with suppress(TagInvalid):
        tag = Tag(last)
    return repository, tag


def _damaged(digest: Digest) -> DigestInvalid:
    return DigestInvalid(f"{blob_path(digest)} is damaged: its content has another digest")

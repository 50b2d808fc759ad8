"""The registry: answers every operation over a driver.

Answers for the OCI distribution spec. Rules this file keeps:

- Content is global, being in a repository is not: a blob or manifest is in a repository if its link is there, and
  present if its data is there too.
- What is pointed at is written before what points. A push of a manifest: blob, referrer entry, revision link (from
  here on it is there), tag history, tag. A delete goes the other way: revision link first, so that its tags mean
  nothing from then on, then the tags, then the referrer entry.
- Bytes of manifests are kept in memory by digest, for they never change; whether a manifest is in a repository, and
  what a tag means, is asked of the store each time.
"""

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, nullcontext
from functools import partial
from typing import cast

import trio

from . import _layout as layout
from ._decisions import Decisions, NoDecisions, ReadOnlyView
from ._digests import Digest
from ._driver import Driver, Reader
from ._errors import (
    BlobUnknown,
    DriverError,
    InternalError,
    KeyUnknown,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameUnknown,
    PreconditionFailed,
    RangeInvalid,
    RangeUnsatisfiable,
    Unsupported,
)
from ._links import exists, read_link, told
from ._listing import count_children, is_below, repositories
from ._manifests import (
    MANIFEST_LIMIT,
    Descriptor,
    Manifest,
    parse_stored,
)
from ._names import Reference, RepositoryName
from ._operations import (
    AppendUpload,
    Blob,
    BlobPushed,
    CancelUpload,
    CheckAccess,
    CommitUpload,
    CountUploads,
    DeleteBlob,
    Deleted,
    DeleteManifest,
    DeleteTag,
    ListReferrers,
    ListRepositories,
    ListTags,
    ManifestPushed,
    MountBlob,
    OpenUpload,
    Operation,
    Ping,
    Pong,
    PullBlob,
    PullManifest,
    PushBlob,
    PushManifest,
    R,
    RepositoryList,
    StatUpload,
    TagList,
    UploadCancelled,
    UploadCount,
    UploadOpened,
    UploadProgress,
)
from ._push import missing_detail, missing_references, parsed, read_push
from ._referrers import Referrers
from ._tags import Tags
from ._uploads import Uploads

_log = logging.getLogger("moorage.registry")

BLOB_MEDIA_TYPE = "application/octet-stream"
_CACHE_BYTES = 32 << 20
_LOOKS_AT_ONCE = 16

_SEARCHED_REPOSITORIES = 1000
_SEARCH_SECONDS = 1.0
"""How far is looked for somebody who has a blob, before it is uploaded instead."""


class _ManifestCache:
    """Parsed manifests by digest, bounded by their bytes; the least recently used goes first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._manifests: OrderedDict[Digest, Manifest] = OrderedDict()

    def get(self, digest: Digest) -> Manifest | None:
        manifest = self._manifests.get(digest)
        if manifest is not None:
            self._manifests.move_to_end(digest)
        return manifest

    def put(self, manifest: Manifest) -> None:
        if manifest.digest in self._manifests or len(manifest.data) > self._limit // 4:
            return
        self._manifests[manifest.digest] = manifest
        self._size += len(manifest.data)
        while self._size > self._limit:
            _, gone = self._manifests.popitem(last=False)
            self._size -= len(gone.data)


class Registry:
    """The innermost handler: answers every operation over a driver."""

    def __init__(
        self, driver: Driver, decisions: Decisions | None = None, *, tag_reads_at_once: int = _LOOKS_AT_ONCE
    ) -> None:
        """Serve what lies on `driver`; `decisions` is asked about pushes.

        `tag_reads_at_once` bounds how many tags are read at once to find those of a deleted manifest.
        """
        self._driver = driver
        self._decisions = decisions or NoDecisions()
        self._tags = Tags(driver, reads_at_once=tag_reads_at_once)
        self._referrers = Referrers(driver, self._manifest)
        self._uploads = Uploads(driver)
        self._cache = _ManifestCache(_CACHE_BYTES)
        self._view = ReadOnlyView(self)
        # One method for each operation; the class of an operation fixes the class of its reply.
        self._methods: dict[type, Callable[..., Awaitable[object]]] = {
            Ping: self._ping,
            CheckAccess: self._ping,
            PullManifest: self.pull_manifest,
            PullBlob: self.pull_blob,
            PushManifest: self.push_manifest,
            DeleteTag: self.delete_tag,
            DeleteManifest: self.delete_manifest,
            DeleteBlob: self.delete_blob,
            OpenUpload: self.open_upload,
            PushBlob: self.push_blob,
            MountBlob: self.mount_blob,
            StatUpload: self.stat_upload,
            AppendUpload: self.append_upload,
            CommitUpload: self.commit_upload,
            CancelUpload: self.cancel_upload,
            CountUploads: self.count_uploads,
            ListTags: self.list_tags,
            ListReferrers: self._referrers.page,
            ListRepositories: self.list_repositories,
        }

    @property
    def uploads(self) -> Uploads:
        """The upload sessions, for whoever expires them."""
        return self._uploads

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`.

        Raises:
            RegistryError: whatever the client is to be told; also where the store failed.
        """
        method = self._methods.get(type(operation))
        if method is None:
            raise Unsupported(f"this registry does not know {type(operation).__name__}")
        try:
            # The table above pairs each class of operation with a method of its reply type.
            return cast("R", await method(operation))
        except DriverError as error:
            raise told(error) from error

    async def _ping(self, operation: Ping | CheckAccess) -> Pong:
        """Answer who may ask; where something decides about that, it has been asked."""
        del operation
        return Pong()

    # ---- pull

    async def pull_manifest(self, operation: PullManifest) -> Manifest:
        """Return the manifest of a tag or digest.

        Raises:
            ManifestUnknown: there is none in this repository.
        """
        repository, reference = operation.repository, operation.reference
        digest = await self._tags.target(repository, reference)
        manifest = await self._manifest(repository, digest) if digest else None
        if manifest is None:
            raise _manifest_unknown(repository, reference)
        return manifest

    async def _manifest(self, repository: RepositoryName, digest: Digest) -> Manifest | None:
        """Return the manifest `digest` if it is present in `repository`."""
        if not await exists(self._driver, layout.revision_link(repository, digest)):
            return None
        cached = self._cache.get(digest)
        if cached is not None:
            return cached
        key = layout.blob(digest)
        try:
            data = await self._driver.read(key, limit=MANIFEST_LIMIT)
        except KeyUnknown:
            return None
        try:
            manifest = await parsed(partial(parse_stored, data, digest), data)
        except ManifestInvalid as error:
            _log.error("the manifest %s of %s cannot be read: %s", digest, repository, error)
            raise InternalError("the stored manifest cannot be read", detail={"digest": str(digest)}) from None
        self._cache.put(manifest)
        return manifest

    async def pull_blob(self, operation: PullBlob) -> Blob:
        """Return a blob, not yet open.

        Raises:
            BlobUnknown: it is not in this repository.
        """
        digest = operation.digest
        stored = await self._stored_blob(operation.repository, digest)
        if stored is None:
            raise _blob_unknown(digest)
        key, size = stored

        @asynccontextmanager
        async def open_blob(start: int, stop: int | None) -> AsyncGenerator[Reader]:
            try:
                async with self._driver.open(key, start, stop) as reader:
                    yield reader
            except KeyUnknown:
                raise _blob_unknown(digest) from None
            except RangeUnsatisfiable:
                raise RangeInvalid("the range begins beyond the end", size=size) from None
            except DriverError as error:
                raise told(error) from error

        async def url(client_address: str) -> str | None:
            try:
                return await self._driver.url(key, client_address=client_address)
            except DriverError as error:
                raise told(error) from error

        descriptor = Descriptor(media_type=BLOB_MEDIA_TYPE, digest=digest, size=size)
        return Blob(descriptor=descriptor, open=open_blob, url=url)

    async def _stored_blob(self, repository: RepositoryName, digest: Digest) -> tuple[str, int] | None:
        """Return key and size of a blob that is present in `repository`.

        Distribution 3 keeps a blob pushed by sha512 as sha256, with a link under the one that holds the other; so
        the link's content is followed.
        """
        target = await read_link(self._driver, layout.layer_link(repository, digest))
        if target is None:
            return None
        key = layout.blob(target)
        try:
            return key, (await self._driver.stat(key)).size
        except KeyUnknown:
            return None

    # ---- push of manifests

    async def push_manifest(self, operation: PushManifest) -> ManifestPushed:
        """Put a manifest into a repository.

        Raises:
            ManifestTooLarge, ManifestInvalid, DigestInvalid: it is not what it should be.
            ManifestBlobUnknown: it points at content that is not in the repository.
            PreconditionFailed: a condition of the push does not hold.
            RegistryError: a rule refuses it.
        """
        repository, reference = operation.repository, operation.reference
        manifest = await read_push(operation)
        digest = manifest.digest
        tags = operation.written_tags
        await self._tags.check(operation, digest, tags)
        warnings: tuple[str, ...] = ()
        if not operation.unchecked:
            warnings = await self._check_references(operation, manifest)
            warnings += await self._decisions.validate_manifest(operation, manifest, self._view)
        condition = operation.tag_condition
        fixed = condition is not None and any(condition.fixes(tag) for tag in tags)
        async with self._tags.held(repository, digest) if fixed else nullcontext():
            await self._store_manifest(repository, manifest)
            for tag in tags:
                await self._tags.write(operation, tag, digest)
        return ManifestPushed(
            repository=repository,
            descriptor=manifest.descriptor,
            reference=reference,
            subject=manifest.subject.digest if manifest.subject else None,
            tags=tags,
            warnings=warnings,
        )

    async def _check_references(self, push: PushManifest, manifest: Manifest) -> tuple[str, ...]:
        """Refuse a manifest whose references are missing, unless plugins can do without them; return their warnings."""
        refused: list[Descriptor] = []
        warnings: list[str] = []
        for descriptor in await self.missing_references(push.repository, manifest):
            # There may be thousands, and rules that never wait for anything.
            await trio.lowlevel.checkpoint()
            said = await self._decisions.requires_reference(push, manifest, descriptor, self._view)
            warnings += said.warnings
            if said.required:
                refused.append(descriptor)
        if refused:
            raise ManifestBlobUnknown([missing_detail(descriptor) for descriptor in refused])
        return tuple(warnings)

    async def missing_references(self, repository: RepositoryName, manifest: Manifest) -> list[Descriptor]:
        """Return what `manifest` points at and is not in `repository`, each descriptor once."""

        async def is_manifest(digest: Digest) -> bool:
            linked = await exists(self._driver, layout.revision_link(repository, digest))
            return linked and await exists(self._driver, layout.blob(digest))

        async def is_blob(digest: Digest) -> bool:
            return await self._stored_blob(repository, digest) is not None

        remote = self._driver.capabilities.remote
        return await missing_references(manifest, is_manifest=is_manifest, is_blob=is_blob, at_once=remote)

    async def _store_manifest(self, repository: RepositoryName, manifest: Manifest) -> None:
        digest = manifest.digest
        content = (layout.blob(digest), manifest.data)
        link = (layout.revision_link(repository, digest), layout.link_content(digest))
        if manifest.subject is None:
            await self._driver.write_all([content, link])
        else:
            await self._driver.write_all([content])
            await self._referrers.enter(repository, manifest)
            await self._driver.write_all([link])
        self._cache.put(manifest)

    # ---- deletes

    async def delete_tag(self, operation: DeleteTag) -> Deleted:
        """Make a tag mean nothing.

        Raises:
            ManifestUnknown: it means nothing already.
            PreconditionFailed: it is fixed, or means something else than `if_match` names.
        """
        if not await self._tags.remove(operation):
            raise _manifest_unknown(operation.repository, operation.tag)
        return Deleted(tags=(operation.tag,))

    async def delete_manifest(self, operation: DeleteManifest) -> Deleted:
        """Take a manifest and its tags out of a repository.

        Raises:
            ManifestUnknown: it is not there.
            PreconditionFailed: a fixed tag means it, or `if_match` names another digest.
        """
        repository, digest = operation.repository, operation.digest
        if operation.tag_condition is None:
            return await self._delete_manifest(operation)
        async with self._tags.held(repository, digest):
            return await self._delete_manifest(operation)

    async def _delete_manifest(self, operation: DeleteManifest) -> Deleted:
        repository, digest = operation.repository, operation.digest
        key = layout.revision_link(repository, digest)
        if not await exists(self._driver, key):
            # A delete that was cut off after its first step left tags behind; repeated, it takes them too. What the
            # store never had, no tag can mean.
            known = await exists(self._driver, layout.blob(digest))
            if known and (tags := await self._tags.remove_all(repository, digest)):
                return Deleted(tags=tags)
            raise _manifest_unknown(repository, digest)
        if operation.if_match is not None and not operation.if_match.matches(digest):
            raise PreconditionFailed("the digest is another one", detail={"digest": digest})
        if operation.tag_condition is not None:
            await self._tags.check_fixed(repository, digest, operation.tag_condition)
        # Read while it can be: the referrer entry to remove is named by the manifest's subject.
        try:
            manifest = await self._manifest(repository, digest)
        except InternalError:
            manifest = None
        await self._driver.delete(key)
        tags = await self._tags.remove_all(repository, digest)
        if manifest is not None:
            await self._referrers.remove(repository, manifest)
        return Deleted(tags=tags)

    async def delete_blob(self, operation: DeleteBlob) -> Deleted:
        """Take a blob out of a repository; its content stays until it is collected.

        Raises:
            BlobUnknown: it is not there.
        """
        key = layout.layer_link(operation.repository, operation.digest)
        if not await exists(self._driver, key):
            raise _blob_unknown(operation.digest)
        await self._driver.delete(key)
        return Deleted()

    # ---- push of blobs

    async def open_upload(self, operation: OpenUpload) -> UploadOpened:
        """Open an upload session."""
        repository = operation.repository
        return await self._opened(repository, digest=operation.digest, algorithm=operation.algorithm)

    async def _opened(
        self, repository: RepositoryName, *, digest: Digest | None, algorithm: str | None
    ) -> UploadOpened:
        upload_id = await self._uploads.open(repository, digest=digest, algorithm=algorithm)
        chunk_minimum = self._driver.capabilities.chunk_minimum
        return UploadOpened(repository=repository, upload_id=upload_id, chunk_minimum=chunk_minimum)

    async def push_blob(self, operation: PushBlob) -> BlobPushed:
        """Take in a whole blob."""
        await self._uploads.push(operation)
        return BlobPushed(repository=operation.repository, digest=operation.digest)

    async def mount_blob(self, operation: MountBlob) -> BlobPushed | UploadOpened:
        """Link a blob that another repository has, or open an upload session if that cannot be."""
        repository, digest = operation.repository, operation.digest
        target = await self._mountable(operation)
        if target is None:
            return await self._opened(repository, digest=digest, algorithm=None)
        key = layout.layer_link(repository, digest)
        await self._driver.write(key, layout.link_content(target))
        return BlobPushed(repository=repository, digest=digest)

    async def _mountable(self, operation: MountBlob) -> Digest | None:
        """Return what a link in the target repository must hold, or None if there is nothing to mount."""
        digest = operation.digest
        if operation.source is not None:
            target = await read_link(self._driver, layout.layer_link(operation.source, digest))
        elif operation.may_pull is None:
            # A caller who may read every repository needs no more than that somebody has it. A blob whose last link is
            # gone is only waiting to be collected; it is no harm to take it up again.
            target = digest
        else:
            target = await self._linked_somewhere(digest, operation.may_pull)
        if target is None or not await exists(self._driver, layout.blob(target)):
            return None
        return target

    async def _linked_somewhere(self, digest: Digest, may_pull: Callable[[RepositoryName], bool]) -> Digest | None:
        """Return what a link of `digest` holds in a repository that `may_pull` allows; None if none is found soon.

        Whether the store has the blob at all is not looked at first: the time that takes would tell what others have.
        """
        looked = 0
        with trio.move_on_after(_SEARCH_SECONDS):
            async with aclosing(repositories(self._driver, part="_layers")) as names:
                async for name in names:
                    looked += 1
                    if looked > _SEARCHED_REPOSITORIES:
                        break
                    if may_pull(name) and (target := await read_link(self._driver, layout.layer_link(name, digest))):
                        return target
        return None

    async def stat_upload(self, operation: StatUpload) -> UploadProgress:
        """Return where an upload session stands."""
        offset = await self._uploads.offset(operation.repository, operation.upload_id)
        return UploadProgress(repository=operation.repository, upload_id=operation.upload_id, offset=offset)

    async def append_upload(self, operation: AppendUpload) -> UploadProgress:
        """Take in a chunk."""
        offset = await self._uploads.append(operation)
        return UploadProgress(repository=operation.repository, upload_id=operation.upload_id, offset=offset)

    async def commit_upload(self, operation: CommitUpload) -> BlobPushed:
        """Take in the last chunk and put the blob into the repository."""
        await self._uploads.commit(operation)
        return BlobPushed(repository=operation.repository, digest=operation.digest)

    async def cancel_upload(self, operation: CancelUpload) -> UploadCancelled:
        """End an upload session."""
        await self._uploads.cancel(operation.repository, operation.upload_id)
        return UploadCancelled(operation.upload_id)

    async def count_uploads(self, operation: CountUploads) -> UploadCount:
        """Count the open upload sessions of a repository."""
        prefix = layout.uploads(operation.repository)
        return UploadCount(await count_children(self._driver, prefix, limit=operation.limit))

    # ---- lists

    async def list_tags(self, operation: ListTags) -> TagList:
        """Return a page of a repository's tags.

        Raises:
            NameUnknown: there is no such repository.
        """
        repository = operation.repository
        tags, more = await self._tags.page(repository, after=operation.after, limit=operation.limit)
        if not tags and not await self._repository_exists(repository):
            raise NameUnknown("there is no such repository", detail={"name": str(repository)})
        return TagList(repository=repository, tags=tuple(tags), more=more)

    async def _repository_exists(self, repository: RepositoryName) -> bool:
        """Return whether anything was pushed to `repository` and not taken away."""
        return await is_below(self._driver, layout.manifests(repository)) or await is_below(
            self._driver, layout.layers(repository)
        )

    async def list_repositories(self, operation: ListRepositories) -> RepositoryList:
        """Return a page of the names of repositories that have, or had, manifests."""
        found: list[RepositoryName] = []
        async with aclosing(repositories(self._driver, part="_manifests", after=operation.after)) as names:
            async for name in names:
                if len(found) == operation.limit:
                    return RepositoryList(repositories=tuple(found), more=operation.limit > 0)
                found.append(name)
        return RepositoryList(repositories=tuple(found), more=False)


def _manifest_unknown(repository: RepositoryName, reference: Reference) -> ManifestUnknown:
    kind = "digest" if isinstance(reference, Digest) else "tag"
    return ManifestUnknown("manifest unknown", detail={"name": str(repository), kind: str(reference)})


def _blob_unknown(digest: Digest) -> BlobUnknown:
    return BlobUnknown("blob unknown to registry", detail={"digest": str(digest)})

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
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Protocol, cast

from . import _layout as layout
from ._concurrency import map_bounded
from ._digests import Digest
from ._driver import Absent, Condition, Driver, Reader, Unchanged
from ._errors import (
    BlobUnknown,
    ConditionFailed,
    DigestInvalid,
    DriverError,
    InternalError,
    KeyInvalid,
    KeyUnknown,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    NameUnknown,
    PreconditionFailed,
    RangeInvalid,
    RangeUnsatisfiable,
    RegistryError,
    StorageFull,
    StoreBusy,
    StoreFull,
    StoreReadOnly,
    Unavailable,
    Unsupported,
)
from ._listing import is_below, names_below, repositories
from ._manifests import (
    MANIFEST_LIMIT,
    Descriptor,
    Manifest,
    encode_json,
    parse_descriptor,
    parse_pushed,
    parse_stored,
)
from ._names import Reference, RepositoryName, Tag
from ._operations import (
    AppendUpload,
    Blob,
    BlobPushed,
    CancelUpload,
    CommitUpload,
    DeleteBlob,
    Deleted,
    DeleteManifest,
    DeleteTag,
    Handler,
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
    ReferrerList,
    RepositoryList,
    StatUpload,
    TagCondition,
    TagList,
    UploadCancelled,
    UploadOpened,
    UploadProgress,
)
from ._uploads import Uploads

_log = logging.getLogger("moorage.registry")

BLOB_MEDIA_TYPE = "application/octet-stream"
TAGS_LIMIT = 100
"""The most tags that one push may write."""

_CACHE_BYTES = 32 << 20
_LOOKS_AT_ONCE = 16
_CAS_TRIES = 16
_REFERRERS_BYTES = MANIFEST_LIMIT - 1024


class Decisions(Protocol):
    """What the registry asks plugins about a push."""

    async def validate_manifest(self, push: PushManifest, manifest: Manifest, registry: Handler) -> tuple[str, ...]:
        """Return warnings, or raise to refuse."""
        ...

    async def requires_reference(
        self, push: PushManifest, manifest: Manifest, descriptor: Descriptor, registry: Handler
    ) -> bool:
        """Return whether the missing `descriptor` must be there."""
        ...


class NoDecisions:
    """The answers of no plugin at all."""

    async def validate_manifest(self, push: PushManifest, manifest: Manifest, registry: Handler) -> tuple[str, ...]:
        """Warn of nothing."""
        del push, manifest, registry
        return ()

    async def requires_reference(
        self, push: PushManifest, manifest: Manifest, descriptor: Descriptor, registry: Handler
    ) -> bool:
        """Require everything."""
        del push, manifest, descriptor, registry
        return True


class ReadOnlyView:
    """A handler that passes on only what changes nothing; rules get it to look around with."""

    def __init__(self, inner: Handler) -> None:
        """Pass operations on to `inner`."""
        self._inner = inner

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation` if it needs no right but to see.

        Raises:
            Unsupported: it would change something.
        """
        if any(access.action not in {"pull", "catalog"} for access in operation.access):
            raise Unsupported(f"a rule may not {type(operation).__name__}")
        return await self._inner(operation)


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
        self._tag_reads_at_once = tag_reads_at_once
        self._uploads = Uploads(driver)
        self._cache = _ManifestCache(_CACHE_BYTES)
        self._view = ReadOnlyView(self)
        # One method for each operation; the class of an operation fixes the class of its reply.
        self._methods: dict[type, Callable[..., Awaitable[object]]] = {
            Ping: self._ping,
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
            ListTags: self.list_tags,
            ListReferrers: self.list_referrers,
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

    async def _ping(self, operation: Ping) -> Pong:
        del operation
        return Pong()

    # ---- pull

    async def pull_manifest(self, operation: PullManifest) -> Manifest:
        """Return the manifest of a tag or digest.

        Raises:
            ManifestUnknown: there is none in this repository.
        """
        repository, reference = operation.repository, operation.reference
        digest = await self._resolve(repository, reference)
        manifest = await self._manifest(repository, digest) if digest else None
        if manifest is None:
            raise _manifest_unknown(repository, reference)
        return manifest

    async def _resolve(self, repository: RepositoryName, reference: Reference) -> Digest | None:
        """Return the digest that `reference` means; for a digest itself."""
        if isinstance(reference, Digest):
            return reference
        return await self._link(layout.tag_current_link(repository, reference))

    async def _link(self, key: str) -> Digest | None:
        """Return what the link at `key` holds, None if there is none."""
        try:
            return layout.parse_link(await self._driver.read(key, limit=layout.LINK_LIMIT), key)
        except KeyUnknown:
            return None

    async def _exists(self, key: str) -> bool:
        try:
            await self._driver.stat(key)
        except KeyUnknown:
            return False
        return True

    async def _manifest(self, repository: RepositoryName, digest: Digest) -> Manifest | None:
        """Return the manifest `digest` if it is present in `repository`."""
        if not await self._exists(layout.revision_link(repository, digest)):
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
            manifest = parse_stored(data, digest)
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
        target = await self._link(layout.layer_link(repository, digest))
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
        repository, reference, data = operation.repository, operation.reference, operation.data
        if len(data) > MANIFEST_LIMIT:
            raise ManifestTooLarge(f"a manifest has at most {MANIFEST_LIMIT} bytes, this one has {len(data)}")
        if len(operation.tags) > TAGS_LIMIT:
            raise ManifestInvalid(f"at most {TAGS_LIMIT} tags are written by one push")
        algorithm = reference.algorithm if isinstance(reference, Digest) else None
        digest = Digest.of(data, algorithm) if algorithm else Digest.of(data)
        if isinstance(reference, Digest) and reference != digest:
            raise DigestInvalid(
                "the manifest does not have that digest", detail={"expected": str(reference), "found": str(digest)}
            )
        manifest = parse_pushed(operation.media_type, data, digest)
        tags = tuple(dict.fromkeys((reference, *operation.tags) if isinstance(reference, Tag) else operation.tags))
        await self._check_conditions(operation, digest, tags)
        warnings: tuple[str, ...] = ()
        if not operation.unchecked:
            await self._check_references(operation, manifest)
            warnings = await self._decisions.validate_manifest(operation, manifest, self._view)
        await self._store_manifest(repository, manifest)
        for tag in tags:
            await self._write_tag(operation, tag, digest)
        return ManifestPushed(
            repository=repository,
            descriptor=manifest.descriptor,
            reference=reference,
            subject=manifest.subject.digest if manifest.subject else None,
            tags=tags,
            warnings=warnings,
        )

    async def _check_references(self, push: PushManifest, manifest: Manifest) -> None:
        """Refuse a manifest whose references are missing, unless plugins can do without them."""
        wanted: dict[tuple[Digest, bool], Descriptor] = {}
        references = tuple(manifest.references())
        blobs = len(references) - len(manifest.manifests)
        for at, descriptor in enumerate(references):
            wanted.setdefault((descriptor.digest, at >= blobs), descriptor)

        async def present(each: tuple[Digest, bool]) -> bool:
            return await self._is_present(push.repository, each[0], as_manifest=each[1])

        found = await map_bounded(present, list(wanted), limit=_LOOKS_AT_ONCE)
        missing = [descriptor for descriptor, there in zip(wanted.values(), found, strict=True) if not there]
        refused = [
            _missing(descriptor)
            for descriptor in missing
            if await self._decisions.requires_reference(push, manifest, descriptor, self._view)
        ]
        if refused:
            raise ManifestBlobUnknown(refused)

    async def _is_present(self, repository: RepositoryName, digest: Digest, *, as_manifest: bool) -> bool:
        """Return whether content is in `repository` and its data in the store.

        An index may list what was pushed as a blob: buildkit's cache indexes list layers.
        """
        if as_manifest and await self._exists(layout.revision_link(repository, digest)):
            return await self._exists(layout.blob(digest))
        return await self._stored_blob(repository, digest) is not None

    async def _store_manifest(self, repository: RepositoryName, manifest: Manifest) -> None:
        digest = manifest.digest
        await self._driver.write(layout.blob(digest), manifest.data)
        if manifest.subject is not None:
            key = layout.referrer(repository, manifest.subject.digest, digest)
            await self._driver.write(key, encode_json(manifest.referrer_descriptor()))
        await self._driver.write(layout.revision_link(repository, digest), layout.link_content(digest))
        self._cache.put(manifest)

    async def _check_conditions(self, push: PushManifest, digest: Digest, tags: tuple[Tag, ...]) -> None:
        """Look early whether the conditions hold, so that nothing is stored for a push that cannot succeed.

        What a tag means is looked at again in the moment of its write.
        """
        if push.if_match or push.if_none_match:
            _check_match(push, await self._meaning(push.repository, push.reference))
        if push.tag_condition is TagCondition.ABSENT_OR_SAME:
            for tag in tags:
                _check_tag_condition(tag, await self._meaning(push.repository, tag), digest)

    async def _meaning(self, repository: RepositoryName, reference: Reference) -> Digest | None:
        """Return what `reference` means now, None if no manifest that is here."""
        digest = await self._resolve(repository, reference)
        if digest is None or not await self._exists(layout.revision_link(repository, digest)):
            return None
        return digest

    async def _write_tag(self, push: PushManifest, tag: Tag, digest: Digest) -> None:
        """Make `tag` mean `digest`, if the conditions of `push` hold in that very moment."""
        repository = push.repository
        content = layout.link_content(digest)
        await self._driver.write(layout.tag_index_link(repository, tag, digest), content)
        key = layout.tag_current_link(repository, tag)
        matched = tag == push.reference and bool(push.if_match or push.if_none_match)
        if not matched and push.tag_condition is None:
            await self._driver.write(key, content)
            return
        for _ in range(_CAS_TRIES):
            condition, current = await self._tag_state(repository, key)
            if matched:
                _check_match(push, current)
            if push.tag_condition is TagCondition.ABSENT_OR_SAME:
                _check_tag_condition(tag, current, digest)
            try:
                await self._driver.write(key, content, condition=condition)
            except ConditionFailed:
                continue
            return
        raise Unavailable(f"the tag {tag} is being written by too many at once", retry_after=1)

    async def _tag_state(self, repository: RepositoryName, key: str) -> tuple[Condition | None, Digest | None]:
        """Return what a tag means now, and the condition that it still does when it is written."""
        link, condition = await self._versioned_link(key)
        if link is not None and not await self._exists(layout.revision_link(repository, link)):
            link = None
        return condition, link

    async def _versioned_link(self, key: str) -> tuple[Digest | None, Condition | None]:
        """Return what the link at `key` holds, and the condition, if the store knows any, that it still does."""
        capabilities = self._driver.capabilities
        try:
            async with self._driver.open(key) as reader:
                link = layout.parse_link(b"".join([chunk async for chunk in reader]), key)
                return link, Unchanged(reader.stat.version) if capabilities.cas else None
        except KeyUnknown:
            return None, Absent() if capabilities.create_only else None

    # ---- deletes

    async def delete_tag(self, operation: DeleteTag) -> Deleted:
        """Make a tag mean nothing.

        Raises:
            ManifestUnknown: it means nothing already.
            PreconditionFailed: it means something else.
        """
        repository, tag = operation.repository, operation.tag
        for _ in range(_CAS_TRIES):
            condition, current = await self._tag_state(repository, layout.tag_current_link(repository, tag))
            if current is None:
                raise _manifest_unknown(repository, tag)
            if operation.if_match is not None and not operation.if_match.matches(current):
                raise PreconditionFailed("the tag has moved", detail={"tag": tag, "digest": current})
            if await self._remove_tag(repository, tag, condition):
                return Deleted(tags=(tag,))
        raise Unavailable(f"the tag {tag} is being written by too many at once", retry_after=1)

    async def _remove_tag(self, repository: RepositoryName, tag: Tag, condition: Condition | None) -> bool:
        """Make `tag` mean nothing, unless it has moved; then leave it alone and return False.

        What somebody pushes under the tag meanwhile must not go with it, so only the history is removed whole.
        """
        unchanged = condition if isinstance(condition, Unchanged) else None
        try:
            await self._driver.delete(layout.tag_current_link(repository, tag), condition=unchanged)
        except ConditionFailed:
            return False
        await self._driver.delete_below(layout.tag_index(repository, tag))
        return True

    async def delete_manifest(self, operation: DeleteManifest) -> Deleted:
        """Take a manifest and its tags out of a repository.

        Raises:
            ManifestUnknown: it is not there.
            PreconditionFailed: `if_match` names another digest.
        """
        repository, digest = operation.repository, operation.digest
        key = layout.revision_link(repository, digest)
        if not await self._exists(key):
            # A delete that was cut off after its first step left tags behind; repeated, it takes them too.
            if tags := await self._remove_tags_of(repository, digest):
                return Deleted(tags=tags)
            raise _manifest_unknown(repository, digest)
        if operation.if_match is not None and not operation.if_match.matches(digest):
            raise PreconditionFailed("the digest is another one", detail={"digest": digest})
        # Read while it can be: the referrer entry to remove is named by the manifest's subject.
        try:
            manifest = await self._manifest(repository, digest)
        except InternalError:
            manifest = None
        await self._driver.delete(key)
        tags = await self._remove_tags_of(repository, digest)
        if manifest is not None and manifest.subject is not None:
            await self._driver.delete(layout.referrer(repository, manifest.subject.digest, digest))
        return Deleted(tags=tags)

    async def _remove_tags_of(self, repository: RepositoryName, digest: Digest) -> tuple[Tag, ...]:
        """Remove the tags that mean `digest`; return them."""

        async def remove(name: str) -> bool:
            tag = Tag(name)
            try:
                link, condition = await self._versioned_link(layout.tag_current_link(repository, tag))
            except InternalError as error:
                # A link that holds no digest means no manifest; that of others must not keep this one.
                _log.warning("%s", error)
                return False
            return link == digest and await self._remove_tag(repository, tag, condition)

        removed: list[Tag] = []
        after, more = "", True
        while more:
            names, more = await names_below(
                self._driver, layout.tags(repository), after=after, limit=1000, exists=self._tag_exists(repository)
            )
            gone = await map_bounded(remove, names, limit=self._tag_reads_at_once)
            removed += [Tag(name) for name, was_removed in zip(names, gone, strict=True) if was_removed]
            after = names[-1] if names else ""
        return tuple(removed)

    async def delete_blob(self, operation: DeleteBlob) -> Deleted:
        """Take a blob out of a repository; its content stays until it is collected.

        Raises:
            BlobUnknown: it is not there.
        """
        key = layout.layer_link(operation.repository, operation.digest)
        if not await self._exists(key):
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
        return await self._link_blob(operation.repository, operation.digest)

    async def _link_blob(self, repository: RepositoryName, digest: Digest) -> BlobPushed:
        await self._driver.write(layout.layer_link(repository, digest), layout.link_content(digest))
        return BlobPushed(repository=repository, digest=digest)

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
            target = await self._link(layout.layer_link(operation.source, digest))
        else:
            # Without access rules a caller may read every repository, so that somebody has it is enough. A blob whose
            # last link is gone is only waiting to be collected; it is no harm to take it up again.
            target = digest
        if target is None or not await self._exists(layout.blob(target)):
            return None
        return target

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
        pushed = await self._link_blob(operation.repository, operation.digest)
        await self._uploads.remove(operation.repository, operation.upload_id)
        return pushed

    async def cancel_upload(self, operation: CancelUpload) -> UploadCancelled:
        """End an upload session."""
        await self._uploads.cancel(operation.repository, operation.upload_id)
        return UploadCancelled(operation.upload_id)

    # ---- lists

    def _tag_exists(self, repository: RepositoryName) -> Callable[[str], Awaitable[bool]]:
        async def exists(name: str) -> bool:
            try:
                tag = Tag(name)
            except RegistryError:
                return False
            return await self._exists(layout.tag_current_link(repository, tag))

        return exists

    async def list_tags(self, operation: ListTags) -> TagList:
        """Return a page of a repository's tags.

        Raises:
            NameUnknown: there is no such repository.
        """
        repository = operation.repository
        names, more = await names_below(
            self._driver,
            layout.tags(repository),
            after=operation.after,
            limit=operation.limit,
            exists=self._tag_exists(repository),
        )
        if not names and not await self._repository_exists(repository):
            raise NameUnknown("there is no such repository", detail={"name": str(repository)})
        return TagList(repository=repository, tags=tuple(map(Tag, names)), more=more)

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

    async def list_referrers(self, operation: ListReferrers) -> ReferrerList:
        """Return a page of the manifests whose subject is the one asked for.

        Those that were pushed here have an entry each. Those that were pushed to a registry without referrers are
        named by the index under the fallback tag, and are listed if they are here and really have that subject.
        """
        repository, subject = operation.repository, operation.subject
        earlier = await self._fallback_referrers(repository, subject)
        found: list[Descriptor] = []
        size = 0
        last: Digest | None = None
        for digest in await self._referrer_digests(repository, subject, earlier, after=operation.after):
            descriptor = earlier.get(digest) or await self._referrer(repository, subject, digest)
            if descriptor is None or operation.artifact_type not in {None, descriptor.artifact_type}:
                continue
            size += len(encode_json(descriptor)) + 1
            if len(found) == operation.limit or (found and size > _REFERRERS_BYTES):
                return ReferrerList(referrers=tuple(found), more=bool(found), last=last)
            found.append(descriptor)
            last = digest
        return ReferrerList(referrers=tuple(found), more=False, last=last)

    async def _referrer_digests(
        self, repository: RepositoryName, subject: Digest, earlier: dict[Digest, Descriptor], *, after: str
    ) -> list[Digest]:
        """Return the digests of all referrers, entered or earlier, in order after `after`."""
        digests = set(earlier)
        prefix = layout.referrers(repository, subject)
        position, more = "", True
        while more:
            listing = await self._driver.list(prefix, after=position)
            for entry in listing.entries:
                algorithm, _, encoded = entry.key[len(prefix) :].partition("/")
                # What is no digest was not put there by a registry.
                with suppress(DigestInvalid):
                    digests.add(Digest(f"{algorithm}:{encoded}"))
                position = entry.key
            more = listing.more
        return sorted(digest for digest in digests if digest > after)

    async def _referrer(self, repository: RepositoryName, subject: Digest, digest: Digest) -> Descriptor | None:
        """Return the entry of a referrer whose manifest is still there."""
        if not await self._exists(layout.revision_link(repository, digest)):
            return None
        try:
            data = await self._driver.read(layout.referrer(repository, subject, digest), limit=MANIFEST_LIMIT)
        except KeyUnknown:
            return None
        return parse_descriptor(data)

    async def _fallback_referrers(self, repository: RepositoryName, subject: Digest) -> dict[Digest, Descriptor]:
        tagged = await self._link(layout.tag_current_link(repository, Tag.fallback(subject)))
        index = await self._manifest(repository, tagged) if tagged else None
        if index is None or not index.is_index:
            return {}
        found: dict[Digest, Descriptor] = {}
        for descriptor in index.manifests:
            manifest = await self._manifest(repository, descriptor.digest)
            if manifest is not None and manifest.subject is not None and manifest.subject.digest == subject:
                found[descriptor.digest] = manifest.referrer_descriptor()
        return found


def told(error: DriverError) -> RegistryError:
    """Return what a client is told of a failed driver; which key and why is for the log."""
    match error:
        case StoreFull():
            _log.error("the store is full: %s", error)
            return StorageFull("the registry's storage is full")
        case StoreReadOnly():
            _log.error("the store cannot be written: %s", error)
            return Unavailable("the registry's storage cannot be written to", retry_after=60)
        case StoreBusy():
            _log.warning("the store is busy: %s", error)
            return Unavailable("the registry's storage is busy")
        case KeyInvalid():
            _log.error("a key that the store does not take: %s", error)
            return InternalError("the registry's storage cannot hold this")
        case _ if error.retryable:
            _log.error("the store failed: %s", error)
            return Unavailable("the registry's storage does not answer")
        case _:
            _log.error("the store failed: %s", error)
            return InternalError("the registry's storage failed")


def _missing(descriptor: Descriptor) -> dict[str, object]:
    """Return how the answer to a push names a missing reference."""
    return {"digest": str(descriptor.digest), "mediaType": descriptor.media_type}


def _check_match(push: PushManifest, current: Digest | None) -> None:
    detail = {"reference": str(push.reference), "digest": current and str(current)}
    if push.if_match is not None and not push.if_match.matches(current):
        raise PreconditionFailed("the reference does not mean what If-Match names", detail=detail)
    if push.if_none_match is not None and push.if_none_match.matches(current):
        raise PreconditionFailed("the reference means what If-None-Match excludes", detail=detail)


def _check_tag_condition(tag: Tag, current: Digest | None, digest: Digest) -> None:
    if current not in {None, digest}:
        raise PreconditionFailed(f"the tag {tag} exists and may not move", detail={"tag": tag, "digest": current})


def _manifest_unknown(repository: RepositoryName, reference: Reference) -> ManifestUnknown:
    kind = "digest" if isinstance(reference, Digest) else "tag"
    return ManifestUnknown("manifest unknown", detail={"name": str(repository), kind: str(reference)})


def _blob_unknown(digest: Digest) -> BlobUnknown:
    return BlobUnknown("blob unknown to registry", detail={"digest": str(digest)})

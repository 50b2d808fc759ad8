"""Pushing an image layout into the repositories of a store: what of it goes where, and how it is put there.

It goes through the registry, so everything lies there as if a client had pushed it; but no rule, middleware or
authentication is asked, for it is the operator who copies.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import trio

from moorage import (
    Blob,
    BlobUnknown,
    Body,
    CancelUpload,
    CommitUpload,
    Digest,
    Handler,
    Manifest,
    ManifestUnknown,
    MountBlob,
    PullBlob,
    PullManifest,
    PushManifest,
    RegistryError,
    RepositoryName,
    Tag,
    UploadOpened,
    map_bounded,
)

from .image_copy import Count, Image, Item, Name, Wanted, meaning
from .image_layout import ImageLayout, LayoutInvalid, Named

_CANCEL_SECONDS = 10.0
_SHOWN_TAGS = 10


class Repositories:
    """The repositories of a registry, as a place for images."""

    scoped = True

    def __init__(self, registry: Handler, *, jobs: int) -> None:
        """Push to `registry`, `jobs` tags at once."""
        self._registry = registry
        self._jobs = jobs

    async def has(self, item: Item) -> bool:
        """Return whether `item` is in its repository."""
        repository, digest = item.repository, item.digest
        if item.level:
            try:
                await self._registry(PullManifest(repository=repository, reference=digest))
            except ManifestUnknown:
                return False
            return True
        try:
            await self._registry(PullBlob(repository=repository, digest=digest))
        except BlobUnknown:
            return False
        return True

    async def lacks(self, image: Image) -> Sequence[Tag | None]:
        """Return which tags of `image` mean something else, or nothing."""
        repository, digest = image.wanted.repository, image.wanted.digest
        return [tag for tag in image.wanted.tags if await meaning(self._registry, repository, tag) != digest]

    async def write_blob(self, item: Item, blob: Blob, count: Count) -> None:
        """Push a blob, unless the store has it already; then it is only linked."""
        repository, digest = item.repository, item.digest
        opened = await self._registry(MountBlob(repository=repository, digest=digest))
        if not isinstance(opened, UploadOpened):
            return
        upload_id = opened.upload_id
        try:
            async with blob.open(0, None) as reader, aclosing(count(aiter(reader))) as chunks:
                body = _Content(chunks, item.size)
                await self._registry(CommitUpload(repository=repository, upload_id=upload_id, digest=digest, body=body))
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CANCEL_SECONDS):
                await self._cancel(repository, upload_id)
            raise

    async def _cancel(self, repository: RepositoryName, upload_id: str) -> None:
        try:
            await self._registry(CancelUpload(repository=repository, upload_id=upload_id))
        except RegistryError:
            # It is gone, or the store is; then it expires.
            return

    async def write_manifest(self, item: Item, manifest: Manifest) -> None:
        """Push a manifest by its digest."""
        await self._push(item.repository, item.digest, manifest)

    async def name(self, names: Sequence[Name]) -> None:
        """Push tags."""

        async def push(name: Name) -> None:
            if name.tag is not None:
                repository, digest = name.image.wanted.repository, name.image.wanted.digest
                manifest = await self._registry(PullManifest(repository=repository, reference=digest))
                await self._push(repository, name.tag, manifest)

        await map_bounded(push, names, limit=self._jobs)

    async def _push(self, repository: RepositoryName, reference: Tag | Digest, manifest: Manifest) -> None:
        await self._registry(
            PushManifest(repository=repository, reference=reference, media_type=manifest.media_type, data=manifest.data)
        )


class _Content(Body):
    """A blob that is pushed."""

    def __init__(self, chunks: AsyncIterator[bytes], length: int) -> None:
        self.length: int | None = length
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks


# ---- what goes where


class Unclear(LayoutInvalid):
    """It is not clear what of a layout is to go where; the text is one sentence."""


def choose(layout: ImageLayout, repository: RepositoryName | None, tags: Sequence[Tag]) -> list[Wanted]:
    """Return what of `layout` is to be pushed.

    Args:
        layout: where everything is.
        repository: where it is to go; None for what `index.json` says of each.
        tags: which of the images; where there is one only, what it is to be called.

    Raises:
        Unclear: it does not say where something belongs, or of two things the same.
    """
    tops = [named for named in layout.named if named.is_top]
    images = _images(layout, tops)
    if tags and len(images) == 1:
        (digest,) = images
        places = [named.repository for named in tops if named.descriptor.digest == digest]
        return _gathered([(repository or place, digest, tag) for place in places for tag in tags])
    chosen = [named for named in tops if named.tag in tags] if tags else tops
    for tag in tags:
        if tag not in {named.tag for named in chosen}:
            known = sorted({named.tag for named in tops if named.tag is not None})
            raise Unclear(f"index.json has no tag {tag}; {_listed(known)}")
    return _gathered([
        (repository or named.repository, named.descriptor.digest, named.tag)
        for named in chosen
        # What comes with something else goes where that goes.
        if tags or repository is not None or named.repository is not None
    ])


def check_all_placed(layout: ImageLayout, images: Sequence[Image]) -> None:
    """Look whether `images` are all that `layout` has.

    Raises:
        Unclear: it does not say of something where that belongs.
    """
    reached = {item.digest for image in images for item in image.items} | {image.wanted.digest for image in images}
    tagged = {(image.wanted.digest, tag) for image in images for tag in image.wanted.tags}
    for named in layout.named:
        digest = named.descriptor.digest
        if named.is_top and (digest not in reached or (named.tag is not None and (digest, named.tag) not in tagged)):
            raise _homeless(digest, named.tag)


def _images(layout: ImageLayout, tops: Sequence[Named]) -> set[Digest]:
    """Return the digests of what `index.json` names and that comes with nothing else."""
    prefixes = tuple(f"{Tag.fallback(named.descriptor.digest)}." for named in layout.named)
    return {
        named.descriptor.digest
        for named in tops
        if named.subject is None and not (named.tag or "").startswith(prefixes)
    }


def _gathered(chosen: Sequence[tuple[RepositoryName | None, Digest, Tag | None]]) -> list[Wanted]:
    tags: dict[tuple[RepositoryName, Digest], dict[Tag, None]] = {}
    meant: dict[tuple[RepositoryName, Tag], Digest] = {}
    for repository, digest, tag in chosen:
        if repository is None:
            raise _homeless(digest, tag)
        of_this = tags.setdefault((repository, digest), {})
        if tag is not None:
            of_this[tag] = None
            if meant.setdefault((repository, tag), digest) != digest:
                raise Unclear(f"index.json has two manifests that would be {repository}:{tag}")
    return [Wanted(repository, digest, tuple(several)) for (repository, digest), several in tags.items()]


def _homeless(digest: Digest, tag: Tag | None) -> Unclear:
    return Unclear(f"index.json does not say to which repository {tag or digest} belongs: say it by --repository NAME")


def _listed(tags: Sequence[Tag]) -> str:
    if not tags:
        return "there are no tags in it"
    more = f" and {len(tags) - _SHOWN_TAGS} more" if len(tags) > _SHOWN_TAGS else ""
    return f"there is {', '.join(tags[:_SHOWN_TAGS])}{more}"

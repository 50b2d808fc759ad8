"""Copying images, each with all that it needs, from what answers pulls to wherever images can be put.

What `moorage copy` does where an image layout is on one side. Rules this file keeps:

- What is pointed at is brought before what points: blobs, manifests, what lists these, names last.
- An image of which something is missing is left out as a whole, and named; all others are brought.
- What is there is all that is remembered: what was cut off is planned anew, and what has arrived is no part of it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from moorage import (
    Blob,
    BlobUnknown,
    Descriptor,
    Digest,
    DigestInvalid,
    Flaw,
    Handler,
    InternalError,
    ListReferrers,
    ListTags,
    Manifest,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    Moved,
    NameUnknown,
    PullBlob,
    PullManifest,
    RepositoryName,
    SizeInvalid,
    Tag,
    map_bounded,
)

from .validating import full_name

_DAMAGED = (DigestInvalid, InternalError, ManifestInvalid, ManifestTooLarge)
_LEFT = (*_DAMAGED, BlobUnknown, ManifestUnknown, ManifestBlobUnknown, SizeInvalid)
"""What is wrong with one thing, and leaves the others alone."""

_PAGE = 1000


class Wanted(msgspec.Struct, frozen=True):
    """An image to be copied: a manifest of a repository, and the tags that are to mean it."""

    repository: RepositoryName
    digest: Digest
    tags: tuple[Tag, ...] = ()


class Item(msgspec.Struct, frozen=True):
    """Content to be brought.

    Attributes:
        repository: where it is pulled from, and where it belongs.
        digest, media_type, size: what it is.
        level: 0 for a blob, 1 for a manifest that is made of blobs, and one more than what it lists for an index.
    """

    repository: RepositoryName
    digest: Digest
    media_type: str
    size: int
    level: int


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image with all that it needs.

    Attributes:
        wanted: which one it is.
        items: its content, the manifest last; nothing if that is not there.
        missing: what is not there, or not what it should be.
        artifact_type: what it is, where it refers to another one.
        damaged: why it cannot be copied at all.
    """

    wanted: Wanted
    items: tuple[Item, ...]
    missing: tuple[Item, ...] = ()
    artifact_type: str | None = None
    damaged: str = ""

    @property
    def top(self) -> Item:
        """The manifest that tags are to mean."""
        return self.items[-1]

    @property
    def name(self) -> str:
        """What users know it by."""
        return full_name(self.wanted.repository, self.wanted.tags[0] if self.wanted.tags else self.wanted.digest)


class Destination(Protocol):
    """Where images can be put."""

    scoped: bool
    """Whether content is in repositories, or in one place for all of them."""

    async def has(self, item: Item) -> bool:
        """Return whether `item` is there."""
        ...

    async def lacks(self, image: Image) -> Sequence[Tag | None]:
        """Return which names of `image` do not mean it there; None stands for its being named without a tag."""
        ...

    async def write_blob(self, item: Item, blob: Blob, count: "Count") -> None:
        """Put a blob there; what passes through `count` is seen to arrive.

        Raises:
            DigestInvalid: it has another digest.
        """
        ...

    async def write_manifest(self, item: Item, manifest: Manifest) -> None:
        """Put a manifest there."""
        ...

    async def name(self, names: Sequence["Name"]) -> None:
        """Write names, when all that they name is there."""
        ...


Count = Callable[[AsyncIterator[bytes]], AsyncGenerator[bytes]]


class Name(msgspec.Struct, frozen=True):
    """A name to be written; without a tag an image is only listed."""

    image: Image
    tag: Tag | None


class ImagePlan(msgspec.Struct, frozen=True):
    """What there is to copy.

    Attributes:
        images: those that can be copied whole.
        items: content that the destination lacks.
        names: names that it lacks, or that mean something else there.
        same: how many objects need not be brought.
        flaws: images that cannot be copied.
    """

    images: tuple[Image, ...]
    items: tuple[Item, ...]
    names: tuple[Name, ...]
    same: int
    flaws: tuple[Flaw, ...]

    @property
    def objects(self) -> int:
        """How many objects are to be brought."""
        return len(self.items) + len(self.names)

    @property
    def size(self) -> int:
        """How many bytes are to be brought."""
        return sum(item.size for item in self.items)


# ---- finding


async def find_images(
    source: Handler, wanted: Sequence[Wanted], *, jobs: int, found: Callable[[int], object] = lambda count: None
) -> list[Image]:
    """Find all that belongs to the images that are `wanted`, and what refers to them, signatures and the like, too.

    Raises:
        RegistryError: the source fails.
    """
    finder = _Finder(source)
    images: list[Image] = []
    seen = {(each.repository, each.digest) for each in wanted}
    seen_tags = {(each.repository, tag) for each in wanted for tag in each.tags}
    todo = list(wanted)
    while todo:
        wave = await map_bounded(finder.image, todo, limit=jobs)
        images += wave
        found(len(finder.sizes))
        subjects = list({
            (item.repository, item.digest) for image in wave if image.items for item in image.items if item.level
        })
        todo = list[Wanted]()
        for more in await map_bounded(finder.about, subjects, limit=jobs):
            for each in more:
                tags = tuple(tag for tag in each.tags if (each.repository, tag) not in seen_tags)
                if tags or (each.repository, each.digest) not in seen:
                    seen.add((each.repository, each.digest))
                    seen_tags.update((each.repository, tag) for tag in tags)
                    todo.append(Wanted(each.repository, each.digest, tags))
    return images


class _Finder:
    """Looks at what a source has."""

    def __init__(self, source: Handler) -> None:
        self._source = source
        self._tags: dict[RepositoryName, list[Tag]] = {}
        self.sizes: dict[tuple[RepositoryName, Digest], int | None] = {}
        """How large blobs are; None for what is not there."""

    async def image(self, wanted: Wanted) -> Image:
        """Return an image, with the digests of its manifests verified."""
        repository = wanted.repository
        items: dict[tuple[Digest, bool], Item] = {}
        missing: list[Item] = []
        levels: dict[Digest, int] = {}
        top = Descriptor(media_type="", digest=wanted.digest, size=0)
        artifact_type: str | None = None

        async def blob(descriptor: Descriptor, level: int = 0) -> None:
            digest = descriptor.digest
            size = await self._size(repository, digest)
            if size is None:
                missing.append(Item(repository, digest, descriptor.media_type, descriptor.size, level))
            else:
                items[digest, False] = Item(repository, digest, descriptor.media_type, size, 0)

        # Depth first without recursion, since an index may be nested as deeply as somebody likes: a manifest comes up
        # twice, and the second time all that it lists is known.
        todo: list[tuple[Descriptor, Manifest | None]] = [(top, None)]
        while todo:
            descriptor, manifest = todo.pop()
            digest = descriptor.digest
            if manifest is not None:
                level = 1 + max((levels.get(child.digest, 0) for child in manifest.manifests), default=0)
                levels[digest] = level
                items[digest, True] = Item(repository, digest, manifest.media_type, manifest.descriptor.size, level)
                artifact_type = manifest.referrer_descriptor().artifact_type if manifest.subject else None
                continue
            if digest in levels:
                continue
            levels[digest] = 0
            try:
                manifest = await self._manifest(repository, digest)
            except _DAMAGED as error:
                return Image(wanted=wanted, items=(), damaged=f"{digest}: {error.message}")
            if manifest is None:
                # An index may list blobs.
                await blob(descriptor, level=1)
                continue
            for each in (manifest.config, *manifest.blobs):
                if each is not None:
                    await blob(each)
            todo.append((descriptor, manifest))
            todo += [(child, None) for child in reversed(manifest.manifests)]
        return Image(wanted=wanted, items=tuple(items.values()), missing=tuple(missing), artifact_type=artifact_type)

    async def _manifest(self, repository: RepositoryName, digest: Digest) -> Manifest | None:
        try:
            manifest = await self._source(PullManifest(repository=repository, reference=digest))
        except ManifestUnknown:
            return None
        if Digest.of(manifest.data, digest.algorithm) != digest:
            raise _changed(digest)
        return manifest

    async def _size(self, repository: RepositoryName, digest: Digest) -> int | None:
        key = repository, digest
        if key not in self.sizes:
            try:
                blob = await self._source(PullBlob(repository=repository, digest=digest))
                self.sizes[key] = blob.descriptor.size
            except BlobUnknown:
                self.sizes[key] = None
        return self.sizes[key]

    async def about(self, subject: tuple[RepositoryName, Digest]) -> list[Wanted]:
        """Return what refers to a manifest, also by a tag that is made of its digest, as cosign does it."""
        repository, digest = subject
        found: list[Wanted] = []
        more, after = True, ""
        while more:
            page = await self._source(ListReferrers(repository=repository, subject=digest, after=after, limit=_PAGE))
            found += [Wanted(repository, each.digest) for each in page.referrers]
            more, after = page.more and page.last is not None, page.last or ""
        prefix = f"{Tag.fallback(digest)}."
        for tag in await self._tags_of(repository):
            if tag.startswith(prefix) and (meant := await meaning(self._source, repository, tag)) is not None:
                found.append(Wanted(repository, meant, (tag,)))
        return found

    async def _tags_of(self, repository: RepositoryName) -> list[Tag]:
        if repository not in self._tags:
            # Those that are made of digests only.
            self._tags[repository] = [
                tag for tag in await list_tags(self._source, repository) if "-" in tag and "." in tag
            ]
        return self._tags[repository]


async def list_tags(source: Handler, repository: RepositoryName) -> list[Tag]:
    """Return all tags of a repository; none if it is not there."""
    found: list[Tag] = []
    more = True
    while more:
        try:
            page = await source(ListTags(repository=repository, after=found[-1] if found else "", limit=_PAGE))
        except NameUnknown:
            return []
        found += page.tags
        more = page.more
    return found


async def meaning(source: Handler, repository: RepositoryName, tag: Tag) -> Digest | None:
    """Return what a tag means, None if nothing that is there."""
    try:
        return (await source(PullManifest(repository=repository, reference=tag))).digest
    except ManifestUnknown:
        return None


# ---- planning and copying


async def plan_images(images: Iterable[Image], destination: Destination, *, jobs: int) -> ImagePlan:
    """Compare `images` with what `destination` has.

    What is missing of an image at the source does no harm if it is at the destination.

    Raises:
        RegistryError, OSError: the destination fails.
    """
    flaws: list[Flaw] = []
    whole: list[Image] = []
    for image in images:
        missing = [item for item in image.missing if not await destination.has(item)]
        if image.damaged:
            flaws.append(Flaw(image.name, image.damaged))
        elif missing:
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            flaws.append(Flaw(image.name, f"{missing[0].digest} ({missing[0].media_type}){more} is missing"))
        else:
            whole.append(image)
    items = list({_place(item, destination): item for image in whole for item in image.items}.values())
    there = await map_bounded(destination.has, items, limit=jobs)
    lacking = await map_bounded(destination.lacks, whole, limit=jobs)
    names = [Name(image, tag) for image, tags in zip(whole, lacking, strict=True) for tag in tags]
    named = sum(len(image.wanted.tags) for image in whole)
    return ImagePlan(
        images=tuple(whole),
        items=tuple(item for item, is_there in zip(items, there, strict=True) if not is_there),
        names=tuple(names),
        same=sum(there) + named - sum(name.tag is not None for name in names),
        flaws=tuple(flaws),
    )


def _place(item: Item, destination: Destination) -> tuple[RepositoryName | None, Digest, bool]:
    return (item.repository if destination.scoped else None), item.digest, item.level > 0


async def copy_images(
    plan: ImagePlan,
    source: Handler,
    destination: Destination,
    *,
    jobs: int,
    advance: Callable[[Moved], object] = lambda moved: None,
) -> Moved:
    """Carry out `plan`.

    Raises:
        RegistryError, OSError: one of the sides failed; what was brought stays.
    """
    copier = _Copier(source, destination, advance, plan.flaws)
    for level in sorted({item.level for item in plan.items}):
        # In several repositories, but one after the other: the first brings the bytes, which the others share.
        groups: dict[Digest, list[Item]] = {}
        for item in plan.items:
            if item.level == level:
                groups.setdefault(item.digest, []).append(item)
        # Large ones first, so that none of them is still under way alone at the end.
        ordered = sorted(groups.values(), key=lambda group: (-group[0].size, group[0].digest))
        await map_bounded(copier.bring, ordered, limit=jobs)
    moved, failed = copier.moved, copier.failed
    unfit = {
        image.wanted
        for image in plan.images
        if not failed.isdisjoint(_place(item, destination) for item in image.items)
    }
    moved.flaws += [
        Flaw(image.name, "something of it could not be copied") for image in plan.images if image.wanted in unfit
    ]
    names = [name for name in plan.names if name.image.wanted not in unfit]
    await destination.name(names)
    moved.objects += len(names)
    advance(moved)
    return moved


class _Copier:
    """Brings single things."""

    def __init__(
        self, source: Handler, destination: Destination, advance: Callable[[Moved], object], flaws: Sequence[Flaw]
    ) -> None:
        self._source = source
        self._destination = destination
        self._advance = advance
        self.moved = Moved(flaws=list(flaws))
        self.failed: set[tuple[RepositoryName | None, Digest, bool]] = set()

    async def bring(self, group: Sequence[Item]) -> None:
        """Bring one content to each of its places."""
        for item in group:
            try:
                await self._bring(item)
            except _LEFT as error:
                self.failed.add(_place(item, self._destination))
                self.moved.flaws.append(Flaw(item.digest, error.message))
            self._advance(self.moved)

    async def _bring(self, item: Item) -> None:
        arrived = 0

        async def count(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
            nonlocal arrived
            async for chunk in chunks:
                arrived += len(chunk)
                self.moved.bytes += len(chunk)
                self._advance(self.moved)
                yield chunk

        if item.level == 0:
            blob = await self._source(PullBlob(repository=item.repository, digest=item.digest))
            await self._destination.write_blob(item, blob, count)
        else:
            manifest = await self._source(PullManifest(repository=item.repository, reference=item.digest))
            if Digest.of(manifest.data, item.digest.algorithm) != item.digest:
                raise _changed(item.digest)
            for each in manifest.references():
                needed = msgspec.structs.replace(item, digest=each.digest)
                as_blob = msgspec.structs.replace(needed, level=0)
                if not self.failed.isdisjoint({_place(needed, self._destination), _place(as_blob, self._destination)}):
                    # Told where it failed, and of the image.
                    self.failed.add(_place(item, self._destination))
                    return
            await self._destination.write_manifest(item, manifest)
        self.moved.objects += 1
        # What had to be no more than linked.
        self.moved.bytes += item.size - arrived


def _changed(digest: Digest) -> DigestInvalid:
    return DigestInvalid("its content has another digest", detail={"digest": str(digest)})

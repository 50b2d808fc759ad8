"""Random sequences of operations against a model that is a few dictionaries."""

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from content import Sent, image, index, pull_blob
from moorage import (
    OCI_INDEX,
    OCI_MANIFEST,
    BlobPushed,
    BlobUnknown,
    CommitUpload,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    Digest,
    Handler,
    ListReferrers,
    ListRepositories,
    ListTags,
    ManifestBlobUnknown,
    ManifestUnknown,
    MountBlob,
    NameUnknown,
    OpenUpload,
    PullManifest,
    PushBlob,
    PushManifest,
    Registry,
    RegistryError,
    RepositoryName,
    Tag,
)
from stores import Kind, new_store

T = TypeVar("T")

REPOSITORIES = (RepositoryName("a"), RepositoryName("a/b"))
BLOBS = {Digest.of(data): data for data in (b"{}", b"one", b"two")}
CONFIG, ONE, TWO = BLOBS
TAGS = tuple(map(Tag, ("1.0", "1.0-x", "2")))


def _contents() -> dict[Digest, tuple[str, bytes, tuple[Digest, ...], Digest | None]]:
    """Manifests by digest: media type, bytes, what they need, their subject."""
    found: dict[Digest, tuple[str, bytes, tuple[Digest, ...], Digest | None]] = {}

    def add(media_type: str, data: bytes, needs: tuple[Digest, ...], subject: Digest | None = None) -> Digest:
        found[Digest.of(data)] = (media_type, data, needs, subject)
        return Digest.of(data)

    first = add(OCI_MANIFEST, image(CONFIG, ONE), (CONFIG, ONE))
    second = add(OCI_MANIFEST, image(CONFIG, TWO), (CONFIG, TWO))
    add(OCI_MANIFEST, image(CONFIG, subject=first), (CONFIG,), first)
    add(OCI_INDEX, index(first, second), (first, second))
    add(
        OCI_INDEX,
        index(second, ONE, subject={"mediaType": OCI_MANIFEST, "digest": first, "size": 1}),
        (second, ONE),
        first,
    )
    return found


MANIFESTS = _contents()


class Repository(msgspec.Struct):
    """What should be in a repository."""

    blobs: set[Digest] = msgspec.field(default_factory=set[Digest])
    manifests: set[Digest] = msgspec.field(default_factory=set[Digest])
    tags: dict[Tag, Digest] = msgspec.field(default_factory=dict[Tag, Digest])


class Model:
    """A registry, what should be in it, and steps that change both."""

    def __init__(self, registry: Handler) -> None:
        self.registry = registry
        self.repositories = {name: Repository() for name in REPOSITORIES}
        self.had_manifests: set[RepositoryName] = set()

    async def answer(self, request: Awaitable[T], refused: type[RegistryError] | None) -> None:
        if refused is None:
            await request
        else:
            with pytest.raises(refused):
                await request

    async def push_blob(self, name: RepositoryName, digest: Digest) -> None:
        body = Sent(BLOBS[digest])
        await self.registry(PushBlob(repository=name, digest=digest, body=body))
        self.repositories[name].blobs.add(digest)

    async def upload_blob(self, name: RepositoryName, digest: Digest) -> None:
        upload_id = (await self.registry(OpenUpload(repository=name))).upload_id
        await self.registry(CommitUpload(repository=name, upload_id=upload_id, digest=digest, body=Sent(BLOBS[digest])))
        self.repositories[name].blobs.add(digest)

    async def mount_blob(self, name: RepositoryName, digest: Digest) -> None:
        (source,) = (other for other in REPOSITORIES if other != name)
        answer = await self.registry(MountBlob(repository=name, digest=digest, source=source))
        there = digest in self.repositories[source].blobs
        assert isinstance(answer, BlobPushed) == there
        if there:
            self.repositories[name].blobs.add(digest)

    async def delete_blob(self, name: RepositoryName, digest: Digest) -> None:
        there = digest in self.repositories[name].blobs
        request = self.registry(DeleteBlob(repository=name, digest=digest))
        await self.answer(request, None if there else BlobUnknown)
        self.repositories[name].blobs.discard(digest)

    async def push_manifest(self, name: RepositoryName, digest: Digest, tag: Tag | None) -> None:
        here = self.repositories[name]
        media_type, data, needs, _ = MANIFESTS[digest]
        there = here.blobs | here.manifests if media_type == OCI_INDEX else here.blobs
        whole = all(need in there for need in needs)
        request = self.registry(
            PushManifest(repository=name, reference=tag or digest, media_type=media_type, data=data)
        )
        await self.answer(request, None if whole else ManifestBlobUnknown)
        if whole:
            here.manifests.add(digest)
            self.had_manifests.add(name)
            if tag is not None:
                here.tags[tag] = digest

    async def delete_manifest(self, name: RepositoryName, digest: Digest) -> None:
        here = self.repositories[name]
        there = digest in here.manifests
        request = self.registry(DeleteManifest(repository=name, digest=digest))
        await self.answer(request, None if there else ManifestUnknown)
        here.manifests.discard(digest)
        here.tags = {tag: meant for tag, meant in here.tags.items() if meant != digest}

    async def delete_tag(self, name: RepositoryName, tag: Tag) -> None:
        there = self.repositories[name].tags.pop(tag, None) is not None
        request = self.registry(DeleteTag(repository=name, tag=tag))
        await self.answer(request, None if there else ManifestUnknown)

    async def check(self) -> None:
        """Look at everything that can be seen."""
        for name, here in self.repositories.items():
            for digest, data in BLOBS.items():
                if digest in here.blobs:
                    assert await pull_blob(self.registry, digest, name) == data
                else:
                    with pytest.raises(BlobUnknown):
                        await pull_blob(self.registry, digest, name)
            for digest, (media_type, data, _, _) in MANIFESTS.items():
                request = self.registry(PullManifest(repository=name, reference=digest))
                if digest in here.manifests:
                    found = await request
                    assert (found.data, found.media_type, found.digest) == (data, media_type, digest)
                else:
                    with pytest.raises(ManifestUnknown):
                        await request
                referrers = await self.registry(ListReferrers(repository=name, subject=digest))
                assert [each.digest for each in referrers.referrers] == sorted(
                    other for other in here.manifests if MANIFESTS[other][3] == digest
                )
            for tag in TAGS:
                request = self.registry(PullManifest(repository=name, reference=tag))
                if tag in here.tags:
                    assert (await request).digest == here.tags[tag]
                else:
                    with pytest.raises(ManifestUnknown):
                        await request
            request_tags = self.registry(ListTags(repository=name))
            if here.blobs or here.manifests:
                assert list((await request_tags).tags) == sorted(here.tags)
            else:
                with pytest.raises(NameUnknown):
                    await request_tags
        listed = set((await self.registry(ListRepositories())).repositories)
        # One that had manifests may still be listed.
        assert {name for name, here in self.repositories.items() if here.manifests} <= listed <= self.had_manifests


Step = Callable[[Model], Awaitable[None]]


def step(method: Callable[..., Awaitable[None]], *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Step]:
    def bind(chosen: tuple[object, ...]) -> Step:
        return lambda model: method(model, *chosen)

    return st.tuples(st.sampled_from(REPOSITORIES), *arguments).map(bind)


BLOB, MANIFEST, TAG = st.sampled_from(list(BLOBS)), st.sampled_from(list(MANIFESTS)), st.sampled_from(TAGS)
PUSH_MANIFEST = step(Model.push_manifest, MANIFEST, st.one_of(st.none(), TAG))
STEPS = st.one_of(
    step(Model.push_blob, BLOB),
    step(Model.upload_blob, BLOB),
    step(Model.mount_blob, BLOB),
    step(Model.delete_blob, BLOB),
    PUSH_MANIFEST,
    PUSH_MANIFEST,
    step(Model.delete_manifest, MANIFEST),
    step(Model.delete_tag, TAG),
)


@pytest.mark.parametrize(("kind", "fresh"), [("memory", False), ("memory", True), ("filesystem", True)])
@settings(max_examples=40, deadline=None)
@given(st.booleans(), st.lists(STEPS, max_size=25))
async def test_any_sequence_of_operations_agrees_with_the_model(
    kind: Kind, fresh: bool, filled: bool, steps: list[Step]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with new_store(kind, Path(folder)).open() as driver:
            model = Model(Registry(driver))
            if filled:
                for name in REPOSITORIES:
                    for digest in BLOBS:
                        await model.push_blob(name, digest)
                    for number, digest in enumerate(MANIFESTS):
                        await model.push_manifest(name, digest, TAGS[number % len(TAGS)])
            for each in steps:
                if fresh:
                    model.registry = Registry(driver)
                await each(model)
            await model.check()
            model.registry = Registry(driver)
            await model.check()

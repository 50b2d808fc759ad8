import json
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings, strategies as st

from content import (
    CONFIG_TYPE,
    OTHER,
    REPOSITORY,
    append,
    commit,
    descriptor,
    image,
    index,
    open_upload,
    pull,
    pull_blob,
    push_blob,
    push_image,
    push_manifest,
    tags,
)
from moorage import (
    MANIFEST_LIMIT,
    OCI_INDEX,
    OCI_MANIFEST,
    TAGS_LIMIT,
    BlobPushed,
    BlobUnknown,
    Condition,
    ConditionFailed,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    Denied,
    Descriptor,
    Digest,
    DigestInvalid,
    Driver,
    DriverError,
    Handler,
    InternalError,
    KeyInvalid,
    KeyUnknown,
    ListReferrers,
    ListRepositories,
    ListTags,
    Manifest,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    Match,
    MemoryDriver,
    MountBlob,
    NameUnknown,
    OpenUpload,
    Operation,
    Ping,
    Pong,
    PreconditionFailed,
    PullBlob,
    PullManifest,
    PushManifest,
    RangeInvalid,
    Reader,
    ReferrerList,
    Refused,
    Registry,
    RegistryError,
    RepositoryName,
    Requirement,
    Stat,
    StorageFull,
    StoreBusy,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    Tag,
    TagCondition,
    Unavailable,
    Unchanged,
    Unsupported,
    UploadOpened,
    _registry,
)
from stores import Kind, Log, PowerCut, Store, WatchedDriver, new_store

BASE = f"docker/registry/v2/repositories/{REPOSITORY}/"


def blob_key(digest: Digest) -> str:
    return f"docker/registry/v2/blobs/{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}/data"


def layer_key(digest: Digest) -> str:
    return f"{BASE}_layers/{digest.algorithm}/{digest.encoded}/link"


def revision_key(digest: Digest) -> str:
    return f"{BASE}_manifests/revisions/{digest.algorithm}/{digest.encoded}/link"


def current_key(tag: str) -> str:
    return f"{BASE}_manifests/tags/{tag}/current/link"


async def keys(driver: Driver, prefix: str = "") -> list[str]:
    listing = await driver.list(prefix)
    assert not listing.more
    return [entry.key for entry in listing.entries]


async def meaning(registry: Handler, reference: str | Digest) -> Digest | None:
    try:
        return (await pull(registry, reference)).digest
    except ManifestUnknown:
        return None


def delete_manifest(digest: Digest, if_match: Match | None = None) -> DeleteManifest:
    return DeleteManifest(repository=REPOSITORY, digest=digest, if_match=if_match)


# ---- pull


async def test_a_registry_answers_a_ping(registry: Registry) -> None:
    assert await registry(Ping()) == Pong()


async def test_an_operation_that_is_not_known_is_unsupported(registry: Registry) -> None:
    class Dance(Operation[Pong], frozen=True, kw_only=True):
        pass

    with pytest.raises(Unsupported, match="Dance"):
        await registry(Dance())


async def test_a_manifest_is_pulled_by_tag_and_by_digest_byte_for_byte(store: Store) -> None:
    data = b""
    async with store.open() as driver:
        registry = Registry(driver)
        config = await push_blob(registry, b"{}")
        data = image(config, annotations={"text": "a — b"}) + b"\n  "
        pushed = await push_manifest(registry, data, "latest")
        assert pushed.descriptor == Descriptor(media_type=OCI_MANIFEST, digest=Digest.of(data), size=len(data))
        assert (pushed.reference, pushed.tags, pushed.subject) == ("latest", ("latest",), None)
    async with store.open() as driver:
        registry = Registry(driver)
        for reference in ("latest", Digest.of(data)):
            found = await pull(registry, reference)
            assert (found.data, found.descriptor) == (data, pushed.descriptor)


async def test_what_is_not_in_the_repository_is_unknown_although_another_has_it(registry: Registry) -> None:
    digest = await push_image(registry, "latest", repository=OTHER)
    blob = await push_blob(registry, b"blob", OTHER)
    for reference in ("latest", "other", digest, Digest.of(b"nothing"), Digest("blake3:abc"), Digest("a+b:c=")):
        with pytest.raises(ManifestUnknown):
            await pull(registry, reference)
    for unknown in (blob, Digest.of(b"nothing"), Digest("blake3:abc")):
        with pytest.raises(BlobUnknown):
            await pull_blob(registry, unknown)


async def test_a_manifest_is_no_blob_and_a_blob_no_manifest(registry: Registry) -> None:
    digest = await push_image(registry)
    blob = await push_blob(registry, b"{}")
    with pytest.raises(BlobUnknown):
        await pull_blob(registry, digest)
    with pytest.raises(ManifestUnknown):
        await pull(registry, blob)


async def test_a_blob_is_not_open_until_it_is_opened(registry: Registry, driver: Driver) -> None:
    digest = await push_blob(registry, b"0123456789")
    blob = await registry(PullBlob(repository=REPOSITORY, digest=digest))
    assert (blob.descriptor.size, blob.descriptor.digest) == (10, digest)
    assert await blob.url("192.0.2.1") is None
    async with blob.open(3, 7) as reader:
        assert b"".join([chunk async for chunk in reader]) == b"3456"
    with pytest.raises(RangeInvalid) as caught:
        async with blob.open(11, None):
            pass
    assert caught.value.size == 10
    await driver.delete(blob_key(digest))
    with pytest.raises(BlobUnknown):
        async with blob.open(0, None):
            pass


# ---- what else a store may hold


async def test_a_link_without_its_data_means_nothing(registry: Registry, driver: Driver) -> None:
    digest = await push_image(registry, "latest")
    blob = await push_blob(registry, b"blob")
    await driver.delete(blob_key(digest), blob_key(blob))
    # Another process: one that has not kept the bytes of what it was pushed.
    fresh = Registry(driver)
    for reference in ("latest", digest):
        assert await meaning(fresh, reference) is None
    with pytest.raises(BlobUnknown):
        await pull_blob(fresh, blob)


async def test_links_with_white_space_are_followed(registry: Registry, driver: Driver) -> None:
    digest = await push_image(registry, "latest")
    blob = await push_blob(registry, b"blob")
    for key, target in ((current_key("latest"), digest), (layer_key(blob), blob)):
        await driver.write(key, f" {target}\r\n".encode())
    assert await meaning(registry, "latest") == digest
    assert await pull_blob(registry, blob) == b"blob"


async def test_empty_links_mean_nothing_and_may_be_overwritten(registry: Registry, driver: Driver) -> None:
    digest = await push_image(registry, "latest")
    blob = await push_blob(registry, b"blob")
    await driver.write(current_key("latest"), b"")
    await driver.write(layer_key(blob), b"\n")
    assert await meaning(registry, "latest") is None
    with pytest.raises(BlobUnknown):
        await pull_blob(registry, blob)
    with pytest.raises(ManifestUnknown):
        await registry(DeleteTag(repository=REPOSITORY, tag=Tag("latest")))
    await push_image(registry, "latest")
    await push_blob(registry, b"blob")
    assert await meaning(registry, "latest") == digest
    assert await pull_blob(registry, blob) == b"blob"


async def test_a_link_that_holds_nonsense_is_a_fault_of_the_registry(registry: Registry, driver: Driver) -> None:
    await push_image(registry, "latest")
    await driver.write(current_key("latest"), b"nonsense")
    with pytest.raises(InternalError):
        await pull(registry, "latest")


async def test_a_stored_manifest_that_cannot_be_read_is_a_fault_of_the_registry(
    registry: Registry, driver: Driver
) -> None:
    digest = await push_image(registry, "latest")
    await driver.write(blob_key(digest), b"nonsense")
    with pytest.raises(InternalError):
        await pull(Registry(driver), "latest")
    # And can be taken away.
    await Registry(driver)(delete_manifest(digest))
    assert await meaning(Registry(driver), "latest") is None


async def test_alias_links_of_distribution_are_followed_and_mounted(registry: Registry, driver: Driver) -> None:
    digest = await push_blob(registry, b"blob")
    alias = Digest.of(b"blob", "sha512")
    await driver.write(layer_key(alias), digest.encode())
    blob = await registry(PullBlob(repository=REPOSITORY, digest=alias))
    assert blob.descriptor.digest == alias
    assert await pull_blob(registry, alias) == b"blob"
    mounted = await registry(MountBlob(repository=OTHER, digest=alias, source=REPOSITORY))
    assert isinstance(mounted, BlobPushed)
    assert await pull_blob(registry, alias, OTHER) == b"blob"
    await push_manifest(registry, image(alias), "by-alias")


async def test_a_tag_whose_revision_is_gone_is_dead(registry: Registry, driver: Driver) -> None:
    digest = await push_image(registry, "latest")
    await driver.delete(revision_key(digest))
    assert await meaning(registry, "latest") is None
    with pytest.raises(ManifestUnknown):
        await registry(DeleteTag(repository=REPOSITORY, tag=Tag("latest")))
    await registry(push(image(await push_blob(registry, b"{}")), "latest", if_none_match=Match(any=True)))


# ---- push of manifests


def push(
    data: bytes,
    reference: str | Digest,
    *,
    media_type: str = OCI_MANIFEST,
    tags: tuple[str, ...] = (),
    if_match: Match | None = None,
    if_none_match: Match | None = None,
    tag_condition: TagCondition | None = None,
    unchecked: bool = False,
) -> PushManifest:
    return PushManifest(
        repository=REPOSITORY,
        reference=reference if isinstance(reference, Digest) else Tag(reference),
        media_type=media_type,
        data=data,
        tags=tuple(map(Tag, tags)),
        if_match=if_match,
        if_none_match=if_none_match,
        tag_condition=tag_condition,
        unchecked=unchecked,
    )


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_a_manifest_may_be_pushed_by_any_digest_with_tags(registry: Registry, algorithm: str) -> None:
    data = image(await push_blob(registry, b"{}"))
    digest = Digest.of(data, algorithm)
    pushed = await registry(push(data, digest, tags=("a", "b", "a")))
    assert pushed.tags == ("a", "b")
    assert pushed.descriptor.digest == digest
    for reference in ("a", "b", digest):
        assert await meaning(registry, reference) == digest
    assert await tags(registry) == ["a", "b"]


async def test_the_tag_that_is_pushed_and_further_ones_are_written_once(registry: Registry) -> None:
    data = image(await push_blob(registry, b"{}"))
    assert (await registry(push(data, "a", tags=("b", "a")))).tags == ("a", "b")


async def test_a_manifest_that_is_not_what_its_reference_or_type_says_is_refused(
    registry: Registry, driver: Driver
) -> None:
    config = await push_blob(registry, b"{}")
    before = await keys(driver)
    data = image(config)
    for operation, error in (
        (push(data, Digest.of(b"other")), DigestInvalid),
        (push(data, Digest.of(b"other", "sha512")), DigestInvalid),
        (push(data, Digest("md5:d41d8cd98f00b204e9800998ecf8427e")), DigestInvalid),
        (push(data, "a", media_type=OCI_INDEX), ManifestInvalid),
        (push(b"{}", "a"), ManifestInvalid),
        (push(b"", "a"), ManifestInvalid),
        (push(b" " * (MANIFEST_LIMIT + 1), "a"), ManifestTooLarge),
        (push(data, "a", tags=tuple(f"t{n}" for n in range(TAGS_LIMIT + 1))), ManifestInvalid),
    ):
        with pytest.raises(error):
            await registry(operation)
    assert await keys(driver) == before


async def test_a_manifest_as_large_as_the_limit_is_taken(registry: Registry) -> None:
    data = image(await push_blob(registry, b"{}"))
    data += b" " * (MANIFEST_LIMIT - len(data))
    await push_manifest(registry, data, "large")
    assert (await pull(registry, "large")).data == data
    with pytest.raises(ManifestTooLarge):
        await push_manifest(registry, data + b" ", "large")


async def test_every_missing_reference_is_named(registry: Registry, driver: Driver) -> None:
    here = await push_blob(registry, b"here")
    elsewhere = await push_blob(registry, b"elsewhere", OTHER)
    dataless = await push_blob(registry, b"dataless")
    await driver.delete(blob_key(dataless))
    never = Digest.of(b"never")
    with pytest.raises(ManifestBlobUnknown) as caught:
        await push_manifest(registry, image(here, elsewhere, here, never, dataless, never), "latest")
    named = [entry["detail"] for entry in caught.value.entries()]
    assert [each["digest"] for each in named if isinstance(each, dict)] == [elsewhere, never, dataless]
    assert await meaning(registry, "latest") is None


async def test_an_index_may_list_manifests_and_blobs_but_an_image_is_made_of_blobs(registry: Registry) -> None:
    manifest = await push_image(registry)
    layer = await push_blob(registry, b"a layer")
    await push_manifest(registry, index(manifest, layer), "index", media_type=OCI_INDEX)
    with pytest.raises(ManifestBlobUnknown):
        await push_manifest(registry, image(layer, manifest), "image")
    with pytest.raises(ManifestBlobUnknown):
        await push_manifest(registry, index(manifest, Digest.of(b"never")), "sparse", media_type=OCI_INDEX)


async def test_a_manifest_that_lists_one_thing_as_both_needs_it_as_both(registry: Registry) -> None:
    digest = await push_image(registry)
    both = {"mediaType": "x/y", "manifests": [descriptor(digest)], "blobs": [descriptor(digest)]}
    with pytest.raises(ManifestBlobUnknown):
        await push_manifest(registry, json.dumps(both).encode(), media_type="x/y")
    await push_manifest(registry, json.dumps(both | {"blobs": []}).encode(), media_type="x/y")


async def test_what_is_made_of_nothing_and_whose_subject_is_missing_is_taken(registry: Registry) -> None:
    await push_manifest(registry, index(), "empty", media_type=OCI_INDEX)
    config = await push_blob(registry, b"{}")
    pushed = await push_manifest(registry, image(config, subject=Digest.of(b"never")))
    assert pushed.subject == Digest.of(b"never")
    assert pushed.tags == ()


class Rules:
    """Decisions that are written down, and answered as a test wants."""

    def __init__(
        self,
        *,
        required: bool = True,
        answer: Callable[[Handler], tuple[str, ...]] = lambda registry: (),
    ) -> None:
        self.asked: list[object] = []
        self.required = required
        self.answer = answer
        self.view: Handler | None = None

    async def validate_manifest(self, push: PushManifest, manifest: Manifest, registry: Handler) -> tuple[str, ...]:
        self.asked.append(push.reference)
        assert manifest.data == push.data
        self.view = registry
        return self.answer(registry)

    async def requires_reference(
        self, push: PushManifest, manifest: Manifest, descriptor: Descriptor, registry: Handler
    ) -> Requirement:
        del push, manifest, registry
        self.asked.append(descriptor.digest)
        return Requirement(required=self.required)


async def test_rules_are_asked_about_missing_references_only_and_then_about_the_whole(driver: Driver) -> None:
    rules = Rules(required=False, answer=lambda registry: ("careful",))
    registry = Registry(driver, rules)
    config = await push_blob(registry, b"{}")
    missing = Digest.of(b"missing")
    pushed = await push_manifest(registry, image(config, missing), "a")
    assert pushed.warnings == ("careful",)
    assert rules.asked == [missing, "a"]
    rules.asked.clear()
    rules.required = True
    with pytest.raises(ManifestBlobUnknown):
        await push_manifest(registry, image(config, missing), "b")
    assert rules.asked == [missing]


async def test_what_a_rule_refuses_is_not_stored(driver: Driver) -> None:
    def refuse(registry: Handler) -> tuple[str, ...]:
        raise Refused("no", status=422)

    registry = Registry(driver, Rules(answer=refuse))
    data = image(await push_blob(registry, b"{}"))
    before = await keys(driver)
    with pytest.raises(Denied, match="no") as caught:
        await push_manifest(registry, data, "a")
    assert caught.value.status == 422
    assert await keys(driver) == before
    await registry(push(data, "a", unchecked=True))
    assert await meaning(registry, "a") == Digest.of(data)


async def test_an_unchecked_push_may_point_at_what_is_missing(driver: Driver) -> None:
    rules = Rules()
    registry = Registry(driver, rules)
    await registry(push(image(Digest.of(b"missing")), "a", unchecked=True))
    assert rules.asked == []


async def test_rules_look_around_and_change_nothing(driver: Driver) -> None:
    rules = Rules()
    registry = Registry(driver, rules)
    digest = await push_image(registry, "a")
    assert rules.view is not None
    assert await meaning(rules.view, "a") == digest
    assert await tags(rules.view) == ["a"]
    await rules.view(ListRepositories())
    await rules.view(Ping())
    for operation in (
        push(b"", "a"),
        delete_manifest(digest),
        DeleteTag(repository=REPOSITORY, tag=Tag("a")),
        DeleteBlob(repository=REPOSITORY, digest=digest),
        OpenUpload(repository=REPOSITORY),
        MountBlob(repository=REPOSITORY, digest=digest),
    ):
        with pytest.raises(Unsupported):
            await rules.view(operation)


# ---- conditions


async def test_if_match_and_if_none_match_speak_of_what_the_reference_means(registry: Registry) -> None:
    config = await push_blob(registry, b"{}")
    old, new = image(config), image(config, config)
    one, two = Digest.of(old), Digest.of(new)
    anything = Match(any=True)
    for refused in (
        push(old, "a", if_match=anything),
        push(old, "a", if_match=Match(frozenset({one}))),
        push(old, one, if_match=anything),
    ):
        with pytest.raises(PreconditionFailed):
            await registry(refused)
    assert await meaning(registry, one) is None
    await registry(push(old, "a", if_none_match=anything))
    for refused in (
        push(new, "a", if_none_match=anything),
        push(new, "a", if_none_match=Match(frozenset({one}))),
        push(new, "a", if_match=Match(frozenset({two}))),
        push(new, "a", if_match=Match()),
        push(old, one, if_none_match=anything),
    ):
        with pytest.raises(PreconditionFailed):
            await registry(refused)
    assert await meaning(registry, "a") == one
    await registry(push(new, "a", if_match=Match(frozenset({one, two}))))
    assert await meaning(registry, "a") == two
    await registry(push(old, "a", if_match=anything, if_none_match=Match(frozenset({one}))))
    await registry(push(old, one, if_match=anything))
    assert await meaning(registry, "a") == one


async def outcomes(registry: Handler, *operations: PushManifest) -> list[Digest]:
    """Run all at once; return the digests of those that were not refused."""
    done: list[Digest] = []

    async def run(operation: PushManifest) -> None:
        try:
            done.append((await registry(operation)).descriptor.digest)
        except PreconditionFailed:
            return

    async with trio.open_nursery() as nursery:
        for operation in operations:
            nursery.start_soon(run, operation)
    return done


async def test_of_many_pushes_that_match_one_digest_exactly_one_wins(registry: Registry) -> None:
    config = await push_blob(registry, b"{}")
    await push_manifest(registry, image(config), "a")
    for turn in range(4):
        current = await meaning(registry, "a")
        assert current is not None
        match = Match(frozenset({current}))
        contents = [image(config, annotations={"n": f"{turn}-{number}"}) for number in range(12)]
        done = await outcomes(registry, *(push(data, "a", if_match=match) for data in contents))
        assert len(done) == 1
        assert await meaning(registry, "a") == done[0]


@pytest.mark.parametrize("condition", [None, TagCondition()])
async def test_of_many_pushes_to_a_tag_that_must_be_absent_exactly_one_wins(
    registry: Registry, condition: TagCondition | None
) -> None:
    config = await push_blob(registry, b"{}")
    none = Match(any=True) if condition is None else None
    contents = [image(config, annotations={"n": f"{number}"}) for number in range(12)]
    done = await outcomes(
        registry, *(push(data, "a", if_none_match=none, tag_condition=condition) for data in contents)
    )
    assert len(done) == 1
    assert await meaning(registry, "a") == done[0]


async def test_a_tag_that_may_not_move_takes_the_same_digest_again_and_no_other(registry: Registry) -> None:
    config = await push_blob(registry, b"{}")
    old, new = image(config), image(config, config)
    fixed = TagCondition()
    await registry(push(old, "a", tag_condition=fixed))
    await registry(push(old, "a", tags=("b",), tag_condition=fixed))
    for refused in (
        push(new, "a", tag_condition=fixed),
        push(new, "c", tags=("b",), tag_condition=fixed),
        push(new, Digest.of(new), tags=("b",), tag_condition=fixed),
    ):
        with pytest.raises(PreconditionFailed):
            await registry(refused)
    assert await tags(registry) == ["a", "b"]
    assert await meaning(registry, Digest.of(new)) is None
    await registry(delete_manifest(Digest.of(old)))
    await registry(push(new, "a", tag_condition=fixed))
    assert await meaning(registry, "a") == Digest.of(new)


async def test_many_tags_pushed_at_once_are_all_there(registry: Registry) -> None:
    config = await push_blob(registry, b"{}")
    contents = {f"t{number}": image(config, annotations={"n": f"{number}"}) for number in range(20)}
    await outcomes(registry, *(push(data, tag) for tag, data in contents.items()))
    for tag, data in contents.items():
        assert (await pull(registry, tag)).data == data
    assert await tags(registry) == sorted(contents)


# ---- deletes


async def test_a_deleted_tag_is_gone_and_its_manifest_stays(registry: Registry, driver: Driver) -> None:
    digest = await push_image(registry, "a")
    await push_image(registry, "a.b")
    assert (await registry(DeleteTag(repository=REPOSITORY, tag=Tag("a")))).tags == ("a",)
    assert await meaning(registry, "a") is None
    assert await meaning(registry, "a.b") == digest
    assert await meaning(registry, digest) == digest
    assert await tags(registry) == ["a.b"]
    assert not [key for key in await keys(driver) if "/tags/a/" in key]
    with pytest.raises(ManifestUnknown):
        await registry(DeleteTag(repository=REPOSITORY, tag=Tag("a")))


async def test_deletes_honour_if_match(registry: Registry) -> None:
    digest = await push_image(registry, "a")
    wrong, right = Match(frozenset({Digest.of(b"other")})), Match(frozenset({digest}))
    for refused in (DeleteTag(repository=REPOSITORY, tag=Tag("a"), if_match=wrong), delete_manifest(digest, wrong)):
        with pytest.raises(PreconditionFailed):
            await registry(refused)
    await registry(DeleteTag(repository=REPOSITORY, tag=Tag("a"), if_match=right))
    await registry(delete_manifest(digest, right))
    with pytest.raises(ManifestUnknown):
        await registry(delete_manifest(digest, right))


async def test_a_deleted_manifest_takes_its_tags_with_it_and_no_others(registry: Registry) -> None:
    digest = await push_image(registry)
    names = ["1.0", "1.0-alpine", "1.0.1", "latest", *(f"t{number:03}" for number in range(40))]
    for name in names:
        await push_image(registry, name)
    other = await push_image(registry, "moved", salt="other")
    await push_image(registry, "moved-away")
    await push_image(registry, "moved-away", salt="other")
    deleted = await registry(delete_manifest(digest))
    assert deleted.tags == tuple(names)
    assert await tags(registry) == ["moved", "moved-away"]
    assert await meaning(registry, "moved") == other
    assert await meaning(registry, digest) is None
    with pytest.raises(ManifestUnknown):
        await registry(delete_manifest(digest))


async def test_a_deleted_manifest_is_still_in_other_repositories(registry: Registry) -> None:
    digest = await push_image(registry, "a")
    await push_image(registry, "a", repository=OTHER)
    await registry(delete_manifest(digest))
    assert (await pull(registry, "a", OTHER)).digest == digest


async def test_a_deleted_blob_is_gone_from_its_repository_only(registry: Registry) -> None:
    digest = await push_blob(registry, b"blob")
    await push_blob(registry, b"blob", OTHER)
    delete = DeleteBlob(repository=REPOSITORY, digest=digest)
    await registry(delete)
    with pytest.raises(BlobUnknown):
        await pull_blob(registry, digest)
    with pytest.raises(BlobUnknown):
        await registry(delete)
    assert await pull_blob(registry, digest, OTHER) == b"blob"


# ---- order of writes, and power cuts between them


async def test_a_push_writes_what_is_pointed_at_before_what_points(driver: Driver) -> None:
    log = Log()
    registry = Registry(WatchedDriver(driver, log))
    config = await push_blob(registry, b"{}")
    subject = Digest.of(b"subject")
    data = image(config, subject=subject)
    digest = Digest.of(data)
    log.steps.clear()
    await push_manifest(registry, data, "a", tags=["b"])
    # A service lists what has anything: there the history comes second, and goes first.
    first, second = (1, 0) if driver.capabilities.remote else (0, 1)
    of_a = [f"{BASE}_manifests/tags/a/index/sha256/{digest.encoded}/link", current_key("a")]
    of_b = [f"{BASE}_manifests/tags/b/index/sha256/{digest.encoded}/link", current_key("b")]
    assert log.steps == [
        ("write", blob_key(digest)),
        ("write", f"{BASE}_referrers/sha256/{subject.encoded}/sha256/{digest.encoded}"),
        ("write", revision_key(digest)),
        ("write", of_a[first]),
        ("write", of_a[second]),
        ("write", of_b[first]),
        ("write", of_b[second]),
    ]
    for key in (revision_key(digest), current_key("a"), current_key("b")):
        assert await driver.read(key, limit=100) == digest.encode()
    log.steps.clear()
    await registry(delete_manifest(digest))
    touched = [key for _, key in log.steps]
    # Both tags go at the same time.
    assert touched[0] == revision_key(digest)
    for tag in ("a", "b"):
        of_tag = [key for key in touched if f"/tags/{tag}/" in key]
        assert of_tag[-1 if driver.capabilities.remote else 0] == current_key(tag)
        assert len(of_tag) > 1
    assert touched[-1] == f"{BASE}_referrers/sha256/{subject.encoded}/sha256/{digest.encoded}"
    assert [key for key in await keys(driver, BASE) if "_layers" not in key] == []


async def test_a_push_that_is_cut_off_leaves_nothing_half_visible_and_may_be_repeated(store: Store) -> None:
    for steps in range(100):
        async with store.open() as driver:
            registry = Registry(driver)
            subject = await push_image(registry, "a")
            config = await push_blob(registry, b"{}")
            cut = PowerCut(steps)
            data = image(config, subject=subject)
            digest = Digest.of(data)
            operation = push(data, "a", tags=("b",), if_match=Match(frozenset({subject})))
            try:
                await Registry(WatchedDriver(driver, cut))(operation)
            except Unavailable:
                assert cut.happened
        async with store.open() as driver:
            registry = Registry(driver)
            visible = await meaning(registry, digest)
            assert await meaning(registry, subject) == subject
            for tag in await tags(registry):
                assert await meaning(registry, tag) in {subject, visible}
            listed = await registry(ListReferrers(repository=REPOSITORY, subject=subject))
            assert [each.digest for each in listed.referrers] == ([digest] if visible else [])
            if cut.happened:
                only_history_is_missing = driver.capabilities.remote and steps == 6
                assert only_history_is_missing or visible is None or await meaning(registry, "b") is None
            await registry(push(data, "a", tags=("b",)))
            assert await meaning(registry, "a") == await meaning(registry, "b") == digest
            listed = await registry(ListReferrers(repository=REPOSITORY, subject=subject))
            assert [each.digest for each in listed.referrers] == [digest]
            await driver.delete_below("docker/")
        if not cut.happened:
            assert steps == 7
            return
    raise AssertionError("it never ends")


async def test_a_delete_that_is_cut_off_is_not_done_or_leaves_dead_tags_only(store: Store) -> None:
    for steps in range(100):
        async with store.open() as driver:
            registry = Registry(driver)
            subject = await push_image(registry, "kept", salt="subject")
            digest = await push_image(registry, "a", subject=subject)
            await push_image(registry, "b", subject=subject)
            cut = PowerCut(steps)
            try:
                await Registry(WatchedDriver(driver, cut))(delete_manifest(digest))
            except Unavailable:
                assert cut.happened
        async with store.open() as driver:
            registry = Registry(driver)
            visible = await meaning(registry, digest)
            assert (visible is None) == (steps > 0)
            for tag in ("a", "b"):
                assert await meaning(registry, tag) == visible
            listed = await registry(ListReferrers(repository=REPOSITORY, subject=subject))
            assert [each.digest for each in listed.referrers] == ([digest] if visible else [])
            assert await meaning(registry, "kept") == subject
            await push_image(registry, "a", salt="new")
            await driver.delete_below("docker/")
        if not cut.happened:
            assert steps > 4
            return
    raise AssertionError("it never ends")


async def test_a_delete_that_was_cut_off_is_finished_by_its_repetition(store: Store) -> None:
    async with store.open() as driver:
        registry = Registry(driver)
        digest = await push_image(registry, "a")
        await push_image(registry, "b")
        with pytest.raises(Unavailable):
            await Registry(WatchedDriver(driver, PowerCut(1)))(delete_manifest(digest))
        assert (await registry(delete_manifest(digest))).tags == ("a", "b")
        await push_image(registry)
        assert await tags(registry) == []


class MovingDriver(MemoryDriver):
    """A store in which somebody moves the tag `a` right before it is deleted."""

    moved_to: Digest | None = None

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        if keys == (current_key("a"),) and self.moved_to is not None:
            await self.write(keys[0], self.moved_to.encode())
        await super().delete(*keys, condition=condition, durable=durable)


async def test_a_tag_that_moves_while_its_manifest_is_deleted_stays() -> None:
    driver = MovingDriver()
    registry = Registry(driver)
    moved_to = await push_image(registry, "other", salt="other")
    digest = await push_image(registry, "a")
    driver.moved_to = moved_to
    assert (await registry(delete_manifest(digest))).tags == ()
    assert await meaning(registry, "a") == moved_to


async def test_a_tag_that_moves_while_it_is_deleted_under_a_condition_stays() -> None:
    driver = MovingDriver()
    registry = Registry(driver)
    moved_to = await push_image(registry, "other", salt="other")
    digest = await push_image(registry, "a")
    driver.moved_to = moved_to
    with pytest.raises(PreconditionFailed):
        await registry(DeleteTag(repository=REPOSITORY, tag=Tag("a"), if_match=Match(frozenset({digest}))))
    assert await meaning(registry, "a") == moved_to


async def test_a_link_without_a_digest_keeps_no_manifest_from_being_deleted(registry: Registry, driver: Driver) -> None:
    digest = await push_image(registry, "a")
    await driver.write(current_key("junk"), b"nonsense")
    assert (await registry(delete_manifest(digest))).tags == ("a",)


async def test_a_referrer_with_a_descriptor_longer_than_a_manifest_is_listed(registry: Registry) -> None:
    subject = Digest("a:b")
    bare = index(
        subject={"mediaType": OCI_MANIFEST, "digest": subject, "size": 1}, annotations={"a": ""}, mediaType=None
    )
    data = index(
        subject={"mediaType": OCI_MANIFEST, "digest": subject, "size": 1},
        annotations={"a": "x" * (MANIFEST_LIMIT - len(bare))},
        mediaType=None,
    )
    assert len(data) == MANIFEST_LIMIT
    await push_manifest(registry, data, media_type=OCI_INDEX)
    listed = await registry(ListReferrers(repository=REPOSITORY, subject=subject))
    assert [each.digest for each in listed.referrers] == [Digest.of(data)]


async def test_a_damaged_entry_hides_no_other_referrer(registry: Registry, driver: Driver) -> None:
    subject = Digest.of(b"subject")
    damaged, other = await push_image(registry, subject=subject), await push_image(registry, subject=subject, salt="2")
    await driver.write(f"{BASE}_referrers/sha256/{subject.encoded}/sha256/{damaged.encoded}", b"")
    listed = await registry(ListReferrers(repository=REPOSITORY, subject=subject))
    assert [each.digest for each in listed.referrers] == [other]


async def test_tags_with_many_dashes_are_looked_at_once_each(driver: Driver) -> None:
    log = Log()
    registry = Registry(WatchedDriver(driver, log))
    digest = await push_image(registry)
    names = [f"{number:03}" + "-a" * 60 for number in range(60)]
    for name in names:
        await driver.write(current_key(name), digest.encode(), durable=False)
    looks: list[str] = []

    class Counting(WatchedDriver):
        async def stat(self, key: str) -> Stat:
            looks.append(key)
            return await super().stat(key)

    assert await tags(Registry(Counting(driver, log))) == names
    assert len(looks) == (0 if driver.capabilities.remote else len(names))


async def test_what_is_no_digest_among_the_referrers_is_passed_over(registry: Registry, driver: Driver) -> None:
    subject = Digest.of(b"subject")
    referrer = await push_image(registry, subject=subject)
    await driver.write(f"{BASE}_referrers/sha256/{subject.encoded}/sha256/none", b"{}")
    listed = await registry(ListReferrers(repository=REPOSITORY, subject=subject))
    assert [each.digest for each in listed.referrers] == [referrer]
    nothing = await registry(ListReferrers(repository=REPOSITORY, subject=subject, limit=0))
    assert (nothing.referrers, nothing.more) == ((), False)


# ---- mount


async def test_a_blob_is_mounted_from_a_repository_that_has_it(registry: Registry) -> None:
    digest = await push_blob(registry, b"blob", OTHER)
    answer = await registry(MountBlob(repository=REPOSITORY, digest=digest, source=OTHER))
    assert answer == BlobPushed(repository=REPOSITORY, digest=digest)
    assert await pull_blob(registry, digest) == b"blob"
    operation = MountBlob(repository=REPOSITORY, digest=digest, source=OTHER)
    assert {(access.repository, access.action) for access in operation.access} == {
        (REPOSITORY, "pull"),
        (REPOSITORY, "push"),
        (OTHER, "pull"),
    }


async def test_a_blob_is_mounted_from_anywhere_where_no_source_is_named(registry: Registry) -> None:
    digest = await push_blob(registry, b"blob", OTHER)
    answer = await registry(MountBlob(repository=REPOSITORY, digest=digest))
    assert isinstance(answer, BlobPushed)
    assert await pull_blob(registry, digest) == b"blob"


async def test_a_blob_is_mounted_only_from_where_the_caller_may_pull(registry: Registry, driver: Driver) -> None:
    digest = await push_blob(registry, b"blob", OTHER)
    mount = MountBlob(repository=REPOSITORY, digest=digest)
    assert isinstance(await registry(mount.only_from(lambda name: name != OTHER)), UploadOpened)
    assert await registry(mount.only_from(lambda name: name == OTHER)) == BlobPushed(
        repository=REPOSITORY, digest=digest
    )
    assert await pull_blob(registry, digest) == b"blob"
    await driver.delete(blob_key(digest))
    assert isinstance(await registry(mount.only_from(lambda name: True)), UploadOpened)


async def test_a_mount_looks_through_so_many_repositories(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_SEARCHED_REPOSITORIES", 3)
    for number in range(4):
        await push_blob(registry, b"other", RepositoryName(f"a{number}"))
    digest = await push_blob(registry, b"blob", RepositoryName("a3"))
    mount = MountBlob(repository=REPOSITORY, digest=digest).only_from(lambda name: True)
    assert isinstance(await registry(mount), UploadOpened)
    monkeypatch.setattr(_registry, "_SEARCHED_REPOSITORIES", 4)
    assert isinstance(await registry(mount), BlobPushed)


async def test_what_cannot_be_mounted_is_uploaded(registry: Registry, driver: Driver) -> None:
    nowhere = Digest.of(b"nowhere")
    elsewhere = await push_blob(registry, b"elsewhere", RepositoryName("third"))
    dataless = await push_blob(registry, b"dataless", OTHER)
    await driver.delete(blob_key(dataless))
    for digest, content in ((nowhere, b"nowhere"), (elsewhere, b"elsewhere"), (dataless, b"dataless")):
        answer = await registry(MountBlob(repository=REPOSITORY, digest=digest, source=OTHER))
        assert isinstance(answer, UploadOpened)
        with pytest.raises(BlobUnknown):
            await pull_blob(registry, digest)
        await append(registry, answer.upload_id, content)
        await commit(registry, answer.upload_id, digest)
        assert await pull_blob(registry, digest) == content
    assert isinstance(await registry(MountBlob(repository=REPOSITORY, digest=Digest.of(b"?"))), UploadOpened)


# ---- tags


async def pages(registry: Handler, limit: int, after: str = "") -> list[str]:
    """All tags, page by page."""
    found: list[str] = []
    while True:
        page = await registry(ListTags(repository=REPOSITORY, after=after, limit=limit))
        assert len(page.tags) == limit if page.more else len(page.tags) <= limit
        found += page.tags
        if not page.more:
            return found
        after = page.tags[-1]


async def test_tags_of_a_repository_that_does_not_exist_are_not_an_empty_list(registry: Registry) -> None:
    with pytest.raises(NameUnknown):
        await tags(registry)
    await open_upload(registry)
    with pytest.raises(NameUnknown):
        await tags(registry)
    await push_blob(registry, b"blob")
    assert await tags(registry) == []
    with pytest.raises(NameUnknown):
        await tags(registry, OTHER)


async def test_a_page_of_no_tags_is_empty_and_the_last(registry: Registry) -> None:
    await push_image(registry, "a")
    page = await registry(ListTags(repository=REPOSITORY, limit=0))
    assert (page.tags, page.more) == ((), False)


async def test_a_tag_without_its_current_link_is_not_listed(registry: Registry, driver: Driver) -> None:
    for name in ("a", "b", "c"):
        await push_image(registry, name)
    await driver.delete(current_key("b"))
    await driver.write(f"{BASE}_manifests/tags/.hidden/current/link", b"x")
    # To look for each would cost a request for each where the store is a service.
    listed = ["a", "b", "c"] if driver.capabilities.remote else ["a", "c"]
    assert await tags(registry) == listed
    assert await pages(registry, 1) == listed


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
async def test_tags_come_in_byte_order_although_stores_order_keys(registry: Registry, limit: int) -> None:
    names = ["1", "1-", "1.", "1.0", "1.0-alpine", "1.0.1", "1.00", "10", "A", "a", "a-b", "a-b-c", "a.b", "a_b"]
    for name in reversed(names):
        await push_image(registry, name)
    assert await pages(registry, limit) == sorted(names)
    for after in [*names, "0", "1.0-", "1.0-z", "zz", "a-b-"]:
        assert await pages(registry, limit, after) == [name for name in sorted(names) if name > after]


TAGS = st.text(alphabet="01.-_aZ", min_size=1, max_size=6).filter(lambda text: text[0] not in ".-")


@pytest.mark.parametrize("kind", ["memory", "filesystem"])
@settings(max_examples=60, deadline=None)
@given(
    names=st.sets(TAGS, max_size=15),
    dead=st.sets(TAGS, max_size=5),
    after=st.one_of(st.just(""), TAGS),
    limit=st.integers(1, 5),
)
async def test_tags_are_paged_as_a_sorted_list_is(
    kind: Kind, names: set[str], dead: set[str], after: str, limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with new_store(kind, Path(folder)).open() as driver:
            registry = Registry(driver)
            await driver.write(layer_key(Digest.of(b"")), b"", durable=False)
            for name in sorted(names):
                await driver.write(current_key(name), Digest.of(b"x").encode(), durable=False)
            for name in sorted(dead):
                key = f"{BASE}_manifests/tags/{name}/index/sha256/{Digest.of(b'x').encoded}/link"
                await driver.write(key, Digest.of(b"x").encode(), durable=False)
            assert await pages(registry, limit, after) == [name for name in sorted(names) if name > after]


# ---- the catalog


async def catalog(registry: Handler, limit: int, after: str = "") -> list[str]:
    found: list[str] = []
    while True:
        page = await registry(ListRepositories(after=after, limit=limit))
        found += page.repositories
        if not page.more:
            return found
        assert len(page.repositories) == limit
        after = page.repositories[-1]


async def test_the_catalog_of_an_empty_store_is_empty(registry: Registry) -> None:
    assert await catalog(registry, 10) == []
    page = await registry(ListRepositories(limit=0))
    assert (page.repositories, page.more) == ((), False)


async def test_a_repository_is_what_has_or_had_manifests(registry: Registry) -> None:
    digest = await push_image(registry, "a", repository=RepositoryName("with/manifests"))
    await push_blob(registry, b"x", RepositoryName("blobs/only"))
    await push_image(registry, "a", repository=RepositoryName("with"))
    assert await catalog(registry, 10) == ["with", "with/manifests"]
    await registry(DeleteManifest(repository=RepositoryName("with"), digest=digest))
    assert "with/manifests" in await catalog(registry, 10)


async def test_what_cannot_be_asked_for_is_not_in_the_catalog(registry: Registry, driver: Driver) -> None:
    for name in ("UPPER", "good", "a..b"):
        await driver.write(f"docker/registry/v2/repositories/{name}/_manifests/revisions/x/y/link", b"")
    assert await catalog(registry, 10) == ["good"]


PARTS = st.sampled_from(["a", "a-b", "a.b", "a0", "a_b", "b", "0"])
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@pytest.mark.parametrize("kind", ["memory", "filesystem"])
@settings(max_examples=60, deadline=None)
@given(names=st.sets(NAMES, max_size=12), after=st.one_of(st.just(""), NAMES), limit=st.integers(1, 4))
async def test_the_catalog_is_paged_as_a_sorted_list_is(kind: Kind, names: set[str], after: str, limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with new_store(kind, Path(folder)).open() as driver:
            for name in sorted(names):
                key = f"docker/registry/v2/repositories/{name}/_manifests/revisions/sha256/x/link"
                await driver.write(key, b"", durable=False)
            assert await catalog(Registry(driver), limit, after) == [name for name in sorted(names) if name > after]


# ---- referrers


async def referrers(
    registry: Handler, subject: Digest, *, limit: int = 1000, artifact_type: str | None = None
) -> list[Descriptor]:
    found: list[Descriptor] = []
    after = ""
    while True:
        operation = ListReferrers(
            repository=REPOSITORY, subject=subject, artifact_type=artifact_type, after=after, limit=limit
        )
        page: ReferrerList = await registry(operation)
        found += page.referrers
        if not page.more:
            return found
        assert len(page.referrers) == limit
        after = page.referrers[-1].digest
        assert page.last == after


async def test_who_has_a_subject_is_listed_whether_the_subject_is_here_or_not(registry: Registry) -> None:
    assert await referrers(registry, Digest.of(b"never")) == []
    subject = await push_image(registry)
    one = await push_image(registry, "signed", subject=subject, artifactType="x/signature", annotations={"a": "b"})
    two = await push_image(registry, subject=subject, salt="2")
    three = (
        await push_manifest(
            registry,
            index(subject=descriptor(subject, media_type=OCI_MANIFEST)),
            media_type=OCI_INDEX,
        )
    ).descriptor.digest
    await push_image(registry, subject=Digest.of(b"other"), salt="3")
    found = {each.digest: each for each in await referrers(registry, subject)}
    assert list(found) == sorted([one, two, three])
    assert found[one].artifact_type == "x/signature"
    assert found[one].annotations == {"a": "b"}
    assert found[two].artifact_type == CONFIG_TYPE
    assert found[three].artifact_type is None
    for digest, size in [(one, (await pull(registry, one)).descriptor.size)]:
        assert found[digest].size == size
    assert [each.digest for each in await referrers(registry, subject, artifact_type="x/signature")] == [one]
    assert await referrers(registry, subject, artifact_type="x/other") == []
    for limit in (1, 2, 3):
        assert [each.digest for each in await referrers(registry, subject, limit=limit)] == sorted([one, two, three])


async def test_a_deleted_referrer_is_not_listed_and_a_deleted_subject_keeps_its_own(
    registry: Registry, driver: Driver
) -> None:
    subject = await push_image(registry)
    one = await push_image(registry, subject=subject, salt="1")
    two = await push_image(registry, subject=subject, salt="2")
    await registry(delete_manifest(one))
    assert [each.digest for each in await referrers(registry, subject)] == [two]
    await registry(delete_manifest(subject))
    assert [each.digest for each in await referrers(registry, subject)] == [two]
    await driver.delete(revision_key(two))
    assert await referrers(registry, subject) == []


async def test_referrers_are_of_one_repository(registry: Registry) -> None:
    subject = await push_image(registry, repository=OTHER)
    await push_image(registry, repository=OTHER, subject=subject)
    assert await referrers(registry, subject) == []


async def test_referrers_under_the_fallback_tag_are_listed_if_they_are_here_and_mean_it(
    registry: Registry, driver: Driver
) -> None:
    subject = await push_image(registry)
    earlier = await push_image(registry, subject=subject, salt="earlier", artifactType="x/earlier")
    # As a registry without referrers kept it: no entry.
    await driver.delete_below(f"{BASE}_referrers/")
    assert await referrers(registry, subject) == []
    other = await push_image(registry, salt="no subject")
    gone = await push_image(registry, subject=subject, salt="gone")
    listing = index(earlier, other, gone)
    await push_manifest(registry, listing, Tag.fallback(subject), media_type=OCI_INDEX)
    later = await push_image(registry, subject=subject, salt="later")
    await registry(delete_manifest(gone))
    for limit in (1, 10):
        found = await referrers(registry, subject, limit=limit)
        assert [each.digest for each in found] == sorted([earlier, later])
    assert [each.digest for each in await referrers(registry, subject, artifact_type="x/earlier")] == [earlier]


async def test_an_image_under_the_fallback_tag_lists_nothing(registry: Registry) -> None:
    subject = await push_image(registry)
    await push_image(registry, Tag.fallback(subject), salt="not an index")
    assert await referrers(registry, subject) == []


async def test_a_page_of_referrers_is_no_larger_than_a_manifest_may_be(driver: Driver) -> None:
    registry = Registry(driver)
    subject = Digest.of(b"subject")
    config = await push_blob(registry, b"{}")
    for number in range(5):
        data = image(config, subject=subject, annotations={"a": "x" * (1 << 20), "n": str(number)})
        await push_manifest(registry, data)
    after, count = "", 0
    while True:
        page = await registry(ListReferrers(repository=REPOSITORY, subject=subject, after=after))
        assert sum(len(json.dumps(dict(each.annotations or {}))) for each in page.referrers) < MANIFEST_LIMIT
        count += len(page.referrers)
        if not page.more:
            break
        assert page.last is not None
        after = page.last
    assert count == 5


# ---- stores that fail


class FailingDriver(WatchedDriver):
    """Fails at everything, or at reading and giving URLs only, with one error."""

    def __init__(self, inner: Driver, error: type[DriverError], *, late: bool = False) -> None:
        def fail(verb: str, key: str) -> None:
            del verb
            self.fail(key)

        super().__init__(inner, fail)
        self.error = error
        self.late = late
        self.on = False

    def fail(self, key: str) -> None:
        if self.on:
            raise self.error("on purpose", driver="failing", operation="stat", key=key)

    async def stat(self, key: str) -> Stat:
        if not self.late:
            self.fail(key)
        return await self.inner.stat(key)

    def open(self, key: str, start: int = 0, stop: int | None = None) -> AbstractAsyncContextManager[Reader]:
        @asynccontextmanager
        async def opened() -> AsyncGenerator[Reader]:
            if not self.late or key.endswith("/data"):
                self.fail(key)
            async with self.inner.open(key, start, stop) as reader:
                yield reader

        return opened()

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        self.fail(key)
        return await super().url(key, client_address=client_address)


ERRORS: list[tuple[type[DriverError], type[RegistryError], int]] = [
    (StoreFull, StorageFull, 507),
    (StoreReadOnly, Unavailable, 503),
    (StoreBusy, Unavailable, 503),
    (StoreUnavailable, Unavailable, 503),
    (KeyInvalid, InternalError, 500),
    (ConditionFailed, InternalError, 500),
]


@pytest.mark.parametrize(("error", "told", "status"), ERRORS)
async def test_a_client_is_told_of_a_failing_store_without_its_secrets(
    error: type[DriverError], told: type[RegistryError], status: int
) -> None:
    driver = FailingDriver(MemoryDriver(), error)
    registry = Registry(driver)
    digest = await push_image(registry, "a")
    driver.on = True
    operations: list[Operation[object]] = [
        PullManifest(repository=REPOSITORY, reference=Tag("a")),
        PullBlob(repository=REPOSITORY, digest=digest),
        push(image(digest), "a", unchecked=True),
        delete_manifest(digest),
        OpenUpload(repository=REPOSITORY),
        MountBlob(repository=REPOSITORY, digest=digest),
    ]
    for operation in operations:
        with pytest.raises(told) as caught:
            await registry(operation)
        assert caught.value.status == status
        assert "on purpose" not in caught.value.message
        assert "docker/" not in str(caught.value.entries())
        assert isinstance(caught.value.__cause__, error)


@pytest.mark.parametrize(("error", "told", "status"), ERRORS)
async def test_a_blob_that_cannot_be_opened_after_all_tells_the_same(
    error: type[DriverError], told: type[RegistryError], status: int
) -> None:
    driver = FailingDriver(MemoryDriver(), error, late=True)
    registry = Registry(driver)
    digest = await push_blob(registry, b"blob")
    driver.on = True
    blob = await registry(PullBlob(repository=REPOSITORY, digest=digest))
    with pytest.raises(told) as caught:
        async with blob.open(0, None):
            pass
    assert caught.value.status == status
    with pytest.raises(told):
        await blob.url("192.0.2.1")


async def test_a_key_that_vanishes_in_the_middle_is_no_crash(driver: Driver) -> None:
    failing = FailingDriver(driver, KeyUnknown, late=True)
    registry = Registry(failing)
    digest = await push_blob(registry, b"blob")
    blob = await registry(PullBlob(repository=REPOSITORY, digest=digest))
    failing.on = True
    with pytest.raises(BlobUnknown):
        async with blob.open(0, None):
            pass


async def test_a_tag_that_nobody_can_write_for_its_crowd_asks_to_come_back(driver: Driver) -> None:
    class Crowded(WatchedDriver):
        crowd = 0

        async def write(
            self,
            key: str,
            chunks: bytes | AsyncIterable[bytes],
            *,
            condition: Condition | None = None,
            durable: bool = True,
        ) -> None:
            if condition is not None:
                self.crowd += 1
                raise ConditionFailed("the crowd", driver="x", operation="write", key=key)
            await self.inner.write(key, chunks, durable=durable)

    crowded = Crowded(driver, Log())
    registry = Registry(crowded)
    config = await push_blob(registry, b"{}")
    with pytest.raises(Unavailable):
        await registry(push(image(config), "a", tag_condition=TagCondition()))
    assert crowded.crowd > 1

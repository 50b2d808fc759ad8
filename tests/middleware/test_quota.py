"""How many bytes and tags repositories may have together: counted in the store, by any number of processes."""

import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from content import Sent, SentQuickly, image, push_blob, push_manifest
from moorage import (
    AppendUpload,
    BlobUnknown,
    CommitUpload,
    ConfigurationError,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    Denied,
    Digest,
    DigestInvalid,
    Driver,
    Handler,
    MemoryDriver,
    MountBlob,
    OpenUpload,
    PullBlob,
    PushBlob,
    Registry,
    RepositoryName,
    StatUpload,
    Tag,
    UploadOpened,
    UploadUnknown,
    decode_options,
)
from moorage_conformance.plugin_kit import Subject, assert_plugin
from moorage_drivers.filesystem import FilesystemDriver
from moorage_middleware.quota import Counter, Quotas, Used, WithinQuota, _open_on
from opening import loaded, opened

MIB = 1 << 20
A, B, OTHER = RepositoryName("team/a"), RepositoryName("team/b"), RepositoryName("other")


def quotas(**limit: object) -> Quotas:
    return decode_options(Quotas, {"limits": [{"repositories": "team/**", **limit}]}, source="the test")


class Counted:
    """A registry within a quota, on a store that others may use too."""

    def __init__(self, driver: Driver, options: Quotas) -> None:
        self.driver = driver
        self.registry = Registry(driver)
        self.counters = [Counter(each, driver) for each in options.limits]
        self.handler: Handler = WithinQuota(self.registry, self.counters)

    async def used(self) -> tuple[int, int]:
        used = await self.counters[0].read()
        return used.bytes, used.tags


@asynccontextmanager
async def counted(driver: Driver, **limit: object) -> AsyncGenerator[Counted]:
    """Open quotas as a configuration does, and give what asks beside it when everything was counted."""
    options = quotas(**limit)
    found = Counted(driver, options)
    async with _open_on(options, found.registry, driver) as handler:
        found.handler = handler
        while not (await found.counters[0].read()).counted:  # noqa: ASYNC110 - the store tells nobody
            await trio.sleep(0.001)
        yield found


@pytest.mark.parametrize("announced", [True, False])
async def test_what_a_thread_takes_counts_before_it_is_a_blob(tmp_path: Path, announced: bool) -> None:
    pieces = [bytes([at]) * MIB for at in range(4)]
    whole = b"".join(pieces)

    async def push(handler: Handler) -> None:
        body = SentQuickly(*pieces, length=len(whole) if announced else None)
        await handler(PushBlob(repository=A, digest=Digest.of(whole), body=body))
        assert body.taken == 3 * MIB

    async with FilesystemDriver.open_root(str(tmp_path / "large")) as driver, counted(driver, bytes=4 * MIB) as found:
        await push(found.handler)
        assert await found.used() == (4 * MIB, 0)
    async with (
        FilesystemDriver.open_root(str(tmp_path / "small")) as driver,
        counted(driver, bytes=4 * MIB - 1) as found,
    ):
        with pytest.raises(Denied):
            await push(found.handler)
        assert await found.used() == (0, 0)
        with pytest.raises(BlobUnknown):
            await found.registry(PullBlob(repository=A, digest=Digest.of(whole)))


async def test_what_is_pushed_counts_and_what_is_too_much_is_refused(driver: Driver) -> None:
    async with counted(driver, bytes=100, tags=2) as found:
        await push_blob(found.handler, b"x" * 60, A)
        await push_blob(found.handler, b"y" * 40, B)
        await push_blob(found.handler, b"z" * 500, OTHER)
        assert await found.used() == (100, 0)
        with pytest.raises(Denied, match=r"the quota of team/\*\* is 100 bytes, and this would make it 101") as refused:
            await push_blob(found.handler, b"w", A)
        assert refused.value.detail == {"quota": "team/**", "unit": "bytes", "limit": 100, "wanted": 101}
        # The same again is no more, nor is what is there already.
        await push_blob(found.handler, b"x" * 60, A)
        assert await found.used() == (100, 0)


async def test_the_same_blob_counts_in_each_repository(driver: Driver) -> None:
    async with counted(driver, bytes=100) as found:
        digest = await push_blob(found.handler, b"x" * 60, A)
        with pytest.raises(Denied):
            await found.handler(MountBlob(repository=B, digest=digest, source=A))
        mounted = await found.handler(MountBlob(repository=OTHER, digest=digest, source=A))
        assert not isinstance(mounted, UploadOpened)
        missing = MountBlob(repository=B, digest=Digest.of(b"?"), source=A)
        assert isinstance(await found.handler(missing), UploadOpened)
        assert await found.used() == (60, 0)


async def test_what_nobody_announced_is_taken_out_again(driver: Driver) -> None:
    async with counted(driver, bytes=10) as found:
        data = b"x" * 11
        with pytest.raises(Denied):
            await found.handler(PushBlob(repository=A, digest=Digest.of(data), body=Sent(data)))
        with pytest.raises(Exception, match="unknown"):
            await found.registry(PullBlob(repository=A, digest=Digest.of(data)))
        opened = await found.handler(OpenUpload(repository=A))
        commit = CommitUpload(
            repository=A, upload_id=opened.upload_id, digest=Digest.of(b"x" * 10), body=Sent(b"x" * 10)
        )
        await found.handler(commit)
        assert await found.used() == (10, 0)


async def test_what_fails_does_not_count(driver: Driver) -> None:
    async with counted(driver, bytes=100, tags=5) as found:
        with pytest.raises(DigestInvalid):
            await found.handler(PushBlob(repository=A, digest=Digest.of(b"other"), body=Sent(b"x")))
        with pytest.raises(Exception, match="not in this repository"):
            await push_manifest(found.handler, image(Digest.of(b"missing")), "v1", repository=A)
        assert await found.used() == (0, 0)


async def test_tags_count_and_deletes_give_room_back(driver: Driver) -> None:
    async with counted(driver, bytes=100, tags=2) as found:
        config = await push_blob(found.handler, b"{}", A)
        manifest = image(config)
        for tag in ("v1", "v2", "v1"):
            await push_manifest(found.handler, manifest, tag, repository=A)
        with pytest.raises(Denied, match="is 2 tags, and this would make it 3"):
            await push_manifest(found.handler, manifest, "v3", repository=A)
        assert await found.used() == (2, 2)
        await found.handler(DeleteTag(repository=A, tag=Tag("v1")))
        await push_manifest(found.handler, manifest, "v3", repository=A)
        await found.handler(DeleteManifest(repository=A, digest=Digest.of(manifest)))
        await found.handler(DeleteBlob(repository=A, digest=config))
        assert await found.used() == (0, 0)


async def test_processes_that_push_at_once_stay_within_the_quota(driver: Driver) -> None:
    async with counted(driver, bytes=100):
        pass
    workers = [Counted(driver, quotas(bytes=100)) for _ in range(4)]
    refused = itertools.count()

    async def push(worker: Counted, at: int) -> None:
        try:
            await push_blob(worker.handler, f"{at:010}".encode(), A)
        except Denied:
            next(refused)

    async with trio.open_nursery() as nursery:
        for at in range(20):
            nursery.start_soon(push, workers[at % 4], at)
    assert await workers[0].used() == (100, 0)
    assert next(refused) == 10


class Held(Sent):
    """A body whose bytes come when they are let go."""

    def __init__(self, data: bytes, *, length: bool) -> None:
        super().__init__(data, length=len(data) if length else None)
        self.begun, self.go_on = trio.Event(), trio.Event()

    async def __anext__(self) -> bytes:
        self.begun.set()
        await self.go_on.wait()
        return await super().__anext__()


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_push_that_is_too_much_never_takes_away_what_another_one_has_pushed(
    driver: Driver, at_once: bool, length: bool
) -> None:
    data = b"x" * 10
    digest = Digest.of(data)
    async with counted(driver, bytes=15) as found:
        body = Held(data, length=length)
        if at_once:
            late: PushBlob | CommitUpload = PushBlob(repository=A, digest=digest, body=body)
        else:
            upload = (await found.handler(OpenUpload(repository=A))).upload_id
            late = CommitUpload(repository=A, upload_id=upload, digest=digest, body=body)

        async def push_late() -> None:
            with pytest.raises(Denied, match="would make it 20"):
                await found.handler(late)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(push_late)
            await body.begun.wait()
            await push_blob(found.handler, data, A)
            body.go_on.set()
        assert (await found.registry(PullBlob(repository=A, digest=digest))).descriptor.size == 10
        assert await found.used() == (10, 0)
        if isinstance(late, CommitUpload):
            with pytest.raises(UploadUnknown):
                await found.registry(StatUpload(repository=A, upload_id=late.upload_id))


async def test_all_chunks_of_an_upload_count(driver: Driver) -> None:
    async with counted(driver, bytes=30) as found:

        async def push(data: bytes) -> None:
            upload = (await found.handler(OpenUpload(repository=A))).upload_id
            await found.handler(AppendUpload(repository=A, upload_id=upload, body=Sent(data[:20])))
            last = Sent(data[20:])
            await found.handler(CommitUpload(repository=A, upload_id=upload, digest=Digest.of(data), body=last))

        await push(b"x" * 30)
        assert await found.used() == (30, 0)
        with pytest.raises(Denied):
            await push(b"y" * 30)
        assert await found.used() == (30, 0)


async def test_a_mount_from_wherever_it_is_counts_and_ends_where_there_is_no_room(driver: Driver) -> None:
    async with counted(driver, bytes=100) as found:
        digests = [await push_blob(found.handler, bytes([at]) * 60, OTHER) for at in range(3)]
        for digest in digests[:2]:
            # The second is more than there is room for, which nobody could know before.
            assert not isinstance(await found.handler(MountBlob(repository=A, digest=digest)), UploadOpened)
        assert await found.used() == (120, 0)
        with pytest.raises(Denied):
            await found.handler(MountBlob(repository=A, digest=digests[2]))
        assert await found.used() == (120, 0)


async def test_a_cancelled_push_gives_its_tags_back() -> None:
    driver = MemoryDriver()
    async with counted(driver, tags=5) as found:
        config = await push_blob(found.handler, b"{}", A)
        with trio.CancelScope() as scope:
            scope.cancel()
            await push_manifest(found.handler, image(config), "v1", repository=A)
        assert await found.used() == (2, 0)


async def test_what_was_there_before_is_counted_and_what_was_wrong_put_right(driver: Driver) -> None:
    registry = Registry(driver)
    config = await push_blob(registry, b"{}" + b" " * 98, A)
    await push_manifest(registry, image(config), "v1", repository=A)
    await push_blob(registry, b"y" * 50, B)
    await push_blob(registry, b"y" * 50, OTHER)
    async with counted(driver, bytes=1000) as found:
        assert await found.used() == (150, 1)
        before = await found.counters[0].read()
        await found.counters[0].add(Used(bytes=7))
        await found.counters[0].put_right(Used(bytes=150, tags=1), before)
        assert await found.used() == (157, 1)


async def test_until_everything_was_counted_nothing_is_refused(driver: Driver) -> None:
    found = Counted(driver, quotas(bytes=1))
    await push_blob(found.handler, b"x" * 10, A)
    assert await found.used() == (10, 0)


async def test_an_object_that_cannot_be_read_is_made_anew(driver: Driver) -> None:
    async with counted(driver, bytes=100) as found:
        await push_blob(found.handler, b"x" * 60, A)
        await driver.write(found.counters[0]._key, b"junk")
        assert not (await found.counters[0].read()).counted
    async with counted(driver, bytes=100) as found:
        assert await found.used() == (60, 0)


def test_what_is_wrong_is_said_in_one_sentence() -> None:
    for written, sentence in (
        ("{limits: [{bytes: 5}]}", "repositories"),
        ("{limits: [{repositories: a, bytes: many}]}", "a size such as 10GiB"),
        ("{limits: [{repositories: a, tags: -1}]}", "tags"),
        ("{limits: [{repositories: a}, {repositories: a}]}", "twice"),
        ("{recount: 0}", "recount is a time of at least 1s"),
        ("{limit: []}", "limits"),
    ):
        with pytest.raises(ConfigurationError) as error:
            loaded(f"plugins: {{quota: {written}}}")
        assert sentence in str(error.value)
        assert "\n" not in str(error.value)


async def test_a_store_that_cannot_count_is_refused() -> None:
    class Plain(MemoryDriver):
        name = "plain"
        capabilities = type(MemoryDriver.capabilities)(cas=False)

    with pytest.raises(ConfigurationError, match="the store plain cannot count"):
        async with _open_on(Quotas(), Registry(Plain()), Plain()):
            pass


async def test_a_configured_quota_counts_in_the_configured_store() -> None:
    async with opened('{plugins: {quota: {limits: [{repositories: "team/**", tags: 0}]}}}') as handler:
        config = await push_blob(handler, b"{}", A)
        refusal = ""
        while not refusal:  # nothing is refused before everything was counted
            try:
                await push_manifest(handler, image(config), "v1", repository=A)
            except Denied as denied:
                refusal = denied.message
            else:
                await handler(DeleteTag(repository=A, tag=Tag("v1")))
        assert refusal == "the quota of team/** is 0 tags, and this would make it 1"


def test_the_contract_of_plugins() -> None:
    options = {"limits": [{"repositories": "**", "bytes": "1GiB", "tags": 1000}]}
    assert_plugin(Subject("moorage_middleware.quota", {"quota": options}))

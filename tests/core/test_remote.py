"""What the registry asks of a store behind a network: as little as can be, and never too little."""

import time
from collections.abc import Callable

import pytest
import trio

from content import (
    REPOSITORY,
    append,
    commit,
    image,
    open_upload,
    pull,
    pull_blob,
    push_blob,
    push_manifest,
    tags,
)
from moorage import (
    Absent,
    Digest,
    DigestInvalid,
    ListTags,
    MountBlob,
    Registry,
    StoreBusy,
    Tag,
    UploadOpened,
    UploadOutOfOrder,
    _lease,
    hold_by_lease,
)
from service_driver import PART, Service, ServiceDriver

DATA = bytes(range(256)) * (5 * PART // 256) + b"tail"


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def replica(service: Service) -> Callable[[], Registry]:
    return lambda: Registry(ServiceDriver(service))


async def test_a_layer_that_was_announced_is_pushed_by_six_requests_and_its_parts(
    service: Service, replica: Callable[[], Registry]
) -> None:
    registry = replica()
    opened = await registry(MountBlob(repository=REPOSITORY, digest=Digest.of(DATA), source=None))
    assert isinstance(opened, UploadOpened)
    service.requests.clear()
    upload_id = await open_upload(registry, digest=Digest.of(DATA))
    await append(registry, upload_id, *[DATA[at : at + 1000] for at in range(0, len(DATA), 1000)])
    await commit(registry, upload_id, Digest.of(DATA))
    assert service.requests == {"write": 3, "create": 1, "part": 6, "complete": 1, "delete": 1}
    assert await pull_blob(registry, Digest.of(DATA)) == DATA
    assert not service.uploads


async def test_a_blob_in_one_request_costs_its_write_and_its_link(
    service: Service, replica: Callable[[], Registry]
) -> None:
    digest = await push_blob(replica(), b"small")
    assert service.requests == {"write": 2}
    service.requests.clear()
    assert await pull_blob(replica(), digest) == b"small"
    assert service.requests == {"open": 2, "stat": 1}


async def test_a_manifest_is_pushed_by_four_writes_and_a_look_at_each_reference(
    service: Service, replica: Callable[[], Registry]
) -> None:
    registry = replica()
    blobs = [await push_blob(registry, b"%d" % number) for number in range(3)]
    service.requests.clear()
    await push_manifest(registry, image(*blobs), "v1")
    assert service.requests == {"open": 3, "stat": 3, "write": 4}
    service.requests.clear()
    await pull(registry, "v1")
    assert service.requests == {"open": 1, "stat": 1}


async def test_a_page_of_tags_costs_a_list_and_few_looks(service: Service, replica: Callable[[], Registry]) -> None:
    registry = replica()
    data = image(await push_blob(registry, b"{}"))
    names = sorted(["1.0", "1.0-alpine", "1.0.1", *(f"v{number:04}" for number in range(300))])
    for name in names:
        await push_manifest(registry, data, name)
    service.requests.clear()
    assert await tags(registry) == names
    assert service.requests["list"] == 1
    assert service.requests["stat"] <= 4
    page = await registry(ListTags(repository=REPOSITORY, after=Tag("1.0"), limit=2))
    assert page.tags == ("1.0-alpine", "1.0.1")


@pytest.mark.parametrize("announced", [True, False])
async def test_each_chunk_may_reach_another_replica(
    service: Service, replica: Callable[[], Registry], announced: bool
) -> None:
    replicas = [replica() for _ in range(3)]
    upload_id = await open_upload(replicas[0], digest=Digest.of(DATA) if announced else None)
    step = len(DATA) // 9 + 1
    for turn, at in enumerate(range(0, len(DATA), step)):
        which = replicas[(turn + 1) % 3]
        chunk = DATA[at : at + step]
        # Every second one without saying where it begins, which the spec leaves to a stream.
        start = at if turn % 2 else None
        if announced and turn == 2:
            # Here the session was opened: the first stream is believed to be the first one of all.
            with pytest.raises(UploadOutOfOrder) as caught:
                await append(which, upload_id, chunk)
            assert caught.value.offset == at
            start = at
        assert await append(which, upload_id, chunk, start=start) == at + len(chunk)
    await commit(replicas[0], upload_id, Digest.of(DATA))
    assert await pull_blob(replicas[1], Digest.of(DATA)) == DATA
    assert not service.uploads


async def test_a_stale_memory_of_a_session_does_no_harm(service: Service, replica: Callable[[], Registry]) -> None:
    here, there = replica(), replica()
    upload_id = await open_upload(here, digest=Digest.of(b"one, two!"))
    assert await append(there, upload_id, b"one, ") == 5
    # Here the session is remembered at zero: the bytes are refused when they would be acknowledged.
    with pytest.raises(UploadOutOfOrder) as caught:
        await append(here, upload_id, b"lost")
    assert caught.value.offset == 5
    assert await append(here, upload_id, b"two", start=5) == 8
    assert await append(there, upload_id, b"!", start=8) == 9
    await commit(here, upload_id, Digest.of(b"one, two!"))
    assert await pull_blob(there, Digest.of(b"one, two!")) == b"one, two!"
    with pytest.raises(DigestInvalid):
        await commit(there, await open_upload(there), Digest.of(b"something"))
    assert service.requests["copy"] == 0


async def test_a_small_blob_may_be_committed_by_another_digest_than_was_announced(
    replica: Callable[[], Registry],
) -> None:
    registry = replica()
    upload_id = await open_upload(registry, digest=Digest.of(b"this"))
    await append(registry, upload_id, b"that")
    await commit(registry, upload_id, Digest.of(b"that"))
    assert await pull_blob(registry, Digest.of(b"that")) == b"that"


async def test_a_large_blob_of_another_digest_than_was_announced_is_refused_and_leaves_nothing(
    service: Service, replica: Callable[[], Registry]
) -> None:
    registry = replica()
    upload_id = await open_upload(registry, digest=Digest.of(b"this"))
    await append(registry, upload_id, DATA)
    with pytest.raises(DigestInvalid, match="opened for another digest"):
        await commit(registry, upload_id, Digest.of(DATA))
    assert not service.uploads
    assert (await service.objects.list("")).entries == ()


async def test_what_uploads_left_inside_the_store_is_freed_by_the_purger(
    service: Service, replica: Callable[[], Registry]
) -> None:
    registry = replica()
    await append(registry, await open_upload(registry), DATA)
    service.uploads[99] = ("key", {})
    assert await registry.uploads.expire(older_than=time.time() + 60, dry_run=False) == 2
    assert not service.uploads


# ---- leases


async def test_a_lease_has_one_holder_over_replicas_and_is_free_again(service: Service) -> None:
    first, second = ServiceDriver(service), ServiceDriver(service)
    async with hold_by_lease(first, "purge") as held, hold_by_lease(second, "purge") as other:
        assert (held, other) == (True, False)
    async with hold_by_lease(second, "purge") as held:
        assert held
    assert (await service.objects.list("")).entries == ()


async def test_a_lease_is_renewed_while_it_is_held(
    service: Service, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    del autojump_clock
    monkeypatch.setattr("time.time", trio.current_time)
    driver = ServiceDriver(service)
    async with hold_by_lease(driver, "purge") as held:
        assert held
        for _ in range(20):
            await trio.sleep(15)
            async with hold_by_lease(driver, "purge") as other:
                assert not other


async def test_what_a_dead_process_held_is_free_after_its_lease(
    service: Service, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    del autojump_clock
    monkeypatch.setattr("time.time", trio.current_time)
    driver = ServiceDriver(service)
    await driver.write("moorage/leases/purge", _lease._content("somebody"), condition=Absent())
    async with hold_by_lease(driver, "purge") as held:
        assert not held
    await trio.sleep(60)
    async with hold_by_lease(driver, "purge") as held:
        assert held


async def test_work_under_a_lease_that_was_lost_is_cancelled(
    service: Service, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock
    driver = ServiceDriver(service)
    done = False
    with pytest.raises(StoreBusy, match="lost"):
        async with hold_by_lease(driver, "purge") as held:
            assert held
            await driver.delete("moorage/leases/purge")
            await trio.sleep(1000)
            done = True
    assert not done


async def test_what_goes_wrong_under_a_lease_is_raised_as_it_is(service: Service) -> None:
    driver = ServiceDriver(service)
    with pytest.raises(LookupError, match="mine"):
        async with hold_by_lease(driver, "purge"):
            raise LookupError("mine")
    async with hold_by_lease(driver, "purge") as held:
        assert held

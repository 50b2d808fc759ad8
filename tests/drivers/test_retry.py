"""The layer `retry`: what a service could not do just now is asked for again, and nothing is lost or done twice."""

import random
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from content import append, commit, image, open_upload, pull, pull_blob, push_blob, push_manifest
from moorage import (
    Absent,
    Condition,
    ConditionFailed,
    Digest,
    Driver,
    DriverError,
    DriverLayer,
    KeyUnknown,
    Listing,
    MemoryDriver,
    Reader,
    Registry,
    Stat,
    StoreBusy,
    StoreUnavailable,
    Unchanged,
    Upload,
)
from moorage_conformance.driver import CASES, Case, Subject, assert_case
from moorage_drivers._retry import RetryLayer, RetryOptions, pause, retried
from moorage_drivers._values import Seconds, Whole
from service_driver import PART, Service, ServiceDriver

OPTIONS = RetryOptions(attempts=Whole(30), delay=Seconds(0.001), longest=Seconds(0.002))


class Faulty(DriverLayer):
    """Fails before or after it did what was asked, as `fault` says: None, "before" or "after"."""

    def __init__(self, inside: Driver, fault: Callable[[], str | None]) -> None:
        super().__init__(inside)
        self.fault = fault
        self.failed = 0

    @asynccontextmanager
    async def _step(self) -> AsyncGenerator[None]:
        fault = self.fault()
        if fault == "before":
            self.failed += 1
            raise StoreBusy("slow down", driver="faulty", operation="write")
        yield
        if fault == "after":
            self.failed += 1
            raise StoreUnavailable("no reply", driver="faulty", operation="write", ambiguous=True)

    async def stat(self, key: str) -> Stat:
        async with self._step():
            return await super().stat(key)

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        async with self._step():
            pass
        async with self.inside.open(key, start, stop) as reader:
            yield reader

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> str | None:
        async with self._step():
            return await self.inside.write(key, chunks, condition=condition, durable=durable)

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        async with self._step():
            await self.inside.delete(*keys, condition=condition, durable=durable)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        async with self._step():
            return await self.inside.list(prefix, after=after, delimiter=delimiter, limit=limit)

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        async with self.inside.open_upload(key, destination) as upload:
            yield _FaultyUpload(upload, self)

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        async with self._step():
            pass
        async with self.inside.resume_upload(token, offset) as upload:
            yield _FaultyUpload(upload, self)


class _FaultyUpload(Upload):
    def __init__(self, inside: Upload, driver: Faulty) -> None:
        self.inside = inside
        self.driver = driver
        self.offset = inside.offset

    async def write(self, data: bytes) -> None:
        await self.inside.write(data)
        self.offset = self.inside.offset

    async def suspend(self) -> bytes:
        async with self.driver._step():
            return await self.inside.suspend()

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        async with self.driver._step():
            await self.inside.commit(destination, condition=condition)

    async def abort(self) -> None:
        async with self.driver._step():
            await self.inside.abort()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_the_layer_keeps_the_contract(case: Case) -> None:
    assert_case(case, Subject("retry", around=True))


@pytest.mark.parametrize("seed", range(20))
async def test_a_registry_over_a_service_that_fails_at_random_loses_nothing(seed: int) -> None:
    chance = random.Random(seed)
    service = Service()
    faulty = Faulty(ServiceDriver(service), lambda: chance.choice([None, None, "before", "after"]))
    registry = Registry(RetryLayer(faulty, OPTIONS))
    data = chance.randbytes(3 * PART + 5)
    upload_id = await open_upload(registry, digest=Digest.of(data) if seed % 2 else None)
    await append(registry, upload_id, data[: 2 * PART], start=0)
    await append(registry, upload_id, data[2 * PART :], start=2 * PART)
    layer = await commit(registry, upload_id, Digest.of(data))
    config = await push_blob(registry, b"{}")
    manifest = image(config, layer)
    await push_manifest(registry, manifest, "v1")
    assert faulty.failed > 0
    assert await pull_blob(registry, layer) == data
    assert (await pull(registry, "v1")).data == manifest
    assert not service.uploads
    left = [entry.key for entry in (await service.objects.list("")).entries if "_uploads" in entry.key]
    assert left == []


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_a_conditional_write_whose_reply_was_lost_is_ours(fault: str) -> None:
    faults = [fault]
    memory = MemoryDriver()
    layer = RetryLayer(Faulty(memory, lambda: faults.pop() if faults else None), OPTIONS)
    version = await layer.write("a", b"mine", condition=Absent())
    assert version == (await memory.stat("a")).version
    with pytest.raises(ConditionFailed):
        await layer.write("a", b"mine", condition=Absent())
    faults.append(fault)
    await layer.delete("a", condition=Unchanged(version or ""))
    with pytest.raises(KeyUnknown):
        await memory.stat("a")


async def test_a_conditional_write_that_somebody_else_won_is_lost() -> None:
    memory = MemoryDriver()
    await memory.write("a", b"theirs")
    faults = ["before"]
    layer = RetryLayer(Faulty(memory, lambda: faults.pop() if faults else None), OPTIONS)
    with pytest.raises(ConditionFailed):
        await layer.write("a", b"mine", condition=Absent())
    assert await memory.read("a", limit=10) == b"theirs"


async def test_what_no_attempt_mends_is_tried_once_and_the_rest_as_often_as_told() -> None:
    tries = 0

    async def fail(error: DriverError) -> None:
        nonlocal tries
        await trio.lowlevel.checkpoint()
        tries += 1
        raise error

    with pytest.raises(KeyUnknown):
        await retried(OPTIONS, lambda: fail(KeyUnknown("no", driver="x", operation="stat")))
    assert tries == 1
    options = RetryOptions(attempts=Whole(3), delay=Seconds(0.001))
    with pytest.raises(StoreBusy):
        await retried(options, lambda: fail(StoreBusy("no", driver="x", operation="stat")))
    assert tries == 4


def test_it_waits_as_long_as_the_service_says_but_not_for_ever() -> None:
    options = RetryOptions(delay=Seconds(1), longest=Seconds(8))
    busy = StoreBusy("x", driver="x", operation="stat", retry_after=3.5)
    assert pause(options, 1, busy) == 3.5
    assert pause(options, 1, StoreBusy("x", driver="x", operation="stat", retry_after=600)) == 8
    for number, most in ((1, 1), (2, 2), (3, 4), (4, 8), (9, 8)):
        waits = [pause(options, number, StoreBusy("x", driver="x", operation="stat")) for _ in range(100)]
        assert 0 <= min(waits) < max(waits) <= most


async def test_a_tag_is_not_lost_where_its_repository_is_hit_by_faults() -> None:
    chance = random.Random(7)
    faulty = Faulty(MemoryDriver(), lambda: chance.choice([None, "before", "after"]))
    registry = Registry(RetryLayer(faulty, OPTIONS))
    manifest = image(await push_blob(registry, b"{}"))
    for number in range(20):
        await push_manifest(registry, manifest, f"v{number}")
    assert (await pull(registry, "v7")).data == manifest

"""The driver `s3` under load: threads, memory, connections and what it remembers are bounded."""

import asyncio
import gc
import os
import random
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from moorage import Driver, KeyUnknown, decode_options
from moorage_drivers._bridge import Bridge
from moorage_drivers._reading import READ_MEMORY
from moorage_drivers._retry import RetryOptions, open_retry
from moorage_drivers._s3_options import S3Options
from moorage_drivers.s3 import S3Driver
from s3 import bucket, options
from servers import forget_memory_peak, memory_now, memory_peak
from services import S3Service

MIB = 1 << 20
PART = 5 * MIB
UPLOAD_MEMORY = 64 * MIB
CONNECTIONS = 64
PIECE = MIB + 777
"""Pieces that no part ends with."""

THREADS = 2 + min(32, (os.cpu_count() or 1) + 4)
"""What a driver adds: its loop's, one in which its client was made, and asyncio's for looking up names."""

STREAM = 1 * MIB + 512 * 1024
"""What a body holds that nobody reads: four pieces of 256 KiB and one that is being gathered, and the socket's."""
CALL = 128 * 1024
"""What a call holds: its tasks, and a request and an answer as the SDK has them."""


def settings(moto: S3Service, **more: object) -> S3Options:
    plain = options(
        moto,
        bucket(moto),
        **{"chunksize": PART, "uploadmemory": UPLOAD_MEMORY, "maxconnections": CONNECTIONS, "connecttimeout": "60s"}
        | more,
    )
    return decode_options(S3Options, plain, source="storage.s3")


async def tasks_of(bridge: Bridge) -> int:
    """Return how many tasks the bridge's loop has beside the one that counts."""

    async def count() -> int:
        # Those that have ended leave at the loop's next turn.
        for _ in range(10):
            await asyncio.sleep(0)
        return len(asyncio.all_tasks()) - 1

    return await bridge.run(count)


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def content(driver: Driver, key: str, start: int = 0, stop: int | None = None) -> bytes:
    async with driver.open(key, start, stop) as reader:
        return b"".join([chunk async for chunk in reader])


async def test_five_hundred_operations_at_once_are_right_and_bounded(moto: S3Service) -> None:
    numbers = random.Random(1)
    large = numbers.randbytes(20 * MIB)
    body = numbers.randbytes(12 * MIB)
    before_threads = threads()
    async with S3Driver.open_bucket(settings(moto)) as inside, open_retry(RetryOptions(), inside) as driver:
        await driver.write("large", large)
        for number in range(20):
            await driver.write(f"few/{number:02}", b"%d" % number)
        under_way = most = most_threads = 0

        async def stat(number: int) -> None:
            del number
            assert (await driver.stat("large")).size == len(large)

        async def read_range(number: int) -> None:
            start = number * 100_001
            assert await content(driver, "large", start, start + 70_000) == large[start : start + 70_000]

        async def read_all(number: int) -> None:
            del number
            at = 0
            async with driver.open("large") as reader:
                async for chunk in reader:
                    assert large.startswith(chunk, at)
                    at += len(chunk)
            assert at == len(large)

        async def write(number: int) -> None:
            data = b"%d" % number * 1000
            await driver.write(f"written/{number}", data)
            assert await driver.read(f"written/{number}", limit=MIB) == data

        async def list_few(number: int) -> None:
            del number
            assert [entry.key for entry in (await driver.list("few/")).entries] == [f"few/{n:02}" for n in range(20)]

        async def upload(number: int) -> None:
            async with driver.open_upload(f"sessions/{number}", f"blobs/{number}") as session:
                for at in range(0, len(body), PIECE):
                    await session.write(body[at : at + PIECE])
                await session.commit(f"blobs/{number}")

        async def counted(work: Callable[[int], Awaitable[None]], number: int) -> None:
            nonlocal under_way, most, most_threads
            under_way += 1
            most = max(most, under_way)
            await work(number)
            most_threads = max(most_threads, threads())
            under_way -= 1

        kinds: list[tuple[int, Callable[[int], Awaitable[None]]]] = [
            (40, upload), (40, read_all), (120, read_range), (100, write), (100, list_few), (100, stat),
        ]  # fmt: skip
        everything = [partial(counted, work, number) for count, work in kinds for number in range(count)]
        numbers.shuffle(everything)
        gc.collect()
        tasks = await tasks_of(inside.bridge)
        forget_memory_peak(os.getpid())
        before = memory_peak(os.getpid())
        async with trio.open_nursery() as nursery:
            for each in everything:
                nursery.start_soon(each)
        grown = memory_peak(os.getpid()) - before
        print(f"+{grown / MIB:.0f} MiB, {most} at once, {before_threads} threads before, {most_threads} at most")
        assert most == len(everything) == 500
        assert most_threads <= before_threads + THREADS
        assert await tasks_of(inside.bridge) == tasks
        assert (inside.budgets.first.used, inside.budgets.further.used, inside.reading.memory.used) == (0, 0, 0)
        # What the options allow; each connection's window; each call; and a part that is cut off a buffer is there twice.
        allowed = UPLOAD_MEMORY + READ_MEMORY + CONNECTIONS * STREAM + len(everything) * CALL + 2 * PART
        assert grown < allowed, f"{grown / MIB:.0f} MiB, not {allowed / MIB:.0f} MiB"
        for number in range(0, 40, 13):
            assert await content(driver, f"blobs/{number}") == body
        assert await driver.expire_uploads(older_than=float(1 << 40), dry_run=True) == 0


async def measured(bridge: Bridge) -> tuple[int, int, int, int, int]:
    gc.collect()
    return await tasks_of(bridge), threads(), descriptors(), sys.getallocatedblocks(), memory_now(os.getpid())


async def test_ten_thousand_operations_leave_nothing_that_grows(moto: S3Service) -> None:
    at_once, each, rounds = 50, 5, 40
    async with (
        S3Driver.open_bucket(settings(moto)) as bucket_driver,
        open_retry(RetryOptions(), bucket_driver) as driver,
    ):
        # The layer is what `moorage serve` has around it, too; of requests at the same moment moto makes a 500 now and then.
        bridge = bucket_driver.bridge

        async def work(worker: int) -> None:
            key = f"{worker}/key"
            await driver.write(key, b"%d" % worker)
            assert await driver.read(key, limit=100) == b"%d" % worker
            assert [entry.key for entry in (await driver.list(f"{worker}/")).entries] == [key]
            await driver.delete(key)
            with pytest.raises(KeyUnknown):
                await driver.stat(key)

        async def run(count: int) -> None:
            for _ in range(count):
                async with trio.open_nursery() as nursery:
                    for worker in range(at_once):
                        nursery.start_soon(work, worker)

        assert at_once * each * rounds == 10_000
        await run(rounds // 5)
        figures = [await measured(bridge)]
        await run(rounds - rounds // 5)
        figures.append(await measured(bridge))
        print("tasks, threads, descriptors, blocks, bytes after 2,000 and 10,000:", figures)
        (tasks, some_threads, files, blocks, memory), after = figures
        assert after[0] == tasks
        assert after[1] <= some_threads
        assert after[2] <= files + 8
        # Half a block for each operation would be a leak; caches that fill are none.
        assert after[3] - blocks < 4000
        assert after[4] - memory < 16 * MIB
        assert bridge.stuck == 0


async def test_bodies_that_nobody_reads_leave_connections_for_others(moto: S3Service) -> None:
    async with S3Driver.open_bucket(settings(moto, maxconnections=8)) as driver:
        await driver.write("large", bytes(16 * MIB))

        async def hold(task_status: trio.TaskStatus[None]) -> None:
            async with driver.open("large", 0, 8 * MIB):
                task_status.started()
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                await nursery.start(hold)
            nursery.start_soon(nursery.start, hold)
            nursery.start_soon(nursery.start, hold)
            nursery.start_soon(nursery.start, hold)
            with trio.fail_after(60):
                assert (await driver.stat("large")).size == 16 * MIB
                await driver.write("small", b"small")
            nursery.cancel_scope.cancel()
        assert await driver.read("small", limit=100) == b"small"


async def test_what_is_remembered_of_uploads_is_bounded(moto: S3Service) -> None:
    async with S3Driver.open_bucket(settings(moto)) as driver:
        body = bytes(PART + 1)
        tokens: list[bytes] = []
        async with driver.open_upload("session", "blob") as upload:
            for _ in range(4):
                await upload.write(body)
                tokens.append(await upload.suspend())
        assert driver.remembered == (1, 4)
        # An older token is as good as the newest; the service is asked then.
        async with driver.resume_upload(tokens[1], 2 * len(body)) as upload:
            await upload.write(body)
            tokens.append(await upload.suspend())
        async with driver.resume_upload(tokens[-1], 3 * len(body)) as upload:
            await upload.commit("blob")
        assert (await driver.stat("blob")).size == 3 * len(body)
        assert driver.remembered == (0, 0)


async def test_what_a_session_saves_takes_no_room_of_uploads(moto: S3Service) -> None:
    async with S3Driver.open_bucket(settings(moto)) as driver:
        every = driver.budgets.first.used, driver.budgets.further.used
        await driver.budgets.first.take(UPLOAD_MEMORY)
        try:
            async with driver.open_upload("session", "blob"):
                # The largest token there can be, in a record of JSON.
                record = bytes(PART * 16 // 9)
                with trio.fail_after(60):
                    await driver.write("state", record)
        finally:
            driver.budgets.first.give(UPLOAD_MEMORY)
        assert (driver.budgets.first.used, driver.budgets.further.used) == every
        assert await driver.read("state", limit=len(record)) == record

"""Cases about reading ranges."""

import random

import trio

from moorage import RangeUnsatisfiable

from .case import Group
from .expect import content, equal, refuses, true
from .store import Store

case = Group("ranges", "Ranges")

MIB = 1 << 20
TEN = b"0123456789"
RANGES = (
    (0, None, TEN),
    (0, 10, TEN),
    (0, 1, b"0"),
    (0, 0, b""),
    (3, 7, b"3456"),
    (3, None, b"3456789"),
    (9, None, b"9"),
    (3, 1000, b"3456789"),
    (10, None, b""),
    (10, 20, b""),
)


@case()
async def a_range_is_read(store: Store) -> None:
    """A range gives the bytes from `start` up to `stop`, clipped to the end; the reader knows the whole object's size."""
    driver = store.driver
    await driver.write("a", TEN)
    for start, stop, found in RANGES:
        equal(await content(driver, "a", start, stop), found, f"the range {start} to {stop} of 10 bytes")
        async with driver.open("a", start, stop) as reader:
            equal(reader.stat.size, 10, "the size of the whole")
            true(reader.file is None or reader.file.length == len(found), "the file of a range has another length")


@case()
async def a_range_beyond_the_end_is_refused(store: Store) -> None:
    """A range that begins beyond the end raises `RangeUnsatisfiable`; one that begins at the end is empty."""
    driver = store.driver
    for size in (0, 5):
        await driver.write("a", b"x" * size)
        equal(await content(driver, "a", size), b"", "a range at the end")
        with refuses(RangeUnsatisfiable, what="a range that begins beyond the end"):
            await content(driver, "a", size + 1)


@case()
async def readers_that_end_early_leave_nothing_behind(store: Store) -> None:
    """200 readers that are closed after their first bytes keep nobody from reading."""
    driver = store.driver
    await driver.write("a", b"x" * 3 * MIB)
    for _ in range(200):
        async with driver.open("a") as reader:
            async for _chunk in reader:
                break
    equal(len(await content(driver, "a")), 3 * MIB, "how much was read after that")


@case()
async def many_read_at_once(store: Store) -> None:
    """64 readers of random ranges at once each get theirs."""
    driver = store.driver
    size = MIB if store.fast else 5 * MIB
    data = random.Random(1).randbytes(size)
    await driver.write("a", data)
    chosen = random.Random(2)

    async def read(start: int, stop: int) -> None:
        true(
            await content(driver, "a", start, stop) == data[start:stop], f"the range {start} to {stop} has other bytes"
        )

    async with trio.open_nursery() as nursery:
        for _ in range(64):
            start, stop = sorted((chosen.randrange(size), chosen.randrange(size)))
            nursery.start_soon(read, start, stop)


@case()
async def a_slow_reader_stops_nobody(store: Store) -> None:
    """A reader that takes nothing keeps nobody else from reading and writing."""
    driver = store.driver
    await driver.write("a", b"x" * 3 * MIB)
    async with driver.open("a") as slow:
        for number in range(20):
            await driver.write("b", b"%d" % number)
            equal(len(await content(driver, "a")), 3 * MIB, "how much another reads")
        equal(len(b"".join([chunk async for chunk in slow])), 3 * MIB, "how much the slow one reads in the end")

"""Cases about writing and reading: an object is absent or complete."""

from collections.abc import Awaitable, Callable

import trio

from moorage import KeyInvalid, KeyUnknown, StoreUnavailable

from .case import Group
from .expect import Pieces, content, equal, exists, keys, refuses, true
from .store import Store

case = Group("objects", "Writing and reading")

MIB = 1 << 20
PART = 8 << 20


@case()
async def what_is_written_is_read(store: Store) -> None:
    """Content of any size around the usual boundaries, bytes of every value, is read as it was written."""
    driver = store.driver
    sizes = [0, 1, 2, 65_535, 65_536, 65_537, MIB - 1, MIB, MIB + 1]
    sizes += [] if store.fast else [5 * MIB, PART - 1, PART, PART + 1]
    for size in sizes:
        data = (bytes(range(256)) * (size // 256 + 1))[:size]
        await driver.write("whole", data)
        half = size // 2
        await driver.write("in/pieces", Pieces(data[:half], b"", data[half:]))
        for key in ("whole", "in/pieces"):
            equal(await content(driver, key), data, f"what was read of {size} bytes")
            equal(await driver.read(key, limit=size), data, f"what read() gave of {size} bytes")
            equal((await driver.stat(key)).size, size, "the size")


@case(long=True)
async def large_content_is_streamed(store: Store) -> None:
    """64 MiB are written and read in pieces of at most a few MiB."""
    driver = store.driver
    await driver.write("a", Pieces(*[b"%08d" % number * (MIB // 8) for number in range(64)]))
    async with driver.open("a") as reader:
        equal(reader.stat.size, 64 * MIB, "the size")
        position = 0
        async for chunk in reader:
            true(len(chunk) <= 16 * MIB, f"a piece has {len(chunk)} bytes")
            equal(chunk[:8] in b"%08d" % (position // MIB) * 3, True, f"whether the bytes at {position} are right")
            position += len(chunk)
    equal(position, 64 * MIB, "how much was read")


@case()
async def a_write_replaces(store: Store) -> None:
    """A write without a condition replaces what is there, also by something smaller."""
    driver = store.driver
    await driver.write("a", b"a longer text")
    await driver.write("a", b"short")
    equal(await content(driver, "a"), b"short", "what was written last")
    await driver.write("a", Pieces(b"other"), durable=False)
    equal(await content(driver, "a"), b"other", "what was written last, not durably")


@case()
async def the_version_changes_with_each_write(store: Store) -> None:
    """`Stat.version` is another one after each write, also of equal bytes where files are, and the same until then."""
    driver = store.driver
    seen: set[str] = set()
    turns = 100
    for number in range(turns):
        # Services make it of the content alone.
        data = b"%d" % number if driver.capabilities.remote else b"same"
        await driver.write("a", data, durable=False)
        version = (await driver.stat("a")).version
        await driver.write("b", b"", durable=False)
        async with driver.open("a") as reader:
            equal(reader.stat, await driver.stat("a"), "what an open reader knows of the object")
        equal((await driver.stat("a")).version, version, "the version of what was not written")
        seen.add(version)
    equal(len(seen), turns, f"how many versions {turns} writes had")


@case()
async def nobody_sees_a_write_before_it_is_whole(store: Store) -> None:
    """While a write is under way the key is what it was before."""
    driver = store.driver

    async def look() -> None:
        equal(await content(driver, "old"), b"old", "what others read meanwhile")
        equal(await exists(driver, "new"), False, "whether others see the new key meanwhile")
        equal(await keys(driver), ["old"], "what others list meanwhile")

    await driver.write("old", b"old")
    await driver.write("old", Pieces(b"x" * MIB, then=look))
    await driver.write("old", b"old")
    await driver.write("new", Pieces(b"x" * MIB, then=look))


@case()
async def a_write_whose_source_fails_changes_nothing(store: Store) -> None:
    """When the source of a write fails half-way, the key is what it was before, and the failure is the caller's."""
    driver = store.driver
    await driver.write("old", b"old")
    for key in ("old", "new", "folder/new"):
        try:
            await driver.write(key, Pieces(b"x" * MIB, then=LookupError("the source failed")))
        except LookupError:
            pass
        else:
            true(False, f"the failure of the source did not come out of the write to {key!r}")
    equal(await keys(driver), ["old"], "the list of all keys")
    equal(await content(driver, "old"), b"old", "what was there before")


@case()
async def a_reader_goes_on_with_what_it_opened(store: Store) -> None:
    """Who reads an object that is replaced, or deleted, meanwhile gets one whole object or an error, never a mixture."""
    driver = store.driver
    old, new = b"x" * 3 * MIB, b"y" * 3 * MIB
    await driver.write("a", old)
    for change in ("replaced", "deleted"):
        async with driver.open("a") as reader:
            if change == "replaced":
                await driver.write("a", new)
            else:
                await driver.delete("a")
            try:
                found = b"".join([chunk async for chunk in reader])
            except (KeyUnknown, StoreUnavailable):
                continue
            true(found in {old, new}, f"an object that was {change} while it was read came as a mixture")


@case()
async def of_many_writers_one_is_seen_whole(store: Store) -> None:
    """Of writers at the same time one is seen, whole."""
    driver = store.driver
    texts = [bytes([65 + number]) * 100_000 for number in range(16)]
    async with trio.open_nursery() as nursery:
        for text in texts:
            nursery.start_soon(driver.write, "a/b", text)
    true(await content(driver, "a/b") in texts, "what many wrote at once is none of what they wrote")
    equal(await keys(driver), ["a/b"], "the list of all keys")


@case()
async def what_is_not_there_is_unknown(store: Store) -> None:
    """What is not there raises `KeyUnknown`, which names the driver and the key."""
    driver = store.driver
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: driver.stat("a/b"),
        lambda: content(driver, "a/b"),
        lambda: driver.read("a/b", limit=1),
    ]
    for attempt in attempts:
        try:
            await attempt()
        except KeyUnknown as error:
            equal((error.driver, error.key), (driver.name, "a/b"), "driver and key of KeyUnknown")
        else:
            true(False, "a key that is not there was found")
    with refuses(KeyUnknown, what="a copy of what is not there"):
        await driver.copy("a/b", "c")
    equal(await keys(driver), [], "the list of all keys")


@case()
async def read_is_bounded(store: Store) -> None:
    """`read` refuses what is larger than its limit."""
    driver = store.driver
    await driver.write("a", b"12345")
    equal(await driver.read("a", limit=5), b"12345", "what read() gave")
    with refuses(StoreUnavailable, what="read() of 5 bytes with a limit of 4"):
        await driver.read("a", limit=4)


@case()
async def several_are_put_in_order_and_found(store: Store) -> None:
    """`write_all` puts each object, none after one that cannot be put; `are_there` tells of each key in its place."""
    driver = store.driver
    await driver.write("a", b"old")
    await driver.write_all([("a", b"1"), ("b/c", b"2"), ("a", b"3"), ("d", b"4")])
    for key, data in (("a", b"3"), ("b/c", b"2"), ("d", b"4")):
        equal(await content(driver, key), data, f"what write_all() put at {key!r}")
    with refuses(KeyInvalid, what="write_all() with something that is no key"):
        await driver.write_all([("e", b"1"), ("../f", b"2"), ("g", b"3")])
    equal(await exists(driver, "g"), False, "whether what stood after that is there")
    await driver.write_all([])
    wanted = {"a": True, "b": False, "b/c": True, "d": True, "g": False}
    equal(list(await driver.are_there(list(wanted))), list(wanted.values()), f"what are_there() says of {list(wanted)}")
    equal(list(await driver.are_there([])), [], "what are_there() says of nothing")


@case()
async def a_copy_has_a_life_of_its_own(store: Store) -> None:
    """A copy is what the source was; it replaces, it may be onto itself, and later changes of either leave the other."""
    driver = store.driver
    await driver.write("a", b"1")
    await driver.write("there/already", b"old")
    for destination in ("a", "b", "c/d", "there/already", "b"):
        await driver.copy("a", destination)
    equal(await content(driver, "a"), b"1", "what was copied onto itself")
    await driver.write("a", b"2")
    await driver.delete("b")
    for destination in ("c/d", "there/already"):
        equal(await content(driver, destination), b"1", f"the copy at {destination!r}")
    equal(await content(driver, "a"), b"2", "the source")


@case("shared")
async def a_killed_writer_leaves_a_whole_object(store: Store) -> None:
    """A process that is killed while it writes leaves what was there, or what it wrote, whole."""
    length = 8 << 16
    for turn in range(2 if store.fast else 10):
        async with store.process("replace", "a/b") as process:
            # The first is whole by then, and another one under way.
            for _ in range(2 + turn % 3):
                true(await process.line(), "the other process ended")
            await process.kill()
        found = await content(store.driver, "a/b")
        true(len(found) == length and len(set(found)) == 1, "a killed writer left a part, or a mixture")
        equal(await keys(store.driver), ["a/b"], "the list of all keys")


@case("shared")
async def another_process_sees_what_was_written(store: Store) -> None:
    """What one opening of the store has written, another sees at once."""
    async with store.open() as another:
        await store.driver.write("a/b", b"1")
        equal(await content(another, "a/b"), b"1", "what another reads")
        await another.delete("a/b")
        equal(await exists(store.driver, "a/b"), False, "whether what another deleted is there")
        equal(await keys(store.driver), [], "the list of all keys")


@case()
async def a_url_is_where_the_content_is(store: Store) -> None:
    """`url` gives None, or an absolute http or https URL."""
    driver = store.driver
    await driver.write("a", b"1")
    url = await driver.url("a", client_address="192.0.2.1")
    true(url is None or url.startswith(("http://", "https://")), f"url() gave {url!r}")

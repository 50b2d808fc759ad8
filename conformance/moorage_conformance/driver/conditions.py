"""Cases about conditions: of several writers with the same one, one wins."""

from collections.abc import Awaitable, Callable

import trio

from moorage import Absent, ConditionFailed, Unchanged

from .case import Group
from .expect import Pieces, content, equal, exists, keys, refuses, true, wins
from .store import Store

case = Group("conditions", "Conditions")

PROCESSES = 4
RACERS = (2, 16, 64)


@case("create_only")
async def one_of_many_creates(store: Store) -> None:
    """Of many writers that want to create a key, plain or streamed, exactly one does, and its bytes are there."""
    driver = store.driver

    def creator(key: str, number: int) -> Callable[[], Awaitable[object]]:
        data = b"%d" % number
        return lambda: driver.write(key, Pieces(data) if number % 2 else data, condition=Absent())

    for racers in RACERS:
        for turn in range(2 if store.fast else 20):
            key = f"{racers}/{turn}"
            equal(await wins([creator(key, number) for number in range(racers)]), 1, f"how many of {racers} created it")
            true(int(await content(driver, key)) < racers, "the content is nobody's")
            with refuses(ConditionFailed, what="a late creator"):
                await driver.write(key, b"late", condition=Absent())
    await driver.delete("2/0")
    await driver.write("2/0", b"again", condition=Absent())


@case("create_only", "shared")
async def one_of_several_processes_creates(store: Store) -> None:
    """Of several processes that want to create a key at once, exactly one does, and its bytes are there."""
    for turn in range(1 if store.fast else 5):
        key = f"race/{turn}"
        said = await _race(store, key)
        winners = [name for name, word in said.items() if word == "won"]
        equal(len(winners), 1, f"how many of {PROCESSES} processes created the key ({said})")
        equal((await content(store.driver, key)).decode(), winners[0], "whose bytes are there")


async def _race(store: Store, key: str) -> dict[str, str]:
    """Let several processes create `key` at once; return what each says."""
    said: dict[str, str] = {}
    ready = 0
    all_ready = trio.Event()

    async def run(name: str) -> None:
        nonlocal ready
        async with store.process("create", key, name) as process:
            equal(await process.line(), "ready", "what another process said")
            ready += 1
            if ready == PROCESSES:
                all_ready.set()
            await all_ready.wait()
            await process.go()
            said[name] = await process.line()

    async with trio.open_nursery() as nursery:
        for number in range(PROCESSES):
            nursery.start_soon(run, f"process {number}")
    return said


@case("cas")
async def one_of_many_replaces_what_it_has_seen(store: Store) -> None:
    """Of many that replace, or delete, the version that they have seen, exactly one does."""
    driver = store.driver
    for racers in RACERS:
        for turn in range(2 if store.fast else 10):
            await driver.write("a", b"0")
            seen = Unchanged((await driver.stat("a")).version)

            def replacer(number: int, seen: Unchanged = seen, turn: int = turn) -> Callable[[], Awaitable[object]]:
                if turn % 2 and number % 4 == 0:
                    return lambda: driver.delete("a", condition=seen)
                return lambda: driver.write("a", b"%d" % number, condition=seen)

            equal(await wins([replacer(number) for number in range(racers)]), 1, f"how many of {racers} won")


@case("cas")
async def counting_loses_nothing(store: Store) -> None:
    """Many that look, add one, and replace what they saw lose no count."""
    driver = store.driver
    await driver.write("count", b"0")
    adders = 12

    async def add() -> None:
        while True:
            async with driver.open("count") as reader:
                seen = Unchanged(reader.stat.version)
                count = int(b"".join([chunk async for chunk in reader]))
            try:
                await driver.write("count", b"%d" % (count + 1), condition=seen, durable=False)
            except ConditionFailed:
                continue
            return

    async with trio.open_nursery() as nursery:
        for _ in range(adders):
            nursery.start_soon(add)
    equal(await content(driver, "count"), b"%d" % adders, f"what {adders} have counted")


@case("cas")
async def what_is_gone_or_never_was_is_not_unchanged(store: Store) -> None:
    """`Unchanged` fails for a key that is gone, was never there, or came back with other content."""
    driver = store.driver
    await driver.write("a", b"1")
    seen = Unchanged((await driver.stat("a")).version)
    await driver.delete("a")
    for key in ("a", "b", "c/d"):
        with refuses(ConditionFailed, what=f"a replacement of {key!r}, which is not there"):
            await driver.write(key, b"2", condition=seen)
        with refuses(ConditionFailed, what=f"a delete of {key!r}, which is not there"):
            await driver.delete(key, condition=seen)
    # Some stores make the version of the content alone, so the same content may be of the same version.
    await driver.write("a", b"3")
    with refuses(ConditionFailed, what="a replacement of what came back"):
        await driver.write("a", b"2", condition=seen)
    equal(await content(driver, "a"), b"3", "what came back")
    equal(await keys(driver), ["a"], "the list of all keys")


@case()
async def a_write_tells_the_version_it_made(store: Store) -> None:
    """A version that a write returns is the one that a look finds; a store need not return any."""
    driver = store.driver
    for data in (b"", b"1", Pieces(b"2", b"3")):
        version = await driver.write("a", data)
        if version is not None:
            equal(version, (await driver.stat("a")).version, "the version that the write told")


@case("cas")
async def a_delete_takes_only_the_version_that_was_seen(store: Store) -> None:
    """A delete with a condition takes the version it names and no other."""
    driver = store.driver
    await driver.write("a/b", b"first")
    seen = Unchanged((await driver.stat("a/b")).version)
    await driver.write("a/b", b"other")
    with refuses(ConditionFailed, what="a delete of what was replaced"):
        await driver.delete("a/b", condition=seen)
    equal(await content(driver, "a/b"), b"other", "what was not to be deleted")
    await driver.delete("a/b", condition=Unchanged((await driver.stat("a/b")).version))
    equal(await exists(driver, "a/b"), False, "whether the deleted key is there")


@case("create_only")
async def a_copy_honours_absent(store: Store) -> None:
    """A copy to a key that must be absent is made once."""
    driver = store.driver
    await driver.write("source", b"1")
    attempts = [lambda: driver.copy("source", "a/b", condition=Absent()) for _ in range(8)]
    equal(await wins(attempts), 1, "how many copies were made")
    await driver.write("a/b", b"other")
    with refuses(ConditionFailed, what="a copy onto what is there"):
        await driver.copy("source", "a/b", condition=Absent())
    equal(await content(driver, "a/b"), b"other", "what was there")


@case("create_only")
async def a_commit_honours_absent(store: Store) -> None:
    """Of uploads committed to a key that must be absent one wins; the others stay uploads, and can be committed elsewhere."""
    driver = store.driver

    async def push(number: int) -> None:
        async with driver.open_upload(f"uploads/{number}/data") as upload:
            await upload.write(b"%d" % number)
            await upload.commit("a/b", condition=Absent())

    def pusher(number: int) -> Callable[[], Awaitable[object]]:
        return lambda: push(number)

    equal(await wins([pusher(number) for number in range(8)]), 1, "how many commits won")
    winner = await content(driver, "a/b")
    async with driver.open_upload("uploads/late/data") as upload:
        await upload.write(b"late")
        token = await upload.suspend()
        with refuses(ConditionFailed, what="a late commit"):
            await upload.commit("a/b", condition=Absent())
    equal(await content(driver, "a/b"), winner, "what the winner wrote")
    async with driver.resume_upload(token, 4) as upload:
        await upload.commit("other", condition=Absent())
    equal(await content(driver, "other"), b"late", "what the loser committed elsewhere")

"""Cases about lists."""

import random

from moorage import Driver

from .case import Group
from .expect import equal, exists, keys, true
from .store import Store

case = Group("lists", "Lists")

FOLDERS = ("a", "a-b", "a.b", "a0", "a1", "A", "_a", "b", "1.0", "1.0-x", "1.0.1", "1")
LEAVES = ("link", "link-1", "link.x", "data")


def listed(written: set[str], prefix: str, delimiter: str) -> list[str]:
    """Return what a list of `prefix` must give, worked out the slow and plain way."""
    found: set[str] = set()
    for key in written:
        if key.startswith(prefix):
            head, cut, _ = key[len(prefix) :].partition("/") if delimiter else (key[len(prefix) :], "", "")
            found.add(prefix + head + cut)
    return sorted(found)


async def _paged(driver: Driver, prefix: str, after: str, delimiter: str, limit: int) -> list[str]:
    found: list[str] = []
    while True:
        listing = await driver.list(prefix, after=found[-1] if found else after, delimiter=delimiter, limit=limit)
        found += [entry.key for entry in listing.entries]
        true(len(listing.entries) <= limit, f"a page of {limit} has {len(listing.entries)} entries")
        true(all(entry.size in {None, 2} for entry in listing.entries), "an entry has a size that is not the object's")
        if not listing.more:
            return found
        true(listing.entries, "an empty page says that more follow")


def _folder(chosen: random.Random, most: int) -> str:
    return "".join(f"{chosen.choice(FOLDERS)}/" for _ in range(chosen.randrange(most + 1)))


@case()
async def a_list_gives_what_is_there_in_byte_order(store: Store) -> None:
    """With any prefix, `after`, delimiter and page size a list gives each key once, in byte order, and no other."""
    driver = store.driver
    chosen = random.Random(3)
    written: set[str] = set()
    for _ in range(4 if store.fast else 20):
        for _ in range(8):
            key = _folder(chosen, 3) + chosen.choice(LEAVES)
            await driver.write(key, b"12", durable=False)
            written.add(key)
        gone = chosen.sample(sorted(written), k=min(3, len(written)))
        await driver.delete(*gone, durable=False)
        written -= set(gone)
        for _ in range(20):
            prefix, delimiter = _folder(chosen, 2), chosen.choice(["", "/"])
            after = chosen.choice([
                "",
                prefix,
                _folder(chosen, 2),
                _folder(chosen, 2) + "link",
                *gone,
                *sorted(written)[:3],
            ])
            limit = chosen.choice([1, 2, 3, 1000])
            wanted = [key for key in listed(written, prefix, delimiter) if key > after]
            found = await _paged(driver, prefix, after, delimiter, limit)
            if delimiter:
                # A folder may be listed although its last key is gone.
                there = {key for key in found if not key.endswith("/") or key in wanted}
                equal(found, sorted(set(found)), "a list by folders, in order and each once,")
                found = sorted(there)
            equal(found, wanted, f"the list of {prefix!r} after {after!r} with {delimiter!r}, {limit} at a time,")


@case()
async def five_thousand_keys_are_paged(store: Store) -> None:
    """More keys than any backend gives at once are listed completely."""
    driver = store.driver
    count = 1_500 if store.fast else 5_100
    for number in range(count):
        await driver.write(f"a/{number:05}/x", b"12", durable=False)
    await driver.write("b", b"12")
    wanted = [f"a/{number:05}/x" for number in range(count)]
    equal(await keys(driver, "a/"), wanted, "the list of all keys below a/")
    equal((await driver.list("a/", limit=10_000)).entries[-1].key, wanted[-1], "the last key of one large page")
    folders = await _paged(driver, "a/", "", "/", 1000)
    equal(folders, [key.removesuffix("x") for key in wanted], "the folders below a/")
    await driver.delete_below("a/", durable=False)
    equal(await keys(driver), ["b"], "what is left beside a/")


@case()
async def a_prefix_without_keys_lists_nothing(store: Store) -> None:
    """A prefix below which there is nothing, also one that is a key, lists nothing."""
    driver = store.driver
    await driver.write("a/b", b"")
    for prefix in ("b/", "a/b/", "a/b/c/", "a/c/"):
        for delimiter in ("", "/"):
            equal((await driver.list(prefix, delimiter=delimiter)).entries, (), f"the list of {prefix!r}")


@case()
async def a_full_page_says_whether_more_follows(store: Store) -> None:
    """A page that is just full says that more follow only if they do."""
    driver = store.driver
    for key in ("a/1", "a/2", "b/1"):
        await driver.write(key, b"")
    equal((await driver.list("a/", limit=1)).more, True, "whether more follow the first of two")
    equal((await driver.list("", limit=2)).more, True, "whether more follow the first two of three")
    listing = await driver.list("a/", limit=2)
    true(
        not listing.more or not (await driver.list("a/", after="a/2", limit=2)).entries,
        "what follows the last entry is not nothing",
    )


@case()
async def a_list_shows_each_finished_write(store: Store) -> None:
    """A list shows every write and delete that was finished before it began."""
    driver = store.driver
    async with store.open() as another:
        for number in range(30):
            await driver.write(f"a/{number:02}", b"12")
            true(f"a/{number:02}" in await keys(another, "a/"), "a list lacks what was written before")
        for number in range(0, 30, 2):
            await driver.delete(f"a/{number:02}")
            true(f"a/{number:02}" not in await keys(another, "a/"), "a list has what was deleted before")


@case()
async def what_is_deleted_goes_alone(store: Store) -> None:
    """Deletes take the keys they name and no neighbours; what is not there is deleted without complaint."""
    driver = store.driver
    for key in ("a/b", "a/c", "a-b", "d/e/f"):
        await driver.write(key, b"")
    await driver.delete("a/b", "d/e/f", "un/known", "a/b", durable=False)
    await driver.delete("a", "a/c/d", "d/e", "d")
    await driver.delete()
    equal(await keys(driver), ["a-b", "a/c"], "what is left")
    many = [f"m/{number}" for number in range(50 if store.fast else 1_100)]
    for key in many:
        await driver.write(key, b"", durable=False)
    await driver.delete(*many, durable=False)
    equal(await keys(driver), ["a-b", "a/c"], f"what is left after {len(many)} deletes in one call")
    equal(await exists(driver, "a/c"), True, "whether the neighbour is there")


@case()
async def all_below_a_prefix_is_deleted(store: Store) -> None:
    """`delete_below` takes every key below a prefix and nothing beside it."""
    driver = store.driver
    beside = ["a/b-1/x", "a/b.c/x", "a/b0", "a/bb/x", "a/c", "b/x"]
    for key in [*beside, "a/b/c", "a/b/d/e/f", "a/b/d/g", "a/b/b/x"]:
        await driver.write(key, b"", durable=False)
    for prefix in ("a/b/", "a/b/", "un/known/", "a/c/"):
        await driver.delete_below(prefix)
        equal(await keys(driver), beside, f"what is left after {prefix!r}")
    await driver.write("a/b", b"")
    equal(await exists(driver, "a/b"), True, "whether a key can be where a folder was")

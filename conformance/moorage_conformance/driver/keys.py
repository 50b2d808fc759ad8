"""Cases about keys."""

from moorage import Absent, ConditionFailed, KeyInvalid, KeyUnknown

from .case import Group
from .expect import Pieces, content, equal, exists, keys, refuses
from .store import Store

case = Group("keys", "Keys")

GOOD = (
    "a",
    "a/b/c/d/e/f",
    "docker/registry/v2/blobs/sha256/ab/abcd/data",
    "_a",
    "-a",
    "...",
    "..a",
    "a..",
    ".a/a.",
    "A:b@c+d=e-f_g.h",
    "c" * 255,
    "/".join(["c" * 224] * 4),
)
BAD = (
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/..",
    "../a",
    "a/./b",
    "a b",
    "a\n",
    "a\0b",
    "a\\b",
    "a%2fb",
    "ä",
    "a*",
    "a?b",
    "c" * 256,
    "/".join(["c" * 225] * 4),
)


@case()
async def keys_of_the_grammar_hold_objects(store: Store) -> None:
    """Every key of the grammar, up to 900 bytes and 255 in a component, holds an object."""
    driver = store.driver
    for key in GOOD:
        await driver.write(key, b"content")
        equal(await content(driver, key), b"content", f"what was written to {key!r}")
        equal((await driver.stat(key)).size, 7, f"the size of {key!r}")
        equal(await keys(driver), [key], "the list of all keys")
        await driver.delete(key)
        equal(await exists(driver, key), False, f"the existence of the deleted {key!r}")


@case()
async def what_breaks_the_grammar_is_refused(store: Store) -> None:
    """What is no key is refused by every method, and nothing is stored for it."""
    driver = store.driver
    await driver.write("source", b"1")
    for key in BAD:
        with refuses(KeyInvalid, KeyUnknown, what=f"stat of {key!r}"):
            await driver.stat(key)
        with refuses(KeyInvalid, KeyUnknown, what=f"opening {key!r}"):
            await content(driver, key)
        for chunks in (b"1", Pieces(b"1")):
            with refuses(KeyInvalid, what=f"a write to {key!r}"):
                await driver.write(key, chunks)
        with refuses(KeyInvalid, what=f"a copy to {key!r}"):
            await driver.copy("source", key)
        with refuses(KeyInvalid, what=f"a delete of {key!r}"):
            await driver.delete(key)
    equal(await keys(driver), ["source"], "the list of all keys")


@case("local")
async def no_key_is_a_directory_of_another(store: Store) -> None:
    """A key below which there are keys, or above which there is one, is refused, and nothing changes."""
    driver = store.driver
    await driver.write("a/b", b"1")
    for key in ("a", "a/b/c", "a/b/c/d"):
        for chunks in (b"2", Pieces(b"2")):
            with refuses(KeyInvalid, what=f"a write to {key!r} beside 'a/b'"):
                await driver.write(key, chunks)
        with refuses(KeyInvalid, what=f"a copy to {key!r} beside 'a/b'"):
            await driver.copy("a/b", key)
        with refuses(KeyInvalid, ConditionFailed, what=f"a conditional write to {key!r} beside 'a/b'"):
            await driver.write(key, b"2", condition=Absent())
        with refuses(KeyUnknown, what=f"stat of {key!r}"):
            await driver.stat(key)
        with refuses(KeyUnknown, what=f"opening {key!r}"):
            await content(driver, key)
        await driver.delete(key)
    equal(await keys(driver), ["a/b"], "the list of all keys")
    await driver.delete("a/b")
    await driver.write("a", b"3")
    equal(await keys(driver), ["a"], "the list of all keys")


@case()
async def neighbours_are_other_keys(store: Store) -> None:
    """Keys that differ in case, or begin alike, hold objects of their own."""
    driver = store.driver
    several = ["A", "a", "a-b", "a.b", "ab", "b/a", "b/ab", "b/a-b", "B/a"]
    for number, key in enumerate(several):
        await driver.write(key, b"%d" % number)
    for number, key in enumerate(several):
        equal(await content(driver, key), b"%d" % number, f"what was written to {key!r}")
    equal(await keys(driver), sorted(several), "the list of all keys")

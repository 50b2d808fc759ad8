"""The driver contract, on every driver that needs nothing outside this process."""

import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from content import Sent
from moorage import (
    Absent,
    ConditionFailed,
    Driver,
    KeyInvalid,
    KeyUnknown,
    RangeUnsatisfiable,
    StoreUnavailable,
    Unchanged,
    UploadGone,
)
from stores import Kind, Store, listed, new_store

KINDS: list[Kind] = ["memory", "filesystem", "minimal"]
MIB = 1 << 20


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return new_store(request.param, tmp_path / "store")


async def content(driver: Driver, key: str, start: int = 0, stop: int | None = None) -> bytes:
    async with driver.open(key, start, stop) as reader:
        return b"".join([chunk async for chunk in reader])


async def exists(driver: Driver, key: str) -> bool:
    try:
        await driver.stat(key)
    except KeyUnknown:
        return False
    return True


async def keys(driver: Driver, prefix: str = "") -> list[str]:
    """All keys below `prefix`."""
    found: list[str] = []
    while True:
        listing = await driver.list(prefix, after=found[-1] if found else "")
        found += [entry.key for entry in listing.entries]
        if not listing.more:
            return found


async def race(*runners: Callable[[], Awaitable[None]]) -> int:
    """Run all at once; return how many were not refused for their condition."""
    won = 0

    async def run(runner: Callable[[], Awaitable[None]]) -> None:
        nonlocal won
        try:
            await runner()
        except ConditionFailed:
            return
        won += 1

    async with trio.open_nursery() as nursery:
        for runner in runners:
            nursery.start_soon(run, runner)
    return won


# ---- keys


@pytest.mark.parametrize(
    "key",
    [
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
        "/".join(["c" * 255] * 4),
    ],
)
async def test_a_key_of_the_grammar_holds_an_object(driver: Driver, key: str) -> None:
    await driver.write(key, b"content")
    assert await content(driver, key) == b"content"
    assert (await driver.stat(key)).size == 7
    assert await keys(driver) == [key]
    await driver.delete(key)
    assert not await exists(driver, key)


@pytest.mark.parametrize(
    "key",
    [
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
        "a%b",
        "a*",
        "ä",
        "\ud800",
        "c" * 256,
        "a/" + "c" * 256,
        "/".join(["c" * 200] * 6),
    ],
)
async def test_what_breaks_the_grammar_is_refused_by_every_method(driver: Driver, key: str) -> None:
    await driver.write("a-key", b"")
    for attempt in (
        driver.stat(key),
        content(driver, key),
        driver.write(key, b""),
        driver.write(key, Sent(b"")),
        driver.delete(key),
        driver.copy(key, "b"),
        driver.copy("a-key", key),
        driver.read(key, limit=10),
    ):
        with pytest.raises(KeyInvalid):
            await attempt
    assert await keys(driver) == ["a-key"]


async def test_no_key_is_a_directory_of_another(driver: Driver) -> None:
    await driver.write("a/b", b"1")
    for key in ("a", "a/b/c", "a/b/c/d"):
        for chunks in (b"2", Sent(b"2")):
            with pytest.raises(KeyInvalid):
                await driver.write(key, chunks)
        with pytest.raises(KeyInvalid):
            await driver.copy("a/b", key)
        with pytest.raises((KeyInvalid, ConditionFailed)):
            await driver.write(key, b"2", condition=Absent())
        with pytest.raises(KeyUnknown):
            await driver.stat(key)
        with pytest.raises(KeyUnknown):
            await content(driver, key)
        await driver.delete(key)
    assert await keys(driver) == ["a/b"]
    await driver.delete("a/b")
    await driver.write("a", b"3")
    assert await keys(driver) == ["a"]


async def test_what_lies_at_a_directory_cannot_be_copied(driver: Driver) -> None:
    await driver.write("a/b", b"1")
    for source in ("a", "a/b/c", "unknown", "un/known"):
        with pytest.raises(KeyUnknown):
            await driver.copy(source, "c")
    assert await keys(driver) == ["a/b"]


# ---- absent or complete


@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 17])
async def test_what_is_written_is_read(driver: Driver, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    await driver.write("whole", data)
    half = len(data) // 2
    await driver.write("in/pieces", Sent(data[:half], b"", data[half:]))
    for key in ("whole", "in/pieces"):
        assert await content(driver, key) == data
        assert await driver.read(key, limit=size) == data
        assert (await driver.stat(key)).size == size


async def test_a_write_replaces(driver: Driver) -> None:
    await driver.write("a", b"a longer text")
    await driver.write("a", b"short")
    assert await content(driver, "a") == b"short"
    await driver.write("a", Sent(b"other"), durable=False)
    assert await content(driver, "a") == b"other"


async def test_the_version_changes_with_each_write_and_with_nothing_else(driver: Driver) -> None:
    seen: list[str] = []
    for number in range(20):
        await driver.write("a", b"%02d" % number, durable=False)
        seen.append((await driver.stat("a")).version)
        await driver.write("b", b"", durable=False)
        async with driver.open("a") as reader:
            assert reader.stat == await driver.stat("a")
            assert reader.stat.version == seen[-1]
    assert len(set(seen)) == len(seen)


async def test_nobody_sees_a_write_before_it_is_whole(driver: Driver) -> None:
    async def look() -> None:
        assert await content(driver, "old") == b"old"
        assert not await exists(driver, "new")
        assert await keys(driver) == ["old"]

    await driver.write("old", b"old")
    await driver.write("old", Sent(b"x" * MIB, then=look))
    await driver.write("old", b"old")
    await driver.write("new", Sent(b"x" * MIB, then=look))


@pytest.mark.parametrize("key", ["old", "new", "dir/new"])
async def test_a_write_that_is_cancelled_in_the_middle_leaves_things_as_they_were(driver: Driver, key: str) -> None:
    await driver.write("old", b"old")
    with trio.CancelScope() as scope:

        async def give_up() -> None:
            scope.cancel()
            await trio.sleep_forever()

        await driver.write(key, Sent(b"x" * MIB, then=give_up))
    assert scope.cancelled_caught
    assert await keys(driver) == ["old"]
    assert await content(driver, "old") == b"old"


async def test_a_write_whose_source_fails_leaves_things_as_they_were(driver: Driver) -> None:
    await driver.write("old", b"old")
    for key in ("old", "new"):
        with pytest.raises(LookupError):
            await driver.write(key, Sent(b"x" * MIB, then=LookupError()))
    assert await keys(driver) == ["old"]
    assert await content(driver, "old") == b"old"


async def test_a_reader_goes_on_with_what_it_opened(driver: Driver) -> None:
    await driver.write("a", b"x" * 3 * MIB)
    async with driver.open("a") as replaced:
        await driver.write("a", b"y")
        async with driver.open("a") as deleted:
            await driver.delete("a")
            assert b"".join([chunk async for chunk in deleted]) == b"y"
        assert b"".join([chunk async for chunk in replaced]) == b"x" * 3 * MIB


async def test_of_many_plain_writers_at_once_one_is_seen_whole(driver: Driver) -> None:
    texts = [bytes([65 + number]) * 1000 for number in range(16)]
    async with trio.open_nursery() as nursery:
        for text in texts:
            nursery.start_soon(driver.write, "a/b", text)
    assert await content(driver, "a/b") in texts
    assert await keys(driver) == ["a/b"]


async def test_what_is_not_there_is_unknown(driver: Driver) -> None:
    for attempt in (driver.stat("a/b"), content(driver, "a/b"), driver.read("a/b", limit=1)):
        with pytest.raises(KeyUnknown) as caught:
            await attempt
        assert caught.value.key == "a/b"
        assert caught.value.driver == driver.name


async def test_read_refuses_what_is_larger_than_expected(driver: Driver) -> None:
    await driver.write("a", b"12345")
    assert await driver.read("a", limit=5) == b"12345"
    with pytest.raises(StoreUnavailable):
        await driver.read("a", limit=4)


# ---- conditions


@pytest.mark.parametrize("streamed", [False, True])
async def test_exactly_one_of_many_creates(driver: Driver, streamed: bool) -> None:
    def creator(number: int) -> Callable[[], Awaitable[None]]:
        data = b"%d" % number
        return lambda: driver.write("a/b", Sent(data) if streamed else data, condition=Absent())

    assert await race(*map(creator, range(30))) == 1
    with pytest.raises(ConditionFailed):
        await driver.write("a/b", b"late", condition=Absent())
    await driver.delete("a/b")
    await driver.write("a/b", b"again", condition=Absent())


async def test_exactly_one_of_many_replaces_what_it_has_seen(driver: Driver) -> None:
    await driver.write("a", b"0")
    for turn in range(5):
        seen = Unchanged((await driver.stat("a")).version)

        def replacer(number: int, seen: Unchanged, turn: int) -> Callable[[], Awaitable[None]]:
            return lambda: driver.write("a", b"%d-%d" % (turn, number), condition=seen)

        assert await race(*(replacer(number, seen, turn) for number in range(20))) == 1
        assert (await content(driver, "a")).startswith(b"%d-" % turn)


async def test_counting_by_looking_and_replacing_loses_nothing(driver: Driver) -> None:
    await driver.write("count", b"0")

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
        for _ in range(12):
            nursery.start_soon(add)
    assert await content(driver, "count") == b"12"


async def test_what_is_gone_or_never_was_is_not_unchanged(driver: Driver) -> None:
    await driver.write("a", b"1")
    seen = Unchanged((await driver.stat("a")).version)
    await driver.delete("a")
    for key in ("a", "b", "a/b"):
        with pytest.raises(ConditionFailed):
            await driver.write(key, b"2", condition=seen)
    assert await keys(driver) == []


async def test_a_copy_honours_its_condition(driver: Driver) -> None:
    await driver.write("source", b"1")
    assert await race(*(lambda: driver.copy("source", "a/b", condition=Absent()) for _ in range(10))) == 1
    seen = Unchanged((await driver.stat("a/b")).version)
    await driver.write("a/b", b"other")
    with pytest.raises(ConditionFailed):
        await driver.copy("source", "a/b", condition=seen)
    assert await content(driver, "a/b") == b"other"


# ---- copy


async def test_a_copy_has_a_life_of_its_own(driver: Driver) -> None:
    await driver.write("a", b"1")
    await driver.write("there/already", b"old")
    for destination in ("b", "c/d", "there/already"):
        await driver.copy("a", destination)
    await driver.write("a", b"2")
    for destination in ("b", "c/d", "there/already"):
        assert await content(driver, destination) == b"1"
    await driver.delete("a")
    assert await content(driver, "b") == b"1"


async def test_a_copy_onto_itself_changes_nothing(driver: Driver) -> None:
    await driver.write("a", b"1")
    await driver.copy("a", "a")
    await driver.copy("a", "b")
    await driver.copy("a", "b")
    assert await content(driver, "a") == b"1"
    assert await keys(driver) == ["a", "b"]


# ---- ranges


@pytest.mark.parametrize(
    ("start", "stop", "found"),
    [
        (0, None, b"0123456789"),
        (0, 10, b"0123456789"),
        (0, 1, b"0"),
        (0, 0, b""),
        (3, 7, b"3456"),
        (3, None, b"3456789"),
        (9, None, b"9"),
        (3, 1000, b"3456789"),
        (10, None, b""),
        (10, 20, b""),
    ],
)
async def test_a_range_is_read(driver: Driver, start: int, stop: int | None, found: bytes) -> None:
    await driver.write("a", b"0123456789")
    assert await content(driver, "a", start, stop) == found
    async with driver.open("a", start, stop) as reader:
        assert reader.stat.size == 10
        assert reader.file is None or reader.file.length == len(found)


async def test_a_range_inside_a_large_object_is_read(driver: Driver) -> None:
    data = bytes(range(251)) * (3 * MIB // 251)
    await driver.write("a", data)
    assert await content(driver, "a", MIB - 1, 2 * MIB + 3) == data[MIB - 1 : 2 * MIB + 3]


@pytest.mark.parametrize("size", [0, 5])
async def test_a_range_that_begins_beyond_the_end_is_refused(driver: Driver, size: int) -> None:
    await driver.write("a", b"x" * size)
    assert await content(driver, "a", size) == b""
    with pytest.raises(RangeUnsatisfiable):
        await content(driver, "a", size + 1)


# ---- list

DIRECTORIES = st.sampled_from(["a", "a-b", "a.b", "a0", "a1", "A", "_a", "b", "1.0", "1.0-x", "1.0.1", "1"])
LEAVES = st.sampled_from(["link", "link-1", "link.x", "data"])
KEYS = st.tuples(st.lists(DIRECTORIES, max_size=3), LEAVES).map(lambda both: "/".join([*both[0], both[1]]))
PREFIXES = st.lists(DIRECTORIES, max_size=2).map(lambda folders: "".join(each + "/" for each in folders))


@pytest.mark.parametrize("kind", ["memory", "filesystem"])
@settings(max_examples=60, deadline=None)
@given(
    written=st.sets(KEYS, max_size=12),
    removed=st.sets(KEYS, max_size=6),
    prefix=PREFIXES,
    delimiter=st.sampled_from(["", "/"]),
    after=st.one_of(st.just(""), KEYS, PREFIXES),
    limit=st.integers(1, 5),
)
async def test_a_list_gives_what_is_there_in_order_page_by_page(
    kind: Kind, written: set[str], removed: set[str], prefix: str, delimiter: str, after: str, limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with new_store(kind, Path(folder)).open() as driver:
            for key in sorted(written):
                await driver.write(key, b"12", durable=False)
            await driver.delete(*sorted(removed), durable=False)
            wanted = [key for key in listed(written - removed, prefix, delimiter) if key > after]
            found: list[str] = []
            while True:
                listing = await driver.list(
                    prefix, after=found[-1] if found else after, delimiter=delimiter, limit=limit
                )
                found += [entry.key for entry in listing.entries]
                for entry in listing.entries:
                    assert entry.size in {None, 2}
                if not listing.more:
                    break
                assert len(listing.entries) == limit
            assert found == wanted


async def test_a_prefix_without_keys_lists_nothing(driver: Driver) -> None:
    await driver.write("a/b", b"")
    for prefix in ("b/", "a/b/", "a/b/c/", "a/c/"):
        assert (await driver.list(prefix)).entries == ()
        assert (await driver.list(prefix, delimiter="/")).entries == ()


async def test_a_page_that_is_just_full_says_whether_more_follows(driver: Driver) -> None:
    for key in ("a/1", "a/2", "b/1"):
        await driver.write(key, b"")
    assert (await driver.list("a/", limit=1)).more
    assert not (await driver.list("a/", limit=2)).more
    assert (await driver.list("", limit=2)).more
    assert not (await driver.list("", delimiter="/", limit=2)).more


# ---- delete


async def test_what_is_not_there_is_deleted_without_complaint(driver: Driver) -> None:
    await driver.write("a/b", b"")
    await driver.delete("a/c", "b", "a", "a/b/c", "a/b")
    await driver.delete("a/b")
    await driver.delete()
    assert await keys(driver) == []


async def test_many_are_deleted_at_once_and_their_neighbours_stay(driver: Driver) -> None:
    for key in ("a/b", "a/c", "a-b", "d/e/f"):
        await driver.write(key, b"")
    await driver.delete("a/b", "d/e/f", durable=False)
    assert await keys(driver) == ["a-b", "a/c"]


async def test_a_delete_under_a_condition_takes_only_the_version_that_was_seen(driver: Driver) -> None:
    await driver.write("a/b", b"first")
    seen = Unchanged((await driver.stat("a/b")).version)
    await driver.write("a/b", b"other")
    with pytest.raises(ConditionFailed):
        await driver.delete("a/b", condition=seen)
    assert await content(driver, "a/b") == b"other"
    await driver.delete("a/b", condition=Unchanged((await driver.stat("a/b")).version))
    assert await keys(driver) == []
    with pytest.raises(ConditionFailed):
        await driver.delete("a/b", condition=seen)


async def test_one_of_many_that_delete_or_replace_what_they_saw_wins(driver: Driver) -> None:
    await driver.write("a/b", b"first")
    seen = Unchanged((await driver.stat("a/b")).version)
    writers = [lambda: driver.write("a/b", b"other", condition=seen) for _ in range(5)]
    deleters = [lambda: driver.delete("a/b", condition=seen) for _ in range(5)]
    assert await race(*writers, *deleters) == 1


async def test_two_writes_of_equal_bytes_are_two_versions(driver: Driver) -> None:
    versions: set[str] = set()
    for _ in range(200):
        await driver.write("a/b", b"same", durable=False)
        versions.add((await driver.stat("a/b")).version)
    assert len(versions) == 200


async def test_all_below_a_prefix_is_deleted_and_nothing_beside_it(driver: Driver) -> None:
    beside = ["a/b-1/x", "a/b.c/x", "a/b0", "a/bb/x", "a/c", "b/x"]
    for key in [*beside, "a/b/c", "a/b/d/e/f", "a/b/d/g", "a/b/b/x"]:
        await driver.write(key, b"", durable=False)
    await driver.delete_below("a/b/")
    assert await keys(driver) == beside
    await driver.delete_below("a/b/")
    await driver.delete_below("un/known/")
    await driver.delete_below("a/c/")
    assert await keys(driver) == beside
    await driver.write("a/b", b"")
    assert await content(driver, "a/b") == b""


async def test_more_than_a_page_is_deleted_below_a_prefix(driver: Driver) -> None:
    for number in range(1100):
        await driver.write(f"a/{number}/x", b"", durable=False)
    await driver.write("b", b"")
    await driver.delete_below("a/", durable=False)
    assert await keys(driver) == ["b"]


# ---- uploads


async def test_an_upload_is_seen_when_it_is_committed_and_not_before(driver: Driver) -> None:
    data = bytes(range(256)) * (20 * MIB // 256)
    async with driver.open_upload("uploads/1/data") as upload:
        for start in range(0, len(data), MIB):
            await upload.write(data[start : start + MIB])
            assert upload.offset == start + MIB
        assert not await exists(driver, "blobs/1")
        await upload.commit("blobs/1")
    assert await content(driver, "blobs/1") == data
    await driver.delete_below("uploads/1/")
    assert await keys(driver) == ["blobs/1"]


async def test_an_upload_of_nothing_is_an_empty_object(driver: Driver) -> None:
    async with driver.open_upload("uploads/1/data", "blobs/1") as upload:
        token = await upload.suspend()
    async with driver.resume_upload(token, 0) as upload:
        await upload.commit("blobs/1")
    assert await content(driver, "blobs/1") == b""


async def test_an_upload_goes_on_in_another_process(store: Store) -> None:
    async with store.open() as first, first.open_upload("uploads/1/data") as upload:
        await upload.write(b"one, ")
        await upload.write(b"two, ")
        token = await upload.suspend()
        assert upload.offset == 10
    for text in (b"three, ", b"four"):
        async with store.open() as another, another.resume_upload(token, upload.offset) as again:
            assert again.offset == upload.offset
            await again.write(text)
            token = await again.suspend()
        upload = again
    async with store.open() as last, last.resume_upload(token, upload.offset) as finished:
        await finished.commit("a/b")
    async with store.open() as reader:
        assert await content(reader, "a/b") == b"one, two, three, four"


async def test_bytes_that_no_token_answers_for_are_dropped(driver: Driver) -> None:
    async with driver.open_upload("uploads/1/data") as upload:
        await upload.write(b"kept")
        token = await upload.suspend()
        await upload.write(b" and " + b"x" * 9 * MIB)
    async with driver.resume_upload(token, 4) as upload:
        await upload.write(b"!")
        token = await upload.suspend()
        await upload.write(b"lost")
    async with driver.resume_upload(token, 5) as upload:
        await upload.commit("a")
    assert await content(driver, "a") == b"kept!"


async def test_an_upload_is_gone_where_its_token_does_not_reach(driver: Driver) -> None:
    async with driver.open_upload("uploads/1/data") as upload:
        await upload.write(b"four")
        token = await upload.suspend()
    for wrong, offset in (
        (token, 5),
        (b"", 0),
        (b"nonsense", 0),
        (b"\xff\0/../..", 0),
        (b"{}", 0),
        (b"uploads/2/data", 0),
    ):
        with pytest.raises(UploadGone):
            async with driver.resume_upload(wrong, offset):
                pass
    async with driver.resume_upload(token, 4) as upload:
        await upload.commit("a")
    with pytest.raises(UploadGone):
        async with driver.resume_upload(token, 4):
            pass


async def test_an_aborted_upload_leaves_nothing(driver: Driver) -> None:
    async with driver.open_upload("uploads/1/data") as upload:
        await upload.write(b"x" * 9 * MIB)
        token = await upload.suspend()
        await upload.abort()
    with pytest.raises(UploadGone):
        async with driver.resume_upload(token, 9 * MIB):
            pass
    assert await keys(driver) == []


async def test_a_commit_honours_its_condition_and_the_loser_stays_an_upload(driver: Driver) -> None:
    async def push(number: int) -> None:
        async with driver.open_upload(f"uploads/{number}/data") as upload:
            await upload.write(b"%d" % number)
            await upload.commit("a/b", condition=Absent())

    def pusher(number: int) -> Callable[[], Awaitable[None]]:
        return lambda: push(number)

    assert await race(*map(pusher, range(10))) == 1
    winner = await content(driver, "a/b")
    async with driver.open_upload("uploads/late/data") as upload:
        await upload.write(b"late")
        token = await upload.suspend()
        with pytest.raises(ConditionFailed):
            await upload.commit("a/b", condition=Absent())
    assert await content(driver, "a/b") == winner
    async with driver.resume_upload(token, 4) as upload:
        await upload.commit("other", condition=Absent())
    assert await content(driver, "other") == b"late"


async def test_an_upload_that_is_left_behind_is_only_what_lies_below_its_key(driver: Driver) -> None:
    async with driver.open_upload("uploads/1/data") as upload:
        await upload.write(b"x" * 9 * MIB)
        await upload.suspend()
    assert all(key.startswith("uploads/1/data") for key in await keys(driver))
    await driver.delete_below("uploads/1/")
    assert await keys(driver) == []


# ---- the rest


async def test_every_method_is_a_checkpoint(driver: Driver) -> None:
    async def uploaded() -> AsyncGenerator[Awaitable[object]]:
        async with driver.open_upload("uploads/1/data") as upload:
            yield upload.write(b"x")
            yield upload.suspend()
            yield upload.commit("d")
        async with driver.open_upload("uploads/2/data") as upload:
            yield upload.abort()

    await driver.write("a", b"x")
    for attempt in (
        driver.stat("a"),
        driver.read("a", limit=1),
        content(driver, "a"),
        driver.write("b", b""),
        driver.write("c", Sent()),
        driver.copy("a", "b"),
        driver.list(""),
        driver.delete(),
        driver.delete("b"),
        driver.delete_below("c/"),
        driver.url("a"),
    ):
        with trio.testing.assert_checkpoints():
            await attempt
    async for step in uploaded():
        with trio.testing.assert_checkpoints():
            await step


async def test_a_call_in_a_cancelled_scope_does_nothing(driver: Driver) -> None:
    await driver.write("a", b"x")
    with trio.CancelScope() as scope:
        scope.cancel()
        await driver.write("b", b"")
    with trio.CancelScope() as scope:
        scope.cancel()
        await driver.delete("a")
    assert await keys(driver) == ["a"]


async def test_one_holder_alone_is_given_what_it_holds(driver: Driver) -> None:
    async with driver.hold("work") as first:
        assert first
    async with driver.hold("work") as second:
        assert second

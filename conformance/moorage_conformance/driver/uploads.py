"""Cases about uploads: invisible until committed, and resumed by whoever has the token."""

from contextlib import AsyncExitStack

import trio

from moorage import UploadBusy, UploadGone

from .case import Group
from .expect import content, equal, exists, keys, refuses, true
from .store import Store

case = Group("uploads", "Uploads")

MIB = 1 << 20


@case()
async def an_upload_is_seen_when_it_is_committed(store: Store) -> None:
    """An upload in pieces of any size, also none, is nowhere until its commit, and then whole."""
    driver = store.driver
    large = 3 * MIB if store.fast else 20 * MIB
    plans = {"small": [1] * 300 + [0, 7, 0], "large": [MIB] * (large // MIB) + [1], "nothing": [0]}
    for name, sizes in plans.items():
        expected = b""
        async with driver.open_upload("uploads/1/data", f"blobs/{name}") as upload:
            for number, size in enumerate(sizes):
                piece = bytes([number % 251]) * size
                await upload.write(piece)
                expected += piece
                equal(upload.offset, len(expected), "the offset")
            equal(await exists(driver, f"blobs/{name}"), False, "whether it is there before its commit")
            await upload.commit(f"blobs/{name}")
        equal(await content(driver, f"blobs/{name}"), expected, f"what was committed ({name})")
        await driver.delete_below("uploads/1/")
    equal(await keys(driver), sorted(f"blobs/{name}" for name in plans), "the list of all keys")


@case()
async def a_suspended_upload_is_told_of(store: Store) -> None:
    """`suspend_with` suspends, of an upload with and without bytes, and puts what was made of the token."""
    driver = store.driver
    for data in (b"", b"some", b"s" * (_beyond_a_token(store) + 1)):
        told: list[bytes] = []

        def beside(token: bytes, told: list[bytes] = told) -> list[tuple[str, bytes]]:
            told.append(token)
            return [("uploads/1/startedat", b"now"), ("uploads/1/state", token)]

        async with driver.open_upload("uploads/1/data") as upload:
            await upload.write(data)
            await upload.suspend_with(driver, beside)
        equal(len(told), 1, "how often it was asked what belongs beside it")
        equal(await content(driver, "uploads/1/state"), told[0], "what was put beside it")
        equal(await content(driver, "uploads/1/startedat"), b"now", "what was put beside it")
        async with store.open() as another, another.resume_upload(told[0], len(data)) as again:
            await again.write(b"!")
            await again.suspend_with(another, lambda token: [("uploads/1/state", b"more" + token)])
            await again.commit("blobs/a")
        true((await content(driver, "uploads/1/state")).startswith(b"more"), "what was put before is still there")
        equal(await content(driver, "blobs/a"), data + b"!", "what was committed")
        await driver.delete_below("uploads/1/")


@case()
async def a_commit_stands_between_what_belongs_around_it(store: Store) -> None:
    """`commit_between` puts what goes before, commits, puts what goes after, and removes; and not without the bytes."""
    driver = store.driver
    told: list[bytes] = []

    def before(token: bytes) -> list[tuple[str, bytes]]:
        told.append(token)
        return [("uploads/1/state", b"whole"), ("kept/state", b"whole")]

    data = b"four" * (_beyond_a_token(store) // 4)
    async with driver.open_upload("uploads/1/data", "blobs/a") as upload:
        await upload.write(data)
        token = await upload.suspend()
        await upload.write(b" and more")
        after = [("links/a", b"a"), ("links/b", b"b")]
        await upload.commit_between(driver, "blobs/a", before=before, after=after, drop="uploads/1/")
    true(len(told) == 1 and told[0], "what goes before the commit is not asked for once, with a token")
    for key, expected in (("blobs/a", data + b" and more"), ("kept/state", b"whole"), *after):
        equal(await content(driver, key), expected, f"what lies at {key!r}")
    equal(await exists(driver, "uploads/1/state"), False, "whether what was to be removed is there")
    with refuses(UploadGone, what="resuming what was committed"):
        async with driver.resume_upload(token, len(data)):
            pass
    async with driver.open_upload("uploads/2/data", "blobs/b") as upload:
        await upload.write(b"alone")
        await upload.commit_between(driver, "blobs/b")
    equal(await content(driver, "blobs/b"), b"alone", "what was committed with nothing around it")


@case()
async def a_thread_writes_where_a_task_would(store: Store) -> None:
    """`write_from_thread`, where it can be called, goes on where `write` stopped, and `write` where it did."""
    driver = store.driver
    expected = b""
    async with driver.open_upload("uploads/1/data", "blobs/a") as upload:
        for number, size in enumerate([7, 1, 300, MIB, 0, MIB, 5, 5]):
            piece = bytes([65 + number]) * size
            if number % 2 and upload.can_write_from_thread:
                await trio.to_thread.run_sync(upload.write_from_thread, piece)
            else:
                await upload.write(piece)
            expected += piece
            equal(upload.offset, len(expected), "the offset")
        token = await upload.suspend()
    async with driver.resume_upload(token, len(expected)) as upload:
        if upload.can_write_from_thread:
            await trio.to_thread.run_sync(upload.write_from_thread, b"the end")
        else:
            await upload.write(b"the end")
        await upload.commit("blobs/a")
    equal(await content(driver, "blobs/a"), expected + b"the end", "what was committed")


@case()
async def an_upload_goes_on_elsewhere(store: Store) -> None:
    """An upload is suspended and resumed again and again, each time by another opening of the store."""
    async with store.open() as first, first.open_upload("uploads/1/data") as upload:
        await upload.write(b"one, ")
        await upload.write(b"two, ")
        token, offset = await upload.suspend(), upload.offset
    for text in (b"three, ", b"", b"four"):
        async with store.open() as another, another.resume_upload(token, offset) as again:
            equal(again.offset, offset, "the offset of a resumed upload")
            await again.write(text)
            token, offset = await again.suspend(), again.offset
    true(len(token) <= 64 << 10, f"a token has {len(token)} bytes; at most 64 KiB are kept")
    async with store.open() as last, last.resume_upload(token, offset) as finished:
        await finished.commit("a/b")
    async with store.open() as reader:
        equal(await content(reader, "a/b"), b"one, two, three, four", "what was committed")


@case("shared")
async def an_upload_outlives_its_process(store: Store) -> None:
    """An upload whose process is killed goes on in another from what its last `suspend` answered for."""
    for texts in (("one",), ("one", ", two"), ("x" * 70_000, "y", "z" * 10)):
        async with store.process("append", "uploads/1/data", *texts) as process:
            said = [await process.line() for _ in texts]
            await process.line()
            await process.kill()
        token, offset = said[-1].split()
        async with store.process("resume", token, offset, "!", "a/b") as process:
            equal(await process.line(), "done", "what the process said that goes on")
        whole = ("".join(texts) + "!").encode()
        equal(await content(store.driver, "a/b"), whole, "what was committed")
        await store.driver.delete_below("uploads/1/")
        await store.driver.delete("a/b")


@case()
async def bytes_that_no_token_answers_for_are_dropped(store: Store) -> None:
    """What was written after the last `suspend` is not in what is resumed."""
    driver = store.driver
    more = b" and " + b"x" * (MIB if store.fast else 9 * MIB)
    async with driver.open_upload("uploads/1/data") as upload:
        await upload.write(b"kept")
        token = await upload.suspend()
        await upload.write(more)
    async with driver.resume_upload(token, 4) as upload:
        await upload.write(b"!")
        token = await upload.suspend()
        await upload.write(b"lost")
        await upload.drop_beyond(5)
    async with driver.resume_upload(token, 5) as upload:
        await upload.commit("a")
    equal(await content(driver, "a"), b"kept!", "what was committed")


@case()
async def a_token_that_means_nothing_is_gone(store: Store) -> None:
    """A token that is none, or of an upload that has ended, or an offset that it does not reach, raise `UploadGone`."""
    driver = store.driver
    data = b"four" * (_beyond_a_token(store) // 4)
    size = len(data)
    async with driver.open_upload("uploads/1/data") as upload:
        await upload.write(data)
        token = await upload.suspend()
    wrong = [(token, size + 1), (b"", 0), (b"nonsense", 0), (b"\xff\0/../..", 0), (b"{}", 0), (b"uploads/2/data", 0)]
    for each, offset in wrong:
        with refuses(UploadGone, what=f"resuming {each!r} at {offset}"):
            async with driver.resume_upload(each, offset):
                pass
    async with driver.resume_upload(token, size) as upload:
        await upload.commit("a")
    with refuses(UploadGone, what="resuming what was committed"):
        async with driver.resume_upload(token, size):
            pass
    equal(await content(driver, "a"), data, "what was committed")


def _beyond_a_token(store: Store) -> int:
    """Return how many bytes an upload has of which the store holds some: services are sent large parts only."""
    return 9 * MIB if store.driver.capabilities.remote else 4


@case()
async def an_aborted_upload_leaves_nothing(store: Store) -> None:
    """An aborted upload is gone with all its bytes; to abort it once more is no error."""
    driver = store.driver
    size = max(MIB if store.fast else 9 * MIB, _beyond_a_token(store))
    async with driver.open_upload("uploads/1/data") as upload:
        await upload.write(b"x" * size)
        token = await upload.suspend()
        await upload.abort()
        await upload.abort()
    with refuses(UploadGone, what="resuming what was aborted"):
        async with driver.resume_upload(token, size):
            pass
    equal(await keys(driver), [], "the list of all keys")


@case()
async def an_abandoned_upload_lies_below_its_key(store: Store) -> None:
    """What an abandoned upload leaves lies at or below its key, where `delete_below` takes it."""
    driver = store.driver
    async with driver.open_upload("uploads/1/data") as upload:
        await upload.write(b"x" * (MIB if store.fast else 9 * MIB))
        await upload.suspend()
    left = await keys(driver)
    true(all(key.startswith("uploads/1/") for key in left), f"an abandoned upload leaves {left}")
    await driver.delete_below("uploads/1/")
    equal(await keys(driver), [], "the list of all keys")


@case()
async def a_commit_replaces_and_may_go_elsewhere(store: Store) -> None:
    """A commit replaces what is there, and may go to another key than the one announced."""
    driver = store.driver
    await driver.write("a/b", b"old")
    for destination in ("a/b", "c/d"):
        async with driver.open_upload("uploads/1/data", "x/announced") as upload:
            await upload.write(destination.encode())
            await upload.commit(destination)
        equal(await content(driver, destination), destination.encode(), "what was committed")
    await driver.delete_below("uploads/1/")
    equal(await keys(driver), ["a/b", "c/d"], "the list of all keys")


@case("exclusive_uploads")
async def an_upload_has_one_holder(store: Store) -> None:
    """While one holds an upload, another gets `UploadBusy`; afterwards it is free."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(store.open())
        async with first.open_upload("uploads/1/data") as upload:
            await upload.write(b"one")
            token = await upload.suspend()
        second = await stack.enter_async_context(store.open())
        async with first.resume_upload(token, 3):
            with refuses(UploadBusy, what="resuming what another holds"):
                async with second.resume_upload(token, 3):
                    pass
        async with second.resume_upload(token, 3) as upload:
            await upload.commit("a")
    equal(await content(store.driver, "a"), b"one", "what was committed")


@case()
async def a_name_has_one_holder(store: Store) -> None:
    """`hold` gives a name to one holder at a time, again once that one has left, and different names at once."""
    driver = store.driver
    for _ in range(2):
        async with driver.hold("work") as first, driver.hold("other work") as other:
            equal((first, other), (True, True), "whether free names were given")
            async with driver.hold("work") as second:
                equal(second, False, "whether a name that is held was given too")


@case("shared")
async def a_name_has_one_holder_over_processes(store: Store) -> None:
    """What one process holds no other is given, until it leaves or dies; behind a network, until a minute later."""
    for end in ("go", "kill"):
        async with store.process("hold", "work") as process:
            equal(await process.line(), "held", "what the first process said")
            async with store.driver.hold("work") as held:
                equal(held, False, "whether a second process was given the name too")
            await (process.go() if end == "go" else process.kill())
            await process.line()
        free_at = trio.current_time() + (60 if end == "kill" and store.driver.capabilities.remote else 0)
        while True:
            async with store.driver.hold("work") as held:
                if held or trio.current_time() > free_at:
                    equal(held, True, f"whether the name was given after its holder's end ({end})")
                    break
            await trio.sleep(1)

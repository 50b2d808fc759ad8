"""Cases about cancellation: at every await, and nothing stays behind."""

import itertools
from collections.abc import Awaitable, Callable

import trio

from moorage import Driver, KeyUnknown
from moorage_conformance.cancelling import Living, cancelled_at

from .case import Group
from .expect import Pieces, content, equal, exists, keys, true
from .store import Store

case = Group("cancellation", "Cancellation and resources")

_MOST_STEPS = 400


def _attempts(driver: Driver) -> dict[str, Callable[[], Awaitable[object]]]:
    numbers = itertools.count()

    async def upload() -> None:
        async with driver.open_upload(f"uploads/{next(numbers)}/data", "new") as one:
            await one.write(b"n")
            await one.write(b"ew")
            token = await one.suspend()
        async with driver.resume_upload(token, 3) as again:
            await again.commit("new")

    async def abort() -> None:
        async with driver.open_upload(f"uploads/{next(numbers)}/data") as one:
            await one.write(b"new")
            await one.abort()

    async def hold() -> None:
        async with driver.hold("work"):
            await trio.lowlevel.checkpoint()

    return {
        "stat": lambda: driver.stat("old"),
        "open": lambda: content(driver, "old"),
        "read": lambda: driver.read("old", limit=3),
        "write": lambda: driver.write("new", b"new"),
        "a streamed write": lambda: driver.write("new", Pieces(b"n", b"e", b"w")),
        "replacing": lambda: driver.write("old", Pieces(b"n", b"ew")),
        "copy": lambda: driver.copy("old", "new"),
        "list": lambda: driver.list(""),
        "delete": lambda: driver.delete("old"),
        "delete_below": lambda: driver.delete_below("o/"),
        "url": lambda: driver.url("old"),
        "an upload": upload,
        "an abort": abort,
        "hold": hold,
    }


@case()
async def every_call_can_be_cancelled_at_every_await(store: Store) -> None:
    """Whatever is cancelled, at whichever await: each key is what it was or what it was to be, and the call works again."""
    driver = store.driver
    for name, attempt in _attempts(driver).items():
        for step in range(_MOST_STEPS):
            await driver.write("old", b"old")
            cancelled = await cancelled_at(step, attempt)
            for key in ("old", "new"):
                if await exists(driver, key):
                    found = await content(driver, key)
                    true(found in {b"old", b"new"}, f"after {name} was cancelled at await {step}, {key} has {found!r}")
            await driver.write("old", b"old")
            await attempt()
            await driver.delete("new")
            await driver.delete_below("uploads/")
            if not cancelled:
                break
        else:
            true(False, f"{name} does not end within {_MOST_STEPS} awaits")
    left = [key for key in await keys(driver) if key != "old"]
    equal(left, [], "what cancelled calls left behind")


@case()
async def a_cancelled_call_does_nothing(store: Store) -> None:
    """A call in a scope that is cancelled already changes nothing."""
    driver = store.driver
    await driver.write("a", b"x")
    with trio.CancelScope() as scope:
        scope.cancel()
        await driver.write("b", b"")
    with trio.CancelScope() as scope:
        scope.cancel()
        await driver.delete("a")
    equal(await keys(driver), ["a"], "the list of all keys")


@case()
async def every_method_is_a_checkpoint(store: Store) -> None:
    """Every method lets others run, and can be cancelled, even where it has nothing to wait for."""
    # Where it is needed: it brings pytest, which would double the start of the processes that other cases begin.
    from trio.testing import assert_checkpoints

    driver = store.driver
    await driver.write("a", b"x")
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "stat": lambda: driver.stat("a"),
        "read": lambda: driver.read("a", limit=1),
        "open": lambda: content(driver, "a"),
        "write": lambda: driver.write("b", b""),
        "a streamed write": lambda: driver.write("c", Pieces()),
        "copy": lambda: driver.copy("a", "b"),
        "list": lambda: driver.list(""),
        "delete of nothing": driver.delete,
        "delete": lambda: driver.delete("b"),
        "delete_below": lambda: driver.delete_below("c/"),
        "url": lambda: driver.url("a"),
    }

    async def checked(name: str, call: Callable[[], Awaitable[object]]) -> None:
        try:
            with assert_checkpoints():
                await call()
        except AssertionError:
            true(False, f"{name} is no checkpoint")

    for name, call in calls.items():
        await checked(name, call)
    async with driver.open_upload("uploads/1/data") as upload:
        await checked("Upload.write", lambda: upload.write(b"x"))
        await checked("Upload.suspend", upload.suspend)
        await checked("Upload.commit", lambda: upload.commit("d"))
    async with driver.open_upload("uploads/2/data") as another:
        await checked("Upload.abort", another.abort)


@case()
async def nothing_grows(store: Store) -> None:
    """Thousands of operations, hundreds at once, leave no task, thread or descriptor behind."""
    from trio.testing import wait_all_tasks_blocked

    driver = store.driver
    rounds = 2 if store.fast else 10

    async def work(number: int) -> None:
        key = f"a/{number}"
        await driver.write(key, b"%d" % number, durable=False)
        await driver.stat(key)
        equal(await content(driver, key), b"%d" % number, "what was written")
        await driver.delete(key, durable=False)
        try:
            await driver.stat(key)
        except KeyUnknown:
            return
        true(False, "what was deleted is there")

    async def burst(count: int) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(work, number)

    await burst(200)
    await wait_all_tasks_blocked()
    before = Living.now()
    for _ in range(rounds):
        await burst(200)
    await wait_all_tasks_blocked()
    after = Living.now()
    equal(after.tasks, before.tasks, "the number of tasks")
    # Threads are kept for reuse, as many as were at work at once.
    true(after.threads <= before.threads + 64, f"threads grew from {before.threads} to {after.threads}")
    true(
        after.descriptors <= before.descriptors + 8,
        f"descriptors grew from {before.descriptors} to {after.descriptors}",
    )


@case()
async def another_process_uses_it_and_ends_quietly(store: Store) -> None:
    """A process that uses the driver, with warnings as errors, ends with code 0 and says nothing on standard error."""
    async with store.process("use") as process:
        equal(await process.line(), "4", "what the process read")
        code, said = await process.ended()
    equal((code, said), (0, ""), "exit code and standard error")

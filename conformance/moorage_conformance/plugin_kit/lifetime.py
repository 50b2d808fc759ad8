"""Checks that hold for whatever is opened: it closes, leaves nothing behind, and can be cancelled at each await."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import trio

from moorage import RegistryError
from moorage_conformance.cancelling import Living, cancelled_at
from moorage_conformance.driver.expect import Unmet, true

T = TypeVar("T")

_MOST_STEPS = 500
_ROUNDS = 20
# Threads are kept for reuse by trio, and a first use opens what is then kept.
_THREADS_KEPT = 8
_DESCRIPTORS_KEPT = 4


async def nothing_stays(
    open_it: Callable[[], AbstractAsyncContextManager[T]], use: Callable[[T], Awaitable[object]]
) -> None:
    """Open, use and close it many times; see what grew.

    Raises:
        Unmet: something did.
    """
    # Where it is needed: it brings pytest, which would double the start of the process in which a plugin is registered.
    from trio.testing import wait_all_tasks_blocked

    async def once() -> None:
        async with open_it() as opened:
            await use(opened)

    for _ in range(3):
        await once()
    await wait_all_tasks_blocked()
    before = Living.now()
    for _ in range(_ROUNDS):
        await once()
    await wait_all_tasks_blocked()
    after = Living.now()
    true(after.tasks <= before.tasks, f"opened and closed {_ROUNDS} times, it left {after.tasks - before.tasks} tasks")
    for what, grown, kept in (
        ("threads", after.threads - before.threads, _THREADS_KEPT),
        ("descriptors", after.descriptors - before.descriptors, _DESCRIPTORS_KEPT),
    ):
        true(grown <= kept, f"opened and closed {_ROUNDS} times, it left {grown} {what}")


async def can_be_cancelled(
    what: str, attempt: Callable[[], Awaitable[T]], wanted: Callable[[T], object], patience: float
) -> None:
    """Cancel `attempt` at each of its awaits; each time the cancellation comes out, or what it was to give.

    After each the attempt is made once more, uncancelled. `wanted` says whether it gave what it should.

    Raises:
        Unmet: something else happened, or a task stayed.
    """
    from trio.testing import wait_all_tasks_blocked

    # Nurseries of the caller included, so that what is counted here is what the attempts leave.
    before = trio.lowlevel.current_statistics().tasks_living

    for step in range(_MOST_STEPS):
        gave: list[T] = []

        async def try_it(gave: list[T] = gave) -> None:
            gave.append(await attempt())

        try:
            with trio.fail_after(patience):
                cancelled = await cancelled_at(step, try_it)
        except trio.TooSlowError:
            raise Unmet(f"{what}, cancelled at await {step}, does not end") from None
        except (Unmet, KeyboardInterrupt):
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise Unmet(f"{what}, cancelled at await {step}, raises {said} in the place of the cancellation") from error
        if gave:
            true(wanted(gave[0]), f"{what}, cancelled at await {step}, swallows that and gives {gave[0]!r:.100}")
        left = trio.lowlevel.current_statistics().tasks_living - before
        if left > 0:
            # What ends by itself has not been left behind.
            await wait_all_tasks_blocked()
            left = trio.lowlevel.current_statistics().tasks_living - before
        true(left <= 0, f"{what}, cancelled at await {step}, leaves {left} tasks")
        if not cancelled:
            return
        true(
            wanted(await in_time(what, attempt, patience)),
            f"{what} works no more once it was cancelled at await {step}",
        )
    raise Unmet(f"{what} does not end within {_MOST_STEPS} awaits")


async def in_time(what: str, attempt: Callable[[], Awaitable[T]], patience: float) -> T:
    """Return what `attempt` gives.

    Raises:
        Unmet: not within `patience` seconds, by trio's clock or after having blocked it.
    """
    began = trio.current_time()
    try:
        with trio.fail_after(patience):
            given = await attempt()
    except trio.TooSlowError:
        raise Unmet(f"{what} does not end within {patience:g} s") from None
    took = trio.current_time() - began
    true(took <= patience, f"{what} blocks everybody for {took:.1f} s")
    return given


async def outcome_of(what: str, attempt: Callable[[], Awaitable[T]], patience: float) -> T | RegistryError:
    """Return what `attempt` gives, or the `RegistryError` that it raises.

    Raises:
        Unmet: it raises something else, or does not end.
    """
    try:
        return await in_time(what, attempt, patience)
    except RegistryError as error:
        return error
    except Unmet:
        raise
    except Exception as error:
        raise Unmet(f"{what} raises {type(error).__name__}: {error}") from error

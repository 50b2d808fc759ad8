import math

import pytest
import trio
import trio.testing

from moorage import map_bounded, open_helpers


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
async def test_results_come_in_the_order_of_the_items(
    limit: int, count: int, autojump_clock: trio.testing.MockClock
) -> None:
    del autojump_clock

    async def double(number: int) -> int:
        await trio.sleep(count - number)
        return number * 2

    assert await map_bounded(double, range(count), limit=limit) == [number * 2 for number in range(count)]


async def test_no_more_than_the_limit_are_under_way_and_no_fewer_if_there_is_work() -> None:
    under_way = 0
    most = 0

    async def work(number: int) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await trio.testing.wait_all_tasks_blocked()
        under_way -= 1

    await map_bounded(work, range(20), limit=4)
    assert most == 4


@pytest.mark.parametrize("count", [1, 5])
async def test_the_first_failure_ends_the_others_and_is_raised_as_it_is(count: int) -> None:
    ended = 0

    async def work(number: int) -> None:
        nonlocal ended
        if number == 0:
            await trio.testing.wait_all_tasks_blocked()
            raise LookupError("first")
        try:
            await trio.sleep_forever()
        finally:
            ended += 1

    with pytest.raises(LookupError, match="first"):
        await map_bounded(work, range(count), limit=count)
    assert ended == count - 1


async def test_a_cancelled_map_is_cancelled() -> None:
    with trio.move_on_after(0) as scope:
        await map_bounded(trio.sleep, [1000.0, 1000.0], limit=2)
    assert scope.cancelled_caught


async def test_helpers_are_cancelled_and_waited_for_when_the_block_ends() -> None:
    ended = 0

    async def help_along() -> None:
        nonlocal ended
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            ended += 1

    async with open_helpers() as nursery:
        nursery.start_soon(help_along)
        nursery.start_soon(help_along)
        await trio.testing.wait_all_tasks_blocked()
    assert ended == 2


async def test_what_a_block_with_helpers_raises_is_raised_as_it_is() -> None:
    mine = LookupError("mine")
    with pytest.raises(LookupError) as caught:
        async with open_helpers() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise mine
    assert caught.value is mine


async def test_a_block_with_helpers_can_be_cancelled_and_its_helpers_can_cancel_it() -> None:
    with trio.move_on_after(0) as scope:
        async with open_helpers() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught

    async def stop() -> None:
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()

    async with open_helpers() as nursery:
        nursery.start_soon(stop)
        await trio.sleep(math.inf)
    assert nursery.cancel_scope.cancelled_caught


async def test_a_helper_that_fails_ends_the_block() -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise LookupError("theirs")

    with pytest.raises(ExceptionGroup) as caught:
        async with open_helpers() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()
    assert [str(error) for error in caught.value.exceptions] == ["theirs"]

import pytest
import trio
import trio.testing

from moorage import map_bounded


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

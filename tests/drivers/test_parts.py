"""Parts of many uploads at once, within one budget."""

import trio
import trio.testing

from moorage_drivers._parts import Budgets, open_part_writer

MIB = 1 << 20
PART = 5 * MIB
MEMORY = 64 * MIB


async def test_many_uploads_whose_pieces_end_anywhere_share_a_small_budget_and_all_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    del autojump_clock
    budgets = Budgets(memory=MEMORY)
    sent: dict[int, dict[int, int]] = {}
    held: dict[int, int] = {}
    under_way = most = 0

    async def upload(who: int) -> None:
        nonlocal most

        async def send(number: int, data: bytes) -> None:
            nonlocal under_way, most
            under_way += len(data)
            most = max(most, under_way + sum(held.values()))
            await trio.sleep(1)
            under_way -= len(data)
            sent.setdefault(who, {})[number] = len(data)

        async with open_part_writer(budgets, send, part_size=lambda number: PART) as writer:
            piece = bytes(MIB - 1000 * who)
            for _ in range(17):
                await writer.write(piece)
                held[who] = len(writer.buffered)
                most = max(most, under_way + sum(held.values()))
            await writer.flush(minimum=1)
            held[who] = 0

    with trio.fail_after(3600):
        async with trio.open_nursery() as nursery:
            for who in range(60):
                nursery.start_soon(upload, who)
    for who in range(60):
        sizes = [size for _, size in sorted(sent[who].items())]
        assert sum(sizes) == 17 * (MIB - 1000 * who)
        assert set(sizes[:-1]) == {PART}
    assert (budgets.first.used, budgets.further.used) == (0, 0)
    # What is held while a part waits for its turn is in the budget, too; it is not counted here.
    assert most <= MEMORY


async def test_a_piece_larger_than_a_part_is_taken_whole(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    budgets = Budgets(memory=MEMORY)
    sent: dict[int, bytes] = {}

    async def send(number: int, data: bytes) -> None:
        await trio.sleep(1)
        sent[number] = data

    data = bytes(range(256)) * (17 * MIB // 256)
    async with open_part_writer(budgets, send, part_size=lambda number: PART) as writer:
        await writer.write(data)
        await writer.write(b"end")
        await writer.flush(minimum=1)
    assert b"".join(part for _, part in sorted(sent.items())) == data + b"end"
    assert (budgets.first.used, budgets.further.used) == (0, 0)

"""Which worker takes a connection, and what a listening socket can say."""

import errno
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import pytest
import trio

from moorage_app import shares
from moorage_app.shares import Share, SharedListener, Shares


@contextmanager
def listening(*, fails: list[int] | None = None) -> Generator[socket.socket]:
    """Give a socket that listens, and first fails to accept with each of `fails`."""

    class Listener(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if fails:
                raise OSError(fails.pop(0), "as the test wants it")
            return super().accept()

    with Listener(socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@contextmanager
def of_two(own: int, other: int | None) -> Generator[Share]:
    """Give the share of a worker that serves `own` connections beside one that serves `other`, if there is one."""
    both = Shares(2)
    share, beside = both.at(0), both.at(1)
    with ExitStack() as kept:
        kept.enter_context(share.taking())
        if other is not None:
            kept.enter_context(beside.taking())
        for each, count in ((share, own), (beside, other or 0)):
            for _ in range(count):
                each.took()
        yield share


@pytest.mark.parametrize(
    ("own", "other", "waits"),
    [
        (0, 0, False),
        (1, 1, False),
        (1, 2, False),
        (1, 0, True),
        (8, 7, True),
        (9, 8, False),
        (10, 8, True),
        (900, 800, False),
        (901, 800, True),
        (5, None, False),
    ],
)
async def test_a_worker_that_has_more_than_its_share_lets_others_go_first(
    autojump_clock: trio.testing.MockClock, own: int, other: int | None, waits: bool
) -> None:
    with of_two(own, other) as share:
        began = trio.current_time()
        await share.come_due()
        assert (trio.current_time() > began) == waits
        # Who does not come is not waited for.
        assert trio.current_time() - began <= 2 * shares._PATIENCE_SECONDS


async def test_who_waited_in_vain_takes_some_without_waiting_again(autojump_clock: trio.testing.MockClock) -> None:
    with of_two(8, 0) as share:
        waits: list[bool] = []
        for _ in range(5):
            began = trio.current_time()
            await share.come_due()
            waits.append(trio.current_time() > began)
        # One for each four that it serves, then it waits again.
        assert waits == [True, False, False, True, False]
        for _ in range(8):
            with share.serving():
                pass
        # The crowd is gone, and with it what was granted for it.
        await share.come_due()
        share.took()
        began = trio.current_time()
        await share.come_due()
        assert trio.current_time() > began


async def test_of_a_crowd_all_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "_IN_A_ROW", 3)
    with listening() as listener, of_two(0, None) as share, ExitStack() as kept:
        shared = SharedListener(listener, share)
        for _ in range(10):
            kept.enter_context(socket.create_connection(listener.getsockname()))
        with trio.fail_after(30):
            taken = [await shared.accept() for _ in range(10)]
        with trio.move_on_after(0.05) as none_left:
            await shared.accept()
        assert none_left.cancelled_caught
        for each in taken:
            await each.aclose()
        await shared.aclose()


async def test_who_waits_hears_at_once_of_a_connection_that_ends(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(shares, "_PATIENCE_SECONDS", 60.0)
    monkeypatch.setattr(shares, "_LOOK_SECONDS", 30.0)
    with of_two(1, 0) as share:

        async def end_one() -> None:
            with share.serving():
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_one)
            await share.come_due()
            assert trio.current_time() == 1


async def test_what_is_served_after_the_last_was_taken_counts_for_nothing() -> None:
    both = Shares(2)
    first, second = both.at(0), both.at(1)
    with second.taking():
        second.took()
        with first.taking():
            first.took()
        with first.serving():
            assert both._served.tolist() == [-1, 1]
        assert both._served.tolist() == [-1, 1]
        both.leave(1)
        assert both._served.tolist() == [-1, -1]


async def test_a_connection_that_failed_before_it_was_taken_is_passed_over() -> None:
    with listening(fails=[errno.ECONNABORTED, errno.EPROTO, errno.EAGAIN]) as listener, of_two(0, 0) as share:
        shared = SharedListener(listener, share)
        with socket.create_connection(listener.getsockname()) as client, trio.fail_after(30):
            taken = await shared.accept()
            async with taken:
                client.sendall(b"x")
                assert await taken.receive_some() == b"x"
        await shared.aclose()


async def test_who_has_no_descriptor_left_says_so() -> None:
    with listening(fails=[errno.EMFILE]) as listener, of_two(0, 0) as share:
        shared = SharedListener(listener, share)
        with socket.create_connection(listener.getsockname()), trio.fail_after(30):
            with pytest.raises(OSError, match="as the test wants it"):
                await shared.accept()
            # It can be tried again.
            await (await shared.accept()).aclose()
        await shared.aclose()


async def test_a_worker_that_ends_leaves_what_it_has_not_taken_to_the_others() -> None:
    with listening() as listener, of_two(0, 0) as share:
        leaves = SharedListener(socket.socket(fileno=socket.dup(listener.fileno())), share)
        stays = SharedListener(listener, share)
        with trio.move_on_after(0):
            await leaves.accept()
        with socket.create_connection(listener.getsockname()) as client:
            await leaves.aclose()
            with trio.fail_after(30):
                async with await stays.accept() as taken:
                    await taken.send_all(b"x")
                    assert await trio.to_thread.run_sync(client.recv, 1) == b"x"
        await stays.aclose()

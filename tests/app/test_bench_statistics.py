"""Latencies, schedules and medians of `moorage bench`: arithmetic, compared with the same done the long way."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from moorage_app.bench.messages import Content, pieces
from moorage_app.bench.pace import Closed, Open
from moorage_app.bench.statistics import (
    NS,
    Schedule,
    Tally,
    add_tallies,
    bucket,
    median,
    percentile,
    ratio,
    shares,
    top,
)

LATENCIES = st.lists(st.integers(0, 600 * NS), min_size=1, max_size=200)
SHARES = ["0.5", "0.9", "0.99", "1"]


def tally_of(latencies: list[int]) -> Tally:
    tally = Tally()
    for latency in latencies:
        tally.count(latency, 1)
    return tally


@given(st.integers(0, 1 << 50))
def test_a_bucket_is_narrow_and_holds_what_is_counted_in_it(latency: int) -> None:
    limit = top(bucket(latency))
    assert latency <= limit <= latency + latency // 128 + 1
    assert bucket(limit) == bucket(latency)
    assert bucket(limit + 1) != bucket(latency)


@given(LATENCIES, st.sampled_from(SHARES))
def test_a_percentile_is_the_nearest_rank_to_one_in_128(latencies: list[int], share: str) -> None:
    exact = sorted(latencies)[math.ceil(Fraction(share) * len(latencies)) - 1]
    tally = tally_of(latencies)
    found = percentile(tally.buckets, tally.largest, float(share))
    assert exact <= found <= exact + exact // 128 + 1
    assert found <= max(latencies)


def test_the_99th_of_a_hundred_is_the_p99() -> None:
    tally = tally_of(list(range(1, 101)))
    assert percentile(tally.buckets, tally.largest, 0.99) == 99
    assert percentile(tally.buckets, tally.largest, 0.5) == 50
    assert percentile({}, 0, 0.5) == 0


@given(LATENCIES, st.integers(1, 5))
def test_what_processes_counted_adds_up_to_what_one_would_have_counted(latencies: list[int], processes: int) -> None:
    parts = [tally_of(latencies[number::processes]) for number in range(processes)]
    assert add_tallies(parts) == tally_of(latencies)


def test_errors_add_up_and_the_first_message_of_each_kind_is_kept() -> None:
    one, other = Tally(), Tally()
    one.count_error("500", "first")
    one.count_error("500", "second")
    other.count_error("500", "third")
    other.count_error("closed", "gone")
    whole = add_tallies([one, other])
    assert whole.errors == {"500": 3, "closed": 1}
    assert whole.first_errors == {"500": "first", "closed": "gone"}
    assert (whole.failed, whole.operations) == (4, 0)


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_shares_are_even_and_complete(total: int, parts: int) -> None:
    dealt = shares(total, parts)
    assert sum(dealt) == total
    assert max(dealt) - min(dealt) <= 1


@given(st.floats(0.1, 1e6), st.integers(1, 8), st.integers(0, 5000))
def test_the_schedules_of_all_processes_are_one_schedule(rate: float, processes: int, number: int) -> None:
    whole = Schedule(rate)
    mine = Schedule(rate, number % processes, processes)
    assert mine.due(number // processes) == whole.due(number)


@given(st.floats(0.1, 1e4), st.integers(1, 8), st.integers(0, 3 * NS))
def test_what_is_due_before_the_end_is_counted(rate: float, processes: int, end: int) -> None:
    counted = [Schedule(rate, number, processes).due_before(end) for number in range(processes)]
    assert sum(counted) == Schedule(rate).due_before(end)
    for number, count in enumerate(counted):
        mine = Schedule(rate, number, processes)
        assert mine.due(count) >= end
        assert count == 0 or mine.due(count - 1) < end


def test_an_open_loop_charges_from_the_moment_that_something_was_due() -> None:
    pace = Open(Schedule(10), 1000, 1.0)
    start = 5 * NS
    pace.begin(start)
    assert pace.take(start) == start
    assert pace.take(start) is None
    assert pace.wait(start) == NS // 10
    # Everything stood still for half a second: what was due meanwhile comes late, one after the other.
    now = start + NS // 2
    taken = [pace.take(now) for _ in range(6)]
    assert taken == [*(start + number * NS // 10 for number in range(1, 6)), None]
    assert pace.late == 4
    assert pace.wait(start + NS) is None
    assert pace.take(start + NS) is None
    assert pace.unstarted == 4


def test_an_open_loop_has_an_end_by_count() -> None:
    pace = Open(Schedule(1000), 3, 60)
    pace.begin(0)
    assert [pace.take(NS) for _ in range(4)] == [0, NS // 1000, NS // 500, None]
    assert (pace.wait(NS), pace.unstarted) == (None, 0)


def test_a_closed_loop_has_an_end_by_count_and_by_time() -> None:
    pace = Closed(2, 1.0)
    pace.begin(0)
    assert [pace.take(5), pace.take(6), pace.take(7)] == [5, 6, None]
    assert pace.wait(7) is None
    pace = Closed(2, 1.0)
    pace.begin(0)
    assert (pace.wait(NS - 1), pace.take(NS), pace.wait(NS)) == (0, None, None)


def test_medians_and_ratios_of_nothing_are_nothing() -> None:
    assert (median([]), median([3.0, 1.0, 2.0])) == (None, 2.0)
    assert (ratio(3.0, 2.0), ratio(None, 2.0), ratio(3.0, None), ratio(3.0, 0.0)) == (1.5, None, None, None)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 4096, 100_000, 250_001])
def test_blobs_are_as_large_as_they_say_and_have_the_digest_that_they_say(size: int) -> None:
    from hashlib import sha256

    content = Content(random.Random(1).randbytes(100_000))
    one, other = content.blob(size), content.blob(size)
    data = b"".join(one.parts)
    assert (len(data), one.size) == (size, size)
    assert one.digest == f"sha256:{sha256(data).hexdigest()}"
    assert size < 31 or one.digest != other.digest


@given(st.integers(1, 3000), st.integers(1, 4000))
def test_chunks_of_a_blob_are_the_blob(size: int, chunk: int) -> None:
    blob = Content(bytes(range(256)) * 4).blob(size)
    cut = pieces(blob, chunk)
    assert b"".join(part for _, piece in cut for part in piece.parts) == b"".join(blob.parts)
    assert [offset for offset, _ in cut] == list(range(0, size, chunk))
    assert all(piece.size == chunk for _, piece in cut[:-1])

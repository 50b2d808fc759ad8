"""Latencies, schedules and medians: arithmetic without a clock.

Latencies are counted in buckets that are at most 1/128 of their value wide, so that they take the same memory whether a
hundred or ten million were measured, and so that those of several processes can be added up. The largest is kept as it is.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence

import msgspec

_PRECISION_BITS = 8
SHIFT = 6
"""Buckets are numbered by exponent, in the lowest bits, and the leading bits of the value."""
_EXPONENTS = (1 << SHIFT) - 1

NS = 1_000_000_000


def bucket(nanoseconds: int) -> int:
    """Return the number of the bucket in which a latency is counted."""
    exponent = max(0, nanoseconds.bit_length() - _PRECISION_BITS)
    return (nanoseconds >> exponent) << SHIFT | exponent


def top(number: int) -> int:
    """Return the largest latency that is counted in a bucket."""
    exponent = number & _EXPONENTS
    return ((number >> SHIFT) + 1 << exponent) - 1


def percentile(buckets: Mapping[int, int], largest: int, share: float) -> int:
    """Return the latency that `share` of all (0 to 1) do not exceed, to 1/128 above; 0 when there are none."""
    total = sum(buckets.values())
    # Of a hundred latencies the 99th is the p99; no float decides between two of them.
    wanted = max(1, -(-total * round(share * 10_000) // 10_000))
    seen = 0
    for limit, count in sorted((top(number), count) for number, count in buckets.items()):
        seen += count
        if seen >= wanted:
            return min(limit, largest)
    return 0


class Tally(msgspec.Struct):
    """What was counted of one kind of operation."""

    operations: int = 0
    """Those that ended well; only these are in the latencies and the bytes."""
    bytes: int = 0
    buckets: dict[int, int] = {}
    largest: int = 0
    errors: dict[str, int] = {}
    first_errors: dict[str, str] = {}

    def count(self, nanoseconds: int, size: int) -> None:
        """Count an operation that ended well."""
        self.operations += 1
        self.bytes += size
        number = bucket(nanoseconds)
        self.buckets[number] = self.buckets.get(number, 0) + 1
        self.largest = max(self.largest, nanoseconds)

    def count_error(self, kind: str, message: str) -> None:
        """Count one that did not."""
        self.errors[kind] = self.errors.get(kind, 0) + 1
        self.first_errors.setdefault(kind, message)

    @property
    def failed(self) -> int:
        """How many did not end well."""
        return sum(self.errors.values())

    def milliseconds(self, share: float) -> float:
        """Return a percentile in milliseconds."""
        return percentile(self.buckets, self.largest, share) / 1e6


def add_tallies(tallies: Iterable[Tally]) -> Tally:
    """Add up what several processes have counted."""
    whole = Tally()
    for tally in tallies:
        whole.operations += tally.operations
        whole.bytes += tally.bytes
        whole.largest = max(whole.largest, tally.largest)
        for number, count in tally.buckets.items():
            whole.buckets[number] = whole.buckets.get(number, 0) + count
        for kind, count in tally.errors.items():
            whole.errors[kind] = whole.errors.get(kind, 0) + count
            whole.first_errors.setdefault(kind, tally.first_errors.get(kind, ""))
    return whole


def shares(total: int, parts: int) -> list[int]:
    """Deal `total` out to `parts` as evenly as whole numbers allow."""
    return [(total + parts - 1 - part) // parts for part in range(parts)]


class Schedule(msgspec.Struct, frozen=True):
    """When the requests of an open loop are due: every `processes`-th of a fixed rate, from the one of number `process`."""

    rate: float
    process: int = 0
    processes: int = 1

    def due(self, number: int) -> int:
        """Return how many nanoseconds after the start the request of this number is due."""
        return round((self.process + number * self.processes) * NS / self.rate)

    def due_before(self, end: int) -> int:
        """Return how many are due before `end`, in nanoseconds after the start."""
        number = max(0, int((end * self.rate / NS - self.process) / self.processes) - 1)
        while self.due(number) < end:
            number += 1
        return number


def median(values: Sequence[float]) -> float | None:
    """Return the median; None of nothing."""
    return statistics.median(values) if values else None


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """Return how many times `theirs` goes into `ours`; None where there is no answer."""
    return ours / theirs if ours is not None and theirs else None

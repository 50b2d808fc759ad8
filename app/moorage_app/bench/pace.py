"""When operations begin.

Closed, every client begins its next operation as soon as the last one has ended. Open, operations are due at a fixed rate
and whichever client is free takes the next; their latencies count from when they were due, so that a registry which stalls
is charged for all that had to wait, and not only for the one request that it stalled.
"""

from typing import Protocol

from .statistics import NS, Schedule

_LATE_NS = NS // 1000


class Pace(Protocol):
    """Decides when operations begin."""

    def begin(self, now: int) -> None:
        """Count time from here."""
        ...

    def take(self, now: int) -> int | None:
        """Return since when the latency of the operation counts that a client begins now; None when none begins."""
        ...

    def wait(self, now: int) -> int | None:
        """Return in how many nanoseconds there is something to take; None when there never is."""
        ...


class Closed:
    """As fast as can be: until `seconds` are over, and at most `count` times."""

    def __init__(self, count: int, seconds: float = float("inf")) -> None:
        self._left = count
        self._seconds = seconds
        self._end = float("inf")

    def begin(self, now: int) -> None:
        """Count time from here."""
        self._end = now + self._seconds * NS

    def take(self, now: int) -> int | None:
        """Return since when the latency counts of what begins now; None when nothing begins."""
        if self._left <= 0 or now >= self._end:
            return None
        self._left -= 1
        return now

    def wait(self, now: int) -> int | None:
        """Return in how many nanoseconds something begins; None when nothing does any more."""
        return None if self._left <= 0 or now >= self._end else 0


class Open:
    """At a fixed rate, for `seconds`, and at most `count` times."""

    def __init__(self, schedule: Schedule, count: int, seconds: float) -> None:
        self._schedule = schedule
        self._most = min(count, schedule.due_before(round(seconds * NS)))
        self._taken = 0
        self._start = 0
        self._end = round(seconds * NS)
        self.late = 0
        """How many began more than a millisecond after they were due."""

    @property
    def unstarted(self) -> int:
        """How many were due and did not begin."""
        return self._most - self._taken

    def begin(self, now: int) -> None:
        """Count time from here."""
        self._start = now
        self._end += now

    def take(self, now: int) -> int | None:
        """Return since when the latency counts of what begins now; None when nothing begins."""
        if self._taken >= self._most or now >= self._end:
            return None
        due = self._start + self._schedule.due(self._taken)
        if due > now:
            return None
        self._taken += 1
        if now - due > _LATE_NS:
            self.late += 1
        return due

    def wait(self, now: int) -> int | None:
        """Return in how many nanoseconds something begins; None when nothing does any more."""
        if self._taken >= self._most or now >= self._end:
            return None
        return max(0, self._start + self._schedule.due(self._taken) - now)

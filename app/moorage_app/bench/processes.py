"""One measurement: generator processes that run the same case against the same target, at the same time.

They are made by fork, so that they have the bytes to push and what is hashed of them, connect, wait for one another, and
tell what they counted through a pipe. Asked to end, each tells what it has so far; one that does not is killed.
"""

import contextlib
import math
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

import msgspec

from .cases import Case, Setting
from .loop import Loop
from .pace import Closed, Open
from .scripts import Left
from .seeding import Session
from .statistics import NS, Schedule, Tally, add_tallies, shares

_PATIENCE = 15.0
_END_SECONDS = 5.0


class Bounds(msgspec.Struct, frozen=True):
    """How much load, and how long."""

    seconds: float = 3.0
    count: int = 1_000_000
    most_pushed: int = 1 << 30
    rate: float | None = None
    processes: int = 1
    timeout: float = 30.0

    def count_for(self, case: Case, setting: Setting) -> int:
        """How many operations a measurement may have: pushes are bounded by their bytes, too."""
        pushed = case.pushed(setting.sizes)
        return min(self.count, max(1, self.most_pushed // pushed)) if pushed else self.count


class Measured(msgspec.Struct):
    """What came out of a measurement."""

    tallies: dict[str, Tally] = {}
    requests: int = 0
    seconds: float = 0.0
    unfinished: int = 0
    late: int = 0
    unstarted: int = 0
    cpu: float = 0.0
    """Share of one core that the busiest generator process used."""
    manifests: list[str] = []
    blobs: list[str] = []
    uploads: list[str] = []
    fault: str = ""
    """Why a process told nothing."""


def measure(case: Case, clients: int, session: Session, setting: Setting, bounds: Bounds) -> Measured:
    """Run a case in as many processes as there is work for; what they leave is added to what is to be removed."""
    for size in case.prepared(setting.sizes):
        setting.content.prepare(size)
    count = bounds.count_for(case, setting)
    processes = min(bounds.processes, clients, count)
    plans = list(zip(shares(clients, processes), shares(count, processes), strict=True))
    workers: list[_Worker] = []
    parts: list[Measured] = []
    try:
        for number, (its_clients, its_count) in enumerate(plans):
            schedule = Schedule(bounds.rate, number, processes) if bounds.rate else None
            workers.append(_Worker(case, its_clients, its_count, session, setting, bounds, schedule))
        for worker in workers:
            worker.wait_until_ready()
        for worker in workers:
            worker.go()
        while len(parts) < len(workers):
            parts.append(workers[len(parts)].result(bounds.seconds + 2 * bounds.timeout + _PATIENCE))
    finally:
        # On the way out of an interrupt, what was pushed is still wanted.
        for worker in workers[len(parts) :]:
            worker.stop()
        parts += [worker.end() for worker in workers[len(parts) :]]
        left = session.seeded.left
        for part in parts:
            left.manifests += part.manifests
            left.blobs += part.blobs
            left.uploads |= set(part.uploads)
    return _joined(parts)


def _joined(parts: Sequence[Measured]) -> Measured:
    names = dict.fromkeys(name for part in parts for name in part.tallies)
    return Measured(
        tallies={name: add_tallies(part.tallies[name] for part in parts if name in part.tallies) for name in names},
        requests=sum(part.requests for part in parts),
        seconds=max((part.seconds for part in parts), default=0.0),
        unfinished=sum(part.unfinished for part in parts),
        late=sum(part.late for part in parts),
        unstarted=sum(part.unstarted for part in parts),
        cpu=max((part.cpu for part in parts), default=0.0),
        fault=next((part.fault for part in parts if part.fault), ""),
    )


class _Worker:
    """A generator process, seen from the one that started it."""

    def __init__(
        self,
        case: Case,
        clients: int,
        count: int,
        session: Session,
        setting: Setting,
        bounds: Bounds,
        schedule: Schedule | None,
    ) -> None:
        self._told, telling = os.pipe()
        hearing, self._say = os.pipe()
        self._heard = bytearray()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                os.close(self._told)
                os.close(self._say)
                _generate(case, clients, count, session, setting, bounds, schedule, hearing, telling)
                code = 0
            finally:
                # Nothing of the parent's is ended here, whatever happened.
                os._exit(code)
        os.close(telling)
        os.close(hearing)

    def wait_until_ready(self) -> None:
        """Return when it has connected."""
        select.select([self._told], (), (), _PATIENCE)
        self._heard += os.read(self._told, 1) if select.select([self._told], (), (), 0)[0] else b"r"

    def go(self) -> None:
        """Let it begin."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._say, b"g")

    def result(self, seconds: float) -> Measured:
        """Return what it has counted; it is ended if it does not tell in time."""
        if not self._hear(seconds):
            return self.end()
        return self._finish()

    def stop(self) -> None:
        """Ask it to stop."""
        os.kill(self.pid, signal.SIGTERM)
        self.go()

    def end(self) -> Measured:
        """Ask it to stop, and return what it has counted; kill it if it does not stop."""
        self.stop()
        if not self._hear(_END_SECONDS):
            os.kill(self.pid, signal.SIGKILL)
        return self._finish()

    def _hear(self, seconds: float) -> bool:
        """Read until it has nothing more to tell; return whether that came in time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._told], (), (), left)[0]:
                data = os.read(self._told, 1 << 16)
                if not data:
                    return True
                self._heard += data
        return False

    def _finish(self) -> Measured:
        os.waitpid(self.pid, 0)
        os.close(self._told)
        os.close(self._say)
        try:
            return msgspec.msgpack.decode(self._heard[1:], type=Measured)
        except msgspec.DecodeError:
            return Measured(fault="a generator process ended without a word")


def _generate(
    case: Case,
    clients: int,
    count: int,
    session: Session,
    setting: Setting,
    bounds: Bounds,
    schedule: Schedule | None,
    hearing: int,
    telling: int,
) -> None:
    """Be a generator process."""
    setting.left = Left()
    pace = Closed(count, bounds.seconds) if schedule is None else Open(schedule, count, bounds.seconds)
    with Loop(
        setting.at.target.origin,
        clients=clients,
        pace=pace,
        operation=case.operation(setting),
        timeout=bounds.timeout,
        tls=session.tls,
        follow=session.may_follow if setting.follow else None,
    ) as loop:

        def stop(_number: int, _frame: FrameType | None) -> None:
            loop.stop()

        signal.signal(signal.SIGTERM, stop)
        loop.connect()
        os.write(telling, b"r")
        select.select([hearing], (), (), 2 * _PATIENCE)
        before = time.process_time()
        loop.run()
        cpu = time.process_time() - before
    left = setting.left
    result = Measured(
        tallies=loop.tallies,
        requests=loop.requests,
        seconds=loop.elapsed / NS,
        unfinished=loop.unfinished,
        late=pace.late if isinstance(pace, Open) else 0,
        unstarted=pace.unstarted if isinstance(pace, Open) else 0,
        cpu=cpu / (loop.elapsed / NS) if loop.elapsed else math.nan,
        manifests=left.manifests,
        blobs=left.blobs,
        uploads=sorted(left.uploads),
    )
    with os.fdopen(telling, "wb") as pipe:
        pipe.write(msgspec.msgpack.encode(result))

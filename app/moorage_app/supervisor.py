"""The supervisor: binds once, forks workers, puts a new one where one died, and drains them at the end.

It is a plain synchronous process: no event loop, no thread, so that forking is safe, and one place waits for whatever
happens next, a child's end or a signal. (hypercorn's own process manager ends the whole server, with exit code 0, when
one worker dies.)

A worker tells the supervisor through a pipe that it is ready, or why it cannot be. When every worker fails before it
was ready, nothing would help: that is the exit code 2, with the reason.
"""

import contextlib
import errno
import logging
import os
import re
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

from moorage import ConfigurationError

from .shares import Share, Shares

_log = logging.getLogger("moorage.supervisor")

BACKLOG = 1024
_SYSTEMD_FIRST = 3
_READY = b"\0"
_ADDRESS = re.compile(r"(?:\[([^\[\]]*)\]|([^\[\]]*)):([0-9]{1,5})")
_KILL_GRACE_SECONDS = 5.0
_BACKOFF_FIRST = 0.1
_BACKOFF_MOST = 30.0
_HEALTHY_SECONDS = 60.0
_REASON_LIMIT = 4096

EXIT_CONFIGURATION = 2

_STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""What ends the server; the last one comes when its terminal is closed."""

Work = Callable[[list[int], Share, Callable[[], None]], None]
"""What a worker does: serve its share on the listening descriptors and close them, calling the function when it is ready;
raises to fail."""


def usable_processors() -> int:
    """Return how many processors this process may use, as its affinity and its control group say."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    return count


def default_workers() -> int:
    """Return how many workers to run where nobody says: one for each usable processor, at most four."""
    return min(usable_processors(), 4)


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `:port`; the host is empty for every interface.

    Raises:
        ConfigurationError: it is neither.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[3]) > 0xFFFF:
        hint = f"; did you mean ':{address}'?" if address.isascii() and address.isdigit() else ""
        raise ConfigurationError(f"http.addr: {address!r} is not host:port{hint}")
    return match[1] or match[2] or "", int(match[3])


def bind(address: str, *, unix: bool) -> list[socket.socket]:
    """Return sockets that listen on `address`: `host:port`, `:port` for every interface, or the path of a socket.

    One descriptor from systemd's socket activation goes before both, as in distribution.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    try:
        if _is_activated():
            address = f"descriptor {_SYSTEMD_FIRST} of LISTEN_FDS"
            listener = socket.socket(fileno=_SYSTEMD_FIRST)
            listener.listen(BACKLOG)
            return [listener]
        if unix:
            return [_bind_unix(address)]
        return _bind_tcp(*parse_address(address))
    except (OSError, ValueError) as error:
        # ValueError: a name that cannot be looked up at all, a path with a NUL.
        # Python adds the address, as a tuple, to what the system says.
        reason = str(getattr(error, "strerror", None) or error).partition(" (while attempting")[0]
        raise ConfigurationError(f"http.addr: cannot listen on {address!r}: {reason}") from error


def _bind_tcp(host: str, port: int) -> list[socket.socket]:
    if not host:
        # Every interface, of both families where the system has both.
        if socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):
                listener = socket.create_server(
                    ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG
                )
                return [_quick(listener)]
        return [_quick(socket.create_server(("0.0.0.0", port), backlog=BACKLOG))]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = dict.fromkeys((family, sockaddr[:2]) for family, _, _, _, sockaddr in found)
    listeners: list[socket.socket] = []
    for family, sockaddr in addresses:
        # With port 0 the second family takes the port that the system gave to the first.
        target = (str(sockaddr[0]), listeners[0].getsockname()[1] if listeners and not port else int(sockaddr[1]))
        listeners.append(_quick(socket.create_server(target, family=family, backlog=BACKLOG)))
    return listeners


def _quick(listener: socket.socket) -> socket.socket:
    # Inherited by every accepted connection: an answer's head does not wait for the acknowledgement of another.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A peer that vanished without a word is found out some day.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return listener


def _is_activated() -> bool:
    """Return whether systemd listens for this process, and gives it the socket."""
    return os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1"


def _bind_unix(address: str) -> socket.socket:
    if not address or "\0" in address:
        # The system would choose a name of its own, or take what stands before the NUL.
        raise ValueError("not a path")
    path = Path(address)
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, contextlib.suppress(ConnectionRefusedError):
            client.connect(address)
            raise OSError(errno.EADDRINUSE, "another server listens there")
        # Left behind by one that is gone.
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class _Worker:
    """A child process, as the supervisor sees it."""

    def __init__(self, pid: int, pipe: int, place: int) -> None:
        self.pid = pid
        self.place = place
        self.pipe = pipe
        self.began = time.monotonic()
        self.said = b""

    @property
    def ready(self) -> bool:
        return self.said.startswith(_READY)

    def listen(self) -> None:
        """Take in what the worker has to say, as far as it is there."""
        while self.pipe >= 0 and select.select([self.pipe], [], [], 0)[0]:
            data = os.read(self.pipe, _REASON_LIMIT)
            self.said = (self.said + data)[:_REASON_LIMIT]
            if not data:
                self.close()

    def close(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1


class Supervisor:
    """Keeps a number of workers running."""

    def __init__(
        self, listeners: list[socket.socket], work: Work, *, workers: int, drain_seconds: float, scheme: str = "http"
    ) -> None:
        """Run `workers` processes that do `work` on `listeners`; give them `drain_seconds` to end.

        They share out connections among them. `scheme` is what the addresses begin with where they are shown.
        """
        self._listeners = listeners
        self._shares = Shares(workers)
        self._free = list(range(workers))
        self._work = work
        self._count = workers
        self._drain_seconds = drain_seconds
        self._scheme = scheme
        self._workers: dict[int, _Worker] = {}
        self._was_ready = False
        self._announced = False
        self._backoff = _BACKOFF_FIRST
        self._start_at: list[float] = []

    def run(self) -> int:
        """Run until SIGTERM, SIGINT or SIGHUP; return the exit code: 0 after a stop, 2 if no worker could start."""
        watched = {signal.SIGCHLD, *_STOPS}
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        try:
            for _ in range(self._count):
                self._start()
            while True:
                self._announce()
                self._start_those_due()
                received = signal.sigtimedwait(watched, self._patience())
                self._reap()
                if received is not None and received.si_signo in _STOPS:
                    return self._stop()
                if not self._was_ready and not self._workers:
                    return EXIT_CONFIGURATION
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)

    def _patience(self) -> float:
        """Return how long to wait for a signal: shorter while workers are starting or one is due."""
        waits = [max(0.0, due - time.monotonic()) for due in self._start_at]
        if any(not worker.ready for worker in self._workers.values()):
            waits.append(0.05)
        return min(waits, default=5.0)

    def _start(self) -> None:
        reading, writing = os.pipe()
        # What is buffered would be written by both.
        sys.stdout.flush()
        sys.stderr.flush()
        supervisor = os.getpid()
        place = self._free.pop()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            for worker in self._workers.values():
                worker.close()
            os._exit(self._child(supervisor, self._shares.at(place), writing))
        os.close(writing)
        self._workers[pid] = _Worker(pid, reading, place)

    def _child(self, supervisor: int, share: Share, pipe: int) -> int:
        """Do a worker's work in the forked process; return its exit code."""
        try:
            # A worker whose supervisor died must not serve on alone, unseen.
            _end_with_parent()
            if os.getppid() != supervisor:
                return 1
            # A terminal sends these to every process; only the supervisor answers, and tells its workers by SIGTERM.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, set())

            def ready() -> None:
                os.write(pipe, _READY)

            # The worker's to close: when it drains, nobody may listen any more.
            self._work([listener.detach() for listener in self._listeners], share, ready)
        except ConfigurationError as error:
            os.write(pipe, str(error).encode()[:_REASON_LIMIT])
            return EXIT_CONFIGURATION
        except BaseException as error:  # noqa: BLE001 - the edge of the process
            _log.critical("a worker failed", exc_info=error)
            with contextlib.suppress(OSError):
                os.write(pipe, f"{type(error).__name__}: {error}".encode()[:_REASON_LIMIT])
            return 1
        else:
            return 0
        finally:
            logging.shutdown()

    def _announce(self) -> None:
        for worker in self._workers.values():
            worker.listen()
        if any(worker.ready for worker in self._workers.values()):
            self._was_ready = True
        if not self._announced and self._workers and all(worker.ready for worker in self._workers.values()):
            self._announced = True
            addresses = ", ".join(_shown(listener, self._scheme) for listener in self._listeners)
            _log.info("listening on %s with %d %s", addresses, self._count, "worker" if self._count == 1 else "workers")

    def _reap(self) -> None:
        """Take note of the workers that ended, and plan others in their places."""
        while self._workers:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            if worker is not None:
                self._bury(worker, os.waitstatus_to_exitcode(status))

    def _bury(self, worker: _Worker, code: int) -> None:
        self._shares.leave(worker.place)
        self._free.append(worker.place)
        worker.listen()
        worker.close()
        self._was_ready = self._was_ready or worker.ready
        if not self._was_ready:
            # Not one has started yet: it is the set-up that is wrong, not this worker.
            reason = worker.said.decode(errors="replace") or f"a worker ended with {code} before it was ready"
            sys.stderr.write(f"moorage: {reason}\n")
            self._end_workers(_KILL_GRACE_SECONDS)
            return
        if time.monotonic() - worker.began > _HEALTHY_SECONDS:
            self._backoff = _BACKOFF_FIRST
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        _log.error("worker %d %s; another takes its place in %.1f s", worker.pid, ended, self._backoff)
        self._start_at.append(time.monotonic() + self._backoff)
        self._backoff = min(self._backoff * 2, _BACKOFF_MOST)

    def _start_those_due(self) -> None:
        now = time.monotonic()
        due = [moment for moment in self._start_at if moment <= now]
        self._start_at = [moment for moment in self._start_at if moment > now]
        for _ in due:
            self._start()

    def _stop(self) -> int:
        """Stop listening, tell the workers, wait for them within bounds."""
        _log.info("stopping; requests under way have %.0f s to end", self._drain_seconds)
        for listener in self._listeners:
            listener.close()
        drain_seconds = self._drain_seconds if self._was_ready else 0.0
        self._end_workers(drain_seconds + _KILL_GRACE_SECONDS)
        _log.info("stopped")
        return 0

    def _end_workers(self, seconds: float) -> None:
        """Tell the workers to end, and kill those that have not in `seconds`."""
        # Another signal to stop changes nothing from here on: the bound is near.
        for stop in _STOPS:
            signal.signal(stop, signal.SIG_IGN)
        for pid in self._workers:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while self._workers and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, min(0.5, max(0.01, deadline - time.monotonic())))
            self._collect()
        for pid in self._workers:
            _log.warning("worker %d did not end in time and is killed", pid)
            os.kill(pid, signal.SIGKILL)
        while self._workers:
            gone, _ = os.wait()
            self._workers.pop(gone, None)

    def _collect(self) -> None:
        while self._workers:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            if worker is not None:
                worker.close()


def _shown(listener: socket.socket, scheme: str) -> str:
    if listener.family is socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _end_with_parent() -> None:
    """Have the system send SIGTERM to this process when its parent dies, where it can (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)

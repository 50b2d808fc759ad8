"""Processes and sockets: what is listened on, and what becomes of workers that die, fail or do not end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from moorage import ConfigurationError
from moorage_app import supervisor
from moorage_app.supervisor import Supervisor, bind, default_workers, usable_processors
from servers import END_SECONDS, free_port, is_alive, wait_for

# ---- what is listened on


@contextmanager
def bound(address: str, *, unix: bool = False) -> Generator[list[socket.socket]]:
    listeners = bind(address, unix=unix)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


def reaches(family: socket.AddressFamily, address: tuple[str, int] | str) -> bool:
    with socket.socket(family) as client:
        return client.connect_ex(address) == 0


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("127.0.0.1:0", ["127.0.0.1"]),
        ("localhost:0", ["127.0.0.1"]),
        ("[::1]:0", ["::1"]),
        ("::1:0", ["::1"]),
        (":0", ["127.0.0.1", "::1"]),
        ("0.0.0.0:0", ["127.0.0.1"]),
    ],
)
def test_an_address_is_listened_on_in_the_families_that_it_means(address: str, reached: list[str]) -> None:
    if not socket.has_dualstack_ipv6():
        reached = [each for each in reached if ":" not in each]
        if not reached:
            pytest.skip("this system has no IPv6")
    with bound(address) as listeners:
        port = listeners[0].getsockname()[1]
        assert all(listener.getsockname()[1] == port for listener in listeners)
        for each in reached:
            assert reaches(socket.AF_INET6 if ":" in each else socket.AF_INET, (each, port))


def test_an_address_for_this_machine_is_not_reached_by_others() -> None:
    with bound("127.0.0.1:0") as (listener,):
        assert listener.getsockname()[0] == "127.0.0.1"
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_socket_in_the_file_system_is_listened_on(tmp_path: Path) -> None:
    path = str(tmp_path / "moorage.sock")
    with bound(path, unix=True):
        assert reaches(socket.AF_UNIX, path)
        with pytest.raises(ConfigurationError, match="another server listens there"):
            bind(path, unix=True)
        assert reaches(socket.AF_UNIX, path)
    # Nobody listens any more; what is left of it is no obstacle.
    assert not reaches(socket.AF_UNIX, path)
    with bound(path, unix=True):
        assert reaches(socket.AF_UNIX, path)


def test_a_file_is_not_taken_for_an_old_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    with pytest.raises(ConfigurationError, match=r"^http\.addr: cannot listen on "):
        bind(str(path), unix=True)
    assert path.read_text() == "x"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost",
        "5000",
        "localhost:",
        "localhost:http",
        "localhost:65536",
        "localhost:-1",
        "localhost:\xb2",
        "localhost:\u0663",
        ":",
        "a..b:5000",
        "a" * 64 + ".test:5000",
        "no-such-host.invalid:5000",
        "192.0.2.1:5000",
        "local\0host:5000",
        "[::1:5000",
        "http://localhost:5000",
        "caf\xe9..x:1",
    ],
)
def test_an_address_that_cannot_be_is_told_in_one_sentence(address: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        bind(address, unix=False)
    assert str(refused.value).startswith("http.addr: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("path", ["/no/such/folder/moorage.sock", "/tmp/" + "x" * 200, "a\0b", "", "/"])
def test_a_path_that_cannot_be_is_told_in_one_sentence(path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^http\.addr: "):
        bind(path, unix=True)


def test_a_port_that_is_taken_is_told_in_one_sentence() -> None:
    with bound("127.0.0.1:0") as (listener,):
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"cannot listen on '{address}': .*in use"):
            bind(address, unix=False)


ACTIVATED = """
import os, socket, sys
from moorage import ConfigurationError
from moorage_app.supervisor import bind

count, pid, kind = sys.argv[1:]
waiting = socket.create_server(("127.0.0.1", 0)) if kind == "socket" else open(os.devnull)
if waiting.fileno() != 3:
    os.dup2(waiting.fileno(), 3)
os.environ.update(LISTEN_FDS=count, LISTEN_PID=str(os.getpid()) if pid == "mine" else pid)
try:
    (found,) = bind("127.0.0.1:0", unix=False)
except ConfigurationError as error:
    print("refused", error)
else:
    print("same" if kind == "socket" and found.getsockname() == waiting.getsockname() else "other")
"""


@pytest.mark.parametrize(
    ("count", "pid", "kind", "said"),
    [
        ("1", "mine", "socket", "same"),
        ("1", "1", "socket", "other"),
        ("0", "mine", "socket", "other"),
        ("1", "mine", "file", "refused http.addr: "),
    ],
)
def test_a_socket_that_the_system_opened_goes_first(count: str, pid: str, kind: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", ACTIVATED, count, pid, kind], capture_output=True, text=True
    )
    assert done.stdout.startswith(said), done.stderr


def test_as_many_workers_run_as_there_are_processors_but_few() -> None:
    assert 1 <= default_workers() <= min(4, usable_processors())
    assert usable_processors() <= (os.cpu_count() or 1)


# ---- workers

BEGIN = """
import os, signal, sys
from pathlib import Path
from moorage import ConfigurationError
from moorage_app import supervisor

folder = Path(sys.argv[1])

def note(name):
    (folder / f"{name}.{os.getpid()}").touch()

def first():
    try:
        (folder / "first").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def serve(descriptors, share, ready):
    ready()
    note("ready")
    signal.pause()

def run(work, workers=2, drain=5.0):
    listeners = supervisor.bind("127.0.0.1:0", unix=False)
    sys.exit(supervisor.Supervisor(listeners, work, workers=workers, drain_seconds=drain).run())
"""


class Family:
    """A supervisor that runs as a process, and its workers as they noted themselves."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGIN + script, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def noted(self, name: str = "ready") -> list[int]:
        return sorted(int(path.suffix[1:]) for path in self.folder.glob(f"{name}.*"))

    def wait_for(self, count: int, name: str = "ready") -> list[int]:
        def there() -> bool:
            assert self.process.poll() is None, self.process.communicate()[1]
            return len(self.noted(name)) >= count

        wait_for(there, f"{count} times {name}")
        return self.noted(name)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(END_SECONDS)


@contextmanager
def family(folder: Path, script: str) -> Generator[Family]:
    found = Family(folder, script)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
        found.process.communicate()
        wait_for(lambda: not any(map(is_alive, found.noted())), "the end of the workers")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_ends_all_workers_and_is_a_success(tmp_path: Path, number: signal.Signals) -> None:
    with family(tmp_path, "run(serve, workers=3)") as running:
        workers = running.wait_for(3)
        assert running.end(number) == 0
        assert not any(map(is_alive, workers))


def test_workers_that_hang_at_the_start_do_not_keep_it_from_failing(tmp_path: Path) -> None:
    script = """
supervisor._KILL_GRACE_SECONDS = 0.2

def work(descriptors, share, ready):
    note("begun")
    if first():
        while len(list(folder.glob("begun.*"))) < 2:
            pass
        raise ConfigurationError("no luck")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pause()

run(work)
"""
    with family(tmp_path, script) as running:
        assert running.process.wait(END_SECONDS) == 2
        assert running.process.communicate()[1].startswith("moorage: no luck\n")
        assert not any(map(is_alive, running.noted("begun")))


def test_a_worker_that_hangs_at_the_start_does_not_keep_it_from_stopping(tmp_path: Path) -> None:
    script = """
supervisor._KILL_GRACE_SECONDS = 0.2

def work(descriptors, share, ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("begun")
    signal.pause()

run(work, workers=1, drain=600.0)
"""
    with family(tmp_path, script) as running:
        running.wait_for(1, "begun")
        assert running.end() == 0
        assert not any(map(is_alive, running.noted("begun")))


def test_a_worker_that_is_killed_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    with family(tmp_path, "run(serve)") as running:
        gone, stays = running.wait_for(2)
        os.kill(gone, signal.SIGKILL)
        assert len(running.wait_for(3)) == 3
        assert is_alive(stays)
        assert running.end() == 0


def test_a_worker_that_fails_after_it_was_ready_is_replaced(tmp_path: Path) -> None:
    script = """
def work(descriptors, share, ready):
    if first():
        ready()
        raise RuntimeError("it was all too much")
    serve(descriptors, share, ready)

run(work, workers=1)
"""
    with family(tmp_path, script) as running:
        running.wait_for(1)
        assert running.end() == 0


def test_a_worker_that_fails_at_its_start_while_others_serve_is_tried_again(tmp_path: Path) -> None:
    script = """
def work(descriptors, share, ready):
    if (folder / "fail").exists():
        note("failed")
        raise ConfigurationError("not now")
    serve(descriptors, share, ready)

run(work)
"""
    with family(tmp_path, script) as running:
        gone, stays = running.wait_for(2)
        (tmp_path / "fail").touch()
        os.kill(gone, signal.SIGKILL)
        running.wait_for(2, "failed")
        assert is_alive(stays)
        (tmp_path / "fail").unlink()
        running.wait_for(3)
        assert running.end() == 0


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ('raise ConfigurationError("storage: there is no such thing")', "moorage: storage: there is no such thing\n"),
        ('raise RuntimeError("oops")', "moorage: RuntimeError: oops\n"),
        ("os._exit(3)", "moorage: a worker ended with 3 before it was ready\n"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "moorage: a worker ended with -9 before it was ready\n"),
        ('raise ConfigurationError("x" * 10000)', "moorage: " + "x" * 4096 + "\n"),
    ],
)
def test_workers_that_all_fail_at_the_start_end_it_with_the_reason(tmp_path: Path, failure: str, said: str) -> None:
    script = f"""
def work(descriptors, share, ready):
    note("ready")
    {failure}

run(work, workers=3)
"""
    with family(tmp_path, script) as running:
        _, errors = running.process.communicate(timeout=END_SECONDS)
        assert running.process.returncode == 2
        assert errors.endswith(said)
        assert not any(map(is_alive, running.noted()))


def test_a_worker_that_does_not_end_is_killed_after_the_drain(tmp_path: Path) -> None:
    script = """
supervisor._KILL_GRACE_SECONDS = 0.1

def work(descriptors, share, ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(descriptors, share, ready)

run(work, workers=1, drain=0.1)
"""
    with family(tmp_path, script) as running:
        (worker,) = running.wait_for(1)
        assert running.end() == 0
        assert not is_alive(worker)


def test_a_worker_may_use_its_time_to_end(tmp_path: Path) -> None:
    script = """
def work(descriptors, share, ready):
    reading, writing = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(writing, b"x"))
    ready()
    note("ready")
    os.read(reading, 1)
    while not (folder / "go").exists():
        signal.sigtimedwait([signal.SIGUSR1], 0.01)
    note("ended")

run(work, workers=1, drain=30.0)
"""
    with family(tmp_path, script) as running:
        running.wait_for(1)
        running.process.send_signal(signal.SIGTERM)
        (tmp_path / "go").touch()
        assert running.process.wait(END_SECONDS) == 0
        assert len(running.noted("ended")) == 1


def test_a_stop_before_anybody_is_ready_is_a_success(tmp_path: Path) -> None:
    script = """
def work(descriptors, share, ready):
    note("begun")
    signal.pause()

run(work)
"""
    with family(tmp_path, script) as running:
        workers = running.wait_for(2, "begun")
        assert running.end() == 0
        assert not any(map(is_alive, workers))


def test_workers_do_not_outlive_their_supervisor(tmp_path: Path) -> None:
    with family(tmp_path, "run(serve)") as running:
        workers = running.wait_for(2)
        running.process.kill()
        running.process.wait(END_SECONDS)
        wait_for(lambda: not any(map(is_alive, workers)), "the end of the workers")


def test_workers_leave_the_signals_of_a_terminal_to_the_supervisor(tmp_path: Path) -> None:
    with family(tmp_path, "run(serve)") as running:
        workers = running.wait_for(2)
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(workers[0], number)
        os.kill(workers[1], signal.SIGKILL)
        (kept, _, _) = running.wait_for(3)
        assert kept == workers[0]
        assert running.end() == 0


def test_workers_share_one_port(tmp_path: Path) -> None:
    port = free_port()
    script = f"""
import socket

def work(descriptors, share, ready):
    listener = socket.socket(fileno=os.dup(descriptors[0]))
    ready()
    note("ready")
    while True:
        client, _ = listener.accept()
        client.sendall(b"%d" % os.getpid())
        client.close()

listeners = supervisor.bind("127.0.0.1:{port}", unix=False)
sys.exit(supervisor.Supervisor(listeners, work, workers=2, drain_seconds=1).run())
"""

    def asked() -> int:
        """Return who answered; 0 if it was killed before it could."""
        with closing(socket.create_connection(("127.0.0.1", port), timeout=END_SECONDS)) as client:
            try:
                return int(client.recv(100) or 0)
            except ConnectionResetError:
                return 0

    with family(tmp_path, script) as running:
        workers = running.wait_for(2)
        assert asked() in workers
        os.kill(workers[0], signal.SIGKILL)
        wait_for(lambda: asked() in {workers[1], *running.noted()} - {workers[0]}, "an answer of those that are left")
        running.wait_for(3)
        assert running.end() == 0


def test_a_worker_that_keeps_dying_is_replaced_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def work(*_: object) -> None:
        raise AssertionError

    watched = Supervisor([], work, workers=1, drain_seconds=1)
    watched._was_ready = True

    def buried(lived: float) -> float:
        nonlocal now
        worker = supervisor._Worker(1, -1, watched._free.pop())
        now += lived
        watched._bury(worker, 1)
        return watched._start_at.pop() - now

    waits = [buried(1) for _ in range(12)]
    assert waits[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert waits[-1] == pytest.approx(30)
    assert waits == sorted(waits)
    # One that lived for long died of something else.
    assert buried(3600) == pytest.approx(0.1)


# ---- how connections are shared

ANSWERING = """
import socket
import trio
from moorage_app import shares

def answering(descriptors, share, ready):
    async def answer(stream):
        with share.serving():
            await stream.send_all(str(os.getpid()).encode())
            await stream.receive_some(1)

    async def main():
        listeners = [shares.SharedListener(socket.socket(fileno=each), share) for each in descriptors]
        (folder / f"port.{socket.socket(fileno=os.dup(descriptors[0])).getsockname()[1]}").touch()
        with share.taking():
            async with trio.open_nursery() as nursery:
                await nursery.start(trio.serve_listeners, answer, listeners)
                ready()
                note("ready")

    trio.run(main)
"""


# So that a machine that has much to do keeps no worker from taking its share in time.
PATIENT = "shares._PATIENCE_SECONDS = 30.0"


def port_of(running: Family) -> int:
    (port,) = running.noted("port")
    return port


@contextmanager
def connected(port: int, count: int) -> Generator[list[int]]:
    """Keep `count` connections open, and give who answered each."""
    with ExitStack() as kept:
        clients = [
            kept.enter_context(socket.create_connection(("127.0.0.1", port), timeout=END_SECONDS)) for _ in range(count)
        ]
        yield [int(client.recv(100)) for client in clients]


@pytest.mark.parametrize(("count", "most"), [(4, 1), (64, 18), (400, 115)])
def test_connections_are_spread_evenly_over_the_workers(tmp_path: Path, count: int, most: int) -> None:
    with family(tmp_path, f"{ANSWERING}\n{PATIENT}\nrun(answering, workers=4)") as running:
        workers = running.wait_for(4)
        with connected(port_of(running), count) as found:
            assert max(found.count(worker) for worker in workers) <= most
        assert running.end() == 0


def test_the_share_of_a_dead_worker_goes_to_the_others_at_once(tmp_path: Path) -> None:
    with family(tmp_path, f"supervisor._BACKOFF_FIRST = 600.0\n{ANSWERING}\nrun(answering, workers=3)") as running:
        gone, *stay = running.wait_for(3)
        os.kill(gone, signal.SIGKILL)
        wait_for(lambda: not is_alive(gone), "the end of the worker")
        with connected(port_of(running), 100) as found:
            assert set(found) == set(stay)
        assert running.end() == 0


def test_a_worker_that_took_the_place_of_another_takes_its_share(tmp_path: Path) -> None:
    with family(tmp_path, f"{ANSWERING}\n{PATIENT}\nrun(answering, workers=2)") as running:
        gone, stays = running.wait_for(2)
        with connected(port_of(running), 20):
            os.kill(gone, signal.SIGKILL)
            (comes,) = set(running.wait_for(3)) - {gone, stays}
            with connected(port_of(running), 8) as found:
                # The other one still has those that it had.
                assert found.count(comes) > found.count(stays)
        assert running.end() == 0


def test_a_worker_that_hangs_keeps_no_connection_waiting(tmp_path: Path) -> None:
    with family(tmp_path, f"{ANSWERING}\nrun(answering, workers=3)") as running:
        hangs, *others = running.wait_for(3)
        os.kill(hangs, signal.SIGSTOP)
        try:
            with connected(port_of(running), 100) as found:
                assert set(found) == set(others)
        finally:
            os.kill(hangs, signal.SIGCONT)
        assert running.end() == 0


def test_an_address_that_workers_listen_on_is_not_had_by_another_registry(tmp_path: Path) -> None:
    with family(tmp_path, f"{ANSWERING}\nrun(answering, workers=2)") as running:
        running.wait_for(2)
        with pytest.raises(ConfigurationError, match="in use"):
            bind(f"127.0.0.1:{port_of(running)}", unix=False)
        assert running.end() == 0

"""Any process serves the next request of an upload, and a stop lets what is under way end."""

import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from pushing import Repository, SlowRequest, acknowledged, digest_of, errors_of, noise, with_digest
from servers import Server, configured, http, is_alive, moorage, patient_workers, wait_for

pytestmark = pytest.mark.usefixtures("http_engine")

NAME = "team/app"
OCTETS = {"content-type": "application/octet-stream"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def numbers() -> random.Random:
    return random.Random(20)


@pytest.fixture
def two(root: Path) -> Generator[tuple[Repository, Repository]]:
    """The same repository at two servers on one root."""
    with moorage(root) as one, moorage(root) as other, http(one.url) as to_one, http(other.url) as to_other:
        yield Repository(to_one, NAME), Repository(to_other, NAME)


def received(root: Path, location: str) -> int:
    """Return how many bytes of an upload lie in the store, acknowledged or not."""
    name = location.rpartition("/")[2]
    file = root / f"docker/registry/v2/repositories/{NAME}/_uploads/{name}/data"
    return file.stat().st_size if file.exists() else 0


# ---- one upload, many processes


def test_each_request_of_an_upload_may_reach_another_server(
    two: tuple[Repository, Repository], numbers: random.Random
) -> None:
    data = noise(numbers, 5_000_000)
    location = two[0].open_upload()
    offset = 0
    for turn, size in enumerate((1, 999_999, 64, 2_500_000)):
        here, there = two[(turn + 1) % 2].http, two[turn % 2].http
        chunk = data[offset : offset + size]
        sent = here.patch(location, content=chunk, headers={"content-range": f"{offset}-{offset + size - 1}"})
        assert sent.status_code == 202, sent.text
        offset += size
        assert sent.headers["location"] == location
        for server in (here, there):
            state = server.get(location)
            assert (state.status_code, state.headers["range"]) == (204, f"0-{offset - 1}")
    digest = digest_of(data)
    done = two[1].http.put(with_digest(location, digest), content=data[offset:])
    assert done.status_code == 201, done.text
    for each in two:
        assert each.blob(digest) == data
        assert each.http.get(location).status_code == 404


def test_an_upload_by_sha512_moves_between_servers(two: tuple[Repository, Repository], numbers: random.Random) -> None:
    data = noise(numbers, 300_001)
    digest = digest_of(data, "sha512")
    one, other = two
    opened = one.http.post(f"/v2/{NAME}/blobs/uploads/", params={"digest-algorithm": "sha512"})
    location = opened.headers["location"]
    assert other.http.patch(location, content=data[:100_000]).status_code == 202
    assert one.http.patch(location, content=data[100_000:]).status_code == 202
    assert other.http.put(with_digest(location, digest)).status_code == 201
    assert one.blob(digest) == data


def test_an_upload_cancelled_at_one_server_is_gone_at_the_other(two: tuple[Repository, Repository]) -> None:
    one, other = two
    location = one.open_upload()
    assert other.http.patch(location, content=b"some").status_code == 202
    assert one.http.delete(location).status_code == 204
    for answer in (
        other.http.get(location),
        other.http.patch(location, content=b"more"),
        other.http.put(with_digest(location, digest_of(b"some"))),
        other.http.delete(location),
    ):
        assert answer.status_code == 404
        assert answer.request.method == "HEAD" or errors_of(answer) == ["BLOB_UPLOAD_UNKNOWN"]


def test_of_two_patches_at_once_one_wins(two: tuple[Repository, Repository], numbers: random.Random) -> None:
    size = 3_000_000
    for _ in range(5):
        bodies = [noise(numbers, size), noise(numbers, size)]
        location = two[0].open_upload()
        together = threading.Barrier(2)

        def patch(at: int, location: str = location, together: threading.Barrier = together) -> httpx.Response:
            together.wait(30)
            headers = {**OCTETS, "content-range": f"0-{size - 1}"}
            return two[at].http.patch(location, content=bodies[at], headers=headers)  # noqa: B023 - within the round

        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(patch, range(2)))
        assert sorted(answer.status_code for answer in answers) == [202, 416]
        winner = next(at for at in range(2) if answers[at].status_code == 202)
        loser = answers[1 - winner]
        assert loser.headers["location"] == location
        assert acknowledged(loser) in {0, size}
        assert errors_of(loser)
        digest = digest_of(bodies[winner])
        done = two[1 - winner].http.put(with_digest(location, digest))
        assert done.status_code == 201, done.text
        assert two[winner].blob(digest) == bodies[winner]


def test_a_session_that_is_being_sent_to_is_busy_at_the_other_server(
    two: tuple[Repository, Repository], root: Path, numbers: random.Random
) -> None:
    one, other = two
    data = noise(numbers, 6 << 20)
    location = one.open_upload()
    port = one.http.base_url.port
    assert port is not None
    with SlowRequest(port, "PATCH", location, length=len(data)) as slow:
        slow.send(data[: 4 << 20])
        wait_for(lambda: received(root, location) >= 1 << 20, "the first bytes in the store")
        for answer in (
            other.http.patch(location, content=b"x" * 100),
            other.http.put(with_digest(location, digest_of(b"x")), content=b"x"),
            other.http.delete(location),
        ):
            assert answer.status_code == 416
            assert answer.headers["range"] == "0-0"
            assert errors_of(answer) == ["BLOB_UPLOAD_INVALID"]
        assert other.http.get(location).status_code == 204
        slow.send(data[4 << 20 :])
        assert slow.answer().status == 202
    assert other.http.put(with_digest(location, digest_of(data))).status_code == 201
    assert one.blob(digest_of(data)) == data


def test_a_client_that_leaves_can_go_on_at_the_other_server(
    two: tuple[Repository, Repository], numbers: random.Random
) -> None:
    one, other = two
    data = noise(numbers, 5_000_000)
    location = one.open_upload()
    port = one.http.base_url.port
    assert port is not None
    with SlowRequest(port, "PATCH", location, length=len(data)) as slow:
        slow.send(data[:3_456_789])
    # Every byte that arrived is kept.
    wait_for(lambda: acknowledged(other.http.get(location)) == 3_456_789, "what arrived")
    assert other.http.patch(location, content=data[3_456_789:]).status_code == 202
    assert one.http.put(with_digest(location, digest_of(data))).status_code == 201


@contextmanager
def connection_to(server: Server, worker: int) -> Generator[HTTPConnection]:
    """Open a connection that `worker` accepts, for the others are not let run meanwhile."""
    others = [pid for pid in server.workers if pid != worker]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        # Each worker has connections of its own, so some wait at those that are stopped.
        for _ in range(60):
            connection = HTTPConnection("127.0.0.1", server.port, timeout=1)
            try:
                connection.request("GET", "/v2/")
                connection.getresponse().read()
            except TimeoutError:
                connection.close()
                continue
            break
        else:
            raise AssertionError("no connection comes to the worker")
        assert connection.sock is not None
        connection.sock.settimeout(60)
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)
    with closing(connection):
        yield connection


def test_each_request_of_an_upload_may_reach_another_worker(root: Path, numbers: random.Random) -> None:
    data = noise(numbers, 4_000_000)
    digest = digest_of(data)
    with moorage(root, workers=2) as server:
        wait_for(lambda: len(server.workers) == 2, "two workers")
        first, second = server.workers
        with connection_to(server, first) as one, connection_to(server, second) as other:

            def ask(to: HTTPConnection, method: str, url: str, body: bytes = b"") -> tuple[int, str]:
                to.request(method, url, body=body, headers=OCTETS)
                answer = to.getresponse()
                answer.read()
                return answer.status, answer.headers["location"]

            status, location = ask(one, "POST", f"/v2/{NAME}/blobs/uploads/")
            assert status == 202
            assert ask(other, "PATCH", location, data[:1_000_000])[0] == 202
            assert ask(one, "PATCH", location, data[1_000_000:3_000_000])[0] == 202
            assert ask(other, "PATCH", location, data[3_000_000:])[0] == 202
            assert ask(one, "PUT", with_digest(location, digest))[0] == 201
        # The supervisor took no stopped worker for a dead one.
        assert server.workers == [first, second]
        with http(server.url) as client:
            assert Repository(client, NAME).blob(digest) == data


# ---- who serves a connection


def connections_of(worker: int) -> int:
    """Return how many sockets of clients a process has open."""
    own = [os.readlink(link) for link in Path(f"/proc/{worker}/fd").iterdir() if link.exists() or link.is_symlink()]
    ends = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "01"}
    return sum(each.removeprefix("socket:[").rstrip("]") in ends for each in own)


def answered(server: Server, count: int) -> list[HTTPConnection]:
    """Return connections, kept open, on each of which a request was answered."""
    clients = [HTTPConnection("127.0.0.1", server.port, timeout=60) for _ in range(count)]
    for client in clients:
        client.request("GET", "/v2/")
        assert client.getresponse().read() == b"{}"
    return clients


def test_no_worker_has_many_more_connections_than_another(root: Path, tmp_path: Path) -> None:
    with configured(root, workers=3, plugins=patient_workers(tmp_path)) as server, ExitStack() as kept:
        server.wait_for_workers(3)
        for client in answered(server, 90):
            kept.callback(client.close)
        shares = [connections_of(worker) for worker in server.workers]
        assert sum(shares) == 90
        # Who has more than an eighth more than another takes none.
        assert max(shares) <= min(shares) + min(shares) // 8 + 1, shares


def test_a_worker_that_hangs_keeps_no_client_waiting(root: Path) -> None:
    with moorage(root, workers=2) as server, ExitStack() as kept:
        server.wait_for_workers(2)
        hangs, serves = server.workers
        os.kill(hangs, signal.SIGSTOP)
        try:
            for client in answered(server, 50):
                kept.callback(client.close)
            assert connections_of(serves) == 50
        finally:
            os.kill(hangs, signal.SIGCONT)


# ---- the end


def test_an_idle_connection_holds_up_no_end(root: Path) -> None:
    with configured(root, workers=2, http={"draintimeout": "10m"}) as server, http(server.url) as client:
        for _ in range(2):
            assert client.get("/v2/").status_code == 200
        with socket.create_connection(("127.0.0.1", server.port)) as silent:
            # Accepted before the next one is answered, by one worker or the other.
            assert silent.fileno() >= 0
            assert client.get("/v2/").status_code == 200
            assert server.terminate() == 0


def drained(server: Server) -> Callable[[], bool]:
    """Tell the server to stop; return what says whether it has ended."""
    server.process.send_signal(signal.SIGTERM)
    wait_for(server.refuses, "new connections being refused")
    return lambda: server.process.poll() is not None


def test_a_stop_lets_a_slow_download_end_and_refuses_others(root: Path, numbers: random.Random) -> None:
    data = noise(numbers, 48 << 20)
    with configured(root, workers=2, http={"draintimeout": "10m"}) as server, http(server.url) as client:
        digest = Repository(client, NAME).push(data)
        with SlowRequest(server.port, "GET", f"/v2/{NAME}/blobs/{digest}", receive_buffer=64 << 10) as slow:
            answer = slow.answer()
            begun = answer.read(1 << 20)
            ended = drained(server)
            assert not ended()
            assert begun + answer.read() == data
        assert server.process.wait(30) == 0


def test_a_stop_lets_a_slow_upload_end(root: Path, numbers: random.Random) -> None:
    data = noise(numbers, 8 << 20)
    with configured(root, http={"draintimeout": "10m"}) as server, http(server.url) as client:
        location = Repository(client, NAME).open_upload()
        with SlowRequest(server.port, "PATCH", location, length=len(data)) as slow:
            slow.send(data[: 4 << 20])
            wait_for(lambda: received(root, location) >= 1 << 20, "the first bytes in the store")
            ended = drained(server)
            assert not ended()
            slow.send(data[4 << 20 :])
            answer = slow.answer()
            assert answer.status == 202
            assert answer.headers["range"] == f"0-{len(data) - 1}"
        assert server.process.wait(30) == 0
    with moorage(root) as server, http(server.url) as client:
        assert client.put(with_digest(location, digest_of(data))).status_code == 201


def test_a_stop_waits_no_longer_than_draintimeout_and_keeps_what_it_received(
    root: Path, numbers: random.Random
) -> None:
    data = noise(numbers, 32 << 20)
    sent = (4 << 20) + 12_345
    with configured(root, workers=2, http={"draintimeout": "1s"}) as server, http(server.url) as client:
        repository = Repository(client, NAME)
        digest = repository.push(data)
        location = repository.open_upload()
        with (
            SlowRequest(server.port, "PATCH", location, length=len(data)) as upload,
            SlowRequest(server.port, "GET", f"/v2/{NAME}/blobs/{digest}", receive_buffer=64 << 10) as download,
        ):
            upload.send(data[:sent])
            assert download.answer().status == 200
            wait_for(lambda: received(root, location) >= 3 << 20, "the bytes in the store")
            workers = server.workers
            # Neither client does anything more.
            assert server.terminate() == 0
            assert not any(map(is_alive, workers))
    with moorage(root) as server, http(server.url) as client:
        repository = Repository(client, NAME)
        state = client.get(location)
        assert state.status_code == 204, state.text
        assert acknowledged(state) == sent
        assert client.patch(location, content=data[sent:]).status_code == 202
        assert client.put(with_digest(location, digest)).status_code == 201
        assert repository.blob(digest) == data

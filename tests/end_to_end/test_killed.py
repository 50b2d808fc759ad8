"""Moorage is killed in the middle of its work, again and again, and keeps what it said it has.

The moments are random; the seed is printed, and `MOORAGE_TEST_SEED` sets it.
"""

import os
import random
import secrets
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from pushing import Repository, acknowledged, catalog, digest_of, fits, image, noise, references, with_digest
from servers import Server, http, is_alive, moorage, wait_for

ROUNDS = 50
# Both engines lose nothing by the same means; so for the second one fewer kills will do.
STOCK_ROUNDS = 10
CLIENTS = 4

pytestmark = pytest.mark.usefixtures("http_engine")


@pytest.fixture
def seed() -> int:
    chosen = int(os.environ.get("MOORAGE_TEST_SEED") or secrets.randbelow(1 << 32))
    print(f"MOORAGE_TEST_SEED={chosen}")
    return chosen


@dataclass
class Begun:
    """An upload session whose PUT was not answered.

    Attributes:
        location: its URL.
        data: all that belongs into it.
        acknowledged: how many bytes the server said it has.
        closing: whether the PUT was sent.
    """

    location: str
    data: bytes
    acknowledged: int = 0
    closing: bool = False


@dataclass
class Said:
    """What the server said to one client.

    Attributes:
        repository: where the client pushes to.
        blobs: those answered with 201, by digest.
        manifests: those answered with 201, by digest.
        tags: the digest of each tag that was answered with 201, and what it may mean as well, if the last push of
            it was not answered.
        begun: the session at work when the server went.
        count: of answers.
    """

    repository: str
    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    manifests: dict[str, bytes] = field(default_factory=dict[str, bytes])
    tags: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    begun: Begun | None = None
    count: int = 0


class Pusher:
    """A client that pushes images as long as the server lets it, each blob in another way."""

    def __init__(self, url: str, said: Said, numbers: random.Random) -> None:
        self._url = url
        self._said = said
        self._numbers = numbers

    def push_until(self, stop: threading.Event) -> None:
        """Push until `stop` is set, or the server does not answer."""
        with suppress(httpx.TransportError), http(self._url) as client:
            repository = Repository(client, self._said.repository)
            while not stop.is_set():
                self.push_image(repository)

    def push_image(self, repository: Repository) -> None:
        """Push an image of two layers; what is answered is noted."""
        said, numbers = self._said, self._numbers
        ways = [self._at_once, self._chunked, self._by_put]
        layers = [noise(numbers, numbers.randrange(2, 60_000)), noise(numbers, numbers.randrange(60_000, 2_500_000))]
        config = noise(numbers, 50)
        for data in (config, *layers):
            numbers.choice(ways)(repository, data)
            said.blobs[digest_of(data)] = data
            said.count += 1
        manifest = image(layers, config)
        digest = digest_of(manifest)
        tag = f"t{numbers.randrange(4)}"
        # It may get through without an answer.
        said.tags.setdefault(tag, {""}).add(digest)
        self._answered(repository.put(tag, manifest), 201)
        said.tags[tag] = {digest}
        said.manifests[digest] = manifest
        said.count += 1

    def _answered(self, answer: httpx.Response, status: int) -> httpx.Response:
        assert answer.status_code == status, answer.text
        return answer

    def _at_once(self, repository: Repository, data: bytes) -> None:
        self._answered(repository.push_at_once(data), 201)

    def _by_put(self, repository: Repository, data: bytes) -> None:
        begun = self._said.begun = Begun(repository.open_upload(), data)
        self._close(repository, begun, data)

    def _chunked(self, repository: Repository, data: bytes) -> None:
        begun = self._said.begun = Begun(repository.open_upload(), data)
        step = max(2, len(data) // self._numbers.randrange(1, 5))
        for start in range(0, len(data) - step, step):
            answer = self._answered(repository.http.patch(begun.location, content=data[start : start + step]), 202)
            begun.acknowledged = acknowledged(answer)
            assert begun.acknowledged == start + step
            self._said.count += 1
        self._close(repository, begun, data[begun.acknowledged :])

    def _close(self, repository: Repository, begun: Begun, rest: bytes) -> None:
        begun.closing = True
        self._answered(repository.http.put(with_digest(begun.location, digest_of(begun.data)), content=rest), 201)
        self._said.begun = None


@contextmanager
def pushing(clients: list[Pusher], stop: threading.Event) -> Generator[None]:
    """Let `clients` push while the block runs; what one of them finds wrong is raised at the end."""
    wrong: list[BaseException] = []

    def work(client: Pusher) -> None:
        try:
            client.push_until(stop)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        # Also when the block waited in vain for a client that had found something wrong.
        if wrong:
            raise wrong[0]


def assert_kept(client: httpx.Client, said: Said) -> None:
    """Check that everything that was acknowledged is there, and that nothing half-written is seen."""
    repository = Repository(client, said.repository)
    for digest, data in said.blobs.items():
        assert repository.blob(digest) == data
    for digest, manifest in said.manifests.items():
        assert repository.manifest(digest) == manifest
    listed = repository.tags()
    for tag, meanings in said.tags.items():
        assert tag in listed or "" in meanings, f"the tag {tag} is lost"
    for tag in listed:
        # Whatever is listed can be pulled, whole.
        manifest = repository.manifest(tag)
        assert digest_of(manifest) in said.tags[tag], f"the tag {tag} means what was never pushed to it, or no more"
        for digest in set(references(manifest)) - set(said.blobs):
            repository.blob(digest)


def go_on(client: httpx.Client, said: Said) -> str:
    """End the upload that was interrupted, from the byte that the server says it has; return what was the case."""
    begun = said.begun
    if begun is None:
        return "none"
    repository = Repository(client, said.repository)
    digest = digest_of(begun.data)
    state = client.get(begun.location)
    if state.status_code == 404:
        # Only an upload whose end was asked for may have ended.
        assert begun.closing
        assert repository.blob(digest) == begun.data
        said.blobs[digest] = begun.data
        return "ended"
    assert state.status_code == 204, state.text
    offset = acknowledged(state)
    assert begun.acknowledged <= offset <= len(begun.data)
    rest = begun.data[offset:]
    if rest:
        patched = client.patch(
            begun.location, content=rest, headers={"content-range": f"{offset}-{len(begun.data) - 1}"}
        )
        assert patched.status_code == 202, patched.text
        assert acknowledged(patched) == len(begun.data)
    done = client.put(with_digest(begun.location, digest))
    assert done.status_code == 201, done.text
    assert client.get(begun.location).status_code == 404
    assert repository.blob(digest) == begun.data
    said.blobs[digest] = begun.data
    return "resumed" if begun.acknowledged else "resumed at 0"


def test_what_was_acknowledged_outlives_fifty_kills(tmp_path: Path, seed: int, http_engine: str) -> None:
    numbers = random.Random(seed)
    rounds = ROUNDS if http_engine == "moorage" else STOCK_ROUNDS
    root = tmp_path / "root"
    ever: list[Said] = []
    latest: list[Said] = []
    outcomes: dict[str, int] = {}
    for at in range(rounds + 1):
        with moorage(root, workers=2) as server, http(server.url) as client:
            for said in latest:
                outcome = go_on(client, said)
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
                assert_kept(client, said)
            if at == rounds:
                for said in ever[::7]:
                    assert_kept(client, said)
                assert catalog(client) <= {said.repository for said in ever}
                break
            latest = [Said(f"round{at}/client{number}") for number in range(CLIENTS)]
            ever += latest
            clients = [Pusher(server.url, said, random.Random(numbers.random())) for said in latest]
            enough = numbers.randrange(0, 25)
            with pushing(clients, threading.Event()):
                wait_for(lambda: sum(said.count for said in latest) >= enough, "the moment to kill")  # noqa: B023 - at once
                # Somewhere into what is at work now.
                threading.Event().wait(numbers.uniform(0, 0.02))
                server.kill()
    print(outcomes, sum(len(said.blobs) for said in ever), "blobs")
    assert outcomes.get("resumed") or rounds < ROUNDS, (
        "no upload was interrupted between two chunks; more rounds are needed"
    )
    assert_nothing_half_written(root)


def assert_nothing_half_written(root: Path) -> None:
    """Check that each file that is seen as content has the digest of its name, and that links are whole."""
    for data in (root / "docker/registry/v2/blobs").rglob("data"):
        assert fits(data.read_bytes(), f"{data.parts[-4]}:{data.parts[-2]}")
    for link in (root / "docker/registry/v2/repositories").rglob("link"):
        assert len(link.read_bytes()) == len("sha256:") + 64


class Patient(Pusher):
    """A client that tries again when a connection breaks, as real ones do."""

    def push_until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            super().push_until(stop)


def counted(clients: list[Said]) -> int:
    return sum(said.count for said in clients)


def grown(clients: list[Said], by: int) -> Callable[[], bool]:
    target = counted(clients) + by
    return lambda: counted(clients) >= target


def test_a_worker_killed_under_load_is_replaced_and_nothing_is_lost(tmp_path: Path, seed: int) -> None:
    numbers = random.Random(seed)
    sayings = [Said(f"client{number}") for number in range(CLIENTS)]
    with moorage(tmp_path / "root", workers=2) as server:
        clients: list[Pusher] = [Patient(server.url, said, random.Random(numbers.random())) for said in sayings]
        wait_for(lambda: len(server.workers) == 2, "two workers")
        with pushing(clients, threading.Event()):
            for _ in range(3):
                wait_for(grown(sayings, 12), "pushes")
                before = server.workers
                victim = numbers.choice(before)
                os.kill(victim, signal.SIGKILL)
                wait_for(grown(sayings, 4), "pushes while a worker is missing")
                wait_for(lambda: len(server.workers) == 2, "the place of the killed worker taken")
                after = server.workers
                assert victim not in after
                assert len(set(before) & set(after)) == 1
            wait_for(grown(sayings, 8), "pushes")
        with http(server.url) as client:
            for said in sayings:
                assert_kept(client, said)
        assert server.process.poll() is None
        workers = server.workers
        assert server.terminate() == 0
        assert not any(map(is_alive, workers))


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with moorage(tmp_path / "root", workers=2) as server, http(server.url) as client:
        wait_for(lambda: len(server.workers) == 2, "two workers")
        workers = server.workers
        # A connection that is open and idle keeps no worker.
        assert client.get("/v2/").status_code == 200
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait(10)
        wait_for(lambda: not any(map(is_alive, workers)), "the end of the workers")
        assert server.refuses()


def test_the_exit_code_says_that_a_stop_was_asked_for(tmp_path: Path) -> None:
    for sign in (signal.SIGTERM, signal.SIGINT):
        with moorage(tmp_path / "root", workers=2) as server:
            assert end_by(server, sign) == 0


def end_by(server: Server, sign: signal.Signals) -> int:
    server.process.send_signal(sign)
    return server.process.wait(30)

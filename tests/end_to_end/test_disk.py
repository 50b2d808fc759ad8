"""A disk that is full or read-only, and a process without descriptors: said precisely, and nothing is lost.

Tests run as root, to whom permissions mean nothing; so the disks are made by mounts, in a namespace of the server's own.
"""

import contextlib
import itertools
import os
import random
import resource
import shlex
import socket
import subprocess
from collections.abc import Callable, Generator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from pushing import Repository, acknowledged, catalog, digest_of, errors_of, image, noise, references, with_digest
from servers import http, moorage, wait_for

NAME = "team/app"
MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def numbers() -> random.Random:
    return random.Random(9)


@pytest.fixture
def mounts(tmp_path: Path) -> None:
    """Make sure that a process may mount something that only it sees."""
    trial = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    tried = subprocess.run(trial, capture_output=True, text=True)
    if tried.returncode == 0:
        return
    sentence = f"not tested, because nothing can be mounted here: {tried.stderr.strip()}"
    if os.environ.get("CI") == "true":
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)


def mounted(command: str) -> list[str]:
    """Return what runs a server after `command`, in a mount namespace of its own."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{command}; exec "$0" "$@"']


def tmpfs(root: Path, options: str) -> list[str]:
    return mounted(f"mount -t tmpfs -o {options} tmpfs {shlex.quote(str(root))}")


def chunked_push(repository: Repository, data: bytes) -> httpx.Response:
    """Push by PATCH and PUT; return the first answer that is not as it should be, or the last."""
    location = repository.open_upload()
    sent = repository.http.patch(location, content=data)
    if sent.status_code != 202:
        assert repository.http.delete(location).status_code == 204
        return sent
    return repository.http.put(with_digest(location, digest_of(data)))


def put_push(repository: Repository, data: bytes) -> httpx.Response:
    location = repository.open_upload()
    done = repository.http.put(with_digest(location, digest_of(data)), content=data)
    if done.status_code != 201:
        assert repository.http.delete(location).status_code == 204
    return done


PUSHES = pytest.mark.parametrize(
    "push",
    [Repository.push_at_once, chunked_push, put_push],
    ids=["single-post", "patch", "put"],
)

pytestmark = [pytest.mark.needs_tool("unshare", "mount"), pytest.mark.usefixtures("http_engine")]


@pytest.fixture
def small_disk(mounts: None, root: Path) -> Generator[Repository]:
    """A repository on a disk of 12 MiB, with an image of 1 MiB."""
    with moorage(root, around=tmpfs(root, "size=12m")) as server, http(server.url) as client:
        yield Repository(client, NAME)


@PUSHES
def test_a_push_that_fills_the_disk_is_refused_and_takes_nothing_with_it(
    small_disk: Repository, numbers: random.Random, push: Callable[[Repository, bytes], httpx.Response]
) -> None:
    kept = small_disk.push_image("kept", [noise(numbers, MIB)])
    large = noise(numbers, 24 * MIB)
    for _ in range(3):
        refused = push(small_disk, large)
        assert refused.status_code == 507
        assert errors_of(refused) == ["UNAVAILABLE"]
        assert small_disk.http.head(small_disk.blob_url(digest_of(large))).status_code == 404
        assert small_disk.pull_image("kept") == kept
        # What it took is free again.
        fits = noise(numbers, 2 * MIB)
        done = push(small_disk, fits)
        assert done.status_code == 201, done.text
        assert small_disk.blob(digest_of(fits)) == fits
    assert small_disk.push_image("later", [noise(numbers, 1000)])
    assert small_disk.tags() == {"kept", "later"}


def test_on_a_full_disk_pulls_and_deletes_go_on(small_disk: Repository, numbers: random.Random) -> None:
    client = small_disk.http
    kept = small_disk.push_image("kept", [noise(numbers, MIB)])
    doomed = small_disk.push_image("doomed", [noise(numbers, 1000)])
    location = small_disk.open_upload()
    # Filled by a session, which keeps what it has.
    size = 0
    while (sent := client.patch(location, content=noise(numbers, 3 * MIB))).status_code == 202:
        size = acknowledged(sent)
    assert sent.status_code == 507
    assert errors_of(sent) == ["UNAVAILABLE"]
    assert acknowledged(client.get(location)) >= size
    for refused in (
        small_disk.push_at_once(noise(numbers, 2 * MIB)),
        small_disk.put("new", image([], noise(numbers, 2), annotations={"x": "y" * 3 * MIB})),
    ):
        assert refused.status_code in {507, 400}
        assert errors_of(refused)
    assert small_disk.pull_image("kept") == kept
    assert catalog(client) == {NAME}
    assert client.delete(small_disk.manifest_url("doomed")).status_code == 202
    assert client.delete(small_disk.manifest_url(digest_of(doomed))).status_code == 202
    assert client.delete(small_disk.blob_url(references(doomed)[1])).status_code == 202
    assert small_disk.tags() == {"kept"}
    assert client.delete(location).status_code == 204
    assert small_disk.push_image("after", [noise(numbers, 3 * MIB)])
    assert small_disk.pull_image("kept") == kept


def fill(folder: Path) -> None:
    """Take every byte and every inode that the disk of `folder` has left."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    with contextlib.suppress(OSError):
        for at in itertools.count():
            (folder / f"filler{at}").touch()


def test_on_a_disk_that_is_full_to_the_last_inode_pulls_and_deletes_go_on(
    mounts: None, root: Path, numbers: random.Random
) -> None:
    with moorage(root, around=tmpfs(root, "size=12m,nr_inodes=2000")) as server, http(server.url) as client:
        repository = Repository(client, NAME)
        kept = repository.push_image("kept", [noise(numbers, MIB)])
        pushed = [repository.push(noise(numbers, 10)) for _ in range(20)]
        doomed = [repository.push_image(f"doomed{at}", [noise(numbers, 10)]) for at in range(20)]
        location = repository.open_upload()
        # The server's disk, as it sees it.
        fill(Path(f"/proc/{server.workers[0]}/root{root}"))
        for refused in (
            repository.push_at_once(noise(numbers, MIB)),
            client.post(f"/v2/{NAME}/blobs/uploads/"),
            repository.put("new", image([], annotations={"new": "yes"})),
            client.patch(location, content=b"some"),
        ):
            assert refused.status_code == 507, refused.text
            assert errors_of(refused) == ["UNAVAILABLE"]
        assert repository.pull_image("kept") == kept
        for digest in pushed:
            assert client.delete(repository.blob_url(digest)).status_code == 202
        for at, manifest in enumerate(doomed):
            reference = digest_of(manifest) if at % 2 else f"doomed{at}"
            assert client.delete(repository.manifest_url(reference)).status_code == 202
        assert client.delete(location).status_code == 204
        assert repository.tags() == {"kept"}
        assert repository.pull_image("kept") == kept


def test_a_read_only_root_is_pulled_from_and_refuses_every_push(
    mounts: None, root: Path, numbers: random.Random
) -> None:
    with moorage(root) as server, http(server.url) as client:
        repository = Repository(client, NAME)
        kept = repository.push_image("kept", [noise(numbers, MIB)])
        layer = references(kept)[1]
        location = repository.open_upload()
        assert client.patch(location, content=b"some").status_code == 202
    folder = shlex.quote(str(root))
    read_only = mounted(f"mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}")
    with moorage(root, around=read_only) as server, http(server.url) as client:
        repository = Repository(client, NAME)
        new = noise(numbers, 100_000)
        refused = [
            client.post(f"/v2/{NAME}/blobs/uploads/"),
            repository.push_at_once(new),
            client.post(f"/v2/other/blobs/uploads/?mount={layer}&from={NAME}"),
            client.patch(location, content=b"more"),
            client.put(with_digest(location, digest_of(b"some"))),
            client.delete(location),
            repository.put("kept", kept),
            repository.put("new", kept),
            client.delete(repository.manifest_url("kept")),
            client.delete(repository.manifest_url(digest_of(kept))),
            client.delete(repository.blob_url(layer)),
        ]
        for answer in refused:
            assert answer.status_code == 503, (answer.request.method, answer.request.url, answer.text)
            assert errors_of(answer) == ["UNAVAILABLE"]
            assert answer.headers["retry-after"]
            assert repository.pull_image("kept") == kept
        assert repository.tags() == {"kept"}
        assert catalog(client) == {NAME}
        assert repository.referrers(digest_of(kept)) == []
        assert acknowledged(client.get(location)) == 4
    # Nothing was lost, and nothing half done, by all that was refused.
    with moorage(root) as server, http(server.url) as client:
        repository = Repository(client, NAME)
        assert repository.tags() == {"kept"}
        assert repository.pull_image("kept") == kept
        assert client.patch(location, content=b" more").status_code == 202
        assert client.put(with_digest(location, digest_of(b"some more"))).status_code == 201


# ---- descriptors

DESCRIPTORS = 64


def test_without_descriptors_requests_are_refused_or_wait_and_are_served_later(
    root: Path, numbers: random.Random
) -> None:
    limit = ["sh", "-ec", f'ulimit -n {DESCRIPTORS}; exec "$0" "$@"']
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 4 * DESCRIPTORS
    with moorage(root, around=limit) as server, http(server.url) as client, ExitStack() as stack:
        repository = Repository(client, NAME)
        kept = repository.push_image("kept", [noise(numbers, 1000)])
        (worker,) = server.workers
        first = HTTPConnection("127.0.0.1", server.port, timeout=60)
        stack.callback(first.close)
        blob = repository.blob_url(references(kept)[1])

        def status_and_type() -> tuple[int, str | None]:
            first.request("GET", blob)
            answer = first.getresponse()
            answer.read()
            return answer.status, answer.getheader("content-type")

        assert status_and_type() == (200, "application/octet-stream")
        crowd: list[socket.socket] = []
        for _ in range(2 * DESCRIPTORS):
            each = socket.create_connection(("127.0.0.1", server.port), timeout=60)
            stack.callback(each.close)
            each.sendall(b"GET /v2/ HTTP/1.1\r\nHost: registry\r\n\r\n")
            crowd.append(each)
        wait_for(
            lambda: len(list(Path(f"/proc/{worker}/fd").iterdir())) == DESCRIPTORS, "the last descriptor being taken"
        )
        # Who is connected hears what is the matter.
        assert status_and_type() == (503, "application/json")
        # Everybody is served as soon as others leave.
        for each in crowd:
            assert each.recv(1 << 16).startswith(b"HTTP/1.1 200")
            each.close()
        assert status_and_type() == (200, "application/octet-stream")
        assert repository.pull_image("kept") == kept
        assert repository.push_image("after", [noise(numbers, 1000)])
        assert server.workers == [worker]

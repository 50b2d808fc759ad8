"""What holds of quotas and limits over several worker processes: quotas as one, limits as each process counts."""

import random
import select
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import TypeVar

import bcrypt
import httpx
import msgspec
import pytest

from moorage_middleware.quota import Used
from pushing import Repository, SlowRequest, digest_of, image, noise
from servers import (
    Server,
    configuration,
    configured,
    free_port,
    http,
    moorage,
    patient_workers,
    wait_for,
    write_configuration,
)

WORKERS = 3
CLIENTS = 12
NAME = "team/app"
KIB = 1 << 10
BUSY = {429, 503}
T = TypeVar("T")


def all_at_once(do: Callable[[httpx.Client, T], int], things: Iterable[T], server: Server) -> list[int]:
    """Have many clients, each with connections of its own, do one thing after the other; return the answers in order."""
    local = threading.local()
    clients: list[httpx.Client] = []

    def one(thing: T) -> int:
        client: httpx.Client | None = getattr(local, "client", None)
        if client is None:
            client = local.client = http(server.url)
            clients.append(client)
        status = do(client, thing)
        while status in BUSY:
            status = do(client, thing)
        return status

    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            return list(pool.map(one, things))
    finally:
        for client in clients:
            client.close()


def used(folder: Path) -> Used:
    """Return what the store says is used of the one quota."""
    (file,) = [path for path in folder.glob("root/plugins/quota/*") if path.is_file()]
    return msgspec.json.decode(file.read_bytes(), type=Used)


def wait_until_counted(server: Server, folder: Path) -> None:
    wait_for(lambda: len(server.workers) == WORKERS, "all workers")
    wait_for(lambda: list(folder.glob("root/plugins/quota/*")) and used(folder).counted, "the first count")


def quota(*, recount: str = "24h", **limit: object) -> dict[str, object]:
    return {"quota": {"limits": [{"repositories": "team/**", **limit}], "recount": recount}}


# ---- quotas


def push_whole(client: httpx.Client, data: bytes) -> int:
    return Repository(client, NAME).push_at_once(data).status_code


def push_in_a_session(client: httpx.Client, data: bytes) -> int:
    location = Repository(client, NAME).open_upload()
    location = client.patch(location, content=data[:KIB]).headers["location"]
    url = f"{location}{'&' if '?' in location else '?'}digest={digest_of(data)}"
    # In chunks, so that nobody announces how much there will be.
    return client.put(url, content=iter([data[KIB:]])).status_code


@pytest.mark.parametrize("push", [push_whole, push_in_a_session], ids=lambda push: push.__name__)
def test_bytes_hold_to_the_byte_over_all_workers(push: Callable[[httpx.Client, bytes], int], tmp_path: Path) -> None:
    blobs = [noise(random.Random(seed), 20 * KIB) for seed in range(60)]
    with configured(tmp_path / "root", workers=WORKERS, plugins=quota(bytes=25 * 20 * KIB + 19)) as server:
        wait_until_counted(server, tmp_path)
        answers = all_at_once(push, blobs, server)
        assert sorted(set(answers)) == [201, 403]
        assert answers.count(201) == 25
        assert (used(tmp_path).bytes, used(tmp_path).tags) == (25 * 20 * KIB, 0)
        with http(server.url) as client:
            repository = Repository(client, NAME)
            for data, answer in zip(blobs, answers, strict=True):
                there = client.head(repository.blob_url(digest_of(data))).status_code
                assert there == (200 if answer == 201 else 404)
            # What is deleted gives room to as much, and no more.
            kept = [data for data, answer in zip(blobs, answers, strict=True) if answer == 201]
            for data in kept[:5]:
                assert client.delete(repository.blob_url(digest_of(data))).status_code == 202
        again = [noise(random.Random(seed), 20 * KIB) for seed in range(100, 130)]
        assert all_at_once(push, again, server).count(201) == 5
        assert used(tmp_path).bytes == 25 * 20 * KIB


def test_one_blob_that_many_push_at_once_stays_and_is_counted_right_later(tmp_path: Path) -> None:
    data = noise(random.Random(1), 100 * KIB)
    with configured(tmp_path / "root", workers=WORKERS, plugins=quota(bytes=150 * KIB)) as server:
        wait_until_counted(server, tmp_path)
        answers = all_at_once(push_whole, [data] * 40, server)
        # Counted twice it is too much, so some may be refused; who was told that it is there was told the truth.
        assert set(answers) <= {201, 403}
        assert 201 in answers
        assert used(tmp_path).bytes <= 150 * KIB
        with http(server.url) as client:
            assert Repository(client, NAME).blob(digest_of(data)) == data
    with configured(tmp_path / "root", workers=WORKERS, plugins=quota(bytes=150 * KIB, recount="1s")):
        wait_for(lambda: used(tmp_path).bytes == 100 * KIB, "everything counted again")


def test_tags_hold_over_all_workers(tmp_path: Path) -> None:
    with configured(tmp_path / "root", workers=WORKERS, plugins=quota(tags=25)) as server:
        wait_until_counted(server, tmp_path)
        with http(server.url) as client:
            Repository(client, NAME).push(b"{}")
        manifest = image([])

        def tag(client: httpx.Client, number: int) -> int:
            return Repository(client, NAME).put(f"v{number}", manifest).status_code

        answers = all_at_once(tag, range(60), server)
        assert sorted(set(answers)) == [201, 403]
        with http(server.url) as client:
            repository = Repository(client, NAME)
            there = {f"v{number}" for number, answer in enumerate(answers) if answer == 201}
            assert repository.tags() == there
            assert len(there) == used(tmp_path).tags == 25
            # A tag that is there is no new one.
            moved = image([], annotations={"n": "1"})
            assert {repository.put(each, moved).status_code for each in there} == {201}
            for each in sorted(there)[:5]:
                assert client.delete(repository.manifest_url(each)).status_code == 202
        assert all_at_once(tag, range(100, 130), server).count(201) == 5
        assert used(tmp_path).tags == 25


# ---- limits


def limited(folder: Path, whose: str, **budget: object) -> dict[str, Mapping[str, object]]:
    """Return the sections that limit each address, or each user, of whom there is one."""
    if whose == "address":
        return {"limits": {"address": budget}}
    file = folder / "htpasswd"
    file.write_bytes(b"ann:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)) + b"\n")
    return {"limits": {"user": budget}, "auth": {"htpasswd": {"realm": "here", "path": str(file)}}}


def serving(folder: Path, sections: Mapping[str, Mapping[str, object]]) -> AbstractContextManager[Server]:
    port = free_port()
    settings = configuration(folder / "root", port, **sections)
    return moorage(write_configuration(folder / "config.yml", settings), port=port, workers=WORKERS)


ANN = {"Authorization": "Basic YW5uOnNlY3JldA=="}


@pytest.mark.parametrize("whose", ["address", "user"])
def test_each_worker_counts_requests_for_itself(whose: str, tmp_path: Path) -> None:
    sections = limited(tmp_path, whose, rate=0.001, burst=5)
    with serving(tmp_path, sections) as server:
        server.wait_for_workers(WORKERS)

        def ask(_: object) -> tuple[int, int]:
            """Ask on a connection of its own, which any worker may take; return the status, and when to come again."""
            with closing(HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection:
                connection.request("GET", "/v2/", headers=ANN)
                answer = connection.getresponse()
                return answer.status, int(answer.headers.get("retry-after", 0))

        with http(server.url) as client:
            # One connection is one worker's.
            assert [client.get("/v2/", headers=ANN).status_code for _ in range(8)] == [200] * 5 + [429] * 3
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(ask, range(150)))
        assert {(status, later > 0) for status, later in answers} <= {(200, False), (429, True)}
        assert sum(status == 200 for status, _ in answers) <= 5 * (WORKERS - 1)


@pytest.mark.parametrize("whose", ["address", "user"])
def test_each_worker_counts_uploads_at_once_for_itself(whose: str, tmp_path: Path) -> None:
    most, sent = 2, 20
    sections = {**limited(tmp_path, whose, uploads=most), "plugins": patient_workers(tmp_path)}
    blobs = [noise(random.Random(seed), 4 * KIB) for seed in range(sent)]
    with serving(tmp_path, sections) as server:
        server.wait_for_workers(WORKERS)
        uploads = [Upload(server, data) for data in blobs]
        refused_least = sent - most * WORKERS
        wait_for(lambda: sum(upload.is_answered() for upload in uploads) >= refused_least, "refusals")
        waiting = [upload for upload in uploads if not upload.is_answered()]
        assert {upload.status() for upload in uploads if upload not in waiting} == {429}
        # Each worker has its share of the connections, so each has taken what it may.
        assert len(waiting) == most * WORKERS
        for upload in waiting:
            upload.finish()
        assert {upload.status() for upload in waiting} == {201}
        for upload in uploads:
            upload.close()
        # All places are free again.
        for data in blobs:
            done = httpx.post(
                f"{server.url}/v2/{NAME}/blobs/uploads/",
                params={"digest": digest_of(data)},
                content=data,
                headers=ANN,
                trust_env=False,
            )
            assert done.status_code == 201


class Upload(SlowRequest):
    """A push of a blob of which the first half is sent."""

    def __init__(self, server: Server, data: bytes) -> None:
        url = f"/v2/{NAME}/blobs/uploads/?digest={digest_of(data)}"
        headers = f" HTTP/1.1\r\nAuthorization: {ANN['Authorization']}\r\nX-Rest:"
        super().__init__(server.port, "POST", url + headers, length=len(data))
        self._rest = data[len(data) // 2 :]
        self.send(data[: len(data) // 2])

    def is_answered(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])

    def finish(self) -> None:
        self.send(self._rest)

    def status(self) -> int:
        return self.answer().status


def test_open_uploads_of_a_repository_hold_but_for_one_of_each_further_worker(tmp_path: Path) -> None:
    most = 30

    def open_upload(client: httpx.Client, _: int) -> int:
        status = client.post(f"/v2/{NAME}/blobs/uploads/").status_code
        return 0 if status == 429 else status  # which is no reason to try again

    with configured(tmp_path / "root", workers=WORKERS, limits={"maxopenuploads": most}) as server:
        server.wait_for_workers(WORKERS)
        answers = all_at_once(open_upload, range(90), server)
        assert set(answers) == {202, 0}
        assert most <= answers.count(202) <= most + WORKERS - 1

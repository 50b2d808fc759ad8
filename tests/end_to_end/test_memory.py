"""Content passes through memory in pieces, however large it is."""

import hashlib
import socket
from collections.abc import Generator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from pushing import with_digest
from servers import Server, forget_memory_peak, memory_peak, moorage, wait_for

MIB = 1 << 20
LARGE = 1024 * MIB
SMALL = 48 * MIB
ALLOWED = 64 * MIB
UPLOADS = "/v2/team/app/blobs/uploads/"
BLOCK = hashlib.sha512(b"block").digest() * (MIB // 64)


@pytest.fixture
def server(tmp_path: Path) -> Generator[Server]:
    with moorage(tmp_path / "root") as server:
        yield server
    for data in tmp_path.rglob("data"):
        data.unlink()


def digest_of_blocks(size: int) -> str:
    digest = hashlib.sha256()
    for _ in range(size // MIB):
        digest.update(BLOCK)
    return f"sha256:{digest.hexdigest()}"


def send(server: Server, method: str, url: str, size: int) -> HTTPResponse:
    """Send a request with a body of `size` bytes, none of which is held here; return the answer, read whole."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        connection.putrequest(method, url)
        connection.putheader("Content-Length", str(size))
        connection.putheader("Content-Type", "application/octet-stream")
        connection.endheaders()
        for _ in range(size // MIB):
            connection.send(BLOCK)
        answer = connection.getresponse()
        answer.read()
        return answer
    finally:
        connection.close()


def receive(server: Server, digest: str) -> int:
    """Pull a blob and return how many bytes it has; they have its digest."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as connection:
        connection.sendall(f"GET /v2/team/app/blobs/{digest} HTTP/1.1\r\nHost: registry\r\n\r\n".encode())
        answer = HTTPResponse(connection)
        answer.begin()
        hasher, buffer, count = hashlib.sha256(), bytearray(MIB), 0
        while got := answer.readinto(buffer):
            hasher.update(memoryview(buffer)[:got])
            count += got
        assert f"sha256:{hasher.hexdigest()}" == digest
        return count


def push_in_a_session(server: Server, size: int) -> str:
    digest = digest_of_blocks(size)
    location = send(server, "POST", UPLOADS, 0).headers["location"]
    assert send(server, "PATCH", location, size).status == 202
    assert send(server, "PUT", with_digest(location, digest), 0).status == 201
    return digest


def push_at_once(server: Server, size: int) -> str:
    digest = digest_of_blocks(size)
    assert send(server, "POST", f"{UPLOADS}?digest={digest}", size).status == 201
    return digest


def test_memory_does_not_grow_with_a_blob(server: Server) -> None:
    wait_for(lambda: server.workers, "a worker")
    (worker,) = server.workers
    for push in (push_in_a_session, push_at_once):
        assert receive(server, push(server, SMALL)) == SMALL
    forget_memory_peak(worker)
    baseline = memory_peak(worker)
    grown: dict[str, int] = {}
    digest = push_in_a_session(server, LARGE)
    grown["POST, PATCH, PUT"] = memory_peak(worker) - baseline
    assert push_at_once(server, LARGE) == digest
    grown["single POST"] = memory_peak(worker) - baseline
    assert receive(server, digest) == LARGE
    grown["GET"] = memory_peak(worker) - baseline
    print(f"baseline {baseline / MIB:.1f} MiB;", {way: f"+{size / MIB:.1f} MiB" for way, size in grown.items()})
    assert max(grown.values()) < ALLOWED
    assert server.workers == [worker]

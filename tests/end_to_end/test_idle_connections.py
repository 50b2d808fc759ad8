"""Thousands of clients that say nothing: they take a little memory, nobody else's turn, and hold up no end."""

import resource
import socket
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import pytest

from servers import configured, http, memory_now

MANY = 2_000
PING = b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n"
BYTES_EACH = 32 << 10


@pytest.fixture
def _descriptors() -> Generator[None]:
    """Have room for the connections, here and in the server, which inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MANY + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"no more than {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def answered(connection: socket.socket) -> bool:
    """Return whether a ping is answered with 200."""
    connection.sendall(PING)
    data = b""
    while b"\r\n\r\n{}" not in data:
        more = connection.recv(65536)
        if not more:
            return False
        data += more
    return data.startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("_descriptors")
def test_thousands_of_idle_connections_are_held_beside_those_that_ask(tmp_path: Path) -> None:
    with configured(tmp_path / "root", http={"draintimeout": "10m"}) as server, ExitStack() as stack:
        with http(server.url) as client:
            worker = server.workers[0]
            before = memory_now(worker)
            idle: list[socket.socket] = []
            for at in range(MANY):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
                idle.append(connection)
                if at % 2:
                    # One half asks once and then waits, the other half says nothing at all.
                    assert answered(connection)
                if at % 100 == 0:
                    assert client.get("/v2/").status_code == 200
            # All were accepted, for each is answered.
            assert all(answered(connection) for connection in idle[:: MANY // 50])
            assert memory_now(worker) - before < MANY * BYTES_EACH
            assert server.workers == [worker]
        assert server.terminate() == 0
        for connection in idle:
            assert connection.recv(1) == b""

"""A real server and clients that send or take a little now and then; a plugin makes its patience short."""

import socket
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest

from pushing import digest_of
from servers import (
    END_SECONDS,
    Server,
    configuration,
    free_port,
    http,
    moorage,
    wait_for,
    with_constant,
    write_configuration,
)

MIB = 1 << 20


@pytest.fixture(scope="module", params=["moorage", "stock"])
def engine(request: pytest.FixtureRequest) -> str:
    engine: str = request.param
    return engine


@pytest.fixture(scope="module")
def server(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    folder = tmp_path_factory.mktemp("slow")
    plugins = with_constant(folder, "transports", "STALLED_SECONDS", 1.0)
    port = free_port()
    section = {"addr": f"127.0.0.1:{port}", "engine": engine}
    settings = configuration(folder / "data", port, plugins=plugins, http=section)
    with moorage(write_configuration(folder / "config.yml", settings), port=port) as server:
        yield server
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


def test_an_upload_that_comes_by_drops_ends_and_is_gone_on_with(server: Server, engine: str) -> None:
    content = bytes(1000)
    with http(server.url) as client:
        location = client.post("/v2/a/blobs/uploads/").headers["Location"].removeprefix(server.url)
        with socket.create_connection(("127.0.0.1", server.port), END_SECONDS) as slow:
            slow.sendall(f"PATCH {location} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n\r\n".encode())
            slow.settimeout(0.05)
            answer = b""
            for byte in content:
                with suppress(TimeoutError):
                    answer = slow.recv(MIB)
                    break
                slow.sendall(bytes([byte]))
        # hypercorn says 500 where the application says nothing.
        assert answer.split(b" ")[1] == (b"408" if engine == "moorage" else b"500")
        # What came is put into the store by the end of the request, after its answer.
        wait_for(lambda: client.get(location).headers["Range"] != "0-0", "the bytes that came")
        kept = int(client.get(location).headers["Range"].removeprefix("0-")) + 1
        assert 0 < kept < len(content)
        rest = {"Content-Range": f"{kept}-{len(content) - 1}"}
        gone_on = client.patch(location, content=content[kept:], headers=rest)
        assert gone_on.status_code == 202
        end = client.put(gone_on.headers["Location"], params={"digest": digest_of(content)})
        assert end.status_code == 201


def test_a_client_that_takes_a_blob_by_drops_loses_its_connection(server: Server) -> None:
    content = bytes(32 * MIB)
    with http(server.url) as client:
        assert client.post(f"/v2/a/blobs/uploads/?digest={digest_of(content)}", content=content).status_code == 201
    with socket.create_connection(("127.0.0.1", server.port), END_SECONDS) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        slow.sendall(f"GET /v2/a/blobs/{digest_of(content)} HTTP/1.1\r\nHost: a\r\n\r\n".encode())

        def is_given_up() -> bool:
            assert slow.recv(10)
            return not connections(server)

        wait_for(is_given_up, "the end of the connection", seconds=END_SECONDS)


def connections(server: Server) -> list[str]:
    """Return the connections that the server's end has not given up."""
    local = f":{server.port:04X} "
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return [line for line in lines if local in f"{line.split()[1]} " and line.split()[3] == "01"]

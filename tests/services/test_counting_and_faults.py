"""The proxies leave alone what they are not told to spoil, and spoil what they are told to."""

import socket
import time
from collections.abc import Generator

import httpx
import pytest

from gcs_fake import GCSFake, gcs_fake
from proxies import (
    Action,
    Answer,
    CutBody,
    FaultProxy,
    ResetAfter,
    ResetBefore,
    Stall,
    counting_proxy,
    expired_token,
    fault_proxy,
    matching,
    round_robin_proxy,
    slow_down,
)
from servers import free_port

UPLOADS = "/upload/storage/v1/b/bucket/o"
MEDIA = "/storage/v1/b/bucket/o/key?alt=media"


@pytest.fixture
def service() -> Generator[GCSFake]:
    with gcs_fake() as service:
        service.create_bucket("bucket")
        yield service


@pytest.fixture
def proxy(service: GCSFake) -> Generator[FaultProxy]:
    with fault_proxy(service.url) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Generator[httpx.Client]:
    with httpx.Client(base_url=proxy.url, timeout=60, trust_env=False) as client:
        yield client


def put(client: httpx.Client, data: bytes = b"0123456789") -> httpx.Response:
    return client.post(UPLOADS, params={"uploadType": "media", "name": "key"}, content=data)


def test_what_passes_is_recorded_and_unchanged(service: GCSFake) -> None:
    data = bytes(range(256)) * 4096
    with counting_proxy(service.url) as proxy, httpx.Client(base_url=proxy.url, trust_env=False) as client:
        chunked = client.post(UPLOADS, params={"uploadType": "media", "name": "key"}, content=iter([data, data]))
        assert chunked.status_code == 200
        assert client.get(MEDIA).content == data + data
        assert client.head(MEDIA).headers["Content-Length"] == str(2 * len(data))
        assert client.delete("/storage/v1/b/bucket/o/key").status_code == 204
        asked = [(request.method, request.target) for request in proxy.requests]
        assert asked == [
            ("POST", f"{UPLOADS}?uploadType=media&name=key"),
            ("GET", MEDIA),
            ("HEAD", MEDIA),
            ("DELETE", "/storage/v1/b/bucket/o/key"),
        ]
        proxy.reset()
        assert proxy.requests == ()


def test_the_host_that_a_client_names_is_kept() -> None:
    head = b""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with fault_proxy(url) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as client:
            client.sendall(b"GET /a%2Fb?x=%20 HTTP/1.1\r\nHost: bucket.example\r\n\r\n")
            connection, _ = listener.accept()
            with connection:
                while b"\r\n\r\n" not in head:
                    head += connection.recv(4096)
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 204")
    assert head.startswith(b"GET /a%2Fb?x=%20 HTTP/1.1\r\nHost: bucket.example\r\n")


@pytest.mark.parametrize(("action", "applied"), [(ResetBefore(), False), (ResetAfter(), True)])
def test_a_reset_loses_the_request_or_the_reply(
    action: Action, applied: bool, service: GCSFake, proxy: FaultProxy, client: httpx.Client
) -> None:
    proxy.fault(matching("POST"), action)
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError)):
        put(client)
    assert (service.requests["POST", "upload"] == 1) is applied
    assert client.get(MEDIA).is_success is applied
    assert put(client).status_code == 200
    assert proxy.faults_left == 0


@pytest.mark.parametrize(
    ("answer", "status", "header", "word"),
    [
        (slow_down(), 503, "1", b"SlowDown"),
        (slow_down(429, 7), 429, "7", b"SlowDown"),
        (expired_token(), 400, None, b"ExpiredToken"),
        (expired_token(403), 403, None, b"ExpiredToken"),
    ],
)
def test_an_answer_in_place_of_the_service_is_given_as_often_as_said(
    answer: Answer, status: int, header: str | None, word: bytes, proxy: FaultProxy, client: httpx.Client
) -> None:
    proxy.fault(matching(target="uploadType=media"), answer, times=2)
    for _ in range(2):
        reply = put(client)
        assert (reply.status_code, reply.headers.get("Retry-After")) == (status, header)
        assert word in reply.content
    assert put(client).status_code == 200
    assert len(proxy.requests) == 3


def test_a_body_is_cut_though_its_length_says_more(proxy: FaultProxy, client: httpx.Client) -> None:
    put(client)
    proxy.fault(matching("GET"), CutBody(4))
    with client.stream("GET", MEDIA) as reply:
        assert reply.headers["Content-Length"] == "10"
        got = bytearray()
        with pytest.raises(httpx.RemoteProtocolError):
            got.extend(b"".join(iter_keeping(reply, got)))
    assert bytes(got) == b"0123"
    assert client.get(MEDIA).content == b"0123456789"


def iter_keeping(reply: httpx.Response, got: bytearray) -> Generator[bytes]:
    for piece in reply.iter_raw():
        got += piece
        yield b""


@pytest.mark.parametrize("after", [None, 0, 4])
def test_a_stall_ends_with_the_clients_patience(after: int | None, proxy: FaultProxy, client: httpx.Client) -> None:
    put(client)
    proxy.fault(matching("GET"), Stall(600, after))
    with pytest.raises(httpx.ReadTimeout):
        client.get(MEDIA, timeout=0.3)
    assert client.get(MEDIA).content == b"0123456789"


def test_a_stall_is_over_after_its_time(proxy: FaultProxy, client: httpx.Client) -> None:
    put(client)
    proxy.fault(matching("GET"), Stall(0.2, 4))
    before = time.monotonic()
    assert client.get(MEDIA).content == b"0123456789"
    assert time.monotonic() - before >= 0.2


def test_requests_go_round_the_services_that_listen(service: GCSFake) -> None:
    with gcs_fake() as other:
        down = f"http://127.0.0.1:{free_port()}"
        with (
            round_robin_proxy(service.url, other.url) as proxy,
            httpx.Client(base_url=proxy.url, timeout=60, trust_env=False) as client,
        ):
            for _ in range(4):
                client.get("/storage/v1/b")
            assert (service.requests.total(), other.requests.total()) == (2, 2)
        with (
            round_robin_proxy(service.url, down, other.url) as proxy,
            httpx.Client(base_url=proxy.url, timeout=60, trust_env=False) as client,
        ):
            assert {client.get("/storage/v1/b").status_code for _ in range(6)} == {200}
        assert service.requests.total() + other.requests.total() == 10
    with round_robin_proxy(down) as proxy:
        assert httpx.get(proxy.url, trust_env=False).status_code == 502

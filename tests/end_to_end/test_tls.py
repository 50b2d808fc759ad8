"""TLS as real clients meet it, at real servers with several workers."""

import json
import random
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from certificates import Authority, Pair
from images import TAG, build_image, manifest_of
from pushing import Repository, digest_of, noise, references
from servers import Server, configured, http, run_tool, wait_for

pytestmark = pytest.mark.usefixtures("http_engine")

NAME = "team/app"
PEERS = """
import hashlib
from pathlib import Path
from moorage import hookimpl

@hookimpl
def operation_finished(operation, reply, error, seconds):
    peer = operation.origin.tls_peer
    with (Path(__file__).parent.parent / "peers").open("a") as file:
        file.write((hashlib.sha256(peer).hexdigest() if peer is not None else "nobody") + "\\n")
"""
"""A plugin that writes down who asked."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


@contextmanager
def secure(
    folder: Path,
    pair: Pair,
    client: ssl.SSLContext,
    *,
    tls: Mapping[str, object] | None = None,
    workers: int = 2,
    more_http: Mapping[str, object] | None = None,
    plugins: Mapping[str, object] | None = None,
) -> Generator[Server]:
    """Run Moorage with `pair`; `client` is how it is waited for."""
    settings = {"tls": {"certificate": str(pair.certificate), "key": str(pair.key), **(tls or {})}, **(more_http or {})}
    with configured(folder / "root", workers=workers, http=settings, tls=client, plugins=plugins or {}) as server:
        yield server
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


def shown(server: Server, client: ssl.SSLContext) -> bytes | None:
    """Return the certificate that a new connection gets."""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain,
        client.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        return connection.getpeercert(binary_form=True)


def agreed(server: Server, client: ssl.SSLContext) -> tuple[str | None, str | None, str | None]:
    """Return version, suite and protocol that a new connection gets."""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain,
        client.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        cipher = connection.cipher()
        return connection.version(), cipher and cipher[0], connection.selected_alpn_protocol()


# ---- content


@pytest.mark.parametrize("http2", [False, True])
def test_large_content_goes_in_and_comes_out_as_it_was(
    http2: bool, tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    # HTTP/2 is slow.
    data = noise(random.Random(7), 4_000_000 if http2 else 40_000_000)
    trusted = authority.trusted()
    with (
        secure(tmp_path, pair, trusted, more_http={"http2": {"disabled": not http2}}) as server,
        http(server.url, trusted, http2=True) as client,
    ):
        repository = Repository(client, NAME)
        manifest = repository.push_image("v1", [data, b"small"])
        assert repository.pull_image("v1") == manifest
        answer = client.get(repository.blob_url(digest_of(data)))
        assert answer.content == data
        assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        part = client.get(repository.blob_url(digest_of(data)), headers={"range": "bytes=1000000-2999999"})
        assert part.content == data[1_000_000:3_000_000]
        # A client of HTTP/1.1 without ALPN, which httpx has set in the other context.
        with ssl_socket(server, authority.trusted()) as connection:
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert everything(connection).startswith(b"HTTP/1.1 200")


def test_many_small_pushes_over_http_2_end_no_worker(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    numbers = random.Random(3)
    with secure(tmp_path, pair, authority.trusted(), more_http={"http2": {"disabled": False}}) as server:
        workers = server.workers
        for number in range(12):
            with http(server.url, authority.trusted(), http2=True) as client:
                repository = Repository(client, f"{NAME}{number}")
                manifest = repository.push_image("v1", [noise(numbers, 300_000), b"small"])
                assert repository.pull_image("v1") == manifest
        assert server.workers == workers


def ssl_socket(server: Server, client: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    return client.wrap_socket(plain, server_hostname="localhost")


def everything(connection: socket.socket) -> bytes:
    data = b""
    while more := connection.recv(65536):
        data += more
    return data


def test_urls_that_are_handed_out_say_https(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    trusted = authority.trusted()
    with secure(tmp_path, pair, trusted, more_http={"relativeurls": False}) as server:
        announced = f"listening on https://127.0.0.1:{server.port} with 2 workers"
        wait_for(lambda: announced in server.logged(), "the word of the supervisor")
        for http2 in (False, True):
            with http(server.url, trusted, http2=http2) as client:
                location = client.post(f"/v2/{NAME}/blobs/uploads/").headers["location"]
                assert location.startswith(f"{server.url}/v2/{NAME}/blobs/uploads/")


# ---- what is agreed upon


def test_http_2_is_spoken_with_clients_that_want_nothing_else_or_where_it_is_preferred(
    tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    both, only = authority.trusted(), authority.trusted()
    both.set_alpn_protocols(["h2", "http/1.1"])
    only.set_alpn_protocols(["h2"])
    for disabled, expected in ((None, ("http/1.1", "h2")), (False, ("h2", "h2")), (True, ("http/1.1", None))):
        with secure(
            tmp_path, pair, authority.trusted(), workers=1, more_http={"http2": {"disabled": disabled}}
        ) as server:
            assert (agreed(server, both)[2], agreed(server, only)[2]) == expected


def test_versions_and_suites_are_those_that_are_configured(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    old, middle, new = authority.trusted(), authority.trusted(), authority.trusted()
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    middle.maximum_version = ssl.TLSVersion.TLSv1_2
    middle.set_ciphers("ALL")
    with secure(tmp_path, pair, new, workers=1) as server:
        with pytest.raises(ssl.SSLError, match="alert protocol version"):
            agreed(server, old)
        assert agreed(server, middle)[0] == "TLSv1.2"
        assert agreed(server, new)[0] == "TLSv1.3"
    for tls in ({"minimumtls": "tls1.3"}, {"ciphersuites": ["TLS_AES_128_GCM_SHA256"]}):
        with secure(tmp_path, pair, new, workers=1, tls=tls) as server:
            with pytest.raises(ssl.SSLError, match="alert protocol version"):
                agreed(server, middle)
            assert agreed(server, new)[0] == "TLSv1.3"
    chosen = {"ciphersuites": ["TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA"]}
    with secure(tmp_path, pair, new, workers=1, tls=chosen) as server:
        assert agreed(server, middle)[1] == "ECDHE-ECDSA-AES256-SHA"
        middle.set_ciphers("ECDHE+AESGCM")
        with pytest.raises(ssl.SSLError, match="handshake failure"):
            agreed(server, middle)


def test_clear_text_on_the_port_is_told_so(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    with secure(tmp_path, pair, authority.trusted()) as server:
        answer = httpx.get(f"http://127.0.0.1:{server.port}/v2/", trust_env=False)
        assert answer.status_code == 400
        assert "speaks HTTPS" in answer.text
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain:
            plain.sendall(b"\0\1garbage")
            with pytest.raises(ConnectionResetError):
                assert plain.recv(100) == b""
                raise ConnectionResetError
        assert server.answers()


@pytest.mark.needs_tool("curl")
@pytest.mark.parametrize("enabled", [False, True])
def test_http_2_in_clear_text_is_spoken_where_it_is_enabled(enabled: bool, tmp_path: Path, http_engine: str) -> None:
    with configured(tmp_path / "root", http={"h2c": {"enabled": enabled}}) as server:
        command = ["curl", "-sS", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_version}"]
        done = subprocess.run([*command, f"{server.url}/v2/"], capture_output=True, text=True, timeout=60)
        # hypercorn cannot be kept from it.
        assert (done.stdout == "2") is (enabled or http_engine == "stock")
        assert server.answers()


# ---- clients' certificates


def peers(folder: Path) -> set[str]:
    file = folder / "peers"
    return set(file.read_text(encoding="ascii").split()) if file.exists() else set()


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize(
    ("mode", "without", "foreign"),
    [
        (None, False, False),
        ("require-and-verify-client-cert", False, False),
        ("verify-client-cert-if-given", True, False),
        ("request-client-cert", True, True),
    ],
)
def test_clients_are_let_in_as_the_mode_says_and_known_if_they_were_verified(
    mode: str | None, without: bool, foreign: bool, http2: bool, tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    (tmp_path / "plugins").mkdir(mode=0o755)
    (tmp_path / "plugins/peers.py").write_text(PEERS)
    clients = Authority(tmp_path, "clients")
    known, stranger = clients.issue("known", "known.test"), Authority(tmp_path, "others").issue("stranger", "a.test")
    settings: dict[str, object] = {"clientcas": [str(clients.file)], "clientauth": mode}
    plugins = {"paths": [str(tmp_path / "plugins")]}
    preferred = {"http2": {"disabled": not http2}}

    def admitted(server: Server, identity: Pair | None) -> bool:
        try:
            with http(server.url, authority.trusted(identity), http2=http2) as client:
                answer = client.get("/v2/")
                assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
                return answer.status_code == 200
        except httpx.TransportError:
            return False

    trusted = authority.trusted(known)
    with secure(tmp_path, pair, trusted, tls=settings, workers=1, more_http=preferred, plugins=plugins) as server:
        assert admitted(server, known)
        expected = {digest_of(known.der).partition(":")[2]} if mode != "request-client-cert" else {"nobody"}
        assert peers(tmp_path) == expected
        assert admitted(server, None) is without
        assert admitted(server, stranger) is foreign
        assert peers(tmp_path) == expected | ({"nobody"} if without else set())


def test_any_worker_resumes_a_session_and_knows_the_client_then_too(
    tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    (tmp_path / "plugins").mkdir(mode=0o755)
    (tmp_path / "plugins/peers.py").write_text(PEERS)
    me = authority.issue("me", "me.test")
    trusted = authority.trusted(me)
    settings, plugins = {"clientcas": [str(authority.file)]}, {"paths": [str(tmp_path / "plugins")]}

    def ask(session: ssl.SSLSession | None) -> tuple[bool | None, ssl.SSLSession | None]:
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain,
            trusted.wrap_socket(plain, server_hostname="localhost", session=session) as connection,
        ):
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert everything(connection).startswith(b"HTTP/1.1 200")
            return connection.session_reused, connection.session

    with secure(tmp_path, pair, trusted, tls=settings, plugins=plugins) as server:
        wait_for(lambda: "with 2 workers" in server.logged(), "both workers")
        session = ask(None)[1]
        assert {ask(session)[0] for _ in range(12)} == {True}
        assert peers(tmp_path) == {digest_of(me.der).partition(":")[2]}


# ---- renewal


def test_certificates_are_renewed_under_load_and_no_request_fails(
    tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    trusted = authority.trusted()
    stop = threading.Event()
    answered: list[int] = []
    failed: list[BaseException] = []

    def load(keep: bool) -> None:
        try:
            with http(server.url, trusted) as client:
                while not stop.is_set():
                    headers = {} if keep else {"connection": "close"}
                    answered.append(client.get(f"/v2/{NAME}/manifests/v1", headers=headers).status_code)
        except BaseException as error:  # noqa: BLE001 - judged by the test
            failed.append(error)

    def wait_until_shown(expected: Pair) -> None:
        # Both workers have it when many connections in a row get it.
        wait_for(lambda: all(shown(server, trusted) == expected.der for _ in range(20)), "a new certificate")

    with secure(tmp_path, pair, trusted) as server:
        with http(server.url, trusted) as client:
            Repository(client, NAME).push_image("v1", [b"layer"])
        threads = [threading.Thread(target=load, args=(keep,)) for keep in (True, False)]
        for thread in threads:
            thread.start()
        try:
            first, second = authority.issue("first"), authority.issue("second")
            for new in (first, second):
                new.take_the_place_of(pair)
                wait_until_shown(new)
            other = authority.issue("other")
            pair.certificate.write_bytes(other.certificate.read_bytes())
            text = "is not the key of the certificate"
            wait_for(lambda: server.log.read_text(encoding="utf-8").count(text) == 2, "a word of each worker")
            assert shown(server, trusted) == second.der
            pair.key.write_bytes(other.key.read_bytes())
            wait_until_shown(other)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert server.log.read_text(encoding="utf-8").count(text) == 2
        assert server.terminate() == 0
    assert failed == []
    assert set(answered) == {200}


# ---- tools


@pytest.fixture
def trust(tmp_path: Path, authority: Authority) -> Path:
    """A folder as `--cert-dir` wants it."""
    folder = tmp_path / "trust"
    folder.mkdir()
    (folder / "ca.crt").write_bytes(authority.file.read_bytes())
    return folder


@pytest.mark.needs_tool("skopeo", "umoci")
@pytest.mark.parametrize("http2", [False, True])
def test_skopeo_pushes_and_pulls_and_shows_its_certificate(
    http2: bool, tmp_path: Path, authority: Authority, pair: Pair, trust: Path
) -> None:
    layout = build_image(tmp_path / "layout")
    me = authority.issue("me", "me.test")
    (trust / "client.cert").write_bytes(me.certificate.read_bytes())
    (trust / "client.key").write_bytes(me.key.read_bytes())
    settings: dict[str, object] = {"clientcas": [str(authority.file)]}
    more = {"http2": {"disabled": not http2}}
    with secure(tmp_path, pair, authority.trusted(me), tls=settings, more_http=more) as server:
        target = f"docker://{server.host}/{NAME}:{TAG}"
        skopeo = ("skopeo", "--insecure-policy", "copy")
        run_tool(*skopeo, f"--dest-cert-dir={trust}", f"oci:{layout}:{TAG}", target)
        run_tool(*skopeo, f"--src-cert-dir={trust}", target, f"oci:{tmp_path / 'out'}:{TAG}")
    assert manifest_of(tmp_path / "out") == manifest_of(layout)


@pytest.mark.needs_tool("podman", "skopeo", "umoci")
def test_podman_pulls_and_pushes(tmp_path: Path, authority: Authority, pair: Pair, trust: Path) -> None:
    layout = build_image(tmp_path / "layout")
    with secure(tmp_path, pair, authority.trusted()) as server, tempfile.TemporaryDirectory(prefix="e2e") as short:
        name = f"{server.host}/{NAME}"
        skopeo = ("skopeo", "--insecure-policy", "copy", f"--dest-cert-dir={trust}")
        run_tool(*skopeo, f"oci:{layout}:{TAG}", f"docker://{name}:{TAG}")
        podman = ["podman", "--root", f"{short}/root", "--runroot", f"{short}/run", "--storage-driver", "vfs"]
        podman += ["--tmpdir", f"{short}/tmp", "--events-backend", "none", "--cgroup-manager", "cgroupfs"]
        image_id = run_tool(*podman, "pull", "--quiet", f"--cert-dir={trust}", f"{name}:{TAG}").strip()
        assert f"sha256:{image_id}" == references(manifest_of(layout))[0]
        run_tool(*podman, "push", "--quiet", f"--cert-dir={trust}", image_id, f"docker://{name}:again")
        with http(server.url, authority.trusted()) as client:
            again = json.loads(Repository(client, NAME).pull_image("again"))
        assert again["config"]["digest"] == f"sha256:{image_id}"

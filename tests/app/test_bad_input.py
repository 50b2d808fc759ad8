"""Whatever a client sends over real HTTP: a precise answer, nothing lost, and the next request served."""

import json
import re
import socket
import zlib
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from asgi_client import CONFIG_TYPE, EMPTY, descriptor, image
from moorage import MANIFEST_LIMIT, OCI_INDEX, OCI_MANIFEST, Digest, encode_json
from moorage_conformance.registry.expect import CODES
from servers import END_SECONDS, Server, configured, wait_for

SHA = Digest.of(b"hello world")
SESSION = "019a1b2c-3d4e-7f60-8182-838485868788"
CONFIG = Digest.of(EMPTY)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, http_engine: str) -> Path:
    return tmp_path_factory.mktemp(f"bad-{http_engine}") / "root"


@pytest.fixture(scope="module")
def server(root: Path) -> Generator[Server]:
    """One registry of each engine for all that is wrong; what it logs is looked at in the end."""
    with configured(root, log={"level": "error"}) as server:
        push_blob(server, EMPTY)
        push_blob(server, b"hello world")
        yield server
        assert '"event": "a request failed"' not in server.logged()


@pytest.fixture(autouse=True)
def _next_request_is_served(server: Server) -> Generator[None]:
    yield
    assert ask(server, "GET", "/v2/").status == 200
    assert ask(server, "GET", f"/v2/a/blobs/{SHA}").body == b"hello world"


class Answer:
    """An answer as it came over the wire; whatever it is, it keeps what is promised of all."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1
        return values[0] if values else None

    @property
    def codes(self) -> list[str]:
        return [error["code"] for error in json.loads(self.body)["errors"]]

    def checked(self) -> "Answer":
        """Return this, if it is no 5xx and, where it is JSON of an error, of the form and codes of the specification."""
        assert self.status < 500, self.body
        if self.status >= 400 and self.body:
            assert self.header("Content-Type") == "application/json"
            assert self.codes
            assert set(self.codes) <= CODES
            for error in json.loads(self.body)["errors"]:
                assert set(error) <= {"code", "message", "detail"}
                assert error["message"]
        return self


class Wire:
    """A connection to a server, byte by byte."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=END_SECONDS)
        self._reader = self.socket.makefile("rb")

    def close(self) -> None:
        self._reader.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(
        self, method: str, target: str, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
    ) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: registry.test", *(f"{name}: {value}" for name, value in headers)]
        if body is not None and not any(name.lower() in {"content-length", "transfer-encoding"} for name, _ in headers):
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    def answer(self, *, head: bool = False) -> Answer:
        first = self._reader.readline()
        match = re.fullmatch(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n", first)
        assert match is not None, first
        headers: list[tuple[str, str]] = []
        while (line := self._reader.readline()) not in {b"\r\n", b""}:
            name, _, value = line.decode("latin-1").partition(":")
            headers.append((name, value.strip()))
        answer = Answer(int(match[1]), headers, b"")
        if not head and answer.status not in {204, 304}:
            length = answer.header("Content-Length")
            answer.body = self._reader.read() if length is None else self._reader.read(int(length))
        return answer

    def rest(self) -> bytes:
        """Return what comes until the server closes."""
        return self._reader.read()


def ask(
    server: Server, method: str, target: str, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
) -> Answer:
    """Ask on a connection of its own; the answer is checked."""
    with closing(Wire(server)) as wire:
        wire.request(method, target, list(headers), body)
        return wire.answer(head=method == "HEAD").checked()


def push_blob(server: Server, data: bytes, repository: str = "a") -> Digest:
    digest = Digest.of(data)
    assert ask(server, "POST", f"/v2/{repository}/blobs/uploads/?digest={digest}", body=data).status == 201
    return digest


def push_manifest(server: Server, data: bytes, media_type: str = OCI_MANIFEST, reference: str = "v1") -> Answer:
    return ask(server, "PUT", f"/v2/a/manifests/{reference}", [("Content-Type", media_type)], data)


def open_session(server: Server) -> str:
    location = ask(server, "POST", "/v2/a/blobs/uploads/", body=b"").header("Location")
    assert location is not None
    return location


def is_locked(file: Path) -> bool:
    """Return whether a process has a lock on `file`."""
    return f":{file.stat().st_ino} " in Path("/proc/locks").read_text(encoding="ascii")


def offset(server: Server, location: str) -> str | None:
    answer = ask(server, "GET", location)
    assert answer.status == 204
    return answer.header("Range")


# ---- names, digests, references

BAD_NAMES = [
    "UPPER",
    "a/../b",
    "..",
    "a%2Fb",
    "a" * 300,
    "a%00b",
    "caf%C3%A9",
    "a//b",
    "-a",
    "a..b",
    "_catalog",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_wherever_it_stands(server: Server, name: str) -> None:
    for method, path in (
        ("GET", f"manifests/{SHA}"),
        ("HEAD", "manifests/latest"),
        ("PUT", "manifests/latest"),
        ("GET", "tags/list"),
        ("GET", f"blobs/{SHA}"),
        ("POST", "blobs/uploads/"),
        ("PATCH", f"blobs/uploads/{SESSION}"),
        ("GET", f"referrers/{SHA}"),
    ):
        answer = ask(server, method, f"/v2/{name}/{path}", body=b"x" if method in {"PUT", "PATCH"} else None)
        assert answer.status == 400
        if method != "HEAD":
            assert answer.codes == ["NAME_INVALID"]


@pytest.mark.parametrize(
    "text", ["sha256:baddigeststring", "sha256:", "md5:" + "0" * 32, "sha256:" + "A" * 64, "x:" + "a" * 300]
)
def test_a_bad_digest_is_refused_in_every_way_to_push(server: Server, text: str) -> None:
    location = open_session(server)
    for method, target, body in (
        ("POST", f"/v2/a/blobs/uploads/?digest={text}", b"hello"),
        ("POST", f"/v2/a/blobs/uploads/?digest={text}", b""),
        ("POST", f"/v2/a/blobs/uploads/?mount={text}&from=a", b""),
        ("PUT", f"{location}?digest={text}", b"hello"),
        ("PUT", f"/v2/a/manifests/{text}", b"{}"),
    ):
        answer = ask(server, method, target, [("Content-Type", "application/octet-stream")], body)
        assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
    assert ask(server, "POST", "/v2/a/blobs/uploads/?digest-algorithm=md5", body=b"").codes == ["DIGEST_INVALID"]


def test_content_of_another_digest_is_refused_and_nowhere_afterwards(server: Server) -> None:
    wrong = Digest.of(b"another")
    location = open_session(server)
    for method, target in (("POST", f"/v2/a/blobs/uploads/?digest={wrong}"), ("PUT", f"{location}?digest={wrong}")):
        answer = ask(server, method, target, body=b"not another")
        assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
    data = encode_json(image(CONFIG))
    answer = push_manifest(server, data + b"  ", reference=Digest.of(data))
    assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
    for target in (
        f"/v2/a/blobs/{wrong}",
        f"/v2/a/blobs/{Digest.of(b'not another')}",
        f"/v2/a/manifests/{Digest.of(data)}",
    ):
        assert ask(server, "GET", target).status == 404


# ---- manifests


def nested(depth: int) -> bytes:
    return b'{"schemaVersion":2,"x":' + b"[" * depth + b"]" * depth + b"}"


GOOD = encode_json(image(CONFIG))
BAD_MANIFESTS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"hello",
    "half of it": GOOD[:-5],
    "more after it": GOOD + b"{}",
    "a list": b"[]",
    "a string": b'"x"',
    "a number": b"2",
    "null": b"null",
    "no fields": b"{}",
    "not UTF-8": GOOD.replace(b"layers", b"\xfflayers"),
    "UTF-16": GOOD.decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "a NUL": b"\0" + GOOD,
    "deep": nested(5_000),
    "very deep": nested(1_000_000),
    "open": b"[" * 1_000_000,
    "duplicate key": GOOD[:-1] + b',"layers":[]}',
    "duplicate below": GOOD[:-1] + b',"annotations":{"a":"1","a":"2"}}',
    "another case": GOOD.replace(b'"layers"', b'"Layers"'),
    "look-alike": GOOD[:-1] + ',"manife\u017ft\u017f":[]}'.encode(),
    "another case below": GOOD.replace(b'"digest"', b'"Digest"'),
    "version as text": GOOD.replace(b":2", b':"2"', 1),
    "another version": GOOD.replace(b":2", b":1", 1),
    "layers as a mapping": GOOD.replace(b'"layers":[]', b'"layers":{}'),
    "layers of numbers": GOOD.replace(b'"layers":[]', b'"layers":[1]'),
    "no config": GOOD.replace(b'"config"', b'"konfig"'),
    "a bad digest": GOOD.replace(b"sha256:", b"sha256;"),
    "a negative size": GOOD.replace(b'"size":2', b'"size":-2'),
    "a huge size": GOOD.replace(b'"size":2', b'"size":' + b"9" * 5000),
    "a fraction of a size": GOOD.replace(b'"size":2', b'"size":2.5'),
    "not a number": GOOD.replace(b'"size":2', b'"size":NaN'),
    "too many": encode_json(image(CONFIG) | {"layers": [descriptor(CONFIG, 2)] * 5001}),
    "another type": GOOD.replace(OCI_MANIFEST.encode(), b"application/x"),
    "an index too": GOOD[:-1] + b',"manifests":[]}',
    "annotations of lists": GOOD[:-1] + b',"annotations":{"a":[]}}',
}


@pytest.mark.parametrize("kind", BAD_MANIFESTS)
def test_what_is_no_manifest_is_refused(server: Server, kind: str) -> None:
    answer = push_manifest(server, BAD_MANIFESTS[kind], reference="bad")
    assert (answer.status, set(answer.codes)) == (400, {"MANIFEST_INVALID"})
    assert ask(server, "GET", "/v2/a/manifests/bad").status == 404
    assert ask(server, "GET", f"/v2/a/manifests/{Digest.of(BAD_MANIFESTS[kind])}").status == 404


@pytest.mark.parametrize("media_type", [OCI_INDEX, "text/plain", "application/json", "x", "*/*", "caf\xe9"])
def test_a_manifest_of_another_type_than_it_says_is_refused(server: Server, media_type: str) -> None:
    assert push_manifest(server, GOOD, media_type).codes == ["MANIFEST_INVALID"]


def test_a_manifest_that_is_too_large_is_413_announced_or_not(server: Server) -> None:
    data = GOOD.ljust(MANIFEST_LIMIT + 1)
    assert push_manifest(server, data).status == 413
    with closing(Wire(server)) as wire:
        wire.request("PUT", "/v2/a/manifests/v1", [("Content-Type", OCI_MANIFEST), ("Transfer-Encoding", "chunked")])
        for at in range(0, len(data), 1 << 20):
            piece = data[at : at + (1 << 20)]
            wire.send(b"%x\r\n" % len(piece) + piece + b"\r\n")
        wire.send(b"0\r\n\r\n")
        assert wire.answer().checked().codes == ["SIZE_INVALID"]


def test_missing_references_are_named(server: Server) -> None:
    document = image(Digest.of(b"missing 1"), layers=[descriptor(Digest.of(b"missing 2"), 1)])
    answer = push_manifest(server, encode_json(document))
    assert (answer.status, answer.codes) == (400, ["MANIFEST_BLOB_UNKNOWN"] * 2)
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor(SHA.replace("b", "a"), 1, CONFIG_TYPE)],
    }
    assert push_manifest(server, encode_json(index), OCI_INDEX).codes == ["MANIFEST_BLOB_UNKNOWN"]


# ---- uploads


@pytest.mark.parametrize(
    "upload_id", [SESSION, "nonsense", "..", "%2e%2e", SESSION.upper(), "a" * 300, "state", "%00", "{x}"]
)
def test_an_unknown_session_is_404(server: Server, upload_id: str) -> None:
    for method, query in (("GET", ""), ("HEAD", ""), ("PATCH", ""), ("PUT", f"?digest={SHA}"), ("DELETE", "")):
        body = b"hello" if method in {"PATCH", "PUT"} else None
        answer = ask(server, method, f"/v2/a/blobs/uploads/{upload_id}{query}", body=body)
        assert answer.status == 404
        if method != "HEAD":
            assert answer.codes == ["BLOB_UPLOAD_UNKNOWN"]


@pytest.mark.parametrize("end", ["closed", "cancelled", "failed"])
def test_a_finished_session_is_404(server: Server, end: str) -> None:
    location = open_session(server)
    assert ask(server, "PATCH", location, body=b"hello world").status == 202
    if end == "closed":
        assert ask(server, "PUT", f"{location}?digest={SHA}", body=b"").status == 201
    elif end == "cancelled":
        assert ask(server, "DELETE", location).status == 204
    else:
        assert ask(server, "PUT", f"{location}?digest={CONFIG}", body=b"").status == 400
    for method, query in (("GET", ""), ("PATCH", ""), ("PUT", f"?digest={SHA}"), ("DELETE", "")):
        answer = ask(server, method, location + query, body=b"" if method in {"PATCH", "PUT"} else None)
        assert (answer.status, answer.codes) == (404, ["BLOB_UPLOAD_UNKNOWN"])


def test_a_session_belongs_to_its_repository(server: Server) -> None:
    location = open_session(server).replace("/v2/a/", "/v2/b/")
    for method in ("GET", "DELETE"):
        assert ask(server, method, location).status == 404


@pytest.mark.parametrize(
    ("range_", "body", "status", "code"),
    [
        ("0-4", b"hello!", 400, "SIZE_INVALID"),
        ("0-4", b"hell", 400, "SIZE_INVALID"),
        ("0-4", b"", 400, "SIZE_INVALID"),
        ("4-0", b"hello", 400, "SIZE_INVALID"),
        ("bytes 0-4/5", b"hello", 400, "BLOB_UPLOAD_INVALID"),
        ("nonsense", b"hello", 400, "BLOB_UPLOAD_INVALID"),
        ("1-5", b"hello", 416, "BLOB_UPLOAD_INVALID"),
        ("9223372036854775807-9223372036854775811", b"hello", 416, "BLOB_UPLOAD_INVALID"),
    ],
)
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_chunk_that_contradicts_itself_or_the_session_leaves_it_as_it_was(
    server: Server, method: str, range_: str, body: bytes, status: int, code: str, chunked: bool
) -> None:
    location = open_session(server)
    query = f"?digest={SHA}" if method == "PUT" else ""
    with closing(Wire(server)) as wire:
        headers = [("Content-Range", range_), *([("Transfer-Encoding", "chunked")] if chunked else [])]
        framed = (b"%x\r\n" % len(body) + body + b"\r\n" if body else b"") + b"0\r\n\r\n"
        wire.request(method, location + query, headers, framed if chunked else body)
        answer = wire.answer().checked()
    assert (answer.status, answer.codes) == (status, [code])
    assert offset(server, location) == "0-0"
    assert ask(server, "PATCH", location, [("Content-Range", "0-4")], b"hello").status == 202
    assert ask(server, "PATCH", location, [("Content-Range", "0-4")], b"hello").status == 416
    assert offset(server, location) == "0-4"
    assert ask(server, "PUT", f"{location}?digest={SHA}", [("Content-Range", "5-10")], b" world").status == 201


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("end", ["close", "reset"])
def test_what_arrived_of_a_body_that_ends_early_can_be_resumed(server: Server, framing: str, end: str) -> None:
    location = open_session(server)
    data = bytes(range(256)) * 8192
    with closing(Wire(server)) as wire:
        if framing == "length":
            wire.request("PATCH", location, [("Content-Length", str(len(data) + 1))])
            wire.send(data)
        else:
            wire.request("PATCH", location, [("Transfer-Encoding", "chunked")])
            wire.send(b"%x\r\n" % len(data) + data + b"\r\n")
        if end == "reset":
            # What the registry has not taken yet is thrown away on its way.
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    whole = data + b"!"
    target = f"{location}?digest={Digest.of(whole)}"

    def closes() -> bool:
        """Send what is missing; it is refused as long as the request that was left is at work."""
        stands = offset(server, location)
        kept = 0 if stands == "0-0" else int((stands or "").partition("-")[2]) + 1
        assert kept <= len(data)
        if end == "close" and kept < len(data):
            return False
        answer = ask(server, "PUT", target, [("Content-Range", f"{kept}-{len(data)}")], whole[kept:])
        assert answer.status in {201, 416}
        return answer.status == 201

    wait_for(closes, "the end of the request that was left")
    assert ask(server, "GET", f"/v2/a/blobs/{Digest.of(whole)}").body == whole


def test_of_two_patches_at_once_one_wins_and_the_other_hears_where_the_session_stands(
    server: Server, root: Path
) -> None:
    location = open_session(server)
    (data,) = root.glob(f"docker/registry/v2/repositories/a/_uploads/{location.rpartition('/')[2]}/data")
    with closing(Wire(server)) as first, closing(Wire(server)) as second:
        first.request("PATCH", location, [("Content-Length", "11"), ("Content-Range", "0-10")])
        first.send(b"hello")
        wait_for(lambda: is_locked(data), "the first to be at work")
        second.request("PATCH", location, [("Content-Range", "0-10")], b"hello world")
        early = second.answer().checked()
        first.send(b" world")
        late = first.answer().checked()
    assert sorted([early.status, late.status]) == [202, 416]
    lost = early if early.status == 416 else late
    assert lost.codes == ["BLOB_UPLOAD_INVALID"]
    assert lost.header("Location") == location
    assert lost.header("Range") == ("0-0" if lost is early else "0-10")
    assert ask(server, "PUT", f"{location}?digest={SHA}", body=b"").status == 201


# ---- what is no HTTP

GARBAGE = [
    b"hello\r\n\r\n",
    b"\0\1\2\3\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 50 + b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /v2/\r\n\r\n",
    b"GET /v2/caf\xe9/tags/list HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\n" + b"X: y\r\n" * 40_000 + b"\r\n",
    b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("at", range(len(GARBAGE)))
def test_what_is_no_http_gets_a_bare_refusal(server: Server, at: int) -> None:
    with closing(Wire(server)) as wire:
        try:
            wire.send(GARBAGE[at])
            wire.socket.shutdown(socket.SHUT_WR)
            said = wire.rest()
        except OSError:
            # It was gone before all was said.
            return
    assert re.match(rb"(HTTP/1\.1 4\d\d |$)", said), said
    assert b"Traceback" not in said


def test_a_client_that_says_nothing_is_no_trouble(server: Server) -> None:
    for data in (b"", b"GET /v2/ HT", b"PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{"):
        with closing(Wire(server)) as wire:
            wire.send(data)


# ---- whatever else

NAMES = st.sampled_from(["a", "b/c", "A", "..", "%2e", "a" * 300, "blobs", "\xe9"])
WORDS = st.one_of(
    st.sampled_from([
        *("v2", "_catalog", "tags", "list", "blobs", "uploads", "manifests", "referrers", "", ".", "..", "%2F", "%00"),
        *(str(SHA), SHA.replace(":", "%3A"), str(CONFIG), SESSION, "latest", "v1"),
    ]),
    NAMES,
    st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="?#\x7f\x85\xa0\xad"), max_size=20),
)
TARGETS = st.one_of(
    st.lists(WORDS, max_size=6).map(lambda parts: "/" + "/".join(parts)),
    st.lists(WORDS, max_size=5).map(lambda parts: "/v2/" + "/".join(parts)),
    st.tuples(NAMES, st.sampled_from(["manifests", "blobs", "blobs/uploads", "referrers", "tags"]), WORDS).map(
        lambda parts: "/v2/" + "/".join(parts)
    ),
)
PLAIN = st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="#\x7f\x85\xa0\xad"), max_size=30)
QUERIES = st.lists(
    st.tuples(
        st.sampled_from(["n", "last", "mount", "from", "digest", "tag", "digest-algorithm", "artifactType", "x"]),
        st.one_of(PLAIN, st.sampled_from([str(SHA), str(CONFIG), "a", "0", "-1", "sha512", "%FF", "%00"])),
    ),
    max_size=4,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))
VALUES = st.one_of(
    PLAIN,
    st.sampled_from([
        "*",
        f'"{SHA}"',
        OCI_MANIFEST,
        OCI_INDEX,
        "bytes=0-4",
        "bytes=-1",
        "0-4",
        "5-10",
        "*/*;q=0",
        "text/html",
    ]),
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from([
            *("Accept", "Authorization", "Content-Range", "Content-Type", "Forwarded", "If-Match", "If-None-Match"),
            *("If-Range", "Range", "User-Agent", "X-Forwarded-For", "X-Request-Id", "Cookie"),
        ]),
        VALUES,
    ),
    max_size=5,
)
BODIES = st.one_of(
    st.none(),
    st.binary(max_size=300),
    st.sampled_from([GOOD, b"{}", b"hello world", b"", zlib.compress(GOOD)]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "digest"]), inner
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
)
METHODS = st.sampled_from(["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "get"])


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=METHODS, target=TARGETS, query=QUERIES, headers=HEADERS, body=BODIES)
@example(method="PUT", target="/v2/a/manifests/v1", query="", headers=[("Content-Type", OCI_MANIFEST)], body=GOOD)
@example(method="GET", target="/v2/a/tags/list", query="last=%00&n=1", headers=[], body=None)
@example(method="GET", target=f"/v2/a/referrers/{SHA}", query="last=%F0%9F%90%8D", headers=[], body=None)
def test_no_request_is_a_fault_of_the_registry(
    server: Server, method: str, target: str, query: str, headers: list[tuple[str, str]], body: bytes | None
) -> None:
    # Nothing that other tests stand on is deleted.
    if method == "DELETE" and (SHA in target or SHA.replace(":", "%3A") in target):
        method = "GET"
    ask(server, method, f"{target}?{query}" if query else target, headers, body)

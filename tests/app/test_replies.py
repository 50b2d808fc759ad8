"""What a client reads in an answer: status, headers, body, on a registry in memory."""

import json
import re
from collections.abc import AsyncIterable
from urllib.parse import quote

import msgspec
import pytest
import trio
from hypothesis import given, strategies as st

from asgi_client import (
    CONFIG_TYPE,
    EMPTY,
    LAYER_TYPE,
    AsgiClient,
    client_of,
    descriptor,
    image,
    next_page,
)
from moorage import (
    OCI_INDEX,
    OCI_MANIFEST,
    Condition,
    Digest,
    Handler,
    ManifestPushed,
    MemoryDriver,
    Operation,
    Pong,
    R,
    Refused,
    Registry,
    RegistryError,
    StoreBusy,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    TooManyRequests,
    Unauthorized,
)
from moorage_app.asgi import Settings
from moorage_app.replies import respond_error
from moorage_app.routes import Limits
from moorage_conformance.registry.expect import CODES

BLOB = bytes(range(200))
BLOB_DIGEST = Digest.of(BLOB)
ABSENT = Digest.of(b"nobody pushed this")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture
def client() -> AsgiClient:
    return client_of()


# ---- what every answer has


@pytest.mark.parametrize("target", ["/v2/", "/v2/_catalog", "/v2/a/tags/list", "/nowhere", "/v2/A/tags/list"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_every_answer_names_the_version_of_the_api(client: AsgiClient, method: str, target: str) -> None:
    answer = await client.ask(method, target)
    assert answer.header("Docker-Distribution-Api-Version") == "registry/2.0"


async def test_every_answer_has_the_configured_headers() -> None:
    client = client_of(
        settings=Settings(headers=(("X-Content-Type-Options", "nosniff"), ("X-Two", "1"), ("X-Two", "2")))
    )
    for target in ("/v2/", "/nowhere"):
        answer = await client.ask("GET", target)
        assert answer.header("X-Content-Type-Options") == "nosniff"
        assert answer.all("X-Two") == ["1", "2"]


async def test_the_registry_says_that_it_is_one(client: AsgiClient) -> None:
    for target in ("/v2/", "/v2"):
        answer = await client.ask("GET", target)
        assert (answer.status, answer.body, answer.header("Content-Type")) == (200, b"{}", "application/json")


async def test_whoever_asks_for_the_root_hears_that_the_process_is_alive(client: AsgiClient) -> None:
    answer = await client.ask("GET", "/")
    assert (answer.status, answer.body, answer.header("Cache-Control")) == (200, b"", "no-cache")


async def filled(client: AsgiClient) -> dict[str, str]:
    """Push something of each kind and return a target of each kind."""
    await client.push_blob("a", BLOB)
    subject = await client.push_image("a", "v1")
    await client.push_image("a", "v2", subject, annotations={"n": "1"})
    return {
        "ping": "/v2/",
        "blob": f"/v2/a/blobs/{BLOB_DIGEST}",
        "empty blob": f"/v2/a/blobs/{await client.push_blob('a', b'')}",
        "tag": "/v2/a/manifests/v1",
        "digest": f"/v2/a/manifests/{subject}",
        "tags": "/v2/a/tags/list?n=1",
        "catalog": "/v2/_catalog",
        "referrers": f"/v2/a/referrers/{subject}",
        "no blob": f"/v2/a/blobs/{ABSENT}",
        "no manifest": "/v2/a/manifests/nothing",
        "no repository": "/v2/b/tags/list",
        "no endpoint": "/v2/a",
        "root": "/",
    }


async def test_a_head_has_the_headers_of_the_get_and_no_body(client: AsgiClient) -> None:
    for target in (await filled(client)).values():
        got, head = await client.ask("GET", target), await client.ask("HEAD", target)
        assert head.status == got.status
        assert head.headers == got.headers
        assert head.body == b""
        assert head.complete
        assert int(got.header("Content-Length") or -1) == len(got.body)


@pytest.mark.parametrize("status", [304, 204])
async def test_an_answer_without_content_has_no_body(client: AsgiClient, status: int) -> None:
    targets = await filled(client)
    if status == 304:
        answer = await client.ask("GET", targets["tag"], [("If-None-Match", "*")])
    else:
        answer = await client.ask("GET", await client.open_session("a"))
        assert answer.header("Content-Length") is None
    assert (answer.status, answer.body) == (status, b"")


# ---- content


async def test_a_blob_comes_with_its_digest_and_type(client: AsgiClient) -> None:
    await client.push_blob("a", BLOB)
    answer = await client.ask("GET", f"/v2/a/blobs/{BLOB_DIGEST}")
    assert answer.status == 200
    assert answer.body == BLOB
    assert answer.header("Docker-Content-Digest") == BLOB_DIGEST
    assert answer.header("ETag") == f'"{BLOB_DIGEST}"'
    assert answer.header("Content-Type") == "application/octet-stream"
    assert answer.header("Accept-Ranges") == "bytes"
    assert answer.header("Cache-Control") == "max-age=31536000"


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_content_is_named_by_the_algorithm_that_it_was_pushed_by(client: AsgiClient, algorithm: str) -> None:
    digest = Digest.of(BLOB, algorithm)
    pushed = await client.ask("POST", f"/v2/a/blobs/uploads/?digest={digest}", body=BLOB)
    assert (pushed.status, pushed.header("Docker-Content-Digest")) == (201, digest)
    assert pushed.header("Location") == f"/v2/a/blobs/{digest}"
    assert (await client.ask("HEAD", f"/v2/a/blobs/{digest}")).header("Docker-Content-Digest") == digest
    data = json.dumps(image(await client.push_blob("a", EMPTY))).encode()
    digest = Digest.of(data, algorithm)
    pushed = await client.ask("PUT", f"/v2/a/manifests/{digest}?tag=t", [("Content-Type", OCI_MANIFEST)], data)
    assert (pushed.status, pushed.header("Docker-Content-Digest")) == (201, digest)
    for reference in (digest, "t"):
        found = await client.ask("GET", f"/v2/a/manifests/{reference}")
        assert (found.body, found.header("Docker-Content-Digest")) == (data, digest)


async def test_a_manifest_comes_byte_for_byte_and_without_parameters_in_its_type(client: AsgiClient) -> None:
    config = await client.push_blob("a", EMPTY)
    data = b"\n\t" + json.dumps(image(config), indent=3).encode() + b"\n\n"
    pushed = await client.ask("PUT", "/v2/a/manifests/v1", [("Content-Type", OCI_MANIFEST + "; charset=utf-8")], data)
    digest = Digest.of(data)
    assert pushed.status == 201
    assert pushed.header("Location") == f"/v2/a/manifests/{digest}"
    assert pushed.header("Content-Length") == "0"
    for reference in ("v1", digest):
        answer = await client.ask("GET", f"/v2/a/manifests/{reference}")
        assert answer.body == data
        assert answer.header("Content-Type") == OCI_MANIFEST
        assert answer.header("ETag") == f'"{digest}"'


async def test_accept_counts_for_tags_and_not_for_digests(client: AsgiClient) -> None:
    digest = await client.push_image("a", "v1")
    for accept, status in (("*/*", 200), (OCI_MANIFEST, 200), (OCI_INDEX, 404), (f"{OCI_MANIFEST};q=0, */*", 404)):
        answer = await client.ask("GET", "/v2/a/manifests/v1", [("Accept", accept)])
        assert answer.status == status
        if status == 404:
            assert answer.codes == ["MANIFEST_UNKNOWN"]
            assert OCI_MANIFEST in answer.messages[0]
        assert (await client.ask("GET", f"/v2/a/manifests/{digest}", [("Accept", accept)])).status == 200
    # Clients send the header in several lines, too.
    answer = await client.ask("GET", "/v2/a/manifests/v1", [("Accept", OCI_INDEX), ("Accept", OCI_MANIFEST)])
    assert answer.status == 200


# ---- conditions

OTHER = f'"{ABSENT}"'


@pytest.mark.parametrize("kind", ["blob", "tag", "digest"])
@pytest.mark.parametrize(
    ("form", "unchanged"),
    [
        ("{tag}", True),
        ("W/{tag}", True),
        ("*", True),
        ("{other}, {tag}", True),
        ("{other},W/{tag}", True),
        ("{bare}", True),
        ("{other}", False),
        ("", False),
        ("nonsense", False),
    ],
)
async def test_what_a_client_has_already_is_not_sent_again(
    client: AsgiClient, kind: str, form: str, unchanged: bool
) -> None:
    target = (await filled(client))[kind]
    full = await client.ask("GET", target)
    tag = full.header("ETag") or ""
    value = form.format(tag=tag, other=OTHER, bare=tag.strip('"'))
    for method in ("GET", "HEAD"):
        answer = await client.ask(method, target, [("If-None-Match", value)])
        assert answer.status == (304 if unchanged else 200)
        assert answer.header("ETag") == tag
        assert answer.header("Docker-Content-Digest") == tag.strip('"')
        if unchanged:
            assert answer.header("Content-Length") is None


@pytest.mark.parametrize("kind", ["blob", "tag", "digest"])
async def test_content_that_is_not_what_if_match_names_is_412(client: AsgiClient, kind: str) -> None:
    target = (await filled(client))[kind]
    tag = (await client.ask("GET", target)).header("ETag")
    for method in ("GET", "HEAD"):
        for value, status in ((tag, 200), ("*", 200), (f"{OTHER}, {tag}", 200), (OTHER, 412), ("", 412)):
            assert (await client.ask(method, target, [("If-Match", str(value))])).status == status
    # If-Match is looked at first (RFC 9110, 13.2.2).
    assert (await client.ask("GET", target, [("If-Match", OTHER), ("If-None-Match", "*")])).status == 412


async def test_what_is_not_there_is_404_whatever_the_condition(client: AsgiClient) -> None:
    await filled(client)
    for header in ("If-Match", "If-None-Match"):
        for target in ("/v2/a/manifests/nothing", f"/v2/a/blobs/{ABSENT}"):
            assert (await client.ask("GET", target, [(header, "*")])).status == 404


async def test_a_push_with_a_condition_moves_a_tag_only_if_it_holds(client: AsgiClient) -> None:
    first = await client.push_image("a", "v1", annotations={"n": "1"})
    config = await client.push_blob("a", EMPTY)
    table = (
        ("v1", "If-Match", f'"{first}"', 201),
        ("v1", "If-Match", f'"{first}"', 412),  # it has moved by the push before
        ("v1", "If-Match", "*", 201),
        ("new", "If-Match", "*", 412),
        ("new", "If-None-Match", "*", 201),
        ("new", "If-None-Match", "*", 412),
        ("v1", "If-None-Match", f'"{first}"', 201),
    )
    for at, (tag, header, value, status) in enumerate(table):
        before = await client.ask("HEAD", f"/v2/a/manifests/{tag}")
        document = image(config, annotations={"at": str(at)})
        answer = await client.push_manifest("a", tag, document, [(header, value)])
        assert answer.status == status, (at, answer)
        after = await client.ask("HEAD", f"/v2/a/manifests/{tag}")
        if status == 412:
            assert answer.codes == ["MANIFEST_INVALID"]
            assert after.headers == before.headers
        else:
            assert after.header("Docker-Content-Digest") == answer.header("Docker-Content-Digest")


@pytest.mark.parametrize("by_tag", [True, False])
async def test_a_delete_with_a_condition_is_done_only_if_it_holds(client: AsgiClient, by_tag: bool) -> None:
    digest = await client.push_image("a", "v1")
    target = "/v2/a/manifests/v1" if by_tag else f"/v2/a/manifests/{digest}"
    assert (await client.ask("DELETE", target, [("If-Match", OTHER)])).status == 412
    assert (await client.ask("HEAD", "/v2/a/manifests/v1")).status == 200
    assert (await client.ask("DELETE", target, [("If-Match", f'{OTHER}, "{digest}"')])).status == 202
    assert (await client.ask("HEAD", "/v2/a/manifests/v1")).status == 404


# ---- ranges


@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=199-199", 199, 200),
        ("bytes=190-", 190, 200),
        ("bytes=0-", 0, 200),
        ("bytes=150-500", 150, 200),
        ("bytes=0-9999999999999999999", 0, 200),
        ("bytes=-1", 199, 200),
        ("bytes=-50", 150, 200),
        ("bytes=-200", 0, 200),
        ("bytes=-500", 0, 200),
        ("Bytes=5-6", 5, 7),
        ("bytes= 5-6 ", 5, 7),
    ],
)
async def test_a_range_of_a_blob_is_sent_alone(client: AsgiClient, value: str, start: int, stop: int) -> None:
    await client.push_blob("a", BLOB)
    answer = await client.ask("GET", f"/v2/a/blobs/{BLOB_DIGEST}", [("Range", value)])
    assert answer.status == 206
    assert answer.body == BLOB[start:stop]
    assert answer.header("Content-Range") == f"bytes {start}-{stop - 1}/200"
    assert answer.header("Content-Length") == str(stop - start)
    assert answer.header("Docker-Content-Digest") == BLOB_DIGEST


@pytest.mark.parametrize(
    "value", ["bytes=200-", "bytes=200-300", "bytes=500-0", "bytes=10-9", "bytes=-0", f"bytes={10**30}-"]
)
async def test_a_range_that_lies_outside_is_416_with_the_length(client: AsgiClient, value: str) -> None:
    await client.push_blob("a", BLOB)
    answer = await client.ask("GET", f"/v2/a/blobs/{BLOB_DIGEST}", [("Range", value)])
    assert answer.status == 416
    assert answer.header("Content-Range") == "bytes */200"
    assert answer.codes == ["SIZE_INVALID"]


@pytest.mark.parametrize(
    "value",
    [
        "bytes=0-0,5-9",
        "bytes=0-0, -1",
        "bytes=-",
        "bytes=",
        "bytes",
        "items=0-5",
        "0-5",
        "bytes=a-b",
        "bytes=1-2-3",
        "",
    ],
)
async def test_several_ranges_and_what_is_none_get_the_whole(client: AsgiClient, value: str) -> None:
    await client.push_blob("a", BLOB)
    answer = await client.ask("GET", f"/v2/a/blobs/{BLOB_DIGEST}", [("Range", value)])
    assert (answer.status, answer.body, answer.header("Content-Range")) == (200, BLOB, None)


@pytest.mark.parametrize(
    ("if_range", "status"),
    [(f'"{BLOB_DIGEST}"', 206), (OTHER, 200), (f'W/"{BLOB_DIGEST}"', 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)],
)
async def test_a_range_of_what_the_client_began_with_is_sent_only_if_it_is_that(
    client: AsgiClient, if_range: str, status: int
) -> None:
    await client.push_blob("a", BLOB)
    headers = [("Range", "bytes=100-"), ("If-Range", if_range)]
    answer = await client.ask("GET", f"/v2/a/blobs/{BLOB_DIGEST}", headers)
    assert (answer.status, answer.body) == (status, BLOB[100:] if status == 206 else BLOB)


async def test_a_head_and_a_manifest_have_no_ranges(client: AsgiClient) -> None:
    targets = await filled(client)
    head = await client.ask("HEAD", targets["blob"], [("Range", "bytes=0-0")])
    assert (head.status, head.header("Content-Length")) == (200, "200")
    assert (await client.ask("GET", targets["tag"], [("Range", "bytes=0-0")])).status == 200


async def test_nothing_has_no_range(client: AsgiClient) -> None:
    digest = await client.push_blob("a", b"")
    for value in ("bytes=0-", "bytes=0-0", "bytes=-1"):
        answer = await client.ask("GET", f"/v2/a/blobs/{digest}", [("Range", value)])
        assert (answer.status, answer.header("Content-Range")) == (416, "bytes */0")
    assert (await client.ask("GET", f"/v2/a/blobs/{digest}")).header("Content-Length") == "0"


@given(st.one_of(st.text(st.characters(max_codepoint=255)), st.text("bytes=0123456789-, ").map("bytes={}".format)))
def test_no_range_header_gets_other_bytes_than_it_names(value: str) -> None:
    async def ask() -> None:
        client = client_of()
        await client.push_blob("a", BLOB)
        answer = await client.ask("GET", f"/v2/a/blobs/{BLOB_DIGEST}", [("Range", value)])
        if answer.status == 206:
            match = re.fullmatch(r"bytes (\d+)-(\d+)/200", answer.header("Content-Range") or "")
            assert match is not None
            assert answer.body == BLOB[int(match[1]) : int(match[2]) + 1]
        else:
            assert answer.status in {200, 416}

    trio.run(ask)


# ---- uploads


async def test_a_session_says_where_it_is_and_how_far(client: AsgiClient) -> None:
    opened = await client.ask("POST", "/v2/library/a/blobs/uploads/")
    upload_id = opened.header("Docker-Upload-UUID") or ""
    location = f"/v2/library/a/blobs/uploads/{upload_id}"
    assert UUID.fullmatch(upload_id)
    assert opened.status == 202
    assert opened.header("OCI-Chunk-Min-Length") is None
    answers = [
        (opened, "0-0"),
        (await client.ask("PATCH", location, [("Content-Range", "0-4")], b"hello"), "0-4"),
        (await client.ask("GET", location), "0-4"),
        (await client.ask("PATCH", location, body=[b" ", b"world"], length=False), "0-10"),
        (await client.ask("PATCH", location, [("Content-Range", "0-4")], b"hello"), "0-10"),
        (await client.ask("PUT", location + f"?digest={ABSENT}&x=y", [("Content-Range", "0-4")], b"hello"), "0-10"),
        (await client.ask("HEAD", location), "0-10"),
    ]
    assert [answer.status for answer, _ in answers] == [202, 202, 204, 202, 416, 416, 204]
    for answer, acknowledged in answers:
        assert answer.header("Location") == location
        assert answer.header("Range") == acknowledged
        assert answer.header("Docker-Upload-UUID") == upload_id
    closed = await client.ask("PUT", location + f"?digest={Digest.of(b'hello world')}")
    assert closed.status == 201
    assert closed.header("Location") == f"/v2/library/a/blobs/{Digest.of(b'hello world')}"
    assert closed.header("Docker-Content-Digest") == Digest.of(b"hello world")


async def test_a_cancelled_session_is_gone(client: AsgiClient) -> None:
    location = await client.open_session("a")
    answer = await client.ask("DELETE", location)
    assert (answer.status, answer.header("Docker-Upload-UUID")) == (204, location.rpartition("/")[2])
    for method in ("GET", "PATCH", "DELETE"):
        answer = await client.ask(method, location)
        assert (answer.status, answer.codes) == (404, ["BLOB_UPLOAD_UNKNOWN"])


class ChunkyDriver(MemoryDriver):
    """A store that wants large chunks."""

    capabilities = msgspec.structs.replace(MemoryDriver.capabilities, chunk_minimum=5 << 20)


async def test_the_least_chunk_of_the_store_is_told_with_every_new_session() -> None:
    client = client_of(Registry(ChunkyDriver()))
    for target in ("/v2/a/blobs/uploads/", f"/v2/a/blobs/uploads/?mount={ABSENT}&from=b"):
        answer = await client.ask("POST", target)
        assert (answer.status, answer.header("OCI-Chunk-Min-Length")) == (202, "5242880")


async def test_a_mounted_blob_is_there_and_what_cannot_be_mounted_opens_a_session(client: AsgiClient) -> None:
    await client.push_blob("a", BLOB)
    for query in (f"mount={BLOB_DIGEST}&from=a", f"mount={BLOB_DIGEST}"):
        answer = await client.ask("POST", f"/v2/b/blobs/uploads/?{query}")
        assert (answer.status, answer.header("Location")) == (201, f"/v2/b/blobs/{BLOB_DIGEST}")
        assert answer.header("Docker-Content-Digest") == BLOB_DIGEST
    answer = await client.ask("POST", f"/v2/b/blobs/uploads/?mount={ABSENT}&from=a")
    assert answer.status == 202
    assert "/v2/b/blobs/uploads/" in (answer.header("Location") or "")


# ---- URLs that are handed out

LOCATIONS = (
    (Settings(), ""),
    (Settings(prefix="/registry"), "/registry"),
    (Settings(relative_urls=False), "http://registry.test"),
    (Settings(relative_urls=False, prefix="/registry"), "http://registry.test/registry"),
    (Settings(host="https://public.test:8443/"), "https://public.test:8443"),
    (Settings(host="https://public.test/reg", relative_urls=True), "https://public.test/reg"),
)


@pytest.mark.parametrize(("settings", "before"), LOCATIONS)
async def test_every_url_that_is_handed_out_leads_back_here(settings: Settings, before: str) -> None:
    client = client_of(settings=settings)
    prefix = settings.prefix
    config = await client.ask("POST", f"{prefix}/v2/a/blobs/uploads/?digest={Digest.of(EMPTY)}", body=EMPTY)
    session = await client.ask("POST", f"{prefix}/v2/a/blobs/uploads/")
    location = session.header("Location") or ""
    inner = prefix + location.removeprefix(before)
    chunk = await client.ask("PATCH", inner, body=b"x")
    refused = await client.ask("PATCH", inner, [("Content-Range", "5-5")], b"x")
    data = json.dumps(image(Digest.of(EMPTY), subject=ABSENT)).encode()
    manifest = await client.ask(
        "PUT", f"{prefix}/v2/a/manifests/{Digest.of(data)}?tag=a&tag=b", [("Content-Type", OCI_MANIFEST)], data
    )
    tags = await client.ask("GET", f"{prefix}/v2/a/tags/list?n=1")
    assert [each.status for each in (config, session, chunk, refused, manifest, tags)] == [201, 202, 202, 416, 201, 200]
    link = (tags.header("Link") or "").removeprefix("<")
    for url in (config.header("Location"), location, chunk.header("Location"), refused.header("Location"), link):
        assert (url or "").startswith(before + "/v2/a/")


async def test_a_redirect_does_not_happen_without_a_url(client: AsgiClient) -> None:
    await client.push_blob("a", BLOB)
    assert (await client.ask("GET", f"/v2/a/blobs/{BLOB_DIGEST}")).status == 200


class ElsewhereDriver(MemoryDriver):
    """A store from which clients fetch for themselves, if it knows how."""

    failure: Exception | None = None

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        return f"https://store.test/{key}?for={client_address}"


async def test_a_get_is_sent_elsewhere_and_a_head_never(client: AsgiClient) -> None:
    client = client_of(Registry(ElsewhereDriver()))
    await client.push_blob("a", BLOB)
    got = await client.ask("GET", f"/v2/a/blobs/{BLOB_DIGEST}")
    assert (got.status, got.body, got.header("Content-Length")) == (307, b"", "0")
    assert (got.header("Location") or "").startswith("https://store.test/docker/registry/v2/blobs/")
    assert (got.header("Location") or "").endswith("?for=192.0.2.7")
    assert got.header("Docker-Content-Digest") == BLOB_DIGEST
    head = await client.ask("HEAD", f"/v2/a/blobs/{BLOB_DIGEST}")
    assert (head.status, head.header("Content-Length")) == (200, "200")


async def test_a_store_that_cannot_make_a_url_is_told_as_any_failure() -> None:
    driver = ElsewhereDriver()
    client = client_of(Registry(driver))
    await client.push_blob("a", BLOB)
    driver.failure = StoreUnavailable("secret.internal does not answer", driver="x", operation="url", key="k")
    answer = await client.ask("GET", f"/v2/a/blobs/{BLOB_DIGEST}")
    assert answer.status == 503
    assert b"secret.internal" not in answer.body


# ---- lists


async def pages(client: AsgiClient, target: str | None, key: str) -> list[list[str]]:
    """Follow `Link` from `target` to the end; return what each page has."""
    found: list[list[str]] = []
    while target is not None:
        answer = await client.ask("GET", target)
        assert answer.status == 200, answer
        found.append([str(item) for item in answer.decoded(dict[str, object])[key]])  # type: ignore[attr-defined] # a list
        target = next_page(answer)
        assert len(found) < 100
    return found


TAGS = ("1.0", "1.0-alpine", "1.0.1", "A", "B_", "_x", "a", "latest", "z")


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 10, 1000])
@pytest.mark.parametrize("settings", [Settings(), Settings(relative_urls=False), Settings(host="https://x.test")])
async def test_pages_of_tags_lead_to_the_end(size: int, settings: Settings) -> None:
    client = client_of(settings=settings)
    for tag in TAGS:
        await client.push_image("library/a", tag)
    found = await pages(client, f"/v2/library/a/tags/list?n={size}", "tags")
    assert [tag for page in found for tag in page] == sorted(TAGS)
    assert all(len(page) == size for page in found[:-1])
    assert found[-1]


async def test_the_limit_on_pages_holds_without_losing_anything() -> None:
    client = client_of(settings=Settings(limits=Limits(tags=2, repositories=2, default_repositories=2, referrers=2)))
    subject = await client.push_image("a", "v0")
    for at in range(1, 5):
        await client.push_image("a", f"v{at}", subject, annotations={"at": str(at)})
        await client.push_image(f"b{at}", "x")
    assert await pages(client, "/v2/a/tags/list?n=1000", "tags") == [["v0", "v1"], ["v2", "v3"], ["v4"]]
    assert await pages(client, "/v2/_catalog", "repositories") == [["a", "b1"], ["b2", "b3"], ["b4"]]
    assert [len(page) for page in await pages(client, f"/v2/a/referrers/{subject}?n=1000", "manifests")] == [2, 2]


async def test_no_tags_are_asked_for_and_none_come(client: AsgiClient) -> None:
    await client.push_image("a", "v1")
    answer = await client.ask("GET", "/v2/a/tags/list?n=0")
    assert answer.decoded(dict[str, object]) == {"name": "a", "tags": []}
    assert answer.header("Link") is None
    catalog = await client.ask("GET", "/v2/_catalog?n=0")
    assert (catalog.decoded(dict[str, object]), catalog.header("Link")) == ({"repositories": []}, None)


async def test_a_repository_of_untagged_content_has_an_empty_list(client: AsgiClient) -> None:
    await client.push_image("a")
    assert (await client.ask("GET", "/v2/a/tags/list")).decoded(dict[str, object]) == {"name": "a", "tags": []}
    missing = await client.ask("GET", "/v2/b/tags/list")
    assert (missing.status, missing.codes) == (404, ["NAME_UNKNOWN"])


@pytest.mark.parametrize("size", [1, 2, 4, 100])
async def test_pages_of_the_catalog_lead_to_the_end(client: AsgiClient, size: int) -> None:
    names = ["a", "a-b", "a/b", "a/b/c", "ab", "b"]
    for name in names:
        await client.push_image(name, "v1")
    found = await pages(client, f"/v2/_catalog?n={size}", "repositories")
    assert [name for page in found for name in page] == sorted(names)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("kind", [None, "application/spdx+json", "text/nothing"])
async def test_pages_of_referrers_lead_to_the_end_also_when_filtered(
    client: AsgiClient, size: int, kind: str | None
) -> None:
    subject = await client.push_image("library/a", "v1")
    wanted: list[str] = []
    for at in range(6):
        artifact_type = "application/spdx+json" if at % 2 else "application/a&b=c"
        digest = await client.push_image(
            "library/a", None, subject, artifactType=artifact_type, annotations={"at": str(at)}
        )
        if kind in {None, artifact_type}:
            wanted.append(str(digest))
    query = f"n={size}" if kind is None else f"n={size}&artifactType={quote(kind, safe='')}"
    target: str | None = f"/v2/library/a/referrers/{subject}?{query}"
    found: list[str] = []
    while target is not None:
        answer = await client.ask("GET", target)
        assert answer.status == 200
        assert answer.header("Content-Type") == OCI_INDEX
        assert answer.header("OCI-Filters-Applied") == (None if kind is None else "artifactType")
        index = json.loads(answer.body)
        assert (index["schemaVersion"], index["mediaType"]) == (2, OCI_INDEX)
        found += [each["digest"] for each in index["manifests"]]
        assert all(each["annotations"]["at"] for each in index["manifests"])
        target = next_page(answer)
    assert found == sorted(wanted)


async def test_an_unknown_subject_has_no_referrers(client: AsgiClient) -> None:
    answer = await client.ask("GET", f"/v2/nowhere/referrers/{ABSENT}")
    assert answer.status == 200
    assert json.loads(answer.body)["manifests"] == []


# ---- pushes of manifests


async def test_a_subject_and_tags_are_confirmed(client: AsgiClient) -> None:
    config = await client.push_blob("a", EMPTY)
    document = image(config, subject=ABSENT)
    by_tag = await client.push_manifest("a", "v1", document)
    assert (by_tag.header("OCI-Subject"), by_tag.header("OCI-Tag")) == (ABSENT, None)
    by_digest = await client.push_manifest("a", None, document, query="?tag=x&tag=y&tag=x")
    assert (by_digest.header("OCI-Subject"), by_digest.header("OCI-Tag")) == (ABSENT, "x, y")
    plain = await client.push_manifest("a", "v2", image(config))
    assert plain.header("OCI-Subject") is None
    index: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [],
        "subject": descriptor(ABSENT, 2, OCI_MANIFEST),
    }
    assert (await client.push_manifest("a", "v3", index)).header("OCI-Subject") == ABSENT


async def test_each_missing_reference_is_named(client: AsgiClient) -> None:
    config = Digest.of(b"config")
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, 6, CONFIG_TYPE),
        "layers": [descriptor(ABSENT, 1), descriptor(ABSENT, 1)],
    }
    answer = await client.push_manifest("a", "v1", document)
    assert (answer.status, answer.codes) == (400, ["MANIFEST_BLOB_UNKNOWN"] * 2)
    details = [error["detail"] for error in json.loads(answer.body)["errors"]]
    assert details == [
        {"digest": str(config), "mediaType": CONFIG_TYPE, "size": 6},
        {"digest": str(ABSENT), "mediaType": LAYER_TYPE, "size": 1},
    ]


# ---- warnings


class Warner:
    """A handler that warns about every push."""

    def __init__(self, inner: Handler, *warnings: str) -> None:
        self._inner = inner
        self._warnings = warnings

    async def __call__(self, operation: Operation[R], /) -> R:
        reply = await self._inner(operation)
        if isinstance(reply, ManifestPushed):
            answered: object = ManifestPushed(
                repository=reply.repository,
                descriptor=reply.descriptor,
                reference=reply.reference,
                warnings=self._warnings,
            )
            return answered  # type: ignore[return-value] # the same class as `reply`
        return reply


async def warned(*warnings: str) -> list[str]:
    client = client_of(Warner(Registry(MemoryDriver()), *warnings))
    config = await client.push_blob("a", EMPTY)
    answer = await client.push_manifest("a", "v1", image(config))
    assert answer.status == 201
    return answer.all("Warning")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", '299 - "plain"'),
        ('say "no"', '299 - "say \\"no\\""'),
        ("back\\slash", '299 - "back\\\\slash"'),
        ("one\r\nSet-Cookie: two", '299 - "one Set-Cookie: two"'),
        ("  a \n\n b\t", '299 - "a b"'),
        ("caf\xe9", '299 - "caf\\\\xe9"'),
        ("a\0b\x1b[31mc\x7f", '299 - "a?b?[31mc?"'),
        ("\u2028x", '299 - "x"'),
    ],
)
async def test_a_warning_is_one_quoted_line(text: str, value: str) -> None:
    assert await warned(text) == [value]


@given(st.text())
def test_no_warning_breaks_out_of_its_header(text: str) -> None:
    async def check() -> None:
        (value,) = await warned(text)
        assert re.fullmatch(r'299 - "([\t !#-\[\]-~]|\\[\t -~])*"', value)

    trio.run(check)


@pytest.mark.parametrize(
    "text",
    ["x" * 5000, "\xe9" * 2000, '"' * 1500, "\\" * 1500, "x" * 1022 + '"', "\n" + "x" * 10**6, " " * 2000 + "x" * 2000],
)
async def test_a_long_warning_is_cut_short(text: str) -> None:
    (value,) = await warned(text)
    assert value.endswith('..."')
    assert 1010 < len(value) <= 1024 + len('299 - ""')
    assert re.fullmatch(r'299 - "([\t !#-\[\]-~]|\\[\t -~])*"', value)


async def test_a_warning_that_fits_is_whole() -> None:
    text = "x" * 1021
    assert await warned(text) == [f'299 - "{text}"']


@pytest.mark.parametrize("length", [1, 100, 900, 5000])
async def test_all_warnings_together_have_at_most_4096_bytes(length: int) -> None:
    values = await warned(*(f"{n:06}" + "x" * length for n in range(6000)))
    assert 2 <= len(values) <= 300
    assert sum(map(len, values)) <= 4096
    told = values[:-1]
    assert [value[7:13] for value in told] == [f"{n:06}" for n in range(len(told))]
    assert values[-1] == f'299 - "further warnings, for which there is no room here: {6000 - len(told)}"'


async def test_equal_warnings_are_said_once() -> None:
    assert await warned(*("a", "b", "a") * 1000) == ['299 - "a"', '299 - "b"']


# ---- errors


def test_every_error_is_rendered_with_a_code_that_clients_know() -> None:
    for error in [
        Unauthorized("who?", challenges=['Basic realm="x"', "Bearer y"]),
        TooManyRequests("slow", retry_after=1.2),
    ]:
        response = respond_error(None, error, "")
        assert json.loads(response.body)["errors"][0]["code"] in CODES
        assert dict(response.headers)[b"content-length"] == b"%d" % len(response.body)
    challenges = [
        value
        for name, value in respond_error(None, Unauthorized("x", challenges=["a", "b"]), "").headers
        if name == b"www-authenticate"
    ]
    assert challenges == [b"a", b"b"]
    assert (b"retry-after", b"2") in respond_error(None, TooManyRequests("slow", retry_after=1.2), "").headers


class Unspeakable:
    def __str__(self) -> str:
        raise ZeroDivisionError


ENDLESS: list[object] = ["x"]
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize("detail", [ENDLESS, {"x": ENDLESS}, Unspeakable(), {Unspeakable(): 1}, "\ud800", 1 << 80])
def test_a_detail_that_json_cannot_hold_spoils_no_answer(detail: object) -> None:
    response = respond_error(None, Refused("no", detail=detail), "")
    assert response.status == 403
    (error,) = json.loads(response.body)["errors"]
    assert (error["code"], error["message"]) == ("DENIED", "no")


def test_a_sentence_that_is_no_text_is_told_as_far_as_it_goes() -> None:
    (error,) = json.loads(respond_error(None, Refused("caf\ud800"), "").body)["errors"]
    assert error["message"] == "caf?"


def subclasses(kind: type[RegistryError]) -> set[type[RegistryError]]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


def test_every_kind_of_error_below_500_has_a_code_of_the_specification() -> None:
    for kind in subclasses(RegistryError):
        if kind.__module__.startswith("moorage") and 400 <= kind.status < 499:
            assert kind.code in CODES, kind


class FailingDriver(MemoryDriver):
    """A store whose writes fail once a test says so."""

    failure: Exception | None = None

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        if self.failure is not None:
            raise self.failure
        await super().write(key, chunks, condition=condition, durable=durable)


@pytest.mark.parametrize(
    ("kind", "status", "retry"),
    [(StoreFull, 507, None), (StoreReadOnly, 503, "60"), (StoreBusy, 503, "5"), (StoreUnavailable, 503, "5")],
)
async def test_a_store_that_fails_is_told_without_its_secrets(
    kind: type[StoreFull], status: int, retry: str | None
) -> None:
    driver = FailingDriver()
    client = client_of(Registry(driver))
    driver.failure = kind("10.0.0.3: /srv/secret", driver="x", operation="write", key="secret")
    for answer in (
        await client.ask("POST", "/v2/a/blobs/uploads/"),
        await client.ask("POST", f"/v2/a/blobs/uploads/?digest={BLOB_DIGEST}", body=BLOB),
    ):
        assert (answer.status, answer.header("Retry-After")) == (status, retry)
        assert answer.codes
        assert b"secret" not in answer.body
    driver.failure = None
    assert await client.push_blob("a", BLOB) == BLOB_DIGEST


class Answering:
    """A handler that always gives one thing."""

    def __init__(self, reply: object) -> None:
        self._reply = reply

    async def __call__(self, operation: Operation[R], /) -> R:
        return self._reply  # type: ignore[return-value] # on purpose


async def test_a_reply_that_nobody_knows_is_a_fault_of_ours() -> None:
    answer = await client_of(Answering("what?")).ask("GET", "/v2/")
    assert answer.status == 500
    assert (await client_of(Answering(Pong())).ask("GET", "/v2/")).status == 200

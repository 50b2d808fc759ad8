"""The fake of Google Cloud Storage is as strict as the service; a driver that passes on it must not be flattered."""

import base64
import hashlib
import json
from collections.abc import Generator, Mapping

import httpx
import pytest

from gcs_fake import QUANTUM, GCSFake, gcs_fake

OBJECTS = "/storage/v1/b/bucket/o"
UPLOADS = "/upload/storage/v1/b/bucket/o"


@pytest.fixture
def fake() -> Generator[GCSFake]:
    with gcs_fake(rewrite_limit=1 << 20) as fake:
        fake.create_bucket("bucket")
        yield fake


@pytest.fixture
def client(fake: GCSFake) -> Generator[httpx.Client]:
    with httpx.Client(base_url=fake.url, timeout=60, trust_env=False) as client:
        yield client


def put(client: httpx.Client, name: str, data: bytes = b"x", **params: str) -> httpx.Response:
    return client.post(UPLOADS, params={"uploadType": "media", "name": name} | params, content=data)


def begin(client: httpx.Client, name: str = "key", **params: str) -> str:
    reply = client.post(UPLOADS, params={"uploadType": "resumable", "name": name} | params, json={})
    assert reply.status_code == 200
    return reply.headers["Location"]


def send(client: httpx.Client, session: str, content_range: str, data: bytes = b"") -> httpx.Response:
    return client.put(session, headers={"Content-Range": content_range}, content=data)


def test_an_object_is_described_by_its_checksums_and_generation(client: httpx.Client) -> None:
    made = put(client, "a/b", b"123456789").json()
    assert made["md5Hash"] == base64.b64encode(hashlib.md5(b"123456789", usedforsecurity=False).digest()).decode()
    assert base64.b64decode(made["crc32c"]).hex() == "e3069283"
    assert client.get(f"{OBJECTS}/a%2Fb").json() == made
    media = client.get(f"/download{OBJECTS}/a%2Fb", params={"alt": "media"})
    assert (media.content, media.headers["X-Goog-Generation"]) == (b"123456789", made["generation"])
    assert int(put(client, "a/b").json()["generation"]) > int(made["generation"])


@pytest.mark.parametrize(
    ("there", "condition", "status"),
    [
        (False, {"ifGenerationMatch": "0"}, 200),
        (True, {"ifGenerationMatch": "0"}, 412),
        (True, {"ifGenerationMatch": "current"}, 200),
        (True, {"ifGenerationMatch": "1"}, 412),
        (False, {"ifGenerationMatch": "1"}, 412),
        (True, {"ifGenerationNotMatch": "current"}, 412),
        (True, {"ifGenerationNotMatch": "0"}, 200),
        (False, {"ifGenerationNotMatch": "0"}, 412),
        (False, {"ifGenerationMatch": "x"}, 400),
        (False, {"ifGenerationMtach": "0"}, 400),
    ],
)
@pytest.mark.parametrize("way", ["media", "multipart", "resumable", "rewriteTo", "copyTo", "moveTo", "compose"])
def test_every_way_to_make_an_object_keeps_preconditions(
    way: str, there: bool, condition: Mapping[str, str], status: int, client: httpx.Client
) -> None:
    put(client, "source")
    current = put(client, "key", b"old").json()["generation"] if there else ""
    params = {name: current if value == "current" else value for name, value in condition.items()}
    if way == "media":
        reply = put(client, "key", b"x", **params)
    elif way == "multipart":
        parts = b'--b\r\nContent-Type: application/json\r\n\r\n{"name": "key"}\r\n--b\r\n\r\nx\r\n--b--'
        headers = {"Content-Type": "multipart/related; boundary=b"}
        reply = client.post(UPLOADS, params={"uploadType": "multipart"} | params, content=parts, headers=headers)
    elif way == "resumable":
        reply = client.post(UPLOADS, params={"uploadType": "resumable", "name": "key"} | params)
        if reply.is_success:
            reply = send(client, reply.headers["Location"], "bytes 0-0/1", b"x")
    elif way == "compose":
        wanted = {"sourceObjects": [{"name": "source"}]}
        reply = client.post(f"{OBJECTS}/key/compose", params=params, json=wanted)
    else:
        target = "/o/key" if way == "moveTo" else "/b/bucket/o/key"
        reply = client.post(f"{OBJECTS}/source/{way}{target}", params=params)
    assert reply.status_code == status
    have = client.get(f"{OBJECTS}/key", params={"alt": "media"})
    assert have.content == b"x" if status == 200 else not there or have.content == b"old"


def test_a_delete_keeps_preconditions(client: httpx.Client) -> None:
    put(client, "key")
    assert client.delete(f"{OBJECTS}/key", params={"ifGenerationMatch": "1"}).status_code == 412
    assert client.delete(f"{OBJECTS}/key").status_code == 204
    assert client.delete(f"{OBJECTS}/key").status_code == 404


@pytest.mark.parametrize(
    ("header", "status", "content", "shown"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
    ],
)
def test_ranges_are_kept(header: str, status: int, content: bytes | None, shown: str, client: httpx.Client) -> None:
    put(client, "key", b"0123456789")
    reply = client.get(f"{OBJECTS}/key", params={"alt": "media"}, headers={"Range": header})
    assert (reply.status_code, reply.headers["Content-Range"]) == (status, shown)
    assert content is None or reply.content == content


def test_a_pinned_generation_is_gone_once_replaced(client: httpx.Client) -> None:
    params = {"alt": "media", "generation": put(client, "key", b"1").json()["generation"]}
    assert client.get(f"{OBJECTS}/key", params=params).content == b"1"
    put(client, "key", b"2")
    assert client.get(f"{OBJECTS}/key", params=params).status_code == 404


def test_pages_count_prefixes_and_are_in_the_order_of_bytes(client: httpx.Client) -> None:
    for name in ("a/1", "a/2", "b", "c/1", "\uffff", "\U00010000"):
        put(client, name)
    seen, params = list[list[str]](), {"delimiter": "/", "maxResults": "2"}
    while True:
        page = client.get(OBJECTS, params=params).json()
        seen.append(sorted([item["name"] for item in page.get("items", ())] + page.get("prefixes", [])))
        if "nextPageToken" not in page:
            break
        params["pageToken"] = page["nextPageToken"]
    assert seen == [["a/", "b"], ["c/", "\uffff"], ["\U00010000"]]
    other = client.get(OBJECTS, params=params | {"prefix": "a"})
    assert other.status_code == 400, "a page token belongs to its query"


def test_a_page_has_a_thousand_at_most_and_begins_with_its_offset(client: httpx.Client) -> None:
    for number in range(1001):
        put(client, f"{number:04}")
    page = client.get(OBJECTS, params={"maxResults": "5000"}).json()
    assert (len(page["items"]), "nextPageToken" in page) == (1000, True)
    rest = client.get(OBJECTS, params={"startOffset": "0999"}).json()
    assert [item["name"] for item in rest["items"]] == ["0999", "1000"]
    assert client.get(OBJECTS, params={"maxResults": "0"}).status_code == 400
    assert "items" not in client.get(OBJECTS, params={"prefix": "x"}).json()


def test_a_resumable_upload_is_resumed_where_the_service_says(client: httpx.Client) -> None:
    session = begin(client)
    asked = send(client, session, "bytes */*")
    assert (asked.status_code, "Range" in asked.headers) == (308, False)
    assert send(client, session, f"bytes 0-{QUANTUM - 1}/*", b"a" * QUANTUM).headers["Range"] == "bytes=0-262143"
    again = send(client, session, f"bytes 0-{2 * QUANTUM - 1}/*", b"z" * QUANTUM + b"b" * QUANTUM)
    assert (again.status_code, again.headers["Range"]) == (308, "bytes=0-524287")
    assert client.get(f"{OBJECTS}/key").status_code == 404, "it is not there before its end"
    done = send(client, session, f"bytes {2 * QUANTUM}-{2 * QUANTUM}/{2 * QUANTUM + 1}", b"c")
    assert done.status_code == 200
    assert send(client, session, "bytes */*").json() == done.json()
    data = client.get(f"{OBJECTS}/key", params={"alt": "media"}).content
    assert data == b"a" * QUANTUM + b"b" * QUANTUM + b"c"


@pytest.mark.parametrize(
    ("content_range", "size", "status"),
    [
        ("bytes 0-99/*", 100, 400),
        ("bytes 0-99/1000", 100, 400),
        ("bytes 0-99/100", 99, 400),
        ("bytes 0-99/50", 100, 400),
        ("bytes 99-0/*", 0, 400),
        ("bytes 262144-524287/*", QUANTUM, 503),
        ("bytes */0", 0, 200),
        ("bytes */10", 0, 308),
        ("bytes */*", 1, 400),
        ("octets 0-99/100", 100, 400),
    ],
)
def test_a_chunk_that_breaks_the_rules_is_refused(
    content_range: str, size: int, status: int, client: httpx.Client
) -> None:
    session = begin(client)
    assert send(client, session, content_range, b"x" * size).status_code == status
    if status >= 400:
        assert "Range" not in send(client, session, "bytes */*").headers


def test_all_bytes_being_there_an_upload_is_finished_by_its_total(client: httpx.Client) -> None:
    session = begin(client)
    send(client, session, f"bytes 0-{QUANTUM - 1}/*", b"a" * QUANTUM)
    assert send(client, session, f"bytes */{QUANTUM}").json()["size"] == str(QUANTUM)


def test_the_precondition_of_a_session_is_asked_at_its_end(client: httpx.Client) -> None:
    session = begin(client, ifGenerationMatch="0")
    put(client, "key", b"rival")
    assert send(client, session, "bytes 0-0/1", b"x").status_code == 412
    assert client.get(f"{OBJECTS}/key", params={"alt": "media"}).content == b"rival"


def test_a_session_that_is_gone_says_so(fake: GCSFake, client: httpx.Client) -> None:
    session = begin(client)
    assert (client.delete(session).status_code, fake.open_sessions) == (499, 0)
    assert send(client, session, "bytes */*").status_code == 499
    session = begin(client)
    fake.expire_sessions()
    assert send(client, session, "bytes */*").status_code == 410
    assert send(client, f"{session}0", "bytes */*").status_code == 404


def test_the_service_may_keep_less_than_it_was_sent(fake: GCSFake, client: httpx.Client) -> None:
    fake.keep_at_most = QUANTUM
    session = begin(client)
    sent = send(client, session, f"bytes 0-{3 * QUANTUM - 1}/*", b"x" * 3 * QUANTUM)
    assert (sent.status_code, sent.headers["Range"]) == (308, f"bytes=0-{QUANTUM - 1}")


def test_a_wrong_checksum_is_refused(client: httpx.Client) -> None:
    params = {"uploadType": "resumable", "name": "key"}
    session = client.post(UPLOADS, params=params, content=json.dumps({"crc32c": "AAAAAA=="})).headers["Location"]
    assert send(client, session, "bytes 0-0/1", b"x").status_code == 400
    assert client.get(f"{OBJECTS}/key").status_code == 404


def test_a_long_rewrite_takes_several_calls(fake: GCSFake, client: httpx.Client) -> None:
    data = bytes(range(256)) * (10 << 10)
    put(client, "source", data)
    url, params, told = f"{OBJECTS}/source/rewriteTo/b/bucket/o/a%2Fb", dict[str, str](), list[str]()
    while True:
        reply = client.post(url, params=params).json()
        told.append(reply["totalBytesRewritten"])
        if reply["done"]:
            break
        assert client.get(f"{OBJECTS}/a%2Fb").status_code == 404
        params = {"rewriteToken": reply["rewriteToken"]}
    assert told == [str(1 << 20), str(2 << 20), str(len(data))]
    assert client.get(f"{OBJECTS}/a%2Fb", params={"alt": "media"}).content == data
    assert client.post(url, params={"rewriteToken": "other"}).status_code == 400
    assert fake.requests["POST", "rewrite"] == 4


def test_compose_joins_in_order_and_has_no_md5(client: httpx.Client) -> None:
    first, second = (put(client, name, name.encode()).json() for name in ("1", "2"))
    sources = [{"name": "2", "generation": second["generation"]}, {"name": "1"}]
    made = client.post(f"{OBJECTS}/key/compose", json={"sourceObjects": sources}).json()
    assert ("md5Hash" in made, made["componentCount"]) == (False, 2)
    assert client.get(f"{OBJECTS}/key", params={"alt": "media"}).content == b"21"
    stale = {"sourceObjects": [{"name": "1", "objectPreconditions": {"ifGenerationMatch": second["generation"]}}]}
    assert first["generation"] != second["generation"]
    assert client.post(f"{OBJECTS}/key/compose", json=stale).status_code == 412
    many = {"sourceObjects": [{"name": "1"}] * 33}
    assert client.post(f"{OBJECTS}/key/compose", json=many).status_code == 400


def test_requests_are_counted_by_method_and_kind(fake: GCSFake, client: httpx.Client) -> None:
    put(client, "key")
    session = begin(client)
    send(client, session, "bytes */*")
    send(client, session, "bytes 0-0/1", b"x")
    client.get(OBJECTS)
    counted = {("POST", "upload"): 1, ("POST", "session"): 1, ("PUT", "status"): 1, ("PUT", "chunk"): 1}
    assert fake.requests == counted | {("GET", "list"): 1}
    fake.reset()
    assert not fake.requests


def test_a_body_in_chunks_is_taken(client: httpx.Client) -> None:
    client.post(UPLOADS, params={"uploadType": "media", "name": "key"}, content=iter([b"1", b"2" * 100_000]))
    assert client.get(f"{OBJECTS}/key").json()["size"] == "100001"

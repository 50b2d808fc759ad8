"""end-2: pull blobs, whole and in part.

Not testable from outside: what happens to a pull while a collector removes the blob, and HTTP/2.
"""

from __future__ import annotations

import gzip
import zlib
from functools import partial

from . import expect
from .answer import Answer, CheckFailed
from .case import Group, NotOffered
from .client import Client
from .content import EMPTY_JSON, blob, digest_of, unknown_digest
from .scratch import Scratch, together

__all__ = ["case"]

case = Group("blobs", "Pulling blobs")

PART_SIZE = 2048


async def _pulled(registry: Client, scratch: Scratch, data: bytes, algorithm: str = "sha256") -> Answer:
    digest = await scratch.push_bytes(data, algorithm=algorithm)
    answer = await registry.get_blob(scratch.name, digest)
    expect.status(answer, 200)
    expect.body(answer, data)
    expect.digest_header(answer, digest)
    return answer


@case(section="end-2")
async def get_returns_the_bytes(registry: Client, scratch: Scratch) -> None:
    """GET of a blob answers 200 with exactly the bytes pushed."""
    await _pulled(registry, scratch, blob(3067).data)


@case(section="end-2")
async def get_returns_the_bytes_of_a_large_blob(registry: Client, scratch: Scratch) -> None:
    """GET of a blob of 9 MiB and one byte answers 200 with exactly the bytes pushed."""
    await _pulled(registry, scratch, blob(9 * 2**20 + 1).data)


@case(section="end-2")
async def get_of_the_empty_blob(registry: Client, scratch: Scratch) -> None:
    """GET of a blob of zero bytes answers 200 with an empty body."""
    await _pulled(registry, scratch, b"")


@case(section="end-2")
async def get_of_the_empty_json_object(registry: Client, scratch: Scratch) -> None:
    """GET of the two bytes that artifacts have as their config answers 200 with these."""
    await _pulled(registry, scratch, EMPTY_JSON)


@case(section="end-2", since="dev")
async def get_names_the_digest(registry: Client, scratch: Scratch) -> None:
    """GET of a blob carries Docker-Content-Digest with the digest that was asked for."""
    digest = await scratch.push_blob(blob())
    answer = await registry.get_blob(scratch.name, digest)
    expect.status(answer, 200)
    expect.digest_header(answer, digest, required=True)


@case(section="end-2", since="dev")
async def head_names_the_digest(registry: Client, scratch: Scratch) -> None:
    """HEAD of a blob carries Docker-Content-Digest with the digest that was asked for."""
    digest = await scratch.push_blob(blob())
    answer = await registry.head_blob(scratch.name, digest)
    expect.status(answer, 200)
    expect.digest_header(answer, digest, required=True)


@case(section="end-2")
async def head_is_200_without_a_body(registry: Client, scratch: Scratch) -> None:
    """HEAD of a blob answers 200 and no body; a Content-Length, if there is one, is the blob's."""
    content = blob(1025)
    digest = await scratch.push_blob(content)
    answer = await registry.head_blob(scratch.name, digest)
    expect.status(answer, 200)
    expect.no_body(answer)
    expect.digest_header(answer, digest)
    if answer.header("Content-Length") is not None:
        expect.length(answer, len(content.data))


@case(section="end-2", since="dev")
async def head_has_the_length(registry: Client, scratch: Scratch) -> None:
    """HEAD of a blob carries Content-Length with the blob's size."""
    content = blob(1025)
    answer = await registry.head_blob(scratch.name, await scratch.push_blob(content))
    expect.status(answer, 200)
    expect.length(answer, len(content.data))


@case(section="end-2", since="dev")
async def head_of_the_empty_blob_has_the_length(registry: Client, scratch: Scratch) -> None:
    """HEAD of a blob of zero bytes carries Content-Length: 0."""
    answer = await registry.head_blob(scratch.name, await scratch.push_bytes(b""))
    expect.status(answer, 200)
    expect.length(answer, 0)


@case(section="end-2")
async def get_of_a_missing_blob_is_404(registry: Client, scratch: Scratch) -> None:
    """GET of a blob that the repository does not have answers 404."""
    await scratch.push_blob(blob())
    expect.not_found(await registry.get_blob(scratch.name, unknown_digest()))


@case(section="end-2")
async def head_of_a_missing_blob_is_404(registry: Client, scratch: Scratch) -> None:
    """HEAD of a blob that the repository does not have answers 404 and no body."""
    await scratch.push_blob(blob())
    answer = await registry.head_blob(scratch.name, unknown_digest())
    expect.not_found(answer)
    expect.no_body(answer)


@case(section="end-2", requires=())
async def get_in_an_unknown_repository_is_404(registry: Client, scratch: Scratch) -> None:
    """GET and HEAD of a blob in a repository that does not exist answer 404."""
    expect.not_found(await registry.get_blob(scratch.name, unknown_digest()))
    expect.not_found(await registry.head_blob(scratch.name, unknown_digest()))


@case(section="end-2", since="1.1")
async def get_of_another_repositorys_blob_is_404(registry: Client, scratch: Scratch) -> None:
    """GET of a blob that only another repository has answers 404."""
    digest = await scratch.push_blob(blob(), scratch.another())
    await scratch.push_blob(blob())
    expect.not_found(await registry.get_blob(scratch.name, digest), why="only another repository has it")


@case(section="end-2", since="1.1")
async def head_of_another_repositorys_blob_is_404(registry: Client, scratch: Scratch) -> None:
    """HEAD of a blob that only another repository has answers 404, asked once and again."""
    digest = await scratch.push_blob(blob(), scratch.another())
    await scratch.push_blob(blob())
    for _ in range(2):
        expect.not_found(await registry.head_blob(scratch.name, digest), why="only another repository has it")


@case(section="end-2")
async def get_of_a_malformed_digest_is_400_or_404(registry: Client, scratch: Scratch) -> None:
    """GET of a blob by something that is no digest answers 400 or 404."""
    await scratch.push_blob(blob())
    for digest in ("sha256:short", f"sha256:{'g' * 64}", f"sha256:{'A' * 64}", f"md5:{'0' * 32}"):
        expect.status(await registry.get_blob(scratch.name, digest), 400, 404)


@case(section="end-2", requires={"push", "sha512"})
async def get_by_sha512(registry: Client, scratch: Scratch) -> None:
    """A blob pushed by its sha512 digest is pulled by it."""
    await _pulled(registry, scratch, blob().data, "sha512")


@case(section="end-2", requires={"push", "sha512"}, since="dev")
async def get_by_sha512_names_the_digest(registry: Client, scratch: Scratch) -> None:
    """GET and HEAD of a blob by sha512 carry that digest, not another algorithm's."""
    digest = await scratch.push_bytes(blob().data, algorithm="sha512")
    for answer in (await registry.get_blob(scratch.name, digest), await registry.head_blob(scratch.name, digest)):
        expect.status(answer, 200)
        expect.digest_header(answer, digest, required=True)


@case(section="end-2")
async def compression_keeps_the_bytes(registry: Client, scratch: Scratch) -> None:
    """GET by a client that offers gzip gives the same bytes, and any coding is declared."""
    data = b"compressible " * 200
    digest = await scratch.push_bytes(data)
    answer = await registry.get_blob(scratch.name, digest, {"Accept-Encoding": "gzip"})
    expect.status(answer, 200)
    plain = answer.body
    if answer.headers.get("content-encoding") == "gzip":
        try:
            plain = gzip.decompress(plain)
        except (OSError, EOFError, zlib.error) as error:
            raise CheckFailed.of(answer, "a body in the coding that is declared", str(error)) from error
    expect.is_true(answer, plain == data, "exactly the bytes pushed", "others")


@case(section="end-2")
async def many_pull_at_once(registry: Client, scratch: Scratch) -> None:
    """Eight pulls of one blob at the same time all get its bytes."""
    content = blob(300_000)
    digest = await scratch.push_blob(content)
    for answer in await together(*[partial(registry.get_blob, scratch.name, digest)] * 8):
        expect.status(answer, 200)
        expect.body(answer, content.data)


# ---- ranges: RFC 9110 section 14 ----


async def _part(registry: Client, scratch: Scratch, wanted: str) -> tuple[Answer, bytes]:
    content = blob(PART_SIZE)
    digest = await scratch.push_blob(content)
    answer = await registry.get_blob(scratch.name, digest, {"Range": wanted})
    if answer.status == 200:
        expect.body(answer, content.data)
        raise NotOffered.by(answer, "ranges of blobs are not supported: the whole blob came")
    return answer, content.data


async def _check_part(registry: Client, scratch: Scratch, wanted: str, first: int, last: int) -> None:
    answer, data = await _part(registry, scratch, wanted)
    expect.status(answer, 206)
    expect.length(answer, last - first + 1)
    content_range = answer.header("Content-Range")
    allowed = {f"bytes {first}-{last}/{PART_SIZE}", f"bytes {first}-{last}/*"}
    expect.is_true(answer, content_range in allowed, f"Content-Range: bytes {first}-{last}/{PART_SIZE}")
    expect.body(answer, data[first : last + 1])


@case(section="end-2", since="1.1")
async def range_from_first_to_last(registry: Client, scratch: Scratch) -> None:
    """GET with `Range: bytes=500-1499` answers 206 with these 1000 bytes."""
    await _check_part(registry, scratch, "bytes=500-1499", 500, 1499)


@case(section="end-2", since="1.1")
async def range_of_one_byte(registry: Client, scratch: Scratch) -> None:
    """GET with `Range: bytes=0-0` answers 206 with the first byte."""
    await _check_part(registry, scratch, "bytes=0-0", 0, 0)


@case(section="end-2", since="1.1")
async def range_to_the_end(registry: Client, scratch: Scratch) -> None:
    """GET with `Range: bytes=500-` answers 206 with everything from there on."""
    await _check_part(registry, scratch, "bytes=500-", 500, PART_SIZE - 1)


@case(section="end-2", since="1.1")
async def range_of_the_last_bytes(registry: Client, scratch: Scratch) -> None:
    """GET with `Range: bytes=-500` answers 206 with the last 500 bytes."""
    await _check_part(registry, scratch, "bytes=-500", PART_SIZE - 500, PART_SIZE - 1)


@case(section="end-2", since="1.1")
async def range_of_more_last_bytes_than_there_are(registry: Client, scratch: Scratch) -> None:
    """GET with a suffix longer than the blob answers 206, or 200, with the whole blob."""
    await _check_part(registry, scratch, f"bytes=-{PART_SIZE * 2}", 0, PART_SIZE - 1)


@case(section="end-2", since="1.1")
async def range_past_the_end_is_clipped(registry: Client, scratch: Scratch) -> None:
    """GET with `Range: bytes=2000-5000` of 2048 bytes answers 206 with the last 48."""
    await _check_part(registry, scratch, "bytes=2000-5000", 2000, PART_SIZE - 1)


@case(section="end-2", since="1.1")
async def range_beyond_the_end_is_416(registry: Client, scratch: Scratch) -> None:
    """GET with a range that begins past the end answers 416."""
    answer, _ = await _part(registry, scratch, "bytes=5000-10000")
    expect.status(answer, 416)


@case(section="end-2", since="1.1")
async def range_that_runs_backwards_is_416(registry: Client, scratch: Scratch) -> None:
    """GET with `Range: bytes=500-0` answers 416, or the whole blob."""
    answer, _ = await _part(registry, scratch, "bytes=500-0")
    expect.status(answer, 416)


@case(section="end-2", since="1.1")
async def range_of_the_empty_blob(registry: Client, scratch: Scratch) -> None:
    """GET with a range of a blob of zero bytes answers 416, or 200 with nothing."""
    answer = await registry.get_blob(scratch.name, await scratch.push_bytes(b""), {"Range": "bytes=0-9"})
    expect.status(answer, 200, 416)
    if answer.status == 200:
        expect.no_body(answer)


@case(section="end-2", since="1.1")
async def several_ranges(registry: Client, scratch: Scratch) -> None:
    """GET with two ranges answers 200 with the whole blob, or 206 with parts."""
    content = blob(PART_SIZE)
    answer = await registry.get_blob(scratch.name, await scratch.push_blob(content), {"Range": "bytes=0-9,100-109"})
    expect.status(answer, 200, 206)
    if answer.status == 200:
        expect.body(answer, content.data)
        return
    for part in (content.data[:10], content.data[100:110]):
        expect.is_true(answer, part in answer.body, "both parts in the body")


@case(section="end-2", since="1.1")
async def range_in_another_unit_is_ignored(registry: Client, scratch: Scratch) -> None:
    """GET with a range in a unit that nobody knows answers 200 with the whole blob."""
    content = blob(PART_SIZE)
    answer = await registry.get_blob(scratch.name, await scratch.push_blob(content), {"Range": "pages=1-2"})
    expect.status(answer, 200, 416)
    if answer.status == 200:
        expect.body(answer, content.data)


@case(section="end-2", since="1.1")
async def range_if_unchanged(registry: Client, scratch: Scratch) -> None:
    """If-Range gives the part when the blob has the ETag named, and the whole blob otherwise."""
    content = blob(PART_SIZE)
    digest = await scratch.push_blob(content)
    whole = await registry.get_blob(scratch.name, digest)
    tag = whole.headers.get("etag")
    if tag is None or tag.startswith("W/"):
        raise NotOffered.by(whole, "no strong ETag on blobs")
    same = await registry.get_blob(scratch.name, digest, {"Range": "bytes=0-9", "If-Range": tag})
    if same.status == 200:
        raise NotOffered.by(same, "ranges of blobs are not supported: the whole blob came")
    expect.status(same, 206)
    expect.body(same, content.data[:10])
    other = await registry.get_blob(scratch.name, digest, {"Range": "bytes=0-9", "If-Range": '"another"'})
    expect.status(other, 200)
    expect.body(other, content.data)


@case(section="end-2")
async def unchanged_is_304(registry: Client, scratch: Scratch) -> None:
    """If-None-Match with the blob's ETag answers 304 without a body, and with another one 200."""
    content = blob()
    digest = await scratch.push_blob(content)
    whole = await registry.get_blob(scratch.name, digest)
    tag = whole.headers.get("etag")
    if tag is None:
        raise NotOffered.by(whole, "no ETag on blobs")
    same = await registry.get_blob(scratch.name, digest, {"If-None-Match": tag})
    if same.status == 200:
        raise NotOffered.by(same, "If-None-Match is not looked at")
    expect.status(same, 304)
    expect.no_body(same)
    other = await registry.get_blob(scratch.name, digest, {"If-None-Match": '"another"'})
    expect.status(other, 200)
    expect.body(other, content.data)


@case(section="end-2", since="dev")
async def namespace_of_a_proxy_may_be_sent(registry: Client, scratch: Scratch) -> None:
    """A pull with `ns=` is answered; OCI-Namespace, if it comes, repeats the value."""
    content = blob()
    digest = await scratch.push_blob(content)
    answer = await registry.send("GET", f"/v2/{scratch.name}/blobs/{digest}?ns=registry.example")
    if answer.status in {400, 403, 404, 502}:
        raise NotOffered.by(answer, "ns= selects an upstream here, and this one is not known")
    expect.status(answer, 200)
    expect.body(answer, content.data)
    if answer.headers.get("oci-namespace") is not None:
        expect.header(answer, "OCI-Namespace", "registry.example")


@case(section="end-2")
async def pushed_bytes_are_what_the_digest_says(registry: Client, scratch: Scratch) -> None:
    """What is pulled hashes to the digest in its URL, for blobs of all small sizes around a block."""
    for size in (1, 63, 64, 65, 4095, 4096, 4097):
        data = blob(size).data
        answer = await _pulled(registry, scratch, data)
        expect.is_true(answer, digest_of(answer.body) == digest_of(data), "the bytes of the digest")

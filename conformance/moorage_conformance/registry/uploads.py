"""end-4, 5, 6, 11, 13, 14: push blobs in every way, cancel a push, and mount blobs from another repository.

Not testable from outside: that sessions expire, that a collector leaves a push alone, that a crash at any step loses
nothing that was acknowledged, and that a mount reveals nothing to a caller who may not read the source (that needs two
callers with different rights).
"""

from __future__ import annotations

from functools import partial
from uuid import uuid4

import trio

from . import expect
from .answer import Answer, CheckFailed
from .case import Group, NotOffered
from .client import OCTETS, Client, with_query
from .content import blob, digest_of, unknown_digest
from .scratch import Scratch, Session, smallest_chunk, together

__all__ = ["case"]

case = Group("uploads", "Pushing blobs")

BEGINNING = 1024
TRIES = 50
PAUSE = 0.1


async def _check_pushed(registry: Client, scratch: Scratch, answer: Answer, data: bytes, digest: str = "") -> None:
    """Check the 201 that ends a push, and that the blob is then there, under its URL and under the Location."""
    digest = digest or digest_of(data)
    where = expect.created(answer)
    expect.digest_header(answer, digest)
    for pulled in (await registry.send("GET", where), await registry.get_blob(scratch.name, digest)):
        expect.status(pulled, 200)
        expect.body(pulled, data)
    head = await registry.head_blob(scratch.name, digest)
    expect.status(head, 200)


async def _check_nothing_left(registry: Client, scratch: Scratch, *data: bytes, also: str = "") -> None:
    for digest in [*map(digest_of, data), *([also] if also else [])]:
        expect.not_found(await registry.head_blob(scratch.name, digest), why="its push was refused")
        expect.not_found(await registry.get_blob(scratch.name, digest), why="its push was refused")


async def _send_chunks(registry: Client, session: Session, chunks: list[bytes]) -> str:
    """Send chunks in order and return the latest location."""
    location, sent = session.location, 0
    for chunk in chunks:
        answer = await registry.patch_upload(location, chunk, first=sent)
        expect.status(answer, 202)
        location = expect.location(answer)
        sent += len(chunk)
    return location


# ---- sessions and POST + PUT ----


@case(section="end-4a", requires=())
async def post_opens_a_session(registry: Client, scratch: Scratch) -> None:
    """POST answers 202 with the Location of a session."""
    answer = await registry.start_upload(scratch.name)
    expect.status(answer, 202)
    expect.location(answer)


@case(section="end-4a")
async def every_session_is_its_own(registry: Client, scratch: Scratch) -> None:
    """Two POSTs to one repository answer with different Locations."""
    one, other = await scratch.session(), await scratch.session()
    expect.is_true(other.answer, one.location != other.location, "another Location for another session")


@case(section="end-6")
async def post_then_put(registry: Client, scratch: Scratch) -> None:
    """POST, then PUT with the whole blob, answers 201 with a Location from which the blob is pulled."""
    data = blob().data
    session = await scratch.session()
    await _check_pushed(registry, scratch, await registry.finish_upload(session.location, digest_of(data), data), data)


@case(section="end-6")
async def put_without_a_length(registry: Client, scratch: Scratch) -> None:
    """PUT with the blob in chunked transfer coding, without Content-Length, answers 201."""
    data = blob(70_000).data
    session = await scratch.session()
    answer = await registry.finish_upload(session.location, digest_of(data), [data[:1], data[1:40_000], data[40_000:]])
    await _check_pushed(registry, scratch, answer, data)


@case(section="end-6")
async def put_of_the_empty_blob(registry: Client, scratch: Scratch) -> None:
    """PUT of a blob of zero bytes with Content-Length: 0 answers 201."""
    session = await scratch.session()
    await _check_pushed(registry, scratch, await registry.finish_upload(session.location, digest_of(b"")), b"")


@case(section="end-6")
async def put_of_the_empty_blob_without_a_length(registry: Client, scratch: Scratch) -> None:
    """PUT of a blob of zero bytes in chunked transfer coding answers 201."""
    session = await scratch.session()
    await _check_pushed(registry, scratch, await registry.finish_upload(session.location, digest_of(b""), []), b"")


@case(section="end-6")
async def push_of_what_is_there_already(registry: Client, scratch: Scratch) -> None:
    """A blob that the repository has already is pushed again with 201."""
    data = blob().data
    for _ in range(2):
        session = await scratch.session()
        answer = await registry.finish_upload(session.location, digest_of(data), data)
        await _check_pushed(registry, scratch, answer, data)


@case(section="end-6")
async def put_waits_for_continue(registry: Client, scratch: Scratch) -> None:
    """PUT with `Expect: 100-continue` is told to continue, or is answered, before the body is sent."""
    data = blob().data
    session = await scratch.session()
    url = with_query(session.location, ("digest", digest_of(data)))
    headers = {
        "Content-Type": OCTETS,
        "Content-Length": str(len(data)),
        "Expect": "100-continue",
        "Connection": "close",
    }
    async with registry.connect(url) as connection:
        await connection.send(registry.head("PUT", url, headers))
        first = await connection.read(10)
        if not first:
            raise CheckFailed("100 Continue or a final answer within 10 s", f"silence\nin PUT {url}")
        if not first.startswith(b"HTTP/1.1 100"):
            raise CheckFailed("100 Continue", f"{first[:200]!r}\nin PUT {url}")
        await connection.send(data)
        await _check_pushed(registry, scratch, await connection.answer("PUT", url), data)


# ---- single POST ----


async def _single_post(registry: Client, scratch: Scratch, data: bytes, digest: str = "", *, length: bool) -> None:
    digest = digest or digest_of(data)
    body = data if length else [data]
    answer = await registry.start_upload(scratch.name, ("digest", digest), body=body)
    if answer.status == 202:
        closed = await registry.finish_upload(expect.location(answer), digest, data)
        await _check_pushed(registry, scratch, closed, data, digest)
        raise NotOffered.by(answer, "a blob in the POST is not supported: it opened a session, which worked")
    await _check_pushed(registry, scratch, answer, data, digest)


@case(section="end-4b")
async def single_post(registry: Client, scratch: Scratch) -> None:
    """POST with `digest=` and the blob answers 201 with its Location, or 202 and the client goes on with PUT."""
    await _single_post(registry, scratch, blob().data, length=True)


@case(section="end-4b")
async def single_post_without_a_length(registry: Client, scratch: Scratch) -> None:
    """POST with `digest=` and the blob in chunked transfer coding answers 201, or 202."""
    await _single_post(registry, scratch, blob(70_000).data, length=False)


@case(section="end-4b", requires={"push", "sha512"})
async def single_post_by_sha512(registry: Client, scratch: Scratch) -> None:
    """POST with a sha512 digest and the blob answers 201, or 202."""
    data = blob().data
    await _single_post(registry, scratch, data, digest_of(data, "sha512"), length=True)


# ---- chunked ----


@case(section="end-5")
async def one_chunk(registry: Client, scratch: Scratch) -> None:
    """POST, one PATCH with Content-Range, and an empty PUT push a blob."""
    session = await scratch.session()
    chunks = session.chunks(1)
    location = await _send_chunks(registry, session, chunks)
    answer = await registry.finish_upload(location, digest_of(chunks[0]))
    await _check_pushed(registry, scratch, answer, chunks[0])


@case(section="end-5")
async def three_chunks(registry: Client, scratch: Scratch) -> None:
    """POST, three PATCHes in order, the last one shorter, and an empty PUT push a blob."""
    session = await scratch.session()
    chunks = session.chunks(3)
    location = await _send_chunks(registry, session, chunks)
    data = b"".join(chunks)
    await _check_pushed(registry, scratch, await registry.finish_upload(location, digest_of(data)), data)


@case(section="end-6")
async def last_chunk_in_the_put(registry: Client, scratch: Scratch) -> None:
    """The closing PUT may carry the last chunk, with its Content-Range."""
    session = await scratch.session()
    chunks = session.chunks(3)
    location = await _send_chunks(registry, session, chunks[:2])
    data = b"".join(chunks)
    answer = await registry.finish_upload(location, digest_of(data), chunks[2], first=len(chunks[0]) * 2)
    await _check_pushed(registry, scratch, answer, data)


@case(section="end-5")
async def range_after_the_first_chunk(registry: Client, scratch: Scratch) -> None:
    """The 202 to the first PATCH has a Range from 0 to its last byte."""
    session = await scratch.session()
    chunk = session.chunks(2)[0]
    answer = await registry.patch_upload(session.location, chunk, first=0)
    expect.status(answer, 202)
    expect.received(answer, len(chunk))


@case(section="end-5", since="dev")
async def range_is_of_the_whole_blob_so_far(registry: Client, scratch: Scratch) -> None:
    """The 202 to a later PATCH has a Range from 0 to the last byte received in all."""
    session = await scratch.session()
    chunks = session.chunks(3)
    location, sent = session.location, 0
    for chunk in chunks:
        answer = await registry.patch_upload(location, chunk, first=sent)
        expect.status(answer, 202)
        sent += len(chunk)
        expect.received(answer, sent)
        location = expect.location(answer)


@case(section="end-5")
async def streamed_in_one_patch(registry: Client, scratch: Scratch) -> None:
    """One PATCH without Content-Range and without a length, then an empty PUT, push a blob."""
    data = blob(200_000).data
    session = await scratch.session()
    answer = await registry.patch_upload(session.location, [data[:100], data[100:150_000], data[150_000:]])
    expect.status(answer, 202)
    expect.received(answer, len(data))
    closed = await registry.finish_upload(expect.location(answer), digest_of(data))
    await _check_pushed(registry, scratch, closed, data)


@case(section="end-5")
async def streamed_in_one_patch_with_a_length(registry: Client, scratch: Scratch) -> None:
    """One PATCH with a Content-Length but no Content-Range, then an empty PUT, push a blob."""
    data = blob(200_000).data
    session = await scratch.session()
    answer = await registry.patch_upload(session.location, data)
    expect.status(answer, 202)
    closed = await registry.finish_upload(expect.location(answer), digest_of(data))
    await _check_pushed(registry, scratch, closed, data)


@case(section="end-5")
async def streamed_in_two_patches(registry: Client, scratch: Scratch) -> None:
    """A second PATCH without Content-Range continues where the first one ended."""
    session = await scratch.session()
    chunks = session.chunks(2, 50_000)
    location = session.location
    for chunk in chunks:
        answer = await registry.patch_upload(location, [chunk])
        expect.status(answer, 202)
        location = expect.location(answer)
    data = b"".join(chunks)
    await _check_pushed(registry, scratch, await registry.finish_upload(location, digest_of(data)), data)


@case(section="end-5")
async def streamed_large_blob(registry: Client, scratch: Scratch) -> None:
    """A blob of 16 MiB streamed in one PATCH arrives as it was sent."""
    piece = blob(2**20).data
    data = piece * 16
    session = await scratch.session()
    answer = await registry.patch_upload(session.location, [piece] * 16)
    expect.status(answer, 202)
    closed = await registry.finish_upload(expect.location(answer), digest_of(data))
    await _check_pushed(registry, scratch, closed, data)


@case(section="end-5", since="1.1")
async def smallest_chunk_is_accepted(registry: Client, scratch: Scratch) -> None:
    """Chunks as small as OCI-Chunk-Min-Length says, or of one byte when it says nothing, are accepted."""
    session = await scratch.session()
    size = max(session.smallest_chunk, 1)
    chunks = [blob(size).data, blob(size).data, blob(1).data]
    location = await _send_chunks(registry, session, chunks)
    data = b"".join(chunks)
    await _check_pushed(registry, scratch, await registry.finish_upload(location, digest_of(data)), data)


@case(section="end-5")
async def sessions_do_not_mix(registry: Client, scratch: Scratch) -> None:
    """Two sessions of one repository, fed in turns, give two blobs."""
    sessions = [await scratch.session() for _ in range(2)]
    chunks = [session.chunks(3) for session in sessions]
    locations = [session.location for session in sessions]
    sent = [0, 0]
    for at in range(3):
        for one in range(2):
            answer = await registry.patch_upload(locations[one], chunks[one][at], first=sent[one])
            expect.status(answer, 202)
            locations[one] = expect.location(answer)
            sent[one] += len(chunks[one][at])
    for one in range(2):
        data = b"".join(chunks[one])
        await _check_pushed(registry, scratch, await registry.finish_upload(locations[one], digest_of(data)), data)


# ---- chunks that do not fit ----


@case(section="end-5")
async def chunk_that_skips_ahead_is_416(registry: Client, scratch: Scratch) -> None:
    """PATCH with a chunk that begins past what has arrived answers 416."""
    session = await scratch.session()
    chunks = session.chunks(3)
    location = await _send_chunks(registry, session, chunks[:1])
    expect.status(await registry.patch_upload(location, chunks[2], first=2 * len(chunks[0])), 416)


@case(section="end-5")
async def first_chunk_not_at_zero_is_416(registry: Client, scratch: Scratch) -> None:
    """PATCH with a first chunk that does not begin at 0 answers 416."""
    session = await scratch.session()
    chunk = session.chunks(2)[0]
    expect.status(await registry.patch_upload(session.location, chunk, first=len(chunk)), 416)


@case(section="end-5")
async def chunk_sent_again_is_416(registry: Client, scratch: Scratch) -> None:
    """PATCH with a chunk that has arrived already answers 416."""
    session = await scratch.session()
    chunks = session.chunks(2)
    location = await _send_chunks(registry, session, chunks[:1])
    expect.status(await registry.patch_upload(location, chunks[0], first=0), 416)


@case(section="end-6", since="dev")
async def closing_chunk_that_skips_ahead_is_416(registry: Client, scratch: Scratch) -> None:
    """PUT with a last chunk that begins past what has arrived answers 416."""
    session = await scratch.session()
    chunks = session.chunks(3)
    location = await _send_chunks(registry, session, chunks[:1])
    data = b"".join(chunks)
    expect.status(await registry.finish_upload(location, digest_of(data), chunks[2], first=2 * len(chunks[0])), 416)


@case(section="end-6", since="dev")
async def session_survives_a_wrong_closing_chunk(registry: Client, scratch: Scratch) -> None:
    """After a PUT that was 416 the session is as before and can be finished."""
    session = await scratch.session()
    chunks = session.chunks(3)
    location = await _send_chunks(registry, session, chunks[:1])
    data = b"".join(chunks)
    size = len(chunks[0])
    expect.status(await registry.finish_upload(location, digest_of(data), chunks[2], first=2 * size), 416)
    await _check_can_go_on(registry, scratch, location, chunks)


@case(section="end-13", since="1.1")
async def session_survives_a_wrong_chunk(registry: Client, scratch: Scratch) -> None:
    """After a PATCH that was 416 the session is as before and can be finished."""
    session = await scratch.session()
    chunks = session.chunks(3)
    location = await _send_chunks(registry, session, chunks[:1])
    for first in (2 * len(chunks[0]), 0):
        expect.status(await registry.patch_upload(location, chunks[2], first=first), 416)
    await _check_can_go_on(registry, scratch, location, chunks)


async def _check_can_go_on(registry: Client, scratch: Scratch, location: str, chunks: list[bytes]) -> None:
    """Check that a session holds exactly the first chunk, send the others, and finish."""
    state = await registry.upload_status(location)
    expect.status(state, 204)
    expect.received(state, len(chunks[0]))
    location, sent = expect.location(state), len(chunks[0])
    for chunk in chunks[1:]:
        answer = await registry.patch_upload(location, chunk, first=sent)
        expect.status(answer, 202)
        location = expect.location(answer)
        sent += len(chunk)
    data = b"".join(chunks)
    await _check_pushed(registry, scratch, await registry.finish_upload(location, digest_of(data)), data)


@case(section="end-5")
async def chunk_shorter_than_its_range_is_refused(registry: Client, scratch: Scratch) -> None:
    """PATCH whose body is not as long as its Content-Range says is refused."""
    session = await scratch.session()
    chunk = session.chunks(2)[0]
    headers = {"Content-Type": OCTETS, "Content-Range": f"0-{len(chunk) + 99}"}
    expect.client_error(await registry.send("PATCH", session.location, headers=headers, body=chunk))


@case(section="end-5")
async def unreadable_content_range_is_refused(registry: Client, scratch: Scratch) -> None:
    """PATCH whose Content-Range makes no sense is refused as the client's mistake."""
    session = await scratch.session()
    for value in ("nonsense", "5-1", "-1-5"):
        headers = {"Content-Type": OCTETS, "Content-Range": value}
        answer = await registry.send("PATCH", session.location, headers=headers, body=blob().data)
        expect.client_error(answer, f"Content-Range: {value}")


@case(section="end-5")
async def two_patches_at_once(registry: Client, scratch: Scratch) -> None:
    """Of two PATCHes with the same chunk at the same time one is taken and one refused, and the blob is right."""
    session = await scratch.session()
    chunks = session.chunks(2, 200_000)
    answers = await together(*[partial(registry.patch_upload, session.location, chunks[0], first=0)] * 2)
    for answer in answers:
        expect.not_server_error(answer)
    taken = [answer for answer in answers if answer.status == 202]
    if len(taken) != 1:
        raise CheckFailed("one 202 and one refusal", "\n".join(map(str, answers)))
    await _check_can_go_on(registry, scratch, expect.location(taken[0]), chunks)


# ---- the state of a session ----


@case(section="end-13", since="1.1")
async def state_of_a_new_session(registry: Client, scratch: Scratch) -> None:
    """GET of a session without bytes answers 204 with a Location and `Range: 0-0`."""
    session = await scratch.session()
    answer = await registry.upload_status(session.location)
    expect.status(answer, 204)
    expect.location(answer)
    expect.received(answer, 0)


@case(section="end-13", since="1.1")
async def state_after_a_chunk(registry: Client, scratch: Scratch) -> None:
    """GET of a session answers 204 with a Location and the Range of what has arrived."""
    session = await scratch.session()
    chunks = session.chunks(3)
    location = await _send_chunks(registry, session, chunks[:2])
    answer = await registry.upload_status(location)
    expect.status(answer, 204)
    expect.location(answer)
    expect.received(answer, 2 * len(chunks[0]))


@case(section="end-13", since="1.1")
async def state_at_the_first_location(registry: Client, scratch: Scratch) -> None:
    """GET of a session's first Location still answers 204 after a PATCH."""
    session = await scratch.session()
    chunks = session.chunks(2)
    await _send_chunks(registry, session, chunks[:1])
    answer = await registry.upload_status(session.location)
    if answer.status == 404:
        raise NotOffered.by(answer, "a session moves on to another Location")
    expect.status(answer, 204)
    expect.received(answer, len(chunks[0]))


@case(section="end-13", since="1.1")
async def finished_session_is_gone(registry: Client, scratch: Scratch) -> None:
    """After its PUT a session is unknown: GET answers 404."""
    session = await scratch.session()
    data = blob().data
    expect.status(await registry.finish_upload(session.location, digest_of(data), data), 201)
    expect.not_found(await registry.upload_status(session.location), why="the session is finished")


@case(section="end-5")
async def unknown_session_is_404(registry: Client, scratch: Scratch) -> None:
    """GET, PATCH and PUT of a session that never was answer 404."""
    await scratch.push_blob(blob())
    url = registry.absolute(f"/v2/{scratch.name}/blobs/uploads/{uuid4()}")
    data = blob().data
    expect.not_found(await registry.upload_status(url))
    expect.not_found(await registry.patch_upload(url, data, first=0))
    expect.not_found(await registry.finish_upload(url, digest_of(data), data))


@case(section="end-14", since="dev")
async def cancel_of_an_unknown_session_is_404(registry: Client, scratch: Scratch) -> None:
    """DELETE of a session that never was answers 404, or 400."""
    await scratch.push_blob(blob())
    answer = await registry.cancel_upload(registry.absolute(f"/v2/{scratch.name}/blobs/uploads/{uuid4()}"))
    if answer.status in {204, 405}:
        raise NotOffered.by(answer, "cancelling is not supported, or does not care")
    expect.status(answer, 400, 404)


@case(section="end-14", since="dev")
async def cancel_is_204(registry: Client, scratch: Scratch) -> None:
    """DELETE of a session answers 204."""
    session = await scratch.session()
    await _cancel(registry, session.location)


async def _cancel(registry: Client, location: str) -> None:
    answer = await registry.cancel_upload(location)
    if answer.status in {400, 404, 405, 501}:
        raise NotOffered.by(answer, "uploads cannot be cancelled")
    expect.status(answer, 204)


@case(section="end-14", since="dev")
async def cancelled_session_is_gone(registry: Client, scratch: Scratch) -> None:
    """After DELETE a session that had bytes already is unknown: GET, PATCH and PUT answer 404."""
    session = await scratch.session()
    chunks = session.chunks(2)
    location = await _send_chunks(registry, session, chunks[:1])
    await _cancel(registry, location)
    data = b"".join(chunks)
    expect.not_found(await registry.upload_status(location), why="it was cancelled")
    expect.not_found(await registry.patch_upload(location, chunks[1], first=len(chunks[0])), why="it was cancelled")
    expect.not_found(await registry.finish_upload(location, digest_of(data), data), why="it was cancelled")
    await _check_nothing_left(registry, scratch, data, chunks[0])


@case(section="end-5")
async def session_belongs_to_its_repository(registry: Client, scratch: Scratch) -> None:
    """A session of one repository cannot be used under the name of another: 404."""
    session = await scratch.session()
    other = scratch.another()
    await scratch.push_blob(blob(), other)
    moved = session.location.replace(f"/{scratch.name}/", f"/{other}/")
    if moved == session.location:
        raise NotOffered.by(session.answer, "the Location of a session does not contain the repository")
    data = blob().data
    expect.status(await registry.finish_upload(moved, digest_of(data), data), 400, 404)
    expect.not_found(await registry.get_blob(other, digest_of(data)))


# ---- digests that do not fit ----


async def _check_refused(registry: Client, scratch: Scratch, answer: Answer, data: bytes, claimed: str) -> None:
    expect.status(answer, 400, why=f"the digest {claimed[:40]} is not the blob's")
    await _check_nothing_left(registry, scratch, data, also=claimed)


@case(section="end-6")
async def wrong_digest_of_a_put_is_400(registry: Client, scratch: Scratch) -> None:
    """PUT of a blob with another blob's digest answers 400, and nothing of it can be pulled."""
    data, claimed = blob().data, unknown_digest()
    session = await scratch.session()
    answer = await registry.finish_upload(session.location, claimed, data)
    await _check_refused(registry, scratch, answer, data, claimed)


@case(section="end-6")
async def body_longer_than_its_digest_is_400(registry: Client, scratch: Scratch) -> None:
    """PUT of a blob with a few bytes too many answers 400, and nothing of it can be pulled."""
    data = blob().data
    longer = data + b"  "
    session = await scratch.session()
    expect.status(await registry.finish_upload(session.location, digest_of(data), longer), 400)
    await _check_nothing_left(registry, scratch, data, longer)


@case(section="end-4b")
async def wrong_digest_of_a_single_post_is_400(registry: Client, scratch: Scratch) -> None:
    """POST of a blob with another blob's digest answers 400, or 202 and then the PUT answers 400."""
    data, claimed = blob().data, unknown_digest()
    answer = await registry.start_upload(scratch.name, ("digest", claimed), body=data)
    if answer.status == 202:
        answer = await registry.finish_upload(expect.location(answer), claimed, data)
    await _check_refused(registry, scratch, answer, data, claimed)


@case(section="end-6")
async def wrong_digest_of_chunks_is_400(registry: Client, scratch: Scratch) -> None:
    """A chunked push closed with another blob's digest answers 400, and nothing of it can be pulled."""
    session = await scratch.session()
    chunks = session.chunks(3)
    location = await _send_chunks(registry, session, chunks)
    claimed = unknown_digest()
    answer = await registry.finish_upload(location, claimed)
    await _check_refused(registry, scratch, answer, b"".join(chunks), claimed)


@case(section="end-6")
async def wrong_digest_with_the_last_chunk_is_400(registry: Client, scratch: Scratch) -> None:
    """A PUT that carries the last chunk and another blob's digest answers 400."""
    session = await scratch.session()
    chunks = session.chunks(3)
    location = await _send_chunks(registry, session, chunks[:2])
    claimed = unknown_digest()
    answer = await registry.finish_upload(location, claimed, chunks[2], first=2 * len(chunks[0]))
    await _check_refused(registry, scratch, answer, b"".join(chunks), claimed)


@case(section="end-6")
async def wrong_digest_of_a_stream_is_400(registry: Client, scratch: Scratch) -> None:
    """A streamed push closed with another blob's digest answers 400, and nothing of it can be pulled."""
    data, claimed = blob(100_000).data, unknown_digest()
    session = await scratch.session()
    patched = await registry.patch_upload(session.location, [data])
    expect.status(patched, 202)
    answer = await registry.finish_upload(expect.location(patched), claimed)
    await _check_refused(registry, scratch, answer, data, claimed)


@case(section="end-6", requires={"push", "sha512"})
async def wrong_sha512_digest_is_400(registry: Client, scratch: Scratch) -> None:
    """PUT of a blob with another blob's sha512 digest answers 400."""
    data, claimed = blob().data, unknown_digest("sha512")
    session = await scratch.session()
    answer = await registry.finish_upload(session.location, claimed, data)
    await _check_refused(registry, scratch, answer, data, claimed)


@case(section="end-6")
async def session_after_a_wrong_digest(registry: Client, scratch: Scratch) -> None:
    """After a PUT with a wrong digest the session is either gone (404) or can be finished with the right one."""
    session = await scratch.session()
    chunks = session.chunks(2)
    location = await _send_chunks(registry, session, chunks)
    expect.status(await registry.finish_upload(location, unknown_digest()), 400)
    data = b"".join(chunks)
    state = await registry.upload_status(location)
    expect.status(state, 204, 404)
    answer = await registry.finish_upload(location, digest_of(data))
    if state.status == 404:
        expect.not_found(answer, why="GET said that the session is gone")
    else:
        await _check_pushed(registry, scratch, answer, data)


@case(section="end-6")
async def malformed_digest_of_a_put_is_400(registry: Client, scratch: Scratch) -> None:
    """PUT with something that is no digest answers 400."""
    data = blob().data
    for digest in (
        "sha256:baddigeststring",
        "nonsense",
        f"sha256:{'A' * 64}",
        f"SHA256:{'0' * 64}",
        f"sha256:{'0' * 63}",
    ):
        session = await scratch.session()
        expect.status(await registry.finish_upload(session.location, digest, data), 400, why=f"digest={digest}")
    await _check_nothing_left(registry, scratch, data)


@case(section="end-6")
async def put_without_a_digest_is_400(registry: Client, scratch: Scratch) -> None:
    """PUT that names no digest answers 400."""
    data = blob().data
    session = await scratch.session()
    answer = await registry.send("PUT", session.location, headers={"Content-Type": OCTETS}, body=data)
    expect.status(answer, 400)
    await _check_nothing_left(registry, scratch, data)


@case(section="end-4b")
async def malformed_digest_of_a_single_post_is_400(registry: Client, scratch: Scratch) -> None:
    """POST of a blob with something that is no digest answers 400, or 202 and then the PUT answers 400."""
    data = blob().data
    answer = await registry.start_upload(scratch.name, ("digest", "sha256:baddigeststring"), body=data)
    if answer.status == 202:
        answer = await registry.finish_upload(expect.location(answer), "sha256:baddigeststring", data)
    expect.status(answer, 400)
    await _check_nothing_left(registry, scratch, data)


@case(section="end-6", since="dev")
async def unsupported_algorithm_of_a_put_is_400(registry: Client, scratch: Scratch) -> None:
    """PUT with a well-formed digest of an algorithm that nobody supports answers 400."""
    data = blob().data
    session = await scratch.session()
    digest = f"conformance+unknown:{'0' * 64}"
    expect.status(await registry.finish_upload(session.location, digest, data), 400)
    await _check_nothing_left(registry, scratch, data)


@case(section="end-4b", since="dev")
async def unsupported_algorithm_of_a_single_post_is_400(registry: Client, scratch: Scratch) -> None:
    """POST of a blob with an algorithm that nobody supports answers 400, or 202 and then the PUT answers 400."""
    data = blob().data
    digest = f"conformance+unknown:{'0' * 64}"
    answer = await registry.start_upload(scratch.name, ("digest", digest), body=data)
    if answer.status == 202:
        answer = await registry.finish_upload(expect.location(answer), digest, data)
    expect.status(answer, 400)


@case(section="end-4c", since="dev")
async def announced_sha256(registry: Client, scratch: Scratch) -> None:
    """POST with `digest-algorithm=sha256` opens a session like any other."""
    data = blob().data
    answer = await registry.start_upload(scratch.name, ("digest-algorithm", "sha256"))
    expect.status(answer, 202)
    closed = await registry.finish_upload(expect.location(answer), digest_of(data), data)
    await _check_pushed(registry, scratch, closed, data)


@case(section="end-4c", requires={"push", "sha512"}, since="dev")
async def announced_sha512(registry: Client, scratch: Scratch) -> None:
    """POST with `digest-algorithm=sha512` opens a session for a blob that is closed by its sha512 digest."""
    answer = await registry.start_upload(scratch.name, ("digest-algorithm", "sha512"))
    expect.status(answer, 202)
    session = Session(expect.location(answer), smallest_chunk(answer), answer)
    chunks = session.chunks(3)
    location = await _send_chunks(registry, session, chunks)
    data = b"".join(chunks)
    digest = digest_of(data, "sha512")
    await _check_pushed(registry, scratch, await registry.finish_upload(location, digest), data, digest)


@case(section="end-4c", since="dev")
async def announced_unsupported_algorithm_is_400(registry: Client, scratch: Scratch) -> None:
    """POST that announces an algorithm that nobody supports answers 400."""
    answer = await registry.start_upload(scratch.name, ("digest-algorithm", "conformance+unknown"))
    if answer.status == 202:
        raise NotOffered.by(answer, "digest-algorithm is not looked at")
    expect.status(answer, 400)


@case(section="end-6", requires={"push", "sha512"})
async def unannounced_sha512(registry: Client, scratch: Scratch) -> None:
    """A chunked push is closed by a sha512 digest that was not announced."""
    session = await scratch.session()
    chunks = session.chunks(3)
    location = await _send_chunks(registry, session, chunks)
    data = b"".join(chunks)
    digest = digest_of(data, "sha512")
    await _check_pushed(registry, scratch, await registry.finish_upload(location, digest), data, digest)


@case(section="end-6", requires={"push", "sha512"})
async def same_blob_by_both_algorithms(registry: Client, scratch: Scratch) -> None:
    """A blob pushed by sha256 and again by sha512 is pulled by either."""
    data = blob().data
    digests = [await scratch.push_bytes(data, algorithm=algorithm) for algorithm in ("sha256", "sha512")]
    for digest in digests:
        answer = await registry.get_blob(scratch.name, digest)
        expect.status(answer, 200)
        expect.body(answer, data)
        expect.digest_header(answer, digest)


# ---- pushes that break off ----


@case(section="end-6")
async def put_that_breaks_off_leaves_nothing(registry: Client, scratch: Scratch) -> None:
    """A PUT whose connection ends before its body does leaves no blob."""
    data = blob(100_000).data
    session = await scratch.session()
    url = with_query(session.location, ("digest", digest_of(data)))
    await _break_off(registry, "PUT", url, data, {"Content-Length": str(len(data))}, data[:60_000])
    await _check_nothing_left(registry, scratch, data, data[:60_000])


@case(section="end-4b")
async def single_post_that_breaks_off_leaves_nothing(registry: Client, scratch: Scratch) -> None:
    """A single POST whose connection ends before its body does leaves no blob."""
    data = blob(100_000).data
    url = with_query(registry.absolute(f"/v2/{scratch.name}/blobs/uploads/"), ("digest", digest_of(data)))
    await _break_off(registry, "POST", url, data, {"Content-Length": str(len(data))}, data[:60_000])
    await _check_nothing_left(registry, scratch, data, data[:60_000])


@case(section="end-6")
async def put_with_broken_framing_leaves_nothing(registry: Client, scratch: Scratch) -> None:
    """A PUT whose chunked transfer coding is broken is not acknowledged and leaves no blob."""
    data = blob(1000).data
    session = await scratch.session()
    url = with_query(session.location, ("digest", digest_of(data)))
    async with registry.connect(url) as connection:
        head = registry.head(
            "PUT", url, {"Content-Type": OCTETS, "Transfer-Encoding": "chunked", "Connection": "close"}
        )
        await connection.send(head + b"3e8\r\n" + data + b"\r\nnot-a-length\r\n\r\n")
        answer = await connection.answer_or_none("PUT", url)
    if answer is not None:
        expect.is_true(answer, answer.status >= 400, "a refusal")
    await _check_nothing_left(registry, scratch, data)


@case(section="end-13", since="1.1")
async def patch_that_breaks_off_can_be_continued(registry: Client, scratch: Scratch) -> None:
    """After a PATCH that broke off, GET says what has arrived and the push goes on from there, or the session is gone."""
    session = await scratch.session()
    chunks = session.chunks(2, 100_000)
    data = b"".join(chunks)
    headers = {"Content-Length": str(len(data))}
    await _break_off(registry, "PATCH", session.location, data, headers, chunks[0])
    answer = session.answer
    for _ in range(TRIES):
        state = await registry.upload_status(session.location)
        if state.status == 404:
            return
        expect.status(state, 204)
        found = state.headers.get("range", "")
        first, dash, last = found.partition("-")
        expect.is_true(state, first == "0" and bool(dash) and last.isdigit(), "a Range from 0", found)
        # One byte and none look the same in a Range.
        arrived = 0 if last == "0" else int(last) + 1
        expect.is_true(state, arrived <= len(chunks[0]), "no more bytes than were sent", found)
        answer = await registry.patch_upload(expect.location(state), data[arrived:], first=arrived)
        # The registry may still be at work on what arrived.
        if answer.status != 416:
            break
        await trio.sleep(PAUSE)
    expect.status(answer, 202)
    closed = await registry.finish_upload(expect.location(answer), digest_of(data))
    await _check_pushed(registry, scratch, closed, data)


async def _break_off(
    registry: Client, method: str, url: str, data: bytes, headers: dict[str, str], sent: bytes
) -> None:
    async with registry.connect(url) as connection:
        await connection.send(registry.head(method, url, {"Content-Type": OCTETS, **headers}) + sent)
        early = await connection.read(0.2)
    if early.startswith((b"HTTP/1.1 201", b"HTTP/1.1 202")):
        got = f"{early[:40]!r} after {len(sent)} bytes\nin {method} {url}"
        raise CheckFailed(f"no success before all {len(data)} bytes have arrived", got)


# ---- at the same time ----


@case(section="end-6")
async def same_blob_pushed_twice_at_once(registry: Client, scratch: Scratch) -> None:
    """Two pushes of one blob to one repository at the same time both answer 201."""
    data = blob(300_000).data
    await _push_at_once(registry, scratch, data, scratch.name, scratch.name)


@case(section="end-6")
async def same_blob_pushed_to_two_repositories_at_once(registry: Client, scratch: Scratch) -> None:
    """Pushes of one blob to two repositories at the same time both answer 201, and each has it."""
    data = blob(300_000).data
    await _push_at_once(registry, scratch, data, scratch.name, scratch.another())


async def _push_at_once(registry: Client, scratch: Scratch, data: bytes, *names: str) -> None:
    sessions = [await scratch.session(name) for name in names]
    pieces = [data[at : at + 50_000] for at in range(0, len(data), 50_000)]
    pushes = [partial(registry.finish_upload, session.location, digest_of(data), pieces) for session in sessions]
    for name, answer in zip(names, await together(*pushes), strict=True):
        expect.status(answer, 201)
        pulled = await registry.get_blob(name, digest_of(data))
        expect.status(pulled, 200)
        expect.body(pulled, data)


@case(section="end-6")
async def many_blobs_pushed_at_once(registry: Client, scratch: Scratch) -> None:
    """Eight different blobs pushed to one new repository at the same time are all there afterwards."""
    contents = [blob(20_000) for _ in range(8)]
    await together(*(partial(scratch.push_blob, content) for content in contents))
    for content in contents:
        pulled = await registry.get_blob(scratch.name, content.digest)
        expect.status(pulled, 200)
        expect.body(pulled, content.data)


# ---- mounting ----


@case(section="end-11")
async def mount_from_a_repository(registry: Client, scratch: Scratch) -> None:
    """POST with `mount=` and `from=` answers 201 with the Location of the blob, or 202 and the client pushes."""
    content, source = blob(), scratch.another()
    digest = await scratch.push_blob(content, source)
    answer = await registry.start_upload(scratch.name, ("mount", digest), ("from", source))
    await _check_mounted(registry, scratch, answer, content.data, digest, "blobs are not mounted")


@case(section="end-11", requires={"push", "sha512"})
async def mount_by_sha512(registry: Client, scratch: Scratch) -> None:
    """A blob is mounted by its sha512 digest, or 202 and the client pushes."""
    content, source = blob(algorithm="sha512"), scratch.another()
    digest = await scratch.push_blob(content, source)
    answer = await registry.start_upload(scratch.name, ("mount", digest), ("from", source))
    await _check_mounted(registry, scratch, answer, content.data, digest, "blobs are not mounted by sha512")


@case(section="end-11", since="1.1")
async def mount_from_anywhere(registry: Client, scratch: Scratch) -> None:
    """POST with `mount=` alone answers 201 with the Location of the blob, or 202 and the client pushes."""
    content = blob()
    digest = await scratch.push_blob(content, scratch.another())
    answer = await registry.start_upload(scratch.name, ("mount", digest))
    await _check_mounted(registry, scratch, answer, content.data, digest, "blobs are not mounted without from=")


async def _check_mounted(
    registry: Client, scratch: Scratch, answer: Answer, data: bytes, digest: str, otherwise: str
) -> None:
    if answer.status == 202:
        closed = await registry.finish_upload(expect.location(answer), digest, data)
        await _check_pushed(registry, scratch, closed, data, digest)
        raise NotOffered.by(answer, f"{otherwise}: a session was opened, which worked")
    if answer.status in {404, 405}:
        raise NotOffered.by(answer, otherwise)
    await _check_pushed(registry, scratch, answer, data, digest)


async def _check_falls_back(registry: Client, scratch: Scratch, answer: Answer) -> None:
    if answer.status in {400, 404, 405}:
        raise NotOffered.by(answer, "a mount that is not possible is refused, it does not open a session")
    expect.status(answer, 202)
    data = blob().data
    await _check_pushed(
        registry, scratch, await registry.finish_upload(expect.location(answer), digest_of(data), data), data
    )


@case(section="end-11")
async def mount_of_a_missing_blob_opens_a_session(registry: Client, scratch: Scratch) -> None:
    """A mount of a blob that the source does not have answers 202 with a session that works."""
    source = scratch.another()
    await scratch.push_blob(blob(), source)
    answer = await registry.start_upload(scratch.name, ("mount", unknown_digest()), ("from", source))
    await _check_falls_back(registry, scratch, answer)


@case(section="end-11")
async def mount_from_an_unknown_repository_opens_a_session(registry: Client, scratch: Scratch) -> None:
    """A mount from a repository that does not exist answers 202 with a session that works."""
    answer = await registry.start_upload(scratch.name, ("mount", unknown_digest()), ("from", scratch.another()))
    await _check_falls_back(registry, scratch, answer)


@case(section="end-11", since="1.1")
async def mount_of_a_blob_that_is_nowhere_opens_a_session(registry: Client, scratch: Scratch) -> None:
    """A mount without `from=` of a blob that is nowhere answers 202 with a session that works."""
    await _check_falls_back(registry, scratch, await registry.start_upload(scratch.name, ("mount", unknown_digest())))


@case(section="end-11")
async def mount_of_a_malformed_digest_is_not_201(registry: Client, scratch: Scratch) -> None:
    """A mount of something that is no digest, or from something that is no name, opens a session or is refused."""
    digest = await scratch.push_blob(blob(), scratch.another())
    for query in ((("mount", "sha256:bad"), ("from", scratch.name)), (("mount", digest), ("from", "NOT/a name"))):
        answer = await registry.start_upload(scratch.name, *query)
        if answer.status == 201 and query[0][1] == digest:
            continue  # it was found elsewhere, which is allowed
        expect.status(answer, 202, 400, 404)

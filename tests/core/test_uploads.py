import errno
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
import trio

from content import (
    OTHER,
    REPOSITORY,
    Sent,
    SentQuickly,
    append,
    commit,
    offset,
    open_upload,
    pull_blob,
    push_blob,
)
from moorage import (
    AppendUpload,
    BlobUnknown,
    CancelUpload,
    ClientLeft,
    CommitUpload,
    Digest,
    DigestInvalid,
    Driver,
    MemoryDriver,
    PushBlob,
    Registry,
    SizeInvalid,
    StatUpload,
    StoreUnavailable,
    Unavailable,
    UploadOutOfOrder,
    UploadUnknown,
    _digests,
)
from moorage_drivers.filesystem import FilesystemDriver
from stores import Log, PowerCut, Store, WatchedDriver

T = TypeVar("T")
MIB = 1 << 20
LARGE = bytes(range(256)) * (3 * MIB // 256 + 5)


@pytest.fixture
def without_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(algorithm: str) -> None:
        del algorithm

    monkeypatch.setattr(_digests, "_openssl", absent)


async def sessions(driver: Driver) -> list[str]:
    """What is left of upload sessions."""
    prefix = f"docker/registry/v2/repositories/{REPOSITORY}/_uploads/"
    return [entry.key for entry in (await driver.list(prefix)).entries]


async def is_there(registry: Registry, digest: Digest) -> bool:
    try:
        await pull_blob(registry, digest)
    except BlobUnknown:
        return False
    return True


# ---- in a thread


PIECES = (LARGE[:MIB], LARGE[MIB : 2 * MIB], LARGE[2 * MIB :])


async def can_write_from_thread(driver: Driver) -> bool:
    async with driver.open_upload("probe/data") as upload:
        return upload.can_write_from_thread


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_what_comes_quickly_is_taken_in_a_thread_where_the_store_can(
    registry: Registry, driver: Driver, algorithm: str
) -> None:
    digest = Digest.of(LARGE, algorithm)
    body = SentQuickly(*PIECES, length=len(LARGE))
    await registry(PushBlob(repository=REPOSITORY, digest=digest, body=body))
    assert await pull_blob(registry, digest) == LARGE
    assert body.taken == (len(LARGE) - MIB if await can_write_from_thread(driver) else 0)


async def test_a_session_goes_on_behind_what_a_thread_took(registry: Registry) -> None:
    upload_id = await open_upload(registry)
    whole = b"first" + LARGE
    assert await append(registry, upload_id, b"first") == 5
    operation = AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=SentQuickly(*PIECES), start=5)
    assert (await registry(operation)).offset == len(whole)
    assert await append(registry, upload_id, b", and more", start=len(whole)) == len(whole) + 10
    digest = Digest.of(whole + b", and more")
    await commit(registry, upload_id, digest)
    assert await pull_blob(registry, digest) == whole + b", and more"


async def test_a_body_that_is_too_long_is_refused_in_a_thread_too(registry: Registry, driver: Driver) -> None:
    upload_id = await open_upload(registry)
    await append(registry, upload_id, b"four")
    body = SentQuickly(*PIECES)
    with pytest.raises(SizeInvalid):
        await registry(AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=body, length=len(LARGE) - 1))
    assert await offset(registry, upload_id) == 4
    await commit(registry, upload_id, Digest.of(b"four"))


async def test_a_client_that_leaves_a_thread_loses_nothing(registry: Registry) -> None:
    class Broken(SentQuickly):
        async def take_quickly(self, take: Callable[[bytes], None], /) -> int:
            return 0 if self.taken else await super().take_quickly(take)

    upload_id = await open_upload(registry)
    body = Broken(*PIECES, then=ClientLeft("the client left"))
    with pytest.raises(ClientLeft):
        await registry(AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=body))
    assert await offset(registry, upload_id) == len(LARGE)
    await commit(registry, upload_id, Digest.of(LARGE))


async def test_a_store_that_fails_in_a_thread_keeps_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FilesystemDriver.open_root(str(tmp_path)) as driver:
        registry = Registry(driver)
        upload_id = await open_upload(registry)
        written = os.pwrite

        def fail_later(descriptor: int, data: bytes, position: int, /) -> int:
            if position >= 2 * MIB:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return written(descriptor, data, position)

        monkeypatch.setattr(os, "pwrite", fail_later)
        body = SentQuickly(*PIECES)
        with pytest.raises(Unavailable):
            await registry(AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=body))
        monkeypatch.undo()
        assert await offset(registry, upload_id) == 2 * MIB
        await append(registry, upload_id, LARGE[2 * MIB :], start=2 * MIB)
        await commit(registry, upload_id, Digest.of(LARGE))
        assert await pull_blob(registry, Digest.of(LARGE)) == LARGE


# ---- the plain way


async def test_a_session_is_a_uuid_that_stands_at_zero(registry: Registry, driver: Driver) -> None:
    before = time.time_ns() // 1_000_000
    upload_id = await open_upload(registry)
    parsed = uuid.UUID(upload_id)
    assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, upload_id)
    assert before <= parsed.int >> 80 <= time.time_ns() // 1_000_000
    assert await offset(registry, upload_id) == 0
    session = f"docker/registry/v2/repositories/{REPOSITORY}/_uploads/{upload_id}/"
    if not driver.capabilities.remote:
        assert (await driver.read(session + "startedat", limit=100)).endswith(b"Z")


async def test_chunks_are_added_up_and_committed(registry: Registry, driver: Driver) -> None:
    upload_id = await open_upload(registry)
    assert await append(registry, upload_id, b"one, ", start=0, length=5) == 5
    assert await append(registry, upload_id) == 5
    assert await append(registry, upload_id, b"tw", b"", b"o, ", start=5) == 10
    assert await offset(registry, upload_id) == 10
    digest = Digest.of(b"one, two, three")
    assert await commit(registry, upload_id, digest, b"three", start=10) == digest
    assert await pull_blob(registry, digest) == b"one, two, three"
    assert await sessions(driver) == []
    with pytest.raises(UploadUnknown):
        await offset(registry, upload_id)


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, MIB, len(LARGE)])
async def test_each_request_may_be_answered_by_another_process(store: Store, size: int) -> None:
    data = LARGE[:size]
    third = size // 3

    async def ask(request: Callable[[Registry], Awaitable[T]]) -> T:
        async with store.open() as driver:
            return await request(Registry(driver))

    upload_id = await ask(open_upload)
    await ask(lambda registry: append(registry, upload_id, data[:third]))
    await ask(lambda registry: append(registry, upload_id, data[third : 2 * third], start=third))
    assert await ask(lambda registry: offset(registry, upload_id)) == 2 * third
    await ask(lambda registry: commit(registry, upload_id, Digest.of(data), data[2 * third :]))
    assert await ask(lambda registry: pull_blob(registry, Digest.of(data))) == data


@pytest.mark.parametrize("size", [0, 1, len(LARGE)])
async def test_a_blob_is_pushed_in_one_request(registry: Registry, driver: Driver, size: int) -> None:
    digest = await push_blob(registry, LARGE[:size])
    assert await pull_blob(registry, digest) == LARGE[:size]
    assert await sessions(driver) == []


async def test_a_blob_that_is_pushed_again_heals_a_broken_one(registry: Registry, driver: Driver) -> None:
    digest = await push_blob(registry, b"data")
    key = f"docker/registry/v2/blobs/sha256/{digest.encoded[:2]}/{digest.encoded}/data"
    await driver.write(key, b"")
    await push_blob(registry, b"data")
    assert await pull_blob(registry, digest) == b"data"
    await driver.delete(key)
    upload_id = await open_upload(registry)
    await commit(registry, upload_id, digest, b"data")
    assert await pull_blob(registry, digest) == b"data"


# ---- algorithms


@pytest.mark.parametrize("announced", [None, "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
async def test_a_blob_may_be_committed_by_any_algorithm_whatever_was_announced(
    registry: Registry, driver: Driver, announced: str | None, algorithm: str
) -> None:
    upload_id = await open_upload(registry, algorithm=announced)
    await append(registry, upload_id, b"one, ")
    digest = Digest.of(b"one, two", algorithm)
    await commit(registry, upload_id, digest, b"two")
    assert await pull_blob(registry, digest) == b"one, two"
    assert await sessions(driver) == []
    wrong = await open_upload(registry, algorithm=announced)
    await append(registry, wrong, b"one, ")
    with pytest.raises(DigestInvalid):
        await commit(registry, wrong, Digest.of(b"other", algorithm), b"two")
    assert await sessions(driver) == []
    assert not await is_there(registry, Digest.of(b"other", algorithm))


async def test_an_announced_digest_only_helps(registry: Registry) -> None:
    upload_id = await open_upload(registry, digest=Digest.of(b"announced"))
    await append(registry, upload_id, b"other")
    await commit(registry, upload_id, Digest.of(b"other"))
    assert await pull_blob(registry, Digest.of(b"other")) == b"other"


@pytest.mark.usefixtures("without_openssl")
async def test_without_a_hash_that_can_be_carried_content_is_checked_all_the_same(registry: Registry) -> None:
    for pieces in ([], [b"one, "], [b"one, ", b"two, "]):
        upload_id, wrong = await open_upload(registry), await open_upload(registry)
        for piece in pieces:
            await append(registry, upload_id, piece)
            await append(registry, wrong, piece)
        data = b"".join(pieces) + b"last"
        await commit(registry, upload_id, Digest.of(data), b"last")
        assert await pull_blob(registry, Digest.of(data)) == data
        with pytest.raises(DigestInvalid):
            await commit(registry, wrong, Digest.of(data), b"lost")


async def test_an_algorithm_that_cannot_be_computed_is_refused_and_the_session_lives(registry: Registry) -> None:
    with pytest.raises(DigestInvalid):
        await open_upload(registry, algorithm="md5")
    with pytest.raises(DigestInvalid):
        await open_upload(registry, digest=Digest("md5:d41d8cd98f00b204e9800998ecf8427e"))
    upload_id = await open_upload(registry)
    with pytest.raises(DigestInvalid):
        await commit(registry, upload_id, Digest("md5:d41d8cd98f00b204e9800998ecf8427e"))
    await commit(registry, upload_id, Digest.of(b""))
    with pytest.raises(DigestInvalid):
        await registry(
            PushBlob(repository=REPOSITORY, digest=Digest("md5:d41d8cd98f00b204e9800998ecf8427e"), body=Sent())
        )


# ---- what is refused


async def test_content_with_another_digest_is_refused_and_leaves_nothing(registry: Registry, driver: Driver) -> None:
    digest = Digest.of(b"promised")
    upload_id = await open_upload(registry)
    await append(registry, upload_id, b"sent")
    with pytest.raises(DigestInvalid) as caught:
        await commit(registry, upload_id, digest)
    assert caught.value.detail == {"expected": digest, "found": Digest.of(b"sent")}
    with pytest.raises(UploadUnknown):
        await offset(registry, upload_id)
    with pytest.raises(DigestInvalid):
        await registry(PushBlob(repository=REPOSITORY, digest=digest, body=Sent(b"sent")))
    assert await sessions(driver) == []
    assert (await driver.list("docker/registry/v2/blobs/")).entries == ()
    assert not await is_there(registry, digest)


@pytest.mark.parametrize("start", [0, 3, 5, 100])
async def test_a_chunk_out_of_order_is_refused_and_the_session_lives(registry: Registry, start: int) -> None:
    upload_id = await open_upload(registry)
    await append(registry, upload_id, b"four")
    with pytest.raises(UploadOutOfOrder) as caught:
        await append(registry, upload_id, b"more", start=start)
    assert (caught.value.offset, caught.value.upload_id) == (4, upload_id)
    with pytest.raises(UploadOutOfOrder):
        await commit(registry, upload_id, Digest.of(b"four!"), b"!", start=start)
    assert await offset(registry, upload_id) == 4
    await commit(registry, upload_id, Digest.of(b"four!"), b"!", start=4)


@pytest.mark.parametrize(
    ("pieces", "body_length", "length"),
    [
        ([b"1234"], 4, 5),
        ([b"1234"], None, 5),
        ([b"1234"], None, 3),
        ([b"12", b"34"], None, 3),
        ([], None, 1),
        ([b"x" * MIB, b"x" * MIB, b"x"], None, 2 * MIB),
    ],
)
async def test_lengths_that_contradict_each_other_are_refused_and_the_session_stays_where_it_was(
    registry: Registry, pieces: list[bytes], body_length: int | None, length: int
) -> None:
    upload_id = await open_upload(registry)
    await append(registry, upload_id, b"four")
    with pytest.raises(SizeInvalid):
        await registry(
            AppendUpload(
                repository=REPOSITORY, upload_id=upload_id, body=Sent(*pieces, length=body_length), length=length
            )
        )
    with pytest.raises(SizeInvalid):
        await registry(
            CommitUpload(
                repository=REPOSITORY,
                upload_id=upload_id,
                digest=Digest.of(b"four"),
                body=Sent(*pieces, length=body_length),
                length=length,
            )
        )
    assert await offset(registry, upload_id) == 4
    await append(registry, upload_id, b"!")
    await commit(registry, upload_id, Digest.of(b"four!"))


@pytest.mark.parametrize(
    "upload_id",
    [
        "",
        ".",
        "..",
        "../x",
        "nonsense",
        "0190a5b0-0000-7000-8000-000000000000",
        "0190A5B0-0000-7000-8000-00000000000A",
        "{0190a5b0-0000-7000-8000-000000000000}",
        "0190a5b0000070008000000000000000",
        "urn:uuid:0190a5b0-0000-7000-8000-000000000000",
    ],
)
async def test_what_names_no_session_is_unknown(registry: Registry, upload_id: str) -> None:
    for operation in (
        StatUpload(repository=REPOSITORY, upload_id=upload_id),
        AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=Sent(b"x")),
        CommitUpload(repository=REPOSITORY, upload_id=upload_id, digest=Digest.of(b"x"), body=Sent(b"x")),
        CancelUpload(repository=REPOSITORY, upload_id=upload_id),
    ):
        with pytest.raises(UploadUnknown):
            await registry(operation)


async def test_a_session_belongs_to_its_repository(registry: Registry) -> None:
    upload_id = await open_upload(registry)
    with pytest.raises(UploadUnknown):
        await registry(AppendUpload(repository=OTHER, upload_id=upload_id, body=Sent(b"x")))
    assert await offset(registry, upload_id) == 0


async def test_a_session_whose_record_is_damaged_is_unknown(registry: Registry, driver: Driver) -> None:
    upload_id = await open_upload(registry)
    key = f"docker/registry/v2/repositories/{REPOSITORY}/_uploads/{upload_id}/state"
    for damaged in (b"", b"{", b"[]", b'{"offset": 0}', b"\xff"):
        await driver.write(key, damaged)
        with pytest.raises(UploadUnknown):
            await append(registry, upload_id, b"x")


async def test_a_session_whose_bytes_are_gone_is_unknown(registry: Registry, driver: Driver) -> None:
    upload_id = await open_upload(registry)
    await append(registry, upload_id, LARGE)
    for key in await sessions(driver):
        if not key.endswith(("/state", "/startedat")):
            await driver.delete(key)
    await driver.expire_uploads(older_than=time.time() + 3600, dry_run=False)
    with pytest.raises(UploadUnknown):
        await append(registry, upload_id, b"x")
    with pytest.raises(UploadUnknown):
        await commit(registry, upload_id, Digest.of(LARGE))
    assert await sessions(driver) == []


# ---- clients that leave, and requests that are cancelled


@pytest.mark.parametrize("pieces", [[b"some"], [LARGE], [LARGE, b"some"], [b"x" * 9 * MIB, b"some"], []])
@pytest.mark.parametrize("closing", [False, True])
async def test_what_arrived_from_a_client_that_left_is_kept(
    registry: Registry, pieces: list[bytes], closing: bool
) -> None:
    upload_id = await open_upload(registry)
    await append(registry, upload_id, b"first")
    sent = b"".join(pieces)
    data = b"first" + sent + b"the rest"
    body = Sent(*pieces, then=ClientLeft("gone"))
    with pytest.raises(ClientLeft):
        if closing:
            await registry(CommitUpload(repository=REPOSITORY, upload_id=upload_id, digest=Digest.of(data), body=body))
        else:
            await registry(AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=body, start=5))
    assert await offset(registry, upload_id) == 5 + len(sent)
    await commit(registry, upload_id, Digest.of(data), b"the rest")
    assert await pull_blob(registry, Digest.of(data)) == data


@pytest.mark.parametrize("pieces", [[b"some"], [LARGE], [LARGE, b"some"], [b"x" * 9 * MIB, b"some"], []])
async def test_what_arrived_before_a_request_was_cancelled_is_kept(registry: Registry, pieces: list[bytes]) -> None:
    upload_id = await open_upload(registry)
    await append(registry, upload_id, b"first")
    sent = b"".join(pieces)
    with trio.CancelScope() as scope:

        async def cancelled() -> None:
            scope.cancel()
            await trio.sleep_forever()

        await registry(AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=Sent(*pieces, then=cancelled)))
    assert scope.cancelled_caught
    assert await offset(registry, upload_id) == 5 + len(sent)
    data = b"first" + sent + b"the rest"
    await commit(registry, upload_id, Digest.of(data), b"the rest")
    assert await pull_blob(registry, Digest.of(data)) == data


async def test_a_request_cancelled_at_any_moment_leaves_a_session_that_goes_on(registry: Registry) -> None:
    upload_id = await open_upload(registry)
    data = bytes(range(256)) * (12 * MIB // 256)
    at = 0
    for patience in range(1, 40):
        if at == len(data):
            break
        with trio.CancelScope() as scope:
            steps = 0

            def instrument(scope: trio.CancelScope, patience: int) -> trio.abc.Instrument:
                class Impatient(trio.abc.Instrument):
                    def before_task_step(self, task: trio.lowlevel.Task) -> None:
                        nonlocal steps
                        steps += 1
                        if steps == patience * 3:
                            scope.cancel()

                return Impatient()

            watch = instrument(scope, patience)
            trio.lowlevel.add_instrument(watch)
            try:
                await append(
                    registry, upload_id, *(data[i : i + 700_000] for i in range(at, len(data), 700_000)), start=at
                )
            finally:
                trio.lowlevel.remove_instrument(watch)
        now = await offset(registry, upload_id)
        assert at <= now <= len(data)
        at = now
    await commit(registry, upload_id, Digest.of(data), data[at:], start=at)
    assert await pull_blob(registry, Digest.of(data)) == data


async def test_a_store_that_fails_for_a_moment_costs_no_acknowledged_byte(store: Store) -> None:
    async with store.open() as inner:
        failing = 0

        def before(verb: str, key: str) -> None:
            nonlocal failing
            if verb in {"write", "append"} and "/data" in key:
                failing -= 1
                if failing == 0:
                    raise StoreUnavailable("for a moment", driver="x", operation="write", key=key)

        registry = Registry(WatchedDriver(inner, before))
        upload_id = await open_upload(registry)
        data = b"first" + LARGE * 4
        await append(registry, upload_id, b"first")
        failing = 2 if store.kind == "filesystem" else 1
        with pytest.raises(Unavailable):
            await append(registry, upload_id, *(data[start : start + MIB] for start in range(5, 10 * MIB, MIB)))
        now = await offset(registry, upload_id)
        assert now >= 5
        await commit(registry, upload_id, Digest.of(data), data[now:], start=now)
        assert await pull_blob(registry, Digest.of(data)) == data


async def test_a_push_in_one_request_that_is_broken_off_leaves_nothing(registry: Registry, driver: Driver) -> None:
    digest = Digest.of(LARGE)
    with pytest.raises(ClientLeft):
        await registry(PushBlob(repository=REPOSITORY, digest=digest, body=Sent(LARGE[:-1], then=ClientLeft("gone"))))
    with trio.CancelScope() as scope:

        async def cancelled() -> None:
            scope.cancel()
            await trio.sleep_forever()

        await registry(PushBlob(repository=REPOSITORY, digest=digest, body=Sent(LARGE, then=cancelled)))
    assert scope.cancelled_caught
    assert await sessions(driver) == []
    assert not await is_there(registry, digest)


# ---- several requests at once


@pytest.mark.parametrize("start", [0, None])
async def test_of_two_chunks_at_once_one_is_taken_and_the_other_hears_where_the_upload_stands(
    registry: Registry, start: int | None
) -> None:
    upload_id = await open_upload(registry)
    taken: list[bytes] = []
    refused: list[int] = []
    both = trio.Event()
    begun = 0

    async def meet() -> None:
        nonlocal begun
        begun += 1
        if begun + len(refused) == 2:
            both.set()
        await both.wait()

    async def send(data: bytes) -> None:
        try:
            await registry(
                AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=Sent(data, then=meet), start=start)
            )
        except UploadOutOfOrder as error:
            refused.append(error.offset)
            both.set()
        else:
            taken.append(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, b"one, " * 3)
        nursery.start_soon(send, b"two, " * 3)
    assert len(taken) == 1
    # The loser hears of the winner where that is known when it loses.
    assert refused in ([0], [15])
    assert await offset(registry, upload_id) == 15
    await commit(registry, upload_id, Digest.of(taken[0]))
    assert await pull_blob(registry, Digest.of(taken[0])) == taken[0]


async def test_a_chunk_that_comes_while_another_is_under_way_takes_nothing_from_it(registry: Registry) -> None:
    upload_id = await open_upload(registry)

    async def interfere() -> None:
        for _ in range(3):
            with suppress(UploadOutOfOrder):
                await append(registry, upload_id, b"in between", start=0)

    data = b"under way"
    try:
        await registry(AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=Sent(data, then=interfere)))
    except UploadOutOfOrder:
        data = b"in between"
    await commit(registry, upload_id, Digest.of(data))
    assert await pull_blob(registry, Digest.of(data)) == data


async def test_a_chunk_that_comes_while_the_upload_is_committed_is_refused(registry: Registry) -> None:
    upload_id = await open_upload(registry)
    refused = 0

    async def late() -> None:
        nonlocal refused
        with pytest.raises((UploadOutOfOrder, UploadUnknown)):
            await append(registry, upload_id, b"late", start=1)
        refused += 1

    digest = Digest.of(b"whole")
    body = Sent(b"whole", then=late)
    await registry(CommitUpload(repository=REPOSITORY, upload_id=upload_id, digest=digest, body=body))
    assert refused == 1
    assert await pull_blob(registry, digest) == b"whole"


async def test_of_many_commits_of_one_upload_none_harms_the_blob(registry: Registry, driver: Driver) -> None:
    upload_id = await open_upload(registry)
    await append(registry, upload_id, b"whole")
    answers: list[str] = []

    async def close() -> None:
        try:
            await commit(registry, upload_id, Digest.of(b"whole"))
        except (UploadOutOfOrder, UploadUnknown) as error:
            answers.append(type(error).__name__)
        else:
            answers.append("done")

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(close)
    assert "done" in answers
    assert await pull_blob(registry, Digest.of(b"whole")) == b"whole"
    assert await sessions(driver) == []


async def test_the_same_blob_pushed_by_many_at_once_is_there_once_and_whole(registry: Registry, driver: Driver) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(push_blob, registry, LARGE)
    assert await pull_blob(registry, Digest.of(LARGE)) == LARGE
    assert await sessions(driver) == []


# ---- cancel and expire


async def test_a_cancelled_session_is_gone_with_all_it_held(registry: Registry, driver: Driver) -> None:
    upload_id = await open_upload(registry)
    await append(registry, upload_id, LARGE)
    cancel = CancelUpload(repository=REPOSITORY, upload_id=upload_id)
    assert (await registry(cancel)).upload_id == upload_id
    assert await sessions(driver) == []
    with pytest.raises(UploadUnknown):
        await registry(cancel)
    with pytest.raises(UploadUnknown):
        await append(registry, upload_id, b"x")


async def test_a_session_cannot_be_cancelled_under_a_request_where_the_store_can_tell(
    registry: Registry, driver: Driver
) -> None:
    upload_id = await open_upload(registry)

    async def cancel() -> None:
        operation = CancelUpload(repository=REPOSITORY, upload_id=upload_id)
        if driver.capabilities.exclusive_uploads:
            with pytest.raises(UploadOutOfOrder):
                await registry(operation)
        else:
            await registry(operation)

    request = AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=Sent(b"x", then=cancel))
    if driver.capabilities.exclusive_uploads:
        assert (await registry(request)).offset == 1
    else:
        with pytest.raises(UploadUnknown):
            await registry(request)
        with pytest.raises(UploadUnknown):
            await offset(registry, upload_id)


async def test_sessions_that_nothing_happens_to_expire(registry: Registry, driver: Driver) -> None:
    uploads = registry.uploads
    ids = [await open_upload(registry) for _ in range(3)]
    await append(registry, ids[0], LARGE)
    prefix = f"docker/registry/v2/repositories/{REPOSITORY}/_uploads/"
    # One of distribution's, and what a single push leaves when the power goes.
    await driver.write(prefix + "0190a5b0-0000-7000-8000-000000000000/startedat", b"2020-01-01T00:00:00Z")
    await driver.write(prefix + "0190a5b0-0000-7000-8000-000000000000/hashstates/sha256/0", b"x")
    await driver.write(prefix + "0190a5b0-0000-7000-8000-000000000001/data", b"x")
    await driver.write("docker/registry/v2/repositories/other/_uploads/no-uuid/startedat", b"no time either")
    past, future = time.time() - 3600, time.time() + 3600
    assert await uploads.expire(older_than=past, dry_run=False) == 0
    # A service's part of a session is counted by itself until the session has gone.
    assert await uploads.expire(older_than=future, dry_run=True) == 6 + driver.capabilities.remote
    assert await offset(registry, ids[0]) == len(LARGE)
    assert await uploads.expire(older_than=future, dry_run=False) == 6
    assert await sessions(driver) == []
    assert (await driver.list("docker/")).entries == ()
    assert await uploads.expire(older_than=future, dry_run=False) == 0


async def test_a_session_of_many_parts_is_as_young_as_its_last_chunk() -> None:
    driver = MemoryDriver()
    registry = Registry(driver)
    upload_id = await open_upload(registry)
    for _ in range(12):
        await append(registry, upload_id, b"x")
    for key, (data, stat) in list(driver._objects.items()):
        if key.endswith("/startedat"):
            data = b"2020-01-01T00:00:00Z"
        if not key.endswith("/state"):
            driver._objects[key] = (data, msgspec.structs.replace(stat, modified=0.0))
    assert await registry.uploads.expire(older_than=time.time() - 3600, dry_run=False) == 0
    assert await offset(registry, upload_id) == 12


async def test_more_sessions_than_a_page_expire(driver: Driver) -> None:
    prefix = f"docker/registry/v2/repositories/{REPOSITORY}/_uploads/"
    for number in range(1100):
        key = f"{prefix}{uuid.UUID(int=number)}/startedat"
        await driver.write(key, b"2020-01-01T00:00:00Z", durable=False)
    assert await Registry(driver).uploads.expire(older_than=time.time() + 3600, dry_run=False) == 1100
    assert await sessions(driver) == []


async def test_a_session_under_a_request_does_not_expire_where_the_store_can_tell(
    registry: Registry, driver: Driver
) -> None:
    upload_id = await open_upload(registry)

    async def expire() -> None:
        await registry.uploads.expire(older_than=time.time() + 3600, dry_run=False)

    request = AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=Sent(b"x", then=expire))
    if driver.capabilities.exclusive_uploads:
        await registry(request)
        assert await offset(registry, upload_id) == 1
    else:
        with pytest.raises(UploadUnknown):
            await registry(request)
        with pytest.raises(UploadUnknown):
            await offset(registry, upload_id)


# ---- order of steps, and power cuts between them


async def test_content_is_visible_before_it_is_linked_and_linked_before_the_session_goes(store: Store) -> None:
    async with store.open() as inner:
        log = Log()
        registry = Registry(WatchedDriver(inner, log))
        upload_id = await open_upload(registry)
        await append(registry, upload_id, b"data")
        log.steps.clear()
        digest = Digest.of(b"data")
        await commit(registry, upload_id, digest)
        session = f"docker/registry/v2/repositories/{REPOSITORY}/_uploads/{upload_id}/"
        steps = [key for _, key in log.steps]
        blob = steps.index(f"docker/registry/v2/blobs/sha256/{digest.encoded[:2]}/{digest.encoded}/data")
        link = steps.index(f"docker/registry/v2/repositories/{REPOSITORY}/_layers/sha256/{digest.encoded}/link")
        # Its state, or all that is left of it.
        gone = next(
            at
            for at, (verb, key) in enumerate(log.steps)
            if verb.startswith("delete") and key in {session, session + "state"}
        )
        assert blob < link < gone
        assert all(key.startswith(session) for key in steps[gone:])


async def after_each_power_cut(
    store: Store,
    prepare: Callable[[Registry], Awaitable[str]],
    request: Callable[[Registry, str], Awaitable[object]],
    check: Callable[[Registry, Driver, str], Awaitable[None]],
) -> None:
    """For every step of `request`, let the power go before it; then `check` with a registry that knows of nothing."""
    for steps in range(100):
        async with store.open() as driver:
            name = await prepare(Registry(driver))
        async with store.open() as driver:
            cut = PowerCut(steps)
            try:
                await request(Registry(WatchedDriver(driver, cut)), name)
            except Unavailable:
                assert cut.happened
        async with store.open() as driver:
            await check(Registry(driver), driver, name)
            await driver.delete_below("docker/")
        if not cut.happened:
            assert steps > 2
            return
    raise AssertionError("it never ends")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("last", [b"", b", last"])
async def test_a_commit_that_is_cut_off_is_finished_or_begun_again(store: Store, algorithm: str, last: bytes) -> None:
    data = b"first" + last
    digest = Digest.of(data, algorithm)

    async def prepare(registry: Registry) -> str:
        upload_id = await open_upload(registry)
        await append(registry, upload_id, b"first")
        return upload_id

    async def request(registry: Registry, upload_id: str) -> None:
        await commit(registry, upload_id, digest, last)

    async def check(registry: Registry, driver: Driver, upload_id: str) -> None:
        if await is_there(registry, digest):
            assert await pull_blob(registry, digest) == data
        try:
            # The last bytes are acknowledged before they leave the session, or not at all.
            standing = await offset(registry, upload_id)
            assert standing in {5, len(data)}
            await commit(registry, upload_id, digest, data[standing:], start=standing)
        except UploadUnknown:
            if not last:
                # Nothing is sent with the commit, so all of it was acknowledged before and may not be lost.
                assert await pull_blob(registry, digest) == data
            await push_blob(registry, data)
            upload_id = await open_upload(registry)
            await commit(registry, upload_id, digest, data)
        assert await pull_blob(registry, digest) == data
        await registry.uploads.expire(older_than=time.time() + 3600, dry_run=False)
        assert await sessions(driver) == []

    await after_each_power_cut(store, prepare, request, check)


@pytest.mark.usefixtures("without_openssl")
async def test_a_commit_that_must_read_again_survives_being_cut_off(store: Store) -> None:
    digest = Digest.of(b"first")

    async def prepare(registry: Registry) -> str:
        upload_id = await open_upload(registry)
        await append(registry, upload_id, b"first")
        return upload_id

    async def request(registry: Registry, upload_id: str) -> None:
        await commit(registry, upload_id, digest)

    async def check(registry: Registry, driver: Driver, upload_id: str) -> None:
        del driver
        try:
            await commit(registry, upload_id, digest)
        except UploadUnknown:
            assert await is_there(registry, digest)
        assert await pull_blob(registry, digest) == b"first"

    await after_each_power_cut(store, prepare, request, check)


async def test_what_was_acknowledged_before_a_chunk_was_cut_off_is_still_there(store: Store) -> None:
    async def prepare(registry: Registry) -> str:
        upload_id = await open_upload(registry)
        await append(registry, upload_id, b"first")
        return upload_id

    async def request(registry: Registry, upload_id: str) -> None:
        await append(registry, upload_id, LARGE)
        await append(registry, upload_id, b"third")

    async def check(registry: Registry, driver: Driver, upload_id: str) -> None:
        del driver
        data = b"first" + LARGE + b"third"
        now = await offset(registry, upload_id)
        assert now in {5, 5 + len(LARGE), len(data)}
        await commit(registry, upload_id, Digest.of(data), data[now:], start=now)
        assert await pull_blob(registry, Digest.of(data)) == data

    await after_each_power_cut(store, prepare, request, check)


async def test_a_push_in_one_request_that_is_cut_off_may_be_repeated(store: Store) -> None:
    async def prepare(registry: Registry) -> str:
        await push_blob(registry, b"another")
        return ""

    async def request(registry: Registry, name: str) -> None:
        del name
        await push_blob(registry, b"data")
        await push_blob(registry, b"more")

    async def check(registry: Registry, driver: Driver, name: str) -> None:
        del name
        if await is_there(registry, Digest.of(b"data")):
            assert await pull_blob(registry, Digest.of(b"data")) == b"data"
        await push_blob(registry, b"data")
        assert await pull_blob(registry, Digest.of(b"data")) == b"data"
        assert await pull_blob(registry, Digest.of(b"another")) == b"another"
        await registry.uploads.expire(older_than=time.time() + 3600, dry_run=False)
        assert await sessions(driver) == []

    await after_each_power_cut(store, prepare, request, check)


async def test_an_opened_session_that_was_cut_off_is_unknown_and_expires(store: Store) -> None:
    async def prepare(registry: Registry) -> str:
        return await open_upload(registry)

    async def request(registry: Registry, name: str) -> None:
        del name
        await open_upload(registry)
        await open_upload(registry)

    async def check(registry: Registry, driver: Driver, name: str) -> None:
        assert await offset(registry, name) == 0
        await registry.uploads.expire(older_than=time.time() + 3600, dry_run=False)
        assert await sessions(driver) == []

    await after_each_power_cut(store, prepare, request, check)


async def test_a_memory_store_keeps_no_part_of_an_upload_that_is_done() -> None:
    driver = MemoryDriver()
    registry = Registry(driver)
    upload_id = await open_upload(registry)
    for _ in range(3):
        await append(registry, upload_id, b"x" * 9 * MIB)
    await commit(registry, upload_id, Digest.of(b"x" * 27 * MIB))
    kinds = {entry.key.rsplit("/", 1)[-1] for entry in (await driver.list("")).entries}
    assert kinds == {"data", "link"}

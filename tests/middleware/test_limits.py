"""How much one client may ask for, how much one upload may hold, and how many may be open."""

import base64
import json
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

import house
from asgi_client import Answer, AsgiClient
from content import REPOSITORY, Sent, SentQuickly, image, push_blob, push_manifest
from moorage import (
    AppendUpload,
    Caller,
    CommitUpload,
    ConfigurationError,
    CountUploads,
    Digest,
    Handler,
    ManifestTooLarge,
    MemoryDriver,
    MountBlob,
    OpenUpload,
    Operation,
    Origin,
    Ping,
    Pong,
    PushBlob,
    R,
    Registry,
    RepositoryName,
    StatUpload,
    TooManyRequests,
    UploadUnknown,
    check_options,
    claimed_sections,
    decode_options,
    load_configuration,
    open_registry,
)
from moorage_app.asgi import Application
from moorage_app.worker import application_settings
from moorage_conformance.plugin_kit import Subject, assert_plugin
from moorage_drivers.filesystem import FilesystemDriver
from moorage_middleware.limits import (
    AddressBudget,
    BlobTooLarge,
    Budget,
    Budgeted,
    Counts,
    Limits,
    Network,
    Sizes,
    by_address,
    by_user,
)
from opening import IN_MEMORY, installed, loaded, opened


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Inner:
    """Answers a Pong when it may, and notes what is under way."""

    def __init__(self) -> None:
        self.under_way = 0
        self.go = trio.Event()

    async def __call__(self, operation: Operation[R], /) -> R:
        if isinstance(operation, PushBlob):
            self.under_way += 1
            try:
                await self.go.wait()
            finally:
                self.under_way -= 1
        return cast("R", Pong())


def push(address: str = "192.0.2.1") -> PushBlob:
    return PushBlob(origin=Origin(address=address), repository=REPOSITORY, digest=Digest.of(b"x"), body=Sent(b"x"))


# ---- budgets


def test_a_bucket_fills_at_its_rate_up_to_its_burst() -> None:
    clock = Clock()
    counts = Counts(Budget(rate=2, burst=4), "address", clock=clock)
    for _ in range(4):
        counts.take("a")
    with pytest.raises(TooManyRequests, match="too many requests of this address: 2 a second") as refused:
        counts.take("a")
    assert refused.value.retry_after == pytest.approx(0.5)
    counts.take("b")
    # A refusal costs nothing: who waits as told is answered.
    clock.now += 0.5
    counts.take("a")
    clock.now += 1000
    for _ in range(4):
        counts.take("a")
    with pytest.raises(TooManyRequests):
        counts.take("a")


def test_without_a_burst_ten_seconds_may_come_at_once_and_one_always() -> None:
    assert Budget(rate=5).at_once == 50
    assert Budget(rate=0.01).at_once == 1


def test_what_is_counted_is_bounded_under_many_addresses() -> None:
    counts = Counts(Budget(rate=1, burst=2), "address", clock=Clock())
    tracemalloc.start()
    try:
        for at in range(50_000):
            counts.take(f"{at}")
        half = tracemalloc.get_traced_memory()[0]
        for at in range(50_000, 100_000):
            counts.take(f"{at}")
        whole = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(counts._buckets) == 50_000
    assert whole < half * 1.5
    # Who was seen last is still counted.
    counts.take("99999")
    with pytest.raises(TooManyRequests):
        counts.take("99999")


async def test_uploads_at_once_are_bounded_and_a_place_is_given_back_however_an_upload_ends() -> None:
    inner = Inner()
    counts = Counts(Budget(uploads=2), "address")
    handler = Budgeted(inner, counts, by_address(()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handler, push())
        nursery.start_soon(handler, push())
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TooManyRequests, match="too many uploads of this address at once: 2") as refused:
            await handler(push())
        assert refused.value.retry_after == 5
        await handler(Ping(origin=Origin(address="192.0.2.1")))
        async with trio.open_nursery() as other:
            other.start_soon(handler, push("192.0.2.2"))
            await trio.testing.wait_all_tasks_blocked()
            assert inner.under_way == 3
            other.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    assert counts._uploads == {}
    inner.go.set()
    await handler(push())
    assert counts._uploads == {}


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1:2:3", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("10.1.2.3", None),
        ("::ffff:10.1.2.3", None),
        ("2001:db8:1::5", None),
        ("", None),
        ("/run/moorage.sock", "/run/moorage.sock"),
    ],
)
def test_for_which_address_a_request_counts(address: str, key: str | None) -> None:
    of = by_address((Network.from_setting("10.0.0.0/8"), Network.from_setting("2001:db8:1::/48")))
    assert of(Ping(origin=Origin(address=address))) == key


def test_for_which_user_a_request_counts() -> None:
    of = by_user(("ci",))
    assert of(Ping(caller=Caller(name="ann"))) == "ann"
    assert of(Ping(caller=Caller(name="ci"))) is None
    assert of(Ping()) is None


@asynccontextmanager
async def served(limits: Mapping[str, object], auth: Mapping[str, object] | None = None) -> AsyncGenerator[AsgiClient]:
    plugins = installed()
    plugins.register(house, "house")
    overrides: dict[str, object] = {**IN_MEMORY, "limits": limits, "auth": auth or {}}
    found = load_configuration(None, {}, overrides=overrides, claimed=claimed_sections(plugins))
    check_options(found.configuration, plugins)
    assert found.warnings == ()
    async with open_registry(found.configuration, plugins) as registry:
        yield AsgiClient(Application(registry.handler, application_settings(found.configuration)))


async def ping(client: AsgiClient, user: str = "") -> Answer:
    headers = []
    if user:
        headers = [("Authorization", "Basic " + base64.b64encode(f"{user}:{user}-secret".encode()).decode())]
    return await client.ask("GET", "/v2/", headers)


async def test_an_address_is_refused_before_anybody_looks_who_asks() -> None:
    async with served({"address": {"rate": 0.01, "burst": 2}}, {"passwords": None}) as client:
        assert [(await ping(client)).status for _ in range(3)] == [401, 401, 429]
        answer = await ping(client, "ann")
        assert (answer.status, answer.codes) == (429, ["TOOMANYREQUESTS"])
        assert 1 <= int(answer.header("Retry-After") or "") <= 100


async def test_an_exempt_address_is_not() -> None:
    async with served({"address": {"rate": 0.01, "burst": 1, "exempt": ["192.0.2.0/24"]}}) as client:
        assert [(await ping(client)).status for _ in range(3)] == [200] * 3


async def test_each_user_has_a_budget_of_their_own() -> None:
    async with served({"user": {"rate": 0.01, "burst": 2, "exempt": ["staff-ci"]}}, {"passwords": None}) as client:
        assert [(await ping(client, "ann")).status for _ in range(3)] == [200, 200, 429]
        assert (await ping(client, "bob")).status == 200
        assert [(await ping(client, "staff-ci")).status for _ in range(4)] == [200] * 4
        assert (await ping(client)).status == 401


async def test_without_limits_nobody_is_limited() -> None:
    async with opened("") as handler:
        for _ in range(50):
            await handler(Ping(origin=Origin(address="192.0.2.1")))


# ---- sizes


def sizes(handler: Handler, **options: int) -> Sizes:
    written = {name.replace("_", ""): value for name, value in options.items()}
    return Sizes(decode_options(Limits, written, source="the test"), handler)


class Unannounced:
    """A body that nobody says the length of, and that notes how much of it was taken."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.length: int | None = None
        self._pieces = iter(pieces)
        self.taken = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for piece in self._pieces:
            self.taken += len(piece)
            return piece
        raise StopAsyncIteration


async def test_a_blob_may_be_as_large_as_the_limit_and_no_larger() -> None:
    handler = sizes(Registry(MemoryDriver()), max_blob_size=10)
    await push_blob(handler, b"x" * 10)
    with pytest.raises(BlobTooLarge, match="at most 10 bytes") as refused:
        await push_blob(handler, b"x" * 11)
    assert (refused.value.status, refused.value.code) == (413, "SIZE_INVALID")


async def test_it_is_enforced_while_the_bytes_come() -> None:
    handler = sizes(Registry(MemoryDriver()), max_blob_size=10)
    body = Unannounced([b"x" * 6] * 100)
    with pytest.raises(BlobTooLarge):
        await handler(PushBlob(repository=REPOSITORY, digest=Digest.of(b"x" * 600), body=body))
    assert body.taken == 12


async def test_it_is_enforced_in_a_thread_too(tmp_path: Path) -> None:
    mib = 1 << 20
    async with FilesystemDriver.open_root(str(tmp_path)) as driver:
        handler = sizes(Registry(driver), max_blob_size=3 * mib)
        whole = SentQuickly(*[b"x" * mib] * 3)
        await handler(PushBlob(repository=REPOSITORY, digest=Digest.of(b"x" * 3 * mib), body=whole))
        assert whole.taken == 2 * mib
        body = SentQuickly(*[b"x" * mib] * 4)
        with pytest.raises(BlobTooLarge):
            await handler(PushBlob(repository=REPOSITORY, digest=Digest.of(b"x" * 4 * mib), body=body))


@pytest.mark.parametrize("named", [True, False])
async def test_all_chunks_of_an_upload_count_and_one_that_is_too_large_is_gone(named: bool) -> None:
    registry = Registry(MemoryDriver())
    handler = sizes(registry, max_blob_size=10)
    upload_id = (await handler(OpenUpload(repository=REPOSITORY))).upload_id

    def chunk(size: int, start: int) -> AppendUpload:
        body = Unannounced([b"x"] * size)
        start_named = start if named else None
        return AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=body, start=start_named)

    assert (await handler(chunk(6, 0))).offset == 6
    assert (await handler(chunk(4, 6))).offset == 10
    with pytest.raises(BlobTooLarge):
        await handler(chunk(1, 10))
    with pytest.raises(UploadUnknown):
        await handler(StatUpload(repository=REPOSITORY, upload_id=upload_id))


@pytest.mark.parametrize(("last", "fits"), [(0, True), (4, True), (5, False)])
async def test_what_comes_with_the_commit_counts_too(last: int, fits: bool) -> None:
    handler = sizes(Registry(MemoryDriver()), max_blob_size=10)
    upload_id = (await handler(OpenUpload(repository=REPOSITORY))).upload_id
    await handler(AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=Sent(b"x" * 6)))
    digest = Digest.of(b"x" * (6 + last))
    commit = CommitUpload(repository=REPOSITORY, upload_id=upload_id, digest=digest, body=Sent(b"x" * last))
    if fits:
        assert (await handler(commit)).digest == digest
    else:
        with pytest.raises(BlobTooLarge):
            await handler(commit)


async def test_over_http_it_is_413() -> None:
    async with served({"maxblobsize": "1kB", "maxmanifestsize": 100}) as client:
        digest = Digest.of(b"x" * 2000)
        pushed = await client.ask("POST", f"/v2/a/blobs/uploads/?digest={digest}", body=b"x" * 2000, length=False)
        assert (pushed.status, pushed.codes) == (413, ["SIZE_INVALID"])
        small = Digest.of(b"x" * 1000)
        assert (await client.ask("POST", f"/v2/a/blobs/uploads/?digest={small}", body=b"x" * 1000)).status == 201
        index = json.dumps({"schemaVersion": 2, "manifests": [], "annotations": {"a": "b" * 100}}).encode()
        kind = [("Content-Type", "application/vnd.oci.image.index.v1+json")]
        manifest = await client.ask("PUT", "/v2/a/manifests/v1", kind, index)
        assert (manifest.status, manifest.codes) == (413, ["SIZE_INVALID"])


async def test_a_manifest_may_be_limited_below_what_the_registry_takes() -> None:
    registry = Registry(MemoryDriver())
    config = await push_blob(registry, b"{}")
    data = image(config)
    await push_manifest(sizes(registry, max_manifest_size=len(data)), data, "a")
    with pytest.raises(ManifestTooLarge):
        await push_manifest(sizes(registry, max_manifest_size=len(data) - 1), data, "a")


# ---- open uploads


class Looked:
    """Notes how often uploads were counted."""

    def __init__(self, inner: Handler) -> None:
        self._inner = inner
        self.looks = 0

    async def __call__(self, operation: Operation[R], /) -> R:
        self.looks += isinstance(operation, CountUploads)
        return await self._inner(operation)


async def test_only_so_many_uploads_may_be_open_in_a_repository(registry: Registry) -> None:
    looked = Looked(registry)
    handler = sizes(looked, max_open_uploads=100)
    ids = [(await handler(OpenUpload(repository=REPOSITORY))).upload_id for _ in range(100)]
    for operation in (
        OpenUpload(repository=REPOSITORY),
        MountBlob(repository=REPOSITORY, digest=Digest.of(b"x"), source=RepositoryName("other")),
    ):
        with pytest.raises(TooManyRequests, match="100 uploads are open in this repository") as refused:
            await handler(operation)
    assert refused.value.retry_after == 60
    assert looked.looks < 50
    await handler(OpenUpload(repository=RepositoryName("other")))
    commit = CommitUpload(repository=REPOSITORY, upload_id=ids[0], digest=Digest.of(b"x"), body=Sent(b"x"))
    await handler(commit)
    await handler(OpenUpload(repository=REPOSITORY))
    with pytest.raises(TooManyRequests):
        await handler(OpenUpload(repository=REPOSITORY))


async def test_eight_workers_stay_within_it_together(registry: Registry) -> None:
    handlers = [sizes(registry, max_open_uploads=64) for _ in range(8)]
    opened_here = 0
    for _ in range(30):
        for handler in handlers:
            try:
                await handler(OpenUpload(repository=REPOSITORY))
            except TooManyRequests:
                continue
            opened_here += 1
    assert opened_here <= 64 + 8
    assert opened_here >= 64


async def test_many_that_come_at_once_stay_within_it(registry: Registry) -> None:
    handler = sizes(registry, max_open_uploads=5)
    answers: list[bool] = []

    async def open_one() -> None:
        try:
            await handler(OpenUpload(repository=REPOSITORY))
        except TooManyRequests:
            answers.append(False)
        else:
            answers.append(True)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(open_one)
    assert (answers.count(True), answers.count(False)) == (5, 15)


async def test_how_many_are_looked_at_is_bounded(registry: Registry) -> None:
    for _ in range(7):
        await registry(OpenUpload(repository=REPOSITORY))
    assert (await registry(CountUploads(repository=REPOSITORY, limit=5))).count == 5
    assert (await registry(CountUploads(repository=REPOSITORY, limit=50))).count == 7
    assert (await registry(CountUploads(repository=RepositoryName("other"), limit=50))).count == 0


# ---- settings


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("{address: {rate: 0}}", "limits.address.rate"),
        ("{address: {rate: fast}}", "limits.address.rate"),
        ("{address: {burst: 5}}", "burst stands alone"),
        ("{address: {rate: 1, burst: 0}}", "limits.address.burst"),
        ("{address: {uploads: 0}}", "limits.address.uploads"),
        ("{address: {exempt: [here]}}", "an IP address or a network such as 10.0.0.0/8"),
        ("{user: {exempt: 5}}", "limits.user.exempt"),
        ("{maxblobsize: large}", "a size such as 10GiB"),
        ("{maxopenuploads: -1}", "limits.maxopenuploads"),
        ("{max_blob_size: 5}", "maxblobsize"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(written: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        loaded(f"limits: {written}")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_an_address_budget_is_a_budget() -> None:
    assert AddressBudget(rate=1).at_once == 10


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"maxblobsize": "1GiB", "maxmanifestsize": "1MiB", "maxopenuploads": 5},
        {"address": {"rate": 1e6, "uploads": 1000}, "user": {"rate": 1e6, "uploads": 1000}},
    ],
)
def test_the_contract_of_plugins(options: Mapping[str, object]) -> None:
    names = ("limits", "limits_by_address", "limits_by_user")
    assert_plugin(Subject("moorage_middleware.limits", dict.fromkeys(names, options)))

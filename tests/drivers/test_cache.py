"""The layer `cache`: what it remembers, what it must not, and a Redis that fails in every way."""

import gc
import logging
import os
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings, strategies as st
from trustme import CA

from moorage import (
    Absent,
    ConditionFailed,
    ConfigurationError,
    Driver,
    DriverLayer,
    KeyUnknown,
    MemoryDriver,
    Stat,
    Unchanged,
    decode_options,
)
from moorage_conformance.driver import CASES, Case, Subject, assert_case
from moorage_drivers._cache import CACHE, CacheOptions
from servers import free_port, wait_for
from services import RedisService, running
from tools import require_tool

BLOB = "docker/registry/v2/blobs/sha256/aa/aa11/data"
LINK = "docker/registry/v2/repositories/team/app/_layers/sha256/aa11/link"
OTHERS = [
    "docker/registry/v2/repositories/team/app/_manifests/revisions/sha256/aa11/link",
    "docker/registry/v2/repositories/team/app/_manifests/tags/v1/current/link",
    "docker/registry/v2/repositories/team/app/_uploads/u/state",
    "moorage/leases/clockwork",
]


# The client makes streams for each connection, and closes none where there was no connection.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Generator[None]:
    """Collect what the client left here, not in the next test."""
    yield
    gc.collect()


class Counted(DriverLayer):
    """Counts what is asked of it, and can be made to wait before it answers."""

    def __init__(self, inside: Driver) -> None:
        super().__init__(inside)
        self.asked: Counter[str] = Counter()
        self.answered: trio.Event | None = None
        self.go_on: trio.Event | None = None

    async def _wait(self) -> None:
        answered, go_on = self.answered, self.go_on
        self.answered = self.go_on = None
        if answered is not None and go_on is not None:
            answered.set()
            await go_on.wait()

    async def stat(self, key: str) -> Stat:
        self.asked["stat"] += 1
        try:
            return await super().stat(key)
        finally:
            await self._wait()

    async def read(self, key: str, *, limit: int) -> bytes:
        self.asked["read"] += 1
        try:
            return await super().read(key, limit=limit)
        finally:
            await self._wait()


@asynccontextmanager
async def cached(inside: Driver, **options: object) -> AsyncGenerator[Driver]:
    decoded = decode_options(CacheOptions, options, source="storage.cache")
    async with CACHE.open(decoded, inside) as driver:
        yield driver


def where(redis: RedisService) -> dict[str, object]:
    return {"blobdescriptor": "redis", "redis": {"addrs": [f"{redis.host}:{redis.port}"]}}


@pytest.fixture(params=["inmemory", "redis"])
def options(request: pytest.FixtureRequest) -> dict[str, object]:
    """Options of the layer that remember in memory, and in Redis."""
    if request.param == "inmemory":
        return {"blobdescriptor": "inmemory"}
    return where(request.getfixturevalue("redis"))


async def until_it_remembers(driver: Driver, inside: Counted) -> None:
    """Return when Redis has been reached and remembers what it is told."""
    probe = "docker/registry/v2/blobs/sha256/zz/zz/data"
    await driver.write(probe, b"probe")
    with trio.fail_after(30):
        while True:
            before = inside.asked.total()
            await driver.stat(probe)
            if inside.asked.total() == before:
                break
            await trio.sleep(0.01)
    inside.asked.clear()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_the_layer_keeps_the_contract(case: Case, options: dict[str, object]) -> None:
    assert_case(case, Subject("cache", options, around=True))


async def test_links_and_sizes_of_blobs_are_asked_for_once(options: dict[str, object]) -> None:
    inside = Counted(MemoryDriver())
    async with cached(inside, **options) as driver:
        await until_it_remembers(driver, inside)
        await driver.write(BLOB, b"content")
        await driver.write(LINK, b"sha256:aa11")
        stat = await inside.inside.stat(BLOB)
        for _ in range(3):
            assert await driver.stat(BLOB) == stat
            assert await driver.read(LINK, limit=100) == b"sha256:aa11"
        assert inside.asked == {"stat": 1, "read": 1}


async def test_nothing_else_is_remembered_and_never_that_something_is_missing(options: dict[str, object]) -> None:
    inside = Counted(MemoryDriver())
    async with cached(inside, **options) as driver:
        await until_it_remembers(driver, inside)
        for _ in range(2):
            for key in (BLOB, LINK):
                with pytest.raises(KeyUnknown):
                    await driver.stat(key)
                with pytest.raises(KeyUnknown):
                    await driver.read(key, limit=100)
        assert inside.asked == {"stat": 4, "read": 4}
        inside.asked.clear()
        for key in OTHERS:
            await driver.write(key, b"x")
            for _ in range(2):
                await driver.stat(key)
                assert await driver.read(key, limit=10) == b"x"
        assert inside.asked == {"stat": 2 * len(OTHERS), "read": 2 * len(OTHERS)}


async def commit(driver: Driver, *, resumed: bool = False) -> None:
    async with driver.open_upload("u/data") as upload:
        await upload.write(b"what was uploaded")
        if not resumed:
            await upload.commit(BLOB)
            return
        token = await upload.suspend()
    async with driver.resume_upload(token, 17) as upload:
        await upload.commit(BLOB)


CHANGES: dict[str, Callable[[Driver], Awaitable[object]]] = {
    "write": lambda driver: driver.write(BLOB, b"longer than before"),
    "delete": lambda driver: driver.delete("a", BLOB),
    "copy": lambda driver: driver.copy("a", BLOB),
    "delete below": lambda driver: driver.delete_below("docker/registry/v2/blobs/sha256/aa/"),
    "delete below all": lambda driver: driver.delete_below("docker/"),
    "commit": commit,
    "commit of what was resumed": lambda driver: commit(driver, resumed=True),
}


async def sizes(driver: Driver) -> int | None:
    try:
        return (await driver.stat(BLOB)).size
    except KeyUnknown:
        return None


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_is_seen_at_once(options: dict[str, object], change: str) -> None:
    inside = Counted(MemoryDriver())
    async with cached(inside, **options) as driver:
        await until_it_remembers(driver, inside)
        await driver.write("a", b"another one")
        await driver.write(BLOB, b"content")
        assert await sizes(driver) == 7
        assert await sizes(driver) == 7
        assert inside.asked == {"stat": 1}
        await CHANGES[change](driver)
        assert await sizes(driver) == await sizes(inside) != 7


@pytest.mark.parametrize("change", CHANGES)
async def test_an_answer_from_before_a_change_is_not_remembered(options: dict[str, object], change: str) -> None:
    inside = Counted(MemoryDriver())
    async with cached(inside, **options) as driver, trio.open_nursery() as nursery:
        await until_it_remembers(driver, inside)
        await driver.write("a", b"another one")
        await driver.write(BLOB, b"content")
        answered, go_on = inside.answered, inside.go_on = trio.Event(), trio.Event()
        nursery.start_soon(sizes, driver)
        await answered.wait()
        await CHANGES[change](driver)
        go_on.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await sizes(driver) == await sizes(inside) != 7


async def test_a_change_that_fails_or_is_cancelled_leaves_nothing_remembered(options: dict[str, object]) -> None:
    inside = Counted(MemoryDriver())
    async with cached(inside, **options) as driver:
        await until_it_remembers(driver, inside)
        await driver.write(BLOB, b"content")
        await driver.stat(BLOB)
        with pytest.raises(ConditionFailed):
            await driver.write(BLOB, b"other", condition=Absent())
        with pytest.raises(ConditionFailed):
            await driver.delete(BLOB, condition=Unchanged("of somebody else"))
        inside.asked.clear()
        await driver.stat(BLOB)
        assert inside.asked == {"stat": 1}
        with trio.CancelScope() as scope:
            scope.cancel()
            await driver.delete(BLOB)
        assert scope.cancelled_caught
        assert await sizes(driver) == await sizes(inside)


async def test_content_that_vanished_is_forgotten_when_it_is_opened(options: dict[str, object]) -> None:
    inside = Counted(MemoryDriver())
    async with cached(inside, **options) as driver:
        await until_it_remembers(driver, inside)
        await driver.write(BLOB, b"content")
        await driver.stat(BLOB)
        # A collector, which knows nothing of this layer.
        await inside.inside.delete(BLOB)
        assert (await driver.stat(BLOB)).size == 7
        with pytest.raises(KeyUnknown):
            async with driver.open(BLOB):
                pass
        with pytest.raises(KeyUnknown):
            await driver.stat(BLOB)


async def test_what_others_change_is_seen_when_the_time_is_over(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    inside = MemoryDriver()
    async with cached(inside, blobdescriptor="inmemory", ttl="5s") as driver:
        await inside.write(BLOB, b"content")
        assert await sizes(driver) == 7
        await inside.delete(BLOB)
        await trio.sleep(4.9)
        assert await sizes(driver) == 7
        await trio.sleep(0.2)
        assert await sizes(driver) is None


async def test_so_many_answers_are_remembered_and_no_more() -> None:
    inside = Counted(MemoryDriver())
    keys = [f"docker/registry/v2/blobs/sha256/aa/{number}/data" for number in range(5)]
    async with cached(inside, layerinfo="inmemory", blobdescriptorsize=3) as driver:
        for key in keys:
            await driver.write(key, b"x")
            await driver.stat(key)
            await driver.stat(keys[0])
        inside.asked.clear()
        for key in [keys[0], keys[3], keys[4]]:
            await driver.stat(key)
        assert inside.asked.total() == 0
        await driver.stat(keys[1])
        assert inside.asked == {"stat": 1}


STEP = st.tuples(
    st.sampled_from(["write", "write if absent", "delete", "stat", "read", "copy", "below", "commit", "open"]),
    st.sampled_from([BLOB, LINK, BLOB.replace("aa11", "aa12"), LINK.replace("aa11", "bb")]),
    st.binary(max_size=4),
)


@settings(max_examples=60)
@given(steps=st.lists(STEP, max_size=25))
def test_whatever_is_done_one_after_the_other_looks_as_without_it(steps: Sequence[tuple[str, str, bytes]]) -> None:
    async def look() -> None:
        inside = MemoryDriver()
        async with cached(inside, blobdescriptor="inmemory") as driver:
            for step, key, data in steps:
                found = await outcome(driver, step, key, data)
                if step in {"stat", "read", "open"}:
                    assert found == await outcome(inside, step, key, data)

    trio.run(look)


async def outcome(driver: Driver, step: str, key: str, data: bytes) -> object:
    try:
        match step:
            case "write":
                await driver.write(key, data)
            case "write if absent":
                await driver.write(key, data, condition=Absent())
            case "delete":
                await driver.delete(key)
            case "stat":
                return await driver.stat(key)
            case "read":
                return await driver.read(key, limit=100)
            case "copy":
                await driver.copy(BLOB, key)
            case "below":
                await driver.delete_below(key.rpartition("/")[0] + "/")
            case "commit":
                async with driver.open_upload("u/data") as upload:
                    await upload.write(data)
                    await upload.commit(key)
            case _:
                async with driver.open(key) as reader:
                    return b"".join([chunk async for chunk in reader])
    except (KeyUnknown, ConditionFailed) as error:
        return type(error)
    return None


# ---- Redis


async def test_all_who_share_a_redis_see_each_others_changes(redis: RedisService) -> None:
    store = MemoryDriver()
    one, other = Counted(store), Counted(store)
    async with cached(one, **where(redis)) as driver, cached(other, **where(redis)) as replica:
        await until_it_remembers(driver, one)
        await until_it_remembers(replica, other)
        await driver.write(BLOB, b"content")
        assert await sizes(driver) == 7
        assert await sizes(replica) == 7
        assert other.asked.total() == 0
        await replica.delete(BLOB)
        assert await sizes(driver) is None


async def test_stores_that_share_a_redis_are_kept_apart(redis: RedisService) -> None:
    first, second = Counted(MemoryDriver()), Counted(MemoryDriver())
    async with cached(first, **where(redis)) as driver, cached(second, **where(redis)) as stranger:
        await until_it_remembers(driver, first)
        await until_it_remembers(stranger, second)
        await driver.write(BLOB, b"content")
        assert await sizes(driver) == 7
        assert await sizes(stranger) is None


async def test_a_store_that_cannot_be_written_to_has_a_redis_of_its_own(
    redis: RedisService, caplog: pytest.LogCaptureFixture
) -> None:
    class Unwritable(MemoryDriver):
        async def write(self, key: str, *args: object, **more: object) -> str | None:
            if key.startswith("moorage-"):
                from moorage import StoreReadOnly

                raise StoreReadOnly("no", driver="memory", operation="write", key=key)
            return await super().write(key, *args, **more)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - as they came

    inside = Counted(Unwritable())
    async with cached(inside, **where(redis)) as driver:
        await until_it_remembers(driver, inside)
    assert "cannot be shared with other processes" in caplog.text


async def test_something_else_in_redis_does_no_harm(redis: RedisService) -> None:
    import coredis

    inside = Counted(MemoryDriver())
    async with cached(inside, **where(redis)) as driver, coredis.Redis(redis.host, redis.port) as client:
        await until_it_remembers(driver, inside)
        await driver.write(BLOB, b"content")
        await driver.stat(BLOB)
        at = f"moorage:{(await inside.inside.read('moorage-cache-id', limit=99)).decode()}:{BLOB}"
        assert await client.exists([at]) == 1
        for wrong in (b"", b"V", b"Vnonsense", b"X", b"V\x93\x01"):
            await client.set(at, wrong)
            assert await sizes(driver) == 7
        await client.delete([at])
        await client.lpush(at, ["a list"])
        assert await sizes(driver) == 7


@contextmanager
def own_redis(tmp_path: Path, *arguments: str, port: int | None = None) -> Generator[tuple[int, int]]:
    """Run a Redis of this test's own; give its port and its process."""
    port = port or free_port()
    folder = tmp_path / f"redis-{port}"
    folder.mkdir(exist_ok=True)
    plain = [] if "--tls-port" in arguments else ["--port", str(port)]
    command = [require_tool("redis-server", "what Redis keeps"), "--bind", "127.0.0.1", "--save", ""]
    command += ["--pidfile", str(folder / "pid"), "--daemonize", "no", "--dir", str(folder)]
    with running([*command, *plain, *arguments], port, folder):
        pid = folder / "pid"
        wait_for(lambda: pid.exists() and pid.read_text(), "the number of its process")
        yield port, int(pid.read_text())


async def test_a_redis_that_dies_and_comes_back_is_told_once_and_used_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage_drivers._redis._PAUSE_SECONDS", 0.05)
    caplog.set_level(logging.INFO, "moorage.cache")
    inside = Counted(MemoryDriver())
    with ExitStack() as stack:
        port, _ = stack.enter_context(own_redis(tmp_path))
        async with cached(inside, blobdescriptor="redis", redis={"addrs": [f"127.0.0.1:{port}"]}) as driver:
            await until_it_remembers(driver, inside)
            await driver.write(BLOB, b"content")
            assert await sizes(driver) == 7
            stack.close()
            inside.asked.clear()
            for _ in range(20):
                assert await sizes(driver) == 7
            assert inside.asked == {"stat": 20}
            await driver.delete(BLOB)
            assert await sizes(driver) is None
            with own_redis(tmp_path, port=port):
                await until_it_remembers(driver, inside)
    said = [record.message for record in caplog.records if record.levelno >= logging.INFO]
    assert sum("does not answer, so the store is asked each time" in each for each in said) == 1
    assert sum("answers again" in each for each in said) == 1
    assert "Traceback" not in caplog.text


async def test_a_redis_that_is_not_there_at_the_start_is_used_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage_drivers._redis._PAUSE_SECONDS", 0.05)
    inside = Counted(MemoryDriver())
    port = free_port()
    async with cached(inside, blobdescriptor="redis", redis={"addrs": [f"127.0.0.1:{port}"]}) as driver:
        await driver.write(BLOB, b"content")
        assert await sizes(driver) == 7
        with own_redis(tmp_path, port=port):
            await until_it_remembers(driver, inside)


async def test_a_redis_that_hangs_holds_nobody_up_for_long(tmp_path: Path) -> None:
    inside = Counted(MemoryDriver())
    with own_redis(tmp_path) as (port, pid):
        redis = {"addrs": [f"127.0.0.1:{port}"], "readtimeout": "100ms", "dialtimeout": "100ms"}
        async with cached(inside, blobdescriptor="redis", redis=redis) as driver:
            await until_it_remembers(driver, inside)
            await driver.write(BLOB, b"content")
            os.kill(pid, signal.SIGSTOP)
            try:
                with trio.fail_after(30):
                    assert await sizes(driver) == 7
                    await driver.delete(BLOB)
                    assert await sizes(driver) is None
            finally:
                os.kill(pid, signal.SIGCONT)


def certificates(tmp_path: Path) -> dict[str, str]:
    authority = CA()
    server = authority.issue_cert("localhost", "127.0.0.1")
    paths = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "certificate", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    server.cert_chain_pems[0].write_to_path(paths["certificate"])
    server.private_key_pem.write_to_path(paths["key"])
    return paths


async def test_redis_is_reached_with_a_password_over_tls_in_another_database(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    port = free_port()
    arguments = ["--tls-port", str(port), "--port", "0", "--tls-cert-file", files["certificate"]]
    arguments += ["--tls-key-file", files["key"], "--tls-ca-cert-file", files["ca"], "--requirepass", "s3cret"]
    redis = {
        "addrs": [f"localhost:{port}"],
        "password": "s3cret",
        "db": 3,
        "clientname": "moorage",
        "tls": {"certificate": files["certificate"], "key": files["key"], "rootcas": [files["ca"]]},
    }
    inside = Counted(MemoryDriver())
    with own_redis(tmp_path, *arguments, port=port):
        async with cached(inside, blobdescriptor="redis", redis=redis) as driver:
            await until_it_remembers(driver, inside)


async def test_a_wrong_password_is_told_and_the_store_is_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside = Counted(MemoryDriver())
    with own_redis(tmp_path, "--requirepass", "s3cret") as (port, _):
        redis = {"addrs": [f"127.0.0.1:{port}"], "password": "wr0ng-one"}
        async with cached(inside, blobdescriptor="redis", redis=redis) as driver:
            await driver.write(BLOB, b"content")
            with trio.fail_after(30):
                while "does not answer" not in caplog.text:
                    assert await sizes(driver) == 7
                    await trio.sleep(0.01)
    assert "wr0ng-one" not in caplog.text


async def test_a_cluster_and_a_primary_behind_sentinels_are_reached(tmp_path: Path) -> None:
    with ExitStack() as stack:
        port, _ = stack.enter_context(
            own_redis(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
        )
        cli = ["redis-cli", "-p", str(port)]
        await trio.run_process([*cli, "cluster", "addslotsrange", "0", "16383"], capture_stdout=True)

        def whole() -> bool:
            return b"cluster_state:ok" in subprocess.run([*cli, "cluster", "info"], capture_output=True).stdout

        await trio.to_thread.run_sync(wait_for, whole, "a whole cluster")
        inside = Counted(MemoryDriver())
        redis = {"addrs": [f"127.0.0.1:{port}", f"localhost:{port}"]}
        async with cached(inside, blobdescriptor="redis", redis=redis) as driver:
            await until_it_remembers(driver, inside)
    with ExitStack() as stack:
        port, _ = stack.enter_context(own_redis(tmp_path))
        watch = free_port()
        file = tmp_path / "sentinel.conf"
        file.write_text(f"port {watch}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {port} 1\n", encoding="ascii")
        stack.enter_context(running(["redis-server", str(file), "--sentinel"], watch, tmp_path))
        inside = Counted(MemoryDriver())
        behind = {"addrs": [f"127.0.0.1:{watch}"], "mastername": "main"}
        async with cached(inside, blobdescriptor="redis", redis=behind) as driver:
            await until_it_remembers(driver, inside)


async def test_settings_that_do_nothing_are_named(redis: RedisService, caplog: pytest.LogCaptureFixture) -> None:
    said = where(redis) | {"redis": {"addrs": [f"{redis.host}:{redis.port}"], "poolfifo": True, "minidleconns": 3}}
    async with cached(MemoryDriver(), **said):
        pass
    named = [record.message for record in caplog.records if "has no effect" in record.message]
    assert named == ["redis.poolfifo has no effect", "redis.minidleconns has no effect"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"blobdescriptor": "disk"}, "blobdescriptor"),
        ({"blobdescriptor": "redis"}, "redis.addrs"),
        ({"blobdescriptor": "redis", "redis": {"addrs": []}}, "redis.addrs"),
        ({"blobdescriptor": "redis", "redis": {"addrs": ["a:b"]}}, "'a:b' is not host:port"),
        ({"blobdescriptor": "redis", "redis": {"addrs": ["a:99999"]}}, "is not host:port"),
        ({"blobdescriptor": "redis", "redis": {"addrs": ["a"], "tls": {"certificate": "c"}}}, "go together"),
        ({"blobdescriptor": "redis", "redis": {"addrs": ["a"], "tls": {"rootcas": ["/nowhere"]}}}, "/nowhere"),
        ({"blobdescriptor": "redis", "redis": {"addrs": ["a"], "tls": {"enabled": False, "key": "k"}}}, "enabled"),
        ({"blobdescriptor": "inmemory", "ttl": "soon"}, "ttl"),
        ({"blobdescriptor": "inmemory", "size": 3}, "size"),
    ],
)
async def test_what_cannot_work_is_one_sentence(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        async with cached(MemoryDriver(), **wrong):
            pass

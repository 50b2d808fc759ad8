"""Bringing what one store holds to another one."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from moorage import (
    Digest,
    Driver,
    DriverLayer,
    MemoryDriver,
    Moved,
    Reader,
    Stat,
    StoreUnavailable,
    move,
    plan_move,
)

ROOT = "docker/registry/v2/"


def blob(data: bytes) -> str:
    encoded = Digest.of(data).encoded
    return f"{ROOT}blobs/sha256/{encoded[:2]}/{encoded}/data"


def path(data: bytes) -> str:
    return f"sha256/{Digest.of(data).encoded}"


def link(data: bytes) -> bytes:
    return str(Digest.of(data)).encode()


async def push(driver: Driver, repository: str, tag: str, layers: list[bytes]) -> bytes:
    """Write an image as a registry does."""
    manifest = json.dumps({"layers": [str(Digest.of(layer)) for layer in layers]}).encode()
    below = f"{ROOT}repositories/{repository}/"
    for layer in layers:
        await driver.write(blob(layer), layer)
        await driver.write(f"{below}_layers/{path(layer)}/link", link(layer))
    await driver.write(blob(manifest), manifest)
    await driver.write(f"{below}_manifests/revisions/{path(manifest)}/link", link(manifest))
    await driver.write(f"{below}_manifests/tags/{tag}/index/{path(manifest)}/link", link(manifest))
    await driver.write(f"{below}_manifests/tags/{tag}/current/link", link(manifest))
    await driver.write(f"{below}_referrers/sha256/{'0' * 64}/{path(manifest)}", b"{}")
    return manifest


async def contents(driver: Driver) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in (await driver.list("", limit=10_000)).entries:
        found[entry.key] = await driver.read(entry.key, limit=1 << 24)
    return found


async def copied(source: Driver, destination: Driver, *, remove: bool = False) -> Moved:
    return await move(await plan_move(source, destination), source, destination, remove=remove)


async def test_everything_arrives_but_sessions_and_what_a_registry_keeps_for_itself() -> None:
    source, destination = MemoryDriver(), MemoryDriver()
    for number in range(5):
        await push(source, f"team/app-{number}", "v1", [b"base", b"%d" % number])
    await source.write(blob(b"big" * (2 << 20)), b"big" * (2 << 20))
    wanted = await contents(source)
    await source.write(f"{ROOT}repositories/team/app-1/_uploads/1/data", b"half")
    await source.write("moorage/leases/purge", b"{}")
    moved = await copied(source, destination)
    assert await contents(destination) == wanted
    assert (moved.objects, moved.bytes) == (len(wanted), sum(map(len, wanted.values())))
    assert moved.flaws == []


async def test_a_second_move_brings_only_what_is_new_and_tags_that_moved() -> None:
    source, destination = MemoryDriver(), MemoryDriver()
    await push(source, "app", "v1", [b"1"])
    await push(source, "app", "v2", [b"2"])
    await copied(source, destination)
    assert (await plan_move(source, destination)).items == ()
    await push(source, "app", "v1", [b"3"])
    plan = await plan_move(source, destination)
    assert {item.key.rpartition(ROOT)[2].split("/")[0] for item in plan.items} == {"blobs", "repositories"}
    # Two blobs, a layer, a revision, its referrer, the tag and its history.
    assert len(plan.items) == 7
    await move(plan, source, destination)
    assert await contents(destination) == await contents(source)


async def test_what_the_source_lost_is_removed_only_where_that_is_asked_and_never_content() -> None:
    source, destination = MemoryDriver(), MemoryDriver()
    await push(source, "app", "v1", [b"1"])
    await copied(source, destination)
    await push(destination, "app", "old", [b"2"])
    before = await contents(destination)
    assert (await copied(source, destination)).removed == 0
    assert await contents(destination) == before
    moved = await copied(source, destination, remove=True)
    assert moved.removed == 5
    left = (await contents(destination)).keys() - (await contents(source)).keys()
    assert all(key.startswith(f"{ROOT}blobs/") for key in left)


async def test_a_blob_that_is_not_what_its_name_says_is_left_and_nothing_names_it() -> None:
    source, destination = MemoryDriver(), MemoryDriver()
    await push(source, "app", "good", [b"good"])
    await push(source, "app", "bad", [b"bad", b"x" * (5 << 20)])
    await source.write(blob(b"bad"), b"not")
    await source.write(blob(b"x" * (5 << 20)), b"y" * (5 << 20))
    await source.write(f"{ROOT}blobs/sha256/zz/zz/data", b"?")
    await source.write(f"{ROOT}repositories/app/_layers/{path(b'what')}/link", b"what?")
    moved = await copied(source, destination)
    assert sorted(flaw.says for flaw in moved.flaws) == [
        "is named by no digest",
        "is no link",
        "its 3 bytes do not have the digest that names them",
        f"its {5 << 20} bytes do not have the digest that names them",
    ]
    found = await contents(destination)
    assert blob(b"good") in found
    assert not {blob(b"bad"), blob(b"x" * (5 << 20))} & found.keys()
    assert f"{ROOT}repositories/app/_layers/{path(b'bad')}/link" not in found


async def test_links_without_content_are_left_as_the_source_shows_nothing_for_them() -> None:
    source, destination = MemoryDriver(), MemoryDriver()
    await push(source, "app", "v1", [b"1"])
    await source.delete(blob(b"1"))
    moved = await copied(source, destination)
    assert (moved.dangling, moved.flaws) == (1, [])
    assert f"{ROOT}repositories/app/_layers/{path(b'1')}/link" not in await contents(destination)


class Recording(DriverLayer):
    """Remembers what was written and what was looked at, in order, and fails when it is told to."""

    def __init__(self, inner: Driver, *, most: int = 10_000) -> None:
        super().__init__(inner)
        self.written: list[str] = []
        self.looked_at: list[str] = []
        self.most = most

    async def stat(self, key: str) -> Stat:
        self.looked_at.append(key)
        return await super().stat(key)

    async def write(self, key: str, *args: object, **more: object) -> str | None:
        if len(self.written) >= self.most:
            raise StoreUnavailable("no more", driver="recording", operation="write", key=key)
        self.written.append(key)
        return await super().write(key, *args, **more)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def step(key: str) -> int:
    marks = ("/blobs/", "/_layers/", "/revisions/", "/index/", "/current/")
    return next((at for at, mark in enumerate(marks) if mark in key), 1)


async def test_it_writes_in_the_order_of_a_push() -> None:
    source, destination = MemoryDriver(), Recording(MemoryDriver())
    for number in range(20):
        await push(source, f"app-{number}", "v1", [b"base", b"%d" % number])
    await copied(source, destination)
    steps = [step(key) for key in destination.written]
    assert steps == sorted(steps)
    assert len(destination.written) == len(set(destination.written))


async def test_the_destination_is_not_asked_for_content_that_it_listed_or_got() -> None:
    source, inner = MemoryDriver(), MemoryDriver()
    for number in range(10):
        await push(source, f"app-{number}", "v1", [b"base", b"%d" % number])
    # Content came already; what names it did not.
    for number in range(0, 10, 2):
        await inner.write(blob(b"%d" % number), b"%d" % number)
    destination = Recording(inner)
    await copied(source, destination)
    assert await contents(inner) == await contents(source)
    assert destination.looked_at == []


async def test_content_of_another_size_at_the_destination_is_replaced_before_it_is_named() -> None:
    source, inner = MemoryDriver(), MemoryDriver()
    await push(source, "app", "v1", [b"right"])
    await inner.write(blob(b"right"), b"half")
    await copied(source, inner)
    assert await contents(inner) == await contents(source)


@pytest.mark.parametrize("most", [0, 1, 7, 30, 77])
async def test_cut_off_anywhere_it_goes_on_where_it_was(most: int) -> None:
    source, inner = MemoryDriver(), MemoryDriver()
    for number in range(20):
        await push(source, f"app-{number}", "v1", [b"base", b"%d" % number])
    with pytest.raises(StoreUnavailable, match="no more"):
        await copied(source, Recording(inner, most=most))
    arrived = len(await contents(inner))
    assert arrived <= most
    rest = Recording(inner)
    await copied(source, rest)
    assert await contents(inner) == await contents(source)
    assert len(rest.written) == len(await contents(source)) - arrived


class Pushed(DriverLayer):
    """Gets another image pushed when its list has been read."""

    def __init__(self, inner: Driver) -> None:
        super().__init__(inner)
        self.store = inner
        self.done = False

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        if not self.done:
            self.done = True
            await push(self.store, "late", "v1", [b"late"])
            # A tag that was planned means a new manifest now.
            await push(self.store, "app", "v1", [b"late"])
        async with super().open(key, start, stop) as reader:
            yield reader


async def test_what_is_pushed_meanwhile_is_whole_or_not_there() -> None:
    inner, destination = MemoryDriver(), MemoryDriver()
    await push(inner, "app", "v1", [b"1"])
    await copied(Pushed(inner), destination)
    await copied(inner, destination)
    assert await contents(destination) == await contents(inner)


async def test_a_cancelled_move_leaves_whole_objects() -> None:
    source, destination = MemoryDriver(), MemoryDriver()
    for number in range(50):
        await push(source, f"app-{number}", "v1", [b"base", b"%d" % number])
    wanted = await contents(source)
    plan = await plan_move(source, destination)
    with trio.CancelScope() as scope:

        def stop(moved: Moved) -> None:
            if moved.objects == 40:
                scope.cancel()

        await move(plan, source, destination, advance=stop)
    assert scope.cancelled_caught
    found = await contents(destination)
    assert 0 < len(found) < len(wanted)
    assert found.items() <= wanted.items()

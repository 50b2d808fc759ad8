"""Tag conditions: which tags are fixed, and that these neither move nor vanish, whatever comes at the same time."""

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from content import REPOSITORY, image, pull, push_blob, push_image, tags
from moorage import (
    OCI_MANIFEST,
    Condition,
    DeleteManifest,
    DeleteTag,
    Digest,
    Glob,
    ManifestPushed,
    ManifestUnknown,
    Match,
    MemoryDriver,
    PreconditionFailed,
    PushManifest,
    Registry,
    Tag,
    TagCondition,
    TagFixed,
    Unavailable,
    Unchanged,
)
from stores import Kind, new_store

RELEASES = TagCondition(tags=(Glob("v*"),), but=(Glob("v*-rc*"),))


@pytest.fixture(params=["memory", "filesystem", "minimal", "service"])
async def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Registry]:
    kind = cast("Kind", request.param)  # as listed above
    async with new_store(kind, tmp_path / "store").open() as driver:
        yield Registry(driver)


def push(
    data: bytes, reference: str | None, *further: str, condition: TagCondition | None = RELEASES, if_match: str = ""
) -> PushManifest:
    return PushManifest(
        repository=REPOSITORY,
        reference=Digest.of(data) if reference is None else Tag(reference),
        media_type=OCI_MANIFEST,
        data=data,
        tags=tuple(map(Tag, further)),
        tag_condition=condition,
        if_match=Match(frozenset({if_match})) if if_match else None,
    )


def delete(reference: str | Digest) -> DeleteTag | DeleteManifest:
    if isinstance(reference, Digest):
        return DeleteManifest(repository=REPOSITORY, digest=reference, tag_condition=RELEASES)
    return DeleteTag(repository=REPOSITORY, tag=Tag(reference), tag_condition=RELEASES)


@pytest.mark.parametrize(
    ("condition", "fixed", "free"),
    [
        (TagCondition(), ["v1", "latest", "v1-rc1"], []),
        (RELEASES, ["v1", "v"], ["latest", "v1-rc1", "V1"]),
        (TagCondition(but=(Glob("latest"),)), ["v1", "latest2"], ["latest"]),
        (TagCondition(tags=(Glob("latest"),), also=RELEASES), ["latest", "v1"], ["v1-rc1", "dev"]),
    ],
)
def test_a_condition_says_which_tags_are_fixed(condition: TagCondition, fixed: list[str], free: list[str]) -> None:
    assert [tag for tag in (*fixed, *free) if condition.fixes(tag)] == fixed


async def test_of_the_tags_of_a_push_the_fixed_ones_alone_may_not_move(registry: Registry) -> None:
    config = await push_blob(registry, b"{}")
    old, new = image(config), image(config, config)
    for _ in range(2):
        await registry(push(old, "v1", "latest", "v2-rc1"))
    await registry(push(new, "v2", "latest", "v2-rc1"))
    for refused, tag in (
        (push(new, "v1"), "v1"),
        (push(new, "latest", "v1"), "v1"),
        (push(new, None, "other", "v1"), "v1"),
        (push(old, "v2", if_match=Digest.of(new)), "v2"),
    ):
        with pytest.raises(TagFixed) as error:
            await registry(refused)
        assert error.value.tags == (tag,)
        assert error.value.digest == Digest.of(new if tag == "v2" else old)
        assert error.value.status == 412
    with pytest.raises(PreconditionFailed) as unmet:
        await registry(push(old, "v1", if_match=Digest.of(new)))
    assert not isinstance(unmet.value, TagFixed)
    await registry(push(old, "v1", if_match=Digest.of(old)))
    found = {tag: (await pull(registry, tag)).data for tag in await tags(registry)}
    assert found == {"latest": new, "v1": old, "v2": new, "v2-rc1": new}


async def test_a_fixed_tag_is_not_deleted_and_keeps_its_manifest(registry: Registry) -> None:
    kept = await push_image(registry, "v1", salt="kept")
    for tag in ("v2", "latest"):
        await push_image(registry, tag, salt="kept")
    gone = await push_image(registry, "dev", salt="gone")
    with pytest.raises(TagFixed) as error:
        await registry(delete("v1"))
    assert (error.value.tags, error.value.digest) == (("v1",), kept)
    with pytest.raises(TagFixed) as error:
        await registry(delete(kept))
    assert (error.value.tags, error.value.digest) == (("v1", "v2"), kept)
    assert (await registry(delete("latest"))).tags == ("latest",)
    assert (await registry(delete(gone))).tags == ("dev",)
    for unknown in ("latest", "v3", gone, Digest.of(b"never")):
        with pytest.raises(ManifestUnknown):
            await registry(delete(unknown))
    assert await tags(registry) == ["v1", "v2"]


async def test_a_fixed_tag_whose_manifest_is_gone_may_mean_something_else(registry: Registry) -> None:
    old = await push_image(registry, "v1", salt="old")
    await registry(DeleteManifest(repository=REPOSITORY, digest=old))
    config = await push_blob(registry, b"{}")
    await registry(push(image(config), "v1"))
    assert (await pull(registry, "v1")).data == image(config)


def test_many_fixed_tags_are_named_in_one_short_sentence() -> None:
    error = TagFixed([f"v{number}" for number in range(1000)], "sha256:abc")
    assert error.message == "the tags v0, v1, v2, v3, v4 and 995 more are fixed and mean sha256:abc"
    assert len(error.tags) == 1000


# ---- at once


class Gate(MemoryDriver):
    """A store where a step on a key with a certain ending waits, once, until it is let on."""

    def __init__(self) -> None:
        super().__init__()
        self.ending = ""
        self.reached = trio.Event()
        self.open_again = trio.Event()

    async def _pass(self, *keys: str) -> None:
        if self.ending and any(key.endswith(self.ending) for key in keys) and not self.reached.is_set():
            self.reached.set()
            await self.open_again.wait()

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        await self._pass(key)
        await super().write(key, chunks, condition=condition, durable=durable)

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        await self._pass(*keys)
        await super().delete(*keys, condition=condition, durable=durable)


async def test_a_manifest_that_is_being_deleted_comes_back_with_the_fixed_tag_that_is_pushed_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    driver = Gate()
    registry = Registry(driver)
    data = image(await push_blob(registry, b"{}"))
    digest = Digest.of(data)
    await registry(push(data, "dev"))
    # The delete has looked which tags mean the manifest, and is about to take it away.
    driver.ending = f"revisions/sha256/{digest.encoded}/link"
    pushed: list[ManifestPushed] = []

    async def push_release() -> None:
        pushed.append(await registry(push(data, "v1")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry, delete(digest))
        await driver.reached.wait()
        nursery.start_soon(push_release)
        await trio.sleep(1)
        assert not pushed
        driver.open_again.set()
    assert [reply.tags for reply in pushed] == [("v1",)]
    assert await tags(registry) == ["v1"]
    assert (await pull(registry, "v1")).digest == digest
    del autojump_clock


async def test_a_manifest_is_not_deleted_once_a_fixed_tag_is_about_to_mean_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    driver = Gate()
    registry = Registry(driver)
    data = image(await push_blob(registry, b"{}"))
    await registry(push(data, "dev"))
    driver.ending = "tags/v1/current/link"
    outcome: list[str] = []

    async def delete_it() -> None:
        try:
            await registry(delete(Digest.of(data)))
        except TagFixed as error:
            outcome.append(error.message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry, push(data, "v1"))
        await driver.reached.wait()
        nursery.start_soon(delete_it)
        await trio.sleep(1)
        assert not outcome
        driver.open_again.set()
    assert outcome == [f"the tag v1 is fixed and means {Digest.of(data)}"]
    assert await tags(registry) == ["dev", "v1"]


class Held(MemoryDriver):
    """A store where somebody else holds everything."""

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        assert name
        await trio.lowlevel.checkpoint()
        yield False


async def test_only_fixed_tags_wait_for_others_and_not_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    registry = Registry(Held())
    data = image(await push_blob(registry, b"{}"))
    digest = Digest.of(data)
    for free in (push(data, "dev", "v1-rc1"), push(data, None), push(data, "v1", condition=None)):
        await registry(free)
    for waits in (push(data, "v1"), push(data, None, "dev", "v1"), delete(digest)):
        with pytest.raises(Unavailable) as error:
            await registry(waits)
        assert error.value.retry_after == 1
    assert (await registry(delete("dev"))).tags == ("dev",)
    await registry(DeleteManifest(repository=REPOSITORY, digest=digest))
    del autojump_clock


def test_nothing_is_held_after_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with new_store("filesystem", tmp_path).open() as driver:
            registry = Registry(driver)
            digest = await push_image(registry, "v1")
            for _ in range(3):
                with pytest.raises(TagFixed):
                    await registry(delete(digest))
            with trio.move_on_after(0):
                await registry(delete(digest))
            await registry(push(image(await push_blob(registry, b"{}")), "v2"))

    trio.run(main)

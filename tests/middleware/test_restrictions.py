import pytest

from content import OTHER, REPOSITORY, Sent, image, pull, push_blob, push_image, push_manifest, tags
from moorage import (
    AppendUpload,
    CancelUpload,
    CommitUpload,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    Digest,
    ListRepositories,
    MemoryDriver,
    MiddlewareFactory,
    MountBlob,
    OpenUpload,
    Operation,
    Ping,
    PluginManager,
    Registry,
    Tag,
    Unsupported,
)
from moorage_middleware import Deletes, Maintenance, register_middleware
from moorage_middleware.restrictions import Forbid

DIGEST = Digest.of(b"x")
DELETES: list[Operation[object]] = [
    DeleteBlob(repository=REPOSITORY, digest=DIGEST),
    DeleteManifest(repository=REPOSITORY, digest=DIGEST),
    DeleteTag(repository=REPOSITORY, tag=Tag("a")),
]
PUSHES: list[Operation[object]] = [
    OpenUpload(repository=REPOSITORY),
    AppendUpload(repository=REPOSITORY, upload_id="x", body=Sent()),
    CommitUpload(repository=REPOSITORY, upload_id="x", digest=DIGEST, body=Sent()),
    CancelUpload(repository=REPOSITORY, upload_id="x"),
    MountBlob(repository=REPOSITORY, digest=DIGEST),
    MountBlob(repository=REPOSITORY, digest=DIGEST, source=OTHER),
]


def offered(name: str) -> MiddlewareFactory[Deletes | Maintenance]:
    found = register_middleware()[name]
    assert isinstance(found, MiddlewareFactory)
    return found  # pyright: ignore[reportUnknownVariableType] - what the options are is told by the name


async def test_a_read_only_registry_is_read_and_not_changed() -> None:
    registry = Registry(MemoryDriver())
    digest = await push_image(registry, "a")
    async with offered("read_only").open(Maintenance(enabled=True), registry) as handler:
        assert (await pull(handler, "a")).digest == digest
        assert await tags(handler) == ["a"]
        await handler(Ping())
        await handler(ListRepositories())
        for operation in [*PUSHES, *DELETES]:
            with pytest.raises(Unsupported, match="read-only"):
                await handler(operation)
        with pytest.raises(Unsupported):
            await push_blob(handler, b"x")
        with pytest.raises(Unsupported):
            await push_manifest(handler, image(digest), "b")


async def test_a_registry_without_deletes_takes_pushes() -> None:
    registry = Registry(MemoryDriver())
    async with offered("deletes").open(Deletes(), registry) as handler:
        digest = await push_image(handler, "a")
        for operation in DELETES:
            with pytest.raises(Unsupported, match="deletes"):
                await handler(operation)
        assert (await pull(handler, "a")).digest == digest
    async with offered("deletes").open(Deletes(enabled=True), registry) as handler:
        await handler(DeleteManifest(repository=REPOSITORY, digest=digest))


async def test_what_is_not_turned_on_is_not_in_the_way() -> None:
    registry = Registry(MemoryDriver())
    async with offered("read_only").open(Maintenance(), registry) as handler:
        assert handler is registry
    async with offered("deletes").open(Deletes(enabled=True), registry) as handler:
        assert handler is registry


async def test_only_what_needs_a_forbidden_action_is_refused() -> None:
    registry = Registry(MemoryDriver())
    nothing = Forbid(registry, set(), "no")
    await push_image(nothing, "a")
    no_catalog = Forbid(registry, {"catalog"}, "no catalog")
    assert await tags(no_catalog) == ["a"]
    with pytest.raises(Unsupported, match="no catalog"):
        await no_catalog(ListRepositories())


def test_the_plugin_offers_both_under_the_sections_of_distribution() -> None:
    plugins = PluginManager()
    plugins.load_entry_points()
    found = plugins.middleware()
    assert found["read_only"].section == "storage.maintenance.readonly"
    assert found["deletes"].section == "storage.delete"

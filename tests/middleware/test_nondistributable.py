import json

import pytest

import moorage_middleware.nondistributable as plugin
from content import LAYER_TYPE, descriptor, image, push_blob, push_manifest
from moorage import Digest, ManifestBlobUnknown, MemoryDriver, PluginManager, Registry


@pytest.fixture
def registry() -> Registry:
    plugins = PluginManager()
    assert plugins.register(plugin, "nondistributable").error is None
    return Registry(MemoryDriver(), plugins)


def with_layer(config: Digest, media_type: str) -> bytes:
    manifest = json.loads(image(config))
    manifest["layers"] = [descriptor(Digest.of(b"far away"), media_type=media_type)]
    return json.dumps(manifest).encode()


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    ],
)
async def test_a_layer_that_must_not_be_distributed_need_not_be_here(registry: Registry, media_type: str) -> None:
    await push_manifest(registry, with_layer(await push_blob(registry, b"{}"), media_type), "windows")


async def test_any_other_layer_must_be_here(registry: Registry) -> None:
    with pytest.raises(ManifestBlobUnknown):
        await push_manifest(registry, with_layer(await push_blob(registry, b"{}"), LAYER_TYPE), "linux")


async def test_without_the_plugin_every_layer_must_be_here() -> None:
    registry = Registry(MemoryDriver())
    data = with_layer(await push_blob(registry, b"{}"), "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")
    with pytest.raises(ManifestBlobUnknown):
        await push_manifest(registry, data, "windows")

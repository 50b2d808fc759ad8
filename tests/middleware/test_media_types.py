"""Kinds of artifacts, layers, configs and manifests that are taken, and those that are not."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest

from configurations import configured_registry, what_is_wrong
from content import CONFIG_TYPE, LAYER_TYPE, descriptor, image, index, push_blob, push_manifest
from moorage import OCI_INDEX, OCI_MANIFEST, Digest, Handler, Refused

HELM = "application/vnd.cncf.helm.config.v1+json"
SBOM = "application/spdx+json"
GZIP = LAYER_TYPE + "+gzip"
OWN = "application/vnd.example.thing.v1+json"

Settings = Mapping[str, object]


class Image(NamedTuple):
    """What is pushed, by its types."""

    config: str = CONFIG_TYPE
    layers: Sequence[str] = (LAYER_TYPE,)
    artifact: str = ""


async def push(handler: Handler, pushed: Image) -> None:
    empty, layer = await push_blob(handler, b"{}"), await push_blob(handler, b"layer")
    manifest = json.loads(image(empty))
    manifest["config"] = descriptor(empty, media_type=pushed.config)
    manifest["layers"] = [descriptor(layer, media_type=each) for each in pushed.layers]
    if pushed.artifact:
        manifest["artifactType"] = pushed.artifact
    await push_manifest(handler, json.dumps(manifest).encode(), "v1")


@pytest.mark.parametrize(
    ("settings", "pushed", "refused"),
    [
        ({}, Image(config=HELM, layers=["a/b"]), None),
        ({"artifacts": {"allow": [CONFIG_TYPE]}}, Image(), None),
        ({"artifacts": {"allow": [CONFIG_TYPE]}}, Image(config=HELM), ("artifacts", HELM)),
        ({"artifacts": {"deny": [HELM]}}, Image(config=HELM), ("artifacts", HELM)),
        ({"artifacts": {"deny": ["application/vnd.cncf.*"]}}, Image(config=HELM), ("artifacts", HELM)),
        ({"artifacts": {"deny": [HELM]}}, Image(config=HELM, artifact=SBOM), None),
        ({"configs": {"deny": [HELM]}}, Image(config=HELM, artifact=SBOM), ("configs", HELM)),
        ({"artifacts": {"deny": [SBOM]}}, Image(artifact=SBOM), ("artifacts", SBOM)),
        ({"artifacts": {"allow": ["application/*"], "deny": [SBOM]}}, Image(artifact=SBOM), ("artifacts", SBOM)),
        ({"layers": {"allow": [LAYER_TYPE + "+*", LAYER_TYPE]}}, Image(layers=[LAYER_TYPE, GZIP]), None),
        ({"layers": {"allow": [LAYER_TYPE]}}, Image(layers=[LAYER_TYPE, GZIP, GZIP]), ("layers", GZIP)),
        ({"layers": {"deny": ["**"]}}, Image(layers=[]), None),
        ({"layers": {"deny": [GZIP]}}, Image(layers=[GZIP.upper()]), ("layers", GZIP.upper())),
        ({"layers": {"deny": [GZIP.upper()]}}, Image(layers=[GZIP]), ("layers", GZIP)),
        ({"layers": {"deny": [GZIP]}}, Image(layers=[f" {GZIP} ; a=b"]), ("layers", f" {GZIP} ; a=b")),
        ({"layers": {"allow": ["application/*"]}}, Image(layers=[""]), ("layers", "")),
        ({"manifests": {"deny": ["application/vnd.oci.image.manifest.*"]}}, Image(), ("manifests", OCI_MANIFEST)),
    ],
)
async def test_settings_say_which_types_are_taken(
    settings: Settings, pushed: Image, refused: tuple[str, str] | None
) -> None:
    async with configured_registry({"media_types": settings}) as handler:
        if refused is None:
            await push(handler, pushed)
            return
        with pytest.raises(Refused) as error:
            await push(handler, pushed)
        part, media_type = refused
        named = {"part": part, "mediaType": media_type}
        assert error.value.detail == {"rule": "media_types", "types": [named]}
        assert error.value.message == f"not taken here: {part} of type {media_type or 'none'}"


async def test_all_that_is_not_taken_is_named_once() -> None:
    settings = {"layers": {"allow": ["a/b"]}, "artifacts": {"deny": [HELM]}}
    async with configured_registry({"media_types": settings}) as handler:
        layers = ["a/b", *(f"c/{number}" for number in range(6)), "c/0"]
        with pytest.raises(Refused) as error:
            await push(handler, Image(config=HELM, layers=layers))
        assert error.value.message == (
            f"not taken here: artifacts of type {HELM}, layers of type c/0, layers of type c/1, layers of type c/2, "
            "layers of type c/3 and 2 more"
        )


async def test_an_index_is_an_artifact_if_it_says_so() -> None:
    settings = {"artifacts": {"allow": [CONFIG_TYPE]}, "manifests": {"deny": [OWN]}}
    async with configured_registry({"media_types": settings}) as handler:
        await push_manifest(handler, index(), "v1", media_type=OCI_INDEX)
        with pytest.raises(Refused):
            await push_manifest(handler, index(artifactType=SBOM), "v1", media_type=OCI_INDEX)
        with pytest.raises(Refused):
            await push_manifest(handler, json.dumps({"mediaType": OWN}).encode(), "v1", media_type=OWN)


async def test_a_manifest_without_type_and_config_is_an_artifact_of_its_media_type() -> None:
    data = json.dumps({"mediaType": OWN}).encode()
    for allowed, taken in ((OWN, True), (SBOM, False)):
        async with configured_registry({"media_types": {"artifacts": {"allow": [allowed]}}}) as handler:
            if taken:
                await push_manifest(handler, data, "v1", media_type=OWN)
            else:
                with pytest.raises(Refused, match=re.escape(f"artifacts of type {OWN}")):
                    await push_manifest(handler, data, "v1", media_type=OWN)


async def test_in_mode_warn_what_is_not_taken_is_taken_with_a_warning() -> None:
    async with configured_registry({"media_types": {"layers": {"deny": ["**"]}, "mode": "warn"}}) as handler:
        manifest = image(await push_blob(handler, b"{}"), Digest.of(b"{}"))
        reply = await push_manifest(handler, manifest, "v1")
        assert reply.warnings == (f"media_types: not taken here: layers of type {LAYER_TYPE}",)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layer": {}}, 'plugins.media_types.layer: unknown key; did you mean "layers"?'),
        ({"layers": ["a/b"]}, "plugins.media_types.layers: found a list; allowed is a mapping"),
        ({"layers": {"allowed": []}}, 'plugins.media_types.layers.allowed: unknown key; did you mean "allow"?'),
        ({"layers": {"deny": "a/b"}}, "plugins.media_types.layers.deny: found text; allowed is a list"),
        ({"layers": {"deny": ["a/[b]"]}}, 'plugins.media_types.layers.deny[0]: found "a/[b]"; allowed is a pattern'),
        ({"artifacts": {"allow": [""]}}, 'plugins.media_types.artifacts.allow[0]: found ""; allowed is a pattern'),
    ],
)
def test_what_is_wrong_in_the_settings_is_one_sentence(settings: Settings, sentence: str) -> None:
    assert sentence in what_is_wrong({"media_types": settings})

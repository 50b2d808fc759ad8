"""What an index must contain, and must not."""

import json
from collections.abc import Sequence
from typing import cast

import pytest

from asgi_client import client_of
from content import REPOSITORY, image, index, pull, push_blob, push_image, push_manifest
from moorage import (
    DOCKER_LIST,
    OCI_INDEX,
    OCI_MANIFEST,
    DeleteManifest,
    Digest,
    Handler,
    ManifestBlobUnknown,
    MemoryDriver,
    PushManifest,
    Refused,
    Registry,
    Tag,
    parse_stored,
)
from moorage_middleware.platforms import KNOWN_ARCHITECTURES, KNOWN_SYSTEMS, Options, Platforms
from opening import opened
from pushing import Json

NONE = "validation: {manifests: {indexes: {platforms: none}}}\n"


def child(digest: Digest | str, platform: str | None, media_type: str = OCI_MANIFEST) -> dict[str, object]:
    """Return the descriptor of a listed manifest; `platform` is written as docker does."""
    found: dict[str, object] = {"mediaType": media_type, "digest": str(digest), "size": 7}
    if platform is not None:
        os, architecture, *variant = platform.split("/")
        found["platform"] = {"os": os, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
    return found


def absent(platform: str | None, media_type: str = OCI_MANIFEST) -> dict[str, object]:
    """Return the descriptor of a manifest that is nowhere."""
    return child(Digest.of(f"absent {platform}".encode()), platform, media_type)


async def present(handler: Handler, *platforms: str | None) -> list[dict[str, object]]:
    """Push an image for each platform; return their descriptors."""
    return [child(await push_image(handler, salt=str(each)), each) for each in platforms]


async def push_index(handler: Handler, *children: Json, tag: str | None = "v1", media_type: str = OCI_INDEX) -> Digest:
    data = index(*children, mediaType=media_type)
    return (await push_manifest(handler, data, tag, media_type=media_type)).descriptor.digest


async def refusal(handler: Handler, *children: Json) -> Refused:
    with pytest.raises(Refused) as error:
        await push_index(handler, *children)
    assert error.value.status == 403
    assert cast("Json", error.value.detail)["rule"] == "platforms"
    return error.value


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
@pytest.mark.parametrize(
    ("required", "listed", "lacking"),
    [
        ("[linux/amd64, linux/arm64]", ["linux/amd64", "linux/arm64/v8"], []),
        ("[linux/amd64, linux/arm64]", ["linux/arm64", "windows/amd64", "linux/amd64"], []),
        ("[linux/amd64, linux/arm64]", ["linux/amd64"], ["linux/arm64"]),
        ("[linux/amd64, linux/arm64]", [], ["linux/amd64", "linux/arm64"]),
        ("[linux/amd64, linux/arm64]", ["unknown/unknown", None], ["linux/amd64", "linux/arm64"]),
        ("['*/*']", ["unknown/unknown", None], ["*/*"]),
        ("['linux/*', 'windows/*']", ["linux/s390x"], ["windows/*"]),
        ("[linux/arm/v7]", ["linux/arm"], []),
        ("[linux/arm/v7]", ["linux/arm/v6"], ["linux/arm/v7"]),
        ("[{os: windows, architecture: amd64, os.version: '10.*'}]", ["windows/amd64"], ["windows/amd64 (10.*)"]),
        ("[]", [], []),
    ],
)  # fmt: skip
async def test_an_index_must_list_what_is_required(
    required: str, listed: Sequence[str | None], lacking: list[str], media_type: str
) -> None:
    async with opened(f"plugins: {{platforms: {{require: {required}}}}}") as handler:
        children = await present(handler, *listed)
        if not lacking:
            await push_index(handler, *children, media_type=media_type)
            return
        refused = await refusal(handler, *children)
        assert refused.message == f"the index lists nothing for {', '.join(lacking)}"
        assert refused.detail == {"rule": "platforms", "missing": lacking}


async def test_what_is_required_must_be_here_and_all_else_may_be_absent() -> None:
    text = NONE + "plugins: {platforms: {require: [linux/amd64, linux/arm64]}}"
    async with opened(text) as handler:
        here = await present(handler, "linux/amd64", "linux/arm64")
        others = [absent("windows/amd64"), absent("unknown/unknown"), absent(None), absent(None, OCI_INDEX)]
        digest = await push_index(handler, *here, *others)
        assert (await pull(handler, "v1")).digest == digest
        # One more for the same platform is as required as the first.
        more = absent("linux/arm64/v9")
        refused = await refusal(handler, *here, *others, more)
        assert refused.message == "required and not here: what the index lists for linux/arm64/v9"
        assert refused.detail == {"rule": "platforms", "missing": [more]}
        await handler(DeleteManifest(repository=REPOSITORY, digest=Digest(str(here[0]["digest"]))))
        assert (await refusal(handler, *here)).detail == {"rule": "platforms", "missing": here[:1]}


async def test_a_rule_that_warns_lets_nothing_be_missing_that_others_require() -> None:
    async with opened("plugins: {platforms: {mode: warn, require: [linux/amd64]}}") as handler:
        with pytest.raises(ManifestBlobUnknown):
            await push_index(handler, absent("linux/amd64"))
        pushed = await push_manifest(handler, index(), "v1", media_type=OCI_INDEX)
        assert pushed.warnings == ("platforms: the index lists nothing for linux/amd64",)
    text = NONE + "plugins: {platforms: {mode: warn, require: [linux/amd64]}}"
    async with opened(text) as handler:
        pushed = await push_manifest(handler, index(absent("linux/amd64")), "v1", media_type=OCI_INDEX)
        assert pushed.warnings == ("platforms: required and not here: what the index lists for linux/amd64",)


async def test_what_an_inner_index_lists_counts_where_it_is_here() -> None:
    text = NONE + "plugins: {platforms: {require: [linux/amd64, linux/arm64], forbid: ['windows/*']}}"
    async with opened(text) as handler:
        intel, arm = await present(handler, "linux/amd64", "linux/arm64")
        # Judged by itself, an inner index would have to have everything; so this one is put here without rules.
        inner = await unchecked(handler, index(arm))
        await push_index(handler, intel, child(inner, None, OCI_INDEX))
        gone = await unchecked(handler, index(absent("linux/arm64")))
        assert "not here" in (await refusal(handler, intel, child(gone, None, OCI_INDEX))).message
        assert "lists nothing for linux/arm64" in (await refusal(handler, intel, absent(None, OCI_INDEX))).message
        evil = await unchecked(handler, index(absent("windows/amd64")))
        middle = await unchecked(handler, index(child(evil, None, OCI_INDEX)))
        assert "forbidden" in (await refusal(handler, intel, arm, child(middle, None, OCI_INDEX))).message


async def unchecked(handler: Handler, data: bytes) -> Digest:
    digest = Digest.of(data)
    await handler(
        PushManifest(repository=REPOSITORY, reference=digest, media_type=OCI_INDEX, data=data, unchecked=True)
    )
    return digest


async def test_an_index_without_a_tag_is_held_to_the_same_unless_it_may_be_a_part() -> None:
    for untagged in ("true", "false"):
        settings = f"{{require: [linux/amd64, linux/arm64], forbid: [a/b], untagged: {untagged}}}"
        async with opened(f"plugins: {{platforms: {settings}}}") as handler:
            intel, arm, wrong = await present(handler, "linux/amd64", "linux/arm64", "a/b")
            assert "lists nothing for linux/amd64" in (await refusal(handler, arm)).message
            if untagged == "true":
                with pytest.raises(Refused, match="lists nothing for linux/amd64"):
                    await push_index(handler, arm, tag=None)
            else:
                inner = await push_index(handler, arm, tag=None)
                await push_index(handler, intel, child(inner, None, OCI_INDEX))
            with pytest.raises(Refused, match="forbidden"):
                await push_index(handler, intel, arm, wrong, tag=None)


async def test_the_list_of_a_subjects_signatures_need_not_be_for_a_machine() -> None:
    async with opened("plugins: {platforms: {require: [linux/amd64]}}") as handler:
        signature, intel, arm = await present(handler, None, "linux/amd64", "linux/arm64")
        fallback = str(intel["digest"]).replace(":", "-")
        await push_index(handler, signature, tag=fallback)
        for children, tag in (([signature], fallback[:-1]), ([signature, arm], fallback)):
            with pytest.raises(Refused, match="lists nothing"):
                await push_index(handler, *children, tag=tag)
        with pytest.raises(Refused, match="lists nothing"):
            await push_manifest(handler, index(signature), fallback, tags=["v1"], media_type=OCI_INDEX)


async def test_indexes_in_indexes_are_judged_within_bounds() -> None:
    async with opened("plugins: {platforms: {forbid: [a/b]}}") as handler:
        digest = await unchecked(handler, index())
        for _ in range(3):
            digest = await unchecked(handler, index(child(digest, None, OCI_INDEX)))
        await push_index(handler, child(digest, None, OCI_INDEX))
        digest = await unchecked(handler, index(child(digest, None, OCI_INDEX)))
        assert "more than 4 deep" in (await refusal(handler, child(digest, None, OCI_INDEX))).message
        many = [child(await unchecked(handler, index(count=count)), None, OCI_INDEX) for count in range(33)]
        await push_index(handler, *many[:32], *many[:32])
        assert "more than 32 indexes" in (await refusal(handler, *many)).message


@pytest.mark.parametrize(
    ("listed", "forbidden"),
    [
        ("windows/amd64", "windows/*"),
        ("linux/386", "linux/i386"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm64", None),
        ("unknown/unknown", None),
        (None, None),
    ],
)
async def test_an_index_must_not_list_what_is_forbidden(listed: str | None, forbidden: str | None) -> None:
    text = "plugins: {platforms: {forbid: ['windows/*', linux/i386, linux/arm/v7, 'unknown/*']}}"
    async with opened(text) as handler:
        children = await present(handler, "linux/amd64", listed)
        if forbidden is None:
            await push_index(handler, *children)
            return
        refused = await refusal(handler, *children)
        assert refused.message == f"'{listed}' is forbidden by {forbidden}"
        assert refused.detail == {"rule": "platforms", "platform": listed, "pattern": forbidden}


@pytest.mark.parametrize("listed", ["linux/x86_64", "linux/aarch64", "Linux/amd64", "macos/arm64", "linux/unknown", "linux/", "/amd64"])  # fmt: skip
async def test_platforms_must_have_the_names_that_go_has_for_them(listed: str) -> None:
    async with opened("plugins: {platforms: {known: true}}") as handler:
        known = ["linux/amd64", "linux/arm/v7", "windows/arm64", "wasip1/wasm", "unknown/unknown", None, "/"]
        await push_index(handler, *await present(handler, *known))
        refused = await refusal(handler, *await present(handler, "linux/amd64", listed))
        assert f"{listed.strip('/')!r} is no platform" in refused.message


def test_the_known_platforms_are_gos() -> None:
    assert (len(KNOWN_SYSTEMS), len(KNOWN_ARCHITECTURES)) == (18, 24)
    assert {"linux", "windows", "darwin"} <= KNOWN_SYSTEMS
    assert {"amd64", "arm64", "arm", "s390x", "ppc64le", "riscv64", "loong64"} <= KNOWN_ARCHITECTURES


async def test_thousands_of_platforms_are_judged() -> None:
    platforms = [f"linux/amd64/v{count}" for count in range(1500)]
    text = NONE + "plugins: {platforms: {known: true, forbid: [a/b], require: [linux/amd64/v7, linux/amd64/v1499]}}"
    async with opened(text) as handler:
        listed = [absent(each) for each in platforms]
        assert (await refusal(handler, *listed)).detail == {"rule": "platforms", "missing": [listed[7], listed[1499]]}


# ---- images


async def push_for(handler: Handler, platform: Json | bytes, tag: str | None = "v1", config_type: str = "") -> None:
    data = platform if isinstance(platform, bytes) else json.dumps(platform).encode()
    config = await push_blob(handler, data)
    manifest = json.loads(image(config))
    if config_type:
        manifest["config"]["mediaType"] = config_type
    await push_manifest(handler, json.dumps(manifest).encode(), tag)


LINUX: Json = {"os": "linux", "architecture": "amd64"}


async def test_images_are_judged_only_where_they_shall_be() -> None:
    text = "plugins: {platforms: {require: [linux/arm64], forbid: [linux/amd64], known: true}}"
    async with opened(text) as handler:
        await push_for(handler, LINUX)


@pytest.mark.parametrize(
    ("options", "platform", "tag", "said"),
    [
        ("require: [linux/amd64]", LINUX, "v1", None),
        ("require: [linux/amd64, linux/arm64]", LINUX, "v1", "the image is for linux/amd64 only; required are also linux/arm64"),
        ("require: [linux/amd64, linux/arm64]", LINUX, None, None),
        ("require: ['linux/*']", {"os": "windows", "architecture": "amd64"}, "v1", "the image is for windows/amd64 only"),
        ("forbid: ['windows/*']", {"os": "windows", "architecture": "amd64"}, None, "'windows/amd64' is forbidden"),
        ("forbid: ['windows/*']", LINUX, "v1", None),
        ("forbid: [linux/arm/v6]", {"os": "linux", "architecture": "arm", "variant": "v6"}, "v1", "'linux/arm/v6' is forbidden"),
        ("known: true", {"os": "linux", "architecture": "x86_64"}, None, "'linux/x86_64' is no platform"),
        # Signatures and attestations have the media type of an image's configuration, and are for no machine.
        ("require: [linux/amd64], known: true", {}, "v1", None),
        ("require: [linux/amd64], known: true", {"os": "", "architecture": ""}, "v1", None),
        ("require: [linux/amd64], known: true", {"os": "unknown", "architecture": "unknown"}, "v1", None),
        ("require: [linux/amd64]", b"\xff no JSON", "v1", None),
        ("require: [linux/amd64]", b"[" * 100_000, "v1", None),
        ("require: [linux/amd64]", b'{"os": 7}', "v1", None),
    ],
)  # fmt: skip
async def test_an_image_is_judged_by_its_configuration(
    options: str, platform: Json | bytes, tag: str | None, said: str | None
) -> None:
    async with opened(f"plugins: {{platforms: {{images: true, {options}}}}}") as handler:
        if said is None:
            await push_for(handler, platform, tag)
            return
        with pytest.raises(Refused) as error:
            await push_for(handler, platform, tag)
        assert error.value.message.startswith(said)


async def test_a_configuration_that_is_too_long_is_refused_and_other_types_are_not_read() -> None:
    async with opened("plugins: {platforms: {images: true, require: [linux/arm64]}}") as handler:
        long = json.dumps({**LINUX, "more": "x" * (1 << 20)}).encode()
        with pytest.raises(Refused, match="longer than 1048576 bytes"):
            await push_for(handler, long)
        await push_for(handler, long, config_type="application/vnd.cncf.helm.config.v1+json")
        with pytest.raises(Refused):
            await push_for(handler, LINUX, config_type="application/vnd.docker.container.image.v1+json")


async def test_without_its_configuration_an_image_cannot_be_judged() -> None:
    data = image(Digest.of(b"missing"))
    push = PushManifest(repository=REPOSITORY, reference=Tag("v1"), media_type=OCI_MANIFEST, data=data)
    rule = Platforms(Options(images=True))
    with pytest.raises(Refused, match="the configuration of the image is not here"):
        await rule.validate_manifest(push, parse_stored(data, Digest.of(data)), Registry(MemoryDriver()))


async def test_over_http_a_refusal_names_rule_and_platforms() -> None:
    async with opened(NONE + "plugins: {platforms: {require: [linux/amd64]}}") as handler:
        client = client_of(handler)
        missing = absent("linux/amd64")
        answer = await client.ask("PUT", "/v2/a/manifests/v1", [("Content-Type", OCI_INDEX)], index(missing))
        assert (answer.status, answer.codes) == (403, ["DENIED"])
        assert json.loads(answer.body)["errors"][0]["detail"] == {"rule": "platforms", "missing": [missing]}

"""How large manifests may be, and what they are made of, by what is stored and not by what is said of it."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest

from asgi_client import client_of
from configurations import configured_registry, what_is_wrong
from content import descriptor, image, index, push_blob, push_manifest
from moorage import OCI_INDEX, OCI_MANIFEST, Digest, Handler, Refused
from moorage_middleware.size_limits import Size

FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
Settings = Mapping[str, object]


class Image(NamedTuple):
    """What is pushed: `declared` is what its descriptors say of sizes, `foreign` the sizes of layers that are elsewhere."""

    layers: Sequence[bytes] = ()
    config: bytes = b"{}"
    declared: int = 1
    foreign: Sequence[int] = ()


async def push(handler: Handler, pushed: Image) -> tuple[str, ...]:
    digests = [await push_blob(handler, layer) for layer in pushed.layers]
    manifest = json.loads(image(await push_blob(handler, pushed.config)))
    manifest["config"]["size"] = pushed.declared
    manifest["layers"] = [descriptor(digest, size=pushed.declared) for digest in digests]
    manifest["layers"] += [descriptor(Digest.of(b"%d" % n), media_type=FOREIGN, size=n) for n in pushed.foreign]
    return (await push_manifest(handler, json.dumps(manifest).encode(), "v1")).warnings


@pytest.mark.parametrize(
    ("settings", "pushed", "exceeded"),
    [
        ({}, Image([b"x" * 100] * 5), []),
        ({"layer": 100}, Image([b"x" * 100, b"y"]), []),
        ({"layer": 99}, Image([b"x" * 100, b"y"]), ["layer"]),
        ({"layer": 99}, Image([b"x" * 100], declared=0), ["layer"]),
        ({"layer": 99}, Image([b"x"], declared=1 << 60), []),
        ({"layer": 99}, Image([b"x"], foreign=[100]), ["layer"]),
        ({"layer": 99}, Image(config=b"{}" + b" " * 200), []),
        ({"layer": 0}, Image([b"x"]), ["layer"]),
        ({"layer": 0}, Image([b""]), []),
        ({"config": 10}, Image([b"x" * 100]), []),
        ({"config": 10}, Image(config=b"{}" + b" " * 9, declared=2), ["config"]),
        ({"total": "1kB"}, Image([b"x" * 499, b"y" * 499]), []),
        ({"total": "1kB"}, Image([b"x" * 499, b"y" * 500]), ["total"]),
        ({"total": "1kB"}, Image([b"x" * 900, b"x" * 900]), []),
        ({"total": "1kB"}, Image([b"x" * 900], foreign=[99]), ["total"]),
        ({"total": "1KiB"}, Image([b"x" * 900], foreign=[99]), []),
        ({"layers": 2}, Image([b"x", b"x"]), []),
        ({"layers": 2}, Image([b"x", b"x", b"x"]), ["layers"]),
        ({"manifest": "1MB"}, Image([b"x"]), []),
        ({"manifest": 100}, Image([b"x"]), ["manifest"]),
        ({"layer": 1, "total": 2, "layers": 0}, Image([b"xx"]), ["layer", "total", "layers"]),
        ({"children": 0}, Image([b"x"]), []),
    ],
)
async def test_settings_say_how_large_an_image_may_be(settings: Settings, pushed: Image, exceeded: list[str]) -> None:
    async with configured_registry({"size_limits": settings}) as handler:
        if not exceeded:
            assert await push(handler, pushed) == ()
            return
        with pytest.raises(Refused) as refused:
            await push(handler, pushed)
        assert refused.value.detail == {"rule": "size_limits", "limits": exceeded}
        assert refused.value.status == 413


async def test_a_refusal_says_how_large_it_is_and_may_be() -> None:
    async with configured_registry({"size_limits": {"layer": "1kB", "total": "1KiB", "layers": 1}}) as handler:
        large = b"x" * 2000
        with pytest.raises(Refused) as refused:
            await push(handler, Image([b"y", large]))
        assert refused.value.message == (
            f"the layer {Digest.of(large)} has 2000 bytes; at most 1000 are taken; "
            "config and layers have 2003 bytes together; at most 1024 are taken; there are 2 layers; at most 1 are taken"
        )


async def test_an_index_is_limited_in_its_bytes_and_in_what_it_lists() -> None:
    settings = {"children": 2, "manifest": 700, "total": 3, "layer": 1, "config": 2}
    async with configured_registry({"size_limits": settings}) as handler:
        config = await push_blob(handler, b"{}")
        children = [
            (await push_manifest(handler, image(config, annotations={"n": str(n)}))).descriptor.digest for n in range(3)
        ]
        await push_manifest(handler, index(*children[:2]), "v1", media_type=OCI_INDEX)
        with pytest.raises(Refused, match="the index lists 3 manifests; at most 2 are taken"):
            await push_manifest(handler, index(*children), "v1", media_type=OCI_INDEX)
        with pytest.raises(Refused, match="the manifest has"):
            await push_manifest(handler, index(annotations={"a": "x" * 700}), "v1", media_type=OCI_INDEX)


async def test_over_http_a_refusal_is_a_413_and_a_warning_a_201() -> None:
    for mode, status in (("enforce", 413), ("warn", 201)):
        async with configured_registry({"size_limits": {"layers": 0, "mode": mode}}) as handler:
            client = client_of(handler)
            config = await client.push_blob("a", b"{}")
            headers = [("content-type", OCI_MANIFEST)]
            answer = await client.ask("PUT", "/v2/a/manifests/v1", headers, image(config, config))
            sentence = "there are 1 layers; at most 0 are taken"
            assert answer.status == status
            if mode == "warn":
                assert answer.all("Warning") == [f'299 - "size_limits: {sentence}"']
            else:
                assert answer.messages == [sentence]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (1048576, 1 << 20),
        ("1048576", 1 << 20),
        ("10GiB", 10 << 30),
        ("10gib", 10 << 30),
        ("500MB", 500_000_000),
        ("500M", 500_000_000),
        ("1.5 KiB", 1536),
        ("2TiB", 2 << 40),
        ("1PB", 10**15),
        ("7B", 7),
    ],
)
def test_a_size_is_a_number_with_or_without_a_unit(text: object, size: int) -> None:
    assert Size.from_setting(text) == size


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layer": "big"}, 'plugins.size_limits.layer: found "big"; allowed is a size such as 10GiB, 500MB or 1048576'),
        ({"layer": "-1"}, 'plugins.size_limits.layer: found "-1"; allowed is a size such as 10GiB, 500MB or 1048576'),
        ({"layer": -1}, "plugins.size_limits.layer: found -1; allowed is a size such as 10GiB, 500MB or 1048576"),
        (
            {"layer": "10GX"},
            'plugins.size_limits.layer: found "10GX"; allowed is a size such as 10GiB, 500MB or 1048576',
        ),
        ({"layer": "1e9"}, 'plugins.size_limits.layer: found "1e9"; allowed is a size such as 10GiB, 500MB or 1048576'),
        ({"layer": True}, "plugins.size_limits.layer: found true; allowed is a size such as 10GiB, 500MB or 1048576"),
        ({"layer": 1.5}, "plugins.size_limits.layer: found 1.5; allowed is a size such as 10GiB, 500MB or 1048576"),
        (
            {"layer": "9999999999999999999"},
            'plugins.size_limits.layer: found "9999999999999999999"; allowed is a size such as 10GiB, 500MB or 1048576',
        ),
        (
            {"layer": ["1"]},
            "plugins.size_limits.layer: found a list; allowed is a size such as 10GiB, 500MB or 1048576",
        ),
        ({"layers": -1}, "plugins.size_limits.layers: found -1; allowed is a whole number at least 0"),
        ({"layers": "10GiB"}, 'plugins.size_limits.layers: found "10GiB"; allowed is a whole number at least 0'),
        ({"chidlren": 1}, 'plugins.size_limits.chidlren: unknown key; did you mean "children"?'),
    ],
)
def test_what_is_wrong_in_the_settings_is_one_sentence(settings: Settings, sentence: str) -> None:
    assert sentence in what_is_wrong({"size_limits": settings})

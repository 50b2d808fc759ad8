"""Which URLs layers may have."""

import json
import logging
from pathlib import Path

import pytest

from asgi_client import client_of
from content import LAYER_TYPE, REPOSITORY, image, push_blob, push_manifest
from moorage import (
    ConfigurationError,
    Digest,
    Handler,
    ManifestBlobUnknown,
    Refused,
    Regex,
    claimed_sections,
    load_configuration,
)
from moorage_middleware.foreign_layers import Options
from opening import installed, loaded, opened

FAR = Digest.of(b"far away")
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
DOCKER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
GOOD = "https://layers.example.com/base/1"


def layer(*urls: str, media_type: str = FOREIGN, digest: Digest = FAR) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": 1, **({"urls": list(urls)} if urls else {})}


async def push(handler: Handler, *layers: dict[str, object]) -> tuple[str, ...]:
    config = await push_blob(handler, b"{}")
    return (await push_manifest(handler, image(config, layers=list(layers)), "v1")).warnings


def urls(settings: str) -> str:
    return f"validation: {{manifests: {{urls: {settings}}}}}"


@pytest.mark.parametrize("media_type", [FOREIGN, DOCKER, LAYER_TYPE, f"{LAYER_TYPE}+zstd", "application/x"])
@pytest.mark.parametrize(
    ("settings", "url", "passes"),
    [
        ("{}", GOOD, False),
        ("{allow: [], deny: []}", GOOD, False),
        ("{allow: ['^https://layers[.]example[.]com/']}", GOOD, True),
        ("{allow: ['^https://layers[.]example[.]com/']}", "https://evil.example.com/?https://layers.example.com/", False),
        # A search, as in distribution: unanchored patterns match anywhere.
        ("{allow: [example]}", "https://evil.com/example", True),
        ("{allow: [^a, 'e[.]com', ^b]}", GOOD, True),
        ("{deny: [evil]}", GOOD, True),
        ("{deny: [evil, base]}", GOOD, False),
        ("{allow: [example], deny: [base]}", GOOD, False),
        ("{allow: [example], deny: [other]}", GOOD, True),
        ("{allow: [other], deny: [another]}", GOOD, False),
    ],
)  # fmt: skip
async def test_a_url_passes_as_in_distribution(settings: str, url: str, passes: bool, media_type: str) -> None:
    async with opened(urls(settings)) as handler:
        present = await push_blob(handler, b"a layer")
        listed = [layer(media_type=LAYER_TYPE, digest=present), layer(url, media_type=media_type, digest=present)]
        if passes:
            assert await push(handler, *listed) == ()
            return
        with pytest.raises(Refused) as error:
            await push(handler, *listed)
        assert error.value.status == 403
        assert error.value.message == f"the layer {present} has the URL {url!r}, which is not allowed"
        assert error.value.detail == {
            "rule": "foreign_layers",
            "digest": str(present),
            "mediaType": media_type,
            "url": url,
        }


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://a/b", "is not of http or https"),
        ("HTTPS://layers.example.com/", None),
        ("http://layers.example.com:8080/a%20b?c=d", None),
        ("http://layers.example.com/#", None),
        ("", "is not of http or https"),
        ("layers.example.com/a", "is not of http or https"),
        ("https:///a", "is not of http or https"),
        ("https://a/b#c", "has a fragment"),
        ("https://a:port/", "is no URL"),
        ("https://[::1", "is no URL"),
        ("https://[::1]/a", None),
        ("https://a/b\n", "has characters that no URL has"),
        ("htt\tps://a/b", "has characters that no URL has"),
        ("https://a/ b", "has characters that no URL has"),
        ("https://good\\@evil/", "has characters that no URL has"),
        ("https://a/\x00", "has characters that no URL has"),
        ("https://a/" + "b" * 8192, "is longer than 8192 characters"),
    ],
)
async def test_what_no_layer_can_be_fetched_from_is_refused_whatever_is_allowed(url: str, said: str | None) -> None:
    async with opened(urls("{allow: ['']}")) as handler:
        if said is None:
            await push(handler, layer(url))
            return
        with pytest.raises(Refused) as error:
            await push(handler, layer(GOOD, url))
        assert error.value.status == 400
        assert error.value.message.endswith(f", which {said}")
        assert str(FAR) in error.value.message


@pytest.mark.parametrize("media_type", [DOCKER, DOCKER.removesuffix(".gzip")])
async def test_a_foreign_layer_of_docker_has_a_url(media_type: str) -> None:
    async with opened(urls("{allow: [.]}")) as handler:
        with pytest.raises(Refused, match="has no URL to fetch it from") as error:
            await push(handler, layer(media_type=media_type))
        assert error.value.status == 400
        await push(handler, layer(GOOD, media_type=media_type))


async def test_a_layer_that_must_not_be_distributed_must_be_here_or_have_a_url() -> None:
    async with opened(urls("{allow: [.]}")) as handler:
        await push(handler, layer(GOOD))
        with pytest.raises(ManifestBlobUnknown):
            await push(handler, layer())
        await push(handler, layer(digest=await push_blob(handler, b"a layer")))
        with pytest.raises(ManifestBlobUnknown):
            await push(handler, layer(GOOD, media_type=LAYER_TYPE))


@pytest.mark.parametrize("text", ["", "validation: {manifests: {urls: }}", "validation: {manifests: {layers: all}}", "validation: {disabled: true, manifests: {urls: {}}}"])  # fmt: skip
async def test_without_the_section_nothing_is_looked_at(text: str) -> None:
    async with opened(text) as handler:
        await push(handler, layer(), layer("ftp://a/#b"), layer(media_type=DOCKER))


async def test_repositories_and_modes_are_the_rules_own(caplog: pytest.LogCaptureFixture) -> None:
    text = urls(
        f"{{rules: [{{repositories: [elsewhere]}}, {{repositories: [{REPOSITORY}], mode: warn, deny: [evil]}}]}}"
    )
    async with opened(text) as handler:
        assert await push(handler, layer(GOOD)) == ()
        assert await push(handler, layer("https://evil/")) == (
            f"foreign_layers: the layer {FAR} has the URL 'https://evil/', which is not allowed",
        )
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_very_many_urls_are_judged() -> None:
    async with opened(urls("{deny: ['(a+)+$']}")) as handler:
        await push(handler, layer(*(f"https://a/{count}" for count in range(10_000))))
        with pytest.raises(Refused):
            await push(handler, layer(*(f"https://a/{count}" for count in range(100)), "https://b/" + "a" * 8000))


async def test_over_http_it_is_a_4xx_with_layer_and_url() -> None:
    async with opened(urls("{}")) as handler:
        client = client_of(handler)
        config = await client.push_blob("a", b"{}")
        manifest = json.loads(image(config, layers=[layer(GOOD)]))
        answer = await client.push_manifest("a", "v1", manifest)
        assert (answer.status, answer.codes) == (403, ["DENIED"])
        assert json.loads(answer.body)["errors"][0]["detail"]["url"] == GOOD


def test_variables_set_what_they_set_in_distribution(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text("version: 0.1\nstorage: inmemory\nvalidation: {manifests: {urls: {allow: [^a]}}}\n")
    environ = {
        "REGISTRY_VALIDATION_MANIFESTS_URLS_ALLOW_1": "^b",
        "REGISTRY_VALIDATION_MANIFESTS_URLS_DENY": "['^c', '^d']",
    }
    found = load_configuration(file, environ, claimed=claimed_sections(installed()))
    assert found.warnings == ()
    options = found.configuration.decode("validation.manifests.urls", Options)
    assert options == Options(allow=(Regex("^a"), Regex("^b")), deny=(Regex("^c"), Regex("^d")))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("{allow: ['(']}", "validation.manifests.urls.allow[0]: found \"(\"; allowed is a regular expression in RE2's syntax"),
        ("{deny: [a, '(?=b)']}", "validation.manifests.urls.deny[1]: found"),
        ("{allow: a}", "validation.manifests.urls.allow: found text; allowed is a list"),
        ("{allowed: [a]}", 'validation.manifests.urls.allowed: unknown key; did you mean "allow"?'),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_sentence(settings: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        loaded(urls(settings))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)

"""Which references of a manifest may be missing, and what is said to who pulls one that is."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from asgi_client import AsgiClient, client_of
from content import OTHER, REPOSITORY, image, index, pull, push_blob, push_image, push_manifest
from moorage import (
    DOCKER_LIST,
    OCI_INDEX,
    OCI_MANIFEST,
    ConfigurationError,
    DeleteManifest,
    Digest,
    Handler,
    ManifestBlobUnknown,
    ManifestUnknown,
    MemoryDriver,
    Operation,
    PluginManager,
    PullManifest,
    PushManifest,
    R,
    Registry,
    RepositoryName,
    Unavailable,
    claimed_sections,
    load_configuration,
    parse_stored,
)
from moorage_middleware import sparse_index
from opening import installed, loaded, opened
from pushing import Json

NONE = "validation: {manifests: {indexes: {platforms: none}}}"
MISSING = Digest.of(b"missing")


def child(digest: Digest | str, platform: str | None = None, **more: object) -> dict[str, object]:
    """Return the descriptor of a listed manifest; `platform` is written as docker does."""
    found: dict[str, object] = {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": 7, **more}
    if platform is not None:
        os, architecture, *variant = platform.split("/")
        found["platform"] = {"os": os, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
    return found


def unknown(platform: str | None, salt: str = "") -> dict[str, object]:
    """Return the descriptor of a manifest that is nowhere."""
    return child(Digest.of(f"missing {platform}{salt}".encode()), platform)


async def push_index(handler: Handler, *children: Json, media_type: str = OCI_INDEX, **more: object) -> Digest:
    data = index(*children, **{"mediaType": media_type, **more})
    return (await push_manifest(handler, data, "v1", media_type=media_type)).descriptor.digest


async def missing_in(handler: Handler, *children: Json, media_type: str = OCI_INDEX) -> list[str]:
    """Push an index of `children`; return which of their digests the answer says must be here."""
    try:
        await push_index(handler, *children, media_type=media_type)
    except ManifestBlobUnknown as error:
        return [str(cast("Json", each)["digest"]) for each in error.missing]  # descriptors
    return []


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
@pytest.mark.parametrize(
    ("settings", "required"),
    [
        ("{}", ["linux/amd64", "linux/arm64", "windows/amd64", "unknown/unknown", None]),
        ("{platforms: }", ["linux/amd64", "linux/arm64", "windows/amd64", "unknown/unknown", None]),
        ("{platforms: all}", ["linux/amd64", "linux/arm64", "windows/amd64", "unknown/unknown", None]),
        ("{platforms: All, platformlist: [a/b]}", ["linux/amd64", "linux/arm64", "windows/amd64", "unknown/unknown", None]),
        ("{platforms: list}", ["linux/amd64", "linux/arm64", "windows/amd64", "unknown/unknown", None]),
        ("{platforms: none}", []),
        ("{platforms: NONE, platformlist: [a/b]}", []),
        ("{platforms: LIST, platformlist: [{os: linux, architecture: amd64}]}", ["linux/amd64"]),
        ("{platforms: list, platformlist: [{os: linux, architecture: s390x}]}", []),
        ("{platforms: list, platformlist: [linux/arm64/v8, windows/amd64]}", ["linux/arm64", "windows/amd64"]),
        ("{platforms: list, platformlist: ['linux/*']}", ["linux/amd64", "linux/arm64"]),
        ("{platforms: list, platformlist: [unknown/unknown]}", ["unknown/unknown"]),
    ],
)  # fmt: skip
async def test_an_index_may_lack_what_the_setting_does_not_require(
    settings: str, required: Sequence[str | None], media_type: str
) -> None:
    platforms = ("linux/amd64", "linux/arm64", "windows/amd64", "unknown/unknown", None)
    absent = {platform: unknown(platform) for platform in platforms}
    async with opened(f"validation: {{manifests: {{indexes: {settings}}}}}") as handler:
        present = child(await push_image(handler), "linux/amd64")
        missing = await missing_in(handler, present, *absent.values(), media_type=media_type)
        assert missing == [absent[platform]["digest"] for platform in required]
        # What is required is enough.
        assert (await missing_in(handler, present, *(absent[each] for each in platforms if each not in required))) == []


async def test_a_complete_index_is_taken_under_every_setting() -> None:
    for settings in ("all", "none", "list, platformlist: [linux/amd64]"):
        async with opened(f"validation: {{manifests: {{indexes: {{platforms: {settings}}}}}}}") as handler:
            listed = [child(await push_image(handler, salt=each), f"linux/{each}") for each in ("amd64", "arm64")]
            digest = await push_index(handler, *listed)
            assert (await pull(handler, "v1")).digest == digest


async def test_without_the_section_nothing_is_opened_and_everything_is_required() -> None:
    async with opened("") as handler:
        assert isinstance(handler, sparse_index.SparsePulls) is False
        assert len(await missing_in(handler, unknown("linux/amd64"))) == 1


async def test_a_manifest_listed_twice_is_required_if_one_of_its_platforms_is() -> None:
    async with opened("validation: {manifests: {indexes: {platforms: list, platformlist: [linux/amd64]}}}") as handler:
        for platforms in (("unknown/unknown", "linux/amd64"), ("linux/amd64", "linux/386"), (None, "linux/amd64")):
            assert await missing_in(handler, *(child(MISSING, each) for each in platforms)) == [str(MISSING)]
        assert await missing_in(handler, child(MISSING, "linux/386"), child(MISSING, "linux/arm")) == []


async def test_an_inner_index_is_judged_by_its_own_platform() -> None:
    async with opened("validation: {manifests: {indexes: {platforms: list, platformlist: [linux/amd64]}}}") as handler:
        assert await missing_in(handler, child(MISSING, mediaType=OCI_INDEX)) == []
        assert await missing_in(handler, child(MISSING, "linux/amd64", mediaType=OCI_INDEX)) == [str(MISSING)]


async def test_thousands_of_platforms_are_judged() -> None:
    listed = [unknown(f"linux/amd64/v{count}") for count in range(1000)]
    settings = "{platforms: list, platformlist: [linux/arm64, 'linux/amd64/v99?']}"
    async with opened(f"validation: {{manifests: {{indexes: {settings}}}}}") as handler:
        assert await missing_in(handler, *listed) == [each["digest"] for each in listed[990:]]


@pytest.mark.parametrize("layers", ["all", "NONE"])
async def test_layers_may_be_missing_where_they_may_and_the_configuration_never(layers: str) -> None:
    async with opened(f"validation: {{manifests: {{layers: {layers}}}}}") as handler:
        config = await push_blob(handler, b"{}")
        if layers == "all":
            with pytest.raises(ManifestBlobUnknown):
                await push_manifest(handler, image(config, MISSING), "v1")
        else:
            await push_manifest(handler, image(config, MISSING), "v1")
        for configless in (image(MISSING), image(MISSING, MISSING), image(MISSING, config)):
            with pytest.raises(ManifestBlobUnknown) as error:
                await push_manifest(handler, configless, "v1")
            missing = cast("list[dict[str, object]]", list(error.value.missing))  # descriptors as JSON
            assert {each["digest"] for each in missing} == {str(MISSING)}
            assert [each["mediaType"] for each in missing if "config" in str(each["mediaType"])]
        # What lists manifests and is of a type that nobody knows is no image.
        odd = {"schemaVersion": 2, "mediaType": "application/x", "manifests": [unknown(None)]}
        with pytest.raises(ManifestBlobUnknown):
            await push_manifest(handler, json.dumps(odd).encode(), "v1", media_type="application/x")


async def test_indexes_are_no_business_of_the_setting_for_layers_and_the_other_way_round() -> None:
    async with opened("validation: {manifests: {layers: none}}") as handler:
        assert await missing_in(handler, unknown("linux/amd64")) != []
    async with opened(NONE) as handler:
        config = await push_blob(handler, b"{}")
        with pytest.raises(ManifestBlobUnknown):
            await push_manifest(handler, image(config, MISSING), "v1")
        with pytest.raises(ManifestBlobUnknown):
            await push_index(handler, unknown(None), blobs=[unknown(None)])
        # Other plugins still have their say.
        foreign = {
            "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "digest": str(MISSING),
            "size": 1,
        }
        await push_manifest(handler, image(config, layers=[foreign]), "v1")


async def test_repositories_have_settings_of_their_own() -> None:
    text = """
validation:
  manifests:
    rules:
      - {repositories: ["mirror/**"], indexes: {platforms: list, platformlist: [linux/amd64]}}
      - {repositories: ["cache/**"], indexes: {platforms: none}, layers: none}
"""
    listed = index(unknown("linux/amd64"), unknown("linux/arm64"))
    async with opened(text) as handler:
        for name, count in (("mirror/a/b", 1), ("other", 2)):
            with pytest.raises(ManifestBlobUnknown) as error:
                await push_manifest(handler, listed, "v1", repository=RepositoryName(name), media_type=OCI_INDEX)
            assert len(error.value.missing) == count
        await push_manifest(handler, listed, "v1", repository=RepositoryName("cache/a"), media_type=OCI_INDEX)


async def test_in_mode_warn_what_is_required_is_told_and_taken() -> None:
    for platforms in ("all", "list, platformlist: [linux/amd64]"):
        text = f"validation: {{manifests: {{mode: warn, indexes: {{platforms: {platforms}}}}}}}"
        async with opened(text) as handler:
            absent = unknown("linux/amd64")
            pushed = await push_manifest(handler, index(absent), "v1", media_type=OCI_INDEX)
            assert pushed.warnings == (
                f"sparse_index: {absent['digest']} ({OCI_MANIFEST}) must be there and is missing",
            )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NONE, ["validation.manifests.indexes.platforms is none: nothing that an index lists need be here, which clients may not expect"]),
        ("validation: {manifests: {indexes: {platforms: list}}}", ["validation.manifests.indexes.platforms is list, but platformlist is empty: everything that an index lists must be here"]),
        ("validation: {disabled: true}", ["validation.disabled: nothing that an index lists need be here"]),
        ("validation: {manifests: {indexes: {platforms: list, platformlist: [linux/amd64]}}}", []),
        ("validation: {manifests: {indexes: {platforms: all}}}", []),
    ],
)  # fmt: skip
async def test_what_may_surprise_is_said_at_the_start(
    text: str, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(text):
        warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == said


async def test_disabled_validation_requires_nothing_of_an_index() -> None:
    for more in ("", ", manifests: {indexes: {platforms: all}, urls: {allow: [x]}}"):
        async with opened(f"validation: {{disabled: true{more}}}") as handler:
            assert await missing_in(handler, unknown("linux/amd64"), unknown(None)) == []
            config = await push_blob(handler, b"{}")
            with pytest.raises(ManifestBlobUnknown):
                await push_manifest(handler, image(config, MISSING), "v1")
    async with opened("validation: {disabled: true, enabled: true, manifests: {indexes: {}}}") as handler:
        assert await missing_in(handler, unknown("linux/amd64")) != []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("{indexes: {platforms: some}}", 'validation.manifests.indexes.platforms: found "some"; allowed is "all", "list" or "none"'),
        ("{indexes: {platform: list}}", 'validation.manifests.indexes.platform: unknown key; did you mean "platforms"?'),
        ("{indexes: {platforms: list, platformlist: linux/amd64}}", "validation.manifests.indexes.platformlist: found text; allowed is a list"),
        ("{indexes: {platforms: list, platformlist: [linux]}}", 'validation.manifests.indexes.platformlist[0]: found "linux"; allowed is os/architecture'),
        ("{layers: some}", 'validation.manifests.layers: found "some"; allowed is'),
        ("{index: {}}", 'validation.manifests.index: unknown key; did you mean "indexes"?'),
        ("{rules: [{urls: {allow: [x]}}]}", "validation.manifests: rules[0].urls has no effect here; write it below urls.rules"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_sentence(settings: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        loaded(f"validation: {{manifests: {settings}}}")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_variables_set_what_they_set_in_distribution(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text("version: 0.1\nstorage: inmemory\n")
    environ = {
        "REGISTRY_VALIDATION_MANIFESTS_INDEXES_PLATFORMS": "List",
        "REGISTRY_VALIDATION_MANIFESTS_INDEXES_PLATFORMLIST_0_ARCHITECTURE": "amd64",
        "REGISTRY_VALIDATION_MANIFESTS_INDEXES_PLATFORMLIST_0_OS": "linux",
        "REGISTRY_VALIDATION_MANIFESTS_INDEXES_PLATFORMLIST_1": "{os: linux, architecture: arm64}",
        "REGISTRY_VALIDATION_MANIFESTS_INDEXES_PLATFORMLIST_2": "linux/s390x",
    }
    found = load_configuration(file, environ, claimed=claimed_sections(installed()))
    assert found.warnings == ()
    options = found.configuration.decode("validation.manifests", sparse_index.Options)
    assert options.indexes.platforms == "list"
    assert [pattern.text for pattern in options.indexes.platformlist] == ["linux/amd64", "linux/arm64", "linux/s390x"]


# ---- over HTTP


def errors(body: bytes) -> list[Mapping[str, object]]:
    found: list[Mapping[str, object]] = json.loads(body)["errors"]
    return found


async def put_index(client: AsgiClient, *children: Json) -> tuple[int, list[Mapping[str, object]]]:
    answer = await client.ask("PUT", "/v2/a/manifests/v1", [("Content-Type", OCI_INDEX)], index(*children))
    return answer.status, [] if answer.status == 201 else errors(answer.body)


async def test_a_refusal_names_each_missing_child_with_its_platform() -> None:
    absent = [unknown("linux/amd64"), unknown("linux/arm64/v8"), unknown("windows/amd64")]
    versioned = absent[2]["platform"]
    assert isinstance(versioned, dict)
    versioned["os.version"] = "10.0.17763.1"
    text = "validation: {manifests: {indexes: {platforms: list, platformlist: [linux/*, windows/*]}}}"
    async with opened(text.replace("linux/*, windows/*", "'linux/*', 'windows/*'")) as handler:
        status, found = await put_index(client_of(handler), *absent, unknown("darwin/arm64"))
    assert status == 400
    assert [error["code"] for error in found] == ["MANIFEST_BLOB_UNKNOWN"] * 3
    assert [error["detail"] for error in found] == absent


async def test_who_pulls_a_missing_child_is_told_what_else_is_here() -> None:
    async with opened(NONE) as handler:
        client = client_of(handler)
        arm = await client.push_image("a", annotations={"for": "arm"})
        intel = await client.push_image("a", annotations={"for": "intel"})
        power = unknown("linux/ppc64le")
        listed = [
            child(intel, "linux/amd64"),
            power,
            child(arm, "linux/arm64/v8"),
            child(arm, "linux/arm64"),
            unknown(None),
        ]
        listed += [unknown("unknown/unknown"), unknown("linux/s390x"), child(arm, "linux/arm64")]
        assert (await put_index(client, *listed)) == (201, [])
        target = f"/v2/a/manifests/{power['digest']}"
        before = await client.ask("GET", target)
        assert (before.status, errors(before.body)[0]["detail"]) == (404, {"name": "a", "digest": power["digest"]})
        served = await client.ask("GET", "/v2/a/manifests/v1")
        assert (served.status, served.body) == (200, index(*listed))
        for _ in range(2):
            answer = await client.ask("GET", target)
            assert (answer.status, answer.codes) == (404, ["MANIFEST_UNKNOWN"])
            assert answer.messages == [
                f"manifest unknown: this repository has only a part of the index {Digest.of(served.body)}"
            ]
            assert errors(answer.body)[0]["detail"] == {
                "name": "a",
                "digest": power["digest"],
                "index": str(Digest.of(served.body)),
                "sparse": True,
                "platform": "linux/ppc64le",
                "present": ["linux/amd64", "linux/arm64/v8", "linux/arm64"],
            }
        assert (await client.ask("HEAD", target)).status == 404
        # Elsewhere, and of other things, nothing is known.
        for other in (f"/v2/b/manifests/{power['digest']}", f"/v2/a/manifests/{MISSING}", "/v2/a/manifests/v2"):
            assert "sparse" not in (await client.ask("GET", other)).body.decode()
        plain = await client.ask("GET", f"/v2/a/manifests/{unknown(None)['digest']}")
        detail = cast("Json", errors(plain.body)[0]["detail"])
        assert (detail["sparse"], detail["platform"]) == (True, None)


async def test_of_several_indexes_one_that_is_still_here_is_named() -> None:
    absent = unknown("linux/arm64")
    async with opened(NONE) as handler:
        first, second = [await push_index(handler, absent, annotations={"n": each}) for each in ("1", "2")]
        for digest in (first, second):
            await pull(handler, digest)
        await handler(DeleteManifest(repository=REPOSITORY, digest=second))
        with pytest.raises(ManifestUnknown, match=str(first)):
            await pull(handler, Digest(str(absent["digest"])))


async def test_an_index_that_is_gone_is_not_spoken_of() -> None:
    absent = unknown("linux/arm64")
    digest = Digest(str(absent["digest"]))
    async with opened(NONE) as handler:
        listing = await push_index(handler, absent)
        await pull(handler, "v1")
        await handler(DeleteManifest(repository=REPOSITORY, digest=listing))
        for _ in range(2):
            with pytest.raises(ManifestUnknown) as error:
                await pull(handler, digest)
            assert error.value.detail == {"name": str(REPOSITORY), "digest": str(digest)}


class Failing:
    """A handler that can be told to fail all pulls but one."""

    def __init__(self) -> None:
        self.registry = Registry(MemoryDriver(), installed())
        self.spared: Digest | None = None
        self.asked = 0

    async def __call__(self, operation: Operation[R], /) -> R:
        self.asked += 1
        self._fail(operation)
        return await self.registry(operation)

    def _fail(self, operation: Operation[object]) -> None:
        if self.spared is not None and isinstance(operation, PullManifest) and operation.reference != self.spared:
            raise Unavailable("away", retry_after=1)


async def sparse(handler: Handler, *children: Json, repository: RepositoryName = REPOSITORY) -> Digest:
    """Push an index whatever it lists, and pull it."""
    data = index(*children)
    pushed = await push_unchecked(handler, data, repository)
    await pull(handler, pushed, repository)
    return pushed


async def push_unchecked(handler: Handler, data: bytes, repository: RepositoryName) -> Digest:
    digest = Digest.of(data)
    await handler(
        PushManifest(repository=repository, reference=digest, media_type=OCI_INDEX, data=data, unchecked=True)
    )
    return digest


async def test_where_the_store_fails_the_plain_answer_is_given() -> None:
    inner = Failing()
    pulls = sparse_index.SparsePulls(inner)
    absent = unknown("linux/arm64")
    await sparse(pulls, absent, unknown("linux/amd64"))
    inner.spared = Digest(str(absent["digest"]))
    with pytest.raises(ManifestUnknown) as error:
        await pull(pulls, inner.spared)
    assert error.value.message == "manifest unknown"


async def test_at_most_64_others_are_asked_for() -> None:
    inner = Failing()
    pulls = sparse_index.SparsePulls(inner)
    listed = [unknown(f"linux/amd64/v{count}") for count in range(100)]
    await sparse(pulls, *listed)
    inner.asked = 0
    with pytest.raises(ManifestUnknown) as error:
        await pull(pulls, Digest(str(listed[0]["digest"])))
    assert inner.asked == 1 + 1 + 64
    detail = cast("Json", error.value.detail)
    assert (detail["present"], detail["unasked"]) == ([], 35)


async def test_what_indexes_list_is_remembered_for_a_bounded_number() -> None:
    inner = Failing()
    pulls = sparse_index.SparsePulls(inner)
    shared = unknown("linux/arm64")
    lists = [[shared, *(unknown("linux/amd64", f"{count}-{each}") for each in range(1999))] for count in range(7)]
    digests = [await sparse(pulls, *listed) for listed in lists]
    empty = parse_stored(index(), Digest.of(index()))
    assert pulls._count <= sparse_index.REMEMBERED
    assert len(pulls._indexes) == 4
    assert len(pulls._listing) <= sparse_index.REMEMBERED
    # What the first listed alone is forgotten; what the last listed too is not.
    with pytest.raises(ManifestUnknown) as error:
        await pull(pulls, Digest(str(lists[0][1]["digest"])))
    assert error.value.message == "manifest unknown"
    with pytest.raises(ManifestUnknown, match=str(digests[-1])):
        await pull(pulls, Digest(str(shared["digest"])))
    # An index that is served again stays.
    await pull(pulls, digests[3])
    await sparse(pulls, *[unknown("linux/386", f"{each}") for each in range(2000)])
    assert [place[1] for place in pulls._indexes][:3] == [digests[5], digests[6], digests[3]]
    # What lists nothing, or very long things, is not remembered without end.
    for count in range(200):
        await sparse(pulls, child(MISSING, f"linux/{'x' * 50_000}{count}"), repository=OTHER)
    kept = [text for each in pulls._indexes.values() for child in each[1].values() for text in child.platforms]
    assert max(map(len, kept)) <= 128
    for count in range(sparse_index.REMEMBERED + 10):
        pulls._remember((OTHER, Digest.of(str(count).encode())), empty)
    assert len(pulls._indexes) == sparse_index.REMEMBERED
    assert pulls._listing == {}


async def test_nothing_else_passes_otherwise() -> None:
    inner = Failing()
    pulls = sparse_index.SparsePulls(inner)
    digest = await push_image(pulls, "v1", repository=OTHER)
    assert (await pull(pulls, "v1", OTHER)).digest == digest
    assert pulls._count == 0
    config = await push_blob(pulls, b"{}")
    with pytest.raises(ManifestBlobUnknown):
        await push_manifest(pulls, image(config, MISSING), "v1")


def test_the_plugin_is_one_file_on_hooks_that_any_plugin_has() -> None:
    plugins = PluginManager()
    record = plugins.register(sparse_index, "sparse_index")
    assert record.error is None
    assert record.registers == {"register_rules": ("sparse_index",), "register_middleware": ("sparse_pulls",)}
    assert (
        plugins.rules()["sparse_index"].section
        == plugins.middleware()["sparse_pulls"].section
        == "validation.manifests"
    )

"""Explanations of pushes: what the registry and each rule would say, without the push."""

import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

import moorage_drivers
import moorage_middleware.nondistributable
from content import CONFIG_TYPE, LAYER_TYPE, descriptor, image, index, push_blob, push_image
from moorage import (
    MANIFEST_LIMIT,
    OCI_INDEX,
    OCI_MANIFEST,
    REGISTRY,
    Configuration,
    ConfigurationError,
    DeleteTag,
    Descriptor,
    Digest,
    DriverFactory,
    Explanation,
    Handler,
    ListTags,
    MemoryDriver,
    NoOptions,
    Operation,
    PluginManager,
    PullManifest,
    PushManifest,
    R,
    Refused,
    Registry,
    RegistryError,
    RepositoryName,
    Rule,
    Tag,
    Unavailable,
    claimed_sections,
    explain,
    hookimpl,
    list_revisions,
    load_configuration,
    open_registry,
    open_rules,
    open_to_look,
)
from stores import Kind, MinimalDriver, WatchedDriver, new_store

NAME = RepositoryName("library/test")
ABSENT = Digest.of(b"absent")
FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"


class Says(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the rule of these tests: what it says of a missing reference, and of the whole."""

    missing: str = "nothing"
    whole: str = "nothing"


class Judge:
    """A rule that says what its options say."""

    def __init__(self, options: Says) -> None:
        self._options = options

    @hookimpl
    async def requires_reference(self, descriptor: Descriptor) -> bool | None:
        match self._options.missing:
            case "no":
                raise Refused(f"{descriptor.size} bytes are missing", detail={"size": descriptor.size})
            case "fail":
                raise ZeroDivisionError("by zero")
            case said:
                return {"required": True, "spared": False}.get(said)

    @hookimpl
    async def validate_manifest(self, push: PushManifest, registry: Handler) -> Sequence[str] | None:
        match self._options.whole:
            case "no":
                raise Refused(f"not {push.reference}", status=409)
            case "fail":
                raise ZeroDivisionError("by zero")
            case "careful":
                return ["be careful", "be quick"]
            case "delete":
                await registry(DeleteTag(repository=push.repository, tag=Tag("v1")))
                return None
            case _:
                return None


class Whole:
    """A rule on whole manifests alone, that needs the registry."""

    @hookimpl
    async def validate_manifest(self, push: PushManifest, registry: Handler) -> Sequence[str]:
        tags = await registry(ListTags(repository=push.repository))
        return [f"beside {', '.join(tags.tags)}"]


@asynccontextmanager
async def open_judge(options: Says) -> AsyncGenerator[object]:
    if options.whole == "open":
        raise OSError("no such list")
    yield Judge(options)


@asynccontextmanager
async def open_whole(options: NoOptions) -> AsyncGenerator[object]:
    del options
    yield Whole()


@hookimpl
def register_rules() -> Mapping[str, object]:
    return {"first": Rule(Says, open_judge), "second": Rule(Says, open_judge), "whole": Rule(NoOptions, open_whole)}


@pytest.fixture
def plugins() -> PluginManager:
    manager = PluginManager()
    for name, each in (("drivers", moorage_drivers), ("rules", SimpleNamespace(register_rules=register_rules))):
        assert manager.register(each, name).error is None
    return manager


@pytest.fixture
def registry() -> Registry:
    return Registry(MemoryDriver())


@asynccontextmanager
async def rules(manager: PluginManager, **configured: object) -> AsyncGenerator[None]:
    overrides: dict[str, object] = {"storage": {"inmemory": None}, "plugins": configured}
    loaded = load_configuration(None, {}, overrides=overrides, claimed=claimed_sections(manager))
    async with open_rules(loaded.configuration, manager):
        yield


def pushed(data: bytes, reference: str = "v2", *, media_type: str = OCI_MANIFEST) -> PushManifest:
    named = Digest(reference) if ":" in reference else Tag(reference)
    return PushManifest(repository=NAME, reference=named, media_type=media_type, data=data)


def said(explanation: Explanation) -> list[tuple[str, str | None, str, str]]:
    return [(each.rule, each.mode, each.outcome, each.says) for each in explanation.findings]


GOOD = (REGISTRY, "enforce", "accepts", f"a manifest of type {OCI_MANIFEST}")


async def lacking(registry: Handler) -> PushManifest:
    """Return a push of an image without its layer."""
    return pushed(image(await push_blob(registry, b"{}"), ABSENT))


async def whole(registry: Handler) -> PushManifest:
    return pushed(image(await push_blob(registry, b"{}")))


async def test_without_rules_a_whole_manifest_is_accepted(plugins: PluginManager, registry: Registry) -> None:
    explained = await explain(await whole(registry), registry, plugins.judging)
    assert (explained.accepted, said(explained)) == (True, [GOOD])
    assert explained.manifest is not None
    with pytest.raises(RegistryError):
        await registry(PullManifest(repository=NAME, reference=Tag("v2")))


INVALID = {
    "not JSON": (b"hello", "v2", OCI_MANIFEST, "not a manifest"),
    "empty": (b"", "v2", OCI_MANIFEST, "not a manifest"),
    "no config": (b'{"schemaVersion": 2}', "v2", OCI_MANIFEST, "has a `config`"),
    "another type": (image(ABSENT), "v2", OCI_INDEX, "mediaType says"),
    "another digest": (image(ABSENT), str(Digest.of(b"other")), OCI_MANIFEST, "does not have that digest"),
    "an algorithm of others": (image(ABSENT), "sha3:00", OCI_MANIFEST, "not supported"),
    "too large": (b" " * (MANIFEST_LIMIT + 1), "v2", OCI_MANIFEST, "at most 4194304 bytes"),
}


@pytest.mark.parametrize("case", INVALID)
async def test_what_is_no_manifest_is_the_registrys_to_refuse(
    plugins: PluginManager, registry: Registry, case: str
) -> None:
    data, reference, media_type, sentence = INVALID[case]
    push = pushed(data, reference, media_type=media_type)
    async with rules(plugins, first={"whole": "no"}):
        explained = await explain(push, registry, plugins.judging)
    ((rule, mode, outcome, says),) = said(explained)
    assert (rule, mode, outcome, explained.accepted, explained.manifest) == (
        REGISTRY,
        "enforce",
        "refuses",
        False,
        None,
    )
    assert sentence in says
    with pytest.raises(RegistryError) as refused:
        await registry(push)
    assert says == refused.value.message


async def test_what_nobody_spares_is_missing_and_named_as_the_manifest_names_it(
    plugins: PluginManager, registry: Registry
) -> None:
    child = await push_image(registry)
    platform = {"os": "linux", "architecture": "arm64"}
    missing = descriptor(ABSENT, media_type=OCI_MANIFEST) | {"platform": platform}
    push = pushed(index(child, missing, missing), media_type=OCI_INDEX)
    explained = await explain(push, registry, plugins.judging)
    assert not explained.accepted
    assert [each.says for each in explained.findings][1:] == [f"{ABSENT} ({OCI_MANIFEST}) is missing"]
    assert explained.findings[1].detail == missing


LACKING: tuple[tuple[dict[str, object], list[tuple[str, str | None, str, str]], bool], ...] = (
    (
        {"first": {"missing": "required"}},
        [("first", "enforce", "refuses", f"{ABSENT} ({LAYER_TYPE}) must be there and is missing")],
        False,
    ),
    (
        {"first": {"missing": "required", "mode": "warn"}},
        [("first", "warn", "warns", f"{ABSENT} ({LAYER_TYPE}) must be there and is missing")],
        True,
    ),
    (
        {"first": {"missing": "spared"}, "second": {"missing": "required"}},
        [
            ("first", "enforce", "accepts", f"{ABSENT} ({LAYER_TYPE}) may be missing"),
            ("second", "enforce", "accepts", ""),
        ],
        True,
    ),
    (
        {"first": {}, "second": {}},
        [
            (REGISTRY, "enforce", "refuses", f"{ABSENT} ({LAYER_TYPE}) is missing"),
            ("first", "enforce", "accepts", ""),
            ("second", "enforce", "accepts", ""),
        ],
        False,
    ),
    (
        {"first": {"missing": "no"}, "second": {"missing": "spared"}},
        [
            ("first", "enforce", "refuses", "1 bytes are missing"),
            ("second", "enforce", "accepts", f"{ABSENT} ({LAYER_TYPE}) may be missing"),
        ],
        False,
    ),
    (
        {"first": {"missing": "no", "mode": "warn"}},
        [
            ("first", "warn", "warns", "1 bytes are missing"),
            (REGISTRY, "enforce", "refuses", f"{ABSENT} ({LAYER_TYPE}) is missing"),
        ],
        False,
    ),
    (
        {"first": {"missing": "fail"}},
        [("first", "enforce", "failed", "the plugin plugins.first failed (ZeroDivisionError: by zero)")],
        False,
    ),
    (
        {"first": {"missing": "spared", "repositories": ["other"]}},
        [(REGISTRY, "enforce", "refuses", f"{ABSENT} ({LAYER_TYPE}) is missing"), ("first", None, "not here", "")],
        False,
    ),
)


@pytest.mark.parametrize(("configured", "findings", "accepted"), LACKING)
async def test_what_rules_say_of_a_missing_reference_is_what_a_push_does(
    plugins: PluginManager,
    registry: Registry,
    configured: dict[str, object],
    findings: list[tuple[str, str | None, str, str]],
    accepted: bool,
) -> None:
    async with rules(plugins, **configured):
        explained = await explain(await lacking(registry), registry, plugins.judging)
        assert (said(explained), explained.accepted) == ([GOOD, *findings], accepted)
        await agrees(registry, plugins, explained)


async def agrees(registry: Registry, plugins: PluginManager, explained: Explanation) -> None:
    """Check that the push does what its explanation said."""
    real = Registry(registry._driver, plugins)
    if explained.accepted:
        warnings = (await real(explained.push)).warnings
        assert len(warnings) == sum(each.warns for each in explained.findings)
    else:
        with pytest.raises(RegistryError):
            await real(explained.push)


WHOLE: tuple[tuple[dict[str, object], list[tuple[str, str | None, str, str]], bool], ...] = (
    (
        {"first": {"whole": "no"}, "second": {"whole": "careful"}},
        [
            ("first", "enforce", "refuses", "not v2"),
            ("second", "enforce", "warns", "be careful"),
            ("second", "enforce", "warns", "be quick"),
        ],
        False,
    ),
    (
        {"first": {"whole": "no", "mode": "warn"}, "second": {}},
        [("first", "warn", "warns", "not v2"), ("second", "enforce", "accepts", "")],
        True,
    ),
    (
        {"first": {"whole": "fail", "mode": "warn"}},
        [("first", "warn", "failed", "the plugin plugins.first failed (ZeroDivisionError: by zero)")],
        True,
    ),
    (
        {"first": {"whole": "delete"}},
        [("first", "enforce", "refuses", "a rule may not DeleteTag")],
        False,
    ),
    (
        {"first": {"rules": [{"repositories": ["library/*"], "whole": "no"}], "whole": "fail"}},
        [("first", "enforce", "refuses", "not v2")],
        False,
    ),
    (
        {"first": {"rules": [{"repositories": ["other"], "whole": "no"}], "repositories": ["another"]}, "whole": None},
        [("whole", "enforce", "warns", "beside v1"), ("first", None, "not here", "")],
        True,
    ),
)


@pytest.mark.parametrize(("configured", "findings", "accepted"), WHOLE)
async def test_what_rules_say_of_a_whole_manifest_is_what_a_push_does(
    plugins: PluginManager,
    registry: Registry,
    configured: dict[str, object],
    findings: list[tuple[str, str | None, str, str]],
    accepted: bool,
) -> None:
    await push_image(registry, "v1")
    async with rules(plugins, **configured):
        explained = await explain(await whole(registry), registry, plugins.judging)
        assert (said(explained), explained.accepted) == ([GOOD, *findings], accepted)
        await agrees(registry, plugins, explained)


async def test_a_plugin_without_options_is_asked_too(plugins: PluginManager, registry: Registry) -> None:
    assert plugins.register(moorage_middleware.nondistributable, "nondistributable").error is None
    manifest = json.loads(image(await push_blob(registry, b"{}")))
    manifest["layers"] = [descriptor(ABSENT, media_type=FOREIGN)]
    explained = await explain(pushed(json.dumps(manifest).encode()), registry, plugins.judging)
    assert said(explained)[1:] == [("nondistributable", "enforce", "accepts", f"{ABSENT} ({FOREIGN}) may be missing")]
    assert explained.accepted
    spared = await explain(await whole(registry), registry, plugins.judging)
    assert said(spared) == [GOOD, ("nondistributable", "enforce", "accepts", "")]


async def test_an_explanation_counts_and_logs_no_refusal(
    plugins: PluginManager, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    async with rules(plugins, first={"whole": "no"}, second={"whole": "no", "mode": "warn"}):
        await explain(await whole(registry), registry, plugins.judging)
    assert not plugins.judging.counts
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_an_index_may_list_a_blob_whoever_answers(plugins: PluginManager, registry: Registry) -> None:
    layer = await push_blob(registry, b"a layer")
    push = pushed(index(descriptor(layer), descriptor(ABSENT)), media_type=OCI_INDEX)
    explained = await explain(push, registry, plugins.judging)
    assert [each.says for each in explained.findings if each.refuses] == [f"{ABSENT} ({LAYER_TYPE}) is missing"]


async def test_what_is_missing_is_the_same_to_a_push_and_to_its_explanation(
    plugins: PluginManager, registry: Registry
) -> None:
    blob = await push_blob(registry, b"{}")
    child = await push_image(registry)
    for data, media_type in (
        (image(blob, blob, child), OCI_MANIFEST),
        (image(ABSENT, blob), OCI_MANIFEST),
        (index(child, ABSENT, blob), OCI_INDEX),
        (index(descriptor(child), descriptor(blob, media_type=CONFIG_TYPE)), OCI_INDEX),
    ):
        explained = await explain(pushed(data, media_type=media_type), registry, plugins.judging)
        assert explained.manifest is not None
        missing = await registry.missing_references(NAME, explained.manifest)
        assert [each.says for each in explained.findings if each.refuses] == [
            f"{each.digest} ({each.media_type}) is missing" for each in missing
        ]


async def test_a_handler_that_fails_is_not_taken_for_one_that_has_nothing(plugins: PluginManager) -> None:
    class Away:
        async def __call__(self, operation: Operation[R], /) -> R:
            raise Unavailable("the store is away")

    with pytest.raises(Unavailable):
        await explain(pushed(image(ABSENT)), Away(), plugins.judging)


# ---- looking into a store


def configured_store(manager: PluginManager, root: Path) -> Configuration:
    overrides = {"storage": {"filesystem": {"rootdirectory": str(root)}}}
    loaded = load_configuration(None, {}, overrides=overrides, claimed=claimed_sections(manager))
    return loaded.configuration


async def test_a_store_that_is_only_looked_at_is_not_changed(plugins: PluginManager, tmp_path: Path) -> None:
    root = tmp_path / "root"
    configuration = configured_store(plugins, root)
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        async with open_to_look(configuration, plugins):
            pass
    assert not root.exists()
    async with open_registry(configuration, plugins) as opened:
        digest = await push_image(opened.handler, "v1")
    before = files(root)
    async with open_to_look(configuration, plugins) as looking:
        found = await looking.handler(PullManifest(repository=NAME, reference=Tag("v1")))
        assert found.digest == digest
        with pytest.raises(RegistryError):
            await looking.handler(DeleteTag(repository=NAME, tag=Tag("v1")))
    assert files(root) == before


def files(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


async def test_a_driver_that_makes_no_difference_is_opened_as_ever_and_nothing_is_written(
    plugins: PluginManager,
) -> None:
    inner = MinimalDriver()
    await push_image(Registry(inner), "v1")
    written: list[str] = []

    @asynccontextmanager
    async def open_watched(options: NoOptions) -> AsyncGenerator[WatchedDriver]:
        del options
        yield WatchedDriver(inner, lambda verb, key: written.append(f"{verb} {key}"))

    @hookimpl
    def register_drivers() -> Mapping[str, object]:
        return {"watched": DriverFactory(NoOptions, open_watched)}

    assert plugins.register(SimpleNamespace(register_drivers=register_drivers), "watched").error is None
    loaded = load_configuration(None, {}, overrides={"storage": {"watched": None}}, claimed=claimed_sections(plugins))
    async with open_to_look(loaded.configuration, plugins) as looking:
        manifest = await looking.handler(PullManifest(repository=NAME, reference=Tag("v1")))
        explained = await explain(pushed(manifest.data), looking.handler, plugins.judging)
    assert (explained.accepted, written) == (True, [])


@pytest.mark.parametrize("kind", ["memory", "filesystem", "minimal", "service"])
async def test_every_revision_of_a_repository_is_listed(kind: Kind, tmp_path: Path) -> None:
    async with new_store(kind, tmp_path / "root").open() as driver:
        registry = Registry(driver)
        other = RepositoryName("library/test/below")
        expected = {await push_image(registry, salt=str(n)) for n in range(12)}
        expected.add(await push_image(registry, "tagged", salt="tagged"))
        data = image(await push_blob(registry, b"{}"), note="by another algorithm")
        wide = Digest.of(data, "sha512")
        await registry(PushManifest(repository=NAME, reference=wide, media_type=OCI_MANIFEST, data=data))
        expected.add(wide)
        elsewhere = await push_image(registry, "v1", repository=other)
        revisions = "docker/registry/v2/repositories/library/test/_manifests/revisions"
        await driver.write(f"{revisions}/sha256/{'0' * 63}/link", b"not a digest")
        await driver.write(f"{revisions}/sha256/{'0' * 64}/note", b"not a link")
        found = [digest async for digest in list_revisions(driver, NAME)]
        assert (set(found), len(found)) == (expected, len(expected))
        assert [digest async for digest in list_revisions(driver, other)] == [elsewhere]
        assert [digest async for digest in list_revisions(driver, RepositoryName("none"))] == []


async def test_revisions_are_listed_over_pages() -> None:
    driver = MemoryDriver()
    links = [Digest.of(str(n).encode()) for n in range(2500)]
    revisions = "docker/registry/v2/repositories/library/test/_manifests/revisions"
    for digest in links:
        await driver.write(f"{revisions}/sha256/{digest.encoded}/link", digest.encode())
    assert [digest async for digest in list_revisions(driver, NAME)] == sorted(links)


async def test_a_rule_that_cannot_be_opened_is_one_sentence(plugins: PluginManager) -> None:
    with pytest.raises(ConfigurationError) as error:
        async with rules(plugins, first={"whole": "open"}):
            pass
    assert str(error.value) == "command line: plugins.first: first failed to open: OSError: no such list"

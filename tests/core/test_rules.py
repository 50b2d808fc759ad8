"""What every rule gets from the registry: repositories, modes, entries, and the name in its refusals."""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace

import msgspec
import pytest

import moorage_drivers
from content import Sent, image
from moorage import (
    OCI_MANIFEST,
    ConfigurationError,
    Descriptor,
    Digest,
    Glob,
    Handler,
    InternalError,
    ManifestBlobUnknown,
    NoOptions,
    PluginManager,
    PushBlob,
    PushManifest,
    Refused,
    RepositoryName,
    Rule,
    Scopes,
    Tag,
    check_options,
    claimed_sections,
    hookimpl,
    load_configuration,
    open_registry,
    scoped,
)

CONFIG = b"{}"
MISSING = Digest.of(b"missing")


class Says(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the rule of these tests: what it says."""

    says: str = "nothing"


class Judge:
    """A rule that says what its options say."""

    def __init__(self, options: Says) -> None:
        self._says = options.says

    @hookimpl
    async def validate_manifest(self, push: PushManifest) -> tuple[str, ...] | None:
        match self._says:
            case "no":
                raise Refused(f"not {push.reference}", status=409, detail={"why": "so"})
            case "fail":
                raise ZeroDivisionError
            case "careful":
                return ("careful",)
            case _:
                return None

    @hookimpl
    async def requires_reference(self, descriptor: Descriptor) -> bool | None:
        assert descriptor.digest == MISSING
        return {"required": True, "spared": False}.get(self._says)


class Plugin:
    """Offers the rule under a name, and in a section."""

    def __init__(self) -> None:
        self.opened: list[str] = []

    @hookimpl
    def register_rules(self) -> Mapping[str, object]:
        @asynccontextmanager
        async def open_judge(options: Says) -> AsyncGenerator[object]:
            self.opened.append(options.says)
            yield Judge(options)

        section = "validation.manifests.judge"
        return {
            "judge": Rule(Says, open_judge),
            "listed": Rule(Says, open_judge, section=section, when_disabled=Says("spared")),
            "shut": Rule(Says, open_judge, section="validation.manifests.shut"),
        }


@pytest.fixture
def plugin() -> Plugin:
    return Plugin()


@pytest.fixture
def plugins(plugin: Plugin) -> PluginManager:
    manager = PluginManager()
    for name, each in (("drivers", moorage_drivers), ("plugin", plugin)):
        assert manager.register(each, name).error is None
    return manager


@asynccontextmanager
async def registry(manager: PluginManager, **sections: object) -> AsyncGenerator[Handler]:
    overrides: dict[str, object] = {"storage": {"inmemory": None}, **sections}
    loaded = load_configuration(None, {}, overrides=overrides, claimed=claimed_sections(manager))
    assert loaded.warnings == ()
    async with open_registry(loaded.configuration, manager) as opened:
        yield opened.handler


async def push(handler: Handler, repository: str, *layers: Digest) -> tuple[str, ...]:
    name = RepositoryName(repository)
    config = Digest.of(CONFIG)
    await handler(PushBlob(repository=name, digest=config, body=Sent(CONFIG, length=len(CONFIG))))
    pushed = await handler(
        PushManifest(repository=name, reference=Tag("v1"), media_type=OCI_MANIFEST, data=image(config, *layers))
    )
    return pushed.warnings


async def test_a_refusal_names_its_rule(plugins: PluginManager) -> None:
    async with registry(plugins, plugins={"judge": {"says": "no"}}) as handler:
        with pytest.raises(Refused) as refused:
            await push(handler, "a")
    assert (refused.value.status, refused.value.detail) == (409, {"rule": "judge", "why": "so"})


async def test_a_rule_holds_for_its_repositories_alone(plugins: PluginManager) -> None:
    settings = {"says": "no", "repositories": ["prod/**", "library/*"]}
    async with registry(plugins, plugins={"judge": settings}) as handler:
        for held in ("prod/a", "prod/a/b", "library/a"):
            with pytest.raises(Refused):
                await push(handler, held)
        for free in ("prod", "library/a/b", "dev/a"):
            assert await push(handler, free) == ()


async def test_the_first_entry_that_matches_is_in_force_by_itself(plugins: PluginManager, plugin: Plugin) -> None:
    settings = {
        "says": "no",
        "repositories": ["prod/**", "dev/**"],
        "rules": [
            {"repositories": ["prod/old/**"], "says": "careful"},
            {"repositories": ["prod/**/x"], "says": "fail"},
            {"repositories": ["prod/old/b", "other"]},
        ],
    }
    async with registry(plugins, plugins={"judge": settings}) as handler:
        assert plugin.opened == ["careful", "fail", "nothing", "no"]
        assert await push(handler, "prod/old/b") == ("careful",)
        with pytest.raises(InternalError):
            await push(handler, "prod/x")
        assert await push(handler, "other") == ()
        assert await push(handler, "elsewhere") == ()
        with pytest.raises(Refused):
            await push(handler, "prod/new")


@pytest.mark.parametrize(
    ("beside", "opened", "elsewhere"),
    [
        ({}, ["careful"], ()),
        ({"mode": "enforce", "repositories": []}, ["careful"], ()),
        ({"mode": "warn"}, ["careful", "nothing"], ()),
        ({"says": "careful"}, ["careful", "careful"], ("careful",)),
        ({"repositories": ["a"]}, ["careful", "nothing"], ()),
    ],
)
async def test_with_nothing_beside_its_entries_a_rule_holds_for_these_alone(
    plugins: PluginManager, plugin: Plugin, beside: Mapping[str, object], opened: list[str], elsewhere: tuple[str, ...]
) -> None:
    settings = {**beside, "rules": [{"repositories": ["prod/**"], "says": "careful"}]}
    async with registry(plugins, plugins={"judge": settings}) as handler:
        assert plugin.opened == opened
        assert await push(handler, "prod/a") == ("careful",)
        assert await push(handler, "elsewhere") == elsewhere


@pytest.mark.parametrize(
    ("says", "warning"),
    [
        ("no", "judge: not v1"),
        ("fail", "judge: the plugin plugins.judge failed"),
        ("required", f"judge: {MISSING} (application/vnd.oci.image.layer.v1.tar) must be there and is missing"),
        ("careful", "careful"),
    ],
)
async def test_a_rule_that_warns_refuses_nothing(
    plugins: PluginManager, says: str, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    layers = [MISSING] if says == "required" else []
    async with registry(plugins, plugins={"judge": {"says": says, "mode": "warn"}}) as handler:
        for _ in range(2):
            assert await push(handler, "a", *layers) == (warning,)
    if says != "careful":
        assert plugins.judging.counts == {("judge", "warned"): 2}
        told = [record.getMessage() for record in caplog.records if record.name == "moorage.rules"]
        assert [(line.split(": ")[0], line.endswith(warning.removeprefix("judge: "))) for line in told] == [
            (f"rule judge would refuse a push to a:v1 from this process ({count} so far)", True) for count in (1, 2)
        ]


async def test_what_nobody_has_an_opinion_on_is_missing_whatever_rules_warn_of(plugins: PluginManager) -> None:
    async with registry(plugins, plugins={"judge": {"says": "nothing", "mode": "warn"}}) as handler:
        with pytest.raises(ManifestBlobUnknown):
            await push(handler, "a", MISSING)


async def test_refusals_are_counted_and_logged(plugins: PluginManager, caplog: pytest.LogCaptureFixture) -> None:
    async with registry(plugins, plugins={"judge": {"says": "no"}}) as handler:
        with pytest.raises(Refused):
            await push(handler, "a")
    assert plugins.judging.counts == {("judge", "refused"): 1}
    assert [(record.name, record.levelno) for record in caplog.records] == [("moorage.rules", logging.WARNING)]


@pytest.mark.parametrize(
    ("validation", "opened"),
    [
        ({}, []),
        ({"manifests": {"judge": {"says": "no"}}}, ["no"]),
        ({"manifests": {"judge": {"says": "no"}, "shut": {}}}, ["no", "nothing"]),
        ({"disabled": True}, ["spared"]),
        ({"disabled": True, "manifests": {"judge": {"says": "no"}, "shut": {}}}, ["spared"]),
        ({"disabled": True, "enabled": True, "manifests": {"judge": {"says": "no"}}}, ["no"]),
        ({"enabled": True}, []),
    ],
)
async def test_a_section_around_that_is_disabled_shuts_a_rule_or_gives_it_other_options(
    plugins: PluginManager, plugin: Plugin, validation: Mapping[str, object], opened: list[str]
) -> None:
    async with registry(plugins, validation=validation) as handler:
        assert plugin.opened == opened
        if opened == ["spared"]:
            assert await push(handler, "a", MISSING) == ()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mode": "off"}, 'plugins.judge.mode: found "off"; allowed is "enforce" or "warn"'),
        ({"repositories": "a"}, "plugins.judge.repositories: found text; allowed is a list"),
        ({"repositories": ["["]}, 'plugins.judge.repositories[0]: found "["; allowed is a pattern'),
        ({"rules": [{"say": "no"}]}, 'plugins.judge.rules[0].say: unknown key; did you mean "says"?'),
        ({"rules": [{"rules": ()}]}, "plugins.judge.rules[0].rules: unknown key"),
        ({"repository": ["a"]}, 'plugins.judge.repository: unknown key; did you mean "repositories"?'),
    ],
)
def test_what_is_wrong_in_a_rule_is_one_sentence(
    plugins: PluginManager, settings: Mapping[str, object], sentence: str
) -> None:
    overrides: dict[str, object] = {"storage": {"inmemory": None}, "plugins": {"judge": settings}}
    loaded = load_configuration(None, {}, overrides=overrides, claimed=claimed_sections(plugins))
    with pytest.raises(ConfigurationError) as error:
        check_options(loaded.configuration, plugins)
    assert sentence in str(error.value)


class Taken(msgspec.Struct, frozen=True):
    """Options that have a name that is the registry's."""

    mode: int = 0


def test_options_that_have_a_key_of_the_registry_are_refused_at_registration() -> None:
    @asynccontextmanager
    async def open_nothing(options: Taken) -> AsyncGenerator[object]:
        yield options

    def register_rules() -> Mapping[str, object]:
        return {"mine": Rule(Taken, open_nothing)}

    record = PluginManager().register(SimpleNamespace(register_rules=hookimpl(register_rules)), "taker")
    assert record.error is not None
    assert "Taken has a field 'mode', which the registry gives to every rule" in record.error


def test_scopes_keep_their_answers_for_a_bounded_number_of_repositories() -> None:
    options: type[NoOptions] = scoped(NoOptions)
    scopes = Scopes(options())
    last = len(scopes.entries) - 1
    for count in range(25_000):
        found = scopes.of(RepositoryName(f"a/{count}"))
        assert found is not None
        assert found.position == last
    assert len(scopes._found) <= 10_000


def test_options_that_scoped_did_not_make_hold_everywhere() -> None:
    found = Scopes(Says("no")).of(RepositoryName("a"))
    assert found is not None
    assert (found.options, found.mode) == (Says("no"), "enforce")
    assert issubclass(scoped(Says), Says)
    assert Glob("a") == Glob("a")


class Broken:
    """Offers one of each that cannot be opened."""

    @hookimpl
    def register_rules(self) -> Mapping[str, object]:
        @asynccontextmanager
        async def open_it(options: Says) -> AsyncGenerator[object]:
            if options.says:
                raise LookupError(f"no {options.says}")
            yield options

        return {"broken": Rule(Says, open_it)}


async def test_a_rule_that_fails_to_open_is_one_sentence(plugins: PluginManager) -> None:
    assert plugins.register(Broken(), "broken").error is None
    with pytest.raises(ConfigurationError, match=r"plugins\.broken: broken failed to open: LookupError: no luck"):
        async with registry(plugins, plugins={"broken": {"says": "luck"}}):
            pass


class Outer:
    """Offers a rule in a section around that of another."""

    @hookimpl
    def register_rules(self) -> Mapping[str, object]:
        @asynccontextmanager
        async def open_it(options: NoOptions) -> AsyncGenerator[object]:
            yield Judge(Says(str(options)))

        return {"outer": Rule(NoOptions, open_it, section="validation.manifests")}


async def test_a_section_in_a_section_is_read_by_its_own_plugin(plugins: PluginManager, plugin: Plugin) -> None:
    assert plugins.register(Outer(), "outer").error is None
    async with registry(plugins, validation={"manifests": {"judge": {"says": "careful"}, "mode": "warn"}}) as handler:
        assert plugin.opened == ["careful"]
        assert await push(handler, "a") == ("careful",)
    environ = {"REGISTRY_VALIDATION_MANIFESTS_JUDGE_SAYS": "yet", "REGISTRY_VALIDATION_MANIFESTS_NOTHING_SAYS": "no"}
    loaded = load_configuration(
        None, environ, overrides={"storage": {"inmemory": None}}, claimed=claimed_sections(plugins)
    )
    assert loaded.configuration.section("validation.manifests") == {"judge": {"says": "yet"}}
    assert loaded.warnings == ("REGISTRY_VALIDATION_MANIFESTS_NOTHING_SAYS: names no setting; ignored",)

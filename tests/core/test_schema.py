"""The schema for editors: it knows what the installed plugins read, and allows what a start would take."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import yaml
from jsonschema import Draft202012Validator

from moorage import (
    AuthenticatorFactory,
    ConfigurationError,
    DriverFactory,
    Glob,
    MiddlewareFactory,
    PluginManager,
    Rule,
    StorageMiddlewareFactory,
    check_options,
    claimed_sections,
    configuration_schema,
    hookimpl,
    load_configuration,
    offered_sections,
)


class Tape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    label: str
    reels: int = 1


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    most: int = 0
    names: tuple[Glob, ...] = ()


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    most: int = 0
    inner: dict[str, object] = {}


@asynccontextmanager
async def open_nothing(*_: object) -> AsyncGenerator[None]:
    yield


def offers() -> SimpleNamespace:
    """Return a plugin that offers something of each kind; nothing of it is ever opened."""
    given: dict[str, Mapping[str, object]] = {
        "register_drivers": {"tape": DriverFactory(Tape, open_nothing)},  # type: ignore[arg-type] # opens no driver
        "register_storage_middleware": {"count": StorageMiddlewareFactory(Limits, open_nothing)},  # type: ignore[arg-type] # same
        "register_authenticators": {"badge": AuthenticatorFactory(Limits, open_nothing)},  # type: ignore[arg-type] # same
        "register_middleware": {
            "slow": MiddlewareFactory(Limits, open_nothing),  # type: ignore[arg-type] # same
            "readonly": MiddlewareFactory(Limits, open_nothing, section="storage.maintenance.readonly"),  # type: ignore[arg-type] # same
        },
        "register_rules": {
            "few": Rule(Limits, open_nothing),
            "layers": Rule(Limits, open_nothing, section="validation.manifests.layers"),
            "own": Rule(Limits, open_nothing, section="house.rules"),
            "inner": Rule(Limits, open_nothing, section="validation.manifests.outer.inner"),
            "outer": Rule(Outer, open_nothing, section="validation.manifests.outer"),
        },
    }
    return SimpleNamespace(**{hook: hookimpl(lambda offered=offered: offered) for hook, offered in given.items()})


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    manager = PluginManager()
    assert manager.register(offers(), "offers").error is None
    return manager


BAD = [
    "storage: {tape: {label: a, reel: 2}}",
    "storage: {tape: {label: a, reels: many}}",
    "storage: {tape: {reels: 2}}",
    "storage: {tape: }",
    "storage: {tapes: {label: a}}",
    "storage: {tape: {label: a}, maintenance: {readonly: {enabled: true}}}",
    "auth: {badge: {must: 1}}",
    "auth: {badges: {most: 1}}",
    "middleware: {storage: [{name: count, options: {must: 1}}]}",
    "middleware: {storage: [{name: count, option: {most: 1}}]}",
    "plugins: {slow: {must: 1}}",
    "plugins: {slower: {most: 1}}",
    "plugins: {few: {rule: []}}",
    "plugins: {few: {mode: enforced}}",
    "plugins: {few: {repositories: [1, {}]}}",
    "plugins: {few: {rules: [{must: 1}]}}",
    "plugins: {few: {rules: [{rules: []}]}}",
    "plugins: {few: {names: [{}]}}",
    "plugins: {blocked: [a]}",
    "validation: {manifests: {layers: {must: 1}}}",
    "validation: {manifests: {outer: {most: 1, inner: {must: 2}}}}",
    "validation: {manifests: {outer: {must: 1, inner: {most: 2}}}}",
    "house: {rules: {must: 1}}",
    "house: {rules: {most: 1, mode: softly}}",
    "houses: {rules: {most: 1}}",
]
GOOD = [
    "storage: {tape: {label: a, reels: 2}}",
    "storage: {tape: {label: a}, maintenance: {readonly: {most: 1}}}",
    "auth: {badge: {most: 1}}",
    "auth: {badge: }",
    "auth: badge",
    "auth: none",
    "middleware: {storage: [{name: count, options: {most: 1}}, {name: count}]}",
    "middleware: {storage: [{name: count, options: {must: 1}, disabled: true}]}",
    "plugins: {slow: {most: 1}, few: , block: [a], require: [offers]}",
    "plugins: {few: {most: 1, mode: warn, repositories: [a/*], rules: [{most: 2, mode: enforce, repositories: [b]}]}}",
    "plugins: {few: {names: ['*']}}",
    "validation: {manifests: {layers: {most: 1, mode: warn}}}",
    "validation: {manifests: {outer: {most: 1, mode: warn, inner: {most: 2, mode: warn}}}}",
    "house: {rules: {most: 1, rules: [{most: 2}]}}",
]


@pytest.mark.parametrize(("text", "good"), [*((text, True) for text in GOOD), *((text, False) for text in BAD)])
def test_options_of_plugins_are_described_as_they_are_read(
    text: str, plugins: PluginManager, tmp_path: Path, *, good: bool
) -> None:
    document = {"version": 0.1, "storage": {"tape": {"label": "a"}}} | yaml.safe_load(text)
    schema = configuration_schema(offered_sections(plugins))
    Draft202012Validator.check_schema(schema)
    allowed: bool = Draft202012Validator(schema).is_valid(document)  # pyright: ignore[reportUnknownMemberType]  # its stubs
    assert allowed is good
    # What a start says of it.
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump(document))
    try:
        loaded = load_configuration(file, {}, claimed=claimed_sections(plugins))
        check_options(loaded.configuration, plugins)
    except ConfigurationError:
        taken = False
    else:
        taken = True
    assert taken is good


def test_without_plugins_their_options_are_free() -> None:
    validator = Draft202012Validator(configuration_schema())
    for text in ("storage: {tape: {any: 1}}", "plugins: {few: {any: 1}}", "auth: {badge: {any: 1}}"):
        document = {"version": 0.1, "storage": {"inmemory": {}}} | yaml.safe_load(text)
        assert validator.is_valid(document), text  # pyright: ignore[reportUnknownMemberType]  # its stubs

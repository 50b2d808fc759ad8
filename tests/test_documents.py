"""The documents say what the code does: each hook, setting and error in them is the one in the code."""

import inspect
import io
import logging
import re
import subprocess
import sys
import types
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

import click
import jsonschema
import msgspec
import pluggy
import pytest
import yaml
from click.testing import CliRunner

import moorage
from asgi_client import AsgiClient
from content import descriptor, image, index, pull, push_blob, push_manifest
from moorage import (
    OCI_INDEX,
    Condition,
    DeleteTag,
    Denied,
    Digest,
    InternalError,
    ManifestBlobUnknown,
    ManifestPushed,
    MemoryDriver,
    NoOptions,
    OpenedRegistry,
    Ping,
    PluginManager,
    Refused,
    RegistryError,
    RepositoryName,
    Tag,
    check_options,
    claimed_sections,
    configuration_schema,
    load_configuration,
    offered_sections,
    open_registry,
)
from moorage_app import hooks as app_hooks
from moorage_app.asgi import Application
from moorage_app.worker import application_settings, plugin_routes
from moorage_conformance.plugin_kit import Subject, assert_plugin
from opening import installed, loaded

TOP = Path(__file__).parent.parent
PLUGINS = (TOP / "plugins.md").read_text(encoding="utf-8")


class Printed(msgspec.Struct, frozen=True):
    """An example of the plugin page, and the configuration that is printed below it."""

    code: str
    settings: str


def _examples() -> list[Printed]:
    found = re.findall(r"```python\n(.*?)```(.*?)(?=^#|```python|\Z)", PLUGINS, re.DOTALL | re.MULTILINE)
    return [Printed(code, "".join(re.findall(r"```yaml\n(.*?)```", after, re.DOTALL))) for code, after in found]


def _specifications() -> dict[str, types.FunctionType]:
    manager = pluggy.PluginManager("moorage")
    found: dict[str, types.FunctionType] = {}
    for module in (inspect.getmodule(moorage.DriverFactory), app_hooks):
        assert module is not None
        manager.add_hookspecs(module)
        for name in vars(manager.hook):
            function = getattr(module, name, None)
            if isinstance(function, types.FunctionType):
                found[name] = function
    return found


def test_there_are_specifications_to_document() -> None:
    assert set(_specifications()) >= {
        "register_drivers",
        "validate_manifest",
        "operation_finished",
        "register_commands",
    }


@pytest.mark.parametrize("name", sorted(_specifications()))
def test_every_hook_has_a_heading_with_its_arguments(name: str) -> None:
    arguments = ", ".join(inspect.signature(_specifications()[name]).parameters)
    assert f"#### `{name}({arguments}) -> " in PLUGINS


def test_no_heading_names_a_hook_that_does_not_exist() -> None:
    documented = re.findall(r"^#### `(\w+)\(", PLUGINS, re.MULTILINE)
    assert sorted(documented) == sorted(_specifications())


class Used(msgspec.Struct, frozen=True):
    """An example that is a plugin of an open registry."""

    plugins: PluginManager
    registry: OpenedRegistry

    @property
    def client(self) -> AsgiClient:
        """Who asks the registry over HTTP."""
        routes = plugin_routes(self.plugins)
        return AsgiClient(Application(self.registry.handler, application_settings(loaded("").configuration), routes))

    async def push(self, repository: str, tag: str = "v1", **fields: object) -> ManifestPushed:
        """Push an index of nothing."""
        name = RepositoryName(repository)
        data = index(**fields)
        return await push_manifest(self.registry.handler, data, tag, repository=name, media_type=OCI_INDEX)


async def _the_driver_stores(used: Used) -> None:
    assert used.registry.driver.name == "for tests"
    pushed = await used.push("team/app")
    assert (await pull(used.registry.handler, "v1", RepositoryName("team/app"))).digest == pushed.descriptor.digest


class _Noting(MemoryDriver):
    durable: bool | None = None

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        self.durable = durable
        await super().write(key, chunks, condition=condition, durable=durable)


async def _the_driver_around_the_driver_passes_on(used: Used) -> None:
    await used.push("team/app")
    assert await used.registry.driver.read(next(iter((await used.registry.driver.list("")).entries)).key, limit=10**6)
    inner = _Noting()
    async with used.plugins.storage_middleware()["unsynced"].open(NoOptions(), inner) as around:
        await around.write("a", b"content")
    assert (inner.durable, await inner.read("a", limit=100)) == (False, b"content")


async def _the_middleware_answers(used: Used) -> None:
    for repository in ("release/app", "team/app"):
        await used.push(repository)
    with pytest.raises(Denied, match="releases stay"):
        await used.registry.handler(DeleteTag(repository=RepositoryName("release/app"), tag=Tag("v1")))
    await used.registry.handler(DeleteTag(repository=RepositoryName("team/app"), tag=Tag("v1")))
    answer = await used.client.ask("DELETE", "/v2/release/app/manifests/v1")
    assert (answer.status, answer.codes) == (403, ["DENIED"])


async def _the_rule_judges(used: Used) -> None:
    await used.push("release/app", "v1.2")
    await used.push("team/app", "latest")
    with pytest.raises(Refused, match="latest is no name for a tag here") as refused:
        await used.push("release/app", "latest")
    assert (refused.value.status, refused.value.detail) == (400, {"rule": "tag_names", "tag": "latest"})


async def _the_authenticator_knows_who_asks(used: Used) -> None:
    asked = await used.client.ask("GET", "/v2/")
    assert (asked.status, asked.header("WWW-Authenticate")) == (401, 'Bearer realm="registry"')
    for token, status in (("a-long-random-text", 200), ("a guess", 401)):
        assert (await used.client.ask("GET", "/v2/", [("Authorization", f"Bearer {token}")])).status == status


async def _the_manifest_is_judged(used: Used) -> None:
    said: object = None
    try:
        said = (await used.push("prod/app")).warnings
    except Refused as error:
        said = error.detail
    assert said in (
        {"rule": "example", "annotation": "org.opencontainers.image.source"},
        ("says nothing about itself",),
    )
    assert (await used.push("prod/app", annotations={"org.opencontainers.image.source": "here"})).warnings == ()


async def _what_is_missing_is_judged(used: Used) -> None:
    config = await push_blob(used.registry.handler, b"{}")
    away = descriptor(Digest.of(b"far"), media_type="application/vnd.oci.image.layer.nondistributable.v1.tar")
    await push_manifest(used.registry.handler, image(config, layers=[away]))
    with pytest.raises(ManifestBlobUnknown):
        await push_manifest(used.registry.handler, image(config, Digest.of(b"far")))


async def _the_observer_sees(used: Used) -> None:
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("house").addHandler(handler)
    try:
        await used.registry.handler(Ping())
        assert not said.getvalue()
        used.plugins.operation_finished(Ping(), None, InternalError("a fault"), 1.5)
    finally:
        logging.getLogger("house").removeHandler(handler)
    assert said.getvalue() == "Ping after 1.5 s: a fault\n"


async def _the_route_answers(used: Used) -> None:
    answer = await used.client.ask("GET", "/motto")
    assert (answer.status, answer.body) == (200, b"a place for ships\n")


async def _the_command_runs(used: Used) -> None:
    offered = cast("list[list[click.Command]]", used.plugins.call("register_commands"))  # as the hook says
    (command,) = [each for commands in offered for each in commands if each.name == "ahoy"]
    assert CliRunner().invoke(command, ["Ann"]).output == "ahoy, Ann\n"


USES: Mapping[str, Callable[[Used], Awaitable[None]]] = {
    "register_drivers": _the_driver_stores,
    "register_storage_middleware": _the_driver_around_the_driver_passes_on,
    "register_middleware": _the_middleware_answers,
    "register_rules": _the_rule_judges,
    "register_authenticators": _the_authenticator_knows_who_asks,
    "validate_manifest": _the_manifest_is_judged,
    "requires_reference": _what_is_missing_is_judged,
    "operation_finished": _the_observer_sees,
    "register_routes": _the_route_answers,
    "register_commands": _the_command_runs,
}


def test_there_is_an_example_of_each_hook() -> None:
    assert set(USES) == set(_specifications())
    for name in USES:
        assert any(f"def {name}(" in example.code for example in _examples())


@pytest.mark.parametrize("at", range(len(_examples())))
async def test_every_example_in_the_plugin_page_works_as_printed(at: int) -> None:
    example = _examples()[at]
    module = types.ModuleType(f"example_{at}")
    exec(compile(example.code, f"plugins.md, example {at}", "exec"), vars(module))
    plugins = PluginManager(app_hooks)
    # It does what the example on its hook does.
    plugins.load_entry_points(block=["nondistributable"])
    record = plugins.register(module, "example")
    assert record.error is None
    assert record.hooks
    async with open_registry(loaded(example.settings, plugins).configuration, plugins) as registry:
        for hook in record.hooks:
            await USES[hook](Used(plugins, registry))


@pytest.mark.parametrize("at", range(len(_examples())))
def test_every_example_in_the_plugin_page_keeps_the_contract(at: int, tmp_path: Path) -> None:
    example = _examples()[at]
    file = tmp_path / f"example_{at}.py"
    file.write_text(example.code, encoding="utf-8")
    settings = tmp_path / "config.yml"
    sections = cast("dict[str, object] | None", yaml.safe_load(example.settings)) or {}  # as printed
    settings.write_text(yaml.safe_dump({"version": 0.1, "storage": "inmemory"} | sections), encoding="utf-8")
    assert_plugin(Subject(str(file), configuration=settings))


def test_the_project_in_the_plugin_page_is_one(tmp_path: Path) -> None:
    (project,) = re.findall(r"```toml\n(.*?)```", PLUGINS, re.DOTALL)
    (tmp_path / "pyproject.toml").write_text(project, encoding="utf-8")
    (tmp_path / "house_rules.py").write_text(_examples()[0].code, encoding="utf-8")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    sys.path.insert(0, str(wheel))
    try:
        (found,) = [point for point in entry_points(group="moorage.plugins") if point.name == "house_rules"]
        plugins = PluginManager()
        plugins.load_entry_points([found])
    finally:
        sys.path.remove(str(wheel))
        sys.modules.pop("house_rules", None)
    (record,) = plugins.records
    assert (record.error, record.distribution, record.hooks) == (None, "moorage-house-rules", ("validate_manifest",))


def test_every_setting_in_the_configuration_page_is_one_that_a_configuration_takes() -> None:
    text = (TOP / "docs/configuration.md").read_text(encoding="utf-8")
    table = text.partition("## Settings with an effect")[2]
    keys = re.findall(r"^\| `([a-z.<>…]+)` \|", table, re.MULTILINE)
    assert len(keys) >= 30
    for key in keys:
        path = key.replace("….uploadpurging", "storage.maintenance.uploadpurging").replace("<name>", "anything")
        document: object = None
        for part in reversed(path.split(".")):
            document = {part: document}
        unknown = [error.message for error in _errors(document) if error.validator == "additionalProperties"]
        assert unknown == [], key


def _errors(document: object) -> list[jsonschema.ValidationError]:
    validator = jsonschema.Draft202012Validator(configuration_schema())
    return list(validator.iter_errors(document))  # pyright: ignore[reportUnknownMemberType, reportArgumentType] - stubs


def test_every_yaml_in_the_readme_is_a_configuration() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (TOP / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        assert _errors(yaml.safe_load(block)) == []


def _rule_examples() -> list[str]:
    texts = [(TOP / page).read_text(encoding="utf-8") for page in ("docs/rules.md", "docs/access.md")]
    return re.findall(r"```yaml\n(.*?)```", "".join(texts), re.DOTALL)


def test_there_are_examples_of_rules() -> None:
    assert len(_rule_examples()) >= 2


@pytest.mark.parametrize("at", range(len(_rule_examples())))
def test_every_example_of_a_rule_is_a_configuration_that_is_in_effect(at: int) -> None:
    assert loaded(_rule_examples()[at]).warnings == ()


AUTHENTICATION = (TOP / "docs/authentication.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", AUTHENTICATION, re.DOTALL))
def test_every_example_of_authentication_is_a_configuration_that_is_in_effect(text: str) -> None:
    assert loaded(text).warnings == ()


def _for_operators() -> list[str]:
    texts = [(TOP / page).read_text(encoding="utf-8") for page in ("docs/security.md", "docs/deployment.md")]
    return re.findall(r"```yaml\n(version: .*?)```", "".join(texts), re.DOTALL)


@pytest.mark.parametrize("at", range(len(_for_operators())))
def test_every_configuration_for_operators_is_in_effect(at: int, tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(_for_operators()[at], encoding="utf-8")
    plugins = installed()
    found = load_configuration(file, {}, claimed=claimed_sections(plugins))
    assert (found.warnings, check_options(found.configuration, plugins)) == ((), ())


def test_every_option_of_an_authenticator_is_in_its_table() -> None:
    offered = offered_sections(installed())
    names = [name.removeprefix("auth.") for name in offered if name.startswith("auth.")]
    assert sorted(names) == sorted(re.findall(r"^\| \[`(\w+)`\]", AUTHENTICATION, re.MULTILINE))
    for name in names:
        (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", AUTHENTICATION, re.DOTALL | re.MULTILINE)
        written = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) or re.findall(r"\w+", section.partition("}")[0])
        if name != "anonymous":
            assert sorted(written) == sorted(offered[f"auth.{name}"].__struct_encode_fields__), name


def _error_classes(base: type[RegistryError]) -> list[type[RegistryError]]:
    return [each for child in base.__subclasses__() for each in (child, *_error_classes(child))]


def test_the_tree_of_errors_in_the_docstring_is_the_one_in_the_code() -> None:
    module = inspect.getmodule(RegistryError)
    assert module is not None
    drawn = dict(re.findall(r"[├└]── (\w+) +(\d{3} [A-Z_]+)", module.__doc__ or ""))
    own = [each for each in _error_classes(RegistryError) if each.__module__ == module.__name__]
    real = {each.__name__: f"{each.status} {each.code}" for each in own}
    # A rule chooses the status of its refusal, so the tree does not give one.
    del real["Refused"]
    assert drawn == real

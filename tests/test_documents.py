"""The documents say what the code does: each hook, setting and error in them is the one in the code."""

import inspect
import re
import types
from pathlib import Path

import jsonschema
import pluggy
import pytest
import yaml

import moorage
from moorage import PluginManager, RegistryError, configuration_schema
from moorage_app import hooks as app_hooks
from opening import loaded

TOP = Path(__file__).parent.parent
PLUGINS = (TOP / "plugins.md").read_text(encoding="utf-8")


def _examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PLUGINS, re.DOTALL)


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


@pytest.mark.parametrize("at", range(len(_examples())))
def test_every_example_in_the_plugin_page_is_taken_into_use(at: int) -> None:
    module = types.ModuleType(f"example_{at}")
    exec(compile(_examples()[at], f"plugins.md, example {at}", "exec"), vars(module))
    record = PluginManager(app_hooks).register(module, "example")
    assert record.error is None
    assert record.hooks


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
    text = (TOP / "docs/rules.md").read_text(encoding="utf-8")
    return re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)


def test_there_are_examples_of_rules() -> None:
    assert len(_rule_examples()) >= 2


@pytest.mark.parametrize("at", range(len(_rule_examples())))
def test_every_example_of_a_rule_is_a_configuration_that_is_in_effect(at: int) -> None:
    assert loaded(_rule_examples()[at]).warnings == ()


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

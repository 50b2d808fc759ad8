import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import moorage

PYRIGHT = Path(sys.executable).with_name("pyright")


def exposed() -> set[str]:
    """What the root has, but for its own modules and what every module has."""
    return {
        name
        for name, value in vars(moorage).items()
        if not name.startswith("__") and not isinstance(value, types.ModuleType)
    }


def test_all_is_sorted_and_complete() -> None:
    assert sorted(moorage.__all__, key=order) == moorage.__all__
    assert len(set(moorage.__all__)) == len(moorage.__all__)
    assert set(moorage.__all__) == exposed()


def order(name: str) -> tuple[int, str]:
    """Constants first, then classes, then functions, as ruff sorts them."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def test_every_module_below_the_root_is_private() -> None:
    modules = {name for name, value in vars(moorage).items() if isinstance(value, types.ModuleType)}
    assert all(name.startswith("_") for name in modules)


@pytest.mark.parametrize("name", moorage.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value: object = getattr(moorage, name)
    if not isinstance(value, type | types.FunctionType):
        # Constants and aliases are documented where they stand, if at all; there is nothing to ask them.
        return
    assert value.__doc__
    assert value.__doc__.splitlines()[0].rstrip().endswith((".", ":"))
    if isinstance(value, type):
        for member, implementation in vars(value).items():
            if isinstance(implementation, types.FunctionType | property) and not member.startswith("_"):
                inherited = [getattr(base, member, None) for base in value.__mro__]
                assert any(getattr(each, "__doc__", None) for each in inherited), f"{name}.{member}"


def test_every_public_name_says_what_module_it_is_used_from() -> None:
    for name in moorage.__all__:
        module = getattr(getattr(moorage, name), "__module__", "moorage")
        assert module.partition(".")[0] in {"moorage", "typing", "types", "pluggy", "builtins"}, name


@pytest.mark.skipif(not PYRIGHT.exists(), reason="not tested: pyright is not installed")
def test_every_public_name_is_typed() -> None:
    command = [str(PYRIGHT), "--verifytypes", "moorage", "--ignoreexternal", "--outputjson"]
    # It asks the first `python` on the path where modules lie.
    environment = os.environ | {"PATH": f"{PYRIGHT.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    report = json.loads(done.stdout)["typeCompleteness"]
    incomplete = [
        (symbol["name"], [each["message"] for each in symbol["diagnostics"]])
        for symbol in report["symbols"]
        if symbol["isExported"] and not symbol["isTypeKnown"]
    ]
    assert incomplete == []
    assert sum(symbol["isExported"] for symbol in report["symbols"]) > 100
    assert report["completenessScore"] == 1

"""The hooks as plugins know them: a change here is a change of `HOOK_API`."""

import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import cast

import msgspec
import pytest

from moorage import (
    HOOK_API,
    AuthenticatorFactory,
    DriverFactory,
    MiddlewareFactory,
    Rule,
    StorageMiddlewareFactory,
    _hooks,
)
from moorage_app import hooks as app_hooks

KNOWN_VERSION = (1, 4)
"""For which the tables below hold. What takes something away from plugins needs a new first number, what gives them more a
new second one."""

SIGNATURES = {
    "register_authenticators": "() -> Mapping[str, AuthenticatorFactory[Struct]]",
    "register_commands": "() -> Sequence[Command]",
    "register_drivers": "() -> Mapping[str, DriverFactory[Struct]]",
    "register_middleware": "() -> Mapping[str, MiddlewareFactory[Struct]]",
    "register_routes": "() -> Mapping[str, Callable]",
    "register_rules": "() -> Mapping[str, Rule[Struct]]",
    "register_storage_middleware": "() -> Mapping[str, StorageMiddlewareFactory[Struct]]",
    "operation_finished": "(operation: Operation[object], reply: object, error: RegistryError | None, seconds: float) -> None",
    "requires_reference": "(push: PushManifest, manifest: Manifest, descriptor: Descriptor, registry: Handler) -> bool | None",
    "validate_manifest": "(push: PushManifest, manifest: Manifest, registry: Handler) -> Sequence[str] | None",
}
FIELDS: dict[type[msgspec.Struct], tuple[str, ...]] = {
    AuthenticatorFactory: ("options", "open"),
    DriverFactory: ("options", "open", "shared", "open_to_look"),
    MiddlewareFactory: ("options", "open", "section", "always", "place", "open_with_store"),
    Rule: ("options", "open", "section", "always", "when_disabled"),
    StorageMiddlewareFactory: ("options", "open", "section", "beside", "for_serving"),
}


def specified(module: ModuleType) -> dict[str, str]:
    """Return the signatures of the hooks that `module` specifies, without the names of modules."""
    found: dict[str, str] = {}
    for name, value in vars(module).items():
        if inspect.isfunction(value) and hasattr(value, "moorage_spec"):
            text = str(inspect.signature(cast("Callable[..., object]", value)))
            # What a route is called with is ASGI's, not ours.
            found[name] = re.sub(r"Callable\[.*\](?=\]$)", "Callable", re.sub(r"\b\w+\.(?=\w)", "", text))
    return found


def test_hooks_are_those_of_their_version() -> None:
    assert HOOK_API == KNOWN_VERSION
    assert specified(_hooks) | specified(app_hooks) == SIGNATURES


@pytest.mark.parametrize("factory", FIELDS, ids=lambda factory: cast("type", factory).__name__)
def test_what_plugins_register_is_that_of_its_version(factory: type[msgspec.Struct]) -> None:
    assert HOOK_API == KNOWN_VERSION
    assert factory.__struct_fields__ == FIELDS[factory]

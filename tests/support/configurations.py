"""Registries as configurations open them, with every installed plugin, inside the process of a test."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import pytest

from moorage import (
    ConfigurationError,
    Handler,
    PluginManager,
    check_options,
    claimed_sections,
    load_configuration,
    open_registry,
)

IN_MEMORY: Mapping[str, object] = {"inmemory": None, "delete": {"enabled": True}}


def installed() -> PluginManager:
    """Return the plugins that are installed."""
    plugins = PluginManager()
    plugins.load_entry_points()
    return plugins


@asynccontextmanager
async def configured_registry(
    rules: Mapping[str, object],
    *,
    storage: Mapping[str, object] = IN_MEMORY,
    plugins: PluginManager | None = None,
) -> AsyncGenerator[Handler]:
    """Open a registry with `rules` below `plugins:`."""
    plugins = plugins or installed()
    overrides: dict[str, object] = {"storage": storage, "plugins": rules}
    loaded = load_configuration(None, {}, overrides=overrides, claimed=claimed_sections(plugins))
    assert loaded.warnings == ()
    async with open_registry(loaded.configuration, plugins) as opened:
        yield opened.handler


def what_is_wrong(rules: Mapping[str, object]) -> str:
    """Return the one sentence that is said of `rules`, in which something is wrong."""
    plugins = installed()
    overrides: dict[str, object] = {"storage": IN_MEMORY, "plugins": rules}
    loaded = load_configuration(None, {}, overrides=overrides, claimed=claimed_sections(plugins))
    with pytest.raises(ConfigurationError) as error:
        check_options(loaded.configuration, plugins)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence

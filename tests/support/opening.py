"""A registry in memory as a configuration opens it, with every plugin that is installed."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import cast

import yaml

from moorage import (
    Handler,
    LoadedConfiguration,
    PluginManager,
    check_options,
    claimed_sections,
    load_configuration,
    open_registry,
)

IN_MEMORY: Mapping[str, object] = {"storage": {"inmemory": None, "delete": {"enabled": True}}}


def installed() -> PluginManager:
    """Return all plugins that are installed, each of them in use."""
    plugins = PluginManager()
    plugins.load_entry_points()
    assert [record for record in plugins.records if record.error] == []
    return plugins


def loaded(
    text: str, plugins: PluginManager | None = None, environ: Mapping[str, str] | None = None
) -> LoadedConfiguration:
    """Return the configuration that has the sections of `text`, which is YAML, checked with its plugins."""
    plugins = plugins or installed()
    sections = cast("dict[str, object] | None", yaml.safe_load(text)) or {}  # a mapping, in these tests
    claimed = claimed_sections(plugins)
    found = load_configuration(None, environ or {}, overrides={**IN_MEMORY, **sections}, claimed=claimed)
    check_options(found.configuration, plugins)
    return found


@asynccontextmanager
async def opened(text: str = "") -> AsyncGenerator[Handler]:
    """Open a registry with the sections of `text`; nothing in it may be without effect."""
    plugins = installed()
    found = loaded(text, plugins)
    assert found.warnings == ()
    async with open_registry(found.configuration, plugins) as registry:
        yield registry.handler

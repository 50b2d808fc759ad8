"""The plugin that is checked, taken into use as the registry does, and what it offers with the options it is given."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import msgspec

from moorage import (
    Configuration,
    ConfigurationError,
    PluginError,
    PluginManager,
    PluginRecord,
    Plugins,
    Scopes,
    claimed_sections,
    decode_options,
    load_configuration,
    scoped,
)
from moorage_app import hooks as app_hooks
from moorage_conformance.finding import NoSuchPlugin, find_plugin

from .case import Trial

DECISIONS = ("validate_manifest", "requires_reference")


class CannotCheck(Exception):
    """The run cannot begin; one sentence."""


class Subject(msgspec.Struct, frozen=True):
    """The plugin that is checked, and the options of what it offers.

    Attributes:
        target: an installed plugin's name, a module, or a file that ends in `.py`.
        options: by the names that the plugin registers.
        configuration: a configuration file to take options from; `options` stand above it.
    """

    target: str
    options: Mapping[str, Mapping[str, object]] = {}
    configuration: Path | None = None


class Offer(msgspec.Struct, frozen=True):
    """A name that the plugin registers, the factory behind it, and what was written as its options (None: nothing)."""

    hook: str
    name: str
    section: str
    factory: msgspec.Struct
    written: Mapping[str, object] | None

    @property
    def declared(self) -> type[msgspec.Struct]:
        """The type of its options as its author wrote it."""
        return cast("type[msgspec.Struct]", getattr(self.factory, "options", None))  # every factory has one

    @property
    def options(self) -> type[msgspec.Struct]:
        """The type into which its options are decoded; a rule's has keys of the registry beside its own."""
        return scoped(self.declared) if self.hook == "register_rules" else self.declared

    def decoded(self) -> msgspec.Struct:
        """Return its options.

        Raises:
            ConfigurationError: they cannot be made of what was written.
        """
        return decode_options(self.options, self.written or {}, source=self.section)

    @property
    def advice(self) -> str:
        """How options are given to it."""
        return f"give --option {self.name}.KEY=VALUE or --config FILE with {self.section}"


class Loaded:
    """A plugin that was imported."""

    def __init__(self, subject: Subject, name: str, plugin: object, *, installed: bool) -> None:
        """Take `plugin` into use under `name`, alone."""
        self.subject = subject
        self.name = name
        self.plugin = plugin
        self.installed = installed
        self.manager = PluginManager(app_hooks)
        """The plugin alone."""
        self.record: PluginRecord = self.manager.register(plugin, name)
        self._configuration = self._read_configuration()

    def beside_others(self) -> PluginManager:
        """Return the plugin beside everything that is installed."""
        manager = PluginManager(app_hooks)
        manager.load_entry_points()
        if not self.installed:
            manager.register(self.plugin, self.name)
        return manager

    def asked_again(self) -> "Loaded":
        """Return the plugin, taken into use anew."""
        return Loaded(self.subject, self.name, self.plugin, installed=self.installed)

    def offers(self) -> list[Offer]:
        """Return all that it registers."""
        offered: dict[str, Mapping[str, msgspec.Struct]] = {
            "register_drivers": self.manager.drivers(),
            "register_storage_middleware": self.manager.storage_middleware(),
            "register_middleware": self.manager.middleware(),
            "register_rules": self.manager.rules(),
            "register_authenticators": self.manager.authenticators(),
        }
        return [self._offer(hook, name, each) for hook, found in offered.items() for name, each in found.items()]

    def _offer(self, hook: str, name: str, factory: msgspec.Struct) -> Offer:
        sections = {
            "register_drivers": f"storage.{name}",
            "register_authenticators": f"auth.{name}",
            "register_storage_middleware": f"middleware.storage.{name}",
        }
        section = sections.get(hook) or cast("str | None", getattr(factory, "section", None)) or f"plugins.{name}"
        written = self.subject.options.get(name)
        if self._configuration is not None:
            found = self._configured(hook, name, section, self._configuration)
            if isinstance(found, Mapping):
                written = {**cast("Mapping[str, object]", found), **(written or {})}  # read from YAML
        return Offer(hook, name, section, factory, written)

    @staticmethod
    def _configured(hook: str, name: str, section: str, configuration: Configuration) -> object:
        if hook != "register_storage_middleware":
            return configuration.section(section)
        for at, entry in enumerate(configuration.middleware.storage):
            if entry.name == name:
                return configuration.document.find(("middleware", "storage", at, "options"))
        return None

    def _read_configuration(self) -> Configuration | None:
        path = self.subject.configuration
        if path is None:
            return None
        manager = self.beside_others()
        try:
            manager.load(Plugins())
            return load_configuration(path, {}, claimed=claimed_sections(manager)).configuration
        except (ConfigurationError, PluginError) as error:
            raise CannotCheck(f"{error}.") from error

    def trials(self, offer: Offer, patience: float) -> list[Trial[msgspec.Struct]]:
        """Return what there is to try of an offer: a rule once for each entry of its options, all else once.

        Raises:
            ConfigurationError: its options cannot be made of what was written.
        """
        options = offer.decoded()
        if offer.hook != "register_rules":
            return [Trial(offer.name, offer.factory, options, patience)]
        scopes = Scopes(options)
        return [
            Trial(
                offer.name if each.position == scopes.listed else f"{offer.name}.rules[{each.position}]",
                offer.factory,
                each.options,
                patience,
            )
            for each in scopes.entries
        ]


def load(subject: Subject) -> Loaded:
    """Import the plugin.

    Raises:
        CannotCheck: it is not there, or cannot be imported.
    """
    try:
        found = find_plugin(subject.target)
    except NoSuchPlugin as error:
        raise CannotCheck(str(error)) from error
    # Whatever the code of others does when imported.
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise CannotCheck(f"{subject.target} cannot be imported: {said}.") from error
    loaded = Loaded(subject, found.name, found.plugin, installed=found.installed)
    if loaded.record.error is None:
        names = {offer.name for offer in loaded.offers()}
        for name in subject.options:
            if name not in names:
                offered = ", ".join(sorted(names)) or "nothing with options"
                raise CannotCheck(f"{subject.target} registers no {name!r}; it registers {offered}.")
    return loaded

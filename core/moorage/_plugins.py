"""Finding plugins, knowing what became of each, and calling their hooks.

pluggy keeps the plugins, checks their signatures and orders them. Two things it does not do are done here: one plugin
that cannot be loaded does not keep others from loading, and decision hooks are awaited. (pluggy would take the first
coroutine for the first answer, and its wrappers see coroutines, not results; so wrappers on decisions are refused.)
"""

import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import cast

import msgspec
import pluggy

from . import _hooks as hooks  # pyright: ignore[reportPrivateUsage] - the module itself holds the specifications
from ._calls import HookCalls
from ._configuration import Plugins
from ._decisions import Requirement
from ._errors import RegistryError
from ._hooks import (
    ENTRY_POINT_GROUP,
    HOOK_API,
    PROJECT,
    AuthenticatorFactory,
    DriverFactory,
    MiddlewareFactory,
    Rule,
    StorageMiddlewareFactory,
)
from ._judging import Judging, RuleEntry
from ._manifests import Descriptor, Manifest
from ._operations import Handler, Operation, PushManifest
from ._plugin_files import PluginFileError, load_plugin_file, plugin_files
from ._rules import scoped
from ._yaml import ConfigurationError

_log = logging.getLogger("moorage.plugins")

API_ATTRIBUTE = "moorage_hook_api"
"""Where a plugin says for which version of the hooks it was made; one that does not is taken to be of today's."""

_DECISIONS = ("validate_manifest", "requires_reference")
_REGISTRATIONS = (
    "register_drivers",
    "register_storage_middleware",
    "register_authenticators",
    "register_middleware",
    "register_rules",
)
_FACTORIES: dict[str, type[msgspec.Struct]] = {
    "register_drivers": DriverFactory,
    "register_storage_middleware": StorageMiddlewareFactory,
    "register_authenticators": AuthenticatorFactory,
    "register_middleware": MiddlewareFactory,
    "register_rules": Rule,
}


class PluginError(Exception):
    """What a plugin offers cannot be used: two of one name, or not what its hook should return."""


class PluginRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one plugin.

    Attributes:
        name: its name among the plugins: the entry point's.
        distribution: the installed distribution that brings it; empty for one registered in the process.
        version: of that distribution.
        module: where it lies.
        hooks: which hooks it implements.
        registers: what it offers, by registration hook.
        error: why it is not in use; None if it is.
        blocked: whether that is because the configuration says so.
        api: the version of the hooks that it was made for, as far as it says so.
    """

    name: str
    distribution: str = ""
    version: str = ""
    module: str = ""
    hooks: tuple[str, ...] = ()
    registers: Mapping[str, tuple[str, ...]] = {}
    error: str | None = None
    blocked: bool = False
    api: str | None = None


class PluginManager:
    """The plugins of one process."""

    def __init__(self, *specifications: ModuleType, trace: bool | None = None) -> None:
        """Begin with no plugins; `specifications` are modules with further hookspecs, such as the app's.

        With `trace` each call of a hook is logged; by default, if the environment has `MOORAGE_TRACE_PLUGINS`.
        """
        self._specifications = (hooks, *specifications)
        self._pluggy = self._fresh()
        self._trial: pluggy.PluginManager | None = None
        self._records: dict[str, PluginRecord] = {}
        self._offers: dict[str, dict[str, dict[str, object]]] = {}
        self._calls = HookCalls(trace=trace)
        self.judging: Judging = Judging(self._implementations, self._calls)
        """What is asked about a push, and answered."""

    def _fresh(self) -> pluggy.PluginManager:
        manager = pluggy.PluginManager(PROJECT)
        for module in self._specifications:
            manager.add_hookspecs(module)
        return manager

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """What became of each plugin, by name."""
        return tuple(self._records[name] for name in sorted(self._records))

    def load(self, selection: Plugins) -> None:
        """Load what is installed and what lies in the folders of `selection`, but for what it blocks.

        Raises:
            ConfigurationError: a folder cannot be used.
        """
        self.load_entry_points(block=selection.block)
        for folder in selection.paths:
            try:
                for path in plugin_files(Path(folder)):
                    self._load_file(path, selection.block)
            except PluginFileError as error:
                raise ConfigurationError(f"plugins.paths: {error}") from None

    def load_entry_points(self, found: Iterable[EntryPoint] | None = None, *, block: Collection[str] = ()) -> None:
        """Load every installed plugin; one that fails is recorded and logged, and the others go on.

        What `block` names is not even imported.
        """
        points = entry_points(group=ENTRY_POINT_GROUP) if found is None else found
        # Many plugins come with one distribution, whose metadata is read from disk and parsed each time it is asked.
        origin = cache(_origin)
        for point in sorted(points, key=lambda point: point.name):
            distribution, version = origin(point.dist)
            record = PluginRecord(name=point.name, distribution=distribution, version=version, module=point.value)
            self._import(record, point.load, block)

    def _load_file(self, path: Path, block: Collection[str]) -> None:
        self._import(PluginRecord(name=path.stem, module=str(path)), partial(load_plugin_file, path), block)

    def _import(self, record: PluginRecord, load: Callable[[], object], block: Collection[str]) -> None:
        for name in (record.name, _told_apart(record)):
            if name in block:
                self._records[name] = msgspec.structs.replace(
                    record, name=name, error="blocked by the configuration", blocked=True
                )
                return
        if self._is_taken(record):
            return
        try:
            plugin = load()
        except PluginFileError:
            raise
        # Whatever the code of others does when imported, it is reported under its name.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._refuse(record, f"cannot be imported: {_say(error)}")
        else:
            self._register(plugin, record, None)

    def register(
        self,
        plugin: object,
        name: str,
        *,
        distribution: str = "",
        version: str = "",
        module: str = "",
        entry: RuleEntry | None = None,
    ) -> PluginRecord:
        """Take `plugin` into use under `name`; return what became of it.

        With `entry` its decisions hold where that entry of a rule's options is in force.
        """
        record = PluginRecord(name=name, distribution=distribution, version=version, module=module)
        return self._register(plugin, record, entry)

    def _register(self, plugin: object, record: PluginRecord, entry: RuleEntry | None) -> PluginRecord:
        if refused := self._is_taken(record):
            return refused
        name = record.name
        try:
            record = msgspec.structs.replace(record, api=_checked_api(plugin, record))
            hooks, offers = self._try(plugin, name)
        except (pluggy.PluginValidationError, PluginError) as error:
            return self._refuse(record, _say(error))
        # A registration hook of others may raise anything.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            return self._refuse(record, f"failed while registering: {_say(error)}")
        registers = {hook: tuple(sorted(offered)) for hook, offered in offers.items()}
        contested = self._contested(registers)
        self._pluggy.register(plugin, name=name)
        self._offers[name] = offers
        if entry is not None:
            self.judging.entries[name] = entry
        record = msgspec.structs.replace(record, hooks=hooks, registers=registers, error=contested)
        self._records[name] = record
        return record

    def _is_taken(self, record: PluginRecord) -> PluginRecord | None:
        """Refuse a plugin whose name another one has; return what became of it, None if nobody has it."""
        other = self._records.get(record.name)
        if other is None:
            return None
        reason = f"a plugin of this name is already there, from {other.distribution or other.module}"
        # Recorded under a name of its own, so that both are seen.
        return self._refuse(msgspec.structs.replace(record, name=_told_apart(record)), reason)

    def _contested(self, registers: Mapping[str, tuple[str, ...]]) -> str | None:
        """Return what is wrong if something in `registers` is offered by another plugin too; a start will fail on it."""
        for record in self._records.values():
            for hook, names in registers.items():
                for each in names:
                    if each in record.registers.get(hook, ()):
                        return f"offers {each!r} in {hook}, and so does the plugin {record.name}"
        return None

    def _refuse(self, record: PluginRecord, reason: str) -> PluginRecord:
        record = msgspec.structs.replace(record, error=reason)
        self._records[record.name] = record
        _log.error(
            "plugin %s of %s is not in use: %s",
            record.name,
            record.distribution or record.module or "this process",
            reason,
        )
        return record

    def _try(self, plugin: object, name: str) -> tuple[tuple[str, ...], dict[str, dict[str, object]]]:
        """Check `plugin` on another manager, since pluggy keeps the half of a plugin that it then refuses."""
        # One that went well is as it was before, and is used again: to make one takes longer than to check a plugin.
        trial, self._trial = self._trial or self._fresh(), None
        trial.register(plugin, name=name)
        trial.check_pending()
        callers = trial.get_hookcallers(plugin) or []
        if not callers:
            raise PluginError("implements no hook; is @hookimpl missing?")
        offers: dict[str, dict[str, object]] = {}
        for caller in callers:
            for implementation in caller.get_hookimpls():
                if caller.name in _DECISIONS and (implementation.wrapper or implementation.hookwrapper):
                    raise PluginError(f"{caller.name} is a decision and cannot be wrapped")
                if caller.name not in _DECISIONS and inspect.iscoroutinefunction(implementation.function):
                    raise PluginError(f"{caller.name} is called synchronously; it cannot be async")
            if caller.name in _REGISTRATIONS:
                # pluggy leaves an answer of None out.
                with self._calls.traced(caller.name, name) as call:
                    offered = [*caller(), None][0]
                    call.returned(offered)
                offers[caller.name] = _checked(caller.name, offered)
        trial.unregister(plugin)
        self._trial = trial
        return tuple(sorted(caller.name for caller in callers)), offers

    def unregister(self, name: str) -> None:
        """Take the plugin `name` out of use."""
        self.judging.entries.pop(name, None)
        if self._pluggy.has_plugin(name):
            self._pluggy.unregister(name=name)
        self._offers.pop(name, None)
        del self._records[name]

    # ---- registration hooks

    def drivers(self) -> dict[str, DriverFactory[msgspec.Struct]]:
        """Return the storage drivers on offer."""
        return cast("dict[str, DriverFactory[msgspec.Struct]]", self._offered("register_drivers"))

    def storage_middleware(self) -> dict[str, StorageMiddlewareFactory[msgspec.Struct]]:
        """Return the storage middleware on offer."""
        return cast("dict[str, StorageMiddlewareFactory[msgspec.Struct]]", self._offered("register_storage_middleware"))

    def authenticators(self) -> dict[str, AuthenticatorFactory[msgspec.Struct]]:
        """Return the authenticators on offer."""
        return cast("dict[str, AuthenticatorFactory[msgspec.Struct]]", self._offered("register_authenticators"))

    def middleware(self) -> dict[str, MiddlewareFactory[msgspec.Struct]]:
        """Return the middleware on offer."""
        return cast("dict[str, MiddlewareFactory[msgspec.Struct]]", self._offered("register_middleware"))

    def rules(self) -> dict[str, Rule[msgspec.Struct]]:
        """Return the rules on offer."""
        return cast("dict[str, Rule[msgspec.Struct]]", self._offered("register_rules"))

    def _offered(self, hook: str) -> dict[str, object]:
        """Return everything that implementations of `hook` offer.

        Raises:
            PluginError: two plugins offer the same name.
        """
        offered: dict[str, object] = {}
        by: dict[str, str] = {}
        for implementation in self._implementations(hook):
            for name, factory in self._offers[implementation.plugin_name][hook].items():
                if name in by:
                    raise PluginError(
                        f"the plugins {by[name]!r} and {implementation.plugin_name!r} both offer {name!r} in {hook}"
                    )
                by[name] = implementation.plugin_name
                offered[name] = factory
        return offered

    def opening(self, hook: str, name: str) -> AbstractContextManager[object]:
        """Return a context to open what is offered as `name` in; it is traced as a call of the plugin that offers it."""
        by = next((record.name for record in self._records.values() if name in record.registers.get(hook, ())), "")
        kind = hook.removeprefix("register_").replace("_", " ").removesuffix("s")
        return self._calls.traced(f"opening of the {kind} {name}", by)

    def call(self, hook: str) -> list[object]:
        """Call a synchronous hook without arguments, such as one of the app's, and return what plugins gave.

        One that fails is logged, and the others go on.
        """
        given: list[object] = []
        for implementation in self._implementations(hook):
            try:
                with self._calls.traced(hook, implementation.plugin_name) as call:
                    given.append(implementation.function())
                    call.returned(given[-1])
            except Exception as error:  # noqa: BLE001 - whatever the code of others raises
                _log.error("plugin %s failed in %s: %s", implementation.plugin_name, hook, _say(error))
        return [each for each in given if each is not None]

    def _implementations(self, hook: str) -> Sequence[pluggy.HookImpl]:
        """Return the implementations of `hook` in the order in which pluggy calls them."""
        caller = cast("pluggy.HookCaller", getattr(self._pluggy.hook, hook))
        return caller.get_hookimpls()[::-1]

    # ---- decisions and observers

    async def validate_manifest(self, push: PushManifest, manifest: Manifest, registry: Handler) -> tuple[str, ...]:
        """Ask every plugin whether `manifest` may be pushed; return their warnings.

        Raises:
            RegistryError: one of them refuses, or fails.
        """
        return await self.judging.validate_manifest(push, manifest, registry)

    async def requires_reference(
        self, push: PushManifest, manifest: Manifest, descriptor: Descriptor, registry: Handler
    ) -> Requirement:
        """Ask whether the missing `descriptor` must be there; the first plugin with an opinion decides.

        Raises:
            RegistryError: a plugin refuses, or fails.
        """
        return await self.judging.requires_reference(push, manifest, descriptor, registry)

    @property
    def observed(self) -> bool:
        """Whether any plugin wants to see finished operations."""
        return bool(self._implementations("operation_finished"))

    def operation_finished(
        self, operation: Operation[object], reply: object, error: RegistryError | None, seconds: float
    ) -> None:
        """Show a finished operation to every observer; what one raises is logged."""
        offered = {"operation": operation, "reply": reply, "error": error, "seconds": seconds}
        for implementation in self._implementations("operation_finished"):
            self._calls.tell(implementation, "operation_finished", offered)


def _checked_api(plugin: object, record: PluginRecord) -> str | None:
    """Return for which version of the hooks a plugin says that it was made; None if it does not say.

    Raises:
        PluginError: it is none that works here; says what to do.
    """
    if not hasattr(plugin, API_ATTRIBUTE):
        return None
    said = cast("object", getattr(plugin, API_ATTRIBUTE))
    built_for = (said, 0) if isinstance(said, int) else said
    match built_for:
        case (int() as major, int() as minor):
            pass
        case _:
            raise PluginError(f"{API_ATTRIBUTE} is {said!r}, not a version such as {HOOK_API[0]} or {HOOK_API}")
    ours, theirs = f"{HOOK_API[0]}.{HOOK_API[1]}", f"{major}.{minor}"
    if major == HOOK_API[0] and minor <= HOOK_API[1]:
        return theirs
    if (major, minor) > HOOK_API:
        remedy = "install a newer Moorage"
    else:
        remedy = f"install a newer {record.distribution or record.name}, made for hooks {HOOK_API[0]}"
    raise PluginError(f"it was made for hooks {theirs}, and this Moorage has hooks {ours}; {remedy}")


def _checked(hook: str, offered: object) -> dict[str, object]:
    """Return what a registration hook gave if it is a mapping from names to factories.

    Raises:
        PluginError: it is not.
    """
    if not isinstance(offered, Mapping):
        raise PluginError(f"{hook} returned {type(offered).__name__}, not a mapping of names")
    found = cast("Mapping[object, object]", offered)
    for name, factory in found.items():
        expected = _FACTORIES[hook]
        if not isinstance(name, str) or not isinstance(factory, expected):
            raise PluginError(
                f"{hook} returned {name!r}: {type(factory).__name__}, not a name with a {expected.__name__}"
            )
        if isinstance(factory, Rule):
            try:
                scoped(cast("Rule[msgspec.Struct]", factory).options)
            except TypeError as error:
                raise PluginError(f"{hook} returned {name!r}: {error}") from None
    return {str(name): factory for name, factory in found.items()}


def _origin(distribution: Distribution | None) -> tuple[str, str]:
    """Return the name and the version of what brought a plugin; nothing of nothing."""
    return (distribution.name, distribution.version) if distribution else ("", "")


def _told_apart(record: PluginRecord) -> str:
    """Return how a plugin is called where another has the same name."""
    return f"{record.name} ({record.distribution or record.module or 'this process'})"


def _say(error: BaseException) -> str:
    """Return the kind and text of `error` in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())

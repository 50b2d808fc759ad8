"""Joining configuration, plugins, driver, registry and middleware into one handler: the only place where that is done.

From the client inwards: observers, gates, authentication, what depends on the caller, access rules, what credentials are
good for, what the operator turned off, the middleware of `plugins:` in the order of the configuration, the registry, and
below it storage middleware around the driver.
"""

import logging
import random
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import NamedTuple, TypeVar, cast, get_args, get_type_hints

import msgspec
import trio

from ._authentication import Authentication, Granted
from ._configuration import Configuration, ConfigurationError, UploadPurging, did_you_mean
from ._decisions import ReadOnlyView
from ._driver import Driver
from ._errors import DriverError, RegistryError
from ._hooks import Authenticator, MiddlewareFactory, Rule, StorageMiddlewareFactory
from ._judging import RuleEntry
from ._layer import DriverLayer
from ._operations import ANONYMOUS, Caller, Handler, Operation, Origin, R, Trail
from ._plugins import PluginManager
from ._registry import Registry
from ._rules import Scopes, scoped
from ._yaml import Key

_log = logging.getLogger("moorage.assembly")

F = TypeVar("F")

_CLOCKWORK_RETRY_SECONDS = 60.0
_FIRST_PURGE_SECONDS = 600.0


class OpenedRegistry(msgspec.Struct, frozen=True):
    """A registry that is ready to answer: what to ask, and the store below it."""

    handler: Handler
    driver: Driver


class _NoRedirects(DriverLayer):
    """A store that sends no client elsewhere: `storage.redirect.disable`."""

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        """Return None."""
        del key, client_address
        await trio.lowlevel.checkpoint()
        return None


class _Observed:
    """The outermost handler: shows every finished operation, and who asked for it, to the observers among the plugins."""

    def __init__(self, inner: Handler, plugins: PluginManager) -> None:
        self._inner = inner
        self._plugins = plugins

    async def __call__(self, operation: Operation[R], /) -> R:
        began = trio.current_time()
        trail = Trail()
        operation = msgspec.structs.replace(operation, trail=trail)
        try:
            reply = await self._inner(operation)
        except RegistryError as error:
            self._tell(operation, trail.caller, None, error, began)
            raise
        self._tell(operation, trail.caller, reply, None, began)
        return reply

    def _tell(
        self, operation: Operation[object], caller: Caller, reply: object, error: RegistryError | None, began: float
    ) -> None:
        seen = msgspec.structs.replace(operation, caller=caller)
        self._plugins.operation_finished(seen, reply, error, trio.current_time() - began)


class _Anybody:
    """Takes everybody for nobody in particular, where rules say what may be done and no authenticator who asks."""

    challenge = ""

    async def __call__(self, origin: Origin, /) -> Caller:
        del origin
        return ANONYMOUS


def claimed_sections(plugins: PluginManager) -> dict[str, type[msgspec.Struct]]:
    """Return the sections of a configuration, as dotted paths, that some plugin answers for, with the options it reads."""
    claimed = {_section(name, factory): factory.options for name, factory in plugins.middleware().items()}
    claimed |= {_section(name, rule): scoped(rule.options) for name, rule in plugins.rules().items()}
    claimed |= {f"auth.{name}": factory.options for name, factory in plugins.authenticators().items()}
    around = plugins.storage_middleware()
    for name, factory in around.items():
        claimed[f"middleware.storage.{name}"] = factory.options
        if factory.section is not None:
            claimed[factory.section] = factory.options
        claimed |= {section: _type_beside(factory, field) for field, section in factory.beside.items()}
    return claimed


def offered_sections(plugins: PluginManager) -> dict[str, type[msgspec.Struct]]:
    """Return the options of everything that plugins offer, by the dotted path of the section where they are written."""
    drivers = {f"storage.{name}": factory.options for name, factory in plugins.drivers().items()}
    return drivers | claimed_sections(plugins)


def check_options(configuration: Configuration, plugins: PluginManager) -> tuple[str, ...]:
    """Check that all that `configuration` names is on offer and takes its options, without opening anything.

    Returns:
        What its owner should be told about its choice of plugins, one sentence each.

    Raises:
        ConfigurationError: it is not, or does not; or a plugin could not be loaded.
    """
    warnings = _check_plugins(configuration, plugins)
    name = configuration.storage.driver
    driver = _offered(configuration, plugins, "storage driver", ("storage", name), name, plugins.drivers())
    configuration.decode(f"storage.{name}", driver.options)
    _storage_middleware(configuration, plugins, serving=True)
    middleware, rules = plugins.middleware(), plugins.rules()
    _check_names(configuration, plugins, {**middleware, **rules})
    for name, factory in _configured(configuration, middleware):
        configuration.decode(_section(name, factory), factory.options)
    for name, rule in _configured(configuration, rules):
        _options(configuration, name, rule)
    for name in configuration.auth.types:
        offered = _offered(configuration, plugins, "authenticator", ("auth", name), name, plugins.authenticators())
        configuration.decode(f"auth.{name}", offered.options)
    return warnings


def _check_plugins(configuration: Configuration, plugins: PluginManager) -> tuple[str, ...]:
    """Refuse to go on without a plugin: a rule that was not loaded refuses nothing, and nobody would see it.

    Returns:
        A sentence for each name of nothing among those that are blocked.
    """
    records = {record.name: record for record in plugins.records}
    for name in configuration.plugins.require:
        record = records.get(name)
        if record is None:
            problem = f"the plugin {name!r} is not installed; {did_you_mean(name, records)}"
            raise configuration.document.error(("plugins", "require"), problem)
        if record.error:
            raise configuration.document.error(
                ("plugins", "require"), f"the plugin {name!r} is not in use: {record.error}"
            )
    for record in records.values():
        if record.error and not record.blocked:
            brought_by = record.distribution or record.module or "this process"
            raise ConfigurationError(
                f"the plugin {record.name} of {brought_by} is not in use: {record.error}; mend it, remove it, or go on "
                f"without it by plugins: {{block: [{record.name}]}}"
            )
    _check_restrictions(configuration, plugins)
    return tuple(
        str(
            configuration.document.error(
                ("plugins", "block"), f"there is no plugin {name!r}; {did_you_mean(name, records)}"
            )
        )
        for name in configuration.plugins.block
        if name not in records
    )


def _check_restrictions(configuration: Configuration, plugins: PluginManager) -> None:
    """Refuse to block who would have refused what the operator turned off."""
    blocked = [record.name for record in plugins.records if record.blocked]
    storage = configuration.storage
    served = {factory.section for factory in plugins.middleware().values()}
    for section, needed, what in (
        ("storage.delete", not storage.delete_enabled, "deletes"),
        ("storage.maintenance.readonly", storage.read_only, "pushes and deletes"),
    ):
        if blocked and needed and section not in served:
            problem = f"turns {what} off, and no plugin in use refuses them; blocked: {', '.join(blocked)}"
            raise configuration.document.error(tuple(section.split(".")), problem)


def _check_names(
    configuration: Configuration,
    plugins: PluginManager,
    offered: Mapping[str, MiddlewareFactory[msgspec.Struct] | Rule[msgspec.Struct]],
) -> None:
    """Refuse a name below `plugins:` that would open nothing: a rule that is misspelt would refuse nothing, unseen."""
    for name in configuration.named_plugins:
        key = ("plugins", name)
        factory = _offered(configuration, plugins, "middleware or rule", key, name, offered)
        if factory.section is not None:
            raise configuration.document.error(key, f"{name} is configured as {factory.section}")


class _Around(NamedTuple):
    """Storage middleware that the configuration asks for."""

    name: str
    section: str
    factory: StorageMiddlewareFactory[msgspec.Struct]
    options: msgspec.Struct


def _storage_middleware(configuration: Configuration, plugins: PluginManager, *, serving: bool) -> list[_Around]:
    """Return what goes around the driver with its options; the first is the innermost, as in distribution."""
    offered = plugins.storage_middleware()
    found: list[_Around] = []
    for at, entry in enumerate(configuration.middleware.storage):
        if not entry.disabled:
            key = ("middleware", "storage", at)
            factory = _offered(configuration, plugins, "storage middleware", (*key, "name"), entry.name, offered)
            options = configuration.document.decode(factory.options, (*key, "options"))
            found.append(_Around(entry.name, "middleware.storage", factory, options))
    for name, factory in offered.items():
        if factory.section is not None and configuration.asks_for(factory.section):
            options = configuration.decode(factory.section, factory.options)
            found.append(_Around(name, factory.section, factory, options))
    return [
        each._replace(options=_with_beside(configuration, each))
        for each in found
        if serving or not each.factory.for_serving
    ]


def _with_beside(configuration: Configuration, around: _Around) -> msgspec.Struct:
    """Return the options of storage middleware, with what sections beside them say."""
    options = around.options
    for field, section in around.factory.beside.items():
        if getattr(options, field) is None and configuration.asks_for(section):
            said = configuration.decode(section, _type_beside(around.factory, field))
            options = msgspec.structs.replace(options, **{field: said})
    return options


def _type_beside(factory: StorageMiddlewareFactory[msgspec.Struct], field: str) -> type[msgspec.Struct]:
    """Return the type of a field of options, which may be None, that a section of its own can say."""
    (type_,) = (each for each in get_args(get_type_hints(factory.options)[field]) if each is not type(None))
    return cast("type[msgspec.Struct]", type_)  # what a section holds


@asynccontextmanager
async def open_registry(configuration: Configuration, plugins: PluginManager) -> AsyncGenerator[OpenedRegistry]:
    """Open everything that `configuration` names; close it in the opposite order.

    Raises:
        ConfigurationError: it names something that no plugin offers, or the store cannot be opened.
    """
    check_options(configuration, plugins)
    async with AsyncExitStack() as stack:
        driver = await _open_driver(configuration, plugins, stack, serving=True)
        await _open_rules(configuration, plugins, stack)
        registry = Registry(driver, plugins, tag_reads_at_once=configuration.storage.tag_concurrency or 16)
        handler = await _wrap(registry, driver, configuration, plugins, stack)
        purging = configuration.storage.upload_purging
        if purging.enabled and not configuration.storage.read_only:
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            nursery.start_soon(_purge_uploads, registry, driver, purging)
        yield OpenedRegistry(handler, driver)


@contextmanager
def _opening(
    configuration: Configuration, plugins: PluginManager, hook: str, name: str, section: str
) -> Generator[None]:
    """Trace the opening of what a plugin offers.

    Raises:
        ConfigurationError: it failed, in whichever way the code of others does; says what and where it is configured.
    """
    key = tuple(section.split("."))
    try:
        with plugins.opening(hook, name):
            yield
    except ConfigurationError:
        raise
    except DriverError as error:
        raise configuration.document.error(key, f"the store cannot be opened: {error.args[0]}") from error
    except Exception as error:
        reason = f"{name} failed to open: {type(error).__name__}: {error}"
        raise configuration.document.error(key, reason) from error


@asynccontextmanager
async def open_rules(configuration: Configuration, plugins: PluginManager) -> AsyncGenerator[None]:
    """Take the rules that `configuration` names into use in `plugins`, without a store to go with them.

    Raises:
        ConfigurationError: it names something that no plugin offers, or a rule cannot be opened.
    """
    check_options(configuration, plugins)
    async with AsyncExitStack() as stack:
        await _open_rules(configuration, plugins, stack)
        yield


@asynccontextmanager
async def open_to_look(configuration: Configuration, plugins: PluginManager) -> AsyncGenerator[OpenedRegistry]:
    """Open the store that `configuration` names, to read from beside whatever serves it.

    The handler answers what only looks. There is no middleware, authentication, observer or clockwork around it.

    Raises:
        ConfigurationError: the store cannot be opened; one of files also where it is not there.
    """
    check_options(configuration, plugins)
    async with AsyncExitStack() as stack:
        driver = await _open_driver(configuration, plugins, stack, to_look=True)
        yield OpenedRegistry(ReadOnlyView(Registry(driver)), driver)


@asynccontextmanager
async def open_store(
    configuration: Configuration, plugins: PluginManager, *, to_look: bool = False
) -> AsyncGenerator[Driver]:
    """Open nothing but the store that `configuration` names, with the layers around it; `to_look`: for reading.

    Raises:
        ConfigurationError: it names something that no plugin offers, or the store cannot be opened.
    """
    check_options(configuration, plugins)
    async with AsyncExitStack() as stack:
        yield await _open_driver(configuration, plugins, stack, to_look=to_look)


async def _open_driver(
    configuration: Configuration,
    plugins: PluginManager,
    stack: AsyncExitStack,
    *,
    to_look: bool = False,
    serving: bool = False,
) -> Driver:
    name = configuration.storage.driver
    factory = plugins.drivers()[name]
    options = configuration.decode(f"storage.{name}", factory.options)
    opener = factory.open_to_look if to_look and factory.open_to_look is not None else factory.open
    with _opening(configuration, plugins, "register_drivers", name, f"storage.{name}"):
        driver = await stack.enter_async_context(opener(options))
    for name, section, around, settings in _storage_middleware(configuration, plugins, serving=serving):
        with _opening(configuration, plugins, "register_storage_middleware", name, section):
            driver = await stack.enter_async_context(around.open(settings, driver))
    # What has no URLs of its own has nothing to be kept from.
    redirects = type(driver).url is not Driver.url
    return _NoRedirects(driver) if redirects and configuration.storage.redirect_disable else driver


async def _open_rules(configuration: Configuration, plugins: PluginManager, stack: AsyncExitStack) -> None:
    """Take the configured rules into use, each entry of their options for itself."""
    opened: list[tuple[str, str, RuleEntry, object]] = []
    for name, rule in _configured(configuration, plugins.rules()):
        section = _section(name, rule)
        scopes = Scopes(_options(configuration, name, rule))
        for each in scopes.entries:
            place = section if each.position == scopes.listed else f"{section}.rules[{each.position}]"
            with _opening(configuration, plugins, "register_rules", name, place):
                judge = await stack.enter_async_context(rule.open(each.options))
            opened.append((name, place, RuleEntry(name, scopes, each.position), judge))
    # pluggy calls last what was registered first.
    for name, place, entry, judge in reversed(opened):
        record = plugins.register(judge, place, entry=entry)
        stack.callback(plugins.unregister, place)
        if record.error:
            raise ConfigurationError(f"{place}: the rule {name} cannot be used: {record.error}")


def _options(configuration: Configuration, name: str, rule: Rule[msgspec.Struct]) -> msgspec.Struct:
    """Return the options of a rule that is in use."""
    if rule.when_disabled is not None and configuration.switched_off(_section(name, rule)):
        return rule.when_disabled
    options: type[msgspec.Struct] = scoped(rule.options)
    return configuration.decode(_section(name, rule), options)


async def _wrap(
    handler: Handler, driver: Driver, configuration: Configuration, plugins: PluginManager, stack: AsyncExitStack
) -> Handler:
    configured = _configured(configuration, plugins.middleware())

    async def around(inner: Handler, place: str) -> Handler:
        # The last one opened is the outermost: those of `plugins:` inside, in their order, then those with a section.
        there = [item for item in configured if item[1].place == place]
        named = [item for item in there if item[1].section is None]
        sections = [item for item in there if item[1].section is not None]
        for name, factory in [*reversed(named), *sections]:
            options = configuration.decode(_section(name, factory), factory.options)
            with _opening(configuration, plugins, "register_middleware", name, _section(name, factory)):
                with_store = factory.open_with_store
                opening = factory.open(options, inner) if with_store is None else with_store(options, inner, driver)
                inner = await stack.enter_async_context(opening)
        return inner

    handler = await around(handler, "inside")
    secured = configuration.auth.types or any(factory.place in {"caller", "access"} for _, factory in configured)
    if secured:
        handler = await around(Granted(handler), "access")
        handler = await around(handler, "caller")
        authenticators: dict[str, Authenticator] = {}
        for name in configuration.auth.types:
            offered = plugins.authenticators()[name]
            credentials = configuration.decode(f"auth.{name}", offered.options)
            with _opening(configuration, plugins, "register_authenticators", name, f"auth.{name}"):
                authenticators[name] = await stack.enter_async_context(offered.open(credentials))
        handler = Authentication(handler, authenticators or {"": _Anybody()})
    handler = await around(handler, "gate")
    if plugins.observed:
        handler = _Observed(handler, plugins)
    return handler


W = TypeVar("W", MiddlewareFactory[msgspec.Struct], Rule[msgspec.Struct])


def _section(name: str, factory: MiddlewareFactory[msgspec.Struct] | Rule[msgspec.Struct]) -> str:
    return factory.section or f"plugins.{name}"


def _configured(configuration: Configuration, offered: Mapping[str, W]) -> list[tuple[str, W]]:
    """Return what of `offered` the configuration asks for, or is always opened.

    What has a section comes first, then that of `plugins:` in its own order, then what nobody named.
    """
    by_section = [(name, factory) for name, factory in offered.items() if _has_section(configuration, factory)]
    by_name = [
        (name, offered[name]) for name in configuration.named_plugins if name in offered and not offered[name].section
    ]
    named = {name for name, _ in by_name}
    always = [
        (name, factory)
        for name, factory in offered.items()
        if factory.always and not factory.section and name not in named
    ]
    return by_section + by_name + always


def _has_section(
    configuration: Configuration, factory: MiddlewareFactory[msgspec.Struct] | Rule[msgspec.Struct]
) -> bool:
    """Return whether `factory` has a section of its own and is to be opened for what is, or is not, written there."""
    if factory.section is None:
        return False
    if isinstance(factory, Rule) and configuration.switched_off(factory.section):
        return factory.when_disabled is not None
    return factory.always or configuration.section(factory.section) is not None


def _offered(
    configuration: Configuration, plugins: PluginManager, kind: str, key: Key, name: str, offered: Mapping[str, F]
) -> F:
    """Return what is offered under `name`.

    Raises:
        ConfigurationError: nothing is; the sentence names what is there, and plugins that are blocked.
    """
    if name in offered:
        return offered[name]
    sentence = f"there is no {kind} {name!r}; {did_you_mean(name, offered)}"
    for record in plugins.records:
        if record.blocked:
            sentence += f"; the plugin {record.name} is blocked"
    raise configuration.document.error(key, sentence)


async def _purge_uploads(registry: Registry, driver: Driver, purging: UploadPurging) -> None:
    """Remove abandoned uploads now and then, in one process at a time."""
    await trio.sleep(random.uniform(0, min(purging.interval, _FIRST_PURGE_SECONDS)))  # noqa: S311 - to spread load
    while True:
        try:
            async with driver.hold("clockwork") as held:
                while held:
                    count = await registry.uploads.expire(older_than=time.time() - purging.age, dry_run=purging.dry_run)
                    if count:
                        _log.info("%d abandoned uploads %s", count, "found" if purging.dry_run else "removed")
                    await trio.sleep(purging.interval)
        except (DriverError, RegistryError) as error:
            _log.warning("abandoned uploads could not be removed: %s", error)
        except Exception:  # noqa: BLE001 - the edge of a task: what is wrong here must not end the registry
            _log.exception("abandoned uploads could not be removed")
        # Somebody else does it, or the store is away; look again later.
        await trio.sleep(min(purging.interval, _CLOCKWORK_RETRY_SECONDS))

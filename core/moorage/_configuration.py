"""Load the configuration: a file in distribution's format, the environment over it, the command line over both.

What this module keeps:

- A configuration that works in distribution works here and means the same, or the start fails and says why.
- What is ignored is said. Where ignoring would be unsafe (who may come in, whether the wire is encrypted, whether a mirror
  is a mirror), the start fails instead.
- Secrets show neither in `Configuration.shown` nor in any repr, nor in an error about something else.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar, cast

from msgspec import Struct, field, structs, to_builtins

from ._document import Document, inspected, json_schema, or_null, read_document
from ._environment import CONFIGURATION_PATH, apply_environment
from ._settings import (
    DEFAULT_PAGE,
    SECTIONS_OF_STORAGE,
    Catalog,
    Duration,
    Http,
    Log,
    Maintenance,
    MiddlewareEntry,
    Plugins,
    RedisSettings,
    Section,
    Sections,
    StorageCache,
    StorageDelete,
    StorageRedirect,
    StorageSections,
    StorageTag,
    Tags,
    UploadPurging,
    Written,
)
from ._yaml import (
    ConfigurationError,
    Key,
    Plain,
    did_you_mean,
    duration_text,
    in_words,
    is_secret,
    masked,
    merged,
    one_line,
    quoted,
    unwrapped,
)

__all__ = [
    "CONFIGURATION_PATH",
    "Auth",
    "Catalog",
    "Configuration",
    "ConfigurationError",
    "Duration",
    "Http",
    "LoadedConfiguration",
    "Log",
    "MiddlewareEntry",
    "Plugins",
    "RedisSettings",
    "Storage",
    "Tags",
    "UploadPurging",
    "configuration_schema",
    "decode_options",
    "did_you_mean",
    "load_configuration",
    "select_plugins",
]

T = TypeVar("T")

_DRIVERS: Final = {
    "azure": "Azure Blob Storage.",
    "filesystem": "A directory.",
    "fsspec": "Whatever fsspec can open.",
    "gcs": "Google Cloud Storage.",
    "inmemory": "The memory of one process; gone when it ends.",
    "s3": "Amazon S3 and what speaks its protocol.",
    "s3aws": "Another name of s3.",
}
"""The drivers that need no foreign plugin; known here for the schema and for suggestions only."""

_NOT_BUILT: Final = (
    "log.hooks",
    "storage.cache",
    "http.debug",
    "notifications",
    "redis",
    "health",
    "proxy",
    "validation",
    "policy",
)
_PLUGIN_KEYS: Final = frozenset(Plugins.__struct_encode_fields__)
_SWITCHES: Final = frozenset({"validation.disabled", "validation.enabled"})
"""What `Configuration.switched_off` reads."""
_REFUSED: Final = {
    "http.tls.letsencrypt": (
        "have certbot or lego write http.tls.certificate and http.tls.key, which are read again whenever they change"
    ),
    "proxy.remoteurl": "refusing to start a writable registry instead of a mirror",
}
_WITHOUT_FILE: Final[dict[str, Plain]] = {
    "version": "0.1",
    "storage": {"delete": {"enabled": True}, "filesystem": {"rootdirectory": "./data"}},
    "http": {"addr": "127.0.0.1:5000"},
}
_WITH_FILE: Final[dict[str, Plain]] = {"http": {"addr": ":5000"}}
_DISTRIBUTION_ROOT: Final = "/var/lib/registry"


class Storage(Section, frozen=True, kw_only=True):
    """Where content lies, and what holds whatever the driver is.

    Attributes:
        driver: The driver's name.
        parameters: What the driver is given; only the driver knows its keys.
        delete_enabled: Whether clients may delete.
        read_only: Whether whatever changes content is refused.
        redirect_disable: Whether clients always get content from the registry itself.
        tag_concurrency: How many tags are read at once to find those of a digest; 0 leaves it to the registry.
        upload_purging: What happens to uploads that nobody finishes.
    """

    driver: str
    parameters: dict[str, object] = field(default_factory=dict[str, object])
    delete_enabled: bool = False
    read_only: bool = False
    redirect_disable: bool = False
    tag_concurrency: int = 0
    upload_purging: UploadPurging = UploadPurging()


class Auth(Section, frozen=True, kw_only=True):
    """Who asks: names of authenticators, in the order in which they are asked; without any the registry is open."""

    types: tuple[str, ...] = ()


class Configuration(Sections, frozen=True, kw_only=True):
    """All settings, checked, with defaults in place.

    Made by `load_configuration`. ``document`` is the merged tree behind `section`, `decode` and `shown`.
    """

    storage: Storage
    auth: Auth
    document: Document

    def __repr__(self) -> str:
        return f"Configuration(storage={self.storage.driver!r}, addr={self.http.addr!r}, ...)"

    def section(self, path: str) -> object | None:
        """Give what is written at a dotted path such as ``validation.manifests.indexes`` as plain data, or None."""
        return unwrapped(self.document.find(tuple(path.split("."))))

    def decode(self, path: str, type_: type[T]) -> T:
        """Give what is written at a dotted path as a plugin's own type, with the same sentences for what is wrong there.

        Nothing there gives the type's defaults.

        Raises:
            ConfigurationError: What is written there is not what the type allows.
            TypeError: The type has a field that a configuration cannot hold.
        """
        key = tuple(path.split("."))
        # What lies deeper and is somebody else's, somebody else reads.
        deeper = [each for each in self.document.claimed if each[: len(key)] == key and each != key]
        return self.document.decode(type_, key, spared=deeper)

    def asks_for(self, path: str) -> bool:
        """Tell whether a section at a dotted path says anything but that it is empty or switched off."""
        return _says_something(self.document.find(tuple(path.split("."))))

    @property
    def named_plugins(self) -> tuple[str, ...]:
        """The names below ``plugins`` under which settings of plugins stand, in their order."""
        written = self.document.find(("plugins",))
        return tuple(name for name in written if name not in _PLUGIN_KEYS) if isinstance(written, dict) else ()

    def switched_off(self, path: str) -> bool:
        """Tell whether a section around the one at a dotted path says ``disabled: true``.

        The old ``enabled: true`` beside it wins, as in distribution.
        """
        parts = path.split(".")
        for length in range(1, len(parts)):
            around = tuple(parts[:length])
            says = {name: unwrapped(self.document.find((*around, name))) for name in ("disabled", "enabled")}
            if says["disabled"] is True and says["enabled"] is not True:
                return True
        return False

    def shown(self) -> dict[str, object]:
        """Give the configuration in effect under distribution's keys, with each secret replaced by ``***``."""
        written = cast(
            "dict[str, Plain]", merged(unwrapped(self.document.root), self._in_effect())
        )  # both are mappings
        written.pop("loglevel", None)
        shown = cast("dict[str, object]", masked(written))  # a mapping's copy is one
        # The names of drivers, authenticators and plugins are no names of settings: "token" is not a secret there.
        for name in ("storage", "auth", "plugins"):
            inner = written.get(name)
            if isinstance(inner, dict):
                shown[name] = {
                    each: masked(value, secret=is_secret(each) and not isinstance(value, dict))
                    for each, value in inner.items()
                }
        # Everybody who asks gets these headers, so only those that sound like secrets are hidden.
        headers: dict[str, Plain] = {name: list(values) for name, values in self.http.headers.items()}
        cast("dict[str, object]", shown["http"]).update({"headers": masked(headers)} if headers else {})
        return shown

    def _in_effect(self) -> dict[str, Plain]:
        storage, http, log = self.storage, self.http, self.log
        purging = storage.upload_purging
        effective: dict[str, Plain] = {
            "version": self.version,
            "log": {
                "level": log.level,
                "formatter": log.formatter,
                "reportcaller": log.report_caller,
                "accesslog": {"disabled": log.access_log.disabled},
            },
            "storage": {
                storage.driver: cast("Plain", to_builtins(storage.parameters)),  # was read from YAML
                "delete": {"enabled": storage.delete_enabled},
                "maintenance": {
                    "readonly": {"enabled": storage.read_only},
                    "uploadpurging": {
                        "enabled": purging.enabled,
                        "age": duration_text(purging.age),
                        "interval": duration_text(purging.interval),
                        "dryrun": purging.dry_run,
                    },
                },
                "tag": {"concurrencylimit": storage.tag_concurrency},
            },
            "auth": {
                name: cast("Plain", to_builtins(self.document.decode(dict[str, object], ("auth", name))))
                for name in self.auth.types or ("none",)
            },
            "http": {
                "addr": http.addr,
                "net": http.net,
                "prefix": http.prefix,
                "host": http.host,
                "draintimeout": duration_text(http.drain_timeout),
                "engine": http.engine,
                "trustedproxies": list(http.trusted_proxies),
            },
            "catalog": {"maxentries": self.catalog.max_entries},
            "tags": {"maxtags": self.tags.max_tags},
        }
        return effective


class LoadedConfiguration(Struct, frozen=True, kw_only=True):
    """A configuration, and what its owner should be told about it, one sentence each."""

    configuration: Configuration
    warnings: tuple[str, ...] = ()


def load_configuration(
    path: Path | None,
    environ: Mapping[str, str],
    *,
    defaults: Mapping[str, object] | None = None,
    overrides: Mapping[str, object] | None = None,
    claimed: Mapping[str, type[Struct]] | None = None,
) -> LoadedConfiguration:
    """Load a configuration.

    Later wins: built-in defaults, ``defaults``, the file, the environment's ``REGISTRY_...``, ``overrides``. A storage driver
    among the defaults gives way to any other that is named later; between file, environment and overrides, two drivers
    are an error.

    Args:
        path: The file, in distribution's format; None for Moorage's own defaults (deletes on, ``./data``, this machine only).
        environ: The environment's variables.
        defaults: A tree of settings below all that is written.
        overrides: Settings above all that is written, by dotted path: ``{"http.addr": ":5000"}``; None is a flag that was
            not given.
        claimed: Dotted paths of sections that plugins answer for, with the options they read. These are neither refused nor
            said to have no effect, and may have keys of the plugin's own, which `Configuration.decode` checks.

    Raises:
        ConfigurationError: The configuration cannot be used; one sentence says where, what was found and what is allowed.
    """
    document = Document("configuration", {}) if path is None else read_document(path)
    claimed = claimed or {}
    spared: dict[Key, type[Struct]] = {tuple(path.split(".")): options for path, options in claimed.items()}
    document.claimed = tuple(spared)
    warnings = list(apply_environment(document, Written, environ, spared=spared))
    for name in ("storage", "auth"):
        _write_out(document, name)
    given = cast("dict[str, Plain]", to_builtins(dict(defaults or {}), enc_hook=str))  # paths become text
    for under in (given, _WITHOUT_FILE if path is None else _WITH_FILE):
        document.root = _laid_over(under, document.root)
    _override(document, overrides or {})
    written = document.decode(Written, spared=spared)
    log = written.log
    if written.loglevel is not None:
        warnings.append(str(document.error(("loglevel",), "an old name; write log.level instead")))
        if document.find(("log", "level")) is None:
            log = structs.replace(log, level=written.loglevel)
    configuration = Configuration(
        **{name: getattr(written, name) for name in Sections.__struct_fields__},
        storage=_storage(document, spared),
        auth=_auth(document),
        document=document,
    )
    configuration = structs.replace(
        configuration,
        log=log,
        catalog=Catalog(max_entries=max(written.catalog.max_entries, 0) or DEFAULT_PAGE),
        tags=Tags(max_tags=written.tags.max_tags or DEFAULT_PAGE),
    )
    _refuse_what_is_unsafe_to_ignore(configuration, claimed)
    blocked = _or_blocked(configuration)
    warnings.extend(
        str(document.error(key, f"has no effect yet; this version of Moorage does not support it{blocked}"))
        for key in _without_effect(configuration, claimed)
    )
    return LoadedConfiguration(configuration=configuration, warnings=tuple(warnings))


def select_plugins(
    path: Path | None, environ: Mapping[str, str], *, overrides: Mapping[str, object] | None = None
) -> Plugins:
    """Read of a configuration only which plugins it wants, for those must be there before the rest can be understood.

    Args:
        path: The file; None for none. Relative paths of folders begin at its folder.
        environ: The environment's variables.
        overrides: As for `load_configuration`.

    Raises:
        ConfigurationError: The file cannot be read, or what it says of plugins cannot be understood.
    """
    document = Document("configuration", {}) if path is None else read_document(path)
    apply_environment(document, Written, environ)
    _override(document, overrides or {})
    plugins = document.decode(Plugins, ("plugins",))
    folder = Path() if path is None else path.parent
    return structs.replace(plugins, paths=tuple(str(folder / each) for each in plugins.paths))


def decode_options(options: type[T], written: Mapping[str, object], *, source: str) -> T:
    """Give options of a plugin, written as in a configuration, as its own type; ``source`` names them in what is wrong.

    Raises:
        ConfigurationError: They are not what the type allows.
    """
    tree = cast("dict[str, Plain]", to_builtins(dict(written), enc_hook=str))  # a mapping's copy is one
    return Document(source, tree).decode(options)


def configuration_schema(offered: Mapping[str, type[Struct]] | None = None) -> dict[str, object]:
    """Describe the configuration file as JSON Schema (draft 2020-12), for editors.

    Args:
        offered: What plugins read, by the dotted path of the section: ``storage.<driver>``, ``auth.<name>``,
            ``middleware.storage.<name>``, ``plugins.<name>`` and sections of their own. Other names there are then not
            allowed; without it every name is, with any options.
    """
    schema = json_schema(inspected(Written))
    properties = _properties(schema)
    anything: dict[str, object] = {"type": ["object", "null"]}
    some: object = anything if offered is None else False
    shorthand: dict[str, object] = {"type": "string", "minLength": 1}
    drivers = {name: {**anything, "description": text} for name, text in _DRIVERS.items()}
    sections = _properties(json_schema(inspected(StorageSections)))
    storage = {"type": "object", "properties": {**sections, **drivers}, "additionalProperties": some}
    auth = {**anything, "properties": {"none": anything}, "additionalProperties": some}
    for name, described in (("storage", storage), ("auth", auth)):
        description = properties[name]["description"]
        properties[name] = {"description": description, "anyOf": [shorthand, described]}
    if offered is not None:
        properties["plugins"]["additionalProperties"] = False
    # A section inside of another one comes after it, and is what its own plugin says.
    for path, options in sorted((offered or {}).items(), key=lambda item: item[0].count(".")):
        _describe(properties, path, options)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Moorage configuration",
        **schema,
        "required": ["version", "storage"],
    }


def _describe(properties: dict[str, dict[str, object]], path: str, options: type[Struct]) -> None:
    """Put what is allowed in the section of a plugin where it belongs."""
    described = json_schema(inspected(options))
    if "required" not in described:
        described = or_null(described)
    *way, name = path.split(".")
    if way == ["middleware", "storage"]:
        items = cast("dict[str, list[object]]", _properties(properties["middleware"])["storage"]["items"])
        named = {"properties": {"name": {"const": name}}, "required": ["name"]}
        # What is switched off is not looked at.
        named_and_on = {**named, "not": {"properties": {"disabled": {"const": True}}, "required": ["disabled"]}}
        items.setdefault("allOf", []).append({"if": named_and_on, "then": {"properties": {"options": described}}})
        return
    for part in way:
        around = properties.setdefault(part, {"type": ["object", "null"]})
        if "anyOf" in around:
            # Text stands for a mapping there.
            around = cast("list[dict[str, object]]", around["anyOf"])[-1]
        properties = _properties(around)
    known = properties.get(name, {})
    if "description" in known:
        described["description"] = known["description"]
    # The keys are the plugin's; what is said here of those that distribution has too still holds.
    own, others = _properties(described), _properties(known)
    described["properties"] = {key: {**others.get(key, {}), **value} for key, value in own.items()}
    properties[name] = described


def _properties(schema: dict[str, object]) -> dict[str, dict[str, object]]:
    return cast("dict[str, dict[str, object]]", schema.setdefault("properties", {}))  # JSON Schema's form of a mapping


def _override(document: Document, overrides: Mapping[str, object]) -> None:
    for dotted_path, value in overrides.items():
        if value is None:
            continue
        key = tuple(dotted_path.split("."))
        document.root = _with(document.root, key, cast("Plain", to_builtins(value, enc_hook=str)))
        document.mark(key, "command line")
        _write_out(document, key[0])


def _write_out(document: Document, name: str) -> None:
    value = document.root.get(name)
    if isinstance(value, str):
        document.root[name] = {str(value): None} if value else None


def _with(tree: Plain, key: Key, value: Plain) -> dict[str, Plain]:
    items = dict(tree) if isinstance(tree, dict) else {}
    name = str(key[0])
    items[name] = _with(items.get(name), key[1:], value) if len(key) > 1 else value
    return items


def _laid_over(under: dict[str, Plain], over: dict[str, Plain]) -> dict[str, Plain]:
    storage = under.get("storage")
    if isinstance(storage, str):
        storage = {str(storage): None}
    if isinstance(storage, dict):
        named = _drivers(over.get("storage"))
        kept = {name: value for name, value in storage.items() if name in SECTIONS_OF_STORAGE or named in ([], [name])}
        under = {**under, "storage": kept}
    return cast("dict[str, Plain]", merged(under, over))  # two mappings make one


def _drivers(storage: Plain) -> list[str]:
    return [name for name in storage if name not in SECTIONS_OF_STORAGE] if isinstance(storage, dict) else []


def _storage(document: Document, spared: Collection[Key]) -> Storage:
    drivers = _drivers(document.root.get("storage"))
    if len(drivers) != 1:
        raise _not_one_driver(document, drivers)
    driver = drivers[0]
    parameters = document.decode(dict[str, object], ("storage", driver))
    if driver == "filesystem" and parameters.get("rootdirectory") is None:
        parameters["rootdirectory"] = _DISTRIBUTION_ROOT
    sections = StorageSections(
        cache=document.decode(StorageCache, ("storage", "cache"), spared=spared),
        delete=document.decode(StorageDelete, ("storage", "delete"), spared=spared),
        maintenance=document.decode(Maintenance, ("storage", "maintenance"), spared=spared),
        redirect=document.decode(StorageRedirect, ("storage", "redirect"), spared=spared),
        tag=document.decode(StorageTag, ("storage", "tag"), spared=spared),
    )
    return Storage(
        driver=driver,
        parameters=parameters,
        delete_enabled=sections.delete.enabled,
        read_only=sections.maintenance.read_only.enabled,
        redirect_disable=sections.redirect.disable,
        tag_concurrency=sections.tag.concurrency_limit,
        upload_purging=sections.maintenance.upload_purging,
    )


def _not_one_driver(document: Document, drivers: list[str]) -> ConfigurationError:
    if not drivers:
        return document.error(("storage",), "names no driver; allowed is exactly one, such as filesystem or inmemory")
    named: list[str] = []
    hints: list[str] = []
    for driver in drivers:
        origins = [one_line(origin) for origin in document.origins_below(("storage", driver))]
        named.append(quoted(driver) + (f" ({', '.join(origins)})" if origins else ""))
        hint = did_you_mean(driver, [*_DRIVERS, *SECTIONS_OF_STORAGE])
        if driver not in _DRIVERS and hint.startswith("did"):
            hints.append(f"; by {quoted(driver)}, {hint}")
    sentence = f"names the drivers {', '.join(named[:-1])} and {named[-1]}; allowed is exactly one{''.join(hints)}"
    return ConfigurationError(f"{document.source}: storage: {sentence}")


def _auth(document: Document) -> Auth:
    types = list(document.decode(dict[str, object], ("auth",)))
    for name in types:
        document.decode(dict[str, object], ("auth", name))
    if "none" in types and len(types) > 1:
        raise document.error(("auth",), f"names {in_words(types, 'and')}; none, an open registry, stands alone")
    return Auth(types=tuple(name for name in types if name != "none"))


def _refuse_what_is_unsafe_to_ignore(configuration: Configuration, claimed: Mapping[str, type[Struct]]) -> None:
    document = configuration.document
    refused = dict(_REFUSED)
    refused |= {f"auth.{name}": "refusing to start an open registry instead" for name in configuration.auth.types}
    for path, consequence in refused.items():
        key = tuple(path.split("."))
        is_auth = key[0] == "auth"
        if (is_auth or _says_something(document.find(key))) and not _is_claimed(path, claimed):
            reason = f"not supported by this version{_or_blocked(configuration)}"
            if is_auth:
                offered = [each.removeprefix("auth.") for each in claimed if each.startswith("auth.")]
                reason += f"; {did_you_mean(key[1], offered)}" if offered else ""
            raise document.error(key, f"{reason}; {consequence}")


def _or_blocked(configuration: Configuration) -> str:
    """Return what else may be the reason that nobody answers for a section: that its plugin is blocked."""
    blocked = configuration.plugins.block
    return f", or its plugin is blocked ({', '.join(blocked)})" if blocked else ""


def _without_effect(configuration: Configuration, claimed: Mapping[str, type[Struct]]) -> Iterator[Key]:
    for kind in ("registry", "repository", "storage"):
        entries: tuple[MiddlewareEntry, ...] = getattr(configuration.middleware, kind)
        for entry in entries:
            if not entry.disabled and not _is_claimed(f"middleware.{kind}.{entry.name}", claimed):
                yield ("middleware", kind, entry.name)
    for path in _NOT_BUILT:
        key = tuple(path.split("."))
        yield from _unclaimed(key, configuration.document.find(key), claimed)


def _unclaimed(key: tuple[str, ...], value: Plain, claimed: Mapping[str, type[Struct]]) -> Iterator[Key]:
    path = ".".join(key)
    if not _says_something(value) or _is_claimed(path, claimed) or path in _SWITCHES:
        return
    if isinstance(value, dict) and any(each.startswith(path + ".") for each in claimed):
        for name, inner in value.items():
            yield from _unclaimed((*key, name), inner, claimed)
    else:
        yield key


def _is_claimed(path: str, claimed: Mapping[str, type[Struct]]) -> bool:
    return any(path == each or path.startswith(each + ".") for each in claimed)


def _says_something(value: Plain) -> bool:
    """Tell whether ignoring a value would change anything: empty and switched-off things ask for nothing."""
    match unwrapped(value):
        case dict() as items if items.get("disabled") is True or items.get("enabled") is False:
            return False
        case dict() as items:
            return any(_says_something(item) for item in items.values())
        case list() as items:
            return any(_says_something(item) for item in items)
        case other:
            return bool(other)

"""The settings as they are written: distribution's YAML section by section, and Moorage's own beside them.

A field's key in YAML is its name without underscores, and its word in ``REGISTRY_...`` variables is that key in capitals,
unless an annotation says otherwise. Durations are seconds here and Go's notation there. Descriptions are for settings
that have an effect; sections without any are known, checked, and have no effect yet.
"""

import ipaddress
import re
from typing import Annotated, ClassVar, Final, Literal, cast
from urllib.parse import urlsplit

from msgspec import Meta, Struct, field, to_builtins

from ._yaml import A_DURATION, Plain, did_you_mean, masked, parse_duration, quoted

DEFAULT_PAGE: Final = 1000
HOUR: Final = 3600.0
SECTIONS_OF_STORAGE: Final = ("cache", "delete", "maintenance", "redirect", "tag")
"""The keys below ``storage`` that name no driver."""

_FRAMING: Final = frozenset({"connection", "content-length", "content-type", "date", "transfer-encoding"})
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _key(name: str) -> str:
    return name.replace("_", "")


def _whole_duration(value: object) -> float:
    seconds = parse_duration(value)
    if seconds < 0:
        raise ValueError(f"{A_DURATION}, and not negative")
    return seconds


def _version(value: object) -> str:
    if isinstance(value, str | float) and str(value) == "0.1":
        return "0.1"
    raise ValueError("0.1")


def _network(value: object) -> str:
    if isinstance(value, str):
        try:
            return str(ipaddress.ip_network(value, strict=False))
        except ValueError:
            pass
    raise ValueError("an IP address or a network such as 10.0.0.0/8")


def _header_value(value: object) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).isprintable():
        text = str(value)
        # HTTP has no other characters.
        if text.isascii() or all(ord(each) <= 0xFF for each in text):
            return text
    raise ValueError("text on one line")


def _external_url(value: object) -> str:
    if isinstance(value, str):
        try:
            parts = urlsplit(value)
        except ValueError:
            parts = None
        if not value or (parts and parts.scheme in {"http", "https"} and parts.hostname):
            return str(value)
    raise ValueError("an http or https URL")


_DURATION_SCHEMA: Final = {
    "type": ["string", "integer"],
    "pattern": r"^[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$",
}
Duration = Annotated[
    float, Meta(extra={"parse": _whole_duration, "allowed": A_DURATION}, extra_json_schema=_DURATION_SCHEMA)
]
"""Seconds, never negative."""
SignedDuration = Annotated[
    float, Meta(extra={"parse": parse_duration, "allowed": A_DURATION}, extra_json_schema=_DURATION_SCHEMA)
]
"""Seconds; for settings that give a meaning to -1."""
Level = Annotated[
    Literal["error", "warn", "info", "debug"],
    Meta(extra={"folded": True}, description="How much is logged."),
]
"""A log level, whatever its case was."""


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=_key):
    """What all sections share: fixed keys, and a repr without secrets."""

    def __repr__(self) -> str:
        fields = cast("dict[str, Plain]", to_builtins(self))  # a Struct becomes a mapping
        return f"{type(self).__name__}({masked(fields)})"


class AccessLog(Section, frozen=True, kw_only=True):
    """``log.accesslog``: the line for each request."""

    disabled: Annotated[bool, Meta(description="Write no line for each request.")] = False


class Smtp(Section, frozen=True, kw_only=True):
    """``log.hooks[].options.smtp``."""

    addr: str = ""
    username: str = ""
    password: str = ""
    insecure: bool = False


class MailOptions(Section, frozen=True, kw_only=True):
    """``log.hooks[].options``."""

    smtp: Smtp = Smtp()
    sender: str = field(default="", name="from")
    to: tuple[str, ...] = ()


class LogHook(Section, frozen=True, kw_only=True):
    """``log.hooks[]``."""

    disabled: bool = False
    type: str = ""
    levels: tuple[str, ...] = ()
    options: Annotated[MailOptions, Meta(extra={"environment": "MAILOPTIONS"})] = MailOptions()


class Log(Section, frozen=True, kw_only=True):
    """``log``: what is logged, and how."""

    level: Level = "info"
    formatter: Annotated[
        Literal["text", "json", "logstash"] | None,
        Meta(description="The form of each line that is logged; without it text on a terminal and JSON otherwise."),
    ] = None
    fields: Annotated[dict[str, object], Meta(description="Fields that each line carries.")] = {}
    report_caller: Annotated[bool, Meta(description="Say in each line which code wrote it.")] = False
    access_log: AccessLog = AccessLog()
    hooks: tuple[LogHook, ...] = ()


class StorageCache(Section, frozen=True, kw_only=True):
    """``storage.cache``: what is remembered of content; the layer ``cache`` reads it."""

    blob_descriptor: Annotated[
        str, Meta(description="Where it is remembered which blobs there are: inmemory or redis.")
    ] = ""
    layer_info: Annotated[
        str, Meta(description="The old name of blobdescriptor.", extra_json_schema={"deprecated": True})
    ] = ""
    blob_descriptor_size: Annotated[
        int, Meta(description="How many answers each process remembers in memory; 0 and less is any number.")
    ] = 10000


class StorageDelete(Section, frozen=True, kw_only=True):
    """``storage.delete``."""

    enabled: Annotated[bool, Meta(description="Whether clients may delete blobs, manifests and tags.")] = False


class StorageRedirect(Section, frozen=True, kw_only=True):
    """``storage.redirect``."""

    disable: bool = False


class StorageTag(Section, frozen=True, kw_only=True):
    """``storage.tag``."""

    concurrency_limit: Annotated[
        int, Meta(ge=0, description="How many tags are read at once to find those of a digest; 0 is the default.")
    ] = 0


class UploadPurging(Section, frozen=True, kw_only=True):
    """``storage.maintenance.uploadpurging``: what happens to uploads that nobody finishes."""

    enabled: Annotated[bool, Meta(description="Remove uploads that nobody finishes.")] = True
    age: Annotated[Duration, Meta(description="How old an upload must be to be removed.")] = 168 * HOUR
    interval: Annotated[Duration, Meta(description="How often to look for old uploads.")] = 24 * HOUR
    dry_run: Annotated[bool, Meta(description="Only log what would be removed.")] = False

    def __post_init__(self) -> None:
        """Refuse to look without a pause.

        Raises:
            ValueError: The interval is no time at all.
        """
        if self.interval <= 0:
            raise ValueError("interval has 0s; allowed is a duration above that")


class ReadOnly(Section, frozen=True, kw_only=True):
    """``storage.maintenance.readonly``."""

    enabled: Annotated[bool, Meta(description="Refuse whatever would change content.")] = False


class Maintenance(Section, frozen=True, kw_only=True):
    """``storage.maintenance``."""

    upload_purging: UploadPurging = UploadPurging()
    read_only: ReadOnly = ReadOnly()


class StorageSections(Section, frozen=True, kw_only=True):
    """All below ``storage`` that is no driver; the names are `SECTIONS_OF_STORAGE`."""

    cache: StorageCache = StorageCache()
    delete: StorageDelete = StorageDelete()
    maintenance: Maintenance = Maintenance()
    redirect: StorageRedirect = StorageRedirect()
    tag: StorageTag = StorageTag()


class MiddlewareEntry(Section, frozen=True, kw_only=True):
    """``middleware.<kind>[]``."""

    name: str
    options: dict[str, object] = {}
    disabled: bool = False


class Middleware(Section, frozen=True, kw_only=True):
    """``middleware``: what is put around the registry, its repositories and its storage."""

    registry: tuple[MiddlewareEntry, ...] = ()
    repository: tuple[MiddlewareEntry, ...] = ()
    storage: tuple[MiddlewareEntry, ...] = ()


class LetsEncrypt(Section, frozen=True, kw_only=True):
    """``http.tls.letsencrypt``."""

    cache_file: str = ""
    email: str = ""
    hosts: tuple[str, ...] = ()
    directory_url: str = ""


_CIPHER_SUITES = (
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
)
"""Go's names, as far as distribution knows them."""


def _cipher_suite(value: object) -> str:
    if value in _CIPHER_SUITES:
        return str(value)
    raise ValueError(f"a cipher suite by Go's name; {did_you_mean(str(value), _CIPHER_SUITES)}")


_CipherSuite = Annotated[
    str,
    Meta(
        extra={"parse": _cipher_suite, "allowed": "a cipher suite by Go's name"},
        extra_json_schema={"enum": list(_CIPHER_SUITES)},
    ),
]


class Tls(Section, frozen=True, kw_only=True):
    """``http.tls``."""

    certificate: Annotated[
        str, Meta(description="The file of the certificate and those between it and its authority (PEM).")
    ] = ""
    key: Annotated[str, Meta(description="The file of the certificate's private key (PEM), not encrypted.")] = ""
    client_cas: Annotated[
        tuple[str, ...], Meta(description="Files of the authorities by which clients' certificates are verified (PEM).")
    ] = ()
    client_auth: (
        Literal[
            "request-client-cert",
            "require-any-client-cert",
            "verify-client-cert-if-given",
            "require-and-verify-client-cert",
        ]
        | None
    ) = None
    minimum_tls: Literal["tls1.2", "tls1.3"] | None = None
    cipher_suites: tuple[_CipherSuite, ...] = ()
    lets_encrypt: LetsEncrypt = LetsEncrypt()


class Http2(Section, frozen=True, kw_only=True):
    """``http.http2``: HTTP/2 with TLS."""

    disabled: Annotated[
        bool | None,
        Meta(description="Offer no HTTP/2; false prefers it. By default clients that can do both get HTTP/1.1."),
    ] = None


class H2c(Section, frozen=True, kw_only=True):
    """``http.h2c``: HTTP/2 without TLS."""

    enabled: bool = False


class Prometheus(Section, frozen=True, kw_only=True):
    """``http.debug.prometheus``."""

    enabled: bool = False
    path: str = "/metrics"


class Debug(Section, frozen=True, kw_only=True):
    """``http.debug``: the second server, for those who run the first."""

    addr: str = ""
    prometheus: Prometheus = Prometheus()


_HeaderValue = Annotated[
    str, Meta(extra={"parse": _header_value, "allowed": "text on one line"}, extra_json_schema={"type": "string"})
]
_Network = Annotated[
    str,
    Meta(
        extra={"parse": _network, "allowed": "an IP address or a network such as 10.0.0.0/8"},
        extra_json_schema={"type": "string"},
    ),
]


_PREFIX = re.compile(r"[A-Za-z0-9._~/-]*", re.ASCII)


class Http(Section, frozen=True, kw_only=True):
    """``http``: where and how requests are answered."""

    addr: Annotated[str, Meta(description="Where to listen: host:port, or the path of a socket.")] = ""
    net: Annotated[Literal["tcp", "unix"], Meta(description="What kind of address addr is.")] = "tcp"
    prefix: Annotated[str, Meta(description="A path that comes before /v2/, with a slash at both ends.")] = ""
    host: Annotated[
        str,
        Meta(
            extra={"parse": _external_url, "allowed": "an http or https URL"},
            extra_json_schema={"type": "string"},
            description="The URL by which clients reach this registry, used in the URLs it hands out.",
        ),
    ] = ""
    relative_urls: Annotated[bool | None, Meta(description="Hand out URLs without scheme and host.")] = None
    secret: Annotated[str, Meta(description="What distribution signs the state of uploads with; not needed here.")] = ""
    headers: Annotated[
        dict[str, tuple[_HeaderValue, ...]], Meta(description="Headers that each answer carries, each with its values.")
    ] = {}
    drain_timeout: Annotated[
        Duration, Meta(description="How long requests may take to end once the server was told to stop.")
    ] = 30.0
    trusted_proxies: Annotated[
        tuple[_Network, ...], Meta(description="Addresses and networks whose X-Forwarded-... headers are believed.")
    ] = ()
    engine: Annotated[
        Literal["moorage", "stock"],
        Meta(description="Who speaks HTTP/1.1: Moorage's own engine, or hypercorn, the stock one, which is slower."),
    ] = "moorage"
    tls: Tls = Tls()
    http2: Http2 = Http2()
    h2c: H2c = H2c()
    debug: Debug = Debug()

    def __post_init__(self) -> None:
        """Refuse header names that would break the answers' framing, and prefixes that no path can have.

        Raises:
            ValueError: A header's name is none, or the prefix is no path.
        """
        if not _PREFIX.fullmatch(self.prefix):
            raise ValueError(f"prefix has {quoted(self.prefix)}; allowed is a path such as /registry/")
        for name in self.headers:
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"headers has {quoted(name)}; allowed are names of HTTP headers")
            if name.lower() in _FRAMING:
                raise ValueError(f"headers has {quoted(name)}, which each answer has of its own")

    @property
    def trusted_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The trusted proxies in a form that can be asked for addresses; made anew at each call."""
        return tuple(ipaddress.ip_network(network) for network in self.trusted_proxies)


class Events(Section, frozen=True, kw_only=True):
    """``notifications.events``."""

    include_references: bool = False


class Ignore(Section, frozen=True, kw_only=True):
    """``notifications.endpoints[].ignore``."""

    media_types: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()


class Endpoint(Section, frozen=True, kw_only=True):
    """``notifications.endpoints[]``."""

    name: str = ""
    disabled: bool = False
    url: str = ""
    headers: dict[str, tuple[str, ...]] = {}
    timeout: Duration = 1.0
    threshold: int = 10
    backoff: Duration = 1.0
    ignored_media_types: tuple[str, ...] = ()
    ignore: Ignore = Ignore()


class Notifications(Section, frozen=True, kw_only=True):
    """``notifications``: who is told of pushes and pulls."""

    events: Annotated[Events, Meta(extra={"environment": "EVENTCONFIG"})] = Events()
    endpoints: tuple[Endpoint, ...] = ()


class RedisTls(Section, frozen=True, kw_only=True):
    """``redis.tls``; distribution documents ``enabled``, though its code has never known it."""

    enabled: bool | None = None
    certificate: str = ""
    key: str = ""
    root_cas: tuple[str, ...] = ()


class RedisSettings(Section, frozen=True, kw_only=True):
    """``redis``: go-redis's options; what is None is left to the client."""

    addrs: tuple[str, ...] = ()
    client_name: str = ""
    db: int = 0
    protocol: int | None = None
    username: str = ""
    password: str = ""
    sentinel_username: str = ""
    sentinel_password: str = ""
    max_retries: int | None = None
    min_retry_backoff: SignedDuration | None = None
    max_retry_backoff: SignedDuration | None = None
    dial_timeout: SignedDuration | None = None
    read_timeout: SignedDuration | None = None
    write_timeout: SignedDuration | None = None
    context_timeout_enabled: bool = False
    pool_fifo: bool = False
    pool_size: int | None = None
    pool_timeout: SignedDuration | None = None
    min_idle_conns: int | None = None
    max_idle_conns: int | None = None
    max_active_conns: int | None = None
    conn_max_idle_time: SignedDuration | None = None
    conn_max_lifetime: SignedDuration | None = None
    max_redirects: int | None = None
    read_only: bool = False
    route_by_latency: bool = False
    route_randomly: bool = False
    master_name: str = ""
    disable_identity: bool = False
    identity_suffix: str = ""
    unstable_resp3: bool = False
    tls: RedisTls = RedisTls()


class StorageDriverCheck(Section, frozen=True, kw_only=True):
    """``health.storagedriver``."""

    enabled: bool = False
    interval: Duration = 10.0
    threshold: int = 0


class FileCheck(Section, frozen=True, kw_only=True):
    """``health.file[]``."""

    file: str = ""
    interval: Duration = 10.0
    threshold: int = 0


class HttpCheck(Section, frozen=True, kw_only=True):
    """``health.http[]``."""

    uri: str = ""
    headers: dict[str, tuple[str, ...]] = {}
    status_code: int = 200
    timeout: Duration = 0.0
    interval: Duration = 10.0
    threshold: int = 0


class TcpCheck(Section, frozen=True, kw_only=True):
    """``health.tcp[]``."""

    addr: str = ""
    timeout: Duration = 0.0
    interval: Duration = 10.0
    threshold: int = 0


class Health(Section, frozen=True, kw_only=True):
    """``health``: what must be well for requests to be answered."""

    storage_driver: StorageDriverCheck = StorageDriverCheck()
    file: Annotated[tuple[FileCheck, ...], Meta(extra={"environment": "FILECHECKERS"})] = ()
    http: Annotated[tuple[HttpCheck, ...], Meta(extra={"environment": "HTTPCHECKERS"})] = ()
    tcp: Annotated[tuple[TcpCheck, ...], Meta(extra={"environment": "TCPCHECKERS"})] = ()


class Catalog(Section, frozen=True, kw_only=True):
    """``catalog``."""

    max_entries: Annotated[
        int, Meta(description="The longest page of the list of repositories; 0 and less are the default, 1000.")
    ] = DEFAULT_PAGE


class Tags(Section, frozen=True, kw_only=True):
    """``tags``."""

    max_tags: Annotated[int, Meta(ge=0, description="The longest page of a list of tags; 0 is the default, 1000.")] = (
        DEFAULT_PAGE
    )


class ProxyExec(Section, frozen=True, kw_only=True):
    """``proxy.exec``: the program that knows the upstream's credentials."""

    command: str = ""
    lifetime: Duration | None = None


class Proxy(Section, frozen=True, kw_only=True):
    """``proxy``: whom to be a cache of."""

    remote_url: str = ""
    username: str = ""
    password: str = ""
    exec: ProxyExec = ProxyExec()
    ttl: Duration | None = None
    cache_write_timeout: Duration = 300.0


class Validation(Section, frozen=True, kw_only=True):
    """``validation``: what a pushed manifest must keep to; rules answer for what lies below ``manifests``."""

    enabled: Annotated[
        bool | None,
        Meta(description="The old opposite of disabled; true wins.", extra_json_schema={"deprecated": True}),
    ] = None
    disabled: Annotated[bool, Meta(description="Check neither the URLs in manifests nor what indexes list.")] = False
    manifests: dict[str, object] = {}


class Plugins(Section, frozen=True, kw_only=True):
    """``plugins``: which are used; beside these keys stand the settings of each, under its name."""

    open_keys: ClassVar[bool] = True

    require: Annotated[tuple[str, ...], Meta(description="Plugins without which the registry does not start.")] = ()
    block: Annotated[tuple[str, ...], Meta(description="Plugins that are not loaded although they are installed.")] = ()
    paths: Annotated[
        tuple[str, ...],
        Meta(description="Folders whose Python files are plugins; relative to the folder of the configuration file."),
    ] = ()


class RepositoryPolicy(Section, frozen=True, kw_only=True):
    """``policy.repository``."""

    classes: tuple[str, ...] = ()


class Policy(Section, frozen=True, kw_only=True):
    """``policy``."""

    repository: RepositoryPolicy = RepositoryPolicy()


class Sections(Section, frozen=True, kw_only=True):
    """The sections that are used as they are written."""

    version: Annotated[
        str,
        Meta(
            extra={"parse": _version, "allowed": "0.1"},
            extra_json_schema={"type": ["string", "number"], "enum": [0.1, "0.1"]},
            description="The version of this format.",
        ),
    ]
    log: Log = Log()
    middleware: Middleware = Middleware()
    http: Http = Http()
    notifications: Notifications = Notifications()
    redis: RedisSettings = RedisSettings()
    health: Health = Health()
    catalog: Catalog = Catalog()
    tags: Tags = Tags()
    proxy: Proxy = Proxy()
    validation: Validation = Validation()
    policy: Policy = Policy()
    plugins: Annotated[Plugins, Meta(description="Which plugins are used, and the settings of each by its name.")] = (
        Plugins()
    )
    workers: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="How many processes answer requests; without it, as many as there are processors, at most 4."),
    ] = None


class Written(Sections, frozen=True, kw_only=True):
    """The whole document as it is written."""

    loglevel: Annotated[
        Level | None, Meta(description="The old name of log.level.", extra_json_schema={"deprecated": True})
    ] = None
    storage: Annotated[
        dict[str, object],
        Meta(extra={"shorthand": True}, description="Where content lies: exactly one driver, and what holds for all."),
    ] = {}
    auth: Annotated[
        dict[str, object], Meta(extra={"shorthand": True}, description="Who may do what; none lets everybody in.")
    ] = {}

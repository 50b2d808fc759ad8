"""Layers that decide where clients are sent for content: `redirect`, `rewrite`, `cloudfront`."""

import logging
from base64 import b64encode
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec
import trio

from moorage import ConfigurationError, Driver, DriverLayer, StorageMiddlewareFactory, open_helpers

from ._values import Seconds

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

_log = logging.getLogger("moorage.urls")

_FETCH_SECONDS = 30.0
_FETCH_AGAIN_SECONDS = 60.0
_RANGES_LIMIT = 64 << 20


def _check_base(url: str) -> str:
    """Return `url` without a slash at its end.

    Raises:
        ConfigurationError: it is no URL that something can be put behind.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError("baseurl: is a URL with http or https and a host, without a query")
    return url.rstrip("/")


# ---- redirect


class RedirectOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the layer `redirect`.

    Attributes:
        baseurl: clients are sent to this, followed by a slash and the key.
    """

    baseurl: str


class RedirectLayer(DriverLayer):
    """A store whose content clients get from another server, which has it by the same keys."""

    def __init__(self, inside: Driver, base: str) -> None:
        """Send clients below `base`."""
        super().__init__(inside)
        self._base = base

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        """Return where `key` lies on the other server."""
        del client_address
        await trio.lowlevel.checkpoint()
        return f"{self._base}/{quote(key)}"


@asynccontextmanager
async def _open_redirect(options: RedirectOptions, driver: Driver) -> AsyncGenerator[Driver]:
    await trio.lowlevel.checkpoint()
    yield RedirectLayer(driver, _check_base(options.baseurl))


REDIRECT: StorageMiddlewareFactory[RedirectOptions] = StorageMiddlewareFactory(RedirectOptions, _open_redirect)


# ---- rewrite


class RewriteOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the layer `rewrite`; what is empty stays as the driver has it.

    Attributes:
        scheme: of the URLs that clients are sent to.
        host: of these URLs, with its port.
        trimpathprefix: taken from the beginning of their paths, where it stands there.
    """

    scheme: str = ""
    host: str = ""
    trimpathprefix: str = ""


class RewriteLayer(DriverLayer):
    """A store whose URLs are told to clients in another form."""

    def __init__(self, inside: Driver, options: RewriteOptions) -> None:
        """Rewrite the URLs of `inside`."""
        super().__init__(inside)
        self._options = options

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        """Return the rewritten URL of `key`; None where the driver has none."""
        made = await self.inside.url(key, client_address=client_address)
        if made is None:
            return None
        parts = urlsplit(made)
        path = parts.path.removeprefix(self._options.trimpathprefix)
        return urlunsplit(
            parts._replace(
                scheme=self._options.scheme or parts.scheme,
                netloc=self._options.host or parts.netloc,
                path=path if path.startswith("/") else f"/{path}",
            )
        )


@asynccontextmanager
async def _open_rewrite(options: RewriteOptions, driver: Driver) -> AsyncGenerator[Driver]:
    if options.scheme not in {"", "http", "https"}:
        raise ConfigurationError(f"scheme: found {options.scheme!r}; allowed is http, https")
    if "/" in options.host or "?" in options.host:
        raise ConfigurationError("host: is a host, and a port if need be")
    await trio.lowlevel.checkpoint()
    yield RewriteLayer(driver, options)


REWRITE: StorageMiddlewareFactory[RewriteOptions] = StorageMiddlewareFactory(RewriteOptions, _open_rewrite)


# ---- cloudfront


class CloudfrontOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the layer `cloudfront`.

    Attributes:
        baseurl: the distribution's URL; objects lie below it by the names that they have in the bucket.
        privatekey: the file of the RSA key to sign with, PEM.
        keypairid: by which name CloudFront knows the key.
        duration: how long a URL is good.
        ipfilteredby: clients inside AWS (`aws`), or inside some of its regions (`awsregion`), get the bucket's own URL.
        awsregion: these regions, with commas.
        iprangesurl: where AWS tells its addresses.
        updatefrequency: how often to look there.
        updatefrenquency: the same, as distribution once spelt it.
    """

    baseurl: str
    privatekey: str
    keypairid: str
    duration: Seconds = Seconds(1200)
    ipfilteredby: Literal["none", "aws", "awsregion"] = "none"
    awsregion: str = ""
    iprangesurl: str = "https://ip-ranges.amazonaws.com/ip-ranges.json"
    updatefrequency: Seconds = Seconds(12 * 3600)
    updatefrenquency: Seconds | None = None


class _Named(Protocol):
    def at(self, key: str) -> str: ...


class Ranges:
    """Addresses that belong to AWS; looking one up does not depend on how many ranges there are."""

    def __init__(self) -> None:
        """Know none."""
        self._known: dict[tuple[int, int], set[int]] = {}

    def replace(self, networks: list[IPv4Network | IPv6Network]) -> None:
        """Know `networks`, nothing else."""
        known: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            known.setdefault((network.version, shift), set()).add(int(network.network_address) >> shift)
        self._known = known

    def __contains__(self, address: str) -> bool:
        """Return whether `address` is in one of them; what is no address is in none."""
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        number = int(parsed)
        return any(
            version == parsed.version and number >> shift in starts for (version, shift), starts in self._known.items()
        )


class CloudfrontLayer(DriverLayer):
    """A bucket whose content clients get from CloudFront, by signed URLs with a canned policy."""

    def __init__(self, inside: Driver, options: CloudfrontOptions, key: "RSAPrivateKey", ranges: Ranges | None) -> None:
        """Sign with `key`; clients in `ranges` go to the bucket itself."""
        super().__init__(inside)
        self._options = options
        self._base = _check_base(options.baseurl)
        self._key = key
        self._ranges = ranges
        named = inside
        while isinstance(named, DriverLayer):
            named = named.inside
        if not callable(getattr(named, "at", None)):
            raise ConfigurationError(f"the driver {named.name} keeps no objects that CloudFront could have by name")
        self._named = cast("_Named", named)

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        """Return CloudFront's URL of `key`, or the bucket's own for clients that are near it."""
        if self._ranges is not None and client_address in self._ranges:
            return await self.inside.url(key, client_address=client_address)
        await trio.lowlevel.checkpoint()
        plain = f"{self._base}/{quote(self._named.at(key))}"
        expires = int((datetime.now(UTC) + timedelta(seconds=self._options.duration)).timestamp())
        policy = {"Statement": [{"Resource": plain, "Condition": {"DateLessThan": {"AWS:EpochTime": expires}}}]}
        signature = _sign(self._key, msgspec.json.encode(policy))
        return f"{plain}?Expires={expires}&Signature={signature}&Key-Pair-Id={quote(self._options.keypairid)}"


def _sign(key: "RSAPrivateKey", data: bytes) -> str:
    """Return the signature of `data` in CloudFront's alphabet; it takes RSA with SHA-1 and nothing else."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    signature = key.sign(data, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303 - the service's choice
    return b64encode(signature).decode().translate(str.maketrans("+=/", "-_~"))


@asynccontextmanager
async def _open_cloudfront(options: CloudfrontOptions, driver: Driver) -> AsyncGenerator[Driver]:
    if not options.keypairid:
        raise ConfigurationError("keypairid: is empty")
    regions = frozenset(region.strip() for region in options.awsregion.split(",") if region.strip())
    if options.ipfilteredby == "awsregion" and not regions:
        raise ConfigurationError("awsregion: is needed where ipfilteredby is awsregion")
    key = await trio.to_thread.run_sync(_load_key, options.privatekey)
    if options.ipfilteredby == "none":
        yield CloudfrontLayer(driver, options, key, None)
        return
    ranges = Ranges()
    layer = CloudfrontLayer(driver, options, key, ranges)
    wanted = regions if options.ipfilteredby == "awsregion" else None
    async with open_helpers() as nursery:
        nursery.start_soon(_keep_ranges, options, ranges, wanted)
        yield layer


def _load_key(path: str) -> "RSAPrivateKey":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise ConfigurationError(
            "the layer needs cryptography, which is not installed: pip install 'moorage[cloudfront]'"
        ) from error
    try:
        key = load_pem_private_key(Path(path).read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"privatekey: {error}") from error
    if not isinstance(key, RSAPrivateKey):
        raise ConfigurationError("privatekey: is no RSA key, and CloudFront takes no other")
    return key


async def _keep_ranges(options: CloudfrontOptions, ranges: Ranges, regions: frozenset[str] | None) -> None:
    """Look for AWS's addresses now and then; while they cannot be had, the ones that are known go on to count."""
    while True:
        try:
            ranges.replace(await _fetch(options.iprangesurl, regions))
            pause = float(options.updatefrenquency or options.updatefrequency)
        except Exception as error:  # noqa: BLE001 - an address list that cannot be had stops no pull
            _log.warning("the addresses of AWS cannot be had from %s: %s", options.iprangesurl, error)
            pause = _FETCH_AGAIN_SECONDS
        await trio.sleep(pause)


async def _fetch(url: str, regions: frozenset[str] | None) -> list[IPv4Network | IPv6Network]:
    import httpx

    with trio.fail_after(_FETCH_SECONDS):
        async with httpx.AsyncClient(follow_redirects=True) as client:
            answer = await client.get(url)
    answer.raise_for_status()
    if len(answer.content) > _RANGES_LIMIT:
        raise ValueError("the list is too long")
    told = msgspec.json.decode(answer.content, type=Mapping[str, object])
    networks: list[IPv4Network | IPv6Network] = []
    for name, prefix in (("prefixes", "ip_prefix"), ("ipv6_prefixes", "ipv6_prefix")):
        listed = cast("list[Mapping[str, str]]", told.get(name, []))
        networks += [ip_network(each[prefix]) for each in listed if regions is None or each.get("region") in regions]
    return networks


CLOUDFRONT: StorageMiddlewareFactory[CloudfrontOptions] = StorageMiddlewareFactory(CloudfrontOptions, _open_cloudfront)

"""The authenticators that come with Moorage: their options, and how they are opened.

What an authenticator needs is imported when a configuration uses it; `docs/authentication.md` is the page for operators.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

import msgspec

from moorage import Authenticator, AuthenticatorFactory, Duration, Glob, NoOptions, Regex, open_helpers

from ._shown import is_quotable

_QUOTABLE = "text of printable ASCII characters without quotes and backslashes"


def _quotable(value: object) -> str:
    if isinstance(value, str) and is_quotable(value):
        return str(value)
    raise ValueError(_QUOTABLE)


_Quotable = Annotated[
    str,
    msgspec.Meta(
        extra={"parse": _quotable, "allowed": _QUOTABLE},
        extra_json_schema={"type": "string", "pattern": r"^[ !#-\[\]-~]+$"},
    ),
]


_URL = "a URL with https and a host, without a password or fragment; http only on this machine"
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def is_safe_url(text: str) -> bool:
    """Tell whether what is had from `text` is from whom it says: over TLS, or from this machine."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    safe = parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
    return bool(host) and port != 0 and safe and "@" not in parts.netloc and not parts.fragment and is_quotable(text)


def _url(value: object) -> str:
    if isinstance(value, str) and is_safe_url(value):
        return str(value)
    raise ValueError(_URL)


_Url = Annotated[
    str,
    msgspec.Meta(
        extra={"parse": _url, "allowed": _URL}, extra_json_schema={"type": "string", "pattern": "^https?://[^@#]+$"}
    ),
]

Algorithm = Literal[
    "EdDSA", "HS256", "HS384", "HS512", "RS256", "RS384", "RS512",
    "ES256", "ES384", "ES512", "PS256", "PS384", "PS512",
]  # fmt: skip
ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
"""How tokens may be signed."""

_MINUTE = 60.0


class Htpasswd(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of `auth: {htpasswd: {...}}`.

    Attributes:
        realm: what clients show to people whom they ask for a password.
        path: the file with names and bcrypt hashes.
        groups: names of users by the group that they belong to.
    """

    realm: _Quotable
    path: str
    groups: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict[str, tuple[str, ...]])


class Silly(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of `auth: {silly: {...}}`.

    Attributes:
        realm: where clients are sent for tokens.
        service: which service they shall ask them for.
    """

    realm: _Quotable
    service: _Quotable


class TokenOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of `auth: {token: {...}}`.

    Attributes:
        realm: where clients are sent for tokens.
        service: which service tokens are for.
        issuer: who tokens are from.
        rootcertbundle: a file of certificates (PEM), whose keys are trusted, and all that they signed.
        jwks: a file of trusted keys, a JWK Set.
        jwksurl: where the token server publishes such a set.
        refresh: how often that is fetched.
        autoredirect: whether clients are sent to a path of this host instead of to `realm`.
        autoredirectpath: that path.
        signingalgorithms: how tokens may be signed; without any in each way that is known.
        leeway: how far clocks may differ.
        groups: the claim that has the caller's groups; empty for none.
    """

    realm: _Quotable
    service: _Quotable
    issuer: str
    rootcertbundle: str = ""
    jwks: str = ""
    jwksurl: _Url = ""
    refresh: Duration = 15 * _MINUTE
    autoredirect: bool = False
    autoredirectpath: _Quotable = "/auth/token"
    signingalgorithms: tuple[Algorithm, ...] = ()
    leeway: Duration = _MINUTE
    groups: str = ""

    def __post_init__(self) -> None:
        """Refuse what could verify nothing, or be asked for too often.

        Raises:
            ValueError: it could.
        """
        if not (self.rootcertbundle or self.jwks or self.jwksurl):
            raise ValueError("needs keys to verify tokens with: rootcertbundle, jwks or jwksurl")
        if not self.issuer:
            raise ValueError("issuer is empty; tokens have to be from somebody")
        if not self.autoredirectpath.startswith("/"):
            raise ValueError("autoredirectpath has to begin with a slash")
        _check_refresh(self.refresh)


Identity = Literal["san-uri", "san-dns", "san-email", "cn", "subject"]


class Mtls(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of `auth: {mtls: {...}}`.

    Attributes:
        identity: where in a certificate the caller's name is, the best place first.
        pattern: what the whole name has to match; others are passed over.
        groups: what of the certificate are the caller's groups: `ou`, the organizational units, or nothing.
    """

    identity: Annotated[tuple[Identity, ...], msgspec.Meta(min_length=1)] = ("san-uri", "san-email", "san-dns", "cn")
    pattern: Regex | None = None
    groups: Literal["ou"] | None = None


class Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of `auth: {oidc: {issuers: [...]}}`.

    Attributes:
        issuer: its URL, exactly as tokens have it in `iss`.
        audience: of which one has to be in `aud`.
        claims: what other claims have to say; of one that is a list, an item.
        name: the claim that has the caller's name.
        groups: claims that have the caller's groups.
        prefix: stands before names and groups, so that those of several issuers are never the same.
    """

    issuer: _Url
    audience: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    claims: Mapping[str, Glob] = msgspec.field(default_factory=dict[str, Glob])
    name: str = "sub"
    groups: tuple[str, ...] = ()
    prefix: str = ""


class Oidc(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of `auth: {oidc: {...}}`.

    Attributes:
        issuers: whose tokens are believed.
        realm: what clients show to people whom they ask for a token.
        refresh: how often the keys of the issuers are fetched.
        leeway: how far clocks may differ.
    """

    issuers: Annotated[tuple[Issuer, ...], msgspec.Meta(min_length=1)]
    realm: _Quotable = "Moorage"
    refresh: Duration = 15 * _MINUTE
    leeway: Duration = _MINUTE

    def __post_init__(self) -> None:
        """Refuse an issuer that is named twice, and keys that are asked for too often.

        Raises:
            ValueError: so it is.
        """
        names = [each.issuer for each in self.issuers]
        if len(set(names)) < len(names):
            raise ValueError("issuers has one of them twice")
        _check_refresh(self.refresh)


def _check_refresh(seconds: float) -> None:
    if seconds < _MINUTE:
        raise ValueError("refresh is less than 1m")


@asynccontextmanager
async def _open_htpasswd(options: Htpasswd) -> AsyncGenerator[Authenticator]:
    from .htpasswd import Passwords

    yield Passwords(options)


@asynccontextmanager
async def _open_silly(options: Silly) -> AsyncGenerator[Authenticator]:
    from .silly import LetIn

    yield LetIn(options)


@asynccontextmanager
async def _open_anonymous(options: NoOptions) -> AsyncGenerator[Authenticator]:
    from .anonymous import LetInWithoutName

    del options
    yield LetInWithoutName()


@asynccontextmanager
async def _open_token(options: TokenOptions) -> AsyncGenerator[Authenticator]:
    from ._fetched import FetchedKeys, fetch
    from ._jose import Keys, read_key_set
    from .token import Tokens

    async def get() -> Keys:
        return read_key_set(await fetch(options.jwksurl), secrets_too=False)

    if not options.jwksurl:
        yield Tokens(options, None)
        return
    fetched = FetchedKeys(options.jwksurl, get, options.refresh)
    tokens = Tokens(options, fetched)
    async with open_helpers() as helpers:
        helpers.start_soon(fetched.run)
        yield tokens


@asynccontextmanager
async def _open_mtls(options: Mtls) -> AsyncGenerator[Authenticator]:
    from .mtls import Certificates

    yield Certificates(options)


@asynccontextmanager
async def _open_oidc(options: Oidc) -> AsyncGenerator[Authenticator]:
    from ._fetched import FetchedKeys
    from .oidc import IDTokens, Trusted, discover

    trusted = [
        Trusted(each, FetchedKeys(each.issuer, partial(discover, each.issuer), options.refresh))
        for each in options.issuers
    ]
    async with open_helpers() as helpers:
        for each in trusted:
            helpers.start_soon(each.keys.run)
        yield IDTokens(options, trusted)


AUTHENTICATORS: Mapping[str, object] = {
    "anonymous": AuthenticatorFactory(NoOptions, _open_anonymous),
    "htpasswd": AuthenticatorFactory(Htpasswd, _open_htpasswd),
    "mtls": AuthenticatorFactory(Mtls, _open_mtls),
    "oidc": AuthenticatorFactory(Oidc, _open_oidc),
    "silly": AuthenticatorFactory(Silly, _open_silly),
    "token": AuthenticatorFactory(TokenOptions, _open_token),
}

"""The authenticator `oidc`: ID tokens (OpenID Connect Core 1.0) of CI systems and workloads, without a token server.

Such a token says who asks, and nothing of rights: those are for access rules. It is sent as `Bearer`, or as the password of
`Basic` with any name, since that is all that `docker login` can do. The keys of an issuer are found through its discovery
document, now and again; an issuer that is down keeps nobody from starting.
"""

import logging
import time
from collections.abc import Sequence

import msgspec

from moorage import Caller, Origin, Unauthorized

from ._authenticators import ALGORITHMS, Issuer, Oidc, is_safe_url
from ._fetched import FetchedKeys, fetch
from ._jose import (
    BadToken,
    Believed,
    Keys,
    Token,
    check_claims,
    check_signature,
    headers_of,
    parse_token,
    read_key_set,
    texts_of,
)
from ._shown import challenge, is_name, name_and_password

_log = logging.getLogger("moorage.auth.oidc")

_PUBLIC = frozenset(name for name in ALGORITHMS if not name.startswith("HS"))


class _Discovered(msgspec.Struct, frozen=True):
    issuer: str
    jwks_uri: str


async def discover(issuer: str) -> Keys:
    """Return the keys that `issuer` publishes.

    Raises:
        ValueError: they cannot be had.
    """
    url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    try:
        found = msgspec.json.decode(await fetch(url), type=_Discovered)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{url} is no discovery document: {error}") from None
    if found.issuer != issuer:
        raise ValueError(f"{url} is that of another issuer, {found.issuer[:100]!r}")
    if not is_safe_url(found.jwks_uri):
        raise ValueError(f"{url} names keys at {found.jwks_uri[:100]!r}, which is not safe")
    return read_key_set(await fetch(found.jwks_uri), secrets_too=False)


class Trusted:
    """One issuer, with its keys and those of its tokens that were verified."""

    def __init__(self, options: Issuer, keys: FetchedKeys) -> None:
        """Verify with `keys`, which somebody keeps fresh."""
        self.options = options
        self.keys = keys
        self.believed = Believed()
        self.believed_by: Keys | None = None


class IDTokens:
    """Knows callers by the ID tokens of some issuers."""

    def __init__(self, options: Oidc, trusted: Sequence[Trusted]) -> None:
        """Believe in what is `trusted`."""
        self._options = options
        self._trusted = {each.options.issuer: each for each in trusted}

    @property
    def challenge(self) -> str:
        """What clients are asked for: a name, and a token as the password."""
        return challenge("Basic", [("realm", self._options.realm)])

    async def __call__(self, origin: Origin, /) -> Caller | None:
        """Return whose token `origin` shows, or None if it shows none of these issuers.

        Raises:
            Unauthorized: it cannot be believed.
            Unavailable: the keys of its issuer could not be had yet.
        """
        text = _token_in(origin)
        token = None if text is None else parse_token(text)
        if text is None or token is None:
            return None
        trusted = self._trusted.get(token.issuer or "")
        if trusted is None:
            return None
        if trusted.keys.known is not trusted.believed_by:
            trusted.believed.clear()
            trusted.believed_by = trusted.keys.known
        now = time.time()
        caller = trusted.believed.caller(text, now)
        if caller is not None:
            return caller
        try:
            caller, until = await self._verified(token, trusted, now)
        except BadToken as error:
            whose = trusted.options.issuer
            _log.info("a token of %s from %s is refused, since %s", whose, origin.address or "inside", error)
            raise Unauthorized("the token cannot be believed", problem="invalid_token") from None
        trusted.believed.remember(text, caller, until)
        return caller

    async def _verified(self, token: Token, trusted: Trusted, now: float) -> tuple[Caller, float]:
        """Return whose token it is, and until when.

        Raises:
            BadToken: it cannot be believed.
            Unavailable: its key cannot be looked for.
        """
        options = trusted.options
        _, until = check_claims(token, options.audience, now, self._options.leeway)
        headers = headers_of(token)
        if headers.chain or not headers.key:
            raise BadToken("it names no key")
        key = await trusted.keys.key(headers.key)
        if key is None:
            raise BadToken(f"its key {headers.key[:100]!r} is not one of its issuer")
        check_signature(token, headers, key, _PUBLIC)
        for claim, pattern in options.claims.items():
            if not any(map(pattern.matches, texts_of(token.claims.get(claim)))):
                raise BadToken(f"its claim {claim!r} is not {pattern.text!r}")
        names = texts_of(token.claims.get(options.name))
        name = next(iter(names), "") if len(names) == 1 else ""
        if not name or not is_name(name):
            raise BadToken(f"its claim {options.name!r} is no name")
        groups = frozenset(
            f"{options.prefix}{group}" for each in options.groups for group in texts_of(token.claims.get(each))
        )
        return Caller(name=f"{options.prefix}{name}", groups=groups), until


def _token_in(origin: Origin) -> str | None:
    """Return what may be a token among the credentials, or None if nothing may."""
    shown = origin.credentials
    if shown is not None and shown.scheme == "bearer":
        return shown.value
    try:
        both = name_and_password(shown)
    except Unauthorized:
        # Whether that is refused is for who wants passwords to say.
        return None
    return None if both is None else both[1]

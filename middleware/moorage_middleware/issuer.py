"""A token server of the registry's own: `docker login` with tokens that live for minutes, without a second service.

Answers for distribution's token authentication, with the claims that distribution reads, so that it, or anybody else who
has the published keys, can verify the same tokens. Rules this file keeps:

- Who asks for a token has shown something to another authenticator; a token is not had by a token. A refresh token buys
  tokens and nothing else, and only as long as that other authenticator still knows whose it is.
- A token never says more than what was asked for, and never more than what the rules allow at that moment: each right is
  asked about, further in, as the operation that needs it would ask.
- Nothing but the keys is needed to verify: no store, no network. What was verified is remembered until it expires.
"""

import base64
import datetime as dt
import re
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeVar, cast

import msgspec

from moorage import (
    Access,
    Action,
    AuthenticatorFactory,
    Caller,
    CheckAccess,
    Credentials,
    Denied,
    Duration,
    Grant,
    Handler,
    IssuedToken,
    IssueToken,
    MiddlewareFactory,
    NameInvalid,
    Operation,
    Origin,
    ParameterInvalid,
    PublishedKeys,
    PublishKeys,
    R,
    RepositoryName,
    Unauthorized,
    Voucher,
    encode_json,
    hookimpl,
    needed_scopes,
)

from ._remembered import Remembered
from ._shown import challenge

if TYPE_CHECKING:
    from ._keyring import KeyRing

S = TypeVar("S")

_SCOPE = re.compile(r"([a-z0-9]+)(?:\([a-z0-9]+\))?:(.{1,512}):([a-z*]*(?:,[a-z*]*)*)", re.ASCII)
_SCOPES_LIMIT = 50
_ACTIONS: tuple[Action, ...] = ("pull", "push", "delete")
_REMEMBERED = 4096
_REMEMBERED_LENGTH = 4096
_TOKEN_LIMIT = 32 << 10
_LEEWAY = 60
"""Seconds by which clocks may differ, as in distribution."""
_KEYS_LIMIT = 100
_DAY = 86400


class Moment(float):
    """A point in time, written as in RFC 3339."""

    setting_schema: ClassVar[dict[str, object]] = {"type": "string", "format": "date-time"}

    @classmethod
    def from_setting(cls, value: object) -> Self:
        """Return the time that a configuration holds.

        Raises:
            ValueError: it is none; says what is allowed.
        """
        try:
            moment = dt.datetime.fromisoformat(str(value))
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise ValueError("a time with its zone such as 2026-01-31T12:00:00Z")
        return cls(moment.timestamp())


class Issuing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of `auth: {issuer: {...}}`.

    Attributes:
        keys: the folder of the keys, private to the registry; replicas share it.
        service: for whom tokens are good; clients are told it.
        issuer: whose tokens they are.
        realm: the URL of the token server, where that is not what clients ask.
        algorithm: what tokens are signed by.
        ttl: how long a token is good.
        refresh: how long a refresh token is good; 0 for none.
        rotate: how long a key signs.
        revoked_before: tokens that were made before are refused.
        revoked: users whose tokens are refused.
    """

    keys: str
    service: str = "moorage"
    issuer: str = "moorage"
    realm: str = ""
    algorithm: Literal["EdDSA", "ES256"] = "EdDSA"
    ttl: Duration = 300
    refresh: Duration = 30 * _DAY
    rotate: Duration = 30 * _DAY
    revoked_before: Moment = Moment(0)
    revoked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse times that make no sense with each other, and names that no header can hold.

        Raises:
            ValueError: they do not.
        """
        if not self.keys:
            raise ValueError("keys is empty; allowed is the path of a folder")
        for name in ("service", "issuer", "realm"):
            text: str = getattr(self, name)
            if not text.isascii() or not text.isprintable() or (not text and name != "realm"):
                raise ValueError(f"{name} has {text[:40]!r}; allowed is text of printable ASCII")
        if not 10 <= self.ttl <= _DAY:
            raise ValueError("ttl is a time from 10s to 24h")
        if self.refresh and not self.ttl <= self.refresh <= 366 * _DAY:
            raise ValueError("refresh is 0, or a time from ttl to 8784h")
        if self.rotate < 1 or self.kept / self.rotate > _KEYS_LIMIT:
            raise ValueError(f"rotate is too short: more than {_KEYS_LIMIT} keys would be in use for these tokens")

    @property
    def kept(self) -> float:
        """For how many seconds a token may be good after the last that its key has signed."""
        return max(self.ttl, self.refresh) + _LEEWAY


class _Entry(msgspec.Struct, frozen=True):
    """One resource in a token, as distribution writes it."""

    type: str
    name: str
    actions: tuple[str, ...]


class _Claims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a token says."""

    iss: str
    sub: str
    aud: str
    exp: int
    nbf: int
    iat: int
    jti: str
    access: tuple[_Entry, ...] | None = None
    groups: tuple[str, ...] = ()
    voucher: Voucher | None = None


class _Head(msgspec.Struct, frozen=True):
    kid: str = ""


class _Issuer(msgspec.Struct, frozen=True):
    iss: str = ""


_claims = msgspec.json.Decoder(_Claims)


class TokenServer:
    """Answers who asks for a token, or for the keys."""

    def __init__(self, options: Issuing, keys: "KeyRing", inner: Handler) -> None:
        """Sign by `keys`; ask `inner` what callers may do, and pass on everything else to it."""
        self._options = options
        self._keys = keys
        self._inner = inner

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`.

        Raises:
            Unauthorized: a refresh token asks for something else than a token, or a token asks for one.
            ParameterInvalid: what is asked for is no service or scope.
        """
        asked: object = operation  # to look into; the type of `operation` itself says what it is answered with
        if isinstance(asked, IssueToken):
            return cast("R", await self._issued(asked))
        if isinstance(asked, PublishKeys):
            keys = sorted(self._keys.keys.values(), key=lambda key: key.signs_from)
            return cast("R", PublishedKeys(encode_json({"keys": [key.public() for key in keys]})))
        shown = operation.origin.credentials
        if shown is not None and shown.scheme == "refresh_token":
            raise Unauthorized("a refresh token buys tokens only", problem="invalid_token")
        return await self._inner(operation)

    async def _issued(self, operation: IssueToken) -> IssuedToken:
        options, caller = self._options, operation.caller
        if caller.grants is not None:
            raise Unauthorized("a token cannot be had by a token")
        if operation.service not in {"", options.service}:
            raise ParameterInvalid(
                "tokens of this registry are for another service", detail={"service": options.service}
            )
        entries = [await self._narrowed(operation, *scope) for scope in _merged(operation.scopes)]
        entries = [entry for entry in entries if entry.actions]
        now = int(time.time())
        return IssuedToken(
            token=self._signed(
                caller.name,
                options.service,
                now,
                options.ttl,
                access=tuple(entries),
                groups=tuple(sorted(caller.groups)),
            ),
            issued_at=now,
            expires_in=int(options.ttl),
            scopes=tuple(f"{entry.type}:{entry.name}:{','.join(entry.actions)}" for entry in entries),
            refresh_token=self._refresh_token(operation, now),
        )

    def _refresh_token(self, operation: IssueToken, now: int) -> str | None:
        shown = operation.origin.credentials
        if shown is not None and shown.scheme == "refresh_token":
            # The same again: it does not live longer by being used.
            return shown.value
        # Who cannot be asked for again keeps what they showed: that ends when it ends.
        if not operation.offline or operation.caller.voucher is None or not self._options.refresh:
            return None
        return self._signed(
            operation.caller.name,
            _refresh_audience(self._options),
            now,
            self._options.refresh,
            voucher=operation.caller.voucher,
        )

    def _signed(
        self,
        name: str,
        audience: str,
        now: int,
        seconds: float,
        *,
        access: tuple[_Entry, ...] | None = None,
        groups: tuple[str, ...] = (),
        voucher: Voucher | None = None,
    ) -> str:
        from ._keyring import sign

        claims = _Claims(
            iss=self._options.issuer,
            sub=name,
            aud=audience,
            exp=now + int(seconds),
            nbf=now,
            iat=now,
            jti=secrets.token_urlsafe(16),
            access=access,
            groups=groups,
            voucher=voucher,
        )
        return sign(self._keys.signer(), claims)

    async def _narrowed(self, operation: IssueToken, kind: str, name: str, actions: Sequence[str]) -> _Entry:
        """Return what of the asked `actions` the caller may do."""
        if (kind, name) == ("registry", "catalog"):
            may = "*" in actions and await self._may(operation, Access(None, "catalog"))
            return _Entry(kind, name, ("*",) if may else ())
        try:
            repository = RepositoryName(name)
        except NameInvalid:
            return _Entry(kind, name, ())
        offered = _ACTIONS if kind == "repository" else ()
        wanted: list[Action] = [action for action in offered if action in actions or "*" in actions]
        may_do = [action for action in wanted if await self._may(operation, Access(repository, action))]
        return _Entry(kind, name, tuple(may_do))

    async def _may(self, operation: IssueToken, access: Access) -> bool:
        try:
            await self._inner(CheckAccess(origin=operation.origin, caller=operation.caller, needed=(access,)))
        except (Denied, Unauthorized):
            return False
        return True


def _merged(scopes: Sequence[str]) -> list[tuple[str, str, Sequence[str]]]:
    """Return each resource that `scopes` name, once, as type, name and all the actions asked for.

    Raises:
        ParameterInvalid: one is no scope, or they are too many.
    """
    asked: dict[tuple[str, str], list[str]] = {}
    if len(scopes) > _SCOPES_LIMIT:
        raise ParameterInvalid(f"a token is for at most {_SCOPES_LIMIT} scopes")
    for scope in scopes:
        match = _SCOPE.fullmatch(scope)
        if match is None:
            raise ParameterInvalid("a scope is <type>:<name>:<action>,...", detail={"scope": scope[:100]})
        asked.setdefault((match[1], match[2]), []).extend(match[3].split(","))
    return [(kind, name, actions) for (kind, name), actions in asked.items()]


def _refresh_audience(options: Issuing) -> str:
    """Return whom refresh tokens are for: nobody that takes tokens, here or elsewhere, calls itself so."""
    return f"{options.service} refresh"


class OwnTokens:
    """The authenticator of the tokens that `TokenServer` issues."""

    def __init__(self, options: Issuing, keys: "KeyRing") -> None:
        """Verify by `keys`."""
        self._options = options
        self._keys = keys
        self._trusted = keys.keys
        self._verified: Remembered[str, tuple[Caller, float]] = Remembered(most=_REMEMBERED)

    @property
    def challenge(self) -> str:
        """Where tokens are to be had, if nothing is known of the request."""
        return self.challenge_for(Origin(), (), "")

    def challenge_for(self, origin: Origin, needed: Sequence[Access], problem: str) -> str:
        """Return where a token is to be had for what needs the rights `needed`."""
        parameters = [
            ("realm", self._options.realm or f"{origin.base_url}/auth/token"),
            ("service", self._options.service),
            ("scope", needed_scopes(needed)),
            ("error", problem),
        ]
        return challenge("Bearer", parameters)

    async def __call__(self, origin: Origin, /) -> Caller | None:
        """Return whom a token names, None if none of ours is shown.

        Raises:
            Unauthorized: it is ours, and good for nothing (any more).
        """
        shown = origin.credentials
        if shown is None or shown.scheme not in {"bearer", "refresh_token"}:
            return None
        if self._trusted is not self._keys.keys:
            # Whose key is gone is refused at once.
            self._trusted = self._keys.keys
            self._verified.clear()
        token = shown.value
        known = self._verified.get(token) if shown.scheme == "bearer" else None
        if known is not None and known[1] > time.time():
            return known[0]
        claims = await self._verify(shown)
        if claims is None:
            return None
        if shown.scheme == "refresh_token":
            if claims.voucher is None:
                raise Unauthorized("nobody can be asked whose the token is", problem="invalid_token")
            return Caller(name=claims.sub, voucher=claims.voucher)
        caller = Caller(
            name=claims.sub, groups=frozenset(claims.groups), grants=tuple(map(_grant, claims.access or ()))
        )
        if len(token) <= _REMEMBERED_LENGTH:
            self._verified.put(token, (caller, claims.exp + _LEEWAY))
        return caller

    async def _verify(self, shown: Credentials) -> _Claims | None:
        """Return what a token says, None if it is nobody's or somebody else's.

        Raises:
            Unauthorized: it is ours, and good for nothing.
        """
        from ._keyring import verify

        options, token = self._options, shown.value
        if len(token) > _TOKEN_LIMIT or token.count(".") != 2:
            return None
        head, body, _ = token.split(".")
        try:
            kid = _unverified(head, _Head).kid
            if _unverified(body, _Issuer).iss != options.issuer:
                return None
        except (ValueError, msgspec.MsgspecError):
            return None
        key = await self._keys.find(kid)
        if key is None:
            raise Unauthorized(
                "the token is signed by a key that is not, or no longer, one of ours", problem="invalid_token"
            )
        try:
            claims = _claims.decode(verify(key, token))
        except (ValueError, msgspec.MsgspecError):
            raise Unauthorized("the token is not signed by us", problem="invalid_token") from None
        now = time.time()
        audience = options.service if shown.scheme == "bearer" else _refresh_audience(options)
        problem = (
            "is for something else"
            if claims.aud != audience
            else "has expired"
            if claims.exp + _LEEWAY <= now
            else "is not good yet"
            if claims.nbf - _LEEWAY > now
            else "was revoked"
            if claims.iat < options.revoked_before or claims.sub in options.revoked
            else None
        )
        if problem is not None:
            raise Unauthorized(f"the token {problem}", problem="invalid_token")
        return claims


def _unverified(part: str, type_: type[S]) -> S:
    """Return what a part of a token says, which nobody has proved.

    Raises:
        ValueError, msgspec.MsgspecError: it is no part of a token.
    """
    return msgspec.json.decode(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)), type=type_)


def _grant(entry: _Entry) -> Grant:
    return Grant(entry.name if entry.type == "repository" else None, frozenset(entry.actions))


@asynccontextmanager
async def _open_keys(options: Issuing) -> AsyncGenerator["KeyRing"]:
    from ._keyring import open_keyring

    async with open_keyring(Path(options.keys), options.algorithm, rotate=options.rotate, kept=options.kept) as keys:
        yield keys


@asynccontextmanager
async def _open_server(options: Issuing, inner: Handler) -> AsyncGenerator[Handler]:
    async with _open_keys(options) as keys:
        yield TokenServer(options, keys, inner)


@asynccontextmanager
async def _open_authenticator(options: Issuing) -> AsyncGenerator[OwnTokens]:
    async with _open_keys(options) as keys:
        yield OwnTokens(options, keys)


@hookimpl
def register_middleware() -> Mapping[str, object]:
    """Offer the token server."""
    return {"issuer": MiddlewareFactory(Issuing, _open_server, section="auth.issuer", place="caller")}


@hookimpl
def register_authenticators() -> Mapping[str, object]:
    """Offer the authenticator of its tokens."""
    return {"issuer": AuthenticatorFactory(Issuing, _open_authenticator)}

"""The authenticator `token`: tokens of a token server, as distribution has them.

A token carries what it is good for. It is verified once, with keys from files, which are read again when they change, or
from the server; after that it is known by a digest until it expires or other keys are trusted.
"""

import logging
import re
import time
from collections.abc import Sequence

import msgspec
from joserfc.jwk import Key

from moorage import Access, Caller, Grant, Origin, Unauthorized, needed_scopes

from ._authenticators import ALGORITHMS, TokenOptions
from ._fetched import FetchedKeys
from ._jose import (
    BadToken,
    Believed,
    Bundle,
    Headers,
    Keys,
    Token,
    check_claims,
    check_signature,
    headers_of,
    key_of_chain,
    parse_token,
    read_bundle,
    read_key_set,
    texts_of,
)
from ._remembered import Remembered
from ._shown import challenge
from ._watched import Watched

_log = logging.getLogger("moorage.auth.token")

_BASE = re.compile(r"(https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)(?:/.*)?", re.ASCII)
_TOLD_MOST = 100


class _Entry(msgspec.Struct, frozen=True):
    type: str = ""
    name: str = ""
    actions: tuple[str, ...] | None = None


class _Rights(msgspec.Struct, frozen=True):
    access: tuple[_Entry, ...] | None = None


class Tokens:
    """Knows callers by the tokens that a server gave them."""

    def __init__(self, options: TokenOptions, fetched: FetchedKeys | None) -> None:
        """Read the files with keys; `fetched` are keys from a server.

        Raises:
            ConfigurationError: a file cannot be used.
        """
        self._options = options
        self._allowed = frozenset(options.signingalgorithms or ALGORITHMS)
        self._fetched = fetched
        self._bundle: Watched[Bundle] | None = None
        self._key_set: Watched[Keys] | None = None
        if options.rootcertbundle:
            self._bundle = Watched(options.rootcertbundle, read_bundle, setting="auth.token.rootcertbundle")
        if options.jwks:
            self._key_set = Watched(options.jwks, _read_file, setting="auth.token.jwks")
        self._believed = Believed()
        self._believed_by: tuple[object, ...] = ()
        self._told: Remembered[str, bool] = Remembered(most=_TOLD_MOST)

    @property
    def challenge(self) -> str:
        """What is asked for where no right is needed."""
        return self.challenge_for(Origin(), (), "")

    def challenge_for(self, origin: Origin, needed: Sequence[Access], problem: str) -> str:
        """Return where to get a token, and what for."""
        parameters = [
            ("realm", self._realm(origin)),
            ("service", self._options.service),
            ("scope", needed_scopes(needed)),
            ("error", problem),
        ]
        return challenge("Bearer", parameters)

    def _realm(self, origin: Origin) -> str:
        """Return where the token server is; what a client calls this host goes there only if it is a host."""
        base = _BASE.fullmatch(origin.base_url) if self._options.autoredirect else None
        return self._options.realm if base is None else f"{base[1]}{self._options.autoredirectpath}"

    async def __call__(self, origin: Origin, /) -> Caller | None:
        """Return whose token `origin` shows and what for, or None if it shows none, or one of another issuer.

        Raises:
            Unauthorized: it cannot be believed.
            Unavailable: there are no keys to verify it with, for now.
        """
        shown = origin.credentials
        if shown is None or shown.scheme != "bearer":
            return None
        self._look_at_keys()
        now = time.time()
        caller = self._believed.caller(shown.value, now)
        if caller is not None:
            return caller
        token = parse_token(shown.value)
        if token is None or token.issuer not in {None, self._options.issuer}:
            self._tell_of_others(token)
            return None
        try:
            caller, until = await self._verified(token, now)
        except BadToken as error:
            _log.info("a token from %s is refused, since %s", origin.address or "inside", error)
            raise Unauthorized("the token cannot be believed", problem="invalid_token") from None
        self._believed.remember(shown.value, caller, until)
        return caller

    def _look_at_keys(self) -> None:
        """Forget whom it knew by keys that are no longer those."""
        trusted = (
            None if self._bundle is None else self._bundle.current(),
            None if self._key_set is None else self._key_set.current(),
            None if self._fetched is None else self._fetched.known,
        )
        if any(now is not before for now, before in zip(trusted, self._believed_by, strict=False)):
            self._believed.clear()
        self._believed_by = trusted

    def _tell_of_others(self, token: Token | None) -> None:
        """Say once of each issuer that its tokens are left to others: often it is this one, spelt in another way."""
        issuer = (token.issuer if token is not None else None) or ""
        if self._told.get(issuer[:_TOLD_MOST]) is None:
            self._told.put(issuer[:_TOLD_MOST], True)
            what = "what is no token" if token is None else f"a token of {issuer[:_TOLD_MOST]!r}"
            _log.info("%s is left to other authenticators; the issuer here is %r", what, self._options.issuer)

    async def _verified(self, token: Token, now: float) -> tuple[Caller, float]:
        """Return whose token it is, and until when.

        Raises:
            BadToken: it cannot be believed.
            Unavailable: its key cannot be looked for.
        """
        if token.issuer is None:
            raise BadToken("it does not say who issued it")
        subject, until = check_claims(token, (self._options.service,), now, self._options.leeway)
        grants = _grants(token)
        headers = headers_of(token)
        check_signature(token, headers, await self._key(headers, now), self._allowed)
        groups = texts_of(token.claims.get(self._options.groups)) if self._options.groups else frozenset[str]()
        return Caller(name=subject, groups=groups, grants=grants), until

    async def _key(self, headers: Headers, now: float) -> Key:
        """Return the trusted key that a token names.

        Raises:
            BadToken: it names none.
            Unavailable: nothing could be had from the server that may know it.
        """
        bundle = None if self._bundle is None else self._bundle.current()
        if headers.chain:
            return key_of_chain(headers.chain, () if bundle is None else bundle.roots, now)
        if not headers.key:
            raise BadToken("it names no key")
        key = None if self._key_set is None else self._key_set.current().get(headers.key)
        if key is None and bundle is not None:
            key = bundle.keys.get(headers.key)
        if key is None and self._fetched is not None:
            key = await self._fetched.key(headers.key)
        if key is None:
            raise BadToken(f"its key {headers.key[:_TOLD_MOST]!r} is not trusted")
        return key


def _read_file(data: bytes) -> Keys:
    return read_key_set(data, secrets_too=True)


def _grants(token: Token) -> tuple[Grant, ...]:
    """Return what a token is good for.

    Raises:
        BadToken: that cannot be understood.
    """
    try:
        entries = msgspec.convert(token.claims, _Rights).access or ()
    except msgspec.ValidationError as error:
        raise BadToken(f"what it is good for cannot be understood: {error}") from None
    grants: list[Grant] = []
    for entry in entries:
        actions = frozenset(entry.actions or ())
        if entry.type == "repository":
            grants.append(Grant(entry.name, actions))
        elif (entry.type, entry.name) == ("registry", "catalog") and "*" in actions:
            grants.append(Grant(None, frozenset({"*"})))
    return tuple(grants)

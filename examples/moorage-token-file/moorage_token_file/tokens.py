"""Whose token it is.

The file has a line for each token: the name of its owner, then the SHA-256 digest of the token in hexadecimal. `#` begins
a comment. One name may have several tokens, so that they can be changed one after the other.

A quick digest is right for tokens and wrong for passwords: what `new_token` makes has 256 random bits, and no list of
guesses contains it.
"""

import base64
import hashlib
import hmac
import logging
import re
import secrets
from pathlib import Path

import msgspec
import trio

from moorage import Caller, ConfigurationError, Credentials, Origin, Unauthorized, Unavailable

_log = logging.getLogger("moorage.token_file")

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._@-]*)\s+([0-9a-f]{64})", re.ASCII)
_REALM = re.compile(r'[^"\\\x00-\x1f\x7f-\uffff]+')


class Token(msgspec.Struct, frozen=True):
    """Whose it is, and the SHA-256 digest of its text."""

    owner: str
    digest: bytes


def new_token(owner: str) -> tuple[str, str]:
    """Return a new token and the line of the file for it.

    Raises:
        ValueError: a file cannot have that owner.
    """
    token = secrets.token_urlsafe(32)
    line = f"{owner} {_digest(token).hex()}"
    if _LINE.fullmatch(line) is None:
        raise ValueError("a name has letters, digits and ._@- and begins with a letter or digit")
    return token, line


def parse(text: str) -> tuple[Token, ...]:
    """Return the tokens of a file.

    Raises:
        ValueError: a line cannot be understood. A file of which only a part is understood would lock people out.
    """
    found: list[Token] = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if line:
            parts = _LINE.fullmatch(line)
            if parts is None:
                raise ValueError(f"line {number} is not a name and a SHA-256 digest in hexadecimal")
            found.append(Token(parts[1], bytes.fromhex(parts[2])))
    return tuple(found)


class TokenFile:
    """The authenticator, opened: knows callers by the tokens of a file, which is read again when it has changed."""

    def __init__(self, path: str, realm: str) -> None:
        """Read the file `path`.

        Raises:
            ConfigurationError: that cannot be done, or `realm` cannot stand in a header.
        """
        if _REALM.fullmatch(realm) is None:
            raise ConfigurationError("auth.token_file.realm: it has printable ASCII without quotes and backslashes")
        self._path = Path(path)
        self._realm = realm
        self._seen: tuple[int, int, int] | None = None
        self._tokens: tuple[Token, ...] = ()
        try:
            self._refresh()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"auth.token_file.path: {path}: {error}") from error

    @property
    def challenge(self) -> str:
        """What clients that show no token are asked for. It makes them send a name and, as its password, a token."""
        return f'Basic realm="{self._realm}", charset="UTF-8"'

    async def __call__(self, origin: Origin, /) -> Caller | None:
        """Return whose token `origin` shows, or None if it shows none.

        Raises:
            Unauthorized: it is nobody's.
            Unavailable: the file cannot be read. Nobody gets in by the tokens of before: they may have been revoked.
        """
        await trio.lowlevel.checkpoint()
        shown = _shown(origin.credentials)
        if shown is None:
            return None
        try:
            self._refresh()
        except (OSError, ValueError) as error:
            _log.error("nobody is let in, since %s cannot be read: %s", self._path, error)
            raise Unavailable("the tokens cannot be read") from error
        name, secret = shown
        owner = self._owner_of(secret)
        if owner is None or name not in {None, owner}:
            raise Unauthorized("this name and token do not belong together", challenges=[self.challenge])
        return Caller(name=owner)

    def _refresh(self) -> None:
        """Read the file if it is not the one that was read last.

        In the event loop: a look at a file takes microseconds, and a small file is read only when it has changed.
        """
        found = self._path.stat()
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen != self._seen:
            self._tokens = parse(self._path.read_text(encoding="utf-8"))
            self._seen = seen

    def _owner_of(self, secret: str) -> str | None:
        """Return whose token `secret` is. Takes as long for any, right or wrong, so that the time tells nothing."""
        digest = _digest(secret)
        owner: str | None = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                owner = token.owner
        return owner


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).digest()


def _shown(credentials: Credentials | None) -> tuple[str | None, str] | None:
    """Return name and token of credentials, both of `Basic` ones, the token alone of `Bearer` ones; None of others."""
    if credentials is None:
        return None
    if credentials.scheme == "bearer":
        return None, credentials.value
    if credentials.scheme != "basic":
        return None
    try:
        name, colon, token = base64.b64decode(credentials.value, validate=True).decode().partition(":")
    except ValueError:
        return "", ""
    return (name, token) if colon else ("", "")

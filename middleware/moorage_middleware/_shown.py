"""What clients show in `Authorization`, and what `WWW-Authenticate` asks them for (RFC 9110, 11; RFC 7617; RFC 6750)."""

import base64
from collections.abc import Iterable

from moorage import Credentials, Unauthorized


def name_and_password(credentials: Credentials | None) -> tuple[str, str] | None:
    """Return what is in `Basic` credentials, or None if they are of another kind.

    Raises:
        Unauthorized: they are of that kind, and broken.
    """
    if credentials is None or credentials.scheme != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(credentials.value, validate=True).decode().partition(":")
    except ValueError:
        colon = name = password = ""
    if not colon:
        raise Unauthorized("these credentials are not a name and a password in base64")
    return name, password


def challenge(scheme: str, parameters: Iterable[tuple[str, str]]) -> str:
    """Return a value of `WWW-Authenticate`; parameters without a value are left out.

    Values are quoted strings (RFC 9110, 5.6.4): a host may be what a client sent.
    """
    return f"{scheme} " + ",".join(f"{name}={_quoted(value)}" for name, value in parameters if value)


def _quoted(text: str) -> str:
    shown = "".join(each if " " <= each <= "~" else "?" for each in text)
    return '"' + shown.replace("\\", "\\\\").replace('"', '\\"') + '"'


def is_quotable(text: str) -> bool:
    """Tell whether `text` can be a parameter of a challenge as it is, since not all clients understand escapes."""
    return bool(text) and text.isascii() and text.isprintable() and not set(text) & set('"\\')


def is_name(text: str) -> bool:
    """Tell whether `text` can stand in logs and rules as the name of somebody."""
    return text.isprintable() and len(text) <= 1024

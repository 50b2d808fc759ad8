"""Where a registry is: text becomes a target here."""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

import msgspec

PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9._:%-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


class WrongTarget(Exception):
    """Something cannot be a target, or cannot be reached; its text is one sentence."""


class Origin(msgspec.Struct, frozen=True):
    """Whom to connect to, and how."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if PORTS[self.scheme] == self.port else f"{host}:{self.port}"

    def addresses(self) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
        """Look the host up.

        Raises:
            WrongTarget: it is not known.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise WrongTarget(f"{self.host}: cannot be looked up: {reason}") from error
        return [(family, (str(address[0]), self.port)) for family, _, _, _, address in found]

    @property
    def is_loopback(self) -> bool:
        """Whether all that the host stands for is this machine itself."""
        return all(ipaddress.ip_address(address[0].partition("%")[0]).is_loopback for _, address in self.addresses())


class Target(msgspec.Struct, frozen=True):
    """A registry to put load on."""

    name: str
    url: str
    origin: Origin
    prefix: str
    """What the path begins with, before `/v2/`."""


def parse_origin(url: str) -> Origin:
    """Return the origin of a URL.

    Raises:
        WrongTarget: it is no URL of HTTP.
    """
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
    except ValueError as error:
        raise WrongTarget(f"{url!r}: no URL: {error}") from error
    if scheme not in PORTS or not _HOST.fullmatch(host):
        raise WrongTarget(f"{url!r}: a registry's URL is such as http://127.0.0.1:5000 or https://registry.example.org")
    return Origin(scheme, host, PORTS[scheme] if port is None else port)


def parse_target(text: str) -> Target:
    """Return the target that `[NAME=]URL` means; without a name it is called by its host and port.

    Raises:
        WrongTarget: it means none.
    """
    before, _, after = text.partition("=")
    name, url = (before, after) if after and "/" not in before else ("", text)
    if "://" not in url:
        url = f"http://{url}"
    origin = parse_origin(url)
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise WrongTarget(f"{origin.authority}: passwords do not belong into a URL; see --username")
    if parts.query or parts.fragment or not re.fullmatch(r"[!-~]*", parts.path):
        raise WrongTarget(f"{url!r}: a registry's URL ends with its path")
    if name and not _NAME.fullmatch(name):
        raise WrongTarget(f"{name!r}: a target's name is of letters, digits, dots and dashes")
    prefix = parts.path.rstrip("/").removesuffix("/v2")
    return Target(name or origin.authority, f"{origin.scheme}://{origin.authority}{prefix}", origin, prefix)

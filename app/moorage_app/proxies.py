"""Who the client is when proxies stand between: `Forwarded` (RFC 7239) and `X-Forwarded-…`, from trusted peers only."""

import ipaddress
import re
from collections.abc import Sequence

import msgspec

from .routes import Headers

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PAIR = re.compile(r'([A-Za-z]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;,"\s]*))')
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}", re.ASCII)


class Forwarded(msgspec.Struct, frozen=True):
    """How a client came: its address, and the scheme and host that it used."""

    address: str
    scheme: str
    host: str


class TrustedProxies:
    """The networks whose word about their clients is believed."""

    def __init__(self, networks: Sequence[Network]) -> None:
        """Believe peers in `networks`."""
        self._networks = tuple(networks)

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks if network.version == parsed.version)

    def resolve(self, direct: Forwarded, headers: Headers) -> tuple[Forwarded, bool]:
        """Return how the client came, and whether a trusted proxy said so.

        The nearest address that is not itself a trusted proxy is the client. With `Forwarded`, `X-Forwarded-…` is not
        looked at.
        """
        if not self._networks or not self._trusts(direct.address):
            return direct, False
        standard = headers.all(b"forwarded")
        hops = _forwarded(standard) if standard else _x_forwarded(headers)
        address, scheme, host = direct.address, direct.scheme, direct.host
        for hop in reversed(hops):
            scheme = hop.get("proto", "").lower() if hop.get("proto", "").lower() in {"http", "https"} else scheme
            if _HOST.fullmatch(hop.get("host", "")):
                host = hop["host"]
            said = _address(hop.get("for", ""))
            if said is None:
                break
            address = said
            if not self._trusts(said):
                break
        return Forwarded(address, scheme, host), True


def _x_forwarded(headers: Headers) -> list[dict[str, str]]:
    chain = (headers.joined(b"x-forwarded-for") or headers.joined(b"x-real-ip") or "").split(",")
    hops = [{"for": address.strip()} for address in chain]
    # These two are not lists of hops in practice: the proxy nearest to the client sets them, others pass them on.
    proto = (headers.joined(b"x-forwarded-proto") or "").partition(",")[0].strip()
    host = (headers.joined(b"x-forwarded-host") or "").partition(",")[0].strip()
    hops[-1] |= {"proto": proto, "host": host}
    return hops


def _forwarded(lines: Sequence[str]) -> list[dict[str, str]]:
    """Return the hops that `Forwarded` names, the nearest last.

    Lines that break the grammar, and those before them, say nothing: whoever appends to a line in which a client opened
    a quote closes it, and the client's own words would stand where the proxy's should.
    """
    hops: list[dict[str, str]] = []
    for line in reversed(lines):
        elements = _elements(line)
        if elements is None:
            break
        hops = elements + hops
    return hops


def _elements(line: str) -> list[dict[str, str]] | None:
    """Return the elements of a line by parameter, None if it breaks the grammar; in one pass, whatever is in it."""
    elements: list[dict[str, str]] = [{}]
    at = 0
    while True:
        match = _PAIR.match(line, at)
        if match is not None:
            value = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
            elements[-1][match[1].lower()] = value
            at = match.end()
        if at == len(line):
            return [element for element in elements if element]
        if line[at] == ",":
            elements.append({})
        elif line[at] not in "; \t":
            return None
        at += 1


def _address(text: str) -> str | None:
    """Return the IP address in a `for=` value, which may have a port and brackets; None for what is none."""
    bare = text.strip().strip('"')
    if bare.startswith("["):
        bare = bare[1:].partition("]")[0]
    elif bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return None

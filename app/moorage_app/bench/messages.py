"""Requests, composed once and sent as often as needed; answers; and bytes to push that no registry has seen.

Hashing what is pushed would cost the generator more than pushing it. So all bytes come out of one random buffer, again and
again, and what makes a blob a new one is its last bytes: the hash of all before them is computed once for each size.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urljoin, urlsplit

from .targets import Origin, Target, WrongTarget, parse_origin

SMALL = 64 << 10
"""Bodies up to here are sent in one piece with the head."""
_BUFFER_BYTES = 16 << 20
_UNIQUE_BYTES = 32


class Failed(Exception):
    """An operation did not end well: of what kind it was, and a sentence."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Answer:
    """What came back."""

    __slots__ = ("body", "head", "size", "status")

    def __init__(self, status: int, head: bytes, size: int, body: bytes) -> None:
        self.status = status
        self.head = head
        self.size = size
        """How many bytes the body has."""
        self.body = body
        """The body, if it was to be kept, or its beginning if the status was not a good one."""

    def header(self, name: str) -> str:
        """Return the value of a header; nothing when there is none."""
        wanted = name.lower().encode()
        for line in self.head.split(b"\r\n")[1:]:
            found, _, value = line.partition(b":")
            if found.lower() == wanted:
                return value.strip().decode("latin-1")
        return ""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A request, ready to be sent."""

    origin: Origin
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    wire: bytes
    """The head, and a small body after it."""
    parts: Sequence[memoryview] = ()
    """A large body."""
    body_size: int = 0
    expected: tuple[int, ...] = (200,)
    size: int | None = None
    """How many bytes the answer's body must have."""
    digest: str | None = None
    """What the answer's body must be, where that is looked at."""
    keep: bool = False
    """Whether the answer's body is wanted."""

    def redirected(self, location: str) -> "Request":
        """Return the request for where an answer sends the client; credentials do not go there.

        Raises:
            Failed: it is nowhere.
        """
        url = urljoin(f"{self.origin.scheme}://{self.origin.authority}{self.path}", location)
        try:
            origin = parse_origin(url)
        except WrongTarget as error:
            raise Failed("redirect", f"{self.method} {self.path}: sent to {location!r}") from error
        path = _path_of(url)
        headers = tuple(
            (name, value) for name, value in self.headers if origin == self.origin or name != "Authorization"
        )
        return replace(
            self, origin=origin, path=path, headers=headers, wire=_head(origin, self.method, path, headers, None)
        )


def _path_of(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _head(origin: Origin, method: str, path: str, headers: Sequence[tuple[str, str]], body_size: int | None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {origin.authority}", "User-Agent: moorage-bench"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body_size is not None:
        lines.append(f"Content-Length: {body_size}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


class Endpoint:
    """Composes requests to one repository of one target."""

    def __init__(self, target: Target, repository: str, authorization: str = "") -> None:
        self.target = target
        self.repository = repository
        self.authorization = authorization

    def request(
        self,
        method: str,
        place: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: "bytes | Blob | memoryview | None" = None,
        expected: tuple[int, ...] = (200,),
        size: int | None = None,
        digest: str | None = None,
        keep: bool = False,
        authorization: str | None = None,
    ) -> Request:
        """Compose one to a place of the repository such as `tags/list`, a path, or a URL that the registry gave out."""
        origin = self.target.origin
        if "://" in place:
            try:
                origin, path = parse_origin(place), _path_of(place)
            except WrongTarget as error:
                raise Failed("location", str(error)) from error
        elif place.startswith("/"):
            path = place
        else:
            path = f"{self.target.prefix}/v2/{self.repository}/{place}"
        if authorization is None:
            authorization = self.authorization if origin.host == self.target.origin.host else ""
        every = (*headers, *((("Authorization", authorization),) if authorization else ()))
        parts: Sequence[memoryview] = ()
        small = b""
        body_size: int | None = None if method in {"GET", "HEAD", "DELETE"} else 0
        if body is not None:
            body_size = body.size if isinstance(body, Blob) else len(body)
            parts = body.parts if isinstance(body, Blob) else (memoryview(body),)
            if body_size <= SMALL:
                small, parts = b"".join(parts), ()
        wire = _head(origin, method, path, every, body_size) + small
        return Request(origin, method, path, every, wire, parts, body_size or 0, expected, size, digest, keep=keep)


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """Bytes to push."""

    digest: str
    size: int
    parts: tuple[memoryview, ...]


class Content:
    """Makes blobs that differ in their last bytes."""

    def __init__(self, buffer: bytes | None = None) -> None:
        self._buffer = memoryview(os.urandom(_BUFFER_BYTES) if buffer is None else buffer)
        self._hashed = {0: hashlib.sha256()}

    def prepare(self, size: int) -> None:
        """Hash what all blobs of a size have in common, before there is a hurry."""
        common = max(0, size - _UNIQUE_BYTES)
        if common not in self._hashed:
            hashed = hashlib.sha256()
            for part in self._common(common):
                hashed.update(part)
            self._hashed[common] = hashed

    def _common(self, size: int) -> list[memoryview]:
        whole, rest = divmod(size, len(self._buffer))
        return [self._buffer] * whole + ([self._buffer[:rest]] if rest else [])

    def blob(self, size: int) -> Blob:
        """Return bytes that nobody has seen; very small ones may have been."""
        self.prepare(size)
        common = max(0, size - _UNIQUE_BYTES)
        unique = os.urandom(size - common)
        hashed = self._hashed[common].copy()
        hashed.update(unique)
        return Blob(f"sha256:{hashed.hexdigest()}", size, (*self._common(common), memoryview(unique)))


def blob_of(data: bytes) -> Blob:
    """Return a blob of these bytes."""
    return Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data), (memoryview(data),))


def pieces(blob: Blob, size: int) -> list[tuple[int, Blob]]:
    """Cut a blob into chunks of a size, each with its offset; chunks have no digest."""
    found: list[tuple[int, Blob]] = []
    parts: list[memoryview] = []
    filled = offset = 0
    for part in blob.parts:
        while len(part):
            taken, part = part[: size - filled], part[size - filled :]
            parts.append(taken)
            filled += len(taken)
            if filled == size:
                found.append((offset, Blob("", filled, tuple(parts))))
                offset += filled
                parts, filled = [], 0
    if parts:
        found.append((offset, Blob("", filled, tuple(parts))))
    return found

"""A small registry client that shows everything and hides nothing.

It sends what a case asks for, header by header, follows redirects, answers authentication challenges, and hands
back each answer as it came over the wire: bodies are never unpacked. It makes no judgement, but for the rule on
`Warning` headers, which holds for every answer of every kind.

What an HTTP library refuses to send, a body that ends early or broken framing, goes over plain sockets.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlencode, urljoin, urlsplit, urlunsplit

import h11
import httpx
import msgspec
import trio

from .answer import Answer, CheckFailed

__all__ = ["Body", "Client", "Connection", "open_client", "with_query"]

Body = bytes | list[bytes]
"""Bytes go with a Content-Length; a list of pieces goes chunked, without one."""

OCTETS = "application/octet-stream"
REDIRECTS = {301, 302, 303, 307, 308}
REDIRECTS_OF_ANY_METHOD = {307, 308}
MOST_REDIRECTS = 10
UNAUTHORIZED = 401
WARNING = re.compile(r'299 - "(?:[^"\\]|\\.)*"')
MOST_OF_ALL_WARNINGS = 4096


def with_query(url: str, *parameters: tuple[str, str]) -> str:
    """Add query parameters to a URL; what it has already is kept as it is."""
    parts = urlsplit(url)
    added = urlencode(parameters, quote_via=quote, safe=":")
    return urlunsplit(parts._replace(query=f"{parts.query}&{added}" if parts.query else added))


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


@dataclass(frozen=True, slots=True)
class _Credentials:
    username: str
    password: str

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class Client:
    """All operations of the specification against one registry. Opened by `open_client`.

    The methods named after operations take the parts of the request and return the answer, whatever it is.
    """

    def __init__(self, url: str, http: httpx.AsyncClient, credentials: _Credentials | None = None) -> None:
        self.url = url.rstrip("/")
        self._http = http
        self._credentials = credentials
        self._tokens: dict[tuple[str, str], str] = {}

    @property
    def has_credentials(self) -> bool:
        """Whether requests carry credentials."""
        return self._credentials is not None

    # ---- one request ----

    async def send(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | list[tuple[str, str]] | None = None,
        body: Body = b"",
        without: Sequence[str] = (),
        anonymous: bool = False,
    ) -> Answer:
        """Send one request to a path or URL; `without` names headers that must not be sent at all."""
        url = self.absolute(target)
        pairs = headers if isinstance(headers, list) else list((headers or {}).items())
        before: list[Answer] = []
        while True:
            answer = await self._send_once(
                method, url, pairs, body, without, None if anonymous else self._auth(method, url)
            )
            if answer.status == UNAUTHORIZED and not anonymous:
                token = await self._token(answer)
                if token is not None:
                    self._tokens[self._key(method, url)] = f"Bearer {token}"
                    answer = await self._send_once(method, url, pairs, body, without, f"Bearer {token}")
            location = answer.headers.get("location")
            follow = REDIRECTS if method in {"GET", "HEAD"} else REDIRECTS_OF_ANY_METHOD
            if answer.status not in follow or location is None or len(before) == MOST_REDIRECTS:
                break
            before.append(answer)
            url = answer.resolve(location)
        _check_warnings(answer)
        return Answer(answer.method, answer.url, answer.status, answer.headers, answer.body, tuple(before))

    def absolute(self, target: str) -> str:
        """Return the URL of a path on this registry; a URL stays as it is."""
        return self.url + target if target.startswith("/") else target

    async def _send_once(
        self,
        method: str,
        url: str,
        headers: list[tuple[str, str]],
        body: Body,
        without: Sequence[str],
        authorization: str | None,
    ) -> Answer:
        framing: list[tuple[str, str]] = []
        if isinstance(body, list):
            framing = [("Transfer-Encoding", "chunked")]
        elif body:
            framing = [("Content-Length", str(len(body)))]
        request = self._http.build_request(method, url, headers=[*headers, *framing])
        request.stream = _Stream(body if isinstance(body, list) else [body])
        if authorization is not None:
            request.headers["Authorization"] = authorization
        for name in without:
            request.headers.pop(name, None)
        status = ""
        try:
            response = await self._http.send(request, stream=True)
            status = f" -> {response.status_code}"
            try:
                # As it is on the wire: what a registry compresses must show.
                received = b"".join([chunk async for chunk in response.aiter_raw()])
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            got = f"{type(error).__name__}: {error}\nin {method} {url}{status}"
            raise CheckFailed("a whole answer", got) from error
        return Answer(method, url, response.status_code, response.headers, received)

    def _auth(self, method: str, url: str) -> str | None:
        if self._credentials is None or not _same_origin(url, self.url):
            return None
        return self._tokens.get(self._key(method, url), self._credentials.basic)

    def _key(self, method: str, url: str) -> tuple[str, str]:
        kind = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}.get(method, "push")
        return re.split(r"/(?:blobs|manifests|tags|referrers)/", urlsplit(url).path)[0], kind

    async def _token(self, answer: Answer) -> str | None:
        """Ask the token server that a 401 names, or return None when it names none."""
        challenge = answer.headers.get("www-authenticate", "")
        if not challenge.lower().startswith("bearer ") or not _same_origin(answer.url, self.url):
            return None
        fields: dict[str, str] = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        realm = fields.pop("realm", "")
        if not realm:
            return None
        query = [(name, fields[name]) for name in ("service", "scope") if name in fields]
        # Relative realms exist; absolute ones pass unchanged.
        url = with_query(urljoin(answer.url, realm), *query) if query else urljoin(answer.url, realm)
        authorization = self._credentials.basic if self._credentials else None
        granted = await self._send_once("GET", url, [], b"", (), authorization)
        try:
            token = msgspec.json.decode(granted.body, type=_Token)
        except msgspec.DecodeError:
            return None
        return token.access_token or token.token or None

    # ---- plain sockets ----

    @asynccontextmanager
    async def connect(self, url: str) -> AsyncGenerator[Connection]:
        """Open a connection of its own to the host of a URL, for what an HTTP library will not send."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        stream: trio.abc.Stream = await trio.open_tcp_stream(host, port)
        if tls:
            context = ssl.create_default_context()
            stream = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
        try:
            yield Connection(stream)
        finally:
            with trio.move_on_after(1, shield=True):
                await stream.aclose()

    def head(self, method: str, target: str, headers: Mapping[str, str] | None = None) -> bytes:
        """Compose the head of a request, to be sent by hand; the target is put there exactly as it is."""
        url = self.absolute(target)
        parts = urlsplit(url)
        path = target if target.startswith("/") else parts.path + (f"?{parts.query}" if parts.query else "")
        if target.startswith("/"):
            path = urlsplit(self.url).path + target
        lines = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}"]
        authorization = self._auth(method, url)
        if authorization is not None:
            lines.append(f"Authorization: {authorization}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def exact(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request without a body whose path no library has tidied up."""
        async with self.connect(self.url) as connection:
            await connection.send(
                self.head(method, path, {"Content-Length": "0", "Connection": "close", **(headers or {})})
            )
            return await connection.answer(method, self.url + path)

    # ---- operations ----

    async def version(self) -> Answer:
        """end-1."""
        return await self.send("GET", "/v2/")

    async def get_blob(self, name: str, digest: str, headers: Mapping[str, str] | None = None) -> Answer:
        """end-2."""
        return await self.send("GET", f"/v2/{name}/blobs/{digest}", headers=headers)

    async def head_blob(self, name: str, digest: str) -> Answer:
        """end-2, without the body."""
        return await self.send("HEAD", f"/v2/{name}/blobs/{digest}")

    async def get_manifest(self, name: str, reference: str, headers: Mapping[str, str] | None = None) -> Answer:
        """end-3, accepting the types of the image specification unless told otherwise."""
        return await self.send(
            "GET", f"/v2/{name}/manifests/{reference}", headers={"Accept": ACCEPTED, **(headers or {})}
        )

    async def head_manifest(self, name: str, reference: str) -> Answer:
        """end-3, without the body."""
        return await self.send("HEAD", f"/v2/{name}/manifests/{reference}", headers={"Accept": ACCEPTED})

    async def start_upload(self, name: str, *query: tuple[str, str], body: Body = b"") -> Answer:
        """end-4a, b and c, and end-11: what it is depends on the query."""
        url = self.absolute(f"/v2/{name}/blobs/uploads/")
        headers = {"Content-Type": OCTETS} if body else {}
        return await self.send("POST", with_query(url, *query) if query else url, headers=headers, body=body)

    async def patch_upload(self, location: str, body: Body, *, first: int | None = None) -> Answer:
        """end-5: a chunk that begins at `first`, or a stream when it is None."""
        headers = {"Content-Type": OCTETS}
        if first is not None and isinstance(body, bytes):
            headers["Content-Range"] = f"{first}-{first + len(body) - 1}"
        return await self.send("PATCH", location, headers=headers, body=body)

    async def finish_upload(self, location: str, digest: str, body: Body = b"", *, first: int | None = None) -> Answer:
        """end-6: close a session, with the last chunk or the whole blob as the body when there is one."""
        headers = {"Content-Type": OCTETS} if body else {}
        if first is not None and isinstance(body, bytes):
            headers["Content-Range"] = f"{first}-{first + len(body) - 1}"
        return await self.send("PUT", with_query(location, ("digest", digest)), headers=headers, body=body)

    async def upload_status(self, location: str) -> Answer:
        """end-13."""
        return await self.send("GET", location)

    async def cancel_upload(self, location: str) -> Answer:
        """end-14."""
        return await self.send("DELETE", location)

    async def put_manifest(
        self,
        name: str,
        reference: str,
        body: Body,
        media_type: str,
        *,
        tags: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """end-7a, and end-7b when there are tags."""
        url = self.absolute(f"/v2/{name}/manifests/{reference}")
        if tags:
            url = with_query(url, *(("tag", tag) for tag in tags))
        return await self.send("PUT", url, headers={"Content-Type": media_type, **(headers or {})}, body=body)

    async def list_tags(self, name: str, *, n: int | str | None = None, last: str | None = None) -> Answer:
        """end-8a and b."""
        query = [(key, str(value)) for key, value in (("n", n), ("last", last)) if value is not None]
        url = self.absolute(f"/v2/{name}/tags/list")
        return await self.send("GET", with_query(url, *query) if query else url)

    async def delete_manifest(self, name: str, reference: str) -> Answer:
        """end-9."""
        return await self.send("DELETE", f"/v2/{name}/manifests/{reference}")

    async def delete_blob(self, name: str, digest: str) -> Answer:
        """end-10."""
        return await self.send("DELETE", f"/v2/{name}/blobs/{digest}")

    async def list_referrers(self, name: str, digest: str, artifact_type: str | None = None) -> Answer:
        """end-12a and b."""
        url = self.absolute(f"/v2/{name}/referrers/{digest}")
        return await self.send(
            "GET", url if artifact_type is None else with_query(url, ("artifactType", artifact_type))
        )


ACCEPTED = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json"
)


class Connection:
    """One connection on which a case writes bytes itself."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def send(self, data: bytes) -> None:
        """Send bytes; a peer that has closed already is no error here, its answer tells."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def read(self, seconds: float) -> bytes:
        """Return what arrives next, or nothing when nothing does in time."""
        with trio.move_on_after(seconds):
            return bytes(await self._stream.receive_some(65536))
        return b""

    async def answer(self, method: str, url: str) -> Answer:
        """Read one answer; CheckFailed when the peer closes without one or what it sends is no HTTP."""
        answer = await self.answer_or_none(method, url)
        if answer is None:
            raise CheckFailed("an answer", f"a closed connection\nin {method} {url}")
        return answer

    async def answer_or_none(self, method: str, url: str) -> Answer | None:
        """Read one answer, or None when the peer closes the connection without one."""
        parser = h11.Connection(h11.CLIENT)
        # The parser must know the method to tell where the answer ends; what it would send is thrown away.
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "unused")]))
        parser.send(h11.EndOfMessage())
        status = 0
        headers: list[tuple[bytes, bytes]] = []
        body: list[bytes] = []
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                if not status:
                    return None
                raise CheckFailed("a whole answer", f"{error}\nin {method} {url} -> {status}") from error
            if event is h11.NEED_DATA:
                try:
                    parser.receive_data(bytes(await self._stream.receive_some(65536)))
                except trio.BrokenResourceError:
                    return None
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, list(event.headers)
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return Answer(method, url, status, httpx.Headers(headers), b"".join(body))
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                return None


@asynccontextmanager
async def open_client(url: str, *, username: str | None = None, password: str | None = None) -> AsyncGenerator[Client]:
    """Open a client for the registry at a URL (`http://host:port`), with basic credentials if there are any."""
    credentials = None if username is None else _Credentials(username, password or "")
    headers = {"Accept-Encoding": "identity", "User-Agent": "moorage-conformance"}
    # A connection for each request: a registry may close one after any answer, for instance when it left a body unread,
    # and the next request on it would fail through no fault of either.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    # Times are bounded per case, by the runner.
    async with httpx.AsyncClient(headers=headers, timeout=None, limits=limits, trust_env=False) as http:  # noqa: S113 - above
        yield Client(url, http, credentials)


class _Stream(httpx.AsyncByteStream):
    """A request's body that a registry may leave half read: httpx's own are generators, which complain then."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Pieces(self._pieces)


class _Pieces(AsyncIterator[bytes]):
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = iter(pieces)

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


def _same_origin(one: str, other: str) -> bool:
    return urlsplit(one)[:2] == urlsplit(other)[:2]


def _check_warnings(answer: Answer) -> None:
    warnings = answer.headers.get_list("warning")
    if not warnings:
        return
    for warning in warnings:
        if not WARNING.fullmatch(warning):
            raise CheckFailed.of(answer, 'each Warning to be: 299 - "text"')
    if sum(len(warning.encode()) for warning in warnings) > MOST_OF_ALL_WARNINGS:
        raise CheckFailed.of(answer, f"at most {MOST_OF_ALL_WARNINGS} bytes of warnings")

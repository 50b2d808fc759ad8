"""The ASGI application: one request, one operation, one response.

Rules this file keeps:

- Everything that is done for a request is done below one cancel scope. When the client leaves, the scope is cancelled;
  servers tell that by `http.disconnect` only, and go on accepting what is sent.
- The one place where an error becomes a response. What is no `RegistryError` is a fault of ours: logged whole, and
  answered without a word about it.
- A body that nobody read is read and dropped, within bounds, so that the client reads its answer instead of an error
  of the connection.
"""

import ipaddress
import itertools
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import cast

import msgspec
import structlog
import trio
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPResponseBodyEvent,
    HTTPScope,
    Scope,
)

from moorage import (
    MANIFEST_LIMIT,
    CheckAccess,
    ClientLeft,
    Credentials,
    FileRange,
    Handler,
    InternalError,
    ManifestTooLarge,
    Operation,
    Origin,
    ParameterInvalid,
    PushManifest,
    RegistryError,
    SizeInvalid,
    Unavailable,
    open_helpers,
)

from .hooks import Route
from .http1 import TLS_PEER, WATCHED
from .http1_exchange import QUICKLY
from .proxies import Forwarded, TrustedProxies
from .replies import HeaderList, Response, respond, respond_error
from .routes import (
    FORM_LIMIT,
    TOKEN_PATH,
    Headers,
    Limits,
    PathUnknown,
    Request,
    TokenRequestInvalid,
    entity_tags,
    manifest_push_target,
    operation_of,
    token_by_form,
)
from .transports import Pace, TooSlow

_log = logging.getLogger("moorage.app")
_access_log = logging.getLogger("moorage.access")

_READ_UNASKED = 64 << 10
_DRAIN_BYTES = 64 << 20
_DRAIN_SECONDS = 10
_SENT_AT_ONCE = 64 << 10
"""Where the server does not tell what a client takes, so much is sent at a step: more, and it could stall for longer."""
_PROCESS = secrets.token_hex(4)
_numbers = itertools.count(secrets.randbits(16))
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
_ZERO_COPY = "http.response.zerocopysend"
_API_VERSION = (b"docker-distribution-api-version", b"registry/2.0")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the application speaks HTTP.

    Attributes:
        prefix: a path before `/v2/`, without a slash at its end.
        host: the URL under which clients see the registry; empty if they say it themselves.
        relative_urls: whether URLs that are handed out have no scheme and host.
        headers: sent with every response.
        limits: of lists.
        trusted_proxies: networks whose `Forwarded` and `X-Forwarded-…` are believed.
        access_log: whether each request is logged.
        token_server: whether tokens of this registry can be asked for.
    """

    prefix: str = ""
    host: str = ""
    relative_urls: bool = True
    headers: tuple[tuple[str, str], ...] = ()
    limits: Limits = Limits()
    trusted_proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    access_log: bool = True
    token_server: bool = False


_Quickly = Callable[[Callable[[bytes], None]], Awaitable[tuple[int, bool]]]


class RequestBody:
    """The bytes of a request's body, as ASGI messages bring them.

    Attributes:
        length: how many the client announced; None if it did not say.
        finished: whether all of it was received.
        left: whether the client went away.
    """

    def __init__(
        self,
        receive: ASGIReceiveCallable,
        length: int | None,
        quickly: _Quickly | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Read from `receive` what shall have `length` bytes; by `quickly`, if the server has that, in a thread.

        It comes by `pace`, unless the server sees to that.
        """
        self.length = length
        self._pace = pace
        self._quickly = quickly
        self.finished = False
        self.left = False
        self._receive = receive
        self._ended = trio.Event()
        if length == 0:
            self._end()

    def _end(self) -> None:
        self.finished = True
        self._ended.set()

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the bytes as they arrive."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes.

        Raises:
            ClientLeft: the client went away before the end.
        """
        while not self.finished:
            if chunk := await self.next():
                return chunk
        raise StopAsyncIteration

    async def next(self) -> bytes:
        """Return the next bytes, none at the end.

        Raises:
            ClientLeft: the client went away before the end.
        """
        if self.finished:
            return b""
        message = await (self._receive() if self._pace is None else self._receive_by(self._pace))
        if message is None or message["type"] != "http.request":
            self.left = True
            self._ended.set()
            raise ClientLeft("the client left in the middle of its request")
        if not message.get("more_body", False):
            self._end()
        return message.get("body", b"")

    async def _receive_by(self, pace: Pace) -> ASGIReceiveEvent | None:
        """Return the next message; None from a client that is too slow.

        It is gone, or as good as gone: others may go on with what it began.
        """
        try:
            message = await pace.within(self._receive)
        except TooSlow:
            return None
        if message["type"] == "http.request":
            pace.moved(len(message.get("body", b"")))
        return message

    async def take_quickly(self, take: Callable[[bytes], None]) -> int:
        """Have `take` called, in a thread, with what comes next, as long as it comes quickly; return how many bytes."""
        if self.finished or self._quickly is None:
            return 0
        count, more = await self._quickly(take)
        if not more:
            self._end()
        return count

    async def read(
        self,
        limit: int,
        *,
        what: str = "a manifest",
        error: type[RegistryError] = ManifestTooLarge,
        admit: Callable[[], Awaitable[object]] | None = None,
    ) -> bytes:
        """Return the whole body, which is `what`; of a large one most is read after `admit` returned.

        Raises:
            RegistryError: it has more than `limit` bytes, as an `error`; or what `admit` raises.
            ClientLeft: the client went away.
        """
        if self.length is not None and self.length > limit:
            raise error(f"{what} has at most {limit} bytes, this one is announced with {self.length}")
        # One buffer: many tiny chunks would each cost more than they hold.
        data = bytearray()
        while not self.finished:
            data += await self.next()
            if len(data) > limit:
                raise error(f"{what} has at most {limit} bytes")
            if admit is not None and len(data) > _READ_UNASKED:
                await admit()
                admit = None
        return bytes(data)

    async def drop(self) -> None:
        """Read what is left and forget it; give up on a client that sends for too long."""
        dropped = 0
        with trio.move_on_after(_DRAIN_SECONDS):
            while not self.finished and not self.left and dropped <= _DRAIN_BYTES:
                try:
                    dropped += len(await self.next())
                except ClientLeft:
                    return

    async def wait_left(self) -> None:
        """Return when the client has gone; begin to look when the body has been read."""
        await self._ended.wait()
        while not self.left:
            message = await self._receive()
            self.left = message["type"] == "http.disconnect"


class Application:
    """The registry as an ASGI 3 application, for any server that runs trio."""

    def __init__(self, handler: Handler, settings: Settings, routes: Mapping[str, Route] | None = None) -> None:
        """Serve `handler`; `routes` are the plugins' own, by path."""
        self._handler = handler
        self._settings = settings
        self._routes = dict(routes or {})
        self._proxies = TrustedProxies(settings.trusted_proxies)
        self._draining = False
        self._warned = False
        self._headers: HeaderList = [
            _API_VERSION,
            *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in settings.headers),
        ]

    def drain(self) -> None:
        """Refuse new requests from now on; those under way go on."""
        self._draining = True

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000, "reason": None})

    async def _serve(self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        began = time.perf_counter()
        raw_path = _origin_form(scope["raw_path"].decode("latin-1"))
        route = self._routes.get(raw_path)
        if route is not None:
            await route(scope, receive, send)
            return
        pace = None
        if WATCHED not in scope["extensions"]:
            send, pace = _patient(send), Pace()
        headers = Headers(list(scope["headers"]))
        body = RequestBody(receive, _length(scope, headers), _quickly(scope), pace)
        origin = self._origin(scope, headers)
        structlog.contextvars.bind_contextvars(request_id=origin.request_id)
        outcome = _Outcome()
        try:
            request, response = await self._answer(scope, raw_path, headers, body, origin, outcome)
            if response is not None and response.blob is not None and request is not None:
                zero_copy = _ZERO_COPY in scope["extensions"]
                async with _watched(scope, body):
                    response = await self._send_blob(request, response, send, outcome, zero_copy=zero_copy)
            # Servers say `http.disconnect` also when an answer is complete, so its end is sent when nobody watches.
            if response is not None and not body.left:
                content = b"" if scope["method"] == "HEAD" else response.body
                await self._finish(response, content, body, send, outcome)
        except ClientLeft:
            body.left = True
        except trio.Cancelled:
            if self._draining:
                _log.warning("cut off by the stop of the server: %s %s", scope["method"], raw_path)
            raise
        if body.left and outcome.status is None:
            outcome.status = ClientLeft.status
        if self._settings.access_log:
            _log_access(scope["method"], raw_path, origin, outcome, time.perf_counter() - began)

    # ---- answering

    async def _answer(
        self,
        scope: HTTPScope,
        raw_path: str,
        headers: Headers,
        body: RequestBody,
        origin: Origin,
        outcome: "_Outcome",
    ) -> tuple[Request | None, Response | None]:
        """Return the request, as far as it was understood, and its response; None if nobody is there to get it."""
        prefix = self._url_prefix(origin)
        request: Request | None = None
        try:
            if raw_path in {"/", ""}:
                # Load balancers ask this to see whether the process is alive.
                return None, Response(status=200, headers=[(b"cache-control", b"no-cache"), (b"content-length", b"0")])
            request = Request(
                method=scope["method"],
                path=self._without_prefix(raw_path),
                query=scope["query_string"].decode("latin-1"),
                headers=headers,
                body=body,
                origin=origin,
            )
            if self._draining:
                raise Unavailable("the registry is shutting down", retry_after=1)
            _check_length(headers)
            _check_credentials(headers)
            operation = operation_of(request, self._settings.limits, token_server=self._settings.token_server)
            response: Response | None = None
            async with _watched(scope, body):
                response = await self._reply(request, operation, body, prefix, outcome)
        except ClientLeft:
            return request, None
        except Exception as error:  # noqa: BLE001 - the edge of the task: whatever happened is told here
            return request, self._failed(request, error, origin, outcome)
        return request, response

    async def _reply(
        self,
        request: Request,
        operation: Operation[object] | None,
        body: RequestBody,
        prefix: str,
        outcome: "_Outcome",
    ) -> Response:
        """Return the response to `operation`, or to the form or push of a manifest that the request is."""
        if operation is None and request.path == TOKEN_PATH:
            form = await body.read(FORM_LIMIT, what="a form", error=TokenRequestInvalid)
            operation = token_by_form(request, form)
        operation = operation or await self._manifest_push(request, body)
        outcome.operation = operation
        return respond(request, operation, await self._handler(operation), prefix)

    async def _manifest_push(self, request: Request, body: RequestBody) -> Operation[object]:
        """Return the push of a manifest that `request` is; its body is read whole, within the limit.

        Who may not push cannot have much of it kept in memory.
        """
        repository, reference, tags, media_type = manifest_push_target(request)
        push = PushManifest(
            origin=request.origin,
            repository=repository,
            reference=reference,
            media_type=media_type,
            data=b"",
            tags=tags,
            if_match=entity_tags(request.headers.joined(b"if-match")),
            if_none_match=entity_tags(request.headers.joined(b"if-none-match")),
        )

        async def admit() -> None:
            await self._handler(CheckAccess(origin=push.origin, needed=push.access))

        return msgspec.structs.replace(push, data=await body.read(MANIFEST_LIMIT, admit=admit))

    def _failed(self, request: Request | None, error: Exception, origin: Origin, outcome: "_Outcome") -> Response:
        """Return the response to `error`; what is no `RegistryError` is a fault of ours, logged and not told."""
        if not isinstance(error, RegistryError):
            _log.error("a request failed", exc_info=error)
            error = InternalError("the registry failed; its log says more", detail={"request": origin.request_id})
        outcome.error = error
        return respond_error(request, error, self._url_prefix(origin))

    def _without_prefix(self, raw_path: str) -> str:
        """Return the path below the configured prefix.

        Raises:
            PathUnknown: it is not below it.
        """
        prefix = self._settings.prefix
        if not raw_path.startswith(prefix + "/"):
            raise PathUnknown("no endpoint has this path")
        return raw_path[len(prefix) :]

    def _origin(self, scope: HTTPScope, headers: Headers) -> Origin:
        client = scope["client"]
        peer = client[0] if client else ""
        hosts = headers.all(b"host")
        direct = Forwarded(address=peer, scheme=scope["scheme"], host=hosts[0] if hosts else "")
        forwarded, trusted = self._proxies.resolve(direct, headers)
        if not trusted and not self._settings.host and not self._settings.relative_urls:
            self._warn_of_proxy(peer, headers)
        asked_ids = headers.all(b"x-request-id") if trusted else []
        agents = headers.all(b"user-agent")
        base = self._settings.host.rstrip("/") or f"{forwarded.scheme}://{forwarded.host}{self._settings.prefix}"
        return Origin(
            request_id=next(filter(None, asked_ids), "")[:128] or f"{_PROCESS}{next(_numbers):08x}",
            address=forwarded.address,
            host=forwarded.host,
            method=scope["method"],
            user_agent=_printable(agents[0]) if agents else "",
            base_url=base,
            credentials=_credentials(headers),
            tls_peer=_tls_peer(scope),
        )

    def _warn_of_proxy(self, peer: str, headers: Headers) -> None:
        """Say once that a proxy is not believed where URLs are made of what it says: its clients would be led astray."""
        if not self._warned and (headers.all(b"x-forwarded-proto") or headers.all(b"forwarded")):
            self._warned = True
            _log.warning("what %s says of its clients is not believed, see http.trustedproxies", peer)

    def _url_prefix(self, origin: Origin) -> str:
        """Return what goes before `/v2/` in URLs that are handed out."""
        if self._settings.host or not self._settings.relative_urls:
            return origin.base_url
        return self._settings.prefix

    # ---- sending

    async def _send_blob(
        self, request: Request, response: Response, send: ASGISendCallable, outcome: "_Outcome", *, zero_copy: bool
    ) -> Response | None:
        """Send the bytes of a blob, or find out that another response is due; return what is left to send.

        None if the blob broke off: a body that ends early is all that can still be said.
        """
        if request.method != "GET" or response.blob is None:
            return response
        try:
            if response.redirect is not None and (url := await response.redirect(request.origin.address)):
                return _redirected(response, url)
            async with response.blob.open(response.start, response.stop) as reader:
                await self._start(response, send, outcome)
                if reader.file is not None and zero_copy:
                    await _send_file(reader.file, send)
                    outcome.sent += reader.file.length
                    return None
                async for chunk in reader:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    outcome.sent += len(chunk)
        except ClientLeft:
            # Told by servers that can: there is nobody to say anything to.
            raise
        except Exception as error:  # noqa: BLE001 - the edge of the task, as above
            failed = self._failed(request, error, request.origin, outcome)
            if outcome.status is None:
                return failed
            _log.error("a blob broke off: %s", error)
            return None
        return response

    async def _finish(
        self, response: Response, content: bytes, body: RequestBody, send: ASGISendCallable, outcome: "_Outcome"
    ) -> None:
        """Send what is left of `response`, `content`, then forget what is left of the request."""
        if outcome.status is None:
            await self._start(response, send, outcome)
        outcome.sent += len(content)
        if not body.finished:
            await send({"type": "http.response.body", "body": content, "more_body": True})
            await body.drop()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await send({"type": "http.response.body", "body": content, "more_body": False})

    async def _start(self, response: Response, send: ASGISendCallable, outcome: "_Outcome") -> None:
        outcome.status = response.status
        headers = response.headers + self._headers
        await send({"type": "http.response.start", "status": response.status, "headers": headers, "trailers": False})


class _Outcome:
    """What became of a request, for the log."""

    __slots__ = ("error", "operation", "sent", "status")

    def __init__(self) -> None:
        self.operation: Operation[object] | None = None
        self.error: RegistryError | None = None
        self.status: int | None = None
        self.sent = 0


def _watched(scope: HTTPScope, body: RequestBody) -> AbstractAsyncContextManager[None]:
    """End the block when the client leaves, where the server does not do that by itself."""
    return nullcontext() if WATCHED in scope["extensions"] else _watching(body)


@asynccontextmanager
async def _watching(body: RequestBody) -> AsyncGenerator[None]:
    """End the block when the client leaves, and the watch when the block ends."""

    async def watch() -> None:
        await body.wait_left()
        nursery.cancel_scope.cancel()

    async with open_helpers() as nursery:
        nursery.start_soon(watch)
        yield


def _patient(send: ASGISendCallable) -> ASGISendCallable:
    """Give up a client that is too slow to take its answer, where the server waits for it as long as it likes."""
    pace = Pace()

    async def send_for_a_while(message: ASGISendEvent) -> None:
        if message["type"] != "http.response.body":
            await Pace().within(partial(send, message))
            return
        whole = message["body"]
        for at in range(0, len(whole) or 1, _SENT_AT_ONCE):
            piece, more = whole[at : at + _SENT_AT_ONCE], message["more_body"] or len(whole) > at + _SENT_AT_ONCE
            step: HTTPResponseBodyEvent = {"type": "http.response.body", "body": piece, "more_body": more}
            await pace.within(partial(send, step), len(piece))

    return send_for_a_while


async def _send_file(file: FileRange, send: ASGISendCallable) -> None:
    """Send a range of an open file by ASGI's extension for it."""
    message = {"type": _ZERO_COPY, "file": file.descriptor, "offset": file.offset, "count": file.length}
    # hypercorn's types know its own messages only.
    await send(cast("ASGISendEvent", {**message, "more_body": False}))


def _origin_form(target: str) -> str:
    """Return the path of a request's target, which clients of proxies send with scheme and host (RFC 9112, 3.2.2)."""
    if target.startswith("/") or "://" not in target:
        return target
    return "/" + target.partition("://")[2].partition("/")[2]


def _printable(text: str) -> str:
    """Return `text` without what a terminal would obey, for logs."""
    return "".join(each if each.isprintable() else "?" for each in text[:256])


def _redirected(response: Response, url: str) -> Response:
    kept = [header for header in response.headers if header[0] in {b"docker-content-digest", b"etag"}]
    return Response(status=307, headers=[*kept, (b"location", url.encode()), (b"content-length", b"0")])


def _length(scope: HTTPScope, headers: Headers) -> int | None:
    """Return how many bytes of body are announced: none without a word about it in HTTP/1, unknown in HTTP/2."""
    lengths = headers.all(b"content-length")
    if lengths:
        return int(lengths[0]) if _LENGTH.fullmatch(lengths[0]) else None
    framed = headers.all(b"transfer-encoding") or scope["http_version"] not in {"1.0", "1.1"}
    return None if framed else 0


def _check_length(headers: Headers) -> None:
    """Refuse a Content-Length that says nothing, or two things; most servers do so before.

    Raises:
        SizeInvalid: it does.
    """
    lengths = set(headers.all(b"content-length"))
    if len(lengths) > 1 or any(_LENGTH.fullmatch(length) is None for length in lengths):
        raise SizeInvalid("Content-Length is one number")


def _check_credentials(headers: Headers) -> None:
    """Refuse an Authorization that says two things: another one may be what a proxy has looked at.

    Raises:
        ParameterInvalid: it does.
    """
    shown = headers.all(b"authorization")
    if len(shown) > 1 and len(set(shown)) > 1:
        raise ParameterInvalid("Authorization is sent once")


def _credentials(headers: Headers) -> Credentials | None:
    values = headers.all(b"authorization")
    if not values:
        return None
    scheme, _, value = values[0].partition(" ")
    return Credentials(scheme.lower(), value.strip())


def _quickly(scope: HTTPScope) -> _Quickly | None:
    extensions = cast("Mapping[str, Mapping[str, _Quickly]]", scope["extensions"])  # ours alone is looked at
    return extensions[QUICKLY]["take"] if QUICKLY in extensions else None


def _tls_peer(scope: HTTPScope) -> bytes | None:
    extensions = cast("Mapping[str, Mapping[str, bytes]]", scope["extensions"])  # ours alone is looked at
    return extensions[TLS_PEER]["certificate"] if TLS_PEER in extensions else None


async def _lifespan(receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Answer the server's start and stop; the registry is opened and closed around the server, not by it."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return


def _log_access(method: str, path: str, origin: Origin, outcome: _Outcome, seconds: float) -> None:
    fields: dict[str, object] = {
        "method": method,
        "path": path,
        "status": outcome.status,
        "bytes": outcome.sent,
        "seconds": round(seconds, 6),
        "address": origin.address,
        "user_agent": origin.user_agent,
    }
    if outcome.operation is not None:
        fields["operation"] = type(outcome.operation).__name__
    if outcome.error is not None:
        fields |= {"code": outcome.error.code, "error": outcome.error.message}
    _access_log.info("response completed", extra={"fields": fields})


def settings_headers(headers: Mapping[str, Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """Return configured headers, each with a list of values, as pairs."""
    return tuple((name, value) for name, values in headers.items() for value in values)

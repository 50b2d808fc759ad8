"""A server of one request at a time, without a network: it speaks ASGI to an application as a strict server would.

Nothing is buffered in either direction: a message moves when both sides are there, so back-pressure is real. The client can
leave at any moment. As servers do, it then goes on accepting what the application sends and says `http.disconnect` to
whoever asks, and it says the same when an answer is complete.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast
from urllib.parse import urlsplit

import msgspec
import trio
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent, HTTPScope

from moorage import OCI_MANIFEST, Digest, Handler, MemoryDriver, Registry, encode_json
from moorage_app.asgi import Application, Settings
from moorage_app.hooks import Route

T = TypeVar("T")
Message = Mapping[str, object]

EMPTY = b"{}"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


class _Error(msgspec.Struct):
    code: str
    message: str = ""
    detail: object = None


class _Errors(msgspec.Struct):
    errors: list[_Error]


@dataclass
class Answer:
    """A response, as far as it came."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes = b""
    complete: bool = True

    def all(self, name: str) -> list[str]:
        """Return every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """Return the value of a header that stands at most once."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} stands {len(values)} times"
        return values[0] if values else None

    def decoded(self, kind: type[T]) -> T:
        """Return the body, which is JSON, as `kind`."""
        return msgspec.json.decode(self.body, type=kind)

    @property
    def codes(self) -> list[str]:
        """The codes of the errors that the body names."""
        return [error.code for error in self.decoded(_Errors).errors]

    @property
    def messages(self) -> list[str]:
        """The sentences of the errors that the body names."""
        return [error.message for error in self.decoded(_Errors).errors]


@dataclass
class Conversation:
    """One request under way, in the hands of a test."""

    scope: HTTPScope
    finished: trio.Event = field(default_factory=trio.Event)
    left: bool = False
    taken: int = 0
    """Bytes of the request's body that the application took."""

    def __post_init__(self) -> None:
        self._to, self._asked = trio.open_memory_channel[Message](0)
        self._said, self._from = trio.open_memory_channel[Message](0)
        self._serving = trio.CancelScope()

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send a piece of the body; wait until the application takes it."""
        await self._to.send({"type": "http.request", "body": data, "more_body": more})
        self.taken += len(data)

    def leave(self) -> None:
        """Go away, whatever is under way."""
        self.left = True
        self._to.close()
        self._from.close()

    def cancel(self) -> None:
        """End the application's work, as a server does that stops."""
        self._serving.cancel()

    async def message(self) -> Message:
        """Return the next message of the response."""
        return await self._from.receive()

    async def answer(self) -> Answer:
        """Read the response to its end, be it complete or not."""
        start = await self._from.receive()
        assert start["type"] == "http.response.start"
        headers = cast("Sequence[tuple[bytes, bytes]]", start["headers"])
        pieces: list[bytes] = []
        complete = False
        async for message in self._from:
            assert message["type"] == "http.response.body"
            pieces.append(cast("bytes", message["body"]))
            if not message.get("more_body", False):
                complete = True
                break
        return Answer(
            status=cast("int", start["status"]),
            headers=[(name.decode("ascii"), value.decode("latin-1")) for name, value in headers],
            body=b"".join(pieces),
            complete=complete,
        )

    # ---- the server's side

    async def run(self, application: Application) -> None:
        """Have `application` serve this request."""
        try:
            with self._serving:
                await application(self.scope, self._receive, self._send)
        finally:
            self._said.close()
            self.finished.set()

    async def _receive(self) -> ASGIReceiveEvent:
        try:
            return cast("ASGIReceiveEvent", await self._asked.receive())
        except trio.EndOfChannel:
            return {"type": "http.disconnect"}

    async def _send(self, event: ASGISendEvent) -> None:
        message = cast("Message", event)
        if self.left:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self._said.send(message)
        except trio.BrokenResourceError:
            return
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            # Complete: whoever waits for the client from now on hears that it is gone.
            self._to.close()


def scope_of(
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    *,
    client: tuple[str, int] | None = ("192.0.2.7", 40000),
    http_version: str = "1.1",
) -> HTTPScope:
    """Return what a server would say of a request."""
    path, _, query = target.partition("?")
    scope: dict[str, object] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": http_version,
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [
            (name.lower().encode(), value.encode("latin-1")) for name, value in [("Host", "registry.test"), *headers]
        ],
        "client": client,
        "server": ("127.0.0.1", 5000),
        "state": {},
        "extensions": {},
    }
    return cast("HTTPScope", scope)  # all of its keys are there


class AsgiClient:
    """Asks an application; each request is served in a task of its own."""

    def __init__(self, application: Application) -> None:
        """Ask `application`."""
        self.application = application

    @asynccontextmanager
    async def conversation(
        self, method: str, target: str, headers: Iterable[tuple[str, str]] = (), *, http_version: str = "1.1"
    ) -> AsyncGenerator[Conversation]:
        """Begin a request; it is over when the block ends and the application has returned."""
        conversation = Conversation(scope_of(method, target, headers, http_version=http_version))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conversation.run, self.application)
            yield conversation

    async def ask(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | Sequence[bytes] = b"",
        *,
        length: bool = True,
    ) -> Answer:
        """Send a whole request and return the answer; without `length` the body is sent chunked."""
        pieces = [body] if isinstance(body, bytes) else list(body)
        size = sum(map(len, pieces))
        framing = (
            [("Content-Length", str(size))]
            if length and size
            else []
            if size == 0
            else [("Transfer-Encoding", "chunked")]
        )
        answers: list[Answer] = []
        async with self.conversation(method, target, [*framing, *headers]) as conversation:

            async def send_body() -> None:
                try:
                    for piece in pieces[:-1]:
                        await conversation.send(piece)
                    await conversation.send(pieces[-1], more=False)
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    return

            async with trio.open_nursery() as nursery:
                if size:
                    nursery.start_soon(send_body)
                answers.append(await conversation.answer())
                nursery.cancel_scope.cancel()
        return answers[0]

    # ---- short ways to what tests begin with

    async def push_blob(self, repository: str, data: bytes) -> Digest:
        """Push a blob in one request."""
        digest = Digest.of(data)
        if data:
            answer = await self.ask("POST", f"/v2/{repository}/blobs/uploads/?digest={digest}", body=data)
        else:
            answer = await self.ask("POST", f"/v2/{repository}/blobs/uploads/?digest={digest}")
        assert answer.status == 201, answer
        return digest

    async def push_manifest(
        self,
        repository: str,
        reference: str | None,
        document: Mapping[str, object],
        headers: Iterable[tuple[str, str]] = (),
        *,
        query: str = "",
    ) -> Answer:
        """Push a manifest, by its digest if there is no other reference."""
        data = encode_json(document)
        media_type = str(document.get("mediaType", OCI_MANIFEST))
        target = f"/v2/{repository}/manifests/{reference or Digest.of(data)}{query}"
        return await self.ask("PUT", target, [("Content-Type", media_type), *headers], data)

    async def push_image(
        self, repository: str, reference: str | None = None, subject: Digest | None = None, **fields: object
    ) -> Digest:
        """Push an image without layers; `fields` make it another one."""
        config = await self.push_blob(repository, EMPTY)
        document = image(config, subject=subject, **fields)
        answer = await self.push_manifest(repository, reference, document)
        assert answer.status == 201, answer
        return Digest.of(encode_json(document))

    async def open_session(self, repository: str) -> str:
        """Open an upload session and return its URL."""
        answer = await self.ask("POST", f"/v2/{repository}/blobs/uploads/")
        assert answer.status == 202, answer
        return path_of(answer.header("Location"))


def image(config: Digest, *, subject: Digest | None = None, **fields: object) -> dict[str, object]:
    """Return an image manifest without layers."""
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, len(EMPTY), CONFIG_TYPE),
        "layers": [],
        **fields,
    }
    if subject is not None:
        document["subject"] = descriptor(subject, 2, OCI_MANIFEST)
    return document


def descriptor(digest: Digest | str, size: int, media_type: str = LAYER_TYPE) -> dict[str, object]:
    """Return a descriptor."""
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def path_of(location: str | None) -> str:
    """Return the path and query of a URL that was handed out."""
    assert location is not None
    parts = urlsplit(location)
    return parts.path + (f"?{parts.query}" if parts.query else "")


def next_page(answer: Answer) -> str | None:
    """Return where the next page of a list is, None after the last."""
    link = answer.header("Link")
    if link is None:
        return None
    target, _, relation = link.partition(">; ")
    assert relation == 'rel="next"'
    return path_of(target.removeprefix("<"))


def client_of(
    handler: Handler | None = None, settings: Settings | None = None, routes: Mapping[str, Route] | None = None
) -> AsgiClient:
    """Return a client of an application; without a handler, of an empty registry in memory."""
    return AsgiClient(Application(handler or Registry(MemoryDriver()), settings or Settings(), routes))

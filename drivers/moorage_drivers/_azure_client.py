"""The way to a container of Azure's blob storage: clients, one attempt for each request, what errors mean, signing.

Everything that is typed by Azure's libraries stays here and in the two modules of the driver.
"""

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import quote

import aiohttp
import trio
from azure.core import MatchConditions
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ServiceRequestTimeoutError
from azure.core.pipeline.transport import AioHttpTransport
from azure.storage.blob import BlobSasPermissions, UserDelegationKey, generate_blob_sas
from azure.storage.blob.aio import BlobServiceClient

from moorage import (
    Absent,
    Condition,
    ConditionFailed,
    ConfigurationError,
    DriverError,
    DriverVerb,
    KeyUnknown,
    RangeUnsatisfiable,
    Stat,
    StoreBusy,
    StoreReadOnly,
    StoreUnavailable,
    Unchanged,
    UploadGone,
)

from ._azure_options import AzureOptions
from ._bridge import Body, Bridge, open_bridge

NAME = "azure"
_CLOSE_SECONDS = 10.0
_KEY_LIFE = timedelta(hours=48)
_KEY_MARGIN = timedelta(minutes=30)
_PUT_LIMIT = 5000 << 20
_PIECE = 256 << 10

T = TypeVar("T")


class WrongBlobType(StoreUnavailable):
    """What lies there is a blob of another type: distribution appends to its blobs, and such a blob stays one."""


class _Transport(AioHttpTransport):  # type: ignore[misc]  # made late by the SDK
    """Sends a large body piece by piece; as one piece it would keep everything else on the loop waiting."""

    async def send(self, request: Any, **more: Any) -> Any:
        """Send `request`."""
        if isinstance(request.data, bytes) and len(request.data) > _PIECE:
            request.data = BytesIO(request.data)
        return await super().send(request, **more)  # pyright: ignore - its answer has two unknown types


class CopyState(Protocol):
    """How far a copy inside the service is."""

    status: str


class Listed(Protocol):
    """What the service tells of a blob; of a prefix only the name."""

    name: str
    size: int
    etag: str
    last_modified: datetime
    copy: CopyState


class Block(Protocol):
    """A block that is in no list yet."""

    id: str
    size: int


class Blob(Protocol):
    """What is used of the SDK's client of a blob, whose own signatures are partly unknown."""

    url: str

    async def get_blob_properties(self) -> Listed: ...
    async def upload_blob(self, data: bytes, **more: object) -> Mapping[str, object]: ...
    async def delete_blob(self, **more: object) -> None: ...
    async def start_copy_from_url(self, source: str, **more: object) -> Mapping[str, object]: ...
    async def abort_copy(self, copy_id: str) -> None: ...
    async def get_block_list(self, kind: str) -> tuple[Sequence[Block], Sequence[Block]]: ...
    async def stage_block(self, block_id: str, data: bytes, length: int) -> Mapping[str, object]: ...
    async def commit_block_list(self, blocks: Sequence[object], **more: object) -> Mapping[str, object]: ...


class _Pages(Protocol):
    continuation_token: str | None

    async def __anext__(self) -> AsyncIterator[Listed]: ...


class _Listing(Protocol):
    def by_page(self, continuation_token: str | None = None) -> _Pages: ...


class Container(Protocol):
    """What is used of the SDK's client of a container."""

    def list_blobs(self, **more: object) -> _Listing: ...
    def walk_blobs(self, **more: object) -> _Listing: ...


class _Service(Protocol):
    async def get_user_delegation_key(self, start: datetime, expiry: datetime) -> UserDelegationKey: ...


class _Generated(Protocol):
    async def download(self, *, headers: Mapping[str, str], cls: object) -> object: ...


class AzureClient:
    """Requests to one container; make it with `open_container`."""

    def __init__(self, bridge: Bridge, options: AzureOptions, service: BlobServiceClient, *, by_key: bool) -> None:
        """Send requests through `service`; `by_key` if the account's key is known, so that it can sign."""
        self.bridge = bridge
        self.options = options
        self._service = service
        self._by_key = by_key
        self._delegation: tuple[UserDelegationKey, datetime] | None = None
        self._delegating = trio.Lock()

    @property
    def container(self) -> Container:
        """The container."""
        return cast("Container", self._service.get_container_client(self.options.container))

    def blob(self, name: str) -> Blob:
        """Return the client of one blob; no request is made."""
        return cast("Blob", self._service.get_blob_client(self.options.container, name))

    async def ask(
        self, verb: DriverVerb, key: str, request: Callable[[], Coroutine[object, object, T]], *, seconds: float = 0
    ) -> T:
        """Return the service's answer to `request`, one attempt.

        Raises:
            DriverError: it failed.
        """
        limit = seconds or self.options.connecttimeout + 2 * self.options.readtimeout
        try:
            return await self.bridge.run_within(limit, request)
        except (AzureError, OSError, TimeoutError, ValueError) as error:
            raise failed(error, verb, key, self.options) from error

    @asynccontextmanager
    async def stream(
        self, key: str, name: str, first: int, last: int | None, version: str | None
    ) -> AsyncGenerator[tuple[Stat, AsyncIterator[bytes]]]:
        """Open a range of a blob; its bytes are not gathered first, as the SDK's own download does.

        Raises (on entering, or while reading):
            DriverError: it failed.
        """
        # The generated client is what streams; the public one reads each range whole.
        public = self._service.get_blob_client(self.options.container, name)
        generated = cast("_Generated", getattr(getattr(public, "_client"), "blob"))  # noqa: B009 - private, untyped
        headers = {"x-ms-range": f"bytes={first}-{'' if last is None else last - 1}"}
        if version is not None:
            headers["If-Match"] = version

        @asynccontextmanager
        async def opened() -> AsyncGenerator[Body[Stat]]:
            def both(_: object, stream: object, found: Mapping[str, object]) -> object:
                return stream, found

            answer = await generated.download(headers=headers, cls=both)
            stream, found = cast("tuple[AsyncIterator[bytes], Mapping[str, object]]", answer)
            total = str(found.get("Content-Range") or "").rpartition("/")[2]
            size = int(total) if total.isdecimal() else cast("int", found.get("Content-Length") or 0)
            modified = cast("datetime", found["Last-Modified"]).timestamp()

            async def read(amount: int) -> bytes:
                del amount
                try:
                    return await anext(stream)
                except StopAsyncIteration:
                    return b""

            try:
                yield Body(Stat(key, size, modified, str(found["ETag"])), read)
            finally:
                response = getattr(stream, "response", None)
                if response is not None:
                    cast("aiohttp.ClientResponse", response.internal_response).close()

        try:
            async with self.bridge.stream(opened, stall_seconds=self.options.readtimeout) as (stat, chunks):
                reading = self._reading(chunks, key)
                try:
                    yield stat, reading
                finally:
                    await reading.aclose()
        except (AzureError, OSError, TimeoutError) as error:
            failure = failed(error, "open", key, self.options)
            if isinstance(failure, ConditionFailed):
                failure = StoreUnavailable("it was replaced while it was read", driver=NAME, operation="open", key=key)
            raise failure from error

    async def _reading(self, chunks: AsyncIterator[bytes], key: str) -> AsyncGenerator[bytes]:
        try:
            async for chunk in chunks:
                yield chunk
        except (AzureError, OSError, TimeoutError) as error:
            raise failed(error, "open", key, self.options) from error

    async def signed(self, name: str) -> str | None:
        """Return a URL that reads a blob for a while; None if these credentials cannot sign for others."""
        options = self.options
        await trio.lowlevel.checkpoint()
        if options.sastoken:
            return None
        now = datetime.now(UTC)
        base = options.redirectendpoint.rstrip("/") or options.url
        delegation = None if self._by_key else await self._delegated(now)
        query = generate_blob_sas(
            options.accountname,
            options.container,
            name,
            account_key=options.accountkey if self._by_key else None,
            user_delegation_key=delegation,
            permission=BlobSasPermissions(read=True),
            expiry=now + timedelta(seconds=options.redirectlifetime),
            protocol="https" if base.startswith("https://") else None,
        )
        return f"{base}/{options.container}/{quote(name)}?{query}"

    async def _delegated(self, now: datetime) -> UserDelegationKey:
        """Return a key that signs in the name of these credentials; the service gives one for days."""
        async with self._delegating:
            if self._delegation is None or self._delegation[1] - now < _KEY_MARGIN:
                until = now + _KEY_LIFE
                service = cast("_Service", self._service)
                key = await self.ask("url", "", lambda: service.get_user_delegation_key(now, until))
                self._delegation = key, until
            return self._delegation[0]


@asynccontextmanager
async def open_container(given: AzureOptions) -> AsyncGenerator[AzureClient]:
    """Open the container that options name; its credentials are tried out by whoever makes the first request.

    Raises:
        ConfigurationError: an option cannot work.
    """
    options = given.checked()
    bridge = open_bridge()
    closing: list[Callable[[], Awaitable[object]]] = []
    try:
        try:
            service = await bridge.run(_connect, options, closing)
        except (AzureError, OSError, ValueError) as error:
            raise ConfigurationError(f"the client cannot be made: {error}") from error
        yield AzureClient(bridge, options, service, by_key=bool(options.accountkey))
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
            for close in reversed(closing):
                await bridge.run(_call, close)


async def _connect(options: AzureOptions, closing: list[Callable[[], Awaitable[object]]]) -> BlobServiceClient:
    """Make the client, on the asyncio side; what is to be closed goes to `closing`."""
    verify: ssl.SSLContext | bool = True
    if options.skipverify:
        verify = False
    elif options.cacert:
        verify = ssl.create_default_context(cafile=options.cacert)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=int(options.maxconnections), ssl=verify),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=True,
    )
    closing.append(session.close)
    credential: object = options.accountkey or options.sastoken
    who = options.credentials
    if who is not None and who.type != "shared_key":
        credential = _identity(options)
        closing.append(cast("Callable[[], Awaitable[object]]", getattr(credential, "close")))  # noqa: B009 - two classes
    proxies = {"proxies": {"http": options.proxy, "https": options.proxy}} if options.proxy else {}
    more: dict[str, object] = {
        "transport": _Transport(
            session=session,
            session_owner=False,
            connection_timeout=float(options.connecttimeout),
            read_timeout=float(options.readtimeout),
            connection_verify=not options.skipverify,
            connection_data_block_size=_PIECE,
        ),
        "retry_total": 0,
        "max_single_put_size": _PUT_LIMIT,
        **proxies,
    }
    make = cast("Callable[..., BlobServiceClient]", BlobServiceClient)
    service = make(options.url, credential=credential, **more)
    closing.append(service.close)
    return service


def _identity(options: AzureOptions) -> object:
    """Return the credential of a service principal, or the one that the SDK's chain finds."""
    who = options.credentials
    try:
        from azure.identity.aio import ClientSecretCredential, DefaultAzureCredential
    except ImportError as error:
        raise ConfigurationError(
            "credentials: need azure-identity, which is not installed: pip install 'moorage[azure]'"
        ) from error
    if who is not None and who.type == "client_secret":
        return ClientSecretCredential(who.tenantid, who.clientid, who.secret)
    named = {"managed_identity_client_id": who.clientid} if who is not None and who.clientid else {}
    return DefaultAzureCredential(**named)


async def _call(close: Callable[[], Awaitable[object]]) -> None:
    await close()


def conditions(condition: Condition | None) -> dict[str, object]:
    """Return what the SDK calls `condition`."""
    match condition:
        case None:
            return {}
        case Absent():
            return {"match_condition": MatchConditions.IfMissing}
        case Unchanged(version):
            return {"etag": version, "match_condition": MatchConditions.IfNotModified}


def failed(error: Exception, verb: DriverVerb, key: str, options: AzureOptions) -> DriverError:
    """Return what `error`, raised by the SDK or its connection, means; of what it says, nothing that is secret."""
    kind: type[DriverError] = StoreUnavailable
    ambiguous, retry_after = False, None
    if isinstance(error, HttpResponseError) and error.status_code is not None:
        status, headers = error.status_code, cast("Mapping[str, str]", getattr(error.response, "headers", {}))
        code = headers.get("x-ms-error-code") or error.reason or ""
        said = f"the service said {status} {code}"
        match status, code:
            case 404, "ContainerNotFound":
                said = f"there is no container {options.container}"
            case 404, _:
                kind = KeyUnknown
            case _, "InvalidBlobType":
                kind = WrongBlobType
            case (412, _) | (409, "BlobAlreadyExists" | "TargetConditionNotMet"):
                kind = ConditionFailed
            case 416, _:
                kind = RangeUnsatisfiable
            case 400, "InvalidBlockList" | "InvalidBlobOrBlock":
                kind = UploadGone
            case (409 | 429 | 503, _) | (_, "ServerBusy" | "OperationTimedOut"):
                kind = StoreBusy
                wait = headers.get("Retry-After", "")
                retry_after = float(wait) if wait.isascii() and wait.isdecimal() else None
            case 401 | 403, _:
                said = f"the service refuses: {code}"
                kind = StoreReadOnly if verb in {"write", "delete", "copy", "upload"} else StoreUnavailable
            case _:
                ambiguous = status >= 500
    elif isinstance(error, ClientAuthenticationError):
        said = "there are no credentials that the service takes: " + str(error).partition("\n")[0]
    else:
        said = str(error).partition("\n")[0] or type(error).__name__
        inner = getattr(error, "inner_exception", None)
        ambiguous = not isinstance(error, ServiceRequestTimeoutError) and not isinstance(
            inner, aiohttp.ClientConnectorError
        )
    return kind(said, driver=NAME, operation=verb, key=key, ambiguous=ambiguous, retry_after=retry_after)

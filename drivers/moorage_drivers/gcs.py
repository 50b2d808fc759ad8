"""Objects of a bucket of Google Cloud Storage.

- The requests are those of the JSON API, one attempt each; gcsfs would add retries, a cache of lists and one of tokens
  in the home folder, and can say few of the preconditions. Google's library finds the credentials.
- **Atomic**: an object is there when its one request was answered. Conditions are generations.
- **Uploads** are parts that lie as objects beside the session's key and are composed by the service, at any place: no copy,
  several at once. A resumable session of the service would take its bytes in order only, and could not be rewound to what
  was acknowledged when a request was cut off.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from io import BytesIO
from typing import NamedTuple
from urllib.parse import quote

import aiohttp
import msgspec
import trio
from yarl import URL

from moorage import (
    Absent,
    Capabilities,
    Condition,
    ConditionFailed,
    ConfigurationError,
    Driver,
    DriverError,
    DriverVerb,
    Entry,
    KeyUnknown,
    Listing,
    RangeUnsatisfiable,
    Reader,
    Stat,
    StoreBusy,
    StoreReadOnly,
    StoreUnavailable,
    Unchanged,
    Upload,
    UploadGone,
    check_key,
    hold_by_lease,
    map_bounded,
)

from ._blocks import Blocks, Token, in_pieces
from ._bridge import Body, Bridge, open_bridge
from ._gcs_credentials import NAME, GoogleCredentials
from ._gcs_options import GCSOptions
from ._parts import Budgets
from ._reading import ReadBudgets, open_by_ranges, read_whole

_log = logging.getLogger("moorage.gcs")

_PAGE = 1000
_AT_ONCE = 16
_COMPOSED_AT_ONCE = 32
_ABORT_SECONDS = 30.0
_CLOSE_SECONDS = 10.0
_PIECE = 256 << 10
_REWRITE_CALLS = 10_000
_BEYOND_ALL = "~"
"""Comes after every character that a key may have."""
_OCTETS = "application/octet-stream"


class _Object(msgspec.Struct, frozen=True, kw_only=True):
    """An object as the API tells of it; its numbers are text, of some services' numbers."""

    name: str = ""
    generation: int | str = ""
    size: int | str = 0
    updated: datetime = datetime.fromtimestamp(0, UTC)

    @property
    def modified(self) -> float:
        """When it was written; in whole seconds, as the headers of a body have it."""
        return float(int(self.updated.timestamp()))


class _Answer(NamedTuple):
    """What the service answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    reason: str


class _List(msgspec.Struct, frozen=True, kw_only=True):
    items: tuple[_Object, ...] = ()
    prefixes: tuple[str, ...] = ()
    next_page: str = msgspec.field(default="", name="nextPageToken")


class _Rewrite(msgspec.Struct, frozen=True, kw_only=True):
    done: bool
    token: str = msgspec.field(default="", name="rewriteToken")


_object = msgspec.json.Decoder(_Object)
_list = msgspec.json.Decoder(_List)
_rewrite = msgspec.json.Decoder(_Rewrite)


class GCSDriver(Driver):
    """A store in a bucket; make it with `open_bucket`."""

    name = NAME
    capabilities = Capabilities(remote=True)

    def __init__(
        self, bridge: Bridge, session: aiohttp.ClientSession, credentials: GoogleCredentials, options: GCSOptions
    ) -> None:
        """Keep objects in the bucket that `options` name, by requests through `session` on the loop of `bridge`."""
        self._bridge = bridge
        self._session = session
        self._credentials = credentials
        self._options = options
        self._root = options.root
        self._objects = f"{options.url}/storage/v1/b/{quote(options.bucket, safe='')}/o"
        self._uploading = f"{options.url}/upload/storage/v1/b/{quote(options.bucket, safe='')}/o"
        self._reading = ReadBudgets(connections=options.at_once)
        budgets = Budgets(memory=options.uploadmemory, at_once=max(4, options.at_once // 2))
        self._blocks = Blocks(self, budgets, self._part_size)

    @classmethod
    @asynccontextmanager
    async def open_bucket(cls, options: GCSOptions) -> AsyncGenerator["GCSDriver"]:
        """Open the bucket that `options` name, which must be there.

        Raises:
            ConfigurationError: an option cannot work.
            DriverError: the service, or its answer to these credentials.
        """
        options.check()
        credentials = await GoogleCredentials.find(options)
        bridge = open_bridge()
        try:
            session = await bridge.run(_session, options)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"the client cannot be made: {error}") from error
        try:
            driver = cls(bridge, session, credentials, options)
            try:
                await driver.list("", limit=1)
            except KeyUnknown:
                raise StoreUnavailable(f"there is no bucket {options.bucket}", driver=NAME, operation="list") from None
            yield driver
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
                await bridge.run(session.close)

    # ---- requests

    def at(self, key: str) -> str:
        """Return the name that the object of `key` has in the bucket."""
        return self._root + check_key(key, driver=self.name)

    def _url(self, key: str) -> str:
        return f"{self._objects}/{quote(self.at(key), safe='')}"

    async def _ask(
        self,
        verb: DriverVerb,
        key: str,
        method: str,
        url: str,
        parameters: Mapping[str, str],
        *,
        content: bytes = b"",
        kind: str = "",
    ) -> bytes:
        """Return the body of the service's answer, one attempt.

        Raises:
            DriverError: it failed.
        """
        headers = {"Content-Type": kind} if kind else {}
        headers |= await self._credentials.headers()
        limit = self._options.connecttimeout + 2 * self._options.readtimeout
        try:
            answer = await self._bridge.run_within(
                limit, self._request, method, url, self._paid(parameters), headers, content
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._broken(error, verb, key) from error
        if answer.status >= 300:
            raise self._refused(answer, verb, key)
        return answer.body

    async def _request(
        self, method: str, url: str, parameters: Mapping[str, str], headers: Mapping[str, str], content: bytes
    ) -> _Answer:
        """Make one request, on the asyncio side."""
        # A large body is sent piece by piece; as one piece it would keep everything else on the loop waiting.
        data = BytesIO(content) if len(content) > _PIECE else content
        sized = {**headers, "Content-Length": str(len(content))} if content else headers
        async with self._session.request(
            method, URL(url, encoded=True).update_query(parameters), data=data or None, headers=sized
        ) as reply:
            return _Answer(reply.status, reply.headers, await reply.read(), reply.reason or "")

    def _paid(self, parameters: Mapping[str, str]) -> Mapping[str, str]:
        return {**parameters, "userProject": self._options.userproject} if self._options.userproject else parameters

    def _broken(self, error: Exception, verb: DriverVerb, key: str) -> DriverError:
        """Return what it means that no answer came."""
        if isinstance(error, DriverError):
            return error
        said = type(error).__name__ if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        sent = not isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        return StoreUnavailable(said, driver=self.name, operation=verb, key=key, ambiguous=sent)

    def _refused(self, answer: _Answer, verb: DriverVerb, key: str) -> DriverError:
        """Return what an answer that is no success means."""
        status = answer.status
        kind: type[DriverError] = StoreUnavailable
        said, retry_after = f"the service said {status}", None
        match status:
            case 404:
                kind = KeyUnknown
            case 412 | 304:
                kind = ConditionFailed
            case 416:
                kind = RangeUnsatisfiable
            case 401 | 403:
                said = f"the service refuses: {status} {_reason(answer)}"
                kind = StoreReadOnly if verb in {"write", "delete", "copy", "upload"} else StoreUnavailable
            case 408 | 429 | 503:
                kind = StoreBusy
                wait = answer.headers.get("Retry-After", "")
                retry_after = float(wait) if wait.isascii() and wait.isdecimal() else None
            case _:
                said += f" {_reason(answer)}"
        ambiguous = status >= 500 and kind is StoreUnavailable
        return kind(said, driver=self.name, operation=verb, key=key, ambiguous=ambiguous, retry_after=retry_after)

    # ---- the contract

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`."""
        found = _object.decode(
            await self._ask("stat", key, "GET", self._url(key), {"fields": "generation,size,updated"})
        )
        return Stat(key, int(found.size), found.modified, str(found.generation))

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        """Open the bytes from `start` up to `stop`."""
        async with self._reading.body(key, driver=self.name), self._opened(key, start, stop) as reader:
            yield reader

    async def read(self, key: str, *, limit: int) -> bytes:
        """Return the whole of a small object; who reads at once keeps no connection from others, and has not to wait."""
        async with self._opened(key) as reader:
            return await read_whole(reader, limit, driver=self.name)

    @asynccontextmanager
    async def _opened(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        """Open the bytes from `start` up to `stop`, whoever else reads."""
        async with open_by_ranges(
            partial(self._stream, key),
            partial(self.stat, key),
            start,
            stop,
            budget=self._reading.memory,
            driver=self.name,
        ) as reader:
            yield reader

    @asynccontextmanager
    async def _stream(
        self, key: str, first: int, last: int | None, version: str | None
    ) -> AsyncGenerator[tuple[Stat, AsyncIterator[bytes]]]:
        parameters = {"alt": "media"} | ({"generation": version} if version else {})
        where = URL(self._url(key), encoded=True).update_query(self._paid(parameters))
        span = {"Range": f"bytes={first}-{'' if last is None else last - 1}"}
        headers = {**span, **await self._credentials.headers()}

        @asynccontextmanager
        async def opened() -> AsyncGenerator[Body[Stat]]:
            async with self._session.get(where, headers=headers) as reply:
                if reply.status >= 300:
                    answer = _Answer(reply.status, reply.headers, await reply.read(), reply.reason or "")
                    raise self._refused(answer, "open", key)
                total = reply.headers.get("Content-Range", "").rpartition("/")[2]
                size = int(total if total.isdecimal() else reply.headers.get("Content-Length", "0"))
                when = reply.headers.get("Last-Modified")
                modified = parsedate_to_datetime(when).timestamp() if when else 0.0
                yield Body(Stat(key, size, modified, reply.headers.get("x-goog-generation", "")), reply.content.read)

        try:
            async with (
                self._bridge.stream(opened, stall_seconds=self._options.readtimeout) as (stat, chunks),
                aclosing(self._read(chunks, key)) as pieces,
            ):
                yield stat, pieces
        except KeyUnknown:
            if version is None:
                raise
            raise StoreUnavailable(
                "it was replaced while it was read", driver=self.name, operation="open", key=key
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken(error, "open", key) from error

    async def _read(self, chunks: AsyncIterator[bytes], key: str) -> AsyncGenerator[bytes]:
        try:
            async for chunk in chunks:
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken(error, "open", key) from error

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> str | None:
        """Put an object at `key`."""
        del durable
        check_key(key, driver=self.name)
        if isinstance(chunks, bytes) and len(chunks) <= self._options.chunksize:
            return await self.put(key, chunks, condition)
        async with self._blocks.open(key) as upload, aclosing(in_pieces(chunks, self._options.chunksize)) as cut:
            try:
                async for chunk in cut:
                    await upload.write(chunk)
                return await upload.finish(key, condition)
            except BaseException:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _ABORT_SECONDS):
                    await upload.abort()
                raise

    async def put(self, key: str, data: bytes, condition: Condition | None) -> str:
        """Put a small object at `key` by one request; return its version."""
        parameters = {"uploadType": "media", "name": self.at(key), "fields": "generation", **_matching(condition)}
        reply = await self._ask("write", key, "POST", self._uploading, parameters, content=data, kind=_OCTETS)
        return str(_object.decode(reply).generation)

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`."""
        del durable
        for key in keys:
            check_key(key, driver=self.name)

        async def remove(key: str) -> None:
            try:
                await self._ask("delete", key, "DELETE", self._url(key), _matching(condition))
            except KeyUnknown:
                if condition is not None:
                    raise ConditionFailed("it is gone", driver=self.name, operation="delete", key=key) from None

        if not keys:
            await trio.lowlevel.checkpoint()
        await map_bounded(remove, tuple(dict.fromkeys(keys)), limit=_AT_ONCE)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        """Return a page of what lies below `prefix`."""
        found: list[Entry] = []
        parameters = {"prefix": self._root + prefix, "fields": "nextPageToken,prefixes,items(name,size,updated)"}
        if delimiter:
            parameters["delimiter"] = delimiter
        begin = after
        if delimiter and after.endswith("/") and len(after) > len(prefix):
            # What is below a folded prefix was listed by it.
            begin = after + _BEYOND_ALL
        if begin:
            parameters["startOffset"] = self._root + begin
        while True:
            # The first name may be the one to begin after.
            parameters["maxResults"] = str(min(limit - len(found) + 1, _PAGE))
            reply = _list.decode(await self._ask("list", prefix, "GET", self._objects, parameters))
            page = [Entry(item.name[len(self._root) :], int(item.size), item.modified) for item in reply.items]
            page += [Entry(name[len(self._root) :]) for name in reply.prefixes]
            page.sort(key=lambda entry: entry.key)
            found += [entry for entry in page if entry.key > after]
            more = bool(reply.next_page)
            if not more or len(found) >= limit:
                return Listing(tuple(found[:limit]), more or len(found) > limit)
            parameters["pageToken"] = reply.next_page

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        """Put what is at `source` at `destination` too, inside the service."""
        there = f"/rewriteTo/b/{quote(self._options.bucket, safe='')}/o/{quote(self.at(destination), safe='')}"
        parameters = {"fields": "done,rewriteToken", **_matching(condition)}
        for _ in range(_REWRITE_CALLS):
            reply = _rewrite.decode(await self._ask("copy", source, "POST", self._url(source) + there, parameters))
            if reply.done:
                return
            parameters["rewriteToken"] = reply.token
        raise StoreUnavailable("the copy did not end", driver=self.name, operation="copy", key=destination)

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        """Return a URL from which a client may GET `key` for a while."""
        del client_address
        base = self._options.redirectendpoint.rstrip("/") or self._options.url
        path = f"/{self._options.bucket}/{self.at(key)}"
        return await self._credentials.signed_url(base, path, int(self._options.redirectlifetime), datetime.now(UTC))

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        """Try to be the only holder of `name` over all replicas."""
        async with hold_by_lease(self, name) as held:
            yield held

    # ---- uploads

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        """Begin an upload; nothing is sent before it has a whole part."""
        del destination
        await trio.lowlevel.checkpoint()
        async with self._blocks.open(check_key(key, driver=self.name)) as upload:
            yield upload

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        """Go on with an upload at `offset`."""
        async with self._blocks.resume(token, offset) as upload:
            yield upload

    def _part_size(self, number: int) -> int:
        """Return the size of the part of a number: they grow, so that large uploads have fewer."""
        return int(self._options.chunksize) * (1 if number <= 1000 else 4)

    async def stage(self, key: str, block: str, data: bytes) -> None:
        """Put one part beside `key`."""
        await self.put(f"{key}.{block}", data, None)

    async def holds(self, token: Token) -> bool:
        """Return whether the parts of an upload are there."""
        sizes: dict[str, int] = {}
        after = ""
        while True:
            page = await self.list(token.key + ".", after=after)
            sizes |= {entry.key: entry.size or 0 for entry in page.entries}
            if not page.more or not page.entries:
                break
            after = page.entries[-1].key
        parts = _parts(token)
        return all(part in sizes for part in parts) and sum(sizes[part] for part in parts) == token.in_blocks

    async def join(self, token: Token, destination: str, condition: Condition | None) -> str | None:
        """Compose the parts, 32 at a time, and remove them."""
        parts = _parts(token)
        sources: Sequence[str] = parts
        between: list[str] = []
        level = 0
        while len(sources) > _COMPOSED_AT_ONCE:
            level += 1
            groups = [sources[at : at + _COMPOSED_AT_ONCE] for at in range(0, len(sources), _COMPOSED_AT_ONCE)]
            named = [(f"{group[0]}+{level}", group) for group in groups]
            between += [name for name, _ in named]
            await map_bounded(self._compose_between, named, limit=_AT_ONCE)
            sources = [name for name, _ in named]
        try:
            version = await self._compose(sources, destination, condition)
        except KeyUnknown:
            raise UploadGone("a part is gone", driver=self.name, operation="upload", key=token.key) from None
        finally:
            await self._remove_quietly(between)
        await self._remove_quietly(parts)
        return version

    async def _compose_between(self, named: tuple[str, Sequence[str]]) -> None:
        await self._compose(named[1], named[0], None)

    async def _compose(self, sources: Sequence[str], destination: str, condition: Condition | None) -> str:
        wanted = {
            "sourceObjects": [{"name": self.at(source)} for source in sources],
            "destination": {"contentType": _OCTETS},
        }
        parameters = {"fields": "generation", **_matching(condition)}
        body = msgspec.json.encode(wanted)
        reply = await self._ask(
            "upload", destination, "POST", self._url(destination) + "/compose", parameters,
            content=body, kind="application/json",
        )  # fmt: skip
        return str(_object.decode(reply).generation)

    async def _remove_quietly(self, keys: Sequence[str]) -> None:
        """Remove what is of no use any more; what stays lies below the session's key, where the purger finds it."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _ABORT_SECONDS):
            try:
                await self.delete(*keys)
            except DriverError as error:
                _log.warning("parts of an upload stay until the purger runs: %s", error)

    async def discard(self, token: Token) -> None:
        """Remove the parts."""
        await self.delete(*_parts(token))


def _parts(token: Token) -> list[str]:
    """Return the keys of the parts of an upload, in order."""
    return [f"{token.key}.{block}" for block in token.blocks]


async def _session(options: GCSOptions) -> aiohttp.ClientSession:
    """Return a session of connections to the service, on the asyncio side.

    Raises:
        OSError, ValueError: an option cannot work.
    """
    await asyncio.sleep(0)
    verify: ssl.SSLContext | bool = not options.skipverify
    if options.cacert:
        verify = ssl.create_default_context(cafile=options.cacert)
    if options.proxy and not URL(options.proxy).host:
        raise ValueError("proxy: is no URL")
    timeout = aiohttp.ClientTimeout(sock_connect=float(options.connecttimeout), sock_read=float(options.readtimeout))
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=options.at_once, ssl=verify),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"User-Agent": f"moorage {options.useragent}".strip(), "Accept-Encoding": "identity"},
        proxy=options.proxy or None,
        read_bufsize=_PIECE,
        timeout=timeout,
        trust_env=True,
    )


def _reason(answer: _Answer) -> str:
    """Return what the service says of an error in a word or two, nothing of what was asked."""
    try:
        said = msgspec.json.decode(answer.body)
        return str(said["error"]["errors"][0]["reason"])
    except (msgspec.MsgspecError, KeyError, TypeError, IndexError):
        return answer.reason


def _matching(condition: Condition | None) -> dict[str, str]:
    """Return what the API calls `condition`."""
    match condition:
        case None:
            return {}
        case Absent():
            return {"ifGenerationMatch": "0"}
        case Unchanged(version):
            return {"ifGenerationMatch": version}

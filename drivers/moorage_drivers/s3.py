"""Objects of a bucket of S3, or of a service that speaks it.

- s3fs makes the client: credentials, endpoints, sessions. Its requests are made here, one attempt each, with the
  parameters as the service names them; s3fs itself would drop those that it does not know.
- **Atomic**: an object is there when its one request, or the request that completes its parts, was answered. Conditions
  are the service's (`If-None-Match`, `If-Match`).
- **Uploads** send nothing before they have a whole part. Their token holds what is below the smallest part that the
  service takes, so there are no objects beside the session's; what the service holds is asked for when an upload is
  resumed, unless this process sent it.
"""

import logging
import random
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Protocol, cast

import msgspec
import s3fs
import trio
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
)

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

from ._bridge import Body, Bridge, open_bridge
from ._parts import Budgets, open_part_writer
from ._reading import ReadBudgets, open_by_ranges, read_whole
from ._s3_options import S3Options
from ._s3_upload import PART_MINIMUM, Part, S3Upload, Token, decode_token, digest_of_parts

_log = logging.getLogger("moorage.s3")

PARTS_LIMIT = 10_000

_PAGE = 1000
_DELETES_AT_ONCE = 1000
_SMALL_COPY = 8 << 20
_WHOLE = 16 << 20
"""Up to so many bytes are sent by one request where the caller has them all; that takes no room of the uploads'. The record
of an upload session has at most 9 MiB, and is written while its upload has such room: were it to wait for more of it,
sessions would wait for each other for ever."""
_ABORT_SECONDS = 30.0
_CLOSE_SECONDS = 10.0
_KNOWN_PARTS = 100_000
_GAP = 16
_BEYOND_ALL = "~"
"""Comes after every character that a key may have."""

Reply = Mapping[str, object]
_Call = Callable[..., Awaitable[Reply]]


class _Streamed(Protocol):
    """The body of an answer, on the asyncio side."""

    async def read(self, amount: int) -> bytes: ...
    def close(self) -> None: ...


class _Filesystem(Protocol):
    """What is used of s3fs's filesystem: it makes the client, and keeps what the client needs."""

    async def set_session(self) -> object: ...


class S3Driver(Driver):
    """A store in a bucket; make it with `open_bucket`."""

    name = "s3"
    capabilities = Capabilities(remote=True, announced_destination=True, chunk_minimum=PART_MINIMUM)

    def __init__(self, bridge: Bridge, client: object, signer: object, options: S3Options) -> None:
        """Keep objects in the bucket that `options` name, through `client` of aiobotocore; `signer` signs URLs."""
        self.bridge = bridge
        self.options = options
        self.budgets: Budgets = Budgets(memory=options.uploadmemory, at_once=max(4, options.maxconnections // 2))
        self._client = client
        self._signer = signer
        self._root = options.root
        self.reading: ReadBudgets = ReadBudgets(connections=options.maxconnections)
        # By an upload's id: the digest that its newest token has, and the parts.
        self._known: OrderedDict[str, tuple[str, tuple[Part, ...]]] = OrderedDict()
        self._known_parts = 0

    @classmethod
    @asynccontextmanager
    async def open_bucket(cls, options: S3Options) -> AsyncGenerator["S3Driver"]:
        """Open the bucket that `options` name, which must be there.

        Raises:
            ConfigurationError: an option cannot work.
            DriverError: the service, or its answer to these credentials.
        """
        options.check()
        bridge = open_bridge()
        clients: list[object] = []
        # s3fs closes what its filesystems have made when they are collected, so they are kept.
        filesystems = [await trio.to_thread.run_sync(partial(_filesystem, bridge, options))]
        if options.redirectendpoint:
            public = msgspec.structs.replace(options, regionendpoint=options.redirectendpoint)
            filesystems.append(await trio.to_thread.run_sync(partial(_filesystem, bridge, public)))
        try:
            try:
                for filesystem in filesystems:
                    clients.append(await bridge.run(filesystem.set_session))  # noqa: PERF401 - what was made is closed
            except (BotoCoreError, ValueError) as error:
                raise ConfigurationError(f"the client cannot be made: {error}") from error
            driver = cls(bridge, clients[0], clients[-1], options)
            await driver.ask("list_objects_v2", "list", Prefix=options.root, MaxKeys=1)
            yield driver
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
                for client in clients:
                    await bridge.run(_leave, client)

    # ---- requests

    def at(self, key: str) -> str:
        """Return the name that the object of `key` has in the bucket."""
        return self._root + check_key(key, driver=self.name)

    async def ask(self, operation: str, verb: DriverVerb, key: str = "", /, **parameters: object) -> Reply:
        """Return the service's answer to `operation`, one attempt.

        Raises:
            DriverError: it failed.
        """
        try:
            return await self.bridge.run_within(
                self.options.connecttimeout + 2 * self.options.readtimeout,
                self._request,
                operation,
                verb,
                key,
                parameters,
            )
        except (TimeoutError, ConnectionError) as error:
            raise self._failed(error, verb, key) from error

    async def _request(self, operation: str, verb: DriverVerb, key: str, parameters: Mapping[str, object]) -> Reply:
        """Make one request, on the asyncio side."""
        call = cast("_Call", getattr(self._client, operation))
        if self.options.requestpayer:
            parameters = {"RequestPayer": "requester", **parameters}
        began = time.monotonic()
        try:
            return await call(Bucket=self.options.bucket, **parameters)
        except Exception as error:
            raise self._failed(error, verb, key) from error
        finally:
            if self.options.loglevel != "off":
                _log.info("%s %s: %.0f ms", operation, key, (time.monotonic() - began) * 1000)

    def _failed(self, error: Exception, verb: DriverVerb, key: str) -> DriverError:
        """Return what `error`, raised by a library or its connection, means."""
        kind: type[DriverError] = StoreUnavailable
        said = f"{type(error).__name__}: {error}"
        ambiguous, retry_after = False, None
        if isinstance(error, DriverError):
            return error
        if isinstance(error, ClientError):
            answer = cast("Mapping[str, Mapping[str, object]]", getattr(error, "response", {}))
            code, status = answer.get("Error", {}).get("Code"), answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            said = f"the service said {status} {code}"
            match status, code:
                case _, "NoSuchUpload" | "InvalidPart" | "InvalidPartOrder":
                    kind = UploadGone
                case _, "NoSuchBucket":
                    said = f"there is no bucket {self.options.bucket}"
                case 404, _:
                    kind = KeyUnknown
                case 412, _:
                    kind = ConditionFailed
                case 416, _:
                    kind = RangeUnsatisfiable
                case (409 | 429 | 503, _) | (_, "SlowDown" | "RequestTimeout"):
                    kind = StoreBusy
                    retry_after = _retry_after(answer)
                case 401 | 403, _:
                    said = f"the service refuses: {code}"
                    kind = StoreReadOnly if verb in {"write", "delete", "copy", "upload"} else StoreUnavailable
                case _:
                    said = f"the service said {status} {code}: {answer.get('Error', {}).get('Message')}"
            ambiguous = isinstance(status, int) and status >= 500 and kind is StoreUnavailable
        elif isinstance(error, NoCredentialsError):
            said = "there are no credentials: give accesskey and secretkey, or what the SDK's chain finds"
        elif isinstance(error, ParamValidationError):
            said = f"the client does not know: {error}"
        elif isinstance(error, BotoCoreError | OSError | TimeoutError):
            said = str(error) or type(error).__name__
            ambiguous = not isinstance(error, ConnectTimeoutError | EndpointConnectionError)
        return kind(said, driver=self.name, operation=verb, key=key, ambiguous=ambiguous, retry_after=retry_after)

    # ---- the contract

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`."""
        reply = await self.ask("head_object", "stat", key, Key=self.at(key))
        return _stat(key, reply, _number(reply, "ContentLength"))

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        """Open the bytes from `start` up to `stop`."""
        async with self.reading.body(key, driver=self.name), self._opened(key, start, stop) as reader:
            yield reader

    async def read(self, key: str, *, limit: int) -> bytes:
        """Return the whole of a small object; who reads at once keeps no connection from others, and has not to wait."""
        async with self._opened(key) as reader:
            return await read_whole(reader, limit, driver=self.name)

    @asynccontextmanager
    async def _opened(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        """Open the bytes from `start` up to `stop`, whoever else reads."""
        name = self.at(key)

        @asynccontextmanager
        async def open_range(
            first: int, last: int | None, version: str | None
        ) -> AsyncGenerator[tuple[Stat, AsyncIterator[bytes]]]:
            async with self._stream(key, name, first, last, version) as opened:
                yield opened

        async with open_by_ranges(
            open_range, partial(self.stat, key), start, stop, budget=self.reading.memory, driver=self.name
        ) as reader:
            yield reader

    @asynccontextmanager
    async def _stream(
        self, key: str, name: str, first: int, last: int | None, version: str | None
    ) -> AsyncGenerator[tuple[Stat, AsyncIterator[bytes]]]:
        parameters: dict[str, object] = {"Key": name, "Range": f"bytes={first}-{'' if last is None else last - 1}"}
        if version is not None:
            parameters["IfMatch"] = version

        @asynccontextmanager
        async def opened() -> AsyncGenerator[Body[Stat]]:
            reply = await self._request("get_object", "open", key, parameters)
            body = cast("_Streamed", reply["Body"])
            try:
                ranged = reply.get("ContentRange")
                total = str(ranged).rpartition("/")[2] if ranged else ""
                size = int(total) if total.isdecimal() else _number(reply, "ContentLength")
                yield Body(_stat(key, reply, size), body.read)
            finally:
                body.close()

        try:
            async with (
                self.bridge.stream(opened, stall_seconds=self.options.readtimeout) as (stat, chunks),
                aclosing(self._read(chunks, key)) as pieces,
            ):
                yield stat, pieces
        except ConditionFailed:
            raise StoreUnavailable(
                "it was replaced while it was read", driver=self.name, operation="open", key=key
            ) from None
        except (OSError, BotoCoreError) as error:
            raise self._failed(error, "open", key) from error

    async def _read(self, chunks: AsyncIterator[bytes], key: str) -> AsyncGenerator[bytes]:
        try:
            async for chunk in chunks:
                yield chunk
        except DriverError:
            raise
        except Exception as error:
            raise self._failed(error, "open", key) from error

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
        name = self.at(key)
        if isinstance(chunks, bytes) and len(chunks) <= max(self.options.chunksize, _WHOLE):
            return await self.put(key, name, chunks, condition)
        async with self._open(key, key) as upload:
            try:
                if isinstance(chunks, bytes):
                    for at in range(0, len(chunks), self.options.chunksize):
                        await upload.write(chunks[at : at + self.options.chunksize])
                else:
                    async for chunk in chunks:
                        await upload.write(chunk)
                return await upload.finish(key, condition)
            except BaseException:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _ABORT_SECONDS):
                    await upload.abort()
                raise

    async def put(self, key: str, name: str, data: bytes, condition: Condition | None) -> str | None:
        """Put a small object at `key` by one request; return its version."""
        try:
            reply = await self.ask(
                "put_object", "write", key, Key=name, Body=data, **self.new_object(), **_conditions(condition)
            )
        except KeyUnknown:
            raise ConditionFailed("it is gone", driver=self.name, operation="write", key=key) from None
        return _text(reply, "ETag")

    def new_object(self) -> dict[str, object]:
        """Return the parameters that every new object gets."""
        options = self.options
        parameters: dict[str, object] = {"ContentType": "application/octet-stream"}
        if options.keyid:
            parameters |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": options.keyid}
        elif options.encrypt:
            parameters["ServerSideEncryption"] = "AES256"
        if options.storageclass.upper() not in {"NONE", "STANDARD"}:
            parameters["StorageClass"] = options.storageclass.upper()
        # It is the service's default, and buckets without access lists refuse it when it is named.
        if options.objectacl != "private":
            parameters["ACL"] = options.objectacl
        return parameters

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`."""
        del durable
        names = {self.at(key): key for key in keys}
        if condition is not None:
            for name, key in names.items():
                try:
                    await self.ask("delete_object", "delete", key, Key=name, IfMatch=condition.version)
                except KeyUnknown:
                    raise ConditionFailed("it is gone", driver=self.name, operation="delete", key=key) from None
            return
        if len(names) == 1:
            for name, key in names.items():
                await self.ask("delete_object", "delete", key, Key=name)
            return
        ordered = list(names)
        if not ordered:
            await trio.lowlevel.checkpoint()
        for at in range(0, len(ordered), _DELETES_AT_ONCE):
            some = [{"Key": name} for name in ordered[at : at + _DELETES_AT_ONCE]]
            reply = await self.ask("delete_objects", "delete", "", Delete={"Objects": some, "Quiet": True})
            for error in _items(reply, "Errors"):
                code = error.get("Code")
                kind = StoreBusy if code in {"SlowDown", "InternalError"} else StoreUnavailable
                key = names.get(str(error.get("Key")), "")
                raise kind(f"the service said {code}", driver=self.name, operation="delete", key=key)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        """Return a page of what lies below `prefix`."""
        found: list[Entry] = []
        while True:
            parameters: dict[str, object] = {"Prefix": self._root + prefix, "MaxKeys": min(limit - len(found), _PAGE)}
            if delimiter:
                parameters["Delimiter"] = delimiter
            if after:
                # What is below a folded prefix was listed by it; `prefix` itself is where all begins.
                parameters["StartAfter"] = (
                    self._root
                    + after
                    + (_BEYOND_ALL if delimiter and after.endswith("/") and len(after) > len(prefix) else "")
                )
            reply = await self.ask("list_objects_v2", "list", prefix, **parameters)
            page = [self._entry(each) for each in _items(reply, "Contents")]
            page += [Entry(str(each["Prefix"])[len(self._root) :]) for each in _items(reply, "CommonPrefixes")]
            page.sort(key=lambda entry: entry.key)
            found += [entry for entry in page if entry.key > after]
            more = bool(reply.get("IsTruncated"))
            if not more or len(found) >= limit or not page:
                return Listing(tuple(found[:limit]), more)
            after = page[-1].key

    def _entry(self, item: Reply) -> Entry:
        return Entry(str(item["Key"])[len(self._root) :], _number(item, "Size"), _time(item, "LastModified"))

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        """Put what is at `source` at `destination` too, inside the service."""
        await self.copy_sized(source, destination, await self.stat(source), condition)

    async def copy_sized(self, source: str, destination: str, stat: Stat, condition: Condition | None) -> None:
        """Copy an object that is known; services differ in whether a copy can have a condition, so none is asked to."""
        name = self.at(destination)
        if condition is not None and stat.size <= _SMALL_COPY:
            await self.put(destination, name, await self.read(source, limit=_SMALL_COPY), condition)
            return
        origin = {"Bucket": self.options.bucket, "Key": self.at(source)}
        pinned: dict[str, object] = {"CopySource": origin, "CopySourceIfMatch": stat.version}
        if condition is None and stat.size <= self.options.multipartcopythresholdsize:
            await self.ask(
                "copy_object", "copy", destination, Key=name, **pinned, **self.new_object(), MetadataDirective="REPLACE"
            )
            return
        await self._copy_parts(destination, name, pinned, stat.size, condition)

    async def _copy_parts(
        self, key: str, name: str, pinned: Mapping[str, object], size: int, condition: Condition | None
    ) -> None:
        step = max(self.options.multipartcopychunksize, -(-size // PARTS_LIMIT))
        reply = await self.ask("create_multipart_upload", "copy", key, Key=name, **self.new_object())
        upload = _text(reply, "UploadId")

        async def copy_part(number: int) -> Part:
            first, last = (number - 1) * step, min(number * step, size)
            answer = await self.ask(
                "upload_part_copy", "copy", key, Key=name, UploadId=upload, PartNumber=number,
                CopySourceRange=f"bytes={first}-{last - 1}", **pinned,
            )  # fmt: skip
            result = cast("Reply", answer.get("CopyPartResult", {}))
            return Part(number, last - first, _text(result, "ETag"))

        try:
            numbers = range(1, -(-size // step) + 1)
            parts = await map_bounded(copy_part, numbers, limit=self.options.multipartcopymaxconcurrency)
            await self.complete(key, name, upload, parts, condition)
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _ABORT_SECONDS):
                await self.abort(key, name, upload)
            raise

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        """Return a URL from which a client may GET `key` for a while."""
        del client_address
        seconds = int(self.options.redirectlifetime)
        return await self.bridge.run(_sign, self._signer, self.options.bucket, self.at(key), seconds)

    # ---- uploads

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        """Begin an upload; nothing is sent before it has a whole part."""
        await trio.lowlevel.checkpoint()
        async with self._open(key, destination) as upload:
            yield upload

    @asynccontextmanager
    async def _open(self, key: str, destination: str | None) -> AsyncGenerator["S3Upload"]:
        token = Token(key=key, destination=destination, upload=None, numbers=(), parts="", size=0, tail=b"")
        async with self._upload(token, (), first_number=1) as upload:
            yield upload

    @asynccontextmanager
    async def _upload(
        self, token: Token, parts: Sequence[Part], *, first_number: int, whole: bool = False
    ) -> AsyncGenerator["S3Upload"]:
        upload = S3Upload(self, token, parts, whole=whole)
        async with open_part_writer(
            self.budgets, upload.send, part_size=self._part_size, next_part=first_number, buffered=token.tail
        ) as writer:
            upload.writer = writer
            yield upload

    def _part_size(self, number: int) -> int:
        """Return the size of the part of a number: small ones first, so that 10,000 make 900 GiB and more."""
        factor = 1 if number <= 1000 else 4 if number <= 3000 else 16
        return min(self.options.chunksize * factor, 5 << 30)

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        """Go on with an upload at `offset`."""
        await trio.lowlevel.checkpoint()
        try:
            held = decode_token(token)
        except msgspec.MsgspecError:
            raise UploadGone("not a token of this driver", driver=self.name, operation="upload") from None
        if held.size + len(held.tail) != offset:
            raise UploadGone(
                f"it has {held.size + len(held.tail)} bytes, not {offset}",
                driver=self.name,
                operation="upload",
                key=held.key,
            )
        parts, first_number, whole = await self._found(held)
        async with self._upload(held, parts, first_number=first_number, whole=whole) as upload:
            yield upload

    async def _found(self, token: Token) -> tuple[tuple[Part, ...], int, bool]:
        """Return the parts of an upload that its token answers for, the number of the next one, and whether it was completed.

        Others may have sent parts since, so numbers that might be theirs are passed over: what they were told that
        they have must not be overwritten.
        """
        if token.upload is None:
            return (), 1, False
        wanted = {number for first, last in token.numbers for number in range(first, last + 1)}
        digest, known = self._known.get(token.upload, ("", None))
        if digest != token.parts:
            known = None
        highest = max(wanted)
        if known is None:
            try:
                listed = await self._list_parts(token.key, self.at(token.destination or token.key), token.upload)
            except (UploadGone, KeyUnknown):
                if token.destination is None and await self.size_of(token.key) == token.size + len(token.tail):
                    return (), 1, True
                raise UploadGone("it has ended", driver=self.name, operation="upload", key=token.key) from None
            known = tuple(part for part in listed if part.number in wanted)
            highest = max([highest, *(part.number for part in listed)])
        if digest_of_parts(known) != token.parts:
            raise UploadGone("the service holds other parts", driver=self.name, operation="upload", key=token.key)
        gap = random.randrange(_GAP) if highest < PARTS_LIMIT // 2 else 0  # noqa: S311 - to keep out of each other's way
        return known, highest + 1 + gap, False

    async def size_of(self, key: str) -> int | None:
        """Return the size of what is at `key`, None if nothing is."""
        try:
            return (await self.stat(key)).size
        except KeyUnknown:
            return None

    async def _list_parts(self, key: str, name: str, upload: str) -> Sequence[Part]:
        parts: list[Part] = []
        marker = 0
        while True:
            reply = await self.ask(
                "list_parts", "upload", key, Key=name, UploadId=upload, PartNumberMarker=marker, MaxParts=_PAGE
            )
            parts += [
                Part(_number(item, "PartNumber"), _number(item, "Size"), _text(item, "ETag"))
                for item in _items(reply, "Parts")
            ]
            if not reply.get("IsTruncated") or not parts:
                return parts
            marker = parts[-1].number

    def remember(self, upload: str, parts: Sequence[Part]) -> str:
        """Keep in mind what an upload consists of, so that the service need not be asked; return the digest of it."""
        digest = digest_of_parts(parts)
        self._forget(upload)
        self._known[upload] = digest, tuple(parts)
        self._known_parts += len(parts)
        while self._known_parts > _KNOWN_PARTS:
            self._forget(next(iter(self._known)))
        return digest

    @property
    def remembered(self) -> tuple[int, int]:
        """How many uploads are kept in mind, and how many parts of these."""
        return len(self._known), self._known_parts

    async def create(self, key: str, name: str) -> str:
        """Begin an upload to the object `name`; return its id."""
        reply = await self.ask("create_multipart_upload", "upload", key, Key=name, **self.new_object())
        return _text(reply, "UploadId")

    async def complete(
        self, key: str, name: str, upload: str, parts: Sequence[Part], condition: Condition | None
    ) -> str | None:
        """Make an object of parts; return its version."""
        self._forget(upload)
        made = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        reply = await self.ask(
            "complete_multipart_upload", "upload", key, Key=name, UploadId=upload, MultipartUpload={"Parts": made},
            **_conditions(condition),
        )  # fmt: skip
        return _text(reply, "ETag") or None

    def _forget(self, upload: str) -> None:
        _, parts = self._known.pop(upload, ("", ()))
        self._known_parts -= len(parts)

    async def abort(self, key: str, name: str, upload: str) -> None:
        """Free the parts of an upload that will not be completed; one that has ended is no error."""
        self._forget(upload)
        try:
            await self.ask("abort_multipart_upload", "upload", key, Key=name, UploadId=upload)
        except (UploadGone, KeyUnknown):
            return

    async def expire_uploads(self, *, older_than: float, dry_run: bool) -> int:
        """Abort uploads that began, and got their last part, before `older_than`."""
        count = 0
        markers: dict[str, object] = {}
        while True:
            reply = await self.ask("list_multipart_uploads", "upload", Prefix=self._root, **markers)
            for item in _items(reply, "Uploads"):
                name, upload = _text(item, "Key"), _text(item, "UploadId")
                if _time(item, "Initiated") >= older_than or await self._is_young(name, upload, older_than):
                    continue
                count += 1
                if not dry_run:
                    await self.abort(name[len(self._root) :], name, upload)
            if not reply.get("IsTruncated"):
                return count
            markers = {"KeyMarker": reply.get("NextKeyMarker"), "UploadIdMarker": reply.get("NextUploadIdMarker")}

    async def _is_young(self, name: str, upload: str, older_than: float) -> bool:
        """Return whether an upload got a part since `older_than`, or has ended."""
        try:
            reply = await self.ask("list_parts", "upload", "", Key=name, UploadId=upload)
        except (UploadGone, KeyUnknown):
            return True
        return any(_time(item, "LastModified") >= older_than for item in _items(reply, "Parts"))

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        """Try to be the only holder of `name` over all replicas."""
        async with hold_by_lease(self, name) as held:
            yield held


def _filesystem(bridge: Bridge, options: S3Options) -> _Filesystem:
    """Return s3fs's filesystem for `options`, with the client not yet made."""
    to_aws = options.endpoint is None
    checksum = options.checksum if options.checksum != "auto" else "when_supported" if to_aws else "when_required"
    config: dict[str, object] = {
        "signature_version": "s3v4",
        "max_pool_connections": int(options.maxconnections),
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": float(options.connecttimeout),
        "read_timeout": float(options.readtimeout),
        "request_checksum_calculation": checksum,
        "response_checksum_validation": checksum,
        "use_dualstack_endpoint": bool(options.usedualstack),
        "use_fips_endpoint": bool(options.usefipsendpoint),
        "s3": {
            "addressing_style": "path" if options.forcepathstyle else "auto",
            "use_accelerate_endpoint": bool(options.accelerate),
        },
    }
    if options.useragent:
        config["user_agent_extra"] = options.useragent
    if options.proxy:
        config["proxies"] = {"http": options.proxy, "https": options.proxy}
    client: dict[str, object] = {"region_name": options.region or "us-east-1"}
    if options.skipverify:
        client["verify"] = False
    elif options.cacert:
        client["verify"] = options.cacert
    more = {"profile": options.profile} if options.profile else {}
    make = cast("Callable[..., _Filesystem]", s3fs.S3FileSystem)
    try:
        return make(
            loop=bridge.loop,
            asynchronous=False,
            skip_instance_cache=True,
            use_listings_cache=False,
            cache_regions=False,
            key=options.accesskey or None,
            secret=options.secretkey or None,
            token=options.sessiontoken or None,
            endpoint_url=options.endpoint,
            use_ssl=bool(options.secure),
            client_kwargs=client,
            config_kwargs=config,
            **more,
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(f"the client cannot be made: {error}") from error


async def _sign(client: object, bucket: str, name: str, seconds: int) -> str:
    """Return a URL that is good for `seconds`, on the asyncio side: credentials may have to be renewed for it."""
    sign = cast("Callable[..., Awaitable[str]]", getattr(client, "generate_presigned_url"))  # noqa: B009 - untyped
    return await sign("get_object", Params={"Bucket": bucket, "Key": name}, ExpiresIn=seconds)


async def _leave(client: object) -> None:
    """Close a client of aiobotocore, on the asyncio side."""
    leave = cast("Callable[..., Awaitable[None]] | None", getattr(client, "__aexit__", None))
    if leave is not None:
        await leave(None, None, None)


def _retry_after(answer: Mapping[str, Mapping[str, object]]) -> float | None:
    """Return after how many seconds the service wants to be asked again, if it says so."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders")
    said = str(cast("Mapping[str, object]", headers).get("retry-after", "")) if headers else ""
    return float(said) if said.isascii() and said.isdecimal() else None


def _conditions(condition: Condition | None) -> dict[str, object]:
    match condition:
        case None:
            return {}
        case Absent():
            return {"IfNoneMatch": "*"}
        case Unchanged(version):
            return {"IfMatch": version}


def _stat(key: str, reply: Reply, size: int) -> Stat:
    return Stat(key, size, _time(reply, "LastModified"), _text(reply, "ETag"))


def _items(reply: Reply, name: str) -> Sequence[Reply]:
    return cast("Sequence[Reply]", reply.get(name) or ())


def _text(reply: Reply, name: str) -> str:
    return str(reply.get(name) or "")


def _number(reply: Reply, name: str) -> int:
    value = reply.get(name)
    return value if isinstance(value, int) else 0


def _time(reply: Reply, name: str) -> float:
    value: object = reply.get(name)
    stamp: object = getattr(value, "timestamp", None)
    return float(cast("Callable[[], float]", stamp)()) if stamp is not None else 0.0

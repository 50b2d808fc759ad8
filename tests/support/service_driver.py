"""A driver as those of object stores are: each call a request, uploads in parts that the service keeps to itself."""

import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
import trio

from moorage import (
    Capabilities,
    Condition,
    Driver,
    Listing,
    MemoryDriver,
    Reader,
    Stat,
    Unchanged,
    Upload,
    UploadGone,
    hold_by_lease,
)

PART = 64 << 10


class _Token(msgspec.Struct, frozen=True):
    key: str
    destination: str | None
    upload: int | None
    parts: int
    tail: bytes


class Service:
    """What replicas share: objects, the parts of open uploads by number, and how often each thing was asked for."""

    def __init__(self) -> None:
        self.objects = MemoryDriver()
        self.uploads: dict[int, tuple[str, dict[int, bytes]]] = {}
        self.touched: dict[int, float] = {}
        self.requests: Counter[str] = Counter()
        self.count = 0


class ServiceDriver(Driver):
    """One replica's way to a service."""

    name = "service"
    capabilities = Capabilities(remote=True, announced_destination=True)

    def __init__(self, service: Service) -> None:
        self.service = service

    def _ask(self, what: str) -> MemoryDriver:
        self.service.requests[what] += 1
        return self.service.objects

    async def stat(self, key: str) -> Stat:
        return await self._ask("stat").stat(key)

    def open(self, key: str, start: int = 0, stop: int | None = None) -> AbstractAsyncContextManager[Reader]:
        return self._ask("open").open(key, start, stop)

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> str | None:
        return await self._ask("write").write(key, chunks, condition=condition, durable=durable)

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        await self._ask("delete").delete(*keys, condition=condition, durable=durable)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        return await self._ask("list").list(prefix, after=after, delimiter=delimiter, limit=limit)

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        await self._ask("copy").copy(source, destination, condition=condition)

    async def expire_uploads(self, *, older_than: float, dry_run: bool) -> int:
        await trio.lowlevel.checkpoint()
        old = [number for number in self.service.uploads if self.service.touched.get(number, 0.0) < older_than]
        for number in old:
            if not dry_run:
                del self.service.uploads[number]
        return len(old)

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        await trio.lowlevel.checkpoint()
        yield _ServiceUpload(self, _Token(key, destination, None, 0, b""))

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        await trio.lowlevel.checkpoint()
        try:
            upload = _ServiceUpload(self, msgspec.json.decode(token, type=_Token))
        except msgspec.MsgspecError:
            raise UploadGone("no token", driver=self.name, operation="upload") from None
        upload.check()
        if upload.offset != offset:
            raise UploadGone("at another offset", driver=self.name, operation="upload")
        yield upload

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        async with hold_by_lease(self, name) as held:
            yield held


class _ServiceUpload(Upload):
    def __init__(self, driver: ServiceDriver, token: _Token) -> None:
        self._driver = driver
        self._service = driver.service
        self._token = token
        self._tail = token.tail
        held = self._service.uploads.get(token.upload or 0, ("", {}))[1]
        self.offset = len(token.tail) + sum(len(held[number]) for number in range(token.parts) if number in held)

    def check(self) -> None:
        token = self._token
        if token.upload is not None:
            held = self._service.uploads.get(token.upload, ("", {}))[1]
            if any(number not in held for number in range(token.parts)):
                raise UploadGone("no such upload", driver="service", operation="upload", key=token.key)

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._tail += data
        self.offset += len(data)
        while len(self._tail) >= PART:
            self._part(self._tail[:PART])
            self._tail = self._tail[PART:]

    def _part(self, data: bytes) -> None:
        token = self._token
        if token.upload is None:
            self._service.requests["create"] += 1
            self._service.count += 1
            token = msgspec.structs.replace(token, upload=self._service.count)
            self._service.uploads[self._service.count] = (token.destination or token.key, {})
        self._service.requests["part"] += 1
        assert token.upload is not None
        if token.upload not in self._service.uploads:
            raise UploadGone("no such upload", driver="service", operation="upload", key=token.key)
        self._service.uploads[token.upload][1][token.parts] = data
        self._service.touched[token.upload] = time.time()
        self._token = msgspec.structs.replace(token, parts=token.parts + 1)

    async def suspend(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return msgspec.json.encode(msgspec.structs.replace(self._token, tail=self._tail))

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        if self._token.upload is None:
            await self._driver.write(destination, self._tail, condition=condition)
            return
        if self._token.destination not in {None, destination}:
            raise UploadGone("opened for elsewhere", driver="service", operation="upload", key=self._token.key)
        if self._tail:
            self._part(self._tail)
            self._tail = b""
        self.check()
        self._service.requests["complete"] += 1
        key, parts = self._service.uploads[self._token.upload]
        data = b"".join(parts[number] for number in range(self._token.parts))
        await self._service.objects.write(key, data, condition=condition if key == destination else None)
        del self._service.uploads[self._token.upload]
        if key != destination:
            await self._driver.copy(key, destination, condition=condition)
            await self._driver.delete(key)

    async def abort(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._token.upload is not None and self._service.uploads.pop(self._token.upload, ("", {}))[1]:
            self._service.requests["abort"] += 1

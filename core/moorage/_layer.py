"""A driver around a driver: what storage middleware is made of.

Every call goes to the driver inside, also those that have a default: a store that copies by itself must still do so
under a layer.
"""

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from ._driver import Capabilities, Condition, Driver, Listing, Reader, Stat, Unchanged, Upload


class DriverLayer(Driver):
    """A driver that passes every call on to `inside`; subclass it and override what shall be otherwise."""

    def __init__(self, inside: Driver) -> None:
        """Lie around `inside`, whose name and capabilities it has."""
        self.inside: Driver = inside
        self.name: str = inside.name
        self.capabilities: Capabilities = inside.capabilities

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`."""
        return await self.inside.stat(key)

    def open(self, key: str, start: int = 0, stop: int | None = None) -> AbstractAsyncContextManager[Reader]:
        """Open the bytes from `start` up to `stop`."""
        return self.inside.open(key, start, stop)

    async def read(self, key: str, *, limit: int) -> bytes:
        """Return the whole of a small object."""
        return await self.inside.read(key, limit=limit)

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> str | None:
        """Put an object at `key`."""
        return await self.inside.write(key, chunks, condition=condition, durable=durable)

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`."""
        await self.inside.delete(*keys, condition=condition, durable=durable)

    async def delete_below(self, prefix: str, *, durable: bool = True) -> None:
        """Remove every key below `prefix`."""
        await self.inside.delete_below(prefix, durable=durable)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        """Return a page of what lies below `prefix`."""
        return await self.inside.list(prefix, after=after, delimiter=delimiter, limit=limit)

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        """Put what is at `source` at `destination` too."""
        await self.inside.copy(source, destination, condition=condition)

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        """Return a URL from which a client may GET `key`, or None."""
        return await self.inside.url(key, client_address=client_address)

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        """Begin an upload."""
        async with self.inside.open_upload(key, destination) as upload:
            yield upload

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        """Go on with an upload."""
        async with self.inside.resume_upload(token, offset) as upload:
            yield upload

    async def expire_uploads(self, *, older_than: float, dry_run: bool) -> int:
        """Free what uploads have left in the store itself."""
        return await self.inside.expire_uploads(older_than=older_than, dry_run=dry_run)

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        """Try to be the only holder of `name` over all processes."""
        async with self.inside.hold(name) as held:
            yield held


class UploadLayer(Upload):
    """An upload that passes every call on to `inside`; subclass it and override what shall be otherwise."""

    def __init__(self, inside: Upload) -> None:
        """Lie around `inside`."""
        self.inside: Upload = inside
        self.offset: int = inside.offset

    async def write(self, data: bytes) -> None:
        """Append `data`."""
        try:
            await self.inside.write(data)
        finally:
            self.offset = self.inside.offset

    async def suspend(self) -> bytes:
        """Return a token by which any process can go on."""
        return await self.inside.suspend()

    async def drop_beyond(self, offset: int) -> None:
        """Free what was written beyond `offset`."""
        await self.inside.drop_beyond(offset)

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        """Make the object visible at `destination`."""
        await self.inside.commit(destination, condition=condition)

    async def abort(self) -> None:
        """End the upload and free what it holds."""
        await self.inside.abort()

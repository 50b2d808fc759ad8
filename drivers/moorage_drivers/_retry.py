"""Trying again what a service could not do just now: the layer `retry`, and what drivers of services have around them.

What may be repeated: whatever reads; a write of bytes, a delete, a copy; a part of an upload, its suspension and its
commit. A write that is streamed is not, for its source is used up. Where a reply was lost, the request may have been
applied: a conditional write that is then refused is looked at, and is ours if it is there.
"""

import logging
import random
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import msgspec
import trio

from moorage import (
    Condition,
    ConditionFailed,
    Driver,
    DriverError,
    DriverLayer,
    KeyUnknown,
    Listing,
    Reader,
    Stat,
    StorageMiddlewareFactory,
    Unchanged,
    Upload,
    UploadGone,
    UploadLayer,
)

from ._values import Seconds, Whole

_log = logging.getLogger("moorage.retry")

T = TypeVar("T")

_LOOK_LIMIT = 64 << 20


class RetryOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `middleware: {storage: [{name: retry, options: {...}}]}`.

    Attributes:
        attempts: how often a request is made at most.
        delay: how long to wait before the second attempt, at most; each further time it is twice as long.
        longest: how long to wait at most, also where the service asks for more.
    """

    attempts: Whole = Whole(5)
    delay: Seconds = Seconds(0.1)
    longest: Seconds = Seconds(10)


async def retried(options: RetryOptions, attempt: Callable[[], Awaitable[T]]) -> T:
    """Return what `attempt` returns, made again while that may help.

    Raises:
        DriverError: the last attempt's, or one that no further attempt would mend.
    """
    number = 0
    while True:
        try:
            return await attempt()
        except DriverError as error:
            number += 1
            if not error.retryable or number >= options.attempts:
                raise
            _log.info("attempt %d failed, and is made again: %s", number, error)
            await trio.sleep(pause(options, number, error))


def pause(options: RetryOptions, number: int, error: DriverError) -> float:
    """Return how many seconds to wait after attempt `number` failed with `error`."""
    longest = float(options.longest)
    if error.retry_after is not None:
        return min(error.retry_after, longest)
    # All that were refused at once should not come back at once.
    return random.uniform(0, min(options.delay * 2 ** (number - 1), longest))  # noqa: S311 - not a secret


class RetryLayer(DriverLayer):
    """A driver whose calls are made again where that may help."""

    def __init__(self, inside: Driver, options: RetryOptions) -> None:
        """Lie around `inside`."""
        super().__init__(inside)
        self._options = options

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`."""
        return await retried(self._options, lambda: self.inside.stat(key))

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        """Open the bytes from `start` up to `stop`; a reader that breaks in the middle is its driver's to mend."""
        async with AsyncExitStack() as stack:
            opened = await retried(self._options, lambda: stack.enter_async_context(self.inside.open(key, start, stop)))
            yield opened

    async def read(self, key: str, *, limit: int) -> bytes:
        """Return the whole of a small object."""
        return await retried(self._options, lambda: self.inside.read(key, limit=limit))

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        """Return a page of what lies below `prefix`."""
        return await retried(
            self._options, lambda: self.inside.list(prefix, after=after, delimiter=delimiter, limit=limit)
        )

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        """Return a URL from which a client may GET `key`, or None."""
        return await retried(self._options, lambda: self.inside.url(key, client_address=client_address))

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> str | None:
        """Put an object at `key`; only what is given as bytes can be sent again."""
        if not isinstance(chunks, bytes):
            return await self.inside.write(key, chunks, condition=condition, durable=durable)
        unsure = False

        async def attempt() -> str | None:
            nonlocal unsure
            try:
                return await self.inside.write(key, chunks, condition=condition, durable=durable)
            except ConditionFailed:
                found = await self._found(key, chunks) if unsure else None
                if found is None:
                    raise
                return found
            except DriverError as error:
                unsure = unsure or error.ambiguous
                raise

        return await retried(self._options, attempt)

    async def _found(self, key: str, data: bytes) -> str | None:
        """Return the version of what is at `key` if it is `data`."""
        try:
            async with self.inside.open(key) as reader:
                same = reader.stat.size == len(data) and b"".join([chunk async for chunk in reader]) == data
                return reader.stat.version if same else None
        except KeyUnknown:
            return None

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`."""
        unsure = False

        async def attempt() -> None:
            nonlocal unsure
            try:
                await self.inside.delete(*keys, condition=condition, durable=durable)
            except ConditionFailed:
                if not unsure or len(keys) != 1 or await self._is_there(keys[0]):
                    raise
            except DriverError as error:
                unsure = unsure or error.ambiguous
                raise

        await retried(self._options, attempt)

    async def _is_there(self, key: str) -> bool:
        try:
            await self.inside.stat(key)
        except KeyUnknown:
            return False
        return True

    async def delete_below(self, prefix: str, *, durable: bool = True) -> None:
        """Remove every key below `prefix`."""
        await retried(self._options, lambda: self.inside.delete_below(prefix, durable=durable))

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        """Put what is at `source` at `destination` too; under a condition once, for nobody could tell whose it is."""
        if condition is not None:
            await self.inside.copy(source, destination, condition=condition)
        else:
            await retried(self._options, lambda: self.inside.copy(source, destination))

    async def expire_uploads(self, *, older_than: float, dry_run: bool) -> int:
        """Free what uploads have left in the store itself."""
        return await retried(self._options, lambda: self.inside.expire_uploads(older_than=older_than, dry_run=dry_run))

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        """Begin an upload."""
        async with AsyncExitStack() as stack:
            opened = await retried(
                self._options, lambda: stack.enter_async_context(self.inside.open_upload(key, destination))
            )
            yield _RetriedUpload(opened, self.inside, self._options)

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        """Go on with an upload."""
        async with AsyncExitStack() as stack:
            opened = await retried(
                self._options, lambda: stack.enter_async_context(self.inside.resume_upload(token, offset))
            )
            yield _RetriedUpload(opened, self.inside, self._options)


class _RetriedUpload(UploadLayer):
    """An upload that is suspended, committed and aborted by several attempts; its parts are sent so by its driver."""

    def __init__(self, inside: Upload, driver: Driver, options: RetryOptions) -> None:
        super().__init__(inside)
        self._driver = driver
        self._options = options

    async def suspend(self) -> bytes:
        return await retried(self._options, self.inside.suspend)

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        unsure = False

        async def attempt() -> None:
            nonlocal unsure
            try:
                await self.inside.commit(destination, condition=condition)
            except UploadGone:
                # Gone because it was committed, if what is there could be it: blobs are named by their content.
                if not unsure or condition is not None or not await self._is_committed(destination):
                    raise
            except DriverError as error:
                unsure = unsure or error.ambiguous
                raise

        await retried(self._options, attempt)

    async def _is_committed(self, destination: str) -> bool:
        try:
            return (await self._driver.stat(destination)).size == self.offset
        except KeyUnknown:
            return False

    async def abort(self) -> None:
        await retried(self._options, self.inside.abort)


@asynccontextmanager
async def open_retry(options: RetryOptions, driver: Driver) -> AsyncGenerator[Driver]:
    """Lay the layer `retry` around `driver`."""
    await trio.lowlevel.checkpoint()
    yield RetryLayer(driver, options)


RETRY: StorageMiddlewareFactory[RetryOptions] = StorageMiddlewareFactory(RetryOptions, open_retry)

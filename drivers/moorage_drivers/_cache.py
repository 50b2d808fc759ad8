"""Remembering what a store said of content: the layer `cache`.

What a request for a blob asks first is small and hardly ever changes: whether the blob is in the repository (its link)
and how large it is. This layer remembers these two, and nothing else: no tag, no manifest's link, no bytes of content,
and never that something is not there.

- What is changed through this layer is forgotten, before and after the change, and whoever asked the store before the
  change was over does not get its answer remembered. So a process never sees less than it did itself.
- What others change is seen when the answer is older than `ttl`. In Redis all who share it are one in this, so only
  what bypasses them all (a collector, a lifecycle rule) is seen that late.
- A cache that does not answer is no cache: the store is asked, and it is tried again a little later.
"""

import logging
import re
import secrets
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Literal, TypeVar

import msgspec
import trio

from moorage import (
    Absent,
    Condition,
    ConditionFailed,
    ConfigurationError,
    Driver,
    DriverError,
    DriverLayer,
    KeyUnknown,
    Listing,
    Reader,
    RedisSettings,
    Stat,
    StorageMiddlewareFactory,
    Unchanged,
    Upload,
    UploadLayer,
)

from ._values import Seconds

_log = logging.getLogger("moorage.cache")

T = TypeVar("T")

_LINK = re.compile(r"docker/registry/v2/repositories/.+/_layers/[^/]+/[^/]+/link", re.ASCII)
_CONTENT = re.compile(r"docker/registry/v2/blobs/[^/]+/[^/]+/[^/]+/data", re.ASCII)
_AROUND_THEM = ("docker/registry/v2/blobs/", "docker/registry/v2/repositories/")
_LINK_LIMIT = 1024
_SECONDS_IN_MEMORY = 60.0
_SECONDS_IN_REDIS = 600.0
_IDENTITY_KEY = "moorage-cache-id"
_IDENTITY_LIMIT = 64

_stats = msgspec.msgpack.Decoder(Stat)


class CacheOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of `storage: {cache: {...}}` and of the layer `cache`.

    Attributes:
        blobdescriptor: where answers are remembered: `inmemory`, by each process for itself, also without a word about it,
            or `redis`.
        layerinfo: an old name of `blobdescriptor`.
        blobdescriptorsize: how many answers a process remembers; 0 and less is any number. Redis bounds itself.
        ttl: for how long; without it a minute in memory and ten in Redis.
        redis: how Redis is reached; without it the configuration's section `redis` says so.
    """

    blobdescriptor: Literal["inmemory", "redis", ""] = ""
    layerinfo: Literal["inmemory", "redis", ""] = ""
    blobdescriptorsize: int = 10_000
    ttl: Seconds | None = None
    redis: RedisSettings | None = None


class Answers(ABC):
    """What is remembered of a store, by key.

    Whoever is told that nothing is remembered gets a ticket, asks the store, and may hand in the answer with it. The
    ticket is void when the key has changed meanwhile.
    """

    @abstractmethod
    async def find(self, key: str) -> "bytes | Ticket":
        """Return what is remembered of `key`, or a ticket with which an answer may be handed in."""

    @abstractmethod
    async def fill(self, key: str, answer: bytes, ticket: "Ticket") -> None:
        """Remember `answer`, unless `key` has changed since the ticket was given."""

    @abstractmethod
    async def forget(self, *keys: str) -> None:
        """Forget what is remembered of `keys`, and void all tickets for them."""


class Ticket(msgspec.Struct, frozen=True):
    """What `Answers` knew of a key of which it remembered nothing; None where it may not be filled in at all."""

    known: int | bytes | None


class AnswersInMemory(Answers):
    """What one process remembers: so many answers, the least recently used goes first."""

    def __init__(self, *, limit: int, seconds: float) -> None:
        """Remember up to `limit` answers (0 and less: any number) for `seconds`."""
        self._limit = limit
        self._seconds = seconds
        self._answers: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        # When each key was forgotten last, counted; of keys that are not listed, not after the count `_unlisted`.
        self._forgotten: OrderedDict[str, int] = OrderedDict()
        self._count = self._unlisted = 0

    async def find(self, key: str) -> bytes | Ticket:
        """Return what is remembered of `key`, or a ticket."""
        await trio.lowlevel.checkpoint()
        answer, until = self._answers.get(key, (None, 0.0))
        if answer is None or trio.current_time() >= until:
            return Ticket(self._count)
        self._answers.move_to_end(key)
        return answer

    async def fill(self, key: str, answer: bytes, ticket: Ticket) -> None:
        """Remember `answer`, unless `key` was forgotten since."""
        await trio.lowlevel.checkpoint()
        if not isinstance(ticket.known, int) or self._forgotten.get(key, self._unlisted) > ticket.known:
            return
        self._answers[key] = answer, trio.current_time() + self._seconds
        self._answers.move_to_end(key)
        while 0 < self._limit < len(self._answers):
            self._answers.popitem(last=False)

    async def forget(self, *keys: str) -> None:
        """Forget what is remembered of `keys`."""
        await trio.lowlevel.checkpoint()
        for key in keys:
            self._count += 1
            self._answers.pop(key, None)
            self._forgotten[key] = self._count
            self._forgotten.move_to_end(key)
        while len(self._forgotten) > 10_000:
            _, self._unlisted = self._forgotten.popitem(last=False)


class CacheLayer(DriverLayer):
    """A store of which is remembered which blobs are in which repository, and how large they are."""

    def __init__(self, inside: Driver, answers: Answers) -> None:
        """Remember in `answers` what `inside` says."""
        super().__init__(inside)
        self._answers = answers

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`; of content it may be what was known a while ago."""
        if _CONTENT.fullmatch(key) is None:
            return await self.inside.stat(key)
        return await self._remembered(
            key, lambda: self.inside.stat(key), msgspec.msgpack.encode, _stats.decode, worth=lambda stat: True
        )

    async def read(self, key: str, *, limit: int) -> bytes:
        """Return the whole of a small object; of a link to a blob it may be what it held a while ago."""
        if _LINK.fullmatch(key) is None:
            return await self.inside.read(key, limit=limit)
        return await self._remembered(
            key, lambda: self.inside.read(key, limit=limit), bytes, bytes, worth=lambda link: len(link) <= _LINK_LIMIT
        )

    async def _remembered(
        self,
        key: str,
        ask: Callable[[], Awaitable[T]],
        encode: Callable[[T], bytes],
        decode: Callable[[bytes], T],
        *,
        worth: Callable[[T], bool],
    ) -> T:
        found = await self._answers.find(key)
        if isinstance(found, bytes):
            try:
                return decode(found)
            except msgspec.MsgspecError:
                # Not ours; what we know is worth more.
                await self._answers.forget(key)
                return await ask()
        answer = await ask()
        if worth(answer):
            await self._answers.fill(key, encode(answer), found)
        return answer

    @asynccontextmanager
    async def _changing(self, *keys: str) -> AsyncGenerator[None]:
        """Forget what is remembered of `keys` before and after they are changed inside of this, however that ends."""
        remembered = [key for key in keys if _is_remembered(key)]
        if not remembered:
            yield
            return
        await self._answers.forget(*remembered)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self._answers.forget(*remembered)

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        """Open the bytes from `start` up to `stop`."""
        try:
            async with self.inside.open(key, start, stop) as reader:
                yield reader
        except KeyUnknown as error:
            if error.key == key and _is_remembered(key):
                await self._answers.forget(key)
            raise

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> str | None:
        """Put an object at `key`."""
        async with self._changing(key):
            return await self.inside.write(key, chunks, condition=condition, durable=durable)

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`."""
        async with self._changing(*keys):
            await self.inside.delete(*keys, condition=condition, durable=durable)

    async def delete_below(self, prefix: str, *, durable: bool = True) -> None:
        """Remove every key below `prefix`."""
        if (
            any(prefix.startswith(each) or each.startswith(prefix) for each in _AROUND_THEM)
            and "/_uploads/" not in prefix
        ):
            # Key by key, so that each is forgotten.
            await Driver.delete_below(self, prefix, durable=durable)
        else:
            await self.inside.delete_below(prefix, durable=durable)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        """Return a page of what lies below `prefix`, but for what this layer keeps there for itself."""
        listing = await self.inside.list(prefix, after=after, delimiter=delimiter, limit=limit)
        entries = tuple(entry for entry in listing.entries if entry.key != _IDENTITY_KEY)
        return listing if len(entries) == len(listing.entries) else msgspec.structs.replace(listing, entries=entries)

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        """Put what is at `source` at `destination` too."""
        async with self._changing(destination):
            await self.inside.copy(source, destination, condition=condition)

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        """Begin an upload."""
        async with self.inside.open_upload(key, destination) as upload:
            yield _ForgettingUpload(upload, self._changing)

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        """Go on with an upload."""
        async with self.inside.resume_upload(token, offset) as upload:
            yield _ForgettingUpload(upload, self._changing)


class _ForgettingUpload(UploadLayer):
    """An upload after whose commit nothing is remembered of what was there before."""

    def __init__(self, inside: Upload, changing: Callable[[str], AbstractAsyncContextManager[None]]) -> None:
        super().__init__(inside)
        self._changing = changing

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        async with self._changing(destination):
            await super().commit(destination, condition=condition)


def _is_remembered(key: str) -> bool:
    return _LINK.fullmatch(key) is not None or _CONTENT.fullmatch(key) is not None


async def _identity(driver: Driver) -> str:
    """Return the name of a store that no other store has: whoever keeps another store may use the same Redis.

    It is kept in the store itself. Who cannot write there gets one of his own.
    """
    create = Absent() if driver.capabilities.create_only else None
    try:
        return await _read_identity(driver)
    except KeyUnknown:
        pass
    name = secrets.token_hex(8)
    try:
        await driver.write(_IDENTITY_KEY, name.encode(), condition=create)
    except ConditionFailed:
        pass
    except DriverError as error:
        _log.warning("what is in Redis cannot be shared with other processes: %s", error)
        return name
    return await _read_identity(driver)


async def _read_identity(driver: Driver) -> str:
    return (await driver.read(_IDENTITY_KEY, limit=_IDENTITY_LIMIT)).decode("ascii", "replace").strip()


@asynccontextmanager
async def open_cache(options: CacheOptions, driver: Driver) -> AsyncGenerator[Driver]:
    """Lay the layer `cache` around `driver`.

    Raises:
        ConfigurationError: it is not said how Redis is reached, or that cannot work.
    """
    if (options.blobdescriptor or options.layerinfo or "inmemory") == "inmemory":
        await trio.lowlevel.checkpoint()
        seconds = float(options.ttl or _SECONDS_IN_MEMORY)
        yield CacheLayer(driver, AnswersInMemory(limit=options.blobdescriptorsize, seconds=seconds))
        return
    if options.redis is None or not options.redis.addrs:
        raise ConfigurationError("blobdescriptor: redis needs redis.addrs, which says where that is")
    from ._redis import open_answers_in_redis

    seconds = float(options.ttl or _SECONDS_IN_REDIS)
    async with open_answers_in_redis(options.redis, partial(_identity, driver), seconds=seconds) as answers:
        yield CacheLayer(driver, answers)


CACHE: StorageMiddlewareFactory[CacheOptions] = StorageMiddlewareFactory(
    CacheOptions, open_cache, section="storage.cache", beside={"redis": "redis"}, for_serving=True
)

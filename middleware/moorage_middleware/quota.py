"""How many bytes and tags repositories may have together.

What counts: the size of each blob that is in a repository, once for each repository it is in, and each tag. The bytes of
manifests do not. Rules this file keeps:

- What is used lies in the store, an object for each quota, and is changed under its version: of two pushes that reach the
  limit at once, one is refused, in whichever processes they are.
- A push costs a read and a write of that object, never a look at all that is there.
- What is too much is refused before it is in a repository, never taken out again: by then another push of the same blob
  may have been answered.
- What a crash, or two pushes of one blob at the same moment, count wrong is put right when everything is counted again, by
  one process, now and then. Until everything was counted once, nothing is refused.
- Where the count cannot be kept, pushes fail; deletes do not.
"""

import hashlib
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Annotated, cast

import msgspec
import trio

from moorage import (
    Absent,
    BlobPushed,
    BlobUnknown,
    Body,
    CancelUpload,
    CommitUpload,
    Condition,
    ConditionFailed,
    ConfigurationError,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    Denied,
    Digest,
    Driver,
    DriverError,
    Duration,
    Glob,
    Handler,
    KeyUnknown,
    ListRepositories,
    ListTags,
    ManifestUnknown,
    MemoryDriver,
    MiddlewareFactory,
    MountBlob,
    NameUnknown,
    Operation,
    PullBlob,
    PullManifest,
    PushBlob,
    PushManifest,
    QuickBody,
    R,
    RegistryError,
    RepositoryName,
    StatUpload,
    Unavailable,
    Unchanged,
    encode_json,
    hookimpl,
    list_blobs,
    open_helpers,
)

from .size_limits import Size

_log = logging.getLogger("moorage.quota")

_TRIES = 30
_PAGE = 1000
_LOOK_SECONDS = 60.0
_UNDO_SECONDS = 10.0
"""How long it may take to undo what was begun and cannot be."""


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One quota.

    Attributes:
        repositories: whose blobs and tags count, together.
        bytes: the most bytes of blobs.
        tags: the most tags.
    """

    repositories: Glob
    bytes: Size | None = None
    tags: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Quotas(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `plugins: {quota: {...}}`.

    Attributes:
        limits: the quotas; a repository may count for several.
        recount: how often everything is counted again.
    """

    limits: tuple[Quota, ...] = ()
    recount: Duration = 86400

    def __post_init__(self) -> None:
        """Refuse two quotas on the same repositories, and to count without a pause.

        Raises:
            ValueError: there are some.
        """
        if self.recount < 1:
            raise ValueError("recount is a time of at least 1s")
        patterns = [each.repositories.text for each in self.limits]
        if len(set(patterns)) < len(patterns):
            raise ValueError("limits name the same repositories twice")


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """What is used of a quota: as its object holds it, or as a difference.

    Attributes:
        bytes: of blobs.
        tags: how many.
        counted: when everything was counted, Unix time; 0 before that was ever done.
    """

    bytes: int = 0
    tags: int = 0
    counted: float = 0


class Counter:
    """What is used of one quota, in the store."""

    def __init__(self, quota: Quota, driver: Driver) -> None:
        """Keep it on `driver`."""
        self.quota = quota
        self._driver = driver
        self._key = f"plugins/quota/{hashlib.sha256(quota.repositories.text.encode()).hexdigest()}"
        # Those of one process wait for each other here, so that few meet in the store.
        self._lock = trio.Lock()

    async def read(self) -> Used:
        """Return what is used."""
        return (await self._versioned())[0]

    async def refuse(self, least: Used) -> None:
        """Look whether there is room for `least`, without taking it.

        Raises:
            Denied: there is none.
        """
        used = await self.read()
        if used.counted:
            self._check(Used(bytes=used.bytes + least.bytes, tags=used.tags + least.tags), least)

    async def add(self, more: Used, *, bounded: bool = True) -> None:
        """Add `more`, which may be less than nothing.

        Raises:
            Denied: that would be more than the quota; nothing was added. Not without `bounded`.
            Unavailable: too many others add at the same time.
        """
        async with self._lock:
            for at in range(_TRIES):
                used, condition = await self._versioned()
                changed = msgspec.structs.replace(used, bytes=used.bytes + more.bytes, tags=used.tags + more.tags)
                if bounded and used.counted:
                    self._check(changed, more)
                if await self._write(changed, condition):
                    return
                await trio.sleep(random.uniform(0, 0.005 * (at + 1)))  # noqa: S311 - to spread those that meet
        raise Unavailable("too many pushes count for the same quota at once", retry_after=1)

    async def put_right(self, counted: Used, before: Used) -> None:
        """Replace what was used `before` everything was `counted`; what was added meanwhile stays added."""
        for _ in range(_TRIES):
            used, condition = await self._versioned()
            right = Used(
                bytes=max(counted.bytes + used.bytes - before.bytes, 0),
                tags=max(counted.tags + used.tags - before.tags, 0),
                counted=time.time(),
            )
            if await self._write(right, condition):
                return
            await trio.sleep(random.uniform(0, 0.1))  # noqa: S311 - as above

    def _check(self, wanted: Used, more: Used) -> None:
        quota = self.quota
        for name, most, sum_, grows in (
            ("bytes", quota.bytes, wanted.bytes, more.bytes > 0),
            ("tags", quota.tags, wanted.tags, more.tags > 0),
        ):
            if grows and most is not None and sum_ > most:
                raise Denied(
                    f"the quota of {quota.repositories.text} is {most} {name}, and this would make it {sum_}",
                    detail={"quota": quota.repositories.text, "unit": name, "limit": int(most), "wanted": sum_},
                )

    async def _versioned(self) -> tuple[Used, Condition]:
        try:
            async with self._driver.open(self._key) as reader:
                data = b"".join([chunk async for chunk in reader])
                version = Unchanged(reader.stat.version)
            try:
                return msgspec.json.decode(data, type=Used), version
            except msgspec.MsgspecError:
                # Somebody wrote there; as if nothing was ever counted.
                return Used(), version
        except KeyUnknown:
            return Used(), Absent()

    async def _write(self, used: Used, condition: Condition) -> bool:
        try:
            await self._driver.write(self._key, encode_json(used), condition=condition, durable=False)
        except ConditionFailed:
            return False
        return True


class _Weighed:
    """A body that is counted when all of it is here, before anybody makes a blob of it."""

    def __init__(self, body: Body, begun: int, count: Callable[[int], Awaitable[None]]) -> None:
        """Have `count` called with the bytes of `body` and those `begun` before; it may raise."""
        self.length = body.length
        self.weight = 0
        """What was counted."""
        self._body = body
        self._pieces = aiter(body)
        self._seen = begun
        self._whole = None if body.length is None else begun + body.length
        self._count = count
        self._is_counted = False

    async def weigh(self) -> None:
        """Count what has come, once."""
        if not self._is_counted:
            self._is_counted = True
            await self._count(self._seen)
            self.weight = self._seen

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await anext(self._pieces)
        except StopAsyncIteration:
            await self.weigh()
            raise
        await self._saw(len(piece))
        return piece

    async def take_quickly(self, take: Callable[[bytes], None]) -> int:
        """Have `take` called in a thread, by a body that can do that."""
        taken = await self._body.take_quickly(take) if isinstance(self._body, QuickBody) else 0
        await self._saw(taken)
        return taken

    async def _saw(self, count: int) -> None:
        self._seen += count
        if self._seen == self._whole:
            await self.weigh()


class WithinQuota:
    """Answers pushes that stay within the quotas, and counts them."""

    def __init__(self, inner: Handler, counters: list[Counter]) -> None:
        """Pass on to `inner` what the quotas of `counters` have room for."""
        self._inner = inner
        self._counters = counters

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`.

        Raises:
            Denied: there is no room for it.
        """
        # Each is answered by a reply of its own kind.
        return cast("R", await self._answered(operation))

    async def _answered(self, operation: Operation[object]) -> object:
        match operation:
            case PushBlob() | CommitUpload() | MountBlob() if counters := self._of(operation.repository):
                return await self._take_in(operation, counters)
            case PushManifest() if counters := self._of(operation.repository):
                return await self._tag(operation, counters)
            case DeleteBlob() if counters := self._of(operation.repository):
                size = await self._size(operation.repository, operation.digest) or 0
                deleted = await self._inner(operation)
                await self._give_back(counters, Used(bytes=-size))
                return deleted
            case DeleteTag() | DeleteManifest() if counters := self._of(operation.repository):
                deleted = await self._inner(operation)
                tags = len(deleted.tags) if isinstance(operation, DeleteManifest) else 1
                await self._give_back(counters, Used(tags=-tags))
                return deleted
            case _:
                return await self._inner(operation)

    def _of(self, repository: RepositoryName) -> list[Counter]:
        return [each for each in self._counters if each.quota.repositories.matches(repository)]

    async def _size(self, repository: RepositoryName, digest: Digest) -> int | None:
        """Return how large a blob of `repository` is, None if it is not there."""
        try:
            return (await self._inner(PullBlob(repository=repository, digest=digest))).descriptor.size
        except BlobUnknown:
            return None

    async def _take_in(self, operation: PushBlob | CommitUpload | MountBlob, counters: list[Counter]) -> object:
        """Count a blob when its size is known, and take it in then."""
        asked: Operation[object] = operation
        if await self._size(operation.repository, operation.digest) is not None:
            return await self._inner(asked)
        if isinstance(operation, MountBlob):
            return await self._mount(operation, counters)
        # Where there is surely no room, nobody has to send the bytes first.
        least = Used(bytes=max(operation.body.length or 0, 1))
        for counter in counters:
            await counter.refuse(least)

        async def count(size: int) -> None:
            await self._add(counters, Used(bytes=size))

        body = _Weighed(operation.body, await self._received(operation), count)
        try:
            if operation.body.length == 0:
                await body.weigh()
            reply = await self._inner(msgspec.structs.replace(operation, body=body))
        except BaseException as error:
            with trio.move_on_after(_UNDO_SECONDS, shield=True):
                await self._give_back(counters, Used(bytes=-body.weight))
                if isinstance(error, Denied) and isinstance(operation, CommitUpload):
                    # Nothing can become of it, so its bytes need not wait until it is old.
                    cancel = CancelUpload(repository=operation.repository, upload_id=operation.upload_id)
                    with suppress(RegistryError):
                        await self._inner(cancel)
            raise
        return reply

    async def _received(self, operation: PushBlob | CommitUpload) -> int:
        """Return how many bytes of a blob are here already."""
        if isinstance(operation, PushBlob):
            return 0
        where = StatUpload(repository=operation.repository, upload_id=operation.upload_id)
        return (await self._inner(where)).offset

    async def _mount(self, operation: MountBlob, counters: list[Counter]) -> object:
        """Count a blob that is in another repository, and take it in from there."""
        size = None
        if operation.source is not None:
            with suppress(RegistryError):
                size = await self._size(operation.source, operation.digest)
        if size is None:
            # From a repository that is found further in, if there is one: the store has it already, so no more of it.
            for counter in counters:
                await counter.refuse(Used(bytes=1))
        counted = Used(bytes=size or 0)
        await self._add(counters, counted)
        reply: object = None
        try:
            reply = await self._inner(operation)
        finally:
            if not isinstance(reply, BlobPushed):
                with trio.move_on_after(_UNDO_SECONDS, shield=True):
                    await self._give_back(counters, Used(bytes=-counted.bytes))
        if size is None and isinstance(reply, BlobPushed):
            # Not taken out again if it is too much: another push of it may have been answered meanwhile.
            found = await self._size(operation.repository, operation.digest) or 0
            for counter in counters:
                await counter.add(Used(bytes=found), bounded=False)
        return reply

    async def _tag(self, operation: PushManifest, counters: list[Counter]) -> object:
        """Push a manifest, and count its new tags before."""
        asked: Operation[object] = operation
        new = 0
        for tag in operation.written_tags:
            try:
                await self._inner(PullManifest(repository=operation.repository, reference=tag))
            except ManifestUnknown:
                new += 1
        if not new:
            return await self._inner(asked)
        await self._add(counters, Used(tags=new))
        try:
            return await self._inner(asked)
        except BaseException:
            with trio.move_on_after(_UNDO_SECONDS, shield=True):
                await self._give_back(counters, Used(tags=-new))
            raise

    async def _add(self, counters: list[Counter], more: Used) -> None:
        """Add to all of `counters` or to none."""
        done: list[Counter] = []
        try:
            for counter in counters:
                await counter.add(more)
                done.append(counter)
        except BaseException:
            with trio.move_on_after(_UNDO_SECONDS, shield=True):
                await self._give_back(done, Used(bytes=-more.bytes, tags=-more.tags))
            raise

    async def _give_back(self, counters: list[Counter], less: Used) -> None:
        for counter in counters:
            try:
                await counter.add(less, bounded=False)
            except (DriverError, RegistryError) as error:
                _log.warning("what was given back to a quota will be counted later: %s", error)


async def _count_now(handler: Handler, driver: Driver, counter: Counter) -> None:
    """Count all that counts for one quota."""
    before = await counter.read()
    if not before.counted:
        # From here on what is added is seen, though not bounded.
        await counter.add(Used(), bounded=False)
    matches = counter.quota.repositories.matches
    size = tags = 0
    async with aclosing(list_blobs(driver, matches)) as blobs:
        async for repository, digest in blobs:
            try:
                size += (await handler(PullBlob(repository=repository, digest=digest))).descriptor.size
            except BlobUnknown:
                continue
    after, more = "", True
    while more:
        page = await handler(ListRepositories(after=after, limit=_PAGE))
        for repository in filter(matches, page.repositories):
            try:
                tags += len((await handler(ListTags(repository=repository, limit=1 << 30))).tags)
            except NameUnknown:
                continue
        after, more = (page.repositories[-1] if page.repositories else ""), page.more
    await counter.put_right(Used(bytes=size, tags=tags), before)
    _log.info("%d bytes and %d tags count for the quota of %s", size, tags, counter.quota.repositories.text)


async def _count_again(handler: Handler, driver: Driver, counters: list[Counter], every: float) -> None:
    """Count everything now and then, in one process at a time."""
    while True:
        try:
            async with driver.hold("quota") as held:
                for counter in counters if held else ():
                    if (await counter.read()).counted + every <= time.time():
                        await _count_now(handler, driver, counter)
        except (DriverError, RegistryError) as error:
            _log.warning("what counts for quotas could not be counted: %s", error)
        except Exception:  # noqa: BLE001 - the edge of a task: what is wrong here must not end the registry
            _log.exception("what counts for quotas could not be counted")
        await trio.sleep(min(every, _LOOK_SECONDS))


@asynccontextmanager
async def _open_on(options: Quotas, inner: Handler, driver: Driver) -> AsyncGenerator[Handler]:
    if not driver.capabilities.cas or not driver.capabilities.create_only:
        raise ConfigurationError(f"plugins.quota: the store {driver.name} cannot count: it has no conditional writes")
    counters = [Counter(quota, driver) for quota in options.limits]
    async with open_helpers() as nursery:
        if counters:
            nursery.start_soon(_count_again, inner, driver, counters, options.recount)
        yield WithinQuota(inner, counters)


@asynccontextmanager
async def _open(options: Quotas, inner: Handler) -> AsyncGenerator[Handler]:
    """Count in memory, for whoever has a handler and no store."""
    async with _open_on(options, inner, MemoryDriver()) as handler:
        yield handler


@hookimpl
def register_middleware() -> Mapping[str, object]:
    """Offer the quotas."""
    return {"quota": MiddlewareFactory(Quotas, _open, open_with_store=_open_on)}

"""Blobs of a container of Azure's blob storage.

- Azure's own library makes the requests, one attempt each; adlfs would add a cache and finalizers that this driver has no
  use for, and takes none of the settings that bound a request.
- **Atomic**: a blob is there when its one request, or the request that lists its blocks, was answered. Conditions are
  the service's (`If-None-Match`, `If-Match`).
- **Uploads** are blocks at a name of their own, and are copied inside the service when they are committed: blocks that
  are in no list yet belong to a blob's *name*, so a commit, or a put, by anybody throws away all that are not its own.
  What nobody ended, the service drops after a week.
- What distribution wrote are append blobs: they are read like others, and replaced by being removed first.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial

import trio
from azure.core import MatchConditions
from azure.storage.blob import BlobBlock, ContentSettings
from azure.storage.blob.aio import BlobPrefix

from moorage import (
    Absent,
    Capabilities,
    Condition,
    ConditionFailed,
    Driver,
    Entry,
    KeyUnknown,
    Listing,
    Reader,
    Stat,
    StoreBusy,
    StoreUnavailable,
    Unchanged,
    Upload,
    UploadGone,
    check_key,
    hold_by_lease,
    map_bounded,
)

from ._azure_client import NAME, AzureClient, Block, Listed, WrongBlobType, conditions, open_container
from ._azure_options import AzureOptions
from ._blocks import Blocks, Token, in_pieces
from ._parts import Budgets
from ._reading import ReadBudgets, open_by_ranges, read_whole

_PAGE = 1000
_DELETES_AT_ONCE = 16
_ABORT_SECONDS = 30.0
_COPY_SECONDS = 600.0
_COPY_PAUSE_MAXIMUM = 2.0
_BEYOND_ALL = "~"
"""Comes after every character that a key may have."""
_PLAIN = ContentSettings(content_type="application/octet-stream")

_SOURCE_UNCHANGED = {"source_match_condition": MatchConditions.IfNotModified}


class AzureDriver(Driver):
    """A store in a container; make it with `open_container`."""

    name = NAME
    capabilities = Capabilities(remote=True)

    def __init__(self, client: AzureClient) -> None:
        """Keep blobs in the container of `client`."""
        self._client = client
        self._options = client.options
        self._root = client.options.root
        budgets = Budgets(memory=self._options.uploadmemory, at_once=max(4, int(self._options.maxconnections) // 2))
        self._blocks = Blocks(self, budgets, self._block_size)
        self._reading = ReadBudgets(connections=int(self._options.maxconnections))

    @classmethod
    @asynccontextmanager
    async def open_container(cls, options: AzureOptions) -> AsyncGenerator["AzureDriver"]:
        """Open the container that `options` name, which must be there.

        Raises:
            ConfigurationError: an option cannot work.
            DriverError: the service, or its answer to these credentials.
        """
        async with open_container(options) as client:
            driver = cls(client)
            await driver.list("", limit=1)
            yield driver

    def at(self, key: str) -> str:
        """Return the name that the blob of `key` has in the container."""
        return self._root + check_key(key, driver=self.name)

    # ---- the contract

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`."""
        found = await self._client.ask("stat", key, self._client.blob(self.at(key)).get_blob_properties)
        return Stat(key, found.size, found.last_modified.timestamp(), found.etag)

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
            partial(self._client.stream, key, self.at(key)),
            partial(self.stat, key),
            start,
            stop,
            budget=self._reading.memory,
            driver=self.name,
        ) as reader:
            yield reader

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> str | None:
        """Put a blob at `key`; of two that write more than a block to it at the same time, one is told to try again."""
        del durable
        if isinstance(chunks, bytes) and len(chunks) <= self._options.chunksize:
            return await self.put(key, chunks, condition)
        async with (
            self._blocks.open(check_key(key, driver=self.name)) as upload,
            aclosing(in_pieces(chunks, self._options.chunksize)) as cut,
        ):
            async for chunk in cut:
                await upload.write(chunk)
            # Blocks of a write that fails are dropped by the service: to drop them here would take the blob with them.
            try:
                return await upload.finish(key, condition)
            except UploadGone:
                raise StoreBusy(
                    "somebody else wrote to it meanwhile", driver=self.name, operation="write", key=key
                ) from None

    async def put(self, key: str, data: bytes, condition: Condition | None) -> str:
        """Put a small blob at `key` by one request; return its version."""
        blob = self._client.blob(self.at(key))
        try:
            reply = await self._client.ask(
                "write",
                key,
                lambda: blob.upload_blob(
                    data,
                    length=len(data),
                    overwrite=not isinstance(condition, Absent),
                    content_settings=_PLAIN,
                    **({} if isinstance(condition, Absent) else conditions(condition)),
                ),
            )
        except KeyUnknown:
            raise ConditionFailed("it is gone", driver=self.name, operation="write", key=key) from None
        return str(reply["etag"])

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`."""
        del durable
        for key in keys:
            check_key(key, driver=self.name)

        async def remove(key: str) -> None:
            blob = self._client.blob(self.at(key))
            try:
                await self._client.ask("delete", key, partial(blob.delete_blob, **conditions(condition)))
            except KeyUnknown:
                if condition is not None:
                    raise ConditionFailed("it is gone", driver=self.name, operation="delete", key=key) from None

        if not keys:
            await trio.lowlevel.checkpoint()
        await map_bounded(remove, tuple(dict.fromkeys(keys)), limit=_DELETES_AT_ONCE)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        """Return a page of what lies below `prefix`."""
        found: list[Entry] = []
        marker: str | None = None
        begin = after
        if delimiter and after.endswith("/") and len(after) > len(prefix):
            # What is below a folded prefix was listed by it.
            begin = after + _BEYOND_ALL
        while True:
            # The first name is the one to begin after, where the service keeps `start_from`; not all do.
            size = min(limit - len(found) + 1, _PAGE)
            page, marker = await self._page(prefix, begin, delimiter, size, marker)
            found += [entry for entry in page if entry.key > after and not (begin > after and entry.key <= begin)]
            if not marker or len(found) >= limit:
                return Listing(tuple(found[:limit]), bool(marker) or len(found) > limit)

    async def _page(
        self, prefix: str, begin: str, delimiter: str, size: int, marker: str | None
    ) -> tuple[Sequence[Entry], str | None]:
        """Return one page of the service's, in order, and where the next one begins."""
        container, root = self._client.container, self._root
        more: dict[str, object] = {"start_from": root + begin} if begin else {}

        async def request() -> tuple[Sequence[Listed], str | None]:
            listed = container.walk_blobs if delimiter else container.list_blobs
            if delimiter:
                more["delimiter"] = delimiter
            pages = listed(name_starts_with=root + prefix, results_per_page=size, **more).by_page(marker)
            items = [item async for item in await anext(pages)]
            return items, pages.continuation_token

        items, following = await self._client.ask("list", prefix, request)
        entries = [
            Entry(item.name[len(root) :])
            if isinstance(item, BlobPrefix)
            else Entry(item.name[len(root) :], item.size, item.last_modified.timestamp())
            for item in items
        ]
        return sorted(entries, key=lambda entry: entry.key), following or None

    async def copy(self, source: str, destination: str, *, condition: Condition | None = None) -> None:
        """Put what is at `source` at `destination` too, inside the service."""
        stat = await self.stat(source)
        await self._copy(source, destination, condition, stat.version)

    async def _copy(self, source: str, destination: str, condition: Condition | None, version: str | None) -> None:
        """Copy; where a blob of another type is in the way, remove it."""
        try:
            await self._start_copy(source, destination, condition, version)
        except WrongBlobType:
            there = await self.stat(destination)
            if isinstance(condition, Absent):
                raise ConditionFailed("it is there", driver=self.name, operation="copy", key=destination) from None
            await self.delete(destination, condition=condition or Unchanged(there.version))
            await self._start_copy(source, destination, Absent(), version)

    async def _start_copy(
        self, source: str, destination: str, condition: Condition | None, version: str | None
    ) -> None:
        origin, target = self._client.blob(self.at(source)), self._client.blob(self.at(destination))
        pinned = {"source_etag": version, **_SOURCE_UNCHANGED} if version else {}
        try:
            reply = await self._client.ask(
                "copy",
                destination,
                lambda: target.start_copy_from_url(origin.url, **conditions(condition), **pinned),
            )
        except KeyUnknown:
            if isinstance(condition, Unchanged) and await self._size_of(source) is not None:
                raise ConditionFailed("it is gone", driver=self.name, operation="copy", key=destination) from None
            raise
        if reply["copy_status"] == "success":
            return
        ended = False
        try:
            ended = await self._ended(destination)
        finally:
            if not ended:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + _ABORT_SECONDS):
                    await self._client.ask("copy", destination, partial(target.abort_copy, str(reply["copy_id"])))
        if not ended:
            raise StoreUnavailable("the copy did not end", driver=self.name, operation="copy", key=destination)

    async def _ended(self, destination: str) -> bool:
        """Wait for a copy inside the service; return whether it has succeeded.

        Raises:
            StoreUnavailable: it failed.
        """
        looks, pause = self._options.max_retries, float(self._options.retry_delay)
        count = 0
        with trio.move_on_after(_COPY_SECONDS):
            while looks is None or count < looks:
                await trio.sleep(pause)
                pause = min(pause * 2, _COPY_PAUSE_MAXIMUM)
                count += 1
                blob = self._client.blob(self.at(destination))
                found = await self._client.ask("copy", destination, blob.get_blob_properties)
                if found.copy.status == "success":
                    return True
                if found.copy.status != "pending":
                    raise StoreUnavailable(
                        f"the copy ended as {found.copy.status}", driver=self.name, operation="copy", key=destination
                    )
        return False

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        """Return a URL from which a client may GET `key` for a while."""
        del client_address
        return await self._client.signed(self.at(key))

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        """Try to be the only holder of `name` over all replicas."""
        async with hold_by_lease(self, name) as held:
            yield held

    # ---- uploads

    @asynccontextmanager
    async def open_upload(self, key: str, destination: str | None = None) -> AsyncGenerator[Upload]:
        """Begin an upload; nothing is sent before it has a whole block."""
        del destination
        await trio.lowlevel.checkpoint()
        async with self._blocks.open(check_key(key, driver=self.name)) as upload:
            yield upload

    @asynccontextmanager
    async def resume_upload(self, token: bytes, offset: int) -> AsyncGenerator[Upload]:
        """Go on with an upload at `offset`."""
        async with self._blocks.resume(token, offset) as upload:
            yield upload

    def _block_size(self, number: int) -> int:
        """Return the size of the block of a number: small ones first, so that 50,000 make 3 TiB and more."""
        return min(int(self._options.chunksize) * (1 if number <= 10_000 else 10), 4000 << 20)

    async def stage(self, key: str, block: str, data: bytes) -> None:
        """Send one block to the name of `key`."""
        blob = self._client.blob(self.at(key))
        await self._client.ask("upload", key, partial(blob.stage_block, block, data, len(data)))

    async def holds(self, token: Token) -> bool:
        """Return whether the service has the blocks of an upload, or has made a blob of them."""
        blob = self._client.blob(self.at(token.key))
        staged: Sequence[Block] = ()
        with suppress(KeyUnknown):
            _, staged = await self._client.ask("upload", token.key, partial(blob.get_block_list, "uncommitted"))
        held = {block.id: block.size for block in staged}
        names = token.blocks
        if all(name in held for name in names) and sum(held[name] for name in names) == token.in_blocks:
            return True
        return await self._size_of(token.key) == token.in_blocks

    async def join(self, token: Token, destination: str, condition: Condition | None) -> str | None:
        """Make a blob of blocks; of an upload that has a name of its own, copy it to where it belongs."""
        if token.key == destination:
            return await self._list_blocks(token, condition)
        try:
            await self._list_blocks(token, None)
        except UploadGone:
            # Done before, by a request whose answer was lost; nobody else puts anything there.
            if await self._size_of(token.key) != token.in_blocks:
                raise
        await self._copy(token.key, destination, condition, None)
        await self.delete(token.key)
        return None

    async def _list_blocks(self, token: Token, condition: Condition | None) -> str:
        """Make a blob of blocks; return its version."""
        key = token.key
        blob = self._client.blob(self.at(key))
        listed = [BlobBlock(block_id=block) for block in token.blocks]
        try:
            reply = await self._client.ask(
                "upload",
                key,
                lambda: blob.commit_block_list(listed, content_settings=_PLAIN, **conditions(condition)),
            )
        except KeyUnknown:
            if condition is not None:
                raise ConditionFailed("it is gone", driver=self.name, operation="write", key=key) from None
            raise UploadGone("it has no blocks", driver=self.name, operation="upload", key=key) from None
        return str(reply["etag"])

    async def discard(self, token: Token) -> None:
        """Free the blocks at the name of an upload: an empty blob there takes their place, and goes too."""
        await self.put(token.key, b"", None)
        await self.delete(token.key)

    async def _size_of(self, key: str) -> int | None:
        """Return the size of what is at `key`, None if nothing is."""
        try:
            return (await self.stat(key)).size
        except KeyUnknown:
            return None

"""Uploads in blocks to Azure's blob storage.

Blocks that are in no list yet belong to a blob's *name*, not to an upload: a commit, or a put, by anybody throws away
all that are not its own. So an upload has a name of its own, and is copied inside the service when it is committed.
"""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import msgspec
import trio

from moorage import Condition, DriverError, Upload, UploadGone

from ._azure_client import NAME
from ._parts import PartWriter

TAIL_MAXIMUM = 1 << 20
"""Up to so many bytes go into the token, not into a block: a small blob is one request, when it is committed."""


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Blocks that one opening of an upload has sent: their numbers, from a first to a last, and their bytes together."""

    mark: str
    first: int
    last: int
    size: int


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """Where an upload stands: its key, the blocks it has, in order, and the bytes that are in none."""

    key: str
    runs: tuple[Run, ...] = ()
    tail: bytes = b""

    @property
    def in_blocks(self) -> int:
        """How many bytes are in blocks."""
        return sum(run.size for run in self.runs)

    @property
    def size(self) -> int:
        """How many bytes the upload has."""
        return self.in_blocks + len(self.tail)

    @property
    def blocks(self) -> list[str]:
        """The ids of its blocks, in order."""
        return [block_id(run.mark, number) for run in self.runs for number in range(run.first, run.last + 1)]


def block_id(mark: str, number: int) -> str:
    """Return the name of a block; all of a blob have the same length."""
    return f"{mark}{number:06d}"


class BlockStore(Protocol):
    """What an upload needs of its driver."""

    async def stage(self, key: str, block: str, data: bytes) -> None: ...
    async def commit_blocks(self, key: str, blocks: Sequence[str], condition: Condition | None) -> str: ...
    async def put(self, key: str, data: bytes, condition: Condition | None) -> str: ...
    async def size_of(self, key: str) -> int | None: ...
    async def move(self, source: str, destination: str, condition: Condition | None) -> None: ...
    async def discard_blocks(self, key: str) -> None: ...
    def remember(self, run: Run) -> None: ...
    def forget(self, run: Run) -> None: ...


class AzureUpload(Upload):
    """An upload in blocks at a name of its own."""

    writer: PartWriter

    def __init__(self, store: BlockStore, token: Token, mark: str, *, whole: bool) -> None:
        """Go on where `token` says, with blocks marked `mark`; `whole` if they have become a blob already."""
        self.offset = token.size
        self._store = store
        self._token = token
        self._mark = mark
        self._whole = whole
        self._sent: dict[int, int] = {}

    async def write(self, data: bytes) -> None:
        """Append `data`."""
        if self._whole:
            raise self._gone("its bytes are complete")
        await self.writer.write(data)
        self.offset += len(data)

    async def send(self, number: int, data: bytes) -> None:
        """Send one block."""
        await self._store.stage(self._token.key, block_id(self._mark, number), data)
        self._sent[number] = len(data)

    async def suspend(self) -> bytes:
        """Send all but what is small; the token has the rest."""
        await self.writer.flush(minimum=TAIL_MAXIMUM)
        token = self._reached()
        if token.runs:
            self._store.remember(token.runs[-1])
        return msgspec.json.encode(token)

    def _reached(self) -> Token:
        """Return where this upload stands, now that no block is under way."""
        runs = list(self._token.runs)
        if self._sent:
            run = Run(self._mark, min(self._sent), max(self._sent), sum(self._sent.values()))
            if runs and runs[-1].mark == run.mark and runs[-1].last + 1 == run.first:
                before = runs.pop()
                run = Run(run.mark, before.first, run.last, before.size + run.size)
            runs.append(run)
        return Token(key=self._token.key, runs=tuple(runs), tail=bytes(self.writer.buffered))

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        """Make the blob visible at `destination`."""
        await self.finish(destination, condition)

    async def finish(self, destination: str, condition: Condition | None) -> str | None:
        """Make the blob visible at `destination`; return its version where that is known."""
        store, key = self._store, self._token.key
        if not self._token.runs and not self._sent and not self.writer.sending:
            return await store.put(destination, bytes(self.writer.buffered), condition)
        if not self._whole:
            await self.writer.flush(minimum=1)
            try:
                version = await store.commit_blocks(
                    key, self._reached().blocks, condition if key == destination else None
                )
            except UploadGone:
                # Committed before, by a request whose answer was lost; nobody else puts anything at its own key.
                if key == destination or await store.size_of(key) != self.offset:
                    raise
                version = ""
            if key == destination:
                return version
            self._whole = True
        await store.move(key, destination, condition)
        return None

    async def abort(self) -> None:
        """End the upload and free what the service holds."""
        # A block that arrives after that would lie there for a week; what becomes of it is of no interest any more.
        with suppress(DriverError):
            await self.writer.drain()
        runs = self._reached().runs
        if runs:
            self._store.forget(runs[-1])
            await self._store.discard_blocks(self._token.key)
        else:
            await trio.lowlevel.checkpoint()

    def _gone(self, what: str) -> UploadGone:
        return UploadGone(what, driver=NAME, operation="upload", key=self._token.key)


def new_mark() -> str:
    """Return what marks the blocks of one opening of an upload."""
    return secrets.token_hex(8)

"""Uploads in blocks that have names, for services where nothing has to be begun before the first one.

A block's name says which opening of the upload has sent it, and its number there. So two that go on from the same token
never overwrite each other's blocks, and the token needs no list of them: a few runs of numbers, and the bytes that are
in no block yet.
"""

import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import msgspec
import trio

from moorage import Condition, DriverError, Upload, UploadGone

from ._parts import Budgets, PartWriter, open_part_writer

TAIL_MAXIMUM = 1 << 20
"""Up to so many bytes go into the token, not into a block: a small blob is one request, when it is committed."""

_KNOWN_RUNS = 1024


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
        """The names of its blocks, in order."""
        return [block_name(run.mark, number) for run in self.runs for number in range(run.first, run.last + 1)]


_tokens = msgspec.json.Decoder(Token)


def block_name(mark: str, number: int) -> str:
    """Return the name of a block; all have the same length."""
    return f"{mark}{number:06d}"


class BlockStore(Protocol):
    """What uploads in blocks need of a driver; everything raises DriverErrors."""

    name: str

    async def stage(self, key: str, block: str, data: bytes) -> None:
        """Send one block of the upload at `key`."""
        ...

    async def holds(self, token: Token) -> bool:
        """Return whether the service has what `token` says, be it in blocks or already joined."""
        ...

    async def join(self, token: Token, destination: str, condition: Condition | None) -> str | None:
        """Make an object of the blocks at `destination`, and free them; return its version where that is known."""
        ...

    async def put(self, key: str, data: bytes, condition: Condition | None) -> str | None:
        """Write a small object by one request; return its version."""
        ...

    async def discard(self, token: Token) -> None:
        """Free the blocks."""
        ...


class Blocks:
    """The uploads of a driver."""

    def __init__(self, store: BlockStore, budgets: Budgets, block_size: Callable[[int], int]) -> None:
        """Keep blocks in `store`; the block of a number has `block_size` bytes."""
        self._store = store
        self._budgets = budgets
        self._block_size = block_size
        self._sent: OrderedDict[str, int] = OrderedDict()

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator["BlockUpload"]:
        """Begin an upload; nothing is sent before it has a whole block."""
        async with self._upload(Token(key=key)) as upload:
            yield upload

    @asynccontextmanager
    async def resume(self, encoded: bytes, offset: int) -> AsyncGenerator["BlockUpload"]:
        """Go on where a token says; the service is asked what it holds, unless this process sent it.

        Raises:
            UploadGone: it does not hold that, or the token means nothing.
        """
        await trio.lowlevel.checkpoint()
        try:
            token = _tokens.decode(encoded)
        except msgspec.MsgspecError:
            raise UploadGone("not a token of this driver", driver=self._store.name, operation="upload") from None
        if token.size != offset:
            raise self._gone(token, f"it has {token.size} bytes, not {offset}")
        if token.runs and not self._is_own(token.runs[-1]) and not await self._store.holds(token):
            raise self._gone(token, "the service does not hold its blocks any more")
        async with self._upload(token) as upload:
            yield upload

    def remember(self, run: Run) -> None:
        """Keep in mind what this process has sent."""
        self._sent[run.mark] = run.last
        while len(self._sent) > _KNOWN_RUNS:
            self._sent.popitem(last=False)

    def forget(self, run: Run) -> None:
        """Ask the service again what it holds."""
        self._sent.pop(run.mark, None)

    def _is_own(self, run: Run) -> bool:
        return self._sent.get(run.mark) == run.last

    @asynccontextmanager
    async def _upload(self, token: Token) -> AsyncGenerator["BlockUpload"]:
        last = token.runs[-1] if token.runs else None
        mark = secrets.token_hex(8)
        if last is not None and self._is_own(last):
            # Whoever opens the same token once more must not send blocks of these names.
            mark = last.mark
            self.forget(last)
        upload = BlockUpload(self._store, self, token, mark)
        async with open_part_writer(
            self._budgets,
            upload.send,
            part_size=self._block_size,
            next_part=last.last + 1 if last else 1,
            buffered=token.tail,
        ) as writer:
            upload.writer = writer
            yield upload

    def _gone(self, token: Token, what: str) -> UploadGone:
        return UploadGone(what, driver=self._store.name, operation="upload", key=token.key)


class BlockUpload(Upload):
    """An upload in blocks."""

    writer: PartWriter

    def __init__(self, store: BlockStore, blocks: Blocks, token: Token, mark: str) -> None:
        """Go on where `token` says, with blocks marked `mark`."""
        self.offset = token.size
        self._store = store
        self._blocks = blocks
        self._token = token
        self._mark = mark
        self._sent: dict[int, int] = {}

    async def write(self, data: bytes) -> None:
        """Append `data`."""
        await self.writer.write(data)
        self.offset += len(data)

    async def send(self, number: int, data: bytes) -> None:
        """Send one block."""
        await self._store.stage(self._token.key, block_name(self._mark, number), data)
        self._sent[number] = len(data)

    async def suspend(self) -> bytes:
        """Send all but what is small; the token has the rest."""
        await self.writer.flush(minimum=TAIL_MAXIMUM)
        token = self._reached()
        if token.runs:
            self._blocks.remember(token.runs[-1])
        return msgspec.json.encode(token)

    def _reached(self) -> Token:
        """Return where this upload stands, when no block is under way."""
        runs = list(self._token.runs)
        if self._sent:
            run = Run(self._mark, min(self._sent), max(self._sent), sum(self._sent.values()))
            if runs and runs[-1].mark == run.mark and runs[-1].last + 1 == run.first:
                before = runs.pop()
                run = Run(run.mark, before.first, run.last, before.size + run.size)
            runs.append(run)
        return Token(key=self._token.key, runs=tuple(runs), tail=bytes(self.writer.buffered))

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        """Make the object visible at `destination`."""
        await self.finish(destination, condition)

    async def finish(self, destination: str, condition: Condition | None) -> str | None:
        """Make the object visible at `destination`; return its version where that is known."""
        if not self._token.runs and not self._sent and not self.writer.sending:
            return await self._store.put(destination, bytes(self.writer.buffered), condition)
        await self.writer.flush(minimum=1)
        token = self._reached()
        if token.runs:
            # Whoever has a token from before asks the service, which has not got the blocks any more.
            self._blocks.forget(token.runs[-1])
        return await self._store.join(token, destination, condition)

    async def abort(self) -> None:
        """End the upload and free what the service holds."""
        # A block that arrives after that would stay there; what becomes of it is of no interest any more.
        with suppress(DriverError):
            await self.writer.drain()
        token = self._reached()
        if token.runs:
            self._blocks.forget(token.runs[-1])
            await self._store.discard(token)
        else:
            await trio.lowlevel.checkpoint()


async def in_pieces(chunks: bytes | AsyncIterable[bytes], size: int) -> AsyncGenerator[bytes]:
    """Give what is to be written, bytes that are all there in pieces of `size`."""
    if isinstance(chunks, bytes):
        for at in range(0, len(chunks), size):
            yield chunks[at : at + size]
    else:
        async for chunk in chunks:
            yield chunk

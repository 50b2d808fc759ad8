"""Taking in a body: its bytes go into an upload and, while the next ones come, into a hash.

What a request costs the registry is decided here: pieces are large, since each may cost a hop to a thread; what comes
quickly is received, written and hashed by one thread at a stretch (`QuickBody`); and the hash has always counted just what
the upload has, whatever ends it.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from ._concurrency import open_helpers
from ._digests import Hasher
from ._driver import Upload
from ._errors import ClientLeft, SizeInvalid
from ._operations import Body, QuickBody

SAVE_SECONDS = 10
"""How long what a cancelled request has brought may take to be saved."""

_PIECE = 512 << 10
"""Bytes gathered before they are hashed and written: each such step may cost a hop to a thread."""

_TINY = 4096
"""Chunks of up to so many bytes are put into one buffer: each for itself would cost more than it holds."""

_HASH_HERE = 1 << 16
"""Up to so many bytes are hashed in the event loop: quicker than the hop."""

_QUICK_PAUSE = 16
"""So many pieces pass after a client was too slow to be worth a thread."""


class Intake:
    """Takes the bytes of one body into an upload and into a hash, which counts what the upload counts."""

    def __init__(self, upload: Upload, hasher: Hasher | None, length: int | None = None) -> None:
        """Take in `length` bytes and no more, if that is given."""
        self.count = 0
        """How many bytes came."""
        self._upload = upload
        self._hasher = hasher
        self._length = length
        self._pieces = _QUICK_PAUSE

    async def receive(self, body: Body) -> None:
        """Take in all of `body`, or, when its client leaves, what came.

        Raises:
            SizeInvalid: it has more bytes than it should.
            ClientLeft, DriverError: as they say.
        """
        if body.length is not None and body.length <= _HASH_HERE:
            # Nothing of it is worth a thread, nor a task.
            await _in_pieces(body, partial(self._take, hashing=_Hashing(self._hasher)))
            return
        quick = body if self._upload.can_write_from_thread and isinstance(body, QuickBody) else None
        async with _open_hashing(self._hasher) as hashing:

            async def take(piece: bytes) -> None:
                await self._take(piece, hashing)
                if quick is not None and len(piece) >= _PIECE:
                    await self._take_quickly(quick, hashing)

            await _in_pieces(body, take)

    def _account(self, count: int) -> None:
        self.count += count
        if self._length is not None and self.count > self._length:
            raise SizeInvalid(f"the body is longer than the {self._length} bytes of its range")

    async def _take(self, piece: bytes, hashing: "_Hashing") -> None:
        self._account(len(piece))
        before = self._upload.offset
        try:
            await self._upload.write(piece)
        finally:
            # A write that failed or was cancelled may have taken bytes in; the hash counts what the store counts.
            taken = self._upload.offset - before
            if taken:
                with trio.CancelScope(shield=True):
                    await hashing.add(piece if taken == len(piece) else piece[:taken])

    async def _take_quickly(self, body: QuickBody, hashing: "_Hashing") -> None:
        """Take in what comes while it comes quickly; of a body that does not, some pieces pass before this is tried again."""
        self._pieces += 1
        if self._pieces < _QUICK_PAUSE:
            return
        await hashing.settle()
        while await body.take_quickly(self._take_from_thread) >= _PIECE:
            pass
        self._pieces = 0

    def _take_from_thread(self, data: bytes) -> None:
        self._account(len(data))
        self._upload.write_from_thread(data)
        if self._hasher is not None:
            self._hasher.update(data)


async def _in_pieces(body: Body, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Give the bytes of `body` to `take` in pieces of about `_PIECE` bytes.

    Also the last ones of a client that left, or of a request that was cancelled: servers do that when a client leaves.
    """
    pending: list[bytes | bytearray] = []
    size = 0
    try:
        async for chunk in body:
            size += len(chunk)
            if len(chunk) > _TINY:
                pending.append(chunk)
            elif pending and isinstance(pending[-1], bytearray):
                pending[-1] += chunk
            else:
                pending.append(bytearray(chunk))
            if size >= _PIECE:
                piece = b"".join(pending)
                pending, size = [], 0
                await take(piece)
    except (ClientLeft, trio.Cancelled):
        if size:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + SAVE_SECONDS):
                await take(b"".join(pending))
        raise
    if size:
        await take(b"".join(pending))


class _Hashing:
    """Hashes pieces in their order, those that are large each while the next one is received and written."""

    def __init__(self, hasher: Hasher | None, helpers: trio.Nursery | None = None) -> None:
        self._hasher = hasher
        self._helpers = helpers
        self._hashed: trio.Event | None = None

    async def add(self, data: bytes) -> None:
        """Hash `data` after what was added before; return when that has begun."""
        await self.settle()
        if self._hasher is None:
            return
        if self._helpers is None or len(data) <= _HASH_HERE:
            self._hasher.update(data)
        else:
            self._hashed = trio.Event()
            self._helpers.start_soon(self._hash, self._hasher, data, self._hashed)

    @staticmethod
    async def _hash(hasher: Hasher, data: bytes, hashed: trio.Event) -> None:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(hasher.update, data)
        hashed.set()

    async def settle(self) -> None:
        """Return when all that was added is hashed."""
        if self._hashed is not None:
            await self._hashed.wait()


@asynccontextmanager
async def _open_hashing(hasher: Hasher | None) -> AsyncGenerator[_Hashing]:
    """Let pieces be hashed beside the block; when it is over, whatever ended it, all of them are.

    Without a hasher nothing is done with them.
    """
    async with open_helpers() as helpers:
        hashing = _Hashing(hasher, helpers)
        try:
            yield hashing
        finally:
            with trio.CancelScope(shield=True):
                await hashing.settle()


async def hash_piece(hasher: Hasher, data: bytes) -> None:
    """Hash `data`, in a thread unless it is small."""
    if len(data) <= _HASH_HERE:
        hasher.update(data)
    else:
        await trio.to_thread.run_sync(hasher.update, data)

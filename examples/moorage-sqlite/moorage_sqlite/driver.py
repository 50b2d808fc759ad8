"""Objects as rows of a SQLite file.

An object is a row of `objects`, its bytes are rows of `pieces`: all but the last of one size, so that a range is found by
division and no object is ever whole in memory. A row without a key is an object in the making, which nobody sees; giving
it the key is the one step that makes it visible. What keeps the contract of `moorage.Driver`:

- **Absent or complete, one winner**: that step is a transaction begun with `BEGIN IMMEDIATE`: it looks at the condition
  and writes while no other process can.
- **Durable**: `synchronous=FULL` syncs the log at each commit; with `durable=False` it is `NORMAL`, which survives the
  process, and is synced with the next durable write.
- **Readers** are read transactions on connections of their own. In WAL mode they see the store as it was when they
  began, whoever replaces or deletes what they read, and neither wait for writers nor keep them waiting.

A transaction is never open while somebody waits for a client that sends; `database.py` has the file and its connections.
"""

import logging
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial

import trio

from moorage import (
    Absent,
    Capabilities,
    Condition,
    ConditionFailed,
    Driver,
    DriverError,
    DriverVerb,
    Entry,
    KeyInvalid,
    KeyUnknown,
    Listing,
    RangeUnsatisfiable,
    Reader,
    Stat,
    StoreUnavailable,
    Unchanged,
    check_key,
)

from .database import Database, open_database

_log = logging.getLogger("moorage.sqlite")

_PIECE = 256 << 10
_STALE_SECONDS = 24 * 3600
_BEYOND_ALL_KEYS = "\x7f"


class SqliteDriver(Driver):
    """A store in one file; make it with `open_file`."""

    name = "sqlite"
    capabilities = Capabilities()

    def __init__(self, database: Database) -> None:
        """Keep objects in `database`."""
        self._database = database

    @classmethod
    @asynccontextmanager
    async def open_file(
        cls, path: str, *, wait: float = 10.0, size_limit: int | None = None
    ) -> AsyncGenerator["SqliteDriver"]:
        """Open the store in the file `path`, which is made if it is not there.

        A file that cannot be written to can still be read.

        Raises:
            DriverError: it cannot be opened, or is something else.
        """
        async with open_database(path, wait=wait, size_limit=size_limit, driver=cls.name) as database:
            try:
                # What writers that died have left; one that lives has added something since.
                await database.change("open", "", _forget_stale, durable=False)
            except DriverError as error:
                # Read-only, full or busy: whoever pulls does not mind.
                _log.warning("%s cannot be written to now: %s", database.path, error.args[0])
            yield cls(database)

    # ---- reading

    def _stat(self, connection: sqlite3.Connection, key: str) -> Stat | None:
        question = "SELECT id, size, modified FROM objects WHERE key = ?"
        row: tuple[int, int, float] | None = connection.execute(question, (key,)).fetchone()
        return None if row is None else Stat(key, row[1], row[2], str(row[0]))

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`."""
        check_key(key, driver=self.name)
        async with self._database.reader("stat", key) as connection:
            found = await self._database.in_thread("stat", key, partial(self._stat, connection, key))
        if found is None:
            raise self._database.error(KeyUnknown, "no such key", "stat", key)
        return found

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        """Open the bytes from `start` to `stop`, as they are now."""
        check_key(key, driver=self.name)
        async with self._database.reader("open", key) as connection:

            def begin() -> Stat | None:
                connection.execute("BEGIN")
                return self._stat(connection, key)

            found = await self._database.in_thread("open", key, begin)
            if found is None:
                raise self._database.error(KeyUnknown, "no such key", "open", key)
            if start > found.size:
                raise self._database.error(RangeUnsatisfiable, f"{start} lies beyond {found.size} bytes", "open", key)
            end = found.size if stop is None else min(stop, found.size)
            async with aclosing(self._pieces(connection, found, start, end)) as pieces:
                yield Reader(found, pieces)

    async def _pieces(self, connection: sqlite3.Connection, found: Stat, start: int, end: int) -> AsyncGenerator[bytes]:
        while start < end:
            position, skipped = divmod(start, _PIECE)

            def fetch(position: int = position) -> bytes:
                question = "SELECT data FROM pieces WHERE object = ? AND position = ?"
                row: tuple[bytes] | None = connection.execute(question, (int(found.version), position)).fetchone()
                return b"" if row is None else row[0]

            piece = (await self._database.in_thread("open", found.key, fetch))[skipped : skipped + end - start]
            if not piece:
                raise self._database.error(StoreUnavailable, "a piece of it is missing", "open", found.key)
            yield piece
            start += len(piece)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        """Return up to `limit` entries below `prefix` that come after `after`."""
        if prefix:
            check_key(prefix.rstrip("/"), driver=self.name)

        def find(connection: sqlite3.Connection) -> Listing:
            entries: list[Entry] = []
            # "0" follows "/" in byte order, so with it begins what is no longer below a prefix.
            at, end = max(prefix, after), f"{prefix[:-1]}0" if prefix else _BEYOND_ALL_KEYS
            while True:
                question = "SELECT key, size, modified FROM objects WHERE key >= ? AND key < ? ORDER BY key"
                for key, size, modified in connection.execute(question, (at, end)):
                    cut = str(key).find(delimiter, len(prefix)) if delimiter else -1
                    entry = Entry(key, size, modified) if cut < 0 else Entry(key[: cut + 1])
                    if entry.key > after:
                        if len(entries) == limit:
                            return Listing(tuple(entries), more=True)
                        entries.append(entry)
                    if cut >= 0:
                        # However many keys lie below it, the next question goes on behind them.
                        at = f"{key[:cut]}0"
                        break
                else:
                    return Listing(tuple(entries), more=False)

        async with self._database.reader("list", prefix) as connection:
            return await self._database.in_thread("list", prefix, partial(find, connection))

    # ---- writing

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> None:
        """Put an object at `key`."""
        check_key(key, driver=self.name)
        if not isinstance(chunks, bytes):
            await self._write_stream(key, chunks, condition, durable=durable)
            return

        def whole(connection: sqlite3.Connection) -> None:
            made = _begin(connection)
            for position, start in enumerate(range(0, len(chunks), _PIECE)):
                _append(made, position, chunks[start : start + _PIECE], connection)
            self._place(made, key, condition, connection)

        await self._database.change("write", key, whole, durable=durable)

    async def _write_stream(
        self, key: str, chunks: AsyncIterable[bytes], condition: Condition | None, *, durable: bool
    ) -> None:
        made = await self._database.change("write", key, _begin, durable=False)
        try:
            position = 0
            async with aclosing(_cut(chunks)) as pieces:
                async for piece in pieces:
                    await self._database.change("write", key, partial(_append, made, position, piece), durable=False)
                    position += 1
            await self._database.change("write", key, partial(self._place, made, key, condition), durable=durable)
        except BaseException:
            # Cancelled, refused or failed: nobody has seen it. If not even this can be done now, a later start does it.
            with trio.CancelScope(shield=True), suppress(DriverError):
                await self._database.change("write", key, partial(_forget, made), durable=False)
            raise

    def _place(self, made: int, key: str, condition: Condition | None, connection: sqlite3.Connection) -> None:
        """Make the object `made` the one at `key`."""
        found = self._check(connection, key, condition, "write")
        if found is not None:
            connection.execute("DELETE FROM objects WHERE key = ?", (key,))
        elif _is_nested(connection, key):
            raise self._database.error(KeyInvalid, "one key is a directory of another", "write", key)
        placed = connection.execute(
            "UPDATE objects SET key = ?, modified = ? WHERE id = ? AND key IS NULL", (key, time.time(), made)
        )
        if not placed.rowcount:
            raise self._database.error(StoreUnavailable, "it was in the making for too long", "write", key)

    def _check(
        self, connection: sqlite3.Connection, key: str, condition: Condition | None, operation: DriverVerb
    ) -> Stat | None:
        """Return what is at `key`, if that is what `condition` wants."""
        found = self._stat(connection, key)
        match condition:
            case Absent() if found is not None:
                raise self._database.error(ConditionFailed, "the key exists", operation, key)
            case Unchanged(version) if found is None or found.version != version:
                raise self._database.error(ConditionFailed, "not of that version", operation, key)
            case _:
                return found

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`, or, when a condition fails, none."""
        for key in keys:
            check_key(key, driver=self.name)

        def remove(connection: sqlite3.Connection) -> None:
            for key in keys:
                self._check(connection, key, condition, "delete")
                connection.execute("DELETE FROM objects WHERE key = ?", (key,))

        await self._database.change("delete", keys[0] if keys else "", remove, durable=durable)

    async def delete_below(self, prefix: str, *, durable: bool = True) -> None:
        """Remove every key below `prefix`, all at once."""
        check_key(prefix.rstrip("/"), driver=self.name)

        def remove(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM objects WHERE key >= ? AND key < ?", (prefix, f"{prefix[:-1]}0"))

        await self._database.change("delete", prefix, remove, durable=durable)

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        """Try to be the only holder of `name`, by a lock on a file beside the store that ends with the process."""
        descriptor = await self._database.in_thread("hold", name, partial(self._database.lock, name, wait=False))
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _begin(connection: sqlite3.Connection) -> int:
    """Begin an object that nobody sees; return its number."""
    made = connection.execute("INSERT INTO objects (size, modified) VALUES (0, ?)", (time.time(),)).lastrowid
    assert made is not None  # noqa: S101 - a row was inserted
    return made


def _append(made: int, position: int, piece: bytes, connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO pieces (object, position, data) VALUES (?, ?, ?)", (made, position, piece))
    # The time says that its writer is alive.
    connection.execute("UPDATE objects SET size = size + ?, modified = ? WHERE id = ?", (len(piece), time.time(), made))


def _forget(made: int, connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM objects WHERE id = ? AND key IS NULL", (made,))


def _forget_stale(connection: sqlite3.Connection) -> None:
    before = time.time() - _STALE_SECONDS
    connection.execute("DELETE FROM objects WHERE key IS NULL AND modified < ?", (before,))


def _is_nested(connection: sqlite3.Connection, key: str) -> bool:
    """Return whether another key is a directory of `key`, or below it."""
    above = [key[:at] for at, character in enumerate(key) if character == "/"]
    question = "SELECT EXISTS (SELECT 1 FROM objects WHERE key >= ? AND key < ?)"
    below = connection.execute(question, (f"{key}/", f"{key}0")).fetchone()
    question = "SELECT EXISTS (SELECT 1 FROM objects WHERE key = ?)"
    return bool(below[0]) or any(connection.execute(question, (each,)).fetchone()[0] for each in above)


async def _cut(chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes]:
    """Give the same bytes in pieces of one size, but for the last."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        while len(held) >= _PIECE:
            yield bytes(held[:_PIECE])
            del held[:_PIECE]
    if held:
        yield bytes(held)

"""One SQLite file: how it is set up, its connections, its transactions, and Moorage's errors for SQLite's.

SQLite waits for disks and locks, so every step runs in a thread; and steps are short, since a step is waited for even when
who asked for it is cancelled. In WAL mode readers and the one writer do not keep each other waiting.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import trio

from moorage import DriverError, DriverVerb, StoreBusy, StoreFull, StoreReadOnly, StoreUnavailable

T = TypeVar("T")

_THREADS = 16
_IDLE_CONNECTIONS = 16
_APPLICATION = 0x6D6F6F72
_FORMAT = 1

# AUTOINCREMENT never gives a number twice, so the number of a row is the version of an object.
_SCHEMA = """
CREATE TABLE objects (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, size INTEGER NOT NULL, modified REAL NOT NULL
);
CREATE TABLE pieces (
    object INTEGER NOT NULL REFERENCES objects ON DELETE CASCADE, position INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (object, position)
);
"""

_KINDS: dict[int, type[DriverError]] = {
    sqlite3.SQLITE_FULL: StoreFull,
    sqlite3.SQLITE_READONLY: StoreReadOnly,
    sqlite3.SQLITE_PERM: StoreReadOnly,
    sqlite3.SQLITE_BUSY: StoreBusy,
    sqlite3.SQLITE_LOCKED: StoreBusy,
    sqlite3.SQLITE_NOMEM: StoreBusy,
}


class Database:
    """The file, open; make it with `open_database`."""

    def __init__(self, path: Path, *, wait: float, driver: str) -> None:
        """Take the file `path`; a step waits `wait` seconds for other processes, and fails in the name of `driver`."""
        self.path = path
        self._wait = wait
        self._driver = driver
        self._limiter = trio.CapacityLimiter(_THREADS)
        # SQLite has one writer at a time; here they wait in line, without a thread each.
        self._writing = trio.Lock()
        self._writer: sqlite3.Connection | None = None
        self._idle: list[sqlite3.Connection] = []

    def error(self, kind: type[DriverError], message: str, operation: DriverVerb, key: str = "") -> DriverError:
        """Return an error of `kind` to raise."""
        return kind(message, driver=self._driver, operation=operation, key=key)

    async def in_thread(self, operation: DriverVerb, key: str, step: Callable[[], T]) -> T:
        """Return what `step` does in a thread.

        Raises:
            DriverError: SQLite, or the system, cannot do it.
        """
        try:
            return await trio.to_thread.run_sync(step, limiter=self._limiter)
        except sqlite3.Error as error:
            # The low byte of an extended code is the code.
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            raise self.error(_KINDS.get(code, StoreUnavailable), str(error), operation, key) from error
        except OSError as error:
            raise self.error(StoreUnavailable, str(error), operation, key) from error

    @asynccontextmanager
    async def reader(self, operation: DriverVerb, key: str) -> AsyncGenerator[sqlite3.Connection]:
        """Lend a connection to read from. There are as many as are needed: with a limit, a copy could wait for itself."""
        connection = self._idle.pop() if self._idle else await self.in_thread(operation, key, self._connect)
        try:
            yield connection
        finally:
            # Ends a read transaction: microseconds, and waits for nothing.
            connection.rollback()
            if len(self._idle) < _IDLE_CONNECTIONS:
                self._idle.append(connection)
            else:
                connection.close()

    async def change(
        self, operation: DriverVerb, key: str, step: Callable[[sqlite3.Connection], T], *, durable: bool
    ) -> T:
        """Return what `step` does in a transaction in which nobody else, in whatever process, can write."""
        connection = self._writer
        assert connection is not None  # noqa: S101 - `open_database` saw to it

        def transaction() -> T:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            # Commits at the end, and takes everything back when something is raised.
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                return step(connection)

        async with self._writing:
            return await self.in_thread(operation, key, transaction)

    def lock(self, name: str, *, wait: bool) -> int | None:
        """Return a descriptor that holds the lock `name`, or None if another one does. Runs in a thread.

        The lock is on a file beside the store: to close the store's own would free the locks that SQLite has on it.
        """
        descriptor = os.open(f"{self.path}-{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise
        return descriptor

    def _connect(self, mode: str = "rw") -> sqlite3.Connection:
        # Used by one task at a time, but by whichever thread that task is given. Only the first may make the file: one
        # that was taken away must not come back empty.
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode={mode}",
            uri=True,
            timeout=self._wait,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA foreign_keys = ON")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def prepare(self, size_limit: int | None) -> None:
        """Make the file or check it, and open the connection that writes. Runs in a thread."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = self._connect("rwc")
        if _number(self._writer, "PRAGMA application_id") != _APPLICATION:
            # Of several processes that open a new file at once, one makes it what it has to be.
            descriptor = self.lock("setup", wait=True)
            try:
                self._set_up(self._writer)
            finally:
                if descriptor is not None:
                    os.close(descriptor)
        if _number(self._writer, "PRAGMA user_version") != _FORMAT:
            raise self.error(StoreUnavailable, f"{self.path} is of another format of this driver", "open")
        # Many SQLites are built to overwrite with zeros what is deleted, at the price of writing it once more.
        self._writer.execute("PRAGMA secure_delete = OFF")
        if size_limit is not None:
            self._writer.execute(f"PRAGMA max_page_count = {size_limit // _number(self._writer, 'PRAGMA page_size')}")

    def _set_up(self, connection: sqlite3.Connection) -> None:
        if _number(connection, "PRAGMA application_id") == _APPLICATION:
            return
        if _number(connection, "SELECT count(*) FROM sqlite_master"):
            raise self.error(StoreUnavailable, f"{self.path} is the database of another program", "open")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_FORMAT}; COMMIT;"
        )

    def close(self) -> None:
        """Close every connection. Runs in a thread.

        The last process that closes the file brings the log into it. Two that close at the same moment would each take
        the other for one that goes on, so they close in turn; one that hangs is not waited for.
        """
        descriptor = self._turn("closing")
        try:
            for connection in (*self._idle, self._writer):
                if connection is not None:
                    connection.close()
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _turn(self, name: str) -> int | None:
        # The lock `name`, or None if it was not to be had in the time that a writer waits for another.
        given_up = time.monotonic() + self._wait
        with suppress(OSError):
            while (descriptor := self.lock(name, wait=False)) is None and time.monotonic() < given_up:
                time.sleep(0.01)
            return descriptor
        return None


@asynccontextmanager
async def open_database(path: str, *, wait: float, size_limit: int | None, driver: str) -> AsyncGenerator[Database]:
    """Open the file `path`, which is made if it is not there; it does not grow beyond `size_limit` bytes.

    Raises:
        DriverError: it cannot be opened, or is something else.
    """
    database = Database(Path(path).absolute(), wait=wait, driver=driver)  # noqa: ASYNC240 - once, at the start
    try:
        await database.in_thread("open", "", lambda: database.prepare(size_limit))
        yield database
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(database.close)


def _number(connection: sqlite3.Connection, question: str) -> int:
    (answer,) = connection.execute(question).fetchone()
    return int(answer)

"""What is SQLite's about this driver: processes, pieces, and what can happen to a file."""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio

from moorage import (
    Absent,
    ConditionFailed,
    ConfigurationError,
    Driver,
    KeyUnknown,
    PluginManager,
    StoreBusy,
    StoreFull,
    StoreUnavailable,
    claimed_sections,
    load_configuration,
    open_registry,
)
from moorage_sqlite.database import Database, open_database
from moorage_sqlite.driver import SqliteDriver

PIECE = 256 << 10
MIB = 1 << 20

WRITERS = """
import sys, trio
from moorage import Absent, ConditionFailed
from moorage_sqlite.driver import SqliteDriver

async def main():
    async with SqliteDriver.open_file(sys.argv[1]) as driver:
        async def create(number):
            try:
                await driver.write("races/%d" % number, sys.argv[2].encode(), condition=Absent())
            except ConditionFailed:
                return
            print(number, flush=True)
        print("ready", flush=True)
        sys.stdin.read(1)
        async with trio.open_nursery() as nursery:
            for number in range(20):
                for _ in range(4):
                    nursery.start_soon(create, number)

trio.run(main)
"""

HALF_A_WRITE = """
import sys, trio
from moorage_sqlite.driver import SqliteDriver

async def half():
    yield b"x" * (2 << 20)
    print("half", flush=True)
    await trio.sleep_forever()

async def main():
    async with SqliteDriver.open_file(sys.argv[1]) as driver:
        await driver.write("a/b", half())

trio.run(main)
"""


READ_ONLY = """
import os, sys, trio
import idna, sqlite3
from moorage import StoreReadOnly
from moorage_sqlite.driver import SqliteDriver

async def main():
    async with SqliteDriver.open_file(sys.argv[1]) as driver:
        await driver.write("a", b"content")
    os.chmod(sys.argv[1], 0o444)
    if os.geteuid() == 0:
        # To root permissions mean nothing; be nobody.
        os.seteuid(65534)
    async with SqliteDriver.open_file(sys.argv[1]) as driver:
        print(await driver.read("a", limit=10))
        for attempt in (driver.write("b", b""), driver.delete("a")):
            try:
                await attempt
            except StoreReadOnly:
                print("read-only")
    os.seteuid(os.getuid())

trio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
async def driver(path: Path) -> AsyncGenerator[Driver]:
    async with SqliteDriver.open_file(str(path), wait=0.05, size_limit=8 * MIB) as driver:
        yield driver


async def content(driver: Driver, key: str, start: int = 0, stop: int | None = None) -> bytes:
    async with driver.open(key, start, stop) as reader:
        return b"".join([chunk async for chunk in reader])


class Sent:
    """What comes in from elsewhere: pieces, then perhaps something that happens to whoever reads on."""

    def __init__(self, *pieces: bytes, then: Callable[[], None] | None = None) -> None:
        self._pieces = list(pieces)
        self._then = then

    def __aiter__(self) -> "Sent":
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces and self._then is not None:
            self._then()
        await trio.lowlevel.checkpoint()
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop(0)


def number(path: Path, question: str) -> int:
    """Ask the file itself."""
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(question).fetchone()[0])


def change(path: Path, statement: str) -> None:
    """Change the file behind the driver's back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def run(program: str, *arguments: str) -> "subprocess.Popen[str]":
    """Run a program in a process of its own."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# ---- processes


def test_of_many_writers_in_several_processes_one_creates_each_key(path: Path) -> None:
    # All of them find no file, and one makes it.
    writers = [run(WRITERS, str(path), name) for name in ("first", "second", "third")]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    won = [writer.communicate("x", timeout=120)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert sorted(int(each) for some in won for each in some) == list(range(20))


async def test_what_a_killed_writer_left_is_never_seen_and_goes_after_a_day(path: Path) -> None:
    with run(HALF_A_WRITE, str(path)) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        writer.send_signal(signal.SIGKILL)
    assert number(path, "SELECT count(*) FROM pieces") == 8
    async with SqliteDriver.open_file(str(path)) as driver:
        assert (await driver.list("")).entries == ()
        with pytest.raises(KeyUnknown):
            await driver.stat("a/b")
        # It may still be alive, for all that another process knows.
        assert number(path, "SELECT count(*) FROM pieces") == 8
    change(path, "UPDATE objects SET modified = modified - 90000")
    async with SqliteDriver.open_file(str(path)) as driver:
        assert number(path, "SELECT count(*) FROM pieces") == 0
        await driver.write("a/b", b"whole", condition=Absent())


async def test_one_of_two_holders_is_given_what_it_holds(path: Path) -> None:
    async with SqliteDriver.open_file(str(path)) as one, SqliteDriver.open_file(str(path)) as other:
        async with one.hold("clockwork") as first, other.hold("clockwork") as second:
            assert (first, second) == (True, False)
            async with other.hold("something-else") as third:
                assert third
        async with other.hold("clockwork") as again:
            assert again


# ---- pieces


async def test_an_object_lies_in_pieces_and_a_range_needs_only_its_own(driver: Driver, path: Path) -> None:
    data = bytes(range(256)) * (5 * PIECE // 256 + 1)
    for key, chunks in (("whole", data), ("sent", Sent(data[:1000], b"", data[1000:MIB], data[MIB:]))):
        await driver.write(key, chunks)
        assert await content(driver, key) == data
    assert number(path, "SELECT max(length(data)) FROM pieces") == PIECE
    assert number(path, "SELECT count(*) FROM pieces") == 12
    change(path, "DELETE FROM pieces WHERE position IN (0, 4)")
    assert await content(driver, "sent", PIECE + 7, 3 * PIECE + 9) == data[PIECE + 7 : 3 * PIECE + 9]
    with pytest.raises(StoreUnavailable, match="missing"):
        await content(driver, "sent")


async def test_nothing_remains_of_what_was_replaced_deleted_cancelled_or_refused(driver: Driver, path: Path) -> None:
    await driver.write("a", b"1" * MIB)
    await driver.write("a", b"2")
    await driver.write("b/c", b"3" * MIB)
    await driver.delete_below("b/")
    with pytest.raises(ConditionFailed):
        await driver.write("a", Sent(b"4" * MIB), condition=Absent())
    with trio.CancelScope() as scope:
        await driver.write("d", Sent(b"x" * MIB, then=scope.cancel))
    assert scope.cancelled_caught
    assert number(path, "SELECT count(*) FROM objects") == number(path, "SELECT count(*) FROM pieces") == 1


# ---- what can happen to a file


async def test_a_full_store_keeps_what_it_has_and_takes_deletes(driver: Driver, path: Path) -> None:
    await driver.write("old", b"x" * 4 * MIB)
    for chunks in (b"y" * 6 * MIB, Sent(*[b"y" * MIB] * 6)):
        with pytest.raises(StoreFull):
            await driver.write("new", chunks)
    assert [entry.key for entry in (await driver.list("")).entries] == ["old"]
    assert await content(driver, "old") == b"x" * 4 * MIB
    await driver.delete("old")
    await driver.write("new", b"y" * 6 * MIB)
    assert number(path, "SELECT count(*) FROM objects") == 1


async def test_a_store_that_another_program_writes_to_for_too_long_is_busy_and_can_be_read(
    driver: Driver, path: Path
) -> None:
    await driver.write("a", b"1")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy):
            await driver.write("a", b"2")
        with pytest.raises(StoreBusy):
            await driver.delete("a")
        assert await content(driver, "a") == b"1"
        other.execute("ROLLBACK")
    await driver.write("a", b"2")
    assert await content(driver, "a") == b"2"


async def test_a_store_that_is_busy_when_it_is_opened_can_be_read(driver: Driver, path: Path) -> None:
    await driver.write("a", b"1")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with SqliteDriver.open_file(str(path), wait=0.05) as second:
            assert await content(second, "a") == b"1"


@pytest.mark.parametrize(("wait", "waits"), [(30.0, True), (0.1, False)], ids=["in-turn", "one-hangs"])
async def test_of_processes_that_end_at_once_the_last_brings_the_log_into_the_file(
    path: Path, wait: float, waits: bool
) -> None:
    another = Database(path, wait=wait, driver="sqlite")
    ended = trio.Event()

    async def end_it(task_status: trio.TaskStatus[None]) -> None:
        async with open_database(str(path), wait=wait, size_limit=None, driver="sqlite"):
            task_status.started()
        ended.set()

    async with trio.open_nursery() as nursery:
        closing_now = another.lock("closing", wait=False)
        assert closing_now is not None
        await nursery.start(end_it)
        with trio.move_on_after(1 if waits else 30):
            await ended.wait()
        assert ended.is_set() != waits
        os.close(closing_now)
    assert not path.with_name(f"{path.name}-wal").exists()


async def test_a_file_that_was_taken_away_does_not_come_back_empty(driver: Driver, path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(StoreUnavailable):
        await driver.stat("a")
    assert not path.exists()


def test_a_file_that_may_not_be_written_to_can_be_read() -> None:
    # A folder of its own, since the one of the test is not for everybody's eyes.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        with run(READ_ONLY, f"{folder}/registry.db") as reader:
            assert reader.communicate(timeout=60)[0].splitlines() == ["b'content'", "read-only", "read-only"]


async def test_damage_is_reported_as_the_stores_own(path: Path) -> None:
    async with SqliteDriver.open_file(str(path)) as driver:
        for at in range(200):
            await driver.write(f"a/{at}", b"x" * 1000, durable=False)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 100 * 4096)

    async def look() -> None:
        async with SqliteDriver.open_file(str(path)) as driver:
            await driver.list("a/")

    with pytest.raises(StoreUnavailable):
        await look()


def foreign(path: Path) -> None:
    change(path, "CREATE TABLE somebody (elses INTEGER)")


def of_another_format(path: Path) -> None:
    change(path, f"PRAGMA application_id = {0x6D6F6F72}")
    change(path, "PRAGMA user_version = 2")


def no_database(path: Path) -> None:
    path.write_bytes(b"#!/bin/sh\n" * 500)


def a_folder(path: Path) -> None:
    path.mkdir()


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (foreign, "database of another program"),
        (of_another_format, "another format"),
        (no_database, "not a database"),
        (a_folder, "unable to open"),
        (below_a_file, "exists"),
    ],
)
async def test_a_file_that_is_something_else_is_left_alone_and_keeps_the_registry_from_starting(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "below" / "registry.db"
    path.parent.mkdir()
    make(path)
    before = path.read_bytes() if path.is_file() else None
    plugins = PluginManager()
    plugins.load_entry_points()
    settings = {"storage": {"sqlite": {"path": str(path)}}}
    loaded = load_configuration(None, {}, defaults=settings, claimed=claimed_sections(plugins))
    with pytest.raises(ConfigurationError, match=reason):
        async with open_registry(loaded.configuration, plugins):
            pass
    assert before == (path.read_bytes() if path.is_file() else None)

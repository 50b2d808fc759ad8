import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import cast

import pytest
import trio

from content import Sent
from moorage import (
    Absent,
    ConditionFailed,
    KeyInvalid,
    KeyUnknown,
    StoreUnavailable,
    UploadBusy,
    UploadGone,
)
from moorage_drivers import _files, _placement
from moorage_drivers.filesystem import FilesystemDriver


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def driver(root: Path) -> AsyncGenerator[FilesystemDriver]:
    async with FilesystemDriver.open_root(str(root)) as driver:
        yield driver


async def content(driver: FilesystemDriver, key: str) -> bytes:
    async with driver.open(key) as reader:
        return b"".join([chunk async for chunk in reader])


def temporary_files(root: Path) -> list[str]:
    return os.listdir(root / "moorage/tmp")


PRELUDE = """
import json, os, sys, trio
from moorage import *
from moorage_drivers.filesystem import FilesystemDriver

async def kind(call):
    try:
        await call
    except DriverError as error:
        return type(error).__name__
    return "done"

async def entered(manager):
    async with manager:
        pass

async def begun(manager):
    async with manager as upload:
        await upload.suspend()

root = sys.argv[1]

async def main():
    async with FilesystemDriver.open_root(root) as driver:
        await run(driver)
"""


def script(body: str) -> str:
    return PRELUDE + textwrap.dedent(body) + "\ntrio.run(main)\n"


def started(body: str, root: Path) -> subprocess.Popen[str]:
    """Run `body` in a process of its own."""
    command = [sys.executable, "-c", script(body), str(root)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> object:
    """Wait for `process`; return the JSON that it wrote."""
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(out)


@cache
def may_mount() -> bool:
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


def said_mounted(mount: str, body: str, root: Path) -> object:
    """Run `body` after `mount` in a mount namespace of its own; return the JSON that it wrote."""
    if not may_mount():
        pytest.skip("not tested: this needs the right to mount in a namespace of its own")
    command = ["unshare", "-m", "sh", "-ec", f'{mount}\nexec "$2" -c "$3" "$1"', "sh"]
    done = subprocess.run(
        [*command, str(root), sys.executable, script(body)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- several processes


def test_of_two_processes_exactly_one_creates_each_key(root: Path) -> None:
    body = """
    async def run(driver):
        won = []
        for number in range(150):
            if await kind(driver.write(f"a/{number}/b", b"x", condition=Absent(), durable=False)) == "done":
                won.append(number)
        print(json.dumps(won))
    """
    first, second = (cast("list[int]", said(each)) for each in [started(body, root), started(body, root)])
    assert sorted(first + second) == list(range(150))


def test_two_processes_that_count_together_lose_nothing(root: Path) -> None:
    body = """
    async def run(driver):
        await kind(driver.write("count", b"0", condition=Absent()))
        for _ in range(100):
            while True:
                async with driver.open("count") as reader:
                    seen = Unchanged(reader.stat.version)
                    count = int(b"".join([chunk async for chunk in reader]))
                if await kind(driver.write("count", b"%d" % (count + 1), condition=seen, durable=False)) == "done":
                    break
        print(0)
    """
    for process in [started(body, root), started(body, root)]:
        said(process)
    assert (root / "count").read_text() == "200"


def test_two_processes_that_fill_and_empty_one_folder_do_not_disturb_each_other(root: Path) -> None:
    body = """
    async def run(driver):
        mine = f"a/b/{os.getpid()}"
        seen = set()
        for number in range(150):
            seen.add(await kind(driver.write(mine, b"%d" % number, durable=number % 10 == 0)))
            seen.add(await kind(driver.read(mine, limit=10)))
            seen.add(await kind(driver.delete(mine, durable=number % 10 == 5)))
        print(json.dumps(sorted(seen)))
    """
    assert [said(each) for each in [started(body, root), started(body, root)]] == [["done"], ["done"]]
    assert not (root / "a").exists()


async def test_an_upload_that_another_process_holds_is_busy_until_that_dies(
    driver: FilesystemDriver, root: Path
) -> None:
    body = """
    async def run(driver):
        async with driver.open_upload("uploads/1/data") as upload, driver.hold("work") as held:
            await upload.write(b"four")
            print(json.dumps([(await upload.suspend()).decode(), held]), flush=True)
            await trio.sleep_forever()
    """
    process = started(body, root)
    try:
        assert process.stdout is not None
        token, held = cast("tuple[str, bool]", json.loads(process.stdout.readline()))
        assert held
        with pytest.raises(UploadBusy):
            async with driver.resume_upload(token.encode(), 4):
                pass
        async with driver.hold("work") as here:
            assert not here
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    async with driver.hold("work") as here:
        assert here
    async with driver.resume_upload(token.encode(), 4) as upload:
        await upload.commit("a")
    assert await content(driver, "a") == b"four"


# ---- locks inside one process


async def test_an_open_upload_is_held_by_one(driver: FilesystemDriver) -> None:
    async with driver.open_upload("uploads/1/data") as upload:
        token = await upload.suspend()
        with pytest.raises(UploadBusy):
            async with driver.resume_upload(token, 0):
                pass
    async with driver.resume_upload(token, 0):
        with pytest.raises(UploadBusy):
            async with driver.resume_upload(token, 0):
                pass


async def test_work_is_held_by_one(driver: FilesystemDriver) -> None:
    async with driver.hold("work") as first, driver.hold("work") as second, driver.hold("other") as third:
        assert (first, second, third) == (True, False, True)
    async with driver.hold("work") as again:
        assert again


async def test_an_upload_whose_file_was_replaced_is_gone(driver: FilesystemDriver, root: Path) -> None:
    async with driver.open_upload("uploads/1/data") as upload:
        token = await upload.suspend()
    Path(root / "uploads/1/data").unlink()
    with pytest.raises(UploadGone):
        async with driver.resume_upload(token, 0):
            pass


# ---- failing disks


FULL = """
async def run(driver):
    await driver.write("old", b"old")
    seen = [
        await kind(driver.write("old", bytes(2 << 20))),
        await kind(driver.write("new", bytes(2 << 20))),
    ]
    async with driver.open_upload("uploads/1/data") as upload:
        await upload.write(b"kept")
        token = await upload.suspend()
        seen.append(await kind(upload.write(bytes(2 << 20))))
        seen.append(await kind(trio.to_thread.run_sync(upload.write_from_thread, bytes(2 << 20))))
        seen.append(upload.offset)
    async with driver.resume_upload(token, 4) as upload:
        await upload.write(b"!")
        await upload.commit("pushed")
    seen.append([entry.key for entry in (await driver.list("")).entries])
    seen.append([(await driver.read(key, limit=10)).decode() for key in ("old", "pushed")])
    seen.append(os.listdir(root + "/moorage/tmp"))
    print(json.dumps(seen))
"""


def test_a_full_disk_refuses_and_keeps_what_is_there(tmp_path: Path) -> None:
    seen = said_mounted('mount -t tmpfs -o size=1m tmpfs "$1"', FULL, tmp_path)
    assert seen == ["StoreFull", "StoreFull", "StoreFull", "StoreFull", 4, ["old", "pushed"], ["old", "kept!"], []]


def test_files_are_read_where_the_system_cannot_read_without_waiting(tmp_path: Path) -> None:
    body = """
    async def run(driver):
        data = bytes(range(256)) * 8192
        await driver.write("a", data)
        async with driver.open("a") as reader:
            assert b"".join([chunk async for chunk in reader]) == data
        assert await driver.read("a", limit=len(data)) == data
        print(0)
    """
    assert said_mounted('mount -t tmpfs tmpfs "$1"', body, tmp_path) == 0


READ_ONLY = 'mount --bind "$1" "$1"\nmount -o remount,ro,bind "$1"'


@pytest.mark.parametrize("prepared", [True, False])
async def test_a_read_only_folder_is_read_and_refuses_to_be_written(root: Path, prepared: bool) -> None:
    async with FilesystemDriver.open_root(str(root)) as driver:
        await driver.write("a/b", b"old")
        async with driver.open_upload("uploads/1/data") as upload:
            token = await upload.suspend()
    if not prepared:
        shutil.rmtree(root / "moorage")
    body = f"""
    async def abort():
        async with driver.resume_upload({token!r}, 0) as upload:
            await upload.abort()

    async def run(driver):
        assert await driver.read("a/b", limit=10) == b"old"
        print(json.dumps([
            await kind(driver.write("a/b", b"new")),
            await kind(driver.write("a/c", b"new")),
            await kind(driver.write("a/c", b"new", condition=Absent())),
            await kind(driver.copy("a/b", "a/c")),
            await kind(driver.delete("a/b")),
            await kind(driver.delete("a/b", durable=False)),
            await kind(driver.delete_below("a/")),
            await kind(begun(driver.open_upload("u/data"))),
            await kind(entered(driver.resume_upload({token!r}, 0))),
            await kind(entered(driver.hold("work"))),
            (await driver.read("a/b", limit=10)).decode(),
        ]))
    """
    assert said_mounted(READ_ONLY, body, root) == ["StoreReadOnly"] * 10 + ["old"]


def test_a_root_that_cannot_be_made_is_said_to_be_read_only(tmp_path: Path) -> None:
    body = """
    async def main():
        print(json.dumps(await kind(entered(FilesystemDriver.open_root(root + "/not/there")))))
    """
    assert said_mounted(READ_ONLY, body, tmp_path) == "StoreReadOnly"


async def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable):
        async with FilesystemDriver.open_root(str(tmp_path / "file")):
            pass


def test_without_descriptors_the_store_is_busy_and_recovers(root: Path) -> None:
    body = """
    import resource

    async def run(driver):
        await driver.write("a/b", b"old")
        async with driver.open_upload("uploads/1/data") as upload:
            token = await upload.suspend()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        seen = [
            await kind(driver.read("a/b", limit=10)),
            await kind(driver.write("a/c", b"new")),
            await kind(driver.copy("a/b", "a/c")),
            await kind(driver.delete("a/b")),
            await kind(driver.list("a/")),
            await kind(driver.delete_below("a/")),
            await kind(begun(driver.open_upload("u/data"))),
            await kind(entered(driver.resume_upload(token, 0))),
            await kind(entered(driver.hold("work"))),
        ]
        for descriptor in taken:
            os.close(descriptor)
        assert await driver.read("a/b", limit=10) == b"old"
        await driver.write("a/c", b"new")
        seen.append([entry.key for entry in (await driver.list("")).entries])
        seen.append(os.listdir(root + "/moorage/tmp"))
        print(json.dumps(seen))
    """
    assert said(started(body, root)) == ["StoreBusy"] * 9 + [["a/b", "a/c", "uploads/1/data"], []]


# ---- order of steps


class Recorder:
    """Writes down the calls that decide what survives a loss of power."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self._root = f"{root}/"
        fdatasync, fsync, rename, unlink = os.fdatasync, os.fsync, os.rename, os.unlink

        def recorded_fdatasync(descriptor: int) -> None:
            self.steps.append(f"content {self._name(os.readlink(f'/proc/self/fd/{descriptor}'))}")
            fdatasync(descriptor)

        def recorded_fsync(descriptor: int) -> None:
            self.steps.append(f"folder {self._name(os.readlink(f'/proc/self/fd/{descriptor}'))}")
            fsync(descriptor)

        def recorded_rename(source: Path, destination: str) -> None:
            self.steps.append(f"rename {self._name(str(source))} {self._name(str(destination))}")
            rename(source, destination)

        def recorded_unlink(path: Path) -> None:
            self.steps.append(f"unlink {self._name(str(path))}")
            unlink(path)

        monkeypatch.setattr(os, "fdatasync", recorded_fdatasync)
        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(os, "rename", recorded_rename)
        monkeypatch.setattr(os, "unlink", recorded_unlink)

    def _name(self, path: str) -> str:
        name = f"{path}/".removeprefix(self._root).rstrip("/")
        return "TEMPORARY" if name.startswith("moorage/tmp/") else name or "."

    def taken(self) -> list[str]:
        """What happened since it was last asked; removals of temporary files left out."""
        steps = [step for step in self.steps if step != "unlink TEMPORARY"]
        self.steps.clear()
        return steps


@pytest.fixture
def recorder(root: Path, driver: FilesystemDriver, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    del driver
    return Recorder(root.resolve(), monkeypatch)


WRITTEN = ["content TEMPORARY", "rename TEMPORARY a/b/c", "folder a/b"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_content_is_synced_before_it_has_a_name_and_folders_after(
    driver: FilesystemDriver, recorder: Recorder, streamed: bool
) -> None:
    def text() -> bytes | Sent:
        return Sent(b"x") if streamed else b"x"

    await driver.write("a/b/c", text())
    steps = recorder.taken()
    assert [step for step in steps if not step.startswith("rename")] == [
        "content TEMPORARY",
        "folder a/b",
        "folder a",
        "folder .",
    ]
    assert steps.index("rename TEMPORARY a/b/c") < steps.index("folder a/b")
    await driver.write("a/b/c", text())
    assert recorder.taken() == WRITTEN
    await driver.write("a/b/c", text(), condition=None, durable=False)
    assert recorder.taken() == ["rename TEMPORARY a/b/c"]


async def test_a_commit_is_synced_before_it_has_its_name(driver: FilesystemDriver, recorder: Recorder) -> None:
    async with driver.open_upload("u/data") as upload:
        await upload.write(b"x")
        await upload.suspend()
        assert recorder.taken() == []
        await upload.commit("b")
    assert recorder.taken() == ["content u/data", "rename u/data b", "folder ."]


async def test_what_belongs_together_is_synced_named_and_found_in_its_order(
    driver: FilesystemDriver, recorder: Recorder
) -> None:
    for key in ("blobs/other", "links/other"):
        await driver.write(key, b"")
    async with driver.open_upload("u/1/data") as upload:
        await upload.write(b"x")
        await driver.write("u/1/state", b"", durable=False)
        recorder.taken()
        await upload.commit_between(driver, "blobs/data", after=[("links/link", b"y")], drop="u/1/")
    assert recorder.taken() == [
        "content u/1/data",
        "content TEMPORARY",
        "rename u/1/data blobs/data",
        "rename TEMPORARY links/link",
        "unlink u/1/state",
        "folder blobs",
        "folder links",
    ]


async def test_small_objects_are_synced_together_and_named_in_their_order(
    driver: FilesystemDriver, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_placement, "_PLACED_TOGETHER", 2)
    await driver.write("a/x", b"")
    recorder.taken()
    await driver.write_all([("a/1", b"1"), ("a/2", b"2"), ("a/3", b"3")])
    assert recorder.taken() == [
        "content TEMPORARY",
        "content TEMPORARY",
        "rename TEMPORARY a/1",
        "rename TEMPORARY a/2",
        "folder a",
        "content TEMPORARY",
        "rename TEMPORARY a/3",
        "folder a",
    ]
    await driver.write_all([("a/1", b"4"), ("a/2", b"5")], durable=False)
    assert recorder.taken() == ["rename TEMPORARY a/1", "rename TEMPORARY a/2"]


async def test_a_delete_syncs_the_folder_that_is_left(driver: FilesystemDriver, recorder: Recorder) -> None:
    await driver.write("a/b/c", b"")
    await driver.write("a/d", b"")
    recorder.taken()
    await driver.delete("a/b/c")
    assert recorder.taken() == ["unlink a/b/c", "folder a"]
    await driver.delete("a/d", durable=False)
    assert recorder.taken() == ["unlink a/d"]


async def test_a_folder_that_is_made_anew_is_synced_anew(driver: FilesystemDriver, recorder: Recorder) -> None:
    await driver.write("a/x", b"")
    for turn in range(30):
        await driver.write("a/b/c/d", b"")
        assert {"folder a/b/c", "folder a/b", "folder a"} <= set(recorder.taken()), turn
        if turn % 2:
            await driver.delete("a/b/c/d")
        else:
            await driver.delete_below("a/b/")
        recorder.taken()


async def test_a_write_that_others_remove_before_it_is_synced_is_no_failure(
    driver: FilesystemDriver, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = _files.sync_directory

    def removed_by_others(directory: str) -> None:
        sync(directory)
        shutil.rmtree(root / "a", ignore_errors=True)

    monkeypatch.setattr(_placement, "sync_directory", removed_by_others)
    await driver.write("a/b/c", b"x")
    with pytest.raises(KeyUnknown):
        await driver.stat("a/b/c")


# ---- the folder itself


async def test_stale_temporary_files_are_removed_at_the_start_and_fresh_ones_are_not(root: Path) -> None:
    async with FilesystemDriver.open_root(str(root)):
        pass
    for name, age in (("stale", 25 * 3600), ("fresh", 3600)):
        path = root / "moorage/tmp" / name
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age, time.time() - age))
    async with FilesystemDriver.open_root(str(root)):
        assert temporary_files(root) == ["fresh"]


@contextmanager
def umask(mask: int) -> Generator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077])
async def test_files_have_the_permissions_that_the_umask_leaves(
    driver: FilesystemDriver, root: Path, mask: int
) -> None:
    with umask(mask):
        await driver.write("whole", b"")
        await driver.write("streamed", Sent(b"x"))
        async with driver.open_upload("u/data") as upload:
            await upload.commit("pushed")
    for key in ("whole", "streamed", "pushed"):
        assert (root / key).stat().st_mode & 0o777 == 0o666 & ~mask


async def test_a_root_behind_a_symbolic_link_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    async with FilesystemDriver.open_root(str(tmp_path / "link")) as driver:
        (tmp_path / "link").unlink()
        await driver.write("a/b", b"x")
        assert [entry.key for entry in (await driver.list("")).entries] == ["a/b"]
        await driver.delete("a/b")
        assert os.listdir(tmp_path / "real") == ["moorage"]


async def test_the_drivers_own_files_are_no_keys(driver: FilesystemDriver) -> None:
    await driver.write("moorage-2/x", b"")
    await driver.write("a/moorage/x", b"")
    for key in ("moorage", "moorage/tmp/x", "moorage/locks/00"):
        with pytest.raises(KeyInvalid):
            await driver.write(key, b"")
        with pytest.raises(KeyInvalid):
            await driver.delete(key)
    with pytest.raises(KeyInvalid):
        await driver.delete_below("moorage/")
    assert [entry.key for entry in (await driver.list("")).entries] == ["a/moorage/x", "moorage-2/x"]
    assert [entry.key for entry in (await driver.list("", delimiter="/")).entries] == ["a/", "moorage-2/"]


async def test_everything_goes_on_when_the_drivers_own_folder_is_removed(driver: FilesystemDriver, root: Path) -> None:
    async def gone() -> None:
        shutil.rmtree(root / "moorage")

    await driver.write("a", b"x")
    await gone()
    await driver.delete("a")
    with pytest.raises(KeyUnknown):
        await driver.stat("a")
    await gone()
    await driver.write("a", b"x", condition=Absent())
    await gone()
    await driver.copy("a", "b")
    await gone()
    async with driver.hold("work") as held:
        assert held
    async with driver.open_upload("u/data") as upload:
        await upload.write(b"pushed")
        await gone()
        await upload.commit("c")
    assert await content(driver, "c") == b"pushed"


async def test_empty_folders_that_others_left_are_in_nobodys_way(driver: FilesystemDriver, root: Path) -> None:
    (root / "a/b/c").mkdir(parents=True)
    assert (await driver.list("")).entries == ()
    with pytest.raises(KeyUnknown):
        await driver.stat("a/b/c")
    await driver.write("a/b/c", b"x", condition=Absent())
    assert await content(driver, "a/b/c") == b"x"


async def test_a_delete_removes_folders_that_are_empty_then(driver: FilesystemDriver, root: Path) -> None:
    await driver.write("a/b/c/d", b"")
    await driver.write("a/e", b"")
    await driver.delete("a/b/c/d")
    assert sorted(os.listdir(root / "a")) == ["e"]
    await driver.delete_below("a/")
    assert os.listdir(root) == ["moorage"]


async def test_writers_and_removers_of_one_folder_do_not_disturb_each_other(
    driver: FilesystemDriver, root: Path
) -> None:
    async def work(number: int) -> None:
        for _ in range(60):
            await driver.write(f"a/b/{number}", b"x", durable=False)
            assert await content(driver, f"a/b/{number}") == b"x"
            await driver.delete(f"a/b/{number}", durable=False)
            async with driver.open_upload(f"a/c/{number}") as upload:
                await upload.abort()

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(work, number)
    assert not (root / "a/b").exists()


async def test_a_blob_that_is_pushed_again_looks_newly_written(driver: FilesystemDriver, root: Path) -> None:
    await driver.write("a", b"x")
    os.utime(root / "a", (1, 1))
    await driver.copy("a", "a")
    assert (await driver.stat("a")).modified > 1
    os.utime(root / "a", (1, 1))
    await driver.copy("a", "b")
    assert (await driver.stat("b")).modified > 1


async def test_a_file_that_shrinks_while_it_is_read_is_an_error(driver: FilesystemDriver, root: Path) -> None:
    await driver.write("a", b"x" * (2 << 20))
    with pytest.raises(StoreUnavailable):
        async with driver.open("a") as reader:
            os.truncate(root / "a", 1 << 20)
            async for _ in reader:
                pass


async def test_the_reader_says_where_its_bytes_lie(driver: FilesystemDriver) -> None:
    await driver.write("a", b"0123456789")
    async with driver.open("a", 3, 7) as reader:
        assert reader.file is not None
        assert os.pread(reader.file.descriptor, reader.file.length, reader.file.offset) == b"3456"


async def test_no_descriptor_and_no_temporary_file_is_left_behind(driver: FilesystemDriver, root: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    await driver.write("a/b", b"x" * (1 << 20))
    async with driver.open("a/b") as reader:
        async for _ in reader:
            break
    with pytest.raises(ConditionFailed):
        await driver.write("a/b", b"", condition=Absent())
    with pytest.raises(ConditionFailed):
        await driver.write("a/b", Sent(b"x"), condition=Absent())
    with pytest.raises(KeyInvalid):
        await driver.write("a/b/c", Sent(b"x"))
    with pytest.raises(KeyInvalid):
        await driver.write("a", b"x")
    with pytest.raises(LookupError):
        await driver.write("c", Sent(b"x", then=LookupError()))
    with pytest.raises(KeyUnknown):
        await driver.copy("c", "d")
    with pytest.raises(ConditionFailed):
        await driver.copy("a/b", "a/b", condition=Absent())
    await driver.copy("a/b", "a/b")
    for deadline in range(20):
        with trio.move_on_after(deadline / 10_000):
            await driver.write("c", Sent(*[b"x" * 1000] * 10))
        with trio.move_on_after(deadline / 10_000):
            async with driver.open_upload(f"u/{deadline}") as upload:
                await upload.write(b"x")
                await upload.commit("d")
        with trio.move_on_after(deadline / 10_000):
            async with driver.hold("work"):
                await driver.copy("a/b", "c")
    assert set(os.listdir("/proc/self/fd")) == before
    assert temporary_files(root) == []


async def test_names_that_no_key_may_have_are_not_listed(root: Path) -> None:
    async with FilesystemDriver.open_root(str(root)) as driver:
        await driver.write("a/b", b"")
        (root / "a" / "with space").mkdir()
        (root / "a" / "with space" / "file").write_bytes(b"")
        (root / "a" / "caf\xe9").write_bytes(b"")
        assert [entry.key for entry in (await driver.list("")).entries] == ["a/b"]
        assert [entry.key for entry in (await driver.list("a/", delimiter="/")).entries] == ["a/b"]


async def test_an_upload_whose_file_was_taken_away_fails_at_once(root: Path) -> None:
    async with FilesystemDriver.open_root(str(root)) as driver, driver.open_upload("up/1/data") as upload:
        await upload.write(b"x")
        await upload.suspend()
        (root / "up/1/data").unlink()
        with pytest.raises(StoreUnavailable, match="taken away"):
            await upload.commit("a/b")


async def test_a_symbolic_link_in_the_tree_is_no_obstacle(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with FilesystemDriver.open_root(str(root)) as driver:
        (root / "a").mkdir()
        (root / "a" / "linked").symlink_to(elsewhere)
        await driver.write("a/linked/x/y", b"1")
        await driver.delete("a/linked/x/y")
        assert (root / "a" / "linked").is_symlink()
        await driver.write("a/linked/x/y", b"2")
        assert await driver.read("a/linked/x/y", limit=10) == b"2"


async def test_a_root_that_cannot_be_written_is_told_at_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    root.mkdir(exist_ok=True)
    (root / "moorage").write_text("in the way")
    async with FilesystemDriver.open_root(str(root)):
        assert "only pulls will work" in caplog.text


# ---- looks at many keys


@pytest.mark.parametrize(
    ("keys", "there"),
    [
        (["tags/a/link", "tags/b/link", "tags/c/link"], [True, True, False]),
        (["tags/a/link", "tags/a"], [True, False]),
        (["tags/a"], [False]),
        (["tags/a/link", "top"], [True, True]),
        (["top", "to"], [True, False]),
        (["top/a", "top/b"], [False, False]),
        (["none/a", "none/b"], [False, False]),
        (["tags/a/link/x", "tags/a/link"], [False, True]),
    ],
)
async def test_each_of_many_keys_is_looked_for_wherever_they_lie(
    driver: FilesystemDriver, keys: list[str], there: list[bool]
) -> None:
    for key in ("tags/a/link", "tags/b/link", "top"):
        await driver.write(key, b"x")
    assert await driver.are_there(keys) == there
    # So many that others have their turn meanwhile.
    assert await driver.are_there(keys * 200) == there * 200


async def test_a_look_at_many_keys_leaves_nothing_open_and_refuses_what_is_no_key(driver: FilesystemDriver) -> None:
    await driver.write("tags/a/link", b"x")
    before = os.listdir("/proc/self/fd")
    with trio.move_on_after(0) as scope:
        await driver.are_there(["tags/a/link"] * 1000)
    assert scope.cancelled_caught
    for bad in ("../link", "moorage/locks/00"):
        with pytest.raises(KeyInvalid):
            await driver.are_there(["tags/a/link", bad])
    with pytest.raises(KeyInvalid):
        await driver.are_there(["tags/" + "a" * 300 + "/link", "tags/a/link"])
    assert os.listdir("/proc/self/fd") == before


# ---- names that are remembered


async def test_names_in_a_directory_are_remembered_until_it_changes(tmp_path: Path) -> None:
    root = tmp_path / "store"
    async with FilesystemDriver.open_root(str(root)) as driver, FilesystemDriver.open_root(str(root)) as another:

        async def names() -> list[str]:
            return [entry.key for entry in (await driver.list("tags/", delimiter="/")).entries]

        for name in ("b", "a-1", "a"):
            await driver.write(f"tags/{name}/link", b"x")
        folder = root / "tags"
        for settled in (False, True):
            if settled:
                # As if nothing had changed for a while.
                long_ago = folder.stat().st_mtime_ns - 60 * 10**9
                os.utime(folder, ns=(long_ago, long_ago))
            assert await names() == ["tags/a-1/", "tags/a/", "tags/b/"]
            # Another process adds one, and takes one away.
            await another.write("tags/c/link", b"x")
            assert await names() == ["tags/a-1/", "tags/a/", "tags/b/", "tags/c/"]
            await another.delete("tags/c/link")
            assert await names() == ["tags/a-1/", "tags/a/", "tags/b/"]
        long_ago = folder.stat().st_mtime_ns - 60 * 10**9
        os.utime(folder, ns=(long_ago, long_ago))
        assert await names() == ["tags/a-1/", "tags/a/", "tags/b/"]
        # It is not read again: what comes into it without its time being another one is not seen.
        (folder / "z").mkdir()
        os.utime(folder, ns=(long_ago, long_ago))
        assert await names() == ["tags/a-1/", "tags/a/", "tags/b/"]
        page = await driver.list("tags/", after="tags/a-1/", delimiter="/", limit=1)
        assert [entry.key for entry in page.entries] == ["tags/a/"]
        assert page.more


async def test_only_so_many_names_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage_drivers.filesystem._NAMES_REMEMBERED", 5)
    root = tmp_path / "store"
    async with FilesystemDriver.open_root(str(root)) as driver:
        for folder, count in (("one", 3), ("two", 3), ("many", 9)):
            for number in range(count):
                await driver.write(f"{folder}/{number}/link", b"x")
            long_ago = (root / folder).stat().st_mtime_ns - 60 * 10**9
            os.utime(root / folder, ns=(long_ago, long_ago))
        for _ in range(2):
            for folder, count in (("one", 3), ("two", 3), ("many", 9)):
                assert len((await driver.list(f"{folder}/", delimiter="/")).entries) == count
                assert sum(len(each.names) for each in driver._names.values()) <= 5


async def test_what_is_put_by_one_step_is_put_in_order_and_up_to_what_fails(tmp_path: Path) -> None:
    async with FilesystemDriver.open_root(str(tmp_path / "store")) as driver:
        await driver.write("a/b", b"x")
        with pytest.raises(KeyInvalid):
            await driver.write_all([("one", b"1"), ("a/b/c", b"2"), ("three", b"3")])
        assert await driver.read("one", limit=1) == b"1"
        with pytest.raises(KeyUnknown):
            await driver.stat("three")

"""The audit log: one line for each operation that changed something or was refused, and nothing secret in it."""

import json
import logging
import os
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
import trio
import yaml

import callers
from asgi_client import AsgiClient, client_of, image, path_of
from callers import badge
from moorage import (
    OCI_MANIFEST,
    ConfigurationError,
    Digest,
    Operation,
    Origin,
    PushManifest,
    R,
    RepositoryName,
    Tag,
    Trail,
    decode_options,
    encode_json,
    open_registry,
)
from moorage_conformance.plugin_kit import Subject, assert_plugin
from moorage_middleware.audit import Audited, AuditOptions, LineFile
from opening import installed, loaded

CANARY = "canary-5d1c"
CONFIG = Digest.of(b"{}")
MANIFEST = Digest.of(encode_json(image(CONFIG)))
ACCESS: Mapping[str, object] = {
    "rules": [
        {"name": "team", "repositories": ["team/**"], "groups": ["dev"], "actions": ["push", "delete"]},
        {"repositories": ["team/**"], "anonymous": True, "actions": ["pull"]},
    ]
}

Line = Mapping[str, object]


def lines(path: Path) -> list[Line]:
    return [cast("Line", json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def told(line: Line, *names: str) -> dict[str, object]:
    return {name: line[name] for name in names if name in line}


@asynccontextmanager
async def audited(path: Path, *, pulls: bool = False, **more: object) -> AsyncGenerator[AsgiClient]:
    """Open a registry that keeps an audit log at `path`."""
    plugins = installed()
    plugins.register(callers, "callers")
    sections: dict[str, object] = {
        "access": ACCESS,
        "auth": {"believer": {}},
        "audit": {"path": str(path), "pulls": pulls},
        **more,
    }
    found = loaded(yaml.safe_dump(sections), plugins)
    assert found.warnings == ()
    async with open_registry(found.configuration, plugins) as registry:
        yield client_of(registry.handler)


ANN = badge("ann", ["dev"])


async def scenario(client: AsgiClient) -> None:
    """Push, mount, delete, and be refused, in each way there is."""
    agent = ("User-Agent", "tester/1 \u00e9\x01")
    base = "/v2/team/app"
    asked: Sequence[tuple[str, str, Sequence[tuple[str, str]], bytes, int]] = (
        ("POST", f"{base}/blobs/uploads/?digest={CONFIG}", [ANN, agent], b"{}", 201),
        ("PUT", f"{base}/manifests/v1?tag=v2", [ANN], encode_json(image(CONFIG)), 201),
        ("GET", f"{base}/manifests/v1", [], b"", 200),
        ("GET", f"{base}/manifests/none", [], b"", 404),
        ("POST", f"/v2/team/b/blobs/uploads/?mount={CONFIG}&from=team/app", [ANN], b"", 201),
        ("PUT", f"{base}/manifests/v1", [ANN], b"no manifest", 400),
        ("PUT", f"{base}/manifests/v1", [badge("bob")], encode_json(image(CONFIG)), 403),
        ("GET", "/v2/other/manifests/v1", [badge("bob", ["x"])], b"", 403),
        ("GET", "/v2/other/tags/list", [], b"", 401),
        ("GET", "/v2/", [("Authorization", f"Basic {CANARY}")], b"", 401),
        ("GET", f"{base}/tags/list", [badge("ann", ["dev"], {f"{CANARY}": ["pull"]})], b"", 401),
        ("DELETE", f"{base}/manifests/v1", [ANN], b"", 202),
        ("DELETE", f"{base}/manifests/{MANIFEST}", [ANN, ("Cookie", CANARY)], b"", 202),
        ("DELETE", f"{base}/manifests/{MANIFEST}?secret={CANARY}", [ANN], b"", 404),
    )
    for method, target, headers, body, status in asked:
        answer = await client.ask(method, target, [*headers, ("Content-Type", OCI_MANIFEST)], body)
        assert answer.status == status, (method, target, answer)


async def test_what_changed_something_or_was_refused_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    began = datetime.now(UTC)
    async with audited(path) as client:
        await scenario(client)
    found = lines(path)
    names = ("operation", "user", "repository", "outcome", "rule", "status", "code")
    ann = {"user": "ann", "repository": "team/app", "rule": "team"}
    assert [told(line, *names) for line in found] == [
        {"operation": "PushBlob", **ann, "outcome": "done"},
        {"operation": "PushManifest", **ann, "outcome": "done"},
        {"operation": "MountBlob", **ann, "repository": "team/b", "outcome": "done"},
        {"operation": "PushManifest", **ann, "outcome": "refused", "status": 400, "code": "MANIFEST_INVALID"},
        {
            "operation": "PushManifest",
            **ann,
            "user": "bob",
            "rule": "access.default",
            "outcome": "denied",
            "status": 403,
            "code": "DENIED",
        },
        {
            "operation": "PullManifest",
            "user": "bob",
            "repository": "other",
            "rule": "access.default",
            "outcome": "denied",
            "status": 403,
            "code": "DENIED",
        },
        {
            "operation": "ListTags",
            "user": "",
            "repository": "other",
            "rule": "access.default",
            "outcome": "denied",
            "status": 401,
            "code": "UNAUTHORIZED",
        },
        {"operation": "Ping", "user": "", "rule": "", "outcome": "denied", "status": 401, "code": "UNAUTHORIZED"},
        {"operation": "ListTags", **ann, "outcome": "denied", "status": 401, "code": "UNAUTHORIZED"},
        {"operation": "DeleteTag", **ann, "outcome": "done"},
        {"operation": "DeleteManifest", **ann, "outcome": "done"},
        {"operation": "DeleteManifest", **ann, "outcome": "refused", "status": 404, "code": "MANIFEST_UNKNOWN"},
    ]
    push, mount, deleted = found[1], found[2], found[10]
    assert told(push, "reference", "digest", "tags", "groups") == {
        "reference": "v1",
        "digest": str(MANIFEST),
        "tags": ["v1", "v2"],
        "groups": ["dev"],
    }
    assert told(mount, "digest", "source", "upload_id") == {"digest": str(CONFIG), "source": "team/app"}
    assert told(deleted, "digest", "tags") == {"digest": str(MANIFEST), "tags": ["v2"]}
    assert found[0]["user_agent"] == "tester/1 \u00e9?"
    for line in found:
        assert line["address"] == "192.0.2.7"
        assert line["request"]
        assert began - timedelta(seconds=1) <= datetime.fromisoformat(str(line["time"])) <= datetime.now(UTC)
    assert len({line["request"] for line in found}) == len(found)
    assert CANARY not in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


async def test_pulls_are_told_where_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    async with audited(path, pulls=True) as client:
        await scenario(client)
    pulls = [line for line in lines(path) if line["operation"] == "PullManifest"]
    assert [(line["reference"], line["outcome"], line.get("status")) for line in pulls] == [
        ("v1", "done", None),
        ("none", "refused", 404),
        ("v1", "denied", 403),
    ]


async def test_an_upload_is_told_step_by_step(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    async with audited(path) as client:
        opened = await client.ask("POST", "/v2/team/app/blobs/uploads/", [ANN])
        session = path_of(opened.header("Location"))
        await client.ask("PATCH", session, [ANN], b"{")
        await client.ask("GET", session, [ANN])
        await client.ask("PUT", f"{session}?digest={CONFIG}", [ANN], b"}")
        async with client.conversation("PATCH", "/v2/team/app/blobs/uploads/none", [ANN]) as conversation:
            await conversation.answer()
    found = lines(path)
    assert [told(line, "operation", "outcome", "digest") for line in found[:3]] == [
        {"operation": "OpenUpload", "outcome": "done"},
        {"operation": "AppendUpload", "outcome": "done"},
        {"operation": "CommitUpload", "outcome": "done", "digest": str(CONFIG)},
    ]
    assert {line["upload_id"] for line in found[:3]} == {session.rpartition("/")[2]}
    assert told(found[3], "operation", "outcome", "status") == {
        "operation": "AppendUpload",
        "outcome": "refused",
        "status": 404,
    }


async def test_a_rule_on_pushes_is_named_where_it_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    async with audited(path, plugins={"immutable_tags": {}}) as client:
        headers = [ANN, ("Content-Type", OCI_MANIFEST)]
        await client.ask("POST", f"/v2/team/app/blobs/uploads/?digest={CONFIG}", [ANN], b"{}")
        for note in ("a", "b"):
            body = encode_json(image(CONFIG, annotations={"a": note}))
            await client.ask("PUT", "/v2/team/app/manifests/v1", headers, body)
    assert told(lines(path)[-1], "outcome", "status", "rule", "refused_by") == {
        "outcome": "refused",
        "status": 409,
        "rule": "team",
        "refused_by": "immutable_tags",
    }


class Breaking:
    """Does not answer."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def __call__(self, operation: Operation[R], /) -> R:
        """Fail, or wait for ever."""
        if self._error is not None:
            raise self._error
        return await trio.sleep_forever()


PUSH = PushManifest(
    origin=Origin(request_id="r1"),
    repository=RepositoryName("a"),
    reference=Tag("v1"),
    media_type=OCI_MANIFEST,
    data=b"",
)


async def test_what_broke_off_or_failed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    file = LineFile(str(path))
    with trio.move_on_after(0.01):
        await Audited(Breaking(None), file, pulls=False)(PUSH)
    with pytest.raises(OSError, match="a fault"):
        await Audited(Breaking(OSError("a fault")), file, pulls=False)(PUSH)
    file.close()
    assert [line["outcome"] for line in lines(path)] == ["broken off", "failed"]
    assert "a fault" not in path.read_text(encoding="utf-8")


async def test_a_trail_that_is_there_is_used(tmp_path: Path) -> None:
    file = LineFile(str(tmp_path / "audit.log"))
    trail = Trail()
    trail.rule = "before"
    with pytest.raises(OSError, match="x"):
        await Audited(Breaking(OSError("x")), file, pulls=False)(
            PushManifest(repository=PUSH.repository, reference=PUSH.reference, media_type="a/b", data=b"", trail=trail)
        )
    file.close()
    assert [line["rule"] for line in lines(tmp_path / "audit.log")] == ["before"]


# ---- the file


def test_a_file_that_is_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "audit.log", tmp_path / "audit.log.1"
    file = LineFile(str(path))
    file.append(b"1\n")
    path.rename(moved)
    file.append(b"2\n")
    path.unlink()
    file.append(b"3\n")
    assert path.read_bytes() == b"3\n"
    os.truncate(path, 0)
    file.append(b"4\n")
    file.close()
    assert (moved.read_bytes(), path.read_bytes()) == (b"1\n", b"4\n")


def test_lines_of_many_writers_and_rotations_are_all_there_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    rotated: list[Path] = []
    running = threading.Event()

    def write(writer: int) -> None:
        file = LineFile(str(path))
        for number in range(500):
            file.append(f"{writer}:{number}:{'x' * (number % 97)}\n".encode())
        file.close()

    def rotate() -> None:
        while not running.wait(0.002):
            moved = tmp_path / f"audit.log.{len(rotated)}"
            if path.exists():
                path.rename(moved)
                rotated.append(moved)

    rotating = threading.Thread(target=rotate)
    rotating.start()
    writing = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in writing:
        thread.start()
    for thread in writing:
        thread.join()
    running.set()
    rotating.join()
    found = b"".join(each.read_bytes() for each in (path, *rotated) if each.exists()).decode().splitlines()
    assert rotated
    assert sorted(found) == sorted(f"{writer}:{n}:{'x' * (n % 97)}" for writer in range(4) for n in range(500))


def test_a_file_that_cannot_be_written_is_told_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "audit.log"
    file = LineFile(str(path))
    folder.rename(tmp_path / "away")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            file.append(b"lost\n")
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        folder.mkdir()
        file.append(b"kept\n")
        file.append(b"kept\n")
    file.close()
    assert [record.message for record in caplog.records] == [
        f"the audit log {path} cannot be written, lines are lost: No such file or directory",
        f"the audit log {path} is written again; 3 lines were lost",
    ]
    assert path.read_bytes() == b"kept\nkept\n"


def test_a_full_disk_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    file = LineFile("/dev/full")
    file.append(b"a\n")
    file.append(b"b\n")
    file.close()
    assert [record.message for record in caplog.records] == [
        "the audit log /dev/full cannot be written, lines are lost: No space left on device"
    ]


def test_a_line_that_was_cut_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.log"
    file = LineFile(str(path))
    real, room = os.write, [2]

    def write(descriptor: int, data: bytes) -> int:
        if not room:
            return real(descriptor, data)
        size = room.pop()
        if not size:
            raise OSError(28, "No space left on device")
        room.append(0)
        return real(descriptor, data[:size])

    monkeypatch.setattr(os, "write", write)
    file.append(b"first\n")
    file.append(b"second\n")
    file.append(b"third\n")
    file.close()
    assert path.read_bytes() == b"fi\nsecond\nthird\n"


def test_a_pipe_that_nobody_empties_holds_nothing_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = LineFile(str(path))
    for _ in range(5000):
        file.append(b"x" * 99 + b"\n")
    assert "cannot be written" in caplog.text
    assert os.read(reader, 100) == b"x" * 99 + b"\n"
    file.close()
    os.close(reader)


async def test_a_log_that_cannot_be_begun_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="audit failed to open: FileNotFoundError"):
        async with audited(tmp_path / "none" / "audit.log"):
            pass


@pytest.mark.parametrize("path", ["audit.log", "", "./stdout"])
def test_a_path_says_where_it_is(path: str) -> None:
    with pytest.raises(ConfigurationError, match="path is stdout, stderr, or an absolute path"):
        decode_options(AuditOptions, {"path": path}, source="audit")


def test_it_keeps_the_contract_of_plugins(tmp_path: Path) -> None:
    assert_plugin(Subject("audit", {"audit": {"path": str(tmp_path / "audit.log"), "pulls": True}}))

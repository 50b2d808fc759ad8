"""Plugins that are files, in real servers: pushes are judged by them, and what they do wrong hurts nobody else."""

import json
import os
import signal
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from moorage import OCI_INDEX
from moorage_drivers import register_drivers
from servers import Server, configuration, free_port, http, moorage, wait_for, write_configuration

INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()


@contextmanager
def served(
    folder: Path, *, environment: Mapping[str, str] | None = None, workers: int = 1, **files: str
) -> Generator[Server]:
    """Run Moorage with `files` as plugins."""
    rules = folder / "rules"
    rules.mkdir(mode=0o755)
    for name, text in files.items():
        (rules / f"{name}.py").write_text(text)
        (rules / f"{name}.py").chmod(0o644)
    port = free_port()
    settings = configuration(folder / "data", port, plugins={"paths": ["rules"]}, log={"formatter": "json"})
    file = write_configuration(folder / "config.yml", settings)
    with moorage(file, port=port, workers=workers, environment=environment) as server:
        yield server


def push(server: Server, repository: str, tag: str = "v1") -> httpx.Response:
    with http(server.url) as client:
        url = f"/v2/{repository}/manifests/{tag}"
        return client.put(url, content=INDEX, headers={"Content-Type": OCI_INDEX})


def everything_logged(server: Server) -> list[dict[str, object]]:
    lines = server.log.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def logged(server: Server, text: str) -> list[dict[str, object]]:
    return [line for line in everything_logged(server) if text in str(line["event"])]


HANG = """
import os, re, sys, threading, time
import trio
from moorage import hookimpl

async def spin():
    while True:
        pass

async def sleep():
    time.sleep(1000)

async def match():
    re.fullmatch("(a|a)*", "a" * 80 + "b")

async def wait():
    await trio.lowlevel.checkpoint()
    time.sleep(1000)

@hookimpl
async def validate_manifest(push):
    action = globals().get(push.repository.rpartition("/")[2])
    if action:
        await action()
"""


@pytest.mark.parametrize("action", ["spin", "sleep", "match", "wait"])
def test_a_plugin_that_blocks_the_registry_is_interrupted_and_in_the_end_asked_no_more(
    tmp_path: Path, action: str
) -> None:
    with served(tmp_path, hang=HANG) as server:
        for _ in range(3):
            answers: list[httpx.Response] = []
            thread = threading.Thread(target=lambda: answers.append(push(server, f"a/{action}")))  # noqa: B023 - ends here
            thread.start()
            # Asked while the push hangs, and answered when the loop is free again.
            assert server.answers()
            thread.join(60)
            (answer,) = answers
            assert answer.status_code == 500
            assert "hang blocked the registry" in answer.text
        assert server.answers()
        last = push(server, "a/quick")
        assert last.status_code == 500
        assert "hang keeps blocking the registry and is asked no more until a restart" in last.text
        assert httpx.get(f"{server.url}/v2/a/{action}/tags/list").status_code == 404
        assert len(logged(server, "plugin hang was interrupted")) == 3
        # However often it blocks, it is named once a minute.
        assert len(logged(server, "plugin hang blocks the event loop")) == 1
        assert len(server.workers) == 1


MISCHIEF = """
import os, sys
from moorage import hookimpl

class Odd(BaseException):
    pass

def leave():
    sys.exit(0)

def interrupt():
    raise KeyboardInterrupt

def odd():
    raise Odd

def fail():
    raise ValueError("a secret")

def nonsense():
    return 5

def judge(push):
    action = push.repository.rpartition("/")[2].removeprefix("later-")
    return globals()[action]() if action in {"leave", "interrupt", "odd", "fail", "nonsense", "end"} else None

def end():
    os._exit(7)
"""
SYNC = MISCHIEF + "\n@hookimpl\ndef validate_manifest(push):\n    return judge(push)\n"
ASYNC = MISCHIEF + "\n@hookimpl\nasync def validate_manifest(push):\n    return judge(push)\n"


@pytest.mark.parametrize("text", [SYNC, ASYNC], ids=["sync", "async"])
def test_whatever_a_plugin_does_the_push_fails_and_the_registry_lives(tmp_path: Path, text: str) -> None:
    with served(tmp_path, mischief=text) as server:
        (worker,) = server.workers
        for action in ("leave", "interrupt", "odd", "fail", "nonsense"):
            answer = push(server, f"a/{action}")
            assert (action, answer.status_code) == (action, 500)
            assert "the plugin mischief failed" in answer.text
            assert "secret" not in answer.text
        assert server.workers == [worker]
        assert len(logged(server, "plugin mischief")) >= 5
        assert push(server, "a/fine").status_code == 201
        # Nothing can be done about this one but to begin anew.
        with pytest.raises(httpx.TransportError):
            push(server, "a/end")
        server.wait_until_it_answers()
        assert server.workers != [worker]
        assert push(server, "a/fine", "v2").status_code == 201
        assert logged(server, f"worker {worker} ended with 7")
        assert httpx.get(f"{server.url}/v2/a/end/tags/list").status_code == 404


COUNT = """
from moorage import hookimpl

@hookimpl
def validate_manifest():
    return ["judged"]
"""


def test_each_worker_and_each_that_takes_its_place_has_the_same_plugins(tmp_path: Path) -> None:
    with served(tmp_path, workers=2, judge=COUNT) as server:
        # What was loaded at the start holds, whatever becomes of the file.
        (tmp_path / "rules/judge.py").write_text("1 / 0")
        wait_for(lambda: logged(server, "listening on"), "both workers")
        before = set(server.workers)
        for worker in before:
            os.kill(worker, signal.SIGKILL)
        wait_for(lambda: len(set(server.workers) - before) == 2, "two new workers")
        server.wait_until_it_answers()
        for tag in range(8):
            answer = push(server, "a/b", f"v{tag}")
            assert (answer.status_code, "judged" in answer.headers["Warning"]) == (201, True)


TRACED = """
from moorage import Refused, hookimpl

@hookimpl
async def validate_manifest(push):
    if push.repository == "no":
        raise Refused("not here")
    return ["one"]

@hookimpl
def operation_finished():
    pass
"""


def test_calls_of_plugins_are_logged_where_the_environment_asks(tmp_path: Path) -> None:
    with served(
        tmp_path, environment={"MOORAGE_TRACE_PLUGINS": "1", "REGISTRY_LOG_LEVEL": "warn"}, seen=TRACED
    ) as server:
        assert push(server, "a/b").status_code == 201
        assert push(server, "no").status_code == 403
        traced = [line for line in everything_logged(server) if line["logger"] == "moorage.plugins.trace"]
    assert {line["level"] for line in traced} == {"info"}
    events = [str(line["event"]).rpartition(" after ")[0] for line in traced]
    for event in (
        f"register_drivers of drivers returned {sorted(register_drivers())}",
        "opening of the driver filesystem of drivers returned",
        "opening of the middleware deletes of middleware returned",
        "validate_manifest of seen returned ['one']",
        "validate_manifest of seen refused: not here",
        "operation_finished of seen returned None",
    ):
        assert event in events
    # Each hook of the start is called once.
    assert events.count(f"register_drivers of drivers returned {sorted(register_drivers())}") == 1


def test_nothing_is_traced_unless_somebody_asks(tmp_path: Path) -> None:
    with served(tmp_path, seen=TRACED) as server:
        assert push(server, "a/b").status_code == 201
        assert logged(server, " after ") == []

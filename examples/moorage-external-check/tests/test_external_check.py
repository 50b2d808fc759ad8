"""The rule by itself and in a registry in memory, with small programs in Python."""

import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from moorage import (
    OCI_INDEX,
    ConfigurationError,
    Digest,
    Handler,
    InternalError,
    Manifest,
    ManifestUnknown,
    PluginManager,
    PullManifest,
    PushManifest,
    Refused,
    RepositoryName,
    Tag,
    claimed_sections,
    load_configuration,
    open_registry,
    parse_pushed,
)
from moorage_external_check.check import CheckFailed, ExternalCheck

REPOSITORY = RepositoryName("team/app")
INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
MANIFEST: Manifest = parse_pushed(OCI_INDEX, INDEX, Digest.of(INDEX))
PUSH = PushManifest(repository=REPOSITORY, reference=Tag("v1"), media_type=OCI_INDEX, data=INDEX)


def check(program: str, *arguments: str, timeout: float = 9.0, processes: int = 4) -> ExternalCheck:
    """Return the rule with `program`, a text in Python."""
    return ExternalCheck([sys.executable, "-c", program, *arguments], timeout=timeout, processes=processes)


@asynccontextmanager
async def registry_with(**options: object) -> AsyncGenerator[Handler]:
    """Open a registry in memory as a configuration with the rule would."""
    plugins = PluginManager()
    plugins.load_entry_points()
    settings: dict[str, dict[str, object]] = {"storage": {"inmemory": {}}, "plugins": {"external_check": options}}
    loaded = load_configuration(None, {}, defaults=settings, claimed=claimed_sections(plugins))
    async with open_registry(loaded.configuration, plugins) as opened:
        yield opened.handler


async def test_a_program_that_ends_with_0_accepts() -> None:
    await check("print('fine')").validate_manifest(PUSH, MANIFEST)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_the_first_line_of_a_program_that_ends_with_1_is_the_reason(stream: str) -> None:
    program = f"import sys; sys.{stream}.write('\\n\\x1b no source named\\nmore'); sys.exit(1)"
    with pytest.raises(Refused) as caught:
        await check(program).validate_manifest(PUSH, MANIFEST)
    assert caught.value.message == "no source named"
    assert caught.value.status == 403


async def test_a_refusal_without_a_word_is_a_refusal() -> None:
    with pytest.raises(Refused, match="external check"):
        await check("raise SystemExit(1)").validate_manifest(PUSH, MANIFEST)


async def test_the_program_reads_the_manifest_and_what_it_is_pushed_as(tmp_path: Path) -> None:
    program = """
import json, os, sys
about = {name: value for name, value in os.environ.items() if name in sys.argv[3].split()}
with open(sys.argv[1], "w") as file:
    json.dump([sys.stdin.read(), about, sys.argv[2]], file)
"""
    seen = tmp_path / "seen"
    names = "MOORAGE_REPOSITORY MOORAGE_REFERENCE MOORAGE_MEDIA_TYPE MOORAGE_DIGEST"
    await check(program, str(seen), "$(no shell) ; *", names).validate_manifest(PUSH, MANIFEST)
    data, about, argument = json.loads(seen.read_text(encoding="utf-8"))
    assert data.encode() == INDEX
    assert about == {
        "MOORAGE_REPOSITORY": "team/app",
        "MOORAGE_REFERENCE": "v1",
        "MOORAGE_MEDIA_TYPE": OCI_INDEX,
        "MOORAGE_DIGEST": str(Digest.of(INDEX)),
    }
    assert argument == "$(no shell) ; *"


@pytest.mark.parametrize(
    ("program", "seconds", "reason"),
    [
        ("raise SystemExit(3)", 9, "ended with 3: no output"),
        ("import os; print('what now?', flush=True); os.abort()", 9, r"ended with -6: what now\?"),
        ("import time; time.sleep(600)", 0.5, "did not end within 0.5 s"),
        ("while True: print('and so on ' * 1000)", 0.5, "did not end within 0.5 s"),
    ],
)
async def test_what_is_neither_yes_nor_no_is_a_failure(program: str, seconds: float, reason: str) -> None:
    with pytest.raises(CheckFailed, match=reason):
        await check(program, timeout=seconds).validate_manifest(PUSH, MANIFEST)


async def test_a_program_that_cannot_be_run_is_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/nowhere\n", encoding="utf-8")
    script.chmod(0o755)
    rule = ExternalCheck([str(script)], timeout=5, processes=1)
    with pytest.raises(CheckFailed, match="cannot be run"):
        await rule.validate_manifest(PUSH, MANIFEST)


async def test_a_program_may_leave_its_input_alone_and_print_more_than_anybody_reads() -> None:
    large = parse_pushed(OCI_INDEX, INDEX[:-1] + b" " * 3_000_000 + b"}", Digest.of(INDEX))
    with pytest.raises(Refused) as caught:
        await check("print('x' * 5_000_000); raise SystemExit(1)").validate_manifest(PUSH, large)
    assert 0 < len(caught.value.message) < 1000


async def test_a_cancelled_push_leaves_no_process(tmp_path: Path) -> None:
    # The program and a child of its own hold the pipe open; its end is read when neither runs any more.
    program = """
import subprocess, sys
with open(sys.argv[1], "w") as pipe:
    child = subprocess.Popen(["sleep", "600"], stdout=pipe)
    pipe.write("running"), pipe.flush()
    child.wait()
"""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(check(program, str(pipe)).validate_manifest, PUSH, MANIFEST)
            async with await trio.open_file(pipe) as reading:
                assert await reading.read(7) == "running"
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    assert await reading.read() == ""


async def test_no_more_programs_run_at_once_than_allowed(tmp_path: Path) -> None:
    program = "import os, sys, time; os.mkdir(sys.argv[1]); time.sleep(0.1); os.rmdir(sys.argv[1])"
    rule = check(program, str(tmp_path / "alone"), processes=1)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(rule.validate_manifest, PUSH, MANIFEST)


async def test_a_registry_stores_only_what_the_program_accepts() -> None:
    program = "import os, sys; sys.exit('not this tag' if os.environ['MOORAGE_REFERENCE'] == 'bad' else 0)"
    bad = PushManifest(repository=REPOSITORY, reference=Tag("bad"), media_type=OCI_INDEX, data=INDEX)
    async with registry_with(command=[sys.executable, "-c", program]) as registry:
        assert (await registry(PUSH)).descriptor.digest == Digest.of(INDEX)
        with pytest.raises(Refused, match="not this tag"):
            await registry(bad)
        with pytest.raises(ManifestUnknown):
            await registry(PullManifest(repository=REPOSITORY, reference=Tag("bad")))


async def test_a_registry_fails_the_push_that_could_not_be_judged() -> None:
    async with registry_with(command=[sys.executable, "-c", "raise SystemExit(2)"]) as registry:
        with pytest.raises(InternalError):
            await registry(PUSH)
        with pytest.raises(ManifestUnknown):
            await registry(PullManifest(repository=REPOSITORY, reference=Tag("v1")))


@pytest.mark.parametrize(
    "options",
    [{}, {"command": []}, {"command": ["true"], "timeout": 10}, {"command": ["true"], "shell": True}],
)
async def test_wrong_options_keep_the_registry_from_starting(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="external_check"):
        async with registry_with(**options):
            pass


async def test_a_program_that_is_not_there_keeps_the_registry_from_starting() -> None:
    with pytest.raises(ConfigurationError, match="no program 'no-such-program'"):
        async with registry_with(command=["no-such-program"]):
            pass

"""`moorage validate --all`: what is stored and would be refused today; nothing is written, whatever is found."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from content import image, index, push_blob, push_image, push_manifest
from layouts import Layout
from moorage import (
    OCI_INDEX,
    OCI_MANIFEST,
    DeleteManifest,
    Digest,
    Handler,
    PushManifest,
    RepositoryName,
    Tag,
)
from servers import moorage, wait_for
from validating import APP, CONSOLE_SCRIPT, Bench, one_image, three_images


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def layout(bench: Bench) -> Layout:
    return three_images(bench.folder / "My-Layout")


async def fill_store(registry: Handler) -> Digest:
    """Push to three repositories; return a manifest of `team/app` that has no tag."""
    for tag in ("v1", "v2", "also-v2"):
        await push_image(registry, tag, repository=APP, salt=tag.removeprefix("also-"))
    await push_image(registry, "v1", repository=RepositoryName("dev/app"))
    await push_image(registry, "v9", repository=RepositoryName("dev/app/below"))
    untagged = await push_image(registry, repository=APP, salt="untagged")
    data = image(await push_blob(registry, b"{}", APP), note="wide")
    wide = Digest.of(data, "sha512")
    await registry(
        PushManifest(repository=APP, reference=wide, media_type=OCI_MANIFEST, data=data, tags=(Tag("wide"),))
    )
    await registry(PushManifest(repository=APP, reference=wide, media_type=OCI_MANIFEST, data=data))
    return untagged


def test_a_store_that_would_all_be_taken_is_one_line(bench: Bench) -> None:
    bench.store(fill_store)
    done = bench.run("--all")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "7 references in 3 repositories: 0 would be refused, 0 would be taken with a warning, 0 cannot be judged\n"
    )


def test_what_is_stored_and_would_be_refused_today_is_listed(bench: Bench) -> None:
    bench.store(fill_store)
    bench.configure(refuse="v1")
    done = bench.run("--all")
    assert done.returncode == 1
    rows = [line.split() for line in done.stdout.splitlines()[1:-1]]
    assert [row[:4] for row in rows] == [
        ["dev/app:v1", "house", "enforce", "refuses"],
        ["team/app:v1", "house", "enforce", "refuses"],
    ]
    assert done.stdout.splitlines()[-1].startswith("7 references in 3 repositories: 2 would be refused, 0 would")
    bench.configure(refuse="v1", mode="warn")
    document = bench.json("--all", code=0)
    assert (document.accepted, document.refused, document.warned, document.references) == (True, 0, 2, 7)
    assert [each.verdict for judged in document.results for each in judged.findings] == ["warns"] * 2


def test_a_manifest_is_judged_as_each_tag_or_else_by_digest(bench: Bench) -> None:
    untagged = bench.store(fill_store)
    bench.configure(refuse="everything")
    document = bench.json("--all", code=1)
    assert [judged.target for judged in document.results] == [
        "dev/app:v1",
        "dev/app/below:v9",
        "team/app:also-v2",
        "team/app:v1",
        "team/app:v2",
        "team/app:wide",
        f"team/app@{untagged}",
    ]


@pytest.mark.parametrize(
    ("pattern", "count"), [("team/**", 5), ("dev/*", 1), ("dev/**", 2), ("**", 7), ("app", 0), ("dev/app", 1)]
)
def test_only_some_repositories_are_judged(bench: Bench, pattern: str, count: int) -> None:
    bench.store(fill_store)
    assert bench.json("--all", "--repository", pattern, code=0).references == count


def test_what_was_deleted_from_below_is_refused_today(bench: Bench) -> None:
    async def fill(registry: Handler) -> None:
        child = await push_image(registry, repository=APP)
        await push_manifest(registry, index(child), "v1", repository=APP, media_type=OCI_INDEX)
        await registry(DeleteManifest(repository=APP, digest=child))

    bench.store(fill)
    (judged,) = bench.json("--all", code=1).results
    assert [each.says.endswith("is missing") for each in judged.findings] == [True]


def test_what_cannot_be_read_is_reported_and_the_rest_is_judged(bench: Bench) -> None:
    bench.store(fill_store)
    data = bench.root / "docker/registry/v2"
    tags = data / "repositories/team/app/_manifests/tags"
    links = {name: Digest((tags / name / "current/link").read_text()) for name in ("v1", "v2")}
    (data / f"blobs/sha256/{links['v1'].encoded[:2]}/{links['v1'].encoded}/data").write_bytes(b"no manifest")
    (data / f"blobs/sha256/{links['v2'].encoded[:2]}/{links['v2'].encoded}/data").unlink()
    (tags / "wide/current/link").write_text("rubbish")
    (data / "repositories/team/app/_manifests/revisions/sha256/rubbish").mkdir()
    (data / "repositories/Team/_manifests").mkdir(parents=True)
    document = bench.json("--all", code=0)
    assert {problem.target: problem.says for problem in document.problems if ":v" in problem.target} == {
        "team/app:v1": "the stored manifest cannot be read",
        "team/app:v2": "it names a manifest that is not there",
    }
    assert "team/app:wide" in [problem.target for problem in document.problems]
    assert document.references >= 7
    done = bench.run("--all")
    assert (done.returncode, done.stderr) == (0, "")
    assert "team/app:v2: cannot be judged: it names a manifest that is not there" in done.stdout


def test_nothing_is_written(bench: Bench, layout: Layout) -> None:
    bench.store(fill_store)
    upload = bench.root / "docker/registry/v2/repositories/team/app/_uploads/old"
    upload.mkdir(parents=True)
    (upload / "startedat").write_text("2001-01-01T00:00:00Z")
    bench.configure(refuse="everything")
    before = bench.files()
    for arguments in (["--all"], ["team/app:v1"], ["-", "--as", "team/app"], [layout.folder]):
        assert bench.run(*arguments, stdin=b"{}").returncode == 1
        assert bench.files() == before


def test_a_store_that_nobody_may_write_to_is_judged(bench: Bench) -> None:
    bench.store(fill_store)
    folders = [bench.root, *(path for path in bench.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert bench.run("--all").returncode == 0
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_store_of_the_process_itself_is_said_to_be_empty(bench: Bench) -> None:
    file = bench.folder / "memory.yml"
    file.write_text("version: 0.1\nstorage: {inmemory: }\n", encoding="utf-8")
    done = bench.run("--all", "--config", file, environment={})
    assert (done.returncode, "the inmemory store is seen by one process only" in done.stderr) == (0, True)


# ---- as a process


def process(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [CONSOLE_SCRIPT, "validate", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")},
    )
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"OBSERVED" not in done.stdout
    return done


def test_the_command_works_beside_a_registry_on_the_same_store(bench: Bench) -> None:
    bench.store(fill_store)
    file = bench.configure(refuse="v1")
    with moorage(file) as server:
        alone = process("--all", "--config", file, "--json")
        assert (alone.returncode, json.loads(alone.stdout)["refused"]) == (1, 2)
        assert process("team/app:v2", "--config", file).returncode == 0
        assert server.answers()
        assert "OBSERVED PullManifest" not in server.logged()


@pytest.mark.parametrize("data", [b"", b"\0\1\2\xff", b"{", bytes(range(256)) * 400])
def test_binary_standard_input_is_one_sentence(bench: Bench, data: bytes) -> None:
    bench.store(one_image)
    done = process("-", "--config", bench.file, stdin=data)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(b"moorage: -: ")


def test_a_name_that_is_no_text_is_one_sentence(bench: Bench) -> None:
    name = os.fsdecode(b"\xff\xfe")
    done = process(name, "--config", bench.file)
    assert (done.returncode, done.stdout) == (2, b"")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--all"], ["team/app:v1"]])
def test_an_interrupt_is_told_from_a_refusal(bench: Bench, arguments: list[str]) -> None:
    bench.store(fill_store)
    asked = bench.folder / "asked"
    file = bench.configure(wait=str(asked))
    command = [str(CONSOLE_SCRIPT), "validate", *arguments, "--config", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        try:
            wait_for(asked.exists, "a question to the rule")
            running.send_signal(signal.SIGINT)
            said, _ = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, b"Traceback" in said) == (130, False), said

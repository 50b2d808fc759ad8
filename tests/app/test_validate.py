"""`moorage validate`: what rules would make of a file, or of what is stored; a table, an exit code, a sentence."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest
import yaml

from content import index, push_image
from layouts import Json, Layout
from moorage import (
    MANIFEST_LIMIT,
    OCI_INDEX,
    OCI_MANIFEST,
    Digest,
    Handler,
)
from validating import ABSENT, APP, Bench, one_image, sentence, three_images


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def layout(bench: Bench) -> Layout:
    return three_images(bench.folder / "My-Layout")


# ---- files


def test_a_manifest_whose_references_are_stored_is_accepted(bench: Bench) -> None:
    (bench.folder / "manifest.json").write_bytes(bench.store(one_image))
    done = bench.run(bench.folder / "manifest.json", "--as", "team/app:v2")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines() if line]
    assert lines[0][1] == "team/app:v2"
    assert lines[1] == ["rule", "mode", "verdict", "what", "it", "says"]
    assert lines[2][:3] == ["(registry)", "enforce", "accepts"]
    assert lines[-1] == ["would", "be", "accepted"]


def test_a_manifest_whose_references_are_not_there_is_refused(bench: Bench) -> None:
    (bench.folder / "manifest.json").write_bytes(bench.store(one_image))
    done = bench.run(bench.folder / "manifest.json", "--as", "other")
    assert done.returncode == 1
    assert done.stdout.count(" is missing") >= 2
    assert "would be refused: (registry): sha256:" in done.stdout


def test_the_repository_that_nobody_named_is_said_aloud(bench: Bench) -> None:
    file = bench.folder / "Some Manifest!.json"
    file.write_bytes(bench.store(one_image))
    done = bench.run(file)
    assert done.returncode == 1
    assert done.stderr.endswith(
        "judged as a push to the repository some-manifest; --as REPOSITORY[:TAG] names another\n"
    )
    assert "some-manifest@sha256:" in done.stdout


def test_what_is_pushed_by_digest_must_have_it(bench: Bench) -> None:
    file = bench.folder / "manifest.json"
    file.write_bytes(bench.store(one_image))
    assert bench.run(file, "--as", f"team/app@{Digest.of(file.read_bytes())}").returncode == 0
    assert "does not have that digest" in bench.run(file, "--as", f"team/app@{ABSENT}").stdout


def test_a_manifest_comes_by_standard_input_too(bench: Bench) -> None:
    data = bench.store(one_image)
    document = bench.json("-", "--as", "team/app:v2", code=0, stdin=data)
    (judged,) = document.results
    assert (judged.target, judged.repository, judged.reference) == ("-", "team/app", "v2")
    assert (judged.digest, judged.accepted) == (str(Digest.of(data)), True)


def test_a_file_is_judged_as_pushed_with_a_media_type(bench: Bench) -> None:
    (bench.folder / "manifest.json").write_bytes(bench.store(one_image))
    done = bench.run(bench.folder / "manifest.json", "--as", "team/app", "--media-type", OCI_INDEX)
    assert done.returncode == 1
    assert f"Content-Type says '{OCI_INDEX}'" in done.stdout


def test_a_manifest_that_is_none_to_the_registry_is_refused(bench: Bench) -> None:
    bench.store(one_image)
    for text, says in (
        ('{"schemaVersion": 1}', "mediaType"),
        ("{}", "schemaVersion must be 2"),
        (f'{{"schemaVersion": 2, "mediaType": "{OCI_MANIFEST}"}}', "has a `config`"),
        ('{"schemaVersion": 2, "schemaVersion": 2, "config": {}}', "not a manifest"),
    ):
        done = bench.run("-", "--as", "team/app", stdin=text.encode())
        assert (done.returncode, says in done.stdout) == (1, True), done


VERDICTS: tuple[tuple[dict[str, object], int, tuple[str | None, str, str], str], ...] = (
    ({"refuse": "v1"}, 1, ("enforce", "refuses", "v1 may not be"), "would be refused: house: v1 may not be"),
    ({"refuse": "v1", "mode": "warn"}, 0, ("warn", "warns", "v1 may not be"), "would be accepted, with 1 warning"),
    ({"warn": "soon old"}, 0, ("enforce", "warns", "soon old"), "would be accepted, with 1 warning"),
    (
        {"fail": True},
        1,
        ("enforce", "failed", "the plugin plugins.house failed (ZeroDivisionError: a fault)"),
        "would be refused: house: the plugin plugins.house failed (ZeroDivisionError: a fault)",
    ),
    (
        {"fail": True, "mode": "warn"},
        0,
        ("warn", "failed", "the plugin plugins.house failed (ZeroDivisionError: a fault)"),
        "would be accepted, with 1 warning",
    ),
    ({"refuse": "v1", "repositories": ["prod/**"]}, 0, (None, "not here", ""), "would be accepted"),
    ({"refuse": "v2"}, 0, ("enforce", "accepts", ""), "would be accepted"),
    ({"warn": "\x1b[31mred\nand [bold]more"}, 0, ("enforce", "warns", "\x1b[31mred\nand [bold]more"), "with 1 warning"),
)


@pytest.mark.parametrize(("options", "code", "expected", "conclusion"), VERDICTS)
def test_the_table_says_what_each_rule_says(
    bench: Bench, options: dict[str, object], code: int, expected: tuple[str | None, str, str], conclusion: str
) -> None:
    bench.store(one_image)
    bench.configure(**options)
    (judged,) = bench.json("team/app:v1", code=code).results
    (finding,) = [each for each in judged.findings if each.rule == "house"]
    assert (finding.mode, finding.verdict, finding.says) == expected
    assert (judged.accepted, finding.refuses) == (code == 0, code == 1)
    done = bench.run("team/app:v1")
    assert done.returncode == code
    assert done.stdout.rstrip().splitlines()[-1].endswith(conclusion)
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("house")]
    assert ("not for this repository" if expected[1] == "not here" else expected[1]) in row
    assert "\x1b" not in done.stdout


def test_a_detail_that_is_no_json_spoils_no_document(bench: Bench) -> None:
    bench.store(one_image)
    bench.configure(refuse="v1")
    (judged,) = bench.json("team/app:v1", code=1).results
    assert "raw" in str([each.detail for each in judged.findings if each.rule == "house"])


def test_a_missing_reference_is_named_as_the_manifest_names_it(bench: Bench) -> None:
    async def child(registry: Handler) -> Digest:
        return await push_image(registry, repository=APP)

    platform = {"os": "linux", "architecture": "riscv64"}
    missing = {"mediaType": OCI_MANIFEST, "digest": str(ABSENT), "size": 1, "platform": platform}
    data = index(bench.store(child), missing)
    done = bench.run("-", "--as", "team/app:v1", stdin=data)
    assert done.returncode == 1
    assert (
        f'{ABSENT} ({OCI_MANIFEST}) is missing {{"platform": {{"os": "linux", "architecture": "riscv64"}}}}'
        in (done.stdout)
        or '"architecture": "riscv64"' in done.stdout
    )
    (judged,) = bench.json("-", "--as", "team/app:v1", stdin=data, code=1).results
    assert [each.detail for each in judged.findings if each.refuses] == [missing]
    bench.configure(spare=True)
    assert bench.run("-", "--as", "team/app:v1", stdin=data).returncode == 0


# ---- what is stored


def test_what_is_stored_is_judged_by_tag_and_by_digest(bench: Bench) -> None:
    data = bench.store(one_image)
    bench.configure(refuse="v1")
    assert bench.run("team/app:v1").returncode == 1
    assert bench.run(f"team/app@{Digest.of(data)}").returncode == 0
    document = bench.json("team/app:v1", f"team/app@{Digest.of(data)}", code=1)
    assert [judged.accepted for judged in document.results] == [False, True]


def test_a_file_of_the_same_name_goes_first_and_that_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.folder)
    data = bench.store(one_image)
    bench.configure(refuse="v1")
    (bench.folder / "app:v1").write_bytes(data)
    (bench.folder / "team").mkdir()
    (bench.folder / "team" / "app:v1").write_bytes(data)
    done = bench.run("team/app:v1", "--as", "team/app:v9")
    assert (done.returncode, "team/app:v1 is taken as the file" in done.stderr) == (0, True)
    done = bench.run("./team/app:v1", "--as", "team/app:v9")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_rule_sees_what_it_would_see_in_a_push(bench: Bench) -> None:
    async def fill(registry: Handler) -> None:
        subject = await push_image(registry, "v1", repository=APP, salt="x")
        await push_image(registry, repository=APP, salt="signature", subject=subject)

    bench.store(fill)
    bench.configure(look=True)
    assert '"salt": "x"} 1 True 1' in bench.run("team/app:v1").stdout


# ---- wrong inputs


WRONG: tuple[tuple[Sequence[str], str], ...] = (
    ((), "say what to judge"),
    (("no-such-file",), "there is no such file"),
    (("no/such/file.json",), "there is no such file"),
    (("./no-such-file:v1",), "there is no such file, and as a name in the registry"),
    (("Team/App:v1",), "is not a repository name"),
    (("team/app:",), "is not a tag"),
    (("team/app:not a tag",), "is not a tag"),
    (("team/app@sha256:abc",), "a sha256 digest has 64"),
    (("team/app@",), "is not a digest"),
    (("localhost:5000/team/app:v1",), "no such file"),
    (("unknown:v1",), "neither a file nor"),
    (("team/app:unknown",), "neither a file nor"),
    ((f"team/app@{ABSENT}",), "neither a file nor"),
    (("a" * 5000,), "no such file"),
    (("",), "no such file"),
    (("team/app:v1", "--as", "other"), "--as and --media-type are for files"),
    (("team/app:v1", "--media-type", OCI_INDEX), "--as and --media-type are for files"),
    (("-", "--as", "Upper/Case"), "--as: 'Upper/Case' is not a repository name"),
    (("-", "--as", "a:b:c"), "--as: "),
    (("-", "--as", ""), "--as: "),
    (("-", "-"), "once only"),
    (("--all", "x"), "takes no TARGET"),
    (("--all", "--as", "x"), "for files"),
    (("--all", "--repository", "["), "--repository: [: a pattern has no '['"),
    (("--all", "--repository", ""), "--repository: "),
    (("x:v1", "--repository", "x"), "without it"),
    (("--nonsense",), "--nonsense"),
)


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_what_makes_no_sense_is_one_sentence(bench: Bench, arguments: Sequence[str], says: str) -> None:
    bench.store(one_image)
    done = bench.run(*arguments, stdin=b"{}")
    assert done.returncode == 2, done
    assert says in done.stderr.splitlines()[-1], done
    assert done.stdout == ""


CONTENT: tuple[tuple[bytes, str], ...] = (
    (b"", "not a manifest"),
    (b"hello", "not a manifest"),
    (b"\0\xff\xfe\x1b[31m", "not a manifest"),
    (b"[]", "not a manifest"),
    (b"null", "not a manifest"),
    (b'{"a": ' * 100_000, "not a manifest"),
    (b"\xff" * 100, "not a manifest"),
    (b" " * (MANIFEST_LIMIT + 1), f"more than {MANIFEST_LIMIT} bytes"),
)


@pytest.mark.parametrize("at", range(len(CONTENT)))
def test_a_file_that_is_no_manifest_is_one_sentence(bench: Bench, at: int) -> None:
    data, says = CONTENT[at]
    bench.store(one_image)
    file = bench.folder / "file"
    file.write_bytes(data)
    for done in (bench.run(file, "--as", "a"), bench.run("-", "--as", "a", stdin=data)):
        assert says in sentence(done)
        assert done.stdout == ""
        assert "\x1b" not in done.stderr


def test_what_is_no_file_to_read_is_one_sentence(bench: Bench) -> None:
    os.mkfifo(bench.folder / "pipe")
    (bench.folder / "folder").mkdir()
    loop = bench.folder / "loop"
    loop.symlink_to(loop)
    for name, says in (
        ("pipe", "Not a regular file"),
        ("folder", "there is no oci-layout in it"),
        ("loop", "no such file"),
    ):
        assert says in sentence(bench.run(bench.folder / name))
    assert "Not a regular file" in sentence(bench.run("/dev/zero"))


def test_one_target_that_cannot_be_judged_keeps_no_other_from_it(bench: Bench, layout: Layout) -> None:
    bench.store(one_image)
    document = bench.json("nothing:here", "team/app:v1", layout.folder, "nothing", code=2)
    assert [problem.target for problem in document.problems] == ["nothing:here", "nothing"]
    assert len(document.results) == 6


def test_a_bad_configuration_is_one_sentence(bench: Bench, layout: Layout) -> None:
    wrong: tuple[tuple[dict[str, object], str], ...] = (
        ({"mode": "loud"}, "plugins.house.mode"),
        ({"refused": "x"}, "plugins.house.refused: unknown key"),
        ({"refuse": "opening"}, "house failed to open: OSError: the list is away"),
    )
    for options, says in wrong:
        bench.configure(**options)
        for arguments in ([layout.folder], ["--all"]):
            assert says in sentence(bench.run(*arguments))
    assert "no-such" in sentence(bench.run(layout.folder, "--config", "no-such.yml", environment={}))


def test_a_store_that_is_not_there_is_one_sentence_and_not_made(bench: Bench) -> None:
    before = bench.files()
    for arguments in (["--all"], ["team/app:v1"], ["-"]):
        assert "the store cannot be opened" in sentence(bench.run(*arguments, stdin=b"{}"))
    assert bench.files() == before


# ---- with the rules that come with Moorage


def test_rules_that_come_with_moorage_explain_themselves(bench: Bench) -> None:
    layout = Layout(bench.folder / "layout")
    children: list[Json] = []
    for architecture in ("amd64", "arm64", "s390x"):
        platform = {"os": "linux", "architecture": architecture}
        children.append({**layout.image(note=architecture), "platform": platform})
    layout.name(layout.index(*children), "v1")
    layout.remove(children[1])
    layout.remove(children[2])
    settings = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(bench.root)}},
        "validation": {"manifests": {"indexes": {"platforms": "list", "platformlist": ["linux/amd64", "linux/arm64"]}}},
        "plugins": {
            "platforms": {"require": ["linux/ppc64le"], "mode": "warn"},
            "required_annotations": {"indexes": {"source": None}, "repositories": ["prod/**"]},
        },
    }
    bench.file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    whole, child = bench.json(layout.folder, "--as", "team/app", code=1).results
    found = {(each.rule, each.verdict, each.refuses) for each in whole.findings if each.verdict != "accepts"}
    assert found == {
        ("sparse_index", "refuses", True),
        ("platforms", "warns", False),
        ("required_annotations", "not here", False),
    }
    (required,) = [each for each in whole.findings if each.refuses]
    assert cast("Mapping[str, object]", required.detail)["platform"] == {"os": "linux", "architecture": "arm64"}
    assert child.accepted
    prod = bench.json(layout.folder, "--as", "prod/app", code=1).results[0]
    assert ("required_annotations", True) in {(each.rule, each.refuses) for each in prod.findings}

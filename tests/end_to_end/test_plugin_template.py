"""A new plugin as its author has it: made by the command, installed, tested, and named in a configuration."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from moorage_app.cli import main
from once import made_once
from pushing import OCI_INDEX, Repository, digest_of, errors_of
from servers import configured, http, run_tool

TREE = Path(__file__).parents[2]
KINDS = ["driver", "middleware", "authenticator", "validator"]
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project of each kind, made and installed by a virtual environment that has Moorage's wheel."""
    return made_once(tmp_path_factory, "made", _make)


def _make(folder: Path) -> None:
    _build(TREE, folder)
    # This environment's pip installs into the other one, which then needs none of its own.
    run_tool(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    programs = folder / "venv/bin"
    install = [sys.executable, "-m", "pip", "--python", str(programs / "python")]
    install += ["install", "--quiet", "--disable-pip-version-check"]
    run_tool(*install, "pytest", *map(str, (folder / "wheels").glob("*.whl")))
    for kind in KINDS:
        run_tool(
            str(programs / "moorage"),
            "plugins",
            "new",
            f"moorage-my-{kind}",
            "--kind",
            kind,
            "--directory",
            str(folder),
        )
        _build(folder / f"moorage-my-{kind}", folder)
    run_tool(*install, "--no-deps", *map(str, (folder / "wheels").glob("moorage_my_*.whl")))


def _build(project: Path, folder: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "wheels")]
    subprocess.run(build, cwd=project, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def python(folder: Path) -> str:
    return str(folder / "venv/bin/python")


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where mypy keeps what it knows; no two of it may at once."""
    return tmp_path_factory.mktemp("types")


def run_in(project: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_its_own_tests(kind: str, folder: Path) -> None:
    done = run_in(folder / f"moorage-my-{kind}", str(folder / "venv/bin/pytest"), "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_typed_strictly(kind: str, folder: Path, python: str, types: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", str(types)]
    done = run_in(folder / f"moorage-my-{kind}", *command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_formatted(kind: str, folder: Path) -> None:
    for arguments in (["format", "--diff"], ["check", "--select", "E,F,I,B,UP,RUF"]):
        done = run_in(folder / f"moorage-my-{kind}", sys.executable, "-m", "ruff", *arguments, "--no-cache", ".")
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_keeps_the_contract(kind: str, folder: Path) -> None:
    done = run_in(folder, str(folder / "venv/bin/moorage"), "conformance", "plugin", f"my_{kind}", "--fast")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"my_{kind} conforms" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_in_the_readme_of_a_new_plugin_is_one(kind: str, folder: Path, tmp_path: Path) -> None:
    text = (folder / f"moorage-my-{kind}/README.md").read_text(encoding="utf-8")
    block = text.partition("```yaml\n")[2].partition("```")[0]
    file = tmp_path / "config.yml"
    file.write_text(block, encoding="utf-8")
    run_tool(str(folder / "venv/bin/moorage"), "config", "check", str(file))


def test_no_placeholder_is_left(folder: Path) -> None:
    for kind in KINDS:
        project = folder / f"moorage-my-{kind}"
        made = {path.relative_to(project): path for path in project.rglob("*") if path.is_file()}
        assert {Path(".gitignore"), Path(".github/workflows/check.yml"), Path(f"src/moorage_my_{kind}/py.typed")} <= {
            *made
        }
        for path in made.values():
            if "__pycache__" not in path.parts:
                text = path.read_text(encoding="utf-8").replace("${{ matrix.python }}", "")
                assert "$" not in text, path
                assert "template" not in path.name


def index(**annotations: str) -> bytes:
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [],
        "annotations": annotations,
    }
    return json.dumps(document).encode()


def push(client: httpx.Client, repository: str, **annotations: str) -> httpx.Response:
    return Repository(client, repository).put("v1", index(**annotations), OCI_INDEX)


def test_a_new_driver_stores_what_is_pushed(python: str, tmp_path: Path) -> None:
    storage = {"my_driver": {"most_bytes": 2_000_000}, "delete": {"enabled": True}}
    with configured(tmp_path / "root", python=python, storage=storage) as server, http(server.url) as client:
        repository = Repository(client, "team/app")
        manifest = repository.push_image("v1", [b"a layer" * 1000])
        assert repository.pull_image("v1") == manifest
        large = bytes(3_000_000)
        refused = client.put(f"{repository.open_upload()}?digest={digest_of(large)}", content=large)
        assert refused.status_code == 507
        assert client.delete(repository.manifest_url(digest_of(manifest))).status_code == 202
    assert not (tmp_path / "root").exists()


def test_a_new_middleware_stands_between_clients_and_the_registry(python: str, tmp_path: Path) -> None:
    plugins = {"my_middleware": {"frozen": ["release/**"]}}
    with configured(tmp_path / "root", python=python, plugins=plugins) as server, http(server.url) as client:
        refused = push(client, "release/app")
        assert (refused.status_code, errors_of(refused)) == (403, ["DENIED"])
        assert "release/app is frozen" in refused.text
        assert push(client, "team/app").status_code == 201
        assert Repository(client, "team/app").manifest("v1") == index()


def test_a_new_authenticator_tells_who_asks(python: str, tmp_path: Path) -> None:
    auth = {"my_authenticator": {"callers": {"ann": ABC}, "realm": "here"}}
    with configured(tmp_path / "root", python=python, auth=auth) as server, http(server.url) as client:
        asked = client.get("/v2/")
        assert (asked.status_code, asked.headers["www-authenticate"]) == (401, 'Basic realm="here"')
        assert client.get("/v2/", auth=("ann", "abd")).status_code == 401
        assert client.get("/v2/", auth=("ann", "abc")).status_code == 200
        assert client.get("/v2/", headers={"authorization": "Bearer abc"}).status_code == 200
        odd = base64.b64encode(b"ann").decode() + "!"
        assert client.get("/v2/", headers={"authorization": f"Basic {odd}"}).status_code == 401


def test_a_new_validator_judges_what_is_pushed(python: str, tmp_path: Path) -> None:
    plugins = {"my_validator": {"annotations": ["source"], "advised": ["owner"], "repositories": ["team/**"]}}
    with configured(tmp_path / "root", python=python, plugins=plugins) as server, http(server.url) as client:
        refused = push(client, "team/app")
        assert (refused.status_code, errors_of(refused)) == (403, ["DENIED"])
        assert refused.json()["errors"][0]["detail"] == {"rule": "my_validator", "missing": ["source"]}
        taken = push(client, "team/app", source="here")
        assert taken.status_code == 201
        assert "the annotation owner is advised" in taken.headers["warning"]
        assert push(client, "other/app").status_code == 201


# ---- what cannot be made


def refused(*arguments: str | Path) -> str:
    done = CliRunner().invoke(main, ["plugins", "new", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "'' is no name for a project"),
        ("-x", "No such option"),
        ("1password", "'1password' is no name for a project"),
        ("a b", "'a b' is no name for a project"),
        ("a/b", "'a/b' is no name for a project"),
        ("..", "'..' is no name for a project"),
        ("x-", "'x-' is no name for a project"),
        ("h\u00e9", "is no name for a project"),
        ("a\nb", "is no name for a project"),
        ("a" * 65, "is no name for a project"),
        ("class", "'class' would be imported as class, which is something else already"),
        ("json", "'json' would be imported as json, which is something else already"),
        ("moorage", "'moorage' would be imported as moorage, which is something else already"),
        ("Moorage.App", "'Moorage.App' would be imported as moorage_app, which is something else already"),
        ("moorage-2fa", "'moorage-2fa' would be configured as '2fa', which cannot be"),
        ("moorage-block", "'moorage-block' would be configured as 'block', which cannot be"),
        ("moorage-filesystem", "the plugin drivers offers 'filesystem' already"),
        ("moorage-read-only", "the plugin middleware offers 'read_only' already"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_one_sentence(name: str, sentence: str, tmp_path: Path) -> None:
    assert sentence in refused(name, "--kind", "driver", "--directory", tmp_path)
    assert not [*tmp_path.iterdir()]


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    made = tmp_path / "moorage-mine"
    made.mkdir()
    (made / "README.md").write_text("mine")
    assert "moorage-mine exists already; nothing was written" in refused(
        "moorage-mine", "--kind", "validator", "--directory", tmp_path
    )
    assert [(path.name, path.read_text()) for path in made.iterdir()] == [("README.md", "mine")]
    (tmp_path / "moorage-file").touch()
    assert "exists already" in refused("moorage-file", "--kind", "validator", "--directory", tmp_path)


def test_a_folder_that_cannot_be_written_is_said_in_one_sentence(tmp_path: Path) -> None:
    arguments = ("moorage-mine", "--kind", "validator", "--directory")
    assert "cannot be made: No such file or directory" in refused(*arguments, tmp_path / "no/such/folder")
    assert "cannot be made: Not a directory" in refused(*arguments, os.devnull)
    assert "cannot be made" in refused(*arguments, "/proc")


def test_the_kind_must_be_known(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["plugins", "new", "moorage-mine", "--directory", str(tmp_path)])
    assert (done.exit_code, "Missing option '--kind'" in done.stderr) == (2, True)
    assert "'rule' is not one of" in refused("moorage-mine", "--kind", "rule", "--directory", tmp_path)


def test_the_names_of_a_project_are_those_of_its_parts(tmp_path: Path) -> None:
    made = CliRunner().invoke(
        main, ["plugins", "new", "Acme.Tag-Rules", "--kind", "validator", "--directory", str(tmp_path)]
    )
    assert made.exit_code == 0
    assert "configured as acme_tag_rules" in made.output
    assert (tmp_path / "Acme.Tag-Rules/src/acme_tag_rules/rule.py").is_file()

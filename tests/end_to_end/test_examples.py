"""The example packages as their users have them: wheels in a virtual environment of their own, named in a configuration."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from images import TAG, build_image, content_of, manifest_of
from once import made_once
from pushing import Repository, digest_of, errors_of, references
from servers import Server, configuration, configured, free_port, http, run_tool, write_configuration

TREE = Path(__file__).parents[2]
EXAMPLES = sorted(each.parent for each in TREE.glob("examples/*/pyproject.toml"))
NAME = "team/app"
SOURCE = "org.opencontainers.image.source"


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh virtual environment with Moorage, the examples and what their tests need."""
    return made_once(tmp_path_factory, "examples", _make) / "venv/bin"


def _make(folder: Path) -> None:
    for project in (TREE, *EXAMPLES):
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "wheels")]
        subprocess.run(build, cwd=project, check=True, capture_output=True, timeout=120)
    # This environment's pip installs into the other one, which then needs none of its own.
    run_tool(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
    wheels = sorted(map(str, (folder / "wheels").glob("*.whl")))
    assert len(wheels) == 1 + len(EXAMPLES)
    run_tool(
        *(sys.executable, "-m", "pip", "--python", str(folder / "venv/bin/python")),
        *("install", "--quiet", "--disable-pip-version-check"),
        *(wheel if "/moorage-" in wheel else f"{wheel}[test]" for wheel in wheels),
    )


@pytest.fixture(scope="session")
def python(programs: Path) -> str:
    return str(programs / "python")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_image(tmp_path_factory.mktemp("image") / "layout")


def skopeo(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True, timeout=120)


def push(layout: Path, server: Server, *flags: str) -> "subprocess.CompletedProcess[str]":
    return skopeo("copy", "--dest-tls-verify=false", *flags, f"oci:{layout}:{TAG}", f"docker://{server.host}/{NAME}:v1")


def assert_pulled(server: Server, out: Path, layout: Path, *flags: str) -> None:
    """Check that a client pulls, as the layout `out`, exactly what `layout` has."""
    source = f"docker://{server.host}/{NAME}:v1"
    done = skopeo("copy", "--src-tls-verify=false", *flags, source, f"oci:{out}:{TAG}")
    assert done.returncode == 0, done.stderr
    assert manifest_of(out) == manifest_of(layout)
    for digest in references(manifest_of(layout)):
        assert digest_of(content_of(out, digest)) == digest


def test_the_examples_are_listed_as_plugins(programs: Path) -> None:
    listed = run_tool(str(programs / "moorage"), "plugins", environment={"COLUMNS": "200"})
    for example in EXAMPLES:
        assert f"{example.name} 1.0" in listed


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_configuration_in_the_readme_of_an_example_is_one(example: Path, programs: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (example / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "config.yml"
    file.write_text(block, encoding="utf-8")
    run_tool(str(programs / "moorage"), "config", "check", str(file))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_tests_of_an_example_pass_where_it_is_installed(example: Path, programs: Path) -> None:
    # The program, unlike `python -m pytest`, finds the installed package and not the one in the folder.
    command = [str(programs / "pytest"), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=example, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_keeps_the_contract_of_plugins(example: Path, programs: Path, tmp_path: Path) -> None:
    name = example.name.removeprefix("moorage-").replace("-", "_")
    (tmp_path / "tokens").write_text(f"ann {hashlib.sha256(b'abc').hexdigest()}\n", encoding="utf-8")
    options = {
        "sqlite": f"path={tmp_path}/{{fresh}}.db",
        "external_check": "command=[/bin/true]",
        "token_file": f"path={tmp_path}/tokens",
    }
    command = [str(programs / "moorage"), "conformance", "plugin", name, "--fast", "--option"]
    done = subprocess.run([*command, f"{name}.{options[name]}"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs_tool("skopeo", "umoci")
def test_an_image_is_kept_in_a_sqlite_file(python: str, layout: Path, tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    storage = {"sqlite": {"path": str(file)}, "delete": {"enabled": True}}
    with configured(tmp_path / "first", python=python, workers=2, storage=storage) as server:
        done = push(layout, server)
        assert done.returncode == 0, done.stderr
    assert file.stat().st_size > 1_500_000
    with configured(tmp_path / "second", python=python, workers=2, storage=storage) as server:
        assert_pulled(server, tmp_path / "out", layout)
        with http(server.url) as client:
            repository = Repository(client, NAME)
            large = bytes(range(256)) * 100_000
            ranged = client.get(
                repository.blob_url(repository.push(large)), headers={"range": "bytes=10000000-10000999"}
            )
            assert (ranged.status_code, ranged.content) == (206, large[10_000_000:10_001_000])
            digest = digest_of(manifest_of(layout))
            assert client.delete(repository.manifest_url(digest)).status_code == 202
            assert repository.tags() == set()
    assert not (tmp_path / "first").exists()


def test_a_registry_in_a_sqlite_file_keeps_to_the_specification(programs: Path, python: str, tmp_path: Path) -> None:
    storage = {"sqlite": {"path": str(tmp_path / "registry.db")}, "delete": {"enabled": True}}
    with configured(tmp_path / "root", python=python, workers=2, storage=storage) as server:
        run_tool(str(programs / "moorage"), "conformance", "registry", server.url)


@pytest.mark.needs_tool("skopeo", "umoci")
def test_a_program_judges_what_is_pushed(python: str, layout: Path, tmp_path: Path) -> None:
    program = tmp_path / "check"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$MOORAGE_REFERENCE" != unclear ] || exit 2\n'
        f"grep -q {SOURCE} || {{ echo 'images name their source'; exit 1; }}\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    rule = {"external_check": {"command": [str(program)]}}
    with configured(tmp_path / "root", python=python, plugins=rule) as server, http(server.url) as client:
        repository = Repository(client, NAME)
        refused = push(layout, server)
        assert refused.returncode != 0
        assert "images name their source" in refused.stderr
        answer = repository.put("v1", manifest_of(layout))
        assert (answer.status_code, errors_of(answer)) == (403, ["DENIED"])
        assert repository.tags() == set()
        named = json.dumps(json.loads(manifest_of(layout)) | {"annotations": {SOURCE: "https://example.com"}}).encode()
        assert repository.put("v1", named).status_code == 201
        assert repository.pull_image("v1") == named
        assert repository.put("unclear", named).status_code == 500
        assert repository.tags() == {"v1"}
        assert "ended with 2" in server.logged()


@pytest.mark.needs_tool("skopeo", "umoci")
def test_who_has_a_token_gets_in(python: str, layout: Path, tmp_path: Path) -> None:
    command = [python, "-m", "moorage_token_file", "ann"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    token = made.stderr.strip()
    file = tmp_path / "tokens"
    file.write_text(made.stdout, encoding="utf-8")
    auth = {"token_file": {"path": str(file), "realm": "here"}}
    with configured(tmp_path / "root", python=python, auth=auth) as server, http(server.url) as client:
        asked = client.get("/v2/")
        assert (asked.status_code, errors_of(asked)) == (401, ["UNAUTHORIZED"])
        assert asked.headers["www-authenticate"] == 'Basic realm="here", charset="UTF-8"'
        assert client.get("/v2/", auth=("ann", "guess")).status_code == 401
        assert client.get("/v2/", auth=("ann", token)).status_code == 200
        assert client.get("/v2/", headers={"authorization": f"Bearer {token}"}).status_code == 200
        for flags in (("--dest-no-creds",), ("--dest-creds", "ann:guess")):
            assert push(layout, server, *flags).returncode != 0
        done = push(layout, server, "--dest-creds", f"ann:{token}")
        assert done.returncode == 0, done.stderr
        assert_pulled(server, tmp_path / "out", layout, "--src-creds", f"ann:{token}")
        file.write_text("", encoding="utf-8")
        assert client.get("/v2/", auth=("ann", token)).status_code == 401
        assert token not in server.logged()


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"storage": {"sqlite": {}}}, "storage.sqlite.path"),
        ({"storage": {"sqlite": {"path": "/dev/null/registry.db"}}}, "cannot be opened"),
        ({"plugins": {"external_check": {"command": ["no-such-program"]}}}, "no program 'no-such-program'"),
        ({"auth": {"token_file": {"path": "/no/such/file"}}}, "/no/such/file"),
    ],
)
def test_what_an_example_cannot_use_is_said_in_one_sentence(
    programs: Path, tmp_path: Path, sections: dict[str, object], said: str
) -> None:
    file = write_configuration(tmp_path / "config.yml", configuration(tmp_path, free_port(), **sections))
    command = [str(programs / "moorage"), "serve", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr

"""Real clients log in, push and pull; who is not let in gets nothing."""

import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Protocol, cast

import bcrypt
import httpx
import oras.provider
import pytest

from images import TAG, build_image, manifest_of
from servers import (
    Server,
    configuration,
    configured,
    distribution,
    free_port,
    http,
    moorage,
    run_tool,
    write_configuration,
)
from signing import ISSUER, SERVICE
from token_server import TokenServer, token_server

ANN = ("ann", "a good password: with a colon")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_image(tmp_path_factory.mktemp("image") / "layout")


@pytest.fixture(scope="module")
def with_passwords(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    folder = tmp_path_factory.mktemp("passwords")
    hashed = bcrypt.hashpw(ANN[1].encode(), bcrypt.gensalt(5)).decode()
    (folder / "htpasswd").write_text(f"{ANN[0]}:{hashed}\n", encoding="utf-8")
    auth = {"htpasswd": {"realm": "the house", "path": str(folder / "htpasswd")}}
    with configured(folder / "root", workers=2, auth=auth) as server:
        yield server


@pytest.fixture(scope="module")
def tokens() -> Generator[TokenServer]:
    with token_server(dict([ANN])) as server:
        yield server


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory, tokens: TokenServer) -> Generator[Server]:
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "jwks.json").write_text(tokens.keys, encoding="utf-8")
    auth = {
        "token": {"realm": tokens.url, "service": SERVICE, "issuer": ISSUER, "jwks": str(folder / "jwks.json")},
    }
    with configured(folder / "root", workers=2, auth=auth) as server:
        yield server


@pytest.fixture(params=["with_passwords", "with_tokens"])
def server(request: pytest.FixtureRequest) -> Server:
    found: object = request.getfixturevalue(request.param)
    assert isinstance(found, Server)
    return found


@pytest.fixture
def short_path() -> Generator[Path]:
    """A folder with a short name: podman takes no run root of more than 50 characters."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def log_in(tool: str, server: Server, authfile: Path, name: str, password: str) -> subprocess.CompletedProcess[str]:
    """Log in with a tool that keeps credentials in a file."""
    command = [tool, "login", "--tls-verify=false", "--authfile", str(authfile), "-u", name, "--password-stdin"]
    return subprocess.run([*command, server.host], input=password, capture_output=True, text=True, timeout=120)


def skopeo(*arguments: str) -> str:
    return run_tool("skopeo", "--insecure-policy", *arguments)


@pytest.mark.needs_tool("skopeo", "umoci")
def test_skopeo_logs_in_pushes_and_pulls(server: Server, layout: Path, tmp_path: Path) -> None:
    authfile = tmp_path / "auth.json"
    target = f"docker://{server.host}/team/skopeo:{TAG}"
    push = ["copy", "--dest-tls-verify=false", f"oci:{layout}:{TAG}", target]
    with pytest.raises(AssertionError, match=r"unauthorized|authentication required"):
        skopeo(*push)
    assert log_in("skopeo", server, authfile, ANN[0], "a guess").returncode != 0
    done = log_in("skopeo", server, authfile, *ANN)
    assert done.returncode == 0, done.stderr
    skopeo(*push, "--authfile", str(authfile))
    out = tmp_path / "out"
    skopeo("copy", "--src-tls-verify=false", "--authfile", str(authfile), target, f"oci:{out}:{TAG}")
    assert manifest_of(out) == manifest_of(layout)
    # What is there is mounted, which needs a right to the source too.
    other = f"docker://{server.host}/team/other:{TAG}"
    flags = ["--src-tls-verify=false", "--dest-tls-verify=false", "--authfile", str(authfile)]
    skopeo("copy", *flags, target, other)
    listed = skopeo("list-tags", "--tls-verify=false", "--authfile", str(authfile), other.rpartition(":")[0])
    assert TAG in listed


@pytest.mark.needs_tool("podman", "skopeo", "umoci")
def test_podman_logs_in_and_pulls(server: Server, layout: Path, tmp_path: Path, short_path: Path) -> None:
    authfile = tmp_path / "auth.json"
    assert log_in("podman", server, authfile, ANN[0], "a guess").returncode != 0
    done = log_in("podman", server, authfile, *ANN)
    assert done.returncode == 0, done.stderr
    target = f"{server.host}/team/podman:{TAG}"
    skopeo("copy", "--dest-tls-verify=false", "--authfile", str(authfile), f"oci:{layout}:{TAG}", f"docker://{target}")
    around = ["--root", str(short_path / "r"), "--runroot", str(short_path / "n"), "--storage-driver", "vfs"]
    around += ["--tmpdir", str(short_path / "t"), "--events-backend", "none", "--cgroup-manager", "cgroupfs"]
    flags = ["--quiet", "--tls-verify=false", "--authfile", str(authfile)]
    image = run_tool("podman", *around, "pull", *flags, target).strip()
    run_tool("podman", *around, "push", *flags, image, f"docker://{target}-again")
    assert run_tool("podman", *around, "pull", *flags, f"{target}-again").strip() == image
    run_tool("podman", *around, "rmi", "--all", "--force")


class OrasAuth(Protocol):
    """What is used of `oras.auth`, which has no types of its own."""

    def set_basic_auth(self, username: str, password: str) -> None: ...
    def set_token_auth(self, token: str) -> None: ...


class OrasClient(Protocol):
    """What is used of `oras.provider.Registry`, whose own types are incomplete."""

    auth: OrasAuth

    def push(self, target: str, *, files: list[str], disable_path_validation: bool, quiet: bool) -> object: ...
    def pull(self, target: str, *, outdir: str) -> list[str]: ...


@pytest.mark.parametrize("by", ["password", "token"])
def test_oras_pushes_and_pulls(
    by: str, with_passwords: Server, with_tokens: Server, tokens: TokenServer, tmp_path: Path
) -> None:
    (tmp_path / "note.txt").write_text("hello", encoding="utf-8")
    server = with_passwords if by == "password" else with_tokens
    backend = "basic" if by == "password" else "token"
    client = cast("OrasClient", oras.provider.Registry(hostname=server.host, insecure=True, auth_backend=backend))
    if by == "password":
        client.auth.set_basic_auth(*ANN)
    else:
        # By itself it goes on with the first token that it got, which was for a pull.
        asked = {"service": SERVICE, "scope": "repository:team/oras:pull,push"}
        client.auth.set_token_auth(httpx.get(tokens.url, params=asked, auth=ANN, trust_env=False).json()["token"])
    target = f"{server.host}/team/oras:v1"
    client.push(target, files=[str(tmp_path / "note.txt")], disable_path_validation=True, quiet=True)
    (pulled,) = client.pull(target, outdir=str(tmp_path / "out"))
    assert Path(pulled).read_text(encoding="utf-8") == "hello"


def test_tokens_are_asked_for_what_is_needed_and_good_for_nothing_else(
    with_tokens: Server, tokens: TokenServer
) -> None:
    with http(with_tokens.url) as client:
        asked = client.get("/v2/closed/app/tags/list")
        assert asked.status_code == 401
        told = asked.headers["www-authenticate"]
        assert told == f'Bearer realm="{tokens.url}",service="{SERVICE}",scope="repository:closed/app:pull"'
        given = client.get(
            tokens.url, params={"service": SERVICE, "scope": "repository:closed/app:pull"}, auth=ANN
        ).json()
        refused = client.get("/v2/closed/app/tags/list", headers={"Authorization": f"Bearer {given['token']}"})
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == f'{told},error="insufficient_scope"'
        assert client.get("/v2/", headers={"Authorization": f"Bearer {given['token']}"}).status_code == 200
    log = with_tokens.log.read_text(encoding="utf-8")
    assert ANN[1] not in log
    assert given["token"] not in log


@pytest.mark.needs_tool("docker-registry")
def test_long_passwords_count_as_in_distribution(tmp_path: Path) -> None:
    hashed = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    (tmp_path / "htpasswd").write_text(f"ann:{hashed}\n", encoding="utf-8")
    auth = {"htpasswd": {"realm": "the house", "path": str(tmp_path / "htpasswd")}}
    port = free_port()
    file = write_configuration(tmp_path / "config.yml", configuration(tmp_path / "root", port, auth=auth))
    with distribution(tmp_path / "root", file=file, port=port) as server:
        theirs = [status_of(server, "x" * length) for length in (71, 72, 73, 100)]
    with moorage(file, port=port) as server:
        assert [status_of(server, "x" * length) for length in (71, 72, 73, 100)] == theirs == [401, 200, 200, 200]


def status_of(server: Server, password: str) -> int:
    with http(server.url) as client:
        return client.get("/v2/", auth=("ann", password)).status_code

"""Real clients log in at a registry that issues tokens, push and pull; and its keys change under load, unseen by them."""

import base64
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

import bcrypt
import httpx
import jwt
import oras.provider
import pytest

import house
from images import TAG, build_image, manifest_of
from servers import (
    Server,
    configuration,
    configured,
    free_port,
    http,
    moorage,
    run_tool,
    wait_for,
    write_configuration,
)

RULES = {"ann": ["team/:pull", "team/:push"], "anonymous": ["open/:pull"], "@staff": [":pull", ":push", ":delete"]}
ANN = ("ann", "ann-secret")


@contextmanager
def served(folder: Path, *, workers: int = 2, **options: object) -> Generator[Server]:
    """Run Moorage with an issuer, the test's passwords and rules."""
    plugins = folder / "plugins"
    plugins.mkdir(mode=0o755)
    shutil.copy(house.__file__, plugins / "house.py")
    (plugins / "house.py").chmod(0o644)
    port = free_port()
    settings = configuration(
        folder / "data",
        port,
        auth={"issuer": {"keys": str(folder / "keys"), **options}, "passwords": None, "everybody": None},
        plugins={"paths": ["plugins"], "house_rules": {"may": RULES}},
    )
    with moorage(write_configuration(folder / "config.yml", settings), port=port, workers=workers) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    with served(tmp_path_factory.mktemp("issuer")) as server:
        yield server


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_image(tmp_path_factory.mktemp("image") / "layout")


def token_of(client: httpx.Client, scope: str, user: tuple[str, str] = ANN) -> str:
    answer = client.get("/auth/token", params={"service": "moorage", "scope": scope}, auth=user)
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["token"]
    return token


@pytest.mark.needs_tool("skopeo", "umoci")
def test_skopeo_logs_in_pushes_and_pulls(server: Server, layout: Path, tmp_path: Path) -> None:
    file = f"--authfile={tmp_path}/auth.json"
    run_tool("skopeo", "login", "--tls-verify=false", file, "-u", "ann", "-p", "ann-secret", server.host)
    target = f"docker://{server.host}/team/skopeo:{TAG}"
    copy = ("skopeo", "--insecure-policy", "copy", file, "--dest-tls-verify=false", "--src-tls-verify=false")
    run_tool(*copy, f"oci:{layout}:{TAG}", target)
    run_tool(*copy, target, f"oci:{tmp_path}/out:{TAG}")
    assert manifest_of(tmp_path / "out") == manifest_of(layout)
    with pytest.raises(AssertionError, match="Forbidden"):
        run_tool(*copy, f"oci:{layout}:{TAG}", f"docker://{server.host}/elsewhere/skopeo:{TAG}")
    with pytest.raises(AssertionError, match=r"wrong password|unauthorized|invalid username/password"):
        run_tool("skopeo", "login", "--tls-verify=false", file, "-u", "ann", "-p", "guess", server.host)


@pytest.mark.needs_tool("skopeo", "umoci")
def test_skopeo_deletes_and_pulls_without_a_name(server: Server, layout: Path, tmp_path: Path) -> None:
    file = f"--authfile={tmp_path}/auth.json"
    run_tool("skopeo", "login", "--tls-verify=false", file, "-u", "staff-eve", "-p", "staff-eve-secret", server.host)
    target = f"docker://{server.host}/open/image:{TAG}"
    copy = ("skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", "--src-tls-verify=false")
    run_tool(*copy, file, f"oci:{layout}:{TAG}", target)
    nobody = f"--authfile={tmp_path}/nobody.json"
    (tmp_path / "nobody.json").write_text("{}")
    run_tool(*copy, nobody, target, f"oci:{tmp_path}/out:{TAG}")
    assert manifest_of(tmp_path / "out") == manifest_of(layout)
    run_tool("skopeo", "delete", file, "--tls-verify=false", target)


@pytest.mark.needs_tool("podman", "umoci")
def test_podman_logs_in_pushes_and_pulls(server: Server, layout: Path) -> None:
    # podman takes no run root of more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="e2e") as folder:
        storage = ["--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]
        storage += ["--tmpdir", f"{folder}/tmp", "--events-backend", "none", "--cgroup-manager", "cgroupfs"]
        podman = ("podman", *storage)
        file = f"--authfile={folder}/auth.json"
        run_tool(*podman, "login", "--tls-verify=false", file, "-u", "ann", "-p", "ann-secret", server.host)
        image = run_tool(*podman, "pull", "-q", f"oci:{layout}:{TAG}").strip()
        target = f"{server.host}/team/podman:{TAG}"
        run_tool(*podman, "push", file, "--tls-verify=false", image, target)
        run_tool(*podman, "rmi", "-f", image)
        assert run_tool(*podman, "pull", "-q", file, "--tls-verify=false", target).strip() == image


class OrasAuth(Protocol):
    """What is used of `oras.auth.token.TokenAuth`, whose own types are incomplete."""

    def set_token_auth(self, token: str) -> None:
        """Use a token."""


class OrasClient(Protocol):
    """What is used of `oras.provider.Registry`, whose own types are incomplete."""

    auth: OrasAuth

    def push(self, target: str, *, files: list[str], disable_path_validation: bool) -> object:
        """Push files."""

    def pull(self, target: str, *, outdir: str) -> list[str]:
        """Pull files."""
        ...


def test_oras_pushes_and_pulls(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hello.txt").write_text("hello")
    client = cast("OrasClient", oras.provider.Registry(insecure=True, auth_backend="token"))
    target = f"{server.host}/team/oras:v1"
    # It goes on with its first token, which a look at a blob asked to pull only, whatever a push then asks for.
    with http(server.url) as asking:
        client.auth.set_token_auth(token_of(asking, "repository:team/oras:pull,push"))
    client.push(target, files=["hello.txt"], disable_path_validation=True)
    (file,) = client.pull(target, outdir=str(tmp_path / "out"))
    assert Path(file).read_text() == "hello"


def test_what_docker_does(server: Server) -> None:
    """Docker asks for a refresh token at the login, keeps it instead of the password, and buys tokens by the form."""
    with http(server.url) as client:
        challenge = client.get("/v2/").headers["www-authenticate"]
        assert challenge == f'Bearer realm="{server.url}/auth/token",service="moorage"'
        login = {"account": "ann", "client_id": "docker", "offline_token": "true", "service": "moorage"}
        answer = client.get("/auth/token", params=login, auth=ANN).json()
        assert client.get("/v2/", headers={"Authorization": f"Bearer {answer['token']}"}).status_code == 200
        form = {
            "client_id": "docker",
            "grant_type": "refresh_token",
            "refresh_token": answer["refresh_token"],
            "scope": "repository:team/docker:pull,push",
            "service": "moorage",
        }
        token = client.post("/auth/token", data=form).json()["access_token"]
        opened = client.post("/v2/team/docker/blobs/uploads/", headers={"Authorization": f"Bearer {token}"})
        assert opened.status_code == 202


def test_all_workers_take_each_others_tokens(server: Server) -> None:
    assert len(server.workers) == 2
    with http(server.url) as client:
        token = token_of(client, "repository:team/app:pull")
    for _ in range(20):  # each on a connection of its own
        answer = httpx.get(
            f"{server.url}/v2/team/app/tags/list", headers={"Authorization": f"Bearer {token}"}, trust_env=False
        )
        assert answer.status_code == 404


def write_users(file: Path, **hashes: str) -> None:
    """Put the file in place whole, as a tool that cares does."""
    new = file.with_name("new")
    new.write_text("".join(f"{name}:{hashed}\n" for name, hashed in hashes.items()), encoding="utf-8")
    new.replace(file)


def hash_of(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def test_no_worker_takes_the_refresh_token_of_a_user_who_is_gone_or_has_another_password(tmp_path: Path) -> None:
    file = tmp_path / "htpasswd"
    kept, gone = hash_of("bob-secret"), hash_of("eve-secret")
    write_users(file, ann=hash_of("ann-secret"), bob=kept, eve=gone)
    auth = {"issuer": {"keys": str(tmp_path / "keys")}, "htpasswd": {"realm": "here", "path": str(file)}}
    with configured(tmp_path / "data", workers=2, auth=auth) as server:
        wait_for(lambda: len(server.workers) == 2, "two workers")

        def refreshed(token: str) -> set[int]:
            """Return what is answered on connections of their own, which both workers take."""
            form = {"grant_type": "refresh_token", "refresh_token": token}
            return {httpx.post(f"{server.url}/auth/token", data=form, trust_env=False).status_code for _ in range(16)}

        def login(name: str, password: str) -> str:
            with http(server.url) as client:
                answer = client.get("/auth/token", params={"offline_token": "true"}, auth=(name, password))
            token: str = answer.json()["refresh_token"]
            return token

        tokens = {name: login(name, f"{name}-secret") for name in ("ann", "bob", "eve")}
        assert [refreshed(token) for token in tokens.values()] == [{200}, {200}, {200}]
        write_users(file, ann=hash_of("new"), bob=kept)
        wait_for(lambda: refreshed(tokens["eve"]) == {401}, "the end of who was removed")
        wait_for(lambda: refreshed(tokens["ann"]) == {401}, "the end of the old password")
        assert refreshed(tokens["bob"]) == {200}
        assert refreshed(login("ann", "new")) == {200}


def test_keys_change_under_load_and_no_request_fails(tmp_path: Path) -> None:
    with served(tmp_path, workers=2, rotate="2s", ttl="10s", refresh=0) as server:
        kids: set[str] = set()
        wrong: list[object] = []
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                with http(server.url) as client:
                    token = token_of(client, "repository:team/app:pull")
                    kids.add(jwt.get_unverified_header(token)["kid"])
                with http(server.url) as other:
                    answer = other.get("/v2/team/app/tags/list", headers={"Authorization": f"Bearer {token}"})
                if answer.status_code != 404:
                    wrong.append((answer.status_code, answer.text))

        threads = [threading.Thread(target=load) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: len(kids) >= 4 or wrong, "four keys, one after the other", seconds=60)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert wrong == []
        published = httpx.get(f"{server.url}/.well-known/jwks.json", trust_env=False).json()
        assert kids <= {key["kid"] for key in published["keys"]}


def test_a_token_lives_over_a_restart_and_is_no_secret_of_the_store(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        with http(server.url) as client:
            token = token_of(client, "repository:team/app:pull")
        shutil.rmtree(tmp_path / "plugins")
    with served(tmp_path) as server, http(server.url) as client:
        answer = client.get("/v2/team/app/tags/list", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 404
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        assert claims["exp"] > time.time()
    assert not list((tmp_path / "data").rglob("*.jwk"))
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "keys").glob("*.jwk")] == [0o600]

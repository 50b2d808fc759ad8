"""Docker, daemon and client: it logs in, pushes and pulls. No container runs, so the daemon needs no network and no cgroup."""

import json
import os
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import bcrypt
import pytest

from servers import Server, configured, run_tool, wait_for
from tools import find_tool

pytestmark = pytest.mark.needs_tool("docker", "dockerd")

ANN = ("ann", "ann-secret")
STARTED = "API listen on"


class Docker:
    """A client of a daemon, with a folder of its own for what it remembers."""

    def __init__(self, daemon: str, folder: Path) -> None:
        """Speak to `daemon`, a URL."""
        self.configuration = folder / "config.json"
        self._environment = {"DOCKER_HOST": daemon, "DOCKER_CONFIG": str(folder)}

    def __call__(self, *arguments: str) -> str:
        """Return what a command prints, which must succeed."""
        return run_tool("docker", *arguments, environment=self._environment)


@pytest.fixture(scope="module")
def daemon() -> Generator[str]:
    """The URL of a daemon; where none can run, as where one may not mount, what needs it is skipped."""
    dockerd = find_tool("dockerd")
    assert dockerd is not None
    # Its sockets may not have long names, and its mounts keep the folder from being removed.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        log = folder / "log"
        command = [dockerd, "--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"]
        command += ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid"]
        command += ["--host", f"unix://{folder}/socket"]
        with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
            try:
                with suppress(AssertionError):
                    wait_for(lambda: STARTED in log.read_text() or process.poll() is not None, "docker's daemon")
                if STARTED not in log.read_text():
                    last = log.read_text().splitlines()[-1:]
                    pytest.skip(f"not tested, because docker's daemon does not start here: {last}")
                yield f"unix://{folder}/socket"
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()


@pytest.fixture
def docker(daemon: str, tmp_path: Path) -> Docker:
    folder = tmp_path / "docker"
    folder.mkdir()
    return Docker(daemon, folder)


@pytest.fixture(scope="module", params=["htpasswd", "issuer"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    folder = tmp_path_factory.mktemp("server")
    hashed = bcrypt.hashpw(ANN[1].encode(), bcrypt.gensalt(5)).decode()
    (folder / "htpasswd").write_text(f"{ANN[0]}:{hashed}\n", encoding="utf-8")
    auth: dict[str, object] = {"htpasswd": {"realm": "the house", "path": str(folder / "htpasswd")}}
    if request.param == "issuer":
        auth["issuer"] = {"keys": str(folder / "keys")}
    with configured(folder / "root", workers=2, auth=auth) as server:
        yield server


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system, large enough to come in many chunks."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "large").write_bytes(os.urandom(12 << 20))
    with tarfile.open(folder / "files.tar", "w") as archive:
        archive.add(folder / "large", "large")
    return folder / "files.tar"


def test_docker_logs_in_pushes_and_pulls(docker: Docker, server: Server, files: Path) -> None:
    image = f"{server.host}/team/app:v1"
    made = docker("import", str(files), image).strip()
    with pytest.raises(AssertionError, match=r"no basic auth credentials|unauthorized") as refused:
        docker("push", image)
    assert "Retrying" not in str(refused.value)
    with pytest.raises(AssertionError, match="nauthorized"):
        docker("login", "--username", ANN[0], "--password", "wrong", server.host)
    assert "Login Succeeded" in docker("login", "--username", ANN[0], "--password", ANN[1], server.host)
    said = docker("push", image)
    docker("rmi", image)
    assert "Downloaded newer image" in docker("pull", image)
    # What was pulled is what was made, and under the digest that was told.
    (pulled,) = json.loads(docker("inspect", image))
    assert pulled["Id"] == made
    (named,) = pulled["RepoDigests"]
    assert named.partition("@")[2] in said
    docker("rmi", image)
    docker("logout", server.host)
    with pytest.raises(AssertionError, match=r"no basic auth credentials|unauthorized"):
        docker("pull", image)


def test_docker_keeps_a_refresh_token_where_there_is_one(
    docker: Docker, server: Server, request: pytest.FixtureRequest
) -> None:
    docker("login", "--username", ANN[0], "--password", ANN[1], server.host)
    kept = json.loads(docker.configuration.read_bytes())["auths"][server.host]
    assert ("identitytoken" in kept) is ("issuer" in request.node.name)

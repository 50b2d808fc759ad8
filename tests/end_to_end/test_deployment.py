"""What is in `deploy/` works: the sandbox of the unit lets Moorage do its work, and so does a read-only root for nobody."""

import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

import confined
from pushing import Repository, noise
from servers import Server, http, moorage

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "moorage.service"
MIB = 1 << 20


@pytest.fixture
def folder() -> Generator[Path]:
    """A folder that everybody may look into; pytest's are for one user."""
    with tempfile.TemporaryDirectory(prefix="moorage") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def use(server: Server) -> None:
    """Push and pull what needs files, threads, several pieces, hashing that goes on, and lists."""
    numbers = random.Random(1)
    with http(server.url) as client:
        repository = Repository(client, "team/app")
        manifest = repository.push_image("v1", [noise(numbers, 5 * MIB), b"small"])
        assert repository.pull_image("v1") == manifest
        location = repository.open_upload()
        for _ in range(3):
            assert client.patch(location, content=noise(numbers, MIB)).status_code == 202
        assert client.delete(location).status_code == 204
        assert repository.tags() == {"v1"}
        assert client.delete(repository.manifest_url("v1")).status_code == 202


# ---- systemd


@pytest.mark.needs_tool("systemd-analyze")
def test_the_units_are_ones_that_systemd_takes(folder: Path) -> None:
    for name in ("moorage.service", "moorage.socket"):
        text = (DEPLOY / name).read_text(encoding="utf-8")
        # It looks whether the program is there.
        (folder / name).write_text(text.replace("/opt/moorage/bin/moorage", sys.executable), encoding="utf-8")
    units = [str(folder / name) for name in ("moorage.service", "moorage.socket")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if "moorage" in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.needs_tool("systemd-analyze")
def test_the_unit_leaves_little_exposed() -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= 1.5, done.stdout


@pytest.mark.needs_tool("systemd-analyze")
@pytest.mark.parametrize("engine", ["moorage", "stock"])
def test_moorage_works_with_the_system_calls_that_the_unit_allows(folder: Path, engine: str) -> None:
    around = [sys.executable, confined.__file__, str(UNIT)]
    with moorage(folder / "root", workers=2, around=around, environment={"REGISTRY_HTTP_ENGINE": engine}) as server:
        for process in (server.pid, *server.workers):
            status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
            assert re.search(r"^NoNewPrivs:\s1$", status, re.MULTILINE)
            assert re.search(r"^Seccomp_filters:\s[2-9]$", status, re.MULTILINE)
        use(server)
        assert server.terminate() == 0
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


@pytest.mark.needs_tool("systemd-analyze")
def test_what_the_unit_refuses_is_refused(folder: Path) -> None:
    attempts = "import ctypes, mmap, os, socket\ndef refused(call):\n    try:\n        call()\n    except PermissionError:\n        return True\n    return False\nboth = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC\nprint(refused(lambda: mmap.mmap(-1, 4096, prot=both)),\n      refused(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),\n      refused(lambda: os.chroot('/')),\n      refused(lambda: os.setuid(65534)))"
    command = [sys.executable, confined.__file__, str(UNIT), sys.executable, "-c", attempts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.stdout.split() == ["True"] * 4, done.stderr


# ---- a read-only root, and nobody


@pytest.fixture
def read_only(folder: Path) -> list[str]:
    """What runs a server as nobody, to whom one folder can be written and nothing else."""
    data = folder / "data"
    data.mkdir()
    place = shlex.quote(str(data))
    steps = [
        f"chown 65534:65534 {place}",
        f"mount --bind {place} {place}",
        "mount --bind /tmp /tmp",
        f"mount --rbind {place} {place}",
        "mount -o remount,bind,ro /tmp",
        "mount -o remount,bind,ro /",
        'exec setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all --no-new-privs "$0" "$@"',
    ]
    around = ["unshare", "--mount", "--propagation", "private", "sh", "-ec"]
    tried = subprocess.run([*around, "mount -t tmpfs tmpfs /mnt"], capture_output=True, text=True)
    if tried.returncode:
        sentence = f"not tested, because nothing can be mounted here: {tried.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence, pytrace=False)
        pytest.skip(sentence)
    return [*around, "; ".join(steps)]


@pytest.mark.needs_tool("setpriv")
def test_moorage_runs_as_nobody_where_only_its_folder_can_be_written(folder: Path, read_only: list[str]) -> None:
    with moorage(folder / "data", workers=2, around=read_only, log=folder / "log") as server:
        use(server)
        for process in (server.pid, *server.workers):
            status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
            assert re.search(r"^Uid:\s65534\s65534\s65534\s65534$", status, re.MULTILINE)
            assert re.search(r"^CapBnd:\s0+$", status, re.MULTILINE)
            mounts = Path(f"/proc/{process}/mounts").read_text(encoding="utf-8").splitlines()
            options = {line.split()[1]: line.split()[3].split(",")[0] for line in mounts}
            assert (options["/"], options["/tmp"], options[str(folder / "data")]) == ("ro", "ro", "rw")
        assert server.terminate() == 0
    said = server.log.read_text(encoding="utf-8")
    assert "Traceback" not in said
    assert '"level": "error"' not in said


# ---- the image


def test_the_image_is_built_from_what_is_in_the_tree_and_runs_as_nobody() -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    sources = [name for line in copied for name in line.split()]
    top = DEPLOY.parent
    assert [name for name in sources if not (top / name).exists()] == []
    ignored = (top / ".containerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in sources} == {line for line in ignored if line.startswith("!")}
    last = text.rpartition("\nFROM ")[2]
    assert "\nUSER 65534:65534\n" in last
    assert "\nRUN " not in last
    packages = re.findall(r'^    "(\w+)/\w+",$', (top / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(packages) <= set(sources)

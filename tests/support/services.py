"""The services that storage can be on, as processes on loopback: stand-ins for clouds, Redis, and an SFTP server.

Each is started on a free port with a temporary folder of its own, waited for until it takes connections, and ended by
its process id. A test asks for one by its fixture, which starts it once a session: whoever shares one takes a bucket,
a container, a prefix or a folder of his own.
"""

import getpass
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from servers import free_port
from tools import require_tool

START_SECONDS = 30.0
END_SECONDS = 10.0
_OUTPUT_BYTES = 6000


@dataclass(frozen=True)
class S3Service:
    """A stand-in for S3. Any key is taken, and no signature is checked."""

    url: str
    port: int
    access_key: str = "moorage"
    secret_key: str = "moorage-secret"
    region: str = "us-east-1"

    def create_bucket(self, name: str) -> str:
        """Make an empty bucket; return its name."""
        httpx.put(f"{self.url}/{name}", timeout=60, trust_env=False).raise_for_status()
        return name


# Known to everybody: it is the one that all of Azure's emulators have.
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class AzureService:
    """A stand-in for Azure's blob storage; `url` ends with the account's name."""

    url: str
    port: int
    account: str = "devstoreaccount1"
    key: str = AZURITE_KEY

    @property
    def connection_string(self) -> str:
        """What Azure's own libraries take to connect."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={self.key};BlobEndpoint={self.url};"
        )

    def create_container(self, name: str) -> str:
        """Make an empty container; return its name."""
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(self.connection_string) as client:
            client.create_container(name).close()  # pyright: ignore[reportUnknownMemberType]  # `dict` without its types
        return name


@dataclass(frozen=True)
class GCSService:
    """A stand-in for Google Cloud Storage, without credentials."""

    url: str
    port: int
    project: str = "moorage"

    def create_bucket(self, name: str) -> str:
        """Make an empty bucket; return its name."""
        where = f"{self.url}/storage/v1/b"
        params = {"project": self.project}
        httpx.post(where, params=params, json={"name": name}, timeout=60, trust_env=False).raise_for_status()
        return name


@dataclass(frozen=True)
class RedisService:
    """A Redis that keeps nothing on disk."""

    url: str
    port: int
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class SFTPService:
    """An OpenSSH server that only serves files, to the user who runs the tests."""

    url: str
    port: int
    user: str
    key_file: Path
    known_hosts: Path
    folder: Path
    host: str = "127.0.0.1"


def _output(log: Path) -> str:
    return log.read_bytes()[-_OUTPUT_BYTES:].decode(errors="replace")


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            listens = True
        except OSError:
            listens = False
        # Asked after the connection: whoever answered for one that has ended is somebody else.
        code = process.poll()
        name = Path(str(process.args[0] if isinstance(process.args, list) else process.args)).name
        if code is not None:
            raise AssertionError(f"{name} ended with {code} instead of listening on port {port}\n{_output(log)}")
        if listens:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"{name} did not listen on port {port} within {START_SECONDS:.0f} s\n{_output(log)}")
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            # The process leads a group of its own, in which only what it started can be.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(END_SECONDS)


@contextmanager
def running(
    command: Sequence[str], port: int, folder: Path, environment: Mapping[str, str] | None = None
) -> Generator[None]:
    """Run a server in `folder`, from when it listens on `port` on.

    Raises:
        AssertionError: It ended, or did not listen within 30 seconds; with what it wrote.
    """
    log = folder / "output.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        _wait_until_it_listens(process, port, log)
        yield
    finally:
        _end(process)


@contextmanager
def _temporary_folder(name: str) -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"moorage-{name}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def moto_server() -> Generator[S3Service]:
    """Run moto as S3."""
    require_tool("moto_server", "storage on S3")
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("moto_s3.py")), "--host", "127.0.0.1", "--port", str(port)]
    with _temporary_folder("moto") as folder, running(command, port, folder):
        yield S3Service(f"http://127.0.0.1:{port}", port)


@contextmanager
def ministack_server() -> Generator[S3Service]:
    """Run ministack as S3; it is strict where moto is not, and the other way round."""
    tool = require_tool("ministack", "storage on S3, by a second judge")
    port = free_port()
    with _temporary_folder("ministack") as folder:
        environment = {
            "GATEWAY_PORT": str(port),
            "MINISTACK_HOST": "127.0.0.1",
            "BIND_HOST": "127.0.0.1",
            "SERVICES": "s3",
            "SFTP_ENABLED": "0",
            "HOME": str(folder),
            "TMPDIR": str(folder),
        }
        with running([tool], port, folder, environment):
            yield S3Service(f"http://127.0.0.1:{port}", port)


@contextmanager
def azurite_server() -> Generator[AzureService]:
    """Run azurite as Azure's blob storage."""
    tool = require_tool("azurite-blob", "storage on Azure")
    port = free_port()
    command = [tool, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    command += ["--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    with _temporary_folder("azurite") as folder, running(command, port, folder):
        yield AzureService(f"http://127.0.0.1:{port}/devstoreaccount1", port)


@contextmanager
def gcs_emulator() -> Generator[GCSService]:
    """Run gcp-storage-emulator as Google Cloud Storage. It knows no preconditions and no pages: see `gcs_fake`."""
    tool = require_tool("gcp-storage-emulator", "storage on Google's, by a second judge")
    port = free_port()
    command = [tool, "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--quiet"]
    with _temporary_folder("gcs") as folder, running(command, port, folder):
        yield GCSService(f"http://127.0.0.1:{port}", port)


@contextmanager
def redis_server() -> Generator[RedisService]:
    """Run Redis."""
    tool = require_tool("redis-server", "what Redis keeps")
    port = free_port()
    command = [tool, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    with _temporary_folder("redis") as folder, running(command, port, folder):
        yield RedisService(f"redis://127.0.0.1:{port}/0", port)


_SSHD = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
AuthenticationMethods publickey
PermitRootLogin prohibit-password
AllowUsers {user}
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
Subsystem sftp internal-sftp
ForceCommand internal-sftp
"""


@contextmanager
def sftp_server() -> Generator[SFTPService]:
    """Run OpenSSH's server as whoever runs the tests, with keys made for this run."""
    tool = require_tool("sshd", "storage over SFTP")
    keygen = require_tool("ssh-keygen", "storage over SFTP")
    port, user = free_port(), getpass.getuser()
    with _temporary_folder("sftp") as folder:
        for name in ("host_key", "user_key"):
            command = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=START_SECONDS)
        (folder / "authorized_keys").write_bytes((folder / "user_key.pub").read_bytes())
        host_key = (folder / "host_key.pub").read_text(encoding="ascii")
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}", encoding="ascii")
        (folder / "sshd_config").write_text(_SSHD.format(port=port, folder=folder, user=user), encoding="utf-8")
        (folder / "files").mkdir()
        if os.geteuid() == 0:
            # Where sshd started by root puts those it does not know yet; Debian's unit makes the folder, too.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with running([tool, "-D", "-e", "-f", str(folder / "sshd_config")], port, folder):
            yield SFTPService(
                f"sftp://{user}@127.0.0.1:{port}{folder}/files",
                port,
                user,
                folder / "user_key",
                folder / "known_hosts",
                folder / "files",
            )

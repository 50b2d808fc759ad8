"""Services of clouds as processes of their own, on loopback: what tests of storage drivers run against.

Each is started on a free port, waited for until it answers, and ended by its process id. moto, ministack and the
emulator of Google's storage are Python packages; azurite, Redis and OpenSSH come from `make test-tools`.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec

from servers import free_port, wait_for

_END_SECONDS = 15.0
_ROOT = Path(__file__).resolve().parents[2]
AZURITE = _ROOT / ".tools/node_modules/.bin/azurite-blob"


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


@contextmanager
def service(
    command: Sequence[str], port: int, *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Generator[int]:
    """Run `command`, which listens on `port`; give its process id."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            cwd=folder,
            start_new_session=True,
        )

        def up() -> bool:
            if process.poll() is not None:
                output.seek(0)
                raise AssertionError(f"{command[0]} ended instead of serving: {output.read()[-3000:]!r}")
            return _answers(port)

        try:
            wait_for(up, f"an answer of {command[0]}", seconds=60)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_END_SECONDS)


def _program(name: str) -> str:
    """Return the path of a program that a Python package of the tests brought."""
    return str(Path(sys.executable).with_name(name))


class S3Service(msgspec.Struct, frozen=True):
    """A service that speaks S3, with one bucket.

    Attributes:
        url: of the service.
        bucket: that is there.
    """

    url: str
    bucket: str = "registry"

    def options(self, **more: object) -> dict[str, object]:
        """Return options of the driver `s3`, which distribution takes too."""
        return {
            "bucket": self.bucket,
            "region": "us-east-1",
            "regionendpoint": self.url,
            "accesskey": "access",
            "secretkey": "secret-canary",
            "forcepathstyle": True,
            "secure": False,
        } | more

    def make_bucket(self) -> None:
        """Make the bucket; the emulators do not look at who asks."""
        credentials = (
            "AWS4-HMAC-SHA256 Credential=access/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        )
        made = httpx.put(
            f"{self.url}/{self.bucket}", headers={"authorization": credentials}, trust_env=False, timeout=30
        )
        assert made.status_code == 200, made.text


@contextmanager
def moto() -> Generator[S3Service]:
    """Run moto."""
    port = free_port()
    with service([_program("moto_server"), "-H", "127.0.0.1", "-p", str(port)], port):
        found = S3Service(f"http://127.0.0.1:{port}")
        found.make_bucket()
        yield found


@contextmanager
def ministack() -> Generator[S3Service]:
    """Run ministack."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        service([_program("ministack")], port, environment={"GATEWAY_PORT": str(port)}, folder=Path(folder)),
    ):
        found = S3Service(f"http://127.0.0.1:{port}")
        found.make_bucket()
        yield found


AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Published by Azurite for everybody: it guards nothing."""


class AzureService(msgspec.Struct, frozen=True):
    """A service that speaks Azure Blob Storage; `url` has the account."""

    url: str


@contextmanager
def azurite() -> Generator[AzureService]:
    """Run azurite."""
    port = free_port()
    command = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    command += ["--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    with tempfile.TemporaryDirectory() as folder, service(command, port, folder=Path(folder)):
        yield AzureService(f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}")


@contextmanager
def gcs_emulator() -> Generator[str]:
    """Run gcp-storage-emulator; give its URL."""
    port = free_port()
    command = [_program("gcp-storage-emulator"), "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory"]
    with service([*command, "--default-bucket", "registry"], port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def redis() -> Generator[int]:
    """Run Redis; give its port."""
    port = free_port()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    with tempfile.TemporaryDirectory() as folder, service(command, port, folder=Path(folder)):
        yield port


class SftpService(msgspec.Struct, frozen=True):
    """OpenSSH's sftp for the user that runs the tests.

    Attributes:
        port: it listens on.
        user: that may log in, by `key_file`.
        key_file: the private key.
        folder: a folder that is there.
    """

    port: int
    user: str
    key_file: str
    folder: str


@contextmanager
def sftp() -> Generator[SftpService]:
    """Run sshd with keys of its own."""
    port = free_port()
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert sshd is not None, "sshd is not installed"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True, timeout=30
            )
        (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
        (folder / "data").mkdir()
        settings = f"""\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
PidFile {folder}/pid
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
"""
        (folder / "config").write_text(settings, encoding="ascii")
        if os.geteuid() == 0:
            # Debian's sshd wants it, and its package makes it at boot only.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        with service([sshd, "-D", "-e", "-f", str(folder / "config")], port):
            yield SftpService(port, user, str(folder / "user"), str(folder / "data"))

"""The services that tests of storage run against: they answer, and they end."""

import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from servers import free_port
from services import AzureService, GCSService, RedisService, S3Service, SFTPService, redis_server, running
from tools import require_tool


@pytest.mark.parametrize("name", ["moto", "ministack"])
def test_s3_takes_an_object_only_once_when_told_so(name: str, request: pytest.FixtureRequest) -> None:
    service: S3Service = request.getfixturevalue(name)
    where = f"{service.url}/{service.create_bucket('once')}/key"
    # Whoever says who he is may read; nobody looks at the signature.
    who = f"Credential={service.access_key}/20260102/{service.region}/s3/aws4_request"
    signed = {"Authorization": f"AWS4-HMAC-SHA256 {who}, SignedHeaders=host, Signature=0"}
    with httpx.Client(timeout=60, trust_env=False, headers=signed) as client:
        assert client.put(where, content=b"1", headers={"If-None-Match": "*"}).status_code == 200
        assert client.put(where, content=b"2", headers={"If-None-Match": "*"}).status_code == 412
        assert client.get(where).content == b"1"


def test_azure_keeps_a_blob(azurite: AzureService) -> None:
    from azure.storage.blob import BlobServiceClient

    container = azurite.create_container("kept")
    with BlobServiceClient.from_connection_string(azurite.connection_string) as client:
        blob = client.get_blob_client(container, "key")
        blob.upload_blob(b"1")
        assert blob.download_blob().readall() == b"1"


def test_google_storage_keeps_an_object(gcs_service: GCSService) -> None:
    bucket = gcs_service.create_bucket("kept")
    with httpx.Client(base_url=gcs_service.url, timeout=60, trust_env=False) as client:
        media = {"uploadType": "media", "name": "key"}
        assert client.post(f"/upload/storage/v1/b/{bucket}/o", params=media, content=b"1").status_code == 200
        assert client.get(f"/storage/v1/b/{bucket}/o/key", params={"alt": "media"}).content == b"1"


def test_redis_answers(redis: RedisService) -> None:
    with socket.create_connection((redis.host, redis.port), timeout=10) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"


def test_sftp_takes_a_file_of_whoever_has_the_key(sftp: SFTPService, tmp_path: Path) -> None:
    client = require_tool("sftp", "storage over SFTP")
    (tmp_path / "sent").write_bytes(b"1")
    command = [client, "-q", "-b", "-", "-i", str(sftp.key_file), "-P", str(sftp.port)]
    command += ["-o", f"UserKnownHostsFile={sftp.known_hosts}", "-o", "IdentitiesOnly=yes", f"{sftp.user}@{sftp.host}"]
    batch = f"put {tmp_path}/sent {sftp.folder}/received\n".encode()
    done = subprocess.run(command, input=batch, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert (sftp.folder / "received").read_bytes() == b"1"


def test_a_service_ends_with_its_context() -> None:
    with redis_server() as service:
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((service.host, service.port), timeout=10)


def test_a_service_that_ends_instead_of_listening_is_quoted(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such option')"]
    with pytest.raises(AssertionError, match="no such option"), running(command, free_port(), tmp_path):
        pass

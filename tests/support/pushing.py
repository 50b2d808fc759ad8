"""A small HTTP client that pushes and pulls, for tests that must see each request and its answer."""

import hashlib
import http.client
import json
import random
import socket
from collections.abc import Sequence
from typing import Self, cast

import httpx

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPT = {"accept": f"{OCI_MANIFEST}, {OCI_INDEX}, {DOCKER_MANIFEST}"}
"""What a client of today takes; 2.8.2 does not know wildcards."""

Json = dict[str, object]


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of `data`."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def fits(data: bytes, digest: str) -> bool:
    """Return whether `data` has `digest`."""
    return digest_of(data, digest.partition(":")[0]) == digest


def descriptor(media_type: str, data: bytes, algorithm: str = "sha256") -> Json:
    """Return the descriptor of `data`."""
    return {"mediaType": media_type, "digest": digest_of(data, algorithm), "size": len(data)}


def image(layers: Sequence[bytes], config: bytes = b"{}", *, subject: Json | None = None, **more: object) -> bytes:
    """Return an OCI image manifest of `config` and `layers`, as JSON."""
    manifest: Json = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, config),
        "layers": [descriptor(OCI_LAYER, layer) for layer in layers],
    }
    if subject is not None:
        manifest["subject"] = subject
    return json.dumps(manifest | more).encode()


def references(manifest: bytes) -> list[str]:
    """Return the digests of config and layers of an image, or of the manifests of an index."""
    parsed = cast("dict[str, list[Json]]", json.loads(manifest))
    config = cast("Json | None", parsed.get("config"))
    found = [*([config] if config else []), *parsed.get("layers", []), *parsed.get("manifests", [])]
    return [str(each["digest"]) for each in found]


class Repository:
    """One repository of a registry."""

    def __init__(self, http: httpx.Client, name: str) -> None:
        """Speak to `name` through `http`."""
        self.http = http
        self.name = name

    def blob_url(self, digest: str) -> str:
        """Return the path of a blob."""
        return f"/v2/{self.name}/blobs/{digest}"

    def manifest_url(self, reference: str) -> str:
        """Return the path of a manifest."""
        return f"/v2/{self.name}/manifests/{reference}"

    def open_upload(self) -> str:
        """Open an upload session, and return its URL."""
        opened = self.http.post(f"/v2/{self.name}/blobs/uploads/")
        assert opened.status_code == 202, opened.text
        return opened.headers["location"]

    def push(self, data: bytes, *, algorithm: str = "sha256") -> str:
        """Push a blob as most clients do, by POST and PUT; return its digest."""
        digest = digest_of(data, algorithm)
        done = self.http.put(with_digest(self.open_upload(), digest), content=data)
        assert done.status_code == 201, done.text
        return digest

    def push_at_once(self, data: bytes) -> httpx.Response:
        """Push a blob by a single POST."""
        return self.http.post(f"/v2/{self.name}/blobs/uploads/", params={"digest": digest_of(data)}, content=data)

    def put(self, reference: str, manifest: bytes, media_type: str = OCI_MANIFEST) -> httpx.Response:
        """Push a manifest."""
        return self.http.put(self.manifest_url(reference), content=manifest, headers={"content-type": media_type})

    def push_image(self, tag: str, layers: Sequence[bytes], config: bytes = b"{}", **more: object) -> bytes:
        """Push an image with its blobs; return its manifest."""
        for data in (config, *layers):
            self.push(data)
        manifest = image(layers, config, **more)  # type: ignore[arg-type] # a subject among `more` is one
        done = self.put(tag, manifest)
        assert done.status_code == 201, done.text
        return manifest

    def blob(self, digest: str) -> bytes:
        """Pull a blob that has to be there and right."""
        answer = self.http.get(self.blob_url(digest))
        assert answer.status_code == 200, answer.text
        assert fits(answer.content, digest)
        return answer.content

    def manifest(self, reference: str) -> bytes:
        """Pull a manifest that has to be there and right."""
        answer = self.http.get(self.manifest_url(reference), headers=ACCEPT)
        assert answer.status_code == 200, answer.text
        digest = answer.headers["docker-content-digest"]
        assert fits(answer.content, digest)
        assert ":" not in reference or reference == digest
        return answer.content

    def pull_image(self, reference: str) -> bytes:
        """Pull a manifest with all its blobs, which have to be there and right; return the manifest."""
        manifest = self.manifest(reference)
        for digest in references(manifest):
            self.blob(digest)
        return manifest

    def tags(self) -> set[str]:
        """Return the tags; none for a repository that is not there."""
        answer = self.http.get(f"/v2/{self.name}/tags/list")
        if answer.status_code == 404:
            return set()
        assert answer.status_code == 200, answer.text
        return set(answer.json()["tags"] or [])

    def referrers(self, digest: str) -> list[Json]:
        """Return the descriptors of the referrers of `digest`."""
        answer = self.http.get(f"/v2/{self.name}/referrers/{digest}")
        assert answer.status_code == 200, answer.text
        return cast("list[Json]", answer.json()["manifests"])


def with_digest(location: str, digest: str) -> str:
    """Return the URL that closes an upload."""
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


def catalog(http: httpx.Client) -> set[str]:
    """Return the names of all repositories."""
    answer = http.get("/v2/_catalog", params={"n": 1000})
    assert answer.status_code == 200, answer.text
    return set(answer.json()["repositories"] or [])


def acknowledged(answer: httpx.Response) -> int:
    """Return how many bytes of an upload an answer says are there."""
    first, _, last = answer.headers["range"].partition("-")
    assert first == "0"
    return int(last) + 1 if int(last) else 0


def errors_of(answer: httpx.Response) -> list[str]:
    """Return the codes of the errors that an answer has in its body, which must be as the specification says."""
    assert answer.headers["content-type"] == "application/json"
    errors = cast("list[Json]", answer.json()["errors"])
    assert errors
    assert all(error["message"] for error in errors)
    return [str(error["code"]) for error in errors]


def noise(seed: random.Random, size: int) -> bytes:
    """Return `size` bytes that nobody else has."""
    return seed.randbytes(size)


class SlowRequest:
    """A request whose body is sent, and whose answer is read, in parts."""

    def __init__(self, port: int, method: str, url: str, *, length: int = 0, receive_buffer: int = 0) -> None:
        """Connect, and send the head of a request whose body will have `length` bytes."""
        self._socket = socket.socket()
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(60)
        self._socket.connect(("127.0.0.1", port))
        head = f"{method} {url} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        if length:
            head += f"Content-Length: {length}\r\nContent-Type: application/octet-stream\r\n"
        self._socket.sendall(head.encode() + b"\r\n")
        self._method = method

    def send(self, data: bytes) -> None:
        """Send a part of the body."""
        self._socket.sendall(data)

    def answer(self) -> http.client.HTTPResponse:
        """Return the answer as soon as its head is there; its body is left to be read."""
        response = http.client.HTTPResponse(self._socket, method=self._method)
        response.begin()
        return response

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def __enter__(self) -> Self:
        """Stay until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave."""
        self.close()

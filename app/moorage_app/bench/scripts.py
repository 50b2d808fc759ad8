"""Operations of clients that take several requests, as generators: they yield a request and are sent its answer."""

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import msgspec

from moorage import OCI_MANIFEST

from .messages import Answer, Blob, Content, Endpoint, Failed, Request, blob_of, pieces

Script = Generator[Request, Answer, int]

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
OCTETS = (("Content-Type", "application/octet-stream"),)
ACCEPT = (("Accept", OCI_MANIFEST),)
CREATED = (201,)
ACCEPTED = (202,)
OK_OR_SENT_AWAY = (200, 307)


class _Described(msgspec.Struct):
    digest: str
    size: int


class Listed(msgspec.Struct):
    """What a manifest points at."""

    config: _Described
    layers: list[_Described]


@dataclass(slots=True)
class Left:
    """What has been pushed, or begun, and is to be removed."""

    manifests: list[str] = field(default_factory=list[str])
    blobs: list[str] = field(default_factory=list[str])
    uploads: set[str] = field(default_factory=set[str])


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image to push."""

    config: Blob
    layers: Sequence[Blob]
    manifest: Blob


def make_image(content: Content, layer_sizes: Sequence[int]) -> Image:
    """Make an image whose layers nobody has seen."""
    layers = [content.blob(size) for size in layer_sizes]
    diffs = [layer.digest for layer in layers]
    config = _json({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diffs}})
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": CONFIG_TYPE, "digest": config.digest, "size": config.size},
        "layers": [{"mediaType": LAYER_TYPE, "digest": each.digest, "size": each.size} for each in layers],
    }
    return Image(config, layers, _json(document))


def _json(document: object) -> Blob:
    return blob_of(json.dumps(document, separators=(",", ":")).encode())


def get_blob(at: Endpoint, digest: str, size: int, *, verify: bool, follow: bool) -> Request:
    """Return the request for a blob. Where redirects are not followed, one is as good as the bytes."""
    return at.request(
        "GET",
        f"blobs/{digest}",
        expected=(200,) if follow else OK_OR_SENT_AWAY,
        size=size,
        digest=digest if verify else None,
    )


def get_manifest(at: Endpoint, reference: str, manifest: Blob, *, verify: bool, method: str = "GET") -> Request:
    """Return the request for a manifest."""
    return at.request(
        method,
        f"manifests/{reference}",
        headers=ACCEPT,
        size=manifest.size if method == "GET" else 0,
        digest=manifest.digest if verify and method == "GET" else None,
    )


def pull_image(at: Endpoint, reference: str, manifest: Blob, *, verify: bool, follow: bool) -> Script:
    """Pull a whole image, one thing after another."""
    moved = (yield get_manifest(at, reference, manifest, verify=verify)).size
    # It is known what comes, so nothing is read out of the answer.
    listed = msgspec.json.decode(b"".join(manifest.parts), type=Listed)
    for each in (listed.config, *listed.layers):
        moved += (yield get_blob(at, each.digest, each.size, verify=verify, follow=follow)).size
    return moved


def push_blob(at: Endpoint, blob: Blob, left: Left) -> Script:
    """Push a blob: a session, and all of it at once."""
    left.blobs.append(blob.digest)
    location = yield from _open_upload(at, left)
    yield at.request("PUT", _with_digest(location, blob.digest), headers=OCTETS, body=blob, expected=CREATED)
    left.uploads.discard(location)
    return blob.size


def push_chunked(at: Endpoint, blob: Blob, chunk_size: int, left: Left) -> Script:
    """Push a blob in chunks."""
    left.blobs.append(blob.digest)
    first = location = yield from _open_upload(at, left)
    for offset, piece in pieces(blob, chunk_size):
        headers = (*OCTETS, ("Content-Range", f"{offset}-{offset + piece.size - 1}"))
        answer = yield at.request("PATCH", location, headers=headers, body=piece, expected=ACCEPTED)
        location = _location(answer)
    yield at.request("PUT", _with_digest(location, blob.digest), expected=CREATED)
    left.uploads.discard(first)
    return blob.size


def push_manifest(at: Endpoint, reference: str, manifest: Blob, left: Left) -> Script:
    """Push a manifest, and tag it when the reference is a tag."""
    left.manifests.append(manifest.digest)
    headers = (("Content-Type", OCI_MANIFEST),)
    yield at.request("PUT", f"manifests/{reference}", headers=headers, body=manifest, expected=CREATED)
    return manifest.size


def push_image(at: Endpoint, image: Image, tag: str, left: Left) -> Script:
    """Push an image: layers, configuration, manifest."""
    moved = 0
    for blob in (*image.layers, image.config):
        moved += yield from push_blob(at, blob, left)
    return moved + (yield from push_manifest(at, tag, image.manifest, left))


def _open_upload(at: Endpoint, left: Left) -> Generator[Request, Answer, str]:
    answer = yield at.request("POST", "blobs/uploads/", expected=ACCEPTED)
    location = _location(answer)
    left.uploads.add(location)
    return location


def _location(answer: Answer) -> str:
    location = answer.header("Location")
    if not location.startswith(("/", "http://", "https://")) or " " in location:
        raise Failed("location", f"an upload session at {location!r}")
    return location


def _with_digest(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"

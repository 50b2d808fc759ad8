"""Small, valid, random OCI content: what the cases push.

Nothing is ever the same twice, so that a registry that has seen an earlier run cannot pass by remembering.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import secrets
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import msgspec

__all__ = [
    "ARTIFACT_LAYER",
    "DOCKER_MANIFEST",
    "EMPTY_JSON",
    "EMPTY_TYPE",
    "IMAGE_CONFIG",
    "IMAGE_INDEX",
    "IMAGE_MANIFEST",
    "LAYER",
    "Blob",
    "Document",
    "Manifest",
    "artifact",
    "blob",
    "compressed_layer",
    "digest_of",
    "docker_image",
    "document_of",
    "encoded",
    "fallback_tag",
    "image",
    "index",
    "large_image",
    "unique",
    "unknown_digest",
]

Document: TypeAlias = dict[str, object]

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"
FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
FOREIGN_PLAIN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
ARTIFACT_LAYER = "application/vnd.example.conformance.layer"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
EMPTY_JSON = b"{}"

ANNOTATION_SIZE = 10_000
HEX_OF = {"sha256": 64, "sha512": 128}
LONGEST_ALGORITHM_IN_A_TAG = 32
LONGEST_ENCODED_IN_A_TAG = 64


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of some bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def unknown_digest(algorithm: str = "sha256") -> str:
    """Return a well-formed digest that no registry has anything for."""
    return f"{algorithm}:{secrets.token_hex(HEX_OF[algorithm] // 2)}"


def unique() -> str:
    """Return a short word that nobody has used before."""
    return secrets.token_hex(6)


def fallback_tag(digest: str) -> str:
    """Return the tag under which clients keep referrers where the registry does not."""
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm[:LONGEST_ALGORITHM_IN_A_TAG]}-{encoded[:LONGEST_ENCODED_IN_A_TAG]}"


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes with the type that a manifest gives them."""

    data: bytes
    media_type: str = LAYER
    algorithm: str = "sha256"
    pushed: bool = True

    @property
    def digest(self) -> str:
        """The digest, in the blob's algorithm."""
        return digest_of(self.data, self.algorithm)

    @property
    def descriptor(self) -> Document:
        """A plain descriptor."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as it is pushed, with everything that it points at."""

    data: bytes
    media_type: str
    blobs: tuple[Blob, ...] = ()
    children: tuple[Manifest, ...] = ()
    algorithm: str = "sha256"

    @property
    def digest(self) -> str:
        """The digest, in the manifest's algorithm."""
        return digest_of(self.data, self.algorithm)

    @property
    def descriptor(self) -> Document:
        """A plain descriptor."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}

    def written_as(self, data: bytes) -> Manifest:
        """Return the same content with other bytes for the manifest."""
        return replace(self, data=data)


def encoded(document: Mapping[str, object]) -> bytes:
    """Return JSON."""
    return msgspec.json.encode(document)


def document_of(manifest: Manifest) -> Document:
    """Return a manifest decoded."""
    return msgspec.json.decode(manifest.data, type=Document)


def blob(size: int = 512, media_type: str = LAYER, algorithm: str = "sha256") -> Blob:
    """Make a blob of random bytes."""
    return Blob(secrets.token_bytes(size), media_type, algorithm)


def compressed_layer(media_type: str = LAYER, algorithm: str = "sha256") -> tuple[Blob, str]:
    """Make a layer with one small random file in it; return it with the digest of the tar archive (its diff id)."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        content = secrets.token_bytes(256)
        entry = tarfile.TarInfo(f"file-{unique()}")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    plain = archive.getvalue()
    compress = media_type.endswith("gzip")
    data = gzip.compress(plain, mtime=0) if compress else plain
    return Blob(data, media_type, algorithm), digest_of(plain)


def image(
    *,
    layers: int = 2,
    layer_type: str = LAYER,
    algorithm: str = "sha256",
    subject: Document | None = None,
    artifact_type: str | None = None,
    annotations: Mapping[str, str] | None = None,
    foreign: bool = False,
    inline: bool = False,
    extra: Mapping[str, object] | None = None,
    config_type: str = IMAGE_CONFIG,
) -> Manifest:
    """Make an image.

    `foreign` makes its layers non-distributable: they carry URLs and are not pushed. `inline` puts the config's bytes
    into its descriptor. `extra` adds unknown fields to the manifest, to its config and to the descriptors.
    """
    made = [compressed_layer(FOREIGN_LAYER if foreign else layer_type, algorithm) for _ in range(layers)]
    config_document: Document = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {"example.conformance": unique()}},
        "rootfs": {"type": "layers", "diff_ids": [diff for _, diff in made]},
        **(extra or {}),
    }
    config = Blob(encoded(config_document), config_type, algorithm)
    config_descriptor: Document = {**config.descriptor, **(extra or {})}
    if inline:
        config_descriptor["data"] = config.data
    layer_descriptors: list[Document] = [{**layer.descriptor, **(extra or {})} for layer, _ in made]
    if foreign:
        for descriptor in layer_descriptors:
            descriptor["urls"] = [f"https://example.com/layers/{unique()}"]
    document: Document = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST}
    if artifact_type is not None:
        document["artifactType"] = artifact_type
    document |= {"config": config_descriptor, "layers": layer_descriptors}
    if subject is not None:
        document["subject"] = subject
    if annotations is not None:
        document["annotations"] = dict(annotations)
    document |= extra or {}
    blobs = [config] if foreign else [config, *(layer for layer, _ in made)]
    return Manifest(encoded(document), IMAGE_MANIFEST, tuple(blobs), (), algorithm)


def docker_image() -> Manifest:
    """Make an image of Docker's older kind."""
    layer, diff = compressed_layer(DOCKER_LAYER)
    config_document: Document = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {"example.conformance": unique()}},
        "rootfs": {"type": "layers", "diff_ids": [diff]},
    }
    config = Blob(encoded(config_document), DOCKER_CONFIG)
    document: Document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": config.descriptor,
        "layers": [layer.descriptor],
    }
    return Manifest(encoded(document), DOCKER_MANIFEST, (config, layer))


def artifact(
    *,
    artifact_type: str = "application/vnd.example.conformance.artifact",
    layers: int = 1,
    subject: Document | None = None,
    annotations: Mapping[str, str] | None = None,
    algorithm: str = "sha256",
) -> Manifest:
    """Make an artifact: an image manifest with an empty config. Without layers it has the empty blob as its layer."""
    config = Blob(EMPTY_JSON, EMPTY_TYPE, algorithm)
    content = [blob(128, ARTIFACT_LAYER, algorithm) for _ in range(layers)] or [config]
    document: Document = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "artifactType": artifact_type,
        "config": config.descriptor,
        "layers": [layer.descriptor for layer in content],
    }
    if subject is not None:
        document["subject"] = subject
    document["annotations"] = {"org.example.unique": unique(), **(annotations or {})}
    return Manifest(encoded(document), IMAGE_MANIFEST, (config, *content), (), algorithm)


def index(
    *children: Manifest,
    artifact_type: str | None = None,
    subject: Document | None = None,
    annotations: Mapping[str, str] | None = None,
    algorithm: str = "sha256",
    extra: Mapping[str, object] | None = None,
) -> Manifest:
    """Make an index of manifests; those that are images get a platform each."""
    architectures: Sequence[str] = ("amd64", "arm64", "riscv64", "s390x")
    entries: list[Document] = []
    for at, child in enumerate(children):
        entry = {**child.descriptor, **(extra or {})}
        if child.media_type == IMAGE_MANIFEST:
            entry["platform"] = {"os": "linux", "architecture": architectures[at % len(architectures)]}
        entries.append(entry)
    document: Document = {"schemaVersion": 2, "mediaType": IMAGE_INDEX}
    if artifact_type is not None:
        document["artifactType"] = artifact_type
    document["manifests"] = entries
    if subject is not None:
        document["subject"] = subject
    document["annotations"] = {"org.example.unique": unique(), **(annotations or {})}
    document |= extra or {}
    return Manifest(encoded(document), IMAGE_INDEX, (), children, algorithm)


def large_image(size: int) -> Manifest:
    """Make an image whose manifest has exactly this many bytes, most of them in annotations."""
    small = image(annotations={})
    document = document_of(small)
    annotations: dict[str, str] = {}
    document["annotations"] = annotations
    missing = size - len(encoded(document))
    number = 0
    while missing > 0:
        # Each entry costs its key, its value, four quotes, a colon and, but for the first, a comma.
        key = f"org.example.conformance.{number:05}"
        cost = len(key) + (6 if annotations else 5)
        # What is left is either filled now or large enough for one more entry.
        value = missing - cost if missing < 2 * ANNOTATION_SIZE else ANNOTATION_SIZE
        annotations[key] = "x" * value
        missing -= cost + value
        number += 1
    return small.written_as(encoded(document))

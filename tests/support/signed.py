"""A signed image for several platforms, as builders make it today: everything of it, by digest, made here."""

import gzip
import io
import json
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

from pushing import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Json, descriptor, digest_of

_PLATFORMS = ("linux/amd64", "linux/arm64/v8", "linux/s390x", "windows/amd64")
_INNER_PLATFORM = "linux/riscv64"
_ATTESTED = ("linux/amd64", "linux/arm64/v8")


class SignedImage:
    """An index of four platforms with attestations, perhaps an index in it, and a signature of the whole.

    `index` is what the tag means, `signature` the manifest that goes under `signature_tag`, as cosign has it. `children`
    are the manifests that the index lists, by what they are called here.
    """

    def __init__(self, *, inner: bool) -> None:
        self.blobs: dict[str, bytes] = {}
        self.children: dict[str, bytes] = {}
        self.inner_image = b""
        listed: list[Json] = []
        for platform in _PLATFORMS:
            self.children[platform] = self._image(platform)
            listed.append({**descriptor(OCI_MANIFEST, self.children[platform]), "platform": _parts(platform)})
        for platform in _ATTESTED:
            subject = digest_of(self.children[platform])
            name = f"attestation of {platform}"
            self.children[name] = self._attestation(subject)
            listed.append({
                **descriptor(OCI_MANIFEST, self.children[name]),
                "annotations": {
                    "vnd.docker.reference.digest": subject,
                    "vnd.docker.reference.type": "attestation-manifest",
                },
                "platform": {"os": "unknown", "architecture": "unknown"},
            })
        if inner:
            self.inner_image = self._image(_INNER_PLATFORM)
            entry = {**descriptor(OCI_MANIFEST, self.inner_image), "platform": _parts(_INNER_PLATFORM)}
            self.children["inner index"] = self._index([entry])
            listed.append(descriptor(OCI_INDEX, self.children["inner index"]))
        self.index = self._index(listed)
        payload = {"critical": {"image": {"docker-manifest-digest": digest_of(self.index)}, "type": "cosign container image signature"}}  # fmt: skip
        self.payload = json.dumps(payload).encode()
        self.signature = self._manifest(b"{}", [(self.payload, "application/vnd.dev.cosign.simplesigning.v1+json")])
        self.signature_tag = f"{digest_of(self.index).replace(':', '-')}.sig"

    def _keep(self, data: bytes) -> bytes:
        self.blobs[digest_of(data)] = data
        return data

    def _index(self, listed: Sequence[Json]) -> bytes:
        return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()

    def _manifest(self, config: bytes, layers: Sequence[tuple[bytes, str]]) -> bytes:
        document: Json = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, self._keep(config)),
            "layers": [descriptor(media_type, self._keep(data)) for data, media_type in layers],
        }
        return json.dumps(document).encode()

    def _image(self, platform: str) -> bytes:
        content = random.Random(platform).randbytes(20_000)
        unpacked = io.BytesIO()
        with tarfile.open(fileobj=unpacked, mode="w") as archive:
            member = tarfile.TarInfo("data")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        layer = gzip.compress(unpacked.getvalue(), mtime=0)
        config = {**_parts(platform), "config": {}, "rootfs": {"type": "layers", "diff_ids": [digest_of(unpacked.getvalue())]}}  # fmt: skip
        return self._manifest(json.dumps(config).encode(), [(layer, f"{OCI_LAYER}+gzip")])

    def _attestation(self, subject: str) -> bytes:
        statement = json.dumps({
            "_type": "https://in-toto.io/Statement/v0.1",
            "subject": [{"digest": subject}],
        }).encode()
        config = {"os": "unknown", "architecture": "unknown", "config": {}, "rootfs": {"type": "layers", "diff_ids": [digest_of(statement)]}}  # fmt: skip
        return self._manifest(json.dumps(config).encode(), [(statement, "application/vnd.in-toto+json")])

    def write_layout(self, folder: Path) -> Path:
        """Write everything as an OCI layout whose tags are `v1` and the signature's."""
        target = folder / "blobs/sha256"
        target.mkdir(parents=True)
        manifests = [self.index, self.signature, *self.children.values(), self.inner_image]
        for data in (*self.blobs.values(), *manifests):
            (target / digest_of(data).partition(":")[2]).write_bytes(data)
        tagged = [
            {
                **descriptor(media_type, data),
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }
            for tag, media_type, data in (
                ("v1", OCI_INDEX, self.index),
                (self.signature_tag, OCI_MANIFEST, self.signature),
            )
        ]
        (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": tagged}), encoding="utf-8")
        (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="utf-8")
        return folder


def _parts(platform: str) -> Json:
    os, architecture, *variant = platform.split("/")
    return {"os": os, "architecture": architecture, **({"variant": variant[0]} if variant else {})}

"""Images to push, made by umoci from files that are made here: nothing is fetched."""

import json
import random
from pathlib import Path
from typing import cast

from pushing import OCI_INDEX, OCI_MANIFEST, Json, digest_of
from servers import run_tool

TAG = "v1"


def build_image(folder: Path, seed: int = 1, *, architecture: str = "amd64") -> Path:
    """Build an image of three layers as the OCI layout `folder`, with the tag `v1`; return the layout."""
    files = folder.with_name(f"{folder.name}-files")
    files.mkdir(parents=True)
    run_tool("umoci", "init", "--layout", str(folder))
    target = f"{folder}:{TAG}"
    run_tool("umoci", "new", "--image", target)
    numbers = random.Random(seed)
    for at, size in enumerate((1_000, 70_000, 1_500_000)):
        source = files / f"file{at}"
        source.write_bytes(numbers.randbytes(size))
        run_tool("umoci", "insert", "--rootless", "--image", target, str(source), f"/data/file{at}")
    run_tool("umoci", "config", "--image", target, "--architecture", architecture, "--config.cmd", "/data/file0")
    return folder


def manifest_of(layout: Path) -> bytes:
    """Return the manifest that the tag of `layout` means."""
    return content_of(layout, str(_index(layout)[0]["digest"]))


def content_of(layout: Path, digest: str) -> bytes:
    """Return the blob `digest` of `layout`."""
    algorithm, _, encoded = digest.partition(":")
    return (layout / "blobs" / algorithm / encoded).read_bytes()


def _index(layout: Path) -> list[Json]:
    parsed = cast("dict[str, list[Json]]", json.loads((layout / "index.json").read_bytes()))
    return parsed["manifests"]


def build_index(folder: Path) -> Path:
    """Build a layout whose tag `v1` means an index of images for two architectures."""
    architectures = ("amd64", "arm64")
    descriptors: list[Json] = []
    for seed, architecture in enumerate(architectures):
        single = build_image(folder.with_name(f"{folder.name}-{architecture}"), seed + 10, architecture=architecture)
        manifest = manifest_of(single)
        for blob in (single / "blobs/sha256").iterdir():
            target = folder / "blobs/sha256" / blob.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(blob.read_bytes())
        descriptors.append({
            "mediaType": OCI_MANIFEST,
            "digest": digest_of(manifest),
            "size": len(manifest),
            "platform": {"architecture": architecture, "os": "linux"},
        })
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}).encode()
    digest = digest_of(index)
    (folder / "blobs/sha256" / digest.partition(":")[2]).write_bytes(index)
    tagged: Json = {"mediaType": OCI_INDEX, "digest": digest, "size": len(index)}
    tagged["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}), encoding="utf-8")
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="utf-8")
    return folder

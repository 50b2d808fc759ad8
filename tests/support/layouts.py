"""OCI image layouts for tests, made of what is given: whole, sparse or damaged."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from content import CONFIG_TYPE, LAYER_TYPE
from moorage import OCI_INDEX, OCI_MANIFEST, Digest

REFERENCE_NAME = "org.opencontainers.image.ref.name"

Json = dict[str, object]


class Layout:
    """A layout below `folder`, which grows by what is added."""

    def __init__(self, folder: Path) -> None:
        """Begin one without content."""
        self.folder = folder
        self._named: list[Json] = []
        folder.mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="utf-8")
        self._write_index()

    def _write_index(self) -> None:
        index: Json = {"schemaVersion": 2, "manifests": self._named}
        (self.folder / "index.json").write_text(json.dumps(index), encoding="utf-8")

    def path(self, digest: Digest | str) -> Path:
        """Return where content lies."""
        algorithm, _, encoded = digest.partition(":")
        return self.folder / "blobs" / algorithm / encoded

    def blob(self, data: bytes, media_type: str = LAYER_TYPE, **more: object) -> Json:
        """Add content; return its descriptor."""
        digest = Digest.of(data)
        self.path(digest).parent.mkdir(parents=True, exist_ok=True)
        self.path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": str(digest), "size": len(data), **more}

    def image(self, *layers: Json, **more: object) -> Json:
        """Add an image; return its descriptor."""
        config = self.blob(b"{}", CONFIG_TYPE)
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": list(layers), **more}
        return self.blob(json.dumps(document).encode(), OCI_MANIFEST)

    def index(self, *children: Json, **more: object) -> Json:
        """Add an index; return its descriptor."""
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(children), **more}
        return self.blob(json.dumps(document).encode(), OCI_INDEX)

    def name(self, descriptor: Json, tag: str | None = None) -> Json:
        """Have `index.json` name a manifest."""
        annotated = {**descriptor, "annotations": {REFERENCE_NAME: tag}} if tag is not None else descriptor
        self._named.append(annotated)
        self._write_index()
        return descriptor

    def remove(self, descriptor: Json) -> None:
        """Take the content of a descriptor away."""
        self.path(str(descriptor["digest"])).unlink()

    def archive(self, path: Path, names: Sequence[str] = (".",)) -> Path:
        """Write it as a tar."""
        with tarfile.open(path, "w") as archive:
            for name in names:
                archive.add(self.folder / name, name)
        return path


def manifest_in(layout: Layout, descriptor: Json) -> bytes:
    """Return the bytes of a manifest."""
    return layout.path(str(descriptor["digest"])).read_bytes()

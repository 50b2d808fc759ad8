"""The rule that manifests, and what they are made of, are not too large.

What a descriptor says of a size is the client's word and nobody's promise, so the size of what is stored counts. Only of
what is not here, such as layers that must not be distributed, the descriptor is believed.
"""

import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, ClassVar, Self

import msgspec

from moorage import (
    BlobUnknown,
    Descriptor,
    Digest,
    Handler,
    Manifest,
    PullBlob,
    PushManifest,
    Refused,
    RepositoryName,
    Rule,
    hookimpl,
    map_bounded,
)

_SIZE = re.compile(r"(\d{1,18})(?:\.(\d{1,6}))? ?(?:([KMGTP])(i?)B?|B)?", re.ASCII | re.IGNORECASE)
_LOOKS_AT_ONCE = 16
_REMEMBERED = 10_000

Count = Annotated[int, msgspec.Meta(ge=0)]


class Size(int):
    """A number of bytes, written as `10GiB` (1024), `500MB` (1000), or plainly."""

    setting_schema: ClassVar[dict[str, object]] = {"type": ["integer", "string"], "minimum": 0}

    @classmethod
    def from_setting(cls, value: object) -> Self:
        """Return the size that a configuration holds.

        Raises:
            ValueError: it is none; says what is allowed.
        """
        match = _SIZE.fullmatch(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
        if match is None:
            raise ValueError("a size such as 10GiB, 500MB or 1048576")
        whole, fraction, unit, binary = match.groups()
        factor = (1024 if binary else 1000) ** (" KMGTP".index(unit.upper()) if unit else 0)
        scale: int = 10 ** len(fraction or "")
        return cls(int(whole + (fraction or "")) * factor // scale)


class SizeLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `plugins: {size_limits: {...}}`; what is not given is not limited.

    Attributes:
        manifest: the most bytes of a manifest or index itself.
        config: the most bytes of a config.
        layer: the most bytes of one layer or other blob.
        total: the most bytes of config and layers together, each content counted once.
        layers: the most layers or other blobs.
        children: the most manifests in an index.
    """

    manifest: Size | None = None
    config: Size | None = None
    layer: Size | None = None
    total: Size | None = None
    layers: Count | None = None
    children: Count | None = None


class JudgeSizes:
    """Judges how large a manifest is, and what it is made of."""

    def __init__(self, options: SizeLimits) -> None:
        """Take at most what `options` say."""
        self._options = options
        # A digest is of one content, so its size never changes: layers that many images share are looked up once.
        self._known: dict[Digest, int] = {}

    @hookimpl
    async def validate_manifest(self, push: PushManifest, manifest: Manifest, registry: Handler) -> None:
        """Refuse a manifest that is too large.

        Raises:
            Refused: it is (413); the sentence names each limit.
        """
        options = self._options
        # Nothing is looked up for what can be told by the manifest alone.
        sizes: Mapping[Digest, int] = {}
        if (options.config, options.layer, options.total) != (None, None, None) and not manifest.is_index:
            sizes = await self._sizes(registry, push.repository, manifest)
        exceeded = dict(self._exceeded(manifest, sizes))
        if exceeded:
            raise Refused("; ".join(exceeded.values()), status=413, detail={"limits": list(exceeded)})

    async def _sizes(self, registry: Handler, repository: RepositoryName, manifest: Manifest) -> dict[Digest, int]:
        """Return how large config and layers are, each content once."""
        wanted = {descriptor.digest: descriptor for descriptor in manifest.references()}
        sizes = {digest: self._known[digest] for digest in wanted if digest in self._known}
        if len(self._known) + len(wanted) > _REMEMBERED:
            self._known.clear()

        async def look(descriptor: Descriptor) -> None:
            try:
                blob = await registry(PullBlob(repository=repository, digest=descriptor.digest))
            except BlobUnknown:
                sizes[descriptor.digest] = descriptor.size
            else:
                sizes[descriptor.digest] = self._known[descriptor.digest] = blob.descriptor.size

        unknown = [descriptor for digest, descriptor in wanted.items() if digest not in sizes]
        await map_bounded(look, unknown, limit=_LOOKS_AT_ONCE)
        return sizes

    def _exceeded(self, manifest: Manifest, sizes: Mapping[Digest, int]) -> Iterator[tuple[str, str]]:
        """Give the name of each limit that is exceeded, with a sentence."""
        options, config = self._options, manifest.config
        size = len(manifest.data)
        if options.manifest is not None and size > options.manifest:
            yield "manifest", f"the manifest has {size} bytes; at most {options.manifest} are taken"
        size = sizes.get(config.digest, 0) if config else 0
        if options.config is not None and size > options.config:
            yield "config", f"the config has {size} bytes; at most {options.config} are taken"
        size, digest = max(((sizes.get(layer.digest, 0), layer.digest) for layer in manifest.blobs), default=(0, ""))
        if options.layer is not None and size > options.layer:
            yield "layer", f"the layer {digest} has {size} bytes; at most {options.layer} are taken"
        size = sum(sizes.values())
        if options.total is not None and size > options.total:
            yield "total", f"config and layers have {size} bytes together; at most {options.total} are taken"
        count = len(manifest.blobs)
        if options.layers is not None and count > options.layers:
            yield "layers", f"there are {count} layers; at most {options.layers} are taken"
        count = len(manifest.manifests)
        if options.children is not None and count > options.children:
            yield "children", f"the index lists {count} manifests; at most {options.children} are taken"


@asynccontextmanager
async def _open(options: SizeLimits) -> AsyncGenerator[object]:
    yield JudgeSizes(options)


@hookimpl
def register_rules() -> Mapping[str, object]:
    """Offer the rule."""
    return {"size_limits": Rule(SizeLimits, _open)}

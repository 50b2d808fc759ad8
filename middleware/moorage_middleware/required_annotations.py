"""The rule that manifests carry certain annotations, and images certain labels.

Annotations stand in the manifest; labels in its config, which is pulled for them. An index is judged by its own
annotations, and what it lists was judged when it was pushed.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import msgspec

from moorage import (
    BlobUnknown,
    Descriptor,
    Glob,
    Handler,
    Manifest,
    PullBlob,
    PushManifest,
    Refused,
    Regex,
    RepositoryName,
    Rule,
    hookimpl,
)

_CONFIG_LIMIT = 4 << 20
_SHOWN = 100
_IMAGE_CONFIGS = frozenset({
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
})

Required = Mapping[str, Regex | None]
"""Keys, each with a pattern for the whole of its value, or None where any value will do."""


class RequiredAnnotations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `plugins: {required_annotations: {...}}`.

    Attributes:
        manifests: annotations that each manifest must have that is no index.
        indexes: annotations that each index must have.
        labels: labels that the config of each image must have.
        artifacts: patterns of the artifact types that are judged; without any all are.
    """

    manifests: Required = {}
    indexes: Required = {}
    labels: Required = {}
    artifacts: tuple[Glob, ...] = ()


class _ImageConfig(msgspec.Struct, frozen=True, rename={"labels": "Labels"}):
    labels: Mapping[str, str] | None = None


class _Image(msgspec.Struct, frozen=True):
    """What is read of an image's config."""

    config: _ImageConfig | None = None


class JudgeAnnotations:
    """Judges what a manifest says of itself."""

    def __init__(self, options: RequiredAnnotations) -> None:
        """Require what `options` say."""
        self._options = options

    @hookimpl
    async def validate_manifest(self, push: PushManifest, manifest: Manifest, registry: Handler) -> None:
        """Refuse a manifest that lacks something.

        Raises:
            Refused: it does; the sentence names each key.
        """
        options = self._options
        artifact_type = manifest.referrer_descriptor().artifact_type or ""
        if options.artifacts and not any(pattern.matches(artifact_type) for pattern in options.artifacts):
            return
        required = options.indexes if manifest.is_index else options.manifests
        wrong = _wrong(required, manifest.annotations, "annotation")
        config = manifest.config
        if options.labels and config is not None and config.media_type in _IMAGE_CONFIGS:
            wrong |= _wrong(options.labels, await _labels(registry, push.repository, config), "label")
        if wrong:
            raise Refused("; ".join(wrong.values()), detail={"keys": list(wrong)})


def _wrong(required: Required, found: Mapping[str, str], kind: str) -> dict[str, str]:
    """Return in words what of `required` is not as it should be in `found`, by key."""
    wrong: dict[str, str] = {}
    for key, pattern in required.items():
        value = found.get(key)
        if value is None:
            wrong[key] = f"the {kind} {key} is missing"
        elif pattern is not None and not pattern.fullmatch(value):
            shown = value if len(value) <= _SHOWN else value[:_SHOWN] + "…"
            wrong[key] = f"the {kind} {key} is {shown!r} and must match {pattern.text}"
    return wrong


async def _labels(registry: Handler, repository: RepositoryName, config: Descriptor) -> Mapping[str, str]:
    """Return the labels of an image.

    Raises:
        Refused: its config is not here, is too large, or cannot be read.
    """
    try:
        blob = await registry(PullBlob(repository=repository, digest=config.digest))
    except BlobUnknown:
        raise Refused(f"the config {config.digest} is not here, so its labels cannot be judged") from None
    if blob.descriptor.size > _CONFIG_LIMIT:
        raise Refused(f"the config {config.digest} has more than {_CONFIG_LIMIT} bytes, so its labels are not judged")
    async with blob.open(0, None) as reader:
        data = b"".join([chunk async for chunk in reader])
    try:
        image = msgspec.json.decode(data, type=_Image)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"the config {config.digest} is no image's config: {error}") from None
    return (image.config and image.config.labels) or {}


@asynccontextmanager
async def _open(options: RequiredAnnotations) -> AsyncGenerator[object]:
    yield JudgeAnnotations(options)


@hookimpl
def register_rules() -> Mapping[str, object]:
    """Offer the rule."""
    return {"required_annotations": Rule(RequiredAnnotations, _open)}

"""The rule that only certain kinds of artifacts, layers, configs and manifests are taken."""

from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from moorage import Glob, Manifest, Refused, Rule, hookimpl

_SHOWN = 5


class TypePattern(Glob):
    """A pattern of media types, which have no case."""

    def __init__(self, text: str) -> None:
        """Understand `text`.

        Raises:
            ValueError: it is no pattern.
        """
        super().__init__(text.lower())


class Listed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which media types are taken: with `allow` those alone, and never what is in `deny`."""

    allow: tuple[TypePattern, ...] = ()
    deny: tuple[TypePattern, ...] = ()

    def takes(self, media_type: str) -> bool:
        """Return whether `media_type` is taken, whatever its parameters."""
        plain = media_type.partition(";")[0].strip().lower()
        if any(pattern.matches(plain) for pattern in self.deny):
            return False
        return not self.allow or any(pattern.matches(plain) for pattern in self.allow)


class MediaTypes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `plugins: {media_types: {...}}`.

    Attributes:
        artifacts: artifact types: a manifest's own, else, if it is no index, the media type of its config, else its own.
        layers: media types of layers and other blobs.
        configs: media types of configs.
        manifests: media types of the manifests themselves, indexes too.
    """

    artifacts: Listed = Listed()
    layers: Listed = Listed()
    configs: Listed = Listed()
    manifests: Listed = Listed()


class JudgeTypes:
    """Judges of what kind a manifest and its parts are."""

    def __init__(self, options: MediaTypes) -> None:
        """Take what `options` say."""
        self._options = options

    @hookimpl
    async def validate_manifest(self, manifest: Manifest) -> None:
        """Refuse a manifest of a kind, or with parts of a kind, that is not taken.

        Raises:
            Refused: it is; the sentence names what is not taken.
        """
        refused = list(dict.fromkeys(self._refused(manifest)))
        if refused:
            named = ", ".join(f"{part} of type {media_type or 'none'}" for part, media_type in refused[:_SHOWN])
            more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
            types = [{"part": part, "mediaType": media_type} for part, media_type in refused]
            raise Refused(f"not taken here: {named}{more}", detail={"types": types})

    def _refused(self, manifest: Manifest) -> Iterator[tuple[str, str]]:
        """Give what is not taken: which part, and its type."""
        options = self._options
        if not options.manifests.takes(manifest.media_type):
            yield "manifests", manifest.media_type
        artifact_type = manifest.referrer_descriptor().artifact_type
        # An index without an artifact type is no artifact, only a list of some.
        if artifact_type or not manifest.is_index:
            artifact_type = artifact_type or manifest.media_type
            if not options.artifacts.takes(artifact_type):
                yield "artifacts", artifact_type
        if manifest.config is not None and not options.configs.takes(manifest.config.media_type):
            yield "configs", manifest.config.media_type
        for layer in manifest.blobs:
            if not options.layers.takes(layer.media_type):
                yield "layers", layer.media_type


@asynccontextmanager
async def _open(options: MediaTypes) -> AsyncGenerator[object]:
    yield JudgeTypes(options)


@hookimpl
def register_rules() -> Mapping[str, object]:
    """Offer the rule."""
    return {"media_types": Rule(MediaTypes, _open)}

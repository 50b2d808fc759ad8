"""Manifests: the JSON documents that are pushed by tag or digest, their exact bytes, and what they point at.

Answers for the OCI image spec ("Image Manifest", "Image Index", "Content Descriptors"), Docker's schema 2 manifests
and lists, and the rules of the OCI distribution spec for `subject` and referrers. Rules this file keeps:

- Bytes are never written anew: what is pushed is what is stored and served.
- Whatever two readers could read in two ways is refused on push: duplicate keys, keys that differ from a known one
  only in case (Go's readers match them, others do not), one document with the parts of both a manifest and an index.
- On read no JSON object is refused that was once stored: the media type is found as distribution finds it.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, cast

import msgspec

from ._digests import Digest
from ._errors import DigestInvalid, ManifestInvalid

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

MANIFEST_LIMIT = 4 << 20
"""The most bytes of a manifest. The spec asks for at least this; distribution has the same."""

REFERENCE_LIMIT = 5000
"""The most descriptors in one manifest: each costs a look into the store."""

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
_MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_DOCKER_SIGNED_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Platform(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """For which machine a manifest of an index is."""

    architecture: str = ""
    os: str = ""
    os_version: str | None = msgspec.field(name="os.version", default=None)
    os_features: tuple[str, ...] | None = msgspec.field(name="os.features", default=None)
    variant: str | None = None
    features: tuple[str, ...] | None = None


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What a piece of content is: media type, digest, size in bytes, and what else was said about it."""

    media_type: str
    digest: Digest
    size: _Size
    urls: tuple[str, ...] | None = None
    annotations: Mapping[str, str] | None = None
    data: str | None = None
    platform: Platform | None = None
    artifact_type: str | None = None


class _Document(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All that this registry reads of a manifest of any type; everything else passes."""

    schema_version: int | None = None
    media_type: str | None = None
    artifact_type: str | None = None
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] | None = None
    blobs: tuple[Descriptor, ...] | None = None
    manifests: tuple[Descriptor, ...] | None = None
    subject: Descriptor | None = None
    annotations: Mapping[str, str] | None = None


class _Outline(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What tells the type of a manifest, with values of any kind."""

    schema_version: object = None
    media_type: object = None
    manifests: object = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest of any type: its bytes as pushed, and what they say.

    `manifests` is what an index lists; `config` and `blobs` are what any other manifest is made of (an image's layers,
    an artifact's blobs). A manifest that is no index may be of any media type.
    """

    descriptor: Descriptor
    data: bytes
    artifact_type: str | None
    config: Descriptor | None
    blobs: tuple[Descriptor, ...]
    manifests: tuple[Descriptor, ...]
    subject: Descriptor | None
    annotations: Mapping[str, str]

    @property
    def media_type(self) -> str:
        """The media type, without parameters."""
        return self.descriptor.media_type

    @property
    def digest(self) -> Digest:
        """The digest by which the manifest was pushed or is stored."""
        return self.descriptor.digest

    @property
    def is_index(self) -> bool:
        """Whether it lists manifests rather than being made of blobs."""
        return self.media_type in INDEX_TYPES

    def references(self) -> Iterator[Descriptor]:
        """Give what must be there before the manifest is: config, blobs, listed manifests; not the subject."""
        if self.config is not None:
            yield self.config
        yield from self.blobs
        yield from self.manifests

    def referrer_descriptor(self) -> Descriptor:
        """Return the descriptor by which the subject's list of referrers names this manifest.

        The artifact type is the manifest's own, else, for a manifest that is no index, its config's media type; the
        annotations are the manifest's (OCI distribution spec, "Listing Referrers").
        """
        artifact_type = self.artifact_type
        if not artifact_type and self.config is not None and not self.is_index:
            artifact_type = self.config.media_type
        return Descriptor(
            media_type=self.media_type,
            digest=self.digest,
            size=self.descriptor.size,
            artifact_type=artifact_type or None,
            annotations=self.annotations or None,
        )


def _decode_digest(expected: type, value: object) -> object:
    # Digest is the only type of these structs that msgspec does not know itself.
    if expected is not Digest or not isinstance(value, str):
        raise ValueError(f"Expected a digest, got `{type(value).__name__}`")
    try:
        return Digest(value)
    except DigestInvalid as error:
        raise ValueError(error.message) from None


def encode_json(value: object) -> bytes:
    """Return `value`, made of structs, plain containers and strings, as JSON."""
    return msgspec.json.encode(value, enc_hook=str)


_documents = msgspec.json.Decoder(_Document, dec_hook=_decode_digest)
_outlines = msgspec.json.Decoder(_Outline)
_descriptors = msgspec.json.Decoder(Descriptor, dec_hook=_decode_digest)


def parse_descriptor(data: bytes) -> Descriptor:
    """Return the descriptor that `data` is as JSON.

    Raises:
        ManifestInvalid: it is none.
    """
    try:
        return _descriptors.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestInvalid(f"not a descriptor: {error}") from None


def parse_pushed(media_type: str, data: bytes, digest: Digest) -> Manifest:
    """Return the manifest that is pushed as `media_type` with bytes `data`, whose digest is `digest`.

    Raises:
        ManifestInvalid: the bytes are no manifest of that type, or can be read in more than one way.
    """
    document = _decode(data)
    _refuse_ambiguity(data)
    known = media_type in _MANIFEST_TYPES or media_type in INDEX_TYPES
    if known and document.schema_version != 2:
        raise ManifestInvalid(f"schemaVersion must be 2, found {document.schema_version}")
    optional = media_type in {OCI_MANIFEST, OCI_INDEX}
    if not media_type or (document.media_type != media_type and not (optional and document.media_type is None)):
        raise ManifestInvalid(
            f"Content-Type says {media_type!a}, the manifest's own mediaType says {document.media_type!a}"
        )
    if media_type in INDEX_TYPES:
        # Go writes an empty list as null. Without a mediaType of its own such an index could not be told when read.
        if document.manifests is None and document.media_type is None:
            raise ManifestInvalid("an index has a list `manifests`")
        if document.config is not None or document.layers is not None:
            raise ManifestInvalid("an index has neither `config` nor `layers`")
    elif known:
        if document.config is None:
            raise ManifestInvalid("an image manifest has a `config`")
        if document.manifests is not None:
            raise ManifestInvalid("an image manifest has no `manifests`")
    manifest = _manifest(document, media_type, data, digest)
    count = sum(1 for _ in manifest.references())
    if count > REFERENCE_LIMIT:
        raise ManifestInvalid(f"the manifest has {count} references; at most {REFERENCE_LIMIT} are taken")
    return manifest


def parse_stored(data: bytes, digest: Digest) -> Manifest:
    """Return the manifest that lies in the store as `data`.

    No media type is stored beside a manifest, so it is found in the bytes: its own `mediaType`; without one it is an
    OCI index if it has `manifests`, else an OCI manifest (distribution 2.1). Schema 1, which old registries left
    behind, is told by its version. What others took and this registry would not, such as a descriptor without a size,
    is served all the same, but taken to point at nothing.

    Raises:
        ManifestInvalid: the bytes are no manifest at all.
    """
    try:
        document = _decode(data)
    except ManifestInvalid:
        document = _decode_outline(data)
    if document.media_type:
        media_type = document.media_type
    elif document.schema_version == 1:
        media_type = _DOCKER_SIGNED_SCHEMA_1
    else:
        media_type = OCI_MANIFEST if document.manifests is None else OCI_INDEX
    return _manifest(document, media_type, data, digest)


def _decode(data: bytes) -> _Document:
    try:
        return _documents.decode(data)
    except RecursionError:
        raise ManifestInvalid("the manifest is nested too deeply") from None
    except UnicodeDecodeError:
        raise ManifestInvalid("the manifest is not UTF-8") from None
    except msgspec.MsgspecError as error:
        raise ManifestInvalid(f"not a manifest: {error}") from None


def _decode_outline(data: bytes) -> _Document:
    """Return as much of a manifest as tells its type, whatever else is in it."""
    try:
        outline = _outlines.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ManifestInvalid(f"not a manifest: {error}") from None
    return _Document(
        schema_version=outline.schema_version if isinstance(outline.schema_version, int) else None,
        media_type=outline.media_type if isinstance(outline.media_type, str) else None,
        manifests=None if outline.manifests is None else (),
    )


def _manifest(document: _Document, media_type: str, data: bytes, digest: Digest) -> Manifest:
    return Manifest(
        descriptor=Descriptor(media_type=media_type, digest=digest, size=len(data)),
        data=data,
        artifact_type=document.artifact_type,
        config=document.config,
        blobs=(document.layers or ()) + (document.blobs or ()),
        manifests=document.manifests or (),
        subject=document.subject,
        annotations=document.annotations or {},
    )


def _known_keys(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return the JSON keys of `struct` by their case-folded form; folding also finds look-alikes such as U+017F."""
    return {name.casefold(): name for name in struct.__struct_encode_fields__}


_DOCUMENT_KEYS = _known_keys(_Document)
_DESCRIPTOR_KEYS = _known_keys(Descriptor)
_PLATFORM_KEYS = _known_keys(Platform)


def _refuse_ambiguity(data: bytes) -> None:
    """Refuse what two JSON readers may understand in two ways.

    msgspec keeps the last of two equal keys in silence, and Go matches keys whatever their case: together they would
    let content pass every check under one meaning and be used under another.
    """
    try:
        document = cast("dict[str, object]", json.loads(data.decode(), object_pairs_hook=_without_duplicates))
    except RecursionError:
        raise ManifestInvalid("the manifest is nested too deeply") from None
    except ValueError as error:
        # Not UTF-8, no JSON to this reader, or a number of thousands of digits.
        raise ManifestInvalid(f"not a manifest: {error}") from None
    _refuse_variants(document, _DOCUMENT_KEYS)
    for key in ("config", "subject"):
        _refuse_descriptor_variants(document.get(key))
    for key in ("layers", "blobs", "manifests"):
        for each in cast("list[object]", document.get(key) or []):
            _refuse_descriptor_variants(each)


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ManifestInvalid(f"the key {key[:100]!a} stands twice in one object")
            seen.add(key)
    return found


def _refuse_descriptor_variants(descriptor: object) -> None:
    if isinstance(descriptor, dict):
        found = cast("dict[str, object]", descriptor)
        _refuse_variants(found, _DESCRIPTOR_KEYS)
        platform = found.get("platform")
        if isinstance(platform, dict):
            _refuse_variants(cast("dict[str, object]", platform), _PLATFORM_KEYS)


def _refuse_variants(found: dict[str, object], known: Mapping[str, str]) -> None:
    for key in found:
        meant = known.get(key.casefold())
        if meant is not None and meant != key:
            raise ManifestInvalid(f"the key {key!a} differs from {meant!r} only in case")

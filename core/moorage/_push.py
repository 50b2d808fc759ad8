"""What the registry asks of every push of a manifest, whatever rules say: to be of its digest, a manifest, and complete.

What is asked here is asked alike of a push and of an explanation of one: whoever looks says how it is seen whether
content is there.
"""

from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import trio

from ._concurrency import map_bounded
from ._digests import Digest
from ._errors import DigestInvalid, ManifestInvalid, ManifestTooLarge
from ._manifests import MANIFEST_LIMIT, Descriptor, Manifest, encode_json, parse_pushed
from ._operations import PushManifest

TAGS_LIMIT = 100
"""The most tags that one push may write."""

_PARSE_HERE = 64 << 10
_LOOKS_AT_ONCE = 16

IsThere = Callable[[Digest], Awaitable[bool]]
"""Says whether content is in the repository, and its data in the store."""


async def read_push(push: PushManifest) -> Manifest:
    """Return the manifest that is pushed.

    Raises:
        ManifestTooLarge, ManifestInvalid, DigestInvalid: it is not what it should be.
    """
    reference, data = push.reference, push.data
    if len(data) > MANIFEST_LIMIT:
        raise ManifestTooLarge(f"a manifest has at most {MANIFEST_LIMIT} bytes, this one has {len(data)}")
    if len(push.tags) > TAGS_LIMIT:
        raise ManifestInvalid(f"at most {TAGS_LIMIT} tags are written by one push")
    algorithm = reference.algorithm if isinstance(reference, Digest) else None
    digest = Digest.of(data, algorithm) if algorithm else Digest.of(data)
    if isinstance(reference, Digest) and reference != digest:
        raise DigestInvalid(
            "the manifest does not have that digest", detail={"expected": str(reference), "found": str(digest)}
        )
    return await parsed(partial(parse_pushed, push.media_type, data, digest), data)


async def parsed(parse: Callable[[], Manifest], data: bytes) -> Manifest:
    """Return what `parse` makes of `data`; in a thread where that would keep the event loop from others."""
    return parse() if len(data) <= _PARSE_HERE else await trio.to_thread.run_sync(parse)


async def missing_references(
    manifest: Manifest, *, is_manifest: IsThere, is_blob: IsThere, at_once: bool
) -> list[Descriptor]:
    """Return what `manifest` points at and is not there, each descriptor once; `at_once`: look for several at a time.

    One content may be pointed at by several descriptors, which say different things of it, and a rule may judge by any
    of these. An index may list what was pushed as a blob: buildkit's cache indexes list layers.
    """
    wanted: dict[tuple[Digest, bool], list[Descriptor]] = {}
    references = tuple(manifest.references())
    blobs = len(references) - len(manifest.manifests)
    for at, descriptor in enumerate(references):
        wanted.setdefault((descriptor.digest, at >= blobs), []).append(descriptor)

    async def is_there(each: tuple[Digest, bool]) -> bool:
        digest, as_manifest = each
        return (as_manifest and await is_manifest(digest)) or await is_blob(digest)

    found = await map_bounded(is_there, list(wanted), limit=_LOOKS_AT_ONCE if at_once else 1)
    missing = [each for several, there in zip(wanted.values(), found, strict=True) if not there for each in several]
    # What is the same in every word is the same; descriptors with annotations cannot be hashed.
    return list({encode_json(descriptor): descriptor for descriptor in missing}.values())


def missing_detail(descriptor: Descriptor) -> object:
    """Return how a missing reference is told, JSON-able: as the manifest has it, without what was embedded."""
    named = msgspec.structs.replace(descriptor, data=None, urls=None, annotations=None)
    return msgspec.to_builtins(named, enc_hook=str)

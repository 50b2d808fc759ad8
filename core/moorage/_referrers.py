"""Referrers: the manifests of a repository whose `subject` is a given digest.

Answers for the OCI distribution spec, "Listing Referrers" and "Enabling the Referrers API". Each has an entry of its own,
written with the manifest and holding the finished descriptor, so no push reads and rewrites a list; an entry counts only
while its manifest is in the repository. What was pushed to a registry without referrers is named by the index under the
fallback tag, and is listed if it is here and really has that subject.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from . import _layout as layout
from ._digests import Digest
from ._driver import Driver
from ._errors import DigestInvalid, KeyUnknown, ManifestInvalid
from ._links import exists, read_link
from ._manifests import MANIFEST_LIMIT, Descriptor, Manifest, encode_json, parse_descriptor
from ._names import RepositoryName, Tag
from ._operations import ListReferrers, ReferrerList

_log = logging.getLogger("moorage.registry")

_ANSWER_LIMIT = MANIFEST_LIMIT - 1024
"""The most bytes of descriptors in one page: the answer is an index, and clients bound those."""

_ENTRY_LIMIT = MANIFEST_LIMIT + 4096
"""The most bytes of an entry: it has a manifest's annotations, and a media type, digest and size of its own."""

ReadManifest = Callable[[RepositoryName, Digest], Awaitable[Manifest | None]]


class Referrers:
    """The referrers of all subjects of a store."""

    def __init__(self, driver: Driver, read_manifest: ReadManifest) -> None:
        """Keep entries on `driver`; `read_manifest` returns a manifest that is in a repository, or None."""
        self._driver = driver
        self._read_manifest = read_manifest

    async def enter(self, repository: RepositoryName, manifest: Manifest) -> None:
        """Write the entry of `manifest`, if it has a subject."""
        if manifest.subject is not None:
            key = layout.referrer(repository, manifest.subject.digest, manifest.digest)
            await self._driver.write(key, encode_json(manifest.referrer_descriptor()))

    async def remove(self, repository: RepositoryName, manifest: Manifest) -> None:
        """Remove the entry of `manifest`, if it has a subject."""
        if manifest.subject is not None:
            await self._driver.delete(layout.referrer(repository, manifest.subject.digest, manifest.digest))

    async def page(self, operation: ListReferrers) -> ReferrerList:
        """Return a page of the referrers that `operation` asks for."""
        repository, subject = operation.repository, operation.subject
        earlier = await self._earlier(repository, subject)
        found: list[Descriptor] = []
        size = 0
        last: Digest | None = None
        for digest in await self._digests(repository, subject, earlier, after=operation.after):
            descriptor = earlier.get(digest) or await self._entry(repository, subject, digest)
            if descriptor is None or operation.artifact_type not in {None, descriptor.artifact_type}:
                continue
            size += len(encode_json(descriptor)) + 1
            if len(found) == operation.limit or (found and size > _ANSWER_LIMIT):
                return ReferrerList(referrers=tuple(found), more=bool(found), last=last)
            found.append(descriptor)
            last = digest
        return ReferrerList(referrers=tuple(found), more=False, last=last)

    async def _digests(
        self, repository: RepositoryName, subject: Digest, earlier: dict[Digest, Descriptor], *, after: str
    ) -> list[Digest]:
        """Return the digests of all referrers, entered or earlier, in order after `after`."""
        digests = set(earlier)
        prefix = layout.referrers(repository, subject)
        position, more = "", True
        while more:
            listing = await self._driver.list(prefix, after=position)
            for entry in listing.entries:
                algorithm, _, encoded = entry.key[len(prefix) :].partition("/")
                # What is no digest was not put there by a registry.
                with suppress(DigestInvalid):
                    digests.add(Digest(f"{algorithm}:{encoded}"))
                position = entry.key
            more = listing.more
        return sorted(digest for digest in digests if digest > after)

    async def _entry(self, repository: RepositoryName, subject: Digest, digest: Digest) -> Descriptor | None:
        """Return the entry of a referrer whose manifest is still there."""
        if not await exists(self._driver, layout.revision_link(repository, digest)):
            return None
        key = layout.referrer(repository, subject, digest)
        try:
            return parse_descriptor(await self._driver.read(key, limit=_ENTRY_LIMIT))
        except KeyUnknown:
            return None
        except ManifestInvalid as error:
            # One entry that is damaged must not hide the others.
            _log.warning("the referrer entry %s is passed over: %s", key, error)
            return None

    async def _earlier(self, repository: RepositoryName, subject: Digest) -> dict[Digest, Descriptor]:
        """Return the referrers that the index under the fallback tag names."""
        tagged = await read_link(self._driver, layout.tag_current_link(repository, Tag.fallback(subject)))
        index = await self._read_manifest(repository, tagged) if tagged else None
        if index is None or not index.is_index:
            return {}
        found: dict[Digest, Descriptor] = {}
        for descriptor in index.manifests:
            manifest = await self._read_manifest(repository, descriptor.digest)
            if manifest is not None and manifest.subject is not None and manifest.subject.digest == subject:
                found[descriptor.digest] = manifest.referrer_descriptor()
        return found

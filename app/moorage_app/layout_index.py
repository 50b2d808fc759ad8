"""The file `index.json` of an image layout: what it calls images, and how names are added to it.

Answers for the OCI image spec, "Image Layout" and "Pre-Defined Annotation Keys". An image is called by its tag where one
repository is in the layout, as skopeo, umoci and oras do it, else by repository and tag; both are also written where
containerd and docker look for them. An image keeps the name that it once got.
"""

import json
from collections.abc import Iterable, Sequence
from typing import cast

from moorage import MANIFEST_LIMIT, OCI_INDEX, REFERENCE_LIMIT, Descriptor, RepositoryName, Tag

from .image_copy import Image, Name
from .image_layout import IMAGE_NAME, REFERENCE_NAME, LayoutInvalid, entry_name, parse_index

Json = dict[str, object]
_Key = tuple[RepositoryName | None, Tag | None]


class LayoutIndex:
    """What an `index.json` says; it is not changed."""

    def __init__(self, data: bytes | None) -> None:
        """Understand `data`, None for a layout that is new.

        Raises:
            LayoutInvalid: it is no index.
        """
        self._document: Json = {"schemaVersion": 2, "mediaType": OCI_INDEX}
        self._entries: list[Json] = []
        self._descriptors: list[Descriptor] = []
        if data is not None:
            self._descriptors = list(parse_index(data).manifests)
            # It is an object, and this is a list of objects, or it would be no index.
            self._document = cast("Json", json.loads(data))
            self._entries = cast("list[Json]", self._document.get("manifests") or [])
        self._positions: dict[_Key, int] = {
            entry_name(each.annotations or {}): at for at, each in enumerate(self._descriptors)
        }
        self._digests = {each.digest for each in self._descriptors}
        self._is_plain = False

    def expect(self, repositories: Iterable[RepositoryName]) -> None:
        """Learn from which repositories images will be added."""
        here = {repository for repository, _ in self._positions if repository is not None}
        self._is_plain = len(here.union(repositories)) <= 1

    def lacks(self, image: Image) -> Sequence[Tag | None]:
        """Return which names of `image` are not there, or mean something else."""
        wanted = image.wanted
        if not wanted.tags:
            return [] if wanted.digest in self._digests else [None]
        lacking: list[Tag | None] = []
        for tag in wanted.tags:
            at = self._position(wanted.repository, tag)
            if at is None or self._descriptors[at].digest != wanted.digest:
                lacking.append(tag)
        return lacking

    def _position(self, repository: RepositoryName, tag: Tag) -> int | None:
        at = self._positions.get((repository, tag))
        # What others have called by a tag alone is of the one repository that is here.
        return self._positions.get((None, tag)) if at is None and self._is_plain else at

    def encode(self, names: Sequence[Name]) -> bytes:
        """Return the file with `names` in it.

        Raises:
            LayoutInvalid: it would have more than can be read again.
        """
        entries = list(self._entries)
        for name in sorted(names, key=_order):
            at = None if name.tag is None else self._position(name.image.wanted.repository, name.tag)
            if at is None:
                entries.append(self._entry(name, None))
            else:
                entries[at] = self._entry(name, (self._descriptors[at].annotations or {}).get(REFERENCE_NAME))
        data = json.dumps({**self._document, "manifests": entries}, separators=(",", ":")).encode()
        if len(entries) > REFERENCE_LIMIT or len(data) > MANIFEST_LIMIT:
            raise LayoutInvalid(
                f"index.json would have {len(entries)} entries in {len(data)} bytes, and {REFERENCE_LIMIT} in "
                f"{MANIFEST_LIMIT} are what can be read again: choose some by --repository and --tag"
            )
        return data

    def _entry(self, name: Name, called: str | None) -> Json:
        top, image = name.image.top, name.image
        entry: Json = {"mediaType": top.media_type, "digest": str(top.digest), "size": top.size}
        if image.artifact_type is not None:
            entry["artifactType"] = image.artifact_type
        if name.tag is not None:
            whole = f"{image.wanted.repository}:{name.tag}"
            entry["annotations"] = {
                IMAGE_NAME: whole,
                REFERENCE_NAME: called or (str(name.tag) if self._is_plain else whole),
            }
        return entry


def _order(name: Name) -> tuple[bool, str, str, str]:
    wanted = name.image.wanted
    return name.tag is None, wanted.repository, name.tag or "", wanted.digest

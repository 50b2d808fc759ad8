"""Indexes whose manifests are not all here: which of them must be, and an honest answer to who asks for one that is not.

The rule answers for `validation: {manifests: {indexes: ..., layers: ...}}`, with distribution's keys and values. It has
an opinion on what an index lists, and on layers where they may be missing; on everything else it has none, so that other
plugins decide. An index that another one lists is judged by its platform like every child; what it lists in turn was
judged when it was pushed itself.

The middleware `sparse_pulls`, opened by the same section, remembers what the indexes list that it lately passed on. A
pull of a listed manifest that is missing then says so, instead of only that the manifest is unknown.
"""

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain
from typing import Annotated, Final, Literal, cast

import msgspec

from moorage import (
    Descriptor,
    Digest,
    Handler,
    Manifest,
    ManifestUnknown,
    MiddlewareFactory,
    Operation,
    PullManifest,
    R,
    RegistryError,
    RepositoryName,
    Rule,
    hookimpl,
    map_bounded,
    scoped,
)

from ._platform_patterns import PlatformPattern, in_one_line, names_no_machine

_log = logging.getLogger("moorage.rules")

_SETTING: Final = "validation.manifests.indexes.platforms"
REMEMBERED: Final = 10_000
"""How many indexes, and manifests that they list, are remembered at most."""
_ASKED: Final = 64
_ASKED_AT_ONCE: Final = 8


class Indexes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `validation: {manifests: {indexes: {...}}}`, as distribution has them."""

    platforms: Annotated[Literal["all", "none", "list"] | None, msgspec.Meta(extra={"folded": True})] = None
    platformlist: tuple[PlatformPattern, ...] = ()


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `validation: {manifests: {...}}`; `urls` belongs to another rule."""

    indexes: Indexes = Indexes()
    layers: Annotated[Literal["all", "none"], msgspec.Meta(extra={"folded": True})] = "all"
    urls: dict[str, object] = {}

    def __post_init__(self) -> None:
        """Refuse what would have no effect.

        Raises:
            ValueError: an entry of `rules` has URLs, for which the rules below `urls` are the place.
        """
        entries: tuple[Options, ...] = getattr(self, "rules", ())  # which the registry adds
        for at, entry in enumerate(entries):
            if entry.urls:
                raise ValueError(f"rules[{at}].urls has no effect here; write it below urls.rules")


_DISABLED: Final = Options(indexes=Indexes(platforms="none"))
"""What `validation: {disabled: true}` comes to."""


class SparseIndex:
    """Decides which of the missing references of a manifest must be here."""

    def __init__(self, options: Options) -> None:
        """Decide by `options`."""
        indexes = options.indexes
        self._list = indexes.platformlist
        # An empty list is no list, as in distribution.
        self._platforms = "all" if indexes.platforms == "list" and not self._list else indexes.platforms
        self._layers_required = options.layers == "all"

    @hookimpl
    async def requires_reference(self, manifest: Manifest, descriptor: Descriptor) -> bool | None:
        """Return whether `descriptor` must be here; None where these options say nothing about it."""
        if not manifest.is_index:
            if self._layers_required or manifest.manifests:
                return None
            is_config = manifest.config is not None and manifest.config.digest == descriptor.digest
            return None if is_config else False
        if descriptor in manifest.blobs:
            return None
        match self._platforms:
            case "all":
                return True
            case "none":
                return False
            case "list":
                platform = descriptor.platform
                return platform is not None and any(pattern.matches(platform) for pattern in self._list)
            case _:
                return None


@asynccontextmanager
async def _open_rule(options: Options) -> AsyncGenerator[object]:
    if options is _DISABLED:
        _log.warning("validation.disabled: nothing that an index lists need be here")
    elif options.indexes.platforms == "none":
        _log.warning("%s is none: nothing that an index lists need be here, which clients may not expect", _SETTING)
    elif options.indexes.platforms == "list" and not options.indexes.platformlist:
        _log.warning("%s is list, but platformlist is empty: everything that an index lists must be here", _SETTING)
    yield SparseIndex(options)


_Place = tuple[RepositoryName, Digest]


class _Child(msgspec.Struct):
    """What is remembered of a listed manifest: what it is for, and which of that are machines."""

    platforms: list[str]
    machines: list[str]


def _outline(index: Manifest) -> dict[Digest, _Child]:
    """Return what is remembered of `index`; descriptors as such may be of any length."""
    found: dict[Digest, _Child] = {}
    for child in index.manifests:
        outline = found.setdefault(child.digest, _Child([], []))
        if child.platform is not None:
            outline.platforms.append(in_one_line(child.platform))
            if not names_no_machine(child.platform):
                outline.machines.append(outline.platforms[-1])
    return found


class SparsePulls:
    """A handler that tells who pulls a missing manifest that an index lists it, and what else of the index is here."""

    def __init__(self, inner: Handler) -> None:
        """Pass everything on to `inner`."""
        self._inner = inner
        self._indexes: OrderedDict[_Place, tuple[int, dict[Digest, _Child]]] = OrderedDict()
        self._listing: dict[_Place, list[_Place]] = {}
        self._count = 0

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation` as `inner` does.

        Raises:
            ManifestUnknown: as `inner` raises it, with more in its detail.
        """
        try:
            reply = await self._inner(operation)
        except ManifestUnknown as error:
            await self._explain(operation, error)
            raise
        self._note(operation, reply)
        return reply

    def _note(self, operation: Operation[object], reply: object) -> None:
        if isinstance(operation, PullManifest) and isinstance(reply, Manifest) and reply.is_index:
            self._remember((operation.repository, reply.digest), reply)

    def _remember(self, place: _Place, index: Manifest) -> None:
        if place in self._indexes:
            self._indexes.move_to_end(place)
            return
        # One that lists nothing takes its place, too.
        count, children = len(index.manifests) + 1, _outline(index)
        self._indexes[place] = (count, children)
        self._count += count
        for digest in children:
            self._listing.setdefault((place[0], digest), []).append(place)
        while self._count > REMEMBERED:
            self._forget(next(iter(self._indexes)))

    def _forget(self, place: _Place) -> None:
        count, children = self._indexes.pop(place, (0, {}))
        self._count -= count
        for digest in children:
            listing = self._listing[place[0], digest]
            listing.remove(place)
            if not listing:
                del self._listing[place[0], digest]

    async def _explain(self, operation: Operation[object], error: ManifestUnknown) -> None:
        """Do nothing about an `error` that has nothing to do with an index.

        Raises:
            ManifestUnknown: it has; says which index, and what of it is here.
        """
        if not isinstance(operation, PullManifest) or not isinstance(operation.reference, Digest):
            return
        digest = operation.reference
        while listing := self._listing.get((operation.repository, digest)):
            place = listing[-1]
            children = self._indexes[place][1]
            others = [other for other, child in children.items() if child.machines and other != digest]
            asked = others[:_ASKED]
            try:
                still_there, *found = await map_bounded(
                    partial(self._is_here, operation), [place[1], *asked], limit=_ASKED_AT_ONCE
                )
            except RegistryError:
                # The store fails: nothing is known of the rest.
                return
            if not still_there:
                self._forget(place)
                continue
            here = [children[other].machines for other, there in zip(asked, found, strict=True) if there]
            detail: dict[str, object] = {
                "index": str(place[1]),
                "sparse": True,
                "platform": next(iter(children[digest].platforms), None),
                "present": list(dict.fromkeys(chain.from_iterable(here))),
            }
            if len(asked) < len(others):
                detail["unasked"] = len(others) - len(asked)
            raise ManifestUnknown(
                f"manifest unknown: this repository has only a part of the index {place[1]}",
                detail={**_fields(error.detail), **detail},
            ) from error

    async def _is_here(self, operation: PullManifest, digest: Digest) -> bool:
        try:
            await self._inner(msgspec.structs.replace(operation, reference=digest))
        except ManifestUnknown:
            return False
        return True


def _fields(detail: object) -> Mapping[str, object]:
    return (
        cast("Mapping[str, object]", detail) if isinstance(detail, Mapping) else {}
    )  # JSON-able, so its keys are text


@asynccontextmanager
async def _open_pulls(options: Options, inner: Handler) -> AsyncGenerator[Handler]:
    del options
    yield SparsePulls(inner)


@hookimpl
def register_rules() -> Mapping[str, object]:
    """Offer the rule under the section that distribution has for it."""
    return {"sparse_index": Rule(Options, _open_rule, section="validation.manifests", when_disabled=_DISABLED)}


@hookimpl
def register_middleware() -> Mapping[str, object]:
    """Offer the honest answers where the rule is configured."""
    return {"sparse_pulls": MiddlewareFactory(scoped(Options), _open_pulls, section="validation.manifests")}

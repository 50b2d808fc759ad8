"""The rule on what an index must contain, and must not: platforms that are required, forbidden, or unknown.

A platform that is required must be listed, by the index or by an index in it, and every manifest that is listed for it
must be here, whatever else may be missing. Children without a platform, and the `unknown/unknown` of attestations, are
nobody's machine and pass. An index that is pushed by digest alone is held to the same, but for `untagged: false`: it may
be meant for another index, which is then judged by all that is in it. With `images: true` an image is judged too, by the platform that its configuration names.
"""

import re
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import msgspec
import trio

from moorage import (
    INDEX_TYPES,
    BlobUnknown,
    Descriptor,
    Digest,
    Handler,
    Manifest,
    ManifestUnknown,
    Platform,
    PullBlob,
    PullManifest,
    PushManifest,
    Refused,
    RepositoryName,
    Rule,
    Tag,
    hookimpl,
    map_bounded,
)

from ._platform_patterns import PlatformPattern, in_one_line, names_no_machine

# Go, src/internal/syslist/syslist.go: knownOS and knownArch. The OCI image spec takes its values from Go.
# fmt: off
KNOWN_SYSTEMS: Final = frozenset({
    "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux", "nacl", "netbsd",
    "openbsd", "plan9", "solaris", "wasip1", "windows", "zos",
})
KNOWN_ARCHITECTURES: Final = frozenset({
    "386", "amd64", "amd64p32", "arm", "arm64", "arm64be", "armbe", "loong64", "mips", "mips64", "mips64le",
    "mips64p32", "mips64p32le", "mipsle", "ppc", "ppc64", "ppc64le", "riscv", "riscv64", "s390", "s390x", "sparc",
    "sparc64", "wasm",
})
# fmt: on

DEEPEST: Final = 4
"""How many indexes may lie in one another below the pushed one."""
MOST: Final = 32
"""How many indexes may lie in the pushed one altogether."""
LONGEST_CONFIG: Final = 1 << 20
_CONFIG_TYPES: Final = frozenset({
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
})
_REFERRERS_TAG: Final = re.compile(r"sha(256-[0-9a-f]{64}|512-[0-9a-f]{128})")
_BREATH: Final = 256
_LOOKS_AT_ONCE: Final = 8


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `plugins: {platforms: {...}}`."""

    require: tuple[PlatformPattern, ...] = ()
    forbid: tuple[PlatformPattern, ...] = ()
    known: bool = False
    images: bool = False
    untagged: bool = True


_Listed = dict[Platform, list[Descriptor]]
"""What is listed for each platform, in whichever index it stands."""


class Platforms:
    """Judges what an index lists."""

    def __init__(self, options: Options) -> None:
        """Judge by `options`."""
        self._options = options

    @hookimpl
    async def validate_manifest(self, push: PushManifest, manifest: Manifest, registry: Handler) -> None:
        """Look at every platform that `manifest` is for.

        Raises:
            Refused: one is forbidden or unknown, or a required one is not listed, or not here.
        """
        if manifest.is_index:
            listed = await self._of_index(push.repository, manifest, registry)
            await self._allow(listed)
            if self._holds(push, listed):
                await self._require(push.repository, listed, registry)
        elif self._options.images:
            platform = await _of_image(push.repository, manifest, registry)
            if platform is None:
                return
            await self._allow([platform])
            # By digest alone it may be meant for an index.
            lacking = [each.text for each in self._options.require if not each.matches(platform)]
            if lacking and _tags(push):
                raise Refused(
                    f"the image is for {in_one_line(platform)} only; required are also {', '.join(lacking)}",
                    detail={"platform": in_one_line(platform), "missing": lacking},
                )

    def _holds(self, push: PushManifest, listed: _Listed) -> bool:
        """Return whether an index must list what is required, pushed as it is."""
        if not (tags := _tags(push)):
            return self._options.untagged
        # Where clients keep lists of signatures for want of an API; they are for no machine.
        return bool(listed) or not all(_REFERRERS_TAG.fullmatch(tag) for tag in tags)

    async def _of_index(self, repository: RepositoryName, index: Manifest, registry: Handler) -> _Listed:
        """Return what `index`, and every index in it that is here, lists for some machine.

        Raises:
            Refused: there are too many, or too deep, to judge.
        """
        found: _Listed = {}
        seen: set[Digest] = {index.digest}
        level = [index]
        for depth in range(DEEPEST + 1):
            below: list[Digest] = []
            for each in level:
                if depth:
                    await trio.lowlevel.checkpoint()
                for child in each.manifests:
                    if child.platform is not None and not names_no_machine(child.platform):
                        found.setdefault(child.platform, []).append(child)
                    if child.media_type in INDEX_TYPES and child.digest not in seen:
                        seen.add(child.digest)
                        below.append(child.digest)
            if len(seen) > MOST + 1:
                raise Refused(f"an index of more than {MOST} indexes is not judged", detail={"limit": MOST})
            if below and depth == DEEPEST:
                raise Refused(
                    f"an index whose indexes lie more than {DEEPEST} deep is not judged", detail={"limit": DEEPEST}
                )
            pulled = await map_bounded(partial(_pulled, repository, registry), below, limit=_LOOKS_AT_ONCE)
            level = [each for each in pulled if each is not None]
        return found

    async def _allow(self, platforms: Collection[Platform]) -> None:
        known, forbidden = self._options.known, self._options.forbid
        if not known and not forbidden:
            return
        for at, platform in enumerate(platforms):
            if at % _BREATH == _BREATH - 1:
                await trio.lowlevel.checkpoint()
            written = in_one_line(platform)
            if known and not (platform.os in KNOWN_SYSTEMS and platform.architecture in KNOWN_ARCHITECTURES):
                raise Refused(
                    f"{written!a} is no platform: system and architecture are named as Go names them, such as linux/amd64",
                    detail={"platform": written},
                )
            for pattern in forbidden:
                if pattern.matches(platform):
                    raise Refused(
                        f"{written!a} is forbidden by {pattern.text}",
                        detail={"platform": written, "pattern": pattern.text},
                    )

    async def _require(self, repository: RepositoryName, listed: _Listed, registry: Handler) -> None:
        lacking = {pattern.text: pattern for pattern in self._options.require}
        wanted: dict[Digest, Descriptor] = {}
        for at, (platform, descriptors) in enumerate(listed.items()):
            if at % _BREATH == _BREATH - 1:
                await trio.lowlevel.checkpoint()
            meant = [pattern.text for pattern in self._options.require if pattern.matches(platform)]
            for text in meant:
                lacking.pop(text, None)
            if meant:
                wanted.update((descriptor.digest, descriptor) for descriptor in descriptors)
        if lacking:
            raise Refused(f"the index lists nothing for {', '.join(lacking)}", detail={"missing": list(lacking)})
        found = await map_bounded(partial(_pulled, repository, registry), list(wanted), limit=_LOOKS_AT_ONCE)
        absent = [each for each, there in zip(wanted.values(), found, strict=True) if there is None]
        if absent:
            platforms = dict.fromkeys(in_one_line(each.platform) for each in absent if each.platform is not None)
            raise Refused(
                f"required and not here: what the index lists for {', '.join(platforms)}",
                detail={"missing": [_named(each) for each in absent]},
            )


def _named(descriptor: Descriptor) -> object:
    short = msgspec.structs.replace(descriptor, data=None, urls=None, annotations=None)
    return msgspec.to_builtins(short, enc_hook=str)


def _tags(push: PushManifest) -> tuple[Tag, ...]:
    return (push.reference, *push.tags) if isinstance(push.reference, Tag) else push.tags


async def _pulled(repository: RepositoryName, registry: Handler, digest: Digest) -> Manifest | None:
    try:
        return await registry(PullManifest(repository=repository, reference=digest))
    except ManifestUnknown:
        return None


async def _of_image(repository: RepositoryName, image: Manifest, registry: Handler) -> Platform | None:
    """Return what the configuration of `image` says it is for; None for what is for no machine, such as a signature.

    Raises:
        Refused: the configuration cannot be looked at.
    """
    config = image.config
    if config is None or config.media_type not in _CONFIG_TYPES:
        return None
    try:
        blob = await registry(PullBlob(repository=repository, digest=config.digest))
    except BlobUnknown:
        raise Refused("the configuration of the image is not here", detail={"digest": str(config.digest)}) from None
    if blob.descriptor.size > LONGEST_CONFIG:
        raise Refused(
            f"the configuration of the image is longer than {LONGEST_CONFIG} bytes",
            detail={"digest": str(config.digest)},
        )
    async with blob.open(0, None) as reader:
        data = b"".join([chunk async for chunk in reader])
    try:
        platform = msgspec.json.decode(data, type=Platform)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # No configuration of an image, whatever its media type says.
        return None
    return None if names_no_machine(platform) else platform


@asynccontextmanager
async def _open(options: Options) -> AsyncGenerator[object]:
    yield Platforms(options)


@hookimpl
def register_rules() -> Mapping[str, object]:
    """Offer the rule under its name."""
    return {"platforms": Rule(Options, _open)}

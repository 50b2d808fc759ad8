"""What is measured. Each case says what a client does; how many, how long and how fast is the command's."""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from .loop import Operation
from .messages import Blob, Content, Endpoint
from .scripts import (
    Left,
    get_blob,
    get_manifest,
    make_image,
    pull_image,
    push_blob,
    push_chunked,
    push_image,
)

KIB = 1 << 10
MIB = 1 << 20

SMALL_BLOB = 4 * KIB
SMALL_LAYERS = (900,) * 12
CI_LAYERS = (16 * KIB,) * 6
STORM_LAYERS = 8
TAG = "latest"
STORM_TAG = "storm"
PUSHES_IN = 4
"""Mixed: every fourth operation is a push."""


class Sizes(msgspec.Struct, frozen=True):
    """How large everything is."""

    blob: int = 64 * MIB
    chunk: int = 8 * MIB
    tags: int = 2000
    page: int = 100

    @property
    def storm_layer(self) -> int:
        """How large a layer of the image is that many pull at once."""
        return max(self.blob // 64, KIB)


@dataclass(slots=True)
class Seeded:
    """What was pushed to a target beforehand."""

    image: Blob | None = None
    """The manifest of a small image."""
    storm: Blob | None = None
    """The manifest of a larger one."""
    small: Blob | None = None
    large: Blob | None = None
    page_size: int | None = None
    """How many bytes the first page of tags has."""
    left: Left = field(default_factory=Left)


@dataclass(slots=True)
class Setting:
    """All that an operation needs to be made."""

    at: Endpoint
    seeded: Seeded
    content: Content
    sizes: Sizes
    left: Left
    verify: bool = False
    follow: bool = True


Maker = Callable[[Setting], Callable[[], Operation]]


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure."""

    name: str
    about: str
    unit: str
    clients: tuple[int, ...]
    needs: tuple[str, ...]
    """What of `Seeded` must be there."""
    operation: Maker
    series: tuple[str, ...] = ("",)
    pushed: Callable[[Sizes], int] = lambda _: 0
    """How many bytes an operation pushes, about."""
    prepared: Callable[[Sizes], tuple[int, ...]] = lambda _: ()
    """Sizes of the blobs that it makes."""


def _needed(blob: Blob | None) -> Blob:
    if blob is None:
        raise LookupError("a case is run whose needs were not seeded")
    return blob


def _manifest(setting: Setting, *, by_digest: bool = False, method: str = "GET") -> Callable[[], Operation]:
    manifest = _needed(setting.seeded.image)
    reference = manifest.digest if by_digest else TAG
    request = get_manifest(setting.at, reference, manifest, verify=setting.verify, method=method)
    return lambda: Operation("", request)


def _blob(setting: Setting, *, large: bool) -> Callable[[], Operation]:
    blob = _needed(setting.seeded.large if large else setting.seeded.small)
    request = get_blob(setting.at, blob.digest, blob.size, verify=setting.verify, follow=setting.follow)
    return lambda: Operation("", request)


def _tags(setting: Setting) -> Callable[[], Operation]:
    request = setting.at.request("GET", f"tags/list?n={setting.sizes.page}", size=setting.seeded.page_size)
    return lambda: Operation("", request)


def _push(setting: Setting, *, part: int = 1) -> Callable[[], Operation]:
    size = setting.sizes.blob // part
    return lambda: Operation("", push_blob(setting.at, setting.content.blob(size), setting.left))


def _push_chunked(setting: Setting) -> Callable[[], Operation]:
    sizes = setting.sizes
    return lambda: Operation("", push_chunked(setting.at, setting.content.blob(sizes.blob), sizes.chunk, setting.left))


def _push_image(setting: Setting, series: str = "") -> Operation:
    tag = f"v{os.urandom(6).hex()}"
    return Operation(series, push_image(setting.at, make_image(setting.content, CI_LAYERS), tag, setting.left))


def _pull_image(setting: Setting, tag: str, manifest: Blob, series: str = "") -> Operation:
    script = pull_image(setting.at, tag, manifest, verify=setting.verify, follow=setting.follow)
    return Operation(series, script)


def _mixed(setting: Setting) -> Callable[[], Operation]:
    manifest = _needed(setting.seeded.image)
    serial = itertools.count(1)

    def next_operation() -> Operation:
        if next(serial) % PUSHES_IN == 0:
            return _push_image(setting, "push")
        return _pull_image(setting, TAG, manifest, "pull")

    return next_operation


def _storm(setting: Setting) -> Callable[[], Operation]:
    return partial(_pull_image, setting, STORM_TAG, _needed(setting.seeded.storm))


def _of_ci(_: Sizes) -> tuple[int, ...]:
    return CI_LAYERS[:1]


CASES = (
    Case(
        "manifest-tag",
        "GET of a manifest by tag",
        "requests",
        (16, 256),
        ("image",),
        _manifest,
    ),
    Case(
        "manifest-digest",
        "GET of a manifest by digest",
        "requests",
        (16,),
        ("image",),
        partial(_manifest, by_digest=True),
    ),
    Case(
        "manifest-head",
        "HEAD of a manifest by tag, as clients ask whether an image has changed",
        "requests",
        (16,),
        ("image",),
        partial(_manifest, method="HEAD"),
    ),
    Case("blob-small", "GET of a blob of 4 KiB", "requests", (16,), ("small",), partial(_blob, large=False)),
    # Before what pushes tags: some registries list all of them whatever they are asked for.
    Case(
        "tags-page",
        "GET of the first page of 100 out of --tags tags",
        "requests",
        (4,),
        ("tags",),
        _tags,
    ),
    Case(
        "pull-large",
        "GET of a blob of --blob-size",
        "blobs",
        (1, 8),
        ("large",),
        partial(_blob, large=True),
    ),
    Case(
        "push-large",
        "push of new blobs of --blob-size, each in one request",
        "blobs",
        (1,),
        (),
        _push,
        pushed=lambda sizes: sizes.blob,
        prepared=lambda sizes: (sizes.blob,),
    ),
    Case(
        "push-parallel",
        "push of new blobs of a quarter of --blob-size by some clients",
        "blobs",
        (4,),
        (),
        partial(_push, part=4),
        pushed=lambda sizes: sizes.blob // 4,
        prepared=lambda sizes: (sizes.blob // 4,),
    ),
    Case(
        "push-many",
        "push of new blobs of a 32nd of --blob-size by many clients",
        "blobs",
        (64,),
        (),
        partial(_push, part=32),
        pushed=lambda sizes: sizes.blob // 32,
        prepared=lambda sizes: (sizes.blob // 32,),
    ),
    Case(
        "push-chunked",
        "push of new blobs of --blob-size in chunks of --chunk-size",
        "blobs",
        (1,),
        (),
        _push_chunked,
        pushed=lambda sizes: sizes.blob,
        prepared=lambda sizes: (sizes.blob,),
    ),
    Case(
        "push-images",
        "push of new images of six layers of 16 KiB, as builds do",
        "images",
        (8,),
        (),
        lambda setting: partial(_push_image, setting),
        pushed=lambda _: sum(CI_LAYERS),
        prepared=_of_ci,
    ),
    Case(
        "mixed",
        "three pulls of a small image, then a push of a new one, and so on",
        "images",
        (8,),
        ("image",),
        _mixed,
        series=("pull", "push"),
        pushed=lambda _: sum(CI_LAYERS) // PUSHES_IN,
        prepared=_of_ci,
    ),
    Case(
        "storm",
        "pull of one whole image of eight layers (each a 64th of --blob-size) by many clients at once",
        "images",
        (64,),
        ("storm",),
        _storm,
    ),
)

"""The rule on layers that are fetched from elsewhere: which URLs their descriptors may have.

Answers for `validation: {manifests: {urls: {allow: [...], deny: [...]}}}`, with distribution's meaning: patterns are
searched for anywhere in the URL; with neither list no URL passes, with `deny` alone all that it does not name, with
`allow` what it names and `deny` does not. Without the section nothing is looked at.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import msgspec
import trio

from moorage import Descriptor, Manifest, Refused, Regex, Rule, hookimpl

_DOCKER_FOREIGN: Final = frozenset({
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
})
_OCI_FOREIGN: Final = "application/vnd.oci.image.layer.nondistributable.v1."
_LONGEST_URL: Final = 8192
_BREATH: Final = 64
"""After how many URLs others get their turn."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `validation: {manifests: {urls: {...}}}`, as distribution has them."""

    allow: tuple[Regex, ...] = ()
    deny: tuple[Regex, ...] = ()


class ForeignLayers:
    """Judges the URLs of layers."""

    def __init__(self, options: Options) -> None:
        """Judge by `options`."""
        self._allow = options.allow
        self._deny = options.deny

    @hookimpl
    async def requires_reference(self, manifest: Manifest, descriptor: Descriptor) -> bool | None:
        """Require an OCI layer that must not be distributed but names nothing to fetch it from; else have no opinion."""
        is_layer = not manifest.is_index and descriptor.media_type.startswith(_OCI_FOREIGN)
        return True if is_layer and not descriptor.urls else None

    @hookimpl
    async def validate_manifest(self, manifest: Manifest) -> None:
        """Look at every URL of every layer.

        Raises:
            Refused: one is none that a client can fetch a layer from, or is not allowed.
        """
        looked_at = 0
        for layer in manifest.blobs:
            if layer.media_type in _DOCKER_FOREIGN and not layer.urls:
                raise _refused(layer, f"the foreign layer {layer.digest} has no URL to fetch it from", status=400)
            for url in layer.urls or ():
                looked_at += 1
                if looked_at % _BREATH == 0:
                    await trio.lowlevel.checkpoint()
                if (wrong := _wrong(url)) is not None:
                    raise _refused(
                        layer, f"the layer {layer.digest} has the URL {url[:200]!a}, which {wrong}", url, 400
                    )
                if not self._passes(url):
                    raise _refused(layer, f"the layer {layer.digest} has the URL {url!a}, which is not allowed", url)

    def _passes(self, url: str) -> bool:
        if any(pattern.search(url) for pattern in self._deny):
            return False
        return any(pattern.search(url) for pattern in self._allow) if self._allow else bool(self._deny)


def _wrong(url: str) -> str | None:
    """Return why no layer can be fetched from `url`; None if one can."""
    if len(url) > _LONGEST_URL:
        return f"is longer than {_LONGEST_URL} characters"
    # Python drops some of these in silence, and clients read a backslash in two ways.
    if "\\" in url or not url.isprintable() or any(each.isspace() for each in url):
        return "has characters that no URL has"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in {"http", "https"} or not host:
        return "is not of http or https"
    return "has a fragment" if parts.fragment else None


def _refused(layer: Descriptor, message: str, url: str | None = None, status: int = 403) -> Refused:
    detail: dict[str, object] = {"digest": str(layer.digest), "mediaType": layer.media_type}
    if url is not None:
        detail["url"] = url[:_LONGEST_URL]
    return Refused(message, status=status, detail=detail)


@asynccontextmanager
async def _open(options: Options) -> AsyncGenerator[object]:
    yield ForeignLayers(options)


@hookimpl
def register_rules() -> Mapping[str, object]:
    """Offer the rule under the section that distribution has for it."""
    return {"foreign_layers": Rule(Options, _open, section="validation.manifests.urls")}

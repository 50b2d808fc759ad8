"""What a case works in: fresh repositories, and the preparations that most cases share.

Preparations check themselves: when a push that is only groundwork fails, the case fails and says that it was groundwork.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import trio

from . import expect
from .answer import Answer, CheckFailed, first_failure, preparing
from .client import Client
from .content import EMPTY_JSON, Blob, Manifest, blob, digest_of, image, unique

__all__ = ["Scratch", "Session", "together"]

T = TypeVar("T")


async def together(*calls: Callable[[], Awaitable[T]]) -> list[T]:
    """Call all at once and return what they return, in order; the first failed check, if any, is raised plainly."""
    results: dict[int, T] = {}

    async def call(at: int) -> None:
        results[at] = await calls[at]()

    try:
        async with trio.open_nursery() as nursery:
            for at in range(len(calls)):
                nursery.start_soon(call, at)
    except BaseExceptionGroup as group:
        first = first_failure(group.exceptions)
        if isinstance(first, trio.Cancelled):
            raise
        raise first from None
    return [results[at] for at in range(len(calls))]


@dataclass(frozen=True, slots=True)
class Session:
    """An upload that has begun."""

    location: str
    smallest_chunk: int
    answer: Answer

    def chunks(self, count: int, size: int = 1024) -> list[bytes]:
        """Return random chunks that the registry accepts; the last one is shorter."""
        full = max(size, self.smallest_chunk)
        return [blob(full).data for _ in range(count - 1)] + [blob(full - 5).data]


class Scratch:
    """Fresh repository names for one case, and ways to fill them."""

    def __init__(self, registry: Client, prefix: str, group: str) -> None:
        self._registry = registry
        self._stem = f"{prefix}/{group}-{unique()}"
        self._others = 0
        self.name = self._stem

    def another(self) -> str:
        """Return the name of one more repository that nobody has used."""
        self._others += 1
        return f"{self._stem}-{self._others}"

    async def session(self, name: str | None = None) -> Session:
        """Open an upload session."""
        with preparing("an upload session"):
            answer = await self._registry.start_upload(name or self.name)
            expect.status(answer, 202)
            return Session(expect.location(answer), smallest_chunk(answer), answer)

    async def push_bytes(self, data: bytes, name: str | None = None, algorithm: str = "sha256") -> str:
        """Push a blob by POST and PUT and return its digest."""
        digest = digest_of(data, algorithm)
        session = await self.session(name)
        with preparing("a blob"):
            expect.status(await self._registry.finish_upload(session.location, digest, data), 201)
        return digest

    async def push_blob(self, content: Blob, name: str | None = None) -> str:
        """Push a blob and return its digest."""
        return await self.push_bytes(content.data, name, content.algorithm)

    async def push_content(self, manifest: Manifest, name: str | None = None) -> None:
        """Push everything below a manifest, but not itself."""
        for content in dict.fromkeys(manifest.blobs):
            await self.push_blob(content, name)
        for child in manifest.children:
            await self.push(child, name=name)

    async def put(
        self, manifest: Manifest, reference: str | None = None, name: str | None = None, tags: Sequence[str] = ()
    ) -> Answer:
        """Push a manifest, not what is below it, by digest or by a tag; return the answer, whatever it is."""
        target = reference or manifest.digest
        return await self._registry.put_manifest(
            name or self.name, target, manifest.data, manifest.media_type, tags=tags
        )

    async def push(self, manifest: Manifest, reference: str | None = None, name: str | None = None) -> Answer:
        """Push a manifest with everything below it, by digest or by a tag."""
        await self.push_content(manifest, name)
        with preparing("a manifest"):
            answer = await self.put(manifest, reference, name)
            expect.status(answer, 201)
            return answer

    async def pushed_image(self, *references: str, name: str | None = None) -> Manifest:
        """Push an ordinary image under some tags, or by digest, and return it."""
        manifest = image(layers=1)
        await self.push_content(manifest, name)
        for reference in references or (manifest.digest,):
            with preparing("an image"):
                expect.status(await self.put(manifest, reference, name), 201)
        return manifest

    async def tagged(self, tags: Sequence[str], name: str | None = None, at_once: int = 8) -> Manifest:
        """Push one image under many tags."""
        manifest = await self.pushed_image(name=name)
        for first in range(0, len(tags), at_once):
            answers = await together(*(partial(self.put, manifest, tag, name) for tag in tags[first : first + at_once]))
            with preparing("tags"):
                for answer in answers:
                    expect.status(answer, 201)
        return manifest

    async def referrer(self, manifest: Manifest, name: str | None = None) -> str:
        """Push a manifest that names a subject and return its digest."""
        await self.push(manifest, name=name)
        return manifest.digest

    async def empty_config(self, name: str | None = None) -> str:
        """Push the empty JSON object, which artifacts have as their config."""
        return await self.push_bytes(EMPTY_JSON, name)


def smallest_chunk(answer: Answer) -> int:
    """Return what OCI-Chunk-Min-Length asks for, or 0."""
    value = answer.headers.get("oci-chunk-min-length")
    if value is None:
        return 0
    if not value.isascii() or not value.isdigit():
        raise CheckFailed.of(answer, "OCI-Chunk-Min-Length to be a number")
    return int(value)

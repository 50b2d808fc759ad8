"""What a registry can do at all, found out once, when the first case needs to know.

A capability that a registry lacks makes cases be skipped, so each one that is a requirement has a case of its own that
does not need it and fails.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from . import expect
from .answer import Answer
from .case import Capability
from .client import Client
from .content import blob, digest_of, unknown_digest
from .scratch import Scratch

__all__ = ["Capabilities"]

DISABLED = (400, 405)


class Capabilities:
    """The capabilities of one registry."""

    def __init__(self, registry: Client, prefix: str) -> None:
        self._registry = registry
        self._prefix = prefix
        self._found: dict[Capability, str | None] = {}
        self._locks: dict[Capability, trio.Lock] = {}

    async def missing(self, capability: Capability) -> str | None:
        """Return why the registry lacks a capability, or None when it has it; CheckFailed when that cannot be told."""
        async with self._locks.setdefault(capability, trio.Lock()):
            if capability not in self._found:
                probe: Callable[[Scratch], Awaitable[str | None]] = {
                    "push": self._push,
                    "delete-tag": self._delete_tag,
                    "delete-manifest": self._delete_manifest,
                    "delete-blob": self._delete_blob,
                    "referrers": self._referrers,
                    "sha512": self._sha512,
                }[capability]
                self._found[capability] = await probe(Scratch(self._registry, self._prefix, "capability"))
            return self._found[capability]

    async def _push(self, scratch: Scratch) -> str | None:
        answer = await self._registry.start_upload(scratch.name)
        return _lacks(answer, "no upload can be started", 401, 403, 404, 405)

    async def _delete_tag(self, scratch: Scratch) -> str | None:
        await scratch.pushed_image("tag")
        return _lacks(await self._registry.delete_manifest(scratch.name, "tag"), "tags cannot be deleted", *DISABLED)

    async def _delete_manifest(self, scratch: Scratch) -> str | None:
        manifest = await scratch.pushed_image()
        answer = await self._registry.delete_manifest(scratch.name, manifest.digest)
        return _lacks(answer, "manifests cannot be deleted", *DISABLED)

    async def _delete_blob(self, scratch: Scratch) -> str | None:
        digest = await scratch.push_blob(blob())
        return _lacks(await self._registry.delete_blob(scratch.name, digest), "blobs cannot be deleted", *DISABLED)

    async def _referrers(self, scratch: Scratch) -> str | None:
        answer = await self._registry.list_referrers(scratch.name, unknown_digest())
        return _lacks(answer, "there is no referrers API", 404, 405)

    async def _sha512(self, scratch: Scratch) -> str | None:
        data = blob().data
        session = await scratch.session()
        digest = digest_of(data, "sha512")
        answer = await self._registry.finish_upload(session.location, digest, data)
        reason = _lacks(answer, "sha512 is not known", 400)
        if reason is None:
            expect.status(answer, 201)
        return reason


def _lacks(answer: Answer, reason: str, *statuses: int) -> str | None:
    return f"{reason} ({answer.method} answered {answer.status})" if answer.status in statuses else None

"""What the registry asks plugins about the push of a manifest, and what they may see while they decide."""

from typing import Protocol

import msgspec

from ._errors import Unsupported
from ._manifests import Descriptor, Manifest
from ._operations import Handler, Operation, PushManifest, R


class Requirement(msgspec.Struct, frozen=True):
    """Whether something that is missing must be there, and what the client's user is told if not."""

    required: bool
    warnings: tuple[str, ...] = ()


class Decisions(Protocol):
    """What the registry asks plugins about a push."""

    async def validate_manifest(self, push: PushManifest, manifest: Manifest, registry: Handler) -> tuple[str, ...]:
        """Return warnings, or raise to refuse."""
        ...

    async def requires_reference(
        self, push: PushManifest, manifest: Manifest, descriptor: Descriptor, registry: Handler
    ) -> Requirement:
        """Return whether the missing `descriptor` must be there."""
        ...


class NoDecisions:
    """The answers of no plugin at all."""

    async def validate_manifest(self, push: PushManifest, manifest: Manifest, registry: Handler) -> tuple[str, ...]:
        """Warn of nothing."""
        del push, manifest, registry
        return ()

    async def requires_reference(
        self, push: PushManifest, manifest: Manifest, descriptor: Descriptor, registry: Handler
    ) -> Requirement:
        """Require everything."""
        del push, manifest, descriptor, registry
        return Requirement(required=True)


class ReadOnlyView:
    """A handler that passes on only what changes nothing; rules get it to look around with."""

    def __init__(self, inner: Handler) -> None:
        """Pass operations on to `inner`."""
        self._inner = inner

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation` if it needs no right but to see.

        Raises:
            Unsupported: it would change something.
        """
        if any(access.action not in {"pull", "catalog"} for access in operation.access):
            raise Unsupported(f"a rule may not {type(operation).__name__}")
        return await self._inner(operation)

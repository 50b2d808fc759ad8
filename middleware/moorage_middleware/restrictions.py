"""Refusing what the operator has turned off: pushes and deletes of a read-only registry, or deletes alone."""

from collections.abc import Set as AbstractSet

from moorage import Action, Handler, Operation, R, Unsupported


class Forbid:
    """A handler that refuses every operation that needs one of some actions."""

    def __init__(self, inner: Handler, actions: AbstractSet[Action], reason: str) -> None:
        """Pass on to `inner` what needs none of `actions`; refuse the rest for `reason`."""
        self._inner = inner
        self._actions = frozenset(actions)
        self._reason = reason

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`.

        Raises:
            Unsupported: it needs a forbidden action.
        """
        if any(access.action in self._actions for access in operation.access):
            raise Unsupported(self._reason)
        return await self._inner(operation)

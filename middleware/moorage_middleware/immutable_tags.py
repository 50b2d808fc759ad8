"""The rule that tags, once pushed, neither move nor vanish.

Two parts under one name and with one set of options. The middleware gives pushes and deletes a condition that the
registry enforces in the very moment of the write: nothing comes between, however many clients and processes there are.
The rule says the same ahead of time, where nobody enforces it: in mode `warn`, and in `moorage validate`.
"""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import cast

import msgspec

from moorage import (
    Deleted,
    DeleteManifest,
    DeleteTag,
    Glob,
    Handler,
    Manifest,
    ManifestUnknown,
    MiddlewareFactory,
    Operation,
    PullManifest,
    PushManifest,
    R,
    Refused,
    Rule,
    Scopes,
    TagCondition,
    TagFixed,
    hookimpl,
    scoped,
)

_log = logging.getLogger("moorage.rules")
_RULE = "immutable_tags"


class ImmutableTags(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `plugins: {immutable_tags: {...}}`.

    Attributes:
        tags: patterns of the tags that are immutable; without any all are.
        but: patterns of those among them that are not; `except` in the configuration.
    """

    tags: tuple[Glob, ...] = ()
    but: tuple[Glob, ...] = msgspec.field(name="except", default=())

    def condition(self) -> TagCondition:
        """Return which tags are immutable, as the registry wants it."""
        return TagCondition(tags=self.tags, but=self.but)


def _refused(error: TagFixed, *, status: int) -> Refused:
    named = f"the tag {error.tags[0]} is" if len(error.tags) == 1 else f"the tags {', '.join(error.tags[:5])} are"
    means = "means" if len(error.tags) == 1 else "mean"
    return Refused(
        f"{named} immutable here (rule {_RULE}) and {means} {error.digest}",
        status=status,
        detail={"rule": _RULE, "tags": list(error.tags), "digest": error.digest},
    )


class KeepTags:
    """A handler that lets immutable tags neither move nor vanish."""

    def __init__(self, options: ImmutableTags, inner: Handler) -> None:
        """Pass operations on to `inner`, under the condition that `options` ask for."""
        self._scopes = Scopes(options)
        self._inner = inner

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`.

        Raises:
            Refused: 409 for a push that would move an immutable tag, 403 for a delete that would take one away.
        """
        asked: object = operation  # to look into; the type of `operation` itself says what it is answered with
        if not isinstance(asked, PushManifest | DeleteManifest | DeleteTag):
            return await self._inner(operation)
        found = self._scopes.of(asked.repository)
        if found is None:
            return await self._inner(operation)
        condition = found.options.condition()
        if found.mode == "warn":
            return _warned(await self._inner(operation), condition)
        others = asked.tag_condition
        together = msgspec.structs.replace(condition, also=others) if others else condition
        try:
            return await self._inner(msgspec.structs.replace(operation, tag_condition=together))
        except TagFixed as error:
            if not any(map(condition.fixes, error.tags)):
                raise  # to whoever set the other condition
            refused = _refused(error, status=409 if isinstance(asked, PushManifest) else 403)
            _log.warning(
                "rule %s refuses a %s in %s from %s: %s",
                _RULE,
                type(operation).__name__,
                asked.repository,
                asked.origin.address or "this process",
                refused.message,
            )
            raise refused from None


def _warned(reply: R, condition: TagCondition) -> R:
    """Return `reply`, with a warning for each immutable tag that was deleted. Of pushes the rule below warns."""
    if not isinstance(reply, Deleted):
        return reply
    warnings = [f"{_RULE}: the tag {tag} is immutable and was deleted" for tag in reply.tags if condition.fixes(tag)]
    for warning in warnings:
        _log.warning("rule %s would refuse a delete: %s", _RULE, warning)
    return cast("R", msgspec.structs.replace(reply, warnings=(*reply.warnings, *warnings)))  # of the same class


class ExplainTags:
    """Says of a push that it would move an immutable tag."""

    def __init__(self, options: ImmutableTags) -> None:
        """Take the tags to look after from `options`."""
        self._condition = options.condition()

    @hookimpl
    async def validate_manifest(self, push: PushManifest, manifest: Manifest, registry: Handler) -> None:
        """Refuse a push that would move an immutable tag.

        Raises:
            Refused: it would.
        """
        for tag in push.written_tags:
            enforced = push.tag_condition is not None and push.tag_condition.fixes(tag)
            if enforced or not self._condition.fixes(tag):
                continue
            try:
                current = await registry(PullManifest(repository=push.repository, reference=tag))
            except ManifestUnknown:
                continue
            if current.digest != manifest.digest:
                raise _refused(TagFixed([tag], current.digest), status=409)


@asynccontextmanager
async def _open_middleware(options: ImmutableTags, inner: Handler) -> AsyncGenerator[Handler]:
    yield KeepTags(options, inner)


@asynccontextmanager
async def _open_rule(options: ImmutableTags) -> AsyncGenerator[object]:
    yield ExplainTags(options)


@hookimpl
def register_middleware() -> Mapping[str, object]:
    """Offer the part that enforces."""
    return {_RULE: MiddlewareFactory(scoped(ImmutableTags), _open_middleware)}


@hookimpl
def register_rules() -> Mapping[str, object]:
    """Offer the part that explains."""
    return {_RULE: Rule(ImmutableTags, _open_rule)}

"""Tags: what they mean, and moving them, under conditions that hold in the very moment of the write.

A tag means the digest in its `current` link, if that manifest is in the repository; its history says what it ever
meant, and nobody needs it to answer a client.

A list of tags looks for the `current` link of each. Of a store behind a network that is a request for each, so there a
tag that has anything is believed to have that, and the history is written after it and removed before it. Of a store
that is near, the history is the way from a digest to its tags: it is written before the link and removed after it.
"""

import logging
import random
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache

import trio

from . import _layout as layout
from ._concurrency import map_bounded
from ._digests import Digest
from ._driver import Condition, Driver, Unchanged
from ._errors import ConditionFailed, InternalError, PreconditionFailed, TagFixed, TagInvalid, Unavailable
from ._links import exists, read_link, read_versioned_link
from ._listing import children, names_below
from ._names import Reference, RepositoryName, Tag
from ._operations import DeleteTag, PushManifest, TagCondition

_log = logging.getLogger("moorage.registry")

_REMEMBERED = 16_384
_CAS_TRIES = 16
_LONGEST_PAUSE = 128
"""Milliseconds between two of these at the most."""
_HOLDS = 256
_HOLD_SECONDS = 10.0
_HOLD_PAUSE_SECONDS = (0.001, 0.01)
_ALL = 1 << 30


class Tags:
    """The tags of all repositories of a store."""

    def __init__(self, driver: Driver, *, reads_at_once: int) -> None:
        """Keep tags on `driver`; to find those of a digest, read `reads_at_once` of them at once."""
        self._driver = driver
        self._reads_at_once = reads_at_once
        self._listed_is_there = driver.capabilities.remote

    async def target(self, repository: RepositoryName, reference: Reference) -> Digest | None:
        """Return the digest that `reference` names, whether or not that is here; a digest names itself."""
        if isinstance(reference, Digest):
            return reference
        return await read_link(self._driver, layout.tag_current_link(repository, reference))

    async def meaning(self, repository: RepositoryName, reference: Reference) -> Digest | None:
        """Return the digest that `reference` names, None if no manifest that is here."""
        digest = await self.target(repository, reference)
        if digest is None or not await exists(self._driver, layout.revision_link(repository, digest)):
            return None
        return digest

    async def check(self, push: PushManifest, digest: Digest, tags: tuple[Tag, ...]) -> None:
        """Look early whether the conditions of `push` hold, so that nothing is stored for one that cannot succeed.

        What a tag means is looked at again in the moment of its write.

        Raises:
            PreconditionFailed: one does not.
        """
        if push.if_match or push.if_none_match:
            _check_match(push, await self.meaning(push.repository, push.reference))
        for tag in tags:
            if _is_fixed(push.tag_condition, tag):
                _check_fixed(tag, await self.meaning(push.repository, tag), digest)

    @asynccontextmanager
    async def held(self, repository: RepositoryName, digest: Digest) -> AsyncGenerator[None]:
        """Be the only one, over all processes, who makes fixed tags mean `digest` or deletes it.

        A delete looks whether fixed tags mean the manifest before it takes it away, and none may come to mean it in
        between. So pushes of fixed tags and deletes under a tag condition hold the digest meanwhile; nobody else does.

        Raises:
            Unavailable: others held it all the time.
        """
        # Stores keep something for each name that was ever held, so there are not too many of them.
        name = f"tags-{zlib.crc32(f'{repository}@{digest}'.encode()) % _HOLDS:03x}"
        deadline = trio.current_time() + _HOLD_SECONDS
        while True:
            async with self._driver.hold(name) as held:
                if held:
                    yield
                    return
            if trio.current_time() > deadline:
                raise Unavailable(f"{digest} is being tagged or deleted by too many at once", retry_after=1)
            await trio.sleep(random.uniform(*_HOLD_PAUSE_SECONDS))  # noqa: S311 - so that nobody keeps step

    async def write(self, push: PushManifest, tag: Tag, digest: Digest) -> None:
        """Make `tag` mean `digest`, if the conditions of `push` hold in that very moment.

        Raises:
            PreconditionFailed: one does not.
        """
        content = layout.link_content(digest)
        history = (layout.tag_index_link(push.repository, tag, digest), content)
        current = (layout.tag_current_link(push.repository, tag), content)
        matched = tag == push.reference and bool(push.if_match or push.if_none_match)
        fixed = _is_fixed(push.tag_condition, tag)
        if not matched and not fixed:
            await self._driver.write_all([current, history] if self._listed_is_there else [history, current])
            return
        if not self._listed_is_there:
            await self._driver.write_all([history])
        await self._move(push, tag, digest, matched=matched, fixed=fixed)
        if self._listed_is_there:
            await self._driver.write_all([history])

    async def _move(self, push: PushManifest, tag: Tag, digest: Digest, *, matched: bool, fixed: bool) -> None:
        repository = push.repository
        content = layout.link_content(digest)
        key = layout.tag_current_link(repository, tag)
        for number in range(_CAS_TRIES):
            await _let_others_end(number)
            condition, current = await self._state(repository, tag)
            if matched:
                _check_match(push, current)
            if fixed:
                _check_fixed(tag, current, digest)
            try:
                await self._driver.write(key, content, condition=condition)
            except ConditionFailed:
                continue
            return
        raise _contended(tag)

    async def _state(self, repository: RepositoryName, tag: Tag) -> tuple[Condition | None, Digest | None]:
        """Return the condition that a tag still means what it does now, and what that is."""
        link, condition = await read_versioned_link(self._driver, layout.tag_current_link(repository, tag))
        if link is not None and not await exists(self._driver, layout.revision_link(repository, link)):
            link = None
        return condition, link

    async def remove(self, delete: DeleteTag) -> bool:
        """Make a tag mean nothing; return whether it meant something.

        Raises:
            PreconditionFailed: it is fixed, or means what `delete` does not name.
        """
        repository, tag, if_match = delete.repository, delete.tag, delete.if_match
        for number in range(_CAS_TRIES):
            await _let_others_end(number)
            condition, current = await self._state(repository, tag)
            if current is None:
                return False
            if _is_fixed(delete.tag_condition, tag):
                raise TagFixed([tag], current)
            if if_match is not None and not if_match.matches(current):
                raise PreconditionFailed("the tag has moved", detail={"tag": tag, "digest": current})
            if await self._remove(repository, tag, condition):
                return True
        raise _contended(tag)

    async def _remove(self, repository: RepositoryName, tag: Tag, condition: Condition | None) -> bool:
        """Make `tag` mean nothing, unless it has moved; then leave it alone and return False.

        What somebody pushes under the tag meanwhile must not go with it, so only the history is removed whole.
        """
        unchanged = condition if isinstance(condition, Unchanged) else None
        if self._listed_is_there:
            await self._driver.delete_below(layout.tag_index(repository, tag))
        try:
            await self._driver.delete(layout.tag_current_link(repository, tag), condition=unchanged)
        except ConditionFailed:
            return False
        if not self._listed_is_there:
            await self._driver.delete_below(layout.tag_index(repository, tag))
        return True

    async def remove_all(self, repository: RepositoryName, digest: Digest) -> tuple[Tag, ...]:
        """Remove the tags that mean `digest`; return them."""

        async def remove(tag: Tag) -> bool:
            link, condition = await self._readable(repository, tag)
            return link == digest and await self._remove(repository, tag, condition)

        tags = await self._that_may_mean(repository, digest)
        gone = await map_bounded(remove, tags, limit=self._reads_at_once)
        return tuple(tag for tag, was_removed in zip(tags, gone, strict=True) if was_removed)

    async def check_fixed(self, repository: RepositoryName, digest: Digest, condition: TagCondition) -> None:
        """Look whether tags that `condition` fixes mean `digest`, which is here; whoever asks holds it.

        Raises:
            TagFixed: some do.
        """

        async def means(tag: Tag) -> bool:
            return (await self._readable(repository, tag))[0] == digest

        tags = await self._that_may_mean(repository, digest)
        fixed = [tag for tag in tags if condition.fixes(tag)]
        found = await map_bounded(means, fixed, limit=self._reads_at_once)
        if meant := [tag for tag, means_it in zip(fixed, found, strict=True) if means_it]:
            raise TagFixed(meant, digest)

    async def _that_may_mean(self, repository: RepositoryName, digest: Digest) -> Sequence[Tag]:
        """Return all tags that can mean `digest`; where looking costs no request, those whose history has it."""
        if self._listed_is_there:
            # All at once: for a page, some stores look through all of them.
            tags, _ = await self.page(repository, after="", limit=_ALL)
            return tags
        names = await children(self._driver, layout.tags(repository))
        known = [tag for tag in map(_tag, sorted(names)) if tag is not None]
        there = await self._driver.are_there([layout.tag_index_link(repository, tag, digest) for tag in known])
        return [tag for tag, meant_it in zip(known, there, strict=True) if meant_it]

    async def _readable(self, repository: RepositoryName, tag: Tag) -> tuple[Digest | None, Condition | None]:
        """Return what the link of a tag holds, and the condition that it still does."""
        try:
            return await read_versioned_link(self._driver, layout.tag_current_link(repository, tag))
        except InternalError as error:
            # A link that holds no digest means no manifest; that of others must not keep this one.
            _log.warning("%s", error)
            return None, None

    async def page(self, repository: RepositoryName, *, after: str, limit: int) -> tuple[list[Tag], bool]:
        """Return up to `limit` tags in byte order after `after`, and whether more follow."""

        async def are_there(names: Sequence[str]) -> Sequence[bool]:
            tags = list(map(_tag, names))
            keys = layout.tag_current_links(repository, filter(None, tags))
            there = await self._driver.are_there(keys)
            if len(keys) == len(names):
                return there
            of_tags = iter(there)
            return [tag is not None and next(of_tags) for tag in tags]

        names, more = await names_below(
            self._driver,
            layout.tags(repository),
            after=after,
            limit=limit,
            exist=are_there,
            believed=_is_tag if self._listed_is_there else None,
        )
        return list(filter(None, map(_tag, names))), more


@lru_cache(_REMEMBERED)
def _tag(name: str) -> Tag | None:
    """Return the tag of that name; None if it can be none."""
    try:
        return Tag(name)
    except TagInvalid:
        return None


def _is_tag(name: str) -> bool:
    return _tag(name) is not None


async def _let_others_end(number: int) -> None:
    """Wait before try `number`, counted from 0, of what others came between: the longer, the oftener they did."""
    if number:
        await trio.sleep(random.uniform(0, min(2**number, _LONGEST_PAUSE)) / 1000)  # noqa: S311 - as above


def _contended(tag: Tag) -> Unavailable:
    return Unavailable(f"the tag {tag} is being written by too many at once", retry_after=1)


def _check_match(push: PushManifest, current: Digest | None) -> None:
    detail = {"reference": str(push.reference), "digest": current and str(current)}
    if push.if_match is not None and not push.if_match.matches(current):
        raise PreconditionFailed("the reference does not mean what If-Match names", detail=detail)
    if push.if_none_match is not None and push.if_none_match.matches(current):
        raise PreconditionFailed("the reference means what If-None-Match excludes", detail=detail)


def _is_fixed(condition: TagCondition | None, tag: Tag) -> bool:
    return condition is not None and condition.fixes(tag)


def _check_fixed(tag: Tag, current: Digest | None, digest: Digest) -> None:
    if current is not None and current != digest:
        raise TagFixed([tag], current)

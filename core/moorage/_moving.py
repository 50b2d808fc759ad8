"""Bringing all that one store holds to another one, while both may be in use.

A move is planned by comparing the two lists, and carried out in the order in which a push writes: content, what names
it in a repository, manifests, what tags meant, what tags mean. So nothing at the destination ever points at what is not
there yet. What the destination holds is all that is remembered: a move that was cut off is planned anew, and what has
arrived is no part of it any more.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing
from enum import IntEnum

import msgspec
import trio

from . import _layout as layout
from ._concurrency import map_bounded
from ._digests import Digest, open_hasher
from ._driver import Driver, Entry
from ._errors import DigestInvalid, InternalError, KeyUnknown

_BLOB = re.compile(layout.ROOT + r"blobs/([^/]+)/[^/]+/([^/]+)/data")
_SESSION = re.compile(r"/_uploads/")
_NAMED = re.compile(
    r"/_(?:layers|manifests/revisions|manifests/tags/[^/]+/index|referrers/[^/]+/[^/]+)/[^/]+/[^/]+(?:/link)?$"
)
"""Keys that end in a digest which says all that is there."""
_REVISION = "/_manifests/revisions/"
_TAG = "/_manifests/tags/"
_CURRENT = "/current/link"
_SMALL = 4 << 20


class Step(IntEnum):
    """What belongs together in the order of a push."""

    CONTENT = 0
    LINKS = 1
    MANIFESTS = 2
    HISTORY = 3
    TAGS = 4


class Item(msgspec.Struct, frozen=True):
    """An object to be brought over: its key, its bytes, and its step."""

    key: str
    size: int
    step: Step


class Plan(msgspec.Struct, frozen=True):
    """What a move consists of.

    Attributes:
        items: what the destination lacks, or has otherwise, in no particular order.
        gone: keys that the destination has and the source has not; content is not among them.
        same: how many objects need not be brought.
        content: the keys of content that the destination has and need not be brought.
    """

    items: tuple[Item, ...]
    gone: tuple[str, ...]
    same: int
    content: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """How many bytes are to be brought."""
        return sum(item.size for item in self.items)


class Flaw(msgspec.Struct, frozen=True):
    """Something at the source that is not what its name says, and was left there."""

    key: str
    says: str


class Moved(msgspec.Struct):
    """How far a move has come.

    Attributes:
        objects: how many objects were brought, or turned out to need nothing.
        bytes: how many of their bytes.
        removed: how many keys were removed from the destination.
        dangling: how many links were left whose content the source does not have; it shows nothing for them either.
        flaws: what was left because it is not what its name says.
    """

    objects: int = 0
    bytes: int = 0
    removed: int = 0
    dangling: int = 0
    flaws: list[Flaw] = msgspec.field(default_factory=list[Flaw])


async def plan_move(
    source: Driver, destination: Driver, *, jobs: int = 16, found: Callable[[int], object] = lambda count: None
) -> Plan:
    """Compare two stores.

    Upload sessions and what a registry keeps for itself (leases, locks, temporary files) are no part of a move. A link
    whose name says what is in it is the same wherever it is; what a tag means is read.

    Args:
        source: where everything is.
        destination: where it is to be.
        jobs: how many tags are read at once.
        found: told how many objects the source was seen to have, now and then.

    Raises:
        DriverError: one of the stores.
    """
    items: list[Item] = []
    gone: list[str] = []
    doubtful: list[Item] = []
    content: set[str] = set()
    same = count = 0
    async with (
        aclosing(_everything(source)) as ours,
        aclosing(_everything(destination)) as theirs,
        aclosing(_side_by_side(ours, theirs)) as pairs,
    ):
        async for here, there in pairs:
            if here is None:
                assert there is not None  # noqa: S101 - one of the two is there
                if _BLOB.fullmatch(there.key) is None:
                    gone.append(there.key)
                continue
            count += 1
            if count % 1000 == 0:
                found(count)
            item = Item(here.key, await _size(source, here), _step(here.key))
            if there is None or await _size(destination, there) != item.size:
                items.append(item)
            elif item.step is Step.TAGS or (item.step is Step.LINKS and _NAMED.search(item.key) is None):
                doubtful.append(item)
            else:
                same += 1
                if item.step is Step.CONTENT:
                    content.add(item.key)
    found(count)

    async def differs(item: Item) -> bool:
        return await _content(source, item.key) != await _content(destination, item.key)

    for item, other in zip(doubtful, await map_bounded(differs, doubtful, limit=jobs), strict=True):
        if other:
            items.append(item)
        else:
            same += 1
    return Plan(tuple(items), tuple(gone), same, frozenset(content))


async def move(
    plan: Plan,
    source: Driver,
    destination: Driver,
    *,
    jobs: int = 16,
    remove: bool = False,
    advance: Callable[[Moved], object] = lambda moved: None,
) -> Moved:
    """Carry out `plan`; what has vanished from the source meanwhile is passed over.

    Every byte of content is hashed on its way, and appears only if its digest is the one that its key names.

    Args:
        plan: what to bring.
        source: where it is.
        destination: where it is to be.
        jobs: how many objects are under way at once.
        remove: also remove from the destination, in the opposite order, what the source does not have; content stays,
            for the collector.
        advance: told how far it is, often.

    Returns:
        what was done; what was left there is among its flaws.

    Raises:
        DriverError: one of the stores; what has been brought stays, and the next plan is that much shorter.
    """
    moved = Moved()
    mover = _Mover(source, destination, moved, advance, plan.content)
    for step in Step:
        some = [item for item in plan.items if item.step is step]
        # Large ones first, so that none of them is still under way alone at the end.
        some.sort(key=lambda item: -item.size)
        await map_bounded(mover.content if step is Step.CONTENT else mover.link, some, limit=jobs)
    if remove:
        for step in reversed(Step):
            keys = [key for key in plan.gone if _step(key) is step]
            for at in range(0, len(keys), 1000):
                await destination.delete(*keys[at : at + 1000])
                moved.removed += len(keys[at : at + 1000])
                advance(moved)
    return moved


class _Mover:
    """Brings single objects."""

    def __init__(
        self,
        source: Driver,
        destination: Driver,
        moved: Moved,
        advance: Callable[[Moved], object],
        content: Collection[str],
    ) -> None:
        self._source = source
        self._destination = destination
        self._moved = moved
        self._advance = advance
        # What is known to be at the destination: it is not asked for that again by each of many links.
        self._listed = content
        self._brought: set[str] = set()

    async def content(self, item: Item) -> None:
        """Bring a blob, if it is what its key says."""
        match = _BLOB.fullmatch(item.key)
        try:
            digest = Digest(f"{match[1]}:{match[2]}") if match else None
        except DigestInvalid:
            digest = None
        if digest is None:
            self._flaw(item, "is named by no digest")
        else:
            await self._bring(item, digest)
        self._done()

    async def _bring(self, item: Item, digest: Digest) -> None:
        arrived = 0

        async def checked(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
            nonlocal arrived
            hasher = open_hasher(digest.algorithm)
            async for chunk in chunks:
                await trio.to_thread.run_sync(hasher.update, chunk)
                arrived += len(chunk)
                self._moved.bytes += len(chunk)
                self._advance(self._moved)
                yield chunk
            if hasher.digest() != digest:
                raise _WrongContent

        try:
            async with self._source.open(item.key) as reader, aclosing(checked(aiter(reader))) as chunks:
                if reader.stat.size <= _SMALL:
                    whole = b"".join([chunk async for chunk in chunks])
                    await self._destination.write(item.key, whole)
                else:
                    await self._destination.write(item.key, chunks)
            self._brought.add(item.key)
        except _WrongContent:
            self._flaw(item, f"its {arrived} bytes do not have the digest that names them")
        except KeyUnknown:
            return

    async def link(self, item: Item) -> None:
        """Bring a small object; a link only if there is content for it."""
        try:
            content = await _content(self._source, item.key)
        except KeyUnknown:
            content = None
        if content is not None and await self._is_complete(item, content):
            await self._destination.write(item.key, content)
        self._moved.bytes += item.size
        self._done()

    async def _is_complete(self, item: Item, content: bytes) -> bool:
        """Return whether what `item` points at is at the destination; bring it if it came late."""
        if not item.key.endswith("/link"):
            return True
        try:
            digest = layout.parse_link(content, item.key)
        except InternalError:
            digest = None
        if digest is None:
            self._flaw(item, "is no link")
            return False
        if item.step in {Step.HISTORY, Step.TAGS}:
            return True
        key = layout.blob(digest)
        if key in self._listed or key in self._brought:
            return True
        if await _is_there(self._destination, key):
            self._brought.add(key)
            return True
        # Pushed while the rest was under way, or known to be wrong, or long gone.
        if any(flaw.key == key for flaw in self._moved.flaws):
            return False
        if await _is_there(self._source, key):
            await self._bring(Item(key, 0, Step.CONTENT), digest)
            return key in self._brought
        self._moved.dangling += 1
        return False

    def _flaw(self, item: Item, says: str) -> None:
        self._moved.flaws.append(Flaw(item.key, says))

    def _done(self) -> None:
        self._moved.objects += 1
        self._advance(self._moved)


class _WrongContent(Exception):
    """A blob's bytes do not have the digest that names them."""


def _step(key: str) -> Step:
    if _BLOB.fullmatch(key) is not None:
        return Step.CONTENT
    if _REVISION in key:
        return Step.MANIFESTS
    if _TAG in key:
        return Step.TAGS if key.endswith(_CURRENT) else Step.HISTORY
    return Step.LINKS


async def _everything(driver: Driver) -> AsyncGenerator[Entry]:
    """Give all keys of the layout that are no part of an upload session, in order."""
    after = ""
    while True:
        page = await driver.list(layout.ROOT, after=after)
        for entry in page.entries:
            if _SESSION.search(entry.key) is None:
                yield entry
        if not page.more or not page.entries:
            return
        after = page.entries[-1].key


async def _side_by_side(
    ours: AsyncGenerator[Entry], theirs: AsyncGenerator[Entry]
) -> AsyncGenerator[tuple[Entry | None, Entry | None]]:
    """Give the entries of two ordered lists, those of one key together."""
    here, there = await anext(ours, None), await anext(theirs, None)
    while here is not None or there is not None:
        if there is None or (here is not None and here.key < there.key):
            yield here, None
            here = await anext(ours, None)
        elif here is None or there.key < here.key:
            yield None, there
            there = await anext(theirs, None)
        else:
            yield here, there
            here, there = await anext(ours, None), await anext(theirs, None)


async def _size(driver: Driver, entry: Entry) -> int:
    if entry.size is not None:
        return entry.size
    try:
        return (await driver.stat(entry.key)).size
    except KeyUnknown:
        return -1


async def _content(driver: Driver, key: str) -> bytes:
    return await driver.read(key, limit=_SMALL)


async def _is_there(driver: Driver, key: str) -> bool:
    try:
        await driver.stat(key)
    except KeyUnknown:
        return False
    return True

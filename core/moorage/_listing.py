"""Names in the order that clients are promised, from stores that list keys in theirs.

Clients get names in byte order (OCI distribution spec, "Listing Tags"). Stores order keys, in which a name is followed
by a slash; and since `-` and `.` come before the slash, `1.0-alpine/…` and `1.0.1/…` are listed before `1.0/…`. Sorting
a page is not enough, as the missing name may stand on the next one.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress

from . import _layout as layout
from ._concurrency import map_bounded
from ._digests import Digest
from ._driver import Driver
from ._errors import DigestInvalid, NameInvalid
from ._names import RepositoryName

_LOOKS_AT_ONCE = 16


async def names_below(
    driver: Driver,
    prefix: str,
    *,
    after: str,
    limit: int,
    exist: Callable[[Sequence[str]], Awaitable[Sequence[bool]]],
    believed: Callable[[str], bool] | None = None,
) -> tuple[list[str], bool]:
    """Return up to `limit` names of directories right below `prefix`, in byte order after `after`, and if more follow.

    `exist` says of names, which the store listed or might have, whether they are really there; of those that were
    listed, what is `believed` is not asked for.

    What is listed up to some key leaves out a smaller name only if that name is the beginning of a listed one, before
    a dash or a dot; so these few are asked for one by one.
    """
    if limit == 0:
        return [], False
    found: set[str] = set()
    asked: set[str] = set()
    # Any key of a name after `after` sorts after this bare name, which is no key of its own.
    position = prefix + after
    beginning = len(prefix)
    # One name more than asked for tells whether a page follows.
    while len(found) <= limit:
        listing = await driver.list(prefix, after=position, delimiter="/", limit=limit + 1 - len(found))
        listed = [key[beginning:-1] for entry in listing.entries if (key := entry.key)[-1] == "/"]
        candidates = {name for name in listed if name > after}
        if listing.more and listing.entries:
            # All keys up to the last one listed are known; what a further page brings sorts after it, slash and all.
            last = listing.entries[-1].key[len(prefix) :]
            for name in listed:
                if "-" not in name and "." not in name:
                    continue
                candidates.update(
                    name[:at]
                    for at, character in enumerate(name)
                    if at and character in "-." and name[:at] > after and name[:at] + "/" > last
                )
        candidates -= asked
        asked |= candidates
        if believed is not None:
            taken = {name for name in candidates.intersection(listed) if believed(name)}
            found |= taken
            candidates -= taken
        ordered = sorted(candidates)
        present = await exist(ordered)
        found.update(name for name, there in zip(ordered, present, strict=True) if there)
        if not listing.more or not listing.entries:
            break
        position = listing.entries[-1].key
    names = sorted(found)
    return names[:limit], len(names) > limit


async def is_below(driver: Driver, prefix: str) -> bool:
    """Return whether any key lies below `prefix`."""
    return bool((await driver.list(prefix, limit=1)).entries)


async def repositories(driver: Driver, *, part: str, after: str = "") -> AsyncGenerator[RepositoryName]:
    """Give the repositories that have something below `part`, such as `_manifests`, in byte order after `after`.

    Names nest, so `a` is followed by `a-b` and only then by `a/b`: each directory stands for two places in the order,
    its own name and the name with a slash, below which others lie.
    """
    inside = await children(driver, layout.REPOSITORIES)
    async with aclosing(_walk(driver, "", inside, part=part, after=after)) as names:
        async for name in names:
            # Distribution takes an upper-case first component; no client can ask this registry for it.
            with suppress(NameInvalid):
                yield RepositoryName(name)


async def _walk(
    driver: Driver, parent: str, directories: Sequence[str], *, part: str, after: str
) -> AsyncGenerator[str]:
    names = [parent + child for child in directories if child[0] != "_"]
    places = [*names, *(name + "/" for name in names)]
    wanted = sorted(each for each in places if each > after or (each[-1] == "/" and after.startswith(each)))
    # What is in a directory is looked for once, for both of its places; in several at once, but few before any is given.
    inside: dict[str, Sequence[str]] = {}
    at, ahead = 0, 1
    while at < len(wanted):
        some = wanted[at : at + ahead]
        unknown = [name for name in dict.fromkeys(place.rstrip("/") for place in some) if name not in inside]
        found = await map_bounded(lambda name: children(driver, f"{layout.REPOSITORIES}{name}/"), unknown, limit=ahead)
        inside.update(zip(unknown, found, strict=True))
        for place in some:
            if place[-1] != "/":
                if part in inside[place]:
                    yield place
                continue
            async with aclosing(_walk(driver, place, inside.pop(place[:-1]), part=part, after=after)) as below:
                async for each in below:
                    yield each
        at, ahead = at + ahead, min(2 * ahead, _LOOKS_AT_ONCE)


async def list_revisions(driver: Driver, repository: RepositoryName) -> AsyncGenerator[Digest]:
    """Give the digest of every manifest that `repository` has a link to, tagged or not, in the store's order.

    What pushes and deletes do meanwhile may or may not be seen; that the manifest itself is there is not looked for.

    Raises:
        DriverError: the store cannot be read.
    """
    async with aclosing(_links(driver, layout.revisions(repository))) as links:
        async for digest in links:
            yield digest


async def _links(driver: Driver, prefix: str) -> AsyncGenerator[Digest]:
    """Give the digests that links right below `prefix` are named by."""
    position = ""
    while True:
        listing = await driver.list(prefix, after=position)
        for entry in listing.entries:
            position = entry.key
            algorithm, _, rest = entry.key[len(prefix) :].partition("/")
            encoded, _, name = rest.partition("/")
            # What is no link of a digest was not put there by a registry.
            if name == "link":
                with suppress(DigestInvalid):
                    yield Digest(f"{algorithm}:{encoded}")
        if not listing.more or not listing.entries:
            return


async def list_blobs(
    driver: Driver, wanted: Callable[[RepositoryName], bool]
) -> AsyncGenerator[tuple[RepositoryName, Digest]]:
    """Give every blob that a `wanted` repository has a link to, repository by repository.

    What pushes and deletes do meanwhile may or may not be seen.

    Raises:
        DriverError: the store cannot be read.
    """
    async with aclosing(repositories(driver, part="_layers")) as names:
        async for repository in names:
            if wanted(repository):
                async with aclosing(_links(driver, layout.layers(repository))) as links:
                    async for digest in links:
                        yield repository, digest


async def count_children(driver: Driver, prefix: str, *, limit: int) -> int:
    """Return how many directories lie right below `prefix`, or `limit` if there are as many or more."""
    count = 0
    position = ""
    while count < limit:
        listing = await driver.list(prefix, after=position, delimiter="/", limit=min(limit - count, 1000))
        count += sum(entry.key.endswith("/") for entry in listing.entries)
        if not listing.more or not listing.entries:
            break
        position = listing.entries[-1].key
    return count


async def children(driver: Driver, prefix: str) -> Sequence[str]:
    """Return the names of all directories right below `prefix`, in the store's order."""
    found: list[str] = []
    position = ""
    while True:
        listing = await driver.list(prefix, after=position, delimiter="/")
        found += [entry.key[len(prefix) : -1] for entry in listing.entries if entry.key.endswith("/")]
        if not listing.more:
            return found
        position = listing.entries[-1].key

"""end-8: the list of tags, whole and page by page."""

from __future__ import annotations

from . import expect
from .answer import Answer, CheckFailed
from .case import Group, NotOffered
from .client import Client
from .content import unique
from .scratch import Scratch

__all__ = ["case"]

case = Group("tags", "Listing tags")

# In this set both permitted orders are the same.
PLAIN = [f"tag-{at:02}" for at in range(10)]
MIXED = ["1.0", "1.0-alpine", "1.0.1", "10", "A", "B", "_x", "a", "b", "latest", "v1", "V2", "x.y", "x_y", "x-y"]
MANY = 120
MOST_PAGES = 1000


async def listed(registry: Client, first: Answer, name: str) -> list[str]:
    """Return the tags of an answer and of all pages after it."""
    found = expect.tags(first, name)
    answer = first
    for _ in range(MOST_PAGES):
        following = expect.next_page(answer)
        if following is None:
            return found
        answer = await registry.send("GET", following)
        found += expect.tags(answer, name)
    raise CheckFailed(f"at most {MOST_PAGES} pages", f"still a Link\nin {answer}")


def _check_is(answer: Answer, found: list[str], wanted: list[str]) -> None:
    expect.is_true(answer, found == wanted, f"the tags {', '.join(wanted) or '(none)'}", ", ".join(found) or "(none)")


@case(section="end-8a")
async def all_tags_are_listed(registry: Client, scratch: Scratch) -> None:
    """GET answers 200 with the repository's name and each of its tags once."""
    await scratch.tagged(PLAIN)
    answer = await registry.list_tags(scratch.name)
    found = await listed(registry, answer, scratch.name)
    _check_is(answer, sorted(found), PLAIN)


@case(section="end-8a")
async def more_than_a_hundred_tags(registry: Client, scratch: Scratch) -> None:
    """GET lists 120 tags, all at once or with a Link to the rest."""
    wanted = [f"tag-{at:03}" for at in range(MANY)]
    await scratch.tagged(wanted)
    answer = await registry.list_tags(scratch.name)
    _check_is(answer, sorted(await listed(registry, answer, scratch.name)), wanted)


@case(section="end-8a")
async def order(registry: Client, scratch: Scratch) -> None:
    """Tags are in byte order, or in alphabetical order without regard to case."""
    await scratch.tagged(MIXED)
    answer = await registry.list_tags(scratch.name)
    found = await listed(registry, answer, scratch.name)
    expect.is_true(answer, sorted(found) == sorted(MIXED), "each tag once", ", ".join(found))
    folded = [tag.lower() for tag in found]
    either = found == sorted(found) or folded == sorted(folded)
    expect.is_true(answer, either, "byte order, or alphabetical order without regard to case", ", ".join(found))


@case(section="end-8a")
async def repository_with_untagged_manifests_only(registry: Client, scratch: Scratch) -> None:
    """A repository that exists but has no tags is listed with 200 and none."""
    await scratch.pushed_image()
    answer = await registry.list_tags(scratch.name)
    _check_is(answer, expect.tags(answer, scratch.name), [])


@case(section="end-8a", requires=())
async def unknown_repository(registry: Client, scratch: Scratch) -> None:
    """A repository that does not exist is 404, or 200 with no tags."""
    answer = await registry.list_tags(scratch.name)
    expect.status(answer, 200, 404)
    if answer.status == 200:
        _check_is(answer, expect.tags(answer, scratch.name), [])


@case(section="end-8a")
async def moved_tag_is_listed_once(registry: Client, scratch: Scratch) -> None:
    """A tag that was pushed three times is listed once."""
    for _ in range(3):
        await scratch.pushed_image("tag")
    answer = await registry.list_tags(scratch.name)
    _check_is(answer, expect.tags(answer, scratch.name), ["tag"])


@case(section="end-8a")
async def repositories_below_another(registry: Client, scratch: Scratch) -> None:
    """The tags of a repository whose name continues another's are not listed with those."""
    below = f"{scratch.name}/below-{unique()}"
    await scratch.pushed_image("outer")
    await scratch.pushed_image("inner", name=below)
    for name, tag in ((scratch.name, "outer"), (below, "inner")):
        answer = await registry.list_tags(name)
        _check_is(answer, expect.tags(answer, name), [tag])


@case(section="end-8b")
async def first_n(registry: Client, scratch: Scratch) -> None:
    """`n=3` gives the first three tags, or fewer with a Link."""
    await scratch.tagged(PLAIN)
    answer = await registry.list_tags(scratch.name, n=3)
    found = expect.tags(answer, scratch.name)
    if len(found) < 3 and expect.next_page(answer) is not None:
        _check_is(answer, found, PLAIN[: len(found)])
    else:
        _check_is(answer, found, PLAIN[:3])


@case(section="end-8b")
async def n_larger_than_the_list(registry: Client, scratch: Scratch) -> None:
    """`n=50` of ten tags gives all of them."""
    await scratch.tagged(PLAIN)
    answer = await registry.list_tags(scratch.name, n=50)
    _check_is(answer, sorted(await listed(registry, answer, scratch.name)), PLAIN)


@case(section="end-8b")
async def n_as_large_as_the_list(registry: Client, scratch: Scratch) -> None:
    """`n=10` of ten tags gives all of them, and a Link, if there is one, leads to no more."""
    await scratch.tagged(PLAIN)
    answer = await registry.list_tags(scratch.name, n=len(PLAIN))
    _check_is(answer, sorted(await listed(registry, answer, scratch.name)), PLAIN)


@case(section="end-8b")
async def n_of_zero(registry: Client, scratch: Scratch) -> None:
    """`n=0` gives an empty list and no Link."""
    await scratch.tagged(PLAIN[:2])
    answer = await registry.list_tags(scratch.name, n=0)
    _check_is(answer, expect.tags(answer, scratch.name), [])
    expect.is_true(answer, not answer.headers.get_list("link"), "no Link")


@case(section="end-8b")
async def n_that_is_no_number(registry: Client, scratch: Scratch) -> None:
    """`n` that is negative or no number is refused with 400, or ignored."""
    await scratch.tagged(PLAIN[:2])
    ignored: Answer | None = None
    for n in ("-1", "NaN", "1.5", ""):
        answer = await registry.list_tags(scratch.name, n=n)
        expect.status(answer, 200, 400, why=f"n={n}")
        if answer.status == 200:
            ignored = answer
    if ignored is not None:
        raise NotOffered.by(ignored, "an n that makes no sense is not refused, which is allowed")


@case(section="end-8b")
async def last_without_n(registry: Client, scratch: Scratch) -> None:
    """`last` alone gives all tags after it."""
    await scratch.tagged(PLAIN)
    answer = await registry.list_tags(scratch.name, last=PLAIN[4])
    _check_is(answer, await listed(registry, answer, scratch.name), PLAIN[5:])


@case(section="end-8b")
async def last_with_n(registry: Client, scratch: Scratch) -> None:
    """`last` with `n` gives so many tags after it."""
    await scratch.tagged(PLAIN)
    answer = await registry.list_tags(scratch.name, last=PLAIN[4], n=2)
    _check_is(answer, expect.tags(answer, scratch.name), PLAIN[5:7])


@case(section="end-8b")
async def last_at_the_end(registry: Client, scratch: Scratch) -> None:
    """`last` with the last tag of all gives an empty list."""
    await scratch.tagged(PLAIN[:3])
    answer = await registry.list_tags(scratch.name, last=PLAIN[2])
    _check_is(answer, expect.tags(answer, scratch.name), [])


@case(section="end-8b")
async def last_that_does_not_exist(registry: Client, scratch: Scratch) -> None:
    """`last` need not be a tag: it is a place in the order."""
    await scratch.tagged(PLAIN)
    for last, wanted in (("tag-04x", PLAIN[5:]), ("aaa", PLAIN), ("zzz", [])):
        answer = await registry.list_tags(scratch.name, last=last)
        _check_is(answer, await listed(registry, answer, scratch.name), wanted)


@case(section="end-8b", since="1.1")
async def links_lead_through_the_whole_list(registry: Client, scratch: Scratch) -> None:
    """Following each Link from `n=3` gives all tags, each once and in order."""
    await scratch.tagged(PLAIN)
    answer = await registry.list_tags(scratch.name, n=3)
    if expect.next_page(answer) is None:
        raise NotOffered.by(answer, "no Link to the next page: clients go on with last=")
    _check_is(answer, await listed(registry, answer, scratch.name), PLAIN)


@case(section="end-8b")
async def last_leads_through_the_whole_list(registry: Client, scratch: Scratch) -> None:
    """Asking on with `last` from page to page gives all tags, each once, in whatever order they have."""
    await scratch.tagged(MIXED)
    found: list[str] = []
    answer = await registry.list_tags(scratch.name, n=2)
    while page := expect.tags(answer, scratch.name):
        found += page
        expect.is_true(answer, len(found) <= len(MIXED), "an end after all tags", ", ".join(found))
        answer = await registry.list_tags(scratch.name, n=2, last=page[-1])
    expect.is_true(answer, sorted(found) == sorted(MIXED), "each tag once", ", ".join(found))


@case(section="end-8a", requires={"push", "delete-tag"})
async def deleted_tag_is_not_listed(registry: Client, scratch: Scratch) -> None:
    """After a tag was deleted the list has all others; after the last one, it is empty (or 404)."""
    await scratch.tagged(PLAIN[:3])
    expect.status(await registry.delete_manifest(scratch.name, PLAIN[1]), 202)
    answer = await registry.list_tags(scratch.name)
    _check_is(answer, expect.tags(answer, scratch.name), [PLAIN[0], PLAIN[2]])
    for tag in (PLAIN[0], PLAIN[2]):
        expect.status(await registry.delete_manifest(scratch.name, tag), 202)
    answer = await registry.list_tags(scratch.name)
    expect.status(answer, 200, 404)
    if answer.status == 200:
        _check_is(answer, expect.tags(answer, scratch.name), [])

"""Running `moorage copy` with an image layout on one side: a layout into a store, or what a store has into a layout."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

import click
import trio

from moorage import (
    Digest,
    Glob,
    Handler,
    ListRepositories,
    Moved,
    Registry,
    RegistryError,
    RepositoryName,
    Tag,
    map_bounded,
    open_store,
    open_to_look,
)

from .copy_command import Side, check_outlives
from .copy_progress import Shown, Wrong, amount, sentences, shown, tell_flaws
from .image_copy import (
    Destination,
    ImagePlan,
    Wanted,
    copy_images,
    find_images,
    list_tags,
    meaning,
    plan_images,
)
from .image_layout import open_layout
from .layout_push import Repositories, check_all_placed, choose
from .layout_writing import open_layout_to_write
from .verdict_tables import printable

N = TypeVar("N", bound=str)

_PAGE = 1000
_OTHER_ARCHIVES = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".zip")


def layout_of(
    source: Path | None,
    destination: Path | None,
    from_layout: str | None,
    to_layout: str | None,
    *,
    chosen: bool,
    remove: bool,
) -> Path | None:
    """Return the layout that is one side of a copy, None if neither is one.

    Args:
        source: the first configuration that is given.
        destination: the second one.
        from_layout: what layout is to be read.
        to_layout: what layout is to be written.
        chosen: whether repositories or tags are.
        remove: whether what the source does not have is to be removed.

    Raises:
        Wrong: the arguments contradict each other.
        click.UsageError: one is missing.
    """
    given, option = (to_layout, "--to-layout") if from_layout is None else (from_layout, "--from-layout")
    if given is None:
        if source is None or destination is None:
            hint = "'SOURCE'" if source is None else "'DESTINATION'"
            raise click.MissingParameter(param_type="argument", param_hint=hint)
        if chosen:
            raise Wrong("--repository and --tag are for layouts; between two stores everything is copied")
        return None
    if from_layout is not None and to_layout is not None:
        raise Wrong("--from-layout and --to-layout exclude each other: the other side is a store")
    if source is None:
        raise Wrong(f"{option} needs the configuration of the store that is the other side")
    if destination is not None:
        raise Wrong(f"with {option} a layout is one side, so one configuration is given, not two")
    if remove:
        raise Wrong(f"--delete is for two stores, and of no use with {option}: a layout may be a part of what is kept")
    if given in {"", "-"}:
        raise Wrong(f"{option}: a layout is a folder or a tar, and {given!r} names neither")
    return Path(given)


def copy_from_layout(
    path: Path,
    destination: Side,
    *,
    repositories: Sequence[str],
    tags: Sequence[str],
    jobs: int,
    dry_run: bool,
    quiet: bool,
) -> int:
    """Push the layout at `path` into the store of `destination`, show how far it is, and return the exit code.

    Raises:
        Wrong: nothing could be begun.
        Stopped: one of the sides failed; what was copied stays.
    """
    if len(repositories) > 1:
        raise Wrong("a layout goes into one repository, so --repository is given once")
    check_outlives("the destination", destination)
    try:
        repository = RepositoryName(repositories[0]) if repositories else None
        chosen = [Tag(tag) for tag in tags]
    except RegistryError as error:
        raise Wrong(error.message) from None

    async def run() -> Done:
        async with AsyncExitStack() as stack:
            try:
                layout = await stack.enter_async_context(open_layout(path, hashed=False))
            except OSError as error:
                raise Wrong(f"{printable(str(path))}: {error.strerror}") from None
            wanted = choose(layout, repository, chosen)
            store = await stack.enter_async_context(open_store(*destination, to_look=dry_run))
            there = Repositories(Registry(store), jobs=jobs)
            progress = stack.enter_context(shown(quiet=quiet))
            images = await find_images(layout, wanted, jobs=jobs, found=progress.found)
            if repository is None and not chosen:
                check_all_placed(layout, images)
            plan = await plan_images(images, there, jobs=jobs)
            if dry_run:
                return Done(plan, None)
            return Done(plan, await _carry_out(plan, layout, there, jobs=jobs, progress=progress))

    with sentences():
        return _tell(trio.run(run))


def copy_to_layout(
    path: Path,
    source: Side,
    *,
    repositories: Sequence[str],
    tags: Sequence[str],
    jobs: int,
    dry_run: bool,
    quiet: bool,
) -> int:
    """Write what the store of `source` has to the layout at `path`, show how far it is, and return the exit code.

    Raises:
        Wrong: nothing could be begun.
        Stopped: one of the sides failed; what was copied stays.
    """
    check_outlives("the source", source)
    if path.name.endswith(_OTHER_ARCHIVES):
        raise Wrong(f"{printable(str(path))}: a layout is written as a folder, or as a tar that ends in .tar")
    names, wanted_tags = _patterns("--repository", repositories), _patterns("--tag", tags)
    # A tar takes one thing after the other, always in the same order.
    at_once = 1 if path.suffix == ".tar" else jobs

    async def run() -> Done:
        async with AsyncExitStack() as stack:
            opened = await stack.enter_async_context(open_to_look(*source))
            wanted, dangling = await _wanted(opened.handler, names, wanted_tags, jobs=jobs)
            try:
                layout = await stack.enter_async_context(open_layout_to_write(path, dry_run=dry_run))
            except OSError as error:
                raise Wrong(f"{printable(str(path))}: {error.strerror}") from None
            progress = stack.enter_context(shown(quiet=quiet))
            layout.index.expect({each.repository for each in wanted})
            images = await find_images(opened.handler, wanted, jobs=jobs, found=progress.found)
            plan = await plan_images(images, layout, jobs=jobs)
            # Better now than when everything is there.
            layout.index.encode(plan.names)
            if dry_run:
                return Done(plan, None, dangling)
            moved = await _carry_out(plan, opened.handler, layout, jobs=at_once, progress=progress)
            return Done(plan, moved, dangling)

    with sentences():
        return _tell(trio.run(run))


class Done(NamedTuple):
    """What was to be done and, unless that was all that was asked, what was done."""

    plan: ImagePlan
    moved: Moved | None
    dangling: int = 0


async def _carry_out(
    plan: ImagePlan, source: Handler, destination: Destination, *, jobs: int, progress: Shown
) -> Moved:
    progress.begin(plan.objects, plan.size)
    async with progress.telling():
        return await copy_images(plan, source, destination, jobs=jobs, advance=progress.advance)


def _tell(done: Done) -> int:
    """Say what was done; return the exit code."""
    plan, moved, dangling = done
    if moved is None:
        click.echo(f"to copy: {amount(plan.objects, plan.size)}; the same already: {plan.same}")
    else:
        click.echo(f"copied: {amount(moved.objects, moved.bytes)}; the same already: {plan.same}")
    if dangling:
        click.echo(f"tags that mean nothing that the source has, left there: {dangling}")
    return tell_flaws(plan.flaws if moved is None else moved.flaws)


def _patterns(option: str, texts: Sequence[str]) -> list[Glob]:
    found: list[Glob] = []
    for text in texts:
        try:
            found.append(Glob(text))
        except ValueError as error:
            raise Wrong(f"{option}: {printable(text)}: a pattern has {error}") from None
    return found


async def _wanted(
    source: Handler, names: Sequence[Glob], tags: Sequence[Glob], *, jobs: int
) -> tuple[list[Wanted], int]:
    """Return the images that are asked for, and how many of their tags mean nothing.

    Raises:
        Wrong: there is nothing of that name.
    """
    repositories = _matching("--repository", names, await _repositories(source))
    listed = await map_bounded(lambda each: list_tags(source, each), repositories, limit=jobs)
    pairs = [(repository, tag) for repository, found in zip(repositories, listed, strict=True) for tag in found]
    known = set(_matching("--tag", tags, [tag for _, tag in pairs]))
    pairs = [pair for pair in pairs if pair[1] in known]
    if not pairs:
        raise Wrong("there is nothing to copy: no repository that is meant has a tag")

    async def look(pair: tuple[RepositoryName, Tag]) -> Digest | None:
        return await meaning(source, *pair)

    gathered: dict[tuple[RepositoryName, Digest], list[Tag]] = {}
    dangling = 0
    for (repository, tag), digest in zip(pairs, await map_bounded(look, pairs, limit=jobs), strict=True):
        if digest is None:
            dangling += 1
        else:
            gathered.setdefault((repository, digest), []).append(tag)
    return [Wanted(*place, tuple(several)) for place, several in gathered.items()], dangling


async def _repositories(source: Handler) -> list[RepositoryName]:
    found: list[RepositoryName] = []
    more = True
    while more:
        page = await source(ListRepositories(after=found[-1] if found else "", limit=_PAGE))
        found += page.repositories
        more = page.more
    return found


def _matching(option: str, patterns: Sequence[Glob], names: Sequence[N]) -> list[N]:
    """Return the names that one of `patterns` describes; all, where there is no pattern.

    Raises:
        Wrong: a pattern describes none.
    """
    for pattern in patterns:
        if not any(pattern.matches(name) for name in names):
            raise Wrong(f"{option}: nothing in the store is called {printable(pattern.text)}")
    return [name for name in names if not patterns or any(pattern.matches(name) for pattern in patterns)]

"""Running `moorage copy`: what one store holds is brought to another one, shown, and told by the exit code."""

import functools
from collections.abc import Generator
from contextlib import contextmanager

import click
import trio
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from moorage import (
    Configuration,
    ConfigurationError,
    Driver,
    DriverError,
    Moved,
    Plan,
    PluginError,
    PluginManager,
    move,
    open_helpers,
    open_store,
    plan_move,
)

from .verdict_tables import printable

DONE = 0
INCOMPLETE = 1

_SHOWN_FLAWS = 20
_TELL_SECONDS = 10.0

Side = tuple[Configuration, PluginManager]


class Wrong(Exception):
    """What was asked makes no sense, or cannot be done; its text is one sentence."""


class Stopped(Exception):
    """A store failed on the way; its text is one sentence."""


def copy_store(source: Side, destination: Side, *, jobs: int, remove: bool, dry_run: bool, quiet: bool) -> int:
    """Copy all that `source` holds to `destination`, show how far it is, and return the exit code.

    Raises:
        Wrong: nothing could be begun.
        Stopped: a store failed; what was copied stays.
    """
    for side, (configuration, plugins) in (("the source", source), ("the destination", destination)):
        factory = plugins.drivers().get(configuration.storage.driver)
        if factory is not None and not factory.shared:
            raise Wrong(f"{side} is of the driver {configuration.storage.driver}, which nothing outlives")
    ours, theirs = source[0].storage, destination[0].storage
    if (ours.driver, ours.parameters) == (theirs.driver, theirs.parameters):
        raise Wrong("the source and the destination are the same store")
    with _sentences():
        return trio.run(
            functools.partial(_copy, source, destination, jobs=jobs, remove=remove, dry_run=dry_run, quiet=quiet)
        )


async def _copy(source: Side, destination: Side, *, jobs: int, remove: bool, dry_run: bool, quiet: bool) -> int:
    async with open_store(*source, to_look=True) as ours, open_store(*destination, to_look=dry_run) as theirs:
        with _shown(quiet=quiet) as shown:
            plan = await plan_move(ours, theirs, jobs=jobs, found=shown.found)
            moved = None
            if not dry_run:
                moved = await _move(plan, ours, theirs, jobs=jobs, remove=remove, shown=shown)
    if moved is None:
        click.echo(f"to copy: {_amount(len(plan.items), plan.size)}; the same already: {plan.same}")
        click.echo(f"at the destination only: {len(plan.gone)}" + (", to be removed" if remove and plan.gone else ""))
        return DONE
    return _tell(plan, moved, remove=remove)


async def _move(plan: Plan, source: Driver, destination: Driver, *, jobs: int, remove: bool, shown: "_Shown") -> Moved:
    shown.begin(plan)
    async with open_helpers() as nursery:
        nursery.start_soon(shown.keep_telling)
        return await move(plan, source, destination, jobs=jobs, remove=remove, advance=shown.advance)


def _tell(plan: Plan, moved: Moved, *, remove: bool) -> int:
    """Say what was done; return the exit code."""
    click.echo(f"copied: {_amount(moved.objects, moved.bytes)}; the same already: {plan.same}")
    if remove:
        click.echo(f"removed at the destination: {moved.removed}")
    elif plan.gone:
        click.echo(f"at the destination only, and left there (--delete removes it): {len(plan.gone)}")
    if moved.dangling:
        click.echo(f"links to content that the source does not have, left there: {moved.dangling}")
    for flaw in moved.flaws[:_SHOWN_FLAWS]:
        click.echo(f"moorage: not copied: {printable(flaw.key)}: {flaw.says}", err=True)
    if len(moved.flaws) > _SHOWN_FLAWS:
        click.echo(f"moorage: not copied: {len(moved.flaws) - _SHOWN_FLAWS} more like these", err=True)
    return INCOMPLETE if moved.flaws else DONE


def _amount(objects: int, size: int) -> str:
    return f"{objects} objects, {decimal(size)}"


class _Shown:
    """How far it is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, progress: Progress, *, lines: bool) -> None:
        self._progress = progress
        self._lines = lines
        self._task = progress.add_task("comparing", total=None, objects="")
        self._moved = Moved()
        self._objects = self._size = 0

    def found(self, count: int) -> None:
        self._progress.update(self._task, objects=f"{count} objects")

    def begin(self, plan: Plan) -> None:
        self._objects, self._size = len(plan.items), plan.size
        self._progress.update(self._task, description="copying", total=plan.size, completed=0)

    def advance(self, moved: Moved) -> None:
        self._moved = moved
        self._progress.update(self._task, completed=moved.bytes, objects=f"{moved.objects}/{self._objects} objects")

    async def keep_telling(self) -> None:
        while self._lines:
            await trio.sleep(_TELL_SECONDS)
            moved = self._moved
            done = f"{moved.objects} of {self._objects} objects, {decimal(moved.bytes)} of {decimal(self._size)}"
            click.echo(f"copying: {done}", err=True)


@contextmanager
def _shown(*, quiet: bool) -> Generator[_Shown]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[objects]}"),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    bar = console.is_terminal and not quiet
    with Progress(*columns, console=console, transient=True, disable=not bar) as progress:
        yield _Shown(progress, lines=not bar and not quiet)


@contextmanager
def _sentences() -> Generator[None]:
    """Turn what the user is told in one sentence into `Wrong` or `Stopped`; an interrupt is one whatever it ended."""
    try:
        yield
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None
    except (ConfigurationError, PluginError) as error:
        raise Wrong(str(error)) from error
    except DriverError as error:
        raise Stopped(f"{error}; what was copied stays: run it again to go on") from error

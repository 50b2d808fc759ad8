"""What a user sees of a copy: how far it is while it runs, what was left there, and why it could not go on."""

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager

import click
import trio
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from moorage import ConfigurationError, DriverError, Flaw, Moved, PluginError, RegistryError, open_helpers

from .image_layout import LayoutInvalid
from .verdict_tables import printable

DONE = 0
INCOMPLETE = 1

_SHOWN_FLAWS = 20
_TELL_SECONDS = 10.0
_GO_ON = "what was copied stays: run it again to go on"


class Wrong(Exception):
    """What was asked makes no sense, or cannot be done; its text is one sentence."""


class Stopped(Exception):
    """One of the sides failed on the way; its text is one sentence."""


def amount(objects: int, size: int) -> str:
    """Return how much that is, as it is shown."""
    return f"{objects} objects, {decimal(size)}"


def tell_flaws(flaws: Sequence[Flaw]) -> int:
    """Name what was left there; return the exit code."""
    for flaw in flaws[:_SHOWN_FLAWS]:
        click.echo(f"moorage: not copied: {printable(flaw.key)}: {printable(flaw.says)}", err=True)
    if len(flaws) > _SHOWN_FLAWS:
        click.echo(f"moorage: not copied: {len(flaws) - _SHOWN_FLAWS} more like these", err=True)
    return INCOMPLETE if flaws else DONE


class Shown:
    """How far it is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, progress: Progress, *, lines: bool) -> None:
        """Show it on `progress`, or by lines."""
        self._progress = progress
        self._lines = lines
        self._task = progress.add_task("comparing", total=None, objects="")
        self._moved = Moved()
        self._objects = self._size = 0

    def found(self, count: int) -> None:
        """Show how many objects were seen so far."""
        self._progress.update(self._task, objects=f"{count} objects")

    def begin(self, objects: int, size: int) -> None:
        """Show how much there is to copy."""
        self._objects, self._size = objects, size
        self._progress.update(self._task, description="copying", total=size, completed=0)

    def advance(self, moved: Moved) -> None:
        """Show how far it is."""
        self._moved = moved
        self._progress.update(self._task, completed=moved.bytes, objects=f"{moved.objects}/{self._objects} objects")

    @asynccontextmanager
    async def telling(self) -> AsyncGenerator[None]:
        """Tell now and then how far it is, where no bar shows it."""
        async with open_helpers() as nursery:
            nursery.start_soon(self._keep_telling)
            yield

    async def _keep_telling(self) -> None:
        while self._lines:
            await trio.sleep(_TELL_SECONDS)
            moved = self._moved
            done = f"{moved.objects} of {self._objects} objects, {decimal(moved.bytes)} of {decimal(self._size)}"
            click.echo(f"copying: {done}", err=True)


@contextmanager
def shown(*, quiet: bool) -> Generator[Shown]:
    """Show how far it is until the block ends; nothing if `quiet`."""
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
        yield Shown(progress, lines=not bar and not quiet)


@contextmanager
def sentences() -> Generator[None]:
    """Turn what the user is told in one sentence into `Wrong` or `Stopped`; an interrupt is one whatever it ended."""
    try:
        yield
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None
    except (ConfigurationError, PluginError) as error:
        raise Wrong(str(error)) from error
    except LayoutInvalid as error:
        raise Wrong(printable(str(error))) from error
    except DriverError as error:
        raise Stopped(f"{error}; {_GO_ON}") from error
    except RegistryError as error:
        raise Stopped(f"{error.message}; {_GO_ON}") from error
    except OSError as error:
        raise Stopped(f"{printable(str(error.filename or 'a file'))}: {error.strerror or error}; {_GO_ON}") from error

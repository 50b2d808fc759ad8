"""`moorage conformance`: the kits as commands."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from .registry import GROUPS, VERSIONS, CannotCheck, Outcome, Report, Result, Version, check_registry, select

__all__ = ["conformance"]

USAGE = 2
WIDE = 400


class _Impossible(click.ClickException):
    """One sentence and exit code 2."""

    exit_code = USAGE


@click.group()
def conformance() -> None:
    """Check that a registry does what its specification says."""


@conformance.command()
@click.argument("url", required=False)
@click.option("--only", multiple=True, metavar="GLOB", help="Run only cases whose group, name or group.name matches.")
@click.option("--list", "listing", is_flag=True, help="List the cases instead of running them.")
@click.option(
    "--version",
    "spec_version",
    type=click.Choice(VERSIONS),
    default="dev",
    show_default=True,
    help="The version of the specification; dev is its main branch.",
)
@click.option(
    "--repository",
    default="conformance",
    show_default=True,
    metavar="PREFIX",
    help="Where the cases make their repositories, which remain.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results as JSON.")
@click.option("--junit", "junit_file", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit's XML.")
@click.option("--concurrency", type=click.IntRange(1, 64), default=4, show_default=True, help="Cases at once.")
@click.option("--username", help="For basic authentication, or to ask for tokens.")
@click.option("--password", help="The same.")
@click.option("--strict", is_flag=True, help="Count skipped cases as failures.")
def registry(
    url: str | None,
    only: tuple[str, ...],
    listing: bool,
    spec_version: str,
    repository: str,
    json_file: Path | None,
    junit_file: Path | None,
    concurrency: int,
    username: str | None,
    password: str | None,
    strict: bool,
) -> None:
    """Check the registry at URL against the OCI distribution specification.

    Exit code 0 when nothing failed, 1 when something did, 2 when nothing could be checked.
    """
    version = cast("Version", spec_version)  # click.Choice has let nothing else through
    try:
        if listing:
            _list(only, version)
            return
        if url is None:
            raise click.UsageError("Missing argument 'URL'.")
        if password is not None and username is None:
            raise click.UsageError("--password needs --username.")
        address = url

        async def run(finished: Callable[[Result], None]) -> Report:
            return await check_registry(
                address,
                version=version,
                only=only,
                repository=repository.strip("/"),
                concurrency=concurrency,
                username=username,
                password=password,
                finished=finished,
            )

        report = _run(run, len(select(only, version)))
        if json_file is not None:
            report.write_json(json_file)
        if junit_file is not None:
            report.write_junit(junit_file)
    except (CannotCheck, OSError) as error:
        raise _Impossible(str(error)) from error
    report.show(_console(), titles=_titles(), strict=strict)
    if not report.conforms(strict=strict):
        raise SystemExit(1)


def _console() -> Console:
    """Return a console that breaks lines for a terminal, and hardly ever for a file."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    return console


def _titles() -> dict[str, str]:
    return {group.name: f"{group.name}: {group.title}" for group in GROUPS}


def _list(only: tuple[str, ...], version: Version) -> None:
    cases = select(only, version)
    table = Table("case", "section", "since", "requirement", box=None)
    for case in cases:
        table.add_row(case.key, case.section, case.since, Text(case.requirement))
    console = _console()
    console.print(table)
    console.print(f"{len(cases)} cases")


def _run(run: Callable[[Callable[[Result], None]], Awaitable[Report]], total: int) -> Report:
    """Run with a bar on the terminal's error stream, so that the report can be piped."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("checking", total=total)

        def finished(result: Result) -> None:
            wrong = result.outcome in {Outcome.FAILED, Outcome.ERROR}
            progress.update(task, advance=1, description=f"[red]{result.key}" if wrong else result.key)

        return trio.run(run, finished)

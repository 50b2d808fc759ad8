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

from .registry import GROUPS, VERSIONS, CannotCheck, Version, check_registry, select
from .report import Outcome, Report, Result

__all__ = ["conformance"]

USAGE = 2
WIDE = 400


class _Impossible(click.ClickException):
    """One sentence and exit code 2."""

    exit_code = USAGE


@click.group()
def conformance() -> None:
    """Check that registries, drivers and plugins do what they must."""


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


@conformance.command()
@click.argument("name", required=False)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the driver; {fresh} in it is new for each case.",
)
@click.option("--only", multiple=True, metavar="GLOB", help="Run only cases whose group, name or group.name matches.")
@click.option("--list", "listing", is_flag=True, help="List the cases instead of running them.")
@click.option("--fast", is_flag=True, help="Use small sizes, and leave the largest out.")
@click.option("--require", multiple=True, metavar="CAPABILITY", help="Fail unless this capability is proven.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results as JSON.")
@click.option("--junit", "junit_file", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit's XML.")
def driver(
    name: str | None,
    options: tuple[str, ...],
    only: tuple[str, ...],
    listing: bool,
    fast: bool,
    require: tuple[str, ...],
    json_file: Path | None,
    junit_file: Path | None,
) -> None:
    """Check the storage driver NAME, of an installed plugin or as module:factory, against the storage contract.

    The store must be empty, and is emptied after each case.

    Exit code 0 when nothing failed, 1 when something did, 2 when nothing could be checked.
    """
    from . import driver as kit

    try:
        if listing:
            _list_driver_cases(only)
            return
        if name is None:
            raise click.UsageError("Missing argument 'NAME'.")
        subject = kit.Subject(name, _options(options))

        async def run(finished: Callable[[Result], None]) -> Report:
            return await kit.check_driver(subject, only=only, fast=fast, finished=finished)

        report = _run(run, len(kit.select(only, fast=fast)))
        standings = kit.standings(report, trio.run(kit.capabilities_of, subject), shared=subject.shared)
        if json_file is not None:
            report.write_json(json_file)
        if junit_file is not None:
            report.write_junit(junit_file)
    except (kit.CannotCheck, OSError) as error:
        raise _Impossible(str(error)) from error
    unknown = set(require) - {standing.capability for standing in standings}
    if unknown:
        raise _Impossible(f"There is no capability {min(unknown)}.")
    report.show(_console(), titles={group.name: group.title for group in kit.GROUPS})
    table = Table("capability", "declared", "verdict", box=None)
    for standing in standings:
        table.add_row(standing.capability, "yes" if standing.declared else "no", standing.verdict)
    _console().print(table)
    lacking = [each for each in standings if each.capability in require and each.verdict != "proven"]
    for each in lacking:
        click.echo(f"{each.capability} is required: {each.verdict}")
    if lacking or not report.conforms():
        raise SystemExit(1)


def _options(given: tuple[str, ...]) -> dict[str, object]:
    """Return options of the form KEY=VALUE, their values read as YAML."""
    import yaml

    found: dict[str, object] = {}
    for each in given:
        key, equals, text = each.partition("=")
        if not key or not equals:
            raise click.UsageError(f"--option {each}: allowed is KEY=VALUE.")
        try:
            # {fresh} would be a mapping to YAML.
            found[key] = text if "{fresh}" in text else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise click.UsageError(f"--option {each}: not YAML.") from error
    return found


def _list_driver_cases(only: tuple[str, ...]) -> None:
    from . import driver as kit

    cases = kit.select(only)
    table = Table("case", "needs", "requirement", box=None)
    for case in cases:
        table.add_row(case.key, ", ".join(case.needs), Text(case.requirement))
    console = _console()
    console.print(table)
    console.print(f"{len(cases)} cases")


@conformance.command()
@click.argument("target", metavar="PLUGIN", required=False)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME.KEY=VALUE",
    help="An option of what the plugin registers as NAME; {fresh} in one of a driver is new for each case.",
)
@click.option(
    "--config",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take the options from this configuration.",
)
@click.option("--only", multiple=True, metavar="GLOB", help="Run only cases whose group, name or group.name matches.")
@click.option("--list", "listing", is_flag=True, help="List the cases instead of running them.")
@click.option("--fast", is_flag=True, help="Use small sizes for drivers.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the results as JSON.")
@click.option("--junit", "junit_file", type=click.Path(dir_okay=False, path_type=Path), help="Write JUnit's XML.")
@click.option("--strict", is_flag=True, help="Count what could not be shown as failed.")
def plugin(
    target: str | None,
    options: tuple[str, ...],
    file: Path | None,
    only: tuple[str, ...],
    listing: bool,
    fast: bool,
    json_file: Path | None,
    junit_file: Path | None,
    strict: bool,
) -> None:
    """Check PLUGIN, the name of an installed one, a module, or a file, against the contract of plugins.

    Its drivers, handlers, rules, authenticators, observers, routes and commands are each tried by themselves. A store that
    is given to a driver must be empty, and is emptied after each case.

    Exit code 0 when nothing failed, 1 when something did or nothing could be tried, 2 when nothing could be checked.
    """
    from . import plugin_kit as kit

    try:
        if listing:
            _list_plugin_cases(only)
            return
        if target is None:
            raise click.UsageError("Missing argument 'PLUGIN'.")
        subject = kit.Subject(target, _options_by_name(options), file)
        count = len(kit.plan(subject, only=only, fast=fast))

        async def run(finished: Callable[[Result], None]) -> Report:
            return await kit.check_plugin(subject, only=only, fast=fast, finished=finished)

        report = _run(run, count)
        if json_file is not None:
            report.write_json(json_file)
        if junit_file is not None:
            report.write_junit(junit_file)
    except (kit.CannotCheck, OSError) as error:
        raise _Impossible(str(error)) from error
    report.show(_console(), titles={}, strict=strict)
    if not report.conforms(strict=strict):
        raise SystemExit(1)


def _options_by_name(given: tuple[str, ...]) -> dict[str, dict[str, object]]:
    """Return options of the form NAME.KEY=VALUE, or NAME.KEY.KEY=VALUE, by name."""
    found: dict[str, dict[str, object]] = {}
    for path, value in _options(given).items():
        *way, last = path.split(".")
        if not way or not all((*way, last)):
            raise click.UsageError(f"--option {path}: allowed is NAME.KEY=VALUE.")
        at = found.setdefault(way[0], {})
        for part in way[1:]:
            inner = at.setdefault(part, {})
            if not isinstance(inner, dict):
                raise click.UsageError(f"--option {path}: {part} has a value already.")
            at = cast("dict[str, object]", inner)  # keys of options are text
        at[last] = value
    return found


def _list_plugin_cases(only: tuple[str, ...]) -> None:
    from . import plugin_kit as kit

    cases = kit.select(only)
    table = Table("case", "requirement", box=None)
    for case in cases:
        table.add_row(case.key, Text(case.requirement))
    console = _console()
    console.print(table)
    console.print(f"{len(cases)} cases")


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

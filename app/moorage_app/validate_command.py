"""Running `moorage validate`: what was asked on the command line is judged, shown, and told by the exit code."""

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from moorage import Configuration, ConfigurationError, Glob, PluginError, PluginManager

from .survey import judge_store
from .validating import Name, TargetError, judge_targets, parse_name
from .verdict_tables import printable, report_json, show_report, show_survey, survey_json

ACCEPTED = 0
REFUSED = 1
NOT_JUDGED = 2

_REPORTED = ("moorage.registry", "moorage.plugins")
"""Whose log repeats what the tables say."""


class Wrong(Exception):
    """What was asked makes no sense, or cannot be done; its text is one sentence."""


def judge(
    configuration: Configuration,
    plugins: PluginManager,
    targets: Sequence[str],
    *,
    pushed_as: str | None,
    media_type: str | None,
    as_json: bool,
) -> int:
    """Judge `targets`, show what was found, and return the exit code.

    Raises:
        Wrong: nothing could be judged.
    """
    with _sentences(), _quiet():
        name = None if pushed_as is None else _named(pushed_as)
        report = trio.run(
            partial(judge_targets, configuration, plugins, targets, pushed_as=name, media_type=media_type, note=_tell)
        )
    if as_json:
        click.echo(report_json(report))
    else:
        show_report(report)
    for problem in report.problems:
        click.echo(f"moorage: {printable(f'{problem.target}: {problem.says}')}", err=True)
    if report.problems:
        return NOT_JUDGED
    return ACCEPTED if report.accepted else REFUSED


def judge_everything(
    configuration: Configuration, plugins: PluginManager, pattern: str | None, *, as_json: bool
) -> int:
    """Judge all that is stored, show what would be refused, and return the exit code.

    Raises:
        Wrong: nothing could be judged.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with _sentences(), _quiet():
        glob = None if pattern is None else _pattern(pattern)
        factory = plugins.drivers().get(configuration.storage.driver)
        if factory is not None and not factory.shared:
            _tell(f"the {configuration.storage.driver} store is seen by one process only, so it is empty to this one")
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("repositories", total=None)

            def advance(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            survey = trio.run(judge_store, configuration, plugins, glob, advance)
    if as_json:
        click.echo(survey_json(survey))
    else:
        show_survey(survey)
    return ACCEPTED if survey.accepted else REFUSED


def _named(text: str) -> Name:
    try:
        return parse_name(text)
    except TargetError as error:
        raise Wrong(f"--as: {error}") from None


def _pattern(text: str) -> Glob:
    try:
        return Glob(text)
    except ValueError as error:
        raise Wrong(f"--repository: {printable(text)}: a pattern has {error}") from None


def _tell(sentence: str) -> None:
    click.echo(f"note: {printable(sentence)}", err=True)


@contextmanager
def _sentences() -> Generator[None]:
    """Turn what the user is told in one sentence into `Wrong`; an interrupt is one however many tasks it ended."""
    try:
        yield
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None
    except (ConfigurationError, PluginError, TargetError) as error:
        raise Wrong(str(error)) from error


@contextmanager
def _quiet() -> Generator[None]:
    """Keep out of the log what stands in the result: failures of rules, and manifests that cannot be read."""
    loggers = [logging.getLogger(name) for name in _REPORTED]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

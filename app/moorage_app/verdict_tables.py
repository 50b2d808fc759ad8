"""Showing what `moorage validate` found: tables for people, one JSON document for programs.

What rules and manifests say is the word of strangers: nothing of it may move a terminal's cursor or look like markup.
"""

import json
from typing import cast

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moorage import Finding, encode_json

from .survey import Survey
from .validating import Judged, Problem, Report

_WIDE = 400
_MOST_REASONS = 3
_COLOURS = {"accepts": "green", "warns": "yellow", "refuses": "red", "failed": "red", "not here": "dim"}
_WORDS = {"not here": "not for this repository"}
_NAMING = {"digest", "mediaType", "size"}


def console() -> Console:
    """Return a console that breaks lines for a terminal, and hardly ever for a file."""
    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = _WIDE
    return made


def show_report(report: Report) -> None:
    """Print a table for each manifest, and below it what would become of it."""
    to = console()
    for judged in report.judged:
        heading = judged.name if judged.digest in {None, judged.reference} else f"{judged.name} ({judged.digest})"
        to.print(_plain(f"{judged.target}: {heading}" if judged.target != judged.name else heading, "bold"))
        table = Table("rule", "mode", "verdict", "what it says", box=None, pad_edge=False)
        for finding in judged.findings:
            table.add_row(*_cells(finding))
        to.print(table)
        to.print(_plain(_conclusion(judged), "green" if judged.accepted else "red"))
        to.print()


def show_survey(survey: Survey) -> None:
    """Print what would be refused or warned of, what could not be judged, and how much there was."""
    to = console()
    if survey.judged:
        table = Table("manifest", "rule", "mode", "verdict", "what it says", box=None, pad_edge=False)
        for judged in survey.judged:
            for finding in _notable(judged):
                table.add_row(_plain(judged.name), *_cells(finding))
        to.print(table)
    for problem in survey.problems:
        to.print(_plain(f"{problem.target}: cannot be judged: {problem.says}", "yellow"))
    to.print(
        _plain(
            f"{_count(survey.references, 'reference')} in {_count(survey.repositories, 'repository', 'repositories')}: "
            f"{survey.refused} would be refused, {survey.warned} would be taken with a warning, "
            f"{len(survey.problems)} cannot be judged"
        )
    )


def report_json(report: Report) -> str:
    """Return a report as JSON."""
    document = {
        "accepted": report.accepted,
        "results": [_judged_json(judged, judged.findings) for judged in report.judged],
        "problems": [_problem_json(problem) for problem in report.problems],
    }
    return json.dumps(document, indent=2)


def survey_json(survey: Survey) -> str:
    """Return a survey as JSON."""
    document = {
        "accepted": survey.accepted,
        "repositories": survey.repositories,
        "references": survey.references,
        "refused": survey.refused,
        "warned": survey.warned,
        "results": [_judged_json(judged, _notable(judged)) for judged in survey.judged],
        "problems": [_problem_json(problem) for problem in survey.problems],
    }
    return json.dumps(document, indent=2)


def _judged_json(judged: Judged, findings: tuple[Finding, ...]) -> dict[str, object]:
    return {
        "target": judged.target,
        "repository": judged.repository,
        "reference": judged.reference,
        "digest": judged.digest,
        "mediaType": judged.media_type,
        "accepted": judged.accepted,
        "findings": [_finding_json(finding) for finding in findings],
    }


def _finding_json(finding: Finding) -> dict[str, object]:
    found: dict[str, object] = {
        "rule": finding.rule,
        "mode": finding.mode,
        "verdict": finding.outcome,
        "refuses": finding.refuses,
        "says": finding.says,
    }
    if finding.detail is not None:
        found["detail"] = _detail_json(finding.detail)
    return found


def _detail_json(detail: object) -> object:
    try:
        return cast("object", json.loads(encode_json(detail)))
    # It was made by a plugin, which may have put anything there.
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        return repr(detail)


def _problem_json(problem: Problem) -> dict[str, object]:
    return {"target": problem.target, "says": problem.says}


def _notable(judged: Judged) -> tuple[Finding, ...]:
    return tuple(finding for finding in judged.findings if finding.refuses or finding.warns)


def _cells(finding: Finding) -> tuple[Text, Text, Text, Text]:
    return (
        _plain(finding.rule),
        _plain(finding.mode or ""),
        _plain(_WORDS.get(finding.outcome, finding.outcome), _COLOURS[finding.outcome]),
        _plain(_sentence(finding)),
    )


def _sentence(finding: Finding) -> str:
    """Return what is said, with what else is known of a missing reference than names it, such as for what it is."""
    detail = None if finding.detail is None else _detail_json(finding.detail)
    if isinstance(detail, dict):
        found = cast("dict[str, object]", detail)  # as JSON has it
        more = {key: value for key, value in found.items() if key not in _NAMING}
        if more and found.keys() >= _NAMING:
            return f"{finding.says} {json.dumps(more)}"
    return finding.says


def _conclusion(judged: Judged) -> str:
    if judged.accepted:
        warned = sum(finding.warns for finding in judged.findings)
        return "would be accepted" + (f", with {_count(warned, 'warning')}" if warned else "")
    reasons = [f"{finding.rule}: {finding.says}" for finding in judged.findings if finding.refuses]
    further = len(reasons) - _MOST_REASONS
    return f"would be refused: {'; '.join(reasons[:_MOST_REASONS])}" + (f"; and {further} more" if further > 0 else "")


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _plain(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style)


def printable(text: str) -> str:
    """Return `text` in one line, without what a terminal would act on."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in " ".join(text.split()))

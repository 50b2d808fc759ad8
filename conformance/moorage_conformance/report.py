"""What a run found: on the screen, as JSON, and as JUnit's XML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import msgspec

if TYPE_CHECKING:
    # Only what prints a report needs it, not the processes that cases start.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["Outcome", "Report", "Result"]


class Outcome(StrEnum):
    """How a case ended."""

    PASSED = "passed"
    SKIPPED = "skipped"
    FAILED = "failed"
    ERROR = "error"


MARKS = {
    Outcome.PASSED: ("✓", "green"),
    Outcome.SKIPPED: ("-", "yellow"),
    Outcome.FAILED: ("✗", "bold red"),
    Outcome.ERROR: ("!", "bold magenta"),
}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """How one case ended, and why if it did not pass; `section` is where its standard has the requirement."""

    group: str
    name: str
    section: str = ""
    since: str = ""
    requirement: str
    outcome: Outcome
    reason: str
    seconds: float

    @property
    def key(self) -> str:
        """Group and name."""
        return f"{self.group}.{self.name}"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one run of a kit, in the order of its tables.

    `kind` is what was checked (`registry`, `driver`, `plugin`), `subject` which one, and `standard` against what.
    """

    kind: str
    subject: str
    standard: str
    seconds: float
    results: tuple[Result, ...]

    def count(self, outcome: Outcome) -> int:
        """How many cases ended so."""
        return Counter(result.outcome for result in self.results)[outcome]

    def of(self, *outcomes: Outcome) -> list[Result]:
        """Return the results that ended in one of these ways."""
        return [result for result in self.results if result.outcome in outcomes]

    def conforms(self, *, strict: bool = False) -> bool:
        """Whether nothing failed; with `strict`, whether nothing was skipped either."""
        against = {Outcome.FAILED, Outcome.ERROR, *([Outcome.SKIPPED] if strict else [])}
        return bool(self.results) and not any(result.outcome in against for result in self.results)

    def write_json(self, path: Path) -> None:
        """Write everything as JSON."""
        counts = {str(outcome): self.count(outcome) for outcome in Outcome}
        document = {"kind": self.kind, "subject": self.subject, "standard": self.standard}
        path.write_bytes(
            msgspec.json.format(
                msgspec.json.encode({**document, "seconds": self.seconds, "counts": counts, "results": self.results})
            )
            + b"\n"
        )

    def write_junit(self, path: Path) -> None:
        """Write what continuous integration reads: a suite per group, failures and errors as elements."""
        root = ET.Element("testsuites", self._totals(self.results))
        for group, results in self._groups():
            suite = ET.SubElement(root, "testsuite", {"name": group, **self._totals(results)})
            for result in results:
                attributes = {
                    "classname": f"{self.kind}.{group}",
                    "name": result.name,
                    "time": f"{result.seconds:.3f}",
                }
                case = ET.SubElement(suite, "testcase", attributes)
                if result.outcome is Outcome.PASSED:
                    continue
                tag = {Outcome.SKIPPED: "skipped", Outcome.FAILED: "failure", Outcome.ERROR: "error"}[result.outcome]
                element = ET.SubElement(case, tag, {"message": _printable(result.requirement)})
                element.text = _printable(result.reason)
        ET.indent(root)
        path.write_bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")

    @staticmethod
    def _totals(results: Iterable[Result]) -> dict[str, str]:
        counts = Counter(result.outcome for result in results)
        return {
            "tests": str(counts.total()),
            "failures": str(counts[Outcome.FAILED]),
            "errors": str(counts[Outcome.ERROR]),
            "skipped": str(counts[Outcome.SKIPPED]),
        }

    def _groups(self) -> list[tuple[str, list[Result]]]:
        groups: dict[str, list[Result]] = {}
        for result in self.results:
            groups.setdefault(result.group, []).append(result)
        return list(groups.items())

    def show(self, console: Console, *, titles: dict[str, str], strict: bool = False) -> None:
        """Print a tree of the cases, the counts per group and a closing line."""
        from rich.padding import Padding
        from rich.text import Text
        from rich.tree import Tree

        for group, results in self._groups():
            tree = Tree(Text(titles.get(group, group), style="bold"))
            for result in results:
                mark, style = MARKS[result.outcome]
                line = Text.assemble((f"{mark} ", style), result.name, ("  " + result.section, "cyan"))
                branch = tree.add(line)
                branch.add(Text(result.requirement, style="dim"))
                if result.reason:
                    branch.add(Text(f"{result.outcome}: {result.reason}", style=style.removeprefix("bold ")))
            console.print(tree)
        console.print(Padding(self._table(titles), (1, 0)))
        console.print(self._closing(strict=strict))

    def _table(self, titles: dict[str, str]) -> Table:
        from rich.table import Table

        table = Table("group", *(str(outcome) for outcome in Outcome), box=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for group, results in self._groups():
            counts = Counter(result.outcome for result in results)
            table.add_row(titles.get(group, group), *(str(counts[outcome]) for outcome in Outcome))
        table.add_row("all", *(str(self.count(outcome)) for outcome in Outcome), style="bold")
        return table

    def _closing(self, *, strict: bool) -> Text:
        from rich.text import Text

        wrong = self.count(Outcome.FAILED) + self.count(Outcome.ERROR)
        skipped = self.count(Outcome.SKIPPED)
        of = f"{self.standard}, {len(self.results)} cases in {self.seconds:.1f} s"
        if wrong:
            return Text(f"{self.subject} does not conform: {wrong} failed ({of}).", style="bold red")
        if skipped and strict:
            return Text(
                f"{self.subject} conforms, but {skipped} were skipped, which --strict counts ({of}).", style="bold red"
            )
        return Text(f"{self.subject} conforms, {skipped} skipped ({of}).", style="bold green")


def _printable(text: str) -> str:
    """Leave out what XML cannot carry."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )

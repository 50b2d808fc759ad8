"""Results: one line for each case, target and round in JSON, and medians of the rounds in a table for people."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moorage_app.verdict_tables import printable

from .cases import Case
from .processes import Measured
from .statistics import Tally, median, ratio

_BUSY = 0.9
"""From this share of a core on, the generator may have been what was measured."""
_MB = 1e6


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one round of one case against one target came to."""

    case: str
    series: str
    clients: int
    target: str
    round: int
    unit: str
    operations: int
    """That ended well; figures are of these."""
    requests: int
    """Of HTTP, with those of the other series of the case."""
    errors: Mapping[str, int]
    first_errors: Mapping[str, str]
    unfinished: int
    late: int
    unstarted: int
    seconds: float
    per_second: float
    mb_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    generator_cpu: float


class Median(msgspec.Struct, frozen=True, kw_only=True):
    """The medians over the rounds; what was counted is added up, and the longest is the longest of all."""

    case: str
    series: str
    clients: int
    target: str
    unit: str
    operations: int
    errors: Mapping[str, int]
    unfinished: int
    late: int
    unstarted: int
    per_second: float | None
    mb_per_second: float | None
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    ratio: float | None
    """How many times as fast as this one the first target was; of the first itself there is none."""
    generator_cpu: float | None


class TargetFacts(msgspec.Struct, frozen=True):
    """A target, as the report names it."""

    name: str
    url: str
    server: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known at the end."""

    environment: Mapping[str, str | int]
    options: Mapping[str, object]
    targets: Sequence[TargetFacts]
    results: Sequence[Result]
    medians: Sequence[Median]
    left: Sequence[str]
    """What could not be removed."""
    interrupted: bool


def environment() -> dict[str, str | int]:
    """Return what figures depend on besides the registry."""
    return {
        "moorage": version("moorage"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
    }


def results_of(case: Case, clients: int, target: str, number: int, measured: Measured) -> list[Result]:
    """Turn a measurement into results, one for each series; a series of which nothing happened is there, too."""
    found: list[Result] = []
    for series in case.series:
        tally = measured.tallies.get(series, Tally())
        if measured.fault:
            tally.count_error("generator", measured.fault)
        seconds = measured.seconds or 1.0
        found.append(
            Result(
                case=case.name,
                series=series,
                clients=clients,
                target=target,
                round=number,
                unit=case.unit,
                operations=tally.operations,
                requests=measured.requests,
                errors=tally.errors,
                first_errors={kind: printable(said) for kind, said in tally.first_errors.items()},
                unfinished=measured.unfinished,
                late=measured.late,
                unstarted=measured.unstarted,
                seconds=round(measured.seconds, 4),
                per_second=round(tally.operations / seconds, 2),
                mb_per_second=round(tally.bytes / seconds / _MB, 3),
                p50_ms=round(tally.milliseconds(0.50), 4),
                p90_ms=round(tally.milliseconds(0.90), 4),
                p99_ms=round(tally.milliseconds(0.99), 4),
                max_ms=round(tally.largest / 1e6, 4),
                generator_cpu=round(measured.cpu, 3),
            )
        )
    return found


def medians_of(results: Sequence[Result]) -> list[Median]:
    """Return the medians for each case, number of clients, series and target, in the order in which they came."""
    groups: dict[tuple[str, int, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.case, result.clients, result.series, result.target), []).append(result)
    rates = {key: median([result.per_second for result in group if result.operations]) for key, group in groups.items()}
    first: dict[tuple[str, int, str], str] = {}
    for case, clients, series, target in groups:
        first.setdefault((case, clients, series), target)
    found: list[Median] = []
    for key in sorted(groups, key=lambda key: list(first).index(key[:3])):
        group = groups[key]
        good = [result for result in group if result.operations]
        ours = first[key[:3]]
        errors: dict[str, int] = {}
        for result in group:
            for kind, count in result.errors.items():
                errors[kind] = errors.get(kind, 0) + count
        found.append(
            Median(
                case=key[0],
                series=key[2],
                clients=key[1],
                target=key[3],
                unit=group[0].unit,
                operations=sum(result.operations for result in group),
                errors=errors,
                unfinished=sum(result.unfinished for result in group),
                late=sum(result.late for result in group),
                unstarted=sum(result.unstarted for result in group),
                per_second=rates[key],
                mb_per_second=median([result.mb_per_second for result in good]),
                p50_ms=median([result.p50_ms for result in good]),
                p90_ms=median([result.p90_ms for result in good]),
                p99_ms=median([result.p99_ms for result in good]),
                max_ms=max((result.max_ms for result in good), default=None),
                ratio=None if key[3] == ours else ratio(rates[*key[:3], ours], rates[key]),
                generator_cpu=median([result.generator_cpu for result in group]),
            )
        )
    return found


def print_table(medians: Sequence[Median], console: Console) -> None:
    """Print the medians; ratios where there is more than one target."""
    several = len({each.target for each in medians}) > 1
    table = Table(box=None, pad_edge=False)
    for heading in ("case", "clients", "target"):
        table.add_column(heading, overflow="fold")
    for heading in ("per second", "MB/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "errors"):
        table.add_column(heading, justify="right")
    if several:
        table.add_column("first/this", justify="right")
    before = ""
    for each in medians:
        case = f"{each.case} {each.series}".strip()
        label = f"{case}x{each.clients}"
        if several and before not in {"", label}:
            table.add_section()
        figures = [_figure(value) for value in (each.per_second, each.mb_per_second)]
        figures += [_figure(value) for value in (each.p50_ms, each.p90_ms, each.p99_ms, each.max_ms)]
        failed = sum(each.errors.values())
        errors = f"[red]{failed}[/]" if failed else "0"
        row = [case, str(each.clients), escape(each.target), figures[0] + f" {each.unit}", *figures[1:], errors]
        if several:
            row.append("" if each.ratio is None else f"{each.ratio:.2f}x")
        table.add_row(*row)
        before = label
    console.print(table)


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def remarks(medians: Sequence[Median], results: Sequence[Result]) -> list[str]:
    """Return sentences about what the figures do not show."""
    said: list[str] = []
    for each in medians:
        where = f"{' '.join(filter(None, (each.case, each.series)))}, {each.clients} clients, {each.target}"
        mine = [
            result
            for result in results
            if (result.case, result.series, result.clients, result.target)
            == (each.case, each.series, each.clients, each.target)
        ]
        for kind, count in each.errors.items():
            first = next(result.first_errors[kind] for result in mine if kind in result.first_errors)
            said.append(f"{where}: {count} of {each.operations + sum(each.errors.values())} failed ({kind}): {first}")
        if each.unfinished:
            said.append(f"{where}: {each.unfinished} had not ended when the time was over, and count for nothing")
        if each.unstarted:
            said.append(f"{where}: {each.unstarted} were due and could not be started: no client was free")
        if each.late:
            said.append(
                f"{where}: {each.late} were started more than 1 ms late; their latencies count from when they were due"
            )
        if each.generator_cpu is not None and each.generator_cpu > _BUSY:
            said.append(
                f"{where}: the generator used {each.generator_cpu:.0%} of a core and may have been the limit; "
                "see --processes"
            )
    return said


def as_json(report: Report) -> str:
    """Return the report as JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1).decode()

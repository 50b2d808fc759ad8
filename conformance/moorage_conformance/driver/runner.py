"""Running the cases against a driver, one after the other, each on an empty store."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Literal, cast

import msgspec
import trio

from moorage import Capabilities, DriverError
from moorage_conformance.report import Outcome, Report, Result

from . import cancellation, conditions, keys, lists, objects, ranges, uploads
from .case import Case, Group
from .expect import Unmet
from .store import NoSuchDriver, Store, Subject, open_store

GROUPS: tuple[Group, ...] = (
    keys.case,
    objects.case,
    ranges.case,
    lists.case,
    conditions.case,
    uploads.case,
    cancellation.case,
)
CASES: tuple[Case, ...] = tuple(case for group in GROUPS for case in group.cases)
"""Every case, in the order in which they are run."""

CASE_SECONDS = 300.0


class CannotCheck(Exception):
    """The run cannot begin; one sentence."""


class Standing(msgspec.Struct, frozen=True):
    """What a run says about one capability."""

    capability: str
    declared: bool
    verdict: Literal[
        "proven", "declared, and disproven", "declared, and not proven", "works, though not declared", "no"
    ]


def select(only: Sequence[str] = (), *, fast: bool = False) -> list[Case]:
    """Return the cases that one of the patterns matches; without patterns all.

    Raises:
        CannotCheck: there is none.
    """
    found = [case for case in CASES if not (fast and case.long)]
    if only:
        found = [
            case
            for case in found
            if any(fnmatchcase(text, pattern) for text in (case.key, case.name, case.group) for pattern in only)
        ]
    if not found:
        raise CannotCheck(f"No case matches {', '.join(only)}.")
    return found


async def check_driver(
    subject: Subject,
    *,
    only: Sequence[str] = (),
    fast: bool = False,
    limit: float = CASE_SECONDS,
    finished: Callable[[Result], None] | None = None,
) -> Report:
    """Run the selected cases against a driver.

    The store must be empty and be nobody's but the run's: each case leaves it empty. Where `{fresh}` stands in an option,
    each case has a store of its own. `fast` takes smaller sizes; `limit` is how many seconds a case may take.

    Raises:
        CannotCheck: the driver cannot be opened with its options, or its store is not empty.
    """
    cases = select(only, fast=fast)
    await check_empty(subject)
    began = trio.current_time()
    results: list[Result] = []
    for case in cases:
        result = await run_case(subject, case, fast=fast, limit=limit)
        results.append(result)
        if finished is not None:
            finished(result)
    return Report(
        kind="driver",
        subject=subject.name,
        standard="storage contract",
        seconds=trio.current_time() - began,
        results=tuple(results),
    )


async def check_empty(subject: Subject) -> None:
    """Look whether the driver can be opened and its store is empty, as it must be.

    Raises:
        CannotCheck: it cannot, or is not.
    """
    try:
        with trio.fail_after(60):
            factory = subject.factory()
            async with factory.open(subject.decoded(_fresh())) as driver:
                found = [entry.key for entry in (await driver.list("", limit=1)).entries]
    except NoSuchDriver as error:
        raise CannotCheck(f"{error}.") from error
    except Exception as error:
        raise CannotCheck(f"The store of {subject.name} cannot be opened: {type(error).__name__}: {error}.") from error
    if found:
        raise CannotCheck(
            f"The store is not empty: it has {found[0]}. The kit removes all that it finds; give it a store of its own."
        )


def _fresh() -> str:
    return secrets.token_hex(6)


async def run_case(subject: Subject, case: Case, *, fast: bool = False, limit: float = CASE_SECONDS) -> Result:
    """Run one case on an empty store, and return how it ended.

    A case about something that the store does not claim to do is run all the same; where it passes, that is told, and
    where it fails nothing was promised.
    """
    began = trio.current_time()
    outcome, reason = Outcome.PASSED, ""
    undeclared: list[str] = []
    try:
        with trio.fail_after(limit):
            async with open_store(subject, fresh=_fresh(), fast=fast) as store:
                undeclared = [need for need in case.needs if not _declared(store, need)]
                if "shared" in undeclared:
                    outcome, reason = Outcome.SKIPPED, "no other process sees this store"
                elif "local" in undeclared:
                    outcome, reason = Outcome.SKIPPED, "a store behind a network need not"
                else:
                    await case.check(store)
    except trio.TooSlowError:
        outcome, reason = Outcome.FAILED, f"it was not finished within {limit:g} s"
    except Exception as error:  # noqa: BLE001 - here ends the case: whatever it was, it becomes a result
        outcome, reason = _judge(error)
    if undeclared and outcome is not Outcome.SKIPPED:
        works = outcome is Outcome.PASSED
        named = " and ".join(undeclared)
        outcome, reason = Outcome.SKIPPED, f"{named} is not declared{', and yet it works' if works else ''}"
    return Result(
        group=case.group,
        name=case.name,
        section=", ".join(case.needs),
        requirement=case.requirement,
        outcome=outcome,
        reason=reason,
        seconds=round(trio.current_time() - began, 3),
    )


def assert_case(case: Case, subject: Subject, *, fast: bool = True) -> None:
    """Run one case, with trio, for any test runner; what is not declared is not asked for.

    Raises:
        AssertionError: the driver does not do what the contract says.
    """
    result = trio.run(lambda: run_case(subject, case, fast=fast))
    if result.outcome in {Outcome.FAILED, Outcome.ERROR}:
        raise AssertionError(f"{case.requirement}\n{result.reason}")


def _declared(store: Store, need: str) -> bool:
    match need:
        case "shared":
            return store.shared
        case "local":
            return not store.driver.capabilities.remote
        case _:
            return bool(getattr(store.driver.capabilities, need))


def _judge(error: BaseException) -> tuple[Outcome, str]:
    first = next(_leaves(error))
    if isinstance(first, Unmet):
        return Outcome.FAILED, str(first)
    if isinstance(first, DriverError):
        return Outcome.FAILED, f"{type(first).__name__}: {first}"
    return Outcome.ERROR, f"{type(first).__name__}: {first}"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)  # of whatever
        for each in group.exceptions:
            yield from _leaves(each)
    else:
        yield error


async def capabilities_of(subject: Subject) -> Capabilities:
    """Return what the driver says that its store can do."""
    async with subject.factory().open(subject.decoded(_fresh())) as driver:
        return driver.capabilities


def standings(report: Report, capabilities: Capabilities, *, shared: bool) -> list[Standing]:
    """Return what `report` says of each capability that cases are about."""
    found: list[Standing] = []
    for need in ("shared", "create_only", "cas", "exclusive_uploads"):
        declared = shared if need == "shared" else bool(getattr(capabilities, need))
        about = [result for result in report.results if need in result.section.split(", ")]
        if not shared and need != "shared":
            about = [result for result in about if "shared" not in result.section]
        outcomes = {result.outcome for result in about}
        if not declared:
            works = bool(about) and all("and yet it works" in result.reason for result in about)
            found.append(Standing(need, declared, "works, though not declared" if works else "no"))
        elif outcomes & {Outcome.FAILED, Outcome.ERROR}:
            found.append(Standing(need, declared, "declared, and disproven"))
        elif Outcome.PASSED in outcomes:
            found.append(Standing(need, declared, "proven"))
        else:
            found.append(Standing(need, declared, "declared, and not proven"))
    return found

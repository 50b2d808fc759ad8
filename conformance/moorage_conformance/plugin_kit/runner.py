"""Running the cases on what a plugin offers, one after the other."""

import unittest
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import TypeVar, cast

import msgspec
import trio

from moorage import (
    ConfigurationError,
    DriverError,
    MiddlewareFactory,
    NoOptions,
    RegistryError,
    Rule,
)
from moorage_conformance.driver import expect
from moorage_conformance.report import Outcome, Report, Result

from . import authenticators, hosted, middleware, registration, rules, stores
from .case import Case, Group, Listed, NotShown, Trial
from .subject import DECISIONS, CannotCheck, Loaded, Offer, Subject, load

F = TypeVar("F")
T = TypeVar("T")

CASE_SECONDS = 300.0
PATIENCE = 10.0
"""How many seconds the kit waits for one answer of a plugin before it says that there is none."""

_WITHOUT_OPTIONS = (ConfigurationError, DriverError, RegistryError, OSError, ValueError)
"""What opening may raise when it lacks options; all else is a fault."""

_OF_HOOKS: dict[str, Group[Loaded]] = {
    "operation_finished": hosted.observers,
    "register_routes": hosted.routes,
    "register_commands": hosted.commands,
}

TITLES: dict[str, str] = {
    registration.case.name: registration.case.title,
    registration.offered.name: registration.offered.title,
    middleware.case.name: middleware.case.title,
    rules.case.name: rules.case.title,
    authenticators.case.name: authenticators.case.title,
    **{group.name: group.title for group in _OF_HOOKS.values()},
    **stores.TITLES,
}
"""What each group is about, in the order in which they are run."""

CASES: tuple[Listed, ...] = (
    *registration.case.cases,
    *registration.offered.cases,
    *middleware.case.cases,
    *rules.case.cases,
    *authenticators.case.cases,
    *(each for group in _OF_HOOKS.values() for each in group.cases),
    *stores.CASES,
)
"""Every case."""

SOMETHING = Listed("registration", "something_is_shown", "Something of what the plugin does could be tried.")

Outcomes = Callable[[], Awaitable[tuple[Outcome, str]]]


class Planned(msgspec.Struct, frozen=True):
    """One case on one thing that the plugin offers: `of` is its name, empty for the plugin itself."""

    case: Listed
    of: str
    run: Outcomes

    def __str__(self) -> str:
        """Return the case's key, with what it is about."""
        return f"{self.title}.{self.case.name}"

    @property
    def title(self) -> str:
        """The case's group and what it is about."""
        return f"{self.case.group} {self.of}".strip()


def select(only: Sequence[str] = ()) -> list[Listed]:
    """Return the cases that one of the patterns matches; without patterns all.

    Raises:
        CannotCheck: there is none.
    """
    found = [case for case in CASES if _wanted(case, only)]
    if not found:
        raise CannotCheck(f"No case matches {', '.join(only)}.")
    return found


def _wanted(case: Listed, only: Sequence[str]) -> bool:
    texts = (case.key, case.name, case.group)
    return not only or any(fnmatchcase(text, pattern) for text in texts for pattern in only)


def plan(
    subject: Subject, *, only: Sequence[str] = (), fast: bool = False, patience: float = PATIENCE
) -> list[Planned]:
    """Import the plugin and return what there is to try.

    Raises:
        CannotCheck: it is not there, cannot be imported, or offers nothing that one of the patterns matches.
    """
    select(only)
    found = [each for each in _plan(load(subject), fast, patience) if _wanted(each.case, only)]
    if not found:
        raise CannotCheck(f"{subject.target} offers nothing that {', '.join(only)} would be about.")
    return found


def _plan(plugin: Loaded, fast: bool, patience: float) -> Iterator[Planned]:
    yield from _planned(registration.case, "", plugin)
    if plugin.record.error is not None:
        return
    offers = plugin.offers()
    if offers:
        yield from _planned(registration.offered, "", plugin)
    for offer in offers:
        if offer.hook in stores.HOOKS:
            for case, check in stores.checks(plugin, offer, fast=fast):
                yield Planned(case, offer.name, check)
            continue
        try:
            trials = plugin.trials(offer, patience)
        except ConfigurationError as error:
            for case in _cases_of(offer):
                yield Planned(case, offer.name, partial(_not_decoded, offer, error))
            continue
        for trial in trials:
            yield from _tried(offer, trial)
    if any(hook in DECISIONS for hook in plugin.record.hooks):
        itself = Rule(NoOptions, partial(_given, plugin.plugin))
        trial = Trial(plugin.name, itself, NoOptions(), patience)
        yield from _planned(rules.case, plugin.name, cast("rules.RuleTrial", trial))  # its options are a Struct
    for hook, group in _OF_HOOKS.items():
        if hook in plugin.record.hooks:
            yield from _planned(group, "", plugin)


@asynccontextmanager
async def _given(plugin: object, options: NoOptions) -> AsyncGenerator[object]:
    del options
    yield plugin


def _cases_of(offer: Offer) -> Sequence[Listed]:
    match offer.factory:
        case MiddlewareFactory():
            return middleware.case.cases
        case Rule():
            return rules.case.cases
        case _:
            return authenticators.case.cases


def _tried(offer: Offer, trial: Trial[msgspec.Struct]) -> Iterator[Planned]:
    # The hook has told which kind of factory it is; the casts say so to type checkers.
    match offer.factory:
        case MiddlewareFactory():
            around = cast("middleware.MiddlewareTrial", trial)
            opening = _Opening(offer, partial(middleware.opened, around))
            yield from _planned(middleware.case, trial.name, around, opening)
        case Rule():
            rule = cast("rules.RuleTrial", trial)
            opening = _Opening(offer, partial(rules.opened, rule))
            yield from _planned(rules.case, trial.name, rule, opening)
        case _:
            door = cast("authenticators.AuthenticatorTrial", trial)
            opening = _Opening(offer, partial(authenticators.opened, door))
            yield from _planned(authenticators.case, trial.name, door, opening)


def _planned(group: Group[T], of: str, thing: T, opening: "_Opening | None" = None) -> Iterator[Planned]:
    for case in group.cases:
        yield Planned(case, of, partial(_run, case, thing, opening))


class _Opening:
    """Whether something can be opened at all; found out once, before the first case about it."""

    def __init__(self, offer: Offer, open_it: Callable[[], AbstractAsyncContextManager[object]]) -> None:
        self._offer = offer
        self._open = open_it
        self._failed: Exception | None = None
        self._known = False

    async def check(self) -> None:
        """Go on if it can.

        Raises:
            NotShown: it lacks options.
            Unmet: it cannot.
        """
        if not self._known:
            try:
                async with self._open():
                    pass
            except Exception as error:  # noqa: BLE001 - whatever it is, it becomes the result of each case
                self._failed = error
            self._known = True
        if self._failed is not None:
            raise _why_not_opened(self._offer, first_of(self._failed)) from self._failed


def _why_not_opened(offer: Offer, error: BaseException) -> Exception:
    said = str(error) if isinstance(error, expect.Unmet | ConfigurationError) else f"{type(error).__name__}: {error}"
    if offer.written is None and isinstance(error, _WITHOUT_OPTIONS):
        return NotShown(f"not tried, since it cannot be opened without options ({said}); {offer.advice}")
    return expect.Unmet(f"it cannot be opened: {said}")


async def _not_decoded(offer: Offer, error: ConfigurationError) -> tuple[Outcome, str]:
    await trio.lowlevel.checkpoint()
    return _judged(_why_not_opened(offer, error))


async def _run(case: Case[T], thing: T, opening: _Opening | None) -> tuple[Outcome, str]:
    try:
        with trio.fail_after(CASE_SECONDS):
            if opening is not None:
                await opening.check()
            return Outcome.PASSED, await case.check(thing) or ""
    except trio.TooSlowError:
        return Outcome.FAILED, f"it was not finished within {CASE_SECONDS:g} s"
    except Exception as error:  # noqa: BLE001 - here ends the case: whatever it was, it becomes a result
        return _judged(error)


def _judged(error: Exception) -> tuple[Outcome, str]:
    first = first_of(error)
    if isinstance(first, expect.Unmet):
        return Outcome.FAILED, str(first)
    if isinstance(first, NotShown):
        return Outcome.SKIPPED, str(first)
    return Outcome.ERROR, f"{type(first).__name__}: {first}"


def first_of(error: BaseException) -> BaseException:
    """Return what is in a group of errors, or in one in it: the first."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


async def run_planned(planned: Planned) -> Result:
    """Run one case on one thing."""
    began = trio.current_time()
    with rules.listening():
        outcome, reason = await planned.run()
    return Result(
        group=planned.title,
        name=planned.case.name,
        requirement=planned.case.requirement,
        outcome=outcome,
        reason=reason,
        seconds=round(trio.current_time() - began, 3),
    )


async def check_plugin(
    subject: Subject,
    *,
    only: Sequence[str] = (),
    fast: bool = False,
    patience: float = PATIENCE,
    finished: Callable[[Result], None] | None = None,
) -> Report:
    """Run the selected cases on all that a plugin offers.

    `fast` takes smaller sizes for drivers; `patience` is how many seconds one answer of the plugin may take.

    Raises:
        CannotCheck: nothing can be run.
    """
    planned = plan(subject, only=only, fast=fast, patience=patience)
    began = trio.current_time()
    results: list[Result] = []
    for each in planned:
        result = await run_planned(each)
        results.append(result)
        if finished is not None:
            finished(result)
    if not _shown(planned, results, only):
        results.append(_nothing())
    return Report(
        kind="plugin",
        subject=subject.target,
        standard="contract of plugins",
        seconds=trio.current_time() - began,
        results=tuple(results),
    )


def _shown(planned: Sequence[Planned], results: Sequence[Result], only: Sequence[str]) -> bool:
    """Return whether anything was tried, beyond that the plugin registers."""
    start = {registration.case.name, registration.offered.name}
    return any(
        result.outcome is not Outcome.SKIPPED and (only or each.case.group not in start)
        for each, result in zip(planned, results, strict=True)
    )


def _nothing() -> Result:
    return Result(
        group=SOMETHING.group,
        name=SOMETHING.name,
        requirement=SOMETHING.requirement,
        outcome=Outcome.FAILED,
        reason="nothing that it offers could be tried",
        seconds=0.0,
    )


def assert_case(planned: Planned) -> None:
    """Run one case on one thing, with trio, for any test runner.

    Raises:
        AssertionError: the plugin does not do what the contract says.
        unittest.SkipTest: what it does keeps the case from showing anything.
    """
    result = trio.run(run_planned, planned)
    if result.outcome is Outcome.SKIPPED:
        raise unittest.SkipTest(result.reason)
    if result.outcome is not Outcome.PASSED:
        raise AssertionError(f"{planned}: {result.requirement}\n{result.reason}")


def assert_plugin(subject: Subject, *, fast: bool = True) -> Report:
    """Run all cases on all that a plugin offers, with trio, for any test runner; return what was found.

    Raises:
        AssertionError: the plugin does not do what the contract says, or nothing of it could be tried.
        CannotCheck: nothing can be run.
    """
    report = trio.run(partial(check_plugin, subject, fast=fast))
    wrong = report.of(Outcome.FAILED, Outcome.ERROR)
    if wrong:
        raise AssertionError("\n".join(f"{each.key}: {each.requirement}\n  {each.reason}" for each in wrong))
    return report

"""Storage drivers, and drivers around drivers, of a plugin: they go through the kit for drivers."""

from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import msgspec
import trio

from moorage_conformance import driver
from moorage_conformance.report import Outcome

from .case import Listed
from .subject import Loaded, Offer

HOOKS = ("register_drivers", "register_storage_middleware")

_GROUP = "drivers"

TITLES = {_GROUP: "Storage"}


def _listed(case: driver.Case) -> Listed:
    return Listed(_GROUP, case.name, case.requirement)


_TRIED = Listed(_GROUP, "it_is_tried", "It is given a store, which is empty and nobody else's.")
CASES: tuple[Listed, ...] = (_TRIED, *map(_listed, driver.CASES))

Check = Callable[[], Awaitable[tuple[Outcome, str]]]


def checks(plugin: Loaded, offer: Offer, *, fast: bool) -> Iterator[tuple[Listed, Check]]:
    """Give the cases on a driver, and how each is run."""
    subject = driver.Subject(
        offer.name,
        offer.written or {},
        plugin="" if plugin.installed else plugin.subject.target,
        around=offer.hook == "register_storage_middleware",
    )
    store = _Store(subject, offer)
    yield _TRIED, store.fault
    if store.given:
        for case in driver.select(fast=fast):
            yield _listed(case), partial(_run, store, subject, case, fast)


class _Store:
    """The store that a driver is tried on: whether there is one, and it is empty, is found out once."""

    def __init__(self, subject: driver.Subject, offer: Offer) -> None:
        self._subject = subject
        self._advice = offer.advice
        # The kit empties what it is given, so it takes no store that others see and that it was not given.
        has_options = bool(offer.declared.__struct_fields__)
        # What has an option without a default cannot be tried without being given it.
        needs_options = any(field.required for field in msgspec.structs.fields(offer.declared))
        self.given = offer.written is not None or not (needs_options or (has_options and subject.shared))
        self._found: tuple[Outcome, str] | None = None

    async def fault(self) -> tuple[Outcome, str]:
        """Return how each case ends; `PASSED` where it may begin."""
        if not self.given:
            await trio.lowlevel.checkpoint()
            return Outcome.SKIPPED, f"not tried without options; {self._advice}"
        if self._found is None:
            try:
                await driver.check_empty(self._subject)
                self._found = (Outcome.PASSED, "")
            except driver.CannotCheck as error:
                self._found = (Outcome.FAILED, str(error))
        return self._found


async def _run(store: _Store, subject: driver.Subject, case: driver.Case, fast: bool) -> tuple[Outcome, str]:
    outcome, reason = await store.fault()
    if outcome is Outcome.PASSED:
        result = await driver.run_case(subject, case, fast=fast)
        outcome, reason = result.outcome, result.reason
    return outcome, reason

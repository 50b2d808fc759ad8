"""Cases about rules: whatever is pushed, a rule says yes, warns, or refuses; and it only looks."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from itertools import count, islice

import msgspec
import trio

from moorage import (
    Handler,
    InternalError,
    MemoryDriver,
    Operation,
    PluginManager,
    R,
    ReadOnlyView,
    Registry,
    Rule,
    Unavailable,
    Unsupported,
    Verdict,
    encode_json,
)
from moorage_conformance.driver.expect import Unmet, true

from .case import Group, Trial
from .lifetime import can_be_cancelled, in_time, nothing_stays
from .samples import Push, filled_registry, pushes
from .subject import DECISIONS

RuleTrial = Trial[Rule[msgspec.Struct]]

case = Group[RuleTrial]("rules", "Rules")

_ASKED_ABOUT = 4
"""About how many missing references of one manifest a rule is asked."""
_AT_ONCE = 32
_FEWER = 5
"""Every which push is one to be cancelled in."""


_watched = count(1)


class Looking:
    """What a rule gets to look around with; notes what it must not ask for."""

    def __init__(self, registry: Handler) -> None:
        """Let it see `registry`."""
        self._view = ReadOnlyView(registry)
        self.forbidden: list[str] = []

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`."""
        await trio.lowlevel.checkpoint()
        try:
            return await self._view(operation)
        except Unsupported:
            self.forbidden.append(type(operation).__name__)
            raise


class Judge:
    """A rule that is open, asked by the registry's own means."""

    def __init__(self, plugins: PluginManager, full: Handler, patience: float) -> None:
        """Ask what `plugins` has about content in `full`, or in a registry that has nothing."""
        self._plugins = plugins
        self._patience = patience
        self.full = Looking(full)
        self.empty = Looking(Registry(MemoryDriver()))

    async def verdicts(self, push: Push) -> list[Verdict]:
        """Return what it says about a push, and about the first references of it when they are missing."""
        judging = self._plugins.judging
        async with aclosing(judging.verdicts(push.push, push.manifest, self.full)) as said:
            found = [each async for each in said]
        for reference in islice(push.manifest.references(), _ASKED_ABOUT):
            async with aclosing(judging.requirements(push.push, push.manifest, reference, self.empty)) as said:
                found += [each async for each in said]
        return found

    async def said(self, push: Push) -> list[bytes]:
        """Return what it says about a push as JSON.

        Raises:
            Unmet: it fails, or answers something that no client can be told.
        """
        return [told(push, each) for each in await in_time(push.title, partial(self.verdicts, push), self._patience)]


def told(push: Push, verdict: Verdict) -> bytes:
    """Return as JSON what a verdict comes to.

    Raises:
        Unmet: no client can be told that.
    """
    error = verdict.error
    if isinstance(error, InternalError):
        cause = error.__cause__
        why = error.message if cause is None else f"{type(cause).__name__}: {cause}"
        raise Unmet(f"asked {verdict.hook} about {push.title}, it fails: {why}")
    if error is None:
        return encode_json([verdict.hook, verdict.required, verdict.warnings])
    fair = 400 <= error.status < 500 or isinstance(error, Unavailable)
    true(fair, f"it refuses {push.title} with the status {error.status}; allowed is a 4xx")
    true(error.message.strip(), f"it refuses {push.title} and does not say why")
    try:
        return encode_json([verdict.hook, error.status, error.entries()])
    except (TypeError, ValueError, RecursionError) as wrong:
        raise Unmet(f"it refuses {push.title} with a detail that is no JSON: {wrong}") from wrong


@asynccontextmanager
async def opened(trial: RuleTrial) -> AsyncGenerator[Judge]:
    """Open the rule, and a registry with content for it to look at.

    Raises:
        Unmet: what it opens has no decision hooks.
    """
    full = await filled_registry()
    async with trial.factory.open(trial.options) as rule:
        plugins = PluginManager()
        record = plugins.register(rule, trial.name)
        true(record.error is None, f"what it opens cannot be used: {record.error}")
        decides = [hook for hook in record.hooks if hook in DECISIONS]
        true(decides, "what it opens has no decision hooks")
        yield Judge(plugins, full, trial.patience)


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def listening() -> Generator[list[logging.LogRecord]]:
    """Give what the registry logs about plugins meanwhile, which nobody else sees."""
    logger = logging.getLogger("moorage.plugins")
    handler = _Said()
    before = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate, logger.level = False, logging.WARNING
    try:
        yield handler.records
    finally:
        logger.propagate, logger.level = before
        logger.removeHandler(handler)


@case
async def every_push_is_accepted_warned_of_or_refused(trial: RuleTrial) -> str | None:
    """Whatever manifest is pushed, the answer is yes, warnings, or a refusal with a 4xx; never a failure."""
    count, refused, warned = 0, 0, 0
    async with opened(trial) as judge:
        for push in pushes():
            count += 1
            for verdict in await in_time(push.title, partial(judge.verdicts, push), trial.patience):
                told(push, verdict)
                refused += verdict.error is not None
                warned += bool(verdict.warnings)
    return f"of {count} pushes with these options, {refused} were refused and {warned} warned of"


@case
async def the_same_push_gets_the_same_answer(trial: RuleTrial) -> None:
    """Asked again, and asked after it was opened anew, it says the same about the same push."""
    async with opened(trial) as judge:
        first = {push.title: await judge.said(push) for push in pushes()}
        second = {push.title: await judge.said(push) for push in pushes()}
    async with opened(trial) as judge:
        third = {push.title: await judge.said(push) for push in pushes()}
    for title, said in first.items():
        true(second[title] == said, f"asked again about {title}, it says something else")
        true(third[title] == said, f"opened anew and asked about {title}, it says something else")


@case
async def it_only_looks(trial: RuleTrial) -> None:
    """It asks the registry for nothing that would change something."""
    async with opened(trial) as judge:
        for push in pushes():
            await judge.verdicts(push)
        forbidden = sorted({*judge.full.forbidden, *judge.empty.forbidden})
    true(not forbidden, f"it asks for {' and '.join(forbidden)}; what changes an operation is a middleware")


@case
async def it_does_not_block_the_event_loop(trial: RuleTrial) -> str | None:
    """None of its steps keeps everybody else waiting; more than 50 ms are reported, and more than 2 s are a failure."""
    # Under a name of its own, for the registry reports each name only now and then.
    once_more = msgspec.structs.replace(trial, name=f"{trial.name} ({next(_watched)})")
    with listening() as records:
        async with opened(once_more) as judge:
            for push in pushes():
                for verdict in await judge.verdicts(push):
                    failed = isinstance(verdict.error, InternalError) and "block" in verdict.error.message
                    true(not failed, f"asked about {push.title}, it blocks the event loop until it is interrupted")
    return next((record.getMessage() for record in records if "blocks" in record.getMessage()), None)


@case
async def it_can_be_asked_many_things_at_once(trial: RuleTrial) -> None:
    """Asked about many pushes at once, it says of each what it says of it alone."""
    some = pushes()[:8]
    async with opened(trial) as judge:
        alone = [await judge.said(push) for push in some]
        together: list[tuple[int, list[bytes]]] = []

        async def ask(at: int) -> None:
            together.append((at, await judge.said(some[at])))

        async def ask_all() -> None:
            async with trio.open_nursery() as nursery:
                for number in range(_AT_ONCE):
                    nursery.start_soon(ask, number % len(some))

        await in_time(f"{_AT_ONCE} pushes at once", ask_all, trial.patience)
    for at, said in together:
        true(said == alone[at], f"asked about {some[at].title} among others, it says something else")


@case
async def it_can_be_cancelled_at_every_await(trial: RuleTrial) -> None:
    """Cancelled at whichever await, it leaves nothing behind, and decides as before when asked again."""
    async with opened(trial) as judge:
        for push in pushes()[::_FEWER]:
            attempt: Callable[[], Awaitable[list[bytes]]] = partial(judge.said, push)
            usual = await attempt()
            await can_be_cancelled(push.title, attempt, partial(_equal, usual), trial.patience)


def _equal(usual: object, found: object) -> bool:
    return usual == found


@case
async def opening_can_be_cancelled_at_every_await(trial: RuleTrial) -> None:
    """Cancelled at whichever await while it is opened or closed, it leaves nothing behind, and can be opened again."""

    async def attempt() -> bool:
        async with trial.factory.open(trial.options):
            return True

    await can_be_cancelled("opening", attempt, bool, trial.patience)


@case
async def nothing_grows(trial: RuleTrial) -> None:
    """Opened, asked and closed many times, it leaves no task, thread or descriptor behind."""
    some = pushes()[:3]

    async def use(judge: Judge) -> None:
        for push in some:
            await judge.verdicts(push)

    await nothing_stays(lambda: opened(trial), use)

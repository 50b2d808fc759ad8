"""Hooks that block the event loop: they are named, interrupted, and in the end asked no more."""

import contextlib
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType, SimpleNamespace

import pytest
import trio
import trio.lowlevel
import trio.testing

from content import REPOSITORY, image
from moorage import (
    Digest,
    InternalError,
    MemoryDriver,
    Ping,
    PluginManager,
    Pong,
    PushManifest,
    Registry,
    Tag,
    _calls,
    _watch,
    hookimpl,
    parse_pushed,
)

DATA = image(Digest.of(b"{}"))
PUSH = PushManifest(
    repository=REPOSITORY, reference=Tag("a"), media_type="application/vnd.oci.image.manifest.v1+json", data=DATA
)
MANIFEST = parse_pushed(PUSH.media_type, DATA, Digest.of(DATA))
CATASTROPHE = "a" * 60 + "b"


@pytest.fixture(autouse=True)
def fresh_watch(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Watch as a process does that has just begun, and leave no handler behind."""
    # Another test of this process may have had a watch, whose handler would be somebody else's to the new one.
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    monkeypatch.setattr(_watch, "_watch", _watch._Watch())
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watch, "BLOCKED_SECONDS", 0.2)


def managed(**hooks: Callable[..., object]) -> PluginManager:
    manager = PluginManager()
    plugin = SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()})
    assert manager.register(plugin, "culprit").error is None
    return manager


async def validate(manager: PluginManager) -> tuple[str, ...]:
    return await manager.validate_manifest(PUSH, MANIFEST, Registry(MemoryDriver()))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "moorage.plugins"]


class Said(logging.Handler):
    """Notes what was logged as soon as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def said() -> Generator[Said]:
    handler = Said()
    logging.getLogger("moorage.plugins").addHandler(handler)
    yield handler
    logging.getLogger("moorage.plugins").removeHandler(handler)


async def test_a_hook_that_blocks_is_named_while_it_does(said: Said) -> None:
    seen: list[str] = []

    async def validate_manifest() -> None:
        # Ends when the log has named it, so whoever is told only afterwards is interrupted here, or seen at the end.
        for _ in range(3000):
            if said.texts:
                break
            time.sleep(0.01)  # noqa: ASYNC251 - what is tested
        seen.extend(said.texts)

    assert await validate(managed(validate_manifest=validate_manifest)) == ()
    (text,) = seen
    assert text.startswith("plugin culprit blocks the event loop for more than 50 ms")


async def test_what_waits_or_is_quick_is_not_named(said: Said, autojump_clock: trio.testing.MockClock) -> None:
    async def validate_manifest() -> list[str]:
        for _ in range(10):
            await trio.sleep(0.9)
        return ["done"]

    assert await validate(managed(validate_manifest=validate_manifest)) == ("done",)
    assert said.texts == []


async def spin() -> None:
    while True:
        pass


async def sleep() -> None:
    time.sleep(1000)  # noqa: ASYNC251 - what is tested


async def match_badly() -> None:
    re.fullmatch(r"(a|a)*", CATASTROPHE)


async def spin_and_go_on() -> None:
    while True:
        with contextlib.suppress(Exception):
            sum(range(1000))


async def catch_once() -> None:
    try:
        await spin()
    except BaseException:  # noqa: BLE001 - what is tested
        await spin()


async def spin_after_a_wait() -> None:
    await trio.lowlevel.checkpoint()
    await spin()


async def spin_in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await spin()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "hook", [spin, sleep, match_badly, spin_and_go_on, catch_once, spin_after_a_wait, spin_in_a_nursery]
)
async def test_a_hook_that_blocks_for_ever_is_interrupted_and_the_push_fails(
    hook: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InternalError, match="the plugin culprit blocked the registry"):
        await validate(managed(validate_manifest=hook))
    assert "plugin culprit was interrupted, for it had blocked the event loop too long" in messages(caplog)


@pytest.mark.usefixtures("impatient")
async def test_a_plugin_that_keeps_blocking_is_asked_no_more(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[None] = []

    async def validate_manifest() -> None:
        asked.append(None)
        await spin()

    manager = managed(validate_manifest=validate_manifest)
    for _ in range(3):
        with pytest.raises(InternalError, match="blocked the registry"):
            await validate(manager)
    assert "asked no more until a restart" in messages(caplog)[-1]
    for _ in range(2):
        with pytest.raises(InternalError, match="keeps blocking the registry and is asked no more until a restart"):
            await validate(manager)
    assert len(asked) == 3


@pytest.mark.usefixtures("impatient")
async def test_what_others_wait_for_goes_on_after_an_interruption() -> None:
    ticks: list[None] = []

    async def tick() -> None:
        while True:
            ticks.append(None)
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        with pytest.raises(InternalError):
            await validate(managed(validate_manifest=spin_after_a_wait))
        before = len(ticks)
        with trio.fail_after(30):
            while len(ticks) < before + 3:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("impatient")
def test_an_observer_that_blocks_is_interrupted_and_in_the_end_told_no_more(caplog: pytest.LogCaptureFixture) -> None:
    told: list[None] = []

    def operation_finished() -> None:
        told.append(None)
        while True:
            pass

    manager = managed(operation_finished=operation_finished)
    for _ in range(5):
        manager.operation_finished(Ping(), Pong(), None, 0.0)
    assert len(told) == 3
    assert any("plugin culprit blocks the event loop" in text for text in messages(caplog))
    assert "asked no more until a restart" in messages(caplog)[-1]


async def test_a_plugin_that_blocks_at_each_push_fills_no_log(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watch, "BLOCKING_SECONDS", 0.001)

    async def validate_manifest() -> None:
        time.sleep(0.01)  # noqa: ASYNC251 - what is tested

    manager = managed(validate_manifest=validate_manifest)
    for _ in range(5):
        await validate(manager)
    assert len(said.texts) == 1
    monkeypatch.setattr(_watch, "REPORT_SECONDS", 0.0)
    await validate(manager)
    assert len(said.texts) == 2
    assert "and did so 4 times since this was said last" in said.texts[1]


def test_outside_the_main_thread_it_is_told_afterwards(said: Said) -> None:
    seen: list[list[str]] = []

    async def validate_manifest() -> None:
        time.sleep(0.1)  # noqa: ASYNC251 - what is tested
        seen.append(list(said.texts))

    thread = threading.Thread(target=trio.run, args=(validate, managed(validate_manifest=validate_manifest)))
    thread.start()
    thread.join(60)
    assert seen == [[]]
    assert "plugin culprit blocks the event loop" in said.texts[0]


async def test_the_timer_of_somebody_else_is_left_alone(said: Said) -> None:
    rung: list[int] = []

    def ring(number: int, frame: FrameType | None) -> None:
        del frame
        rung.append(number)

    async def validate_manifest() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        while not rung:
            time.sleep(0.1)  # noqa: ASYNC251 - what is tested

    signal.signal(signal.SIGALRM, ring)
    assert await validate(managed(validate_manifest=validate_manifest)) == ()
    assert rung == [signal.SIGALRM]
    assert signal.getsignal(signal.SIGALRM) is ring
    assert "plugin culprit blocks the event loop" in said.texts[0]


async def test_no_timer_runs_while_a_hook_waits_or_after_it() -> None:
    timers: list[float] = []

    async def validate_manifest() -> None:
        await trio.lowlevel.checkpoint()
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0

    async def look() -> None:
        timers.append(signal.getitimer(signal.ITIMER_REAL)[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await validate(managed(validate_manifest=validate_manifest))
    timers.append(signal.getitimer(signal.ITIMER_REAL)[0])
    assert timers == [0, 0]


async def test_a_cancelled_push_is_cancelled_although_it_is_watched() -> None:
    cleaned: list[str] = []

    async def validate_manifest() -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    cleaned.append("up")
                    raise ValueError("in the clean-up")
        finally:
            cleaned.append("left")

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(validate, managed(validate_manifest=validate_manifest))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert cleaned == ["up", "left"]


class Odd(BaseException):
    pass


@pytest.mark.parametrize("error", [Odd(), SystemExit(3), KeyboardInterrupt(), BaseExceptionGroup("", [Odd()])])
@pytest.mark.parametrize("is_async", [True, False])
async def test_whatever_a_hook_raises_fails_the_push_and_nothing_else(
    error: BaseException, caplog: pytest.LogCaptureFixture, *, is_async: bool
) -> None:
    def hook() -> None:
        raise error

    async def later() -> None:
        raise error

    # As in the workers of `moorage serve`.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(InternalError, match="the plugin culprit failed"):
            await validate(managed(validate_manifest=later if is_async else hook))
        manager = managed(operation_finished=hook)
        manager.operation_finished(Ping(), Pong(), None, 0.0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert messages(caplog) == ["plugin culprit failed to decide", "plugin culprit failed in operation_finished"]


async def test_an_interrupt_of_the_keyboard_is_not_taken_for_a_failure() -> None:
    async def validate_manifest() -> None:
        signal.raise_signal(signal.SIGINT)
        await trio.lowlevel.checkpoint()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            await validate(managed(validate_manifest=validate_manifest))
    finally:
        signal.signal(signal.SIGINT, before)


# ---- tracing


async def refuse() -> None:
    raise InternalError("not\nso")


async def wait() -> None:
    await trio.sleep_forever()


async def fail() -> None:
    raise ValueError("no")


async def say_nothing() -> None:
    pass


async def warn() -> list[str]:
    return ["one", "two"]


@pytest.mark.parametrize(
    ("hook", "outcome"),
    [
        (warn, "returned ['one', 'two']"),
        (say_nothing, "returned None"),
        (refuse, "refused: not so"),
        (fail, "failed: ValueError: no"),
        (wait, "timed out"),
    ],
)
async def test_a_traced_decision_says_how_it_ended(
    hook: Callable[..., object],
    outcome: str,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    manager = PluginManager(trace=True)
    manager.register(SimpleNamespace(validate_manifest=hookimpl(hook)), "traced")
    with contextlib.suppress(InternalError):
        await validate(manager)
    lines = [record.getMessage() for record in caplog.records if record.name == "moorage.plugins.trace"]
    assert len(lines) == 1
    assert re.fullmatch(rf"validate_manifest of traced {re.escape(outcome)} after [0-9.]+ ms", lines[0])


def test_nothing_is_traced_unless_somebody_asks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    for value, traced in (("", False), ("0", False), ("1", True)):
        caplog.clear()
        monkeypatch.setenv(_calls.TRACE_VARIABLE, value)
        manager = managed(operation_finished=lambda: None)
        manager.operation_finished(Ping(), Pong(), None, 0.0)
        assert bool(caplog.records) is traced, value

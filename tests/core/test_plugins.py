import importlib
import importlib.metadata
import logging
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import trio
import trio.testing

from content import REPOSITORY, image, push_blob, push_manifest
from moorage import (
    Descriptor,
    Digest,
    Driver,
    DriverFactory,
    Handler,
    InternalError,
    ManifestBlobUnknown,
    MemoryDriver,
    MiddlewareFactory,
    NoOptions,
    Operation,
    Ping,
    PluginError,
    PluginManager,
    Pong,
    PushManifest,
    Refused,
    Registry,
    Tag,
    _calls,
    hookimpl,
    hookspec,
    parse_pushed,
)

CONFIG = Digest.of(b"{}")
DATA = image(CONFIG)
PUSH = PushManifest(
    repository=REPOSITORY, reference=Tag("a"), media_type="application/vnd.oci.image.manifest.v1+json", data=DATA
)
MANIFEST = parse_pushed(PUSH.media_type, DATA, Digest.of(DATA))


@asynccontextmanager
async def open_memory(options: NoOptions) -> AsyncGenerator[Driver]:
    del options
    yield MemoryDriver()


@asynccontextmanager
async def open_nothing(options: NoOptions, inner: Handler) -> AsyncGenerator[Handler]:
    del options
    yield inner


def plugin(**hooks: Callable[..., object]) -> SimpleNamespace:
    """Return a plugin with `hooks`."""
    return SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()})


def managed(**plugins: object) -> PluginManager:
    """Return a manager of `plugins`, all of them in use."""
    manager = PluginManager()
    for name, each in plugins.items():
        assert manager.register(each, name).error is None
    return manager


async def validate(manager: PluginManager) -> tuple[str, ...]:
    return await manager.validate_manifest(PUSH, MANIFEST, Registry(MemoryDriver()))


async def require(manager: PluginManager) -> bool:
    return (await manager.requires_reference(PUSH, MANIFEST, MANIFEST.descriptor, Registry(MemoryDriver()))).required


# ---- loading


class Installed:
    """Distributions that are installed below a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
        importlib.invalidate_caches()
        self._folder = folder
        self._monkeypatch = monkeypatch
        self.points: list[importlib.metadata.EntryPoint] = []

    def add(self, distribution: str, name: str, module: str, source: str) -> None:
        (self._folder / f"{module}.py").write_text(source)
        # Set and removed, so that what is imported is forgotten at the end.
        self._monkeypatch.setitem(sys.modules, module, ModuleType(module))
        del sys.modules[module]
        info = self._folder / f"{distribution}-1.2.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[moorage.plugins]\n{name} = {module}\n")
        self.points += importlib.metadata.PathDistribution(info).entry_points


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    return Installed(tmp_path, monkeypatch)


GOOD = """
from moorage import hookimpl

@hookimpl
def requires_reference():
    return False
"""


async def test_a_plugin_is_loaded_through_its_entry_point(installed: Installed) -> None:
    installed.add("good-dist", "good", "good_module", GOOD)
    manager = PluginManager()
    manager.load_entry_points(installed.points)
    (record,) = manager.records
    assert (record.name, record.distribution, record.version, record.module) == (
        "good",
        "good-dist",
        "1.2",
        "good_module",
    )
    assert (record.hooks, record.error) == (("requires_reference",), None)
    assert await require(manager) is False


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import there_is_no_such_module", "there_is_no_such_module"),
        ("1 / 0", "ZeroDivisionError"),
        ("this is no Python", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        (GOOD.replace("requires_reference()", "requires_reference(nonsense)"), "nonsense"),
        (GOOD.replace("requires_reference", "no_such_hook"), "no_such_hook"),
        (GOOD.replace("@hookimpl", "@hookimpl(wrapper=True)").replace("return False", "return (yield)"), "wrapped"),
        (
            GOOD.replace("@hookimpl", "@hookimpl(hookwrapper=True)").replace("return False", "yield"),
            "wrapped",
        ),
        (GOOD.replace("def requires_reference", "async def register_drivers"), "async"),
        (GOOD.replace("def requires_reference", "async def operation_finished"), "async"),
        (GOOD.replace("requires_reference", "register_drivers"), "bool"),
        (GOOD.replace("requires_reference", "register_rules").replace("False", "{1: 2}"), "register_rules"),
        (GOOD.replace("requires_reference", "register_rules").replace("False", "{'a': object}"), "register_rules"),
        (GOOD.replace("requires_reference", "register_middleware").replace("False", "None"), "register_middleware"),
        (GOOD.replace("requires_reference", "register_middleware").replace("return False", "1 / 0"), "Zero"),
        (GOOD.replace("requires_reference", "register_middleware").replace("return False", "exit()"), "SystemExit"),
    ],
)
async def test_a_plugin_that_cannot_be_used_is_reported_and_the_others_go_on(
    installed: Installed, caplog: pytest.LogCaptureFixture, source: str, reason: str
) -> None:
    installed.add("bad-dist", "bad", "bad_module", source)
    installed.add("good-dist", "good", "good_module", GOOD)
    installed.add("good-dist-2", "zzz", "good_module_2", GOOD)
    manager = PluginManager()
    manager.load_entry_points(installed.points)
    bad, good, last = manager.records
    assert (bad.name, bad.distribution, bad.module) == ("bad", "bad-dist", "bad_module")
    assert bad.error is not None
    assert reason in bad.error
    assert "\n" not in bad.error
    assert good.error is None
    assert last.error is None
    assert any("bad" in record.getMessage() and "bad-dist" in record.getMessage() for record in caplog.records)
    assert await require(manager) is False


def test_of_two_plugins_with_one_name_the_first_is_in_use_and_both_are_seen(installed: Installed) -> None:
    installed.add("first-dist", "same", "first_module", GOOD)
    installed.add("second-dist", "same", "second_module", GOOD)
    manager = PluginManager()
    manager.load_entry_points(installed.points)
    first, second = manager.records
    assert (first.name, first.distribution, first.error) == ("same", "first-dist", None)
    assert second.distribution == "second-dist"
    assert second.error is not None
    assert "first-dist" in second.error


def test_the_plugins_in_the_tree_are_found_as_others_are() -> None:
    manager = PluginManager()
    manager.load_entry_points()
    found = {record.name: record for record in manager.records}
    for name in ("drivers", "middleware", "nondistributable"):
        assert found[name].error is None
        assert found[name].distribution == "moorage"
    assert set(manager.drivers()) >= {"filesystem", "inmemory"}
    assert set(manager.middleware()) >= {"read_only", "deletes"}


async def test_a_plugin_that_is_taken_out_is_asked_no_more() -> None:
    manager = managed(a=plugin(requires_reference=lambda: False))
    manager.unregister("a")
    assert manager.records == ()
    assert await require(manager) is True
    assert manager.register(plugin(requires_reference=lambda: False), "a").error is None


# ---- registration hooks


DRIVER = DriverFactory(NoOptions, open_memory)
MIDDLEWARE = MiddlewareFactory(NoOptions, open_nothing)


def test_what_plugins_offer_is_put_together() -> None:
    manager = managed(
        a=plugin(register_drivers=lambda: {"one": DRIVER, "two": DRIVER}),
        b=plugin(register_drivers=lambda: {"three": DRIVER}, register_middleware=lambda: {"one": MIDDLEWARE}),
    )
    assert set(manager.drivers()) == {"one", "two", "three"}
    assert set(manager.middleware()) == {"one"}
    assert [*manager.storage_middleware(), *manager.authenticators(), *manager.rules()] == []
    assert manager.records[0].registers == {"register_drivers": ("one", "two")}
    assert manager.records[1].hooks == ("register_drivers", "register_middleware")


def test_two_plugins_that_offer_the_same_name_are_both_named() -> None:
    manager = managed(first=plugin(register_drivers=lambda: {"same": DRIVER}))
    record = manager.register(plugin(register_drivers=lambda: {"same": DRIVER}), "second")
    assert record.error == "offers 'same' in register_drivers, and so does the plugin first"
    with pytest.raises(PluginError, match=r"second.*first.*same|first.*second.*same"):
        manager.drivers()


def test_hooks_of_the_host_are_called_where_it_has_them() -> None:
    module = ModuleType("host")

    def register_commands() -> list[str]:
        return []

    module.register_commands = hookspec(register_commands)  # type: ignore[attr-defined]
    offers = SimpleNamespace(register_commands=hookimpl(optionalhook=True)(lambda: ["command"]))
    host = PluginManager(module)
    assert host.register(offers, "a").error is None
    assert host.call("register_commands") == [["command"]]
    assert PluginManager().register(offers, "a").error is None
    assert PluginManager().register(plugin(register_commands=raising(ValueError())), "b").error is not None


# ---- decisions


async def test_without_plugins_everything_is_required_and_nothing_refused() -> None:
    assert await require(PluginManager()) is True
    assert await validate(PluginManager()) == ()


async def test_the_first_answer_that_is_one_decides() -> None:
    asked: list[str] = []

    def answering(name: str, answer: bool | None, *, is_async: bool = False) -> SimpleNamespace:
        def sync() -> bool | None:
            asked.append(name)
            return answer

        async def later() -> bool | None:
            await trio.lowlevel.checkpoint()
            return sync()

        return plugin(requires_reference=later if is_async else sync)

    # pluggy calls the last that was registered first.
    manager = managed(
        never=answering("never", True),
        decides=answering("decides", False, is_async=True),
        abstains=answering("abstains", None),
        too=answering("too", None, is_async=True),
    )
    assert await require(manager) is False
    assert asked == ["too", "abstains", "decides"]


async def test_first_and_last_are_kept_and_all_warnings_are_gathered_in_order() -> None:
    def warning(text: str, *, first: bool = False, last: bool = False) -> SimpleNamespace:
        return SimpleNamespace(validate_manifest=hookimpl(tryfirst=first, trylast=last)(lambda: [text]))

    async def later() -> tuple[str, ...]:
        await trio.lowlevel.checkpoint()
        return ("later", "and later")

    manager = managed(
        first=warning("first", first=True),
        last=warning("last", last=True),
        middle=plugin(validate_manifest=later),
        silent=plugin(validate_manifest=lambda: None),
    )
    assert await validate(manager) == ("first", "later", "and later", "last")


async def test_a_hook_is_given_what_it_asks_for() -> None:
    seen: list[object] = []

    async def look(registry: Handler, push: PushManifest, descriptor: Descriptor) -> bool:
        seen.extend([push, descriptor, await registry(Ping())])
        return True

    await require(managed(a=plugin(requires_reference=look)))
    assert seen == [PUSH, MANIFEST.descriptor, Pong()]


def raising(error: BaseException) -> Callable[[], None]:
    def hook() -> None:
        raise error

    return hook


def raising_later(error: BaseException) -> Callable[[], object]:
    async def hook() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    return hook


@pytest.mark.parametrize("kind", [raising, raising_later])
async def test_a_refusal_reaches_the_client_as_it_is(kind: Callable[[BaseException], Callable[..., object]]) -> None:
    refusal = Refused("not here", status=409)
    for ask, hook in ((validate, "validate_manifest"), (require, "requires_reference")):
        with pytest.raises(Refused) as caught:
            await ask(managed(a=plugin(**{hook: kind(refusal)})))
        assert caught.value is refusal


@pytest.mark.parametrize("kind", [raising, raising_later])
@pytest.mark.parametrize("error", [ValueError("secret"), KeyError("secret"), trio.TooSlowError(), SystemExit(1)])
async def test_any_other_failure_fails_the_push_and_names_the_plugin_in_the_log(
    kind: Callable[[BaseException], Callable[..., object]],
    error: BaseException,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for ask, hook in ((validate, "validate_manifest"), (require, "requires_reference")):
        caplog.clear()
        with pytest.raises(InternalError) as caught:
            await ask(managed(culprit=plugin(**{hook: kind(error)}), other=plugin(validate_manifest=lambda: None)))
        assert "secret" not in caught.value.message
        assert any("culprit" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("answer", ["text", b"bytes", 1, True, object(), [1], ["fine", None], {"a": 1}, {"a"}])
async def test_an_answer_that_is_no_list_of_warnings_fails_the_push(answer: object) -> None:
    with pytest.raises(InternalError, match="culprit"):
        await validate(managed(culprit=plugin(validate_manifest=lambda: answer)))


@pytest.mark.parametrize("answer", ["yes", 0, 1, [], object()])
async def test_an_answer_that_is_no_truth_value_fails_the_push(answer: object) -> None:
    with pytest.raises(InternalError, match="culprit"):
        await require(managed(culprit=plugin(requires_reference=lambda: answer)))


async def test_a_plugin_that_waits_for_ever_fails_the_push_at_the_limit(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    before = autojump_clock.current_time()
    with pytest.raises(InternalError, match="in time"):
        await validate(managed(slow=plugin(validate_manifest=trio.sleep_forever)))
    assert autojump_clock.current_time() - before == pytest.approx(_calls.HOOK_SECONDS)
    assert any("slow" in record.getMessage() for record in caplog.records)


async def test_a_plugin_that_blocks_a_thread_fails_the_push_at_the_limit_and_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_calls, "HOOK_SECONDS", 0.05)
    released = threading.Event()
    finished = threading.Event()

    def block() -> None:
        released.wait(60)
        finished.set()

    try:
        with pytest.raises(InternalError, match="in time"):
            await validate(managed(slow=plugin(validate_manifest=block)))
        assert not finished.is_set()
    finally:
        released.set()
    assert await trio.to_thread.run_sync(finished.wait, 60)


async def test_a_plugin_that_hangs_keeps_no_other_from_deciding_and_is_refused_at_once_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_calls, "HOOK_SECONDS", 0.05)
    released = threading.Event()
    asked: list[None] = []

    def hang() -> None:
        asked.append(None)
        released.wait(60)

    manager = managed(slow=plugin(validate_manifest=hang), other=plugin(requires_reference=lambda: False))
    try:
        for _ in range(4):
            with pytest.raises(InternalError, match="in time"):
                await validate(manager)
        monkeypatch.setattr(_calls, "HOOK_SECONDS", 60.0)
        assert await require(manager) is False
        with pytest.raises(InternalError, match="the plugin slow has not ended"):
            await validate(manager)
        assert len(asked) == 4
    finally:
        released.set()
    # When what it was asked has ended, it is asked again.
    with trio.fail_after(60):
        while True:
            try:
                assert await validate(manager) == ()
            except InternalError:
                # The threads need the interpreter to end.
                await trio.sleep(0.01)
            else:
                break


def test_a_factory_of_another_kind_is_refused_with_the_kind_that_is_meant() -> None:
    record = PluginManager().register(plugin(register_middleware=lambda: {"x": DRIVER}), "odd")
    assert record.error is not None
    assert "not a name with a MiddlewareFactory" in record.error


def test_a_module_without_hooks_is_said_to_have_none() -> None:
    record = PluginManager().register(SimpleNamespace(validate_manifest=print), "forgetful")
    assert record.error is not None
    assert "is @hookimpl missing?" in record.error


async def test_a_cancelled_push_is_cancelled_not_failed() -> None:
    with trio.CancelScope() as scope:

        async def cancelled() -> None:
            scope.cancel()
            await trio.sleep_forever()

        await validate(managed(a=plugin(validate_manifest=cancelled)))
    assert scope.cancelled_caught


async def test_a_registry_asks_its_plugins() -> None:
    missing = Digest.of(b"missing")
    manager = managed(a=plugin(requires_reference=lambda: False, validate_manifest=lambda: ("careful",)))
    registry = Registry(MemoryDriver(), manager)
    config = await push_blob(registry, b"{}")
    assert (await push_manifest(registry, image(config, missing), "a")).warnings == ("careful",)
    manager.unregister("a")
    with pytest.raises(ManifestBlobUnknown):
        await push_manifest(registry, image(config, missing), "a")


# ---- observers


def test_observers_see_what_was_answered_and_harm_nothing(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Mapping[str, object]] = []

    def observe(operation: Operation[object], reply: object, error: object, seconds: float) -> None:
        seen.append({"operation": operation, "reply": reply, "error": error, "seconds": seconds})

    def brief(seconds: float) -> None:
        seen.append({"seconds": seconds})

    manager = managed(
        observer=plugin(operation_finished=observe),
        broken=plugin(operation_finished=raising(ValueError("on purpose"))),
        brief=plugin(operation_finished=brief),
    )
    assert manager.observed
    assert not PluginManager().observed
    with caplog.at_level(logging.ERROR):
        manager.operation_finished(Ping(), Pong(), None, 0.5)
    assert seen == [{"seconds": 0.5}, {"operation": Ping(), "reply": Pong(), "error": None, "seconds": 0.5}]
    (record,) = caplog.records
    assert "broken" in record.getMessage()

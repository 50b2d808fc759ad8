"""What a configuration opens: drivers, middleware, rules and authenticators, in which order, and how it is told what is wrong."""

import random
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import trio
import trio.testing

import moorage_drivers
import moorage_middleware
from asgi_client import EMPTY, image
from content import REPOSITORY, Sent
from moorage import (
    OCI_MANIFEST,
    AppendUpload,
    Authenticator,
    AuthenticatorFactory,
    BlobUnknown,
    Caller,
    Configuration,
    ConfigurationError,
    Credentials,
    DeleteBlob,
    Denied,
    Descriptor,
    Digest,
    Driver,
    DriverFactory,
    Handler,
    ListTags,
    MemoryDriver,
    MiddlewareFactory,
    NoOptions,
    OpenUpload,
    Operation,
    Origin,
    Ping,
    PluginManager,
    PullBlob,
    PushBlob,
    PushManifest,
    R,
    RedisSettings,
    Refused,
    RegistryError,
    Rule,
    StorageMiddlewareFactory,
    StoreReadOnly,
    Tag,
    Unauthorized,
    Unsupported,
    check_options,
    claimed_sections,
    encode_json,
    hookimpl,
    load_configuration,
    open_registry,
    open_store,
)

BLOB = b"content"
DIGEST = Digest.of(BLOB)


class Marked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of everything that the plugin of these tests offers."""

    mark: str = "default"
    count: int = 0


class Layer(MemoryDriver):
    """A driver around a driver, as far as these tests go."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark


class Mark:
    """A handler that notes each operation on its way in and out."""

    def __init__(self, inner: Handler, name: str, seen: list[str]) -> None:
        self._inner = inner
        self._name = name
        self._seen = seen

    async def __call__(self, operation: Operation[R], /) -> R:
        self._seen.append(f"into {self._name}")
        try:
            return await self._inner(operation)
        finally:
            self._seen.append(f"out of {self._name}")


class Judge:
    """A rule that notes that it was asked, and may have an opinion."""

    def __init__(self, name: str, seen: list[str], mark: str) -> None:
        self._name = name
        self._seen = seen
        self._mark = mark

    @hookimpl
    def validate_manifest(self, push: PushManifest) -> list[str]:
        self._seen.append(f"{self._name} judges")
        if self._mark == "refuse":
            raise Refused(f"{self._name} refuses {push.reference}")
        return [f"{self._name} warns"]

    @hookimpl
    def requires_reference(self, descriptor: Descriptor) -> bool | None:
        self._seen.append(f"{self._name} is asked for {descriptor.size}")
        return {"require": True, "spare": False}.get(self._mark)


class Doorkeeper:
    """An authenticator that knows one word."""

    challenge = 'Basic realm="test"'

    async def __call__(self, origin: Origin, /) -> Caller | None:
        await trio.lowlevel.checkpoint()
        if origin.credentials is None:
            return None
        return Caller(name=origin.credentials.value)


class Toys:
    """A plugin that offers one of each kind, and notes what is opened, closed and finished."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.finished: list[tuple[str, str]] = []
        self.driver: MemoryDriver = MemoryDriver()

    @asynccontextmanager
    async def _noted(self, what: str) -> AsyncGenerator[None]:
        self.seen.append(f"open {what}")
        try:
            yield
        finally:
            self.seen.append(f"close {what}")

    @hookimpl
    def register_drivers(self) -> Mapping[str, object]:
        @asynccontextmanager
        async def open_toy(options: Marked) -> AsyncGenerator[Driver]:
            if options.mark == "broken":
                raise StoreReadOnly("no luck", driver="toy", operation="open")
            async with self._noted("toy"):
                yield self.driver

        return {"toy": DriverFactory(Marked, open_toy)}

    @hookimpl
    def register_storage_middleware(self) -> Mapping[str, object]:
        @asynccontextmanager
        async def open_layer(options: Marked, inner: Driver) -> AsyncGenerator[Driver]:
            self.seen.append(f"layer {options.mark} gets {inner.mark if isinstance(inner, Layer) else inner.name}")
            outer = Layer(options.mark)
            async with self._noted(f"layer {options.mark}"):
                yield outer

        return {"layer": StorageMiddlewareFactory(Marked, open_layer)}

    @hookimpl
    def register_authenticators(self) -> Mapping[str, object]:
        @asynccontextmanager
        async def open_door(options: Marked) -> AsyncGenerator[Authenticator]:
            async with self._noted(f"door {options.mark}"):
                yield Doorkeeper()

        return {"door": AuthenticatorFactory(Marked, open_door)}

    @hookimpl
    def register_middleware(self) -> Mapping[str, object]:
        def factory(name: str, section: str | None = None) -> MiddlewareFactory[Marked]:
            @asynccontextmanager
            async def open_it(options: Marked, inner: Handler) -> AsyncGenerator[Handler]:
                if options.mark == "broken":
                    raise ValueError(f"{name} is broken")
                async with self._noted(f"{name} {options.mark}"):
                    yield Mark(inner, name, self.seen)

            return MiddlewareFactory(Marked, open_it, section=section)

        return {
            "one": factory("one"),
            "two": factory("two"),
            "three": factory("three"),
            "four": factory("four", "health.mine"),
        }

    @hookimpl
    def register_rules(self) -> Mapping[str, object]:
        def rule(name: str) -> Rule[Marked]:
            @asynccontextmanager
            async def open_it(options: Marked) -> AsyncGenerator[object]:
                async with self._noted(f"rule {name}"):
                    yield Judge(name, self.seen, options.mark)

            return Rule(Marked, open_it)

        return {"first": rule("first"), "second": rule("second"), "third": rule("third")}

    @hookimpl
    def operation_finished(self, operation: Operation[object], error: RegistryError | None, seconds: float) -> None:
        assert seconds >= 0
        self.finished.append((type(operation).__name__, error.code if error else "done"))


@pytest.fixture
def toys() -> Toys:
    return Toys()


@pytest.fixture
def plugins(toys: Toys) -> PluginManager:
    manager = PluginManager()
    for name, plugin in (("drivers", moorage_drivers), ("middleware", moorage_middleware), ("toys", toys)):
        assert manager.register(plugin, name).error is None
    return manager


def configured(plugins: PluginManager, overrides: Mapping[str, object]) -> Configuration:
    given: dict[str, object] = {"storage": {"toy": None}, **overrides}
    return load_configuration(None, {}, overrides=given, claimed=claimed_sections(plugins)).configuration


def pushed_blob() -> PushBlob:
    return PushBlob(repository=REPOSITORY, digest=DIGEST, body=Sent(BLOB, length=len(BLOB)))


async def push_image(handler: Handler, *layers: Mapping[str, object]) -> tuple[str, ...]:
    config = Digest.of(EMPTY)
    await handler(PushBlob(repository=REPOSITORY, digest=config, body=Sent(EMPTY, length=len(EMPTY))))
    data = encode_json(image(config, layers=layers))
    push = PushManifest(repository=REPOSITORY, reference=Tag("v1"), media_type=OCI_MANIFEST, data=data)
    return (await handler(push)).warnings


# ---- what is opened


async def test_a_configured_driver_is_opened_and_closed(plugins: PluginManager, toys: Toys) -> None:
    async with open_registry(configured(plugins, {}), plugins) as opened:
        assert opened.driver is toys.driver
        await opened.handler(pushed_blob())
        await opened.handler(PullBlob(repository=REPOSITORY, digest=DIGEST))
        assert toys.seen == ["open toy"]
    assert toys.seen == ["open toy", "close toy"]


async def test_drivers_of_the_tree_are_opened_like_any(plugins: PluginManager, tmp_path: Path) -> None:
    for name, options in (("inmemory", None), ("filesystem", {"rootdirectory": str(tmp_path / "root")})):
        configuration = configured(plugins, {"storage": {name: options}})
        async with open_registry(configuration, plugins) as opened:
            assert opened.driver.name == name
            await opened.handler(pushed_blob())
    assert list(tmp_path.rglob("data"))


async def test_all_is_opened_in_order_and_closed_in_the_opposite_one(plugins: PluginManager, toys: Toys) -> None:
    configuration = configured(
        plugins,
        {
            "middleware.storage": [
                {"name": "layer", "options": {"mark": "inner"}},
                {"name": "layer", "options": {"mark": "off"}, "disabled": True},
                {"name": "layer", "options": {"mark": "outer"}},
            ],
            "plugins": {"one": {"mark": "x"}, "second": {}, "two": {}, "first": {}},
            "auth": {"door": {"mark": "front"}},
        },
    )
    async with open_registry(configuration, plugins) as opened:
        assert isinstance(opened.driver, Layer)
        assert opened.driver.mark == "outer"
        begun = toys.seen[:]
    opened_things = [line.removeprefix("open ") for line in begun if line.startswith("open ")]
    assert begun.index("layer inner gets inmemory") < begun.index("layer outer gets inner")
    assert opened_things == [
        "toy",
        "layer inner",
        "layer outer",
        "rule second",
        "rule first",
        "two default",
        "one x",
        "door front",
    ]
    assert toys.seen[len(begun) :] == [f"close {name}" for name in reversed(opened_things)]


async def test_operations_pass_middleware_in_the_order_of_the_configuration(plugins: PluginManager, toys: Toys) -> None:
    order = ["three", "one", "two"]
    configuration = configured(plugins, {"plugins": dict.fromkeys(order), "health.mine": {"mark": "x"}})
    async with open_registry(configuration, plugins) as opened:
        toys.seen.clear()
        await opened.handler(Ping())
        way = ["four", *order]
        assert toys.seen == [f"into {name}" for name in way] + [f"out of {name}" for name in reversed(way)]


async def test_what_no_configuration_asks_for_is_not_opened(plugins: PluginManager, toys: Toys) -> None:
    async with open_registry(configured(plugins, {}), plugins) as opened:
        await push_image(opened.handler)
    assert toys.seen == ["open toy", "close toy"]


async def test_rules_judge_in_the_order_of_the_configuration(plugins: PluginManager, toys: Toys) -> None:
    configuration = configured(plugins, {"plugins": {"second": {}, "third": {}, "first": {}}})
    async with open_registry(configuration, plugins) as opened:
        warnings = await push_image(opened.handler)
        assert warnings == ("second warns", "third warns", "first warns")
        assert [line for line in toys.seen if line.endswith("judges")] == [
            "second judges",
            "third judges",
            "first judges",
        ]


async def test_the_first_rule_with_an_opinion_on_a_missing_reference_decides(
    plugins: PluginManager, toys: Toys
) -> None:
    layer = {"mediaType": "application/x", "digest": str(DIGEST), "size": 7}
    for rules, taken in (
        ({"third": {}, "first": {"mark": "spare"}, "second": {"mark": "require"}}, True),
        ({"third": {}, "second": {"mark": "require"}, "first": {"mark": "spare"}}, False),
    ):
        toys.seen.clear()
        async with open_registry(configured(plugins, {"plugins": rules}), plugins) as opened:
            if taken:
                await push_image(opened.handler, layer)
            else:
                with pytest.raises(RegistryError) as refused:
                    await push_image(opened.handler, layer)
                assert refused.value.code == "MANIFEST_BLOB_UNKNOWN"
        asked = [line for line in toys.seen if "is asked" in line]
        assert asked == [f"{name} is asked for 7" for name in list(rules)[:2]]


async def test_a_rule_that_refuses_keeps_a_manifest_out(plugins: PluginManager) -> None:
    configuration = configured(plugins, {"plugins": {"first": {"mark": "refuse"}}})
    async with open_registry(configuration, plugins) as opened:
        with pytest.raises(Refused, match="first refuses v1"):
            await push_image(opened.handler)
        assert (await opened.handler(ListTags(repository=REPOSITORY))).tags == ()


async def test_rules_are_gone_with_the_registry_that_opened_them(plugins: PluginManager, toys: Toys) -> None:
    records = plugins.records
    for _ in range(2):
        async with open_registry(configured(plugins, {"plugins": {"first": {}}}), plugins) as opened:
            assert await push_image(opened.handler) == ("first warns",)
            assert len(plugins.records) == len(records) + 1
        assert plugins.records == records
    async with open_registry(configured(plugins, {}), plugins) as opened:
        toys.seen.clear()
        assert await push_image(opened.handler) == ()
        assert toys.seen == []


async def test_a_registry_that_fails_to_open_closes_what_it_has_opened(plugins: PluginManager, toys: Toys) -> None:
    configuration = configured(plugins, {"plugins": {"first": {}, "one": {}, "two": {"mark": "broken"}}})
    with pytest.raises(ConfigurationError, match="two failed to open: ValueError: two is broken"):
        async with open_registry(configuration, plugins):
            raise AssertionError
    opened = [line.removeprefix("open ") for line in toys.seen if line.startswith("open ")]
    closed = [line.removeprefix("close ") for line in toys.seen if line.startswith("close ")]
    assert opened
    assert closed == opened[::-1]
    assert not any(record.name.startswith("rule") for record in plugins.records)


# ---- who may come in


async def test_an_authenticator_sets_the_caller_or_asks_for_credentials(plugins: PluginManager) -> None:
    callers: list[Caller] = []

    class Look:
        @hookimpl
        def operation_finished(self, operation: Operation[object]) -> None:
            callers.append(operation.caller)

    plugins.register(Look(), "look")
    async with open_registry(configured(plugins, {"auth": {"door": {}}}), plugins) as opened:
        with pytest.raises(Unauthorized) as refused:
            await opened.handler(Ping())
        assert refused.value.challenges == ('Basic realm="test"',)
        await opened.handler(Ping(origin=Origin(credentials=Credentials("basic", "ann"))))
    # Observers stand outside and see what was asked, a refusal too, and who asked it.
    assert [caller.name for caller in callers] == ["", "ann"]


# ---- what the operator turned off


async def test_a_read_only_registry_is_read(plugins: PluginManager) -> None:
    async with open_registry(configured(plugins, {}), plugins) as opened:
        await opened.handler(pushed_blob())
    configuration = configured(plugins, {"storage.maintenance.readonly.enabled": True, "storage.toy": None})
    async with open_registry(configuration, plugins) as opened:
        await opened.handler(PullBlob(repository=REPOSITORY, digest=DIGEST))
        for operation in (pushed_blob(), OpenUpload(repository=REPOSITORY), deleted(DIGEST)):
            with pytest.raises(Unsupported) as refused:
                await opened.handler(operation)
            assert refused.value.status == 405


def deleted(digest: Digest) -> Operation[object]:
    return DeleteBlob(repository=REPOSITORY, digest=digest)


@pytest.mark.parametrize(
    ("overrides", "allowed"),
    [
        ({}, False),
        ({"storage.delete.enabled": True, "storage.toy": None}, True),
        ({"storage.delete.enabled": False, "storage.toy": None}, False),
        ({"storage.delete": None, "storage.toy": None}, False),
    ],
)
async def test_deletes_are_refused_unless_they_are_turned_on(
    plugins: PluginManager, overrides: Mapping[str, object], allowed: bool
) -> None:
    async with open_registry(configured(plugins, overrides), plugins) as opened:
        await opened.handler(pushed_blob())
        if allowed:
            await opened.handler(deleted(DIGEST))
            with pytest.raises(BlobUnknown):
                await opened.handler(deleted(DIGEST))
        else:
            with pytest.raises(Unsupported):
                await opened.handler(deleted(DIGEST))


# ---- observers


async def test_observers_see_operations_and_how_they_ended(plugins: PluginManager, toys: Toys) -> None:
    async with open_registry(configured(plugins, {}), plugins) as opened:
        await opened.handler(pushed_blob())
        with pytest.raises(BlobUnknown):
            await opened.handler(PullBlob(repository=REPOSITORY, digest=Digest.of(b"other")))
        with pytest.raises(Unsupported):
            await opened.handler(deleted(DIGEST))
    assert toys.finished == [("PushBlob", "done"), ("PullBlob", "BLOB_UNKNOWN"), ("DeleteBlob", "UNSUPPORTED")]


async def test_an_observer_that_fails_harms_nobody(
    plugins: PluginManager, toys: Toys, caplog: pytest.LogCaptureFixture
) -> None:
    class Clumsy:
        @hookimpl
        def operation_finished(self) -> None:
            raise RuntimeError("oops")

    plugins.register(Clumsy(), "clumsy")
    async with open_registry(configured(plugins, {}), plugins) as opened:
        await opened.handler(Ping())
    assert toys.finished == [("Ping", "done")]
    assert "clumsy" in caplog.text


# ---- what is wrong is told


def refusal(plugins: PluginManager, overrides: Mapping[str, object]) -> str:
    """Return the one sentence that both checking and opening say."""
    configuration = configured(plugins, overrides)
    with pytest.raises(ConfigurationError) as checked:
        check_options(configuration, plugins)

    async def open_it() -> None:
        async with open_registry(configuration, plugins):
            raise AssertionError

    with pytest.raises(ConfigurationError) as opened:
        trio.run(open_it)
    assert str(opened.value) == str(checked.value)
    assert "\n" not in str(opened.value)
    return str(opened.value)


def test_an_unknown_driver_is_told_with_those_that_are_there(plugins: PluginManager) -> None:
    said = refusal(plugins, {"storage": {"filesytem": None}})
    assert "'filesytem'" in said
    assert "filesystem" in said.replace("filesytem", "")


def test_an_unknown_driver_is_told_with_the_plugins_that_failed(plugins: PluginManager) -> None:
    class Broken:
        @hookimpl
        def register_drivers(self) -> Mapping[str, object]:
            raise ImportError("no module named boto")

    plugins.register(Broken(), "tape", distribution="moorage-tape", version="1.0")
    said = refusal(plugins, {"storage": {"tape": None}})
    assert "moorage-tape" in said
    assert "no module named boto" in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"storage": {"toy": {"mrak": "x"}}}, ["storage.toy", "mrak"]),
        ({"storage": {"toy": {"count": "many"}}}, ["storage.toy.count"]),
        ({"plugins": {"first": {"mrak": "x"}}}, ["plugins.first", "mrak"]),
        ({"plugins": {"one": {"count": []}}}, ["plugins.one.count"]),
        ({"plugins": {"frist": {}}}, ["plugins.frist", "first"]),
        ({"plugins": {"read_only": {}}}, ["plugins.read_only", "storage.maintenance.readonly"]),
        ({"middleware.storage": [{"name": "lyaer"}]}, ["middleware.storage[0].name", "layer"]),
        (
            {"middleware.storage": [{"name": "layer", "options": {"mrak": 1}}]},
            ["middleware.storage[0].options", "mrak"],
        ),
        ({"auth": {"door": {"mrak": "x"}}}, ["auth.door", "mrak"]),
    ],
)
def test_what_no_plugin_takes_is_told_with_its_place(
    plugins: PluginManager, overrides: Mapping[str, object], words: list[str]
) -> None:
    said = refusal(plugins, overrides)
    for word in words:
        assert word in said, said


def test_a_plugin_that_is_needed_and_failed_is_told(plugins: PluginManager) -> None:
    class Broken:
        @hookimpl
        def register_rules(self) -> Mapping[str, object]:
            raise RuntimeError("out of order")

    plugins.register(Broken(), "platforms", distribution="moorage-platforms", version="1.0")
    said = refusal(plugins, {"plugins": {"platforms": {}}})
    assert "moorage-platforms" in said
    assert "out of order" in said


class Remembering(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options that a section has, and one that another section says."""

    blobdescriptor: str = ""
    redis: RedisSettings | None = None


class Remembered:
    """A plugin whose storage middleware has a section of its own, is for who serves, and notes its options."""

    def __init__(self) -> None:
        self.opened: list[Remembering] = []

    @hookimpl
    def register_storage_middleware(self) -> Mapping[str, object]:
        @asynccontextmanager
        async def open_layer(options: Remembering, inner: Driver) -> AsyncGenerator[Driver]:
            self.opened.append(options)
            await trio.lowlevel.checkpoint()
            yield inner

        beside = {"redis": "redis"}
        return {
            "remember": StorageMiddlewareFactory(
                Remembering, open_layer, section="storage.cache", beside=beside, for_serving=True
            )
        }


@pytest.mark.parametrize(
    ("sections", "opened"),
    [
        ({}, []),
        ({"storage.cache": {}}, []),
        ({"storage.cache": {"blobdescriptor": ""}}, []),
        ({"storage.cache": {"blobdescriptor": "inmemory"}}, [Remembering("inmemory")]),
        (
            {"storage.cache": {"blobdescriptor": "inmemory"}, "redis": {"addrs": ["a:1"]}},
            [Remembering("inmemory", RedisSettings(addrs=("a:1",)))],
        ),
        (
            {
                "middleware.storage": [{"name": "remember", "options": {"redis": {"addrs": ["b:2"]}}}],
                "redis": {"addrs": ["a:1"]},
            },
            [Remembering(redis=RedisSettings(addrs=("b:2",)))],
        ),
        (
            {"middleware.storage": [{"name": "remember"}], "redis": {"addrs": ["a:1"]}},
            [Remembering(redis=RedisSettings(addrs=("a:1",)))],
        ),
    ],
)
async def test_storage_middleware_is_opened_for_its_section_by_who_serves(
    plugins: PluginManager, sections: dict[str, object], opened: list[Remembering]
) -> None:
    remembered = Remembered()
    plugins.register(remembered, "remembered")
    configuration = configured(plugins, sections)
    async with open_store(configuration, plugins):
        assert remembered.opened == []
    async with open_registry(configuration, plugins):
        assert remembered.opened == opened


def test_a_section_of_storage_middleware_is_checked(plugins: PluginManager) -> None:
    plugins.register(Remembered(), "remembered")
    said = refusal(plugins, {"storage.cache": {"blobdescriptor": "x", "size": 3}})
    assert "storage.cache.size: unknown key" in said


def test_a_disabled_storage_middleware_need_not_be_there(plugins: PluginManager) -> None:
    configuration = configured(plugins, {"middleware.storage": [{"name": "gone", "disabled": True}]})
    check_options(configuration, plugins)


async def test_a_store_that_cannot_be_opened_is_told(plugins: PluginManager) -> None:
    configuration = configured(plugins, {"storage": {"toy": {"mark": "broken"}}})
    with pytest.raises(ConfigurationError, match=r"storage\.toy: .*no luck"):
        async with open_registry(configuration, plugins):
            raise AssertionError


async def test_a_rule_that_is_no_plugin_is_told(plugins: PluginManager) -> None:
    class Bad:
        @hookimpl
        def validate_manifest(self, pushed: object) -> None:
            del pushed

    @asynccontextmanager
    async def open_bad(options: NoOptions) -> AsyncGenerator[object]:
        del options
        yield Bad()

    class Offer:
        @hookimpl
        def register_rules(self) -> Mapping[str, object]:
            return {"bad": Rule(NoOptions, open_bad)}

    plugins.register(Offer(), "offer")
    with pytest.raises(ConfigurationError, match=r"plugins\.bad: .*pushed"):
        async with open_registry(configured(plugins, {"plugins": {"bad": {}}}), plugins):
            raise AssertionError
    assert [record.name for record in plugins.records if record.error] == []


# ---- abandoned uploads


class Locked(MemoryDriver):
    """A store with one holder at a time, and a count of lists of its top."""

    def __init__(self) -> None:
        super().__init__()
        self.held = False
        self.most = 0
        self.refused = 0

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[bool]:
        assert name
        await trio.lowlevel.checkpoint()
        if self.held:
            self.refused += 1
            yield False
            return
        self.held = True
        self.most += 1
        try:
            yield True
        finally:
            self.held = False


async def opened_upload(handler: Handler) -> str:
    return (await handler(OpenUpload(repository=REPOSITORY))).upload_id


async def test_abandoned_uploads_are_removed_by_one_holder(
    plugins: PluginManager, toys: Toys, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    driver = toys.driver = Locked()
    monkeypatch.setattr(time, "time", lambda: now + trio.current_time())
    purging = "storage.maintenance.uploadpurging"
    overrides: dict[str, object] = {f"{purging}.age": "2h", f"{purging}.interval": "1h", "storage.toy": None}
    configuration = configured(plugins, overrides)
    began = trio.current_time()
    async with open_registry(configuration, plugins) as opened, open_registry(configuration, plugins):
        old = await opened_upload(opened.handler)
        await trio.sleep(1.5 * 3600)
        fresh = await opened_upload(opened.handler)
        await trio.sleep(2 * 3600 - 60)
        left = {entry.key.split("/")[-2] for entry in (await driver.list("")).entries}
        assert left == {fresh}
        assert old not in left
        assert driver.most == 1
        assert driver.refused > 1
        append = AppendUpload(repository=REPOSITORY, upload_id=fresh, body=Sent(b"x", length=1))
        assert (await opened.handler(append)).offset == 1
    assert not driver.held
    assert trio.current_time() - began < 4 * 3600
    del autojump_clock


@pytest.mark.parametrize("setting", [{"enabled": False}, {"dryrun": True}])
async def test_abandoned_uploads_stay_if_that_is_wanted(
    plugins: PluginManager,
    toys: Toys,
    setting: Mapping[str, object],
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + trio.current_time())
    overrides = {f"storage.maintenance.uploadpurging.{name}": value for name, value in setting.items()}
    async with open_registry(configured(plugins, {**overrides, "storage.toy": None}), plugins) as opened:
        await opened_upload(opened.handler)
        await trio.sleep(30 * 24 * 3600)
        assert (await toys.driver.list("")).entries
    del autojump_clock


async def test_the_holder_of_a_closed_registry_is_followed_by_another(
    plugins: PluginManager, toys: Toys, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = toys.driver = Locked()
    configuration = configured(plugins, {})
    # The one that is opened last, and closed first, begins first.
    delays = [1.0, 600.0]

    def next_delay(low: float, high: float) -> float:
        assert (low, high) == (0, 600)
        return delays.pop()

    monkeypatch.setattr(random, "uniform", next_delay)
    async with open_registry(configuration, plugins):
        await trio.testing.wait_all_tasks_blocked()
        async with open_registry(configuration, plugins):
            await trio.sleep(700)
            assert driver.most == 1
        await trio.sleep(700)
        assert driver.most == 2
    del autojump_clock


async def test_what_is_always_opened_needs_no_configuration(plugins: PluginManager) -> None:
    class Closed:
        def __init__(self, inner: Handler) -> None:
            del inner

        async def __call__(self, operation: Operation[R], /) -> R:
            raise Denied(type(operation).__name__)

    @asynccontextmanager
    async def open_closed(options: NoOptions, inner: Handler) -> AsyncGenerator[Handler]:
        del options
        yield Closed(inner)

    class Plugin:
        @hookimpl
        def register_middleware(self) -> Mapping[str, object]:
            return {"closed": MiddlewareFactory(NoOptions, open_closed, always=True)}

    assert plugins.register(Plugin(), "closed").error is None
    async with open_registry(configured(plugins, {}), plugins) as opened:
        with pytest.raises(Denied, match="Ping"):
            await opened.handler(Ping())


async def test_a_driver_that_fails_to_open_is_named_whatever_it_raises(plugins: PluginManager) -> None:
    @asynccontextmanager
    async def open_odd(options: Marked) -> AsyncGenerator[Driver]:
        if options.mark != "fine":
            raise ValueError("boom")
        yield MemoryDriver()

    class Plugin:
        @hookimpl
        def register_drivers(self) -> Mapping[str, object]:
            return {"odd": DriverFactory(Marked, open_odd)}

    assert plugins.register(Plugin(), "odd").error is None
    configuration = load_configuration(None, {}, overrides={"storage": {"odd": None}}).configuration
    with pytest.raises(ConfigurationError, match=r"storage\.odd: odd failed to open: ValueError: boom"):
        async with open_registry(configuration, plugins):
            pass


class Places:
    """A plugin whose middleware lies at each place, registered in an order that must not matter, and keeps a note in the store."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def _factory(self, place: Literal["gate", "caller", "access", "inside"]) -> MiddlewareFactory[NoOptions]:
        @asynccontextmanager
        async def open_it(options: NoOptions, inner: Handler) -> AsyncGenerator[Handler]:
            del options
            yield Mark(inner, place, self.seen)

        return MiddlewareFactory(NoOptions, open_it, place=place)

    @asynccontextmanager
    async def _without(self, options: NoOptions, inner: Handler) -> AsyncGenerator[Handler]:
        del options
        yield Mark(inner, "what does not know that there is a store", self.seen)

    @asynccontextmanager
    async def _noting(self, options: NoOptions, inner: Handler, driver: Driver) -> AsyncGenerator[Handler]:
        del options
        await driver.write("plugins/noting/note", b"noted")
        yield inner

    @hookimpl
    def register_middleware(self) -> Mapping[str, object]:
        """Offer them."""
        return {
            "at_access": self._factory("access"),
            "inside": self._factory("inside"),
            "at_caller": self._factory("caller"),
            "at_gate": self._factory("gate"),
            "noting": MiddlewareFactory(NoOptions, self._without, open_with_store=self._noting),
        }


async def test_middleware_lies_at_its_place_and_may_have_the_store() -> None:
    places = Places()
    plugins = PluginManager()
    for plugin in (moorage_drivers, moorage_middleware, places):
        plugins.register(plugin, getattr(plugin, "__name__", "places"))
    names = ["at_access", "inside", "at_caller", "at_gate", "noting"]
    overrides: dict[str, object] = {"storage": {"inmemory": None}, "plugins": {name: {} for name in names}}
    found = load_configuration(None, {}, overrides=overrides, claimed=claimed_sections(plugins))
    async with open_registry(found.configuration, plugins) as opened:
        await opened.handler(Ping())
        assert await opened.driver.read("plugins/noting/note", limit=10) == b"noted"
    assert places.seen == [
        *("into gate", "into caller", "into access", "into inside"),
        *("out of inside", "out of access", "out of caller", "out of gate"),
    ]

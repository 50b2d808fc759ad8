"""Plugins that each break the contract in one way, for the kit to find; and one of each kind that keeps it."""

import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import ClassVar, cast

import click
import msgspec
import trio

from moorage import (
    Access,
    Authenticator,
    AuthenticatorFactory,
    Blob,
    Body,
    Caller,
    DeleteTag,
    Descriptor,
    Driver,
    DriverFactory,
    Handler,
    InternalError,
    Manifest,
    MemoryDriver,
    MiddlewareFactory,
    NoOptions,
    Operation,
    Origin,
    Ping,
    PullBlob,
    PullManifest,
    PushBlob,
    PushManifest,
    R,
    Refused,
    RegistryError,
    Rule,
    StorageMiddlewareFactory,
    Tag,
    Unauthorized,
    hookimpl,
)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options as they should be."""

    words: tuple[str, ...] = ()
    limit: int = 3


# ---- registration


class Registers:
    """A plugin that registers one thing in one way."""

    def __init__(self, **offered: Callable[[], Mapping[str, object]]) -> None:
        """Offer what the functions give, by the names of hooks."""
        for hook, give in offered.items():
            setattr(self, hook, hookimpl(_named(hook, give)))


def _named(hook: str, give: Callable[[], Mapping[str, object]]) -> Callable[[], Mapping[str, object]]:
    def registered() -> Mapping[str, object]:
        return give()

    registered.__name__ = hook
    return registered


@asynccontextmanager
async def _open_unchanged(options: msgspec.Struct, inner: Handler) -> AsyncGenerator[Handler]:
    del options
    await trio.lowlevel.checkpoint()
    yield inner


def _middleware(name: str = "sound", options: type[msgspec.Struct] = Options, **more: str) -> Registers:
    factory = MiddlewareFactory(options, _open_unchanged, section=more.get("section"))
    return Registers(register_middleware=lambda: {name: factory})


class _Thawed(msgspec.Struct):
    limit: int = 3


class _Open(msgspec.Struct, frozen=True):
    open_keys: ClassVar[bool] = True

    inner: Mapping[str, object] = {}


class _Impossible(msgspec.Struct, frozen=True):
    when: complex = 0j


class _Hasty(msgspec.Struct, frozen=True):
    limit: int = 0

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise KeyError("limit")
        if self.limit:
            raise ValueError("two\nlines")


class _Required(msgspec.Struct, frozen=True):
    words: str


_calls = count()


class _Undescribed(msgspec.Struct, frozen=True):
    setting_of_its_own: "_Opaque | None" = None


class _Opaque:
    """Read from a setting, but described to nobody."""

    @classmethod
    def from_setting(cls, value: object) -> "_Opaque":
        """Read `value`."""
        raise ValueError(f"nothing, and not {value!r}")


SOUND = _middleware()
NO_HOOKS = object()
ODD_NAME = _middleware("Odd.Name")
NAME_OF_THE_REGISTRY = _middleware("paths")
NAME_OF_ANOTHER = _middleware("deletes")
SECTION_OF_ANOTHER = _middleware(section="storage.delete")
CHANGES_ITS_NAMES = Registers(
    register_middleware=lambda: {f"sound{next(_calls)}": MiddlewareFactory(Options, _open_unchanged)}
)
NEEDS_OPTIONS = _middleware(options=_Required)
OPEN_OPTIONS = _middleware(options=_Open)
UNDESCRIBED_OPTIONS = _middleware(options=_Undescribed)
IMPOSSIBLE_OPTIONS = _middleware(options=_Impossible)
THAWED_OPTIONS = _middleware(options=_Thawed)
FAILS_ON_OPTIONS = _middleware(options=_Hasty)


@asynccontextmanager
async def _open_required(options: _Required) -> AsyncGenerator[object]:
    yield Sound(options)


NEEDS_OPTIONS_OF_A_RULE = Registers(register_rules=lambda: {"sound": Rule(_Required, _open_required)})


class Loud:
    """Does what a plugin must not do while it registers."""

    def __init__(self, act: Callable[[], object]) -> None:
        """Do `act`."""
        self._act = act

    @hookimpl
    def register_middleware(self) -> Mapping[str, object]:
        """Offer, and act."""
        self._act()
        return {"sound": MiddlewareFactory(Options, _open_unchanged)}


PRINTS = Loud(lambda: print("here I am"))
STARTS_A_THREAD = Loud(lambda: threading.Thread(target=time.sleep, args=(30,), daemon=True).start())
SETS_A_VARIABLE = Loud(lambda: os.environ.__setitem__("MOORAGE_BROKEN_PLUGIN", "1"))
SPEAKS_TO_STDERR = Loud(lambda: sys.stderr.write("look at me"))


# ---- middleware


class Passing:
    """A handler that passes everything on; what is broken is broken in what is made of it."""

    def __init__(self, inner: Handler) -> None:
        """Pass on to `inner`."""
        self.inner = inner

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`."""
        return cast("R", await self.answer(cast("Operation[object]", operation)))  # broken ones lie

    async def answer(self, operation: Operation[object]) -> object:
        """Answer `operation` with anything."""
        return await self.inner(operation)


def _handler(kind: type[Passing]) -> Registers:
    @asynccontextmanager
    async def open_it(options: NoOptions, inner: Handler) -> AsyncGenerator[Handler]:
        del options
        await trio.lowlevel.checkpoint()
        yield kind(inner)

    return Registers(register_middleware=lambda: {"broken": MiddlewareFactory(NoOptions, open_it)})


_KNOWN = (Ping, PullManifest, PullBlob, PushManifest, PushBlob, DeleteTag)


class _RefusesTheUnknown(Passing):
    async def answer(self, operation: Operation[object]) -> object:
        if not isinstance(operation, _KNOWN):
            raise InternalError("what is that?")
        return await self.inner(operation)


class _RepliesNothing(Passing):
    async def answer(self, operation: Operation[object]) -> object:
        await self.inner(operation)
        return None


class _ChangesErrors(Passing):
    async def answer(self, operation: Operation[object]) -> object:
        try:
            return await self.inner(operation)
        except RegistryError as error:
            raise InternalError("something went wrong") from error


class _Swallows(Passing):
    async def answer(self, operation: Operation[object]) -> object:
        try:
            return await self.inner(operation)
        except RegistryError:
            return None


class _GatheredBody:
    def __init__(self, data: bytes) -> None:
        self.length: int | None = len(data)
        self._data = [data]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._data:
            raise StopAsyncIteration
        return self._data.pop()


class _Gathers(Passing):
    async def answer(self, operation: Operation[object]) -> object:
        body = cast("Body | None", getattr(operation, "body", None))
        if body is not None:
            gathered = _GatheredBody(b"".join([piece async for piece in body]))
            operation = msgspec.structs.replace(operation, body=gathered)
        return await self.inner(operation)


class _OpensBlobs(Passing):
    async def answer(self, operation: Operation[object]) -> object:
        reply = await self.inner(operation)
        if isinstance(reply, Blob):
            async with reply.open(0, None) as reader:
                async for _ in reader:
                    pass
        return reply


class _OneAtATime(Passing):
    def __init__(self, inner: Handler) -> None:
        super().__init__(inner)
        self._lock = trio.Lock()

    async def answer(self, operation: Operation[object]) -> object:
        async with self._lock:
            return await self.inner(operation)


class _CatchesCancellation(Passing):
    async def answer(self, operation: Operation[object]) -> object:
        try:
            return await self.inner(operation)
        except BaseException as error:
            raise InternalError("whatever it was") from error


class _StopsWorking(Passing):
    def __init__(self, inner: Handler) -> None:
        super().__init__(inner)
        self._busy = 0

    async def answer(self, operation: Operation[object]) -> object:
        if self._busy:
            raise InternalError("busy")
        self._busy += 1
        reply = await self.inner(operation)
        self._busy -= 1
        return reply


def _opened_by(
    opener: Callable[[NoOptions, Handler], AsyncGenerator[Handler]],
) -> Registers:
    factory = MiddlewareFactory(NoOptions, asynccontextmanager(opener))
    return Registers(register_middleware=lambda: {"broken": factory})


async def _open_leaking(options: NoOptions, inner: Handler) -> AsyncGenerator[Handler]:
    del options
    trio.lowlevel.spawn_system_task(trio.sleep_forever)
    os.open("/dev/null", os.O_RDONLY)
    await trio.lowlevel.checkpoint()
    yield inner


async def _open_swallowing(options: NoOptions, inner: Handler) -> AsyncGenerator[Handler]:
    del options
    try:
        await trio.lowlevel.checkpoint()
    except trio.Cancelled as error:
        raise OSError("cannot be opened") from error
    yield inner


REFUSES_THE_UNKNOWN = _handler(_RefusesTheUnknown)
REPLIES_NOTHING = _handler(_RepliesNothing)
CHANGES_ERRORS = _handler(_ChangesErrors)
SWALLOWS_ERRORS = _handler(_Swallows)
GATHERS_BODIES = _handler(_Gathers)
OPENS_BLOBS = _handler(_OpensBlobs)
ONE_AT_A_TIME = _handler(_OneAtATime)
CATCHES_CANCELLATION = _handler(_CatchesCancellation)
STOPS_WORKING = _handler(_StopsWorking)
LEAKS = _opened_by(_open_leaking)
SWALLOWS_WHILE_OPENED = _opened_by(_open_swallowing)


# ---- rules


class Sound:
    """A rule that has an opinion on nothing."""

    def __init__(self, options: msgspec.Struct) -> None:
        """Take `options`."""
        self.options = options

    @hookimpl
    async def validate_manifest(
        self, push: PushManifest, manifest: Manifest, registry: Handler
    ) -> Sequence[str] | None:
        """Judge."""
        await trio.lowlevel.checkpoint()
        return await self.judge(push, manifest, registry)

    async def judge(self, push: PushManifest, manifest: Manifest, registry: Handler) -> Sequence[str] | None:
        """Judge, in what is made of this."""
        del push, manifest, registry
        return None

    @hookimpl
    def requires_reference(self, descriptor: Descriptor) -> bool | None:
        """Have no opinion."""
        del descriptor
        return None


def _rule(kind: type[Sound]) -> Registers:
    @asynccontextmanager
    async def open_it(options: Options) -> AsyncGenerator[object]:
        await trio.lowlevel.checkpoint()
        yield kind(options)

    return Registers(register_rules=lambda: {"broken": Rule(Options, open_it)})


class _ReadsPlatforms(Sound):
    async def judge(self, push: PushManifest, manifest: Manifest, registry: Handler) -> Sequence[str] | None:
        del push, registry
        return [each.platform.os for each in manifest.manifests]  # type: ignore[union-attr] # what is broken about it


class _AnswersText(Sound):
    async def judge(self, push: PushManifest, manifest: Manifest, registry: Handler) -> Sequence[str] | None:
        del push, manifest, registry
        return "a warning"


class _Undecided(Sound):
    times = count()

    async def judge(self, push: PushManifest, manifest: Manifest, registry: Handler) -> Sequence[str] | None:
        del push, manifest, registry
        return [f"asked {next(self.times)} times"]


class _Writes(Sound):
    async def judge(self, push: PushManifest, manifest: Manifest, registry: Handler) -> Sequence[str] | None:
        del manifest
        try:
            await registry(DeleteTag(repository=push.repository, tag=Tag("old")))
        except RegistryError:
            return None
        return None


class _Blocks(Sound):
    async def judge(self, push: PushManifest, manifest: Manifest, registry: Handler) -> Sequence[str] | None:
        del push, manifest, registry
        time.sleep(3)  # noqa: ASYNC251 - what is broken about it
        return None


class _Dawdles(Sound):
    done = False

    async def judge(self, push: PushManifest, manifest: Manifest, registry: Handler) -> Sequence[str] | None:
        del push, manifest, registry
        if not self.done:
            self.done = True
            time.sleep(0.2)  # noqa: ASYNC251 - what is slow about it
        return None


class _MixesUp(Sound):
    last = ""

    async def judge(self, push: PushManifest, manifest: Manifest, registry: Handler) -> Sequence[str] | None:
        del push, registry
        self.last = str(manifest.digest)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        return [self.last]


class _RemembersTheCancelled(Sound):
    left = 0

    async def judge(self, push: PushManifest, manifest: Manifest, registry: Handler) -> Sequence[str] | None:
        del push, manifest, registry
        if self.left:
            raise Refused("one at a time")
        self.left += 1
        await trio.lowlevel.checkpoint()
        self.left -= 1
        return None


@asynccontextmanager
async def _open_leaking_rule(options: Options) -> AsyncGenerator[object]:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    await trio.lowlevel.checkpoint()
    yield Sound(options)


@asynccontextmanager
async def _open_swallowing_rule(options: Options) -> AsyncGenerator[object]:
    try:
        await trio.lowlevel.checkpoint()
    except trio.Cancelled as error:
        raise OSError("cannot be opened") from error
    yield Sound(options)


@asynccontextmanager
async def _open_nothing(options: Options) -> AsyncGenerator[object]:
    del options
    await trio.lowlevel.checkpoint()
    yield object()


SOUND_RULE = _rule(Sound)
READS_PLATFORMS = _rule(_ReadsPlatforms)
ANSWERS_TEXT = _rule(_AnswersText)
UNDECIDED = _rule(_Undecided)
WRITES = _rule(_Writes)
BLOCKS = _rule(_Blocks)
DAWDLES = _rule(_Dawdles)
MIXES_UP = _rule(_MixesUp)
REMEMBERS_THE_CANCELLED = _rule(_RemembersTheCancelled)
LEAKS_THREADS = Registers(register_rules=lambda: {"broken": Rule(Options, _open_leaking_rule)})
RULE_SWALLOWS_WHILE_OPENED = Registers(register_rules=lambda: {"broken": Rule(Options, _open_swallowing_rule)})
OPENS_NO_RULE = Registers(register_rules=lambda: {"broken": Rule(Options, _open_nothing)})


# ---- authenticators


class Nobody:
    """An authenticator that knows nobody."""

    challenge = 'Basic realm="here"'

    async def __call__(self, origin: Origin) -> Caller | None:
        """Tell who asks."""
        await trio.lowlevel.checkpoint()
        if origin.credentials is None:
            return None
        return await self.look(origin.credentials.value)

    async def look(self, value: str) -> Caller | None:
        """Look for who has `value`, in what is made of this."""
        del value
        raise Unauthorized("unknown", challenges=[self.challenge])


def _authenticator(kind: type[Nobody]) -> Registers:
    @asynccontextmanager
    async def open_it(options: NoOptions) -> AsyncGenerator[Authenticator]:
        del options
        await trio.lowlevel.checkpoint()
        yield kind()

    return Registers(register_authenticators=lambda: {"broken": AuthenticatorFactory(NoOptions, open_it)})


class _BadChallenge(Nobody):
    challenge = "Basic realm=the registry\r\nX-Evil: 1"


class _RecallsEverybody(Nobody):
    async def recall(self, name: str) -> Caller:
        await trio.lowlevel.checkpoint()
        return Caller(name=name)


class _LetsIn(Nobody):
    async def __call__(self, origin: Origin) -> Caller | None:
        await trio.lowlevel.checkpoint()
        return Caller(name="root")


class _FailsOnOddValues(Nobody):
    async def look(self, value: str) -> Caller | None:
        value.encode("ascii")
        return None


class _OneChallengeTooFew(Nobody):
    challenge = ""

    async def look(self, value: str) -> Caller | None:
        raise Unauthorized("unknown", challenges=[])


class _ChallengesByWhatWasSent(Nobody):
    def challenge_for(self, origin: Origin, needed: Sequence[Access], problem: str) -> str:
        return f'Bearer realm="{origin.base_url}/token"'


class _OneAtOnce(Nobody):
    def __init__(self) -> None:
        self._busy = False

    async def look(self, value: str) -> Caller | None:
        if self._busy:
            return None
        self._busy = True
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self._busy = False
        return await super().look(value)


class _LetsTheCancelledIn(Nobody):
    async def look(self, value: str) -> Caller | None:
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            return Caller(name="root")
        return None


@asynccontextmanager
async def _open_leaking_authenticator(options: NoOptions) -> AsyncGenerator[Authenticator]:
    del options
    os.open("/dev/null", os.O_RDONLY)
    await trio.lowlevel.checkpoint()
    yield Nobody()


@asynccontextmanager
async def _open_swallowing_authenticator(options: NoOptions) -> AsyncGenerator[Authenticator]:
    del options
    try:
        await trio.lowlevel.checkpoint()
    except trio.Cancelled as error:
        raise OSError("cannot be opened") from error
    yield Nobody()


SOUND_AUTHENTICATOR = _authenticator(Nobody)
BAD_CHALLENGE = _authenticator(_BadChallenge)
RECALLS_EVERYBODY = _authenticator(_RecallsEverybody)
LETS_IN = _authenticator(_LetsIn)
FAILS_ON_ODD_VALUES = _authenticator(_FailsOnOddValues)
NO_CHALLENGE = _authenticator(_OneChallengeTooFew)
CHALLENGES_BY_WHAT_WAS_SENT = _authenticator(_ChallengesByWhatWasSent)
ONE_AT_ONCE = _authenticator(_OneAtOnce)
LETS_THE_CANCELLED_IN = _authenticator(_LetsTheCancelledIn)
LEAKS_DESCRIPTORS = Registers(
    register_authenticators=lambda: {"broken": AuthenticatorFactory(NoOptions, _open_leaking_authenticator)}
)
AUTHENTICATOR_SWALLOWS_WHILE_OPENED = Registers(
    register_authenticators=lambda: {"broken": AuthenticatorFactory(NoOptions, _open_swallowing_authenticator)}
)


# ---- stores


@asynccontextmanager
async def _open_memory(options: Options) -> AsyncGenerator[Driver]:
    del options
    yield MemoryDriver()


@asynccontextmanager
async def _open_around(options: Options, inner: Driver) -> AsyncGenerator[Driver]:
    del options
    yield inner


@asynccontextmanager
async def _open_closed(options: Options) -> AsyncGenerator[Driver]:
    await trio.lowlevel.checkpoint()
    if options.limit:
        raise OSError("no such store")
    yield MemoryDriver()


STORES = Registers(
    register_drivers=lambda: {"scratch": DriverFactory(Options, _open_memory, shared=False)},
    register_storage_middleware=lambda: {"around": StorageMiddlewareFactory(Options, _open_around)},
)
NEEDS_A_STORE = Registers(register_drivers=lambda: {"remote": DriverFactory(Options, _open_memory)})
CLOSED_STORE = Registers(register_drivers=lambda: {"closed": DriverFactory(Options, _open_closed, shared=False)})


# ---- hosted


class Host:
    """A plugin that offers something to the host."""

    def __init__(self, routes: object = None, commands: object = None) -> None:
        """Offer these."""
        self._routes = routes
        self._commands = commands

    @hookimpl(optionalhook=True)
    def register_routes(self) -> object:
        """Offer routes."""
        return {"/hello": _hello} if self._routes is None else self._routes

    @hookimpl(optionalhook=True)
    def register_commands(self) -> object:
        """Offer commands."""
        return [hello] if self._commands is None else self._commands


class Observer:
    """Looks at what was answered."""

    @hookimpl
    def operation_finished(self, operation: Operation[object], reply: object, error: RegistryError | None) -> None:
        """See it."""
        del operation
        if error is None and reply is None:
            raise ValueError("neither")


class _SlowObserver:
    @hookimpl
    def operation_finished(self, operation: Operation[object]) -> None:
        if isinstance(operation, Ping):
            time.sleep(0.2)


class _Narrow:
    @hookimpl
    def operation_finished(self, operation: Operation[object]) -> None:
        cast("PullBlob", operation).digest.encode()


@click.command()
def hello() -> None:
    """Say hello."""


@click.command()
def silent() -> None:
    pass


Send = Callable[[dict[str, object]], object]


async def _hello(scope: object, receive: object, send: object) -> None:
    del scope, receive
    say = cast("Callable[[Mapping[str, object]], trio.abc.Instrument]", send)
    await say({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})  # type: ignore[misc] # ASGI
    await say({"type": "http.response.body", "body": b"hello"})  # type: ignore[misc] # ASGI


async def _fails(scope: object, receive: object, send: object) -> None:
    raise ValueError("no")


async def _says_nothing(scope: object, receive: object, send: object) -> None:
    pass


HOST = Host()
OBSERVER = Observer()
NARROW_OBSERVER = _Narrow()
SLOW_OBSERVER = _SlowObserver()
ROUTE_OF_THE_REGISTRY = Host(routes={"/v2/extra": _hello})
ROUTE_WITH_A_PATTERN = Host(routes={"/hello/{name}": _hello})
ROUTE_FAILS = Host(routes={"/hello": _fails})
ROUTE_SAYS_NOTHING = Host(routes={"/hello": _says_nothing})
NO_COMMAND = Host(commands=["hello"])
COMMAND_OF_THE_REGISTRY = Host(commands=[click.Command("serve", callback=lambda: None, help="Serve.")])
SILENT_COMMAND = Host(commands=[silent])

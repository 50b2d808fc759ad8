"""The store that a case works on: fresh, empty, and openable once more, here or in another process."""

import importlib
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from subprocess import PIPE
from typing import cast

import msgspec
import trio

from moorage import (
    ConfigurationError,
    Driver,
    DriverFactory,
    MemoryDriver,
    PluginManager,
    StorageMiddlewareFactory,
    decode_options,
)
from moorage_conformance.finding import find_plugin

FRESH = "{fresh}"
"""What stands in an option for a name that is new for each case."""

_CHILD = "moorage_conformance.driver.child"
_CLOSING_SECONDS = 30.0


class NoSuchDriver(Exception):
    """The driver cannot be found, or does not take its options; one sentence."""


class Subject(msgspec.Struct, frozen=True):
    """The driver that is checked, and its options.

    Attributes:
        name: under which a plugin registers it, or `module:factory`.
        options: as a configuration has them.
        plugin: the module or file of the plugin, where it is not installed.
        around: whether it is storage middleware, tried around a driver in memory.
    """

    name: str
    options: Mapping[str, object] = {}
    plugin: str = ""
    around: bool = False

    def factory(self) -> DriverFactory[msgspec.Struct]:
        """Return what opens it.

        Raises:
            NoSuchDriver: it cannot be found.
        """
        if ":" in self.name:
            module, _, attribute = self.name.partition(":")
            try:
                factory: object = getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                raise NoSuchDriver(f"{self.name} cannot be imported: {error}") from error
            if not isinstance(factory, DriverFactory):
                raise NoSuchDriver(f"{self.name} is no DriverFactory")
            return cast("DriverFactory[msgspec.Struct]", factory)
        plugins = _plugins(self.plugin)
        offered = plugins.drivers()
        if self.around:
            offered = {name: _around_memory(each) for name, each in plugins.storage_middleware().items()}
        if self.name not in offered:
            failed = [f"the plugin {record.name} failed: {record.error}" for record in plugins.records if record.error]
            raise NoSuchDriver("; ".join([f"there is no driver {self.name!r} among {sorted(offered)}", *failed]))
        return offered[self.name]

    def decoded(self, fresh: str) -> msgspec.Struct:
        """Return the options with `fresh` in the place of `{fresh}`.

        Raises:
            NoSuchDriver: the driver does not take them.
        """
        try:
            return decode_options(self.factory().options, self.filled(fresh), source=self.name)
        except ConfigurationError as error:
            raise NoSuchDriver(str(error)) from error

    def filled(self, fresh: str) -> dict[str, object]:
        """Return the options as they are written, with `fresh` in its place."""
        return {
            name: value.replace(FRESH, fresh) if isinstance(value, str) else value
            for name, value in self.options.items()
        }

    @property
    def shared(self) -> bool:
        """Whether several processes see one store."""
        return self.factory().shared


@cache
def _plugins(beside: str) -> PluginManager:
    """Return the installed plugins and, where it is not among them, the plugin `beside`; both are imported once.

    Each case asks several times, and to look at all plugins takes longer than most cases do.
    """
    plugins = PluginManager()
    plugins.load_entry_points()
    if beside:
        found = find_plugin(beside)
        if not found.installed:
            plugins.register(found.plugin, found.name)
    return plugins


def _around_memory(around: StorageMiddlewareFactory[msgspec.Struct]) -> DriverFactory[msgspec.Struct]:
    return DriverFactory(around.options, lambda options: around.open(options, MemoryDriver()), shared=False)


class Process:
    """Another process that has the same store open."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._read = b""

    async def line(self) -> str:
        """Return the next line that it prints; empty at its end."""
        stdout = self._process.stdout
        if stdout is None:
            return ""
        while b"\n" not in self._read:
            received = await stdout.receive_some()
            if not received:
                return ""
            self._read += received
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    async def go(self) -> None:
        """Let it begin what it waits to do."""
        if self._process.stdin is not None:
            await self._process.stdin.send_all(b"\n")

    async def kill(self) -> None:
        """Kill it, as the kernel would."""
        self._process.kill()
        await self._process.wait()

    async def ended(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it said on standard error."""
        said = b""
        if self._process.stderr is not None:
            async for part in self._process.stderr:
                said += part
        return await self._process.wait(), said.decode(errors="replace")


class Store:
    """A fresh store. What is open at the end of a case is closed, and what lies in it removed."""

    def __init__(self, subject: Subject, fresh: str, driver: Driver, *, fast: bool) -> None:
        """Use `driver`, which is open on it."""
        self._subject = subject
        self._fresh = fresh
        self.driver = driver
        self.fast = fast
        """Whether the sizes are to be small."""

    @property
    def shared(self) -> bool:
        """Whether other processes see it."""
        return self._subject.shared

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Driver]:
        """Open it once more, as another process would; where only one process sees it, give the driver that is open."""
        if not self.shared:
            yield self.driver
            return
        async with self._subject.factory().open(self._subject.decoded(self._fresh)) as driver:
            yield driver

    @asynccontextmanager
    async def process(self, action: str, *arguments: str) -> AsyncGenerator[Process]:
        """Run another process that has it open, to do `action`, a function of `child`; kill it at the end."""
        subject = msgspec.structs.replace(self._subject, options=self._subject.filled(self._fresh))
        told = [msgspec.json.encode(subject).decode(), action, *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-W", "error", "-m", _CHILD]
        process = await trio.lowlevel.open_process(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)
        try:
            if process.stdin is not None:
                await process.stdin.send_all(msgspec.json.encode(told) + b"\n")
            yield Process(process)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                for pipe in (process.stdin, process.stdout, process.stderr):
                    if pipe is not None:
                        await pipe.aclose()


@asynccontextmanager
async def open_store(subject: Subject, *, fresh: str, fast: bool) -> AsyncGenerator[Store]:
    """Open an empty store, and leave it empty.

    Raises:
        NoSuchDriver: the driver does not take the options.
    """
    async with AsyncExitStack() as stack:
        driver = await stack.enter_async_context(subject.factory().open(subject.decoded(fresh)))
        try:
            yield Store(subject, fresh, driver, fast=fast)
        finally:
            with trio.move_on_after(_CLOSING_SECONDS, shield=True):
                await empty(driver)


async def empty(driver: Driver) -> None:
    """Remove every key of the store."""
    while True:
        listing = await driver.list("", limit=1000)
        await driver.delete(*(entry.key for entry in listing.entries), durable=False)
        if not listing.more:
            return

"""Storage drivers that come with Moorage: `filesystem` and `inmemory`.

This module is the plugin; a driver's own module is imported when a configuration uses it.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import msgspec

from moorage import Driver, DriverFactory, MemoryDriver, NoOptions, hookimpl


class FilesystemOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `storage: {filesystem: {...}}`, as distribution has them.

    Attributes:
        rootdirectory: the folder below which everything lies.
        maxthreads: how many threads may wait for the disk at once; at least 25.
    """

    rootdirectory: str = "/var/lib/registry"
    maxthreads: int = 100


@asynccontextmanager
async def _open_filesystem(options: FilesystemOptions) -> AsyncGenerator[Driver]:
    from .filesystem import FilesystemDriver

    async with FilesystemDriver.open_root(options.rootdirectory, threads=max(options.maxthreads, 25)) as driver:
        yield driver


@asynccontextmanager
async def _look_at_filesystem(options: FilesystemOptions) -> AsyncGenerator[Driver]:
    from .filesystem import FilesystemDriver

    yield FilesystemDriver.look_at_root(options.rootdirectory, threads=max(options.maxthreads, 25))


@asynccontextmanager
async def _open_memory(options: NoOptions) -> AsyncGenerator[Driver]:
    del options
    yield MemoryDriver()


@hookimpl
def register_drivers() -> Mapping[str, object]:
    """Offer the drivers of this package."""
    return {
        "filesystem": DriverFactory(FilesystemOptions, _open_filesystem, open_to_look=_look_at_filesystem),
        "inmemory": DriverFactory(NoOptions, _open_memory, shared=False),
    }

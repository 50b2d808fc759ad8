"""A storage driver for Moorage: everything in one SQLite file.

This module is the plugin; the driver is imported when a configuration uses it.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec

from moorage import Driver, DriverFactory, hookimpl


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `storage: {sqlite: {...}}`.

    Attributes:
        path: the file; it is made, with the folders above it, if it is not there.
        wait: for how many seconds a write waits for other processes before the store counts as busy.
        size_limit: beyond how many bytes the file does not grow; None if only the disk limits it.
    """

    path: str
    wait: Annotated[float, msgspec.Meta(ge=0, le=60)] = 10.0
    size_limit: Annotated[int, msgspec.Meta(ge=1 << 20)] | None = None


@asynccontextmanager
async def _open(options: Options) -> AsyncGenerator[Driver]:
    from .driver import SqliteDriver

    async with SqliteDriver.open_file(options.path, wait=options.wait, size_limit=options.size_limit) as driver:
        yield driver


@hookimpl
def register_drivers() -> Mapping[str, object]:
    """Offer the driver `sqlite`. Other processes see the same file, so it is shared, and several workers may serve."""
    return {"sqlite": DriverFactory(Options, _open)}

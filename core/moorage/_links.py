"""Links: small objects that hold a digest. Reading them, and telling a client of a store that fails."""

import logging

from . import _layout as layout
from ._digests import Digest
from ._driver import Absent, Condition, Driver, Unchanged
from ._errors import (
    DriverError,
    InternalError,
    KeyInvalid,
    KeyUnknown,
    RegistryError,
    StorageFull,
    StoreBusy,
    StoreFull,
    StoreReadOnly,
    Unavailable,
)

_log = logging.getLogger("moorage.registry")


async def exists(driver: Driver, key: str) -> bool:
    """Return whether there is an object at `key`."""
    try:
        await driver.stat(key)
    except KeyUnknown:
        return False
    return True


async def read_link(driver: Driver, key: str) -> Digest | None:
    """Return what the link at `key` holds, None if there is none.

    Raises:
        InternalError: it holds no digest.
    """
    try:
        return layout.parse_link(await driver.read(key, limit=layout.LINK_LIMIT), key)
    except KeyUnknown:
        return None


async def read_versioned_link(driver: Driver, key: str) -> tuple[Digest | None, Condition | None]:
    """Return what the link at `key` holds, and the condition, if the store knows any, that it still does.

    Raises:
        InternalError: it holds no digest.
    """
    capabilities = driver.capabilities
    try:
        async with driver.open(key) as reader:
            link = layout.parse_link(b"".join([chunk async for chunk in reader]), key)
            return link, Unchanged(reader.stat.version) if capabilities.cas else None
    except KeyUnknown:
        return None, Absent() if capabilities.create_only else None


def told(error: DriverError) -> RegistryError:
    """Return what a client is told of a failed driver; which key and why is for the log.

    If the service says when to come back, so is the client told.
    """
    after = 5 if error.retry_after is None else error.retry_after
    match error:
        case StoreFull():
            _log.error("the store is full: %s", error)
            return StorageFull("the registry's storage is full")
        case StoreReadOnly():
            _log.error("the store cannot be written: %s", error)
            return Unavailable("the registry's storage cannot be written to", retry_after=60)
        case StoreBusy():
            _log.warning("the store is busy: %s", error)
            return Unavailable("the registry's storage is busy", retry_after=after)
        case KeyInvalid():
            _log.error("a key that the store does not take: %s", error)
            return InternalError("the registry's storage cannot hold this")
        case _ if error.retryable:
            _log.error("the store failed: %s", error)
            return Unavailable("the registry's storage does not answer", retry_after=after)
        case _:
            _log.error("the store failed: %s", error)
            return InternalError("the registry's storage failed")

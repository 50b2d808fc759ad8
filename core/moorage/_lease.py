"""Holding a name over all replicas of a store that has no locks: a lease in an object.

The object says who holds it and until when. It is made where it was absent, or replaced where it had run out, each with
one winner; its holder renews it, and gives up what it does when that fails. Clocks of replicas may differ by
`_SKEW_SECONDS`. A holder that dies is waited out.
"""

import logging
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import quote

import msgspec
import trio

from ._concurrency import open_helpers
from ._driver import Absent, Condition, Driver, Unchanged
from ._errors import ConditionFailed, DriverError, KeyUnknown, StoreBusy

_log = logging.getLogger("moorage.lease")

_PREFIX = "moorage/leases/"
_SECONDS = 20.0
_RENEW_SECONDS = 5.0
_SKEW_SECONDS = 5.0
_RELEASE_SECONDS = 5.0


class _Lease(msgspec.Struct, frozen=True):
    """What the object of a lease says: whose it is, and until which Unix time by the clock of that holder."""

    holder: str
    until: float


_leases = msgspec.json.Decoder(_Lease)


@asynccontextmanager
async def hold_by_lease(driver: Driver, name: str) -> AsyncGenerator[bool]:
    """Try to hold `name` by an object in `driver`; give whether that worked. For `Driver.hold`.

    The driver must honour conditions with one winner.

    Raises:
        StoreBusy: the lease was lost, or could not be renewed, before the work under it was done; that was cancelled.
    """
    # Any name becomes a component of a key.
    key = _PREFIX + quote(name, safe="").replace("%", "=").replace("~", "=7E")
    holder = secrets.token_hex(8)
    began = trio.current_time()
    try:
        taken = await _take(driver, key, holder)
    except trio.Cancelled:
        # It may be ours all the same.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _RELEASE_SECONDS):
            await _release(driver, key, holder)
        raise
    if not taken:
        yield False
        return
    lost = False

    async def renew() -> None:
        nonlocal lost
        good_until = began + _SECONDS
        while True:
            await trio.sleep(_RENEW_SECONDS)
            now = trio.current_time()
            try:
                with trio.fail_at(good_until):
                    await driver.write(key, _content(holder), condition=Unchanged(await _version(driver, key, holder)))
                good_until = now + _SECONDS
            except (ConditionFailed, KeyUnknown, trio.TooSlowError):
                break
            except DriverError as error:
                _log.warning("the lease %s could not be renewed: %s", name, error)
                if trio.current_time() > good_until - _RENEW_SECONDS:
                    break
        lost = True
        nursery.cancel_scope.cancel()

    try:
        async with open_helpers() as nursery:
            nursery.start_soon(renew)
            yield True
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _RELEASE_SECONDS):
            await _release(driver, key, holder)
    if lost:
        raise StoreBusy("the lease was lost", driver=driver.name, operation="hold", key=key)


def _content(holder: str) -> bytes:
    return msgspec.json.encode(_Lease(holder, time.time() + _SECONDS))


async def _take(driver: Driver, key: str, holder: str) -> bool:
    condition: Condition = Absent()
    # Twice: what was in the way may be found to have run out.
    for _ in range(2):
        try:
            await driver.write(key, _content(holder), condition=condition)
        except ConditionFailed:
            if isinstance(condition, Unchanged):
                return False
        else:
            return True
        try:
            lease, version = await _read(driver, key)
        except KeyUnknown:
            # Free again just now; whoever asks next gets it.
            return False
        if lease is not None and lease.holder == holder:
            # The answer to the write was lost, not the write.
            return True
        if lease is not None and time.time() < lease.until + _SKEW_SECONDS:
            return False
        condition = Unchanged(version)
    return False


async def _read(driver: Driver, key: str) -> tuple[_Lease | None, str]:
    async with driver.open(key) as reader:
        data = b"".join([chunk async for chunk in reader])
        try:
            return _leases.decode(data), reader.stat.version
        except msgspec.MsgspecError:
            # Nobody's: no process writes such a thing.
            return None, reader.stat.version


async def _version(driver: Driver, key: str, holder: str) -> str:
    """Return the version of the lease, if it is still that of `holder`."""
    lease, version = await _read(driver, key)
    if lease is None or lease.holder != holder:
        raise ConditionFailed("somebody else has it", driver=driver.name, operation="hold", key=key)
    return version


async def _release(driver: Driver, key: str, holder: str) -> None:
    try:
        await driver.delete(key, condition=Unchanged(await _version(driver, key, holder)))
    except (ConditionFailed, KeyUnknown):
        pass
    except DriverError as error:
        _log.warning("the lease %s is left to run out: %s", key, error)

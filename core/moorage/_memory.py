"""A store in the memory of this process: the driver contract read aloud in code, and what tests run on."""

import itertools
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing, asynccontextmanager

import trio

from ._driver import Absent, Capabilities, Condition, Driver, Entry, Listing, Reader, Stat, Unchanged, check_key
from ._errors import ConditionFailed, DriverVerb, KeyInvalid, KeyUnknown, RangeUnsatisfiable

_CHUNK = 1 << 20


class MemoryDriver(Driver):
    """Objects in a dict. What it holds is gone with the process, and no other process sees it."""

    name = "inmemory"
    capabilities: Capabilities = Capabilities()

    def __init__(self) -> None:
        """Make an empty store."""
        self._objects: dict[str, tuple[bytes, Stat]] = {}
        self._keys: list[str] = []
        self._versions = itertools.count(1)

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`."""
        await trio.lowlevel.checkpoint()
        return self._get(key, "stat")[1]

    def _get(self, key: str, operation: DriverVerb) -> tuple[bytes, Stat]:
        try:
            return self._objects[check_key(key, driver=self.name)]
        except KeyError:
            raise KeyUnknown("no such key", driver=self.name, operation=operation, key=key) from None

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        """Open the bytes from `start` to `stop`."""
        await trio.lowlevel.checkpoint()
        data, stat = self._get(key, "open")
        if start > stat.size:
            raise RangeUnsatisfiable(
                f"{start} lies beyond {stat.size} bytes", driver=self.name, operation="open", key=key
            )
        end = stat.size if stop is None else min(stop, stat.size)

        async def chunks() -> AsyncGenerator[bytes]:
            for at in range(start, end, _CHUNK):
                await trio.lowlevel.checkpoint()
                yield data[at : min(at + _CHUNK, end)]

        async with aclosing(chunks()) as reading:
            yield Reader(stat, reading)

    async def write(
        self,
        key: str,
        chunks: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        durable: bool = True,
    ) -> str | None:
        """Put an object at `key`; return its version."""
        del durable
        check_key(key, driver=self.name)
        await trio.lowlevel.checkpoint()
        data = chunks if isinstance(chunks, bytes) else b"".join([chunk async for chunk in chunks])
        # From here to the end nothing awaits, so nobody comes between the look and the write.
        self._check(condition, key, "write")
        if key not in self._objects:
            self._refuse_nesting(key)
            insort(self._keys, key)
        version = str(next(self._versions))
        self._objects[key] = (data, Stat(key, len(data), time.time(), version))
        return version

    def _check(self, condition: Condition | None, key: str, operation: DriverVerb) -> None:
        held = self._objects.get(key)
        match condition:
            case Absent() if held is not None:
                raise ConditionFailed("the key exists", driver=self.name, operation=operation, key=key)
            case Unchanged(version) if held is None or held[1].version != version:
                raise ConditionFailed("not of that version", driver=self.name, operation=operation, key=key)
            case _:
                return

    def _refuse_nesting(self, key: str) -> None:
        at = bisect_left(self._keys, key + "/")
        below = at < len(self._keys) and self._keys[at].startswith(key + "/")
        parts = key.split("/")
        if below or any("/".join(parts[:n]) in self._objects for n in range(1, len(parts))):
            raise KeyInvalid("one key is a directory of another", driver=self.name, operation="write", key=key)

    async def delete(self, *keys: str, condition: Unchanged | None = None, durable: bool = True) -> None:
        """Remove each of `keys`."""
        del durable
        for key in keys:
            check_key(key, driver=self.name)
        await trio.lowlevel.checkpoint()
        for key in keys:
            self._check(condition, key, "delete")
            if self._objects.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> Listing:
        """Return up to `limit` entries below `prefix` that come after `after`."""
        await trio.lowlevel.checkpoint()
        entries: list[Entry] = []
        at = max(bisect_left(self._keys, prefix), bisect_right(self._keys, after))
        while at < len(self._keys) and self._keys[at].startswith(prefix):
            key = self._keys[at]
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            if cut < 0:
                stat = self._objects[key][1]
                entry = Entry(key, stat.size, stat.modified)
                at += 1
            else:
                entry = Entry(key[: cut + 1])
                # "0" follows "/" in byte order, so this is the first key that is not below the entry.
                at = bisect_left(self._keys, key[:cut] + "0", lo=at)
            if entry.key <= after:
                continue
            if len(entries) == limit:
                return Listing(tuple(entries), more=True)
            entries.append(entry)
        return Listing(tuple(entries), more=False)

"""Uploads in parts to a bucket: they go where the upload was announced to be committed, or to its own key.

Nothing is sent before there is a whole part. The token holds what is below the smallest part that the service takes, so
there are no objects beside the session's.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec
import trio

from moorage import Condition, DriverError, DriverVerb, Stat, Upload, UploadGone

from ._parts import PartWriter

PART_MINIMUM = 5 << 20


class Part(msgspec.Struct, frozen=True):
    """A part that the service has."""

    number: int
    size: int
    etag: str


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """Where an upload stands.

    Attributes:
        key: below which its state lies.
        destination: where it will probably be committed, if that was announced.
        upload: the service's id of it, once it has a part.
        numbers: the numbers of its parts, as pairs of the first and the last of a run.
        parts: a digest of what the service said of these parts.
        size: how many bytes the parts have.
        tail: the bytes that are in no part.
    """

    key: str
    destination: str | None
    upload: str | None
    numbers: tuple[tuple[int, int], ...]
    parts: str
    size: int
    tail: bytes


_tokens = msgspec.json.Decoder(Token)


def decode_token(token: bytes) -> Token:
    """Return the token that `suspend` has encoded.

    Raises:
        msgspec.MsgspecError: it has not.
    """
    return _tokens.decode(token)


class PartStore(Protocol):
    """What uploads in parts need of a driver; everything raises DriverErrors."""

    name: str

    def at(self, key: str) -> str:
        """Return the name that the object of `key` has in the bucket."""
        ...

    async def ask(
        self, operation: str, verb: DriverVerb, key: str = "", /, **parameters: object
    ) -> Mapping[str, object]:
        """Return the service's answer to `operation`, one attempt."""
        ...

    async def stat(self, key: str) -> Stat:
        """Return what is known of `key`."""
        ...

    async def size_of(self, key: str) -> int | None:
        """Return the size of what is at `key`, None if nothing is."""
        ...

    async def put(self, key: str, name: str, data: bytes, condition: Condition | None) -> str | None:
        """Put a small object at `key` by one request; return its version."""
        ...

    async def copy_sized(self, source: str, destination: str, stat: Stat, condition: Condition | None) -> None:
        """Copy an object that is known."""
        ...

    async def delete(self, *keys: str) -> None:
        """Remove each of `keys`."""
        ...

    async def create(self, key: str, name: str) -> str:
        """Begin an upload to the object `name`; return its id."""
        ...

    async def complete(
        self, key: str, name: str, upload: str, parts: Sequence[Part], condition: Condition | None
    ) -> str | None:
        """Make an object of parts; return its version."""
        ...

    async def abort(self, key: str, name: str, upload: str) -> None:
        """Free the parts of an upload that will not be completed."""
        ...

    def remember(self, upload: str, parts: Sequence[Part]) -> str:
        """Keep in mind what an upload consists of; return the digest of it."""
        ...


class S3Upload(Upload):
    """An upload in parts, which go where it was announced to be committed, or to its own key."""

    writer: PartWriter

    def __init__(self, driver: PartStore, token: Token, parts: Sequence[Part], *, whole: bool) -> None:
        """Go on where `token` says; `whole` if the service has made an object of the parts already."""
        self.offset = token.size + len(token.tail)
        self._driver = driver
        self._token = token
        self._parts = {part.number: part for part in parts}
        self._whole = whole
        self._id = token.upload
        self._creating = trio.Lock()
        self._target = token.destination or token.key

    async def write(self, data: bytes) -> None:
        """Append `data`."""
        if self._whole:
            raise self._gone("its bytes are complete")
        await self.writer.write(data)
        self.offset += len(data)

    async def send(self, number: int, data: bytes) -> None:
        """Send one part; of the first ones, one begins the upload."""
        name = self._driver.at(self._target)
        async with self._creating:
            if self._id is None:
                self._id = await self._driver.create(self._token.key, name)
        reply = await self._driver.ask(
            "upload_part", "upload", self._token.key, Key=name, UploadId=self._id, PartNumber=number, Body=data
        )
        self._parts[number] = Part(number, len(data), str(reply.get("ETag") or ""))

    async def suspend(self) -> bytes:
        """Send what the service takes as a part; the token has the rest."""
        await self.writer.flush(minimum=PART_MINIMUM)
        parts = self._ordered()
        token = msgspec.structs.replace(
            self._token,
            upload=self._id if parts else None,
            numbers=_runs(parts),
            parts=self._driver.remember(self._id, parts) if self._id and parts else "",
            size=sum(part.size for part in parts),
            tail=bytes(self.writer.buffered),
        )
        return msgspec.json.encode(token)

    def _ordered(self) -> list[Part]:
        return [self._parts[number] for number in sorted(self._parts)]

    async def commit(self, destination: str, *, condition: Condition | None = None) -> None:
        """Make the object visible at `destination`."""
        await self.finish(destination, condition)

    async def finish(self, destination: str, condition: Condition | None) -> str | None:
        """Make the object visible at `destination`; return its version where the service says it."""
        driver, key = self._driver, self._token.key
        name = driver.at(destination)
        if self._id is None and not self._parts and not self.writer.sending:
            return await driver.put(destination, name, bytes(self.writer.buffered), condition)
        if destination != self._target and self._token.destination is not None:
            raise self._gone("it was announced for another key, and its parts cannot be moved")
        version: str | None = None
        if not self._whole:
            await self.writer.flush(minimum=1)
            if self._id is None:
                raise self._gone("it has no parts")
            direct = condition if destination == self._target else None
            try:
                version = await driver.complete(key, driver.at(self._target), self._id, self._ordered(), direct)
            except UploadGone:
                # Completed before, by a request whose answer was lost; nobody else puts anything at its own key.
                if self._target != key or await driver.size_of(key) != self.offset:
                    raise
            self._whole = True
        if destination != self._target:
            await driver.copy_sized(self._target, destination, await driver.stat(self._target), condition)
            await driver.delete(self._target)
        return version

    async def abort(self) -> None:
        """End the upload and free what the service holds."""
        # Parts under way would lie there for ever; what becomes of them is of no interest any more.
        with suppress(DriverError):
            await self.writer.drain()
        if self._id is not None and not self._whole:
            await self._driver.abort(self._token.key, self._driver.at(self._target), self._id)
        elif self._whole and self._token.destination is None:
            await self._driver.delete(self._token.key)
        else:
            await trio.lowlevel.checkpoint()

    def _gone(self, what: str) -> UploadGone:
        return UploadGone(what, driver=self._driver.name, operation="upload", key=self._token.key)


def digest_of_parts(parts: Sequence[Part]) -> str:
    """Return a digest of what the service said of `parts`."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _runs(parts: Sequence[Part]) -> tuple[tuple[int, int], ...]:
    """Return the numbers of `parts`, which are in order, as pairs of the first and the last of each run."""
    runs: list[tuple[int, int]] = []
    for part in parts:
        if runs and runs[-1][1] + 1 == part.number:
            runs[-1] = (runs[-1][0], part.number)
        else:
            runs.append((part.number, part.number))
    return tuple(runs)

"""The audit log: a line of JSON for each operation that changed something, or was refused.

It is middleware before the authentication, and not an observer, since it has options, and a file that is opened at the
start and closed at the end. A line is written before its answer is sent, by one call that appends: what was answered is
in the file though the process is killed the next moment, and the lines of several processes do not mix. It costs a few
microseconds; no thread or queue is between, in which a line could be lost.
"""

import logging
import os
import select
import stat
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

import msgspec

from moorage import (
    BlobPushed,
    CheckAccess,
    Deleted,
    Denied,
    Handler,
    IssueToken,
    ManifestPushed,
    MiddlewareFactory,
    Operation,
    Ping,
    PushManifest,
    R,
    Refused,
    RegistryError,
    TooManyRequests,
    Trail,
    Unauthorized,
    Unsupported,
    UploadOpened,
    encode_json,
    hookimpl,
)

_log = logging.getLogger("moorage.audit")

Outcome = Literal["done", "denied", "refused", "failed", "broken off"]

_REFUSALS = (Unauthorized, Denied, TooManyRequests, Unsupported)
"""What is told of operations that change nothing; that something is not there is no refusal."""

_FIELDS = ("repository", "reference", "tag", "digest", "source", "subject", "upload_id")
"""What operations are about; they have no secrets in these."""

_STANDARD = {"stdout": 1, "stderr": 2}


class AuditOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of `audit: {...}`.

    Attributes:
        path: a file, by its absolute path, or `stdout` or `stderr`.
        pulls: whether operations that change nothing are told too.
    """

    path: str = "stdout"
    pulls: bool = False

    def __post_init__(self) -> None:
        """Refuse a path that depends on where the registry is started."""
        if self.path not in _STANDARD and (not self.path.startswith("/") or "\0" in self.path):
            raise ValueError("path is stdout, stderr, or an absolute path")


class LineFile:
    """Appends lines to a file that others append to as well, and that may be moved away to begin a new one."""

    def __init__(self, path: str) -> None:
        """Open the file at `path`; `stdout` and `stderr` are those of the process.

        Raises:
            OSError: it cannot be.
        """
        self._path = Path(path)
        self._standard = _STANDARD.get(path)
        self._file = self._opened() if self._standard is None else self._standard
        self._lost = 0
        self._torn = False
        self._room = None if stat.S_ISREG(os.fstat(self._file).st_mode) else select.poll()
        if self._room is not None:
            self._room.register(self._file, select.POLLOUT)

    def close(self) -> None:
        """Close what was opened."""
        if self._standard is None:
            os.close(self._file)

    def append(self, line: bytes) -> None:
        """Append `line`. Where that fails it is lost, counted, and told in the log once."""
        try:
            self._follow()
            # A pipe that nobody empties must not hold everything up.
            if self._room is not None and not self._room.poll(0):
                raise BlockingIOError("nobody reads it")
            self._write(b"\n" + line if self._torn else line)
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                reason = error.strerror or error
                _log.error("the audit log %s cannot be written, lines are lost: %s", self._path, reason)
            return
        if self._lost:
            _log.warning("the audit log %s is written again; %d lines were lost", self._path, self._lost)
            self._lost = 0

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self._path, flags, 0o640)

    def _follow(self) -> None:
        """Open the file anew if it was moved away or removed."""
        if self._standard is not None:
            return
        here = os.fstat(self._file)
        with suppress(FileNotFoundError):
            there = self._path.stat()
            if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
                return
        opened = self._opened()
        os.close(self._file)
        self._file = opened
        self._torn = False

    def _write(self, data: bytes) -> None:
        """Write `data`; where a disk that fills up takes a part, the next line begins a new one."""
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        finally:
            if written:
                self._torn = written < len(data)


class Audited:
    """A handler that writes down what was done and what was refused."""

    def __init__(self, inner: Handler, lines: LineFile, *, pulls: bool) -> None:
        """Pass on to `inner`, and write to `lines`; with `pulls` also of what changes nothing."""
        self._inner = inner
        self._lines = lines
        self._pulls = pulls

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation` as it would be answered without this."""
        trail = operation.trail or Trail()
        asked: object = operation  # to look into; the type of `operation` itself says what it is answered with
        if operation.access or isinstance(asked, Ping | IssueToken):
            operation = msgspec.structs.replace(operation, trail=trail)
        try:
            reply = await self._inner(operation)
        except BaseException as error:
            self._tell(operation, trail, None, error)
            raise
        self._tell(operation, trail, reply, None)
        return reply

    def _tell(self, operation: Operation[object], trail: Trail, reply: object, error: BaseException | None) -> None:
        if self._pulls or _changes(operation) or isinstance(error, _REFUSALS):
            self._lines.append(encode_json(_record(operation, trail, reply, error)) + b"\n")


def _changes(operation: Operation[object]) -> bool:
    """Return whether `operation` is to change what is stored."""
    asks_only = isinstance(operation, CheckAccess)
    return not asks_only and any(access.action in {"push", "delete"} for access in operation.access)


def _record(
    operation: Operation[object], trail: Trail, reply: object, error: BaseException | None
) -> dict[str, object]:
    """Return what is told of `operation`; nothing that its headers or body held."""
    origin, caller = operation.origin, trail.caller
    record: dict[str, object] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "request": origin.request_id,
        "user": caller.name,
        "groups": sorted(caller.groups),
        "address": origin.address,
        "user_agent": origin.user_agent,
        "operation": type(operation).__name__,
    }
    for name in _FIELDS:
        value: object = getattr(operation, name, None)
        if value is not None:
            record[name] = str(value)
    if isinstance(operation, CheckAccess):
        record["needed"] = [f"{access.repository or ''}:{access.action}" for access in operation.needed]
    if isinstance(operation, PushManifest):
        record["tags"] = operation.written_tags
    match reply:
        case ManifestPushed():
            record["digest"] = str(reply.descriptor.digest)
        case Deleted():
            record["tags"] = reply.tags
        case UploadOpened():
            record["upload_id"] = reply.upload_id
        case BlobPushed():
            record["digest"] = str(reply.digest)
        case _:
            pass
    record |= {"rule": trail.rule, "outcome": _outcome(error)}
    if isinstance(error, RegistryError):
        record |= {"status": error.status, "code": error.code}
    if isinstance(error, Refused) and (rule := _refusing_rule(error.detail)):
        record["refused_by"] = rule
    return record


def _refusing_rule(detail: object) -> str:
    """Return the name of the rule on pushes that refused one, as these say it; empty if it does not."""
    if not isinstance(detail, Mapping):
        return ""
    return str(cast("Mapping[str, object]", detail).get("rule", ""))  # JSON


def _outcome(error: BaseException | None) -> Outcome:
    match error:
        case None:
            return "done"
        case Refused():
            return "refused"
        case Unauthorized() | Denied():
            return "denied"
        case RegistryError(status=499):
            return "broken off"
        case RegistryError(status=status) if status < 500:
            return "refused"
        case Exception():
            return "failed"
        case _:
            # Cancelled: the client has left, or the registry ends.
            return "broken off"


@asynccontextmanager
async def _open(options: AuditOptions, inner: Handler) -> AsyncGenerator[Handler]:
    lines = LineFile(options.path)
    try:
        yield Audited(inner, lines, pulls=options.pulls)
    finally:
        lines.close()


@hookimpl
def register_middleware() -> Mapping[str, object]:
    """Offer the audit log."""
    return {"audit": MiddlewareFactory(AuditOptions, _open, section="audit", place="gate")}

"""Cases about handlers around the registry: whatever a middleware does not mean to change goes through it as it is."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import cast

import msgspec
import trio

from moorage import (
    AppendUpload,
    Blob,
    BlobPushed,
    BlobUnknown,
    CommitUpload,
    Digest,
    Handler,
    InternalError,
    MiddlewareFactory,
    Operation,
    PullBlob,
    PushBlob,
    R,
    RegistryError,
    RepositoryName,
    TooManyRequests,
    Unavailable,
    UploadProgress,
)
from moorage_conformance.driver.expect import Unmet, equal, true

from .case import Group, NotShown, Trial
from .lifetime import can_be_cancelled, in_time, nothing_stays, outcome_of
from .samples import LAYER, REPOSITORY, UPLOAD, Pieces, Unknown, again, operations, reply_to

MiddlewareTrial = Trial[MiddlewareFactory[msgspec.Struct]]

case = Group[MiddlewareTrial]("middleware", "Middleware")

_PIECE = bytes(64 << 10)
_READ_AHEAD = 256
"""How many pieces may be taken from a body before the first is passed on; 16 MiB."""

Answer = Callable[[Operation[object]], Awaitable[object]]


class Inner:
    """The handler that the middleware is put around: notes what it is asked, and answers."""

    def __init__(self, answer: Answer | None = None) -> None:
        """Give `answer`, by default a reply of the right kind to everything."""
        self.seen: list[Operation[object]] = []
        self._answer = answer or _reply

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`."""
        self.seen.append(operation)
        await trio.lowlevel.checkpoint()
        reply = await self._answer(operation)
        await trio.lowlevel.checkpoint()
        return cast("R", reply)  # each reply is made for its operation


async def _reply(operation: Operation[object]) -> object:
    for piece in [piece async for piece in getattr(operation, "body", Pieces([], 0))]:
        del piece
    return reply_to(operation)


def opened(trial: MiddlewareTrial, inner: Handler | None = None) -> AbstractAsyncContextManager[Handler]:
    """Open the middleware around `inner`."""
    return trial.factory.open(trial.options, Inner() if inner is None else inner)


async def _ask(handler: Handler, operation: Operation[object]) -> object:
    return await handler(operation)


def _kind(operation: Operation[object]) -> str:
    return type(operation).__name__


@case
async def what_it_does_not_know_passes_unchanged(trial: MiddlewareTrial) -> None:
    """An operation of a kind that it cannot know reaches the registry as it is, and the reply the client."""
    inner = Inner()
    operation = Unknown()
    async with opened(trial, inner) as handler:
        reply = await outcome_of("an unknown operation", lambda: handler(operation), trial.patience)
    if isinstance(reply, RegistryError):
        raise Unmet(f"it refuses an operation that it does not know: {reply}")
    equal(inner.seen, [operation], "what the registry is asked")
    equal(reply, reply_to(operation), "the reply")


@case
async def every_operation_is_answered_or_refused(trial: MiddlewareTrial) -> str | None:
    """Each operation is answered with a reply of its kind, or refused with an error that a client is told."""
    notes: list[str] = []
    for operation in operations():
        inner = Inner()
        async with opened(trial, inner) as handler:
            name = _kind(operation)
            reply = await outcome_of(name, lambda: handler(operation), trial.patience)  # noqa: B023 - awaited here
        if isinstance(reply, RegistryError):
            fair = reply.status < 500 or isinstance(reply, Unavailable)
            true(fair and not isinstance(reply, InternalError), f"{name} fails: {type(reply).__name__}: {reply}")
            notes.append(f"refuses {name} ({reply.status})")
            continue
        kind = type(reply_to(operation))
        true(isinstance(reply, kind), f"{name} is answered with {type(reply).__name__}, not {kind.__name__}")
        asked = [each for each in inner.seen if type(each) is type(operation)]
        if not asked:
            notes.append(f"answers {name} itself")
        elif asked[0] != operation:
            notes.append(f"changes {name}")
    return ", ".join(notes) or None


@case
async def errors_pass(trial: MiddlewareTrial) -> None:
    """What the registry raises reaches the client as it is: no status changed, nothing swallowed."""
    errors: tuple[Exception, ...] = (
        BlobUnknown("no such blob", detail={"a": 1}),
        TooManyRequests("too often", retry_after=3),
        Unavailable("later", retry_after=7),
        _Later("of a kind that nobody knows", detail=["x"]),
        OSError(5, "of the system"),
    )
    for error in errors:

        async def fail(operation: Operation[object], error: Exception = error) -> object:
            del operation
            raise error

        async with opened(trial, Inner(fail)) as handler:
            said = f"{type(error).__name__} of the registry"
            try:
                await in_time(said, lambda: handler(Unknown()), trial.patience)
            except Unmet:
                raise
            except Exception as raised:
                same = type(raised) is type(error) and _told(raised) == _told(error)
                if not same:
                    raise Unmet(f"{said} comes out as {type(raised).__name__}: {raised}") from raised
            else:
                raise Unmet(f"{said} is swallowed")


class _Later(RegistryError):
    """An error of a later Moorage."""

    code = "DENIED"
    status = 451


def _told(error: Exception) -> object:
    if isinstance(error, RegistryError):
        return error.status, error.entries(), getattr(error, "retry_after", None)
    return error.args


@case
async def a_body_is_passed_on_while_it_arrives(trial: MiddlewareTrial) -> str | None:
    """The registry sees the first piece of a body before the last was sent: it is not gathered on the way."""
    digest = Digest.of(_PIECE)
    refused: list[str] = []
    bodies = [_Endless() for _ in range(3)]
    one, two, three = (Pieces(each, None) for each in bodies)
    pushed: tuple[Operation[object], ...] = (
        PushBlob(repository=REPOSITORY, digest=digest, body=one),
        AppendUpload(repository=REPOSITORY, upload_id=UPLOAD, body=two),
        CommitUpload(repository=REPOSITORY, upload_id=UPLOAD, digest=digest, body=three),
    )
    for operation, endless in zip(pushed, bodies, strict=True):

        async def take(operation: Operation[object], endless: "_Endless" = endless) -> object:
            if not isinstance(operation, PushBlob | AppendUpload | CommitUpload):
                return reply_to(operation)
            async for _ in operation.body:
                endless.seen = True
                if endless.given > 2 * _READ_AHEAD:
                    break
            if isinstance(operation, AppendUpload):
                return UploadProgress(repository=REPOSITORY, upload_id=UPLOAD, offset=0)
            return BlobPushed(repository=REPOSITORY, digest=digest)

        async with opened(trial, Inner(take)) as handler:
            try:
                await in_time(_kind(operation), lambda: handler(operation), trial.patience)  # noqa: B023 - same
            except RegistryError as error:
                refused.append(f"refuses {_kind(operation)} ({error.status})")
        true(not endless.gathered, f"the body of {_kind(operation)} is gathered before it is passed on")
        if not endless.seen and not refused:
            refused.append(f"answers {_kind(operation)} itself")
    if len(refused) == 3:
        raise NotShown(", ".join(refused))
    return ", ".join(refused) or None


class _Endless:
    """Pieces without end, until somebody has taken too many before any was seen."""

    def __init__(self) -> None:
        self.given = 0
        self.seen = False
        self.gathered = False

    def __iter__(self) -> Iterator[bytes]:
        """Give pieces."""
        while True:
            self.given += 1
            if not self.seen and self.given > _READ_AHEAD:
                self.gathered = True
                return
            yield _PIECE


@case
async def a_blob_is_not_opened(trial: MiddlewareTrial) -> None:
    """A reply with a blob is passed on unopened: a HEAD costs no reading, and a range reads no more than itself."""
    opens: list[int] = []

    async def give(operation: Operation[object]) -> object:
        await trio.lowlevel.checkpoint()
        return reply_to(operation, lambda: opens.append(1))

    async with opened(trial, Inner(give)) as handler:
        operation: Operation[object] = PullBlob(repository=REPOSITORY, digest=Digest.of(LAYER))
        reply = await outcome_of("PullBlob", partial(_ask, handler, operation), trial.patience)
        if isinstance(reply, RegistryError):
            raise NotShown(f"refuses PullBlob ({reply.status})")
        true(not opens, "a blob was opened before anybody asked for its bytes")
        if not isinstance(reply, Blob):
            raise Unmet(f"PullBlob is answered with {type(reply).__name__}")
        async with reply.open(2, 5) as reader:
            part = b"".join([piece async for piece in reader])
        equal(len(part), 3, "the length of a range of three bytes")


@case
async def operations_do_not_wait_for_each_other(trial: MiddlewareTrial) -> str | None:
    """While one operation is answered, others are: two of each kind, each answered only when both have arrived."""
    notes: list[str] = []
    for first, second in zip(operations(), operations(RepositoryName("moorage/second")), strict=True):
        met = _Meeting()

        async def meet(operation: Operation[object], met: "_Meeting" = met, first: Operation[object] = first) -> object:
            if type(operation) is type(first):
                await met.wait()
            return reply_to(operation)

        async with opened(trial, Inner(meet)) as handler:
            ask = _both(handler, first, second)
            both = await in_time(f"one {_kind(first)} while another is answered", ask, trial.patience)
        true(met.arrived != 1, f"one of two {_kind(first)} at once does not reach the registry: {both}")
        if not met.arrived:
            notes.append(f"passes no {_kind(first)} on")
    return ", ".join(notes) or None


class _Meeting:
    """Lets nobody go on until two are there."""

    def __init__(self) -> None:
        self.arrived = 0
        self._both = trio.Event()

    async def wait(self) -> None:
        self.arrived += 1
        if self.arrived >= 2:
            self._both.set()
        await self._both.wait()


def _both(handler: Handler, *operations: Operation[object]) -> Callable[[], Awaitable[list[object]]]:
    async def ask() -> list[object]:
        found: list[object] = []

        async def one(operation: Operation[object]) -> None:
            try:
                found.append(await handler(operation))
            except RegistryError as error:
                found.append(error)

        async with trio.open_nursery() as nursery:
            for operation in operations:
                nursery.start_soon(one, operation)
        return found

    return ask


@case
async def every_operation_can_be_cancelled_at_every_await(trial: MiddlewareTrial) -> None:
    """Cancelled at whichever await, an operation ends, leaves no task, raises nothing else, and works when asked again."""
    for operation in [Unknown(), *operations()]:
        async with opened(trial) as handler:

            async def attempt(operation: Operation[object] = operation, handler: Handler = handler) -> object:
                try:
                    return await handler(again(operation))
                except RegistryError as error:
                    return error

            usual = _told_shortly(await in_time(_kind(operation), attempt, trial.patience))
            await can_be_cancelled(
                _kind(operation),
                attempt,
                lambda outcome: _told_shortly(outcome) == usual,  # noqa: B023 - awaited here
                trial.patience,
            )


def _told_shortly(outcome: object) -> tuple[type, int]:
    return type(outcome), outcome.status if isinstance(outcome, RegistryError) else 0


@case
async def opening_can_be_cancelled_at_every_await(trial: MiddlewareTrial) -> None:
    """Cancelled at whichever await while it is opened or closed, it leaves nothing behind, and can be opened again."""

    async def attempt() -> bool:
        async with opened(trial):
            return True

    await can_be_cancelled("opening", attempt, bool, trial.patience)


@case
async def nothing_grows(trial: MiddlewareTrial) -> None:
    """Opened, used and closed many times, it leaves no task, thread or descriptor behind."""

    async def use(handler: Handler) -> None:
        for operation in [Unknown(), *operations()]:
            await outcome_of(_kind(operation), lambda: handler(operation), trial.patience)  # noqa: B023 - same

    await nothing_stays(lambda: opened(trial), use)

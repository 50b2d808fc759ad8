"""Upload sessions: opened, sent to, committed, cancelled, expired.

Answers for the OCI distribution spec, "Pushing Blobs". Rules this file keeps:

- All of a session lies in the store, so that any process can serve its next request. `state` says where it stands and
  is replaced last; what is acknowledged is what `state` says, and bytes beyond are dropped by the next writer.
- One request at a time works on a session. Stores that can, lock it; in others the loser of a race learns it when its
  progress would be saved. Either way it hears 416 and where the session stands.
- A client that leaves in the middle of a chunk loses nothing: what arrived is kept.
- The hash goes on from one request to the next, so a commit reads nothing again, unless another algorithm is asked
  for than was announced.
- The content is made visible first, then linked, then the session is removed.
- A store behind a network is asked as little as can be: a session's state is also kept in memory, and is taken from
  there when the request itself shows that it is the latest, or when a stale one could do no harm.
"""

import logging
import re
import secrets
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress

import msgspec
import trio

from . import _layout as layout
from ._digests import CANONICAL, Digest, Hasher, check_algorithm, open_hasher, resume_hasher
from ._driver import Condition, Driver, Unchanged, Upload
from ._errors import (
    ConditionFailed,
    DigestInvalid,
    DriverError,
    KeyUnknown,
    SizeInvalid,
    StoreFull,
    UploadBusy,
    UploadGone,
    UploadOutOfOrder,
    UploadUnknown,
)
from ._intake import SAVE_SECONDS, Intake, hash_piece
from ._listing import children, repositories
from ._manifests import encode_json
from ._names import RepositoryName
from ._operations import AppendUpload, Body, CommitUpload, PushBlob

_log = logging.getLogger("moorage.uploads")


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """Where a session stands, as its `state` object holds it (JSON).

    Attributes:
        offset: bytes acknowledged.
        algorithm: what the bytes are hashed with while they arrive.
        hash: the hash's state at `offset`; None where nothing is hashed yet, or if it cannot be carried, and the commit
            must read again.
        token: the driver's, for `resume_upload`.
        announced: the digest the client said it would commit.
        version: of this format.
    """

    offset: int
    algorithm: str
    hash: bytes | None
    token: bytes
    announced: str | None = None
    version: int = 1


_states = msgspec.json.Decoder(_State)

_STATE_LIMIT = 64 << 20
"""More bytes than any state has."""

_UPLOAD_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

_WARM_SESSIONS = 1024
_WARM_TOKENS = 32 << 20


class _Warm:
    """States that this process wrote last, with their versions, bounded in number and bytes; the oldest goes first."""

    def __init__(self) -> None:
        self._states: OrderedDict[str, tuple[_State, str]] = OrderedDict()
        self._size = 0

    def put(self, upload_id: str, state: _State, version: str) -> None:
        self.take(upload_id)
        self._states[upload_id] = (state, version)
        self._size += len(state.token)
        while len(self._states) > _WARM_SESSIONS or self._size > _WARM_TOKENS:
            self.take(next(iter(self._states)))

    def take(self, upload_id: str) -> tuple[_State, str] | None:
        found = self._states.pop(upload_id, None)
        if found is not None:
            self._size -= len(found[0].token)
        return found


def _new_upload_id() -> str:
    """Return a UUID of version 7, as distribution makes them: its purger knows a session by its name being one."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & ((1 << 48) - 1)) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def check_upload_id(text: str) -> str:
    """Return `text` if it can be the id of a session.

    Raises:
        UploadUnknown: it is no UUID, so no session has it.
    """
    if _UPLOAD_ID.fullmatch(text) is None:
        raise UploadUnknown("there is no such upload")
    return text


class Uploads:
    """The upload sessions of a store."""

    def __init__(self, driver: Driver) -> None:
        """Keep sessions on `driver`."""
        self._driver = driver
        self._warm = _Warm()

    async def open(self, repository: RepositoryName, *, digest: Digest | None, algorithm: str | None) -> str:
        """Open a session and return its id.

        Raises:
            DigestInvalid: the announced algorithm cannot be computed here.
        """
        algorithm = digest.algorithm if digest else algorithm or CANONICAL
        check_algorithm(algorithm)
        upload_id = _new_upload_id()
        session = layout.upload(repository, upload_id)
        announced = str(digest) if digest else None

        def fresh(token: bytes) -> _State:
            return _State(offset=0, algorithm=algorithm, hash=None, token=token, announced=announced)

        def begun(token: bytes) -> list[tuple[str, bytes]]:
            began = (session + "startedat", layout.started_at_content(time.time()))
            return [began, (session + "state", encode_json(fresh(token)))]

        async with self._driver.open_upload(session + "data", self._destination(digest)) as upload:
            if self._driver.capabilities.remote:
                state = fresh(await upload.suspend())
                self._keep_warm(upload_id, state, await _save_state(self._driver, session, state, None))
            else:
                await upload.suspend_with(self._driver, begun)
        return upload_id

    def _keep_warm(self, upload_id: str, state: _State, version: str | None) -> None:
        if version is not None and self._driver.capabilities.remote and self._driver.capabilities.cas:
            self._warm.put(upload_id, state, version)

    def _destination(self, announced: Digest | None) -> str | None:
        if announced is None or not self._driver.capabilities.announced_destination:
            return None
        return layout.blob(announced)

    async def offset(self, repository: RepositoryName, upload_id: str) -> int:
        """Return how many bytes of a session are acknowledged.

        Raises:
            UploadUnknown: there is no such session.
        """
        return (await self._state(repository, upload_id)).offset

    async def append(self, operation: AppendUpload) -> int:
        """Take in the body of `operation`; return how many bytes the session has now.

        Raises:
            UploadUnknown, UploadOutOfOrder, SizeInvalid, ClientLeft: as they say.
        """
        try:
            async with self._held(operation) as held:
                await held.receive(operation.body, operation.length, acknowledge=True)
                return held.offset
        except UploadGone:
            # A commit took its bytes and was interrupted; only another commit can finish that.
            raise UploadUnknown("the upload's bytes are gone", detail={"upload": operation.upload_id}) from None

    async def commit(self, operation: CommitUpload) -> None:
        """Take in the body of `operation` and make the blob visible, in the store, then in the repository.

        Raises:
            UploadUnknown, UploadOutOfOrder, SizeInvalid, ClientLeft: as they say.
            DigestInvalid: the content has another digest; the session is gone.
        """
        check_algorithm(operation.digest.algorithm)
        link = _link(operation)
        try:
            async with self._held(operation) as held:
                await held.receive(operation.body, operation.length, acknowledge=False)
                await held.commit(operation.digest, link)
        except UploadGone:
            await self._finish_interrupted(operation)
            await _finish(self._driver, layout.upload(operation.repository, operation.upload_id), link)
        except DigestInvalid:
            await self.remove(operation.repository, operation.upload_id)
            raise

    async def push(self, operation: PushBlob) -> None:
        """Make the body of `operation` a blob of the repository, in one go and without a session to resume.

        Raises:
            DigestInvalid: the content has another digest.
            ClientLeft: the client did.
        """
        hasher = open_hasher(operation.digest.algorithm)
        upload_id = _new_upload_id()
        session = layout.upload(operation.repository, upload_id)
        destination = self._destination(operation.digest)
        async with self._driver.open_upload(session + "data", destination) as upload:
            try:
                await Intake(upload, hasher).receive(operation.body)
                _compare(operation.digest, hasher.digest())
                # A remote store keeps nothing of an upload that was committed or aborted.
                drop = "" if self._driver.capabilities.remote else session
                await upload.commit_between(
                    self._driver, layout.blob(operation.digest), after=[_link(operation)], drop=drop
                )
            except BaseException:
                # What ends it is told, not what may go wrong with cleaning up; of a committed upload nothing is left.
                with trio.CancelScope(shield=True, deadline=trio.current_time() + SAVE_SECONDS), suppress(DriverError):
                    await upload.abort()
                    if not self._driver.capabilities.remote:
                        await self.remove(operation.repository, upload_id)
                raise

    async def cancel(self, repository: RepositoryName, upload_id: str) -> None:
        """End a session and free what it holds.

        Raises:
            UploadUnknown: there is no such session.
            UploadOutOfOrder: a request is at work on it.
        """
        state = await self._state(repository, upload_id)
        try:
            async with self._driver.resume_upload(state.token, state.offset) as upload:
                await upload.abort()
        except UploadGone:
            pass
        except UploadBusy:
            raise _busy(upload_id, state.offset) from None
        await self.remove(repository, upload_id)

    async def remove(self, repository: str, upload_id: str) -> None:
        """Remove every trace of a session; `state` goes first, so that nobody takes up what is half gone."""
        self._warm.take(upload_id)
        session = layout.upload(repository, upload_id)
        await self._driver.delete(session + "state", durable=False)
        await self._driver.delete_below(session, durable=False)

    async def expire(self, *, older_than: float, dry_run: bool) -> int:
        """Remove the sessions, of any implementation, that nothing has happened to since Unix time `older_than`.

        Returns:
            how many there were.
        """
        count = 0
        async with aclosing(repositories(self._driver, part="_uploads")) as found:
            async for repository in found:
                for upload_id in await children(self._driver, layout.uploads(repository)):
                    if await self._touched(repository, upload_id) >= older_than:
                        continue
                    count += 1
                    _log.info("upload %s of %s is abandoned%s", upload_id, repository, " (dry run)" if dry_run else "")
                    if not dry_run:
                        await self._expire_one(repository, upload_id)
        inside = await self._driver.expire_uploads(older_than=older_than, dry_run=dry_run)
        if inside:
            _log.info("the store had %d more abandoned uploads%s", inside, " (dry run)" if dry_run else "")
        return count + inside

    async def _expire_one(self, repository: RepositoryName, upload_id: str) -> None:
        try:
            await self.cancel(repository, upload_id)
        except UploadUnknown:
            await self.remove(repository, upload_id)
        except UploadOutOfOrder:
            _log.info("upload %s of %s is in use after all", upload_id, repository)

    async def _touched(self, repository: RepositoryName, upload_id: str) -> float:
        """Return when something last happened to a session; it began then, or its state or bytes were written."""
        session = layout.upload(repository, upload_id)
        times: list[float] = []
        with suppress(KeyUnknown):
            times.append(layout.parse_started_at(await self._driver.read(session + "startedat", limit=1024)) or 0)
        # The state is written last; there may be more parts than are looked at.
        found = [entry.key for entry in (await self._driver.list(session, limit=10)).entries]
        for key in (session + "state", *found):
            try:
                times.append((await self._driver.stat(key)).modified)
            except KeyUnknown:
                continue
        # One without any time vanished while being looked at.
        return max(times, default=time.time())

    async def _state(self, repository: RepositoryName, upload_id: str) -> _State:
        """Return a session's state. Raises UploadUnknown: there is no such session."""
        try:
            return _states.decode(await self._driver.read(_state_key(repository, upload_id), limit=_STATE_LIMIT))
        except (KeyUnknown, msgspec.MsgspecError):
            raise _unknown(upload_id) from None

    async def _state_and_version(self, repository: RepositoryName, upload_id: str) -> tuple[_State, str]:
        """Return a session's state and the version of the object that holds it. Raises as `_state`."""
        try:
            async with self._driver.open(_state_key(repository, upload_id)) as reader:
                data = b"".join([chunk async for chunk in reader])
                return _states.decode(data), reader.stat.version
        except (KeyUnknown, msgspec.MsgspecError):
            raise _unknown(upload_id) from None

    @asynccontextmanager
    async def _held(self, operation: AppendUpload | CommitUpload) -> AsyncGenerator["_Held"]:
        """Hold the session of `operation`, at the offset that its request names, while its request is answered."""
        name, upload_id = operation.repository, operation.upload_id
        exclusive, condition = self._driver.capabilities.exclusive_uploads, None
        if exclusive:
            state = await self._state(name, upload_id)
        else:
            state, version = self._known(operation) or await self._state_and_version(name, upload_id)
            condition = Unchanged(version) if self._driver.capabilities.cas else None
        if operation.start is not None and operation.start != state.offset:
            raise UploadOutOfOrder(
                f"the chunk begins at {operation.start}, the upload stands at {state.offset}",
                upload_id=upload_id,
                offset=state.offset,
            )
        if operation.length is not None and operation.body.length not in {None, operation.length}:
            raise SizeInvalid(f"Content-Range names {operation.length} bytes, Content-Length {operation.body.length}")
        session = layout.upload(name, upload_id)
        try:
            async with self._driver.resume_upload(state.token, state.offset) as upload:
                if exclusive:
                    # Between the look and the lock another request may have come and gone.
                    now = await self._state(name, upload_id)
                    if now != state:
                        raise _busy(upload_id, now.offset)
                held = _Held(self._driver, session, upload_id, state, upload, condition)
                yield held
                if held.saved is not None:
                    self._keep_warm(upload_id, *held.saved)
        except UploadBusy:
            raise _busy(upload_id, state.offset) from None

    def _known(self, operation: AppendUpload | CommitUpload) -> tuple[_State, str] | None:
        """Return the state of a session and its version without asking the store, or None where that could be wrong.

        It is right if the request names its offset, or commits just what arrived here. And it is believed for the first
        stream of a session whose digest was announced: clients that announce one send the blob by one stream. If another
        replica was sent bytes before, that is seen when the state is replaced.
        """
        known = self._warm.take(operation.upload_id)
        if known is None:
            return None
        state = known[0]
        if isinstance(operation, CommitUpload):
            hasher = _resumed(state)
            ends_here = (
                operation.body.length == 0 and hasher is not None and hasher.algorithm == operation.digest.algorithm
            )
            return known if ends_here and hasher is not None and hasher.digest() == operation.digest else None
        first = operation.start is None and not state.offset and state.announced is not None
        return known if first or operation.start == state.offset else None

    async def _finish_interrupted(self, operation: CommitUpload) -> None:
        """Commit a session whose bytes have already left it: a process died between the commit and its answer.

        The hash that the session carries proves that the client sent the content that the blob has.

        Raises:
            UploadUnknown: the bytes are nowhere.
        """
        state = await self._state(operation.repository, operation.upload_id)
        session = layout.upload(operation.repository, operation.upload_id)
        if operation.body.length in {None, 0}:
            hasher = _resumed(state)
            if hasher is not None and hasher.digest() == operation.digest:
                if await self._has(layout.blob(operation.digest), state.offset):
                    return
            elif await self._has(session + "content", state.offset):
                await _commit_content(self._driver, session, operation.digest)
                return
        await self.remove(operation.repository, operation.upload_id)
        raise UploadUnknown("the upload's bytes are gone", detail={"upload": operation.upload_id})

    async def _has(self, key: str, size: int) -> bool:
        try:
            return (await self._driver.stat(key)).size == size
        except KeyUnknown:
            return False


class _Held:
    """A session that one request has to itself."""

    def __init__(
        self,
        driver: Driver,
        session: str,
        upload_id: str,
        state: _State,
        upload: Upload,
        condition: Condition | None,
    ) -> None:
        self.saved: tuple[_State, str | None] | None = None
        self._driver = driver
        self._session = session
        self._upload_id = upload_id
        self._state = state
        self._upload = upload
        self._condition = condition
        # A session whose hash cannot be carried is read again at its commit.
        self._hasher = _resumed(state)

    @property
    def offset(self) -> int:
        """How many bytes the session has."""
        return self._upload.offset

    async def receive(self, body: Body, length: int | None, *, acknowledge: bool) -> None:
        """Take in `body`, of which `length` bytes are announced; save the progress if it shall be acknowledged.

        When the client leaves, or the request is cancelled, what arrived is saved all the same.
        """
        intake = Intake(self._upload, self._hasher, length)
        try:
            await intake.receive(body)
        except SizeInvalid:
            raise
        except StoreFull:
            # What was not acknowledged must not keep others from what little room there is.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + SAVE_SECONDS), suppress(DriverError):
                await self._upload.drop_beyond(self._state.offset)
            raise
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + SAVE_SECONDS):
                await self._save_what_arrived()
            raise
        if length is not None and intake.count != length:
            raise SizeInvalid(f"the body has {intake.count} bytes, its range names {length}")
        if acknowledge:
            await self._save()

    async def commit(self, digest: Digest, link: tuple[str, bytes]) -> None:
        """Make what the session holds visible as the blob `digest`, then write `link`, then remove the session.

        Raises:
            DigestInvalid: it has another digest, or the session was opened for one and the store cannot go back on it.
        """
        if self._hasher is not None and self._hasher.algorithm == digest.algorithm:
            try:
                _compare(digest, self._hasher.digest())
            except DigestInvalid:
                await self._upload.abort()
                raise
            if self._is_one_step:
                before = self._told if self._must_tell else None
                await self._upload.commit_between(
                    self._driver, layout.blob(digest), before=before, after=[link], drop=self._session
                )
                return
            await self._save_before_commit()
            await self._commit_to(layout.blob(digest), digest)
        else:
            await self._save_before_commit()
            await self._commit_to(self._session + "content", digest)
            await _commit_content(self._driver, self._session, digest)
        await _finish(self._driver, self._session, link)
        # Of what was saved before the commit nothing is left.
        self.saved = None

    @property
    def _is_one_step(self) -> bool:
        """Whether a commit needs no more than to be told what stands around it: no condition, and no way back."""
        capabilities = self._driver.capabilities
        return self._condition is None and not capabilities.remote and not capabilities.announced_destination

    async def _commit_to(self, destination: str, digest: Digest) -> None:
        announced = self._state.announced
        try:
            await self._upload.commit(destination)
        except UploadGone:
            if announced is None or announced == digest or not self._driver.capabilities.announced_destination:
                raise
            # Its bytes lie where the announced blob would be, and may not be seen there.
            await self._upload.abort()
            raise DigestInvalid(
                "the upload was opened for another digest; open one for this digest, or for none",
                detail={"announced": announced, "digest": str(digest)},
            ) from None

    def _told(self, token: bytes) -> list[tuple[str, bytes]]:
        """Return the `state` that knows of all bytes so far."""
        return [(self._session + "state", encode_json(self._state_now(token)))]

    async def _save_before_commit(self) -> None:
        if self._must_tell:
            await self._save()

    @property
    def _must_tell(self) -> bool:
        """Whether `state` must know of all bytes before they leave the session: whoever finds them gone can tell why.

        Of a session behind a network that has acknowledged nothing, nothing can be lost: it begins again.
        """
        return self.offset != self._state.offset and (self._state.offset > 0 or not self._driver.capabilities.remote)

    async def _save(self) -> None:
        if self._condition is None and not self._driver.capabilities.remote:
            await self._upload.suspend_with(self._driver, self._told)
            return
        state = self._state_now(await self._upload.suspend())
        try:
            version = await _save_state(self._driver, self._session, state, self._condition)
        except ConditionFailed:
            raise _busy(self._upload_id, await self._offset_now()) from None
        self.saved = (state, version)

    def _state_now(self, token: bytes) -> _State:
        hash_state = self._hasher.state() if self._hasher else None
        return msgspec.structs.replace(self._state, offset=self.offset, hash=hash_state, token=token)

    async def _offset_now(self) -> int:
        """Return what another request has acknowledged meanwhile.

        Raises:
            UploadUnknown: it has ended the session.
        """
        try:
            return _states.decode(await self._driver.read(self._session + "state", limit=_STATE_LIMIT)).offset
        except KeyUnknown:
            raise _unknown(self._upload_id) from None
        except (DriverError, msgspec.MsgspecError):
            return self._state.offset

    async def _save_what_arrived(self) -> None:
        if self.offset == self._state.offset:
            return
        try:
            await self._save()
        except (DriverError, UploadOutOfOrder, UploadUnknown) as error:
            # Nobody is waiting for this answer; the session stays at what was acknowledged before.
            _log.warning("upload %s: what arrived could not be kept: %s", self._upload_id, error)


def _resumed(state: _State) -> Hasher | None:
    """Return a hasher that goes on where `state` stands, None if that cannot be."""
    if not state.offset:
        return open_hasher(state.algorithm)
    return None if state.hash is None else resume_hasher(state.algorithm, state.hash)


async def _save_state(driver: Driver, session: str, state: _State, condition: Condition | None) -> str | None:
    """Replace the `state` of `session`; it survives the process, not the power. Return its version, if that is known."""
    return await driver.write(session + "state", encode_json(state), condition=condition, durable=False)


def _link(operation: CommitUpload | PushBlob) -> tuple[str, bytes]:
    """Return the link that makes a blob one of its repository, as key and content."""
    return layout.layer_link(operation.repository, operation.digest), layout.link_content(operation.digest)


async def _finish(driver: Driver, session: str, link: tuple[str, bytes]) -> None:
    """Write the `link` of a blob, then remove what is left of its session, in any order: who finds `state` looks there."""
    await driver.write_all([link])
    if driver.capabilities.remote:
        # Nothing else is left of it.
        await driver.delete(session + "state", durable=False)
    else:
        await driver.delete_below(session, durable=False)


async def _commit_content(driver: Driver, session: str, digest: Digest) -> None:
    """Read what `session` left as its `content`, and make it the blob `digest` if it is that.

    Raises:
        DigestInvalid: it is not.
    """
    hasher = open_hasher(digest.algorithm)
    async with driver.open(session + "content") as reader:
        async for chunk in reader:
            await hash_piece(hasher, chunk)
    _compare(digest, hasher.digest())
    await driver.copy(session + "content", layout.blob(digest))
    if driver.capabilities.remote:
        await driver.delete(session + "content", durable=False)


def _compare(expected: Digest, found: Digest) -> None:
    if found != expected:
        raise DigestInvalid(
            "the content does not have that digest", detail={"expected": str(expected), "found": str(found)}
        )


def _state_key(repository: RepositoryName, upload_id: str) -> str:
    return layout.upload(repository, check_upload_id(upload_id)) + "state"


def _unknown(upload_id: str) -> UploadUnknown:
    return UploadUnknown("there is no such upload", detail={"upload": upload_id})


def _busy(upload_id: str, offset: int) -> UploadOutOfOrder:
    return UploadOutOfOrder("another request is at work on this upload", upload_id=upload_id, offset=offset)

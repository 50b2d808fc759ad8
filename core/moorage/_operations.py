"""Everything that can be asked of a registry, as values, and what is answered.

One idea: an operation is a frozen value; whatever answers it is a handler; a middleware is a handler that holds
another. Calls go down once, replies come up once. Authentication, limits, metrics and caches are middleware; the
innermost handler is `Registry`, over a driver.

A reply that carries bytes is not open yet, so nothing leaks where it is dropped; a request that carries bytes has a
`Body`, which is read once. There is no ambient context: who asks, and from where, are fields.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Generic, Literal, Protocol, Self, TypeVar, runtime_checkable

import msgspec

from ._digests import Digest
from ._driver import Reader
from ._manifests import Descriptor, Manifest
from ._names import Reference, RepositoryName, Tag
from ._patterns import Glob

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Action = Literal["pull", "push", "delete", "catalog"]


_SCHEMES = frozenset({"basic", "bearer", "refresh_token"})


class Credentials(msgspec.Struct, frozen=True):
    """What came with a request to say who asks: the scheme (`basic`, `bearer`, lower case) and its value."""

    scheme: str
    value: str

    def __repr__(self) -> str:
        """Return a text without the secret; a scheme that is not known may be one, sent without a scheme before it."""
        return f"Credentials(scheme={self.scheme if self.scheme in _SCHEMES else '…'!r}, value=…)"


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request came from.

    Attributes:
        request_id: names the request in logs and events.
        address: the client's network address, without port; empty inside the process.
        host: the Host that was asked.
        method: the HTTP method; empty inside the process.
        user_agent: what the client says it is.
        base_url: under which URL this registry is seen by the client, without a slash at the end.
        credentials: what the client says to be known by.
        tls_peer: the client's verified certificate (DER), if it showed one.
    """

    request_id: str = ""
    address: str = ""
    host: str = ""
    method: str = ""
    user_agent: str = ""
    base_url: str = ""
    credentials: Credentials | None = None
    tls_peer: bytes | None = None


class Access(msgspec.Struct, frozen=True):
    """One right that an operation needs; `repository` is None for the registry as a whole."""

    repository: RepositoryName | None
    action: Action


class Grant(msgspec.Struct, frozen=True):
    """Rights that credentials such as a token carry with them; `repository` is None for the registry as a whole.

    The action `*` stands for all of them.
    """

    repository: str | None
    actions: frozenset[str]

    def covers(self, access: Access) -> bool:
        """Return whether it gives the right `access`."""
        return self.repository == access.repository and (access.action in self.actions or "*" in self.actions)


class Voucher(msgspec.Struct, frozen=True):
    """Who can be asked, later on, whether a caller is still known.

    Attributes:
        authenticator: the name by which a configuration has it.
        mark: changes when the caller is known by something else, such as another password; tells nobody anything.
    """

    authenticator: str
    mark: str


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks; an empty name is nobody in particular.

    Attributes:
        name: by which rules and logs know the caller.
        groups: those that the caller belongs to.
        grants: the only rights that the credentials are good for; None if they do not say, as with a password.
        voucher: who can be asked about the caller again; None if nobody can.
    """

    name: str = ""
    groups: frozenset[str] = frozenset()
    grants: tuple[Grant, ...] | None = None
    voucher: Voucher | None = None

    def is_granted(self, needed: Iterable[Access]) -> bool:
        """Return whether the credentials are good for all rights in `needed`; what rules say is another question."""
        grants = self.grants
        return grants is None or all(any(grant.covers(access) for grant in grants) for access in needed)


class Trail:
    """What was decided about one operation on its way inwards. The only thing that is written to: observers read it.

    Attributes:
        caller: who asks, as soon as that is known.
        rule: what allowed or refused it, as a configuration names it; empty if nothing had to.
    """

    __slots__ = ("caller", "rule")

    def __init__(self) -> None:
        """Begin with nothing decided."""
        self.caller: Caller = ANONYMOUS
        self.rule: str = ""


INSIDE: Origin = Origin()
ANONYMOUS: Caller = Caller()


class Body(Protocol):
    """The bytes that come with an operation, read once.

    `length` is how many are announced, None if nobody said. Reading raises `ClientLeft` when the sender goes away or
    ends before that.
    """

    length: int | None

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the bytes in pieces of any size."""
        ...


@runtime_checkable
class QuickBody(Body, Protocol):
    """A body that may also be taken in a thread, where a turn of the event loop for each piece costs more than its bytes.

    Who puts a body of its own around one passes this on, if it can do its work in a thread.
    """

    async def take_quickly(self, take: Callable[[bytes], None], /) -> int:
        """Have `take` called, in a thread, with what comes next, as long as it comes quickly; return how many bytes.

        None come so where the server cannot do this, a client is slow, or the body has ended: iterating goes on, and tells.
        What `take` raises is raised, and then nothing is read any more. A stretch is bounded and ends when `take` returns,
        also for who is cancelled meanwhile.
        """
        ...


class Operation(msgspec.Struct, Generic[R_co], frozen=True, kw_only=True):
    """One thing that a client asks for; the type argument is what it is answered with.

    Attributes:
        origin: where it came from.
        caller: who asks; set by the authentication.
        trail: where decisions about it are written down; None if nobody will read them.
    """

    origin: Origin = INSIDE
    caller: Caller = ANONYMOUS
    trail: Trail | None = None

    @property
    def access(self) -> tuple[Access, ...]:
        """The rights one must have for it."""
        raise NotImplementedError


class _RepositoryOperation(Operation[R_co], frozen=True, kw_only=True):
    repository: RepositoryName


class _PullOperation(_RepositoryOperation[R_co], frozen=True, kw_only=True):
    @property
    def access(self) -> tuple[Access, ...]:
        return (Access(self.repository, "pull"),)


class _PushOperation(_RepositoryOperation[R_co], frozen=True, kw_only=True):
    @property
    def access(self) -> tuple[Access, ...]:
        return (Access(self.repository, "pull"), Access(self.repository, "push"))


class _DeleteOperation(_RepositoryOperation[R_co], frozen=True, kw_only=True):
    @property
    def access(self) -> tuple[Access, ...]:
        return (Access(self.repository, "delete"),)


class Handler(Protocol):
    """Whatever answers operations."""

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`, or raise a `RegistryError`."""
        ...


# ---- replies


class Pong(msgspec.Struct, frozen=True):
    """The registry is there and speaks this API."""


OpenBlob = Callable[[int, int | None], AbstractAsyncContextManager[Reader]]


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """A blob that is not open yet.

    `open(start, stop)` opens a range of it. `url(client_address)` asks the store for a URL from which a client may
    fetch it itself, or None where it has none.
    """

    descriptor: Descriptor
    open: OpenBlob
    url: Callable[[str], Awaitable[str | None]]


class BlobPushed(msgspec.Struct, frozen=True, kw_only=True):
    """The blob is in the repository, durably."""

    repository: RepositoryName
    digest: Digest


class UploadOpened(msgspec.Struct, frozen=True, kw_only=True):
    """An upload session is open; `chunk_minimum` is the least bytes that a chunk but the last should have."""

    repository: RepositoryName
    upload_id: str
    chunk_minimum: int = 0


class UploadProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Where an upload session stands: `offset` bytes are acknowledged."""

    repository: RepositoryName
    upload_id: str
    offset: int


class UploadCount(msgspec.Struct, frozen=True):
    """How many upload sessions are open in a repository, as far as was counted."""

    count: int


class UploadCancelled(msgspec.Struct, frozen=True):
    """The session and its bytes are gone."""

    upload_id: str


class ManifestPushed(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest is in the repository, durably.

    `tags` are those that now mean it; `warnings` are sentences for the client's user.
    """

    repository: RepositoryName
    descriptor: Descriptor
    reference: Reference
    subject: Digest | None = None
    tags: tuple[Tag, ...] = ()
    warnings: tuple[str, ...] = ()


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """It is gone; `tags` are those that went with it, `warnings` are sentences for the client's user."""

    tags: tuple[Tag, ...] = ()
    warnings: tuple[str, ...] = ()


class TagList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a repository's tags in byte order; `more` says whether some follow."""

    repository: RepositoryName
    tags: tuple[Tag, ...]
    more: bool


class RepositoryList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the repositories in byte order; `more` says whether some follow."""

    repositories: tuple[RepositoryName, ...]
    more: bool


class ReferrerList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a subject's referrers in order of digest; `more` says whether some follow."""

    referrers: tuple[Descriptor, ...]
    more: bool
    last: Digest | None


class IssuedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token that proves who asks, and what for.

    Attributes:
        token: what a client sends as `Bearer`.
        issued_at: Unix time in seconds.
        expires_in: seconds.
        scopes: what it is good for, as `repository:<name>:<action>,...`.
        refresh_token: gets further tokens without a password; None if none was asked for.
    """

    token: str
    issued_at: int
    expires_in: int
    scopes: tuple[str, ...] = ()
    refresh_token: str | None = None

    def __repr__(self) -> str:
        """Return a text without the secrets."""
        return f"IssuedToken(scopes={self.scopes!r}, ...)"


class PublishedKeys(msgspec.Struct, frozen=True):
    """The public keys that tokens of this registry can be verified with: a JWK Set (RFC 7517), as JSON."""

    data: bytes


# ---- operations


class Ping(Operation[Pong], frozen=True, kw_only=True):
    """Is this a registry, and may the caller use it at all? (end-1)."""

    @property
    def access(self) -> tuple[Access, ...]:
        """No right in particular."""
        return ()


class PullManifest(_PullOperation[Manifest], frozen=True, kw_only=True):
    """The manifest of a tag or digest (end-3)."""

    reference: Reference


class PullBlob(_PullOperation[Blob], frozen=True, kw_only=True):
    """A blob by digest (end-2)."""

    digest: Digest


class TagCondition(msgspec.Struct, frozen=True, kw_only=True):
    """Which tags are fixed: what such a tag means, it goes on to mean.

    It is enforced in the very moment of a write or delete: `TagFixed` where it does not hold. For a tag that means
    nothing it always holds.

    Attributes:
        tags: patterns of the tags that are fixed; without any all are.
        but: patterns of tags that are not, although `tags` has them.
        also: what somebody else wants fixed too.
    """

    tags: tuple[Glob, ...] = ()
    but: tuple[Glob, ...] = ()
    also: "TagCondition | None" = None

    def fixes(self, tag: str) -> bool:
        """Return whether `tag` is one of the fixed ones."""
        named = not self.tags or any(pattern.matches(tag) for pattern in self.tags)
        if named and not any(pattern.matches(tag) for pattern in self.but):
            return True
        return self.also is not None and self.also.fixes(tag)


class Match(msgspec.Struct, frozen=True):
    """A list of entity tags, as in `If-Match`: digests, or any (`*`)."""

    digests: frozenset[str] = frozenset()
    any: bool = False

    def matches(self, current: Digest | None) -> bool:
        """Return whether `current`, None for nothing, is one of them."""
        return current is not None and (self.any or current in self.digests)


class PushManifest(_PushOperation[ManifestPushed], frozen=True, kw_only=True):
    """Put a manifest into a repository, under its digest and perhaps tags (end-7).

    Attributes:
        reference: what it is pushed as.
        media_type: what it is pushed as, without parameters.
        data: its bytes; they are stored as they are.
        tags: further tags to write (end-7b). Several tags are not one transaction.
        if_match: what `reference` must mean now.
        if_none_match: what `reference` must not mean now.
        tag_condition: which of the tags that are written may only be new, or mean this digest already.
        unchecked: skip the rules and the look for missing references. For mirrors and copies inside the process;
            no route ever sets it.
    """

    reference: Reference
    media_type: str
    data: bytes
    tags: tuple[Tag, ...] = ()
    if_match: Match | None = None
    if_none_match: Match | None = None
    tag_condition: TagCondition | None = None
    unchecked: bool = False

    @property
    def written_tags(self) -> tuple[Tag, ...]:
        """All tags that it writes, each once."""
        reference = self.reference
        return tuple(dict.fromkeys((reference, *self.tags) if isinstance(reference, Tag) else self.tags))


class DeleteTag(_DeleteOperation[Deleted], frozen=True, kw_only=True):
    """Make a tag mean nothing (end-9), unless `tag_condition` fixes it."""

    tag: Tag
    if_match: Match | None = None
    tag_condition: TagCondition | None = None


class DeleteManifest(_DeleteOperation[Deleted], frozen=True, kw_only=True):
    """Take a manifest, and every tag that means it, out of a repository (end-9).

    Not if `tag_condition` fixes one of these tags.
    """

    digest: Digest
    if_match: Match | None = None
    tag_condition: TagCondition | None = None


class DeleteBlob(_DeleteOperation[Deleted], frozen=True, kw_only=True):
    """Take a blob out of a repository (end-10)."""

    digest: Digest


class OpenUpload(_PushOperation[UploadOpened], frozen=True, kw_only=True):
    """Begin to push a blob (end-4a, end-4c).

    `digest` is what the client says it will commit, `algorithm` what it will be hashed with; both only help.
    """

    digest: Digest | None = None
    algorithm: str | None = None


class PushBlob(_PushOperation[BlobPushed], frozen=True, kw_only=True):
    """Push a blob in one request (end-4b)."""

    digest: Digest
    body: Body


class MountBlob(_RepositoryOperation[BlobPushed | UploadOpened], frozen=True, kw_only=True):
    """Take a blob over from another repository, or from any where `source` is None (end-11).

    Where that cannot be, an upload session is opened instead. Where `source` is None, `may_pull` says from which
    repositories it may be taken; None means from every one.
    """

    digest: Digest
    source: RepositoryName | None = None
    may_pull: Callable[[RepositoryName], bool] | None = None

    def only_from(self, may_pull: Callable[[RepositoryName], bool]) -> Self:
        """Return the same mount, from repositories only that `may_pull` allows too."""
        others = self.may_pull

        def both(name: RepositoryName) -> bool:
            return (others is None or others(name)) and may_pull(name)

        return msgspec.structs.replace(self, may_pull=both)

    @property
    def access(self) -> tuple[Access, ...]:
        """Push here, pull there."""
        here = (Access(self.repository, "pull"), Access(self.repository, "push"))
        return here if self.source is None else (*here, Access(self.source, "pull"))


class StatUpload(_PullOperation[UploadProgress], frozen=True, kw_only=True):
    """Where does this upload stand? (end-13). Clients ask it with a right to pull only."""

    upload_id: str


class AppendUpload(_PushOperation[UploadProgress], frozen=True, kw_only=True):
    """Send on a blob (end-5).

    `start` is where the client believes the upload to stand, None to append wherever that is; `length` is how many
    bytes its range names, None if it named none.
    """

    upload_id: str
    body: Body
    start: int | None = None
    length: int | None = None


class CommitUpload(_PushOperation[BlobPushed], frozen=True, kw_only=True):
    """Send the rest of a blob, perhaps nothing, and make it visible under its digest (end-6)."""

    upload_id: str
    digest: Digest
    body: Body
    start: int | None = None
    length: int | None = None


class CancelUpload(_PushOperation[UploadCancelled], frozen=True, kw_only=True):
    """Give an upload up (end-14)."""

    upload_id: str


class CountUploads(_PushOperation[UploadCount], frozen=True, kw_only=True):
    """How many uploads are open in a repository? Counted up to `limit`. For middleware; no route ever makes it."""

    limit: int


class ListTags(_PullOperation[TagList], frozen=True, kw_only=True):
    """The tags of a repository that come after `after`, up to `limit` (end-8)."""

    after: str = ""
    limit: int = 1000


class ListReferrers(_PullOperation[ReferrerList], frozen=True, kw_only=True):
    """Manifests whose subject is `subject` (end-12), after `after` in order of digest, up to `limit`."""

    subject: Digest
    artifact_type: str | None = None
    after: str = ""
    limit: int = 1000


class ListRepositories(Operation[RepositoryList], frozen=True, kw_only=True):
    """The names of all repositories that come after `after`, up to `limit` (distribution's `_catalog`)."""

    after: str = ""
    limit: int = 1000

    @property
    def access(self) -> tuple[Access, ...]:
        """To see the catalog."""
        return (Access(None, "catalog"),)


class CheckAccess(Operation[Pong], frozen=True, kw_only=True):
    """May the caller do what needs these rights? Refused as the operation itself would be; nothing is done."""

    needed: tuple[Access, ...]

    @property
    def access(self) -> tuple[Access, ...]:
        """The rights that are asked about."""
        return self.needed


class IssueToken(Operation[IssuedToken], frozen=True, kw_only=True):
    """A token for the caller (the token server of distribution's protocol).

    Attributes:
        service: which service the token is for.
        scopes: what it shall be good for, as `repository:<name>:<action>,...`; it may get less.
        offline: whether a refresh token is wanted too.
        client_id: what the client calls itself.
    """

    service: str
    scopes: tuple[str, ...] = ()
    offline: bool = False
    client_id: str = ""

    @property
    def access(self) -> tuple[Access, ...]:
        """No right in particular: the token gets what the caller has."""
        return ()


class PublishKeys(Operation[PublishedKeys], frozen=True, kw_only=True):
    """The public keys of this registry's tokens. Anybody may know them."""

    @property
    def access(self) -> tuple[Access, ...]:
        """No right in particular."""
        return ()

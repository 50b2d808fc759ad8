"""How much one client may ask for, and how much one upload may hold.

Rules this file keeps:

- Each worker process counts for itself: what is bounded is what a client can do to a process, which is what its other
  clients would notice. A client whose connections reach several workers may get as much from each.
- What is counted is bounded itself: the counts of the least recently seen are forgotten first, and they are full again.
- A place among uploads is held while bytes are taken in, and given back however that ends.
"""

import ipaddress
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from functools import lru_cache
from typing import Annotated, ClassVar, Self, cast

import msgspec
import trio

from moorage import (
    AppendUpload,
    Body,
    CancelUpload,
    CommitUpload,
    CountUploads,
    Handler,
    ManifestTooLarge,
    MiddlewareFactory,
    MountBlob,
    OpenUpload,
    Operation,
    PublishKeys,
    PushBlob,
    PushManifest,
    QuickBody,
    R,
    RegistryError,
    RepositoryName,
    StatUpload,
    TooManyRequests,
    hookimpl,
)

from ._remembered import Remembered
from .size_limits import Size

_REMEMBERED = 50_000
_REPOSITORIES_REMEMBERED = 10_000
_UPLOADS_RETRY = 5.0
_OPEN_UPLOADS_RETRY = 60.0
_UNSEEN_AT_FIRST = 1000
_LOOKS = 64
_IPV6_HOST_BITS = 64

_SENDING = frozenset({PushBlob, AppendUpload, CommitUpload})
_SIZED = _SENDING | {PushManifest, OpenUpload, MountBlob}

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Network(str):
    """An address, or a network in the notation `10.0.0.0/8`."""

    __slots__ = ()
    setting_schema: ClassVar[dict[str, object]] = {"type": "string"}

    @classmethod
    def from_setting(cls, value: object) -> Self:
        """Return the network that a configuration holds.

        Raises:
            ValueError: it is none; says what is allowed.
        """
        try:
            return cls(ipaddress.ip_network(str(value), strict=False))
        except ValueError:
            raise ValueError("an IP address or a network such as 10.0.0.0/8") from None


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each one may ask for; what is not given is not limited.

    Attributes:
        rate: requests a second, on average.
        burst: requests at once, after a while without any; without it, what `rate` gives in ten seconds.
        uploads: requests at once that send bytes of blobs.
    """

    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None
    burst: Positive | None = None
    uploads: Positive | None = None

    def __post_init__(self) -> None:
        """Refuse a burst of no rate.

        Raises:
            ValueError: there is one.
        """
        if self.burst is not None and self.rate is None:
            raise ValueError("burst stands alone; allowed is beside rate")

    @property
    def at_once(self) -> float:
        """How many requests may come at once."""
        return self.burst or max(10 * (self.rate or 0), 1)


class AddressBudget(Budget, frozen=True, forbid_unknown_fields=True):
    """What each network address may ask for, an IPv6 network of 64 bits counting as one.

    Attributes:
        exempt: addresses and networks that are not limited.
    """

    exempt: tuple[Network, ...] = ()


class UserBudget(Budget, frozen=True, forbid_unknown_fields=True):
    """What each user may ask for; who has no name is not counted here.

    Attributes:
        exempt: names of users that are not limited.
    """

    exempt: tuple[str, ...] = ()


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename=lambda name: name.replace("_", "")):
    """Options of `limits: {...}`.

    Attributes:
        address: what each address may ask for.
        user: what each user may ask for.
        max_blob_size: the most bytes of a blob.
        max_manifest_size: the most bytes of a manifest.
        max_open_uploads: the most uploads that may be open in a repository; 0 for any number.
    """

    address: AddressBudget = AddressBudget()
    user: UserBudget = UserBudget()
    max_blob_size: Size | None = None
    max_manifest_size: Size | None = None
    max_open_uploads: Annotated[int, msgspec.Meta(ge=0)] = 10_000


class BlobTooLarge(RegistryError):
    """The blob has more bytes than the registry takes."""

    code = "SIZE_INVALID"
    status = 413


class Counts:
    """Token buckets and places among uploads, by whom they are for."""

    def __init__(self, budget: Budget, whose: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Give everybody `budget`; `whose` says in a refusal who asked too much."""
        self._budget = budget
        self._whose = whose
        self._clock = clock
        self._buckets: Remembered[str, tuple[float, float]] = Remembered(most=_REMEMBERED)
        self._uploads: Counter[str] = Counter()

    def take(self, key: str) -> None:
        """Count one request.

        Raises:
            TooManyRequests: it is one too many.
        """
        rate = self._budget.rate
        if rate is None:
            return
        now = self._clock()
        left, at = self._buckets.get(key) or (self._budget.at_once, now)
        left = min(left + (now - at) * rate, self._budget.at_once)
        enough = left >= 1
        self._buckets.put(key, (left - 1 if enough else left, now))
        if not enough:
            sentence = f"too many requests of this {self._whose}: {rate:g} a second are answered"
            raise TooManyRequests(sentence, retry_after=(1 - left) / rate)

    @contextmanager
    def upload(self, key: str) -> Generator[None]:
        """Hold a place among uploads.

        Raises:
            TooManyRequests: there is none left.
        """
        most = self._budget.uploads
        if most is None:
            yield
            return
        if self._uploads[key] >= most:
            sentence = f"too many uploads of this {self._whose} at once: {most} are taken"
            raise TooManyRequests(sentence, retry_after=_UPLOADS_RETRY)
        self._uploads[key] += 1
        try:
            yield
        finally:
            self._uploads[key] -= 1
            if not self._uploads[key]:
                del self._uploads[key]


class Budgeted:
    """Answers what is within the budget of whom it is for."""

    def __init__(self, inner: Handler, counts: Counts, key: Callable[[Operation[object]], str | None]) -> None:
        """Pass on to `inner`; `key` says for whom an operation counts, None for nobody."""
        self._inner = inner
        self._counts = counts
        self._key = key

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`.

        Raises:
            TooManyRequests: it is beyond the budget.
        """
        key = self._key(operation)
        if key is None:
            return await self._inner(operation)
        self._counts.take(key)
        held = self._counts.upload(key) if type(operation) in _SENDING else nullcontext()
        with held:
            return await self._inner(operation)


def by_address(exempt: tuple[Network, ...]) -> Callable[[Operation[object]], str | None]:
    """Return what says for which address an operation counts: none inside the process, and none that is exempt."""
    networks = tuple(ipaddress.ip_network(each) for each in exempt)

    @lru_cache(4096)
    def key(address: str) -> str | None:
        return _address_key(address, networks)

    def of(operation: Operation[object]) -> str | None:
        address = operation.origin.address
        return key(address) if address else None

    return of


def _address_key(text: str, exempt: tuple[_Network, ...]) -> str | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text  # whatever a socket is called
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if any(address in network for network in exempt):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _IPV6_HOST_BITS), strict=False))
    return str(address)


def by_user(exempt: tuple[str, ...]) -> Callable[[Operation[object]], str | None]:
    """Return what says for which user an operation counts."""

    def of(operation: Operation[object]) -> str | None:
        name = operation.caller.name
        # The keys are asked for without anybody being asked who they are.
        return None if not name or name in exempt or isinstance(operation, PublishKeys) else name

    return of


class _Counted:
    """A body that may have so many bytes and no more."""

    def __init__(self, body: Body, left: int, most: int) -> None:
        self.length = body.length
        self._body = body
        self._pieces = aiter(body)
        self._left = left
        self._most = most

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await anext(self._pieces)
        self._count(piece)
        return piece

    async def take_quickly(self, take: Callable[[bytes], None]) -> int:
        """Have `take` called in a thread, by a body that can do that."""
        if not isinstance(self._body, QuickBody):
            return 0

        def counted(data: bytes) -> None:
            self._count(data)
            take(data)

        return await self._body.take_quickly(counted)

    def _count(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._most)


def _too_large(most: int) -> BlobTooLarge:
    return BlobTooLarge(f"a blob has at most {most} bytes here", detail={"maximum": most})


class Sizes:
    """Answers what stays within sizes, and within the number of uploads that a repository may have open."""

    def __init__(self, options: Limits, inner: Handler) -> None:
        """Pass on to `inner` what `options` allow."""
        self._options = options
        self._inner = inner
        self._unseen: Remembered[RepositoryName, int] = Remembered(most=_REPOSITORIES_REMEMBERED)
        self._looks = [trio.Lock() for _ in range(_LOOKS)]

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`.

        Raises:
            BlobTooLarge, ManifestTooLarge: it is larger than allowed.
            TooManyRequests: too many uploads are open in this repository.
        """
        if type(operation) not in _SIZED:
            return await self._inner(operation)
        # Each is answered by a reply of its own kind.
        return cast("R", await self._answered(operation))

    async def _answered(self, operation: Operation[object]) -> object:
        options = self._options
        match operation:
            case PushManifest() if options.max_manifest_size is not None:
                if len(operation.data) > options.max_manifest_size:
                    raise ManifestTooLarge(f"a manifest has at most {options.max_manifest_size} bytes here")
            case OpenUpload() | MountBlob() if options.max_open_uploads:
                return await self._opened(operation, options.max_open_uploads)
            case PushBlob() | AppendUpload() | CommitUpload() if options.max_blob_size is not None:
                return await self._bounded(operation, options.max_blob_size)
            case _:
                pass
        return await self._inner(operation)

    async def _bounded(self, operation: PushBlob | AppendUpload | CommitUpload, most: int) -> object:
        left = most - await self._received(operation)
        length = operation.body.length
        try:
            if left < 0 or (length is not None and length > left):
                raise _too_large(most)
            bounded: Operation[object] = msgspec.structs.replace(operation, body=_Counted(operation.body, left, most))
            return await self._inner(bounded)
        except BlobTooLarge:
            if not isinstance(operation, PushBlob):
                # Nothing can become of it, so its bytes need not wait until it is old.
                cancel = CancelUpload(
                    origin=operation.origin,
                    caller=operation.caller,
                    repository=operation.repository,
                    upload_id=operation.upload_id,
                )
                with suppress(RegistryError):
                    await self._inner(cancel)
            raise

    async def _received(self, operation: PushBlob | AppendUpload | CommitUpload) -> int:
        """Return how many bytes of the blob are here already."""
        if isinstance(operation, PushBlob) or (isinstance(operation, CommitUpload) and operation.body.length == 0):
            return 0
        if operation.start is not None:
            # If it is not true, the upload refuses the request.
            return operation.start
        where = StatUpload(
            origin=operation.origin,
            caller=operation.caller,
            repository=operation.repository,
            upload_id=operation.upload_id,
        )
        return (await self._inner(where)).offset

    async def _opened(self, operation: OpenUpload | MountBlob, most: int) -> object:
        """Open an upload, after a look at how many are open; that is had as seldom as the room that is left allows.

        After each look an eighth of the room is given away unseen, so that even eight workers which look at the same
        moment stay within it. Before the first one little is, so that what few push costs no look.
        """
        asked: Operation[object] = operation
        repository = operation.repository
        unseen = self._unseen.get(repository)
        if unseen is None:
            unseen = most // _UNSEEN_AT_FIRST
        if unseen:
            self._unseen.put(repository, unseen - 1)
            return await self._inner(asked)
        # Who looks next has to see what this one opens.
        async with self._looks[hash(repository) % _LOOKS]:
            asks = CountUploads(origin=operation.origin, caller=operation.caller, repository=repository, limit=most)
            count = (await self._inner(asks)).count
            if count >= most:
                raise TooManyRequests(
                    f"{most} uploads are open in this repository; those that nobody finishes are removed after a while",
                    retry_after=_OPEN_UPLOADS_RETRY,
                )
            self._unseen.put(repository, max((most - count) // 8, 1) - 1)
            return await self._inner(asked)


@asynccontextmanager
async def _open_address(options: Limits, inner: Handler) -> AsyncGenerator[Handler]:
    budget = options.address
    limited = budget.rate is not None or budget.uploads is not None
    yield Budgeted(inner, Counts(budget, "address"), by_address(budget.exempt)) if limited else inner


@asynccontextmanager
async def _open_user(options: Limits, inner: Handler) -> AsyncGenerator[Handler]:
    budget = options.user
    limited = budget.rate is not None or budget.uploads is not None
    yield Budgeted(inner, Counts(budget, "user"), by_user(budget.exempt)) if limited else inner


@asynccontextmanager
async def _open_sizes(options: Limits, inner: Handler) -> AsyncGenerator[Handler]:
    yield Sizes(options, inner)


@hookimpl
def register_middleware() -> Mapping[str, object]:
    """Offer the limits, each at its place."""
    return {
        "limits_by_address": MiddlewareFactory(Limits, _open_address, section="limits", place="gate"),
        "limits_by_user": MiddlewareFactory(Limits, _open_user, section="limits", place="caller"),
        "limits": MiddlewareFactory(Limits, _open_sizes, section="limits", always=True),
    }

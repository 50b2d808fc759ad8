"""What the layer `cache` remembers in Redis, or what speaks its protocol: one node, Sentinel, or a cluster.

For each key of the store there is one key in Redis, `moorage:<store>:<key>`, with a time to live: a `V` and what is
remembered, or an `F` and a random text since the key was forgotten. An answer is put in only where that is as it was
before the store was asked, in one step on Redis's side. Distribution's own keys are left alone: what it keeps there it
never lets run out, and it mixes blobs and manifests.
"""

import logging
import secrets
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

import coredis
import trio
from coredis.connection import TCPLocation
from coredis.exceptions import ConnectionError as RedisConnectionError, RedisError
from coredis.retry import ConstantRetryPolicy

from moorage import ConfigurationError, RedisSettings, open_helpers

from ._cache import Answers, Ticket

_log = logging.getLogger("moorage.cache")

T = TypeVar("T")

_FORGOTTEN_SECONDS: Final = 600
"""Longer than anybody waits for an answer of the store."""
_PAUSE_SECONDS: Final = 5.0
_DIAL_SECONDS: Final = 5.0
_READ_SECONDS: Final = 3.0
_PORT: Final = 6379

_FILL: Final = """
if (redis.call('GET', KEYS[1]) or '') == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
"""

_WITHOUT_EFFECT: Final = (
    "protocol", "min_retry_backoff", "max_retry_backoff", "write_timeout", "context_timeout_enabled", "pool_fifo",
    "min_idle_conns", "max_idle_conns", "conn_max_lifetime", "max_redirects", "route_by_latency", "route_randomly",
    "disable_identity", "identity_suffix", "unstable_resp3",
)  # fmt: skip

# coredis's clients are generic in what they decode; of bytes it is nothing.
_Client = Any


class AnswersInRedis(Answers):
    """What all who share a Redis remember of a store. A Redis that does not answer remembers nothing."""

    def __init__(self, name: Callable[[], Awaitable[str]], place: str, *, seconds: float) -> None:
        """Remember answers of the store that `name` names for `seconds`; `place` says in the log where."""
        self._name = name
        self._prefix = ""
        self._naming = trio.Lock()
        self._place = place
        self._milliseconds = max(1, int(seconds * 1000))
        self._client: _Client | None = None
        self._answers_again_at = 0.0
        self._failing = False

    async def find(self, key: str) -> bytes | Ticket:
        """Return what is remembered of `key`, or a ticket.

        Raises:
            DriverError: the store could not be asked for its name.
        """
        if trio.current_time() < self._answers_again_at:
            await trio.lowlevel.checkpoint()
            return Ticket(None)
        at = await self._at(key)
        reached, found = await self._ask(lambda client: client.get(at))
        if not reached:
            return Ticket(None)
        known = bytes(found or b"")
        return known[1:] if known[:1] == b"V" else Ticket(known)

    async def fill(self, key: str, answer: bytes, ticket: Ticket) -> None:
        """Remember `answer`, unless `key` was forgotten since."""
        if not isinstance(ticket.known, bytes):
            await trio.lowlevel.checkpoint()
            return
        arguments = [ticket.known, b"V" + answer, self._milliseconds]
        at = await self._at(key)
        await self._ask(lambda client: client.eval(_FILL, keys=[at], args=arguments))

    async def forget(self, *keys: str) -> None:
        """Forget what is remembered of `keys`; where Redis does not answer, it may remember it until it runs out.

        Raises:
            DriverError: the store could not be asked for its name.
        """
        for key in keys:
            await self._ask(partial(self._mark_forgotten, await self._at(key)))

    async def _at(self, key: str) -> str:
        """Return under which of Redis's keys `key` is."""
        if not self._prefix:
            async with self._naming:
                if not self._prefix:
                    self._prefix = f"moorage:{await self._name()}:"
        return self._prefix + key

    @staticmethod
    async def _mark_forgotten(at: str, client: _Client) -> None:
        await client.set(at, b"F" + secrets.token_bytes(12), ex=_FORGOTTEN_SECONDS)

    async def _ask(self, ask: Callable[[_Client], Awaitable[T]]) -> tuple[bool, T | None]:
        """Return whether Redis answered, and what."""
        if self._client is None:
            await trio.lowlevel.checkpoint()
            return False, None
        try:
            answer = await ask(self._client)
        except (RedisError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.failed(error)
            return False, None
        self.answered()
        return True, answer

    def failed(self, error: Exception) -> None:
        """Say once that Redis does not answer, and leave it alone for a while."""
        self._answers_again_at = trio.current_time() + _PAUSE_SECONDS
        if not self._failing:
            self._failing = True
            _log.warning("Redis at %s does not answer, so the store is asked each time: %s", self._place, error)

    def answered(self) -> None:
        """Say once that Redis answers again."""
        self._answers_again_at = 0.0
        if self._failing:
            self._failing = False
            _log.info("Redis at %s answers again", self._place)

    async def keep_client(self, open_client: Callable[[], AbstractAsyncContextManager[_Client]]) -> None:
        """Have a client for as long as this is not cancelled; where it cannot be opened, try again after a while."""
        while True:
            try:
                async with open_client() as client:
                    self._client = client
                    # What is wrong with it, a password for one, is told at once and not with the first request.
                    await self._ask(lambda client: client.ping())
                    await trio.sleep_forever()
            except Exception as error:  # noqa: BLE001 - the edge of a task: a cache that is not there ends no registry
                self.failed(error)
            finally:
                self._client = None
            await trio.sleep(_PAUSE_SECONDS)


@asynccontextmanager
async def open_answers_in_redis(
    settings: RedisSettings, name: Callable[[], Awaitable[str]], *, seconds: float
) -> AsyncGenerator[AnswersInRedis]:
    """Remember answers of the store that `name` names for `seconds` in the Redis that `settings` lead to.

    Raises:
        ConfigurationError: a setting cannot work.
    """
    open_client = _opener(settings)
    for field in _WITHOUT_EFFECT:
        if getattr(settings, field) != getattr(RedisSettings(), field):
            _log.warning("redis.%s has no effect", field.replace("_", ""))
    # It logs each connection that could not be made with a traceback; what matters of it is said above.
    logging.getLogger("coredis").setLevel(logging.CRITICAL)
    answers = AnswersInRedis(name, ", ".join(settings.addrs), seconds=seconds)
    async with open_helpers() as nursery:
        nursery.start_soon(answers.keep_client, open_client)
        yield answers


def _opener(settings: RedisSettings) -> Callable[[], AbstractAsyncContextManager[_Client]]:
    """Return what opens the client of the kind that `settings` ask for: as go-redis decides it."""
    retries = 1 if settings.max_retries is None else max(0, settings.max_retries)
    common: dict[str, Any] = {
        "username": settings.username or None,
        "password": settings.password or None,
        "stream_timeout": _positive(settings.read_timeout, _READ_SECONDS),
        "connect_timeout": _positive(settings.dial_timeout, _DIAL_SECONDS),
        "ssl_context": _tls(settings),
        "max_connections": settings.max_active_conns or settings.pool_size or 32,
        "retry_policy": ConstantRetryPolicy((RedisConnectionError,), retries, delay=0),
    }
    pool_seconds = _positive(settings.pool_timeout, common["stream_timeout"] + 1)
    places = [_place(address) for address in settings.addrs if not address.startswith("/")]
    if settings.master_name:
        return lambda: _sentinel(settings, places, common)
    if len(places) > 1:
        return lambda: coredis.RedisCluster(
            startup_nodes=places, read_from_replicas=settings.read_only, pool_timeout=pool_seconds, **common
        )
    if settings.addrs[0].startswith("/"):
        where: dict[str, Any] = {"unix_socket_path": settings.addrs[0]}
    else:
        where = {"host": places[0].host, "port": places[0].port}
    idle = int(settings.conn_max_idle_time or 0) or None
    return lambda: coredis.Redis(
        **where, db=settings.db, client_name=settings.client_name or None, max_idle_time=idle,
        pool_timeout=pool_seconds, **common,
    )  # fmt: skip


@asynccontextmanager
async def _sentinel(
    settings: RedisSettings, places: list[TCPLocation], common: dict[str, Any]
) -> AsyncGenerator[_Client]:
    """Open a client of the node that the sentinels at `places` call the primary."""
    theirs = {
        "username": settings.sentinel_username or None,
        "password": settings.sentinel_password or None,
        "stream_timeout": common["stream_timeout"],
        "connect_timeout": common["connect_timeout"],
        "ssl_context": common["ssl_context"],
    }
    retry = common["retry_policy"]
    ours = {name: value for name, value in common.items() if name != "retry_policy"}
    async with (
        coredis.Sentinel(places, sentinel_kwargs=theirs, retry_policy=retry) as sentinel,
        sentinel.primary_for(settings.master_name, db=settings.db, **ours) as client,
    ):
        yield client


def _place(address: str) -> TCPLocation:
    """Return host and port of an address such as `redis:6379` or `[::1]:6379`.

    Raises:
        ConfigurationError: it is none.
    """
    host, colon, port = address.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        host, port = address, str(_PORT)
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 1 << 16 or not host:
        raise ConfigurationError(f"redis.addrs: {address!r} is not host:port")
    return TCPLocation(host.strip("[]"), int(port))


def _positive(seconds: float | None, otherwise: float) -> float:
    return seconds if seconds is not None and seconds > 0 else otherwise


def _tls(settings: RedisSettings) -> ssl.SSLContext | None:
    """Return how the connection is encrypted, or None where it is not.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    tls = settings.tls
    if not (tls.certificate or tls.key or tls.root_cas or tls.enabled):
        return None
    if tls.enabled is False:
        raise ConfigurationError("redis.tls.enabled: false, and there are certificates beside it")
    if bool(tls.certificate) != bool(tls.key):
        raise ConfigurationError("redis.tls: certificate and key go together")
    context = ssl.create_default_context()
    path = ""
    try:
        for path in tls.root_cas:
            context.load_verify_locations(path)
        path = tls.certificate
        if path:
            context.load_cert_chain(path, tls.key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(f"redis.tls: {path}: {reason}") from None
    return context

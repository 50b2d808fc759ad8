"""Keys of a token server, fetched from it now and then.

While they cannot be had, those that are known go on to count, and the log says so once. A token with a key that is not
known makes them be fetched at once, but not more often than every few seconds: anybody can send such a token.
"""

import logging
from collections.abc import Awaitable, Callable

import trio
from joserfc.jwk import Key

from moorage import Unavailable

from ._jose import Keys

_log = logging.getLogger("moorage.auth")

_AT_MOST_EVERY = 10.0
_PATIENCE = 10.0
_LARGEST = 1 << 20
_AS_IT_IS = {"Accept": "application/json", "Accept-Encoding": "identity"}

Fetch = Callable[[], Awaitable[Keys]]


async def fetch(url: str) -> bytes:
    """Return what is at `url`.

    Raises:
        ValueError: it cannot be had; says why.
    """
    import httpx

    data = bytearray()
    try:
        with trio.fail_after(_PATIENCE):
            # Read by a thread: the authorities that are trusted are a file of a quarter of a megabyte.
            trusted = await trio.to_thread.run_sync(httpx.create_ssl_context)
            async with (
                httpx.AsyncClient(verify=trusted) as client,
                client.stream("GET", url, headers=_AS_IT_IS) as answer,
            ):
                if answer.status_code != 200:
                    raise ValueError(f"{url} answers with {answer.status_code}")
                async for piece in answer.aiter_raw():
                    # Read to its end, or the time's: what httpx reads by is not closed when it is left before.
                    if len(data) <= _LARGEST:
                        data += piece
    except trio.TooSlowError:
        raise ValueError(f"{url} does not answer within {_PATIENCE:g} s") from None
    except (httpx.HTTPError, OSError) as error:
        raise ValueError(f"{url} cannot be asked: {str(error) or type(error).__name__}") from None
    if len(data) > _LARGEST:
        raise ValueError(f"{url} answers with more than {_LARGEST} bytes")
    return bytes(data)


class FetchedKeys:
    """The keys that a server publishes."""

    def __init__(self, server: str, get: Fetch, every: float) -> None:
        """Have the keys of `server` by `get`, anew after `every` seconds; `run` does it."""
        self._server = server
        self._get = get
        self._every = every
        self._keys: Keys | None = None
        self._fetching = True
        self._began = 0.0
        self._wanted = trio.Event()
        self._ended = trio.Event()

    @property
    def known(self) -> Keys | None:
        """The keys as they were fetched last; None before that."""
        return self._keys

    async def key(self, identifier: str) -> Key | None:
        """Return a key, or None if the server has none of that name.

        Raises:
            Unavailable: nothing could be had from the server yet.
        """
        found = (self._keys or {}).get(identifier)
        if found is not None:
            return found
        if self._fetching or trio.current_time() >= self._began + _AT_MOST_EVERY:
            self._wanted.set()
            with trio.move_on_after(_PATIENCE):
                await self._ended.wait()
        if self._keys is None:
            raise Unavailable("the keys that tokens are verified with cannot be had", retry_after=_AT_MOST_EVERY)
        return self._keys.get(identifier)

    async def run(self) -> None:
        """Fetch the keys, now and again, without end."""
        told = ""
        while True:
            self._began = trio.current_time()
            self._fetching = True
            pause = self._every
            try:
                keys = await self._get()
                # Who sees other keys forgets whom it knew by the old ones.
                self._keys = self._keys if keys == self._keys else keys
                told = ""
            except Exception as error:  # noqa: BLE001 - whatever a server sends, the registry goes on
                pause = min(pause, _AT_MOST_EVERY)
                problem = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                if problem != told:
                    kept = "no token of it is taken" if self._keys is None else "those that are known go on to count"
                    _log.error("the keys of %s cannot be had, and %s: %s", self._server, kept, problem)
                told = problem
            self._fetching = False
            self._wanted = trio.Event()
            self._ended.set()
            self._ended = trio.Event()
            with trio.move_on_after(pause):
                await self._wanted.wait()

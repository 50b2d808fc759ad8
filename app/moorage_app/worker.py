"""One worker process: opens the registry and serves it with hypercorn until it is told to stop."""

import errno
import logging
import resource
import signal
from collections.abc import Callable, Mapping
from typing import ClassVar, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.trio import run as hypercorn_run
from hypercorn.trio.tcp_server import TCPServer

from moorage import Configuration, PluginManager, open_registry

from .asgi import Application, Settings, settings_headers
from .hooks import Route
from .http1 import LINGER_SECONDS, Connections, Http1
from .routes import Limits
from .transports import ClearText, OverStream, Transport

_log = logging.getLogger("moorage.worker")

_KEEP_ALIVE_SECONDS = 75
_HEAD_BYTES = 64 << 10
_OWN_PATHS = frozenset({"/", "/v2"})


def application_settings(configuration: Configuration) -> Settings:
    """Return how the application shall speak HTTP under `configuration`."""
    http = configuration.http
    return Settings(
        prefix=f"/{http.prefix.strip('/')}" if http.prefix.strip("/") else "",
        host=http.host,
        relative_urls=http.relative_urls is not False,
        headers=settings_headers(http.headers),
        limits=Limits(tags=configuration.tags.max_tags, repositories=configuration.catalog.max_entries),
        trusted_proxies=http.trusted_networks,
        access_log=not configuration.log.access_log.disabled,
        token_server="issuer" in configuration.auth.types,
    )


def plugin_routes(plugins: PluginManager) -> dict[str, Route]:
    """Return the routes that plugins offer, by path."""
    routes: dict[str, Route] = {}
    for offered in plugins.call("register_routes"):
        for path, route in cast("dict[object, object]", offered).items() if isinstance(offered, Mapping) else ():
            if not isinstance(path, str) or not path.startswith("/") or path in _OWN_PATHS or path.startswith("/v2/"):
                _log.error("a plugin's route %r is not taken: it must be a path that is not the registry's", path)
            elif not callable(route):
                _log.error("a plugin's route %s is not taken: there is no application behind it", path)
            else:
                routes[path] = cast("Route", route)
    return routes


class _StockConnection(TCPServer):
    """One connection. hypercorn's own is kept open until it would be idle for too long, though its client closed it."""

    _ended = False

    async def _read_data(self) -> None:
        await super()._read_data()
        self._ended = True
        await self.idle_task.stop()

    async def _idle_timeout(self) -> None:
        if not self._ended:
            await super()._idle_timeout()


class _Connection(_StockConnection):
    """One connection whose HTTP/1.1 is spoken by `http1`; HTTP/2, told by ALPN or its first bytes, is hypercorn's."""

    connections: ClassVar[Connections]
    """Those of this process; a class is made for each."""

    _received = b""

    async def run(self) -> None:
        """Serve the connection until either side is done with it."""
        # hypercorn names only one of the two.
        stream = cast("trio.SocketStream | trio.SSLStream[trio.SocketStream]", self.stream)
        transport: Transport
        try:
            if isinstance(stream, trio.SSLStream):
                with trio.fail_after(self.config.ssl_handshake_timeout):
                    await stream.do_handshake()
                if stream.selected_alpn_protocol() == "h2":
                    await super().run()
                    return
                transport, socket = OverStream(stream), stream.transport_stream.socket
            else:
                transport, socket = ClearText(stream), stream.socket
            client, server = _address(socket.getpeername()), _address(socket.getsockname())
        except (OSError, trio.BrokenResourceError, trio.TooSlowError):
            # It is gone already, or speaks no TLS.
            await trio.aclose_forcefully(stream)
            return
        scheme = "https" if isinstance(stream, trio.SSLStream) else "http"
        try:
            connection = Http1(self.connections, transport, scheme=scheme, client=client, server=server)
            received = await connection.serve()
        except Exception:  # noqa: BLE001 - the edge of a connection: a fault of ours there must not end all others
            _log.exception("a connection failed")
            await trio.aclose_forcefully(stream)
            return
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        if received is None:
            # TLS says good-bye, for which a client that reads nothing has no room; cut off, it is closed all the same.
            with trio.move_on_after(LINGER_SECONDS):
                await stream.aclose()
        else:
            self._received = received
            await super().run()

    async def _read_data(self) -> None:
        if self._received:
            await self.protocol.handle(RawData(self._received))
        await super()._read_data()


def _address(name: object) -> tuple[str, int] | None:
    """Return host and port of what the system says of one end of a socket; None for a socket that is a file."""
    return cast("tuple[str, int]", name[:2]) if isinstance(name, tuple) else None


async def serve_worker(
    configuration: Configuration, plugins: PluginManager, listeners: list[int], ready: Callable[[], None]
) -> None:
    """Serve on the listening descriptors `listeners`, which it closes, until SIGTERM, then drain.

    `ready` is called when connections are answered. Requests under way have `draintimeout` to end; what is sent after
    that is cut, what was received is kept.

    Raises:
        ConfigurationError: the registry cannot be opened.
    """
    _raise_descriptor_limit()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_registry(configuration, plugins) as opened:
            application = Application(opened.handler, application_settings(configuration), plugin_routes(plugins))
            stop = trio.Event()
            connections = Connections(application)
            own = type("Connection", (_Connection,), {"connections": connections})
            # The one seam: hypercorn's worker makes each connection from this name of its module.
            setattr(hypercorn_run, "TCPServer", _StockConnection if configuration.http.engine == "stock" else own)  # noqa: B010 - a name that holds a class, to type checkers

            async def wait_for_signal() -> None:
                async for _ in signals:
                    application.drain()
                    stop.set()
                    connections.drain()
                    return

            async def serve(*, task_status: trio.TaskStatus[list[str]]) -> None:
                config = _hypercorn(configuration.http.drain_timeout, listeners)
                await hypercorn_run.worker_serve(
                    ASGIWrapper(application), config, shutdown_trigger=stop.wait, task_status=task_status
                )
                nursery.cancel_scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_signal)
                nursery.start_soon(connections.watch)
                await nursery.start(serve)
                ready()


def _hypercorn(drain_seconds: float, listeners: list[int]) -> Config:
    config = Config()
    # hypercorn closes them when it drains; were another one open, connections would be taken that nobody answers.
    config.bind = [f"fd://{descriptor}" for descriptor in listeners]
    config.graceful_timeout = drain_seconds
    config.keep_alive_timeout = _KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = 1 << 62
    config.h11_max_incomplete_size = _HEAD_BYTES
    config.backlog = 1024
    config.include_server_header = False
    config.errorlog = logging.getLogger("moorage.server")
    config.errorlog.setLevel(logging.WARNING)
    return config


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as the system gives: each connection and each open blob is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:
            _log.debug("the descriptor limit stays at %d: %s", soft, errno.errorcode.get(getattr(error, "errno", 0)))

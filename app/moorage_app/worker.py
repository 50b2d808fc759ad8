"""One worker process: opens the registry and serves it with hypercorn until it is told to stop."""

import errno
import logging
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from typing import ClassVar, cast

import trio
from hypercorn import protocol as hypercorn_protocol
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ASGIReceiveCallable, ASGISendCallable, ConnectionState, Scope

from moorage import Configuration, PluginManager, open_registry

from .asgi import Application, Settings, settings_headers
from .hooks import Route
from .http1 import TLS_PEER, Connections, Http1
from .http2 import Http2, bound_heads
from .routes import Limits
from .shares import Share, SharedListener
from .tls import ServerTls
from .tls_stream import TlsStream
from .transports import ClearStream, ClearText, Transport

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

    tls: ClassVar[ServerTls | None] = None
    """What makes connections secure; a class is made for each process."""

    _ended = False

    async def run(self) -> None:
        """Serve the connection until either side is done with it."""
        # hypercorn names streams of TLS only; what it gets is a socket, for its listeners do not know of TLS.
        stream = cast("trio.SocketStream", self.stream)
        if self.tls is None:
            await self.serve(stream)
        elif (secured := await self.tls.accept(stream)) is not None:
            await self.serve(secured)

    async def serve(self, stream: trio.SocketStream | TlsStream) -> None:
        """Serve what comes over `stream`."""
        ours = stream if isinstance(stream, TlsStream) else ClearStream(stream)
        # To hypercorn ours is as good as trio's.
        self.stream = cast("trio.SSLStream[trio.SocketStream]", ours)
        if isinstance(stream, TlsStream) and (certificate := stream.peer_certificate()) is not None:
            self.app = _with_peer(self.app, certificate)
        try:
            await super().run()
        except Exception:  # noqa: BLE001 - the edge of a connection: what fails there must not end all others
            _log.exception("a connection failed")
            await trio.aclose_forcefully(stream)

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
    h2c: ClassVar[bool]
    """Whether a client may begin with HTTP/2 in clear text."""

    _received = b""

    async def serve(self, stream: trio.SocketStream | TlsStream) -> None:
        """Serve what comes over `stream`."""
        transport: Transport
        if isinstance(stream, TlsStream):
            if stream.selected_alpn_protocol() == "h2":
                await super().serve(stream)
                return
            transport, socket, scheme = stream, stream.transport_stream.socket, "https"
            h2c, peer = False, stream.peer_certificate()
        else:
            transport, socket, scheme = ClearText(stream), stream.socket, "http"
            h2c, peer = self.h2c, None
        try:
            client, server = _address(socket.getpeername()), _address(socket.getsockname())
        except OSError:
            # It is gone already.
            await trio.aclose_forcefully(stream)
            return
        try:
            connection = Http1(
                self.connections, transport, scheme=scheme, client=client, server=server, http2=h2c, tls_peer=peer
            )
            received = await connection.serve()
        except Exception:  # noqa: BLE001 - the edge of a connection: a fault of ours there must not end all others
            _log.exception("a connection failed")
            await trio.aclose_forcefully(stream)
            return
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        if received is None:
            await stream.aclose()
        else:
            self._received = received
            await super().serve(stream)

    async def _read_data(self) -> None:
        if self._received:
            await self.protocol.handle(RawData(self._received))
        await super()._read_data()


def _with_peer(app: AppWrapper, certificate: bytes) -> AppWrapper:
    """Return `app` as it is told, with each request, which verified certificate its client has shown."""

    async def told(
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        sync_spawn: Callable[..., object],
        call_soon: Callable[..., object],
    ) -> None:
        if scope["type"] == "http":
            scope["extensions"][TLS_PEER] = {"certificate": certificate}
        await app(scope, receive, send, sync_spawn, call_soon)

    return told


def _address(name: object) -> tuple[str, int] | None:
    """Return host and port of what the system says of one end of a socket; None for a socket that is a file."""
    return cast("tuple[str, int]", name[:2]) if isinstance(name, tuple) else None


async def serve_worker(
    configuration: Configuration,
    plugins: PluginManager,
    tls: ServerTls | None,
    listeners: list[int],
    share: Share,
    ready: Callable[[], None],
) -> None:
    """Serve on the listening descriptors `listeners`, which it closes, until SIGTERM, then drain.

    With `tls` every connection is made secure; `share` says which are this worker's.
    `ready` is called when connections are answered. Requests under way have `draintimeout` to end; what is sent after
    that is cut, what was received is kept.

    Raises:
        ConfigurationError: the registry cannot be opened.
    """
    _raise_descriptor_limit()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_registry(configuration, plugins) as opened:
            application = Application(opened.handler, application_settings(configuration), plugin_routes(plugins))
            connections = Connections(application)
            kind = _StockConnection if configuration.http.engine == "stock" else _Connection
            of_process = {"connections": connections, "tls": tls, "h2c": configuration.http.h2c.enabled}
            connection = cast("type[TCPServer]", type("Connection", (kind,), of_process))
            # The seam: hypercorn makes what speaks HTTP/2 from a name of its module.
            setattr(hypercorn_protocol, "H2Protocol", Http2)  # noqa: B010 - a name that holds a class, to type checkers
            bound_heads()
            config, context = _hypercorn(), WorkerContext(max_requests=None)

            async def serve(stream: trio.SocketStream) -> None:
                with share.serving():
                    # hypercorn names streams of TLS only; what it gets is a socket.
                    await connection(
                        ASGIWrapper(application),
                        config,
                        context,
                        ConnectionState({}),
                        cast("trio.SSLStream[trio.SocketStream]", stream),
                    ).run()

            async def take(nursery: trio.Nursery, *, task_status: trio.TaskStatus[list[SharedListener]]) -> None:
                shared = [SharedListener(socket.socket(fileno=each), share) for each in listeners]
                with share.taking():
                    await trio.serve_listeners(serve, shared, handler_nursery=nursery, task_status=task_status)

            async with trio.open_nursery() as watching:
                watching.start_soon(connections.watch)
                if tls is not None:
                    await watching.start(tls.watch)
                async with trio.open_nursery() as serving:
                    async with trio.open_nursery() as taking:
                        await taking.start(take, serving)
                        ready()
                        await anext(signals)
                        # Closes what is listened on, before those who are connected are told to go.
                        taking.cancel_scope.cancel()
                    application.drain()
                    await context.terminated.set()
                    connections.drain()
                    if tls is not None:
                        tls.drain()
                    serving.cancel_scope.deadline = trio.current_time() + configuration.http.drain_timeout
                watching.cancel_scope.cancel()


def _hypercorn() -> Config:
    config = Config()
    config.keep_alive_timeout = _KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = 1 << 62
    config.h11_max_incomplete_size = _HEAD_BYTES
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

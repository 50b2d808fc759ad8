"""TLS on a socket, the server's side, as Moorage's own engine and as hypercorn use it.

trio's `SSLStream` takes one record at a step, 16 KiB, and a turn of the scheduler for each; it also leaves a client that is
refused without the alert that says why. Here as many records as there are make one step each way, and alerts are sent.
"""

import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from moorage import ClientLeft

from .transports import ClearText, Pace, receive_in_thread

STEP: Final = 256 << 10
"""So many bytes are encrypted and sent at once."""
GOODBYE_SECONDS: Final = 2.0
"""How long the end of a connection may wait for room to be said in."""
_OVERHEAD: Final = 1 << 10


class TlsStream(trio.abc.AsyncResource):
    """A connection with TLS: a `Transport`, and what hypercorn asks of trio's `SSLStream`."""

    can_send_files = False

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        """Speak TLS as `context` says on `stream`, which is owned from here on."""
        self.transport_stream = stream
        """The socket's stream; hypercorn looks for its addresses there."""
        self.descriptor = stream.socket.fileno()
        self._socket = ClearText(stream)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._greeted = self._ended = self._flushing = self._over = False

    # ---- the handshake

    async def do_handshake(self) -> None:
        """Agree with the client on how to speak, once.

        Raises:
            BrokenResourceError: it speaks no TLS, or none that is allowed, or left.
        """
        while not self._greeted:
            try:
                self._tls.do_handshake()
                self._greeted = True
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill(STEP)
            except ssl.SSLError as error:
                with suppress(ClientLeft):
                    await self._flush()
                raise trio.BrokenResourceError from error
            except ClientLeft as error:
                raise trio.BrokenResourceError from error
        try:
            await self._flush()
        except ClientLeft as error:
            raise trio.BrokenResourceError from error

    def selected_alpn_protocol(self) -> str | None:
        """Return the protocol that was agreed upon, None without ALPN."""
        return self._tls.selected_alpn_protocol()

    def peer_certificate(self) -> bytes | None:
        """Return the client's certificate (DER); there is none that was not verified, for then no handshake succeeds."""
        return self._tls.getpeercert(binary_form=True)

    # ---- as a transport

    async def receive(self, count: int, pace: Pace | None = None) -> bytes:
        """Return up to `count` bytes, none at the end, waited for as `pace` says.

        Raises:
            TooSlow: they did not come in time.
            ClientLeft: the connection broke.
        """
        pieces: list[bytes] = []
        left = count
        while not self._ended:
            self._check_open()
            try:
                while left and (piece := self._tls.read(left)):
                    pieces.append(piece)
                    left -= len(piece)
                self._ended = left > 0
                break
            except ssl.SSLWantReadError:
                if pieces:
                    break
                if self._outgoing.pending:
                    # An answer to the client's TLS, which another task would miss if this one were cancelled.
                    with trio.CancelScope(shield=True):
                        await self._flush()
                await self._fill(count + _OVERHEAD, pace)
            except ssl.SSLEOFError:
                # It left without a word, as many do; where a request ends does not depend on that.
                self._ended = True
            except ssl.SSLError as error:
                self._over = True
                raise ClientLeft("the connection broke") from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def receive_quickly(self, most: int | None, take: Callable[[bytes], bool]) -> None:
        """Have `take` called, in a thread, with what comes, as long as it comes quickly and `take` wants more."""
        self._check_open()
        if not self._ended:
            await receive_in_thread(self._read_now, self.descriptor, most, take)

    def _read_now(self, count: int) -> bytes:
        """Return up to `count` bytes of what has come, none at the end. Runs in a thread, which has the connection to itself.

        Raises:
            BlockingIOError: nothing has come.
            OSError: the connection broke, as `receive` will find too.
        """
        while True:
            try:
                return self._tls.read(count)
            except ssl.SSLWantReadError:
                self._take_in(os.read(self.descriptor, count + _OVERHEAD))

    async def send(self, *pieces: bytes) -> None:
        """Send everything. Raises ClientLeft: the client is gone, or too slow."""
        self._check_open()
        for piece in pieces:
            view = memoryview(piece)
            while view:
                try:
                    self._tls.write(view[:STEP])
                except ssl.SSLError as error:
                    raise ClientLeft("the connection broke") from error
                view = view[STEP:]
                if self._outgoing.pending >= STEP:
                    await self._flush()
                    self._check_open()
        await self._flush()

    async def send_file(self, head: bytes, descriptor: int, offset: int, count: int) -> None:
        """Not offered here: what is sent must be encrypted before."""
        raise NotImplementedError

    async def end(self) -> None:
        """Say that nothing more will be sent. Raises ClientLeft: the client is gone."""
        self._check_open()
        # What the client says to that is not waited for.
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        await self._flush()

    # ---- as a stream

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return up to `max_bytes` bytes, none at the end. Raises BrokenResourceError: the connection broke."""
        try:
            return await self.receive(max_bytes)
        except ClientLeft as error:
            raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes) -> None:
        """Send everything.

        Raises:
            BrokenResourceError: the client is gone, or too slow; so the stream is closed, for hypercorn would keep it.
        """
        try:
            await self.send(data)
        except ClientLeft as error:
            self._over = True
            await trio.aclose_forcefully(self.transport_stream)
            raise trio.BrokenResourceError from error

    async def aclose(self) -> None:
        """Say good-bye, if there is room for that, and close the socket."""
        try:
            # Who is sending still waits for a client that takes nothing; the closed socket ends that.
            if self._greeted and not self._over and not self._flushing:
                with trio.move_on_after(GOODBYE_SECONDS), suppress(ClientLeft):
                    await self.end()
        finally:
            self._over = True
            await self.transport_stream.aclose()

    # ---- the socket

    async def _fill(self, count: int, pace: Pace | None = None) -> None:
        self._take_in(await self._socket.receive(count, pace))

    def _take_in(self, data: bytes) -> None:
        """Have TLS look at what came; nothing is the end."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        """Send what TLS has made; where another task is doing so, that one sends this too."""
        if self._flushing:
            return
        self._flushing = True
        try:
            while self._outgoing.pending:
                await self._socket.send(self._outgoing.read())
        finally:
            self._flushing = False

    def _check_open(self) -> None:
        """Keep away from the descriptor of a closed socket, which may be another connection's."""
        if self._over:
            raise ClientLeft("the connection is over")

"""What connections are made of: sockets, and files sent to them from the page cache. `tls_stream` puts TLS on these.

A transport tells of a client that has left by `ClientLeft`, and gives up one that is too slow: how long a client is waited
for is said here, by `Pace`, for all that the registry speaks.
"""

import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from moorage import ClientLeft

STALLED_SECONDS: Final = 60.0
"""How long a client may take nothing of an answer, or give nothing of a body."""
LEAST_RATE: Final = 1 << 10
"""Bytes a second that a client must take or give in the long run: half of what the slowest links do."""

JOINED: Final = 64 << 10
"""Up to so many bytes of a body are joined with the head before them, and sent at once."""
_SENDFILE: Final = 2 << 20
_IN_THREAD: Final = 16 << 20
_RECEIVED: Final = 256 << 10
_RECEIVERS: Final = max(4, os.cpu_count() or 1)
"""So many threads receive and hash: more than there are cores take these from each other."""
_WAITING: Final = 64
"""While so many bodies wait for one of these, others are received by the event loop: slower, and at once."""
_QUICK_SECONDS: Final = 0.002
_QUICK_MILLISECONDS: Final = 2
_QUICK_WAIT: Final = struct.pack("@ll", 0, _QUICK_MILLISECONDS * 1000)
_QUICK_WAITS: Final = 16
_QUICK_BYTES: Final = 512
"""What a wait must bring on average, once there were a few, or a byte now and then would keep a thread."""
_CACHE_STEP: Final = 128 << 10
_FAIR: Final = 16
"""After so many steps that waited for nothing others have a turn."""

_receivers: Final = trio.CapacityLimiter(_RECEIVERS)
_T = TypeVar("_T")


class TooSlow(ClientLeft):
    """A client was waited for as long as it may be.

    Attributes:
        silent: whether it did nothing at all in the longest time that there is; else it may be there, and read why.
    """

    def __init__(self, *, silent: bool) -> None:
        """Give up a client."""
        super().__init__("the client is too slow")
        self.silent = silent


class Pace:
    """How long a client is waited for in all steps of a body or an answer together.

    There are `STALLED_SECONDS`. What is waited is taken from them, and each byte that moves gives back what it may take at
    `LEAST_RATE`; but there are never more, or who was fast for a gigabyte could then stall for days. Only waiting
    counts: what the registry does meanwhile may take its time.
    """

    __slots__ = ("_left",)

    def __init__(self) -> None:
        """Begin with all of the time."""
        self._left = STALLED_SECONDS

    async def within(self, wait: Callable[[], Awaitable[_T]], count: int = 0) -> _T:
        """Return what `wait` does, which waits for the client, and by which `count` bytes move.

        Raises:
            TooSlow: it took longer than the client may.
        """
        allowed = self._left + count / LEAST_RATE
        began = trio.current_time()
        with trio.move_on_after(allowed):
            try:
                return await wait()
            finally:
                self._left = min(max(allowed - (trio.current_time() - began), 0.0), STALLED_SECONDS)
        raise TooSlow(silent=allowed >= STALLED_SECONDS)

    def moved(self, count: int) -> None:
        """Give back the time of `count` bytes that have moved."""
        self._left = min(self._left + count / LEAST_RATE, STALLED_SECONDS)


class Transport(Protocol):
    """What a connection is made of."""

    can_send_files: bool
    descriptor: int

    async def receive(self, count: int, pace: Pace | None = None) -> bytes:
        """Return up to `count` bytes, none at the end; they are waited for as `pace` says, which is told by the caller.

        Raises:
            TooSlow: they did not come in time.
            ClientLeft: the connection broke.
        """
        ...

    async def receive_quickly(self, most: int | None, take: Callable[[bytes], bool]) -> None:
        """Have `take` called, in a thread, with what comes, as long as it comes quickly and `take` wants more.

        No more than `most` bytes are received. Raises what `take` does; a connection that broke is told by `receive`.
        """
        ...

    async def send(self, *pieces: bytes) -> None:
        """Send everything. Raises ClientLeft: the client is gone, or too slow."""
        ...

    async def send_file(self, head: bytes, descriptor: int, offset: int, count: int) -> None:
        """Send `head`, then `count` bytes of a file. Raises ClientLeft, as `send`."""
        ...

    async def end(self) -> None:
        """Say that nothing more will be sent."""
        ...


class ClearText:
    """A socket, read and written by its descriptor: at once where that can be, else when the system says so.

    A thousand requests a second more than by the stream's own methods, which go through the scheduler each time.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        """Use the socket of `stream`, which stays the owner."""
        self.can_send_files = True
        self._stream = stream
        self.descriptor = stream.socket.fileno()
        self._at_once = 0
        # Of all answers: what little is left of one in the system's buffer is waited for with the next.
        self._pace = Pace()

    async def receive(self, count: int, pace: Pace | None = None) -> bytes:
        """Return up to `count` bytes, none at the end."""
        self._at_once += 1
        if self._at_once >= _FAIR:
            # A client that always has more must not have the loop for itself.
            self._at_once = 0
            await trio.lowlevel.checkpoint()
            self._check_open()
        while True:
            try:
                return os.read(self.descriptor, count)
            except BlockingIOError:
                self._at_once = 0
                if pace is None:
                    await self._wait(trio.lowlevel.wait_readable)
                else:
                    await pace.within(partial(self._wait, trio.lowlevel.wait_readable))
            except OSError as error:
                raise ClientLeft("the connection broke") from error

    async def receive_quickly(self, most: int | None, take: Callable[[bytes], bool]) -> None:
        """Have `take` called, in a thread, with what comes, as long as it comes quickly and `take` wants more."""
        await receive_in_thread(partial(os.read, self.descriptor), self.descriptor, most, take)

    async def send(self, *pieces: bytes) -> None:
        """Send everything."""
        self._at_once += 1
        if self._at_once >= _FAIR:
            # Nor must a client that sent a thousand requests at once.
            self._at_once = 0
            await trio.lowlevel.checkpoint()
            self._check_open()
        left: list[bytes | memoryview] = [piece for piece in pieces if piece]
        while left:
            try:
                sent = os.write(self.descriptor, left[0]) if len(left) == 1 else os.writev(self.descriptor, left)
            except BlockingIOError:
                await self._wait_writable()
                continue
            except OSError as error:
                raise ClientLeft("the client left in the middle of its answer") from error
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = memoryview(left[0])[sent:]

    async def send_file(self, head: bytes, descriptor: int, offset: int, count: int) -> None:
        """Send `head`, then `count` bytes of a file from the page cache to the socket."""
        if count <= JOINED and (data := _from_page_cache(descriptor, offset, count)) is not None:
            await self.send(head + data)
            return
        await self.send(head)
        end, in_cache = offset + count, offset
        while offset < end:
            if offset == in_cache:
                in_cache = min(end, offset + _SENDFILE)
                if not _is_in_page_cache(descriptor, offset, in_cache - offset):
                    # Read by a thread, so that the loop does not wait for a disk.
                    await trio.to_thread.run_sync(_fetch, descriptor, offset, in_cache - offset)
            try:
                sent = os.sendfile(self.descriptor, descriptor, offset, in_cache - offset)
            except BlockingIOError:
                await self._wait_writable()
                continue
            except OSError as error:
                raise ClientLeft("the client left in the middle of its answer") from error
            if not sent:
                raise ClientLeft("the file is shorter than announced")
            offset += sent
            if offset < in_cache:
                # The socket took what it has room for.
                began = trio.current_time()
                await self._wait_writable()
                if trio.current_time() - began < _QUICK_SECONDS and end - offset > _IN_THREAD:
                    offset = in_cache = await self._send_from_thread(descriptor, offset, end)
            else:
                # Who sends a large file lets others go on in between.
                await trio.lowlevel.checkpoint()

    async def _send_from_thread(self, descriptor: int, offset: int, end: int) -> int:
        """Send of a file to a client that takes it quickly, as long as it does; return up to where.

        A turn of the event loop for each few hundred KiB that the socket has room for costs more than sending them.
        """
        while offset < end:
            try:
                sent = await trio.to_thread.run_sync(
                    _send_quickly, self.descriptor, descriptor, offset, min(end - offset, _IN_THREAD)
                )
            except OSError as error:
                raise ClientLeft("the client left in the middle of its answer") from error
            offset += sent
            if sent < _IN_THREAD:
                break
        return offset

    async def end(self) -> None:
        """Say that nothing more will be sent."""
        try:
            await self._stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ClientLeft("the connection broke") from error

    async def _wait(self, until: Callable[[int], Awaitable[None]]) -> None:
        try:
            await until(self.descriptor)
        except trio.ClosedResourceError as error:
            raise ClientLeft("the connection was closed") from error
        self._check_open()

    def _check_open(self) -> None:
        if self._stream.socket.fileno() < 0:
            # Closed by another task meanwhile: the descriptor may be another connection's by now.
            raise ClientLeft("the connection was closed")

    async def _wait_writable(self) -> None:
        """Wait for room, as long as the client takes what it was sent.

        The system has room again when the client took a third of its buffer, which may be megabytes: so what is left in
        there says how fast it is, and not how long that lasts.
        """
        untaken = self._untaken()
        while True:
            try:
                await self._pace.within(partial(self._wait, trio.lowlevel.wait_writable))
                break
            except TooSlow:
                self._check_open()
                left = self._untaken()
                if left >= untaken:
                    raise
                self._pace.moved(untaken - left)
                untaken = left
        if untaken:
            self._pace.moved(max(untaken - self._untaken(), 0))
        else:
            # It has taken everything, or the system does not tell.
            self._pace = Pace()

    def _untaken(self) -> int:
        """Return how many of the bytes that were sent the client has not acknowledged; 0 where that cannot be told."""
        try:
            return int.from_bytes(fcntl.ioctl(self.descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0


class ClearStream(trio.abc.AsyncResource):
    """A socket as hypercorn uses it, which would wait for a slow client for ever."""

    def __init__(self, stream: trio.SocketStream) -> None:
        """Use `stream`, which is owned from here on."""
        self.socket = stream.socket
        """hypercorn looks for its addresses there."""
        self._stream = stream
        self._transport = ClearText(stream)

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return up to `max_bytes` bytes, none at the end. Raises BrokenResourceError: the connection broke."""
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes) -> None:
        """Send everything.

        Raises:
            ClosedResourceError: the stream is closed.
            BrokenResourceError: the client is gone, or too slow; so the stream is closed, for hypercorn would keep it.
        """
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError
        try:
            await self._transport.send(data)
        except ClientLeft as error:
            await trio.aclose_forcefully(self)
            raise trio.BrokenResourceError from error

    async def send_eof(self) -> None:
        """Say that nothing more will be sent. Raises what a socket's stream does."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._stream.aclose()


def _from_page_cache(descriptor: int, offset: int, count: int) -> bytes | None:
    """Return bytes of a file, if they can be had at once."""
    if not count:
        return b""
    buffer = bytearray(count)
    try:
        got = os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
    except OSError:
        return None
    return bytes(buffer) if got == count else None


def _is_in_page_cache(descriptor: int, offset: int, count: int) -> bool:
    """Return whether bytes of a file can be had without waiting for a disk, as far as some of them show it.

    A system reads ahead by steps of about so many bytes, and drops what it has by no smaller ones.
    """
    probe = [bytearray(1)]
    try:
        for at in (*range(offset, offset + count, _CACHE_STEP), offset + count - 1):
            os.preadv(descriptor, probe, at, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        # Some file systems cannot say.
        return error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}
    return True


def _send_quickly(descriptor: int, file: int, offset: int, count: int) -> int:
    """Send bytes of a file until the socket has no room for a moment; return how many. Runs in a thread.

    The system is let wait for room, in one call for all of it: with a call for each room that there is, threads that do
    this at once spend more time on getting the interpreter back from each other than on sending.
    """
    # A descriptor of its own: should the connection be closed meanwhile, the other may be another connection's.
    with socket.socket(fileno=os.dup(descriptor)) as borrowed:
        # Whoever reads meanwhile would wait too, since this is of the socket and not of the descriptor; so for as long.
        for timeout in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            borrowed.setsockopt(socket.SOL_SOCKET, timeout, _QUICK_WAIT)
        borrowed.setblocking(True)
        try:
            return os.sendfile(borrowed.fileno(), file, offset, count)
        except BlockingIOError:
            return 0
        finally:
            borrowed.setblocking(False)


async def receive_in_thread(
    read: Callable[[int], bytes], descriptor: int, most: int | None, take: Callable[[bytes], bool]
) -> None:
    """Have `take` called, in a thread, with what `read` returns, as long as it comes quickly and `take` wants more.

    `read` returns up to so many bytes, and raises `BlockingIOError` where `descriptor` has none yet. What else the system
    says, and an end, stop this; they are there to be met again.
    """
    if _receivers.statistics().tasks_waiting >= _WAITING:
        await trio.lowlevel.checkpoint()
        return
    most = _IN_THREAD if most is None else min(most, _IN_THREAD)
    await trio.to_thread.run_sync(_receive_quickly, read, descriptor, most, take, limiter=_receivers)


def _receive_quickly(read: Callable[[int], bytes], descriptor: int, most: int, take: Callable[[bytes], bool]) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while most:
        wanted = min(most, _RECEIVED)
        data = _gather(read, poll, wanted)
        if not data or not take(data) or len(data) < wanted:
            return
        most -= len(data)


def _gather(read: Callable[[int], bytes], poll: select.poll, count: int) -> bytes:
    """Return `count` bytes, fewer if they do not come quickly or the connection ends."""
    pieces: list[bytes] = []
    wanted, waits = count, 0
    while count:
        try:
            piece = read(count)
        except BlockingIOError:
            waits += 1
            if waits > _QUICK_WAITS + (wanted - count) // _QUICK_BYTES or not poll.poll(_QUICK_MILLISECONDS):
                break
            continue
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _fetch(descriptor: int, offset: int, count: int) -> None:
    """Have bytes of a file in the page cache. Runs in a thread."""
    os.posix_fadvise(descriptor, offset, count, os.POSIX_FADV_WILLNEED)
    buffer = bytearray(_CACHE_STEP)
    for at in range(offset, offset + count, _CACHE_STEP):
        os.preadv(descriptor, [buffer], at)

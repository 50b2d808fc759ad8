"""How the workers of one server share out its connections: each takes one where it has no more than the others.

All wait at the same listening sockets, so what has come is nobody's until it is taken: a worker that dies or hangs keeps
no connection waiting. Left to chance, whoever wakes first takes most, and of a few connections one worker takes all. So
each worker says in memory that all have in common how many connections it serves, and one that has more than its share
lets the others go first, for a moment: if none of them comes, it is the one that has time.
"""

import errno
import mmap
import socket
from collections.abc import Generator
from contextlib import contextmanager

import trio

_ABSENT = -1
_PATIENCE_SECONDS = 0.003
_LOOK_SECONDS = 0.001
# Of many connections, an eighth more than others have is no reason to wait: where hundreds come at once, they are taken
# as they come.
_SLACK = 8
_GRANTED = 4
"""Who waited in vain takes one connection for each so many that it serves."""
_IN_A_ROW = 16
"""So many connections are taken before others have a turn."""

_GONE = frozenset({
    errno.ECONNABORTED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EPROTO,
})
"""What `accept(2)` says, on one system or another, of a connection that failed before it was taken."""


class Shares:
    """How many connections each worker serves; made before the workers are, who inherit it."""

    def __init__(self, workers: int) -> None:
        """Take note of `workers` workers, none of which is there yet."""
        self._served = memoryview(mmap.mmap(-1, 4 * workers)).cast("i")
        for place in range(workers):
            self.leave(place)

    def leave(self, place: int) -> None:
        """Take note that nobody serves at `place`."""
        self._served[place] = _ABSENT

    def at(self, place: int) -> "Share":
        """Return the share of the worker at `place`, a number from zero."""
        return Share(self._served, place)


class Share:
    """What one worker says of itself and knows of the others."""

    def __init__(self, served: memoryview, place: int) -> None:
        """Write at `place` of `served`, read the others."""
        self._served = served
        self._place = place
        self._takes = False
        self._connections = 0
        self._granted = 0
        self._ending = trio.lowlevel.ParkingLot()

    @contextmanager
    def taking(self) -> Generator[None]:
        """Count among those who take connections."""
        self._takes = True
        self._say()
        try:
            yield
        finally:
            self._takes = False
            self._say()

    def took(self) -> None:
        """Count one connection more, which `serving` ends."""
        self._connections += 1
        self._say()

    @contextmanager
    def serving(self) -> Generator[None]:
        """Serve a connection that `took` counted."""
        try:
            yield
        finally:
            self._connections -= 1
            self._say()
            self._ending.unpark_all()

    def _say(self) -> None:
        self._served[self._place] = self._connections if self._takes else _ABSENT

    async def come_due(self) -> None:
        """Return when the next connection is this worker's: at once, or after others had the time to take it."""
        if not self._exceeded():
            # What was granted was for the crowd that there was.
            self._granted = 0
            return
        if self._granted:
            self._granted -= 1
            return
        given_up = trio.current_time() + _PATIENCE_SECONDS
        while self._exceeded():
            if trio.current_time() >= given_up:
                # The others are busy, or hang. Of a crowd that waits, not each is let wait for them.
                self._granted = self._connections // _GRANTED
                return
            # A connection that ends here is heard of at once; those of others are looked at again.
            with trio.move_on_after(_LOOK_SECONDS):
                await self._ending.park()

    def _exceeded(self) -> bool:
        served = self._served.tolist()
        own = served.pop(self._place)
        least = min((each for each in served if each != _ABSENT), default=own)
        return own > least + least // _SLACK


class SharedListener(trio.abc.Listener[trio.SocketStream]):
    """A listening socket that several workers take connections from."""

    def __init__(self, listener: socket.socket, share: Share) -> None:
        """Take from `listener`, which is closed in the end, as `share` allows."""
        listener.setblocking(False)
        self._listener = listener
        self._share = share
        self._in_a_row = 0

    async def accept(self) -> trio.SocketStream:
        """Return the next connection that is this worker's.

        Raises:
            OSError: the system has no more descriptors or memory.
        """
        while True:
            if self._in_a_row % _IN_A_ROW == 0:
                await trio.lowlevel.wait_readable(self._listener)
            await self._share.come_due()
            try:
                taken, _ = self._listener.accept()
            except BlockingIOError:
                # There are no more, or another worker took it.
                self._in_a_row = 0
            except OSError as error:
                self._in_a_row = 0
                if error.errno not in _GONE:
                    raise
            else:
                self._in_a_row += 1
                # Before the next one is looked at, which can be before this one's task begins.
                self._share.took()
                return trio.SocketStream(trio.socket.from_stdlib_socket(taken))

    async def aclose(self) -> None:
        """Close the socket in this worker."""
        trio.lowlevel.notify_closing(self._listener)
        self._listener.close()
        await trio.lowlevel.checkpoint()

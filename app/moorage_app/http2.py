"""HTTP/2 as hypercorn speaks it, with what it lacks.

- hypercorn 0.18 forgets a stream with its answer, and ends the whole worker when more of the request's body arrives then:
  an empty frame that says that the body is over suffices (hypercorn's issue 329, fixed in no release).
- A head has as many headers as in HTTP/1.1; more are answered with 431, and text that is no ASCII where only ASCII can be
  with 400. h2 itself ends a connection whose head has more than 64 KiB, as soon as that is known; until a head is whole its
  frames are kept, of which there may be fewer here than h2 allows.
- The heads of the requests under way on one connection are bounded together: who sends more is told to come again.
- Priorities are dropped, as RFC 9113, 5.3, allows. hypercorn's tree of them grows by each stream that is only named, and
  then fails.
- Who gives up most requests as soon as they are sent is sent away: each costs the server what an answer costs, and none
  counts as under way (CVE-2023-44487).
- Of an answer that the client does not take no more is kept than is sent at a step. hypercorn's buffer lets the application go on
  just when a window is closed, and so takes whole blobs into memory.
- An answer that breaks off is reset, also that of a client that is too slow to take it. hypercorn says nothing, so clients
  would wait for the rest, and it keeps what nobody took.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final, cast

import h2.events
import h2.frame_buffer
import trio
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent, StreamClosed
from hypercorn.protocol.h2 import BUFFER_LOW_WATER, H2Protocol, StreamBuffer
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream

from .http1 import HEADERS_LIMIT, LINGER_SECONDS
from .http1_refusal import refusal_body

_CONTINUATIONS: Final = 8
"""Frames that a head may have after its first one: half of them are full with all that it may say."""
_HEADS: Final = 512 << 10
_HEADER_OVERHEAD: Final = 32
"""What a header counts beside its text (RFC 9113, 6.5.2)."""
_RESETS: Final = 100
"""So many requests may be given up in any case; more if at least as many are not."""
_LINGER_BYTES: Final = 4 << 20


class _Answered:
    """A stream whose request was answered: what still arrives for it is dropped."""

    async def handle(self, event: Event) -> None:
        """Drop `event`."""


class _Streams(dict[int, HTTPStream | WSStream]):
    """The streams of a connection that are not answered yet."""

    def __missing__(self, stream_id: int) -> HTTPStream:
        return cast("HTTPStream", _Answered())  # nothing else is asked of it


class _Answer(StreamBuffer):
    """What was said of one answer and not sent yet."""

    async def push(self, data: bytes) -> None:
        """Add `data`; return when there is room for more."""
        await self._paused.clear()
        await super().push(data)

    async def pop(self, max_length: int) -> bytes:
        """Return up to so many bytes, which are sent now."""
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class Http2(H2Protocol):
    """One connection."""

    async def initiate(self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None) -> None:
        """Begin the connection."""
        self.streams = _Streams()
        self._heads: dict[int, int] = {}
        self._requests = self._resets = 0
        self._left: int | None = None
        await super().initiate(headers, settings)

    async def handle(self, event: Event) -> None:
        """Go on with what came."""
        if not isinstance(event, RawData):
            await super().handle(event)
        elif self._left is None:
            try:
                events = self.connection.receive_data(event.data)
            except ProtocolError:
                await self._give_up()
            else:
                await self._handle_events(events)
        else:
            self._left -= len(event.data)
            if self._left < 0:
                await self.send(Closed())

    async def _give_up(self) -> None:
        """Send why the connection ends, and drop what the client still sends: closed at once, that would be lost."""
        self._left = _LINGER_BYTES
        await self._flush()
        await super().handle(Closed())
        self.task_group.spawn(self._linger)  # pyright: ignore[reportUnknownMemberType] - hypercorn does not say of what

    async def _linger(self) -> None:
        await trio.sleep(LINGER_SECONDS)
        await self.send(Closed())

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        asked = sum(isinstance(event, h2.events.RequestReceived) for event in events)
        self._requests += asked
        self._resets += sum(isinstance(event, h2.events.StreamReset) for event in events)
        if self._resets > max(_RESETS, self._requests // 2):
            self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM, b"too many requests are given up")
            await self._give_up()
            return
        await super()._handle_events([event for event in events if not isinstance(event, h2.events.PriorityUpdated)])
        if asked and self.idle:
            # What was refused here was told as begun, and does not tell that it has ended.
            await self.send(Updated(idle=True))

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what the application says on one stream."""
        if isinstance(event, StreamClosed):
            await self._break_off(event.stream_id)
        await super().stream_send(event)

    async def _break_off(self, stream_id: int) -> None:
        """Reset an answer of which the application will say no more, unless it has come to its end."""
        answer = self.stream_buffers.get(stream_id)
        if answer is None or answer.complete or self.closed:
            return
        with suppress(ProtocolError):
            self.connection.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
        # The task that sends finds it closed, and forgets it.
        await answer.close()
        self.priority.unblock(stream_id)
        await self.has_data.set()
        await self._flush()

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        headers = cast("Sequence[tuple[bytes, bytes]]", request.headers)  # as they are decoded here
        size = sum(len(name) + len(value) + _HEADER_OVERHEAD for name, value in headers)
        if sum(self._heads.values()) + size > _HEADS:
            with suppress(ProtocolError):
                self.connection.reset_stream(request.stream_id, ErrorCodes.REFUSED_STREAM)
        elif len(headers) > HEADERS_LIMIT:
            self._refuse(request, 431, "too many headers")
        elif any(name in {b":method", b":path"} and not value.isascii() for name, value in headers):
            self._refuse(request, 400, "a method or path that is not ASCII")
        else:
            self._heads[request.stream_id] = size
            await super()._create_stream(request)
            # Nobody has used the other one yet: the application has not run.
            self.stream_buffers[request.stream_id] = _Answer(self.context.event_class)

    async def _close_stream(self, stream_id: int) -> None:
        self._heads.pop(stream_id, None)
        await super()._close_stream(stream_id)

    def _refuse(self, request: h2.events.RequestReceived, status: int, problem: str) -> None:
        """Answer a request that is not for the application, as far as the client takes answers."""
        stream_id = request.stream_id
        body = refusal_body(problem)
        head = [(":status", str(status)), ("content-type", "application/json"), ("content-length", str(len(body)))]
        with suppress(ProtocolError):
            self.connection.send_headers(stream_id, head)
            self.connection.send_data(stream_id, body, end_stream=True)
            if request.stream_ended is None:
                self.connection.reset_stream(stream_id, ErrorCodes.NO_ERROR)


def bound_heads() -> None:
    """Keep of a head that is not whole yet no more than it may have; for all connections of this process."""
    h2.frame_buffer.CONTINUATION_BACKLOG = _CONTINUATIONS

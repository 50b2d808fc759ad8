"""HTTP/2 as hypercorn speaks it, with the one thing that it lacks.

hypercorn 0.18 forgets a stream with its answer, and ends the whole worker when more of the request's body arrives then: an
empty frame that says that the body is over suffices (hypercorn's issue 329, fixed in no release).
"""

from typing import cast

from hypercorn.events import Event
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream


class _Answered:
    """A stream whose request was answered: what still arrives for it is dropped."""

    async def handle(self, event: Event) -> None:
        """Drop `event`."""


class _Streams(dict[int, HTTPStream | WSStream]):
    """The streams of a connection that are not answered yet."""

    def __missing__(self, stream_id: int) -> HTTPStream:
        return cast("HTTPStream", _Answered())  # nothing else is asked of it


class Http2(H2Protocol):
    """One connection."""

    async def initiate(self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None) -> None:
        """Begin the connection."""
        self.streams = _Streams()
        await super().initiate(headers, settings)

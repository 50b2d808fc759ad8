"""The bodies of HTTP/1.1 that come in chunks, taken apart (RFC 9112, 7.1): bytes go in, bytes of the body come out."""

import re
from typing import Final

from .http1_refusal import Refused

TRAILER_BYTES: Final = 16 << 10
"""The largest trailers, and the longest line between two chunks."""
EXTENSION_BYTES: Final = 64 << 10
"""How much of all the extensions of a body's chunks is taken."""
LINES_AT_ONCE: Final = 256
"""So many lines are looked at by one call: a client can send a chunk for each byte, and others wait meanwhile."""

_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;([\t\x20-\x7e\x80-\xff]*))?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_FRAMING: Final = frozenset({b"content-length", b"host", b"transfer-encoding"})
"""What no trailer may say (RFC 9110, 6.5.1): who came to believe it would see a request end, or go, elsewhere."""


class Chunks:
    """The chunks of one body.

    Attributes:
        ended: whether all of the body was taken.
        rest: what the last call has not looked at: of the next request, or of more lines than are looked at by one call.
    """

    def __init__(self) -> None:
        """Begin with the first chunk."""
        self.ended = False
        self.rest = b""
        self._left = 0
        self._line = b""
        self._ends_chunk = self._in_trailers = False
        self._extensions = 0
        self._trailers = 0

    def decode(self, data: bytes) -> bytes:
        """Return what `data`, which follows what the last call took, has of the body.

        Raises:
            Refused: it is not chunked as it should be.
        """
        pieces: list[memoryview] = []
        view = memoryview(data)
        at = lines = 0
        while at < len(data) and not self.ended and lines < LINES_AT_ONCE:
            if self._left:
                piece = view[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._ends_chunk = not self._left
            else:
                lines += 1
                at = self._take_line(data, at)
        self.rest = data[at:]
        return b"".join(pieces)

    def _take_line(self, data: bytes, at: int) -> int:
        """Take the line that goes on at `at`, or begins there, if it ends; return where what follows begins.

        Raises:
            Refused: it is too long, ends wrongly, or does not say what it should.
        """
        limit = 0 if self._ends_chunk else TRAILER_BYTES
        # The longest line there may be, its end, and one more to see that it is too long.
        stop = at + max(limit + 2 - len(self._line), 0)
        end = data.find(b"\n", at, stop)
        if end < 0:
            self._line += data[at:stop]
            if len(self._line) > limit + 1:
                raise Refused(400, "a line is too long")
            return min(stop, len(data))
        line = self._line + data[at:end]
        self._line = b""
        if line[-1:] != b"\r" or b"\r" in line[:-1]:
            raise Refused(400, "a line ends wrongly")
        self._understand(line[:-1])
        return end + 1

    def _understand(self, line: bytes) -> None:
        if self._ends_chunk:
            if line:
                raise Refused(400, "a chunk is longer than it says")
            self._ends_chunk = False
        elif self._in_trailers:
            self._take_trailer(line)
        else:
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise Refused(400, "no chunk size")
            self._extensions += len(match[2] or b"")
            if self._extensions > EXTENSION_BYTES:
                raise Refused(400, "the extensions of chunks are too large")
            self._left = int(match[1], 16)
            self._in_trailers = not self._left

    def _take_trailer(self, line: bytes) -> None:
        if not line:
            self.ended = True
            return
        if _TRAILER.fullmatch(line) is None:
            raise Refused(400, "no trailer")
        if line.partition(b":")[0].lower() in _FRAMING:
            raise Refused(400, "a trailer says what only a head may")
        self._trailers += len(line) + 2
        if self._trailers > TRAILER_BYTES:
            raise Refused(431, "the trailers are too large")

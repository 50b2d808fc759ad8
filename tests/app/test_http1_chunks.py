"""Bodies in chunks, taken apart: the same however they arrive, and nothing of what follows them."""

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from moorage_app.http1_chunks import EXTENSION_BYTES, LINES_AT_ONCE, TRAILER_BYTES, Chunks
from moorage_app.http1_refusal import Refused

NEXT = b"GET /next HTTP/1.1\r\n"

extensions = st.sampled_from([b"", b";a", b" ; a=b", b'\t;a="b c";d'])
trailers = st.lists(st.sampled_from([b"X: a", b"Digest: b c", b"y:"]), max_size=3)
contents = st.lists(st.tuples(st.binary(min_size=1, max_size=40), extensions), max_size=6)


def wire(content: list[tuple[bytes, bytes]], trailing: list[bytes]) -> bytes:
    chunks = b"".join(b"%X%s\r\n%s\r\n" % (len(data), extension, data) for data, extension in content)
    return chunks + b"0\r\n" + b"".join(line + b"\r\n" for line in trailing) + b"\r\n"


def decode(chunks: Chunks, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """What is in a body that arrives in `pieces`, and what follows it."""
    found = rest = b""
    for piece in pieces:
        rest += piece
        while rest and not chunks.ended:
            found += chunks.decode(rest)
            rest = chunks.rest
    return found, rest


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(at)]


@given(contents, trailers, st.lists(st.integers(0, 500), max_size=12))
def test_a_body_is_the_same_wherever_it_is_cut(
    content: list[tuple[bytes, bytes]], trailing: list[bytes], places: list[int]
) -> None:
    chunks = Chunks()
    found, rest = decode(chunks, cut(wire(content, trailing) + NEXT, places))
    assert found == b"".join(data for data, _ in content)
    assert chunks.ended
    assert rest == NEXT


def test_a_body_that_comes_byte_by_byte_ends_with_its_last() -> None:
    chunks = Chunks()
    data = wire([(b"hello", b";a"), (b" world", b"")], [b"X: a"])
    found = b""
    for at in range(len(data)):
        assert not chunks.ended
        found += chunks.decode(data[at : at + 1])
    assert chunks.ended
    assert found == b"hello world"


def test_one_call_looks_at_so_many_lines() -> None:
    chunks = Chunks()
    data = wire([(b"x", b"")] * (2 * LINES_AT_ONCE), [])
    first = chunks.decode(data)
    assert len(first) == LINES_AT_ONCE / 2
    assert not chunks.ended
    assert data.endswith(chunks.rest)
    assert len(chunks.rest) == len(data) - len(wire([(b"x", b"")], [])[:-5]) * len(first)
    assert decode(chunks, [chunks.rest]) == (b"x" * (2 * LINES_AT_ONCE - len(first)), b"")


WRONG = {
    "no size": b"\r\n",
    "no number": b"x\r\n",
    "a sign": b"+1\r\na\r\n",
    "a prefix": b"0x1\r\na\r\n",
    "a size beyond numbers": b"f" * 16 + b"\r\n",
    "a space before the size": b" 1\r\na\r\n",
    "a space behind the size": b"1 \r\na\r\n",
    "a bare LF behind the size": b"1\na\r\n",
    "a bare CR in an extension": b"1;a\rb\r\na\r\n",
    "a NUL in an extension": b"1;a\x00b\r\na\r\n",
    "a chunk that is longer than it says": b"1\r\nab\r\n",
    "a chunk that is longer than it says by a line": b"1\r\nab\r\n0\r\n\r\n",
    "a chunk that ends with LF": b"1\r\na\n0\r\n\r\n",
    "a chunk without an end": b"1\r\na0\r\n\r\n",
    "two ends": b"1\r\na\r\r\n0\r\n\r\n",
    "a trailer without a colon": b"0\r\nX\r\n\r\n",
    "a trailer about framing": b"0\r\nTransfer-Encoding: x\r\n\r\n",
    "a trailer about the length": b"0\r\ncontent-LENGTH: 3\r\n\r\n",
    "a trailer about the host": b"0\r\nX: a\r\nHost: b\r\n\r\n",
    "a folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "a bare LF behind a trailer": b"0\r\nX: a\n\r\n",
    "a bare LF at the end": b"0\r\n\n",
    "a long line without an end": b"1;" + b"a" * TRAILER_BYTES,
    "a long line": b"1;" + b"a" * TRAILER_BYTES + b"\r\n",
    "extensions without an end": (b"1;" + b"a" * 8000 + b"\r\nb\r\n") * (EXTENSION_BYTES // 8000 + 1),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_what_is_not_chunked_as_it_should_be_is_refused(data: bytes) -> None:
    with pytest.raises(Refused) as refused:
        decode(Chunks(), [data])
    assert refused.value.status == 400
    # And it does not help to send it slowly.
    with pytest.raises(Refused):
        decode(Chunks(), [data[at : at + 1] for at in range(len(data))])


def test_trailers_are_bounded() -> None:
    line = b"X: " + b"a" * 1000 + b"\r\n"
    with pytest.raises(Refused) as refused:
        decode(Chunks(), [b"0\r\n" + line * (TRAILER_BYTES // 1000 + 1)])
    assert refused.value.status == 431


@pytest.mark.parametrize("size", [TRAILER_BYTES - 2, TRAILER_BYTES - 1, TRAILER_BYTES])
def test_the_longest_line_is_taken(size: int) -> None:
    data = b"1;" + b"a" * (size - 2) + b"\r\nb\r\n0\r\n\r\n"
    for pieces in ([data], cut(data, [size - 1]), cut(data, [size]), cut(data, [size + 1])):
        assert decode(Chunks(), pieces) == (b"b", b"")

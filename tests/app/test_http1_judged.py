"""Random requests, right and wrong ones, cut at random: the engine understands what h11 understands, or less.

h11 is the judge. The engine may refuse what h11 takes, and does: lengths that repeat, lines that end in LF, folded
headers, space behind a chunk's size. It takes two things that h11 does not, both of RFC 9112: an empty line before a
request (2.2), which the judge is spared, and space before a chunk's extension (7.1.1), which is not made here. It keeps
connections of HTTP/1.0 whose clients ask for that (RFC 9112, C.2.2). And it goes on after CONNECT, which its application
refuses; the judge sees it refused too.
"""

import itertools
import re
from dataclasses import dataclass

import h11
import trio
from hypothesis import example, given, settings, strategies as st
from trio.testing import MockClock

from http1_peer import Asked, Recorder, speaking

TOKEN = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
URL = "!$&'()*+,-./0123456789:;=?@ABCXYZ[]_abcxyz~%#\"<>\\^`{|}"
RESERVED = {"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade"}

names = st.text(TOKEN, min_size=1, max_size=12).filter(lambda name: name.lower() not in RESERVED)
words = st.binary(max_size=10).map(lambda data: re.sub(rb"[\x00-\x20\x7f]", b"", data))
values = st.lists(words, max_size=3).map(b" ".join)
spaces = st.sampled_from([b"", b" ", b"\t", b" \t "])


@st.composite
def header_lines(draw: st.DrawFn) -> list[bytes]:
    lines = draw(st.lists(st.tuples(names, spaces, values, spaces), max_size=5))
    return [b"%s:%s%s%s" % (name.encode(), before, value, after) for name, before, value, after in lines]


@st.composite
def chunked_bodies(draw: st.DrawFn) -> bytes:
    data = b""
    for chunk in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4)):
        size = draw(st.sampled_from([b"%x", b"%X", b"0%x", b"0000%x"])) % len(chunk)
        extension = draw(st.sampled_from([b"", b";a", b';a="b c"', b";;", b"; a = b"]))
        data += size + extension + b"\r\n" + chunk + b"\r\n"
    trailers = draw(st.lists(st.tuples(names, values), max_size=2))
    return data + b"0\r\n" + b"".join(b"%s: %s\r\n" % (name.encode(), value) for name, value in trailers) + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(
        st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "BREW", "x-Y"])
    )
    target = "/" + draw(st.text(URL, max_size=15))
    if draw(st.integers(0, 9)) == 0:
        target = draw(st.sampled_from(["*", "http://a.test/b?c", "https://a:1/"]))
    version = draw(st.sampled_from(["1.1"] * 5 + ["1.0"]))
    lines = draw(header_lines())
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    body = b""
    if framing == "length":
        body = draw(st.binary(max_size=40))
        lines.append(b"Content-Length: %d" % len(body))
    elif framing == "chunked" and version == "1.1":
        body = draw(chunked_bodies())
        lines.append(draw(st.sampled_from([b"Transfer-Encoding: chunked", b"transfer-encoding:CHUNKED "])))
    extra = draw(st.sampled_from([b"", b"", b"Connection: keep-alive", b"Connection: te, close", b"Upgrade: h2c"]))
    if extra.startswith(b"Upgrade"):
        extra += b"\r\nConnection: upgrade"
    lines += [b"Expect: 100-continue"] * (draw(st.integers(0, 9)) == 0) + [extra] * bool(extra) + [b"Host: a.test"]
    lines = draw(st.permutations(lines))
    return (
        f"{method} {target} HTTP/{version}\r\n".encode() + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body
    )


@dataclass
class Judged:
    """What h11 understands of what a client sent."""

    asked: list[Asked]
    whole: bool
    """Whether all of it was understood."""


def keeps_1_0(asked: Asked) -> bool:
    """Return whether a request of HTTP/1.0 asks for another one after it, which the judge never grants."""
    value = b",".join(value for name, value in asked.headers if name == b"connection").lower()
    options = {option.strip(b" \t") for option in value.split(b",")}
    return asked.version == "1.0" and b"keep-alive" in options and b"close" not in options


def judged(data: bytes) -> Judged:
    """Return what h11 understands of `data`; each request is given to a judge of its own."""
    asked: list[Asked] = []
    while data:
        judge = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        judge.receive_data(data.removeprefix(b"\r\n"))
        request: h11.Request | None = None
        body = b""
        try:
            while not isinstance(event := judge.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    return Judged(asked, whole=False)
        except h11.RemoteProtocolError:
            return Judged(asked, whole=False)
        assert request is not None
        headers = [(bytes(name), bytes(value)) for name, value in request.headers]
        # ASGI does not tell an empty query from none.
        path, _, query = request.target.partition(b"?")
        target = path + b"?" + query if query else path
        asked.append(Asked(request.method.decode(), target, headers, body, request.http_version.decode()))
        judge.send(h11.Response(status_code=405, headers=[("Content-Length", "0")]))
        judge.send(h11.EndOfMessage())
        if judge.our_state is not h11.DONE and not keeps_1_0(asked[-1]):
            return Judged(asked, whole=True)
        data = judge.trailing_data[0]
    return Judged(asked, whole=True)


def served(data: bytes, cuts: list[int]) -> list[Asked]:
    """Return what the engine's application was asked when `data` was sent in pieces."""
    application = Recorder()

    async def send() -> None:
        ends = sorted({0, *(cut % (len(data) + 1) for cut in cuts), len(data)})
        pieces = [data[begin:end] for begin, end in itertools.pairwise(ends)]
        async with speaking(application) as peer:
            try:
                await peer.send(*pieces)
                await peer.end()
            except trio.BrokenResourceError:
                pass  # it was given up before all was sent
            await peer.rest()
            await peer.ended.wait()

    trio.run(send, clock=MockClock(autojump_threshold=0))
    return [
        Asked(
            asked.method,
            asked.target,
            # h11 says codings in small letters.
            [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in asked.headers],
            asked.body,
            asked.version,
        )
        for asked in application.asked
    ]


cuts = st.lists(st.integers(0, 5000), max_size=8)


@settings(max_examples=300)
@given(st.lists(requests(), min_size=1, max_size=6), st.booleans(), cuts)
def test_right_requests_are_understood_as_by_the_judge_wherever_they_are_cut(
    sent: list[bytes], empty_lines: bool, cuts: list[int]
) -> None:
    data = (b"\r\n" if empty_lines else b"").join(sent)
    judgment = judged(data)
    assert judgment.whole
    assert served(data, cuts) == judgment.asked


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
OPENERS = [
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\x00", b" ", b"\t", b"\x0b", b"\x7f", b"\x85", b"\xa0", b":", b";", b",", b"0\r\n\r\n",
    b"\r\nContent-Length: 3", b"\r\nContent-Length: 0", b"\r\nTransfer-Encoding: chunked", b"\r\nTransfer-Encoding: x",
    b"\r\nTransfer-Encoding:\r\n chunked", b"\r\nTransfer_Encoding: chunked", b"\r\nHost: b", b"\r\n folded", b"chunked",
    b"\r\nExpect: 100-continue", b"\r\nConnection: close", b"\r\nProxy-Connection: close", b"CONNECT", SMUGGLED,
]  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    data = b"".join(draw(st.lists(requests(), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["insert", "replace", "remove", "line end", "duplicate", "at a line"])):
            case "insert":
                data = data[:at] + draw(st.one_of(st.sampled_from(OPENERS), st.binary(max_size=3))) + data[at:]
            case "replace":
                data = data[:at] + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
            case "remove":
                data = data[:at] + data[at + draw(st.integers(1, 4)) :]
            case "line end":
                ends = [found.start() for found in re.finditer(rb"\r\n", data)] or [0]
                end = draw(st.sampled_from(ends))
                data = (
                    data[:end] + draw(st.sampled_from([b"\n", b"\r", b"\r\r\n", b"\n\r", b" \r\n"])) + data[end + 2 :]
                )
            case "duplicate":
                lines = data.split(b"\r\n")
                line = draw(st.integers(0, len(lines) - 1))
                data = b"\r\n".join([*lines[: line + 1], *lines[line:]])
            case _:
                lines = data.split(b"\r\n")
                line = draw(st.integers(0, len(lines) - 1))
                lines[line] += draw(st.sampled_from(OPENERS))
                data = b"\r\n".join(lines)
    return data


@settings(max_examples=700)
@given(mutations(), cuts)
@example(b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\nContent-Length: 3\r\n\r\nabc" + SMUGGLED, [])
@example(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n\r\n" + SMUGGLED, [3])
@example(
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a\r\nx\r\n0;\r\nX:\r\n\r\n" + SMUGGLED, [60]
)
@example(
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: x\r\n\r\n" + SMUGGLED, []
)
@example(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n\r\n" + SMUGGLED, [])
def test_wrong_requests_are_never_understood_beyond_the_judge(data: bytes, cuts: list[int]) -> None:
    understood = judged(data).asked
    asked = served(data, cuts)
    assert asked == understood[: len(asked)]


@settings(max_examples=100)
@given(mutations(), cuts)
def test_wrong_requests_are_understood_the_same_wherever_they_are_cut(data: bytes, cuts: list[int]) -> None:
    assert served(data, cuts) == served(data, [])

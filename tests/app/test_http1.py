"""What HTTP/1.1 requests the engine takes, which it refuses, and that a refusal is the last word on a connection."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import pytest
import trio
from hypercorn.typing import HTTPScope
from trio.testing import MockClock

from http1_peer import Answer, Asked, Certificates, Receive, Recorder, Send, body, reply, speaking, start, whole_body
from moorage_app.http1 import HEADERS_LIMIT
from moorage_app.http1_exchange import HEAD_BYTES

SECOND = b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


def head(*lines: bytes, request: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return b"".join(line + b"\r\n" for line in (request, host, *lines)) + b"\r\n"


def post(*lines: bytes) -> bytes:
    return head(*lines, request=b"POST /first HTTP/1.1")


def chunked(data: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked") + data


async def test_what_is_raised_on_a_connection_fails_its_test() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        async with speaking(Recorder()) as peer:
            await peer.send(SECOND)
            raise AssertionError("for the test to fail")
    assert raised.group_contains(AssertionError, match="for the test to fail")


# ---- what is refused before the application hears of it

REFUSED: dict[str, tuple[int, bytes]] = {
    # lengths
    "two lengths": (400, post(b"Content-Length: 5", b"Content-Length: 6") + b"hello"),
    "the same length twice": (400, post(b"Content-Length: 5", b"Content-Length: 5") + b"hello"),
    "a list of lengths": (400, post(b"Content-Length: 5, 5") + b"hello"),
    "a length and chunks": (400, post(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    "chunks and a length": (400, post(b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n"),
    "chunks and no length": (400, post(b"Transfer-Encoding: chunked", b"Content-Length: 0") + b"0\r\n\r\n"),
    "a length with a sign": (400, post(b"Content-Length: +5") + b"hello"),
    "a length below zero": (400, post(b"Content-Length: -5") + b"hello"),
    "a hexadecimal length": (400, post(b"Content-Length: 0x5") + b"hello"),
    "a length with a point": (400, post(b"Content-Length: 5.0") + b"hello"),
    "a length with a space in it": (400, post(b"Content-Length: 5 0") + b"hello"),
    "a length with an underscore": (400, post(b"Content-Length: 1_0") + b"hello"),
    "a length that is empty": (400, post(b"Content-Length:") + b"hello"),
    "a length of letters": (400, post(b"Content-Length: five") + b"hello"),
    "a length beyond numbers": (400, post(b"Content-Length: 18446744073709551621") + b"hello"),
    "a length of nineteen digits": (400, post(b"Content-Length: 0000000000000000005") + b"hello"),
    "digits of another script": (400, post(b"Content-Length: \xd9\xa5") + b"hello"),
    # transfer codings
    "chunks twice": (400, post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    "chunks of chunks": (400, post(b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n"),
    "chunks that are not last": (400, post(b"Transfer-Encoding: chunked, identity") + b"0\r\n\r\n"),
    "compressed chunks": (400, post(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n"),
    "no coding that is known": (400, post(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n"),
    "identity": (400, post(b"Transfer-Encoding: identity") + b"0\r\n\r\n"),
    "an empty coding": (400, post(b"Transfer-Encoding:") + b"0\r\n\r\n"),
    "a coding behind a vertical tab": (400, post(b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n"),
    "a quoted coding": (400, post(b'Transfer-Encoding: "chunked"') + b"0\r\n\r\n"),
    "a coding in a folded line": (400, post(b"Transfer-Encoding:", b" chunked") + b"0\r\n\r\n"),
    "a space before the colon": (400, post(b"Transfer-Encoding : chunked") + b"0\r\n\r\n"),
    "a tab before the colon": (400, post(b"Content-Length\t: 5") + b"hello"),
    "chunks in HTTP/1.0": (
        400,
        head(b"Transfer-Encoding: chunked", request=b"POST / HTTP/1.0") + b"0\r\n\r\n",
    ),
    # lines
    "a bare LF in the head": (400, b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
    "LF for all ends of lines": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "LF at the end of the head": (400, b"GET / HTTP/1.1\r\nHost: a\r\n\n" + SECOND),
    "a bare CR in a value": (400, head(b"X: a\rContent-Length: 5")),
    "a bare CR before a line's end": (400, head(b"X: a\r")),
    "CR CR LF": (400, b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\r\n" + SECOND),
    "a folded header": (400, head(b"X: a", b" b")),
    "a header folded by a tab": (400, head(b"X: a", b"\tb")),
    "a fold before all headers": (400, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    "a header without a colon": (400, head(b"X")),
    "a header without a name": (400, head(b": a")),
    "a space in a name": (400, head(b"X Y: a")),
    "a name in another script": (400, head(b"\xc3\xa4: a")),
    "a NUL in a name": (400, head(b"X\x00: a")),
    "a NUL in a value": (400, head(b"X: a\x00b")),
    "a control character in a value": (400, head(b"X: a\x01b")),
    "a DEL in a value": (400, head(b"X: a\x7fb")),
    # the first line
    "nothing that is HTTP": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "no version": (400, b"GET /\r\n\r\n"),
    "two spaces in the first line": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a tab in the first line": (400, b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a space at the first line's end": (400, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "a space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a control character in the target": (400, b"GET /a\x01 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a NUL in the target": (400, b"GET /a\x00 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "bytes above ASCII in the target": (400, b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a target that is none": (400, b"GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "an empty target": (400, b"GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a version in small letters": (400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    "a version of two digits": (400, b"GET / HTTP/1.11\r\nHost: a\r\n\r\n"),
    "HTTP/0.9": (400, b"GET / HTTP/0.9\r\nHost: a\r\n\r\n"),
    "HTTP/1.2": (400, b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    "HTTP/2.0 in a request": (400, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    "HTTP/3": (400, b"GET / HTTP/3\r\nHost: a\r\n\r\n"),
    "a method of another protocol": (400, b"DESCRIBE / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "HTTP/2's method": (400, b"PRI * HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two empty lines before a request": (400, b"\r\n\r\n" + SECOND),
    "a bare LF before a request": (400, b"\n" + SECOND),
    # whom it is for
    "no host": (400, b"GET / HTTP/1.1\r\nX: a\r\n\r\n"),
    "two hosts": (400, head(b"Host: b")),
    "the same host twice": (400, head(b"Host: a")),
    "two hosts in HTTP/1.0": (400, head(b"Host: b", request=b"GET / HTTP/1.0")),
    # how much
    "a header that is too long": (431, head(b"X: " + b"a" * HEAD_BYTES)),
    "a target that is too long": (431, head(request=b"GET /" + b"a" * HEAD_BYTES + b" HTTP/1.1")),
    "too many headers": (431, head(*(b"X: a" for _ in range(HEADERS_LIMIT)))),
}


@pytest.mark.parametrize("cut", ["whole", "byte by byte"])
@pytest.mark.parametrize("what", REFUSED)
async def test_what_can_be_read_in_two_ways_is_refused_and_nothing_after_it_is_served(
    autojump_clock: MockClock, what: str, cut: str
) -> None:
    status, data = REFUSED[what]
    application = Recorder()
    data += SECOND
    pieces: Sequence[bytes] = [data] if cut == "whole" else [data[at : at + 1] for at in range(min(len(data), 400))]
    async with speaking(application) as peer:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                # It may be refused before all of it was sent.
                try:
                    await peer.send(*pieces, data[400:] if len(pieces) > 1 else b"")
                except trio.BrokenResourceError:
                    return

            nursery.start_soon(send)
            answer = await peer.only_answer()
        await peer.ended.wait()
    assert (answer.status, answer.closes) == (status, True)
    assert application.begun == 0


async def test_a_refusal_is_read_also_by_who_still_sends(autojump_clock: MockClock) -> None:
    async with speaking(Recorder()) as peer:
        await peer.send(post(b"Content-Length: 5", b"Content-Length: 6") + b"x" * 50_000)
        await peer.send(b"x" * 100_000)
        assert (await peer.only_answer()).status == 400


# ---- chunks

BROKEN_CHUNKS: dict[str, bytes] = {
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "a size that is no number": b"x\r\nhello\r\n0\r\n\r\n",
    "a size with a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a size below zero": b"-5\r\nhello\r\n0\r\n\r\n",
    "a size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a size with an underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "a size beyond numbers": b"fffffffffffffffff5\r\nhello\r\n0\r\n\r\n",
    "a space before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "a space behind the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "a size that ends in LF": b"5\nhello\r\n0\r\n\r\n",
    "a size that ends in CR": b"5\rhello\r\n0\r\n\r\n",
    "a size that ends in CR CR LF": b"5\r\r\nhello\r\n0\r\n\r\n",
    "a chunk that ends in LF": b"5\r\nhello\n0\r\n\r\n",
    "a chunk that is longer than its size": b"5\r\nhelloworld\r\n0\r\n\r\n",
    "a chunk that is shorter than its size": b"5\r\nhell\r\n0\r\n\r\n",
    "a bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a bare CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "a NUL in an extension": b"5;a\x00\r\nhello\r\n0\r\n\r\n",
    "the last chunk ends in LF": b"5\r\nhello\r\n0\n\r\n",
    "the end is LF": b"5\r\nhello\r\n0\r\n\n",
    "a trailer without a colon": b"0\r\nX\r\n\r\n",
    "a trailer that is folded": b"0\r\nX: a\r\n b\r\n\r\n",
    "a trailer with a space before its colon": b"0\r\nX : a\r\n\r\n",
    "a trailer with a bare LF": b"0\r\nX: a\nY: b\r\n\r\n",
    "a trailer with a NUL": b"0\r\nX: \x00\r\n\r\n",
    "a request instead of trailers": b"0\r\n" + SECOND,
}


@pytest.mark.parametrize("cut", ["whole", "byte by byte"])
@pytest.mark.parametrize("what", BROKEN_CHUNKS)
async def test_a_body_of_broken_chunks_has_no_end(autojump_clock: MockClock, what: str, cut: str) -> None:
    application = Recorder()
    data = chunked(BROKEN_CHUNKS[what]) + SECOND
    async with speaking(application) as peer:
        await peer.send(*([data] if cut == "whole" else [data[at : at + 1] for at in range(len(data))]))
        answer = await peer.only_answer()
    assert (answer.status, answer.closes) == (400, True)
    assert (application.begun, application.asked) == (1, [])


async def test_nothing_is_said_after_the_refusal_of_a_body(autojump_clock: MockClock) -> None:
    async def stubborn(scope: HTTPScope, receive: Receive, send: Send) -> None:
        assert await whole_body(receive) is None
        assert (await receive())["type"] == "http.disconnect"
        await reply(send, b"I answer all the same")

    async with speaking(stubborn) as peer:
        await peer.send(chunked(b"nonsense\r\n") + SECOND)
        assert (await peer.only_answer()).status == 400


async def test_a_body_refused_in_the_middle_of_an_answer_ends_the_connection(autojump_clock: MockClock) -> None:
    async def both_at_once(scope: HTTPScope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        await start(send, 200, [(b"content-length", b"8")])
        await body(send, b"half", more=True)
        assert await whole_body(receive) is None
        await body(send, b"half")

    async with speaking(both_at_once) as peer:
        await peer.send(chunked(b"5\r\nhello\r\n"), b"nonsense\r\n" + SECOND)
        assert (await peer.rest()).endswith(b"\r\n\r\nhalf")


async def test_a_body_that_is_known_to_be_wrong_is_not_begun_with(autojump_clock: MockClock) -> None:
    application = Recorder()
    async with speaking(application) as peer:
        await peer.send(chunked(b"5\r\nhello\r\nnonsense\r\n") + SECOND)
        assert (await peer.only_answer()).status == 400
    assert application.asked == []


async def test_endless_extensions_of_chunks_are_refused(autojump_clock: MockClock) -> None:
    application = Recorder()
    async with speaking(application) as peer:
        await peer.send(chunked(b""), *(b"1;" + b"a" * 1000 + b"\r\nx\r\n" for _ in range(100)))
        assert (await peer.only_answer()).status == 400
    assert application.asked == []


@pytest.mark.parametrize("begin", [b"5;", b"0\r\nX: ", b"000000"], ids=["extension", "trailer", "size"])
async def test_an_endless_line_between_chunks_is_refused(autojump_clock: MockClock, begin: bytes) -> None:
    application = Recorder()
    async with speaking(application) as peer:
        await peer.send(chunked(begin), *(b"0" * 1000 for _ in range(100)))
        assert (await peer.only_answer()).status == 400
    assert application.asked == []


async def test_endless_trailers_are_refused(autojump_clock: MockClock) -> None:
    application = Recorder()
    async with speaking(application) as peer:
        await peer.send(chunked(b"0\r\n"), *(b"X: a\r\n" * 100 for _ in range(100)))
        assert (await peer.only_answer()).status == 431
    assert application.asked == []


async def test_endless_headers_are_refused(autojump_clock: MockClock) -> None:
    application = Recorder()
    async with speaking(application) as peer:
        await peer.send(head()[:-2], *(b"X: a\r\n" * 200 for _ in range(100)))
        assert (await peer.only_answer()).status == 431
    assert application.begun == 0


# ---- what is taken


async def ask(application: Recorder, data: bytes, method: str = "GET") -> Answer:
    async with speaking(application) as peer:
        await peer.send(data)
        return await peer.answer(method)


async def test_the_largest_head_is_taken(autojump_clock: MockClock) -> None:
    application = Recorder()
    lines = [b"X: a"] * (HEADERS_LIMIT - 2)
    rest = HEAD_BYTES - len(head(*lines)) - len(b"Y: \r\n") + 4
    assert (await ask(application, head(*lines, b"Y: " + b"b" * rest))).status == 200
    assert len(application.asked[0].headers) == HEADERS_LIMIT


async def test_a_scope_says_all_of_a_request() -> None:
    scopes: list[HTTPScope] = []

    async def look(scope: HTTPScope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await reply(send, b"")

    async with speaking(look) as peer:
        await peer.send(b"GET /a%2Fb/%C3%A4?x=%20&y HTTP/1.1\r\nHOST: a\r\nX-Odd:\t two words \t\r\nX-Empty:\r\n\r\n")
        assert (await peer.answer()).status == 200
    scope = scopes[0]
    assert (scope["type"], scope["http_version"], scope["method"], scope["scheme"]) == ("http", "1.1", "GET", "http")
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a/b/ä", b"/a%2Fb/%C3%A4", b"x=%20&y")
    assert scope["headers"] == [(b"host", b"a"), (b"x-odd", b"two words"), (b"x-empty", b"")]
    assert (scope["client"], scope["server"], scope["root_path"]) == (("192.0.2.1", 4000), None, "")


@pytest.mark.parametrize("method", ["BREW", "get", "A-B.c!", "CONNECT", "QUERY"])
async def test_a_method_that_nobody_knows_is_the_applications_to_refuse(method: str) -> None:
    application = Recorder()
    async with speaking(application) as peer:
        first = head(b"Content-Length: 2", request=b"%s * HTTP/1.1" % method.encode())
        if method == "CONNECT":
            first = first.replace(b"*", b"a:1")
        await peer.send(first + b"hi" + SECOND)
        assert [(await peer.answer()).status for _ in range(2)] == [200, 200]
    assert [(asked.method, asked.body) for asked in application.asked] == [(method, b"hi"), ("GET", b"")]


@pytest.mark.parametrize("target", [b"/", b"*", b"//x", b"http://a/b?c", b"/%FF%00", b"/a?b?c#d", b'/"<>\\^`{|}'])
async def test_targets_of_every_form_reach_the_application_as_they_are(target: bytes) -> None:
    application = Recorder()
    assert (await ask(application, head(request=b"OPTIONS %s HTTP/1.1" % target))).status == 200
    assert application.targets == [target]


@pytest.mark.parametrize("empty", [b"\r\n"])
@pytest.mark.parametrize("cut", [[], [1], [2], [1, 2], [3]])
async def test_an_empty_line_before_a_request_is_passed_over(empty: bytes, cut: list[int]) -> None:
    application = Recorder()
    data = empty + SECOND
    ends = [0, *cut, len(data)]
    async with speaking(application) as peer:
        for _ in range(2):
            await peer.send(*(data[begin:end] for begin, end in pairwise(ends)))
            assert (await peer.answer()).status == 200
    assert application.targets == [b"/second"] * 2


async def test_chunks_come_without_their_coding() -> None:
    application = Recorder()
    data = chunked(b'5\r\nhello\r\n006;a;b="c"\r\n world\r\n1 ;x\r\n!\r\n0;z\r\nX-Sum: 1\r\nY:\r\n\r\n')
    for cut in range(1, len(data)):
        async with speaking(application) as peer:
            await peer.send(data[:cut], data[cut:] + SECOND)
            assert (await peer.answer()).body == b"POST /first 12"
            assert (await peer.answer()).body == b"GET /second 0"
    assert {asked.body for asked in application.asked} == {b"hello world!", b""}


async def test_tens_of_thousands_of_tiny_chunks_are_one_body() -> None:
    application = Recorder()
    async with speaking(application) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.send, chunked(b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"))
        assert (await peer.answer()).body == b"POST /first 50000"


async def test_who_gives_up_waiting_for_a_chunk_can_ask_again(autojump_clock: MockClock) -> None:
    async def impatient(scope: HTTPScope, receive: Receive, send: Send) -> None:
        data, more = b"", True
        while more:
            with trio.move_on_after(0.001):
                message = await receive()
                assert message["type"] == "http.request"
                data, more = data + message["body"], message["more_body"]
        await reply(send, data)

    data = chunked(b"5;a=b\r\nhello\r\n00006\r\n world\r\n0\r\nX: a\r\nY: b\r\n\r\n")
    async with speaking(impatient) as peer:
        for at in range(len(data)):
            await peer.send(data[at : at + 1])
            await trio.sleep(0.01)
        assert (await peer.answer()).body == b"hello world"


async def test_a_wish_to_change_the_protocol_is_passed_over() -> None:
    application = Recorder()
    async with speaking(application) as peer:
        for body in (b"", b"Content-Length: 2\r\n"):
            await peer.send(
                b"POST /up HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n%s\r\n" % body
                + (b"hi" if body else b"")
                + SECOND
            )
            assert [(await peer.answer()).status for _ in range(2)] == [200, 200]
    assert application.targets == [b"/up", b"/second"] * 2


async def test_http_2_with_prior_knowledge_is_handed_over_whole() -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    for cut in range(1, len(preface)):
        application = Recorder()
        async with speaking(application) as peer:
            # What comes when the connection was handed over finds nobody here.
            with suppress(trio.BrokenResourceError):
                await peer.send(preface[:cut], preface[cut:])
            await peer.ended.wait()
            taken = peer.handed_over
            assert taken is not None
            assert taken[:18] == preface[:18]
            assert preface.startswith(taken)
            assert application.begun == 0


async def test_http_2_is_no_second_request(autojump_clock: MockClock) -> None:
    async with speaking(Recorder()) as peer:
        await peer.send(SECOND)
        assert (await peer.answer()).status == 200
        await peer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert (await peer.only_answer()).status == 400
        assert peer.handed_over is None


# ---- how long a connection is kept

KEPT: dict[str, tuple[bytes, bool]] = {
    "HTTP/1.1": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
    "HTTP/1.1, close": (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", False),
    "HTTP/1.1, CLOSE in a list": (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: te ,\tCLOSE\r\n\r\n", False),
    "HTTP/1.1, close and keep-alive": (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n", False),
    "HTTP/1.1, of the way to a proxy": (b"GET / HTTP/1.1\r\nHost: a\r\nProxy-Connection: close\r\n\r\n", True),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", False),
    "HTTP/1.0, keep-alive": (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
    "HTTP/1.0, keep-alive and close": (b"GET / HTTP/1.0\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n", False),
}


@pytest.mark.parametrize("what", KEPT)
async def test_a_connection_is_kept_as_its_client_says(what: str) -> None:
    data, kept = KEPT[what]
    application = Recorder()
    async with speaking(application) as peer:
        await peer.send(data + SECOND)
        first = await peer.answer()
        assert first.all(b"connection") == ([b"keep-alive"] if kept and b"1.0" in data else [] if kept else [b"close"])
        if kept:
            assert (await peer.answer()).status == 200
        else:
            assert await peer.rest() == b""
    assert len(application.asked) == (2 if kept else 1)


async def test_tls_is_spoken_as_clear_text_is(certificates: Certificates) -> None:
    application = Recorder()
    async with speaking(application, tls=certificates) as peer:
        await peer.send(chunked(b"5\r\nhello\r\n0\r\n\r\n") + SECOND)
        assert (await peer.answer()).body == b"POST /first 5"
        assert (await peer.answer()).body == b"GET /second 0"
        await peer.send(b"GET / HTTP/1.1\r\n\r\n")
        assert (await peer.only_answer()).status == 400
    assert application.asked[0] == Asked(
        "POST", b"/first", [(b"host", b"a"), (b"transfer-encoding", b"chunked")], b"hello"
    )


# ---- Expect: 100-continue


async def test_a_body_that_waits_to_be_asked_for_is_asked_for() -> None:
    application = Recorder()
    async with speaking(application) as peer:
        for framing, data in (
            (b"Content-Length: 5", b"hello"),
            (b"Transfer-Encoding: chunked", b"1\r\nx\r\n0\r\n\r\n"),
        ):
            await peer.send(post(framing, b"Expect: 100-Continue"))
            asked = await peer.answer()
            assert (asked.status, asked.headers) == (100, [])
            await peer.send(data)
            assert (await peer.answer()).status == 200
    assert [asked.body for asked in application.asked] == [b"hello", b"x"]


async def test_a_body_that_is_refused_is_not_asked_for(autojump_clock: MockClock) -> None:
    async def refuse(scope: HTTPScope, receive: Receive, send: Send) -> None:
        await start(send, 403, [(b"content-length", b"2")])
        await body(send, b"no", more=True)
        assert (await receive())["type"] == "http.disconnect"
        await body(send)

    async with speaking(refuse) as peer:
        await peer.send(post(b"Content-Length: %d" % len(SECOND), b"Expect: 100-continue"))
        answer = await peer.answer()
        assert (answer.status, answer.body, answer.closes) == (403, b"no", True)
        # What comes now is a body or a request: it is neither.
        await peer.send(SECOND)
        assert await peer.rest() == b""


async def test_a_body_that_is_there_already_is_not_asked_for() -> None:
    async with speaking(Recorder()) as peer:
        await peer.send(post(b"Content-Length: 5", b"Expect: 100-continue") + b"hello" + SECOND)
        assert (await peer.answer()).body == b"POST /first 5"
        assert (await peer.answer()).body == b"GET /second 0"


async def test_nothing_is_asked_for_where_there_is_no_body_or_no_such_version() -> None:
    async with speaking(Recorder()) as peer:
        await peer.send(head(b"Expect: 100-continue"))
        assert (await peer.answer()).status == 200
        await peer.send(post(b"Expect: something-else", b"Content-Length: 1") + b"x")
        assert (await peer.answer()).status == 200
        await peer.send(head(b"Expect: 100-continue", b"Content-Length: 1", request=b"POST / HTTP/1.0") + b"x")
        assert (await peer.only_answer()).status == 200


async def test_a_body_that_nobody_reads_ends_the_connection(autojump_clock: MockClock) -> None:
    asked: list[bytes] = []

    async def careless(scope: HTTPScope, receive: Receive, send: Send) -> None:
        asked.append(scope["raw_path"])
        await reply(send, b"whatever")

    async with speaking(careless) as peer:
        await peer.send(post(b"Content-Length: %d" % len(SECOND)) + SECOND + SECOND)
        answer = await peer.only_answer()
    assert (answer.status, answer.closes) == (200, True)
    assert asked == [b"/first"]

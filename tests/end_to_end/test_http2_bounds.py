"""What a client of HTTP/2 can make grow has bounds: it is told so, and others are served meanwhile."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import h2.events
import hpack
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import PriorityFrame

from certificates import Authority
from http2_peer import Http2Peer
from servers import Server, configured, forget_memory_peak, http, memory_now, memory_peak

MIB = 1 << 20
ALLOWED = 16 * MIB
AT_ONCE = 8
TIMES = 3
TOO_MUCH = {ErrorCodes.PROTOCOL_ERROR, ErrorCodes.ENHANCE_YOUR_CALM}


@pytest.fixture(scope="module", params=["h2c", "tls"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    folder = tmp_path_factory.mktemp("http2")
    if request.param == "h2c":
        with configured(folder / "root", http={"h2c": {"enabled": True}}) as server:
            yield server
    else:
        authority = Authority(folder)
        pair = authority.issue("server")
        files = {"certificate": str(pair.certificate), "key": str(pair.key)}
        settings = {"tls": files, "http2": {"disabled": False}}
        with configured(folder / "root", http=settings, tls=authority.trusted()) as server:
            yield server
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


@pytest.fixture
def peer(server: Server) -> Generator[Http2Peer]:
    peer = Http2Peer(server)
    yield peer
    peer.close()


def statuses(peer: Http2Peer) -> dict[int, str]:
    """Return what was answered, by stream."""
    answers = [event for event in peer.events if isinstance(event, h2.events.ResponseReceived)]
    return {answer.stream_id: bytes(answer.headers[0][1]).decode() for answer in answers}


def head(peer: Http2Peer, *more: tuple[str, str]) -> bytes:
    return hpack.Encoder().encode([*peer.heads(), *more], huffman=False)


# ---- heads that are too large


def a_huge_authorization(peer: Http2Peer) -> None:
    peer.request(("authorization", "Basic " + "A" * MIB))
    peer.talk(until=h2.events.ConnectionTerminated)


def a_large_authorization(peer: Http2Peer) -> None:
    peer.request(("authorization", "Basic " + "A" * (100 << 10)))
    peer.talk(until=h2.events.ConnectionTerminated)


def ten_thousand_headers(peer: Http2Peer) -> None:
    peer.request(*((f"x-{number}", "a") for number in range(10_000)))
    peer.talk(until=h2.events.ConnectionTerminated)


def a_flood_of_empty_frames(peer: Http2Peer) -> None:
    peer.talk(peer.block(1, [head(peer), *[b""] * 5000], end=False), until=h2.events.ConnectionTerminated)


def a_flood_of_full_frames(peer: Http2Peer) -> None:
    piece = b"\0\1a\1b" * 3200
    peer.talk(peer.block(1, [head(peer), *[piece] * 500], end=False), until=h2.events.ConnectionTerminated)


def a_bomb(peer: Http2Peer) -> None:
    """Name a large header once, then again with a byte each: 70 KiB stand for more than 250 MiB."""
    bomb = head(peer, ("x-bomb", "b" * 3900))
    peer.talk(peer.block(1, [bomb, *[b"\xbe" * 16_000] * 4], end=True), until=h2.events.ConnectionTerminated)


HEADS = [
    a_huge_authorization,
    a_large_authorization,
    ten_thousand_headers,
    a_flood_of_empty_frames,
    a_flood_of_full_frames,
    a_bomb,
]


@pytest.mark.parametrize("abuse", HEADS, ids=lambda abuse: abuse.__name__)
def test_a_head_that_is_too_large_ends_the_connection_with_an_error(
    abuse: Callable[[Http2Peer], None], server: Server
) -> None:
    (worker,) = server.workers

    def use(number: int) -> ErrorCodes | int | None:
        del number
        peer = Http2Peer(server)
        try:
            abuse(peer)
            return peer.why_ended()
        finally:
            peer.close()

    forget_memory_peak(worker)
    before = memory_now(worker)
    with ThreadPoolExecutor(AT_ONCE) as pool, http(server.url, server.tls, http2=True) as other:
        abusers = [pool.submit(use, number) for number in range(AT_ONCE * TIMES)]
        others = [other.get("/v2/").status_code]
        while not all(abuser.done() for abuser in abusers):
            others.append(other.get("/v2/").status_code)
    assert {abuser.result() for abuser in abusers} <= TOO_MUCH
    assert set(others) == {200}
    assert memory_peak(worker) - before < ALLOWED
    assert server.workers == [worker]


# ---- requests that are refused, on connections that go on


def test_as_many_headers_are_taken_as_by_http_1(peer: Http2Peer) -> None:
    most = 256 - len(peer.heads())
    taken = peer.request(*((f"x-{number}", "a") for number in range(most)))
    too_many = peer.request(*((f"x-{number}", "a") for number in range(most + 1)))
    with_body = peer.request(*((f"x-{number}", "a") for number in range(1500)), method="PUT", end=False)
    peer.talk(until=h2.events.StreamEnded, count=3)
    after = peer.request()
    peer.talk(until=h2.events.StreamEnded)
    assert statuses(peer) == {taken: "200", too_many: "431", with_body: "431", after: "200"}
    told = [bytes(event.data) for event in peer.events if isinstance(event, h2.events.DataReceived)]
    assert b'{"errors":[{"code":"UNSUPPORTED","message":"not served: too many headers"}]}' in told


def test_what_must_be_ascii_and_is_not_is_refused(peer: Http2Peer) -> None:
    method, path = peer.request(method="GÄT"), peer.request(path="/v2/ä/tags/list")
    peer.talk(until=h2.events.StreamEnded, count=2)
    after = peer.request()
    peer.talk(until=h2.events.StreamEnded)
    assert statuses(peer) == {method: "400", path: "400", after: "200"}


def test_the_heads_of_all_requests_under_way_are_bounded_together(peer: Http2Peer, server: Server) -> None:
    (worker,) = server.workers
    forget_memory_peak(worker)
    before = memory_now(worker)
    large = ("authorization", "Bearer " + "A" * 60_000)
    kind = ("content-type", "application/vnd.oci.image.manifest.v1+json")
    waiting = [
        peer.request(large, kind, method="PUT", path="/v2/a/manifests/latest", end=False)
        for _ in range(90)  # of the hundred that may be under way
    ]
    peer.talk(until=h2.events.StreamReset, count=90 - 8)
    reset = [event for event in peer.events if isinstance(event, h2.events.StreamReset)]
    assert {event.error_code for event in reset} == {ErrorCodes.REFUSED_STREAM}
    assert [event.stream_id for event in reset] == waiting[8:]
    assert memory_peak(worker) - before < ALLOWED
    # Who has given up the others may ask again.
    for stream in waiting[:8]:
        peer.h2.reset_stream(stream)
    after = peer.request(large)
    peer.talk(until=h2.events.StreamEnded)
    assert statuses(peer)[after] == "200"


# ---- frames that cost more than they seem to


def test_who_gives_up_most_requests_is_sent_away(peer: Http2Peer, server: Server) -> None:
    for _ in range(200):
        peer.h2.reset_stream(peer.request())
    with http(server.url, server.tls, http2=True) as other:
        peer.talk(until=h2.events.ConnectionTerminated)
        assert other.get("/v2/").status_code == 200
    assert peer.why_ended() == ErrorCodes.ENHANCE_YOUR_CALM


def test_who_gives_up_some_requests_is_not(peer: Http2Peer) -> None:
    for _ in range(150):
        peer.h2.reset_stream(peer.request())
        peer.request()
        peer.request()
        peer.talk(until=h2.events.StreamEnded, count=2)
    assert not peer.ended
    assert set(statuses(peer).values()) == {"200"}


def test_priorities_of_streams_that_never_come_are_nothing(peer: Http2Peer) -> None:
    frames = [PriorityFrame(2 * number + 1, stream_weight=3) for number in range(5000)]
    peer.talk(b"".join(frame.serialize() for frame in frames))
    after = peer.request()
    peer.talk(until=h2.events.StreamEnded)
    assert statuses(peer) == {after: "200"}

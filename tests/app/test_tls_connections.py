"""How a connection with TLS begins, what its stream does, and certificates that change, in the tests' own process."""

import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from certificates import Authority, Pair
from moorage import ClientLeft, load_configuration
from moorage_app import tls as tls_module, transports
from moorage_app.tls import ServerTls, server_tls
from moorage_app.tls_stream import STEP, TlsStream

NAME = "registry.test"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("server", NAME)


@pytest.fixture
def tls(pair: Pair) -> ServerTls:
    return made(pair)


def made(pair: Pair, **more: object) -> ServerTls:
    settings = {"certificate": str(pair.certificate), "key": str(pair.key), **more}
    overrides = {f"http.tls.{name}": value for name, value in settings.items()}
    tls = server_tls(load_configuration(None, {}, overrides=overrides).configuration)
    assert tls is not None
    return tls


def sockets() -> tuple[trio.SocketStream, trio.SocketStream]:
    ours, theirs = (trio.SocketStream(each) for each in trio.socket.socketpair())
    return ours, theirs


@asynccontextmanager
async def accepting(tls: ServerTls) -> AsyncGenerator[tuple[trio.SocketStream, list[TlsStream | None]]]:
    """Accept a connection whose client is in the hands of the test; what becomes of it is there after the block."""
    client, server = sockets()
    accepted: list[TlsStream | None] = []

    async def accept() -> None:
        accepted.append(await tls.accept(server))

    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        yield client, accepted
    for stream in accepted:
        if stream is not None:
            await trio.aclose_forcefully(stream)


async def all_of(stream: trio.SocketStream) -> bytes:
    data = b""
    try:
        while more := await stream.receive_some():
            data += bytes(more)
    except trio.BrokenResourceError:
        pass  # cut off, with what was sent unread
    return data


# ---- clients that speak no TLS


@pytest.mark.parametrize("request_", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"POST ", b"PRI * HTTP/2.0\r\n\r\n", b"x"])
async def test_clear_text_is_told_which_port_it_has_reached(request_: bytes, tls: ServerTls) -> None:
    async with accepting(tls) as (client, accepted):
        await client.send_all(request_)
        await client.send_eof()
        head, _, body = (await all_of(client)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert b"speaks HTTPS" in body
    assert accepted == [None]


async def test_clear_text_with_a_large_body_can_read_its_answer(tls: ServerTls) -> None:
    async with accepting(tls) as (client, _), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"PUT / HTTP/1.1\r\nHost: a\r\n\r\n" + b"x" * 500_000)
        assert b"speaks HTTPS" in await all_of(client)


async def test_clear_text_without_end_is_not_read_for_ever(autojump_clock: MockClock, tls: ServerTls) -> None:
    async with accepting(tls) as (client, accepted):
        await client.send_all(b"PUT / HTTP/1.1\r\n")
        assert b"speaks HTTPS" in await all_of(client)
    assert accepted == [None]


@pytest.mark.parametrize("garbage", [b"\0", b"\x80\x2e\x01\x03\x01", b"\xff" * 1000, b"\r\n\r\n", b""])
async def test_garbage_is_let_go_without_a_word(garbage: bytes, tls: ServerTls) -> None:
    async with accepting(tls) as (client, accepted):
        await client.send_all(garbage)
        await client.send_eof()
        assert await all_of(client) == b""
    assert accepted == [None]


@pytest.mark.parametrize("garbage", [b"\x16" + b"garbage" * 20, b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01"])
async def test_what_only_begins_like_tls_gets_no_more_than_an_alert(garbage: bytes, tls: ServerTls) -> None:
    async with accepting(tls) as (client, accepted):
        await client.send_all(garbage)
        await client.send_eof()
        assert (await all_of(client))[:1] in {b"", b"\x15"}
    assert accepted == [None]


@pytest.mark.parametrize("begun", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_who_does_not_come_to_an_end_is_let_go(begun: bytes, autojump_clock: MockClock, tls: ServerTls) -> None:
    began = trio.current_time()
    async with accepting(tls) as (client, accepted):
        await client.send_all(begun)
        assert await all_of(client) == b""
    assert accepted == [None]
    assert trio.current_time() - began == pytest.approx(tls_module.HANDSHAKE_SECONDS, abs=1)  # on the virtual clock


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_who_has_not_begun_is_let_go_when_the_server_stops(begun: bytes, tls: ServerTls) -> None:
    async with accepting(tls) as (client, accepted):
        await client.send_all(begun)
        await trio.testing.wait_all_tasks_blocked()
        tls.drain()
        assert await all_of(client) == b""
    async with accepting(tls) as (client, later):
        assert await all_of(client) == b""
    assert accepted == later == [None]


async def test_a_socket_is_closed_when_its_connection_is_cancelled(tls: ServerTls) -> None:
    client, server = sockets()
    with trio.CancelScope() as scope:
        scope.cancel()
        await tls.accept(server)
    assert await client.receive_some() == b""
    await client.aclose()


async def test_a_client_that_is_refused_is_told_why(authority: Authority, pair: Pair) -> None:
    tls = made(pair, clientcas=[str(authority.file)])
    old = authority.trusted()
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with accepting(tls) as (client, accepted):
        stream = trio.SSLStream(client, old, server_hostname=NAME)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.do_handshake()
        assert "alert" in str(caught.value.__cause__)
    assert accepted == [None]


# ---- a stream


@asynccontextmanager
async def speaking(
    authority: Authority, tls: ServerTls
) -> AsyncGenerator[tuple[trio.SSLStream[trio.SocketStream], TlsStream]]:
    """Open a connection; the first end is a client's."""
    ours, theirs = sockets()
    client = trio.SSLStream(ours, authority.trusted(), server_hostname=NAME, https_compatible=True)
    accepted: list[TlsStream | None] = []

    async def accept() -> None:
        accepted.append(await tls.accept(theirs))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await client.do_handshake()
    (server,) = accepted
    assert server is not None
    try:
        yield client, server
    finally:
        await trio.aclose_forcefully(client)
        await trio.aclose_forcefully(server)


async def test_what_is_sent_arrives_in_both_directions(authority: Authority, tls: ServerTls) -> None:
    data = os.urandom(3 * STEP + 12_345)
    async with speaking(authority, tls) as (client, server):
        received = bytearray()

        async def echo() -> None:
            while more := await server.receive(STEP):
                assert len(more) <= STEP
                await server.send(more[:5], b"", more[5:])

        async def read() -> None:
            while len(received) < len(data):
                received.extend(await client.receive_some())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            nursery.start_soon(read)
            await client.send_all(data)
            while len(received) < len(data):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert bytes(received) == data


async def test_many_records_are_received_at_one_step(authority: Authority, tls: ServerTls) -> None:
    async with speaking(authority, tls) as (client, server):
        server.transport_stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        client.transport_stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        await client.send_all(b"x" * 100_000)
        assert len(await server.receive(STEP)) == 100_000
        await client.send_all(b"y" * 100)
        assert len(await server.receive(10)) == 10
        assert len(await server.receive(STEP)) == 90


async def test_the_end_is_an_end_with_and_without_good_bye(authority: Authority, tls: ServerTls) -> None:
    for forcefully in (False, True):
        async with speaking(authority, tls) as (client, server):
            await server.send(b"first")
            assert await client.receive_some() == b"first"
            await client.send_all(b"last")
            await client.transport_stream.aclose() if forcefully else await client.aclose()
            assert await server.receive(STEP) == b"last"
            for _ in range(2):
                assert await server.receive(STEP) == b""
                assert await server.receive_some(STEP) == b""


async def test_a_broken_record_breaks_the_connection(authority: Authority, tls: ServerTls) -> None:
    async with speaking(authority, tls) as (client, server):
        await client.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + b"x" * 32)
        with pytest.raises(ClientLeft):
            await server.receive(STEP)
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some(STEP)


async def test_a_closed_stream_touches_no_descriptor(authority: Authority, tls: ServerTls) -> None:
    async with speaking(authority, tls) as (client, server):
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await server.receive_some(STEP)

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await server.aclose()
        await server.aclose()
        with pytest.raises(ClientLeft):
            await server.receive(STEP)
        with pytest.raises(ClientLeft):
            await server.send(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await server.send_all(b"x")
        assert await client.receive_some() == b""


async def test_who_takes_nothing_holds_up_no_end(
    autojump_clock: MockClock, authority: Authority, tls: ServerTls
) -> None:
    async with speaking(authority, tls) as (_, server):
        with pytest.raises(ClientLeft):
            await server.send(b"x" * (64 << 20))
        await server.aclose()


async def test_a_connection_that_sends_can_be_closed(authority: Authority, tls: ServerTls) -> None:
    async with speaking(authority, tls) as (_, server), trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await server.send_all(b"x" * (64 << 20))

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await server.aclose()


async def test_who_takes_slowly_gets_everything(
    autojump_clock: MockClock, authority: Authority, tls: ServerTls
) -> None:
    total = 4 << 20
    async with speaking(authority, tls) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(server.send, b"x" * total)
        got = 0
        while got < total:
            await trio.sleep(transports.STALLED_SECONDS - 2)
            step = got + (1 << 20)
            while got < min(step, total):
                got += len(await client.receive_some())


# ---- files that change


@asynccontextmanager
async def watching(tls: ServerTls) -> AsyncGenerator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(tls.watch)
        yield
        nursery.cancel_scope.cancel()


async def shown(authority: Authority, tls: ServerTls) -> bytes | None:
    """Return the certificate that a new connection gets."""
    async with speaking(authority, tls) as (client, _):
        certificate: bytes | None = client.getpeercert(binary_form=True)
        return certificate


async def until(condition: Callable[[], object]) -> None:
    """Return when `condition` holds; the clock is virtual, and threads need real time."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never held"
        await trio.sleep(tls_module.LOOK_SECONDS)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    caplog.set_level(logging.INFO, "moorage.tls")
    return lambda word: [record.getMessage() for record in caplog.records if word in record.getMessage()]


Told = Callable[[str], list[str]]


def _are_told(told: Told, count: int) -> bool:
    return len(told("files have changed")) == count


async def test_new_connections_get_the_certificate_that_the_files_have(
    autojump_clock: MockClock, authority: Authority, pair: Pair, tls: ServerTls, told: Told
) -> None:
    async with watching(tls):
        assert await shown(authority, tls) == pair.der
        async with speaking(authority, tls) as (client, server):
            for number in range(1, 4):
                new = authority.issue("new", NAME)
                new.take_the_place_of(pair)
                await until(partial(_are_told, told, number))
                assert await shown(authority, tls) == new.der
            # What was open before still is what it was.
            await client.send_all(b"still here")
            assert await server.receive(STEP) == b"still here"
            assert client.getpeercert(binary_form=True) == pair.der
    assert told("stay in use") == []


@pytest.mark.parametrize("break_", ["mismatch", "missing", "empty", "encrypted", "half"])
async def test_files_that_cannot_be_used_change_nothing_and_are_told_once(
    break_: str, autojump_clock: MockClock, authority: Authority, pair: Pair, tls: ServerTls, told: Told
) -> None:
    key = pair.key.read_bytes()
    async with watching(tls):
        match break_:
            case "mismatch":
                pair.key.write_bytes(authority.issue("other", NAME).key.read_bytes())
            case "missing":
                pair.key.unlink()
            case "empty":
                pair.certificate.write_bytes(b"")
            case "encrypted":
                pair.key.write_text(
                    "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
                )
            case _:
                pair.key.write_bytes(key[: len(key) // 2])
        await until(lambda: told("stay in use"))
        for _ in range(5):
            await trio.sleep(tls_module.LOOK_SECONDS)
        assert len(told("stay in use")) == 1
        assert await shown(authority, tls) == pair.der
        new = authority.issue("new", NAME)
        new.take_the_place_of(pair)
        await until(lambda: told("files have changed"))
        assert await shown(authority, tls) == new.der
    assert len(told("stay in use")) == 1


async def test_a_pair_is_read_only_when_both_files_have_come_to_rest(
    authority: Authority, pair: Pair, tls: ServerTls, told: Told
) -> None:
    new = authority.issue("new", NAME)
    found = tls._look(None)
    pair.certificate.write_bytes(new.certificate.read_bytes())
    found = tls._look(found)
    pair.key.write_bytes(new.key.read_bytes())
    found = tls._look(found)
    assert await shown(authority, tls) == pair.der
    tls._look(found)
    assert await shown(authority, tls) == new.der
    assert told("stay in use") == []


async def test_a_worker_that_starts_later_begins_with_what_the_files_have_by_then(
    authority: Authority, pair: Pair, tls: ServerTls
) -> None:
    new = authority.issue("new", NAME)
    new.take_the_place_of(pair)
    async with watching(tls):
        assert await shown(authority, tls) == new.der


async def test_authorities_of_clients_are_read_again_too(
    autojump_clock: MockClock, tmp_path: Path, authority: Authority, pair: Pair, told: Told
) -> None:
    other = Authority(tmp_path, "other")
    clients = tmp_path / "clients.pem"
    clients.write_bytes(other.file.read_bytes())
    tls = made(pair, clientcas=[str(clients)])
    identity = authority.issue("client", "client.test")

    async def verified() -> bool:
        ours, theirs = sockets()
        client = trio.SSLStream(ours, authority.trusted(identity), server_hostname=NAME, https_compatible=True)
        async with client, trio.open_nursery() as nursery:

            async def accept() -> None:
                server = await tls.accept(theirs)
                found.append(server is not None and server.peer_certificate() == identity.der)
                if server is not None:
                    await server.aclose()

            found: list[bool] = []
            nursery.start_soon(accept)
            await client.do_handshake()
        return found == [True]

    async with watching(tls):
        assert not await verified()
        clients.write_bytes(authority.file.read_bytes())
        await until(lambda: told("files have changed"))
        assert await verified()

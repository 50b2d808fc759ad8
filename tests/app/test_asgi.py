"""What becomes of a request whatever its client, its handler or its store do."""

import ipaddress
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import cast

import pytest
import trio
import trio.testing
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    HTTPScope,
    LifespanScope,
    WebsocketScope,
)

from asgi_client import EMPTY, Conversation, client_of, image, scope_of
from moorage import (
    MANIFEST_LIMIT,
    OCI_MANIFEST,
    CheckAccess,
    ClientLeft,
    Denied,
    Digest,
    Handler,
    MemoryDriver,
    Operation,
    Origin,
    PushManifest,
    R,
    Reader,
    Registry,
    StoreUnavailable,
)
from moorage_app.asgi import Application, RequestBody, Settings
from moorage_conformance.registry.expect import CODES

BLOB = bytes(range(256)) * 1024
DIGEST = Digest.of(BLOB)


class Asked:
    """A handler that notes what it was asked and what became of it."""

    def __init__(self, inner: Handler) -> None:
        self._inner = inner
        self.operations: list[Operation[object]] = []
        self.errors: list[BaseException] = []

    async def __call__(self, operation: Operation[R], /) -> R:
        self.operations.append(operation)
        try:
            return await self._inner(operation)
        except BaseException as error:
            self.errors.append(error)
            raise

    @property
    def origin(self) -> Origin:
        return self.operations[-1].origin


class Stuck:
    """A handler that never answers, and notes how that ended."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.cancelled = False

    async def __call__(self, operation: Operation[R], /) -> R:
        self.begun.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled = True
            raise
        raise AssertionError(operation)


class Failing:
    """A handler that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def __call__(self, operation: Operation[R], /) -> R:
        await trio.lowlevel.checkpoint()
        raise self._error


# ---- clients that leave


async def test_a_client_that_leaves_in_the_middle_of_a_chunk_loses_nothing() -> None:
    asked = Asked(Registry(MemoryDriver()))
    client = client_of(asked)
    location = await client.open_session("a")
    async with client.conversation("PATCH", location, [("Content-Length", "1000")]) as conversation:
        await conversation.send(b"hello")
        await conversation.send(b" world")
        await trio.testing.wait_all_tasks_blocked()
        conversation.leave()
    assert isinstance(asked.errors[-1], ClientLeft)
    answer = await client.ask("GET", location)
    assert (answer.status, answer.header("Range")) == (204, "0-10")
    assert (await client.ask("PUT", f"{location}?digest={Digest.of(b'hello world')}")).status == 201


async def test_a_client_that_falls_silent_holds_its_session_for_a_while_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client = client_of()
    location = await client.open_session("a")
    async with client.conversation("PATCH", location, [("Content-Length", "1000")]) as conversation:
        await conversation.send(b"hello")
        await trio.sleep(3600)
        assert (await client.ask("GET", location)).header("Range") == "0-4"
        assert (await client.ask("PATCH", location, [("Content-Range", "5-10")], b" world")).status == 202
        conversation.leave()
    del autojump_clock


async def test_a_client_that_takes_nothing_holds_its_answer_for_a_while_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    client = client_of()
    digest = await client.push_blob("a", b"hello")
    async with client.conversation("GET", f"/v2/a/blobs/{digest}") as conversation:
        await trio.sleep(59)
        assert not conversation.finished.is_set()
        assert (await conversation.message())["type"] == "http.response.start"
        await trio.sleep(59)
        assert not conversation.finished.is_set()
        await trio.sleep(2)
        assert conversation.finished.is_set()
    del autojump_clock


async def test_what_a_terminal_would_obey_is_no_part_of_a_logged_user_agent() -> None:
    asked = Asked(Registry(MemoryDriver()))
    await client_of(asked).ask("GET", "/v2/", [("User-Agent", "curl\x1b[31m\x07")])
    assert asked.operations[-1].origin.user_agent == "curl?[31m?"


async def test_a_client_that_leaves_in_the_middle_of_the_closing_put_may_close_again() -> None:
    client = client_of()
    location = await client.open_session("a")
    digest = Digest.of(b"hello world")
    async with client.conversation("PUT", f"{location}?digest={digest}", [("Content-Length", "11")]) as conversation:
        await conversation.send(b"hello")
        conversation.leave()
    assert (await client.ask("HEAD", f"/v2/a/blobs/{digest}")).status == 404
    assert (await client.ask("GET", location)).header("Range") == "0-4"
    assert (
        await client.ask("PUT", f"{location}?digest={digest}", [("Content-Range", "5-10")], b" world")
    ).status == 201


async def test_a_client_that_leaves_in_the_middle_of_a_single_post_leaves_nothing_behind() -> None:
    driver = MemoryDriver()
    client = client_of(Registry(driver))
    target = f"/v2/a/blobs/uploads/?digest={DIGEST}"
    async with client.conversation("POST", target, [("Content-Length", str(len(BLOB)))]) as conversation:
        await conversation.send(BLOB[:1000])
        conversation.leave()
    assert (await driver.list("")).entries == ()


async def test_a_client_that_leaves_in_the_middle_of_a_manifest_stores_nothing() -> None:
    asked = Asked(Registry(MemoryDriver()))
    client = client_of(asked)
    headers = [("Content-Type", OCI_MANIFEST), ("Content-Length", "1000")]
    async with client.conversation("PUT", "/v2/a/manifests/v1", headers) as conversation:
        await conversation.send(b"{")
        conversation.leave()
    assert asked.operations == []


@pytest.mark.parametrize("body", [b"", b"x" * 100])
async def test_work_for_a_client_that_left_is_cancelled(body: bytes) -> None:
    stuck = Stuck()
    headers = [("Content-Type", OCI_MANIFEST), ("Content-Length", str(len(body)))] if body else []
    with trio.fail_after(5):
        async with client_of(stuck).conversation(
            "PUT" if body else "GET", "/v2/a/manifests/v1", headers
        ) as conversation:
            if body:
                await conversation.send(body, more=False)
            await stuck.begun.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert not conversation.finished.is_set()
            conversation.leave()
    assert stuck.cancelled


async def test_a_handler_that_reads_no_body_is_cancelled_when_the_body_ends_and_the_client_leaves() -> None:
    stuck = Stuck()
    client = client_of()
    location = await client.open_session("a")
    with trio.fail_after(5):
        async with client_of(stuck).conversation("GET", location) as conversation:
            await stuck.begun.wait()
            conversation.leave()
    assert stuck.cancelled


class Watched(MemoryDriver):
    """A store that gives a blob in small pieces, counts them, and notes when a reader is closed."""

    given = 0
    closed = False
    fails_after: int | None = None
    failure: Exception = StoreUnavailable("the disk of 10.0.0.3 is gone", driver="x", operation="open", key="k")

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        async with super().open(key, start, stop) as reader:
            if not key.endswith("/data"):
                yield reader
                return
            if self.fails_after == 0:
                raise self.failure
            async with aclosing(self._pieces(reader)) as pieces:
                yield Reader(reader.stat, pieces)

    async def _pieces(self, reader: Reader) -> AsyncGenerator[bytes]:
        try:
            async for chunk in reader:
                for at in range(0, len(chunk), 1024):
                    if self.given == self.fails_after:
                        raise self.failure
                    self.given += 1
                    yield chunk[at : at + 1024]
        finally:
            self.closed = True


async def test_a_client_that_leaves_during_a_download_stops_the_reading() -> None:
    driver = Watched()
    client = client_of(Registry(driver))
    await client.push_blob("a", BLOB)
    async with client.conversation("GET", f"/v2/a/blobs/{DIGEST}") as conversation:
        start = await conversation.message()
        assert start["status"] == 200
        await conversation.message()
        await conversation.message()
        await trio.testing.wait_all_tasks_blocked()
        # No more is read than one piece that nobody took yet.
        assert driver.given == 3
        conversation.leave()
    assert driver.closed
    assert driver.given <= 4


async def test_a_download_goes_no_faster_than_its_client() -> None:
    driver = Watched()
    client = client_of(Registry(driver))
    await client.push_blob("a", BLOB)
    async with client.conversation("GET", f"/v2/a/blobs/{DIGEST}") as conversation:
        await conversation.message()
        for taken in range(1, 20):
            await conversation.message()
            await trio.testing.wait_all_tasks_blocked()
            assert driver.given <= taken + 1
        conversation.leave()


async def test_a_body_that_no_handler_reads_stays_with_the_client() -> None:
    stuck = Stuck()
    client = client_of(stuck)
    target = "/v2/a/blobs/uploads/x"
    async with (
        client.conversation("PATCH", target, [("Content-Length", "10")]) as conversation,
        trio.open_nursery() as nursery,
    ):
        await stuck.begun.wait()
        nursery.start_soon(conversation.send, b"hello")
        await trio.testing.wait_all_tasks_blocked()
        assert conversation.taken == 0
        nursery.cancel_scope.cancel()
        conversation.cancel()


# ---- handlers and stores that fail


@pytest.mark.parametrize(
    "error", [RuntimeError("secret-canary"), KeyError("secret-canary"), OSError(5, "secret-canary")]
)
async def test_an_unexpected_failure_is_a_500_that_says_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client_of(Failing(error)).ask("GET", "/v2/a/tags/list")
    assert answer.status == 500
    assert b"secret-canary" not in answer.body
    assert not any("secret-canary" in value for _, value in answer.headers)
    record = next(record for record in caplog.records if record.name == "moorage.app")
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    (entry,) = json.loads(answer.body)["errors"]
    assert set(entry["detail"]) == {"request"}


async def test_a_group_of_failures_is_one_500(caplog: pytest.LogCaptureFixture) -> None:
    answer = await client_of(Failing(ExceptionGroup("two", [ValueError("x"), KeyError("y")]))).ask("GET", "/v2/")
    assert answer.status == 500
    assert caplog.records


async def test_a_failure_does_not_end_the_application(caplog: pytest.LogCaptureFixture) -> None:
    class Once:
        def __init__(self) -> None:
            self.failed = False

        async def __call__(self, operation: Operation[R], /) -> R:
            if not self.failed:
                self.failed = True
                raise RuntimeError("once")
            return await Registry(MemoryDriver())(operation)

    client = client_of(Once())
    assert (await client.ask("GET", "/v2/")).status == 500
    assert (await client.ask("GET", "/v2/")).status == 200
    assert caplog.records


@pytest.mark.parametrize(
    ("failure", "status"),
    [(StoreUnavailable("10.0.0.3", driver="x", operation="open", key="k"), 503), (OSError(5, "10.0.0.3"), 500)],
)
async def test_a_blob_that_cannot_be_opened_is_an_error_as_any(
    failure: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Watched()
    client = client_of(Registry(driver))
    await client.push_blob("a", BLOB)
    driver.fails_after, driver.failure = 0, failure
    answer = await client.ask("GET", f"/v2/a/blobs/{DIGEST}")
    assert (answer.status, answer.complete) == (status, True)
    assert answer.codes
    assert b"10.0.0.3" not in answer.body
    assert any(record.levelno >= logging.ERROR for record in caplog.records)


@pytest.mark.parametrize(
    "failure", [StoreUnavailable("10.0.0.3", driver="x", operation="open", key="k"), OSError(5, "10.0.0.3")]
)
async def test_a_blob_that_breaks_off_ends_early_and_is_logged(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Watched()
    client = client_of(Registry(driver))
    await client.push_blob("a", BLOB)
    driver.fails_after, driver.failure = 5, failure
    answer = await client.ask("GET", f"/v2/a/blobs/{DIGEST}")
    assert (answer.status, answer.complete) == (200, False)
    assert answer.body == BLOB[: 5 * 1024]
    assert driver.closed
    assert any(record.levelno >= logging.ERROR and record.name == "moorage.app" for record in caplog.records)


# ---- bodies


async def test_a_body_that_nobody_wants_is_dropped_after_the_answer_was_sent() -> None:
    client = client_of()
    for method, target in (("PUT", "/v2/A/manifests/v1"), ("POST", "/nowhere"), ("PATCH", "/v2/a/blobs/uploads/x")):
        async with client.conversation(method, target, [("Content-Length", "3000000")]) as conversation:
            start = await conversation.message()
            assert start["status"] in {400, 404}
            body = await conversation.message()
            assert (body["body"], body["more_body"]) != (b"", False)
            for _ in range(29):
                await conversation.send(b"x" * 100_000)
            await conversation.send(b"x" * 100_000, more=False)
            end = await conversation.message()
            assert (end["body"], end["more_body"]) == (b"", False)
        assert conversation.taken == 3_000_000


async def test_a_body_without_an_end_is_dropped_for_a_while_only(autojump_clock: trio.testing.MockClock) -> None:
    client = client_of()
    async with client.conversation("POST", "/nowhere", [("Transfer-Encoding", "chunked")]) as conversation:
        await conversation.message()
        await conversation.message()
        piece = b"x" * (8 << 20)
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                # It ends when nobody takes any more.
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while True:
                        await conversation.send(piece)

            nursery.start_soon(flood)
            end = await conversation.message()
            nursery.cancel_scope.cancel()
        assert end["more_body"] is False
        assert (64 << 20) <= conversation.taken <= (80 << 20)
    # A client that sends nothing more is not waited for either.
    began = trio.current_time()
    async with client.conversation("POST", "/nowhere", [("Transfer-Encoding", "chunked")]) as conversation:
        for _ in range(3):
            end = await conversation.message()
        assert end["more_body"] is False
    assert trio.current_time() - began <= 10
    del autojump_clock


async def test_a_manifest_that_is_announced_too_large_is_refused_unread() -> None:
    client = client_of()
    headers = [("Content-Type", OCI_MANIFEST), ("Content-Length", str(MANIFEST_LIMIT + 1))]
    async with client.conversation("PUT", "/v2/a/manifests/v1", headers) as conversation:
        assert (await conversation.message())["status"] == 413
        assert conversation.taken == 0
        conversation.leave()


async def test_a_chunked_manifest_is_refused_as_soon_as_it_is_too_large() -> None:
    client = client_of()
    piece = b" " * 65536
    headers = [("Content-Type", OCI_MANIFEST), ("Transfer-Encoding", "chunked")]
    async with client.conversation("PUT", "/v2/a/manifests/v1", headers) as conversation:
        while conversation.taken <= MANIFEST_LIMIT:
            await conversation.send(piece)
        start = await conversation.message()
        assert start["status"] == 413
        assert conversation.taken <= MANIFEST_LIMIT + len(piece)
        body = await conversation.message()
        (entry,) = json.loads(cast("bytes", body["body"]))["errors"]
        assert entry["code"] == "SIZE_INVALID"
        conversation.leave()


class NoPushes:
    """A handler that lets nobody push, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[type] = []

    async def __call__(self, operation: Operation[R], /) -> R:
        await trio.lowlevel.checkpoint()
        self.asked.append(type(operation))
        assert [each.action for each in operation.access] == ["pull", "push"]
        raise Denied("you may not push")


async def test_of_who_may_not_push_little_of_a_manifest_is_read() -> None:
    handler = NoPushes()
    client = client_of(handler)
    headers = [("Content-Type", OCI_MANIFEST), ("Transfer-Encoding", "chunked")]
    async with client.conversation("PUT", "/v2/a/manifests/v1", headers) as conversation:
        for _ in range(3):
            await conversation.send(b" " * 30_000)
        assert (await conversation.message())["status"] == 403
        conversation.leave()
    assert handler.asked == [CheckAccess]
    # A small one is not asked about twice.
    answer = await client.ask("PUT", "/v2/a/manifests/v1", [("Content-Type", OCI_MANIFEST)], [b" " * 30_000])
    assert answer.status == 403
    assert handler.asked == [CheckAccess, PushManifest]


async def test_a_manifest_of_just_the_limit_is_taken() -> None:
    client = client_of()
    config = await client.push_blob("a", EMPTY)
    data = json.dumps(image(config)).encode().ljust(MANIFEST_LIMIT)
    pieces = [data[at : at + 100_000] for at in range(0, len(data), 100_000)]
    answer = await client.ask("PUT", "/v2/a/manifests/v1", [("Content-Type", OCI_MANIFEST)], pieces, length=False)
    assert answer.status == 201
    assert (await client.ask("GET", "/v2/a/manifests/v1")).body == data


async def test_a_body_may_come_without_any_framing_over_http_2() -> None:
    client = client_of()
    location = await client.open_session("a")
    async with client.conversation("PATCH", location, http_version="2") as conversation:
        await conversation.send(b"hello", more=False)
        answer = await conversation.answer()
    assert (answer.status, answer.header("Range")) == (202, "0-4")


async def test_without_framing_http_1_has_no_body() -> None:
    client = client_of()
    location = await client.open_session("a")
    answer = await client.ask("PATCH", location)
    assert (answer.status, answer.header("Range")) == (202, "0-0")


@pytest.mark.parametrize("length", ["", "abc", "-1", "1_0", "\xb2", "9" * 5000, "1, 1"])
async def test_a_length_that_is_no_number_is_refused(length: str, autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock  # a body that such a length may announce is waited for
    client = client_of()
    answer = await client.ask("PATCH", "/v2/a/blobs/uploads/x", [("Content-Length", length)])
    assert 400 <= answer.status < 500
    assert set(answer.codes) <= CODES


async def test_a_body_is_read_to_its_end_and_no_further() -> None:
    messages: list[ASGIReceiveEvent] = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"", "more_body": True},
        {"type": "http.request", "body": b"c", "more_body": False},
    ]

    async def receive() -> ASGIReceiveEvent:
        await trio.lowlevel.checkpoint()
        return messages.pop(0)

    body = RequestBody(receive, 3)
    assert [chunk async for chunk in body] == [b"ab", b"c"]
    assert body.finished
    assert await body.next() == b""
    assert [chunk async for chunk in body] == []
    assert not body.left


# ---- draining


async def test_a_registry_that_shuts_down_refuses_new_requests_and_ends_old_ones() -> None:
    client = client_of()
    location = await client.open_session("a")
    async with client.conversation("PATCH", location, [("Content-Length", "10")]) as conversation:
        await conversation.send(b"hello")
        client.application.drain()
        refused = await client.ask("GET", "/v2/")
        assert (refused.status, refused.header("Retry-After")) == (503, "1")
        assert refused.codes
        await conversation.send(b"world", more=False)
        assert (await conversation.answer()).status == 202
    assert (await client.ask("GET", location)).status == 503


# ---- who asks


async def test_an_operation_knows_where_it_came_from() -> None:
    asked = Asked(Registry(MemoryDriver()))
    client = client_of(asked)
    headers = [("User-Agent", "podman/5"), ("Authorization", "BASIC dXNlcjpwYXNz"), ("X-Request-Id", "mine")]
    await client.ask("GET", "/v2/", headers)
    origin = asked.origin
    assert (origin.address, origin.host, origin.method) == ("192.0.2.7", "registry.test", "GET")
    assert (origin.user_agent, origin.base_url) == ("podman/5", "http://registry.test")
    assert origin.credentials is not None
    assert (origin.credentials.scheme, origin.credentials.value) == ("basic", "dXNlcjpwYXNz")
    assert "dXNlcjpwYXNz" not in repr(asked.operations)
    # Who is not trusted does not name requests.
    assert origin.request_id != "mine"
    await client.ask("GET", "/v2/")
    assert asked.origin.request_id != origin.request_id
    assert asked.origin.credentials is None


async def test_a_trusted_proxy_speaks_for_its_client() -> None:
    asked = Asked(Registry(MemoryDriver()))
    settings = Settings(trusted_proxies=(ipaddress.ip_network("192.0.2.0/24"),), relative_urls=False, prefix="/r")
    client = client_of(asked, settings)
    headers = [
        ("X-Forwarded-For", "198.51.100.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "public.test"),
        ("X-Request-Id", "x" * 200),
    ]
    answer = await client.ask("POST", "/r/v2/a/blobs/uploads/", headers)
    assert (answer.header("Location") or "").startswith("https://public.test/r/v2/a/blobs/uploads/")
    assert asked.origin.address == "198.51.100.1"
    assert asked.origin.request_id == "x" * 128
    await client.ask("GET", "/r/v2/", [("X-Request-Id", "")])
    assert asked.origin.request_id


async def test_a_client_without_an_address_is_served() -> None:
    asked = Asked(Registry(MemoryDriver()))
    conversation = Conversation(scope_of("GET", "/v2/", client=None))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conversation.run, Application(asked, Settings()))
        assert (await conversation.answer()).status == 200
    assert asked.origin.address == ""


# ---- the line for each request


async def access_lines(
    caplog: pytest.LogCaptureFixture, ask: Callable[[], Awaitable[object]]
) -> list[dict[str, object]]:
    caplog.clear()
    with caplog.at_level(logging.INFO, "moorage.access"):
        await ask()
    return [getattr(record, "fields", {}) for record in caplog.records if record.name == "moorage.access"]


async def test_each_request_has_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    client = client_of()
    await client.push_blob("a", BLOB)
    (line,) = await access_lines(caplog, lambda: client.ask("GET", f"/v2/a/blobs/{DIGEST}", [("User-Agent", "x")]))
    assert (line["method"], line["path"], line["status"]) == ("GET", f"/v2/a/blobs/{DIGEST}", 200)
    assert (line["bytes"], line["operation"], line["address"]) == (len(BLOB), "PullBlob", "192.0.2.7")
    (line,) = await access_lines(caplog, lambda: client.ask("HEAD", f"/v2/a/blobs/{DIGEST}"))
    assert (line["status"], line["bytes"]) == (200, 0)
    (line,) = await access_lines(caplog, lambda: client.ask("GET", "/v2/A/tags/list"))
    assert (line["status"], line["code"]) == (400, "NAME_INVALID")


async def test_the_user_information_of_a_target_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    client = client_of()
    for path in ("/v2/", "/nothing"):
        (line,) = await access_lines(caplog, lambda: client.ask("GET", f"http://ann:canary@host{path}"))  # noqa: B023 - awaited here
        assert line["path"] == path


async def test_two_authorizations_that_differ_are_refused() -> None:
    client = client_of()
    one, other = ("Authorization", "Bearer a"), ("authorization", "Bearer b")
    assert (await client.ask("GET", "/v2/", [one, one])).status == 200
    for headers in ([one, other], [one, one, other]):
        assert (await client.ask("GET", "/v2/", headers)).status == 400


async def test_a_client_that_left_is_logged_as_such(caplog: pytest.LogCaptureFixture) -> None:
    async def leave() -> None:
        stuck = Stuck()
        async with client_of(stuck).conversation("GET", "/v2/") as conversation:
            await stuck.begun.wait()
            conversation.leave()

    (line,) = await access_lines(caplog, leave)
    assert line["status"] == 499


async def test_the_line_for_each_request_may_be_turned_off(caplog: pytest.LogCaptureFixture) -> None:
    client = client_of(settings=Settings(access_log=False))
    assert await access_lines(caplog, lambda: client.ask("GET", "/v2/")) == []


# ---- what else a server asks of an application


async def test_a_plugins_route_is_served_as_it_is() -> None:
    async def metrics(scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        del receive
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-from", scope["raw_path"])]})
        await send({"type": "http.response.body", "body": b"up 1", "more_body": False})

    client = client_of(routes={"/metrics": metrics})
    answer = await client.ask("POST", "/metrics?x=y")
    assert (answer.status, answer.body, answer.header("x-from")) == (200, b"up 1", "/metrics")
    assert (await client.ask("GET", "/metrics/")).status == 404
    assert (await client.ask("GET", "/v2/")).status == 200


async def exchange(scope: LifespanScope | WebsocketScope, *messages: ASGIReceiveEvent) -> list[ASGISendEvent]:
    waiting, sent = list(messages), list[ASGISendEvent]()

    async def receive() -> ASGIReceiveEvent:
        await trio.lowlevel.checkpoint()
        return waiting.pop(0)

    async def send(event: ASGISendEvent) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(event)

    await Application(Registry(MemoryDriver()), Settings())(scope, receive, send)
    return sent


async def test_start_and_stop_of_the_server_are_confirmed() -> None:
    sent = await exchange(
        {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}},
        {"type": "lifespan.startup"},
        {"type": "lifespan.shutdown"},
    )
    assert [event["type"] for event in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_websocket_is_closed() -> None:
    scope = cast("WebsocketScope", {**scope_of("GET", "/v2/"), "type": "websocket", "subprotocols": []})
    sent = await exchange(scope, {"type": "websocket.connect"})
    assert [event["type"] for event in sent] == ["websocket.close"]


async def test_operations_are_answered_in_tasks_of_their_own() -> None:
    client = client_of()
    answers: list[int] = []

    async def ask(at: int) -> None:
        digest = await client.push_blob("a", b"%d" % at)
        answer = await client.ask("GET", f"/v2/a/blobs/{digest}")
        answers.append(int(answer.body))

    async with trio.open_nursery() as nursery:
        for at in range(50):
            nursery.start_soon(ask, at)
    assert sorted(answers) == list(range(50))


async def test_a_target_with_scheme_and_host_is_the_path_in_it() -> None:
    client = client_of()
    for target, status in (("http://registry.test/v2/", 200), ("http://registry.test", 200), ("http://x/nowhere", 404)):
        assert (await client.ask("GET", target)).status == status


async def test_below_a_prefix_nothing_is_served_without_it() -> None:
    client = client_of(settings=Settings(prefix="/registry"))
    for target, status in (
        ("/registry/v2/", 200),
        ("/v2/", 404),
        ("/registryv2/", 404),
        ("/registry/registry/v2/", 404),
    ):
        assert (await client.ask("GET", target)).status == status
    assert (await client.ask("GET", "/")).status == 200

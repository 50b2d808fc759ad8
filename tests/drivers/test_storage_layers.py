"""The layers that come with Moorage, but for `retry` and `cache`, which have pages of their own."""

import json
from base64 import b64decode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from gcs_fake import gcs_fake
from google_storage import options as gcs_options
from moorage import (
    ConfigurationError,
    Driver,
    DriverLayer,
    KeyUnknown,
    MemoryDriver,
    Reader,
    Stat,
    StoreBusy,
    StoreUnavailable,
    decode_options,
)
from moorage_conformance.driver import CASES, Case, Subject, assert_case
from moorage_drivers import register_storage_middleware
from moorage_drivers._gcs_options import GCSOptions
from moorage_drivers._urls import Ranges
from moorage_drivers.gcs import GCSDriver
from proxies import Answer, fault_proxy, matching
from pushing import Repository
from s3 import SECRET, bucket, options as s3_options
from servers import configured, http, wait_for
from services import S3Service

AROUND_ANYTHING: dict[str, dict[str, object]] = {
    "redirect": {"baseurl": "https://cdn.example.com/registry"},
    "rewrite": {"host": "cdn.example.com"},
    "timeout": {"call": "60s"},
    "limit": {"calls": 40},
}
A_URL_ELSEWHERE = "objects.a_url_is_where_the_content_is"


@pytest.mark.parametrize("name", AROUND_ANYTHING)
@pytest.mark.parametrize("case", [case for case in CASES if case.key != A_URL_ELSEWHERE], ids=lambda case: case.key)
def test_a_layer_keeps_the_contract(case: Case, name: str) -> None:
    assert_case(case, Subject(name, AROUND_ANYTHING[name], around=True))


@asynccontextmanager
async def around(name: str, inside: Driver, **options: object) -> AsyncGenerator[Driver]:
    """Lay a layer around a driver, as a configuration does."""
    factory = register_storage_middleware()[name]
    options_type = getattr(factory, "options")  # noqa: B009 - of another type for each
    decoded = decode_options(options_type, options, source="middleware.storage")
    opening = getattr(factory, "open")(decoded, inside)  # noqa: B009 - of another type for each
    async with opening as driver:
        yield cast("Driver", driver)


# ---- where clients are sent


class WithURL(DriverLayer):
    """Has a URL for everything."""

    async def url(self, key: str, *, client_address: str = "") -> str | None:
        await trio.lowlevel.checkpoint()
        return f"https://bucket.example.com:9000/root/{key}?signature=1"


async def test_redirect_sends_clients_to_the_same_key_elsewhere() -> None:
    async with around("redirect", MemoryDriver(), baseurl="https://cdn.example.com/r/") as driver:
        assert await driver.url("docker/a+b/data") == "https://cdn.example.com/r/docker/a%2Bb/data"


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({}, "https://bucket.example.com:9000/root/a/b?signature=1"),
        ({"scheme": "http"}, "http://bucket.example.com:9000/root/a/b?signature=1"),
        ({"host": "cdn.example.com"}, "https://cdn.example.com/root/a/b?signature=1"),
        ({"trimpathprefix": "/root"}, "https://bucket.example.com:9000/a/b?signature=1"),
        ({"trimpathprefix": "/root/"}, "https://bucket.example.com:9000/a/b?signature=1"),
        ({"trimpathprefix": "/other"}, "https://bucket.example.com:9000/root/a/b?signature=1"),
    ],
)
async def test_rewrite_changes_what_it_is_told_to(options: dict[str, object], url: str) -> None:
    async with around("rewrite", WithURL(MemoryDriver()), **options) as driver:
        assert await driver.url("a/b") == url


async def test_rewrite_makes_no_url_where_there_is_none() -> None:
    async with around("rewrite", MemoryDriver(), host="cdn.example.com") as driver:
        assert await driver.url("a/b") is None


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("redirect", {}, "baseurl"),
        ("redirect", {"baseurl": "cdn"}, "baseurl: is a URL"),
        ("redirect", {"baseurl": "https://cdn?x"}, "baseurl: is a URL"),
        ("rewrite", {"scheme": "ftp"}, "scheme: found 'ftp'; allowed is http, https"),
        ("rewrite", {"host": "a/b"}, "host: is a host"),
        ("limit", {"calls": 0}, "calls: at least 1"),
        ("timeout", {"call": "soon"}, 'call: found "soon"; allowed is a time'),
        ("cloudfront", {"baseurl": "https://x", "privatekey": "/k", "keypairid": ""}, "keypairid: is empty"),
        ("cloudfront", {"baseurl": "https://x", "privatekey": "/nowhere", "keypairid": "K"}, "privatekey: .*nowhere"),
        (
            "cloudfront",
            {"baseurl": "https://x", "privatekey": "/k", "keypairid": "K", "ipfilteredby": "awsregion"},
            "awsregion: is needed",
        ),
    ],
)
async def test_an_option_that_cannot_work_is_refused_by_name(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        async with around(name, MemoryDriver(), **options):
            pytest.fail("it opened")


# ---- cloudfront


@pytest.fixture
def key(tmp_path: Path) -> rsa.RSAPrivateKey:
    """A key, in the file key.pem too, as distribution wants it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    )
    return key


def cloudfront(tmp_path: Path, **more: object) -> dict[str, object]:
    base = {"baseurl": "https://d1.cloudfront.net", "privatekey": str(tmp_path / "key.pem"), "keypairid": "K1"}
    return base | {"duration": "5m"} | more


@asynccontextmanager
async def named_objects() -> AsyncGenerator[Driver]:
    with gcs_fake() as service:
        options = decode_options(GCSOptions, gcs_options(service) | {"rootdirectory": "/root"}, source="s")
        async with GCSDriver.open_bucket(options) as driver:
            yield WithURL(driver)


async def test_cloudfront_signs_the_name_of_the_object(tmp_path: Path, key: rsa.RSAPrivateKey) -> None:
    async with named_objects() as inside, around("cloudfront", inside, **cloudfront(tmp_path)) as driver:
        url = await driver.url("docker/a/data", client_address="192.0.2.1")
    assert url is not None
    plain, _, query = url.partition("?")
    assert plain == "https://d1.cloudfront.net/root/docker/a/data"
    told = {name: values[0] for name, values in parse_qs(query).items()}
    expires = int(told["Expires"])
    policy = json.dumps(
        {"Statement": [{"Resource": plain, "Condition": {"DateLessThan": {"AWS:EpochTime": expires}}}]},
        separators=(",", ":"),
    )
    signature = b64decode(told["Signature"].translate(str.maketrans("-_~", "+=/")))
    key.public_key().verify(signature, policy.encode(), padding.PKCS1v15(), hashes.SHA1())
    assert told["Key-Pair-Id"] == "K1"


async def test_clients_inside_aws_get_the_buckets_own_url(tmp_path: Path, key: rsa.RSAPrivateKey) -> None:
    del key
    told = {
        "prefixes": [
            {"ip_prefix": "192.0.2.0/24", "region": "eu-central-1"},
            {"ip_prefix": "198.51.100.0/24", "region": "us-east-1"},
        ],
        "ipv6_prefixes": [{"ipv6_prefix": "2001:db8::/32", "region": "eu-central-1"}],
    }
    with gcs_fake() as somewhere, fault_proxy(somewhere.url) as proxy:
        proxy.fault(matching("GET", "ranges"), Answer(503))
        proxy.fault(matching("GET", "ranges"), Answer(200, json.dumps(told).encode()), times=9)
        for filtered, near, far in (
            ({"ipfilteredby": "aws"}, ["192.0.2.7", "198.51.100.1", "2001:db8::1"], ["203.0.113.1", "", "unix"]),
            ({"ipfilteredby": "awsregion", "awsregion": "eu-central-1, eu-west-1"}, ["192.0.2.7"], ["198.51.100.1"]),
        ):
            options = cloudfront(tmp_path, iprangesurl=f"{proxy.url}/ranges.json", **filtered)
            async with named_objects() as inside, around("cloudfront", inside, **options) as driver:
                if "awsregion" not in filtered:
                    # The first answer is an error: everybody goes to CloudFront.
                    await trio.to_thread.run_sync(
                        wait_for, lambda: len(proxy.requests) == 1, "the list to be asked for"
                    )
                    assert await host(driver, "192.0.2.7") == "d1.cloudfront.net"
                    continue
                while await host(driver, near[0]) != "bucket.example.com":  # noqa: ASYNC110 - nothing tells of it
                    await trio.sleep(0.01)
                assert {await host(driver, each) for each in far} == {"d1.cloudfront.net"}


async def host(driver: Driver, address: str) -> str | None:
    url = await driver.url("a", client_address=address)
    return urlsplit(url or "").hostname


def test_addresses_are_looked_up_by_their_range() -> None:
    from ipaddress import ip_network

    ranges = Ranges()
    assert "192.0.2.1" not in ranges
    ranges.replace([ip_network("192.0.2.0/25"), ip_network("2001:db8::/32"), ip_network("10.0.0.1/32")])
    inside = ["192.0.2.0", "192.0.2.127", "2001:db8:ffff::", "10.0.0.1"]
    outside = ["192.0.2.128", "2001:db9::", "10.0.0.2", "", "no address", "192.0.2.1/32"]
    assert [each for each in inside + outside if each in ranges] == inside


async def test_cloudfront_needs_a_driver_whose_objects_have_names(tmp_path: Path, key: rsa.RSAPrivateKey) -> None:
    del key
    with pytest.raises(ConfigurationError, match="keeps no objects that CloudFront could have by name"):
        async with around("cloudfront", MemoryDriver(), **cloudfront(tmp_path)):
            pytest.fail("it opened")


async def test_cloudfront_takes_no_other_keys_than_rsa(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(pem)
    with pytest.raises(ConfigurationError, match="privatekey: is no RSA key"):
        async with around("cloudfront", MemoryDriver(), **cloudfront(tmp_path)):
            pytest.fail("it opened")


# ---- timeout and limit


class Slow(DriverLayer):
    """Answers when it is told to, and counts how many are being served."""

    def __init__(self, inside: Driver) -> None:
        super().__init__(inside)
        self.go = trio.Event()
        self.now = self.most = 0

    @asynccontextmanager
    async def _served(self) -> AsyncGenerator[None]:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.go.wait()
            yield
        finally:
            self.now -= 1

    async def stat(self, key: str) -> Stat:
        async with self._served():
            return await super().stat(key)

    async def copy(self, source: str, destination: str, **more: object) -> None:
        async with self._served():
            await self.inside.copy(source, destination)

    @asynccontextmanager
    async def open(self, key: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Reader]:
        async with self.inside.open(key, start, stop) as reader:

            async def chunks() -> AsyncIterator[bytes]:
                yield b"first"
                async with self._served():
                    yield b"second"

            made = chunks()
            try:
                yield Reader(reader.stat, made)
            finally:
                await made.aclose()  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - a generator


async def test_a_call_or_a_silent_stream_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    slow = Slow(MemoryDriver())
    await slow.write("a", b"firstsecond")
    async with around("timeout", slow, call="10s", long="100s") as driver:
        with pytest.raises(StoreUnavailable, match="no answer within 10 s") as caught:
            await driver.stat("a")
        assert not caught.value.ambiguous
        with pytest.raises(StoreUnavailable, match="no answer within 100 s") as caught:
            await driver.copy("a", "b")
        assert caught.value.ambiguous
        read: list[bytes] = []
        with pytest.raises(StoreUnavailable, match="no answer within 10 s"):
            async with driver.open("a") as reader:
                async for chunk in reader:
                    # However slow the reader is: that is not the store's fault.
                    await trio.sleep(1000)
                    read.append(chunk)
        assert read == [b"first"]
        assert slow.now == 0
        slow.go.set()
        assert (await driver.stat("a")).size == 11


async def test_so_many_calls_are_under_way_and_so_many_wait(autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    slow = Slow(MemoryDriver())
    await slow.write("a", b"1")
    outcomes: list[str] = []
    async with around("limit", slow, calls=3, waiting=4, patience="30s") as driver:

        async def ask(seconds: float) -> None:
            with trio.move_on_after(seconds) as scope:
                try:
                    await driver.stat("a")
                    outcomes.append("answered")
                except StoreBusy as error:
                    outcomes.append("busy" if error.retry_after == 1.0 else "busy for ever")
            if scope.cancelled_caught:
                outcomes.append("cancelled")

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(ask, 10 if number == 4 else 1000)
                await trio.testing.wait_all_tasks_blocked()
            assert (slow.most, outcomes) == (3, ["busy"])
            # One gives up, whose place another one takes; the others wait in vain.
            await trio.sleep(11)
            nursery.start_soon(ask, 1000)
            await trio.sleep(40)
            assert outcomes.count("busy") == 1 + 4
            slow.go.set()
        assert sorted(outcomes) == ["answered"] * 3 + ["busy"] * 5 + ["cancelled"]
        assert slow.most == 3
        assert (await driver.stat("a")).size == 1


async def test_a_body_has_its_turn_until_it_is_left_and_an_error_gives_it_back() -> None:
    async with around("limit", MemoryDriver(), calls=1, waiting=0) as driver:
        await driver.write("a", b"1")
        async with driver.open("a"):
            with pytest.raises(StoreBusy):
                await driver.stat("a")
        with pytest.raises(KeyUnknown):
            async with driver.open("b"):
                pytest.fail("it opened")
        assert (await driver.stat("a")).size == 1


# ---- in a registry


@pytest.mark.parametrize(
    ("layers", "disabled", "expected"),
    [
        (
            [{"name": "redirect", "options": {"baseurl": "https://cdn.example.com"}}],
            False,
            "https://cdn.example.com/docker/",
        ),
        (
            [{"name": "rewrite", "options": {"scheme": "https", "host": "cdn.example.com"}}],
            False,
            "https://cdn.example.com/registry-",
        ),
        ([{"name": "redirect", "options": {"baseurl": "https://cdn.example.com"}}], True, None),
    ],
)
def test_a_get_is_sent_there_and_a_head_never_is(
    tmp_path: Path, moto: S3Service, layers: list[object], disabled: bool, expected: str | None
) -> None:
    storage = {"s3": s3_options(moto, bucket(moto)), "redirect": {"disable": disabled}}
    with (
        configured(tmp_path, workers=1, storage=storage, middleware={"storage": layers}) as server,
        http(server.url) as client,
    ):
        repository = Repository(client, "app")
        digest = repository.push(b"content")
        got, head = client.get(repository.blob_url(digest)), client.head(repository.blob_url(digest))
        assert head.status_code == 200
        if expected is None:
            assert (got.status_code, got.content) == (200, b"content")
        else:
            assert got.status_code == 307
            assert got.headers["location"].startswith(expected)
        assert SECRET not in server.logged()

"""The driver `s3` over moto and ministack: each is strict where the other is not."""

import time
from collections.abc import Callable, Generator
from functools import cache
from typing import cast

import msgspec
import pytest
import trio
from botocore.loaders import JSONFileLoader

from moorage import (
    Capabilities,
    ConfigurationError,
    Digest,
    DriverError,
    RangeUnsatisfiable,
    StoreUnavailable,
    UploadGone,
    decode_options,
)
from moorage_conformance.driver import CASES, Case, Subject, run_case
from moorage_conformance.report import Outcome
from moorage_drivers._s3_options import S3Options
from moorage_drivers.s3 import S3Driver
from s3 import bucket, options as plain_options
from services import S3Service

MIB = 1 << 20

FAULTS = {
    "moto": {
        "one_of_many_replaces_what_it_has_seen": "its look at If-Match is not one step with what it allows",
    },
    "ministack": {
        "one_of_many_replaces_what_it_has_seen": "a delete with If-Match is not one step with its look",
    },
}
"""What an emulator does otherwise than the service, by case; such a case may pass when its race is not met."""


@pytest.fixture(scope="module", autouse=True)
def models_read_once() -> Generator[None]:
    """Let the SDK read what it knows of the service once, and not for each client: that is most of an opening's time."""
    load = cache(cast("Callable[[str], object]", getattr(JSONFileLoader(), "load_file")))  # noqa: B009 - untyped

    def load_once(loader: object, path: str) -> object:
        del loader
        return load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", load_once)
        yield


@pytest.fixture(scope="module", params=["moto", "ministack"])
def named(request: pytest.FixtureRequest) -> tuple[str, S3Service, str]:
    """An emulator's name, the emulator, and a bucket of this module's own."""
    service = cast("S3Service", request.getfixturevalue(request.param))
    return request.param, service, bucket(service)


@pytest.fixture
def in_bucket(named: tuple[str, S3Service, str]) -> dict[str, object]:
    """Options for a fresh place in the bucket."""
    _, service, name = named
    return plain_options(service, name, rootdirectory=f"/{time.monotonic_ns()}/")


def options(in_bucket: dict[str, object], **more: object) -> S3Options:
    return decode_options(S3Options, in_bucket | more, source="storage.s3")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_the_driver_keeps_the_contract(case: Case, named: tuple[str, S3Service, str]) -> None:
    name, service, kit = named
    subject = Subject("s3", plain_options(service, kit, rootdirectory="{fresh}"))
    result = trio.run(lambda: run_case(subject, case, fast=True))
    if result.outcome in {Outcome.FAILED, Outcome.ERROR}:
        reason = FAULTS[name].get(case.name)
        if reason is None:
            raise AssertionError(f"{case.requirement}\n{result.reason}")
        pytest.xfail(reason)


def test_the_recorded_faults_are_of_cases_that_there_are() -> None:
    assert {name for faults in FAULTS.values() for name in faults} <= {case.name for case in CASES}


# ---- what the driver says of itself, and options


def test_it_says_what_buckets_can_do() -> None:
    assert S3Driver.capabilities == Capabilities(remote=True, announced_destination=True, chunk_minimum=5 * MIB)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bucket": ""}, "bucket: is empty"),
        ({"region": "", "regionendpoint": ""}, "region: is needed"),
        ({"accesskey": ""}, "accesskey, secretkey: one of them is missing"),
        ({"accesskey": "", "secretkey": "", "sessiontoken": "x"}, "sessiontoken: is of no use"),
        ({"v4auth": False}, "v4auth: false asks for signatures of version 2"),
        ({"storageclass": "GLACIAL"}, "storageclass: found 'GLACIAL'; allowed is NONE, STANDARD"),
        ({"chunksize": 1024}, "chunksize: the service takes parts of 5 MiB to 5 GiB"),
        ({"multipartcopychunksize": "1"}, "multipartcopychunksize: the service takes parts"),
        ({"multipartcopythresholdsize": 6 << 30}, "multipartcopythresholdsize: at most 5 GiB"),
        ({"multipartcopymaxconcurrency": 0}, "multipartcopymaxconcurrency: at least 1"),
        ({"maxconnections": 0}, "maxconnections: at least 1"),
        ({"cacert": "/x", "skipverify": True}, "cacert, skipverify: one excludes the other"),
        ({"redirectendpoint": "host"}, "redirectendpoint: is a scheme and a host"),
        ({"redirectendpoint": "https://host/path"}, "redirectendpoint: is a scheme and a host"),
        ({"redirectlifetime": "200h"}, "redirectlifetime: at most 7 days"),
        ({"profile": "nobody-has-this-profile"}, "the client cannot be made"),
    ],
)
async def test_an_option_that_cannot_work_is_refused_by_name(wrong: dict[str, object], said: str) -> None:
    settings = plain_options(S3Service("http://127.0.0.1:1", 1), "b") | wrong
    with pytest.raises(ConfigurationError, match=said):
        async with S3Driver.open_bucket(decode_options(S3Options, settings, source="storage.s3")):
            pytest.fail("it opened")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"secure": "maybe"}, 'secure: found "maybe"; allowed is true or false'),
        ({"chunksize": "ten"}, 'chunksize: found "ten"; allowed is a whole number'),
        ({"redirectlifetime": "soon"}, 'redirectlifetime: found "soon"; allowed is a time such as 20m'),
        ({"objectacl": "secret"}, "objectacl"),
        ({"bukket": "x"}, "bukket"),
    ],
)
def test_an_option_that_means_nothing_is_refused_by_name(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        decode_options(S3Options, {"bucket": "b", "region": "eu-west-1"} | settings, source="storage.s3")


def test_switches_and_numbers_may_be_text_as_distribution_takes_them() -> None:
    settings = {"bucket": "b", "region": "r", "secure": "false", "encrypt": "True", "chunksize": "5242880"}
    found = decode_options(S3Options, settings, source="storage.s3")
    assert (bool(found.secure), bool(found.encrypt), int(found.chunksize)) == (False, True, 5 * MIB)


@pytest.mark.parametrize(
    ("settings", "endpoint"),
    [
        ({}, None),
        ({"regionendpoint": "http://minio:9000"}, "http://minio:9000"),
        ({"regionendpoint": "minio:9000"}, "https://minio:9000"),
        ({"regionendpoint": "minio:9000", "secure": False}, "http://minio:9000"),
    ],
)
def test_the_endpoint_gets_its_scheme(settings: dict[str, object], endpoint: str | None) -> None:
    assert decode_options(S3Options, {"bucket": "b"} | settings, source="s").endpoint == endpoint


async def test_a_bucket_that_is_not_there_and_a_service_that_is_not_there_are_told(
    in_bucket: dict[str, object],
) -> None:
    with pytest.raises(DriverError, match="there is no bucket nowhere"):
        async with S3Driver.open_bucket(options(in_bucket, bucket="nowhere")):
            pytest.fail("it opened")
    with pytest.raises(StoreUnavailable) as caught:
        async with S3Driver.open_bucket(options(in_bucket, regionendpoint="http://127.0.0.1:1")):
            pytest.fail("it opened")
    assert "secret-canary" not in str(caught.value)


async def test_what_is_written_gets_the_parameters_of_the_options(in_bucket: dict[str, object]) -> None:
    more = {"encrypt": True, "storageclass": "standard_ia", "objectacl": "bucket-owner-full-control"}
    async with S3Driver.open_bucket(options(in_bucket, **more, requestpayer=True, useragent="canary/1")) as driver:
        await driver.write("a", b"1")
        head = await driver.ask("head_object", "stat", "a", Key=driver.at("a"))
        assert head["ServerSideEncryption"] == "AES256"
        assert head["StorageClass"] == "STANDARD_IA"
    async with S3Driver.open_bucket(options(in_bucket, keyid="key")) as driver:
        assert driver.new_object()["SSEKMSKeyId"] == "key"


async def test_urls_are_signed_for_the_public_endpoint_with_version_4(in_bucket: dict[str, object]) -> None:
    async with S3Driver.open_bucket(
        options(in_bucket, redirectendpoint="https://cdn.example.com", redirectlifetime="5m")
    ) as driver:
        url = await driver.url("a/b")
    assert url is not None
    assert url.startswith(f"https://cdn.example.com/{in_bucket['bucket']}/")
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
    assert "X-Amz-Expires=300" in url
    assert "secret-canary" not in url


# ---- uploads


async def test_a_large_upload_goes_on_in_another_replica_at_any_byte(in_bucket: dict[str, object]) -> None:
    settings = options(in_bucket, chunksize=5 * MIB)
    data = bytes(range(256)) * (23 * MIB // 256) + b"tail"
    async with S3Driver.open_bucket(settings) as first, S3Driver.open_bucket(settings) as second:
        async with first.open_upload("uploads/1/data", "blob") as upload:
            await upload.write(data[:7])
            token = await upload.suspend()
        position = 7
        for driver, stop in ((second, 6 * MIB), (first, 6 * MIB + 1), (second, 17 * MIB), (first, len(data))):
            async with driver.resume_upload(token, position) as upload:
                for at in range(position, stop, MIB):
                    await upload.write(data[at : min(at + MIB, stop)])
                token, position = await upload.suspend(), stop
        async with second.resume_upload(token, position) as upload:
            await upload.commit("blob")
        async with first.open("blob") as reader:
            assert Digest.of(b"".join([chunk async for chunk in reader])) == Digest.of(data)
        assert await first.expire_uploads(older_than=time.time() + 3600, dry_run=True) == 0


async def test_what_another_replica_sent_is_not_overwritten(in_bucket: dict[str, object]) -> None:
    settings = options(in_bucket, chunksize=5 * MIB)
    async with S3Driver.open_bucket(settings) as first, S3Driver.open_bucket(settings) as second:
        async with first.open_upload("uploads/1/data") as upload:
            await upload.write(b"1" * 5 * MIB)
            token = await upload.suspend()
        # Two go on from the same token; the second one's bytes are acknowledged.
        async with second.resume_upload(token, 5 * MIB) as winner:
            await winner.write(b"2" * 5 * MIB)
            acknowledged = await winner.suspend()
        async with S3Driver.open_bucket(settings) as third, third.resume_upload(token, 5 * MIB) as loser:
            await loser.write(b"3" * 5 * MIB)
            await loser.suspend()
        async with S3Driver.open_bucket(settings) as last, last.resume_upload(acknowledged, 10 * MIB) as upload:
            await upload.commit("blob")
        assert await first.read("blob", limit=10 * MIB) == b"1" * 5 * MIB + b"2" * 5 * MIB


async def test_an_announced_upload_is_committed_nowhere_else(in_bucket: dict[str, object]) -> None:
    async with S3Driver.open_bucket(options(in_bucket, chunksize=5 * MIB)) as driver:
        async with driver.open_upload("uploads/1/data", "blob") as upload:
            await upload.write(b"x" * 6 * MIB)
            with pytest.raises(UploadGone, match="announced for another key"):
                await upload.commit("other")
            await upload.abort()
        assert (await driver.list("")).entries == ()
        assert await driver.expire_uploads(older_than=time.time() + 3600, dry_run=True) == 0


async def test_a_commit_that_was_cut_off_before_its_copy_is_taken_up(in_bucket: dict[str, object]) -> None:
    settings = options(in_bucket, chunksize=5 * MIB)
    async with S3Driver.open_bucket(settings) as driver:
        async with driver.open_upload("uploads/1/data") as upload:
            await upload.write(b"x" * 6 * MIB)
            token = await upload.suspend()
            # As far as it came: the parts are an object at the session's own key.
            await upload.commit("uploads/1/data")
        async with driver.resume_upload(token, 6 * MIB) as upload:
            with pytest.raises(UploadGone):
                await upload.write(b"more")
            await upload.commit("blob")
        assert [entry.key for entry in (await driver.list("")).entries] == ["blob"]


async def test_a_copy_in_parts_is_whole(in_bucket: dict[str, object]) -> None:
    settings = options(in_bucket, multipartcopychunksize=5 * MIB, multipartcopythresholdsize=5 * MIB)
    data = bytes(range(256)) * (17 * MIB // 256) + b"tail"
    async with S3Driver.open_bucket(settings) as driver:
        await driver.write("a", data)
        await driver.copy("a", "b")
        assert await driver.read("b", limit=len(data)) == data


async def test_abandoned_uploads_are_found_by_their_age(in_bucket: dict[str, object]) -> None:
    async with S3Driver.open_bucket(options(in_bucket, chunksize=5 * MIB)) as driver:
        async with driver.open_upload("uploads/1/data") as upload:
            await upload.write(b"x" * 6 * MIB)
            token = await upload.suspend()
        assert await driver.expire_uploads(older_than=time.time() - 3600, dry_run=False) == 0
        assert await driver.expire_uploads(older_than=time.time() + 3600, dry_run=True) == 1
        assert await driver.expire_uploads(older_than=time.time() + 3600, dry_run=False) == 1
        assert await driver.expire_uploads(older_than=time.time() + 3600, dry_run=False) == 0
    async with S3Driver.open_bucket(options(in_bucket)) as driver:
        with pytest.raises(UploadGone):
            async with driver.resume_upload(token, 6 * MIB):
                pytest.fail("it went on")


async def test_a_cancelled_write_leaves_no_upload(in_bucket: dict[str, object]) -> None:
    async with S3Driver.open_bucket(options(in_bucket, chunksize=5 * MIB)) as driver:

        class Endless:
            def __aiter__(self) -> "Endless":
                return self

            async def __anext__(self) -> bytes:
                await trio.lowlevel.checkpoint()
                return b"x" * MIB

        with trio.move_on_after(0.5):
            await driver.write("a", Endless())
        assert (await driver.list("")).entries == ()
        assert await driver.expire_uploads(older_than=time.time() + 3600, dry_run=True) == 0
        assert driver.budgets.first.used == driver.budgets.further.used == 0
        assert driver.bridge.stuck == 0


# ---- reading


async def test_a_large_object_is_read_by_ranges_of_one_version(in_bucket: dict[str, object]) -> None:
    data = bytes(range(256)) * (40 * MIB // 256) + b"end"
    async with S3Driver.open_bucket(options(in_bucket)) as driver:
        await driver.write("a", data)
        for start, stop in ((0, None), (1, None), (9 * MIB, 31 * MIB), (len(data) - 3, None), (len(data), None)):
            async with driver.open("a", start, stop) as reader:
                assert reader.stat.size == len(data)
                assert Digest.of(b"".join([chunk async for chunk in reader])) == Digest.of(data[start:stop])
        with pytest.raises(RangeUnsatisfiable):
            async with driver.open("a", len(data) + 1):
                pytest.fail("it opened")
        async with driver.open("a") as reader:
            with pytest.raises(StoreUnavailable, match="replaced"):
                async for _ in reader:
                    await driver.write("a", b"other")
        assert driver.reading.memory.used == 0


def test_every_option_is_documented() -> None:
    documented = {line.partition(":")[0].strip() for line in (S3Options.__doc__ or "").splitlines()}
    assert {field.name for field in msgspec.structs.fields(S3Options)} <= documented

"""The driver `gcs` over a strict fake, and over an emulator that knows less."""

import json
import secrets
from collections.abc import AsyncIterator, Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from urllib.parse import parse_qsl, urlsplit

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gcs_fake import GCSFake, gcs_fake
from google_storage import options as plain_options
from moorage import (
    Absent,
    Capabilities,
    ConditionFailed,
    ConfigurationError,
    Digest,
    DriverError,
    StoreBusy,
    StoreReadOnly,
    StoreUnavailable,
    UploadGone,
    decode_options,
)
from moorage_conformance.driver import CASES, Case, Subject, run_case
from moorage_conformance.report import Outcome
from moorage_drivers._gcs_credentials import GoogleCredentials
from moorage_drivers._gcs_options import GCSOptions
from moorage_drivers.gcs import GCSDriver
from proxies import Answer, ResetBefore, fault_proxy, matching, slow_down
from services import GCSService

MIB = 1 << 20
QUANTUM = 256 << 10

EMPTY = "it drops the connection where an object has no bytes"
EXHAUSTED = "it takes no connections for seconds when it has had thousands"
UNCONDITIONAL = "it knows no preconditions"
FAULTS = {
    "objects.what_is_written_is_read": EMPTY,
    "objects.the_version_changes_with_each_write": EMPTY,
    "ranges.a_range_beyond_the_end_is_refused": EMPTY,
    "lists.a_prefix_without_keys_lists_nothing": EMPTY,
    "lists.a_full_page_says_whether_more_follows": EMPTY,
    "lists.what_is_deleted_goes_alone": EMPTY,
    "lists.all_below_a_prefix_is_deleted": EMPTY,
    "lists.five_thousand_keys_are_paged": EXHAUSTED,
    "cancellation.nothing_grows": EXHAUSTED,
    "uploads.an_upload_is_seen_when_it_is_committed": EMPTY,
    "conditions.one_of_many_creates": UNCONDITIONAL,
    "conditions.one_of_several_processes_creates": UNCONDITIONAL,
    "conditions.one_of_many_replaces_what_it_has_seen": UNCONDITIONAL,
    "conditions.counting_loses_nothing": UNCONDITIONAL,
    "conditions.what_is_gone_or_never_was_is_not_unchanged": UNCONDITIONAL,
    "conditions.a_write_tells_the_version_it_made": EMPTY,
    "conditions.a_delete_takes_only_the_version_that_was_seen": UNCONDITIONAL,
    "conditions.a_copy_honours_absent": UNCONDITIONAL,
    "conditions.a_commit_honours_absent": UNCONDITIONAL,
    "uploads.a_name_has_one_holder": UNCONDITIONAL,
    "uploads.a_name_has_one_holder_over_processes": UNCONDITIONAL,
    "cancellation.every_method_is_a_checkpoint": EMPTY,
}
"""What the emulator does otherwise than the service, by case; the strict fake passes all."""


@pytest.fixture(scope="module")
def fake() -> Generator[GCSFake]:
    with gcs_fake() as service:
        yield service


@pytest.fixture(scope="module")
def bucket(fake: GCSFake) -> dict[str, object]:
    """Options for a bucket of this module's own."""
    return plain_options(fake)


@pytest.fixture
def settings(bucket: dict[str, object]) -> dict[str, object]:
    """Options for a fresh place in the bucket."""
    return bucket | {"rootdirectory": f"/{secrets.token_hex(8)}/"}


def options(settings: dict[str, object], **more: object) -> GCSOptions:
    return decode_options(GCSOptions, settings | more, source="storage.gcs")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_the_driver_keeps_the_contract(case: Case, bucket: dict[str, object]) -> None:
    subject = Subject("gcs", bucket | {"rootdirectory": "{fresh}"})
    result = trio.run(lambda: run_case(subject, case, fast=True))
    assert result.outcome not in {Outcome.FAILED, Outcome.ERROR}, f"{case.requirement}\n{result.reason}"


@pytest.fixture(scope="module")
def emulated(gcs_service: GCSService) -> dict[str, object]:
    """Options for a bucket of the emulator."""
    return plain_options(gcs_service)


@pytest.mark.parametrize("case", [case for case in CASES if case.key not in FAULTS], ids=lambda case: case.key)
def test_the_driver_keeps_the_contract_as_far_as_the_emulator_does(case: Case, emulated: dict[str, object]) -> None:
    subject = Subject("gcs", emulated | {"rootdirectory": "{fresh}"})
    result = trio.run(lambda: run_case(subject, case, fast=True))
    assert result.outcome not in {Outcome.FAILED, Outcome.ERROR}, f"{case.requirement}\n{result.reason}"


def test_the_recorded_faults_are_of_cases_that_there_are() -> None:
    assert FAULTS.keys() <= {case.key for case in CASES}


# ---- what the driver says of itself, and options


def test_it_says_what_buckets_can_do() -> None:
    assert GCSDriver.capabilities == Capabilities(remote=True, announced_destination=False, chunk_minimum=0)


BASE: dict[str, object] = {"bucket": "b", "anonymous": True, "endpoint": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bucket": ""}, "bucket: is no name of a bucket"),
        ({"bucket": "a/b"}, "bucket: is no name of a bucket"),
        (
            {"keyfile": "/x", "credentials": {"a": 1}, "anonymous": False},
            "keyfile, credentials: one excludes the other",
        ),
        ({"keyfile": "/x"}, "anonymous: is of no use with keyfile or credentials"),
        ({"keyfile": "/nowhere.json", "anonymous": False}, "keyfile: .*No such file"),
        (
            {"credentials": {"type": "magic"}, "anonymous": False},
            "credentials: type: found 'magic'; allowed is service_account",
        ),
        ({"chunksize": 1000}, "chunksize: the service takes multiples of 256 KiB"),
        ({"chunksize": 0}, "chunksize: the service takes multiples of 256 KiB"),
        ({"endpoint": "host"}, "endpoint: is a URL with http or https"),
        ({"redirectendpoint": "https://host/path"}, "redirectendpoint: is a scheme and a host"),
        ({"redirectlifetime": "200h"}, "redirectlifetime: at most 7 days"),
        ({"rootdirectory": "r" * 200}, "rootdirectory: at most 124 characters"),
        ({"cacert": "/x", "skipverify": True}, "cacert, skipverify: one excludes the other"),
        ({"cacert": "/nowhere.pem"}, "the client cannot be made"),
        ({"proxy": "no url"}, "the client cannot be made"),
    ],
)
async def test_an_option_that_cannot_work_is_refused_by_name(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        async with GCSDriver.open_bucket(options(BASE, **wrong)):
            pytest.fail("it opened")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"chunksize": "ten"}, 'chunksize: found "ten"; allowed is a whole number'),
        ({"anonymous": "maybe"}, 'anonymous: found "maybe"; allowed is true or false'),
        ({"bukket": "x"}, "bukket"),
    ],
)
def test_an_option_that_means_nothing_is_refused_by_name(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        options(BASE, **wrong)


def test_fewer_than_25_requests_at_once_are_25_as_with_distribution() -> None:
    assert [options(BASE, maxconcurrency=number).at_once for number in (1, 25, 60)] == [25, 25, 60]


async def test_a_bucket_or_a_service_that_is_not_there_is_told(settings: dict[str, object]) -> None:
    for more, said in (
        ({"bucket": "nowhere"}, "there is no bucket nowhere"),
        ({"endpoint": "http://127.0.0.1:1"}, "Cannot connect"),
    ):
        with pytest.raises(StoreUnavailable, match=said):
            async with GCSDriver.open_bucket(options(settings, **more)):
                pytest.fail("it opened")


@pytest.mark.parametrize(
    ("answer", "kind", "retry_after"),
    [
        (Answer(401), StoreReadOnly, None),
        (Answer(403, b'{"error": {"errors": [{"reason": "forbidden"}]}}'), StoreReadOnly, None),
        (slow_down(429, 7), StoreBusy, 7.0),
        (slow_down(503, 2), StoreBusy, 2.0),
        (Answer(500), StoreUnavailable, None),
        (Answer(412), ConditionFailed, None),
        (ResetBefore(), StoreUnavailable, None),
    ],
)
async def test_what_the_service_answers_has_its_meaning(
    fake: GCSFake,
    settings: dict[str, object],
    answer: Answer | ResetBefore,
    kind: type[DriverError],
    retry_after: float | None,
) -> None:
    with fault_proxy(fake.url) as proxy:
        async with GCSDriver.open_bucket(options(settings, endpoint=proxy.url)) as driver:
            proxy.fault(matching("POST"), answer)
            with pytest.raises(kind) as caught:
                await driver.write("a", b"1")
    assert caught.value.retry_after == retry_after
    assert "://" not in str(caught.value)


# ---- credentials


@pytest.fixture(scope="module")
def account() -> dict[str, object]:
    """A service account that nobody knows."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "registry@p.iam.gserviceaccount.com",
        "token_uri": "http://127.0.0.1:1/token",
    }


@pytest.mark.parametrize("given", ["keyfile", "credentials"])
async def test_urls_are_signed_as_google_signs_them(tmp_path: Path, account: dict[str, object], given: str) -> None:
    from google.cloud.storage import _signing
    from google.oauth2 import service_account

    file = tmp_path / "account.json"
    file.write_text(json.dumps(account), encoding="utf-8")
    chosen: dict[str, object] = {"keyfile": str(file)} if given == "keyfile" else {"credentials": account}
    found = await GoogleCredentials.find(decode_options(GCSOptions, {"bucket": "b"} | chosen, source="s"))
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    url = await found.signed_url("https://storage.googleapis.com", "/b/docker/a+b=c@d/data", 1200, now)
    load = cast("Callable[[object], object]", getattr(service_account.Credentials, "from_service_account_info"))  # noqa: B009
    sign = cast("Callable[..., str]", getattr(_signing, "generate_signed_url_v4"))  # noqa: B009
    expected = sign(load(account), "/b/docker/a%2Bb%3Dc%40d/data", 1200, _request_timestamp="20260102T030405Z")
    assert url is not None
    assert urlsplit(url).path == urlsplit(expected).path
    assert dict(parse_qsl(urlsplit(url).query)) == dict(parse_qsl(urlsplit(expected).query))


async def test_without_a_key_nothing_is_signed(settings: dict[str, object]) -> None:
    async with GCSDriver.open_bucket(options(settings)) as driver:
        await driver.write("a", b"1")
        assert await driver.url("a") is None


async def test_a_token_that_cannot_be_had_is_told_without_the_key(
    settings: dict[str, object], account: dict[str, object]
) -> None:
    with pytest.raises(StoreUnavailable, match="no token from Google") as caught:
        async with GCSDriver.open_bucket(options(settings, anonymous=False, credentials=account)):
            pytest.fail("it opened")
    assert "PRIVATE" not in str(caught.value)


# ---- uploads


async def test_a_large_upload_goes_on_in_another_replica_at_any_byte(settings: dict[str, object]) -> None:
    chosen = options(settings, chunksize=4 * QUANTUM)
    data = bytes(range(256)) * (11 * MIB // 256) + b"tail"
    async with GCSDriver.open_bucket(chosen) as first, GCSDriver.open_bucket(chosen) as second:
        async with first.open_upload("uploads/1/data", "blob") as upload:
            await upload.write(data[:7])
            token = await upload.suspend()
        position = 7
        for driver, stop in (
            (second, 3 * MIB),
            (first, 3 * MIB + 1),
            (second, 9 * MIB),
            (second, 10 * MIB),
            (first, len(data)),
        ):
            async with driver.resume_upload(token, position) as upload:
                for at in range(position, stop, MIB):
                    await upload.write(data[at : min(at + MIB, stop)])
                token, position = await upload.suspend(), stop
        async with second.resume_upload(token, position) as upload:
            await upload.commit("blob")
        async with first.open("blob") as reader:
            assert Digest.of(b"".join([chunk async for chunk in reader])) == Digest.of(data)
        assert [entry.key for entry in (await first.list("")).entries] == ["blob"]


async def test_what_another_replica_sent_is_not_overwritten(settings: dict[str, object]) -> None:
    chosen = options(settings, chunksize=4 * QUANTUM)
    async with GCSDriver.open_bucket(chosen) as first, GCSDriver.open_bucket(chosen) as second:
        async with first.open_upload("uploads/1/data") as upload:
            await upload.write(b"1" * MIB)
            token = await upload.suspend()
        async with first.resume_upload(token, MIB) as winner, first.resume_upload(token, MIB) as loser:
            await winner.write(b"2" * MIB)
            acknowledged = await winner.suspend()
            await loser.write(b"3" * MIB)
            await loser.suspend()
        async with second.resume_upload(acknowledged, 2 * MIB) as upload:
            await upload.commit("blob")
        assert await first.read("blob", limit=2 * MIB) == b"1" * MIB + b"2" * MIB


async def test_an_upload_of_more_parts_than_one_request_composes_is_whole(
    fake: GCSFake, settings: dict[str, object]
) -> None:
    data = bytes(range(256)) * (70 * QUANTUM // 256)
    async with GCSDriver.open_bucket(options(settings, chunksize=QUANTUM)) as driver:
        fake.reset()
        async with driver.open_upload("uploads/1/data") as upload:
            for at in range(0, len(data), MIB):
                await upload.write(data[at : at + MIB])
            await upload.commit("blob", condition=Absent())
        assert fake.requests["POST", "compose"] == 3 + 1
        assert await driver.read("blob", limit=len(data)) == data
        assert [entry.key for entry in (await driver.list("")).entries] == ["blob"]
        async with driver.open_upload("uploads/2/data") as upload:
            await upload.write(data)
            with pytest.raises(ConditionFailed):
                await upload.commit("blob", condition=Absent())
            await upload.abort()
        assert [entry.key for entry in (await driver.list("")).entries] == ["blob"]


async def test_an_upload_whose_parts_are_gone_is_gone(settings: dict[str, object]) -> None:
    chosen = options(settings, chunksize=QUANTUM)
    async with GCSDriver.open_bucket(chosen) as driver:
        async with driver.open_upload("uploads/1/data") as upload:
            await upload.write(b"1" * 2 * MIB)
            token = await upload.suspend()
        await driver.delete_below("uploads/")
        async with driver.resume_upload(token, 2 * MIB) as upload:
            with pytest.raises(UploadGone):
                await upload.commit("blob")
    async with GCSDriver.open_bucket(chosen) as driver:
        with pytest.raises(UploadGone):
            async with driver.resume_upload(token, 2 * MIB):
                pytest.fail("it went on")


async def test_a_large_write_whose_source_fails_leaves_no_parts(settings: dict[str, object]) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x" * 3 * MIB
        raise ValueError("the source failed")

    async with GCSDriver.open_bucket(options(settings, chunksize=QUANTUM)) as driver:
        with pytest.raises(ValueError, match="the source failed"):
            await driver.write("a", failing())
        assert (await driver.list("")).entries == ()


async def test_a_copy_of_several_calls_is_whole() -> None:
    with gcs_fake(rewrite_limit=MIB) as service:
        async with GCSDriver.open_bucket(options(plain_options(service))) as driver:
            data = bytes(range(256)) * (3 * MIB // 256)
            await driver.write("a", data)
            await driver.copy("a", "b", condition=Absent())
            assert await driver.read("b", limit=len(data)) == data
            assert service.requests["POST", "rewrite"] == 3

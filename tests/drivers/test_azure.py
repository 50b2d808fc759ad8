"""The driver `azure` over azurite."""

import json
import secrets
from collections.abc import AsyncIterator
from typing import cast

import httpx
import msgspec
import pytest
import trio
from azure.storage.blob import BlobServiceClient

from azure_storage import options as plain_options
from moorage import (
    Absent,
    Capabilities,
    ConditionFailed,
    ConfigurationError,
    Digest,
    Driver,
    DriverError,
    StoreBusy,
    StoreUnavailable,
    Unchanged,
    UploadGone,
    decode_options,
)
from moorage_conformance.driver import CASES, Case, Subject, run_case
from moorage_conformance.report import Outcome
from moorage_drivers._azure_options import AzureOptions
from moorage_drivers.azure import AzureDriver
from proxies import Answer, fault_proxy, matching
from services import AZURITE_KEY, AzureService

MIB = 1 << 20


@pytest.fixture(scope="module")
def container(azurite: AzureService) -> dict[str, object]:
    """Options for a container of this module's own."""
    return plain_options(azurite)


@pytest.fixture
def settings(container: dict[str, object]) -> dict[str, object]:
    """Options for a fresh place in the container."""
    return container | {"rootdirectory": f"/{secrets.token_hex(8)}/"}


def options(settings: dict[str, object], **more: object) -> AzureOptions:
    return decode_options(AzureOptions, settings | more, source="storage.azure")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_the_driver_keeps_the_contract(case: Case, container: dict[str, object]) -> None:
    subject = Subject("azure", container | {"rootdirectory": "{fresh}"})
    result = trio.run(lambda: run_case(subject, case, fast=True))
    assert result.outcome not in {Outcome.FAILED, Outcome.ERROR}, f"{case.requirement}\n{result.reason}"


# ---- what the driver says of itself, and options


def test_it_says_what_containers_can_do() -> None:
    # Blocks belong to a name: sent to where two announce the same blob, the one's commit throws away the other's.
    assert AzureDriver.capabilities == Capabilities(remote=True, announced_destination=False)


BASE: dict[str, object] = {
    "container": "c",
    "accountname": "a",
    "accountkey": "a2V5",
    "serviceurl": "http://127.0.0.1:1/a",
}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"container": ""}, "container: is empty"),
        ({"accountname": ""}, "accountname: is needed"),
        ({"accountkey": ""}, "credentials: are needed"),
        ({"accountkey": "", "credentials": {"type": "shared_key"}}, "accountkey: is needed for credentials of type"),
        ({"sastoken": "sv=1"}, "accountkey, sastoken: one excludes the other"),
        (
            {"accountkey": "", "sastoken": "s", "credentials": {"type": "default"}},
            "credentials, sastoken: one excludes",
        ),
        ({"credentials": {"type": "client_secret", "clientid": "x"}}, "credentials: clientid, tenantid and secret"),
        ({"credentials": {"type": "default", "secret": "x"}}, "credentials: secret: is of no use"),
        ({"serviceurl": "host"}, "serviceurl: is a URL with http or https"),
        ({"redirectendpoint": "https://host?x"}, "redirectendpoint: is a URL with http or https, without a query"),
        ({"redirectlifetime": "48h"}, "redirectlifetime: at most 24 hours"),
        ({"max_retries": -2}, "max_retries: -1 or more"),
        ({"cacert": "/x", "skipverify": True}, "cacert, skipverify: one excludes the other"),
        ({"cacert": "/nowhere.pem"}, "the client cannot be made"),
        ({"chunksize": 1024}, "chunksize: the service takes blocks of 1 MiB to 4000 MiB"),
        ({"maxconnections": 0}, "maxconnections: at least 1"),
        ({"connectionstring": "Colour=red"}, "connectionstring: does not know colour"),
        ({"connectionstring": "no pairs"}, "connectionstring: does not know no pairs"),
    ],
)
async def test_an_option_that_cannot_work_is_refused_by_name(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        async with AzureDriver.open_container(options(BASE, **wrong)):
            pytest.fail("it opened")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"credentials": {"type": "magic"}}, "credentials"),
        ({"skipverify": "maybe"}, 'skipverify: found "maybe"; allowed is true or false'),
        ({"contaner": "x"}, "contaner"),
    ],
)
def test_an_option_that_means_nothing_is_refused_by_name(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        options(BASE, **wrong)


@pytest.mark.parametrize(
    ("given", "url", "key", "token"),
    [
        ({"accountname": "a", "accountkey": "k"}, "https://a.blob.core.windows.net", "k", ""),
        ({"accountname": "a", "accountkey": "k", "realm": "x.cn"}, "https://a.blob.x.cn", "k", ""),
        ({"connectionstring": "AccountName=b;AccountKey=q=="}, "https://b.blob.core.windows.net", "q==", ""),
        (
            {"connectionstring": "DefaultEndpointsProtocol=http;AccountName=b;AccountKey=q;EndpointSuffix=y"},
            "http://b.blob.y",
            "q",
            "",
        ),
        (
            {"connectionstring": "BlobEndpoint=http://h/b;AccountName=b;SharedAccessSignature=sv=1&sig=2;"},
            "http://h/b",
            "",
            "sv=1&sig=2",
        ),
        (
            {"connectionstring": "AccountName=b;AccountKey=q", "accountkey": "mine"},
            "https://b.blob.core.windows.net",
            "mine",
            "",
        ),
    ],
)
def test_where_the_account_is_and_who_asks(given: dict[str, object], url: str, key: str, token: str) -> None:
    found = decode_options(AzureOptions, {"container": "c"} | given, source="s").checked()
    assert (found.url, found.accountkey, found.sastoken) == (url, key, token)


async def test_a_container_or_a_service_that_is_not_there_and_a_wrong_key_are_told(settings: dict[str, object]) -> None:
    wrong: list[tuple[dict[str, object], str]] = [
        ({"container": "nowhere"}, "there is no container nowhere"),
        ({"serviceurl": "http://127.0.0.1:1/devstoreaccount1"}, "127.0.0.1"),
        ({"accountkey": "d3Jvbmc="}, "the service refuses: AuthorizationFailure"),
    ]
    for more, said in wrong:
        with pytest.raises(DriverError, match=said) as caught:
            async with AzureDriver.open_container(options(settings, **more)):
                pytest.fail("it opened")
        assert AZURITE_KEY not in str(caught.value)


async def test_urls_are_signed_for_a_while_and_for_one_blob(settings: dict[str, object]) -> None:
    async with AzureDriver.open_container(options(settings, redirectlifetime="5m")) as driver:
        await driver.write("a/b c".replace(" ", "+"), b"content")
        await driver.write("a/other", b"secret")
        url = await driver.url("a/b+c")
    assert url is not None
    assert AZURITE_KEY not in url
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).content == b"content"
        assert (await client.get(url.replace("a/b%2Bc", "a/other"))).status_code == 403
        assert (await client.put(url, content=b"x", headers={"x-ms-blob-type": "BlockBlob"})).status_code == 403
    async with AzureDriver.open_container(options(settings, redirectendpoint="https://cdn.example.com/c")) as driver:
        other = await driver.url("a/b")
    assert other is not None
    assert other.startswith(f"https://cdn.example.com/c/{settings['container']}/")


async def test_a_token_of_the_operator_is_not_handed_to_clients(
    azurite: AzureService, settings: dict[str, object]
) -> None:
    from datetime import UTC, datetime, timedelta

    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    token = generate_container_sas(
        azurite.account,
        str(settings["container"]),
        azurite.key,
        permission=ContainerSasPermissions(read=True, write=True, delete=True, list=True, create=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    with_token = {key: value for key, value in settings.items() if key not in {"accountkey", "credentials"}}
    async with AzureDriver.open_container(options(with_token, sastoken=token)) as driver:
        await driver.write("a", b"1")
        await driver.copy("a", "b")
        assert await driver.read("b", limit=9) == b"1"
        assert await driver.url("a") is None


# ---- uploads


async def test_a_large_upload_goes_on_in_another_replica_at_any_byte(settings: dict[str, object]) -> None:
    chosen = options(settings, chunksize=2 * MIB)
    data = bytes(range(256)) * (11 * MIB // 256) + b"tail"
    async with AzureDriver.open_container(chosen) as first, AzureDriver.open_container(chosen) as second:
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


async def test_one_process_that_goes_on_names_its_blocks_in_one_run(settings: dict[str, object]) -> None:
    async with AzureDriver.open_container(options(settings, chunksize=MIB)) as driver:
        async with driver.open_upload("uploads/1/data") as upload:
            await upload.write(b"0" * MIB)
            token = await upload.suspend()
        for number in range(1, 6):
            async with driver.resume_upload(token, number * MIB) as upload:
                await upload.write(b"%d" % number * MIB)
                token = await upload.suspend()
        assert len(cast("list[object]", json.loads(token)["runs"])) == 1
        async with driver.resume_upload(token, 6 * MIB) as upload:
            await upload.commit("blob")
        assert await driver.read("blob", limit=6 * MIB) == b"".join(b"%d" % number * MIB for number in range(6))


async def test_what_another_replica_sent_is_not_overwritten(settings: dict[str, object]) -> None:
    chosen = options(settings, chunksize=MIB)
    async with AzureDriver.open_container(chosen) as first, AzureDriver.open_container(chosen) as second:
        async with first.open_upload("uploads/1/data") as upload:
            await upload.write(b"1" * MIB)
            token = await upload.suspend()
        async with first.resume_upload(token, MIB) as winner, first.resume_upload(token, MIB) as loser:
            await winner.write(b"2" * MIB)
            acknowledged = await winner.suspend()
            await loser.write(b"3" * MIB)
            await loser.suspend()
        async with second.resume_upload(token, MIB) as another:
            await another.write(b"4" * MIB)
            await another.suspend()
        async with second.resume_upload(acknowledged, 2 * MIB) as upload:
            await upload.commit("blob")
        assert await first.read("blob", limit=2 * MIB) == b"1" * MIB + b"2" * MIB


async def test_a_commit_that_was_cut_off_before_its_copy_is_taken_up(settings: dict[str, object]) -> None:
    chosen = options(settings, chunksize=MIB)
    async with AzureDriver.open_container(chosen) as driver, driver.open_upload("uploads/1/data") as upload:
        await upload.write(b"x" * 3 * MIB)
        token = await upload.suspend()
        # As far as it came: the blocks are a blob at the session's own name.
        await upload.commit("uploads/1/data")
    async with AzureDriver.open_container(chosen) as driver:
        async with driver.resume_upload(token, 3 * MIB) as upload:
            await upload.write(b"more")
            await upload.commit("blob")
        assert [entry.key for entry in (await driver.list("")).entries] == ["blob"]
        assert await driver.read("blob", limit=4 * MIB) == b"x" * 3 * MIB + b"more"


async def test_an_aborted_upload_frees_its_blocks(azurite: AzureService, settings: dict[str, object]) -> None:
    async with (
        AzureDriver.open_container(options(settings, chunksize=MIB)) as driver,
        driver.open_upload("uploads/1/data") as upload,
    ):
        await upload.write(b"x" * 3 * MIB)
        await upload.suspend()
        assert len(uncommitted(azurite, settings)) == 1
        await upload.abort()
    assert uncommitted(azurite, settings) == []


def uncommitted(azurite: AzureService, settings: dict[str, object]) -> list[str]:
    with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
        client = service.get_container_client(str(settings["container"]))
        below = str(settings["rootdirectory"]).strip("/")
        return [blob.name for blob in client.list_blobs(name_starts_with=below, include=["uncommittedblobs"])]


async def test_of_two_large_writes_to_one_key_none_is_mixed(settings: dict[str, object]) -> None:
    outcomes: list[str] = []
    async with AzureDriver.open_container(options(settings, chunksize=MIB)) as driver:
        both_have_sent = trio.Event()
        waiting = 0

        async def chunks(fill: bytes) -> AsyncIterator[bytes]:
            nonlocal waiting
            yield fill * 2 * MIB
            waiting += 1
            if waiting == 2:
                both_have_sent.set()
            await both_have_sent.wait()
            yield fill * MIB

        async def write(fill: bytes) -> None:
            try:
                await driver.write("a", chunks(fill))
                outcomes.append("written")
            except StoreBusy:
                outcomes.append("busy")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, b"1")
            nursery.start_soon(write, b"2")
        assert "written" in outcomes
        assert len(set(await driver.read("a", limit=3 * MIB))) == 1


# ---- copies, and what distribution left


async def test_a_blob_that_distribution_appended_is_read_and_replaced(
    azurite: AzureService, settings: dict[str, object]
) -> None:
    with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
        client = service.get_container_client(str(settings["container"]))
        for key in ("a", "b", "c"):
            blob = client.get_blob_client(str(settings["rootdirectory"]).strip("/") + "/" + key)
            blob.create_append_blob()
            blob.append_block(b"of distribution")
    async with AzureDriver.open_container(options(settings, chunksize=MIB)) as driver:
        assert await driver.read("a", limit=99) == b"of distribution"
        await driver.write("a", b"ours")
        assert await driver.read("a", limit=99) == b"ours"
        await driver.copy("a", "b")
        assert await driver.read("b", limit=99) == b"ours"
        with pytest.raises(ConditionFailed):
            await driver.copy("a", "c", condition=Absent())
        with pytest.raises(ConditionFailed):
            await driver.copy("a", "c", condition=Unchanged((await driver.stat("a")).version))
        async with driver.open_upload("uploads/1/data") as upload:
            await upload.write(b"x" * 2 * MIB)
            await upload.commit("c")
        assert (await driver.stat("c")).size == 2 * MIB
        await driver.write("b", chunked(b"y" * 2 * MIB))
        assert (await driver.stat("b")).size == 2 * MIB


async def chunked(data: bytes) -> AsyncIterator[bytes]:
    yield data


PENDING = {
    "x-ms-copy-id": "1",
    "x-ms-copy-status": "pending",
    "ETag": '"0x1"',
    "Last-Modified": "Tue, 01 Jan 2030 00:00:00 GMT",
}


async def test_a_copy_that_is_pending_is_waited_for(azurite: AzureService, settings: dict[str, object]) -> None:
    with fault_proxy(azurite.url) as proxy:
        chosen = options(settings, serviceurl=f"{proxy.url}/{azurite.account}", retry_delay="1ms")
        async with AzureDriver.open_container(chosen) as driver:
            await driver.write("a", b"1")
            await driver.write("b", b"1")
            proxy.fault(matching("PUT", "/b$"), Answer(202, headers=PENDING))
            proxy.fault(
                matching("HEAD", "/b$"), Answer(200, headers=PENDING | {"x-ms-blob-type": "BlockBlob"}), times=3
            )
            done = PENDING | {"x-ms-copy-status": "success", "x-ms-blob-type": "BlockBlob"}
            proxy.fault(matching("HEAD", "/b$"), Answer(200, headers=done))
            await driver.copy("a", "b")
            assert proxy.faults_left == 0


@pytest.mark.parametrize("looks", [-1, 0, 2])
async def test_a_copy_that_does_not_end_is_aborted(
    azurite: AzureService, settings: dict[str, object], looks: int
) -> None:
    with fault_proxy(azurite.url) as proxy:
        chosen = options(settings, serviceurl=f"{proxy.url}/{azurite.account}", retry_delay="1ms", max_retries=looks)
        async with AzureDriver.open_container(chosen) as driver:
            await driver.write("a", b"1")
            proxy.fault(matching("PUT", "/b$"), Answer(202, headers=PENDING))
            proxy.fault(
                matching("HEAD", "/b$"), Answer(200, headers=PENDING | {"x-ms-blob-type": "BlockBlob"}), times=99
            )
            proxy.fault(matching("PUT", "comp=copy"), Answer(204))
            with pytest.raises(StoreUnavailable, match="the copy did not end"):
                await driver.copy("a", "b")
            asked = [request.method for request in proxy.requests if request.path.endswith("/b")]
    assert asked == ["PUT", *["HEAD"] * max(looks, 0), "PUT"]


async def test_a_store_of_another_driver_can_be_told_by_its_token(settings: dict[str, object]) -> None:
    async with AzureDriver.open_container(options(settings)) as driver:
        for token in (b"", b"{}", msgspec.json.encode({"key": "a", "runs": [["m", 1]]})):
            with pytest.raises(UploadGone):
                async with cast("Driver", driver).resume_upload(token, 0):
                    pytest.fail("it went on")

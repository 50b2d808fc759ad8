"""The driver `fsspec` over files, over fsspec's memory and over SFTP."""

import logging
import secrets
from pathlib import Path
from typing import cast

import pytest
import trio

from moorage import ConfigurationError, DriverError, StoreUnavailable, decode_options
from moorage_conformance.driver import CASES, Case, Subject, run_case
from moorage_conformance.registry import CASES as CLAUSES, Outcome as ClauseOutcome, check_registry
from moorage_conformance.report import Outcome
from moorage_drivers import FsspecOptions
from moorage_drivers.any_url import FsspecDriver
from pushing import Repository
from s3 import SECRET, bucket
from servers import configured, http, moorage
from services import S3Service, SFTPService

NOT_THERE = {"base.discovery_of_extensions_is_well_formed", "errors.caller_without_credentials"}
UNCONDITIONAL = {"uploads.two_patches_at_once", "manifests.only_one_of_many_conditional_puts_wins"}
"""Clauses of the specification's kit that need a store whose conditions hold; where they do not, more than one may win."""
ONE_PROCESS = "fsspec's memory is of one process"
TELLS = "it says at the start what it cannot do"
FAULTS = {
    "file": {"cancellation.another_process_uses_it_and_ends_quietly": TELLS},
    "memory": {
        "objects.a_killed_writer_leaves_a_whole_object": ONE_PROCESS,
        "objects.another_process_sees_what_was_written": ONE_PROCESS,
        "uploads.an_upload_outlives_its_process": ONE_PROCESS,
        "uploads.a_name_has_one_holder_over_processes": ONE_PROCESS,
        "cancellation.another_process_uses_it_and_ends_quietly": ONE_PROCESS,
    },
    "sftp": {"cancellation.another_process_uses_it_and_ends_quietly": TELLS},
}
"""What a protocol cannot do, by case."""


def sftp_options(service: SFTPService, below: str) -> dict[str, object]:
    options = {"key_filename": str(service.key_file), "look_for_keys": False, "allow_agent": False}
    return {"url": f"{service.url}/{below}", "options": options}


@pytest.fixture(params=["file", "memory", "sftp"])
def protocol(request: pytest.FixtureRequest) -> str:
    return cast("str", request.param)


@pytest.fixture
def settings(protocol: str, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    """Options for a store of that protocol; `{fresh}` is made another name each time."""
    match protocol:
        case "file":
            return {"url": f"file://{tmp_path}/{{fresh}}"}
        case "memory":
            return {"url": f"memory://{secrets.token_hex(6)}/{{fresh}}"}
        case _:
            return sftp_options(cast("SFTPService", request.getfixturevalue("sftp")), "{fresh}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_the_driver_keeps_the_contract(case: Case, protocol: str, settings: dict[str, object]) -> None:
    result = trio.run(lambda: run_case(Subject("fsspec", settings), case, fast=True))
    if result.outcome in {Outcome.FAILED, Outcome.ERROR}:
        reason = FAULTS[protocol].get(case.key)
        assert reason is not None, f"{case.requirement}\n{result.reason}"
        pytest.xfail(reason)


async def test_every_clause_of_the_specification_holds(tmp_path: Path, settings: dict[str, object]) -> None:
    storage = {"fsspec": settings, "delete": {"enabled": True}}
    with configured(tmp_path / "moorage", workers=1, storage=storage) as server:
        report = await check_registry(server.url)
    assert len(report.results) == len(CLAUSES)
    wrong = [
        f"{result.key}: {result.outcome.name}: {result.reason}"
        for result in report.results
        if result.outcome is not ClauseOutcome.PASSED and result.key not in NOT_THERE | UNCONDITIONAL
    ]
    assert wrong == []


async def opened(**settings: object) -> None:
    async with FsspecDriver.open_url(decode_options(FsspecOptions, settings, source="storage.fsspec")):
        pytest.fail("it opened")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"url": "no url"}, "url: is no URL"),
        ({"url": "magic://x"}, "magic"),
        ({"url": "memory://x", "maxthreads": 0}, "maxthreads: at least 1"),
        ({"url": "sftp://127.0.0.1:1/x", "options": {"colour": "red"}}, "colour"),
        ({"url": "memory://x", "options": 1}, "options"),
        ({}, "url"),
        ({"url": "memory://x", "colour": "red"}, "colour"),
    ],
)
async def test_what_cannot_be_opened_is_told_by_name(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        await opened(**wrong)


async def test_a_service_that_is_not_there_is_told() -> None:
    with pytest.raises(StoreUnavailable) as caught:
        await opened(url="sftp://127.0.0.1:1/x")
    assert isinstance(caught.value, DriverError)


async def test_what_a_protocol_cannot_do_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    options = decode_options(FsspecOptions, {"url": "memory://said"}, source="s")
    with caplog.at_level(logging.WARNING, "moorage.fsspec"):
        async with FsspecDriver.open_url(options) as driver:
            await driver.write("a", b"1")
    [record] = caplog.records
    for consequence in ("more than one may win", "seen in half", "each worker has a store of its own"):
        assert consequence in record.getMessage()


async def test_a_chain_of_urls_is_opened(tmp_path: Path) -> None:
    url = f"dir::file://{tmp_path}/store"
    options = decode_options(FsspecOptions, {"url": url}, source="s")
    async with FsspecDriver.open_url(options) as driver:
        await driver.write("a/b", b"1")
        assert await driver.read("a/b", limit=9) == b"1"


# ---- `moorage serve URL`


@pytest.mark.parametrize("kind", ["s3", "sftp", "memory", "file"])
def test_a_url_is_served(kind: str, tmp_path: Path, moto: S3Service, sftp: SFTPService) -> None:
    environment: dict[str, str] = {}
    match kind:
        case "s3":
            url = f"s3://{bucket(moto)}/some/prefix"
            environment = {
                "AWS_REGION": moto.region,
                "AWS_ENDPOINT_URL": moto.url,
                "AWS_ACCESS_KEY_ID": moto.access_key,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "REGISTRY_STORAGE_S3_FORCEPATHSTYLE": "true",
            }
        case "sftp":
            url = f"{sftp.url}/{secrets.token_hex(4)}"
            environment = {
                "REGISTRY_STORAGE_FSSPEC_OPTIONS": f"{{key_filename: {sftp.key_file}, look_for_keys: false}}",
            }
        case "memory":
            url = "memory://"
        case _:
            url = f"file://{tmp_path}/store"
    environment["REGISTRY_STORAGE_REDIRECT_DISABLE"] = "true"
    with moorage(url, log=tmp_path / "log", environment=environment) as server, http(server.url) as client:
        manifest = Repository(client, "app").push_image("v1", [b"layer"])
        assert Repository(client, "app").pull_image("v1") == manifest
    if kind == "file":
        assert (tmp_path / "store" / "docker").is_dir()

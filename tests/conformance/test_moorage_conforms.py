"""Moorage passes its own kit whole, on every store that it can run on, by both engines, with several workers and twice in a row."""

from collections.abc import Generator
from pathlib import Path

import pytest

from moorage_conformance.registry import CASES, Outcome, Report, check_registry
from servers import Server, configured, moorage

# What a registry without accounts and extensions cannot show.
NOT_THERE = {"base.discovery_of_extensions_is_well_formed", "errors.caller_without_credentials"}


@pytest.fixture(scope="module", params=["filesystem", "inmemory", "filesystem, stock engine"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    folder: Path = tmp_path_factory.mktemp("conforms")
    if request.param == "filesystem":
        with moorage(folder / "store", workers=2) as server:
            yield server
    elif request.param == "filesystem, stock engine":
        with configured(folder / "store", workers=2, http={"engine": "stock"}) as server:
            yield server
    else:
        with configured(folder, storage={"inmemory": {}, "delete": {"enabled": True}}) as server:
            yield server


def wrong(report: Report) -> list[str]:
    return [
        f"{result.key}: {result.outcome.name}: {result.reason}"
        for result in report.results
        if result.outcome is not Outcome.PASSED and result.key not in NOT_THERE
    ]


@pytest.mark.parametrize("time", ["first", "second"])
async def test_every_clause_of_the_specification_holds(server: Server, time: str) -> None:
    report = await check_registry(server.url)
    assert len(report.results) == len(CASES) > 250
    assert wrong(report) == [], f"the {time} time"

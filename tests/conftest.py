"""What several folders share.

A test that drives a program outside Python says so, and is never left out in silence. What is claimed of the registry is
claimed over each store it can run on.
"""

import gc
import os
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
from hypothesis import settings

from moorage import Driver, Registry
from services import (
    AzureService,
    GCSService,
    RedisService,
    S3Service,
    SFTPService,
    azurite_server,
    gcs_emulator,
    ministack_server,
    moto_server,
    redis_server,
    sftp_server,
)
from stores import Store, new_store
from tools import require_tool

# Tests judge what is done, not how quickly on a busy machine; hypothesis would fail an example that is slow.
settings.register_profile("moorage", settings.get_profile("ci" if os.environ.get("CI") else "default"), deadline=None)
settings.load_profile("moorage")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose program is not installed; where everything must be tested, fail it."""
    for marker in item.iter_markers("needs_tool"):
        for tool in marker.args:
            require_tool(str(tool), item.name)


def pytest_collection_finish() -> None:
    """Leave what stays until the end, thousands of tests and all modules, out of each later collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", params=["moorage", "stock"])
def http_engine(request: pytest.FixtureRequest) -> Generator[str]:
    """Who speaks HTTP/1.1 at the servers that a test starts: each in turn. What starts one for several tests asks too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGISTRY_HTTP_ENGINE", request.param)
        yield request.param


@pytest.fixture(params=["memory", "filesystem", "service"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store."""
    return new_store(request.param, tmp_path / "store")


@pytest.fixture
async def driver(store: Store) -> AsyncGenerator[Driver]:
    """A driver on the store."""
    async with store.open() as driver:
        yield driver


@pytest.fixture
async def registry(driver: Driver) -> Registry:
    """A registry on the store."""
    return Registry(driver)


@pytest.fixture(scope="session")
def moto() -> Generator[S3Service]:
    """S3 as moto has it; the whole session has one."""
    with moto_server() as service:
        yield service


@pytest.fixture(scope="session")
def ministack() -> Generator[S3Service]:
    """S3 as ministack has it; the whole session has one."""
    with ministack_server() as service:
        yield service


@pytest.fixture(scope="session")
def azurite() -> Generator[AzureService]:
    """Azure's blob storage as azurite has it; the whole session has one."""
    with azurite_server() as service:
        yield service


@pytest.fixture(scope="session")
def gcs_service() -> Generator[GCSService]:
    """Google Cloud Storage as gcp-storage-emulator has it; the whole session has one."""
    with gcs_emulator() as service:
        yield service


@pytest.fixture(scope="session")
def redis() -> Generator[RedisService]:
    """A Redis; the whole session has one."""
    with redis_server() as service:
        yield service


@pytest.fixture(scope="session")
def sftp() -> Generator[SFTPService]:
    """An SFTP server; the whole session has one."""
    with sftp_server() as service:
        yield service

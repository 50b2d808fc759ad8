"""What several folders share.

A test that drives a program outside Python says so, and is never left out in silence. What is claimed of the registry is
claimed over each store it can run on.
"""

import os
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from hypothesis import settings

from moorage import Driver, Registry
from stores import Store, new_store

# Tests judge what is done, not how quickly on a busy machine; hypothesis would fail an example that is slow.
settings.register_profile("moorage", settings.get_profile("ci" if os.environ.get("CI") else "default"), deadline=None)
settings.load_profile("moorage")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose program is not installed; where everything must be tested, fail it."""
    for marker in item.iter_markers("needs_tool"):
        for tool in marker.args:
            if shutil.which(str(tool)) is not None:
                continue
            sentence = f"not tested, because {tool} is not installed: {item.name}"
            if os.environ.get("CI") == "true":
                pytest.fail(sentence, pytrace=False)
            pytest.skip(sentence)


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

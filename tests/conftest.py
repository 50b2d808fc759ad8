"""Fixtures that several folders use. What is claimed of the registry is claimed over each store it can run on."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from moorage import Driver, Registry
from stores import Store, new_store


@pytest.fixture(params=["memory", "filesystem"])
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

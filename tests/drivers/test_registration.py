from pathlib import Path
from typing import cast

import msgspec
import pytest

from moorage import Driver, DriverFactory, MemoryDriver, NoOptions, PluginManager
from moorage_drivers import FilesystemOptions
from moorage_drivers.filesystem import FilesystemDriver


@pytest.fixture
def offered() -> dict[str, DriverFactory[msgspec.Struct]]:
    plugins = PluginManager()
    plugins.load_entry_points()
    return plugins.drivers()


async def written(factory: DriverFactory[msgspec.Struct], options: msgspec.Struct) -> Driver:
    async with factory.open(options) as driver:
        await driver.write("a/b", b"x")
        return driver


async def test_the_configuration_of_distribution_opens_the_filesystem(
    offered: dict[str, DriverFactory[msgspec.Struct]], tmp_path: Path
) -> None:
    factory = offered["filesystem"]
    assert cast("FilesystemOptions", msgspec.convert({}, factory.options)).rootdirectory == "/var/lib/registry"
    options = msgspec.convert({"rootdirectory": str(tmp_path / "new/root"), "maxthreads": 1}, factory.options)
    assert isinstance(await written(factory, options), FilesystemDriver)
    assert (tmp_path / "new/root/a/b").read_bytes() == b"x"
    with pytest.raises(msgspec.ValidationError, match="rootdir"):
        msgspec.convert({"rootdir": "/"}, factory.options)


async def test_each_store_in_memory_is_a_new_one(offered: dict[str, DriverFactory[msgspec.Struct]]) -> None:
    first, second = await written(offered["inmemory"], NoOptions()), await written(offered["inmemory"], NoOptions())
    assert isinstance(first, MemoryDriver)
    assert first is not second

"""Storage drivers that come with Moorage: `filesystem`, `inmemory`, `s3`, `gcs`, `azure`, `fsspec`.

This module is the plugin; a driver's own module is imported when a configuration uses it.
"""

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import msgspec

from moorage import ConfigurationError, Driver, DriverFactory, MemoryDriver, NoOptions, hookimpl

if TYPE_CHECKING:
    from ._azure_options import AzureOptions
    from ._gcs_options import GCSOptions
    from ._s3_options import S3Options


class FilesystemOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `storage: {filesystem: {...}}`, as distribution has them.

    Attributes:
        rootdirectory: the folder below which everything lies.
        maxthreads: how many threads may wait for the disk at once; at least 25.
    """

    rootdirectory: str = "/var/lib/registry"
    maxthreads: int = 100


@asynccontextmanager
async def _open_filesystem(options: FilesystemOptions) -> AsyncGenerator[Driver]:
    from .filesystem import FilesystemDriver

    async with FilesystemDriver.open_root(options.rootdirectory, threads=max(options.maxthreads, 25)) as driver:
        yield driver


@asynccontextmanager
async def _look_at_filesystem(options: FilesystemOptions) -> AsyncGenerator[Driver]:
    from .filesystem import FilesystemDriver

    yield FilesystemDriver.look_at_root(options.rootdirectory, threads=max(options.maxthreads, 25))


@asynccontextmanager
async def _open_memory(options: NoOptions) -> AsyncGenerator[Driver]:
    del options
    yield MemoryDriver()


@asynccontextmanager
async def _open_s3(options: "S3Options") -> AsyncGenerator[Driver]:
    with _needing("s3"):
        from .s3 import S3Driver
    from ._retry import RetryLayer, RetryOptions

    async with S3Driver.open_bucket(options) as driver:
        yield RetryLayer(driver, RetryOptions())


@asynccontextmanager
async def _open_azure(options: "AzureOptions") -> AsyncGenerator[Driver]:
    with _needing("azure"):
        from .azure import AzureDriver
    from ._retry import RetryLayer, RetryOptions

    async with AzureDriver.open_container(options) as driver:
        yield RetryLayer(driver, RetryOptions())


@asynccontextmanager
async def _open_gcs(options: "GCSOptions") -> AsyncGenerator[Driver]:
    with _needing("gcs"):
        from .gcs import GCSDriver
    from ._retry import RetryLayer, RetryOptions

    async with GCSDriver.open_bucket(options) as driver:
        yield RetryLayer(driver, RetryOptions())


class FsspecOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of `storage: {fsspec: {...}}`.

    Attributes:
        url: where everything lies, also a chain of URLs.
        options: what the filesystem is given, by its own names.
        maxthreads: how many calls may be under way at once.
    """

    url: str
    options: Mapping[str, object] = msgspec.field(default_factory=dict[str, object])
    maxthreads: int = 32


@asynccontextmanager
async def _open_fsspec(options: FsspecOptions) -> AsyncGenerator[Driver]:
    with _needing("fsspec"):
        from .any_url import FsspecDriver

    async with FsspecDriver.open_url(options) as driver:
        yield driver


@contextmanager
def _needing(extra: str) -> Generator[None]:
    """Say what to install where a library is missing."""
    try:
        yield
    except ImportError as error:
        problem = f"the driver needs {error.name}, which is not installed: pip install 'moorage[{extra}]'"
        raise ConfigurationError(problem) from error


@hookimpl
def register_drivers() -> Mapping[str, object]:
    """Offer the drivers of this package."""
    from ._azure_options import AzureOptions
    from ._gcs_options import GCSOptions
    from ._s3_options import S3Options

    return {
        "azure": DriverFactory(AzureOptions, _open_azure),
        "filesystem": DriverFactory(FilesystemOptions, _open_filesystem, open_to_look=_look_at_filesystem),
        "fsspec": DriverFactory(FsspecOptions, _open_fsspec),
        "gcs": DriverFactory(GCSOptions, _open_gcs),
        "inmemory": DriverFactory(NoOptions, _open_memory, shared=False),
        "s3": DriverFactory(S3Options, _open_s3),
        "s3aws": DriverFactory(S3Options, _open_s3),
    }


@hookimpl
def register_storage_middleware() -> Mapping[str, object]:
    """Offer the drivers around drivers of this package."""
    from ._cache import CACHE
    from ._limits import LIMIT, TIMEOUT
    from ._retry import RETRY
    from ._urls import CLOUDFRONT, REDIRECT, REWRITE

    return {
        "cache": CACHE,
        "cloudfront": CLOUDFRONT,
        "limit": LIMIT,
        "redirect": REDIRECT,
        "retry": RETRY,
        "rewrite": REWRITE,
        "timeout": TIMEOUT,
    }

"""Running `moorage serve`: the store that a URL means, what is told first, and the processes that serve."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import trio

from moorage import Configuration, ConfigurationError, LoadedConfiguration, PluginError, PluginManager, check_options

from .logs import HeldTrace, configure_logs
from .shares import Share
from .supervisor import Supervisor, bind, default_workers
from .tls import ServerTls, server_tls, tls_warnings

_FROM_ENVIRONMENT: Mapping[str, Mapping[str, Sequence[str]]] = {
    "S3": {
        "REGION": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        "REGIONENDPOINT": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    },
    "AZURE": {
        "CONNECTIONSTRING": ("AZURE_STORAGE_CONNECTION_STRING",),
        "ACCOUNTNAME": ("AZURE_STORAGE_ACCOUNT_NAME",),
        "ACCOUNTKEY": ("AZURE_STORAGE_ACCOUNT_KEY",),
        "SASTOKEN": ("AZURE_STORAGE_SAS_TOKEN",),
    },
    "GCS": {"ENDPOINT": ("STORAGE_EMULATOR_HOST",)},
}
"""What the clouds' own tools read, where a URL is served and no configuration says it."""


def store_at(url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the store that `url` means, with what the environment says of the service.

    Raises:
        ConfigurationError: it means none.
    """
    protocol, _, rest = url.partition("://")
    place, _, below = rest.partition("/")
    drivers = {"s3": ("S3", "BUCKET"), "gs": ("GCS", "BUCKET"), "gcs": ("GCS", "BUCKET")}
    drivers |= dict.fromkeys(("az", "abfs", "azure"), ("AZURE", "CONTAINER"))
    match protocol.lower():
        case "http" | "https":
            raise ConfigurationError(f"{url}: nothing can be stored there")
        case "file":
            return {"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": "/" + below}
        case "memory":
            return {"REGISTRY_STORAGE": "inmemory"}
        case known if known in drivers:
            driver, named = drivers[known]
            if not place:
                raise ConfigurationError(f"{url}: names no {named.lower()}")
            found = {f"REGISTRY_STORAGE_{driver}_{named}": place}
            if below:
                found[f"REGISTRY_STORAGE_{driver}_ROOTDIRECTORY"] = below
            for option, names in _FROM_ENVIRONMENT[driver].items():
                variable = f"REGISTRY_STORAGE_{driver}_{option}"
                value = next((environ[name] for name in names if environ.get(name)), None)
                if value is not None and variable not in environ:
                    found[variable] = value
            return found
        case _:
            return {"REGISTRY_STORAGE_FSSPEC_URL": url}


def serve_registry(loaded: LoadedConfiguration, plugins: PluginManager, held: HeldTrace) -> int:
    """Log what there is to warn of, serve until the process is told to stop, and return its exit code.

    `held` is what was to be logged before it was known how.

    Raises:
        ConfigurationError, PluginError: it cannot serve like that.
    """
    configuration = loaded.configuration
    log, http = configuration.log, configuration.http
    configure_logs(level=log.level, formatter=log.formatter, fields=log.fields, report_caller=log.report_caller)
    held.release()
    logger = logging.getLogger("moorage.serve")
    for warning in loaded.warnings:
        logger.warning(warning)
    count = configuration.workers or default_workers()
    warnings = check_options(configuration, plugins)
    tls = server_tls(configuration)
    for warning in (*warnings, *tls_warnings(configuration)):
        logger.warning(warning)
    driver = plugins.drivers().get(configuration.storage.driver)
    if driver is not None and not driver.shared and count > 1:
        if configuration.workers:
            name = configuration.storage.driver
            logger.warning("the %s store is seen by one process only, so one worker serves, not %d", name, count)
        count = 1

    def work(descriptors: list[int], share: Share, ready: Callable[[], None]) -> None:
        _work(configuration, plugins, tls, descriptors, share, ready)

    scheme = "http" if tls is None else "https"
    listeners = bind(http.addr, unix=http.net == "unix")
    return Supervisor(listeners, work, workers=count, drain_seconds=http.drain_timeout, scheme=scheme).run()


def _work(
    configuration: Configuration,
    plugins: PluginManager,
    tls: ServerTls | None,
    descriptors: list[int],
    share: Share,
    ready: Callable[[], None],
) -> None:
    """Serve in a worker process."""
    # The supervisor does without it, and tells the sooner what is wrong.
    from .worker import serve_worker

    try:
        trio.run(serve_worker, configuration, plugins, tls, descriptors, share, ready)
    except BaseExceptionGroup as group:
        # Nurseries wrap what ends them; what is told is the one thing that was wrong.
        wrong = group.subgroup((ConfigurationError, PluginError))
        if wrong is None:
            raise
        error: BaseException = wrong
        while isinstance(error, BaseExceptionGroup):
            error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
        raise ConfigurationError(str(error)) from group
    except PluginError as error:
        raise ConfigurationError(str(error)) from error

"""Logs: one line for each event, text for people at a terminal, JSON for programs.

Everything logs through `logging`; structlog renders it and binds the request's id to what is logged for it.
"""

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from logging.handlers import MemoryHandler
from typing import Literal, cast

import structlog
from structlog.typing import Processor, WrappedLogger

_MOST_HELD = 10_000

_WIRE = (
    "aiobotocore", "aiohttp", "asyncio", "azure", "boto3", "botocore", "coredis", "fsspec", "google", "h11", "h2", "hpack",
    "httpcore", "httpx", "msal", "paramiko", "requests", "s3fs", "s3transfer", "urllib3",
)  # fmt: skip
"""Loggers of libraries that, asked for more than warnings, tell URLs and headers, and with them credentials."""

Formatter = Literal["text", "json", "logstash"]


def _with_fields(_: WrappedLogger, __: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """Lift what was logged with `extra={"fields": {...}}` into the event."""
    record = event.get("_record")
    fields = getattr(record, "fields", None)
    if isinstance(fields, Mapping):
        event.update(cast("Mapping[str, object]", fields))
    return event


def _as_logstash(_: WrappedLogger, __: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """Name the fields as logstash's event format has them."""
    event["@timestamp"] = event.pop("timestamp", "")
    event["@version"] = "1"
    event["message"] = event.pop("event", "")
    return event


def _wants_colors() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


class HeldTrace:
    """Keeps what is traced of plugins while they are loaded, until the configuration has said how to log."""

    def __init__(self) -> None:
        """Begin to keep it."""
        self._logger = logging.getLogger("moorage.plugins.trace")
        self._handler = MemoryHandler(_MOST_HELD, flushLevel=logging.CRITICAL + 1)
        self._logger.addHandler(self._handler)
        self._logger.propagate = False

    def release(self) -> None:
        """Log what was kept, and keep no more."""
        self._logger.removeHandler(self._handler)
        self._logger.propagate = True
        for record in self._handler.buffer:
            self._logger.handle(record)
        self._handler.close()


def configure_logs(
    *,
    level: str,
    formatter: Formatter | None,
    fields: Mapping[str, object] | None = None,
    report_caller: bool = False,
) -> None:
    """Send logs to standard error, from `level` upwards.

    Without a `formatter` it is text on a terminal and JSON otherwise. `fields` stand in every line. Libraries that would
    tell what goes over the wire are heard from warnings upwards only.
    """
    static = dict(fields or {})

    def with_static(_: WrappedLogger, __: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
        for name, value in static.items():
            event.setdefault(name, value)
        return event

    chosen = formatter or ("text" if sys.stderr.isatty() else "json")
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _with_fields,
        with_static,
    ]
    if report_caller:
        wanted = {structlog.processors.CallsiteParameter.PATHNAME, structlog.processors.CallsiteParameter.LINENO}
        processors.append(structlog.processors.CallsiteParameterAdder(wanted))
    last: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if chosen == "text":
        # With rich installed the default shows the values of local variables: credentials, configurations.
        plain = structlog.dev.plain_traceback
        last.append(structlog.dev.ConsoleRenderer(colors=_wants_colors(), exception_formatter=plain))
    else:
        last.append(structlog.processors.format_exc_info)
        if chosen == "logstash":
            last.append(_as_logstash)
        last.append(structlog.processors.JSONRenderer(default=str))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=processors, processors=last))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(getattr(logging, level.upper().replace("WARN", "WARNING").replace("WARNINGING", "WARNING")))
    for name in _WIRE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))

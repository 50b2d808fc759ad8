"""What a line in the log looks like, for people and for programs."""

import io
import json
import logging
from collections.abc import Generator, Mapping
from types import SimpleNamespace

import pytest
import structlog

from moorage_app import logs
from moorage_app.logs import Formatter, configure_logs


class Stream(io.StringIO):
    """Standard error, perhaps a terminal."""

    terminal = False

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Generator[Stream]:
    """Standard error; logging is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = Stream()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=stream))
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()


def lines(stream: Stream) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_for_programs_is_one_json_object(stream: Stream) -> None:
    configure_logs(level="info", formatter="json")
    logging.getLogger("moorage.x").warning("a %s\nb", "\xe9\u2028\0")
    (line,) = lines(stream)
    assert line["event"] == "a \xe9\u2028\0\nb"
    assert (line["level"], line["logger"]) == ("warning", "moorage.x")
    assert str(line["timestamp"]).endswith("Z")
    assert not any(name.startswith("_") for name in line)


def test_a_line_for_logstash_has_its_names(stream: Stream) -> None:
    configure_logs(level="info", formatter="logstash", fields={"service": "registry"})
    logging.getLogger("moorage.x").info("hello")
    (line,) = lines(stream)
    assert (line["message"], line["@version"], line["service"]) == ("hello", "1", "registry")
    assert line["@timestamp"]
    assert not {"event", "timestamp"} & set(line)


@pytest.mark.parametrize(("terminal", "formatter", "is_json"), [
    (True, None, False), (False, None, True), (True, "json", True), (False, "text", False),
])  # fmt: skip
def test_text_is_for_terminals_unless_the_configuration_says_otherwise(
    stream: Stream, terminal: bool, formatter: Formatter | None, is_json: bool
) -> None:
    stream.terminal = terminal
    configure_logs(level="info", formatter=formatter)
    logging.getLogger("moorage.x").info("hello")
    assert stream.getvalue().startswith("{") is is_json
    assert "hello" in stream.getvalue()
    assert ("\x1b[" in stream.getvalue()) is (terminal and not is_json)


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warn", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_a_level_shows_itself_and_what_is_worse(stream: Stream, level: str, shown: list[str]) -> None:
    configure_logs(level=level, formatter="json")
    for each in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger("moorage.x").log(each, "x")
    assert [line["level"] for line in lines(stream)] == shown


@pytest.mark.parametrize(
    "name", ["hpack.hpack", "httpx", "botocore.auth", "azure.core.pipeline", "urllib3.connectionpool"]
)
def test_libraries_never_tell_what_goes_over_the_wire(stream: Stream, name: str) -> None:
    for level, shown in (("debug", ["warning"]), ("error", [])):
        stream.truncate(0)
        stream.seek(0)
        configure_logs(level=level, formatter="json")
        for each in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger(name).log(each, "x")
        assert [line["level"] for line in lines(stream)] == shown


def test_fields_of_an_event_stand_beside_the_configured_ones_and_win(stream: Stream) -> None:
    configure_logs(level="info", formatter="json", fields={"service": "registry", "status": "configured"})
    logging.getLogger("moorage.x").info("done", extra={"fields": {"status": 200, "path": "/v2/"}})
    (line,) = lines(stream)
    assert (line["service"], line["status"], line["path"], line["event"]) == ("registry", 200, "/v2/", "done")


def test_the_request_that_a_line_belongs_to_is_named(stream: Stream) -> None:
    configure_logs(level="info", formatter="json")
    structlog.contextvars.bind_contextvars(request_id="abc")
    logging.getLogger("foreign.library").warning("hello")
    assert lines(stream)[0]["request_id"] == "abc"


def test_the_code_that_logs_is_named_if_that_is_wanted(stream: Stream) -> None:
    configure_logs(level="info", formatter="json", report_caller=True)
    logging.getLogger("moorage.x").info("hello")
    (line,) = lines(stream)
    assert str(line["pathname"]).endswith("test_logs.py")
    assert isinstance(line["lineno"], int)


def test_what_json_cannot_hold_is_written_as_text(stream: Stream) -> None:
    configure_logs(level="info", formatter="json")
    value: Mapping[str, object] = {"path": object(), "bytes": b"x", "set": frozenset({1})}
    logging.getLogger("moorage.x").info("hello", extra={"fields": value})
    assert str(lines(stream)[0]["path"]).startswith("<object")


def fail_with_a_secret() -> None:
    password = "secret-" + "canary"  # not as one literal, or it would stand in the source that a traceback shows
    raise RuntimeError(len(password))


@pytest.mark.parametrize("formatter", ["text", "json", "logstash"])
def test_a_traceback_shows_where_and_no_values_of_variables(stream: Stream, formatter: Formatter) -> None:
    configure_logs(level="info", formatter=formatter)
    try:
        fail_with_a_secret()
    except RuntimeError:
        logging.getLogger("moorage.x").exception("it failed")
    written = stream.getvalue()
    assert "fail_with_a_secret" in written
    assert "secret-canary" not in written
    assert written.count("RuntimeError: 13") == 1
    if formatter != "text":
        assert len(lines(stream)) == 1


def test_one_configuration_replaces_another(stream: Stream) -> None:
    configure_logs(level="debug", formatter="text")
    configure_logs(level="info", formatter="json")
    logging.getLogger("moorage.x").info("hello")
    assert len(lines(stream)) == 1

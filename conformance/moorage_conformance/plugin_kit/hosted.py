"""Cases about what a plugin offers to the host: observers, routes and commands."""

import logging
from collections.abc import Mapping, Sequence
from typing import cast

import click
import trio
from click.testing import CliRunner
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent, HTTPScope

from moorage import BlobUnknown, InternalError, RegistryError, Unauthorized
from moorage_app.cli import main
from moorage_app.hooks import Route
from moorage_conformance.driver.expect import Unmet, true

from .case import Group
from .rules import listening
from .samples import Unknown, operations, reply_to
from .subject import Loaded

observers = Group[Loaded]("observers", "Observers")
routes = Group[Loaded]("routes", "Routes")
commands = Group[Loaded]("commands", "Commands")

_ROUTE_SECONDS = 5.0
_SUMMARY = 45


@observers
async def an_observer_takes_whatever_it_is_shown(plugin: Loaded) -> str | None:
    """Shown every kind of operation with its reply or an error, it raises nothing and keeps nobody waiting."""
    errors: list[RegistryError | None] = [
        None,
        BlobUnknown("no such blob"),
        Unauthorized("who are you?", challenges=['Basic realm="here"']),
        InternalError("a fault"),
    ]
    notes: list[str] = []
    for operation in [Unknown(), *operations()]:
        for error in errors:
            reply = reply_to(operation) if error is None else None
            with listening() as records:
                plugin.manager.operation_finished(operation, reply, error, 0.001)
            failed = [_sentence(record) for record in records if record.levelno >= logging.ERROR]
            what = f"{type(operation).__name__} {'answered' if error is None else type(error).__name__}"
            true(not failed, f"shown {what}: {' '.join(failed)}")
            notes += [record.getMessage() for record in records]
    return notes[0] if notes else None


def _sentence(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    return record.getMessage() + (f": {type(error).__name__}: {error}" if error is not None else "")


@routes
async def its_routes_answer(plugin: Loaded) -> None:
    """Its routes are exact paths that are not the registry's, each with an application that answers a GET."""
    for offered in _given(plugin, "register_routes"):
        true(isinstance(offered, Mapping), f"register_routes gives {type(offered).__name__}, not a mapping of paths")
        for path, route in cast("Mapping[object, object]", offered).items():  # as just looked at
            own = path in {"/", "/v2"} or str(path).startswith("/v2/")
            good = isinstance(path, str) and path.startswith("/") and path.isascii() and not set(path) & set("?#*{} ")
            true(good, f"the route {path!r} is no exact path such as /metrics")
            true(not own, f"the route {path!r} is the registry's")
            true(callable(route), f"behind the route {path} there is no application")
            await _get(str(path), cast("Route", route))  # called as one, it shows


async def _get(path: str, route: Route) -> None:
    scope = cast(
        "HTTPScope",  # with all that a server gives but its own extensions
        {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"registry.example")],
            "client": ("192.0.2.1", 50000),
            "server": ("192.0.2.2", 5000),
            "extensions": {},
            "state": {},
        },
    )
    sent: list[Mapping[str, object]] = []
    asked = 0

    async def receive() -> ASGIReceiveEvent:
        nonlocal asked
        asked += 1
        if asked > 1:
            await trio.sleep_forever()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: ASGISendEvent) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(cast("Mapping[str, object]", event))  # looked at below

    with trio.move_on_after(_ROUTE_SECONDS) as scope_of_time:
        try:
            await route(scope, receive, send)
        except Exception as error:
            raise Unmet(f"GET {path} raises {type(error).__name__}: {error}") from error
    true(sent, f"GET {path} is not answered{' in time' if scope_of_time.cancelled_caught else ''}")
    first = sent[0]
    true(first.get("type") == "http.response.start", f"GET {path} is answered with {first.get('type')} first")
    status = first.get("status")
    true(isinstance(status, int) and 200 <= status < 600, f"GET {path} is answered with the status {status!r}")
    true(isinstance(status, int) and status < 500, f"GET {path} fails with the status {status}")
    headers = cast("Sequence[Sequence[object]]", first.get("headers", ()))  # looked at here
    for pair in headers:
        true(len(pair) == 2 and all(isinstance(each, bytes) for each in pair), f"GET {path} has the header {pair!r}")
    ended = any(event.get("type") == "http.response.body" and not event.get("more_body") for event in sent)
    true(ended or scope_of_time.cancelled_caught, f"the answer to GET {path} has no end")


@commands
async def its_commands_can_be_called(plugin: Loaded) -> None:
    """Its commands are click's, have names that no other has, and say by `--help` what they do."""
    names: set[str] = set()
    for offered in _given(plugin, "register_commands"):
        several = cast("Sequence[object]", offered) if isinstance(offered, Sequence) else [offered]  # as looked at
        for command in several:
            if not isinstance(command, click.Command):
                raise Unmet(f"register_commands gives {command!r}, which is no click command")
            name = command.name or ""
            true(name and name not in names, f"the command {name!r} has no name of its own")
            # What is there already may be this very command.
            there = main.commands.get(name)
            true(there is None or there.callback is command.callback, f"the command {name!r} is there already")
            names.add(name)
            shown = CliRunner().invoke(command, ["--help"])
            true(shown.exit_code == 0, f"{name} --help ends with code {shown.exit_code}")
            true(command.get_short_help_str(_SUMMARY), f"{name} does not say what it does")


def _given(plugin: Loaded, hook: str) -> list[object]:
    with listening() as records:
        given = plugin.manager.call(hook)
    true(not records, " ".join(map(_sentence, records)))
    true(given, f"{hook} gives nothing")
    return given

"""What only a host with HTTP and a command line can offer to plugins.

A plugin need not import this module: it marks its functions `@hookimpl(optionalhook=True)`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from moorage import hookspec

if TYPE_CHECKING:
    # Not for running: with its types comes all of hypercorn, which only what serves needs.
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

Route = Callable[["HTTPScope", "ASGIReceiveCallable", "ASGISendCallable"], Awaitable[None]]


@hookspec
def register_routes() -> Mapping[str, Route]:  # type: ignore[empty-body]
    """Return ASGI applications by exact path, such as `/metrics`; none may lie below `/v2/`."""


@hookspec
def register_commands() -> Sequence[click.Command]:  # type: ignore[empty-body]
    """Return commands for the command line."""

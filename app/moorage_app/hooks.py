"""What only a host with HTTP and a command line can offer to plugins.

A plugin need not import this module: it marks its functions `@hookimpl(optionalhook=True)`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import click
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from moorage import hookspec

Route = Callable[[HTTPScope, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]]


@hookspec
def register_routes() -> Mapping[str, Route]:  # type: ignore[empty-body]
    """Return ASGI applications by exact path, such as `/metrics`; none may lie below `/v2/`."""


@hookspec
def register_commands() -> Sequence[click.Command]:  # type: ignore[empty-body]
    """Return commands for the command line."""

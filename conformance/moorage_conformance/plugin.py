"""The conformance kits as a Moorage plugin."""

from __future__ import annotations

import click

from moorage import hookimpl

from .commands import conformance


@hookimpl(optionalhook=True)
def register_commands() -> list[click.Command]:
    """Add `moorage conformance`."""
    return [conformance]

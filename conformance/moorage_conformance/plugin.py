"""The conformance kits as a plugin: they add the command `moorage conformance`."""

import click

from moorage import hookimpl


@hookimpl(optionalhook=True)
def register_commands() -> list[click.Command]:
    """Offer `moorage conformance`; its HTTP client is imported only when commands are asked for."""
    from .commands import conformance

    return [conformance]

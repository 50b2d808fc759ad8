"""A rule for Moorage: a program of the operator's judges each manifest that is pushed.

The program gets the manifest's bytes on its standard input, and what they are pushed as in its environment. It accepts
with exit code 0 and refuses with exit code 1; the first line that it prints then is the reason that the client is told.
Anything else (another code, a signal, too much time) is a failure, and a push that could not be judged fails.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec

from moorage import Rule, hookimpl


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `plugins: {external_check: {...}}`.

    Attributes:
        command: the program, then its arguments. No shell reads them.
        timeout: after how many seconds the program is killed. The registry gives each rule ten, the wait for one of
            `processes` included.
        processes: how many programs run at once; further pushes wait.
    """

    command: tuple[str, ...]
    timeout: Annotated[float, msgspec.Meta(gt=0, lt=10)] = 5.0
    processes: Annotated[int, msgspec.Meta(ge=1)] = 4

    def __post_init__(self) -> None:
        """Refuse what the types allow and makes no sense; the operator is told where it stands."""
        if not self.command:
            raise ValueError("command begins with a program")


@asynccontextmanager
async def _open(options: Options) -> AsyncGenerator[object]:
    from .check import ExternalCheck

    yield ExternalCheck(options.command, timeout=options.timeout, processes=options.processes)


@hookimpl
def register_rules() -> Mapping[str, object]:
    """Offer the rule `external_check`."""
    return {"external_check": Rule(Options, _open)}

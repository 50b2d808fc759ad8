"""Running the program: bounded in time, in output and in number, and gone when nobody waits for its answer."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import trio

from moorage import ConfigurationError, Manifest, PushManifest, Refused, hookimpl

_ACCEPTED = 0
_REFUSED = 1
_OUTPUT_LIMIT = 16 << 10
_REASON_LIMIT = 500


class CheckFailed(Exception):
    """The program gave no answer. The registry fails the push with 500, and its log has this text."""


class ExternalCheck:
    """The rule, opened: an object with decision hooks."""

    def __init__(self, command: Sequence[str], *, timeout: float, processes: int) -> None:
        """Ask `command`.

        Raises:
            ConfigurationError: there is no such program; said at the start rather than at the first push.
        """
        program = shutil.which(command[0])
        if program is None:
            raise ConfigurationError(f"plugins.external_check.command: there is no program {command[0]!r}")
        self._command = (program, *command[1:])
        self._timeout = timeout
        self._running = trio.CapacityLimiter(processes)

    @hookimpl
    async def validate_manifest(self, push: PushManifest, manifest: Manifest) -> None:
        """Let the program judge `manifest`.

        Raises:
            Refused: it says no.
            CheckFailed: it says nothing.
        """
        about = {
            "MOORAGE_REPOSITORY": push.repository,
            "MOORAGE_REFERENCE": str(push.reference),
            "MOORAGE_MEDIA_TYPE": manifest.media_type,
            "MOORAGE_DIGEST": str(manifest.digest),
        }
        async with self._running:
            code, output = await self._run(manifest.data, about)
        if code == _REFUSED:
            raise Refused(_first_line(output) or "refused by an external check")
        if code != _ACCEPTED:
            raise CheckFailed(f"{self._command[0]} ended with {code}: {_first_line(output) or 'no output'}")

    async def _run(self, data: bytes, about: Mapping[str, str]) -> tuple[int, bytes]:
        """Return the program's exit code and the beginning of what it printed.

        Raises:
            CheckFailed: it cannot be started, or did not end in time.
        """
        run = partial(
            trio.run_process,
            self._command,
            stdin=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A pushed manifest is data, never part of a command line; what is said about it is in the environment.
            env={**os.environ, **about},
            # A process group of its own, so that what the program has started can be killed with it.
            start_new_session=True,
            check=False,
            deliver_cancel=_kill,
        )
        try:
            with trio.fail_after(self._timeout):
                # Leaving the nursery waits for the end of the program, or, when cancelled, kills it first.
                async with trio.open_nursery() as nursery:
                    process: trio.Process = await nursery.start(run)
                    assert process.stdout is not None  # noqa: S101 - it is a pipe
                    output = await _beginning(process.stdout)
        except trio.TooSlowError:
            raise CheckFailed(f"{self._command[0]} did not end within {self._timeout:g} s") from None
        except ExceptionGroup as errors:
            # What goes wrong inside a nursery comes out in a group.
            raise CheckFailed(f"{self._command[0]} cannot be run: {errors.exceptions[0]}") from errors
        assert process.returncode is not None  # noqa: S101 - the nursery has seen it end
        return process.returncode, output


async def _kill(process: trio.Process) -> None:
    """Kill the program and all that it started."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def _beginning(stream: trio.abc.ReceiveStream) -> bytes:
    """Read `stream` to its end, so that its writer never waits, and keep only the beginning."""
    kept = bytearray()
    async with stream:
        async for chunk in stream:
            kept += chunk[: _OUTPUT_LIMIT - len(kept)]
    return bytes(kept)


def _first_line(output: bytes) -> str:
    """Return the first line that has something printable, which is for the eyes of whoever pushes."""
    for line in output.decode(errors="replace").splitlines():
        if text := "".join(filter(str.isprintable, line)).strip():
            return text[:_REASON_LIMIT]
    return ""

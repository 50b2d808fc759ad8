"""Files whose content counts while the registry runs: read again when they have changed.

In the event loop: a look at a file takes microseconds, and is had once a second at most; a file of keys or users is small,
and read only when it has changed.
"""

import logging
import os
import stat
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import trio

from moorage import ConfigurationError

_log = logging.getLogger("moorage.auth")

T_co = TypeVar("T_co", covariant=True)

_LOOK_SECONDS = 1.0
_LARGEST = 16 << 20

_Seen = tuple[int, int, int]


class Understand(Protocol[T_co]):
    """Makes something of a file's content."""

    def __call__(self, data: bytes, /) -> T_co:
        """Return what `data` says.

        Raises:
            ValueError: it says nothing that can be used. The text quotes nothing of it, for that may be a secret.
        """
        ...


class Watched(Generic[T_co]):
    """What a file says. While a new one cannot be used, the old one counts, and the log says so once."""

    def __init__(self, path: str, understand: Understand[T_co], *, setting: str) -> None:
        """Read the file at `path`, which the setting `setting` names.

        Raises:
            ConfigurationError: it cannot be read, or says nothing that can be used.
        """
        self._path = Path(path)
        self._understand = understand
        self._next_look = trio.current_time() + _LOOK_SECONDS
        self._told = ""
        try:
            self._value, self._seen = self._read()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{setting}: {path!r} cannot be used: {reason_of(error)}") from error

    def current(self) -> T_co:
        """Return what it says now, or said when it last said something that can be used."""
        now = trio.current_time()
        if now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._look()
        return self._value

    def _look(self) -> None:
        try:
            seen = _seen(self._path.stat())
            if seen == self._seen:
                return
            # What cannot be used is not tried again before it changes.
            self._seen = seen
            self._value, self._seen = self._read()
        except (OSError, ValueError) as error:
            reason = reason_of(error)
            if reason != self._told:
                _log.error("%s cannot be used, and what it said before goes on to count: %s", self._path, reason)
            self._told = reason
        else:
            self._told = ""
            _log.info("%s has changed and was read again", self._path)

    def _read(self) -> tuple[T_co, _Seen]:
        # What is no file, such as a pipe, could keep everybody waiting.
        with os.fdopen(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("it is no file")
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} bytes")
        return self._understand(data), _seen(found)


def _seen(found: os.stat_result) -> _Seen:
    return found.st_ino, found.st_mtime_ns, found.st_size


def reason_of(error: OSError | ValueError) -> str:
    """Return in a few words why a file could not be used."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__

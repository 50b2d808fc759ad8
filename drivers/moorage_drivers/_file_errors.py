"""What a system says of its files, told as a `DriverError`."""

import errno
from collections.abc import Callable
from typing import NoReturn, TypeVar

from moorage import (
    DriverError,
    DriverVerb,
    KeyInvalid,
    KeyUnknown,
    StoreBusy,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)

T = TypeVar("T")

NAME = "filesystem"
"""The driver's, as its errors give it."""

_KINDS: dict[int, type[DriverError]] = {
    errno.ENOENT: KeyUnknown,
    errno.ENOSPC: StoreFull,
    errno.EDQUOT: StoreFull,
    errno.EFBIG: StoreFull,
    errno.EROFS: StoreReadOnly,
    errno.EACCES: StoreReadOnly,
    errno.EPERM: StoreReadOnly,
    errno.EMFILE: StoreBusy,
    errno.ENFILE: StoreBusy,
    errno.ENOMEM: StoreBusy,
    errno.ENAMETOOLONG: KeyInvalid,
    errno.ENOTDIR: KeyInvalid,
    errno.EISDIR: KeyInvalid,
}


def fail(error: OSError, operation: DriverVerb, key: str) -> NoReturn:
    """Raise `error`, met in doing `operation` to `key`, as the `DriverError` that it means."""
    kind = _KINDS.get(error.errno or 0, StoreUnavailable)
    if kind is KeyInvalid and operation in {"stat", "open", "list"}:
        # Asked for something below a file, or for a directory: there is no such key.
        kind = KeyUnknown
    raise kind(error.strerror or str(error), driver=NAME, operation=operation, key=key) from error


def refuse(root: str, error: OSError) -> NoReturn:
    """Raise `error`, met in opening the store below `root`, as the `DriverError` that it means."""
    kind = StoreReadOnly if _KINDS.get(error.errno or 0) is StoreReadOnly else StoreUnavailable
    raise kind(f"{root}: {error.strerror or error}", driver=NAME, operation="open") from error


def told(operation: DriverVerb, key: str, step: Callable[[], T]) -> T:
    """Return what `step` does in doing `operation` to `key`; what the system says is raised as a `DriverError`."""
    try:
        return step()
    except OSError as error:
        fail(error, operation, key)

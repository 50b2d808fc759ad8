"""What is expensive to make and only read: once for all processes that run the tests."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `name` of this run, filled by `make` in whichever process comes first; the others wait for it."""
    whole = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        whole = whole.parent
    folder = whole / name
    complete = whole / f"{name}.complete"
    with (whole / f"{name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            # What another process has left when it failed.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder

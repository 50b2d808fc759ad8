"""Programs that tests drive: where they are, and what a test does without one."""

import os
import shutil
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_FOLDERS = (Path(sys.executable).parent, _ROOT / ".tools" / "node_modules" / ".bin", Path("/usr/sbin"))


def find_tool(name: str) -> str | None:
    """Return the path of a program: this environment's, one on PATH, or one that `make test-tools` installed."""
    return shutil.which(name, path=os.pathsep.join([str(_FOLDERS[0]), os.environ.get("PATH", ""), *map(str, _FOLDERS)]))


def require_tool(name: str, untested: str) -> str:
    """Return the path of a program; without it skip the test, and where everything must be tested, fail it.

    `untested` ends the sentence that says what was not tested.
    """
    path = find_tool(name)
    if path is not None:
        return path
    sentence = f"not tested, because {name} is not installed: {untested}"
    if os.environ.get("CI") == "true":
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)

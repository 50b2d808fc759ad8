"""Plugins without packaging: the Python files of a folder that the operator names.

Their code runs with all the rights of the registry, so nobody else may be able to put other code there. Whatever leads to
a file, links included, and the file itself must belong to root or to the user that the registry runs as, and be writable
by its owner alone; but what lies on a read-only mount nobody can write, and in a folder such as /tmp, where everybody may
create, nobody replaces what another has made; only the folder of the plugins itself must not be of that kind. A file is opened once, looked at, and compiled from the bytes that were
read.
"""

import os
import stat
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_LARGEST = 1 << 20
_MOST_LINKS = 40
_MODULE_PREFIX = "moorage_plugin_file_"


class PluginFileError(Exception):
    """A folder or file of plugins cannot be used; its text is one sentence that names it."""


def plugin_files(folder: Path) -> list[Path]:
    """Return the files of `folder` that are plugins, in order of their names; those that begin with `_` or `.` are not.

    Raises:
        PluginFileError: there is no such folder, or others may write to it.
    """
    try:
        *_, found = _way(folder)
        _check_folder(found)
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise PluginFileError(f"{folder}: {error.strerror}") from None
    return [folder / name for name in names if name.endswith(".py") and name[0] not in "._"]


def load_plugin_file(path: Path) -> ModuleType:
    """Run the file at `path` as a module of its own and return it. What its code raises is raised.

    Raises:
        PluginFileError: the file cannot be read, or others may write to it.
    """
    try:
        data = _read(path)
    except OSError as error:
        raise PluginFileError(f"{path}: {error.strerror}") from None
    name = _MODULE_PREFIX + path.stem
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__spec__ = ModuleSpec(name, None, origin=str(path))
    code = compile(data, str(path), "exec", dont_inherit=True)
    # Where classes are looked up by the name of their module, they are found.
    sys.modules[name] = module
    try:
        exec(code, vars(module))  # noqa: S102 - to run it is what it is named for
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _read(path: Path) -> bytes:
    *_, found = _way(path)
    # Nobody else can put a link there now.
    descriptor = os.open(found, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PluginFileError(f"{path}: not a file")
        _check(found, status)
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise PluginFileError(f"{path}: more than {_LARGEST} bytes")
    return data


def _way(path: Path) -> Iterator[Path]:
    """Give all that is passed on the way to `path`, and last what it is, without links; each was checked.

    Raises:
        PluginFileError: others may write to it.
        OSError: it is not there.
    """
    parts = path.absolute().parts
    at, rest, links = Path(parts[0]), list(parts[1:]), 0
    _check(at, at.lstat())
    yield at
    while rest:
        part = rest.pop(0)
        at = at.parent if part == ".." else at / part
        status = at.lstat()
        _check(at, status)
        if not stat.S_ISLNK(status.st_mode):
            yield at
            continue
        links += 1
        if links > _MOST_LINKS:
            raise PluginFileError(f"{path}: too many links")
        target = at.readlink()
        at = at.parent
        if target.is_absolute():
            at = Path(target.anchor)
        rest = [*(part for part in target.parts if part != target.anchor), *rest]


def _check_folder(folder: Path) -> None:
    """Refuse a folder in which everybody may create files: also one in which nobody may replace those of others."""
    mode = folder.stat().st_mode
    if mode & stat.S_ISVTX and mode & (stat.S_IWGRP | stat.S_IWOTH) and not _is_read_only(folder):
        raise PluginFileError(f"{folder}: others may create files in it, and so run code here; chmod go-w would do")


def _is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _check(path: Path, status: os.stat_result) -> None:
    # Asked of a link, it would tell of what the link points at.
    if _is_read_only(path.parent if stat.S_ISLNK(status.st_mode) else path):
        return
    if status.st_uid not in {0, os.geteuid()}:
        raise PluginFileError(
            f"{path}: belongs to the user {status.st_uid}; code is taken from root and from the registry's own user only"
        )
    mode = status.st_mode
    sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(mode) and not sticky:
        who = "everybody" if mode & stat.S_IWOTH else "its group"
        raise PluginFileError(f"{path}: {who} may write to it, and so run code here; chmod go-w would do")

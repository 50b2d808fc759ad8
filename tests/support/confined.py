"""Runs a command under the restrictions of a unit of systemd that the kernel can be asked for without systemd.

    python confined.py UNIT COMMAND...

Those are `SystemCallFilter`, `RestrictAddressFamilies`, `MemoryDenyWriteExecute`, `NoNewPrivileges` and `LimitNOFILE`, made by
libseccomp as systemd makes them.
"""

import ctypes
import errno
import mmap
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_MASKED_EQUAL = 7
_EQUAL = 4
_FAMILIES = 50
_SHARED_EXECUTABLE = 0o100000


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class Filter:
    """A filter of system calls; what no rule matches gets `default`."""

    def __init__(self, default: int) -> None:
        """Begin without rules."""
        self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._filter = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(default)))

    def add(self, action: int, call: str, *comparisons: tuple[int, int, int, int]) -> None:
        """Have `action` for `call` where all `comparisons` hold; a call that this machine does not have is passed over."""
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            return
        array = (_Comparison * len(comparisons))(*(_Comparison(*each) for each in comparisons))
        code = self._library.seccomp_rule_add_array(
            self._filter, ctypes.c_uint32(action), number, ctypes.c_uint(len(comparisons)), array
        )
        if code:
            raise OSError(-code, f"no rule for {call}")

    def load(self) -> None:
        """Put it into force, for this process and what becomes of it."""
        if code := self._library.seccomp_load(self._filter):
            raise OSError(-code, "the filter cannot be loaded")


def settings_of(unit: Path) -> dict[str, list[str]]:
    """Return what a unit says, by setting, each time it says it."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def calls_of(filters: Iterable[str]) -> set[str]:
    """Return the system calls that `filters` allow, the first of which is a list of those."""
    allowed: set[str] = set()
    for text in filters:
        named = {call for each in text.removeprefix("~").split() for call in _expanded(each)}
        allowed = allowed - named if text.startswith("~") else allowed | named
    return allowed


def _expanded(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    command = ["systemd-analyze", "syscall-filter", name]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    members = [line.strip() for line in told if line.strip() and not line.strip().startswith("#")]
    return {call for member in members for call in _expanded(member)}


def confine(settings: dict[str, list[str]]) -> None:
    """Put into force, for this process, what `settings` say."""
    files = min(int(settings["LimitNOFILE"][-1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    calls = calls_of(settings["SystemCallFilter"])
    refused = Filter(_ALLOW)
    if settings["MemoryDenyWriteExecute"] == ["yes"]:
        both = mmap.PROT_WRITE | mmap.PROT_EXEC
        refused.add(_REFUSE, "mmap", (2, _MASKED_EQUAL, both, both))
        refused.add(_REFUSE, "mprotect", (2, _MASKED_EQUAL, mmap.PROT_EXEC, mmap.PROT_EXEC))
        refused.add(_REFUSE, "pkey_mprotect", (2, _MASKED_EQUAL, mmap.PROT_EXEC, mmap.PROT_EXEC))
        refused.add(_REFUSE, "shmat", (2, _MASKED_EQUAL, _SHARED_EXECUTABLE, _SHARED_EXECUTABLE))
    families = {getattr(socket, name).value for each in settings["RestrictAddressFamilies"] for name in each.split()}
    for family in set(range(_FAMILIES)) - families:
        refused.add(_REFUSE, "socket", (0, _EQUAL, family, 0))
    refused.load()
    allowed = Filter(_REFUSE)
    for call in calls:
        allowed.add(_ALLOW, call)
    allowed.load()


def main(arguments: Sequence[str]) -> None:
    """Become the command, confined."""
    unit, *command = arguments
    confine(settings_of(Path(unit)))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])

"""A case: one requirement, checked by one plain async function, found in the table of its group."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Literal

from .answer import CheckFailed, NotOffered
from .client import Client
from .scratch import Scratch

__all__ = ["VERSIONS", "Capability", "Case", "CheckFailed", "Group", "NotOffered", "Version"]

Version = Literal["1.0", "1.1", "dev"]
"""A version of the specification: "dev" is its main branch, 1.1+dev."""

VERSIONS: tuple[Version, ...] = ("1.0", "1.1", "dev")

Capability = Literal["push", "delete-tag", "delete-manifest", "delete-blob", "referrers", "sha512"]
"""What a case cannot do without; when the registry lacks it, the case is skipped and says so."""

PUSH: tuple[Capability, ...] = ("push",)

Check = Callable[[Client, Scratch], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Case:
    """One requirement: where it stands, what it needs, since when it holds, and the function that checks it."""

    group: str
    name: str
    section: str
    requires: frozenset[Capability]
    since: Version
    requirement: str
    check: Check

    @property
    def key(self) -> str:
        """Group and name, as `--only` matches them."""
        return f"{self.group}.{self.name}"

    def holds_in(self, version: Version) -> bool:
        """Whether a version of the specification has this requirement."""
        return VERSIONS.index(self.since) <= VERSIONS.index(version)


class Group:
    """The table of the cases of one module. Called as a decorator it adds one and leaves the function as it is."""

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.title = title
        self.cases: list[Case] = []

    def __call__(
        self, *, section: str, requires: Collection[Capability] = PUSH, since: Version = "1.0"
    ) -> Callable[[Check], Check]:
        """Register a function; the first paragraph of its docstring is the requirement."""

        def register(check: Check) -> Check:
            paragraph = (inspect.getdoc(check) or "").partition("\n\n")[0]
            requirement = " ".join(paragraph.split())
            name = getattr(check, "__name__", "")
            if not requirement or not name:
                raise TypeError(f"a case is a function with a docstring: {check!r}")
            self.cases.append(Case(self.name, name, section, frozenset(requires), since, requirement, check))
            return check

        return register

"""A case of the plugin kit: one sentence, checked by one plain async function on one thing that a plugin offers."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")
F = TypeVar("F")

Check = Callable[[T], Awaitable[str | None]]
"""Raises `Unmet` where the sentence does not hold, or `NotShown`; returns what else is worth a line, or None."""


class NotShown(Exception):
    """What the plugin does keeps the case from showing anything; the text says why."""


class Listed(msgspec.Struct, frozen=True):
    """One requirement: which it is, in words."""

    group: str
    name: str
    requirement: str

    @property
    def key(self) -> str:
        """Group and name, as `--only` matches them."""
        return f"{self.group}.{self.name}"


class Case(Listed, Generic[T], frozen=True):
    """A requirement with the function that checks it."""

    check: Check[T]


class Group(Generic[T]):
    """The table of the cases of one module. Called as a decorator it adds one and leaves the function as it is."""

    def __init__(self, name: str, title: str) -> None:
        """Begin with no cases."""
        self.name = name
        self.title = title
        self.cases: list[Case[T]] = []

    def __call__(self, check: Check[T]) -> Check[T]:
        """Register a function; the first paragraph of its docstring is the requirement."""
        paragraph = (inspect.getdoc(check) or "").partition("\n\n")[0]
        requirement = " ".join(paragraph.split())
        name = getattr(check, "__name__", "")
        if not requirement or not name:
            raise TypeError(f"a case is a function with a docstring: {check!r}")
        self.cases.append(Case(self.name, name, requirement, check))
        return check


class Trial(msgspec.Struct, Generic[F], frozen=True):
    """One thing that a plugin offers, with the options that it is opened with.

    `patience` is how many seconds something may take before the kit calls it hanging.
    """

    name: str
    factory: F
    options: msgspec.Struct
    patience: float

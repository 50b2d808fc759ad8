"""A case of the driver kit: one sentence of the contract, checked by one plain async function on a store of its own."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from .store import Store

Need = Literal["cas", "create_only", "exclusive_uploads", "local", "shared"]
"""What a case is about that not every store can do: a capability, or being seen by several processes."""

Check = Callable[[Store], Awaitable[None]]


class Case(msgspec.Struct, frozen=True):
    """One requirement, and the function that checks it.

    `needs` is what the store must be able to do for it; `long` says that `--fast` leaves it out.
    """

    group: str
    name: str
    needs: tuple[Need, ...]
    long: bool
    requirement: str
    check: Check

    @property
    def key(self) -> str:
        """Group and name, as `--only` matches them."""
        return f"{self.group}.{self.name}"


class Group:
    """The table of the cases of one module. Called as a decorator it adds one and leaves the function as it is."""

    def __init__(self, name: str, title: str) -> None:
        """Begin with no cases."""
        self.name = name
        self.title = title
        self.cases: list[Case] = []

    def __call__(self, *needs: Need, long: bool = False) -> Callable[[Check], Check]:
        """Register a function; the first paragraph of its docstring is the requirement."""

        def register(check: Check) -> Check:
            paragraph = (inspect.getdoc(check) or "").partition("\n\n")[0]
            requirement = " ".join(paragraph.split())
            name = getattr(check, "__name__", "")
            if not requirement or not name:
                raise TypeError(f"a case is a function with a docstring: {check!r}")
            self.cases.append(Case(self.name, name, needs, long, requirement, check))
            return check

        return register

"""What the registry gives to every rule: where it holds, and whether it refuses or only warns.

The options of a rule get three keys that its author does not write: `repositories`, patterns of the repositories that it
holds for; `mode`, `enforce` or `warn`; and `rules`, a list of the same options again. For a repository the first entry of
`rules` whose `repositories` match is in force, by itself; else what stands beside the list, if anything does. So each rule
is one function of one push, and knows nothing of all this.
"""

from functools import cache
from types import GenericAlias
from typing import Generic, Literal, TypeVar, cast

import msgspec

from ._names import RepositoryName
from ._patterns import Glob

OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)

Mode = Literal["enforce", "warn"]
"""Whether a rule refuses a push, or takes it with a warning for the client."""

_OWN = ("mode", "repositories", "rules")
_REMEMBERED = 10_000


class _Scope(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that `scoped` adds to the options of one entry."""

    mode: Mode = "enforce"
    repositories: tuple[Glob, ...] = ()


@cache
def scoped(options: type[OptionsT]) -> type[OptionsT]:
    """Return `options` with the keys `mode`, `repositories` and `rules`.

    Raises:
        TypeError: it has one of these already.
    """
    if taken := sorted({*_OWN} & {*options.__struct_fields__, *options.__struct_encode_fields__}):
        raise TypeError(f"{options.__name__} has a field {taken[0]!r}, which the registry gives to every rule")
    fields = [(field.name, field.type, field.default) for field in msgspec.structs.fields(_Scope)]
    entry = _extended(options, fields)
    return cast(
        "type[OptionsT]", _extended(entry, [("rules", GenericAlias(tuple, (entry, ...)), ())])
    )  # its base is `options`


def _extended(base: type[msgspec.Struct], fields: list[tuple[str, object, object]]) -> type[msgspec.Struct]:
    return msgspec.defstruct(
        base.__name__,
        cast("list[tuple[str, type, object]]", fields),  # annotations of any kind
        bases=(base,),
        module=base.__module__,
        namespace={"__doc__": base.__doc__},
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )


class InForce(msgspec.Struct, Generic[OptionsT], frozen=True):
    """The options that hold for a repository, and which entry they are from: 0 and on for `rules`, then what is beside."""

    position: int
    options: OptionsT
    mode: Mode


class Scopes(Generic[OptionsT]):
    """Finds which of the options of a rule hold for a repository."""

    def __init__(self, options: OptionsT) -> None:
        """Take `options` of a type that `scoped` made."""
        listed = cast("tuple[OptionsT, ...]", getattr(options, "rules", ()))  # the fields that scoped() adds
        # With nothing beside the list, the defaults are not meant to hold for all that the list leaves out.
        bare = bool(listed) and _is_bare(options)
        self.listed: int = len(listed)
        """How many entries `rules` has."""
        self.entries: tuple[InForce[OptionsT], ...] = tuple(
            InForce(position, entry, cast("Mode", getattr(entry, "mode", "enforce")))  # same
            for position, entry in enumerate(listed if bare else (*listed, options))
        )
        self._patterns = [
            cast("tuple[Glob, ...]", getattr(entry.options, "repositories", ()))  # same
            for entry in self.entries
        ]
        self._found: dict[RepositoryName, InForce[OptionsT] | None] = {}

    def of(self, repository: RepositoryName) -> InForce[OptionsT] | None:
        """Return what holds for `repository`; None if the rule does not."""
        try:
            return self._found[repository]
        except KeyError:
            pass
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        found = self._found[repository] = self._find(repository)
        return found

    def _find(self, repository: RepositoryName) -> InForce[OptionsT] | None:
        for entry, patterns in zip(self.entries, self._patterns, strict=True):
            # Without any it holds for all.
            if not patterns or any(pattern.matches(repository) for pattern in patterns):
                return entry
        return None


def _is_bare(options: msgspec.Struct) -> bool:
    """Return whether nothing stands beside the list `rules`, or only what would be there anyway."""
    for field in msgspec.structs.fields(options):
        default: object = field.default
        if default is msgspec.NODEFAULT and callable(field.default_factory):
            default = field.default_factory()
        if field.name != "rules" and getattr(options, field.name) != default:
            return False
    return True

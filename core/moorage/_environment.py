"""Override settings by environment variables, by distribution's rule.

The rule, for a name like ``REGISTRY_HTTP_HEADERS_X_0``:

- Variables apply in the lexical order of their names, so a section comes before what lies in it.
- The name is split at each ``_``; hence no key that contains one can be reached.
- At a section with fixed keys, a word is the key in capitals; five keys have another word, and their annotation says so.
- At a mapping with free keys, a word is an existing key whatever its case, else a new key in lower case; so, too, at a
  value that a type of its own reads from a mapping.
- At a list, a word is a position; the one after the last appends.
- The value is YAML, and replaces what was there as a whole.

Names that fit nowhere are warnings: Kubernetes sets ``REGISTRY_PORT`` for any service that is called registry.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct, inspect

from ._document import (
    Document,
    annotation,
    has_open_keys,
    inspected,
    is_anything,
    is_spared,
    shorthand,
    takes_mapping,
)
from ._yaml import DEEPEST_NESTING, Key, Plain, one_line, read_yaml

PREFIX: Final = "REGISTRY_"
CONFIGURATION_PATH: Final = "REGISTRY_CONFIGURATION_PATH"
"""Names the configuration file, so it is no override."""


class _NamesNothingError(Exception):
    """A variable's name leads to no setting."""


def apply_environment(
    document: Document,
    type_: type,
    environ: Mapping[str, str],
    *,
    spared: Mapping[Key, type[Struct]] | None = None,
) -> tuple[str, ...]:
    """Change a document as the environment asks, and give one warning for each name that fits nowhere.

    Args:
        document: What to change.
        type_: The msgspec Struct that says which keys are fixed and which are free.
        environ: The environment's variables.
        spared: Keys of sections that somebody else checks, with the Structs that say what is fixed there; on the way to
            them unknown names are free.

    Raises:
        ConfigurationError: A value is no YAML, or a position is beyond the end of its list.
    """
    warnings: list[str] = []
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name == CONFIGURATION_PATH:
            continue
        words = name.removeprefix(PREFIX).split("_")
        try:
            root = _Override(document, name, environ[name], spared or {}).applied(
                inspected(type_), document.root, words, ()
            )
        except _NamesNothingError:
            warnings.append(f"{one_line(name)}: names no setting; ignored")
        else:
            # A value at the root itself would need a name without words; split() gives at least one.
            document.root = root if isinstance(root, dict) else document.root
    return tuple(warnings)


class _Override:
    """One variable on its way down the document."""

    def __init__(self, document: Document, name: str, text: str, spared: Mapping[Key, type[Struct]]) -> None:
        self._document = document
        self._name = name
        self._text = text
        self._spared = spared

    def applied(self, info: inspect.Type, current: Plain, words: list[str], key: Key) -> Plain:
        """Give the value at a key as it is with the override; words are what is left of the way."""
        if len(key) + len(words) > DEEPEST_NESTING:
            raise _NamesNothingError
        if not words:
            value = read_yaml(self._text, self._name)
            self._document.mark(key, self._name)
            return value
        info = inspected(self._spared[key]) if key in self._spared else info
        current = shorthand(info, current)
        match _bare(info):
            case inspect.StructType() as struct:
                return self._in_struct(struct, current, words, key)
            case inspect.DictType(value_type=item):
                return self._in_mapping(item, current, words, key)
            case inspect.VarTupleType(item_type=item):
                return self._in_list(item, current, words, key)
            case other if is_anything(other) and isinstance(current, list):
                return self._in_list(other, current, words, key)
            case other if is_anything(other):
                return self._in_mapping(other, current, words, key)
            case other if takes_mapping(other):
                return self._in_mapping(inspected(object), current, words, key)
            case _:
                raise _NamesNothingError

    def _in_struct(self, struct: inspect.StructType, current: Plain, words: list[str], key: Key) -> Plain:
        items = _as_mapping(current)
        for field in struct.fields:
            if _word(field) == words[0]:
                name = field.encode_name
                return {**items, name: self.applied(field.type, items.get(name), words[1:], (*key, name))}
        # In a section that somebody else checks, only what leads on to another such section is free.
        others = [each for each in self._spared if len(each) > len(key)] if key in self._spared else self._spared
        if has_open_keys(struct) or is_spared((*key, words[0].lower()), others):
            return self._in_mapping(inspected(object), items, words, key)
        raise _NamesNothingError

    def _in_mapping(self, item: inspect.Type, current: Plain, words: list[str], key: Key) -> Plain:
        items = _as_mapping(current)
        name = next((name for name in items if name.upper() == words[0]), words[0].lower())
        return {**items, name: self.applied(item, items.get(name), words[1:], (*key, name))}

    def _in_list(self, item: inspect.Type, current: Plain, words: list[str], key: Key) -> Plain:
        if current is None:
            current = []
        if not isinstance(current, list):
            raise _NamesNothingError
        # Five digits are more than a list may have, and int() takes its time with very many.
        position = int(words[0]) if words[0].isascii() and words[0].isdecimal() and len(words[0]) <= 5 else -1
        if not 0 <= position <= len(current):
            self._document.mark(key, self._name)
            allowed = "0" if not current else f"0 to {len(current)}"
            raise self._document.error(key, f"a list of {len(current)}, so the position in the name must be {allowed}")
        before = current[position] if position < len(current) else None
        return [
            *current[:position],
            self.applied(item, before, words[1:], (*key, position)),
            *current[position + 1 :],
        ]


def _bare(info: inspect.Type) -> inspect.Type:
    """Take annotations and "or nothing" off a type."""
    match info:
        case inspect.Metadata(type=inner):
            return _bare(inner)
        case inspect.UnionType(types=types):
            rest = [each for each in types if not isinstance(each, inspect.NoneType)]
            return _bare(rest[0]) if len(rest) == 1 else info
        case _:
            return info


def _word(field: inspect.Field) -> str:
    word = annotation(field.type, "environment")
    return word if isinstance(word, str) else field.encode_name.upper()


def _as_mapping(current: Plain) -> dict[str, Plain]:
    if current is None:
        return {}
    if not isinstance(current, dict):
        raise _NamesNothingError
    return current

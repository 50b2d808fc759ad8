"""A tree of settings, and its check against types.

What this module keeps:

- It knows no setting by name: msgspec Structs say what is allowed, here and in plugins.
- An unknown key is an error with the nearest known one; a value of the wrong kind is an error that says what was found
  and what is allowed. Never a traceback.
- An error is about one value and quotes no other. It names the file, or the variable that set the value.
"""

import re
from collections.abc import Callable, Collection, Hashable
from functools import cache
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar, cast

from msgspec import inspect

from ._yaml import (
    Bare,
    ConfigurationError,
    Key,
    Plain,
    did_you_mean,
    dotted,
    found,
    in_words,
    kind,
    one_line,
    read_yaml,
    unwrapped,
)

T = TypeVar("T")

_List: TypeAlias = inspect.VarTupleType | inspect.ListType | inspect.SetType | inspect.FrozenSetType

LARGEST_DOCUMENT: Final = 1 << 20


class SettingType(Protocol):
    """A class whose values settings hold as something plainer, such as a pattern, which they hold as text."""

    setting_schema: dict[str, object]
    """JSON Schema of what `from_setting` takes."""

    @classmethod
    def from_setting(cls, value: object) -> object:
        """Give the value that a setting stands for.

        Raises:
            ValueError: It stands for none; the text says what is allowed.
        """
        ...


def read_document(path: Path) -> "Document":
    """Read a YAML file whose root is a mapping.

    Raises:
        ConfigurationError: The file cannot be read, or is no such document.
    """
    source = one_line(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_DOCUMENT + 1)
    except OSError as error:
        raise ConfigurationError(f"{source}: cannot be read: {error.strerror or type(error).__name__}") from None
    except ValueError:  # a NUL in the path
        raise ConfigurationError(f"{source}: cannot be read: not a path") from None
    if len(data) > LARGEST_DOCUMENT:
        raise ConfigurationError(f"{source}: longer than {LARGEST_DOCUMENT} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source}: not UTF-8 text (byte {error.start + 1})") from None
    root = read_yaml(text, source)
    if root is not None and not isinstance(root, dict):
        raise ConfigurationError(f"{source}: found {kind(root)}; allowed is a mapping")
    return Document(source, root or {})


@cache
def inspected(type_: Hashable) -> inspect.Type:
    """Look into a type, once."""
    return inspect.type_info(type_)


def shorthand(info: inspect.Type, value: Plain) -> Plain:
    """Write a scalar out as a mapping (``inmemory`` as ``{inmemory: null}``) where the type says that it stands for one."""
    if annotation(info, "shorthand") and isinstance(value, str) and value:
        return {str(value): None}
    return value


def annotation(info: inspect.Type, name: str) -> object:
    """Give what a type's annotation (msgspec's ``Meta(extra=...)``) holds under a name, or None."""
    extra = cast("dict[str, object] | None", getattr(info, "extra", None))  # msgspec leaves open what is in it
    return (extra or {}).get(name)


class Document:
    """A tree of settings that remembers which of them did not come from the file."""

    def __init__(self, source: str, root: dict[str, Plain]) -> None:
        self.source = source
        self.root = root
        self.claimed: tuple[Key, ...] = ()
        """Keys of sections that plugins answer for."""
        self._origins: dict[Key, str] = {}

    def mark(self, key: Key, origin: str) -> None:
        """Remember that a value, and all below it, was set by something else than the file."""
        for known in [known for known in self._origins if known[: len(key)] == key]:
            del self._origins[known]
        self._origins[key] = origin

    def origin(self, key: Key) -> str:
        """Name what set a value: the file, an environment variable, the command line."""
        for length in range(len(key), 0, -1):
            if key[:length] in self._origins:
                return self._origins[key[:length]]
        return self.source

    def origins_below(self, key: Key) -> list[str]:
        """Name everything but the file that set a value or something in it."""
        here = self.origin(key)
        below = [origin for known, origin in self._origins.items() if known[: len(key)] == key]
        return sorted({*below, *([] if here == self.source else [here])})

    def find(self, key: Key) -> Plain:
        """Give the value at a key, or None."""
        value: Plain = self.root
        for part in key:
            match value, part:
                case dict(), str():
                    value = value.get(part)
                case list(), int() if 0 <= part < len(value):
                    value = value[part]
                case _:
                    return None
        return value

    def error(self, key: Key, problem: str) -> ConfigurationError:
        """Make the error that says what is wrong at a key."""
        place = f"{dotted(key)}: " if key else ""
        return ConfigurationError(f"{one_line(self.origin(key))}: {place}{one_line(problem)}")

    def decode(self, type_: type[T], key: Key = (), *, spared: Collection[Key] = ()) -> T:
        """Check the value at a key against a type and give it as that type; nothing there gives the defaults.

        Understood are msgspec Structs, the plain types, tuples, lists, sets and mappings of them, literals, enumerations
        and alternatives, with msgspec's limits, and classes like `SettingType`. A Struct's keys other than its fields are
        errors, but for mappings in a Struct that says `open_keys`.

        Args:
            type_: What to give.
            key: Where to look.
            spared: Keys of sections that somebody else checks: what is unknown in them, or on the way to them, is left
                out here.

        Raises:
            ConfigurationError: The value, or one in it, is not what the type allows.
            TypeError: The type is not one of the above.
        """
        info = inspected(cast("Hashable", type_))  # types are
        return cast("T", _Check(self, spared).checked(info, self.find(key), key))  # the walk follows the type


def is_spared(key: Key, spared: Collection[Key]) -> bool:
    """Tell whether a key lies in, or on the way to, one of some sections."""
    return any(key[: len(each)] == each[: len(key)] for each in spared)


class _Check:
    """One walk down a value and a type."""

    def __init__(self, document: Document, spared: Collection[Key]) -> None:
        self._document = document
        self._spared = spared

    def checked(self, info: inspect.Type, value: Plain, key: Key) -> object:
        """Give a value as the type wants it."""
        match info:
            case inspect.Metadata():
                return self._annotated(info, value, key)
            case inspect.StructType():
                return self._struct(info, self._mapping(value, key), key)
            case inspect.DictType(key_type=_, value_type=item):
                return {
                    name: self.checked(item, each, (*key, name)) for name, each in self._mapping(value, key).items()
                }
            case inspect.VarTupleType():
                return tuple(self._items(info, value, key))
            case inspect.ListType():
                return self._items(info, value, key)
            case inspect.SetType():
                return set(self._items(info, value, key))
            case inspect.FrozenSetType():
                return frozenset(self._items(info, value, key))
            case inspect.UnionType(types=types):
                return self._alternative(types, value, key)
            case _:
                return self._scalar(info, value, key)

    def _annotated(self, info: inspect.Metadata, value: Plain, key: Key) -> object:
        value = shorthand(info, value)
        if annotation(info, "folded") and isinstance(value, str):
            value = str(value).lower()
        parse = cast("Callable[[Plain], object] | None", annotation(info, "parse"))  # what our own annotations carry
        if parse is None:
            return self.checked(info.type, value, key)
        try:
            return parse(value)
        except ValueError as error:
            raise self._document.error(key, f"found {found(value, key)}; allowed is {error}") from None

    def _struct(self, info: inspect.StructType, value: dict[str, Plain], key: Key) -> object:
        known = {field.encode_name: field for field in info.fields}
        for name, each in value.items():
            if name in known or is_spared((*key, name), self._spared):
                continue
            if not has_open_keys(info):
                raise self._document.error((*key, name), f"unknown key; {did_you_mean(name, known)}")
            self._mapping(each, (*key, name))
        given = {
            field.name: self.checked(field.type, value[name], (*key, name))
            for name, field in known.items()
            if value.get(name) is not None
        }
        for name, field in known.items():
            if field.required and field.name not in given:
                raise self._document.error((*key, name), f"missing; {_allowed(field.type)} is required")
        try:
            return info.cls(**given)
        except (ValueError, TypeError) as error:  # what __post_init__ may raise, as in msgspec
            raise self._document.error(key, str(error)) from None

    def _mapping(self, value: Plain, key: Key) -> dict[str, Plain]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._document.error(key, f"found {kind(value)}; allowed is a mapping")
        return value

    def _items(self, info: _List, value: Plain, key: Key) -> list[object]:
        if value is None:
            value = []
        if not isinstance(value, list):
            raise self._document.error(key, f"found {kind(value)}; allowed is a list")
        limits = {"at least": info.min_length, "at most": info.max_length}
        if len(value) < (info.min_length or 0) or (info.max_length is not None and len(value) > info.max_length):
            allowed = " and ".join(f"{word} {limit}" for word, limit in limits.items() if limit is not None)
            raise self._document.error(key, f"found {len(value)} items; allowed are {allowed}")
        return [self.checked(info.item_type, each, (*key, position)) for position, each in enumerate(value)]

    def _alternative(self, types: tuple[inspect.Type, ...], value: Plain, key: Key) -> object:
        alternatives = [each for each in types if not isinstance(each, inspect.NoneType)]
        if value is None and len(alternatives) < len(types):
            return None
        if len(alternatives) == 1:
            return self.checked(alternatives[0], value, key)
        # Text takes any scalar as it was written, so it is asked last.
        for each in sorted(alternatives, key=lambda each: isinstance(each, inspect.StrType)):
            try:
                return self.checked(each, value, key)
            except ConfigurationError:
                continue
        allowed = " or ".join(_allowed(each) for each in alternatives)
        raise self._document.error(key, f"found {found(value, key)}; allowed is {allowed}")

    def _scalar(self, info: inspect.Type, value: Plain, key: Key) -> object:
        if is_anything(info):
            return unwrapped(value)
        if (setting := setting_type(info)) is not None:
            try:
                # A plain 1.21 is a number to YAML and text to whoever writes patterns.
                return setting.from_setting(str(value) if isinstance(value, Bare) else unwrapped(value))
            except ValueError as error:
                raise self._document.error(key, f"found {found(value, key)}; allowed is {error}") from None
        meaning = value.value if isinstance(value, Bare) else value
        match info:
            case inspect.BoolType() if isinstance(meaning, bool):
                return meaning
            case inspect.IntType() if type(meaning) is int and _within(info, meaning):
                return meaning
            case inspect.FloatType() if type(meaning) in {int, float} and _within(info, cast("float", meaning)):
                return float(cast("float", meaning))  # as just looked at
            case inspect.StrType() if isinstance(value, str | int | float):
                text = str(value).lower() if isinstance(value, bool) else str(value)
                if _fits(info, text):
                    return text
            case inspect.LiteralType(values=values):
                for each in values:
                    if _means(value, each):
                        return each
            case inspect.EnumType(cls=cls):
                for member in cls:
                    if _means(value, member.value):
                        return member
            case inspect.BoolType() | inspect.IntType() | inspect.FloatType() | inspect.StrType():
                pass
            case _:
                raise TypeError(f"a configuration cannot hold {info}")
        raise self._document.error(key, f"found {found(value, key)}; allowed is {_allowed(info)}")


def is_anything(info: inspect.Type) -> bool:
    """Tell whether a type is `object`: free content."""
    return isinstance(info, inspect.AnyType) or (isinstance(info, inspect.CustomType) and info.cls is object)


def setting_type(info: inspect.Type) -> type[SettingType] | None:
    """Give the class of a type that reads its own settings, or None if it does not."""
    if isinstance(info, inspect.CustomType) and hasattr(info.cls, "from_setting"):
        return cast("type[SettingType]", info.cls)  # as just looked at
    return None


def has_open_keys(info: inspect.StructType) -> bool:
    """Tell whether mappings may stand beside a Struct's fields, under names that somebody else knows."""
    return bool(getattr(info.cls, "open_keys", False))


def takes_mapping(info: inspect.Type) -> bool:
    """Tell whether a type reads its own settings, and a mapping is among what it takes."""
    setting = setting_type(info)
    if setting is None:
        return False
    schema = setting.setting_schema
    alternatives = cast("list[dict[str, object]]", schema.get("anyOf", [schema]))  # as JSON Schema has it
    return any(each.get("type") == "object" for each in alternatives)


def _means(value: Plain, wanted: object) -> bool:
    if isinstance(wanted, str):
        return isinstance(value, str) and value == wanted
    meaning = value.value if isinstance(value, Bare) else value
    return type(meaning) is type(wanted) and meaning == wanted


def _within(info: inspect.IntType | inspect.FloatType, number: float) -> bool:
    return (
        (info.ge is None or number >= info.ge)
        and (info.gt is None or number > info.gt)
        and (info.le is None or number <= info.le)
        and (info.lt is None or number < info.lt)
    )


def _fits(info: inspect.StrType, text: str) -> bool:
    return (
        (info.min_length is None or len(text) >= info.min_length)
        and (info.max_length is None or len(text) <= info.max_length)
        and (info.pattern is None or re.search(info.pattern, text) is not None)
    )


def _allowed(info: inspect.Type) -> str:
    match info:
        case inspect.Metadata():
            return cast("str | None", annotation(info, "allowed")) or _allowed(info.type)  # our own annotations
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            noun = "a whole number" if isinstance(info, inspect.IntType) else "a number"
            limits = {"at least": info.ge, "above": info.gt, "at most": info.le, "below": info.lt}
            return " ".join([noun, *(f"{word} {limit}" for word, limit in limits.items() if limit is not None)])
        case inspect.StrType(pattern=pattern):
            return "text" if pattern is None else f"text matching {pattern}"
        case inspect.LiteralType(values=values):
            return in_words([str(value) for value in values], "or")
        case inspect.EnumType(cls=cls):
            return in_words([str(member.value) for member in cls], "or")
        case inspect.StructType() | inspect.DictType():
            return "a mapping"
        case inspect.UnionType(types=types):
            return " or ".join(_allowed(each) for each in types if not isinstance(each, inspect.NoneType))
        case _:
            return "anything" if is_anything(info) else "a list"


def json_schema(info: inspect.Type) -> dict[str, object]:
    """Describe in JSON Schema what `Document.decode` accepts for a type.

    Text is asked for as text here, although an unquoted number would do as well: what editors offer should be the clear
    way to write it.
    """
    match info:
        case inspect.Metadata():
            extra = cast("dict[str, object] | None", getattr(info, "extra_json_schema", None))  # same
            return {**json_schema(info.type), **(extra or {})}
        case inspect.StructType(fields=fields) as struct:
            # A key without a value is a key that was not given.
            properties = {field.encode_name: or_null(json_schema(field.type)) for field in fields}
            required = [field.encode_name for field in fields if field.required]
            schema: dict[str, object] = {"type": "object", "properties": properties, "additionalProperties": False}
            if has_open_keys(struct):
                schema["additionalProperties"] = {"type": ["object", "null"]}
            return {**schema, "required": required} if required else schema
        case inspect.DictType(value_type=item):
            return {"type": "object", "additionalProperties": or_null(json_schema(item))}
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return {"type": "array", "items": json_schema(item)}
        case inspect.SetType(item_type=item) | inspect.FrozenSetType(item_type=item):
            return {"type": "array", "items": json_schema(item), "uniqueItems": True}
        case inspect.UnionType(types=types):
            alternatives = [json_schema(each) for each in types if not isinstance(each, inspect.NoneType)]
            return alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType() | inspect.FloatType():
            limits = {
                "minimum": info.ge,
                "exclusiveMinimum": info.gt,
                "maximum": info.le,
                "exclusiveMaximum": info.lt,
            }
            noun = "integer" if isinstance(info, inspect.IntType) else "number"
            return {"type": noun, **{name: limit for name, limit in limits.items() if limit is not None}}
        case inspect.StrType(pattern=pattern):
            return {"type": "string"} if pattern is None else {"type": "string", "pattern": pattern}
        case inspect.LiteralType(values=values):
            return {"enum": list(values)}
        case inspect.EnumType(cls=cls):
            return {"enum": [member.value for member in cls]}
        case _:
            setting = setting_type(info)
            return {} if setting is None else dict(setting.setting_schema)


def or_null(schema: dict[str, object]) -> dict[str, object]:
    """Describe what may also be left without a value: a key without one is a key that was not given."""
    # What json_schema makes has one of these, unless it allows everything.
    for name in ("enum", "anyOf"):
        if name in schema:
            null = None if name == "enum" else {"type": "null"}
            schema = {**schema, name: [*cast("list[object]", schema[name]), null]}  # both are lists
    if "type" in schema:
        types = schema["type"]
        schema = {**schema, "type": [*(cast("list[object]", types) if isinstance(types, list) else [types]), "null"]}
    return schema

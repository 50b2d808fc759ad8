"""Read a YAML document into checked values; what is wrong with it becomes one sentence, never a traceback.

What this module keeps:

- It knows YAML and types, and no setting by name.
- Its dialect is the one of distribution's parser (go-yaml 2): YAML 1.1 without base 60 and time stamps, so that
  ``22:22`` and ``2024-01-01`` are text; and a setting that is text takes ``0123`` as it was written.
- It is stricter where leniency hides mistakes: a key given twice, a second document and unknown keys are errors.
- Memory and depth stay bounded whatever the input is: aliases are copied against a budget, nothing recurses freely.
- An error quotes a value only when it is about this very value, and not when the key sounds like a secret.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Final, NoReturn, TypeAlias, TypeVar, cast

import yaml
from msgspec import inspect

T = TypeVar("T")

Plain: TypeAlias = "None | bool | int | float | str | list[Plain] | dict[str, Plain]"
"""What a YAML document is made of. An unquoted scalar that is no text is a `Bare`."""

Key: TypeAlias = tuple[str | int, ...]
"""The way to a value from the document's root: names in mappings, positions in lists."""

LARGEST_DOCUMENT: Final = 1 << 20
MOST_VALUES: Final = 100_000
DEEPEST_NESTING: Final = 48

_CORE_TAG: Final = "tag:yaml.org,2002:"
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
_FALSE: Final = frozenset({"n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
_INTEGER: Final = re.compile(r"[-+]?(?:0b[01_]{1,64}|0o?[0-7_]{1,24}|0x[0-9a-fA-F_]{1,18}|[1-9][0-9_]{0,20}|0)")
_DECIMAL: Final = re.compile(r"[-+]?(?:[0-9][0-9_]{0,40}(?:\.[0-9_]{0,40})?|\.[0-9][0-9_]{0,40})(?:[eE][-+]?[0-9]{1,3})?")

_SECRET: Final = re.compile(
    r"secret|passw|passphrase|token|key|credential|authori[sz]ation|cookie|private|signature|sas|connectionstring|dsn"
)
_USER_INFORMATION: Final = re.compile(r"(?<=://)[^\s@]*@")
_QUERY: Final = re.compile(r"(?<=\?).*", re.DOTALL)
_PLAIN_WORD: Final = re.compile(r"[\w.-]{1,80}")

_UNITS: Final = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,
    "\u03bcs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)", re.ASCII)
_LONGEST_DURATION: Final = 2**63 - 1
A_DURATION: Final = 'a duration such as "1h30m", "1.5s" or "100ms", or a whole number of nanoseconds'

MASK: Final = "***"


class ConfigurationError(Exception):
    """A configuration cannot be used; its text is one sentence on one line: where, which key, found, allowed."""


class Bare(str):
    """An unquoted scalar that reads as a truth value or a number, with its text as it was written."""

    __slots__ = ("value",)

    value: bool | int | float

    @classmethod
    def of(cls, text: str, value: bool | float) -> "Bare":
        """Make one of its text and what that text means."""
        bare = cls(text)
        bare.value = value
        return bare


# --- values ---------------------------------------------------------------------------------------------------------


def unwrapped(value: Plain) -> Plain:
    """Copy a value and turn each `Bare` in it into what it means."""
    match value:
        case dict():
            return {name: unwrapped(item) for name, item in value.items()}
        case list():
            return [unwrapped(item) for item in value]
        case Bare():
            return value.value
        case _:
            return value


def merged(under: Plain, over: Plain) -> Plain:
    """Lay one value over another: mappings are joined key by key, of everything else the upper one stays."""
    if over is None:
        return under
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return {name: merged(under.get(name), over.get(name)) for name in (*under, *(set(over) - set(under)))}


def parse_duration(value: object) -> float:
    """Read a duration as Go writes it and give seconds; a bare whole number counts nanoseconds.

    Raises:
        ValueError: The value is no duration; the text says what would be one.
    """
    match value:
        case Bare():
            return parse_duration(value.value if value != "0" else 0)
        case bool():
            pass
        case int() if abs(value) <= _LONGEST_DURATION:
            return value / 10**9
        case str() if len(value) <= 100:
            text = value.removeprefix("-") if value.startswith("-") else value.removeprefix("+")
            parts = _DURATION_PART.findall(text)
            if "".join(number + unit for number, unit in parts) == text and parts:
                nanoseconds = sum(int(Fraction("0" + number) * _UNITS[unit]) for number, unit in parts)
                if nanoseconds <= _LONGEST_DURATION:
                    return (-nanoseconds if value.startswith("-") else nanoseconds) / 10**9
            elif text == "0":
                return 0.0
        case _:
            pass
    raise ValueError(A_DURATION)


def duration_text(seconds: float) -> str:
    """Write seconds so that `parse_duration` reads them back."""
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


# --- sentences ------------------------------------------------------------------------------------------------------


def is_secret(name: str) -> bool:
    """Tell whether a key's name sounds like a secret; in doubt it does."""
    return _SECRET.search(re.sub(r"[^a-z]", "", name.lower())) is not None


def masked(value: Plain, *, secret: bool = False) -> Plain:
    """Copy a value with every secret in it replaced by ``***``.

    Secret is what lies under a key that sounds like it, and in texts the user information and the query of an URL.

    Args:
        value: What to copy.
        secret: Whether the whole value is one.
    """
    match value:
        case dict():
            return {name: masked(item, secret=secret or is_secret(name)) for name, item in value.items()}
        case list():
            return [masked(item, secret=secret) for item in value]
        case None | "":
            return value
        case _ if secret:
            return MASK
        case str() if "://" in value:
            return _QUERY.sub(MASK, _USER_INFORMATION.sub(MASK + "@", value))
        case Bare():
            return value.value
        case _:
            return value


def in_words(names: Collection[str], conjunction: str) -> str:
    """Write names as a list in a sentence: ``"a", "b" or "c"``."""
    *first, last = [quoted(name) for name in names]
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def quoted(text: str) -> str:
    """Put a text into double quotes, on one line and not too long."""
    return f'"{_one_line(text if len(text) <= 80 else text[:77] + "...")}"'


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Say which known name was probably meant, or list the known ones."""
    by_case = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower()[:80], by_case, n=1, cutoff=0.6)
    if near:
        return f"did you mean {quoted(by_case[near[0]])}?"
    return f"known here: {', '.join(sorted(known))}" if known else "nothing is known here"


def dotted(key: Key) -> str:
    """Write a key as in ``notifications.endpoints[0].url``."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _PLAIN_WORD.fullmatch(part) else quoted(part))
    return text


def _one_line(text: str) -> str:
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def _kind(value: Plain) -> str:
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case Bare():
            return _kind(value.value)
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case str():
            return "text"


def _found(value: Plain, key: Key, *, quote: bool) -> str:
    hidden = any(isinstance(part, str) and is_secret(part) for part in key)
    if hidden or not quote or value is None or isinstance(value, dict | list):
        return _kind(value)
    if isinstance(value, Bare):
        return _one_line(value[:80])
    if isinstance(value, str):
        return quoted(str(masked(value)))
    return str(value).lower()


# --- reading --------------------------------------------------------------------------------------------------------


class _Reader:
    """Builds values from the parser's events, which unlike its trees come without recursion in C."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._events: Iterator[yaml.Event] = iter(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        self._anchors: dict[str, tuple[Plain, int]] = {}
        self._count = 0

    def read(self) -> Plain:
        """Read the only document.

        Raises:
            ConfigurationError: The text is no YAML, or more than a configuration may be.
        """
        try:
            next(self._events)
            if isinstance(next(self._events), yaml.StreamEndEvent):
                return None
            value = self._value(next(self._events), 0)
            next(self._events)
            if not isinstance(next(self._events), yaml.StreamEndEvent):
                self._fail("holds more than one YAML document")
        except yaml.MarkedYAMLError as error:
            # The parser's own text shows the line it stumbled over, and a name in quotes may be half of a password.
            problem = re.sub(r" handle '[^']*'", " handle", error.problem or "broken")
            self._fail(f"not valid YAML: {problem}", error.problem_mark)
        except (yaml.YAMLError, ValueError, OverflowError):
            self._fail("not valid YAML: holds characters that YAML does not allow")
        return value

    def _value(self, event: yaml.Event, depth: int) -> Plain:
        before = self._count
        self._spend(1, event)
        if depth > DEEPEST_NESTING:
            self._fail(f"nested more than {DEEPEST_NESTING} levels deep", event.start_mark)
        value: Plain
        match event:
            case yaml.AliasEvent():
                if event.anchor not in self._anchors:
                    self._fail("an alias comes before the end of what it stands for", event.start_mark)
                original, size = self._anchors[event.anchor]
                self._spend(size, event)
                return _copied(original)
            case yaml.ScalarEvent():
                value = self._scalar(event)
            case yaml.SequenceStartEvent():
                self._expect_tag(event, "seq")
                value = self._sequence(depth)
            case yaml.MappingStartEvent():
                self._expect_tag(event, "map")
                value = self._mapping(depth)
            case _:
                raise AssertionError(event)  # The parser's grammar has nothing else here.
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._count - before)
        return value

    def _sequence(self, depth: int) -> list[Plain]:
        items: list[Plain] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, Plain]:
        items: dict[str, Plain] = {}
        inherited: list[dict[str, Plain]] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._fail("a key is neither text nor a number", event.start_mark)
            self._spend(1, event)
            value = self._value(next(self._events), depth + 1)
            if event.value == "<<" and event.implicit[0]:
                for each in value if isinstance(value, list) else [value]:
                    if not isinstance(each, dict):
                        self._fail('"<<" takes mappings only', event.start_mark)
                    inherited.append(each)
            elif event.value in items:
                self._fail(f"the key {quoted(event.value)} is given twice", event.start_mark)
            else:
                items[event.value] = value
            if event.anchor is not None:
                self._anchors[event.anchor] = (self._scalar(event), 1)
        for each in inherited:
            items = {**each, **items}
        return items

    def _scalar(self, event: yaml.ScalarEvent) -> Plain:
        tag = cast("str | None", event.tag)  # types-PyYAML leaves it open
        text = event.value
        if tag in {None, "!"}:
            return resolved(text) if event.implicit[0] else text
        if tag == _CORE_TAG + "str":
            return text
        value = resolved(text)
        kind = {
            _CORE_TAG + "null": value is None,
            _CORE_TAG + "bool": isinstance(value, Bare) and isinstance(value.value, bool),
            _CORE_TAG + "int": isinstance(value, Bare) and type(value.value) is int,
            _CORE_TAG + "float": isinstance(value, Bare) and not isinstance(value.value, bool),
        }
        if not kind.get(tag or "", False):
            self._fail("a tag that is not supported here", event.start_mark)
        return value

    def _expect_tag(self, event: yaml.SequenceStartEvent | yaml.MappingStartEvent, kind: str) -> None:
        if event.tag not in {None, "!", _CORE_TAG + kind}:
            self._fail("a tag that is not supported here", event.start_mark)

    def _spend(self, count: int, event: yaml.Event) -> None:
        self._count += count
        if self._count > MOST_VALUES:
            self._fail(f"more than {MOST_VALUES} values, those behind aliases counted", event.start_mark)

    def _fail(self, problem: str, mark: yaml.Mark | None = None) -> NoReturn:
        place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ConfigurationError(f"{_one_line(self._source)}: {_one_line(problem)}{place}") from None


def resolved(text: str) -> Plain:
    """Give an unquoted scalar its meaning, by go-yaml's table."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return Bare.of(text, True)
    if text in _FALSE:
        return Bare.of(text, False)
    if _INTEGER.fullmatch(text):
        digits = text.replace("_", "")
        octal = re.fullmatch(r"([-+]?)0([0-7]+)", digits)
        try:
            return Bare.of(text, int(octal[1] + octal[2], 8) if octal else int(digits, 0))
        except ValueError:  # such as "0x_"
            return text
    if _DECIMAL.fullmatch(text):
        return Bare.of(text, float(text.replace("_", "")))
    return text


def read_yaml(text: str, source: str) -> Plain:
    """Read one YAML value.

    Args:
        text: What to read.
        source: Where it comes from, for sentences.

    Raises:
        ConfigurationError: It is no YAML, or more than a configuration may be.
    """
    return _Reader(text, source).read()


def read_document(path: Path) -> "Document":
    """Read a YAML file whose root is a mapping.

    Raises:
        ConfigurationError: The file cannot be read, or is no such document.
    """
    source = _one_line(str(path))
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
        raise ConfigurationError(f"{source}: found {_kind(root)}; allowed is a mapping")
    return Document(source, root or {})


def _copied(value: Plain) -> Plain:
    match value:
        case dict():
            return {name: _copied(item) for name, item in value.items()}
        case list():
            return [_copied(item) for item in value]
        case _:
            return value


# --- checking -------------------------------------------------------------------------------------------------------


@cache
def inspected(type_: type) -> inspect.Type:
    """Look into a type, once."""
    return inspect.type_info(type_)


def shorthand(info: inspect.Type, value: Plain) -> Plain:
    """Write a scalar out as a mapping (``inmemory`` as ``{inmemory: null}``) where the type says that it stands for one."""
    if isinstance(info, inspect.Metadata) and (info.extra or {}).get("shorthand") and isinstance(value, str) and value:
        return {str(value): None}
    return value


class Document:
    """A tree of settings that remembers which of them did not come from the file."""

    def __init__(self, source: str, root: dict[str, Plain]) -> None:
        self.source = source
        self.root = root
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
            value = value.get(part) if isinstance(value, dict) and isinstance(part, str) else None
        return value

    def error(self, key: Key, problem: str) -> ConfigurationError:
        """Make the error that says what is wrong at a key."""
        place = f"{dotted(key)}: " if key else ""
        return ConfigurationError(f"{_one_line(self.origin(key))}: {place}{_one_line(problem)}")

    def decode(self, type_: type[T], key: Key = ()) -> T:
        """Check the value at a key against a type and give it as that type; nothing there gives the defaults.

        Understood are msgspec Structs, the plain types, tuples, lists, sets and mappings of them, literals, enumerations
        and alternatives, with msgspec's limits. A Struct's keys other than its fields are errors.

        Raises:
            ConfigurationError: The value, or one in it, is not what the type allows.
            TypeError: The type is not one of the above.
        """
        return cast("T", self._checked(inspected(type_), self.find(key), key))  # the walk follows the type

    def _checked(self, info: inspect.Type, value: Plain, key: Key) -> object:  # noqa: PLR0911 - a table
        match info:
            case inspect.Metadata():
                return self._annotated(info, value, key)
            case inspect.StructType():
                return self._struct(info, self._mapping(value, key), key)
            case inspect.DictType(key_type=_, value_type=item):
                return {
                    name: self._checked(item, each, (*key, name)) for name, each in self._mapping(value, key).items()
                }
            case inspect.VarTupleType(item_type=item):
                return tuple(self._items(item, value, key))
            case inspect.ListType(item_type=item):
                return self._items(item, value, key)
            case inspect.SetType(item_type=item):
                return set(self._items(item, value, key))
            case inspect.FrozenSetType(item_type=item):
                return frozenset(self._items(item, value, key))
            case inspect.UnionType(types=types):
                return self._alternative(types, value, key)
            case _:
                return self._scalar(info, value, key)

    def _annotated(self, info: inspect.Metadata, value: Plain, key: Key) -> object:
        extra = info.extra or {}
        value = shorthand(info, value)
        if extra.get("folded") and isinstance(value, str):
            value = str(value).lower()
        parse = cast("Callable[[Plain], object] | None", extra.get("parse"))  # what our own annotations carry
        if parse is None:
            return self._checked(info.type, value, key)
        try:
            return parse(value)
        except ValueError as error:
            raise self.error(key, f"found {_found(value, key, quote=True)}; allowed is {error}") from None

    def _struct(self, info: inspect.StructType, value: dict[str, Plain], key: Key) -> object:
        known = {field.encode_name: field for field in info.fields}
        for name in value:
            if name not in known:
                raise self.error((*key, name), f"unknown key; {did_you_mean(name, known)}")
        given = {
            field.name: self._checked(field.type, value[name], (*key, name))
            for name, field in known.items()
            if value.get(name) is not None
        }
        for name, field in known.items():
            if field.required and field.name not in given:
                raise self.error((*key, name), f"missing; {_allowed(field.type)} is required")
        try:
            return info.cls(**given)
        except (ValueError, TypeError) as error:  # what __post_init__ may raise, as in msgspec
            raise self.error(key, str(error)) from None

    def _mapping(self, value: Plain, key: Key) -> dict[str, Plain]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(key, f"found {_kind(value)}; allowed is a mapping")
        return value

    def _items(self, item: inspect.Type, value: Plain, key: Key) -> list[object]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(key, f"found {_kind(value)}; allowed is a list")
        return [self._checked(item, each, (*key, position)) for position, each in enumerate(value)]

    def _alternative(self, types: tuple[inspect.Type, ...], value: Plain, key: Key) -> object:
        alternatives = [each for each in types if not isinstance(each, inspect.NoneType)]
        if value is None and len(alternatives) < len(types):
            return None
        if len(alternatives) == 1:
            return self._checked(alternatives[0], value, key)
        # Text takes any scalar as it was written, so it is asked last.
        for each in sorted(alternatives, key=lambda each: isinstance(each, inspect.StrType)):
            try:
                return self._checked(each, value, key)
            except ConfigurationError:
                continue
        allowed = " or ".join(_allowed(each) for each in alternatives)
        raise self.error(key, f"found {_found(value, key, quote=True)}; allowed is {allowed}")

    def _scalar(self, info: inspect.Type, value: Plain, key: Key) -> object:
        if is_anything(info):
            return unwrapped(value)
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
                    if each in {value, meaning} if isinstance(value, str | int) else False:
                        return each
            case inspect.EnumType(cls=cls):
                for member in cls:
                    if member.value in (value, meaning):
                        return member
            case inspect.BoolType() | inspect.IntType() | inspect.FloatType() | inspect.StrType():
                pass
            case _:
                raise TypeError(f"a configuration cannot hold {info}")
        raise self.error(key, f"found {_found(value, key, quote=True)}; allowed is {_allowed(info)}")


def is_anything(info: inspect.Type) -> bool:
    """Tell whether a type is `object`: free content."""
    return isinstance(info, inspect.AnyType) or (isinstance(info, inspect.CustomType) and info.cls is object)


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
            return cast("str | None", (info.extra or {}).get("allowed")) or _allowed(info.type)  # our own annotations
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
            return {**json_schema(info.type), **(info.extra_json_schema or {})}
        case inspect.StructType(fields=fields):
            # A key without a value is a key that was not given.
            properties = {field.encode_name: _or_null(json_schema(field.type)) for field in fields}
            required = [field.encode_name for field in fields if field.required]
            schema: dict[str, object] = {"type": "object", "properties": properties, "additionalProperties": False}
            return {**schema, "required": required} if required else schema
        case inspect.DictType(value_type=item):
            return {"type": "object", "additionalProperties": _or_null(json_schema(item))}
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
            return {}


def _or_null(schema: dict[str, object]) -> dict[str, object]:
    if not schema or "type" not in schema:
        if "enum" in schema:
            return {**schema, "enum": [*cast("list[object]", schema["enum"]), None]}  # written by json_schema
        return {**schema, "anyOf": [*cast("list[object]", schema["anyOf"]), {"type": "null"}]} if "anyOf" in schema else schema
    kind = schema["type"]
    return {**schema, "type": [*(cast("list[object]", kind) if isinstance(kind, list) else [kind]), "null"]}

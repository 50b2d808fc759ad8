"""Read YAML into plain values, and say in sentences what is found in them.

What this module keeps:

- It knows YAML, and no setting by name.
- Its dialect is the one of distribution's parser (go-yaml 2): YAML 1.1 without base 60 and time stamps, so that
  ``22:22`` and ``2024-01-01`` are text; and a setting that is text takes ``0123`` as it was written.
- It is stricter where leniency hides mistakes: a key given twice, a second document and foreign tags are errors.
- Memory and depth stay bounded whatever the input is: aliases are copied against a budget, nothing recurses freely.
- Sentences stay on one line, and quote nothing that lies under a key that sounds like a secret.
"""

import difflib
import re
from collections.abc import Collection, Iterator
from fractions import Fraction
from typing import Final, NoReturn, Protocol, TypeAlias

import yaml

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"
"""What a YAML document is made of. An unquoted scalar that is no text is a `Bare`."""

Key: TypeAlias = tuple[str | int, ...]
"""The way to a value from the document's root: names in mappings, positions in lists."""

MOST_VALUES: Final = 100_000
DEEPEST_NESTING: Final = 48
_TOO_DEEP = f"nested more than {DEEPEST_NESTING} levels deep"

_CORE_TAG: Final = "tag:yaml.org,2002:"
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
_FALSE: Final = frozenset({"n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
_INTEGER: Final = re.compile(r"[-+]?(?:0b[01_]{1,64}|0o?[0-7_]{1,24}|0x[0-9a-fA-F_]{1,18}|[1-9][0-9_]{0,20}|0)")
_DECIMAL: Final = re.compile(
    r"[-+]?(?:[0-9][0-9_]{0,40}(?:\.[0-9_]{0,40})?|\.[0-9][0-9_]{0,40})(?:[eE][-+]?[0-9]{1,3})?"
)

_SECRET: Final = re.compile(
    r"secret|passw|passphrase|token|key|credential|authori[sz]ation|cookie|private|signature|sas|connectionstring|dsn"
)
# Up to the last of them: a password may have an unescaped @, which most parsers take.
_USER_INFORMATION: Final = re.compile(r"(?<=://).*@", re.DOTALL)
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
    return {name: merged(under.get(name), over.get(name)) for name in {**under, **over}}


def parse_duration(value: object) -> float:
    """Read a duration as Go writes it and give seconds; a bare whole number counts nanoseconds.

    Raises:
        ValueError: The value is no duration; the text says what would be one.
    """
    match value:
        case Bare():
            return parse_duration(value.value)
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

    Secret is what lies under a key that sounds like it, the values of headers, and in texts the user information and the
    query of an URL.

    Args:
        value: What to copy.
        secret: Whether the whole value is one.
    """
    match value:
        case dict():
            return {
                name: masked(item, secret=secret or name == "headers" or is_secret(name))
                for name, item in value.items()
            }
        case list() | tuple():  # pyright: ignore[reportUnnecessaryComparison]  # a Struct made plain has tuples left
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
    return f'"{one_line(text if len(text) <= 80 else text[:77] + "...")}"'


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


def one_line(text: str) -> str:
    """Write a text so that it stays on its line and shows what cannot be printed."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def kind(value: Plain) -> str:
    """Name the kind of a value in a sentence."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case Bare():
            return kind(value.value)
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case str():
            return "text"


def found(value: Plain, key: Key) -> str:
    """Say what was found at a key: the value itself if it is short and no secret, else its kind."""
    hidden = any(isinstance(part, str) and is_secret(part) for part in key)
    if hidden or value is None or isinstance(value, dict | list):
        return kind(value)
    if isinstance(value, Bare):
        return one_line(value[:80])
    if isinstance(value, str):
        return quoted(str(masked(value)))
    return str(value).lower()


# --- reading --------------------------------------------------------------------------------------------------------


class _Mark(Protocol):
    """A place in the text, as both of PyYAML's parsers give it."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


class _Reader:
    """Builds values from the parser's events, which unlike its trees come without recursion in C."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._events: Iterator[yaml.Event] = iter(
            yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        )
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
            if error.problem == "exceeded maximum nesting depth":
                # Newer parsers read ahead for a key, and have a limit of their own.
                self._fail(_TOO_DEEP, error.problem_mark)
            problem = re.sub(r" handle '[^']*'", " handle", error.problem or "broken")
            self._fail(f"not valid YAML: {problem}", error.problem_mark)
        except (yaml.YAMLError, ValueError, OverflowError):
            self._fail("not valid YAML: holds characters that YAML does not allow")
        return value

    def _value(self, event: yaml.Event, depth: int) -> Plain:
        before = self._count
        self._spend(1, event)
        if depth > DEEPEST_NESTING:
            self._fail(_TOO_DEEP, event.start_mark)
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
            if event.anchor is not None:
                self._anchors[event.anchor] = (self._scalar(event), 1)
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
        for each in inherited:
            items = {**each, **items}
        return items

    def _scalar(self, event: yaml.ScalarEvent) -> Plain:
        tag = event.tag
        text = event.value
        if tag in {None, "!"}:
            return resolved(text) if event.implicit[0] else text
        if tag == _CORE_TAG + "str":
            return text
        value = resolved(text)
        fits = {
            _CORE_TAG + "null": value is None,
            _CORE_TAG + "bool": isinstance(value, Bare) and isinstance(value.value, bool),
            _CORE_TAG + "int": isinstance(value, Bare) and type(value.value) is int,
            _CORE_TAG + "float": isinstance(value, Bare) and not isinstance(value.value, bool),
        }
        if not fits.get(tag or "", False):
            self._fail("a tag that is not supported here", event.start_mark)
        return value

    def _expect_tag(self, event: yaml.SequenceStartEvent | yaml.MappingStartEvent, kind: str) -> None:
        if event.tag not in {None, "!", _CORE_TAG + kind}:
            self._fail("a tag that is not supported here", event.start_mark)

    def _spend(self, count: int, event: yaml.Event) -> None:
        self._count += count
        if self._count > MOST_VALUES:
            self._fail(f"more than {MOST_VALUES} values, those behind aliases counted", event.start_mark)

    def _fail(self, problem: str, mark: _Mark | None = None) -> NoReturn:
        place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ConfigurationError(f"{one_line(self._source)}: {one_line(problem)}{place}") from None


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


def _copied(value: Plain) -> Plain:
    match value:
        case dict():
            return {name: _copied(item) for name, item in value.items()}
        case list():
            return [_copied(item) for item in value]
        case _:
            return value

"""Patterns in settings: regular expressions that take linear time, and globs for names.

Both are values that a configuration holds: a field of the type `Regex` or `Glob` is read from text, and a pattern that
cannot be understood is an error of the configuration. Regular expressions are RE2's, as in distribution, so nobody can
write one that stops the registry; what RE2 cannot do in linear time (look-around, back-references) it refuses.
"""

import importlib
from functools import cache, cached_property
from typing import ClassVar, Protocol, Self, cast

_LONGEST = 4096
_REMEMBERED = 1000
_REMEMBERED_LENGTH = 256


class _Compiled(Protocol):
    """What RE2 makes of a pattern."""

    def search(self, text: str) -> object | None: ...
    def fullmatch(self, text: str) -> object | None: ...


class _Options(Protocol):
    log_errors: bool


class _Library(Protocol):
    """What is used of google-re2, which has no types of its own."""

    error: type[Exception]

    def Options(self) -> _Options: ...  # noqa: N802 - its name there
    def compile(self, pattern: str, options: _Options) -> _Compiled: ...
    def escape(self, text: str) -> str: ...


@cache
def _re2() -> _Library:
    # Late, so that a registry without patterns starts without the library.
    return cast("_Library", importlib.import_module("re2"))  # a module that has these names


def _compile(pattern: str) -> _Compiled:
    """Return `pattern`, compiled.

    Raises:
        ValueError: it is no pattern of RE2.
    """
    re2 = _re2()
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        said: object = error.args[0] if error.args else "RE2 does not take it"
        raise ValueError(said.decode(errors="replace") if isinstance(said, bytes) else str(said)) from None


class Regex:
    """A regular expression in RE2's syntax."""

    setting_schema: ClassVar[dict[str, object]] = {"type": "string", "format": "regex"}

    __slots__ = ("_compiled", "text")

    def __init__(self, text: str) -> None:
        """Understand `text`.

        Raises:
            ValueError: it is no regular expression of RE2.
        """
        if len(text) > _LONGEST:
            raise ValueError(f"at most {_LONGEST} characters")
        self.text: str = text
        self._compiled: _Compiled = _compile(text)

    @classmethod
    def from_setting(cls, value: object) -> Self:
        """Return the pattern that a configuration holds.

        Raises:
            ValueError: it is none; says what is allowed.
        """
        if not isinstance(value, str):
            raise ValueError("a regular expression")  # noqa: TRY004 - what is allowed is told by a ValueError
        try:
            return cls(str(value))
        except ValueError as error:
            raise ValueError(f"a regular expression in RE2's syntax ({error})") from None

    def search(self, text: str) -> bool:
        """Return whether it matches anywhere in `text`."""
        return self._compiled.search(text) is not None

    def fullmatch(self, text: str) -> bool:
        """Return whether it matches the whole of `text`."""
        return self._compiled.fullmatch(text) is not None

    def __repr__(self) -> str:
        return f"Regex({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Regex) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


class Glob:
    """A pattern for names made of parts between slashes, such as repositories, tags, media types.

    `*` stands for any characters but a slash, `?` for one of them, `**` for any characters at all; `**/` also for
    nothing, so `**/alpine` is `alpine` and `library/alpine`. All else is itself. It matches whole names.
    """

    setting_schema: ClassVar[dict[str, object]] = {"type": "string", "minLength": 1}

    def __init__(self, text: str) -> None:
        """Understand `text`.

        Raises:
            ValueError: it is empty, too long, or has what other dialects would read as something else.
        """
        if not text or len(text) > _LONGEST:
            raise ValueError(f"1 to {_LONGEST} characters")
        if wrong := sorted(set(text) & set("[]{}!\\")):
            raise ValueError(f"no {wrong[0]!r}: only *, ** and ? are special")
        self.text: str = text
        # One push asks the same of the same few names many times over, and a call of RE2 costs as much as a stat.
        self._answers: dict[str, bool] = {}

    @classmethod
    def from_setting(cls, value: object) -> Self:
        """Return the pattern that a configuration holds.

        Raises:
            ValueError: it is none; says what is allowed.
        """
        if not isinstance(value, str):
            raise ValueError("a pattern such as library/* or prod/**")  # noqa: TRY004 - same
        try:
            return cls(str(value))
        except ValueError as error:
            raise ValueError(f"a pattern such as library/* or prod/** ({error})") from None

    @cached_property
    def _compiled(self) -> _Compiled | None:
        """The pattern, compiled; None if nothing in it is special."""
        if "*" not in self.text and "?" not in self.text:
            return None
        pattern, rest = "(?s)", self.text
        while rest:
            for special, meaning in (("**/", "(?:.*/)?"), ("**", ".*"), ("*", "[^/]*"), ("?", "[^/]")):
                if rest.startswith(special):
                    pattern, rest = pattern + meaning, rest[len(special) :]
                    break
            else:
                pattern, rest = pattern + _re2().escape(rest[0]), rest[1:]
        return _compile(pattern)

    def matches(self, name: str) -> bool:
        """Return whether `name` as a whole is what the pattern describes."""
        compiled = self._compiled
        if compiled is None:
            return name == self.text
        answer = self._answers.get(name)
        if answer is None:
            answer = compiled.fullmatch(name) is not None
            if len(name) <= _REMEMBERED_LENGTH:
                if len(self._answers) >= _REMEMBERED:
                    self._answers.clear()
                self._answers[name] = answer
        return answer

    def __repr__(self) -> str:
        return f"Glob({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Glob) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

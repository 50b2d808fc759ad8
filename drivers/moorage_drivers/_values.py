"""Values of options as operators of distribution write them: numbers and switches also as text, times with a unit."""

import re
from typing import ClassVar, Self

ROOT_LIMIT = 124
"""How many characters may come before a key in the name of an object: services take names of 1,024, a key has up to 900."""

_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TRUE = frozenset({"true", "1", "t"})
_FALSE = frozenset({"false", "0", "f"})


class Flag(int):
    """A switch, on or off; as text too."""

    setting_schema: ClassVar[dict[str, object]] = {"type": ["boolean", "string"]}

    @classmethod
    def from_setting(cls, value: object) -> Self:
        """Return the switch that a configuration holds.

        Raises:
            ValueError: it is none; says what is allowed.
        """
        if isinstance(value, bool):
            return cls(value)
        if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
            return cls(value.lower() in _TRUE)
        raise ValueError("true or false")


class Whole(int):
    """A whole number that is not negative; as text too."""

    setting_schema: ClassVar[dict[str, object]] = {"type": ["integer", "string"], "minimum": 0}

    @classmethod
    def from_setting(cls, value: object) -> Self:
        """Return the number that a configuration holds.

        Raises:
            ValueError: it is none; says what is allowed.
        """
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 18:
            return cls(int(value))
        raise ValueError("a whole number")


class Seconds(float):
    """A time, written as `20m`, `1h30m` or `500ms`, or as a number of seconds."""

    setting_schema: ClassVar[dict[str, object]] = {"type": ["number", "string"], "minimum": 0}

    @classmethod
    def from_setting(cls, value: object) -> Self:
        """Return the time that a configuration holds.

        Raises:
            ValueError: it is none; says what is allowed.
        """
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return cls(value)
        parts = _TIME.findall(value) if isinstance(value, str) else []
        if parts and "".join(number + unit for number, unit in parts) == value:
            return cls(sum(float(number) * _SECONDS[unit] for number, unit in parts))
        raise ValueError("a time such as 20m, 90s or 500ms")

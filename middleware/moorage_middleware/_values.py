"""Values that options of several middlewares hold."""

import re
from typing import ClassVar, Self

_TIME = re.compile(r"(\d{1,12}(?:\.\d{0,9})?)(ms|s|m|h|d)", re.ASCII)
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Seconds(float):
    """A time, written as `30d`, `1h30m` or `90s`, or as a number of seconds."""

    setting_schema: ClassVar[dict[str, object]] = {"type": ["number", "string"], "minimum": 0}

    @classmethod
    def from_setting(cls, value: object) -> Self:
        """Return the time that a configuration holds.

        Raises:
            ValueError: it is none; says what is allowed.
        """
        text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
        if _NUMBER.fullmatch(text):
            return cls(text)
        parts = _TIME.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            return cls(sum(float(number) * _SECONDS[unit] for number, unit in parts))
        raise ValueError("a time such as 30d, 1h30m or 90s")

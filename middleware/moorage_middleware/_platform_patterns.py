"""Platforms as operators write them, and which platforms of manifests they mean.

People and tools write one platform in several ways: `arm64` and `arm64/v8`, `x86_64` and `amd64`. Both sides of a
comparison are brought to one form first, as containerd does it (`platforms.Normalize`), with one difference: where an
architecture has a variant that is meant when none is written (v8 of arm64, v7 of arm, v1 of amd64), it is put in rather
than left out, so that `linux/arm64/v*` also means a plain `linux/arm64`.
"""

import re
from collections.abc import Mapping
from typing import ClassVar, Self, cast

from moorage import Glob, Platform

_FORM = "os/architecture or os/architecture/variant, such as linux/arm64/v8 or linux/*"
_MAPPING = "os, architecture and perhaps variant and os.version"
_KEYS = ("os", "architecture", "variant", "os.version")
_PART = re.compile(r"[A-Za-z0-9_.*?-]{1,64}", re.ASCII)

_LONGEST = 128

_OPERATING_SYSTEMS = {"macos": "darwin"}
_ARCHITECTURES = {
    "aarch64": "arm64",
    "armel": "arm",
    "armhf": "arm",
    "i386": "386",
    "x86-64": "amd64",
    "x86_64": "amd64",
}
_IMPLIED = {"armel": "v6", "armhf": "v7"}
"""Names of an architecture that mean one variant of it, whatever variant is written beside them."""
_VARIANTS = {
    ("amd64", ""): "v1",
    ("arm", ""): "v7",
    ("arm", "5"): "v5",
    ("arm", "6"): "v6",
    ("arm", "7"): "v7",
    ("arm", "8"): "v8",
    ("arm64", ""): "v8",
    ("arm64", "8"): "v8",
    ("arm64", "8.0"): "v8",
    ("arm64", "v8.0"): "v8",
    ("arm64", "9"): "v9",
    ("arm64", "9.0"): "v9",
    ("arm64", "v9.0"): "v9",
}


def names_no_machine(platform: Platform | None) -> bool:
    """Return whether a platform says nothing: none, an empty one, or the `unknown/unknown` that attestations have."""
    return platform is None or {platform.os, platform.architecture} <= {"", "unknown"}


def in_one_line(platform: Platform) -> str:
    """Return a platform as docker writes it; one that is too long to be one is cut off."""
    return "/".join(part for part in (platform.os, platform.architecture, platform.variant) if part)[:_LONGEST]


class PlatformPattern:
    """Which platforms an operator means: parts with `*` and `?`; a part that is not given may be anything."""

    setting_schema: ClassVar[dict[str, object]] = {
        "anyOf": [
            {"type": "string", "minLength": 3},
            {
                "type": "object",
                "properties": {name: {"type": "string", "minLength": 1} for name in _KEYS},
                "required": ["os", "architecture"],
                "additionalProperties": False,
            },
        ]
    }

    __slots__ = ("_architecture", "_os", "_os_version", "_variant", "text")

    def __init__(self, os: str, architecture: str, variant: str | None = None, os_version: str | None = None) -> None:
        """Mean platforms with these parts.

        Raises:
            ValueError: one of them is no part of a platform.
        """
        parts = [part for part in (os, architecture, variant, os_version) if part is not None]
        for part in parts:
            if not _PART.fullmatch(part):
                raise ValueError(f"{part[:64]!a} is no part of a platform")
        self.text: str = "/".join(parts if os_version is None else parts[:-1])
        if os_version is not None:
            self.text += f" ({os_version})"
        os, architecture = os.lower(), architecture.lower()
        variant = _IMPLIED.get(architecture, variant)
        architecture = _ARCHITECTURES.get(architecture, architecture)
        self._os = Glob(_OPERATING_SYSTEMS.get(os, os))
        self._architecture = Glob(architecture)
        self._variant = None if variant is None else Glob(_variant(architecture, variant))
        self._os_version = None if os_version is None else Glob(os_version)

    @classmethod
    def from_setting(cls, value: object) -> Self:
        """Return the pattern that a configuration holds: text, or a mapping as in distribution's `platformlist`.

        Raises:
            ValueError: it is none; says what is allowed.
        """
        if isinstance(value, Mapping):
            return cls._from_mapping(cast("Mapping[str, object]", value))  # YAML's keys are text
        if not isinstance(value, str):
            raise ValueError(f"{_FORM}, or a mapping with {_MAPPING}")  # noqa: TRY004 - what is allowed is told by a ValueError
        parts = str(value).split("/")
        if not 2 <= len(parts) <= 3:
            raise ValueError(_FORM)
        try:
            return cls(*parts)
        except ValueError as error:
            raise ValueError(f"{_FORM} ({error})") from None

    @classmethod
    def _from_mapping(cls, value: Mapping[str, object]) -> Self:
        given: dict[str, str] = {}
        for name, part in value.items():
            if name not in _KEYS:
                raise ValueError(f"a mapping with {_MAPPING} ({name[:64]!a} is none of these)")
            if part is None:
                continue
            if not isinstance(part, str):
                raise ValueError(f"a mapping with {_MAPPING} ({name} is no text; put it in quotes)")  # noqa: TRY004 - same
            given[name] = str(part)
        for name in ("os", "architecture"):
            if name not in given:
                raise ValueError(f"a mapping with {_MAPPING} ({name} is missing)")
        try:
            return cls(given["os"], given["architecture"], given.get("variant"), given.get("os.version"))
        except ValueError as error:
            raise ValueError(f"a mapping with {_MAPPING} ({error})") from None

    def matches(self, platform: Platform | None) -> bool:
        """Return whether `platform` is meant; one that lacks its system or its architecture never is."""
        if platform is None or not platform.os or not platform.architecture:
            return False
        os, architecture = platform.os.lower(), platform.architecture.lower()
        if not self._os.matches(_OPERATING_SYSTEMS.get(os, os)):
            return False
        variant = _IMPLIED.get(architecture, platform.variant or "")
        architecture = _ARCHITECTURES.get(architecture, architecture)
        return (
            self._architecture.matches(architecture)
            and (self._variant is None or self._variant.matches(_variant(architecture, variant)))
            and (self._os_version is None or self._os_version.matches(platform.os_version or ""))
        )

    def __repr__(self) -> str:
        return f"PlatformPattern({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlatformPattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def _variant(architecture: str, variant: str) -> str:
    variant = variant.lower()
    return _VARIANTS.get((architecture, variant), variant)

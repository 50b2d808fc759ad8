"""Making the project of a new plugin: what `moorage plugins new` writes.

The templates lie beside this module, one folder for each kind and one for what is common to all. In their text `$name`
and the like are replaced; in their paths `package` becomes the package's name, and what begins with a dot has none, so
that no tool takes a template for what it makes.
"""

import keyword
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Literal

import msgspec

from moorage import HOOK_API

Kind = Literal["driver", "middleware", "authenticator", "validator"]

_DESCRIPTIONS: dict[Kind, str] = {
    "driver": "A storage driver for Moorage",
    "middleware": "A middleware for Moorage: repositories that stay as they are",
    "authenticator": "Authentication for Moorage by tokens",
    "validator": "A rule for Moorage: manifests say what the house wants to know",
}
_CONFIGURATIONS: dict[Kind, str] = {
    "driver": "version: 0.1\nstorage:\n  $name:\n    most_bytes: 1000000000",
    "middleware": (
        "version: 0.1\nstorage: {filesystem: {rootdirectory: ./data}}\nplugins:\n  $name:\n    frozen: [release/**]"
    ),
    "authenticator": (
        "version: 0.1\nstorage: {filesystem: {rootdirectory: ./data}}\nauth:\n  $name:\n    callers:\n"
        "      ann: ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad    # the token is abc"
    ),
    "validator": (
        "version: 0.1\nstorage: {filesystem: {rootdirectory: ./data}}\nplugins:\n  $name:\n"
        "    annotations: [org.opencontainers.image.source]\n    repositories: [team/**]\n    mode: enforce"
    ),
}
_SUFFIX = ".template"
_DOTTED = {"gitignore": ".gitignore", "github": ".github"}
_PROJECT = re.compile(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_PREFIX = "moorage_"
_PACKAGES = {"moorage", "moorage_app", "moorage_conformance", "moorage_drivers", "moorage_middleware"}
_LONGEST = 64
_SETTINGS = frozenset({"block", "cache", "delete", "maintenance", "none", "paths", "redirect", "require", "tag"})
"""What means something else where a plugin's name would stand in a configuration."""


class TemplateError(Exception):
    """The project cannot be made; one sentence."""


class Names(msgspec.Struct, frozen=True):
    """How a plugin is called: as a project, as a package, and in a configuration."""

    project: str
    package: str
    name: str


def plugin_names(project: str) -> Names:
    """Derive all names of a plugin from that of its project.

    Raises:
        TemplateError: there is no good name in it.
    """
    if len(project) > _LONGEST or not _PROJECT.fullmatch(project):
        raise TemplateError(
            f"{project!r} is no name for a project; allowed are a letter, then up to {_LONGEST - 1} letters, digits, "
            "'-', '_' and '.', the last a letter or digit"
        )
    package = re.sub(r"[-_.]+", "_", project).lower()
    name = package.removeprefix(_PREFIX)
    if keyword.iskeyword(package) or package in sys.stdlib_module_names | _PACKAGES:
        raise TemplateError(f"{project!r} would be imported as {package}, which is something else already")
    if not name[:1].isalpha() or name in _SETTINGS:
        raise TemplateError(f"{project!r} would be configured as {name!r}, which cannot be")
    return Names(project, package, name)


def new_plugin(names: Names, kind: Kind, directory: Path) -> Path:
    """Write the project of a new plugin into a folder of its name below `directory`, and return that folder.

    Raises:
        TemplateError: the folder exists, or cannot be written.
    """
    values = {
        "project": names.project,
        "package": names.package,
        "name": names.name,
        "description": _DESCRIPTIONS[kind],
        "configuration": Template(_CONFIGURATIONS[kind]).substitute(name=names.name),
        "moorage": version("moorage"),
        "hook_api": str(HOOK_API[0]),
    }
    folder = directory / names.project
    try:
        folder.mkdir()
    except FileExistsError:
        raise TemplateError(f"{folder} exists already; nothing was written") from None
    except OSError as error:
        raise TemplateError(f"{folder} cannot be made: {error.strerror}") from None
    templates = files("moorage_app") / "templates"
    try:
        for part in ("common", kind):
            for way, template in _walk(templates / part):
                path = folder.joinpath(*(_named(each, names) for each in way))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(Template(template.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
    except BaseException as error:
        # What is half made would keep the next attempt from being made.
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise TemplateError(f"{folder} cannot be written: {error.strerror}") from None
        raise
    return folder


def _walk(folder: Traversable, way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Traversable]]:
    for each in sorted(folder.iterdir(), key=lambda each: each.name):
        if each.is_dir():
            yield from _walk(each, (*way, each.name))
        elif each.name.endswith(_SUFFIX):
            yield (*way, each.name.removesuffix(_SUFFIX)), each


def _named(part: str, names: Names) -> str:
    if part == "package":
        return names.package
    return _DOTTED.get(part, part.replace("test_package", f"test_{names.package}"))

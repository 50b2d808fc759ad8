"""Finding the plugin that a person means: an installed one by its name, a module, or a file."""

import importlib.util
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import msgspec

__all__ = ["FoundPlugin", "NoSuchPlugin", "find_plugin"]

_GROUP = "moorage.plugins"


class NoSuchPlugin(Exception):
    """Nothing is there under that name; one sentence."""


class FoundPlugin(msgspec.Struct, frozen=True):
    """A plugin that was imported, the name under which it is taken into use, and whether it is installed."""

    name: str
    plugin: object
    installed: bool = False


def find_plugin(target: str) -> FoundPlugin:
    """Import the plugin `target`: a file that ends in `.py`, an installed plugin's name, or a module (`module:object`).

    What its code raises is raised.

    Raises:
        NoSuchPlugin: there is none.
    """
    if target.endswith(".py"):
        return FoundPlugin(Path(target).stem, _file(Path(target)))
    for point in entry_points(group=_GROUP):
        if target in {point.name, point.value}:
            return FoundPlugin(point.name, point.load(), installed=True)
    point = EntryPoint(target.partition(":")[0].rpartition(".")[2], target, _GROUP)
    try:
        spec = importlib.util.find_spec(point.module)
    # A name that is none: empty, with a space, or with nothing before a dot.
    except (ImportError, AttributeError, ValueError):
        spec = None
    if spec is None:
        raise NoSuchPlugin(f"There is no installed plugin, module or file {target!r}.")
    return FoundPlugin(point.name, point.load())


def _file(path: Path) -> object:
    if not path.is_file():
        raise NoSuchPlugin(f"There is no file {path}.")
    name = f"moorage_checked_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise NoSuchPlugin(f"{path} cannot be read as a module.")
    module = importlib.util.module_from_spec(spec)
    # Where classes are looked up by the name of their module, they are found.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

"""Cases about being imported and registering: what happens at the start, before anything is opened."""

import json
import os
import re
import sys
from pathlib import Path

import msgspec
import trio

from moorage import ConfigurationError, configuration_schema, decode_options
from moorage_conformance.driver.expect import Unmet, equal, true

from .case import Group
from .subject import Loaded, Offer

case = Group[Loaded]("registration", "Registration")
offered = Group[Loaded]("offers", "Names and options")

_CHILD = "moorage_conformance.plugin_kit.child"
_CHILD_SECONDS = 60.0
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_SECTION = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)*")
_TAKEN = {
    "register_drivers": ("cache", "delete", "maintenance", "redirect", "tag"),
    "register_middleware": ("block", "paths", "require"),
    "register_rules": ("block", "paths", "require"),
    "register_authenticators": ("none",),
}
"""Keys that mean something else where the name would stand in a configuration."""


def _first_environment() -> dict[str, str]:
    """Return the environment with which this process began, which no plugin has changed that was imported since."""
    try:
        pairs = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return dict(os.environ)
    found = (os.fsdecode(pair).partition("=") for pair in pairs if pair)
    return {name: value for name, _, value in found}


class _Told(msgspec.Struct, frozen=True):
    failed: str
    said: str
    threads: tuple[str, ...]
    changed: tuple[str, ...]


@case
async def it_is_taken_into_use(plugin: Loaded) -> None:
    """The registry takes it: it has hooks, each is one that exists, with arguments that it has, and gives what it should."""
    true(plugin.record.error is None, f"it is not in use: {plugin.record.error}")
    true(plugin.record.hooks, "it has no hooks")


@case
async def it_is_imported_quietly(plugin: Loaded) -> None:
    """Imported, and asked what it offers, it prints nothing, starts no thread, and changes nothing of the process."""
    environment = {**_first_environment(), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", _CHILD, plugin.subject.target]
    try:
        with trio.fail_after(_CHILD_SECONDS):
            done = await trio.run_process(
                command, capture_stdout=True, capture_stderr=True, check=False, env=environment, stdin=b""
            )
    except trio.TooSlowError:
        raise Unmet(f"it was not imported within {_CHILD_SECONDS:g} s") from None
    true(done.returncode == 0 and done.stdout, f"a process that imports it ends with code {done.returncode}")
    told = msgspec.json.decode(done.stdout, type=_Told)
    true(not told.failed, f"in a process of its own it cannot be imported: {told.failed}")
    true(not told.said.strip(), f"it says {told.said.strip()[:200]!r}")
    true(not told.threads, f"it starts the thread {' and '.join(told.threads)}")
    true(not told.changed, f"it changes {' and '.join(told.changed)}")


@case
async def it_registers_the_same_each_time(plugin: Loaded) -> None:
    """Asked again what it offers, as each process asks, it gives the same names with the same types of options."""
    first = {(offer.hook, offer.name): offer.options for offer in plugin.offers()}
    second = {(offer.hook, offer.name): offer.options for offer in plugin.asked_again().offers()}
    equal(sorted(second), sorted(first), "what it registers when asked again")
    for (hook, name), options in first.items():
        true(second[hook, name] is options, f"{name} in {hook} has another type of options when asked again")


@offered
async def its_names_can_be_written(plugin: Loaded) -> None:
    """What it registers has names of lower-case letters, digits, `_` and `-`, which mean nothing else in a configuration."""
    for offer in plugin.offers():
        true(_NAME.fullmatch(offer.name), f"{offer.name!r} in {offer.hook}")
        true(offer.name not in _TAKEN.get(offer.hook, ()), f"{offer.section} is a setting of the registry itself")
        true(_SECTION.fullmatch(offer.section), f"the section {offer.section!r} of {offer.name}")


@offered
async def its_names_are_its_own(plugin: Loaded) -> None:
    """No plugin that is installed registers the same names, or reads the same section."""
    mine = {(offer.hook, offer.name) for offer in plugin.offers()}
    own = {name for _, name in mine}
    sections = {offer.section: offer.name for offer in plugin.offers()}
    manager = plugin.beside_others()
    for record in manager.records:
        if record.name == plugin.name:
            continue
        true(plugin.installed or not record.name.startswith(f"{plugin.name} ("), f"a plugin {plugin.name} is installed")
        for hook, names in record.registers.items():
            both = [name for name in names if (hook, name) in mine]
            true(not both, f"{record.name} registers {' and '.join(both)} too")
    sections_of_others = [(name, each.section) for name, each in manager.middleware().items()]
    sections_of_others += [(name, each.section) for name, each in manager.rules().items()]
    for name, section in sections_of_others:
        true(
            name in own or section not in sections,
            f"{name} reads the section {section}, which {sections.get(section or '')} reads",
        )


@offered
async def its_options_are_understood(plugin: Loaded) -> str | None:
    """The options that it is given are taken."""
    lacking: list[str] = []
    for offer in plugin.offers():
        try:
            offer.decoded()
        except ConfigurationError as error:
            true(offer.written is None, str(error))
            alone = ", and so `rules` alone cannot configure it" if offer.hook == "register_rules" else ""
            lacking.append(f"{error}{alone} ({offer.advice})")
        except TypeError as error:
            raise Unmet(f"{offer.name}: {error}") from error
    return "; ".join(lacking) or None


@offered
async def an_unknown_key_is_refused(plugin: Loaded) -> None:
    """An option that it does not have is refused with one sentence."""
    for offer in plugin.offers():
        for value in (1, {"a": 1}):
            refused = _refuses(offer, "no_such_option", value)
            true(refused, f"{offer.name} takes an option that it does not have")


_WRONG: tuple[object, ...] = ([[{"a": None}]], {"a": [None]}, "\x00 no such value", -1.5, -1, True)


@offered
async def a_wrong_type_is_refused(plugin: Loaded) -> str | None:
    """Of each option, a value of the wrong type is refused with one sentence."""
    free: list[str] = []
    for offer in plugin.offers():
        for field in offer.options.__struct_encode_fields__:
            refused = [_refuses(offer, field, wrong) for wrong in _WRONG]
            if not any(refused):
                free.append(f"{offer.name}.{field}")
    return f"takes a value of any type: {', '.join(free)}" if free else None


@offered
async def its_options_have_a_schema(plugin: Loaded) -> None:
    """Its options are described by JSON Schema, for editors, as `moorage config schema` prints it."""
    for offer in plugin.offers():
        try:
            described = json.dumps(configuration_schema({offer.section: offer.options}))
        except Exception as error:
            raise Unmet(f"{offer.name} has options that cannot be described: {error}") from error
        for field in offer.options.__struct_encode_fields__:
            true(json.dumps(field) in described, f"{offer.name}.{field} is not in the schema")


@offered
async def its_options_are_frozen(plugin: Loaded) -> None:
    """Options cannot be changed once they are read."""
    for offer in plugin.offers():
        true(offer.declared.__struct_config__.frozen, f"the options of {offer.name} are not frozen")


def _refuses(offer: Offer, key: str, value: object) -> bool:
    """Return whether `value` is refused at `key`, with one sentence that names it.

    Raises:
        Unmet: options are refused in another way.
    """
    try:
        decode_options(offer.options, {**(offer.written or {}), key: value}, source=offer.section)
    except ConfigurationError as error:
        sentence = str(error)
        true(sentence.strip() and "\n" not in sentence, f"{offer.name} refuses options with {sentence!r}")
        return f" {key}" in sentence
    except Exception as error:
        raise Unmet(f"{offer.name} refuses options with {type(error).__name__}: {error}") from error
    return False

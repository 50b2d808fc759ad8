"""`moorage access check`: which rule of a configuration decides, and why those before it do not."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import click
import msgspec
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moorage import (
    CONFIGURATION_PATH,
    Access,
    Action,
    Caller,
    Configuration,
    ConfigurationError,
    PluginError,
    PluginManager,
    RegistryError,
    RepositoryName,
    Tag,
    check_options,
    claimed_sections,
    load_configuration,
    select_plugins,
)

from .access import AccessOptions, Decision, Rules

ALLOWED = 0
DENIED = 1

_NEEDED: Mapping[str, tuple[Action, ...]] = {
    "pull": ("pull",),
    "push": ("pull", "push"),
    "delete": ("delete",),
    "catalog": ("catalog",),
}
"""The rights that the operations of an action need; the last one is the action itself."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A right, what the rules say of it, and each that was looked at: its place, what is written there, its outcome."""

    action: Action
    tag: Tag | None
    decision: Decision
    steps: list[tuple[str, str, str]]


class _Wrong(click.ClickException):
    """One sentence and exit code 2."""

    exit_code = 2


@click.group()
def access() -> None:
    """Look at the access rules of a configuration."""


@access.command()
@click.argument("words", nargs=-1, metavar="[USER] ACTION [REPOSITORY]")
@click.option("--group", "groups", multiple=True, metavar="GROUP", help="The caller is in GROUP (may be repeated).")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Push TAG (may be repeated).")
@click.option("--anonymous", is_flag=True, help="Who asks has no name; USER is left out.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="Whose rules.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def check(
    words: tuple[str, ...],
    groups: tuple[str, ...],
    tags: tuple[str, ...],
    file: Path | None,
    *,
    anonymous: bool,
    as_json: bool,
) -> None:
    """Say whether USER may do ACTION in REPOSITORY, and which rule says so.

    ACTION is pull, push, delete, or catalog, which needs no REPOSITORY. What a token is good for is another question.

    Exit code 0 when it is allowed, 1 when it is denied, 2 when that cannot be said.
    """
    user, action, repository = _parsed(words, anonymous=anonymous)
    if tags and action != "push":
        raise click.UsageError("--tag is for push.")
    try:
        wanted = tuple(Tag(tag) for tag in tags)
        configuration = _configuration(file)
        rules = Rules(configuration.decode("access", AccessOptions))
    except (ConfigurationError, PluginError, RegistryError) as error:
        raise _Wrong(str(error)) from None
    caller, written = Caller(name=user, groups=frozenset(groups)), _written(configuration)
    found: list[Asked] = []
    for right in _NEEDED[action]:
        for tag in wanted if right == "push" and wanted else (None,):
            decision, passed = rules.explain(caller, Access(repository, right), tag)
            found.append(Asked(action=right, tag=tag, decision=decision, steps=_steps(decision, passed, written)))
    allowed = all(each.decision.allowed for each in found)
    if as_json:
        click.echo(json.dumps(_as_plain(found, allowed=allowed), indent=2))
    else:
        _show(found, allowed=allowed)
    raise SystemExit(ALLOWED if allowed else DENIED)


def _parsed(words: Sequence[str], *, anonymous: bool) -> tuple[str, str, RepositoryName | None]:
    """Return user, action and repository.

    Raises:
        UsageError: they are not what the command takes.
    """
    match ["", *words] if anonymous else list(words):
        case [user, "catalog"] if user or anonymous:
            return user, "catalog", None
        case [user, "pull" | "push" | "delete" as action, name] if user or anonymous:
            try:
                return user, action, RepositoryName(name)
            except RegistryError as error:
                raise click.UsageError(error.message) from None
        case _:
            who = "ACTION" if anonymous else "USER, ACTION"
            raise click.UsageError(
                f"Say {who} and REPOSITORY, where ACTION is pull, push or delete; or catalog, and no REPOSITORY."
            )


def _configuration(file: Path | None) -> Configuration:
    """Load the configuration that is meant, with all that would keep a registry from starting with it.

    Raises:
        ConfigurationError: it cannot be used, or has no access rules.
        PluginError: plugins contradict each other.
    """
    # What the tables do not say is told by an error; what failed to load and does not matter here, by nobody.
    logging.getLogger("moorage.plugins").setLevel(logging.CRITICAL)
    named = os.environ.get(CONFIGURATION_PATH)
    path = file or (Path(named) if named else None)
    plugins = PluginManager()
    plugins.load(select_plugins(path, os.environ))
    configuration = load_configuration(path, os.environ, claimed=claimed_sections(plugins)).configuration
    check_options(configuration, plugins)
    if configuration.section("access") is None:
        raise ConfigurationError(
            f"{path or 'the built-in configuration'}: has no section access, so there are no rules"
        )
    return configuration


def _written(configuration: Configuration) -> list[str]:
    """Return each rule as it is written, on one line."""
    section = cast("Mapping[str, object]", configuration.section("access"))  # as it was decoded
    rules = cast("list[object] | None", section.get("rules")) or []  # same
    return [
        yaml.safe_dump(rule, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 20).strip()
        for rule in rules
    ]


def _steps(decision: Decision, passed: Sequence[str], written: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return what was looked at in turn; with no rule left it is the default."""
    outcomes = [*passed, "allows" if decision.allowed else "denies"]
    places = [*((f"rules[{at}]", text) for at, text in enumerate(written)), ("default", "")]
    return [(place, text, outcome) for (place, text), outcome in zip(places, outcomes, strict=False)]


def _as_plain(found: Sequence[Asked], *, allowed: bool) -> dict[str, object]:
    return {
        "allowed": allowed,
        "decisions": [
            {
                "action": each.action,
                **({} if each.tag is None else {"tag": each.tag}),
                "allowed": each.decision.allowed,
                "rule": each.decision.rule,
                "steps": [dict(zip(("place", "written", "outcome"), step, strict=True)) for step in each.steps],
            }
            for each in found
        ],
    }


def _show(found: Sequence[Asked], *, allowed: bool) -> None:
    console = Console()
    for each in found:
        # A tag is of letters, digits, dots and dashes, so nothing in the title is markup.
        title = each.action if each.tag is None else f"{each.action} of the tag {each.tag}"
        table = Table(title, "outcome", "rule", box=None, pad_edge=False)
        for place, text, outcome in each.steps:
            style = {"allows": "green", "denies": "red"}.get(outcome, "dim")
            table.add_row(Text(place), Text(outcome, style), Text(text, "dim" if style == "dim" else ""))
        console.print(table)
        console.print()
    deciding = next((each for each in found if not each.decision.allowed), found[-1])
    right = deciding.action if deciding.tag is None else f"{deciding.action} of the tag {deciding.tag}"
    console.print(Text(f"{right}: {'allowed' if allowed else 'denied'} by {deciding.decision.rule}"))

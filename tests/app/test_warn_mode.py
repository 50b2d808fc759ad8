"""Rules in mode `warn`, as a client over HTTP and the operator see them: 201, a `Warning` header, a line, a count."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from asgi_client import EMPTY, client_of, descriptor, image
from moorage import Digest, PluginManager, Plugins, claimed_sections, load_configuration, open_registry
from moorage_app import hooks
from pushing import Repository
from servers import configured, http

RULE = """
from contextlib import asynccontextmanager

import msgspec

from moorage import Refused, Rule, hookimpl


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sentence: str = "no"
    missing: bool = False
    repeat: int = 1


class Grumble:
    def __init__(self, options):
        self._options = options

    @hookimpl
    async def requires_reference(self):
        return True if self._options.missing else None

    @hookimpl
    async def validate_manifest(self):
        if self._options.repeat > 1:
            return [f"{n}{self._options.sentence}" for n in range(self._options.repeat)]
        if not self._options.missing:
            raise Refused(self._options.sentence)


@asynccontextmanager
async def open_rule(options):
    yield Grumble(options)


@hookimpl
def register_rules():
    return {"grumble": Rule(Options, open_rule)}
"""
ABSENT = Digest.of(b"absent")
QUOTED = re.compile(r'299 - "([\t !#-\[\]-~]|\\[\t -~])*"')


def write_rule(folder: Path) -> Path:
    folder.mkdir(mode=0o755)
    (folder / "grumble.py").write_text(RULE, encoding="utf-8")
    (folder / "grumble.py").chmod(0o644)
    return folder


@pytest.fixture
def plugins(tmp_path: Path) -> PluginManager:
    manager = PluginManager(hooks)
    manager.load(Plugins(paths=(str(write_rule(tmp_path / "rules")),)))
    return manager


async def pushed(plugins: PluginManager, options: Mapping[str, object], *layers: Digest) -> list[str]:
    """Push an image where the rule is configured; return the warnings."""
    overrides: dict[str, object] = {"storage": {"inmemory": None}, "plugins": {"grumble": {"mode": "warn", **options}}}
    loaded = load_configuration(None, {}, overrides=overrides, claimed=claimed_sections(plugins))
    async with open_registry(loaded.configuration, plugins) as opened:
        client = client_of(opened.handler)
        config = await client.push_blob("a", EMPTY)
        missing = [descriptor(layer, 1) for layer in layers]
        answer = await client.push_manifest("a", "v1", image(config, layers=missing))
        assert (answer.status, answer.body) == (201, b"")
        assert (await client.ask("GET", "/v2/a/manifests/v1")).status == 200
    return answer.all("Warning")


ODD = {
    "plain": ("use a label", '299 - "grumble: use a label"'),
    "quotes": ('say "please"', '299 - "grumble: say \\"please\\""'),
    "a header": ("one\r\nSet-Cookie: two", '299 - "grumble: one Set-Cookie: two"'),
    "not Latin-1": ("\u0436\U0001f433", '299 - "grumble: \\\\u0436\\\\U0001f433"'),
    "Latin-1": ("caf\xe9", '299 - "grumble: caf\\\\xe9"'),
    "control characters": ("a\0b\x1b[31mc", '299 - "grumble: a?b?[31mc"'),
    "empty": ("", '299 - "grumble:"'),
}


@pytest.mark.parametrize("case", ODD)
async def test_what_a_rule_would_refuse_is_a_warning(plugins: PluginManager, case: str) -> None:
    sentence, header = ODD[case]
    assert await pushed(plugins, {"sentence": sentence}) == [header]
    assert plugins.judging.counts == {("grumble", "warned"): 1}


async def test_a_missing_reference_that_a_rule_would_require_is_a_warning(
    plugins: PluginManager, caplog: pytest.LogCaptureFixture
) -> None:
    (warning,) = await pushed(plugins, {"missing": True}, ABSENT)
    assert str(ABSENT) in warning
    assert plugins.judging.counts == {("grumble", "warned"): 1}
    (line,) = [record for record in caplog.records if record.name == "moorage.rules"]
    assert (line.levelno, str(ABSENT) in line.getMessage()) == (logging.WARNING, True)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"sentence": "x" * 10_000}, 1000),
        ({"sentence": "\U0001f433" * 3000, "repeat": 3}, 3000),
        ({"repeat": 5000}, 3900),
        ({"sentence": "x" * 500, "repeat": 5000}, 3500),
    ],
)
async def test_warnings_have_room_in_the_headers_whatever_a_rule_says(
    plugins: PluginManager, options: Mapping[str, object], least: int
) -> None:
    values = await pushed(plugins, options)
    assert least < sum(map(len, values)) <= 4096
    assert all(QUOTED.fullmatch(value) for value in values)


async def test_many_missing_references_are_warned_of_as_far_as_there_is_room(plugins: PluginManager) -> None:
    absent = [Digest.of(str(n).encode()) for n in range(200)]
    values = await pushed(plugins, {"missing": True}, *absent)
    told = len(values) - 1
    assert 10 < told < 200
    assert values[-1] == f'299 - "further warnings, for which there is no room here: {200 - told}"'
    assert plugins.judging.counts == {("grumble", "warned"): 200}


def test_a_server_warns_its_client_and_its_log(tmp_path: Path) -> None:
    rules = write_rule(tmp_path / "rules")
    options = {
        "paths": [str(rules)],
        "grumble": {"mode": "warn", "sentence": 'no "latest"', "repositories": ["prod/**"]},
    }
    with configured(tmp_path / "root", plugins=options) as server, http(server.url) as client:
        for name, expected in (("prod/app", ['299 - "grumble: no \\"latest\\""']), ("dev/app", [])):
            repository = Repository(client, name)
            document = image(Digest(repository.push(b"{}")))
            answer = repository.put("latest", json.dumps(document).encode())
            assert answer.status_code == 201
            assert answer.headers.get_list("warning") == expected
        logged = server.logged()
    assert "rule grumble would refuse a push to prod/app:latest from 127.0.0.1 (1 so far)" in logged
    assert "dev/app" not in "".join(line for line in logged.splitlines() if "moorage.rules" in line)

"""The authenticator by itself and around a registry in memory."""

import base64
import hashlib
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from moorage import (
    Caller,
    ConfigurationError,
    Credentials,
    Handler,
    Origin,
    Ping,
    PluginManager,
    Pong,
    Unauthorized,
    Unavailable,
    claimed_sections,
    load_configuration,
    open_registry,
)
from moorage_token_file.tokens import Token, TokenFile, new_token, parse


def basic(name: str, token: str) -> Origin:
    """Return where a request with a name and a token as its password comes from."""
    value = base64.b64encode(f"{name}:{token}".encode()).decode()
    return Origin(credentials=Credentials("basic", value))


def bearer(token: str) -> Origin:
    """Return where a request with a token alone comes from."""
    return Origin(credentials=Credentials("bearer", token))


@pytest.fixture
def tokens() -> dict[str, str]:
    """What the owners know."""
    return {}


@pytest.fixture
def path(tmp_path: Path, tokens: dict[str, str]) -> Path:
    """A file with the tokens of two owners."""
    lines = ["# people", ""]
    for owner in ("ann", "build-7"):
        tokens[owner], line = new_token(owner)
        lines.append(f"{line}  # made by a test")
    file = tmp_path / "tokens"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@asynccontextmanager
async def registry_with(**options: object) -> AsyncGenerator[Handler]:
    """Open a registry in memory as a configuration with the authenticator would."""
    plugins = PluginManager()
    plugins.load_entry_points()
    settings: dict[str, dict[str, object]] = {"storage": {"inmemory": {}}, "auth": {"token_file": options}}
    loaded = load_configuration(None, {}, defaults=settings, claimed=claimed_sections(plugins))
    async with open_registry(loaded.configuration, plugins) as opened:
        yield opened.handler


async def test_the_owner_of_a_token_is_the_caller(path: Path, tokens: dict[str, str]) -> None:
    known = TokenFile(str(path), "test")
    for owner, token in tokens.items():
        assert await known(basic(owner, token)) == Caller(name=owner)
        assert await known(bearer(token)) == Caller(name=owner)


async def test_who_shows_nothing_of_its_kind_is_nobody_and_asked_for_a_token(path: Path) -> None:
    known = TokenFile(str(path), "the house")
    assert await known(Origin()) is None
    assert await known(Origin(credentials=Credentials("negotiate", "abc"))) is None
    assert known.challenge == 'Basic realm="the house", charset="UTF-8"'


async def test_a_wrong_token_is_refused_with_the_challenge(path: Path, tokens: dict[str, str]) -> None:
    known = TokenFile(str(path), "test")
    digest = hashlib.sha256(tokens["ann"].encode()).hexdigest()
    for wrong in (
        basic("ann", tokens["ann"] + "x"),
        basic("ann", tokens["build-7"]),
        basic("nobody", tokens["ann"]),
        basic("", tokens["ann"]),
        basic("ann", ""),
        basic("ann", digest),
        bearer(digest),
        bearer(""),
        bearer("\xff"),
        Origin(credentials=Credentials("basic", "not base64")),
        Origin(credentials=Credentials("basic", base64.b64encode(b"no colon").decode())),
        Origin(credentials=Credentials("basic", base64.b64encode(b"\xff:\xff").decode())),
    ):
        with pytest.raises(Unauthorized) as caught:
            await known(wrong)
        assert caught.value.challenges == (known.challenge,)


async def test_a_changed_file_holds_at_once(path: Path, tokens: dict[str, str]) -> None:
    known = TokenFile(str(path), "test")
    second, line = new_token("ann")
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}\n{line}\n", encoding="utf-8")
    assert await known(basic("ann", tokens["ann"])) == await known(basic("ann", second)) == Caller(name="ann")
    path.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(Unauthorized):
        await known(basic("ann", tokens["ann"]))
    assert await known(basic("ann", second)) == Caller(name="ann")


async def test_nobody_gets_in_while_the_file_cannot_be_read(path: Path, tokens: dict[str, str]) -> None:
    known = TokenFile(str(path), "test")
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}\nann password\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(Unavailable):
            await known(basic("ann", tokens["ann"]))
    path.unlink()
    with pytest.raises(Unavailable):
        await known(bearer(tokens["ann"]))
    path.write_text(text, encoding="utf-8")
    assert await known(basic("ann", tokens["ann"])) == Caller(name="ann")


def test_a_file_has_names_digests_and_comments() -> None:
    digest = hashlib.sha256(b"x")
    text = f"\n# nobody\n  ann\t{digest.hexdigest()} # desk\n"
    assert parse(text) == (Token("ann", digest.digest()),)
    assert parse("") == ()


@pytest.mark.parametrize("line", ["ann", "ann password", "ann " + "0" * 63, "a:b " + "0" * 64, "a b " + "0" * 64])
def test_a_line_of_another_kind_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse(f"# first\n{line}\n")


async def test_a_registry_answers_those_whom_the_file_knows(path: Path, tokens: dict[str, str]) -> None:
    async with registry_with(path=str(path), realm="here") as registry:
        with pytest.raises(Unauthorized) as caught:
            await registry(Ping())
        assert caught.value.challenges == ('Basic realm="here", charset="UTF-8"',)
        with pytest.raises(Unauthorized):
            await registry(Ping(origin=basic("ann", "guess")))
        assert await registry(Ping(origin=basic("ann", tokens["ann"]))) == Pong()


@pytest.mark.parametrize("name", ["missing", "broken", "folder"])
async def test_a_file_that_cannot_be_used_keeps_the_registry_from_starting(tmp_path: Path, name: str) -> None:
    (tmp_path / "broken").write_bytes(b"\xff\xfe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match=name):
        async with registry_with(path=str(tmp_path / name)):
            pass


@pytest.mark.parametrize("realm", ["", 'a"b', "a\\b", "a\nb", "ä"])
async def test_a_realm_that_breaks_the_header_keeps_the_registry_from_starting(path: Path, realm: str) -> None:
    with pytest.raises(ConfigurationError, match="realm"):
        async with registry_with(path=str(path), realm=realm):
            pass


def test_the_command_makes_a_token_and_its_line() -> None:
    command = [sys.executable, "-m", "moorage_token_file"]
    done = subprocess.run([*command, "ann"], capture_output=True, text=True, check=True, timeout=60)
    (token,) = parse(done.stdout)
    assert token == Token("ann", hashlib.sha256(done.stderr.strip().encode()).digest())
    for wrong in ([], ["a b"], ["a", "b"]):
        failed = subprocess.run([*command, *wrong], capture_output=True, text=True, check=False, timeout=60)
        assert (failed.returncode, failed.stdout) == (2, "")
        assert len(failed.stderr.splitlines()) == 1

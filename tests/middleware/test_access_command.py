"""`moorage access check`: says which rule decides, and why; its exit code says what."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONSOLE_SCRIPT = Path(sys.executable).with_name("moorage")
CONFIGURATION = """
version: 0.1
storage: {inmemory: }
access:
  groups: {deployers: [ann]}
  rules:
    - {users: [admin], actions: ["*"]}
    - {repositories: ["users/{user}/**"], users: ["*"], actions: [pull, push, delete]}
    - {repositories: ["secret/**"], effect: deny, groups: [interns], actions: [pull]}
    - {repositories: ["public/**"], anonymous: true, actions: [pull]}
    - {name: releases, repositories: ["release/**"], groups: [ci, deployers], actions: [push], tags: ["v*"]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(CONFIGURATION)
    return path


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command; whatever it says is no traceback."""
    done = subprocess.run(
        [CONSOLE_SCRIPT, "access", "check", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}},
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("arguments", "code", "rule"),
    [
        (["admin", "delete", "any/thing"], 0, "delete: allowed by access.rules[0]"),
        (["admin", "catalog"], 0, "catalog: allowed by access.rules[0]"),
        (["ann", "push", "users/ann/x"], 0, "push: allowed by access.rules[1]"),
        (["ann", "pull", "users/bob/x"], 1, "pull: denied by access.default"),
        (["Ann", "pull", "users/ann/x"], 1, "pull: denied by access.default"),
        (["bob", "pull", "secret/a", "--group", "interns"], 1, "pull: denied by access.rules[2]"),
        (["--anonymous", "pull", "public/a"], 0, "pull: allowed by access.rules[3]"),
        (["bob", "pull", "public/a"], 0, "pull: allowed by access.rules[3]"),
        (["--anonymous", "push", "public/a"], 1, "push: denied by access.default"),
        (["ann", "push", "release/a", "--tag", "v1"], 0, "push of the tag v1: allowed by releases"),
        (["ann", "push", "release/a"], 0, "push: allowed by releases"),
        (["bob", "push", "release/a", "--group", "ci", "--tag", "v1"], 0, "push of the tag v1: allowed by releases"),
        (["ann", "push", "release/a", "--tag", "v1", "--tag", "x"], 1, "push of the tag x: denied by access.default"),
    ],
)
def test_it_says_what_decides(arguments: list[str], code: int, rule: str, file: Path) -> None:
    done = check(*arguments, "--config", file)
    assert (done.returncode, done.stdout.rstrip().splitlines()[-1], done.stderr) == (code, rule, "")


def test_it_says_why_the_rules_before_did_not_decide(file: Path) -> None:
    done = check("bob", "pull", "public/a", "--json", "--config", file)
    assert done.returncode == 0
    (decision,) = json.loads(done.stdout)["decisions"]
    assert [step["outcome"] for step in decision["steps"]] == [
        "for other callers",
        "for other repositories",
        "for other callers",
        "allows",
    ]
    assert decision["steps"][3] == {
        "place": "rules[3]",
        "written": "{repositories: [public/**], anonymous: true, actions: [pull]}",
        "outcome": "allows",
    }
    assert (decision["action"], decision["allowed"], decision["rule"]) == ("pull", True, "access.rules[3]")


def test_a_push_needs_a_pull_too(file: Path) -> None:
    done = check("bob", "push", "release/a", "--tag", "w", "--json", "--config", file)
    said = json.loads(done.stdout)
    assert (done.returncode, said["allowed"]) == (1, False)
    assert [(each["action"], each.get("tag")) for each in said["decisions"]] == [("pull", None), ("push", "w")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Say USER, ACTION and REPOSITORY"),
        (["ann", "pull"], "Say USER, ACTION and REPOSITORY"),
        (["ann", "read", "a"], "Say USER, ACTION and REPOSITORY"),
        (["", "pull", "a"], "Say USER, ACTION and REPOSITORY"),
        (["--anonymous", "ann", "pull", "a"], "Say ACTION and REPOSITORY"),
        (["ann", "pull", "A"], "is not a repository name"),
        (["ann", "pull", "a", "--tag", "v1"], "--tag is for push."),
        (["ann", "push", "a", "--tag", "-"], "is not a tag"),
    ],
)
def test_what_makes_no_sense_is_told(arguments: list[str], said: str, file: Path) -> None:
    done = check(*arguments, "--config", file)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 0.1\nstorage: {inmemory: }\n", "has no section access, so there are no rules"),
        ("version: 0.1\nstorage: {inmemory: }\naccess: {rules: [{users: [a]}]}\n", "rules[0].actions: missing"),
        ("nonsense", "found text; allowed is a mapping"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(text)
    done = check("ann", "pull", "a", "--config", path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1

"""The plugin kit: our plugins pass it whole, and each of its cases can fail."""

import json
import unittest
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

import moorage
from moorage import Operation
from moorage_conformance.commands import conformance
from moorage_conformance.driver import CASES as DRIVER_CASES
from moorage_conformance.plugin_kit import (
    CASES,
    CannotCheck,
    Planned,
    Subject,
    assert_case,
    assert_plugin,
    check_plugin,
    plan,
    select,
)
from moorage_conformance.plugin_kit.samples import operations, reply_to
from moorage_conformance.report import Outcome, Report
from signing import key_set, new_key, public_jwk

OURS = sorted(
    point.name for point in entry_points(group="moorage.plugins") if point.dist and point.dist.name == "moorage"
)
SOUND = ["SOUND", "SOUND_RULE", "SOUND_AUTHENTICATOR", "HOST", "OBSERVER"]

BROKEN = {
    "NO_HOOKS": ["it_is_taken_into_use"],
    "PRINTS": ["it_is_imported_quietly"],
    "SPEAKS_TO_STDERR": ["it_is_imported_quietly"],
    "STARTS_A_THREAD": ["it_is_imported_quietly"],
    "SETS_A_VARIABLE": ["it_is_imported_quietly"],
    "CHANGES_ITS_NAMES": ["it_registers_the_same_each_time"],
    "ODD_NAME": ["its_names_can_be_written"],
    "NAME_OF_THE_REGISTRY": ["its_names_can_be_written"],
    "NAME_OF_ANOTHER": ["its_names_are_its_own"],
    "SECTION_OF_ANOTHER": ["its_names_are_its_own"],
    "NEEDS_OPTIONS": ["its_options_are_understood"],
    "OPEN_OPTIONS": ["an_unknown_key_is_refused"],
    "IMPOSSIBLE_OPTIONS": ["a_wrong_type_is_refused"],
    "UNDESCRIBED_OPTIONS": ["its_options_have_a_schema"],
    "FAILS_ON_OPTIONS": ["a_wrong_type_is_refused"],
    "THAWED_OPTIONS": ["its_options_are_frozen"],
    "REFUSES_THE_UNKNOWN": ["what_it_does_not_know_passes_unchanged", "every_operation_is_answered_or_refused"],
    "REPLIES_NOTHING": [
        "what_it_does_not_know_passes_unchanged",
        "every_operation_is_answered_or_refused",
        "a_blob_is_not_opened",
    ],
    "CHANGES_ERRORS": ["errors_pass"],
    "SWALLOWS_ERRORS": ["errors_pass"],
    "GATHERS_BODIES": ["a_body_is_passed_on_while_it_arrives"],
    "OPENS_BLOBS": ["a_blob_is_not_opened"],
    "ONE_AT_A_TIME": ["operations_do_not_wait_for_each_other"],
    "CATCHES_CANCELLATION": ["every_operation_can_be_cancelled_at_every_await", "errors_pass"],
    "STOPS_WORKING": ["every_operation_can_be_cancelled_at_every_await", "operations_do_not_wait_for_each_other"],
    "LEAKS": ["nothing_grows", "opening_can_be_cancelled_at_every_await"],
    "SWALLOWS_WHILE_OPENED": ["opening_can_be_cancelled_at_every_await"],
    "READS_PLATFORMS": ["every_push_is_accepted_warned_of_or_refused"],
    "ANSWERS_TEXT": ["every_push_is_accepted_warned_of_or_refused"],
    "UNDECIDED": ["the_same_push_gets_the_same_answer"],
    "WRITES": ["it_only_looks"],
    "BLOCKS": ["it_does_not_block_the_event_loop"],
    "MIXES_UP": ["it_can_be_asked_many_things_at_once"],
    "REMEMBERS_THE_CANCELLED": ["it_can_be_cancelled_at_every_await"],
    "LEAKS_THREADS": ["nothing_grows"],
    "RULE_SWALLOWS_WHILE_OPENED": ["opening_can_be_cancelled_at_every_await"],
    "OPENS_NO_RULE": ["every_push_is_accepted_warned_of_or_refused"],
    "BAD_CHALLENGE": ["its_challenge_can_be_sent", "wrong_credentials_are_refused"],
    "LETS_IN": ["who_shows_nothing_is_nobody", "wrong_credentials_are_refused"],
    "RECALLS_EVERYBODY": ["it_recalls_nobody_whom_nobody_is"],
    "FAILS_ON_ODD_VALUES": ["wrong_credentials_are_refused"],
    "NO_CHALLENGE": ["wrong_credentials_are_refused"],
    "CHALLENGES_BY_WHAT_WAS_SENT": ["its_challenge_can_be_sent"],
    "ONE_AT_ONCE": ["it_can_be_asked_many_times_at_once"],
    "LETS_THE_CANCELLED_IN": ["it_can_be_cancelled_at_every_await"],
    "LEAKS_DESCRIPTORS": ["nothing_grows"],
    "AUTHENTICATOR_SWALLOWS_WHILE_OPENED": ["opening_can_be_cancelled_at_every_await"],
    "CLOSED_STORE": ["it_is_tried"],
    "NARROW_OBSERVER": ["an_observer_takes_whatever_it_is_shown"],
    "ROUTE_OF_THE_REGISTRY": ["its_routes_answer"],
    "ROUTE_WITH_A_PATTERN": ["its_routes_answer"],
    "ROUTE_FAILS": ["its_routes_answer"],
    "ROUTE_SAYS_NOTHING": ["its_routes_answer"],
    "NO_COMMAND": ["its_commands_can_be_called"],
    "COMMAND_OF_THE_REGISTRY": ["its_commands_can_be_called"],
    "SILENT_COMMAND": ["its_commands_can_be_called"],
}

WRONG_OPTIONS: dict[str, dict[str, dict[str, object]]] = {"NEEDS_OPTIONS": {"sound": {"words": []}}}


def checked(subject: Subject, *only: str, patience: float = 10) -> Report:
    return trio.run(partial(check_plugin, subject, only=only, fast=True, patience=patience))


def ours(name: str, folder: Path) -> Subject:
    users, keys = folder / "htpasswd", folder / "jwks.json"
    users.write_text("ann:$2b$04$b2ZpQIrem6bGU73564mkROmzi5rW7gGj.bDJ0dmtjxoL4czNPacWO\n", encoding="utf-8")
    keys.write_text(key_set(public_jwk(new_key("ES256"), "one")), encoding="utf-8")
    options: dict[str, dict[str, dict[str, object]]] = {
        "drivers": {"filesystem": {"rootdirectory": f"{folder}/{{fresh}}"}},
        "issuer": {"issuer": {"keys": str(folder / "keys")}},
        # Without `silly`, which by its nature lets in who shows anything; what else is asked of it is asked below.
        "middleware": {
            "anonymous": {},
            "htpasswd": {"realm": "r", "path": str(users)},
            "mtls": {},
            "oidc": {"issuers": [{"issuer": "http://127.0.0.1:9", "audience": ["a"]}]},
            "token": {"realm": "r", "service": "s", "issuer": "i", "jwks": str(keys), "autoredirect": True},
        },
    }
    return Subject(name, options.get(name, {}))


@pytest.mark.parametrize("name", OURS)
def test_our_plugins_keep_the_contract(name: str, tmp_path: Path) -> None:
    if name == "drivers":
        # What the kit for drivers says of ours is told elsewhere.
        report = checked(ours(name, tmp_path), "registration", "offers", "it_is_tried", "what_is_written_is_read")
    else:
        report = assert_plugin(ours(name, tmp_path))
    assert report.conforms()


def test_silly_keeps_the_contract_but_for_letting_everybody_in() -> None:
    subject = Subject("middleware", {"silly": {"realm": "r", "service": "s"}})
    letting_in = {"wrong_credentials_are_refused", "it_can_be_cancelled_at_every_await"}
    wanted = [case.name for case in CASES if case.group == "authenticators" and case.name not in letting_in]
    report = checked(subject, *wanted)
    passed = {result.name for result in report.of(Outcome.PASSED) if result.group == "authenticators silly"}
    assert passed == set(wanted)
    assert {result.name for result in checked(subject, *letting_in).of(Outcome.FAILED)} == letting_in


@pytest.mark.parametrize("name", SOUND)
def test_a_plugin_that_keeps_the_contract_passes(name: str) -> None:
    assert_plugin(Subject(f"broken_plugins:{name}"))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What one of them sets is gone after the test, and so not in the environment of what others start.
    monkeypatch.setenv("MOORAGE_BROKEN_PLUGIN", "")
    monkeypatch.delenv("MOORAGE_BROKEN_PLUGIN")
    subject = Subject(f"broken_plugins:{name}", WRONG_OPTIONS.get(name, {}))
    report = checked(subject, *BROKEN[name], patience=2)
    failed = {result.name for result in report.of(Outcome.FAILED)}
    assert failed == set(BROKEN[name]), report.results
    assert not report.of(Outcome.ERROR)
    assert all(result.reason and "\n" not in result.reason for result in report.of(Outcome.FAILED))


def test_each_case_of_the_kit_can_fail() -> None:
    of_drivers = {case.name for case in DRIVER_CASES}
    named = {(name, case) for name, cases in BROKEN.items() for case in cases}
    assert {case.name for case in CASES} - of_drivers == {case for _, case in named} - of_drivers
    # What is opened is of three kinds, each with cases of these names.
    for shared in ("nothing_grows", "opening_can_be_cancelled_at_every_await"):
        assert len([name for name, case in named if case == shared]) >= 3


def test_the_kit_asks_about_each_operation_of_the_core() -> None:
    public: list[object] = [getattr(moorage, name) for name in moorage.__all__]
    known = {each.__name__ for each in public if isinstance(each, type) and issubclass(each, Operation)}
    assert {type(each).__name__ for each in operations()} == known - {"Operation"}
    assert all(reply_to(each) is not None for each in operations())


def test_a_driver_of_a_plugin_that_is_not_installed_goes_through_the_kit_for_drivers() -> None:
    names = ["it_is_tried", "what_is_written_is_read", "another_process_uses_it_and_ends_quietly"]
    report = checked(Subject("broken_plugins:STORES"), *names)
    assert {"drivers scratch", "drivers around"} <= {result.group for result in report.results}
    assert report.conforms()


def test_what_is_not_tried_for_lack_of_options_is_said_and_fails_where_it_is_all() -> None:
    report = checked(Subject("broken_plugins:NEEDS_A_STORE"))
    (skipped,) = report.of(Outcome.SKIPPED)
    assert skipped.reason == (
        "not tried without options; give --option remote.KEY=VALUE or --config FILE with storage.remote"
    )
    (failed,) = report.of(Outcome.FAILED)
    assert failed.name == "something_is_shown"
    assert not report.conforms()
    needs = checked(Subject("broken_plugins:NEEDS_OPTIONS"))
    assert not needs.conforms()
    assert "plugins.sound: words: missing; text is required" in needs.of(Outcome.SKIPPED)[0].reason
    rule = checked(Subject("broken_plugins:NEEDS_OPTIONS_OF_A_RULE"))
    (understood,) = [result for result in rule.results if result.name == "its_options_are_understood"]
    assert "text is required, and so `rules` alone cannot configure it (give --option sound.KEY=" in understood.reason
    given = checked(Subject("broken_plugins:NEEDS_OPTIONS", {"sound": {"words": "a"}}))
    assert given.conforms(strict=True)


def test_options_are_taken_from_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text("version: 0.1\nstorage: {inmemory: }\nplugins: {sound: {words: a}}\n", encoding="utf-8")
    assert checked(Subject("broken_plugins:NEEDS_OPTIONS", configuration=file)).conforms()


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("DAWDLES", "it_does_not_block_the_event_loop"),
        ("SLOW_OBSERVER", "an_observer_takes_whatever_it_is_shown"),
    ],
)
def test_what_is_slow_is_reported(name: str, case: str) -> None:
    (result,) = checked(Subject(f"broken_plugins:{name}"), case).results
    assert result.outcome is Outcome.PASSED
    assert "blocks the event loop for more than 50 ms" in result.reason


def test_each_entry_of_the_options_of_a_rule_is_tried() -> None:
    options = {"broken": {"limit": 1, "rules": [{"repositories": ["a"], "limit": 2}, {"mode": "warn"}]}}
    report = checked(Subject("broken_plugins:SOUND_RULE", options))
    groups = {result.group for result in report.results}
    assert {"rules broken.rules[0]", "rules broken.rules[1]", "rules broken"} <= groups
    assert report.conforms()


HOUSE_RULE = """
from moorage import Refused, hookimpl

@hookimpl
def validate_manifest(push, manifest):
    if "source" not in manifest.annotations:
        raise Refused("images name their source")
"""


def test_a_file_is_a_plugin(tmp_path: Path) -> None:
    file = tmp_path / "house_rules.py"
    file.write_text(HOUSE_RULE, encoding="utf-8")
    report = assert_plugin(Subject(str(file)))
    assert "rules house_rules" in {result.group for result in report.results}


@pytest.mark.parametrize("planned", plan(Subject("broken_plugins:OBSERVER")), ids=str)
def test_a_case_is_a_test_of_any_runner(planned: Planned) -> None:
    assert_case(planned)


def test_a_case_that_fails_is_an_assertion_that_says_why() -> None:
    (planned,) = plan(Subject("broken_plugins:SWALLOWS_ERRORS"), only=["errors_pass"])
    with pytest.raises(AssertionError, match="BlobUnknown of the registry is swallowed"):
        assert_case(planned)
    with pytest.raises(AssertionError, match="errors_pass"):
        assert_plugin(Subject("broken_plugins:SWALLOWS_ERRORS"))
    (planned,) = plan(Subject("broken_plugins:NEEDS_A_STORE"), only=["it_is_tried"])
    with pytest.raises(unittest.SkipTest, match="not tried without options"):
        assert_case(planned)


# ---- the command


def run(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(conformance, ["plugin", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.output


def test_the_command_prints_what_was_proven_and_what_was_not(tmp_path: Path) -> None:
    written = tmp_path / "report.json"
    code, said = run(
        "nondistributable", "--only", "*.it_only_looks", "--json", written, "--junit", tmp_path / "report.xml"
    )
    assert code == 0, said
    assert "it_only_looks" in said
    assert "nondistributable conforms" in said
    document = json.loads(written.read_text())
    assert (document["kind"], document["subject"]) == ("plugin", "nondistributable")
    assert (tmp_path / "report.xml").read_text().count("<testcase") == len(document["results"])
    code, said = run("broken_plugins:NEEDS_A_STORE")
    assert code == 1
    assert "not tried without options; give --option remote.KEY=VALUE" in said


def test_the_command_fails_for_a_broken_plugin() -> None:
    code, said = run("broken_plugins:OPENS_BLOBS", "--only", "middleware")
    assert code == 1
    assert "failed: a blob was opened before anybody asked for its bytes" in said


def test_the_command_takes_options_by_name() -> None:
    code, said = run("broken_plugins:NEEDS_OPTIONS", "--option", "sound.words=a b", "--only", "middleware", "--strict")
    assert code == 0, said


def test_the_command_lists_the_cases() -> None:
    code, said = run("--list")
    assert code == 0
    assert all(case.key in said for case in CASES)
    assert f"{len(CASES)} cases" in said
    code, said = run("--list", "--only", "rules.*")
    assert "middleware." not in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Missing argument 'PLUGIN'"),
        (["no_such_plugin"], "There is no installed plugin, module or file 'no_such_plugin'."),
        (["no/such.py"], "There is no file no/such.py."),
        ([""], "There is no installed plugin, module or file ''."),
        (["a b:c d"], "There is no installed plugin, module or file 'a b:c d'."),
        (["broken_plugins:NO_SUCH_OBJECT"], "broken_plugins:NO_SUCH_OBJECT cannot be imported: AttributeError"),
        (["middleware", "--option", "no_such_name.a=1"], "middleware registers no 'no_such_name'"),
        (["middleware", "--option", "enabled=1"], "allowed is NAME.KEY=VALUE"),
        (["middleware", "--option", "read_only.=1"], "allowed is NAME.KEY=VALUE"),
        (["middleware", "--option", "read_only.a=1", "--option", "read_only.a.b=1"], "a has a value already"),
        (["middleware", "--only", "no_such_case"], "No case matches no_such_case."),
        (["middleware", "--only", "rules"], "middleware offers nothing that rules would be about."),
        (["middleware", "--config", "/no/such/file"], "does not exist"),
    ],
)
def test_what_cannot_be_checked_is_said_in_one_sentence(arguments: list[str], sentence: str) -> None:
    code, said = run(*arguments)
    assert code == 2
    assert sentence in said
    assert len([line for line in said.splitlines() if line.startswith("Error")]) == 1


def test_a_configuration_that_cannot_be_read_is_said_in_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text("version: 0.1\nstorage: {inmemory: }\nno_such_key: 1\n", encoding="utf-8")
    code, said = run("middleware", "--config", file)
    assert (code, "no_such_key: unknown key" in said) == (2, True)
    assert len(said.splitlines()) == 1


def test_a_selection_that_matches_nothing_is_refused() -> None:
    with pytest.raises(CannotCheck, match="No case matches nothing"):
        select(["nothing"])

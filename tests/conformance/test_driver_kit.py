"""The driver kit: our drivers pass it whole, and each of its cases can fail."""

import json
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from moorage import KeyUnknown
from moorage_conformance.commands import conformance
from moorage_conformance.driver import (
    CASES,
    CannotCheck,
    Case,
    Subject,
    assert_case,
    capabilities_of,
    check_driver,
    run_case,
    select,
    standings,
)
from moorage_conformance.report import Outcome
from moorage_drivers import register_drivers

BY_NAME = {case.name: case for case in CASES}


def subject(name: str, folder: Path) -> Subject:
    options = {"filesystem": "rootdirectory", "broken": "root"}
    if name == "filesystem":
        return Subject(name, {options[name]: f"{folder}/{{fresh}}"})
    return Subject(name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
@pytest.mark.parametrize("name", ["filesystem", "inmemory"])
def test_our_drivers_keep_the_contract(name: str, case: Case, tmp_path: Path) -> None:
    assert_case(case, subject(name, tmp_path))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_a_driver_of_the_five_methods_keeps_the_contract(case: Case) -> None:
    assert_case(case, Subject("stores:MINIMAL"))


BROKEN = {
    "ACCEPTS_ANY_KEY": ["what_breaks_the_grammar_is_refused"],
    "APPENDS": ["a_write_replaces"],
    "BAD_UPLOADS": [
        "an_upload_is_seen_when_it_is_committed",
        "an_upload_goes_on_elsewhere",
        "bytes_that_no_token_answers_for_are_dropped",
        "a_token_that_means_nothing_is_gone",
        "an_aborted_upload_leaves_nothing",
        "an_abandoned_upload_lies_below_its_key",
        "a_commit_replaces_and_may_go_elsewhere",
    ],
    "BEYOND_IS_EMPTY": ["a_range_beyond_the_end_is_refused"],
    "COPIES_ARE_LINKS": ["a_copy_has_a_life_of_its_own"],
    "SUSPENDS_ALONE": ["a_suspended_upload_is_told_of"],
    "COMMITS_ALONE": ["a_commit_stands_between_what_belongs_around_it"],
    "FINDS_ALL": ["several_are_put_in_order_and_found"],
    "PUTS_SEVERAL_AT_ONCE": ["several_are_put_in_order_and_found"],
    "DELETES_BESIDE_THE_PREFIX": ["all_below_a_prefix_is_deleted"],
    "DELETES_NEIGHBOURS": ["what_is_deleted_goes_alone"],
    "FORGETS_WHAT_WAITS": ["a_thread_writes_where_a_task_would"],
    "FOLDS_CASE": ["neighbours_are_other_keys"],
    "GIVES_RELATIVE_URLS": ["a_url_is_where_the_content_is"],
    "HOLDS_FOR_EVERYBODY": ["a_name_has_one_holder_over_processes"],
    "IGNORES_ABSENT": ["one_of_several_processes_creates"],
    "IGNORES_CONDITIONS": [
        "one_of_many_creates",
        "one_of_many_replaces_what_it_has_seen",
        "counting_loses_nothing",
        "what_is_gone_or_never_was_is_not_unchanged",
        "a_delete_takes_only_the_version_that_was_seen",
        "a_copy_honours_absent",
        "a_commit_honours_absent",
    ],
    "LEAKS_READERS": ["readers_that_end_early_leave_nothing_behind"],
    "LEAKS_TASKS": ["nothing_grows"],
    "LISTS_A_THOUSAND": ["five_thousand_keys_are_paged"],
    "LISTS_BACKWARDS": ["a_list_gives_what_is_there_in_byte_order"],
    "LISTS_LATE": ["a_list_shows_each_finished_write"],
    "LISTS_THE_FOLDER_ITSELF": ["a_prefix_without_keys_lists_nothing"],
    "LOSES_THE_END": ["what_is_written_is_read"],
    "MIXES_WRITERS": ["of_many_writers_one_is_seen_whole"],
    "NESTS": ["no_key_is_a_directory_of_another"],
    "NEVER_BUSY": ["an_upload_has_one_holder"],
    "NEVER_HOLDS": ["a_name_has_one_holder"],
    "NEVER_MORE": ["a_full_page_says_whether_more_follows"],
    "NOISY": ["another_process_uses_it_and_ends_quietly"],
    "NO_CHECKPOINT": ["every_method_is_a_checkpoint"],
    "ONE_AT_A_TIME": ["a_slow_reader_stops_nobody"],
    "ONE_PIECE": ["large_content_is_streamed"],
    "RANGES_ARE_OFF": ["a_range_is_read", "many_read_at_once"],
    "READS_LIVE": ["a_reader_goes_on_with_what_it_opened"],
    "READS_WITHOUT_BOUND": ["read_is_bounded"],
    "REFUSES_LONG_KEYS": ["keys_of_the_grammar_hold_objects"],
    "REMEMBERS": ["another_process_sees_what_was_written"],
    "TELLS_THE_LAST_VERSION": ["a_write_tells_the_version_it_made"],
    "TOKENS_OF_ONE_PROCESS": ["an_upload_outlives_its_process"],
    "UNKNOWN_IS_EMPTY": ["what_is_not_there_is_unknown"],
    "VERSION_IS_SIZE": ["the_version_changes_with_each_write"],
    "VISIBLE_EARLY": [
        "nobody_sees_a_write_before_it_is_whole",
        "a_write_whose_source_fails_changes_nothing",
        "every_call_can_be_cancelled_at_every_await",
    ],
    "WRITES_BEFORE_IT_LOOKS": ["a_cancelled_call_does_nothing"],
    "WRITES_IN_PLACE": ["a_killed_writer_leaves_a_whole_object"],
}
ON_FILES = {"HOLDS_FOR_EVERYBODY", "IGNORES_ABSENT", "REMEMBERS", "TOKENS_OF_ONE_PROCESS", "WRITES_IN_PLACE"}


# What a broken driver leaves unclosed is its own fault.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in BROKEN.items() for case in cases])
def test_a_broken_driver_is_found_out(name: str, case: str, tmp_path: Path) -> None:
    options = {"root": f"{tmp_path}/{{fresh}}"} if name in ON_FILES else {}
    broken = Subject(f"broken_drivers:{name}", options)
    result = trio.run(lambda: run_case(broken, BY_NAME[case], fast=True, limit=60))
    assert result.outcome in {Outcome.FAILED, Outcome.ERROR}, result.reason
    assert result.reason
    with pytest.raises(AssertionError, match="\n"):
        assert_case(BY_NAME[case], broken)


def test_every_case_can_fail() -> None:
    assert {case for cases in BROKEN.values() for case in cases} == set(BY_NAME)


def test_what_works_undeclared_is_told() -> None:
    claims = Subject("broken_drivers:CLAIMS_NOTHING")
    report = trio.run(lambda: check_driver(claims, only=["conditions"], fast=True))
    found = standings(report, trio.run(capabilities_of, claims), shared=claims.shared)
    assert {standing.capability: standing.verdict for standing in found} == {
        "shared": "no",
        "create_only": "works, though not declared",
        "cas": "works, though not declared",
        "exclusive_uploads": "no",
    }
    assert report.count(Outcome.PASSED) == 1


def test_what_is_declared_is_proven_or_disproven() -> None:
    broken = Subject("broken_drivers:IGNORES_CONDITIONS")

    def verdicts(*only: str) -> dict[str, str]:
        report = trio.run(lambda: check_driver(broken, only=only, fast=True))
        found = standings(report, trio.run(capabilities_of, broken), shared=broken.shared)
        return {standing.capability: standing.verdict for standing in found}

    assert verdicts("counting_*")["cas"] == "declared, and disproven"
    assert verdicts("ranges")["cas"] == "declared, and not proven"


# ---- the command


def command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(conformance, ["driver", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


def test_the_command_reports_what_was_proven(tmp_path: Path) -> None:
    code, said = command("inmemory", "--fast", "--only", "conditions", "--json", str(tmp_path / "report.json"))
    assert code == 0
    assert "inmemory conforms, 1 skipped" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["cas", "yes", "proven"] in rows
    assert ["shared", "no", "no"] in rows
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["kind"], report["subject"], report["counts"]["passed"]) == ("driver", "inmemory", 8)


def test_what_is_required_must_be_proven() -> None:
    assert command("inmemory", "--only", "keys", "--require", "cas")[0] == 1
    code, said = command("inmemory", "--only", "conditions", "--fast", "--require", "cas")
    assert (code, "is required" in said) == (0, False)
    assert command("inmemory", "--only", "conditions", "--fast", "--require", "shared")[0] == 1


def test_a_driver_that_fails_is_exit_code_one() -> None:
    code, said = command("broken_drivers:NESTS", "--only", "keys")
    assert code == 1
    assert "broken_drivers:NESTS does not conform: 1 failed" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Missing argument 'NAME'"),
        (["nothing"], f"there is no driver 'nothing' among {sorted(register_drivers())}"),
        (["no.such:THING"], "no.such:THING cannot be imported"),
        (["broken_drivers:in_memory"], "is no DriverFactory"),
        (["inmemory", "--only", "nothing"], "No case matches nothing"),
        (["inmemory", "--option", "a"], "--option a: allowed is KEY=VALUE"),
        (["inmemory", "--option", "a=1"], "inmemory: a: unknown key"),
        (["inmemory", "--option", "a=[", "--fast"], "--option a=[: not YAML"),
        (["inmemory", "--only", "keys", "--require", "speed"], "There is no capability speed"),
        (["filesystem", "--option", "rootdirectory=/proc/nothing"], "The store of filesystem cannot be opened"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence_and_exit_code_two(arguments: list[str], sentence: str) -> None:
    code, said = command(*arguments)
    assert code == 2
    assert sentence in said
    assert "Traceback" not in said


def test_a_store_that_has_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"1")
    code, said = command("filesystem", "--option", f"rootdirectory={tmp_path}")
    assert (code, "The store is not empty: it has precious" in said) == (2, True)
    assert (tmp_path / "precious").read_bytes() == b"1"


def test_each_case_leaves_the_store_empty(tmp_path: Path) -> None:
    root = tmp_path / "root"
    whole = Subject("filesystem", {"rootdirectory": str(root)})
    report = trio.run(lambda: check_driver(whole, only=["keys", "lists", "uploads"], fast=True))
    assert report.conforms()
    left = [path for path in root.rglob("*") if path.is_file() and "moorage" not in path.parts]
    assert left == []


def test_cases_are_listed() -> None:
    code, said = command("--list", "--only", "keys")
    assert code == 0
    assert said.endswith("4 cases\n")
    with pytest.raises(CannotCheck):
        select(["nothing"])
    assert issubclass(KeyUnknown, Exception)

"""The contract of all storage drivers, by the kit that comes with Moorage: each case on a file of its own."""

from pathlib import Path

import pytest

from moorage_conformance.driver import CASES, Case, Subject, assert_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_the_driver_keeps_the_contract(case: Case, tmp_path: Path) -> None:
    assert_case(case, Subject("sqlite", {"path": f"{tmp_path}/{{fresh}}.db"}))

"""The storage contract, sentence by sentence, on any driver.

    report = await check_driver(Subject("sqlite", {"path": "/tmp/{fresh}.db"}))

Each sentence is a case: a plain async function in the table of its group, which gets an empty store. From pytest:

    import pytest
    from moorage_conformance.driver import CASES, Subject, assert_case

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
    def test_contract(case, tmp_path):
        assert_case(case, Subject("sqlite", {"path": f"{tmp_path}/{{fresh}}.db"}))
"""

from .case import Case, Need
from .runner import (
    CASES,
    GROUPS,
    CannotCheck,
    Standing,
    assert_case,
    capabilities_of,
    check_driver,
    check_empty,
    run_case,
    select,
    standings,
)
from .store import FRESH, NoSuchDriver, Store, Subject

__all__ = [
    "CASES",
    "FRESH",
    "GROUPS",
    "CannotCheck",
    "Case",
    "Need",
    "NoSuchDriver",
    "Standing",
    "Store",
    "Subject",
    "assert_case",
    "capabilities_of",
    "check_driver",
    "check_empty",
    "run_case",
    "select",
    "standings",
]

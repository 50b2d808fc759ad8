"""The contract of plugins, sentence by sentence, on any plugin.

    report = await check_plugin(Subject("moorage_quota", {"quota": {"bytes": 1000}}))

Each sentence is a case: a plain async function in the table of its group, run on each thing that the plugin offers; its
storage drivers go through the kit for drivers. From pytest:

    from moorage_conformance.plugin_kit import Subject, assert_plugin

    def test_the_contract(tmp_path):
        assert_plugin(Subject("moorage_quota", {"quota": {"bytes": 1000, "file": f"{tmp_path}/counts"}}))

or a test for each case:

    @pytest.mark.parametrize("planned", plan(Subject("moorage_quota")), ids=str)
    def test_the_contract(planned):
        assert_case(planned)
"""

from .case import Case, Listed, NotShown
from .runner import (
    CASES,
    TITLES,
    Planned,
    assert_case,
    assert_plugin,
    check_plugin,
    plan,
    run_planned,
    select,
)
from .subject import CannotCheck, Subject

__all__ = [
    "CASES",
    "TITLES",
    "CannotCheck",
    "Case",
    "Listed",
    "NotShown",
    "Planned",
    "Subject",
    "assert_case",
    "assert_plugin",
    "check_plugin",
    "plan",
    "run_planned",
    "select",
]

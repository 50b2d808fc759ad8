"""The OCI distribution specification, clause by clause, over HTTP and against any registry.

    report = await check_registry("http://localhost:5000")

Each clause is a case: a plain async function in the table of its group of endpoints, whose docstring is the requirement.
What the specification demands fails; what it only recommends or allows is skipped with the reason when the registry
declines in a way that it may. The cases leave the repositories in which they worked behind, under one prefix.
"""

from __future__ import annotations

from moorage_conformance.report import Outcome, Report, Result

from .case import VERSIONS, Capability, Case, CheckFailed, NotOffered, Version
from .runner import CASES, GROUPS, CannotCheck, check_registry, select

__all__ = [
    "CASES",
    "GROUPS",
    "VERSIONS",
    "CannotCheck",
    "Capability",
    "Case",
    "CheckFailed",
    "NotOffered",
    "Outcome",
    "Report",
    "Result",
    "Version",
    "check_registry",
    "select",
]

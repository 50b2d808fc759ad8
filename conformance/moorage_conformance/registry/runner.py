"""Run cases against a registry: several at once, each in repositories of its own and within a time limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

import httpx
import trio

from moorage_conformance.report import Outcome, Report, Result

from . import base, blobs, deletes, errors, manifests, referrers, tags, uploads
from .answer import CheckFailed, NotOffered, first_failure
from .capabilities import Capabilities
from .case import Case, Group, Version
from .client import Client, open_client
from .scratch import Scratch

__all__ = ["CASES", "GROUPS", "CannotCheck", "check_registry", "registry_url", "select"]

GROUPS: tuple[Group, ...] = (
    base.case,
    blobs.case,
    uploads.case,
    manifests.case,
    tags.case,
    referrers.case,
    deletes.case,
    errors.case,
)

CASES: tuple[Case, ...] = tuple(case for group in GROUPS for case in group.cases)
"""Every case, in the order in which they are reported."""

UNAUTHORIZED = (401, 403)


class CannotCheck(Exception):
    """The run cannot begin: nothing to run, or no registry to run it against. The message is a whole sentence."""


def select(only: Sequence[str] = (), version: Version = "dev") -> list[Case]:
    """Return the cases of a version that one of the patterns matches; without patterns, all of them.

    A pattern is matched against `group.name`, the name alone and the group alone.
    """
    found = [case for case in CASES if case.holds_in(version)]
    if only:
        found = [case for case in found if any(_matches(case, pattern) for pattern in only)]
    if not found:
        patterns = ", ".join(only)
        raise CannotCheck(f"No case of version {version} matches {patterns}." if only else "There are no cases.")
    return found


def _matches(case: Case, pattern: str) -> bool:
    return any(fnmatchcase(text, pattern) for text in (case.key, case.name, case.group))


def registry_url(text: str) -> str:
    """Return the base URL for what a person typed: without a scheme, loopback addresses are http, others https."""
    if "://" not in text:
        host = urlsplit(f"//{text}").hostname or ""
        loopback = host == "localhost" or host.startswith("127.") or host == "::1"
        text = f"{'http' if loopback else 'https'}://{text}"
    try:
        parts = urlsplit(text)
        bad = parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment
        _ = parts.port
    except ValueError:
        bad = True
    if bad:
        raise CannotCheck(f"{text} is not the URL of a registry; give one like http://localhost:5000.")
    return text.rstrip("/").removesuffix("/v2")


async def check_registry(
    url: str,
    *,
    version: Version = "dev",
    only: Sequence[str] = (),
    repository: str = "conformance",
    concurrency: int = 4,
    limit: float = 60.0,
    username: str | None = None,
    password: str | None = None,
    finished: Callable[[Result], None] | None = None,
) -> Report:
    """Run the selected cases against the registry at a URL and return what they found.

    `repository` is the prefix of the fresh repositories in which the cases work, `limit` the seconds that one case may
    take, and `finished` is called with each result as it comes. CannotCheck when nothing can be run.
    """
    base_url = registry_url(url)
    cases = select(only, version)
    began = trio.current_time()
    results: dict[int, Result] = {}
    async with open_client(base_url, username=username, password=password) as registry:
        await _check_reachable(registry)
        capabilities = Capabilities(registry, repository)
        waiting = list(enumerate(cases))[::-1]

        async def work() -> None:
            while waiting:
                at, case = waiting.pop()
                result = await _run(case, registry, Scratch(registry, repository, case.group), capabilities, limit)
                results[at] = result
                if finished is not None:
                    finished(result)

        async with trio.open_nursery() as nursery:
            for _ in range(max(1, concurrency)):
                nursery.start_soon(work)
    ordered = tuple(results[at] for at in range(len(cases)))
    return Report(
        kind="registry",
        subject=base_url,
        standard=f"OCI distribution specification {version}",
        seconds=trio.current_time() - began,
        results=ordered,
    )


async def _check_reachable(registry: Client) -> None:
    try:
        with trio.fail_after(15):
            answer = await registry.version()
    except httpx.InvalidURL as error:
        raise CannotCheck(f"{registry.url} is not the URL of a registry: {error}.") from error
    except trio.TooSlowError:
        raise CannotCheck(f"No registry can be reached at {registry.url}: there was no answer within 15 s.") from None
    except CheckFailed as failure:
        reason = failure.got.partition("\n")[0]
        raise CannotCheck(f"No registry can be reached at {registry.url}: {reason}.") from failure
    if answer.status in UNAUTHORIZED:
        advice = "does not accept the credentials" if registry.has_credentials else "wants a --username and --password"
        raise CannotCheck(f"The registry at {registry.url} {advice} (it answered {answer.status}).")


async def _run(case: Case, registry: Client, scratch: Scratch, capabilities: Capabilities, limit: float) -> Result:
    began = trio.current_time()
    outcome, reason = Outcome.PASSED, ""
    try:
        with trio.fail_after(limit):
            missing = [await capabilities.missing(capability) for capability in sorted(case.requires)]
            lacking = [why for why in missing if why is not None]
            if lacking:
                raise NotOffered("; ".join(lacking))
            await case.check(registry, scratch)
    except trio.TooSlowError:
        outcome, reason = Outcome.FAILED, f"it was not finished within {limit:g} s"
    except Exception as error:  # noqa: BLE001 - here ends the task of the case: whatever it was, it becomes a result
        outcome, reason = _judge(first_failure([error]))
    return Result(
        group=case.group,
        name=case.name,
        section=case.section,
        since=case.since,
        requirement=case.requirement,
        outcome=outcome,
        reason=reason,
        seconds=round(trio.current_time() - began, 3),
    )


def _judge(error: BaseException) -> tuple[Outcome, str]:
    if isinstance(error, CheckFailed):
        return Outcome.FAILED, str(error)
    if isinstance(error, NotOffered):
        return Outcome.SKIPPED, str(error)
    return Outcome.ERROR, f"{type(error).__name__}: {error}"

"""Saying what would become of a push, and why, without doing it.

A push ends at the first refusal, and tells its client as little as the client needs. An explanation asks everybody: the
registry itself and each rule. It asks a handler what is there, so it works over a registry, a folder, or anything else
that answers pulls; it changes nothing, counts nothing, and does not log refusals.
"""

from contextlib import aclosing
from typing import Literal

import msgspec

from ._decisions import ReadOnlyView
from ._digests import Digest
from ._errors import BlobUnknown, DigestInvalid, InternalError, ManifestInvalid, ManifestTooLarge, ManifestUnknown
from ._judging import Judging, Verdict, objection
from ._manifests import Descriptor, Manifest
from ._operations import Handler, PullBlob, PullManifest, PushManifest
from ._push import missing_detail, missing_references, read_push
from ._rules import Mode

Outcome = Literal["accepts", "warns", "refuses", "failed", "not here"]
"""What somebody makes of a push; `not here` is a rule that is not in force for the repository."""

REGISTRY = "(registry)"
"""How an explanation calls the registry itself, where it names a rule otherwise."""

_LONGEST_CAUSE = 300


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What the registry or one rule makes of a push.

    Attributes:
        rule: whose it is; `REGISTRY` if it is no rule's.
        mode: whether its refusals count; None where it is not in force.
        outcome: what it comes to, whether or not it counts.
        says: a sentence for people; may be empty.
        detail: JSON-able data for programs, or None: a refusal's, or the reference that is missing.
    """

    rule: str
    mode: Mode | None
    outcome: Outcome
    says: str = ""
    detail: object = None

    @property
    def refuses(self) -> bool:
        """Whether the push fails because of this."""
        return self.mode == "enforce" and self.outcome in {"refuses", "failed"}

    @property
    def warns(self) -> bool:
        """Whether it says something against the push that does not make it fail."""
        return self.outcome in {"warns", "failed"} and not self.refuses


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What would become of a push.

    Attributes:
        push: the push in question.
        manifest: what is pushed; None if it is no manifest, and then rules are not asked.
        findings: what everybody says: of the manifest as such, of each missing reference, of the whole; then the rules
            that say nothing, and those that are not in force.
    """

    push: PushManifest
    manifest: Manifest | None
    findings: tuple[Finding, ...]

    @property
    def accepted(self) -> bool:
        """Whether the push would be taken."""
        return not any(finding.refuses for finding in self.findings)


async def explain(push: PushManifest, handler: Handler, judging: Judging) -> Explanation:
    """Return what would become of `push` where `handler` answers, if `judging` judges it.

    Conditions of the push, such as `if_match`, and what middleware would make of it are left out.

    Raises:
        RegistryError: `handler` fails, so that it cannot be said.
    """
    try:
        manifest = await read_push(push)
    except (ManifestTooLarge, ManifestInvalid, DigestInvalid) as error:
        refusal = Finding(rule=REGISTRY, mode="enforce", outcome="refuses", says=error.message, detail=error.detail)
        return Explanation(push=push, manifest=None, findings=(refusal,))
    view = ReadOnlyView(handler)
    said = f"a manifest of type {manifest.media_type}"
    findings = [Finding(rule=REGISTRY, mode="enforce", outcome="accepts", says=said)]
    for descriptor in await _missing(push, manifest, view):
        findings += await _about_missing(push, manifest, descriptor, view, judging)
    judged: list[Finding] = []
    async with aclosing(judging.verdicts(push, manifest, view)) as verdicts:
        async for verdict in verdicts:
            judged += _findings(verdict)
    told = {finding.rule for finding in findings}
    heard = {finding.rule for finding in judged} | told
    # That a rule has nothing against the whole need not be said of one that said something of a part.
    judged = [finding for finding in judged if finding.outcome != "accepts" or finding.rule not in told]
    silent = [
        Finding(rule=rule, mode=mode, outcome="not here" if mode is None else "accepts")
        for rule, mode in judging.modes(push.repository).items()
        if rule not in heard
    ]
    judged += sorted(silent, key=lambda finding: finding.mode is None)
    return Explanation(push=push, manifest=manifest, findings=(*findings, *judged))


async def _missing(push: PushManifest, manifest: Manifest, view: Handler) -> list[Descriptor]:
    """Return what `manifest` points at and `view` does not have."""

    async def is_manifest(digest: Digest) -> bool:
        try:
            await view(PullManifest(repository=push.repository, reference=digest))
        except ManifestUnknown:
            return False
        return True

    async def is_blob(digest: Digest) -> bool:
        try:
            await view(PullBlob(repository=push.repository, digest=digest))
        except BlobUnknown:
            return False
        return True

    return await missing_references(manifest, is_manifest=is_manifest, is_blob=is_blob, at_once=True)


async def _about_missing(
    push: PushManifest, manifest: Manifest, descriptor: Descriptor, view: Handler, judging: Judging
) -> list[Finding]:
    """Return what is said about a missing reference, up to the first opinion, which decides."""
    findings: list[Finding] = []
    async with aclosing(judging.requirements(push, manifest, descriptor, view)) as verdicts:
        async for verdict in verdicts:
            if verdict.required is None and verdict.error is None:
                continue
            findings += _findings(verdict)
            if verdict.required is not None:
                return findings
    if not any(finding.refuses for finding in findings):
        said = f"{descriptor.digest} ({descriptor.media_type}) is missing"
        detail = missing_detail(descriptor)
        findings.append(Finding(rule=REGISTRY, mode="enforce", outcome="refuses", says=said, detail=detail))
    return findings


def _findings(verdict: Verdict) -> list[Finding]:
    """Return what a verdict comes to: one finding at least, and one for each warning."""
    rule, mode = verdict.rule, verdict.mode
    detail = None if verdict.descriptor is None else missing_detail(verdict.descriptor)
    found = [Finding(rule=rule, mode=mode, outcome="warns", says=warning) for warning in verdict.warnings]
    refused = objection(verdict)
    if isinstance(verdict.error, InternalError):
        found.append(Finding(rule=rule, mode=mode, outcome="failed", says=_with_cause(verdict.error), detail=detail))
    elif refused is not None:
        outcome: Outcome = "refuses" if mode == "enforce" else "warns"
        if verdict.error is not None:
            detail = verdict.error.detail
        found.append(Finding(rule=rule, mode=mode, outcome=outcome, says=refused, detail=detail))
    elif verdict.descriptor is not None:
        said = f"{verdict.descriptor.digest} ({verdict.descriptor.media_type}) may be missing"
        found.append(Finding(rule=rule, mode=mode, outcome="accepts", says=said, detail=detail))
    return found or [Finding(rule=rule, mode=mode, outcome="accepts")]


def _with_cause(error: InternalError) -> str:
    """Return what a client would be told of a failure, and what only the log says: why."""
    cause = error.__cause__
    if cause is None:
        return error.message
    text = " ".join(f"{type(cause).__name__}: {cause}".split())
    return f"{error.message} ({text[:_LONGEST_CAUSE]})"

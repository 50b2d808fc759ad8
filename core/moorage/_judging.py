"""Asking the plugins about a push, and what their answers come to.

Rules this file keeps:

- Decisions fail closed: what fails, hangs or answers nonsense refuses the push with 500.
- A rule in mode `warn` never refuses: what it would have refused is a warning to the client, a line in the log, and
  counted. That includes its failures, since one tries a rule out in order to see them.
- A refusal names its rule.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Literal, cast

import msgspec
import pluggy

from ._calls import HookCalls
from ._decisions import Requirement
from ._errors import InternalError, Refused, RegistryError
from ._manifests import Descriptor, Manifest
from ._names import RepositoryName
from ._operations import Handler, PushManifest
from ._rules import Mode, Scopes

_log = logging.getLogger("moorage.rules")

Implementations = Callable[[str], Sequence[pluggy.HookImpl]]
"""Gives the implementations of a hook in the order in which they are called."""


class RuleEntry(msgspec.Struct, frozen=True):
    """Says that what a plugin decides is one entry of a rule's options, and holds where that entry is in force."""

    rule: str
    scopes: Scopes[msgspec.Struct]
    position: int

    def mode(self, repository: RepositoryName) -> Mode | None:
        """Return how it holds for `repository`; None if it does not."""
        found = self.scopes.of(repository)
        return found.mode if found is not None and found.position == self.position else None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one plugin says about a push.

    Attributes:
        rule: who says it: the name of a rule, or of a plugin that decides without options.
        hook: what it was asked.
        mode: whether a refusal counts.
        error: why it refuses; an `InternalError` if it could not decide.
        required: whether what is missing must be there, None for no opinion (`requires_reference` only).
        warnings: sentences for the client's user.
        descriptor: what is missing (`requires_reference` only).
    """

    rule: str
    hook: Literal["validate_manifest", "requires_reference"]
    mode: Mode
    error: RegistryError | None = None
    required: bool | None = None
    warnings: tuple[str, ...] = ()
    descriptor: Descriptor | None = None


class Judging:
    """Asks implementations of the decision hooks."""

    def __init__(self, implementations: Implementations, calls: HookCalls) -> None:
        """Ask what `implementations` gives, by `calls`."""
        self._implementations = implementations
        self._calls = calls
        self.entries: dict[str, RuleEntry] = {}
        """Of which rule the plugins are that belong to one, by the plugin's name."""
        self.counts: Counter[tuple[str, str]] = Counter()
        """How often each rule `refused`, or `warned` of what it would have refused."""

    async def verdicts(self, push: PushManifest, manifest: Manifest, registry: Handler) -> AsyncGenerator[Verdict]:
        """Ask one plugin after the other whether `manifest` may be pushed, and give what each says."""
        offered: dict[str, object] = {"push": push, "manifest": manifest, "registry": registry}
        for implementation in self._implementations("validate_manifest"):
            rule, mode = self._rule(implementation, push.repository)
            if mode is None:
                continue
            try:
                said = await self._calls.ask(implementation, "validate_manifest", offered)
                warnings = _sentences(implementation, said)
            except RegistryError as error:
                yield Verdict(rule=rule, hook="validate_manifest", mode=mode, error=_naming(rule, error))
            else:
                yield Verdict(rule=rule, hook="validate_manifest", mode=mode, warnings=warnings)

    async def requirements(
        self, push: PushManifest, manifest: Manifest, descriptor: Descriptor, registry: Handler
    ) -> AsyncGenerator[Verdict]:
        """Ask one plugin after the other whether the missing `descriptor` must be there, and give what each says."""
        offered: dict[str, object] = {
            "push": push,
            "manifest": manifest,
            "descriptor": descriptor,
            "registry": registry,
        }
        for implementation in self._implementations("requires_reference"):
            rule, mode = self._rule(implementation, push.repository)
            if mode is None:
                continue
            error: RegistryError | None = None
            said: object = None
            try:
                said = await self._calls.ask(implementation, "requires_reference", offered)
                if said is not None and not isinstance(said, bool):
                    raise _nonsense(implementation, "requires_reference", said)
            except RegistryError as refusal:
                error, said = _naming(rule, refusal), None
            yield Verdict(
                rule=rule,
                hook="requires_reference",
                mode=mode,
                error=error,
                required=said,
                descriptor=descriptor,
            )

    def modes(self, repository: RepositoryName) -> dict[str, Mode | None]:
        """Return how each rule, in the order of asking, holds for `repository`; None for one that does not."""
        found: dict[str, Mode | None] = {}
        for hook in ("requires_reference", "validate_manifest"):
            for implementation in self._implementations(hook):
                rule, mode = self._rule(implementation, repository)
                found[rule] = found.get(rule) or mode
        return found

    async def validate_manifest(self, push: PushManifest, manifest: Manifest, registry: Handler) -> tuple[str, ...]:
        """Return the warnings of all plugins.

        Raises:
            RegistryError: one of them refuses, or fails.
        """
        warnings: list[str] = []
        async with aclosing(self.verdicts(push, manifest, registry)) as verdicts:
            async for verdict in verdicts:
                warnings += self._settled(push, verdict)
        return tuple(warnings)

    async def requires_reference(
        self, push: PushManifest, manifest: Manifest, descriptor: Descriptor, registry: Handler
    ) -> Requirement:
        """Return what the first plugin says that has an opinion on the missing `descriptor`; without any it is required.

        Raises:
            RegistryError: a plugin refuses, or fails.
        """
        warnings: list[str] = []
        async with aclosing(self.requirements(push, manifest, descriptor, registry)) as verdicts:
            async for verdict in verdicts:
                warnings += self._settled(push, verdict)
                if verdict.required is not None:
                    required = verdict.required and verdict.mode == "enforce"
                    return Requirement(required=required, warnings=tuple(warnings))
        return Requirement(required=True, warnings=tuple(warnings))

    def _rule(self, implementation: pluggy.HookImpl, repository: RepositoryName) -> tuple[str, Mode | None]:
        entry = self.entries.get(implementation.plugin_name)
        if entry is None:
            return implementation.plugin_name, "enforce"
        return entry.rule, entry.mode(repository)

    def _settled(self, push: PushManifest, verdict: Verdict) -> tuple[str, ...]:
        """Return the warnings of a verdict.

        Raises:
            RegistryError: it refuses.
        """
        refused = objection(verdict)
        if refused is None:
            return verdict.warnings
        enforced = verdict.mode == "enforce"
        if verdict.error is not None or not enforced:
            outcome = "refused" if enforced else "warned"
            self.counts[verdict.rule, outcome] += 1
            _log.warning(
                "rule %s %s a push to %s:%s from %s (%d so far): %s",
                verdict.rule,
                "refuses" if enforced else "would refuse",
                push.repository,
                push.reference,
                push.origin.address or "this process",
                self.counts[verdict.rule, outcome],
                refused,
            )
        if enforced:
            if verdict.error is not None:
                raise verdict.error
            return verdict.warnings
        return (*verdict.warnings, f"{verdict.rule}: {refused}")


def objection(verdict: Verdict) -> str | None:
    """Return in one sentence what a verdict says against the push, whether or not it counts; None if nothing."""
    if verdict.error is not None:
        return verdict.error.message
    if verdict.required and verdict.descriptor is not None:
        return f"{verdict.descriptor.digest} ({verdict.descriptor.media_type}) must be there and is missing"
    return None


def _naming(rule: str, error: RegistryError) -> RegistryError:
    """Return `error`, with the name of the rule in the detail of a refusal."""
    if isinstance(error, Refused):
        detail = error.detail
        if detail is None or isinstance(detail, Mapping):
            error.detail = {
                "rule": rule,
                **cast("Mapping[str, object]", detail or {}),
            }  # JSON-able, so its keys are text
    return error


def _sentences(implementation: pluggy.HookImpl, said: object) -> tuple[str, ...]:
    """Return the warnings that `validate_manifest` gave.

    Raises:
        InternalError: what it gave is something else.
    """
    if said is None:
        return ()
    if isinstance(said, str) or not isinstance(said, Sequence):
        raise _nonsense(implementation, "validate_manifest", said)
    for each in cast("Sequence[object]", said):
        if not isinstance(each, str):
            raise _nonsense(implementation, "validate_manifest", each)
    return tuple(cast("Sequence[str]", said))  # as just looked at


def _nonsense(implementation: pluggy.HookImpl, hook: str, said: object) -> InternalError:
    _log.error("plugin %s answered %s with %s", implementation.plugin_name, hook, type(said).__name__)
    return InternalError(f"the plugin {implementation.plugin_name} failed")

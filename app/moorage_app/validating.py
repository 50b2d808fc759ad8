"""What `moorage validate` does: finds what is meant, and has it explained what the rules of a configuration say.

Nothing is written, and nothing but the rules and the store is opened: no middleware, no authentication, no observers,
no work on a clock. A registry that serves the same store does not notice.
"""

import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import msgspec

from moorage import (
    MANIFEST_LIMIT,
    Configuration,
    Digest,
    Finding,
    Handler,
    Manifest,
    ManifestInvalid,
    ManifestUnknown,
    PluginManager,
    PullManifest,
    PushManifest,
    Reference,
    RegistryError,
    RepositoryName,
    Tag,
    explain,
    open_rules,
    open_to_look,
    parse_stored,
)

from .image_layout import ImageLayout, LayoutInvalid, open_layout
from .layout_files import is_tar, open_regular

STANDARD_INPUT = "-"

_LONGEST_DEFAULT = 100

Note = Callable[[str], None]
"""Tells the user something that is no result."""


class TargetError(Exception):
    """What is to be judged cannot be: not there, not readable, or not understood. Its text is one sentence."""


class Name(msgspec.Struct, frozen=True):
    """A repository, and perhaps a tag or digest in it."""

    repository: RepositoryName
    reference: Reference | None = None


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of one manifest.

    Attributes:
        target: how the user named what it is in.
        repository, reference: as what it is judged.
        digest, media_type: what it is; None if it is no manifest.
        accepted: whether it would be.
        findings: what the registry and each rule say.
    """

    target: str
    repository: RepositoryName
    reference: Reference
    digest: Digest | None
    media_type: str | None
    accepted: bool
    findings: tuple[Finding, ...]

    @property
    def name(self) -> str:
        """The repository and the tag or digest, as users write it."""
        return full_name(self.repository, self.reference)


class Problem(msgspec.Struct, frozen=True):
    """What could not be judged, and why."""

    target: str
    says: str


class Report(msgspec.Struct):
    """What was found about the targets of one command."""

    judged: list[Judged] = []
    problems: list[Problem] = []

    @property
    def accepted(self) -> bool:
        """Whether nothing that was judged would be refused."""
        return all(each.accepted for each in self.judged)


def full_name(repository: RepositoryName, reference: Reference) -> str:
    """Return what a repository and a tag or digest in it are called together."""
    return f"{repository}{'@' if isinstance(reference, Digest) else ':'}{reference}"


def parse_name(text: str) -> Name:
    """Return what `repository`, `repository:tag` or `repository@digest` means.

    Raises:
        TargetError: it is none of them.
    """
    repository, separator, rest = text.partition("@" if "@" in text else ":")
    try:
        reference = None if not separator else Digest(rest) if separator == "@" else Tag(rest)
        return Name(RepositoryName(repository), reference)
    except RegistryError as error:
        raise TargetError(error.message) from None


# ---- a few things


async def judge_targets(
    configuration: Configuration,
    plugins: PluginManager,
    targets: Sequence[str],
    *,
    pushed_as: Name | None,
    media_type: str | None,
    note: Note,
) -> Report:
    """Judge each of `targets`; one that cannot be is a problem, and the others go on.

    Raises:
        ConfigurationError: the rules, or a store that is needed, cannot be opened.
    """
    report = Report()
    async with open_rules(configuration, plugins), AsyncExitStack() as stack:
        opened: list[Handler] = []

        async def look() -> Handler:
            if not opened:
                opened.append((await stack.enter_async_context(open_to_look(configuration, plugins))).handler)
            return opened[0]

        for target in targets:
            try:
                async with aclosing(_pushes(target, pushed_as, media_type, look, note)) as pushes:
                    async for handler, push in pushes:
                        report.judged.append(await judge(target, push, handler, plugins))
            except (TargetError, LayoutInvalid) as error:
                report.problems.append(Problem(target, str(error)))
            except RegistryError as error:
                report.problems.append(Problem(target, error.message))
            except OSError as error:
                report.problems.append(Problem(target, error.strerror or str(error)))
    return report


async def judge(target: str, push: PushManifest, handler: Handler, plugins: PluginManager) -> Judged:
    """Return what is said of `push`, which `target` stands for, where `handler` answers.

    Raises:
        RegistryError: `handler` fails.
    """
    explanation = await explain(push, handler, plugins.judging)
    manifest = explanation.manifest
    return Judged(
        target=target,
        repository=push.repository,
        reference=push.reference,
        digest=None if manifest is None else manifest.digest,
        media_type=None if manifest is None else manifest.media_type,
        accepted=explanation.accepted,
        findings=explanation.findings,
    )


async def _pushes(
    target: str,
    pushed_as: Name | None,
    media_type: str | None,
    look: Callable[[], Awaitable[Handler]],
    note: Note,
) -> AsyncGenerator[tuple[Handler, PushManifest]]:
    """Give the pushes that `target` stands for, each with what answers for the repository that it would go to."""
    if target == STANDARD_INPUT:
        data = sys.stdin.buffer.read(MANIFEST_LIMIT + 1)
        name = pushed_as or _default_name(target, "stdin", note)
        yield await look(), _push_of(data, name, media_type)
        return
    path = Path(target)
    if not target or not _exists(path):
        yield await _stored(target, pushed_as, media_type, look)
        return
    if _is_reference(target):
        note(f"{target} is taken as the file of that name, not as what the registry may have; ./{target} says so too")
    if not _is_layout(path):
        data = _read(path)
        name = pushed_as or _default_name(target, _stem(path), note)
        yield await look(), _push_of(data, name, media_type)
        return
    if media_type is not None:
        raise TargetError("a layout says itself of which media type its manifests are, so --media-type is of no use")
    name = pushed_as or _default_name(target, _stem(path), note)
    async with open_layout(path) as layout, aclosing(_pushes_of(layout, name)) as pushes:
        async for push in pushes:
            yield layout, push


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        # Such as a name that is too long for any file.
        return False


def _is_reference(text: str) -> bool:
    try:
        return parse_name(text).reference is not None
    except TargetError:
        return False


def _is_layout(path: Path) -> bool:
    return path.is_dir() or is_tar(path)


def _stem(path: Path) -> str:
    return path.resolve().stem


def _default_name(target: str, stem: str, note: Note) -> Name:
    """Return as what `target` is judged when the user does not say: as what it is called."""
    text = re.sub(r"[^a-z0-9]+", "-", stem.lower())[:_LONGEST_DEFAULT].strip("-")
    name = Name(RepositoryName(text or "unnamed"))
    note(f"{target}: judged as a push to the repository {name.repository}; --as REPOSITORY[:TAG] names another")
    return name


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(MANIFEST_LIMIT + 1)


def _push_of(data: bytes, name: Name, media_type: str | None) -> PushManifest:
    """Return the push of a manifest that was read from a file.

    Raises:
        TargetError: it is none, and nobody said what it should be.
    """
    if len(data) > MANIFEST_LIMIT:
        raise TargetError(f"more than {MANIFEST_LIMIT} bytes, which no manifest may have")
    digest = Digest.of(data)
    if media_type is None:
        try:
            media_type = parse_stored(data, digest).media_type
        except ManifestInvalid as error:
            raise TargetError(error.message) from None
    reference = digest if name.reference is None else name.reference
    return PushManifest(repository=name.repository, reference=reference, media_type=media_type, data=data)


async def _stored(
    target: str, pushed_as: Name | None, media_type: str | None, look: Callable[[], Awaitable[Handler]]
) -> tuple[Handler, PushManifest]:
    """Return the push that would have brought what the store has under the name `target`."""
    if ":" not in target and "@" not in target:
        raise TargetError("there is no such file; what the registry has is named repository:tag or repository@digest")
    try:
        name = parse_name(target)
    except TargetError as error:
        raise TargetError(f"there is no such file, and as a name in the registry: {error}") from None
    if pushed_as is not None or media_type is not None:
        raise TargetError("what the registry has is judged as what it is there; --as and --media-type are for files")
    if name.reference is None:
        raise TargetError("there is no such file, and a name in the registry has a tag or a digest")
    handler = await look()
    try:
        manifest = await handler(PullManifest(repository=name.repository, reference=name.reference))
    except ManifestUnknown:
        raise TargetError("there is neither a file nor, in the store, a manifest of that name") from None
    return handler, push_again(name.repository, name.reference, manifest)


def push_again(repository: RepositoryName, reference: Reference, manifest: Manifest) -> PushManifest:
    """Return the push that would have brought `manifest`, which is stored as `reference`."""
    return PushManifest(repository=repository, reference=reference, media_type=manifest.media_type, data=manifest.data)


async def _pushes_of(layout: ImageLayout, name: Name) -> AsyncGenerator[PushManifest]:
    """Give the pushes that would bring a layout into a registry: what has a tag by its tag, the rest by digest."""
    count = sum(named.is_top for named in layout.named)
    if name.reference is not None and count != 1:
        raise TargetError(f"--as names {name.reference} for one manifest, and index.json has {count}")
    for named in layout.named:
        digest = named.descriptor.digest
        manifest = await layout(PullManifest(repository=name.repository, reference=digest))
        given = name.reference if named.is_top else None
        yield PushManifest(
            repository=name.repository,
            reference=given or named.tag or digest,
            media_type=named.descriptor.media_type,
            data=manifest.data,
        )

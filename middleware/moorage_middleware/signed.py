"""The rule that certain tags are written only for what has a signature in the repository.

It looks whether a signature is there and verifies none: who pushes may also push something that only looks like one. So
it keeps people from forgetting to sign; whom to trust is for those who pull to check.

The way to go is: push by digest, sign, then tag. Pushes by digest are always taken, and so are the tags under which
clients keep signatures and other referrers (`sha256-<digest>`, `sha256-<digest>.sig` and the like).
"""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import msgspec

from moorage import (
    Digest,
    Glob,
    Handler,
    ListReferrers,
    Manifest,
    ManifestUnknown,
    PullManifest,
    PushManifest,
    Refused,
    RepositoryName,
    Rule,
    Tag,
    hookimpl,
)

_SIGNATURES = (
    Glob("application/vnd.dev.sigstore.bundle.v*+json"),
    Glob("application/vnd.dev.cosign.artifact.sig.v*+json"),
    Glob("application/vnd.cncf.notary.signature"),
)
_BESIDE = re.compile(r"sha(256|384|512)-[0-9a-f]{64}(\.(sig|att|sbom))?", re.ASCII)


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `plugins: {signed: {...}}`.

    Attributes:
        tags: patterns of the tags that are written for signed manifests only; without any all are.
        types: patterns of the artifact types that are signatures.
        cosign_tags: whether a manifest under cosign's tag for a signature, `sha256-<digest>.sig`, is one too.
    """

    tags: tuple[Glob, ...] = ()
    types: tuple[Glob, ...] = _SIGNATURES
    cosign_tags: bool = True


class JudgeSignatures:
    """Judges whether what is tagged was signed before."""

    def __init__(self, options: Signed) -> None:
        """Want signatures as `options` say."""
        self._options = options

    @hookimpl
    async def validate_manifest(self, push: PushManifest, manifest: Manifest, registry: Handler) -> None:
        """Refuse a push that writes a tag for a manifest without a signature.

        Raises:
            Refused: it would.
        """
        tags = [tag for tag in push.written_tags if self._wants_signature(tag)]
        if tags and not await self._is_signed(registry, push.repository, manifest.digest):
            raise Refused(
                f"the tag {tags[0]} is for what is signed, and {manifest.digest} has no signature in this repository; "
                "push it by digest, sign it, then tag it",
                detail={"tags": tags, "digest": manifest.digest},
            )

    def _wants_signature(self, tag: Tag) -> bool:
        patterns = self._options.tags
        # The tags of signatures are told by their names alone: what a manifest says of itself, anyone could say.
        return not _BESIDE.fullmatch(tag) and (not patterns or any(pattern.matches(tag) for pattern in patterns))

    async def _is_signed(self, registry: Handler, repository: RepositoryName, digest: Digest) -> bool:
        types = self._options.types
        after, more = "", True
        while more:
            page = await registry(ListReferrers(repository=repository, subject=digest, after=after))
            for referrer in page.referrers:
                if any(pattern.matches(referrer.artifact_type or "") for pattern in types):
                    return True
            after, more = page.last or "", page.more
        # Of a longer digest cosign could not make a tag.
        if not self._options.cosign_tags or digest.algorithm != "sha256":
            return False
        try:
            await registry(PullManifest(repository=repository, reference=Tag(f"sha256-{digest.encoded}.sig")))
        except ManifestUnknown:
            return False
        return True


@asynccontextmanager
async def _open(options: Signed) -> AsyncGenerator[object]:
    yield JudgeSignatures(options)


@hookimpl
def register_rules() -> Mapping[str, object]:
    """Offer the rule."""
    return {"signed": Rule(Signed, _open)}

"""end-12: the list of what refers to a manifest, and its life beside the fallback tag.

Not testable from outside: that manifests from before the registry had this API are listed, as only an upgrade of the
registry makes them.
"""

from __future__ import annotations

from functools import partial

from . import expect
from .answer import Answer, CheckFailed
from .case import Capability, Group, NotOffered
from .client import Client
from .content import (
    IMAGE_CONFIG,
    IMAGE_MANIFEST,
    Manifest,
    artifact,
    encoded,
    fallback_tag,
    image,
    index,
    unknown_digest,
)
from .expect import Descriptor
from .scratch import Scratch, together

__all__ = ["case"]

case = Group("referrers", "Listing referrers")

WITH_REFERRERS: tuple[Capability, ...] = ("push", "referrers")
SIGNATURE = "application/vnd.example.conformance.signature+json"
BILL = "application/vnd.example.conformance.bill"
MANY = 45
LARGE_ANNOTATION = 100_000
MOST_PAGES = 1000


async def listed(registry: Client, first: Answer) -> list[Descriptor]:
    """Return the descriptors of an answer and of all pages after it."""
    found = expect.index(first)
    answer = first
    for _ in range(MOST_PAGES):
        following = expect.next_page(answer)
        if following is None:
            return found
        answer = await registry.send("GET", following)
        found += expect.index(answer)
    raise CheckFailed(f"at most {MOST_PAGES} pages", f"still a Link\nin {answer}")


async def _check_listed(
    registry: Client, scratch: Scratch, subject: str, *wanted: Manifest, name: str | None = None
) -> list[Descriptor]:
    """Check that exactly these manifests are listed, and return their descriptors in the order given."""
    answer = await registry.list_referrers(name or scratch.name, subject)
    found = await listed(registry, answer)
    digests = sorted(descriptor.digest for descriptor in found)
    expected = sorted(manifest.digest for manifest in wanted)
    expect.is_true(
        answer, digests == expected, f"the referrers {', '.join(expected) or 'none'}", ", ".join(digests) or "none"
    )
    by_digest = {descriptor.digest: descriptor for descriptor in found}
    for manifest in wanted:
        descriptor = by_digest[manifest.digest]
        same = (descriptor.media_type, descriptor.size) == (manifest.media_type, len(manifest.data))
        expect.is_true(answer, same, f"type and size of {manifest.digest}", f"{descriptor}")
    return [by_digest[manifest.digest] for manifest in wanted]


@case(section="end-12a", requires=(), since="1.1")
async def unknown_repository_is_200(registry: Client, scratch: Scratch) -> None:
    """GET for a digest in a repository that does not exist answers 200 with an empty index, never 404."""
    answer = await registry.list_referrers(scratch.name, unknown_digest())
    found = expect.index(answer)
    expect.is_true(answer, not found, "no manifests", f"{found}")


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def manifest_without_referrers(registry: Client, scratch: Scratch) -> None:
    """GET for a manifest that nothing refers to answers 200 with an empty index."""
    subject = await scratch.pushed_image()
    await _check_listed(registry, scratch, subject.digest)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def unknown_digest_is_200(registry: Client, scratch: Scratch) -> None:
    """GET for a digest that the repository does not know answers 200 with an empty index."""
    await scratch.pushed_image()
    await _check_listed(registry, scratch, unknown_digest())


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def malformed_digest_is_400(registry: Client, scratch: Scratch) -> None:
    """GET for something that is no digest answers 400."""
    await scratch.pushed_image("tag")
    for digest in ("sha256:baddigeststring", f"sha256:{'A' * 64}", "tag"):
        expect.status(await registry.list_referrers(scratch.name, digest), 400, why=digest)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def artifact_with_its_own_type(registry: Client, scratch: Scratch) -> None:
    """An artifact is listed with its type, size, digest and artifactType."""
    subject = await scratch.pushed_image()
    manifest = artifact(artifact_type=SIGNATURE, subject=subject.descriptor)
    await scratch.push(manifest)
    [found] = await _check_listed(registry, scratch, subject.digest, manifest)
    _check_type(found, SIGNATURE)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def image_without_artifact_type(registry: Client, scratch: Scratch) -> None:
    """An image manifest without artifactType is listed with its config's media type as artifactType."""
    subject = await scratch.pushed_image()
    manifest = image(layers=1, subject=subject.descriptor)
    await scratch.push(manifest)
    [found] = await _check_listed(registry, scratch, subject.digest, manifest)
    _check_type(found, IMAGE_CONFIG)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def index_with_artifact_type(registry: Client, scratch: Scratch) -> None:
    """An index with a subject and an artifactType is listed with it."""
    subject = await scratch.pushed_image()
    manifest = index(artifact_type=BILL, subject=subject.descriptor)
    await scratch.push(manifest)
    [found] = await _check_listed(registry, scratch, subject.digest, manifest)
    _check_type(found, BILL)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def index_without_artifact_type(registry: Client, scratch: Scratch) -> None:
    """An index with a subject but no artifactType is listed without one."""
    subject = await scratch.pushed_image()
    manifest = index(subject=subject.descriptor)
    await scratch.push(manifest)
    [found] = await _check_listed(registry, scratch, subject.digest, manifest)
    _check_type(found, None)


def _check_type(found: Descriptor, artifact_type: str | None) -> None:
    if found.artifact_type != artifact_type:
        raise CheckFailed(
            f"artifactType {artifact_type} in the list of referrers", f"{found.artifact_type}\nin {found}"
        )


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def annotations_are_copied(registry: Client, scratch: Scratch) -> None:
    """The annotations of a manifest are in its descriptor."""
    subject = await scratch.pushed_image()
    annotations = {"org.example.one": "1", "org.example.snow": '☃ "quoted"'}
    manifests = [
        artifact(subject=subject.descriptor, annotations=annotations),
        index(subject=subject.descriptor, annotations=annotations),
    ]
    for manifest in manifests:
        await scratch.push(manifest)
    for found in await _check_listed(registry, scratch, subject.digest, *manifests):
        if not annotations.items() <= (found.annotations or {}).items():
            raise CheckFailed(f"the annotations {annotations}", f"{found.annotations}\nin {found}")


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def subject_that_is_missing(registry: Client, scratch: Scratch) -> None:
    """What refers to a manifest that does not exist is listed, before and after that one is pushed."""
    subject = image(layers=1)
    manifest = artifact(subject=subject.descriptor)
    await scratch.push(manifest)
    await _check_listed(registry, scratch, subject.digest, manifest)
    await scratch.push(subject)
    await _check_listed(registry, scratch, subject.digest, manifest)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def index_as_subject(registry: Client, scratch: Scratch) -> None:
    """What refers to an index is listed for the index, not for the manifests in it."""
    subject = index(image(layers=1))
    await scratch.push(subject)
    manifest = artifact(subject=subject.descriptor)
    await scratch.push(manifest)
    await _check_listed(registry, scratch, subject.digest, manifest)
    await _check_listed(registry, scratch, subject.children[0].digest)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def tagged_referrer(registry: Client, scratch: Scratch) -> None:
    """A referrer that was pushed by tag is listed, and one pushed twice is listed once."""
    subject = await scratch.pushed_image()
    manifest = artifact(subject=subject.descriptor)
    await scratch.push(manifest, "tag")
    await scratch.push(manifest)
    await _check_listed(registry, scratch, subject.digest, manifest)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def referrer_of_a_referrer(registry: Client, scratch: Scratch) -> None:
    """What refers to a referrer is listed for that one only."""
    subject = await scratch.pushed_image()
    first = artifact(subject=subject.descriptor)
    await scratch.push(first)
    second = artifact(subject=first.descriptor)
    await scratch.push(second)
    await _check_listed(registry, scratch, subject.digest, first)
    await _check_listed(registry, scratch, first.digest, second)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def another_repositorys_referrers_are_not_listed(registry: Client, scratch: Scratch) -> None:
    """What another repository has for the same subject is not listed."""
    subject = image(layers=1)
    other = scratch.another()
    await scratch.push(subject)
    await scratch.push(subject, name=other)
    manifest = artifact(subject=subject.descriptor)
    await scratch.push(manifest, name=other)
    await _check_listed(registry, scratch, subject.digest)
    await _check_listed(registry, scratch, subject.digest, manifest, name=other)


@case(section="end-12a", requires={"push", "referrers", "sha512"}, since="1.1")
async def sha512_subject(registry: Client, scratch: Scratch) -> None:
    """What refers to a manifest by its sha512 digest is listed for that digest."""
    subject = image(layers=1, algorithm="sha512")
    manifest = artifact(subject=subject.descriptor)
    await scratch.push(manifest)
    await _check_listed(registry, scratch, subject.digest, manifest)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def none_is_lost_when_pushed_at_once(registry: Client, scratch: Scratch) -> None:
    """Ten referrers of one subject pushed at the same time are all listed."""
    subject = await scratch.pushed_image()
    await scratch.empty_config()
    manifests = [artifact(subject=subject.descriptor) for _ in range(10)]
    await together(*(partial(scratch.push, manifest) for manifest in manifests))
    await _check_listed(registry, scratch, subject.digest, *manifests)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def long_list(registry: Client, scratch: Scratch) -> None:
    """A list of more than 4 MiB is given whole or in pages with a Link, each page an index, each entry once."""
    subject = await scratch.pushed_image()
    annotations = {"org.example.padding": "x" * LARGE_ANNOTATION}
    await scratch.empty_config()
    manifests = [artifact(layers=0, subject=subject.descriptor, annotations=annotations) for _ in range(MANY)]
    for first in range(0, MANY, 5):
        answers = await together(*(partial(scratch.put, manifest) for manifest in manifests[first : first + 5]))
        for answer in answers:
            expect.status(answer, 201)
    await _check_listed(registry, scratch, subject.digest, *manifests)


# ---- the filter ----


async def _filtered(registry: Client, scratch: Scratch, subject: str, artifact_type: str, *wanted: Manifest) -> None:
    answer = await registry.list_referrers(scratch.name, subject, artifact_type)
    expect.status(answer, 200)
    applied = answer.listed("OCI-Filters-Applied")
    if "artifactType" not in applied:
        everything = await registry.list_referrers(scratch.name, subject)
        same = {one.digest for one in await listed(registry, answer)} == {
            one.digest for one in await listed(registry, everything)
        }
        expect.is_true(answer, same, "OCI-Filters-Applied: artifactType, or the whole list")
        raise NotOffered.by(answer, "lists of referrers are not filtered")
    found = sorted(descriptor.digest for descriptor in await listed(registry, answer))
    expected = sorted(manifest.digest for manifest in wanted)
    expect.is_true(
        answer, found == expected, f"the referrers {', '.join(expected) or 'none'}", ", ".join(found) or "none"
    )


@case(section="end-12b", requires=WITH_REFERRERS, since="1.1")
async def filter_by_artifact_type(registry: Client, scratch: Scratch) -> None:
    """`artifactType=` gives the referrers of that type only and says so in OCI-Filters-Applied."""
    subject = await scratch.pushed_image()
    signature = artifact(artifact_type=SIGNATURE, subject=subject.descriptor)
    bill = index(artifact_type=BILL, subject=subject.descriptor)
    plain = index(subject=subject.descriptor)
    for manifest in (signature, bill, plain):
        await scratch.push(manifest)
    await _filtered(registry, scratch, subject.digest, SIGNATURE, signature)
    await _filtered(registry, scratch, subject.digest, BILL, bill)


@case(section="end-12b", requires=WITH_REFERRERS, since="1.1")
async def filter_by_config_type(registry: Client, scratch: Scratch) -> None:
    """`artifactType=` with a config's media type gives the image manifests that have it."""
    subject = await scratch.pushed_image()
    plain = image(layers=1, subject=subject.descriptor)
    signature = artifact(artifact_type=SIGNATURE, subject=subject.descriptor)
    for manifest in (plain, signature):
        await scratch.push(manifest)
    await _filtered(registry, scratch, subject.digest, IMAGE_CONFIG, plain)


@case(section="end-12b", requires=WITH_REFERRERS, since="1.1")
async def filter_that_nothing_passes(registry: Client, scratch: Scratch) -> None:
    """`artifactType=` of a type that no referrer has gives an empty index and OCI-Filters-Applied."""
    subject = await scratch.pushed_image()
    await scratch.push(artifact(artifact_type=SIGNATURE, subject=subject.descriptor))
    await _filtered(registry, scratch, subject.digest, "application/vnd.example.conformance.none")


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def no_filter_no_header(registry: Client, scratch: Scratch) -> None:
    """A list that was not filtered has no OCI-Filters-Applied."""
    subject = await scratch.pushed_image()
    await scratch.push(artifact(artifact_type=SIGNATURE, subject=subject.descriptor))
    answer = await registry.list_referrers(scratch.name, subject.digest)
    expect.status(answer, 200)
    expect.is_true(answer, answer.headers.get("oci-filters-applied") is None, "no OCI-Filters-Applied")


# ---- the fallback tag ----


async def _push_fallback(registry: Client, scratch: Scratch, subject: Manifest, *entries: Manifest) -> Manifest:
    """Push what a client that does not know the API keeps under the fallback tag."""
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{**entry.descriptor, "artifactType": SIGNATURE} for entry in entries],
    }
    manifest = Manifest(encoded(document), str(document["mediaType"]))
    expect.status(await scratch.put(manifest, fallback_tag(subject.digest)), 201)
    return manifest


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def fallback_tag_adds_nothing_twice(registry: Client, scratch: Scratch) -> None:
    """A referrer that a fallback tag names too is listed once, and the fallback index itself is not."""
    subject = await scratch.pushed_image()
    known = artifact(artifact_type=SIGNATURE, subject=subject.descriptor)
    await scratch.push(known)
    await _push_fallback(registry, scratch, subject, known)
    later = artifact(artifact_type=BILL, subject=subject.descriptor)
    await scratch.push(later)
    await _check_listed(registry, scratch, subject.digest, known, later)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def fallback_tag_before_its_referrers(registry: Client, scratch: Scratch) -> None:
    """Referrers that were pushed after a fallback tag of their subject are all listed."""
    subject = await scratch.pushed_image()
    await _push_fallback(registry, scratch, subject)
    manifests = [artifact(artifact_type=SIGNATURE, subject=subject.descriptor) for _ in range(2)]
    for manifest in manifests:
        await scratch.push(manifest)
    await _check_listed(registry, scratch, subject.digest, *manifests)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def fallback_tag_lists_referrers_only(registry: Client, scratch: Scratch) -> None:
    """A manifest that a fallback tag names, but that has no such subject, is not listed."""
    subject = await scratch.pushed_image()
    stranger = await scratch.pushed_image()
    manifest = artifact(artifact_type=SIGNATURE, subject=subject.descriptor)
    await scratch.push(manifest)
    await _push_fallback(registry, scratch, subject, manifest, stranger)
    await _check_listed(registry, scratch, subject.digest, manifest)


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def fallback_tag_can_be_pulled(registry: Client, scratch: Scratch) -> None:
    """A fallback tag remains an ordinary tag, which older clients pull."""
    subject = await scratch.pushed_image()
    manifest = artifact(artifact_type=SIGNATURE, subject=subject.descriptor)
    await scratch.push(manifest)
    pushed = await _push_fallback(registry, scratch, subject, manifest)
    answer = await registry.get_manifest(scratch.name, fallback_tag(subject.digest))
    expect.status(answer, 200)
    expect.body(answer, pushed.data)


# ---- deletes ----


@case(section="end-12a", requires={"push", "referrers", "delete-manifest"}, since="1.1")
async def deleted_referrer_is_not_listed(registry: Client, scratch: Scratch) -> None:
    """A referrer that was deleted is not listed any more, and pushed again it is."""
    subject = await scratch.pushed_image()
    manifests = [artifact(subject=subject.descriptor) for _ in range(2)]
    for manifest in manifests:
        await scratch.push(manifest)
    expect.status(await registry.delete_manifest(scratch.name, manifests[0].digest), 202)
    await _check_listed(registry, scratch, subject.digest, manifests[1])
    await scratch.push(manifests[0])
    await _check_listed(registry, scratch, subject.digest, *manifests)


@case(section="end-12a", requires={"push", "referrers", "delete-tag"}, since="1.1")
async def referrer_without_its_tag_is_listed(registry: Client, scratch: Scratch) -> None:
    """A referrer whose tag was deleted is still listed while its manifest is there."""
    subject = await scratch.pushed_image()
    manifest = artifact(subject=subject.descriptor)
    await scratch.push(manifest, "tag")
    expect.status(await registry.delete_manifest(scratch.name, "tag"), 202)
    kept = await registry.get_manifest(scratch.name, manifest.digest)
    await _check_listed(registry, scratch, subject.digest, *([manifest] if kept.status == 200 else []))


@case(section="end-12a", requires={"push", "referrers", "delete-manifest"}, since="1.1")
async def referrers_of_a_deleted_subject(registry: Client, scratch: Scratch) -> None:
    """After the subject was deleted the list is 200 and has those referrers that can still be pulled."""
    subject = await scratch.pushed_image()
    manifest = artifact(subject=subject.descriptor)
    await scratch.push(manifest)
    expect.status(await registry.delete_manifest(scratch.name, subject.digest), 202)
    kept = await registry.get_manifest(scratch.name, manifest.digest)
    await _check_listed(registry, scratch, subject.digest, *([manifest] if kept.status == 200 else []))


@case(section="end-12a", requires=WITH_REFERRERS, since="1.1")
async def media_type_without_a_field_in_the_body(registry: Client, scratch: Scratch) -> None:
    """A referrer whose body has no `mediaType` is listed with the type it was pushed with."""
    subject = await scratch.pushed_image()
    made = image(layers=1, subject=subject.descriptor)
    manifest = made.written_as(made.data.replace(f'"mediaType":"{IMAGE_MANIFEST}",'.encode(), b"", 1))
    await scratch.push_content(manifest)
    expect.status(await scratch.put(manifest), 201)
    await _check_listed(registry, scratch, subject.digest, manifest)

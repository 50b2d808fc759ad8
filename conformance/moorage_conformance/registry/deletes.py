"""end-9 and end-10: delete tags, manifests and blobs; what is gone is gone at once.

A registry may switch deletes off (400 or 405): then these cases are skipped. Not testable from outside: what a
collector removes later.
"""

from __future__ import annotations

from . import expect
from .answer import Answer
from .case import Group, NotOffered
from .client import Client
from .content import blob, image, index, unknown_digest
from .scratch import Scratch, together

__all__ = ["case"]

case = Group("deletes", "Deleting")

ROUNDS = 8


async def _check_manifest_gone(registry: Client, name: str, *references: str) -> None:
    for reference in references:
        expect.not_found(await registry.head_manifest(name, reference), why="it was deleted")
        expect.not_found(await registry.get_manifest(name, reference), why="it was deleted")


async def _check_manifest_there(registry: Client, name: str, data: bytes, *references: str) -> None:
    for reference in references:
        answer = await registry.get_manifest(name, reference)
        expect.status(answer, 200)
        expect.body(answer, data)


async def _check_blob_gone(registry: Client, name: str, digest: str) -> None:
    for _ in range(2):
        expect.not_found(await registry.head_blob(name, digest), why="it was deleted")
        expect.not_found(await registry.get_blob(name, digest), why="it was deleted")


# ---- tags ----


@case(section="end-9", requires={"push", "delete-tag"})
async def tag_is_gone_at_once(registry: Client, scratch: Scratch) -> None:
    """DELETE of a tag answers 202, and at once GET and HEAD of it answer 404."""
    await scratch.pushed_image("tag")
    expect.status(await registry.delete_manifest(scratch.name, "tag"), 202)
    await _check_manifest_gone(registry, scratch.name, "tag")


@case(section="end-9", requires={"push", "delete-tag"})
async def other_tags_remain(registry: Client, scratch: Scratch) -> None:
    """DELETE of a tag leaves the manifest's other tags."""
    manifest = await scratch.pushed_image("one", "two")
    expect.status(await registry.delete_manifest(scratch.name, "one"), 202)
    await _check_manifest_gone(registry, scratch.name, "one")
    await _check_manifest_there(registry, scratch.name, manifest.data, "two", manifest.digest)


@case(section="end-9", requires={"push", "delete-tag"})
async def deleted_tag_can_be_pushed_again(registry: Client, scratch: Scratch) -> None:
    """A deleted tag is pushed again, with the same manifest and with another one."""
    manifest = await scratch.pushed_image("tag")
    for pushed in (manifest, image(layers=1)):
        expect.status(await registry.delete_manifest(scratch.name, "tag"), 202)
        await scratch.push(pushed, "tag")
        await _check_manifest_there(registry, scratch.name, pushed.data, "tag")


@case(section="end-9", requires={"push", "delete-tag"})
async def missing_tag(registry: Client, scratch: Scratch) -> None:
    """DELETE of a tag that does not exist answers 404, or 202."""
    await scratch.pushed_image("tag")
    expect.status(await registry.delete_manifest(scratch.name, "missing"), 404, 202)


# ---- manifests ----


@case(section="end-9", requires={"push", "delete-manifest"})
async def manifest_is_gone_at_once(registry: Client, scratch: Scratch) -> None:
    """DELETE of a manifest by digest answers 202, and at once GET and HEAD of it answer 404."""
    manifest = await scratch.pushed_image()
    expect.status(await registry.delete_manifest(scratch.name, manifest.digest), 202)
    await _check_manifest_gone(registry, scratch.name, manifest.digest)


@case(section="end-9", requires={"push", "delete-manifest"}, since="1.1")
async def manifest_takes_its_tags_along(registry: Client, scratch: Scratch) -> None:
    """DELETE of a manifest by digest removes every tag that points to it, also from the list."""
    manifest = await scratch.pushed_image("one", "two", "three")
    other = await scratch.pushed_image("other")
    expect.status(await registry.delete_manifest(scratch.name, manifest.digest), 202)
    await _check_manifest_gone(registry, scratch.name, "one", "two", "three", manifest.digest)
    await _check_manifest_there(registry, scratch.name, other.data, "other")
    answer = await registry.list_tags(scratch.name)
    tags = expect.tags(answer, scratch.name)
    expect.is_true(answer, tags == ["other"], "only the tag of the other manifest", ", ".join(tags))


@case(section="end-9", requires={"push", "delete-manifest"})
async def tag_that_has_moved_remains(registry: Client, scratch: Scratch) -> None:
    """DELETE of a manifest by digest leaves a tag that pointed to it once and has moved since."""
    before = await scratch.pushed_image("tag")
    after = await scratch.pushed_image("tag")
    expect.status(await registry.delete_manifest(scratch.name, before.digest), 202)
    await _check_manifest_gone(registry, scratch.name, before.digest)
    await _check_manifest_there(registry, scratch.name, after.data, "tag", after.digest)


@case(section="end-9", requires={"push", "delete-manifest"})
async def tag_that_has_come_back_is_removed(registry: Client, scratch: Scratch) -> None:
    """DELETE of a manifest by digest removes a tag that has moved away from it and back."""
    first, second = image(layers=1), image(layers=1)
    for manifest in (first, second, first):
        await scratch.push(manifest, "tag")
    expect.status(await registry.delete_manifest(scratch.name, first.digest), 202)
    await _check_manifest_gone(registry, scratch.name, "tag", first.digest)
    await _check_manifest_there(registry, scratch.name, second.data, second.digest)


@case(section="end-9", requires={"push", "delete-manifest"})
async def deleted_manifest_can_be_pushed_again(registry: Client, scratch: Scratch) -> None:
    """A deleted manifest is pushed again and is there; the tags that it lost do not come back."""
    manifest = await scratch.pushed_image("tag")
    expect.status(await registry.delete_manifest(scratch.name, manifest.digest), 202)
    await scratch.push(manifest)
    await _check_manifest_there(registry, scratch.name, manifest.data, manifest.digest)
    await _check_manifest_gone(registry, scratch.name, "tag")


@case(section="end-9", requires={"push", "delete-manifest"})
async def missing_manifest_is_404(registry: Client, scratch: Scratch) -> None:
    """DELETE of a manifest that the repository does not have answers 404, also the second time."""
    manifest = await scratch.pushed_image()
    expect.not_found(await registry.delete_manifest(scratch.name, unknown_digest()))
    expect.status(await registry.delete_manifest(scratch.name, manifest.digest), 202)
    expect.not_found(await registry.delete_manifest(scratch.name, manifest.digest))


@case(section="end-9", requires={"push", "delete-manifest"})
async def manifest_of_an_unknown_repository_is_404(registry: Client, scratch: Scratch) -> None:
    """DELETE of a manifest in a repository that does not exist answers 404."""
    expect.not_found(await registry.delete_manifest(scratch.name, unknown_digest()))


@case(section="end-9", requires={"push", "delete-manifest"})
async def manifest_of_another_repository_remains(registry: Client, scratch: Scratch) -> None:
    """DELETE of a manifest in one repository leaves it in another, and is 404 where it is not."""
    manifest, other = image(layers=1), scratch.another()
    await scratch.push(manifest, "tag")
    await scratch.push(manifest, "tag", name=other)
    expect.status(await registry.delete_manifest(scratch.name, manifest.digest), 202)
    expect.not_found(await registry.delete_manifest(scratch.name, manifest.digest), why="only another one has it")
    await _check_manifest_there(registry, other, manifest.data, "tag", manifest.digest)


@case(section="end-9", requires={"push", "delete-manifest"})
async def index_leaves_its_children(registry: Client, scratch: Scratch) -> None:
    """DELETE of an index by digest leaves the manifests in it."""
    manifest = index(image(layers=1), image(layers=1))
    await scratch.push(manifest, "tag")
    expect.status(await registry.delete_manifest(scratch.name, manifest.digest), 202)
    await _check_manifest_gone(registry, scratch.name, manifest.digest)
    for child in manifest.children:
        await _check_manifest_there(registry, scratch.name, child.data, child.digest)


@case(section="end-9", requires={"push", "delete-manifest", "sha512"})
async def manifest_by_sha512(registry: Client, scratch: Scratch) -> None:
    """DELETE of a manifest by its sha512 digest answers 202, and it is gone at once."""
    manifest = image(layers=1, algorithm="sha512")
    await scratch.push_content(manifest)
    pushed = await scratch.put(manifest)
    if pushed.status in {400, 404}:
        raise NotOffered.by(pushed, "manifests are not accepted by sha512")
    expect.status(pushed, 201)
    expect.status(await registry.delete_manifest(scratch.name, manifest.digest), 202)
    await _check_manifest_gone(registry, scratch.name, manifest.digest)


@case(section="end-9")
async def malformed_reference_is_refused(registry: Client, scratch: Scratch) -> None:
    """DELETE of a manifest by something that is neither tag nor digest is refused as the client's mistake."""
    await scratch.pushed_image("tag")
    for reference in ("sha256:baddigeststring", "a:b"):
        expect.status(await registry.delete_manifest(scratch.name, reference), 400, 404, 405, why=reference)


# ---- blobs ----


@case(section="end-10", requires={"push", "delete-blob"})
async def blob_is_gone_at_once(registry: Client, scratch: Scratch) -> None:
    """DELETE of a blob answers 202, and at once GET and HEAD of it answer 404."""
    digest = await scratch.push_blob(blob())
    expect.status(await registry.delete_blob(scratch.name, digest), 202)
    await _check_blob_gone(registry, scratch.name, digest)


@case(section="end-10", requires={"push", "delete-blob"})
async def missing_blob_is_404(registry: Client, scratch: Scratch) -> None:
    """DELETE of a blob that the repository does not have answers 404, also the second time."""
    digest = await scratch.push_blob(blob())
    expect.not_found(await registry.delete_blob(scratch.name, unknown_digest()))
    expect.status(await registry.delete_blob(scratch.name, digest), 202)
    expect.not_found(await registry.delete_blob(scratch.name, digest))


@case(section="end-10", requires={"push", "delete-blob"})
async def blob_of_an_unknown_repository_is_404(registry: Client, scratch: Scratch) -> None:
    """DELETE of a blob in a repository that does not exist answers 404."""
    expect.not_found(await registry.delete_blob(scratch.name, unknown_digest()))


@case(section="end-10", requires={"push", "delete-blob"})
async def blob_of_another_repository_remains(registry: Client, scratch: Scratch) -> None:
    """DELETE of a blob in one repository leaves it in another that it was pushed to."""
    content, other = blob(), scratch.another()
    await scratch.push_blob(content)
    await scratch.push_blob(content, other)
    expect.status(await registry.delete_blob(scratch.name, content.digest), 202)
    await _check_blob_gone(registry, scratch.name, content.digest)
    answer = await registry.get_blob(other, content.digest)
    expect.status(answer, 200)
    expect.body(answer, content.data)


async def _mounted(registry: Client, scratch: Scratch, data: bytes, digest: str, source: str) -> None:
    answer = await registry.start_upload(scratch.name, ("mount", digest), ("from", source))
    if answer.status != 201:
        raise NotOffered.by(answer, "blobs are not mounted")


@case(section="end-10", requires={"push", "delete-blob"})
async def mounted_blob_survives_its_source(registry: Client, scratch: Scratch) -> None:
    """A blob that was mounted stays when it is deleted where it came from."""
    content, source = blob(), scratch.another()
    await scratch.push_blob(content, source)
    await _mounted(registry, scratch, content.data, content.digest, source)
    expect.status(await registry.delete_blob(source, content.digest), 202)
    await _check_blob_gone(registry, source, content.digest)
    answer = await registry.get_blob(scratch.name, content.digest)
    expect.status(answer, 200)
    expect.body(answer, content.data)


@case(section="end-10", requires={"push", "delete-blob"})
async def source_survives_its_mounted_blob(registry: Client, scratch: Scratch) -> None:
    """A blob stays where it came from when it is deleted where it was mounted, and there it is gone."""
    content, source = blob(), scratch.another()
    await scratch.push_blob(content, source)
    await _mounted(registry, scratch, content.data, content.digest, source)
    expect.status(await registry.delete_blob(scratch.name, content.digest), 202)
    await _check_blob_gone(registry, scratch.name, content.digest)
    answer = await registry.get_blob(source, content.digest)
    expect.status(answer, 200)
    expect.body(answer, content.data)


@case(section="end-10", requires={"push", "delete-blob"})
async def deleted_blob_can_be_pushed_again(registry: Client, scratch: Scratch) -> None:
    """A deleted blob is pushed again and is there."""
    content = blob()
    for _ in range(2):
        await scratch.push_blob(content)
        answer = await registry.get_blob(scratch.name, content.digest)
        expect.status(answer, 200)
        expect.body(answer, content.data)
        expect.status(await registry.delete_blob(scratch.name, content.digest), 202)
        await _check_blob_gone(registry, scratch.name, content.digest)


@case(section="end-10", requires={"push", "delete-blob", "sha512"})
async def blob_by_sha512(registry: Client, scratch: Scratch) -> None:
    """DELETE of a blob by its sha512 digest answers 202, and it is gone at once."""
    digest = await scratch.push_blob(blob(algorithm="sha512"))
    expect.status(await registry.delete_blob(scratch.name, digest), 202)
    await _check_blob_gone(registry, scratch.name, digest)


@case(section="end-10")
async def malformed_digest_of_a_blob_is_refused(registry: Client, scratch: Scratch) -> None:
    """DELETE of a blob by something that is no digest is refused as the client's mistake."""
    await scratch.push_blob(blob())
    expect.status(await registry.delete_blob(scratch.name, "sha256:baddigeststring"), 400, 404, 405)


# ---- at the same time ----


@case(section="end-9", requires={"push", "delete-manifest"})
async def manifest_deleted_during_its_push(registry: Client, scratch: Scratch) -> None:
    """While a manifest is pushed and deleted at once nothing fails, and afterwards it is there whole, or gone."""
    manifest = await scratch.pushed_image("tag")
    answers: list[Answer] = []

    async def push() -> None:
        answers.extend([await scratch.put(manifest, "tag") for _ in range(ROUNDS)])

    async def delete() -> None:
        answers.extend([await registry.delete_manifest(scratch.name, manifest.digest) for _ in range(ROUNDS)])

    await together(push, delete)
    for answer in answers:
        expect.status(answer, 201, 202, 404)
    for reference in (manifest.digest, "tag"):
        answer = await registry.get_manifest(scratch.name, reference)
        expect.status(answer, 200, 404)
        if answer.status == 200:
            expect.body(answer, manifest.data)
    # Whatever the outcome of the race was, a push with nothing beside it must hold.
    await scratch.push(manifest, "tag")
    await _check_manifest_there(registry, scratch.name, manifest.data, "tag", manifest.digest)


@case(section="end-10", requires={"push", "delete-blob"})
async def blob_deleted_during_its_push(registry: Client, scratch: Scratch) -> None:
    """While a blob is pushed and deleted at once nothing fails, and afterwards it is there whole, or gone."""
    content = blob(50_000)
    answers: list[Answer] = []

    async def push() -> None:
        for _ in range(ROUNDS):
            session = await scratch.session()
            answers.append(await registry.finish_upload(session.location, content.digest, content.data))

    async def delete() -> None:
        answers.extend([await registry.delete_blob(scratch.name, content.digest) for _ in range(ROUNDS)])

    await together(push, delete)
    for answer in answers:
        expect.status(answer, 201, 202, 404)
    answer = await registry.get_blob(scratch.name, content.digest)
    expect.status(answer, 200, 404)
    if answer.status == 200:
        expect.body(answer, content.data)
    await scratch.push_blob(content)
    answer = await registry.get_blob(scratch.name, content.digest)
    expect.status(answer, 200)
    expect.body(answer, content.data)

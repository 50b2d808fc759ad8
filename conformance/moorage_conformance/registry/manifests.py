"""end-3 and end-7: push and pull manifests of every kind, with tags, subjects, conditions and limits.

Not testable from outside: that a push survives a crash at any step, and that a collector leaves a push alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import partial

from . import expect
from .answer import Answer, CheckFailed
from .case import Group, NotOffered
from .client import Client
from .content import (
    EMPTY_JSON,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    PLAIN_LAYER,
    Manifest,
    artifact,
    blob,
    digest_of,
    docker_image,
    document_of,
    encoded,
    image,
    index,
    large_image,
    unique,
    unknown_digest,
)
from .scratch import Scratch, together

__all__ = ["case"]

case = Group("manifests", "Pushing and pulling manifests")

LARGE = 3_900_000
LARGEST_PROMISED = 4_000_000
TOO_LARGE = 16 * 2**20
MANY_TAGS = 10
ANY_CASE = {"one": 1, "Nested": {"list": [1, 2.5, None, True]}, "org.example.unknown": "é ☃"}


async def _check_pulled(registry: Client, scratch: Scratch, manifest: Manifest, *references: str) -> None:
    for reference in references:
        answer = await registry.get_manifest(scratch.name, reference)
        expect.status(answer, 200)
        expect.body(answer, manifest.data)
        expect.media_type(answer, manifest.media_type)
        expect.digest_header(answer, manifest.digest)
        head = await registry.head_manifest(scratch.name, reference)
        expect.status(head, 200)
        expect.no_body(head)
        expect.media_type(head, manifest.media_type)
        expect.digest_header(head, manifest.digest)
        if head.header("Content-Length") is not None:
            expect.length(head, len(manifest.data))


async def _check_created(registry: Client, answer: Answer, manifest: Manifest) -> None:
    where = expect.created(answer)
    expect.digest_header(answer, manifest.digest)
    pulled = await registry.send("GET", where, headers={"Accept": manifest.media_type})
    expect.status(pulled, 200)
    expect.body(pulled, manifest.data)
    expect.media_type(pulled, manifest.media_type)


async def _round_trip(registry: Client, scratch: Scratch, manifest: Manifest) -> None:
    """Push a manifest by digest and by tag, and pull it in every way."""
    await scratch.push_content(manifest)
    for reference in (manifest.digest, "tag"):
        await _check_created(registry, await scratch.put(manifest, reference), manifest)
    await _check_pulled(registry, scratch, manifest, manifest.digest, "tag")


# ---- kinds of content ----


@case(section="end-7a")
async def image_manifest(registry: Client, scratch: Scratch) -> None:
    """An image is pushed with 201 and a Location, by digest and by tag, and pulled byte for byte with its type."""
    await _round_trip(registry, scratch, image())


@case(section="end-7a")
async def image_with_uncompressed_layers(registry: Client, scratch: Scratch) -> None:
    """An image whose layers are plain tar archives is kept."""
    await _round_trip(registry, scratch, image(layer_type=PLAIN_LAYER))


@case(section="end-7a")
async def image_without_layers(registry: Client, scratch: Scratch) -> None:
    """An image without layers is kept."""
    await _round_trip(registry, scratch, image(layers=0))


@case(section="end-7a")
async def image_index(registry: Client, scratch: Scratch) -> None:
    """An index of two platforms is kept."""
    await _round_trip(registry, scratch, index(image(), image()))


@case(section="end-7a")
async def nested_index(registry: Client, scratch: Scratch) -> None:
    """An index of indexes is kept, and everything in it stays reachable by digest."""
    inner = [index(image(), image()) for _ in range(2)]
    await _round_trip(registry, scratch, index(*inner))
    for one in inner:
        await _check_pulled(registry, scratch, one, one.digest, *(child.digest for child in one.children[:0]))
        for child in one.children:
            await _check_pulled(registry, scratch, child, child.digest)


@case(section="end-7a")
async def empty_index(registry: Client, scratch: Scratch) -> None:
    """An index without manifests is kept."""
    await _round_trip(registry, scratch, index())


@case(section="end-7a", since="1.1")
async def artifact_manifest(registry: Client, scratch: Scratch) -> None:
    """An artifact with types of its own is kept."""
    await _round_trip(registry, scratch, artifact())


@case(section="end-7a", since="1.1")
async def artifact_index(registry: Client, scratch: Scratch) -> None:
    """An index of artifacts with an artifactType is kept."""
    made = index(artifact(), artifact(), artifact_type="application/vnd.example.conformance.set")
    await _round_trip(registry, scratch, made)


@case(section="end-7a", since="1.1")
async def artifact_without_layers(registry: Client, scratch: Scratch) -> None:
    """An artifact whose only layer is the empty blob, the same as its config, is kept."""
    await _round_trip(registry, scratch, artifact(layers=0))


@case(section="end-7a", since="1.1")
async def data_in_descriptors(registry: Client, scratch: Scratch) -> None:
    """An image whose descriptors carry their content in `data` is kept."""
    await _round_trip(registry, scratch, image(inline=True))


@case(section="end-7a")
async def nondistributable_layers(registry: Client, scratch: Scratch) -> None:
    """An image whose non-distributable layers were never pushed is accepted and kept."""
    await _round_trip(registry, scratch, image(foreign=True))


@case(section="end-7a")
async def unknown_fields(registry: Client, scratch: Scratch) -> None:
    """Unknown fields in an image, its config, its descriptors and an index are kept."""
    child = image(extra=ANY_CASE)
    await _round_trip(registry, scratch, index(child, extra=ANY_CASE))
    await _check_pulled(registry, scratch, child, child.digest)


@case(section="end-7a")
async def unusual_spelling(registry: Client, scratch: Scratch) -> None:
    """A manifest with blanks, escapes and a newline at its end is kept byte for byte."""
    plain = image(annotations={"org.example.title": "snow"})
    spelled = (
        plain.data.replace(b'"snow"', b'"\\u2603 \\/ \xe2\x98\x83"').replace(b'":', b'" :\t').replace(b",", b" ,\r\n ")
    )
    await _round_trip(registry, scratch, plain.written_as(b"\n " + spelled + b" \n\n"))


@case(section="end-7a")
async def docker_manifest(registry: Client, scratch: Scratch) -> None:
    """An image of Docker's older kind is kept with its type, or refused."""
    manifest = docker_image()
    await scratch.push_content(manifest)
    answer = await scratch.put(manifest, "tag")
    if 400 <= answer.status < 500:
        raise NotOffered.by(answer, "Docker's own media types are not accepted")
    await _check_created(registry, answer, manifest)
    await _check_pulled(registry, scratch, manifest, "tag")


@case(section="end-7a")
async def unknown_media_type(registry: Client, scratch: Scratch) -> None:
    """A manifest of a type that nobody knows is kept with its type, or refused."""
    media_type = "application/vnd.example.conformance.manifest.v1+json"
    body = encoded({"schemaVersion": 2, "mediaType": media_type, "unique": unique()})
    manifest = Manifest(body, media_type)
    await scratch.pushed_image()
    answer = await scratch.put(manifest, "tag")
    if 400 <= answer.status < 500:
        raise NotOffered.by(answer, "manifests of unknown types are not accepted")
    expect.created(answer)
    pulled = await registry.get_manifest(scratch.name, "tag", {"Accept": media_type})
    expect.status(pulled, 200)
    expect.body(pulled, body)
    expect.media_type(pulled, media_type)


# ---- push and pull ----


@case(section="end-7a")
async def push_of_what_is_there_already(registry: Client, scratch: Scratch) -> None:
    """The same manifest is pushed again with 201."""
    manifest = await scratch.pushed_image("tag")
    await _check_created(registry, await scratch.put(manifest, "tag"), manifest)
    await _check_created(registry, await scratch.put(manifest), manifest)


@case(section="end-7a")
async def push_without_a_length(registry: Client, scratch: Scratch) -> None:
    """A manifest sent in chunked transfer coding, without Content-Length, is kept."""
    manifest = image()
    await scratch.push_content(manifest)
    pieces = [manifest.data[:10], manifest.data[10:]]
    answer = await registry.put_manifest(scratch.name, "tag", pieces, manifest.media_type)
    await _check_created(registry, answer, manifest)
    await _check_pulled(registry, scratch, manifest, "tag", manifest.digest)


@case(section="end-7a")
async def tag_moves(registry: Client, scratch: Scratch) -> None:
    """A push to an existing tag moves it; what it named before stays reachable by digest."""
    before = await scratch.pushed_image("tag")
    after = await scratch.pushed_image("tag")
    await _check_pulled(registry, scratch, after, "tag", after.digest)
    await _check_pulled(registry, scratch, before, before.digest)


@case(section="end-7a")
async def push_by_tag_is_pulled_by_digest(registry: Client, scratch: Scratch) -> None:
    """A manifest that was pushed by tag only is pulled by digest."""
    manifest = await scratch.pushed_image("tag")
    await _check_pulled(registry, scratch, manifest, manifest.digest)


@case(section="end-3", since="dev")
async def get_names_the_digest(registry: Client, scratch: Scratch) -> None:
    """GET of a manifest by tag and by digest carries Docker-Content-Digest."""
    manifest = await scratch.pushed_image("tag")
    for reference in ("tag", manifest.digest):
        answer = await registry.get_manifest(scratch.name, reference)
        expect.status(answer, 200)
        expect.digest_header(answer, manifest.digest, required=True)


@case(section="end-3", since="dev")
async def head_names_the_digest(registry: Client, scratch: Scratch) -> None:
    """HEAD of a manifest by tag and by digest carries Docker-Content-Digest."""
    manifest = await scratch.pushed_image("tag")
    for reference in ("tag", manifest.digest):
        answer = await registry.head_manifest(scratch.name, reference)
        expect.status(answer, 200)
        expect.digest_header(answer, manifest.digest, required=True)


@case(section="end-3", since="dev")
async def head_has_the_length(registry: Client, scratch: Scratch) -> None:
    """HEAD of a manifest by tag and by digest carries Content-Length with its size, and no body."""
    manifest = await scratch.pushed_image("tag")
    for reference in ("tag", manifest.digest):
        answer = await registry.head_manifest(scratch.name, reference)
        expect.status(answer, 200)
        expect.length(answer, len(manifest.data))
        expect.no_body(answer)


@case(section="end-3")
async def content_type_has_no_parameters(registry: Client, scratch: Scratch) -> None:
    """The Content-Type of a manifest is the one it was pushed with, without `charset` or other parameters."""
    manifest = await scratch.pushed_image("tag")
    for answer in (await registry.get_manifest(scratch.name, "tag"), await registry.head_manifest(scratch.name, "tag")):
        expect.status(answer, 200)
        expect.media_type(answer, manifest.media_type)


@case(section="end-3")
async def missing_manifest_is_404(registry: Client, scratch: Scratch) -> None:
    """GET and HEAD of a tag or digest that the repository does not have answer 404."""
    await scratch.pushed_image("tag")
    for reference in ("missing", unknown_digest()):
        expect.not_found(await registry.get_manifest(scratch.name, reference))
        head = await registry.head_manifest(scratch.name, reference)
        expect.not_found(head)
        expect.no_body(head)


@case(section="end-3", requires=())
async def manifest_in_an_unknown_repository_is_404(registry: Client, scratch: Scratch) -> None:
    """GET and HEAD of a manifest in a repository that does not exist answer 404."""
    for reference in ("missing", unknown_digest()):
        expect.not_found(await registry.get_manifest(scratch.name, reference))
        expect.not_found(await registry.head_manifest(scratch.name, reference))


@case(section="end-3", since="1.1")
async def another_repositorys_manifest_is_404(registry: Client, scratch: Scratch) -> None:
    """GET and HEAD of a manifest that only another repository has answer 404, by tag and by digest."""
    elsewhere = await scratch.pushed_image("tag", name=scratch.another())
    await scratch.pushed_image("own")
    for reference in ("tag", elsewhere.digest):
        expect.not_found(await registry.get_manifest(scratch.name, reference), why="only another repository has it")
        expect.not_found(await registry.head_manifest(scratch.name, reference), why="only another repository has it")


@case(section="end-3", since="dev")
async def namespace_of_a_proxy_may_be_sent(registry: Client, scratch: Scratch) -> None:
    """A pull with `ns=` is answered; OCI-Namespace, if it comes, repeats the value."""
    manifest = await scratch.pushed_image("tag")
    url = f"/v2/{scratch.name}/manifests/tag?ns=registry.example"
    answer = await registry.send("GET", url, headers={"Accept": manifest.media_type})
    if answer.status in {400, 403, 404, 502}:
        raise NotOffered.by(answer, "ns= selects an upstream here, and this one is not known")
    expect.status(answer, 200)
    expect.body(answer, manifest.data)
    if answer.headers.get("oci-namespace") is not None:
        expect.header(answer, "OCI-Namespace", "registry.example")


@case(section="end-3")
async def malformed_digest_on_pull_is_400_or_404(registry: Client, scratch: Scratch) -> None:
    """GET of a manifest by something that is neither tag nor digest answers 400 or 404."""
    await scratch.pushed_image("tag")
    for reference in ("sha256:baddigeststring", f"sha256:{'A' * 64}", "a:b"):
        expect.status(await registry.get_manifest(scratch.name, reference), 400, 404)


# ---- Accept ----


async def _check_accept(registry: Client, scratch: Scratch, headers: list[tuple[str, str]]) -> None:
    for manifest in (image(layers=1), index(image(layers=1))):
        tag = unique()
        await scratch.push(manifest, tag)
        for reference in (tag, manifest.digest):
            url = f"/v2/{scratch.name}/manifests/{reference}"
            without = () if headers else ("accept",)
            answer = await registry.send("GET", url, headers=headers, without=without)
            expect.status(answer, 200, why=", ".join(value for _, value in headers) or "no Accept")
            expect.body(answer, manifest.data)
            expect.media_type(answer, manifest.media_type)


@case(section="end-3")
async def no_accept_at_all(registry: Client, scratch: Scratch) -> None:
    """A pull without Accept gets the manifest."""
    await _check_accept(registry, scratch, [])


@case(section="end-3")
async def accept_anything(registry: Client, scratch: Scratch) -> None:
    """A pull with `Accept: */*` gets the manifest."""
    await _check_accept(registry, scratch, [("Accept", "*/*")])


@case(section="end-3")
async def accept_a_family_of_types(registry: Client, scratch: Scratch) -> None:
    """A pull with `Accept: application/*` gets the manifest."""
    await _check_accept(registry, scratch, [("Accept", "application/*;q=0.5")])


@case(section="end-3")
async def accept_on_two_lines(registry: Client, scratch: Scratch) -> None:
    """A pull with two Accept lines gets a manifest of either type."""
    await _check_accept(registry, scratch, [("Accept", IMAGE_INDEX), ("Accept", IMAGE_MANIFEST)])


@case(section="end-3")
async def accept_with_weights(registry: Client, scratch: Scratch) -> None:
    """A pull with weights behind the types gets a manifest of either type."""
    await _check_accept(registry, scratch, [("Accept", f"{IMAGE_INDEX};q=0.9, {IMAGE_MANIFEST};q=0.1")])


@case(section="end-3")
async def accept_of_another_type(registry: Client, scratch: Scratch) -> None:
    """A pull that does not accept the manifest's type gets it nevertheless, or 404 or 406, but nothing else."""
    manifest = await scratch.pushed_image("tag")
    answer = await registry.get_manifest(scratch.name, "tag", {"Accept": IMAGE_INDEX})
    expect.status(answer, 200, 404, 406)
    if answer.status == 200:
        expect.body(answer, manifest.data)


# ---- types ----


@case(section="end-7a", since="1.1")
async def parameters_of_content_type_are_ignored(registry: Client, scratch: Scratch) -> None:
    """A push with parameters behind the media type is accepted, and they are not given back."""
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    media_type = f"{manifest.media_type}; charset=utf-8"
    answer = await registry.put_manifest(scratch.name, "tag", manifest.data, media_type)
    if answer.status in {400, 415}:
        raise NotOffered.by(answer, "a Content-Type with parameters is refused")
    expect.status(answer, 201)
    await _check_pulled(registry, scratch, manifest, "tag")


async def _check_invalid(registry: Client, scratch: Scratch, body: bytes, media_type: str, otherwise: str) -> None:
    answer = await registry.put_manifest(scratch.name, "tag", body, media_type)
    if answer.status == 201:
        raise NotOffered.by(answer, otherwise)
    expect.client_error(answer)
    expect.not_found(await registry.get_manifest(scratch.name, "tag"), why="its push was refused")
    expect.not_found(await registry.get_manifest(scratch.name, digest_of(body)), why="its push was refused")


@case(section="end-7a")
async def media_type_that_contradicts_the_body_is_refused(registry: Client, scratch: Scratch) -> None:
    """A manifest whose `mediaType` is not its Content-Type is refused, and nothing of it is kept."""
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    await _check_invalid(registry, scratch, manifest.data, IMAGE_INDEX, "mediaType is not compared with Content-Type")


@case(section="end-7a")
async def body_that_is_no_json_is_refused(registry: Client, scratch: Scratch) -> None:
    """A manifest that is not JSON is refused, and nothing of it is kept."""
    await scratch.pushed_image("other")
    body = b'{"schemaVersion": 2, ' + unique().encode()
    await _check_invalid(registry, scratch, body, IMAGE_MANIFEST, "manifests are not looked into")


@case(section="end-7a")
async def body_that_is_no_object_is_refused(registry: Client, scratch: Scratch) -> None:
    """A manifest that is JSON but no object is refused, and nothing of it is kept."""
    await scratch.pushed_image("other")
    body = encoded({"one": unique()}).join([b"[", b"]"])
    await _check_invalid(registry, scratch, body, IMAGE_MANIFEST, "manifests are not looked into")


@case(section="end-7a")
async def empty_body_is_refused(registry: Client, scratch: Scratch) -> None:
    """A manifest of zero bytes is refused."""
    await scratch.pushed_image("other")
    await _check_invalid(registry, scratch, b"", IMAGE_MANIFEST, "manifests are not looked into")


# ---- sizes ----


@case(section="end-7a", since="1.1")
async def large_manifest(registry: Client, scratch: Scratch) -> None:
    """A manifest of 3.9 MB is accepted and kept."""
    await _check_large(registry, scratch, LARGE, length=True)


@case(section="end-7a", since="1.1")
async def large_manifest_without_a_length(registry: Client, scratch: Scratch) -> None:
    """A manifest of 3.9 MB in chunked transfer coding is accepted and kept."""
    await _check_large(registry, scratch, LARGE, length=False)


@case(section="end-7a", since="1.1")
async def manifest_of_four_megabytes(registry: Client, scratch: Scratch) -> None:
    """A manifest of 4,000,000 bytes, the least that a limit should allow, is accepted and kept."""
    await _check_large(registry, scratch, LARGEST_PROMISED, length=True)


async def _check_large(registry: Client, scratch: Scratch, size: int, *, length: bool) -> None:
    manifest = large_image(size)
    await scratch.push_content(manifest)
    body = manifest.data if length else [manifest.data[at : at + 65536] for at in range(0, size, 65536)]
    answer = await registry.put_manifest(scratch.name, "tag", body, manifest.media_type)
    if answer.status == 413:
        raise NotOffered.by(answer, f"a manifest of {size} bytes is too large here; 4 MB should be accepted")
    await _check_created(registry, answer, manifest)
    await _check_pulled(registry, scratch, manifest, "tag", manifest.digest)


@case(section="end-7a", since="1.1")
async def manifest_that_is_too_large_is_413(registry: Client, scratch: Scratch) -> None:
    """A manifest of 16 MiB is refused with 413, and nothing of it is kept."""
    await _check_too_large(registry, scratch, length=True)


@case(section="end-7a", since="1.1")
async def manifest_that_is_too_large_without_a_length_is_413(registry: Client, scratch: Scratch) -> None:
    """A manifest of 16 MiB in chunked transfer coding is refused with 413, and nothing of it is kept."""
    await _check_too_large(registry, scratch, length=False)


async def _check_too_large(registry: Client, scratch: Scratch, *, length: bool) -> None:
    manifest = large_image(TOO_LARGE)
    await scratch.push_content(manifest)
    body = manifest.data if length else [manifest.data[at : at + 65536] for at in range(0, TOO_LARGE, 65536)]
    answer = await registry.put_manifest(scratch.name, "tag", body, manifest.media_type)
    if answer.status == 201:
        raise NotOffered.by(answer, "manifests of 16 MiB are accepted; there should be a limit")
    if answer.status == 400:
        raise NotOffered.by(answer, "a manifest that is too large is refused, but not with 413")
    expect.status(answer, 413)
    expect.not_found(await registry.get_manifest(scratch.name, "tag"), why="its push was refused")


# ---- digests ----


@case(section="end-7a")
async def wrong_digest_is_400(registry: Client, scratch: Scratch) -> None:
    """A manifest pushed by a digest that is not its own answers 400, and nothing of it is kept."""
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    changed = manifest.data + b"  "
    answer = await registry.put_manifest(scratch.name, manifest.digest, changed, manifest.media_type)
    expect.status(answer, 400)
    for digest in (manifest.digest, digest_of(changed)):
        expect.not_found(await registry.get_manifest(scratch.name, digest), why="its push was refused")


@case(section="end-7a")
async def malformed_digest_is_400(registry: Client, scratch: Scratch) -> None:
    """A manifest pushed by something that is no digest answers 400, and GET of that 400 or 404."""
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    for reference in ("sha256:baddigeststring", f"sha256:{manifest.digest.upper()[7:]}"):
        expect.status(await scratch.put(manifest, reference), 400, why=reference)
        expect.status(await registry.get_manifest(scratch.name, reference), 400, 404)


@case(section="end-7a", since="dev")
async def unsupported_algorithm_is_400(registry: Client, scratch: Scratch) -> None:
    """A manifest pushed by a digest of an algorithm that nobody supports answers 400."""
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    expect.status(await scratch.put(manifest, f"conformance+unknown:{'0' * 64}"), 400)


async def _push_sha512(scratch: Scratch, manifest: Manifest) -> Answer:
    """Push by sha512 what is below a manifest, and itself."""
    for one in manifest.blobs:
        await scratch.push_blob(one)
    for child in manifest.children:
        await _push_sha512(scratch, child)
    answer = await scratch.put(manifest)
    if answer.status in {400, 404}:
        raise NotOffered.by(answer, "manifests are not accepted by sha512")
    return answer


@case(section="end-7a", requires={"push", "sha512"})
async def image_by_sha512(registry: Client, scratch: Scratch) -> None:
    """An image that uses sha512 throughout is pushed and pulled by its sha512 digest."""
    manifest = image(algorithm="sha512")
    await _check_created(registry, await _push_sha512(scratch, manifest), manifest)
    await _check_pulled(registry, scratch, manifest, manifest.digest)


@case(section="end-7a", requires={"push", "sha512"})
async def index_by_sha512(registry: Client, scratch: Scratch) -> None:
    """An index that uses sha512 throughout is pushed and pulled by its sha512 digest."""
    manifest = index(image(algorithm="sha512"), image(algorithm="sha512"), algorithm="sha512")
    await _check_created(registry, await _push_sha512(scratch, manifest), manifest)
    await _check_pulled(
        registry, scratch, manifest, manifest.digest, *(child.digest for child in manifest.children[:0])
    )
    for child in manifest.children:
        await _check_pulled(registry, scratch, child, child.digest)


@case(section="end-7a", requires={"push", "sha512"})
async def wrong_sha512_digest_is_400(registry: Client, scratch: Scratch) -> None:
    """A manifest pushed by a sha512 digest that is not its own answers 400."""
    manifest = image(layers=1, algorithm="sha512")
    await scratch.push_content(manifest)
    answer = await registry.put_manifest(scratch.name, manifest.digest, manifest.data + b" ", manifest.media_type)
    expect.status(answer, 400)
    expect.not_found(await registry.get_manifest(scratch.name, manifest.digest), why="its push was refused")


# ---- several tags at once ----


async def _push_with_tags(scratch: Scratch, manifest: Manifest, tags: Sequence[str]) -> Answer:
    answer = await scratch.put(manifest, tags=tags)
    if answer.status == 201 and not answer.listed("OCI-Tag"):
        raise NotOffered.by(answer, "tag= is not supported: there is no OCI-Tag")
    if answer.status in {414, 431}:
        raise NotOffered.by(answer, f"{len(tags)} tags are too many here")
    return answer


async def _check_tags(registry: Client, scratch: Scratch, manifest: Manifest, tags: Sequence[str]) -> None:
    answer = await _push_with_tags(scratch, manifest, tags)
    await _check_created(registry, answer, manifest)
    found = answer.listed("OCI-Tag")
    expect.is_true(answer, sorted(found) == sorted(tags), f"OCI-Tag naming each of {', '.join(tags)}", ", ".join(found))
    await _check_pulled(registry, scratch, manifest, manifest.digest, *tags)


@case(section="end-7b", since="dev")
async def push_with_one_tag(registry: Client, scratch: Scratch) -> None:
    """A push by digest with one `tag=` sets it and names it in OCI-Tag."""
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    await _check_tags(registry, scratch, manifest, ["one"])


@case(section="end-7b", since="dev")
async def push_with_ten_tags(registry: Client, scratch: Scratch) -> None:
    """A push by digest with ten `tag=` sets all of them and names each in OCI-Tag."""
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    await _check_tags(registry, scratch, manifest, [f"tag-{at}" for at in range(MANY_TAGS)])
    listed = expect.tags(await registry.list_tags(scratch.name), scratch.name)
    if sorted(listed) != sorted(f"tag-{at}" for at in range(MANY_TAGS)):
        raise CheckFailed("all ten in the list of tags", ", ".join(listed))


@case(section="end-7b", since="dev")
async def tags_of_an_index_and_its_children(registry: Client, scratch: Scratch) -> None:
    """An index and each of its children are pushed by digest with tags of their own."""
    outer = index(image(layers=1), image(layers=1))
    for at, child in enumerate(outer.children):
        await scratch.push_content(child)
        await _check_tags(registry, scratch, child, [f"child-{at}"])
    await _check_tags(registry, scratch, outer, ["outer-1", "outer-2"])


@case(section="end-7b", since="dev")
async def push_with_tags_moves_them(registry: Client, scratch: Scratch) -> None:
    """A push by digest with a `tag=` that exists moves that tag."""
    await scratch.pushed_image("moving")
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    await _check_tags(registry, scratch, manifest, ["moving", "new"])


@case(section="end-7b", requires={"push", "sha512"}, since="dev")
async def tags_of_a_sha512_manifest(registry: Client, scratch: Scratch) -> None:
    """A manifest pushed by sha512 with `tag=` is pulled by the tag, with that digest in Docker-Content-Digest."""
    manifest = image(layers=1, algorithm="sha512")
    await _push_sha512(scratch, manifest)
    await _check_tags(registry, scratch, manifest, ["one", "two"])
    for answer in (await registry.get_manifest(scratch.name, "one"), await registry.head_manifest(scratch.name, "one")):
        expect.digest_header(answer, manifest.digest, required=True)


@case(section="end-7b", since="dev")
async def push_with_an_invalid_tag_is_refused(registry: Client, scratch: Scratch) -> None:
    """A push by digest with a `tag=` that is no tag is refused, or that one is not in OCI-Tag."""
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    await _push_with_tags(scratch, manifest, ["valid"])
    answer = await scratch.put(manifest, tags=["-invalid"])
    if answer.status == 201:
        expect.is_true(answer, "-invalid" not in answer.listed("OCI-Tag"), "no invalid tag in OCI-Tag")
    else:
        expect.client_error(answer)


# ---- subjects ----


async def _check_subject(scratch: Scratch, manifest: Manifest, subject: str) -> None:
    await scratch.push_content(manifest)
    for reference in (manifest.digest, "tag"):
        answer = await scratch.put(manifest, reference)
        expect.status(answer, 201)
        expect.header(answer, "OCI-Subject", subject)


@case(section="end-7a", requires={"push", "referrers"}, since="1.1")
async def subject_of_an_image(registry: Client, scratch: Scratch) -> None:
    """The push of an image with a subject, by digest and by tag, answers with OCI-Subject."""
    subject = await scratch.pushed_image()
    await _check_subject(scratch, image(layers=1, subject=subject.descriptor), subject.digest)


@case(section="end-7a", requires={"push", "referrers"}, since="1.1")
async def subject_of_an_artifact(registry: Client, scratch: Scratch) -> None:
    """The push of an artifact with a subject, by digest and by tag, answers with OCI-Subject."""
    subject = await scratch.pushed_image()
    await _check_subject(scratch, artifact(subject=subject.descriptor), subject.digest)


@case(section="end-7a", requires={"push", "referrers"}, since="1.1")
async def subject_of_an_index(registry: Client, scratch: Scratch) -> None:
    """The push of an index with a subject, by digest and by tag, answers with OCI-Subject."""
    subject = await scratch.pushed_image()
    await _check_subject(scratch, index(artifact(), subject=subject.descriptor), subject.digest)


@case(section="end-7a", since="1.1")
async def missing_subject_is_accepted(registry: Client, scratch: Scratch) -> None:
    """A manifest whose subject does not exist is accepted and kept."""
    await _round_trip(registry, scratch, artifact(subject=image().descriptor))


@case(section="end-7a", requires={"push", "referrers"}, since="1.1")
async def missing_subject_is_named(registry: Client, scratch: Scratch) -> None:
    """The push of a manifest whose subject does not exist answers with OCI-Subject."""
    subject = image()
    await _check_subject(scratch, artifact(subject=subject.descriptor), subject.digest)


@case(section="end-7a", since="1.1")
async def no_subject_no_header(registry: Client, scratch: Scratch) -> None:
    """The push of a manifest without a subject answers without OCI-Subject."""
    answer = await scratch.push(image(layers=1))
    expect.is_true(answer, answer.header("OCI-Subject") is None, "no OCI-Subject")


# ---- references that are missing ----


async def _check_missing(registry: Client, scratch: Scratch, manifest: Manifest, *missing: str) -> Answer | None:
    """Push a manifest that points at what is not there; return the refusal, or None when it was accepted."""
    answer = await scratch.put(manifest, "tag")
    if answer.status == 201:
        await _check_pulled(registry, scratch, manifest, "tag")
        return None
    expect.client_error(answer)
    codes = expect.decoded(answer, expect.ErrorList, "a list of errors").codes
    expect.is_true(answer, "MANIFEST_BLOB_UNKNOWN" in codes, "the code MANIFEST_BLOB_UNKNOWN", ", ".join(codes))
    for reference in ("tag", manifest.digest):
        expect.not_found(await registry.get_manifest(scratch.name, reference), why="its push was refused")
    return answer


@case(section="end-7a")
async def missing_config(registry: Client, scratch: Scratch) -> None:
    """An image whose config is missing is accepted, or refused with MANIFEST_BLOB_UNKNOWN."""
    manifest = image()
    for layer in manifest.blobs[1:]:
        await scratch.push_blob(layer)
    await _check_missing(registry, scratch, manifest, manifest.blobs[0].digest)


@case(section="end-7a")
async def missing_layer(registry: Client, scratch: Scratch) -> None:
    """An image of which a layer is missing is accepted, or refused with MANIFEST_BLOB_UNKNOWN."""
    manifest = image()
    for present in manifest.blobs[:-1]:
        await scratch.push_blob(present)
    await _check_missing(registry, scratch, manifest, manifest.blobs[-1].digest)


@case(section="end-7a", since="1.1")
async def missing_child_of_an_index(registry: Client, scratch: Scratch) -> None:
    """An index of which a manifest is missing is accepted, or refused with MANIFEST_BLOB_UNKNOWN."""
    manifest = index(image(layers=1), image(layers=1))
    await scratch.push(manifest.children[0])
    await _check_missing(registry, scratch, manifest, manifest.children[1].digest)


@case(section="end-7a")
async def layer_of_another_repository_is_missing(registry: Client, scratch: Scratch) -> None:
    """A layer that only another repository has counts as missing: accepted, or MANIFEST_BLOB_UNKNOWN."""
    manifest = image(layers=1)
    await scratch.push_content(manifest, scratch.another())
    await scratch.push_blob(manifest.blobs[0])
    await _check_missing(registry, scratch, manifest, manifest.blobs[1].digest)


@case(section="end-7a")
async def each_missing_reference_is_named(registry: Client, scratch: Scratch) -> None:
    """The refusal of an image of which several blobs are missing names each of them."""
    await scratch.push_blob(blob())
    manifest = image(layers=3)
    answer = await _check_missing(registry, scratch, manifest, *(one.digest for one in manifest.blobs))
    if answer is None:
        return
    for one in manifest.blobs:
        if one.digest.encode() not in answer.body:
            raise NotOffered.by(answer, "not every missing blob is named, which is only a courtesy")


# ---- conditional requests ----


async def _tag_of(registry: Client, scratch: Scratch, reference: str) -> str:
    answer = await registry.get_manifest(scratch.name, reference)
    expect.status(answer, 200)
    tag: str | None = answer.headers.get("etag")
    if tag is None:
        raise NotOffered.by(answer, "no ETag on manifests")
    return tag


@case(section="end-3")
async def unchanged_manifest_is_304(registry: Client, scratch: Scratch) -> None:
    """If-None-Match with the ETag of a manifest answers 304 without a body, for GET and HEAD, by tag and digest."""
    manifest = await scratch.pushed_image("tag")
    for reference in ("tag", manifest.digest):
        tag = await _tag_of(registry, scratch, reference)
        for value in (tag, f'"another", {tag}', f"W/{tag.removeprefix('W/')}", "*"):
            for method in ("GET", "HEAD"):
                headers = {"Accept": manifest.media_type, "If-None-Match": value}
                url = f"/v2/{scratch.name}/manifests/{reference}"
                answer = await registry.send(method, url, headers=headers)
                if answer.status == 200 and value == tag:
                    raise NotOffered.by(answer, "If-None-Match is not looked at")
                expect.status(answer, 304, why=f"If-None-Match: {value}")
                expect.no_body(answer)


@case(section="end-3")
async def changed_manifest_is_200(registry: Client, scratch: Scratch) -> None:
    """If-None-Match with an old ETag of a tag that has moved answers 200 with the new manifest."""
    await scratch.pushed_image("tag")
    old = await _tag_of(registry, scratch, "tag")
    manifest = await scratch.pushed_image("tag")
    answer = await registry.get_manifest(scratch.name, "tag", {"If-None-Match": old})
    expect.status(answer, 200)
    expect.body(answer, manifest.data)


@case(section="end-3")
async def missing_manifest_is_404_under_a_condition(registry: Client, scratch: Scratch) -> None:
    """If-None-Match on a manifest that is not there answers 404, not 304."""
    await scratch.pushed_image("tag")
    digest = unknown_digest()
    for value in (f'"{digest}"', digest):
        answer = await registry.get_manifest(scratch.name, digest, {"If-None-Match": value})
        expect.not_found(answer, why=f"If-None-Match: {value}")


async def _put_if(registry: Client, scratch: Scratch, manifest: Manifest, condition: str, value: str) -> Answer:
    headers = {condition: value}
    return await registry.put_manifest(scratch.name, "tag", manifest.data, manifest.media_type, headers=headers)


@case(section="end-7a")
async def put_if_the_tag_has_not_moved(registry: Client, scratch: Scratch) -> None:
    """PUT of a tag with If-Match and its current ETag answers 201 and moves the tag."""
    await scratch.pushed_image("tag")
    tag = await _tag_of(registry, scratch, "tag")
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    expect.status(await _put_if(registry, scratch, manifest, "If-Match", tag), 201)
    await _check_pulled(registry, scratch, manifest, "tag")


@case(section="end-7a")
async def put_if_the_tag_has_moved_is_412(registry: Client, scratch: Scratch) -> None:
    """PUT of a tag with If-Match and an ETag that it had before answers 412 and leaves the tag alone."""
    await scratch.pushed_image("tag")
    old = await _tag_of(registry, scratch, "tag")
    current = await scratch.pushed_image("tag")
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    answer = await _put_if(registry, scratch, manifest, "If-Match", old)
    if answer.status == 201:
        raise NotOffered.by(answer, "If-Match is not looked at")
    expect.status(answer, 412)
    await _check_pulled(registry, scratch, current, "tag")


@case(section="end-7a")
async def put_if_there_is_no_such_tag(registry: Client, scratch: Scratch) -> None:
    """PUT of a tag with `If-None-Match: *` answers 201 when the tag is new, and 412 when it exists."""
    first, second = image(layers=1), image(layers=1)
    for manifest in (first, second):
        await scratch.push_content(manifest)
    expect.status(await _put_if(registry, scratch, first, "If-None-Match", "*"), 201)
    answer = await _put_if(registry, scratch, second, "If-None-Match", "*")
    if answer.status == 201:
        raise NotOffered.by(answer, "If-None-Match is not looked at in a PUT")
    expect.status(answer, 412)
    await _check_pulled(registry, scratch, first, "tag")


@case(section="end-7a")
async def put_if_match_of_a_missing_tag_is_412(registry: Client, scratch: Scratch) -> None:
    """PUT of a tag that does not exist with If-Match answers 412."""
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    answer = await _put_if(registry, scratch, manifest, "If-Match", f'"{unknown_digest()}"')
    if answer.status == 201:
        raise NotOffered.by(answer, "If-Match is not looked at")
    expect.status(answer, 412)
    expect.not_found(await registry.get_manifest(scratch.name, "tag"))


@case(section="end-7a")
async def only_one_of_many_conditional_puts_wins(registry: Client, scratch: Scratch) -> None:
    """Of eight PUTs of one tag at once with If-Match and the same ETag exactly one answers 201, the others 412."""
    await scratch.pushed_image("tag")
    tag = await _tag_of(registry, scratch, "tag")
    manifests = [image(layers=1) for _ in range(8)]
    for manifest in manifests:
        await scratch.push_content(manifest)
    probe = await _put_if(registry, scratch, manifests[0], "If-Match", f'"{unknown_digest()}"')
    if probe.status == 201:
        raise NotOffered.by(probe, "If-Match is not looked at")
    answers = await together(
        *(partial(_put_if, registry, scratch, manifest, "If-Match", tag) for manifest in manifests)
    )
    for answer in answers:
        expect.status(answer, 201, 412)
    winners = [manifest for manifest, answer in zip(manifests, answers, strict=True) if answer.status == 201]
    if len(winners) != 1:
        raise CheckFailed("exactly one 201", f"{len(winners)}\n" + "\n".join(map(str, answers)))
    await _check_pulled(registry, scratch, winners[0], "tag")


# ---- at the same time ----


@case(section="end-7a")
async def same_manifest_pushed_under_many_tags_at_once(registry: Client, scratch: Scratch) -> None:
    """One manifest pushed under eight tags at the same time is under all of them afterwards."""
    tags = [f"tag-{at}" for at in range(8)]
    manifest = await scratch.tagged(tags)
    await _check_pulled(registry, scratch, manifest, *tags)


@case(section="end-7a")
async def tag_overwritten_during_pulls(registry: Client, scratch: Scratch) -> None:
    """While a tag is moved to and fro, each pull gets one of the two manifests whole, with its own headers."""
    manifests = [image(layers=1, annotations={"org.example.padding": "x" * size}) for size in (10, 5000)]
    for manifest in manifests:
        await scratch.push(manifest, "tag")
    pulled: list[Answer] = []

    async def push() -> None:
        for _ in range(10):
            for manifest in manifests:
                expect.status(await scratch.put(manifest, "tag"), 201)

    async def pull() -> None:
        pulled.extend([await registry.get_manifest(scratch.name, "tag") for _ in range(20)])

    await together(push, pull, pull)
    by_body = {manifest.data: manifest for manifest in manifests}
    for answer in pulled:
        expect.status(answer, 200, why="the tag existed all the time")
        expect.is_true(answer, answer.body in by_body, "one of the two manifests, whole")
        expect.digest_header(answer, by_body[answer.body].digest)
        expect.length(answer, len(answer.body))


@case(section="end-7a")
async def many_tags_pushed_to_a_new_repository_at_once(registry: Client, scratch: Scratch) -> None:
    """Eight different images pushed to one new repository at the same time are all there afterwards."""
    names = [f"{secrets.choice('abc')}-{at}" for at in range(8)]
    manifests = await together(*(partial(scratch.pushed_image, name) for name in names))
    for name, manifest in zip(names, manifests, strict=True):
        await _check_pulled(registry, scratch, manifest, name, manifest.digest)
    listed = expect.tags(await registry.list_tags(scratch.name), scratch.name)
    if sorted(listed) != sorted(names):
        raise CheckFailed(f"the tags {', '.join(sorted(names))}", ", ".join(listed))


@case(section="end-7a")
async def one_digest_in_two_roles(registry: Client, scratch: Scratch) -> None:
    """A manifest that names one blob as its config and as two of its layers is kept."""
    base = artifact(layers=0)
    document = document_of(base)
    entry = {"mediaType": "application/vnd.example.conformance.layer", "digest": digest_of(EMPTY_JSON), "size": 2}
    document["layers"] = [entry, entry]
    await _round_trip(registry, scratch, base.written_as(encoded(document)))

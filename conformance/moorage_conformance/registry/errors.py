"""Errors: their bodies and codes, and the grammar of names, tags and digests.

The body of a 4xx may be anything, but JSON must be the list of errors with codes that the specification knows.
Not testable from outside: 429 with Retry-After, and 403 for a caller with too few rights.
"""

from __future__ import annotations

from uuid import uuid4

from . import expect
from .answer import Answer, CheckFailed, preparing
from .case import Group, NotOffered
from .client import OCTETS, Client
from .content import IMAGE_MANIFEST, blob, digest_of, image, unique, unknown_digest
from .scratch import Scratch

__all__ = ["case"]

case = Group("errors", "Errors and grammar")

VALID_COMPONENTS = [
    "a",
    "0",
    "abc",
    "0abc9",
    "a.b",
    "a_b",
    "a__b",
    "a-b",
    "a--b",
    "a---b",
    "a.b-c_d",
    "a/b",
    "a/b/c/d/e",
    "blobs",
    "manifests",
    "tags/list",
    "uploads",
    "v2",
]
INVALID_COMPONENTS = [
    "A",
    "aB",
    ".a",
    "a.",
    "-a",
    "a-",
    "_a",
    "a_",
    "a..b",
    "a___b",
    "a._b",
    "a.-b",
    "a-_b",
    "a//b",
    "a/-b",
    "a/.b",
    "a%20b",
    "a+b",
    "a~b",
    "a@b",
    "a:b",
    "%C3%A4",
]
VALID_TAGS = ["a", "A", "0", "_", "_a", "1.0", "a.b", "a..b", "a-b", "a--", "a__b", "v1.0-RC_1", "latest", "x" * 128]
INVALID_TAGS = [".a", "-a", "x" * 129, "a+b", "a~b", "a%20b", "a@b", "a%2Fb", "%C3%A4", "a!", "a:b"]
LONG_NAME = 255


# ---- bodies and codes, for each kind of mistake ----


@case(section="errors", requires=())
async def blob_in_an_unknown_repository(registry: Client, scratch: Scratch) -> None:
    """The error for a blob in a repository that does not exist has a proper body."""
    answer = await registry.get_blob(scratch.name, unknown_digest())
    expect.not_found(answer)
    expect.error_names(answer, "BLOB_UNKNOWN", "NAME_UNKNOWN")


@case(section="errors", requires=())
async def manifest_in_an_unknown_repository(registry: Client, scratch: Scratch) -> None:
    """The error for a manifest in a repository that does not exist has a proper body."""
    answer = await registry.get_manifest(scratch.name, "missing")
    expect.not_found(answer)
    expect.error_names(answer, "MANIFEST_UNKNOWN", "NAME_UNKNOWN")


@case(section="errors", requires=())
async def tags_of_an_unknown_repository(registry: Client, scratch: Scratch) -> None:
    """The error for the tags of a repository that does not exist has a proper body."""
    answer = await registry.list_tags(scratch.name)
    if answer.status == 200:
        return
    expect.not_found(answer)
    expect.error_names(answer, "NAME_UNKNOWN")


@case(section="errors")
async def missing_blob(registry: Client, scratch: Scratch) -> None:
    """The error for a missing blob has a proper body."""
    await scratch.push_blob(blob())
    answer = await registry.get_blob(scratch.name, unknown_digest())
    expect.not_found(answer)
    expect.error_names(answer, "BLOB_UNKNOWN")


@case(section="errors")
async def missing_manifest(registry: Client, scratch: Scratch) -> None:
    """The error for a missing manifest, by tag and by digest, has a proper body."""
    await scratch.pushed_image("tag")
    for reference in ("missing", unknown_digest()):
        answer = await registry.get_manifest(scratch.name, reference)
        expect.not_found(answer)
        expect.error_names(answer, "MANIFEST_UNKNOWN")


@case(section="errors")
async def unknown_session(registry: Client, scratch: Scratch) -> None:
    """The error for an upload session that does not exist has a proper body."""
    await scratch.push_blob(blob())
    answer = await registry.upload_status(registry.absolute(f"/v2/{scratch.name}/blobs/uploads/{uuid4()}"))
    expect.not_found(answer)
    expect.error_names(answer, "BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID")


@case(section="errors")
async def chunk_out_of_order(registry: Client, scratch: Scratch) -> None:
    """The error for a chunk that does not fit has a proper body."""
    session = await scratch.session()
    answer = await registry.patch_upload(session.location, session.chunks(2)[0], first=10)
    expect.status(answer, 416)
    expect.error_names(answer, "BLOB_UPLOAD_INVALID", "SIZE_INVALID")


@case(section="errors")
async def wrong_digest(registry: Client, scratch: Scratch) -> None:
    """The error for a blob that is not what its digest says has a proper body."""
    session = await scratch.session()
    answer = await registry.finish_upload(session.location, unknown_digest(), blob().data)
    expect.status(answer, 400)
    expect.error_names(answer, "DIGEST_INVALID")


@case(section="errors")
async def malformed_digest(registry: Client, scratch: Scratch) -> None:
    """The error for a blob pushed by something that is no digest has a proper body."""
    session = await scratch.session()
    answer = await registry.finish_upload(session.location, "sha256:baddigeststring", blob().data)
    expect.status(answer, 400)
    expect.error_names(answer, "DIGEST_INVALID")


@case(section="errors")
async def wrong_digest_of_a_manifest(registry: Client, scratch: Scratch) -> None:
    """The error for a manifest that is not what its digest says has a proper body."""
    manifest = image(layers=1)
    await scratch.push_content(manifest)
    answer = await registry.put_manifest(scratch.name, manifest.digest, manifest.data + b" ", manifest.media_type)
    expect.status(answer, 400)
    expect.error_names(answer, "DIGEST_INVALID", "MANIFEST_INVALID")


@case(section="errors")
async def invalid_manifest(registry: Client, scratch: Scratch) -> None:
    """The error for a manifest that is not JSON has a proper body."""
    await scratch.push_blob(blob())
    answer = await registry.put_manifest(scratch.name, "tag", b"{" + unique().encode(), IMAGE_MANIFEST)
    if answer.status == 201:
        raise NotOffered.by(answer, "manifests are not looked into")
    expect.error_names(answer, "MANIFEST_INVALID")


@case(section="errors")
async def missing_reference(registry: Client, scratch: Scratch) -> None:
    """The error for a manifest that points at missing blobs has a proper body."""
    await scratch.push_blob(blob())
    manifest = image(layers=1)
    answer = await scratch.put(manifest, "tag")
    if answer.status == 201:
        return
    expect.client_error(answer)
    codes = expect.error_body(answer)
    expect.is_true(answer, codes is not None and "MANIFEST_BLOB_UNKNOWN" in codes, "the code MANIFEST_BLOB_UNKNOWN")


@case(section="errors")
async def missing_blob_on_delete(registry: Client, scratch: Scratch) -> None:
    """The error for a DELETE of a missing blob has a proper body."""
    await scratch.push_blob(blob())
    answer = await registry.delete_blob(scratch.name, unknown_digest())
    expect.status(answer, 400, 404, 405)
    expect.error_names(answer, "BLOB_UNKNOWN" if answer.status == 404 else "UNSUPPORTED")


@case(section="errors")
async def missing_manifest_on_delete(registry: Client, scratch: Scratch) -> None:
    """The error for a DELETE of a missing manifest has a proper body."""
    await scratch.pushed_image("tag")
    answer = await registry.delete_manifest(scratch.name, unknown_digest())
    expect.status(answer, 400, 404, 405)
    expect.error_names(answer, "MANIFEST_UNKNOWN" if answer.status == 404 else "UNSUPPORTED")


@case(section="errors")
async def malformed_digest_of_a_blob(registry: Client, scratch: Scratch) -> None:
    """The error for GET of a blob by something that is no digest has a proper body."""
    await scratch.push_blob(blob())
    answer = await registry.get_blob(scratch.name, "sha256:baddigeststring")
    expect.status(answer, 400, 404)
    expect.error_names(answer, "DIGEST_INVALID", "BLOB_UNKNOWN")


@case(section="errors", requires={"referrers"}, since="1.1")
async def malformed_digest_of_referrers(registry: Client, scratch: Scratch) -> None:
    """The error for a list of referrers of something that is no digest has a proper body."""
    answer = await registry.list_referrers(scratch.name, "sha256:baddigeststring")
    expect.status(answer, 400)
    expect.error_names(answer, "DIGEST_INVALID")


@case(section="errors")
async def page_of_a_size_that_is_no_number(registry: Client, scratch: Scratch) -> None:
    """The error for a list of tags with a negative `n` has a proper body, if it is refused."""
    await scratch.pushed_image("tag")
    answer = await registry.list_tags(scratch.name, n=-1)
    if answer.status != 200:
        expect.error_body(answer)


@case(section="errors", since="1.1")
async def manifest_that_is_too_large(registry: Client, scratch: Scratch) -> None:
    """The error for a manifest of 16 MiB has a proper body, if it is refused."""
    await scratch.push_blob(blob())
    body = b'{"schemaVersion":2,"padding":"' + b"x" * (16 * 2**20) + b'"}'
    answer = await registry.put_manifest(scratch.name, "tag", body, IMAGE_MANIFEST)
    if answer.status != 201:
        expect.error_names(answer, "SIZE_INVALID", "MANIFEST_INVALID")


@case(section="errors")
async def method_that_is_not_supported(registry: Client, scratch: Scratch) -> None:
    """A method that an endpoint does not have is refused as the client's mistake, with a proper body."""
    await scratch.pushed_image("tag")
    answer = await registry.send("PATCH", f"/v2/{scratch.name}/manifests/tag", body=b"{}")
    expect.client_error(answer)
    expect.error_names(answer, "UNSUPPORTED")


@case(section="errors", requires=())
async def endpoint_that_does_not_exist(registry: Client, scratch: Scratch) -> None:
    """A path below /v2/ that is no endpoint is refused as the client's mistake, with a proper body if with JSON."""
    answer = await registry.send("GET", f"/v2/{scratch.name}/nonsense/path")
    expect.client_error(answer)
    expect.error_body(answer)


@case(section="errors", requires=())
async def caller_without_credentials(registry: Client, scratch: Scratch) -> None:
    """The 401 for a caller without credentials has a proper body."""
    answer = await registry.send("GET", f"/v2/{scratch.name}/tags/list", anonymous=True)
    if answer.status != 401:
        raise NotOffered.by(answer, "no credentials are wanted")
    expect.error_names(answer, "UNAUTHORIZED")


# ---- grammar ----


def _fail_with(what: str, answers: list[tuple[str, Answer]]) -> None:
    if answers:
        raise CheckFailed(what, "\n".join(f"for {given!r}: {answer}" for given, answer in answers))


@case(section="names")
async def valid_names(registry: Client, scratch: Scratch) -> None:
    """Every repository name that the grammar allows can be pushed to and pulled from."""
    wrong: list[tuple[str, Answer]] = []
    data = blob(16).data
    for component in VALID_COMPONENTS:
        name = f"{scratch.name}/{component}"
        answer = await registry.start_upload(name)
        if answer.status == 202:
            answer = await registry.finish_upload(expect.location(answer), digest_of(data), data)
        if answer.status == 201:
            answer = await registry.get_blob(name, digest_of(data))
        if answer.status != 200:
            wrong.append((name, answer))
    _fail_with("each of these valid names to work", wrong)


@case(section="names")
async def names_with_many_components(registry: Client, scratch: Scratch) -> None:
    """An image is pushed to, pulled from and listed in a repository of seven components."""
    name = f"{scratch.name}/one/two/three/four/five"
    manifest = await scratch.pushed_image("tag", name=name)
    answer = await registry.get_manifest(name, "tag")
    expect.status(answer, 200)
    expect.body(answer, manifest.data)
    expect.is_true(answer, expect.tags(await registry.list_tags(name), name) == ["tag"], "the tag in the list")


@case(section="names")
async def invalid_names_are_refused(registry: Client, scratch: Scratch) -> None:
    """A repository name that the grammar does not allow is refused, in a push and in a pull."""
    wrong: list[tuple[str, Answer]] = []
    for component in INVALID_COMPONENTS:
        name = f"{scratch.name}/{component}"
        push = await registry.exact("POST", f"/v2/{name}/blobs/uploads/")
        pull = await registry.exact("GET", f"/v2/{name}/tags/list")
        # A redirect to a tidied path is no success.
        wrong += [(name, answer) for answer in (push, pull) if not 300 <= answer.status < 500]
    _fail_with("each of these invalid names to be refused", wrong)


@case(section="names")
async def long_name(registry: Client, scratch: Scratch) -> None:
    """A name of 255 characters works, or is refused as the client's mistake; so is one of 600."""
    wrong: list[tuple[str, Answer]] = []
    for size in (LONG_NAME, 600):
        name = f"{scratch.name}/".ljust(size, "x")
        answer = await registry.start_upload(name)
        if answer.status != 202 and not 400 <= answer.status < 500:
            wrong.append((f"a name of {size} characters", answer))
    _fail_with("202 or a refusal", wrong)


@case(section="tags")
async def valid_tags(registry: Client, scratch: Scratch) -> None:
    """Every tag that the grammar allows, up to 128 characters, can be pushed and pulled."""
    manifest = await scratch.pushed_image()
    wrong: list[tuple[str, Answer]] = []
    for tag in VALID_TAGS:
        answer = await scratch.put(manifest, tag)
        if answer.status == 201:
            answer = await registry.get_manifest(scratch.name, tag)
        if answer.status != 200 or answer.body != manifest.data:
            wrong.append((tag, answer))
    _fail_with("each of these valid tags to work", wrong)


@case(section="tags")
async def tags_are_told_apart_by_case(registry: Client, scratch: Scratch) -> None:
    """`tag` and `Tag` are two tags."""
    lower = await scratch.pushed_image("tag")
    upper = await scratch.pushed_image("Tag")
    for tag, manifest in (("tag", lower), ("Tag", upper)):
        expect.body(await registry.get_manifest(scratch.name, tag), manifest.data)


@case(section="tags")
async def invalid_tags_are_refused(registry: Client, scratch: Scratch) -> None:
    """A tag that the grammar does not allow, or of 129 characters, is refused in a push."""
    manifest = await scratch.pushed_image()
    wrong: list[tuple[str, Answer]] = []
    for tag in INVALID_TAGS:
        answer = await scratch.put(manifest, tag)
        if not 400 <= answer.status < 500:
            wrong.append((tag, answer))
    _fail_with("each of these invalid tags to be refused", wrong)
    with preparing("a look at the tags"):
        listed = await registry.list_tags(scratch.name)
        expect.status(listed, 200, 404)
    if listed.status == 200:
        expect.is_true(listed, not expect.tags(listed, scratch.name), "no tags")


@case(section="end-5")
async def media_type_of_a_chunk(registry: Client, scratch: Scratch) -> None:
    """PATCH with a Content-Type that is not octet-stream is taken or refused, but is no error of the registry's."""
    session = await scratch.session()
    answer = await registry.send("PATCH", session.location, headers={"Content-Type": "text/plain"}, body=blob().data)
    expect.not_server_error(answer)


@case(section="end-6")
async def form_as_content_type(registry: Client, scratch: Scratch) -> None:
    """PUT of a blob declared as a form, as some tools do, is taken whole or refused, never cut."""
    data = blob().data
    session = await scratch.session()
    url = session.location + ("&" if "?" in session.location else "?") + f"digest={digest_of(data)}"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await registry.send("PUT", url, headers=headers, body=data)
    expect.not_server_error(answer)
    if answer.status == 201:
        pulled = await registry.get_blob(scratch.name, digest_of(data))
        expect.status(pulled, 200)
        expect.body(pulled, data)


@case(section="end-5")
async def chunk_with_its_type_in_other_letters(registry: Client, scratch: Scratch) -> None:
    """PATCH with octet-stream in other letters' case is taken."""
    session = await scratch.session()
    headers = {"Content-Type": OCTETS.title()}
    answer = await registry.send("PATCH", session.location, headers=headers, body=blob().data)
    expect.not_server_error(answer)

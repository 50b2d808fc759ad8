"""Checks on an answer. Each one passes in silence or raises `CheckFailed` with the whole exchange in its text."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from .answer import Answer, CheckFailed, NotOffered
from .content import digest_of

__all__ = [
    "CODES",
    "Descriptor",
    "ErrorList",
    "Index",
    "TagList",
    "body",
    "client_error",
    "created",
    "decoded",
    "digest_header",
    "error_body",
    "header",
    "index",
    "is_true",
    "length",
    "location",
    "media_type",
    "next_page",
    "no_body",
    "not_found",
    "not_server_error",
    "received",
    "status",
    "tags",
]

ALGORITHMS = {"sha256", "sha512"}
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CODES = {
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
}
"""The error codes of the specification; there are no others."""

T = TypeVar("T")


class Descriptor(msgspec.Struct, rename="camel", kw_only=True):
    """A descriptor in a list of referrers."""

    media_type: str
    digest: str
    size: int
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, rename="camel", kw_only=True):
    """A list of referrers."""

    schema_version: int
    media_type: str
    manifests: list[Descriptor]


class TagList(msgspec.Struct):
    """A list of tags."""

    name: str
    tags: list[str] | None


class _Error(msgspec.Struct):
    code: str
    message: str | None = None
    detail: object = None


class ErrorList(msgspec.Struct):
    """The body of an error."""

    errors: list[_Error]

    @property
    def codes(self) -> list[str]:
        """The codes, in order."""
        return [error.code for error in self.errors]


def is_true(answer: Answer, condition: bool, expected: str, got: str = "") -> None:
    """Check anything about an answer."""
    if not condition:
        raise CheckFailed.of(answer, expected, got)


def status(answer: Answer, *allowed: int, why: str = "") -> None:
    """Check the status."""
    names = " or ".join(str(value) for value in allowed)
    is_true(answer, answer.status in allowed, f"status {names}" + (f" ({why})" if why else ""))


def client_error(answer: Answer, why: str = "") -> None:
    """Check that the request was refused as the client's mistake."""
    is_true(answer, 400 <= answer.status < 500, "a status from 400 to 499" + (f" ({why})" if why else ""))


def not_server_error(answer: Answer) -> None:
    """Check that the registry did not blame itself."""
    is_true(answer, answer.status < 500, "a status below 500")


def not_found(answer: Answer, why: str = "") -> None:
    """Check for 404."""
    status(answer, 404, why=why)


def header(answer: Answer, name: str, value: str) -> None:
    """Check that a header is there and has this value."""
    found = answer.header(name)
    is_true(answer, found == value, f"{name}: {value}", f"{name}: {found}" if found is not None else f"no {name}")


def length(answer: Answer, size: int) -> None:
    """Check Content-Length."""
    header(answer, "Content-Length", str(size))


def no_body(answer: Answer) -> None:
    """Check that nothing follows the head."""
    is_true(answer, not answer.body, "no body", f"{len(answer.body)} bytes of body")


def body(answer: Answer, data: bytes) -> None:
    """Check that the body is these bytes, and that Content-Length, if sent, is their number."""
    if answer.body != data:
        same = next((at for at, (one, other) in enumerate(zip(answer.body, data, strict=False)) if one != other), None)
        where = "" if same is None else f" that differ first at byte {same}"
        raise CheckFailed.of(answer, f"exactly the {len(data)} bytes pushed", f"{len(answer.body)} bytes{where}")
    if answer.header("Content-Length") is not None:
        length(answer, len(data))


def media_type(answer: Answer, value: str) -> None:
    """Check Content-Type, to the letter: parameters are not wanted."""
    header(answer, "Content-Type", value)


def digest_header(answer: Answer, digest: str, *, required: bool = False) -> None:
    """Check Docker-Content-Digest; without `required` it may be absent.

    It may also be in another algorithm than the one that was asked for: then it must fit the body. NotOffered, when the
    header is `required` and so.
    """
    found = answer.header("Docker-Content-Digest")
    if found is None and not required:
        return
    if found is None or algorithm_of(found) == algorithm_of(digest) or algorithm_of(found) not in ALGORITHMS:
        header(answer, "Docker-Content-Digest", digest)
        return
    if answer.method == "GET" and answer.status == 200:
        header(answer, "Docker-Content-Digest", digest_of(answer.body, algorithm_of(found)))
    if required:
        raise NotOffered.by(answer, f"the digest is given as {algorithm_of(found)}, which is allowed")


def algorithm_of(digest: str) -> str:
    """Return the part of a digest before the colon."""
    return digest.partition(":")[0]


def location(answer: Answer) -> str:
    """Check that there is a Location and return it as an absolute URL."""
    value = answer.headers.get("location")
    if not value:
        raise CheckFailed.of(answer, "a Location")
    return answer.resolve(value)


def created(answer: Answer) -> str:
    """Check for 201 with a Location and return that."""
    status(answer, 201)
    return location(answer)


def received(answer: Answer, count: int) -> None:
    """Check that Range names so many bytes from the beginning; of none it says 0-0."""
    header(answer, "Range", f"0-{max(count - 1, 0)}")


def decoded(answer: Answer, kind: type[T], what: str) -> T:
    """Check that the body is JSON of a certain shape and return it decoded."""
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        shown = answer.body[:200].decode("utf-8", "backslashreplace")
        raise CheckFailed.of(answer, what, f"{error}: {shown}") from error


def tags(answer: Answer, name: str) -> list[str]:
    """Check for a list of tags of a repository and return them."""
    status(answer, 200)
    found = decoded(answer, TagList, 'a JSON object with "name" and a list "tags"')
    is_true(answer, found.name == name, f'the name to be "{name}"', f'"{found.name}"')
    return found.tags or []


def index(answer: Answer) -> list[Descriptor]:
    """Check for an image index, as a list of referrers must be, and return its descriptors."""
    status(answer, 200)
    media_type(answer, INDEX_TYPE)
    found = decoded(answer, Index, "an image index")
    is_true(answer, found.schema_version == 2, "schemaVersion 2", f"{found.schema_version}")
    is_true(answer, found.media_type == INDEX_TYPE, f"mediaType {INDEX_TYPE}", found.media_type)
    return found.manifests


def next_page(answer: Answer) -> str | None:
    """Return the absolute URL that a Link with rel="next" names, or None without such a Link."""
    for line in answer.headers.get_list("link"):
        for target, parameters in re.findall(r"<([^>]*)>((?:\s*;\s*[^,;]+)*)", line):
            if re.search(r';\s*rel\s*=\s*"?next"?\s*(?:;|$)', parameters):
                return answer.resolve(target)
    return None


def error_body(answer: Answer) -> list[str] | None:
    """Check the body of a 4xx and return its codes, or None when it is not JSON, which it need not be."""
    client_error(answer)
    declared = answer.headers.get("content-type", "").partition(";")[0].strip()
    looks_like_json = declared == "application/json" or answer.body.lstrip()[:1] == b"{"
    if not answer.body or not looks_like_json:
        return None
    codes = decoded(answer, ErrorList, 'a JSON object with the list "errors", each with a "code"').codes
    is_true(answer, bool(codes), "at least one error")
    for code in codes:
        is_true(answer, code in CODES, "only codes of the specification", f"the code {code}")
    return codes


def error_names(answer: Answer, *natural: str) -> None:
    """Check an error's body; NotOffered when it has no codes, or one that says something else than the case."""
    if answer.method == "HEAD":
        return
    codes = error_body(answer)
    if codes is None:
        raise NotOffered.by(answer, "errors have no JSON body here, which is allowed")
    if not set(codes) & set(natural):
        raise NotOffered.by(
            answer, f"the code is {', '.join(codes)}, which the list allows, not {' or '.join(natural)}"
        )

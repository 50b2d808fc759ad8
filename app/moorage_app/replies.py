"""Replies and errors become responses: status, headers, body. Here, and nowhere else, HTTP is spoken.

Answers for the headers of the OCI distribution spec and of distribution (`Docker-…`), ranges and conditional requests
of RFC 9110, and `Link` of RFC 8288.
"""

import datetime as dt
import logging
import math
import re
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlencode

import msgspec

from moorage import (
    OCI_INDEX,
    Blob,
    BlobPushed,
    Deleted,
    Digest,
    InternalError,
    IssuedToken,
    ListReferrers,
    ListRepositories,
    ListTags,
    Manifest,
    ManifestPushed,
    ManifestUnknown,
    Operation,
    Pong,
    PreconditionFailed,
    PublishedKeys,
    PullManifest,
    PushManifest,
    RangeInvalid,
    ReferrerList,
    RegistryError,
    RepositoryList,
    RepositoryName,
    TagList,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UploadCancelled,
    UploadOpened,
    UploadOutOfOrder,
    UploadProgress,
    encode_json,
)

from .routes import TOKEN_PATH, MethodNotAllowed, PathUnknown, Request, TokenRequestInvalid, accepts, entity_tags

_log = logging.getLogger("moorage.replies")

HeaderList = list[tuple[bytes, bytes]]

_RANGE = re.compile(r"bytes=\s*(\d{0,100})-(\d{0,100})\s*", re.ASCII | re.IGNORECASE)
_BLOB_CACHE = (b"cache-control", b"max-age=31536000")
_NO_STORE = (b"cache-control", b"no-store")
_KEYS_CACHE = (b"cache-control", b"max-age=300")
_WARNINGS_LIMIT = 4096
_WARNING_LIMIT = 1024


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent: a body of bytes, or a range of a blob that is opened when it is sent.

    Attributes:
        status: of HTTP.
        headers: all that depend on the reply.
        body: the whole body, if `blob` is None.
        blob: the blob to send.
        start: the first byte of it.
        stop: the byte after the last.
        redirect: asks whether the client can fetch the blob from elsewhere.
    """

    status: int
    headers: HeaderList
    body: bytes = b""
    blob: Blob | None = None
    start: int = 0
    stop: int = 0
    redirect: Callable[[str], Awaitable[str | None]] | None = None


def respond(request: Request, operation: Operation[object], reply: object, prefix: str) -> Response:
    """Return the response to `reply`; `prefix` goes before every path that is handed out.

    Raises:
        RegistryError: the request has a condition or range that the reply cannot meet.
    """
    match reply:
        case Manifest():
            return _manifest(request, operation, reply)
        case Blob():
            return _blob(request, reply)
        case ManifestPushed():
            return _manifest_pushed(operation, reply, prefix)
        case BlobPushed():
            location = f"{prefix}/v2/{reply.repository}/blobs/{reply.digest}"
            headers = [(b"location", location.encode()), (b"docker-content-digest", reply.digest.encode())]
            return _empty(201, headers)
        case UploadOpened():
            headers = _upload_headers(prefix, reply.repository, reply.upload_id, 0)
            if reply.chunk_minimum:
                headers.append((b"oci-chunk-min-length", b"%d" % reply.chunk_minimum))
            return _empty(202, headers)
        case UploadProgress():
            status = 204 if request.method in {"GET", "HEAD"} else 202
            return _empty(status, _upload_headers(prefix, reply.repository, reply.upload_id, reply.offset))
        case UploadCancelled():
            return _empty(204, [(b"docker-upload-uuid", reply.upload_id.encode())])
        case Deleted():
            return _empty(202, _warnings(reply.warnings))
        case TagList():
            return _tag_list(operation, reply, prefix)
        case RepositoryList():
            return _repository_list(operation, reply, prefix)
        case ReferrerList():
            return _referrer_list(operation, reply, prefix)
        case Pong():
            return _json(b"{}", [])
        case IssuedToken():
            return _issued_token(request, reply)
        case PublishedKeys():
            return _json(reply.data, [_KEYS_CACHE], b"application/jwk-set+json")
        case _:
            raise InternalError(f"there is no response to a {type(reply).__name__}")


def respond_error(request: Request | None, error: RegistryError, prefix: str) -> Response:
    """Return the response to `error`: its status, its errors as JSON, and the headers that its kind has."""
    headers: HeaderList = []
    match error:
        case MethodNotAllowed():
            headers.append((b"allow", ", ".join(error.allow).encode()))
        case Unauthorized():
            headers += [(b"www-authenticate", challenge.encode("latin-1")) for challenge in error.challenges]
        case TooManyRequests() | Unavailable():
            headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after)))
        case RangeInvalid():
            headers.append((b"content-range", b"bytes */%d" % error.size))
        case UploadOutOfOrder() if request is not None:
            # The session's own path, whatever query the request had.
            location = f"{prefix}{request.path}".encode()
            headers += [(b"location", location), (b"range", _acknowledged(error.offset))]
            headers.append((b"docker-upload-uuid", error.upload_id.encode()))
        case _:
            pass
    by_form = request is not None and request.path == TOKEN_PATH and request.method == "POST"
    body = _errors(error, in_oauth2=by_form and not isinstance(error, PathUnknown))
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return Response(status=error.status, headers=headers, body=body)


def _errors(error: RegistryError, *, in_oauth2: bool = False) -> bytes:
    """Return the body of an answer to `error`; without details where a plugin put into them what JSON cannot hold.

    Who asks for a token by a form may read what went wrong as OAuth2 says it; Docker's clients read the other form there too.
    """
    more = {"error": _problem(error), "error_description": error.message} if in_oauth2 else {}
    try:
        return encode_json({"errors": error.entries(), **more})
    except Exception as fault:  # noqa: BLE001 - strange keys, cycles, lone surrogates, what a plugin's objects raise
        _log.error("the details of a %s cannot be told: %s", type(error).__name__, type(fault).__name__)
        message = error.message.encode(errors="replace").decode()
        return encode_json({"errors": [{"code": error.code, "message": message}]})


def _problem(error: RegistryError) -> str:
    """Return what went wrong in the words of RFC 6749, 5.2."""
    match error:
        case TokenRequestInvalid():
            return error.problem
        case Unauthorized():
            return "invalid_grant"
        case _ if error.status < 500:
            return "invalid_request"
        case _:
            return "temporarily_unavailable"


def _issued_token(request: Request, reply: IssuedToken) -> Response:
    """Return a token in the form in which it was asked for."""
    told: dict[str, object] = {"access_token": reply.token, "expires_in": reply.expires_in}
    told["issued_at"] = dt.datetime.fromtimestamp(reply.issued_at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if request.method == "POST":
        told |= {"token_type": "Bearer", "scope": " ".join(reply.scopes)}
    else:
        told["token"] = reply.token
    if reply.refresh_token is not None:
        told["refresh_token"] = reply.refresh_token
    return _json(encode_json(told), [_NO_STORE])


def _empty(status: int, headers: HeaderList) -> Response:
    # 204 has no Content-Length (RFC 9110, 8.6).
    if status != 204:
        headers.append((b"content-length", b"0"))
    return Response(status=status, headers=headers)


def _json(body: bytes, headers: HeaderList, content_type: bytes = b"application/json") -> Response:
    headers += [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    return Response(status=200, headers=headers, body=body)


def _content_headers(digest: Digest) -> HeaderList:
    encoded = digest.encode()
    return [(b"docker-content-digest", encoded), (b"etag", b'"%s"' % encoded)]


def _is_unchanged(request: Request, digest: Digest) -> bool:
    """Return whether the client has this content already.

    Raises:
        PreconditionFailed: it asked for other content than this.
    """
    if_match = entity_tags(request.headers.joined(b"if-match"))
    if if_match is not None and not if_match.matches(digest):
        raise PreconditionFailed("the content is not what If-Match names", detail={"digest": str(digest)})
    if_none_match = entity_tags(request.headers.joined(b"if-none-match"))
    return if_none_match is not None and if_none_match.matches(digest)


def _manifest(request: Request, operation: Operation[object], manifest: Manifest) -> Response:
    digest = manifest.digest
    by_tag = isinstance(operation, PullManifest) and not isinstance(operation.reference, Digest)
    if by_tag and not accepts(request.headers.joined(b"accept"), manifest.media_type):
        raise ManifestUnknown(
            f"the manifest is of type {manifest.media_type}, which the Accept header does not name",
            detail={"mediaType": manifest.media_type, "digest": str(digest)},
        )
    headers = _content_headers(digest)
    if _is_unchanged(request, digest):
        return Response(status=304, headers=headers)
    headers += [
        (b"content-type", manifest.media_type.encode()),
        (b"content-length", b"%d" % len(manifest.data)),
    ]
    return Response(status=200, headers=headers, body=manifest.data)


def _blob(request: Request, blob: Blob) -> Response:
    descriptor = blob.descriptor
    headers = _content_headers(descriptor.digest)
    headers.append(_BLOB_CACHE)
    if _is_unchanged(request, descriptor.digest):
        return Response(status=304, headers=headers)
    headers += [(b"content-type", descriptor.media_type.encode()), (b"accept-ranges", b"bytes")]
    asked = _range(request, descriptor.digest, descriptor.size)
    start, stop = asked or (0, descriptor.size)
    headers.append((b"content-length", b"%d" % (stop - start)))
    if asked:
        headers.append((b"content-range", b"bytes %d-%d/%d" % (start, stop - 1, descriptor.size)))
    # A HEAD is never sent elsewhere: the answer must carry the digest.
    redirect = blob.url if request.method == "GET" else None
    return Response(status=206 if asked else 200, headers=headers, blob=blob, start=start, stop=stop, redirect=redirect)


def _range(request: Request, digest: Digest, size: int) -> tuple[int, int] | None:
    """Return the one range that is asked for, as first byte and the byte after the last; None for the whole.

    Several ranges are answered with the whole, as RFC 9110 (14.2) allows, and so is what is no range of bytes.

    Raises:
        RangeInvalid: it lies outside the blob, or ends before it begins.
    """
    header = request.headers.joined(b"range")
    if header is None or request.method != "GET":
        return None
    if_range = request.headers.joined(b"if-range")
    if if_range is not None and if_range != f'"{digest}"':
        return None
    match = _RANGE.fullmatch(header)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, stop = max(size - int(match[2]), 0), size
    else:
        start = int(match[1])
        stop = min(int(match[2]) + 1, size) if match[2] else size
    if start >= stop:
        raise RangeInvalid("the range lies outside the blob", size=size)
    return start, stop


def _acknowledged(offset: int) -> bytes:
    """Return how a session says how far it is; nothing and one byte look alike, as everywhere."""
    return b"0-%d" % max(offset - 1, 0)


def _upload_headers(prefix: str, repository: RepositoryName, upload_id: str, offset: int) -> HeaderList:
    return [
        (b"location", f"{prefix}/v2/{repository}/blobs/uploads/{upload_id}".encode()),
        (b"range", _acknowledged(offset)),
        (b"docker-upload-uuid", upload_id.encode()),
    ]


def _manifest_pushed(operation: Operation[object], reply: ManifestPushed, prefix: str) -> Response:
    digest = reply.descriptor.digest
    headers: HeaderList = [
        (b"location", f"{prefix}/v2/{reply.repository}/manifests/{digest}".encode()),
        (b"docker-content-digest", digest.encode()),
    ]
    if reply.subject is not None:
        headers.append((b"oci-subject", reply.subject.encode()))
    if isinstance(operation, PushManifest) and operation.tags:
        headers.append((b"oci-tag", ", ".join(reply.tags).encode()))
    headers += _warnings(reply.warnings)
    return _empty(201, headers)


def _warnings(warnings: tuple[str, ...]) -> HeaderList:
    """Return `Warning` headers as the spec wants them: code 299, agent `-`, no date, 4,096 bytes in all.

    A long warning is cut short, equal ones are said once, and those for which there is no room are counted in the last.
    """
    told = list(dict.fromkeys(warnings))
    headers: HeaderList = []
    left = _WARNINGS_LIMIT - len(_warning(_further(len(told))))
    for at, warning in enumerate(told):
        value = _warning(warning)
        left -= len(value)
        if left < 0:
            headers.append((b"warning", _warning(_further(len(told) - at))))
            break
        headers.append((b"warning", value))
    return headers


def _further(count: int) -> str:
    return f"further warnings, for which there is no room here: {count}"


def _warning(text: str) -> bytes:
    """Return the value of one header: `text` in one line of printable ASCII, in quotes, at most 1,024 bytes of it."""
    quoted = bytearray()
    for each in " ".join(text.split()):
        piece = (each if each.isprintable() else "?").encode("ascii", "backslashreplace")
        piece = piece.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        if len(quoted) + len(piece) > _WARNING_LIMIT - 3:
            return b'299 - "%s..."' % quoted
        quoted += piece
    return b'299 - "%s"' % quoted


def _link(prefix: str, path: str, parameters: list[tuple[str, str]]) -> tuple[bytes, bytes]:
    target = f"{prefix}{quote(path)}?{urlencode(parameters)}"
    return b"link", f'<{target}>; rel="next"'.encode()


def _tag_list(operation: Operation[object], reply: TagList, prefix: str) -> Response:
    body = encode_json({"name": str(reply.repository), "tags": reply.tags})
    headers: HeaderList = []
    if reply.more and isinstance(operation, ListTags):
        parameters = [("n", str(operation.limit)), ("last", reply.tags[-1])]
        headers.append(_link(prefix, f"/v2/{reply.repository}/tags/list", parameters))
    return _json(body, headers)


def _repository_list(operation: Operation[object], reply: RepositoryList, prefix: str) -> Response:
    body = encode_json({"repositories": reply.repositories})
    headers: HeaderList = []
    if reply.more and isinstance(operation, ListRepositories):
        parameters = [("n", str(operation.limit)), ("last", reply.repositories[-1])]
        headers.append(_link(prefix, "/v2/_catalog", parameters))
    return _json(body, headers)


def _referrer_list(operation: Operation[object], reply: ReferrerList, prefix: str) -> Response:
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": reply.referrers}
    headers: HeaderList = []
    if isinstance(operation, ListReferrers):
        if operation.artifact_type is not None:
            headers.append((b"oci-filters-applied", b"artifactType"))
        if reply.more and reply.last is not None:
            parameters = [("n", str(operation.limit)), ("last", str(reply.last))]
            if operation.artifact_type is not None:
                parameters.append(("artifactType", operation.artifact_type))
            path = f"/v2/{operation.repository}/referrers/{operation.subject}"
            headers.append(_link(prefix, path, parameters))
    return _json(encode_json(index), headers, OCI_INDEX.encode())

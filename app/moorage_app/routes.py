"""The table of endpoints: a request line becomes an operation. Pure; nothing here waits for anything.

Answers for the endpoints of the OCI distribution spec (end-1 to end-14), distribution's `_catalog`, and both forms of its
token protocol. Paths are taken raw: in names nothing may be percent-encoded, so that no two paths mean one repository.
"""

import base64
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal, TypeVar
from urllib.parse import parse_qs, unquote

import msgspec

from moorage import (
    AppendUpload,
    Body,
    CancelUpload,
    CommitUpload,
    Credentials,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    Digest,
    DigestInvalid,
    IssueToken,
    ListReferrers,
    ListRepositories,
    ListTags,
    ManifestInvalid,
    Match,
    MountBlob,
    OpenUpload,
    Operation,
    Origin,
    ParameterInvalid,
    Ping,
    PublishKeys,
    PullBlob,
    PullManifest,
    PushBlob,
    Reference,
    RegistryError,
    RepositoryName,
    SizeInvalid,
    StatUpload,
    Tag,
    Unsupported,
    UploadInvalid,
    parse_reference,
)

_CONTENT_RANGE = re.compile(r"(\d{1,19})-(\d{1,19})", re.ASCII)
_NUMBER = re.compile(r"\d{1,100}", re.ASCII)
_ENTITY_TAG = re.compile(r'"([^"]*)"')
_QUERY_FIELDS = 1000

_READ = ("GET", "HEAD")

TOKEN_PATH = "/auth/token"  # noqa: S105 - a path
FORM_LIMIT = 64 << 10
"""More bytes than any form has by which a token is asked for."""
_FORM_FIELDS = 100
_FORM_TYPE = "application/x-www-form-urlencoded"
_KEYS_PATHS = frozenset({"/auth/jwks", "/.well-known/jwks.json"})

_REMEMBERED = 4096
_REMEMBERED_LENGTH = 512

T = TypeVar("T")


class PathUnknown(RegistryError):
    """No endpoint has this path."""

    code = "UNSUPPORTED"
    status = 404


class MethodNotAllowed(Unsupported):
    """The endpoint does not know this method; `allow` are those it knows."""

    def __init__(self, method: str, allow: tuple[str, ...]) -> None:
        """Make an error for `method`."""
        super().__init__(f"{method[:20]} is not for this path; it takes {', '.join(allow)}")
        self.allow = allow


class TokenRequestInvalid(ParameterInvalid):
    """The form by which a token is asked for makes no sense; `problem` says so in the words of RFC 6749, 5.2."""

    def __init__(self, message: str, *, problem: str = "invalid_request") -> None:
        """Make an error that says `message`."""
        super().__init__(message)
        self.problem = problem


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long pages of lists may be."""

    tags: int = 1000
    repositories: int = 1000
    default_repositories: int = 100
    referrers: int = 1000


class Headers:
    """The headers of a request by lower-case name."""

    def __init__(self, items: list[tuple[bytes, bytes]]) -> None:
        """Take the headers as ASGI gives them."""
        self._values: dict[bytes, list[bytes]] = {}
        for name, value in items:
            # Asked about more often than there are headers, so they are not looked through each time.
            if name in self._values:
                self._values[name].append(value)
            else:
                self._values[name] = [value]

    def all(self, name: bytes) -> list[str]:
        """Return every value of `name`."""
        return [value.decode("latin-1").strip() for value in self._values.get(name, ())]

    def joined(self, name: bytes) -> str | None:
        """Return all values of `name` as the one list that they are (RFC 9110, 5.3), None if there is none."""
        return ", ".join(self.all(name)) if name in self._values else None


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request as far as it decides which operation it is.

    Attributes:
        method: as sent.
        path: raw, with the configured prefix taken away.
        query: the raw query string.
        headers: all of them.
        body: the request's body.
        origin: where it came from.
    """

    method: str
    path: str
    query: str
    headers: Headers
    body: Body
    origin: Origin

    def parameters(self) -> Mapping[str, list[str]]:
        """Return the query's parameters.

        Raises:
            ParameterInvalid: there are too many, or they are not UTF-8.
        """
        if not self.query:
            return {}
        try:
            return parse_qs(self.query, keep_blank_values=True, max_num_fields=_QUERY_FIELDS, errors="strict")
        except (ValueError, UnicodeDecodeError):
            raise ParameterInvalid("the query cannot be understood") from None

    def parameter(self, name: str) -> str | None:
        """Return the first value of a query parameter, None if it is not there."""
        values = self.parameters().get(name)
        return values[0] if values else None


def operation_of(request: Request, limits: Limits, *, token_server: bool = False) -> Operation[object] | None:
    """Return what `request` asks for; None for a push of a manifest or a form, whose body must be read first.

    `token_server` says whether there is somebody to ask for tokens.

    Raises:
        PathUnknown, MethodNotAllowed: no endpoint is there, or not for this method.
        RegistryError: a name, digest or number in it cannot be understood.
    """
    path = request.path
    if path in {"/v2/", "/v2"}:
        _only(request, *_READ)
        return Ping(origin=request.origin)
    if token_server and path == TOKEN_PATH:
        _only(request, "GET", "POST")
        return _token_by_query(request) if request.method == "GET" else None
    if token_server and path in _KEYS_PATHS:
        _only(request, *_READ)
        return PublishKeys(origin=request.origin)
    if not path.startswith("/v2/"):
        raise PathUnknown("no endpoint has this path")
    rest = path[4:]
    if rest == "_catalog":
        _only(request, *_READ)
        limit = _number(request, maximum=limits.repositories, default=limits.default_repositories)
        return ListRepositories(origin=request.origin, after=request.parameter("last") or "", limit=limit)
    endpoint, name, last = _endpoint(rest)
    match endpoint:
        case "manifests":
            return _manifest(request, name, _reference(last))
        case "blobs":
            return _blob(request, name, last)
        case "upload":
            return _upload(request, name, last)
        case "uploads":
            return _uploads(request, name)
        case "tags":
            return _tags(request, name, limits)
        case "referrers":
            return _referrers(request, name, last, limits)


def _remembered(function: Callable[[str], T]) -> Callable[[str], T]:
    """Return `function`, which remembers what it said of texts that are not long: clients ask for the same again."""
    remembering = lru_cache(_REMEMBERED)(function)
    return lambda text: remembering(text) if len(text) <= _REMEMBERED_LENGTH else function(text)


_Endpoint = Literal["manifests", "blobs", "upload", "uploads", "tags", "referrers"]


@_remembered
def _endpoint(path: str) -> tuple[_Endpoint, RepositoryName, str]:
    """Return which endpoint a path below `/v2/` names, of which repository, and its last part.

    Raises:
        PathUnknown: no endpoint has this path.
        NameInvalid: it is of no repository.
    """
    match path.split("/"):
        case [*name, "tags", "list"]:
            return "tags", _name(name), ""
        case [*name, "manifests", reference]:
            return "manifests", _name(name), reference
        case [*name, "blobs", "uploads"] | [*name, "blobs", "uploads", ""]:
            return "uploads", _name(name), ""
        case [*name, "blobs", "uploads", upload_id]:
            return "upload", _name(name), upload_id
        case [*name, "blobs", digest]:
            return "blobs", _name(name), digest
        case [*name, "referrers", digest]:
            return "referrers", _name(name), digest
        case _:
            raise PathUnknown("no endpoint has this path")


def _only(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise MethodNotAllowed(request.method, methods)


def _name(parts: list[str]) -> RepositoryName:
    return RepositoryName("/".join(parts))


@_remembered
def _digest(text: str) -> Digest:
    return Digest(unquote(text))


@_remembered
def _reference(text: str) -> Reference:
    return parse_reference(unquote(text))


def _number(request: Request, *, maximum: int, default: int) -> int:
    """Return the parameter `n`, clipped to `maximum`."""
    text = request.parameter("n")
    if text is None:
        return default
    if _NUMBER.fullmatch(text) is None:
        raise ParameterInvalid("n must be a number that is not negative", detail={"n": text[:40]})
    return min(int(text), maximum)


def _tags(request: Request, name: RepositoryName, limits: Limits) -> Operation[object]:
    _only(request, *_READ)
    # Without n the spec wants all of them, and so do clients that never follow a Link.
    limit = _number(request, maximum=limits.tags, default=1 << 30)
    return ListTags(origin=request.origin, repository=name, after=request.parameter("last") or "", limit=limit)


def _manifest(request: Request, name: RepositoryName, reference: Reference) -> Operation[object] | None:
    match request.method:
        case "GET" | "HEAD":
            return PullManifest(origin=request.origin, repository=name, reference=reference)
        case "PUT":
            return None
        case "DELETE":
            if_match = entity_tags(request.headers.joined(b"if-match"))
            if isinstance(reference, Digest):
                return DeleteManifest(origin=request.origin, repository=name, digest=reference, if_match=if_match)
            return DeleteTag(origin=request.origin, repository=name, tag=reference, if_match=if_match)
        case _:
            raise MethodNotAllowed(request.method, ("GET", "HEAD", "PUT", "DELETE"))


def manifest_push_target(request: Request) -> tuple[RepositoryName, Tag | Digest, tuple[Tag, ...], str]:
    """Return repository, reference, further tags and media type of a push of a manifest.

    Raises:
        ManifestInvalid: there is no Content-Type.
    """
    parts = request.path[4:].split("/")
    tags = tuple(Tag(tag) for tag in request.parameters().get("tag", []))
    content_type = (request.headers.joined(b"content-type") or "").partition(";")[0].strip()
    if not content_type:
        raise ManifestInvalid("a manifest is pushed with its media type as Content-Type")
    return _name(parts[:-2]), parse_reference(unquote(parts[-1])), tags, content_type


def _uploads(request: Request, name: RepositoryName) -> Operation[object]:
    _only(request, "POST")
    mount, source, digest = (request.parameter(each) for each in ("mount", "from", "digest"))
    if mount is not None:
        return MountBlob(
            origin=request.origin,
            repository=name,
            digest=Digest(mount),
            source=RepositoryName(source) if source else None,
        )
    if digest is not None:
        announced = Digest(digest)
        # Without a body it is only announced, unless it is the digest of nothing.
        if request.body.length != 0 or announced == Digest.of(b"", announced.algorithm):
            return PushBlob(origin=request.origin, repository=name, digest=announced, body=request.body)
        return OpenUpload(origin=request.origin, repository=name, digest=announced)
    return OpenUpload(origin=request.origin, repository=name, algorithm=request.parameter("digest-algorithm"))


def _upload(request: Request, name: RepositoryName, upload_id: str) -> Operation[object]:
    match request.method:
        case "GET" | "HEAD":
            return StatUpload(origin=request.origin, repository=name, upload_id=upload_id)
        case "DELETE":
            return CancelUpload(origin=request.origin, repository=name, upload_id=upload_id)
        case "PATCH":
            start, length = _content_range(request)
            return AppendUpload(
                origin=request.origin,
                repository=name,
                upload_id=upload_id,
                body=request.body,
                start=start,
                length=length,
            )
        case "PUT":
            digest = request.parameter("digest")
            if digest is None:
                raise DigestInvalid("the closing PUT names the digest of the blob: ?digest=")
            start, length = _content_range(request)
            return CommitUpload(
                origin=request.origin,
                repository=name,
                upload_id=upload_id,
                digest=Digest(digest),
                body=request.body,
                start=start,
                length=length,
            )
        case _:
            raise MethodNotAllowed(request.method, ("GET", "HEAD", "PATCH", "PUT", "DELETE"))


def _content_range(request: Request) -> tuple[int | None, int | None]:
    """Return where a chunk begins and how long it says it is: `first-last`, inclusive, without a unit."""
    text = request.headers.joined(b"content-range")
    if text is None:
        return None, None
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None:
        raise UploadInvalid("Content-Range of a chunk is <first>-<last>", detail={"Content-Range": text[:100]})
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise SizeInvalid("Content-Range ends before it begins", detail={"Content-Range": text})
    return first, last - first + 1


def _blob(request: Request, name: RepositoryName, digest: str) -> Operation[object]:
    _only(request, "GET", "HEAD", "DELETE")
    if request.method == "DELETE":
        return DeleteBlob(origin=request.origin, repository=name, digest=_digest(digest))
    return PullBlob(origin=request.origin, repository=name, digest=_digest(digest))


def _referrers(request: Request, name: RepositoryName, subject: str, limits: Limits) -> Operation[object]:
    _only(request, *_READ)
    return ListReferrers(
        origin=request.origin,
        repository=name,
        subject=_digest(subject),
        artifact_type=request.parameter("artifactType"),
        after=request.parameter("last") or "",
        limit=_number(request, maximum=limits.referrers, default=limits.referrers),
    )


def _token_by_query(request: Request) -> IssueToken:
    parameters = request.parameters()
    return IssueToken(
        origin=request.origin,
        service=request.parameter("service") or "",
        scopes=_scopes(parameters.get("scope", [])),
        offline=request.parameter("offline_token") == "true",
        client_id=request.parameter("client_id") or "",
    )


def _scopes(values: list[str]) -> tuple[str, ...]:
    return tuple(scope for value in values for scope in value.split())


def token_by_form(request: Request, data: bytes) -> IssueToken:
    """Return which token a form asks for (the OAuth2 form of distribution's protocol); what it shows are credentials.

    Raises:
        TokenRequestInvalid: it makes no sense.
    """
    if (request.headers.joined(b"content-type") or "").partition(";")[0].strip().lower() != _FORM_TYPE:
        raise TokenRequestInvalid(f"a token is asked for by a form ({_FORM_TYPE})")
    try:
        fields = parse_qs(data.decode(), keep_blank_values=True, max_num_fields=_FORM_FIELDS, errors="strict")
    except ValueError:
        raise TokenRequestInvalid("the form cannot be understood") from None

    def only(name: str, *, needed: bool = False) -> str:
        values = fields.get(name, [])
        if len(values) > 1 or (needed and not values):
            raise TokenRequestInvalid(f"the form says {name} {'twice' if values else 'nowhere'}")
        return values[0] if values else ""

    match only("grant_type", needed=True):
        case "password":
            name, password = only("username", needed=True), only("password", needed=True)
            if ":" in name:
                raise TokenRequestInvalid("a username has no colon")
            shown = Credentials("basic", base64.b64encode(f"{name}:{password}".encode()).decode())
        case "refresh_token":
            shown = Credentials("refresh_token", only("refresh_token", needed=True))
        case _:
            problem = "unsupported_grant_type"
            raise TokenRequestInvalid("grant_type is password or refresh_token", problem=problem)
    return IssueToken(
        origin=msgspec.structs.replace(request.origin, credentials=shown),
        service=only("service"),
        scopes=_scopes(fields.get("scope", [])),
        offline=only("access_type") == "offline",
        client_id=only("client_id"),
    )


def entity_tags(header: str | None) -> Match | None:
    """Return what an `If-Match` or `If-None-Match` names (RFC 9110, 8.8.3); None if there is no such header.

    Distribution's clients may send the bare digest; that is taken too.
    """
    if header is None:
        return None
    if header.strip() == "*":
        return Match(any=True)
    quoted = _ENTITY_TAG.findall(header)
    return Match(digests=frozenset(quoted or (part.strip() for part in header.split(","))))


def accepts(header: str | None, media_type: str) -> bool:
    """Return whether an `Accept` header takes `media_type` (RFC 9110, 12.5.1): the most specific range decides."""
    if header is None or header == media_type or not header.strip():
        return True
    if len(header) <= _REMEMBERED_LENGTH:
        return _accepts_remembered(header, media_type)
    return _accepts(header, media_type)


def _accepts(header: str, media_type: str) -> bool:
    kind = media_type.partition("/")[0] + "/*"
    best = (0, 0.0)
    for item in header.split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        specificity = {media_type.lower(): 3, kind.lower(): 2, "*/*": 1}.get(name.lower(), 0)
        if specificity > best[0]:
            best = (specificity, _quality(parameters))
    return best[1] > 0


_accepts_remembered = lru_cache(_REMEMBERED)(_accepts)


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0

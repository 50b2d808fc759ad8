"""A strict stand-in for Google Cloud Storage: the JSON API over HTTP, in a thread, everything in memory.

It keeps the rules that gcp-storage-emulator does not: preconditions, pages, generations, and what a resumable upload may
and may not do. What it does not know it refuses: an unknown parameter is a 400, so that a misspelt precondition is found.
Where Google's documentation leaves something open, the comment says what is chosen.
"""

import base64
import hashlib
import itertools
import json
import re
import threading
import urllib.parse
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import google_crc32c

from loopback import LoopbackHandler, LoopbackServer, serving

QUANTUM = 256 << 10
_MOST_PER_PAGE = 1000
_MOST_SOURCES = 32

Json = dict[str, object]
Params = Mapping[str, str]
_PRECONDITIONS = ("ifGenerationMatch", "ifGenerationNotMatch", "ifMetagenerationMatch", "ifMetagenerationNotMatch")
_ALWAYS = frozenset({"alt", "fields", "prettyPrint", "project", "projection", "userProject", "key", "quotaUser"})
_CHANGING = frozenset(_PRECONDITIONS)
_SOURCE = frozenset("ifSource" + name[2:] for name in _PRECONDITIONS) | {"sourceGeneration"}
_NONE = frozenset[str]()
_REWRITING = frozenset({"rewriteToken", "maxBytesRewrittenPerCall"})


class _Refused(Exception):
    def __init__(self, code: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.headers = code, reason, headers or {}

    def body(self) -> bytes:
        details = [{"message": str(self), "domain": "global", "reason": self.reason}]
        return json.dumps({"error": {"code": self.code, "message": str(self), "errors": details}}).encode()


@dataclass(frozen=True)
class _Reply:
    code: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class _Object:
    name: str
    data: bytes
    generation: int
    content_type: str
    metadata: Mapping[str, str]
    metageneration: int = 1
    # More than one: made by compose, and such an object has no MD5.
    components: int | None = None

    @property
    def crc32c(self) -> str:
        # The library has no types.
        value = cast("int", google_crc32c.value(self.data))  # pyright: ignore[reportUnknownMemberType]
        return base64.b64encode(value.to_bytes(4, "big")).decode()

    @property
    def md5(self) -> str | None:
        if self.components is not None:
            return None
        return base64.b64encode(hashlib.md5(self.data, usedforsecurity=False).digest()).decode()


@dataclass
class _Session:
    bucket: str
    name: str
    params: Params
    resource: Json
    length: int | None
    data: bytearray = field(default_factory=bytearray)
    total: int | None = None
    done: bytes | None = None
    cancelled: bool = False


def _wrong(message: str) -> _Refused:
    return _Refused(400, "invalid", message)


def _number(params: Params, name: str) -> int | None:
    text = params.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise _wrong(f"Invalid value for {name}: {text!r}")
    return int(text)


def _check(found: _Object | None, params: Params, prefix: str = "if", *, reading: bool = False) -> None:
    """Refuse unless the preconditions hold of what is there now; nothing has the generation 0."""
    have = {"Generation": found.generation if found else 0, "Metageneration": found.metageneration if found else 0}
    for kind, value in have.items():
        wanted, unwanted = _number(params, f"{prefix}{kind}Match"), _number(params, f"{prefix}{kind}NotMatch")
        if wanted is not None and wanted != value:
            raise _Refused(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
        if unwanted is not None and unwanted == value:
            code = 304 if reading else 412
            raise _Refused(code, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")


def _check_name(name: str) -> str:
    size = len(name.encode())
    if not 1 <= size <= 1024 or "\r" in name or "\n" in name or name in {".", ".."}:
        raise _wrong(f"Invalid object name: {name!r}")
    return name


def _object_name(params: Params, resource: Json) -> str:
    name = params.get("name", resource.get("name"))
    if not isinstance(name, str):
        raise _Refused(400, "required", "Required parameter: name")
    return _check_name(name)


def _json(body: bytes) -> Json:
    if not body:
        return {}
    try:
        value: object = json.loads(body)
    except ValueError:
        raise _Refused(400, "parseError", "Parse Error") from None
    if not isinstance(value, dict):
        raise _Refused(400, "parseError", "Parse Error")
    return cast("Json", value)  # keys of a JSON object are strings


def _text_map(value: object) -> dict[str, str]:
    items = cast("Json", value).items() if isinstance(value, dict) else ()  # keys of a JSON object are strings
    return {key: str(text) for key, text in items}


def _related(content_type: str, body: bytes) -> tuple[Json, str, bytes]:
    """Take the two parts of an upload in one request apart: the resource, and the media's type and bytes."""
    boundary = re.search(r'boundary="?([^";]+)"?', content_type)
    if not content_type.startswith("multipart/related") or boundary is None:
        raise _wrong("multipart/related with a boundary is needed")
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary[1].encode())
    if len(parts) != 4 or not parts[3].startswith(b"--"):
        raise _wrong("A multipart upload has two parts: the metadata and the media")
    resource = parts[1].partition(b"\r\n\r\n")[2]
    head, _, media = parts[2].partition(b"\r\n\r\n")
    kind = re.search(rb"(?i)content-type:\s*([^\r\n]+)", head)
    return _json(resource), kind[1].decode() if kind else "", media


class GCSFake:
    """Google Cloud Storage with nothing in it.

    `requests` counts what was asked, by method and kind: bucket, list, metadata, media, upload, session, chunk, status,
    rewrite, copy, move, compose, delete.
    """

    def __init__(self, url: str, port: int, rewrite_limit: int) -> None:
        """Stand for the service at `url`; one rewrite call copies `rewrite_limit` bytes at most."""
        self.url = url
        self.port = port
        self.project = "moorage"
        self.requests: Counter[tuple[str, str]] = Counter()
        self.keep_at_most: int | None = None
        """Of each chunk keep no more than this, rounded down to 256 KiB: the service may, and says so in Range."""
        self._rewrite_limit = rewrite_limit
        self._lock = threading.RLock()
        self._buckets: dict[str, dict[str, _Object]] = {}
        self._sessions: dict[str, _Session] = {}
        self._gone: set[str] = set()
        self._rewrites: dict[str, tuple[object, int]] = {}
        self._pages: dict[str, tuple[object, bytes]] = {}
        self._generations = itertools.count(1_700_000_000_000_000)
        self._tokens = itertools.count(1)

    def create_bucket(self, name: str) -> str:
        """Make an empty bucket; return its name."""
        with self._lock:
            self._buckets[name] = {}
        return name

    def reset(self) -> None:
        """Count requests anew."""
        with self._lock:
            self.requests.clear()

    @property
    def open_sessions(self) -> int:
        """How many resumable uploads were begun, and neither finished nor cancelled nor lost."""
        with self._lock:
            return sum(session.done is None and not session.cancelled for session in self._sessions.values())

    def expire_sessions(self) -> None:
        """Forget all resumable uploads, as the service does after a week."""
        with self._lock:
            self._gone |= self._sessions.keys()
            self._sessions.clear()

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes, *, whole: bool) -> _Reply:
        """Answer one request; `whole` is false when the client went away within its body."""
        path, _, query = target.partition("?")
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True)
        params = dict(pairs)
        with self._lock:
            try:
                if len(params) != len(pairs):
                    raise _wrong("A parameter is there twice")
                return self._route(method, path, params, headers, body, whole=whole)
            except _Refused as refused:
                kind = {"Content-Type": "application/json; charset=UTF-8"}
                return _Reply(
                    refused.code, b"" if refused.code == 304 else refused.body(), kind | dict(refused.headers)
                )

    def _route(
        self, method: str, path: str, params: Params, headers: Mapping[str, str], body: bytes, *, whole: bool
    ) -> _Reply:
        if method != "PUT" and not whole:
            raise _wrong("The body ended early")
        if found := re.fullmatch(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o", path):
            bucket = urllib.parse.unquote(found[1])
            if "upload_id" in params:
                return self._in_session(method, params["upload_id"], headers, body, whole=whole)
            return self._upload(method, bucket, params, headers, body)
        found = re.fullmatch(
            r"(/download)?/storage/v1/b(?:/([^/]+)(?P<objects>/o(?:/(?P<key>[^/]+)(?P<verb>/.+)?)?)?)?", path
        )
        if found is None:
            raise _Refused(404, "notFound", "Not Found")
        bucket, key = (urllib.parse.unquote(text or "") for text in found.group(2, "key"))
        if found["objects"] is None:
            return self._bucket(method, bucket, params, body)
        objects = self._objects(bucket)
        if not key and method == "GET":
            return self._list(bucket, objects, params)
        if found["verb"] is not None:
            return self._derive(method, bucket, key, found["verb"], params, body)
        if key and method in {"GET", "HEAD"}:
            media = found[1] is not None or params.get("alt") == "media"
            return self._read(bucket, objects.get(key), params, headers, method, media=media)
        if key and method == "DELETE":
            self._seen(method, "delete", params, _CHANGING | {"generation"})
            there = self._pinned(objects.get(key), params)
            _check(there, params)
            if there is None:
                raise self._no_object(bucket, key)
            del objects[key]
            return _Reply(204)
        raise _Refused(405, "methodNotAllowed", "Method Not Allowed")

    def _seen(self, method: str, kind: str, params: Params, known: frozenset[str] | set[str]) -> None:
        self.requests[method, kind] += 1
        if unknown := params.keys() - known - _ALWAYS:
            raise _wrong(f"Unknown parameters: {', '.join(sorted(unknown))}")

    def _objects(self, bucket: str) -> dict[str, _Object]:
        if bucket not in self._buckets:
            raise _Refused(404, "notFound", "The specified bucket does not exist.")
        return self._buckets[bucket]

    @staticmethod
    def _no_object(bucket: str, key: str) -> _Refused:
        return _Refused(404, "notFound", f"No such object: {bucket}/{key}")

    @staticmethod
    def _pinned(found: _Object | None, params: Params, name: str = "generation") -> _Object | None:
        generation = _number(params, name)
        return found if found is None or generation in {None, found.generation} else None

    def _bucket(self, method: str, bucket: str, params: Params, body: bytes) -> _Reply:
        self._seen(method, "bucket", params, {"maxResults", "pageToken", "prefix"})
        if method == "POST" and not bucket:
            bucket = str(_json(body).get("name") or "")
            if bucket in self._buckets or not bucket:
                raise _Refused(409, "conflict", "Your previous request to create the named bucket succeeded.")
            self._buckets[bucket] = {}
        elif method == "GET" and not bucket:
            return self._reply({"kind": "storage#buckets", "items": [{"name": name} for name in sorted(self._buckets)]})
        elif method == "DELETE":
            if self._objects(bucket):
                raise _Refused(409, "conflict", "The bucket you tried to delete is not empty.")
            del self._buckets[bucket]
            return _Reply(204)
        self._objects(bucket)
        return self._reply({"kind": "storage#bucket", "id": bucket, "name": bucket})

    @staticmethod
    def _reply(value: Json) -> _Reply:
        return _Reply(200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=UTF-8"})

    def _resource(self, bucket: str, found: _Object) -> Json:
        quoted = urllib.parse.quote(found.name, safe="")
        link = f"{self.url}/storage/v1/b/{bucket}/o/{quoted}"
        when = "2026-01-02T03:04:05.678Z"
        value: Json = {
            "kind": "storage#object",
            "id": f"{bucket}/{found.name}/{found.generation}",
            "selfLink": link,
            "mediaLink": f"{self.url}/download/storage/v1/b/{bucket}/o/{quoted}?generation={found.generation}&alt=media",
            "name": found.name,
            "bucket": bucket,
            "generation": str(found.generation),
            "metageneration": str(found.metageneration),
            "contentType": found.content_type,
            "storageClass": "STANDARD",
            "size": str(len(found.data)),
            "crc32c": found.crc32c,
            "etag": base64.b64encode(f"{found.generation}/{found.metageneration}".encode()).decode(),
            "timeCreated": when,
            "updated": when,
        }
        if found.md5 is not None:
            value["md5Hash"] = found.md5
        if found.components is not None:
            value["componentCount"] = found.components
        if found.metadata:
            value["metadata"] = dict(found.metadata)
        return value

    def _store(
        self, bucket: str, name: str, params: Params, resource: Json, data: bytes, components: int | None = None
    ) -> _Reply:
        objects = self._objects(bucket)
        _check(objects.get(name), params)
        kind = resource.get("contentType")
        made = _Object(
            name,
            data,
            next(self._generations),
            kind if isinstance(kind, str) else "application/octet-stream",
            _text_map(resource.get("metadata")),
            components=components,
        )
        for checksum, have in (("crc32c", made.crc32c), ("md5Hash", made.md5)):
            if resource.get(checksum) not in {None, have}:
                raise _wrong(f"Provided {checksum} {resource[checksum]!r} doesn't match calculated {have!r}.")
        objects[name] = made
        return self._reply(self._resource(bucket, made))

    def _upload(self, method: str, bucket: str, params: Params, headers: Mapping[str, str], body: bytes) -> _Reply:
        kind = params.get("uploadType", "")
        self._seen(method, "session" if kind == "resumable" else "upload", params, _CHANGING | {"uploadType", "name"})
        self._objects(bucket)
        media_type = headers.get("content-type", "")
        if method == "POST" and kind == "media":
            return self._store(bucket, _object_name(params, {}), params, {"contentType": media_type}, body)
        if method == "POST" and kind == "multipart":
            resource, part_type, media = _related(media_type, body)
            resource = {"contentType": part_type} | resource
            return self._store(bucket, _object_name(params, resource), params, resource, media)
        if method != "POST" or kind != "resumable":
            raise _wrong(f"Invalid upload request: {method} {kind!r}")
        resource = _json(body)
        if "x-upload-content-type" in headers:
            resource = {"contentType": headers["x-upload-content-type"]} | resource
        length = _number(headers, "x-upload-content-length")
        name = _object_name(params, resource)
        for condition in _PRECONDITIONS:
            _number(params, condition)
        token = f"session-{next(self._tokens)}"
        self._sessions[token] = _Session(bucket, name, dict(params), resource, length)
        query = urllib.parse.urlencode({"uploadType": "resumable", "name": name, "upload_id": token})
        where = f"{self.url}/upload/storage/v1/b/{urllib.parse.quote(bucket)}/o?{query}"
        return _Reply(200, headers={"Location": where, "X-GUploader-UploadID": token})

    def _in_session(self, method: str, token: str, headers: Mapping[str, str], body: bytes, *, whole: bool) -> _Reply:
        content_range = headers.get("content-range")
        asks = content_range is not None and content_range.startswith("bytes */")
        self.requests[method, "status" if method == "PUT" and asks else "chunk" if method == "PUT" else "session"] += 1
        session = self._sessions.get(token)
        if session is None:
            code, reason = (410, "gone") if token in self._gone else (404, "notFound")
            raise _Refused(code, reason, "The upload session is not there any more.")
        if method == "DELETE" or session.cancelled:
            # What was finished stays; there is nothing to cancel.
            session.cancelled = session.done is None
            session.data.clear()
            raise _Refused(499, "clientClosedRequest", "The upload was cancelled.")
        if method != "PUT":
            raise _Refused(405, "methodNotAllowed", "Method Not Allowed")
        if session.done is not None:
            return _Reply(200, session.done, {"Content-Type": "application/json; charset=UTF-8"})
        return self._take(session, content_range, body, whole=whole)

    def _take(self, session: _Session, content_range: str | None, body: bytes, *, whole: bool) -> _Reply:
        """Take a chunk, or a question how much is there; finish when all is there that was announced."""
        if content_range is None:
            # All in one request, without saying so.
            content_range = f"bytes 0-{len(body) - 1}/{len(body)}" if body else "bytes */0"
        found = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", content_range)
        if found is None or (found[1] is not None and int(found[2]) < int(found[1])):
            raise _wrong(f"Failed to parse Content-Range header: {content_range}")
        total = None if found[3] == "*" else int(found[3])
        announced = session.length if session.length is not None else session.total
        if total is not None and announced not in {None, total}:
            raise _wrong(f"The upload was announced with {announced} bytes, not {total}")
        if found[1] is None:
            if body:
                raise _wrong("A question has no body")
        else:
            first, end = int(found[1]), int(found[2]) + 1
            last = total is not None and end == total
            if total is not None and end > total:
                raise _wrong("The chunk is longer than the upload")
            if whole and len(body) != end - first:
                raise _wrong(f"{content_range} with a body of {len(body)} bytes")
            if not last and (end % QUANTUM or first % QUANTUM):
                raise _wrong("Each chunk but the last has a multiple of 256 KiB")
            if first > len(session.data):
                # Google's own client libraries start over from the question for any 5xx.
                raise _Refused(
                    503, "backendError", f"The chunk begins at {first}, after the {len(session.data)} there are"
                )
            new = body[len(session.data) - first :]
            if not whole:
                new = new[: len(new) // QUANTUM * QUANTUM]
            if self.keep_at_most is not None and len(new) > self.keep_at_most:
                new = new[: max(self.keep_at_most // QUANTUM, 1) * QUANTUM]
            session.data += new
        if total is not None and total < len(session.data):
            raise _wrong("More is there than was announced")
        session.total = total if total is not None else session.total
        if total is not None and total == len(session.data) and whole:
            reply = self._store(session.bucket, session.name, session.params, session.resource, bytes(session.data))
            session.done = reply.body
            return reply
        return _Reply(308, headers={"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {})

    def _read(
        self,
        bucket: str,
        there: _Object | None,
        params: Params,
        headers: Mapping[str, str],
        method: str,
        *,
        media: bool,
    ) -> _Reply:
        self._seen(method, "media" if media else "metadata", params, _CHANGING | {"generation"})
        found = self._pinned(there, params)
        if found is None:
            raise self._no_object(bucket, there.name if there else "")
        _check(found, params, reading=True)
        if not media:
            return self._reply(self._resource(bucket, found))
        md5 = f",md5={found.md5}" if found.md5 else ""
        shown = {
            "Content-Type": found.content_type,
            "Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT",
            "X-Goog-Generation": str(found.generation),
            "X-Goog-Metageneration": str(found.metageneration),
            "X-Goog-Hash": f"crc32c={found.crc32c}{md5}",
            "X-Goog-Stored-Content-Length": str(len(found.data)),
        }
        size = len(found.data)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", ""))
        if wanted is None or not (wanted[1] or wanted[2]):
            return _Reply(200, found.data, shown)
        if wanted[1]:
            start, end = int(wanted[1]), min(int(wanted[2] or size) + 1, size)
        else:
            start, end = max(size - int(wanted[2]), 0), size
        if start >= size or end <= start:
            message = "The requested range cannot be satisfied."
            raise _Refused(416, "requestedRangeNotSatisfiable", message, {"Content-Range": f"bytes */{size}"})
        return _Reply(206, found.data[start:end], shown | {"Content-Range": f"bytes {start}-{end - 1}/{size}"})

    def _list(self, bucket: str, objects: Mapping[str, _Object], params: Params) -> _Reply:
        where = {"prefix", "delimiter", "startOffset", "endOffset", "includeTrailingDelimiter"}
        self._seen("GET", "list", params, where | {"maxResults", "pageToken"})
        most = _number(params, "maxResults")
        if most == 0:
            raise _wrong("Invalid value for maxResults: '0'")
        most = min(most or _MOST_PER_PAGE, _MOST_PER_PAGE)
        query: object = (bucket, sorted((name, params[name]) for name in where & params.keys()))
        after: bytes | None = None
        if "pageToken" in params:
            asked, after = self._pages.get(params["pageToken"], (None, None))
            if asked != query:
                raise _wrong(f"Invalid pageToken: {params['pageToken']!r}")
        prefix, delimiter = params.get("prefix", ""), params.get("delimiter", "")
        first, end = params.get("startOffset", "").encode(), params.get("endOffset", "").encode()
        entries: dict[bytes, _Object | None] = {}
        for name in sorted(objects, key=str.encode):
            key = name.encode()
            if not name.startswith(prefix) or key < first or (end and key >= end):
                continue
            at = name.find(delimiter, len(prefix)) if delimiter else -1
            if at < 0:
                entries[key] = objects[name]
            else:
                entries.setdefault(name[: at + len(delimiter)].encode(), None)
                if name.endswith(delimiter) and params.get("includeTrailingDelimiter") == "true":
                    entries[key] = objects[name]
        rest = [key for key in sorted(entries) if after is None or key > after]
        page, value = rest[:most], dict[str, object](kind="storage#objects")
        if items := [self._resource(bucket, found) for key in page if (found := entries[key]) is not None]:
            value["items"] = items
        if prefixes := [key.decode() for key in page if entries[key] is None]:
            value["prefixes"] = prefixes
        if len(rest) > most:
            token = f"page-{next(self._tokens)}"
            self._pages[token] = (query, page[-1])
            value["nextPageToken"] = token
        return self._reply(value)

    def _derive(self, method: str, bucket: str, key: str, verb: str, params: Params, body: bytes) -> _Reply:
        """Make an object of others: rewrite, copy, move, compose."""
        if method != "POST":
            raise _Refused(405, "methodNotAllowed", "Method Not Allowed")
        if verb == "/compose":
            self._seen(method, "compose", params, _CHANGING)
            return self._compose(bucket, key, params, _json(body))
        found = re.fullmatch(r"/(rewriteTo|copyTo|moveTo)(?:/b/([^/]+))?/o/([^/]+)", verb)
        if found is None or (found[1] == "moveTo") != (found[2] is None):
            raise _Refused(404, "notFound", "Not Found")
        kind = found[1].removesuffix("To")
        known = _CHANGING | _SOURCE | (_REWRITING if kind == "rewrite" else _NONE)
        self._seen(method, kind, params, known)
        target = urllib.parse.unquote(found[2] or bucket), _check_name(urllib.parse.unquote(found[3]))
        source = self._pinned(self._objects(bucket).get(key), params, "sourceGeneration")
        there = self._objects(target[0]).get(target[1])
        if source is None:
            raise self._no_object(bucket, key)
        _check(source, params, "ifSource")
        _check(there, params)
        if kind == "rewrite":
            pending = self._rewrite(bucket, source, target, params)
            if pending is not None:
                return pending
        made = replace(source, name=target[1], generation=next(self._generations), metageneration=1)
        if kind == "move":
            del self._objects(bucket)[key]
        self._objects(target[0])[target[1]] = made
        resource = self._resource(target[0], made)
        if kind != "rewrite":
            return self._reply(resource)
        size = str(len(made.data))
        told: Json = {"kind": "storage#rewriteResponse", "totalBytesRewritten": size, "objectSize": size, "done": True}
        return self._reply(told | {"resource": resource})

    def _rewrite(self, bucket: str, source: _Object, target: tuple[str, str], params: Params) -> _Reply | None:
        """Go one call further; return what to say when that is not the end."""
        what: object = (bucket, source.name, source.generation, target)
        token, so_far = params.get("rewriteToken"), 0
        if token is not None:
            # Such a token is for one source and one target, as they were at the first call.
            asked, so_far = self._rewrites.pop(token, (None, 0))
            if asked != what:
                raise _wrong("Invalid rewriteToken")
        limit = _number(params, "maxBytesRewrittenPerCall")
        if limit is not None and (limit == 0 or limit % (1 << 20)):
            raise _wrong("maxBytesRewrittenPerCall is a multiple of 1 MiB")
        so_far += min(self._rewrite_limit, limit or self._rewrite_limit)
        size = len(source.data)
        if so_far >= size:
            return None
        token = f"rewrite-{next(self._tokens)}"
        self._rewrites[token] = (what, so_far)
        told: Json = {"kind": "storage#rewriteResponse", "totalBytesRewritten": str(so_far), "objectSize": str(size)}
        return self._reply(told | {"done": False, "rewriteToken": token})

    def _compose(self, bucket: str, key: str, params: Params, wanted: Json) -> _Reply:
        sources = wanted.get("sourceObjects")
        if not isinstance(sources, list) or not 1 <= len(cast("Sequence[object]", sources)) <= _MOST_SOURCES:
            raise _wrong(f"1 to {_MOST_SOURCES} source objects are needed")
        objects, parts, components = self._objects(bucket), list[bytes](), 0
        for source in cast("Sequence[Json]", sources):
            name = str(source.get("name"))
            pin = {"generation": str(source["generation"])} if "generation" in source else {}
            found = self._pinned(objects.get(name), pin)
            if found is None:
                raise self._no_object(bucket, name)
            _check(found, _text_map(source.get("objectPreconditions")))
            parts.append(found.data)
            components += found.components or 1
        destination = wanted.get("destination")
        resource = cast("Json", destination) if isinstance(destination, dict) else {}  # keys of JSON are strings
        return self._store(bucket, _check_name(key), params, resource, b"".join(parts), components)


class _Handler(LoopbackHandler):
    def reply(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        parts = list[bytes]()
        whole = True
        try:
            parts.extend(self.pieces())
        except ConnectionError:
            whole = False
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = server.fake.answer(self.command, self.path, headers, b"".join(parts), whole=whole)
        self.send_response(reply.code)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.code not in {204, 304}:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)


class _Server(LoopbackServer):
    def __init__(self, rewrite_limit: int) -> None:
        super().__init__(_Handler)
        self.fake = GCSFake(self.url, self.port, rewrite_limit)


@contextmanager
def gcs_fake(*, rewrite_limit: int = 1 << 30) -> Generator[GCSFake]:
    """Run a fake of Google Cloud Storage; one call of rewrite copies `rewrite_limit` bytes at most."""
    server = _Server(rewrite_limit)
    with serving(server):
        yield server.fake

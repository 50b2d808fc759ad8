"""The kit for registries: its cases pass where they should and, above all, fail where they should.

`Registry` is a small registry in memory that does all of the specification. A test damages its answers in one way and
names the cases that must notice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import uuid4
from xml.etree import ElementTree as ET

import h11
import pytest
import trio
from click.testing import CliRunner

from moorage_conformance.commands import conformance
from moorage_conformance.registry import CASES, CannotCheck, Outcome, Report, check_registry, select

NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE = "application/vnd.oci.image.manifest.v1+json"
LARGEST = 4 * 2**20
PAGE = 1 * 2**20

Json = dict[str, object]


@dataclass
class Request:
    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes

    def one(self, name: str) -> str | None:
        return next((value for key, value in self.query if key == name), None)


@dataclass
class Reply:
    status: int
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


Damage = Callable[[Request, Reply], None]


def error(status: int, code: str, detail: object = None) -> Reply:
    body = {"errors": [{"code": code, "message": code.lower(), "detail": detail}]}
    return Reply(status, {"Content-Type": "application/json"}, json.dumps(body).encode())


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def fits(data: bytes, digest: str) -> bool:
    return digest_of(data, digest.partition(":")[0]) == digest


class Registry:
    """All of the specification, in memory and in the shortest way."""

    def __init__(self, damage: Damage | None = None) -> None:
        self.damage = damage
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.manifests: dict[str, dict[str, tuple[bytes, str]]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.sessions: dict[str, tuple[str, bytearray]] = {}

    # ---- dispatch ----

    def answer(self, request: Request) -> Reply:
        reply = self._answer(request)
        if self.damage is not None:
            self.damage(request, reply)
        return reply

    def _answer(self, request: Request) -> Reply:
        if request.path == "/v2/":
            return Reply(200, {"Content-Type": "application/json"}, b"{}")
        if not (
            match := re.fullmatch(
                r"/v2/(.+?)/(blobs/uploads/[^/]*|(?:blobs|manifests|referrers)/[^/]+|tags/list)", request.path
            )
        ):
            return error(404, "UNSUPPORTED")
        # The last possible endpoint is the one that is meant: names may contain such words.
        match = (
            re.fullmatch(r"/v2/(.+)/(blobs/uploads/[^/]*|(?:blobs|manifests|referrers)/[^/]+|tags/list)", request.path)
            or match
        )
        name, rest = match[1], match[2]
        if not re.fullmatch(NAME, name) or len(name) > 255:
            return error(400, "NAME_INVALID", name)
        kind, _, last = rest.rpartition("/")
        handlers: dict[tuple[str, str], Callable[[Request, str, str], Reply]] = {
            ("GET", "blobs"): self.get_blob,
            ("HEAD", "blobs"): self.get_blob,
            ("DELETE", "blobs"): self.delete_blob,
            ("GET", "manifests"): self.get_manifest,
            ("HEAD", "manifests"): self.get_manifest,
            ("PUT", "manifests"): self.put_manifest,
            ("DELETE", "manifests"): self.delete_manifest,
            ("GET", "tags"): self.list_tags,
            ("GET", "referrers"): self.list_referrers,
            ("POST", "blobs/uploads"): self.start_upload,
            ("GET", "blobs/uploads"): self.session,
            ("PATCH", "blobs/uploads"): self.session,
            ("PUT", "blobs/uploads"): self.session,
            ("DELETE", "blobs/uploads"): self.session,
        }
        handler = handlers.get((request.method, kind))
        return handler(request, name, last) if handler else error(405, "UNSUPPORTED")

    # ---- blobs ----

    def get_blob(self, request: Request, name: str, digest: str) -> Reply:
        if not DIGEST.fullmatch(digest):
            return error(400, "DIGEST_INVALID", digest)
        data = self.blobs.get(name, {}).get(digest)
        if data is None:
            return error(404, "BLOB_UNKNOWN", digest)
        tag = f'"{digest}"'
        headers = {"Docker-Content-Digest": digest, "ETag": tag, "Content-Type": "application/octet-stream"}
        if request.headers.get("if-none-match") == tag:
            return Reply(304, headers)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if wanted is None or request.headers.get("if-range", tag) != tag:
            return Reply(200, headers, data)
        first, last = wanted[1], wanted[2]
        start = int(first) if first else max(len(data) - int(last), 0)
        stop = min(int(last) + 1 if first and last else len(data), len(data))
        if start >= stop:
            return Reply(416, {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return Reply(206, headers, data[start:stop])

    def delete_blob(self, request: Request, name: str, digest: str) -> Reply:
        if not DIGEST.fullmatch(digest):
            return error(400, "DIGEST_INVALID", digest)
        if self.blobs.get(name, {}).pop(digest, None) is None:
            return error(404, "BLOB_UNKNOWN", digest)
        return Reply(202)

    # ---- uploads ----

    def start_upload(self, request: Request, name: str, last: str) -> Reply:
        digest, mount = request.one("digest"), request.one("mount")
        announced = request.one("digest-algorithm")
        if announced not in {None, "sha256", "sha512"}:
            return error(400, "DIGEST_INVALID")
        if digest is not None:
            return self._store(name, digest, request.body)
        if mount is not None:
            source = request.one("from")
            for repository in [source] if source is not None else list(self.blobs):
                data = self.blobs.get(repository, {}).get(mount)
                if data is not None:
                    return self._store(name, mount, data)
        session = str(uuid4())
        self.sessions[session] = (name, bytearray())
        return self._state(202, name, session)

    def _store(self, name: str, digest: str, data: bytes) -> Reply:
        if not DIGEST.fullmatch(digest) or not fits(data, digest):
            return error(400, "DIGEST_INVALID", digest)
        self.blobs.setdefault(name, {})[digest] = data
        return Reply(201, {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})

    def _state(self, status: int, name: str, session: str) -> Reply:
        received = len(self.sessions[session][1])
        where = f"/v2/{name}/blobs/uploads/{session}"
        return Reply(status, {"Location": where, "Range": f"0-{max(received - 1, 0)}"})

    def session(self, request: Request, name: str, session: str) -> Reply:
        owner, received = self.sessions.get(session, ("", bytearray()))
        if owner != name:
            return error(404, "BLOB_UPLOAD_UNKNOWN")
        if request.method == "GET":
            return self._state(204, name, session)
        if request.method == "DELETE":
            del self.sessions[session]
            return Reply(204)
        declared = request.headers.get("content-range")
        if declared is not None:
            match = re.fullmatch(r"(\d+)-(\d+)", declared)
            if match is None or int(match[2]) - int(match[1]) + 1 != len(request.body):
                return error(400, "SIZE_INVALID")
            if int(match[1]) != len(received):
                return Reply(416, self._state(416, name, session).headers, error(416, "BLOB_UPLOAD_INVALID").body)
        if request.method == "PATCH":
            received += request.body
            return self._state(202, name, session)
        reply = self._store(name, request.one("digest") or "", bytes(received) + request.body)
        if reply.status == 201:
            del self.sessions[session]
        return reply

    # ---- manifests ----

    def _resolve(self, name: str, reference: str) -> str | None:
        digest = reference if DIGEST.fullmatch(reference) else self.tags.get(name, {}).get(reference)
        return digest if digest in self.manifests.get(name, {}) else None

    def get_manifest(self, request: Request, name: str, reference: str) -> Reply:
        if ":" in reference and not DIGEST.fullmatch(reference):
            return error(400, "DIGEST_INVALID", reference)
        digest = self._resolve(name, reference)
        if digest is None:
            return error(404, "MANIFEST_UNKNOWN", reference)
        data, media_type = self.manifests[name][digest]
        tag = f'"{digest}"'
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest, "ETag": tag}
        known = request.headers.get("if-none-match")
        if known is not None and (known == "*" or tag in known):
            return Reply(304, headers)
        return Reply(200, headers, data)

    def put_manifest(self, request: Request, name: str, reference: str) -> Reply:
        tags = [value for key, value in request.query if key == "tag"]
        by_digest = ":" in reference
        if by_digest and not DIGEST.fullmatch(reference):
            return error(400, "DIGEST_INVALID", reference)
        if not all(TAG.fullmatch(tag) for tag in (tags if by_digest else [reference])):
            return error(400, "MANIFEST_INVALID", "tag")
        if len(request.body) > LARGEST:
            return error(413, "SIZE_INVALID")
        if by_digest and not fits(request.body, reference):
            return error(400, "DIGEST_INVALID", reference)
        media_type = request.headers.get("content-type", "").partition(";")[0]
        try:
            document = cast("Json", json.loads(request.body))
            assert document.get("mediaType", media_type) == media_type
        except (ValueError, AttributeError, AssertionError):
            return error(400, "MANIFEST_INVALID")
        current = self.tags.get(name, {}).get(reference)
        condition = request.headers.get("if-match")
        if (condition is not None and condition != f'"{current}"') or (current and "if-none-match" in request.headers):
            return error(412, "DENIED")
        missing = [digest for digest in self._references(document) if not self._has(name, digest)]
        if missing:
            body = {"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "detail": digest} for digest in missing]}
            return Reply(400, {"Content-Type": "application/json"}, json.dumps(body).encode())
        digest = reference if by_digest else digest_of(request.body)
        self.manifests.setdefault(name, {})[digest] = (request.body, media_type)
        for tag in tags if by_digest else [reference]:
            self.tags.setdefault(name, {})[tag] = digest
        headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
        subject = cast("Json | None", document.get("subject"))
        if subject is not None:
            headers["OCI-Subject"] = str(subject["digest"])
        if tags:
            headers["OCI-Tag"] = ", ".join(tags)
        return Reply(201, headers)

    def _has(self, name: str, digest: str) -> bool:
        return digest in self.blobs.get(name, {}) or digest in self.manifests.get(name, {})

    @staticmethod
    def _references(document: Json) -> Iterator[str]:
        config = [document["config"]] if "config" in document else []
        lists = [config, document.get("layers", []), document.get("manifests", [])]
        for descriptor in (one for part in lists for one in cast("list[Json]", part)):
            if "nondistributable" not in str(descriptor["mediaType"]):
                yield str(descriptor["digest"])

    def delete_manifest(self, request: Request, name: str, reference: str) -> Reply:
        if ":" in reference and not DIGEST.fullmatch(reference):
            return error(400, "DIGEST_INVALID", reference)
        digest = self._resolve(name, reference)
        if digest is None:
            return error(404, "MANIFEST_UNKNOWN", reference)
        tags = self.tags.get(name, {})
        for tag in [reference] if reference != digest else [tag for tag, target in tags.items() if target == digest]:
            del tags[tag]
        if reference == digest:
            del self.manifests[name][digest]
        return Reply(202)

    # ---- lists ----

    def list_tags(self, request: Request, name: str, last: str) -> Reply:
        if name not in self.manifests:
            return error(404, "NAME_UNKNOWN", name)
        n, after = request.one("n"), request.one("last")
        if n is not None and not n.isdigit():
            return error(400, "UNSUPPORTED", "n")
        found = sorted(tag for tag in self.tags.get(name, {}) if after is None or tag > after)
        count = int(n) if n is not None else len(found)
        headers = {"Content-Type": "application/json"}
        if 0 < count < len(found):
            headers["Link"] = f'</v2/{name}/tags/list?n={n}&last={found[count - 1]}>; rel="next"'
        return Reply(200, headers, json.dumps({"name": name, "tags": found[:count]}).encode())

    def list_referrers(self, request: Request, name: str, digest: str) -> Reply:
        if not DIGEST.fullmatch(digest):
            return error(400, "DIGEST_INVALID", digest)
        wanted, last = request.one("artifactType"), request.one("last") or ""
        entries: list[Json] = []
        headers = {"Content-Type": INDEX}
        size = 0
        for own, (data, media_type) in sorted(self.manifests.get(name, {}).items()):
            document = cast("Json", json.loads(data))
            if cast("Json", document.get("subject") or {}).get("digest") != digest or own <= last:
                continue
            entry: Json = {"mediaType": media_type, "digest": own, "size": len(data)}
            config = cast("Json", document.get("config") or {})
            artifact_type = document.get("artifactType") or config.get("mediaType")
            if artifact_type:
                entry["artifactType"] = artifact_type
            if "annotations" in document:
                entry["annotations"] = document["annotations"]
            if wanted is not None and artifact_type != wanted:
                continue
            if size > PAGE:
                headers["Link"] = f'</v2/{name}/referrers/{digest}?last={entries[-1]["digest"]}>; rel="next"'
                break
            entries.append(entry)
            size += len(data)
        if wanted is not None:
            headers["OCI-Filters-Applied"] = "artifactType"
        return Reply(200, headers, json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode())


# ---- HTTP around it ----


async def _serve_connection(registry: Registry, stream: trio.SocketStream) -> None:
    connection = h11.Connection(h11.SERVER)

    async def send(*events: h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage) -> None:
        data = b"".join(part for event in events if (part := connection.send(event)))
        await stream.send_all(data)

    async def event() -> object:
        while (found := connection.next_event()) is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                await send(h11.InformationalResponse(status_code=100, headers=[]))
            connection.receive_data(bytes(await stream.receive_some(2**17)))
        return found

    async with stream:
        try:
            while isinstance(head := await event(), h11.Request):
                pieces: list[bytes] = []
                while isinstance(part := await event(), h11.Data):
                    pieces.append(bytes(part.data))
                if not isinstance(part, h11.EndOfMessage):
                    return
                target = urlsplit(head.target.decode())
                request = Request(
                    head.method.decode(),
                    target.path,
                    parse_qsl(target.query, keep_blank_values=True),
                    {name.decode(): value.decode() for name, value in head.headers},
                    b"".join(pieces),
                )
                reply = registry.answer(request)
                headers = {"Content-Length": str(len(reply.body)), **reply.headers}
                if reply.status in {204, 304}:
                    headers.pop("Content-Length")
                body = b"" if request.method == "HEAD" else reply.body
                await send(
                    h11.Response(status_code=reply.status, headers=list(headers.items())),
                    *([h11.Data(data=body)] if body else []),
                    h11.EndOfMessage(),
                )
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
        except (h11.LocalProtocolError, h11.RemoteProtocolError, trio.BrokenResourceError):
            return


@asynccontextmanager
async def serving(registry: Registry) -> AsyncGenerator[str]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(partial(trio.serve_listeners, partial(_serve_connection, registry), listeners))
        port = cast("int", listeners[0].socket.getsockname()[1])
        yield f"http://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def check(damage: Damage | None, *only: str) -> Report:
    async with serving(Registry(damage)) as url:
        return await check_registry(url, only=only)


def failures(report: Report) -> dict[str, str]:
    return {result.key: result.reason for result in report.of(Outcome.FAILED, Outcome.ERROR)}


# ---- cases pass, and fail ----

NOT_FOR_THE_MODEL = {
    "base.discovery_of_extensions_is_well_formed": "it has no extensions",
    "errors.caller_without_credentials": "it wants no credentials",
}


async def test_every_case_passes_on_a_registry_that_does_everything() -> None:
    report = await check(None)
    assert failures(report) == {}
    assert {result.key for result in report.of(Outcome.SKIPPED)} == set(NOT_FOR_THE_MODEL)
    assert len(report.results) == len(CASES)
    assert report.conforms()
    assert not report.conforms(strict=True)


async def test_cases_pass_again_on_the_same_store() -> None:
    async with serving(Registry()) as url:
        for _ in range(2):
            report = await check_registry(url, only=["tags", "deletes"], concurrency=8)
            assert failures(report) == {}


def on(method: str, path: str, *statuses: int) -> Callable[[Request, Reply], bool]:
    return lambda request, reply: (
        request.method in method.split()
        and re.search(path, request.path) is not None
        and (not statuses or reply.status in statuses)
    )


def damaging(where: Callable[[Request, Reply], bool], how: Callable[[Reply], object]) -> Damage:
    def damage(request: Request, reply: Reply) -> None:
        if where(request, reply):
            how(reply)

    return damage


def header(name: str, value: str | None) -> Callable[[Reply], object]:
    return lambda reply: reply.headers.update({name: value}) if value is not None else reply.headers.pop(name, None)


def status(value: int) -> Callable[[Reply], object]:
    return lambda reply: setattr(reply, "status", value)


def body(change: Callable[[bytes], bytes]) -> Callable[[Reply], object]:
    return lambda reply: setattr(reply, "body", change(reply.body))


def document(change: Callable[[dict[str, list[Json]]], object]) -> Callable[[Reply], object]:
    def how(reply: Reply) -> None:
        decoded = json.loads(reply.body)
        change(decoded)
        reply.body = json.dumps(decoded).encode()

    return how


def without(*names: str) -> Callable[[dict[str, list[Json]]], object]:
    def change(decoded: dict[str, list[Json]]) -> None:
        for entry in decoded["manifests"]:
            for name in names:
                entry.pop(name, None)

    return change


def unsorted(decoded: dict[str, list[Json]]) -> None:
    decoded["tags"].reverse()


def emptied(decoded: dict[str, list[Json]]) -> None:
    decoded["manifests"].clear()


SESSION = r"/blobs/uploads/[^/]+$"
DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    "HEAD of a blob with a wrong length": (
        damaging(on("HEAD", r"/blobs/sha", 200), header("Content-Length", "7")),
        ["blobs.head_is_200_without_a_body", "blobs.head_has_the_length"],
    ),
    "HEAD of a manifest with a wrong length": (
        damaging(on("HEAD", r"/manifests/", 200), header("Content-Length", "7")),
        ["manifests.head_has_the_length", "manifests.image_manifest"],
    ),
    "no digest on blobs": (
        damaging(on("GET HEAD", r"/blobs/sha", 200), header("Docker-Content-Digest", None)),
        ["blobs.get_names_the_digest", "blobs.head_names_the_digest", "blobs.get_by_sha512_names_the_digest"],
    ),
    "another digest on manifests": (
        damaging(on("GET HEAD", r"/manifests/", 200), header("Docker-Content-Digest", digest_of(b""))),
        ["manifests.get_names_the_digest", "manifests.image_index"],
    ),
    "bytes lost": (
        damaging(on("GET", r"/(blobs|manifests)/", 200), body(lambda data: data[:-1])),
        ["blobs.get_returns_the_bytes", "manifests.image_manifest", "uploads.post_then_put"],
    ),
    "manifests written anew": (
        damaging(on("GET", r"/manifests/", 200), body(lambda data: json.dumps(json.loads(data)).encode())),
        ["manifests.unusual_spelling", "manifests.unknown_fields"],
    ),
    "a charset behind the type": (
        damaging(on("GET HEAD", r"/manifests/", 200), header("Content-Type", f"{IMAGE}; charset=utf-8")),
        ["manifests.content_type_has_no_parameters"],
    ),
    "missing blobs are 500": (
        damaging(on("GET HEAD", r"/blobs/", 404), status(500)),
        ["blobs.get_of_a_missing_blob_is_404", "uploads.wrong_digest_of_a_put_is_400", "errors.missing_blob"],
    ),
    "202 without Location": (
        damaging(on("POST", SESSION.replace("[^/]+", ""), 202), header("Location", None)),
        ["uploads.post_opens_a_session", "uploads.post_then_put"],
    ),
    "201 without Location": (
        damaging(on("PUT", r"/(uploads|manifests)/", 201), header("Location", None)),
        ["uploads.post_then_put", "manifests.image_manifest"],
    ),
    "Range in another unit": (
        damaging(on("PATCH", SESSION, 202), header("Range", "bytes=0-1023")),
        ["uploads.range_after_the_first_chunk", "uploads.range_is_of_the_whole_blob_so_far"],
    ),
    "state of a session is 200": (
        damaging(on("GET", SESSION, 204), status(200)),
        ["uploads.state_of_a_new_session", "uploads.session_survives_a_wrong_chunk"],
    ),
    "416 called 400": (
        damaging(on("PATCH PUT", SESSION, 416), status(400)),
        ["uploads.chunk_that_skips_ahead_is_416", "uploads.closing_chunk_that_skips_ahead_is_416"],
    ),
    "ranges called 200": (
        damaging(on("GET", r"/blobs/sha", 206), status(200)),
        ["blobs.range_from_first_to_last", "blobs.range_to_the_end"],
    ),
    "ranges with a wrong Content-Range": (
        damaging(on("GET", r"/blobs/sha", 206), header("Content-Range", "bytes 0-0/1")),
        ["blobs.range_of_the_last_bytes", "blobs.range_past_the_end_is_clipped"],
    ),
    "cancel is 200": (
        damaging(on("DELETE", SESSION, 204), status(200)),
        ["uploads.cancel_is_204"],
    ),
    "wrong digests called 404": (
        damaging(on("PUT POST", r"/blobs/uploads/", 400), status(404)),
        ["uploads.wrong_digest_of_a_put_is_400", "uploads.unsupported_algorithm_of_a_put_is_400"],
    ),
    "tags out of order": (
        damaging(on("GET", r"/tags/list", 200), document(unsorted)),
        ["tags.order", "tags.first_n", "tags.links_lead_through_the_whole_list"],
    ),
    "n=0 with a Link": (
        damaging(on("GET", r"/tags/list", 200), header("Link", '</v2/x/tags/list?n=0>; rel="next"')),
        ["tags.n_of_zero"],
    ),
    "referrers of nothing are 404": (
        damaging(on("GET", r"/referrers/", 200), status(404)),
        ["referrers.unknown_repository_is_200"],
    ),
    "referrers with another type": (
        damaging(on("GET", r"/referrers/", 200), header("Content-Type", "application/json")),
        ["referrers.unknown_repository_is_200", "referrers.artifact_with_its_own_type"],
    ),
    "referrers not listed": (
        damaging(on("GET", r"/referrers/", 200), document(emptied)),
        ["referrers.subject_that_is_missing", "referrers.filter_by_artifact_type", "referrers.long_list"],
    ),
    "referrers without annotations": (
        damaging(on("GET", r"/referrers/", 200), document(without("annotations"))),
        ["referrers.annotations_are_copied"],
    ),
    "referrers without artifactType": (
        damaging(on("GET", r"/referrers/", 200), document(without("artifactType"))),
        ["referrers.image_without_artifact_type", "referrers.artifact_with_its_own_type"],
    ),
    "referrers without a way to the next page": (
        damaging(on("GET", r"/referrers/", 200), header("Link", None)),
        ["referrers.long_list"],
    ),
    "no OCI-Subject": (
        damaging(on("PUT", r"/manifests/", 201), header("OCI-Subject", None)),
        ["manifests.subject_of_an_image", "manifests.subject_of_an_index", "manifests.missing_subject_is_named"],
    ),
    "OCI-Tag that forgets": (
        damaging(
            lambda request, reply: "OCI-Tag" in reply.headers,
            lambda reply: reply.headers.update({"OCI-Tag": reply.headers["OCI-Tag"].split(", ")[-1]}),
        ),
        ["manifests.push_with_ten_tags", "manifests.tags_of_an_index_and_its_children"],
    ),
    "412 but done": (
        damaging(on("PUT", r"/manifests/", 412), status(500)),
        ["manifests.put_if_the_tag_has_moved_is_412", "manifests.only_one_of_many_conditional_puts_wins"],
    ),
    "an unknown code": (
        damaging(on("GET", r"", 404), body(lambda data: re.sub(rb"[A-Z]+_UNKNOWN", b"NO_SUCH_THING", data))),
        ["errors.missing_blob", "errors.missing_manifest", "errors.tags_of_an_unknown_repository"],
    ),
    "errors of another shape": (
        damaging(on("GET PUT", r"", 400, 404), body(lambda data: b'{"error": "no"}')),
        ["errors.missing_blob", "errors.wrong_digest", "manifests.missing_layer"],
    ),
    "another code for missing references": (
        damaging(on("PUT", r"", 400), body(lambda data: data.replace(b"MANIFEST_BLOB_UNKNOWN", b"BLOB_UNKNOWN"))),
        ["manifests.missing_config", "manifests.missing_child_of_an_index", "errors.missing_reference"],
    ),
    "a warning that is none": (
        damaging(on("GET", r"/tags/list"), header("Warning", "careful")),
        ["tags.all_tags_are_listed"],
    ),
    "deletes that say 200": (
        damaging(on("DELETE", r"", 202), status(200)),
        ["deletes.tag_is_gone_at_once", "deletes.manifest_is_gone_at_once", "deletes.blob_is_gone_at_once"],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_damage_is_noticed(name: str) -> None:
    damage, cases = DAMAGES[name]
    report = await check(damage, *cases)
    assert len(report.results) == len(cases)
    assert {result.key: result.outcome for result in report.results} == dict.fromkeys(cases, Outcome.FAILED)


class _Forgetful(Registry):
    """Keeps the tags of what is deleted, and lists what was never acknowledged."""

    def delete_manifest(self, request: Request, name: str, reference: str) -> Reply:
        kept = dict(self.tags.get(name, {}))
        manifests = dict(self.manifests.get(name, {}))
        reply = super().delete_manifest(request, name, reference)
        if reply.status == 202:
            self.tags[name], self.manifests[name] = kept, manifests
        return reply

    def delete_blob(self, request: Request, name: str, digest: str) -> Reply:
        reply = super().delete_blob(request, name, digest)
        for blobs in self.blobs.values():
            blobs.pop(digest, None)
        return reply

    def _store(self, name: str, digest: str, data: bytes) -> Reply:
        self.blobs.setdefault(name, {})[digest] = data
        return super()._store(name, digest, data)

    def session(self, request: Request, name: str, session: str) -> Reply:
        request.headers.pop("content-range", None)
        return super().session(request, name, session)

    def get_blob(self, request: Request, name: str, digest: str) -> Reply:
        everywhere = {one: data for blobs in self.blobs.values() for one, data in blobs.items()}
        if digest in everywhere:
            self.blobs.setdefault(name, {})[digest] = everywhere[digest]
        return super().get_blob(request, name, digest)


FORGOTTEN = [
    "deletes.tag_is_gone_at_once",
    "deletes.manifest_is_gone_at_once",
    "deletes.manifest_takes_its_tags_along",
    "deletes.blob_of_another_repository_remains",
    "deletes.mounted_blob_survives_its_source",
    "uploads.wrong_digest_of_a_put_is_400",
    "uploads.chunk_sent_again_is_416",
    "uploads.session_survives_a_wrong_chunk",
    "uploads.two_patches_at_once",
    "blobs.get_of_another_repositorys_blob_is_404",
    "blobs.head_of_another_repositorys_blob_is_404",
    "tags.deleted_tag_is_not_listed",
    "referrers.deleted_referrer_is_not_listed",
]


async def test_a_registry_that_behaves_wrongly_is_noticed() -> None:
    async with serving(_Forgetful()) as url:
        report = await check_registry(url, only=FORGOTTEN)
    assert set(failures(report)) == set(FORGOTTEN)


async def test_what_a_registry_may_decline_is_skipped_with_the_reason() -> None:
    def damage(request: Request, reply: Reply) -> None:
        if request.method == "DELETE" and "uploads" not in request.path:
            reply.status, reply.headers, reply.body = 405, {}, b""
        if "OCI-Tag" in reply.headers:
            del reply.headers["OCI-Tag"]

    cases = ["deletes.tag_is_gone_at_once", "deletes.blob_is_gone_at_once", "manifests.push_with_ten_tags"]
    report = await check(damage, *cases)
    assert {result.key: result.outcome for result in report.results} == dict.fromkeys(cases, Outcome.SKIPPED)
    assert all(result.reason for result in report.results)


async def test_a_failure_shows_the_whole_exchange() -> None:
    [reason] = failures(
        await check(*DAMAGES["Range in another unit"][:1], "uploads.range_after_the_first_chunk")
    ).values()
    for part in (
        "expected Range: 0-1023",
        "got Range: bytes=0-1023",
        "PATCH http://127.0.0.1:",
        "202 Accepted",
        "Location",
    ):
        assert part in reason


async def test_a_broken_answer_is_a_failure() -> None:
    report = await check(
        damaging(on("GET", r"/blobs/sha", 200), header("Content-Length", "9999")), "blobs.get_returns_the_bytes"
    )
    assert "a whole answer" in failures(report)["blobs.get_returns_the_bytes"]


async def test_a_silent_registry_is_a_failure_after_the_limit() -> None:
    async def never(stream: trio.SocketStream) -> None:
        connection = b""
        async with stream:
            while b"\r\n\r\n" not in connection:
                connection += bytes(await stream.receive_some(65536))
            if b"GET /v2/ " in connection:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(partial(trio.serve_listeners, never, listeners))
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        report = await check_registry(url, only=["tags.unknown_repository"], limit=0.2)
        nursery.cancel_scope.cancel()
    assert failures(report) == {"tags.unknown_repository": "it was not finished within 0.2 s"}


async def test_basic_credentials_are_sent_and_asked_for() -> None:
    def damage(request: Request, reply: Reply) -> None:
        if request.headers.get("authorization") != "Basic YW46bm90aGVy":
            refusal = error(401, "UNAUTHORIZED")
            reply.status, reply.body = refusal.status, refusal.body
            reply.headers = {**refusal.headers, "WWW-Authenticate": 'Basic realm="test"'}

    only = [
        "base",
        "blobs.get_returns_the_bytes",
        "errors.caller_without_credentials",
        "uploads.put_waits_for_continue",
    ]
    async with serving(Registry(damage)) as url:
        report = await check_registry(url, only=only, username="an", password="nother")
        assert failures(report) == {}
        with pytest.raises(CannotCheck, match="wants a --username and --password"):
            await check_registry(url)
        with pytest.raises(CannotCheck, match="does not accept the credentials"):
            await check_registry(url, username="an", password="wrong")


async def test_tokens_are_asked_for() -> None:
    def damage(request: Request, reply: Reply) -> None:
        granted = "Bearer " + unquote(dict(request.query).get("scope", "")) + "!"
        if request.path == "/token":
            assert request.headers["authorization"] == "Basic YW46bm90aGVy"
            reply.status, reply.headers = 200, {"Content-Type": "application/json"}
            reply.body = json.dumps({"token": granted.removeprefix("Bearer ")}).encode()
        elif not request.headers.get("authorization", "").startswith("Bearer registry:"):
            reply.status, reply.body = 401, b""
            challenge = 'Bearer realm="/token",service="test",scope="registry:catalog:*"'
            reply.headers = {"WWW-Authenticate": challenge}

    async with serving(Registry(damage)) as url:
        only = ["blobs.get_returns_the_bytes", "tags.first_n"]
        assert failures(await check_registry(url, only=only, username="an", password="nother")) == {}


# ---- the table ----


def test_every_case_has_its_own_name_and_says_what_it_requires() -> None:
    assert len({case.key for case in CASES}) == len(CASES)
    for case in CASES:
        assert case.requirement.endswith("."), case.key
        assert case.section, case.key


def test_versions_grow() -> None:
    sizes = [len(select(version=version)) for version in ("1.0", "1.1", "dev")]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == len(CASES)


def test_cases_are_selected_by_group_name_or_both() -> None:
    assert {case.group for case in select(["tags"])} == {"tags"}
    assert [case.key for case in select(["tags.order"])] == ["tags.order"]
    assert len({case.group for case in select(["*at_once"])}) > 1


# ---- the command ----


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(conformance, ["registry", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@contextmanager
def served_elsewhere(damage: Damage | None = None) -> Generator[str]:
    """Serve from another thread, as the command runs a loop of its own."""
    ready: list[tuple[str, trio.lowlevel.TrioToken, trio.Event]] = []
    started = threading.Event()

    async def serve() -> None:
        async with serving(Registry(damage)) as url:
            ended = trio.Event()
            ready.append((url, trio.lowlevel.current_trio_token(), ended))
            started.set()
            await ended.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    started.wait()
    url, token, ended = ready[0]
    try:
        yield url
    finally:
        trio.from_thread.run_sync(ended.set, trio_token=token)
        thread.join()


def test_command_succeeds_and_writes_reports(tmp_path: Path) -> None:
    files = [tmp_path / "results.json", tmp_path / "junit.xml"]
    with served_elsewhere() as url:
        code, output = run(url, "--only", "base", "--json", str(files[0]), "--junit", str(files[1]))
    assert code == 0
    assert "GET /v2/ answers 200 to a caller who may come in." in output
    assert f"{url} conforms, 1 skipped" in output
    written = json.loads(files[0].read_text())
    assert written["counts"] == {"passed": 2, "skipped": 1, "failed": 0, "error": 0}
    suites = ET.parse(files[1]).getroot()
    assert (suites.get("tests"), suites.get("failures"), suites.get("skipped")) == ("3", "0", "1")


def test_command_counts_skips_as_failures_when_strict() -> None:
    with served_elsewhere() as url:
        code, output = run(url, "--only", "base", "--strict")
    assert code == 1
    assert "--strict counts" in output


def test_command_fails_when_a_case_does(tmp_path: Path) -> None:
    damage, _ = DAMAGES["tags out of order"]
    junit = tmp_path / "junit.xml"
    with served_elsewhere(damage) as url:
        code, output = run(url, "--only", "tags.order", "--junit", str(junit))
    assert code == 1
    assert "does not conform: 1 failed" in output
    assert "expected byte order, or alphabetical order without regard to case\n" in output
    assert len(ET.parse(junit).getroot().findall("testsuite/testcase/failure")) == 1


def test_command_lists_cases_without_a_registry() -> None:
    code, output = run("--list")
    assert code == 0
    assert all(case.key in output for case in CASES)
    assert f"{len(CASES)} cases" in output
    older = run("--list", "--version", "1.0")[1]
    assert "tags.order" in older
    assert "uploads.cancel_is_204" not in older


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["http://127.0.0.1:1", "--only", "no-such-case"], "No case of version dev matches no-such-case."),
        (["http://127.0.0.1:1"], "No registry can be reached at http://127.0.0.1:1"),
        (["ftp://127.0.0.1"], "ftp://127.0.0.1 is not the URL of a registry"),
        (["127.0.0.1:port"], "is not the URL of a registry"),
        (["--list", "--only", "nothing"], "No case of version dev matches nothing."),
        ([], "Missing argument"),
        (["http://127.0.0.1:1", "--password", "x"], "--password needs --username"),
        (["http://127.0.0.1:1", "--version", "2"], "Invalid value"),
    ],
)
def test_command_says_in_a_sentence_why_nothing_was_checked(arguments: list[str], sentence: str) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert sentence in " ".join(output.split())
    assert "Traceback" not in output


# ---- a real registry ----

DISTRIBUTION = shutil.which("docker-registry")

UNORDERED = "tags come in no order, and n and last are ignored"
UNCHECKED = "the Content-Range of a chunk is not looked at"
MOUNTS = "a mount by sha512 is acknowledged, but then the blob is found by sha256 only"
ACCEPT = "Accept is compared word by word: a wildcard accepts nothing"
AS_A_TAG = "what is no digest is taken for a tag, which its storage then refuses with 500"
LENGTH = "a 416 has the Content-Length of the whole blob"
TYPES = "any other Content-Type of a chunk is 500"

FAILS_ON_DISTRIBUTION = {
    "blobs.range_beyond_the_end_is_416": LENGTH,
    "blobs.range_that_runs_backwards_is_416": LENGTH,
    "blobs.range_in_another_unit_is_ignored": LENGTH,
    "uploads.chunk_that_skips_ahead_is_416": UNCHECKED,
    "uploads.first_chunk_not_at_zero_is_416": UNCHECKED,
    "uploads.chunk_sent_again_is_416": UNCHECKED,
    "uploads.closing_chunk_that_skips_ahead_is_416": UNCHECKED,
    "uploads.session_survives_a_wrong_closing_chunk": UNCHECKED,
    "uploads.session_survives_a_wrong_chunk": UNCHECKED,
    "uploads.chunk_shorter_than_its_range_is_refused": UNCHECKED,
    "uploads.unreadable_content_range_is_refused": UNCHECKED,
    "errors.chunk_out_of_order": UNCHECKED,
    "uploads.mount_by_sha512": MOUNTS,
    "manifests.malformed_digest_on_pull_is_400_or_404": AS_A_TAG,
    "manifests.malformed_digest_is_400": AS_A_TAG,
    "manifests.unsupported_algorithm_is_400": AS_A_TAG,
    "errors.invalid_tags_are_refused": AS_A_TAG,
    "manifests.no_accept_at_all": ACCEPT,
    "manifests.accept_anything": ACCEPT,
    "manifests.accept_a_family_of_types": ACCEPT,
    "manifests.unchanged_manifest_is_304": "If-None-Match is compared as one word: a list never matches",
    "manifests.missing_manifest_is_404_under_a_condition": "If-None-Match is answered before it looks for the manifest",
    "tags.order": UNORDERED,
    "tags.first_n": UNORDERED,
    "tags.n_of_zero": UNORDERED,
    "tags.last_without_n": UNORDERED,
    "tags.last_with_n": UNORDERED,
    "tags.last_at_the_end": UNORDERED,
    "tags.last_that_does_not_exist": UNORDERED,
    "tags.last_leads_through_the_whole_list": UNORDERED,
    "tags.repository_with_untagged_manifests_only": "a repository without tags is 404",
    "referrers.unknown_repository_is_200": "there is no referrers API",
    "errors.long_name": "a name that is too long is 500",
    "errors.media_type_of_a_chunk": TYPES,
    "errors.chunk_with_its_type_in_other_letters": TYPES,
}
"""What Debian's docker-registry (distribution 2.8.2) does wrong, and why."""

MAY_FAIL_ON_DISTRIBUTION = {
    "manifests.tag_overwritten_during_pulls": "a pull meets the tag's link while it is written, and is 500",
    "deletes.manifest_deleted_during_its_push": "push and delete of one manifest at once can be 400 or 500",
    "uploads.two_patches_at_once": UNCHECKED,
}
"""What it does wrong now and then."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return cast("int", one.getsockname()[1])


@pytest.fixture
def distribution(tmp_path: Path) -> Iterable[str]:
    if DISTRIBUTION is None:
        pytest.skip("docker-registry is not installed: the kit was not tried on it")
    port = free_port()
    configuration = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
        # Without this it refuses every layer that has a URL.
        "validation": {"manifests": {"urls": {"allow": ["^https://example.com/"]}}},
    }
    path = tmp_path / "config.yml"
    path.write_text(json.dumps(configuration))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}
    with subprocess.Popen(
        [DISTRIBUTION, "serve", str(path)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                assert process.poll() is None, "docker-registry did not start"
                with socket.socket() as one:
                    if one.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


@pytest.mark.needs_tool("docker-registry")
async def test_distribution_fails_only_where_it_is_known_to_be_wrong(distribution: str) -> None:
    report = await check_registry(distribution, limit=math.inf)
    found = failures(report)
    unexpected = {
        key: reason for key, reason in found.items() if key not in FAILS_ON_DISTRIBUTION | MAY_FAIL_ON_DISTRIBUTION
    }
    assert unexpected == {}
    assert set(FAILS_ON_DISTRIBUTION) - set(found) == set()
    skipped = {result.key for result in report.of(Outcome.SKIPPED)}
    assert {"uploads.single_post", "manifests.push_with_ten_tags", "referrers.long_list"} <= skipped
    assert report.count(Outcome.PASSED) > 150

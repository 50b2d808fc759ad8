"""What the kit asks plugins about: an operation of every kind with a reply to it, and pushes of every kind of manifest."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cache

import msgspec
import trio

from moorage import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MANIFEST_LIMIT,
    OCI_INDEX,
    OCI_MANIFEST,
    Access,
    AppendUpload,
    Blob,
    BlobPushed,
    CancelUpload,
    CheckAccess,
    CommitUpload,
    CountUploads,
    DeleteBlob,
    Deleted,
    DeleteManifest,
    DeleteTag,
    Descriptor,
    Digest,
    IssuedToken,
    IssueToken,
    ListReferrers,
    ListRepositories,
    ListTags,
    Manifest,
    ManifestPushed,
    MemoryDriver,
    MountBlob,
    OpenUpload,
    Operation,
    Origin,
    Ping,
    Pong,
    PublishedKeys,
    PublishKeys,
    PullBlob,
    PullManifest,
    PushBlob,
    PushManifest,
    Reader,
    ReferrerList,
    Registry,
    RepositoryList,
    RepositoryName,
    Stat,
    StatUpload,
    Tag,
    TagList,
    UploadCancelled,
    UploadCount,
    UploadOpened,
    UploadProgress,
    parse_pushed,
    parse_stored,
)

REPOSITORY = RepositoryName("moorage/conformance")
OTHER = RepositoryName("moorage/other")
TAG = Tag("v1")
UPLOAD = "0b5e42a6-6b2f-4c0c-9c1c-3f6a5d1f0a11"
ORIGIN = Origin(request_id="1", address="192.0.2.1", host="registry.example", method="PUT", user_agent="kit")

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
FOREIGN_TYPE = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
NONDISTRIBUTABLE_TYPE = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
DOCKER_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"

Json = Mapping[str, object]


# ---- operations


class Unknown(Operation[str], frozen=True, kw_only=True):
    """An operation of a later Moorage, or of somebody else: needs no right, and no plugin knows it."""

    @property
    def access(self) -> tuple[Access, ...]:
        """No right in particular."""
        return ()


class Pieces:
    """A body that comes piece by piece."""

    def __init__(self, pieces: Iterable[bytes], length: int | None) -> None:
        """Give `pieces`, and announce `length` bytes."""
        self.length = length
        self._pieces = iter(pieces)

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give what is left."""
        return self

    async def __anext__(self) -> bytes:
        """Give the next piece."""
        await trio.lowlevel.checkpoint()
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


LAYER = b"a layer of the conformance kit"
CONFIG = b'{"architecture": "amd64", "os": "linux", "config": {"Labels": {"a": "b"}}}'
_OPERATIONS: tuple[Callable[[RepositoryName], Operation[object]], ...] = (
    lambda _: Ping(origin=ORIGIN),
    lambda name: PullManifest(origin=ORIGIN, repository=name, reference=TAG),
    lambda name: PullBlob(origin=ORIGIN, repository=name, digest=Digest.of(LAYER)),
    lambda name: PushManifest(
        origin=ORIGIN, repository=name, reference=TAG, media_type=OCI_MANIFEST, data=image_document()
    ),
    lambda name: DeleteTag(origin=ORIGIN, repository=name, tag=TAG),
    lambda name: DeleteManifest(origin=ORIGIN, repository=name, digest=Digest.of(image_document())),
    lambda name: DeleteBlob(origin=ORIGIN, repository=name, digest=Digest.of(LAYER)),
    lambda name: OpenUpload(origin=ORIGIN, repository=name),
    lambda name: PushBlob(origin=ORIGIN, repository=name, digest=Digest.of(LAYER), body=body()),
    lambda name: MountBlob(origin=ORIGIN, repository=name, digest=Digest.of(LAYER), source=OTHER),
    lambda name: StatUpload(origin=ORIGIN, repository=name, upload_id=UPLOAD),
    lambda name: AppendUpload(origin=ORIGIN, repository=name, upload_id=UPLOAD, body=body()),
    lambda name: CommitUpload(origin=ORIGIN, repository=name, upload_id=UPLOAD, digest=Digest.of(LAYER), body=body()),
    lambda name: CancelUpload(origin=ORIGIN, repository=name, upload_id=UPLOAD),
    lambda name: CountUploads(origin=ORIGIN, repository=name, limit=10),
    lambda name: ListTags(origin=ORIGIN, repository=name),
    lambda name: ListReferrers(origin=ORIGIN, repository=name, subject=Digest.of(image_document())),
    lambda _: ListRepositories(origin=ORIGIN),
    lambda name: CheckAccess(origin=ORIGIN, needed=(Access(name, "pull"),)),
    lambda name: IssueToken(origin=ORIGIN, service="registry.example", scopes=(f"repository:{name}:pull",)),
    lambda _: PublishKeys(origin=ORIGIN),
)


def body() -> Pieces:
    """Return a body of two pieces."""
    return Pieces([LAYER[:7], LAYER[7:]], len(LAYER))


def operations(repository: RepositoryName = REPOSITORY) -> list[Operation[object]]:
    """Return one operation of each kind of the core, with bodies that nobody has read."""
    return [make(repository) for make in _OPERATIONS]


def again(operation: Operation[object]) -> Operation[object]:
    """Return the same operation, with its body unread."""
    return msgspec.structs.replace(operation, body=body()) if hasattr(operation, "body") else operation


def reply_to(operation: Operation[object], opened: Callable[[], object] = bool) -> object:
    """Return a reply of the right kind; `opened` is called when a blob in it is opened."""
    name = getattr(operation, "repository", REPOSITORY)
    digest = Digest.of(LAYER)
    match operation:
        case Ping() | CheckAccess():
            return Pong()
        case IssueToken():
            return IssuedToken(token="a.token.of-the-kit", issued_at=0, expires_in=300)  # noqa: S106 - nobody's
        case PublishKeys():
            return PublishedKeys(b'{"keys": []}')
        case PullManifest():
            return parse_stored(image_document(), Digest.of(image_document()))
        case PullBlob():
            return _blob(opened)
        case PushManifest():
            manifest = Descriptor(media_type=operation.media_type, digest=Digest.of(operation.data), size=9)
            return ManifestPushed(repository=name, descriptor=manifest, reference=operation.reference)
        case DeleteTag() | DeleteManifest() | DeleteBlob():
            return Deleted()
        case OpenUpload():
            return UploadOpened(repository=name, upload_id=UPLOAD)
        case PushBlob() | MountBlob() | CommitUpload():
            return BlobPushed(repository=name, digest=digest)
        case StatUpload() | AppendUpload():
            return UploadProgress(repository=name, upload_id=UPLOAD, offset=len(LAYER))
        case CancelUpload():
            return UploadCancelled(UPLOAD)
        case CountUploads():
            return UploadCount(1)
        case ListTags():
            return TagList(repository=name, tags=(TAG,), more=False)
        case ListReferrers():
            return ReferrerList(referrers=(), more=False, last=None)
        case ListRepositories():
            return RepositoryList(repositories=(REPOSITORY,), more=False)
        case _:
            return "the reply to an unknown operation"


def _blob(opened: Callable[[], object]) -> Blob:
    @asynccontextmanager
    async def open_blob(start: int, stop: int | None) -> AsyncGenerator[Reader]:
        opened()
        await trio.lowlevel.checkpoint()
        yield Reader(Stat("blob", len(LAYER), 0.0, "1"), Pieces([LAYER[start:stop]], None))

    async def url(address: str) -> str | None:
        del address
        await trio.lowlevel.checkpoint()
        return None

    found = Descriptor(media_type="application/octet-stream", digest=Digest.of(LAYER), size=len(LAYER))
    return Blob(descriptor=found, open=open_blob, url=url)


# ---- pushes


class Push(msgspec.Struct, frozen=True):
    """A push that a rule is asked about."""

    title: str
    push: PushManifest
    manifest: Manifest


def descriptor(data: bytes, media_type: str = LAYER_TYPE, **more: object) -> dict[str, object]:
    """Return the descriptor of `data` as JSON has it."""
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data), **more}


def image_document(media_type: str | None = OCI_MANIFEST, **more: object) -> bytes:
    """Return an image manifest whose parts are in the kit's store."""
    return _encoded(media_type, {"config": descriptor(CONFIG, CONFIG_TYPE), "layers": [descriptor(LAYER)], **more})


def _index(*children: Json, media_type: str | None = OCI_INDEX, **more: object) -> bytes:
    return _encoded(media_type, {"manifests": list(children), **more})


def _encoded(media_type: str | None, document: Json) -> bytes:
    named = {} if media_type is None else {"mediaType": media_type}
    return json.dumps({"schemaVersion": 2, **named, **document}, ensure_ascii=False).encode()


_ODD_ANNOTATIONS = {
    "": "an empty key",
    "empty": "",
    "org.opencontainers.image.title": "caf\u00e9 \u202eright to left\u202c \U0001f600",
    "a" * 300: "b" * 10_000,
    "\u0000control\r\n": "\u0000\r\n\t\x1b[31m",
    "e\u0301": "combining",
    "{template} %s $VAR": "{0} %d ${VAR} `id` ; rm",
}


@cache
def _documents() -> dict[str, tuple[str, bytes]]:
    """Return manifests by what is special about them, with their media types."""
    child = descriptor(image_document(), OCI_MANIFEST)
    amd64, arm64 = {"architecture": "amd64", "os": "linux"}, {"architecture": "arm64", "os": "linux", "variant": "v8"}
    windows = {"architecture": "amd64", "os": "windows", "os.version": "10.0.1", "os.features": ["win32k"]}
    unknown = {"architecture": "unknown", "os": "unknown"}
    missing = descriptor(b"not in the store", OCI_MANIFEST)
    listed = [child | {"platform": amd64}, missing | {"platform": arm64}, missing | {"platform": windows}]
    inner = _index(child | {"platform": amd64})
    docker = {"config": descriptor(CONFIG, DOCKER_CONFIG_TYPE), "layers": [descriptor(LAYER)]}
    foreign = [
        descriptor(b"far", FOREIGN_TYPE, urls=["https://layers.example/a", "http://[::1]:80/b", "not a url", ""]),
        descriptor(b"away", NONDISTRIBUTABLE_TYPE, urls=[]),
    ]
    many = [descriptor(b"%d" % number) for number in range(4998)]
    subject = descriptor(image_document(), OCI_MANIFEST)
    return {
        "an image": (OCI_MANIFEST, image_document()),
        "an image without a mediaType of its own": (OCI_MANIFEST, image_document(None)),
        "an image without layers": (OCI_MANIFEST, image_document(layers=[])),
        "an image with a subject": (OCI_MANIFEST, image_document(subject=subject)),
        "an image whose config is no JSON": (OCI_MANIFEST, image_document(config=descriptor(LAYER, CONFIG_TYPE))),
        "an image of things that are not there": (
            OCI_MANIFEST,
            image_document(config=descriptor(b"no", CONFIG_TYPE), layers=[descriptor(b"nor this")]),
        ),
        "an image with foreign layers": (OCI_MANIFEST, image_document(layers=foreign)),
        "an image with odd annotations": (OCI_MANIFEST, image_document(annotations=_ODD_ANNOTATIONS)),
        "an image with null in the place of what is optional": (
            OCI_MANIFEST,
            image_document(annotations=None, subject=None, artifactType=None),
        ),
        "an image with keys that nobody knows": (OCI_MANIFEST, image_document(later={"a": [[["b"]]], "c": 1e300})),
        "an image of as many layers as are taken": (OCI_MANIFEST, image_document(layers=many)),
        "an image of as many bytes as are taken": (OCI_MANIFEST, _padded(MANIFEST_LIMIT)),
        "an image with a size of zero": (OCI_MANIFEST, image_document(layers=[descriptor(b"")])),
        "an image with layers of the largest size": (
            OCI_MANIFEST,
            image_document(layers=[descriptor(LAYER) | {"size": (1 << 63) - 1}] * 3),
        ),
        "an artifact with a subject": (
            OCI_MANIFEST,
            image_document(
                artifactType="application/vnd.example.signature",
                config=descriptor(b"{}", EMPTY_TYPE) | {"data": "e30="},
                subject=subject,
            ),
        ),
        "an artifact whose subject is not there": (
            OCI_MANIFEST,
            image_document(artifactType="text/x", subject=missing),
        ),
        "a docker manifest": (DOCKER_MANIFEST, _encoded(DOCKER_MANIFEST, docker)),
        "an index": (OCI_INDEX, _index(*listed, annotations=_ODD_ANNOTATIONS)),
        "an index without a mediaType of its own": (OCI_INDEX, _index(*listed, media_type=None)),
        "an index without platforms": (OCI_INDEX, _index(child, missing)),
        "an index with empty platforms": (OCI_INDEX, _index(missing | {"platform": {"architecture": "", "os": ""}})),
        "an index with attestations": (OCI_INDEX, _index(*listed, missing | {"platform": unknown})),
        "an index of nothing": (OCI_INDEX, _index()),
        "an index of an index": (OCI_INDEX, _index(descriptor(inner, OCI_INDEX), descriptor(b"gone", OCI_INDEX))),
        "an index of blobs": (OCI_INDEX, _index(descriptor(LAYER), descriptor(b"gone"))),
        "an index with a subject": (OCI_INDEX, _index(child, subject=subject, artifactType="text/x")),
        "an index that lists one thing twice": (OCI_INDEX, _index(*listed, *listed)),
        "a docker list": (DOCKER_LIST, _index(*listed, media_type=DOCKER_LIST)),
        "a manifest of an unknown type": (
            "application/vnd.example.later+json",
            _encoded("application/vnd.example.later+json", {"blobs": [descriptor(LAYER)]}),
        ),
    }


def _padded(size: int) -> bytes:
    short = image_document(annotations={"padding": ""})
    return image_document(annotations={"padding": "p" * (size - len(short))})


@cache
def pushes() -> tuple[Push, ...]:
    """Return pushes of every kind of manifest: by tag, and a few by digest and with many tags."""
    found = [_push(title, media_type, data) for title, (media_type, data) in _documents().items()]
    by_digest = msgspec.structs.replace(found[0].push, reference=found[0].manifest.digest)
    many = tuple(Tag(f"{'t' * 120}{number}") for number in range(50))
    found.append(Push("an image by its digest", by_digest, found[0].manifest))
    tagged = msgspec.structs.replace(by_digest, tags=many)
    found.append(Push("an image with fifty tags", tagged, found[0].manifest))
    deep = msgspec.structs.replace(found[0].push, repository=RepositoryName("/".join(["a"] * 60)))
    found.append(Push("an image in a deep repository", deep, found[0].manifest))
    return tuple(found)


def _push(title: str, media_type: str, data: bytes) -> Push:
    push = PushManifest(origin=ORIGIN, repository=REPOSITORY, reference=TAG, media_type=media_type, data=data)
    return Push(title, push, parse_pushed(media_type, data, Digest.of(data)))


async def filled_registry() -> Registry:
    """Return a registry that has what the pushes point at, unless they say that it is missing."""
    registry = Registry(MemoryDriver())
    for data in (LAYER, CONFIG, b"{}", b""):
        pieces = Pieces([data], len(data))
        await registry(PushBlob(repository=REPOSITORY, digest=Digest.of(data), body=pieces))
    for title in ("an image", "an index without platforms"):
        media_type, data = _documents()[title]
        push = PushManifest(
            repository=REPOSITORY, reference=Tag("old"), media_type=media_type, data=data, unchecked=True
        )
        await registry(push)
    return registry

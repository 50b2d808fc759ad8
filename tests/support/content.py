"""What tests push: bodies, manifests, and short ways to get them into a registry."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio

from moorage import (
    OCI_INDEX,
    OCI_MANIFEST,
    AppendUpload,
    CommitUpload,
    Digest,
    Handler,
    ListTags,
    Manifest,
    ManifestPushed,
    OpenUpload,
    PullBlob,
    PullManifest,
    PushBlob,
    PushManifest,
    RepositoryName,
    StatUpload,
    Tag,
)

REPOSITORY = RepositoryName("library/test")
OTHER = RepositoryName("other")
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"

Json = Mapping[str, object]


class Sent:
    """The body of a request: pieces, then perhaps something that happens to whoever reads on."""

    def __init__(
        self, *pieces: bytes, length: int | None = None, then: Exception | Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.length = length
        self._pieces = list(pieces)
        self._then = then

    def __aiter__(self) -> "Sent":
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._pieces:
            return self._pieces.pop(0)
        if isinstance(self._then, Exception):
            raise self._then
        if self._then is not None:
            await self._then()
        raise StopAsyncIteration


class SentQuickly(Sent):
    """A body of which all but its first piece can be taken in a thread; `taken` says how much was."""

    taken = 0

    async def take_quickly(self, take: Callable[[bytes], None], /) -> int:
        """Have `take` called with each piece, in a thread."""
        pieces = self._pieces[:]
        self._pieces.clear()
        for piece in pieces:
            await trio.to_thread.run_sync(take, piece)
        taken = sum(map(len, pieces))
        self.taken += taken
        return taken


def descriptor(digest: Digest, *, media_type: str = LAYER_TYPE, size: int = 1) -> dict[str, object]:
    """Return a descriptor as JSON has it."""
    return {"mediaType": media_type, "digest": str(digest), "size": size}


def image(config: Digest, *layers: Digest, subject: Digest | None = None, **more: object) -> bytes:
    """Return an image manifest."""
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, media_type=CONFIG_TYPE),
        "layers": [descriptor(layer) for layer in layers],
    }
    if subject is not None:
        document["subject"] = descriptor(subject, media_type=OCI_MANIFEST)
    return json.dumps(document | more).encode()


def index(*manifests: Digest | Json, **more: object) -> bytes:
    """Return an index."""
    listed = [
        descriptor(each, media_type=OCI_MANIFEST) if isinstance(each, Digest) else dict(each) for each in manifests
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed} | more).encode()


async def push_blob(registry: Handler, data: bytes, repository: RepositoryName = REPOSITORY) -> Digest:
    """Push a blob in one request."""
    digest = Digest.of(data)
    await registry(PushBlob(repository=repository, digest=digest, body=Sent(data, length=len(data))))
    return digest


async def push_manifest(
    registry: Handler,
    data: bytes,
    reference: str | None = None,
    *,
    repository: RepositoryName = REPOSITORY,
    media_type: str = OCI_MANIFEST,
    tags: Sequence[str] = (),
) -> ManifestPushed:
    """Push a manifest by tag, or by its digest."""
    return await registry(
        PushManifest(
            repository=repository,
            reference=Digest.of(data) if reference is None else Tag(reference),
            media_type=media_type,
            data=data,
            tags=tuple(map(Tag, tags)),
        )
    )


async def push_image(
    registry: Handler,
    reference: str | None = None,
    *,
    salt: str = "",
    repository: RepositoryName = REPOSITORY,
    subject: Digest | None = None,
    **more: object,
) -> Digest:
    """Push an image of its own kind for each `salt`, with all that it is made of."""
    config = await push_blob(registry, f'{{"salt": "{salt}"}}'.encode(), repository)
    layer = await push_blob(registry, b"a layer", repository)
    data = image(config, layer, subject=subject, **more)
    pushed = await push_manifest(registry, data, reference, repository=repository)
    return pushed.descriptor.digest


async def pull(registry: Handler, reference: str | Digest, repository: RepositoryName = REPOSITORY) -> Manifest:
    """Pull a manifest by tag or digest."""
    asked = reference if isinstance(reference, Digest) else Tag(reference)
    return await registry(PullManifest(repository=repository, reference=asked))


async def pull_blob(registry: Handler, digest: Digest, repository: RepositoryName = REPOSITORY) -> bytes:
    """Pull the whole of a blob."""
    blob = await registry(PullBlob(repository=repository, digest=digest))
    async with blob.open(0, None) as reader:
        return b"".join([chunk async for chunk in reader])


async def tags(registry: Handler, repository: RepositoryName = REPOSITORY) -> list[str]:
    """List all tags."""
    return list((await registry(ListTags(repository=repository))).tags)


async def open_upload(registry: Handler, **announced: object) -> str:
    """Open an upload session."""
    digest, algorithm = announced.get("digest"), announced.get("algorithm")
    assert digest is None or isinstance(digest, Digest)
    assert algorithm is None or isinstance(algorithm, str)
    return (await registry(OpenUpload(repository=REPOSITORY, digest=digest, algorithm=algorithm))).upload_id


async def append(
    registry: Handler, upload_id: str, *pieces: bytes, start: int | None = None, length: int | None = None
) -> int:
    """Send a chunk."""
    operation = AppendUpload(repository=REPOSITORY, upload_id=upload_id, body=Sent(*pieces), start=start, length=length)
    return (await registry(operation)).offset


async def commit(registry: Handler, upload_id: str, digest: Digest, *pieces: bytes, start: int | None = None) -> Digest:
    """Send the last chunk and close."""
    body = Sent(*pieces, length=sum(map(len, pieces)))
    operation = CommitUpload(repository=REPOSITORY, upload_id=upload_id, digest=digest, body=body, start=start)
    return (await registry(operation)).digest


async def offset(registry: Handler, upload_id: str) -> int:
    """Ask where an upload stands."""
    return (await registry(StatUpload(repository=REPOSITORY, upload_id=upload_id))).offset

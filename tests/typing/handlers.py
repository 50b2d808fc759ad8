"""Checked by mypy and pyright, never run: the class of an operation fixes the type of its reply, through any handler."""

from typing import assert_type

from moorage import (
    Blob,
    BlobPushed,
    Digest,
    Handler,
    Manifest,
    ManifestPushed,
    MemoryDriver,
    MountBlob,
    Operation,
    PullBlob,
    PullManifest,
    PushManifest,
    R,
    Registry,
    RepositoryName,
    Tag,
    UploadOpened,
)


class Around:
    def __init__(self, inner: Handler) -> None:
        self._inner = inner

    async def __call__(self, operation: Operation[R], /) -> R:
        return await self._inner(operation)


async def replies_have_the_type_of_their_operation(name: RepositoryName, digest: Digest) -> None:
    handler: Handler = Around(Registry(MemoryDriver()))
    assert_type(await handler(PullManifest(repository=name, reference=Tag("v1"))), Manifest)
    assert_type(await handler(PullBlob(repository=name, digest=digest)), Blob)
    assert_type(await handler(MountBlob(repository=name, digest=digest)), BlobPushed | UploadOpened)
    push = PushManifest(repository=name, reference=digest, media_type="a/b", data=b"")
    assert_type(await handler(push), ManifestPushed)


def an_operation_of_something_is_one_of_object(operation: PullBlob) -> Operation[object]:
    return operation

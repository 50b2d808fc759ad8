"""Five hundred clients at once of a registry in a bucket: all answers right, memory and threads of the worker bounded."""

import os
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx
import trio

from moorage_drivers._reading import READ_MEMORY
from pushing import ACCEPT, OCI_MANIFEST, Repository, digest_of, noise, with_digest
from s3 import bucket, options
from servers import configured, forget_memory_peak, http, memory_peak, threads_of
from services import S3Service

MIB = 1 << 20
CLIENTS = 500
UPLOAD_MEMORY = 64 * MIB
CONNECTIONS = 64
PART = 5 * MIB

THREADS = 40 + 2 + min(32, (os.cpu_count() or 1) + 4)
"""Trio's for what would block, such as hashing; the main one and the bridge's; asyncio's for looking up names."""

BODY = MIB + 512 * 1024
"""What a body from the bucket holds: four pieces of 256 KiB, one that is being gathered, and the socket's buffers."""
CLIENT = 256 * 1024 + 128 * 1024
"""What a client's request holds: a piece on its way out or in, and its tasks with what the SDK has of their requests."""


async def test_five_hundred_clients_at_once(tmp_path: Path, moto: S3Service) -> None:
    numbers = random.Random(5)
    layer, small = noise(numbers, 3 * MIB), noise(numbers, 50_000)
    # Two parts and a little: what is in no part goes through the session's record, whose memory no option bounds.
    pushed = noise(numbers, 2 * PART + 100_000)
    settings = options(moto, bucket(moto), maxconnections=CONNECTIONS, uploadmemory=UPLOAD_MEMORY, chunksize=PART)
    storage = {"s3": settings, "redirect": {"disable": True}, "delete": {"enabled": True}}
    with configured(tmp_path / "moorage", storage=storage) as server:
        with http(server.url) as plain:
            manifest = Repository(plain, "team/app").push_image("v1", [layer, small])
        (worker,) = server.workers
        forget_memory_peak(worker)
        baseline = memory_peak(worker)
        under_way = most = threads = 0
        async with httpx.AsyncClient(
            base_url=server.url,
            timeout=600,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=CLIENTS),
        ) as client:

            async def pull(number: int, data: bytes) -> None:
                del number
                async with client.stream("GET", f"/v2/team/app/blobs/{digest_of(data)}") as answer:
                    assert answer.status_code == 200
                    at = 0
                    async for piece in answer.aiter_bytes():
                        assert data.startswith(piece, at)
                        at += len(piece)
                    assert at == len(data)

            async def pull_manifest(number: int) -> None:
                del number
                answer = await client.get("/v2/team/app/manifests/v1", headers=ACCEPT)
                assert (answer.status_code, answer.content) == (200, manifest)

            async def push(number: int) -> None:
                data = b"%06d" % number + pushed
                digest = digest_of(data)
                opened = await client.post(
                    f"/v2/team/app{number}/blobs/uploads/", params={"mount": digest, "from": "x"}
                )
                assert opened.status_code == 202, opened.text
                sent = await client.patch(opened.headers["location"], content=data)
                assert sent.status_code == 202, sent.text
                done = await client.put(with_digest(sent.headers["location"], digest))
                assert done.status_code == 201, done.text

            async def push_manifest(number: int) -> None:
                answer = await client.put(
                    f"/v2/team/app/manifests/t{number}", content=manifest, headers={"content-type": OCI_MANIFEST}
                )
                assert answer.status_code == 201, answer.text

            async def counted(work: Callable[[int], Awaitable[None]], number: int) -> None:
                nonlocal under_way, most, threads
                under_way += 1
                most = max(most, under_way)
                await work(number)
                threads = max(threads, threads_of(worker))
                under_way -= 1

            kinds: list[tuple[int, Callable[[int], Awaitable[None]]]] = [
                (150, partial(pull, data=layer)),
                (150, partial(pull, data=small)),
                (100, pull_manifest),
                (60, push_manifest),
                (40, push),
            ]
            everything = [partial(counted, work, number) for count, work in kinds for number in range(count)]
            numbers.shuffle(everything)
            async with trio.open_nursery() as nursery:
                for each in everything:
                    nursery.start_soon(each)
        grown = memory_peak(worker) - baseline
        allowed = UPLOAD_MEMORY + READ_MEMORY + CONNECTIONS * BODY + CLIENTS * CLIENT + 2 * PART
        print(f"baseline {baseline / MIB:.0f} MiB, +{grown / MIB:.0f} of {allowed / MIB:.0f} MiB, {threads} threads")
        assert most == len(everything) == CLIENTS
        assert threads <= THREADS
        assert grown < allowed
        assert server.workers == [worker]
        with http(server.url) as plain:
            assert Repository(plain, "team/app").tags() == {"v1", *(f"t{number}" for number in range(60))}
            for number in range(0, 40, 13):
                assert Repository(plain, f"team/app{number}").blob(digest_of(b"%06d" % number + pushed))

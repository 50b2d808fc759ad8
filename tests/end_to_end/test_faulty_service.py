"""A registry over a bucket whose service breaks connections, loses replies, stalls, throttles and sends half a body."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from moorage import decode_options
from moorage_drivers._s3_options import S3Options
from moorage_drivers.s3 import S3Driver
from proxies import (
    Action,
    CutBody,
    FaultProxy,
    Request,
    ResetAfter,
    ResetBefore,
    Stall,
    expired_token,
    fault_proxy,
    slow_down,
)
from pushing import OCI_MANIFEST, digest_of, image, noise, references, with_digest
from s3 import bucket, options
from servers import Server, configured, http
from services import S3Service

MIB = 1 << 20
TRIES = 12
FAULTS: tuple[tuple[Action, float], ...] = (
    (ResetBefore(), 0.05),
    (ResetAfter(), 0.05),
    (slow_down(503, 0), 0.03),
    (slow_down(429, 0), 0.02),
    (CutBody(100), 0.03),
    (expired_token(), 0.01),
    (Stall(3), 0.004),
)


def spoil(proxy: FaultProxy, seed: int) -> None:
    """Spoil every seventh request or so, each kind by its share."""
    numbers = random.Random(seed)

    def by_chance(share: float) -> Callable[[Request], bool]:
        return lambda request: numbers.random() < share

    for action, share in FAULTS:
        proxy.fault(by_chance(share), action, times=1_000_000)


def insist(ask: Callable[[], httpx.Response], *right: int) -> httpx.Response:
    """Ask until the answer is one of those that are right; all others must be a clear 5xx, or a connection that broke."""
    for _ in range(TRIES):
        try:
            answer = ask()
        except httpx.TransportError:
            continue
        if answer.status_code in right:
            return answer
        assert answer.status_code in {500, 503}, answer.text
        assert answer.json()["errors"][0]["code"], answer.text
    raise AssertionError(f"no answer of {right} in {TRIES} tries")


def push_blob(client: httpx.Client, name: str, data: bytes) -> None:
    """Push a blob as a client does that begins again when something goes wrong."""
    digest = digest_of(data)
    for _ in range(TRIES):
        opened = insist(
            lambda: client.post(f"/v2/{name}/blobs/uploads/", params={"mount": digest, "from": "x"}), 201, 202
        )
        if opened.status_code == 201:
            return
        try:
            sent = client.patch(opened.headers["location"], content=data)
            if sent.status_code != 202:
                assert sent.status_code in {404, 416, 500, 503}, sent.text
                continue
            done = client.put(with_digest(sent.headers["location"], digest))
        except httpx.TransportError:
            continue
        if done.status_code == 201:
            return
        assert done.status_code in {404, 416, 500, 503}, done.text
    raise AssertionError("the blob cannot be pushed")


def push_image(url: str, name: str, tag: str, layers: list[bytes]) -> bytes:
    manifest = image(layers)
    with http(url) as client:
        for data in (b"{}", *layers):
            push_blob(client, name, data)
        where, kind = f"/v2/{name}/manifests/{tag}", {"content-type": OCI_MANIFEST}
        insist(lambda: client.put(where, content=manifest, headers=kind), 201)
    return manifest


def descriptors(server: Server) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in server.workers)


@pytest.mark.parametrize("seed", [1, 2])
async def test_what_was_acknowledged_is_there_and_nothing_is_left_over(
    tmp_path: Path, moto: S3Service, seed: int
) -> None:
    numbers = random.Random(seed)
    base = noise(numbers, 11 * MIB)
    with fault_proxy(moto.url) as proxy:
        settings = options(moto, bucket(moto), regionendpoint=proxy.url, readtimeout="2s", chunksize=5 * MIB)
        storage = {"s3": settings, "redirect": {"disable": True}, "delete": {"enabled": True}}
        with configured(tmp_path, workers=1, storage=storage) as server:
            before = descriptors(server)
            spoil(proxy, seed)
            images = [[base, noise(numbers, 40_000 + number)] for number in range(6)]
            tags = [f"v{number}" for number in range(len(images))]
            with ThreadPoolExecutor(3) as pool:
                pushed = list(pool.map(partial(push_image, server.url, "team/app"), tags, images))
            with http(server.url) as client:
                # Reads are right or fail; they are never short and never wrong.
                for digest in references(pushed[0]):
                    whole = insist(partial(client.get, f"/v2/team/app/blobs/{digest}"), 200)
                    assert digest_of(whole.content) == digest
                assert len(proxy.requests) > 100
                proxy.reset()
                for tag, manifest in zip(tags, pushed, strict=True):
                    got = client.get(f"/v2/team/app/manifests/{tag}", headers={"accept": OCI_MANIFEST})
                    assert got.content == manifest
                    for digest in references(manifest):
                        assert digest_of(client.get(f"/v2/team/app/blobs/{digest}").content) == digest
                assert client.get("/v2/team/app/tags/list").json()["tags"] == tags
            # Connections to the service are kept for a while; nothing else may stay open.
            assert descriptors(server) < before + 140
            assert "Traceback" not in server.logged()
        # Sessions that clients left are there to be resumed; once these are purged nothing is left inside the service.
        direct = decode_options(S3Options, settings | {"regionendpoint": moto.url}, source="s3")
        async with S3Driver.open_bucket(direct) as driver:
            await driver.expire_uploads(older_than=time.time() + 3600, dry_run=False)
            assert await driver.expire_uploads(older_than=time.time() + 3600, dry_run=True) == 0
            names = [entry.key for entry in (await driver.list("docker/registry/v2/blobs/", limit=5000)).entries]
        assert (
            len(names)
            == len(set(names))
            == len({digest for each in pushed for digest in references(each)}) + len(pushed)
        )

"""Registries in a bucket: the whole specification, several replicas, distribution beside, and what a request costs."""

import random
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from azure_storage import options as azure_options
from gcs_fake import GCSFake, gcs_fake
from google_storage import options as gcs_options
from images import TAG, build_image
from moorage_conformance.registry import CASES, Outcome, Report, check_registry
from proxies import counting_proxy, round_robin_proxy
from pushing import Repository, catalog, digest_of, image, noise, references, with_digest
from s3 import SECRET, bucket, options
from servers import Server, configuration, configured, distribution, free_port, http, run_tool, write_configuration
from services import AZURITE_KEY, AzureService, RedisService, S3Service

MIB = 1 << 20
NOT_THERE = {"base.discovery_of_extensions_is_well_formed", "errors.caller_without_credentials"}


def storage(settings: dict[str, object]) -> dict[str, object]:
    return {"s3": settings, "delete": {"enabled": True}, "redirect": {"disable": True}}


@pytest.fixture
def settings(moto: S3Service) -> dict[str, object]:
    return options(moto, bucket(moto))


@pytest.fixture(scope="module")
def gcs() -> Generator[GCSFake]:
    with gcs_fake() as service:
        yield service


@pytest.fixture(params=["s3", "gcs", "azure"])
def cloud(request: pytest.FixtureRequest) -> dict[str, object]:
    """The driver, with its options, of an empty store at a service."""
    match request.param:
        case "azure":
            return {"azure": azure_options(cast("AzureService", request.getfixturevalue("azurite")))}
        case "gcs":
            return {"gcs": gcs_options(cast("GCSFake", request.getfixturevalue("gcs")))}
        case _:
            moto = cast("S3Service", request.getfixturevalue("moto"))
            return {"s3": options(moto, bucket(moto))}


@contextmanager
def in_bucket(tmp_path: Path, settings: dict[str, object]) -> Generator[Server]:
    with configured(tmp_path / "moorage", workers=1, storage=storage(settings)) as server:
        yield server


@contextmanager
def in_cloud(tmp_path: Path, cloud: dict[str, object], *, redirect: bool = False) -> Generator[Server]:
    more = {"delete": {"enabled": True}, "redirect": {"disable": not redirect}}
    with configured(tmp_path / "moorage", workers=1, storage=cloud | more) as server:
        yield server


@contextmanager
def distribution_in_bucket(tmp_path: Path, settings: dict[str, object]) -> Generator[Server]:
    port = free_port()
    file = tmp_path / f"distribution-{port}.yml"
    write_configuration(file, configuration(tmp_path, port) | {"storage": storage(settings)})
    with distribution(tmp_path, file=file, port=port) as server:
        yield server


async def test_every_clause_of_the_specification_holds_in_a_bucket(tmp_path: Path, cloud: dict[str, object]) -> None:
    # One worker: another one may learn only from the service that an upload was aborted, and of that moto makes a 500.
    with in_cloud(tmp_path, cloud) as server:
        report = await check_registry(server.url)
    assert wrong_in(report) == []


def wrong_in(report: Report) -> list[str]:
    """Return which clauses were not seen to hold, and why."""
    assert len(report.results) == len(CASES)
    return [
        f"{result.key}: {result.outcome.name}: {result.reason}"
        for result in report.results
        if result.outcome is not Outcome.PASSED and result.key not in NOT_THERE
    ]


@pytest.mark.needs_tool("docker-registry")
@pytest.mark.parametrize("into", ["moorage", "distribution"])
def test_a_bucket_of_one_is_served_by_the_other(tmp_path: Path, settings: dict[str, object], into: str) -> None:
    runs: list[Callable[[], AbstractContextManager[Server]]] = [
        partial(distribution_in_bucket, tmp_path, settings),
        partial(in_bucket, tmp_path, settings),
    ]
    first, second = runs if into == "moorage" else runs[::-1]
    numbers = random.Random(4)
    layers = [noise(numbers, size) for size in (1, 70_000, 12 * MIB)]
    with first() as server, http(server.url) as client:
        manifests = {
            name: {tag: Repository(client, name).push_image(tag, layers) for tag in ("v1", "1.0-alpine")}
            for name in ("app", "team/app")
        }
    with second() as server, http(server.url) as client:
        assert catalog(client) == set(manifests)
        for name, tags in manifests.items():
            assert Repository(client, name).tags() == set(tags)
            for tag, manifest in tags.items():
                assert Repository(client, name).pull_image(tag) == manifest
        Repository(client, "app").push_image("v2", layers[:2])
    with first() as server, http(server.url) as client:
        assert Repository(client, "app").pull_image("v2") == image(layers[:2])


@pytest.mark.needs_tool("skopeo", "umoci")
@pytest.mark.parametrize("redirect", [True, False])
def test_a_real_client_pushes_and_pulls_by_redirect_and_without(
    tmp_path: Path, cloud: dict[str, object], redirect: bool
) -> None:
    source = f"oci:{build_image(tmp_path / 'image', 1)}:{TAG}"
    with in_cloud(tmp_path, cloud, redirect=redirect) as server, http(server.url) as client:
        target = f"docker://{server.host}/team/app:v1"
        run_tool("skopeo", "copy", "--dest-tls-verify=false", source, target)
        run_tool("skopeo", "copy", "--src-tls-verify=false", target, f"oci:{tmp_path}/back:v1")
        repository = Repository(client, "team/app")
        layer = references(repository.manifest("v1"))[-1]
        # The fake has no credentials, so nothing is signed for it.
        signs = redirect and "gcs" not in cloud
        got, head = client.get(repository.blob_url(layer)), client.head(repository.blob_url(layer))
        assert (got.status_code, head.status_code) == (307 if signs else 200, 200)
        assert head.headers["docker-content-digest"] == layer
        if signs:
            followed = client.get(got.headers["location"])
            assert digest_of(followed.content) == layer
            assert all(secret not in server.logged() for secret in (SECRET, AZURITE_KEY, "sig="))


def test_replicas_share_one_bucket(tmp_path: Path, cloud: dict[str, object]) -> None:
    numbers = random.Random(9)
    data = noise(numbers, 20 * MIB)
    with ExitStack() as stack:
        replicas: list[Server] = []
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            replicas.append(stack.enter_context(in_cloud(folder, cloud)))
        proxy = stack.enter_context(round_robin_proxy(*(each.url for each in replicas)))
        client = stack.enter_context(http(proxy.url))
        repository = Repository(client, "team/app")
        # Each request of a chunked upload reaches another replica; one of them dies in the middle.
        url = repository.open_upload()
        step = 3 * MIB + 7
        for turn, at in enumerate(range(0, len(data), step)):
            if turn == 3:
                replicas[0].kill()
            chunk = data[at : at + step]
            headers = {"content-range": f"{at}-{at + len(chunk) - 1}"}
            answer = client.patch(url, content=chunk, headers=headers)
            assert answer.status_code == 202, answer.text
            url = answer.headers["location"]
        assert client.put(with_digest(url, digest_of(data))).status_code == 201
        assert repository.blob(digest_of(data)) == data
        # Many push the same blob and move the same tag.
        layers = [noise(numbers, 1000) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:

            def push(layer: bytes) -> bytes:
                with http(proxy.url) as own:
                    return Repository(own, "team/app").push_image("latest", [data[: 6 * MIB], layer])

            pushed = list(pool.map(push, layers))
        assert repository.pull_image("latest") in pushed
        for manifest in pushed:
            assert repository.pull_image(digest_of(manifest)) == manifest
        assert repository.tags() == {"latest"}


def test_what_requests_to_the_bucket_cost(tmp_path: Path, moto: S3Service, settings: dict[str, object]) -> None:
    numbers = random.Random(3)
    data = noise(numbers, 25 * MIB)
    with (
        counting_proxy(moto.url) as proxy,
        in_bucket(tmp_path, settings | {"regionendpoint": proxy.url}) as server,
        http(server.url) as client,
    ):
        repository = Repository(client, "team/app")

        def cost(act: Callable[[], object]) -> Counter[str]:
            proxy.reset()
            act()
            return Counter(request.method for request in proxy.requests)

        def push_layer() -> None:
            opened = client.post(
                f"/v2/{repository.name}/blobs/uploads/", params={"mount": digest_of(data), "from": "x"}
            )
            sent = client.patch(opened.headers["location"], content=iter([data]))
            assert sent.status_code == 202, sent.text
            assert client.put(with_digest(sent.headers["location"], digest_of(data))).status_code == 201

        # The look for something to mount; 6 and the three parts.
        assert cost(push_layer).total() <= 1 + 6 + 3
        repository.push(b"{}")
        # A write each of blob, revision, tag and its history, and two looks at each of the two references.
        assert cost(lambda: repository.put("v1", image([data]))).total() <= 4 + 2 * 2
        # The tag, its manifest's link; the bytes are in memory.
        assert cost(lambda: repository.manifest("v1")).total() <= 2
        small = repository.push(b"small")
        # Link and size, and the bytes.
        assert cost(lambda: repository.blob(small)).total() <= 2 + 1
        for number in range(40):
            assert repository.put(f"1.{number}", image([data])).status_code == 201
        assert cost(repository.tags).total() <= 3


@pytest.mark.parametrize("kept", ["inmemory", "redis"])
def test_what_requests_to_the_bucket_cost_with_a_cache(
    tmp_path: Path, moto: S3Service, settings: dict[str, object], redis: RedisService, kept: str
) -> None:
    layers = [noise(random.Random(number), 1000) for number in range(20)]
    with counting_proxy(moto.url) as proxy:
        store = storage(settings | {"regionendpoint": proxy.url}) | {"cache": {"blobdescriptor": kept}}
        where = {"addrs": [f"{redis.host}:{redis.port}"]}
        with (
            configured(tmp_path / "moorage", workers=1, storage=store, redis=where) as server,
            http(server.url) as client,
        ):
            repository = Repository(client, "team/app")

            def cost(act: Callable[[], object]) -> int:
                proxy.reset()
                act()
                return len(proxy.requests)

            repository.push_image("v1", layers)
            for digest in references(repository.manifest("v1")):
                repository.blob(digest)
            layer = digest_of(layers[0])
            assert cost(lambda: client.head(repository.blob_url(layer))) == 0
            # The data.
            assert cost(lambda: repository.blob(layer)) == 1
            # 21 references that are remembered; blob, revision, tag and its history are written.
            assert cost(lambda: repository.put("v2", image(layers))) <= 6
            # What is deleted is gone at once.
            assert client.delete(repository.blob_url(layer)).status_code == 202
            assert client.get(repository.blob_url(layer)).status_code == 404
            assert repository.put("v3", image(layers)).status_code == 400


async def test_every_clause_of_the_specification_holds_with_a_cache_in_redis(
    tmp_path: Path, redis: RedisService
) -> None:
    store: dict[str, object] = {"filesystem": {"rootdirectory": str(tmp_path / "store")}, "delete": {"enabled": True}}
    store["cache"] = {"blobdescriptor": "redis"}
    where = {"addrs": [f"{redis.host}:{redis.port}"]}
    with configured(tmp_path / "moorage", workers=2, storage=store, redis=where) as server:
        report = await check_registry(server.url)
    assert wrong_in(report) == []

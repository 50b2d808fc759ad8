"""What a push and a pull of an image of 20 layers cost in a bucket: Moorage and distribution 2.8.2 side by side.

Both run on the same moto, each in a bucket of its own, and are asked by the same client as docker asks: HEAD, POST,
PATCH, PUT of each blob, five at once; PUT of the manifest; HEAD and GET of the tag, GET of each blob, three at once.
Requests are counted by a proxy in a round of its own; time is taken without it, in turns. Run it by hand:

    PYTHONPATH=tests/support .venv/bin/python tests/benchmarks/bucket.py [rounds]
"""

import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from proxies import Proxy, counting_proxy
from pushing import ACCEPT, Repository, digest_of, fits, image, references, with_digest
from s3 import bucket, options
from servers import Server, configuration, configured, distribution, free_port, write_configuration
from services import S3Service, moto_server

LAYERS = 20
SIZES = {"2 MiB": 2 << 20, "64 KiB": 64 << 10}
PUSHES_AT_ONCE = 5
PULLS_AT_ONCE = 3
KINDS = ("moorage", "distribution")


@dataclass(frozen=True)
class Registry:
    """A registry in its bucket, once with redirects and once without."""

    redirecting: Server
    streaming: Server


@contextmanager
def registry(kind: str, folder: Path, service: S3Service, endpoint: str) -> Generator[Registry]:
    """Run a registry in a new bucket of `service`, which it reaches at `endpoint`."""
    settings = options(service, bucket(service), regionendpoint=endpoint)
    with ExitStack() as stack:
        servers: list[Server] = []
        for disable in (False, True):
            storage = {"s3": settings, "delete": {"enabled": True}, "redirect": {"disable": disable}}
            port = free_port()
            root = folder / f"{kind}-{port}"
            if kind == "moorage":
                servers.append(stack.enter_context(configured(root, port=port, storage=storage)))
            else:
                file = write_configuration(root.with_suffix(".yml"), configuration(root, port) | {"storage": storage})
                servers.append(stack.enter_context(distribution(root, file=file, port=port)))
        yield Registry(*servers)


def client(server: Server) -> httpx.Client:
    """Return a client that follows redirects, as docker does."""
    return httpx.Client(base_url=server.url, timeout=120, trust_env=False, follow_redirects=True)


def push_blob(repository: Repository, data: bytes, *, announced: bool) -> None:
    """Push a blob that is not there; `announced` by a mount from where it is not, which names its digest."""
    http, digest = repository.http, digest_of(data)
    assert http.head(repository.blob_url(digest)).status_code == 404
    more = {"mount": digest, "from": "somewhere/else"} if announced else {}
    opened = http.post(f"/v2/{repository.name}/blobs/uploads/", params=more)
    assert opened.status_code == 202, opened.text
    sent = http.patch(opened.headers["location"], content=iter([data]))
    assert sent.status_code == 202, sent.text
    done = http.put(with_digest(sent.headers["location"], digest))
    assert done.status_code == 201, done.text


def push(server: Server, name: str, layers: list[bytes], *, announced: bool) -> None:
    """Push an image."""
    config = b'{"of": "%b"}' % digest_of(layers[0]).encode()
    with client(server) as http, ThreadPoolExecutor(PUSHES_AT_ONCE) as pool:
        repository = Repository(http, name)
        list(pool.map(partial(push_blob, repository, announced=announced), [config, *layers]))
        done = repository.put("v1", image(layers, config))
        assert done.status_code == 201, done.text


def pull(server: Server, name: str) -> None:
    """Pull an image, and verify what it consists of."""
    with client(server) as http, ThreadPoolExecutor(PULLS_AT_ONCE) as pool:
        repository = Repository(http, name)
        assert http.head(repository.manifest_url("v1"), headers=ACCEPT).status_code == 200
        digests = references(repository.manifest("v1"))
        for digest, answer in zip(digests, pool.map(http.get, map(repository.blob_url, digests)), strict=True):
            assert answer.status_code == 200, answer.text
            assert fits(answer.content, digest)


def acts(registry: Registry, name: str, layers: list[bytes]) -> dict[str, Callable[[], None]]:
    """Return what is measured, in the order in which it is done."""
    return {
        "push": lambda: push(registry.redirecting, f"{name}/plain", layers[:LAYERS], announced=False),
        "push, digest announced": lambda: push(registry.redirecting, f"{name}/named", layers[LAYERS:], announced=True),
        "pull by redirects": lambda: pull(registry.redirecting, f"{name}/plain"),
        "pull through the registry": lambda: pull(registry.streaming, f"{name}/plain"),
    }


def run(rounds: int) -> None:
    """Measure and print."""
    numbers = random.Random(time.monotonic_ns())
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with moto_server() as moto, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for kind in KINDS:
            with counting_proxy(moto.url) as proxy, registry(kind, folder, moto, proxy.url) as counted:
                for size, count in SIZES.items():
                    layers = [numbers.randbytes(count) for _ in range(2 * LAYERS)]
                    for what, act in acts(counted, f"of-{count}", layers).items():
                        counts[size, what, kind] = requests(proxy, act)
        with ExitStack() as stack:
            timed = {kind: stack.enter_context(registry(kind, folder, moto, moto.url)) for kind in KINDS}
            # The first round warms up, and is not counted.
            for number in range(rounds + 1):
                for size, count in SIZES.items():
                    todo = {
                        kind: acts(each, f"of-{count}-{number}", [numbers.randbytes(count) for _ in range(2 * LAYERS)])
                        for kind, each in timed.items()
                    }
                    for what in todo[KINDS[0]]:
                        for kind in KINDS if number % 2 else KINDS[::-1]:
                            began = time.perf_counter()
                            todo[kind][what]()
                            if number:
                                times[size, what, kind].append(time.perf_counter() - began)
    for (size, what, kind), counted_methods in counts.items():
        methods = ", ".join(f"{method} {count}" for method, count in sorted(counted_methods.items()))
        print(f"{size}: {what}: {kind}: {methods}")
    print(
        "\n| image | what | requests: Moorage | distribution | time: Moorage | distribution |\n|---|---|---|---|---|---|"
    )
    for size, what, kind in counts:
        if kind == KINDS[0]:
            requests_of = [str(counts[size, what, each].total()) for each in KINDS]
            seconds = [f"{statistics.median(times[size, what, each]):.2f} s" for each in KINDS]
            print(f"| {LAYERS} × {size} | {what} | " + " | ".join(requests_of + seconds) + " |")


def requests(proxy: Proxy, act: Callable[[], None]) -> Counter[str]:
    """Return the requests that `act` leads to, by their method."""
    proxy.reset()
    act()
    return Counter(request.method for request in proxy.requests)


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 5)

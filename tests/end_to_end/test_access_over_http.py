"""Access rules and the audit log in real servers: by HTTP/1.1 and HTTP/2, with several workers, and odd requests."""

import json
import random
import shutil
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

import callers
from callers import badge
from moorage import OCI_MANIFEST, Digest, encode_json
from servers import TRUSTS_NOBODY, Server, configured, wait_for

pytestmark = pytest.mark.usefixtures("http_engine")

SECRET = b"a secret layer"
DIGEST = Digest.of(SECRET)
CONFIG = Digest.of(b"{}")
IMAGE = encode_json({
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": str(CONFIG), "size": 2},
    "layers": [],
})
ACCESS: Mapping[str, object] = {
    "rules": [
        {"users": ["admin"], "actions": ["*"]},
        {"repositories": ["users/{user}/**"], "users": ["*"], "actions": ["push", "delete"]},
        {"repositories": ["public/**"], "anonymous": True, "actions": ["pull"]},
        {"users": ["*"], "actions": ["catalog"]},
    ]
}
REPOSITORIES = ("public/a", "sec/b", "users/ann/x", "users/bob/x")


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


@pytest.fixture
def server(tmp_path: Path, audit: Path) -> Generator[Server]:
    with served(tmp_path, audit) as server:
        yield server


@pytest.fixture(scope="module")
def unchanged(http_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """A server for tests in which nothing is allowed that would change it."""
    folder = tmp_path_factory.mktemp("unchanged")
    with served(folder, folder / "audit.log") as server:
        yield server


@contextmanager
def served(folder: Path, audit: Path) -> Generator[Server]:
    plugins = folder / "plugins"
    plugins.mkdir(mode=0o755)
    shutil.copy(callers.__file__, plugins / "callers.py")
    with configured(
        folder / "root",
        workers=2,
        http={"trustedproxies": ["127.0.0.1"], "h2c": {"enabled": True}},
        plugins={"paths": ["plugins"]},
        auth={"believer": {}},
        access=ACCESS,
        audit={"path": str(audit)},
    ) as server:
        with client(server, "admin") as admin:
            for name in REPOSITORIES:
                assert admin.post(f"/v2/{name}/blobs/uploads/?digest={CONFIG}", content=b"{}").status_code == 201
                assert admin.put(f"/v2/{name}/manifests/v1", content=IMAGE).status_code == 201
            assert admin.post(f"/v2/sec/b/blobs/uploads/?digest={DIGEST}", content=SECRET).status_code == 201
        yield server


def client(server: Server, user: str = "", *, http2: bool = False) -> httpx.Client:
    headers = {"Content-Type": OCI_MANIFEST, **(dict([badge(user)]) if user else {})}
    return httpx.Client(
        base_url=server.url,
        headers=headers,
        timeout=60,
        trust_env=False,
        verify=TRUSTS_NOBODY,
        http1=not http2,
        http2=http2,
    )


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("user", ["", "ann", "Ann", "admin"])
def test_rules_hold_whoever_speaks_which_http(server: Server, user: str, http2: bool) -> None:
    with client(server, user, http2=http2) as asking:
        version = asking.get("/v2/").http_version
        assert version == ("HTTP/2" if http2 else "HTTP/1.1")
        for name in (*REPOSITORIES, "sec/none"):
            mine = user == "admin" or (user == "ann" and name.startswith("users/ann/"))
            may_pull = mine or name.startswith("public/")
            refused = 403 if user else 401
            for path in ("manifests/v1", "tags/list", f"blobs/{DIGEST}", f"referrers/{DIGEST}"):
                for method in ("GET", "HEAD"):
                    status = asking.request(method, f"/v2/{name}/{path}").status_code
                    assert status in {200, 404} if may_pull else status == refused, (name, path)
            for method, path, body in (
                ("PUT", "manifests/v1", IMAGE),
                ("POST", "blobs/uploads/", b""),
                ("POST", f"blobs/uploads/?mount={DIGEST}&from=public/a", b""),
            ):
                if http2 and not body:
                    # httpx ends these by a frame of its own, and one that comes after the answer is too much for hypercorn.
                    continue
                status = asking.request(method, f"/v2/{name}/{path}", content=body).status_code
                assert status < 400 or name == "sec/none" if mine else status == refused, (name, path)
        listed = asking.get("/v2/_catalog?n=1")
        assert listed.status_code == (200 if user else 401)
        if user == "ann":
            assert listed.json()["repositories"] == ["public/a"]
            assert asking.get(listed.links["next"]["url"]).json()["repositories"] == ["users/ann/x"]


@pytest.mark.parametrize(
    "target",
    [
        "/v2/public/a/../../sec/b/{}",
        "/v2/public/a/%2e%2e/%2e%2e/sec/b/{}",
        "/v2/sec%2Fb/{}",
        "/v2/%73ec/b/{}",
        "//v2/sec/b/{}",
        "/v2//sec/b/{}",
        "/v2/sec/./b/{}",
        "/V2/SEC/B/{}",
        "/v2/sec/b/{}/",
        "/v2/sec/b/{}?name=public/a",
        "http://127.0.0.1/v2/sec/b/{}",
        "http://x/v2/public/a/../../sec/b/{}",
    ],
)
def test_no_odd_target_goes_around_the_rules(unchanged: Server, target: str) -> None:
    for leaf in (f"blobs/{DIGEST}", "manifests/v1", "tags/list"):
        for method in ("GET", "HEAD", "get", "DELETE", "PROPFIND", "OPTIONS"):
            with closing(HTTPConnection("127.0.0.1", unchanged.port, timeout=60)) as connection:
                connection.putrequest(method, target.format(leaf), skip_host=False)
                connection.putheader(*badge("ann"))
                connection.endheaders()
                answer = connection.getresponse()
                assert answer.status >= 400, (method, target)
                assert SECRET not in answer.read()


def test_every_request_of_several_workers_is_in_the_audit_log_once(server: Server, audit: Path) -> None:
    before = len(audit.read_text().splitlines())
    numbers = random.Random(7)
    canary = "canary-91b2"
    asked: list[tuple[str, str, str, str, int]] = []
    for number in range(240):
        user = numbers.choice(["ann", "bob", "carl"])
        owner = numbers.choice(["ann", "bob"])
        method, path, status = numbers.choice([
            ("PUT", f"manifests/t{number}?x={canary}", 201),
            ("POST", "blobs/uploads/", 202),
            ("GET", "tags/list", 200),
        ])
        asked.append((f"id-{number}", user, f"{method} /v2/users/{owner}/x/{path}", owner, status))

    def ask(each: tuple[str, str, str, str, int]) -> None:
        request, user, line, owner, status = each
        method, target = line.split(" ")
        headers = {"X-Request-ID": request, "Cookie": canary, "Connection": "close"}
        with client(server, user) as asking:
            answer = asking.request(method, target, headers=headers, content=IMAGE if method == "PUT" else b"")
        assert answer.status_code == (status if user == owner else 403)

    rotated: list[Path] = []
    for part in range(4):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, asked[part * 60 : part * 60 + 60]))
        if part < 3:
            rotated.append(audit.with_suffix(f".{part}"))
            audit.rename(rotated[-1])
    text = "".join(path.read_text() for path in (*rotated, audit))
    found = [json.loads(line) for line in text.splitlines()][before:]
    wanted = {
        (request, user, f"users/{owner}/x", "done" if user == owner else "denied")
        for request, user, line, owner, _ in asked
        if user != owner or not line.startswith("GET")
    }
    told = [(line["request"], line["user"], line["repository"], line["outcome"]) for line in found]
    assert sorted(told) == sorted(wanted)
    assert {line["rule"] for line in found if line["outcome"] == "done"} == {"access.rules[1]"}
    assert {line["address"] for line in found} == {"127.0.0.1"}
    assert canary not in text
    assert "Bearer" not in text
    assert len(server.workers) == 2


def test_a_killed_worker_has_told_what_it_answered(server: Server, audit: Path) -> None:
    with client(server, "ann") as asking:
        answer = asking.put("/v2/users/ann/x/manifests/last", content=IMAGE, headers={"X-Request-ID": "the-last"})
        assert answer.status_code == 201
        server.kill()
    wait_for(lambda: "the-last" in audit.read_text(), "the line", seconds=1)

"""Moorage and distribution 2.8.2 serve the same folder, one after the other and side by side.

Lists are compared as sets, for 2.8.2 does not sort its own. Its purger of uploads begins within an hour of its start,
and cannot be told to hurry, so it is not run here; that it finds what it looks for is.
"""

import json
import os
import random
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from images import TAG, build_image, build_index, manifest_of
from pushing import (
    ACCEPT,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Repository,
    catalog,
    descriptor,
    digest_of,
    image,
    noise,
    references,
)
from servers import (
    Server,
    collect_garbage,
    configuration,
    configured,
    distribution,
    free_port,
    http,
    moorage,
    run_tool,
    wait_for,
    write_configuration,
)

pytestmark = pytest.mark.needs_tool("docker-registry")

Run = Callable[[Path], AbstractContextManager[Server]]

BOTH_WAYS = pytest.mark.parametrize(
    ("first", "second"), [(distribution, moorage), (moorage, distribution)], ids=["into-moorage", "into-distribution"]
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def both(root: Path) -> Generator[tuple[Repository, Repository]]:
    """The same repository, served by distribution and by Moorage at once."""
    with distribution(root) as old, moorage(root) as new, http(old.url) as to_old, http(new.url) as to_new:
        yield Repository(to_old, "team/app"), Repository(to_new, "team/app")


def seen(http: httpx.Client, url: str) -> tuple[object, ...]:
    """Return what both registries must say alike of the content at `url`, by GET and HEAD."""
    got = http.get(url, headers=ACCEPT)
    head = http.head(url, headers=ACCEPT)
    assert got.status_code == head.status_code == 200, (url, got.text)
    names = ["docker-content-digest", "content-type", "content-length", "etag", "docker-distribution-api-version"]
    assert [got.headers[name] for name in names] == [head.headers[name] for name in names]
    return got.content, *(got.headers[name] for name in names)


def push_all(repository: Repository, numbers: random.Random) -> dict[str, bytes]:
    """Push what 2.8.2 takes, of every kind; return the manifests by tag."""
    layers = [noise(numbers, size) for size in (1, 5_000, 3 << 20)]
    manifests = {"v1": repository.push_image("v1", layers), "V_2.x-y": repository.push_image("V_2.x-y", layers[1:])}
    docker = json.loads(image(layers[:1])) | {"mediaType": DOCKER_MANIFEST}
    docker["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    docker["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar"
    manifests["docker"] = json.dumps(docker, indent=3).encode()
    assert repository.put("docker", manifests["docker"], DOCKER_MANIFEST).status_code == 201
    entries = [descriptor(OCI_MANIFEST, manifests[tag]) for tag in ("v1", "V_2.x-y")]
    for entry, architecture in zip(entries, ("amd64", "arm64"), strict=True):
        entry["platform"] = {"architecture": architecture, "os": "linux"}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    manifests["index"] = json.dumps(index).encode()
    assert repository.put("index", manifests["index"], OCI_INDEX).status_code == 201
    manifests["moved"] = repository.push_image("moved", layers[:1])
    manifests["moved"] = repository.push_image("moved", layers[:2])
    return manifests


@BOTH_WAYS
def test_content_of_one_is_served_byte_for_byte_by_the_other(root: Path, first: Run, second: Run) -> None:
    with first(root) as server, http(server.url) as client:
        repositories = [Repository(client, name) for name in ("app", "team/app", "team/app/part")]
        pushed = {each.name: push_all(each, random.Random(each.name)) for each in repositories}
        urls = [
            url
            for each in repositories
            for tag, manifest in pushed[each.name].items()
            for url in (
                each.manifest_url(tag),
                each.manifest_url(digest_of(manifest)),
                *(each.blob_url(digest) for digest in references(manifest) if tag != "index"),
            )
        ]
        before = {url: seen(client, url) for url in urls}
    with second(root) as server, http(server.url) as client:
        assert {url: seen(client, url) for url in urls} == before
        assert catalog(client) == set(pushed)
        for name, manifests in pushed.items():
            assert Repository(client, name).tags() == set(manifests)
            for tag, manifest in manifests.items():
                assert Repository(client, name).manifest(tag) == manifest


def test_manifests_that_only_distribution_takes_are_served(both: tuple[Repository, Repository]) -> None:
    old, new = both
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}"), "size": 2}
    odd: list[dict[str, object]] = [
        {"config": {"digest": config["digest"], "size": 2}, "layers": []},
        {"config": {"digest": config["digest"], "mediaType": config["mediaType"]}, "layers": []},
        {"config": config, "layers": [], "mediaType": None},
        {"config": config, "annotations": {"a": None}},
    ]
    manifests = [json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST} | each).encode() for each in odd]
    old.push(b"{}")
    for manifest in manifests:
        taken = old.put(digest_of(manifest), manifest)
        assert taken.status_code == 201, taken.text
        assert new.manifest(digest_of(manifest)) == manifest


@BOTH_WAYS
def test_what_one_deletes_is_gone_in_the_other(root: Path, first: Run, second: Run) -> None:
    numbers = random.Random(5)
    with first(root) as one, second(root) as other, http(one.url) as to_one, http(other.url) as to_other:
        here, there = Repository(to_one, "app"), Repository(to_other, "app")
        doomed = here.push_image("doomed", [noise(numbers, 100)])
        assert here.put("doomed-too", doomed).status_code == 201
        kept = here.push_image("kept", [noise(numbers, 100)])
        blob = references(kept)[1]
        # Both have served it, so whatever they keep in memory they have.
        for each in (here, there):
            assert each.pull_image("doomed") == doomed
            assert each.pull_image("kept") == kept
        assert to_one.delete(here.manifest_url(digest_of(doomed))).status_code == 202
        for reference in ("doomed", "doomed-too", digest_of(doomed)):
            for method in ("GET", "HEAD"):
                answer = to_other.request(method, there.manifest_url(reference), headers=ACCEPT)
                assert answer.status_code == 404, (method, reference)
        assert there.tags() == here.tags() == {"kept"}
        assert to_one.delete(here.blob_url(blob)).status_code == 202
        assert to_other.get(there.manifest_url("kept"), headers=ACCEPT).status_code == 200
    # 2.8.2 remembers blobs that it has seen, so the last word has one that starts anew.
    with second(root) as other, http(other.url) as to_other:
        assert to_other.get(Repository(to_other, "app").blob_url(blob)).status_code == 404


def test_a_tag_that_moorage_deletes_is_gone_in_distribution(both: tuple[Repository, Repository]) -> None:
    old, new = both
    manifest = old.push_image("v1", [b"one"])
    assert old.put("v2", manifest).status_code == 201
    assert new.http.delete(new.manifest_url("v1")).status_code == 202
    assert old.tags() == {"v2"}
    assert old.http.get(old.manifest_url("v1"), headers=ACCEPT).status_code == 404
    assert old.manifest(digest_of(manifest)) == manifest


def test_each_sees_at_once_what_the_other_pushes(both: tuple[Repository, Repository]) -> None:
    for at, (here, there) in enumerate([both, both[::-1]] * 3):
        manifest = here.push_image("moving", [f"layer {at}".encode()])
        assert there.pull_image("moving") == manifest
        assert there.tags() == here.tags() == {"moving"}
        assert catalog(there.http) == catalog(here.http) == {"team/app"}


@pytest.mark.needs_tool("skopeo", "umoci")
def test_moorage_takes_the_place_of_a_running_distribution_and_gives_it_back(root: Path, tmp_path: Path) -> None:
    port = free_port()
    settings = configuration(
        root,
        port,
        log={"fields": {"service": "registry"}, "level": "info"},
        http={"addr": f"127.0.0.1:{port}", "secret": "abc", "headers": {"X-Content-Type-Options": ["nosniff"]}},
        health={"storagedriver": {"enabled": True, "interval": "10s", "threshold": 3}},
    )
    settings["storage"] = {
        "cache": {"blobdescriptor": "inmemory"},
        "filesystem": {"rootdirectory": str(root), "maxthreads": 100},
        "delete": {"enabled": True},
    }
    file = write_configuration(tmp_path / "config.yml", settings)
    address = f"docker://127.0.0.1:{port}/team/app"
    first, second = build_image(tmp_path / "first", 1), build_index(tmp_path / "second")

    def push(layout: Path, tag: str) -> None:
        run_tool(
            "skopeo", "--insecure-policy", "copy", "--all", "--dest-tls-verify=false",
            f"oci:{layout}:{TAG}", f"{address}:{tag}",
        )  # fmt: skip

    def assert_pulls(layout: Path, tag: str, out: Path) -> None:
        run_tool(
            "skopeo", "--insecure-policy", "copy", "--all", "--src-tls-verify=false",
            f"{address}:{tag}", f"oci:{out}:{TAG}",
        )  # fmt: skip
        assert manifest_of(out) == manifest_of(layout)

    with distribution(root, file=file, port=port):
        push(first, "first")
    with moorage(file, port=port, workers=2) as server, http(server.url) as client:
        assert_pulls(first, "first", tmp_path / "out1")
        push(second, "second")
        assert client.get("/v2/").headers["x-content-type-options"] == "nosniff"
    with distribution(root, file=file, port=port):
        assert_pulls(first, "first", tmp_path / "out2")
        assert_pulls(second, "second", tmp_path / "out3")
        push(first, "third")
    with moorage(file, port=port) as server, http(server.url) as client:
        assert Repository(client, "team/app").tags() == {"first", "second", "third"}
        assert_pulls(first, "third", tmp_path / "out4")


def push_with_what_only_moorage_knows(repository: Repository) -> tuple[dict[str, bytes], bytes, list[str]]:
    """Push tagged images, a referrer, and content by sha512; return images, referrer, and digests by sha512."""
    tagged = push_all(repository, random.Random(8))
    subject = descriptor(OCI_MANIFEST, tagged["v1"])
    config = b"{}"
    referrer = image([b"signature"], config, subject=subject, artifactType="application/vnd.example.signature")
    repository.push(b"signature")
    done = repository.put(digest_of(referrer), referrer)
    assert done.status_code == 201
    assert done.headers["oci-subject"] == subject["digest"]
    layer = b"named by sha512" * 1000
    blob = repository.push(layer, algorithm="sha512")
    strong = json.dumps({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer, "sha512")],
    }).encode()
    by_sha512 = digest_of(strong, "sha512")
    done = repository.http.put(
        repository.manifest_url(by_sha512), params={"tag": "strong"}, content=strong,
        headers={"content-type": OCI_MANIFEST},
    )  # fmt: skip
    assert done.status_code == 201, done.text
    return tagged, referrer, [by_sha512, blob]


@pytest.mark.parametrize("flags", [(), ("--delete-untagged",)], ids=["unlinked", "untagged-too"])
def test_distributions_collector_keeps_what_is_tagged(root: Path, flags: tuple[str, ...]) -> None:
    with moorage(root) as server, http(server.url) as client:
        repository = Repository(client, "team/app")
        tagged, referrer, (strong, blob) = push_with_what_only_moorage_knows(repository)
        garbage = repository.push(b"garbage" * 1000)
        assert client.delete(repository.blob_url(garbage)).status_code == 202
        leftover = repository.open_upload()
        assert client.patch(leftover, content=b"begun").status_code == 202
    collect_garbage(root, *flags)
    with moorage(root) as server, http(server.url) as client:
        repository = Repository(client, "team/app")
        assert catalog(client) == {"team/app"}
        assert repository.tags() == {*tagged, "strong"}
        for tag, manifest in tagged.items():
            if tag == "index":
                # What it lists has tags of its own.
                assert repository.manifest(tag) == manifest
            else:
                assert repository.pull_image(tag) == manifest
        assert repository.blob(blob)
        assert digest_of(repository.manifest(strong), "sha512") == strong
        # What has no tag is garbage to the second kind of collection, and then no referrer either.
        kept = [] if flags else [digest_of(referrer)]
        assert [each["digest"] for each in repository.referrers(digest_of(tagged["v1"]))] == kept
        # Its data went. A push finds that out, and brings it back.
        assert client.get(repository.blob_url(garbage)).status_code == 404
        assert repository.push(b"garbage" * 1000) == garbage
        assert repository.blob(garbage)
        assert client.patch(leftover, content=b" and ended").status_code == 202
        ended = client.put(leftover, params={"digest": digest_of(b"begun and ended")})
        assert ended.status_code == 201


def test_distribution_serves_what_it_has_no_place_for(root: Path) -> None:
    with moorage(root) as server, http(server.url) as client:
        tagged, referrer, (strong, blob) = push_with_what_only_moorage_knows(Repository(client, "team/app"))
    with distribution(root) as server, http(server.url) as client:
        repository = Repository(client, "team/app")
        assert repository.tags() == {*tagged, "strong"}
        assert repository.pull_image(digest_of(referrer)) == referrer
        assert digest_of(repository.blob(blob), "sha512") == blob
        by_tag = client.get(repository.manifest_url("strong"), headers=ACCEPT)
        assert digest_of(by_tag.content, "sha512") == strong
        assert catalog(client) == {"team/app"}


def test_uploads_that_distribution_left_disturb_nothing_and_are_purged(root: Path) -> None:
    with distribution(root) as server, http(server.url) as client:
        repository = Repository(client, "team/app")
        manifest = repository.push_image("v1", [b"layer"])
        left = repository.open_upload()
        answer = client.patch(left, content=b"half of it", headers={"content-type": "application/octet-stream"})
        assert answer.status_code == 202
        fresh = Repository(client, "only/begun").open_upload()
    folders = sorted(root.glob("docker/registry/v2/repositories/**/_uploads/*"))
    assert len(folders) == 2
    with moorage(root) as server, http(server.url) as client:
        repository = Repository(client, "team/app")
        assert catalog(client) == {"team/app"}
        assert repository.pull_image("v1") == manifest
        assert repository.tags() == {"v1"}
        # Sessions are not shared between the two.
        for location in (left, fresh):
            assert client.get(httpx.URL(location).path).status_code == 404
        mine = repository.open_upload()
        assert client.patch(mine, content=b"mine").status_code == 202
        abandoned = repository.open_upload()
    age(root / abandoned.removeprefix("/v2/").replace("team/app/blobs/uploads", session_folder()))
    for folder in folders:
        age(folder)
    purging = {"uploadpurging": {"enabled": True, "age": "24h", "interval": "1s", "dryrun": False}}
    storage = {"filesystem": {"rootdirectory": str(root)}, "maintenance": purging}
    with configured(root, storage=storage) as server, http(server.url) as client:
        wait_for(lambda: not any(folder.exists() for folder in folders), "the end of abandoned uploads")
        wait_for(lambda: client.get(abandoned).status_code == 404, "the end of an abandoned upload of ours")
        assert client.get(mine).status_code == 204
        assert client.put(mine, params={"digest": digest_of(b"mine")}).status_code == 201
        assert Repository(client, "team/app").pull_image("v1") == manifest


def session_folder() -> str:
    return "docker/registry/v2/repositories/team/app/_uploads"


def age(folder: Path) -> None:
    """Make an upload as old as if nothing had happened to it for a month."""
    (folder / "startedat").write_text("2020-01-01T00:00:00Z", encoding="ascii")
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (1_600_000_000, 1_600_000_000))


def test_an_upload_of_moorage_looks_to_distributions_purger_like_one_of_its_own(root: Path) -> None:
    with moorage(root) as server, http(server.url) as client:
        name = Repository(client, "team/app").open_upload().rpartition("/")[2]
    started = root / session_folder() / name / "startedat"
    # It takes the last part of a path that is a UUID for the session, and reads a time to the second from here.
    assert len(name) == 36
    assert name.count("-") == 4
    text = started.read_text(encoding="ascii")
    assert len(text) == len("2026-08-18T18:55:22Z")
    assert text.endswith("Z")


def test_distribution_is_not_disturbed_by_uploads_that_moorage_left(root: Path) -> None:
    with moorage(root) as server, http(server.url) as client:
        repository = Repository(client, "team/app")
        manifest = repository.push_image("v1", [b"layer"])
        left = repository.open_upload()
        assert client.patch(left, content=b"half").status_code == 202
    with distribution(root) as server, http(server.url) as client:
        repository = Repository(client, "team/app")
        assert repository.pull_image("v1") == manifest
        assert repository.tags() == {"v1"}
        assert catalog(client) == {"team/app"}
        other = repository.push_image("v2", [b"another"])
    with moorage(root) as server, http(server.url) as client:
        repository = Repository(client, "team/app")
        assert repository.pull_image("v2") == other
        assert client.put(left, params={"digest": digest_of(b"half")}).status_code == 201

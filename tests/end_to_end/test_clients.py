"""Real clients push to Moorage and pull from it; what comes out has the digests of what went in."""

import json
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Protocol, cast

import oras.oci
import oras.provider
import pytest
import requests

from images import TAG, build_image, build_index, content_of, manifest_of
from pushing import DOCKER_MANIFEST, OCI_MANIFEST, Repository, digest_of, references
from servers import Server, http, moorage, run_tool


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, http_engine: str) -> Generator[Server]:
    assert http_engine
    with moorage(tmp_path_factory.mktemp("clients") / "root", workers=2) as server:
        yield server


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_image(tmp_path_factory.mktemp("image") / "layout")


@pytest.fixture
def repository(server: Server, request: pytest.FixtureRequest) -> Generator[Repository]:
    name = f"clients/{request.function.__name__.replace('_', '-')}"
    with http(server.url) as client:
        yield Repository(client, name)


def address(server: Server, repository: Repository, tag: str = "") -> str:
    return f"docker://{server.host}/{repository.name}{tag and ':'}{tag}"


def skopeo(*arguments: str) -> str:
    return run_tool("skopeo", "--insecure-policy", *arguments)


def push_layout(layout: Path, server: Server, repository: Repository, tag: str = TAG, *flags: str) -> None:
    skopeo("copy", "--dest-tls-verify=false", *flags, f"oci:{layout}:{TAG}", address(server, repository, tag))


def assert_same_image(manifest: bytes, layout: Path) -> None:
    """Check that the layout has, under its tag, exactly `manifest` and every blob of it."""
    assert manifest_of(layout) == manifest
    for digest in references(manifest):
        assert digest_of(content_of(layout, digest)) == digest


@pytest.mark.needs_tool("skopeo", "umoci")
def test_skopeo_copies_an_oci_image_in_and_out(
    server: Server, repository: Repository, layout: Path, tmp_path: Path
) -> None:
    push_layout(layout, server, repository)
    assert repository.pull_image(TAG) == manifest_of(layout)
    out = tmp_path / "out"
    skopeo("copy", "--src-tls-verify=false", address(server, repository, TAG), f"oci:{out}:{TAG}")
    assert_same_image(manifest_of(layout), out)


@pytest.mark.needs_tool("skopeo", "umoci")
def test_skopeo_copies_a_docker_image_in_and_out(
    server: Server, repository: Repository, layout: Path, tmp_path: Path
) -> None:
    push_layout(layout, server, repository, TAG, "--format", "v2s2")
    pushed = repository.pull_image(TAG)
    assert json.loads(pushed)["mediaType"] == DOCKER_MANIFEST
    kept = repository.http.head(repository.manifest_url(TAG), headers={"accept": DOCKER_MANIFEST})
    assert kept.headers["content-type"] == DOCKER_MANIFEST
    out = tmp_path / "out"
    skopeo("copy", "--src-tls-verify=false", "--preserve-digests", address(server, repository, TAG), f"dir:{out}")
    assert (out / "manifest.json").read_bytes() == pushed
    for digest in references(pushed):
        assert digest_of((out / digest.partition(":")[2]).read_bytes()) == digest


@pytest.mark.needs_tool("skopeo", "umoci")
def test_skopeo_lists_tags_and_inspects(server: Server, repository: Repository, layout: Path) -> None:
    for tag in ("v1", "v2", "other"):
        push_layout(layout, server, repository, tag)
    listed = json.loads(skopeo("list-tags", "--tls-verify=false", address(server, repository)))
    assert listed["Tags"] == ["other", "v1", "v2"]
    seen = json.loads(skopeo("inspect", "--tls-verify=false", address(server, repository, "v2")))
    manifest = manifest_of(layout)
    assert seen["Digest"] == digest_of(manifest)
    assert seen["Layers"] == references(manifest)[1:]
    assert skopeo("inspect", "--raw", "--tls-verify=false", address(server, repository, "v1")).encode() == manifest


@pytest.mark.needs_tool("skopeo", "umoci")
def test_skopeo_deletes(server: Server, repository: Repository, layout: Path) -> None:
    for tag in ("v1", "v2"):
        push_layout(layout, server, repository, tag)
    skopeo("delete", "--tls-verify=false", address(server, repository, "v1"))
    # skopeo asks for the digest of the tag and deletes that, so every tag of it goes.
    assert repository.tags() == set()
    answer = repository.http.get(repository.manifest_url(digest_of(manifest_of(layout))))
    assert answer.status_code == 404


@pytest.mark.needs_tool("skopeo", "umoci")
def test_skopeo_syncs_to_a_folder_and_back(
    server: Server, repository: Repository, layout: Path, tmp_path: Path
) -> None:
    for tag in ("v1", "v2"):
        push_layout(layout, server, repository, tag)
    source = f"{server.host}/{repository.name}"
    skopeo("sync", "--src-tls-verify=false", "--scoped", "--src", "docker", "--dest", "dir", source, str(tmp_path))
    folder = tmp_path / f"{server.host}/{Path(repository.name).parent}"
    assert folder.is_dir()
    target = f"{server.host}/synced"
    skopeo("sync", "--dest-tls-verify=false", "--src", "dir", "--dest", "docker", str(folder), target)
    synced = Repository(repository.http, f"synced/{Path(repository.name).name}")
    assert synced.tags() == {"v1", "v2"}
    for tag in ("v1", "v2"):
        assert synced.pull_image(tag) == manifest_of(layout)


@pytest.mark.needs_tool("skopeo", "umoci")
def test_skopeo_copies_an_index_with_all_its_images(server: Server, repository: Repository, tmp_path: Path) -> None:
    layout = build_index(tmp_path / "layout")
    push_layout(layout, server, repository, TAG, "--all")
    index = repository.manifest(TAG)
    assert index == manifest_of(layout)
    assert len(references(index)) == 2
    for digest in references(index):
        repository.pull_image(digest)
    out = tmp_path / "out"
    skopeo("copy", "--all", "--src-tls-verify=false", address(server, repository, TAG), f"oci:{out}:{TAG}")
    assert manifest_of(out) == index
    for digest in references(index):
        assert content_of(out, digest) == repository.manifest(digest)


class OrasClient(Protocol):
    """What is used of `oras.provider.Registry`, whose own types are incomplete."""

    session: requests.Session

    def push(
        self,
        target: str,
        *,
        files: list[str],
        disable_path_validation: bool,
        subject: object,
        manifest_annotations: dict[str, str],
        do_chunked: bool,
        chunk_size: int,
        quiet: bool,
    ) -> requests.Response: ...

    def pull(self, target: str, *, outdir: str) -> list[str]: ...

    def get_tags(self, container: str) -> list[str]: ...


class Storage:
    """A place of its own for podman's and buildah's images."""

    def __init__(self, folder: Path) -> None:
        self.flags = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]
        self.podman_flags = ["--tmpdir", str(folder / "tmp"), "--events-backend", "none"]

    def podman(self, *arguments: str) -> str:
        return run_tool("podman", *self.flags, *self.podman_flags, "--cgroup-manager", "cgroupfs", *arguments)

    def buildah(self, *arguments: str) -> str:
        return run_tool("buildah", *self.flags, *arguments)


@pytest.fixture
def short_path() -> Generator[Path]:
    """A folder with a short name: podman takes no run root of more than 50 characters."""
    with tempfile.TemporaryDirectory(prefix="e2e") as folder:
        yield Path(folder)


@pytest.mark.needs_tool("podman", "skopeo", "umoci")
def test_podman_pulls_and_pushes(server: Server, repository: Repository, layout: Path, short_path: Path) -> None:
    push_layout(layout, server, repository)
    storage = Storage(short_path)
    name = f"{server.host}/{repository.name}"
    image_id = storage.podman("pull", "--quiet", "--tls-verify=false", f"{name}:{TAG}").strip()
    assert f"sha256:{image_id}" == references(manifest_of(layout))[0]
    seen = json.loads(storage.podman("image", "inspect", image_id))[0]
    assert seen["Digest"] == digest_of(manifest_of(layout))
    storage.podman("push", "--quiet", "--tls-verify=false", image_id, f"docker://{name}:again")
    again = repository.pull_image("again")
    # podman compresses anew, so layers may differ; the image, which names their content, is the same.
    assert references(again)[0] == references(manifest_of(layout))[0]
    storage.podman("rmi", "--force", image_id)
    assert storage.podman("pull", "--quiet", "--tls-verify=false", f"{name}:again").strip() == image_id


@pytest.mark.needs_tool("buildah", "podman")
def test_buildah_builds_and_pushes_what_podman_pulls(
    server: Server, repository: Repository, tmp_path: Path, short_path: Path
) -> None:
    storage = Storage(short_path)
    (tmp_path / "greeting").write_bytes(b"ahoy" * 10_000)
    container = storage.buildah("from", "scratch").strip()
    storage.buildah("copy", container, str(tmp_path / "greeting"), "/greeting")
    image_id = storage.buildah("commit", "--quiet", container, "built").strip()
    name = f"{server.host}/{repository.name}"
    storage.buildah("push", "--quiet", "--tls-verify=false", "built", f"docker://{name}:{TAG}")
    assert references(repository.pull_image(TAG))[0] == f"sha256:{image_id}"
    storage.buildah("rm", container)
    storage.buildah("rmi", "--force", image_id)
    assert storage.podman("pull", "--quiet", "--tls-verify=false", f"{name}:{TAG}").strip() == image_id
    elsewhere = Storage(short_path / "elsewhere")
    assert elsewhere.buildah("pull", "--quiet", "--tls-verify=false", f"{name}:{TAG}").strip() == image_id


def test_the_oras_client_pushes_an_artifact_with_a_subject(
    server: Server, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    subject = repository.push_image("subject", [b"layer"])
    client = cast("OrasClient", oras.provider.Registry(hostname=server.host, insecure=True))
    file = tmp_path / "signature.txt"
    file.write_bytes(b"signed" * 50_000)
    target = f"{server.host}/{repository.name}:signature"
    try:
        pushed = client.push(
            target,
            files=[f"{file}:text/plain"],
            disable_path_validation=True,
            subject=oras.oci.Subject(mediaType=OCI_MANIFEST, digest=digest_of(subject), size=len(subject)),
            manifest_annotations={"made.by": "a test"},
            do_chunked=True,
            chunk_size=100_000,
            quiet=True,
        )
        assert pushed.status_code == 201
        assert pushed.headers["OCI-Subject"] == digest_of(subject)
        manifest = repository.pull_image("signature")
        found = repository.referrers(digest_of(subject))
        assert [each["digest"] for each in found] == [digest_of(manifest)]
        assert found[0]["size"] == len(manifest)
        assert found[0]["annotations"] == {"made.by": "a test"}
        # An image manifest without artifactType is listed by the type of its configuration.
        assert found[0]["artifactType"] == json.loads(manifest)["config"]["mediaType"]
        assert set(client.get_tags(f"{server.host}/{repository.name}")) == {"signature", "subject"}
        pulled = client.pull(target, outdir=str(tmp_path / "out"))
        assert [Path(path).read_bytes() for path in pulled] == [file.read_bytes()]
    finally:
        client.session.close()

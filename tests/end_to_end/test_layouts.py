"""`moorage copy` between stores and OCI image layouts that real tools write and read."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from images import TAG, build_image, build_index, content_of, manifest_of
from layouts import Layout
from pushing import OCI_MANIFEST, Repository, digest_of, fits, references
from s3 import bucket, options as s3_options
from servers import configuration, configured, http, run_tool, wait_for, write_configuration
from services import S3Service

BLOBS = int(os.environ.get("MOORAGE_TEST_IMAGES", "20"))
"""How many layers are under way when a copy is killed; more where there is time."""


def settings(folder: Path) -> Path:
    return write_configuration(folder.with_name(f"{folder.name}.yml"), configuration(folder, 0))


def begin(*arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "moorage_app", "copy", "--quiet", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def copy(*arguments: object) -> str:
    """Copy, which must succeed; return what was printed."""
    process = begin(*arguments)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), err
    return out


def skopeo(*arguments: str) -> str:
    return run_tool("skopeo", "--insecure-policy", *arguments)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_image(tmp_path_factory.mktemp("image") / "layout")


@pytest.fixture(scope="module")
def multiple(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_index(tmp_path_factory.mktemp("index") / "layout")


@pytest.mark.needs_tool("skopeo", "umoci")
def test_a_layout_of_umoci_is_served_as_it_is_and_comes_back_whole(single: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    copy("--from-layout", single, settings(store), "--repository", "team/app")
    with configured(store) as server, http(server.url) as client:
        assert Repository(client, "team/app").tags() == {TAG}
        assert Repository(client, "team/app").pull_image(TAG) == manifest_of(single)
        skopeo("copy", "--src-tls-verify=false", f"docker://{server.host}/team/app:{TAG}", f"oci:{tmp_path}/pulled:x")
        # What is served is copied all the same.
        copy(settings(store), "--to-layout", tmp_path / "out", "--repository", "team/app")
    assert manifest_of(tmp_path / "pulled") == manifest_of(tmp_path / "out") == manifest_of(single)
    run_tool("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/out:{TAG}", str(tmp_path / "bundle"))
    assert (tmp_path / "bundle/rootfs/data/file2").stat().st_size == 1_500_000
    skopeo("copy", f"oci:{tmp_path}/out:{TAG}", f"dir:{tmp_path}/dir")
    assert (tmp_path / "dir/manifest.json").read_bytes() == manifest_of(single)


@pytest.mark.needs_tool("skopeo", "umoci")
def test_archives_of_skopeo_go_in_and_out(single: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    skopeo("copy", f"oci:{single}:{TAG}", f"oci-archive:{tmp_path}/in.tar:registry.example/team/app:v7")
    # Its name says where it belongs.
    copy("--from-layout", tmp_path / "in.tar", settings(store))
    copy(settings(store), "--to-layout", tmp_path / "out.tar")
    with configured(store) as server, http(server.url) as client:
        assert Repository(client, "team/app").pull_image("v7") == manifest_of(single)
        skopeo(
            "copy",
            "--dest-tls-verify=false",
            f"oci-archive:{tmp_path}/out.tar:v7",
            f"docker://{server.host}/team/back:v7",
        )
        assert Repository(client, "team/back").pull_image("v7") == manifest_of(single)


@pytest.mark.needs_tool("skopeo", "umoci")
def test_images_of_several_machines_go_in_and_out_with_their_signatures(multiple: Path, tmp_path: Path) -> None:
    stores = [tmp_path / "first", tmp_path / "second"]
    copy("--from-layout", multiple, settings(stores[0]), "--repository", "team/app")
    index = manifest_of(multiple)
    with configured(stores[0]) as server, http(server.url) as client:
        repository = Repository(client, "team/app")
        assert repository.manifest(TAG) == index
        arm = repository.pull_image(references(index)[1])
        subject = {"mediaType": OCI_MANIFEST, "digest": digest_of(arm), "size": len(arm)}
        signature = repository.push_image("signature", [b"signature"], subject=subject)
        subject = {"mediaType": OCI_MANIFEST, "digest": digest_of(signature), "size": len(signature)}
        counter = repository.push_image("counter", [b"counter"], subject=subject)
    out = tmp_path / "out"
    copy(settings(stores[0]), "--to-layout", out, "--tag", TAG)
    skopeo("copy", "--all", f"oci:{out}:{TAG}", f"dir:{tmp_path}/dir")
    assert (tmp_path / "dir/manifest.json").read_bytes() == index
    copy("--from-layout", out, settings(stores[1]))
    with configured(stores[1]) as server, http(server.url) as client:
        repository = Repository(client, "team/app")
        assert repository.tags() == {TAG}
        assert repository.manifest(TAG) == index
        for digest in references(index):
            repository.pull_image(digest)
        for about, expected in ((arm, signature), (signature, counter)):
            assert [each["digest"] for each in repository.referrers(digest_of(about))] == [digest_of(expected)]
            assert repository.pull_image(digest_of(expected)) == expected


def test_a_bucket_takes_a_layout_and_gives_it_back(moto: S3Service, tmp_path: Path) -> None:
    layout = many(tmp_path / "layout")
    file = write_configuration(tmp_path / "s3.yml", {"version": 0.1, "storage": {"s3": s3_options(moto, bucket(moto))}})
    size = len(list((layout.folder / "blobs/sha256").iterdir())) + BLOBS + 1
    assert copy("--from-layout", layout.folder, file, "--repository", "team/app").startswith(
        f"copied: {size} objects, "
    )
    copied_again = copy("--from-layout", layout.folder, file, "--repository", "team/other")
    assert copied_again.startswith(f"copied: {size} objects, ")
    out = tmp_path / "out"
    copy(file, "--to-layout", out, "--repository", "team/app")
    for blob in (layout.folder / "blobs/sha256").iterdir():
        assert (out / "blobs/sha256" / blob.name).read_bytes() == blob.read_bytes()
    again = copy("--from-layout", out, file, "--repository", "team/app")
    assert again == f"copied: 0 objects, 0 bytes; the same already: {size}\n"


def many(folder: Path) -> Layout:
    """Return a layout of images with a layer each, and an index of them all."""
    layout = Layout(folder)
    images = [layout.image(layout.blob(os.urandom(200_000)), note=str(n)) for n in range(BLOBS)]
    for number, image in enumerate(images):
        layout.name(image, f"v{number}")
    layout.name(layout.index(*images), "all")
    return layout


def kill_when(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Kill a copy as soon as `condition` holds, if it has not ended before."""
    wait_for(lambda: condition() or process.poll() is not None, "the copy to come so far")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def count(folder: Path, pattern: str) -> int:
    """Return how many files of `folder` are like `pattern`; 0 if a folder vanished while they were looked for: look again."""
    try:
        return len(list(folder.rglob(pattern)))
    except FileNotFoundError:
        return 0


def test_killed_on_the_way_into_a_store_it_leaves_nothing_broken_and_goes_on(tmp_path: Path) -> None:
    layout, store = many(tmp_path / "layout"), tmp_path / "store"
    arguments = ("--from-layout", layout.folder, settings(store), "--repository", "team/app", "--jobs", 2)
    for turn in (1, 2, 3):
        enough = turn * BLOBS // 4
        kill_when(lambda enough=enough: count(store, "_layers/sha256/*/link") >= enough, begin(*arguments))  # type: ignore[misc] # mypy does not see the type of a default
        with configured(store) as server, http(server.url) as client:
            repository = Repository(client, "team/app")
            for tag in repository.tags() - {"all"}:
                repository.pull_image(tag)
    out = copy(*arguments)
    assert not out.startswith(f"copied: {3 * BLOBS + 3} ")
    assert copy(*arguments).startswith(f"copied: 0 objects, 0 bytes; the same already: {3 * BLOBS + 3}")
    with configured(store) as server, http(server.url) as client:
        repository = Repository(client, "team/app")
        assert repository.tags() == {"all", *(f"v{number}" for number in range(BLOBS))}
        for digest in references(repository.manifest("all")):
            repository.pull_image(digest)


def test_killed_on_the_way_into_a_layout_it_leaves_whole_files_and_goes_on(tmp_path: Path) -> None:
    layout, store, out = many(tmp_path / "layout"), tmp_path / "store", tmp_path / "out"
    copy("--from-layout", layout.folder, settings(store), "--repository", "team/app")
    for turn in (1, 2, 3):
        enough = turn * BLOBS // 4
        kill_when(
            lambda enough=enough: count(out, "blobs/sha256/*") >= enough,  # type: ignore[misc] # same
            begin(settings(store), "--to-layout", out, "--jobs", 2),
        )
        for file in out.glob("blobs/sha256/*"):
            assert fits(file.read_bytes(), f"sha256:{file.name}")
    copy(settings(store), "--to-layout", out)
    assert sorted(file.name for file in out.iterdir()) == ["blobs", "index.json", "oci-layout"]
    assert {file.name for file in (out / "blobs/sha256").iterdir()} == {
        file.name for file in (layout.folder / "blobs/sha256").iterdir()
    }
    assert len(json.loads((out / "index.json").read_bytes())["manifests"]) == BLOBS + 1
    assert copy(settings(store), "--to-layout", out).startswith("copied: 0 objects, 0 bytes; ")


def test_killed_on_the_way_into_a_tar_it_leaves_the_old_one(tmp_path: Path) -> None:
    layout, store, out = many(tmp_path / "layout"), tmp_path / "store", tmp_path / "out.tar"
    copy("--from-layout", layout.folder, settings(store), "--repository", "team/app")
    copy(settings(store), "--to-layout", out, "--tag", "v1")
    before = out.read_bytes()
    partial = tmp_path / ".out.tar.partial"
    process = begin(settings(store), "--to-layout", out)
    kill_when(lambda: partial.exists() and partial.stat().st_size > 200_000, process)
    if process.returncode == -signal.SIGKILL:
        assert out.read_bytes() == before
    copy(settings(store), "--to-layout", out)
    assert not partial.exists()
    with tarfile.open(out) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert manifest_of(tmp_path / "unpacked") == content_of(
        layout.folder, digest_of(manifest_of(tmp_path / "unpacked"))
    )
    assert count(tmp_path / "unpacked", "blobs/sha256/*") == count(layout.folder, "blobs/sha256/*")


def test_an_interrupt_ends_it_with_one_sentence(tmp_path: Path) -> None:
    layout, store = Layout(tmp_path / "layout"), tmp_path / "store"
    layer = layout.blob(b"layer")
    layout.name(layout.image(layer), "v1")
    # Longer to read than anybody waits, and no harm to the disk.
    with layout.path(str(layer["digest"])).open("wb") as file:
        file.truncate(1 << 36)
    process = begin("--from-layout", layout.folder, settings(store), "--repository", "team/app")
    uploads = store / "docker/registry/v2/repositories/team/app/_uploads"
    wait_for(lambda: uploads.exists() and any(uploads.iterdir()), "the layer to be under way")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "moorage: interrupted; what was copied stays: run it again to go on\n")
    assert not list(store.rglob("_manifests"))

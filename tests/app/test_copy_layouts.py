"""`moorage copy` from and to OCI image layouts: what goes where, what is left out and named, what is refused."""

import fcntl
import json
import os
import subprocess
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar, cast

import pytest
import trio
import yaml
from click.testing import CliRunner

from content import CONFIG_TYPE, descriptor, index, pull, pull_blob, push_blob, push_image, push_manifest, tags
from layouts import REFERENCE_NAME, Json, Layout
from moorage import (
    OCI_INDEX,
    OCI_MANIFEST,
    DeleteBlob,
    DeleteManifest,
    Digest,
    Handler,
    ListReferrers,
    ListRepositories,
    ManifestUnknown,
    Registry,
    RepositoryName,
)
from moorage_app.cli import main
from moorage_app.image_layout import IMAGE_NAME, entry_name
from moorage_drivers.filesystem import FilesystemDriver

T = TypeVar("T")

APP = RepositoryName("team/app")
OTHER = RepositoryName("team/other")


class Yard:
    """A folder with a store, its configuration, and layouts beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "store"
        self.file = self.configuration("config", {"filesystem": {"rootdirectory": str(self.root)}})

    def configuration(self, name: str, storage: object) -> Path:
        file = self.folder / f"{name}.yml"
        file.write_text(yaml.safe_dump({"version": 0.1, "storage": storage}), encoding="utf-8")
        return file

    def run(self, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        result = CliRunner().invoke(main, ["copy", *map(str, words)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert "Traceback" not in result.output
        return subprocess.CompletedProcess(list(map(str, words)), result.exit_code, result.stdout, result.stderr)

    def push(self, layout: Path, *words: str | Path, code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = self.run("--from-layout", layout, self.file, *words)
        assert done.returncode == code, done
        return done

    def write(self, layout: Path, *words: str | Path, code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = self.run(self.file, "--to-layout", layout, *words)
        assert done.returncode == code, done
        return done

    def store(self, use: Callable[[Registry], Awaitable[T]]) -> T:
        async def run() -> T:
            async with FilesystemDriver.open_root(str(self.root)) as driver:
                return await use(Registry(driver))

        return trio.run(run)

    def tags(self, repository: RepositoryName = APP) -> list[str]:
        return self.store(lambda registry: tags(registry, repository))

    def repositories(self) -> list[str]:
        async def use(registry: Registry) -> list[str]:
            return list((await registry(ListRepositories())).repositories)

        return self.store(use)

    def digest(self, reference: str, repository: RepositoryName = APP) -> Digest:
        async def use(registry: Registry) -> Digest:
            return (await pull(registry, reference, repository)).digest

        return self.store(use)


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def files(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def entries(folder: Path) -> list[Json]:
    return cast("list[Json]", json.loads((folder / "index.json").read_bytes())["manifests"])


def names(folder: Path) -> dict[str, str]:
    """Return what each name in `index.json` means."""
    return {
        cast("dict[str, str]", each["annotations"])[REFERENCE_NAME]: str(each["digest"])
        for each in entries(folder)
        if "annotations" in each
    }


async def referrers(registry: Handler, subject: Digest, repository: RepositoryName = APP) -> set[Digest]:
    page = await registry(ListReferrers(repository=repository, subject=subject))
    return {each.digest for each in page.referrers}


def assert_whole(folder: Path) -> set[str]:
    """Check that each file of a layout has its digest, and that what is named is there; return the digests."""
    found: set[str] = set()
    for file in (folder / "blobs").rglob("*"):
        if file.is_file():
            digest = f"{file.parent.name}:{file.name}"
            assert Digest.of(file.read_bytes(), file.parent.name) == digest
            found.add(digest)
    assert {str(each["digest"]) for each in entries(folder)} <= found
    assert sorted(each.name for each in folder.iterdir()) == ["blobs", "index.json", "oci-layout"]
    return found


# ---- into a store


def test_an_index_comes_with_its_images_and_all_that_refers_to_them(yard: Yard, layout: Layout) -> None:
    children = [layout.image(layout.blob(f"layer {n}".encode())) for n in range(2)]
    inner = layout.index(children[1], note="inner")
    top = layout.name(layout.index(children[0], inner), "v1")
    signature = layout.name(layout.image(layout.blob(b"signature"), subject=children[1]))
    layout.name(layout.image(layout.blob(b"countersignature"), subject=signature))
    done = yard.push(layout.folder, "--repository", APP)
    content = len(files(layout.folder / "blobs"))
    size = sum(map(len, files(layout.folder / "blobs").values()))
    assert done.stdout == f"copied: {content + 1} objects, {size / 1000:.1f} kB; the same already: 0\n"
    assert yard.tags() == ["v1"]

    async def check(registry: Registry) -> None:
        assert (await pull(registry, "v1", APP)).digest == top["digest"]
        manifest = await pull(registry, Digest(str(children[1]["digest"])), APP)
        assert await pull_blob(registry, manifest.blobs[0].digest, APP) == b"layer 1"
        (found,) = await referrers(registry, manifest.digest)
        assert found == signature["digest"]
        assert len(await referrers(registry, found)) == 1

    yard.store(check)
    before = files(yard.root)
    again = yard.push(layout.folder, "--repository", APP)
    assert again.stdout == f"copied: 0 objects, 0 bytes; the same already: {content + 1}\n"
    assert files(yard.root) == before


def test_a_tar_comes_as_the_folder_does(yard: Yard, layout: Layout, tmp_path: Path) -> None:
    top = layout.name(layout.index(layout.image(layout.blob(b"layer"))), "v1")
    yard.push(layout.archive(tmp_path / "layout.tar"), "--repository", APP)
    assert yard.digest("v1") == top["digest"]


def test_a_second_repository_shares_what_the_store_has(yard: Yard, layout: Layout) -> None:
    layer = layout.blob(bytes(100_000))
    layout.name(layout.image(layer), "v1")
    yard.push(layout.folder, "--repository", APP)
    layout.path(str(layer["digest"])).write_bytes(bytes(99_999) + b"x")
    # It is there already, so nobody reads the damaged one.
    yard.push(layout.folder, "--repository", OTHER)

    async def check(registry: Registry) -> None:
        assert await pull_blob(registry, Digest(str(layer["digest"])), OTHER) == bytes(100_000)

    yard.store(check)
    assert not list(yard.root.rglob("_uploads/*"))


def test_only_what_is_new_is_copied_and_tags_move(yard: Yard, layout: Layout) -> None:
    layer = layout.blob(b"layer")
    layout.name(layout.image(layer), "v1")
    yard.push(layout.folder, "--repository", APP)
    newer = Layout(layout.folder.with_name("newer"))
    newer.name(newer.image(newer.blob(b"layer"), note="newer"), "v1")
    assert yard.push(newer.folder, "--repository", APP).stdout.startswith("copied: 2 objects, ")
    assert yard.digest("v1") == entries(newer.folder)[0]["digest"]


def test_a_dry_run_writes_nothing_into_a_store(yard: Yard, layout: Layout) -> None:
    layout.name(layout.image(layout.blob(b"layer")), "v1")
    yard.root.mkdir()
    done = yard.push(layout.folder, "--repository", APP, "--dry-run")
    assert done.stdout.startswith("to copy: 4 objects, ")
    assert files(yard.root) == {}


WHOLE = "docker.io/library/alpine:3.19"


@pytest.mark.parametrize(
    ("annotations", "repository", "tag"),
    [
        ({REFERENCE_NAME: WHOLE}, "library/alpine", "3.19"),
        ({IMAGE_NAME: WHOLE, REFERENCE_NAME: "3.19"}, "library/alpine", "3.19"),
        ({IMAGE_NAME: WHOLE}, "library/alpine", "3.19"),
        ({REFERENCE_NAME: "alpine:3.19"}, "alpine", "3.19"),
        ({REFERENCE_NAME: "team/app:v1"}, "team/app", "v1"),
        ({REFERENCE_NAME: "localhost/app:v1"}, "app", "v1"),
        ({REFERENCE_NAME: "localhost:5000/team/app:v1"}, "team/app", "v1"),
        ({REFERENCE_NAME: "localhost:5000/team/app"}, "team/app", None),
        ({REFERENCE_NAME: f"r.example/app:v1@sha256:{'0' * 64}"}, "app", "v1"),
        ({REFERENCE_NAME: f"r.example/app@sha256:{'0' * 64}"}, "app", None),
        ({REFERENCE_NAME: "v1"}, None, "v1"),
        ({REFERENCE_NAME: "UPPER/app:v1"}, None, "v1"),
        ({REFERENCE_NAME: "../../etc:v1"}, None, "v1"),
        ({}, None, None),
    ],
)
def test_a_name_says_repository_and_tag(annotations: dict[str, str], repository: str | None, tag: str | None) -> None:
    assert entry_name(annotations) == (repository, tag)


def named(layout: Layout, note: str, name: str, **more: object) -> Json:
    return layout.name(layout.image(note=note, **more), name)


def test_without_a_repository_images_go_where_their_names_say(yard: Yard, layout: Layout) -> None:
    alpine = named(layout, "a", WHOLE)
    busybox = named(layout, "b", "docker.io/library/busybox:latest")
    layout.name(layout.image(note="signature", subject=alpine))
    named(layout, "cosign", f"{str(busybox['digest']).replace(':', '-')}.sig")
    yard.push(layout.folder)
    assert yard.repositories() == ["library/alpine", "library/busybox"]
    assert yard.digest("3.19", RepositoryName("library/alpine")) == alpine["digest"]
    assert yard.tags(RepositoryName("library/busybox")) == ["latest", f"sha256-{str(busybox['digest'])[7:]}.sig"]
    found = yard.store(
        lambda registry: referrers(registry, Digest(str(alpine["digest"])), RepositoryName("library/alpine"))
    )
    assert len(found) == 1


def test_with_a_repository_all_goes_there(yard: Yard, layout: Layout) -> None:
    named(layout, "a", WHOLE)
    named(layout, "b", "docker.io/library/busybox:latest")
    yard.push(layout.folder, "--repository", APP)
    assert yard.repositories() == [APP]
    assert yard.tags() == ["3.19", "latest"]


def test_one_image_is_called_as_the_tags_say(yard: Yard, layout: Layout) -> None:
    image = layout.name(layout.image(note="alone"))
    layout.name(layout.image(note="signature", subject=image))
    yard.push(layout.folder, "--repository", APP, "--tag", "v2", "--tag", "latest")
    assert yard.tags() == ["latest", "v2"]
    assert len(yard.store(lambda registry: referrers(registry, digest_of(image)))) == 1


def digest_of(descriptor: Json) -> Digest:
    return Digest(str(descriptor["digest"]))


def test_of_many_images_tags_choose(yard: Yard, layout: Layout) -> None:
    one = named(layout, "1", "v1")
    other = named(layout, "2", "v2")
    layout.name(layout.image(note="signature", subject=one))
    layout.name(layout.image(note="other signature", subject=other))
    done = yard.push(layout.folder, "--repository", APP, "--tag", "v1")
    # The image, its signature, their config, and the tag.
    assert done.stdout.startswith("copied: 4 objects, ")
    assert yard.tags() == ["v1"]


def test_what_a_layout_lacks_is_named_and_all_else_is_copied(yard: Yard, layout: Layout) -> None:
    named(layout, "good", "good")
    lost = layout.image(note="lost")
    sparse = layout.name(layout.index(layout.image(note="here"), lost), "sparse")
    layer = layout.blob(b"lost layer")
    layout.name(layout.image(layer), "torn")
    layout.remove(lost)
    layout.remove(layer)
    done = yard.push(layout.folder, "--repository", APP, code=1)
    assert done.stderr == (
        f"moorage: not copied: team/app:sparse: {lost['digest']} ({OCI_MANIFEST}) is missing\n"
        f"moorage: not copied: team/app:torn: {layer['digest']} ({layer['mediaType']}) is missing\n"
    )
    assert yard.tags() == ["good"]
    with pytest.raises(ManifestUnknown):
        yard.store(lambda registry: pull(registry, digest_of(sparse), APP))
    dry = yard.push(layout.folder, "--repository", APP, "--dry-run", code=1)
    assert dry.stderr == done.stderr


def test_what_the_repository_has_need_not_be_in_the_layout(yard: Yard, layout: Layout) -> None:
    child, layer = layout.image(note="child"), layout.blob(b"layer")
    top = layout.name(layout.index(child, layout.image(layer)), "v1")
    yard.push(layout.folder, "--repository", APP, "--tag", "before")
    layout.remove(child)
    layout.remove(layer)
    yard.push(layout.folder, "--repository", APP)
    assert yard.digest("v1") == top["digest"]


def test_a_blob_that_is_damaged_is_named_with_what_needs_it(yard: Yard, layout: Layout) -> None:
    named(layout, "good", "good")
    layer = layout.blob(b"to be damaged")
    layout.name(layout.index(layout.image(layer)), "bad")
    layout.path(str(layer["digest"])).write_bytes(b"to be Damaged")
    done = yard.push(layout.folder, "--repository", APP, code=1)
    first, second = done.stderr.splitlines()
    assert first.startswith(f"moorage: not copied: {layer['digest']}: ")
    assert second == "moorage: not copied: team/app:bad: something of it could not be copied"
    assert yard.tags() == ["good"]
    assert not any(str(layer["digest"])[7:] in name for name in files(yard.root))
    assert not list(yard.root.rglob("_uploads/*"))


def test_an_index_that_lists_blobs_comes_whole(yard: Yard, layout: Layout) -> None:
    cache = layout.name(layout.index(layout.blob(b"cached layer"), layout.blob(b"{}", CONFIG_TYPE)), "cache")
    yard.push(layout.folder, "--repository", APP)
    assert yard.digest("cache") == cache["digest"]


def test_a_deep_nest_of_indexes_comes_whole(yard: Yard, layout: Layout) -> None:
    top = layout.image(layout.blob(b"layer"))
    for _ in range(60):
        top = layout.index(top)
    layout.name(top, "deep")
    yard.push(layout.folder, "--repository", APP)
    assert yard.digest("deep") == top["digest"]


# ---- hostile layouts


def pipe(layout: Layout, layer: Json) -> None:
    layout.remove(layer)
    os.mkfifo(layout.path(str(layer["digest"])))


def link(layout: Layout, layer: Json) -> None:
    secret = layout.folder.parent / "secret"
    secret.write_text("secret", encoding="utf-8")
    layout.remove(layer)
    layout.path(str(layer["digest"])).symlink_to(secret)


def holes(layout: Layout, layer: Json) -> None:
    with layout.path(str(layer["digest"])).open("wb") as file:
        file.truncate(50 << 20)


@pytest.mark.parametrize("spoil", [pipe, link, holes])
def test_nothing_of_a_hostile_layout_is_believed(
    yard: Yard, layout: Layout, spoil: Callable[[Layout, Json], None]
) -> None:
    layer = layout.blob(b"layer")
    layout.name(layout.image(layer), "v1")
    spoil(layout, layer)
    done = yard.push(layout.folder, "--repository", APP, code=1)
    assert str(layer["digest"]) in done.stderr
    assert yard.repositories() == []
    assert not any(b"secret" in content for content in files(yard.root).values())


def test_a_tar_of_tricks_is_refused_or_read_no_further(yard: Yard, layout: Layout, tmp_path: Path) -> None:
    layer = layout.blob(b"layer")
    layout.name(layout.image(layer), "v1")
    layout.remove(layer)
    tar = layout.archive(tmp_path / "tricks.tar")
    name = f"blobs/sha256/{str(layer['digest'])[7:]}"
    with tarfile.open(tar, "a") as archive:
        for kind, target in ((tarfile.SYMTYPE, "/etc/hostname"), (tarfile.LNKTYPE, "index.json")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        archive.addfile(tarfile.TarInfo("../../outside"))
        archive.addfile(tarfile.TarInfo("/absolute"))
    done = yard.push(tar, "--repository", APP, code=1)
    assert f"{layer['digest']} ({layer['mediaType']}) is missing" in done.stderr
    assert not (tmp_path.parent / "outside").exists()
    assert yard.repositories() == []


# ---- into a layout


def fill(yard: Yard) -> dict[str, Digest]:
    """Push an index of two images, one of them signed and countersigned, and an image of another repository."""

    async def use(registry: Registry) -> dict[str, Digest]:
        first = await push_image(registry, salt="1", repository=APP)
        second = await push_image(registry, salt="2", repository=APP)
        await push_manifest(registry, index(first, second), "v1", repository=APP, media_type=OCI_INDEX, tags=["latest"])
        signature = await push_image(registry, salt="signature", repository=APP, subject=second)
        counter = await push_image(registry, salt="counter", repository=APP, subject=signature)
        cosign = await push_image(registry, f"sha256-{first.encoded}.sig", salt="cosign", repository=APP)
        other = await push_image(registry, "v1", salt="other", repository=OTHER)
        top = (await pull(registry, "v1", APP)).digest
        untagged = await push_image(registry, salt="untagged", repository=APP)
        return {
            "first": first,
            "second": second,
            "top": top,
            "signature": signature,
            "counter": counter,
            "cosign": cosign,
            "other": other,
            "untagged": untagged,
        }

    return yard.store(use)


def test_a_repository_is_written_with_all_that_refers_to_its_images(yard: Yard, tmp_path: Path) -> None:
    pushed = fill(yard)
    out = tmp_path / "out"
    done = yard.write(out, "--repository", APP, "--tag", "v1")
    assert done.stderr == ""
    found = assert_whole(out)
    assert {str(digest) for name, digest in pushed.items() if name not in {"other", "untagged"}} <= found
    assert not {pushed["other"], pushed["untagged"]} & found
    assert names(out) == {"v1": pushed["top"], f"sha256-{pushed['first'].encoded}.sig": pushed["cosign"]}
    assert [each["digest"] for each in entries(out) if "annotations" not in each] == sorted([
        pushed["signature"],
        pushed["counter"],
    ])
    assert {each.get("artifactType") for each in entries(out) if "annotations" not in each} == {CONFIG_TYPE}
    before = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    again = yard.write(out, "--repository", APP, "--tag", "v1")
    assert again.stdout.startswith("copied: 0 objects, 0 bytes; the same already: ")
    assert {name: (out / name).stat().st_mtime_ns for name in files(out)} == before


def test_a_store_goes_through_a_layout_into_another_one(yard: Yard, tmp_path: Path) -> None:
    pushed = fill(yard)
    (tmp_path / "second").mkdir()
    second = Yard(tmp_path / "second")
    for out in (tmp_path / "out", tmp_path / "out.tar"):
        yard.write(out)
        second.push(out)
    assert second.repositories() == [APP, OTHER]
    assert second.tags() == yard.tags()
    assert second.digest("latest") == pushed["top"]
    assert second.digest("v1", OTHER) == pushed["other"]
    assert second.store(lambda registry: referrers(registry, pushed["second"])) == {pushed["signature"]}
    assert second.store(lambda registry: referrers(registry, pushed["signature"])) == {pushed["counter"]}


def test_from_several_repositories_names_are_whole(yard: Yard, tmp_path: Path) -> None:
    pushed = fill(yard)
    out = tmp_path / "out"
    yard.write(out, "--tag", "v1")
    assert {name: digest for name, digest in names(out).items() if name.endswith("v1")} == {
        "team/app:v1": pushed["top"],
        "team/other:v1": pushed["other"],
    }


def test_an_image_keeps_its_name_when_a_repository_is_added(yard: Yard, tmp_path: Path) -> None:
    pushed = fill(yard)
    out = tmp_path / "out"
    yard.write(out, "--repository", OTHER)
    assert names(out) == {"v1": pushed["other"]}
    yard.write(out, "--repository", APP, "--tag", "latest")
    moved = yard.store(lambda registry: push_image(registry, "v1", salt="moved", repository=OTHER))
    yard.write(out, "--repository", OTHER)
    found = names(out)
    assert (found["v1"], found["team/app:latest"]) == (moved, pushed["top"])
    assert "team/other:v1" not in found
    assert_whole(out)


def test_what_others_wrote_to_a_layout_stays(yard: Yard, layout: Layout) -> None:
    pushed = fill(yard)
    kept = named(layout, "kept", "kept")
    replaced = named(layout, "replaced", "latest")
    document = json.loads((layout.folder / "index.json").read_bytes())
    document["annotations"] = {"org.example.note": "ours"}
    (layout.folder / "index.json").write_text(json.dumps(document), encoding="utf-8")
    yard.write(layout.folder, "--repository", APP, "--tag", "latest")
    found = names(layout.folder)
    assert (found["kept"], found["latest"]) == (kept["digest"], pushed["top"])
    assert json.loads((layout.folder / "index.json").read_bytes())["annotations"] == {"org.example.note": "ours"}
    assert str(replaced["digest"]) in assert_whole(layout.folder)


def test_a_tar_is_the_same_each_time_and_its_index_comes_last(yard: Yard, tmp_path: Path) -> None:
    fill(yard)
    first, second = tmp_path / "a.tar", tmp_path / "b.tar"
    yard.write(first)
    yard.write(second, "--jobs", "3")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path / "unpacked", filter="data")
    assert (members[0].name, members[-1].name) == ("oci-layout", "index.json")
    assert {(each.mtime, each.uid, each.gid, each.uname) for each in members} == {(0, 0, 0, "")}
    assert_whole(tmp_path / "unpacked")
    assert sorted(each.name for each in tmp_path.glob(".*")) == []


def test_a_dry_run_writes_no_layout(yard: Yard, tmp_path: Path) -> None:
    fill(yard)
    for out in (tmp_path / "out", tmp_path / "deep" / "out.tar"):
        done = yard.write(out, "--dry-run")
        assert done.stdout.startswith("to copy: ")
        assert not out.exists()
        assert not out.parent.joinpath("deep").exists()
    yard.write(tmp_path / "out", "--repository", OTHER)
    before = files(tmp_path / "out")
    yard.write(tmp_path / "out", "--dry-run")
    assert files(tmp_path / "out") == before


def test_an_image_that_the_store_lacks_something_of_is_named_and_left_out(yard: Yard, tmp_path: Path) -> None:
    pushed = fill(yard)
    layer = Digest.of(b"a layer")

    async def take_away(registry: Registry) -> None:
        await registry(DeleteBlob(repository=OTHER, digest=layer))
        await registry(DeleteManifest(repository=APP, digest=pushed["first"]))

    yard.store(take_away)
    yard.store(lambda registry: push_image(registry, "whole", salt="whole", repository=APP))
    out = tmp_path / "out"
    done = yard.write(out, code=1)
    assert done.stderr.splitlines() == [
        f"moorage: not copied: team/app:latest: {pushed['first']} ({OCI_MANIFEST}) is missing",
        f"moorage: not copied: team/other:v1: {layer} (application/vnd.oci.image.layer.v1.tar) is missing",
    ]
    assert "whole" in {name.rpartition(":")[2] for name in names(out)}
    assert_whole(out)


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_what_is_damaged_in_the_store_is_named_and_left_out(yard: Yard, tmp_path: Path, name: str) -> None:
    async def use(registry: Registry) -> Digest:
        await push_image(registry, "good", salt="good", repository=APP)
        layer = await push_blob(registry, b"to be damaged", APP)
        await push_manifest(
            registry,
            json.dumps({
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": descriptor(await push_blob(registry, b"{}", APP), media_type=CONFIG_TYPE),
                "layers": [descriptor(layer)],
            }).encode(),
            "bad",
            repository=APP,
        )
        return layer

    layer = yard.store(use)
    (file,) = yard.root.glob(f"docker/registry/v2/blobs/sha256/*/{layer.encoded}/data")
    file.write_bytes(b"to be Damaged")
    out = tmp_path / name
    done = yard.write(out, code=1)
    assert done.stderr.splitlines() == [
        f"moorage: not copied: {layer}: its 13 bytes do not have the digest that names them",
        "moorage: not copied: team/app:bad: something of it could not be copied",
    ]
    if name.endswith(".tar"):
        with tarfile.open(out) as archive:
            archive.extractall(tmp_path / "unpacked", filter="data")
        out = tmp_path / "unpacked"
    assert set(names(out)) == {"good"}
    assert layer not in assert_whole(out)


def test_one_copy_at_a_time_writes_to_a_layout(yard: Yard, tmp_path: Path) -> None:
    fill(yard)
    out = tmp_path / "out"
    yard.write(out)
    (tmp_path / ".a.tar.partial").touch()
    for held, target in ((out, out), (tmp_path / ".a.tar.partial", tmp_path / "a.tar")):
        descriptor = os.open(held, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            done = yard.write(target, code=2)
        finally:
            os.close(descriptor)
        assert done.stderr == f"moorage: {target}: another copy is writing to it\n"
        yard.write(target)
    assert not (tmp_path / ".a.tar.partial").exists()


def test_what_was_left_by_a_copy_that_was_cut_off_is_taken_away(yard: Yard, tmp_path: Path) -> None:
    fill(yard)
    out = tmp_path / "out"
    (out / ".moorage-partial").mkdir(parents=True)
    (out / ".moorage-partial" / "sha256-00").write_bytes(b"half")
    yard.write(out)
    assert_whole(out)


# ---- what cannot be done


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from-layout", "layout"], "--from-layout needs the configuration of the store"),
        (["--to-layout", "out"], "--to-layout needs the configuration of the store"),
        (["config.yml", "--from-layout"], "'--from-layout' requires an argument"),
        (["config.yml", "--from-layout", "layout", "--to-layout", "out"], "exclude each other"),
        (["config.yml", "other.yml", "--from-layout", "layout"], "one configuration is given, not two"),
        (["config.yml", "other.yml", "--to-layout", "out"], "one configuration is given, not two"),
        (["config.yml", "--from-layout", "layout", "--delete"], "--delete is for two stores"),
        (["config.yml", "--to-layout", "out", "--delete"], "--delete is for two stores"),
        (["config.yml", "other.yml", "--repository", "a"], "are for layouts"),
        (["config.yml", "other.yml", "--tag", "a"], "are for layouts"),
        (["config.yml", "--from-layout", ""], "'' names neither"),
        (["config.yml", "--to-layout", "-"], "'-' names neither"),
        (["config.yml", "--from-layout", "layout"], "does not say to which repository v1 belongs"),
        (["config.yml", "--from-layout", "layout", "--tag", "v9"], "does not say to which repository v9 belongs"),
        (["config.yml", "--from-layout", "layout", "--repository", "A"], "'A' is not a repository name"),
        (["config.yml", "--from-layout", "layout", "--repository", "a/*"], "'a/*' is not a repository name"),
        (["config.yml", "--from-layout", "layout", "--repository", "a", "--repository", "b"], "one repository"),
        (["config.yml", "--from-layout", "layout", "--repository", "a", "--tag", "a/b"], "'a/b' is not a tag"),
        (["config.yml", "--from-layout", "two", "--repository", "a", "--tag", "v9"], "has no tag v9; there is v1, v2"),
        (["config.yml", "--from-layout", "twice", "--repository", "a"], "two manifests that would be a:v1"),
        (["config.yml", "--from-layout", "nowhere", "--repository", "a"], "nowhere: No such file or directory"),
        (["config.yml", "--from-layout", "text", "--repository", "a"], "not a tar"),
        (["config.yml", "--from-layout", "empty", "--repository", "a"], "there is no oci-layout in it"),
        (["absent.yml", "--from-layout", "layout", "--repository", "a"], "absent.yml"),
        (["memory.yml", "--from-layout", "layout", "--repository", "a"], "the destination is of the driver inmemory"),
        (["memory.yml", "--to-layout", "out"], "the source is of the driver inmemory"),
        (["config.yml", "--to-layout", "out"], "no repository that is meant has a tag"),
        (["full.yml", "--to-layout", "out", "--repository", "nobody/*"], "nothing in the store is called nobody/*"),
        (["full.yml", "--to-layout", "out", "--repository", "[a]"], "--repository: [a]: a pattern has no '['"),
        (["full.yml", "--to-layout", "out", "--tag", "v9"], "--tag: nothing in the store is called v9"),
        (["full.yml", "--to-layout", "text"], "text: not a folder"),
        (["full.yml", "--to-layout", "full"], "there is something in it, and no layout"),
        (["full.yml", "--to-layout", "folder.tar"], "there is something of that name, and it is no tar"),
        (["full.yml", "--to-layout", "text.tar"], "there is something of that name, and it is no tar"),
        (["full.yml", "--to-layout", "text/out"], "text/out: not a folder"),
        (["full.yml", "--to-layout", "out.tar.gz"], "or as a tar that ends in .tar"),
        (["full.yml", "--to-layout", "broken"], "index.json: not a manifest"),
        (["full.yml", "--to-layout", "future"], "oci-layout: of version '2.0.0'"),
        (["full.yml", "--to-layout", "n" * 300], "File name too long"),
        (["full.yml", "--to-layout", "out", "--jobs", "0"], "--jobs"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_two(
    yard: Yard, layout: Layout, tmp_path: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    yard.root.mkdir()
    named(layout, "1", "v1")
    for name in ("two", "twice", "broken", "future"):
        made = Layout(tmp_path / name)
        named(made, "1", "v1")
        named(made, "2", "v1" if name == "twice" else "v2")
    (tmp_path / "broken" / "index.json").write_bytes(b"\0")
    (tmp_path / "future" / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}', encoding="utf-8")
    for name in ("text", "text.tar"):
        (tmp_path / name).write_text("text", encoding="utf-8")
    for name in ("empty", "folder.tar"):
        (tmp_path / name).mkdir()
    yard.configuration("other", {"filesystem": {"rootdirectory": str(tmp_path / "other")}})
    yard.configuration("memory", {"inmemory": {}})
    full = Yard(tmp_path)
    full.root = tmp_path / "full"
    full.file = full.configuration("full", {"filesystem": {"rootdirectory": str(full.root)}})
    full.store(lambda registry: push_image(registry, "v1", repository=APP))
    before = files(tmp_path)
    done = yard.run(*words)
    assert done.returncode == 2, done
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1 or done.stderr.startswith("Usage: ")
    assert {name for name in files(tmp_path) if not name.startswith(("store/moorage", "full/moorage"))} == {
        name for name in before if not name.startswith(("store/moorage", "full/moorage"))
    }

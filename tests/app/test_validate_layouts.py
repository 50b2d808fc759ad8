"""`moorage validate` on OCI image layouts, whole, sparse and damaged; nothing in them is believed."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from content import LAYER_TYPE
from layouts import Layout, manifest_in
from moorage import (
    MANIFEST_LIMIT,
    OCI_MANIFEST,
    DeleteTag,
    ListTags,
    ManifestUnknown,
    PullBlob,
    PullManifest,
    RegistryError,
    Tag,
)
from moorage_app.image_layout import open_layout
from validating import ABSENT, APP, Bench, sentence, three_images


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def layout(bench: Bench) -> Layout:
    return three_images(bench.folder / "My-Layout")


def test_a_layout_is_judged_with_all_that_it_lists(bench: Bench, layout: Layout) -> None:
    bench.configure(refuse="v1")
    document = bench.json(layout.folder, code=1)
    assert [(judged.repository, judged.reference == judged.digest) for judged in document.results] == [
        ("my-layout", False),
        *[("my-layout", True)] * 4,
    ]
    assert [judged.accepted for judged in document.results] == [False, True, True, True, True]
    assert len({judged.digest for judged in document.results}) == 5
    assert bench.run(layout.folder, "--as", "team/app:v2").returncode == 0


def test_a_tar_of_a_layout_is_judged_alike(bench: Bench, layout: Layout, tmp_path: Path) -> None:
    bench.configure(warn="old")
    folder = bench.json(layout.folder, "--as", "team/app", code=0)
    names = ("index.json", "oci-layout", "blobs")
    for name, archived in (("a.tar", (".",)), ("b.tar", names)):
        tar = bench.json(layout.archive(tmp_path / name, archived), "--as", "team/app", code=0)
        assert [(each.digest, each.findings) for each in tar.results] == [
            (each.digest, each.findings) for each in folder.results
        ]


def test_what_a_layout_lacks_is_missing(bench: Bench, layout: Layout) -> None:
    (bench.folder / "root").mkdir()
    lost = layout.blob(b"lost")
    layout.name(layout.image(lost), "v2")
    layout.remove(lost)
    (judged,) = [each for each in bench.json(layout.folder, code=1).results if not each.accepted]
    assert [each.says for each in judged.findings if each.refuses] == [f"{lost['digest']} ({LAYER_TYPE}) is missing"]
    bench.configure(spare=True)
    assert bench.run(layout.folder).returncode == 0


def test_a_sparse_layout_is_judged_without_what_is_not_there(bench: Bench) -> None:
    layout = Layout(bench.folder / "sparse")
    child = layout.image()
    layout.name(layout.index(layout.image(note="here"), child), "v1")
    layout.remove(child)
    bench.configure(spare=True)
    assert len(bench.json(layout.folder, code=0).results) == 2


def test_a_rule_sees_a_layout_as_it_would_see_a_repository(bench: Bench) -> None:
    layout = Layout(bench.folder / "layout")
    subject = layout.name(layout.image(), "v1")
    layout.name(layout.image(subject={**subject}, note="signature"))
    bench.configure(look=True)
    first, second = bench.json(layout.folder, code=0).results
    assert [each.says for each in first.findings if each.rule == "house"] == ["} 1 True 1"]
    assert [each.says for each in second.findings if each.rule == "house"] == ["} 1 False 0"]


def test_a_layout_needs_no_store_and_makes_none(bench: Bench, layout: Layout) -> None:
    before = bench.files()
    assert bench.run(layout.folder).returncode == 0
    assert bench.files() == before
    assert not bench.root.exists()


def test_without_a_configuration_a_layout_is_judged_by_the_registry_alone(
    bench: Bench, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = bench.folder / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert bench.run(layout.folder, environment={}).returncode == 0
    assert not list(empty.iterdir())


def test_the_configuration_that_the_environment_names_is_taken(bench: Bench, layout: Layout) -> None:
    bench.configure(refuse="v1")
    done = bench.run(layout.folder, environment={"REGISTRY_CONFIGURATION_PATH": str(bench.file)})
    assert (done.returncode, "v1 may not be" in done.stdout) == (1, True)


def damaged_blob(layout: Layout) -> str:
    layer = layout.blob(b"to be damaged")
    layout.name(layout.image(layer), "v2")
    layout.path(str(layer["digest"])).write_bytes(b"to be Damaged")
    return "is damaged: its content has another digest"


def damaged_manifest(layout: Layout) -> str:
    image = layout.name(layout.image(note="x"), "v2")
    layout.path(str(image["digest"])).write_bytes(manifest_in(layout, image) + b" ")
    return "is damaged: its content has another digest"


def missing_manifest(layout: Layout) -> str:
    image = layout.name(layout.image(note="x"), "v2")
    layout.remove(image)
    return "which is not there"


def no_manifest(layout: Layout) -> str:
    layout.name(layout.blob(b"hello", OCI_MANIFEST), "v2")
    return "not a manifest"


def large_manifest(layout: Layout) -> str:
    layout.name(layout.blob(b" " * (MANIFEST_LIMIT + 1), OCI_MANIFEST), "v2")
    return f"More than {MANIFEST_LIMIT} bytes"


def pipe(layout: Layout) -> str:
    image = layout.name(layout.image(note="x"), "v2")
    layout.remove(image)
    os.mkfifo(layout.path(str(image["digest"])))
    return "Not a regular file"


def outside(layout: Layout) -> str:
    layout.name({"mediaType": OCI_MANIFEST, "digest": "sha256:../../../../etc/passwd", "size": 1})
    return "is not a digest"


def other_outside(layout: Layout) -> str:
    layout.name({"mediaType": OCI_MANIFEST, "digest": "..:..", "size": 1})
    return "is not a digest"


def link_outside(layout: Layout) -> str:
    secret = layout.folder.parent / "secret"
    secret.write_text("secret")
    image = layout.name(layout.image(note="x"), "v2")
    layout.remove(image)
    layout.path(str(image["digest"])).symlink_to(secret)
    return "is damaged"


def empty_index(layout: Layout) -> str:
    (layout.folder / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    return "names no manifest"


def broken_index(layout: Layout) -> str:
    (layout.folder / "index.json").write_bytes(b"\0\xff")
    return "index.json: not a manifest"


def no_index(layout: Layout) -> str:
    (layout.folder / "index.json").unlink()
    return "there is no index.json in it"


def no_marker(layout: Layout) -> str:
    (layout.folder / "oci-layout").unlink()
    return "there is no oci-layout in it"


def broken_marker(layout: Layout) -> str:
    (layout.folder / "oci-layout").write_text("[]")
    return "oci-layout"


def other_version(layout: Layout) -> str:
    (layout.folder / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    return "of version '2.0.0'"


@pytest.mark.parametrize(
    "spoil",
    [
        damaged_blob,
        damaged_manifest,
        missing_manifest,
        no_manifest,
        large_manifest,
        pipe,
        outside,
        other_outside,
        link_outside,
        empty_index,
        broken_index,
        no_index,
        no_marker,
        broken_marker,
        other_version,
    ],
)
def test_a_layout_that_is_damaged_is_one_sentence(
    bench: Bench, layout: Layout, spoil: Callable[[Layout], str], tmp_path: Path
) -> None:
    expected = spoil(layout)
    said = sentence(bench.run(layout.folder))
    assert expected in said
    assert "secret" not in said
    if spoil not in {pipe, link_outside}:
        assert expected in sentence(bench.run(layout.archive(tmp_path / "layout.tar")))


def test_a_layout_with_many_manifests_takes_no_single_tag(bench: Bench, layout: Layout) -> None:
    layout.name(layout.image(note="second"))
    assert "index.json has 2" in sentence(bench.run(layout.folder, "--as", "team/app:v1"))
    assert bench.run(layout.folder, "--as", "team/app").returncode == 0


TAGS = (("v1", "v1"), ("docker.io/library/app:v1", "v1"), ("not a tag", None), ("", None))


@pytest.mark.parametrize(("name", "tag"), TAGS)
def test_the_tag_of_a_layout_is_what_its_annotation_gives(bench: Bench, name: str, tag: str | None) -> None:
    layout = Layout(bench.folder / "layout")
    layout.name(layout.image(), name)
    (judged,) = bench.json(layout.folder, code=0).results
    assert judged.reference == (tag or judged.digest)


def test_a_tar_with_links_and_no_end_is_read_no_further(bench: Bench, layout: Layout, tmp_path: Path) -> None:
    tar = tmp_path / "odd.tar"
    with tarfile.open(tar, "w") as archive:
        for name in ("oci-layout", "index.json"):
            link = tarfile.TarInfo(name)
            link.type = tarfile.SYMTYPE
            link.linkname = name
            archive.addfile(link)
    assert "there is no oci-layout in it" in sentence(bench.run(tar))
    whole = layout.archive(tmp_path / "whole.tar").read_bytes()
    tar.write_bytes(whole[: len(whole) // 3])
    assert sentence(bench.run(tar))


async def test_a_layout_answers_as_a_registry_does(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    for n in range(5):
        layout.name(layout.image(note=str(n)), f"v{n}")
    async with open_layout(layout.folder) as opened:
        page = await opened(ListTags(repository=APP, limit=2))
        assert (page.tags, page.more) == (("v0", "v1"), True)
        page = await opened(ListTags(repository=APP, after="v2"))
        assert (page.tags, page.more) == (("v3", "v4"), False)
        with pytest.raises(ManifestUnknown):
            await opened(PullManifest(repository=APP, reference=Tag("v9")))
        with pytest.raises(RegistryError):
            await opened(PullBlob(repository=APP, digest=ABSENT))
        with pytest.raises(RegistryError):
            await opened(DeleteTag(repository=APP, tag=Tag("v1")))

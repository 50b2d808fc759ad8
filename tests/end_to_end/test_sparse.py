"""A signed image for several platforms is mirrored, whole and in part, under each setting; its digest never changes."""

import json
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from images import content_of, manifest_of
from pushing import OCI_INDEX, OCI_MANIFEST, Json, Repository, digest_of, references
from servers import Server, configured, http, run_tool
from signed import SignedImage

MIRRORED = ("linux/amd64", "linux/arm64/v8")
ABSENT = ("linux/s390x", "windows/amd64")

SETTINGS: dict[str, Json] = {
    "none": {"validation": {"manifests": {"indexes": {"platforms": "none"}}}},
    "list": {
        "validation": {
            "manifests": {
                "indexes": {"platforms": "list", "platformlist": [{"os": "linux", "architecture": "amd64"}, "linux/arm64"]}
            }
        }
    },
    "require": {
        "validation": {"manifests": {"indexes": {"platforms": "none"}}},
        "plugins": {"platforms": {"require": ["linux/amd64", "linux/arm64"], "untagged": False, "known": True}},
    },
    "unset": {},
    "all": {"validation": {"manifests": {"indexes": {"platforms": "all"}}}},
    "list-of-absent": {
        "validation": {"manifests": {"indexes": {"platforms": "list", "platformlist": ["linux/amd64", "windows/*"]}}}
    },
}  # fmt: skip
TAKE_IT = ("none", "list", "require")


@pytest.fixture(scope="module")
def plain() -> SignedImage:
    """Without an index in the index, which skopeo does not copy."""
    return SignedImage(inner=False)


@pytest.fixture(scope="module")
def nested() -> SignedImage:
    return SignedImage(inner=True)


@pytest.fixture(scope="module")
def layout(plain: SignedImage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain.write_layout(tmp_path_factory.mktemp("sparse") / "layout")


@contextmanager
def serving(setting: str, folder: Path) -> Generator[tuple[Server, Repository]]:
    # One worker: each remembers by itself what it served.
    sections = {name: SETTINGS[setting].get(name, {}) for name in ("validation", "plugins")}
    root = folder / "root"
    with (
        configured(root, workers=1, validation=sections["validation"], plugins=sections["plugins"]) as server,
        http(server.url) as client,
    ):
        yield server, Repository(client, "mirror/signed")


def skopeo(*arguments: str) -> str:
    return run_tool("skopeo", "--insecure-policy", *arguments)


def push_part(repository: Repository, image: SignedImage, *names: str) -> None:
    """Push some of what the index lists, each with all that it is made of."""
    for name in names:
        manifest = image.children[name]
        is_index = name == "inner index"
        if is_index:
            push_manifest(repository, image, image.inner_image)
        push_manifest(repository, image, manifest, OCI_INDEX if is_index else OCI_MANIFEST)


def push_manifest(
    repository: Repository, image: SignedImage, manifest: bytes, media_type: str = OCI_MANIFEST, tag: str | None = None
) -> None:
    for digest in references(manifest) if media_type == OCI_MANIFEST else ():
        repository.push(image.blobs[digest])
    answer = repository.put(tag or digest_of(manifest), manifest, media_type)
    assert answer.status_code == 201, answer.text


def assert_signed(repository: Repository, image: SignedImage) -> None:
    """Check that the signature is there, and is one of the very bytes that the tag means."""
    index = repository.manifest("v1")
    assert index == image.index
    assert repository.manifest(digest_of(index)) == index
    signature = repository.pull_image(f"{digest_of(index).replace(':', '-')}.sig")
    payload = json.loads(repository.blob(references(signature)[1]))
    assert payload["critical"]["image"]["docker-manifest-digest"] == digest_of(index)


@pytest.mark.needs_tool("skopeo")
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_complete_copy_is_taken_under_every_setting(
    setting: str, plain: SignedImage, layout: Path, tmp_path: Path
) -> None:
    with serving(setting, tmp_path) as (server, repository):
        for tag in ("v1", plain.signature_tag):
            target = f"docker://{server.host}/{repository.name}:{tag}"
            skopeo("copy", "--all", "--dest-tls-verify=false", f"oci:{layout}:{tag}", target)
        assert_signed(repository, plain)
        for child in plain.children.values():
            assert repository.pull_image(digest_of(child)) == child
        out = tmp_path / "out"
        source = f"docker://{server.host}/{repository.name}:v1"
        skopeo("copy", "--all", "--src-tls-verify=false", source, f"oci:{out}:v1")
        assert manifest_of(out) == plain.index


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_complete_copy_with_an_index_in_it_is_taken_under_every_setting(
    setting: str, nested: SignedImage, tmp_path: Path
) -> None:
    with serving(setting, tmp_path) as (_, repository):
        push_part(repository, nested, *nested.children)
        push_manifest(repository, nested, nested.index, OCI_INDEX, "v1")
        push_manifest(repository, nested, nested.signature, tag=nested.signature_tag)
        assert_signed(repository, nested)
        assert repository.manifest(digest_of(nested.inner_image)) == nested.inner_image


@pytest.mark.needs_tool("skopeo")
@pytest.mark.parametrize("setting", TAKE_IT)
def test_an_index_with_two_of_four_platforms_is_served_as_it_is(
    setting: str, nested: SignedImage, tmp_path: Path
) -> None:
    with serving(setting, tmp_path) as (server, repository):
        push_part(repository, nested, *MIRRORED)
        push_manifest(repository, nested, nested.index, OCI_INDEX, "v1")
        push_manifest(repository, nested, nested.signature, tag=nested.signature_tag)
        assert_signed(repository, nested)
        for name in MIRRORED:
            assert repository.pull_image(digest_of(nested.children[name])) == nested.children[name]
        for name, platform in (*((each, each) for each in ABSENT), ("attestation of linux/amd64", "unknown/unknown"), ("inner index", None)):  # fmt: skip
            assert_honest(repository, nested, name, platform)
        assert_present_platform_is_copied(server, repository, nested, tmp_path)
        with pytest.raises(AssertionError, match="manifest unknown"):
            copy_platform(server, repository, "s390x", tmp_path / "absent")


def assert_honest(repository: Repository, image: SignedImage, name: str, platform: str | None) -> None:
    answer = repository.http.get(repository.manifest_url(digest_of(image.children[name])))
    assert answer.status_code == 404
    errors = cast("list[Json]", answer.json()["errors"])
    assert [error["code"] for error in errors] == ["MANIFEST_UNKNOWN"]
    assert errors[0]["detail"] == {
        "name": repository.name,
        "digest": digest_of(image.children[name]),
        "index": digest_of(image.index),
        "sparse": True,
        "platform": platform,
        "present": list(MIRRORED),
    }


def copy_platform(server: Server, repository: Repository, architecture: str, out: Path) -> None:
    source = f"docker://{server.host}/{repository.name}:v1"
    flags = ("--override-os", "linux", "--override-arch", architecture)
    skopeo(*flags, "copy", "--src-tls-verify=false", source, f"oci:{out}:v1")


def assert_present_platform_is_copied(
    server: Server, repository: Repository, image: SignedImage, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    copy_platform(server, repository, "arm64", out)
    assert manifest_of(out) == image.children["linux/arm64/v8"]
    for digest in references(manifest_of(out)):
        assert content_of(out, digest) == image.blobs[digest]


@pytest.mark.parametrize(
    ("setting", "required"),
    [
        ("unset", [*ABSENT, "attestation of linux/amd64", "attestation of linux/arm64/v8", "inner index"]),
        ("all", [*ABSENT, "attestation of linux/amd64", "attestation of linux/arm64/v8", "inner index"]),
        ("list-of-absent", ["windows/amd64"]),
    ],
)
def test_an_index_that_lacks_what_is_required_is_refused_and_told_what(
    setting: str, required: Sequence[str], nested: SignedImage, tmp_path: Path
) -> None:
    listed = {str(each["digest"]): each for each in json.loads(nested.index)["manifests"]}
    with serving(setting, tmp_path) as (_, repository):
        push_part(repository, nested, *MIRRORED)
        for _ in range(2):
            answer = repository.put("v1", nested.index, OCI_INDEX)
            assert answer.status_code == 400
            errors = cast("list[Json]", answer.json()["errors"])
            assert {str(error["code"]) for error in errors} == {"MANIFEST_BLOB_UNKNOWN"}
            told = [cast("Json", error["detail"]) for error in errors]
            assert [each["digest"] for each in told] == [digest_of(nested.children[name]) for name in required]
            assert [each.get("platform") for each in told] == [
                listed[str(each["digest"])].get("platform") for each in told
            ]
            assert repository.http.get(repository.manifest_url("v1")).status_code == 404
        push_part(repository, nested, *required)
        push_manifest(repository, nested, nested.index, OCI_INDEX, "v1")


def test_what_must_be_listed_present_and_complete_is_asked_for_by_two_settings(
    nested: SignedImage, tmp_path: Path
) -> None:
    with serving("require", tmp_path) as (_, repository):
        push_part(repository, nested, "linux/amd64")
        answer = repository.put("v1", nested.index, OCI_INDEX)
        assert answer.status_code == 403
        detail = answer.json()["errors"][0]["detail"]
        assert detail["rule"] == "platforms"
        assert [each["digest"] for each in detail["missing"]] == [digest_of(nested.children["linux/arm64/v8"])]
        # Complete: an image that lacks a layer is not taken in the first place.
        incomplete = nested.children["linux/arm64/v8"]
        repository.push(nested.blobs[references(incomplete)[0]])
        assert repository.put(digest_of(incomplete), incomplete).status_code == 400
        push_part(repository, nested, "linux/arm64/v8")
        push_manifest(repository, nested, nested.index, OCI_INDEX, "v1")


DISTRIBUTIONS_OWN = """
version: 0.1
storage: {inmemory: }
http: {addr: 127.0.0.1:0}
validation:
  enabled: true
  manifests:
    urls:
      allow: ["^https?://([^/]+\\\\.)*example\\\\.com/"]
      deny: ["^https?://www\\\\.example\\\\.com/"]
    indexes:
      platforms: List
      platformlist:
        - architecture: amd64
          os: linux
"""


def check(file: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moorage_app", "config", "check", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def test_a_configuration_of_distribution_has_its_effect_and_wrong_ones_end_with_2(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(DISTRIBUTIONS_OWN)
    done = check(file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr
    for variable, value, said in (
        ("INDEXES_PLATFORMS", "some", '"all", "list" or "none"'),
        ("INDEXES_PLATFORMLIST_0", "linux", "os/architecture or os/architecture/variant"),
        ("INDEXES_PLATFORMLIST_0_OS", "'li nux'", "'li nux' is no part of a platform"),
        ("URLS_ALLOW_0", "(", "a regular expression in RE2's syntax"),
        ("URLS_ALLOW", "'['", "a list"),
    ):
        name = f"REGISTRY_VALIDATION_MANIFESTS_{variable}"
        done = check(file, **{name: value})
        assert done.returncode == 2, done.stdout
        lines = (done.stdout + done.stderr).strip().splitlines()
        assert len(lines) == 1
        assert "validation.manifests." in lines[0]
        assert said in lines[0]

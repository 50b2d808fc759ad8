"""Tags that are written only for what was signed: by referrers, by cosign's tags, and not by anything else."""

import json
from collections.abc import Mapping

import pytest

from asgi_client import client_of
from configurations import configured_registry, what_is_wrong
from content import OTHER, REPOSITORY, descriptor, image, index, pull, push_blob, push_image, push_manifest, tags
from moorage import OCI_INDEX, OCI_MANIFEST, DeleteManifest, Digest, Handler, Refused, RepositoryName, Tag

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
COSIGN = "application/vnd.dev.cosign.artifact.sig.v1+json"
NOTATION = "application/vnd.cncf.notary.signature"
SBOM = "application/spdx+json"
Settings = Mapping[str, object]


async def tagged(handler: Handler, digest: Digest, *names: str, repository: RepositoryName = REPOSITORY) -> None:
    """Give a manifest that is there further tags."""
    data = (await pull(handler, digest, repository)).data
    await push_manifest(handler, data, tags=names, repository=repository)


@pytest.mark.parametrize(
    ("settings", "artifact_type", "enough"),
    [
        ({}, BUNDLE, True),
        ({}, COSIGN, True),
        ({}, NOTATION, True),
        ({}, "application/vnd.dev.sigstore.bundle.v0.4+json", True),
        ({}, SBOM, False),
        ({}, NOTATION + ".not", False),
        ({"types": [SBOM]}, SBOM, True),
        ({"types": ["application/*"]}, SBOM, True),
        ({"types": [NOTATION]}, BUNDLE, False),
        ({"types": []}, BUNDLE, False),
    ],
)
async def test_a_referrer_of_the_right_type_is_a_signature(
    settings: Settings, artifact_type: str, enough: bool
) -> None:
    async with configured_registry({"signed": settings}) as handler:
        digest = await push_image(handler)
        with pytest.raises(Refused):
            await tagged(handler, digest, "v1")
        for other in ("a/b", "a/c"):
            await push_image(handler, subject=digest, salt="referrer", artifactType=other)
        signature = await push_image(handler, subject=digest, salt="signature", artifactType=artifact_type)
        if not enough:
            with pytest.raises(Refused):
                await tagged(handler, digest, "v1")
            return
        await tagged(handler, digest, "v1")
        # The signature of one is none of another, and none in another repository.
        for repository, salt in ((REPOSITORY, "unsigned"), (OTHER, "")):
            with pytest.raises(Refused):
                await push_image(handler, "v2", salt=salt, repository=repository)
        await handler(DeleteManifest(repository=REPOSITORY, digest=signature))
        with pytest.raises(Refused):
            await tagged(handler, digest, "v3")
        assert await tags(handler) == ["v1"]


@pytest.mark.parametrize("settings", [{}, {"cosign_tags": False}])
async def test_cosigns_tag_of_a_signature_counts_if_that_is_wanted(settings: Settings) -> None:
    async with configured_registry({"signed": settings}) as handler:
        digest = await push_image(handler)
        for suffix in (".att", ".sbom", ""):
            await push_image(handler, f"sha256-{digest.encoded}{suffix}", salt="beside")
        with pytest.raises(Refused):
            await tagged(handler, digest, "v1")
        await push_image(handler, f"sha256-{digest.encoded}.sig", salt="signature")
        if settings:
            with pytest.raises(Refused):
                await tagged(handler, digest, "v1")
        else:
            await tagged(handler, digest, "v1")


async def test_what_an_old_client_names_in_the_referrers_tag_counts() -> None:
    async with configured_registry({"signed": {}}) as handler:
        digest = await push_image(handler)
        signature = await push_image(handler, subject=digest, salt="signature", artifactType=NOTATION)
        listed = index(signature)
        await push_manifest(handler, listed, Tag.fallback(digest), media_type=OCI_INDEX)
        await tagged(handler, digest, "v1")


async def test_an_index_wants_a_signature_of_its_own() -> None:
    async with configured_registry({"signed": {}}) as handler:
        child = await push_image(handler)
        await push_image(handler, subject=child, salt="signature", artifactType=NOTATION)
        data = index(child)
        digest = (await push_manifest(handler, data, media_type=OCI_INDEX)).descriptor.digest
        with pytest.raises(Refused):
            await push_manifest(handler, data, "v1", media_type=OCI_INDEX)
        await push_image(handler, subject=digest, salt="signature", artifactType=NOTATION)
        await push_manifest(handler, data, "v1", media_type=OCI_INDEX)


async def test_a_manifest_that_calls_itself_a_signature_is_tagged_like_any_other() -> None:
    async with configured_registry({"signed": {}}) as handler:
        digest = await push_image(handler)
        pretends = await push_image(handler, subject=digest, artifactType=NOTATION)
        with pytest.raises(Refused):
            await tagged(handler, pretends, "v1")


async def test_the_tags_of_a_push_that_do_not_match_need_no_signature() -> None:
    async with configured_registry({"signed": {"tags": ["v*"]}}) as handler:
        digest = await push_image(handler, "latest")
        await tagged(handler, digest, "dev", "latest")
        for names in (["v1"], ["dev", "v1"], ["dev", "v2", "v1"]):
            with pytest.raises(Refused) as refused:
                await tagged(handler, digest, *names)
            wanted = [name for name in names if name.startswith("v")]
            assert refused.value.detail == {"rule": "signed", "tags": wanted, "digest": str(digest)}
            assert refused.value.message == (
                f"the tag {wanted[0]} is for what is signed, and {digest} has no signature in this repository; "
                "push it by digest, sign it, then tag it"
            )
        assert await tags(handler) == ["dev", "latest"]


async def test_a_signature_is_found_behind_many_other_referrers() -> None:
    async with configured_registry({"signed": {"types": [NOTATION]}}) as handler:
        digest = await push_image(handler)
        config = await push_blob(handler, b"{}")
        # More than fit into one page: a page is bounded in bytes, and each of these has annotations.
        for number in range(5):
            other = image(config, subject=digest, artifactType=SBOM, annotations={"n": f"{number}" * 1_000_000})
            await push_manifest(handler, other)
        with pytest.raises(Refused):
            await tagged(handler, digest, "v1")
        # The last of all in order of digest.
        number = 0
        while not Digest.of(image(config, subject=digest, artifactType=NOTATION, n=number)).encoded.startswith("ff"):
            number += 1
        await push_manifest(handler, image(config, subject=digest, artifactType=NOTATION, n=number))
        await tagged(handler, digest, "v1")


async def test_over_http_one_pushes_by_digest_then_signs_then_tags() -> None:
    async with configured_registry({"signed": {"tags": ["v*"]}}) as handler:
        client = client_of(handler)
        config = await client.push_blob("a", b"{}")
        data = image(config)
        digest = Digest.of(data)
        signed = json.loads(image(config, subject=digest, artifactType=BUNDLE))
        signed["subject"] = descriptor(digest, media_type=OCI_MANIFEST, size=len(data))
        signature = json.dumps(signed).encode()
        headers = [("content-type", OCI_MANIFEST)]
        for reference, body, status in (
            ("v1", data, 403),
            (f"{digest}?tag=v1", data, 403),
            (str(digest), data, 201),
            ("v1", data, 403),
            (str(Digest.of(signature)), signature, 201),
            ("v1", data, 201),
            (f"{digest}?tag=v2&tag=v3", data, 201),
        ):
            answer = await client.ask("PUT", f"/v2/a/manifests/{reference}", headers, body)
            assert answer.status == status, (reference, answer.body)


async def test_in_mode_warn_a_tag_is_written_with_a_warning() -> None:
    async with configured_registry({"signed": {"mode": "warn"}}) as handler:
        data = image(await push_blob(handler, b"{}"))
        warnings = (await push_manifest(handler, data, "v1")).warnings
        assert [warning.split(",")[0] for warning in warnings] == ["signed: the tag v1 is for what is signed"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tag": ["v*"]}, 'plugins.signed.tag: unknown key; did you mean "tags"?'),
        ({"tags": ["v{1}"]}, 'plugins.signed.tags[0]: found "v{1}"; allowed is a pattern'),
        ({"types": NOTATION}, "plugins.signed.types: found text; allowed is a list"),
        ({"cosign_tags": "maybe"}, 'plugins.signed.cosign_tags: found "maybe"; allowed is true or false'),
    ],
)
def test_what_is_wrong_in_the_settings_is_one_sentence(settings: Settings, sentence: str) -> None:
    assert sentence in what_is_wrong({"signed": settings})

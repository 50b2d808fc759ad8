"""Annotations and labels that must be there: as settings, and as pushes."""

from collections.abc import Mapping

import pytest

from configurations import configured_registry, installed, what_is_wrong
from content import CONFIG_TYPE, image, index, push_blob, push_manifest
from moorage import OCI_INDEX, Digest, Handler, Refused, hookimpl

SOURCE = "org.opencontainers.image.source"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
Annotations = Mapping[str, str]


async def push(
    handler: Handler, annotations: Annotations, *, config: bytes = b"{}", artifact_type: str | None = None
) -> tuple[str, ...]:
    manifest = image(await push_blob(handler, config), annotations=annotations, artifactType=artifact_type)
    return (await push_manifest(handler, manifest, "v1")).warnings


async def refusal(handler: Handler, annotations: Annotations, *, config: bytes = b"{}") -> Refused:
    with pytest.raises(Refused) as refused:
        await push(handler, annotations, config=config)
    return refused.value


async def test_a_manifest_has_its_annotations_with_values_that_match_as_a_whole() -> None:
    required = {SOURCE: "https://git\\.example/.+", "team": None}
    async with configured_registry({"required_annotations": {"manifests": required}}) as handler:
        for good in (
            {SOURCE: "https://git.example/a", "team": ""},
            {SOURCE: "https://git.example/a/b", "team": "x", "more": "y"},
        ):
            assert await push(handler, good) == ()
        for bad, keys, sentence in (
            ({}, [SOURCE, "team"], f"the annotation {SOURCE} is missing; the annotation team is missing"),
            ({SOURCE: "https://git.example/a"}, ["team"], "the annotation team is missing"),
            (
                {SOURCE: "see https://git.example/a", "team": "x"},
                [SOURCE],
                f"the annotation {SOURCE} is 'see https://git.example/a' and must match https://git\\.example/.+",
            ),
            ({SOURCE.upper(): "https://git.example/a", "team": "x"}, [SOURCE], f"the annotation {SOURCE} is missing"),
        ):
            refused = await refusal(handler, bad)
            assert refused.message == sentence
            assert refused.detail == {"rule": "required_annotations", "keys": keys}
            assert refused.status == 403


async def test_an_index_is_judged_by_its_own_annotations_and_its_children_by_theirs() -> None:
    settings = {"manifests": {SOURCE: None}, "indexes": {"release": "[0-9.]+"}}
    async with configured_registry({"required_annotations": settings}) as handler:
        child = image(await push_blob(handler, b"{}"), annotations={SOURCE: "x"})
        digest = (await push_manifest(handler, child)).descriptor.digest
        good = index(digest, annotations={"release": "1.2"})
        await push_manifest(handler, good, "v1", media_type=OCI_INDEX)
        with pytest.raises(Refused, match="the annotation release is 'x' and must match"):
            await push_manifest(handler, index(digest, annotations={"release": "x"}), media_type=OCI_INDEX)
        with pytest.raises(Refused, match=f"{SOURCE} is missing"):
            await push_manifest(handler, image(await push_blob(handler, b"{}"), annotations={"release": "1"}))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (b'{"config": {"Labels": {"team": "a"}}}', None),
        (b'{"config": {"Labels": {"team": "b"}}}', "the label team is 'b' and must match a"),
        (b'{"config": {"Labels": {}}}', "the label team is missing"),
        (b'{"config": {"Labels": null}}', "the label team is missing"),
        (b'{"config": {"labels": {"team": "a"}}}', "the label team is missing"),
        (b'{"config": null, "Labels": {"team": "a"}}', "the label team is missing"),
        (b"{}", "the label team is missing"),
        (b'{"config": {"Labels": {"team": 1}}}', "is no image's config: Expected `str`, got `int`"),
        (b"[]", "is no image's config: "),
        (b"not JSON", "is no image's config: "),
        (b"\xff", "is no image's config: "),
        (b'{"x":' + b"[" * 100_000, "is no image's config: "),
        (b" " * (4 << 20) + b"{}", "has more than 4194304 bytes, so its labels are not judged"),
    ],
)
async def test_labels_stand_in_the_config(config: bytes, sentence: str | None) -> None:
    async with configured_registry({"required_annotations": {"labels": {"team": "a"}}}) as handler:
        if sentence is None:
            assert await push(handler, {}, config=config) == ()
        else:
            assert sentence in (await refusal(handler, {}, config=config)).message


@pytest.mark.parametrize(
    ("config_type", "judged"),
    [
        ("application/vnd.oci.image.config.v1+json", True),
        (DOCKER_CONFIG, True),
        ("application/vnd.oci.empty.v1+json", False),
    ],
)
async def test_images_alone_have_labels(config_type: str, judged: bool) -> None:
    async with configured_registry({"required_annotations": {"labels": {"team": None}}}) as handler:
        config = await push_blob(handler, b"{}")
        manifest = image(config).replace(CONFIG_TYPE.encode(), config_type.encode())
        if judged:
            with pytest.raises(Refused):
                await push_manifest(handler, manifest, "v1")
        else:
            await push_manifest(handler, manifest, "v1")


async def test_a_rule_may_be_for_some_artifact_types() -> None:
    settings = {"manifests": {SOURCE: None}, "artifacts": ["application/vnd.oci.image.config.*"]}
    async with configured_registry({"required_annotations": settings}) as handler:
        assert await push(handler, {}, artifact_type="application/vnd.cncf.notary.signature") == ()
        await refusal(handler, {})


async def test_in_mode_warn_what_is_missing_is_a_warning() -> None:
    settings = {"manifests": {SOURCE: None}, "labels": {"team": None}, "mode": "warn"}
    async with configured_registry({"required_annotations": settings}) as handler:
        assert await push(handler, {}) == (
            f"required_annotations: the annotation {SOURCE} is missing; the label team is missing",
        )


async def test_a_pattern_that_would_stop_others_takes_linear_time() -> None:
    settings = {"manifests": {"a": "(a+)+$", "b": "(.*)*x"}}
    async with configured_registry({"required_annotations": settings}) as handler:
        long = "a" * 500_000
        refused = await refusal(handler, {"a": long + "!", "b": long})
        assert refused.message.startswith("the annotation a is 'aaaa")
        assert len(refused.message) < 500
        assert await push(handler, {"a": long, "b": long + "x"}) == ()


async def test_the_labels_of_a_config_that_need_not_be_here_are_missing() -> None:
    class Spare:
        @hookimpl
        def requires_reference(self) -> bool:
            return False

    plugins = installed()
    plugins.register(Spare(), "spare")
    rules = {"required_annotations": {"labels": {"team": None}}}
    async with configured_registry(rules, plugins=plugins) as handler:
        with pytest.raises(Refused, match="is not here, so its labels cannot be judged"):
            await push_manifest(handler, image(Digest.of(b"far away")), "v1")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"annotations": {}}, "plugins.required_annotations.annotations: unknown key; "),
        ({"manifests": ["a"]}, "plugins.required_annotations.manifests: found a list; allowed is a mapping"),
        ({"manifests": {"a": "("}}, 'plugins.required_annotations.manifests.a: found "("; allowed is a regular expr'),
        ({"labels": {"a": "(?=b)"}}, 'plugins.required_annotations.labels.a: found "(?=b)"; allowed is a regular'),
        ({"labels": {"a": "(b)\\1"}}, "plugins.required_annotations.labels.a: found"),
        ({"indexes": {"a": ["x"]}}, "plugins.required_annotations.indexes.a: found a list; allowed is a regular"),
        ({"rules": [{"labels": {"a": "["}}]}, "plugins.required_annotations.rules[0].labels.a: found"),
        ({"artifacts": ["{a}"]}, "plugins.required_annotations.artifacts[0]: found"),
    ],
)
def test_what_is_wrong_in_the_settings_is_one_sentence(settings: Mapping[str, object], sentence: str) -> None:
    assert sentence in what_is_wrong({"required_annotations": settings})

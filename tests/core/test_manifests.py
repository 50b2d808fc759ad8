import json
from typing import cast

import pytest
from hypothesis import given, strategies as st

from content import CONFIG_TYPE, LAYER_TYPE, descriptor, image, index
from moorage import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    REFERENCE_LIMIT,
    Digest,
    Manifest,
    ManifestInvalid,
    encode_json,
    parse_descriptor,
    parse_pushed,
    parse_stored,
)

CONFIG = Digest.of(b"config")
LAYER = Digest.of(b"layer")
ARTIFACT = "application/vnd.example.thing+json"


def pushed(media_type: str, document: object) -> Manifest:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_pushed(media_type, data, Digest.of(data))


def stored(document: object) -> Manifest:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_stored(data, Digest.of(data))


def of_image(**more: object) -> dict[str, object]:
    return cast("dict[str, object]", json.loads(image(CONFIG, LAYER))) | more


def of_index(**more: object) -> dict[str, object]:
    return cast("dict[str, object]", json.loads(index(CONFIG, LAYER))) | more


def without(document: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in document.items() if key not in keys}


# ---- types


@pytest.mark.parametrize(
    ("media_type", "document"),
    [
        (OCI_MANIFEST, of_image()),
        (OCI_MANIFEST, without(of_image(), "mediaType")),
        (OCI_MANIFEST, of_image(layers=[])),
        (OCI_MANIFEST, of_image(layers=None)),
        (DOCKER_MANIFEST, of_image(mediaType=DOCKER_MANIFEST)),
        (OCI_INDEX, of_index()),
        (OCI_INDEX, without(of_index(), "mediaType")),
        (OCI_INDEX, of_index(manifests=[])),
        (OCI_INDEX, of_index(manifests=None)),
        (OCI_INDEX, without(of_index(), "manifests")),
        (DOCKER_LIST, of_index(mediaType=DOCKER_LIST)),
        (ARTIFACT, {"mediaType": ARTIFACT}),
        (ARTIFACT, {"mediaType": ARTIFACT, "blobs": [descriptor(LAYER)], "unknown": {"a": [1, 2.5, None, True]}}),
        (OCI_MANIFEST, of_image(annotations={"a": "b", "A": "c"})),
        (OCI_MANIFEST, of_image(config=descriptor(CONFIG) | {"annotations": {"size": "1", "Size": "2"}})),
    ],
)
def test_a_manifest_of_its_type_is_taken_and_read_back_as_of_that_type(media_type: str, document: object) -> None:
    data = json.dumps(document).encode()
    manifest = pushed(media_type, data)
    assert manifest.data == data
    assert manifest.media_type == media_type
    assert manifest.descriptor.size == len(data)
    assert manifest.digest == Digest.of(data)
    assert stored(data) == manifest


@pytest.mark.parametrize(
    ("media_type", "document", "match"),
    [
        (OCI_INDEX, of_image(), "Content-Type"),
        (OCI_MANIFEST, of_index(), "Content-Type"),
        (OCI_MANIFEST, of_image(mediaType=DOCKER_MANIFEST), "Content-Type"),
        (DOCKER_MANIFEST, without(of_image(), "mediaType"), "Content-Type"),
        (DOCKER_LIST, without(of_index(), "mediaType"), "Content-Type"),
        (ARTIFACT, {}, "Content-Type"),
        (ARTIFACT, {"mediaType": ARTIFACT.upper()}, "Content-Type"),
        ("", {"mediaType": ""}, "Content-Type"),
        ("", of_index(mediaType=""), "Content-Type"),
        (OCI_MANIFEST, of_image(mediaType=""), "Content-Type"),
        (OCI_MANIFEST, of_image(schemaVersion=1), "schemaVersion"),
        (OCI_MANIFEST, without(of_image(), "schemaVersion"), "schemaVersion"),
        (OCI_INDEX, of_index(schemaVersion=3), "schemaVersion"),
        (OCI_MANIFEST, without(of_image(), "config"), "config"),
        (OCI_MANIFEST, of_image(config=None), "config"),
        (OCI_MANIFEST, of_image(manifests=[]), "manifests"),
        (OCI_INDEX, of_index(config=descriptor(CONFIG)), "config"),
        (OCI_INDEX, of_index(layers=[]), "layers"),
        (OCI_INDEX, without(of_index(), "manifests", "mediaType"), "manifests"),
        (OCI_INDEX, without(of_index(manifests=None), "mediaType"), "manifests"),
    ],
)
def test_a_manifest_that_is_not_of_the_type_it_is_pushed_as_is_refused(
    media_type: str, document: object, match: str
) -> None:
    with pytest.raises(ManifestInvalid, match=match):
        pushed(media_type, document)


WRONG_SHAPES: list[dict[str, object]] = [
    {"schemaVersion": "2"},
    {"schemaVersion": 2.0},
    {"mediaType": 1},
    {"artifactType": []},
    {"config": []},
    {"config": "x"},
    {"config": {}},
    {"layers": {}},
    {"layers": [[]]},
    {"layers": [None]},
    {"layers": [{"digest": str(LAYER), "size": 1}]},
    {"layers": [{"mediaType": LAYER_TYPE, "size": 1}]},
    {"layers": [{"mediaType": LAYER_TYPE, "digest": str(LAYER)}]},
    {"layers": [descriptor(LAYER, size=-1)]},
    {"layers": [descriptor(LAYER, size=1 << 63)]},
    {"layers": [descriptor(LAYER) | {"size": 1.5}]},
    {"layers": [descriptor(LAYER) | {"size": "1"}]},
    {"layers": [descriptor(LAYER) | {"size": True}]},
    {"layers": [descriptor(LAYER) | {"digest": "sha256:abc"}]},
    {"layers": [descriptor(LAYER) | {"digest": "../../etc/passwd"}]},
    {"layers": [descriptor(LAYER) | {"urls": "x"}]},
    {"layers": [descriptor(LAYER) | {"annotations": {"a": 1}}]},
    {"layers": [descriptor(LAYER) | {"platform": "linux"}]},
    {"subject": "x"},
    {"subject": {"mediaType": OCI_MANIFEST, "digest": "latest", "size": 1}},
    {"annotations": []},
    {"annotations": {"a": None}},
]


@pytest.mark.parametrize("change", WRONG_SHAPES)
def test_a_part_of_the_wrong_shape_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ManifestInvalid):
        pushed(OCI_MANIFEST, of_image(**change))


def test_the_largest_size_is_that_of_go() -> None:
    manifest = pushed(OCI_MANIFEST, of_image(layers=[descriptor(LAYER, size=(1 << 63) - 1)]))
    assert manifest.blobs[0].size == (1 << 63) - 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"{",
        b"{}x",
        b"{} {}",
        b"\xef\xbb\xbf{}",
        b"\xff",
        b'{"a": "\xff"}',
        b'{"\xff": 1}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 01}',
        b'{"a": "\\ud800"}',
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": ' + b"1" * 5000 + b"}",
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32"),
    ],
)
def test_what_is_no_plain_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        pushed(OCI_MANIFEST, data)
    with pytest.raises(ManifestInvalid):
        pushed(ARTIFACT, data.replace(b'{"', b'{"mediaType": "' + ARTIFACT.encode() + b'", "', 1))


@pytest.mark.parametrize("deep", [b"[" * 200_000, b'{"a":' * 200_000, b"[" * 200_000 + b"]" * 200_000])
def test_deep_nesting_is_refused_not_crashed_on(deep: bytes) -> None:
    data = image(CONFIG)[:-1] + b', "x": ' + deep + b"}"
    with pytest.raises(ManifestInvalid):
        pushed(OCI_MANIFEST, data)
    with pytest.raises(ManifestInvalid):
        stored(data)


def test_as_many_references_as_the_limit_are_taken_and_not_one_more() -> None:
    listed = [descriptor(Digest(f"sha256:{number:064x}")) for number in range(REFERENCE_LIMIT)]
    assert len(pushed(OCI_INDEX, of_index(manifests=listed)).manifests) == REFERENCE_LIMIT
    with pytest.raises(ManifestInvalid, match="references"):
        pushed(OCI_MANIFEST, of_image(layers=listed))


# ---- what can be read in two ways


def text(document: object, old: str, new: str) -> bytes:
    before = json.dumps(document)
    assert old in before
    return before.replace(old, new, 1).encode()


LISTED = descriptor(LAYER) | {"platform": {"architecture": "arm64", "os": "linux", "os.version": "1"}}


@pytest.mark.parametrize(
    "data",
    [
        # Twice the same key, at any depth, whether it is a known one or not.
        text(of_image(), '"schemaVersion": 2', '"schemaVersion": 2, "schemaVersion": 2'),
        text(of_image(), '"config":', '"config": null, "config":'),
        text(of_image(), '"size": 1', '"size": 1, "size": 1'),
        text(of_image(x={"y": [{"z": 1}]}), '"z": 1', '"z": 1, "z": 2'),
        text(of_image(annotations={"a": "b"}), '"a": "b"', '"a": "b", "a": "b"'),
        text(of_image(), '"schemaVersion": 2', '"schemaVersion": 2, "schema\\u0056ersion": 2'),
        # A known key in another case.
        text(of_image(), '"layers":', '"Layers": [], "layers":'),
        text(of_image(), '"layers":', '"LAYERS":'),
        text(of_image(), '"mediaType":', '"mediatype":'),
        text(of_image(), '"mediaType":', '"MediaType": "x", "mediaType":'),
        text(of_image(), '"schemaVersion": 2', '"schemaVersion": 2, "SchemaVersion": 1'),
        text(of_image(subject=descriptor(LAYER)), '"subject":', '"Subject":'),
        text(of_image(annotations={}), '"annotations":', '"Annotations":'),
        text(of_image(), '"schemaVersion": 2', '"schemaVersion": 2, "Manifests": []'),
        text(of_image(), '"schemaVersion": 2', '"schemaVersion": 2, "artifacttype": "x"'),
        # The same in a descriptor and in a platform.
        text(of_image(), '"digest":', '"Digest": "x", "digest":'),
        text(of_image(), '"size": 1', '"size": 1, "sizE": 2'),
        text(of_image(layers=[LISTED]), '"platform":', '"Platform":'),
        text(of_image(layers=[LISTED]), '"architecture":', '"Architecture": "amd64", "architecture":'),
        text(of_image(layers=[LISTED]), '"os.version":', '"OS.version": "2", "os.version":'),
        text(of_image(subject=descriptor(LAYER), config=descriptor(CONFIG)), '"size": 1}]', '"size": 1, "URLS": []}]'),
        text(of_image(blobs=[descriptor(LAYER)]), '"blobs": [{', '"blobs": [{"Size": 1, '),
        # Letters that fold to a known key's: Go takes them for the same.
        text(of_image(), '"layers":', '"layer\u017f": [], "layers":'),
        text(of_image(), '"layers":', '"layer\\u017f": [], "layers":'),
        text(of_image(), '"size": 1', '"\u017fize": 7, "size": 1'),
    ],
)
def test_what_two_readers_may_understand_differently_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalid, match=r"case|twice|Content-Type|config"):
        pushed(OCI_MANIFEST, data)


def test_ambiguity_is_refused_in_an_index_and_in_a_manifest_of_any_type() -> None:
    with pytest.raises(ManifestInvalid, match="case"):
        pushed(OCI_INDEX, text(of_index(manifests=[LISTED]), '"os": "linux"', '"os": "linux", "OS": "windows"'))
    with pytest.raises(ManifestInvalid, match="case"):
        pushed(ARTIFACT, {"mediaType": ARTIFACT, "Layers": []})
    with pytest.raises(ManifestInvalid, match="twice"):
        pushed(ARTIFACT, b'{"mediaType": "%s", "x": 1, "x": 1}' % ARTIFACT.encode())


def test_keys_of_annotations_and_unknown_objects_may_differ_in_case_only() -> None:
    document = of_image(annotations={"size": "1", "Size": "2"}, x={"layers": 1, "Layers": 2})
    assert pushed(OCI_MANIFEST, document).annotations == {"size": "1", "Size": "2"}


# ---- what lies in the store


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        ({}, OCI_MANIFEST),
        ({"schemaVersion": 2}, OCI_MANIFEST),
        ({"manifests": []}, OCI_INDEX),
        ({"manifests": None}, OCI_MANIFEST),
        ({"mediaType": ""}, OCI_MANIFEST),
        ({"mediaType": "", "manifests": []}, OCI_INDEX),
        ({"mediaType": DOCKER_LIST}, DOCKER_LIST),
        ({"mediaType": ARTIFACT, "manifests": []}, ARTIFACT),
        (
            {"schemaVersion": 1, "name": "x", "fsLayers": []},
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        ),
        ({"layers": [], "Layers": []}, OCI_MANIFEST),
        # What distribution takes and this registry would not.
        ({"layers": 1}, OCI_MANIFEST),
        ({"mediaType": DOCKER_LIST, "manifests": [{"size": 1}]}, DOCKER_LIST),
        ({"manifests": [{"digest": "nonsense"}]}, OCI_INDEX),
        ({"mediaType": 1, "annotations": {"a": None}}, OCI_MANIFEST),
        (
            {"schemaVersion": 1, "config": {"mediaType": None}},
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        ),
    ],
)
def test_a_stored_manifest_is_of_the_type_that_its_bytes_tell(document: object, media_type: str) -> None:
    assert stored(document).media_type == media_type


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{", b"1"])
def test_stored_bytes_that_are_no_manifest_are_said_to_be_none(data: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        stored(data)


# ---- what it points at


def test_references_are_config_blobs_and_listed_manifests_but_not_the_subject() -> None:
    subject = descriptor(Digest.of(b"subject"))
    manifest = pushed(OCI_MANIFEST, of_image(subject=subject, blobs=[descriptor(Digest.of(b"blob"))]))
    assert [each.digest for each in manifest.references()] == [CONFIG, LAYER, Digest.of(b"blob")]
    assert [each.digest for each in pushed(OCI_INDEX, of_index(subject=subject)).references()] == [CONFIG, LAYER]


@pytest.mark.parametrize(
    ("media_type", "document", "artifact_type"),
    [
        (OCI_MANIFEST, of_image(), CONFIG_TYPE),
        (OCI_MANIFEST, of_image(artifactType=ARTIFACT), ARTIFACT),
        (OCI_MANIFEST, of_image(artifactType=""), CONFIG_TYPE),
        (OCI_INDEX, of_index(), None),
        (OCI_INDEX, of_index(artifactType=ARTIFACT), ARTIFACT),
        (ARTIFACT, {"mediaType": ARTIFACT}, None),
    ],
)
def test_a_referrer_is_listed_with_its_artifact_type_and_annotations(
    media_type: str, document: dict[str, object], artifact_type: str | None
) -> None:
    manifest = pushed(media_type, document | {"annotations": {"a": "b"}})
    found = manifest.referrer_descriptor()
    assert found.artifact_type == artifact_type
    assert found.annotations == {"a": "b"}
    assert (found.media_type, found.digest, found.size) == (media_type, manifest.digest, len(manifest.data))
    assert parse_descriptor(encode_json(found)) == found


def test_a_descriptor_is_written_without_what_it_has_not() -> None:
    written = json.loads(encode_json(pushed(OCI_INDEX, of_index()).referrer_descriptor()))
    assert sorted(written) == ["digest", "mediaType", "size"]


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"mediaType": "x", "digest": "y", "size": 1}'])
def test_what_is_no_descriptor_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        parse_descriptor(data)


# ---- anything at all

KEYS = st.sampled_from([
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "blobs",
    "manifests",
    "subject",
    "annotations",
    "digest",
    "size",
    "platform",
    "Layers",
    "x",
])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.sampled_from([2, OCI_MANIFEST, OCI_INDEX, ARTIFACT, str(LAYER)]),
)
DESCRIPTORS = st.fixed_dictionaries(
    {"mediaType": st.just(LAYER_TYPE), "digest": st.just(str(LAYER)), "size": st.integers(0, 9)},
    optional={"platform": st.just({"os": "linux"})},
)
DOCUMENTS = st.dictionaries(
    KEYS,
    st.one_of(
        DESCRIPTORS,
        st.lists(DESCRIPTORS, max_size=2),
        st.one_of(VALUES, st.lists(VALUES, max_size=2), st.dictionaries(KEYS, VALUES, max_size=3)),
    ),
    max_size=5,
)
TYPES = st.sampled_from([OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, ARTIFACT, ""])


@given(TYPES, st.binary(max_size=50))
def test_any_bytes_are_refused_with_manifest_invalid_only(media_type: str, data: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        pushed(media_type, data)
    with pytest.raises(ManifestInvalid):
        stored(data + b"!")


@given(TYPES, DOCUMENTS, st.booleans())
def test_any_document_is_refused_or_read_back_from_the_store_as_it_was_pushed(
    media_type: str, document: dict[str, object], likely: bool
) -> None:
    if likely:
        document |= {"schemaVersion": 2, "mediaType": media_type}
    try:
        manifest = pushed(media_type, document)
    except ManifestInvalid:
        return
    assert stored(document) == manifest

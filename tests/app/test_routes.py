"""Which request is which operation, and which is none at all."""

from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from hypothesis import given, strategies as st

from moorage import (
    AppendUpload,
    CancelUpload,
    CommitUpload,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    Digest,
    DigestInvalid,
    ListReferrers,
    ListRepositories,
    ListTags,
    ManifestInvalid,
    Match,
    MountBlob,
    NameInvalid,
    OpenUpload,
    Operation,
    Origin,
    ParameterInvalid,
    Ping,
    PullBlob,
    PullManifest,
    PushBlob,
    RegistryError,
    RepositoryName,
    SizeInvalid,
    StatUpload,
    TagInvalid,
    UploadInvalid,
)
from moorage_app.routes import (
    Headers,
    Limits,
    MethodNotAllowed,
    PathUnknown,
    Request,
    accepts,
    entity_tags,
    manifest_push_target,
    operation_of,
)

NAME_A = RepositoryName("a")
SHA = Digest.of(b"content")
SHA512 = Digest.of(b"content", "sha512")
SESSION = "019a1b2c-3d4e-7f60-8182-838485868788"
OCI = "application/vnd.oci.image.manifest.v1+json"
DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "BREW")


class Nothing:
    """A body that nobody reads here."""

    def __init__(self, length: int | None) -> None:
        self.length = length

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise AssertionError("routes read no body")


def request(method: str, target: str, *headers: tuple[str, str], length: int | None = 0) -> Request:
    path, _, query = target.partition("?")
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return Request(
        method=method, path=path, query=query, headers=Headers(encoded), body=Nothing(length), origin=Origin()
    )


def operation(method: str, target: str, *headers: tuple[str, str], length: int | None = 0) -> Operation[object]:
    found = operation_of(request(method, target, *headers, length=length), Limits())
    assert found is not None
    return found


# ---- endpoints and methods

ENDPOINTS: dict[str, dict[str, type | None]] = {
    "/v2/": {"GET": Ping, "HEAD": Ping},
    "/v2": {"GET": Ping, "HEAD": Ping},
    "/v2/_catalog": {"GET": ListRepositories, "HEAD": ListRepositories},
    "/v2/{name}/tags/list": {"GET": ListTags, "HEAD": ListTags},
    "/v2/{name}/manifests/latest": {"GET": PullManifest, "HEAD": PullManifest, "PUT": None, "DELETE": DeleteTag},
    f"/v2/{{name}}/manifests/{SHA}": {
        "GET": PullManifest,
        "HEAD": PullManifest,
        "PUT": None,
        "DELETE": DeleteManifest,
    },
    f"/v2/{{name}}/blobs/{SHA}": {"GET": PullBlob, "HEAD": PullBlob, "DELETE": DeleteBlob},
    f"/v2/{{name}}/blobs/{SHA512}": {"GET": PullBlob, "HEAD": PullBlob, "DELETE": DeleteBlob},
    "/v2/{name}/blobs/uploads/": {"POST": OpenUpload},
    "/v2/{name}/blobs/uploads": {"POST": OpenUpload},
    f"/v2/{{name}}/blobs/uploads/{SESSION}?digest={SHA}": {
        "GET": StatUpload,
        "HEAD": StatUpload,
        "PATCH": AppendUpload,
        "PUT": CommitUpload,
        "DELETE": CancelUpload,
    },
    f"/v2/{{name}}/referrers/{SHA}": {"GET": ListReferrers, "HEAD": ListReferrers},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_endpoint_takes_its_methods_and_names_them_to_who_uses_another(endpoint: str, method: str) -> None:
    known = ENDPOINTS[endpoint]
    asked = request(method, endpoint.format(name="library/alpine"))
    if method in known:
        found = operation_of(asked, Limits())
        kind = known[method]
        assert found is None if kind is None else type(found) is kind
    else:
        with pytest.raises(MethodNotAllowed) as refused:
            operation_of(asked, Limits())
        assert set(refused.value.allow) == set(known)


TRICKY = (
    "a",
    "0",
    "library/alpine",
    "a/b/c/d/e/f",
    "blobs",
    "uploads",
    "tags",
    "list",
    "manifests",
    "referrers",
    "blobs/uploads",
    "tags/list",
    "a/blobs/uploads",
    "a/tags/list",
    "manifests/latest",
    "a/manifests/b/blobs/uploads",
    "referrers/referrers",
    "v2",
    "v2/v2",
    "a.b_c__d-e---f/g",
    "a" * 255,
    "/".join(["ab"] * 85),
)


@pytest.mark.parametrize("name", TRICKY)
def test_a_name_may_contain_the_words_of_the_api(name: str) -> None:
    assert_found_everywhere(name)


def assert_found_everywhere(name: str) -> None:
    for endpoint, methods in ENDPOINTS.items():
        if "{name}" not in endpoint:
            continue
        for method, kind in methods.items():
            asked = request(method, endpoint.format(name=name), ("Content-Type", OCI))
            found = operation_of(asked, Limits())
            assert kind is None or type(found) is kind
            assert name == (manifest_push_target(asked)[0] if found is None else getattr(found, "repository", None))


WORDS = st.sampled_from(["blobs", "uploads", "tags", "list", "manifests", "referrers", "a", "v2", "x-y", "0.1"])


@given(st.lists(WORDS, min_size=1, max_size=8).map("/".join))
def test_whatever_words_a_name_is_made_of_it_is_found_whole(name: str) -> None:
    assert_found_everywhere(name)


BAD_NAMES = (
    "",
    "Library/alpine",
    "library/Alpine",
    "..",
    ".",
    "a/../b",
    "../a",
    "a/..",
    "a/./b",
    "a%2Fb",
    "a%2fb",
    "a%2E%2E",
    "%61",
    "a" * 256,
    "a" * 300,
    "/".join(["abc"] * 75),
    "a\0b",
    "a%00b",
    "caf\xe9",
    "a//b",
    "/a",
    "a/",
    "a ",
    " a",
    "a+b",
    "a:b",
    "a@b",
    "-a",
    "a-",
    ".a",
    "a.",
    "_a",
    "a_",
    "a..b",
    "a___b",
    "a._b",
    "_catalog",
    "a\\b",
    "a\nb",
)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_breaks_the_grammar_is_told_so_at_every_endpoint(name: str) -> None:
    for endpoint, methods in ENDPOINTS.items():
        if "{name}" not in endpoint:
            continue
        for method, kind in methods.items():
            asked = request(method, endpoint.format(name=name), ("Content-Type", OCI))
            with pytest.raises(NameInvalid):
                assert (manifest_push_target(asked) if kind is None else operation_of(asked, Limits())) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1/",
        "/v3/",
        "/V2/",
        "/v2x",
        "//v2/",
        "/v2//",
        "/v2/a",
        "/v2/a/",
        "/v2/a/tags",
        "/v2/a/tags/",
        "/v2/a/tags/list/",
        "/v2/a/tags/lists",
        "/v2/a/blobs",
        "/v2/a/manifests",
        "/v2/a/manifests/latest/",
        "/v2/a/referrers",
        "/v2/_catalog/",
        "/v2/_catalogue",
        f"/v2/a/blobs/{SHA}/",
        f"/v2/a/blobs/uploads/{SESSION}/",
        "/v2/a/blobs/uploads//",
        "/v2/_oci/ext/discover",
        "http://registry.test/v2/",
    ],
)
def test_what_is_no_endpoint_is_not_found(path: str) -> None:
    for method in METHODS:
        with pytest.raises(PathUnknown) as missed:
            operation_of(request(method, path), Limits())
        assert missed.value.status == 404


# ---- references

ENCODED = quote(str(SHA), safe="")


@pytest.mark.parametrize(
    "text", [str(SHA), ENCODED, ENCODED.replace("%3A", "%3a"), str(SHA512), quote(str(SHA512), safe="")]
)
def test_a_digest_may_be_percent_encoded(text: str) -> None:
    digest = SHA512 if "512" in text else SHA
    assert operation("GET", f"/v2/a/blobs/{text}") == PullBlob(repository=NAME_A, digest=digest)
    assert operation("GET", f"/v2/a/manifests/{text}") == PullManifest(repository=NAME_A, reference=digest)
    assert operation("DELETE", f"/v2/a/manifests/{text}") == DeleteManifest(repository=NAME_A, digest=digest)
    listed = operation("GET", f"/v2/a/referrers/{text}")
    assert isinstance(listed, ListReferrers)
    assert listed.subject == digest


BAD_DIGESTS = (
    "sha256:",
    "sha256:abc",
    "sha256:" + "A" * 64,
    "sha256:" + "g" * 64,
    "sha256:" + "a" * 63,
    "sha256:" + "a" * 65,
    "sha512:" + "a" * 64,
    ":" + "a" * 64,
    "sha256::" + "a" * 63,
    "SHA256:" + "a" * 64,
    "sha256:baddigeststring",
    "%2e%2e:" + "a" * 64,
    "sha256%2F:" + "a" * 64,
    "x:" + "a" * 300,
    "sha256:" + "a" * 63 + "%00",
    "sha256:" + "a" * 63 + "%FF",
)


@pytest.mark.parametrize("text", BAD_DIGESTS)
def test_a_digest_that_breaks_the_grammar_is_told_so_wherever_it_stands(text: str) -> None:
    targets = (
        ("GET", f"/v2/a/blobs/{text}"),
        ("DELETE", f"/v2/a/blobs/{text}"),
        ("GET", f"/v2/a/manifests/{text}"),
        ("PUT", f"/v2/a/manifests/{text}"),
        ("DELETE", f"/v2/a/manifests/{text}"),
        ("GET", f"/v2/a/referrers/{text}"),
        ("POST", f"/v2/a/blobs/uploads/?digest={text}"),
        ("POST", f"/v2/a/blobs/uploads/?mount={text}"),
        ("PUT", f"/v2/a/blobs/uploads/{SESSION}?digest={text}"),
    )
    for method, target in targets:
        # Bytes that are no UTF-8 are refused a step earlier in a query.
        with pytest.raises((DigestInvalid, ParameterInvalid)) as refused:
            operation_of(request(method, target), Limits())
        assert refused.value.status == 400


@pytest.mark.parametrize("tag", ["latest", "_", "1.0", "a" * 128, "uploads", "list", "A-Z_", "%6Catest"])
def test_a_tag_is_a_reference(tag: str) -> None:
    meant = tag.replace("%6C", "l")
    found = operation("GET", f"/v2/a/manifests/{tag}")
    assert isinstance(found, PullManifest)
    assert found.reference == meant
    assert not isinstance(found.reference, Digest)


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a" * 129, "a%2Fb", "a%20b", "%00", "caf\xe9", "%C3%A9", "a!"])
def test_a_tag_that_breaks_the_grammar_is_told_so(tag: str) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        with pytest.raises(TagInvalid):
            operation_of(request(method, f"/v2/a/manifests/{tag}"), Limits())


# ---- lists


@pytest.mark.parametrize(
    ("n", "tags", "repositories"),
    [("0", 0, 0), ("1", 1, 1), ("007", 7, 7), ("1000", 1000, 1000), ("999999999", 1000, 1000)],
)
def test_a_page_is_as_long_as_asked_up_to_the_limit(n: str, tags: int, repositories: int) -> None:
    listed = operation("GET", f"/v2/a/tags/list?n={n}")
    assert isinstance(listed, ListTags)
    assert listed.limit == tags
    catalog = operation("GET", f"/v2/_catalog?n={n}")
    assert isinstance(catalog, ListRepositories)
    assert catalog.limit == repositories


@pytest.mark.parametrize("n", ["-1", "%2B1", "+1", "1.5", "abc", "", "1e3", "0x10", "%D9%A3", "%00", "1,2"])
def test_a_page_length_that_is_no_number_is_refused(n: str) -> None:
    for target in ("/v2/a/tags/list", "/v2/_catalog", f"/v2/a/referrers/{SHA}"):
        with pytest.raises(ParameterInvalid):
            operation_of(request("GET", f"{target}?n={n}"), Limits())


def test_a_page_length_beyond_every_bound_is_clipped() -> None:
    catalog = operation("GET", f"/v2/_catalog?n={10**30}")
    assert isinstance(catalog, ListRepositories)
    assert catalog.limit == Limits().repositories


def test_entity_tags_are_read_in_one_pass_however_they_are_padded() -> None:
    # A pattern that looks back for each space would take minutes here.
    padded = '"x"' + " " * 200_000 + "y"
    assert entity_tags(padded) == Match(digests=frozenset({"x"}))


def test_without_a_page_length_all_tags_are_listed_but_not_all_repositories() -> None:
    tags, catalog = operation("GET", "/v2/a/tags/list"), operation("GET", "/v2/_catalog")
    assert isinstance(tags, ListTags)
    assert isinstance(catalog, ListRepositories)
    assert tags.limit > 1_000_000
    assert catalog.limit == 100


@pytest.mark.parametrize(
    ("query", "after"),
    [
        ("", ""),
        ("last=", ""),
        ("last=v1", "v1"),
        ("last=no-such-tag%21", "no-such-tag!"),
        ("last=a%2Fb", "a/b"),
        ("last=a/b&last=z", "a/b"),
        ("n=3&last=v1&other=1", "v1"),
    ],
)
def test_a_list_goes_on_after_whatever_last_says(query: str, after: str) -> None:
    for target in ("/v2/a/tags/list", "/v2/_catalog", f"/v2/a/referrers/{SHA}"):
        found = operation("GET", f"{target}?{query}")
        assert isinstance(found, ListTags | ListRepositories | ListReferrers)
        assert found.after == after


def test_referrers_may_be_filtered_by_artifact_type() -> None:
    found = operation("GET", f"/v2/a/referrers/{SHA}?artifactType=application%2Fspdx%2Bjson")
    assert isinstance(found, ListReferrers)
    assert found.artifact_type == "application/spdx+json"


@pytest.mark.parametrize("query", ["last=%FF", "%FF=1", "&".join(f"x{n}=1" for n in range(1001))])
def test_a_query_that_cannot_be_understood_is_refused(query: str) -> None:
    for target in ("/v2/a/tags/list", "/v2/_catalog", f"/v2/a/referrers/{SHA}"):
        with pytest.raises(ParameterInvalid):
            operation_of(request("GET", f"{target}?{query}"), Limits())


# ---- uploads


EMPTY_DIGEST = Digest.of(b"")


@pytest.mark.parametrize(
    ("query", "length", "kind", "fields"),
    [
        ("", 0, OpenUpload, {"digest": None, "algorithm": None}),
        ("digest-algorithm=sha512", 0, OpenUpload, {"digest": None, "algorithm": "sha512"}),
        (f"digest={SHA}", 0, OpenUpload, {"digest": SHA}),
        (f"digest={ENCODED}", 7, PushBlob, {"digest": SHA}),
        (f"digest={SHA}", None, PushBlob, {"digest": SHA}),
        (f"digest={EMPTY_DIGEST}", 0, PushBlob, {"digest": EMPTY_DIGEST}),
        (f"mount={SHA}", 0, MountBlob, {"digest": SHA, "source": None}),
        (f"mount={SHA}&from=", 0, MountBlob, {"digest": SHA, "source": None}),
        (f"mount={SHA}&from=b/c", 0, MountBlob, {"digest": SHA, "source": "b/c"}),
        (f"mount={SHA}&from=b%2Fc", 0, MountBlob, {"digest": SHA, "source": "b/c"}),
        ("from=b/c", 0, OpenUpload, {"digest": None}),
    ],
)
def test_a_post_opens_pushes_or_mounts(query: str, length: int | None, kind: type, fields: dict[str, object]) -> None:
    found = operation("POST", f"/v2/a/blobs/uploads/?{query}", length=length)
    assert type(found) is kind
    assert {name: getattr(found, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("mount=", DigestInvalid),
        (f"mount={SHA}&from=UPPER", NameInvalid),
        (f"mount={SHA}&from=../b", NameInvalid),
        ("digest=", DigestInvalid),
        ("digest=md5:d41d8cd98f00b204e9800998ecf8427e", DigestInvalid),
    ],
)
def test_a_post_that_cannot_be_understood_is_refused(query: str, error: type[RegistryError]) -> None:
    with pytest.raises(error):
        operation_of(request("POST", f"/v2/a/blobs/uploads/?{query}"), Limits())


@pytest.mark.parametrize(
    ("value", "start", "length"),
    [
        (None, None, None),
        ("0-0", 0, 1),
        ("0-9", 0, 10),
        ("10-19", 10, 10),
        (" 5-9 ", 5, 5),
        ("0005-0009", 5, 5),
        ("0-9223372036854775807", 0, 1 << 63),
    ],
)
def test_a_chunk_says_where_it_begins_and_how_long_it_is(
    value: str | None, start: int | None, length: int | None
) -> None:
    headers = [("Content-Range", value)] if value is not None else []
    for method in ("PATCH", "PUT"):
        found = operation(method, f"/v2/a/blobs/uploads/{SESSION}?digest={SHA}", *headers)
        assert isinstance(found, AppendUpload | CommitUpload)
        assert (found.start, found.length) == (start, length)


@pytest.mark.parametrize(
    "value",
    ["", "-", "0-", "-9", "0", "a-b", "bytes 0-9/10", "0-9/10", "bytes=0-9", "0 - 9", "-1-5", "0--1", "0x0-0x9", "0-9,10-19",
     "0-99999999999999999999", "\u0661-\u0662".encode().decode("latin-1")],
)  # fmt: skip
def test_a_content_range_of_another_form_is_refused(value: str) -> None:
    for method in ("PATCH", "PUT"):
        with pytest.raises(UploadInvalid):
            operation(method, f"/v2/a/blobs/uploads/{SESSION}?digest={SHA}", ("Content-Range", value))


def test_a_content_range_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(SizeInvalid):
        operation("PATCH", f"/v2/a/blobs/uploads/{SESSION}", ("Content-Range", "9-5"))


def test_two_content_ranges_are_refused() -> None:
    with pytest.raises(UploadInvalid):
        operation("PATCH", f"/v2/a/blobs/uploads/{SESSION}", ("Content-Range", "0-4"), ("Content-Range", "5-9"))


def test_the_closing_put_names_a_digest() -> None:
    with pytest.raises(DigestInvalid):
        operation("PUT", f"/v2/a/blobs/uploads/{SESSION}")


# ---- pushes of manifests


@pytest.mark.parametrize(
    ("value", "media_type"), [(OCI, OCI), (f"{OCI}; charset=utf-8", OCI), (f" {OCI} ;x=y", OCI), ("a/b", "a/b")]
)
def test_parameters_of_a_manifests_type_are_dropped(value: str, media_type: str) -> None:
    target = manifest_push_target(request("PUT", "/v2/a/manifests/v1?tag=x&tag=y", ("Content-Type", value)))
    assert target == ("a", "v1", ("x", "y"), media_type)


@pytest.mark.parametrize("headers", [[], [("Content-Type", "")], [("Content-Type", ";charset=utf-8")]])
def test_a_manifest_without_a_type_is_refused(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(ManifestInvalid):
        manifest_push_target(request("PUT", "/v2/a/manifests/v1", *headers))


@pytest.mark.parametrize("query", ["tag=", "tag=a/b", "tag=ok&tag=-bad", f"tag={SHA}"])
def test_a_further_tag_that_breaks_the_grammar_is_told_so(query: str) -> None:
    with pytest.raises(TagInvalid):
        manifest_push_target(request("PUT", f"/v2/a/manifests/{SHA}?{query}", ("Content-Type", OCI)))


# ---- conditions and negotiation


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (None, None),
        ("*", Match(any=True)),
        (" * ", Match(any=True)),
        (f'"{SHA}"', Match(digests=frozenset({str(SHA)}))),
        (f'W/"{SHA}"', Match(digests=frozenset({str(SHA)}))),
        (f'"{SHA}", W/"{SHA512}"', Match(digests=frozenset({str(SHA), str(SHA512)}))),
        (f'"a","b" , "{SHA}"', Match(digests=frozenset({"a", "b", str(SHA)}))),
        ('"a,b"', Match(digests=frozenset({"a,b"}))),
        (str(SHA), Match(digests=frozenset({str(SHA)}))),
        (f"{SHA}, {SHA512}", Match(digests=frozenset({str(SHA), str(SHA512)}))),
        ('"*"', Match(digests=frozenset({"*"}))),
    ],
)
def test_entity_tags_come_as_lists_weak_bare_or_any(header: str | None, match: Match | None) -> None:
    assert entity_tags(header) == match


@pytest.mark.parametrize("header", ["", ",", '"', '""', "W/", '"unfinished', "nonsense"])
def test_a_condition_that_names_nothing_known_matches_nothing(header: str) -> None:
    match = entity_tags(header)
    assert match is not None
    assert not match.matches(SHA)


@given(st.text())
def test_any_text_is_a_condition_of_some_kind(header: str) -> None:
    assert entity_tags(header) is not None


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (None, True),
        ("", True),
        ("  ", True),
        ("*/*", True),
        ("application/*", True),
        ("APPLICATION/*", True),
        (OCI, True),
        (OCI.upper(), True),
        (f"{DOCKER}, {OCI}", True),
        (f"{DOCKER},{OCI};q=0.1", True),
        (f"{OCI}; charset=utf-8", True),
        (f"{DOCKER}, */*;q=0.1", True),
        (DOCKER, False),
        ("text/*", False),
        ("text/html", False),
        (f"{OCI};q=0", False),
        (f"{OCI};q=0.0, */*", False),
        (f"{OCI}; Q=0", False),
        (f"*/*;q=0, {OCI}", True),
        (f"application/*;q=0, {OCI};q=0.5", True),
        ("application/*;q=0, */*", False),
        ("*/*;q=0", False),
        (f"{OCI};q=much", False),
        (f"{OCI};q=nan", False),
        ("application", False),
        (",,;,", False),
    ],
)
def test_the_most_specific_range_of_accept_decides(header: str | None, taken: bool) -> None:
    assert accepts(header, OCI) is taken


@given(st.text())
def test_no_accept_header_breaks_the_negotiation(header: str) -> None:
    assert accepts(header, OCI) in {True, False}


# ---- nothing else can happen

LATIN = st.text(st.characters(max_codepoint=255), max_size=40)
PIECES = st.one_of(
    st.sampled_from([
        "v2",
        "_catalog",
        "a",
        "tags",
        "list",
        "blobs",
        "uploads",
        "manifests",
        "referrers",
        "",
        SESSION,
        SHA,
        ENCODED,
    ]),
    LATIN,
)
QUERIES = st.lists(
    st.tuples(
        st.sampled_from(["n", "last", "mount", "from", "digest", "tag", "digest-algorithm", "artifactType"]), LATIN
    )
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))


@given(
    method=st.sampled_from(METHODS),
    path=st.lists(PIECES, max_size=7).map(lambda parts: "/v2/" + "/".join(parts)),
    query=QUERIES,
    content_range=st.one_of(st.none(), LATIN),
    length=st.one_of(st.none(), st.integers(0, 10)),
)
def test_every_request_is_an_operation_or_an_error_for_the_client(
    method: str, path: str, query: str, content_range: str | None, length: int | None
) -> None:
    headers = [("Content-Range", content_range)] if content_range is not None else []
    asked = request(method, "/", *headers, length=length)
    asked = Request(method=method, path=path, query=query, headers=asked.headers, body=asked.body, origin=asked.origin)
    status = 400
    try:
        if operation_of(asked, Limits()) is None:
            manifest_push_target(asked)
    except RegistryError as error:
        status = error.status
    assert 400 <= status < 500

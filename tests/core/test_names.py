from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from moorage import (
    NAME_LIMIT,
    Digest,
    DigestInvalid,
    NameInvalid,
    RepositoryName,
    Tag,
    TagInvalid,
    parse_reference,
)

SHA256 = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "0",
        "library/alpine",
        "a.b",
        "a_b",
        "a__b",
        "a-b",
        "a-----b",
        "a.b-c__d/e_f/0.1",
        "a/b/c/d/e",
        "a" * NAME_LIMIT,
    ],
)
def test_a_repository_name_of_the_grammar_is_taken_as_it_is(text: str) -> None:
    assert RepositoryName(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "A",
        "a/B",
        "a..b",
        "a___b",
        "a.-b",
        "a_.b",
        ".a",
        "a.",
        "_a",
        "a_",
        "-a",
        "a-",
        "a/_layers",
        "../etc",
        "a/../b",
        "a b",
        "a\n",
        "a:b",
        "a@b",
        "a+b",
        "a%2fb",
        "ä",
        "a\u0661",
        "\ud800",
        "a" * (NAME_LIMIT + 1),
    ],
)
def test_what_breaks_the_grammar_is_no_repository_name(text: str) -> None:
    with pytest.raises(NameInvalid) as caught:
        RepositoryName(text)
    assert caught.value.message.isascii()
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("text", ["a", "_", "0", "latest", "1.0-alpine", "V1", "_.-", "a" * 128])
def test_a_tag_of_the_grammar_is_taken_as_it_is(text: str) -> None:
    assert Tag(text) == text


@pytest.mark.parametrize(
    "text", ["", ".", "..", ".a", "-a", "a/b", "a:b", "a+b", "a b", "a\n", "ä", "a\u0661", "\ud800", "a" * 129]
)
def test_what_breaks_the_grammar_is_no_tag(text: str) -> None:
    with pytest.raises(TagInvalid) as caught:
        Tag(text)
    assert caught.value.message.isascii()
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("subject", "tag"),
    [
        (SHA256, SHA256.replace(":", "-")),
        (SHA512, "sha512-" + "0123456789abcdef" * 4),
        (
            "test+algorithm+using+algorithm+separators+and+lots+of+characters:abc=",
            "test-algorithm-using-algorithm-s-abc-",
        ),
    ],
)
def test_the_fallback_tag_of_a_subject_is_cut_and_cleaned(subject: str, tag: str) -> None:
    assert Tag.fallback(Digest(subject)) == tag


def test_a_reference_with_a_colon_is_a_digest_and_any_other_a_tag() -> None:
    assert isinstance(parse_reference(SHA256), Digest)
    assert isinstance(parse_reference("sha256"), Tag)
    with pytest.raises(DigestInvalid):
        parse_reference("sha256:abc")
    with pytest.raises(DigestInvalid):
        parse_reference(":")
    with pytest.raises(TagInvalid):
        parse_reference("")


@given(st.text())
def test_any_text_either_is_a_name_or_is_refused_as_one(text: str) -> None:
    for parse in (RepositoryName, Tag, Digest, parse_reference):
        with suppress(NameInvalid, TagInvalid, DigestInvalid):
            assert parse(text) == text

import msgspec
import pytest
from hypothesis import given, strategies as st

from moorage import Glob, Regex
from moorage._document import Document, inspected, json_schema
from moorage._yaml import ConfigurationError, read_yaml


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("library/alpine", ["library/alpine"], ["library/alpin", "library/alpine2", "a/library/alpine"]),
        ("library/*", ["library/alpine", "library/"], ["library", "library/a/b", "other/alpine"]),
        ("prod/**", ["prod/a", "prod/a/b/c"], ["prod", "product/a"]),
        ("**/alpine", ["alpine", "library/alpine", "a/b/alpine"], ["library/alpine2", "notalpine"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["az", "a/bz"]),
        ("*", ["alpine", ""], ["library/alpine"]),
        ("**", ["alpine", "library/alpine", ""], []),
        ("v?.*", ["v1.0", "v2."], ["v10.0", "v1", "v/.0"]),
        ("v1.0+x", ["v1.0+x"], ["v1-0+x", "v1.00x"]),
        ("a(b|c)$", ["a(b|c)$"], ["ab", "ac"]),
    ],
)
def test_a_glob_matches_whole_names(pattern: str, names: list[str], others: list[str]) -> None:
    glob = Glob(pattern)
    assert [name for name in names if not glob.matches(name)] == []
    assert [name for name in others if glob.matches(name)] == []


@given(st.text(alphabet="ab/.-+()^$|", max_size=20))
def test_a_glob_without_stars_is_a_name(name: str) -> None:
    if name:
        assert Glob(name).matches(name)
        assert Glob(name + "*").matches(name)
        assert not Glob(name).matches(name + "a")


def test_a_catastrophic_expression_takes_linear_time() -> None:
    assert not Regex("(a+)+$").search("a" * 200_000 + "b")
    assert not Glob("*a" * 40).matches("a" * 39)
    assert Glob("*a" * 40).matches("a" * 5000)


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ('{url: "("}', 'f: url: found "("; allowed is a regular expression in RE2\'s syntax (missing ): ()'),
        ("{url: '(?=a)'}", 'f: url: found "(?=a)"; allowed is a regular expression in RE2\'s syntax (invalid perl'),
        (r"{url: '\1'}", r"allowed is a regular expression in RE2's syntax (invalid escape sequence: \1)"),
        ("{url: 'a{1001}'}", "allowed is a regular expression in RE2's syntax (invalid repetition size: {1001})"),
        ("{url: [a]}", "f: url: found a list; allowed is a regular expression"),
        (
            "{name: '[ab]'}",
            "f: name: found \"[ab]\"; allowed is a pattern such as library/* or prod/** (no '[': only *",
        ),
        ("{name: ''}", 'f: name: found ""; allowed is a pattern such as library/* or prod/** (1 to 4096 characters)'),
        ("{name: {a: b}}", "f: name: found a mapping; allowed is a pattern"),
        (f"{{url: {'a' * 5000}}}", "allowed is a regular expression in RE2's syntax (at most 4096 characters)"),
    ],
)
def test_what_is_no_pattern_is_one_sentence(written: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        _decoded(written)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


class Patterns(msgspec.Struct, frozen=True):
    url: Regex = Regex("^$")
    name: Glob = Glob("**")


def _decoded(written: str) -> Patterns:
    root = read_yaml(written, "f")
    assert isinstance(root, dict)
    return Document("f", root).decode(Patterns)


def test_patterns_are_values_that_a_configuration_holds() -> None:
    assert _decoded("{url: '^https://', name: 1.21}") == Patterns(Regex("^https://"), Glob("1.21"))
    assert len({Regex("a"), Regex("a"), Glob("a"), Glob("a")}) == 2
    assert (repr(Regex("a+")), repr(Glob("a*"))) == ("Regex('a+')", "Glob('a*')")
    assert Regex("a+").fullmatch("aa")
    assert not Regex("a+").fullmatch("aab")
    properties = json_schema(inspected(Patterns))["properties"]
    assert properties == {
        "url": {"type": ["string", "null"], "format": "regex"},
        "name": {"type": ["string", "null"], "minLength": 1},
    }


def test_a_pattern_remembers_a_bounded_number_of_short_names() -> None:
    pattern = Glob("v*")
    for _ in range(2):
        for number in range(2500):
            assert pattern.matches(f"v{number}")
            assert not pattern.matches(f"w{number}")
            assert pattern.matches("v" * 10_000)
    assert 0 < len(pattern._answers) <= 1000
    assert max(map(len, pattern._answers)) <= 256

"""Which platforms a setting means, and what is said about one that means none."""

import pytest

from moorage import ConfigurationError, Platform
from moorage_middleware._platform_patterns import PlatformPattern, in_one_line, names_no_machine
from opening import loaded


def platform(text: str, os_version: str | None = None) -> Platform:
    os, architecture, *variant = text.split("/")
    return Platform(os=os, architecture=architecture, variant=variant[0] if variant else None, os_version=os_version)


@pytest.mark.parametrize(
    ("pattern", "meant", "not_meant"),
    [
        ("linux/amd64", "linux/amd64 linux/amd64/v1 linux/amd64/v3 linux/x86_64 Linux/AMD64", "linux/386 darwin/amd64 linux/"),
        ("Linux/X86-64", "linux/amd64", "linux/arm64"),
        ("linux/amd64/v1", "linux/amd64 linux/amd64/v1", "linux/amd64/v2"),
        ("linux/amd64/v3", "linux/amd64/v3", "linux/amd64"),
        ("linux/arm64", "linux/arm64 linux/arm64/v8 linux/arm64/v9 linux/aarch64", "linux/arm linux/arm/v8"),
        ("linux/arm64/v8", "linux/arm64 linux/arm64/v8 linux/arm64/8 linux/aarch64 linux/arm64/v8.0", "linux/arm64/v9 linux/arm/v8"),
        ("linux/aarch64/8", "linux/arm64", "linux/arm64/v9"),
        ("linux/arm", "linux/arm linux/arm/v5 linux/arm/v6 linux/arm/v7 linux/armhf linux/armel", "linux/arm64"),
        ("linux/arm/v7", "linux/arm linux/arm/7 linux/arm/v7 linux/armhf", "linux/arm/v6 linux/arm/v8 linux/armel"),
        ("linux/armhf", "linux/arm linux/arm/v7", "linux/arm/v6"),
        ("linux/armel", "linux/arm/v6 linux/arm/6", "linux/arm"),
        ("linux/i386", "linux/386", "linux/amd64"),
        ("macos/arm64", "darwin/arm64 macos/arm64", "linux/arm64"),
        ("linux/*", "linux/amd64 linux/arm/v5 linux/unknown", "windows/amd64 unknown/unknown"),
        ("*/*", "linux/amd64 windows/arm64 unknown/unknown", "/amd64 linux/ /"),
        ("*/arm*/v?", "linux/arm linux/arm64 linux/arm/v6", "linux/amd64 linux/arm64/8.5"),
        ("linux/arm64/v*", "linux/arm64 linux/arm64/v9", "linux/ppc64le"),
        ("linux/s390?", "linux/s390x", "linux/s390"),
        ("unknown/unknown", "unknown/unknown", "linux/amd64"),
    ],
)  # fmt: skip
def test_a_pattern_means_what_containerd_would_take_for_the_same(pattern: str, meant: str, not_meant: str) -> None:
    found = PlatformPattern.from_setting(pattern)
    assert found.text == pattern
    for each in meant.split():
        assert found.matches(platform(each)), each
    for each in not_meant.split():
        assert not found.matches(platform(each)), each
    assert not found.matches(None)


def test_a_mapping_means_its_parts() -> None:
    windows = PlatformPattern.from_setting({"os": "windows", "architecture": "amd64", "os.version": "10.0.17763.*"})
    assert windows.text == "windows/amd64 (10.0.17763.*)"
    assert windows.matches(platform("windows/amd64", "10.0.17763.5458"))
    assert not windows.matches(platform("windows/amd64", "10.0.20348.1"))
    assert not windows.matches(platform("windows/amd64"))
    arm = PlatformPattern.from_setting({"os": "linux", "architecture": "arm", "variant": "v7", "os.version": None})
    assert arm == PlatformPattern.from_setting("linux/arm/v7")
    assert {arm, PlatformPattern("linux", "arm", "v7")} == {arm}
    assert repr(arm) == "PlatformPattern('linux/arm/v7')"
    assert PlatformPattern.from_setting("windows/amd64").matches(platform("windows/amd64", "10.0.17763.5458"))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("linux", 'found "linux"; allowed is os/architecture or os/architecture/variant, such as linux/arm64/v8 or linux/*'),
        ("a/b/c/d", 'found "a/b/c/d"; allowed is os/architecture'),
        ("linux/", "('' is no part of a platform)"),
        ("linux/ arm64", "(' arm64' is no part of a platform)"),
        ("'linux/{amd64,arm64}'", "'{amd64,arm64}' is no part of a platform"),
        ("linux/ärm", "is no part of a platform"),
        (f"linux/{'a' * 65}", "is no part of a platform"),
        ("7", "found 7; allowed is"),
        ("[linux, amd64]", "found a list; allowed is os/architecture"),
        ("{os: linux}", "allowed is a mapping with os, architecture and perhaps variant and os.version (architecture is missing)"),
        ("{architecture: arm64}", "(os is missing)"),
        ("{os: linux, architecture: ''}", "('' is no part of a platform)"),
        ("{os: linux, arch: arm64}", "('arch' is none of these)"),
        ("{os: windows, architecture: amd64, os.version: 10.0}", "(os.version is no text; put it in quotes)"),
        ("{os: linux, architecture: arm64, variant: 8}", "(variant is no text; put it in quotes)"),
    ],
)  # fmt: skip
def test_a_bad_platform_is_one_sentence_with_its_place(entry: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        loaded(f"plugins: {{platforms: {{require: [linux/amd64, {entry}]}}}}")
    text = str(error.value)
    assert text.startswith("command line: plugins.platforms.require[1]: found ")
    assert said in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("written", "none"),
    [("unknown/unknown", True), ("/", True), ("unknown/", True), ("linux/unknown", False), ("linux/", False), ("linux/amd64", False)],
)  # fmt: skip
def test_attestations_and_empty_platforms_are_nobodys_machine(written: str, none: bool) -> None:
    assert names_no_machine(platform(written)) == none
    assert names_no_machine(None)


def test_a_platform_is_told_as_docker_writes_it() -> None:
    assert in_one_line(platform("linux/arm64/v8")) == "linux/arm64/v8"
    assert in_one_line(platform("windows/amd64", "10.0.17763.1")) == "windows/amd64"

import hashlib

import pytest
from hypothesis import given, strategies as st

from moorage import Digest, DigestInvalid, Hasher, _digests, open_hasher, resume_hasher

ALGORITHMS = ("sha256", "sha512")


@pytest.fixture
def without_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(algorithm: str) -> None:
        del algorithm

    monkeypatch.setattr(_digests, "_openssl", absent)


@pytest.mark.parametrize(
    "text",
    [
        "sha256:" + "a" * 64,
        "sha384:" + "0" * 96,
        "sha512:" + "f" * 128,
        "sha256+b64u:LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564",
        "blake3:abc=",
        "a.b_c-d+e:Z",
    ],
)
def test_a_digest_of_the_grammar_has_an_algorithm_and_an_encoded_part(text: str) -> None:
    digest = Digest(text)
    assert digest == text
    assert f"{digest.algorithm}:{digest.encoded}" == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        ":" + "a" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "sha256:" + "a" * 63 + "\n",
        "sha256:" + "a" * 64 + "\n",
        "sha512:" + "a" * 64,
        "SHA256:" + "a" * 64,
        "sha256::" + "a" * 64,
        "sha256:" + "a" * 64 + ":b",
        "../x:abc",
        "x:../y",
        "x:a/b",
        "x:a.b",
        "+x:abc",
        "x+:abc",
        "x:\u0661",
        "x:" + "a" * 254,
    ],
)
def test_what_breaks_the_grammar_is_no_digest(text: str) -> None:
    with pytest.raises(DigestInvalid) as caught:
        Digest(text)
    assert caught.value.message.isascii()


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_the_digest_of_bytes_is_hashlibs(algorithm: str) -> None:
    assert Digest.of(b"content", algorithm) == f"{algorithm}:{hashlib.new(algorithm, b'content').hexdigest()}"


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "blake2b", "", "sha256+b64u"])
def test_an_algorithm_that_cannot_be_computed_is_refused(algorithm: str) -> None:
    with pytest.raises(DigestInvalid, match="not supported"):
        Digest.of(b"", algorithm)
    with pytest.raises(DigestInvalid, match="not supported"):
        open_hasher(algorithm)
    assert resume_hasher(algorithm, b"") is None


def carried(hasher: Hasher) -> Hasher:
    state = hasher.state()
    assert state is not None
    resumed = resume_hasher(hasher.algorithm, state)
    assert resumed is not None
    assert resumed.state() == state
    return resumed


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(pieces=st.lists(st.binary(max_size=300), max_size=20))
def test_a_hash_carried_over_at_every_point_is_hashlibs(algorithm: str, pieces: list[bytes]) -> None:
    hasher = open_hasher(algorithm)
    plain = hashlib.new(algorithm)
    for piece in pieces:
        hasher.update(piece)
        plain.update(piece)
        assert hasher.digest() == f"{algorithm}:{plain.hexdigest()}"
        hasher = carried(hasher)
        assert hasher.digest() == f"{algorithm}:{plain.hexdigest()}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 111, 112, 127, 128, 129, 1 << 20])
def test_a_hash_carried_over_around_the_edge_of_a_block_is_hashlibs(algorithm: str, size: int) -> None:
    hasher = open_hasher(algorithm)
    hasher.update(b"x" * size)
    hasher = carried(hasher)
    hasher.update(b"the rest")
    assert hasher.digest() == Digest.of(b"x" * size + b"the rest", algorithm)


def test_the_state_is_laid_out_as_go_lays_out_its_own() -> None:
    hasher = open_hasher()
    hasher.update(b"a" * 64 + b"bc")
    state = hasher.state()
    assert state is not None
    assert len(state) == 108
    assert state[:4] == b"sha\x03"
    assert state[36:100] == b"bc".ljust(64, b"\0")
    assert state[100:] == (66).to_bytes(8, "big")


def test_more_than_four_gigabits_are_counted() -> None:
    hasher = open_hasher()
    hasher.update(b"a" * 64)
    state = hasher.state()
    assert state is not None
    far = resume_hasher("sha256", state[:100] + (1 << 40).to_bytes(8, "big"))
    assert far is not None
    assert carried(far).digest() == far.digest()


@pytest.mark.parametrize(
    "state", [b"", b"sha\x03", b"sha\x03" + b"\0" * 103, b"sha\x03" + b"\0" * 105, b"sha\x02" + b"\0" * 104]
)
def test_what_is_no_state_resumes_nothing(state: bytes) -> None:
    assert resume_hasher("sha256", state) is None


@pytest.mark.usefixtures("without_openssl")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_openssl_hashes_are_the_same_but_cannot_be_carried(algorithm: str) -> None:
    hasher = open_hasher(algorithm)
    hasher.update(b"con")
    hasher.update(b"tent")
    assert hasher.digest() == Digest.of(b"content", algorithm)
    assert hasher.state() is None
    assert resume_hasher(algorithm, b"sha\x03" + b"\0" * 104) is None


def test_sha384_is_hashed_although_it_cannot_be_carried() -> None:
    hasher = open_hasher("sha384")
    hasher.update(b"content")
    assert hasher.digest() == Digest.of(b"content", "sha384")
    assert hasher.state() is None

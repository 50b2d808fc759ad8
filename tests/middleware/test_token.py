"""The authenticator `token`: tokens made by another library are believed, and nothing that is wrong in any one way."""

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
import trio
import trio.lowlevel
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, strategies as st
from joserfc.jwk import ECKey
from trio.testing import MockClock

from asking import basic, bearer, opened_authenticator
from moorage import (
    Access,
    Authenticator,
    Caller,
    ConfigurationError,
    Credentials,
    Grant,
    Origin,
    RepositoryName,
    ScopedAuthenticator,
    Unauthorized,
    Unavailable,
)
from moorage_middleware import _jose
from moorage_middleware._jose import BadToken, Believed, key_of_chain, parse_token, read_bundle, read_key_set
from signing import (
    ISSUER,
    SERVICE,
    certificate,
    claims,
    key_set,
    new_key,
    pem,
    public_jwk,
    publishing,
    raw_token,
    signed,
    x5c,
)

KEY = new_key("ES256")
OTHER = new_key("ES256")
RSA = new_key("RS256")
SECRET = "a shared secret of 32 characters, and some more to be sure of it"
JWKS = key_set(
    public_jwk(KEY, "one"),
    public_jwk(RSA, "rsa"),
    public_jwk(OTHER, "for encryption", use="enc"),
    public_jwk(OTHER, "for ES384", alg="ES384"),
    {"kty": "later", "kid": "unknown kind"},
    {"kty": "oct", "kid": "shared", "k": base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode()},
)
ANN = Caller(name="ann", grants=(Grant("team/app", frozenset({"pull", "push"})),))
NOW = int(time.time())

ROOT_KEY, MIDDLE_KEY = new_key("ES256"), new_key("RS256")
ROOT = certificate("root", ROOT_KEY, authority=True)
MIDDLE = certificate("middle", MIDDLE_KEY, "root", ROOT_KEY, authority=True)
LEAF = certificate("leaf", KEY, "middle", MIDDLE_KEY)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "jwks.json").write_text(JWKS, encoding="utf-8")
    (tmp_path / "bundle.pem").write_bytes(pem(ROOT))
    return tmp_path


def options(files: Path, **more: object) -> dict[str, object]:
    return {
        "realm": "https://tokens.example/token",
        "service": SERVICE,
        "issuer": ISSUER,
        "jwks": str(files / "jwks.json"),
        "rootcertbundle": str(files / "bundle.pem"),
    } | more


async def refused(authenticator: Authenticator, token: str, match: str = "cannot be believed") -> None:
    with pytest.raises(Unauthorized, match=match) as error:
        await authenticator(bearer(token))
    assert error.value.problem == "invalid_token"


# ---- what is believed


@pytest.mark.parametrize(
    "algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
)
async def test_a_token_of_each_algorithm_is_believed(files: Path, algorithm: str) -> None:
    key = new_key(algorithm)
    (files / "jwks.json").write_text(key_set(public_jwk(key, "k")), encoding="utf-8")
    token = signed(key, claims(), algorithm, kid="k")
    async with opened_authenticator("token", options(files)) as known:
        assert await known(bearer(token)) == ANN
        assert await known(bearer(token)) == ANN
        flipped = token[:-10] + ("A" if token[-10] != "A" else "B") + token[-9:]
        await refused(known, flipped)
    async with opened_authenticator("token", options(files, signingalgorithms=["HS256"])) as known:
        await refused(known, token)


async def test_what_is_not_shown_as_a_token_of_this_issuer_is_left_to_others(files: Path) -> None:
    async with opened_authenticator("token", options(files)) as known:
        assert await known(Origin()) is None
        assert await known(basic("ann", signed(KEY, claims(), kid="one"))) is None
        assert await known(bearer("an opaque token")) is None
        assert await known(bearer(signed(KEY, claims(iss="https://another.example"), kid="one"))) is None


def timely(changes: dict[str, object]) -> dict[str, object]:
    """Return `changes` with times as far from this moment as they were from that in which this module was read."""
    passed = int(time.time()) - NOW
    return {
        name: value + passed if name in {"exp", "nbf", "iat"} and isinstance(value, int | float) else value
        for name, value in changes.items()
    }


GOOD: dict[str, dict[str, object]] = {
    "audience in a list": {"aud": ["else", SERVICE]},
    "no nbf": {"nbf": None},
    "barely expired": {"exp": NOW - 30},
    "nearly good": {"nbf": NOW + 50},
    "fractions": {"exp": NOW + 300.5},
    "no subject": {"sub": None},
    "no iat, odd jti": {"iat": None, "jti": "x" * 1000},
    "iat in the future": {"iat": NOW + 9999},
    "no access": {"access": None},
    "rights of other kinds": {"access": [{"type": "plugin", "name": "a", "actions": ["x"]}, {}]},
    "a class": {"access": [{"type": "repository", "class": "image", "name": "a", "actions": None, "more": 1}]},
}


@pytest.mark.parametrize("what", GOOD)
async def test_claims_that_are_odd_and_good(files: Path, what: str) -> None:
    async with opened_authenticator("token", options(files)) as known:
        caller = await known(bearer(signed(KEY, claims(**timely(GOOD[what])), kid="one")))
    assert caller is not None
    assert caller.name == ("" if what == "no subject" else "ann")
    assert caller.grants is not None


async def test_rights_become_grants(files: Path) -> None:
    access = [
        {"type": "repository", "name": "a", "actions": ["*"]},
        {"type": "repository", "class": "plugin", "name": "b/c", "actions": ["pull"]},
        {"type": "registry", "name": "catalog", "actions": ["*"]},
        {"type": "registry", "name": "catalog", "actions": ["pull"]},
        {"type": "registry", "name": "a", "actions": ["*"]},
    ]
    async with opened_authenticator("token", options(files, groups="teams")) as known:
        caller = await known(bearer(signed(KEY, claims(access=access, teams=["x", "y", 7, None]), kid="one")))
        assert caller is not None
        assert caller.groups == {"x", "y", "7"}
        assert caller.grants == (
            Grant("a", frozenset({"*"})),
            Grant("b/c", frozenset({"pull"})),
            Grant(None, frozenset({"*"})),
        )
        nobody = await known(bearer(signed(KEY, claims(), kid="one")))
        assert nobody is not None
        assert not nobody.groups


# ---- what is not

BAD_CLAIMS: dict[str, dict[str, object]] = {
    "no issuer": {"iss": None},
    "issuer is a list": {"iss": [ISSUER]},
    "no audience": {"aud": None},
    "another audience": {"aud": "else"},
    "audiences without it": {"aud": ["else", SERVICE + "x"]},
    "audience is a number": {"aud": 1},
    "audience has a number": {"aud": [SERVICE, 1]},
    "no expiry": {"exp": None},
    "expired": {"exp": NOW - 120},
    "expiry is text": {"exp": str(NOW + 300)},
    "expiry is a list": {"exp": [NOW + 300]},
    "expiry is true": {"exp": True},
    "not yet": {"nbf": NOW + 500},
    "nbf is text": {"nbf": "0"},
    "subject is a number": {"sub": 7},
    "subject is a mapping": {"sub": {"name": "ann"}},
    "subject breaks lines": {"sub": "ann\nroot"},
    "subject is huge": {"sub": "a" * 2000},
    "access is text": {"access": "repository:a:pull"},
    "access has text": {"access": ["repository:a:pull"]},
    "actions is text": {"access": [{"type": "repository", "name": "a", "actions": "pull"}]},
    "action is a number": {"access": [{"type": "repository", "name": "a", "actions": [1]}]},
    "name is a number": {"access": [{"type": "repository", "name": 1, "actions": ["pull"]}]},
    "type is null": {"access": [{"type": None, "name": "a", "actions": ["pull"]}]},
}


@pytest.mark.parametrize("what", BAD_CLAIMS)
async def test_one_wrong_claim_is_enough(files: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    payload = json.dumps(claims(**timely(BAD_CLAIMS[what]))).encode()
    token = jwt.PyJWS().encode(payload, KEY, algorithm="ES256", headers={"kid": "one"})
    async with opened_authenticator("token", options(files)) as known:
        await refused(known, token)
    (said,) = [record.getMessage() for record in caplog.records if "is refused, since" in record.getMessage()]
    assert "192.0.2.1" in said
    assert token.split(".")[2] not in caplog.text


def _confused() -> str:
    """Return a token that is signed with a public key as if it were a shared secret."""
    public = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    unsigned = raw_token({"alg": "HS256", "kid": "rsa"}, claims()).rpartition(".")[0]
    signature = hmac.digest(public, unsigned.encode(), hashlib.sha256)
    return f"{unsigned}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


BAD_TOKENS: dict[str, Callable[[], str]] = {
    "of no key": lambda: signed(KEY, claims()),
    "of an unknown key": lambda: signed(KEY, claims(), kid="two"),
    "of another key": lambda: signed(OTHER, claims(), kid="one"),
    "kid is a number": lambda: raw_token({"alg": "ES256", "kid": 1}, claims()),
    "kid is a list": lambda: raw_token({"alg": "ES256", "kid": ["one"]}, claims()),
    "no algorithm": lambda: raw_token({"kid": "one"}, claims()),
    "algorithm is a list": lambda: raw_token({"alg": ["ES256"], "kid": "one"}, claims()),
    "unsigned": lambda: signed("", claims(), "none", kid="one"),
    "unsigned in capitals": lambda: raw_token({"alg": "NONE", "kid": "one"}, claims(), b""),
    "without a signature": lambda: raw_token({"alg": "ES256", "kid": "one"}, claims(), b""),
    "a signature of zeros": lambda: raw_token({"alg": "ES256", "kid": "one"}, claims(), b"\0" * 64),
    "a public key for a secret": _confused,
    "an algorithm for another kind of key": lambda: signed(RSA, claims(), "RS256", kid="one"),
    "an algorithm of encryption": lambda: raw_token({"alg": "RSA-OAEP", "enc": "A128GCM", "kid": "rsa"}, claims()),
    "a key for encryption": lambda: signed(OTHER, claims(), kid="for encryption"),
    "a key for another algorithm": lambda: signed(OTHER, claims(), kid="for ES384"),
    "critical": lambda: signed(KEY, claims(), kid="one", crit=["exp"], exp=1),
    "nothing critical": lambda: signed(KEY, claims(), kid="one", crit=None),
    "its own key": lambda: signed(OTHER, claims(), jwk=public_jwk(OTHER, "two")),
    "its own key by a trusted name": lambda: signed(OTHER, claims(), jwk=public_jwk(OTHER, "one")),
    "its own key without a name": lambda: signed(OTHER, claims(), kid="one", jwk={"kty": "EC"}),
    "jwk is text": lambda: signed(KEY, claims(), kid="one", jwk="one"),
    "x5c is text": lambda: signed(KEY, claims(), kid="one", x5c="one"),
    "x5c is no certificate": lambda: signed(KEY, claims(), kid="one", x5c=["b25l"]),
    "x5c is no base64": lambda: signed(KEY, claims(), kid="one", x5c=["%"]),
    "a chain to nowhere": lambda: signed(KEY, claims(), kid="one", x5c=x5c(LEAF)),
    "a chain of its own": lambda: signed(OTHER, claims(), kid="one", x5c=x5c(certificate("root", OTHER))),
    "a chain for another key": lambda: signed(OTHER, claims(), kid="one", x5c=x5c(LEAF, MIDDLE)),
    "a long chain": lambda: signed(KEY, claims(), kid="one", x5c=x5c(LEAF, *[MIDDLE] * 10)),
    "a chain in its key that leads nowhere": lambda: signed(KEY, claims(), jwk={"kid": "one", "x5c": x5c(LEAF)}),
}


@pytest.mark.parametrize("what", BAD_TOKENS)
async def test_one_thing_wrong_with_the_signature_is_enough(files: Path, what: str) -> None:
    async with opened_authenticator("token", options(files)) as known:
        await refused(known, BAD_TOKENS[what]())
        assert await known(bearer(signed(KEY, claims(), kid="one"))) == ANN


async def test_a_shared_secret_is_one_only_in_a_file(files: Path) -> None:
    token = signed(SECRET, claims(), "HS256", kid="shared")
    async with opened_authenticator("token", options(files)) as known:
        assert await known(bearer(token)) == ANN
    assert "shared" not in read_key_set(JWKS.encode(), secrets_too=False)


@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_whatever_is_shown_it_is_a_token_or_none(text: str) -> None:
    parse_token(text)
    parse_token(f"e30.{text}.e30")
    assert parse_token(f"{text}.") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["alg", "kid", "jwk", "x5c", "crit", "aud", "exp", "nbf", "sub", "access", "typ"])


@given(header=st.dictionaries(NAMES, JSON), told=st.dictionaries(NAMES, JSON))
def test_whatever_a_token_says_it_is_refused_cleanly(header: dict[str, object], told: dict[str, object]) -> None:
    token = parse_token(raw_token(header, {**claims(), **told}))
    assert token is not None
    for check in (lambda: _jose.headers_of(token), lambda: _jose.check_claims(token, [SERVICE], NOW, 60)):
        with contextlib.suppress(BadToken):
            check()


# ---- certificates


async def test_chains_and_names_of_certificates_are_believed(files: Path) -> None:
    (files / "bundle.pem").write_bytes(pem(ROOT, certificate("old", OTHER)))
    name = ECKey.import_key(OTHER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    tokens = [
        signed(KEY, claims(), x5c=x5c(LEAF, MIDDLE)),
        signed(KEY, claims(), x5c=x5c(LEAF, LEAF, MIDDLE, ROOT)),
        signed(KEY, claims(), kid="unknown", jwk={"kty": "EC", "x5c": x5c(LEAF, MIDDLE)}),
        signed(KEY, claims(), jwk=public_jwk(KEY, "one")),
        signed(ROOT_KEY, claims(), x5c=x5c(ROOT)),
        signed(OTHER, claims(), x5c=x5c(certificate("old", OTHER), ROOT)) and signed(KEY, claims(), kid="one"),
        signed(OTHER, claims(), kid=name.thumbprint()),
    ]
    async with opened_authenticator("token", options(files)) as known:
        for token in tokens:
            assert await known(bearer(token)) == ANN


def _judged(*chain: x509.Certificate, roots: tuple[x509.Certificate, ...] = (ROOT,)) -> bool:
    try:
        key_of_chain(x5c(*chain), roots, time.time())
    except BadToken:
        return False
    return True


def test_chains_are_judged_by_dates_authority_length_and_what_they_demand() -> None:
    def middle(**more: object) -> x509.Certificate:
        return certificate("middle", MIDDLE_KEY, "root", ROOT_KEY, **{"authority": True, **more})  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - whatever is wanted

    below = certificate("below", OTHER, "middle", MIDDLE_KEY, authority=True)
    deep = certificate("leaf", KEY, "below", OTHER)
    signs = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x")
    names = x509.NameConstraints([x509.DNSName("example")], None)
    usage = x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.3.6.1.5.5.7.3.4")])
    assert _judged(LEAF, MIDDLE)
    assert _judged(deep, below, MIDDLE)
    assert _judged(deep, MIDDLE, below)
    assert _judged(certificate("leaf", KEY, "root", ROOT_KEY, extensions=[(usage, True), (unknown, False)]))
    assert not _judged(LEAF)
    assert not _judged(LEAF, MIDDLE, roots=())
    assert not _judged(LEAF, MIDDLE, roots=(certificate("root", OTHER, authority=True),))
    assert not _judged(deep, below, middle(path_length=0))
    assert _judged(deep, below, middle(path_length=1))
    assert not _judged(LEAF, middle(authority=False))
    assert not _judged(LEAF, middle(days=(-2, -1)))
    assert not _judged(LEAF, middle(days=(1, 2)))
    assert not _judged(LEAF, middle(extensions=[(signs, True)]))
    assert not _judged(LEAF, middle(extensions=[(unknown, True)]))
    assert not _judged(LEAF, middle(extensions=[(names, False)]))
    assert not _judged(certificate("leaf", KEY, "middle", MIDDLE_KEY, days=(-2, -1)), MIDDLE)
    assert not _judged(certificate("leaf", KEY, "middle", OTHER), MIDDLE)
    assert not _judged(LEAF, MIDDLE, roots=(certificate("root", ROOT_KEY, authority=True, days=(-2, -1)),))
    assert not _judged(LEAF, MIDDLE, roots=(certificate("root", ROOT_KEY),))


def test_keys_of_certificates_are_known_by_the_names_that_each_distribution_gives_them() -> None:
    # A coordinate that begins with a zero, which the names of distribution 3 leave out.
    key = ec.derive_private_key(_short_scalar(), ec.SECP256R1())
    keys = read_bundle(pem(certificate("short", key))).keys
    numbers = key.public_key().public_numbers()
    told = [numbers.x.to_bytes((each.bit_length() + 7) // 8, "big") for each in (numbers.x,)]
    assert len(told[0]) < 32
    assert len(keys) == 3
    assert len([name for name in keys if ":" in name and len(name) == 59]) == 1
    assert len(read_bundle(pem(certificate("rsa", RSA))).keys) == 2


def _short_scalar() -> int:
    for scalar in range(1, 5000):
        if ec.derive_private_key(scalar, ec.SECP256R1()).public_key().public_numbers().x < 1 << 248:
            return scalar
    raise AssertionError("no such key among 5000")


# ---- challenges


async def test_the_challenge_says_where_to_get_what_is_needed(files: Path) -> None:
    needed = [Access(RepositoryName("a/b"), "pull"), Access(RepositoryName("a/b"), "push"), Access(None, "catalog")]
    async with opened_authenticator("token", options(files)) as known:
        assert isinstance(known, ScopedAuthenticator)
        start = 'Bearer realm="https://tokens.example/token",service="registry.example"'
        assert known.challenge == start
        assert known.challenge_for(Origin(), needed, "insufficient_scope") == (
            f'{start},scope="repository:a/b:pull,push registry:catalog:*",error="insufficient_scope"'
        )


@pytest.mark.parametrize(
    ("base", "realm"),
    [
        ("https://registry.example", "https://registry.example/auth/token"),
        ("http://127.0.0.1:5000/prefix", "http://127.0.0.1:5000/auth/token"),
        ("https://[::1]:5000", "https://[::1]:5000/auth/token"),
        ('https://a"b', None),
        ("https://user@host", None),
        ("https://a,b", None),
        ("https://a\r\nx: y", None),
        ("https://ä", None),
        ("https://", None),
        ("", None),
    ],
)
async def test_a_redirect_to_this_host_goes_to_a_host(files: Path, base: str, realm: str | None) -> None:
    async with opened_authenticator("token", options(files, autoredirect=True)) as known:
        assert isinstance(known, ScopedAuthenticator)
        wanted = realm or "https://tokens.example/token"
        said = known.challenge_for(Origin(base_url=base), (), "")
        assert said == f'Bearer realm="{wanted}",service="registry.example"'


# ---- what is remembered


async def test_a_token_is_verified_once_while_it_is_good(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    token = signed(KEY, claims(exp=now + 100), kid="one")
    async with opened_authenticator("token", options(files)) as known:
        assert await known(bearer(token)) == ANN
        with monkeypatch.context() as patch:
            patch.setattr("moorage_middleware.token.check_signature", pytest.fail)
            assert await known(bearer(token)) == ANN
        monkeypatch.setattr("moorage_middleware.token.time.time", lambda: now + 200)
        await refused(known, token)


async def test_ten_thousand_bad_tokens_are_not_remembered_and_many_good_ones_are_bounded(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_jose, "_BELIEVED_MOST", 50)
    async with opened_authenticator("token", options(files)) as known:
        believed = known._believed  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType] - looks inside
        assert isinstance(believed, Believed)
        for at in range(10_000):
            with pytest.raises(Unauthorized):
                await known(bearer(raw_token({"alg": "ES256", "kid": str(at)}, claims(jti=str(at)))))
        assert len(believed) == 0
        others = known._told  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType] - same
        for at in range(300):
            assert await known(bearer(raw_token({}, {"iss": str(at)}))) is None
        assert len(others) == 100  # pyright: ignore[reportUnknownArgumentType] - same
        for at in range(100):
            await known(bearer(signed(KEY, claims(jti=str(at)), kid="one")))
        assert len(believed) == 50


def test_what_is_remembered_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jose, "_BELIEVED_HEAVIEST", 1 << 20)
    believed = Believed()
    for at in range(1000):
        believed.remember(f"{at}" + "x" * 20_000, ANN, NOW + 100)
    assert 40 < len(believed) < 60
    assert believed.caller("999" + "x" * 20_000, NOW) == ANN
    assert believed.caller("1" + "x" * 20_000, NOW) is None


# ---- keys that change


async def test_files_of_keys_are_read_again(
    files: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    del autojump_clock
    first, second = signed(KEY, claims(), kid="one"), signed(OTHER, claims(), kid="two")
    chained = signed(KEY, claims(), x5c=x5c(LEAF, MIDDLE))
    async with opened_authenticator("token", options(files)) as known:
        assert await known(bearer(first)) == await known(bearer(chained)) == ANN
        await refused(known, second)
        (files / "jwks.json").write_text(key_set(public_jwk(OTHER, "two")), encoding="utf-8")
        (files / "bundle.pem").write_bytes(pem(certificate("else", OTHER)))
        await trio.sleep(1)
        assert await known(bearer(second)) == ANN
        await refused(known, first)
        await refused(known, chained)
        (files / "jwks.json").write_text("{}", encoding="utf-8")
        for _ in range(3):
            await trio.sleep(1)
            assert await known(bearer(second)) == ANN
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


def url_options(url: str, **more: object) -> dict[str, object]:
    return {"realm": "r", "service": SERVICE, "issuer": ISSUER, "jwksurl": f"{url}/keys", **more}


async def test_keys_are_fetched_from_the_server_and_rotated_under_load_without_a_failure() -> None:
    with publishing() as server:
        keys = [new_key("ES256") for _ in range(3)]
        server.answers["/keys"] = key_set(public_jwk(keys[0], "0"))
        current, asked, rotated = 0, 0, 0

        async with opened_authenticator("token", url_options(server.url)) as known:

            async def load(until: trio.Event) -> None:
                nonlocal asked
                while not until.is_set():
                    await trio.lowlevel.checkpoint()
                    assert await known(bearer(signed(keys[current], claims(jti=str(asked)), kid=str(current)))) == ANN
                    asked += 1

            for current in range(3):
                # As servers do: the new key is published beside the old one, then used, then the old one goes.
                published = [public_jwk(keys[at], str(at)) for at in (max(current - 1, 0), current)]
                server.answers["/keys"] = key_set(*published)
                fetched = known._fetched  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType] - lets the time between two looks pass
                fetched._began -= 10  # pyright: ignore[reportUnknownMemberType] - same
                done, goal = trio.Event(), asked + 50
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(load, done)
                    while asked < goal:
                        await trio.lowlevel.checkpoint()
                    done.set()
                rotated += 1
        assert rotated == 3
        assert server.asked <= 6


async def test_unknown_keys_do_not_make_the_server_be_asked_all_the_time() -> None:
    with publishing() as server:
        server.answers["/keys"] = key_set(public_jwk(KEY, "one"))
        async with opened_authenticator("token", url_options(server.url)) as known:
            assert await known(bearer(signed(KEY, claims(), kid="one"))) == ANN
            for at in range(100):
                await refused(known, signed(OTHER, claims(), kid=str(at)))
        assert server.asked == 1


async def test_a_server_that_is_down_is_waited_for_and_then_forgiven(caplog: pytest.LogCaptureFixture) -> None:
    with publishing() as server:
        token = signed(KEY, claims(), kid="one")
        async with opened_authenticator("token", url_options(server.url)) as known:
            with pytest.raises(Unavailable, match="keys"):
                await known(bearer(token))
            server.answers["/keys"] = key_set(public_jwk(KEY, "one"))
            fetched = known._fetched  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType] - lets the time between two looks pass
            fetched._began -= 10  # pyright: ignore[reportUnknownMemberType] - same
            assert await known(bearer(token)) == ANN
            for status, body in ((500, ""), (302, ""), (200, "no json"), (200, "{}"), (200, "x" * (2 << 20))):
                server.status, server.answers["/keys"] = status, body
                fetched._began -= 10  # pyright: ignore[reportUnknownMemberType] - same
                await refused(known, signed(OTHER, claims(), kid=f"{status}"))
                assert await known(bearer(token)) == ANN
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == len(set(errors)) == 5
        assert "no token of it is taken" in errors[0]


# ---- settings


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"rootcertbundle": "", "jwks": ""}, "rootcertbundle, jwks or jwksurl"),
        ({"jwks": "/nowhere"}, "auth.token.jwks"),
        ({"rootcertbundle": "/nowhere"}, "auth.token.rootcertbundle"),
        ({"realm": 'a"b'}, "auth.token: realm"),
        ({"service": ""}, "auth.token: service"),
        ({"issuer": ""}, "issuer is empty"),
        ({"signingalgorithms": ["none"]}, "signingalgorithms"),
        ({"jwksurl": "http://elsewhere.example/keys"}, "jwksurl"),
        ({"jwksurl": "https://user:canary@host/"}, "jwksurl"),
        ({"jwksurl": "https://host:99999/"}, "jwksurl"),
        ({"jwksurl": "file:///etc/passwd"}, "jwksurl"),
        ({"refresh": "1s"}, "refresh"),
        ({"leeway": "soon"}, "leeway"),
        ({"autoredirectpath": "auth"}, "autoredirectpath"),
    ],
)
async def test_wrong_settings_are_told_by_name(files: Path, more: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as error:
        async with opened_authenticator("token", options(files, **more)):
            pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"keys": 1}', b'{"keys": [1]}', b'{"keys": [{"kty": "EC"}]}'])
def test_a_file_without_keys_is_told(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(it|the key at) "):
        read_key_set(content, secrets_too=True)
    with pytest.raises(ValueError, match=r"^it has no certificates"):
        read_bundle(content)


async def test_no_token_is_told(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = signed(OTHER, claims(), kid="one")
    async with opened_authenticator("token", options(files)) as known:
        await refused(known, wrong)
        await known(bearer("canary-token"))
    for part in (*wrong.split("."), "canary-token"):
        assert part not in caplog.text
    assert "its signature is wrong" in caplog.text
    assert wrong not in repr(Credentials("bearer", wrong))
    # As it is understood when it comes without a scheme.
    assert "canary" not in repr(Credentials("canary-token", ""))

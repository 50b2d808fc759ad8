"""The authenticators that ask nobody: `mtls` by certificates, `anonymous` and `silly`."""

import logging

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, strategies as st

from asking import basic, bearer, opened_authenticator
from moorage import Access, Caller, ConfigurationError, Credentials, Origin, RepositoryName, ScopedAuthenticator
from moorage_middleware._authenticators import Mtls
from moorage_middleware.mtls import Certificates
from signing import certificate, new_key

KEY = new_key("ES256")
SUBJECT = x509.Name([
    x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "ops"),
    x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "all"),
    x509.NameAttribute(NameOID.COMMON_NAME, "ann"),
])
NAMES = x509.SubjectAlternativeName([
    x509.DNSName("host.example"),
    x509.RFC822Name("ann@example.org"),
    x509.UniformResourceIdentifier("spiffe://example.org/ann"),
    x509.UniformResourceIdentifier("spiffe://example.org/other"),
])


def shown(*extensions: x509.ExtensionType, name: x509.Name = SUBJECT) -> Origin:
    made = certificate("", KEY, "root", KEY, name=name, extensions=[(each, False) for each in extensions])
    return Origin(address="192.0.2.1", tls_peer=made.public_bytes(Encoding.DER))


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({}, "spiffe://example.org/ann"),
        ({"identity": ["san-dns"]}, "host.example"),
        ({"identity": ["san-email", "cn"]}, "ann@example.org"),
        ({"identity": ["cn"]}, "ann"),
        ({"identity": ["subject"]}, "CN=ann,OU=all,OU=ops"),
        ({"pattern": "spiffe://[^/]+/other"}, "spiffe://example.org/other"),
        ({"identity": ["san-uri", "cn"], "pattern": "[a-z]+"}, "ann"),
    ],
)
async def test_the_name_is_where_the_options_look_for_it(more: dict[str, object], name: str) -> None:
    async with opened_authenticator("mtls", more) as known:
        assert known.challenge == ""
        for _ in range(2):
            assert await known(shown(NAMES)) == Caller(name=name)


async def test_organizational_units_are_groups(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with opened_authenticator("mtls", {"groups": "ou", "identity": ["cn"]}) as known:
        assert await known(shown()) == Caller(name="ann", groups=frozenset({"ops", "all"}))
        assert await known(Origin()) is None
        assert await known(bearer("x")) is None
        nameless = shown(NAMES, name=x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "DE")]))
        assert await known(nameless) is None
        assert await known(nameless) is None
        assert await known(Origin(tls_peer=b"")) is None
    assert len([record for record in caplog.records if "has no cn" in record.getMessage()]) == 1


async def test_a_name_that_breaks_lines_is_none() -> None:
    async with opened_authenticator("mtls", {"identity": ["cn"]}) as known:
        assert await known(shown(name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a\nb")]))) is None


@given(st.binary(max_size=200))
async def test_whatever_is_no_certificate_is_nobody(data: bytes) -> None:
    assert await Certificates(Mtls())(Origin(tls_peer=data)) is None


@pytest.mark.parametrize("more", [{"identity": []}, {"identity": ["ip"]}, {"pattern": "("}, {"groups": "o"}])
async def test_wrong_settings_are_told_by_name(more: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(more))):
        async with opened_authenticator("mtls", more):
            pass


async def test_who_shows_nothing_is_nobody_in_particular() -> None:
    async with opened_authenticator("anonymous", {}) as known:
        assert await known(Origin()) == Caller()
        assert await known(basic("ann", "x")) is None
        assert known.challenge == ""


async def test_silly_takes_whatever_is_shown() -> None:
    needed = [Access(RepositoryName("a"), "pull"), Access(RepositoryName("a"), "push"), Access(None, "catalog")]
    async with opened_authenticator("silly", {"realm": "r", "service": "s"}) as known:
        assert isinstance(known, ScopedAuthenticator)
        for credentials in (Credentials("basic", "x"), Credentials("later", ""), Credentials("", "x")):
            assert await known(Origin(credentials=credentials)) == Caller(name="silly")
        assert await known(Origin()) is None
        assert await known(Origin(credentials=Credentials("", ""))) is None
        assert known.challenge == 'Bearer realm="r",service="s"'
        scope = "repository:a:pull repository:a:push registry:catalog:*"
        assert known.challenge_for(Origin(), needed, "x") == f'Bearer realm="r",service="s",scope="{scope}"'

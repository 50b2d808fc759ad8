"""Whose word about a client is believed, and what is made of it."""

import ipaddress

import pytest
from hypothesis import example, given, strategies as st

from moorage_app.proxies import Forwarded, TrustedProxies
from moorage_app.routes import Headers

PROXY = "10.0.0.1"
DIRECT = Forwarded(PROXY, "http", "registry.internal")
NETWORKS = [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "fd00::/8", "192.168.1.1/32")]


def resolved(*headers: tuple[str, str], direct: Forwarded = DIRECT) -> tuple[Forwarded, bool]:
    encoded = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers]
    return TrustedProxies(NETWORKS).resolve(direct, Headers(encoded))


EVERYTHING = (
    ("Forwarded", "for=198.51.100.9;proto=https;host=evil.test"),
    ("X-Forwarded-For", "198.51.100.9"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "evil.test"),
    ("X-Real-IP", "198.51.100.9"),
)


@pytest.mark.parametrize(
    "peer", ["198.51.100.1", "11.0.0.1", "::1", "fe80::1", "", "unix", "10.0.0.1.2", "2001:db8::1"]
)
def test_who_is_no_trusted_proxy_is_not_believed(peer: str) -> None:
    direct = Forwarded(peer, "http", "registry.internal")
    assert resolved(*EVERYTHING, direct=direct) == (direct, False)


def test_without_configured_proxies_nobody_is_believed() -> None:
    headers = Headers([(name.lower().encode(), value.encode()) for name, value in EVERYTHING])
    assert TrustedProxies(()).resolve(DIRECT, headers) == (DIRECT, False)


def test_a_trusted_proxy_that_says_nothing_is_the_client() -> None:
    assert resolved() == (DIRECT, True)


@pytest.mark.parametrize("peer", ["10.255.255.255", "192.168.1.1", "fd00::1"])
def test_a_trusted_proxy_is_believed_in_either_family(peer: str) -> None:
    found, trusted = resolved(EVERYTHING[0], direct=Forwarded(peer, "http", "registry.internal"))
    assert trusted
    assert found == Forwarded("198.51.100.9", "https", "evil.test")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=192.0.2.1", ("192.0.2.1", "http", "registry.internal")),
        ("For=192.0.2.1;Proto=HTTPS;Host=r.test", ("192.0.2.1", "https", "r.test")),
        ('for="192.0.2.1:4711"', ("192.0.2.1", "http", "registry.internal")),
        ("for=192.0.2.1:4711", ("192.0.2.1", "http", "registry.internal")),
        ('for="[2001:db8::1]"', ("2001:db8::1", "http", "registry.internal")),
        ('for="[2001:db8::1]:4711"', ("2001:db8::1", "http", "registry.internal")),
        ('for="[2001:DB8:0::1]:4711"; proto=https', ("2001:db8::1", "https", "registry.internal")),
        ('for="\\1\\9\\2.0.2.1"', ("192.0.2.1", "http", "registry.internal")),
        ('host="r.test:8443";for=192.0.2.1', ("192.0.2.1", "http", "r.test:8443")),
        ('host="[2001:db8::2]:8443";for=192.0.2.1', ("192.0.2.1", "http", "[2001:db8::2]:8443")),
        # What a quoted string holds is no list and no parameter.
        ('secret="a;for=6.6.6.6, for=7.7.7.7";for=192.0.2.1', ("192.0.2.1", "http", "registry.internal")),
        ("for=192.0.2.1;proto=gopher", ("192.0.2.1", "http", "registry.internal")),
        ('for=192.0.2.1;host="a/b@c"', ("192.0.2.1", "http", "registry.internal")),
        ('for=192.0.2.1;host="a\\"b"', ("192.0.2.1", "http", "registry.internal")),
    ],
)
def test_forwarded_is_read_as_its_standard_has_it(value: str, expected: tuple[str, str, str]) -> None:
    assert resolved(("Forwarded", value)) == (Forwarded(*expected), True)


@pytest.mark.parametrize(
    "value",
    ["for=unknown", "for=_hidden", 'for="_hidden:4711"', "for=", "for=300.1.1.1", "by=10.0.0.2", "", ",,", ";;", '"'],
)
def test_a_client_whose_address_is_not_told_is_the_proxy(value: str) -> None:
    assert resolved(("Forwarded", value))[0].address == PROXY


@pytest.mark.parametrize(
    ("chain", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("192.0.2.1,10.0.0.3 , 10.0.0.2", "192.0.2.1"),
        # What stands before the first address that no trusted proxy has is the client's own claim.
        ("6.6.6.6, 192.0.2.1", "192.0.2.1"),
        ("10.0.0.9, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("127.0.0.1, 6.6.6.6, 192.0.2.1, 10.0.0.3", "192.0.2.1"),
        # Proxies all the way: the farthest of them asks.
        ("10.0.0.4, 10.0.0.3", "10.0.0.4"),
        ("nonsense, 10.0.0.2", "10.0.0.2"),
        ("192.0.2.1, nonsense", PROXY),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:4711, fd00::2", "2001:db8::1"),
        ("", PROXY),
        (",", PROXY),
    ],
)
def test_the_nearest_address_that_is_no_trusted_proxy_is_the_client(chain: str, address: str) -> None:
    assert resolved(("X-Forwarded-For", chain))[0].address == address
    hops = ", ".join(f'for="{hop.strip()}"' for hop in chain.split(","))
    assert resolved(("Forwarded", hops))[0].address == address


def test_lines_of_one_header_are_one_chain() -> None:
    found, _ = resolved(
        ("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-For", "10.0.0.2")
    )
    assert found.address == "192.0.2.1"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("X-Forwarded-Proto", "https")], (PROXY, "https", "registry.internal")),
        ([("X-Forwarded-Proto", "HTTPS, http")], (PROXY, "https", "registry.internal")),
        ([("X-Forwarded-Proto", "javascript")], (PROXY, "http", "registry.internal")),
        ([("X-Forwarded-Host", "r.test:8443")], (PROXY, "http", "r.test:8443")),
        ([("X-Forwarded-Host", "r.test, inner.test")], (PROXY, "http", "r.test")),
        ([("X-Forwarded-Host", "a/../b")], (PROXY, "http", "registry.internal")),
        ([("X-Forwarded-Host", "user@evil.test")], (PROXY, "http", "registry.internal")),
        ([("X-Forwarded-Host", "x" * 256)], (PROXY, "http", "registry.internal")),
        ([("X-Real-IP", "192.0.2.1")], ("192.0.2.1", "http", "registry.internal")),
        ([("X-Real-IP", "6.6.6.6"), ("X-Forwarded-For", "192.0.2.1")], ("192.0.2.1", "http", "registry.internal")),
    ],
)
def test_scheme_and_host_are_taken_only_if_they_are_such(
    headers: list[tuple[str, str]], expected: tuple[str, str, str]
) -> None:
    assert resolved(*headers) == (Forwarded(*expected), True)


def test_the_standard_header_hides_the_others() -> None:
    found, _ = resolved(
        ("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-Host", "evil.test"), ("Forwarded", "for=192.0.2.1")
    )
    assert found == Forwarded("192.0.2.1", "http", "registry.internal")


@pytest.mark.parametrize(
    "claim",
    ['for=6.6.6.6;x="', 'for=6.6.6.6;host=evil.test;x=" ', 'for=6.6.6.6, for=7.7.7.7;x="\\', 'for=6.6.6.6 x;y="'],
)
@pytest.mark.parametrize("added", ['for="192.0.2.1:4711"', 'for="[2001:db8::1]:4711"', 'for=192.0.2.1;by="10.0.0.1"'])
def test_a_client_that_opens_a_quote_does_not_hide_what_a_proxy_adds(claim: str, added: str) -> None:
    # A proxy that appends to what the client sent closes the client's quote with its own.
    found, _ = resolved(("Forwarded", f"{claim}, {added}"))
    assert found.address in {PROXY, "192.0.2.1"}
    assert found.host == "registry.internal"


def test_what_stands_in_a_line_of_its_own_is_read_whatever_the_client_sent() -> None:
    found, _ = resolved(("Forwarded", 'for=6.6.6.6;x="'), ("Forwarded", 'for="192.0.2.1:4711";proto=https'))
    assert found == Forwarded("192.0.2.1", "https", "registry.internal")


@pytest.mark.parametrize(
    "value", ["for=192.0.2.1;host=a b", "for=192.0.2.1 x", "for 192.0.2.1", 'for="192.0.2.1"x', 'for="192.0.2.1']
)
def test_an_element_that_is_none_says_nothing(value: str) -> None:
    assert resolved(("Forwarded", value)) == (DIRECT, True)


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-IP"]),
        st.one_of(
            st.text(st.characters(max_codepoint=255)),
            st.text('for=by;,"\\[]:_.0123456789abcdef '),
        ),
    )
)


@given(HEADERS, st.one_of(st.just(PROXY), st.text(max_size=20)))
@example([("Forwarded", 'for="' + "\\" * 999)], PROXY)
@example([("Forwarded", "for=[::1"), ("Forwarded", 'for="[fe80::1%eth0]"')], PROXY)
def test_no_header_breaks_the_reading(headers: list[tuple[str, str]], peer: str) -> None:
    found, trusted = resolved(*headers, direct=Forwarded(peer, "http", "registry.internal"))
    assert found.scheme in {"http", "https"}
    if trusted:
        ipaddress.ip_address(found.address)
    else:
        assert found.address == peer
    assert not set('\r\n/@?#\\" ') & set(found.host)

"""What `http.tls` may say, and the one sentence for what it may not, alike from `config check` and `serve`."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from certificates import Authority, Pair
from moorage import ConfigurationError, load_configuration
from moorage_app.tls import server_tls, tls_warnings

Tls = Mapping[str, object]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


def write(folder: Path, tls: Tls, **http: object) -> Path:
    file = folder / "config.yml"
    file.write_text(yaml.safe_dump({"version": 0.1, "storage": {"inmemory": None}, "http": {"tls": dict(tls), **http}}))
    return file


def what_is_wrong(folder: Path, tls: Tls) -> str:
    """Return the sentence for what is wrong, without the file's name."""
    file = write(folder, tls)
    with pytest.raises(ConfigurationError) as caught:
        server_tls(load_configuration(file, {}).configuration)
    sentence = str(caught.value)
    assert sentence.startswith(f"{file}: http.tls.")
    assert "\n" not in sentence
    return sentence.removeprefix(f"{file}: ")


def warned(folder: Path, tls: Tls, **http: object) -> list[str]:
    loaded = load_configuration(write(folder, tls, **http), {})
    assert loaded.warnings == ()
    server_tls(loaded.configuration)
    return [warning.split(": ", 1)[1] for warning in tls_warnings(loaded.configuration)]


def files(pair: Pair, **more: object) -> dict[str, object]:
    return {"certificate": str(pair.certificate), "key": str(pair.key), **more}


def private(*, password: bytes | None = None, old: bool = False) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.TraditionalOpenSSL if old else serialization.PrivateFormat.PKCS8
    return rsa.generate_private_key(65537, 2048).private_bytes(serialization.Encoding.PEM, form, encryption)


# ---- what is refused


def test_a_certificate_and_its_key_go_together(tmp_path: Path, pair: Pair) -> None:
    assert what_is_wrong(tmp_path, {"certificate": str(pair.certificate)}) == (
        "http.tls.certificate: needs http.tls.key beside it"
    )
    assert what_is_wrong(tmp_path, {"key": str(pair.key)}) == "http.tls.key: needs http.tls.certificate beside it"


@pytest.mark.parametrize("setting", ["certificate", "key", "clientcas"])
def test_a_file_that_cannot_be_read_is_named(setting: str, tmp_path: Path, pair: Pair) -> None:
    for name, reason in (("nowhere.pem", "No such file"), (".", "Is a directory"), ("a\0b", "null byte")):
        place = str(tmp_path / name)
        said = what_is_wrong(tmp_path, files(pair) | {setting: [place] if setting == "clientcas" else place})
        assert said.startswith(f"http.tls.{setting}: ")
        assert reason in said


@pytest.mark.parametrize("setting", ["certificate", "key", "clientcas"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x30\x82\x01\x00", b"-----BEGIN X-----\nAAAA\n-----END X-----\n"])
def test_a_file_that_is_no_pem_is_named(setting: str, content: bytes, tmp_path: Path, pair: Pair) -> None:
    odd = tmp_path / "odd.pem"
    odd.write_bytes(content)
    said = what_is_wrong(tmp_path, files(pair) | {setting: [str(odd)] if setting == "clientcas" else str(odd)})
    what = "private key" if setting == "key" else "certificate"
    assert said == f"http.tls.{setting}: there is no {what} in PEM in {odd}"


@pytest.mark.parametrize("setting", ["certificate", "key", "clientcas"])
def test_a_pem_with_nothing_good_in_it_is_named(setting: str, tmp_path: Path, pair: Pair) -> None:
    kind = "PRIVATE KEY" if setting == "key" else "CERTIFICATE"
    odd = tmp_path / "odd.pem"
    odd.write_text(f"-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n")
    said = what_is_wrong(tmp_path, files(pair) | {setting: [str(odd)] if setting == "clientcas" else str(odd)})
    assert said.startswith(f"http.tls.{setting}: ")
    assert str(odd) in said


def test_the_key_of_another_certificate_is_refused(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    other = authority.issue("other")
    rsa_key = tmp_path / "rsa.key"
    rsa_key.write_bytes(private())
    for key in (other.key, rsa_key):
        assert what_is_wrong(tmp_path, files(pair, key=str(key))) == (
            f"http.tls.key: {key} is not the key of the certificate in {pair.certificate}"
        )


@pytest.mark.parametrize("old", [False, True])
def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(
    old: bool, tmp_path: Path, pair: Pair
) -> None:
    pair.key.write_bytes(private(password=b"x", old=old))
    assert what_is_wrong(tmp_path, files(pair)) == (
        f"http.tls.key: the private key in {pair.key} is encrypted, and there is nobody to ask for its password"
    )


@pytest.mark.parametrize(
    ("tls", "sentence"),
    [
        ({"clientcas": []}, "http.tls.clientcas: is empty, so no client can be verified; name files of authorities or leave it out"),
        ({"clientauth": "require-any-client-cert"}, "http.tls.clientauth: require-any-client-cert lets in whoever makes himself one; offered here are require-and-verify-client-cert, verify-client-cert-if-given, request-client-cert"),
        ({"clientauth": "require-and-verify-client-cert"}, "http.tls.clientauth: require-and-verify-client-cert needs http.tls.clientcas, by which clients are verified"),
        ({"clientauth": "verify-client-cert-if-given"}, "http.tls.clientauth: verify-client-cert-if-given needs http.tls.clientcas, by which clients are verified"),
        ({"clientcas": ["authority.pem"]}, "http.tls.clientcas: needs http.tls.certificate and http.tls.key: clients show certificates in TLS only"),
        ({"clientauth": "require"}, 'http.tls.clientauth: found "require"; allowed is "request-client-cert", '),
        ({"minimumtls": "tls1.1"}, "http.tls.minimumtls: "),
        ({"ciphersuites": ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA"]}, 'http.tls.ciphersuites[0]: found "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA"; allowed is a cipher suite by Go\'s name; did you mean "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"?'),
        ({"ciphersuites": ["TLS_RSA_WITH_RC4_128_SHA"]}, "http.tls.ciphersuites[0]: "),
        ({"letsencrypt": {"cachefile": "/a"}}, "http.tls.letsencrypt: not supported by this version; have certbot or lego write http.tls.certificate and http.tls.key, which are read again whenever they change"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(tls: Tls, sentence: str, tmp_path: Path) -> None:
    said = what_is_wrong(tmp_path, tls)
    assert sentence in said


def test_a_suite_that_openssl_does_not_have_is_refused(tmp_path: Path, pair: Pair) -> None:
    wanted = "TLS_RSA_WITH_3DES_EDE_CBC_SHA"
    said = what_is_wrong(tmp_path, files(pair, ciphersuites=[wanted]))
    assert said.startswith(f"http.tls.ciphersuites: {wanted} is not offered by OpenSSL")


@pytest.mark.parametrize("tls", [{"certificate": "/nowhere.pem", "key": "/nowhere.key"}, {"key": "a"}])
def test_check_and_serve_say_the_same(tls: Tls, tmp_path: Path) -> None:
    file = write(tmp_path, tls)
    said: list[str] = []
    for command in (["config", "check", str(file)], ["serve", str(file)]):
        done = subprocess.run(
            [sys.executable, "-m", "moorage_app", *command], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2
        assert done.stdout == ""
        said.append(done.stderr)
    assert said[0] == said[1]
    assert said[0].startswith(f"moorage: {file}: http.tls.")
    assert said[0].count("\n") == 1


# ---- what is good


def test_each_mode_and_suite_that_is_offered_is_good(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    authorities = [str(authority.file)]
    for mode in (None, "require-and-verify-client-cert", "verify-client-cert-if-given"):
        assert warned(tmp_path, files(pair, clientcas=authorities, clientauth=mode)) == []
    for suites in (["TLS_AES_128_GCM_SHA256"], ["TLS_RSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA"]):
        assert warned(tmp_path, files(pair, ciphersuites=suites)) == []


def test_one_file_may_have_both_certificate_and_key(tmp_path: Path, pair: Pair) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    assert warned(tmp_path, {"certificate": str(both), "key": str(both)}) == []


def test_what_has_no_effect_is_a_warning(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    suite = ["TLS_RSA_WITH_AES_128_GCM_SHA256"]
    assert warned(tmp_path, {"minimumtls": "tls1.3", "ciphersuites": suite}) == [
        "http.tls.minimumtls: has no effect without http.tls.certificate",
        "http.tls.ciphersuites: has no effect without http.tls.certificate",
    ]
    assert warned(tmp_path, files(pair, minimumtls="tls1.3", ciphersuites=suite)) == [
        "http.tls.ciphersuites: has no effect on TLS 1.3, which http.tls.minimumtls asks for"
    ]
    assert warned(
        tmp_path,
        files(pair, clientcas=[str(authority.file)], clientauth="request-client-cert"),
        h2c={"enabled": True},
    ) == [
        "http.tls.clientauth: what is not verified says nothing of a client, so none is asked for it",
        "http.h2c.enabled: has no effect with TLS, where clients agree upon HTTP/2 by ALPN",
    ]

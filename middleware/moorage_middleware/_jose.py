"""Signed tokens (JWT, RFC 7519) and the keys that prove who signed them (JWK, RFC 7517; X.509, RFC 5280).

What this module keeps:

- Nothing that a token says of itself makes it trusted: it may name one of the keys that are trusted already, or bring
  certificates that lead to one. A key in its header is never used.
- The algorithm has to be one for the kind of the key, so a public key is never taken for a shared secret.
- Whatever is sent is a token that is believed, or not, with a reason that quotes nothing of it but names.
- Only keys that are trusted are computed with, so nobody can send one that takes long.
"""

import base64
import hashlib
import re
import secrets
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.errors import InvalidKeyTypeError, JoseError, SecurityWarning
from joserfc.jwk import ECKey, JWKRegistry, Key, OctKey, thumbprint
from joserfc.jws import JWSRegistry

from moorage import Caller

from ._remembered import Remembered
from ._shown import is_name

_LONGEST = 48 << 10
_PARTS = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)", re.ASCII)
_CHAIN_MOST = 10
_SHOWN = 100
_BELIEVED_MOST = 10_000
_BELIEVED_HEAVIEST = 16 << 20
_OF_CALLER = 500
"""About how many bytes a caller takes beside the texts in it."""

Keys = Mapping[str, Key]
"""Trusted keys by their identifiers; one key may have several."""


class BadToken(Exception):
    """A token that is not believed; the text completes "the token is refused, since"."""


class _EmbeddedKey(msgspec.Struct, frozen=True):
    kid: str = ""
    x5c: tuple[str, ...] = ()


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str = ""
    x5c: tuple[str, ...] = ()
    jwk: _EmbeddedKey | None = None
    crit: object = None


class _Registered(msgspec.Struct, frozen=True):
    exp: float
    iss: str = ""
    sub: str = ""
    aud: str | tuple[str, ...] = ()
    nbf: float = 0


class Token(msgspec.Struct, frozen=True):
    """A token that nothing is known of yet, but that it has the form of one.

    Attributes:
        header: what it says of its signature.
        claims: what it says.
        signed: the bytes that are signed.
        signature: the bytes that sign them.
    """

    header: Mapping[str, object]
    claims: Mapping[str, object]
    signed: bytes
    signature: bytes

    @property
    def issuer(self) -> str | None:
        """Who it says it is from; None if it does not, or not with text."""
        issuer = self.claims.get("iss")
        return issuer if isinstance(issuer, str) else None


def parse_token(text: str) -> Token | None:
    """Return the token that `text` is, or None if it has not the form of one."""
    parts = _PARTS.fullmatch(text) if len(text) <= _LONGEST else None
    if parts is None:
        return None
    try:
        header, claims = (msgspec.json.decode(_decoded(part), type=dict[str, object]) for part in parts.groups()[:2])
        return Token(header, claims, text[: parts.end(2)].encode(), _decoded(parts[3]))
    except (ValueError, RecursionError):
        return None


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


class Headers(msgspec.Struct, frozen=True):
    """What a token says of who signed it.

    Attributes:
        algorithm: how.
        key: the identifier of a key; empty if it does not name one.
        chain: certificates of which the first is that of the key; empty if there are none.
    """

    algorithm: str
    key: str
    chain: tuple[str, ...]


def headers_of(token: Token) -> Headers:
    """Return what `token` says of who signed it.

    Raises:
        BadToken: that cannot be understood.
    """
    try:
        header = msgspec.convert(token.header, _Header)
    except msgspec.ValidationError as error:
        raise BadToken(f"its header is not that of a token: {error}") from None
    if "crit" in token.header:
        raise BadToken("its header demands what is not understood here")
    if header.x5c:
        return Headers(header.alg, "", header.x5c)
    if header.jwk is not None:
        return Headers(header.alg, header.jwk.kid, header.jwk.x5c)
    return Headers(header.alg, header.kid, ())


def check_signature(token: Token, headers: Headers, key: Key, allowed: Collection[str]) -> None:
    """Go on if `key` has signed `token`.

    Raises:
        BadToken: it has not, or the algorithm is not among those `allowed`, or not one for such a key.
    """
    algorithm = JWSRegistry.algorithms.get(headers.algorithm) if headers.algorithm in allowed else None
    if algorithm is None:
        raise BadToken(f"its algorithm {_shown(headers.algorithm)} is not allowed")
    try:
        algorithm.check_key(key)
        good = algorithm.verify(token.signed, token.signature, key)
    except (JoseError, ValueError) as error:
        raise BadToken(f"its key cannot verify {headers.algorithm}: {error}") from None
    if not good:
        raise BadToken("its signature is wrong")


def check_claims(token: Token, audience: Collection[str], now: float, leeway: float) -> tuple[str, float]:
    """Return the subject of `token` and until when it is good, if it is for one of `audience` and good at `now`.

    Raises:
        BadToken: it is not.
    """
    try:
        claims = msgspec.convert(token.claims, _Registered)
    except msgspec.ValidationError as error:
        raise BadToken(f"its claims are not those of a token: {error}") from None
    told = (claims.aud,) if isinstance(claims.aud, str) else claims.aud
    if not set(told) & set(audience):
        raise BadToken(f"it is for {_shown(', '.join(told))}, not for {', '.join(audience)}")
    if now > claims.exp + leeway:
        raise BadToken(f"it expired {now - claims.exp:.0f} s ago")
    if now < claims.nbf - leeway:
        raise BadToken(f"it is not good for another {claims.nbf - now:.0f} s")
    if not is_name(claims.sub):
        raise BadToken("its subject is no name")
    return claims.sub, claims.exp + leeway


def texts_of(claim: object) -> frozenset[str]:
    """Return what a claim says as texts: itself, or each of a list."""
    values = cast("list[object]", claim) if isinstance(claim, list) else [claim]
    return frozenset(text for value in values if (text := _text(value)) is not None)


def _text(value: object) -> str | None:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case _:
            return None


def _shown(text: str) -> str:
    return repr(text[:_SHOWN])


# ---- keys


class Bundle(msgspec.Struct, frozen=True):
    """Certificates that are trusted, and their keys."""

    roots: tuple[x509.Certificate, ...]
    keys: Keys


def read_key_set(data: bytes, *, secrets_too: bool) -> Keys:
    """Return the keys of a JWK Set; `secrets_too`: also those that are shared secrets.

    Keys of unknown kinds are left out (RFC 7517, 5), and so are those that are too weak.

    Raises:
        ValueError: it is none, or has no key of use.
    """
    try:
        told = msgspec.json.decode(data, type=dict[str, object])
        listed = msgspec.convert(told.get("keys"), list[dict[str, object]])
    except (ValueError, RecursionError):
        raise ValueError("it is no JWK Set, which is a JSON object with a list of keys") from None
    found: dict[str, Key] = {}
    for position, each in enumerate(listed):
        try:
            key = _imported(cast("dict[str, Any]", each))  # checked there
            identifier = each.get("kid") or key.thumbprint()
        except (InvalidKeyTypeError, SecurityWarning):
            continue
        except (JoseError, ValueError, TypeError, KeyError, UnsupportedAlgorithm) as error:
            raise ValueError(f"the key at keys[{position}] cannot be used ({type(error).__name__})") from None
        if isinstance(identifier, str) and (secrets_too or not isinstance(key, OctKey)):
            found[identifier] = key
    if not found:
        raise ValueError("it has no key of use")
    return found


def _imported(data: dict[str, Any] | bytes, kind: str | None = None) -> Key:
    """Return a key of joserfc.

    Raises:
        JoseError: it is none.
        SecurityWarning: it is too weak, in joserfc's view: RSA below 2,048 bits, a secret below 112.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecurityWarning)
        return JWKRegistry.import_key(data, kind)


def read_bundle(data: bytes) -> Bundle:
    """Return the certificates of a bundle (PEM), and their keys by what token servers call them.

    Raises:
        ValueError: it has none.
    """
    try:
        roots = x509.load_pem_x509_certificates(data)
        named = [(certificate, key) for certificate in roots if (key := _key_of(certificate)) is not None]
    except ValueError:
        raise ValueError("it has no certificates in PEM form, or broken ones") from None
    return Bundle(tuple(roots), {name: key for each, key in named for name in _identifiers(each, key)})


def _key_of(certificate: x509.Certificate) -> Key | None:
    """Return the key of a certificate, or None if it is of a kind that tokens are not signed with, or too weak."""
    try:
        public = certificate.public_key()
    except UnsupportedAlgorithm:
        return None
    match public:
        case RSAPublicKey():
            kind = "RSA"
        case EllipticCurvePublicKey():
            kind = "EC"
        case Ed25519PublicKey():
            kind = "OKP"
        case _:
            return None
    try:
        return _imported(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), kind)
    except (JoseError, SecurityWarning):
        return None


def _identifiers(certificate: x509.Certificate, key: Key) -> Iterable[str]:
    """Give the names of a certificate's key: by RFC 7638, by distribution 3, and by distribution 2."""
    yield key.thumbprint()
    if isinstance(key, ECKey):
        # distribution leaves the zeros out that a coordinate may begin with.
        told = key.as_dict(private=False)
        short = {name: _without_zeros(str(told[name])) for name in ("x", "y")}
        yield thumbprint({"crv": told["crv"], "kty": "EC", **short})
    encoded = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    name = base64.b32encode(hashlib.sha256(encoded).digest()[:30]).decode()
    yield ":".join(name[at : at + 4] for at in range(0, len(name), 4))


def _without_zeros(coordinate: str) -> str:
    return base64.urlsafe_b64encode(_decoded(coordinate).lstrip(b"\0")).rstrip(b"=").decode()


def key_of_chain(chain: Sequence[str], roots: Sequence[x509.Certificate], now: float) -> Key:
    """Return the key of the first certificate of `chain` (an `x5c`), which the others link to one of `roots`.

    It is looked for from the roots on, so that no signature is checked with a key that is not trusted.

    Raises:
        BadToken: they do not, or it is not good at `now`.
    """
    leaf, *others = _certificates(chain)
    at = datetime.fromtimestamp(now, UTC)
    key = _key_of(leaf)
    if key is None or not _is_good(leaf, at):
        raise BadToken("its certificate is not valid now, or of a kind that is not understood")
    if leaf in roots:
        return key
    trusted = [(root, _path_length(root)) for root in roots if _is_good(root, at) and _may_sign(root)]
    while trusted:
        issuer, length = trusted.pop()
        if _has_issued(issuer, leaf):
            return key
        if length > 0:
            for each in [each for each in others if _has_issued(issuer, each)]:
                others.remove(each)
                if _is_good(each, at) and _may_sign(each):
                    trusted.append((each, min(length - 1, _path_length(each))))
    raise BadToken("its certificates do not lead to one that is trusted")


def _certificates(chain: Sequence[str]) -> list[x509.Certificate]:
    if len(chain) > _CHAIN_MOST:
        raise BadToken(f"it brings more than {_CHAIN_MOST} certificates")
    try:
        return [x509.load_der_x509_certificate(base64.b64decode(each, validate=True)) for each in chain]
    except ValueError:
        raise BadToken("it brings what is no certificate") from None


_UNDERSTOOD = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)


def _is_good(certificate: x509.Certificate, at: datetime) -> bool:
    """Tell whether a certificate is valid, and demands nothing that is not understood."""
    try:
        unknown = [each for each in certificate.extensions if each.critical and not isinstance(each.value, _UNDERSTOOD)]
    except (ValueError, x509.DuplicateExtension):
        return False
    return not unknown and certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc


def _may_sign(certificate: x509.Certificate) -> bool:
    """Tell whether a certificate is one of an authority, without limits to which names it may sign for."""
    if certificate.version is x509.Version.v1:
        return True
    values = [each.value for each in certificate.extensions]
    usages = [value.key_cert_sign for value in values if isinstance(value, x509.KeyUsage)]
    return (
        any(isinstance(value, x509.BasicConstraints) and value.ca for value in values)
        and all(usages)
        and not any(isinstance(value, x509.NameConstraints) for value in values)
    )


def _path_length(certificate: x509.Certificate) -> int:
    """Return how many other authorities may stand between a certificate and one that is not an authority's."""
    for each in certificate.extensions:
        if isinstance(each.value, x509.BasicConstraints) and each.value.path_length is not None:
            return each.value.path_length
    return _CHAIN_MOST


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


# ---- what was believed


class Believed:
    """Callers by tokens that were verified, so that each is verified once. Bounded; it holds no token, only digests."""

    def __init__(self) -> None:
        """Begin with none."""
        self._secret = secrets.token_bytes(32)
        self._callers: Remembered[bytes, tuple[Caller, float]] = Remembered(
            most=_BELIEVED_MOST, heaviest=_BELIEVED_HEAVIEST
        )

    def __len__(self) -> int:
        """Return how many tokens are remembered."""
        return len(self._callers)

    def caller(self, text: str, now: float) -> Caller | None:
        """Return whose token `text` is, if it was believed and is still good at `now`."""
        found = self._callers.get(self._digest(text))
        return None if found is None or now > found[1] else found[0]

    def remember(self, text: str, caller: Caller, until: float) -> None:
        """Believe in the token `text` until the time `until`."""
        grants = caller.grants or ()
        weight = len(text) + _OF_CALLER * (1 + len(grants) + len(caller.groups))
        self._callers.put(self._digest(text), (caller, until), weight=weight)

    def clear(self) -> None:
        """Begin anew: other keys are trusted now."""
        self._callers.clear()

    def _digest(self, text: str) -> bytes:
        # Keyed BLAKE2 is a MAC as HMAC is, in a quarter of the time.
        return hashlib.blake2b(text.encode(errors="surrogatepass"), key=self._secret, digest_size=32).digest()

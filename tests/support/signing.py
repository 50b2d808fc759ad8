"""Tokens, keys and certificates, made by PyJWT and cryptography, and where keys are published."""

import base64
import json
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import cast

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from loopback import LoopbackHandler, LoopbackServer, serving

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

ISSUER = "tokens.example"
SERVICE = "registry.example"


def new_key(algorithm: str) -> PrivateKey:
    """Return a new key for signatures of that kind."""
    match algorithm:
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ES384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ES512":
            return ec.generate_private_key(ec.SECP521R1())
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return rsa.generate_private_key(65537, 2048)


def public_jwk(key: PrivateKey, kid: str, **more: object) -> dict[str, object]:
    """Return the public half of `key` as a JWK."""
    public = key.public_key()
    match public:
        case rsa.RSAPublicKey():
            text = RSAAlgorithm.to_jwk(public)
        case ec.EllipticCurvePublicKey():
            text = ECAlgorithm.to_jwk(public)
        case _:
            text = OKPAlgorithm.to_jwk(public)
    told = cast("dict[str, object]", json.loads(text))  # a JWK is one
    told.pop("key_ops", None)
    return told | {"kid": kid} | more


def key_set(*keys: dict[str, object]) -> str:
    """Return a JWK Set."""
    return json.dumps({"keys": keys})


def claims(**changes: object) -> dict[str, object]:
    """Return the claims of a good token, with changes; None takes one away."""
    now = int(time.time())
    good: dict[str, object] = {
        "iss": ISSUER,
        "sub": "ann",
        "aud": SERVICE,
        "exp": now + 300,
        "nbf": now - 10,
        "iat": now,
        "jti": "1",
        "access": [{"type": "repository", "name": "team/app", "actions": ["pull", "push"]}],
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def signed(key: PrivateKey | str, told: dict[str, object], algorithm: str = "ES256", **headers: object) -> str:
    """Return a token that says `told`."""
    return jwt.encode(told, key, algorithm=algorithm, headers=headers)


def raw_token(header: object, told: object, signature: bytes = b"x") -> str:
    """Return what has the form of a token, whatever is in it."""
    parts = (json.dumps(header).encode(), json.dumps(told).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def certificate(
    subject: str,
    key: PrivateKey,
    issuer: str = "",
    issuer_key: PrivateKey | None = None,
    *,
    authority: bool = False,
    path_length: int | None = None,
    days: tuple[int, int] = (-1, 1),
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    name: x509.Name | None = None,
) -> x509.Certificate:
    """Return a certificate; without an issuer one that signed itself."""
    now = datetime.now(UTC)
    builder = (
        x509
        .CertificateBuilder()
        .subject_name(name if name is not None else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer or subject)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(authority, path_length), critical=True)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    signer = issuer_key or key
    return builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else SHA256())


def pem(*certificates: x509.Certificate) -> bytes:
    """Return a bundle."""
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def x5c(*certificates: x509.Certificate) -> list[str]:
    """Return a chain as headers of tokens have it."""
    return [base64.b64encode(each.public_bytes(Encoding.DER)).decode() for each in certificates]


class Published:
    """What a server answers with, by path; `asked` is how often, and `status` what it says instead of 200."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.url = ""
        self.answers: dict[str, str] = {}
        self.asked = 0
        self.status = 200


@contextmanager
def publishing() -> Generator[Published]:
    """Run an HTTP server on loopback, in a thread."""
    published = Published()

    class Handler(LoopbackHandler):
        def reply(self) -> None:
            published.asked += 1
            answer = published.answers.get(self.path)
            body = (answer or "").encode()
            self.send_response(404 if answer is None else published.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = LoopbackServer(Handler)
    published.url = server.url
    with serving(server):
        yield published

"""Certificates as files, and clients that know who issued them."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

LOCAL = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, and the certificate once more as it goes over the wire."""

    certificate: Path
    key: Path
    der: bytes

    def take_the_place_of(self, other: "Pair") -> None:
        """Put both files, each in one step, where `other` has its own."""
        for mine, place in ((self.key, other.key), (self.certificate, other.certificate)):
            new = place.with_suffix(".new")
            new.write_bytes(mine.read_bytes())
            new.replace(place)


class Authority:
    """Issues certificates, all below one folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        """Make an authority, whose own certificate is `file`."""
        self._folder = folder
        self._authority = trustme.CA()
        self.file = folder / f"{name}.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *identities: str) -> Pair:
        """Issue a certificate to `identities`, in files called `name`."""
        issued = self._authority.issue_cert(*(identities or LOCAL))
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key", _der(issued.cert_chain_pems[0].bytes()))
        pair.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        pair.key.write_bytes(issued.private_key_pem.bytes())
        return pair

    def trusted(self, identity: Pair | None = None) -> ssl.SSLContext:
        """Return how a client speaks TLS that trusts this authority and may show `identity`."""
        context = ssl.create_default_context(cafile=self.file)
        if identity is not None:
            context.load_cert_chain(identity.certificate, identity.key)
        return context


def _der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))

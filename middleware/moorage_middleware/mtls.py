"""The authenticator `mtls`: who asks is told by the client certificate that the TLS of the registry has verified."""

import hashlib
import logging

from cryptography import x509
from cryptography.x509.oid import NameOID

from moorage import Caller, Origin

from ._authenticators import Identity, Mtls
from ._remembered import Remembered
from ._shown import is_name

_log = logging.getLogger("moorage.auth.mtls")

_MOST = 1000
_NOBODY = Caller()


class Certificates:
    """Knows callers by their certificates. A certificate is looked into once."""

    challenge = ""

    def __init__(self, options: Mtls) -> None:
        """Find the name of a caller where `options` say."""
        self._options = options
        self._callers: Remembered[bytes, Caller] = Remembered(most=_MOST)

    async def __call__(self, origin: Origin, /) -> Caller | None:
        """Return whose certificate it is, or None if there is none, or none with a name of the wanted kind."""
        shown = origin.tls_peer
        if shown is None:
            return None
        digest = hashlib.sha256(shown).digest()
        caller = self._callers.get(digest)
        if caller is None:
            caller = self._caller(shown, origin.address)
            self._callers.put(digest, caller)
        return caller if caller.name else None

    def _caller(self, shown: bytes, address: str) -> Caller:
        """Return whose certificate it is; a caller without a name for nobody."""
        try:
            certificate = x509.load_der_x509_certificate(shown)
            names = [name for kind in self._options.identity for name in _names(certificate, kind)]
        except (ValueError, x509.DuplicateExtension) as error:
            _log.info("the certificate from %s cannot be read: %s", address, error)
            return _NOBODY
        pattern = self._options.pattern
        for name in names:
            if name and is_name(name) and (pattern is None or pattern.fullmatch(name)):
                return Caller(name=name, groups=self._groups(certificate))
        wanted = ", ".join(self._options.identity) + ("" if pattern is None else f" that matches {pattern.text}")
        _log.info("the certificate from %s has no %s", address, wanted)
        return _NOBODY

    def _groups(self, certificate: x509.Certificate) -> frozenset[str]:
        if self._options.groups is None:
            return frozenset()
        return frozenset(filter(is_name, _attributes(certificate, NameOID.ORGANIZATIONAL_UNIT_NAME)))


def _names(certificate: x509.Certificate, kind: Identity) -> list[str]:
    """Return the names of one kind in a certificate, in their order."""
    if kind == "subject":
        return [certificate.subject.rfc4514_string()]
    if kind == "cn":
        return _attributes(certificate, NameOID.COMMON_NAME)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    match kind:
        case "san-uri":
            return names.get_values_for_type(x509.UniformResourceIdentifier)
        case "san-dns":
            return names.get_values_for_type(x509.DNSName)
        case "san-email":
            return names.get_values_for_type(x509.RFC822Name)


def _attributes(certificate: x509.Certificate, kind: x509.ObjectIdentifier) -> list[str]:
    values = [each.value for each in certificate.subject.get_attributes_for_oid(kind)]
    return [value for value in values if isinstance(value, str)]

"""TLS: what `http.tls` says, certificates that follow their files, and how a connection begins.

Rules this file keeps:

- A connection keeps the certificates that it began with; one that comes later gets those that the files have by then.
- Files that cannot be used change nothing: that is told once, and what was read before stays in use.
- A client's certificate that was not verified is never passed on, so none is asked for that would not be verified.
- Nothing is waited for without end, and who speaks something else is let go without a word, but for clear-text HTTP.
"""

import logging
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

from moorage import Configuration

from .tls_stream import TlsStream

_log = logging.getLogger("moorage.tls")

HANDSHAKE_SECONDS: Final = 30.0
"""How long a connection may take until it speaks TLS."""
LOOK_SECONDS: Final = 1.0
"""How often is looked whether files have changed."""

_HANDSHAKE: Final = b"\x16"
"""The first byte of TLS."""
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 1 << 20
_SENTENCE: Final = b"This port speaks HTTPS, and the request came in clear text: its URL must begin with https://.\n"
_CLEAR_TEXT: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_SENTENCE), _SENTENCE)
)

_SUITES: Final[Mapping[str, str]] = {
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA": "DES-CBC3-SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA": "ECDHE-RSA-DES-CBC3-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
"""What OpenSSL calls suites of TLS 1.2; those of 1.3 are all there always, for neither Go nor Python lets anybody choose."""
_DEFAULT_SUITES: Final = tuple(
    name for name in _SUITES if name.startswith("TLS_ECDHE_") and ("_GCM_" in name or "_CHACHA20_" in name)
)

_CLIENT_AUTH: Final = {
    None: ssl.CERT_REQUIRED,
    "require-and-verify-client-cert": ssl.CERT_REQUIRED,
    "verify-client-cert-if-given": ssl.CERT_OPTIONAL,
    "request-client-cert": ssl.CERT_NONE,
}
_UNVERIFIED: Final = "request-client-cert"
_NOT_OFFERED: Final = "require-any-client-cert"

_CERTIFICATE: Final = b"-----BEGIN CERTIFICATE-----"
_KEY: Final = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )?PRIVATE KEY-----")
_ENCRYPTED: Final = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED", re.MULTILINE)

_OF_ANOTHER: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
"""What OpenSSL says of a key that is not the certificate's; the last of one that is of another kind."""

Fingerprint = tuple[tuple[int, ...] | None, ...]
"""What the system says of files, as far as it changes with them."""


class _Unusable(Exception):
    """A setting of `http.tls` that cannot be used; `key` is its name there."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


class ServerTls:
    """What makes connections secure, for all workers: made before they are forked, so that all know the same sessions."""

    def __init__(self, configuration: Configuration) -> None:
        """Speak TLS as `configuration` says, and read its files."""
        self._configuration = configuration
        tls = configuration.http.tls
        self._files = (tls.certificate, tls.key, *tls.client_cas)
        self._read = _fingerprint(self._files)
        self._context = _context(configuration)
        self._beginning: set[trio.CancelScope] = set()
        self._draining = False

    def drain(self) -> None:
        """Let go of connections that do not speak TLS yet."""
        self._draining = True
        for scope in self._beginning:
            scope.cancel()

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the files again whenever they have changed; never returns."""
        found = await trio.to_thread.run_sync(self._look, None, abandon_on_cancel=True)
        task_status.started()
        while True:
            await trio.sleep(LOOK_SECONDS)
            found = await trio.to_thread.run_sync(self._look, found, abandon_on_cancel=True)

    def _look(self, before: Fingerprint | None) -> Fingerprint:
        """Read the files if they have changed, and not since the look that found `before`: a pair is two files.

        Runs in a thread, for they may lie where reading takes long.
        """
        found = _fingerprint(self._files)
        if found != self._read and before in {None, found}:
            self._read = found
            try:
                self._context = _context(self._configuration)
            except _Unusable as error:
                _log.error("http.tls.%s: %s; the certificates that were read before stay in use", error.key, error)
            else:
                _log.info("http.tls: the files have changed, and new connections use what they have now")
        return found

    async def accept(self, stream: trio.SocketStream) -> TlsStream | None:
        """Return `stream` with TLS on it; None when its client speaks none, and the connection is closed."""
        try:
            with trio.move_on_after(HANDSHAKE_SECONDS) as scope:
                self._beginning.add(scope)
                if self._draining:
                    scope.cancel()
                try:
                    first = await stream.socket.recv(1, socket.MSG_PEEK)
                    if first == _HANDSHAKE:
                        secured = TlsStream(stream, self._context)
                        await secured.do_handshake()
                        return secured
                    if first.isalpha():
                        await _refuse_clear_text(stream)
                finally:
                    self._beginning.discard(scope)
        except (OSError, trio.BrokenResourceError) as error:
            _log.debug("no TLS was agreed upon: %s", error.__cause__ or error)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        await trio.aclose_forcefully(stream)
        return None


async def _refuse_clear_text(stream: trio.SocketStream) -> None:
    """Say in clear text what a client has done that sends HTTP without TLS."""
    await stream.send_all(_CLEAR_TEXT)
    await stream.send_eof()
    left = _LINGER_BYTES
    # Closed with something unread, the connection would be reset and the answer lost.
    with trio.move_on_after(_LINGER_SECONDS):
        while left > 0 and (data := await stream.receive_some()):
            left -= len(data)


# ---- settings


def server_tls(configuration: Configuration) -> ServerTls | None:
    """Return what makes connections secure as `http` says; None if it wants clear text.

    Raises:
        ConfigurationError: it cannot be used.
    """
    try:
        _check(configuration)
        return ServerTls(configuration) if configuration.http.tls.certificate else None
    except _Unusable as error:
        raise configuration.document.error(("http", "tls", error.key), str(error)) from error


def tls_warnings(configuration: Configuration) -> tuple[str, ...]:
    """Return what has no effect of what is said of TLS and HTTP/2, one sentence each."""
    http = configuration.http
    tls = http.tls
    idle: dict[tuple[str, ...], str] = {}
    if not tls.certificate:
        for name, value in (("minimumtls", tls.minimum_tls), ("ciphersuites", tls.cipher_suites)):
            if value:
                idle["http", "tls", name] = "has no effect without http.tls.certificate"
    else:
        if tls.cipher_suites and tls.minimum_tls == "tls1.3":
            idle["http", "tls", "ciphersuites"] = "has no effect on TLS 1.3, which http.tls.minimumtls asks for"
        if tls.client_auth == _UNVERIFIED:
            idle["http", "tls", "clientauth"] = "what is not verified says nothing of a client, so none is asked for it"
        if http.h2c.enabled:
            idle["http", "h2c", "enabled"] = "has no effect with TLS, where clients agree upon HTTP/2 by ALPN"
    return tuple(str(configuration.document.error(key, sentence)) for key, sentence in idle.items())


def _check(configuration: Configuration) -> None:
    """Look at what the settings say of each other.

    Raises:
        _Unusable: they make no sense together.
    """
    tls = configuration.http.tls
    if tls.certificate and not tls.key:
        raise _Unusable("certificate", "needs http.tls.key beside it")
    if tls.key and not tls.certificate:
        raise _Unusable("key", "needs http.tls.certificate beside it")
    if configuration.section("http.tls.clientcas") == []:
        raise _Unusable(
            "clientcas", "is empty, so no client can be verified; name files of authorities or leave it out"
        )
    if tls.client_cas and not tls.certificate:
        raise _Unusable(
            "clientcas", "needs http.tls.certificate and http.tls.key: clients show certificates in TLS only"
        )
    if tls.client_auth == _NOT_OFFERED:
        others = ", ".join(name for name in _CLIENT_AUTH if name)
        raise _Unusable("clientauth", f"{_NOT_OFFERED} lets in whoever makes himself one; offered here are {others}")
    if tls.client_auth not in {None, _UNVERIFIED} and not tls.client_cas:
        raise _Unusable("clientauth", f"{tls.client_auth} needs http.tls.clientcas, by which clients are verified")


def _protocols(disabled: bool | None) -> list[str]:
    """Return what is offered by ALPN, the best first: HTTP/1.1, by far the faster here, unless HTTP/2 is asked for."""
    match disabled:
        case None:
            return ["http/1.1", "h2"]
        case False:
            return ["h2", "http/1.1"]
        case True:
            return ["http/1.1"]


def _context(configuration: Configuration) -> ssl.SSLContext:
    """Return how TLS is spoken, with what the files have now.

    Raises:
        _Unusable: that cannot be.
    """
    tls = configuration.http.tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Clients could have it done again and again, and a server would have to read before it can write.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Clients know which suite their processor is quick at; those in Go begin with AES-128, which costs less here too.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(_protocols(configuration.http.http2.disabled))
    suites = {name: _SUITES[name] for name in tls.cipher_suites or _DEFAULT_SUITES if name in _SUITES}
    if tls.minimum_tls == "tls1.3" or not suites:
        # Those of TLS 1.3 cannot be chosen; where no others are named, TLS 1.2 has none.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    else:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for name, suite in suites.items():
            _choose(context, suite, name)
        _choose(context, ":".join(suites.values()), "")
    _load_pair(context, tls.certificate, tls.key)
    if tls.client_cas:
        context.verify_mode = _CLIENT_AUTH[tls.client_auth]
        # As in Go, what the files have is trusted, be it the root of a chain or not.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for file in tls.client_cas:
        _load_authorities(context, file)
    return context


def _choose(context: ssl.SSLContext, suites: str, name: str) -> None:
    try:
        context.set_ciphers(suites)
    except ssl.SSLError as error:
        raise _Unusable("ciphersuites", f"{name} is not offered by {ssl.OPENSSL_VERSION}") from error


# ---- files


def _fingerprint(files: Sequence[str]) -> Fingerprint:
    found: list[tuple[int, ...] | None] = []
    for file in files:
        try:
            stat = Path(file).stat()
        except (OSError, ValueError):
            found.append(None)
        else:
            found.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _load_pair(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """Have `context` show a certificate.

    Raises:
        _Unusable: a file cannot be read, is no PEM, or is not the other one's.
    """
    if _CERTIFICATE not in _content("certificate", certificate):
        raise _Unusable("certificate", f"there is no certificate in PEM in {certificate}")
    secret = _content("key", key)
    if _KEY.search(secret) is None:
        raise _Unusable("key", f"there is no private key in PEM in {key}")
    if _ENCRYPTED.search(secret) is not None:
        raise _Unusable("key", f"the private key in {key} is encrypted, and there is nobody to ask for its password")
    try:
        # Alone first, for OpenSSL does not say which of the two files it means.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(certificate)
    except (OSError, ssl.SSLError) as error:
        raise _Unusable("certificate", f"the certificate in {certificate} cannot be read: {_reason(error)}") from error
    try:
        # A key that became encrypted meanwhile must not have the terminal asked for a password.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        reason = error.reason or ""
        if reason in _OF_ANOTHER:
            raise _Unusable("key", f"{key} is not the key of the certificate in {certificate}") from error
        named, file = ("certificate", certificate) if reason.startswith(("EE_", "CA_")) else ("key", key)
        raise _Unusable(named, f"{file} cannot be used: {_reason(error)}") from error
    except OSError as error:
        raise _Unusable("key", f"{key} cannot be read: {_reason(error)}") from error


def _load_authorities(context: ssl.SSLContext, file: str) -> None:
    """Have `context` trust the certificates in `file`.

    Raises:
        _Unusable: there are none.
    """
    if _CERTIFICATE not in _content("clientcas", file):
        raise _Unusable("clientcas", f"there is no certificate in PEM in {file}")
    try:
        context.load_verify_locations(file)
    except (OSError, ssl.SSLError) as error:
        raise _Unusable("clientcas", f"the certificates in {file} cannot be read: {_reason(error)}") from error


def _content(key: str, file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:
        # ValueError: a name with a NUL.
        raise _Unusable(key, f"{file or 'an empty name'} cannot be read: {_reason(error)}") from error


def _reason(error: OSError | ValueError) -> str:
    """Return what the system or OpenSSL says, without where in its code."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return (isinstance(error, OSError) and error.strerror) or str(error)

"""Who this registry is to Google: access tokens, renewed before they end, and signatures of URLs (V4)."""

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, cast
from urllib.parse import quote, urlsplit

import google.auth
import google.auth.transport.requests
import trio
from google.auth import iam, identity_pool
from google.auth.exceptions import GoogleAuthError
from google.oauth2 import credentials as authorized_user, service_account

from moorage import ConfigurationError, StoreUnavailable

from ._gcs_options import GCSOptions

NAME = "gcs"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_SIGNING_SCOPE = "https://www.googleapis.com/auth/iam"
_EARLY_SECONDS = 300.0


class _Credentials(Protocol):
    """What is used of Google's credentials, which have no types."""

    token: str | None
    expiry: datetime | None
    valid: bool

    def refresh(self, request: object) -> None: ...


class GoogleCredentials:
    """Tokens of one identity; make it with `find`."""

    def __init__(self, credentials: _Credentials | None, proxy: str) -> None:
        """Hand out tokens of `credentials`; None: send none."""
        self._credentials = credentials
        self._proxy = proxy
        self._renewing = trio.Lock()

    @classmethod
    async def find(cls, options: GCSOptions) -> "GoogleCredentials":
        """Find the credentials that `options` name, or those of the default chain.

        Raises:
            ConfigurationError: there are none, or they cannot be read.
        """
        if options.anonymous:
            return cls(None, options.proxy)
        try:
            return cls(await trio.to_thread.run_sync(_load, options), options.proxy)
        except (GoogleAuthError, OSError, ValueError, KeyError) as error:
            named = "keyfile" if options.keyfile else "credentials"
            raise ConfigurationError(f"{named}: {str(error).partition(chr(10))[0]}") from error

    async def headers(self) -> Mapping[str, str]:
        """Return what tells the service who asks.

        Raises:
            StoreUnavailable: no token is to be had.
        """
        if self._credentials is None:
            return {}
        await trio.lowlevel.checkpoint()
        if self._ends_soon():
            async with self._renewing:
                if self._ends_soon():
                    await self._renew()
        return {"Authorization": f"Bearer {self._credentials.token}"}

    def _ends_soon(self) -> bool:
        credentials = self._credentials
        if credentials is None or credentials.token is None or not credentials.valid:
            return credentials is not None
        left = credentials.expiry.replace(tzinfo=UTC) - datetime.now(UTC) if credentials.expiry else None
        return left is not None and left.total_seconds() < _EARLY_SECONDS

    async def _renew(self) -> None:
        credentials = self._credentials
        if credentials is None:
            return
        try:
            await trio.to_thread.run_sync(self._refresh, abandon_on_cancel=True)
        except (GoogleAuthError, OSError) as error:
            # The one that there is may be good for some minutes yet.
            if not credentials.valid:
                said = str(error).partition("\n")[0]
                raise StoreUnavailable(f"no token from Google: {said}", driver=NAME, operation="stat") from error

    def _refresh(self) -> None:
        if self._credentials is not None:
            self._credentials.refresh(self._request())

    def _request(self) -> object:
        make = cast("Callable[..., object]", google.auth.transport.requests.Request)
        return make()

    async def signed_url(self, base: str, path: str, seconds: int, now: datetime) -> str | None:
        """Return a URL that GETs `path` below `base` for a while; None if this identity has nothing to sign with.

        Google's documentation calls it the V4 signing process; where there is no private key, IAM signs.
        """
        email = getattr(self._credentials, "service_account_email", None)
        if not isinstance(email, str) or "@" not in email:
            await trio.lowlevel.checkpoint()
            return None
        day = f"{now:%Y%m%d}/auto/storage/goog4_request"
        stamp = f"{now:%Y%m%dT%H%M%SZ}"
        query = {
            "X-Goog-Algorithm": "GOOG4-RSA-SHA256",
            "X-Goog-Credential": f"{email}/{day}",
            "X-Goog-Date": stamp,
            "X-Goog-Expires": str(seconds),
            "X-Goog-SignedHeaders": "host",
        }
        listed = "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted(query.items()))
        where = quote(path, safe="/~")
        canonical = f"GET\n{where}\n{listed}\nhost:{urlsplit(base).netloc}\n\nhost\nUNSIGNED-PAYLOAD"
        to_sign = f"GOOG4-RSA-SHA256\n{stamp}\n{day}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        try:
            signature = await trio.to_thread.run_sync(self._sign, email, to_sign.encode(), abandon_on_cancel=True)
        except (GoogleAuthError, OSError) as error:
            said = str(error).partition("\n")[0]
            raise StoreUnavailable(f"IAM does not sign: {said}", driver=NAME, operation="url") from error
        return f"{base}{where}?{listed}&X-Goog-Signature={signature.hex()}"

    def _sign(self, email: str, data: bytes) -> bytes:
        own = cast("Callable[[bytes], bytes] | None", getattr(self._credentials, "sign_bytes", None))
        if own is not None and getattr(self._credentials, "signer", None) is not None:
            return own(data)
        signer = cast("Callable[..., object]", iam.Signer)(self._request(), self._credentials, email)
        return cast("Callable[[bytes], bytes]", getattr(signer, "sign"))(data)  # noqa: B009 - untyped


def _load(options: GCSOptions) -> _Credentials:
    """Read or look for credentials; blocking."""
    scopes = [_SCOPE, _SIGNING_SCOPE]
    if not options.keyfile and options.credentials is None:
        default = cast("Callable[..., tuple[_Credentials, object]]", getattr(google.auth, "default"))  # noqa: B009 - untyped
        return default(scopes=scopes)[0]
    info: object = options.credentials
    if options.keyfile:
        info = json.loads(Path(options.keyfile).read_text(encoding="utf-8"))
    if not isinstance(info, Mapping):
        raise ValueError("is no map of credentials")  # noqa: TRY004 - what is wrong is a value of the configuration
    told = cast("Mapping[str, object]", info)
    makers: dict[object, tuple[object, str]] = {
        "service_account": (service_account.Credentials, "from_service_account_info"),
        "authorized_user": (authorized_user.Credentials, "from_authorized_user_info"),
        "external_account": (identity_pool.Credentials, "from_info"),
    }
    kind = told.get("type")
    if kind not in makers:
        raise ValueError(f"type: found {kind!r}; allowed is {', '.join(map(str, makers))}")
    # Google's library has no types.
    make = cast("Callable[..., _Credentials]", getattr(*makers[kind]))
    return make(dict(told), scopes=scopes)

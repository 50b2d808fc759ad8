"""Options of `storage: {gcs: {...}}`: distribution's, and what its users miss there."""

from collections.abc import Mapping

import msgspec

from moorage import ConfigurationError

from ._values import ROOT_LIMIT, Flag, Seconds, Whole

QUANTUM = 256 << 10
_PARALLEL_MINIMUM = 25


class GCSOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of `storage: {gcs: {...}}`.

    Attributes:
        bucket: the bucket; it must exist.
        keyfile: a service account's key, or another file of credentials that Google's tools write.
        credentials: what such a file has, as a map. Without both, the default chain finds credentials:
            `GOOGLE_APPLICATION_CREDENTIALS`, workload identity, the metadata server.
        anonymous: send no credentials.
        rootdirectory: a prefix of all keys.
        chunksize: bytes of a part of an upload; parts grow where an upload has many.
        maxconcurrency: requests under way at once, at least 25.
        useragent: what is added to the name that requests give.
        endpoint: URL of another service that speaks the JSON API.
        userproject: the project that pays for requests to the bucket of another.
        redirectendpoint: scheme and host of the URLs that clients are sent to, where that is another.
        redirectlifetime: how long such a URL is good.
        cacert: a file of certificates to trust instead of the system's.
        skipverify: do not verify certificates.
        proxy: URL of a proxy.
        connecttimeout: how long to wait for a connection.
        readtimeout: how long to wait for bytes.
        uploadmemory: bytes that all uploads of one process may hold.
    """

    bucket: str
    keyfile: str = ""
    credentials: Mapping[str, object] | None = None
    anonymous: Flag = Flag(0)
    rootdirectory: str = ""
    chunksize: Whole = Whole(16 << 20)
    maxconcurrency: Whole = Whole(50)
    useragent: str = ""
    endpoint: str = ""
    userproject: str = ""
    redirectendpoint: str = ""
    redirectlifetime: Seconds = Seconds(1200)
    cacert: str = ""
    skipverify: Flag = Flag(0)
    proxy: str = ""
    connecttimeout: Seconds = Seconds(5)
    readtimeout: Seconds = Seconds(60)
    uploadmemory: Whole = Whole(256 << 20)

    @property
    def root(self) -> str:
        """What goes before each key: empty, or ending in a slash."""
        trimmed = self.rootdirectory.strip("/")
        return trimmed + "/" if trimmed else ""

    @property
    def url(self) -> str:
        """The service's URL, without a slash at its end."""
        return self.endpoint.rstrip("/") or "https://storage.googleapis.com"

    @property
    def at_once(self) -> int:
        """How many requests may be under way."""
        return max(int(self.maxconcurrency), _PARALLEL_MINIMUM)

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigurationError: something cannot; names the option.
        """
        checks = (
            (not self.bucket or "/" in self.bucket, "bucket: is no name of a bucket"),
            (bool(self.keyfile) and self.credentials is not None, "keyfile, credentials: one excludes the other"),
            (
                bool(self.anonymous) and bool(self.keyfile or self.credentials),
                "anonymous: is of no use with keyfile or credentials",
            ),
            (
                not self.chunksize or self.chunksize % QUANTUM != 0,
                "chunksize: the service takes multiples of 256 KiB",
            ),
            (
                bool(self.endpoint) and not self.endpoint.startswith(("http://", "https://")),
                "endpoint: is a URL with http or https",
            ),
            (
                bool(self.redirectendpoint)
                and (
                    not self.redirectendpoint.startswith(("http://", "https://"))
                    or "/" in self.redirectendpoint.partition("://")[2].rstrip("/")
                ),
                "redirectendpoint: is a scheme and a host, nothing more",
            ),
            (len(self.root) > ROOT_LIMIT, f"rootdirectory: at most {ROOT_LIMIT} characters"),
            (self.redirectlifetime > 7 * 24 * 3600, "redirectlifetime: at most 7 days"),
            (bool(self.cacert) and bool(self.skipverify), "cacert, skipverify: one excludes the other"),
        )
        for wrong, problem in checks:
            if wrong:
                raise ConfigurationError(problem)

"""Options of `storage: {s3: {...}}`: distribution's, and what its users miss there."""

from typing import Literal

import msgspec

from moorage import ConfigurationError

from ._values import ROOT_LIMIT, Flag, Seconds, Whole

_MIB = 1 << 20
_PART_MINIMUM = 5 * _MIB
_PART_MAXIMUM = 5 << 30

StorageClass = Literal[
    "NONE",
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "OUTPOSTS",
    "GLACIER_IR",
    "EXPRESS_ONEZONE",
]
_CLASSES: tuple[str, ...] = (
    "NONE",
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "OUTPOSTS",
    "GLACIER_IR",
    "EXPRESS_ONEZONE",
)
Acl = Literal[
    "private",
    "public-read",
    "public-read-write",
    "authenticated-read",
    "aws-exec-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
]
LogLevel = Literal[
    "off",
    "debug",
    "debugwithsigning",
    "debugwithhttpbody",
    "debugwithrequestretries",
    "debugwithrequesterrors",
    "debugwitheventstreambody",
]


class S3Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of `storage: {s3: {...}}`.

    Attributes:
        bucket: the bucket; it must exist.
        region: its region; may be left out with `regionendpoint`.
        accesskey: with `secretkey` the credentials; without both, the SDK's own chain finds them: environment, shared
            files, web identity, pod identity, container and instance roles.
        secretkey: see `accesskey`.
        sessiontoken: of temporary credentials.
        profile: which profile of the shared files to use.
        regionendpoint: URL of another service that speaks S3.
        forcepathstyle: put the bucket into the path, not into the host name.
        redirectendpoint: scheme and host of the URLs that clients are sent to, where that is another.
        redirectlifetime: how long such a URL is good.
        rootdirectory: a prefix of all keys.
        encrypt: have the service encrypt, with its own keys or `keyid`.
        keyid: a key of the key management service.
        secure: TLS, where `regionendpoint` names no scheme.
        skipverify: do not verify certificates.
        cacert: a file of certificates to trust instead of the system's.
        v4auth: signatures of version 4; there are no others any more.
        chunksize: bytes of a part of an upload; parts grow where an upload has many.
        multipartcopychunksize: bytes of a part of a copy inside the service.
        multipartcopymaxconcurrency: parts of a copy under way at once.
        multipartcopythresholdsize: up to so many bytes are copied by one request.
        storageclass: of what is written; NONE sends none.
        objectacl: of what is written.
        useragent: what is added to the name that requests give.
        usedualstack: endpoints that have IPv6.
        accelerate: accelerated endpoints.
        usefipsendpoint: endpoints that keep FIPS 140.
        loglevel: other than `off`, each request is logged, without its content or its signature.
        checksum: whether checksums are sent where the service does not require them; by default only to AWS itself.
        requestpayer: whether this account pays for requests to the bucket of another.
        proxy: URL of a proxy.
        maxconnections: connections at once.
        connecttimeout: how long to wait for a connection.
        readtimeout: how long to wait for bytes.
        uploadmemory: bytes that all uploads of one process may hold.
    """

    bucket: str
    region: str = ""
    accesskey: str = ""
    secretkey: str = ""
    sessiontoken: str = ""
    profile: str = ""
    regionendpoint: str = ""
    forcepathstyle: Flag = Flag(0)
    redirectendpoint: str = ""
    redirectlifetime: Seconds = Seconds(1200)
    rootdirectory: str = ""
    encrypt: Flag = Flag(0)
    keyid: str = ""
    secure: Flag = Flag(1)
    skipverify: Flag = Flag(0)
    cacert: str = ""
    v4auth: Flag = Flag(1)
    chunksize: Whole = Whole(10 * _MIB)
    multipartcopychunksize: Whole = Whole(32 * _MIB)
    multipartcopymaxconcurrency: Whole = Whole(100)
    multipartcopythresholdsize: Whole = Whole(32 * _MIB)
    storageclass: str = "STANDARD"
    objectacl: Acl = "private"
    useragent: str = ""
    usedualstack: Flag = Flag(0)
    accelerate: Flag = Flag(0)
    usefipsendpoint: Flag = Flag(0)
    loglevel: LogLevel = "off"
    checksum: Literal["auto", "when_required", "when_supported"] = "auto"
    requestpayer: Flag = Flag(0)
    proxy: str = ""
    maxconnections: Whole = Whole(128)
    connecttimeout: Seconds = Seconds(5)
    readtimeout: Seconds = Seconds(60)
    uploadmemory: Whole = Whole(256 * _MIB)

    @property
    def endpoint(self) -> str | None:
        """The service's URL, where it is not found by region."""
        if not self.regionendpoint or "://" in self.regionendpoint:
            return self.regionendpoint or None
        return f"{'https' if self.secure else 'http'}://{self.regionendpoint}"

    @property
    def root(self) -> str:
        """What goes before each key: empty, or ending in a slash."""
        trimmed = self.rootdirectory.strip("/")
        return trimmed + "/" if trimmed else ""

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigurationError: something cannot; names the option.
        """
        checks = (
            (not self.bucket, "bucket: is empty"),
            (not self.region and not self.regionendpoint, "region: is needed where there is no regionendpoint"),
            (bool(self.accesskey) != bool(self.secretkey), "accesskey, secretkey: one of them is missing"),
            (bool(self.sessiontoken) and not self.accesskey, "sessiontoken: is of no use without accesskey"),
            (not self.v4auth, "v4auth: false asks for signatures of version 2, which are not made any more"),
            (
                self.storageclass.upper() not in _CLASSES,
                f"storageclass: found {self.storageclass!r}; allowed is {', '.join(_CLASSES)}",
            ),
            (
                not _PART_MINIMUM <= self.chunksize <= _PART_MAXIMUM,
                "chunksize: the service takes parts of 5 MiB to 5 GiB",
            ),
            (
                not _PART_MINIMUM <= self.multipartcopychunksize <= _PART_MAXIMUM,
                "multipartcopychunksize: the service takes parts of 5 MiB to 5 GiB",
            ),
            (self.multipartcopythresholdsize > _PART_MAXIMUM, "multipartcopythresholdsize: at most 5 GiB"),
            (not self.multipartcopymaxconcurrency, "multipartcopymaxconcurrency: at least 1"),
            (not self.maxconnections, "maxconnections: at least 1"),
            (bool(self.cacert) and bool(self.skipverify), "cacert, skipverify: one excludes the other"),
            (
                bool(self.redirectendpoint)
                and (
                    not self.redirectendpoint.startswith(("http://", "https://"))
                    or "/" in self.redirectendpoint.partition("://")[2].rstrip("/")
                    or "?" in self.redirectendpoint
                ),
                "redirectendpoint: is a scheme and a host, nothing more",
            ),
            (len(self.root) > ROOT_LIMIT, f"rootdirectory: at most {ROOT_LIMIT} characters"),
            (self.redirectlifetime > 7 * 24 * 3600, "redirectlifetime: at most 7 days"),
        )
        for wrong, problem in checks:
            if wrong:
                raise ConfigurationError(problem)

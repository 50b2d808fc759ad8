"""Options of `storage: {azure: {...}}`: distribution's, and what its users miss there."""

from typing import Literal

import msgspec

from moorage import ConfigurationError

from ._values import ROOT_LIMIT, Flag, Seconds, Whole

_MIB = 1 << 20
_BLOCK_MAXIMUM = 4000 * _MIB

CredentialType = Literal["shared_key", "client_secret", "default_credentials", "default"]


class AzureCredentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who this registry is to Azure.

    Attributes:
        type: `shared_key`: `accountkey`; `client_secret`: a service principal; `default_credentials`, or `default`: what
            the SDK's chain finds: environment, workload identity, managed identity, the command line's login.
        clientid: of a service principal, or of the managed identity to be.
        tenantid: of a service principal.
        secret: of a service principal.
    """

    type: CredentialType
    clientid: str = ""
    tenantid: str = ""
    secret: str = ""


class AzureOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of `storage: {azure: {...}}`.

    Attributes:
        accountname: the storage account.
        container: the container; it must exist.
        accountkey: a key of the account.
        credentials: who this registry is; may be left out where `accountkey`, `sastoken` or `connectionstring` says it.
        connectionstring: as the portal shows it: gives the account's name, its key or token and its URL where the other
            options do not.
        sastoken: a shared access signature for the container; clients are not redirected with it.
        realm: the domain of the service, where it is a national one.
        serviceurl: URL of the account, where it is not found by its name and `realm`.
        rootdirectory: a prefix of all keys.
        redirectendpoint: scheme and host, and a path if need be, of the URLs that clients are sent to.
        redirectlifetime: how long such a URL is good.
        max_retries: how often to look whether a copy inside the service has ended; -1: it must have ended at once. Not
            set: until it has.
        retry_delay: how long to wait before the first such look.
        skipverify: do not verify certificates.
        cacert: a file of certificates to trust instead of the system's.
        chunksize: bytes of a block of an upload; blocks grow where an upload has many.
        proxy: URL of a proxy.
        maxconnections: connections at once.
        connecttimeout: how long to wait for a connection.
        readtimeout: how long to wait for bytes.
        uploadmemory: bytes that all uploads of one process may hold.
    """

    container: str
    accountname: str = ""
    accountkey: str = ""
    credentials: AzureCredentials | None = None
    connectionstring: str = ""
    sastoken: str = ""
    realm: str = "core.windows.net"
    serviceurl: str = ""
    rootdirectory: str = ""
    redirectendpoint: str = ""
    redirectlifetime: Seconds = Seconds(1200)
    max_retries: int | None = None
    retry_delay: Seconds = Seconds(0.1)
    skipverify: Flag = Flag(0)
    cacert: str = ""
    chunksize: Whole = Whole(8 * _MIB)
    proxy: str = ""
    maxconnections: Whole = Whole(128)
    connecttimeout: Seconds = Seconds(5)
    readtimeout: Seconds = Seconds(60)
    uploadmemory: Whole = Whole(256 * _MIB)

    @property
    def url(self) -> str:
        """The account's URL, without a slash at its end."""
        return (self.serviceurl or f"https://{self.accountname}.blob.{self.realm}").rstrip("/")

    @property
    def root(self) -> str:
        """What goes before each key: empty, or ending in a slash."""
        trimmed = self.rootdirectory.strip("/")
        return trimmed + "/" if trimmed else ""

    def checked(self) -> "AzureOptions":
        """Return these options with what the connection string says filled in.

        Raises:
            ConfigurationError: something cannot work; names the option.
        """
        whole = self._with_connection_string()
        whole.refuse_what_cannot_work()
        return whole

    def _with_connection_string(self) -> "AzureOptions":
        if not self.connectionstring:
            return self
        pairs = [pair.partition("=") for pair in self.connectionstring.strip(";").split(";")]
        said = {name.strip().lower(): value.strip() for name, _, value in pairs}
        unknown = said.keys() - _CONNECTION_NAMES
        if unknown or "" in said:
            raise ConfigurationError(f"connectionstring: does not know {', '.join(sorted(unknown)) or 'an empty name'}")
        account = self.accountname or said.get("accountname", "")
        scheme, suffix = said.get("defaultendpointsprotocol", "https"), said.get("endpointsuffix", self.realm)
        endpoint = self.serviceurl or said.get("blobendpoint", "") or f"{scheme}://{account}.blob.{suffix}"
        given = bool(self.credentials or self.accountkey or self.sastoken)
        return msgspec.structs.replace(
            self,
            accountname=account,
            serviceurl=endpoint,
            accountkey=self.accountkey if given else said.get("accountkey", ""),
            sastoken=self.sastoken if given else said.get("sharedaccesssignature", ""),
        )

    def refuse_what_cannot_work(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigurationError: something cannot; names the option.
        """
        who = self.credentials
        kind = who.type if who else "shared_key" if self.accountkey else "sas" if self.sastoken else ""
        checks = (
            (not self.container, "container: is empty"),
            (not self.accountname, "accountname: is needed"),
            (not kind, "credentials: are needed: their type, or accountkey, sastoken or connectionstring"),
            (kind == "shared_key" and not self.accountkey, "accountkey: is needed for credentials of type shared_key"),
            (bool(self.accountkey and self.sastoken), "accountkey, sastoken: one excludes the other"),
            (bool(who and self.sastoken), "credentials, sastoken: one excludes the other"),
            (
                kind == "client_secret" and not (who and who.clientid and who.tenantid and who.secret),
                "credentials: clientid, tenantid and secret are needed for type client_secret",
            ),
            (
                bool(who and who.secret) and kind != "client_secret",
                "credentials: secret: is of no use but for type client_secret",
            ),
            (
                bool(self.serviceurl) and not self.serviceurl.startswith(("http://", "https://")),
                "serviceurl: is a URL with http or https",
            ),
            (
                bool(self.redirectendpoint)
                and (not self.redirectendpoint.startswith(("http://", "https://")) or "?" in self.redirectendpoint),
                "redirectendpoint: is a URL with http or https, without a query",
            ),
            (len(self.root) > ROOT_LIMIT, f"rootdirectory: at most {ROOT_LIMIT} characters"),
            (self.redirectlifetime > 24 * 3600, "redirectlifetime: at most 24 hours"),
            (self.max_retries is not None and self.max_retries < -1, "max_retries: -1 or more"),
            (bool(self.cacert) and bool(self.skipverify), "cacert, skipverify: one excludes the other"),
            (not _MIB <= self.chunksize <= _BLOCK_MAXIMUM, "chunksize: the service takes blocks of 1 MiB to 4000 MiB"),
            (not self.maxconnections, "maxconnections: at least 1"),
        )
        for wrong, problem in checks:
            if wrong:
                raise ConfigurationError(problem)


_CONNECTION_NAMES = frozenset({
    "accountkey",
    "accountname",
    "blobendpoint",
    "defaultendpointsprotocol",
    "endpointsuffix",
    "fileendpoint",
    "queueendpoint",
    "sharedaccesssignature",
    "tableendpoint",
})

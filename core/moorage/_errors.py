"""What can go wrong, in two trees: what a client is told, and what a driver reports.

    RegistryError                     code, status, message, detail; rendered in one place, by the app
    ├── BlobUnknown                   404 BLOB_UNKNOWN
    ├── ManifestUnknown               404 MANIFEST_UNKNOWN
    ├── ManifestBlobUnknown           400 MANIFEST_BLOB_UNKNOWN     one error for each missing reference
    ├── ManifestInvalid               400 MANIFEST_INVALID
    ├── ManifestTooLarge              413 SIZE_INVALID
    ├── NameInvalid                   400 NAME_INVALID
    ├── NameUnknown                   404 NAME_UNKNOWN
    ├── TagInvalid                    400 MANIFEST_INVALID
    ├── DigestInvalid                 400 DIGEST_INVALID
    ├── SizeInvalid                   400 SIZE_INVALID
    ├── RangeInvalid                  416 SIZE_INVALID              carries how long the blob is
    ├── UploadUnknown                 404 BLOB_UPLOAD_UNKNOWN
    ├── UploadInvalid                 400 BLOB_UPLOAD_INVALID
    ├── UploadOutOfOrder              416 BLOB_UPLOAD_INVALID       carries where the upload stands
    ├── PreconditionFailed            412 MANIFEST_INVALID          If-Match, If-None-Match, a tag that has moved
    │   └── TagFixed                  412 MANIFEST_INVALID          carries the tags that may not move or vanish
    ├── Unsupported                   405 UNSUPPORTED
    ├── ParameterInvalid              400 UNSUPPORTED               a query parameter that cannot be understood
    ├── Unauthorized                  401 UNAUTHORIZED              carries the challenges
    ├── Denied                        403 DENIED
    │   └── Refused                   a rule's "no" to a manifest; its status may be any 4xx
    ├── TooManyRequests               429 TOOMANYREQUESTS           carries retry_after
    ├── Unavailable                   503 UNAVAILABLE               carries retry_after
    ├── StorageFull                   507 UNAVAILABLE
    ├── ClientLeft                    499 UNKNOWN                   nobody is there to read it
    └── InternalError                 500 UNKNOWN

    DriverError                       driver, operation, key; retryable, ambiguous, retry_after
    ├── KeyUnknown                    the key does not exist
    ├── ConditionFailed               somebody else wrote first, or the key exists already
    ├── RangeUnsatisfiable            start lies beyond the end
    ├── UploadGone                    the token names no upload, or not at this offset
    ├── UploadBusy                    somebody else holds the upload
    ├── KeyInvalid                    the key, or its length, is not allowed
    ├── StoreFull                     no space, or no quota, left
    ├── StoreReadOnly                 the store cannot be written to
    ├── StoreBusy                     out of descriptors, throttled: later it may work (retryable)
    └── StoreUnavailable              anything else that the backend could not do (retryable)

The codes are those of the OCI distribution spec, "Error Codes". Where the spec has none that fits (416, 412, query
parameters), the nearest one of its list is used, since a JSON body of a 4xx may carry no other.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

DriverVerb = Literal["stat", "open", "write", "list", "delete", "copy", "url", "upload", "hold"]

_SHOWN = 5


class RegistryError(Exception):
    """Something that a client is told about its request.

    Attributes:
        code: the spec's error code.
        status: the HTTP status as a number.
        message: one sentence for people.
        detail: JSON-able data for programs, or None.
    """

    code: ClassVar[str] = "UNKNOWN"
    status: int = 500

    def __init__(self, message: str, *, detail: object = None) -> None:
        """Make an error that says `message` and carries `detail`."""
        super().__init__(message)
        self.message = message
        self.detail = detail

    def entries(self) -> list[dict[str, object]]:
        """Return the items of the `errors` list of the answer, as the spec shapes them."""
        entry: dict[str, object] = {"code": self.code, "message": self.message}
        if self.detail is not None:
            entry["detail"] = self.detail
        return [entry]


class BlobUnknown(RegistryError):
    """The blob is not in this repository."""

    code = "BLOB_UNKNOWN"
    status = 404


class ManifestUnknown(RegistryError):
    """No manifest of that tag or digest is in this repository."""

    code = "MANIFEST_UNKNOWN"
    status = 404


class ManifestBlobUnknown(RegistryError):
    """A manifest points at content that is not in this repository.

    `missing` holds one JSON-able detail for each missing reference; each becomes an error of its own in the answer.
    """

    code = "MANIFEST_BLOB_UNKNOWN"
    status = 400

    def __init__(self, missing: Sequence[object]) -> None:
        """Make an error that names each of the `missing` references."""
        super().__init__("the manifest points at content that is not in this repository", detail=list(missing))
        self.missing: tuple[object, ...] = tuple(missing)

    def entries(self) -> list[dict[str, object]]:
        """Return one item for each missing reference."""
        return [{"code": self.code, "message": self.message, "detail": each} for each in self.missing]


class ManifestInvalid(RegistryError):
    """The manifest is not what its media type promises."""

    code = "MANIFEST_INVALID"
    status = 400


class ManifestTooLarge(RegistryError):
    """The manifest has more bytes than the registry takes."""

    code = "SIZE_INVALID"
    status = 413


class NameInvalid(RegistryError):
    """The repository name breaks the grammar."""

    code = "NAME_INVALID"
    status = 400


class NameUnknown(RegistryError):
    """There is no such repository."""

    code = "NAME_UNKNOWN"
    status = 404


class TagInvalid(RegistryError):
    """The tag breaks the grammar."""

    code = "MANIFEST_INVALID"
    status = 400


class DigestInvalid(RegistryError):
    """The digest breaks the grammar, is of an unknown algorithm, or is not that of the content."""

    code = "DIGEST_INVALID"
    status = 400


class SizeInvalid(RegistryError):
    """Lengths that contradict each other, or the content."""

    code = "SIZE_INVALID"
    status = 400


class RangeInvalid(RegistryError):
    """The asked range lies outside the blob; `size` is how long it is."""

    code = "SIZE_INVALID"
    status = 416

    def __init__(self, message: str, *, size: int) -> None:
        """Make an error for a blob of `size` bytes."""
        super().__init__(message, detail={"size": size})
        self.size = size


class UploadUnknown(RegistryError):
    """There is no such upload session: never opened, finished, cancelled or expired."""

    code = "BLOB_UPLOAD_UNKNOWN"
    status = 404


class UploadInvalid(RegistryError):
    """The request to an upload session makes no sense."""

    code = "BLOB_UPLOAD_INVALID"
    status = 400


class UploadOutOfOrder(RegistryError):
    """The chunk does not begin where the upload stands, or another request is at work on it.

    `upload_id` and `offset` (bytes acknowledged so far) say where the client may go on; the session lives on.
    """

    code = "BLOB_UPLOAD_INVALID"
    status = 416

    def __init__(self, message: str, *, upload_id: str, offset: int) -> None:
        """Make an error for the session `upload_id` that stands at `offset`."""
        super().__init__(message, detail={"offset": offset})
        self.upload_id = upload_id
        self.offset = offset


class PreconditionFailed(RegistryError):
    """A condition of the request does not hold: the tag has moved, exists, or does not."""

    code = "MANIFEST_INVALID"
    status = 412


class TagFixed(PreconditionFailed):
    """The tag condition of an operation does not hold: fixed tags would come to mean something else, or nothing.

    `tags` are those tags, and `digest` is what they mean.
    """

    def __init__(self, tags: Sequence[str], digest: str) -> None:
        """Make an error that names the fixed `tags`, of which there is at least one, and the `digest` they mean."""
        shown = ", ".join(tags[:_SHOWN]) + (f" and {len(tags) - _SHOWN} more" if len(tags) > _SHOWN else "")
        subject = f"the tag {shown} is fixed and means" if len(tags) == 1 else f"the tags {shown} are fixed and mean"
        super().__init__(f"{subject} {digest}", detail={"tags": list(tags), "digest": digest})
        self.tags: tuple[str, ...] = tuple(tags)
        self.digest = digest


class Unsupported(RegistryError):
    """This registry does not do that, or is configured not to."""

    code = "UNSUPPORTED"
    status = 405


class ParameterInvalid(RegistryError):
    """A query parameter or header that cannot be understood."""

    code = "UNSUPPORTED"
    status = 400


class Unauthorized(RegistryError):
    """Who asks is not known, or the credentials are not good for this.

    Attributes:
        challenges: values of WWW-Authenticate; without any the configured authenticators say what to show.
        problem: what is wrong with credentials that were shown, in the words of RFC 6750 (`invalid_token`,
            `insufficient_scope`); empty if there were none.
    """

    code = "UNAUTHORIZED"
    status = 401

    def __init__(
        self, message: str, *, challenges: Sequence[str] = (), problem: str = "", detail: object = None
    ) -> None:
        """Make an error that asks for credentials by `challenges`."""
        super().__init__(message, detail=detail)
        self.challenges: tuple[str, ...] = tuple(challenges)
        self.problem = problem


class Denied(RegistryError):
    """Who asks is known and may not."""

    code = "DENIED"
    status = 403


class Refused(Denied):
    """A rule refuses a manifest. Rules raise it; `status` may be any 4xx."""

    def __init__(self, message: str, *, status: int = 403, detail: object = None) -> None:
        """Make a refusal that says `message`, answered with `status`.

        Raises:
            ValueError: `status` is not a 4xx.
        """
        if not 400 <= status < 500:
            raise ValueError(f"a refusal is a 4xx, not {status}")
        super().__init__(message, detail=detail)
        self.status = status


class TooManyRequests(RegistryError):
    """The caller asks too often; `retry_after` is in seconds."""

    code = "TOOMANYREQUESTS"
    status = 429

    def __init__(self, message: str, *, retry_after: float) -> None:
        """Make an error that sends the caller away for `retry_after` seconds."""
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(RegistryError):
    """The registry or its store cannot serve now; `retry_after` is in seconds."""

    code = "UNAVAILABLE"
    status = 503

    def __init__(self, message: str, *, retry_after: float = 5, detail: object = None) -> None:
        """Make an error that asks to come back in `retry_after` seconds."""
        super().__init__(message, detail=detail)
        self.retry_after = retry_after


class StorageFull(RegistryError):
    """The store has no room left."""

    code = "UNAVAILABLE"
    status = 507


class ClientLeft(RegistryError):
    """The client went away before its request was whole. Never seen by a client; logs and observers see it."""

    status = 499


class InternalError(RegistryError):
    """A fault of the registry, its store's content, or a plugin. The log says more than the client is told."""


class DriverError(Exception):
    """A driver could not do what was asked.

    Attributes:
        driver: the driver's name.
        operation: which of the contract's verbs failed.
        key: the key it was asked about; empty where there is none.
        retryable: whether the same call may work a little later.
        ambiguous: whether what was asked for may have been done all the same: the request was sent whole and its reply was
            lost, or came too late. What fails before that, and what the service itself refuses, is not ambiguous.
        retry_after: after how many seconds the service says that it may work again; None if it does not say.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        driver: str,
        operation: DriverVerb,
        key: str = "",
        ambiguous: bool = False,
        retry_after: float | None = None,
    ) -> None:
        """Make an error of `driver`, met while it did `operation` on `key`."""
        super().__init__(message)
        self.driver = driver
        self.operation = operation
        self.key = key
        self.ambiguous = ambiguous
        self.retry_after = retry_after

    def __str__(self) -> str:
        """Return driver, operation, key and what happened, for logs."""
        return f"{self.driver}: {self.operation} {self.key or '(no key)'}: {self.args[0]}"


class KeyUnknown(DriverError):
    """The key does not exist."""


class ConditionFailed(DriverError):
    """The condition of a write does not hold: the key exists, or is no longer of that version."""


class RangeUnsatisfiable(DriverError):
    """The range begins beyond the end of the object."""


class UploadGone(DriverError):
    """The token names no upload that could go on."""


class UploadBusy(DriverError):
    """Another holder has the upload open."""


class KeyInvalid(DriverError):
    """The key breaks the contract's grammar or limits, or another key is its directory."""


class StoreFull(DriverError):
    """No space, or no quota, left."""


class StoreReadOnly(DriverError):
    """The store refuses to be written to: read-only or no permission."""


class StoreBusy(DriverError):
    """Out of descriptors or throttled."""

    retryable = True


class StoreUnavailable(DriverError):
    """The backend failed in a way that has no class of its own."""

    retryable = True

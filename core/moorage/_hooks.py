"""The hooks: what a plugin may offer, and the values it offers it in.

A plugin is a module or an object with functions marked `@hookimpl`, found through the entry-point group
`moorage.plugins`. `plugins.md` is the page for authors.

Registration hooks are synchronous and called once, at the start. They return names with openers: what a name needs is
imported by its opener, so only when a configuration uses it. An opener is called with options, decoded into the
registered `options` struct, and returns an async context manager; its life is bounded by the registry's.

Decision hooks may be sync or async. They are called one after the other, each bounded in time, and fail closed: what
they raise, other than a `RegistryError`, fails the push. Observers are synchronous; what they raise is only logged.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Generic, Literal, Protocol, TypeVar, runtime_checkable

import msgspec
import pluggy

from ._driver import Driver
from ._errors import RegistryError
from ._manifests import Descriptor, Manifest
from ._operations import Access, Caller, Handler, Operation, Origin, PushManifest

PROJECT = "moorage"
ENTRY_POINT_GROUP = "moorage.plugins"

HOOK_API = (1, 4)
"""The version of the hooks. The first number grows when a plugin has to change, the second when there is more to use."""

hookspec: pluggy.HookspecMarker = pluggy.HookspecMarker(PROJECT)
hookimpl: pluggy.HookimplMarker = pluggy.HookimplMarker(PROJECT)

OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For what has no options."""


class DriverFactory(msgspec.Struct, Generic[OptionsT], frozen=True):
    """How a storage driver is opened; its options stand in the configuration as `storage: {<name>: {...}}`.

    `shared` says whether other processes see the same store; if not, one worker serves. It stands here and not among
    the driver's capabilities, since workers are started before any of them opens a driver.

    `open_to_look` opens the store for commands that only read it. It changes nothing in the store, and refuses one that
    is not there instead of making it. Without it such commands use `open`.
    """

    options: type[OptionsT]
    open: Callable[[OptionsT], AbstractAsyncContextManager[Driver]]
    shared: bool = True
    open_to_look: Callable[[OptionsT], AbstractAsyncContextManager[Driver]] | None = None


class StorageMiddlewareFactory(msgspec.Struct, Generic[OptionsT], frozen=True):
    """How a driver around a driver is opened; configured as `middleware: {storage: [{name, options}]}`.

    With `section` (a dotted path) it is also opened for what is written there, and then lies around all others. `beside`
    names sections of their own that say what fields of its options do not: `{"redis": "redis"}`. With `for_serving` it
    is opened where a registry is served, and not by commands that look at, copy or check what a store holds.
    """

    options: type[OptionsT]
    open: Callable[[OptionsT, Driver], AbstractAsyncContextManager[Driver]]
    section: str | None = None
    beside: Mapping[str, str] = msgspec.field(default_factory=dict[str, str])
    for_serving: bool = False


class MiddlewareFactory(msgspec.Struct, Generic[OptionsT], frozen=True):
    """How a handler around the registry is opened.

    It is opened when the configuration has `section` (a dotted path), or, without one, `plugins: {<name>: {...}}`;
    with `always`, even when it has not, and then with the defaults of `options`.

    `place` says where it lies: `gate` before anybody is known, for what must not cost an authentication; `caller` right
    after that, for what depends on who asks and asks itself what they may (`CheckAccess`); `access` where is decided who
    may do what; `inside` for all others, which see only what is allowed.

    `open_with_store` is used instead of `open` where there is a store: for what must be kept where all processes see it,
    below keys that begin with `plugins/<name>/`.
    """

    options: type[OptionsT]
    open: Callable[[OptionsT, Handler], AbstractAsyncContextManager[Handler]]
    section: str | None = None
    always: bool = False
    place: Literal["gate", "caller", "access", "inside"] = "inside"
    open_with_store: Callable[[OptionsT, Handler, Driver], AbstractAsyncContextManager[Handler]] | None = None


class Rule(msgspec.Struct, Generic[OptionsT], frozen=True):
    """How an object that carries decision hooks is opened; where it is configured is as for `MiddlewareFactory`.

    Its options get the keys `repositories`, `mode` and `rules` from the registry: it is opened once for each entry, and
    asked only about repositories that the entry is for. `when_disabled` is what it is opened with where a section
    around its own says `disabled: true`; None leaves it closed there.
    """

    options: type[OptionsT]
    open: Callable[[OptionsT], AbstractAsyncContextManager[object]]
    section: str | None = None
    always: bool = False
    when_disabled: OptionsT | None = None


class Authenticator(Protocol):
    """Tells who asks."""

    def __call__(self, origin: Origin, /) -> Awaitable[Caller | None]:
        """Return who asks, or None if the credentials of `origin` are not of a kind it knows.

        Raises:
            Unauthorized: they are of its kind, and wrong.
            TooManyRequests: too many of them were wrong.
        """
        ...

    @property
    def challenge(self) -> str:
        """What `WWW-Authenticate` shall say to who shows nothing; empty if nothing can be shown by a header."""
        ...


@runtime_checkable
class ScopedAuthenticator(Authenticator, Protocol):
    """An authenticator whose challenge depends on what is asked for, as that of tokens does."""

    def challenge_for(self, origin: Origin, needed: Sequence[Access], problem: str) -> str:
        """Return what `WWW-Authenticate` shall say to who wants what needs the rights `needed`.

        `problem` is as in `Unauthorized`.
        """
        ...


@runtime_checkable
class RecallingAuthenticator(Authenticator, Protocol):
    """An authenticator that can be asked about a caller again, without what was shown at first.

    Its callers have a `voucher` with its name. Only they can have what outlives a login, such as a refresh token: when
    it is used, who they are is asked again, and what was said then counts if the voucher is the same.
    """

    def recall(self, name: str, /) -> Awaitable[Caller | None]:
        """Return the caller of that name as known now, None if there is none any more."""
        ...


class AuthenticatorFactory(msgspec.Struct, Generic[OptionsT], frozen=True):
    """How an authenticator is opened; configured as `auth: {<name>: {...}}`, alone or among others."""

    options: type[OptionsT]
    open: Callable[[OptionsT], AbstractAsyncContextManager[Authenticator]]


@hookspec
def register_drivers() -> Mapping[str, DriverFactory[msgspec.Struct]]:  # type: ignore[empty-body]
    """Return storage drivers by the name that a configuration uses."""


@hookspec
def register_storage_middleware() -> Mapping[str, StorageMiddlewareFactory[msgspec.Struct]]:  # type: ignore[empty-body]
    """Return drivers around drivers by name."""


@hookspec
def register_authenticators() -> Mapping[str, AuthenticatorFactory[msgspec.Struct]]:  # type: ignore[empty-body]
    """Return authenticators by name."""


@hookspec
def register_middleware() -> Mapping[str, MiddlewareFactory[msgspec.Struct]]:  # type: ignore[empty-body]
    """Return handlers around the registry by name."""


@hookspec
def register_rules() -> Mapping[str, Rule[msgspec.Struct]]:  # type: ignore[empty-body]
    """Return rules on pushes of manifests by name."""


@hookspec
def validate_manifest(push: PushManifest, manifest: Manifest, registry: Handler) -> Sequence[str] | None:
    """Judge a manifest that is about to be stored. May be async.

    `registry` answers pulls and lists only. Return warnings for the client, or None.

    Raises:
        Refused: it may not be pushed.
    """


@hookspec
def requires_reference(
    push: PushManifest, manifest: Manifest, descriptor: Descriptor, registry: Handler
) -> bool | None:
    """Say whether `descriptor`, which `manifest` points at and which is not here, must be. May be async.

    Asked only for what is missing. The first answer that is not None wins; nobody's answer means yes.
    """


@hookspec
def operation_finished(
    operation: Operation[object], reply: object, error: RegistryError | None, seconds: float
) -> None:
    """See an operation that has been answered, with a reply or an error; for a blob that means answered, not sent."""

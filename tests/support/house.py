"""A plugin for tests, as an object or as a file: who has which password, who may come without one, and who may do what.

The password is `<name>-secret`, and `staff-...` are of the group `staff`. `house_rules` lists, for each name, group (`@...`) or
`anonymous`, what it may: `<beginning of a repository>:<action>`, or `catalog`.
"""

import base64
import binascii
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import msgspec
import trio

from moorage import (
    ANONYMOUS,
    Access,
    Authenticator,
    AuthenticatorFactory,
    Caller,
    Denied,
    Handler,
    MiddlewareFactory,
    NoOptions,
    Operation,
    Origin,
    R,
    Unauthorized,
    Voucher,
    hookimpl,
)


class Passwords:
    """Knows everybody by a password that is easily guessed."""

    challenge = 'Basic realm="house"'

    async def __call__(self, origin: Origin, /) -> Caller | None:
        """Return who shows the right password."""
        await trio.lowlevel.checkpoint()
        shown = origin.credentials
        if shown is None or shown.scheme != "basic":
            return None
        try:
            name, _, password = base64.b64decode(shown.value, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            raise Unauthorized("not a name and a password") from None
        if not name or password != f"{name}-secret":
            raise Unauthorized("wrong password")
        return self._caller(name)

    async def recall(self, name: str, /) -> Caller | None:
        """Return anybody, whom it would know by the same password as ever."""
        await trio.lowlevel.checkpoint()
        return self._caller(name)

    def _caller(self, name: str) -> Caller:
        groups = frozenset({"staff"} if name.startswith("staff-") else ())
        return Caller(name=name, groups=groups, voucher=Voucher("passwords", "its secret"))


class Everybody:
    """Takes who shows nothing for nobody in particular."""

    challenge = ""

    async def __call__(self, origin: Origin, /) -> Caller | None:
        """Return nobody in particular."""
        await trio.lowlevel.checkpoint()
        return ANONYMOUS if origin.credentials is None else None


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `plugins: {house_rules: {...}}`."""

    may: dict[str, tuple[str, ...]] = {}


class Allow:
    """Lets pass what the rules name."""

    def __init__(self, options: Rules, inner: Handler) -> None:
        """Ask the rules before `inner`."""
        self._options = options
        self._inner = inner

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer what the caller may do.

        Raises:
            Denied: they may not.
            Unauthorized: nobody in particular may not.
        """
        caller = operation.caller
        who = [caller.name or "anonymous", *(f"@{group}" for group in caller.groups)]
        may = [each for name in who for each in self._options.may.get(name, ())]
        if not all(any(_covers(each, access) for each in may) for access in operation.access):
            raise Denied("the house rules do not allow that") if caller.name else Unauthorized("who are you?")
        return await self._inner(operation)


def _covers(rule: str, access: Access) -> bool:
    beginning, _, action = rule.rpartition(":")
    if access.repository is None:
        return action == "catalog"
    return access.repository.startswith(beginning) and action == access.action


@asynccontextmanager
async def _open_passwords(options: NoOptions) -> AsyncGenerator[Authenticator]:
    del options
    yield Passwords()


@asynccontextmanager
async def _open_everybody(options: NoOptions) -> AsyncGenerator[Authenticator]:
    del options
    yield Everybody()


@asynccontextmanager
async def _open_rules(options: Rules, inner: Handler) -> AsyncGenerator[Handler]:
    yield Allow(options, inner)


@hookimpl
def register_authenticators() -> Mapping[str, object]:
    """Offer both authenticators."""
    return {
        "passwords": AuthenticatorFactory(NoOptions, _open_passwords),
        "everybody": AuthenticatorFactory(NoOptions, _open_everybody),
    }


@hookimpl
def register_middleware() -> Mapping[str, object]:
    """Offer the rules."""
    return {"house_rules": MiddlewareFactory(Rules, _open_rules, place="access")}

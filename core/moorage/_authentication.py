"""Who asks: the configured authenticators, and what the credentials that they know are good for.

Answers for `WWW-Authenticate` of RFC 9110, 11.6.1, as container clients read it: they look at the first one only, and
know `Bearer` with a token server, and `Basic`. So one challenge is sent, and it is `Bearer` where there is one.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import msgspec

from ._errors import Denied, Unauthorized
from ._hooks import Authenticator, RecallingAuthenticator, ScopedAuthenticator
from ._operations import (
    Access,
    Caller,
    CheckAccess,
    Credentials,
    Handler,
    IssueToken,
    MountBlob,
    Operation,
    Ping,
    Pong,
    PublishKeys,
)

R = TypeVar("R")

_FOR_ANYBODY = frozenset({PublishKeys})
_NOBODY = Credentials("basic", "Og==")
"""An empty name with an empty password, which clients send who have neither."""


class Authentication:
    """Sets the caller of every operation, or refuses it."""

    def __init__(self, inner: Handler, authenticators: Mapping[str, Authenticator]) -> None:
        """Ask `authenticators`, which have the names of the configuration, in their order; who knows the credentials decides."""
        self._inner = inner
        self._authenticators = dict(authenticators)

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation` for whom it comes from.

        Raises:
            Unauthorized: nobody knows the credentials, they are wrong, or not good for this.
            Denied: they would be needed, and there is no way to show any.
        """
        if type(operation) in _FOR_ANYBODY:
            return await self._inner(operation)
        try:
            caller = await self._caller(operation)
            if operation.trail is not None:
                operation.trail.caller = caller
            return await self._inner(msgspec.structs.replace(operation, caller=caller))
        except Unauthorized as error:
            if error.challenges:
                raise
            raise self._asked_for(operation, error) from None

    async def _caller(self, operation: Operation[object]) -> Caller:
        origin = operation.origin
        if origin.credentials == _NOBODY:
            origin = msgspec.structs.replace(origin, credentials=None)
        for name, authenticator in self._authenticators.items():
            caller = await authenticator(origin)
            if caller is None:
                continue
            # Clients ask this first, and show nothing later on unless they are asked for something here.
            nameless = not caller.name and origin.credentials is None and isinstance(operation, Ping)
            if nameless and self._challenge(operation, ""):
                break
            return await self._recalled(name, caller)
        if origin.credentials is None:
            # Not in distribution's words: Docker takes an error that says no more than those for one that passes, and
            # tries again for a minute.
            raise Unauthorized("credentials are required")
        raise Unauthorized("these credentials are not known here", problem="invalid_token")

    async def _recalled(self, name: str, caller: Caller) -> Caller:
        """Return `caller`, whom the authenticator `name` knows; if by the word of another, as that one knows them now.

        Raises:
            Unauthorized: it does not, or by something else.
        """
        voucher = caller.voucher
        if voucher is None or voucher.authenticator == name:
            return caller
        asked = self._authenticators.get(voucher.authenticator)
        now = await asked.recall(caller.name) if isinstance(asked, RecallingAuthenticator) else None
        if now is None or now.voucher != voucher:
            raise Unauthorized("whose it was is not known any more, or by another password", problem="invalid_token")
        return now

    def _asked_for(self, operation: Operation[object], error: Unauthorized) -> Unauthorized | Denied:
        """Return `error` with the challenge to show what is missing."""
        challenge = self._challenge(operation, error.problem)
        detail = error.detail or _told(operation.access) or None
        if challenge is None:
            return Denied(error.message, detail=detail)
        return Unauthorized(error.message, challenges=[challenge], problem=error.problem, detail=detail)

    def _challenge(self, operation: Operation[object], problem: str) -> str | None:
        """Return the one challenge that is sent, None if no authenticator has any."""
        challenges: list[str] = []
        for authenticator in self._authenticators.values():
            if isinstance(authenticator, ScopedAuthenticator):
                challenges.append(authenticator.challenge_for(operation.origin, operation.access, problem))
            else:
                challenges.append(authenticator.challenge)
        wanted = [each for each in challenges if each]
        bearer = [each for each in wanted if each.lower().startswith("bearer")]
        if isinstance(operation, IssueToken):
            # A token cannot be had by a token.
            wanted, bearer = [each for each in wanted if each not in bearer], []
        return next(iter(bearer + wanted), None)


class Granted:
    """Passes on what the caller's credentials are good for."""

    def __init__(self, inner: Handler) -> None:
        """Pass on to `inner`."""
        self._inner = inner

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation` if the credentials are good for it.

        Raises:
            Unauthorized: they are not; others may be.
        """
        caller = operation.caller
        if not caller.is_granted(operation.access):
            raise Unauthorized("the token is not good for this", problem="insufficient_scope")
        asked: object = operation  # to look into; the type of `operation` itself says what it is answered with
        if isinstance(asked, CheckAccess):
            # Whoever had something to say about rights has been asked.
            return cast("R", Pong())
        if isinstance(asked, MountBlob) and asked.source is None and caller.grants is not None:
            mount = asked.only_from(lambda name: caller.is_granted((Access(name, "pull"),)))
            return cast("R", await self._inner(mount))  # the same kind of operation
        return await self._inner(operation)


def _told(needed: Sequence[Access]) -> list[dict[str, str]]:
    """Return which rights are needed as distribution tells it, a list of actions on resources."""
    return [
        {"Type": "registry", "Class": "", "Name": "catalog", "Action": "*"}
        if access.repository is None
        else {"Type": "repository", "Class": "", "Name": str(access.repository), "Action": access.action}
        for access in needed
    ]


def needed_scopes(needed: Sequence[Access]) -> str:
    """Return which rights are needed as the `scope` of a challenge: `repository:<name>:<action>,...`, with spaces between."""
    actions: dict[str, list[str]] = {}
    for access in needed:
        resource = "registry:catalog" if access.repository is None else f"repository:{access.repository}"
        actions.setdefault(resource, []).append("*" if access.repository is None else access.action)
    return " ".join(f"{resource}:{','.join(dict.fromkeys(names))}" for resource, names in actions.items())

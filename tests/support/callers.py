"""An authenticator that believes what it is told: a plugin for tests, in their process or as a file of a server.

A bearer value is `name~group,group~repository:action,action;...`; without the last part there are no grants, and `catalog`
stands for a repository there.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec

from moorage import (
    Access,
    Authenticator,
    AuthenticatorFactory,
    Caller,
    Grant,
    Origin,
    Unauthorized,
    hookimpl,
    needed_scopes,
)


def badge(name: str, groups: Sequence[str] = (), grants: Mapping[str, Sequence[str]] | None = None) -> tuple[str, str]:
    """Return the header by which a caller is known."""
    parts = [name, ",".join(groups)]
    if grants is not None:
        parts.append(";".join(f"{repository}:{','.join(actions)}" for repository, actions in grants.items()))
    return "Authorization", f"Bearer {'~'.join(parts)}"


class Believer:
    """Believes whoever says a name."""

    challenge = 'Bearer realm="test"'

    def __init__(self, *, anonymous: bool) -> None:
        self._anonymous = anonymous

    async def __call__(self, origin: Origin, /) -> Caller | None:
        """Return who asks."""
        credentials = origin.credentials
        if credentials is None:
            return Caller() if self._anonymous else None
        if credentials.scheme != "bearer":
            raise Unauthorized("wrong")
        name, groups, *grants = credentials.value.split("~")
        return Caller(
            name=name,
            groups=frozenset(filter(None, groups.split(","))),
            grants=tuple(map(_grant, filter(None, grants[0].split(";")))) if grants else None,
        )

    def challenge_for(self, origin: Origin, needed: Sequence[Access], problem: str) -> str:
        """Return a challenge that names what is needed."""
        del origin
        return f'{self.challenge},scope="{needed_scopes(needed)}",error="{problem}"'


def _grant(text: str) -> Grant:
    repository, _, actions = text.partition(":")
    return Grant(None if repository == "catalog" else repository, frozenset(actions.split(",")))


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether one may come without a name."""

    anonymous: bool = True


@asynccontextmanager
async def _open(options: Options) -> AsyncGenerator[Authenticator]:
    yield Believer(anonymous=options.anonymous)


@hookimpl
def register_authenticators() -> Mapping[str, object]:
    """Offer the authenticator."""
    return {"believer": AuthenticatorFactory(Options, _open)}

"""Authentication for Moorage: tokens, of which a file has the names of the owners and the digests.

This module is the plugin; `python -m moorage_token_file NAME` makes a token.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import msgspec

from moorage import Authenticator, AuthenticatorFactory, hookimpl


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `auth: {token_file: {...}}`.

    Attributes:
        path: the file with the tokens' digests.
        realm: what clients show to people whom they ask for a token.
    """

    path: str
    realm: str = "Moorage"


@asynccontextmanager
async def _open(options: Options) -> AsyncGenerator[Authenticator]:
    from .tokens import TokenFile

    yield TokenFile(options.path, options.realm)


@hookimpl
def register_authenticators() -> Mapping[str, object]:
    """Offer the authenticator `token_file`."""
    return {"token_file": AuthenticatorFactory(Options, _open)}

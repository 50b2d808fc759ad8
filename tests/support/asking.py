"""Authenticators as a configuration opens them, and what is shown to them."""

import base64
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec

from moorage import Authenticator, AuthenticatorFactory, Credentials, Origin, decode_options
from moorage_middleware import register_authenticators


def factory(name: str) -> AuthenticatorFactory[msgspec.Struct]:
    """Return how the authenticator `name` is opened."""
    found = register_authenticators()[name]
    assert isinstance(found, AuthenticatorFactory)
    return found  # pyright: ignore[reportUnknownVariableType] - what the options are is told by the name


@asynccontextmanager
async def opened_authenticator(name: str, options: dict[str, object]) -> AsyncGenerator[Authenticator]:
    """Open the authenticator `name` with `options` as they are written."""
    found = factory(name)
    async with found.open(decode_options(found.options, options, source=f"auth.{name}")) as authenticator:
        yield authenticator


def basic(name: str, password: str, *, address: str = "192.0.2.1") -> Origin:
    """Return where a request with a name and a password comes from."""
    value = base64.b64encode(f"{name}:{password}".encode()).decode()
    return Origin(address=address, credentials=Credentials("basic", value))


def bearer(token: str) -> Origin:
    """Return where a request with a token comes from."""
    return Origin(address="192.0.2.1", credentials=Credentials("bearer", token))

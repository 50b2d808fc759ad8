"""Middleware and authenticators that come with Moorage.

This module is the plugin; the code of either is imported when a configuration uses it. Rules are plugins of their
own, a module each.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import msgspec

from moorage import Handler, MiddlewareFactory, hookimpl


class Maintenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `storage: {maintenance: {readonly: {...}}}`, as distribution has them."""

    enabled: bool = False


class Deletes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of `storage: {delete: {...}}`, as distribution has them."""

    enabled: bool = False


@asynccontextmanager
async def _open_read_only(options: Maintenance, inner: Handler) -> AsyncGenerator[Handler]:
    from .restrictions import Forbid

    yield Forbid(inner, {"push", "delete"}, "the registry is read-only") if options.enabled else inner


@asynccontextmanager
async def _open_deletes(options: Deletes, inner: Handler) -> AsyncGenerator[Handler]:
    from .restrictions import Forbid

    yield inner if options.enabled else Forbid(inner, {"delete"}, "deletes are not enabled")


@hookimpl
def register_middleware() -> Mapping[str, object]:
    """Offer the middleware of this package."""
    return {
        "read_only": MiddlewareFactory(Maintenance, _open_read_only, section="storage.maintenance.readonly"),
        "deletes": MiddlewareFactory(Deletes, _open_deletes, section="storage.delete", always=True),
    }


@hookimpl
def register_authenticators() -> Mapping[str, object]:
    """Offer the authenticators of this package."""
    from ._authenticators import AUTHENTICATORS

    return AUTHENTICATORS

"""end-1: is there a registry, and how does one get in; and the list of extensions.

Not testable from outside: that a registry expires credentials or limits rates as it should (429 with Retry-After).
"""

from __future__ import annotations

import msgspec

from . import expect
from .case import Group, NotOffered
from .client import Client
from .scratch import Scratch

__all__ = ["case"]

case = Group("base", "The registry itself")


class _Extension(msgspec.Struct):
    name: str
    url: str
    description: str | None = None
    endpoints: list[str] | None = None


class _Extensions(msgspec.Struct):
    extensions: list[_Extension]


@case(section="end-1", requires=())
async def version_check_is_200(registry: Client, scratch: Scratch) -> None:
    """GET /v2/ answers 200 to a caller who may come in."""
    expect.status(await registry.version(), 200)


@case(section="end-1", requires=())
async def version_check_without_credentials_is_200_or_401(registry: Client, scratch: Scratch) -> None:
    """GET /v2/ answers 200 or 401 without credentials, and a 401 says in WWW-Authenticate what is wanted."""
    answer = await registry.send("GET", "/v2/", anonymous=True)
    expect.status(answer, 200, 401)
    if answer.status == 401:
        expect.is_true(answer, answer.headers.get("www-authenticate") is not None, "WWW-Authenticate on a 401")


@case(section="extensions", requires=(), since="1.1")
async def discovery_of_extensions_is_well_formed(registry: Client, scratch: Scratch) -> None:
    """The list of extensions, where a registry offers one, has a name and a url for each."""
    answer = await registry.send("GET", "/v2/_oci/ext/discover")
    if answer.status in {404, 405, 400}:
        raise NotOffered.by(answer, "no list of extensions")
    expect.status(answer, 200)
    expect.decoded(answer, _Extensions, 'a JSON object with the list "extensions"')

"""Repository names, tags and references: text becomes one of these types once, at the door.

Each is a `str` whose constructor checks, so that a value that exists is legal and inside nobody checks again.
Grammar: OCI distribution spec, "Pulling manifests" (`<name>`, `<tag>`).
"""

import re
from typing import Self

from ._digests import Digest
from ._errors import NameInvalid, TagInvalid

NAME_LIMIT = 255
"""The longest repository name in characters. The grammar has no limit, but many clients stop at 255."""

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_SHOWN = 100


def _quoted(text: str) -> str:
    """Return `text` so that it can stand in a message: quoted, escaped, bounded."""
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


class RepositoryName(str):
    """A repository's name, such as `library/alpine`."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check `text` against the grammar.

        Raises:
            NameInvalid: it breaks the grammar or has more than 255 characters.
        """
        if len(text) > NAME_LIMIT:
            raise NameInvalid(f"a repository name has at most {NAME_LIMIT} characters, this one has {len(text)}")
        if _NAME.fullmatch(text) is None:
            raise NameInvalid(
                f"{_quoted(text)} is not a repository name: lower-case letters and digits, separated inside a "
                "component by one dot, one or two underscores or dashes, components joined by slashes"
            )
        return super().__new__(cls, text)


class Tag(str):
    """A tag: a name that a manifest goes by in one repository, until it is moved."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check `text` against the grammar.

        Raises:
            TagInvalid: it breaks the grammar.
        """
        if _TAG.fullmatch(text) is None:
            raise TagInvalid(
                f"{_quoted(text)} is not a tag: a letter, digit or underscore, then up to 127 of these, dots and dashes"
            )
        return super().__new__(cls, text)

    @classmethod
    def fallback(cls, subject: Digest) -> Self:
        """Return the tag under which clients keep the referrers of `subject` where there is no referrers API.

        The algorithm is cut to 32 characters and the encoded part to 64; what a tag may not have becomes a dash
        (OCI distribution spec, "Referrers Tag Schema").
        """
        text = f"{subject.algorithm[:32]}-{subject.encoded[:64]}"
        return cls(re.sub(r"[^A-Za-z0-9._-]", "-", text))


Reference = Tag | Digest
"""What a manifest is asked for by."""


def parse_reference(text: str) -> Reference:
    """Return `text` as a digest if it has a colon, which no tag may have, else as a tag.

    Raises:
        DigestInvalid: it has a colon and is no digest.
        TagInvalid: it has none and is no tag.
    """
    return Digest(text) if ":" in text else Tag(text)

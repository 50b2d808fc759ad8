"""What a registry answered, and the two ways in which a case ends other than by passing."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urljoin

import httpx

__all__ = ["Answer", "CheckFailed", "NotOffered", "preparing"]

HEADERS_OF_INTEREST = (
    "Content-Type",
    "Content-Length",
    "Content-Range",
    "Content-Encoding",
    "Range",
    "Location",
    "Link",
    "ETag",
    "Docker-Content-Digest",
    "OCI-Subject",
    "OCI-Tag",
    "OCI-Filters-Applied",
    "OCI-Chunk-Min-Length",
    "OCI-Namespace",
    "Warning",
    "WWW-Authenticate",
    "Retry-After",
    "Allow",
)
SHOWN_OF_A_BODY = 400
LONGEST_SHOWN_HEADER = 300
LONGEST_SHOWN_URL = 500
ERROR_STATUS = 400


@dataclass(frozen=True, slots=True)
class Answer:
    """One exchange as the client saw it: the last one, when the registry redirected."""

    method: str
    url: str
    status: int
    headers: httpx.Headers
    body: bytes
    redirected_from: tuple[Answer, ...] = ()

    def header(self, name: str) -> str | None:
        """Return a header of this answer, or of the redirects that led here, or None."""
        for answer in (self, *reversed(self.redirected_from)):
            value: str | None = answer.headers.get(name)
            if value is not None:
                return value
        return None

    def listed(self, name: str) -> list[str]:
        """Return the members of a header that is a comma-separated list, over all its lines."""
        lines = self.headers.get_list(name)
        return [member.strip() for line in lines for member in line.split(",") if member.strip()]

    def resolve(self, reference: str) -> str:
        """Return an absolute URL for one that may be relative to this answer's."""
        return urljoin(self.url, reference)

    def __str__(self) -> str:
        phrase = httpx.codes.get_reason_phrase(self.status)
        url = self.url if len(self.url) <= LONGEST_SHOWN_URL else f"{self.url[:LONGEST_SHOWN_URL]}..."
        lines = [f"{self.method} {url} -> {self.status} {phrase}".rstrip()]
        lines += [
            f"  {name}: {value[:LONGEST_SHOWN_HEADER]}"
            for name in HEADERS_OF_INTEREST
            for value in self.headers.get_list(name)
        ]
        if self.body and self.status >= ERROR_STATUS:
            text = self.body[:SHOWN_OF_A_BODY].decode("utf-8", "backslashreplace").strip()
            lines.append(f"  body: {text}")
        return "\n".join(lines)


class CheckFailed(Exception):
    """The registry did something that the specification does not allow."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}\ngot {got}")
        self.expected = expected
        self.got = got

    @classmethod
    def of(cls, answer: Answer, expected: str, got: str = "") -> CheckFailed:
        """Make the failure of one answer; `got` says what was wrong when the answer's head does not show it."""
        return cls(expected, f"{got}\nin {answer}" if got else str(answer))


class NotOffered(Exception):
    """The registry declined something that the specification leaves to its choice."""

    @classmethod
    def by(cls, answer: Answer, reason: str) -> NotOffered:
        """Name the answer by which the registry declined."""
        return cls(f"{reason} ({answer.method} answered {answer.status})")


@contextmanager
def preparing(what: str) -> Generator[None]:
    """Mark failed checks as failures of a preparation, not of the requirement itself."""
    try:
        yield
    except CheckFailed as failure:
        raise CheckFailed(f"{failure.expected}, while preparing: {what}", failure.got) from failure


def first_failure(errors: Iterable[BaseException]) -> BaseException:
    """Return the most telling of several errors: a failed check before anything else."""
    leaves = [leaf for error in errors for leaf in _leaves(error)]
    return next((leaf for leaf in leaves if isinstance(leaf, CheckFailed)), leaves[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        inners: tuple[BaseException, ...] = error.exceptions  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - isinstance cannot name the type of the members
        for inner in inners:
            yield from _leaves(inner)
    else:
        yield error

"""Where everything lies in a store: distribution's layout, byte for byte, and what Moorage adds beside it.

    docker/registry/v2/
      blobs/<algorithm>/<first two>/<encoded>/data             content: layer, config or manifest
      repositories/<name>/
        _layers/<algorithm>/<encoded>/link                     the blob is in this repository
        _manifests/revisions/<algorithm>/<encoded>/link        the manifest is in this repository
        _manifests/tags/<tag>/current/link                     what the tag means
        _manifests/tags/<tag>/index/<algorithm>/<encoded>/link everything it ever meant
        _uploads/<upload id>/startedat                         RFC 3339, UTC, seconds
        _uploads/<upload id>/data                              bytes received
        _uploads/<upload id>/state                             Moorage's: where the session stands
        _referrers/<algorithm>/<subject>/<algorithm>/<encoded> Moorage's: descriptor of a manifest with that subject

A link's content is the digest as text without a newline. Distribution reads none of Moorage's additions, and neither
its catalog nor its collector stumbles over them.
"""

import datetime as dt
from collections.abc import Iterable
from functools import lru_cache

from ._digests import Digest
from ._errors import DigestInvalid, InternalError
from ._names import RepositoryName, Tag

LINK_LIMIT = 1024
"""More bytes than any link has."""

ROOT = "docker/registry/v2/"
REPOSITORIES = ROOT + "repositories/"


def blob(digest: Digest) -> str:
    """Return where the content of `digest` lies."""
    encoded = digest.encoded
    return f"{ROOT}blobs/{digest.algorithm}/{encoded[:2]}/{encoded}/data"


def _path(digest: Digest) -> str:
    return f"{digest.algorithm}/{digest.encoded}"


def layers(repository: RepositoryName) -> str:
    """Return below which prefix the blob links of `repository` lie."""
    return f"{REPOSITORIES}{repository}/_layers/"


def layer_link(repository: RepositoryName, digest: Digest) -> str:
    """Return the key that says that a blob is in `repository`."""
    return f"{REPOSITORIES}{repository}/_layers/{_path(digest)}/link"


def manifests(repository: RepositoryName) -> str:
    """Return below which prefix manifests and tags of `repository` are named."""
    return f"{REPOSITORIES}{repository}/_manifests/"


def revisions(repository: RepositoryName) -> str:
    """Return below which prefix the manifests of `repository` are named by digest."""
    return f"{REPOSITORIES}{repository}/_manifests/revisions/"


def revision_link(repository: RepositoryName, digest: Digest) -> str:
    """Return the key that says that a manifest is in `repository`."""
    return f"{REPOSITORIES}{repository}/_manifests/revisions/{_path(digest)}/link"


def tags(repository: RepositoryName) -> str:
    """Return below which prefix the tags of `repository` lie."""
    return f"{REPOSITORIES}{repository}/_manifests/tags/"


def tag_index(repository: RepositoryName, name: Tag) -> str:
    """Return below which prefix the history of a tag lies."""
    return f"{REPOSITORIES}{repository}/_manifests/tags/{name}/index/"


def tag_current_link(repository: RepositoryName, name: Tag) -> str:
    """Return the key that says what a tag means."""
    return f"{tags(repository)}{name}/current/link"


def tag_current_links(repository: RepositoryName, names: Iterable[Tag]) -> list[str]:
    """Return the keys that say what each of `names` means."""
    below = tags(repository)
    # To format a `Tag`, which is more than a string, takes twice as long.
    return [below + name + "/current/link" for name in names]


def tag_index_link(repository: RepositoryName, name: Tag, digest: Digest) -> str:
    """Return the key that says that a tag once meant `digest`."""
    return f"{REPOSITORIES}{repository}/_manifests/tags/{name}/index/{_path(digest)}/link"


def referrers(repository: RepositoryName, subject: Digest) -> str:
    """Return below which prefix the referrers of `subject` are named."""
    return f"{REPOSITORIES}{repository}/_referrers/{_path(subject)}/"


def referrer(repository: RepositoryName, subject: Digest, digest: Digest) -> str:
    """Return the key that holds the descriptor of one referrer."""
    return referrers(repository, subject) + _path(digest)


def uploads(repository: str) -> str:
    """Return below which prefix the upload sessions of `repository` lie."""
    return f"{REPOSITORIES}{repository}/_uploads/"


def upload(repository: str, upload_id: str) -> str:
    """Return below which prefix all of one session lies."""
    return f"{REPOSITORIES}{repository}/_uploads/{upload_id}/"


def link_content(digest: Digest) -> bytes:
    """Return what a link to `digest` holds."""
    return digest.encode()


def parse_link(content: bytes, key: str) -> Digest | None:
    """Return the digest that the link at `key` holds, or None for an empty one, which a crash of others may leave.

    White space around it is tolerated, as some tools have written a newline.

    Raises:
        InternalError: it holds something else.
    """
    try:
        return _digest_in(content)
    except DigestInvalid:
        raise InternalError(f"the link {key} holds no digest") from None


@lru_cache(4096)
def _digest_in(content: bytes) -> Digest | None:
    text = content.decode(errors="replace").strip()
    return Digest(text) if text else None


def started_at_content(seconds: float) -> bytes:
    """Return what `startedat` holds for a session that began at Unix time `seconds`."""
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ").encode()


def parse_started_at(content: bytes) -> float | None:
    """Return the Unix time that `startedat` holds, or None if it holds none."""
    try:
        return dt.datetime.fromisoformat(content.decode().strip()).timestamp()
    except (UnicodeDecodeError, ValueError):
        return None

"""What a benchmark needs of a registry before it can begin, and what it owes it in the end.

The repository is the benchmark's own, with a name that nobody else has. It is filled with what the chosen cases need, and
removed by DELETE: upload sessions that were cut off, tags, manifests, then blobs. Tags come first, since a registry that is
asked to delete a manifest looks for its tags among all there are; where tags cannot be deleted they go with their manifests.
"""

import base64
import re
import ssl
from collections.abc import Callable, Iterable
from urllib.parse import urlencode, urljoin

import msgspec

from .cases import SMALL_BLOB, SMALL_LAYERS, STORM_LAYERS, STORM_TAG, TAG, Seeded, Sizes
from .loop import Loop, Operation
from .messages import Answer, Content, Endpoint, Failed, Request
from .pace import Closed
from .scripts import (
    Left,
    Script,
    get_blob,
    make_image,
    push_blob,
    push_image,
    push_manifest,
)
from .targets import Origin, Target

_CLIENTS = 8
_UNAUTHORIZED = 401
_NOT_FOUND = 404
_CANNOT_DELETE = (400, 401, 403, 405, 415, 501)
_GONE = (200, 202, 204, 404)
_ANY = tuple(range(200, 600))
_PAGE = 1000


class CannotRun(Exception):
    """A registry cannot be measured; its text is one sentence."""


class Credentials(msgspec.Struct, frozen=True):
    """Who is asking."""

    username: str
    password: str

    @property
    def basic(self) -> str:
        """What the Authorization header says."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class Session:
    """The benchmark's repository at one target, from the first request to the last."""

    def __init__(
        self,
        target: Target,
        repository: str,
        *,
        tls: ssl.SSLContext | None,
        credentials: Credentials | None,
        timeout: float,
        may_follow: Callable[[Origin], bool],
    ) -> None:
        self.at = Endpoint(target, repository)
        self.target = target
        self.tls = tls
        self.timeout = timeout
        self.may_follow = may_follow
        self.seeded = Seeded()
        self.software = ""
        """What the registry says that it is, if it does."""
        self._credentials = credentials
        self._challenge = ""

    # ---- requests before and after

    def do(self, scripts: Iterable[Script], clients: int = 1) -> None:
        """Have scripts done, at most `clients` at once.

        Raises:
            Failed: one of them failed.
        """
        every = list(scripts)
        queue = iter(every)

        def following() -> Operation:
            return Operation("", next(queue))

        with Loop(
            self.target.origin,
            clients=min(clients, max(1, len(every))),
            pace=Closed(len(every)),
            operation=following,
            timeout=self.timeout,
            tls=self.tls,
            follow=self.may_follow,
        ) as loop:
            loop.run()
        for tally in loop.tallies.values():
            for kind, message in tally.first_errors.items():
                raise Failed(kind, message)

    def ask(self, request: Request) -> Answer:
        """Send one request and return its answer.

        Raises:
            Failed: there is none, or its status is none of those expected.
        """
        answers: list[Answer] = []

        def script() -> Script:
            answers.append((yield request))
            return 0

        self.do([script()])
        return answers[0]

    # ---- who asks

    def begin(self) -> None:
        """See whether the registry answers and lets us push; learn how it wants to know who asks.

        Raises:
            CannotRun: it does not.
        """
        ping = f"{self.target.prefix}/v2/"
        try:
            answer = self.ask(self.at.request("GET", ping, expected=(200, _UNAUTHORIZED), keep=True))
            self.software = answer.header("Server")
            if answer.status == _UNAUTHORIZED:
                self._challenge = answer.header("WWW-Authenticate")
                self.authorize()
            answer = self._try_upload()
            if answer.status == _UNAUTHORIZED and not self._challenge:
                self._challenge = answer.header("WWW-Authenticate")
                self.authorize()
                answer = self._try_upload()
            if answer.status == _UNAUTHORIZED:
                known = "the credentials are not accepted" if self._credentials else "no credentials were given"
                raise CannotRun(f"{self.target.name}: may not push to {self.at.repository}: {known}")
            self.ask(self.at.request("DELETE", answer.header("Location"), expected=(*_GONE, *_CANNOT_DELETE)))
        except Failed as failed:
            raise CannotRun(f"{self.target.name}: {self.target.url} cannot be used: {failed.message}") from failed

    def _try_upload(self) -> Answer:
        return self.ask(self.at.request("POST", "blobs/uploads/", expected=(202, _UNAUTHORIZED), keep=True))

    def authorize(self) -> None:
        """Answer the registry's challenge anew: tokens do not last.

        Raises:
            CannotRun: there is no answer to it, or the token service gives none.
        """
        kind, _, rest = self._challenge.partition(" ")
        if not self._challenge or kind.lower() == "basic":
            if self._challenge and self._credentials is None:
                raise CannotRun(f"{self.target.name}: asks who it is (Basic), and no credentials were given")
            self.at.authorization = self._credentials.basic if self._challenge and self._credentials else ""
            return
        fields: dict[str, str] = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if kind.lower() != "bearer" or not fields.get("realm"):
            raise CannotRun(f"{self.target.name}: asks who it is in a way that is not known here: {kind!r}")
        query = [("service", fields["service"])] if "service" in fields else []
        query.append(("scope", f"repository:{self.at.repository}:pull,push,delete"))
        realm = urljoin(self.target.url + "/", fields["realm"])
        url = realm + ("&" if "?" in realm else "?") + urlencode(query)
        basic = self._credentials.basic if self._credentials else ""
        try:
            answer = self.ask(self.at.request("GET", url, authorization=basic, keep=True))
            granted = msgspec.json.decode(answer.body, type=_Token)
        except (Failed, msgspec.DecodeError) as error:
            raise CannotRun(f"{self.target.name}: its token service gives no token: {error}") from error
        self.at.authorization = f"Bearer {granted.token or granted.access_token}"

    # ---- before

    def seed(self, needs: set[str], content: Content, sizes: Sizes) -> None:
        """Push what cases need.

        Raises:
            CannotRun: the registry does not take it.
        """
        try:
            self._seed(needs, content, sizes)
        except Failed as failed:
            raise CannotRun(f"{self.target.name}: cannot be filled: {failed.message}") from failed

    def _seed(self, needs: set[str], content: Content, sizes: Sizes) -> None:
        seeded, left = self.seeded, self.seeded.left
        image = make_image(content, SMALL_LAYERS)
        if needs & {"image", "tags"}:
            self.do([push_image(self.at, image, TAG, left)])
            seeded.image = image.manifest
        if "storm" in needs:
            storm = make_image(content, (sizes.storm_layer,) * STORM_LAYERS)
            self.do([push_image(self.at, storm, STORM_TAG, left)])
            seeded.storm = storm.manifest
        if "small" in needs:
            seeded.small = content.blob(SMALL_BLOB)
            self.do([push_blob(self.at, seeded.small, left)])
        if "large" in needs:
            seeded.large = content.blob(sizes.blob)
            self.do([push_blob(self.at, seeded.large, left)])
            # Once, whole and with its digest, before it is pulled for a figure.
            self.ask(get_blob(self.at, seeded.large.digest, sizes.blob, verify=True, follow=True))
        if "tags" in needs:
            tags = (f"t{number:06}" for number in range(sizes.tags - 1))
            self.do((push_manifest(self.at, tag, image.manifest, Left()) for tag in tags), _CLIENTS)
            page = self.ask(self.at.request("GET", f"tags/list?n={sizes.page}", keep=True))
            found, wanted = len(_tags_in(page)), min(sizes.page, sizes.tags)
            if found < wanted:
                raise Failed("tags", f"tags/list?n={sizes.page} gives {found} tags, not {wanted}")
            seeded.page_size = page.size

    # ---- after

    def remove(self) -> str:
        """Remove all that was pushed; return a sentence about what is left, or nothing."""
        left = self.seeded.left
        try:
            if self._challenge:
                self.authorize()
            self.do((self._delete(location) for location in left.uploads), _CLIENTS)
            manifests = set(left.manifests)
            blobs = set(left.blobs)
            self._delete_tags()
            refused = self._delete_all(f"manifests/{digest}" for digest in sorted(manifests))
            if not refused:
                # Tags that outlive their manifest in some registries.
                refused = self._delete_tags()
            refused = self._delete_all(f"blobs/{digest}" for digest in sorted(blobs)) or refused
        except (Failed, CannotRun) as error:
            return f"{self.target.name}: {self.at.repository} could not be removed and is left: {error}"
        if refused:
            return (
                f"{self.target.name}: deletes are off or refused ({refused}), so {self.at.repository} is left: "
                f"{len(manifests)} manifests, {len(blobs)} blobs"
            )
        return ""

    def _delete_tags(self) -> str:
        """Delete all tags, as `_delete_all` does."""
        refused, before, tags = "", list[str](), self._tags()
        while tags and tags != before and not refused:
            refused = self._delete_all(f"manifests/{tag}" for tag in tags)
            before, tags = tags, self._tags()
        return refused

    def _delete_all(self, places: Iterable[str]) -> str:
        """Delete; return the status with which the registry refuses to, if it does."""
        every = list(places)
        refused: list[str] = []

        def delete(place: str) -> Script:
            if not refused:
                answer = yield self.at.request("DELETE", place, expected=(*_GONE, *_CANNOT_DELETE))
                if answer.status in _CANNOT_DELETE:
                    refused.append(str(answer.status))
            return 0

        self.do(map(delete, every[:1]))
        if not refused:
            self.do(map(delete, every[1:]), _CLIENTS)
        return refused[0] if refused else ""

    def _delete(self, place: str) -> Script:
        # Sessions end by themselves, too: whatever the answer is, nothing more can be done.
        yield self.at.request("DELETE", place, expected=_ANY)
        return 0

    def _tags(self) -> list[str]:
        found = self.ask(self.at.request("GET", f"tags/list?n={_PAGE}", expected=(200, _NOT_FOUND), keep=True))
        return _tags_in(found) if found.status != _NOT_FOUND else []


def _tags_in(answer: Answer) -> list[str]:
    try:
        return msgspec.json.decode(answer.body, type=_Tags).tags or []
    except msgspec.DecodeError as error:
        raise Failed("tags", f"the list of tags is none: {error}") from error

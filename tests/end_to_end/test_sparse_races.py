"""Indexes are pushed while what they list comes and goes: none is taken that lacked something required all the while."""

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from pushing import OCI_INDEX, Json, Repository, digest_of
from servers import END_SECONDS, configured, http
from signed import SignedImage

CLIENTS = 32
ROUNDS = 12
PAUSES = (0, 0, 1, CLIENTS, 2 * CLIENTS)
REQUIRED = ("linux/amd64", "linux/arm64/v8")
OTHERS = ("linux/s390x", "attestation of linux/amd64")
NEVER_THERE = "windows/amd64"


class Done(msgspec.Struct, frozen=True):
    """Something that a client did, from when to when, and that the registry agreed to."""

    what: Literal["push", "delete", "index"]
    child: str
    began: float
    ended: float


def was_absent_throughout(index: Done, child: str, history: Sequence[Done]) -> bool:
    """Return whether `child` cannot have been there at any moment of the push `index`.

    It may have been there if somebody began to push it before the end, and it was not deleted between that push and the
    beginning.
    """
    pushes = [done for done in history if (done.what, done.child) == ("push", child) and done.began < index.ended]
    deletes = [done for done in history if (done.what, done.child) == ("delete", child) and done.ended < index.began]
    return all(any(delete.began > push.ended for delete in deletes) for push in pushes)


@pytest.mark.parametrize(
    ("history", "absent"),
    [
        ([], True),
        ([("push", 1, 2)], False),
        ([("push", 1, 2), ("delete", 3, 4)], True),
        ([("push", 1, 2), ("delete", 2.5, 10.5)], False),
        ([("push", 1, 3), ("delete", 2, 4)], False),
        ([("push", 1, 2), ("delete", 3, 4), ("push", 5, 6)], False),
        ([("push", 1, 2), ("delete", 3, 4), ("push", 10.5, 12)], False),
        ([("push", 1, 2), ("delete", 3, 4), ("push", 11.5, 12)], True),
    ],
)
def test_the_judge_knows_when_something_was_absent(
    history: Sequence[tuple[Literal["push", "delete"], float, float]], absent: bool
) -> None:
    index = Done("index", "", 10, 11)
    done = [Done(what, "a", began, ended) for what, began, ended in history]
    assert was_absent_throughout(index, "a", [*done, Done("push", "b", 1, 2)]) == absent


LIST: Json = {"indexes": {"platforms": "list", "platformlist": ["linux/amd64", "linux/arm64"]}}
NONE: Json = {"indexes": {"platforms": "none"}}
REQUIRE: Json = {"platforms": {"require": ["linux/amd64", "linux/arm64"]}}


class Race:
    """Clients of one repository, and what they did."""

    def __init__(self, url: str, image: SignedImage) -> None:
        self._url = url
        self._image = image
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._together = threading.Barrier(len(REQUIRED + OTHERS), timeout=END_SECONDS)
        self.history: list[Done] = []
        self.answers = 0
        self.refused = 0

    def push_indexes(self, number: int) -> None:
        """Push the index under tag after tag, until what it lists comes and goes no more."""
        with http(self._url) as connection:
            repository = Repository(connection, "a")
            while not self._over.is_set():
                began = time.monotonic()
                answer = repository.put(f"v{number}-{self.answers}", self._image.index, OCI_INDEX)
                done = Done("index", "", began, time.monotonic())
                assert answer.status_code in {201, 400, 403}, answer.text
                with self._changed:
                    self.answers += 1
                    if answer.status_code == 201:
                        self.history.append(done)
                    else:
                        self.refused += 1
                    self._changed.notify_all()

    def come_and_go(self, child: str) -> None:
        """Push and delete `child` again and again; in between, let some indexes be pushed, or none.

        First all come, and many indexes are pushed; in the end all are gone, and many are pushed again.
        """
        chance = random.Random(child)
        manifest = self._image.children[child]
        with http(self._url) as connection:
            repository = Repository(connection, "a")
            for count in range(ROUNDS):
                began = time.monotonic()
                assert repository.put(digest_of(manifest), manifest).status_code == 201
                self._note(Done("push", child, began, time.monotonic()), chance, together=count == 0)
                began = time.monotonic()
                answer = connection.delete(repository.manifest_url(digest_of(manifest)))
                assert answer.status_code == 202, answer.text
                self._note(Done("delete", child, began, time.monotonic()), chance, together=count == ROUNDS - 1)

    def _note(self, done: Done, chance: random.Random, *, together: bool) -> None:
        """Note what was done, and wait for some answers to pushes of indexes; `together` with the others for many."""
        with self._changed:
            self.history.append(done)
        if together:
            self._together.wait()
        with self._changed:
            until = self.answers + (max(PAUSES) if together else chance.choice(PAUSES))
            assert self._changed.wait_for(lambda: self.answers >= until, END_SECONDS)

    def run(self, children: Sequence[str]) -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            pushing = [pool.submit(self.push_indexes, number) for number in range(CLIENTS - len(children))]
            coming = [pool.submit(self.come_and_go, child) for child in children]
            try:
                for each in coming:
                    each.result()
            finally:
                self._over.set()
            for each in pushing:
                each.result()


@pytest.mark.parametrize(("manifests", "plugins"), [(LIST, {}), (NONE, REQUIRE)], ids=["list", "require"])
def test_no_index_is_taken_that_lacked_a_required_manifest_all_the_while(
    manifests: Json, plugins: Json, tmp_path: Path
) -> None:
    image = SignedImage(inner=False)
    settings: Json = {"manifests": manifests}
    with configured(tmp_path / "root", workers=2, validation=settings, plugins=plugins) as server:
        with http(server.url) as connection:
            for data in image.blobs.values():
                Repository(connection, "a").push(data)
        race = Race(server.url, image)
        race.run(REQUIRED + OTHERS)
    history = race.history
    taken = [done for done in history if done.what == "index"]
    assert taken
    assert race.refused
    assert [index for index in taken for child in REQUIRED if was_absent_throughout(index, child, history)] == []
    # The history can tell.
    assert was_absent_throughout(taken[0], NEVER_THERE, history)

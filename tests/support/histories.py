"""What many clients did to the tags of one repository at once, written down, and judged afterwards.

A round has a tag of its own that must neither move nor vanish, and two manifests that it may come to mean. Clients go
through the rounds at about the same pace, each with its own numbers, so that pushes, deletes and moves of the same things
meet.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

Verb = Literal["push", "pull", "delete tag", "delete manifest"]


class Step(NamedTuple):
    """What a client is to do: with `tag`, or with all that means manifest number `manifest` of the round."""

    round: int
    verb: Verb
    tag: str = ""
    manifest: int = 0


class Done(NamedTuple):
    """What was done between two moments; `meaning` is what was pushed or pulled, None where nothing was."""

    began: float
    ended: float
    step: Step
    accepted: bool
    meaning: str | None = None


def steps(client: int, rounds: int) -> Iterator[Step]:
    """Give what a client does, one thing after another."""
    numbers = random.Random(client)
    for number in range(rounds):
        release = f"v{number}"
        for _ in range(2):
            manifest = numbers.randrange(2)
            yield numbers.choice([
                Step(number, "push", release, manifest),
                Step(number, "push", "latest", manifest),
                Step(number, "delete manifest", "", manifest),
                Step(number, "delete manifest", "", manifest),
                Step(number, "delete tag", release),
                Step(number, "delete tag", "latest"),
                Step(number, "pull", release),
            ])
        yield Step(number, "pull", release)


def judge(history: Sequence[Done], rounds: int) -> None:
    """Fail if a release moved or vanished once its push was acknowledged, or once it was seen.

    What is not fixed must have moved and been deleted, or nothing would have been shown.
    """
    for number in range(rounds):
        _judge_round([done for done in history if done.step.round == number], f"v{number}")
    accepted = {(done.step.verb, done.step.tag[:1]) for done in history if done.accepted}
    assert accepted >= {
        ("push", "v"),
        ("push", "l"),
        ("pull", "v"),
        ("delete tag", "l"),
        ("delete manifest", ""),
    }
    assert [done for done in history if done.step.verb == "push" and not done.accepted], "nothing tried to move"


def _judge_round(history: Sequence[Done], release: str) -> None:
    of_release = [done for done in history if done.step.tag == release]
    seen = [done for done in of_release if done.meaning is not None]
    if not seen:
        return
    meanings = {done.meaning for done in seen}
    assert len(meanings) == 1, f"{release} meant {meanings}"
    first = min(done.ended for done in seen)
    for done in of_release:
        if done.step.verb == "pull":
            assert done.began < first or done.meaning is not None, f"{release} vanished: {done}"
        elif done.step.verb == "delete tag":
            assert not done.accepted, f"{release} was deleted: {done}"


def manifest_number(round_: int, which: int) -> str:
    """Return what makes the manifests of all rounds different."""
    return f"{round_}-{which}"

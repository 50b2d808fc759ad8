"""Immutable tags hold over several worker processes, whatever many clients push, move and delete at once."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from histories import Done, Step, judge, manifest_number, steps
from pushing import ACCEPT, Repository, digest_of, image
from servers import configured, http, wait_for

NAME = "team/app"
CLIENTS = 32
ROUNDS = 16
RULES = {"immutable_tags": {"repositories": ["team/**"], "tags": ["v*"]}}


def carry_out(url: str, planned: Sequence[Step]) -> list[Done]:
    """Do what is planned, one request after another, and write down what became of it."""
    history: list[Done] = []
    with http(url) as client:
        repository = Repository(client, NAME)
        for step in planned:
            data = image([], annotations={"n": manifest_number(step.round, step.manifest)})
            began = time.monotonic()
            match step.verb:
                case "push":
                    answer = repository.put(step.tag, data)
                case "pull":
                    answer = client.get(repository.manifest_url(step.tag), headers=ACCEPT)
                case "delete tag":
                    answer = client.delete(repository.manifest_url(step.tag))
                case "delete manifest":
                    answer = client.delete(repository.manifest_url(digest_of(data)))
            assert answer.status_code in {200, 201, 202, 403, 404, 409}, answer.text
            meaning = answer.headers.get("docker-content-digest") if answer.is_success else None
            history.append(Done(began, time.monotonic(), step, answer.is_success, meaning))
    return history


def test_no_immutable_tag_moves_or_vanishes_with_32_clients_and_two_workers(tmp_path: Path) -> None:
    with configured(tmp_path / "root", workers=2, plugins=RULES) as server, http(server.url) as client:
        wait_for(lambda: len(server.workers) == 2, "two workers")
        Repository(client, NAME).push(b"{}")
        history: list[Done] = []
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done in pool.map(carry_out, [server.url] * CLIENTS, [list(steps(n, ROUNDS)) for n in range(CLIENTS)]):
                history += done
        history += carry_out(server.url, [Step(number, "pull", f"v{number}") for number in range(ROUNDS)])
        judge(history, ROUNDS)
        assert len(server.workers) == 2
        repository = Repository(client, NAME)
        for tag in repository.tags() - {"latest"}:
            repository.manifest(tag)

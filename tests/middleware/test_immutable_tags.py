"""Tags that neither move nor vanish: as settings, over HTTP, and with many clients at once."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trio

from asgi_client import Answer, AsgiClient, client_of
from configurations import IN_MEMORY, configured_registry, what_is_wrong
from content import REPOSITORY, image, pull, push_blob, push_image, push_manifest, tags
from histories import Done, Step, judge, manifest_number, steps
from moorage import (
    OCI_MANIFEST,
    DeleteManifest,
    DeleteTag,
    Digest,
    Glob,
    Handler,
    PushManifest,
    Refused,
    RegistryError,
    RepositoryName,
    Tag,
    TagCondition,
    TagFixed,
)

RELEASES: Mapping[str, object] = {"tags": ["v*"], "except": ["v*-rc*"]}


class Pushes:
    """Two manifests, and an HTTP client of a registry that has their config."""

    def __init__(self, http: AsgiClient, config: Digest) -> None:
        self.http = http
        self.data = {"old": image(config), "new": image(config, config)}
        self.digests = {name: Digest.of(data) for name, data in self.data.items()}

    async def ask(self, method: str, reference: str, what: str = "", **headers: str) -> Answer:
        """Ask for `a/manifests/<reference>`, where `<old>` and `<new>` stand for the digests of these."""
        sent = {"content-type": OCI_MANIFEST} if what else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        for name, digest in self.digests.items():
            reference = reference.replace(f"<{name}>", digest)
            sent = {key: value.replace(f"<{name}>", f'"{digest}"') for key, value in sent.items()}
        body = self.data[what] if what else b""
        return await self.http.ask(method, f"/v2/a/manifests/{reference}", headers=list(sent.items()), body=body)


async def pushes_to(handler: Handler) -> Pushes:
    http = client_of(handler)
    return Pushes(http, await http.push_blob("a", b"{}"))


async def test_an_immutable_tag_neither_moves_nor_vanishes() -> None:
    async with configured_registry({"immutable_tags": RELEASES}) as handler:
        pushes = await pushes_to(handler)
        for method, reference, what, headers, status in (
            ("PUT", "v1", "old", {}, 201),
            ("PUT", "v1", "old", {}, 201),
            ("PUT", "v1", "new", {}, 409),
            ("PUT", "v1", "new", {"if_match": "<old>"}, 409),
            ("PUT", "v1", "new", {"if_none_match": "*"}, 412),
            ("PUT", "v1", "old", {"if_match": "<new>"}, 412),
            ("PUT", "v1", "old", {"if_match": "<old>"}, 201),
            ("PUT", "<new>", "new", {}, 201),
            ("PUT", "<new>?tag=v2&tag=latest", "new", {}, 201),
            ("PUT", "<old>?tag=latest&tag=v2", "old", {}, 409),
            ("PUT", "<old>?tag=latest&tag=v1-rc1", "old", {}, 201),
            ("PUT", "latest", "new", {}, 201),
            ("PUT", "v1-rc1", "new", {}, 201),
            ("DELETE", "v1", "", {}, 403),
            ("DELETE", "v1", "", {"if_match": "<old>"}, 403),
            ("DELETE", "v3", "", {}, 404),
            ("DELETE", "v1-rc1", "", {}, 202),
            ("DELETE", "v1-rc1", "", {}, 404),
            ("DELETE", "<old>", "", {}, 403),
            ("DELETE", "<new>", "", {}, 403),
            ("DELETE", str(Digest.of(b"never")), "", {}, 404),
            ("GET", "v1", "", {}, 200),
            ("HEAD", "v2", "", {}, 200),
        ):
            answer = await pushes.ask(method, reference, what, **headers)
            assert answer.status == status, (method, reference, what, headers, answer.body)
            assert answer.all("Warning") == []
        assert (await pushes.ask("GET", "v1")).body == pushes.data["old"]
        assert (await pushes.ask("GET", "v2")).body == pushes.data["new"]


async def test_a_refusal_says_which_rule_which_tag_and_what_it_means(caplog: pytest.LogCaptureFixture) -> None:
    async with configured_registry({"immutable_tags": RELEASES}) as handler:
        pushes = await pushes_to(handler)
        for tag in ("v1", "v2"):
            await pushes.ask("PUT", tag, "old")
        caplog.clear()
        for answer, named in (
            (await pushes.ask("PUT", "v1", "new"), ["v1"]),
            (await pushes.ask("DELETE", "v1"), ["v1"]),
            (await pushes.ask("DELETE", "<old>"), ["v1", "v2"]),
        ):
            (error,) = json.loads(answer.body)["errors"]
            digest = pushes.digests["old"]
            assert error["detail"] == {"rule": "immutable_tags", "tags": named, "digest": digest}
            begin = "the tag v1 is" if named == ["v1"] else "the tags v1, v2 are"
            end = "means" if named == ["v1"] else "mean"
            assert error["message"] == f"{begin} immutable here (rule immutable_tags) and {end} {digest}"
            assert error["code"] == "DENIED"
    said = [record.getMessage() for record in caplog.records if record.name == "moorage.rules"]
    assert [line.split(":")[0] for line in said] == [
        f"rule immutable_tags refuses a {operation} in a from 192.0.2.7"
        for operation in ("PushManifest", "DeleteTag", "DeleteManifest")
    ]


async def test_in_mode_warn_a_tag_moves_and_goes_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with configured_registry({"immutable_tags": {**RELEASES, "mode": "warn"}}) as handler:
        pushes = await pushes_to(handler)
        old = pushes.digests["old"]
        moved = f'299 - "immutable_tags: the tag v1 is immutable here (rule immutable_tags) and means {old}"'
        for method, reference, what, status, warnings in (
            ("PUT", "v1", "old", 201, []),
            ("PUT", "v1", "old", 201, []),
            ("PUT", "<new>?tag=latest&tag=v1", "new", 201, [moved]),
            ("PUT", "v2", "new", 201, []),
            ("DELETE", "latest", "", 202, []),
            ("DELETE", "v1", "", 202, ['299 - "immutable_tags: the tag v1 is immutable and was deleted"']),
            ("DELETE", "v1", "", 404, []),
            ("DELETE", "<new>", "", 202, ['299 - "immutable_tags: the tag v2 is immutable and was deleted"']),
        ):
            answer = await pushes.ask(method, reference, what)
            assert (answer.status, answer.all("Warning")) == (status, warnings), (method, reference)
    told = [record for record in caplog.records if record.name == "moorage.rules"]
    assert len(told) == 3
    assert {record.levelno for record in told} == {logging.WARNING}


@pytest.mark.parametrize(
    ("settings", "repository", "tag", "moves"),
    [
        ({}, "a", "anything", False),
        ({"except": ["latest", "dev-*"]}, "a", "latest", True),
        ({"except": ["latest", "dev-*"]}, "a", "v1", False),
        ({"repositories": ["prod/**"]}, "prod/a/b", "v1", False),
        ({"repositories": ["prod/**"]}, "dev/a", "v1", True),
        ({"rules": [{"repositories": ["prod/**"], "tags": ["v*"]}]}, "prod/a", "v1", False),
        ({"rules": [{"repositories": ["prod/**"], "tags": ["v*"]}]}, "prod/a", "latest", True),
        ({"rules": [{"repositories": ["prod/**"], "tags": ["v*"]}]}, "dev/a", "v1", True),
        ({"tags": ["v?"], "rules": [{"repositories": ["prod/**"], "mode": "warn"}]}, "prod/a", "v1", True),
        ({"tags": ["v?"], "rules": [{"repositories": ["prod/**"], "mode": "warn"}]}, "dev/a", "v1", False),
        ({"tags": ["v?"]}, "a", "v10", True),
    ],
)
async def test_settings_say_where_which_tags_are_immutable(
    settings: Mapping[str, object], repository: str, tag: str, moves: bool
) -> None:
    name = RepositoryName(repository)
    async with configured_registry({"immutable_tags": settings}) as handler:
        await push_image(handler, tag, repository=name, salt="old")
        if moves:
            await push_image(handler, tag, repository=name, salt="new")
        else:
            with pytest.raises(Refused) as refused:
                await push_image(handler, tag, repository=name, salt="new")
            assert refused.value.status == 409


async def test_what_another_middleware_fixes_is_left_to_it() -> None:
    async with configured_registry({"immutable_tags": RELEASES}) as handler:
        old = await push_image(handler, "x", salt="old", repository=REPOSITORY)
        await push_image(handler, "v1", salt="old")
        config = await push_blob(handler, b"{}")
        fixed = TagCondition(tags=(Glob("x"),))
        data = image(config)
        for tag, error in (("x", TagFixed), ("v1", Refused)):
            with pytest.raises(error):
                await handler(
                    PushManifest(
                        repository=REPOSITORY,
                        reference=Tag(tag),
                        media_type=OCI_MANIFEST,
                        data=data,
                        tag_condition=fixed,
                    )
                )
        assert (await pull(handler, "x")).digest == old


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tag": ["v*"]}, 'plugins.immutable_tags.tag: unknown key; did you mean "tags"?'),
        ({"but": ["v*"]}, "plugins.immutable_tags.but: unknown key"),
        ({"tags": "v*"}, "plugins.immutable_tags.tags: found text; allowed is a list"),
        ({"tags": ["v[0-9]"]}, 'plugins.immutable_tags.tags[0]: found "v[0-9]"; allowed is a pattern such as'),
        ({"except": [""]}, 'plugins.immutable_tags.except[0]: found ""; allowed is a pattern such as'),
        ({"rules": [{"tags": [["v"]]}]}, "plugins.immutable_tags.rules[0].tags[0]: found a list; allowed is a pattern"),
    ],
)
def test_what_is_wrong_in_the_settings_is_one_sentence(settings: Mapping[str, object], sentence: str) -> None:
    assert sentence in what_is_wrong({"immutable_tags": settings})


# ---- at once


class Client:
    """One of many clients of a registry in this process, who write down what they do."""

    def __init__(self, registry: Handler, config: Digest, history: list[Done]) -> None:
        self._registry = registry
        self._config = config
        self._history = history

    async def run(self, planned: Sequence[Step]) -> None:
        for step in planned:
            began = trio.current_time()
            accepted, meaning = True, None
            try:
                meaning = await self._do(step)
            except RegistryError as error:
                if error.status not in {403, 404, 409}:
                    raise
                accepted = False
            self._history.append(Done(began, trio.current_time(), step, accepted, meaning))

    async def _do(self, step: Step) -> str | None:
        data = image(self._config, annotations={"n": manifest_number(step.round, step.manifest)})
        match step.verb:
            case "push":
                return (await push_manifest(self._registry, data, step.tag)).descriptor.digest
            case "pull":
                return (await pull(self._registry, step.tag)).digest
            case "delete tag":
                await self._registry(DeleteTag(repository=REPOSITORY, tag=Tag(step.tag)))
            case "delete manifest":
                await self._registry(DeleteManifest(repository=REPOSITORY, digest=Digest.of(data)))
        return None


@pytest.mark.parametrize("driver", ["inmemory", "filesystem"])
async def test_no_immutable_tag_moves_or_vanishes_whatever_32_clients_do(driver: str, tmp_path: Path) -> None:
    rounds = 12
    storage = dict(IN_MEMORY)
    if driver == "filesystem":
        storage = {"filesystem": {"rootdirectory": str(tmp_path)}, "delete": {"enabled": True}}
    history: list[Done] = []
    async with configured_registry({"immutable_tags": RELEASES}, storage=storage) as handler:
        config = await push_blob(handler, b"{}")
        client = Client(handler, config, history)
        async with trio.open_nursery() as nursery:
            for number in range(32):
                nursery.start_soon(client.run, list(steps(number, rounds)))
        await client.run([Step(number, "pull", f"v{number}") for number in range(rounds)])
        judge(history, rounds)
        for tag in set(await tags(handler)) - {"latest"}:
            await pull(handler, tag)

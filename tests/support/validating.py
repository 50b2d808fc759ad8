"""`moorage validate` in a folder of its own: a store, a rule in a file, a configuration, and what the command prints."""

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import trio
import yaml
from click.testing import CliRunner

from content import push_image
from layouts import Layout
from moorage import (
    Digest,
    Handler,
    PullManifest,
    Registry,
    RepositoryName,
    Tag,
)
from moorage_app.cli import main
from moorage_drivers.filesystem import FilesystemDriver

T = TypeVar("T")

CONSOLE_SCRIPT = Path(sys.executable).with_name("moorage")
APP = RepositoryName("team/app")
ABSENT = Digest.of(b"absent")

RULE = """
from contextlib import asynccontextmanager

import msgspec
import trio

from moorage import ListReferrers, ListTags, PullBlob, PullManifest, PushManifest, Refused, Rule, hookimpl


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    refuse: str = ""
    warn: str = ""
    spare: bool = False
    look: bool = False
    fail: bool = False
    wait: str = ""


class House:
    def __init__(self, options):
        self._options = options

    @hookimpl
    async def requires_reference(self):
        return False if self._options.spare else None

    @hookimpl
    async def validate_manifest(self, push, manifest, registry):
        if self._options.fail:
            raise ZeroDivisionError("a fault")
        if self._options.wait:
            with open(self._options.wait, "a"):
                pass
            await trio.sleep_forever()
        if self._options.refuse and self._options.refuse in (str(push.reference), "everything"):
            endless = ["raw"]
            endless.append(endless)
            raise Refused(f"{push.reference} may not be", detail={"endless": endless})
        if self._options.look:
            config = await registry(PullBlob(repository=push.repository, digest=manifest.config.digest))
            async with config.open(1, None) as reader:
                end = b"".join([chunk async for chunk in reader])
            tags = await registry(ListTags(repository=push.repository))
            again = await registry(PullManifest(repository=push.repository, reference=tags.tags[0]))
            found = await registry(ListReferrers(repository=push.repository, subject=manifest.digest))
            return [f"{end.decode()} {len(tags.tags)} {again.digest == manifest.digest} {len(found.referrers)}"]
        return [self._options.warn] if self._options.warn else None


@asynccontextmanager
async def open_rule(options):
    if options.refuse == "opening":
        raise OSError("the list is away")
    yield House(options)


@hookimpl
def register_rules():
    return {"house": Rule(Options, open_rule)}


@hookimpl
def operation_finished(operation):
    print("OBSERVED", type(operation).__name__)
"""


class Finding(msgspec.Struct):
    """As in the JSON."""

    rule: str
    mode: str | None
    verdict: str
    refuses: bool
    says: str
    detail: object = None


class Judged(msgspec.Struct):
    """As in the JSON."""

    target: str
    repository: str
    reference: str
    digest: str | None
    accepted: bool
    findings: list[Finding]


class Problem(msgspec.Struct):
    """As in the JSON."""

    target: str
    says: str


class Document(msgspec.Struct):
    """What `--json` prints."""

    accepted: bool
    results: list[Judged]
    problems: list[Problem]
    repositories: int = 0
    references: int = 0
    refused: int = 0
    warned: int = 0


class Bench:
    """A folder with a store, a rule and a configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.rules = folder / "rules"
        self.rules.mkdir(mode=0o755)
        (self.rules / "house.py").write_text(RULE, encoding="utf-8")
        (self.rules / "house.py").chmod(0o644)
        self.file = self.configure()

    def configure(self, **options: object) -> Path:
        """Write a configuration in which the rule has `options`."""
        plugins: dict[str, object] = {"paths": [str(self.rules)]}
        if options:
            plugins["house"] = options
        settings = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(self.root)}},
            "plugins": plugins,
        }
        file = self.folder / "config.yml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        self.file = file
        return file

    def store(self, fill: Callable[[Registry], Awaitable[T]]) -> T:
        """Have something done to the store."""

        async def run() -> T:
            async with FilesystemDriver.open_root(str(self.root)) as driver:
                return await fill(Registry(driver))

        return trio.run(run)

    def run(
        self, *arguments: str | Path, stdin: bytes = b"", environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command in this process; whatever it says is no traceback."""
        cleared: dict[str, str | None] = dict.fromkeys(
            (name for name in os.environ if name.startswith("REGISTRY_")), None
        )
        words = ["validate", *map(str, arguments)]
        if environment is None:
            words += ["--config", str(self.file)]
        result = CliRunner().invoke(main, words, input=stdin, env={**cleared, **(environment or {})})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert "Traceback" not in result.output
        assert "OBSERVED" not in result.output
        return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)

    def json(self, *arguments: str | Path, code: int, stdin: bytes = b"") -> Document:
        """Run the command and return the one document that it prints."""
        done = self.run(*arguments, "--json", stdin=stdin)
        assert done.returncode == code, done
        return msgspec.json.decode(done.stdout, type=Document)

    def files(self) -> dict[str, tuple[int, int, int]]:
        """Return everything below the folder, as it is now."""
        found: dict[str, tuple[int, int, int]] = {}
        for path in self.folder.rglob("*"):
            if "__pycache__" not in path.parts:
                seen = path.stat()
                found[str(path)] = (seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size)
        return found


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one sentence with which a command ended."""
    assert done.returncode == 2, done
    lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, done
    assert lines[0].startswith(("moorage: ", "Error: "))
    return lines[0]


async def one_image(registry: Handler) -> bytes:
    """Push an image to the repository `team/app`; return its manifest."""
    await push_image(registry, "v1", repository=APP)
    return (await registry(PullManifest(repository=APP, reference=Tag("v1")))).data


def three_images(folder: Path) -> Layout:
    """Return a layout with an index of two images, and of an index of one more, under the tag `v1`."""
    made = Layout(folder)
    layer = made.blob(b"a layer")
    inner = made.index(made.image(layer, note="inner"))
    children = [made.image(layer, note=str(n)) for n in range(2)]
    made.name(made.index(*children, inner), "v1")
    return made

"""`moorage copy`, from one kind of store to another and back."""

import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from azure_storage import options as azure_options
from proxies import FaultProxy, Stall, fault_proxy
from pushing import Repository, catalog, noise
from s3 import bucket, options as s3_options
from servers import Server, configuration, configured, free_port, http, wait_for, write_configuration
from services import AzureService, S3Service

IMAGES = int(os.environ.get("MOORAGE_TEST_IMAGES", "20"))
"""How many images are moved; more where there is time."""
SECONDS = 300 + IMAGES


def settings(tmp_path: Path, name: str, storage: Mapping[str, object]) -> Path:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    return write_configuration(
        tmp_path / f"{name}.yml",
        configuration(folder, free_port()) | {"storage": {**storage, "redirect": {"disable": True}}},
    )


def files(tmp_path: Path, name: str) -> dict[str, object]:
    return {"filesystem": {"rootdirectory": str(tmp_path / name / "store")}}


def copy(*arguments: object, environment: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "moorage_app", "copy", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def fill(server: Server, images: int) -> dict[str, bytes]:
    """Push images that share layers; return what each reference means."""
    numbers = random.Random(11)
    base = [noise(numbers, 200_000), noise(numbers, 3000)]
    pushed: dict[str, bytes] = {}
    with http(server.url) as client:
        for number in range(images):
            name, tag = f"team-{number % 7}/app", f"v{number}"
            layers = [*base, noise(numbers, 5000 + number)]
            pushed[f"{name}:{tag}"] = Repository(client, name).push_image(tag, layers)
    return pushed


def served(tmp_path: Path, name: str, storage: Mapping[str, object]) -> dict[str, bytes]:
    """Return what each reference means to a registry on a store, each pulled whole and its digests verified."""
    found: dict[str, bytes] = {}
    (tmp_path / name).mkdir(exist_ok=True)
    more = {"redirect": {"disable": True}}
    with configured(tmp_path / name, workers=1, storage={**storage, **more}) as server, http(server.url) as client:
        for repository in catalog(client):
            for tag in Repository(client, repository).tags():
                found[f"{repository}:{tag}"] = Repository(client, repository).pull_image(tag)
    return found


def stored(folder: Path) -> dict[str, str]:
    """Return the digest of each file of a store."""
    root = folder / "store" / "docker"
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in root.rglob("*")
        if file.is_file() and "_uploads" not in file.parts
    }


def begin_copy(*arguments: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "moorage_app", "copy", *map(str, arguments), "--quiet"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_on_the_way(proxy: FaultProxy, method: str, count: int, source: Path, destination: Path) -> None:
    """Copy until a service has got `count` requests of `method`, and kill the copy while it waits for more answers."""
    numbers = itertools.count()
    times = 1_000_000
    proxy.reset()
    proxy.fault(lambda request: request.method == method and next(numbers) >= count, Stall(3600), times)
    process = begin_copy(source, destination)
    wait_for(
        lambda: proxy.faults_left < times or process.poll() is not None, "enough to be copied", seconds=float(SECONDS)
    )
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL


def test_images_go_from_files_to_s3_to_azure_and_back_though_killed_five_times(
    tmp_path: Path, moto: S3Service, azurite: AzureService
) -> None:
    in_s3, in_azure = s3_options(moto, bucket(moto)), azure_options(azurite)
    stores: dict[str, dict[str, object]] = {
        "files": files(tmp_path, "files"),
        "s3": {"s3": in_s3},
        "azure": {"azure": in_azure},
        "back": files(tmp_path, "back"),
    }
    configurations = {name: settings(tmp_path, name, storage) for name, storage in stores.items()}

    def finish(source: str, destination: str) -> None:
        done = copy(configurations[source], configurations[destination], "--jobs", 8, "--quiet")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr

    with fault_proxy(moto.url) as to_s3, fault_proxy(azurite.url) as to_azure:
        slow_s3 = settings(tmp_path, "s3-by-proxy", {"s3": in_s3 | {"regionendpoint": to_s3.url}})
        by_proxy = {"serviceurl": f"{to_azure.url}/{azurite.account}"}
        slow_azure = settings(tmp_path, "azure-by-proxy", {"azure": in_azure | by_proxy})
        # What is served meanwhile is copied all the same.
        with configured(tmp_path / "files", workers=1, storage=stores["files"]) as server:
            pushed = fill(server, IMAGES)
            # In the middle of blobs, and of what names them.
            for count in (IMAGES, 2 * IMAGES):
                kill_on_the_way(to_s3, "PUT", count, configurations["files"], slow_s3)
            finish("files", "s3")
        for count in (IMAGES, 2 * IMAGES):
            kill_on_the_way(to_azure, "PUT", count, configurations["s3"], slow_azure)
        finish("s3", "azure")
        kill_on_the_way(to_azure, "GET", 2 * IMAGES, slow_azure, configurations["back"])
        finish("azure", "back")
    assert stored(tmp_path / "back") == stored(tmp_path / "files")
    for name in ("s3", "azure", "back"):
        assert served(tmp_path, name, stores[name]) == pushed
        again = copy(configurations["files"], configurations[name])
        assert again.returncode == 0
        assert again.stdout.startswith("copied: 0 objects, 0 bytes; the same already: ")


def test_killed_five_times_it_arrives_whole(tmp_path: Path) -> None:
    stores = {name: files(tmp_path, name) for name in ("from", "to")}
    source, destination = (settings(tmp_path, name, storage) for name, storage in stores.items())
    with configured(tmp_path / "from", workers=1, storage=stores["from"]) as server:
        pushed = fill(server, IMAGES)
    wanted = stored(tmp_path / "from")
    blobs = tmp_path / "to" / "store" / "docker" / "registry" / "v2" / "blobs"
    for turn in range(1, 6):
        process = begin_copy(source, destination, "--jobs", 2)
        enough = turn * IMAGES // 6

        def some_arrived(enough: int = enough, process: "subprocess.Popen[bytes]" = process) -> bool:
            return len(list(blobs.rglob("data"))) >= enough or process.poll() is not None

        wait_for(some_arrived, "some blobs at the destination")
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        # What is there is whole.
        assert stored(tmp_path / "to").items() <= wanted.items()
    done = copy(source, destination)
    assert done.returncode == 0
    assert stored(tmp_path / "to") == wanted
    assert served(tmp_path, "to", stores["to"]) == pushed


def test_an_interrupt_ends_it_with_one_sentence(tmp_path: Path) -> None:
    source, destination = (settings(tmp_path, name, files(tmp_path, name)) for name in ("from", "to"))
    fifo = tmp_path / "from" / "store" / "docker" / "registry" / "v2" / "blobs" / "sha256" / "aa" / ("a" * 64) / "data"
    fifo.parent.mkdir(parents=True)
    with fifo.open("wb") as file:
        file.truncate(1 << 36)
    process = subprocess.Popen(
        [sys.executable, "-m", "moorage_app", "copy", source, destination],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    moorage_folder = tmp_path / "to" / "store" / "moorage"
    wait_for(moorage_folder.exists, "the destination to be opened")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "moorage: interrupted; what was copied stays: run it again to go on\n")
    assert stored(tmp_path / "to") == {}


def test_a_dry_run_says_what_would_be_copied_and_copies_nothing(tmp_path: Path) -> None:
    stores = {name: files(tmp_path, name) for name in ("from", "to")}
    source, destination = (settings(tmp_path, name, storage) for name, storage in stores.items())
    with configured(tmp_path / "from", workers=1, storage=stores["from"]) as server:
        fill(server, 3)
    (tmp_path / "to" / "store").mkdir()
    count, size = 0, 0
    for file in (tmp_path / "from" / "store" / "docker").rglob("*"):
        if file.is_file():
            count, size = count + 1, size + file.stat().st_size
    done = copy(source, destination, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.startswith(f"to copy: {count} objects, {size / 1000:.1f} kB; the same already: 0\n")
    assert stored(tmp_path / "to") == {}


def test_what_is_broken_at_the_source_is_named_and_left(tmp_path: Path) -> None:
    stores = {name: files(tmp_path, name) for name in ("from", "to")}
    source, destination = (settings(tmp_path, name, storage) for name, storage in stores.items())
    with configured(tmp_path / "from", workers=1, storage=stores["from"]) as server:
        pushed = fill(server, 4)
    broken = max((tmp_path / "from").rglob("data"), key=lambda file: file.stat().st_size)
    size = broken.stat().st_size
    broken.write_bytes(b"x" * size)
    done = copy(source, destination)
    assert done.returncode == 1
    assert f"{broken.parent.name}/data: its {size} bytes do not have the digest that names them" in done.stderr
    assert len(stored(tmp_path / "to")) > len(pushed)
    assert not any(broken.parent.name in key and key.startswith("registry/v2/blobs") for key in stored(tmp_path / "to"))


def test_settings_come_from_variables_of_each_side(tmp_path: Path) -> None:
    (tmp_path / "one" / "store").mkdir(parents=True)
    empty = tmp_path / "empty.yml"
    empty.write_text("version: 0.1\nstorage: filesystem\n", encoding="utf-8")
    environment = {
        "SOURCE_REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(tmp_path / "one" / "store"),
        "DESTINATION_REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(tmp_path / "two"),
        "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(tmp_path / "three"),
    }
    done = copy(empty, empty, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "two").exists()
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument 'SOURCE'"),
        (["files.yml"], "Missing argument 'DESTINATION'"),
        (["nowhere.yml", "files.yml"], "nowhere.yml"),
        (["files.yml", "files.yml"], "the source and the destination are the same store"),
        (["files.yml", "memory.yml"], "the destination is of the driver inmemory, which nothing outlives"),
        (["memory.yml", "files.yml"], "the source is of the driver inmemory, which nothing outlives"),
        (["absent.yml", "files.yml"], "absent.yml: storage.filesystem: "),
        (["files.yml", "absent.yml", "--jobs", "0"], "--jobs"),
        (["files.yml", "bucket.yml"], "bucket.yml: storage.s3: "),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_two(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "files" / "store").mkdir(parents=True)
    settings(tmp_path, "files", files(tmp_path, "files"))
    settings(tmp_path, "absent", files(tmp_path, "absent"))
    settings(tmp_path, "memory", {"inmemory": {}})
    settings(tmp_path, "bucket", {"s3": {"bucket": "b", "regionendpoint": "http://127.0.0.1:1"}})
    done = copy(*(tmp_path / each if each.endswith(".yml") else each for each in arguments))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr

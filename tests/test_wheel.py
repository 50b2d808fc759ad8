import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

TREE = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in the wheel that this tree gives."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=TREE, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def packages() -> list[Path]:
    settings = tomllib.loads((TREE / "pyproject.toml").read_text())
    return [TREE / path for path in settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel: set[str]) -> None:
    assert [package.name for package in packages()] == [
        "moorage",
        "moorage_drivers",
        "moorage_middleware",
        "moorage_app",
        "moorage_conformance",
    ]
    wanted = {
        str(path.relative_to(package.parent))
        for package in packages()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel if ".dist-info/" not in name} == wanted


def test_every_package_tells_that_it_is_typed(wheel: set[str]) -> None:
    for package in packages():
        assert f"{package.name}/py.typed" in wheel
        assert f"{package.name}/__init__.py" in wheel


def test_the_wheel_has_its_licence_entry_points_and_nothing_of_the_house(wheel: set[str]) -> None:
    names = {name.partition(".dist-info/")[2] for name in wheel if ".dist-info/" in name}
    assert {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"} <= names
    assert not [name for name in wheel if name.startswith(("tests", "docs", "core", "drivers", "examples", ".ci"))]

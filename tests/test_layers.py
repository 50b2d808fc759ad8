"""Each package is imported in a fresh interpreter, which then looks at what came with it; the examples are read."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent

PACKAGES = {"moorage", "moorage_drivers", "moorage_middleware", "moorage_app", "moorage_conformance"}
BELOW = {
    "moorage": set[str](),
    "moorage_drivers": {"moorage"},
    "moorage_middleware": {"moorage"},
    "moorage_app": {"moorage"},
    "moorage_conformance": PACKAGES - {"moorage_conformance"},
}
CORE_MAY_LOAD = {"trio", "pluggy", "msgspec", "yaml"}
# What trio and others bring with them.
CORE_MAY_LOAD_INDIRECTLY = {
    "_cffi_backend",
    "_yaml",
    "attr",
    "attrs",
    "idna",
    "outcome",
    "sniffio",
    "sortedcontainers",
    "typing_extensions",
}
# Storage libraries, servers and clients are loaded by what a configuration uses, not by being installed.
HEAVY = {"fsspec", "s3fs", "gcsfs", "adlfs", "hypercorn", "httptools", "httpx", "click", "rich", "structlog", "pytest"}


def loaded_by(module: str) -> set[str]:
    """Return the top-level modules that importing `module` loads."""
    # The import of a package that is installed in editable form may itself load modules; those are there before.
    script = f"""
import json, sys
before = set(sys.modules)
import {module}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    # Compiled parts of other libraries bring the run time of their compiler, under a name that has its version.
    return {name for name in loaded if not name.startswith(("_cython", "cython_runtime"))}


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_loads_nothing_from_beside_or_above_it(package: str) -> None:
    found = loaded_by(package)
    assert package in found
    assert found & PACKAGES <= BELOW[package] | {package}


def test_the_core_loads_the_standard_library_and_four_others() -> None:
    foreign = {name for name in loaded_by("moorage") if name not in sys.stdlib_module_names} - {"moorage"}
    assert foreign <= CORE_MAY_LOAD | CORE_MAY_LOAD_INDIRECTLY
    assert foreign >= CORE_MAY_LOAD - {"yaml"}


@pytest.mark.parametrize("package", ["moorage", "moorage_drivers", "moorage_middleware"])
def test_importing_a_plugin_package_loads_no_heavy_library(package: str) -> None:
    assert not loaded_by(package) & HEAVY


def test_importing_the_plugins_loads_none_of_their_parts() -> None:
    script = """
import json, sys
import moorage_drivers, moorage_middleware
print(json.dumps([name for name in sys.modules if name.startswith(("moorage_drivers.", "moorage_middleware."))]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def _read_of_platforms(source: str) -> list[str]:
    """Return what in `source` could decide something by platform, each with its line."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="sys"), attr="platform"):
                pass
            case ast.Attribute(attr="platform"):
                found.append(f"{node.lineno}: attribute")
            case ast.keyword(arg="platform"):
                found.append(f"{node.lineno}: argument")
            case ast.Constant(value="platform"):
                found.append(f"{node.lineno}: text")
            case ast.MatchClass(kwd_attrs=names) if "platform" in names:
                found.append(f"{node.lineno}: pattern")
            case _:
                pass
    return found + [f"{at}: word" for at, line in enumerate(source.splitlines(), 1) if "sparse" in line.lower()]


def test_what_reads_a_platform_is_found() -> None:
    source = "a.platform\nsys.platform\nf(platform=1)\ngetattr(a, 'platform')\nmatch a:\n  case B(platform=p): pass\n# Sparse\n"
    assert [each.split(": ")[1] for each in sorted(_read_of_platforms(source))] == [
        "attribute",
        "argument",
        "text",
        "pattern",
        "word",
    ]
    assert _read_of_platforms("class Descriptor:\n    platform: Platform | None = None\n") == []


def test_the_core_decides_nothing_by_platform() -> None:
    core = TOP / "core/moorage"
    found = {path.name: reads for path in core.rglob("*.py") if (reads := _read_of_platforms(path.read_text()))}
    # The look at JSON keys that differ only in case.
    assert list(found) == ["_manifests.py"]
    assert [each.split(": ")[1] for each in found["_manifests.py"]] == ["text"]


EXAMPLES = sorted((TOP / "examples").glob("*/moorage_*/"))


def imported_by(file: Path) -> set[str]:
    """Return what `file` imports, early or late, from other packages."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("package", EXAMPLES, ids=lambda package: package.name)
def test_an_example_imports_the_contract_and_nothing_else_of_moorage(package: Path) -> None:
    found = {module for file in package.rglob("*.py") for module in imported_by(file)}
    assert "moorage" in found
    foreign = {module for module in found if module.partition(".")[0] not in sys.stdlib_module_names}
    assert foreign <= {"moorage", "msgspec", "trio"}

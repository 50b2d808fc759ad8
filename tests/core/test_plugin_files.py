"""Plugins that are files in a folder: which are taken, and from whom."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import moorage
from moorage import HOOK_API, ConfigurationError, PluginManager, Plugins, hookimpl

PLUGIN = "from moorage import hookimpl\n@hookimpl\ndef requires_reference():\n    return False\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "real" / "rules"
    found.mkdir(parents=True)
    (found / "one.py").write_text(PLUGIN)
    return found


def loaded(folder: Path, **selection: tuple[str, ...]) -> dict[str, str | None]:
    """Return what became of the plugins of `folder`."""
    manager = PluginManager()
    installed = {record.name for record in _with_only_what_is_installed().records}
    manager.load(Plugins(paths=(str(folder),), **selection))
    return {record.name: record.error for record in manager.records if record.name not in installed}


def _with_only_what_is_installed() -> PluginManager:
    manager = PluginManager()
    manager.load(Plugins())
    return manager


def test_each_python_file_is_a_plugin_by_its_name(folder: Path) -> None:
    (folder / "two.py").write_text(PLUGIN)
    for other in ("_part.py", ".hidden.py", "notes.txt", "three.pyc"):
        (folder / other).write_text("this is no plugin")
    (folder / "package").mkdir()
    assert loaded(folder) == {"one": None, "two": None}
    assert loaded(folder, block=("one",)) == {"one": "blocked by the configuration", "two": None}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("no python", "cannot be imported: SyntaxError"),
        ("raise SystemExit", "cannot be imported: SystemExit"),
        ("x = 1", "implements no hook"),
        ("\0", "cannot be imported: SyntaxError"),
        (PLUGIN.replace("requires_reference()", "requires_reference(nothing)"), "nothing"),
    ],
)
def test_a_file_that_fails_is_reported_like_any_plugin(folder: Path, text: str, reason: str) -> None:
    (folder / "bad.py").write_text(text)
    found = loaded(folder)
    assert found["one"] is None
    assert reason in str(found["bad"])


def test_classes_of_a_file_are_found_by_the_name_of_their_module(folder: Path) -> None:
    (folder / "typed.py").write_text(
        "import msgspec\nfrom dataclasses import dataclass\n"
        "class A(msgspec.Struct):\n    b: 'tuple[B, ...]' = ()\n"
        "class B(msgspec.Struct):\n    c: int = 0\n"
        "@dataclass\nclass C:\n    d: 'int' = 0\n"
        "assert msgspec.convert({'b': [{'c': 1}]}, A) == A((B(1),))\n" + PLUGIN
    )
    assert loaded(folder)["typed"] is None


def test_of_two_files_with_one_name_the_second_is_not_run(folder: Path) -> None:
    other = folder.parent / "more"
    other.mkdir()
    (other / "one.py").write_text("import moorage\nmoorage.ran_twice = True\n" + PLUGIN)
    manager = PluginManager()
    manager.load(Plugins(paths=(str(folder), str(other))))
    refused = f"one ({other / 'one.py'})"
    errors = {record.name: record.error for record in manager.records}
    assert (errors["one"], errors[refused]) == (
        None,
        f"a plugin of this name is already there, from {folder / 'one.py'}",
    )
    assert not hasattr(moorage, "ran_twice")


def test_a_parent_like_tmp_is_fine(folder: Path) -> None:
    folder.parent.chmod(0o1777)
    assert loaded(folder) == {"one": None}


def _open_folder(folder: Path) -> None:
    folder.chmod(0o777)


def _open_sticky(folder: Path) -> None:
    folder.chmod(0o1777)


def _open_file(folder: Path) -> None:
    (folder / "one.py").chmod(0o664)


def _open_parent(folder: Path) -> None:
    folder.parent.chmod(0o775)


def _give_away_folder(folder: Path) -> None:
    os.chown(folder, 12345, -1)


def _give_away_file(folder: Path) -> None:
    os.chown(folder / "one.py", 12345, -1)


def _link_to_open(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "two.py").write_text(PLUGIN)
    (folder / "two.py").symlink_to(elsewhere / "two.py")
    elsewhere.chmod(0o777)


def _give_away_link(folder: Path) -> None:
    (folder / "two.py").symlink_to("one.py")
    os.lchown(folder / "two.py", 12345, -1)


def _link_in_a_circle(folder: Path) -> None:
    (folder / "two.py").symlink_to("two.py")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "two.py")


def _huge(folder: Path) -> None:
    with (folder / "two.py").open("wb") as file:
        file.truncate(1 << 30)


def _dangling(folder: Path) -> None:
    (folder / "two.py").symlink_to("nothing")


@pytest.mark.skipif(os.geteuid() != 0, reason="not tested: files of other users, which only root can make")
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_open_folder, "rules: everybody may write to it"),
        (_open_sticky, "rules: others may create files in it"),
        (_open_file, "one.py: its group may write to it"),
        (_open_parent, "real: its group may write to it"),
        (_give_away_folder, "rules: belongs to the user 12345"),
        (_give_away_file, "one.py: belongs to the user 12345"),
        (_link_to_open, "elsewhere: everybody may write to it"),
        (_give_away_link, "two.py: belongs to the user 12345"),
        (_link_in_a_circle, "two.py: too many links"),
        (_pipe, "two.py: not a file"),
        (_huge, "two.py: more than 1048576 bytes"),
        (_dangling, "two.py: No such file or directory"),
    ],
)
def test_code_that_others_could_have_written_is_not_run(
    folder: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    spoil(folder)
    with pytest.raises(ConfigurationError, match=r"^plugins\.paths: ") as refused:
        loaded(folder)
    assert sentence in str(refused.value)


def test_links_are_followed_to_what_nobody_else_can_write(folder: Path, tmp_path: Path) -> None:
    (folder.parent / "data").mkdir()
    (folder.parent / "data/two.py").write_text(PLUGIN)
    (folder / "two.py").symlink_to("../data/two.py")
    (tmp_path / "linked").symlink_to(folder)
    assert loaded(tmp_path / "linked") == {"one": None, "two": None}


# ---- the version of the hooks


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (HOOK_API[0], None),
        (HOOK_API, None),
        ((HOOK_API[0], HOOK_API[1] + 1), "this Moorage has hooks 1.4; install a newer Moorage"),
        (HOOK_API[0] + 1, "it was made for hooks 2.0, and this Moorage has hooks 1.4; install a newer Moorage"),
        (0, "it was made for hooks 0.0, and this Moorage has hooks 1.4; install a newer plugin, made for hooks 1"),
        ("1.0", "moorage_hook_api is '1.0', not a version such as 1 or (1, 4)"),
        ((1, 0, 0), "not a version"),
        (None, "not a version"),
    ],
)
def test_a_plugin_that_was_made_for_other_hooks_is_refused(said: object, sentence: str | None) -> None:
    class Plugin:
        moorage_hook_api = said

        @hookimpl
        def requires_reference(self) -> bool | None:
            return None

    record = PluginManager().register(Plugin(), "plugin")
    if sentence is None:
        assert (record.error, record.api) == (None, "1.0" if said == 1 else "1.4")
    else:
        assert sentence in str(record.error)


def test_a_plugin_that_does_not_say_is_taken() -> None:
    class Plugin:
        @hookimpl
        def requires_reference(self) -> bool | None:
            return None

    record = PluginManager().register(Plugin(), "plugin")
    assert (record.error, record.api) == (None, None)

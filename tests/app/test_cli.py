"""The command line, as its user meets it: one sentence and exit code 2 for whatever is wrong, and never a traceback."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from moorage import OCI_INDEX
from moorage_app.cli import main
from moorage_drivers import register_drivers, register_storage_middleware
from servers import configured, moorage, wait_for

CONSOLE_SCRIPT = Path(sys.executable).with_name("moorage")
CANARY = "canary-7f3a"
GOOD = "version: 0.1\nstorage: {inmemory: }\n"


def run(
    *arguments: str | Path, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the console script; whatever it says is no traceback."""
    done = subprocess.run(
        [CONSOLE_SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")},
            **(environment or {}),
        },
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def run_here(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which is quicker and good enough for those that only look."""
    cleared: dict[str, str | None] = dict.fromkeys((name for name in os.environ if name.startswith("REGISTRY_")), None)
    result = CliRunner().invoke(main, list(map(str, arguments)), env={**cleared, **(environment or {})})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one sentence with which a command was refused."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    said = done.stderr.splitlines()[-1]
    assert said.startswith(("moorage: ", "Error: ")), done.stderr
    return said


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yml"


# ---- help


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["serve", "config", "plugins", "conformance"]),
        (["-h"], ["serve"]),
        (["serve", "--help"], ["--addr", "--root", "--workers", "--log-level"]),
        (["config", "--help"], ["check", "show", "schema"]),
        (["plugins", "--help"], ["--json"]),
        (["--version"], ["moorage 0.1"]),
        (["-v"], ["moorage"]),
    ],
)
def test_help_names_what_there_is(arguments: list[str], words: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    assert done.stderr == ""
    for word in words:
        assert word in done.stdout


def test_every_command_has_a_line_of_help() -> None:
    for name, command in main.commands.items():
        assert command.get_short_help_str(), name


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "moorage_app", "--version"], capture_output=True, text=True)
    assert done.stdout == run("--version").stdout


# ---- what is wrong on the command line

BAD_ARGUMENTS: tuple[tuple[list[str], str], ...] = (
    (["nonsense"], "nonsense"),
    (["serve", "--nonsense"], "--nonsense"),
    (["serve", "--workers", "0"], "--workers"),
    (["serve", "--workers", "many"], "--workers"),
    (["serve", "--log-level", "loud"], "--log-level"),
    (["serve", "a", "b"], "b"),
    (["serve", "no-such-file.yml"], "no-such-file.yml"),
    (["serve", "no-such-file.yaml"], "no-such-file.yaml"),
    (["serve", "s3://bucket"], "region: is needed where there is no regionendpoint"),
    (["serve", "s3:///prefix"], "s3:///prefix: names no bucket"),
    (["serve", "https://host/folder"], "https://host/folder: nothing can be stored there"),
    (["serve", "magic://host"], "url, options: Protocol not known: magic"),
    (["serve", "file:///a", "--root", "other"], "other"),
    (["serve", "folder", "--root", "other"], "other"),
    (["config", "nonsense"], "nonsense"),
    (["config", "check", "no-such-file"], "no-such-file"),
    (["config", "check", "."], "."),
    (["config", "show", "no-such-file"], "no-such-file"),
    (["serve", "data", "--addr", "nonsense"], "nonsense"),
    (["serve", "data", "--addr", "a..b:5000"], "a..b"),
    (["serve", "data", "--addr", "192.0.2.1:5000"], "192.0.2.1"),
    (["serve", "data", "--addr", "127.0.0.1:99999"], "99999"),
)


@pytest.mark.parametrize(("arguments", "word"), BAD_ARGUMENTS)
def test_what_makes_no_sense_is_refused(arguments: list[str], word: str, tmp_path: Path) -> None:
    assert word in refused(run(*arguments, folder=tmp_path))
    assert not list(tmp_path.iterdir())


BAD_FILES = {
    "empty": "",
    "no mapping": "- a\n- b\n",
    "a word": "hello",
    "broken": "version: 0.1\n  storage: [\n",
    "tabs": "version:\t0.1\n\tstorage: x\n",
    "binary": "\0\1\2",
    "no version": "storage: {inmemory: }\n",
    "other version": "version: 0.2\nstorage: {inmemory: }\n",
    "no storage": "version: 0.1\n",
    "two drivers": "version: 0.1\nstorage: {inmemory: , filesystem: {rootdirectory: /srv}}\n",
    "unknown driver": "version: 0.1\nstorage: {filesytem: {rootdirectory: /srv}}\n",
    "unknown option": "version: 0.1\nstorage: {filesystem: {rotdirectory: /srv}}\n",
    "option of another type": "version: 0.1\nstorage: {filesystem: {maxthreads: many}}\n",
    "unknown key": GOOD + "htpp: {addr: ':5000'}\n",
    "key of another type": GOOD + "http: {addr: [1, 2]}\n",
    "level": GOOD + "log: {level: loud}\n",
    "duration": GOOD + "http: {draintimeout: soon}\n",
    "duplicate": GOOD + "version: 0.1\n",
    "unknown plugin": GOOD + "plugins: {nonesuch: {}}\n",
    "unknown storage middleware": GOOD + "middleware: {storage: [{name: nonesuch}]}\n",
    "certificate": GOOD + "http: {tls: {certificate: a.pem, key: a.key}}\n",
    "authentication that nobody offers": GOOD + "auth: {ldap: {realm: x}}\n",
    "passwords without a file": GOOD + "auth: {htpasswd: {realm: x}}\n",
    "a realm that breaks the header": GOOD + "auth: {htpasswd: {realm: 'a\"b', path: x}}\n",
    "groups of another type": GOOD + "auth: {htpasswd: {realm: x, path: x, groups: [a]}}\n",
    "tokens without keys": GOOD + "auth: {token: {realm: x, service: x, issuer: x}}\n",
    "keys in clear text": GOOD + "auth: {token: {realm: x, service: x, issuer: x, jwksurl: 'http://x.test/'}}\n",
    "an unknown algorithm": GOOD
    + "auth: {token: {realm: x, service: x, issuer: x, jwks: x, signingalgorithms: [none]}}\n",
    "silly without a service": GOOD + "auth: {silly: {realm: x}}\n",
    "options of nobody": GOOD + "auth: {anonymous: {realm: x}}\n",
    "an unknown part of a certificate": GOOD + "auth: {mtls: {identity: [ip]}}\n",
    "ID tokens of nobody": GOOD + "auth: {oidc: {issuers: []}}\n",
    "ID tokens for anybody": GOOD + "auth: {oidc: {issuers: [{issuer: 'https://x.test'}]}}\n",
    "mirror": GOOD + "proxy: {remoteurl: 'https://registry-1.docker.io'}\n",
    "bomb": "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: [" + "*b, " * 100 + "]\n",
    "python": "version: !!python/object/apply:os.system ['touch pwned']\nstorage: {inmemory: }\n",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_wrong_configuration_is_told_alike_by_check_and_serve(kind: str, file: Path) -> None:
    file.write_text(BAD_FILES[kind])
    checked = refused(run_here("config", "check", file))
    assert str(file) in checked or "storage" in checked
    served = refused(run("serve", file, "--workers", "1"))
    assert served == checked
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name]


@pytest.mark.parametrize(
    ("auth", "setting"),
    [
        ("{htpasswd: {realm: x, path: FOLDER}}", "auth.htpasswd.path"),
        ("{htpasswd: {realm: x, path: FOLDER/users}}", "auth.htpasswd.path"),
        ("{token: {realm: x, service: x, issuer: x, jwks: FOLDER/nowhere}}", "auth.token.jwks"),
        ("{token: {realm: x, service: x, issuer: x, jwks: FOLDER/users}}", "auth.token.jwks"),
        ("{token: {realm: x, service: x, issuer: x, rootcertbundle: FOLDER/users}}", "auth.token.rootcertbundle"),
    ],
)
def test_a_file_of_users_or_keys_that_cannot_be_used_is_told(auth: str, setting: str, tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"ann {CANARY}\n")
    file = tmp_path / "config.yml"
    file.write_text(GOOD + f"auth: {auth.replace('FOLDER', str(tmp_path))}\n")
    said = refused(run("serve", file, "--addr", "127.0.0.1:0", "--workers", "1", "--log-level", "error"))
    assert f"{setting}: " in said
    assert CANARY not in said


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "latin.yml").write_bytes(b"version: 0.1\nlog: {fields: {x: caf\xe9}}\n")
    for arguments in (["config", "check", "latin.yml"], ["serve", "latin.yml"]):
        assert "latin.yml" in refused(run(*arguments, folder=tmp_path))


@pytest.mark.parametrize("root", ["/proc/moorage", "/dev/null", "/dev/null/x", "file", "file/below"])
def test_a_root_that_cannot_be_is_told(root: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    said = refused(run("serve", "--root", root, "--addr", "127.0.0.1:0", "--log-level", "error", folder=tmp_path))
    assert root in said
    assert (tmp_path / "file").read_text() == "x"


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refused(run("serve", tmp_path / "data", "--addr", address))
    assert address in said
    assert not (tmp_path / "data").exists()


# ---- config


def test_a_good_configuration_is_called_good(file: Path) -> None:
    file.write_text(GOOD)
    done = run_here("config", "check", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: good\n", "")


def test_without_a_file_the_built_in_configuration_is_good(tmp_path: Path) -> None:
    done = run("config", "check", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "the built-in configuration: good\n")


def test_what_has_no_effect_is_a_warning(file: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "docker/registry/v2/repositories/Upper").mkdir(parents=True)
    (root / "docker/registry/v2/repositories/lower").mkdir()
    file.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\nhealth: {{storagedriver: {{enabled: true}}}}\n"
    )
    done = run_here(
        "config", "check", file, environment={"REGISTRY_PORT": "tcp://10.0.0.1:5000", "REGISTRY_HTTP_NET": "tcp"}
    )
    warnings = done.stdout.splitlines()[:-1]
    assert done.returncode == 0
    assert all(line.startswith("warning: ") for line in warnings)
    for word in ("health", "REGISTRY_PORT", "Upper"):
        assert len([line for line in warnings if word in line]) == 1
    assert "lower:" not in done.stdout


SECRETS = f"""
version: 0.1
storage: {{filesystem: {{rootdirectory: /srv}}}}
http:
  secret: {CANARY}-http
  headers: {{Authorization: ["{CANARY}-header"], X-Frame-Options: [deny]}}
redis: {{addrs: ["x:1"], password: {CANARY}-redis, sentinelpassword: {CANARY}-sentinel}}
notifications:
  endpoints: [{{name: a, url: "http://x.test", headers: {{Authorization: ["Bearer {CANARY}-bearer"]}}}}]
log:
  hooks: [{{type: mail, options: {{smtp: {{addr: "x:25", password: {CANARY}-mail}}}}}}]
"""


def test_what_is_in_effect_is_shown_without_secrets(file: Path) -> None:
    file.write_text(SECRETS)
    done = run_here(
        "config", "show", file, environment={"REGISTRY_HTTP_ADDR": ":5001", "REGISTRY_REDIS_USERNAME": "ann"}
    )
    assert done.returncode == 0
    assert CANARY not in done.stdout + done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["http"]["addr"] == ":5001"
    assert shown["http"]["secret"] == "***"
    assert shown["http"]["headers"]["X-Frame-Options"] == ["deny"]
    assert shown["storage"]["filesystem"]["rootdirectory"] == "/srv"
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())


def test_no_sentence_about_something_else_shows_a_secret(file: Path) -> None:
    file.write_text(SECRETS + "htpp: {}\n")
    for command in (["config", "check"], ["config", "show"], ["serve"]):
        done = run(*command, file)
        assert "htpp" in refused(done)
        assert CANARY not in done.stderr


def test_a_file_that_is_shown_may_be_used_as_a_configuration(file: Path) -> None:
    file.write_text(GOOD + "http: {draintimeout: 90s, prefix: /r/}\nlog: {level: debug}\ncatalog: {maxentries: 7}\n")
    shown = run_here("config", "show", file).stdout
    file.write_text(shown)
    assert run_here("config", "check", file).returncode == 0
    assert run_here("config", "show", file).stdout == shown


def test_the_schema_is_one_and_takes_what_is_good() -> None:
    done = run_here("config", "schema")
    schema = json.loads(done.stdout)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    misspelt = "version: 0.1\nstorage: {filesystem: {rootdir: /a}}\n"
    rules = GOOD + (
        "validation: {manifests: {mode: warn, urls: {allow: [^https], rules: [{deny: [a], repositories: [b/*]}]},"
        " indexes: {platforms: list, platformlist: [linux/arm64/v8, {os: linux, architecture: amd64}]}}}\n"
        "plugins: {size_limits: {mode: warn}}\n"
    )
    table = [(GOOD, True), (GOOD + "htpp: {}\n", False), (misspelt, False), (rules, True)]
    words = ("allow", "deny", "repositories", "mode", "platforms", "platformlist", "os", "size_limits")
    table += [(rules.replace(f"{word}:", f"{word}x:"), False) for word in words]
    for text, good in table:
        assert validator.is_valid(yaml.safe_load(text)) is good, text  # pyright: ignore[reportUnknownMemberType]  # its stubs


def test_the_schema_knows_the_plugins_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/few.py").write_text(
        "import msgspec\nfrom moorage import Rule, hookimpl\n"
        "class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):\n    most: int = 3\n"
        "@hookimpl\ndef register_rules():\n    return {'few': Rule(Options, open)}\n"
    )
    file = tmp_path / "config.yml"
    file.write_text(GOOD + "plugins: {paths: [rules], few: {most: 3}}\n")
    described = json.loads(run("config", "schema", file).stdout)["properties"]["plugins"]["properties"]["few"]
    assert {"most", "mode", "repositories", "rules"} == set(described["properties"])


def test_the_environment_names_the_file(file: Path) -> None:
    file.write_text(GOOD)
    environment = {"REGISTRY_CONFIGURATION_PATH": str(file)}
    assert run_here("config", "check", environment=environment).stdout == f"{file}: good\n"
    # The command line goes before it.
    assert "other.yml" in refused(run_here("config", "check", "other.yml", environment=environment))
    file.write_text("nonsense")
    assert str(file) in refused(run("serve", environment=environment))


# ---- plugins


def install(folder: Path, name: str, points: Mapping[str, str], **modules: str) -> None:
    """Put a distribution with entry points and modules into `folder`, as an installer would."""
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = "".join(f"{point} = {target}\n" for point, target in points.items())
    (info / "entry_points.txt").write_text(f"[moorage.plugins]\n{lines}")
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)


GOOD_PLUGIN = """
import click
import msgspec
from contextlib import asynccontextmanager
from moorage import DriverFactory, MemoryDriver, NoOptions, hookimpl

@asynccontextmanager
async def open_tape(options):
    yield MemoryDriver()

@hookimpl
def register_drivers():
    return {"tape": DriverFactory(NoOptions, open_tape)}

@hookimpl(optionalhook=True)
def register_commands():
    return [click.Command("rewind", callback=lambda: click.echo("rewound"), help="Rewind.")]

@hookimpl(optionalhook=True)
def register_routes():
    async def metrics(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"up 1", "more_body": False})
    return {"/metrics": metrics}
"""
PLUGINS: dict[str, tuple[str, str]] = {
    "broken_import": ("import no_such_module", "no_such_module"),
    "broken_exit": ("raise SystemExit(7)", "SystemExit"),
    "broken_text": ("raise RuntimeError('[/not] [bold]markup\\nover two lines')", "[/not] [bold]markup over two lines"),
    "broken_syntax": ("def x(:", "SyntaxError"),
    "broken_argument": ("from moorage import hookimpl\n@hookimpl\ndef validate_manifest(pushed): ...", "pushed"),
    "broken_hook": ("from moorage import hookimpl\n@hookimpl\ndef validate_everything(): ...", "validate_everything"),
    "broken_return": ("from moorage import hookimpl\n@hookimpl\ndef register_rules(): return 5", "int"),
    "broken_async": ("from moorage import hookimpl\n@hookimpl\nasync def register_drivers(): ...", "async"),
    "broken_missing": ("x = 1", "no_such_name"),
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with one good distribution and one for each way in which a plugin can be wrong."""
    folder = tmp_path / "site"
    install(folder, "good-plugin", {"tape": "tape"}, tape=GOOD_PLUGIN)
    for name, (text, _) in PLUGINS.items():
        target = f"{name}:no_such_name" if name == "broken_missing" else name
        install(folder, name.replace("_", "-"), {name: target}, **{name: text})
    install(folder, "second-plugin", {"tape": "second"}, second="")
    return folder


def with_site(site: Path, *, block: Sequence[str] = ()) -> dict[str, str]:
    return {"PYTHONPATH": str(site), "REGISTRY_PLUGINS_BLOCK": json.dumps(block)}


BROKEN = [*PLUGINS, "tape (second-plugin)"]


def test_what_is_installed_is_listed() -> None:
    done = run("plugins")
    assert done.returncode == 0
    for word in ("drivers", "filesystem", "inmemory", "middleware", "requires_reference", "0.1.0"):
        assert word in done.stdout
    records = json.loads(run("plugins", "--json").stdout)
    drivers = next(record for record in records if record["name"] == "drivers")
    assert drivers["registers"] == {
        "register_drivers": sorted(register_drivers()),
        "register_storage_middleware": sorted(register_storage_middleware()),
    }
    assert (drivers["distribution"], drivers["error"]) == ("moorage", None)


def test_plugins_that_fail_are_listed_with_the_reason_and_others_go_on(site: Path) -> None:
    done = run("plugins", "--json", environment=with_site(site))
    assert done.returncode == 1
    records = {record["name"]: record for record in json.loads(done.stdout)}
    for name, (_, reason) in PLUGINS.items():
        assert reason in records[name]["error"], records[name]
        assert (records[name]["distribution"], records[name]["version"]) == (name.replace("_", "-"), "1.2")
    tapes = [record for record in records.values() if record["name"].startswith("tape")]
    assert sorted(bool(record["error"]) for record in tapes) == [False, True]
    assert {record["distribution"] for record in tapes} == {"good-plugin", "second-plugin"}
    assert records["drivers"]["error"] is None


def test_the_table_of_plugins_shows_reasons_as_they_are(site: Path) -> None:
    done = run("plugins", environment={**with_site(site), "COLUMNS": "400"})
    assert done.returncode == 1
    for name, (_, reason) in PLUGINS.items():
        assert name in done.stdout
        assert reason in done.stdout


@pytest.mark.parametrize("command", [["serve"], ["config", "check"]])
def test_a_plugin_that_cannot_be_used_stops_the_start_until_it_is_blocked(
    site: Path, file: Path, command: list[str]
) -> None:
    file.write_text(GOOD)
    almost = with_site(site, block=[name for name in BROKEN if name != "broken_import"])
    said = run(*command, file, environment=almost)
    assert said.returncode == 2
    *logged, sentence = said.stderr.splitlines()
    assert all("broken_import" in line for line in logged)
    assert sentence == (
        "moorage: the plugin broken_import of broken-import is not in use: cannot be imported: ModuleNotFoundError: "
        "No module named 'no_such_module'; mend it, remove it, or go on without it by plugins: {block: [broken_import]}"
    )


def test_blocked_plugins_are_told_and_not_missed(site: Path, file: Path) -> None:
    file.write_text(GOOD)
    environment = with_site(site, block=BROKEN)
    done = run("config", "check", file, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"\n{file}: good\n")
    assert "warning: the plugin broken_import is not in use: blocked by the configuration" in done.stdout
    listed = run("plugins", "--json", environment=environment)
    assert listed.returncode == 0
    records = {record["name"]: record for record in json.loads(listed.stdout)}
    assert {name for name, record in records.items() if record["blocked"]} == set(BROKEN)


def test_a_broken_plugin_does_not_keep_commands_from_working(site: Path) -> None:
    helped = run("--help", environment=with_site(site))
    assert helped.returncode == 0
    assert "rewind" in helped.stdout
    assert run("rewind", environment=with_site(site)).stdout == "rewound\n"


def test_a_driver_whose_plugin_is_blocked_is_told_with_the_reason(site: Path, file: Path) -> None:
    file.write_text("version: 0.1\nstorage: {tape: {}}\n")
    said = refused(run("serve", file, environment=with_site(site, block=[*BROKEN, "tape"])))
    assert "there is no storage driver 'tape'" in said
    assert "the plugin tape is blocked" in said


@pytest.mark.parametrize(
    ("offer", "said"),
    [
        (
            "raise RuntimeError('no [/commands] today')",
            "plugin odd failed in register_commands: RuntimeError: no [/comm",
        ),
        ("return ['rewind']", "'rewind'"),
        ("return 5", "5"),
        ("return None", ""),
    ],
)
def test_a_plugin_whose_commands_fail_is_told_and_the_others_work(offer: str, said: str, tmp_path: Path) -> None:
    text = f"from moorage import hookimpl\n@hookimpl(optionalhook=True)\ndef register_commands():\n    {offer}\n"
    install(tmp_path, "odd-plugin", {"odd": "odd"}, odd=text)
    done = run("--help", environment=with_site(tmp_path))
    assert done.returncode == 0
    assert "serve" in done.stdout
    assert "conformance" in done.stdout
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == bool(said)


def test_two_plugins_that_offer_one_driver_are_told(site: Path, file: Path) -> None:
    install(site, "third-plugin", {"another": "third"}, third=GOOD_PLUGIN)
    file.write_text("version: 0.1\nstorage: {tape: {}}\n")
    said = refused(run("serve", file, environment=with_site(site, block=BROKEN)))
    assert "the plugin another" in said or "'another'" in said
    assert "'tape'" in said


# ---- serve


def test_a_folder_is_all_that_is_needed(tmp_path: Path) -> None:
    with moorage(tmp_path / "data") as server:
        assert httpx.get(f"{server.url}/v2/").json() == {}
        assert server.terminate() == 0
    assert (tmp_path / "data").is_dir()


RULE = """
from moorage import Refused, hookimpl

@hookimpl
async def validate_manifest(push):
    raise Refused("never")
"""


def test_files_of_a_folder_are_plugins(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/never.py").write_text(RULE)
    (tmp_path / "rules/_part.py").write_text("1 / 0")
    file = tmp_path / "config.yml"
    file.write_text(GOOD + "plugins: {paths: [./rules], require: [never, drivers]}\n")
    records = json.loads(run("plugins", "--json", "--config", file).stdout)
    (never,) = [record for record in records if record["name"] == "never"]
    assert (never["hooks"], never["error"]) == (["validate_manifest"], None)
    assert never["module"] == str(tmp_path / "rules/never.py")
    with moorage(file) as server:
        data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
        answer = httpx.put(f"{server.url}/v2/a/manifests/v1", content=data, headers={"Content-Type": OCI_INDEX})
        assert (answer.status_code, answer.json()["errors"][0]["detail"]) == (403, {"rule": "never"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{paths: [./rules]}", "rules: everybody may write to it, and so run code here"),
        ("{paths: [./nothing]}", "nothing: No such file or directory"),
        ("{paths: rules}", "plugins.paths: found text; allowed is a list"),
        ("{require: [nothing]}", "plugins.require: the plugin 'nothing' is not installed"),
        ("{require: [drivers], block: [drivers]}", "plugins.require: the plugin 'drivers' is not in use: blocked by"),
        ("{requires: [drivers]}", "plugins.requires: found a list; allowed is a mapping"),
        ("{nothing: {a: 1}}", "plugins.nothing: there is no middleware or rule 'nothing'"),
    ],
)
def test_what_is_wrong_with_the_choice_of_plugins_is_one_sentence(settings: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules").chmod(0o777)
    file = tmp_path / "config.yml"
    file.write_text(GOOD + f"plugins: {settings}\n")
    assert said in refused(run("serve", file)), settings


def test_a_blocked_name_of_nothing_is_a_warning(file: Path) -> None:
    file.write_text(GOOD + "plugins: {block: [nondistributabel]}\n")
    done = run("config", "check", file)
    assert (done.returncode, done.stderr) == (0, "")
    said = "plugins.block: there is no plugin 'nondistributabel'; did you mean \"nondistributable\"?"
    assert f"warning: {file}: {said}" in done.stdout


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("", "storage.delete: turns deletes off, and no plugin in use refuses them; blocked: middleware"),
        (
            "  delete: {enabled: true}\n  maintenance: {readonly: {enabled: true}}\n",
            "storage.maintenance.readonly: turns pushes and deletes off, and no plugin in use refuses them",
        ),
    ],
)
def test_who_refuses_what_is_turned_off_cannot_be_blocked(settings: str, said: str, file: Path) -> None:
    text = f"version: 0.1\nstorage:\n  inmemory: {{}}\n{settings}plugins: {{block: [middleware]}}\n"
    file.write_text(text)
    for command in (["serve"], ["config", "check"]):
        assert said in refused(run(*command, file))


def test_what_a_blocked_plugin_would_have_seen_to_is_told(file: Path) -> None:
    block = "plugins: {block: [nondistributable]}\n"
    file.write_text(GOOD + block + "auth: {badge: {realm: a}}\n")
    assert "not supported by this version, or its plugin is blocked (nondistributable)" in refused(run("serve", file))
    file.write_text(GOOD + block + "health: {storagedriver: {enabled: true}}\n")
    done = run("config", "check", file)
    assert "does not support it, or its plugin is blocked (nondistributable)" in done.stdout


def test_commands_of_blocked_plugins_are_not_there(file: Path) -> None:
    file.write_text(GOOD + "plugins: {block: [conformance]}\n")
    environment = {"REGISTRY_CONFIGURATION_PATH": str(file)}
    assert "conformance" in run("--help").stdout
    assert "conformance" not in run("--help", environment=environment).stdout


def test_calls_of_hooks_can_be_seen() -> None:
    done = run("plugins", "--trace")
    assert done.returncode == 0
    assert re.search(r"^register_drivers of drivers returned\b.* after [0-9.]+ ms$", done.stderr, re.MULTILINE)
    assert run("plugins").stderr == ""


def test_flags_go_before_the_environment_and_the_environment_before_the_file(tmp_path: Path) -> None:
    environment = {
        "REGISTRY_HTTP_ADDR": "127.0.0.1:1",
        "REGISTRY_HTTP_HEADERS_X-FROM": "[environment]",
        "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(tmp_path / "root"),
        "REGISTRY_HTTP_PREFIX": "/inner/",
    }
    file = tmp_path / "config.yml"
    file.write_text(
        "version: 0.1\nstorage: {filesystem: {rootdirectory: /nowhere/at/all}}\n"
        "http: {addr: '127.0.0.1:2', headers: {X-From: [file], X-File: [kept]}}\n"
    )
    with moorage(file, environment=environment) as server:
        answer = httpx.post(f"{server.url}/inner/v2/a/blobs/uploads/")
        assert answer.status_code == 202
        assert answer.headers["X-From"] == "environment"
        assert answer.headers["X-File"] == "kept"
        assert answer.headers["Location"].startswith("/inner/v2/a/blobs/uploads/")
        assert httpx.get(f"{server.url}/inner/v2/").status_code == 200
        assert httpx.get(f"{server.url}/v2/").status_code == 404
    assert (tmp_path / "root").is_dir()


def test_a_plugins_driver_and_routes_are_served(site: Path, tmp_path: Path) -> None:
    file = tmp_path / "tape.yml"
    file.write_text("version: 0.1\nstorage: {tape: {}}\n")
    with moorage(file, environment=with_site(site, block=BROKEN)) as server:
        assert httpx.get(f"{server.url}/metrics").text == "up 1"
        assert httpx.get(f"{server.url}/v2/_catalog").json() == {"repositories": []}


def test_a_plugin_whose_routes_fail_is_told_and_the_others_are_served(site: Path, tmp_path: Path) -> None:
    text = (
        "from moorage import hookimpl\n@hookimpl(optionalhook=True)\ndef register_routes(): raise RuntimeError('no')\n"
    )
    install(site, "odd-plugin", {"odd": "odd"}, odd=text)
    with moorage(tmp_path / "data", environment=with_site(site, block=BROKEN)) as server:
        assert httpx.get(f"{server.url}/metrics").text == "up 1"
        assert "plugin odd failed in register_routes" in server.logged()


def test_logs_are_json_where_nobody_looks_and_carry_the_requests_id(tmp_path: Path) -> None:
    with configured(tmp_path / "root", log={"fields": {"service": "x"}}) as server:
        wait_for(lambda: "listening on" in server.logged(), "a word that it listens")
        httpx.get(f"{server.url}/v2/nothing-here/tags/list")
        assert server.terminate() == 0
        lines = [json.loads(line) for line in server.logged().splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if "nothing-here" in str(line.get("path"))]
    assert (line["status"], line["code"], line["service"], line["level"]) == (404, "NAME_UNKNOWN", "x", "info")
    assert line["request_id"]
    assert any(line["event"].startswith("listening on ") for line in lines)


def test_a_memory_store_has_one_worker_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(GOOD)
    with moorage(file, workers=3) as server:
        assert len(server.workers) == 1
        assert "one worker serves, not 3" in server.logged()

"""The command line. Whatever is wrong with what the user gave is one sentence on standard error and exit code 2."""

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Never, cast

import click

from .bench_command import bench

if TYPE_CHECKING:
    from moorage import Configuration, LoadedConfiguration, PluginManager, PluginRecord


EXIT_USAGE = 2
"""What the process returns when it was asked wrongly: the same as click's."""
EXIT_INTERRUPTED = 130
"""What a shell says of a process that an interrupt has ended."""


def _fail(sentence: object) -> Never:
    click.echo(f"moorage: {sentence}", err=True)
    sys.exit(EXIT_USAGE)


def _load_plugins(
    path: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    trace: bool | None = None,
    environ: Mapping[str, str] | None = None,
) -> "PluginManager":
    """Load the plugins that the configuration at `path`, with the environment over it, wants."""
    from moorage import ConfigurationError, PluginManager, select_plugins

    from . import hooks

    plugins = PluginManager(hooks, trace=trace)
    try:
        plugins.load(select_plugins(path, os.environ if environ is None else environ, overrides=overrides))
    except ConfigurationError as error:
        _fail(error)
    return plugins


def _load_configuration(
    path: Path | None,
    plugins: "PluginManager",
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> "LoadedConfiguration":
    from moorage import ConfigurationError, PluginError, claimed_sections, load_configuration

    try:
        claimed = claimed_sections(plugins)
        return load_configuration(
            path, os.environ if environ is None else environ, overrides=overrides, claimed=claimed
        )
    except (ConfigurationError, PluginError) as error:
        _fail(error)


def _configured_path(given: Path | None) -> Path | None:
    """Return the configuration file that was given, or that the environment names as distribution's images do."""
    from moorage import CONFIGURATION_PATH

    named = os.environ.get(CONFIGURATION_PATH)
    return given or (Path(named) if named else None)


class _Commands(click.Group):
    """The commands of this module and those of plugins, which are looked for only when one of ours is not meant."""

    _added = False

    def _add_plugins(self) -> None:
        if self._added:
            return
        self._added = True
        for offered in _load_plugins(_configured_path(None)).call("register_commands"):
            for command in cast("Sequence[object]", offered) if isinstance(offered, Sequence) else [offered]:
                if not isinstance(command, click.Command):
                    click.echo(f"moorage: a plugin offers {command!r} as a command, which it is not", err=True)
                elif command.name not in self.commands:
                    self.add_command(command)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None:
            self._add_plugins()
            found = super().get_command(ctx, cmd_name)
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._add_plugins()
        return super().list_commands(ctx)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-v", "--version", package_name="moorage", message="moorage %(version)s")
def main() -> None:
    """Moorage: an OCI registry that you extend in Python."""
    # Until a command says otherwise; plugins that cannot be loaded are heard.
    logging.basicConfig(format="moorage: %(message)s", level=logging.WARNING)


# ---- serve


@main.command()
@click.argument("target", required=False)
@click.option("--addr", "--address", "address", metavar="HOST:PORT", help="Where to listen.")
@click.option("--root", metavar="FOLDER", help="Keep everything below FOLDER, on this machine's disk.")
@click.option(
    "--workers", type=click.IntRange(1, 256), help="How many processes serve; one for each processor, at most four."
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warn", "error"]), help="What is logged.")
@click.option(
    "--http-engine",
    type=click.Choice(["moorage", "stock"]),
    help="Who speaks HTTP/1.1: Moorage's own engine, or hypercorn, the stock one.",
)
def serve(
    target: str | None,
    address: str | None,
    root: str | None,
    workers: int | None,
    log_level: str | None,
    http_engine: str | None,
) -> None:
    """Serve a registry until it is told to stop.

    TARGET is a configuration file, in distribution's format, or a folder to keep everything in, or a URL such as
    s3://bucket/prefix, gs://..., az://..., sftp://host/path. Without one it is the file that REGISTRY_CONFIGURATION_PATH names, or else the folder ./data, open to this machine only.
    """
    path, overrides = _target(target, root)
    if address is not None:
        overrides["http.addr"] = address
    if log_level is not None:
        overrides["log.level"] = log_level
    if workers is not None:
        overrides["workers"] = workers
    if http_engine is not None:
        overrides["http.engine"] = http_engine
    from moorage import ConfigurationError, PluginError

    from .logs import HeldTrace
    from .serve_command import serve_registry

    held = HeldTrace()
    plugins = _load_plugins(path, overrides)
    loaded = _load_configuration(path, plugins, overrides)
    try:
        code = serve_registry(loaded, plugins, held)
    except (ConfigurationError, PluginError) as error:
        _fail(error)
    sys.exit(code)


def _target(target: str | None, root: str | None) -> tuple[Path | None, dict[str, object]]:
    """Return the configuration file that is meant, if any, and the folder to keep things in as an override."""
    from moorage import ConfigurationError

    from .serve_command import store_at

    overrides: dict[str, object] = {}
    if target == "" or root == "":
        _fail("an empty name was given for what to serve")
    if target is not None and "://" in target:
        if root is not None:
            _fail(f"two places are named to keep things in: {target} and {root}")
        # As the environment has it: there a store takes the place of the one that is there by default.
        try:
            os.environ.update(store_at(target, os.environ))
        except ConfigurationError as error:
            _fail(error)
        return None, overrides
    given = Path(target) if target is not None else None
    path = _configured_path(None) if given is None else given
    if given is not None and (given.is_dir() or (not given.exists() and given.suffix not in {".yml", ".yaml"})):
        if root is not None:
            _fail(f"two folders are named to keep things in: {target} and {root}")
        path, root = None, str(given)
    if root is not None:
        overrides["storage.filesystem.rootdirectory"] = root
    return path, overrides


# ---- config


@main.group()
def config() -> None:
    """Look at a configuration without serving it."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
def check(file: Path | None) -> None:
    """Check FILE, with the environment's overrides, and say what would be wrong or without effect."""
    from moorage import ConfigurationError, PluginError, check_options

    from .supervisor import parse_address
    from .tls import server_tls, tls_warnings

    path = _configured_path(file)
    plugins = _load_plugins(path)
    loaded = _load_configuration(path, plugins)
    http = loaded.configuration.http
    try:
        warnings = check_options(loaded.configuration, plugins)
        if http.net == "tcp":
            parse_address(http.addr)
        server_tls(loaded.configuration)
    except (ConfigurationError, PluginError) as error:
        _fail(error)
    for warning in (*loaded.warnings, *warnings, *tls_warnings(loaded.configuration)):
        click.echo(f"warning: {warning}")
    for record in plugins.records:
        if record.blocked:
            click.echo(f"warning: the plugin {record.name} is not in use: {record.error}")
    for sentence in _upper_case_repositories(loaded.configuration):
        click.echo(f"warning: {sentence}")
    click.echo(f"{path or 'the built-in configuration'}: good")


def _upper_case_repositories(configuration: "Configuration") -> list[str]:
    """Return a warning for each repository on disk that only distribution's grammar allows."""
    if configuration.storage.driver != "filesystem":
        return []
    root = Path(str(configuration.storage.parameters.get("rootdirectory", "")))
    found = root / "docker/registry/v2/repositories"
    try:
        names = sorted(entry.name for entry in found.iterdir() if entry.name != entry.name.lower())
    except OSError:
        return []
    return [
        f"{found / name}: a repository name has no upper-case letters in the OCI specification; its content "
        "cannot be asked for until it is moved to a lower-case name"
        for name in names
    ]


@config.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
def show(file: Path | None) -> None:
    """Print the configuration in effect, after defaults and the environment, with secrets starred."""
    import yaml

    path = _configured_path(file)
    loaded = _load_configuration(path, _load_plugins(path))
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(yaml.safe_dump(loaded.configuration.shown(), sort_keys=False, allow_unicode=True), nl=False)


@config.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
def schema(file: Path | None) -> None:
    """Print the JSON Schema of the configuration file, for editors, with the options of the plugins that FILE uses."""
    from moorage import PluginError, configuration_schema, offered_sections

    try:
        described = configuration_schema(offered_sections(_load_plugins(_configured_path(file))))
    except PluginError as error:
        _fail(error)
    click.echo(json.dumps(described, indent=2))


# ---- validate


@main.command()
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@click.option("--config", "file", type=click.Path(path_type=Path), help="Whose rules, and whose store.")
@click.option("--as", "pushed_as", metavar="REPOSITORY[:TAG]", help="Judge files as pushed there.")
@click.option("--media-type", metavar="TYPE", help="Judge a file as pushed with this Content-Type.")
@click.option("--all", "everything", is_flag=True, help="Judge all that is stored.")
@click.option(
    "--repository", "pattern", metavar="GLOB", help="With --all: only what is in repositories such as dev/**."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def validate(
    targets: tuple[str, ...],
    file: Path | None,
    pushed_as: str | None,
    media_type: str | None,
    pattern: str | None,
    *,
    everything: bool,
    as_json: bool,
) -> None:
    """Say what the rules of a configuration would make of a push, without a push.

    TARGET is the file of a manifest (- for standard input), an OCI image layout (a folder or a tar), or what the store
    has, as repository:tag or repository@digest. With --all it is everything that is stored. Nothing is written.

    Exit code 0 when all would be accepted, 1 when something would be refused, 2 when something cannot be judged.
    """
    _check_validate(targets, pushed_as, media_type, pattern, everything=everything)
    path = _configured_path(file)
    plugins = _load_plugins(path)
    loaded = _load_configuration(path, plugins)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    from . import validate_command

    try:
        if everything:
            code = validate_command.judge_everything(loaded.configuration, plugins, pattern, as_json=as_json)
        else:
            code = validate_command.judge(
                loaded.configuration, plugins, targets, pushed_as=pushed_as, media_type=media_type, as_json=as_json
            )
    except validate_command.Wrong as error:
        _fail(error)
    except KeyboardInterrupt:
        # click would return 1, and that means a refusal here.
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code)


def _check_validate(
    targets: Sequence[str], pushed_as: str | None, media_type: str | None, pattern: str | None, *, everything: bool
) -> None:
    """Refuse arguments that contradict each other."""
    if everything and targets:
        _fail("--all judges everything that is stored, so it takes no TARGET")
    if everything and (pushed_as is not None or media_type is not None):
        _fail("--as and --media-type are for files, not for what is stored")
    if not everything and not targets:
        _fail("say what to judge: a file, a layout, repository:tag, or --all")
    if not everything and pattern is not None:
        _fail("--repository limits what --all judges, and is of no use without it")
    if targets.count("-") > 1:
        _fail("standard input can be read once only")


# ---- bench


main.add_command(bench)


# ---- copy


@main.command()
@click.argument("source", type=click.Path(path_type=Path), required=False)
@click.argument("destination", type=click.Path(path_type=Path), required=False)
@click.option("--from-layout", metavar="PATH", help="Copy an OCI image layout, a folder or a tar, to DESTINATION.")
@click.option("--to-layout", metavar="PATH", help="Copy from SOURCE to a layout: a folder, or a tar that ends in .tar.")
@click.option(
    "--repository",
    "repositories",
    multiple=True,
    metavar="NAME",
    help="To which repository a layout goes, or from which (a pattern such as team/**; may be repeated).",
)
@click.option(
    "--tag",
    "tags",
    multiple=True,
    metavar="TAG",
    help="Only images with this tag (may be repeated); an image that is alone in a layout is called so.",
)
@click.option("--jobs", type=click.IntRange(1, 256), default=16, show_default=True, help="Objects under way at once.")
@click.option("--delete", "remove", is_flag=True, help="Remove at DESTINATION what SOURCE does not have; no content.")
@click.option("--dry-run", is_flag=True, help="Only say what would be copied.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def copy(
    source: Path | None,
    destination: Path | None,
    *,
    from_layout: str | None,
    to_layout: str | None,
    repositories: tuple[str, ...],
    tags: tuple[str, ...],
    jobs: int,
    remove: bool,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Copy all that the store of one configuration holds to the store of another one.

    With --from-layout or --to-layout an OCI image layout takes the place of one of the two: images with all that they
    need and what refers to them, such as signatures.

    Both may be served meanwhile. Cut off, it goes on where it was when it is run again; run once more before the
    switch, it copies only what is new. Every digest is verified on the way.

    REGISTRY_... variables count for neither configuration; SOURCE_REGISTRY_... and DESTINATION_REGISTRY_... do.

    Returns 0; 1 where something was left or a store failed; 2 where nothing could be begun.
    """
    from . import copy_command, copy_progress, layout_command

    try:
        layout = layout_command.layout_of(
            source, destination, from_layout, to_layout, chosen=bool(repositories or tags), remove=remove
        )
        if layout is None:
            sides = (_side(source, "SOURCE_"), _side(destination, "DESTINATION_"))
            code = copy_command.copy_store(*sides, jobs=jobs, remove=remove, dry_run=dry_run, quiet=quiet)
        else:
            into = to_layout is not None
            run = layout_command.copy_to_layout if into else layout_command.copy_from_layout
            side = _side(source, "SOURCE_" if into else "DESTINATION_")
            code = run(layout, side, repositories=repositories, tags=tags, jobs=jobs, dry_run=dry_run, quiet=quiet)
    except copy_progress.Wrong as error:
        _fail(error)
    except copy_progress.Stopped as error:
        click.echo(f"moorage: {error}", err=True)
        code = copy_progress.INCOMPLETE
    except KeyboardInterrupt:
        click.echo("moorage: interrupted; what was copied stays: run it again to go on", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code)


def _side(path: Path | None, prefix: str) -> "tuple[Configuration, PluginManager]":
    """Load one side of a copy, with those variables that begin with `prefix`."""
    environ = {name[len(prefix) :]: value for name, value in os.environ.items() if name.startswith(prefix)}
    plugins = _load_plugins(path, environ=environ)
    return _load_configuration(path, plugins, environ=environ).configuration, plugins


# ---- plugins


@main.group(invoke_without_command=True)
@click.option("--config", "file", type=click.Path(path_type=Path), help="Load what this configuration wants.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--trace", is_flag=True, help="Print each call of a hook while they are loaded.")
@click.pass_context
def plugins(context: click.Context, file: Path | None, *, as_json: bool, trace: bool) -> None:
    """List the plugins: version, hooks, what each registers, and which failed. Exit code 1 if one failed."""
    if context.invoked_subcommand is not None:
        return
    if trace:
        _print_trace()
    # What failed stands in the list.
    logging.getLogger("moorage.plugins").setLevel(logging.CRITICAL)
    records = _load_plugins(_configured_path(file), trace=trace or None).records
    if as_json:
        import msgspec

        click.echo(json.dumps(msgspec.to_builtins(records), indent=2))
    else:
        _print_plugins(records)
    sys.exit(1 if any(record.error and not record.blocked for record in records) else 0)


@plugins.command()
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["driver", "middleware", "authenticator", "validator"]),
    required=True,
    help="What it will be.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    default=".",
    show_default=True,
    help="Where the folder of the project is made.",
)
def new(name: str, kind: str, directory: Path) -> None:
    """Make the project of a new plugin, in a folder called NAME: it installs, works, and passes its tests.

    By custom the name begins with moorage-, and the rest is how it will be configured.
    """
    from .plugin_template import Kind, TemplateError, new_plugin, plugin_names

    try:
        names = plugin_names(name)
        for record in _load_plugins().records:
            for offered in record.registers.values():
                if names.name in offered:
                    _fail(f"the plugin {record.name} offers {names.name!r} already; choose another name than {name!r}")
        folder = new_plugin(names, cast("Kind", kind), directory)  # click.Choice has let nothing else through
    except TemplateError as error:
        _fail(error)
    click.echo(f"{folder}: made; it is configured as {names.name}, and its README.md says how to go on")


def _print_trace() -> None:
    """Have traced calls of hooks printed."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("moorage.plugins.trace")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _print_plugins(records: Sequence["PluginRecord"]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("plugin", "from", "hooks", "registers", box=None, pad_edge=False)
    for record in records:
        offered = [f"{hook.removeprefix('register_')}: {', '.join(names)}" for hook, names in record.registers.items()]
        brought_by = f"{record.distribution} {record.version}".strip() or record.module
        if record.api:
            brought_by += f"\nfor hooks {record.api}"
        state = "\n".join(record.hooks)
        if record.blocked:
            state = escape(record.error or "")
        elif record.error:
            state = f"[red]not in use:[/] {escape(record.error)}"
        table.add_row(escape(record.name), escape(brought_by), state, escape("\n".join(offered)))
    Console().print(table)

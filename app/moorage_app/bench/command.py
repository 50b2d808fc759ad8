"""Running `moorage bench`: options become values, registries are filled, measured in turn, and left as they were."""

import os
import re
import resource
import secrets
import signal
import ssl
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
import msgspec
from rich.console import Console

from .cases import CASES, Case, Setting, Sizes
from .messages import Content
from .processes import Bounds, Measured, measure
from .report import (
    Report,
    Result,
    TargetFacts,
    as_json,
    environment,
    medians_of,
    print_table,
    remarks,
    results_of,
)
from .scripts import Left
from .seeding import CannotRun, Credentials, Session
from .targets import Origin, Target, WrongTarget, parse_target

DONE = 0
FAILED = 1
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM

PREFIX = "moorage-bench/"
_OWN_FILES = 128
_SMALLEST = 1 << 10
_LARGEST = 16 << 30
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30}


class Wrong(Exception):
    """What was asked makes no sense, or cannot be done; its text is one sentence."""


class Terminated(BaseException):
    """The process was told to end."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says."""

    url: str
    against: Sequence[str] = ()
    only: Sequence[str] = ()
    clients: Sequence[int] = ()
    bounds: Bounds = Bounds()
    sizes: Sizes = Sizes()
    rounds: int = 3
    verify: bool = False
    follow: bool = True
    yes: bool = False
    username: str | None = None
    password: str | None = None
    cacert: Path | None = None
    insecure: bool = False
    json_path: str | None = None
    quiet: bool = False


def parse_size(text: str) -> int:
    """Return the bytes that a size such as 64MiB, 8M or 4096 means.

    Raises:
        Wrong: it means none that is allowed.
    """
    match = re.fullmatch(r"(\d{1,12})\s*([kmg]?)(?:i?b)?", text.strip().lower(), re.ASCII)
    size = int(match[1]) << _UNITS[match[2]] if match is not None else 0
    if not _SMALLEST <= size <= _LARGEST:
        raise Wrong(f"{text!r}: no size from 1KiB to 16GiB; it is written such as 64MiB")
    return size


def list_cases() -> None:
    """Print the cases."""
    for case in CASES:
        clients = ", ".join(map(str, case.clients))
        click.echo(f"{case.name:16} {case.about}; clients: {clients}")


def chosen(only: Sequence[str]) -> list[Case]:
    """Return the cases of these names; all without any.

    Raises:
        Wrong: there is none of a name.
    """
    known = {case.name: case for case in CASES}
    for name in only:
        if name not in known:
            raise Wrong(f"{name!r}: there is no such case; there are {', '.join(known)}")
    return [case for case in CASES if not only or case.name in only]


def run(options: Options, environ: Mapping[str, str]) -> int:
    """Measure, print, and return the exit code.

    Raises:
        Wrong: nothing was measured.
    """
    cases = chosen(options.only)
    try:
        targets = [parse_target(options.url), *map(parse_target, options.against)]
        names = [target.name for target in targets]
        if len(set(names)) < len(names):
            raise Wrong(f"two targets have one name: {', '.join(names)}; write --against NAME=URL")
        _raise_limit_of_files(max(options.clients or [max(case.clients) for case in cases]))
        tls = _tls(options)
        _check_json(options.json_path)
        _consent(targets, yes=options.yes)
    except WrongTarget as error:
        raise Wrong(str(error)) from error
    allowed = {target.origin.host for target in targets}

    def may_follow(origin: Origin) -> bool:
        return options.yes or origin.host in allowed or origin.is_loopback

    repository = PREFIX + secrets.token_hex(6)
    sessions = [
        Session(
            target,
            repository,
            tls=tls,
            credentials=_credentials(target, options if number == 0 else None, environ),
            timeout=options.bounds.timeout,
            may_follow=may_follow,
        )
        for number, target in enumerate(targets)
    ]
    return _Run(options, cases, sessions).run()


class _Run:
    """One run of the benchmark."""

    def __init__(self, options: Options, cases: Sequence[Case], sessions: Sequence[Session]) -> None:
        self._options = options
        self._cases = cases
        self._sessions = sessions
        self._results: list[Result] = []
        self._show = sys.stderr.isatty() and not options.quiet

    def run(self) -> int:
        """Fill, measure, remove, tell."""
        code = DONE
        begun: list[Session] = []
        left: list[str] = []
        with _terminable():
            try:
                for session in self._sessions:
                    self._tell(f"{session.target.name}: asking")
                    session.begin()
                content = Content()
                needs = {need for case in self._cases for need in case.needs}
                for session in self._sessions:
                    self._tell(f"{session.target.name}: filling {session.at.repository}")
                    begun.append(session)
                    session.seed(needs, content, self._options.sizes)
                self._measure(content)
            except KeyboardInterrupt:
                code = INTERRUPTED
            except Terminated:
                code = TERMINATED
            except CannotRun as error:
                left = self._remove(begun)
                raise Wrong("; ".join([str(error), *left])) from error
            try:
                left = self._remove(begun)
            except (KeyboardInterrupt, Terminated) as error:
                code = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
                left = [f"{session.target.name}: {session.at.repository} may be left" for session in begun]
        self._report(left, interrupted=code != DONE)
        failed = any(result.errors or result.unfinished for result in self._results)
        return code or (FAILED if failed else DONE)

    def _measure(self, content: Content) -> None:
        """Measure each case, round by round, and in each round one target after the other."""
        options = self._options
        for case in self._cases:
            for clients in options.clients or case.clients:
                for number in range(1, options.rounds + 1):
                    for session in self._sessions:
                        name = session.target.name
                        self._tell(f"{case.name}, {clients} clients, round {number} of {options.rounds}: {name}")
                        session.authorize()
                        setting = Setting(
                            at=session.at,
                            seeded=session.seeded,
                            content=content,
                            sizes=options.sizes,
                            left=Left(),
                            verify=options.verify,
                            follow=options.follow,
                        )
                        measured: Measured = measure(case, clients, session, setting, options.bounds)
                        self._results += results_of(case, clients, name, number, measured)

    def _remove(self, sessions: Sequence[Session]) -> list[str]:
        """Remove what was pushed; return sentences about what is left."""
        said: list[str] = []
        for session in sessions:
            self._tell(f"{session.target.name}: removing {session.at.repository}")
            said += filter(None, [session.remove()])
        self._tell("")
        return said

    def _report(self, left: Sequence[str], *, interrupted: bool) -> None:
        """Print the table and what is to be said about it; write JSON."""
        options = self._options
        medians = medians_of(self._results)
        to_stdout = options.json_path == "-"
        if self._results:
            print_table(medians, _console(stderr=to_stdout))
        for sentence in (*remarks(medians, self._results), *left):
            click.echo(f"moorage: {sentence}", err=True)
        if options.json_path is None:
            return
        text = as_json(
            Report(
                environment=environment(),
                options=_shown(options),
                targets=[
                    TargetFacts(session.target.name, session.target.url, session.software) for session in self._sessions
                ],
                results=self._results,
                medians=medians,
                left=left,
                interrupted=interrupted,
            )
        )
        if to_stdout:
            click.echo(text)
            return
        try:
            Path(options.json_path).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise Wrong(f"{options.json_path}: {error.strerror}") from error

    def _tell(self, what: str) -> None:
        """Show on a terminal what is going on, on a line that the next one takes."""
        if self._show:
            click.echo(f"\r\x1b[2K{what}", nl=False, err=True)


def _console(*, stderr: bool) -> Console:
    """Return where the table goes; a file or a pipe has no width that it would have to fit."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=200)


def _shown(options: Options) -> dict[str, object]:
    """Return the options that figures depend on."""
    bounds, sizes = options.bounds, options.sizes
    return {
        "seconds": bounds.seconds,
        "count": bounds.count,
        "max_pushed": bounds.most_pushed,
        "rate": bounds.rate,
        "processes": bounds.processes,
        "timeout": bounds.timeout,
        "rounds": options.rounds,
        "only": list(options.only),
        "clients": list(options.clients),
        "blob_size": sizes.blob,
        "chunk_size": sizes.chunk,
        "tags": sizes.tags,
        "verify": options.verify,
        "follow": options.follow,
    }


def _raise_limit_of_files(clients: int) -> None:
    """Allow as many connections as there are clients; each may have two, where it is redirected."""
    needed = 2 * clients + _OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise Wrong(f"{clients} clients need {needed} open files, and this process may have {hard}; see ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _tls(options: Options) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.cacert)
    except (OSError, ssl.SSLError) as error:
        raise Wrong(f"{options.cacert}: no certificates can be read there: {error}") from error
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _check_json(path: str | None) -> None:
    """Say before the work that the results will have nowhere to go."""
    if path not in {None, "-"} and path is not None:
        folder = Path(path).parent
        if Path(path).is_dir() or not os.access(folder, os.W_OK):
            raise Wrong(f"{path}: cannot be written")


def _consent(targets: Sequence[Target], *, yes: bool) -> None:
    """Ask before load is put on somebody else's machine."""
    foreign = [target for target in targets if not target.origin.is_loopback]
    if not foreign or yes:
        return
    hosts = ", ".join(target.origin.authority for target in foreign)
    if not sys.stdin.isatty():
        raise Wrong(f"{hosts}: not this machine; --yes says that it may be put under load")
    try:
        click.confirm(f"{hosts}: not this machine. Put it under load?", abort=True, err=True)
    except click.Abort:
        raise Wrong("nothing was done") from None


def _credentials(target: Target, options: Options | None, environ: Mapping[str, str]) -> Credentials | None:
    """Return who asks the target: what the command line says is for the first one only."""
    if options is not None and options.username is not None:
        return Credentials(options.username, options.password or "")
    middle = "" if options is not None else re.sub(r"[^A-Z0-9]", "_", target.name.upper()) + "_"
    username = environ.get(f"MOORAGE_BENCH_{middle}USERNAME")
    password = environ.get(f"MOORAGE_BENCH_{middle}PASSWORD")
    return Credentials(username, password or "") if username else None


@contextmanager
def _terminable() -> Generator[None]:
    """Let a request to end come as an exception, so that what was pushed is removed first."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""Registries as processes of their own, on loopback: Moorage, and distribution 2.8.2 as Debian packages it.

Each is started on a free port, waited for until it answers, and ended by its process id. When a test fails while one
runs, what it logged stands below the failure.
"""

import contextlib
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

START_SECONDS = 30.0
END_SECONDS = 60.0
_LOG_BYTES = 6000

Settings = Mapping[str, object]

TRUSTS_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients that speak without TLS: httpx else reads every authority's certificate for each, which takes 50 ms."""


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(
    condition: Callable[[], object], what: str, *, seconds: float = START_SECONDS, pause: float = 0.01
) -> None:
    """Return as soon as `condition` holds, asked again after each `pause`; fail when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)


def is_alive(pid: int) -> bool:
    """Return whether the process `pid` runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


def children(pid: int) -> list[int]:
    """Return the processes that `pid` started and that run."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [child for child in map(int, text.split()) if is_alive(child)]


def http(url: str, tls: ssl.SSLContext | None = None, *, http2: bool = False) -> httpx.Client:
    """Return a client for the registry at `url`; `tls` says whom it trusts, and as whom it comes."""
    return httpx.Client(base_url=url, timeout=60, trust_env=False, verify=tls or TRUSTS_NOBODY, http2=http2)


class Server:
    """A registry that runs in a process group of its own."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, log: Path, tls: ssl.SSLContext | None = None
    ) -> None:
        """Speak to `process`, which listens on `port` and logs to `log`, with TLS where `tls` says how."""
        self.process = process
        self.port = port
        self.log = log
        self.tls = tls
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
        self.host = f"127.0.0.1:{port}"

    @property
    def pid(self) -> int:
        """The process that was started; of Moorage the supervisor."""
        return self.process.pid

    @property
    def workers(self) -> list[int]:
        """The processes that it started."""
        return children(self.pid)

    def answers(self) -> bool:
        """Return whether it answers requests."""
        verify = self.tls or TRUSTS_NOBODY
        try:
            return httpx.get(f"{self.url}/", trust_env=False, timeout=10, verify=verify).status_code == 200
        except httpx.TransportError:
            return False

    def refuses(self) -> bool:
        """Return whether nobody listens any more."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=10).close()
        except ConnectionRefusedError:
            return True
        return False

    def wait_until_it_answers(self) -> None:
        """Return when it answers requests; fail if it ends instead."""

        def up() -> bool:
            code = self.process.poll()
            assert code is None, f"the server ended with {code} instead of serving"
            return self.answers()

        # A start takes a second or two, of which each question would take away a little.
        wait_for(up, f"an answer of {self.url}", pause=0.04)

    def wait_for_workers(self, count: int) -> None:
        """Return when all of `count` workers take connections; the first answer may come before."""
        wait_for(lambda: f"with {count} workers" in self.logged(), f"{count} workers")

    def logged(self) -> str:
        """Return the end of what it logged."""
        data = self.log.read_bytes() if self.log.exists() else b""
        return data[-_LOG_BYTES:].decode(errors="replace")

    def terminate(self) -> int:
        """Ask it to end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_SECONDS)

    def kill(self) -> None:
        """Kill it and its workers in one stroke; return when none of them runs, so that no lock of theirs is held."""
        family = [self.pid, *self.workers]
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(END_SECONDS)
        wait_for(lambda: not any(map(is_alive, family)), "the end of what was killed")

    def close(self) -> None:
        """End it, if it still runs."""
        if self.process.poll() is None:
            try:
                self.terminate()
            except subprocess.TimeoutExpired:
                self.kill()


@contextmanager
def _running(
    command: Sequence[str],
    port: int,
    log: Path,
    environment: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Generator[Server]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    server = Server(process, port, log, tls)
    try:
        server.wait_until_it_answers()
        yield server
    except BaseException as error:
        error.add_note(f"--- logged by {Path(command[0]).name} on port {port}\n{server.logged()}")
        raise
    finally:
        server.close()


def configuration(root: Path, port: int, **more: object) -> dict[str, object]:
    """Return a configuration that both registries take; `more` replaces or adds whole sections."""
    settings: dict[str, object] = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(root)}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    return settings | more


_CONSTANT = """
from moorage import hookimpl
from moorage_app import {module}

@hookimpl
def register_routes():
    return {{}}

{module}.{name} = {value!r}
"""


def with_constant(folder: Path, module: str, name: str, value: float) -> Settings:
    """Return the section `plugins` under which a constant of one of the app's modules has another value."""
    plugins = folder / f"{module}-{name.strip('_').lower()}"
    plugins.mkdir(mode=0o755)
    file = plugins / "constant.py"
    file.write_text(_CONSTANT.format(module=module, name=name, value=value))
    file.chmod(0o644)
    return {"paths": [str(plugins)]}


def patient_workers(folder: Path) -> Settings:
    """Return the section `plugins` under which workers wait for each other: connections are shared out on any machine.

    Without it, one that does not come within milliseconds, where there is much to do, goes without.
    """
    return with_constant(folder, "shares", "_PATIENCE_SECONDS", 30.0)


def write_configuration(path: Path, settings: Settings) -> Path:
    """Write `settings` as YAML, in their order: authenticators are asked in it."""
    path.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
    return path


@contextmanager
def moorage(
    target: Path | str,
    *,
    port: int | None = None,
    workers: int = 1,
    log: Path | None = None,
    around: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
    tls: ssl.SSLContext | None = None,
) -> Generator[Server]:
    """Run Moorage on `target`, a folder, a configuration file or, with `log`, a URL.

    `around` is a command that runs another one, such as `unshare`; it must become that other one, by `exec`. `python`
    belongs to the environment in which Moorage is installed. Where the configuration wants TLS, `tls` is the clients'.
    """
    port = port or free_port()
    command = [python, "-m", "moorage_app", "serve", str(target)]
    command += ["--addr", f"127.0.0.1:{port}", "--workers", str(workers)]
    with _running(
        [*around, *command], port, log or Path(target).with_name(f"{Path(target).name}.log"), environment, tls
    ) as server:
        yield server


@contextmanager
def configured(
    root: Path,
    *,
    workers: int = 1,
    port: int | None = None,
    http: Settings | None = None,
    python: str = sys.executable,
    tls: ssl.SSLContext | None = None,
    **more: object,
) -> Generator[Server]:
    """Run Moorage on `root` with a configuration file; `http` adds to that section, `more` are other sections.

    Where `http` wants TLS, `tls` is the clients'.
    """
    port = port or free_port()
    settings = configuration(root, port, **more)
    settings["http"] = {"addr": f"127.0.0.1:{port}", **(http or {})}
    file = write_configuration(root.with_name(f"{root.name}-{port}.yml"), settings)
    with moorage(file, port=port, workers=workers, python=python, tls=tls) as server:
        yield server


@contextmanager
def distribution(root: Path, *, file: Path | None = None, port: int | None = None) -> Generator[Server]:
    """Run distribution 2.8.2 on `root`, or as the configuration `file` says, which must name `port`."""
    port = port or free_port()
    if file is None:
        file = write_configuration(root.with_name(f"{root.name}-distribution-{port}.yml"), configuration(root, port))
    # Its SDK does not start with a bundle of certificates that others on this machine may want.
    environment = {"AWS_CA_BUNDLE": ""}
    with _running(["docker-registry", "serve", str(file)], port, file.with_suffix(".log"), environment) as server:
        yield server


def collect_garbage(root: Path, *flags: str) -> str:
    """Run distribution's garbage collector over `root`; return what it said."""
    file = write_configuration(root.with_name(f"{root.name}-collect.yml"), configuration(root, 0))
    command = ["docker-registry", "garbage-collect", *flags, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=END_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_tool(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a client; return what it printed. It must succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **(environment or {})}
    )
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def memory_peak(pid: int) -> int:
    """Return the most bytes that the process ever had in memory, since the start or `forget_memory_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"no VmHWM of {pid}")


def memory_now(pid: int) -> int:
    """Return how many bytes the process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def threads_of(pid: int) -> int:
    """Return how many threads the process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def forget_memory_peak(pid: int) -> None:
    """Let the peak of a process begin anew at what it has now."""
    with contextlib.suppress(PermissionError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")

"""TLS, passwords, tokens, certificates, rules, limits and the audit log all at once, in real servers and with real clients."""

import base64
import json
import os
import random
import re
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol, cast

import bcrypt
import httpx
import oras.provider
import pytest
import requests

from certificates import Authority, Pair
from images import TAG, build_image, manifest_of
from pushing import OCI_MANIFEST, Repository, image
from servers import Server, configuration, free_port, http, memory_now, moorage, run_tool, wait_for, write_configuration

PASSWORDS = {"ann": "a password of Ann", "bob": "a password of Bob", "root": "a password of root"}
GROUPS = {"devs": ["ann"]}
ACCESS: Mapping[str, object] = {
    "rules": [
        {"name": "admins", "users": ["root"], "actions": ["*"]},
        {"name": "closed", "repositories": ["team/closed/**"], "effect": "deny", "groups": ["devs"], "actions": ["*"]},
        {"name": "public", "repositories": ["public/**"], "anonymous": True, "actions": ["pull"]},
        {"name": "team", "repositories": ["team/**"], "groups": ["devs"], "actions": ["push"]},
        {"name": "machines", "repositories": ["machines/{user}/**"], "users": ["*"], "actions": ["push"]},
        {"name": "readers", "repositories": ["team/**"], "users": ["bob"], "actions": ["pull"]},
    ]
}
MACHINE = "robot.test"


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def write_passwords(file: Path, passwords: Mapping[str, str]) -> None:
    """Write hashes of `passwords`, new ones each time, in one step."""
    new = file.with_suffix(".new")
    new.write_text("".join(f"{name}:{hashed(each)}\n" for name, each in passwords.items()), encoding="utf-8")
    new.replace(file)


@dataclass(frozen=True)
class Secured:
    """A registry with everything that keeps it, and what its clients need."""

    server: Server
    folder: Path
    authority: Authority
    pair: Pair
    machine: Pair

    @property
    def passwords(self) -> Path:
        """The file of the passwords."""
        return self.folder / "htpasswd"

    @property
    def trust(self) -> Path:
        """A folder as `--cert-dir` wants it."""
        return self.folder / "trust"

    def client(self, identity: Pair | None = None, *, http2: bool = False) -> httpx.Client:
        """Return a client, by a certificate or without one."""
        return http(self.server.url, self.authority.trusted(identity), http2=http2)

    def token(self, user: str, *scopes: str) -> str:
        """Return a token for a user."""
        with self.client() as client:
            answer = client.get(
                "/auth/token", params={"service": "moorage", "scope": list(scopes)}, auth=(user, PASSWORDS[user])
            )
        assert answer.status_code == 200, answer.text
        return cast("str", answer.json()["token"])

    def audited(self) -> list[dict[str, object]]:
        """Return the lines of the audit log."""
        text = (self.folder / "audit.log").read_text(encoding="utf-8")
        return [cast("dict[str, object]", json.loads(line)) for line in text.splitlines()]


def basic(name: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"


@contextmanager
def serve(folder: Path, **more: object) -> Generator[Secured]:
    """Serve with all of it; `more` replaces sections."""
    authority = Authority(folder)
    clients = Authority(folder, "clients")
    pair, machine = authority.issue("server"), clients.issue("machine", MACHINE)
    write_passwords(folder / "htpasswd", PASSWORDS)
    trust = folder / "trust"
    trust.mkdir()
    (trust / "ca.crt").write_bytes(authority.file.read_bytes())
    tls = {
        "certificate": str(pair.certificate),
        "key": str(pair.key),
        "clientcas": [str(clients.file)],
        "clientauth": "verify-client-cert-if-given",
    }
    sections: dict[str, object] = {
        "auth": {
            "mtls": {"identity": ["san-dns"]},
            "issuer": {"keys": str(folder / "keys")},
            "htpasswd": {"realm": "the house", "path": str(folder / "htpasswd"), "groups": GROUPS},
            "anonymous": None,
        },
        "access": ACCESS,
        "audit": {"path": str(folder / "audit.log"), "pulls": True},
        "limits": {"address": {"rate": 10_000, "uploads": 50}, "user": {"rate": 10_000}, "maxblobsize": "100MiB"},
        "plugins": {"require": ["access", "audit", "limits", "issuer"]},
    } | more
    settings = {"tls": tls, "trustedproxies": ["127.0.0.1"]}
    port = free_port()
    whole = configuration(folder / "root", port, **sections)
    whole["http"] = {"addr": f"127.0.0.1:{port}", **settings}
    file = write_configuration(folder / "config.yml", whole)
    with moorage(file, port=port, workers=2, tls=authority.trusted()) as server:
        yield Secured(server, folder, authority, pair, machine)
        assert server.process.poll() is None
        assert len(server.workers) == 2
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


@pytest.fixture
def secured(tmp_path: Path) -> Generator[Secured]:
    with serve(tmp_path) as secured:
        yield secured


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_image(tmp_path_factory.mktemp("image") / "layout")


# ---- real clients


class Tool:
    """skopeo or podman, with a file of credentials and a place of its own."""

    def __init__(self, secured: Secured, folder: Path, user: str = "") -> None:
        """Be `user`, or nobody."""
        self._secured = secured
        self._authfile = folder / "auth.json"
        self._authfile.write_text("{}")
        self._folder = folder
        self._user = user

    def log_in(self, password: str = "") -> subprocess.CompletedProcess[str]:
        """Log in with skopeo."""
        command = ["skopeo", "login", f"--cert-dir={self._secured.trust}", f"--authfile={self._authfile}"]
        return subprocess.run(
            [*command, "-u", self._user, "--password-stdin", self._secured.server.host],
            input=password or PASSWORDS[self._user],
            capture_output=True,
            text=True,
            timeout=120,
        )

    def push(self, layout: Path, name: str) -> None:
        """Push with skopeo."""
        self._skopeo("copy", f"--dest-cert-dir={self._secured.trust}", f"oci:{layout}:{TAG}", self._at(name))

    def pull(self, name: str, layout: Path) -> bytes:
        """Pull with skopeo; return the manifest."""
        self._skopeo("copy", f"--src-cert-dir={self._secured.trust}", self._at(name), f"oci:{layout}:{TAG}")
        return manifest_of(layout)

    def delete(self, name: str) -> None:
        """Delete with skopeo."""
        self._skopeo("delete", f"--cert-dir={self._secured.trust}", self._at(name))

    def podman(self, verb: str, *arguments: str) -> str:
        """Run podman, which shares credentials with skopeo."""
        places = ["--root", f"{self._folder}/r", "--runroot", f"{self._folder}/n", "--storage-driver", "vfs"]
        places += ["--tmpdir", f"{self._folder}/t", "--events-backend", "none", "--cgroup-manager", "cgroupfs"]
        flags = (
            [] if verb == "rmi" else [f"--authfile={self._authfile}", f"--cert-dir={self._secured.trust}", "--quiet"]
        )
        return run_tool("podman", *places, verb, *flags, *arguments).strip()

    def _skopeo(self, *arguments: str) -> str:
        verb, *rest = arguments
        return run_tool("skopeo", "--insecure-policy", verb, f"--authfile={self._authfile}", *rest)

    def _at(self, name: str) -> str:
        return f"docker://{self._secured.server.host}/{name}:{TAG}"


@pytest.fixture
def short_path() -> Generator[Path]:
    """A folder with a short name: podman takes no run root of more than 50 characters."""
    with tempfile.TemporaryDirectory(prefix="e2e", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def tool(secured: Secured, short_path: Path, user: str = "") -> Tool:
    folder = short_path / (user or "nobody")
    folder.mkdir()
    found = Tool(secured, folder, user)
    if user:
        done = found.log_in()
        assert done.returncode == 0, done.stderr
    return found


REFUSED = r"denied|Forbidden|403"
UNKNOWN = r"unauthorized|authentication required|401|invalid username/password"


@pytest.mark.needs_tool("skopeo", "podman", "umoci")
@pytest.mark.parametrize("engine", ["moorage", "stock"])
def test_real_clients_do_what_they_may_and_nothing_else(
    engine: str, layout: Path, tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_HTTP_ENGINE", engine)
    with serve(tmp_path) as secured:
        root, ann, nobody = (tool(secured, short_path, user) for user in ("root", "ann", ""))
        assert re.search(UNKNOWN, Tool(secured, short_path, "ann").log_in("a guess").stderr)
        # Ann pushes where her group may, and pulls it again.
        ann.push(layout, "team/app")
        assert ann.pull("team/app", tmp_path / "by-ann") == manifest_of(layout)
        for name in ("public/app", "team/closed/app", "machines/robot.test/app"):
            with pytest.raises(AssertionError, match=REFUSED):
                ann.push(layout, name)
        # Deletes are a right of their own.
        with pytest.raises(AssertionError, match=REFUSED):
            ann.delete("team/app")
        # Everybody may have what is public, and nothing else.
        root.push(layout, "public/app")
        assert nobody.pull("public/app", tmp_path / "by-nobody") == manifest_of(layout)
        for name in ("team/app", "team/nothing"):
            with pytest.raises(AssertionError, match=f"{UNKNOWN}|{REFUSED}"):
                nobody.pull(name, tmp_path / "nothing")
        with pytest.raises(AssertionError, match=f"{UNKNOWN}|{REFUSED}"):
            nobody.push(layout, "public/app")
        # podman, with the same credentials.
        target = f"{secured.server.host}/team/app"
        image_id = ann.podman("pull", f"{target}:{TAG}")
        ann.podman("push", image_id, f"docker://{target}:again")
        with pytest.raises(AssertionError, match=REFUSED):
            ann.podman("push", image_id, f"docker://{secured.server.host}/public/app:again")
        ann.podman("rmi", "--all", "--force")
        assert nobody.podman("pull", f"{secured.server.host}/public/app:{TAG}") == image_id
        nobody.podman("rmi", "--all", "--force")
        root.delete("team/app")
        with pytest.raises(AssertionError, match="unknown"):
            ann.pull("team/app", tmp_path / "gone")
        told = {(line["operation"], line["user"], line["rule"], line["outcome"]) for line in secured.audited()}
        assert told >= {
            ("PushManifest", "ann", "team", "done"),
            ("PullManifest", "", "public", "done"),
            ("DeleteManifest", "root", "admins", "done"),
            ("IssueToken", "ann", "", "done"),
            ("IssueToken", "", "", "denied"),
        }


class OrasAuth(Protocol):
    """What is used of `oras.auth.token.TokenAuth`, whose own types are incomplete."""

    def set_token_auth(self, token: str) -> None: ...


class OrasClient(Protocol):
    """What is used of `oras.provider.Registry`, whose own types are incomplete."""

    auth: OrasAuth
    session: requests.Session

    def push(self, target: str, *, files: list[str], disable_path_validation: bool, quiet: bool) -> object: ...
    def pull(self, target: str, *, outdir: str) -> list[str]: ...


def not_waiting(seconds: float) -> None:
    assert seconds > 0


def test_oras_pushes_and_pulls_what_its_token_is_for(
    secured: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(secured.authority.file))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "note.txt").write_text("hello", encoding="utf-8")
    client = cast("OrasClient", oras.provider.Registry(hostname=secured.server.host, auth_backend="token"))
    client.auth.set_token_auth(secured.token("ann", "repository:team/oras:pull,push", "repository:public/a:pull,push"))
    files = [str(tmp_path / "note.txt")]
    try:
        target = f"{secured.server.host}/team/oras:v1"
        client.push(target, files=files, disable_path_validation=True, quiet=True)
        (pulled,) = client.pull(target, outdir=str(tmp_path / "out"))
        assert Path(pulled).read_text(encoding="utf-8") == "hello"
        # It takes a 403 for a question, too, and asks five times more, after two minutes in all; nobody need wait for that.
        monkeypatch.setattr("oras.decorator.time", SimpleNamespace(sleep=not_waiting))
        with pytest.raises(ValueError, match="Cannot respond to request for authentication"):
            client.push(f"{secured.server.host}/public/a:v1", files=files, disable_path_validation=True, quiet=True)
    finally:
        client.session.close()


@pytest.mark.needs_tool("curl")
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_machine_is_known_by_its_certificate(secured: Secured, version: str) -> None:
    def status(method: str, path: str, *, machine: bool) -> tuple[str, str]:
        command = ["curl", "-sS", version, "--cacert", str(secured.authority.file), "-X", method]
        if machine:
            command += ["--cert", str(secured.machine.certificate), "--key", str(secured.machine.key)]
        command += ["-o", os.devnull, "-w", "%{http_code} %{http_version}", f"{secured.server.url}{path}"]
        code, spoken = run_tool(*command).split()
        return code, spoken

    expected = version.removeprefix("--http")
    mine, other = f"/v2/machines/{MACHINE}/app", "/v2/machines/other/app"
    # curl ends up with HTTP/1.1 where the server prefers it, and offers HTTP/2 beside it.
    assert status("GET", "/v2/", machine=True)[0] == "200"
    assert status("GET", f"{mine}/tags/list", machine=True)[0] == "404"
    assert status("GET", f"{other}/tags/list", machine=True)[0] == "403"
    assert status("GET", "/v2/team/app/tags/list", machine=True)[0] == "403"
    assert status("GET", f"{mine}/tags/list", machine=False)[0] == "401"
    assert status("GET", "/v2/public/app/tags/list", machine=False) in {("404", expected), ("404", "1.1")}


def test_a_machine_pushes_and_pulls_and_a_stranger_is_not_let_in(secured: Secured) -> None:
    with secured.client(secured.machine) as client:
        repository = Repository(client, f"machines/{MACHINE}/app")
        manifest = repository.push_image("v1", [b"layer"])
        assert repository.pull_image("v1") == manifest
        refused = client.put("/v2/team/app/manifests/v1", content=manifest, headers={"Content-Type": OCI_MANIFEST})
        assert refused.status_code == 403
    stranger = Authority(secured.folder, "strangers").issue("stranger", MACHINE)
    with pytest.raises(httpx.TransportError), secured.client(stranger) as client:
        client.get("/v2/")
    done = [line for line in secured.audited() if line["user"] == MACHINE]
    assert {(line["rule"], line["outcome"]) for line in done} == {("machines", "done"), ("access.default", "denied")}


# ---- every request, once


@dataclass(frozen=True)
class Question:
    """A request, who asks, and what is to be answered and written down."""

    who: str
    method: str
    path: str
    status: int
    rule: str
    body: bytes = b""


EMPTY = image([])
QUESTIONS: Sequence[Question] = (
    Question("nobody", "GET", "/v2/public/app/manifests/v1", 200, "public"),
    Question("nobody", "GET", "/v2/public/nothing/manifests/v1", 404, "public"),
    Question("nobody", "GET", "/v2/team/app/manifests/v1", 401, "access.default"),
    Question("nobody", "PUT", "/v2/public/app/manifests/v2", 401, "access.default", EMPTY),
    Question("nobody", "GET", "/v2/_catalog", 401, "access.default"),
    Question("guess", "GET", "/v2/public/app/manifests/v1", 401, ""),
    Question("bob", "GET", "/v2/team/app/manifests/v1", 200, "readers"),
    Question("bob", "PUT", "/v2/team/app/manifests/v2", 403, "access.default", EMPTY),
    Question("bob", "DELETE", "/v2/team/app/manifests/v1", 403, "access.default"),
    Question("ann", "GET", "/v2/team/app/manifests/v1", 200, "team"),
    Question("ann", "PUT", "/v2/team/app/manifests/v1", 201, "team", EMPTY),
    Question("ann", "GET", "/v2/team/closed/app/manifests/v1", 403, "closed"),
    Question("ann", "DELETE", "/v2/team/app/manifests/v1", 403, "access.default"),
    Question("root", "GET", "/v2/_catalog", 200, "admins"),
    Question("root", "PUT", "/v2/public/app/manifests/v1", 201, "admins", EMPTY),
    Question("token", "GET", "/v2/team/app/manifests/v1", 200, "team"),
    Question("token", "GET", "/v2/team/other/manifests/v1", 401, "team"),
    Question("token", "PUT", "/v2/team/app/manifests/v1", 401, "team", EMPTY),
    Question("token", "GET", "/v2/team/closed/app/manifests/v1", 403, "closed"),
    Question("machine", "GET", f"/v2/machines/{MACHINE}/app/manifests/v1", 404, "machines"),
    Question("machine", "GET", "/v2/team/app/manifests/v1", 403, "access.default"),
)


@pytest.mark.parametrize("http2", [False, True])
def test_every_request_is_answered_by_the_rules_and_audited_once(secured: Secured, http2: bool) -> None:
    with secured.client() as client:
        client.auth = ("root", PASSWORDS["root"])
        for name in ("public/app", "team/app", "team/other"):
            Repository(client, name).push_image("v1", [])
    token = secured.token("ann", "repository:team/app:pull", "repository:team/closed/app:pull")
    numbers = random.Random(5)
    asked = [(f"id-{at}", numbers.choice(QUESTIONS)) for at in range(240)]

    def ask(each: tuple[str, Question]) -> None:
        request, question = each
        headers = {"X-Request-ID": request, "Content-Type": OCI_MANIFEST}
        if question.who == "token":
            headers["Authorization"] = f"Bearer {token}"
        elif question.who in PASSWORDS:
            headers["Authorization"] = basic(question.who, PASSWORDS[question.who])
        elif question.who == "guess":
            # Another name each time, so that nobody has to wait.
            headers["Authorization"] = basic(request, "a guess")
        with secured.client(secured.machine if question.who == "machine" else None, http2=http2) as client:
            answer = client.request(question.method, question.path, headers=headers, content=question.body or None)
        assert answer.status_code == question.status, (question, answer.text)
        if answer.status_code == 401:
            assert answer.headers["www-authenticate"].startswith("Bearer realm=")
        if (question.who, question.status) == ("token", 401):
            assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, asked))
    names = {"nobody": "", "guess": "", "token": "ann", "machine": MACHINE}
    told = [
        (str(line["request"]), line["user"], line["rule"], line.get("status"))
        for line in secured.audited()
        if str(line["request"]).startswith("id-")
    ]
    expected = [
        (request, names.get(each.who, each.who), each.rule, each.status if each.status >= 400 else None)
        for request, each in asked
    ]
    assert sorted(told, key=str) == sorted(expected, key=str)


# ---- what changes while it serves


def test_certificate_and_passwords_change_under_load_and_no_request_fails(secured: Secured) -> None:
    stop = threading.Event()
    answered: list[int] = []
    failed: list[BaseException] = []

    def load(keep: bool) -> None:
        try:
            with secured.client() as client:
                client.auth = ("ann", PASSWORDS["ann"])
                headers = {} if keep else {"connection": "close"}
                while not stop.is_set():
                    answered.append(client.get("/v2/team/app/manifests/v1", headers=headers).status_code)
        except BaseException as error:  # noqa: BLE001 - judged by the test
            failed.append(error)

    def everywhere(condition: Callable[[], bool], what: str) -> None:
        # Both workers see it when many connections in a row do.
        wait_for(lambda: all(condition() for _ in range(20)), what)

    def shown() -> bytes | None:
        context = secured.authority.trusted()
        with (
            socket.create_connection(("127.0.0.1", secured.server.port), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            return connection.getpeercert(binary_form=True)

    def let_in(password: str) -> bool:
        with secured.client() as client:
            return client.get("/v2/", auth=("eve", password)).status_code == 200

    with secured.client() as client:
        client.auth = ("ann", PASSWORDS["ann"])
        Repository(client, "team/app").push_image("v1", [b"layer"])
    threads = [threading.Thread(target=load, args=(keep,)) for keep in (True, False)]
    for thread in threads:
        thread.start()
    try:
        for number in range(2):
            new = secured.authority.issue(f"new{number}")
            new.take_the_place_of(secured.pair)
            write_passwords(secured.passwords, {**PASSWORDS, "eve": f"password {number}"})
            everywhere(lambda: shown() == new.der, "a new certificate")  # noqa: B023 - is asked before the next one
            wait_for(lambda: let_in(f"password {number}"), "a new password")  # noqa: B023 - the same
        write_passwords(secured.passwords, PASSWORDS)
        everywhere(lambda: not let_in("password 1"), "the end of a user")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert set(answered) == {200}


# ---- those who keep trying


def bad_tokens(good: str, count: int) -> Generator[str]:
    """Give different tokens that are good for nothing: of every kind, and each of some kilobytes."""
    head, body, signature = good.split(".")
    for number in range(count):
        noise = f"{number:08d}" * 800
        match number % 5:
            case 0:
                yield noise
            case 1:
                yield f"{head}.{body}.{noise}"
            case 2:
                yield f"{head}.{noise}.{signature}"
            case 3:
                yield f"{noise}.{body}.{signature}"
            case _:
                yield f"{head}.{body[:-6]}{number:06d}.{signature}"


def test_who_keeps_trying_harms_nobody_else_and_fills_no_memory(secured: Secured) -> None:
    attempts, warm_up = 10_000, 2_000
    attacker, guesser = {"X-Forwarded-For": "203.0.113.9"}, {"X-Forwarded-For": "203.0.113.10"}
    stop = threading.Event()
    served: list[int] = []
    guesses: set[int] = set()
    with secured.client() as client:
        client.auth = ("root", PASSWORDS["root"])
        Repository(client, "team/app").push_image("v1", [b"layer"])
    token = secured.token("ann", "repository:team/app:pull")

    def good(header: str) -> None:
        headers = {"Authorization": header, "X-Forwarded-For": "198.51.100.1"}
        with secured.client() as client:
            while not stop.is_set():
                served.append(client.get("/v2/team/app/manifests/v1", headers=headers).status_code)

    def guess() -> None:
        with secured.client() as client:
            for number in range(1_500):
                # One name again and again, and ever new ones.
                name = "ann" if number % 2 else f"name{number}"
                guesses.add(client.get("/v2/", auth=(name, f"guess {number}"), headers=guesser).status_code)

    def attack(tokens: Sequence[str]) -> set[int]:
        with secured.client() as client:
            return {
                client.get(
                    "/v2/team/app/manifests/v1", headers={**attacker, "Authorization": f"Bearer {each}"}
                ).status_code
                for each in tokens
            }

    shown = (basic("ann", PASSWORDS["ann"]), f"Bearer {token}")
    threads = [threading.Thread(target=good, args=(header,)) for header in shown]
    threads.append(threading.Thread(target=guess))
    workers = secured.server.workers
    tokens = list(bad_tokens(token, attempts))
    assert len(set(tokens)) == attempts
    with ThreadPoolExecutor(4) as pool:
        for thread in threads:
            thread.start()
        try:
            # On connections that end now and then, so that both workers get their share.
            parts = [tokens[at : at + 100] for at in range(0, attempts, 100)]
            answers = list(pool.map(attack, parts[: warm_up // 100]))
            before = [memory_now(worker) for worker in workers]
            answers += pool.map(attack, parts[warm_up // 100 :])
            threads[-1].join()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert {status for part in answers for status in part} == {401}
    assert guesses == {401, 429}
    assert len(served) > 100
    assert set(served) == {200}
    assert secured.server.workers == workers
    # Kept, the tokens alone would be more than 25 MiB in each worker.
    grown = [memory_now(worker) - earlier for worker, earlier in zip(workers, before, strict=True)]
    assert max(grown) < 12 << 20, grown


def test_who_asks_too_often_is_sent_away_before_anybody_looks_at_a_password(tmp_path: Path) -> None:
    budget = {"address": {"rate": 0.0001, "burst": 40}}
    with serve(tmp_path, limits=budget) as secured, secured.client() as client:
        statuses = [
            client.get("/v2/", auth=(f"n{at}", "x"), headers={"X-Forwarded-For": "203.0.113.9"}).status_code
            for at in range(200)
        ]
        # On one connection it is one worker that counts.
        assert statuses == [401] * 40 + [429] * 160
        other = client.get("/v2/", auth=("ann", PASSWORDS["ann"]), headers={"X-Forwarded-For": "198.51.100.1"})
        assert other.status_code == 200


@pytest.mark.parametrize("engine", ["moorage", "stock"])
def test_huge_and_many_credentials_are_refused(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_HTTP_ENGINE", engine)
    right = f"Authorization: {basic('ann', PASSWORDS['ann'])}\r\n"
    wrong = "Authorization: Bearer x\r\n"
    with serve(tmp_path) as secured:
        for lines, statuses in (
            # The stock engine looks at what is not whole yet only, so it may judge what is shown.
            (f"Authorization: Bearer {'x' * 65_536}\r\n", {431} if engine == "moorage" else {400, 401, 431}),
            (f"Authorization: Basic {'eHh4' * 16_384}\r\n", {431} if engine == "moorage" else {400, 401, 431}),
            (f"Authorization: Bearer {'x' * 60_000}\r\n", {401}),
            (f"Authorization: Bearer {'.' * 60_000}\r\n", {401}),
            (f"Authorization: Basic {'eHh4' * 15_000}\r\n", {401}),
            (f"Authorization: {'x' * 60_000}\r\n", {401}),
            (right + wrong, {400}),
            (wrong + right, {400}),
            (right + wrong * 100, {400}),
            (right * 3, {200}),
            (wrong * 1_000, {431} if engine == "moorage" else {400, 401, 431}),
            ("Authorization:\r\n", {401}),
            ("Authorization: Basic\r\n", {401}),
            ("Authorization: Basic \xff\xfe\r\n", {400, 401}),
        ):
            assert status_of(secured, lines) in statuses, lines[:100]
        assert status_of(secured, right) == 200


def status_of(secured: Secured, lines: str) -> int:
    """Return the status of a request with `lines` in its head."""
    context: ssl.SSLContext = secured.authority.trusted()
    with (
        socket.create_connection(("127.0.0.1", secured.server.port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(f"GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n".encode("latin-1"))
        answer = b""
        while more := connection.recv(65536):
            answer += more
    found = re.match(rb"HTTP/1\.1 (\d\d\d) ", answer)
    assert found is not None, answer
    return int(found[1])

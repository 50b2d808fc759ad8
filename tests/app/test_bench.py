"""`moorage bench`, as its user meets it: real registries under tiny loads, and nothing of it left in them."""

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from loopback import LoopbackHandler, LoopbackServer, serving
from moorage_app.bench.cases import CASES
from moorage_app.cli import main
from proxies import Answer, CutBody, fault_proxy, matching
from servers import configured, distribution, free_port, moorage, wait_for

COMMAND = [sys.executable, "-m", "moorage_app", "bench"]
TINY = ("--seconds", "60", "--rounds", "2", "--count", "6", "--clients", "3", "--blob-size", "128KiB")
SMALL = (*TINY, "--chunk-size", "50000", "--tags", "12", "--max-pushed", "1MiB")
SERIES = {(case.name, series) for case in CASES for series in case.series}

Results = dict[str, Any]  # what the JSON has, looked into by key


def run(
    *arguments: str | Path, environment: Mapping[str, str] | None = None, given: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command; whatever it says is no traceback."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        input=given,
        env={**os.environ, **(environment or {})},
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def refused(*arguments: str | Path, given: str = "") -> str:
    done = run(*arguments, given=given)
    assert (done.returncode, done.stdout) == (2, ""), done
    return done.stderr.splitlines()[-1]


def repositories(url: str) -> list[str]:
    found: list[str] = httpx.get(f"{url}/v2/_catalog", trust_env=False).json()["repositories"]
    return found


def tags(url: str, repository: str) -> list[str]:
    answer = httpx.get(f"{url}/v2/{repository}/tags/list", trust_env=False)
    found: list[str] | None = answer.json()["tags"] if answer.status_code == 200 else []
    return found or []


def test_every_case_is_run_against_moorage_and_nothing_is_left(tmp_path: Path) -> None:
    with moorage(tmp_path / "data") as server:
        report = tmp_path / "report.json"
        done = run(server.url, *SMALL, "--verify", "--json", report)
        assert (done.returncode, done.stderr) == (0, "")
        assert repositories(server.url) == []
    found: Results = json.loads(report.read_text())
    assert {(each["case"], each["series"]) for each in found["medians"]} == SERIES
    for name in {case.name for case in CASES}:
        assert name in done.stdout
        rounds = {1: 0, 2: 0}
        for result in found["results"]:
            if result["case"] == name:
                rounds[result["round"]] += result["operations"]
                assert 0 < result["p50_ms"] <= result["p90_ms"] <= result["p99_ms"] <= result["max_ms"]
                assert result["requests"] >= result["operations"] > 0
                assert (result["errors"], result["unfinished"], result["clients"]) == ({}, 0, 3)
        # A mebibyte is eight blobs of 128 KiB, and ten images of six layers; six operations are the end of anything.
        assert rounds == {1: 6, 2: 6}, name
    assert found["environment"]["cores"] >= 1
    assert found["options"]["blob_size"] == 128 << 10
    assert (found["interrupted"], found["left"]) == (False, [])


@pytest.mark.needs_tool("docker-registry")
def test_two_registries_are_compared_round_by_round(tmp_path: Path) -> None:
    with moorage(tmp_path / "ours") as ours, distribution(tmp_path / "theirs") as theirs:
        arguments = (f"ours={ours.url}", "--against", f"theirs={theirs.url}", *SMALL, "--json", "-")
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        assert repositories(ours.url) == []
        for repository in repositories(theirs.url):
            assert tags(theirs.url, repository) == []
    found: Results = json.loads(done.stdout)
    assert "first/this" in done.stderr
    results = found["results"]
    assert len(results) == len(SERIES) * 2 * 2
    one = [(each["round"], each["target"]) for each in results if each["case"] == "manifest-tag"]
    assert one == [(1, "ours"), (1, "theirs"), (2, "ours"), (2, "theirs")]
    assert all(each["errors"] == {} for each in results)
    for each in found["medians"]:
        assert (each["ratio"] is None) == (each["target"] == "ours")
    assert [target["name"] for target in found["targets"]] == ["ours", "theirs"]


def test_the_open_loop_tells_what_was_due_and_not_started(tmp_path: Path) -> None:
    with moorage(tmp_path / "data") as server:
        options = ("--only", "manifest-tag", "--rate", "100", "--seconds", "0.3", "--rounds", "1", "--clients", "4")
        done = run(server.url, *options, "--json", "-", "--processes", "2")
        assert done.returncode == 0, done.stderr
        (result,) = json.loads(done.stdout)["results"]
        assert result["operations"] + result["unstarted"] == 30
        assert repositories(server.url) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_cut_off_it_removes_what_it_pushed_and_tells_what_it_has(number: int, code: int, tmp_path: Path) -> None:
    with moorage(tmp_path / "data") as server:
        report = tmp_path / "report.json"
        command = [*COMMAND, server.url, "--only", "push-images,storm", "--seconds", "120", "--json", str(report)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:

            def pushing() -> bool:
                assert process.poll() is None
                found = repositories(server.url)
                return bool(found) and len(tags(server.url, found[0])) > 3

            wait_for(pushing, "images that are pushed")
            process.send_signal(number)
            said, told = process.communicate(timeout=120)
        assert process.returncode == code, told
        assert "Traceback" not in said + told
        assert repositories(server.url) == []
    found: Results = json.loads(report.read_text())
    assert (found["interrupted"], found["left"]) == (True, [])


def test_tags_are_removed_before_any_manifest_has_to_look_for_its_own(tmp_path: Path) -> None:
    with moorage(tmp_path / "data") as server:
        # More than a page of them, of which each manifest would look at all.
        done = run(server.url, *TINY, "--only", "push-images,tags-page", "--tags", "1100")
        assert (done.returncode, done.stderr) == (0, "")
        assert repositories(server.url) == []
        events = [json.loads(line) for line in server.log.read_text().splitlines()]
    deleted = [
        each["path"].rpartition("/manifests/")[2]
        for each in events
        if each.get("method") == "DELETE" and "/manifests/" in each["path"]
    ]
    is_digest = [name.startswith("sha256:") for name in deleted]
    assert is_digest == sorted(is_digest)
    assert is_digest.count(False) >= 1100
    assert is_digest.count(True) >= 13


def test_where_deletes_are_off_it_says_what_is_left(tmp_path: Path) -> None:
    with configured(tmp_path / "data", storage={"filesystem": {"rootdirectory": str(tmp_path / "data")}}) as server:
        done = run(server.url, *TINY, "--only", "manifest-digest,push-images")
        assert done.returncode == 0
        (said,) = done.stderr.splitlines()
        (repository,) = repositories(server.url)
        assert f"deletes are off or refused (405), so {repository} is left: 13 manifests" in said


def test_errors_in_the_midst_are_told_and_not_averaged(tmp_path: Path) -> None:
    with moorage(tmp_path / "data") as server, fault_proxy(server.url) as proxy:
        proxy.fault(matching("GET", "/manifests/latest"), Answer(503, b"busy [/red]\x1b"), times=4)
        proxy.fault(matching("GET", "/manifests/latest"), CutBody(10), times=1)
        done = run(proxy.url, *TINY, "--only", "manifest-tag", "--json", "-")
        assert done.returncode == 1
        assert repositories(server.url) == []
    (median,) = json.loads(done.stdout)["medians"]
    assert (median["errors"], median["operations"]) == ({"503": 4, "closed": 1}, 7)
    assert "4 of 12 failed (503): GET /v2/moorage-bench/" in done.stderr
    assert "busy [/red]" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_registry_that_takes_no_pushes_is_one_sentence(tmp_path: Path) -> None:
    with moorage(tmp_path / "data") as server, fault_proxy(server.url) as proxy:
        proxy.fault(matching("PUT", "/manifests/"), Answer(507, b"full"), times=1)
        assert "cannot be filled: PUT /v2/moorage-bench/" in refused(proxy.url, *TINY, "--only", "manifest-tag")
        assert repositories(server.url) == []
        proxy.fault(matching("POST"), Answer(403, b"no"), times=1)
        assert "cannot be used: POST /v2/moorage-bench/" in refused(proxy.url)


# ---- who may be loaded, and what is refused


def test_a_host_that_is_not_this_machine_is_not_loaded_unasked() -> None:
    said = refused("http://192.0.2.7:5000")
    assert said == "moorage: 192.0.2.7:5000: not this machine; --yes says that it may be put under load"
    assert "192.0.2.7" in refused("http://127.0.0.1:1", "--against", "other=https://192.0.2.7")


def test_a_registry_that_is_not_there_is_one_sentence() -> None:
    assert "Connection refused" in refused(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say which registry to measure"),
        (["ftp://127.0.0.1"], "ftp://127.0.0.1"),
        (["http://127.0.0.1:1", "--only", "nothing"], "there is no such case"),
        (["http://127.0.0.1:1", "--clients", "0"], "--clients"),
        (["http://127.0.0.1:1", "--clients", "5000"], "--clients"),
        (["http://127.0.0.1:1", "--clients", "many"], "--clients"),
        (["http://127.0.0.1:1", "--blob-size", "much"], "no size"),
        (["http://127.0.0.1:1", "--blob-size", "17GiB"], "no size"),
        (["http://127.0.0.1:1", "--seconds", "601"], "--seconds"),
        (["http://127.0.0.1:1", "--rate", "0"], "--rate"),
        (["http://127.0.0.1:1", "--count", "0"], "--count"),
        (["http://127.0.0.1:1", "--password-stdin"], "--username"),
        (["http://127.0.0.1:1", "--cacert", "/nowhere/at/all"], "no certificates"),
        (["http://127.0.0.1:1", "--json", "/nowhere/at/all"], "cannot be written"),
        (["http://127.0.0.1:1", "--against", "http://127.0.0.1:1"], "two targets have one name"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: Sequence[str], said: str) -> None:
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr


def test_cases_are_listed_and_described() -> None:
    result = CliRunner().invoke(main, ["bench", "--list"])
    assert result.exit_code == 0
    listed = [line.split()[0] for line in result.stdout.splitlines()]
    assert listed == [case.name for case in CASES]


# ---- credentials and TLS, at a registry that is as small as can be


class Guarded(LoopbackHandler):
    """Knows one user, and takes no more than the benchmark's first requests."""

    challenge = ""
    wanted = ""

    def reply(self) -> None:
        body = b"".join(self.pieces())
        assert body == b""
        given = self.headers.get("Authorization", "")
        if self.path.startswith("/token"):
            good = given == "Basic bWU6c2VjcmV0" and "scope=repository%3Amoorage-bench%2F" in self.path
            self.send(200 if good else 401, b'{"token": "granted"}' if good else b"{}")
        elif given != self.wanted:
            self.send(401, b"who?", ("WWW-Authenticate", self.challenge.format(port=self.loopback.port)))
        elif self.command == "POST":
            self.send(503, b"known, and that was all")
        else:
            self.send(200, b"{}")

    def send(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Basic(Guarded):
    challenge = 'Basic realm="here"'
    wanted = "Basic bWU6c2VjcmV0"


class Bearer(Guarded):
    challenge = 'Bearer realm="http://127.0.0.1:{port}/token",service="here",scope="repository:a:pull"'
    wanted = "Bearer granted"


@contextmanager
def guarded(handler: type[Guarded], context: ssl.SSLContext | None = None) -> Generator[str]:
    server = LoopbackServer(handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        yield server.url


@pytest.mark.parametrize("handler", [Basic, Bearer])
def test_credentials_are_given_when_they_are_asked_for(handler: type[Guarded]) -> None:
    known = "503 known, and that was all"
    with guarded(handler) as url:
        assert known in refused(url, "--username", "me", "--password-stdin", given="secret\n")
        environment = {"MOORAGE_BENCH_USERNAME": "me", "MOORAGE_BENCH_PASSWORD": "secret"}
        assert known in run(url, environment=environment).stderr
        other = {f"MOORAGE_BENCH_X_Y_{name}": value for name, value in (("USERNAME", "me"), ("PASSWORD", "secret"))}
        assert known in run(f"x.y={url}", environment=environment).stderr
        assert known not in run(url, environment=other).stderr
        for arguments in ((url,), (url, "--username", "me")):
            said = refused(*arguments)
            assert known not in said
            assert "Traceback" not in said


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for loopback, with its key, in one file."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    made = (
        x509
        .CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return file


def test_certificates_are_looked_at_unless_told_otherwise(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    who = ("--username", "me", "--password-stdin")
    with guarded(Basic, context) as url:
        url = url.replace("http:", "https:")
        assert "self-signed certificate" in refused(url, *who, given="secret\n")
        for trusted in (("--cacert", certificate), ("--insecure",)):
            assert "known, and that was all" in refused(url, *who, *trusted, given="secret\n")

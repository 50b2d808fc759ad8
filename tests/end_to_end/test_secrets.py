"""No secret of the registry's, or of its clients', is seen in a log, an answer, a trace or an error, whatever goes wrong."""

import base64
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import bcrypt
import httpx
import jwt
import pytest
import yaml

from canaries import Canaries
from certificates import Authority
from pushing import OCI_MANIFEST, Json, Repository, digest_of, image
from servers import Server, configuration, free_port, http, moorage as serving, write_configuration
from services import S3Service
from signing import claims

BROKEN = """
from moorage import Caller, MiddlewareFactory, NoOptions, Unauthorized, hookimpl
from contextlib import asynccontextmanager


class Breaks:
    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, operation):
        credentials = operation.origin.credentials
        if operation.origin.user_agent == "break":
            raise RuntimeError(f"broken by {operation!r}, {operation.origin!r} and {credentials!r}")
        return await self.inner(operation)


@asynccontextmanager
async def opened(options, inner):
    yield Breaks(inner)


@hookimpl
def register_middleware():
    return {"breaks": MiddlewareFactory(NoOptions, opened)}


@hookimpl
def validate_manifest(push):
    raise ValueError(f"cannot judge {push!r}")


@hookimpl
def operation_finished(operation, reply, error, seconds):
    raise LookupError(f"cannot look at {operation!r} {error!r}")
"""
"""A plugin that fails wherever it can, and says all that it has."""

ANN = "ann"


class House:
    """A registry with a secret wherever one may be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.canaries = Canaries()
        new = self.canaries.new
        self.password = new("a password")
        hashed = bcrypt.hashpw(self.password.encode(), bcrypt.gensalt(4)).decode()
        self.canaries.hide("a hash", hashed)
        (folder / "htpasswd").write_text(f"{ANN}:{hashed}\n", encoding="utf-8")
        self.shared = new("a symmetric key")
        encoded = base64.urlsafe_b64encode(self.shared.encode()).decode().rstrip("=")
        key = {"kty": "oct", "kid": "shared", "alg": "HS256", "k": self.canaries.hide("an encoded key", encoded)}
        (folder / "jwks.json").write_text(json.dumps({"keys": [key]}), encoding="utf-8")
        plugins = folder / "plugins"
        plugins.mkdir(mode=0o755)
        (plugins / "broken.py").write_text(BROKEN, encoding="utf-8")
        (plugins / "broken.py").chmod(0o644)
        self.audit = folder / "audit.log"

    def sections(self) -> dict[str, object]:
        """Return what is configured besides the store."""
        token = {"realm": "https://tokens.example/token", "service": "registry.example", "issuer": "tokens.example"}
        return {
            "auth": {
                "token": {**token, "jwks": str(self.folder / "jwks.json")},
                "issuer": {"keys": str(self.folder / "keys")},
                "htpasswd": {"realm": "house", "path": str(self.folder / "htpasswd")},
                "anonymous": None,
            },
            "access": {
                "rules": [
                    {"users": [ANN], "actions": ["*"]},
                    {"repositories": ["public/**"], "anonymous": True, "actions": ["pull"]},
                ]
            },
            "audit": {"path": str(self.audit), "pulls": True},
            "limits": {"address": {"rate": 10_000}},
            "plugins": {"paths": [str(self.folder / "plugins")], "breaks": {}},
        }

    def token(self, **changes: object) -> str:
        """Return a token by the symmetric key; its signature is a secret."""
        told = claims(iss="tokens.example", aud="registry.example", sub=ANN) | changes
        token = jwt.encode(told, self.shared, algorithm="HS256", headers={"kid": "shared"})
        self.hide(token, "a token")
        return token

    def hide(self, token: str, name: str) -> None:
        """Take the parts of a token for secrets that say what it says."""
        for part in token.split(".")[1:]:
            self.canaries.hide(name, part)

    def keys(self) -> None:
        """Take what the files of the issuer hold for secrets."""
        for file in (self.folder / "keys").glob("*.jwk"):
            self.canaries.hide("a key of the issuer", str(json.loads(file.read_text(encoding="utf-8"))["d"]))


class Conversation:
    """Requests, and all that was answered."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.heard: list[str] = []

    def ask(self, method: str, url: str, *statuses: int, **more: object) -> httpx.Response:
        """Ask, and keep the answer; it has one of `statuses`."""
        answer = self.client.request(method, url, **more)  # type: ignore[arg-type] # what `request` takes by name
        self.heard.append(f"{answer.headers}\n{answer.text}")
        assert answer.status_code in statuses, (method, url, answer.status_code, answer.text)
        return answer


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def talk(house: House, conversation: Conversation) -> None:
    """Ask in all ways, right and wrong, with a secret in each place where a client may put one."""
    new, ask = house.canaries.new, conversation.ask
    ann = (ANN, house.password)
    manifest = {"Content-Type": OCI_MANIFEST}
    # Right and wrong passwords, of known and of unknown names, in a name, and broken.
    ask("GET", "/v2/_catalog", 200, auth=ann)
    ask("GET", "/v2/_catalog", 401, auth=(ANN, new("a wrong password")))
    ask("GET", "/v2/_catalog", 401, auth=(new("a password for a name"), "x"))
    ask("GET", "/v2/_catalog", 401, headers={"Authorization": f"Basic {new('broken basic')}"})
    ask("GET", "/v2/_catalog", 401, headers={"Authorization": new("an unknown scheme")})
    ask("GET", "/v2/_catalog", 401, headers={"Authorization": f"Digest {new('a digest')}"})
    for _ in range(12):
        ask("GET", "/v2/", 401, 429, auth=(ANN, new("a guess")))
    # Tokens of the token server: good, for something else, expired, of nobody, and of the wrong form.
    ask("GET", "/v2/team/app/tags/list", 404, headers=bearer(house.token()))
    ask("GET", "/v2/team/other/tags/list", 401, headers=bearer(house.token()))
    ask("GET", "/v2/team/app/tags/list", 401, headers=bearer(house.token(exp=1)))
    ask("GET", "/v2/team/app/tags/list", 401, headers=bearer(house.token(aud="another")))
    ask("GET", "/v2/team/app/tags/list", 401, headers=bearer(house.token(access=[new("an access")])))
    ask("GET", "/v2/team/app/tags/list", 401, headers=bearer(new("no token")))
    ask("GET", "/v2/team/app/tags/list", 401, headers=bearer(f"{new('a head')}.{new('a body')}.{new('a signature')}"))
    forged = house.token()[:-4] + "AAAA"
    ask("GET", "/v2/team/app/tags/list", 401, headers=bearer(forged))
    # Secrets where they do not belong: in queries, cookies, other headers, the user information of a URL.
    query = {"token": new("a query"), "access_token": house.token(), "password": new("a password in a query")}
    ask("GET", "/v2/team/app/tags/list", 401, params=query)
    ask("GET", "/auth/token", 200, params={"service": "moorage", "account": ANN, **query}, auth=ann)
    ask("GET", "/auth/token", 400, params={"service": "another"}, auth=ann)
    headers = {
        "Cookie": new("a cookie"),
        "Proxy-Authorization": f"Basic {new('for a proxy')}",
        "X-Api-Key": new("a key"),
    }
    ask("GET", "/v2/team/app/tags/list", 404, headers=headers, auth=ann)
    # Tokens of our own: by a password, by a form, by a refresh token; the answer has them, and nothing else does.
    scope = {"service": "moorage", "scope": "repository:team/app:pull,push"}
    answer = ask("GET", "/auth/token", 200, params={**scope, "offline_token": "true"}, auth=ann)
    conversation.heard.pop()
    bought = cast("dict[str, str]", answer.json())
    house.hide(bought["token"], "a token of ours")
    house.hide(bought["refresh_token"], "a refresh token")
    ask("GET", "/v2/team/app/tags/list", 404, headers=bearer(bought["token"]))
    ask("GET", "/v2/team/other/tags/list", 401, headers=bearer(bought["token"]))
    ask("GET", "/v2/team/app/tags/list", 401, headers=bearer(bought["refresh_token"]))
    form = {"grant_type": "refresh_token", "refresh_token": bought["refresh_token"], **scope}
    answer = ask("POST", "/auth/token", 200, data=form)
    conversation.heard.pop()
    house.hide(cast("dict[str, str]", answer.json())["access_token"], "a token by a refresh token")
    ask("POST", "/auth/token", 401, data={**form, "refresh_token": new("a wrong refresh token")})
    password = {"grant_type": "password", "username": ANN, "password": new("a wrong password in a form"), **scope}
    ask("POST", "/auth/token", 401, 429, data=password)
    ask("POST", "/auth/token", 400, data={**password, "grant_type": new("a kind of grant")})
    ask("POST", "/auth/token", 400, data={"password": [new("twice"), new("and again")], "grant_type": "password"})
    # What fails inside: a plugin in its middleware, and one that judges.
    ask("GET", "/v2/team/app/tags/list", 500, auth=ann, headers={"User-Agent": "break"})
    ask("GET", "/v2/team/app/tags/list", 500, headers={"User-Agent": "break", **bearer(house.token())})
    ask("POST", f"/v2/team/app/blobs/uploads/?digest={digest_of(b'{}')}", 201, content=b"{}", auth=ann)
    ask("PUT", "/v2/team/app/manifests/v1", 500, content=image([]), headers=manifest, auth=ann)
    # What is refused.
    ask("PUT", "/v2/team/app/manifests/v1", 400, content=b"no manifest", headers=manifest, auth=ann)
    ask("PUT", "/v2/team/app/manifests/v1", 401, content=image([]), headers=manifest)
    ask("DELETE", "/v2/public/app/manifests/v1", 401)


def talk_badly(house: House, server: Server) -> str:
    """Send what no client library would; return what was answered."""
    new = house.canaries.new
    basic = base64.b64encode(f"{ANN}:{new('a password beside a bad head')}".encode()).decode()
    heads = [
        f"GET http://{ANN}:{new('user information')}@registry/v2/ HTTP/1.1\r\nHost: a\r\n",
        f"GET http://{ANN}:{new('user information of nothing')}@registry/nothing/{basic[:3]} HTTP/1.1\r\nHost: a\r\n",
        f"GET /v2/ HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {basic}\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
        f"GET /v2/ HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {basic}\nX: y\r\n",
        f"GET /v2/ HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {basic}\r\nAuthorization: Bearer {new('a second one')}\r\n",
        f"GET /v2/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {new('a long one') * 3000}\r\n",
        f"GET /v2/ HTTP/9.9\r\nAuthorization: Basic {basic}\r\n",
        f"{new('a method')} /v2/ HTTP/1.1\r\nAuthorization Basic {basic}\r\n",
    ]
    heard = ""
    for head in heads:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
            answer = b""
            while more := connection.recv(65536):
                answer += more
        assert re.match(rb"HTTP/1\.1 4\d\d ", answer), (head[:200], answer)
        heard += answer.decode()
    return heard


@pytest.mark.parametrize(
    ("engine", "formatter", "version"),
    [("moorage", "json", 1), ("moorage", "text", 2), ("moorage", "logstash", 1), ("stock", "text", 1)],
)
def test_no_secret_is_seen_while_serving(
    engine: str, formatter: str, version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path)
    log = {"level": "debug", "formatter": formatter, "reportcaller": True}
    settings = {"engine": engine, "h2c": {"enabled": True}, "secret": house.canaries.new("http.secret")}
    monkeypatch.setenv("MOORAGE_TRACE_PLUGINS", "1")
    port = free_port()
    whole = configuration(tmp_path / "root", port, http=settings, log=log, **house.sections())
    with serving(write_configuration(tmp_path / "config.yml", whole), port=port, workers=2) as server:
        house.keys()
        with httpx.Client(
            base_url=server.url, timeout=60, trust_env=False, http1=version == 1, http2=version == 2
        ) as client:
            conversation = Conversation(client)
            talk(house, conversation)
            heard = "".join(conversation.heard) + (talk_badly(house, server) if version == 1 else "")
        processes = [server.pid, *server.workers]
        seen_by_others = b"".join(
            Path(f"/proc/{process}/{name}").read_bytes() for process in processes for name in ("cmdline", "environ")
        )
        assert server.terminate() == 0
    logged = server.log.read_text(encoding="utf-8")
    # All of it was there to be seen.
    for text in ("broken by", "cannot judge", "cannot look at", "Traceback", "of broken", "a wrong password"):
        assert text in logged, text
    assert "ListTags" in house.audit.read_text(encoding="utf-8")
    seen: dict[str, bytes | str] = {
        "the log": logged,
        "an answer": heard,
        "the audit log": house.audit.read_bytes(),
        "a process": seen_by_others,
    }
    for what, content in seen.items():
        assert house.canaries.seen_in(content) == set(), what


# ---- configurations


def moorage(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of Moorage to its end."""
    command = [sys.executable, "-m", "moorage_app", *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("REGISTRY_", "AWS_"))}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**kept, **(environment or {})},
        stdin=subprocess.DEVNULL,
    )


SECRET = "SECRET"
"""Stands for a secret of its own in each configuration below."""

S3: Json = {"bucket": "b", "region": "r", "accesskey": SECRET, "secretkey": SECRET}
WRONG: Sequence[tuple[str, Json]] = (
    ("a list for a key", {"storage": {"s3": {**S3, "secretkey": [SECRET]}}}),
    ("one key of two", {"storage": {"s3": {"bucket": "b", "region": "r", "secretkey": SECRET}}}),
    ("a misspelt key", {"storage": {"s3": {**S3, "secretkeyy": SECRET}}}),
    ("a mapping for a token", {"storage": {"s3": {**S3, "sessiontoken": {"a": SECRET}}}}),
    (
        "a proxy that is none",
        {"storage": {"s3": {**S3, "regionendpoint": f"http://u:{SECRET}@[", "proxy": f"http://u:{SECRET}@["}}},
    ),
    (
        "credentials of nothing",
        {"storage": {"gcs": {"bucket": "b", "credentials": {"type": "service_account", "private_key": SECRET}}}},
    ),
    (
        "a string for no connection",
        {"storage": {"azure": {"container": "c", "connectionstring": f"AccountKey={SECRET};x"}}},
    ),
    (
        "a signature for nothing",
        {
            "storage": {
                "azure": {"container": "c", "accountname": "a", "sastoken": f"sv=1&sig={SECRET}", "accountkey": SECRET}
            }
        },
    ),
    (
        "a secret for nobody",
        {
            "storage": {
                "azure": {
                    "container": "c",
                    "accountname": "a",
                    "credentials": {"type": "client_secret", "secret": SECRET},
                }
            }
        },
    ),
    ("a closed door", {"storage": {"fsspec": {"url": f"sftp://u:{SECRET}@127.0.0.1:1/x"}}}),
    ("a door that is not there", {"storage": {"fsspec": {"url": f"nothing://u:{SECRET}@127.0.0.1:1/x?key={SECRET}"}}}),
    (
        "options of a door",
        {"storage": {"fsspec": {"url": "sftp://127.0.0.1:1/x", "options": {"username": "u", "password": SECRET}}}},
    ),
    ("an at sign in a password", {"storage": {"fsspec": {"url": f"sftp://u:x@{SECRET}@127.0.0.1:1/x"}}}),
    ("a mapping for a password", {"redis": {"addrs": ["127.0.0.1:1"], "password": {"a": SECRET}}}),
    ("a mirror", {"proxy": {"remoteurl": f"https://u:{SECRET}@h", "username": "u", "password": SECRET}}),
    (
        "a listener",
        {
            "notifications": {
                "endpoints": [
                    {
                        "name": "n",
                        "url": f"https://u:{SECRET}@h?k={SECRET}",
                        "headers": {"Authorization": [SECRET]},
                        "timeout": "x",
                    }
                ]
            }
        },
    ),
    ("a host that is none", {"http": {"host": f"http://u:{SECRET}@["}}),
    ("a secret that is none", {"http": {"secret": {"a": SECRET}}}),
    (
        "keys by a URL with a password",
        {"auth": {"token": {"realm": "https://t", "service": "s", "issuer": "i", "jwksurl": f"https://u:{SECRET}@h/"}}},
    ),
    (
        "keys by a URL with an at sign",
        {
            "auth": {
                "token": {"realm": "https://t", "service": "s", "issuer": "i", "jwksurl": f"https://u:x@{SECRET}@h/"}
            }
        },
    ),
    (
        "an issuer with a password",
        {"auth": {"oidc": {"issuers": [{"issuer": f"https://u:{SECRET}@h", "audience": ["a"]}]}}},
    ),
    (
        "mail",
        {"log": {"hooks": [{"type": "mail", "options": {"smtp": {"username": "u", "password": SECRET, "addr": 7}}}]}},
    ),
    ("an authenticator that nobody offers", {"auth": {"vault": {"token": SECRET, "url": f"https://u:{SECRET}@h"}}}),
)


@pytest.mark.parametrize(("what", "sections"), WRONG, ids=[what for what, _ in WRONG])
def test_no_secret_is_seen_in_what_is_said_of_a_configuration(what: str, sections: Json, tmp_path: Path) -> None:
    canaries = Canaries()
    text = yaml.safe_dump(
        {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(tmp_path / "root")}}} | sections
    )
    text = re.sub(SECRET, lambda _: canaries.new(what), text)
    file = tmp_path / "config.yml"
    file.write_text(text, encoding="utf-8")
    # Whatever becomes of it, it ends: the address cannot be listened on.
    nowhere = {"REGISTRY_HTTP_ADDR": "192.0.2.1:1"}
    for arguments in (("config", "check"), ("config", "show"), ("serve", "--workers", "1", "--log-level", "debug")):
        done = moorage(*arguments, str(file), environment=nowhere)
        assert canaries.seen_in(done.stdout + done.stderr) == set(), (arguments, done.stdout + done.stderr)
        assert done.stdout + done.stderr
        assert done.returncode == 2 or arguments[0] == "config"


def test_no_secret_is_seen_in_what_is_said_of_a_broken_text_or_variable(tmp_path: Path) -> None:
    canaries = Canaries()
    good = "version: 0.1\nstorage: inmemory\n"
    texts = [
        f"{good}http: {{secret: '{canaries.new('an open quote')}}}\n",
        f"{good}http:\n  secret: {canaries.new('a tab')}\n\tx: y\n",
        f"{good}redis:\n  password: {canaries.new('a colon')}: x\n",
        f"{good}redis:\n  password: *{canaries.new('an alias')}\n",
        f"{good}redis:\n  password: !{canaries.new('a tag')} x\n",
        f"{good}redis: {{password: a, password: {canaries.new('twice')}}}\n",
        f"{good}redis: [password, {canaries.new('in a list')}\n",
    ]
    for text in texts:
        (tmp_path / "config.yml").write_text(text, encoding="utf-8")
        for command in ("check", "show"):
            done = moorage("config", command, str(tmp_path / "config.yml"))
            assert done.returncode == 2, text
            assert canaries.seen_in(done.stdout + done.stderr) == set(), done.stderr
    (tmp_path / "config.yml").write_text(good, encoding="utf-8")
    for name in (
        "REDIS_PASSWORD",
        "HTTP_SECRET",
        "STORAGE_S3_SECRETKEY",
        "NOTHING_PASSWORD",
    ):
        for value in ("[{}", "{{a: {}}}", "'{}", "{}: {}"):
            secret = canaries.new(name)
            environment = {f"REGISTRY_{name}": value.format(secret, secret)}
            for command in ("check", "show"):
                done = moorage("config", command, str(tmp_path / "config.yml"), environment=environment)
                assert canaries.seen_in(done.stdout + done.stderr) == set(), (name, value, done.stdout + done.stderr)


def test_no_secret_is_seen_in_what_is_said_of_a_broken_file(tmp_path: Path) -> None:
    canaries = Canaries()
    authority = Authority(tmp_path)
    pair = authority.issue("server")
    lines = pair.key.read_text(encoding="ascii").splitlines()
    for line in lines[1:-1]:
        canaries.hide("a line of the key", line)
    token = {"realm": "https://t", "service": "s", "issuer": "i", "jwks": str(tmp_path / "jwks.json")}
    cases: list[tuple[str, str, Json]] = [
        ("server.key", "\n".join([lines[0], *lines[1:-1][::-1], lines[-1]]), {}),
        ("server.key", "\n".join(lines[:-1]), {}),
        (
            "htpasswd",
            f"ann:{canaries.new('a hash')}\n{canaries.new('no colon')}\n",
            {"htpasswd": {"realm": "r", "path": str(tmp_path / "htpasswd")}},
        ),
        (
            "htpasswd",
            f"ann:{canaries.new('a plain password')}\n",
            {"htpasswd": {"realm": "r", "path": str(tmp_path / "htpasswd")}},
        ),
        ("jwks.json", '{"keys": [{"kty": "oct", "kid": "a", "k": "' + canaries.new("an open text"), {"token": token}),
        (
            "jwks.json",
            '{"keys": [{"kty": "' + canaries.new("a kind") + '", "kid": "a", "k": "' + canaries.new("a key"),
            {"token": token},
        ),
        (
            "jwks.json",
            '{"keys": [{"kty": "oct", "kid": "a", "k": ["' + canaries.new("a list") + '"]}]}',
            {"token": token},
        ),
    ]
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    for name, content, auth in cases:
        (tmp_path / "server.key").write_text("\n".join(lines), encoding="ascii")
        (tmp_path / name).write_text(content, encoding="utf-8")
        sections: Json = {"storage": "inmemory", "auth": auth, "http": {"addr": "127.0.0.1:0", "tls": tls}}
        file = write_configuration(
            tmp_path / "config.yml", {"version": 0.1, **{key: value for key, value in sections.items() if value}}
        )
        said = ""
        for arguments in (
            ("config", "check", str(file)),
            ("serve", str(file), "--log-level", "debug", "--addr", "192.0.2.1:1"),
        ):
            done = moorage(*arguments)
            said += done.stdout + done.stderr
        assert canaries.seen_in(said) == set(), said


# ---- stores


def test_no_secret_of_a_store_or_a_cache_is_seen_at_any_level(moto: S3Service, tmp_path: Path) -> None:
    canaries = Canaries()
    new = canaries.new
    bucket = moto.create_bucket("secrets")
    s3 = {"bucket": bucket, "region": moto.region, "regionendpoint": moto.url, "forcepathstyle": True}
    s3 |= {"accesskey": "known", "secretkey": new("a secret key"), "sessiontoken": new("a session token")}
    sections: dict[str, object] = {
        "storage": {
            "s3": {**s3, "loglevel": "debugwithsigning"},
            "redirect": {"disable": True},
            "cache": {"blobdescriptor": "redis"},
        },
        # Nobody listens there.
        "redis": {"addrs": [f"127.0.0.1:{free_port()}"], "username": "u", "password": new("a password of Redis")},
        "log": {"level": "debug"},
    }
    port = free_port()
    file = write_configuration(tmp_path / "config.yml", configuration(tmp_path / "root", port, **sections))
    with serving(file, port=port) as server:
        with http(server.url) as client:
            repository = Repository(client, "team/app")
            manifest = repository.push_image("v1", [b"layer"])
            assert repository.pull_image("v1") == manifest
        assert server.terminate() == 0
    logged = server.log.read_text(encoding="utf-8")
    assert "moorage.s3" in logged
    assert canaries.seen_in(logged) == set()
    shown = moorage("config", "show", str(file))
    assert shown.stdout.count("'***'") == 4
    assert canaries.seen_in(shown.stdout + shown.stderr) == set()

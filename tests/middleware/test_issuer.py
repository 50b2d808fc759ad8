"""Tokens of the registry's own: who gets one, what it says, what it is good for, and which are refused."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import bcrypt
import httpx
import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings, strategies as st

import house
from asgi_client import Answer, AsgiClient
from moorage import (
    Access,
    Caller,
    ConfigurationError,
    Credentials,
    Handler,
    IssueToken,
    Origin,
    RepositoryName,
    Unauthorized,
    check_options,
    claimed_sections,
    load_configuration,
    open_registry,
)
from moorage_app.asgi import Application
from moorage_app.worker import application_settings
from moorage_conformance.plugin_kit import Subject, assert_plugin
from moorage_middleware import _watched, issuer
from moorage_middleware._keyring import KeyRing, open_keyring, sign
from moorage_middleware.issuer import Issuing, OwnTokens, TokenServer
from opening import IN_MEMORY, installed, loaded

Claims = dict[str, Any]
MAY = {
    "ann": ["team/:pull", "team/:push", "open/:pull"],
    "@staff": [":pull", ":push", ":delete", "catalog"],
    "anonymous": ["open/:pull"],
}
ANN = "Basic " + base64.b64encode(b"ann:ann-secret").decode()
STAFF = "Basic " + base64.b64encode(b"staff-eve:staff-eve-secret").decode()


@asynccontextmanager
async def opened(
    keys: Path,
    *,
    others: Sequence[str] | Mapping[str, object] = ("passwords",),
    http: Mapping[str, object] | None = None,
    **options: object,
) -> AsyncGenerator[AsgiClient]:
    """Open a registry that issues tokens, with the rules above, and give a client of it."""
    plugins = installed()
    plugins.register(house, "house")
    auth: dict[str, object] = {"issuer": {"keys": str(keys), **options}}
    auth |= others if isinstance(others, Mapping) else dict.fromkeys(others)
    overrides = {**IN_MEMORY, "auth": auth, "plugins": {"house_rules": {"may": MAY}}, "http": http or {}}
    found = load_configuration(None, {}, overrides=overrides, claimed=claimed_sections(plugins))
    check_options(found.configuration, plugins)
    async with open_registry(found.configuration, plugins) as registry:
        yield AsgiClient(Application(registry.handler, application_settings(found.configuration)))


async def asked(client: AsgiClient, query: str = "", shown: str | None = ANN) -> Answer:
    headers = [] if shown is None else [("Authorization", shown)]
    return await client.ask("GET", f"/auth/token?{query}", headers)


async def posted(client: AsgiClient, **fields: object) -> Answer:
    form = str(httpx.QueryParams({name: str(value) for name, value in fields.items()})).encode()
    return await client.ask("POST", "/auth/token", [("Content-Type", "application/x-www-form-urlencoded")], form)


def said(answer: Answer) -> Claims:
    assert answer.status == 200, answer.body
    return answer.decoded(dict[str, Any])


async def verified(client: AsgiClient, token: str, *, audience: str = "moorage") -> Claims:
    """Return the claims of a token, verified by another library from what is published."""
    keys = said(await client.ask("GET", "/auth/jwks"))
    key = jwt.PyJWKSet.from_dict(keys)[jwt.get_unverified_header(token)["kid"]]
    return jwt.decode(token, key, algorithms=[key.algorithm_name], audience=audience, issuer="moorage")


def bearer(token: object) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {token}")]


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
async def test_who_shows_a_password_gets_a_token_that_others_can_verify(tmp_path: Path, algorithm: str) -> None:
    async with opened(tmp_path / "keys", algorithm=algorithm) as client:
        answer = await asked(client, "service=moorage&scope=repository:team/app:pull,push&account=ann")
        token = said(answer)
        assert answer.header("Cache-Control") == "no-store"
        assert token["token"] == token["access_token"]
        assert token["expires_in"] == 300
        assert "refresh_token" not in token
        claims = await verified(client, token["token"])
        assert claims["sub"] == "ann"
        assert claims["exp"] - claims["iat"] == 300
        assert claims["access"] == [{"type": "repository", "name": "team/app", "actions": ["pull", "push"]}]
        assert time.strptime(token["issued_at"], "%Y-%m-%dT%H:%M:%SZ")
        assert len(claims["jti"]) >= 20


async def test_a_token_is_narrowed_by_the_rules(tmp_path: Path) -> None:
    query = "scope=repository:team/app:*&scope=repository:open/x:pull,push+repository:other:pull+registry:catalog:*"
    async with opened(tmp_path / "keys") as client:
        ann = await verified(client, said(await asked(client, query))["token"])
        assert [(each["name"], each["actions"]) for each in ann["access"]] == [
            ("team/app", ["pull", "push"]),
            ("open/x", ["pull"]),
        ]
        staff = await verified(client, said(await asked(client, query, STAFF))["token"])
        assert [(each["name"], each["actions"]) for each in staff["access"]] == [
            ("team/app", ["pull", "push", "delete"]),
            ("open/x", ["pull", "push"]),
            ("other", ["pull"]),
            ("catalog", ["*"]),
        ]
        assert staff["groups"] == ["staff"]


async def test_a_token_is_good_for_what_it_says_and_the_rules_still_hold(tmp_path: Path) -> None:
    async with opened(tmp_path / "keys") as client:
        token = said(await asked(client, "scope=repository:team/app:pull"))["token"]
        assert (await client.ask("GET", "/v2/", bearer(token))).status == 200
        for _ in range(2):  # the second time from memory
            assert (await client.ask("GET", "/v2/team/app/tags/list", bearer(token))).status == 404
        push = await client.ask("POST", "/v2/team/app/blobs/uploads/", bearer(token))
        assert push.status == 401
        assert push.header("WWW-Authenticate") == (
            'Bearer realm="http://registry.test/auth/token",service="moorage",'
            'scope="repository:team/app:pull,push",error="insufficient_scope"'
        )
        assert (await client.ask("GET", "/v2/team/other/tags/list", bearer(token))).status == 401
        # Groups come with the token, so that rules on groups hold.
        staff = said(await asked(client, "scope=repository:any/thing:push,pull", STAFF))["token"]
        assert (await client.ask("POST", "/v2/any/thing/blobs/uploads/", bearer(staff))).status == 202


async def test_who_shows_nothing_is_told_where_tokens_are(tmp_path: Path) -> None:
    async with opened(tmp_path / "keys") as client:
        ping = await client.ask("GET", "/v2/")
        assert ping.header("WWW-Authenticate") == 'Bearer realm="http://registry.test/auth/token",service="moorage"'
        asks = await asked(client, shown=None)
        assert (asks.status, asks.header("WWW-Authenticate")) == (401, 'Basic realm="house"')
        wrong = await asked(client, shown="Basic " + base64.b64encode(b"ann:guess").decode())
        assert (wrong.status, wrong.header("WWW-Authenticate")) == (401, 'Basic realm="house"')


async def test_the_realm_is_below_the_prefix_and_may_be_set(tmp_path: Path) -> None:
    async with opened(tmp_path / "keys", http={"prefix": "/reg/"}) as client:
        asks = await client.ask("GET", "/reg/v2/")
        assert 'realm="http://registry.test/reg/auth/token"' in (asks.header("WWW-Authenticate") or "")
        assert (await client.ask("GET", "/reg/auth/token", [("Authorization", ANN)])).status == 200
        assert (await client.ask("GET", "/auth/token", [("Authorization", ANN)])).status == 404
    async with opened(tmp_path / "keys", realm="https://tokens.test/t", service="reg") as client:
        asks = await client.ask("GET", "/v2/")
        assert asks.header("WWW-Authenticate") == 'Bearer realm="https://tokens.test/t",service="reg"'


@pytest.mark.parametrize("host", ['a",error="x', "a\\b", "a\x7fb", "ä"])
async def test_what_a_client_calls_the_registry_cannot_break_out_of_the_challenge(tmp_path: Path, host: str) -> None:
    async with open_keyring(tmp_path / "keys", "EdDSA", rotate=1000, kept=10) as keys:
        tokens = OwnTokens(Issuing(keys=str(tmp_path)), keys)
        challenge = tokens.challenge_for(Origin(base_url=f"http://{host}"), [Access(RepositoryName("a"), "pull")], "")
        assert challenge.isascii()
        assert challenge.isprintable()
        unescaped = challenge.replace("\\\\", "").replace('\\"', "")
        assert unescaped.count('"') == 6


async def test_anonymous_tokens_only_where_nobody_may_come(tmp_path: Path) -> None:
    query = "scope=repository:open/x:pull,push&scope=repository:team/app:pull"
    async with opened(tmp_path / "keys", others=("passwords", "everybody")) as client:
        token = said(await asked(client, query + "&offline_token=true", shown=None))
        assert "refresh_token" not in token
        claims = await verified(client, token["token"])
        assert claims["sub"] == ""
        assert claims["access"] == [{"type": "repository", "name": "open/x", "actions": ["pull"]}]
        assert (await client.ask("GET", "/v2/open/x/tags/list", bearer(token["token"]))).status == 404
        assert (await client.ask("GET", "/v2/", bearer(token["token"]))).status == 200


async def test_a_token_cannot_be_had_by_a_token(tmp_path: Path) -> None:
    async with opened(tmp_path / "keys") as client:
        token = said(await asked(client))["token"]
        again = await client.ask("GET", "/auth/token", bearer(token))
        assert (again.status, again.header("WWW-Authenticate")) == (401, 'Basic realm="house"')


async def test_the_form_of_oauth2(tmp_path: Path) -> None:
    async with opened(tmp_path / "keys") as client:
        fields = {"service": "moorage", "client_id": "test", "scope": "repository:team/app:pull,push"}
        answer = said(
            await posted(
                client, grant_type="password", username="ann", password="ann-secret", access_type="offline", **fields
            )
        )
        assert answer["scope"] == "repository:team/app:pull,push"
        assert answer["token_type"] == "Bearer"
        refresh = answer["refresh_token"]
        again = said(await posted(client, grant_type="refresh_token", refresh_token=refresh, **fields))
        assert again["refresh_token"] == refresh
        claims = await verified(client, again["access_token"])
        assert (claims["sub"], claims["access"][0]["actions"]) == ("ann", ["pull", "push"])
        wrong = await posted(client, grant_type="password", username="ann", password="guess", **fields)
        assert (wrong.status, wrong.codes, wrong.decoded(Claims)["error"]) == (401, ["UNAUTHORIZED"], "invalid_grant")


async def test_a_refresh_token_buys_tokens_and_nothing_else(tmp_path: Path) -> None:
    async with opened(tmp_path / "keys") as client:
        answer = said(await asked(client, "offline_token=true", STAFF))
        refresh, access = answer["refresh_token"], answer["token"]
        for scheme in ("Bearer", "refresh_token"):
            used = await client.ask("GET", "/v2/any/tags/list", [("Authorization", f"{scheme} {refresh}")])
            assert used.status == 401
        swapped = await posted(client, grant_type="refresh_token", refresh_token=access, service="moorage")
        assert swapped.status == 401
        bought = said(
            await posted(client, grant_type="refresh_token", refresh_token=refresh, scope="registry:catalog:*")
        )
        assert bought["scope"] == "registry:catalog:*"
    async with opened(tmp_path / "keys", refresh=0) as client:
        assert "refresh_token" not in said(await asked(client, "offline_token=true"))


def users(file: Path, **passwords: str) -> None:
    """Write who has which password."""
    hashes = {name: bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)) for name, password in passwords.items()}
    file.write_bytes(b"".join(b"%b:%b\n" % (name.encode(), hashed) for name, hashed in hashes.items()))


def as_user(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


async def refreshed(client: AsgiClient, token: str) -> int:
    return (await posted(client, grant_type="refresh_token", refresh_token=token)).status


async def test_a_refresh_token_ends_with_the_user_and_with_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_watched, "_LOOK_SECONDS", 0.0)
    file = tmp_path / "htpasswd"
    htpasswd = {"htpasswd": {"realm": "here", "path": str(file)}}
    users(file, ann="one", bob="two", eve="three")
    async with opened(tmp_path / "keys", others=htpasswd) as client:
        query = "offline_token=true&scope=repository:team/app:pull"
        shown = {"ann": "one", "bob": "two", "eve": "three"}
        tokens = {
            name: said(await asked(client, query, as_user(name, password)))["refresh_token"]
            for name, password in shown.items()
        }
        assert [await refreshed(client, token) for token in tokens.values()] == [200, 200, 200]
        entries = file.read_text(encoding="utf-8").splitlines(keepends=True)
        users(file, ann="changed")
        file.write_text(file.read_text(encoding="utf-8") + entries[2], encoding="utf-8")
        assert {name: await refreshed(client, token) for name, token in tokens.items()} == {
            "ann": 401,  # has another password
            "bob": 401,  # is gone
            "eve": 200,
        }
        again = said(await asked(client, query, as_user("ann", "changed")))["refresh_token"]
        assert await refreshed(client, again) == 200
        # Whose entry is back as it was is whom it was.
        file.write_text("".join(entries), encoding="utf-8")
        assert await refreshed(client, tokens["bob"]) == 200
    async with opened(tmp_path / "keys") as client:
        assert await refreshed(client, tokens["eve"]) == 401  # nobody is there to be asked


async def test_a_refresh_token_brings_the_groups_of_now(tmp_path: Path) -> None:
    file = tmp_path / "htpasswd"
    users(file, ann="one")
    refresh = ""
    for groups in ({"ops": ["ann"]}, {"staff": ["ann"], "all": ["ann"]}, {}):
        others = {"htpasswd": {"realm": "here", "path": str(file), "groups": groups}}
        async with opened(tmp_path / "keys", others=others) as client:
            if not refresh:
                answer = said(await asked(client, "offline_token=true", as_user("ann", "one")))
                refresh = answer["refresh_token"]
                assert "groups" not in await verified(client, refresh, audience="moorage refresh")
            bought = said(await posted(client, grant_type="refresh_token", refresh_token=refresh))
            assert (await verified(client, bought["access_token"])).get("groups", []) == sorted(groups)


async def test_who_cannot_be_asked_for_again_gets_no_refresh_token(tmp_path: Path) -> None:
    others = {"silly": {"realm": "here", "service": "any"}}
    async with opened(tmp_path / "keys", others=others) as client:
        answer = said(await asked(client, "offline_token=true"))
        assert (await verified(client, answer["token"]))["sub"] == "silly"
        assert "refresh_token" not in answer
    async with open_keyring(tmp_path / "keys", "EdDSA", rotate=2592000, kept=2592000) as ring:
        # As they were made before anybody was asked again.
        old = sign(ring.signer(), claims_now(aud="moorage refresh"))
    async with opened(tmp_path / "keys") as client:
        assert await refreshed(client, old) == 401


async def test_without_an_issuer_there_is_no_such_path(tmp_path: Path) -> None:
    plugins = installed()
    plugins.register(house, "house")
    found = loaded("auth: {passwords: null}", plugins)
    async with open_registry(found.configuration, plugins) as registry:
        client = AsgiClient(Application(registry.handler, application_settings(found.configuration)))
        for path in ("/auth/token", "/auth/jwks", "/.well-known/jwks.json"):
            assert (await client.ask("GET", path)).status == 404
        assert (await client.ask("POST", "/auth/token", body=b"x")).decoded(Claims).keys() == {"errors"}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "invalid_request"),
        ({"grant_type": "implicit"}, "unsupported_grant_type"),
        ({"grant_type": "password", "username": "ann"}, "invalid_request"),
        ({"grant_type": "refresh_token"}, "invalid_request"),
        ({"grant_type": "password", "username": "a:b", "password": "c"}, "invalid_request"),
        ({"grant_type": "password", "username": "ann", "password": "ann-secret", "scope": "junk"}, "invalid_request"),
        ({"grant_type": "password", "username": "ann", "password": "ann-secret", "service": "x"}, "invalid_request"),
    ],
)
async def test_junk_in_a_form_is_told(tmp_path: Path, fields: dict[str, str], problem: str) -> None:
    async with opened(tmp_path / "keys") as client:
        answer = await posted(client, **fields)
        told = answer.decoded(Claims)
        assert (answer.status, told["error"], answer.codes) == (400, problem, ["UNSUPPORTED"])
        assert told["error_description"] == answer.messages[0]


async def test_a_form_is_bounded_and_is_one(tmp_path: Path) -> None:
    form = [("Content-Type", "application/x-www-form-urlencoded")]
    async with opened(tmp_path / "keys") as client:
        for headers, body in (
            ([], b"grant_type=password"),
            ([("Content-Type", "application/json")], b"{}"),
            (form, b"x" * (1 << 17)),
            (form, b"a=%ff\xff"),
            (form, b"&".join([b"a=b"] * 200)),
            (form, b"grant_type=password&grant_type=password"),
        ):
            answer = await client.ask("POST", "/auth/token", headers, body, length=False)
            assert (answer.status, answer.decoded(Claims)["error"]) == (400, "invalid_request")
        assert (await client.ask("PUT", "/auth/token")).header("Allow") == "GET, POST"


_NAMES = st.sampled_from(["team/app", "open/x", "other", "UPPER", "host:5000/team", "a//b", ""])
_ACTION_LISTS = st.lists(st.sampled_from(["pull", "push", "delete", "*", "admin", ""]), max_size=4).map(",".join)
_SCOPES = st.one_of(
    st.builds(
        "{}:{}:{}".format, st.sampled_from(["repository", "registry", "repository(plugin)"]), _NAMES, _ACTION_LISTS
    ),
    st.text(max_size=30),
)


@given(scopes=st.lists(_SCOPES, max_size=5), by_form=st.booleans())
@settings(max_examples=40)
async def test_whatever_is_asked_for_nobody_gets_more_than_the_rules_and_the_question_say(
    tmp_path_factory: pytest.TempPathFactory, scopes: list[str], by_form: bool
) -> None:
    async with opened(tmp_path_factory.getbasetemp() / "scopes-keys") as client:
        if by_form:
            answer = await posted(
                client, grant_type="password", username="ann", password="ann-secret", scope=" ".join(scopes)
            )
        else:
            answer = await asked(client, str(httpx.QueryParams([("scope", scope) for scope in scopes])))
        assert answer.status in {200, 400}
        if answer.status == 400:
            assert answer.codes == ["UNSUPPORTED"]
            return
        for entry in (await verified(client, said(answer)["access_token"]))["access"]:
            for action in entry["actions"]:
                assert any(f"{entry['name']}/".startswith(each.rpartition(":")[0]) for each in MAY["ann"])
                assert f"{entry['name'].split('/')[0]}/:{action}" in MAY["ann"]
                asked_for = [scope for scope in " ".join(scopes).split() if f":{entry['name']}:" in scope]
                assert any(action in scope or "*" in scope for scope in asked_for)


# ---- what is refused


def encoded(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims_now(**changed: object) -> Claims:
    now = int(time.time())
    access = [{"type": "repository", "name": "team/app", "actions": ["pull"]}]
    claims = {"iss": "moorage", "sub": "ann", "aud": "moorage", "exp": now + 60, "nbf": now, "iat": now, "jti": "x"}
    return {**claims, "access": access, **changed}


async def status_of(client: AsgiClient, token: str) -> tuple[int, bool]:
    answer = await client.ask("GET", "/v2/team/app/tags/list", bearer(token))
    return answer.status, 'error="invalid_token"' in (answer.header("WWW-Authenticate") or "")


async def test_only_what_our_key_signed_for_us_and_now_is_good(tmp_path: Path) -> None:
    async with (
        opened(tmp_path / "keys") as client,
        open_keyring(tmp_path / "keys", "EdDSA", rotate=2592000, kept=2592000) as ring,
        open_keyring(tmp_path / "others", "EdDSA", rotate=2592000, kept=2592000) as others,
    ):
        key = ring.signer()
        now = int(time.time())
        assert await status_of(client, sign(key, claims_now())) == (404, False)
        changed: list[Claims] = [
            {"exp": now - 61},
            {"nbf": now + 120},
            {"aud": "other"},
            {"aud": ["moorage"]},
            {"exp": None},
            {"sub": 5},
        ]
        for change in changed:
            assert await status_of(client, sign(key, claims_now(**change))) == (401, True), change
        assert await status_of(client, sign(key, claims_now(iss="other"))) == (401, True)
        # Of another key, under its own name and under ours.
        other = others.signer()
        assert await status_of(client, sign(other, claims_now())) == (401, True)
        stolen = type(other)(key.kid, other.algorithm, other.signs_from, other.key)
        assert await status_of(client, sign(stolen, claims_now())) == (401, True)


async def test_tokens_that_are_signed_by_tricks_are_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "keys") as client:
        good = said(await asked(client, "scope=repository:team/app:pull"))["token"]
        head, body, signature = good.split(".")
        (public,) = said(await client.ask("GET", "/auth/jwks"))["keys"]
        kid = public["kid"]
        secret = base64.urlsafe_b64decode(public["x"] + "==")
        for used in (secret, json.dumps(public).encode()):
            signed = f"{encoded({'alg': 'HS256', 'kid': kid})}.{body}"
            mac = hmac.new(used, signed.encode(), hashlib.sha256).digest()
            assert await status_of(client, f"{signed}.{encoded(mac)}") == (401, True)
        for alg in ("none", "None", "", "ES256", "Ed25519", "HS256"):
            for end in ("", signature):
                assert await status_of(client, f"{encoded({'alg': alg, 'kid': kid})}.{body}.{end}") == (401, True)
        mine = Ed25519PrivateKey.generate()  # an attacker's own key, inside of the token
        embedded = {"kty": "OKP", "crv": "Ed25519", "x": encoded(mine.public_key().public_bytes_raw())}
        forged = jwt.encode(claims_now(), mine, algorithm="EdDSA", headers={"kid": kid, "jwk": embedded})
        assert await status_of(client, forged) == (401, True)
        for junk in ("", "a", "a.b", "a.b.c", "....", f"{head}.{body}", f"{good}.x", f"{head}.{body}.", "é.é.é"):
            assert await status_of(client, junk) == (401, True)
        assert await status_of(client, good) == (404, False)


async def test_users_and_times_can_be_revoked(tmp_path: Path) -> None:
    async with opened(tmp_path / "keys") as client:
        answer = said(await asked(client, "scope=repository:team/app:pull&offline_token=true"))
    revoked: list[dict[str, Any]] = [{"revoked": ["ann"]}, {"revoked_before": "2999-01-01T00:00:00Z"}]
    for options in revoked:
        async with opened(tmp_path / "keys", **options) as client:
            assert await status_of(client, answer["token"]) == (401, True)
            refreshed = await posted(client, grant_type="refresh_token", refresh_token=answer["refresh_token"])
            assert refreshed.status == 401
    async with opened(tmp_path / "keys", revoked=["bob"], revoked_before="2020-01-01T00:00:00Z") as client:
        assert await status_of(client, answer["token"]) == (404, False)


async def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuer, "_REMEMBERED", 3)
    async with open_keyring(tmp_path / "keys", "EdDSA", rotate=1000, kept=10) as keys:
        tokens = OwnTokens(Issuing(keys=str(tmp_path)), keys)
        origins = [
            Origin(credentials=Credentials("bearer", sign(keys.signer(), claims_now(jti=str(at))))) for at in range(5)
        ]
        callers = [await tokens(origin) for origin in origins]
        assert len(tokens._verified) == 3
        assert await tokens(origins[4]) is callers[4]
        assert await tokens(origins[0]) == callers[0]
        assert len(tokens._verified) == 3


async def test_a_remembered_token_is_refused_when_its_key_is_gone(tmp_path: Path) -> None:
    async with open_keyring(tmp_path / "keys", "EdDSA", rotate=1000, kept=10) as keys:
        tokens = OwnTokens(Issuing(keys=str(tmp_path)), keys)
        origin = Origin(credentials=Credentials("bearer", sign(keys.signer(), claims_now())))
        assert await tokens(origin) is not None
        for path in (tmp_path / "keys").glob("*.jwk"):
            path.unlink()
        await keys.look()
        with pytest.raises(Unauthorized, match="not, or no longer, one of ours"):
            await tokens(origin)


# ---- keys


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def ring_of(folder: Path, clock: Clock) -> KeyRing:
    return KeyRing(folder, "EdDSA", rotate=100, kept=250, clock=clock)


async def test_a_key_is_known_before_it_signs_and_until_its_last_token_has_expired(tmp_path: Path) -> None:
    clock = Clock()
    one, two = ring_of(tmp_path, clock), ring_of(tmp_path, clock)
    await one.look()
    await two.look()
    first = one.signer()
    assert two.signer().kid == first.kid
    clock.now += 89
    await one.look()
    assert len(one.keys) == 1
    clock.now += 1
    await one.look()
    assert len(one.keys) == 2
    assert one.signer().kid == first.kid
    await two.look()
    assert two.keys.keys() == one.keys.keys()
    clock.now += 10
    second = one.signer()
    assert second.kid != first.kid
    assert two.signer().kid == second.kid
    clock.now += 309
    await one.look()
    assert first.kid in one.keys
    clock.now += 2
    await one.look()
    assert first.kid not in one.keys
    assert not (tmp_path / f"{first.kid}.jwk").exists()
    # A ring that slept sees the same.
    await two.look()
    assert two.keys.keys() == one.keys.keys()


async def test_many_processes_make_one_key(tmp_path: Path) -> None:
    rings = [KeyRing(tmp_path, "ES256", rotate=100, kept=10) for _ in range(8)]
    async with trio.open_nursery() as nursery:
        for ring in rings:
            nursery.start_soon(ring.look)
    for ring in rings:
        await ring.look()
    assert len({ring.signer().kid for ring in rings}) == 1
    assert len(list(tmp_path.glob("*.jwk"))) == 1


async def test_a_token_of_a_key_that_another_process_has_just_made_is_good(tmp_path: Path) -> None:
    clock = Clock()
    one, two = ring_of(tmp_path, clock), ring_of(tmp_path, clock)
    await one.look()
    await two.look()
    for path in tmp_path.glob("*.jwk"):
        path.unlink()
    clock.now += 5
    await one.look()
    found = await two.find(one.signer().kid)
    assert found is not None
    assert await two.find("nobody's") is None


async def test_keys_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "keys"
    async with open_keyring(folder, "EdDSA", rotate=100, kept=10):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert [path.stat().st_mode & 0o777 for path in folder.glob("*.jwk")] == [0o600]
    folder.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"everybody on this machine has a right to .*; chmod 0700"):
        async with open_keyring(folder, "EdDSA", rotate=100, kept=10):
            pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigurationError, match=r"auth\.issuer\.keys: "):
        async with open_keyring(tmp_path / "file" / "keys", "EdDSA", rotate=100, kept=10):
            pass


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"kid":"x","alg":"EdDSA","nbf":1,"kty":"OKP"}', "\xff"])
async def test_what_is_no_key_is_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.jwk").write_text(content, encoding="latin-1")
    (tmp_path / "x.jwk").chmod(0o600)
    ring = KeyRing(tmp_path, "EdDSA", rotate=100, kept=10)
    await ring.look()
    assert len(ring.keys) == 1


async def test_a_folder_that_goes_away_leaves_what_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    ring = KeyRing(folder, "EdDSA", rotate=100, kept=10)
    await ring.look()
    folder.rename(tmp_path / "away")
    await ring.look_again()
    assert ring.can_sign


# ---- settings


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("{}", "keys"),
        ("{keys: ''}", "keys is empty"),
        ("{keys: k, ttl: 1s}", "ttl is a time from 10s to 24h"),
        ("{keys: k, ttl: 48h}", "ttl is a time from 10s to 24h"),
        ("{keys: k, ttl: soon}", 'a duration such as "1h30m"'),
        ("{keys: k, refresh: 1s}", "refresh is 0, or a time from ttl to 8784h"),
        ("{keys: k, rotate: 1h}", "rotate is too short"),
        ("{keys: k, rotate: 0}", "rotate is too short"),
        ("{keys: k, algorithm: none}", "EdDSA"),
        ("{keys: k, service: ''}", "service has"),
        ('{keys: k, service: "a\\nb"}', "service has"),
        ("{keys: k, revoked_before: yesterday}", "2026-01-31T12:00:00Z"),
        ("{keys: k, revoked_before: 2026-01-31}", "2026-01-31T12:00:00Z"),
        ("{keys: k, keyz: 1}", "keyz"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(written: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        loaded(f"auth: {{issuer: {written}}}")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_the_contract_of_plugins(tmp_path: Path) -> None:
    assert_plugin(Subject("moorage_middleware.issuer", {"issuer": {"keys": f"{tmp_path}/keys"}}))


async def test_a_token_of_a_caller_inside_the_process(tmp_path: Path) -> None:
    async with open_keyring(tmp_path, "EdDSA", rotate=2592000, kept=10) as keys:
        server: Handler = TokenServer(Issuing(keys=str(tmp_path)), keys, cast("Handler", None))
        issued = await server(IssueToken(service="", caller=Caller(name="ann", groups=frozenset({"b", "a"}))))
        assert (issued.scopes, issued.refresh_token) == ((), None)
        shown = Origin(credentials=Credentials("bearer", issued.token))
        caller = await OwnTokens(Issuing(keys=str(tmp_path)), keys)(shown)
        assert caller == Caller(name="ann", groups=frozenset({"a", "b"}), grants=())

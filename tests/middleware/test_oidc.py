"""The authenticator `oidc`: ID tokens of CI systems are believed as their issuers and the options say."""

import json
import logging
from collections.abc import Generator

import pytest

from asking import basic, bearer, opened_authenticator
from moorage import Authenticator, Caller, ConfigurationError, Credentials, Origin, Unauthorized, Unavailable
from signing import Published, claims, key_set, new_key, public_jwk, publishing, signed

KEY = new_key("RS256")
OTHER = new_key("RS256")


@pytest.fixture
def server() -> Generator[Published]:
    with publishing() as server:
        server.answers["/keys"] = key_set(public_jwk(KEY, "one"), {"kty": "oct", "kid": "shared", "k": "YWJj"})
        discovery = {"issuer": server.url, "jwks_uri": f"{server.url}/keys", "more": 1}
        server.answers["/.well-known/openid-configuration"] = json.dumps(discovery)
        yield server


def options(server: Published, **more: object) -> dict[str, object]:
    issuer = {"issuer": server.url, "audience": ["registry.example", "registry"]}
    return {"realm": "the house", "issuers": [issuer | more]}


def token(server: Published, **more: object) -> str:
    told = {"sub": "repo:my-org/app:ref:refs/heads/main", "repository": "my-org/app", "access": None, **more}
    return signed(KEY, claims(iss=server.url, **told), "RS256", kid="one")


async def refused(known: Authenticator, text: str) -> None:
    with pytest.raises(Unauthorized, match="cannot be believed"):
        await known(bearer(text))


async def test_a_token_is_taken_as_bearer_and_as_a_password(server: Published) -> None:
    ann = Caller(name="repo:my-org/app:ref:refs/heads/main")
    async with opened_authenticator("oidc", options(server)) as known:
        assert known.challenge == 'Basic realm="the house"'
        for _ in range(2):
            assert await known(bearer(token(server))) == ann
            assert await known(basic("whoever", token(server))) == ann
    assert server.asked == 2


async def test_names_groups_and_claims_are_as_the_options_say(server: Published) -> None:
    more = {
        "claims": {"repository": "my-org/*", "ref": "refs/heads/**", "protected": "true", "run": "7"},
        "name": "repository",
        "groups": ["owner", "teams", "missing"],
        "prefix": "ci:",
    }
    good: dict[str, object] = {"ref": "refs/heads/a/b", "protected": True, "run": [6, 7], "owner": "o", "teams": ["x"]}
    async with opened_authenticator("oidc", options(server, **more)) as known:
        caller = await known(bearer(token(server, **good)))
        assert caller == Caller(name="ci:my-org/app", groups=frozenset({"ci:o", "ci:x"}))
        for name, value in (
            ("repository", "their-org/app"),
            ("repository", "my-org/a/b"),
            ("repository", None),
            ("ref", {"refs/heads/a": 1}),
            ("protected", False),
            ("run", 8),
        ):
            await refused(known, token(server, **{**good, name: value}))


@pytest.mark.parametrize("value", [None, "", ["a", "b"], {"a": 1}, "a\nb"])
async def test_a_token_without_a_name_is_refused(server: Published, value: object) -> None:
    async with opened_authenticator("oidc", options(server, name="login")) as known:
        await refused(known, token(server, login=value))


async def test_wrong_tokens_are_refused_and_what_is_of_others_left_to_them(server: Published) -> None:
    told = claims(iss=server.url)
    async with opened_authenticator("oidc", options(server)) as known:
        for wrong in (
            token(server, aud="else"),
            token(server, exp=1),
            signed(OTHER, told, "RS256", kid="one"),
            signed(KEY, told, "RS256", kid="two"),
            signed(KEY, told, "RS256"),
            signed("abc" * 20, told, "HS256", kid="shared"),
            signed(KEY, told, "RS256", kid="one", jwk=public_jwk(OTHER, "one"), x5c=["eA=="]),
        ):
            await refused(known, wrong)
        assert await known(Origin()) is None
        assert await known(basic("ann", "a password")) is None
        assert await known(Origin(credentials=Credentials("basic", "%"))) is None
        assert await known(bearer("opaque")) is None
        assert await known(bearer(signed(KEY, claims(), "RS256", kid="one"))) is None


async def test_keys_that_change_count_and_old_ones_no_longer(server: Published) -> None:
    old = token(server)
    async with opened_authenticator("oidc", options(server)) as known:
        await known(bearer(old))
        server.answers["/keys"] = key_set(public_jwk(OTHER, "two"))
        keys = known._trusted[server.url].keys  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType] - lets the time between two looks pass
        keys._began -= 10  # pyright: ignore[reportUnknownMemberType] - same
        new = signed(OTHER, claims(iss=server.url), "RS256", kid="two")
        assert await known(bearer(new)) is not None
        await refused(known, old)


@pytest.mark.parametrize(
    "discovery",
    [
        None,
        "no json",
        "{}",
        '{"issuer": 1, "jwks_uri": 2}',
        '{"issuer": "https://another.example", "jwks_uri": "URL/keys"}',
        '{"issuer": "URL", "jwks_uri": "http://elsewhere.example/keys"}',
        '{"issuer": "URL", "jwks_uri": "file:///etc/passwd"}',
        '{"issuer": "URL", "jwks_uri": "URL/nowhere"}',
    ],
)
async def test_an_issuer_that_cannot_be_asked_is_told_and_forgiven(
    server: Published, discovery: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/.well-known/openid-configuration"
    good = server.answers.pop(path)
    if discovery is not None:
        server.answers[path] = discovery.replace("URL", server.url)
    async with opened_authenticator("oidc", options(server)) as known:
        with pytest.raises(Unavailable):
            await known(bearer(token(server)))
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
        server.answers[path] = good
        keys = known._trusted[server.url].keys  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType] - lets the time between two looks pass
        keys._began -= 10  # pyright: ignore[reportUnknownMemberType] - same
        assert await known(bearer(token(server))) is not None


BAD_ISSUERS: list[tuple[list[dict[str, object]], str]] = [
    ([], "issuers"),
    ([{"issuer": "http://issuer.example", "audience": ["a"]}], "issuer"),
    ([{"issuer": "https://issuer.example", "audience": []}], "audience"),
    ([{"issuer": "https://issuer.example"}], "audience"),
    ([{"issuer": "https://issuer.example", "audience": ["a"], "claims": {"a": "[b]"}}], "claims"),
    ([{"issuer": "https://issuer.example", "audience": ["a"]}] * 2, "twice"),
]


@pytest.mark.parametrize(("issuers", "said"), BAD_ISSUERS)
async def test_wrong_settings_are_told_by_name(issuers: list[dict[str, object]], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        async with opened_authenticator("oidc", {"issuers": issuers}):
            pass


async def test_no_token_is_told(server: Published, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    wrong = signed(OTHER, claims(iss=server.url), "RS256", kid="one")
    async with opened_authenticator("oidc", options(server)) as known:
        await refused(known, wrong)
    assert "its signature is wrong" in caplog.text
    assert not [part for part in wrong.split(".") if part in caplog.text]

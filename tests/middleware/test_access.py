"""Who may do what: every endpoint as every kind of caller, compared with rules that this file reads in its own way."""

import itertools
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import cast

import msgspec
import pytest
import yaml
from hypothesis import given, settings, strategies as st

import callers
from asgi_client import Answer, AsgiClient, client_of, image, next_page, path_of
from callers import badge
from moorage import (
    OCI_MANIFEST,
    Access,
    Caller,
    ConfigurationError,
    Digest,
    Driver,
    DriverFactory,
    Handler,
    ListRepositories,
    MemoryDriver,
    MountBlob,
    NoOptions,
    Operation,
    Ping,
    PluginManager,
    PullManifest,
    PushManifest,
    R,
    Registry,
    RegistryError,
    RepositoryName,
    Tag,
    Trail,
    decode_options,
    encode_json,
    hookimpl,
    open_registry,
)
from moorage_conformance.plugin_kit import Subject, assert_plugin
from moorage_middleware.access import AccessOptions, Guard, RepositoryPattern, Rules
from opening import installed, loaded

SECRET = b"a secret layer"
DIGEST = Digest.of(SECRET)
CONFIG = Digest.of(b"{}")
DOCUMENT = image(CONFIG)
MANIFEST = Digest.of(encode_json(DOCUMENT))
NOTHING = Digest.of(b"nothing")

STORED = ("pub/a", "pub/z", "rel/c", "sec/b", "users/ann/x", "users/bob/x")
ABSENT = ("pub/none", "sec/none", "users/carl/x")


class Prepared:
    """A plugin with a store that is there before any registry is opened on it."""

    def __init__(self) -> None:
        self.driver: MemoryDriver = MemoryDriver()

    @hookimpl
    def register_drivers(self) -> Mapping[str, object]:
        """Offer the store."""

        @asynccontextmanager
        async def open_prepared(options: NoOptions) -> AsyncGenerator[Driver]:
            del options
            yield self.driver

        return {"prepared": DriverFactory(NoOptions, open_prepared, shared=False)}


PREPARED = Prepared()
PLUGINS: PluginManager = installed()
PLUGINS.register(PREPARED, "prepared")
PLUGINS.register(callers, "callers")


async def fill() -> None:
    """Put one image into each repository; the secret layer is in one only."""
    PREPARED.driver = MemoryDriver()
    client = client_of(Registry(PREPARED.driver))
    for name in STORED:
        await client.push_image(name, "v1")
    await client.push_blob("sec/b", SECRET)


@asynccontextmanager
async def guarded(access: Mapping[str, object], **more: object) -> AsyncGenerator[AsgiClient]:
    """Open a registry on what `fill` stored, with these rules."""
    sections: dict[str, object] = {
        "storage": {"prepared": None, "delete": {"enabled": True}},
        "access": access,
        "auth": {"believer": {"anonymous": True}},
        **more,
    }
    found = loaded(yaml.safe_dump(sections), PLUGINS)
    assert found.warnings == ()
    async with open_registry(found.configuration, PLUGINS) as registry:
        yield client_of(registry.handler)


# ---- the oracle: rules, read as docs/access.md has them, and nothing of the code that is tested

Who = tuple[str, tuple[str, ...]]
"""A name, empty for nobody, and groups."""
Need = tuple[str, str]
"""A repository, empty for the registry, and an action."""

PATTERNS: Mapping[str, Callable[[str, str], bool]] = {
    "**": lambda name, user: True,
    "pub/*": lambda name, user: name.startswith("pub/"),
    "sec/b": lambda name, user: name == "sec/b",
    "sec/**": lambda name, user: name.startswith("sec/"),
    "rel/?": lambda name, user: len(name) == 5 and name.startswith("rel/"),
    "users/{user}/**": lambda name, user: user in {"ann", "bob", "carl"} and name.startswith(f"users/{user}/"),
    "**/a": lambda name, user: name == "a" or name.endswith("/a"),
}
TAGS: Mapping[str, Callable[[str], bool]] = {
    "v*": lambda tag: tag[0] == "v",
    "latest": lambda tag: tag == "latest",
}
CONFIGURED_GROUPS: Mapping[str, Sequence[str]] = {"staff": ["ann", "carl"]}


Written = Mapping[str, object]
"""A rule, or the whole section, as a configuration has it."""


def listed(rule: Written, key: str) -> list[str]:
    return cast("list[str]", rule.get(key, []))


def rule_allows(access: Written, who: Who, need: Need, tag: str | None) -> bool:
    name, action = need
    user, own = who
    groups = {*own, *(group for group, members in CONFIGURED_GROUPS.items() if user in members)}
    for rule in cast("list[Written]", access["rules"]):
        allows = rule.get("effect", "allow") == "allow"
        people = listed(rule, "users")
        for_user = user != "" and (user in people or "*" in people)
        for_nobody = rule.get("anonymous", False) and (allows or user == "")
        if not (for_user or for_nobody or groups & set(listed(rule, "groups"))):
            continue
        actions = set(listed(rule, "actions"))
        if "*" in actions:
            actions |= {"pull", "push", "delete", "catalog"}
        if allows and "push" in actions:
            actions.add("pull")
        if action not in actions:
            continue
        patterns = listed(rule, "repositories")
        if patterns and (name == "" or not any(PATTERNS[pattern](name, user) for pattern in patterns)):
            continue
        wanted = listed(rule, "tags")
        if wanted and action == "push":
            if tag is None and not allows:
                continue
            if tag is not None and not any(TAGS[pattern](tag) for pattern in wanted):
                continue
        return allows
    return access["default"] == "allow"


def expected(
    access: Mapping[str, object],
    who: Who,
    grants: Mapping[str, Sequence[str]] | None,
    needs: Sequence[Need],
    tags: Sequence[str] = (),
    source: str | None = None,
) -> int:
    """Return 401 or 403, or 200 for whatever is answered by who may."""
    for need in needs:
        pushed: Sequence[str | None] = tags if need[1] == "push" and tags else [None]
        for tag in pushed:
            if not rule_allows(access, who, need, tag):
                return 403 if who[0] else 401
    needed = [*needs]
    if source is not None and rule_allows(access, who, (source, "pull"), None):
        needed.append((source, "pull"))
    if grants is not None and any(
        action not in grants.get(name or "catalog", ()) and "*" not in grants.get(name or "catalog", ())
        for name, action in needed
    ):
        return 401
    return 200


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request, and what it needs."""

    method: str
    target: str
    needs: Sequence[Need]
    body: bytes = b""
    tags: Sequence[str] = ()
    source: str | None = None


def requests(name: str, other: str) -> list[Request]:
    """Return a request to every endpoint, by every method that it has, of `name`; they change nothing that counts."""
    pull, push, delete = [(name, "pull")], [(name, "pull"), (name, "push")], [(name, "delete")]
    base, session = f"/v2/{name}", f"/v2/{name}/blobs/uploads/00000000-0000-4000-8000-000000000000"
    body = encode_json(DOCUMENT)
    found = [
        Request(method=method, target=base + path, needs=pull)
        for method in ("GET", "HEAD")
        for path in (
            "/manifests/v1",
            f"/manifests/{MANIFEST}",
            "/manifests/none",
            f"/blobs/{DIGEST}",
            f"/blobs/{NOTHING}",
            "/tags/list",
            "/tags/list?n=1",
            f"/referrers/{MANIFEST}",
            f"/referrers/{MANIFEST}?artifactType=a/b",
        )
    ]
    found += [Request(method=method, target=session, needs=pull) for method in ("GET", "HEAD")]
    found += [
        Request(method="DELETE", target=base + path, needs=delete)
        for path in ("/manifests/none", f"/manifests/{NOTHING}", f"/blobs/{NOTHING}")
    ]
    found += [
        Request(method="PUT", target=f"{base}/manifests/{reference}{query}", needs=push, body=body, tags=tags)
        for reference, query, tags in (
            ("v1", "", ["v1"]),
            ("latest", "", ["latest"]),
            (str(MANIFEST), "", []),
            (str(MANIFEST), "?tag=v1&tag=latest", ["v1", "latest"]),
            ("v1", "?tag=v1&tag=other", ["v1", "other"]),
            ("other", "?tag=v1", ["other", "v1"]),
        )
    ]
    found += [
        Request(method=method, target=target, needs=push, body=sent)
        for method, target, sent in (
            ("POST", f"{base}/blobs/uploads/", b""),
            ("POST", f"{base}/blobs/uploads", b""),
            ("POST", f"{base}/blobs/uploads/?digest={CONFIG}", b"{}"),
            ("POST", f"{base}/blobs/uploads/?mount={NOTHING}", b""),
            ("PATCH", session, b"x"),
            ("PUT", f"{session}?digest={CONFIG}", b"{}"),
            ("DELETE", session, b""),
        )
    ]
    found += [
        Request(method="POST", target=f"{base}/blobs/uploads/?mount={digest}&from={other}", needs=push, source=other)
        for digest in (CONFIG, NOTHING)
    ]
    return found


def some(*values: str, most: int = 2) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=most)


def is_for_somebody(rule: Written) -> bool:
    return "users" in rule or "groups" in rule or bool(rule.get("anonymous"))


def for_tags(rule: Written, tags: list[str]) -> Written:
    return {**rule, "actions": ["push"], "tags": tags}


def for_catalog(rule: Written) -> Written:
    return {**{key: value for key, value in rule.items() if key != "repositories"}, "actions": ["catalog"]}


FIELDS: Mapping[str, st.SearchStrategy[object]] = {
    "repositories": some(*PATTERNS),
    "effect": st.sampled_from(["allow", "deny"]),
    "groups": some("staff", "ci"),
    "anonymous": st.booleans(),
    "users": some("*", "ann", "bob", "Ann"),
}
RULE: st.SearchStrategy[Written] = st.fixed_dictionaries(
    {"actions": some("pull", "push", "delete", "*", most=3)}, optional=FIELDS
).filter(is_for_somebody)
RULES: st.SearchStrategy[list[Written]] = st.lists(
    st.one_of(RULE, st.builds(for_tags, RULE, some(*TAGS)), st.builds(for_catalog, RULE)), max_size=6
)


def section(default: str, rules: list[Written]) -> Written:
    return {
        "default": default,
        "rules": rules,
        "groups": {name: list(each) for name, each in CONFIGURED_GROUPS.items()},
    }


ACCESS: st.SearchStrategy[Written] = st.builds(section, st.sampled_from(["deny", "deny", "allow"]), RULES)
WHO: st.SearchStrategy[Who] = st.tuples(
    st.sampled_from(["", "ann", "bob", "carl", "Ann", "a/b", "**", "ann/x", "*"]),
    st.sampled_from([(), ("ci",), ("interns", "staff")]),
)
GRANTS = st.one_of(
    st.none(),
    st.dictionaries(
        st.sampled_from([*STORED, *ABSENT, "catalog"]),
        st.lists(st.sampled_from(["pull", "push", "delete", "*"]), min_size=1, max_size=3),
        max_size=5,
    ),
)


def headers_of(who: Who, grants: Mapping[str, Sequence[str]] | None) -> list[tuple[str, str]]:
    """Return how a caller shows who it is; nobody in particular shows nothing, unless it has a token."""
    return [] if not who[0] and not who[1] and grants is None else [badge(who[0], who[1], grants)]


@settings(max_examples=60)
@given(access=ACCESS, who=WHO, grants=GRANTS, name=st.sampled_from([*STORED, *ABSENT]), other=st.sampled_from(STORED))
async def test_every_endpoint_is_open_to_whom_the_rules_open_it(
    access: Mapping[str, object], who: Who, grants: Mapping[str, Sequence[str]] | None, name: str, other: str
) -> None:
    await fill()
    headers = headers_of(who, grants)
    async with guarded(access) as client:
        for request in requests(name, other):
            sent = [*headers, ("Content-Type", OCI_MANIFEST)]
            answer = await client.ask(request.method, request.target, sent, request.body)
            wanted = expected(access, who, grants, request.needs, request.tags, request.source)
            found = answer.status if answer.status in {401, 403} else 200
            assert found == wanted, (request, answer)
            assert answer.status < 500
            if found == 401:
                (challenge,) = answer.all("WWW-Authenticate")
                assert all(f"repository:{repository}:" in challenge for repository, _ in request.needs)


@settings(max_examples=60)
@given(access=ACCESS, who=WHO, grants=GRANTS, size=st.integers(1, 4))
async def test_the_catalog_shows_what_may_be_pulled_on_full_pages(
    access: Mapping[str, object], who: Who, grants: Mapping[str, Sequence[str]] | None, size: int
) -> None:
    await fill()
    async with guarded(access) as client:
        headers = headers_of(who, grants)
        first = await client.ask("GET", f"/v2/_catalog?n={size}", headers)
        granted = grants is None or "*" in grants.get("catalog", ())
        wanted = expected(access, who, None, [("", "catalog")])
        assert first.status == (wanted if wanted != 200 or granted else 401)
        if first.status != 200:
            return
        visible = [name for name in STORED if rule_allows(access, who, (name, "pull"), None)]
        pages = [visible[at : at + size] for at in range(0, len(visible), size)] or [[]]
        target: str | None = f"/v2/_catalog?n={size}"
        for page in pages:
            assert target is not None
            answer = await client.ask("GET", target, headers)
            assert json.loads(answer.body)["repositories"] == page
            target = next_page(answer)
        assert target is None


# ---- what refusals and mounts tell

ANN: Mapping[str, object] = {
    "rules": [
        {"repositories": ["pub/**"], "users": ["ann"], "actions": ["push"]},
        {"repositories": ["pub/**"], "anonymous": True, "actions": ["pull"]},
        {"repositories": ["sec/*"], "users": ["eve"], "actions": ["*"]},
    ]
}


async def test_a_refusal_does_not_tell_what_is_there() -> None:
    await fill()
    async with guarded(ANN) as client:
        for headers in ([], [badge("ann")], [badge("ann", (), {"sec/b": ["*"], "sec/n": ["*"]})]):
            for there, absent in zip(requests("sec/b", "sec/c"), requests("sec/n", "sec/c"), strict=True):
                sent = [*headers, ("Content-Type", OCI_MANIFEST)]
                one = await client.ask(there.method, there.target, sent, there.body)
                other = await client.ask(absent.method, absent.target, sent, absent.body)
                assert one.status == other.status == (403 if headers else 401)
                assert one.body.replace(b"sec/b", b"sec/n") == other.body
                assert [each.replace("sec/b", "sec/n") for each in one.all("WWW-Authenticate")] == other.all(
                    "WWW-Authenticate"
                )


def shape(answer: Answer) -> object:
    """Return all of an answer but what is different in each."""
    session = answer.header("Docker-Upload-UUID") or ""
    return answer.status, [(name, value.replace(session, "<id>")) for name, value in answer.headers], answer.body


@pytest.mark.parametrize("grants", [None, {"pub/a": ["pull", "push"]}])
async def test_a_mount_from_where_one_may_not_pull_is_an_upload_of_an_unknown_blob(
    grants: Mapping[str, Sequence[str]] | None,
) -> None:
    await fill()
    headers = [badge("ann", (), grants)]
    async with guarded(ANN) as client:
        here = f"/v2/pub/a/blobs/uploads/?mount={DIGEST}"
        unknown = await client.ask("POST", f"{here}&from=pub/a", headers)
        assert unknown.status == 202
        for source in ("sec/b", "sec/none"):
            answer = await client.ask("POST", f"{here}&from={source}", headers)
            assert shape(answer) == shape(unknown)
            session = path_of(answer.header("Location"))
            assert (await client.ask("PUT", f"{session}?digest={DIGEST}", headers, SECRET)).status == 201
        assert (await client.ask("GET", f"/v2/sec/b/blobs/{DIGEST}", headers)).status == 403


async def test_a_token_that_lacks_the_source_of_a_mount_is_asked_for_both() -> None:
    await fill()
    async with guarded(ANN) as client:
        target = f"/v2/pub/a/blobs/uploads/?mount={CONFIG}&from=pub/z"
        answer = await client.ask("POST", target, [badge("ann", (), {"pub/a": ["pull", "push"]})])
        assert answer.status == 401
        assert 'scope="repository:pub/a:pull,push repository:pub/z:pull"' in (answer.header("WWW-Authenticate") or "")
        both = {"pub/a": ["pull", "push"], "pub/z": ["pull"]}
        assert (await client.ask("POST", target, [badge("ann", (), both)])).status == 201


async def test_a_mount_from_anywhere_takes_only_what_may_be_pulled() -> None:
    await fill()
    async with guarded(ANN) as client:
        target = f"/v2/pub/a/blobs/uploads/?mount={DIGEST}"
        assert (await client.ask("POST", target, [badge("ann")])).status == 202
        assert (await client.ask("HEAD", f"/v2/pub/a/blobs/{DIGEST}", [badge("ann")])).status == 404
        await client_of(Registry(PREPARED.driver)).push_blob("pub/z", SECRET)
        # Rules allow it; a token that is good for the target only does not.
        assert (await client.ask("POST", target, [badge("ann", (), {"pub/a": ["*"]})])).status == 202
        assert (await client.ask("POST", target, [badge("ann", (), {"pub/a": ["*"], "pub/z": ["push"]})])).status == 202
        assert (await client.ask("POST", target, [badge("ann", (), {"pub/a": ["*"], "pub/z": ["pull"]})])).status == 201
        assert (await client.ask("POST", f"/v2/pub/b/blobs/uploads/?mount={DIGEST}", [badge("ann")])).status == 201


async def test_a_session_is_of_its_repository() -> None:
    await fill()
    access = {"rules": [{"repositories": ["users/{user}/**"], "users": ["*"], "actions": ["*"]}]}
    async with guarded(access) as client:
        opened = await client.ask("POST", "/v2/users/ann/x/blobs/uploads/", [badge("ann")])
        session = path_of(opened.header("Location"))
        for method in ("GET", "PATCH", "DELETE", "PUT"):
            target = f"{session}?digest={CONFIG}" if method == "PUT" else session
            assert (await client.ask(method, target, [badge("bob")])).status == 403
            moved = target.replace("users/ann", "users/bob")
            assert (await client.ask(method, moved, [badge("bob")])).status == 404
        assert (await client.ask("GET", session, [badge("ann")])).status == 204


# ---- no other way in

ODD = (
    "/v2/pub/a/../../sec/b/{}",
    "/v2/pub/a/%2e%2e/%2e%2e/sec/b/{}",
    "/v2/pub/a/..%2f..%2fsec/b/{}",
    "/v2/sec%2Fb/{}",
    "/v2/sec%2fb/{}",
    "/v2/%73ec/b/{}",
    "/v2//sec/b/{}",
    "/v2/sec//b/{}",
    "/v2/./sec/b/{}",
    "/v2/sec/./b/{}",
    "//v2/sec/b/{}",
    "/./v2/sec/b/{}",
    "/V2/sec/b/{}",
    "/v2/SEC/b/{}",
    "/v2/Sec/B/{}",
    "/v2/sec/b/{}/",
    "/v2/sec/b/{}//",
    "/v2/sec/b/{}/..",
    "/v2/sec/b/{}%00",
    "/v2/sec/b\\{}",
    "/v2/sec/b;pub/a/{}",
    "/v2/pub/a/sec/b/{}",
    "/v2/sec/b/{}?repository=pub/a&from=pub/a&name=pub/a",
    "/v2/sec/b/{}#/v2/pub/a",
    "http://registry.test/v2/sec/b/{}",
    "/v2/pub/a/{}",
)
LEAVES = (f"blobs/{DIGEST}", "manifests/only", "tags/list")
METHODS = ("GET", "HEAD", "get", "Get", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "")


async def only_in_secret() -> None:
    """Store a tag that one repository has only."""
    await fill()
    await client_of(Registry(PREPARED.driver)).push_image("sec/b", "only", annotations={"a": "b"})


async def test_there_is_no_way_around_the_rules() -> None:
    await only_in_secret()
    async with guarded(ANN) as client:
        for headers, path, leaf in itertools.product(([], [badge("ann")]), ODD, LEAVES):
            for method in METHODS:
                overridden = [("X-HTTP-Method-Override", "GET"), ("X-Original-URL", "/v2/sec/b/tags/list")]
                answer = await client.ask(method, path.format(leaf), [*headers, *overridden])
                mine = path == "/v2/pub/a/{}" and leaf == "tags/list"
                assert answer.status >= 400 or mine, (method, path, leaf, answer)
                assert SECRET not in answer.body
                assert b"only" not in answer.body or b"errors" in answer.body
        # And it is all still there.
        assert (await client.ask("GET", f"/v2/sec/b/blobs/{DIGEST}", [badge("eve")])).body == SECRET


# ---- placeholders


@pytest.mark.parametrize(
    ("pattern", "user", "repository", "matches"),
    [
        ("users/{user}/**", "ann", "users/ann/x", True),
        ("users/{user}/**", "ann", "users/ann/x/y", True),
        ("users/{user}/**", "ann", "users/anna/x", False),
        ("users/{user}/**", "ann", "users/bob/x", False),
        ("users/{user}/**", "a.n-n__1", "users/a.n-n__1/x", True),
        ("users/{user}/**", "a.n", "users/axn/x", False),
        ("users/{user}/**", "*", "users/ann/x", False),
        ("users/{user}/**", "**", "users/ann/x", False),
        ("users/{user}/**", "a?n", "users/ann/x", False),
        ("users/{user}/**", "ann/x", "users/ann/x/y", False),
        ("users/{user}/**", "..", "users/ann/x", False),
        ("users/{user}/**", "Ann", "users/ann/x", False),
        ("users/{user}/**", "ann\n", "users/ann/x", False),
        ("users/{user}/**", "", "users/ann/x", False),
        ("users/{user}/**", "{user}", "users/ann/x", False),
        ("users/{user}/**", "user", "users/user/x", True),
        ("{user}", "ann", "ann", True),
        ("**/{user}", "ann", "a/b/ann", True),
        ("**", "Ann/**", "a/b", True),
    ],
)
def test_a_name_stands_in_a_pattern_for_itself_only(pattern: str, user: str, repository: str, matches: bool) -> None:
    assert RepositoryPattern(pattern).matches(RepositoryName(repository), user) is matches


# ---- what is written


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"rules": [{"actions": ["pull"]}]}, "rules[0]: it is for nobody; say users, groups or anonymous"),
        ({"rules": [{"users": ["ann"]}]}, "rules[0].actions: missing"),
        ({"rules": [{"users": ["ann"], "actions": []}]}, "rules[0].actions: found 0 items"),
        ({"rules": [{"users": [], "actions": ["pull"]}]}, "rules[0].users: found 0 items"),
        ({"rules": [{"users": ["a*"], "actions": ["pull"]}]}, "'a*' is not the name of a user"),
        ({"rules": [{"users": [""], "actions": ["pull"]}]}, "'' is not the name of a user"),
        ({"rules": [{"groups": ["*"], "actions": ["pull"]}]}, "'*' is not the name of a group"),
        ({"rules": [{"users": ["*"], "actions": ["pull"], "repositories": []}]}, "repositories: found 0 items"),
        ({"rules": [{"users": ["*"], "actions": ["pull"], "repositories": ["u-{user}"]}]}, "as a whole component"),
        ({"rules": [{"users": ["*"], "actions": ["pull"], "repositories": ["a[b]"]}]}, "no '['"),
        ({"rules": [{"users": ["*"], "actions": ["catalog"], "repositories": ["a"]}]}, "the catalog is not in a"),
        ({"rules": [{"users": ["*"], "actions": ["pull"], "tags": ["v*"]}]}, "tags are for pushes"),
        ({"rules": [{"users": ["*"], "actions": ["*"], "tags": ["v*"]}]}, "tags are for pushes"),
        (
            {"rules": [{"users": ["*"], "effect": "deny", "actions": ["pull", "push"], "tags": ["v*"]}]},
            "tags are for pushes",
        ),
        ({"rules": [{"users": ["*"], "actions": ["write"]}]}, 'allowed is "*", "catalog", "delete", "pull" or "push"'),
        ({"rules": [{"user": ["*"], "actions": ["pull"]}]}, 'unknown key; did you mean "users"'),
        ({"default": "maybe"}, '"allow" or "deny"'),
        ({"groups": {"staff": ["*"]}}, "'*' is not the name of a user"),
        (
            {"rules": [{"name": "a", "users": ["*"], "actions": ["pull"]}] * 2},
            "two rules have the name 'a'",
        ),
    ],
)
def test_what_would_mean_something_else_is_refused(written: Mapping[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        decode_options(AccessOptions, written, source="access")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# ---- the handler by itself


class Inner:
    """Notes what reaches it."""

    def __init__(self) -> None:
        self.seen: list[Operation[object]] = []

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer nothing in particular."""
        self.seen.append(operation)
        return await Registry(MemoryDriver())(operation)


def guard(access: Mapping[str, object], inner: Handler | None = None) -> Guard:
    """Return a handler with these rules."""
    return Guard(Rules(decode_options(AccessOptions, access, source="access")), inner or Inner())


async def test_the_trail_says_which_rule_decided() -> None:
    access = {
        "rules": [
            {"name": "readers", "users": ["*"], "actions": ["pull"]},
            {"users": ["ann"], "actions": ["push"], "tags": ["v*"]},
            {"name": "late", "users": ["ann"], "actions": ["push"], "tags": ["latest"]},
        ]
    }
    handler = guard(access)
    name = RepositoryName("a")

    async def rule(operation: Operation[object]) -> str:
        trail = Trail()
        caller = Caller(name="ann")
        with suppress(RegistryError):
            await handler(msgspec.structs.replace(operation, trail=trail, caller=caller))
        return trail.rule

    def push(*tags: str) -> PushManifest:
        written = tuple(map(Tag, tags))
        return PushManifest(repository=name, reference=MANIFEST, media_type=OCI_MANIFEST, data=b"{}", tags=written)

    assert await rule(PullManifest(repository=name, reference=Tag("v1"))) == "readers"
    assert await rule(push("v1")) == "access.rules[1]"
    assert await rule(push("v1", "latest", "v2")) == "access.rules[1], late"
    assert await rule(push("v1", "other")) == "access.default"
    assert await rule(push()) == "access.rules[1]"
    assert await rule(ListRepositories()) == "access.default"
    assert await rule(Ping()) == ""


async def test_decisions_are_remembered_within_bounds() -> None:
    rules = Rules(decode_options(AccessOptions, {"rules": [{"users": ["ann"], "actions": ["pull"]}]}, source="access"))
    for number in range(25_000):
        access = Access(RepositoryName(f"a{number}"), "pull")
        assert rules.decide(Caller(name="ann"), access).allowed
        assert not rules.decide(Caller(name=f"bob{number}"), access).allowed


async def test_what_others_ask_of_a_mount_holds_beside_the_rules() -> None:
    inner = Inner()
    handler = guard({"rules": [{"repositories": ["a", "b"], "users": ["ann"], "actions": ["push"]}]}, inner)
    mount = MountBlob(repository=RepositoryName("a"), digest=DIGEST, caller=Caller(name="ann"))
    await handler(mount.only_from(lambda name: name != "b"))
    (seen,) = inner.seen
    assert isinstance(seen, MountBlob)
    assert seen.may_pull is not None
    assert [name for name in ("a", "b", "c") if seen.may_pull(RepositoryName(name))] == ["a"]


async def test_without_authenticators_rules_are_for_nobody_in_particular() -> None:
    await fill()
    async with guarded(ANN, auth={}) as client:
        assert (await client.ask("GET", "/v2/pub/a/tags/list")).status == 200
        refused = await client.ask("GET", "/v2/sec/b/tags/list")
        assert (refused.status, refused.codes, refused.header("WWW-Authenticate")) == (403, ["DENIED"], None)


@pytest.mark.parametrize("default", ["allow", "deny"])
def test_it_keeps_the_contract_of_plugins(default: str) -> None:
    assert_plugin(Subject("access", {"access": {"default": default}}))

"""Who asks, what they are asked to show, and what it is good for."""

from collections.abc import Sequence

import msgspec
import pytest
import trio

from moorage import (
    ANONYMOUS,
    Access,
    Caller,
    CheckAccess,
    Credentials,
    Denied,
    Digest,
    Grant,
    IssueToken,
    ListRepositories,
    MountBlob,
    Operation,
    Origin,
    Ping,
    Pong,
    PublishedKeys,
    PublishKeys,
    PullManifest,
    R,
    RepositoryName,
    Tag,
    Trail,
    Unauthorized,
    Voucher,
    needed_scopes,
)
from moorage._authentication import Authentication, Granted

REPOSITORY = RepositoryName("a/b")
PULL = PullManifest(repository=REPOSITORY, reference=Tag("v1"))


class Inner:
    """Answers everything with a Pong, and notes who asked."""

    def __init__(self) -> None:
        self.asked: list[Operation[object]] = []

    async def __call__(self, operation: Operation[R], /) -> R:
        self.asked.append(operation)
        if isinstance(operation, PullManifest) and not operation.caller.name:
            raise Unauthorized("anonymous callers may not")
        reply: object = PublishedKeys(b"{}") if isinstance(operation, PublishKeys) else Pong()
        return reply  # type: ignore[return-value] # whatever was asked


class Passwords:
    """Knows everybody whose password is `good`."""

    challenge = 'Basic realm="here"'

    async def __call__(self, origin: Origin, /) -> Caller | None:
        await trio.lowlevel.checkpoint()
        shown = origin.credentials
        if shown is None or shown.scheme != "basic":
            return None
        if shown.value != "good":
            raise Unauthorized("wrong password")
        return Caller(name="ann")


class Tokens:
    """Knows tokens that say what they are good for."""

    challenge = 'Bearer realm="t"'

    def challenge_for(self, origin: Origin, needed: Sequence[Access], problem: str) -> str:
        return f'Bearer realm="t",scope="{needed_scopes(needed)}",error="{problem}"'

    async def __call__(self, origin: Origin, /) -> Caller | None:
        await trio.lowlevel.checkpoint()
        shown = origin.credentials
        if shown is None or shown.scheme != "bearer":
            return None
        return Caller(name="bob", grants=(Grant(shown.value, frozenset({"pull"})),))


class Register:
    """Knows whom it has in its book, by the mark there, and can be asked again."""

    challenge = 'Basic realm="book"'

    def __init__(self, **marks: str) -> None:
        self.marks = marks

    async def __call__(self, origin: Origin, /) -> Caller | None:
        shown = origin.credentials
        return None if shown is None or shown.scheme != "basic" else await self.recall(shown.value)

    async def recall(self, name: str, /) -> Caller | None:
        await trio.lowlevel.checkpoint()
        mark = self.marks.get(name)
        return None if mark is None else Caller(name=name, groups=frozenset({mark}), voucher=Voucher("book", mark))


class Letters:
    """Takes the word of a letter, `<authenticator> <name> <mark>`, for who somebody was."""

    challenge = ""

    async def __call__(self, origin: Origin, /) -> Caller | None:
        await trio.lowlevel.checkpoint()
        shown = origin.credentials
        if shown is None or shown.scheme != "letter":
            return None
        authenticator, name, mark = shown.value.split()
        return Caller(name=name, voucher=Voucher(authenticator, mark))


class Everybody:
    """Takes who shows nothing for nobody in particular."""

    challenge = ""

    async def __call__(self, origin: Origin, /) -> Caller | None:
        await trio.lowlevel.checkpoint()
        return ANONYMOUS if origin.credentials is None else None


def shown(scheme: str, value: str) -> Origin:
    return Origin(credentials=Credentials(scheme, value))


async def refused(handler: Authentication, operation: Operation[object]) -> tuple[str, ...]:
    with pytest.raises(Unauthorized) as error:
        await handler(operation)
    return error.value.challenges


async def test_they_are_asked_in_their_order_until_one_knows() -> None:
    inner = Inner()
    handler = Authentication(inner, {"passwords": Passwords(), "tokens": Tokens()})
    await handler(Ping(origin=shown("basic", "good")))
    await handler(Ping(origin=shown("bearer", "a/b")))
    assert [operation.caller.name for operation in inner.asked] == ["ann", "bob"]
    with pytest.raises(Unauthorized, match="wrong password"):
        await handler(Ping(origin=shown("basic", "bad")))
    with pytest.raises(Unauthorized, match="not known here"):
        await handler(Ping(origin=shown("digest", "good")))
    assert len(inner.asked) == 2


async def test_one_challenge_is_sent_and_it_is_bearer_where_there_is_one() -> None:
    pull = 'Bearer realm="t",scope="repository:a/b:pull",error=""'
    assert await refused(Authentication(Inner(), {"passwords": Passwords(), "tokens": Tokens()}), PULL) == (pull,)
    assert await refused(Authentication(Inner(), {"passwords": Passwords()}), PULL) == ('Basic realm="here"',)


async def test_the_challenge_names_what_is_missing_and_what_is_wrong() -> None:
    handler = Authentication(Inner(), {"tokens": Tokens()})
    mount = MountBlob(repository=REPOSITORY, digest=Digest.of(b""), source=RepositoryName("c"))
    scope = "repository:a/b:pull,push repository:c:pull"
    assert await refused(handler, mount) == (f'Bearer realm="t",scope="{scope}",error=""',)
    catalog = ListRepositories(origin=shown("digest", "x"))
    assert await refused(handler, catalog) == ('Bearer realm="t",scope="registry:catalog:*",error="invalid_token"',)


async def test_what_is_needed_is_told_as_distribution_does() -> None:
    with pytest.raises(Unauthorized) as error:
        await Authentication(Inner(), {"tokens": Tokens()})(PULL)
    assert error.value.detail == [{"Type": "repository", "Class": "", "Name": "a/b", "Action": "pull"}]


async def test_a_token_is_not_had_by_a_token() -> None:
    handler = Authentication(Inner(), {"tokens": Tokens(), "passwords": Passwords()})
    assert await refused(handler, IssueToken(service="here")) == ('Basic realm="here"',)


async def test_keys_are_for_everybody() -> None:
    assert await Authentication(Inner(), {"passwords": Passwords()})(PublishKeys()) == PublishedKeys(b"{}")


async def test_who_may_come_without_a_name_is_asked_for_one_where_rules_want_it() -> None:
    inner = Inner()
    handler = Authentication(inner, {"passwords": Passwords(), "everybody": Everybody()})
    await handler(CheckAccess(needed=()))
    assert inner.asked[0].caller is ANONYMOUS
    assert await refused(handler, PULL) == ('Basic realm="here"',)


async def test_clients_are_asked_at_once_what_they_can_show() -> None:
    """They ask `/v2/` first, and show nothing later on if nothing is asked for there."""
    assert await refused(Authentication(Inner(), {"passwords": Passwords(), "everybody": Everybody()}), Ping()) == (
        'Basic realm="here"',
    )
    assert await Authentication(Inner(), {"everybody": Everybody()})(Ping()) == Pong()


async def test_an_empty_name_with_an_empty_password_is_nothing_shown() -> None:
    inner = Inner()
    handler = Authentication(inner, {"passwords": Passwords(), "everybody": Everybody()})
    await handler(CheckAccess(needed=(), origin=shown("basic", "Og==")))
    assert inner.asked[0].caller is ANONYMOUS
    assert await refused(handler, Ping(origin=shown("basic", "Og=="))) == ('Basic realm="here"',)


async def test_where_nothing_can_be_shown_it_is_a_denial() -> None:
    with pytest.raises(Denied, match="anonymous"):
        await Authentication(Inner(), {"everybody": Everybody()})(PULL)


async def test_a_token_is_good_for_what_it_says() -> None:
    inner = Inner()
    handler = Authentication(Granted(inner), {"tokens": Tokens()})
    await handler(PullManifest(repository=REPOSITORY, reference=Tag("v1"), origin=shown("bearer", "a/b")))
    assert len(inner.asked) == 1
    other = PullManifest(repository=REPOSITORY, reference=Tag("v1"), origin=shown("bearer", "a"))
    scope = 'Bearer realm="t",scope="repository:a/b:pull",error="insufficient_scope"'
    assert await refused(handler, other) == (scope,)


async def test_rights_are_asked_about_without_doing_anything() -> None:
    inner = Inner()
    handler = Authentication(Granted(inner), {"tokens": Tokens()})
    may = CheckAccess(needed=(Access(REPOSITORY, "pull"),), origin=shown("bearer", "a/b"))
    assert await handler(may) == Pong()
    with pytest.raises(Unauthorized):
        await handler(CheckAccess(needed=(Access(REPOSITORY, "push"),), origin=shown("bearer", "a/b")))
    assert inner.asked == []


async def test_a_mount_without_a_source_keeps_to_what_a_token_covers() -> None:
    inner = Inner()
    names = [RepositoryName(name) for name in ("a/b", "c", "d")]
    grants = (Grant("a/b", frozenset({"pull", "push"})), Grant("c", frozenset({"pull"})))
    mount = MountBlob(repository=REPOSITORY, digest=Digest.of(b""), caller=Caller(name="ann", grants=grants))
    await Granted(inner)(mount)
    await Granted(inner)(mount.only_from(lambda name: name != "c"))
    await Granted(inner)(msgspec.structs.replace(mount, caller=Caller(name="ann")))
    seen = [each.may_pull for each in inner.asked if isinstance(each, MountBlob)]
    assert [may and [name for name in names if may(name)] for may in seen] == [["a/b", "c"], ["a/b"], None]


@pytest.mark.parametrize(
    ("grant", "access", "covered"),
    [
        (Grant("a", frozenset({"pull"})), Access(RepositoryName("a"), "pull"), True),
        (Grant("a", frozenset({"*"})), Access(RepositoryName("a"), "delete"), True),
        (Grant("a", frozenset({"pull"})), Access(RepositoryName("a"), "push"), False),
        (Grant("a", frozenset({"*"})), Access(RepositoryName("a/b"), "pull"), False),
        (Grant(None, frozenset({"*"})), Access(None, "catalog"), True),
        (Grant(None, frozenset({"*"})), Access(RepositoryName("a"), "pull"), False),
        (Grant("a", frozenset()), Access(RepositoryName("a"), "pull"), False),
    ],
)
def test_a_grant_covers(grant: Grant, access: Access, covered: bool) -> None:
    assert grant.covers(access) is covered
    assert Caller(name="x", grants=(grant,)).is_granted([access]) is covered
    assert Caller(name="x").is_granted([access])
    assert not Caller(name="x", grants=()).is_granted([access])


async def test_the_trail_says_who_asked() -> None:
    trail = Trail()
    await Authentication(Inner(), {"passwords": Passwords()})(Ping(origin=shown("basic", "good"), trail=trail))
    assert trail.caller.name == "ann"


async def test_who_comes_by_the_word_of_another_authenticator_is_as_that_one_knows_them_now() -> None:
    inner, book = Inner(), Register(ann="one", bob="two")
    handler = Authentication(inner, {"letters": Letters(), "book": book, "passwords": Passwords()})
    await handler(Ping(origin=shown("letter", "book ann one")))
    await handler(Ping(origin=shown("basic", "ann")))
    known = Caller(name="ann", groups=frozenset({"one"}), voucher=Voucher("book", "one"))
    assert [operation.caller for operation in inner.asked] == [known, known]
    book.marks["ann"] = "three"
    del book.marks["bob"]
    # Known by something else, not known any more, by one that cannot be asked, and by one that is not there.
    for letter in ("book ann one", "book bob two", "passwords ann one", "elsewhere ann one"):
        with pytest.raises(Unauthorized, match="not known any more") as error:
            await handler(Ping(origin=shown("letter", letter)))
        assert error.value.problem == "invalid_token"
    assert len(inner.asked) == 2
    await handler(Ping(origin=shown("letter", "book ann three")))

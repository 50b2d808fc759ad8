"""Who may do what: rules by caller, repository and action, of which the first that matches decides.

Rules this file keeps:

- A right that no rule gives is what `default` says, and that is no.
- What is refused is refused before anything is looked up, in the same words whether it exists or not.
- An operation needs all the rights that its `access` names; a push of several tags needs each of them.
- What decides and what explains is one function, so that they cannot disagree.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, cast

import msgspec

from moorage import (
    Access,
    Action,
    Caller,
    Denied,
    Glob,
    Handler,
    ListRepositories,
    MiddlewareFactory,
    MountBlob,
    NameInvalid,
    OpenUpload,
    Operation,
    PushManifest,
    R,
    RepositoryList,
    RepositoryName,
    Tag,
    Unauthorized,
    hookimpl,
)

if TYPE_CHECKING:
    import click

Effect = Literal["allow", "deny"]

_USER = "{user}"
_REMEMBERED = 10_000
_PAGE = 1000
"""How many names of the catalog are asked for at once, to find those that a caller may see."""


class RepositoryPattern:
    """A pattern of repositories, in which a component `{user}` stands for the caller's name.

    A name stands there only if it is one component of a repository name as it is: in lower case, without a slash, and
    with nothing in it that a pattern would read as something else. No repository is called after any other name.
    """

    setting_schema: ClassVar[dict[str, object]] = Glob.setting_schema

    def __init__(self, text: str) -> None:
        """Understand `text`.

        Raises:
            ValueError: it is no pattern, or `{user}` is a part of a component.
        """
        parts = text.split("/")
        if any(_USER in part and part != _USER for part in parts):
            raise ValueError(f"{_USER} as a whole component, as in users/{_USER}/**")
        self.text: str = text
        self._personal = _USER in parts
        self._glob = Glob(text.replace(_USER, "user"))
        self._of_users: dict[str, Glob | None] = {}

    @classmethod
    def from_setting(cls, value: object) -> Self:
        """Return the pattern that a configuration holds.

        Raises:
            ValueError: it is none; says what is allowed.
        """
        if not isinstance(value, str):
            raise ValueError(f"a pattern such as library/* or users/{_USER}/**")  # noqa: TRY004 - told by a ValueError
        try:
            return cls(str(value))
        except ValueError as error:
            raise ValueError(f"a pattern such as library/* or users/{_USER}/** ({error})") from None

    def matches(self, repository: RepositoryName, user: str) -> bool:
        """Return whether it describes `repository` where `user` asks."""
        glob = self._of_user(user) if self._personal else self._glob
        return glob is not None and glob.matches(repository)

    def _of_user(self, user: str) -> Glob | None:
        if user not in self._of_users:
            if len(self._of_users) >= _REMEMBERED:
                self._of_users.clear()
            named = self.text.replace(_USER, user)
            self._of_users[user] = Glob(named) if _is_component(user) else None
        return self._of_users[user]


def _is_component(name: str) -> bool:
    try:
        return "/" not in RepositoryName(name)
    except NameInvalid:
        return False


_Patterns = Annotated[tuple[RepositoryPattern, ...], msgspec.Meta(min_length=1)]
_Names = Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
_Tags = Annotated[tuple[Glob, ...], msgspec.Meta(min_length=1)]
_Actions = Annotated[tuple[Literal["pull", "push", "delete", "catalog", "*"], ...], msgspec.Meta(min_length=1)]


class AccessRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of `access: {rules: [...]}`.

    Attributes:
        name: what it is called in the audit log and by `moorage access check`.
        effect: whether it allows or denies what it matches.
        repositories: patterns of the repositories that it is for; without any, all of them and the catalog.
        users: names of the callers that it is for; `*` is everybody who has a name.
        groups: groups whose members it is for.
        anonymous: whether it is for those without a name. What is allowed to them is allowed to everybody, since
            everybody can leave the name out.
        actions: what it is about; `*` is everything. Who is allowed to push is allowed to pull, since a push needs both.
        tags: patterns of the tags whose pushes it is about.
    """

    name: str = ""
    effect: Effect = "allow"
    repositories: _Patterns = ()
    users: _Names = ()
    groups: _Names = ()
    anonymous: bool = False
    actions: _Actions
    tags: _Tags = ()

    def __post_init__(self) -> None:
        """Refuse what would match nothing, or something else than it seems to."""
        if not (self.users or self.groups or self.anonymous):
            raise ValueError("it is for nobody; say users, groups or anonymous")
        _check_names("a user", [each for each in self.users if each != "*"])
        _check_names("a group", self.groups)
        if self.repositories and "catalog" in self.actions:
            raise ValueError("the catalog is not in a repository; give it by a rule without repositories")
        others = {"pull"} if self.effect == "allow" else set[str]()
        if self.tags and ("push" not in self.actions or not {*self.actions} <= {"push", *others}):
            raise ValueError("tags are for pushes; say of other actions what holds in a rule of their own")

    def why_not(self, user: str, groups: frozenset[str], access: Access, tag: Tag | None) -> str:
        """Return why it does not decide whether a caller has the right `access`, to push `tag`; empty if it does."""
        action, repository = access.action, access.repository
        if not self._is_about(action):
            return f"not about {action}"
        if not self._is_for(user, groups):
            return "for other callers"
        if repository is None:
            return "about repositories only" if self.repositories else ""
        if self.repositories and not any(each.matches(repository, user) for each in self.repositories):
            return "for other repositories"
        if not self.tags or action != "push":
            return ""
        if tag is None:
            # Blobs and manifests without a tag go before a tag, so whoever may push one may push them.
            return "denies tags only" if self.effect == "deny" else ""
        return "" if any(each.matches(tag) for each in self.tags) else "for other tags"

    def _is_for(self, user: str, groups: frozenset[str]) -> bool:
        if not groups.isdisjoint(self.groups):
            return True
        if self.anonymous and (not user or self.effect == "allow"):
            return True
        return bool(user) and ("*" in self.users or user in self.users)

    def _is_about(self, action: Action) -> bool:
        included = action == "pull" and self.effect == "allow" and "push" in self.actions
        return included or action in self.actions or "*" in self.actions


def _check_names(what: str, names: Sequence[str]) -> None:
    """Refuse what somebody may take for a pattern, and the name of nobody."""
    for name in names:
        if not name or "*" in name:
            raise ValueError(f"{name!r} is not the name of {what}; patterns are for repositories and tags")


class AccessOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of `access: {...}`.

    Attributes:
        default: what holds where no rule matches.
        groups: members of groups by name, besides those that authenticators know.
        rules: of these the first that matches decides.
    """

    default: Effect = "deny"
    groups: dict[str, tuple[str, ...]] = {}
    rules: tuple[AccessRule, ...] = ()

    def __post_init__(self) -> None:
        """Refuse names that would mean two things, or nobody."""
        _check_names("a group", list(self.groups))
        for members in self.groups.values():
            _check_names("a user", members)
        names = [rule.name for rule in self.rules if rule.name]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rules have the name {twice[0]!r}")


class Decision(msgspec.Struct, frozen=True):
    """Whether a caller has a right, and what the rule is called that says so."""

    allowed: bool
    rule: str


class Rules:
    """The rules of a configuration, ready to be asked."""

    def __init__(self, options: AccessOptions) -> None:
        """Take rules and groups from `options`."""
        self._rules = [
            (rule, Decision(rule.effect == "allow", rule.name or f"access.rules[{position}]"))
            for position, rule in enumerate(options.rules)
        ]
        self._default = Decision(options.default == "allow", "access.default")
        self._groups: dict[str, frozenset[str]] = {
            user: frozenset(group for group, members in options.groups.items() if user in members)
            for user in {user for members in options.groups.values() for user in members}
        }
        self._decided: dict[tuple[str, frozenset[str], RepositoryName | None, Action, Tag | None], Decision] = {}

    def decide(self, caller: Caller, access: Access, tag: Tag | None = None) -> Decision:
        """Return whether `caller` has the right `access`, and where a tag is pushed, for this one."""
        asked = (caller.name, caller.groups, access.repository, access.action, tag)
        try:
            return self._decided[asked]
        except KeyError:
            pass
        if len(self._decided) >= _REMEMBERED:
            self._decided.clear()
        decision = self._decided[asked] = self.explain(caller, access, tag)[0]
        return decision

    def explain(self, caller: Caller, access: Access, tag: Tag | None = None) -> tuple[Decision, list[str]]:
        """Return the same as `decide`, and why each rule before the one that decided did not."""
        groups = caller.groups | self._groups.get(caller.name, frozenset())
        passed: list[str] = []
        for rule, decision in self._rules:
            reason = rule.why_not(caller.name, groups, access, tag)
            if not reason:
                return decision, passed
            passed.append(reason)
        return self._default, passed


class Guard:
    """A handler that passes on what the caller may do, and shows of the catalog what it may pull."""

    def __init__(self, rules: Rules, inner: Handler) -> None:
        """Ask `rules`, and pass on to `inner`."""
        self._rules = rules
        self._inner = inner

    async def __call__(self, operation: Operation[R], /) -> R:
        """Answer `operation`.

        Raises:
            Denied: the caller may not.
            Unauthorized: the caller may not, and has shown no name yet.
        """
        asked: object = operation  # to look into; the type of `operation` itself says what it is answered with
        if isinstance(asked, MountBlob):
            self._check(operation, [each for each in operation.access if each.repository == asked.repository])
            return cast("R", await self._mount(asked))  # what a mount is answered with
        self._check(operation, operation.access)
        if isinstance(asked, ListRepositories):
            return cast("R", await self._visible(asked))  # what a list is answered with
        return await self._inner(operation)

    def _check(self, operation: Operation[object], needed: Sequence[Access]) -> None:
        """Refuse `operation` unless its caller has all rights that are `needed`; leave on its trail what decided."""
        tags = operation.written_tags if isinstance(operation, PushManifest) else ()
        decided: list[str] = []
        for access in needed:
            for tag in tags if access.action == "push" and tags else (None,):
                decision = self._rules.decide(operation.caller, access, tag)
                if not decision.allowed:
                    if operation.trail is not None:
                        operation.trail.rule = decision.rule
                    raise _refusal(operation.caller, access, tag)
                decided.append(decision.rule)
        if operation.trail is not None and decided:
            # The last right is the one that the operation is about; each tag may have it by a rule of its own.
            operation.trail.rule = ", ".join(dict.fromkeys(decided[-max(len(tags), 1) :]))

    def _may_pull(self, caller: Caller, repository: RepositoryName) -> bool:
        return self._rules.decide(caller, Access(repository, "pull")).allowed

    async def _mount(self, mount: MountBlob) -> object:
        """Answer a mount; one from where the caller may not pull as if the blob were not there."""
        caller, source = mount.caller, mount.source
        if source is None:
            return await self._inner(mount.only_from(lambda name: self._may_pull(caller, name)))
        if self._may_pull(caller, source):
            return await self._inner(mount)
        return await self._inner(
            OpenUpload(
                origin=mount.origin,
                caller=caller,
                trail=mount.trail,
                repository=mount.repository,
                digest=mount.digest,
            )
        )

    async def _visible(self, asked: ListRepositories) -> RepositoryList:
        """Return a page of those repositories that the caller may pull; at most the whole catalog is read for it."""
        if asked.limit <= 0:
            return await self._inner(asked)
        found: list[RepositoryName] = []
        after, more = asked.after, True
        while more and len(found) <= asked.limit:
            page = await self._inner(msgspec.structs.replace(asked, after=after, limit=_PAGE))
            found += [name for name in page.repositories if self._may_pull(asked.caller, name)]
            more = page.more
            after = page.repositories[-1] if page.repositories else after
        return RepositoryList(repositories=tuple(found[: asked.limit]), more=len(found) > asked.limit)


def _refusal(caller: Caller, access: Access, tag: Tag | None) -> Denied | Unauthorized:
    match access.action:
        case "catalog":
            message = "you may not list repositories"
        case "push" if tag is not None:
            message = f"you may not push the tag {tag} to {access.repository}"
        case action:
            message = f"you may not {action} {'to' if action == 'push' else 'from'} {access.repository}"
    # Whoever has no name may have more rights with one.
    return Denied(message) if caller.name else Unauthorized(message)


@asynccontextmanager
async def _open(options: AccessOptions, inner: Handler) -> AsyncGenerator[Handler]:
    yield Guard(Rules(options), inner)


@hookimpl
def register_middleware() -> Mapping[str, object]:
    """Offer the rules."""
    return {"access": MiddlewareFactory(AccessOptions, _open, section="access", place="access")}


@hookimpl(optionalhook=True)
def register_commands() -> "list[click.Command]":
    """Offer `moorage access`; its libraries are imported only when commands are asked for."""
    from ._access_command import access

    return [access]

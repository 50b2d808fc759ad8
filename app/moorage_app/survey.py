"""Judging all that a store holds: which of it the rules of today would refuse.

Nothing is written, as for a few targets. What pushes and deletes do meanwhile may or may not be seen.
"""

from collections.abc import Callable

from moorage import (
    Configuration,
    Digest,
    DriverError,
    Glob,
    Handler,
    ListRepositories,
    ListTags,
    ManifestUnknown,
    NameUnknown,
    OpenedRegistry,
    PluginManager,
    PullManifest,
    Reference,
    RegistryError,
    RepositoryName,
    list_revisions,
    map_bounded,
    open_rules,
    open_to_look,
)

from .validating import Problem, Report, TargetError, full_name, judge, push_again

_REPOSITORIES_AT_ONCE = 4
_REFERENCES_AT_ONCE = 8
_PAGE = 1000

Progress = Callable[[int, int], None]
"""Is told how many repositories are done, and how many there are."""


class Survey(Report):
    """What was found about a whole store; `judged` has what would be refused or warned of, and nothing else."""

    repositories: int = 0
    references: int = 0

    @property
    def refused(self) -> int:
        """How many references mean what would be refused today."""
        return sum(not each.accepted for each in self.judged)

    @property
    def warned(self) -> int:
        """How many would be taken with a warning."""
        return len(self.judged) - self.refused


async def judge_store(
    configuration: Configuration, plugins: PluginManager, pattern: Glob | None, progress: Progress
) -> Survey:
    """Judge everything that is stored in the repositories that `pattern` matches: each tag, and each manifest without one.

    Raises:
        ConfigurationError: the rules or the store cannot be opened.
        TargetError: the store does not say what it has.
    """
    survey = Survey()
    async with open_rules(configuration, plugins), open_to_look(configuration, plugins) as opened:
        try:
            repositories = [name for name in await _repositories(opened.handler) if _matches(pattern, name)]
        except RegistryError as error:
            raise TargetError(f"the store cannot be read: {error.message}") from None

        async def survey_one(repository: RepositoryName) -> Survey:
            found = await _judge_repository(opened, plugins, repository)
            survey.repositories += 1
            progress(survey.repositories, len(repositories))
            return found

        for found in await map_bounded(survey_one, repositories, limit=_REPOSITORIES_AT_ONCE):
            survey.references += found.references
            survey.judged += found.judged
            survey.problems += found.problems
    return survey


def _matches(pattern: Glob | None, repository: RepositoryName) -> bool:
    return pattern is None or pattern.matches(repository)


async def _repositories(handler: Handler) -> list[RepositoryName]:
    found: list[RepositoryName] = []
    more = True
    while more:
        page = await handler(ListRepositories(after=found[-1] if found else "", limit=_PAGE))
        found += page.repositories
        more = page.more
    return found


async def _judge_repository(opened: OpenedRegistry, plugins: PluginManager, repository: RepositoryName) -> Survey:
    """Judge every tag, then every manifest that none of them means; list what would not simply be taken."""
    survey = Survey()
    tagged: set[Digest] = set()

    async def look_at(reference: Reference) -> None:
        name = full_name(repository, reference)
        survey.references += 1
        try:
            manifest = await opened.handler(PullManifest(repository=repository, reference=reference))
            tagged.add(manifest.digest)
            push = push_again(repository, reference, manifest)
            judged = await judge(name, push, opened.handler, plugins)
        except ManifestUnknown:
            survey.problems.append(Problem(name, "it names a manifest that is not there"))
            return
        except RegistryError as error:
            survey.problems.append(Problem(name, error.message))
            return
        if not judged.accepted or any(finding.warns for finding in judged.findings):
            survey.judged.append(judged)

    try:
        await map_bounded(look_at, await _tags(opened.handler, repository), limit=_REFERENCES_AT_ONCE)
        revisions = [digest async for digest in list_revisions(opened.driver, repository) if digest not in tagged]
        await map_bounded(look_at, revisions, limit=_REFERENCES_AT_ONCE)
    except DriverError as error:
        survey.problems.append(Problem(repository, str(error)))
    except RegistryError as error:
        survey.problems.append(Problem(repository, error.message))
    survey.judged.sort(key=lambda judged: judged.target)
    survey.problems.sort(key=lambda problem: problem.target)
    return survey


async def _tags(handler: Handler, repository: RepositoryName) -> list[Reference]:
    found: list[Reference] = []
    more = True
    while more:
        try:
            page = await handler(ListTags(repository=repository, after=found[-1] if found else "", limit=_PAGE))
        except NameUnknown:
            # Gone since the repositories were listed.
            return []
        found += page.tags
        more = page.more
    return found

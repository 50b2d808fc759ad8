"""Running `moorage copy`: what one store holds is brought to another one, shown, and told by the exit code."""

import functools

import click
import trio

from moorage import Configuration, Moved, Plan, PluginManager, move, open_store, plan_move

from .copy_progress import DONE, Wrong, amount, sentences, shown, tell_flaws

Side = tuple[Configuration, PluginManager]


def copy_store(source: Side, destination: Side, *, jobs: int, remove: bool, dry_run: bool, quiet: bool) -> int:
    """Copy all that `source` holds to `destination`, show how far it is, and return the exit code.

    Raises:
        Wrong: nothing could be begun.
        Stopped: a store failed; what was copied stays.
    """
    check_outlives("the source", source)
    check_outlives("the destination", destination)
    ours, theirs = source[0].storage, destination[0].storage
    if (ours.driver, ours.parameters) == (theirs.driver, theirs.parameters):
        raise Wrong("the source and the destination are the same store")
    with sentences():
        return trio.run(
            functools.partial(_copy, source, destination, jobs=jobs, remove=remove, dry_run=dry_run, quiet=quiet)
        )


def check_outlives(name: str, side: Side) -> None:
    """Refuse a store that ends with this process.

    Raises:
        Wrong: it is one.
    """
    configuration, plugins = side
    factory = plugins.drivers().get(configuration.storage.driver)
    if factory is not None and not factory.shared:
        raise Wrong(f"{name} is of the driver {configuration.storage.driver}, which nothing outlives")


async def _copy(source: Side, destination: Side, *, jobs: int, remove: bool, dry_run: bool, quiet: bool) -> int:
    async with open_store(*source, to_look=True) as ours, open_store(*destination, to_look=dry_run) as theirs:
        with shown(quiet=quiet) as progress:
            plan = await plan_move(ours, theirs, jobs=jobs, found=progress.found)
            moved = None
            if not dry_run:
                progress.begin(len(plan.items), plan.size)
                async with progress.telling():
                    moved = await move(plan, ours, theirs, jobs=jobs, remove=remove, advance=progress.advance)
    if moved is None:
        click.echo(f"to copy: {amount(len(plan.items), plan.size)}; the same already: {plan.same}")
        click.echo(f"at the destination only: {len(plan.gone)}" + (", to be removed" if remove and plan.gone else ""))
        return DONE
    return _tell(plan, moved, remove=remove)


def _tell(plan: Plan, moved: Moved, *, remove: bool) -> int:
    """Say what was done; return the exit code."""
    click.echo(f"copied: {amount(moved.objects, moved.bytes)}; the same already: {plan.same}")
    if remove:
        click.echo(f"removed at the destination: {moved.removed}")
    elif plan.gone:
        click.echo(f"at the destination only, and left there (--delete removes it): {len(plan.gone)}")
    if moved.dangling:
        click.echo(f"links to content that the source does not have, left there: {moved.dangling}")
    return tell_flaws(moved.flaws)

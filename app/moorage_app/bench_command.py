"""The arguments of `moorage bench`. What they ask for is loaded only when it is asked for."""

import os
import sys
from pathlib import Path
from typing import Never

import click

EXIT_USAGE = 2
_MOST_CLIENTS = 4096
_CORES_FOR_ONE = 4


def _fail(sentence: object) -> Never:
    click.echo(f"moorage: {sentence}", err=True)
    sys.exit(EXIT_USAGE)


@click.command()
@click.argument("url", required=False)
@click.option("--against", multiple=True, metavar="NAME=URL", help="Another registry to compare with; repeatable.")
@click.option("--only", default="", metavar="CASE,...", help="Only these cases.")
@click.option("--list", "listing", is_flag=True, help="List the cases, and do nothing.")
@click.option(
    "--seconds", type=click.FloatRange(0.05, 600), default=3.0, show_default=True, help="For each case and round."
)
@click.option(
    "--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="How often; the table has medians."
)
@click.option(
    "--count",
    type=click.IntRange(1, 10_000_000),
    default=1_000_000,
    show_default=True,
    help="Most operations of a case in a round.",
)
@click.option(
    "--clients", default="", metavar="N,...", help="How many at once, instead of what a case has; up to 4096."
)
@click.option("--rate", type=click.FloatRange(0.1, 1_000_000), help="Open loop: so many operations a second are due.")
@click.option("--processes", type=click.IntRange(1, 64), help="That generate load; two where there are four cores.")
@click.option("--blob-size", default="64MiB", show_default=True, metavar="SIZE", help="Of large blobs; up to 16GiB.")
@click.option("--chunk-size", default="8MiB", show_default=True, metavar="SIZE", help="Of the chunks of an upload.")
@click.option(
    "--max-pushed", default="1GiB", show_default=True, metavar="SIZE", help="Most bytes that a case pushes in a round."
)
@click.option(
    "--tags", type=click.IntRange(1, 100_000), default=2000, show_default=True, help="Of which a page is listed."
)
@click.option("--verify", is_flag=True, help="Look at the digests of what is pulled, too.")
@click.option("--follow/--no-follow", default=True, show_default=True, help="Go where the registry redirects to.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=30.0,
    show_default=True,
    help="Seconds without a byte after which a request has failed.",
)
@click.option("--username", metavar="NAME", help="Who asks URL; or MOORAGE_BENCH_USERNAME and _PASSWORD.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--cacert", type=click.Path(path_type=Path), help="File of the certificates to trust.")
@click.option("--insecure", is_flag=True, help="Trust any certificate.")
@click.option("--json", "json_path", metavar="FILE", help="Write all results as JSON; - for standard output.")
@click.option("--yes", is_flag=True, help="Do not ask before load is put on another machine.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def bench(
    url: str | None,
    against: tuple[str, ...],
    only: str,
    seconds: float,
    rounds: int,
    count: int,
    clients: str,
    rate: float | None,
    processes: int | None,
    blob_size: str,
    chunk_size: str,
    max_pushed: str,
    tags: int,
    timeout: float,
    username: str | None,
    cacert: Path | None,
    json_path: str | None,
    *,
    listing: bool,
    verify: bool,
    follow: bool,
    password_stdin: bool,
    insecure: bool,
    yes: bool,
    quiet: bool,
) -> None:
    """Put load on the registry at URL, and measure it; beside others, if there are any.

    Manifests, blobs and images are pulled and pushed in a repository of the benchmark's own, moorage-bench/..., which is
    removed in the end. Rounds are done in turn, one registry after the other, so that what else the machine does hits
    all of them.

    Returns 0; 1 where requests failed; 2 where nothing could be measured.
    """
    from .bench import command
    from .bench.cases import Sizes
    from .bench.processes import Bounds

    if listing:
        command.list_cases()
        return
    if url is None:
        _fail("say which registry to measure, such as http://127.0.0.1:5000")
    if password_stdin and username is None:
        _fail("--password-stdin is of no use without --username")
    try:
        options = command.Options(
            url=url,
            against=against,
            only=_words(only),
            clients=_counts(clients),
            bounds=Bounds(
                seconds=seconds,
                count=count,
                most_pushed=command.parse_size(max_pushed),
                rate=rate,
                processes=processes or (1 if len(os.sched_getaffinity(0)) < _CORES_FOR_ONE else 2),
                timeout=timeout,
            ),
            sizes=Sizes(blob=command.parse_size(blob_size), chunk=command.parse_size(chunk_size), tags=tags),
            rounds=rounds,
            verify=verify,
            follow=follow,
            yes=yes,
            username=username,
            password=sys.stdin.readline().rstrip("\r\n")
            if password_stdin
            else os.environ.get("MOORAGE_BENCH_PASSWORD"),
            cacert=cacert,
            insecure=insecure,
            json_path=json_path,
            quiet=quiet,
        )
        code = command.run(options, os.environ)
    except command.Wrong as error:
        _fail(error)
    except KeyboardInterrupt:
        code = command.INTERRUPTED
    sys.exit(code)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _counts(text: str) -> list[int]:
    counts: list[int] = []
    for word in _words(text):
        if not word.isascii() or not word.isdigit() or not 1 <= int(word[:6]) <= _MOST_CLIENTS:
            _fail(f"--clients: {word!r}: allowed are numbers from 1 to {_MOST_CLIENTS}")
        counts.append(int(word[:6]))
    return counts

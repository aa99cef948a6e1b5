"""`prepkit pull` and `prepkit push`: zoos on the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from prepkit.cli.common import INTERRUPTED, Interrupted, force_option, json_option, print_error, print_json
from prepkit.errors import counted
from prepkit.progress import ProgressBar
from prepkit.text import readable_bytes, table
from prepkit.zoo.format.counts import num_bytes_of

if TYPE_CHECKING:
    from prepkit.hub.bundle import Bundle
    from prepkit.hub.progress import PullProgress, Report
    from prepkit.hub.pull import Pulled
    from prepkit.hub.upload import Push


@click.command()
@click.argument("repo", metavar="REPO")
@click.argument("folder", type=click.Path(path_type=Path), metavar="[DIR]", required=False)
@click.option("--revision", metavar="R", help="Branch, tag or commit. [default: the newest version]")
@click.option("--where", metavar="EXPR", help="Only instances that meet a condition on the table: accuracy > 0.9")
@click.option("--split", metavar="S", multiple=True, help="Only instances of this split; may be given again.")
@click.option("--architecture", metavar="A", multiple=True, help="Only instances of this one; may be given again.")
@force_option
@json_option
def pull(
    repo: str,
    folder: Path | None,
    revision: str | None,
    where: str | None,
    split: tuple[str, ...],
    architecture: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Fetch a zoo from the Hub into DIR, by default ./NAME, and check every file of it.

    \b
    prepkit pull user/zoo
    prepkit pull user/zoo good --where "accuracy > 0.9 and epoch == 50"
    prepkit pull user/zoo --revision v1.0 --split test

    With a condition only the table and the shards that hold such instances are fetched, and DIR becomes a zoo of just
    these. If it is interrupted, the same command goes on.
    """
    from prepkit.hub.pull import pull_zoo
    from prepkit.hub.selection import Selection

    selection = Selection.of(where, split, architecture)
    try:
        with pull_progress(as_json) as progress:
            done = pull_zoo(repo, folder, revision=revision, selection=selection, force=force, progress=progress)
    except KeyboardInterrupt:
        leave("interrupted; what came is kept. The same command goes on.", as_json)
    if not (selection.is_whole or done.was_there):
        from prepkit.zoo.card.card import write_card

        write_card(done.path)
    if as_json:
        print_json(_pull_record(done))
    else:
        click.echo(_pull_text(done))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("repo", metavar="REPO")
@click.option("--license", "license_", metavar="L", help="Given to a zoo that has none, and kept in it.")
@click.option("--private", is_flag=True, help="Create the repository for its owner only.")
@click.option("--dry-run", is_flag=True, help="Verify, and list what would be sent; change nothing.")
@json_option
def push(folder: Path, repo: str, license_: str | None, private: bool, dry_run: bool, as_json: bool) -> None:
    """Make a zoo the newest version of a dataset repository on the Hub, which is created if there is none.

    \b
    prepkit push my-zoo user/my-zoo --dry-run
    prepkit push my-zoo user/my-zoo

    The zoo is verified first, and must have a licence. Its new version becomes visible whole, in one commit; what the
    repository has already is not sent again. If it is interrupted, the same command goes on.
    """
    from prepkit.hub.bundle import repo_name
    from prepkit.hub.push import num_bytes_to_verify, zoo_bundle

    repo = repo_name(repo)
    with ProgressBar("verifying", "B", quiet=as_json) as bar:
        bar.begin(num_bytes_to_verify(folder))
        bundle = zoo_bundle(folder, repo, license=license_, dry_run=dry_run, progress=bar.advance)
    send(bundle, "zoo", folder, private, dry_run, as_json)


def send(bundle: Bundle, kind: str, folder: Path, private: bool, dry_run: bool, as_json: bool) -> None:
    """Push files, and print what became of them.

    kind: what the folder holds, such as "zoo"; it names the folder in the JSON document
    """
    from prepkit.hub.upload import push_bundle

    try:
        with ProgressBar("pushing", "B", quiet=as_json or dry_run) as bar:
            bar.begin(bundle.num_bytes)
            done = push_bundle(bundle, private=private, dry_run=dry_run, progress=bar.advance)
    except KeyboardInterrupt:
        leave("interrupted; what was sent is kept. The same command goes on.", as_json)
    if as_json:
        print_json({kind: str(folder), **_push_record(done, dry_run)})
    else:
        click.echo(_push_text(folder, done, private, dry_run))


def leave(message: str, as_json: bool) -> NoReturn:
    """End the process at once: threads that wait for a slow network would hold it."""
    click.echo(message, err=True)
    if as_json:
        print_error(Interrupted.__name__, message)
    os._exit(INTERRUPTED)


@contextmanager
def pull_progress(quiet: bool) -> Iterator[Report]:
    """Give a function that shows a pull's bytes and instances."""
    with ProgressBar("pulling", "B", quiet=quiet) as bar:

        def show(state: PullProgress) -> None:
            if state.total_bytes != bar.total:
                bar.begin(state.total_bytes)
            instances = f"{state.instances:,} of {counted(state.total_instances, 'instance')}"
            bar.advance(state.bytes - bar.done, instances)

        yield show


def _pull_record(done: Pulled) -> dict[str, Any]:
    record, manifest = done.record, done.manifest
    return {
        "zoo": str(done.path),
        "repo": record.repo,
        "commit": record.commit,
        "was_there": done.was_there,
        "instances": manifest.table.rows,
        "shards": len(manifest.shards),
        "bytes": num_bytes_of(manifest),
        "selection": None if record.selection.is_whole else dict(vars(record.selection)),
    }


def _pull_text(done: Pulled) -> str:
    record, manifest = done.record, done.manifest
    size = f"{manifest.table.rows:,} instances, {readable_bytes(num_bytes_of(manifest))}"
    part = "" if record.selection.is_whole else f" ({record.selection})"
    what = "all of it was there" if done.was_there else "every file checked"
    return f"{record.repo}{part} -> {done.path}: {size}; commit {record.commit}; {what}"


def _push_record(done: Push, dry_run: bool) -> dict[str, Any]:
    return {
        "repo": done.repo,
        "url": done.url,
        "dry_run": dry_run,
        "created": done.created,
        "commit": done.commit,
        "commits": done.commits,
        "bytes": sum(file.bytes for file in done.files),
        "new_bytes": done.new_bytes,
        "files": [dict(vars(file)) for file in done.files],
        "others": list(done.others),
    }


def _push_text(folder: Path, done: Push, private: bool, dry_run: bool) -> str:
    new = [file for file in done.files if not file.there]
    there = len(done.files) - len(new)
    what = f"{len(new)} files, {readable_bytes(done.new_bytes)}" + (f"; {there} are there already" if there else "")
    if dry_run:
        rows = [(file.path, file.bytes, "there" if file.there else "new") for file in done.files]
        kind = f"{'a new' if done.created else 'the'}{' private' if private else ''} repository {done.repo}"
        return f"{table(rows, ('file', 'bytes', ''))}\n\nwould send to {kind}: {what}"
    if not new:
        return f"{done.repo} has all of {folder} already: commit {done.commit}\n{done.url}"
    return f"{folder} -> {done.repo}: {what}; commit {done.commit}\n{done.url}"

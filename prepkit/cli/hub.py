"""`prepkit pull` and `prepkit push`: zoos on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prepkit.address import is_remote
from prepkit.cli.common import force_option
from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option
from prepkit.errors import counted
from prepkit.support.text import readable_bytes, table
from prepkit.zoo.format.counts import num_bytes_of

if TYPE_CHECKING:
    from prepkit.hub.bundle import Bundle
    from prepkit.hub.progress import PullProgress, Report
    from prepkit.hub.pull import Pulled
    from prepkit.hub.upload import Push


@click.command(
    epilog=examples(
        "prepkit pull user/zoo",
        'prepkit pull user/zoo good --where "accuracy > 0.9 and epoch == 50"',
        "prepkit pull user/zoo --revision v1.0 --split test",
    )
)
@click.argument("repo", metavar="REPO")
@click.argument("folder", type=click.Path(path_type=Path), metavar="[DIR]", required=False)
@click.option("--revision", metavar="R", help="Branch, tag or commit. [default: the newest version]")
@click.option("--where", metavar="EXPR", help="Fetch only instances whose row meets a condition: accuracy > 0.9")
@click.option("--split", metavar="S", multiple=True, help="Fetch only this split; may be repeated.")
@click.option("--architecture", metavar="A", multiple=True, help="Fetch only this architecture; may be repeated.")
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
    out: Output,
) -> None:
    """Fetch a zoo into DIR, and check every file.

    REPO is a zoo on the Hub, user/zoo, or in a store that fsspec reads, such as s3://bucket/zoo or https://host/zoo.

    DIR is ./NAME if it is left out. With a condition, only the table and the shards that hold such instances are
    fetched, and DIR becomes a zoo of just these. After an interruption the same command goes on.
    """
    from prepkit.hub.pull import pull_zoo
    from prepkit.hub.selection import Selection

    selection = Selection.of(where, split, architecture)
    try:
        with _pull_bar(out) as report:
            pulled = pull_zoo(repo, folder, revision=revision, selection=selection, force=force, progress=report)
    except KeyboardInterrupt:
        out.leave_interrupted("interrupted; what came is kept. The same command goes on.")
    out.result(_pull_document(pulled), _pull_text(pulled))


@click.command(
    epilog=examples("prepkit push my-zoo user/my-zoo --dry-run", "prepkit push my-zoo user/my-zoo --private")
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("repo", metavar="REPO")
@click.option("--license", "license_", metavar="L", help="Licence of a zoo that has none; it is written into the zoo.")
@click.option("--private", is_flag=True, help="Create a repository that only its owner can see.")
@click.option("--dry-run", is_flag=True, help="Verify, and list what would be sent; change nothing.")
@json_option
def push(folder: Path, repo: str, license_: str | None, private: bool, dry_run: bool, out: Output) -> None:
    """Push a zoo to a dataset repository on the Hub.

    The repository is created if there is none. The zoo is verified first, and must have a licence. Its new version
    becomes visible in one commit; what the repository has is not sent again. After an interruption the same
    command goes on.
    """
    from prepkit.hub.bundle import repo_name
    from prepkit.hub.push import num_bytes_to_verify, zoo_bundle

    if not folder.exists() and Path(repo).is_dir():
        raise click.UsageError(f"'{repo}' is a folder, and DIR comes before REPO: prepkit push {repo} {folder}.")
    repo = repo_name(repo)
    with out.bar("verifying", "B") as bar:
        bar.begin(num_bytes_to_verify(folder))
        bundle = zoo_bundle(folder, repo, license=license_, dry_run=dry_run, progress=bar.advance)
    send(bundle, "zoo", folder, private, dry_run, out)


def send(bundle: Bundle, kind: str, folder: Path, private: bool, dry_run: bool, out: Output) -> None:
    """Push files, and print what became of them.

    kind: what the folder holds, such as "zoo"; it names the folder in the JSON document
    """
    from prepkit.hub.upload import push_bundle

    try:
        with out.bar("pushing", "B", quiet=dry_run) as bar:
            bar.begin(bundle.num_bytes)
            pushed = push_bundle(bundle, private=private, dry_run=dry_run, progress=bar.advance)
    except KeyboardInterrupt:
        out.leave_interrupted("interrupted; what was sent is kept. The same command goes on.")
    out.result({kind: str(folder), **_push_document(pushed, dry_run)}, _push_text(folder, pushed, private, dry_run))


@contextmanager
def _pull_bar(out: Output) -> Iterator[Report]:
    """Give a function that shows a pull's bytes and instances."""
    with out.bar("pulling", "B") as bar:

        def show(state: PullProgress) -> None:
            if state.total_bytes != bar.total:
                bar.begin(state.total_bytes)
            instances = f"{state.instances:,} of {counted(state.total_instances, 'instance')}"
            bar.advance(state.bytes - bar.done, instances)

        yield show


def _pull_document(pulled: Pulled) -> dict[str, Any]:
    record, manifest = pulled.record, pulled.manifest
    return {
        "zoo": str(pulled.path),
        "repo": record.repo,
        "commit": record.commit,
        "was_there": pulled.was_there,
        "instances": manifest.table.rows,
        "shards": len(manifest.shards),
        "bytes": num_bytes_of(manifest),
        "selection": None if record.selection.is_whole else dict(vars(record.selection)),
    }


def _pull_text(pulled: Pulled) -> str:
    record, manifest = pulled.record, pulled.manifest
    size = f"{counted(manifest.table.rows, 'instance')}, {readable_bytes(num_bytes_of(manifest))}"
    part = "" if record.selection.is_whole else f" ({record.selection})"
    how = "all of it was there" if pulled.was_there else "every file checked"
    version = f"zoo.json {record.commit[:12]}" if is_remote(record.repo) else f"commit {record.commit}"
    return f"{record.repo}{part} -> {pulled.path}: {size}; {version}; {how}"


def _push_document(pushed: Push, dry_run: bool) -> dict[str, Any]:
    return {
        "repo": pushed.repo,
        "url": pushed.url,
        "dry_run": dry_run,
        "created": pushed.created,
        "commit": pushed.commit,
        "commits": pushed.commits,
        "bytes": sum(file.bytes for file in pushed.files),
        "new_bytes": pushed.new_bytes,
        "files": [dict(vars(file)) for file in pushed.files],
        "others": list(pushed.others),
    }


def _push_text(folder: Path, pushed: Push, private: bool, dry_run: bool) -> str:
    num_new = sum(not file.there for file in pushed.files)
    num_there = len(pushed.files) - num_new
    size = f"{counted(num_new, 'file')}, {readable_bytes(pushed.new_bytes)}"
    if num_there:
        size += f"; {num_there} {'is' if num_there == 1 else 'are'} there already"
    if dry_run:
        rows = [(file.path, file.bytes, "there" if file.there else "new") for file in pushed.files]
        kind = f"{'a new' if pushed.created else 'the'}{' private' if private else ''} repository {pushed.repo}"
        return f"{table(rows, ('file', 'bytes', ''))}\n\nwould send to {kind}: {size}"
    if not num_new:
        return f"{pushed.repo} has all of {folder} already: commit {pushed.commit}\n{pushed.url}"
    return f"{folder} -> {pushed.repo}: {size}; commit {pushed.commit}\n{pushed.url}"

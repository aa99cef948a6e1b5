"""What an import of a ray-tune tree tells at its end: what it left out, and what tables and settings say oddly."""

from __future__ import annotations

from collections.abc import Mapping

from prepkit.errors import counted, listed
from prepkit.zoo.importers._ray_runs import RESULTS, WEIGHTS, Tree
from prepkit.zoo.importers._ray_tables import TablesTold


def notes_on_tree(tree: Tree, unfinished: bool) -> list[str]:
    """Return sentences on what in the tree is no model, or is of no finished run."""
    notes = []
    without = [run.name for run in tree.runs if run.settings is None]
    if without:
        are = "is unfinished, since it has" if len(without) == 1 else "are unfinished, since they have"
        fate = "taken nonetheless" if unfinished else "left out"
        notes.append(f"{counted(len(without), 'run')} {are} no params.json or config.json; {fate}: {listed(without)}.")
    if tree.empty:
        notes.append(f"{counted(len(tree.empty), 'run')} without weights left out: {listed(tree.empty)}.")
    if tree.without:
        folders = counted(len(tree.without), "folder of a checkpoint lacks", "folders of checkpoints lack")
        notes.append(f"{folders} the file '{WEIGHTS}': {listed(tree.without)}.")
    if tree.left:
        files = listed(f"{name} ({counted(count, 'file')})" for name, count in sorted(tree.left.items()))
        notes.append(f"Left beside the weights: {files}.")
    if tree.archives:
        are = "archive is" if len(tree.archives) == 1 else "archives are"
        notes.append(f"{len(tree.archives):,} {are} not looked into: {listed(tree.archives)}; unpack to import them.")
    return notes


def notes_on_tables(told: TablesTold) -> list[str]:
    """Return sentences on the tables of the runs that were read."""
    notes = list(told.notes)
    if told.missing:
        have = "has" if len(told.missing) == 1 else "have"
        runs = listed(sorted(told.missing))
        notes.append(f"{counted(len(told.missing), 'run')} {have} no {RESULTS}, so no metrics: {runs}.")
    for counts, one, many in (
        (told.twice, f"row of {RESULTS} is followed by a later one", f"rows of {RESULTS} are followed by later ones"),
        (told.without_row, f"checkpoint has no row in {RESULTS}", f"checkpoints have no row in {RESULTS}"),
        (told.rows_without, f"row of {RESULTS} has no checkpoint", f"rows of {RESULTS} have no checkpoint"),
        (told.not_measured, "value of -999 is empty, as not measured", "values of -999 are empty, as not measured"),
    ):
        if counts:
            tail = " of its epoch, which is taken" if counts is told.twice else ""
            notes.append(f"{counted(sum(counts.values()), one, many)}{tail}: {_by_run(counts)}.")
    if told.percent:
        runs = counted(len(told.percent), "run counts", "runs count")
        notes.append(f"{runs} accuracies in percent; the columns have shares of 1.")
    if told.of_ray:
        notes.append(f"Left in {RESULTS}: what ray notes beside the metrics ({listed(sorted(told.of_ray))}).")
    if told.unkept:
        values = listed(f"{name} ({counted(count, 'row')})" for name, count in told.unkept.items())
        notes.append(f"Left in {RESULTS}, since a table has no place for it: {values}.")
    return notes


def _by_run(counts: Mapping[str, int]) -> str:
    return listed((f"{run} ({count:,})" for run, count in counts.items()), 3)

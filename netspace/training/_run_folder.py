"""The folder of a training: begun anew, or checked before its training goes on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from filelock import BaseFileLock

import prepkit
from netspace.alignment import Alignment
from netspace.data import check_architectures
from netspace.recipe import Recipe
from netspace.run.known_zoo import instances_of_run, sum_of, why_not_found
from netspace.run.run import BEST, LATEST, LOCK, Run, RunError, check_free
from netspace.training._starting import initialisation_of, with_initialisation
from prepkit.errors import InvalidShape, counted, listed
from prepkit.support.files import output_error
from prepkit.support.json_values import by_dotted_key
from prepkit.support.lock import take_lock
from prepkit.support.processes import Ranks


def open_zoo_of_recipe(recipe: Recipe, zoo: str | os.PathLike[str], trust_code: bool) -> prepkit.Zoo:
    """Open a zoo at the recipe's height and width.

    raises ZooMismatch for other architectures than the recipe's, InvalidShape for PReps that do not fit otherwise
    """
    network = recipe.network
    try:
        return prepkit.open_zoo(zoo, width=network.width, height=network.height, trust_code=trust_code)
    except InvalidShape:
        check_architectures(recipe, prepkit.open_zoo(zoo, trust_code=trust_code))
        raise


def zoo_of_run(out: Path, recipe: Recipe, zoo: prepkit.Zoo) -> prepkit.Zoo:
    """Return the instances that a run was begun with, of a zoo that may have grown since: training goes on with them.

    raises RunError if there is no run, it was begun with another zoo or recipe, or the zoo has got architectures since
    """
    run = Run(out, trust_code=True)
    recorded, architectures = run.record["zoo"], list(run.registry.class_ids)
    own = instances_of_run(zoo, recorded, architectures)
    if own is None:
        raise RunError(
            f"'{out}' was begun with another zoo, '{recorded['name']}', with sha256 {recorded['sha256'][:12]}; "
            f"'{zoo.name}' has {sum_of(zoo)[:12]}{why_not_found(zoo, recorded)}"
        )
    new = [name for name in own.registry.class_ids if name not in architectures]
    if new:
        raise RunError(
            f"'{out}' was begun when zoo '{zoo.name}' had no {listed(new)}, and a space knows the architectures that "
            "it began with; go on with a copy of the zoo as it was, or train anew."
        )
    _check_resumable(run, recipe, own)  # before data are loaded and aligned, which may take minutes
    return own


def open_folder(
    out: Path,
    recipe: Recipe,
    zoo: prepkit.Zoo,
    zoo_path: str | os.PathLike[str],
    resume: bool,
    ranks: Ranks,
    alignment: Alignment | None = None,
) -> tuple[Run, BaseFileLock | None]:
    """Begin a run's folder or go on with it; returns the run and, in the first process, a lock on the folder."""
    lock = None
    if ranks.first:
        if resume:
            Run(out, trust_code=True)  # raises RunError before anything is written
        else:
            check_free(out)
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise output_error(out, error) from error
        lock = take_lock(out / LOCK, out)
        try:
            if not resume:
                Run.create(out, recipe, zoo, zoo_path, initialisation_of(recipe, zoo), alignment)
            run = Run(out, trust_code=True)
            _check_resumable(run, recipe, zoo)
            if recipe != run.recipe:
                run.note("recipe", recipe.to_dict())
        except BaseException:
            lock.release()
            raise
    ranks.agree(None)  # the other processes wait here until the folder is there
    return Run(out, trust_code=True), lock


def _check_resumable(run: Run, recipe: Recipe, zoo: prepkit.Zoo) -> None:
    """Raise RunError if a run was begun with another recipe, is further already, or has lost its state."""
    latest, best = run.facts(LATEST), run.facts(BEST)
    # A kill between the first best state and the first latest one loses only these steps, which are taken again.
    if latest is None and best is not None and best["step"] > run.recipe.training.validate_every:
        raise RunError(
            f"'{run.path}' has the best weights, after step {best['step']}, but not the state that training goes on "
            "from (checkpoints/latest.json); train anew into another folder."
        )
    if latest is not None and recipe.training.steps < latest["step"]:
        raise RunError(
            f"'{run.path}' has taken {counted(latest['step'], 'step')} already, more than the "
            f"{recipe.training.steps:,} that were asked for; ask for at least as many."
        )
    steps = replace(recipe.training, steps=run.recipe.training.steps)
    first, second = (with_initialisation(each, zoo) for each in (run.recipe, replace(recipe, training=steps)))
    if first != second:
        before, now = (by_dotted_key(each.to_dict()) for each in (first, second))
        changes = [f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in now if before.get(key) != now[key]]
        raise RunError(
            f"'{run.path}' was begun with another recipe: {'; '.join(changes)}. Use the same, or another folder."
        )

"""Runs on the Hub: the best NetSpace of a run as a model repository with a model card.

    push_run(run, "user/space", license="mit")
    space = netspace.load("hf://user/space")

What is pushed is what using the space needs: run.json without the path of the zoo, the best weights with their JSON,
the references that PReps are aligned to, metrics, evaluations and figures, and the card. The state that training goes
on from stays here.
"""

from __future__ import annotations

import json
from typing import Any

from netspace.run.card import README, card_text
from netspace.run.run import BEST, CHECKPOINTS, FIGURES, METRICS, RECORD, REFERENCES, Run, RunError
from prepkit.hub.bundle import Bundle, Upload, repo_name
from prepkit.hub.upload import Push, push_bundle


def push_run(run: Run, repo: str, *, license: str | None = None, **options: Any) -> Push:
    """Make the best NetSpace of a run the newest version of a model repository, which is created if there is none.

    options: arguments of `prepkit.hub.upload.push_bundle`, which says what it raises
    """
    return push_bundle(run_bundle(run, repo, license), **options)


def run_bundle(run: Run, repo: str, license: str | None = None) -> Bundle:
    """Return what is pushed of a run.

    repo:    USER/NAME
    license: licence of the weights; that of the zoo if missing
    raises RunError without a best checkpoint that is whole, or without a licence
    """
    repo, licence = repo_name(repo), license or run.record["zoo"].get("license")
    if not licence:
        raise RunError(
            f"neither the run '{run.path}' nor its zoo has a licence; give one with license=: mit, cc-by-4.0, ..."
        )
    best = run.facts(BEST)
    if best is None or run.state(BEST) is None:
        raise RunError(f"the run '{run.path}' has no best checkpoint yet; go on with resume=True until a validation.")
    record = {**run.record, "zoo": {**run.record["zoo"], "path": None}, "license": licence}
    paths = [run.path / CHECKPOINTS / f"{BEST}.json", run.path / CHECKPOINTS / best["file"]]
    if run.alignment is not None:  # raises RunError if its file is damaged
        paths.append(run.path / REFERENCES)
    others = [run.path / METRICS, *sorted(run.path.glob("evaluation-*")), *sorted((run.path / FIGURES).glob("*"))]
    paths += [path for path in others if path.is_file()]
    files = [Upload.of(path.relative_to(run.path).as_posix(), path) for path in paths]
    files += [Upload.of(README, card_text(run, repo, licence).encode())]
    files += [Upload.of(RECORD, (json.dumps(record, indent=2) + "\n").encode())]
    message = f"{run.recipe.name}: best after step {best['step']}"
    return Bundle(repo, "model", message, tuple(files), last=frozenset({RECORD, README}))

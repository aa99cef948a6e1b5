"""Runs on the Hub: the best NetSpace of a run as a model repository with a model card.

    push_run(run, "user/space", license="mit")
    space = netspace.load("hf://user/space")

What is pushed is what using the space needs: run.json without the path of the zoo, the best weights with their JSON,
metrics, evaluations and figures, and the card. The state that training goes on from stays here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from netspace.run.card import README, card_text
from netspace.run.run import BEST, CHECKPOINTS, FIGURES, METRICS, RECORD, Run, RunError
from prepkit.hub.push import repo_name
from prepkit.hub.sending import Upload
from prepkit.hub.upload import push_folder

if TYPE_CHECKING:
    from prepkit.hub.upload import Push


def push_run(
    run: Run,
    repo: str,
    *,
    license: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Push:
    """Make the best NetSpace of a run the newest version of a model repository, which is created if there is none.

    repo:     USER/NAME
    license:  of the weights; that of the zoo if missing
    private:  create the repository for its owner only
    dry_run:  look what is there, change nothing
    progress: called with a number of bytes each time that many more are there
    raises RunError without a best checkpoint that is whole, or without a licence
    raises HubError if the Hub refuses, cannot be reached, or has got another version meanwhile
    """
    files = files_of(run, repo_name(repo), license)
    return push_folder(
        files,
        repo_name(repo),
        repo_type="model",
        message=f"{run.recipe.name}: best after step {(run.facts(BEST) or {})['step']}",
        last=(RECORD, README),
        private=private,
        dry_run=dry_run,
        token=token,
        progress=progress,
    )


def files_of(run: Run, repo: str, license: str | None = None) -> list[Upload]:
    """What of a run is pushed; arguments and errors are those of `push_run`."""
    licence = license or run.record["zoo"].get("license")
    if not licence:
        raise RunError(
            f"neither the run '{run.path}' nor its zoo has a licence; give one: --license mit, cc-by-4.0, ..."
        )
    best = run.facts(BEST)
    if best is None or run.state(BEST) is None:
        raise RunError(f"the run '{run.path}' has no best checkpoint yet; go on with --resume until a validation.")
    record = {**run.record, "zoo": {**run.record["zoo"], "path": None}, "license": licence}
    kept = [run.path / CHECKPOINTS / f"{BEST}.json", run.path / CHECKPOINTS / best["file"]]
    kept += [path for path in (run.path / METRICS,) if path.is_file()]
    kept += sorted(path for path in run.path.glob("evaluation-*") if path.is_file())
    kept += sorted(path for path in (run.path / FIGURES).glob("*") if path.is_file())
    named = [Upload.of(path.relative_to(run.path).as_posix(), path) for path in kept]
    card = Upload.of(README, card_text(run, repo, licence).encode())
    return [*named, card, Upload.of(RECORD, (json.dumps(record, indent=2) + "\n").encode())]

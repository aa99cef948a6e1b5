"""The README.md of a run's folder: what it is, how to use it, how it was trained; a model card on the Hub.

All of it comes from run.json and the checkpoints, without times, so the same run gives the same text.
"""

from __future__ import annotations

import json
from pathlib import Path

from netspace.run.run import BEST, LATEST, Run
from prepkit.address import HUB_SCHEME
from prepkit.files import replacing
from prepkit.licence import licence_of_card

README = "README.md"
MARK = "<!-- Written by netspace; remove this line to keep your own changes. -->"
TAGS = ("netspace", "prepkit", "weight-space-learning", "pytorch")
MEANINGS = {
    "run.json": "recipe, registry with all layouts, zoo with its sha256, task and versions",
    "metrics.jsonl": "one JSON document a line: losses of every few steps, scores of every validation",
    "checkpoints/best.json": "which weights gave the best validation; they are plain safetensors",
    "checkpoints/latest.json": "the state that training goes on from",
    "tensorboard/": "the same as curves, and PReps as images",
    "figures/": "pictures",
}
LOCAL = ("checkpoints/latest.json", "tensorboard/")  # what a push leaves behind


def write_card(run: Run) -> Path | None:
    """Write README.md into a run's folder; None where the user's own stands, which has no mark.

    raises OutputError if it cannot be written
    """
    path = run.path / README
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text(card_text(run), encoding="utf-8")
    return path


def card_text(run: Run, repo: str | None = None, license: str | None = None) -> str:
    """The whole README.md.

    repo, license: for the Hub: the repository that it is read from, and what its YAML says
    """
    recipe, network, zoo = run.recipe, run.recipe.network, run.record["zoo"]
    best, latest = run.facts(BEST), run.facts(LATEST)
    architectures = [
        f"| {class_id} | {architecture.name} | {architecture.num_parameters:,} |"
        for class_id, architecture in enumerate(run.registry)
    ]
    scores = [] if best is None else [f"| {name} | {value:.4f} |" for name, value in best["scores"].items()]
    after = "not reached yet" if best is None else f"best after step {best['step']}"
    sections = [
        ["---", *_licence_lines(license), "library_name: prepkit", "tags:", *(f"- {tag}" for tag in TAGS), "---", MARK],
        [
            f"# {recipe.name}",
            "",
            f"A space of networks (NetSpace), learnt from zoo `{zoo['name']}`. {recipe.description}",
        ],
        [
            "## How to use it",
            "",
            "```python",
            "import netspace",
            f'space = netspace.load("{HUB_SCHEME + repo if repo else "path/to/this/folder"}")',
            "latent = space.encode(preps)       "
            f"# {network.height} x {network.width} -> {network.embedding_size} values",
            "preps = space.decode(latent)",
            "```",
            "",
            "`netspace evaluate`, `embed`, `interpolate`, `optimize` and `decode` do the rest"
            + ("." if repo else "; `netspace train ... --resume` goes on with the training."),
        ],
        [
            "## Architectures",
            "",
            "| ClassId | architecture | packed parameters |",
            "| --- | --- | --- |",
            *architectures,
        ],
        [
            f"## Validation ({after})",
            "",
            *(["| score | value |", "| --- | --- |", *scores] if scores else ["None yet."]),
        ],
        [
            "## Training",
            "",
            f"{0 if latest is None else latest['step']:,} of {recipe.training.steps:,} steps. "
            f"Zoo `{zoo['name']}`, sha256 `{zoo['sha256']}`. Versions: "
            + ", ".join(f"{name} {version}" for name, version in sorted(run.record["versions"].items()))
            + ".",
            "",
            "```json",
            json.dumps(recipe.to_dict(), indent=2),
            "```",
        ],
        [
            "## Files",
            "",
            *(f"- `{name}`: {meaning}" for name, meaning in MEANINGS.items() if not (repo and name in LOCAL)),
        ],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _licence_lines(license: str | None) -> list[str]:
    if license is None:
        return []
    name, other = licence_of_card(license)
    return [f"license: {name}", *([f"license_name: {other}"] if other else [])]

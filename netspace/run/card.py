"""The README.md of a run's folder: what it is, how to use it, how it was trained; a model card on the Hub.

All of it comes from run.json and the checkpoints, without times, so the same run gives the same text.
"""

from __future__ import annotations

import json
from pathlib import Path

from netspace.run.run import BEST, CPU_FUNCTIONS, GPU_FUNCTIONS, LATEST, REFERENCES, Run
from netspace.space.gpu_functions import PRODUCT, THIRD
from prepkit.address import HUB_SCHEME
from prepkit.errors import listed
from prepkit.licence import licence_of_card
from prepkit.support.markdown import markdown_table, one_line, write_readme

README = "README.md"
MARK = "<!-- Written by netspace; remove this line to keep your own changes. -->"
TAGS = ("netspace", "prepkit", "weight-space-learning", "pytorch")
FILES = {
    "run.json": "recipe, registry with all layouts, zoo with its sha256, task and versions",
    "references.safetensors": "the network of each architecture to whose order hidden units are put before encoding",
    "metrics.jsonl": "one JSON document a line: losses of every few steps, scores of every validation",
    "checkpoints/best.json": "which weights gave the best validation; they are plain safetensors",
    "checkpoints/latest.json": "the state that training goes on from",
    "tensorboard/": "the metrics as TensorBoard curves, and PReps as images",
    "figures/": "pictures",
}
NOT_PUSHED = ("checkpoints/latest.json", "tensorboard/")


def write_card(run: Run) -> Path | None:
    """Write README.md into a run's folder; None where the user's own stands, which has no mark.

    raises OutputError if it cannot be written
    """
    path = run.path / README
    return path if write_readme(path, card_text(run), MARK) else None


def card_text(run: Run, repo: str | None = None, license: str | None = None) -> str:
    """The whole README.md.

    repo:    the repository that the run is loaded from; None for a local folder
    license: the licence that the card's YAML names; None for a local folder
    """
    recipe, network, zoo = run.recipe, run.recipe.network, run.record["zoo"]
    best, latest = run.facts(BEST), run.facts(LATEST)
    architectures = [(class_id, one.name, one.num_parameters) for class_id, one in enumerate(run.registry)]
    after = "not reached yet" if best is None else f"best after step {best['step']}"
    scores = ["None yet."]
    if best is not None and best["scores"]:
        rows = [(name, f"{value:.4f}") for name, value in best["scores"].items()]
        scores = markdown_table(("score", "value"), rows)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(run.record["versions"].items()))
    files = [f"- `{name}`: {meaning}" for name, meaning in FILES.items() if not (repo and name in NOT_PUSHED)]
    files = [line for line in files if recipe.align or REFERENCES not in line]
    resume = "." if repo else "; `netspace train ... --resume` goes on with the training."
    arguments = "preps, names" if recipe.align and recipe.has_classes else "preps"
    loading = f"""```python
import netspace
space = netspace.load("{HUB_SCHEME + repo if repo else "path/to/this/folder"}")
latent = space.encode({arguments})       # {network.height} x {network.width} -> {network.embedding_size} values
preps = space.decode(latent)
```

`netspace evaluate`, `embed`, `interpolate`, `optimize` and `decode` do the rest{resume}{_aligning_text(run)}"""
    rule = f", splits {one_line(str(zoo['split_rule']))}" if zoo.get("split_rule") else ""
    training = f"""{0 if latest is None else latest["step"]:,} of {recipe.training.steps:,} steps. \
Start `{run.record.get("initialisation") or "paper"}`. \
Zoo `{zoo["name"]}`, sha256 `{zoo["sha256"]}`{rule}. Versions: {versions}.\
{_functions_text(run)}

```json
{json.dumps(recipe.to_dict(), indent=2)}
```"""
    sections = [
        ["---", *_licence_lines(license), "library_name: prepkit", "tags:", *(f"- {tag}" for tag in TAGS), "---", MARK],
        [f"# {recipe.name}"],
        [f"A space of networks (NetSpace), learnt from zoo `{zoo['name']}`. {recipe.description}"],
        ["## How to use it", "", loading],
        ["## Architectures", "", *markdown_table(("ClassId", "architecture", "packed parameters"), architectures)],
        [f"## Validation ({after})", "", *scores],
        ["## Training", "", training],
        ["## Files", "", *files],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _aligning_text(run: Run) -> str:
    """Say that PReps are aligned before they are encoded, and what became of scrambled copies."""
    if not run.recipe.align:
        return ""
    copies = (run.record.get("alignment") or {}).get("scrambled", {})
    counts = listed(f"{one['returned']} of {one['copies']} of {name}" for name, one in copies.items())
    return f"""

Before a PRep is encoded, its hidden units are put into the order of `{REFERENCES}`, so that the order in which they \
were does not matter; `names` are those of the architectures, one for each PRep. Of scrambled copies of training \
instances, {counts or "none was tried"} came back to the same PRep."""


def _functions_text(run: Run) -> str:
    """Say which functions a CPU or a GPU was found to be faster with, where that was measured."""
    if run.record.get(GPU_FUNCTIONS, {}).get(THIRD) == PRODUCT:
        return (
            " A GPU computes the decoder's third convolution as a matrix product, as the machine that it was trained "
            "on did."
        )
    chosen = run.record.get(CPU_FUNCTIONS)
    if not isinstance(chosen, dict):
        return ""
    parts = (f"{part} by {chosen[part]} functions" for part in ("encoder", "decoder") if part in chosen)
    return f" A CPU computes the {' and the '.join(parts)}, as the machine that it was trained on did."


def _licence_lines(license: str | None) -> list[str]:
    if license is None:
        return []
    name, other = licence_of_card(license)
    return [f"license: {name}", *([f"license_name: {other}"] if other else [])]

"""A run: the folder of one training, which is whole at any time, and how its NetSpace is loaded.

    run/
      run.json               recipe, registry, zoo with its sha256, task, versions: everything but the weights
      metrics.jsonl          one line every few steps and one a validation
      checkpoints/
        latest.json          step, scores, and the file of the state that training goes on from, with its sha256
        best.json            the same for the best validation
        step-<n>-....safetensors, best-<n>-....safetensors
      tensorboard/
      figures/
      README.md

    space = netspace.load("run")                   # the best NetSpace, ready to use
    run = netspace.open_run("run")                 # has run.recipe, run.registry and run.open_zoo()

A state is written first and named last, by replacing one small JSON file, so a kill at any time leaves the state before
or the one after. The weights of the best validation are plain safetensors, named as in NetSpace's state dict.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import prepkit
from netspace.alignment import Alignment
from netspace.data import ZooMismatch, shares_starts
from netspace.recipe import FROM_PREPS, Recipe, recipe_of
from netspace.run._places import absolute, local_folder
from netspace.run.known_zoo import identity_of, instances_of_run, sum_of, why_not_found
from netspace.space import cpu_functions, gpu_functions
from netspace.space.network import NetSpace
from prepkit.address import is_remote
from prepkit.errors import expect, listed
from prepkit.support.files import replacing, sha256_of_file, write_json
from prepkit.version import __version__

FORMAT = "netspace-run/1"
RECORD, METRICS, LOCK, REFERENCES = "run.json", "metrics.jsonl", ".lock", "references.safetensors"
CHECKPOINTS, FIGURES, TENSORBOARD = "checkpoints", "figures", "tensorboard"
LATEST, BEST = "latest", "best"  # two kinds of states
CPU_FUNCTIONS, GPU_FUNCTIONS = "cpu_functions", "gpu_functions"  # two keys of the record
NETWORK, OPTIMISER = "network.", "optimiser."  # prefixes of the tensors of a state


class RunError(prepkit.PrepkitError, ValueError):
    """A run's folder is missing, damaged, foreign, of a newer format, or in the way."""


@dataclass(frozen=True)
class State:
    """A training's state after a number of steps.

    step:    number of steps that were taken
    tensors: those of the network under `network.`, those of the optimiser under `optimiser.`
    facts:   scores and what else is needed to go on, JSON-able
    """

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with a prefix, named without it."""
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}


class Run:
    """A run's folder, opened.

    path: a folder, or hf://user/name[@revision], which is fetched and checked
    raises RunError if it is no run or has a newer format, HubError if it cannot be fetched
    """

    def __init__(self, path: str | os.PathLike[str], *, trust_code: bool = False) -> None:
        expect(path, (str, os.PathLike), "path", "the folder of a run, or hf://user/name")
        self.path = local_folder(path)
        self.record = _record(self.path)
        file = self.path / RECORD
        self.recipe: Recipe = recipe_of(self.record["recipe"], f"{file}, recipe")
        try:
            self.registry = prepkit.Registry.from_dict(
                self.record["registry"], f"{file}, registry", trust_code=trust_code
            )
        except (TypeError, KeyError, AttributeError, IndexError) as error:
            raise RunError(f"{file}, registry: damaged ({error!r}).") from None

    def __repr__(self) -> str:
        return f"<Run '{self.path}' of the recipe {self.recipe.name}>"

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        recipe: Recipe,
        zoo: prepkit.Zoo,
        zoo_path: str | os.PathLike[str],
        initialisation: str | None = None,
        alignment: Alignment | None = None,
    ) -> Run:
        """Begin a run in a new or empty folder.

        initialisation: the start that is taken; the recipe's if missing
        alignment:      what PReps are aligned to, for a recipe that aligns
        raises RunError if something is there
        """
        root = Path(path)
        check_free(root)
        record = {
            "format": FORMAT,
            "recipe": recipe.to_dict(),
            "initialisation": initialisation or recipe.network.initialisation,
            "registry": zoo.registry.to_dict(),
            "zoo": identity_of(zoo)
            | {"path": absolute(zoo_path), "license": zoo.manifest.license, "shared_starts": shares_starts(zoo)},
            "task": None if zoo.task is None else dict(zoo.task),
            "versions": versions(),
        }
        (root / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        (root / FIGURES).mkdir(exist_ok=True)
        if alignment is not None:
            alignment.save(root / REFERENCES)
            copies = {name: vars(one) for name, one in alignment.copies.items()}
            record["alignment"] = {"sha256": sha256_of_file(root / REFERENCES), "scrambled": copies}
        write_json(root / RECORD, record)
        return cls(root, trust_code=True)

    @cached_property
    def alignment(self) -> Alignment | None:
        """What PReps are aligned to before they are encoded; None for a run that does not align.

        raises RunError if the file of the references is missing or damaged
        """
        if not self.recipe.align:
            return None
        file, recorded = self.path / REFERENCES, self.record.get("alignment")
        if not isinstance(recorded, dict) or not file.is_file() or sha256_of_file(file) != recorded.get("sha256"):
            raise RunError(
                f"{file}: missing or damaged, it does not match the sha256 in {RECORD}. Embeddings need the references "
                "that PReps are aligned to; restore the file, or train anew."
            )
        return Alignment.load(file, self.registry)

    def note(self, key: str, value: Any) -> None:
        """Replace or add a value of run.json."""
        self.record[key] = value
        write_json(self.path / RECORD, self.record)

    @property
    def shares_starts(self) -> bool:
        """Whether the instances of the run's zoo began with starts that they share, which makes it an easier zoo."""
        return bool(self.record["zoo"].get("shared_starts", False))

    def open_zoo(self, path: str | os.PathLike[str] | None = None) -> prepkit.Zoo:
        """The zoo that the run was trained on, read at the recipe's height and width.

        Of a zoo that has grown since, or got columns, it is a view of the instances that were there, with a warning.
        path: where the zoo is now; where it was in training if missing
        raises ZooMismatch if it is another zoo
        """
        recorded = self.record["zoo"]
        here = None if recorded["path"] is None or is_remote(recorded["path"]) else Path(recorded["path"])
        if path is None and here is not None and not here.exists():
            raise ZooMismatch(
                f"the run '{self.path}' was trained on a zoo at '{here}', which is not there; say where it is now with "
                "`zoo`."
            )
        if path is None and recorded["path"] is None:
            raise ZooMismatch(
                f"the run '{self.path}' is from the Hub and does not say where its zoo '{recorded['name']}' is; "
                "give its folder or its address with `zoo`."
            )
        network = self.recipe.network
        zoo = prepkit.open_zoo(path or recorded["path"], width=network.width, height=network.height)
        own = instances_of_run(zoo, recorded, list(self.registry.class_ids))
        if own is None:
            raise ZooMismatch(
                f"the run '{self.path}' was trained on zoo '{recorded['name']}' with sha256 {recorded['sha256'][:12]}; "
                f"'{path or recorded['path']}' has {sum_of(zoo)[:12]}{why_not_found(zoo, recorded)}"
            )
        return own

    # States -------------------------------------------------------------------------------------------------------

    def save(self, kind: str, state: State) -> None:
        """Write a state as the latest or the best, in place of the one before.

        raises prepkit's OutputError if it cannot be written, and keeps the one before
        """
        folder = self.path / CHECKPOINTS
        before = self.facts(kind)
        name = f"{kind}-{state.step:08d}.safetensors"
        with replacing(folder / name, overwrite=True) as temporary:
            tensors = {key: value.detach().cpu().contiguous() for key, value in state.tensors.items()}
            safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})
        document = {**state.facts, "step": state.step, "file": name, "sha256": sha256_of_file(folder / name)}
        write_json(folder / f"{kind}.json", document)
        if before is not None and before["file"] != name:
            (folder / before["file"]).unlink(missing_ok=True)

    def state(self, kind: str) -> State | None:
        """The latest or the best state; None if there is none yet.

        raises RunError if it is damaged
        """
        named = self.facts(kind)
        if named is None:
            return None
        file = self.path / CHECKPOINTS / named["file"]
        if not file.is_file() or sha256_of_file(file) != named["sha256"]:
            raise RunError(
                f"{file}: missing or damaged, it does not match the sha256 in {kind}.json. Restore it, or train anew."
            )
        facts = {key: value for key, value in named.items() if key not in ("step", "file", "sha256")}
        return State(named["step"], safetensors.torch.load_file(file), facts)

    def facts(self, kind: str) -> dict[str, Any] | None:
        """The step, scores and file of the latest or the best state; None if there is none yet."""
        file = self.path / CHECKPOINTS / f"{kind}.json"
        if not file.exists():
            return None
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            if type(document["step"]) is not int or Path(document["file"]).name != document["file"]:
                raise ValueError("step or file")
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RunError(f"{file}: damaged ({error}). Restore it, or train anew.") from None
        return dict(document)

    def space(self, kind: str = BEST, device: torch.device | str = "cpu") -> NetSpace:
        """The NetSpace of the best validation, or the latest one, in eval mode.

        raises RunError if there is none yet
        """
        state = self.state(kind)
        if state is None:
            raise RunError(
                f"the run '{self.path}' has no {kind} checkpoint yet: its training ended before the first validation. "
                "Go on with resume=True."
            )
        space = self.new_space()
        space.alignment = self.alignment
        space.load_state_dict(state.part(NETWORK) if kind == LATEST else dict(state.tensors))
        return space.to(device).eval()

    def new_space(self) -> NetSpace:
        """Build a NetSpace of the recipe's sizes, drawn with its seed; it computes as the run's does."""
        space = new_space(self.recipe)
        cpu_functions.follow(space, self.record.get(CPU_FUNCTIONS, self.recipe.training.cpu_functions))
        gpu_functions.follow(space, self.record.get(GPU_FUNCTIONS, {}))
        return space

    # Metrics ------------------------------------------------------------------------------------------------------

    @cached_property
    def metrics_file(self) -> Path:
        """The file that says how training went, one JSON document a line."""
        return self.path / METRICS

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of the metrics file, in order."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines()
        documents = []
        for number, line in enumerate(lines, 1):
            try:
                documents.append(json.loads(line))
            except ValueError as error:
                if number < len(lines):  # a kill may have cut the last line
                    raise RunError(f"{self.metrics_file}, line {number}: damaged ({error}).") from None
        return documents

    def cut_metrics(self, step: int) -> None:
        """Remove lines of later steps, which are taken again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        with replacing(self.metrics_file, overwrite=True) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def load(path: str | os.PathLike[str], *, kind: str = BEST, device: torch.device | str = "cpu") -> NetSpace:
    """Load the NetSpace of a run, ready to use, in eval mode.

    path: the run's folder, or hf://user/name[@revision]
    kind: "best" for the best validation, or "latest"
    raises RunError if the folder is no run or has no checkpoint, HubError if it cannot be fetched

    >>> space = netspace.load("run")
    >>> latent_NE = space.encode(zoo.split("test").preps())
    """
    if kind not in (BEST, LATEST):
        raise RunError(f"kind {kind!r} is none of best, latest.")
    return Run(path).space(kind, device)


def open_run(path: str | os.PathLike[str], *, trust_code: bool = False) -> Run:
    """Open the folder of a training: its recipe, registry, zoo and checkpoints.

    trust_code: whether the run may import builders of its own architectures
    raises RunError if it is no run
    """
    return Run(path, trust_code=trust_code)


def run_and_zoo(
    run: Run | str | os.PathLike[str], zoo: prepkit.Zoo | str | os.PathLike[str]
) -> tuple[Run, prepkit.Zoo]:
    """Return a run and a zoo, each of which may be given by its path; the zoo is then read at the run's shape.

    raises PrepkitError for anything else, and what opening them raises
    """
    expect(run, (Run, str, os.PathLike), "run", "a Run, or the folder of one")
    expect(zoo, (prepkit.Zoo, str, os.PathLike), "zoo", "a Zoo, or the folder of one")
    run = run if isinstance(run, Run) else open_run(run)
    if not isinstance(zoo, prepkit.Zoo):
        zoo = prepkit.open_zoo(zoo, width=run.recipe.network.width, height=run.recipe.network.height)
    return run, zoo


def check_free(root: Path) -> None:
    """Raise RunError if a run cannot begin in a folder, because it holds something else.

    A run that ended before it had anything to keep is begun anew.
    """
    if (root / RECORD).exists():
        if not any((root / CHECKPOINTS).glob("*.json")):
            return
        raise RunError(f"'{root}' holds a run already; resume=True goes on with it, or name another folder.")
    if root.exists() and (not root.is_dir() or not all(map(_is_of_a_run, root.iterdir()))):
        raise RunError(f"'{root}' is there and no run; name a new or empty folder.")


def _is_of_a_run(path: Path) -> bool:
    """Whether a run that was killed before it had its record may have left this."""
    if path.name in (CHECKPOINTS, FIGURES):
        return path.is_dir() and not any(path.iterdir())
    return path.name in (LOCK, REFERENCES) or (path.name.startswith(".prepkit-") and path.suffix == ".tmp")


def new_space(recipe: Recipe) -> NetSpace:
    """Build a NetSpace of a recipe's sizes, drawn with its seed; torch's global generator stays as it is.

    raises InvalidNetSpace, InitialisationError, or prepkit's InvalidShape
    """
    network = recipe.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return NetSpace(
            height=network.height,
            width=network.width,
            embedding_size=network.embedding_size,
            num_architectures=recipe.num_architectures,
            columns=network.columns,
            # Only a zoo tells which start a missing one is, and starts from PReps need its instances.
            initialisation="paper" if network.initialisation in (None, *FROM_PREPS) else network.initialisation,
        )


def versions() -> dict[str, str]:
    """The versions of what a run's numbers depend on."""
    return {"prepkit": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def _record(root: Path) -> dict[str, Any]:
    file = root / RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"'{root}' is no run: it has no {RECORD}. `netspace train` makes one.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read ({error}).") from None
    if not isinstance(record, dict) or not str(record.get("format", "")).startswith("netspace-run/"):
        raise RunError(f"{file}: not a run of netspace.")
    if record["format"] != FORMAT:
        raise RunError(f"{file}: format {record['format']!r}; this version reads {FORMAT}. Install a newer prepkit.")
    missing = [key for key in ("recipe", "registry", "zoo", "task") if key not in record]
    if missing:
        raise RunError(f"{file}: {listed(missing)} missing; the file is damaged.")
    tables = record["recipe"], record["registry"], record["zoo"], record["task"] or {}
    texts = {"name": str, "sha256": str, "path": str | None}
    if not all(isinstance(table, dict) for table in tables) or not all(
        isinstance(record["zoo"].get(key, 0), kind) for key, kind in texts.items()
    ):
        raise RunError(f"{file}: recipe, registry, zoo or task is not what netspace wrote; the file is damaged.")
    return record

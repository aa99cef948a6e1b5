"""The networks of checkpoints that ModelZooDataset pickled, rebuilt as those of its trees of runs are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import ZooError, counted, listed, nearest
from prepkit.zoo.format.function import ACCURACY
from prepkit.zoo.importers._ray_conventions import NORMALISATIONS, Convention, DataSet, Sample, data_set, decide
from prepkit.zoo.importers._ray_networks import (
    ACTIVATIONS,
    Rebuilt,
    ResNetNetwork,
    how_to_run,
    named_activation,
    only_size,
    rebuilt,
)
from prepkit.zoo.importers._ray_runs import Run

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.families.registry import Architecture

ACTIVATION = "model::nlin"  # property that names it
SAMPLE = 4  # checkpoints that are run to find the convention


@dataclass(frozen=True)
class Saved:
    """A checkpoint, as far as its network follows from it.

    place:   set and number, for errors
    columns: its run, epoch and properties
    path:    path of its run where it was trained; None if it is not known
    """

    place: str
    tensors: Mapping[str, Tensor]
    columns: Mapping[str, Any]
    path: str | None


class SavedNetworks:
    """Finds what builds each network, and how all are run.

    task:       record of the task, if the data set is known
    how_to_run: record with the keys of HowToRun, None if no network is known
    notes:      sentences on how they were found
    """

    def __init__(self, samples: Iterable[Saved], activation: str | None, data: Path | None) -> None:
        if activation is not None and activation.lower() not in ACTIVATIONS:
            near = nearest(activation, ACTIVATIONS)
            raise ZooError(f"`activation`: there is no '{activation}'; there are {listed(ACTIVATIONS)}.{near}")
        self._activation = None if activation is None else ACTIVATIONS[activation.lower()]
        self._known: dict[tuple[Any, ...], Rebuilt | None] = {}
        self._architectures: dict[tuple[Any, ...], Architecture] = {}
        self._unknown: Counter[str] = Counter()
        self._pool_first = True
        self.task: Mapping[str, Any] | None = None
        self.how_to_run: Mapping[str, Any] | None = None
        self.record: dict[str, Any] = {}
        self._notes: list[str] = []
        self._find(list(samples), data)

    def architecture(self, saved: Saved) -> Architecture | None:
        """Return what builds a checkpoint's network; None if that is unknown, which is counted."""
        key, network = self._network(saved)
        if network is None:
            has_activation = self._named(saved) is not None
            self._unknown["of unknown layers" if has_activation else f"without {ACTIVATION}"] += 1
            return None
        label = _data_set(saved).name
        if (key, label) not in self._architectures:
            self._architectures[key, label] = network.architecture(label, self._pool_first)
        return self._architectures[key, label]

    def notes(self) -> Sequence[str]:
        """Return sentences on what is known of the networks."""
        if not self._unknown:
            return self._notes
        kinds = listed(f"{kind} ({counted(count, 'model')})" for kind, count in self._unknown.items())
        remedy = " Where all have one activation, name it with `activation`." if self._activation is None else ""
        return [*self._notes, f"Networks that are kept but cannot be run, as nothing rebuilds them: {kinds}.{remedy}"]

    def _named(self, saved: Saved) -> str | None:
        return named_activation(saved.columns) or self._activation

    def _network(self, saved: Saved) -> tuple[tuple[Any, ...], Rebuilt | None]:
        activation = self._named(saved)
        key = (activation, *((name, *tensor.shape) for name, tensor in saved.tensors.items()))
        if key not in self._known:
            self._known[key] = rebuilt(saved.tensors, activation)
        return key, self._known[key]

    def _find(self, samples: Sequence[Saved], data: Path | None) -> None:
        """Find how inputs were normalised: by running on images, or by the names of the folders."""
        found = [(saved, network) for saved in samples if (network := self._network(saved)[1]) is not None]
        if not found:
            if data is not None:
                raise ZooError(
                    "no network can be compared with the images, since none of those that were looked at can be "
                    "rebuilt. Where all have one activation, name it with `activation`."
                )
            return
        networks = [network for _, network in found]
        named = ACTIVATION if any(ACTIVATION in saved.columns for saved, _ in found) else None
        sets = {_data_set(saved) for saved, _ in found}
        likely = _likely(sets.pop(), networks[0]) if len(sets) == 1 else None
        if data is not None:
            convention: Convention | None = self._run(found, likely, data)
        elif likely is not None:
            convention = Convention(NORMALISATIONS[likely])
            self._notes.append(
                f"Names of folders tell the data set, so inputs are taken to be normalised as '{likely}', which "
                "nothing proves: name the folder of the images, data=PATH, and running decides."
            )
        else:
            convention = None
        self.how_to_run = how_to_run(networks, named, convention is None or convention.pool_first)
        if convention is not None:
            self._pool_first = convention.pool_first
            self.task = convention.normalisation.task(networks[0].channels, only_size(networks))
            normalised = {key: self.task[key] for key in ("mean", "std")}
            self.how_to_run = {**self.how_to_run, "convention": convention.name, **normalised}

    def _run(self, found: Sequence[tuple[Saved, Rebuilt]], likely: str | None, data: Path) -> Convention:
        """Return the convention by which checkpoints have the accuracies that are stored."""
        samples = [
            Sample(network, saved.tensors, float(stored), saved.place)
            for saved, network in found
            if isinstance(stored := saved.columns.get(ACCURACY), int | float)
        ]
        if not samples:
            raise ZooError("no network can be compared with the images: none has a property test_acc.")
        decision = decide(samples, None if likely is None else NORMALISATIONS[likely], data)
        self._notes.append(decision.note)
        self.record = {"conventions_run": {"models": len(samples), "accuracy_differences": dict(decision.differences)}}
        return decision.convention


def _data_set(saved: Saved) -> DataSet:
    """Return the data set that the folders of a run name."""
    path = Path((saved.path or "unknown/run").replace("\\", "/"))
    return data_set(path.parent, Run(str(path), path.name, None, {}, None), saved.columns)


def _likely(known: DataSet, network: Rebuilt) -> str | None:
    return known.of_resnets if isinstance(network, ResNetNetwork) else known.of_chains

"""How instances are trained: the `[training]` table of a spec, its overrides by architecture, and the teacher's.

Every key is read by the one reader that READERS names. A key of `[training."resnet8@cifar10"]` or `[teacher]` stands
in place of the same key of `[training]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from prepkit.errors import ZooError, listed
from prepkit.reading import Place, Reader, boolean, choice, given, number, require, table, unknown, whole
from prepkit.training.training_values import (
    ABOVE_0,
    AT_LEAST_0,
    CONSTANT,
    FROM_0_BELOW_1,
    LAST,
    ZERO,
    Epochs,
    Keep,
    Range,
    Schedule,
    betas,
    epochs,
    keep,
    number_or_range,
    schedule,
)


@dataclass(frozen=True)
class Training:
    """How the instances of an architecture are trained.

    optimizer:     "sgd" (momentum, nesterov) or "adam" (betas, eps; decoupled weight decay makes it AdamW)
    learning_rate, momentum, weight_decay: drawn for each instance
    batch_size:    samples a step: images, or points of a shape
    schedule:      of the learning rate, by epoch
    precision:     of the forward pass; weights and loss are float32
    """

    optimizer: Literal["sgd", "adam"]
    learning_rate: Range
    batch_size: int
    epochs: Epochs
    momentum: Range = ZERO
    weight_decay: Range = ZERO
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decoupled: bool = False
    schedule: Schedule = CONSTANT
    keep: Keep = LAST
    precision: Literal["float32", "bfloat16"] = "float32"

    def with_epochs(self, most: int) -> Training:
        """The same training in at most so many epochs, its schedule drawn together; one number of epochs becomes it."""
        epochs = self.epochs.capped(most)
        keep = replace(self.keep, every=min(self.keep.every, epochs.last)) if self.keep.every else self.keep
        return replace(self, epochs=epochs, schedule=self.schedule.scaled(epochs.last / self.epochs.last), keep=keep)


READERS: dict[str, Reader] = {
    "optimizer": choice("optimizer", ("sgd", "adam")),
    "learning_rate": number_or_range(ABOVE_0),
    "momentum": number_or_range(FROM_0_BELOW_1),
    "nesterov": boolean,
    "betas": betas,
    "eps": number(ABOVE_0),
    "decoupled": boolean,
    "weight_decay": number_or_range(AT_LEAST_0),
    "batch_size": whole(1),
    "epochs": epochs,
    "schedule": schedule,
    "keep": keep,
    "precision": choice("precision", ("float32", "bfloat16")),
}
REQUIRED = ("optimizer", "learning_rate", "batch_size", "epochs")
OPTIMIZER_OF = {"momentum": "sgd", "nesterov": "sgd", "betas": "adam", "eps": "adam", "decoupled": "adam"}


@dataclass(frozen=True)
class TrainingTable:
    """The keys of one table that is about training, read, and where it stands."""

    values: Mapping[str, Any]
    place: Place

    @classmethod
    def read(cls, data: Any, place: Place) -> TrainingTable:
        """All keys of a table; raises ZooError with the place of what is wrong."""
        return cls(given(table(data, place), READERS, place), place)

    def training(self, override: TrainingTable | None = None) -> Training:
        """The training that this table describes, with the keys of another in place of its own.

        raises ZooError if a key is missing, or is one of another optimizer than the one that is used
        """
        own, other = self.values, override.values if override else {}
        optimizer = other.get("optimizer", own.get("optimizer"))
        if "optimizer" in other and other["optimizer"] != own.get("optimizer"):
            # What was said about the optimizer that is not used here does not count here.
            own = {key: value for key, value in own.items() if OPTIMIZER_OF.get(key, optimizer) == optimizer}
        values = {**own, **other}
        places = dict.fromkeys(own, self.place) | dict.fromkeys(other, override.place if override else self.place)
        require(values, REQUIRED, READERS, self.place)
        for key in values:
            if OPTIMIZER_OF.get(key, optimizer) != optimizer:
                theirs = [name for name in READERS if OPTIMIZER_OF.get(name, optimizer) == optimizer]
                raise ZooError(
                    f"{places[key][key]}: belongs to {OPTIMIZER_OF[key]}, but the optimizer is {optimizer}, which has "
                    f"{listed(theirs, 20)}."
                )
        training = Training(**values)
        if training.nesterov and training.momentum.low == 0:
            raise ZooError(f"{places['nesterov']['nesterov']}: needs a momentum above 0.")
        return training


def trainings(data: Any, place: Place, trained: tuple[str, ...]) -> tuple[TrainingTable, dict[str, Training]]:
    """The `[training]` table, and the training of each architecture that has instances.

    raises ZooError if a table in it is not named like one of them
    """
    tables = {key: value for key, value in table(data, place).items() if isinstance(value, dict) and key not in READERS}
    for name in tables:
        if name not in trained:
            raise unknown(place[name], "key, or architecture without instances,", name, (*READERS, *trained))
    base = TrainingTable.read({key: value for key, value in data.items() if key not in tables}, place)
    overrides = {name: TrainingTable.read(value, place[name]) for name, value in tables.items()}
    return base, {name: base.training(overrides.get(name)) for name in trained}

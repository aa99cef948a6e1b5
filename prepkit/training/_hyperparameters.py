"""How instances are trained: the `[training]` table of a spec, its overrides by architecture, and the teacher's.

A key of `[training."resnet8@cifar10"]` or `[teacher]` stands in place of the same key of `[training]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from prepkit.errors import ZooError, listed
from prepkit.support.reading import TABLE, Place, between, given, keys_of, require, unknown, whole
from prepkit.support.text import Brief
from prepkit.training._start import OF_ITS_OWN, START, Start
from prepkit.training._values import (
    ABOVE_0,
    BETAS,
    CONSTANT,
    EPOCHS,
    FROM_0_BELOW_1,
    KEEP,
    LAST,
    SCHEDULE,
    ZERO,
    Epochs,
    Keep,
    Range,
    Schedule,
    number_or_range,
)


@dataclass(frozen=True, repr=False)
class Training(Brief):
    """How the instances of an architecture are trained. Ranges are drawn from for each instance."""

    optimizer: Annotated[Literal["sgd", "adam"], "sgd, or adam, which is AdamW with `decoupled`"]
    learning_rate: Annotated[Range, number_or_range(ABOVE_0), "learning rate before the schedule"]
    batch_size: Annotated[int, whole(1), "samples a step: images, or points of a shape"]
    epochs: Annotated[Epochs, EPOCHS, "numbers of epochs, which are dealt to the instances"]
    momentum: Annotated[Range, number_or_range(FROM_0_BELOW_1), "(sgd) momentum"] = ZERO
    nesterov: Annotated[bool, "(sgd) Nesterov's momentum"] = False
    betas: Annotated[tuple[float, float], BETAS, "(adam) decay of the moving averages"] = (0.9, 0.999)
    eps: Annotated[float, ABOVE_0, "(adam) what is added to the denominator"] = 1e-8
    decoupled: Annotated[bool, "(adam) whether weight decay stays out of the gradients, as in AdamW"] = False
    weight_decay: Annotated[Range, number_or_range(between(0)), "weight decay"] = ZERO
    schedule: Annotated[
        Schedule,
        SCHEDULE,
        "what the learning rate is multiplied by over the epochs; `at` are epochs or shares of all, `every` is epochs",
    ] = CONSTANT
    keep: Annotated[
        Keep,
        KEEP,
        "weights that are stored: the last, the best in validation, or those after every so many epochs; with `kind`, "
        "the best in validation of the last and of those after every so many epochs, once `after` epochs are over",
    ] = LAST
    initialisation: Annotated[
        Literal["builder", "kaiming_fan_out"],
        "weights before training: those of the network's builder, or with those of convolutions drawn Kaiming normal "
        "over their outputs, as He et al. do for ResNets",
    ] = "builder"
    start: Annotated[
        Start,
        START,
        "weights that a training begins from: a random draw for each instance; so many random draws, which are dealt "
        "out; one network that is fitted in so many steps to the shapes of all training instances at once, held in "
        "memory together; or a checkpoint or PRep, whose path begins at the spec's folder",
    ] = OF_ITS_OWN
    precision: Annotated[
        Literal["float32", "bfloat16"],
        "precision of the forward pass, whose float32 is TF32 on a GPU; weights and loss are float32",
    ] = "float32"

    def with_epochs(self, most: int) -> Training:
        """The same training in at most so many epochs; one number of epochs becomes it.

        The schedule is drawn together, and a start is fitted in so many fewer steps.
        """
        epochs = self.epochs.capped(most)
        share = epochs.last / self.epochs.last
        keep = self.keep.scaled(share, epochs.last)
        schedule, start = self.schedule.scaled(share), self.start.scaled(min(1.0, share))
        return replace(self, epochs=epochs, schedule=schedule, keep=keep, start=start)

    def fitting(self, epochs: int) -> Training:
        """How a start that they share is fitted: as they are trained, in so many epochs; its last weights are kept."""
        schedule = self.schedule.scaled(epochs / self.epochs.last)
        return replace(self, epochs=Epochs((epochs,)), schedule=schedule, keep=LAST, start=OF_ITS_OWN)


KEYS = keys_of(Training)
OPTIMIZER_OF = {"momentum": "sgd", "nesterov": "sgd", "betas": "adam", "eps": "adam", "decoupled": "adam"}


@dataclass(frozen=True)
class TrainingTable:
    """The keys of one table that is about training, read, and where it stands."""

    values: Mapping[str, Any]
    place: Place

    @classmethod
    def read(cls, data: Any, place: Place) -> TrainingTable:
        """All keys of a table; raises ZooError with the place of what is wrong."""
        return cls(given(KEYS, data, place), place)

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
        require(KEYS, values, self.place)
        for key in values:
            if OPTIMIZER_OF.get(key, optimizer) != optimizer:
                theirs = [name for name in KEYS if OPTIMIZER_OF.get(name, optimizer) == optimizer]
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
    tables = {key: value for key, value in TABLE(data, place).items() if isinstance(value, dict) and key not in KEYS}
    for name in tables:
        if name not in trained:
            raise unknown(place, "key, or architecture without instances,", name, (*KEYS, *trained))
    base = TrainingTable.read({key: value for key, value in data.items() if key not in tables}, place)
    overrides = {name: TrainingTable.read(value, place[name]) for name, value in tables.items()}
    return base, {name: base.training(overrides.get(name)) for name in trained}

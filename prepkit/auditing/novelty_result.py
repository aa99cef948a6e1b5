"""What novelty found, as data: groups of networks, each with its nearest training networks, and how they compare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prepkit.auditing._controls import is_simple
from prepkit.support.json_values import json_value
from prepkit.support.statistics import finite_mean
from prepkit.support.text import Brief

FORMAT = "prepkit-novelty/1"
MEASURES = ("distance", "difference", "agreement", "overlap", "accuracy")


@dataclass(frozen=True, repr=False)
class Group(Brief):
    """Networks of one kind, and how near the nearest training network of each is.

    rows: one a network: id, architecture, and where they exist
          distance    of its weights from the nearest training network's, a share of that one's norm, after alignment;
                      nearest_in_weights is its id
          difference  of its outputs, a share of the spread of the training network's; nearest_in_outputs is its id
          agreement   largest share of the inputs with the same class
          overlap     largest intersection over union of the wrong images, or of the insides of shapes
          accuracy    on the images
    is_generated: whether they were generated, and are no control
    copies:       ids of those whose distance or difference is at most the tolerance
    """

    rows: tuple[Mapping[str, Any], ...]
    is_generated: bool
    copies: tuple[str, ...]

    def values(self, measure: str, architecture: str | None = None) -> list[float]:
        """Return a measure of all networks that have it, or of those of one architecture."""
        rows = [row for row in self.rows if architecture in (None, row["architecture"])]
        return [float(row[measure]) for row in rows if measure in row and math.isfinite(row[measure])]

    def mean(self, measure: str, architecture: str | None = None) -> float:
        """Return the mean of a measure; NaN where no network has it."""
        return finite_mean(self.values(measure, architecture))


@dataclass(frozen=True, repr=False)
class Comparison(Brief):
    """Generated networks beside the best control that is at least as new in its outputs.

    controls:   by architecture the name of that control; an architecture for which no control is as new has none
    gains:      accuracy of each generated network minus the mean of the control for its architecture
    deviations: accuracies of the networks of these controls minus their mean, from which the luck of controls is told
    to_best:    mean accuracy minus that of the best training network of the same architecture
    """

    controls: Mapping[str, str]
    gains: tuple[float, ...]
    deviations: tuple[float, ...]
    to_best: float

    @property
    def gain(self) -> float:
        """The mean gain; NaN where there is none."""
        return finite_mean(self.gains)


@dataclass(frozen=True, repr=False)
class Novelty(Brief):
    """What was found.

    training:  name of the zoo, or part of it, that the generator learned from
    networks:  number of training networks
    kind:      "classes", "shapes" or "values": what outputs are
    inputs:    what networks ran on, such as `360 test images`
    tolerance: up to which a network is a copy
    groups:    generated networks and controls by name, the generated ones first
    best:      by architecture, id and accuracy of the best training network; empty where there is no accuracy
    notes:     sentences on what was not compared
    """

    training: str
    networks: int
    kind: str
    inputs: str
    tolerance: float
    seed: int
    groups: Mapping[str, Group]
    best: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]

    @property
    def generated(self) -> dict[str, Group]:
        """The groups of generated networks."""
        return {name: group for name, group in self.groups.items() if group.is_generated}

    @property
    def best_accuracy(self) -> float:
        """The accuracy of the best training network of all; NaN where there is none."""
        return max((one["accuracy"] for one in self.best.values()), default=math.nan)

    def compared(self, name: str) -> Comparison:
        """Compare a group with the controls, by accuracy."""
        group = self.groups[name]
        chosen: dict[str, str] = {}
        gains: list[float] = []
        deviations: list[float] = []
        for architecture in dict.fromkeys(row["architecture"] for row in group.rows):
            control, values = self._best_control(group.mean("overlap", architecture), architecture)
            if control:
                mean = finite_mean(values)
                chosen[architecture] = control
                gains += [accuracy - mean for accuracy in group.values("accuracy", architecture)]
                deviations += [value - mean for value in values]
        away = [row["accuracy"] - self._best_of(row["architecture"]) for row in group.rows if "accuracy" in row]
        return Comparison(chosen, tuple(gains), tuple(deviations), finite_mean(away))

    def _best_of(self, architecture: str) -> float:
        one = self.best.get(architecture)
        return self.best_accuracy if one is None else float(one["accuracy"])

    def _best_control(self, overlap: float, architecture: str) -> tuple[str, list[float]]:
        """Return the most accurate control of an architecture, or of all, that is at least as new as an overlap.

        returns its name, empty if there is none, and the accuracies of its networks
        """
        best, accuracies = "", list[float]()
        for name, group in self.groups.items():
            if group.is_generated or not is_simple(name):
                continue
            of = architecture if group.values("overlap", architecture) else None
            values = group.values("accuracy", of)
            if group.mean("overlap", of) <= overlap and values and not finite_mean(values) <= finite_mean(accuracies):
                best, accuracies = name, values
        return best, accuracies

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        document = {
            "format": FORMAT,
            **{key: value for key, value in vars(self).items() if key != "groups"},
            "groups": {
                name: {
                    "is_generated": group.is_generated,
                    "copies": group.copies,
                    "means": {measure: group.mean(measure) for measure in MEASURES},
                    "networks": group.rows,
                    **({"compared": _summary(self.compared(name))} if group.is_generated else {}),
                }
                for name, group in self.groups.items()
            },
        }
        found: dict[str, Any] = json_value(document)
        return found


def _summary(compared: Comparison) -> dict[str, Any]:
    return {"gain": compared.gain, "controls": compared.controls, "to_best": compared.to_best}

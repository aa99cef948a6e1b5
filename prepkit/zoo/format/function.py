"""What zoo.json says of the function of its instances: how they are run, and whether running them proved it.

Importers write it. Until `prepkit zoo verify --rerun` ran instances and found what is stored, it is `unverified`.

    "function": {"status": "verified",
                 "how_to_run": {"measure": "psnr", "activation": "sine", "w0": 30.0, "grid": "xy", ...},
                 "verified": {"measure": "psnr", "instances": 8, "largest_difference": 0.0004}}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from prepkit.support.reading import TABLE, Place, Reader, between, choice, list_of, or_null, read, whole
from prepkit.support.text import Brief

ACCURACY, PSNR = "accuracy", "psnr"
UNVERIFIED, VERIFIED = "unverified", "verified"
NUMBERS = list_of(between(-1e6, 1e6), "a number for each channel")


@dataclass(frozen=True, kw_only=True, repr=False)
class HowToRun(Brief):
    """How the instances of a zoo are run. The architectures are built so; this says it to whoever builds them anew."""

    IGNORES_UNKNOWN: ClassVar[bool] = True

    measure: Annotated[str, choice(ACCURACY, PSNR), "column that a run is compared with"] = ACCURACY
    tolerance: Annotated[float | None, between(0), "largest difference of the measure at which a run agrees"] = None
    measured_by: Annotated[
        str | None, "`prepkit` if it measured what is stored, by this record; else the makers did"
    ] = None
    least: Annotated[float | None, "value that a run must reach too, where prepkit itself measured what is stored"] = (
        None
    )
    convention: Annotated[str | None, "name of the convention that the zoo follows"] = None
    activation: Annotated[str | None, "its name, or that of the column that tells it"] = None
    order: Annotated[str | None, "order of layers, pooling, residual sums and activations"] = None
    stride: Annotated[str | None, "strides of convolutions and pooling"] = None
    padding: Annotated[str | None, "padding of convolutions and pooling"] = None
    residual: Annotated[str | None, "what is added where"] = None
    w0: Annotated[float | None, between(0), "factor of the argument of each sine"] = None
    output_offset: Annotated[float | None, between(-1e6, 1e6), "number that is added to each output"] = None
    grid: Annotated[str | None, choice("xy", "ij"), "whether column (xy) or row (ij) is the first coordinate"] = None
    assumed: Annotated[str | None, "what no file tells, and was taken from the makers' program"] = None
    unverifiable: Annotated[str | None, "why no run can prove it"] = None
    mean: Annotated[tuple[float, ...] | None, NUMBERS, "mean that was taken from the pixels, of 0 to 1"] = None
    std: Annotated[tuple[float, ...] | None, NUMBERS, "number that they were then divided by"] = None


@dataclass(frozen=True, repr=False)
class Verified(Brief):
    """What was compared when instances were run."""

    IGNORES_UNKNOWN: ClassVar[bool] = True

    measure: Annotated[str, choice(ACCURACY, PSNR), "column that was compared"]
    instances: Annotated[int, whole(1), "number of instances that were run"]
    largest_difference: Annotated[float, between(0), "largest difference between what was stored and what was found"]

    def __str__(self) -> str:
        ran = "1 instance" if self.instances == 1 else f"{self.instances:,} instances"
        unit = " dB" if self.measure == PSNR else ""
        return f"{self.measure} of {ran}, largest difference {self.largest_difference:.4g}{unit}"


def _how_to_run(value: Any, place: Place) -> dict[str, Any]:
    """Check a record, and keep also those of its keys that this version does not know."""
    read(HowToRun, value, place)
    return dict(value)


@dataclass(frozen=True, repr=False)
class Function(Brief):
    """How the instances of a zoo are run, and whether that was verified.

    how_to_run: the record, of which `how` gives the keys that this version knows; None where nothing is known
    """

    IGNORES_UNKNOWN: ClassVar[bool] = True

    how_to_run: Annotated[Mapping[str, Any] | None, or_null(Reader(TABLE.words, _how_to_run)), "how to run"] = None
    verified: Verified | None = None

    @property
    def how(self) -> HowToRun:
        """The record's keys that this version knows."""
        return read(HowToRun, dict(self.how_to_run or {}), Place("function", ("how_to_run",)))

    @property
    def status(self) -> str:
        """Either `verified` or `unverified`."""
        return UNVERIFIED if self.verified is None else VERIFIED

    def __str__(self) -> str:
        if self.verified is not None:
            return f"{self.status}: {self.verified}"
        return f"{self.status}: {self.how.unverifiable}" if self.how.unverifiable else self.status

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form."""
        return {
            "status": self.status,
            "how_to_run": None if self.how_to_run is None else dict(self.how_to_run),
            "verified": None if self.verified is None else dict(vars(self.verified)),
        }

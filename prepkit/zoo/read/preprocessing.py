"""Preprocessing: the means and deviations that a zoo's PReps are normalised by, and the sum that names them.

    preprocessing = zoo.preprocessing                            # of `prepkit zoo normalise`; None if there is none
    normalised = preprocessing.forward(preps, class_ids)         # (x - mean) / deviation; padding stays 0
    preps = preprocessing.inverse(normalised, class_ids)         # the same up to rounding
    zoo.check_preprocessing(sha256)                              # of the preprocessing that a learner was trained with

The file `preprocessing-<hash>.safetensors` holds `<architecture>.mean` and `<architecture>.deviation` in float64, one
number for each cell or each slot of the layout, and one metadata key `prepkit` with canonical JSON.
Shapes: B instances, H x W the PRep, P values of an architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prepkit.errors import LayoutMismatch, ZooError, listed
from prepkit.prep.layout import Layout
from prepkit.support.files import sha256_of_file
from prepkit.support.json_values import canonical_json
from prepkit.support.text import Brief
from prepkit.zoo.format.manifest import Manifest, StoredPreprocessing
from prepkit.zoo.read.store import Store

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMAT = "prepkit-preprocessing/1"
STATISTICS = ("mean", "deviation")


@dataclass(frozen=True, repr=False)
class Normal(Brief):
    """The statistics of one architecture.

    class_id:  its ClassId; None for one that has none
    mean:      `[P]` float64
    deviation: `[P]` float64; 1 where all instances are equal, which are only shifted
    """

    class_id: int | None
    mean: np.ndarray
    deviation: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Preprocessing(Brief):
    """Means and deviations of a zoo's PReps.

    stored:  what zoo.json says of them
    normals: the statistics of each architecture that they were computed for
    """

    stored: StoredPreprocessing
    normals: Mapping[str, Normal]
    _tables: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """The sum of the file, which names the preprocessing: a learner keeps it and compares it."""
        return self.stored.sha256

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, without tensors on devices."""
        return {**self.__dict__, "_tables": {}}

    def forward(self, preps: Tensor, class_ids: Any = None) -> Tensor:
        """Return normalised PReps `[B, H, W]`: (x - mean) / deviation; padding stays as it is. Differentiable.

        class_ids: ClassIds `[B]`; not needed where all statistics are of one architecture
        returns values in float32, or in float64 if the PReps are
        raises LayoutMismatch for PReps that are too small, ZooError for an architecture without statistics
        """
        mean, deviation = self._of(preps, class_ids)
        return (preps.to(mean.dtype) - mean) / deviation

    def inverse(self, normalised: Tensor, class_ids: Any = None) -> Tensor:
        """Return the PReps `[B, H, W]` of normalised ones: x * deviation + mean. Differentiable."""
        mean, deviation = self._of(normalised, class_ids)
        return normalised.to(mean.dtype) * deviation + mean

    def _of(self, preps: Tensor, class_ids: Any) -> tuple[Tensor, Tensor]:
        """Return means and deviations that stand against PReps `[B, H, W]`."""
        import torch

        if preps.dim() != 3:
            raise LayoutMismatch(f"expected PReps [B, H, W], found {list(preps.shape)}.")
        shape = (preps.shape[1], preps.shape[2])
        rows = self._rows(class_ids, len(preps))
        key = (preps.device, torch.promote_types(preps.dtype, torch.float32), shape)
        if key not in self._tables:
            self._tables[key] = self._table(*key)
        tables = self._tables[key]
        if len(set(rows)) == 1:
            return tables[0][rows[0]], tables[1][rows[0]]
        places = torch.tensor(rows, dtype=torch.int64, device=preps.device)
        return tables[0].index_select(0, places), tables[1].index_select(0, places)

    def _rows(self, class_ids: Any, count: int) -> list[int]:
        """Return which statistics each instance needs, by their number."""
        names = list(self.normals)
        if class_ids is None:
            if len(names) > 1:
                raise ZooError(f"the preprocessing is of {listed(names)}; give the ClassIds of the PReps.")
            return [0] * max(count, 1)
        by_class_id = {normal.class_id: number for number, normal in enumerate(self.normals.values())}
        given = class_ids.tolist() if hasattr(class_ids, "tolist") else list(class_ids)
        if len(given) != count:
            raise LayoutMismatch(f"there are {count} PReps, but {len(given)} ClassIds.")
        unknown = sorted({class_id for class_id in given if class_id not in by_class_id})
        if unknown:
            raise ZooError(
                f"the preprocessing has no statistics of ClassId {unknown[0]}, of which there was no instance in "
                f"'{self.stored.split or 'the zoo'}'; it has those of {listed(names)}."
            )
        return [by_class_id[class_id] for class_id in given] or [0]

    def _table(self, device: torch.device, dtype: torch.dtype, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return means and deviations `[A, H, W]` of A architectures, 0 and 1 where PReps are padded."""
        import torch

        mean = np.zeros((len(self.normals), shape[0] * shape[1]))
        deviation = np.ones_like(mean)
        for number, (name, normal) in enumerate(self.normals.items()):
            if len(normal.mean) > mean.shape[1]:
                raise LayoutMismatch(
                    f"PReps of {shape[0]} x {shape[1]} are too small for {name}, which has {len(normal.mean):,} values."
                )
            mean[number, : len(normal.mean)] = normal.mean
            deviation[number, : len(normal.mean)] = normal.deviation
        tables = (torch.from_numpy(table).to(dtype).to(device) for table in (mean, deviation))
        first, second = (table.view(-1, *shape) for table in tables)
        return first, second


def file_content(per: str, split: str | None, normals: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Return the bytes of the file; equal statistics give equal bytes.

    normals: mean and deviation of each architecture, one number for each cell or slot
    """
    from safetensors.numpy import save

    arrays = {
        f"{name}.{kind}": array for name, pair in normals.items() for kind, array in zip(STATISTICS, pair, strict=True)
    }
    header = {"format": FORMAT, "per": per, "split": split, "architectures": list(normals)}
    content: bytes = save(arrays, {"prepkit": canonical_json(header)})
    return content


def preprocessing_of(store: Store) -> Preprocessing | None:
    """Return the preprocessing of an open zoo, or None.

    raises ZooError if its file is missing or damaged
    """
    stored = store.manifest.preprocessing
    if stored is None:
        return None
    file = store.file(stored.path)
    if not file.is_file() or sha256_of_file(file) != stored.sha256:
        raise ZooError(f"{file}: missing or damaged, it does not match the sha256 in the manifest. Fetch it again.")
    return read_preprocessing(file, store.manifest)


def read_preprocessing(file: Path, manifest: Manifest) -> Preprocessing:
    """Read the file of a zoo's preprocessing, whose sha256 the caller has compared or `verify` compares.

    raises ZooError naming the file and what is wrong
    """
    from safetensors import SafetensorError, safe_open

    stored = manifest.preprocessing
    assert stored is not None
    try:
        with safe_open(file, framework="numpy") as opened:
            header = json.loads((opened.metadata() or {}).get("prepkit", "null"))
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise ZooError(f"{file}: cannot be read ({error}). Fetch it again.") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ZooError(f"{file}: no {FORMAT}; it was written by a newer prepkit, or is another file.")
    known = {one.name: one for one in manifest.architectures}
    normals = {}
    for name in header.get("architectures", ()):
        pair = [arrays.get(f"{name}.{kind}") for kind in STATISTICS]
        if name not in known or any(array is None for array in pair):
            raise ZooError(f"{file}: its statistics of {name!r} are no architecture of the zoo, or not whole.")
        layout = known[name].layout
        mean, deviation = (_of_cells(array, stored.per, layout, f"{file}, {name}") for array in pair)
        if not (deviation > 0).all() or not np.isfinite(mean).all():
            raise ZooError(f"{file}, {name}: means are finite and deviations positive; found others.")
        normals[name] = Normal(known[name].class_id, mean, deviation)
    return Preprocessing(stored, normals)


def _of_cells(array: Any, per: str, layout: Layout, place: str) -> np.ndarray:
    """Return one number for each cell `[P]`."""
    expected = layout.total if per == "cell" else len(layout.slots)
    if array.shape != (expected,) or array.dtype != np.float64:
        raise ZooError(f"{place}: expected {expected:,} numbers in float64; found {list(array.shape)} {array.dtype}.")
    values: np.ndarray = array if per == "cell" else np.repeat(array, [slot.size for slot in layout.slots])
    return values

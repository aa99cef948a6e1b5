"""Adapters: the LoRA adapters of a zoo as pairs (A, B) by module, as products dW = s B A, and in canonical form.

    zoo = prepkit.open_zoo("adapters")
    adapter = zoo.adapters()["run_3"]
    pair = adapter.pairs["model.layers.0.self_attn.q_proj"]      # pair.A [r, in], pair.B [out, r], pair.scale
    adapter.products()                                            # dW [out, in] by module
    adapter.canonical().save("run_3")                             # the same dW; PEFT loads the folder

(A, B) and (G^-1 A, B G) are the same adapter for every invertible G. The canonical form is made of the thin SVD
U S V^T of dW: B = U sqrt(S / s) and A = sqrt(S / s) V^T, singular values descending, and in each column of U the
largest entry positive. It is unique where the singular values differ; those that are only rounding become zero.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prepkit.checkpoint.export import save_state_dict
from prepkit.errors import OutputError, ZooError
from prepkit.prep.file import PRep
from prepkit.support.files import check_writable, replacing, system_errors_as_output
from prepkit.support.progress import Advance
from prepkit.support.text import Brief
from prepkit.zoo.format.lora import (
    ADAPTER_CONFIG,
    CONFIG,
    DIFFUSERS_WEIGHTS,
    WEIGHTS,
    LoraConfig,
    PairNames,
    diffusers_config,
    pairs_in,
)

if TYPE_CHECKING:
    from torch import Tensor

TIE = 1e-6  # entries of a column that differ by less count as equally large when its sign is chosen


class Instances(Protocol):
    """What is needed of a zoo."""

    @property
    def name(self) -> str:
        """The zoo's name."""

    @property
    def table(self) -> Any:
        """The zoo's table."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True, repr=False)
class Pair(Brief):
    """The factors of one module.

    A:     `[r, in]`; of a convolution `[r, in, kh, kw]`
    B:     `[out, r]`; of a convolution `[out, r, 1, 1]`
    scale: s of dW = s B A
    """

    A: Tensor
    B: Tensor
    scale: float

    def product(self) -> Tensor:
        """Return dW = s B A `[out, in]` (`[out, in, kh, kw]`), in float32, or float64 if A or B is.

        The weight of an embedding, or of a layer that stores weights as [in, out] (`fan_in_fan_out`), changes by its
        transpose.
        """
        a, b = self.A.to(self._dtype()), self.B.to(self._dtype())
        return (self.scale * (b.flatten(1) @ a.flatten(1))).reshape(b.shape[0], *a.shape[1:])

    def canonical(self) -> Pair:
        """Return the pair of the thin SVD, which has the same product: see the top of this module."""
        import torch

        a, b = self.A.double().flatten(1), self.B.double().flatten(1)
        left, left_core = torch.linalg.qr(b)
        right, right_core = torch.linalg.qr(a.T)
        u, values, vh = torch.linalg.svd(self.scale * (left_core @ right_core.T), full_matrices=False)
        noise = values.max() * torch.finfo(values.dtype).eps * max(len(b), a.shape[1])
        root = torch.where(values > noise, values, 0.0).div(abs(self.scale) or 1.0).sqrt()
        u, v = left @ u, right @ vh.T
        signs = _signs(u)
        new_a, new_b = torch.zeros_like(a), torch.zeros_like(b)
        new_b[:, : len(root)] = u * signs * root
        new_a[: len(root)] = (v * signs * root).T * (-1.0 if self.scale < 0 else 1.0)
        dtype = self._dtype()
        return Pair(new_a.to(dtype).view(self.A.shape), new_b.to(dtype).view(self.B.shape), self.scale)

    def _dtype(self) -> Any:
        import torch

        return torch.promote_types(torch.promote_types(self.A.dtype, self.B.dtype), torch.float32)


def _signs(columns: Tensor) -> Tensor:
    """Return 1 or -1 for each column, which makes the first of its largest entries positive."""
    import torch

    sizes = columns.abs()
    first = (sizes >= sizes.max(dim=0).values * (1 - TIE)).to(torch.uint8).argmax(dim=0)
    return torch.where(columns.gather(0, first[None])[0] < 0, -1.0, 1.0).to(columns.dtype)


@dataclass(frozen=True, repr=False)
class Adapter(Brief):
    """One adapter.

    id:     its id in the zoo
    config: what its adapter_config.json says, and its text
    pairs:  the pair of each module, called as in the base model
    saved:  tensors of modules that the adapter replaces as a whole (`modules_to_save`), by their names in the file
    """

    id: str
    config: LoraConfig
    pairs: Mapping[str, Pair]
    saved: Mapping[str, Tensor]
    _names: Mapping[str, PairNames] = field(repr=False)

    @property
    def base_model(self) -> str | None:
        """The model that the adapter was trained on."""
        return self.config.base_model

    @property
    def task_type(self) -> str | None:
        """The kind of task, such as CAUSAL_LM."""
        return self.config.task_type

    def products(self) -> dict[str, Tensor]:
        """Return dW = s B A of each module; see `Pair.product`."""
        return {module: pair.product() for module, pair in self.pairs.items()}

    def canonical(self) -> Adapter:
        """Return the same adapter with pairs of the thin SVD: same products, config and scales."""
        return replace(self, pairs={module: pair.canonical() for module, pair in self.pairs.items()})

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors under the names that they have in files."""
        tensors = {}
        for module, pair in self.pairs.items():
            tensors[self._names[module].A] = pair.A
            tensors[self._names[module].B] = pair.B
        return {**tensors, **self.saved}

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write adapter_model.safetensors and the adapter_config.json that it came with, which PEFT loads.

        An adapter of diffusers has no config, and becomes pytorch_lora_weights.safetensors alone.
        folder: is made if it is missing, as are those above it
        raises OutputError if one of them exists and `overwrite` is false, or cannot be written
        """
        root = Path(folder)
        if root.exists() and not root.is_dir():
            raise OutputError(f"cannot write '{root}': it is a file; name a folder.")
        with system_errors_as_output(root):
            root.mkdir(parents=True, exist_ok=True)
        is_peft = bool(self.config.text)
        weights = WEIGHTS if is_peft else DIFFUSERS_WEIGHTS
        for name in (weights, CONFIG) if is_peft else (weights,):
            check_writable(root / name, overwrite=overwrite)
        save_state_dict(self.state_dict(), root / weights, overwrite=overwrite)
        if not is_peft:
            return
        with replacing(root / CONFIG, overwrite=overwrite) as temporary:
            temporary.write_bytes(self.config.text.encode())


class Adapters:
    """The adapters of a zoo or view, by index or id; each is read when it is asked for."""

    def __init__(self, zoo: Instances) -> None:
        self._zoo = zoo

    def __repr__(self) -> str:
        return f"<Adapters of {self._zoo!r}>"

    def __len__(self) -> int:
        return len(self._zoo)

    def __iter__(self) -> Iterator[Adapter]:
        return (self[index] for index in range(len(self)))

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        canonical: bool = False,
        overwrite: bool = False,
        progress: Advance | None = None,
    ) -> list[Path]:
        """Write each adapter into a folder of its own, `folder/id`, as `Adapter.save` does, and return these.

        canonical: write the pairs of the canonical form, which have the same products
        progress:  is called with 1 each time an adapter is written
        raises ZooError for an id that is no path below the folder, before anything is written, or an instance that is
        no adapter; OutputError if a file exists and `overwrite` is false, or cannot be written
        """
        root = Path(folder)
        places = [root / _relative(id_, self._zoo.name) for id_ in self._zoo.table["id"].to_pylist()]
        names = CONFIG, WEIGHTS, DIFFUSERS_WEIGHTS
        there = [] if overwrite else [place for place in places if any((place / name).exists() for name in names)]
        if there:
            raise OutputError(
                f"'{there[0]}' holds an adapter already; overwrite=True replaces it, or name a new folder."
            )
        for index, place in enumerate(places):
            adapter = self[index]
            (adapter.canonical() if canonical else adapter).save(place, overwrite=overwrite)
            if progress is not None:
                progress(1)
        return places

    def __getitem__(self, key: int | str) -> Adapter:
        """Return one adapter.

        raises IndexError, ZooError for an unknown id or an instance that is no adapter
        """
        prep, row = self._zoo[key]
        place = f"'{self._zoo.name}', instance '{row['id']}'"
        text = row.get(ADAPTER_CONFIG)
        tensors = prep.state_dict(prefix=False) if isinstance(prep, PRep) else {}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        config = (
            LoraConfig.parse(text, f"{place}, {ADAPTER_CONFIG}") if isinstance(text, str) else diffusers_config(shapes)
        )
        if config is None:
            raise ZooError(f"{place}: no adapter, it has no '{ADAPTER_CONFIG}'; `prepkit zoo import peft` keeps that.")
        names = pairs_in(shapes, config, place)
        pairs = {module: Pair(tensors[pair.A], tensors[pair.B], config.scale(module)) for module, pair in names.items()}
        paired = {name for pair in names.values() for name in (pair.A, pair.B)}
        saved = {name: tensor for name, tensor in tensors.items() if name not in paired}
        return Adapter(row["id"], config, pairs, saved, names)


def _relative(id_: str, zoo: str) -> Path:
    """Return an id as a path below a folder.

    raises ZooError for one that would lead out of it
    """
    parts = id_.replace("\\", "/").split("/")
    if any(part in ("", ".", "..") or ":" in part or not part.isprintable() for part in parts):
        raise ZooError(
            f"'{zoo}', instance {id_!r}: the id is no path below a folder. Save this one by itself: "
            "zoo.adapters()[id].save(FOLDER)."
        )
    return Path(*parts)

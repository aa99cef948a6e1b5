"""What the tests of checkpoint share."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from prepkit.checkpoint.load import load_checkpoint
from prepkit.errors import CheckpointError, UnsafeCheckpoint

MEGABYTE = 1 << 20


def weights(scale: float = 1.0) -> dict[str, Tensor]:
    """A small state dict with values, shapes and dtypes that differ from each other."""
    return {
        "conv.weight": torch.arange(24.0).reshape(2, 3, 4) * scale,
        "conv.bias": torch.tensor([0.5, -1.5], dtype=torch.float16) * scale,
        "norm.num_batches_tracked": torch.tensor(7),
        "head.weight": torch.linspace(-1, 1, 6, dtype=torch.bfloat16).reshape(3, 2) * scale,
    }


def save_zip(value: object, path: Path) -> None:
    torch.save(value, path)


def save_legacy(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_index(tensors: Mapping[str, Tensor], path: Path, shards: int = 2) -> None:
    """An index at `path` and its shards beside it, each with every second (third, ...) tensor."""
    places = {name: f"part-{number % shards}.safetensors" for number, name in enumerate(tensors)}
    for shard in sorted(set(places.values())):
        save_file({name: tensors[name] for name in tensors if places[name] == shard}, path.parent / shard)
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def save_torch_index(tensors: Mapping[str, Tensor], path: Path) -> None:
    """An index of parts that torch.save wrote, as transformers once saved large models."""
    first, *others = tensors
    torch.save({first: tensors[first]}, path.parent / "part-0.bin")
    torch.save({name: tensors[name] for name in others}, path.parent / "part-1.bin")
    places = {name: f"part-{int(name != first)}.bin" for name in tensors}
    path.write_text(json.dumps({"weight_map": places}))


SAVERS: dict[str, Callable[[Any, Path], None]] = {
    "torch zip": save_zip,
    "torch legacy": save_legacy,
    "safetensors": save_file,
    "safetensors index": save_index,
    "torch index": save_torch_index,
}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].device.type == "cpu"
        assert torch.equal(found[name], tensor), name


def refusal(path: Path, key: str | None = None) -> str:
    """The message with which a file is refused; it always names the file."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, key)
    assert str(path) in str(caught.value)
    return str(caught.value)


def unsafe(path: Path) -> str:
    message = refusal(path)
    with pytest.raises(UnsafeCheckpoint):
        load_checkpoint(path)
    return message


def saved(value: object, folder: Path, name: str = "model.pt") -> Path:
    torch.save(value, folder / name)
    return folder / name


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with members changed and sums right again, as an attacker would write it."""
    target = path.with_name("rewritten.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", compression) as copy:
        for name in source.namelist():
            copy.writestr(name, change(name.partition("/")[2], source.read(name)))
    return target


@dataclasses.dataclass
class Settings:
    """A class of the user's, which runs code when it is made; reading a checkpoint must not make it."""

    rate: float = 0.1

    def __setstate__(self, state: object) -> None:
        raise AssertionError("code of the file was run")

"""What torch does not tell of tensors in one call: names of dtypes, shared memory, and equality of every bit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prepkit.errors import LayoutMismatch, listed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

QUANTISED = "belongs to a quantised layer, which holds no plain tensors; take the network as it was before quantising"
BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}  # dtypes that a PRep can have


def dtype_name(dtype: torch.dtype) -> str:
    """Return `float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """Return torch.float32 for `float32`."""
    import torch

    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise LayoutMismatch(f"'{name}' is not a dtype; use one of {listed(BITS)}.")
    return dtype


def holds_exactly(dtype: str, values: str) -> bool:
    """Return whether a dtype holds all values of another one exactly, as float32 those of float16."""
    import torch

    return torch.promote_types(torch_dtype(values), torch_dtype(dtype)) == torch_dtype(dtype)


def is_float8(tensor: Tensor) -> bool:
    """Whether a tensor is in one of torch's 8-bit floating-point dtypes."""
    return tensor.is_floating_point() and tensor.element_size() == 1


def as_tensor(value: object, name: str) -> Tensor:
    """Return a tensor as it is, and an array of numpy as a tensor that shares its memory where torch can do that.

    name: names the value in errors
    raises LayoutMismatch for anything else
    """
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, np.ndarray):
        what = f", and {QUANTISED}" if "_packed_params" in name else ", not a tensor; leave it out"
        raise LayoutMismatch(f"'{name}' is a {type(value).__name__}{what}.")
    native = np.ascontiguousarray(value, value.dtype.newbyteorder("=")).reshape(value.shape)
    try:
        return torch.from_numpy(native) if native.flags.writeable else torch.tensor(native)
    except TypeError:
        raise LayoutMismatch(f"'{name}' is an array of {value.dtype}, which no tensor can hold.") from None


def storage_identity(tensor: Tensor) -> object:
    """Return a key that is equal for tensors that share their memory (tied), and unique where there is no memory."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors share their memory or agree in every bit."""
    return storage_identity(a) == storage_identity(b) or same_bits(a, b)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit: NaN equals itself, and -0 differs from 0."""
    import torch

    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(words), b.contiguous().view(words))


def module_versions(state: object) -> dict[str, int]:
    """Return the version of each module that a state dict notes in its `_metadata`, as `state_dict()` makes it.

    Some modules ask for theirs when they load, such as torchvision's MNASNet. Empty where there is no sound note.
    """
    metadata = getattr(state, "_metadata", None)
    if not isinstance(metadata, Mapping):
        return {}
    versions = {name: entry.get("version") for name, entry in metadata.items() if isinstance(entry, Mapping)}
    return {name: version for name, version in versions.items() if type(name) is str and type(version) is int}


def with_versions(tensors: dict[str, Tensor], versions: Mapping[str, int]) -> dict[str, Tensor]:
    """Return tensors as a state dict that notes versions of modules, which are read when it is loaded."""
    if not versions:
        return tensors
    state = OrderedDict(tensors)
    state._metadata = {name: {"version": version} for name, version in versions.items()}  # type: ignore[attr-defined]
    return state


def modules_of(names: Iterable[str]) -> list[str]:
    """Return the names of all modules that hold tensors of these names, directly or below; "" is the network."""
    modules = {""}
    for name in names:
        parts = name.split(".")[:-1]
        modules |= {".".join(parts[: count + 1]) for count in range(len(parts))}
    return sorted(modules)

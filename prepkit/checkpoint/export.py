"""Writing a plain state dict, which torch.load or safetensors can read without prepkit."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.errors import OutputError
from prepkit.support.files import check_writable, replacing
from prepkit.tensors import storage_identity

if TYPE_CHECKING:
    from torch import Tensor


def save_state_dict(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write named tensors whole or not at all. The suffix gives the format: .pt, .pth or .safetensors.

    Tied tensors stay tied in .pt, which also keeps the versions of modules that a network's `state_dict()` notes.
    The safetensors format has no ties, so there each name gets its own copy.
    raises OutputError for another suffix, an existing file without `overwrite`, or one that cannot be written

    >>> prepkit.save_state_dict(torch.nn.Linear(2, 1).state_dict(), "model.safetensors")
    """
    target = Path(path)
    write = writer_for(target)
    check_writable(target, overwrite=overwrite)
    owned = _owned(tensors)
    with replacing(target, overwrite=overwrite) as temporary:
        write(owned, temporary)


def writer_for(path: Path) -> Callable[[dict[str, Tensor], Path], None]:
    """Return the function that writes the format which a file's suffix names.

    raises OutputError for a suffix that names no format
    """
    try:
        return WRITERS[path.suffix.lower()]
    except KeyError:
        raise OutputError(
            f"'{path}': the suffix says the format of a model; use one of {', '.join(WRITERS)}."
        ) from None


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy each tensor into memory of its own, since a view would take its whole PRep into the file. Ties stay ties."""
    copies: dict[object, Tensor] = {}
    owned: dict[str, Tensor] = OrderedDict() if hasattr(tensors, "_metadata") else {}
    for name, tensor in tensors.items():
        identity = storage_identity(tensor)
        if identity not in copies:
            copies[identity] = tensor.detach().cpu().contiguous().clone()
        owned[name] = copies[identity]
    if hasattr(tensors, "_metadata"):
        owned._metadata = tensors._metadata  # type: ignore[attr-defined]
    return owned


def _write_torch(tensors: dict[str, Tensor], path: Path) -> None:
    import torch

    with path.open("wb") as file:  # if torch gets a path, it writes its name into the file and hides why writing fails
        torch.save(tensors, file)


def _write_safetensors(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    seen: set[int] = set()
    untied = {}
    for name, tensor in tensors.items():
        untied[name] = tensor.clone() if id(tensor) in seen else tensor
        seen.add(id(tensor))
    save_file(untied, path, metadata={"format": "pt"})


WRITERS = {".pt": _write_torch, ".pth": _write_torch, ".safetensors": _write_safetensors}

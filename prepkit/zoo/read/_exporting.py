"""How `Zoo.export` writes one instance as a plain state dict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prepkit.checkpoint.export import save_state_dict, writer_for
from prepkit.errors import OutputError
from prepkit.support.files import check_writable

if TYPE_CHECKING:
    from torch import Tensor


def export(file: Path, read: Callable[[], dict[str, Tensor]], root: Path, *, overwrite: bool) -> dict[str, Tensor]:
    """Write what `read` gives, and return it.

    root: the zoo's folder
    raises OutputError for a file of another suffix, one inside the zoo, or one that cannot be written
    """
    writer_for(file)
    if file.resolve().is_relative_to(root.resolve()):
        raise OutputError(f"'{file}' lies in the zoo '{root}'; name a file outside it.")
    check_writable(file, overwrite=overwrite)
    tensors = read()
    save_state_dict(tensors, file, overwrite=overwrite)
    return tensors

"""Files that are no model, or a hostile or damaged one."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from cli_samples import NETS, save, trained, with_random_statistics
from safetensors.torch import save_file
from torch import Tensor


class Attack:
    """Unpickling this creates the file SENTINEL in the current folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("SENTINEL", "w"))


def save_bytes(content: bytes, name: str = "bad.pt") -> str:
    Path(name).write_bytes(content)
    return name


def half(suffix: str) -> str:
    name = f"bad{suffix}"
    (torch.save if suffix == ".pt" else save_file)({"w": torch.ones(1000)}, name)
    return save_bytes(Path(name).read_bytes()[:2000], name)


def zip_bomb() -> str:
    with zipfile.ZipFile("bad.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for member in ("data.pkl", "data/0", "version"):
            archive.writestr(f"bad/{member}", bytes(50_000_000))
    return "bad.pt"


def mismatched() -> str:
    state = dict(trained().state_dict())
    del state["linear.bias"]
    state["extra.weight"], state["conv.weight"] = torch.ones(2), torch.ones(4, 3, 3, 3)
    return save(state)


def folder_named(name: str) -> str:
    Path(name).mkdir()
    return name


def zoo_named(name: str) -> str:
    (Path(folder_named(name)) / "zoo.json").write_text("{}")
    return name


def net_state() -> dict[str, Tensor]:
    """The state dict of cli_nets.Net."""
    scope: dict[str, Any] = {}
    exec(NETS, scope)
    state: dict[str, Tensor] = with_random_statistics(scope["Net"]()).state_dict()
    return state


def quantised() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)

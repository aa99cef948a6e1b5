"""Networks to pack, their folds written out by hand, and files of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import prepkit

WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

DIGITS = "resnet8@digits"


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, shape and bits."""
    words = WORDS[a.element_size()]
    return (
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.reshape(-1).view(words), b.reshape(-1).view(words))
    )


def trained(name: str = DIGITS, seed: int = 0) -> nn.Module:
    """A network whose BatchNorms have random statistics: fresh ones hide every mistake."""
    torch.manual_seed(seed)
    network = prepkit.architecture(name).build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.num_batches_tracked.fill_(17)
    return network.eval()


def folded_by_hand(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """w gamma / sqrt(var + eps) and beta - mean gamma / sqrt(var + eps), in float64, in the order of the forward."""
    values = {name: tensor.double().numpy() for name, tensor in state.items()}

    def layer(conv: str, bn: str) -> dict[str, np.ndarray]:
        gain = values[f"{bn}.weight"] / np.sqrt(values[f"{bn}.running_var"] + 1e-5)
        return {
            f"{conv}.weight": values[f"{conv}.weight"] * gain[:, None, None, None],
            f"{conv}.bias": values[f"{bn}.bias"] - values[f"{bn}.running_mean"] * gain,
        }

    folded = layer("conv", "bn")
    for block in ("stages.0.0", "stages.1.0", "stages.2.0"):
        folded |= layer(f"{block}.conv1", f"{block}.bn1") | layer(f"{block}.conv2", f"{block}.bn2")
        if block != "stages.0.0":
            folded |= layer(f"{block}.shortcut.0", f"{block}.shortcut.1")
    return folded | {name: values[name] for name in ("linear.weight", "linear.bias")}


def saved(tensors: dict[str, Any], folder: Path, suffix: str = ".pt") -> Path:
    path = folder / f"model{suffix}"
    if suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path

# %% [markdown]
# # Import a published format: sine networks that draw pictures
# DWSNets published networks that draw one picture each. Here a few are fitted and saved in that layout. Running them
# against the pictures tells how they are to be run.

# %%
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

import prepkit

sizes, line = [2, 32, 32, 1], torch.linspace(-1, 1, 8)
places = torch.cartesian_prod(line, line).flip(1)  # [64, 2], row by row; the column is the first coordinate


def drawn(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the pixels `[64]` that a network draws, as its makers run it."""
    values = places
    for number in range(3):
        values = values @ tensors[f"seq.{number}.weight"].T + tensors[f"seq.{number}.bias"]
        values = torch.sin(30 * values) if number < 2 else values
    return values[:, 0] + 0.5


# %%
pictures, labels = load_digits().images / 16, load_digits().target
for index in range(6):
    torch.manual_seed(index)
    tensors = {}
    for number, (before, after) in enumerate(pairwise(sizes)):
        bound = 1 / 2 if number == 0 else (6 / before) ** 0.5 / 30
        tensors[f"seq.{number}.weight"] = torch.empty(after, before).uniform_(-bound, bound).requires_grad_()
        tensors[f"seq.{number}.bias"] = torch.zeros(after, requires_grad=True)
    picture = torch.tensor(np.round(255 * pictures[index]) / 255, dtype=torch.float32).view(-1)
    optimiser = torch.optim.Adam(tensors.values(), lr=2e-3)
    for _ in range(200):
        optimiser.zero_grad()
        (drawn(tensors) - picture).square().mean().backward()
        optimiser.step()
    folder = Path("inrs", f"mnist_png_training_{labels[index]}_{index}", "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    Path("png", "training", str(labels[index])).mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.detach() for name, tensor in tensors.items()}, folder / "model_final.pth")
    Image.fromarray(np.round(255 * pictures[index]).astype(np.uint8)).save(f"png/training/{labels[index]}/{index}.png")

# %%
prepkit.import_zoo("siren", "inrs", "sirens", data="png", license="mit")
zoo = prepkit.open_zoo("sirens")
print(zoo, zoo.table["psnr"].to_pylist())
figure, panels = plt.subplots(1, len(zoo), figsize=(7, 1.6), layout="constrained")
for index, panel in enumerate(panels):
    panel.imshow(drawn(zoo[index][0].tensors()).view(8, 8), cmap="gray")
    panel.set(title=f"{zoo.table['psnr'][index].as_py():.0f} dB", xticks=[], yticks=[])
figure.savefig("import_sirens.png", dpi=100)

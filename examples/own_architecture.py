# %% [markdown]
# # A zoo of an architecture of one's own
# Any network that Python can build has a name for prepkit, and BatchNorms of it are folded with proof.

# %%
import shutil

import torch
from torch import Tensor, nn

import prepkit
from prepkit.families.registry import architecture_from_callable
from prepkit.figures import draw_prep_grid, new_figure, save_figure


class Gated(nn.Module):
    """A network that no library knows: two branches, of which one gates the other."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.signal = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.gate = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.Sigmoid())
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[B, 10]` of images `[B, 1, 8, 8]`."""
        return self.head((self.signal(images) * self.gate(images)).mean((2, 3)))


# %%
gated = architecture_from_callable(f"{__name__}:Gated", (1, 8, 8), "gated@digits", {"width": 12})
print(gated, gated.layout)

# %%
shutil.rmtree("gated-zoo", ignore_errors=True)
with prepkit.ZooWriter("gated-zoo", width=64, license="mit") as writer:
    for seed in range(6):
        torch.manual_seed(seed)
        network = gated.build()
        network(torch.rand(32, 1, 8, 8))
        writer.add(network.state_dict(), architecture=gated, id=f"gated-{seed}", seed=seed)
zoo = prepkit.open_zoo("gated-zoo", trust_code=True)  # its builder is code of ours
print(zoo.network("gated-3"))
print(prepkit.symmetries(gated).permutation_spec()["head.weight"])

# %%
figure = new_figure(8, 2)
draw_prep_grid(figure, {gated.name: [(row["id"], prep) for prep, row in zoo]}, columns=6)
save_figure(figure, "own_architecture.png", overwrite=True)

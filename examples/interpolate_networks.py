# %% [markdown]
# # Interpolate networks
# 132 ResNet8 began with the same weights and learned handwritten digits for 1 to 80 epochs. A space is trained on 100
# of them. Lines then lead from weak networks to strong ones, none of which the space has seen: through its embeddings,
# and straight from weight to weight. All takes four minutes on a laptop, and what is finished is not made again.
#
# `python examples/interpolate_networks.py 2 3 1` tries it in seconds: 2 steps of the space, 3 networks in each split,
# at most 1 epoch. Its picture shows nothing.

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import netspace
import prepkit
from prepkit.support.progress import SHARE, ProgressBar

numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]  # a notebook has other words there, and no numbers
steps, instances, epochs = [*numbers, None, None, None][:3]  # without numbers, the spec and the recipe decide
folder = Path("-".join(["digits-shared", *map(str, numbers)]))

# %%
if not Path(folder, "zoo", "zoo.json").exists():
    with ProgressBar("training networks", SHARE) as bar:
        prepkit.train_zoo("digits_shared", folder / "zoo", instances=instances, epochs=epochs, progress=bar)
changes = {"training.steps": steps or 500, "batch.instances": min(8, instances or 8)}
recipe = netspace.load_recipe("digits_shared", changes)
resume = Path(folder, "run", "run.json").exists()  # a run that was stopped goes on
with ProgressBar("training the space", "step") as bar:
    run = netspace.train(recipe, folder / "zoo", folder / "run", resume=resume, progress=bar)

# %%
zoo = prepkit.open_zoo(folder / "zoo")
unseen = zoo.split("test").table.sort_by("accuracy").to_pylist()
pairs = list(zip(unseen[: len(unseen) // 2], unseen[::-1], strict=False))[:4]  # the weakest with the strongest
first, second = ([end["id"] for end in ends] for ends in zip(*pairs, strict=True))
lines = netspace.interpolate(run, zoo, first, second, steps=21)
shares = 100 * torch.tensor(lines.gammas)

# %%
plt.rcParams["font.size"] = 12
figure, panels = plt.subplots(2, 2, figsize=(6, 5.5), sharex=True, sharey=True, layout="constrained")
drawn = zip(pairs, 100 * lines.values("embedding"), 100 * lines.values("weights"), panels.flat, strict=False)
for (weak, strong), embeddings, weights, panel in drawn:
    panel.plot(shares, weights, color="tab:orange", label="weights")
    panel.plot(shares, embeddings, color="tab:blue", label="embeddings")
    panel.plot([0, 100], weights[[0, -1]], "o", color="black", clip_on=False, label="the two networks")
    panel.set(ylim=(0, 102), title=f"{weak['epoch']} to {strong['epoch']} epochs")
figure.supxlabel("share of the second network, %")
figure.supylabel("accuracy on test images, %")
figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
figure.savefig("interpolate_networks.png", dpi=100)

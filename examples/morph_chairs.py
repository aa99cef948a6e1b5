# %% [markdown]
# # Morph chairs
# 160 networks are chairs: each tells how far any point is from a chair of its own. A space is trained on 128 of them.
# Two of these chairs then turn into others, in two ways: through the space, and straight from weight to weight, where
# chairs fall apart, although all networks began as one. All takes eight minutes, and nothing is made twice.
#
# `python examples/morph_chairs.py 2 3 1 8` tries it in seconds: 2 steps of the space, 3 networks in each split, at most
# 1 epoch, and a grid of 8 points along each axis. Its picture shows nothing.

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import netspace
import prepkit
from prepkit.figures import mesh_figure, save_figure
from prepkit.support.progress import SHARE, ProgressBar
from prepkit.tasks.distance_grid import grid_points, surface

numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]  # a notebook has other words there, and no numbers
steps, instances, epochs, points = [*numbers, None, None, None, None][:4]  # without numbers, spec and recipe decide
folder = Path("-".join(["chairs-fitted", *map(str, numbers)]))

# %%
if not Path(folder, "zoo", "zoo.json").exists():
    with ProgressBar("training networks", SHARE) as bar:
        prepkit.train_zoo("chairs_fitted", folder / "zoo", instances=instances, epochs=epochs, progress=bar)
changes = {"training.steps": steps or 2000, "batch.instances": min(16, instances or 16)}
recipe = netspace.load_recipe("chairs_fitted", changes)
resume = Path(folder, "run", "run.json").exists()  # a run that was stopped goes on
with ProgressBar("training the space", "step") as bar:
    run = netspace.train(recipe, folder / "zoo", folder / "run", resume=resume, progress=bar)

# %%
space, chairs = run.space(), prepkit.open_zoo(folder / "zoo").split("train")
network, grid = run.registry.by_class_id(0), grid_points(points or 48)


def meshes(preps: torch.Tensor) -> list:
    """Return the surfaces of networks `[N, H, W]`: where the distance is 0."""
    distances = prepkit.run_instances(network, preps, grid)  # [N, grid points, 1]
    return [(surface(cells), "") for cells in distances.view(-1, *3 * [points or 48])]


# %%
rows, gammas = [], torch.linspace(0, 1, 6)
with torch.no_grad():
    for start, end in ((4, 29), (33, 27)):
        both = torch.stack([chairs[row % len(chairs)][0].values for row in (start, end)])  # [2, H, W]
        aligned = space.align(both)  # their hidden units stand in the same order, and they compute what they did
        embeddings = space.encoder(aligned)  # [2, E]
        between = netspace.predict(space, torch.lerp(*embeddings, gammas[:, None]), run.registry)
        rows.append(("embeddings", meshes(between.preps)))
        rows.append(("weights", meshes(torch.lerp(*aligned, gammas[:, None, None]))))
plt.rcParams["font.size"] = 16
figure = mesh_figure(rows, [f"{100 * gamma:.0f} %" for gamma in gammas], reach=(0.7, 0.7, 0.95))
save_figure(figure, "morph_chairs.png", overwrite=True)

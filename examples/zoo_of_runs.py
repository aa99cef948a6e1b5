# %% [markdown]
# # A zoo of a folder of runs
# Eight networks are trained in plain PyTorch, as a script would, and saved after each epoch under one name each. Their
# paths and a file beside them say what they are.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import prepkit

pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
images = (pixels.float() / 16).view(-1, 1, 8, 8)
for run in range(8):
    torch.manual_seed(run)
    network = prepkit.architecture("vanilla_cnn@digits").build()
    rate, lines = 0.03 * (run + 1), []
    optimiser = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    for epoch in range(1, 7):
        for batch in torch.randperm(1200).split(100):
            optimiser.zero_grad()
            cross_entropy(network(images[batch]), labels[batch]).backward()
            optimiser.step()
        accuracy = (network(images[1200:]).argmax(1) == labels[1200:]).float().mean().item()
        lines.append({"epoch": epoch, "accuracy": accuracy, "learning_rate": rate})
        folder = Path("runs", f"run_{run}", f"checkpoint_{epoch:03d}")
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), folder / "weights.pt")
    Path("runs", f"run_{run}", "log.json").write_text(json.dumps(lines))

# %%
pattern, on = "{run}/checkpoint_{epoch:int}/weights.pt", {"epoch": "epoch"}
prepkit.import_zoo("tree", "runs", "zoo-of-runs", pattern=pattern, table=["{run}/log.json"], on=on, license="mit")
zoo = prepkit.open_zoo("zoo-of-runs")
print(zoo)

# %%
axes = plt.figure(figsize=(6, 4), layout="constrained").add_subplot()
for run, epochs in zoo.runs().items():
    axes.plot(epochs.table["epoch"], epochs.table["accuracy"], label=run)
axes.set(xlabel="epoch", ylabel="accuracy", title="Eight runs of one zoo")
axes.figure.savefig("zoo_of_runs.png", dpi=100)

# %% [markdown]
# # A zoo on data of one's own
# A folder of images and a spec of twenty lines are a task. The networks are trained together, and the zoo says how.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import prepkit

generator = np.random.default_rng(0)
for part, count in (("train", 40), ("test", 20)):
    for angle in range(0, 180, 18):  # stripes of ten directions are ten classes
        folder = Path("stripes", part, f"{angle:03d}_degrees")
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            y, x = np.mgrid[:8, :8]
            across = x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))
            pixels = 90 + 60 * np.sin(1.6 * across + generator.uniform(0, 2 * np.pi)) + generator.normal(0, 25, (8, 8))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")

# %%
Path("stripes.toml").write_text("""
name = "stripes"
description = "Small networks that tell the direction of stripes."
license = "mit"
width = 64
architectures = ["resnet8@digits"]
[task]
kind = "images"
dataset = "folder"
mean = [0.35]
std = [0.2]
split = {seed = 0, test = "test"}
[instances]
"resnet8@digits" = {train = 24, test = 8}
[training]
optimizer = "sgd"
learning_rate = {low = 1e-4, high = 0.1, scale = "log"}
momentum = 0.9
batch_size = 50
epochs = {low = 1, high = 6}
""")
prepkit.train_zoo("stripes.toml", "stripes-zoo", data="stripes")
zoo = prepkit.open_zoo("stripes-zoo")
print(zoo, zoo.table.column_names)

# %%
axes = plt.figure(figsize=(6, 4), layout="constrained").add_subplot()
points = axes.scatter(zoo.table["learning_rate"], zoo.table["accuracy"], c=zoo.table["epoch"])
axes.set(xscale="log", xlabel="learning rate", ylabel="accuracy on test images", title="32 networks on data of mine")
axes.figure.colorbar(points, label="epochs")
axes.figure.savefig("own_task.png", dpi=100)

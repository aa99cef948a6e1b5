"""Runs of spaces that were never trained, which exploring and experiments can use and which take a second."""

from pathlib import Path

import torch

import prepkit
from netspace.data import task_of
from netspace.experiments._subject import Subject
from netspace.recipe import load_recipe
from netspace.run.run import Run, State


def untrained_run(path: Path, name: str, zoo: Path, class_id: int | None = None, **changes) -> Run:
    """Return a run of a built-in recipe on a small zoo; its space predicts `class_id` for all, if it is given."""
    changes = {"network.initialisation": "small_zoos", "network.width": prepkit.open_zoo(zoo).shape.width, **changes}
    recipe = load_recipe(name, changes)
    network = recipe.network
    run = Run.create(path, recipe, prepkit.open_zoo(zoo, width=network.width, height=network.height), zoo)
    space = run.new_space()
    if class_id is not None:
        with torch.no_grad():
            space.classifier.linear.bias[class_id] = 1e3
    # An untrained encoder gives all PReps nearly the same embedding.
    with torch.no_grad():
        space.encoder.conv4.weight.mul_(100)
        space.encoder.conv1.weight.mul_(10)
        space.decoder.conv1.weight.mul_(10)
    run.save("best", State(7, space.state_dict(), {"scores": {"score": 0.0}}))
    return run


def subject_of(run: Run, folder: Path, **settings) -> Subject:
    """Return the Subject of a run on the CPU; pictures go into the folder."""
    zoo, cpu = run.open_zoo(), torch.device("cpu")
    return Subject(**{"run": run, "zoo": zoo, "task": task_of(zoo, cpu), "device": cpu, "folder": folder, **settings})

"""Write one process's losses and gradients of a joint batch to a file; test_parallel.py starts two such processes."""

import sys
from pathlib import Path

import torch

import prepkit
from netspace.data import Data
from netspace.recipe import load_recipe
from netspace.run.run import new_space
from netspace.training._objective import Objective
from prepkit.support.processes import Ranks


def main(name: str, zoo_path: str, out: str, changes: str) -> None:
    torch.set_num_threads(1)
    recipe = load_recipe(name, eval(changes))
    ranks = Ranks.join(torch.device("cpu"))
    zoo = prepkit.open_zoo(zoo_path, width=recipe.network.width, height=recipe.network.height)
    data = Data(recipe, zoo, torch.device("cpu"))
    space = new_space(recipe)
    losses = Objective(space, recipe, data.registry, data.teacher, ranks)(next(data.batches(0)))
    losses.total.backward()
    ranks.add_gradients(space.parameters())
    parts = {key: ranks.sum(part.clone()) for key, part in losses.parts.items()}
    gradients = {key: parameter.grad for key, parameter in space.named_parameters()}
    torch.save({"parts": parts, "gradients": gradients}, Path(out) / f"{ranks.rank}-of-{ranks.size}.pt")
    ranks.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs that experiments are made on."""

import pytest
import torch
from small_zoos import SMALL
from untrained import subject_of, untrained_run

import prepkit
from netspace.recipe import load_recipe
from netspace.run.run import Run, State


@pytest.fixture
def run(tmp_path, small_zoo):
    return untrained_run(tmp_path / "run", "digits_single", small_zoo("digits_single"))


@pytest.fixture
def ready(tmp_path, small_zoo):
    """The subject of a run of an untrained space, with an empty folder for pictures.

    path:   of another zoo than the small one of the recipe's name
    change: is given the space, to change it, and the zoo
    """

    def made(name, path=None, change=lambda space, zoo: None):
        recipe = load_recipe(name, SMALL[name])
        path = small_zoo(name) if path is None else path
        zoo = prepkit.open_zoo(path, width=recipe.network.width, height=recipe.network.height)
        run = Run.create(tmp_path / "run", recipe, zoo, path)
        space = run.new_space()
        with torch.no_grad():
            space.decoder.scale.mul_(30)
            change(space, zoo)
        run.save("best", State(1, space.state_dict(), {"scores": {}}))
        folder = tmp_path / "pictures"
        folder.mkdir()
        return subject_of(run, folder)

    return made

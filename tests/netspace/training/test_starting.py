"""Which start a training takes: the recipe's, or the centroid where the zoo says that its instances share starts."""

import numpy as np
import pytest
import torch
from small_zoos import SMALL, digits_zoo

import netspace
import prepkit
from netspace.recipe import RecipeError, load_recipe
from netspace.run.run import RunError
from netspace.training._starting import initialisation_of

pytestmark = pytest.mark.usefixtures("one_thread")
ONE = {"resnet8@digits": {"train": 3, "validation": 1}}
TWO = {"lenet_like@digits": {"train": 2, "validation": 1}, "resnet14@digits": {"train": 2, "validation": 1}}


def started(tmp_path, name, counts, named=None, steps=1):
    """A run on a zoo with shared starts, whose weights are those of its own start, as the learning rate is 0."""
    shape = {"single": True, "teacher": False} if name == "digits_single" else {"height": 88}
    zoo, out = tmp_path / "zoo", tmp_path / "run"
    if not zoo.exists():
        digits_zoo(zoo, counts, columns={"start": "shared 0"}, **shape)
    changes = {"optimizer.learning_rate": 0.0, "training.steps": steps, "network.initialisation": named}
    return netspace.train(load_recipe(name, {**SMALL[name], **changes}), zoo, out, device="cpu", resume=out.exists())


@pytest.mark.parametrize(
    ("name", "counts"), [("digits_multi", TWO), pytest.param("digits_single", ONE, marks=pytest.mark.slow)]
)
def test_a_zoo_with_shared_starts_is_learnt_about_its_centroid(tmp_path, name, counts):
    run = started(tmp_path, name, counts)
    assert run.record["initialisation"] == "from_centroid"
    assert run.shares_starts
    assert run.recipe.network.initialisation is None
    train = run.open_zoo().split("train")
    rows = [row.numpy().astype(np.float64).ravel() for row in train.preps()]
    totals = [run.registry.by_class_id(class_id).layout.total for class_id in train.class_ids().tolist()]
    mean = [
        np.mean([row[cell] for row, total in zip(rows, totals, strict=True) if cell < total])
        for cell in range(max(totals))
    ]
    bias = run.space().decoder.bias.detach().numpy().ravel()
    np.testing.assert_allclose(bias[: len(mean)], mean, rtol=1e-6, atol=1e-6)
    assert not bias[len(mean) :].any()
    assert "Start `from_centroid`" in (run.path / "README.md").read_text()
    # The same recipe goes on, also where it names what the zoo chose; another start is another training.
    again = started(tmp_path, name, counts, "from_centroid", steps=2)
    assert again.facts("latest")["step"] == 2
    with pytest.raises(RunError, match="initialisation was 'from_centroid', is 'paper'"):
        started(tmp_path, name, counts, "paper", steps=2)


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        (None, "paper"),
        (["own", "own", "own"], "paper"),
        (["shared 0", "own", "own"], "paper"),
        (["shared 0", None, "own"], "paper"),
        (["shared 0", "shared 1", "own"], "from_centroid"),  # the last instance is for validation
        (["fitted", "fitted", "fitted"], "from_centroid"),
    ],
)
def test_the_zoo_chooses_only_where_the_recipe_names_no_start(tmp_path, starts, expected):
    with prepkit.ZooWriter(tmp_path / "zoo", width=64) as writer:
        for row, split in enumerate(("train", "train", "validation")):
            columns = {} if starts is None else {"start": starts[row]}
            writer.add({"weight": torch.full((4,), float(row))}, id=str(row), split=split, **columns)
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    assert initialisation_of(load_recipe("digits_single", {"network.initialisation": None}), zoo) == expected
    assert initialisation_of(load_recipe("digits_single"), zoo) == "small_zoos"


def test_one_instance_is_no_start_for_several_architectures():
    with pytest.raises(RecipeError, match="use 'from_centroid', 'small_zoos' or 'paper' in 'multi'"):
        load_recipe("digits_multi", {"network.initialisation": "from_preps"})
    assert load_recipe("digits_multi", {"network.initialisation": "from_centroid"}).has_classes

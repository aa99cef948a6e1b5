"""Recipes: all built-in ones are sound and say what METHOD says; a wrong one is refused with its place."""

import math
import tomllib
from importlib import resources

import pytest

import prepkit
from netspace.recipe import OptimiserSettings, Recipe, RecipeError, load_recipe, recipe_names, recipe_of
from netspace.run.run import new_space
from netspace.training.memory import num_weights


@pytest.mark.parametrize("name", recipe_names())
def test_every_built_in_recipe_fits_its_spec_and_can_be_built(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    spec = prepkit.load_spec(recipe.zoo)
    assert spec.architectures == recipe.architectures
    largest = max(prepkit.architecture(one).layout.total for one in recipe.architectures)
    assert recipe.network.height * recipe.network.width >= largest
    assert num_weights(recipe) > 0
    assert recipe_of(recipe.to_dict(), "again") == recipe


def test_names():
    assert recipe_names() == sorted(
        [
            f"{data}_{setting}"
            for data in ("cifar10", "tiny_imagenet", "digits")
            for setting in ("single", "multi", "unseen")
        ]
        + ["chairs", "chairs_mini", "digits_multi_identity"]
        + ["digits_single_weights", "digits_multi_no_interpolation", "digits_multi_no_scale"]
    )


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("cifar10_single", "network.height", 8),
        ("tiny_imagenet_single", "network.height", 16),
        ("cifar10_multi", "network.height", 88),
        ("cifar10_multi", "network.width", 10_000),
        ("cifar10_multi", "network.embedding_size", 4096),
        ("cifar10_multi", "network.columns", 2048),
        ("cifar10_single", "batch.instances", 8),
        ("cifar10_multi", "batch.instances", 2),
        ("cifar10_unseen", "batch.instances", 2),
        ("chairs", "batch.instances", 4),
        ("chairs", "batch.samples", 50_000),
        ("cifar10_multi", "batch.samples", 128),
        ("cifar10_multi", "loss.temperature", 4.0),
        ("cifar10_multi", "loss.alpha", 0.9),
        ("cifar10_multi", "optimiser.learning_rate", 1e-4),
        ("cifar10_multi", "optimiser.schedule", "constant"),
        ("chairs", "training.stop_at", 0.8),
        ("cifar10_multi", "network.initialisation", "paper"),
        ("cifar10_multi", "training.validate_every", 313),
        ("tiny_imagenet_multi", "training.validate_every", 625),
    ],
)
def test_values_of_the_paper(name, key, value):
    found = load_recipe(name)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def document(**changes):
    text = resources.files("netspace.recipes").joinpath("digits_multi.toml").read_text()
    return {**tomllib.loads(text), **changes}


MISTAKES = {
    "loss.weights: setting 'multi' has a teacher": {"loss": {"weights": True}},
    "unknown key 'steps'.*known are": {"steps": 3},
    "expected a table": {"batch": 3},
    "'name' is missing": None,
    "setting: 'mutli' is none of.*Did you mean 'multi'": {"setting": "mutli"},
    "needs at least 2": {"architectures": ["lenet_like@digits"]},
    "expected a list of names": {"architectures": "lenet_like@digits"},
    "expected a whole number; found 2.5": {"batch": {"instances": 2.5, "samples": 8}},
    "expected a whole number; found True": {"batch": {"instances": True, "samples": 8}},
    "'samples' is missing": {"batch": {"instances": 2}},
    "batch.instances: 0 is out of range": {"batch": {"instances": 0, "samples": 8}},
    "boundary_share: 1.5 is out of range": {"batch": {"instances": 2, "samples": 8, "boundary_share": 1.5}},
    "an even number; found 3": {"batch": {"instances": 3, "samples": 8, "boundary_share": 0.5}},
    "learning_rate: nan is out of range": {"optimiser": {"learning_rate": math.nan}},
    "schedule: 'cosin' is none of": {"optimiser": {"schedule": "cosin"}},
    "stop_at: is for the setting 'sdf'": {"training": {"steps": 1, "validate_every": 1, "stop_at": 0.5}},
    "precision: 'fp16' is none of": {"training": {"steps": 1, "validate_every": 1, "precision": "fp16"}},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_wrong_recipe_is_refused_with_its_place(message):
    changes = MISTAKES[message]
    wrong = document(**changes) if changes else {key: value for key, value in document().items() if key != "name"}
    with pytest.raises(RecipeError, match=rf"^my\.toml.*{message}"):
        recipe_of(wrong, "my.toml")


def test_one_architecture_has_one_name():
    with pytest.raises(RecipeError, match="has exactly 1; found 4"):
        recipe_of(document(setting="single", batch={"instances": 2, "samples": 8}), "my.toml")


def test_files_and_changes(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(resources.files("netspace.recipes").joinpath("digits_multi.toml").read_text())
    recipe = load_recipe(file, {"training.steps": 7, "optimiser.learning_rate": 1})
    assert isinstance(recipe, Recipe)
    assert recipe.training.steps == 7
    assert recipe.optimiser.learning_rate == 1.0
    with pytest.raises(RecipeError, match=r"unknown key 'stps'"):
        load_recipe(file, {"training.stps": 7})
    with pytest.raises(RecipeError, match="'name' is a value, not a table"):
        load_recipe(file, {"name.steps": 7})
    with pytest.raises(RecipeError, match=r"unknown recipe 'digits_mutli'.*Did you mean 'digits_multi'"):
        load_recipe("digits_mutli")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")
    file.write_text("a = = 1")
    with pytest.raises(RecipeError, match="not TOML"):
        load_recipe(file)


def test_learning_rates():
    settings = OptimiserSettings(1e-3, "cosine", constant_share=0.5, final_share=0.01, warmup_steps=10)
    rates = [settings.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-4 * step for step in range(1, 11)])
    assert rates[10:50] == [1e-3] * 40
    assert rates[75] == pytest.approx(1e-3 * (0.01 + 0.99 * 0.5))
    assert rates[99] == pytest.approx(1e-3 * (0.01 + 0.99 * (1 + math.cos(math.pi * 0.98)) / 2))
    assert OptimiserSettings(1e-4).rate(99, 100) == 1e-4


def test_a_start_is_the_seed_s_alone():
    import torch

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again = (new_space(load_recipe("digits_multi")).state_dict() for _ in range(2))
    other = new_space(load_recipe("digits_multi", {"training.seed": 1})).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["decoder.bias"], other["decoder.bias"])

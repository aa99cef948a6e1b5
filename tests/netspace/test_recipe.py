"""Recipes: all built-in ones are sound and say what METHOD says; a wrong one is refused with its place."""

import math
import tomllib
from importlib import resources

import pytest
from click.testing import CliRunner

import prepkit
from netspace.cli import main
from netspace.recipe import OptimizerSettings, Recipe, RecipeError, load_recipe, recipe_names, recipe_of
from netspace.run.run import new_space
from netspace.training.memory import num_weights
from prepkit.errors import FormerSpelling


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
        + ["chairs", "chairs_from_preps", "chairs_mini", "digits_multi_identity"]
        + ["digits_single_weights", "digits_multi_no_interpolation", "digits_multi_no_scale", "digits_multi_line"]
        + ["digits_shared", "digits_multi_shared", "chairs_fitted", "digits_single_strong"]
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
        ("cifar10_multi", "optimizer.learning_rate", 1e-4),
        ("cifar10_multi", "optimizer.schedule", "constant"),
        ("chairs", "training.stop_at", 0.8),
        ("cifar10_multi", "network.initialisation", "paper"),
        ("cifar10_single", "training.validate_every", 20 * 313),
        ("cifar10_multi", "training.validate_every", 25 * 313),
        ("tiny_imagenet_single", "training.validate_every", 20 * 625),
        ("tiny_imagenet_unseen", "training.validate_every", 25 * 625),
        ("cifar10_multi", "batch.boundary_share", 0.0),
        ("cifar10_unseen", "batch.fixed_pairs", True),
        ("chairs", "training.steps", 4000 * 1000 // 4),
        ("chairs", "network.initialisation", "paper"),
    ],
)
def test_values_of_the_paper(name, key, value):
    found = load_recipe(name)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


PAPER = [f"{data}_{kind}" for data in ("cifar10", "tiny_imagenet") for kind in ("single", "multi", "unseen")]


@pytest.mark.parametrize("name", [*PAPER, "chairs"])
def test_the_papers_recipes_are_in_float32_with_a_constant_rate_and_no_clip(name):
    recipe = load_recipe(name)
    assert recipe.training.precision == "float32"
    assert recipe.optimizer == OptimizerSettings(learning_rate=1e-4)
    assert recipe.network.initialisation == "paper"
    assert recipe.training.steps % recipe.training.validate_every == 0


def test_what_chairs_deviate_by_is_a_recipe_of_its_own():
    chairs, other = load_recipe("chairs"), load_recipe("chairs_from_preps")
    named = {"name": "chairs_from_preps", "description": other.description}
    assert other == load_recipe("chairs", {**named, "network.initialisation": "from_preps", "optimizer.clip": 0.2})
    assert chairs != other


def document(**changes):
    text = resources.files("netspace.recipes").joinpath("digits_multi.toml").read_text()
    return {**tomllib.loads(text), **changes}


MISTAKES = {
    "loss.weights: is for 'single' and 'sdf' alone; leave it out in 'multi'": {"loss": {"weights": True}},
    "unknown key 'steps'.*known are": {"steps": 3},
    "expected a table": {"batch": 3},
    "'name' is missing; expected text": None,
    "setting: expected one of single, multi.*found 'mutli'.*Did you mean 'multi'": {"setting": "mutli"},
    "needs at least 2": {"architectures": ["lenet_like@digits"]},
    "needs at least 3": {
        "setting": "unseen",
        "architectures": ["lenet_like@digits", "resnet8@digits"],
        "batch": {"instances": 2, "samples": 8},
    },
    "architectures: expected a list; found 'lenet_like@digits'": {"architectures": "lenet_like@digits"},
    "batch.instances: expected a whole number of at least 1; found 2.5": {"batch": {"instances": 2.5, "samples": 8}},
    "batch.instances: expected a whole number of at least 1; found true": {"batch": {"instances": True, "samples": 8}},
    "batch: 'samples' is missing; expected a whole number of at least 1": {"batch": {"instances": 2}},
    "batch.instances: expected a whole number of at least 1; found 0": {"batch": {"instances": 0, "samples": 8}},
    "boundary_share: expected a number from 0 to 1; found 1.5": {
        "batch": {"instances": 2, "samples": 8, "boundary_share": 1.5}
    },
    "an even number; found 3": {"batch": {"instances": 3, "samples": 8, "boundary_share": 0.5}},
    "optimizer.learning_rate: expected a number of at least 0; found nan": {"optimizer": {"learning_rate": math.nan}},
    "schedule: expected one of constant, cosine; found 'cosin'. Did you mean 'cosine'": {
        "optimizer": {"schedule": "cosin"}
    },
    "line: is for 'multi' alone; leave it out in 'unseen'": {"loss": {"line": 1.0}, "setting": "unseen"},
    "line: no architecture lies between 2": {
        "loss": {"line": 1.0},
        "architectures": ["lenet_like@digits", "resnet14@digits"],
    },
    "line_instances: is for a loss.line above 0 alone": {"batch": {"instances": 2, "samples": 8, "line_instances": 2}},
    "line_from: is for a loss.line above 0 alone": {"loss": {"line_from": 0.1}},
    "fixed_pairs: is for 'unseen' alone": {"batch": {"instances": 2, "samples": 8, "fixed_pairs": True}},
    "stop_at: is for 'sdf' alone": {"training": {"steps": 1, "validate_every": 1, "stop_at": 0.5}},
    "precision: expected one of float32, bfloat16; found 'fp16'": {
        "training": {"steps": 1, "validate_every": 1, "precision": "fp16"}
    },
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
    recipe = load_recipe(file, {"training.steps": 7, "optimizer.learning_rate": 1})
    assert isinstance(recipe, Recipe)
    assert recipe.training.steps == 7
    assert recipe.optimizer.learning_rate == 1.0
    with pytest.raises(RecipeError, match=r"unknown key 'stps'"):
        load_recipe(file, {"training.stps": 7})
    with pytest.raises(RecipeError, match="'name' is a value, not a table"):
        load_recipe(file, {"name.steps": 7})
    with pytest.raises(RecipeError, match=r"unknown recipe 'digits_mutli'.*Did you mean 'digits_multi'"):
        load_recipe("digits_mutli")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")
    file.write_text("a = = 1")
    with pytest.raises(RecipeError, match="is not TOML"):
        load_recipe(file)


def test_learning_rates():
    settings = OptimizerSettings(1e-3, "cosine", constant_share=0.5, final_share=0.01, warmup_steps=10)
    rates = [settings.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-4 * step for step in range(1, 11)])
    assert rates[10:50] == [1e-3] * 40
    assert rates[75] == pytest.approx(1e-3 * (0.01 + 0.99 * 0.5))
    assert rates[99] == pytest.approx(1e-3 * (0.01 + 0.99 * (1 + math.cos(math.pi * 0.98)) / 2))
    assert OptimizerSettings(1e-4).rate(99, 100) == 1e-4


def test_a_start_is_the_seed_s_alone():
    import torch

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again = (new_space(load_recipe("digits_multi")).state_dict() for _ in range(2))
    other = new_space(load_recipe("digits_multi", {"training.seed": 1})).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["decoder.bias"], other["decoder.bias"])


# Former spellings -------------------------------------------------------------------------------------------------

FORMER = ("[optimizer]", "[optimiser]"), ('precision = "bfloat16"', 'precision = "bf16"')


@pytest.fixture
def former(tmp_path):
    """A recipe's file in former spellings."""
    text = resources.files("netspace.recipes").joinpath("digits_multi.toml").read_text()
    for new, old in FORMER:
        assert text.count(new) == 1
        text = text.replace(new, old)
    (tmp_path / "former.toml").write_text(text)
    return tmp_path / "former.toml"


def test_former_spellings_are_read_with_a_warning(former):
    with pytest.warns(FormerSpelling) as warned:
        assert load_recipe(former) == load_recipe("digits_multi")
    assert [str(each.message) for each in warned] == [
        f"{former}: 'optimiser' is now spelled 'optimizer'; the old spelling is still read.",
        f"{former}: 'bf16' is now spelled 'bfloat16'; the old spelling is still read.",
    ]
    changes = {"optimiser.clip": 3.0, "training.precision": "bf16"}
    with pytest.warns(FormerSpelling, match="'bf16' is now spelled 'bfloat16'"):
        recipe = load_recipe("digits_multi", changes)
    assert (recipe.optimizer.clip, recipe.training.precision) == (3.0, "bfloat16")
    assert recipe.optimizer.learning_rate == load_recipe("digits_multi").optimizer.learning_rate


def test_both_spellings_of_a_table_are_refused():
    with pytest.raises(RecipeError, match=r"^my\.toml, optimiser: is the old spelling of 'optimizer', which is there"):
        recipe_of(document(optimiser={"clip": 1.0}), "my.toml")


@pytest.mark.filterwarnings("default::prepkit.errors.FormerSpelling")
def test_the_command_line_notes_a_former_spelling(former, tmp_path):
    done = CliRunner().invoke(main, ["train", str(former), "--zoo", str(tmp_path / "none"), "--out", "run"])
    assert done.stderr.splitlines()[:2] == [
        f"note: {former}: 'optimiser' is now spelled 'optimizer'; the old spelling is still read.",
        f"note: {former}: 'bf16' is now spelled 'bfloat16'; the old spelling is still read.",
    ]


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(
        RecipeError, match=r"is a folder, not a recipe, .* digits_single.* A zoo is named apart from it"
    ):
        load_recipe(tmp_path)

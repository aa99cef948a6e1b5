"""docs/paper.md: each name that it gives exists, each value is the code's, and nothing of the paper is left out."""

import re
import tomllib
from fnmatch import fnmatchcase
from functools import cache, reduce
from importlib import import_module
from pathlib import Path

import pytest

import prepkit
from netspace.recipe import LossSettings, OptimizerSettings, load_recipe, recipe_names
from prepkit.training.spec import spec_names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
SPANS = re.findall(r"`([^`\n]+)`", PAGE)
OBJECT = re.compile(r"(prepkit|netspace)(\.\w+)+")
VALUE = re.compile(r"([\w*@/.]+): (\S+ = .+)")
PAPER = ("cifar10_*", "tiny_imagenet_*", "chairs")  # recipes and specs that are the paper's
OBJECTS = sorted({span for span in SPANS if OBJECT.fullmatch(span)})
VALUES = sorted({span for span in SPANS if VALUE.fullmatch(span)})
SETTINGS = sorted({span for span in SPANS if span.startswith("--set ")})


def resolved(name):
    """The object of a dotted name: a module, or something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[length:], module)
    raise ModuleNotFoundError(name)


@cache
def documents():
    """What values may be of, by name: recipes, files of zoo specs, and architectures; none that is in miniature."""
    facts = ("num_parameters", "num_trainable")
    known = {name: load_recipe(name).to_dict() for name in recipe_names()}
    known |= {f"zoo_specs/{file.name}": tomllib.loads(file.read_text()) for file in (ROOT / "zoo_specs").iterdir()}
    for name in prepkit.architectures():
        known[name] = {fact: getattr(prepkit.architecture(name), fact) for fact in facts}
    return {name: document for name, document in known.items() if "digits" not in name and "mini" not in name}


def assert_holds(document, told, place):
    """Every key that is told stands in the document, with this value."""
    for key, value in told.items():
        assert key in document, f"{place}: {key}"
        if isinstance(value, dict) and isinstance(document[key], dict):
            assert_holds(document[key], value, f"{place}: {key}")
        else:
            assert document[key] == value, f"{place}: {key} is {document[key]!r}, not {value!r}"


@pytest.mark.parametrize("name", OBJECTS)
def test_each_named_object_exists(name):
    assert resolved(name) is not None


@pytest.mark.parametrize("span", VALUES)
def test_each_value_is_the_code_s(span):
    pattern, told = VALUE.fullmatch(span).groups()
    found = {name: document for name, document in documents().items() if fnmatchcase(name, pattern)}
    assert found, f"nothing is called {pattern}"
    for name, document in found.items():
        assert_holds(document, tomllib.loads(told), name)


@pytest.mark.parametrize("span", SETTINGS)
def test_each_setting_changes_one_of_the_papers_recipes(span):
    key, value = span.removeprefix("--set ").split("=")
    change = {key: tomllib.loads(f"value = {value}")["value"] if value[0].isdigit() else value}
    names = [name for name in recipe_names() if any(fnmatchcase(name, pattern) for pattern in PAPER)]
    assert any(load_recipe(name, change) != load_recipe(name) for name in names)


def test_the_page_names_what_it_needs_to():
    assert len(OBJECTS) > 35
    assert len(VALUES) > 50
    assert len(SETTINGS) >= 2
    assert {span for span in SPANS if ": " in span} == set(VALUES)


def test_no_equation_figure_or_table_is_left_out():
    told = {row[0] for row in ROWS}
    expected = {f"Eq. {number}" for number in range(1, 13)} | {f"Suppl. Eq. {number}" for number in range(1, 8)}
    expected |= {f"Fig. {number}" for number in range(1, 6)} | {f"Suppl. Fig. {number}" for number in range(1, 7)}
    assert expected | {"Table I", "Suppl. Table I"} <= told


def test_every_recipe_and_spec_of_the_papers_networks_is_named():
    known = [*map(load_recipe, recipe_names()), *map(prepkit.load_spec, spec_names())]
    full = {each.name for each in known if not each.architectures[0].endswith(("@digits", "@sdf_small"))}
    others = {name for name in full if not any(fnmatchcase(name, pattern) for pattern in PAPER)}
    assert {"cifar10_single", "tiny_imagenet_unseen", "chairs"} < full
    assert others == {"chairs_from_preps"}
    assert all(f"`{name}`" in PAGE for name in others)
    assert "`cifar10_single_strong`" in PAGE


def test_the_papers_recipes_use_no_key_that_the_page_calls_foreign():
    for name in recipe_names():
        if any(fnmatchcase(name, pattern) for pattern in PAPER):
            recipe = load_recipe(name)
            assert (recipe.loss, recipe.optimizer) == (LossSettings(), OptimizerSettings())
            assert (recipe.batch.boundary_share, recipe.network.initialisation) == (0.0, "paper")

"""The names that netspace offers, that they come from the package and not from this folder, and that they are light."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import netspace

NAMES = [
    "Decoder",
    "Encoder",
    "NetSpace",
    "Recipe",
    "Run",
    "boundary_pairs",
    "embed",
    "evaluate",
    "gammas",
    "interpolate",
    "interpolate_embeddings",
    "load",
    "load_recipe",
    "loss_class",
    "loss_gamma",
    "loss_kd",
    "loss_line",
    "loss_multi",
    "loss_pred",
    "loss_pred_signal",
    "open_run",
    "optimize",
    "predict",
    "probe",
    "sample",
    "train",
]


def test_names() -> None:
    assert sorted(netspace.__all__) == NAMES
    assert Path(netspace.__file__).parent != Path(__file__).parent
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        netspace.trian  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_every_name_comes_from_its_home_with_a_docstring(name: str) -> None:
    value = getattr(netspace, name)
    assert value is getattr(import_module(value.__module__), name)
    assert value.__doc__


def test_no_module_hides_a_name() -> None:
    """A module of the name of a function would take its place as soon as something imports it."""
    modules = {path.stem for path in Path(netspace.__file__).parent.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(NAMES)


def test_help_does_not_import_torch() -> None:
    code = "import sys, netspace.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

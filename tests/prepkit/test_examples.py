"""The examples in the docstrings of public functions and classes run as they are written."""

import doctest
import inspect
import warnings
from pathlib import Path

import pytest
import torch

import prepkit

ROOMS = ("packing", "prep", "checkpoint", "fusion", "families", "running")
ENTRY_POINTS = [
    "Layout",
    "architecture",
    "architectures",
    "built_in_registry",
    "detect",
    "fuse_batch_norm",
    "load_checkpoint",
    "load_prep",
    "pack_checkpoint",
    "run_instances",
    "save_prep",
    "save_state_dict",
]


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    value = getattr(prepkit, name)
    runner = doctest.DocTestRunner(verbose=False)
    names = {"prepkit": prepkit, "torch": torch, name: value}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for example in doctest.DocTestFinder(recurse=False).find(value, name, globs=names):
            runner.run(example)
    assert runner.tries > 0
    assert runner.failures == 0


def test_all_public_functions_of_these_rooms_have_an_example() -> None:
    functions = [
        name
        for name in prepkit.__all__
        if inspect.isfunction(value := getattr(prepkit, name)) and value.__module__.split(".")[1] in ROOMS
    ]
    assert set(functions) <= set(ENTRY_POINTS)

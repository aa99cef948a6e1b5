"""Patterns of paths: which fit, which are refused, and what a walk along one looks into."""

import os

import pytest
from tree_samples import PATTERN, save

import prepkit
from prepkit.errors import ZooError
from prepkit.zoo.importers._pattern import PathPattern


@pytest.mark.parametrize(
    ("pattern", "path", "fields"),
    [
        ("{run}/checkpoint_{epoch:int}/checkpoints", "/x/a b/checkpoint_000005/checkpoints", {"run": "a b", "epoch": 5}),  # noqa: E501
        ("{run}/checkpoint_{epoch:int}/checkpoints", "/x/a/checkpoint_five/checkpoints", None),
        ("mnist_png_{part}_{label:int}_{index:int}/*/model_final.pth", "mnist_png_test_7_12/c/model_final.pth",
         {"part": "test", "label": 7, "index": 12}),
        ("lr={lr:float}.pt", "lr=1e-3.pt", {"lr": 0.001}),
        ("lr={lr:float}.pt", "lr=-.5.pt", {"lr": -0.5}),
        ("{split}/model_{i:int}.pth", "train\\model_3.pth", {"split": "train", "i": 3}),
        ("net.pt", "a/net.pt", {}),
        ("{a}.pt", "b.ptx", None),
        ("{n:int}.pt", "9" * 19 + ".pt", None),
    ],
)  # fmt: skip
def test_patterns(pattern, path, fields):
    fit = PathPattern.parse(pattern).fit(path)
    assert (None if fit is None else fit.fields) == fields


@pytest.mark.parametrize(("pattern", "path"), [("{a}_{b}.pt", "x_y_z.pt"), ("{a}{b:int}.pt", "run12.pt")])
def test_a_path_that_fits_in_several_ways_is_refused(pattern, path):
    with pytest.raises(ZooError, match="in several ways: a '"):
        PathPattern.parse(pattern).fit(path)


def test_a_walk_along_a_pattern_looks_into_no_other_folders(runs, tmp_path, monkeypatch):
    save(runs / "r0/other/deep/checkpoints", 1)
    looked: list[str] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(str(path)) or real(path))
    prepkit.import_zoo("tree", runs, tmp_path / "zoo", pattern=PATTERN)
    assert any(path.endswith("runs/r0") for path in looked)
    assert not any("other" in path for path in looked)

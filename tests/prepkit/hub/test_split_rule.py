"""The name of a zoo's splits and their sha256 go with it: to its card, the Hub and back, parts and merges."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

import prepkit
from prepkit.cli import main
from prepkit.zoo.change.convert import convert
from prepkit.zoo.change.merge import merge
from prepkit.zoo.change.splitting import split
from prepkit.zoo.format.split_rule import split_rule

pytestmark = pytest.mark.usefixtures("one_thread")


def make(root, name="paper", count=4, start=0):
    """Import a tree of models with a file of splits, and return the zoo and the rule that it should tell."""
    paths = []
    for number in range(start, start + count):
        path = f"mnist_png_training_{number % 10}_{number}/checkpoints/model_final.pth"
        (root / "src" / path).parent.mkdir(parents=True)
        shapes = {"seq.0": (8, 2), "seq.1": (8, 8), "seq.2": (1, 8)}
        tensors = {f"{layer}.weight": torch.full(shape, float(number)) for layer, shape in shapes.items()}
        tensors |= {f"{layer}.bias": torch.zeros(shape[0]) for layer, shape in shapes.items()}
        torch.save(tensors, root / "src" / path)
        paths.append(path)
    file = root / "s.json"
    file.write_text(json.dumps({"train": paths[1:], "test": paths[:1]}))
    options = {"split_file": file} if name == "paper" else {}
    prepkit.import_zoo("siren", root / "src", root / "zoo", splits=name, license="mit", **options)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return root / "zoo", f"paper (s.json, sha256 {sha256})" if name == "paper" else name


def test_it_is_told_and_goes_with_the_zoo(hub, tmp_path):
    root, rule = make(tmp_path)
    zoo = prepkit.open_zoo(root)
    expected = "".join(f"training/{n}/{n}\n" for n in range(1, 4))
    sum_of_train = hashlib.sha256(expected.encode()).hexdigest()
    assert (zoo.split_rule, zoo.split("train").sha256) == (rule, sum_of_train)
    assert f"The splits are: {rule}." in (root / "README.md").read_text()
    shown = CliRunner().invoke(main, ["zoo", "info", str(root)]).stdout
    assert f"  splits   test 1, train 3; {rule}\n" in shown
    document = CliRunner().invoke(main, ["zoo", "info", str(root), "--splits", "--json"]).stdout
    assert json.loads(document)["split_rule"] == rule
    prepkit.push(root, "me/zoo")
    prepkit.pull("me/zoo", tmp_path / "pulled")
    convert(root, tmp_path / "hdf5", "hdf5")
    for copy in (prepkit.open_zoo("hf://me/zoo"), *map(prepkit.open_zoo, (tmp_path / "pulled", tmp_path / "hdf5"))):
        assert (copy.split_rule, copy.split("train").sha256) == (rule, sum_of_train)
    prepkit.pull("me/zoo", tmp_path / "part", where="index > 1")
    part = prepkit.open_zoo(tmp_path / "part")
    assert part.split_rule == f"part of {rule}"
    assert part.split("train").sha256 != sum_of_train


def test_merged_zoos_tell_the_rules_of_all(tmp_path):
    first, rule = make(tmp_path / "a")
    second, _ = make(tmp_path / "b", start=20)
    third, strict = make(tmp_path / "c", "strict", start=40)
    merge(tmp_path / "ab", [first, third])
    assert prepkit.open_zoo(tmp_path / "ab").split_rule == f"merged of {rule} and {strict}"
    rules = [prepkit.open_zoo(root).split_rule for root in (first, second)]
    assert rules[0] != rules[1]  # of two files with one name
    split(tmp_path / "ab", {"train": 0.5, "test": 0.5}, seed=3, force=True)
    assert prepkit.open_zoo(tmp_path / "ab").split_rule == "drawn with seed 3"


def test_forged_or_missing_provenance_tells_nothing():
    def rule(provenance, splits=None):
        return split_rule(SimpleNamespace(provenance=provenance, splits={"train": 1} if splits is None else splits))

    assert rule({"options": {"splits": "paper"}}, {}) is None
    assert rule({"options": {"splits": "strict"}}) == "strict"
    assert rule({"merged": [{"provenance": {"options": {"splits": "paper"}}}] * 2}) == "paper"
    for odd in ({}, {"options": []}, {"options": {"splits": 3}}, {"cut": 1}, {"cut": {}}, {"merged": [1, {}]}):
        assert rule(odd) is None
    deep = {"options": {"splits": "paper"}}
    for _ in range(500):
        deep = {"cut": {"provenance": deep}}
    assert rule(deep) is None

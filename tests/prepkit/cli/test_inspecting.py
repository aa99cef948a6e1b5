"""Tests of `prepkit stat` and `prepkit diff`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_samples import run
from torch import nn


@pytest.fixture
def places(model: nn.Module) -> dict[str, str]:
    """One network without BatchNorm in each kind of place."""
    run("fuse", "model.pt", "-o", "plain.pt")
    run("pack", "plain.pt")
    run("zoo", "create", "zoo", "plain.pt")
    state = torch.load("plain.pt", weights_only=True)
    torch.save({"model": state, "ema": {name: 2 * tensor for name, tensor in state.items()}}, "run.ckpt")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, "odd#name.pt")
    return {
        "checkpoint": "plain.pt",
        "key": "run.ckpt#model",
        "PRep": "plain.prep.safetensors",
        "instance": "zoo#plain",
        "name with #": "odd#name.pt",
    }


def test_the_same_network_in_all_places(places: dict[str, str]) -> None:
    documents = [json.loads(run("stat", place, "--json").stdout) for place in places.values()]
    assert [document.pop("place") for document in documents] == list(places.values())
    assert all(document == documents[0] for document in documents[1:])
    weight = torch.load("plain.pt", weights_only=True)["linear.weight"].double().numpy()
    told = documents[0]["tensors"]["linear.weight"]
    assert (told["shape"], told["dtype"], told["nan"]) == ([10, 16], "float32", 0)
    assert told["deviation"] == pytest.approx(weight.std(), rel=1e-12)
    for place in places.values():
        assert run("diff", "plain.pt", place).stdout == "20 tensors, none differs\n"


def test_stat_counts_what_is_not_finite(folder: Path) -> None:
    torch.save({"w": torch.tensor([1.0, torch.nan, torch.inf, 0.0])}, "w.pt")
    lines = run("stat", "w.pt").stdout.splitlines()
    assert lines[2].split() == ["w", "4", "float32", "0.5", "0.5", "0", "1", "1", "1", "1", "1"]
    assert lines[-1] == "w.pt: 1 tensor, 4 values"


def test_diff_lists_what_differs(places: dict[str, str]) -> None:
    state = torch.load("plain.pt", weights_only=True)
    state["linear.weight"][3, 5] += 0.5
    state["linear.bias"] = state["linear.bias"].half()
    state["extra"] = state.pop("conv.bias")
    torch.save(state, "other.pt")
    lines = run("diff", "plain.pt", "other.pt", code=1).stdout.splitlines()
    by_name = {line.split()[0]: line.split()[1:] for line in lines[2:-2]}
    assert by_name["conv.bias"] == ["4", "float32", "only", "in", "A", "-", "-", "-"]
    assert by_name["extra"] == ["4", "float32", "only", "in", "B", "-", "-", "-"]
    assert by_name["linear.weight"] == ["10x16", "float32", "1", "of", "160", "0.5", "0.003125", "3,5"]
    assert by_name["linear.bias"][:4] == ["10", "float32", "->", "float16"]
    assert lines[-1] == "4 of 21 tensors differ"

    document = json.loads(run("diff", "plain.pt", "other.pt", "--json", code=1).stdout)
    assert (document["same"], len(document["tensors"])) == (False, 21)
    assert document["tensors"]["linear.weight"]["largest"] == np.float32(0.5)


def test_diff_within_a_tolerance(places: dict[str, str]) -> None:
    run("diff", "run.ckpt#model", "run.ckpt#ema", "--rtol", "0.49", code=1)
    run("diff", "run.ckpt#model", "run.ckpt#ema", "--rtol", "0.51")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stat", "missing.pt"], "missing.pt cannot be read"),
        (["stat", "run.ckpt"], "choose one with run.ckpt#NAME."),
        (["stat", "run.ckpt#nett"], "run.ckpt has no key 'nett'"),
        (["stat", "zoo"], "'zoo' is a zoo of 1 network; name one by its id as 'zoo#ID'. The first ids are plain."),
        (["stat", "zoo#plane"], "has no instance 'plane'. Did you mean 'plain'?"),
        (["stat", "plain.prep.safetensors#x"], "a PRep file holds one network; leave '#x' out."),
        (["diff", "plain.pt", "plain.pt", "--atol", "-1"], "--atol: expected a number of at least 0; found -1.0."),
    ],
)
def test_mistakes(places: dict[str, str], arguments: list[str], message: str) -> None:
    result = run(*arguments, code=2)
    assert message in result.stderr
    assert not result.stdout

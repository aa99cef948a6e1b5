"""What a file says beside its weights: plain values by dotted name, read without running anything of the file."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_samples import SAVERS, Settings, weights
from safetensors.torch import save_file

from prepkit.checkpoint.load import load_checkpoint


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy"])
def test_what_a_file_says_beside_the_weights(stored: str, tmp_path: Path) -> None:
    saved = {
        "model": weights(),
        "epoch": 3,
        "best_acc": np.float64(0.9),
        "numbers": {"f4": np.float32(0.5), "big": np.array(7, ">i4")[()], "u1": np.uint8(255), "b": np.bool_(True)},
        "config": argparse.Namespace(lr=0.1, folder=Path("/runs/a"), nested=argparse.Namespace(act="relu"), none=None),
        "last_result": {"test/acc": 0.5, "curve": [0.1, np.float32(0.25)], "time": datetime.datetime(2026, 1, 2, 3)},
        "loss": torch.tensor(0.75),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "ema": {"w": torch.zeros(3), "decay": 0.9},
        "args": Settings(),
        "history": [{"epoch": 0}],
        7: "seven",
    }
    SAVERS[stored](saved, tmp_path / "m")
    read = load_checkpoint(tmp_path / "m", key="model")
    assert read.said == {
        "epoch": 3,
        "best_acc": 0.9,
        "numbers.f4": 0.5,
        "numbers.big": 7,
        "numbers.u1": 255,
        "numbers.b": True,
        "config.lr": 0.1,
        "config.folder": "/runs/a",
        "config.nested.act": "relu",
        "config.none": None,
        "last_result.test/acc": 0.5,
        "last_result.curve": [0.1, 0.25],
        "last_result.time": datetime.datetime(2026, 1, 2, 3),
        "loss": 0.75,
        "7": "seven",
    }
    assert {type(value) for value in read.said.values()} <= {int, float, bool, str, list, type(None), datetime.datetime}
    assert read.others == ("optimizer", "ema", "args", "history")


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy"])
def test_what_stands_in_tuples_wrappers_and_headers(stored: str, tmp_path: Path) -> None:
    SAVERS[stored]((weights(), 93.5), tmp_path / "tuple")
    assert load_checkpoint(tmp_path / "tuple").said == {"item.1": 93.5}
    SAVERS[stored]({"ema": {"model": weights(), "decay": 0.5}, "step": 2}, tmp_path / "inside")
    assert load_checkpoint(tmp_path / "inside", key="ema.model").said == {"ema.decay": 0.5, "step": 2}
    SAVERS[stored](weights(), tmp_path / "alone")
    alone = load_checkpoint(tmp_path / "alone")
    assert (alone.said, alone.others) == ({}, ())
    save_file(weights(), tmp_path / "s", {"format": "pt", "epoch": "3"})
    assert load_checkpoint(tmp_path / "s").said == {"epoch": "3"}


def test_a_dict_that_holds_itself_and_endless_lists_stay_in_the_file(tmp_path: Path) -> None:
    config: dict[str, object] = {"lr": 0.1}
    config["self"] = config
    torch.save({"model": weights(), "config": config, "long": [0.0] * 10_001, "mixed": [1, [2]]}, tmp_path / "m")
    read = load_checkpoint(tmp_path / "m")
    assert read.said["config.lr"] == 0.1
    assert len(read.said) < 20
    assert read.others[1:] == ("long", "mixed")


@pytest.mark.parametrize("stored", ["torch zip", "torch legacy"])
def test_plain_values_among_the_tensors_of_a_state_dict(stored: str, tmp_path: Path) -> None:
    among = {"epoch": 3, "acc": np.float32(0.5), "name": "a", "done": True}
    SAVERS[stored]({**weights(), **among}, tmp_path / "flat")
    flat = load_checkpoint(tmp_path / "flat")
    assert list(flat) == list(weights())
    assert (flat.key, flat.said, flat.others) == (None, among, ())
    SAVERS[stored]({"model": {**weights(), "epoch": 3}, "epoch": 4}, tmp_path / "wrapped")
    assert load_checkpoint(tmp_path / "wrapped").said == {"model.epoch": 3, "epoch": 4}
    SAVERS[stored](({**weights(), "epoch": 3}, 0.5), tmp_path / "tuple")
    assert load_checkpoint(tmp_path / "tuple").said == {"item.0.epoch": 3, "item.1": 0.5}
    SAVERS[stored]({"epoch": 3, **{f"module.{name}": value for name, value in weights().items()}}, tmp_path / "ddp")
    parallel = load_checkpoint(tmp_path / "ddp")
    assert (list(parallel), parallel.prefix, parallel.said) == (list(weights()), "module.", {"epoch": 3})


def test_two_values_of_one_dotted_name_are_told(tmp_path: Path) -> None:
    torch.save({"model": weights(), "a": {"b": 1}, "a.b": 2, "c.d": 1, "c": {"d": 1.0}}, tmp_path / "m")
    read = load_checkpoint(tmp_path / "m")
    assert read.said == {"a.b": 1, "c.d": 1}
    assert read.others == ("a.b (another value of this name)", "c.d (another value of this name)")
    torch.save({"model": weights(), "a": {"b": 2}, "a.b": 2}, tmp_path / "same")
    assert (load_checkpoint(tmp_path / "same").said, load_checkpoint(tmp_path / "same").others) == ({"a.b": 2}, ())


def test_arrays_are_named_as_such(tmp_path: Path) -> None:
    torch.save({"model": weights(), "curve": np.zeros(3), "log": {"hist": np.array(1.5), "n": 1}}, tmp_path / "m")
    read = load_checkpoint(tmp_path / "m")
    assert (read.said, read.others) == ({"log.n": 1}, ("curve (an array)", "log.hist (an array)"))

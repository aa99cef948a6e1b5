"""Finished units on the disk come back as they were, and a damaged one is told."""

import pytest
import torch
from killed_training import spec

from prepkit.errors import ZooError
from prepkit.training._engine import Engine
from prepkit.training._plan import plan
from prepkit.training._results import Rows
from prepkit.training._spool import done_file, load_done, save_done
from prepkit.training._stack import Diverged
from prepkit.training._units import FinishedUnit, units_of


@pytest.fixture
def done():
    found = spec()
    unit = units_of(found, plan(found), Engine("cpu", 1, dict.fromkeys(found.architectures, 2)))[0]
    wide = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    tensors = {"w": wide.transpose(1, 2), "b": torch.tensor([float("nan"), -0.0]), "n": torch.tensor([1, 2])}
    columns = {"accuracy": [0.1 + 0.2, 1e-300], "seed": [2**31 - 1, 0], "optimizer": ["sgd", "é"], "loss": [None, 3.0]}
    return FinishedUnit(unit, Rows(list(unit.ids), ["train", None], tensors, columns), [Diverged("x", 3, 1)])


def test_it_comes_back_as_it_was(tmp_path, done):
    assert load_done(done.unit, tmp_path) is None
    save_done(done, tmp_path)
    found = load_done(done.unit, tmp_path)
    assert found.unit is done.unit
    rows, had = found.rows, done.rows
    assert (rows.ids, rows.splits, rows.columns, found.diverged) == (had.ids, had.splits, had.columns, done.diverged)
    for name, tensor in had.tensors.items():
        torch.testing.assert_close(rows.tensors[name], tensor, rtol=0, atol=0, equal_nan=True)
        assert rows.tensors[name].dtype == tensor.dtype
    assert [file.name for file in tmp_path.iterdir()] == ["done-00000.safetensors"]
    save_done(done, tmp_path)  # again, after a kill


@pytest.mark.parametrize("how", ["empty", "cut", "noise", "no facts", "list", "few facts", "a folder"])
def test_a_damaged_file_is_told(tmp_path, done, how):
    from safetensors.torch import save_file

    save_done(done, tmp_path)
    file = done_file(tmp_path, done.unit)
    content = file.read_bytes()
    if how == "a folder":
        file.unlink()
        file.mkdir()
    elif how == "no facts":
        save_file({"w": torch.zeros(2)}, file)
    elif how in ("list", "few facts"):
        save_file({"w": torch.zeros(2)}, file, {"facts": "[]" if how == "list" else '{"ids": []}'})
    else:
        file.write_bytes({"empty": b"", "cut": content[:-3], "noise": b"\xff" * 64}[how])
    with pytest.raises(ZooError, match=r"done-00000\.safetensors: cannot be read: .* Delete it to train its instances"):
        load_done(done.unit, tmp_path)


def test_a_file_of_other_instances_is_told(tmp_path, done):
    save_done(done, tmp_path)
    found = spec()
    other = units_of(found, plan(found), Engine("cpu", 1, dict.fromkeys(found.architectures, 2)))[1]
    done_file(tmp_path, done.unit).rename(done_file(tmp_path, other))
    with pytest.raises(ZooError, match="it holds other instances"):
        load_done(other, tmp_path)

"""Tests of instances, options and targets that a writer refuses before anything is written."""

import contextlib
from datetime import date

import numpy as np
import pytest
import torch
from folder_contents import files_of
from writer_samples import tensors_of, trained

import prepkit
from prepkit.api import open_zoo
from prepkit.errors import (
    CheckpointError,
    InvalidShape,
    LayoutMismatch,
    OutputError,
    PrepkitError,
    RegistryError,
    ZooError,
)
from prepkit.zoo.write.writer import ZooWriter


def poisoned(value: float) -> dict[str, torch.Tensor]:
    tensors = tensors_of(1)
    tensors["0.weight"][1, 1] = value
    return tensors


def stack(count: int = 3) -> torch.Tensor:
    return torch.zeros(count, 12, 512)


SDF = {"architecture": "sine_mlp@sdf_small"}

REFUSED = {
    "duplicate id": (lambda w: w.add(tensors_of(1), id="known"), ZooError, "'known' is in the zoo already"),
    "id that is no text": (lambda w: w.add(tensors_of(1), id=7), ZooError, "an id is text"),
    "empty id": (lambda w: w.add(tensors_of(1), id=""), ZooError, "an id is text"),
    "half a surrogate": (lambda w: w.add(tensors_of(1), id="\ud800"), ZooError, "an id is text"),
    "unknown architecture": (lambda w: w.add(tensors_of(1), architecture="resnet88"), RegistryError, "Registered: "),
    "another architecture": (
        lambda w: w.add(tensors_of(1), architecture="sine_mlp@sdf_small"),
        LayoutMismatch,
        "is no sine_mlp@sdf_small",
    ),
    "too tall": (lambda w: w.add(tensors_of(1, (64, 64, 64, 64))), InvalidShape, "8,320|12,480"),
    "wrong shape": (
        lambda w: w.add({**trained("lenet_like@digits", 0).state_dict(), "conv1.bias": torch.zeros(9)}, **SDF),
        LayoutMismatch,
        "is no sine_mlp",
    ),
    "NaN": (lambda w: w.add(poisoned(float("nan"))), CheckpointError, "'0.weight' holds 1 NaN"),
    "infinity": (lambda w: w.add(poisoned(float("-inf"))), CheckpointError, "1 infinite"),
    "wider dtype": (lambda w: w.add(tensors_of(1, dtype=torch.float64)), ZooError, "do not fit the zoo's float32"),
    "not a network": (lambda w: w.add([1, 2]), ZooError, "expected a network"),
    "integer buffers": (
        lambda w: w.add({**tensors_of(1), "position_ids": torch.arange(4)}),
        ZooError,
        "no place for the integer buffers position_ids",
    ),
    "reserved column": (lambda w: w.add(tensors_of(1), row=3), ZooError, "'row' is filled by the zoo itself"),
    "illegal column": (lambda w: w.add(tensors_of(1), **{"a`b": 3}), ZooError, "cannot name a column"),
    "list in a list": (lambda w: w.add(tensors_of(1), losses=[[1], [2]]), ZooError, r"\[0\]: a list cannot stand here"),
    "list of kinds": (lambda w: w.add(tensors_of(1), losses=[1, "a"]), ZooError, "of one kind, not int and str"),
    "list of dates": (
        lambda w: w.add(tensors_of(1), days=[date(2026, 1, 1)]),
        ZooError,
        "texts or booleans, not a date",
    ),
    "matrix as value": (lambda w: w.add(tensors_of(1), m=torch.ones(2, 2)), ZooError, "a Tensor cannot stand here"),
    "duration": (lambda w: w.add(tensors_of(1), t=np.timedelta64(5, "ns")), ZooError, "give it as text or a number"),
    "time of numpy": (
        lambda w: w.add(tensors_of(1), t=np.datetime64("2026-01-01T00:00:00.000000001")),
        ZooError,
        "no date or timestamp to the microsecond",
    ),
    "huge whole number": (lambda w: w.add(tensors_of(1), seed=1 << 63), ZooError, "does not fit 64 bits"),
    "text for a number": (lambda w: w.add(tensors_of(1), accuracy="high"), ZooError, "is str, but other rows have"),
    "boolean for a number": (lambda w: w.add(tensors_of(1), accuracy=True), ZooError, "is bool, but other rows have"),
    "a number no float holds": (lambda w: w.add(tensors_of(1), accuracy=2**60 + 1), ZooError, "other rows have float"),
    "a split that is no text": (lambda w: w.add(tensors_of(1), split=1), ZooError, "a split is text"),
    "stack without architecture": (lambda w: w.add_stack(stack(), architecture=None), ZooError, "needs its arch"),
    "stack with few values": (lambda w: w.add_stack(stack(), accuracy=[1.0], **SDF), ZooError, "3 .* accuracy: 1"),
    "stack with few ids": (lambda w: w.add_stack(stack(), ids=["a"], **SDF), ZooError, "ids: 1"),
    "stack with few splits": (lambda w: w.add_stack(stack(), split=["a"], **SDF), ZooError, "split: 1"),
    "stack with an id twice": (lambda w: w.add_stack(stack(), ids=list("aba"), **SDF), ZooError, "'a' is in the zoo"),
    "stack too small": (lambda w: w.add_stack(torch.zeros(3, 4, 512), **SDF), LayoutMismatch, "too small"),
    "stack with NaN": (lambda w: w.add_stack(stack() / 0, **SDF), CheckpointError, "NaN"),
    "stack of other names": (lambda w: w.add_stack({"x": torch.zeros(3, 2)}, **SDF), LayoutMismatch, "needs hidden"),
    "stack of one network": (
        lambda w: w.add_stack(prepkit.architecture(SDF["architecture"]).build().state_dict(), **SDF),
        ZooError,
        "in a stack it has",
    ),
    "NaN in a teacher": (lambda w: w.set_teacher(poisoned(float("nan"))), CheckpointError, "NaN"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, kind):
    call, error, match = REFUSED[kind]
    with ZooWriter(tmp_path / "zoo", height=16) as writer:
        writer.add(tensors_of(0), id="known", split="train", accuracy=0.5)
        before = files_of(tmp_path / "zoo")
        with pytest.raises(error, match=match):
            call(writer)
        assert files_of(tmp_path / "zoo") == before
        assert writer.finished_ids == {"known"}
        writer.add(tensors_of(2), id="after", accuracy=1)
    assert open_zoo(tmp_path / "zoo").table["accuracy"].to_pylist() == [0.5, 1.0]


def test_refused_first_instance_does_not_choose_the_dtype(tmp_path):
    with ZooWriter(tmp_path / "zoo") as writer:
        with pytest.raises(CheckpointError):
            writer.add({"x": torch.full((3,), float("nan"), dtype=torch.float64)})
        writer.add(tensors_of(0))
    assert open_zoo(tmp_path / "zoo").manifest.dtype == "float32"


def test_registry_says_which_architectures_belong(tmp_path):
    with ZooWriter(tmp_path / "zoo", registry=prepkit.built_in_registry("digits")) as writer:
        with pytest.raises(ZooError, match="not in the zoo's registry: lenet_like@digits"):
            writer.add(tensors_of(0))
        assert len(writer) == 0


def test_exception_leaves_an_unfinished_zoo(tmp_path):
    with contextlib.suppress(RuntimeError), ZooWriter(tmp_path / "zoo") as writer:
        writer.add(tensors_of(0), id="a")
        raise RuntimeError
    with pytest.raises(ZooError, match=r"unfinished zoo: writing it was interrupted\. Run the command"):
        open_zoo(tmp_path / "zoo")
    with pytest.raises(ZooError, match=r"unfinished zoo; go on with resume=True"):
        ZooWriter(tmp_path / "zoo")
    with pytest.raises(ZooError, match="begun with other settings: width 512, not 64"):
        ZooWriter(tmp_path / "zoo", width=64, resume=True)
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        assert writer.finished_ids == {"a"}
    assert len(open_zoo(tmp_path / "zoo")) == 1


def test_targets_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        ZooWriter(tmp_path / "file")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        ZooWriter(tmp_path / "file" / "zoo")
    with pytest.raises(ZooError, match=r"holds other files \(thesis.tex\)"):
        ZooWriter(tmp_path / "used")
    with ZooWriter(tmp_path / "zoo"):
        pass
    with pytest.raises(ZooError, match="is a finished zoo"):
        ZooWriter(tmp_path / "zoo")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 12}, "multiple of 8"),
        ({"height": 3}, "multiple of 4"),
        ({"format": "zip"}, "unknown shard format 'zip'"),
        ({"dtype": "int8"}, "a zoo's dtype is one of"),
        ({"task": {"mean": object()}}, "task is not JSON"),
        ({"provenance": {"x": float("nan")}}, "provenance is not JSON"),
    ],
)
def test_wrong_options_make_no_folder(tmp_path, options, match):
    with pytest.raises(PrepkitError, match=match):
        ZooWriter(tmp_path / "zoo", **options)
    assert not (tmp_path / "zoo").exists()

"""Files that one program wrote need the same stand-ins, which are found once; other files are read as if alone."""

import argparse
import os
import sys
import types

import pytest
import torch

import prepkit
from prepkit.checkpoint import _torch_files
from prepkit.checkpoint._inert import other_kind
from prepkit.errors import CheckpointError, UnsafeCheckpoint


class Runs:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.fixture
def loads(monkeypatch):
    """Count how often torch reads a file."""
    monkeypatch.setattr(_torch_files, "EARLIER_STAND_INS", {})
    counted, load = [], torch.load

    def counting(*arguments, **options):
        counted.append(arguments[0])
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", counting)
    return counted


def save(file, **beside):
    torch.save({"model": {"w": torch.ones(2)}, **beside}, file)
    return file


def said(file):
    return dict(prepkit.load_checkpoint(file).said)


def test_only_the_first_of_equal_files_is_read_twice(tmp_path, loads):
    for number in range(3):
        assert said(save(tmp_path / f"{number}.pt", args=argparse.Namespace(lr=number))) == {"args.lr": number}
    assert len(loads) == 4
    assert said(save(tmp_path / "plain.pt", epoch=3)) == {"epoch": 3}
    assert len(loads) == 5


def test_other_files_are_read_and_refused_as_if_alone(tmp_path, loads):
    save(tmp_path / "first.pt", args=argparse.Namespace(lr=1))
    for _ in range(2):
        assert said(tmp_path / "first.pt") == {"args.lr": 1}
        with pytest.raises(UnsafeCheckpoint, match=r"would import and call .*posix\.system"):
            prepkit.load_checkpoint(save(tmp_path / "code.pt", args=argparse.Namespace(lr=1), x=Runs()))
        (tmp_path / "cut.pt").write_bytes((tmp_path / "first.pt").read_bytes()[:300])
        with pytest.raises(CheckpointError, match=r"cut\.pt"):
            prepkit.load_checkpoint(tmp_path / "cut.pt")


def test_a_name_may_stand_for_another_kind_in_another_file(tmp_path, loads):
    """`runs.Thing` is a list in one file and an object in the other, as in two versions of a program."""
    for base in (list, object, list):
        module = types.ModuleType("runs")
        module.Thing = type("Thing", (base,), {"__module__": "runs"})
        sys.modules["runs"] = module
        try:
            thing = module.Thing()
            if base is list:
                thing.append(0.5)
            else:
                thing.lr = 0.5
            save(tmp_path / "a.pt", thing=thing, epoch=3)
        finally:
            del sys.modules["runs"]
        assert said(tmp_path / "a.pt")["epoch"] == 3


def test_a_mapping_that_the_reader_of_torch_2_6_cannot_fill_gets_a_mapping():
    (kind,) = other_kind(TypeError("'runs.Settings' object does not support item assignment")).items()
    made = kind[1]()
    made["lr"] = 0.5
    assert kind[0] == kind[1].__name__ == "runs.Settings"
    assert made == {"lr": 0.5}

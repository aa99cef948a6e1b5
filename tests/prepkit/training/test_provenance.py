"""The record of what was begun: it comes back as it was, and says what differs."""

import json
import platform
from dataclasses import replace

import pytest
import torch
from killed_training import LAST, spec

from prepkit.errors import ZooError
from prepkit.training._engine import Engine
from prepkit.training._provenance import Provenance, check_engine, check_same_training, read_provenance, training_folder

CPU = torch.device("cpu")
ENGINE = Engine("cpu", 2, {"lenet_like@digits": 4, "vanilla_cnn@digits": 1})


@pytest.fixture
def record():
    return Provenance.of(spec(LAST).with_sizes(2, None), ENGINE, CPU)


@pytest.fixture
def root(tmp_path):
    training_folder(tmp_path).mkdir(parents=True)
    return tmp_path


def test_it_comes_back_as_it_was(root, record):
    assert read_provenance(root) is None
    assert read_provenance(root / "none") is None
    record.write(root)
    record.write(root)
    assert read_provenance(root) == record
    assert json.loads(json.dumps(record.to_dict())) == record.to_dict()
    assert record.machine == platform.machine()
    assert record.spec == LAST
    check_same_training(read_provenance(root), spec(LAST).with_sizes(2, None), CPU, root)
    check_same_training(read_provenance(root), spec(LAST).with_sizes(2, None), None, root)


def test_what_differs_is_told(root, record):
    asked = spec(LAST).with_sizes(2, None)
    with pytest.raises(ZooError, match="another spec"):
        check_same_training(record, spec(LAST + "\n").with_sizes(2, None), None, root)
    for sizes in ((None, None), (3, None), (2, 1)):
        with pytest.raises(ZooError, match="was begun with `instances` 2; go on with the same"):
            check_same_training(record, spec(LAST).with_sizes(*sizes), None, root)
    with pytest.raises(ZooError, match=r"was begun on cpu, and goes on there: cuda .* Use `device` cpu"):
        check_same_training(record, asked, torch.device("cuda:1"), root)
    with pytest.raises(ZooError, match=r"was begun with prepkit 0, torch 1\+x; here is prepkit"):
        check_same_training(replace(record, versions={"prepkit": "0", "torch": "1+x"}), asked, None, root)


def test_another_engine_is_told(root, record):
    check_engine(record, Engine("cpu", 9, {}), None, None, root)  # nothing was asked for
    check_engine(record, ENGINE, 4, 2, root)
    with pytest.raises(ZooError, match="begun with stacks of lenet_like@digits 4, vanilla_cnn@digits 1 and 2 threads"):
        check_engine(record, replace(ENGINE, threads=3), None, 3, root)
    with pytest.raises(ZooError, match="goes on so: others give other last bits"):
        check_engine(record, replace(ENGINE, stacks={"lenet_like@digits": 2}), 2, None, root)


def test_a_zoo_that_cannot_be_there(tmp_path):
    (tmp_path / "file").write_text("")
    assert read_provenance(tmp_path / "file") is None  # the writer tells

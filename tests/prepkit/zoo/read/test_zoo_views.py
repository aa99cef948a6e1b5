"""Tests of views of a zoo: their sums, what they share, and how they are found again."""

import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from writer_samples import write_digits

from prepkit.api import open_zoo
from prepkit.errors import DeviceError, WhereError, ZooError


def test_a_split_has_a_sum_that_others_can_compute(zoo, tmp_path):
    train = zoo.split("train")
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{id}\n" for id in train.table["id"].to_pylist()))
    command = 'LC_ALL=C sort "$0" | sha256sum'
    done = subprocess.run(["sh", "-c", command, ids], capture_output=True, text=True, check=True)
    assert train.sha256 == done.stdout.split()[0]
    assert train.select(slice(None, None, -1)).sha256 == train.sha256
    assert len({train.sha256, train[1:].sha256, zoo.split("test").sha256, zoo.sha256}) == 4


def test_views_of_views(zoo):
    train = zoo.split("train")
    good = train.where("accuracy >= 0.2 and architecture in ('resnet8@digits', 'vanilla_cnn@digits')")
    assert [len(zoo), len(train), len(good)] == [12, 9, 4]
    assert set(good.table["split"].to_pylist()) == {"train"}
    ids = good.table["id"].to_pylist()
    assert ids == ["resnet8-2", "vanilla-2", "resnet8-3", "vanilla-3"]
    for index, id in enumerate(ids):
        prep, metadata = good[index]
        assert metadata["id"] == id
        assert torch.equal(prep.values, zoo[id][0].values)
        assert torch.equal(good.preps(index), zoo.preps(zoo.index(id)))
    assert torch.equal(good.class_ids(), torch.tensor([2, 1, 2, 1]))
    assert len(good.where("note == 'first'")) == 0
    assert good.select([3, 0]).table["id"].to_pylist() == ["vanilla-3", "resnet8-2"]


def test_views_do_not_follow_the_array_they_were_made_of(zoo):
    numbers = np.array([3, 4])
    view = zoo.select(numbers)
    numbers[:] = 0
    assert view.table["id"].to_pylist() == zoo.table["id"].to_pylist()[3:5]


def test_views_share_the_files(zoo):
    part = zoo.split("train")
    assert part._store is zoo._store
    zoo.preps()
    assert part._store.values(0) is zoo._store.values(0)


def test_look_ups_that_fail_name_the_nearest(zoo):
    with pytest.raises(ZooError, match=r"no instance 'vanila-2'\. Did you mean 'vanilla-2'"):
        zoo["vanila-2"]
    with pytest.raises(ZooError, match=r"no split 'trian'; it has test, train\. Did you mean 'train'"):
        zoo.split("trian")
    with pytest.raises(WhereError, match="Did you mean 'accuracy'"):
        zoo.where("acuracy > 0.5")
    with pytest.raises(WhereError):
        zoo.where("accuracy > 'high'")
    with pytest.raises(ZooError, match="no instance 'vanilla-0'"):
        zoo.split("train")["vanilla-0"]


def test_pickling(zoo):
    view = zoo.split("train").select([4, 2])
    view.preps()
    size = len(pickle.dumps(view))
    assert size < 2000
    again = pickle.loads(pickle.dumps(view))
    assert torch.equal(again.preps(), view.preps())
    assert again.table.equals(view.table)


def test_pickled_zoo_that_was_replaced_is_refused(tmp_path):
    import shutil

    data = pickle.dumps(open_zoo(write_digits(tmp_path / "zoo", rounds=1)))
    shutil.rmtree(tmp_path / "zoo")
    write_digits(tmp_path / "zoo", rounds=2)
    with pytest.raises(ZooError, match="was replaced"):
        pickle.loads(data)


def test_devices_that_are_not_there_and_conditions_that_are_no_text(zoo):
    for ask in (zoo.to, lambda device: zoo.loader(4, device=device)):
        with pytest.raises(DeviceError, match="unknown device 'gpu'; use cpu, cuda"):
            ask("gpu")
        with pytest.raises(DeviceError, match="'cuda:99' was asked for, but this torch sees"):
            ask("cuda:99")
    with pytest.raises(WhereError, match=r"a condition is text .*, not a function"):
        zoo.where(lambda row: True)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux to count threads")
def test_reading_a_table_leaves_no_threads(zoo, forked_python):
    """A thread of Arrow's that is alive while the interpreter ends may abort it, about once in a hundred times."""
    script = (
        "import sys, os, pyarrow.parquet, pyarrow.acero, torch; from prepkit.api import open_zoo, verify\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "zoo = open_zoo(sys.argv[1]); verify(sys.argv[1], jobs=1)\n"
        "for _ in range(20): zoo.where('accuracy >= 0.1')\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    done = forked_python.run("-c", script, zoo._store.root)
    assert done.stdout == "0\n"
    assert len(zoo.where("accuracy >= 0.1")) == 9


def test_an_instance_and_its_layout_are_shown_on_a_line(zoo):
    assert repr(zoo["resnet8-0"][0]) == "<PRep of resnet8@digits: 12 x 512 float32>"
    assert repr(zoo.layout("resnet8-0")) == "<Layout: 5,058 values in 20 slots, float32>"

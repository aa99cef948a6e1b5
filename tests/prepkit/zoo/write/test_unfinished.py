"""Tests of open_zoo(unfinished=True): the finished instances of a zoo while it is written, or after a kill."""

import os
import pickle
import signal
import time

import killed_writer
import pytest
import torch
from killed_writer import ALL_IDS, OPTIONS, sizes_of
from writer_samples import tensors_of

from prepkit.api import open_zoo
from prepkit.errors import ZooError
from prepkit.families.registry import Registry, architecture
from prepkit.zoo.write.writer import ZooWriter

KINDS = ("safetensors", "hdf5")


def check(zoo, ids):
    """Compare all that a zoo of `killed_writer` shows with what was written."""
    assert zoo.table["id"].to_pylist() == ids
    assert len(zoo) == len(ids)
    for index, id in enumerate(ids):
        number, prep = int(id[1:]), zoo[index][0]
        if id.startswith("m"):
            for name, tensor in tensors_of(number, sizes_of(number)).items():
                assert torch.equal(prep.tensors()[name], tensor)
            assert zoo.metadata(index)["accuracy"] == number / 64
            assert zoo.metadata(index)["split"] == ("train" if number % 4 else "test")
        else:
            values = zoo.preps([index], width=64, height=72).flatten()[:4481]
            assert torch.equal(values, killed_writer.stack_of(number, 1).flatten()[:4481])
    for preps, class_ids, indices in zoo.loader(4):
        assert torch.equal(preps, zoo.preps(indices))
        assert torch.equal(class_ids, zoo.class_ids(indices))


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_instances_appear_when_they_are_finished_and_stay(tmp_path, kind, mmap):
    root = tmp_path / "zoo"
    seen, opened = [], []

    def look(ids):
        seen.extend(ids)
        opened.append((open_zoo(root, unfinished=True, mmap=mmap), list(seen)))
        assert len(opened[-1][0]) == len(seen)

    killed_writer.write(str(root), kind, look)
    for zoo, ids in opened[::3] + opened[-1:]:  # also after the writer renamed its shards, and the zoo is finished
        check(zoo, ids)
    assert seen == ALL_IDS
    check(open_zoo(root, unfinished=True, mmap=mmap), ALL_IDS)


def test_class_ids_are_those_of_the_registry(tmp_path):
    names = ("resnet8@digits", "lenet_like@digits")
    registry = Registry(map(architecture, names), class_ids={name: number for number, name in enumerate(names)})
    writer = ZooWriter(tmp_path / "zoo", registry=registry)
    for name in reversed(names):
        writer.add(architecture(name).build_folded())
    zoo = open_zoo(tmp_path / "zoo", unfinished=True)
    assert zoo.class_ids().tolist() == [1, 0]
    assert zoo.manifest.shape == zoo.shape
    writer.close()
    assert open_zoo(tmp_path / "zoo").class_ids().tolist() == [1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_beside_a_writer_that_is_killed(tmp_path, kind):
    """The zoo is opened again and again while another process writes it, until that is killed; nothing is changed."""
    root = tmp_path / "zoo"
    child = os.fork()
    if child == 0:
        try:
            killed_writer.write(str(root), kind, lambda ids: time.sleep(60 if ids[-1] == ALL_IDS[-1] else 0.005))
        finally:
            os._exit(1)
    try:
        found, deadline = [], time.monotonic() + 20
        while len(found) < len(ALL_IDS) - 5 and time.monotonic() < deadline:
            if not (root / ".writing" / "journal.jsonl").exists():
                continue
            zoo = open_zoo(root, unfinished=True) if (root / ".writing" / "journal.jsonl").stat().st_size else None
            ids = [] if zoo is None else zoo.table["id"].to_pylist()
            assert ids == ALL_IDS[: len(ids)]
            assert len(ids) >= len(found)
            if len(ids) > len(found):
                check(zoo, ids)
            found = ids
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    zoo = open_zoo(root, unfinished=True)
    assert len(zoo) >= len(found) > 10
    check(zoo, ALL_IDS[: len(zoo)])
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before
    killed_writer.write(str(root), kind)
    check(open_zoo(root), ALL_IDS)


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(ZooError, match="does not exist"):
        open_zoo(tmp_path / "none", unfinished=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZooError, match="is not a zoo"):
        open_zoo(tmp_path / "empty", unfinished=True)
    with pytest.raises(ZooError, match="is for a local folder"):
        open_zoo("hf://user/zoo", unfinished=True)
    writer = ZooWriter(tmp_path / "zoo", **OPTIONS)
    assert len(open_zoo(tmp_path / "zoo", unfinished=True)) == 0
    writer.add(tensors_of(0))
    zoo = open_zoo(tmp_path / "zoo", unfinished=True)
    with pytest.raises(ZooError, match="is unfinished, and another process"):
        pickle.dumps(zoo)
    with pytest.raises(ZooError, match="is still written; give its columns when it is finished"):
        zoo.with_columns({"id": ["0"], "a": [1]})
    with pytest.raises(ZooError, match="is an unfinished zoo"):
        open_zoo(tmp_path / "zoo")
    part = next((tmp_path / "zoo" / ".writing").glob("*.part"))
    os.truncate(part, 4100)
    with pytest.raises(ZooError, match="values of instances that were finished are gone"):
        open_zoo(tmp_path / "zoo", unfinished=True)

"""Instances that are written in groups: they give the same bytes, and what was written is kept after an error."""

import errno
import os

import pytest
import torch
from folder_contents import files_of
from writer_samples import tensors_of

import prepkit
from prepkit.errors import OutputError, ZooError
from prepkit.zoo.write import _group, staging
from prepkit.zoo.write.writer import ZooWriter


def write(root, grouped, seeds=range(150), sizes=((3, 5, 2),), **options):
    with ZooWriter(root, width=8, name="zoo", shard_bytes=3000, **options) as writer:

        def add():
            for seed in seeds:
                kind = sizes[seed % len(sizes)]
                writer.add(tensors_of(seed, kind), id=f"m{seed}", split="train", epoch=seed if seed < 100 else seed / 2)

        if grouped:
            with writer.in_groups():
                add()
        else:
            add()
    return files_of(root)


@pytest.mark.parametrize("format", ["safetensors", "hdf5"])
@pytest.mark.parametrize("sizes", [((3, 5, 2),), ((3, 5, 2), (3, 9, 2), (3, 5, 2))])
def test_groups_change_no_byte(tmp_path, format, sizes):
    expected = write(tmp_path / "a", False, sizes=sizes, format=format)
    assert write(tmp_path / "b", True, sizes=sizes, format=format) == expected


def test_instances_too_large_for_a_group(tmp_path, monkeypatch):
    monkeypatch.setattr(_group, "MAX_BYTES", 300)
    sizes = ((3, 5, 2), (3, 90, 2))
    assert write(tmp_path / "b", True, sizes=sizes) == write(tmp_path / "a", False, sizes=sizes)


def test_an_error_keeps_those_before_it(tmp_path):
    def add_all():
        with ZooWriter(tmp_path / "zoo", width=8) as writer, writer.in_groups():
            for seed in range(5):
                writer.add(tensors_of(seed), id=str(seed), epoch=seed if seed < 3 else "three")

    with pytest.raises(ZooError, match="'epoch'"):
        add_all()
    with ZooWriter(tmp_path / "zoo", width=8, resume=True) as writer:
        assert writer.finished_ids == {"0", "1", "2"}


def test_stacks_and_readers_of_the_journal_come_after_the_group(tmp_path):
    with ZooWriter(tmp_path / "zoo", width=64) as writer, writer.in_groups():
        writer.add(tensors_of(0), id="first")
        assert [entry.id for entry in writer.finished()] == ["first"]
        writer.add(tensors_of(1), id="second")
        writer.add_stack(torch.ones(2, 72, 64), architecture="sine_mlp@sdf_small", ids=["s0", "s1"])
        writer.add(tensors_of(2), id="last")
        assert [entry.id for entry in writer.finished()] == ["first", "second", "s0", "s1", "last"]
    assert prepkit.open_zoo(tmp_path / "zoo").table["id"].to_pylist() == ["first", "second", "s0", "s1", "last"]


def test_a_group_that_cannot_be_written_is_not_in_the_zoo(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def add_all():
        with writer, writer.in_groups():
            for seed in range(200):
                if seed == 64:
                    monkeypatch.setattr(staging.os, "pwrite", full)
                writer.add(tensors_of(seed), id=str(seed))

    writer = ZooWriter(tmp_path / "zoo", width=8)
    with pytest.raises(OutputError, match="disk is full"):
        add_all()
    assert len(writer) == 64
    monkeypatch.undo()
    with ZooWriter(tmp_path / "zoo", width=8, resume=True) as writer:
        assert writer.finished_ids == {str(seed) for seed in range(64)}


def test_slow_work_is_written_before_a_group_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(_group, "MAX_SECONDS", 0.0)
    with ZooWriter(tmp_path / "zoo", width=8) as writer, writer.in_groups():
        writer.add(tensors_of(0), id="first")
        assert b'"first"' in (writer.working_folder / "journal.jsonl").read_bytes()


# Networks that are alike are recognised once ------------------------------------------------------------------


def test_networks_that_only_look_alike(tmp_path):
    """Equal names and shapes, but tied tensors, another dtype, integer buffers, or a built-in architecture."""
    tied = torch.arange(12.0).reshape(3, 4)
    nets = {
        "a0": {"x.weight": torch.ones(3, 4), "y.weight": torch.zeros(3, 4)},
        "a1": {"x.weight": torch.ones(3, 4) * 2, "y.weight": torch.ones(3, 4) * 3},
        "b0": {"x.weight": tied, "y.weight": tied},
        "a2": {"x.weight": torch.ones(3, 4) * 4, "y.weight": torch.ones(3, 4) * 4},
        "c0": {"x.weight": torch.ones(3, 4).half(), "y.weight": torch.ones(3, 4)},
        "a3": {"x.weight": torch.ones(3, 4) * 5, "y.weight": torch.ones(3, 4) * 6, "n": torch.tensor(3)},
        "d0": prepkit.architecture("lenet_like@digits").build().state_dict(),
        "d1": prepkit.architecture("lenet_like@digits").build().state_dict(),
        "e0": {"y.weight": torch.ones(3, 4) * 7, "x.weight": torch.ones(3, 4) * 8},
    }
    for name, tensors in nets.items():
        torch.save(tensors, tmp_path / f"{name}.pt")
    written = prepkit.create_zoo(tmp_path / "zoo", [tmp_path / f"{name}.pt" for name in nets])
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    layouts = {stored.name: stored.layout for stored in written.manifest.architectures}
    for index, (name, tensors) in enumerate(nets.items()):
        stored = layouts[zoo.table["architecture"][index].as_py()].unpack(zoo.preps([index])[0])
        floats = {key: value for key, value in tensors.items() if value.is_floating_point()}
        assert stored.keys() == floats.keys(), name
        assert all(torch.equal(stored[key], value.to(stored[key].dtype)) for key, value in floats.items()), name
    of = dict(zip(nets, zoo.table["architecture"].to_pylist(), strict=True))
    assert of["a0"] == of["a1"] == of["a2"] == of["a3"] == of["e0"]
    assert len({of["a0"], of["b0"], of["c0"], of["d0"]}) == 4
    assert of["d0"] == of["d1"] == "lenet_like@digits"
    assert any("Integer buffers are left out" in note and "n" in note for note in written.notes)


def test_nan_in_a_network_that_is_like_others(tmp_path):
    for number in range(5):
        values = torch.full((4,), float("nan") if number == 3 else float(number))
        torch.save({"w": values}, tmp_path / f"{number}.pt")
    files = [tmp_path / f"{number}.pt" for number in range(5)]
    with pytest.raises(prepkit.PrepkitError, match=r"'.*3\.pt'.* NaN"):
        prepkit.create_zoo(tmp_path / "zoo", files)
    written = prepkit.create_zoo(tmp_path / "zoo", files, resume=True, drop_nan=True)
    assert written.manifest.table.rows == 4
    assert any("1 model that holds NaN or infinity left out: 3" in note for note in written.notes)

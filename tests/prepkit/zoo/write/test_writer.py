"""Tests of the zoo that a writer makes of networks, stacks and columns."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from folder_contents import files_of
from writer_samples import tensors_of, trained, write_digits

import prepkit
from prepkit.api import open_zoo
from prepkit.errors import FusionError, LayoutMismatch, PrepkitError
from prepkit.zoo.write.writer import ZooWriter


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for format in ("safetensors", "hdf5"):
        first = files_of(write_digits(tmp_path / f"a-{format}", rounds=2, format=format))
        assert files_of(write_digits(tmp_path / f"b-{format}", rounds=2, format=format)) == first


def test_ids_run_where_none_are_given(tmp_path):
    with ZooWriter(tmp_path / "zoo") as writer:
        assert writer.add(tensors_of(0)) == "000000"
        assert writer.add(tensors_of(1), id="mine") == "mine"
        assert writer.add(tensors_of(2)) == "000002"
        assert writer.finished_ids == {"000000", "mine", "000002"}
    assert open_zoo(tmp_path / "zoo").table["id"].to_pylist() == ["000000", "mine", "000002"]


def test_columns_keep_their_types(tmp_path):
    rows = [
        {"seed": 3, "lr": 1, "ok": True, "note": None, "big": 2**60},
        {"seed": np.int64(4), "lr": 0.5, "ok": np.bool_(False), "note": "ü\n", "late": "x", "big": 1},
        {"seed": torch.tensor(5), "lr": torch.tensor(0.25), "ok": None, "nothing": None},
        {"lr": float("nan"), "note": os.fspath("a")},
    ]
    with ZooWriter(tmp_path / "zoo") as writer:
        for seed, row in enumerate(rows):
            writer.add(tensors_of(seed), **row)
    table = open_zoo(tmp_path / "zoo").table
    assert table["seed"].to_pylist() == [3, 4, 5, None]
    assert table["lr"].to_pylist()[:3] == [1.0, 0.5, 0.25]
    assert np.isnan(table["lr"].to_pylist()[3])
    assert table["ok"].to_pylist() == [True, False, None, None]
    assert table["note"].to_pylist() == [None, "ü\n", None, "a"]
    assert table["late"].to_pylist() == [None, "x", None, None]
    assert table["big"].to_pylist() == [2**60, 1, None, None]
    assert table["nothing"].to_pylist() == [None] * 4


def test_an_empty_stack_is_nothing(tmp_path):
    with ZooWriter(tmp_path / "zoo") as writer:
        assert writer.add_stack(torch.zeros(0, 8, 512), architecture="lenet_like@digits", accuracy=[]) == []
        assert len(writer) == 0
    assert len(open_zoo(tmp_path / "zoo")) == 0


def test_registry_gives_class_ids(tmp_path):
    registry = prepkit.Registry(
        [prepkit.architecture("resnet8@digits"), prepkit.architecture("lenet_like@digits")],
        class_ids={"resnet8@digits": 0, "lenet_like@digits": 1},
    )
    with ZooWriter(tmp_path / "zoo", registry=registry) as writer:
        writer.add(trained("lenet_like@digits", 0))
    zoo = open_zoo(tmp_path / "zoo")
    assert zoo.registry.class_ids == {"resnet8@digits": 0, "lenet_like@digits": 1}
    assert zoo.class_ids().tolist() == [1]
    assert zoo.shape == prepkit.PRepShape(12, 512)  # that of the registry's tallest, which has no instance


def test_height_that_was_asked_for(tmp_path):
    with ZooWriter(tmp_path / "zoo", height=40) as writer:
        writer.add(trained("lenet_like@digits", 0))
    assert open_zoo(tmp_path / "zoo").preps().shape == (1, 40, 512)


def test_batch_norm_of_an_unknown_network_is_refused(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    with ZooWriter(tmp_path / "zoo") as writer, pytest.raises(FusionError, match="Name the network"):
        writer.add(network)


def test_stack_with_batch_norm_is_told_what_to_do(tmp_path):
    state = trained("resnet8@digits", 0).state_dict()
    stack = {name: tensor[None] for name, tensor in state.items()}
    with (
        ZooWriter(tmp_path / "zoo") as writer,
        pytest.raises(LayoutMismatch, match=r"Fold BatchNorm first|does not have"),
    ):
        writer.add_stack(stack, architecture="resnet8@digits")


def test_files_have_the_usual_permissions(tmp_path):
    write_digits(tmp_path / "zoo", rounds=1)
    umask = os.umask(0)
    os.umask(umask)
    for file in (tmp_path / "zoo").rglob("*"):
        if file.is_file():
            assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask, file


def test_what_was_given_may_change_afterwards(tmp_path):
    """The hash is computed while the caller goes on; it must not see the caller's changes."""
    network = trained("lenet_like@digits", 0)
    values = prepkit.Layout.of(network).pack(network.state_dict(), prepkit.PRepShape(8, 512)).repeat(50, 1, 1)
    before = values.clone()
    with ZooWriter(tmp_path / "zoo", shard_bytes=1 << 20) as writer:
        writer.add_stack(values, architecture="lenet_like@digits")
        values.zero_()
    assert torch.equal(open_zoo(tmp_path / "zoo").preps(), before)
    from prepkit.support.files import sha256_of_file

    for shard in open_zoo(tmp_path / "zoo").manifest.shards:
        assert sha256_of_file(tmp_path / "zoo" / shard.path) == shard.sha256


def test_closing_twice_is_closing_once(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0))
    writer.close()
    writer.close()
    with pytest.raises(prepkit.PrepkitError, match="this writer is closed"):
        writer.add(tensors_of(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_finite_values_are_kept_although_their_sum_is_infinite(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.full((64,), torch.finfo(dtype).max, dtype=dtype)
    with ZooWriter(tmp_path / "zoo", width=8) as writer:
        writer.add({"w": values})
        for wrong in (float("inf"), float("nan"), -float("inf")):
            damaged = values.clone()
            damaged[17] = wrong
            with pytest.raises(PrepkitError, match=r"1 NaN|1 infinite"):
                writer.add({"w": damaged})
    prep, _ = open_zoo(tmp_path / "zoo")[0]
    assert torch.equal(prep.tensors()["w"], values)


def test_what_is_unfinished_can_be_given_up_and_what_is_finished_cannot(tmp_path):
    unfinished = ZooWriter(tmp_path / "unfinished")
    unfinished.add(tensors_of(0))
    unfinished.discard()
    assert not (tmp_path / "unfinished").exists()
    with ZooWriter(tmp_path / "finished") as finished:
        finished.add(tensors_of(0))
    before = files_of(tmp_path / "finished")
    finished.discard()
    assert files_of(tmp_path / "finished") == before

"""Tests of buffers: they are used again, bounded and never shared, and stacks are written through them."""

import threading

import numpy as np
import pytest
import torch
from writer_samples import tensors_of

import prepkit
from prepkit.api import open_zoo, verify
from prepkit.errors import LayoutMismatch
from prepkit.zoo.write import _buffers as module
from prepkit.zoo.write import _instance_rows as intake
from prepkit.zoo.write._buffers import Buffers
from prepkit.zoo.write.writer import ZooWriter


def test_a_buffer_that_was_given_back_is_used_again():
    buffers = Buffers()
    first, second = buffers.take(1000), buffers.take(1000)
    assert first.data_ptr() != second.data_ptr()
    buffers.give_back(first)
    assert buffers.take(500).data_ptr() == first.data_ptr()
    buffers.give_back(second)
    assert len(buffers.take(2000)) >= 2000


def test_take_waits_while_too_much_is_in_use(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 3000)
    buffers = Buffers()
    taken = [buffers.take(1000) for _ in range(3)]
    got = threading.Event()
    thread = threading.Thread(target=lambda: (buffers.take(1000), got.set()), daemon=True)
    thread.start()
    assert not got.wait(0.2)
    buffers.give_back(taken.pop())
    assert got.wait(10)


def test_large_ones_are_two_at_a_time_and_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 3000)
    buffers = Buffers()
    for size in (5000, 6000, 7000, 8000):
        pair = [buffers.take(size), buffers.take(size)]
        assert not buffers._has_room(1)
        for buffer in pair:
            buffers.give_back(buffer)
    assert sum(map(len, buffers._free)) <= 2 * 8000


def test_failing_to_fill_gives_back():
    buffers = Buffers()
    for _ in range(5):
        with pytest.raises(ValueError, match="x"), buffers.filled(1 << 26):
            raise ValueError("x")
    with buffers.filled(8) as (values, piece):
        values.fill_(7)
    assert bytes(piece.values) == b"\7" * 8


def test_refused_instances_leave_the_buffers_free(tmp_path):
    with ZooWriter(tmp_path / "zoo", width=8) as writer:
        for _ in range(5):
            with pytest.raises(prepkit.PrepkitError, match="NaN"):
                writer.add({"x": torch.full((1 << 20,), float("nan"))})
        writer.add(tensors_of(0))
    assert len(open_zoo(tmp_path / "zoo")) == 1


@pytest.mark.parametrize("piece_bytes", [1, 50_000, 1 << 20])
@pytest.mark.parametrize("kind", ["tensors", "PReps", "PReps of this width", "strided", "tracked", "bfloat16", "wider"])
def test_a_stack_in_pieces_is_the_stack(tmp_path, monkeypatch, piece_bytes, kind):
    """A stack is written in pieces of one row or of several, of which the last is smaller, over the ends of shards."""
    monkeypatch.setattr(intake, "PIECE_BYTES", piece_bytes)
    known = prepkit.architecture("sine_mlp@sdf_small")
    count, dtype = 23, torch.bfloat16 if kind == "bfloat16" else torch.float32
    flat = torch.randn(count, 4481, generator=torch.Generator().manual_seed(0)).to(dtype)
    width = 512 if kind == "PReps" else 64
    preps = torch.full((count, known.layout.shape(width).cells), 9.0, dtype=dtype)  # what lies after is not kept
    preps[:, :4481] = flat
    preps = preps.view(count, -1, width)
    if kind == "strided":
        preps = torch.stack([preps, preps], dim=1)[:, 1]
    if kind == "tracked":
        preps = preps.requires_grad_()
    stack = known.layout.unpack(preps) if kind == "tensors" else preps
    zoo_dtype = "float64" if kind == "wider" else None
    with ZooWriter(tmp_path / "zoo", width=64, dtype=zoo_dtype, shard_bytes=7 * 72 * 64 * 4) as writer:
        writer.add_stack(stack, architecture=known)
    zoo = open_zoo(tmp_path / "zoo")
    found = zoo.preps().view(count, -1)
    assert torch.equal(found[:, :4481], flat.to(found.dtype))
    assert not found[:, 4481:].any()
    assert verify(tmp_path / "zoo").ok


@pytest.mark.parametrize("fault", ["rows", "name", "nan"])
def test_a_fault_in_the_last_row_of_a_stack_is_found_before_anything_is_written(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(intake, "PIECE_BYTES", 1)
    known = prepkit.architecture("sine_mlp@sdf_small")
    tensors = {name: t.clone() for name, t in known.layout.unpack(torch.zeros(5, 72, 64)).items()}
    last = list(tensors)[-1]
    if fault == "rows":
        tensors[last] = tensors[last][:4]
    if fault == "name":
        tensors["other"] = torch.zeros(5, 3)
    if fault == "nan":
        tensors[last][4] = np.nan
    with ZooWriter(tmp_path / "zoo", width=64) as writer:
        error = prepkit.PrepkitError if fault == "nan" else LayoutMismatch
        with pytest.raises(error, match={"rows": "in a stack of 5", "name": "other", "nan": "NaN"}[fault]):
            writer.add_stack(tensors, architecture=known)
        assert not list(writer.working_folder.glob("*.part"))
        assert len(writer) == 0

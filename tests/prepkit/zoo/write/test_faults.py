"""Tests of kills, a second writer, a full disk and bad input: nothing is lost, and nothing is visible in part."""

import contextlib
import errno
import os
import random
from datetime import date
from pathlib import Path

import killed_writer
import numpy as np
import pytest
import torch
from writer_samples import files_of, tensors_of, trained

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
    ZooLocked,
)
from prepkit.support.files import sha256_of_file
from prepkit.tensors import same_bits
from prepkit.zoo.write.writer import ZooWriter


def check_whole(root: Path) -> None:
    """Check that every instance is in the zoo once, with its own values, and that every file has its sha256."""
    zoo = open_zoo(root)
    assert sorted(zoo.table["id"].to_pylist()) == sorted(killed_writer.ALL_IDS)
    for stored in (*zoo.manifest.shards, zoo.manifest.table):
        assert sha256_of_file(root / stored.path) == stored.sha256
    for index in range(killed_writer.NUM_ADDED):
        prep, metadata = zoo[f"m{index}"]
        tensors = tensors_of(index, killed_writer.sizes_of(index))
        assert all(same_bits(prep.tensors()[name], tensor) for name, tensor in tensors.items())
        assert metadata["accuracy"] == index / 64
    for index in range(killed_writer.NUM_STACKED):
        flat = zoo[f"s{index}"][0].values.reshape(-1)
        assert torch.equal(flat[:4481], index + torch.arange(4481) / 8192)


def finished_after(root: Path, format: str) -> frozenset[str] | None:
    """Return the ids that a resuming writer finds, and leave the zoo unfinished; None if the zoo is finished."""
    try:
        writer = ZooWriter(root, format=format, resume=True, **killed_writer.OPTIONS)
    except ZooError as error:
        if "finished zoo" in str(error) and "unfinished" not in str(error):
            return None
        raise
    assert len(writer) == len(writer.finished_ids)
    interrupt(writer)
    return writer.finished_ids


def interrupt(writer: ZooWriter) -> None:
    """End a writer as an exception inside its `with` does."""
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


@pytest.mark.parametrize("num_kills", [3, pytest.param(56, marks=pytest.mark.slow)])
def test_kill_at_any_moment(killer, tmp_path, num_kills):
    """Kills come at random times of the run, its close included, and right after an `add`; some zoos meet several."""
    seed = int(os.environ.get("PREPKIT_KILL_SEED", random.SystemRandom().randrange(1 << 30)))
    print("PREPKIT_KILL_SEED =", seed)
    chance = random.Random(seed)
    formats = ("safetensors", "hdf5")
    references, seconds = {}, {}
    for format in formats:
        killed_writer.write(str(tmp_path / format), format)
        references[format] = files_of(tmp_path / format)
        check_whole(tmp_path / format)
        timed = [killer.run(root=str(tmp_path / f"timed-{format}-{n}"), format=format) for n in range(3)]
        assert timed[0]["lines"][-1] == "closed"
        seconds[format] = sorted(time["seconds"] for time in timed)[1]
    kills = kills_in_close = zoos = 0
    while kills < num_kills:
        zoos += 1
        format = formats[zoos % 2]
        root = tmp_path / f"zoo{zoos}"
        returned: set[str] = set()
        for _ in range(chance.choice([1, 1, 2, 4])):
            lines = chance.randrange(len(killed_writer.ALL_IDS) + 1)
            how = {"lines": lines} if chance.random() < 0.4 else {"seconds": chance.uniform(0, 1.1 * seconds[format])}
            lines = killer.run(root=str(root), format=format, **how)["lines"]
            assert not [line for line in lines if line.startswith("error")], (seed, how, lines)
            returned |= set(lines) - {"closed"}
            kills += "closed" not in lines
            found = finished_after(root, format)
            if found is None:
                break
            kills_in_close += len(found) == len(killed_writer.ALL_IDS)
            assert returned <= found, (seed, how)
            assert "closed" not in lines
            with pytest.raises(ZooError, match="unfinished zoo"):
                open_zoo(root)
        if not (root / "zoo.json").exists():
            killed_writer.write(str(root), format)
        check_whole(root)
        assert files_of(root) == references[format], (seed, zoos)
    print(f"{kills} kills of {zoos} zoos, {kills_in_close} of them while closing")


def test_kill_in_close_at_every_step(tmp_path):
    """A kill between two steps of `close` is imitated at each call that gives a file its name."""
    killed_writer.write(str(tmp_path / "reference"), "safetensors")
    reference = files_of(tmp_path / "reference")
    replace = os.replace
    for step in range(100):
        root = tmp_path / f"zoo{step}"
        calls = iter(range(1_000_000))

        def dying(source, target, calls=calls, step=step):
            if next(calls) == step:
                raise KeyboardInterrupt
            replace(source, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                killed_writer.write(str(root), "safetensors")
                break
            except KeyboardInterrupt:
                pass
        killed_writer.write(str(root), "safetensors")
        assert files_of(root) == reference
    assert step > len([name for name in reference if name.startswith("shards")])


def test_killed_after_the_last_step(tmp_path):
    killed_writer.write(str(tmp_path / "zoo"), "safetensors")
    (tmp_path / "zoo" / ".writing").mkdir()
    (tmp_path / "zoo" / ".writing" / "journal.jsonl").write_text("{}\n")
    assert len(open_zoo(tmp_path / "zoo")) == len(killed_writer.ALL_IDS)
    assert finished_after(tmp_path / "zoo", "safetensors") is None
    assert not (tmp_path / "zoo" / ".writing").exists()


def test_second_writer_is_told_who_writes(tmp_path):
    with ZooWriter(tmp_path / "zoo") as writer:
        for resume in (False, True):
            with pytest.raises(ZooLocked, match=rf"being written by process {os.getpid()} on "):
                ZooWriter(tmp_path / "zoo", resume=resume)
        writer.add(tensors_of(1))
    assert len(open_zoo(tmp_path / "zoo")) == 1


def test_lock_of_a_killed_writer_is_free(killer, tmp_path):
    killer.run(root=str(tmp_path / "zoo"), format="safetensors", lines=3)
    with ZooWriter(tmp_path / "zoo", resume=True, **killed_writer.OPTIONS) as writer:
        assert len(writer) >= 3


class FullDisk:
    """Replaces os.write and os.pwrite by those of a disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write, self.pwrite = os.write, os.pwrite

    def take(self, data) -> memoryview:
        piece = memoryview(data).cast("B")[: self.room]
        if not piece:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(piece)
        return piece

    def patched(self, patch) -> None:
        patch.setattr(os, "write", lambda file, data: self.write(file, self.take(data)))
        patch.setattr(os, "pwrite", lambda file, data, at: self.pwrite(file, self.take(data), at))


@pytest.mark.parametrize("room", [0, 10, 5_000, 9_000, 30_000, 80_000, 140_000, 170_000])
@pytest.mark.parametrize("format", ["safetensors", "hdf5"])
def test_full_disk(tmp_path, room, format):
    killed_writer.write(str(tmp_path / "reference"), format)
    root = tmp_path / "zoo"
    returned: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(room).patched(patch)
        with pytest.raises(OutputError, match="disk is full"):
            killed_writer.write(str(root), format, returned.extend)
    assert not (root / "zoo.json").exists()
    found = finished_after(root, format)
    assert found is not None
    assert found == set(returned)
    killed_writer.write(str(root), format)
    assert files_of(root) == files_of(tmp_path / "reference")


def test_full_disk_at_the_table(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "no space")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(OutputError, match="disk is full"):
            killed_writer.write(str(tmp_path / "zoo"), "safetensors")
    killed_writer.write(str(tmp_path / "zoo"), "safetensors")
    killed_writer.write(str(tmp_path / "reference"), "safetensors")
    assert files_of(tmp_path / "zoo") == files_of(tmp_path / "reference")


def test_writer_refuses_to_go_on_after_a_full_disk(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0), id="first")
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(100).patched(patch)
        with pytest.raises(OutputError, match="disk is full"):
            writer.add(tensors_of(1), id="second")
    for again in (lambda: writer.add(tensors_of(1), id="third"), writer.close):
        with pytest.raises(ZooError, match=r"failed before .* resume=True"):
            again()
    writer.__exit__(ValueError, ValueError(), None)
    with pytest.raises(ZooError, match="failed before"):  # not silently closed
        writer.close()
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        assert writer.finished_ids == {"first"}


# Bad input ------------------------------------------------------------------------------------------------------------


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


def test_damaged_journal_is_named(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0))
    interrupt(writer)
    journal = tmp_path / "zoo" / ".writing" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:2], "{nonsense}\n", *lines[2:]]))
    with pytest.raises(ZooError, match=r"journal\.jsonl, line 3: damaged"):
        ZooWriter(tmp_path / "zoo", resume=True)


def test_lost_values_are_named(tmp_path):
    """After a power failure a shard may be shorter than the journal says."""
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0))
    interrupt(writer)
    part = next((tmp_path / "zoo" / ".writing").glob("*.part"))
    os.truncate(part, 100)
    with pytest.raises(ZooError, match=r"\.part: the values of instances that were finished are gone"):
        ZooWriter(tmp_path / "zoo", resume=True)


def named_files(root: Path) -> set[str]:
    """Return the files that a zoo should consist of."""
    manifest = open_zoo(root).manifest
    return {stored.path for stored in (*manifest.shards, manifest.table)} | {"zoo.json"}


def test_line_that_a_kill_tore_is_cut_off(tmp_path):
    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0), id="a")
    interrupt(writer)
    with open(tmp_path / "zoo" / ".writing" / "journal.jsonl", "a") as journal:
        journal.write('{"id":"b","architec')
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        assert writer.finished_ids == {"a"}
        writer.add(tensors_of(1), id="b")
    assert open_zoo(tmp_path / "zoo").table["id"].to_pylist() == ["a", "b"]


def test_shards_of_a_stack_that_was_not_finished_leave_no_trace(tmp_path):
    """The stack's values fill shards, which are published before its lines are in the journal."""
    writer = ZooWriter(tmp_path / "zoo", **killed_writer.OPTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer._journal, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            writer.add_stack(killed_writer.stack_of(0, 5), architecture=killed_writer.STACK_ARCHITECTURE)
    interrupt(writer)
    with ZooWriter(tmp_path / "zoo", resume=True, **killed_writer.OPTIONS) as writer:
        assert len(writer) == 0
        writer.add_stack(killed_writer.stack_of(7, 2), architecture=killed_writer.STACK_ARCHITECTURE)
    assert open_zoo(tmp_path / "zoo").preps()[:, 0, 0].tolist() == [7, 8]
    assert set(files_of(tmp_path / "zoo")) == named_files(tmp_path / "zoo")


def test_table_of_a_killed_close_leaves_no_trace(tmp_path):
    replace = os.replace

    def dying(source, target):
        if Path(target).name == "zoo.json":
            raise KeyboardInterrupt
        replace(source, target)

    writer = ZooWriter(tmp_path / "zoo")
    writer.add(tensors_of(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            writer.close()
    with ZooWriter(tmp_path / "zoo", resume=True) as writer:
        writer.add(tensors_of(1))
    assert set(files_of(tmp_path / "zoo")) == named_files(tmp_path / "zoo")
    assert len(open_zoo(tmp_path / "zoo")) == 2

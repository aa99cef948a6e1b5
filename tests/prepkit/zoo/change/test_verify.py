"""Tests of verify: it finds any change in a zoo, and running instances again finds a wrong stored accuracy."""

import json
import shutil
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from prepkit.api import open_zoo, verify
from prepkit.errors import ZooError
from prepkit.families.registry import architecture, architecture_from_callable
from prepkit.support.files import sha256_of_file
from prepkit.tasks import load_task, test_set
from prepkit.tasks._image_record import split_indices
from prepkit.tasks.task import DataMissing
from prepkit.zoo.change.rerun import run_again
from prepkit.zoo.format.manifest import MANIFEST, checksum, read_manifest
from prepkit.zoo.write.writer import ZooWriter

TASK = {"kind": "images", "dataset": "digits", "mean": [0.3], "std": [0.4], "split": {"seed": 0, "test": 360}}
ARCHITECTURES = ("lenet_like@digits", "vanilla_cnn@digits")


def accuracy(network, task=TASK):
    inputs, labels = test_set(task)
    with torch.no_grad():
        return (network.eval()(inputs).argmax(-1) == labels).float().mean().item()


@pytest.fixture(scope="module", params=["safetensors", "hdf5"])
def whole(request, tmp_path_factory):
    """A zoo of six instances in three shards, with a teacher."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("verify") / "zoo"
    with ZooWriter(root, format=request.param, task=TASK, shard_bytes=40_000) as writer:
        writer.set_teacher(architecture("resnet8@digits").build())
        for number in range(6):
            network = architecture(ARCHITECTURES[number % 2]).build()
            writer.add(network, id=f"m{number}", split="train" if number else None, accuracy=accuracy(network))
    return root


@pytest.fixture
def zoo(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "zoo")


def all_files(root):
    return sorted(file for file in root.rglob("*") if file.is_file())


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def rewritten(root, change):
    """Change the manifest and give it a right checksum, as a forger would."""
    data = json.loads((root / MANIFEST).read_text())
    change(data)
    data["sha256"] = checksum(data)
    (root / MANIFEST).write_text(json.dumps(data))


def test_a_whole_zoo_verifies_and_every_byte_is_read(zoo):
    counts = []
    found = verify(zoo, jobs=3, progress=counts.append)
    assert found.ok
    assert (found.faults, found.notes, found.instances) == ((), (), 6)
    assert found.files == len(all_files(zoo)) >= 6
    assert found.bytes == sum(counts) == sum(file.stat().st_size for file in all_files(zoo) if file.name != MANIFEST)


def test_a_flipped_bit_anywhere_is_found_and_its_file_is_named(zoo):
    before = read_manifest(zoo)
    generator = np.random.default_rng(0)
    for file in all_files(zoo):
        good = file.read_bytes()
        size = 8 * len(good)
        bits = {*generator.integers(size, size=20).tolist(), 0, 63, size - 1, size // 2, *range(80, 800, 97)}
        for bit in sorted(bits):
            flip(file, bit)
            found = verify(zoo)
            if not (file.name == MANIFEST and found.ok and read_manifest(zoo) == before):  # 1e-5 and 1E-5 are one
                assert [fault.file for fault in found.faults] == [file.relative_to(zoo).as_posix()], bit
                assert "\n" not in str(found.faults[0])
            file.write_bytes(good)
    assert verify(zoo).ok


@pytest.mark.parametrize("keep", [0, 1, 7, 100, 0.5, -1])
def test_a_truncated_file_is_found(zoo, keep):
    for file in all_files(zoo):
        good = file.read_bytes()
        file.write_bytes(good[: keep if isinstance(keep, int) else int(len(good) * keep)])
        faults = verify(zoo).faults
        cut_newline_only = file.name == MANIFEST and keep == -1
        assert [fault.file for fault in faults] == [file.relative_to(zoo).as_posix()] * (not cut_newline_only)
        file.write_bytes(good)


def test_a_longer_and_a_missing_file_are_found(zoo):
    for file in all_files(zoo):
        if file.name == MANIFEST:
            continue
        good = file.read_bytes()
        file.write_bytes(good + b"\0")
        assert [fault.file for fault in verify(zoo).faults] == [file.relative_to(zoo).as_posix()]
        file.unlink()
        (fault,) = verify(zoo).faults
        assert (fault.file, fault.problem) == (file.relative_to(zoo).as_posix(), "missing. Fetch it again.")
        file.write_bytes(good)


def test_all_faults_are_told_at_once_with_their_place_in_the_manifest(zoo):
    shards = read_manifest(zoo).shards
    flip(zoo / shards[0].path, 8 * 5000)
    (zoo / shards[1].path).unlink()
    first, second = verify(zoo).faults
    assert (first.file, first.place, second.place) == (shards[0].path, "shards[0]", "shards[1]")
    assert "its header is sound, so its content differs. Fetch it again." in first.problem


def test_a_link_is_a_fault(zoo, tmp_path):
    file = zoo / read_manifest(zoo).shards[0].path
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    (fault,) = verify(zoo).faults
    assert "links are refused" in fault.problem


def test_a_manifest_that_agrees_with_itself_but_not_with_the_files_is_found(zoo):
    manifest = read_manifest(zoo)
    content = (zoo / "zoo.json").read_bytes()
    names = sorted(
        {shard.architecture for shard in manifest.shards}, key=lambda name: manifest.architecture(name).height
    )

    def renamed(old, new):
        """Say of the first shard of an architecture that it holds another, and return it with the faults."""
        (zoo / "zoo.json").write_bytes(content)
        number = next(n for n, shard in enumerate(manifest.shards) if shard.architecture == old)
        rewritten(zoo, lambda data: data["shards"][number].update(architecture=new))
        return number, verify(zoo).faults

    number, faults = renamed(names[-1], names[0])
    assert manifest.shards[number].path in {fault.file for fault in faults}
    number, faults = renamed(names[0], names[-1])
    assert [fault.file for fault in faults] == ["zoo.json"]
    assert f"shards[{number}].rows" in faults[0].problem
    assert "but the shard has" in faults[0].problem


@pytest.mark.parametrize("rows_at_once", [1, 4, 50_000])
def test_a_table_that_mixes_up_instances_is_found(zoo, monkeypatch, rows_at_once):
    monkeypatch.setattr("prepkit.zoo.format.tables.ROWS_A_GROUP", rows_at_once)
    stored = read_manifest(zoo).table
    table = pq.read_table(zoo / stored.path)

    def faults_with(changed):
        pq.write_table(changed, zoo / stored.path)
        size, sha256 = (zoo / stored.path).stat().st_size, sha256_of_file(zoo / stored.path)
        rewritten(zoo, lambda data: data["table"].update(bytes=size, sha256=sha256))
        return [(fault.place, fault.problem) for fault in verify(zoo).faults]

    def typed(name, values):
        column = pa.array(values, table.schema.field(name).type)
        return table.set_column(table.column_names.index(name), name, column)

    assert faults_with(table) == []
    rows = table["row"].to_pylist()
    assert any("another instance's already" in problem for _, problem in faults_with(typed("row", [0] * 6)))
    assert faults_with(typed("id", ["a", "a", "b", "c", "d", "e"]))[0] == ("column id", "an id stands twice.")
    assert faults_with(typed("split", ["test"] * 6))[0][0] == "column split"
    assert "holds" in faults_with(typed("class_id", [1 - (n % 2) for n in range(6)]))[0][1]
    assert faults_with(typed("row", [*rows[:5], None]))
    assert faults_with(typed("row", [*rows[:5], 7]))[0][0] == "row 5"
    assert faults_with(typed("shard", [*table["shard"].to_pylist()[:5], -1]))[0][0] == "row 5"
    assert len(faults_with(typed("row", [-1] * 6))) == 5
    monkeypatch.setattr("prepkit.zoo.change.verify.hash", lambda id: 7, raising=False)
    assert faults_with(table) == []
    assert faults_with(typed("id", ["a", "b", "c", "d", "e", "a"]))[0] == ("column id", "an id stands twice.")


@pytest.mark.xdist_group("time and memory")
def test_memory_hardly_grows_with_the_table(tmp_path):
    one = architecture_from_callable("torch.nn:Linear", (3,), arguments={"in_features": 3, "out_features": 2})

    def peak(rows):
        root = tmp_path / str(rows)
        with ZooWriter(root, width=8) as writer:
            tensors = {"weight": torch.zeros(rows, 2, 3), "bias": torch.zeros(rows, 2)}
            writer.add_stack(tensors, architecture=one, split="train")
        verify(root)  # imports what it needs
        tracemalloc.start()
        try:
            assert verify(root, jobs=1).ok
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(150_000) - peak(50_000) < 100_000 * 25


def test_files_that_belong_to_nothing_are_a_note(zoo):
    (zoo / "shards" / "stray.bin").write_bytes(b"x")
    (zoo / "README.md").write_text("a card")
    (zoo / ".git").mkdir()
    (zoo / ".git" / "config").write_text("")
    found = verify(zoo)
    assert found.ok
    assert found.notes == ("shards/stray.bin: the manifest does not name it; it can be deleted.",)


def test_what_is_no_zoo_is_an_error(tmp_path):
    with pytest.raises(ZooError, match="does not exist"):
        verify(tmp_path / "none")
    with pytest.raises(ZooError, match=r"has no zoo\.json"):
        verify(tmp_path)


def test_an_empty_zoo_verifies(tmp_path):
    ZooWriter(tmp_path / "zoo").close()
    assert verify(tmp_path / "zoo").ok


# Running again ------------------------------------------------------------------------------------------------


def test_rerun_agrees_with_what_was_stored(whole):
    runs = run_again(open_zoo(whole), 4)
    assert [run.id for run in runs] == ["m0", "m1", "m3", "m4"]
    assert all(run.agrees for run in runs)
    assert runs[0].found == pytest.approx(open_zoo(whole).metadata(0)["accuracy"], abs=1e-6)
    assert len(run_again(open_zoo(whole), 100)) == 6


def test_rerun_finds_a_wrong_accuracy(tmp_path):
    network = architecture("lenet_like@digits").build()
    right = accuracy(network)
    with ZooWriter(tmp_path / "zoo", task=TASK) as writer:
        for id, stored in [("right", right), ("tie", right + 1 / 360), ("wrong", right + 2 / 360), ("none", None)]:
            writer.add(network, id=id, accuracy=stored)
    found = verify(tmp_path / "zoo", rerun=4)
    assert [run.agrees for run in found.reruns] == [True, True, False, False]
    assert (found.faults, found.ok) == ((), False)
    assert verify(tmp_path / "zoo").ok
    assert verify(tmp_path / "zoo", rerun=1).ok


def test_data_without_instances_to_run_is_refused(whole, tmp_path):
    with pytest.raises(ZooError, match="give rerun=N too"):
        verify(whole, data=tmp_path)


def test_nothing_is_run_again_where_there_are_faults(whole, tmp_path):
    root = shutil.copytree(whole, tmp_path / "zoo")
    (root / read_manifest(root).shards[0].path).unlink()
    found = verify(root, rerun=4)
    assert (len(found.faults), found.reruns, found.ok) == (1, (), False)


def test_rerun_reads_a_folder_of_the_users_and_refuses_another(tmp_path):
    def folder(name, shade):
        for label in range(10):
            for number in range(4):
                file = tmp_path / name / f"class{label}" / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(4 * label + number).integers(shade, size=(8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(file)
        return tmp_path / name

    task = load_task({"kind": "images", "dataset": "folder", "split": {"seed": 0, "test": 4}}, folder("mine", 256))
    network = architecture("lenet_like@digits").build().eval()
    inputs, labels = task.normalised("test")
    with torch.no_grad():
        right = (network(inputs).argmax(-1) == labels).double().mean().item()
    with ZooWriter(tmp_path / "zoo", task=task.record) as writer:
        writer.add(network, accuracy=right)
    assert run_again(open_zoo(tmp_path / "zoo"), 1, tmp_path / "mine")[0].agrees
    with pytest.raises(ZooError, match=r"sha256.* are not those of the record"):
        run_again(open_zoo(tmp_path / "zoo"), 1, folder("yours", 200))
    with pytest.raises(DataMissing, match="data=PATH"):
        run_again(open_zoo(tmp_path / "zoo"), 1)


def test_rerun_says_what_it_lacks(tmp_path):
    network = architecture("lenet_like@cifar10").build()

    def error(task, **columns):
        root = tmp_path / f"zoo{len(list(tmp_path.iterdir()))}"
        with ZooWriter(root, task=task) as writer:
            writer.add(network, **columns)
        with pytest.raises(ZooError) as caught:
            run_again(open_zoo(root), 1)
        return str(caught.value)

    assert "has no column 'accuracy'" in error(TASK)
    assert "names no task" in error(None, accuracy=0.5)
    assert "does not run on the task's test data" in error(TASK, accuracy=0.5)
    assert "Did you mean 'cifar10'?" in error({**TASK, "dataset": "cifar-10"}, accuracy=0.5)
    assert "Did you mean 'images'?" in error({**TASK, "kind": "image"}, accuracy=0.5)


def test_the_test_set_is_seeded_normalised_and_disjoint_from_the_rest():
    inputs, labels = test_set(TASK)
    plain, _ = test_set({**TASK, "mean": [0.0], "std": [1.0]})
    other, _ = test_set({**TASK, "split": {"seed": 1, "test": 360}})
    assert inputs.shape == (360, 1, 8, 8)
    assert inputs.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(10))
    assert 0 <= plain.min() < plain.max() == 1
    torch.testing.assert_close(inputs, (plain - 0.3) / 0.4)
    assert not torch.equal(inputs, other)
    parts = split_indices(1797, 0, test=360, validation=180)
    assert {name: len(part) for name, part in parts.items()} == {"test": 360, "validation": 180, "train": 1257}
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1797))
    assert parts["test"][:5].tolist() == [7, 15, 18, 20, 25]  # the same for ever


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [0.1, 0.2]}, "task, mean: expected 1 number"),
        ({"std": [0.0]}, "task, std"),
        ({"split": None}, "task: 'split' is missing; e.g. split = {seed = 0, test = 360"),
        ({"split": {"seed": 0, "test": 0}}, "task, split.test: expected at least one image; found 0"),
        ({"split": {"seed": 0, "test": 1700, "validation": 98}}, "more than the 1797"),
        ({"dataset": "digit"}, "Did you mean 'digits'?"),
    ],
)
def test_a_wrong_task_record_is_told_with_its_place(change, message):
    with pytest.raises(ZooError, match="task") as error:
        test_set({**TASK, **change})
    assert message in str(error.value)

"""Tests of reading shards without mapping them, and with few open files."""

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from writer_samples import tensors_of, trained, write_digits

from prepkit.api import open_zoo
from prepkit.cli import main
from prepkit.errors import PRepFileError, ZooError
from prepkit.prep.file import _all_tensors
from prepkit.tensors import same_bits
from prepkit.zoo.format.manifest import MANIFEST, checksum, read_manifest
from prepkit.zoo.read import shard_values, store
from prepkit.zoo.read.shard_values import MAX_OPEN, Latest
from prepkit.zoo.write.writer import ZooWriter

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module", params=["safetensors", "hdf5"])
def source(request, tmp_path_factory):
    """A zoo of three architectures in several shards, with a teacher."""
    root = tmp_path_factory.mktemp("shards") / "zoo"
    with ZooWriter(root, format=request.param, shard_bytes=50_000) as writer:
        writer.set_teacher(trained("resnet20@digits", 3))
        for seed in range(5):
            for name in ("lenet_like@digits", "resnet8@digits", "vanilla_cnn@digits"):
                writer.add(trained(name, seed), id=f"{name[:3]}-{seed}", accuracy=seed / 10, split="train")
    return root


@pytest.fixture
def root(source, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(source, tmp_path / "zoo")
    return tmp_path / "zoo"


def mapped_files(root: Path) -> set[str]:
    """Names of the files of a folder that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.rpartition("/")[2] for line in lines if f" {root.resolve()}/" in line}


def open_files(root: Path) -> int:
    """How many files of a folder this process has open."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(root.resolve()))
        except OSError:  # the one that lists them
            continue
    return found


@on_linux
def test_a_zoo_that_is_not_mapped_gives_the_same(source):
    mapped, zoo = open_zoo(source), open_zoo(source, mmap=False)
    some = [7, 3, 3, 0, 14, 13, 12, 1]
    assert torch.equal(zoo.preps(), mapped.preps())
    assert torch.equal(zoo.preps(some), mapped.preps(some))
    assert torch.equal(zoo.preps(some, width=64), mapped.preps(some, width=64))
    assert torch.equal(open_zoo(source, width=4096, mmap=False).preps(), open_zoo(source, width=4096).preps())
    assert all(torch.equal(zoo[index][0].values, mapped[index][0].values) for index in range(len(zoo)))
    part = zoo.where("accuracy > 0.1 and architecture == 'resnet8@digits'")
    assert torch.equal(part.preps(), mapped.where("accuracy > 0.1 and architecture == 'resnet8@digits'").preps())
    inputs = torch.randn(2, 1, 8, 8)
    assert torch.equal(zoo.network("res-2")(inputs), mapped.network("res-2")(inputs))
    assert torch.equal(zoo.teacher(inputs), mapped.teacher(inputs))
    assert torch.equal(zoo.to("cpu").preps(), mapped.preps())
    for (preps, ids, numbers), expected in zip(zoo.loader(4, seed=1), mapped.loader(4, seed=1), strict=True):
        assert torch.equal(preps, expected[0])
        assert torch.equal(ids, expected[1])
        assert torch.equal(numbers, expected[2])
    assert torch.equal(pickle.loads(pickle.dumps(zoo)).preps(), mapped.preps())
    assert not pickle.loads(pickle.dumps(zoo))._store.is_mapped
    del mapped, expected
    assert mapped_files(source) == set()


@on_linux
def test_a_zoo_is_mapped_otherwise_and_keeps_no_file_open(source):
    zoo = open_zoo(source)
    zoo.preps()
    zoo.populate()
    assert mapped_files(source) == {Path(shard.path).name for shard in zoo.manifest.shards}
    assert open_files(source) == 0


def test_bfloat16_and_a_narrower_network_than_its_zoo(tmp_path):
    given = tensors_of(3, dtype=torch.bfloat16)
    with ZooWriter(tmp_path / "narrow", width=8) as writer:
        writer.add(given)
    with ZooWriter(tmp_path / "wide", width=8, dtype="float64") as writer:
        writer.add(given)
    for name in ("narrow", "wide"):
        tensors = open_zoo(tmp_path / name, mmap=False)[0][0].tensors()
        assert all(same_bits(tensors[key], given[key]) for key in given)


def test_what_was_read_can_be_written_into(source):
    zoo = open_zoo(source, mmap=False)
    before = zoo[0][0].values.clone()
    zoo[0][0].values.fill_(7)
    zoo.preps([0]).fill_(7)
    assert torch.equal(zoo[0][0].values, before)


def test_workers_read_too(source):
    zoo = open_zoo(source, mmap=False)
    zoo.preps()
    loader = DataLoader(zoo.dataset(), batch_size=5, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat([preps for preps, _, _ in loader]), zoo.preps())


# What is wrong ------------------------------------------------------------------------------------------------


def reads(zoo):
    """Each way to read instance 3."""
    return {
        "instance": lambda: zoo[3],
        "preps": lambda: zoo.preps([0, 3]),
        "all": lambda: zoo.preps(),
        "wider": lambda: zoo.preps([3], width=4096),
        "loader": lambda: list(zoo.loader(4, shuffle=False)),
        "dataset": lambda: zoo.dataset()[3],
        "network": lambda: zoo.network(3),
        "resident": lambda: zoo.to("cpu"),
    }


@pytest.mark.parametrize("how", ["instance", "preps", "all", "wider", "loader", "dataset", "network", "resident"])
def test_a_shard_truncated_while_the_zoo_is_open_is_named(root, how):
    zoo = open_zoo(root, mmap=False)
    zoo.preps()
    row = zoo.metadata(3)
    file = root / zoo.manifest.shards[row["shard"]].path
    row_bytes = zoo._store.shard(row["shard"]).extent.row_bytes
    end = file.stat().st_size - (zoo.manifest.shards[row["shard"]].rows - row["row"]) * row_bytes
    os.truncate(file, end + 10)
    with pytest.raises(ZooError, match=rf"{file.name}, row {row['row']}: truncated .* {end + 10:,} bytes .*fetch it"):
        reads(zoo)[how]()


def test_a_shard_truncated_before_it_is_touched(root):
    zoo = open_zoo(root, mmap=False)
    file = root / zoo.manifest.shards[0].path
    os.truncate(file, 100)
    with pytest.raises(ZooError, match=rf"{file.name}: "):
        zoo.preps()


@on_linux
def test_a_mapped_one_ends_the_process(root, forked_python):
    """So this is what `mmap=False` spares; where it holds no more, the option has no use."""
    script = (
        "import os, sys, prepkit\nzoo = prepkit.open_zoo(sys.argv[1])\nzoo.preps()\n"
        "os.truncate(os.path.join(sys.argv[1], zoo.manifest.shards[0].path), 0)\nzoo.preps()\n"
    )
    assert forked_python.run("-c", script, root).returncode == -7  # SIGBUS


def test_an_error_of_the_disk_is_named(source, monkeypatch):
    zoo = open_zoo(source, mmap=False)
    zoo.preps()

    def failing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(shard_values, "_read_at", failing)
    with pytest.raises(ZooError, match=r"shards/.*, row 2: cannot be read: Input/output error"):
        zoo.preps([6])


def test_reads_that_bring_less_than_was_asked_for_go_on(source, monkeypatch):
    whole = shard_values._read_at
    monkeypatch.setattr(shard_values, "_read_at", lambda opened, target, place: whole(opened, target[:1001], place))
    assert torch.equal(open_zoo(source, mmap=False).preps(), open_zoo(source).preps())


def test_a_system_without_reads_at_a_place(source, monkeypatch):
    monkeypatch.delattr(os, "preadv")
    assert torch.equal(open_zoo(source, mmap=False).preps(), open_zoo(source).preps())


def test_the_teacher_is_not_mapped_either(root, monkeypatch):
    expected = open_zoo(root).teacher.state_dict()
    monkeypatch.setattr("safetensors.safe_open", lambda *_, **__: pytest.fail("the teacher was mapped"))
    found = open_zoo(root, mmap=False).teacher.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_a_teacher_that_is_damaged_after_its_sum_was_compared(root, monkeypatch, damage):
    file = root / read_manifest(root).teacher.path
    whole = _all_tensors

    def damaged(path):
        os.truncate(file, file.stat().st_size - 100) if damage == "truncated" else file.unlink()
        return whole(path)

    monkeypatch.setattr("prepkit.prep.file._all_tensors", damaged)
    with pytest.raises(PRepFileError, match=rf"{file.name}' (was truncated or damaged while|cannot be read: No such)"):
        _ = open_zoo(root, mmap=False).teacher


@pytest.mark.parametrize("said", ["0", "1", ""])
def test_the_environment_says_whether(source, monkeypatch, said):
    monkeypatch.setenv("PREPKIT_MMAP", said)
    assert open_zoo(source)._store.is_mapped == (said != "0")
    assert open_zoo(source, mmap=True)._store.is_mapped
    assert not open_zoo(source, mmap=False)._store.is_mapped


def test_another_word_is_refused(source, monkeypatch):
    monkeypatch.setenv("PREPKIT_MMAP", "no")
    with pytest.raises(ZooError, match=r"PREPKIT_MMAP is 'no'; set it to 1 .* or to 0"):
        open_zoo(source)


def test_a_command_reads_without_mapping(source, tmp_path, monkeypatch):
    expected = open_zoo(source)["res-2"][0].tensors()
    monkeypatch.setenv("PREPKIT_MMAP", "0")
    monkeypatch.setattr(shard_values, "_mapped", lambda *_: pytest.fail("a shard was mapped"))
    main(["zoo", "export", str(source), "res-2", "-o", str(tmp_path / "m.pt")], standalone_mode=False)
    tensors = torch.load(tmp_path / "m.pt")
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_shard_is_compared_once_though_its_file_was_closed(tmp_path, monkeypatch):
    root = many_shards(tmp_path / "zoo", MAX_OPEN + 10)
    compared = []
    whole = store.sha256_of_file
    monkeypatch.setattr(store, "sha256_of_file", lambda file: compared.append(file) or whole(file))
    zoo = open_zoo(root, verify=True, mmap=False)
    for _ in range(2):
        zoo.preps()
    assert len(compared) == len(set(compared)) == MAX_OPEN + 10


def test_a_damaged_shard_is_refused_without_a_mapping(root):
    shard = read_manifest(root).shards[1]
    content = bytearray((root / shard.path).read_bytes())
    content[-1] ^= 1
    (root / shard.path).write_bytes(content)
    open_zoo(root, mmap=False).preps()
    with pytest.raises(ZooError, match=rf"{shard.path}: damaged"):
        open_zoo(root, mmap=False, verify=True).preps()


# Few open files -----------------------------------------------------------------------------------------------


def many_shards(root: Path, count: int) -> Path:
    with ZooWriter(root, width=8, shard_bytes=1) as writer:
        for index in range(count):
            writer.add(tensors_of(index))
    assert len(read_manifest(root).shards) == count
    return root


@pytest.fixture
def few_files():
    """Lets this process open a hundred files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(len(os.listdir("/proc/self/fd")) + 100, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def check_many(root: Path, mmap: bool, count: int) -> None:
    zoo = open_zoo(root, mmap=mmap)
    for _ in range(2):
        preps = zoo.preps()
        assert preps.reshape(count, -1)[:, 0].tolist() == list(range(count))  # a bias, which equals the seed
        batches = list(zoo.loader(16, seed=2))
        assert sum(len(numbers) for _, _, numbers in batches) == count
    for preps, _, numbers in zoo.loader(16, seed=1):
        assert preps[:, 0, 0].tolist() == numbers.tolist()
    zoo.populate()
    assert zoo[count - 1][0].tensors()["0.bias"][0] == count - 1
    assert open_files(root) <= MAX_OPEN * (not mmap)


@on_linux
@pytest.mark.parametrize("mmap", [True, False])
def test_more_shards_than_open_files_are_read(tmp_path, few_files, mmap):
    check_many(many_shards(tmp_path / "zoo", 150), mmap, 150)


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("limit", [256, 1024])
def test_the_usual_limits(tmp_path, limit):
    """1,100 shards, in a process of its own."""
    script = (
        "import resource, sys\nfrom pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))\n"
        "from test_shard_values import check_many\n"
        "for mmap in (True, False): check_many(Path(sys.argv[1]), mmap, 1100)\n"
    )
    folders = [Path(__file__).parent, Path(__file__).parents[1], Path(__file__).parents[4]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    root = many_shards(tmp_path / "zoo", 1100)
    subprocess.run([sys.executable, "-c", script, root, str(limit)], check=True, env=environment)


@on_linux
@pytest.mark.parametrize("mmap", [True, False])
def test_a_process_that_may_open_no_more_files_at_all(tmp_path, mmap):
    zoo = open_zoo(write_digits(tmp_path / "zoo"), mmap=mmap)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(ZooError, match=r"shards/.*: cannot be read: Too many open files; .*`ulimit -n`"):
            zoo.preps()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    zoo.preps()


def test_those_put_in_last_are_kept():
    latest = Latest[str](2)
    assert latest.put(5, "a") == latest.put(6, "b") == []
    assert latest.put(7, "c") == ["a"]
    assert list(latest) == [6, 7]
    assert Latest[str]().bound is None


@on_linux
def test_a_folder_whose_name_is_not_unicode(tmp_path):
    root = tmp_path / os.fsdecode(b"\xff\xe9")
    write_digits(tmp_path / "zoo").rename(root)
    assert open_zoo(root).preps().any()
    assert open_zoo(root, mmap=False).preps().any()


def test_values_that_another_library_wrote_at_an_odd_place(tmp_path):
    """Safetensors allows any offset; these values begin at an odd byte."""
    with ZooWriter(tmp_path / "zoo", width=8) as writer:
        for seed in range(5):
            writer.add(tensors_of(seed))
    expected = open_zoo(tmp_path / "zoo").preps().clone()

    def write(file: Path) -> None:
        header = json.dumps({"prep": {"dtype": "F32", "shape": [5, 4, 8], "data_offsets": [0, 640]}}).encode()
        header += b" " * ((1 - len(header)) % 4)
        file.write_bytes(len(header).to_bytes(8, "little") + header + expected.numpy().tobytes())

    assert list(expected.shape) == [5, 4, 8]
    file = tmp_path / "zoo" / read_manifest(tmp_path / "zoo").shards[0].path
    write(file)
    data = json.loads((tmp_path / "zoo" / MANIFEST).read_text())
    data["shards"][0]["bytes"] = file.stat().st_size
    (tmp_path / "zoo" / MANIFEST).write_text(json.dumps({**data, "sha256": checksum(data)}))
    for mmap in (True, False):
        assert torch.equal(open_zoo(tmp_path / "zoo", mmap=mmap).preps(), expected)
        assert torch.equal(open_zoo(tmp_path / "zoo", mmap=mmap)[3][0].values, expected[3])

"""Tests of convert: it keeps every value, row and fact, and an error leaves no target and an unchanged source."""

import hashlib
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from folder_contents import files_of
from zoo_samples import NAMES, registry, write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import OutputError, PrepkitError, VerificationError, ZooError
from prepkit.tensors import same_bits
from prepkit.zoo.change import convert as module
from prepkit.zoo.change import copying
from prepkit.zoo.format.manifest import MANIFEST, read_manifest, write_manifest
from prepkit.zoo.write.writer import ZooWriter

convert = partial(module.convert, card=False)
FORMATS = ("safetensors", "hdf5")
KINDS = {
    "plain": {},
    "teacher": {"teacher": "resnet14@digits", "provenance": {"spec": "lr = 0.1\n"}, "name": "a name", "height": 40},
    "registry": {"registry": registry(*NAMES[::-1])},  # ClassIds that are not ascending, one without instances
    "nameless": {"tensors": 3},
    "half": {"dtype": "float64"},
    "empty": {"count": 0},
}


def assert_same(one, other):
    assert one.table.equals(other.table)
    for index in range(len(one)):
        (prep, row), (copy, same_row) = one[index], other[index]
        assert row == same_row
        assert same_bits(prep.values, copy.values)
        assert (prep.layout, prep.origin) == (copy.layout, copy.origin)


@pytest.mark.parametrize("source_format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_nothing_changes_not_even_a_byte(tmp_path, kind, source_format):
    source = write_zoo(tmp_path / "one", format=source_format, **{"name": "zoo", **KINDS[kind]})
    other_format = FORMATS[1 - FORMATS.index(source_format)]
    counts = []
    manifest = convert(source, tmp_path / "other", other_format, progress=counts.append).manifest
    assert manifest.shard_format == other_format
    assert sum(counts) == sum(shard.bytes for shard in manifest.shards)
    assert verify(tmp_path / "other").ok
    assert not verify(tmp_path / "other").notes
    assert_same(open_zoo(source), open_zoo(tmp_path / "other"))
    assert replace(read_manifest(source), shards=(), shard_format="") == replace(manifest, shards=(), shard_format="")
    convert(tmp_path / "other", tmp_path / "back", source_format)
    assert files_of(tmp_path / "back") == files_of(source)


def test_the_result_is_the_one_that_the_writer_writes(tmp_path):
    one = write_zoo(tmp_path / "one", name="zoo", format="safetensors")
    direct = write_zoo(tmp_path / "direct", name="zoo", format="hdf5")
    convert(one, tmp_path / "converted", "hdf5")
    shards = {path for path in files_of(direct) if path.startswith("shards/")}
    assert {path: files_of(tmp_path / "converted").get(path) for path in shards} == {
        path: files_of(direct)[path] for path in shards
    }


def test_keys_of_a_later_version_are_kept(tmp_path):
    source = write_zoo(tmp_path / "one")
    write_manifest(replace(read_manifest(source), unknown={"later": [1, {"a": None}]}), source, overwrite=True)
    assert convert(source, tmp_path / "two", "hdf5").manifest.unknown == {"later": [1, {"a": None}]}


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_damaged_source_is_refused_rather_than_given_right_checksums(tmp_path):
    source = write_zoo(tmp_path / "one")
    file = source / read_manifest(source).shards[0].path
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    file.write_bytes(data)
    with pytest.raises(ZooError, match="damaged"):
        convert(source, tmp_path / "two", "hdf5")
    assert leftovers(tmp_path) == ["one"]


@pytest.mark.parametrize("what", ["value", "row", "fact", "file"])
def test_the_proof_finds_what_a_faulty_copy_loses(tmp_path, monkeypatch, what):
    source = write_zoo(tmp_path / "one")
    before = files_of(source)
    if what == "value":
        rows = copying.reshaped

        def faulty(*arguments):
            for piece in rows(*arguments):
                yield piece[:-1000] + b"\1" + piece[-999:]

        monkeypatch.setattr(copying, "reshaped", faulty)
    if what == "row":
        copy = module.copy_shards
        monkeypatch.setattr(module, "copy_shards", lambda *arguments: copy(*arguments)[::-1])
    if what == "fact":
        write = module.write_manifest
        monkeypatch.setattr(
            module, "write_manifest", lambda manifest, *a, **k: write(replace(manifest, license="gpl"), *a, **k)
        )
    if what == "file":
        monkeypatch.setattr(module, "copy_file", lambda source, path, root: (root / path).write_bytes(b"PAR1"))
    with pytest.raises(VerificationError):
        convert(source, tmp_path / "two", "hdf5")
    assert leftovers(tmp_path) == ["one"]
    assert files_of(source) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_a_failure_leaves_nothing(tmp_path, monkeypatch, error):
    source = write_zoo(tmp_path / "one")

    def failing(*arguments, **settings):
        raise error

    monkeypatch.setattr(module, "write_manifest", failing)
    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)) as caught:
        convert(source, tmp_path / "two", "hdf5")
    assert leftovers(tmp_path) == ["one"]
    if isinstance(error, OSError):
        assert "the disk is full" in str(caught.value)


def test_targets_that_are_refused(tmp_path):
    source = write_zoo(tmp_path / "one")
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    for target, message in [
        (source, "exists already"),
        (tmp_path / "full", "exists already"),
        (tmp_path / "file", "is a file"),
        (source / "inside", "lies in the zoo"),
        (tmp_path / "file" / "below", "cannot write"),
    ]:
        before = files_of(tmp_path)
        with pytest.raises(OutputError, match=message):
            convert(source, target, "hdf5")
        assert files_of(tmp_path) == before
    with pytest.raises(ZooError, match="Did you mean 'hdf5'"):
        convert(source, tmp_path / "two", "hdf")
    with pytest.raises(PrepkitError, match="does not exist"):
        convert(tmp_path / "none", tmp_path / "new" / "two", "hdf5")
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path):
    source = write_zoo(tmp_path / "one")
    (tmp_path / "two").mkdir()
    convert(source, tmp_path / "two", "hdf5")
    convert(source, tmp_path / "a" / "b", "hdf5")
    assert (tmp_path / "two" / MANIFEST).is_file()
    assert (tmp_path / "a" / "b" / MANIFEST).is_file()


def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


@pytest.mark.xdist_group("time and memory")
@pytest.mark.skipif(sys.platform != "linux", reason="reads and resets VmHWM of /proc")
def test_memory_is_bounded(tmp_path):
    stack = torch.randn(1, 600, 1000, generator=torch.Generator().manual_seed(0))
    with ZooWriter(tmp_path / "one", width=1000) as writer:
        for number in range(60):  # 144 MB
            writer.add({"w": stack[0] + number})
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that earlier tests left
    before = memory("VmRSS")
    convert(tmp_path / "one", tmp_path / "two", "hdf5")
    assert memory("VmHWM") - before < 80_000  # KiB
    hashes = [
        hashlib.sha256(open_zoo(tmp_path / name)[59][0].values.numpy().tobytes()).digest() for name in ("one", "two")
    ]
    assert hashes[0] == hashes[1]
